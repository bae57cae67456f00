"""Activity `report`: a workflow's report becomes its AgentRun's status, and before that the AgentApprovals it asks for.

The object is taken from the calling workflow's id, which Temporal vouches for, and from nothing the caller says. So a
workflow can write about its own run only, a session's about runs that name its session, and only forwards: uid,
`reportSeq` and resourceVersion guard every write.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from dalang_api.contract import (
    REPORT_ACTIVITY,
    RUN_WORKFLOW,
    SESSION_WORKFLOW,
    ReportResult,
    RunReport,
    SessionReport,
    WorkflowTarget,
    parse_workflow_id,
    session_workflow_id,
)
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from dalang_operator.kinds.agentrun.status import name_taken_status, run_status
from dalang_operator.kube.client import KubeClient
from dalang_operator.kube.errors import ApiError, Conflict, NotFound
from dalang_operator.kube.resources import AGENT_RUNS, Json, ObjectKey, uid_of
from dalang_operator.kube.status import write_status
from dalang_operator.reporter.approvals import ApprovalWriter, Asked, NameTaken
from dalang_operator.reporter.local import LocalRuns
from dalang_operator.runtime.cache import is_finished, report_seq
from dalang_operator.runtime.metrics import REPORTS
from dalang_operator.runtime.references import session_of

logger = logging.getLogger(__name__)

Uids = dict[str, str] | None
"""Of AgentApprovals, by name; None where the report asks for none, and where a newer one was quicker."""
ATTEMPTS = 5
"""Reads and writes tried at once; the controller's first status may come between, rarely anything else."""


def refusal(
    report: RunReport, run: Json | None, target: WorkflowTarget, session: WorkflowTarget | None = None
) -> str | None:
    """Return why a report is not written, in one word, or None when it is; `session` is the one that reports."""
    if run is None:
        return "deleted"
    if uid_of(run) != target.suffix:
        return "another_uid"
    if not _is_exchange_of(session, run):
        return "not_ours"
    if is_finished(run):
        is_from_report = report.finished_at is not None or report.seq < report_seq(run)
        return "finished" if session is None or is_from_report else "ended_by_controller"
    if report.seq <= report_seq(run):
        return "older"
    return None


def _is_exchange_of(session: WorkflowTarget | None, run: Json) -> bool:
    """Return whether the run names the session, or none; a session of that name made anew was not sent it."""
    if session is None:
        return session_of(run) is None
    noted = run.get("status", {}).get("workflow", {}).get("id")
    own = session_workflow_id(session.installation, session.namespace, session.name, session.suffix)
    return session_of(run) == session.name and noted in {None, own}


def reporting_workflow(installation: str, namespaces: frozenset[str], workflow_type: str) -> WorkflowTarget | None:
    """Return what the calling workflow's id names; None when the workflow is not ours to write for."""
    info = activity.info()
    try:
        target = parse_workflow_id(info.workflow_id or "")
    except ValueError:
        return None
    if target.installation != installation or info.workflow_type != workflow_type:
        return None
    return target if not namespaces or target.namespace in namespaces else None


def retryable(error: ApiError) -> ApplicationError:
    """Return the error an activity fails with, to be tried again. Benign: the SDK logs no stack trace for it."""
    return ApplicationError(str(error), type=type(error).__name__, category=ApplicationErrorCategory.BENIGN)


class SessionPort(Protocol):
    """Where the state of a session goes that comes with a report of one of its runs."""

    async def write(self, report: SessionReport, target: WorkflowTarget) -> str: ...


@dataclass(frozen=True)
class RunReporter:
    """Writes reports into AgentRuns."""

    installation: str
    namespaces: frozenset[str]
    """Watched namespaces; empty means all."""
    kube: KubeClient
    local: LocalRuns
    """The controller, if it runs in this process."""
    approvals: ApprovalWriter
    sessions: SessionPort
    now: Callable[[], datetime]

    @activity.defn(name=REPORT_ACTIVITY)
    async def report(self, report: RunReport) -> ReportResult:
        """Write one report; returns the uids of the AgentApprovals it waits for.

        Raises:
            ApplicationError: The API server refused or did not answer; Temporal tries again.
        """
        session = reporting_workflow(self.installation, self.namespaces, SESSION_WORKFLOW)
        target = reporting_workflow(self.installation, self.namespaces, RUN_WORKFLOW)
        if session is not None and report.run is not None:
            target = WorkflowTarget(session.installation, session.namespace, report.run.name, report.run.uid)
        if target is None:
            REPORTS.labels("not_ours").inc()
            return ReportResult()
        try:
            outcome, asked = await self._write(report, target, session)
            if session is not None and report.session is not None:
                await self.sessions.write(report.session, session)
        except ApiError as error:
            REPORTS.labels("error").inc()
            raise retryable(error) from error
        REPORTS.labels(outcome).inc()
        is_gone = session is not None and outcome in {"deleted", "another_uid", "ended_by_controller"}
        return ReportResult(approvals=asked, gone=is_gone or None)

    async def _write(
        self, report: RunReport, target: WorkflowTarget, session: WorkflowTarget | None
    ) -> tuple[str, Uids]:
        if not report.finished_at:
            outcome, _, asked = await self._write_once(report, target, session)
            return outcome, asked
        ended = None
        self.local.ending(target.suffix)
        try:
            outcome, ended, asked = await self._write_once(report, target, session)
        finally:
            self.local.ended(target.suffix, ended)
        return outcome, asked

    async def _write_once(
        self, report: RunReport, target: WorkflowTarget, session: WorkflowTarget | None
    ) -> tuple[str, Json | None, Uids]:
        """Return what became of the report, the run if this report ended it, and the approvals that it asked for.

        Approvals come first: a status that names them before they are there could be read, and nobody would try again
        if this process died in between. What asks for some is compared with the live run, as the cached one may not know
        yet that a newer report has told what came of them.
        """
        key = ObjectKey(target.namespace, target.name)
        workflow_id = activity.info().workflow_id or ""
        run = None if report.pending_approvals else self.local.cached(key)
        asked: Asked | None = None
        has_asked = False
        for attempt in range(ATTEMPTS):
            if attempt or run is None or refusal(report, run, target, session):
                run = await self._read(key)
            why_not = refusal(report, run, target, session)
            is_repeated = why_not == "older" and run is not None and report_seq(run) == report.seq
            if run is not None and not has_asked and (why_not is None or is_repeated):
                asked, has_asked = await self._ask(report, target, workflow_id, run), True
            if run is not None and asked and why_not == "older" and not is_repeated:
                await self.approvals.withdraw(asked.made, run)
                asked = None
            uids = asked.uids if asked else None
            if run is None or why_not:
                return str(why_not), None, uids
            status = run_status(report, run, workflow_id, self.now())
            try:
                written = await write_status(self.kube, AGENT_RUNS, run, status, "reporter")
            except Conflict:
                continue
            except NotFound:
                return "deleted", None, uids
            if not (written and is_finished(written)):
                return "written", None, uids
            logger.info("AgentRun %s: %s", key, report.reason)
            return "written", written, uids
        raise Conflict(f"AgentRun {key} changed under {ATTEMPTS} attempts")

    async def _ask(self, report: RunReport, target: WorkflowTarget, workflow_id: str, run: Json) -> Asked | None:
        """Write what a report says of approvals; where a name of theirs is taken, the run says so meanwhile."""
        try:
            return await self.approvals.write(report, target, workflow_id)
        except NameTaken as error:
            status = name_taken_status(run, str(error), self.now())
            with suppress(Conflict, NotFound):  # the next attempt says it
                await write_status(self.kube, AGENT_RUNS, run, status, "reporter")
            raise

    async def _read(self, key: ObjectKey) -> Json | None:
        try:
            return await self.kube.get(AGENT_RUNS, key.namespace, key.name)
        except NotFound:
            return None

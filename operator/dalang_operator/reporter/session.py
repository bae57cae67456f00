"""Activity `reportSession`, and the part of a run's report that is about its session: they become the AgentSession's status.

As with runs the object is the one that the calling workflow's id names, and a status never goes back to an older report.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from dalang_api.contract import REPORT_SESSION_ACTIVITY, SESSION_WORKFLOW, SessionReport, WorkflowTarget
from temporalio import activity

from dalang_operator.kinds.agentsession.status import session_status
from dalang_operator.kube.client import KubeClient
from dalang_operator.kube.errors import ApiError, Conflict, NotFound
from dalang_operator.kube.resources import AGENT_SESSIONS, Json, ObjectKey, uid_of
from dalang_operator.kube.status import write_status
from dalang_operator.reporter.local import LocalRuns
from dalang_operator.reporter.report import reporting_workflow, retryable
from dalang_operator.runtime.cache import is_closed, report_seq
from dalang_operator.runtime.metrics import REPORTS

logger = logging.getLogger(__name__)

ATTEMPTS = 5
"""Reads and writes tried at once; the controller's conditions may come between."""


def refusal(report: SessionReport, session: Json | None, target: WorkflowTarget) -> str | None:
    """Return why a report is not written, in one word, or None when it is."""
    if session is None:
        return "deleted"
    if uid_of(session) != target.suffix:
        return "another_uid"
    if is_closed(session):
        return "finished"
    if report.seq <= report_seq(session):
        return "older"
    return None


@dataclass(frozen=True)
class SessionReporter:
    """Writes reports into AgentSessions."""

    installation: str
    namespaces: frozenset[str]
    """Watched namespaces; empty means all."""
    kube: KubeClient
    local: LocalRuns
    """The controller, if it runs in this process."""
    now: Callable[[], datetime]

    @activity.defn(name=REPORT_SESSION_ACTIVITY)
    async def report(self, report: SessionReport) -> None:
        """Write one report.

        Raises:
            ApplicationError: The API server refused or did not answer; Temporal tries again.
        """
        target = reporting_workflow(self.installation, self.namespaces, SESSION_WORKFLOW)
        if target is None:
            REPORTS.labels("not_ours").inc()
            return
        try:
            outcome = await self.write(report, target)
        except ApiError as error:
            REPORTS.labels("error").inc()
            raise retryable(error) from error
        REPORTS.labels(outcome).inc()

    async def write(self, report: SessionReport, target: WorkflowTarget) -> str:
        """Write the state of the session that the calling workflow is of; returns what became of it, in one word.

        Raises:
            ApiError: The API server refused or did not answer.
        """
        key = ObjectKey(target.namespace, target.name)
        workflow_id = activity.info().workflow_id or ""
        session = self.local.cached_session(key)
        for attempt in range(ATTEMPTS):
            if attempt or session is None or refusal(report, session, target):
                session = await self._read(key)
            why_not = refusal(report, session, target)
            if session is None or why_not:
                return str(why_not)
            status = session_status(report, session, workflow_id, self.now())
            try:
                await write_status(self.kube, AGENT_SESSIONS, session, status, "reporter")
            except Conflict:
                continue
            except NotFound:
                return "deleted"
            if report.closed_at is not None:
                logger.info("AgentSession %s: closed: %s", key, report.closed_message)
            return "written"
        raise Conflict(f"AgentSession {key} changed under {ATTEMPTS} attempts")

    async def _read(self, key: ObjectKey) -> Json | None:
        try:
            return await self.kube.get(AGENT_SESSIONS, key.namespace, key.name)
        except NotFound:
            return None

"""Repairs what no event told: workflows that ended without a report, wedged ones, orphans, and runs nobody serves.

It asks Temporal's visibility, only for workflows of this installation and in watched namespaces, and decides nothing
itself: it marks runs, sessions and pools and has them reconciled. Only orphans are acted on here: they have no object.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from dalang_api.contract import RUN_WORKFLOW, SESSION_WORKFLOW, WorkflowTarget, parse_workflow_id, pool_queue

from dalang_operator.kinds.agentpool.plan import replicas_of
from dalang_operator.kinds.agentpool.reconcile import PoolFacts, open_runs_on
from dalang_operator.kinds.agentrun.reconcile import RunFacts
from dalang_operator.kinds.agentrun.status import says_worker_missing
from dalang_operator.kinds.agentsession.reconcile import SessionFacts
from dalang_operator.kinds.agentsession.status import is_lost
from dalang_operator.kinds.reach import has_live_run
from dalang_operator.kube.errors import NotFound
from dalang_operator.kube.resources import AGENT_RUNS, AGENT_SESSIONS, Json, ObjectKey, Resource, uid_of
from dalang_operator.kube.status import parse_timestamp
from dalang_operator.runtime.cache import Cache, deployment_name, is_awaiting, is_closed, is_queued, is_started
from dalang_operator.runtime.metrics import SWEEP_FINDINGS, SWEEPS
from dalang_operator.runtime.references import session_of
from dalang_operator.temporal.workflows import ListedWorkflow, Workflows

logger = logging.getLogger(__name__)

OVERLAP = timedelta(minutes=1)
"""Visibility may lag by seconds, so each question about the past begins a little before the last one."""
INTERVAL = timedelta(seconds=30)
ORPHANS_EVERY = 10
"""In sweeps: all open workflows are listed for it."""
SECOND_LOOK_AFTER = 2
"""In sweeps."""
ORPHANS_MAX_SHARE = 0.2
ORPHANS_MAX_COUNT = 10
"""More orphans at once than a fifth of what is open, and more than ten, may be our mistake: the rest waits for the next look."""


def share_of_orphans(orphans: list[str], open_count: int, what: str) -> list[str]:
    """Return those that may be stopped at this look, and say how many are left for the next ones.

    Args:
        orphans: Ids of all that have no object.
        open_count: How many there are in Temporal, with and without object.
        what: What they are, for the log.
    """
    share = orphans[: max(ORPHANS_MAX_COUNT, int(ORPHANS_MAX_SHARE * open_count))]
    left = len(orphans) - len(share)
    if left:
        SWEEP_FINDINGS.labels("orphans_left").inc(left)
        logger.error(
            "%d of %d %s have no object: %d are stopped now, %d at the next looks. "
            "If that is a mistake, stop the operator and see to which cluster and Temporal namespace it belongs",
            len(orphans),
            open_count,
            what,
            len(share),
            left,
        )
    return share


class RunPort(Protocol):
    """What the sweep needs of the API server."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json: ...


@dataclass
class Sweep:
    """One sweep after another. What it remembers between them is safe to lose."""

    installation: str
    namespaces: frozenset[str]
    """Watched namespaces; empty means all."""
    workflows: Workflows
    kube: RunPort
    cache: Cache
    run_facts: RunFacts
    pool_facts: PoolFacts
    wake_run: Callable[[ObjectKey], None]
    wake_pool: Callable[[ObjectKey], None]
    session_facts: SessionFacts
    wake_session: Callable[[ObjectKey], None]
    now: Callable[[], datetime]
    interval: timedelta = INTERVAL
    """Between two sweeps."""
    closed_since: datetime | None = None
    """Up to when ended workflows were looked for; None before the first sweep."""
    suspects: dict[str, datetime] = field(default_factory=dict)
    """Workflow ids that had no object in the cache, and when that was first seen."""
    orphans_due: datetime | None = None

    async def sweep(self) -> None:
        """Look once for everything that is due.

        Raises:
            TemporalError: Temporal did not answer; nothing is lost, the next sweep asks for the same.
            ApiError: The API server did not answer.
        """
        begin = self.now()
        await self._find_ended(begin)
        await self._find_failing()
        if self.orphans_due is None or begin >= self.orphans_due:
            await self._find_orphans(begin)
        await self._find_forsaken_pools()
        self._find_forsaken_runs()
        SWEEPS.labels("success").inc()

    async def _find_ended(self, begin: datetime) -> None:
        """A run whose workflow has ended and which does not say so is looked at: nobody will report for it any more."""
        since = self.closed_since or self._oldest_unfinished()
        if since is not None and (len(self.cache.runs) or len(self.cache.sessions)):
            ended = f"{self._ours()} AND CloseTime > '{(since - OVERLAP).isoformat()}'"
            async for listed in self.workflows.list(ended):
                if listed.workflow_type == SESSION_WORKFLOW:
                    self._doubt_session(listed)
                    continue
                found = self._cached(listed)
                if found:
                    key, uid = found
                    SWEEP_FINDINGS.labels("ended").inc()
                    self.run_facts.doubtful.add(uid)
                    self.wake_run(key)
        self.closed_since = begin

    async def _find_failing(self) -> None:
        """A workflow whose code fails says so only to Temporal; its run gets `Stalled`, and loses it when it goes on."""
        before, problems = self.run_facts.problems, {}
        keys: dict[str, ObjectKey] = {}
        sessions: dict[str, str] = {}
        query = f"{self._ours()} AND ExecutionStatus = 'Running' AND TemporalReportedProblems IS NOT NULL"
        async for listed in self.workflows.list(query):
            if listed.workflow_type == SESSION_WORKFLOW:
                sessions[listed.workflow_id] = listed.problems
                continue
            found = self._cached(listed)
            if found:
                key, uid = found
                problems[uid], keys[uid] = listed.problems, key
        self._note_failing_sessions(sessions)
        is_first = not self.run_facts.swept
        self.run_facts.problems, self.run_facts.swept = problems, True
        for uid in problems:
            SWEEP_FINDINGS.labels("failing").inc()
            self.wake_run(keys[uid])  # each time: it may be past its timeout by now
        if is_first or before.keys() - problems.keys():
            for key in self.cache.runs:
                run = self.cache.runs.get(key)
                if run and (is_first or uid_of(run) in before):
                    self.wake_run(key)

    def _note_failing_sessions(self, problems: dict[str, str]) -> None:
        """Have the sessions looked at whose workflow's code fails, or does no longer, and the run that is under way."""
        changed = problems.keys() | self.session_facts.problems.keys()
        self.session_facts.problems = problems
        for workflow_id in changed:
            target = self._target_of(workflow_id)
            if target is not None:
                SWEEP_FINDINGS.labels("failing").inc()
                key = ObjectKey(target.namespace, target.name)
                self.wake_session(key)
                for run_key in self.cache.runs.by("session", *key):
                    self.wake_run(run_key)

    async def _find_orphans(self, begin: datetime) -> None:
        """Compare open workflows with runs, both ways: workflows without a run, and runs without a workflow.

        A session that is gone and has runs under way is its reconcile's to close.
        """
        open_count, open_uids, unknown = 0, set[str](), dict[str, ListedWorkflow]()
        async for listed in self.workflows.list(f"{self._ours()} AND ExecutionStatus = 'Running'"):
            target = self._target(listed)
            if target is None:
                continue
            open_count += 1
            open_uids.add(target.suffix)
            is_session = listed.workflow_type == SESSION_WORKFLOW
            if self._has_session(target) if is_session else self._cached(listed):
                continue
            if is_session and self._has_runs(listed.workflow_id, target):
                SWEEP_FINDINGS.labels("orphan_with_runs").inc()
                self.wake_session(ObjectKey(target.namespace, target.name))
                continue
            unknown[listed.workflow_id] = listed
        self._doubt_runs_without(open_uids, begin)
        self._doubt_sessions_without(open_uids, begin)
        patience = SECOND_LOOK_AFTER * self.interval
        ripe = [unknown[each] for each in unknown if begin - self.suspects.get(each, begin) >= patience]
        self.suspects = {workflow_id: self.suspects.get(workflow_id, begin) for workflow_id in unknown}
        await self._stop_orphans(ripe, open_count)
        self.orphans_due = begin + (patience if self.suspects else ORPHANS_EVERY * self.interval)

    async def _stop_orphans(self, ripe: list[ListedWorkflow], open_count: int) -> None:
        orphans = [listed.workflow_id for listed in ripe if await self._has_no_object(listed)]
        for workflow_id in share_of_orphans(orphans, open_count, "open workflows"):
            SWEEP_FINDINGS.labels("orphan").inc()
            await self.workflows.terminate(workflow_id, "its object is gone")
            del self.suspects[workflow_id]
            logger.info("workflow %s terminated: its object is gone", workflow_id)

    async def _has_no_object(self, listed: ListedWorkflow) -> bool:
        """Ask the API server itself. A finished run has left the cache but has its object; its workflow is left alone."""
        target = parse_workflow_id(listed.workflow_id)
        resource = AGENT_SESSIONS if listed.workflow_type == SESSION_WORKFLOW else AGENT_RUNS
        try:
            found = await self.kube.get(resource, target.namespace, target.name)
        except NotFound:
            return True
        if uid_of(found) != target.suffix:
            return True
        del self.suspects[listed.workflow_id]
        return False

    def _has_session(self, target: WorkflowTarget) -> bool:
        """Return whether the cache has the object of a session's workflow."""
        session = self.cache.sessions.get(ObjectKey(target.namespace, target.name))
        return session is not None and uid_of(session) == target.suffix

    def _has_runs(self, workflow_id: str, target: WorkflowTarget) -> bool:
        """Return whether runs that were sent to a session's workflow have not ended."""
        runs = self.cache.runs_of_session(ObjectKey(target.namespace, target.name))
        return any(run.get("status", {}).get("workflow", {}).get("id") == workflow_id for run in runs)

    def _doubt_session(self, listed: ListedWorkflow) -> None:
        """Have a session looked at whose workflow has ended, and not only gone on in another execution."""
        target = self._target(listed)
        if target is None or not listed.state.is_closed:
            return
        if self._has_session(target) or self._has_runs(listed.workflow_id, target):
            SWEEP_FINDINGS.labels("ended").inc()
            self.session_facts.doubtful.add(listed.workflow_id)
            self.wake_session(ObjectKey(target.namespace, target.name))

    def _doubt_sessions_without(self, open_uids: set[str], begin: datetime) -> None:
        """Have sessions looked at that have no open workflow, and lost ones that have one again."""
        for key in self.cache.sessions:
            session = self.cache.sessions.get(key)
            if session is None or not is_started(session) or is_closed(session):
                continue
            is_open = uid_of(session) in open_uids
            is_old = parse_timestamp(session["metadata"]["creationTimestamp"]) < begin - OVERLAP
            if is_open == is_lost(session) and is_old:
                SWEEP_FINDINGS.labels("session_without_workflow").inc()
                self.session_facts.doubtful.add(session["status"]["workflow"]["id"])
                self.wake_session(key)

    def _doubt_runs_without(self, open_uids: set[str], begin: datetime) -> None:
        for key in self.cache.runs:
            run = self.cache.runs.get(key)
            if run is None or not is_started(run):
                continue
            workflow_id = run["status"]["workflow"]["id"]
            if parse_workflow_id(workflow_id).suffix in open_uids:
                continue
            if parse_timestamp(run["status"].get("startedAt", run["metadata"]["creationTimestamp"])) < begin - OVERLAP:
                SWEEP_FINDINGS.labels("run_without_workflow").inc()
                session_name = session_of(run)
                if session_name is None:
                    self.run_facts.doubtful.add(uid_of(run))
                    self.wake_run(key)
                else:
                    self.session_facts.doubtful.add(workflow_id)
                    self.wake_session(ObjectKey(key.namespace, session_name))

    def _find_forsaken_runs(self) -> None:
        """Runs whose pool has no worker are looked at, and those that said so and have one again."""
        for key in self.cache.runs:
            run = self.cache.runs.get(key)
            if run is None or (is_queued(run) and not run["spec"].get("cancel")):
                continue
            if is_awaiting(run) and not (self.cache.is_awake(key) or says_worker_missing(run)):
                continue
            if says_worker_missing(run) or not self.cache.has_worker(key.namespace, run):
                SWEEP_FINDINGS.labels("without_worker").inc()
                self.wake_run(key)

    async def _find_forsaken_pools(self) -> None:
        """A pool at zero with an open workflow on its queue gets a worker: one that was about to end, or was reset.

        Those of runs that await approval do not count, nor those of sessions: their runs tell whether they need one.
        """
        for key in self.cache.pools:
            deployment = self.cache.deployments.get(ObjectKey(key.namespace, deployment_name(key.name)))
            if deployment is None or replicas_of(deployment) > 0:
                continue
            if has_live_run(self.cache, key):
                self.wake_pool(key)
                continue
            queue = pool_queue(self.installation, key.namespace, key.name)
            opened = await self.workflows.count(open_runs_on(queue))
            if opened > self.cache.runs.count("awaiting", key.namespace, key.name):
                SWEEP_FINDINGS.labels("without_worker").inc()
                self.pool_facts.has_open_workflow.add(key)
                self.wake_pool(key)

    def _ours(self) -> str:
        types = f"'{RUN_WORKFLOW}', '{SESSION_WORKFLOW}'"
        return f"WorkflowId STARTS_WITH '{self.installation}.' AND WorkflowType IN ({types})"

    def _target(self, listed: ListedWorkflow) -> WorkflowTarget | None:
        return self._target_of(listed.workflow_id)

    def _target_of(self, workflow_id: str) -> WorkflowTarget | None:
        """Return what a workflow is of; None where its id only begins like ours, as anybody's may."""
        try:
            target = parse_workflow_id(workflow_id)
        except ValueError:
            return None
        return target if not self.namespaces or target.namespace in self.namespaces else None

    def _cached(self, listed: ListedWorkflow) -> tuple[ObjectKey, str] | None:
        """Return key and uid of the unfinished run a workflow is of, or None."""
        target = self._target(listed)
        if target is None:
            return None
        key = ObjectKey(target.namespace, target.name)
        run = self.cache.runs.get(key)
        return (key, target.suffix) if run and uid_of(run) == target.suffix else None

    def _oldest_unfinished(self) -> datetime | None:
        runs: Iterable[Json | None] = map(self.cache.runs.get, self.cache.runs)
        created = [parse_timestamp(run["metadata"]["creationTimestamp"]) for run in runs if run]
        return min(created, default=None)

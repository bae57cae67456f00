"""Repairs what no event told: workflows that ended without a report, wedged ones, orphans, and runs nobody serves.

It asks Temporal's visibility, only for workflows of this installation and in watched namespaces, and decides nothing
itself: it marks runs and pools and has them reconciled. Only orphans are acted on here, since they have no object.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from dalang_api.contract import RUN_WORKFLOW, WorkflowTarget, parse_workflow_id, pool_queue

from dalang_operator.kinds.agentpool.plan import replicas_of
from dalang_operator.kinds.agentpool.reconcile import PoolFacts
from dalang_operator.kinds.agentrun.reconcile import RunFacts
from dalang_operator.kinds.agentrun.status import says_worker_missing
from dalang_operator.kube.errors import NotFound
from dalang_operator.kube.resources import AGENT_RUNS, Json, ObjectKey, Resource, uid_of
from dalang_operator.kube.status import parse_timestamp
from dalang_operator.runtime.cache import Cache, deployment_name, is_awaiting, is_started
from dalang_operator.runtime.metrics import SWEEP_FINDINGS, SWEEPS
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
"""More orphans at once than a fifth of the open workflows, and more than ten, are more likely our mistake than theirs."""


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
        if since is not None and len(self.cache.runs):
            ended = f"{self._ours()} AND CloseTime > '{(since - OVERLAP).isoformat()}'"
            async for listed in self.workflows.list(ended):
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
        query = f"{self._ours()} AND ExecutionStatus = 'Running' AND TemporalReportedProblems IS NOT NULL"
        async for listed in self.workflows.list(query):
            found = self._cached(listed)
            if found:
                key, uid = found
                problems[uid], keys[uid] = listed.problems, key
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

    async def _find_orphans(self, begin: datetime) -> None:
        """Compare open workflows with runs, both ways: workflows without a run, and runs without a workflow."""
        open_count, open_uids, unknown = 0, set[str](), dict[str, ListedWorkflow]()
        async for listed in self.workflows.list(f"{self._ours()} AND ExecutionStatus = 'Running'"):
            target = self._target(listed)
            if target is None:
                continue
            open_count += 1
            open_uids.add(target.suffix)
            if self._cached(listed) is None:
                unknown[listed.workflow_id] = listed
        self._doubt_runs_without(open_uids, begin)
        patience = SECOND_LOOK_AFTER * self.interval
        ripe = [workflow_id for workflow_id in unknown if begin - self.suspects.get(workflow_id, begin) >= patience]
        self.suspects = {workflow_id: self.suspects.get(workflow_id, begin) for workflow_id in unknown}
        await self._stop_orphans(ripe, open_count)
        self.orphans_due = begin + (patience if self.suspects else ORPHANS_EVERY * self.interval)

    async def _stop_orphans(self, ripe: list[str], open_count: int) -> None:
        orphans = [workflow_id for workflow_id in ripe if await self._has_no_run(workflow_id)]
        if len(orphans) > max(ORPHANS_MAX_COUNT, ORPHANS_MAX_SHARE * open_count):
            SWEEP_FINDINGS.labels("orphans_refused").inc(len(orphans))
            logger.error(
                "%d of %d open workflows have no AgentRun: too many to believe; none is stopped. "
                "Terminate them in Temporal if they are truly not wanted",
                len(orphans),
                open_count,
            )
            return
        for workflow_id in orphans:
            SWEEP_FINDINGS.labels("orphan").inc()
            await self.workflows.terminate(workflow_id, "its AgentRun is gone")
            del self.suspects[workflow_id]
            logger.info("workflow %s terminated: its AgentRun is gone", workflow_id)

    async def _has_no_run(self, workflow_id: str) -> bool:
        """Ask the API server itself. A finished run has left the cache but has its object; its workflow is left alone."""
        target = parse_workflow_id(workflow_id)
        try:
            run = await self.kube.get(AGENT_RUNS, target.namespace, target.name)
        except NotFound:
            return True
        if uid_of(run) != target.suffix:
            return True
        del self.suspects[workflow_id]
        return False

    def _doubt_runs_without(self, open_uids: set[str], begin: datetime) -> None:
        for key in self.cache.runs:
            run = self.cache.runs.get(key)
            if run is None or not is_started(run) or uid_of(run) in open_uids:
                continue
            if parse_timestamp(run["status"].get("startedAt", run["metadata"]["creationTimestamp"])) < begin - OVERLAP:
                SWEEP_FINDINGS.labels("run_without_workflow").inc()
                self.run_facts.doubtful.add(uid_of(run))
                self.wake_run(key)

    def _find_forsaken_runs(self) -> None:
        """Runs whose pool has no worker are looked at, and those that said so and have one again."""
        for key in self.cache.runs:
            run = self.cache.runs.get(key)
            if run is None or (is_awaiting(run) and not (self.cache.is_awake(key) or says_worker_missing(run))):
                continue
            if says_worker_missing(run) or not self.cache.has_worker(key.namespace, run):
                SWEEP_FINDINGS.labels("without_worker").inc()
                self.wake_run(key)

    async def _find_forsaken_pools(self) -> None:
        """A pool at zero with an open workflow on its queue gets a worker: one that was about to end, or was reset.

        Those of runs that await approval do not count.
        """
        for key in self.cache.pools:
            deployment = self.cache.deployments.get(ObjectKey(key.namespace, deployment_name(key.name)))
            if deployment is None or replicas_of(deployment) > 0:
                continue
            queue = pool_queue(self.installation, key.namespace, key.name)
            opened = await self.workflows.count(f"TaskQueue = '{queue}' AND ExecutionStatus = 'Running'")
            if opened > self.cache.runs.count("awaiting", key.namespace, key.name):
                SWEEP_FINDINGS.labels("without_worker").inc()
                self.pool_facts.has_open_workflow.add(key)
                self.wake_pool(key)

    def _ours(self) -> str:
        return f"WorkflowId STARTS_WITH '{self.installation}.' AND WorkflowType = '{RUN_WORKFLOW}'"

    def _target(self, listed: ListedWorkflow) -> WorkflowTarget | None:
        """Return what a workflow is of; None where its id only begins like ours, as anybody's may."""
        try:
            target = parse_workflow_id(listed.workflow_id)
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

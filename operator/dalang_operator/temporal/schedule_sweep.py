"""Repairs what no event told of schedules: firings that wait for a run that has ended, and schedules without an object.

As the sweep of runs it decides little itself: it marks schedules and has them reconciled. Only schedules in Temporal whose
AgentSchedule is gone are acted on here, after two looks and a live read that says so.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from dalang_api.contract import (
    TRIGGER_WORKFLOW,
    WorkflowTarget,
    parse_trigger_id,
    parse_workflow_id,
    schedule_id,
    scheduled_run_name,
)

from dalang_operator.kinds.agentschedule.reconcile import ScheduleFacts
from dalang_operator.kinds.agentschedule.runs import Firing
from dalang_operator.kube.errors import NotFound
from dalang_operator.kube.resources import AGENT_SCHEDULES, ObjectKey, uid_of
from dalang_operator.runtime.cache import Cache
from dalang_operator.runtime.metrics import SWEEP_FINDINGS
from dalang_operator.temporal.schedules import Schedules
from dalang_operator.temporal.sweep import INTERVAL, SECOND_LOOK_AFTER, RunPort, share_of_orphans
from dalang_operator.temporal.workflows import Workflows

logger = logging.getLogger(__name__)


@dataclass
class ScheduleSweep:
    """One sweep after another. What it remembers between them is safe to lose."""

    installation: str
    namespaces: frozenset[str]
    """Watched namespaces; empty means all."""
    workflows: Workflows
    schedules: Schedules
    kube: RunPort
    cache: Cache
    facts: ScheduleFacts
    wake: Callable[[ObjectKey], None]
    now: Callable[[], datetime]
    interval: timedelta = INTERVAL
    """Between two sweeps."""
    suspects: dict[str, datetime] = field(default_factory=dict)
    """Ids of schedules that had no object in the cache, and when that was first seen."""

    async def sweep(self) -> None:
        """Look once for everything.

        Raises:
            TemporalError: Temporal did not answer; nothing is lost, the next sweep asks for the same.
            ApiError: The API server did not answer.
        """
        begin = self.now()
        known = {id_ async for id_ in self.schedules.list() if self._target(id_)}
        self._wake_missing(known)
        firing = await self._find_firings()
        await self._find_orphans(begin, known, firing)

    def _wake_missing(self, known: set[str]) -> None:
        """A schedule that was deleted in Temporal by hand is looked at; so is one too new to be listed."""
        for key in self.cache.schedules:
            schedule = self.cache.schedules.get(key)
            if schedule and schedule_id(self.installation, *key, uid_of(schedule)) not in known:
                self.wake(key)

    async def _find_firings(self) -> set[str]:
        """Have each open firing looked at whose run is not under way; returns the ids of all schedules that fire."""
        found = set()
        query = (
            f"WorkflowId STARTS_WITH '{self.installation}.' AND WorkflowType = '{TRIGGER_WORKFLOW}' "
            "AND ExecutionStatus = 'Running'"
        )
        async for listed in self.workflows.list(query):
            try:
                target, scheduled_at = parse_trigger_id(listed.workflow_id)
            except ValueError:
                continue
            if not self._is_watched(target):
                continue
            key = ObjectKey(target.namespace, target.name)
            found.add(schedule_id(self.installation, *key, target.suffix))
            run = scheduled_run_name(target.name, target.suffix, scheduled_at)
            if self.cache.schedules.get(key) and not self.cache.runs.get(ObjectKey(target.namespace, run)):
                SWEEP_FINDINGS.labels("firing_without_run").inc()
                self.facts.firings.setdefault(key, set()).add(Firing(target.suffix, scheduled_at))
                self.wake(key)
        return found

    async def _find_orphans(self, begin: datetime, known: set[str], firing: set[str]) -> None:
        unknown = {id_ for id_ in known | firing if not self._is_cached(id_)}
        patience = SECOND_LOOK_AFTER * self.interval
        self.suspects = {id_: self.suspects.get(id_, begin) for id_ in unknown}
        ripe = sorted(id_ for id_ in unknown if begin - self.suspects[id_] >= patience)
        orphans = [id_ for id_ in ripe if await self._has_no_object(id_)]
        for id_ in share_of_orphans(orphans, len(known | firing), "schedules"):
            SWEEP_FINDINGS.labels("orphan").inc()
            await self.schedules.remove(id_, "its AgentSchedule is gone")
            del self.suspects[id_]
            logger.info("schedule %s deleted: its AgentSchedule is gone", id_)

    async def _has_no_object(self, id_: str) -> bool:
        target = parse_workflow_id(id_)
        try:
            schedule = await self.kube.get(AGENT_SCHEDULES, target.namespace, target.name)
        except NotFound:
            return True
        if uid_of(schedule) != target.suffix:
            return True
        del self.suspects[id_]
        return False

    def _is_cached(self, id_: str) -> bool:
        target = parse_workflow_id(id_)
        schedule = self.cache.schedules.get(ObjectKey(target.namespace, target.name))
        return schedule is not None and uid_of(schedule) == target.suffix

    def _target(self, id_: str) -> WorkflowTarget | None:
        """Return what a schedule is of; None where it is not ours, or its id only begins like ours."""
        try:
            target = parse_workflow_id(id_)
        except ValueError:
            return None
        return target if self._is_watched(target) else None

    def _is_watched(self, target: WorkflowTarget) -> bool:
        is_ours = target.installation == self.installation
        return is_ours and (not self.namespaces or target.namespace in self.namespaces)

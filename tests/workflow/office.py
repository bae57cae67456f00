"""The operator's part in schedules, on a real Temporal, for tests: a cluster in memory, a controller, a reporter.

They are the parts that run in the operator's pod, but for kopf: changes of the cluster go straight into the intake. Runs
end when a test says so, or as soon as they are cancelled.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from dalang_api import contract
from dalang_operator.kinds.agentapproval.reconcile import ApprovalFacts
from dalang_operator.kinds.agentrun.reconcile import RunFacts
from dalang_operator.kinds.agentschedule.desired import ScheduleView
from dalang_operator.kinds.agentschedule.reconcile import ScheduleFacts, ScheduleReconciler
from dalang_operator.kinds.agentsession.reconcile import SessionFacts
from dalang_operator.kinds.intake import Intake
from dalang_operator.kube.errors import Invalid
from dalang_operator.kube.resources import AGENT_RUNS, AGENT_SCHEDULES, Json, ObjectKey, Resource, key_of, uid_of
from dalang_operator.reporter.triggers import RunCreator, TriggerRun
from dalang_operator.runtime.cache import Cache, is_finished
from dalang_operator.runtime.clock import utc_now
from dalang_operator.runtime.controller import Controller
from dalang_operator.runtime.queue import Queue
from dalang_operator.temporal.errors import TemporalUnavailable
from dalang_operator.temporal.schedule_sweep import ScheduleSweep
from dalang_operator.temporal.schedules import Schedules
from dalang_operator.temporal.workflows import Workflows
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from tests.build import schedule
from tests.memory_cluster import MemoryCluster

KINDS = ("Agent", "AgentApproval", "AgentModel", "AgentPool", "AgentRun", "AgentSchedule", "AgentSession")
EVERY_SECOND = {"intervals": [{"every": "1s"}]}
SELDOM = {"cron": ["0 0 1 1 *"]}
HOURLY = {"intervals": [{"every": "1h"}]}
KEY = ObjectKey("shop", "nightly")


@dataclass
class Office:
    """One installation: a cluster, a controller of its schedules, a reporter that creates their runs."""

    client: Client
    installation: str = field(default_factory=lambda: f"test-{uuid4().hex[:12]}")
    cluster: MemoryCluster = field(default_factory=MemoryCluster)
    ends_cancelled: bool = True
    """Whether runs end as soon as they are cancelled."""

    def __post_init__(self) -> None:
        self.workflows = Workflows(self.client)
        self.schedules = Schedules(self.client, self.workflows)
        self.cluster.told = self._watch
        self.restart()

    def restart(self) -> None:
        """Begin with nothing but what the cluster has, as a new process does."""
        self.cache, self.facts = Cache(), ScheduleFacts()
        self.queues = {kind: Queue(kind) for kind in KINDS}
        self.intake = Intake(self.cache, self.queues, RunFacts(), ApprovalFacts(), SessionFacts(), self.facts)
        self.reconciler = ScheduleReconciler(
            self.cluster, self.workflows, self.schedules, self.cache, self.facts, self.installation, utc_now
        )
        self.sweep = ScheduleSweep(
            self.installation,
            frozenset(),
            self.workflows,
            self.schedules,
            self.cluster,
            self.cache,
            self.facts,
            self.queues["AgentSchedule"].add,
            utc_now,
            timedelta(0),
        )
        for resource in (AGENT_SCHEDULES, AGENT_RUNS):
            for obj in self.cluster.all(resource):
                if not is_finished(obj):
                    self.intake.applied(resource.kind, obj)

    def _watch(self, event: str, resource: Resource, obj: Json) -> None:
        """What the hot watch tells of a change."""
        if event == "DELETED" or (resource is AGENT_RUNS and is_finished(obj)):
            self.intake.removed(resource.kind, obj)
        else:
            self.intake.applied(resource.kind, obj)
        if self.ends_cancelled and obj.get("spec", {}).get("cancel") and not is_finished(obj):
            self.cluster.finish(key_of(obj).name, "Cancelled", "Cancelled")

    @asynccontextmanager
    async def controller(self) -> AsyncIterator[None]:
        """The controller of schedules."""

        async def may_act() -> None:
            return None

        working = asyncio.ensure_future(
            Controller("AgentSchedule", self.queues["AgentSchedule"], self.reconciler.reconcile, 2).run(may_act)
        )
        try:
            yield
        finally:
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working

    def reporter(self) -> Worker:
        """The reporter's part."""
        creator = RunCreator(
            self.installation,
            frozenset(),
            self.cluster,  # type: ignore[arg-type]
            self.schedules,
            utc_now,
        )
        return Worker(
            self.client,
            task_queue=contract.reporter_queue(self.installation),
            workflows=[TriggerRun],
            workflow_runner=UnsandboxedWorkflowRunner(),
            activities=[creator.create, creator.cancel],
        )

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Controller and reporter."""
        async with self.controller(), self.reporter():
            yield

    # ── What there is ──

    def apply(self, times: Json, name: str = "nightly", **spec: Any) -> Json:
        """Apply a schedule with these times, or change it."""
        before = self.cluster.objects.get((AGENT_SCHEDULES.kind, ObjectKey("shop", name)))
        made = schedule(name, schedule=times, metadata={"uid": str(uuid4())}, **spec)
        if before is not None:
            metadata = {**before["metadata"], "generation": before["metadata"]["generation"] + 1}
            made = {**before, "metadata": metadata, "spec": made["spec"]}
        return self.cluster.put(AGENT_SCHEDULES, made)

    def annotate(self, name: str = "nightly", **annotations: str) -> None:
        before = self.object(name)
        metadata = {
            **before["metadata"],
            "annotations": {f"dalang.dev/{key}": value for key, value in annotations.items()},
        }
        self.cluster.put(AGENT_SCHEDULES, {**before, "metadata": metadata})

    def object(self, name: str = "nightly") -> Json:
        return self.cluster.objects[AGENT_SCHEDULES.kind, ObjectKey("shop", name)]

    def status(self, name: str = "nightly") -> Json:
        found: Json = self.object(name)["status"]
        return found

    def ready(self, name: str = "nightly") -> Json:
        found = [each for each in self.status(name)["conditions"] if each["type"] == "Ready"]
        ready: Json = found[0]
        return ready

    def has(self, reason: str, name: str = "nightly") -> bool:
        return bool(self.ready(name)["reason"] == reason)

    def id(self, name: str = "nightly") -> str:
        return contract.schedule_id(self.installation, "shop", name, uid_of(self.object(name)))

    def runs(self, name: str = "nightly", *, phase: str | None = None) -> list[Json]:
        """The runs of a schedule in the order of their times, perhaps only those of a phase; None is any."""
        found = [run for run in self.cluster.all(AGENT_RUNS) if key_of(run).name.startswith(f"{name}-")]
        return [run for run in found if phase is None or run["status"]["phase"] == phase]

    def active(self, name: str = "nightly") -> list[str]:
        return [key_of(run).name for run in self.runs(name) if not is_finished(run)]

    async def view(self, id_: str = "") -> ScheduleView | None:
        """What Temporal says of the schedule; it answers one who asks at a time."""
        while True:
            with suppress(TemporalUnavailable):
                return await self.schedules.describe(id_ or self.id())

    async def times(self, since: datetime, name: str = "nightly") -> list[datetime]:
        """The times of a schedule that have passed; likewise."""
        while True:
            with suppress(TemporalUnavailable):
                return await self.schedules.times(self.id(name), since, datetime.now(UTC))

    async def firings(self, status: str | None = "Running") -> list[str]:
        """Ids of the workflows that wait for a run, or ended so; None is any."""
        query = f"WorkflowId STARTS_WITH '{self.installation}.' AND WorkflowType = 'TriggerRun'"
        if status:
            query += f" AND ExecutionStatus = '{status}'"
        return sorted([listed.workflow_id async for listed in self.workflows.list(query)])


def times_of(runs: list[Json]) -> list[datetime]:
    annotations = [run["metadata"]["annotations"]["dalang.dev/scheduled-at"] for run in runs]
    return list(map(datetime.fromisoformat, annotations))


async def eventually(condition: Callable[[], Any], within: float = 20.0) -> Any:
    """Return the condition's value as soon as that is true."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within} s"
        await asyncio.sleep(0.02)


async def fire_in_every_shape(office: Office) -> dict[str, str]:
    """Have firings end in each way they can; returns their workflow ids by shape."""
    found: dict[str, str] = {}
    known: set[str] = set()

    fired = 0.0

    async def fire(shape: str) -> str:
        nonlocal fired
        # A firing is named by its second, and one that was refused leaves its second to the next.
        await eventually(lambda: time.time() > fired + 2)
        fired = time.time()
        office.annotate(trigger=shape)

        async def new() -> list[str]:
            return [each for each in await office.firings(None) if each not in known]

        fresh: list[str] = await eventually(new)
        [workflow_id] = fresh
        known.add(workflow_id)
        found[shape] = workflow_id
        return workflow_id

    async with office.working():
        office.apply(SELDOM, concurrencyPolicy="Allow")
        await eventually(lambda: office.has("Scheduled"))
        for shape, phase in (("firing", "Succeeded"), ("firing-failed", "Failed")):
            await fire(shape)
            [name] = await eventually(office.active)
            office.cluster.finish(name, phase, "Answered" if phase == "Succeeded" else "Timeout", "as it was")
            await eventually(lambda: not office.active())
        await fire("firing-deleted")
        [name] = await eventually(office.active)
        office.cluster.remove(AGENT_RUNS, name)
        workflow_id = await fire("firing-cancelled")
        await eventually(office.active)
        await office.workflows.cancel(workflow_id, "by hand")
        await eventually(lambda: not office.active())
        office.cluster.refusals = [Invalid("spec.input: Too long", 422)]
        await fire("firing-refused")

        async def all_ended() -> bool:
            return not await office.firings()

        await eventually(all_ended)
    async with office.controller():
        workflow_id = await fire("firing-cancelled-first")
        await office.workflows.cancel(workflow_id, "before the run was created")
        async with office.reporter():
            await eventually(all_ended)
    return found

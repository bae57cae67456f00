"""The AgentSchedule's reconcile where Temporal is away, says no, or somebody was quicker. The rest is in tests/workflow."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from dalang_api.contract import CreatedRun, RunIdentity, Wire, scheduled_run_name, trigger_workflow_id
from dalang_operator.kinds.agentschedule.desired import DesiredSchedule, ScheduleView
from dalang_operator.kinds.agentschedule.plan import BackfillRuns
from dalang_operator.kinds.agentschedule.reconcile import ScheduleFacts, ScheduleReconciler
from dalang_operator.kinds.agentschedule.runs import Firing, make_run
from dalang_operator.kinds.workflow import WorkflowState, WorkflowView
from dalang_operator.kube.errors import Conflict, QuotaExceeded
from dalang_operator.kube.resources import AGENT_RUNS, AGENT_SCHEDULES, Json, ObjectKey, Resource, uid_of
from dalang_operator.runtime.cache import Cache, is_finished
from dalang_operator.temporal.errors import ArgumentRefused, TemporalError, TemporalUnavailable, WorkflowNotFound

from tests.build import INSTALLATION, NOW, schedule
from tests.memory_cluster import MemoryCluster

KEY = ObjectKey("shop", "nightly")
ID = f"{INSTALLATION}.shop.nightly.uid-nightly"
RUN = scheduled_run_name("nightly", "uid-nightly", NOW)
FIRING = trigger_workflow_id(ID, NOW)


@dataclass
class FakeTemporal:
    """Schedules and workflows, as far as they are asked for."""

    views: dict[str, ScheduleView] = field(default_factory=dict)
    workflows: dict[str, WorkflowView] = field(default_factory=dict)
    created: dict[str, CreatedRun] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    error: TemporalError | None = None
    """What every call ends with."""

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if self.error:
            raise self.error

    async def create(self, desired: DesiredSchedule) -> None:
        self._called("create")
        self.views[desired.id] = ScheduleView("d1", b"1", is_paused=desired.is_suspended)

    async def update(self, desired: DesiredSchedule, token: bytes) -> None:
        self._called(f"update {token.decode()}")
        self.views[desired.id] = ScheduleView("d2", b"2", is_paused=desired.is_suspended)

    async def describe(self, id_: str) -> ScheduleView | None:
        if self.error:
            raise self.error
        return self.views.get(id_)

    async def pause(self, id_: str, note: str, request_id: str) -> None:
        self._called(f"pause {note}")

    async def trigger(self, id_: str, scheduled_at: datetime, request_id: str) -> None:
        self._called(f"trigger {scheduled_at:%H:%M:%S}")

    async def backfill(self, wanted: BackfillRuns) -> None:
        self._called("backfill")

    async def times(self, id_: str, begin: datetime, end: datetime) -> list[datetime]:
        return [NOW - timedelta(seconds=1)]

    async def remove(self, id_: str, reason: str) -> bool:
        self._called(f"remove {id_}")
        return True

    async def created_run(self, workflow_id: str) -> CreatedRun | None:
        return self.created.get(workflow_id)

    async def signal(self, workflow_id: str, name: str, value: Wire | None, request_id: str) -> None:
        if self.workflows.get(workflow_id, WorkflowView(WorkflowState.MISSING)).state is not WorkflowState.OPEN:
            raise WorkflowNotFound(workflow_id)
        assert value is not None
        self._called(f"{name} {value.model_dump()['phase']} {request_id}")

    async def look(self, workflow_id: str) -> WorkflowView:
        return self.workflows.get(workflow_id, WorkflowView(WorkflowState.MISSING))


@dataclass
class World:
    cluster: MemoryCluster = field(default_factory=MemoryCluster)
    temporal: FakeTemporal = field(default_factory=FakeTemporal)
    cache: Cache = field(default_factory=Cache)
    facts: ScheduleFacts = field(default_factory=ScheduleFacts)
    now: datetime = NOW

    def __post_init__(self) -> None:
        self.cluster.told = self._watch
        self._reconciler = ScheduleReconciler(
            self.cluster, self.temporal, self.temporal, self.cache, self.facts, INSTALLATION, lambda: self.now
        )

    def _watch(self, event: str, resource: Resource, obj: Json) -> None:
        store = self.cache.store(resource.kind)
        if event == "DELETED" or (resource is AGENT_RUNS and is_finished(obj)):
            store.drop(obj)
            if resource is AGENT_RUNS:
                self.facts.run_left(obj)
            else:
                self.facts.gone.setdefault(KEY, set()).add(uid_of(obj))
        else:
            store.put(obj)

    def put(self, obj: Json) -> Json:
        return self.cluster.put(AGENT_SCHEDULES, obj)

    def put_run(self) -> Json:
        """The run of a firing that is open."""
        self.temporal.workflows[FIRING] = WorkflowView(WorkflowState.OPEN)
        made = make_run(self.cluster.objects[AGENT_SCHEDULES.kind, KEY], NOW)
        run = self.cluster.put(AGENT_RUNS, {**made, "status": {"phase": "Running"}})
        self.temporal.created[FIRING] = CreatedRun(run=RunIdentity(name=RUN, uid=uid_of(run)))
        return run

    async def reconcile(self) -> float | None:
        return await self._reconciler.reconcile(KEY)

    async def fails(self) -> str:
        with pytest.raises(TemporalError):
            await self.reconcile()
        return self.ready()["reason"]

    def ready(self) -> dict[str, str]:
        [found] = [each for each in self.status()["conditions"] if each["type"] == "Ready"]
        return {name: str(value) for name, value in found.items()}

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.objects[AGENT_SCHEDULES.kind, KEY]["status"]
        return found


async def settled(**spec: Any) -> World:
    world = World()
    world.put(schedule(**spec))
    await world.reconcile()
    world.temporal.calls.clear()
    return world


async def test_a_schedule_that_temporal_is_not_told_of_for_15_seconds_says_so_until_it_is() -> None:
    world = World()
    world.put(schedule())
    world.temporal.error = TemporalUnavailable("Temporal: away")
    assert await world.fails() == "Pending"
    world.now += timedelta(seconds=14)
    assert await world.fails() == "Pending"
    world.now += timedelta(seconds=1)
    assert await world.fails() == "ScheduleFailed"
    assert "Temporal: away" in world.ready()["message"]
    writes = len(world.cluster.writes)
    await world.fails()
    assert len(world.cluster.writes) == writes
    world.temporal.error = None
    await world.reconcile()
    assert world.ready()["reason"] == "Scheduled"
    assert world.facts.failing_since == {}


async def test_a_schedule_that_temporal_has_is_not_doubted_while_temporal_is_away() -> None:
    world = await settled()
    world.temporal.error = TemporalUnavailable("Temporal: away")
    world.now += timedelta(minutes=1)
    await world.fails()
    world.now += timedelta(minutes=1)
    assert await world.fails() == "Scheduled"


async def test_words_of_temporal_stand_in_the_status_and_are_not_tried_again_at_once() -> None:
    world = World()
    world.put(schedule())
    world.temporal.error = None

    async def refuse(desired: DesiredSchedule) -> None:
        raise ArgumentRefused("Temporal: Hour is not in range [0-23]")

    world.temporal.create = refuse  # type: ignore[method-assign]
    assert await world.reconcile() is None
    assert (world.ready()["reason"], world.ready()["message"]) == (
        "InvalidSchedule",
        "Temporal: Hour is not in range [0-23]",
    )


async def test_a_schedule_deleted_under_the_update_is_tried_again() -> None:
    world = World()
    world.put(schedule())

    async def vanish(desired: DesiredSchedule) -> None:
        return None

    world.temporal.create = vanish  # type: ignore[method-assign]
    with pytest.raises(Conflict):
        await world.reconcile()


@pytest.mark.parametrize(
    ("policy", "phase", "pauses"),
    [
        pytest.param("Forbid", "Failed", True, id="a failure"),
        pytest.param("Forbid", "Cancelled", True, id="a cancelled run: one that was triggered Temporal does not watch"),
        pytest.param("Replace", "Cancelled", True, id="cancelled by somebody"),
        pytest.param("Allow", "Cancelled", True, id="Temporal does not watch those that may overlap"),
        pytest.param("Allow", "Succeeded", False, id="a success"),
    ],
)
async def test_the_end_of_a_run_is_told_to_its_firing_and_pauses_first(policy: str, phase: str, pauses: bool) -> None:
    world = await settled(concurrencyPolicy=policy, pauseOnFailure=True)
    uid = uid_of(world.put_run())
    world.cluster.finish(RUN, phase, "Timeout", "too slow")
    await world.reconcile()
    pause = [f"pause paused since AgentRun {RUN} ended as {phase}: Timeout: too slow"] if pauses else []
    assert world.temporal.calls == [*pause, f"runEnded {phase} ended {uid}"]
    assert world.facts.firings == {}
    await world.reconcile()
    assert len(world.temporal.calls) == len(pause) + 1


async def test_a_run_that_was_replaced_pauses_nothing() -> None:
    world = await settled(concurrencyPolicy="Replace", pauseOnFailure=True)
    uid = uid_of(world.put_run())
    world.temporal.workflows[FIRING] = WorkflowView(WorkflowState.OPEN, is_cancelled=True)
    world.cluster.finish(RUN, "Cancelled", "Cancelled")
    await world.reconcile()
    assert world.temporal.calls == [f"runEnded Cancelled ended {uid}"]


async def test_a_run_whose_firing_has_ended_pauses_nothing() -> None:
    """It was told before, and the schedule may have been mended since."""
    world = await settled(pauseOnFailure=True)
    world.put_run()
    world.temporal.workflows[FIRING] = WorkflowView(WorkflowState.FAILED)
    world.cluster.finish(RUN, "Failed")
    await world.reconcile()
    assert world.temporal.calls == []


async def test_a_failed_run_of_an_earlier_firing_pauses_nothing() -> None:
    """A backfill comes to its time again: whether the new firing waits for it is known when that has recorded so."""
    world = await settled(pauseOnFailure=True)
    world.put_run()
    recorded = world.temporal.created.pop(FIRING)
    world.cluster.finish(RUN, "Failed")
    assert await world.reconcile() == 2
    assert world.temporal.calls == []
    firings = {KEY: set(world.facts.firings[KEY])}
    world.temporal.created[FIRING] = CreatedRun()
    await world.reconcile()
    assert (world.temporal.calls, world.facts.firings) == ([], {})
    world.facts.firings.update(firings)
    world.temporal.created[FIRING] = recorded
    await world.reconcile()
    assert [call.split()[0] for call in world.temporal.calls] == ["pause", "runEnded"]


async def test_a_deleted_run_is_told_once_its_workflow_has_ended() -> None:
    world = await settled(pauseOnFailure=True)
    uid = uid_of(world.put_run())
    run_workflow = f"{INSTALLATION}.shop.{RUN}.{uid}"
    world.temporal.workflows[run_workflow] = WorkflowView(WorkflowState.OPEN)
    world.cluster.remove(AGENT_RUNS, RUN)
    assert await world.reconcile() == 2
    assert world.temporal.calls == []
    world.temporal.workflows[run_workflow] = WorkflowView(WorkflowState.TERMINATED)
    await world.reconcile()
    assert world.temporal.calls == [f"runEnded Deleted ended {uid}"]
    assert world.facts.firings == {}


@pytest.mark.parametrize("ends", [False, True])
async def test_a_run_that_is_deleted_before_its_creation_is_recorded_is_told_afterwards(ends: bool) -> None:
    world = await settled()
    uid = uid_of(world.put_run())
    recorded = world.temporal.created.pop(FIRING)
    world.cluster.remove(AGENT_RUNS, RUN)
    assert await world.reconcile() == 2
    assert world.temporal.calls == []
    if ends:  # terminated in Temporal
        world.temporal.workflows[FIRING] = WorkflowView(WorkflowState.TERMINATED)
    else:
        world.temporal.created[FIRING] = recorded
    await world.reconcile()
    assert world.temporal.calls == ([] if ends else [f"runEnded Deleted ended {uid}"])
    assert world.facts.firings == {}


async def test_a_firing_without_a_run_yet_is_told_nothing_and_forgotten() -> None:
    world = await settled()
    world.temporal.workflows[FIRING] = WorkflowView(WorkflowState.OPEN)
    world.facts.firings[KEY] = {Firing("uid-nightly", NOW), Firing("uid of an earlier one", NOW)}
    await world.reconcile()
    assert world.temporal.calls == []
    assert world.facts.firings == {}


async def test_a_full_quota_is_said_while_a_run_is_due_and_until_there_is_room() -> None:
    world = await settled()
    world.temporal.workflows[FIRING] = WorkflowView(WorkflowState.OPEN)
    full = QuotaExceeded("exceeded quota: few", 403)
    world.cluster.refusals = [full]
    world.facts.firings[KEY] = {Firing("uid-nightly", NOW)}
    assert await world.reconcile() == 30
    assert (world.ready()["status"], world.ready()["reason"]) == ("False", "QuotaExceeded")
    world.cluster.refusals = [full]
    assert await world.reconcile() == 30
    await world.reconcile()
    assert world.ready()["reason"] == "Scheduled"
    world.cluster.refusals = [full]
    await world.reconcile()
    assert world.cluster.refusals == [full], "where nothing is due, nobody asks"
    assert world.temporal.calls == []


async def test_a_schedule_that_is_applied_while_the_quota_is_full_is_scheduled() -> None:
    world = World()
    world.put(schedule())
    world.cluster.refusals = [QuotaExceeded("exceeded quota: few", 403)]
    await world.reconcile()
    assert world.temporal.calls == ["create"]
    assert world.ready()["reason"] == "QuotaExceeded"


async def test_runs_of_somebody_else_count_for_nothing() -> None:
    """They say that they are the schedule's, and where no policy refuses that, at least it is noted who created them."""
    world = await settled(runHistory={"succeeded": 1, "failed": 0}, pauseOnFailure=True)
    obj = world.cluster.objects[AGENT_SCHEDULES.kind, KEY]
    uid = uid_of(world.put_run())
    for ago in range(1, 4):
        forged = make_run(obj, NOW - timedelta(seconds=ago))
        forged["metadata"]["annotations"]["dalang.dev/created-by"] = "eve"
        world.cluster.put(AGENT_RUNS, {**forged, "status": {"phase": "Running"}})
    await world.reconcile()
    assert [each["name"] for each in world.status()["activeRuns"]] == [RUN]
    world.cluster.finish(RUN)
    for ago in range(1, 4):
        name = scheduled_run_name("nightly", "uid-nightly", NOW - timedelta(seconds=ago))
        world.temporal.workflows[trigger_workflow_id(ID, NOW - timedelta(seconds=ago))] = WorkflowView(
            WorkflowState.OPEN
        )
        world.cluster.finish(name, "Failed")
    await world.reconcile()
    world.temporal.workflows[FIRING] = WorkflowView(WorkflowState.COMPLETED)
    await world.reconcile()
    assert [run["name"] for run in world.status()["recentRuns"]] == [RUN]
    assert world.temporal.calls == [f"runEnded Succeeded ended {uid}"]
    assert len(world.cluster.all(AGENT_RUNS)) == 4


async def test_a_run_that_its_firing_knows_is_told_whoever_is_noted_as_its_creator() -> None:
    """The operator has another account since."""
    world = await settled()
    run = world.put_run()
    annotations = {**run["metadata"]["annotations"], "dalang.dev/created-by": "the-old-account"}
    world.cluster.put(AGENT_RUNS, {**run, "metadata": {**run["metadata"], "annotations": annotations}})
    world.cluster.finish(RUN)
    await world.reconcile()
    assert world.temporal.calls == [f"runEnded Succeeded ended {uid_of(run)}"]


async def test_what_was_left_to_do_is_left_when_temporal_fails() -> None:
    world = await settled()
    uid = uid_of(world.put_run())
    world.cluster.finish(RUN)
    world.temporal.error = TemporalUnavailable("away")
    await world.fails()
    world.temporal.error = None
    world.temporal.calls.clear()
    await world.reconcile()
    assert world.temporal.calls == [f"runEnded Succeeded ended {uid}"]


async def test_a_run_is_deleted_only_after_its_firing_has_ended() -> None:
    world = await settled(runHistory={"succeeded": 0})
    world.put_run()
    world.cluster.finish(RUN)
    assert await world.reconcile() == 2
    assert RUN in [run["metadata"]["name"] for run in world.cluster.all(AGENT_RUNS)]
    world.temporal.workflows[FIRING] = WorkflowView(WorkflowState.COMPLETED)
    await world.reconcile()
    assert world.cluster.all(AGENT_RUNS) == []
    assert [run["name"] for run in world.status()["recentRuns"]] == [RUN]


async def test_a_run_that_a_backfill_may_come_to_is_deleted_when_it_is_over_though_no_run_ends() -> None:
    world = await settled(runHistory={"succeeded": 0})
    world.put_run()
    world.cluster.finish(RUN)
    world.temporal.workflows[FIRING] = WorkflowView(WorkflowState.COMPLETED)
    time = NOW.isoformat()
    order = {"type": "Backfill", "value": "v", "orderedAt": time, "begin": time, "end": time}
    obj = world.cluster.objects[AGENT_SCHEDULES.kind, KEY]
    world.put({**obj, "status": {**world.status(), "orders": [order]}})
    world.temporal.views[ID] = replace(world.temporal.views[ID], buffered=1)
    for minutes in (0, 1, 2):
        world.now = NOW + timedelta(minutes=minutes)
        assert await world.reconcile() == 10
    world.temporal.views[ID] = replace(world.temporal.views[ID], buffered=0)
    await world.reconcile()
    assert world.cluster.all(AGENT_RUNS) == []


async def test_finished_runs_are_listed_only_when_one_has_ended() -> None:
    world = await settled()
    world.facts.listed[KEY] = ("uid-nightly", 1)
    world.cluster.list_pages = None  # type: ignore[method-assign,assignment]
    await world.reconcile()


async def test_triggers_of_one_second_are_runs_of_their_own() -> None:
    world = await settled()
    for value in ("a", "b"):
        obj = world.cluster.objects[AGENT_SCHEDULES.kind, KEY]
        world.put({**obj, "metadata": {**obj["metadata"], "annotations": {"dalang.dev/trigger": value}}})
        await world.reconcile()
        await world.reconcile()
    assert world.temporal.calls == ["trigger 11:59:58", "trigger 11:59:57"], "11:59:59 is a time of the schedule"


async def test_a_second_that_a_forgotten_run_or_firing_has_is_noticed() -> None:
    world = await settled()
    forged = make_run(world.cluster.objects[AGENT_SCHEDULES.kind, KEY], NOW - timedelta(seconds=2))
    del forged["metadata"]["ownerReferences"]
    world.cluster.put(AGENT_RUNS, forged)
    deleted = trigger_workflow_id(ID, NOW - timedelta(seconds=3))
    world.temporal.workflows[deleted] = WorkflowView(WorkflowState.COMPLETED)
    obj = world.cluster.objects[AGENT_SCHEDULES.kind, KEY]
    world.put({**obj, "metadata": {**obj["metadata"], "annotations": {"dalang.dev/trigger": "a"}}})
    await world.reconcile()
    assert world.temporal.calls == ["trigger 11:59:56"]


async def test_a_trigger_that_was_carried_out_and_not_noted_is_only_noted() -> None:
    """Whatever Temporal remembers: the time stands in the status since before."""
    world = await settled()
    obj = world.cluster.objects[AGENT_SCHEDULES.kind, KEY]
    world.put({**obj, "metadata": {**obj["metadata"], "annotations": {"dalang.dev/trigger": "a"}}})
    world.temporal.error = TemporalUnavailable("away")
    with pytest.raises(TemporalError):
        await world.reconcile()
    world.temporal.error = None
    await world.reconcile()
    [order] = world.status()["orders"]
    world.put({**world.cluster.objects[AGENT_SCHEDULES.kind, KEY], "status": {**world.status(), "trigger": "old"}})
    world.status()["orders"] = [{**order, "pending": True}]
    fired = trigger_workflow_id(ID, datetime.fromisoformat(order["begin"]))
    world.temporal.workflows[fired] = WorkflowView(WorkflowState.COMPLETED)
    world.temporal.calls.clear()
    await world.reconcile()
    assert world.temporal.calls == []
    assert (world.status()["trigger"], world.status()["orders"]) == ("a", [order])


async def test_a_schedule_made_anew_has_the_old_one_removed() -> None:
    world = await settled()
    world.cluster.remove(AGENT_SCHEDULES, "nightly")
    await world.reconcile()
    assert world.temporal.calls == [f"remove {ID}"]
    world.put(schedule(metadata={"uid": "other"}))
    await world.reconcile()
    assert world.temporal.calls == [f"remove {ID}", "create"]
    assert world.facts.gone == {}

"""What a sweep of schedules marks, what it deletes, and above all what it leaves alone."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from dalang_api.contract import scheduled_run_name, trigger_workflow_id
from dalang_operator.kinds.agentschedule.reconcile import ScheduleFacts
from dalang_operator.kinds.agentschedule.runs import Firing
from dalang_operator.kinds.workflow import WorkflowState
from dalang_operator.kube.resources import AGENT_SCHEDULES, ObjectKey
from dalang_operator.runtime.cache import Cache
from dalang_operator.temporal.schedule_sweep import ScheduleSweep
from dalang_operator.temporal.workflows import ListedWorkflow

from tests.build import INSTALLATION, NOW, schedule, started_run
from tests.memory_cluster import MemoryCluster

KEY = ObjectKey("shop", "nightly")
INTERVAL = timedelta(seconds=30)


def id_of(name: str = "nightly", uid: str = "uid-nightly", installation: str = INSTALLATION) -> str:
    return f"{installation}.shop.{name}.{uid}"


@dataclass
class FakeTemporal:
    """Schedules and open firings, by id."""

    there: list[str] = field(default_factory=list)
    firing: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    async def list(self, query: str = "") -> AsyncIterator[object]:
        if query:
            assert query.startswith(f"WorkflowId STARTS_WITH '{INSTALLATION}.' AND WorkflowType = 'TriggerRun' AND ")
        for id_ in self.firing if query else self.there:
            yield ListedWorkflow(id_, "r", WorkflowState.OPEN, NOW, "TriggerRun") if query else id_

    async def remove(self, id_: str, reason: str) -> bool:
        self.removed.append(id_)
        self.there = [each for each in self.there if each != id_]
        return True


@dataclass
class World:
    temporal: FakeTemporal = field(default_factory=FakeTemporal)
    cluster: MemoryCluster = field(default_factory=MemoryCluster)
    cache: Cache = field(default_factory=Cache)
    facts: ScheduleFacts = field(default_factory=ScheduleFacts)
    woken: list[ObjectKey] = field(default_factory=list)
    now: datetime = NOW
    namespaces: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self._sweep = ScheduleSweep(
            INSTALLATION,
            self.namespaces,
            self.temporal,  # type: ignore[arg-type]
            self.temporal,  # type: ignore[arg-type]
            self.cluster,
            self.cache,
            self.facts,
            self.woken.append,
            lambda: self.now,
            INTERVAL,
        )

    async def sweep(self, later: timedelta = timedelta(0)) -> None:
        self.now += later
        self.woken.clear()
        await self._sweep.sweep()


async def test_a_schedule_that_temporal_does_not_have_is_looked_at() -> None:
    world = World()
    world.cache.schedules.put(schedule())
    await world.sweep()
    assert world.woken == [KEY]
    world.temporal.there = [id_of(uid="of an earlier one")]
    await world.sweep()
    assert world.woken == [KEY]
    world.temporal.there = [id_of()]
    await world.sweep()
    assert world.woken == []


async def test_a_firing_whose_run_is_not_under_way_is_looked_at() -> None:
    world = World(temporal=FakeTemporal(there=[id_of()]))
    world.cache.schedules.put(schedule())
    earlier = NOW - timedelta(hours=1)
    world.cache.runs.put(started_run(scheduled_run_name("nightly", "uid-nightly", earlier)))
    world.temporal.firing = [trigger_workflow_id(id_of(), time) for time in (NOW, earlier)]
    world.temporal.firing += [id_of(), f"{INSTALLATION}.x"]
    await world.sweep()
    assert world.facts.firings == {KEY: {Firing("uid-nightly", NOW)}}
    assert world.woken == [KEY]


async def test_what_has_no_object_is_removed_after_two_looks_and_a_live_one() -> None:
    gone, only_firing = id_of("gone", "u"), id_of("firing", "u")
    world = World(temporal=FakeTemporal(there=[gone], firing=[trigger_workflow_id(only_firing, NOW)]))
    await world.sweep()
    await world.sweep(INTERVAL)
    assert world.temporal.removed == []
    await world.sweep(INTERVAL)
    assert world.temporal.removed == [only_firing, gone]


@pytest.mark.parametrize("uid", ["uid-nightly", "another"])
async def test_the_live_object_decides(uid: str) -> None:
    """The cache may not have it yet; and one made anew is another."""
    world = World(temporal=FakeTemporal(there=[id_of()]))
    world.cluster.put(AGENT_SCHEDULES, schedule(metadata={"uid": uid}))
    for _ in range(4):
        await world.sweep(INTERVAL)
    assert world.temporal.removed == ([] if uid == "uid-nightly" else [id_of()])


async def test_others_are_left_alone() -> None:
    theirs = [id_of(installation="other"), id_of(installation=f"{INSTALLATION}-2"), "nightly", f"{INSTALLATION}.x"]
    world = World(temporal=FakeTemporal(there=theirs))
    for _ in range(4):
        await world.sweep(INTERVAL)
    assert world.temporal.removed == []


async def test_namespaces_that_are_not_watched_are_none_of_our_business() -> None:
    world = World(temporal=FakeTemporal(there=[id_of()]), namespaces=frozenset({"elsewhere"}))
    world.temporal.firing = [trigger_workflow_id(id_of(), NOW)]
    for _ in range(4):
        await world.sweep(INTERVAL)
    assert world.temporal.removed == []


async def test_of_many_at_once_a_share_is_removed_at_each_look(caplog: pytest.LogCaptureFixture) -> None:
    world = World(temporal=FakeTemporal(there=[id_of(f"s{number}", "u") for number in range(12)]))
    for _ in range(3):
        await world.sweep(INTERVAL)
    assert len(world.temporal.removed) == 10
    assert "12 of 12 schedules have no object: 10 are stopped now, 2 at the next looks" in caplog.text
    await world.sweep(INTERVAL)
    assert world.temporal.there == []

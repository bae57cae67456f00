"""What a sweep marks, and above all what it leaves alone."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from dalang_operator.kinds.agentpool.reconcile import PoolFacts
from dalang_operator.kinds.agentrun.reconcile import RunFacts
from dalang_operator.kinds.agentsession.reconcile import SessionFacts
from dalang_operator.kinds.workflow import WorkflowState
from dalang_operator.kube.errors import NotFound
from dalang_operator.kube.resources import Json, ObjectKey, Resource
from dalang_operator.runtime.cache import Cache
from dalang_operator.temporal.sweep import Sweep, share_of_orphans
from dalang_operator.temporal.workflows import ListedWorkflow

from tests.build import (
    INSTALLATION,
    NOW,
    at,
    awaiting_run,
    condition,
    finished_run,
    open_session,
    pool,
    run,
    sent_exchange,
    session,
    started_run,
)

KEY = ObjectKey("shop", "r1")


def listed(
    name: str = "r1",
    *,
    uid: str | None = None,
    state: WorkflowState = WorkflowState.OPEN,
    problems: str = "",
    workflow_type: str = "AgentRun",
) -> Any:
    workflow_id = f"{INSTALLATION}.shop.{name}.{uid or f'uid-{name}'}"
    return ListedWorkflow(workflow_id, "run-1", state, NOW, workflow_type, problems)


@dataclass
class FakeTemporal:
    """Answers by what the query asks for."""

    opened: list[ListedWorkflow] = field(default_factory=list)
    closed: list[ListedWorkflow] = field(default_factory=list)
    failing: list[ListedWorkflow] = field(default_factory=list)
    open_on: dict[str, int] = field(default_factory=dict)
    queries: list[str] = field(default_factory=list)
    terminated: list[str] = field(default_factory=list)

    async def list(self, query: str) -> AsyncIterator[ListedWorkflow]:
        self.queries.append(query)
        ours = f"WorkflowId STARTS_WITH '{INSTALLATION}.' AND WorkflowType IN ('AgentRun', 'AgentSession') AND "
        assert query.startswith(ours), "only ours"
        if "CloseTime" in query:
            found = self.closed
        else:
            found = self.failing if "TemporalReportedProblems" in query else self.opened
        for one in found:
            yield one

    async def terminate(self, workflow_id: str, reason: str) -> bool:
        self.terminated.append(workflow_id)
        return True

    async def count(self, query: str) -> int:
        return sum(count for queue, count in self.open_on.items() if f"'{queue}'" in query)


@dataclass
class FakeKube:
    objects: dict[str, Json] = field(default_factory=dict)

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json:
        if name not in self.objects:
            raise NotFound(name)
        return self.objects[name]


@dataclass
class World:
    temporal: FakeTemporal = field(default_factory=FakeTemporal)
    kube: FakeKube = field(default_factory=FakeKube)
    cache: Cache = field(default_factory=Cache)
    runs: RunFacts = field(default_factory=RunFacts)
    pools: PoolFacts = field(default_factory=PoolFacts)
    sessions: SessionFacts = field(default_factory=SessionFacts)
    woken_sessions: list[ObjectKey] = field(default_factory=list)
    woken: list[ObjectKey] = field(default_factory=list)
    now: datetime = NOW
    namespaces: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self._sweep = Sweep(
            INSTALLATION,
            self.namespaces,
            self.temporal,  # type: ignore[arg-type]
            self.kube,
            self.cache,
            self.runs,
            self.pools,
            self.woken.append,
            self.woken.append,
            self.sessions,
            self.woken_sessions.append,
            lambda: self.now,
        )

    async def sweep(self, later: timedelta = timedelta(0)) -> None:
        self.now += later
        self.woken.clear()
        self.woken_sessions.clear()
        await self._sweep.sweep()


async def test_a_workflow_that_ended_unnoticed_has_its_run_looked_at() -> None:
    world = World()
    world.cache.runs.put(started_run())
    world.temporal.opened = [listed()]
    world.temporal.closed = [listed(state=WorkflowState.TERMINATED), listed(uid="of an earlier run"), listed("unknown")]
    await world.sweep()
    assert world.runs.doubtful == {"uid-r1"}
    assert KEY in world.woken


async def test_ended_ones_are_asked_for_since_the_oldest_unfinished_run_and_then_since_the_last_sweep() -> None:
    world = World()
    world.cache.runs.put(started_run())  # created an hour ago
    world.temporal.opened = [listed()]
    await world.sweep()
    await world.sweep(timedelta(seconds=30))
    first, second = [query for query in world.temporal.queries if "CloseTime" in query]
    assert "CloseTime > '2026-11-20T10:59:00+00:00'" in first
    assert "CloseTime > '2026-11-20T11:59:00+00:00'" in second


async def test_without_unfinished_runs_nobody_asks_what_ended() -> None:
    world = World()
    await world.sweep()
    assert not [query for query in world.temporal.queries if "CloseTime" in query]


def deployment(ready: int) -> Json:
    """The Deployment of pool `default`."""
    return {
        "metadata": {"namespace": "shop", "name": "dalang-default", "uid": "d", "resourceVersion": str(ready + 1)},
        "spec": {"replicas": 1},
        "status": {"readyReplicas": ready},
    }


async def test_a_run_whose_pool_has_no_worker_is_looked_at() -> None:
    world = World()
    world.cache.runs.put(started_run())
    world.temporal.opened = [listed()]
    world.cache.deployments.put(deployment(ready=0))
    await world.sweep()
    assert KEY in world.woken
    world.woken.clear()
    world.cache.deployments.put(deployment(ready=1))
    await world.sweep(timedelta(seconds=30))
    assert world.woken == []


async def test_failing_code_is_remembered_and_forgotten() -> None:
    world = World()
    world.cache.deployments.put(deployment(ready=1))
    world.cache.runs.put(started_run())
    world.temporal.opened = [listed()]
    world.temporal.failing = [listed(problems="cause=NonDeterminism")]
    await world.sweep()
    assert world.runs.problems == {"uid-r1": "cause=NonDeterminism"}
    assert KEY in world.woken
    world.temporal.failing = []
    await world.sweep(timedelta(seconds=30))
    assert world.runs.problems == {}
    assert world.woken == [KEY], "so that Stalled goes"
    await world.sweep(timedelta(seconds=30))
    assert world.woken == []


async def test_an_orphan_is_stopped_after_two_looks_and_a_read() -> None:
    world = World()
    world.temporal.opened = [listed()]
    await world.sweep()
    await world.sweep(timedelta(seconds=59))
    assert world.temporal.terminated == []
    await world.sweep(timedelta(seconds=1))
    assert world.temporal.terminated == [f"{INSTALLATION}.shop.r1.uid-r1"]


async def test_another_uid_of_the_same_name_makes_an_orphan_too() -> None:
    world = World()
    world.kube.objects["r1"] = run(metadata={"uid": "new"})
    world.temporal.opened = [listed()]
    await world.sweep()
    await world.sweep(timedelta(minutes=1))
    assert world.temporal.terminated == [f"{INSTALLATION}.shop.r1.uid-r1"]


async def test_a_finished_run_is_no_orphan_though_it_left_the_cache() -> None:
    """Its workflow may still be completing its last report."""
    world = World()
    world.kube.objects["r1"] = finished_run()
    world.temporal.opened = [listed()]
    for _ in range(4):
        await world.sweep(timedelta(minutes=5))
    assert world.temporal.terminated == []


@pytest.mark.parametrize("workflow_id", ["something", "shop.uid-r1", "..", ".r1.uid-r1"])
async def test_an_id_that_only_begins_like_ours_is_none_of_our_business(workflow_id: str) -> None:
    world = World()
    world.temporal.opened = world.temporal.closed = [replace(listed(), workflow_id=f"{INSTALLATION}.{workflow_id}")]
    world.cache.runs.put(run())
    for _ in range(3):
        await world.sweep(timedelta(minutes=5))
    assert world.temporal.terminated == []
    assert world.woken == []


async def test_namespaces_that_are_not_watched_are_none_of_our_business() -> None:
    world = World(namespaces=frozenset({"elsewhere"}))
    world.temporal.opened = [listed()]
    for _ in range(3):
        await world.sweep(timedelta(minutes=5))
    assert world.temporal.terminated == []


async def test_of_many_orphans_a_share_is_stopped_at_each_look(caplog: pytest.LogCaptureFixture) -> None:
    """An operator pointed at an empty cluster must not stop everything at once; what is truly gone goes all the same."""
    world = World()
    world.temporal.opened = [listed(f"r{number}") for number in range(12)]
    for _ in range(2):
        await world.sweep(timedelta(minutes=5))
    assert len(world.temporal.terminated) == 10
    assert "12 of 12 open workflows have no object: 10 are stopped now, 2 at the next looks" in caplog.text
    world.temporal.opened = world.temporal.opened[10:]
    await world.sweep(timedelta(minutes=1))
    assert len(world.temporal.terminated) == 12


@pytest.mark.parametrize(("orphans", "open_count", "stopped"), [(9, 9, 9), (11, 11, 10), (30, 100, 20), (20, 100, 20)])
def test_a_share_is_ten_or_a_fifth_of_what_is_open(orphans: int, open_count: int, stopped: int) -> None:
    assert len(share_of_orphans(list(map(str, range(orphans))), open_count, "workflows")) == stopped


async def test_a_run_whose_workflow_temporal_does_not_list_is_looked_at_but_for_young_ones() -> None:
    world = World()
    world.cache.runs.put(started_run("old"))
    young = started_run("young")
    young["status"]["startedAt"] = "2026-11-20T11:59:30Z"
    world.cache.runs.put(young)
    world.cache.runs.put(run("waiting"))
    await world.sweep()
    assert world.runs.doubtful == {"uid-old"}


async def test_a_pool_at_zero_with_an_open_workflow_is_woken() -> None:
    world = World()
    world.cache.pools.put(pool())
    world.cache.deployments.put(
        {
            "metadata": {"namespace": "shop", "name": "dalang-default", "uid": "d", "resourceVersion": "1"},
            "spec": {"replicas": 0},
        }
    )
    await world.sweep()
    assert world.woken == []
    world.temporal.open_on = {f"{INSTALLATION}.shop.default": 3}
    await world.sweep(timedelta(seconds=30))
    assert world.woken == [ObjectKey("shop", "default")]
    assert world.pools.has_open_workflow == {ObjectKey("shop", "default")}


async def test_runs_that_await_approval_bring_no_pool_up_and_are_not_looked_at() -> None:
    world = World()
    world.cache.pools.put(pool())
    zero = deployment(ready=0)
    world.cache.deployments.put({**zero, "spec": {"replicas": 0}})
    world.cache.runs.put(awaiting_run("r1", "r1-a"))
    world.temporal.opened = [listed()]
    world.temporal.open_on = {f"{INSTALLATION}.shop.default": 1}
    await world.sweep()
    await world.sweep(timedelta(seconds=30))
    assert world.woken == []
    assert world.pools.has_open_workflow == set()
    world.temporal.open_on = {f"{INSTALLATION}.shop.default": 2}
    await world.sweep(timedelta(seconds=30))
    assert world.woken == [ObjectKey("shop", "default")]


async def test_runs_that_were_decided_are_looked_at_while_no_worker_acts_on_it() -> None:
    world = World()
    key = ObjectKey("shop", "r1")
    world.temporal.opened = [listed()]
    await world.sweep()
    world.cache.runs.put(awaiting_run("r1", "r1-a"))
    world.cache.note_awake(key, awaiting_run("r1", "r1-a"), NOW)
    await world.sweep(timedelta(seconds=30))
    assert world.woken == [key]
    says_so = awaiting_run("r1", "r1-a", metadata={"resourceVersion": "11"})
    says_so["status"]["conditions"] = [condition("Succeeded", "Unknown", "WorkerMissing")]
    world.cache.runs.put(says_so)
    world.cache.awake.clear()
    world.cache.deployments.put(deployment(ready=1))
    await world.sweep(timedelta(seconds=30))
    assert world.woken == [key], "it must not go on saying so"


# ── Sessions ───────────────────────────────────────────────────────────────────────────────────────────────────────

CHAT = ObjectKey("shop", "chat")
CHAT_ID = f"{INSTALLATION}.shop.chat.uid-chat"


def of_session(**more: Any) -> Any:
    return listed("chat", workflow_type="AgentSession", **more)


def closed_session() -> Json:
    obj = open_session()
    obj["status"]["closedAt"] = at()
    return obj


async def test_a_session_whose_workflow_has_ended_is_looked_at() -> None:
    world = World()
    world.cache.runs.put(run())
    world.cache.sessions.put(open_session())
    world.temporal.opened = [of_session()]
    world.temporal.closed = [of_session(state=WorkflowState.COMPLETED)]
    await world.sweep()
    assert (world.sessions.doubtful, world.woken_sessions) == ({CHAT_ID}, [CHAT])


async def test_a_session_that_only_went_on_in_another_execution_is_left_alone() -> None:
    world = World()
    world.cache.runs.put(run())
    world.cache.sessions.put(open_session())
    world.temporal.opened = world.temporal.closed = [of_session()]
    await world.sweep()
    assert (world.sessions.doubtful, world.woken_sessions) == (set(), [])


@pytest.mark.parametrize(
    ("obj", "is_looked_at"),
    [
        pytest.param(open_session(), True, id="it has none any more"),
        pytest.param(session(), False, id="it has none yet"),
        pytest.param(closed_session(), False, id="it needs none"),
        pytest.param(open_session(metadata={"creationTimestamp": at()}), False, id="visibility may lag"),
    ],
)
async def test_a_session_whose_workflow_temporal_does_not_list(obj: Json, is_looked_at: bool) -> None:
    world = World()
    world.cache.sessions.put(obj)
    await world.sweep()
    assert world.woken_sessions == ([CHAT] if is_looked_at else [])


async def test_a_lost_session_that_has_its_workflow_again_is_looked_at() -> None:
    world = World()
    lost = open_session()
    lost["status"]["conditions"] = [{"type": "Ready", "status": "False", "reason": "SessionLost", "message": ""}]
    world.cache.sessions.put(lost)
    await world.sweep()
    assert world.woken_sessions == []
    world.temporal.opened = [of_session()]
    await world.sweep(timedelta(minutes=5))
    assert world.woken_sessions == [CHAT]


async def test_the_run_of_a_session_is_doubted_with_its_workflow() -> None:
    world = World()
    world.cache.runs.put(sent_exchange())
    await world.sweep()
    assert (world.runs.doubtful, world.sessions.doubtful) == (set(), {CHAT_ID})
    assert world.woken_sessions == [CHAT]


async def test_failing_code_of_a_session_is_told_to_it_and_its_run() -> None:
    world = World()
    world.cache.deployments.put(deployment(ready=1))
    world.cache.sessions.put(open_session())
    world.cache.runs.put(sent_exchange())
    world.temporal.opened = [of_session()]
    world.temporal.failing = [of_session(problems="cause=NonDeterminism")]
    await world.sweep()
    assert world.sessions.problems == {CHAT_ID: "cause=NonDeterminism"}
    assert (world.woken_sessions, KEY in world.woken) == ([CHAT], True)
    world.temporal.failing = []
    await world.sweep(timedelta(seconds=30))
    assert (world.sessions.problems, world.woken_sessions, world.woken) == ({}, [CHAT], [KEY])
    await world.sweep(timedelta(seconds=30))
    assert (world.woken_sessions, world.woken) == ([], [])


async def test_the_workflow_of_a_session_that_is_gone_is_stopped_once_no_run_of_it_is_under_way() -> None:
    world = World()
    world.temporal.opened = [of_session()]
    world.cache.runs.put(sent_exchange())
    for _ in range(3):
        await world.sweep(timedelta(minutes=5))
    assert world.temporal.terminated == []
    world.cache.runs.drop(sent_exchange())
    for _ in range(2):
        await world.sweep(timedelta(minutes=5))
    assert world.temporal.terminated == [CHAT_ID]


@pytest.mark.parametrize("there", [None, session(metadata={"uid": "new"})])
async def test_a_session_that_is_gone_and_has_runs_under_way_is_looked_at(there: Json | None) -> None:
    world = World()
    world.temporal.opened = [of_session()]
    world.cache.runs.put(sent_exchange())
    if there is not None:
        world.cache.sessions.put(there)
    await world.sweep()
    assert (world.woken_sessions, world.temporal.terminated) == ([CHAT], [])


async def test_a_session_in_the_cluster_is_no_orphan() -> None:
    world = World()
    world.temporal.opened = [of_session()]
    world.kube.objects["chat"] = open_session()
    for _ in range(3):
        await world.sweep(timedelta(minutes=5))
    assert world.temporal.terminated == []


async def test_a_queued_run_waits_for_no_worker() -> None:
    world = World()
    world.cache.runs.put(sent_exchange(phase="Pending"))
    world.temporal.opened = [of_session()]
    await world.sweep(timedelta(minutes=1))
    await world.sweep(timedelta(seconds=30))
    assert world.woken == []


async def test_a_pool_at_zero_with_a_run_of_a_session_under_way_is_woken() -> None:
    world = World()
    world.cache.pools.put(pool())
    zero = deployment(ready=0)
    world.cache.deployments.put({**zero, "spec": {"replicas": 0}})
    world.cache.runs.put(sent_exchange(phase="AwaitingApproval"))
    world.temporal.opened = [of_session()]
    await world.sweep()
    assert ObjectKey("shop", "default") not in world.woken
    world.cache.runs.put(sent_exchange(metadata={"resourceVersion": "11"}))
    await world.sweep(timedelta(seconds=30))
    assert ObjectKey("shop", "default") in world.woken

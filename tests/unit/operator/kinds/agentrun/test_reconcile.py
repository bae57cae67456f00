"""The AgentRun's reconcile against a small cluster and a small Temporal, both in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from dalang_api.contract import (
    CancelExchange,
    RunIdentity,
    RunInput,
    Wire,
    schedule_id,
    scheduled_run_name,
    trigger_workflow_id,
)
from dalang_operator.kinds.agentrun.plan import FIRING_SECONDS, Settings
from dalang_operator.kinds.agentrun.reconcile import ENDING_SECONDS, RunFacts, RunReconciler
from dalang_operator.kinds.agentsession.reconcile import SessionFacts
from dalang_operator.kinds.config_maps import RecentConfigMaps
from dalang_operator.kinds.reach import has_live_run
from dalang_operator.kinds.workflow import WorkflowState, WorkflowView
from dalang_operator.kube.errors import Conflict, NotFound
from dalang_operator.kube.resources import CONFIG_MAPS, Json, ObjectKey, Resource, key_of
from dalang_operator.runtime.cache import Cache
from dalang_operator.temporal.errors import TemporalUnavailable, WorkflowNotFound

from tests.build import (
    INSTALLATION,
    NOW,
    agent,
    approval,
    awaiting_run,
    condition,
    config_map,
    exchange,
    model,
    open_session,
    pool,
    run,
    sent_exchange,
    started_run,
)

KEY = ObjectKey("shop", "r1")
ID = f"{INSTALLATION}.shop.r1.uid-r1"


@dataclass
class FakeKube:
    """Runs by key, with merge patches of their status and preconditions; every write is kept."""

    runs: dict[ObjectKey, Json] = field(default_factory=dict)
    config_maps: dict[ObjectKey, Json] = field(default_factory=dict)
    approvals: list[Json] = field(default_factory=list)
    writes: list[tuple[str, Any]] = field(default_factory=list)

    def add(self, obj: Json) -> Json:
        self.runs[key_of(obj)] = obj
        return obj

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json:
        objects = self.config_maps if resource is CONFIG_MAPS else self.runs
        try:
            return objects[ObjectKey(str(namespace), name)]
        except KeyError:
            raise NotFound(f"no {resource.kind} {name}") from None

    async def list_pages(
        self, resource: Resource, namespace: str | None, *, fields: str = "", labels: str = ""
    ) -> AsyncIterator[tuple[list[Json], str]]:
        assert fields == "spec.runRef.name=r1"
        yield self.approvals, "1"

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Json | list[Json], subresource: str | None = None
    ) -> Json:
        assert isinstance(body, dict), "statuses without nulls are merged"
        current = await self.get(resource, namespace, name)
        for precondition in ("uid", "resourceVersion"):
            if body["metadata"][precondition] != current["metadata"][precondition]:
                raise Conflict(precondition)
        self.writes.append(("status", body["status"]))
        version = str(int(current["metadata"]["resourceVersion"]) + 1)
        status = {key: value for key, value in {**current["status"], **body["status"]}.items() if value is not None}
        return self.add({**current, "metadata": {**current["metadata"], "resourceVersion": version}, "status": status})

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, resource_version: str | None = None
    ) -> None:
        self.writes.append(("delete", name))
        del self.runs[ObjectKey(namespace, name)]


@dataclass
class FakeWorkflows:
    """Workflows by id."""

    views: dict[str, WorkflowView] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    inputs: list[RunInput] = field(default_factory=list)
    signals: list[Wire | None] = field(default_factory=list)
    is_away: bool = False

    async def start(self, workflow_id: str, task_queue: str, run_input: RunInput, request_id: str) -> WorkflowView:
        if self.is_away:
            raise TemporalUnavailable("Temporal is away")
        self.calls.append(("start", workflow_id))
        self.inputs.append(run_input)
        return self.views.setdefault(workflow_id, WorkflowView(WorkflowState.OPEN, "run-1"))

    async def cancel(self, workflow_id: str, reason: str) -> None:
        self.calls.append(("cancel", workflow_id))
        if (await self.look(workflow_id)).state is not WorkflowState.OPEN:
            raise WorkflowNotFound("completed")

    async def terminate(self, workflow_id: str, reason: str) -> bool:
        self.calls.append(("terminate", workflow_id))
        return self.views.pop(workflow_id, None) is not None

    async def signal(self, workflow_id: str, name: str, value: Wire | None, request_id: str) -> None:
        self.calls.append((name, workflow_id))
        self.signals.append(value)
        if (await self.look(workflow_id)).state is not WorkflowState.OPEN:
            raise WorkflowNotFound("completed")

    async def look(self, workflow_id: str) -> WorkflowView:
        return self.views.get(workflow_id, WorkflowView(WorkflowState.MISSING))


@dataclass
class World:
    """A reconciler, and all it acts on."""

    kube: FakeKube = field(default_factory=FakeKube)
    workflows: FakeWorkflows = field(default_factory=FakeWorkflows)
    cache: Cache = field(default_factory=Cache)
    facts: RunFacts = field(default_factory=RunFacts)
    woken: list[ObjectKey] = field(default_factory=list)
    sessions: SessionFacts = field(default_factory=SessionFacts)
    woken_sessions: list[ObjectKey] = field(default_factory=list)
    now: datetime = NOW

    def __post_init__(self) -> None:
        self.config_maps = RecentConfigMaps(self.kube, self.cache)
        self.cache.agents.put(agent())
        self.cache.models.put(model())
        self.cache.pools.put(pool())

    def has(self, obj: Json) -> None:
        """The run exists, and the watch has told so."""
        self.cache.runs.put(self.kube.add(obj))

    async def reconcile(self, key: ObjectKey = KEY) -> float | None:
        wake: Callable[[ObjectKey], None] = self.woken.append
        reconciler = RunReconciler(
            self.kube,
            self.workflows,
            self.cache,
            self.config_maps,
            self.facts,
            Settings(INSTALLATION, timedelta(hours=24)),
            wake,
            lambda: self.now,
            self.sessions,
            self.woken_sessions.append,
        )
        return await reconciler.reconcile(key)

    @property
    def status(self) -> Json:
        status: Json = self.kube.runs[KEY]["status"]
        return status


async def test_a_run_is_started_with_one_write_and_left_alone() -> None:
    world = World()
    world.has(run())
    await world.reconcile()
    await world.reconcile()
    assert world.workflows.calls == [("start", ID)]
    assert len(world.kube.writes) == 1
    assert world.status["phase"] == "Running"
    assert world.status["workflow"]["runId"] == "run-1"
    assert world.woken == [ObjectKey("shop", "default")]


async def test_an_operator_that_died_between_start_and_write_finds_the_workflow_again() -> None:
    world = World()
    world.has(run())
    world.workflows.views[ID] = WorkflowView(WorkflowState.OPEN, "run-of-before")
    await world.reconcile()
    assert world.status["workflow"]["runId"] == "run-of-before"


async def test_a_run_that_ended_before_its_start_was_noted_gets_its_end() -> None:
    world = World()
    world.has(run())
    world.workflows.views[ID] = WorkflowView(WorkflowState.TERMINATED, "run-1", "by hand")
    await world.reconcile()
    assert world.status["phase"] == "Failed"
    assert len(world.kube.writes) == 1


async def test_a_report_that_was_quicker_is_not_overwritten() -> None:
    """The cache still has the run as created; the server refuses the write that is bound to it."""
    world = World()
    world.has(run())
    reported = started_run(seq=1)
    reported["metadata"]["resourceVersion"] = "12"
    world.kube.add(reported)
    with pytest.raises(Conflict):
        await world.reconcile()
    assert world.status["workflow"]["reportSeq"] == 1
    world.cache.runs.put(reported)
    await world.reconcile()
    assert world.kube.writes == []


async def test_a_deleted_run_stops_its_workflow_once() -> None:
    world = World()
    world.workflows.views[ID] = WorkflowView(WorkflowState.OPEN, "run-1")
    world.facts.gone[KEY] = {"uid-r1"}
    await world.reconcile()
    await world.reconcile()
    assert world.workflows.calls == [("terminate", ID)]
    assert world.facts.gone == {}


async def test_a_run_that_left_the_watch_because_it_finished_is_left_alone() -> None:
    world = World()
    finished = started_run(seq=1, ttlAfterFinished="5m")
    finished["status"]["finishedAt"] = "2026-11-20T12:00:00Z"
    world.kube.add(finished)
    world.facts.gone[KEY] = {"uid-r1"}
    assert await world.reconcile() == 300.0
    assert world.workflows.calls == []
    world.now = NOW + timedelta(minutes=5)
    await world.reconcile()
    assert world.kube.writes == [("delete", "r1")]


async def test_a_schedules_run_is_deleted_after_its_firing_has_ended() -> None:
    """Else a firing that was never told that it was created would create it again."""
    world, schedule_name, uid = World(), "r", "abc"
    scheduled_at = NOW - timedelta(minutes=1)
    name = scheduled_run_name(schedule_name, uid, scheduled_at)
    owner = {"kind": "AgentSchedule", "name": schedule_name, "uid": uid, "controller": True}
    finished = started_run(name, seq=1, ttlAfterFinished="1s", metadata={"ownerReferences": [owner]})
    finished["status"]["finishedAt"] = "2026-11-20T11:59:00Z"
    world.kube.add(finished)
    firing = trigger_workflow_id(schedule_id(INSTALLATION, "shop", schedule_name, uid), scheduled_at)
    world.workflows.views[firing] = WorkflowView(WorkflowState.OPEN)
    assert await world.reconcile(ObjectKey("shop", name)) == FIRING_SECONDS
    assert world.kube.writes == []
    world.workflows.views[firing] = WorkflowView(WorkflowState.COMPLETED)
    await world.reconcile(ObjectKey("shop", name))
    assert world.kube.writes == [("delete", name)]


async def test_a_run_that_the_reporter_of_this_process_ended_is_not_read_again() -> None:
    world = World()
    finished = started_run(seq=1, ttlAfterFinished="5m")
    finished["status"]["finishedAt"] = "2026-11-20T12:00:00Z"
    world.facts.gone[KEY] = {"uid-r1"}
    world.facts.ending.add("uid-r1")
    assert await world.reconcile() == ENDING_SECONDS  # the event came before the answer to the write
    world.facts.end(finished)
    world.facts.ending.clear()
    assert await world.reconcile() == 300.0  # though the fake cluster has no such run
    assert world.workflows.calls == []
    assert world.facts.finished == {}


async def test_what_a_failed_reconcile_was_told_is_not_forgotten() -> None:
    world = World()
    world.has(run())
    world.facts.gone[KEY] = {"old"}
    world.workflows.is_away = True
    with pytest.raises(TemporalUnavailable):
        await world.reconcile()
    assert world.facts.gone == {KEY: {"old"}}


async def test_a_workflow_found_closed_is_written_even_if_the_first_write_fails() -> None:
    world = World()
    world.has(started_run())
    world.workflows.views[ID] = WorkflowView(WorkflowState.TERMINATED, "run-1")
    world.facts.doubtful.add("uid-r1")
    world.kube.add(started_run(metadata={"resourceVersion": "11"}))  # changed since the cache knows it
    with pytest.raises(Conflict):
        await world.reconcile()
    world.cache.runs.put(world.kube.runs[KEY])
    await world.reconcile()
    assert world.status["phase"] == "Failed"
    assert world.facts.doubtful == set()


async def test_temporal_away_is_told_when_it_lasts() -> None:
    """The run is an hour old, so the first failure already counts as lasting; the second writes nothing new."""
    world = World()
    world.has(run())
    world.workflows.is_away = True
    for _ in range(2):
        with pytest.raises(TemporalUnavailable):
            await world.reconcile()
    assert [found["reason"] for found in world.status["conditions"]] == ["StartFailed", "StartFailed"]
    assert len(world.kube.writes) == 1
    world.workflows.is_away = False
    await world.reconcile()
    assert world.status["phase"] == "Running"


async def test_cancelling_a_workflow_that_is_lost_ends_in_workflow_lost() -> None:
    world = World()
    world.has(started_run(cancel=True))
    assert await world.reconcile() == 60.0
    world.now = NOW + timedelta(minutes=1)
    await world.reconcile()
    assert world.status["phase"] == "Failed"
    assert {found["reason"] for found in world.status["conditions"]} == {"WorkflowLost"}


async def test_a_run_deleted_before_its_first_status_takes_its_workflow_along() -> None:
    world = World()
    world.cache.runs.put(run())  # told by the watch, and deleted since
    with pytest.raises(Conflict):
        await world.reconcile()
    await world.reconcile()
    assert world.workflows.calls == [("start", ID), ("terminate", ID)]


async def test_cancel_is_asked_of_temporal_once() -> None:
    world = World()
    world.has(started_run(cancel=True))
    world.workflows.views[ID] = WorkflowView(WorkflowState.OPEN, "run-1")
    await world.reconcile()
    await world.reconcile()
    assert world.workflows.calls == [("cancel", ID)]
    assert world.woken == [ObjectKey("shop", "default")]
    assert world.kube.writes == []


@pytest.mark.looptime
async def test_instructions_are_read_from_their_config_map_when_the_run_starts() -> None:
    world = World()
    source = {"configMapKeyRef": {"name": "prompts", "key": "helper"}}
    world.cache.agents.put(agent(metadata={"resourceVersion": "11"}, instructionsFrom=source))
    world.has(run())
    assert await world.reconcile() == 10.0
    assert world.status["conditions"][0]["reason"] == "ConfigMapNotFound"
    assert await world.reconcile() == 10.0
    assert len(world.kube.writes) == 1
    await asyncio.sleep(10.0)
    world.kube.config_maps[ObjectKey("shop", "prompts")] = config_map("prompts", helper="Be kind.")
    assert await world.reconcile() is None
    [started] = world.workflows.inputs
    assert started.snapshot.agent("helper").instructions == "Be kind."


async def test_a_run_starts_when_the_last_agent_in_reach_is_there() -> None:
    world = World()
    calls = [{"name": "refunds", "agentRef": {"name": "refunds"}}]
    world.cache.agents.put(agent(metadata={"resourceVersion": "11"}, tools=calls))
    world.has(run())
    await world.reconcile()
    assert world.status["conditions"][0]["reason"] == "AgentNotFound"
    world.cache.pools.put(pool("gpu"))
    world.cache.agents.put(agent("refunds", poolRef={"name": "gpu"}))
    await world.reconcile()
    assert world.woken == [ObjectKey("shop", "default"), ObjectKey("shop", "gpu")]
    assert [(found["name"], found["pool"]) for found in world.status["agents"]] == [
        ("helper", "default"),
        ("refunds", "gpu"),
    ]
    assert has_live_run(world.cache, ObjectKey("shop", "gpu"))


async def test_a_run_without_worker_is_not_ended_for_the_time_that_a_human_took() -> None:
    """It was started an hour ago, waited since, and its pool's worker has just been lost."""
    world = World()
    asked = started_run(seq=3, limits={"timeout": "10m"})
    asked["status"]["approvals"] = [{"name": "r1-a", "decision": "Approve"}]
    asked["status"]["workflow"]["taskQueue"] = f"{INSTALLATION}.shop.default"
    world.has(asked)
    world.kube.approvals = [approval()]
    await world.reconcile()
    assert world.kube.writes == []
    world.kube.approvals = [approval(metadata={"ownerReferences": [{"uid": "another", "controller": True}]})]
    await world.reconcile()
    assert world.status["phase"] == "Failed"


async def test_a_decision_that_finds_no_worker_is_told_and_the_report_that_follows_is_free_to_replace_it() -> None:
    world = World()
    world.has(awaiting_run("r1", "r1-a"))
    taken = {"conditions": [condition("Ready", "False", "NameConflict", "It is taken")]}
    world.cache.pools.put(pool(metadata={"resourceVersion": "11"}, status=taken))
    await world.reconcile()
    assert world.kube.writes == [], "nobody has decided"
    world.cache.note_awake(KEY, awaiting_run("r1", "r1-a"), world.now)
    assert await world.reconcile() == 10.0
    world.now += timedelta(seconds=10)
    for _ in range(2):
        await world.reconcile()
    assert len(world.kube.writes) == 1
    assert {each["reason"] for each in world.status["conditions"]} == {"WorkerMissing"}
    assert "It is taken" in world.status["conditions"][0]["message"]
    assert (world.status["phase"], world.status["workflow"]["reportSeq"]) == ("AwaitingApproval", 1)
    assert has_live_run(world.cache, ObjectKey("shop", "default")), "it still needs the worker"


# ── In a session ───────────────────────────────────────────────────────────────────────────────────────────────────

CHAT = ObjectKey("shop", "chat")
CHAT_ID = f"{INSTALLATION}.shop.chat.uid-chat"


async def test_a_run_of_a_session_is_sent_by_its_session_alone() -> None:
    world = World()
    world.cache.sessions.put(open_session())
    for obj in (exchange(), exchange(cancel=True, metadata={"resourceVersion": "11"})):
        world.has(obj)
        await world.reconcile()
    assert (world.workflows.calls, world.kube.writes) == ([], [])


async def test_a_cancelled_run_of_a_session_is_told_to_that_once() -> None:
    world = World()
    world.workflows.views[CHAT_ID] = WorkflowView(WorkflowState.OPEN, "run-1")
    world.has(sent_exchange(cancel=True))
    for _ in range(2):
        await world.reconcile()
    assert world.workflows.calls == [("cancelExchange", CHAT_ID)]
    assert world.workflows.signals == [CancelExchange(run=RunIdentity(name="r1", uid="uid-r1"))]
    assert world.kube.writes == [], "its session reports the end"


async def test_a_session_that_has_ended_is_looked_at_when_a_run_of_it_is_cancelled() -> None:
    world = World()
    world.has(sent_exchange(cancel=True))
    await world.reconcile()
    assert (world.sessions.doubtful, world.woken_sessions) == ({CHAT_ID}, [CHAT])
    assert world.facts.cancel_sent == {}


async def test_a_run_of_a_session_that_the_controller_ends_has_ended_before_its_session_is_told() -> None:
    """Killed, or refused, in between the session would otherwise have left it out, and never report of it again."""
    world = World()
    world.workflows.views[CHAT_ID] = WorkflowView(WorkflowState.OPEN, "run-1")
    obj = sent_exchange(limits={"timeout": "10m"})
    world.has(obj)
    world.cache.deployments.put(
        {"metadata": {"namespace": "shop", "name": "dalang-default", "uid": "d", "resourceVersion": "1"}}
    )
    newer = {**obj, "metadata": {**obj["metadata"], "resourceVersion": "11"}}
    world.kube.add(newer)  # somebody wrote it, and the watch has not told so yet
    with pytest.raises(Conflict):
        await world.reconcile()
    assert world.workflows.calls == []
    world.has(newer)
    await world.reconcile()
    assert world.status["finishedAt"]
    assert world.workflows.signals == [CancelExchange(run=RunIdentity(name="r1", uid="uid-r1"), deleted=True)]


async def test_a_deleted_run_of_a_session_leaves_the_session_its_workflow() -> None:
    world = World()
    world.workflows.views[CHAT_ID] = WorkflowView(WorkflowState.OPEN, "run-1")
    world.facts.gone[KEY] = {"uid-r1"}
    world.facts.exchanges["uid-r1"] = CHAT_ID
    await world.reconcile()
    assert world.workflows.calls == [("cancelExchange", CHAT_ID)]
    assert world.workflows.signals == [CancelExchange(run=RunIdentity(name="r1", uid="uid-r1"), deleted=True)]
    assert (world.facts.gone, world.facts.exchanges) == ({}, {})


async def test_code_of_a_session_that_fails_stalls_the_run_under_way() -> None:
    world = World()
    world.facts.swept = True
    obj = sent_exchange(limits={"timeout": "3h"})
    world.cache.agents.put(agent(metadata={"resourceVersion": "11"}, limits={"timeout": "3h"}))
    world.has(obj)
    world.sessions.problems[CHAT_ID] = "cause=NonDeterminism"
    await world.reconcile()
    assert [each["reason"] for each in world.status["conditions"] if each["type"] == "Stalled"] == [
        "WorkflowTaskFailing"
    ]
    world.sessions.problems.clear()
    await world.reconcile()
    assert [each for each in world.status["conditions"] if each["type"] == "Stalled"] == []

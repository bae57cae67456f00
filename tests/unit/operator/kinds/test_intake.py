"""Which events wake which keys, and what is remembered of runs that leave the watch."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from dalang_api.contract import scheduled_run_name
from dalang_operator.kinds.agentapproval.reconcile import ApprovalFacts
from dalang_operator.kinds.agentrun.reconcile import RunFacts
from dalang_operator.kinds.agentschedule.reconcile import ScheduleFacts
from dalang_operator.kinds.agentschedule.runs import Firing
from dalang_operator.kinds.agentsession.reconcile import SessionFacts
from dalang_operator.kinds.intake import Intake, wakes
from dalang_operator.kube.resources import Json, ObjectKey
from dalang_operator.runtime.cache import Cache
from dalang_operator.runtime.queue import Queue

from tests.build import (
    INSTALLATION,
    NOW,
    agent,
    approval,
    at,
    awaiting_run,
    config_map,
    exchange,
    finished_run,
    model,
    open_session,
    pool,
    run,
    schedule,
    sent_exchange,
    session,
    started_run,
)

KINDS = ("Agent", "AgentApproval", "AgentModel", "AgentPool", "AgentRun", "AgentSchedule", "AgentSession")

HELPER = ObjectKey("shop", "helper")


@dataclass
class World:
    cache: Cache = field(default_factory=Cache)
    facts: RunFacts = field(default_factory=RunFacts)
    approvals: ApprovalFacts = field(default_factory=ApprovalFacts)
    sessions: SessionFacts = field(default_factory=SessionFacts)
    schedules: ScheduleFacts = field(default_factory=ScheduleFacts)
    queues: dict[str, Queue] = field(default_factory=lambda: {kind: Queue(kind) for kind in KINDS})

    def __post_init__(self) -> None:
        self.intake = Intake(self.cache, self.queues, self.facts, self.approvals, self.sessions, self.schedules)

    def queued(self) -> dict[str, int]:
        return {kind: len(queue) for kind, queue in self.queues.items() if len(queue)}


def cluster() -> Cache:
    """Two runs of one agent, one waiting and one started; a pool with tools."""
    cache = Cache()
    cache.models.put(model())
    cache.pools.put(pool(toolsFrom=[{"configMapRef": {"name": "tools"}}]))
    cache.agents.put(agent())
    cache.runs.put(run("waits"))
    cache.runs.put(started_run("runs"))
    return cache


@pytest.mark.parametrize(
    ("kind", "obj", "expected"),
    [
        pytest.param("AgentRun", run("waits"), ["AgentRun waits"], id="a run wakes itself only"),
        pytest.param(
            "Agent",
            agent(),
            ["Agent helper", "AgentPool default", "AgentRun waits"],
            id="an agent: its pool, runs that wait",
        ),
        pytest.param(
            "AgentModel",
            model(),
            ["AgentModel gpt", "AgentPool default", "Agent helper", "AgentRun waits"],
            id="a model: its agents, their pools for the Secret, runs that wait",
        ),
        pytest.param(
            "AgentPool",
            pool(),
            ["AgentPool default", "Agent helper", "AgentRun waits"],
            id="a pool: its agents, runs that wait",
        ),
        pytest.param("ConfigMap", config_map(), ["AgentPool default"], id="a ConfigMap: pools that copy it"),
        pytest.param(
            "Deployment",
            {"metadata": {"namespace": "shop", "name": "x", "labels": {"dalang.dev/pool": "default"}}},
            ["AgentPool default"],
            id="a Deployment: its pool",
        ),
    ],
)
def test_wakes(kind: str, obj: Json, expected: list[str]) -> None:
    assert [f"{wake.kind} {wake.key.name}" for wake in wakes(cluster(), kind, obj)] == expected


REFUNDS = [{"name": "refunds", "agentRef": {"name": "refunds"}}]


def composed() -> Cache:
    """`front` hands over to `support`, which calls `refunds` in a pool of its own with a retriever; a run of each waits."""
    embedding = {"modelRef": {"name": "emb"}}
    cache = Cache()
    cache.agents.put(agent("front", handoffs=[{"agentRef": {"name": "support"}}]))
    cache.agents.put(agent("support", tools=REFUNDS, fallbackModelRefs=[{"name": "claude"}]))
    cache.agents.put(
        agent(
            "refunds",
            poolRef={"name": "gpu"},
            retrieval={"retriever": "handbook"},
            instructionsFrom={"configMapKeyRef": {"name": "prompts", "key": "refunds"}},
        )
    )
    cache.pools.put(pool("gpu", retrievers=[{"name": "handbook", "qdrant": {"embedding": embedding}}]))
    for name in ("front", "support", "refunds"):
        cache.runs.put(run(f"to-{name}", agentRef={"name": name}))
    return cache


ALL_REACH = ["Agent refunds", "Agent support", "Agent front"]
ALL_WAIT = ["AgentRun to-refunds", "AgentRun to-support", "AgentRun to-front"]


@pytest.mark.parametrize(
    ("kind", "obj", "expected"),
    [
        pytest.param(
            "Agent",
            agent("refunds", poolRef={"name": "gpu"}),
            ["Agent refunds", "AgentPool gpu", "Agent support", "Agent front", *ALL_WAIT],
            id="an agent: all that reach it, and their runs",
        ),
        pytest.param(
            "Agent",
            agent("front"),
            ["Agent front", "AgentPool default", "AgentRun to-front"],
            id="an agent nobody names: its own runs",
        ),
        pytest.param(
            "AgentModel",
            model("claude"),
            [
                "AgentModel claude",
                "AgentPool default",
                "Agent support",
                "Agent front",
                "AgentRun to-support",
                "AgentRun to-front",
            ],
            id="a model to fall back to",
        ),
        pytest.param(
            "AgentModel",
            model("emb"),
            ["AgentModel emb", "AgentPool gpu", *ALL_REACH, *ALL_WAIT],
            id="a model that makes vectors: its retriever's pool and agents",
        ),
        pytest.param(
            "AgentPool",
            pool("gpu"),
            ["AgentPool gpu", *ALL_REACH, *ALL_WAIT],
            id="a pool: agents and runs that reach it",
        ),
        pytest.param(
            "ConfigMap",
            config_map("prompts"),
            [*ALL_REACH, *ALL_WAIT],
            id="a labelled ConfigMap with instructions",
        ),
    ],
)
def test_wakes_of_agents_that_name_agents(kind: str, obj: Json, expected: list[str]) -> None:
    assert [f"{wake.kind} {wake.key.name}" for wake in wakes(composed(), kind, obj)] == expected


def test_the_last_run_that_ends_wakes_every_pool_it_needed() -> None:
    world = World()
    obj = started_run()
    obj["status"]["agents"] = [{"name": "helper", "pool": "default"}, {"name": "refunds", "pool": "gpu"}]
    world.intake.applied("AgentRun", obj)
    world.intake.removed("AgentRun", {**obj, "metadata": {**obj["metadata"], "resourceVersion": "12"}})
    assert world.queued() == {"AgentRun": 1, "AgentPool": 2}


def test_an_event_that_repeats_what_is_known_wakes_nobody() -> None:
    world = World()
    world.intake.applied("Agent", agent())
    assert world.queued() == {"Agent": 1, "AgentPool": 1}
    world = World()
    world.cache.agents.put(agent())
    world.intake.applied("Agent", agent())
    assert world.queued() == {}


def test_a_run_that_leaves_the_watch_is_remembered_and_looked_at() -> None:
    world = World()
    world.intake.applied("AgentRun", started_run())
    gone = started_run(metadata={"resourceVersion": "12"})
    world.intake.removed("AgentRun", gone)
    key = ObjectKey("shop", "r1")
    assert world.facts.gone == {key: {"uid-r1"}}
    assert world.cache.runs.get(key) is None
    assert world.queued() == {"AgentRun": 1, "AgentPool": 1}, "it was the last one of its pool"


def test_a_finished_run_in_a_list_counts_as_one_that_left() -> None:
    world = World()
    world.intake.applied("AgentRun", finished_run())
    assert world.facts.gone == {ObjectKey("shop", "r1"): {"uid-r1"}}
    assert len(world.cache.runs) == 0


def test_a_run_deleted_and_made_anew_unseen_leaves_its_old_uid() -> None:
    world = World()
    world.intake.applied("AgentRun", started_run())
    world.intake.applied("AgentRun", run(metadata={"uid": "new", "resourceVersion": "30"}))
    assert world.facts.gone == {ObjectKey("shop", "r1"): {"uid-r1"}}
    assert world.cache.runs.get(ObjectKey("shop", "r1")) is not None


def test_the_pool_is_not_woken_while_other_runs_need_it() -> None:
    world = World()
    world.intake.applied("AgentRun", started_run("r1"))
    world.intake.applied("AgentRun", started_run("r2"))
    world.intake.removed("AgentRun", started_run("r1", metadata={"resourceVersion": "12"}))
    assert world.queued() == {"AgentRun": 2}


def test_a_run_that_begins_to_await_approval_lets_its_pools_rest_and_wakes_its_approvals() -> None:
    world = World()
    world.intake.applied("AgentRun", awaiting_run("r1", "r1-a", "r1-b"))
    assert world.queued() == {"AgentApproval": 2, "AgentPool": 1, "AgentRun": 1}


def test_a_run_that_left_the_watch_wakes_the_approvals_that_nobody_settled() -> None:
    world = World()
    world.cache.runs.put(started_run())
    world.cache.approvals.put(approval())
    world.cache.awake[ObjectKey("shop", "r1")] = ("uid-r1", 1, NOW)
    world.intake.removed("AgentRun", started_run(metadata={"resourceVersion": "11"}))
    assert world.queued() == {"AgentApproval": 1, "AgentPool": 1, "AgentRun": 1}
    assert world.cache.awake == {}


def test_an_approval_that_left_the_watch_is_looked_after() -> None:
    world = World()
    world.intake.applied("AgentApproval", approval())
    world.intake.removed("AgentApproval", approval(metadata={"resourceVersion": "11"}))
    assert world.queued() == {"AgentApproval": 1}
    assert world.approvals.gone == {ObjectKey("shop", "r1-a"): ObjectKey("shop", "r1")}
    assert len(world.cache.approvals) == 0


def test_an_approval_that_another_object_has_replaced_unseen_is_looked_after() -> None:
    world = World()
    world.intake.applied("AgentApproval", approval())
    world.intake.applied("AgentApproval", approval(metadata={"resourceVersion": "11"}))
    assert world.approvals.gone == {}
    world.intake.applied("AgentApproval", approval(metadata={"uid": "uid-restored", "resourceVersion": "12"}))
    assert world.approvals.gone == {ObjectKey("shop", "r1-a"): ObjectKey("shop", "r1")}


def test_a_run_that_reports_again_is_awake_no_more() -> None:
    world = World()
    world.intake.applied("AgentRun", awaiting_run("r1", "r1-a"))
    world.cache.note_awake(ObjectKey("shop", "r1"), awaiting_run("r1", "r1-a"), NOW)
    world.intake.applied("AgentRun", awaiting_run("r1", "r1-a", metadata={"resourceVersion": "11"}))
    assert world.cache.is_awake(ObjectKey("shop", "r1"))
    world.intake.applied("AgentRun", awaiting_run("r1", "r1-b", seq=2, metadata={"resourceVersion": "12"}))
    assert world.cache.awake == {}


@pytest.mark.parametrize(
    ("change", "wakes_agents"),
    [
        pytest.param(
            {"status": {"readyReplicas": 2, "build": "b1", "catalogue": {"build": "b1"}}}, False, id="workers"
        ),
        pytest.param({"status": {"readyReplicas": 1, "build": "b2", "catalogue": {"build": "b1"}}}, True, id="a build"),
        pytest.param(
            {"status": {"readyReplicas": 1, "build": "b1", "catalogue": {"tools": []}}}, True, id="a catalogue"
        ),
        pytest.param({"metadata": {"generation": 2}}, True, id="its spec"),
        pytest.param({"metadata": {"uid": "another"}}, True, id="a pool made anew"),
    ],
)
def test_a_pool_wakes_agents_and_runs_only_when_what_they_go_by_changed(change: Json, wakes_agents: bool) -> None:
    status = {"readyReplicas": 1, "build": "b1", "catalogue": {"build": "b1"}}
    world = World(cache=cluster())
    world.cache.pools.put(pool(metadata={"resourceVersion": "11"}, status=status))
    metadata = {"resourceVersion": "12", **change.get("metadata", {})}
    world.intake.applied("AgentPool", pool(metadata=metadata, status=change.get("status", status)))
    assert world.queued() == {"AgentPool": 1, **({"Agent": 1, "AgentRun": 1} if wakes_agents else {})}


def test_a_pool_that_is_deleted_wakes_its_agents() -> None:
    world = World(cache=cluster())
    world.intake.removed("AgentPool", pool(metadata={"resourceVersion": "12"}))
    assert world.queued() == {"AgentPool": 1, "Agent": 1, "AgentRun": 1}


def test_an_agent_that_moves_wakes_the_pools_of_before_and_after() -> None:
    cache = cluster()
    moved = agent(metadata={"resourceVersion": "11", "generation": 2}, poolRef={"name": "gpu"})
    woken = [f"{wake.kind} {wake.key.name}" for wake in wakes(cache, "Agent", moved, cache.agents.get(HELPER))]
    assert woken == ["Agent helper", "AgentPool gpu", "AgentPool default", "AgentRun waits"]
    world = World(cache=cache)
    world.intake.applied("Agent", moved)
    assert world.queued() == {"Agent": 1, "AgentPool": 2, "AgentRun": 1}


NIGHTLY = ObjectKey("shop", "nightly")
OF_SCHEDULE = {
    "ownerReferences": [{"kind": "AgentSchedule", "name": "nightly", "uid": "uid-nightly", "controller": True}]
}
RUN_OF_SCHEDULE = scheduled_run_name("nightly", "uid-nightly", NOW)


def test_a_schedules_run_wakes_it_when_it_appears_and_when_it_leaves() -> None:
    world = World()
    obj = started_run(RUN_OF_SCHEDULE, metadata=OF_SCHEDULE)
    world.intake.applied("AgentRun", obj)
    assert world.queued()["AgentSchedule"] == 1
    assert world.cache.runs.by("schedule", *NIGHTLY) == [ObjectKey("shop", RUN_OF_SCHEDULE)]
    assert world.schedules.firings == {}
    world = World(cache=world.cache)
    world.intake.applied("AgentRun", started_run(RUN_OF_SCHEDULE, metadata={**OF_SCHEDULE, "resourceVersion": "11"}))
    assert "AgentSchedule" not in world.queued(), "its reports do not"
    world.schedules.listed[NIGHTLY] = ("uid-nightly", 1)
    world.intake.applied("AgentRun", finished_run(RUN_OF_SCHEDULE, metadata={**OF_SCHEDULE, "resourceVersion": "12"}))
    assert world.queued()["AgentSchedule"] == 1
    assert world.schedules.firings == {NIGHTLY: {Firing("uid-nightly", NOW, has_created=True)}}
    assert world.schedules.listed == {}, "there is a finished run more"


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_a_schedule_that_goes_is_marked(is_made_anew: bool) -> None:
    world = World()
    world.intake.applied("AgentSchedule", schedule())
    if is_made_anew:
        world.intake.applied("AgentSchedule", schedule(metadata={"uid": "another", "resourceVersion": "11"}))
    else:
        world.intake.removed("AgentSchedule", schedule())
    assert world.schedules.gone == {NIGHTLY: {"uid-nightly"}}
    assert world.queued() == {"AgentSchedule": 1}


# ── Sessions ───────────────────────────────────────────────────────────────────────────────────────────────────────

CHAT = ObjectKey("shop", "chat")
CHAT_ID = f"{INSTALLATION}.shop.chat.uid-chat"


def with_session(**spec: Any) -> Cache:
    cache = Cache()
    cache.agents.put(agent())
    cache.models.put(model())
    cache.sessions.put(open_session(**spec))
    return cache


SUMMED_UP: dict[str, Any] = {"summary": {"modelRef": {"name": "small"}}}


@pytest.mark.parametrize(
    ("cache", "kind", "obj", "expected"),
    [
        pytest.param(
            with_session(),
            "Agent",
            agent(),
            ["Agent helper", "AgentPool default", "AgentSession chat"],
            id="an agent: its sessions",
        ),
        pytest.param(
            with_session(),
            "AgentModel",
            model(),
            ["AgentModel gpt", "AgentPool default", "Agent helper", "AgentSession chat"],
            id="a model: likewise",
        ),
        pytest.param(
            with_session(**SUMMED_UP),
            "AgentModel",
            model("small"),
            ["AgentModel small", "AgentPool default", "AgentSession chat"],
            id="the summary's model: its sessions, their pools for the Secret",
        ),
        pytest.param(with_session(), "AgentSession", open_session(), ["AgentSession chat"], id="a session: itself"),
        pytest.param(
            with_session(),
            "AgentSession",
            open_session(closed=True),
            ["AgentSession chat", "AgentPool default"],
            id="one that is to close: the pool that does it",
        ),
        pytest.param(
            with_session(),
            "AgentSession",
            open_session(**SUMMED_UP),
            ["AgentSession chat", "AgentPool default"],
            id="one with a model of its own: the pool that mounts its Secret",
        ),
        pytest.param(
            with_session(),
            "AgentRun",
            exchange(),
            ["AgentRun r1", "AgentSession chat"],
            id="a run: its session sends it",
        ),
        pytest.param(
            with_session(),
            "AgentRun",
            sent_exchange(),
            ["AgentRun r1", "AgentSession chat"],
            id="a run that left the watch: the next may be sent",
        ),
        pytest.param(
            with_session(),
            "AgentPool",
            pool(),
            ["AgentPool default", "Agent helper", "AgentSession chat", "AgentSession chat"],
            id="a pool that comes or goes: the sessions of its Agents, and those that began in it",
        ),
    ],
)
def test_wakes_of_sessions(cache: Cache, kind: str, obj: Json, expected: list[str]) -> None:
    assert [f"{wake.kind} {wake.key.name}" for wake in wakes(cache, kind, obj)] == expected


def test_a_run_that_was_sent_wakes_its_session_no_more_until_it_ends() -> None:
    world = World(cache=with_session())
    world.intake.applied("AgentRun", sent_exchange())
    assert world.queued() == {"AgentRun": 1}


def test_a_run_whose_session_is_gone_wakes_it() -> None:
    """It may have been deleted while nobody watched, and be gone for good once it is looked for."""
    world = World()
    world.intake.applied("AgentRun", sent_exchange())
    assert world.queued() == {"AgentRun": 1, "AgentSession": 1}


def test_reports_of_a_session_wake_no_pool() -> None:
    world = World(cache=with_session(**SUMMED_UP))
    world.intake.applied("AgentSession", open_session(seq=2, metadata={"resourceVersion": "11"}, **SUMMED_UP))
    assert world.queued() == {"AgentSession": 1}


def test_of_a_deleted_run_the_workflow_of_its_session_is_remembered() -> None:
    world = World(cache=with_session())
    world.intake.removed("AgentRun", sent_exchange("sent"))
    world.intake.removed("AgentRun", exchange("unsent"))
    world.intake.removed("AgentRun", exchange("early", session="other"))
    world.intake.removed("AgentRun", started_run("alone"))
    assert world.facts.exchanges == {"uid-sent": CHAT_ID, "uid-unsent": CHAT_ID, "uid-early": ""}


def test_a_deleted_session_is_remembered_also_if_it_was_made_anew_unseen() -> None:
    world = World(cache=with_session())
    world.intake.applied("AgentSession", session(metadata={"uid": "new", "resourceVersion": "20"}))
    assert world.sessions.gone == {CHAT: {"uid-chat"}}
    world.intake.removed("AgentSession", session(metadata={"uid": "new", "resourceVersion": "21"}))
    assert world.sessions.gone == {CHAT: {"uid-chat", "new"}}


def test_of_a_run_of_a_session_its_first_version_is_remembered_while_it_is_there() -> None:
    world = World()
    world.intake.applied("AgentRun", exchange(metadata={"resourceVersion": "10"}))
    world.intake.applied("AgentRun", exchange(metadata={"resourceVersion": "14"}))
    assert world.sessions.versions == {"uid-r1": 10}
    world.intake.removed("AgentRun", exchange(metadata={"resourceVersion": "15"}))
    assert world.sessions.versions == {}


def test_a_run_that_awaited_approval_and_is_gone_makes_way_for_the_next() -> None:
    world = World(cache=with_session())
    world.intake.applied("AgentRun", sent_exchange("r1", phase="AwaitingApproval"))
    world.intake.applied("AgentRun", sent_exchange("r2", phase="Pending"))
    world.queues["AgentPool"] = Queue("AgentPool")
    world.intake.removed("AgentRun", sent_exchange("r1", phase="AwaitingApproval", metadata={"resourceVersion": "12"}))
    assert len(world.queues["AgentPool"]) == 1


@pytest.mark.parametrize("spec", [{"closed": True}, {"idleTimeout": "1h"}])
def test_a_closed_session_lets_its_pool_rest(spec: Json) -> None:
    world = World(cache=with_session(**spec))
    ended = open_session(metadata={"resourceVersion": "12"}, **spec)
    ended["status"]["closedAt"] = at()
    world.intake.applied("AgentSession", ended)
    assert world.queued() == {"AgentPool": 1, "AgentSession": 1}

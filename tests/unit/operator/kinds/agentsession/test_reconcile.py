"""The AgentSession's reconcile against a small cluster and a small Temporal, both in memory."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from dalang_api.contract import CancelExchange, Exchange, SessionSettings, Wire
from dalang_api.v1alpha1.agentrun import AgentRunStatus
from dalang_operator.kinds.agentsession.plan import SECOND_LOOK_SECONDS, Settings
from dalang_operator.kinds.agentsession.reconcile import SessionFacts, SessionReconciler
from dalang_operator.kinds.config_maps import RecentConfigMaps
from dalang_operator.kinds.reach import has_live_run
from dalang_operator.kinds.workflow import WorkflowState, WorkflowView
from dalang_operator.kube.errors import Conflict, NotFound
from dalang_operator.kube.resources import AGENT_RUNS, AGENT_SESSIONS, Json, ObjectKey, Resource, key_of, uid_of
from dalang_operator.runtime.cache import Cache, is_finished
from dalang_operator.runtime.references import session_of
from dalang_operator.temporal.errors import TemporalUnavailable, WorkflowNotFound

from tests.build import INSTALLATION, NOW, agent, at, exchange, model, open_session, pool, sent_exchange, session

KEY = ObjectKey("shop", "chat")
ID = f"{INSTALLATION}.shop.chat.uid-chat"
POOL = ObjectKey("shop", "default")
OPEN = WorkflowView(WorkflowState.OPEN, "run-1")


class KilledError(Exception):
    """kill -9, as far as this process can tell."""


@dataclass
class FakeKube:
    """Sessions and runs, with merge patches of their status and preconditions; every write is kept."""

    objects: dict[tuple[str, ObjectKey], Json] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)
    """Sessions whose runs were asked for."""
    dies_after: int | None = None
    """How many writes it still takes."""

    def add(self, resource: Resource, obj: Json) -> Json:
        self.objects[resource.kind, key_of(obj)] = obj
        return obj

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json:
        try:
            return self.objects[resource.kind, ObjectKey(str(namespace), name)]
        except KeyError:
            raise NotFound(f"no {resource.kind} {name}") from None

    async def list_pages(
        self, resource: Resource, namespace: str | None, *, fields: str = ""
    ) -> AsyncIterator[tuple[list[Json], str]]:
        name = fields.removeprefix("spec.sessionRef.name=")
        self.lists.append(name)
        yield (
            [obj for (kind, _), obj in self.objects.items() if kind == resource.kind and session_of(obj) == name],
            "99",
        )

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Json | list[Json], subresource: str | None = None
    ) -> Json:
        assert isinstance(body, dict), "statuses without nulls are merged"
        if len(self.writes) == self.dies_after:
            raise KilledError
        current = await self.get(resource, namespace, name)
        for precondition in ("uid", "resourceVersion"):
            if body["metadata"][precondition] != current["metadata"][precondition]:
                raise Conflict(precondition)
        self.writes.append(name)
        version = str(int(current["metadata"]["resourceVersion"]) + 1)
        status = {key: value for key, value in {**current["status"], **body["status"]}.items() if value is not None}
        written = {**current, "metadata": {**current["metadata"], "resourceVersion": version}, "status": status}
        return self.add(resource, written)


@dataclass
class FakeWorkflows:
    """Workflows by id, and what they were told."""

    views: dict[str, WorkflowView] = field(default_factory=dict)
    told: list[tuple[str, Wire | None]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    is_away: bool = False

    async def start(
        self, workflow_id: str, task_queue: str, workflow_input: Wire, request_id: str, workflow_type: str
    ) -> WorkflowView:
        self._answer()
        self.calls.append(f"start {workflow_type} {workflow_id} on {task_queue}")
        return self.views.setdefault(workflow_id, OPEN)

    async def signal(self, workflow_id: str, name: str, value: Wire | None, request_id: str) -> None:
        self._answer()
        if self.views.get(workflow_id, OPEN).state is not WorkflowState.OPEN or workflow_id not in self.views:
            raise WorkflowNotFound("completed")
        self.told.append((name, value))

    async def terminate(self, workflow_id: str, reason: str) -> bool:
        self.calls.append(f"terminate {workflow_id}")
        return self.views.pop(workflow_id, None) is not None

    async def look(self, workflow_id: str) -> WorkflowView:
        self.calls.append(f"look {workflow_id}")
        return self.views.get(workflow_id, WorkflowView(WorkflowState.MISSING))

    def _answer(self) -> None:
        if self.is_away:
            raise TemporalUnavailable("Temporal is away")


@dataclass
class World:
    """A reconciler, and all it acts on."""

    kube: FakeKube = field(default_factory=FakeKube)
    workflows: FakeWorkflows = field(default_factory=FakeWorkflows)
    cache: Cache = field(default_factory=Cache)
    facts: SessionFacts = field(default_factory=SessionFacts)
    woken: list[ObjectKey] = field(default_factory=list)
    now: datetime = NOW

    def __post_init__(self) -> None:
        self.cache.agents.put(agent())
        self.cache.models.put(model())
        self.cache.pools.put(pool())

    def has(self, *objects: Json) -> None:
        """The objects exist, and the watch has told so."""
        for obj in objects:
            resource = AGENT_SESSIONS if obj.get("kind") == "AgentSession" else AGENT_RUNS
            self.cache.store(resource.kind).put(self.kube.add(resource, obj))

    def lose(self, obj: Json) -> None:
        """The session was deleted, and the watch has told so."""
        del self.kube.objects[AGENT_SESSIONS.kind, key_of(obj)]
        self.cache.sessions.drop(obj)
        self.facts.gone.setdefault(key_of(obj), set()).add(uid_of(obj))

    async def reconcile(self) -> float | None:
        reconciler = SessionReconciler(
            self.kube,
            self.workflows,
            self.cache,
            RecentConfigMaps(self.kube, self.cache),
            self.facts,
            Settings(INSTALLATION),
            self.woken.append,
            lambda: self.now,
        )
        return await reconciler.reconcile(KEY)

    def ready(self) -> str:
        conditions = self.kube.objects[AGENT_SESSIONS.kind, KEY]["status"]["conditions"]
        return next(str(each["reason"]) for each in conditions if each["type"] == "Ready")

    def run(self, name: str) -> tuple[str, str]:
        status = self.kube.objects[AGENT_RUNS.kind, ObjectKey("shop", name)]["status"]
        return status["phase"], next(each["reason"] for each in status["conditions"] if each["type"] == "Succeeded")

    def closed(self) -> list[str]:
        """Why it was told to close."""
        return [value.closed for _, value in self.workflows.told if isinstance(value, SessionSettings) and value.closed]

    def sent(self) -> list[str]:
        return [value.run.name for _, value in self.workflows.told if isinstance(value, Exchange)]


async def test_a_session_is_started_noted_and_sent_its_runs_in_order() -> None:
    world = World()
    world.has(
        session(),
        exchange("b", metadata={"resourceVersion": "12"}),
        exchange("c", metadata={"resourceVersion": "9"}),
        exchange("a", metadata={"resourceVersion": "100"}),
        exchange("first", metadata={"resourceVersion": "200", "creationTimestamp": at(timedelta(hours=-2))}),
    )
    assert await world.reconcile() is None
    assert world.workflows.calls == [f"start AgentSession {ID} on {INSTALLATION}.shop.default"]
    assert world.sent() == ["first", "c", "b", "a"]
    assert world.kube.writes == ["chat", "first", "c", "b", "a"]
    assert [world.run(name) for name in ("first", "c")] == [("Running", "Running"), ("Pending", "Queued")]
    assert world.ready() == "Active"
    assert has_live_run(world.cache, POOL)


async def test_nothing_is_done_twice() -> None:
    world = World()
    world.has(session(), exchange())
    await world.reconcile()
    told, writes = list(world.workflows.told), list(world.kube.writes)
    await world.reconcile()
    assert (world.workflows.told, world.kube.writes) == (told, writes)


async def test_a_written_status_leaves_a_run_its_place() -> None:
    """While the session is missing its runs are told so, which changes their resourceVersions."""
    world = World()
    early, late = exchange("b", metadata={"resourceVersion": "9"}), exchange("a", metadata={"resourceVersion": "11"})
    world.has(early)
    world.facts.versions |= {uid_of(early): 9, uid_of(late): 11}
    for _ in range(3):
        await world.reconcile()
        run = world.kube.objects[AGENT_RUNS.kind, ObjectKey("shop", "b")]
        world.has({**run, "metadata": {**run["metadata"], "resourceVersion": "50"}})
    world.has(late, session())
    await world.reconcile()
    assert world.sent() == ["b", "a"]


async def test_a_run_keeps_its_place_when_the_operator_dies_while_it_tells_runs_that_they_wait() -> None:
    world = World()
    world.has(session())
    world.cache.agents.drop(agent())
    names = ("c", "b", "a")
    world.has(*[exchange(name, metadata={"resourceVersion": str(9 + place)}) for place, name in enumerate(names)])
    world.kube.dies_after = 2  # the session's status, and that of one run
    with pytest.raises(KilledError):
        await world.reconcile()
    world.kube.dies_after = None
    another = World(world.kube, world.workflows)
    written = world.kube.objects[AGENT_RUNS.kind, ObjectKey("shop", "c")]
    written["metadata"]["resourceVersion"] = "50"  # etcd counts over all objects
    another.has(session(), *(world.kube.objects[AGENT_RUNS.kind, ObjectKey("shop", name)] for name in names))
    await another.reconcile()
    assert another.sent() == ["c", "b", "a"]
    sent = another.kube.objects[AGENT_RUNS.kind, ObjectKey("shop", "c")]
    AgentRunStatus.model_validate(sent["status"])


async def test_the_snapshot_is_sent_again_only_when_it_has_changed() -> None:
    world = World()
    world.has(session(), exchange("r1"))
    await world.reconcile()
    world.has(exchange("r2"))
    await world.reconcile()
    world.cache.agents.put(agent(metadata={"resourceVersion": "11", "generation": 2}, instructions="Be brief."))
    world.has(exchange("r3"))
    await world.reconcile()
    sent = [value for _, value in world.workflows.told if isinstance(value, Exchange)]
    assert [bool(each.snapshot) for each in sent] == [True, False, True]
    assert sent[0].snapshot_digest == sent[1].snapshot_digest != sent[2].snapshot_digest
    world.facts = SessionFacts()  # another process
    world.has(exchange("r4"))
    await world.reconcile()
    assert [bool(value.snapshot) for _, value in world.workflows.told[3:] if isinstance(value, Exchange)] == [True]


async def test_a_session_of_an_earlier_process_reports_before_it_is_sent_anything() -> None:
    """A run of it may have been ended, and nobody left to tell; one that was started just now need not."""
    world = World()
    world.has(session(), exchange("r1"))
    await world.reconcile()
    another = World(world.kube, world.workflows)
    another.has(world.kube.objects[AGENT_SESSIONS.kind, KEY], exchange("r2"))
    await another.reconcile()
    assert [name for name, _ in world.workflows.told] == ["exchange", "reportAgain", "exchange"]


async def test_killed_between_signal_and_note_a_run_is_sent_again() -> None:
    world = World()
    world.has(open_session(), exchange())
    world.workflows.views[ID] = OPEN
    changed = exchange(metadata={"resourceVersion": "11"})
    world.kube.add(AGENT_RUNS, changed)  # somebody wrote it, and the watch has not told so yet
    with pytest.raises(Conflict):
        await world.reconcile()
    world.has(changed)
    await world.reconcile()
    assert (world.sent(), world.run("r1")) == (["r1", "r1"], ("Running", "Running"))


async def test_a_run_cancelled_unsent_ends_even_if_it_was_sent_without_a_note() -> None:
    world = World()
    world.has(open_session(), exchange(cancel=True))
    world.workflows.views[ID] = OPEN
    await world.reconcile()
    name, message = world.workflows.told[-1]
    assert (name, isinstance(message, CancelExchange) and message.deleted) == ("cancelExchange", True)
    assert world.run("r1") == ("Cancelled", "Cancelled")


async def test_a_run_cancelled_unsent_has_ended_before_its_session_is_told() -> None:
    """Told first, and killed before the write, it would be neither carried out nor ended."""
    world = World()
    world.has(open_session(), exchange(cancel=True), exchange("r2"))
    world.workflows.views[ID] = WorkflowView(WorkflowState.TERMINATED, "run-1", "by hand")
    world.facts.met.add(ID)
    await world.reconcile()
    assert (world.run("r1"), world.run("r2")) == (("Cancelled", "Cancelled"), ("Failed", "SessionLost"))
    assert (world.ready(), world.kube.writes) == ("SessionLost", ["r1", "chat", "r2"])


async def test_a_workflow_that_has_ended_is_found_out_by_sending() -> None:
    world = World()
    world.has(open_session(), exchange())
    world.workflows.views[ID] = WorkflowView(WorkflowState.TERMINATED, "run-1", "by hand")
    await world.reconcile()
    assert (world.ready(), world.run("r1")) == ("SessionLost", ("Failed", "SessionLost"))


async def test_a_workflow_that_is_missing_is_looked_for_twice() -> None:
    world = World()
    world.has(open_session(), exchange())
    assert await world.reconcile() == SECOND_LOOK_SECONDS
    assert world.ready() == "Active"
    world.now += timedelta(seconds=30)
    assert await world.reconcile() == SECOND_LOOK_SECONDS
    world.now += timedelta(seconds=30)
    await world.reconcile()
    assert (world.ready(), world.run("r1")) == ("SessionLost", ("Failed", "SessionLost"))
    world.has(exchange("r2"))
    await world.reconcile()
    assert world.run("r2") == ("Failed", "SessionLost"), "it is never begun anew"
    assert [call for call in world.workflows.calls if call.startswith("start")] == []


async def test_a_deleted_session_is_stopped_only_after_a_look_at_the_cluster() -> None:
    world = World()
    there = open_session()
    world.has(there)
    world.workflows.views[ID] = OPEN
    world.facts.gone[KEY] = {"uid-chat"}  # an event that was not so
    await world.reconcile()
    assert world.workflows.calls == []
    world.lose(there)
    await world.reconcile()
    assert world.workflows.calls == [f"terminate {ID}"]
    assert world.facts.gone == {}


async def test_a_deleted_session_closes_after_the_run_that_is_under_way() -> None:
    world = World()
    there = open_session()
    world.has(there, sent_exchange(), exchange("r2"))
    world.workflows.views[ID] = OPEN
    world.lose(there)
    await world.reconcile()
    assert [name for name, _ in world.workflows.told] == ["configure"]
    assert (world.workflows.calls, world.run("r2")) == ([], ("Pending", "SessionNotFound"))


@pytest.mark.parametrize("is_made_anew", [False, True])
async def test_a_session_that_was_deleted_while_nobody_watched_closes_after_the_run_under_way(
    is_made_anew: bool,
) -> None:
    world = World()
    if is_made_anew:
        world.has(session(metadata={"uid": "new"}))
    world.has(sent_exchange(), sent_exchange("r2", phase="Pending"))
    world.workflows.views[ID] = OPEN
    await world.reconcile()
    told = [(name, value.closed) for name, value in world.workflows.told if isinstance(value, SessionSettings)]
    assert set(told) == {("configure", "The AgentSession was deleted")}
    world.workflows.views[ID] = WorkflowView(WorkflowState.COMPLETED, "run-1")
    await world.reconcile()
    assert world.run("r2") == ("Failed", "SessionClosed"), "its workflow has ended, and its last word was lost"


async def test_a_session_that_only_the_cache_does_not_know_is_not_closed() -> None:
    world = World()
    there = open_session()
    world.kube.add(AGENT_SESSIONS, there)
    world.cache.sessions.put(session(metadata={"uid": "of an earlier one", "resourceVersion": "1"}))
    world.has(sent_exchange())
    world.workflows.views[ID] = OPEN
    await world.reconcile()
    assert [name for name, _ in world.workflows.told] == ["reportAgain"]
    assert world.cache.sessions.get(KEY) is there


async def test_a_session_whose_own_pool_is_gone_says_so_until_it_is_back() -> None:
    """Its Agent has moved to another pool; a workflow cannot."""
    world = World()
    there = open_session()
    there["status"]["workflow"]["taskQueue"] = f"{INSTALLATION}.shop.old"
    world.has(there, exchange())
    world.workflows.views[ID] = OPEN
    await world.reconcile()
    assert (world.ready(), world.run("r1"), world.sent()) == ("PoolNotFound", ("Pending", "PoolNotFound"), [])
    world.cache.pools.put(pool("old"))
    await world.reconcile()
    assert (world.ready(), world.run("r1"), world.sent()) == ("Active", ("Running", "Running"), ["r1"])


async def test_the_run_of_a_deleted_session_whose_workflow_is_gone_as_well_ends() -> None:
    world = World()
    there = open_session()
    world.has(there, sent_exchange())
    world.lose(there)
    assert await world.reconcile() == SECOND_LOOK_SECONDS
    world.now += timedelta(minutes=1)
    await world.reconcile()
    assert world.run("r1") == ("Failed", "SessionClosed")


async def test_an_outage_of_temporal_is_told_after_a_while() -> None:
    world = World()
    world.workflows.is_away = True
    world.has(session(), exchange("new", metadata={"creationTimestamp": at()}), exchange("old"))
    with pytest.raises(TemporalUnavailable):
        await world.reconcile()
    assert (world.run("new"), world.run("old")) == (("Pending", "Pending"), ("Pending", "StartFailed"))
    world.workflows.is_away = False
    await world.reconcile()
    assert world.sent() == ["old", "new"]


async def test_an_idle_session_needs_its_pool_only_to_close() -> None:
    world = World()
    world.has(open_session(idleTimeout="2h"))
    world.workflows.views[ID] = OPEN
    await world.reconcile()
    assert not has_live_run(world.cache, POOL)
    assert world.kube.lists == []
    world.now += timedelta(hours=1)
    await world.reconcile()
    assert (has_live_run(world.cache, POOL), world.woken) == (True, [POOL])
    assert world.closed() == ["No run came within idleTimeout, 7200s"]
    world.has(sent_exchange())
    await world.reconcile()
    assert world.cache.idle_sessions == {}


async def test_an_idle_session_is_not_closed_on_the_watchs_word_alone() -> None:
    """The API server has a run that no watch has told of yet."""
    world = World()
    world.has(open_session(idleTimeout="30m"))
    world.kube.add(AGENT_RUNS, exchange())
    assert await world.reconcile() == timedelta(minutes=30).total_seconds()
    assert (world.closed(), world.kube.lists) == ([], ["chat"])


async def test_idle_time_counts_from_a_run_that_the_sessions_status_does_not_tell_of() -> None:
    """The controller has ended it, or the session's report is not written yet; the last process may have known more."""
    world = World()
    ended = exchange()
    ended["status"] |= {"phase": "Failed", "finishedAt": at(timedelta(minutes=-20))}
    world.has(open_session(idleTimeout="30m"))
    world.kube.add(AGENT_RUNS, ended)
    assert await world.reconcile() == timedelta(minutes=10).total_seconds()
    assert world.closed() == []


async def test_idle_time_counts_from_when_the_last_run_was_deleted() -> None:
    world = World()
    world.has(open_session(idleTimeout="30m"), sent_exchange())
    world.workflows.views[ID] = OPEN
    await world.reconcile()
    world.cache.runs.drop(sent_exchange())
    del world.kube.objects[AGENT_RUNS.kind, ObjectKey("shop", "r1")]
    assert await world.reconcile() == timedelta(minutes=30).total_seconds()
    world.now += timedelta(minutes=30)
    await world.reconcile()
    assert world.closed() == ["No run came within idleTimeout, 1800s"]


async def test_a_session_that_was_told_to_close_ends_what_it_was_not_sent() -> None:
    world = World()
    world.has(open_session(closed=True, metadata={"generation": 2}), sent_exchange(), exchange("r2"))
    world.workflows.views[ID] = OPEN
    await world.reconcile()
    assert (world.closed(), world.run("r2")) == (["Closed by spec.closed"], ("Failed", "SessionClosed"))
    assert (world.ready(), world.sent()) == ("Active", [])


async def test_how_many_runs_wait_is_written_once() -> None:
    world = World()
    world.has(open_session(), sent_exchange(), exchange("r2"), exchange("r3"))
    world.workflows.views[ID] = OPEN
    for _ in range(2):
        await world.reconcile()
    assert world.kube.objects[AGENT_SESSIONS.kind, KEY]["status"]["queuedRuns"] == 2
    assert world.kube.writes == ["chat", "r2", "r3"]


async def test_runs_queued_behind_one_that_awaits_approval_need_no_pool() -> None:
    world = World()
    world.has(open_session(), sent_exchange("r1", phase="AwaitingApproval"), sent_exchange("r2", phase="Pending"))
    assert not has_live_run(world.cache, POOL)
    world.cache.runs.drop(sent_exchange("r1", metadata={"resourceVersion": "11"}))
    assert has_live_run(world.cache, POOL), "the next one begins"


async def test_a_session_that_is_to_close_needs_its_pool() -> None:
    world = World()
    world.has(open_session(closed=True))
    assert has_live_run(world.cache, POOL)
    ended: Any = open_session(closed=True, metadata={"resourceVersion": "11"})
    ended["status"]["closedAt"] = at()
    world.has(ended)
    assert not has_live_run(world.cache, POOL)


async def test_finished_runs_are_written_once() -> None:
    world = World()
    world.has(open_session(), exchange(cancel=True))
    world.workflows.views[ID] = OPEN
    await world.reconcile()
    assert is_finished(world.kube.objects[AGENT_RUNS.kind, ObjectKey("shop", "r1")])
    assert world.kube.writes == ["r1"]


async def test_a_run_that_waits_for_something_needs_no_pool() -> None:
    world = World()
    world.has(open_session(summary={"modelRef": {"name": "small"}}), exchange())
    assert has_live_run(world.cache, POOL)
    await world.reconcile()
    assert world.run("r1") == ("Pending", "ModelNotFound")
    assert not has_live_run(world.cache, POOL)

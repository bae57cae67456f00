"""The AgentApproval's reconcile against a small cluster and a small Temporal, both in memory."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from dalang_api.contract import Decision
from dalang_operator.kinds.agentapproval.plan import Proof, Settings
from dalang_operator.kinds.agentapproval.reconcile import ApprovalFacts, ApprovalReconciler
from dalang_operator.kinds.agentrun.status import name_taken_status
from dalang_operator.kinds.reach import has_live_run
from dalang_operator.kube.errors import Conflict, NotFound
from dalang_operator.kube.resources import Json, ObjectKey, Resource
from dalang_operator.runtime.cache import Cache
from dalang_operator.temporal.errors import TemporalUnavailable, WorkflowNotFound

from tests.build import INSTALLATION, NOW, approval, at, awaiting_run, finished_run, meta, started_run

KEY = ObjectKey("shop", "r1-a")
RUN = ObjectKey("shop", "r1")
POOL = ObjectKey("shop", "default")
ID = f"{INSTALLATION}.shop.r1.uid-r1"


@dataclass
class FakeKube:
    """Objects by plural and name, with preconditions; every call is kept."""

    objects: dict[tuple[str, str], Json] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def add(self, plural: str, obj: Json) -> Json:
        self.objects[(plural, obj["metadata"]["name"])] = obj
        return obj

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json:
        self.calls.append(f"get {name}")
        return self._find(resource, name)

    async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        self.calls.append(f"create {resource.kind}")
        return self.add(resource.plural, body)

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Json | list[Json], subresource: str | None = None
    ) -> Json:
        assert isinstance(body, dict), "statuses without nulls are merged"
        current = self._find(resource, name)
        if body["metadata"]["resourceVersion"] != current["metadata"]["resourceVersion"]:
            raise Conflict("another version")
        self.calls.append(f"status {body['status'].get('state', '')}".strip())
        version = str(int(current["metadata"]["resourceVersion"]) + 1)
        status = {**current["status"], **body["status"]}
        metadata = {**current["metadata"], "resourceVersion": version}
        return self.add(resource.plural, {**current, "metadata": metadata, "status": status})

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, resource_version: str | None = None
    ) -> None:
        assert self._find(resource, name)["metadata"]["uid"] == uid
        self.calls.append(f"delete {name}")
        del self.objects[(resource.plural, name)]

    def _find(self, resource: Resource, name: str) -> Json:
        try:
            return self.objects[(resource.plural, name)]
        except KeyError:
            raise NotFound(name) from None


def deployment(name: str, *, ready: int) -> Json:
    return {"metadata": meta(name), "spec": {}, "status": {"readyReplicas": ready}}


@dataclass
class FakeTemporal:
    signals: list[tuple[str, str, Decision | None]] = field(default_factory=list)
    failure: Exception | None = None

    async def signal(self, workflow_id: str, name: str, value: Decision | None, request_id: str) -> None:
        if self.failure:
            raise self.failure
        self.signals.append((workflow_id, name, value))


@dataclass
class FakeProof:
    proof: Proof = field(default_factory=lambda: Proof(None, NOW - timedelta(days=1)))
    reads: int = 0

    async def read(self) -> Proof:
        self.reads += 1
        return self.proof


@dataclass
class World:
    """A reconciler, and all it acts on."""

    kube: FakeKube = field(default_factory=FakeKube)
    temporal: FakeTemporal = field(default_factory=FakeTemporal)
    proof: FakeProof = field(default_factory=FakeProof)
    cache: Cache = field(default_factory=Cache)
    facts: ApprovalFacts = field(default_factory=ApprovalFacts)
    woken: list[ObjectKey] = field(default_factory=list)
    now: datetime = NOW

    def has(self, obj: Json) -> None:
        """The approval exists, and the watch has told so."""
        self.kube.add("agentapprovals", obj)
        self.cache.approvals.put({**obj, "metadata": dict(obj["metadata"]), "spec": dict(obj["spec"])})

    def has_run(self, obj: Json) -> None:
        self.cache.runs.put(self.kube.add("agentruns", obj))

    async def reconcile(self) -> float | None:
        reconciler = ApprovalReconciler(
            self.kube,
            self.temporal,
            self.proof,
            self.cache,
            self.facts,
            Settings(INSTALLATION, needs_proof=True),
            self.woken.append,
            lambda: self.now,
        )
        return await reconciler.reconcile(KEY)

    @property
    def status(self) -> Json:
        status: Json = self.kube.objects[("agentapprovals", "r1-a")]["status"]
        return status


def approved(**more: Any) -> Json:
    return approval(decision="Approve", decidedBy="ada", **more)


async def test_an_undecided_approval_costs_no_call() -> None:
    world = World()
    world.has_run(awaiting_run("r1", "r1-a"))
    world.has(approval(expiresAt=at(timedelta(minutes=5))))
    assert await world.reconcile() == 300.0
    assert (world.kube.calls, world.woken, world.proof.reads) == ([], [], 0)
    assert not has_live_run(world.cache, POOL)


async def test_a_decision_is_sent_once_and_wakes_the_pool_until_the_run_reports() -> None:
    world = World()
    world.has_run(awaiting_run("r1", "r1-a"))
    world.has(approved())
    await world.reconcile()
    assert [(sent[0], sent[1]) for sent in world.temporal.signals] == [(ID, "decide")]
    assert world.kube.calls == ["status Delivered"]
    assert world.woken == [POOL]
    assert has_live_run(world.cache, POOL)
    await world.reconcile()
    assert len(world.temporal.signals) == 1
    world.has_run(awaiting_run("r1", "r1-b", seq=2, metadata={"resourceVersion": "11"}))
    await world.reconcile()
    assert not has_live_run(world.cache, POOL), "it reported without this one"


async def test_a_report_that_was_under_way_before_the_decision_keeps_the_pool_up() -> None:
    world = World()
    world.has_run(awaiting_run("r1", "r1-a"))
    world.has(approved())
    await world.reconcile()
    world.has_run(awaiting_run("r1", "r1-a", seq=2, metadata={"resourceVersion": "11"}))
    await world.reconcile()
    assert has_live_run(world.cache, POOL)


async def test_an_operator_that_died_after_the_signal_sends_it_again() -> None:
    world = World()
    world.has_run(awaiting_run("r1", "r1-a"))
    world.has(approved())
    world.kube.add("agentapprovals", approved(metadata={"resourceVersion": "11"}))  # the status write meets a conflict
    with pytest.raises(Conflict):
        await world.reconcile()
    world.has(approved(metadata={"resourceVersion": "11"}))
    await world.reconcile()
    assert [sent[2] for sent in world.temporal.signals] == [world.temporal.signals[0][2]] * 2
    assert world.status["state"] == "Delivered"


async def test_an_operator_that_was_restarted_after_the_delivery_wakes_the_pool() -> None:
    world = World()
    world.has_run(awaiting_run("r1", "r1-a"))
    world.has(approved(status={"state": "Delivered", "conditions": []}))
    await world.reconcile()
    assert world.woken == [POOL]
    assert has_live_run(world.cache, POOL)
    assert world.temporal.signals == []


async def test_a_run_that_was_quicker_than_the_word_that_it_was_told_says_both() -> None:
    world = World()
    world.has_run(awaiting_run("r1", "r1-a"))
    world.has(approved())
    applied = {"type": "Ready", "status": "True", "reason": "Applied", "message": "The run acted on it: Approve by ada"}
    settled = {"state": "Applied", "decidedBy": "ada", "conditions": [applied]}
    world.kube.add("agentapprovals", approved(metadata={"resourceVersion": "11"}, status=settled))
    with pytest.raises(Conflict):
        await world.reconcile()
    assert (world.status["state"], world.status["decidedBy"], world.status["deliveredAt"]) == ("Applied", "ada", at())
    proven, ready = world.status["conditions"]
    assert (proven["type"], proven["status"], ready) == ("Proven", "True", applied)


async def test_temporal_away_is_told_once_and_tried_again() -> None:
    world = World()
    world.has_run(awaiting_run("r1", "r1-a"))
    world.has(approved())
    world.temporal.failure = TemporalUnavailable("Temporal cannot be reached")
    for _ in range(2):
        with pytest.raises(TemporalUnavailable):
            await world.reconcile()
    assert world.kube.calls == ["status"]
    assert "not delivered yet" in world.status["conditions"][0]["message"]
    world.temporal.failure = None
    await world.reconcile()
    assert world.status["state"] == "Delivered"


async def test_a_workflow_that_has_ended_takes_no_decision() -> None:
    world = World()
    world.has_run(awaiting_run("r1", "r1-a"))
    world.has(approved())
    world.temporal.failure = WorkflowNotFound("completed")
    await world.reconcile()
    assert (world.status["state"], world.status["conditions"][0]["reason"]) == ("Expired", "RunEnded")
    assert world.cache.approvals.get(KEY) is None


async def test_a_run_that_left_the_watch_is_read() -> None:
    world = World()
    world.kube.add("agentruns", finished_run())
    world.has(approval())
    await world.reconcile()
    assert world.kube.calls == ["get r1", "status Expired"]


async def test_an_unproven_decision_waits_and_is_sent_when_the_policy_is_there() -> None:
    world = World()
    world.has_run(awaiting_run("r1", "r1-a"))
    world.has(approved())
    world.proof.proof = Proof("missing", None)
    for _ in range(2):
        assert await world.reconcile() == 10.0
    assert world.kube.calls == ["status"]
    assert (world.temporal.signals, world.woken) == ([], [])
    world.proof.proof = Proof(None, NOW - timedelta(days=1))
    await world.reconcile()
    assert world.status["state"] == "Delivered"


async def test_a_decision_older_than_the_policy_is_asked_anew() -> None:
    world = World()
    world.has_run(awaiting_run("r1", "r1-a"))
    world.has(approved())
    world.proof.proof = Proof(None, NOW)
    await world.reconcile()
    assert world.kube.calls == ["create Event", "delete r1-a"]
    world.cache.approvals.drop(approved(metadata={"resourceVersion": "11"}))
    world.facts.gone[KEY] = RUN
    await world.reconcile()
    assert world.temporal.signals == [(ID, "reportAgain", None)]


async def test_a_deleted_approval_is_asked_for_again_once_per_report() -> None:
    world = World()
    world.has_run(awaiting_run("r1", "r1-a"))
    for _ in range(2):
        assert await world.reconcile() == 60.0
    assert world.temporal.signals == [(ID, "reportAgain", None)]
    assert world.woken[0] == POOL
    assert has_live_run(world.cache, POOL)
    world.has_run(awaiting_run("r1", "r1-a", seq=2, metadata={"resourceVersion": "11"}))
    await world.reconcile()
    assert len(world.temporal.signals) == 2, "it reported, and the object is not there either"


async def test_an_approval_put_in_the_place_of_the_runs_own_is_told_to_the_run_once() -> None:
    """Nobody saw the run's own go. What the run is asked for here, the reporter finds taken, and then the run says so."""
    world = World()
    waits = awaiting_run("r1", "r1-a")
    world.has_run(waits)
    world.has(approval(metadata={"ownerReferences": []}))
    for _ in range(2):
        assert await world.reconcile() == 60.0
    assert world.temporal.signals == [(ID, "reportAgain", None)]
    status = name_taken_status(waits, "AgentApproval r1-a is not what this run asks", NOW)
    world.has_run({**waits, "metadata": {**waits["metadata"], "resourceVersion": "11"}, "status": status})
    world.now = NOW + timedelta(hours=1)
    assert await world.reconcile() is None
    assert len(world.temporal.signals) == 1
    assert has_live_run(world.cache, POOL), "its time-out needs a worker"


async def test_of_one_that_was_put_there_anew_before_anybody_saw_it_missing_the_run_is_told_once() -> None:
    world = World()
    world.has_run(awaiting_run("r1", "r1-a"))
    world.has(approval(metadata={"uid": "uid-restored"}))
    world.facts.gone[KEY] = RUN
    for _ in range(2):
        await world.reconcile()
    assert world.temporal.signals == [(ID, "reportAgain", None)]


async def test_a_run_that_does_not_tell_what_came_of_a_decision_is_asked_ever_more_rarely() -> None:
    world = World()
    world.has_run(awaiting_run("r1", "r1-a"))
    world.has(approved(status={"state": "Delivered", "deliveredAt": at(), "conditions": []}))
    assert await world.reconcile() == 60.0
    assert world.temporal.signals == [], "no worker is up to tell"
    world.cache.deployments.put(deployment("dalang-default", ready=1))
    asked = []
    for minute in range(1, 65):
        world.now = NOW + timedelta(minutes=minute)
        before = len(world.temporal.signals)
        await world.reconcile()
        await world.reconcile()
        if len(world.temporal.signals) > before:
            asked.append(minute)
            world.has_run(awaiting_run("r1", "r1-a", seq=minute, metadata={"resourceVersion": str(10 + minute)}))
    assert asked == [1, 2, 4, 8, 16, 32, 64]
    assert {sent[1] for sent in world.temporal.signals} == {"reportAgain"}


async def test_the_seventeenth_of_a_run_that_lists_sixteen_is_served_like_the_others() -> None:
    """`status.pendingApprovals` holds sixteen."""
    world = World()
    sixteen = [f"r1-{number}" for number in range(16)]
    world.has_run(awaiting_run("r1", *sixteen))
    world.has(approved())
    await world.reconcile()
    assert [sent[1] for sent in world.temporal.signals] == ["decide"]
    assert world.status["state"] == "Delivered"
    world.cache.approvals.put(world.kube.objects[("agentapprovals", "r1-a")])
    world.has_run(awaiting_run("r1", *sixteen, seq=2, metadata={"resourceVersion": "11"}))
    assert not has_live_run(world.cache, POOL)
    await world.reconcile()
    assert has_live_run(world.cache, POOL), "nothing says that it was acted on"
    gone = world.kube.objects.pop(("agentapprovals", "r1-a"))
    world.cache.approvals.drop(gone)
    world.facts.gone[KEY] = RUN
    await world.reconcile()
    assert [sent[1] for sent in world.temporal.signals] == ["decide", "reportAgain"], "deleted, it is asked anew"


async def test_decided_and_deleted_at_once_counts_or_is_asked_anew_and_never_gets_lost() -> None:
    """The watch has told of the decision, and the object is gone before it is written that Temporal has it."""
    world = World()
    world.has_run(awaiting_run("r1", "r1-a"))
    world.has(approved())
    del world.kube.objects[("agentapprovals", "r1-a")]
    with pytest.raises(NotFound):
        await world.reconcile()
    await world.reconcile()
    sent = [name for _, name, _ in world.temporal.signals]
    assert sent == ["decide", "reportAgain"], "the run has the decision, or reports what it still asks"


async def test_an_approval_that_the_watch_has_not_told_of_yet_is_not_taken_for_deleted() -> None:
    world = World()
    world.has_run(awaiting_run("r1", "r1-a"))
    world.kube.add("agentapprovals", approval())
    await world.reconcile()
    assert world.kube.calls == ["get r1-a"]
    assert world.temporal.signals == []
    assert world.cache.approvals.get(KEY) is not None


@pytest.mark.parametrize(
    ("live", "calls"),
    [
        pytest.param(None, ["get r1-a", "get r1"], id="its run was deleted, and the watch has not told yet"),
        pytest.param(finished_run(), ["get r1-a", "get r1"], id="its run has just ended"),
    ],
)
async def test_the_garbage_collector_is_not_answered(live: Json | None, calls: list[str]) -> None:
    world = World()
    world.cache.runs.put(awaiting_run("r1", "r1-a"))
    if live:
        world.kube.add("agentruns", live)
    world.facts.gone[KEY] = RUN
    await world.reconcile()
    assert (world.kube.calls, world.temporal.signals, world.woken) == (calls, [], [])
    assert world.facts.gone == {}


async def test_an_approval_that_was_settled_is_looked_at_no_more() -> None:
    world = World()
    world.has_run(started_run(seq=2))
    world.facts.gone[KEY] = RUN
    assert await world.reconcile() is None
    assert (world.kube.calls, world.facts.gone) == ([], {})

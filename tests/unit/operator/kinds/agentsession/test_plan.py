"""What is done about an AgentSession, and about its runs, in every state it and its workflow can be in."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from dalang_api import contract
from dalang_api.v1alpha1.conditions import ConditionType
from dalang_operator.kinds.actions import TerminateWorkflow, WakePool, WriteStatus
from dalang_operator.kinds.agentrun.snapshot import make_snapshot
from dalang_operator.kinds.agentsession.plan import (
    SECOND_LOOK_SECONDS,
    Action,
    CancelUnsent,
    CloseIdle,
    Configure,
    Observed,
    Plan,
    ReportAgain,
    SendRun,
    Settings,
    StartSession,
    WriteRun,
    is_idle,
    needs_look,
    place_of,
    plan,
)
from dalang_operator.kinds.instructions import MISSING_SECONDS
from dalang_operator.kinds.reach import Reach, find_reach, with_model
from dalang_operator.kinds.workflow import WorkflowState, WorkflowView
from dalang_operator.kube.resources import Json, ObjectKey
from dalang_operator.kube.status import find_condition
from dalang_operator.runtime.references import summary_model_of

from tests.build import (
    INSTALLATION,
    LONG_AGO,
    NOW,
    agent,
    at,
    condition,
    exchange,
    known,
    model,
    open_session,
    pool,
    sent_exchange,
    session,
)

ID = f"{INSTALLATION}.shop.chat.uid-chat"
OLD = f"{INSTALLATION}.shop.chat.uid-old"
QUEUE = f"{INSTALLATION}.shop.default"
POOL = ObjectKey("shop", "default")
OPEN = WorkflowView(WorkflowState.OPEN, "run-1")
MISSING = WorkflowView(WorkflowState.MISSING)
TERMINATED = WorkflowView(WorkflowState.TERMINATED, "run-1", "by hand")
HELPER = [{"name": "helper", "uid": "uid-helper", "generation": 1, "pool": "default"}]
REPORT = contract.SessionReport(
    seq=9, run_id="run-2", task_queue=QUEUE, agent="helper", started_at=LONG_AGO, closed_at=at(), closed_message="Idle"
)
CLOSED = WorkflowView(WorkflowState.COMPLETED, "run-2", session=REPORT)


def observed(
    obj: Json | None, *runs: Json, there: tuple[Json, ...] = (agent(), model(), pool()), **facts: Any
) -> Observed:
    """A session with its runs, and what of agents, models and pools is there."""
    found = known(*there)
    its_agent = found.agents("helper") if obj else None
    name = summary_model_of(obj) if obj else None
    reach = with_model(find_reach(its_agent, found), name, found) if its_agent else None
    has_unsent = any("workflow" not in run["status"] for run in runs)
    snapshot = make_snapshot(reach, {}, INSTALLATION, "shop") if isinstance(reach, Reach) and has_unsent else None
    facts.setdefault("is_met", True)
    return Observed(
        key=ObjectKey("shop", "chat"),
        settings=Settings(INSTALLATION),
        now=NOW,
        session=obj,
        runs=runs,
        agent=its_agent,
        reach=reach,
        snapshot=snapshot,
        **facts,
    )


def summary(action: Action) -> Any:
    """Statuses by what is decisive, exchanges by what is said of them; every other action whole."""
    match action:
        case WriteStatus(status):
            ready = find_condition({"status": status}, ConditionType.READY)
            return ("session", ready["reason"] if ready else None, status.get("observedGeneration"))
        case WriteRun(run, status):
            return (run["metadata"]["name"], *_run(status))
        case SendRun(workflow_id, run, sent, status):
            assert workflow_id == ID
            how = {"snapshot"} if sent.snapshot else set()
            how |= {"queued"} if sent.queued else set()
            return ("send", run["metadata"]["name"], how, *_run(status))
        case StartSession(workflow_id, task_queue, _, request_id):
            return ("start", workflow_id, task_queue, request_id)
        case Configure(workflow_id, settings, _):
            return ("configure", workflow_id, settings.closed)
        case _:
            return action


def _run(status: Json) -> tuple[Any, ...]:
    succeeded = find_condition({"status": status}, ConditionType.SUCCEEDED)
    return status["phase"], succeeded["reason"] if succeeded else None, "finishedAt" in status


def did(given: Observed) -> list[Any]:
    return [summary(action) for action in plan(given).actions]


ACTIVE = ("session", "Active", 1)
WAKE = WakePool(POOL)
START = ("start", ID, QUEUE, "uid-chat")
IDLE = ("configure", ID, "No run came within idleTimeout, 1800s")
SEND_R1 = ("send", "r1", {"snapshot"}, "Running", "Running", False)


def team(count: int) -> list[Json]:
    """An agent that hands over to so many others, each with long instructions."""
    names = [f"a{number}" for number in range(count)]
    others = [agent(name, instructions="x" * 16384) for name in names]
    return [agent(handoffs=[{"agentRef": {"name": name}} for name in names]), *others]


def closing(obj: Json) -> Json:
    return {**obj, "spec": {**obj["spec"], "closed": True}}


def ended(reason: str) -> Json:
    obj = open_session()
    ready = condition("Ready", "True" if reason == "Closed" else "False", reason, "It was so")
    obj["status"] |= {"conditions": [ready], **({"closedAt": at()} if reason == "Closed" else {})}
    return obj


@pytest.mark.parametrize(
    ("given", "actions"),
    [
        pytest.param(observed(session()), [START], id="A: a new session is started, with or without a run"),
        pytest.param(
            observed(session(), exchange(), views={ID: OPEN}),
            [ACTIVE, SEND_R1, WAKE],
            id="A: once it is started it is noted, and takes its first run",
        ),
        pytest.param(
            observed(session(), exchange(), there=()),
            [("session", "AgentNotFound", -1), ("r1", "Pending", "AgentNotFound", False)],
            id="A: without its agent it waits, and so do its runs",
        ),
        pytest.param(
            observed(session(), exchange(cancel=True), exchange("r2"), there=(agent(),)),
            [
                ("session", "ModelNotFound", -1),
                ("r1", "Cancelled", "Cancelled", True),
                ("r2", "Pending", "ModelNotFound", False),
            ],
            id="A: a run that is cancelled meanwhile ends",
        ),
        pytest.param(
            observed(session(summary={"modelRef": {"name": "small"}}), exchange()),
            [("session", "ModelNotFound", -1), ("r1", "Pending", "ModelNotFound", False)],
            id="A: the summary's model counts",
        ),
        pytest.param(
            observed(session(summary={"enabled": False, "modelRef": {"name": "small"}})),
            [START],
            id="A: but not where nothing is summarised",
        ),
        pytest.param(
            observed(session(metadata={"generation": 2}), views={ID: OPEN}),
            [("configure", ID, None), ("session", "Active", 2)],
            id="A: whether an earlier start knew this version nobody can tell",
        ),
        pytest.param(
            observed(closing(session()), exchange(), views={ID: MISSING}),
            [("session", "Closed", 1), ("r1", "Failed", "SessionClosed", True)],
            id="B: closed before it had begun",
        ),
        pytest.param(
            observed(closing(session()), views={ID: OPEN}),
            [ACTIVE, WAKE],
            id="B: closed, and begun unnoticed: the input said so",
        ),
        pytest.param(observed(open_session()), [ACTIVE], id="C: nothing to send"),
        pytest.param(
            observed(open_session(), exchange(), exchange("r2"), exchange("r3")),
            [
                ACTIVE,
                SEND_R1,
                WAKE,
                ("send", "r2", {"queued"}, "Pending", "Queued", False),
                ("send", "r3", {"queued"}, "Pending", "Queued", False),
            ],
            id="C: the first runs, the others queue, and the snapshot goes once",
        ),
        pytest.param(
            observed(open_session(), sent_exchange("r0"), exchange()),
            [ACTIVE, ("send", "r1", {"snapshot", "queued"}, "Pending", "Queued", False), WAKE],
            id="C: while one is under way the next one queues",
        ),
        pytest.param(
            observed(open_session(), sent_exchange("r0"), exchange(), is_met=False),
            [
                ACTIVE,
                ReportAgain(ID, f"report again {NOW.isoformat()}"),
                ("send", "r1", {"snapshot", "queued"}, "Pending", "Queued", False),
                WAKE,
            ],
            id="C: one that this process does not know reports: a run of it may have been deleted, or ended",
        ),
        pytest.param(
            observed(open_session(), exchange(cancel=True), exchange("r2")),
            [
                ACTIVE,
                ("r1", "Cancelled", "Cancelled", True),
                CancelUnsent(ID, contract.RunIdentity(name="r1", uid="uid-r1")),
                ("send", "r2", {"snapshot"}, "Running", "Running", False),
                WAKE,
            ],
            id="C: a run that was cancelled before it was sent is not sent, unless it was without a note",
        ),
        pytest.param(
            observed(open_session(), exchange(metadata={"deletionTimestamp": at()})),
            [ACTIVE],
            id="C: a run that is being deleted is not sent",
        ),
        pytest.param(
            observed(open_session(), sent_exchange("r0"), exchange(), there=()),
            [("session", "AgentNotFound", 1), ("r1", "Pending", "AgentNotFound", False)],
            id="C: an agent that is gone holds up what is not sent yet",
        ),
        pytest.param(
            observed(open_session(), sent_exchange("r0"), exchange(), has_pool=False),
            [("session", "PoolNotFound", 1), ("r1", "Pending", "PoolNotFound", False)],
            id="C: the pool it began in is gone, and its workflow cannot move to another",
        ),
        pytest.param(
            observed(open_session(), exchange(), there=(*team(40), model(), pool())),
            [("session", "InvalidSpec", 1), ("r1", "Failed", "InvalidSpec", True)],
            id="C: what does not fit a snapshot never will",
        ),
        pytest.param(
            observed(open_session(metadata={"generation": 3}), sent_exchange()),
            [("configure", ID, None), ("session", "Active", 3)],
            id="D: it is told what has changed, and then that is noted",
        ),
        pytest.param(
            observed(closing(open_session(metadata={"generation": 2})), sent_exchange("r0"), exchange()),
            [
                ("configure", ID, "Closed by spec.closed"),
                ("session", "Active", 2),
                ("r1", "Failed", "SessionClosed", True),
                WAKE,
            ],
            id="E: it closes after the run under way; what was not sent ends at once",
        ),
        pytest.param(
            observed(closing(open_session()), exchange(cancel=True), there=()),
            [ACTIVE, ("r1", "Cancelled", "Cancelled", True), WAKE],
            id="E: what is missing for a next run does not matter any more",
        ),
        pytest.param(
            observed(closing(open_session()), has_pool=False),
            [("session", "PoolNotFound", 1), WAKE],
            id="E: but without its pool it cannot close",
        ),
        pytest.param(
            observed(open_session(idleTimeout="30m")),
            [ACTIVE, IDLE, CloseIdle("uid-chat"), WAKE],
            id="E: its idle time is over, so it is told, and a worker has to close it",
        ),
        pytest.param(
            observed(open_session(idleTimeout="30m"), there=()),
            [ACTIVE, IDLE, CloseIdle("uid-chat"), WAKE],
            id="E: likewise without its agent",
        ),
        pytest.param(observed(open_session(idleTimeout="2h")), [ACTIVE], id="E: its idle time is not over"),
        pytest.param(
            observed(open_session(idleTimeout="30m"), last_busy=NOW - timedelta(minutes=29)),
            [ACTIVE],
            id="E: it had a run of which its status does not tell yet",
        ),
        pytest.param(
            observed(open_session(idleTimeout="30m"), exchange(), there=()),
            [("session", "AgentNotFound", 1), ("r1", "Pending", "AgentNotFound", False)],
            id="E: a run that waits for its agent keeps it open",
        ),
        pytest.param(
            observed(open_session(idleTimeout="30m"), exchange()),
            [ACTIVE, SEND_R1, WAKE],
            id="E: and so does one that came while the controller was away",
        ),
        pytest.param(
            observed(session(idleTimeout="30m"), views={ID: OPEN}),
            [ACTIVE],
            id="E: idle time counts from the start, not from the object's creation",
        ),
        pytest.param(
            observed(open_session(idleTimeout="30m"), sent_exchange()),
            [ACTIVE],
            id="E: a run is under way, so not idle",
        ),
        pytest.param(
            observed(open_session(), sent_exchange(), exchange("r2"), views={ID: CLOSED}),
            [
                ("session", "Closed", 1),
                ("r1", "Failed", "SessionClosed", True),
                ("r2", "Failed", "SessionClosed", True),
            ],
            id="F: its last report was lost, but stands in its history",
        ),
        pytest.param(
            observed(open_session(), sent_exchange(), exchange("r2", cancel=True), views={ID: TERMINATED}),
            [
                ("session", "SessionLost", 1),
                ("r1", "Failed", "SessionLost", True),
                ("r2", "Cancelled", "Cancelled", True),
            ],
            id="G: terminated by hand",
        ),
        pytest.param(observed(open_session(), exchange(), views={ID: MISSING}), [], id="G: not found once says little"),
        pytest.param(
            observed(open_session(), exchange(), views={ID: MISSING}, was_missing=frozenset({ID})),
            [("session", "SessionLost", 1), ("r1", "Failed", "SessionLost", True)],
            id="G: not found twice",
        ),
        pytest.param(
            observed(session(), views={ID: TERMINATED}),
            [("session", "SessionLost", 1)],
            id="G: the start says that there was one",
        ),
        pytest.param(
            observed(ended("Closed"), sent_exchange(), exchange("r2")),
            [("session", "Closed", 1), ("r2", "Failed", "SessionClosed", True)],
            id="H: of a closed session the workflow ends what it was sent",
        ),
        pytest.param(
            observed(ended("Closed"), sent_exchange(), views={ID: CLOSED}),
            [("session", "Closed", 1), ("r1", "Failed", "SessionClosed", True)],
            id="H: unless it has ended without",
        ),
        pytest.param(
            observed(ended("SessionLost"), sent_exchange(), exchange("r2")),
            [
                ("session", "SessionLost", 1),
                ("r1", "Failed", "SessionLost", True),
                ("r2", "Failed", "SessionLost", True),
            ],
            id="H: of a lost one all runs end",
        ),
        pytest.param(
            observed(ended("SessionLost"), exchange(), views={ID: OPEN}),
            [ACTIVE, SEND_R1, WAKE],
            id="H: a lost one that is found again goes on",
        ),
        pytest.param(
            observed(None, gone=frozenset({"uid-chat"})),
            [TerminateWorkflow(ID, "the AgentSession was deleted")],
            id="I: deleted while idle",
        ),
        pytest.param(
            observed(None, sent_exchange(), exchange("r2"), gone=frozenset({"uid-chat"})),
            [("configure", ID, "The AgentSession was deleted"), ("r2", "Pending", "SessionNotFound", False)],
            id="I: deleted while a run is under way, which is left to end",
        ),
        pytest.param(
            observed(None, sent_exchange(), gone=frozenset({"uid-chat"}), views={ID: TERMINATED}),
            [("r1", "Failed", "SessionClosed", True)],
            id="I: a deleted one's workflow has ended without a word about its run",
        ),
        pytest.param(
            observed(open_session(), gone=frozenset({"uid-old"})),
            [TerminateWorkflow(OLD, "the AgentSession was deleted"), ACTIVE],
            id="I: deleted and made anew",
        ),
        pytest.param(
            observed(open_session(metadata={"deletionTimestamp": at()}), exchange()),
            [TerminateWorkflow(ID, "the AgentSession was deleted"), ("r1", "Pending", "SessionNotFound", False)],
            id="I: being deleted is as good as gone",
        ),
        pytest.param(
            observed(None, exchange(), exchange("r2", cancel=True)),
            [("r2", "Cancelled", "Cancelled", True), ("r1", "Pending", "SessionNotFound", False)],
            id="J: its runs wait, and may be cancelled",
        ),
    ],
)
def test_plan(given: Observed, actions: list[Any]) -> None:
    assert did(given) == actions


def test_a_run_that_is_held_keeps_its_place() -> None:
    """Its status is written, which changes its resourceVersion; `order` is that of its creation, as far as it is known."""
    known_by_memory, first_seen = exchange("r1"), exchange("r2", metadata={"resourceVersion": "12"})
    noted = exchange("r3", metadata={"resourceVersion": "50"})
    noted["status"]["order"] = 7
    given = observed(None, known_by_memory, first_seen, noted, versions={"uid-r1": 9, "uid-r3": 50})
    assert [action.status["order"] for action in plan(given).actions if isinstance(action, WriteRun)] == [9, 12, 7]
    ordered = sorted(given.runs, key=lambda run: place_of(run, given.versions))
    assert [run["metadata"]["name"] for run in ordered] == ["r3", "r1", "r2"]


@pytest.mark.parametrize(
    ("given", "requeue_after"),
    [
        pytest.param(observed(open_session()), None, id="nothing to wait for"),
        pytest.param(
            observed(open_session(idleTimeout="2h")),
            timedelta(hours=1).total_seconds(),
            id="until its idle time is over",
        ),
        pytest.param(
            observed(open_session(idleTimeout="55m")), None, id="once told to close it says itself that it has"
        ),
        pytest.param(
            observed(open_session(idleTimeout="55m"), last_busy=NOW - timedelta(minutes=5)),
            timedelta(minutes=50).total_seconds(),
            id="it counts from a run that its status does not tell of",
        ),
        pytest.param(
            observed(
                open_session(idleTimeout="2h"),
                there=(agent(instructionsFrom={"configMapKeyRef": {"name": "m", "key": "k"}}), model(), pool()),
            ),
            MISSING_SECONDS,
            id="what is missing is looked for before that",
        ),
        pytest.param(
            observed(open_session(), views={ID: MISSING}), SECOND_LOOK_SECONDS, id="a second look before it is lost"
        ),
        pytest.param(
            observed(None, sent_exchange(), views={ID: MISSING}),
            SECOND_LOOK_SECONDS,
            id="likewise for the run of one that was deleted",
        ),
        pytest.param(
            observed(
                session(),
                there=(agent(instructionsFrom={"configMapKeyRef": {"name": "m", "key": "k"}}), model(), pool()),
            ),
            MISSING_SECONDS,
            id="nothing tells when a ConfigMap appears",
        ),
    ],
)
def test_when_to_look_again(given: Observed, requeue_after: float | None) -> None:
    assert plan(given).requeue_after == requeue_after


@pytest.mark.parametrize(
    ("obj", "runs", "is_so"),
    [
        pytest.param(open_session(idleTimeout="1h"), (), True, id="its idle time is over"),
        pytest.param(open_session(idleTimeout="61m"), (), False, id="not yet"),
        pytest.param(open_session(), (), False, id="it has none"),
        pytest.param(open_session(idleTimeout="1h"), (exchange(),), False, id="a run is there"),
        pytest.param(session(idleTimeout="1s"), (), False, id="it has not begun"),
        pytest.param(closing(open_session(idleTimeout="1h")), (), False, id="it closes anyway"),
        pytest.param(None, (), False, id="it is gone"),
    ],
)
def test_is_idle(obj: Json | None, runs: tuple[Json, ...], is_so: bool) -> None:
    assert is_idle(observed(obj, *runs)) is is_so


def test_a_session_is_told_once_that_it_is_idle() -> None:
    """However often it is planned; and idle time counts from the end of its last run."""
    one = open_session(idleTimeout="30m")
    one["status"]["lastRun"] = {"name": "r0", "phase": "Succeeded", "finishedAt": at(timedelta(minutes=-30))}
    told = [each for each in plan(observed(one)).actions if isinstance(each, Configure)]
    assert [each.request_id for each in told] == ["configure idle uid-chat r0"]
    one["status"]["lastRun"]["finishedAt"] = at(timedelta(minutes=-29))
    assert did(observed(one)) == [ACTIVE]


def prospect(given: Observed) -> str:
    """What the session says of itself."""
    [status] = [action.status for action in plan(given).actions if isinstance(action, WriteStatus)]
    ready = find_condition({"status": status}, ConditionType.READY)
    assert ready is not None
    return str(ready["message"])


UNSUMMARISED = condition("Summarised", "False", "SummaryFailed", "The model is away")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param(observed(open_session()), "The conversation goes on with the next run", id="it goes on"),
        pytest.param(
            observed(closing(open_session()), sent_exchange()),
            "Closed by spec.closed; the session closes when the run under way has ended",
            id="it closes after a run",
        ),
        pytest.param(
            observed(closing(open_session())),
            "Closed by spec.closed; the session closes as soon as a worker has heard of it",
            id="it closes",
        ),
        pytest.param(
            observed(open_session(idleTimeout="30m")),
            "No run came within idleTimeout, 1800s; the session closes as soon as a worker has heard of it",
            id="it is idle",
        ),
    ],
)
def test_a_session_says_what_will_become_of_it(given: Observed, message: str) -> None:
    assert prospect(given) == message


def test_a_session_says_that_its_last_summary_failed_and_what_that_means() -> None:
    one = open_session()
    one["status"]["conditions"] = [*one["status"]["conditions"], UNSUMMARISED]
    assert prospect(observed(one)) == (
        "The conversation goes on with the next run. What could not be summarised is kept while there is room, "
        "and the next run tries again: The model is away"
    )


@pytest.mark.parametrize(
    ("runs", "queued"),
    [
        pytest.param((exchange(),), None, id="a run that begins"),
        pytest.param((exchange(), exchange("r2"), exchange("r3")), 2, id="two behind one that begins"),
        pytest.param((sent_exchange("r0"), exchange()), 1, id="one behind a run under way"),
        pytest.param(
            (sent_exchange("r0"), sent_exchange("r1", phase="Pending"), exchange("r2")),
            2,
            id="together with one that was queued before",
        ),
        pytest.param(
            (sent_exchange("r0"), sent_exchange("r1", phase="Pending", cancel=True), exchange("r2")),
            1,
            id="without one that is cancelled",
        ),
        pytest.param((sent_exchange("r0"), sent_exchange("r1", phase="Pending")), None, id="reports tell the rest"),
    ],
)
def test_how_many_runs_wait_is_noted_when_one_has_to(runs: tuple[Json, ...], queued: int | None) -> None:
    [status] = [
        action.status for action in plan(observed(open_session(), *runs)).actions if isinstance(action, WriteStatus)
    ]
    assert status.get("queuedRuns") == queued


def sent(given: Observed) -> list[str]:
    return [action.run["metadata"]["name"] for action in plan(given).actions if isinstance(action, SendRun)]


def test_no_more_runs_are_sent_than_may_queue() -> None:
    under_way = [sent_exchange(f"s{number}") for number in range(contract.SESSION_QUEUE_MAX_RUNS - 2)]
    waiting = [exchange(f"r{number}") for number in range(5)]
    assert sent(observed(open_session(), *under_way, *waiting)) == ["r0", "r1"]


def test_no_more_bytes_are_sent_than_may_queue() -> None:
    large = {"input": "x" * (contract.SESSION_QUEUE_MAX_BYTES * 2 // 5)}
    waiting = [exchange(f"r{number}", **large) for number in range(3)]
    assert sent(observed(open_session(), *waiting)) == ["r0", "r1"]
    assert sent(observed(open_session(), sent_exchange("s0", **large), *waiting)) == ["r0"]


def test_a_run_larger_than_the_queue_is_sent_alone() -> None:
    waiting = [exchange("r0", input="x" * contract.SESSION_QUEUE_MAX_BYTES), exchange("r1")]
    assert sent(observed(open_session(), *waiting)) == ["r0"]
    assert sent(observed(open_session(), sent_exchange("s0"), *waiting)) == []


def test_a_snapshot_that_the_session_has_is_not_sent_again() -> None:
    given = observed(open_session(), exchange())
    assert given.snapshot is not None
    digest = given.snapshot.digest()
    [again] = [action for action in plan(replace(given, sent_snapshot=digest)).actions if isinstance(action, SendRun)]
    assert (again.exchange.snapshot, again.exchange.snapshot_digest) == (None, digest)


def test_an_exchange_says_all_of_a_run() -> None:
    one = open_session(limits={"maxTurns": 7, "timeout": "5m"})
    given = observed(
        one,
        exchange(context={"order": "42"}, limits={"maxTurns": 9, "timeout": "1m"}, input="Where is it?"),
        there=(agent(limits={"maxTokens": 100}), model(), pool()),
        sent_snapshot=None,
    )
    [action] = [each for each in plan(given).actions if isinstance(each, SendRun)]
    assert given.snapshot is not None
    assert action.exchange == contract.Exchange(
        run=contract.RunIdentity(name="r1", uid="uid-r1"),
        agent="helper",
        messages=[contract.Message(role="user", parts=[contract.TextPart(text="Where is it?")])],
        max_turns=7,
        timeout_seconds=60.0,
        max_tokens=100,
        context={"order": 42},
        snapshot_digest=given.snapshot.digest(),
        snapshot=given.snapshot,
    )


def test_a_queued_run_names_its_workflow_and_its_pools() -> None:
    [_, _, _, action] = plan(observed(open_session(), exchange(), exchange("r2"))).actions
    assert isinstance(action, SendRun)
    assert action.status["workflow"] == {"id": ID, "runId": "run-1", "taskQueue": QUEUE, "reportSeq": 0}
    assert action.status["agents"] == HELPER
    assert "startedAt" not in action.status


def test_a_run_begins_with_the_agent_who_holds_the_conversation() -> None:
    one = open_session()
    one["status"]["agent"] = "sales"
    there = (agent(handoffs=[{"agentRef": {"name": "sales"}}]), agent("sales"), model(), pool())
    [action] = [each for each in plan(observed(one, exchange(), there=there)).actions if isinstance(each, SendRun)]
    assert action.status["agent"] == "sales"
    one["status"]["agent"] = "gone"
    [action] = [each for each in plan(observed(one, exchange(), there=there)).actions if isinstance(each, SendRun)]
    assert action.status["agent"] == "helper"


def test_a_session_wakes_its_own_pool_and_those_of_all_it_can_reach() -> None:
    there = (
        agent(poolRef={"name": "gpu"}, handoffs=[{"agentRef": {"name": "sales"}}]),
        agent("sales", poolRef={"name": "big"}),
        model(),
        pool("gpu"),
        pool("big"),
    )
    given = observed(open_session(), exchange(), there=there)
    woken = [action.pool.name for action in plan(given).actions if isinstance(action, WakePool)]
    assert woken == ["default", "gpu", "big"]


def test_what_is_started_knows_all_that_the_session_says() -> None:
    small: dict[str, Any] = {
        "summary": {"modelRef": {"name": "gpt"}},
        "historySize": 8,
        "idleTimeout": "1h",
        "context": {"n": "3"},
    }
    [start] = plan(observed(session(**small))).actions
    assert isinstance(start, StartSession)
    settings = contract.SessionSettings(history_size=8, summary_model="gpt", idle_timeout_seconds=3600.0)
    assert start.session_input == contract.SessionInput(agent="helper", settings=settings, context={"n": 3})


def test_code_that_fails_stalls_the_session_until_it_does_no_longer() -> None:
    [write] = plan(observed(open_session(), problem="category=WorkflowTaskFailed")).actions
    assert isinstance(write, WriteStatus)
    stalled = {**open_session(), "status": write.status}
    found = find_condition(stalled, ConditionType.STALLED)
    assert found is not None
    assert (found["status"], found["reason"]) == ("True", "WorkflowTaskFailing")
    [again] = plan(observed(stalled)).actions
    assert isinstance(again, WriteStatus)
    assert find_condition({"status": again.status}, ConditionType.STALLED) is None


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(observed(open_session(), exchange(), exchange("r2")), id="sent"),
        pytest.param(observed(session(), exchange(), there=()), id="waiting"),
        pytest.param(observed(open_session(), sent_exchange(), views={ID: TERMINATED}), id="lost"),
        pytest.param(observed(closing(session()), exchange(), views={ID: MISSING}), id="closed"),
    ],
)
def test_what_was_done_is_not_done_again(given: Observed) -> None:
    """Fixpoint: with the plan executed, planning again writes the same statuses and sends nothing."""
    assert plan(given) == plan(given)
    after = _executed(given)
    for action in plan(after).actions:
        match action:
            case WriteStatus(status):
                assert after.session is not None
                assert status == after.session["status"]
            case WriteRun(run, status):
                assert status == run["status"]
            case _:
                pytest.fail(f"done again: {action}")


def _executed(given: Observed) -> Observed:
    runs = {run["metadata"]["name"]: run for run in given.runs}
    one = given.session
    for action in plan(given).actions:
        match action:
            case WriteStatus(status):
                one = {**one, "status": status} if one else None
            case WriteRun(run, status) | SendRun(_, run, _, status):
                runs[run["metadata"]["name"]] = {**run, "status": status}
            case _:
                pass
    left = tuple(run for run in runs.values() if "finishedAt" not in run["status"])
    return replace(given, session=one, runs=left)


@pytest.mark.parametrize(
    ("obj", "must_be_asked"),
    [
        pytest.param(session(), False, id="a new one is started anyway"),
        pytest.param(closing(session()), True, id="a closed one may have been started unnoticed"),
        pytest.param(closing(open_session()), False, id="it is noted"),
        pytest.param(closing(ended("Closed")), False, id="it has ended"),
    ],
)
def test_needs_look(obj: Json, must_be_asked: bool) -> None:
    assert needs_look(obj) is must_be_asked


def test_a_plan_is_a_value() -> None:
    assert plan(observed(None)) == Plan()

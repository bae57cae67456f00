"""What is done about an AgentRun in every state it and its workflow can be in."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from dalang_api import contract
from dalang_api.v1alpha1.conditions import ConditionType
from dalang_operator.kinds.actions import TerminateWorkflow, WakePool, WriteStatus
from dalang_operator.kinds.agentrun.plan import (
    FIRING_SECONDS,
    SECOND_LOOK_SECONDS,
    Action,
    CancelWorkflow,
    DeleteRun,
    LeaveOut,
    Observed,
    Plan,
    Settings,
    StartWorkflow,
    needs_firing,
    needs_look,
    needs_waited,
    plan,
    time_waited,
)
from dalang_operator.kinds.agentrun.status import name_taken_status
from dalang_operator.kinds.reach import find_reach
from dalang_operator.kinds.workflow import WorkflowState, WorkflowView
from dalang_operator.kube.resources import Json, ObjectKey
from dalang_operator.kube.status import find_condition, parse_timestamp

from tests.build import (
    INSTALLATION,
    LONG_AGO,
    NOW,
    agent,
    approval,
    at,
    awaiting_run,
    config_map,
    exchange,
    finished_run,
    known,
    model,
    pool,
    run,
    sent_exchange,
    started_run,
)

ID = f"{INSTALLATION}.shop.r1.uid-r1"
POOL = ObjectKey("shop", "default")
OPEN = WorkflowView(WorkflowState.OPEN, "run-1")
MISSING = WorkflowView(WorkflowState.MISSING)


def observed(obj: Json | None, *, there: tuple[Json, ...] = (agent(), model(), pool()), **facts: Any) -> Observed:
    """A run, and what of agents, models and pools is there."""
    found = known(*there)
    its_agent = found.agents("helper")
    return Observed(
        key=ObjectKey("shop", "r1"),
        settings=Settings(INSTALLATION, timedelta(hours=24)),
        now=NOW,
        run=obj,
        agent=its_agent,
        reach=find_reach(its_agent, found) if its_agent else None,
        **{"swept": True, **facts},
    )


def summary(action: Action) -> Any:
    """A status by phase, reason and what else is decisive; every other action whole."""
    if isinstance(action, WriteStatus):
        status = action.status
        succeeded = find_condition({"status": status}, ConditionType.SUCCEEDED)
        stalled = find_condition({"status": status}, ConditionType.STALLED)
        return (
            "status",
            status["phase"],
            succeeded["reason"] if succeeded else None,
            stalled["reason"] if stalled else None,
            "finishedAt" in status,
        )
    if isinstance(action, StartWorkflow):
        return ("start", action.workflow_id, action.task_queue, action.request_id)
    return action


START = ("start", ID, f"{INSTALLATION}.shop.default", "uid-r1")
WAKE = WakePool(POOL)
CANCEL = CancelWorkflow(ID, "spec.cancel was set")
STOP_WITHOUT_WORKER = TerminateWorkflow(ID, "its pool has no worker to end it")
REPORT = contract.RunReport(
    seq=2,
    run_id="run-1",
    task_queue="q",
    phase="Failed",
    reason="Timeout",
    message="out of time",
    agent="helper",
    agents=[],
    started_at=at(),
    finished_at=at(),
)


FROM_MAP = agent(instructionsFrom={"configMapKeyRef": {"name": "prompts", "key": "helper"}})
REFUNDS = [{"name": "refunds", "agentRef": {"name": "refunds"}}]


def chain(count: int, **spec: Any) -> list[Json]:
    """So many agents, each of which calls the next."""
    names = ["helper", *(f"a{number}" for number in range(1, count))]
    following = [*names[1:], names[0]]
    return [
        agent(name, tools=[{"name": "next", "agentRef": {"name": other}}], **spec)
        for name, other in zip(names, following, strict=True)
    ]


@pytest.mark.parametrize(
    ("given", "actions"),
    [
        pytest.param(observed(run()), [WAKE, START], id="a new run wakes its pool and is started"),
        pytest.param(
            observed(run(), there=(agent(), model())),
            [WAKE, START],
            id="the default pool is made, so nothing waits for it",
        ),
        pytest.param(
            observed(run(), there=(agent(poolRef={"name": "gpu"}), model(), pool("gpu"))),
            [WakePool(ObjectKey("shop", "gpu")), ("start", ID, f"{INSTALLATION}.shop.gpu", "uid-r1")],
            id="the agent's pool is the workflow's queue",
        ),
        pytest.param(
            observed(run(), there=()),
            [("status", "Pending", "AgentNotFound", None, False)],
            id="without its agent a run waits",
        ),
        pytest.param(
            observed(run(), there=(agent(), pool())),
            [("status", "Pending", "ModelNotFound", None, False)],
            id="without the agent's model it waits",
        ),
        pytest.param(
            observed(run(), there=(agent(poolRef={"name": "gpu"}), model())),
            [("status", "Pending", "PoolNotFound", None, False)],
            id="without the agent's pool it waits",
        ),
        pytest.param(
            observed(run(), there=(*chain(64, instructions="x" * 32768), model())),
            [("status", "Failed", "InvalidSpec", "InvalidSpec", True)],
            id="a snapshot that is too large fails for good",
        ),
        pytest.param(
            observed(run(), there=(*chain(contract.SNAPSHOT_MAX_AGENTS + 1), model())),
            [("status", "Failed", "InvalidSpec", "InvalidSpec", True)],
            id="one of too many agents, too",
        ),
        pytest.param(
            observed(
                run(), there=(FROM_MAP, model()), config_maps={"prompts": config_map("prompts", helper="x" * 32769)}
            ),
            [("status", "Pending", "InvalidSpec", None, False)],
            id="instructions in a ConfigMap that are too long may be mended",
        ),
        *(
            pytest.param(
                observed(run(), there=(*there, model())),
                [("status", "Pending", "InvalidSpec", None, False)],
                id=f"{what} may be mended",
            )
            for what, there in {
                "an agent that is not valid": (agent(instructions="{% x %}"),),
                "one that it reaches": (agent(tools=REFUNDS), agent("refunds", output={"schema": {"type": "string"}})),
            }.items()
        ),
        pytest.param(
            observed(run(), there=(FROM_MAP, model()), config_maps={"prompts": None}),
            [("status", "Pending", "ConfigMapNotFound", None, False)],
            id="without the ConfigMap of the instructions it waits",
        ),
        pytest.param(
            observed(run(), there=(FROM_MAP, model()), config_maps={"prompts": config_map("prompts", helper="Hi")}),
            [WAKE, START],
            id="with it, it starts",
        ),
        pytest.param(
            observed(run(), there=(agent(tools=REFUNDS), model())),
            [("status", "Pending", "AgentNotFound", None, False)],
            id="without an agent in reach it waits",
        ),
        pytest.param(
            observed(
                run(), there=(agent(tools=REFUNDS), agent("refunds", poolRef={"name": "gpu"}), model(), pool("gpu"))
            ),
            [WAKE, WakePool(ObjectKey("shop", "gpu")), START],
            id="every pool in reach is woken",
        ),
        pytest.param(
            observed(run(), workflow=OPEN),
            [("status", "Running", "Running", None, False)],
            id="a workflow that is there is noted",
        ),
        pytest.param(
            observed(run(), workflow=OPEN, there=()),
            [],
            id="a start that was not noted is left to the report when the agent is gone",
        ),
        pytest.param(observed(started_run()), [], id="a running run is left alone"),
        pytest.param(
            observed(started_run(), there=()),
            [],
            id="a running run needs its agent no more",
        ),
        pytest.param(
            observed(run(cancel=True), workflow=MISSING),
            [("status", "Cancelled", "Cancelled", "Cancelled", True)],
            id="cancelled before it was started: it says so and is over",
        ),
        pytest.param(
            observed(run(cancel=True), workflow=OPEN),
            [CANCEL, WAKE],
            id="cancelled after a start that was not noted: the workflow is asked, a worker hears it",
        ),
        pytest.param(observed(started_run(cancel=True)), [CANCEL, WAKE], id="cancelled while running: the same"),
        pytest.param(observed(started_run(cancel=True), cancel_sent=NOW), [], id="a cancel is sent once"),
        pytest.param(
            observed(started_run(), has_worker=False),
            [("status", "Running", "WorkerMissing", None, False)],
            id="without a worker it says so",
        ),
        pytest.param(
            replace(observed(started_run(), has_worker=False), now=parse_timestamp(LONG_AGO) + timedelta(seconds=5)),
            [],
            id="a worker that is just being started is waited for",
        ),
        pytest.param(observed(started_run(seq=1), has_worker=False), [], id="what a report said is not written over"),
        pytest.param(
            observed(started_run(seq=1, limits={"timeout": "10m"}), has_worker=False),
            [STOP_WITHOUT_WORKER, ("status", "Failed", "Timeout", "Timeout", True)],
            id="without a worker nobody else sees its timeout pass",
        ),
        pytest.param(
            observed(started_run(seq=1, limits={"timeout": "10m"}), has_worker=False, waited=timedelta(hours=1)),
            [],
            id="the time that humans took does not count",
        ),
        pytest.param(
            observed(awaiting_run(limits={"timeout": "10m"}), has_worker=False),
            [],
            id="while it awaits approval it needs no worker, and its clock stands still",
        ),
        pytest.param(
            observed(
                awaiting_run(limits={"timeout": "10m"}), has_worker=False, awake_since=NOW - timedelta(seconds=10)
            ),
            [("status", "AwaitingApproval", "WorkerMissing", None, False)],
            id="decided, and no worker comes to act on it: it says so, and its clock still stands",
        ),
        pytest.param(
            observed(awaiting_run(), has_worker=False, awake_since=NOW - timedelta(seconds=9)),
            [],
            id="decided just now: a worker is waited for",
        ),
        pytest.param(observed(awaiting_run(), awake_since=NOW - timedelta(hours=1)), [], id="decided, with a worker"),
        pytest.param(
            observed(awaiting_run(limits={"timeout": "10m"}), problem="it raises"),
            [("status", "AwaitingApproval", "Running", "WorkflowTaskFailing", False)],
            id="so it does where the workflow's code fails",
        ),
        pytest.param(observed(awaiting_run(cancel=True), has_worker=False), [CANCEL, WAKE], id="it can be cancelled"),
        pytest.param(
            observed(awaiting_run(cancel=True), has_worker=False, cancel_sent=NOW - timedelta(minutes=1)),
            [STOP_WITHOUT_WORKER, ("status", "Cancelled", "Cancelled", "Cancelled", True)],
            id="even if no worker comes for it",
        ),
        pytest.param(
            observed(started_run(limits={"timeout": "10m"})),
            [],
            id="with a worker the timeout is the workflow's affair",
        ),
        pytest.param(
            observed(started_run(cancel=True), has_worker=False, cancel_sent=NOW),
            [],
            id="a worker may still come for a cancel",
        ),
        pytest.param(
            observed(started_run(cancel=True), has_worker=False, cancel_sent=NOW - timedelta(minutes=1)),
            [STOP_WITHOUT_WORKER, ("status", "Cancelled", "Cancelled", "Cancelled", True)],
            id="a cancel that no worker came for is carried out",
        ),
        pytest.param(
            observed(started_run(), workflow=replace(OPEN, state=WorkflowState.TERMINATED, message="by hand")),
            [("status", "Failed", "Terminated", "Terminated", True)],
            id="terminated by somebody",
        ),
        pytest.param(
            observed(started_run(), workflow=replace(OPEN, state=WorkflowState.CANCELED)),
            [("status", "Cancelled", "Cancelled", "Cancelled", True)],
            id="cancelled in Temporal without a report",
        ),
        pytest.param(
            observed(started_run(), workflow=replace(OPEN, state=WorkflowState.COMPLETED)),
            [("status", "Failed", "WorkflowFailed", "WorkflowFailed", True)],
            id="completed without a report is not a success",
        ),
        pytest.param(
            observed(started_run(), workflow=replace(OPEN, state=WorkflowState.FAILED, report=REPORT)),
            [("status", "Failed", "Timeout", "Timeout", True)],
            id="the last report in a failure's details counts",
        ),
        pytest.param(
            observed(started_run(seq=5), workflow=replace(OPEN, state=WorkflowState.FAILED, report=REPORT)),
            [("status", "Failed", "WorkflowFailed", "WorkflowFailed", True)],
            id="a report older than the status does not",
        ),
        pytest.param(
            observed(run(), workflow=replace(OPEN, state=WorkflowState.TIMED_OUT)),
            [("status", "Failed", "WorkflowFailed", "WorkflowFailed", True)],
            id="started, ended, and nothing noted: it is never started again",
        ),
        pytest.param(observed(started_run(), workflow=MISSING), [], id="not found once is not lost"),
        pytest.param(
            observed(started_run(), workflow=MISSING, was_missing=True),
            [("status", "Failed", "WorkflowLost", "WorkflowLost", True)],
            id="not found twice is lost",
        ),
        pytest.param(
            observed(started_run(limits={"timeout": "2h"}), problem="cause=x"),
            [("status", "Running", "Running", "WorkflowTaskFailing", False)],
            id="a workflow whose code fails is stalled",
        ),
        pytest.param(
            observed(started_run(limits={"timeout": "40m"}), problem="cause=x"),
            [
                TerminateWorkflow(ID, "its code fails, past its timeout"),
                ("status", "Failed", "WorkflowTaskFailing", "WorkflowTaskFailing", True),
            ],
            id="ten minutes past its timeout it is given up",
        ),
        pytest.param(
            observed(None, gone=frozenset({"uid-r1"})),
            [TerminateWorkflow(ID, "the AgentRun was deleted")],
            id="a deleted run's workflow is terminated",
        ),
        pytest.param(observed(None), [], id="a run nobody knows is nothing"),
        pytest.param(
            observed(run(), gone=frozenset({"old"})),
            [TerminateWorkflow(f"{INSTALLATION}.shop.r1.old", "the AgentRun was deleted"), WAKE, START],
            id="deleted and made anew: the old workflow ends, the new one starts",
        ),
        pytest.param(
            observed(finished_run(), gone=frozenset({"uid-r1"})),
            [],
            id="a run that ends is sent neither cancel nor terminate",
        ),
        pytest.param(observed(finished_run(cancel=True)), [], id="a cancel after the end changes nothing"),
        pytest.param(
            observed(run(metadata={"deletionTimestamp": at()})), [], id="a run that is being deleted is not started"
        ),
        pytest.param(
            observed(started_run(metadata={"deletionTimestamp": at()})),
            [TerminateWorkflow(ID, "the AgentRun is being deleted")],
            id="a running run that is being deleted is stopped",
        ),
        pytest.param(
            observed(finished_run(ago=timedelta(minutes=6), ttlAfterFinished="5m")),
            [DeleteRun("uid-r1", "10")],
            id="deleted when its own time is over",
        ),
        pytest.param(
            observed(finished_run(ago=timedelta(minutes=6), ttlAfterFinished="5m"), is_firing=True),
            [],
            id="not before its schedule's firing is over: it would be created again",
        ),
        pytest.param(
            observed(finished_run(ago=timedelta(hours=25), metadata={"generateName": "r"})),
            [DeleteRun("uid-r1", "10")],
            id="a generated name has the operator's time to live",
        ),
        pytest.param(
            observed(
                finished_run(ago=timedelta(hours=25), metadata={"ownerReferences": [{"uid": "o", "controller": True}]})
            ),
            [DeleteRun("uid-r1", "10")],
            id="an owned run has it, too",
        ),
        pytest.param(
            observed(
                finished_run(
                    ago=timedelta(days=900),
                    metadata={
                        "ownerReferences": [{"kind": "AgentSchedule", "name": "n", "uid": "o", "controller": True}]
                    },
                )
            ),
            [],
            id="a schedule's run stays as long as its runHistory says",
        ),
        pytest.param(
            observed(finished_run(ago=timedelta(days=900))),
            [],
            id="a run with a name of its own is declared, and stays",
        ),
    ],
)
def test_plan(given: Observed, actions: list[Any]) -> None:
    """Also: planning twice gives equal plans."""
    assert [summary(action) for action in plan(given).actions] == actions
    assert plan(given) == plan(given)


def test_a_finished_run_is_looked_at_again_when_its_time_is_over() -> None:
    given = observed(finished_run(ago=timedelta(minutes=2), ttlAfterFinished="5m"))
    assert plan(given) == Plan(requeue_after=180.0)


FIRED = contract.scheduled_run_name("nightly", "uid-nightly", NOW)
OWNED = {"ownerReferences": [{"kind": "AgentSchedule", "name": "nightly", "uid": "uid-nightly", "controller": True}]}


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        pytest.param(
            finished_run(FIRED, ago=timedelta(minutes=6), ttlAfterFinished="5m", metadata=OWNED), True, id="over"
        ),
        pytest.param(
            finished_run(FIRED, ago=timedelta(minutes=4), ttlAfterFinished="5m", metadata=OWNED), False, id="not yet"
        ),
        pytest.param(finished_run(FIRED, ago=timedelta(days=9), metadata=OWNED), False, id="it stays"),
        pytest.param(
            finished_run(FIRED, ago=timedelta(minutes=6), ttlAfterFinished="5m"), False, id="no schedule created it"
        ),
        pytest.param(started_run(FIRED, ttlAfterFinished="5m", metadata=OWNED), False, id="unfinished"),
    ],
)
def test_the_firing_is_asked_for_when_a_run_is_about_to_be_deleted(obj: Json, expected: bool) -> None:
    assert needs_firing(observed(obj)) == expected
    firing = plan(observed(obj, is_firing=True))
    assert not any(isinstance(action, DeleteRun) for action in firing.actions)
    assert not expected or firing.requeue_after == FIRING_SECONDS


def test_the_second_look_for_a_lost_workflow_comes_a_minute_later() -> None:
    assert plan(observed(started_run(), workflow=MISSING)) == Plan(requeue_after=SECOND_LOOK_SECONDS)


def test_stalled_goes_when_the_code_works_again_and_not_before_a_sweep_has_looked() -> None:
    stalled = observed(started_run(limits={"timeout": "2h"}), problem="cause=x")
    [write] = plan(stalled).actions
    assert isinstance(write, WriteStatus)
    run_now = {**started_run(), "status": write.status}
    assert plan(observed(run_now, swept=False)) == Plan()
    assert [summary(action) for action in plan(observed(run_now)).actions] == [
        ("status", "Running", "Running", None, False)
    ]


def test_each_written_status_is_a_fixpoint() -> None:
    """Planning again with the status just written writes the same status, so no second write."""
    for given in (
        observed(run(), there=()),
        observed(run(), there=(agent(),)),
        observed(run(), there=(FROM_MAP, model()), config_maps={"prompts": None}),
        observed(run(), there=(agent(instructions="{% x %}"), model())),
        observed(started_run(limits={"timeout": "2h"}), problem="cause=x"),
    ):
        [write] = plan(given).actions
        assert isinstance(write, WriteStatus)
        assert given.run is not None
        later = replace(given, run={**given.run, "status": write.status}, now=NOW + timedelta(minutes=1))
        assert plan(later).actions == (write,)


@pytest.mark.parametrize(
    ("obj", "cancel_sent", "expected"),
    [
        pytest.param(run(), None, False, id="a new run is just started"),
        pytest.param(run(cancel=True), None, True, id="a cancelled one may have been started unnoticed"),
        pytest.param(run(cancel=True), NOW, False, id="once Temporal has taken the cancel it is known"),
        pytest.param(started_run(cancel=True), None, False, id="a started one is known to be"),
    ],
)
def test_temporal_is_asked_first_only_where_it_must_be(obj: Json, cancel_sent: datetime | None, expected: bool) -> None:
    assert needs_look(obj, cancel_sent) is expected


EMBEDDING = {"modelRef": {"name": "claude"}}


@pytest.mark.parametrize(
    ("there", "message"),
    [
        pytest.param(
            (agent(tools=REFUNDS), agent("refunds", toolChoice={"mode": "Required"})),
            "Agent refunds: toolChoice has mode Required, and there are neither tools nor hand-offs. "
            "The run starts when that is mended",
            id="an agent in reach is named",
        ),
        pytest.param(
            (
                agent(retrieval={"retriever": "handbook"}),
                pool(retrievers=[{"name": "handbook", "qdrant": {"collection": "c", "embedding": EMBEDDING}}]),
                model("claude", provider="Anthropic"),
            ),
            "Agent helper: AgentModel claude of retriever handbook has provider Anthropic, which has no embeddings; "
            "name one of OpenAI or AzureOpenAI. The run starts when that is mended",
            id="a model that makes no vectors",
        ),
    ],
)
def test_a_run_repeats_what_is_wrong_with_an_agent(there: tuple[Json, ...], message: str) -> None:
    [write] = plan(observed(run(), there=(*there, model()))).actions
    assert isinstance(write, WriteStatus)
    succeeded = find_condition({"status": write.status}, ConditionType.SUCCEEDED)
    assert succeeded is not None
    assert (succeeded["reason"], succeeded["message"]) == ("InvalidSpec", message)


def test_a_config_map_that_is_missing_or_wrong_is_read_again_since_nothing_watches_it() -> None:
    for found in (None, config_map("prompts", helper="{% x %}")):
        given = observed(run(), there=(FROM_MAP, model()), config_maps={"prompts": found})
        assert plan(given).requeue_after == 10.0
    assert plan(observed(run(), there=(agent(instructions="{% x %}"), model()))).requeue_after is None
    assert plan(observed(run(), there=())).requeue_after is None


@pytest.mark.parametrize(
    ("there", "agents"),
    [
        pytest.param((agent(), model()), [("helper", "default")], id="a plain agent"),
        pytest.param(
            (agent(tools=REFUNDS), agent("refunds", poolRef={"name": "gpu"}), model(), pool("gpu")),
            [("helper", "default"), ("refunds", "gpu")],
            id="every agent in reach, with its pool",
        ),
        pytest.param((agent(tools=REFUNDS),), [("helper", "default")], id="at least its own, if others are gone since"),
    ],
)
def test_the_first_status_names_agents_and_pools(there: tuple[Json, ...], agents: list[tuple[str, str]]) -> None:
    [write] = plan(observed(run(), there=there, workflow=OPEN)).actions
    assert isinstance(write, WriteStatus)
    assert [(found["name"], found["pool"]) for found in write.status["agents"]] == agents


def test_a_run_that_has_a_worker_again_no_longer_says_otherwise() -> None:
    [waiting] = plan(observed(started_run(), has_worker=False)).actions
    assert isinstance(waiting, WriteStatus)
    obj = started_run() | {"status": waiting.status}
    assert plan(observed(obj, has_worker=False)).actions == (waiting,)
    [running] = plan(observed(obj)).actions
    assert summary(running) == ("status", "Running", "Running", None, False)
    assert plan(observed(obj | {"status": running.status})).actions == ()  # type: ignore[union-attr]


def test_a_decision_that_nobody_acts_on_is_told_with_what_the_pool_says_until_a_worker_is_there() -> None:
    asking = awaiting_run("r1", "r1-a", "r1-b")
    awake: dict[str, Any] = {
        "awake_since": NOW - timedelta(minutes=1),
        "pool_message": "Deployment dalang-default is not this pool's",
    }
    [waiting] = plan(observed(asking, has_worker=False, **awake)).actions
    assert isinstance(waiting, WriteStatus)
    for type_ in (ConditionType.SUCCEEDED, ConditionType.READY):
        said = find_condition({"status": waiting.status}, type_)
        assert said is not None
        assert said["reason"] == "WorkerMissing"
        assert said["message"] == (
            "It has been decided, or its time is over, and a worker is needed to go on. "
            "Pool default has no worker: Deployment dalang-default is not this pool's"
        )
    obj = asking | {"status": waiting.status}
    assert plan(observed(obj, has_worker=False, **awake)).actions == (waiting,), "an equal status is not written"
    [again] = plan(observed(obj, **awake)).actions
    assert isinstance(again, WriteStatus)
    succeeded = find_condition({"status": again.status}, ConditionType.SUCCEEDED)
    assert succeeded is not None
    assert (succeeded["reason"], succeeded["message"]) == ("AwaitingApproval", "Charge?; Charge?")
    assert plan(observed(asking | {"status": again.status}, **awake)).actions == ()
    assert plan(observed(asking, has_worker=False, awake_since=NOW - timedelta(seconds=4))).requeue_after == 6.0


@pytest.mark.parametrize("has_worker", [True, False])
def test_that_somebody_has_taken_the_name_of_its_approval_stays_said(has_worker: bool) -> None:
    asking = awaiting_run("r1", "r1-a")
    taken = asking | {"status": name_taken_status(asking, "AgentApproval r1-a is not what this run asks", NOW)}
    assert plan(observed(taken, has_worker=has_worker, awake_since=NOW - timedelta(minutes=1))) == Plan()


def has_asked(**spec: Any) -> Json:
    obj = started_run(seq=3, **spec)
    obj["status"]["approvals"] = [{"name": "r1-a", "decision": "Approve"}]
    return obj


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(observed(has_asked(limits={"timeout": "10m"}), has_worker=False), True, id="it seems out of time"),
        pytest.param(observed(has_asked(limits={"timeout": "10m"}), problem="x"), True, id="so with failing code"),
        pytest.param(observed(has_asked(limits={"timeout": "10m"})), False, id="its workflow sees to its timeout"),
        pytest.param(observed(has_asked(limits={"timeout": "2h"}), has_worker=False), False, id="it has time left"),
        pytest.param(observed(started_run(limits={"timeout": "10m"}), has_worker=False), False, id="it never asked"),
        pytest.param(observed(awaiting_run(limits={"timeout": "10m"}), has_worker=False), False, id="its clock stands"),
    ],
)
def test_how_long_humans_took_is_asked_only_where_it_matters(given: Observed, expected: bool) -> None:
    assert needs_waited(given) is expected


def minutes_ago(minutes: int) -> str:
    return at(timedelta(minutes=-minutes))


def asked(begin: int, end: int | None) -> Json:
    """An approval that was asked so many minutes ago, and settled, or is still open."""
    settled = {"type": "Ready", "status": "True", "lastTransitionTime": minutes_ago(end or 0)}
    status = {"state": "Applied", "conditions": [settled]} if end is not None else {"state": "Pending"}
    return approval(requestedAt=minutes_ago(begin), status=status)


@pytest.mark.parametrize(
    ("approvals", "minutes"),
    [
        pytest.param([], 0, id="none"),
        pytest.param([asked(50, 40)], 10, id="one"),
        pytest.param([asked(30, 20), asked(50, 40)], 20, id="one after the other"),
        pytest.param([asked(50, 30), asked(40, 20)], 30, id="two that overlap"),
        pytest.param([asked(50, 20), asked(40, 30)], 30, id="one within another"),
        pytest.param([asked(50, 40), asked(10, None)], 20, id="one that is still open"),
    ],
)
def test_how_long_humans_took(approvals: list[Json], minutes: int) -> None:
    assert time_waited(approvals, NOW) == timedelta(minutes=minutes)


# ── In a session ───────────────────────────────────────────────────────────────────────────────────────────────────

SESSION = f"{INSTALLATION}.shop.chat.uid-chat"
NO_WORKER: dict[str, Any] = {"has_worker": False, "pool_message": "A worker is wanted and none is ready yet"}


def leave_out(reason: str, *, uid: str = "uid-r1", deleted: bool | None = None) -> LeaveOut:
    run = contract.RunIdentity(name="r1", uid=uid)
    return LeaveOut(SESSION, contract.CancelExchange(run=run, deleted=deleted), reason)


def awaiting_exchange(**spec: Any) -> Json:
    return sent_exchange(phase="AwaitingApproval", **spec)


@pytest.mark.parametrize(
    ("given", "actions"),
    [
        pytest.param(observed(exchange()), [], id="its session's reconcile sends it"),
        pytest.param(observed(exchange(cancel=True)), [], id="and ends it if it is cancelled before that"),
        pytest.param(observed(exchange(metadata={"deletionTimestamp": at()})), [], id="being deleted, not sent"),
        pytest.param(observed(sent_exchange()), [], id="under way"),
        pytest.param(observed(sent_exchange(phase="Pending"), **NO_WORKER), [], id="queued, it waits for no worker"),
        pytest.param(
            observed(sent_exchange(metadata={"deletionTimestamp": at()})),
            [leave_out("the AgentRun is being deleted", deleted=True)],
            id="being deleted: only this run is left out",
        ),
        pytest.param(
            observed(sent_exchange(cancel=True)), [leave_out("spec.cancel was set"), WAKE], id="cancelled: likewise"
        ),
        pytest.param(
            observed(sent_exchange(phase="Pending", cancel=True)),
            [leave_out("spec.cancel was set"), WAKE],
            id="also while it is queued",
        ),
        pytest.param(
            observed(awaiting_exchange(cancel=True)),
            [leave_out("spec.cancel was set"), WAKE],
            id="also while it awaits approval",
        ),
        pytest.param(observed(sent_exchange(cancel=True), cancel_sent=NOW), [], id="its session was told"),
        pytest.param(
            observed(sent_exchange(cancel=True), cancel_sent=NOW - timedelta(minutes=1), **NO_WORKER),
            [
                ("status", "Cancelled", "Cancelled", "Cancelled", True),
                leave_out("its pool has no worker to end it", deleted=True),
            ],
            id="cancelled, and no worker does it: a run left out is not reported, so that comes last",
        ),
        pytest.param(
            observed(sent_exchange(limits={"timeout": "10m"}), **NO_WORKER),
            [
                ("status", "Failed", "Timeout", "Timeout", True),
                leave_out("its pool has no worker to end it", deleted=True),
            ],
            id="its time is over, and no worker sees that: the session stays",
        ),
        pytest.param(
            observed(sent_exchange(limits={"timeout": "5h"}), there=(agent(limits={"timeout": "5h"}), model(), pool())),
            [],
            id="its time is not over",
        ),
        pytest.param(
            observed(sent_exchange(limits={"timeout": "10m"}), problem="category=WorkflowTaskFailed"),
            [
                ("status", "Failed", "WorkflowTaskFailing", "WorkflowTaskFailing", True),
                leave_out("its code fails, past its timeout", deleted=True),
            ],
            id="its session's code fails until long past its time",
        ),
        pytest.param(observed(awaiting_exchange(), **NO_WORKER), [], id="who awaits approval needs no worker"),
        pytest.param(
            observed(None, gone=frozenset({"uid-r1"}), exchanges={"uid-r1": SESSION}),
            [leave_out("the AgentRun was deleted", deleted=True)],
            id="deleted: its session leaves it out",
        ),
        pytest.param(
            observed(None, gone=frozenset({"uid-r1"}), exchanges={"uid-r1": ""}),
            [],
            id="deleted, and no session had begun",
        ),
        pytest.param(
            observed(sent_exchange(), gone=frozenset({"uid-old"}), exchanges={"uid-old": SESSION}),
            [leave_out("the AgentRun was deleted", uid="uid-old", deleted=True)],
            id="deleted and made anew",
        ),
    ],
)
def test_plan_in_a_session(given: Observed, actions: list[Any]) -> None:
    assert [summary(action) for action in plan(given).actions] == actions


def test_a_session_lowers_the_time_its_runs_have() -> None:
    given = replace(
        observed(sent_exchange(limits={"timeout": "3h"}), there=(agent(limits={"timeout": "3h"}), model(), pool())),
        **NO_WORKER,
    )
    [waits] = plan(given).actions
    assert summary(waits) == ("status", "Running", "WorkerMissing", None, False)
    lowered = replace(given, session={"spec": {"limits": {"timeout": "10m"}}})
    assert [summary(action)[1:3] for action in plan(lowered).actions[:1]] == [("Failed", "Timeout")]

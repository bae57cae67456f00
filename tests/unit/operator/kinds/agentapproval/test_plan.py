"""What is done about an AgentApproval in every state it and its run can be in."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from dalang_api.contract import ApprovalEnd, Decision
from dalang_api.v1alpha1.conditions import ConditionType
from dalang_operator.kinds.actions import WriteStatus
from dalang_operator.kinds.agentapproval.plan import (
    Action,
    AskAgain,
    DeleteApproval,
    Observed,
    Plan,
    Proof,
    Settings,
    SignalDecision,
    WakeRun,
    decision_of,
    needs_proof,
    plan,
    settled_status,
    undelivered_status,
)
from dalang_operator.kinds.agentrun.status import name_taken_status
from dalang_operator.kube.resources import Json, ObjectKey
from dalang_operator.kube.status import find_condition

from tests.build import (
    INSTALLATION,
    NOW,
    approval,
    at,
    awaiting_run,
    exchange,
    finished_run,
    sent_exchange,
    started_run,
)

ID = f"{INSTALLATION}.shop.r1.uid-r1"
CHAT = f"{INSTALLATION}.shop.chat.uid-chat"
OLD = NOW - timedelta(days=1)
PROVEN = Proof(None, OLD)
MISSING = Proof("the policy is missing. Install it: dalang admission-policies", None)
WAITS = awaiting_run("r1", "r1-a")
TAKEN = {**WAITS, "status": name_taken_status(WAITS, "taken", NOW)}
WAKE = ("wake", "default")
ASK = ("ask again", ID)
SIGNAL = ("signal", "Approve")
VETO = ("signal", "Reject")
KEPT = {"deletionTimestamp": at(), "finalizers": ["x.io/y", "z"]}
DELETING = ("status", "Pending", "Deleting")
RUN_ENDED = ("status", "Expired", "RunEnded")
DELIVERED = ("status", "Delivered", "Delivered")


def approved(**more: Any) -> Json:
    return approval(decision="Approve", decidedBy="ada", **more)


def rejected(**more: Any) -> Json:
    return approval(decision="Reject", reason="No.", decidedBy="ada", **more)


def delivered(ago: timedelta = timedelta(), **more: Any) -> Json:
    return approved(status={"state": "Delivered", "deliveredAt": at(-ago), "conditions": []}, **more)


def made(ago: timedelta) -> Json:
    return approval(metadata={"creationTimestamp": at(-ago)})


def owned_by(uid: str) -> Json:
    return {"ownerReferences": [{"kind": "AgentRun", "name": "r1", "uid": uid, "controller": True}]}


def observed(obj: Json | None, its_run: Json | None = WAITS, **facts: Any) -> Observed:
    return Observed(
        key=ObjectKey("shop", "r1-a"),
        settings=Settings(INSTALLATION, needs_proof=True),
        now=NOW,
        approval=obj,
        run=its_run,
        **{"proof": PROVEN, **facts},
    )


def summary(action: Action) -> Any:
    match action:
        case SignalDecision(_, decision):
            return ("signal", decision.decision)
        case AskAgain(workflow_id):
            return ("ask again", workflow_id)
        case WakeRun(pools):
            return ("wake", ",".join(pool.name for pool in pools))
        case WriteStatus(status):
            [ready] = [each for each in status["conditions"] if each["type"] == "Ready"]
            return ("status", status["state"], ready["reason"])
        case DeleteApproval(uid):
            return ("delete", uid)


def listed(count: int) -> Json:
    return awaiting_run("r1", *(f"r1-{number}" for number in range(count)))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(observed(approval()), [], id="undecided: nothing"),
        pytest.param(observed(approval(expiresAt=at(timedelta(hours=1)))), [], id="not expired: nothing"),
        pytest.param(observed(approval(expiresAt=at())), [WAKE], id="expired: a worker is needed for the time-out"),
        pytest.param(
            observed(approval(expiresAt=at()), started_run()),
            [ASK],
            id="expired, and the run has gone on without saying so",
        ),
        pytest.param(
            observed(approved()), [SIGNAL, WAKE, DELIVERED], id="decided: signal, wake, status, in this order"
        ),
        pytest.param(
            observed(approved(), started_run()),
            [SIGNAL, WAKE, DELIVERED],
            id="decided before the run says that it waits",
        ),
        pytest.param(observed(approved(), proof=MISSING), [("status", "Pending", "PolicyMissing")], id="no policy"),
        pytest.param(
            observed(approved(), proof=Proof(None, NOW)),
            [("delete", "uid-r1-a")],
            id="a policy younger than the approval",
        ),
        pytest.param(
            observed(approved(), proof=Proof(None, NOW - timedelta(hours=1, seconds=2))),
            [("delete", "uid-r1-a")],
            id="a policy too little older to have been enforced for certain",
        ),
        pytest.param(
            observed(approved(), proof=Proof(None, NOW - timedelta(hours=1, seconds=3))),
            [SIGNAL, WAKE, DELIVERED],
            id="a policy old enough",
        ),
        pytest.param(observed(rejected(), proof=MISSING), [VETO, WAKE, DELIVERED], id="no policy: a Reject is a veto"),
        pytest.param(
            observed(rejected(), proof=Proof(None, NOW)),
            [VETO, WAKE, DELIVERED],
            id="a policy younger than the approval: likewise",
        ),
        pytest.param(
            observed(rejected(workflowId=f"{INSTALLATION}.shop.r2.uid-r2"), proof=MISSING),
            [("status", "Pending", "InvalidSpec")],
            id="but never of another run",
        ),
        pytest.param(
            observed(approved(workflowId=f"{INSTALLATION}.shop.r2.uid-r2")),
            [("status", "Pending", "InvalidSpec")],
            id="it names another run's workflow",
        ),
        pytest.param(
            observed(approved(workflowId="other.shop.r1.uid-r1"), proof=MISSING),
            [("status", "Pending", "InvalidSpec")],
            id="another installation's, which is said first",
        ),
        pytest.param(
            observed(approved(workflowId=f"{INSTALLATION}.bank.r1.uid-r1")),
            [("status", "Pending", "InvalidSpec")],
            id="another namespace's",
        ),
        pytest.param(
            observed(approved(metadata={"ownerReferences": []}), started_run()),
            [("status", "Pending", "InvalidSpec")],
            id="no run owns it",
        ),
        pytest.param(
            observed(
                approved(workflowId=f"{INSTALLATION}.shop.r1.uid-old", metadata=owned_by("uid-old")), started_run()
            ),
            [],
            id="of an earlier run of the name: left to the garbage collector",
        ),
        pytest.param(
            observed(approval(metadata={"ownerReferences": []})),
            [ASK, WAKE],
            id="put in the place of what the run waits for: its next report finds that out",
        ),
        pytest.param(
            observed(approved(metadata={"ownerReferences": []})),
            [("status", "Pending", "InvalidSpec"), ASK, WAKE],
            id="likewise, and decided",
        ),
        pytest.param(
            observed(approval(metadata=owned_by("uid-old")), asked_again=NOW - timedelta(seconds=59)),
            [WAKE],
            id="in its place: the run was told just now",
        ),
        pytest.param(
            observed(approval(metadata=owned_by("uid-old")), TAKEN),
            [WAKE],
            id="in its place, and the run says so: it is asked no more, and its time-out may need a worker",
        ),
        pytest.param(
            observed(approval(metadata={"ownerReferences": []}), awaiting_run("r1", "r1-a", cancel=True)),
            [],
            id="in its place, and the run is being cancelled",
        ),
        pytest.param(
            observed(approved(workflowId=CHAT), sent_exchange(phase="AwaitingApproval")),
            [SIGNAL, WAKE, DELIVERED],
            id="of a run of a session: its status names the session's workflow",
        ),
        pytest.param(
            observed(approved(workflowId=CHAT), exchange()),
            [("status", "Pending", "InvalidSpec")],
            id="nothing says yet that the run was sent to that session",
        ),
        pytest.param(
            observed(approved(workflowId=CHAT), started_run()),
            [("status", "Pending", "InvalidSpec")],
            id="its run belongs to no session",
        ),
        pytest.param(observed(approved(workflowId=CHAT), None), [], id="of a run of a session that is gone"),
        pytest.param(observed(approval(), None), [], id="its run is gone"),
        pytest.param(observed(approved(), finished_run()), [RUN_ENDED], id="decided, and its run has ended"),
        pytest.param(observed(approval(), finished_run()), [RUN_ENDED], id="undecided, and its run has ended"),
        pytest.param(observed(approved(), has_no_workflow=True), [RUN_ENDED], id="Temporal has no workflow of the run"),
        pytest.param(
            observed(approved(), awaiting_run("r1", "r1-a", metadata={"deletionTimestamp": at()})),
            [],
            id="its run is being deleted",
        ),
        pytest.param(observed(delivered()), [WAKE], id="delivered, and the run still says that it waits"),
        pytest.param(
            observed(delivered(), awaiting_run("r1", "r1-b")), [], id="delivered, and the run waits for others"
        ),
        pytest.param(
            observed(delivered(), listed(16)), [WAKE], id="delivered, and the run waits for more than it lists"
        ),
        pytest.param(
            observed(delivered(timedelta(seconds=59))), [WAKE], id="delivered just now: the run is about to tell"
        ),
        pytest.param(
            observed(delivered(timedelta(minutes=1))),
            [ASK, WAKE],
            id="delivered, and the run has not told for a minute",
        ),
        pytest.param(
            observed(delivered(timedelta(minutes=1)), started_run()), [ASK], id="likewise where it has gone on already"
        ),
        pytest.param(
            observed(delivered(timedelta(minutes=1)), listed(16)), [ASK, WAKE], id="or waits for more than it lists"
        ),
        pytest.param(
            observed(delivered(timedelta(minutes=1)), has_worker=False), [WAKE], id="without a worker it cannot tell"
        ),
        pytest.param(
            observed(made(timedelta(seconds=59)), started_run()),
            [],
            id="made just now: its report is about to be written",
        ),
        pytest.param(
            observed(made(timedelta(minutes=1)), started_run()), [ASK], id="the run does not say that it waits for it"
        ),
        pytest.param(
            observed(made(timedelta(minutes=1)), awaiting_run("r1", "r1-b")),
            [ASK],
            id="likewise while it waits for others",
        ),
        pytest.param(
            observed(made(timedelta(minutes=1)), listed(16)), [], id="it may well wait for more than it lists"
        ),
        pytest.param(observed(delivered(), finished_run()), [RUN_ENDED], id="delivered, and the run ended without it"),
        *(
            pytest.param(observed(approved(status={"state": state}), None), [], id=f"{state} is final")
            for state in ("Applied", "Expired", "Superseded")
        ),
        pytest.param(observed(approved(metadata={"deletionTimestamp": at()})), [], id="it is being deleted"),
        pytest.param(observed(approval(metadata=KEPT)), [DELETING], id="and a finalizer keeps it"),
        pytest.param(observed(approved(metadata=KEPT)), [DELETING], id="decided: nothing is delivered"),
        pytest.param(observed(rejected(metadata=KEPT), proof=MISSING), [DELETING], id="nor is a veto"),
        pytest.param(
            observed(approval(expiresAt=at(), metadata=KEPT)),
            [DELETING, WAKE],
            id="kept and expired: a worker is needed for the time-out",
        ),
        pytest.param(observed(approval(metadata=KEPT), started_run()), [ASK], id="kept, and the run has gone on"),
        pytest.param(observed(approval(metadata=KEPT), finished_run()), [RUN_ENDED], id="kept, and the run has ended"),
        pytest.param(
            observed(approval(metadata=KEPT), awaiting_run("r1", "r1-a", metadata={"deletionTimestamp": at()})),
            [],
            id="kept, and the run is being deleted",
        ),
        pytest.param(
            observed(delivered(timedelta(minutes=1), metadata=KEPT)),
            [ASK, WAKE],
            id="kept, and delivered before: the run tells what came of it",
        ),
        pytest.param(
            observed(approval(), was_replaced=True), [ASK, WAKE], id="put there anew: the run's next report looks at it"
        ),
        pytest.param(
            observed(approved(), was_replaced=True),
            [ASK, WAKE, SIGNAL, WAKE, DELIVERED],
            id="likewise, and decided: it counts if it is what the run asks",
        ),
        pytest.param(
            observed(made(timedelta()), started_run(), was_replaced=True), [], id="anew, and the run waits for nothing"
        ),
        pytest.param(observed(None), [ASK, WAKE], id="deleted while the run waits for it"),
        pytest.param(observed(None, None), [], id="deleted with its run"),
        pytest.param(observed(None, finished_run()), [], id="deleted after its run ended"),
        pytest.param(observed(None, awaiting_run("r1", "r1-b")), [], id="deleted, and the run does not wait for it"),
        pytest.param(observed(None, listed(16)), [ASK, WAKE], id="deleted, and the run may wait for it"),
        pytest.param(
            observed(None, awaiting_run("r1", "r1-a", cancel=True)), [], id="deleted, and the run is being cancelled"
        ),
        pytest.param(
            observed(None, awaiting_run("r1", "r1-a", metadata={"deletionTimestamp": at()})),
            [],
            id="deleted, and the run is being deleted",
        ),
        pytest.param(
            observed(None, asked_again=NOW - timedelta(seconds=59)), [WAKE], id="deleted, and the run was told just now"
        ),
        pytest.param(
            observed(None, asked_again=NOW - timedelta(seconds=60)), [ASK, WAKE], id="told a minute ago: told again"
        ),
        pytest.param(
            observed(None, asked_again=NOW - timedelta(hours=1), has_worker=False),
            [WAKE],
            id="told, and no worker is there to hear it: once is enough",
        ),
    ],
)
def test_what_is_done(given: Observed, expected: list[Any]) -> None:
    steps = plan(given)
    assert [summary(action) for action in steps.actions] == expected
    assert plan(given) == steps


def test_without_proof_required_nobody_looks_for_policies() -> None:
    off = Settings(INSTALLATION, needs_proof=False)
    given = replace(observed(approved(), proof=None), settings=off)
    assert not needs_proof(off, approved())
    assert [summary(action) for action in plan(given).actions] == [SIGNAL, WAKE, DELIVERED]
    assert [each["type"] for each in status_after(given)["conditions"]] == ["Ready"]


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        pytest.param(approved(), True, id="decided and not delivered"),
        pytest.param(approval(), False, id="undecided"),
        pytest.param(delivered(), False, id="delivered"),
        pytest.param(None, False, id="gone"),
    ],
)
def test_policies_are_read_only_to_deliver(obj: Json | None, expected: bool) -> None:
    assert needs_proof(Settings(INSTALLATION, needs_proof=True), obj) is expected


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        pytest.param(observed(approval()), None, id="without end nothing is due"),
        pytest.param(observed(approval(expiresAt=at(timedelta(hours=1)))), 3600.0, id="at its expiry"),
        pytest.param(observed(approved(), proof=MISSING), 10.0, id="nothing watches the policies"),
        pytest.param(observed(None), 60.0, id="a report that got lost is asked for again"),
        pytest.param(observed(delivered()), 60.0, id="delivered: in a minute the run should have told"),
        pytest.param(observed(delivered(timedelta(minutes=1))), 60.0, id="asked after a minute: a minute later"),
        pytest.param(observed(delivered(timedelta(minutes=8))), 480.0, id="and so on: the interval doubles"),
        pytest.param(
            observed(delivered(timedelta(minutes=9)), last_asked=NOW - timedelta(minutes=1)),
            420.0,
            id="asked a minute ago, after eight: after another seven",
        ),
        pytest.param(observed(delivered(timedelta(days=9))), 3600.0, id="an hour at the most"),
        pytest.param(
            observed(delivered(timedelta(days=9)), has_worker=False), 60.0, id="no worker: soon, nothing is sent"
        ),
    ],
)
def test_when_to_look_again(given: Observed, seconds: float | None) -> None:
    assert plan(given).requeue_after == seconds


def test_the_signal_has_all_of_the_decision() -> None:
    obj = approved(reason="Known customer", override={"amount": 99})
    [signal, *_] = plan(observed(obj)).actions
    decision = Decision(
        run_uid="uid-r1",
        name="r1-a",
        uid="uid-r1-a",
        digest="sha256:0",
        decision="Approve",
        reason="Known customer",
        override={"amount": 99},
        decided_by="ada",
    )
    assert signal == SignalDecision(ID, decision)


def test_an_unproven_reject_stops_the_call_in_nobodys_name() -> None:
    given = observed(rejected(), proof=MISSING)
    [signal, *_] = plan(given).actions
    assert isinstance(signal, SignalDecision)
    assert (signal.decision.decision, signal.decision.decided_by, signal.decision.reason) == ("Reject", None, None)
    status = status_after(given)
    proven = find_condition({"status": status}, ConditionType.PROVEN)
    assert proven is not None
    assert (status["state"], proven["status"], proven["reason"]) == ("Delivered", "False", "PolicyMissing")
    assert "decidedBy" not in status
    assert proven["message"].startswith("A Reject is delivered even so, in nobody's name.")
    assert proven["message"].endswith("Install it: dalang admission-policies")
    later = rejected(status=status)
    assert plan(observed(later)).actions == (WakeRun((ObjectKey("shop", "default"),)),), (
        "policies prove nothing afterwards"
    )
    applied = settled_status(later, ApprovalEnd(name="r1-a", uid="uid-r1-a", state="Applied", decision="Reject"), NOW)
    assert "ada" not in str(applied["conditions"])


def status_after(given: Observed) -> Json:
    [status] = [action.status for action in plan(given).actions if isinstance(action, WriteStatus)]
    return status


def test_a_delivered_decision_says_when_and_that_it_is_proven() -> None:
    status = status_after(observed(approved()))
    assert (status["deliveredAt"], status["decidedBy"]) == (at(), "ada")
    assert [(each["type"], each["status"], each["reason"]) for each in status["conditions"]] == [
        ("Proven", "True", "PolicyFound"),
        ("Ready", "Unknown", "Delivered"),
    ]


def test_an_unproven_decision_says_which_command_mends_it_and_goes_on_when_it_has_run() -> None:
    status = status_after(observed(approved(), proof=MISSING))
    obj = approved(status=status)
    proven = find_condition(obj, ConditionType.PROVEN)
    assert proven is not None
    assert (proven["status"], proven["reason"]) == ("False", "PolicyMissing")
    assert "dalang admission-policies" in proven["message"]
    assert status_after(observed(obj, proof=MISSING)) == status, "nothing is written twice"
    assert status_after(observed(obj))["state"] == "Delivered"


@pytest.mark.parametrize(
    ("obj", "said"),
    [
        pytest.param(approval(metadata=KEPT), "It is being deleted", id="undecided"),
        pytest.param(
            approved(metadata=KEPT), "Approve is not delivered: it is being deleted", id="decided all the same"
        ),
    ],
)
def test_one_that_is_kept_from_going_says_what_keeps_it_and_which_command_lets_it_go(obj: Json, said: str) -> None:
    [ready] = status_after(observed(obj))["conditions"]
    assert ready["message"] == (
        f"{said}, and its run asks anew once it is gone. Finalizers keep it (x.io/y, z): "
        """kubectl patch agentapproval r1-a -n shop --type merge -p '{"metadata":{"finalizers":null}}'"""
    )
    later = {**obj, "status": status_after(observed(obj))}
    assert status_after(observed(later)) == later["status"], "nothing is written twice"


def test_a_decision_in_what_no_run_asks_with_says_which_command_makes_room_for_the_runs_own() -> None:
    [ready] = status_after(observed(approved(metadata={"ownerReferences": []})))["conditions"]
    assert ready["message"] == (
        "workflowId is not that of AgentRun r1, or that does not own this object. No run asks with it: "
        "kubectl delete agentapproval r1-a -n shop"
    )


def test_temporal_away_is_said() -> None:
    status = undelivered_status(approved(), decision_of(approved()), "Temporal cannot be reached", NOW)
    assert status["state"] == "Pending"
    assert status["conditions"][0]["message"] == (
        "Approve by ada is not delivered yet and tried again. Temporal cannot be reached"
    )


def end(state: str, decision: str | None = None, by: str | None = None, **more: str | None) -> ApprovalEnd:
    fields = {"name": "r1-a", "uid": "uid-r1-a", "state": state, "decision": decision, "decided_by": by, **more}
    return ApprovalEnd.model_validate(fields)


@pytest.mark.parametrize(
    ("obj", "told", "state", "expected"),
    [
        pytest.param(
            delivered(),
            end("Applied", "Approve", "ada"),
            "Applied",
            ("True", "Applied", "Approve by ada"),
            id="applied",
        ),
        pytest.param(
            approval(), end("Applied", "Reject"), "Applied", ("True", "Applied", "Reject"), id="by what the run says"
        ),
        pytest.param(
            approval(), end("Expired"), "Expired", ("False", "Expired", "Nobody decided in time"), id="expired"
        ),
        pytest.param(
            delivered(), end("Expired"), "Expired", ("False", "TooLate", "start another run"), id="late: delivered"
        ),
        pytest.param(
            delivered(),
            end("Expired", note="Nobody decided in time, which approves it"),
            "Expired",
            (
                "False",
                "TooLate",
                "Approve by ada came too late. Nobody decided in time, which approves it. If it is still wanted, start",
            ),
            id="late: it says what the run did instead",
        ),
        pytest.param(
            approved(),
            end("Expired"),
            "Expired",
            ("False", "TooLate", "Approve by ada came too late"),
            id="late: decided between the time-out and this report",
        ),
        pytest.param(
            delivered(),
            end("Applied", "Reject", "bob"),
            "Expired",
            ("False", "Conflicting", "the run had acted on Reject by bob already"),
            id="conflicting: another decision came first",
        ),
        pytest.param(
            delivered(),
            end("Applied", "Approve", "ada", uid="uid-old"),
            "Expired",
            ("False", "UnknownRequest", "another AgentApproval of this name"),
            id="unknown: the run had asked with an object that is gone, even if it was decided alike",
        ),
        pytest.param(
            approval(),
            end("Expired", uid="uid-old"),
            "Expired",
            ("False", "UnknownRequest", "Nobody need decide this"),
            id="unknown, and undecided",
        ),
        pytest.param(
            delivered(),
            end("Applied", "Approve", uid=None),
            "Applied",
            ("True", "Applied", ""),
            id="the run knows no uid",
        ),
        pytest.param(
            approval(), end("Superseded"), "Superseded", ("False", "Superseded", "decide that one"), id="superseded"
        ),
        pytest.param(
            delivered(),
            end("Applied", "Approve").model_copy(update={"note": "Not run: it does not fit"}),
            "Applied",
            ("True", "Applied", "The run acted on it: Approve by ada. Not run: it does not fit"),
            id="applied, and not run",
        ),
        pytest.param(
            approval(),
            end("Expired").model_copy(update={"note": "Approved by onTimeout"}),
            "Expired",
            ("False", "Expired", "Approved by onTimeout"),
            id="approved by nobody",
        ),
        pytest.param(
            delivered(),
            end("Superseded", "Approve").model_copy(update={"note": "The changed answer did not fit"}),
            "Superseded",
            ("False", "Superseded", "The changed answer did not fit; the run asks anew, decide that one"),
            id="superseded, since the decision could not be used",
        ),
    ],
)
def test_what_the_run_says_of_it(obj: Json, told: ApprovalEnd, state: str, expected: tuple[str, str, str]) -> None:
    status = settled_status(obj, told, NOW)
    [ready] = [each for each in status["conditions"] if each["type"] == "Ready"]
    assert status["state"] == state
    assert (ready["status"], ready["reason"]) == expected[:2]
    assert expected[2] in ready["message"]
    assert plan(observed(obj | {"status": status})) == Plan(), "a duplicate comes to nothing"


@pytest.mark.parametrize(
    ("obj", "told", "name"),
    [
        pytest.param(approved(), end("Applied", "Approve", "ada"), "ada", id="who sent it died before it wrote that"),
        pytest.param(approved(), end("Applied", "Approve"), None, id="the run was told of nobody"),
        pytest.param(approved(), end("Applied", "Reject", "bob"), None, id="the run acted on another decision"),
        pytest.param(approved(), end("Expired"), None, id="the run did not act on it"),
    ],
)
def test_who_decided_is_who_the_run_was_told_of(obj: Json, told: ApprovalEnd, name: str | None) -> None:
    assert settled_status(obj, told, NOW).get("decidedBy") == name


def test_the_proof_is_compared_with_the_objects_own_time() -> None:
    young = approved(metadata={"creationTimestamp": at(timedelta(seconds=-5))})
    since = datetime.fromisoformat(at(timedelta(seconds=-9)))
    assert next(summary(action) for action in plan(observed(young, proof=Proof(None, since))).actions) == SIGNAL


def test_a_run_of_a_session_is_asked_again_by_its_session() -> None:
    waits = sent_exchange(phase="AwaitingApproval")
    waits["status"]["pendingApprovals"] = WAITS["status"]["pendingApprovals"]
    given = replace(observed(approval()), approval=None, run=waits)
    assert [summary(action) for action in plan(given).actions] == [("ask again", CHAT), WAKE]

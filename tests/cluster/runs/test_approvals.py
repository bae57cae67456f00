"""Humans decide about tool calls and answers, with everything real: admission, operator, workers, and kills at each moment.

Bob may approve whatever this namespace asks, ada what the agent `main-path` asks, eve nothing. Every call of the tool `pay` is
noted with its time and its idempotency key, so "not before its approval" and "once" are looked at, not believed.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dalang_api import API_VERSION, contract
from dalang_operator.kinds.agentapproval.plan import decision_of, settled_status
from dalang_operator.kinds.agentrun.status import run_status
from dalang_operator.reporter.approvals import make_approval
from temporalio.api.enums import v1 as enums

if TYPE_CHECKING:
    from tests.cluster.runs.conftest import Run, Shop, System

pytestmark = pytest.mark.timeout(150)

Object = dict[str, Any]

TOLD = {"text": "{{last_tool}}"}
APPROVE = '{"spec":{"decision":"Approve"}}'
TOOLS = Path(__file__).parent / "tools" / "shop.py"
POLICY = "dalang-approvals"
NEVER_MATCHES = '{"spec":{"matchConditions":[{"name":"never","expression":"false"}]}}'


def pays(*keys: str, amount: int = 120) -> Object:
    """A turn with a call of `pay` for each key."""
    return {"toolCalls": [{"name": "pay", "arguments": {"key": key, "amount": amount}} for key in keys]}


def holds(key: str) -> Object:
    """A turn whose call lasts until the test lets it go."""
    return {"toolCalls": [{"name": "hold", "arguments": {"key": key}}]}


def asking(shop: "Shop", name: str, *responses: Object, pool: str | None = None, **policy: Any) -> "Run":
    """Start a run with an agent and a model of its own, whose tool `pay` needs approval."""
    shop.model(name, *responses)
    tools = [
        {"name": "pay", "function": {}, "approval": {"question": f"Pay for {name}?", **policy}},
        {"name": "hold", "function": {}},
    ]
    shop.create("Agent", name, {"modelRef": {"name": name}, "poolRef": {"name": pool or "default"}, "tools": tools})
    return shop.run(name)


def outcomes(run: "Run") -> list[tuple[str, str]]:
    """Return of each approval in the run's status what became of it, and by whom."""
    return [(each["decision"], each.get("decidedBy", "")) for each in run.status.get("approvals", ())]


def reason_of(approval: Object, condition: str = "Ready") -> tuple[str, str, str]:
    """Return status, reason and message of a condition."""
    found = [each for each in approval["status"]["conditions"] if each["type"] == condition]
    return (found[0]["status"], found[0]["reason"], found[0]["message"]) if found else ("", "", "")


@contextmanager
def stopped(system: "System", part: str) -> Iterator[None]:
    """Stop a process for the body of the block; it may be killed in there."""
    pid = system.signal(part, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def desk(system: "System", tmp_path_factory: pytest.TempPathFactory) -> Iterator["Shop"]:
    """A namespace with a pool whose worker stays, and three users."""
    shop = system.open_shop(tmp_path_factory.mktemp("approvals"))
    everyone = {"apiGroups": ["dalang.dev"], "resources": ["agentapprovals"], "verbs": ["approve"]}
    one_agent = {
        "apiGroups": ["dalang.dev"],
        "resources": ["agents"],
        "resourceNames": ["main-path"],
        "verbs": ["approve"],
    }
    reads_runs = {"apiGroups": ["dalang.dev"], "resources": ["agentruns"], "verbs": ["get", "list"]}
    creates = {"apiGroups": ["dalang.dev"], "resources": ["agentapprovals"], "verbs": ["create", "update", "delete"]}
    shop.allow("bob", everyone)
    shop.allow("ada", one_agent, reads_runs)
    shop.allow("eve", creates)
    shop.pool(scaling={"minReplicas": 1})
    yield shop
    shop.close()


# ── As a user ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_call_waits_for_one_kubectl_patch(desk: "Shop") -> None:
    def as_ada(*arguments: str) -> str:
        return desk.kubectl("--as=ada", *arguments)

    run = asking(desk, "main-path", pays("main-small", amount=10), pays("main-large"), TOLD, when="args.amount > 100")
    name = run.ask()
    (pending,) = run.status["pendingApprovals"]
    assert pending == {
        "name": name,
        "agent": "main-path",
        "tool": "pay",
        "question": "Pay for main-path?",
        "preview": '{"amount":120,"key":"main-large"}',
    }
    assert (run.succeeded["status"], run.succeeded["reason"]) == ("Unknown", "AwaitingApproval")
    assert (len(desk.calls_of("main-small")), desk.calls_of("main-large")) == (1, [])
    header, line = as_ada("get", "agentapproval", name).splitlines()
    assert header.split() == ["NAME", "RUN", "AGENT", "TOOL", "STATE", "DECISION", "BY", "AGE"]
    assert line.split()[:5] == [name, "main-path", "main-path", "pay", "Pending"]
    listed = as_ada("get", "agentrun", "main-path", "-o", "wide")
    assert "AwaitingApproval" in listed
    assert name in listed
    said = as_ada("patch", "agentapproval", name, "--type", "merge", "-p", APPROVE)
    assert said == f"agentapproval.dalang.dev/{name} patched\n"
    assert run.answered()["output"] == "paid 120 for main-large"
    assert run.status["approvals"] == [{"name": name, "tool": "pay", "decision": "Approve", "decidedBy": "ada"}]
    assert "pendingApprovals" not in run.status
    (call,) = desk.calls_of("main-large")
    approval = desk.becomes(name, "Applied")
    assert reason_of(approval) == ("True", "Applied", "The run acted on it: Approve by ada")
    assert reason_of(approval, "Proven")[0] == "True"
    assert approval["metadata"]["ownerReferences"][0]["uid"] == run.uid
    assert call["amount"] == 120
    logged = f"AgentApproval {desk.namespace}/{name}: Applied Approve by ada; tool pay"
    assert sum(log.count(logged) for log in desk.system.logs().values()) == 1
    events = desk.kubectl("events", "--for", f"agentrun.v1alpha1.dalang.dev/{run.name}")
    assert "AwaitingApproval" in events
    assert "Pay for main-path?" in events
    assert f"Decide with: kubectl patch agentapproval {name} -n {desk.namespace}" in events


def test_an_agent_s_author_neither_hides_what_is_called_nor_shortens_the_pool_s_time(desk: "Shop") -> None:
    desk.pool("vetoed", approvals=[{"tools": ["pay"], "timeout": "24h", "onTimeout": "Approve"}])
    greets = {"name": "greet", "arguments": {"key": "veto" * 10_000, "amount": 120}}
    desk.model("veto", {"toolCalls": [greets]}, TOLD)
    at_once = {"question": "Say hello?", "timeout": "2s", "onTimeout": "Approve"}
    tools = [{"name": "greet", "function": {"name": "pay"}, "approval": at_once}]
    desk.create("Agent", "veto", {"modelRef": {"name": "veto"}, "poolRef": {"name": "vetoed"}, "tools": tools})
    run = desk.run("veto")
    name = run.ask()
    spec = desk.get("AgentApproval", name)["spec"]
    assert (spec["tool"], spec["target"]) == ("greet", {"kind": "Function", "name": "pay"})
    assert spec["question"] == "Say hello?"
    assert spec["arguments"] == json.dumps(greets["arguments"], separators=(",", ":"), sort_keys=True)
    requested, expires = (datetime.fromisoformat(spec[time]) for time in ("requestedAt", "expiresAt"))
    assert expires - requested == timedelta(days=1)
    desk.decide(name, "Reject")
    assert "a human rejected it" in run.answered()["output"]


@pytest.mark.parametrize(
    ("decision", "more", "output", "paid"),
    [
        pytest.param("Reject", {"reason": "Too much."}, "Not run: a human rejected it. Too much.", [], id="rejected"),
        pytest.param("Approve", {"override": {"amount": 7}}, "do not fit", [], id="changed to what does not fit"),
        pytest.param("Approve", {"override": {"amount": 7, "key": "changed"}}, "paid 7 for changed", [7], id="changed"),
    ],
)
def test_the_model_is_told_what_was_decided(
    desk: "Shop", decision: str, more: Object, output: str, paid: list[int], request: pytest.FixtureRequest
) -> None:
    name = f"told-{request.node.callspec.id.replace(' ', '-')}"
    run = asking(desk, name, pays(name), TOLD)
    approval = run.ask()
    desk.decide(approval, decision, **more)
    assert output in run.answered()["output"]
    assert outcomes(run) == [(decision, "bob")]
    assert not desk.calls_of(name)
    assert [call["amount"] for call in desk.calls_of("changed")] == paid
    desk.becomes(approval, "Applied")


def test_two_identical_calls_are_asked_twice_and_answered_in_the_other_order(desk: "Shop") -> None:
    run = asking(desk, "twins", pays("twin", "twin"), TOLD)
    first, second = run.asks(2)
    assert first != second
    assert len({approval["spec"]["digest"] for approval in run.approvals()}) == 1
    desk.decide(second)
    desk.system.wait_for("one is made", lambda: desk.is_called("twin"))
    assert run.ask() == first
    desk.becomes(second, "Applied")
    desk.decide(first)
    run.answered()
    keys = [call["idempotencyKey"] for call in desk.calls_of("twin")]
    assert len(keys) == len(set(keys)) == 2
    assert outcomes(run) == [("Approve", "bob")] * 2


def test_one_rejected_is_told_while_another_waits(desk: "Shop") -> None:
    """Else the worker would be kept for what nobody has to do any more, and the object would not say that it was applied."""
    run = asking(desk, "half", pays("half-a", "half-b"), TOLD)
    first, second = run.asks(2)
    desk.decide(second, "Reject")
    desk.becomes(second, "Applied")
    assert run.ask() == first
    desk.decide(first)
    run.answered()
    assert (len(desk.calls_of("half-a")), desk.calls_of("half-b")) == (1, [])


ON_TIMEOUT = {
    "Reject": ("Succeeded", "Answered", 0),
    "Approve": ("Succeeded", "Answered", 1),
    "Fail": ("Failed", "ApprovalExpired", 0),
}
"""What `onTimeout` makes of a run, and how often it pays."""


def check_outcome(run: "Run", on_timeout: str) -> None:
    phase, reason, paid = ON_TIMEOUT[on_timeout]
    assert run.ended()["phase"] == phase
    assert run.succeeded["reason"] == reason
    assert len(run.shop.calls_of(run.name)) == paid
    assert outcomes(run) == [("Expired", "")]


def check_expired(run: "Run", on_timeout: str) -> None:
    check_outcome(run, on_timeout)
    (approval,) = run.approvals()
    expired = run.shop.becomes(approval["metadata"]["name"], "Expired")
    assert reason_of(expired)[:2] == ("False", "Expired")


def test_what_nobody_decides_in_time(desk: "Shop") -> None:
    runs = {
        each: asking(desk, f"late-{each.lower()}", pays(f"late-{each.lower()}"), TOLD, timeout="2s", onTimeout=each)
        for each in ON_TIMEOUT
    }
    for on_timeout, run in runs.items():
        check_expired(run, on_timeout)


def test_a_late_decision_and_a_second_one_are_refused_or_reported(desk: "Shop") -> None:
    run = asking(desk, "too-late", pays("too-late"), TOLD, timeout="1s")
    run.answered()
    (approval,) = run.approvals()
    name = approval["metadata"]["name"]
    desk.becomes(name, "Expired")
    before = run.object
    said = desk.kubectl("--as=bob", "patch", "agentapproval", name, "--type", "merge", "-p", APPROVE, check=False)
    assert "no longer waits" in said
    assert (run.object, desk.calls_of("too-late")) == (before, [])
    other = asking(desk, "decided-twice", pays("decided-twice"), TOLD)
    name = other.ask()
    desk.decide(name, "Reject")
    desk.decide(name, "Reject", by="eve")  # the same again changes nothing
    said = desk.kubectl("--as=bob", "patch", "agentapproval", name, "--type", "merge", "-p", APPROVE, check=False)
    assert "the decision is final" in said
    other.answered()
    assert (outcomes(other), desk.calls_of("decided-twice")) == ([("Reject", "bob")], [])


@pytest.mark.parametrize("on_timeout", ON_TIMEOUT)
def test_a_decision_between_the_time_out_and_the_word_of_it_says_that_it_came_too_late(
    desk: "Shop", system: "System", on_timeout: str
) -> None:
    """The object takes it, since nobody could write yet that the run has gone on; the run is not disturbed by it."""
    name = f"between-{on_timeout.lower()}"
    run = asking(desk, name, pays(name), holds(f"{name}-end"), TOLD, timeout="6s", onTimeout=on_timeout)
    approval = run.ask()
    # It shows before the workflow hears that it was made, without which nobody could have decided.
    system.wait_for("the workflow knows of it", lambda: attempts_to_report(run) == 0)
    with stopped(system, "operator"):
        system.wait_for("the run has gone on", lambda: has_gone_on(run, on_timeout))
        desk.decide(approval, "Approve" if on_timeout == "Reject" else "Reject")
    late = desk.becomes(approval, "Expired", 60)
    status, reason, message = reason_of(late)
    assert (status, reason) == ("False", "TooLate")
    assert "by bob came too late" in message
    assert "start another run" in message
    desk.let_go(f"{name}-end")
    check_outcome(run, on_timeout)


def has_gone_on(run: "Run", on_timeout: str) -> bool:
    """Tell whether a run has left the call behind that nobody decided about, by its next call or its end."""
    if on_timeout == "Fail":
        return attempts_to_report(run) > 0 and "ApprovalExpired" in str(run.events)
    return run.shop.is_called(f"{run.name}-end")


def test_an_approval_deleted_while_pending_is_made_anew_undecided(desk: "Shop", system: "System") -> None:
    """What was decided in the old object, while there was no operator to deliver it, does not count."""
    run = asking(desk, "deleted", pays("deleted"), TOLD)
    name = run.ask()
    old = desk.get("AgentApproval", name)
    with stopped(system, "operator"):
        desk.decide(name)
        desk.delete("AgentApproval", name)
        system.kill("operator")
    new = system.wait_for("it is made anew", lambda: desk.find("AgentApproval", name))
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert new["spec"] == old["spec"]
    desk.decide(name, "Reject")
    assert "rejected" in run.answered()["output"]
    assert (outcomes(run), desk.calls_of("deleted")) == ([("Reject", "bob")], [])


def test_one_that_a_finalizer_keeps_from_going_says_what_lets_it_go(desk: "Shop", system: "System") -> None:
    """Decided while the policies were away, say: nothing is delivered, and nobody need guess why."""
    run = asking(desk, "kept", pays("kept"), TOLD)
    name = run.ask()
    keep = ("patch", "agentapproval", name, "--type=merge", "-p", '{"metadata":{"finalizers":["x.io/y"]}}')
    assert "only the operator adds finalizers" in desk.kubectl("--as=eve", *keep, check=False)
    desk.kubectl(*keep)
    old = desk.get("AgentApproval", name)["metadata"]["uid"]
    desk.kubectl("delete", "agentapproval", name, "--wait=false")
    message = desk.waits("AgentApproval", name, "Deleting")
    assert "Finalizers keep it (x.io/y): kubectl patch agentapproval" in message
    said = desk.kubectl("--as=bob", "patch", "agentapproval", name, "--type=merge", "-p", APPROVE, check=False)
    assert "it is being deleted; its run asks anew once it is gone. Finalizers keep it: x.io/y" in said
    shell(system, message.partition("(x.io/y): ")[2])

    def anew() -> Object | None:
        found = desk.find("AgentApproval", name)
        return found if found and found["metadata"]["uid"] != old else None

    system.wait_for("it is asked anew", anew)
    assert not desk.calls_of("kept")
    desk.decide(name)
    run.answered()
    assert (len(desk.calls_of("kept")), outcomes(run)) == (1, [("Approve", "bob")])


def test_who_deletes_an_approval_does_not_delete_the_word_of_it(desk: "Shop", system: "System") -> None:
    run = asking(desk, "wiped", pays("wiped"), TOLD)
    (desk.folder / "hold-wiped").touch()
    name = run.ask()
    desk.decide(name)
    system.wait_for("its tool runs", lambda: desk.is_called("wiped"))
    desk.kubectl("--as=eve", "delete", "agentapproval", name)
    desk.let_go("wiped")
    run.answered()
    logged = f"AgentApproval {desk.namespace}/{name}: Applied Approve by bob; tool pay"
    lines = [line for log in system.logs().values() for line in log.splitlines() if logged in line]
    assert len(lines) == 1
    assert lines[0].endswith(" of AgentRun wiped")


def test_a_tool_that_has_changed_is_asked_about_anew(desk: "Shop", system: "System") -> None:
    """With a worker that has been replaced meanwhile; what was approved is another tool's call."""
    desk.pool("changing", scaling={"minReplicas": 1})
    run = asking(desk, "changed-tool", pays("changed-tool"), TOLD, pool="changing")
    name = run.ask()
    (before,) = desk.pods("changing")
    source = TOOLS.read_text()
    changed = source.replace("def pay(key: str, amount: int,", "def pay(key: str, amount: float,")
    assert changed != source
    desk.put("ConfigMap", "changing-tools", data={"shop.py": changed})

    def is_replaced() -> bool:
        pods = desk.pods("changing")
        if [pod["metadata"]["uid"] == before["metadata"]["uid"] for pod in pods] != [False]:
            return False
        conditions = {each["type"]: each["status"] for each in pods[0]["status"].get("conditions", ())}
        return conditions.get("Ready") == "True"

    system.wait_for("the worker is replaced", is_replaced)
    desk.decide(name)
    new = system.wait_for("it is asked anew", lambda: another(run, name))
    desk.becomes(name, "Superseded")
    assert not desk.calls_of("changed-tool")
    desk.decide(new)
    run.answered()
    assert len(desk.calls_of("changed-tool")) == 1
    assert outcomes(run) == [("Superseded", ""), ("Approve", "bob")]
    desk.delete("AgentPool", "changing")


def test_a_cancelled_run_asks_nobody(desk: "Shop") -> None:
    run = asking(desk, "cancelled", pays("cancelled"), TOLD)
    name = run.ask()
    run.cancel()
    assert run.ended()["phase"] == "Cancelled"
    desk.becomes(name, "Expired")
    assert not desk.calls_of("cancelled")


def test_an_answer_waits_too(desk: "Shop", system: "System") -> None:
    schema = {"type": "object", "properties": {"sure": {"type": "integer"}}, "required": ["sure"]}
    desk.model("plan", {"text": '{"sure": 1}'}, {"text": '{"sure": 2}'}, {"text": '{"sure": 9}'})
    desk.agent("plan", output={"schema": schema, "approval": {"when": "output.sure < 5", "question": "Is it good?"}})
    run = desk.run("plan")
    first = run.ask()
    spec = desk.get("AgentApproval", first)["spec"]
    assert (spec["subject"], spec["arguments"], "tool" in spec) == ("Output", '{"sure":1}', False)
    desk.decide(first, "Reject", reason="Think again.")
    second = system.wait_for("the next is asked", lambda: another(run, first))
    assert "Think again." in run.asked[1]["body"]["messages"][-1]["content"]
    desk.decide(second, override={"sure": "very"})
    third = system.wait_for("it is asked anew", lambda: another(run, second))
    desk.becomes(second, "Superseded")
    assert "did not fit" in desk.get("AgentApproval", third)["spec"]["question"]
    desk.decide(third, override={"sure": 4})
    assert run.answered()["structuredOutput"] == {"sure": 4}
    assert outcomes(run) == [("Reject", "bob"), ("Superseded", ""), ("Approve", "bob")]


def another(run: "Run", before: str) -> str:
    """Return the name of what is asked now, if it is not what was asked before."""
    name = run.ask()
    return name if name != before else ""


# ── Without any worker ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pool_is_at_zero_while_all_await_approval(desk: "Shop", system: "System") -> None:
    """It goes there by itself; an expiry wakes it, a decision wakes it, and in between it goes there again."""
    desk.pool("idle", scaling={"scaleToZeroAfter": "2s"})
    approved = asking(desk, "at-zero", pays("at-zero"), TOLD, pool="idle")
    rejected = asking(desk, "at-zero-half", pays("half-zero", "half-zero-b"), TOLD, pool="idle")
    expiring = {
        each: asking(desk, name, pays(name), TOLD, pool="idle", timeout="12s", onTimeout=each)
        for each in ON_TIMEOUT
        for name in [f"zero-{each.lower()}"]
    }

    def nobody_is_there() -> bool:
        return desk.replicas("idle") == 0 and not desk.pods("idle")

    names = [run.ask() for run in (approved, *expiring.values())]
    first, second = rejected.asks(2)
    system.wait_for("nobody is left", nobody_is_there)
    assert all(desk.get("AgentApproval", name)["status"]["state"] == "Pending" for name in names)
    for on_timeout, run in expiring.items():
        check_expired(run, on_timeout)
    system.wait_for("nobody is left again", nobody_is_there)
    desk.decide(second, "Reject")
    desk.becomes(second, "Applied")
    system.wait_for("nobody is left, as another call still waits", nobody_is_there)
    begun = desk.decide(names[0])
    desk.decide(first)
    assert approved.answered()["output"] == "paid 120 for at-zero"
    (call,) = desk.calls_of("at-zero")
    assert call["time"] > begun
    rejected.answered()
    assert outcomes(approved) == [("Approve", "bob")]


@contextmanager
def without_pods(shop: "Shop") -> Iterator[None]:
    """Have the API server refuse new pods of a namespace for the body of the block."""
    api, policy = "admissionregistration.k8s.io/v1", f"no-pods-{shop.namespace}"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": shop.namespace}}}
    refuses = {
        "apiVersion": api,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": policy},
        "spec": {
            "matchConstraints": {"resourceRules": [rule], **here},
            "validations": [{"expression": "false", "message": "There is no room."}],
        },
    }
    binding = {
        "apiVersion": api,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": policy},
        "spec": {"policyName": policy, "validationActions": ["Deny"]},
    }
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": [refuses, binding]})
    shop.system.kubectl("create", "-f", "-", stdin=listed)
    try_one = ("run", "one", "--image=one", "--dry-run=server")
    try:
        wait_for = shop.system.wait_for
        wait_for("no pod is let in", lambda: "There is no room." in shop.kubectl(*try_one, check=False))
        yield
    finally:
        shop.system.kubectl("delete", "-f", "-", stdin=listed)


def test_a_decision_that_no_worker_can_act_on_is_kept_and_the_run_says_why(desk: "Shop", system: "System") -> None:
    desk.pool("refused", scaling={"scaleToZeroAfter": "2s"})
    run = asking(desk, "refused", pays("refused"), TOLD, pool="refused")
    name = run.ask()
    system.wait_for("nobody is left", lambda: desk.replicas("refused") == 0 and not desk.pods("refused"))
    with without_pods(desk):
        desk.decide(name)
        message = run.waits("WorkerMissing", 60)
        status = run.status
    run.answered(90)
    assert message.startswith("It has been decided")
    assert "Pool refused has no worker: " in message
    assert "There is no room." in message, "in the words of the API server, as the pool has them"
    assert (status["phase"], len(status["pendingApprovals"])) == ("AwaitingApproval", 1)
    assert outcomes(run) == [("Approve", "bob")]


def test_an_operator_that_was_killed_wakes_pools_at_zero_all_the_same(desk: "Shop", system: "System") -> None:
    """Of a decision that it had not seen, and of one that it had sent without bringing up a worker."""
    runs = {}
    for each in ("unseen", "sent"):
        desk.pool(f"{each}-pool", scaling={"scaleToZeroAfter": "2s"})
        runs[each] = asking(desk, f"zero-{each}", pays(f"zero-{each}"), TOLD, pool=f"{each}-pool")
    names = {each: run.ask() for each, run in runs.items()}

    def nobody_is_there() -> bool:
        return not any(desk.replicas(f"{each}-pool") or desk.pods(f"{each}-pool") for each in runs)

    system.wait_for("nobody is left", nobody_is_there)
    with stopped(system, "operator"):
        for name in names.values():
            desk.decide(name)
        decision = decision_of(desk.get("AgentApproval", names["sent"]))
        handle = system.temporal.client.get_workflow_handle(runs["sent"].workflow_id)
        system.temporal.do(handle.signal(contract.DECIDE_SIGNAL, decision))
        desk.patch("AgentApproval", f"{names['sent']}/status", {"status": {"state": "Delivered"}})
        system.kill("operator")
    for each, run in runs.items():
        run.answered()
        assert (len(desk.calls_of(f"zero-{each}")), outcomes(run)) == (1, [("Approve", "bob")])
        desk.becomes(names[each], "Applied")


# ── kill -9 ────────────────────────────────────────────────────────────────────────────────────────────────────────


MOMENTS = ("asking", "made", "asked", "decided", "sent", "delivered", "running", "settled", "ended", "expired")


def attempts_to_report(run: "Run") -> int:
    """Return how often a report has been tried without success; 0: there is none to be made."""
    handle = run.shop.system.temporal.client.get_workflow_handle(run.workflow_id)
    described = run.shop.system.temporal.do(handle.describe()).raw_description
    reports = [each for each in described.pending_activities if each.activity_type.name == contract.REPORT_ACTIVITY]
    return reports[0].attempt if reports else 0


def last_report(run: "Run") -> contract.RunReport:
    """Return what a run's workflow last had to report."""
    scheduled = [event.activity_task_scheduled_event_attributes for event in run.events]
    (*_, last) = [each for each in scheduled if each.activity_type.name == contract.REPORT_ACTIVITY]
    return contract.RunReport.model_validate_json(last.input.payloads[0].data)


def write_what_came_of_it(run: "Run") -> None:
    """Write what a run's last report says, as the operator would have before it was killed."""
    shop, report, now = run.shop, last_report(run), datetime.now(UTC)
    (end,) = report.ended_approvals or []
    settled = settled_status(shop.get("AgentApproval", end.name), end, now)
    shop.patch("AgentApproval", f"{end.name}/status", {"status": settled})
    if report.finished_at:
        shop.patch("AgentRun", f"{run.name}/status", {"status": run_status(report, run.object, run.workflow_id, now)})


def acts_by_itself(run: "Run", name: str) -> None:
    """Tell a run of the decision that its AgentApproval has, as the operator would have."""
    temporal = run.shop.system.temporal
    handle = temporal.client.get_workflow_handle(run.workflow_id)
    temporal.do(handle.signal(contract.DECIDE_SIGNAL, decision_of(run.shop.get("AgentApproval", name))))


def is_at_rest(run: "Run") -> bool:
    """Tell whether a run's workflow has taken note of all that its activities came to."""
    types = [event.event_type for event in run.events]
    task, done = enums.EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED, enums.EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED
    return attempts_to_report(run) == 0 and task in types[len(types) - types[::-1].index(done) :]


def has_run_out(run: "Run", expires_at: float) -> bool:
    """Tell whether the timer of a time-out has fired."""
    fired = [event for event in run.events if event.event_type == enums.EventType.EVENT_TYPE_TIMER_FIRED]
    return any(event.event_time.ToNanoseconds() / 1e9 >= expires_at for event in fired)


def make_what_is_asked(run: "Run") -> None:
    """Make the AgentApproval that a run's last report asks for, as the operator would have before it was killed."""
    (request,) = last_report(run).pending_approvals or []
    body = make_approval(request, contract.parse_workflow_id(run.workflow_id), run.workflow_id)
    run.shop.system.request("POST", "AgentApproval", run.shop.namespace, body=body)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(("operator",), id="of the operator"),
        pytest.param(("workers",), id="of the workers"),
        pytest.param(("operator", "workers"), id="of the operator and the workers"),
    ],
)
def test_a_kill_loses_no_decision_and_applies_none_twice(
    desk: "Shop", system: "System", parts: tuple[str, ...]
) -> None:
    """One kill meets a run at each moment.

    asking     its approval is being made, by an operator that does not answer
    made       it is there, and the operator has not told Temporal
    asked      it is there, undecided
    decided    a decision stands in the object; the operator does not answer
    sent       Temporal has it, and the operator has not written so
    delivered  Temporal has it; the worker does not answer
    running    its tool runs
    settled    the AgentApproval says that it was applied, and the operator has not told Temporal; the run goes on
    ended      likewise, and the run's status says that it has ended
    expired    its time-out has passed, which approves it, and nobody has acted on that
    """
    label, wait_for = "-".join(parts), system.wait_for
    first, pool = f"first-{label}", f"kills-{label}"
    for each in (first, pool):
        desk.pool(each, scaling={"minReplicas": 1})
    asks = {
        moment: asking(desk, f"{moment}-{label}", pays(f"{moment}-{label}"), TOLD, pool=pool) for moment in MOMENTS[2:7]
    }
    key = f"settled-{label}"
    asks["settled"] = asking(desk, key, pays(key), holds(f"{key}-end"), TOLD, pool=first)
    asks["ended"] = asking(desk, f"ended-{label}", pays(f"ended-{label}"), TOLD, pool=first)
    about_to_ask = {
        moment: asking(desk, key, holds(f"{key}-begin"), pays(key), TOLD, pool=first)
        for moment in MOMENTS[:2]
        for key in [f"{moment}-{label}"]
    }
    (desk.folder / f"hold-running-{label}").touch()
    names = {moment: run.ask() for moment, run in asks.items()}
    begun = {"running": desk.decide(names["running"])}
    wait_for("its tool runs", lambda: desk.is_called(f"running-{label}"))
    for moment in about_to_ask:
        wait_for(f"{moment} is about to ask", lambda moment=moment: desk.is_called(f"{moment}-{label}-begin"))  # type: ignore[misc]
    key = f"expired-{label}"
    asks["expired"] = asking(desk, key, pays(key), TOLD, pool=pool, timeout="8s", onTimeout="Approve")
    names["expired"] = asks["expired"].ask()
    wait_for("the workflow knows that it was made", lambda: is_at_rest(asks["expired"]))
    with stopped(system, desk.worker(pool)):
        expires_at = desk.get("AgentApproval", names["expired"])["spec"]["expiresAt"]
        begun["expired"] = datetime.fromisoformat(expires_at).timestamp()
        for moment in ("sent", "delivered"):
            begun[moment] = desk.decide(names[moment])
            desk.becomes(names[moment], "Delivered")
        with stopped(system, "operator"):
            begun["decided"] = desk.decide(names["decided"])
            desk.patch("AgentApproval", f"{names['sent']}/status", {"status": {"state": "Pending", "conditions": []}})
            for moment, run in about_to_ask.items():
                desk.let_go(f"{moment}-{label}-begin")
                wait_for("it is about to be asked", lambda run=run: attempts_to_report(run))  # type: ignore[misc]
            make_what_is_asked(about_to_ask["made"])
            for moment in ("settled", "ended"):
                begun[moment] = desk.decide(names[moment])
                acts_by_itself(asks[moment], names[moment])
            wait_for("one goes on", lambda: desk.is_called(f"settled-{label}-end"))
            wait_for("it is about to say so", lambda: last_report(asks["settled"]).ended_approvals)
            wait_for("one is about to end", lambda: last_report(asks["ended"]).finished_at)
            for moment in ("settled", "ended"):
                write_what_came_of_it(asks[moment])
            wait_for("a time-out passes", lambda: has_run_out(asks["expired"], begun["expired"]))
            assert desk.get("AgentApproval", names["decided"])["status"]["state"] == "Pending"
            victims = ["operator"] if "operator" in parts else []
            victims += [desk.worker(first), desk.worker(pool)] if "workers" in parts else []
            called = [moment for moment in MOMENTS if desk.calls_of(f"{moment}-{label}")]
            assert called == ["running", "settled", "ended"]
            pids = {victim: system.kill(victim) for victim in victims}
            for victim, pid in pids.items():
                wait_for(f"{victim} is gone", lambda victim=victim, pid=pid: not is_alive(system, victim, pid))  # type: ignore[misc]
    begun["asked"] = desk.decide(names["asked"])
    for moment, run in about_to_ask.items():
        names[moment] = run.ask(60)
        begun[moment] = desk.decide(names[moment])
    desk.let_go(f"running-{label}")
    desk.let_go(f"settled-{label}-end")
    for moment, run in {**asks, **about_to_ask}.items():
        key = f"{moment}-{label}"
        is_expired = moment == "expired"
        told = f"held {key}-end" if moment == "settled" else f"paid 120 for {key}"
        assert run.answered(90)["output"] == told
        assert outcomes(run) == [("Expired", "") if is_expired else ("Approve", "bob")]
        approval = desk.becomes(names[moment], "Expired" if is_expired else "Applied")
        assert approval["status"].get("decidedBy") == (None if is_expired else "bob")
        calls = desk.calls_of(key)
        assert min(call["time"] for call in calls) > begun[moment]
        assert len({call["idempotencyKey"] for call in calls}) == 1
        assert len(calls) == 1 or (moment == "running" and "workers" in parts)
        assert len(run.approvals()) == 1
    for victim, pid in pids.items():
        wait_for(f"{victim} is back", lambda victim=victim, pid=pid: system.is_back(victim, pid))  # type: ignore[misc]
    for each in (first, pool):
        desk.delete("AgentPool", each)


def is_alive(system: "System", part: str, pid: int) -> bool:
    """Tell whether a part still is this process."""
    return any(found["pid"] == pid for name, found in system.parts().items() if name.startswith(part))


# ── Attackers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def approval_of(run: "Run", **changes: Any) -> Object:
    """An AgentApproval under the name that a run's first call will have, to be put there before it asks."""
    shop = run.shop
    name = contract.approval_name(run.name, run.uid, "main/1/0/0")
    owner = {"apiVersion": API_VERSION, "kind": "AgentRun", "name": run.name, "uid": run.uid, "controller": True}
    spec = {
        "subject": "ToolCall",
        "runRef": {"name": run.name},
        "workflowId": run.workflow_id,
        "agent": run.name,
        "tool": "pay",
        "question": "Pay a little?",
        "arguments": '{"amount":1}',
        "digest": f"sha256:{'0' * 64}",
        "requestedAt": "2026-01-02T03:04:05Z",
        **changes,
    }
    metadata = {"name": name, "namespace": shop.namespace, "ownerReferences": [owner]}
    return {"apiVersion": API_VERSION, "kind": "AgentApproval", "metadata": metadata, "spec": spec}


def test_a_worker_has_no_credentials(desk: "Shop") -> None:
    run = asking(desk, "workers", pays("workers"), TOLD)
    name = run.ask()
    assert desk.deployment()["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    for user in (f"system:serviceaccount:{desk.namespace}:default", "system:anonymous"):
        said = desk.kubectl(f"--as={user}", "patch", "agentapproval", name, "--type=merge", "-p", APPROVE, check=False)
        assert 'cannot patch resource "agentapprovals"' in said or 'cannot get resource "agentapprovals"' in said
    desk.decide(name, "Reject")
    run.answered()
    assert not desk.calls_of("workers")


def test_who_may_patch_but_not_approve(desk: "Shop") -> None:
    run = asking(desk, "eves", pays("eves"), TOLD)
    name = run.ask()

    def says(*arguments: str) -> str:
        return desk.kubectl("--as=eve", *arguments, check=False)

    patch = ("patch", "agentapproval", name, "--type", "merge", "-p")
    assert "eve needs the verb approve on agents/eves" in says(*patch, APPROVE)
    assert "eve needs the verb approve" in says(*patch, '{"spec":{"decision":"Approve","decidedBy":"bob"}}')
    assert "immutable" in says(*patch, '{"spec":{"agent":"main-path"}}')
    assert 'resource "agentapprovals/status"' in says(
        *(
            "patch",
            "agentapproval",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            '{"status":{"state":"Applied"}}',
        )
    )
    for made in (approval_of(run), approval_of(run, decision="Approve")):
        made["metadata"]["name"] = "eves-own"
        said = desk.kubectl("--as=eve", "create", "-f", "-", stdin=json.dumps(made), check=False)
        assert "only the operator creates approvals" in said
    assert not desk.calls_of("eves")
    desk.decide(name, "Reject")
    run.answered()
    assert outcomes(run) == [("Reject", "bob")]


@pytest.mark.parametrize("how", ["a stranger's name", "other arguments to look at"])
def test_who_takes_the_name_before_it_is_asked(desk: "Shop", system: "System", how: str) -> None:
    """Even one who may write runs' statuses, as creating approvals takes: what bob sees is not what would be run."""
    name = f"squat-{how.split()[0]}"
    run = asking(desk, name, {**pays(name), "latencySeconds": 2.5}, TOLD)
    forged = approval_of(run)
    if how == "a stranger's name":
        del forged["metadata"]["ownerReferences"]
    squatted = forged["metadata"]["name"]
    system.request("POST", "AgentApproval", desk.namespace, body=forged)
    desk.decide(squatted)
    run.waits("Running")
    system.wait_for("the operator refuses to take it for its own", lambda: attempts_to_report(run) > 1)
    assert desk.get("AgentApproval", squatted)["metadata"]["uid"]
    assert (run.status["phase"], desk.calls_of(name)) == ("Running", [])
    message = run.waits("NameConflict")
    remedy = f"kubectl delete agentapproval {squatted} -n {desk.namespace}"
    assert message == f"AgentApproval {squatted} is not what this run asks: nobody is asked until it is gone: {remedy}"
    if how == "other arguments to look at":
        status, reason, words = reason_of(desk.becomes(squatted, "Expired"))
        assert (status, reason) == ("False", "UnknownRequest")
        assert remedy in words
    desk.delete("AgentApproval", squatted)
    assert run.ask(40) == squatted
    asked = desk.get("AgentApproval", squatted)["spec"]
    assert (asked["arguments"], "decision" in asked) == (f'{{"amount":120,"key":"{name}"}}', False)
    assert not desk.calls_of(name)
    begun = desk.decide(squatted)
    run.answered()
    (call,) = desk.calls_of(name)
    assert call["time"] > begun


@pytest.mark.parametrize("how", ["unowned", "altered"])
def test_who_puts_another_in_the_place_of_what_is_asked(desk: "Shop", system: "System", how: str) -> None:
    """As a backup does that is restored: there is no moment at which the operator finds nothing there."""
    name = f"restored-{how}"
    run = asking(desk, name, pays(name), TOLD)
    asked = run.ask()
    restored = approval_of(run)
    assert restored["metadata"]["name"] == asked
    if how == "unowned":
        del restored["metadata"]["ownerReferences"]
    system.request("DELETE", "AgentApproval", desk.namespace, asked)
    system.request("POST", "AgentApproval", desk.namespace, body=restored)
    remedy = f"kubectl delete agentapproval {asked} -n {desk.namespace}"
    assert run.waits("NameConflict").endswith(remedy)
    assert run.status["phase"] == "AwaitingApproval"
    desk.delete("AgentApproval", asked)
    system.wait_for("it is asked anew", lambda: desk.find("AgentApproval", asked))
    assert desk.get("AgentApproval", asked)["spec"]["arguments"] == f'{{"amount":120,"key":"{name}"}}'
    run.waits("AwaitingApproval")
    desk.decide(asked)
    run.answered()
    assert len(desk.calls_of(name)) == 1


@pytest.mark.parametrize(
    ("alter", "problem"),
    [
        pytest.param(
            ["delete", "validatingadmissionpolicybinding", POLICY],
            f"ValidatingAdmissionPolicyBinding {POLICY} is missing, so nothing proves who decides. Install it (before Kubernetes 1.36 with --validating-only): ",
            id="a binding is missing",
        ),
        pytest.param(
            ["patch", "validatingadmissionpolicy", POLICY, "--type=merge", "-p", NEVER_MATCHES],
            f"ValidatingAdmissionPolicy {POLICY} is altered (spec.matchConditions), so nothing proves who decides. "
            "Put it right (before Kubernetes 1.36 with --validating-only): ",
            id="a policy is altered",
        ),
    ],
)
def test_without_the_policies_nothing_is_delivered(
    desk: "Shop", system: "System", alter: list[str], problem: str
) -> None:
    """Eve could decide in bob's name meanwhile. What was approved then does not count, even once they are back.

    What was rejected does, whoever it was: else its time-out would approve it.
    """
    label = f"unproven-{alter[0]}"
    run = asking(desk, label, pays(label), TOLD)
    name = run.ask()
    vetoed = asking(desk, f"{label}-veto", pays(f"{label}-veto"), TOLD, timeout="40s", onTimeout="Approve")
    veto = vetoed.ask()
    old = desk.get("AgentApproval", name)["metadata"]["uid"]
    system.kubectl(*alter)
    try:
        forged = {"spec": {"decision": "Approve", "decidedBy": "bob"}}
        # The API server forgets them within a second.
        system.wait_for("eve decides as bob", lambda: desk.patch("AgentApproval", name, forged, user="eve"))
        system.wait_for("it is not proven", lambda: reason_of(desk.get("AgentApproval", name), "Proven")[1])
        approval = desk.get("AgentApproval", name)
        status, reason, message = reason_of(approval, "Proven")
        assert (status, reason, approval["status"]["state"]) == ("False", "PolicyMissing", "Pending")
        assert message.startswith(problem)
        assert not desk.calls_of(label)
        forged = {"spec": {"decision": "Reject", "reason": "Says eve.", "decidedBy": "bob"}}
        desk.patch("AgentApproval", veto, forged, user="eve")
        told = vetoed.answered()["output"]
        assert ("a human rejected it" in told, "eve" in told) == (True, False)
        check_vetoed(vetoed, problem)
        shell(system, message.removeprefix(problem))
    finally:
        shell(system, "dalang admission-policies | kubectl apply -f -")

    def anew() -> Object | None:
        found = desk.find("AgentApproval", name)
        return found if found and found["metadata"]["uid"] != old else None

    new = system.wait_for("it is asked anew", anew, 40)
    assert "decision" not in new["spec"]
    assert not desk.calls_of(label)
    events = desk.kubectl("events", "--for", f"agentrun.v1alpha1.dalang.dev/{run.name}")
    assert "PolicyMissing" in events
    begun = desk.decide(name)
    assert run.answered()["output"] == f"paid 120 for {label}"
    (call,) = desk.calls_of(label)
    assert call["time"] > begun
    assert outcomes(run) == [("Approve", "bob")]
    assert reason_of(desk.becomes(name, "Applied"), "Proven")[0] == "True"


def check_vetoed(run: "Run", problem: str) -> None:
    """The call was not made, and nobody is said to have decided: nothing proves who."""
    (approval,) = run.approvals()
    applied = run.shop.becomes(approval["metadata"]["name"], "Applied")
    assert reason_of(applied) == ("True", "Applied", "The run acted on it: Reject")
    status, reason, message = reason_of(applied, "Proven")
    assert (status, reason) == ("False", "PolicyMissing")
    assert problem in message
    assert (outcomes(run), run.shop.calls_of(run.name)) == ([("Reject", "")], [])


def shell(system: "System", command: str) -> None:
    """Run the command that a message names."""
    path = f"{Path(sys.executable).parent}:{system.environment['PATH']}"
    shell = ["bash", "-c", f"set -o pipefail; {command}"]
    subprocess.run(shell, env={**system.environment, "PATH": path}, check=True, capture_output=True)

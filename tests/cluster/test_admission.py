"""The admission policies on a real API server: who may write what into an AgentApproval, and what the others are told."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dalang_operator import admission

if TYPE_CHECKING:
    from tests.cluster.conftest import ControlPlane

OPERATOR = "an-operator"
GARBAGE_COLLECTOR = "system:serviceaccount:kube-system:generic-garbage-collector"
WRITES = {"apiGroups": ["dalang.dev"], "resources": ["agentapprovals"], "verbs": ["get", "create", "patch", "update"]}
RUNS = {"apiGroups": ["dalang.dev"], "resources": ["agentruns"], "verbs": ["get", "create", "patch", "update"]}
STATUS = {
    "apiGroups": ["dalang.dev"],
    "resources": ["agentruns/status", "agentapprovals/status"],
    "verbs": ["get", "patch"],
}
RULES: dict[str, list[dict[str, Any]]] = {
    OPERATOR: [WRITES, STATUS],
    "eve": [WRITES, RUNS],
    "ada": [
        WRITES,
        RUNS,
        {"apiGroups": ["dalang.dev"], "resources": ["agents"], "resourceNames": ["support"], "verbs": ["approve"]},
    ],
    "bob": [WRITES, {"apiGroups": ["dalang.dev"], "resources": ["agentapprovals"], "verbs": ["approve"]}],
}
"""The operator may more here than `dalang dev` gives it. Eve may write approvals, and no more; ada may also decide for the agent `support`, bob for all agents."""

REQUEST = {
    "subject": "ToolCall",
    "runRef": {"name": "refund"},
    "workflowId": "dalang.shop.refund.1",
    "agent": "support",
    "tool": "refund",
    "question": "May support call refund?",
    "arguments": '{"amount":120}',
    "digest": f"sha256:{'0' * 64}",
    "requestedAt": "2026-01-02T03:04:05Z",
}
APPROVE = {"decision": "Approve"}
DENIED = "ValidatingAdmissionPolicy 'dalang-approvals' with binding 'dalang-approvals' denied request: "
FINAL = "spec: Forbidden: the decision is final"
ONLY_A_DECISION = DENIED + "only a decision changes an approval: set spec.decision to Approve or Reject"
TOGETHER = "spec: Invalid value: reason, override and decidedBy are set together with decision"
IMMUTABLE = "spec: Forbidden: the request is immutable; only decision, reason and override can be set"


def missing_verb(user: str, agent: str, namespace: str) -> str:
    return (
        f"{DENIED}{user} needs the verb approve on agents/{agent} (or on agentapprovals) in namespace {namespace}. "
        f"Who may grant it runs: kubectl create role approve-{agent} --namespace {namespace} --verb approve "
        f"--resource agents.dalang.dev --resource-name {agent} && kubectl create rolebinding approve-{agent} "
        f"--namespace {namespace} --role approve-{agent} --user '{user}'"
    )


@dataclass(frozen=True)
class Shell:
    """kubectl in one namespace, in the name of users."""

    control_plane: "ControlPlane"
    namespace: str

    def run(self, user: str | None, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return its complaint, empty if it succeeds."""
        command = ["kubectl", "--namespace", self.namespace, *arguments, *(["--as", user] if user else [])]
        done = subprocess.run(
            command, env=self.control_plane.environment, input=stdin, text=True, capture_output=True, check=False
        )
        return done.stderr if done.returncode else ""

    def patch(self, user: str | None, spec: Any, *more: str, name: str = "x") -> str:
        """Patch an approval's spec as documented."""
        body = json.dumps({"spec": spec})
        return self.run(user, "patch", "agentapproval", name, "--type", "merge", "--patch", body, *more)

    def json_patch(self, user: str, *operations: dict[str, Any], name: str = "x") -> str:
        return self.run(user, "patch", "agentapproval", name, "--type", "json", "--patch", json.dumps(operations))

    def ask(self, *, name: str = "x", **more: str) -> None:
        """Create an approval as the operator does."""
        assert self.run(OPERATOR, "create", "-f", "-", stdin=approval({**REQUEST, **more}, name=name)) == ""

    def spec(self, name: str = "x") -> dict[str, Any]:
        found = self.get("agentapproval", name)
        spec: dict[str, Any] = found["spec"]
        return spec

    def get(self, kind: str, name: str = "x") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.control_plane.kubectl(
                *("--namespace", self.namespace, "get", kind, name, "--output", "json", "--show-managed-fields")
            )
        )
        return found


def approval(spec: Any, *, name: str = "x", **metadata: Any) -> str:
    return json.dumps(
        {
            "apiVersion": "dalang.dev/v1alpha1",
            "kind": "AgentApproval",
            "metadata": {"name": name, **metadata},
            "spec": spec,
        }
    )


def agent_run(**metadata: Any) -> str:
    return json.dumps(
        {
            "apiVersion": "dalang.dev/v1alpha1",
            "kind": "AgentRun",
            "metadata": {"name": "x", **metadata},
            "spec": {"agentRef": {"name": "support"}, "input": "Hello."},
        }
    )


@pytest.fixture(scope="module")
def users(control_plane: "ControlPlane") -> Iterator[None]:
    objects: list[dict[str, Any]] = []
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    for user, rules in RULES.items():
        metadata = {"name": f"test-admission-{user}"}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", **metadata}
        subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
        objects.append({**rbac, "kind": "ClusterRole", "metadata": metadata, "rules": rules})
        objects.append(
            {**rbac, "kind": "ClusterRoleBinding", "metadata": metadata, "roleRef": reference, "subjects": [subject]}
        )
    manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    control_plane.kubectl("apply", "-f", "-", stdin=manifest)
    yield
    control_plane.kubectl("delete", "-f", "-", stdin=manifest)


@pytest.fixture
def shell(control_plane: "ControlPlane", namespace: str, users: None) -> Shell:
    return Shell(control_plane, namespace)


def test_dalang_dev_installs_them_unaltered(control_plane: "ControlPlane") -> None:
    """So the API server takes the CEL, its costs included, and its type checks find nothing."""
    found = {
        kind: json.loads(control_plane.kubectl("get", kind, name, "--output", "json"))
        for kind, name in admission.NAMES.items()
    }
    assert admission.proof_problem(found) is None
    assert admission.unaltered_since(found) is not None
    for each in admission.policies():
        kind, name = each["kind"], each["metadata"]["name"]
        stored = json.loads(control_plane.kubectl("get", kind, name, "--output", "json"))
        assert stored["spec"] == each["spec"], "a default is not written out"
        assert not stored.get("status", {}).get("typeChecking", {}).get("expressionWarnings")


# ── Created undecided, and by the operator ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("user", "more", "complaint"),
    [
        pytest.param(
            "eve",
            {},
            "only the operator creates approvals: eve may not patch agentruns/status in namespace",
            id="by eve",
        ),
        pytest.param("bob", {}, "only the operator creates approvals: bob may not patch", id="by who may approve"),
        *(
            pytest.param(
                OPERATOR, members, "an approval is created undecided", id=f"decided, with {' and '.join(members)}"
            )
            for members in (
                APPROVE,
                {**APPROVE, "decidedBy": OPERATOR},
                {**APPROVE, "reason": "r", "override": {"a": 1}},
            )
        ),
    ],
)
@pytest.mark.parametrize("how", ["create", "apply", "server-side apply"])
def test_not_created(user: str, more: dict[str, Any], complaint: str, how: str, shell: Shell) -> None:
    command = {"create": ["create"], "apply": ["apply"], "server-side apply": ["apply", "--server-side"]}[how]
    refusal = shell.run(user, *command, "-f", "-", stdin=approval({**REQUEST, **more}))
    assert DENIED + complaint in refusal


def test_the_operator_of_dalang_dev_creates(shell: Shell) -> None:
    assert shell.run("dalang-operator", "create", "-f", "-", stdin=approval(REQUEST)) == ""
    refusal = shell.patch("dalang-operator", APPROVE)
    assert 'User "dalang-operator" cannot patch resource "agentapprovals"' in refusal


# ── The decision ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("user", ["ada", "bob"])
@pytest.mark.parametrize(
    "decision",
    [
        pytest.param(APPROVE, id="approve"),
        pytest.param({"decision": "Reject", "reason": "Too much."}, id="reject"),
        pytest.param({**APPROVE, "override": {"amount": 12, "deep": {"list": [1, {"a": 1.5}]}}}, id="override"),
    ],
)
def test_who_holds_the_verb_decides(user: str, decision: dict[str, Any], shell: Shell) -> None:
    shell.ask()
    assert shell.patch(user, decision) == ""
    assert shell.spec() == {**REQUEST, **decision, "decidedBy": user}


def test_a_client_may_fill_in_its_own_name(shell: Shell) -> None:
    shell.ask()
    assert shell.patch("ada", {**APPROVE, "decidedBy": "ada"}) == ""
    assert shell.spec() == {**REQUEST, **APPROVE, "decidedBy": "ada"}


def test_the_verb_on_one_agent_is_not_for_others(shell: Shell) -> None:
    shell.ask(agent="sales")
    assert missing_verb("ada", "sales", shell.namespace) in shell.patch("ada", APPROVE)
    assert shell.patch("bob", APPROVE) == ""


@pytest.mark.parametrize("user", ["eve", OPERATOR])
def test_who_lacks_the_verb_is_told_how_to_get_it(user: str, shell: Shell) -> None:
    shell.ask()
    refusal = shell.patch(user, APPROVE)
    assert missing_verb(user, "support", shell.namespace) in refusal
    assert shell.spec() == REQUEST
    for command in refusal.strip().partition("Who may grant it runs: ")[2].split(" && "):
        assert shell.run(None, *command.replace("'", "").split()[1:]) == ""
    for _ in range(50):  # the authorizer learns of a role a moment later
        if not (refusal := shell.patch(user, APPROVE)):
            break
    assert refusal == ""
    assert shell.spec()["decidedBy"] == user


@pytest.mark.parametrize("forged", ["ada", "bob", "system:admin"])
def test_a_forged_name(forged: str, shell: Shell) -> None:
    shell.ask()
    eve = shell.patch("eve", {**APPROVE, "decidedBy": forged})
    assert missing_verb("eve", "support", shell.namespace) in eve
    user = "bob" if forged == "ada" else "ada"
    refusal = shell.patch(user, {**APPROVE, "decidedBy": forged})
    assert f"{DENIED}spec.decidedBy must be {user}, who decides" in refusal
    assert shell.spec() == REQUEST


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        pytest.param({"arguments": '{"amount":9}', **APPROVE}, IMMUTABLE, id="the arguments, with the decision"),
        pytest.param({"tool": None, **APPROVE}, IMMUTABLE, id="the tool removed, with the decision"),
        pytest.param({"expiresAt": "2030-01-01T00:00:00Z", **APPROVE}, IMMUTABLE, id="a time added, with the decision"),
        pytest.param({"agent": "mine", **APPROVE}, IMMUTABLE, id="the agent, to approve for another"),
        pytest.param({"arguments": "{}"}, IMMUTABLE, id="the arguments alone"),
        pytest.param({"override": {"amount": 99999}}, TOGETHER, id="an override before the decision"),
        pytest.param({"reason": "ok"}, TOGETHER, id="a reason before the decision"),
        pytest.param({"decidedBy": "ada"}, TOGETHER, id="a name before the decision"),
        pytest.param(
            {"decision": "Maybe"}, 'spec.decision: Unsupported value: "Maybe"', id="a decision that there is none of"
        ),
    ],
)
@pytest.mark.parametrize("user", ["ada", OPERATOR])
def test_no_other_change(change: dict[str, Any], complaint: str, user: str, shell: Shell) -> None:
    shell.ask()
    assert complaint in shell.patch(user, change)
    assert shell.spec() == REQUEST


# ── The decision is final ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("user", ["ada", "bob", OPERATOR])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"decision": "Reject"}, id="another decision"),
        pytest.param({"decision": None, "decidedBy": None, "override": None}, id="taken back by null"),
        pytest.param({"decidedBy": "bob"}, id="another name"),
        pytest.param({"decidedBy": None}, id="no name"),
        pytest.param({"reason": "later"}, id="a reason added"),
        pytest.param({"override": {"amount": 2}}, id="another override"),
    ],
)
def test_a_second_decision(change: dict[str, Any], user: str, shell: Shell) -> None:
    shell.ask()
    decided = {**APPROVE, "override": {"amount": 1}}
    assert shell.patch("ada", decided) == ""
    assert FINAL in shell.patch(user, change)
    assert shell.spec() == {**REQUEST, **decided, "decidedBy": "ada"}


def test_a_key_of_the_override_renamed(shell: Shell) -> None:
    """What CEL in the CRD does not see: it skips keys that the other side does not have."""
    shell.ask()
    assert shell.patch("ada", {**APPROVE, "override": {"amount": 1}}) == ""
    refusal = shell.patch("ada", {"override": {"amount": None, "amonut": 5}})
    assert DENIED + "the decision is final" in refusal
    assert shell.spec()["override"] == {"amount": 1}


def test_the_same_decision_again_changes_nothing(shell: Shell) -> None:
    shell.ask()
    assert shell.patch("ada", APPROVE) == ""
    before = shell.get("agentapproval")
    assert shell.patch("eve", APPROVE) == ""
    assert shell.get("agentapproval") == before


@pytest.mark.parametrize("state", ["Applied", "Expired", "Superseded"])
def test_a_late_decision(state: str, shell: Shell) -> None:
    """Nobody would look at it any more, so who decides is told at once."""
    shell.ask()
    patch = ["patch", "agentapproval", "x", "--subresource", "status", "--type", "merge", "--patch"]
    assert shell.run(OPERATOR, *patch, json.dumps({"status": {"state": state}})) == ""
    complaint = f"{DENIED}the run no longer waits for this decision: the approval is {state}"
    assert complaint in shell.patch("ada", APPROVE)
    assert complaint in shell.patch("ada", {"decision": "Reject"})
    assert shell.spec() == REQUEST


def test_a_decision_may_be_settled_and_stays(shell: Shell) -> None:
    shell.ask()
    assert shell.patch("ada", APPROVE) == ""
    patch = ["patch", "agentapproval", "x", "--subresource", "status", "--type", "merge", "--patch"]
    assert shell.run(OPERATOR, *patch, '{"status":{"state":"Applied"}}') == ""
    assert shell.run("eve", "label", "agentapproval", "x", "team=shop") == ""
    assert shell.spec() == {**REQUEST, **APPROVE, "decidedBy": "ada"}


def test_json_patches(shell: Shell) -> None:
    shell.ask()
    assert missing_verb("eve", "support", shell.namespace) in shell.json_patch(
        "eve", {"op": "add", "path": "/spec/decision", "value": "Approve"}
    )
    assert shell.json_patch("ada", {"op": "add", "path": "/spec/decision", "value": "Approve"}) == ""
    decided = {**REQUEST, **APPROVE, "decidedBy": "ada"}
    assert shell.spec() == decided
    for operations in (
        [{"op": "remove", "path": "/spec/decision"}],
        [{"op": "remove", "path": "/spec/decision"}, {"op": "remove", "path": "/spec/decidedBy"}],
        [{"op": "replace", "path": "/spec/decision", "value": "Reject"}],
        [{"op": "replace", "path": "/spec", "value": REQUEST}],
    ):
        assert FINAL in shell.json_patch("ada", *operations)
    assert shell.spec() == decided


def test_a_dry_run_tells_the_same_and_decides_nothing(shell: Shell) -> None:
    shell.ask()
    assert missing_verb("eve", "support", shell.namespace) in shell.patch("eve", APPROVE, "--dry-run=server")
    assert shell.patch("ada", APPROVE, "--dry-run=server") == ""
    assert shell.spec() == REQUEST


# ── What else is written ───────────────────────────────────────────────────────────────────────────────────────────


def test_labels_are_free(shell: Shell) -> None:
    shell.ask()
    assert shell.run("eve", "label", "agentapproval", "x", "team=shop") == ""
    assert shell.run("eve", "annotate", "agentapproval", "x", "seen=yes") == ""
    assert shell.patch("ada", APPROVE) == ""
    assert shell.run("eve", "label", "agentapproval", "x", "team-") == ""
    assert shell.spec() == {**REQUEST, **APPROVE, "decidedBy": "ada"}


def test_the_status_is_the_operators(shell: Shell) -> None:
    shell.ask()
    status = ["patch", "agentapproval", "x", "--subresource", "status", "--type", "merge", "--patch"]
    refusal = shell.run("bob", *status, '{"status":{"state":"Applied"}}')
    assert refusal.startswith("Error from server (Forbidden)")
    assert 'resource "agentapprovals/status"' in refusal
    both = '{"status":{"state":"Delivered"},"spec":{"decision":"Approve","decidedBy":"ada"}}'
    assert shell.run(OPERATOR, *status, both) == ""
    found = shell.get("agentapproval")
    assert (found["spec"], found["status"]["state"]) == (REQUEST, "Delivered"), "a decision came by way of the status"


def test_an_approval_stays_with_its_run(shell: Shell) -> None:
    assert shell.run("eve", "create", "-f", "-", stdin=agent_run()) == ""
    run = shell.get("agentrun")
    owner = {
        "apiVersion": "dalang.dev/v1alpha1",
        "kind": "AgentRun",
        "name": "x",
        "uid": run["metadata"]["uid"],
        "controller": True,
    }
    assert shell.run(OPERATOR, "create", "-f", "-", stdin=approval(REQUEST, ownerReferences=[owner])) == ""

    def patch(user: str, owners: Any, spec: Any) -> str:
        body = json.dumps({"metadata": {"ownerReferences": owners}, "spec": spec})
        return shell.run(user, "patch", "agentapproval", "x", "--type", "merge", "--patch", body)

    complaint = (
        f"{DENIED}only the operator changes an approval's ownerReferences: ada may not patch agentruns/status in "
        f"namespace {shell.namespace}"
    )
    for owners in (None, [], [{**owner, "uid": "1"}], [{**owner, "name": "y"}]):
        assert complaint in patch("ada", owners, {})
        assert complaint in patch("ada", owners, APPROVE)
    assert shell.get("agentapproval")["metadata"]["ownerReferences"] == [owner]
    assert shell.patch("ada", APPROVE) == ""
    # Else `kubectl delete --cascade=orphan` of the run would never end.
    assert patch(GARBAGE_COLLECTOR, None, {}) == ""
    assert "ownerReferences" not in shell.get("agentapproval")["metadata"]


def test_the_label_by_which_people_find_an_approval_stays(shell: Shell) -> None:
    labels = {"dalang.dev/run": "refund"}
    assert shell.run(OPERATOR, "create", "-f", "-", stdin=approval(REQUEST, labels=labels)) == ""
    complaint = (
        f"{DENIED}only the operator changes an approval's label dalang.dev/run: eve may not patch agentruns/status in "
        f"namespace {shell.namespace}"
    )
    for change in (["dalang.dev/run=lunch", "--overwrite"], ["dalang.dev/run-"]):
        assert complaint in shell.run("eve", "label", "agentapproval", "x", *change)
    assert shell.run("eve", "label", "agentapproval", "x", "team=shop") == "", "any other is nobody's business"
    assert shell.patch("ada", APPROVE) == ""
    assert shell.get("agentapproval")["metadata"]["labels"] == {**labels, "team": "shop"}
    assert shell.run(OPERATOR, "label", "agentapproval", "x", "dalang.dev/run-") == ""


def test_nobody_else_keeps_an_approval_from_going(shell: Shell) -> None:
    shell.ask()

    def finalizers(user: str, *names: str) -> str:
        body = json.dumps({"metadata": {"finalizers": names or None}})
        return shell.run(user, "patch", "agentapproval", "x", "--type", "merge", "--patch", body)

    complaint = (
        f"{DENIED}only the operator adds finalizers to an approval: eve may not patch agentruns/status in "
        f"namespace {shell.namespace}"
    )
    assert complaint in finalizers("eve", "x.io/y")
    assert complaint in finalizers("eve", "foregroundDeletion", "x.io/y")
    assert finalizers(OPERATOR, "x.io/y") == ""
    assert complaint.replace("eve", "bob") in finalizers("bob", "x.io/y", "x.io/z")
    assert shell.run("eve", "label", "agentapproval", "x", "team=shop") == "", "what is there is no obstacle"
    assert finalizers("eve") == "", "anybody may remove one"
    assert "finalizers" not in shell.get("agentapproval")["metadata"]


@pytest.mark.parametrize("cascade", ["foreground", "orphan", "background"])
def test_an_approval_goes_in_every_way_kubernetes_deletes(cascade: str, shell: Shell) -> None:
    shell.ask()
    assert shell.run(None, "delete", "agentapproval", "x", f"--cascade={cascade}", "--timeout=20s") == ""


def test_nobody_decides_what_is_being_deleted(shell: Shell) -> None:
    shell.ask()
    kept = json.dumps({"metadata": {"finalizers": ["x.io/y", "z.io/a"]}})
    assert shell.run(OPERATOR, "patch", "agentapproval", "x", "--type", "merge", "--patch", kept) == ""
    assert shell.run(None, "delete", "agentapproval", "x", "--wait=false") == ""
    complaint = f"{DENIED}it is being deleted; its run asks anew once it is gone. Finalizers keep it: x.io/y, z.io/a"
    assert complaint in shell.patch("ada", APPROVE)
    assert complaint in shell.patch("ada", {"decision": "Reject", "reason": "No."})
    assert shell.spec() == REQUEST
    gone = json.dumps({"metadata": {"finalizers": None}})
    assert shell.run("ada", "patch", "agentapproval", "x", "--type", "merge", "--patch", gone) == ""
    assert "NotFound" in shell.run(None, "get", "agentapproval", "x")


# ── Whoever applies manifests ──────────────────────────────────────────────────────────────────────────────────────


def test_deciding_by_server_side_apply(shell: Shell) -> None:
    shell.ask()
    decision = approval(APPROVE)
    apply = ["apply", "--server-side", "--field-manager", "approver", "-f", "-"]
    assert missing_verb("eve", "support", shell.namespace) in shell.run("eve", *apply, stdin=decision)
    assert shell.run("ada", *apply, stdin=decision) == ""
    decided = {**REQUEST, **APPROVE, "decidedBy": "ada"}
    assert shell.spec() == decided
    assert shell.run("ada", *apply, stdin=decision) == "", "a second time"
    assert shell.run("eve", *apply, stdin=decision) == "", "no change, so nothing to refuse"
    assert FINAL in shell.run("bob", *apply, "--force-conflicts", stdin=approval({"decision": "Reject"}))
    assert shell.spec() == decided


def test_another_manager_applies_the_request(shell: Shell) -> None:
    """A backup, or a GitOps tool that was given a copy: the decision stays."""
    shell.ask()
    assert shell.patch("ada", APPROVE) == ""
    copy = approval(REQUEST, labels={"from": "git"})
    apply = ["apply", "--server-side", "--field-manager", "kustomize-controller", "--force-conflicts", "-f", "-"]
    for _ in range(2):
        assert shell.run("eve", *apply, stdin=copy) == ""
        assert shell.spec() == {**REQUEST, **APPROVE, "decidedBy": "ada"}


def test_kubectl_apply_twice(shell: Shell) -> None:
    shell.ask()
    for _ in range(2):
        assert shell.run("ada", "apply", "-f", "-", stdin=approval({**REQUEST, **APPROVE})) == ""
        assert shell.spec() == {**REQUEST, **APPROVE, "decidedBy": "ada"}
    assert FINAL in shell.run("ada", "apply", "-f", "-", stdin=approval(REQUEST))
    assert shell.spec() == {**REQUEST, **APPROVE, "decidedBy": "ada"}


def test_fluxs_sweep_of_what_kubectl_wrote(shell: Shell) -> None:
    """Flux makes the fields of managers called kubectl* its own, then applies; what Git does not have would go."""
    shell.ask()
    assert shell.patch("ada", APPROVE) == ""
    decided = {**REQUEST, **APPROVE, "decidedBy": "ada"}
    entries = shell.get("agentapproval")["metadata"]["managedFields"]
    swept = [entry for entry in entries if not entry["manager"].startswith("kubectl-patch")]
    assert len(swept) < len(entries)
    apply = ["apply", "--server-side", "--field-manager", "kustomize-controller", "--force-conflicts", "-f", "-"]

    assert shell.json_patch("eve", {"op": "replace", "path": "/metadata/managedFields", "value": swept}) == ""
    assert shell.run("eve", *apply, stdin=approval(REQUEST)) == "", "the decision has no manager any more"
    assert shell.spec() == decided

    taken = [
        {**entry, "manager": "kustomize-controller", "operation": "Apply"}
        for entry in entries
        if entry["manager"].startswith("kubectl-patch")
    ]
    assert shell.json_patch("eve", {"op": "replace", "path": "/metadata/managedFields", "value": taken}) == ""
    assert FINAL in shell.run("eve", *apply, stdin=approval(REQUEST)), "the decision is Flux's to remove"
    assert shell.spec() == decided


# ── Who created a run ──────────────────────────────────────────────────────────────────────────────────────────────

CREATED_BY = "dalang.dev/created-by"
NEVER = (
    "ValidatingAdmissionPolicy 'dalang-created-by' with binding 'dalang-created-by' denied request: "
    "annotation dalang.dev/created-by never changes"
)


@pytest.mark.parametrize("before", [None, {"team": "shop"}, {CREATED_BY: "ada", "team": "shop"}])
def test_a_run_says_who_created_it(before: dict[str, str] | None, shell: Shell) -> None:
    manifest = agent_run(**({"annotations": before} if before else {}))
    assert shell.run("eve", "create", "-f", "-", stdin=manifest) == ""
    assert shell.get("agentrun")["metadata"]["annotations"] == {**(before or {}), CREATED_BY: "eve"}


def test_it_never_changes(shell: Shell) -> None:
    assert shell.run("eve", "create", "-f", "-", stdin=agent_run()) == ""
    assert NEVER in shell.run("ada", "annotate", "--overwrite", "agentrun", "x", f"{CREATED_BY}=ada")
    assert NEVER in shell.run("ada", "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=agent_run(annotations={CREATED_BY: "ada"}))  # fmt: skip
    assert shell.run("ada", "annotate", "agentrun", "x", f"{CREATED_BY}-") == "", "it is put back"
    assert shell.run("ada", "replace", "-f", "-", stdin=agent_run()) == ""
    assert shell.get("agentrun")["metadata"]["annotations"] == {CREATED_BY: "eve"}


@pytest.mark.parametrize("how", [["apply"], ["apply", "--server-side"]], ids=["apply", "server-side apply"])
def test_applying_a_run_twice(how: list[str], shell: Shell) -> None:
    for team in ("shop", "shop", "sales"):
        manifest = agent_run(labels={"team": team}, annotations={"team": team})
        assert shell.run("eve", *how, "-f", "-", stdin=manifest) == ""
        assert shell.get("agentrun")["metadata"]["annotations"][CREATED_BY] == "eve"


# ── A schedule's runs ──────────────────────────────────────────────────────────────────────────────────────────────

SCHEDULE_LABEL = {"dalang.dev/schedule": "nightly"}
SCHEDULE_OWNER = {"apiVersion": "dalang.dev/v1alpha1", "kind": "AgentSchedule", "name": "nightly", "uid": "7f0c1d9e"}
OTHER_OWNER = {"apiVersion": "v1", "kind": "ConfigMap", "name": "mine", "uid": "1234"}


def not_a_schedules(user: str, namespace: str) -> str:
    return (
        "ValidatingAdmissionPolicy 'dalang-scheduled-runs' with binding 'dalang-scheduled-runs' denied request: "
        "only the operator gives a run to an AgentSchedule: leave out the label dalang.dev/schedule and ownerReferences of "
        f"kind AgentSchedule; {user} may not patch agentruns/status in namespace {namespace}"
    )


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param({"labels": SCHEDULE_LABEL}, id="by its label"),
        pytest.param({"ownerReferences": [SCHEDULE_OWNER]}, id="by an owner"),
        pytest.param(
            {"ownerReferences": [OTHER_OWNER, {**SCHEDULE_OWNER, "controller": True}]}, id="by its controller"
        ),
        pytest.param({"ownerReferences": [{**SCHEDULE_OWNER, "apiVersion": "other.dev/v1"}]}, id="in any group"),
    ],
)
@pytest.mark.parametrize("how", [["create"], ["apply", "--server-side"]], ids=["create", "server-side apply"])
def test_only_the_operator_gives_a_run_to_a_schedule(how: list[str], claim: dict[str, Any], shell: Shell) -> None:
    refusal = not_a_schedules("eve", shell.namespace)
    assert refusal in shell.run("eve", *how, "-f", "-", stdin=agent_run(**claim))
    assert shell.run("eve", "create", "-f", "-", stdin=agent_run(labels={"team": "shop"})) == ""
    patch = ["patch", "agentrun", "x", "--type", "merge", "--patch", json.dumps({"metadata": claim})]
    assert refusal in shell.run("eve", *patch)
    assert refusal in shell.run("eve", *patch, "--dry-run=server")
    assert "dalang.dev/schedule" not in shell.get("agentrun")["metadata"]["labels"]


def test_a_schedules_run_may_be_cancelled_and_orphaned(shell: Shell) -> None:
    template = {"spec": {"agentRef": {"name": "support"}, "input": "Hello."}}
    schedule = {
        "apiVersion": "dalang.dev/v1alpha1",
        "kind": "AgentSchedule",
        "metadata": {"name": "nightly"},
        "spec": {"schedule": {"cron": ["0 9 * * *"]}, "runTemplate": template},
    }
    assert shell.run(None, "create", "-f", "-", stdin=json.dumps(schedule)) == ""
    uid = shell.get("agentschedule", "nightly")["metadata"]["uid"]
    owner = {**SCHEDULE_OWNER, "uid": uid, "controller": True, "blockOwnerDeletion": False}
    manifest = agent_run(labels=SCHEDULE_LABEL, ownerReferences=[owner])
    assert shell.run("dalang-operator", "create", "-f", "-", stdin=manifest) == ""
    assert shell.run("eve", "label", "agentrun", "x", "team=shop") == ""
    assert shell.run("eve", "patch", "agentrun", "x", "--type", "merge", "--patch", '{"spec":{"cancel":true}}') == ""
    other = json.dumps({"metadata": {"ownerReferences": [{**owner, "uid": "another"}]}})
    assert not_a_schedules("eve", shell.namespace) in shell.run(
        *("eve", "patch", "agentrun", "x", "--type", "merge", "--patch", other)
    )
    orphan = json.dumps({"metadata": {"ownerReferences": None}})
    assert shell.run(GARBAGE_COLLECTOR, "patch", "agentrun", "x", "--type", "merge", "--patch", orphan) == ""
    assert "ownerReferences" not in shell.get("agentrun")["metadata"]


# ── Missing or altered ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("alter", "problem"),
    [
        pytest.param(
            ["delete", "validatingadmissionpolicybinding", "dalang-approvals"],
            "ValidatingAdmissionPolicyBinding dalang-approvals is missing",
            id="missing",
        ),
        pytest.param(
            [
                *("patch", "validatingadmissionpolicy", "dalang-approvals", "--type", "merge", "--patch"),
                '{"spec":{"matchConditions":[{"name":"never","expression":"false"}]}}',
            ],
            "ValidatingAdmissionPolicy dalang-approvals is altered (spec.matchConditions)",
            id="altered",
        ),
    ],
)
def test_the_problem_names_the_command_that_mends_it(alter: list[str], problem: str, shell: Shell) -> None:
    def look() -> str | None:
        listed = shell.control_plane.kubectl("get", ",".join(admission.PLURALS.values()), "--output", "json")
        found = {
            each["kind"]: each for each in json.loads(listed)["items"] if each["metadata"]["name"] == admission.NAME
        }
        return admission.proof_problem(found)

    shell.control_plane.kubectl(*alter)
    said = look()
    assert said
    assert said.startswith(problem)
    command = said.rsplit(": ", 1)[1]
    environment = shell.control_plane.environment
    environment = {**environment, "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}
    subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], env=environment, check=True, capture_output=True)
    assert look() is None
    shell.ask()
    for _ in range(50):  # enforced within a second
        if shell.patch("eve", APPROVE, "--dry-run=server"):
            return
    raise AssertionError("the policy is not enforced")

"""`dalang approvals`, `approve` and `reject` against a real API server, as users with and without the right to decide."""

import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from dalang_cli.approvals.cluster import Cluster
from dalang_cli.cluster import ClusterError

if TYPE_CHECKING:
    from tests.cluster.conftest import ControlPlane

SEES = {"apiGroups": ["dalang.dev"], "resources": ["agentapprovals"], "verbs": ["get", "list", "watch"]}
PATCHES = {**SEES, "verbs": ["get", "patch"]}
APPROVES = {"apiGroups": ["dalang.dev"], "resources": ["agents"], "resourceNames": ["support"], "verbs": ["approve"]}
RULES: dict[str, list[dict[str, Any]]] = {
    "ada": [SEES, PATCHES, APPROVES],
    "eve": [SEES, PATCHES],
    "viewer": [SEES],
    "stranger": [],
}
"""Ada decides for the agent `support`, in a test's own namespace."""

ARGUMENTS = '{"address":{"city":"Berlin"},"amount":120,"note":null,"order":"A-7"}'
REQUEST = {
    "subject": "ToolCall",
    "runRef": {"name": "refund"},
    "workflowId": "dalang.shop.refund.1",
    "agent": "support",
    "tool": "refund",
    "question": "Pay it back?",
    "arguments": ARGUMENTS,
    "digest": f"sha256:{'0' * 64}",
    "requestedAt": "2026-01-02T03:04:05Z",
}


@dataclass(frozen=True)
class Shell:
    """Users' shells: each has a kubeconfig of its own, whose context names the namespace."""

    control_plane: "ControlPlane"
    namespace: str
    directory: Path

    def user(self, name: str) -> str:
        """Return the name by which the API server knows a user."""
        return f"system:serviceaccount:{self.namespace}:{name}"

    def environment(self, name: str) -> dict[str, str]:
        path = f"{self.directory}:{self.control_plane.environment['PATH']}"
        return {**self.control_plane.environment, "PATH": path, "KUBECONFIG": str(self.directory / name)}

    def start(self, name: str, *arguments: str, **more: Any) -> "subprocess.Popen[str]":
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [sys.executable, "-m", "dalang_cli.main", *arguments],
            env=self.environment(name),
            text=True,
            **{**pipes, **more},
        )

    def run(self, name: str, *arguments: str) -> tuple[int, str, str]:
        """Run the command as a user; returns exit code, output and complaints."""
        return finished(self.start(name, *arguments))

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.control_plane.kubectl("--namespace", self.namespace, *arguments, stdin=stdin)

    def ask(self, name: str = "x", **more: Any) -> None:
        """Create an approval as the operator does."""
        made = {
            "apiVersion": "dalang.dev/v1alpha1",
            "kind": "AgentApproval",
            "metadata": {"name": name},
            "spec": {**REQUEST, **more},
        }
        self.kubectl("create", "-f", "-", stdin=json.dumps(made))

    def spec(self, name: str = "x") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", "agentapproval", name, "--output", "json"))["spec"]
        return found

    def say(self, state: str, *conditions: dict[str, str], name: str = "x") -> None:
        """Write the status, as the operator does, once there is a decision."""
        self.kubectl("wait", f"agentapproval/{name}", "--for=jsonpath={.spec.decision}", "--timeout=20s")
        made = [{"lastTransitionTime": "2026-01-02T03:04:06Z", **condition} for condition in conditions]
        self.write_status({"state": state, "conditions": made}, name)

    def write_status(self, status: dict[str, Any], name: str = "x") -> None:
        body = json.dumps({"status": status})
        self.kubectl("patch", "agentapproval", name, "--subresource", "status", "--type", "merge", "--patch", body)


def finished(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    with process:
        try:
            out, err = process.communicate(timeout=40)
        finally:
            process.kill()
    return process.returncode, out, err


def ready(status: str, reason: str, message: str) -> dict[str, str]:
    return {"type": "Ready", "status": status, "reason": reason, "message": message}


@pytest.fixture
def shell(control_plane: "ControlPlane", namespace: str, tmp_path: Path) -> Shell:
    shell = Shell(control_plane, namespace, tmp_path)
    cluster = yaml.safe_load(control_plane.kubeconfig.read_text())["clusters"][0]["cluster"]
    for user, rules in RULES.items():
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user}
        subject = {"kind": "ServiceAccount", "name": user, "namespace": namespace}
        rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": user}}
        objects: list[dict[str, Any]] = [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": user}},
            {**rbac, "kind": "Role", "rules": rules},
            {**rbac, "kind": "RoleBinding", "roleRef": reference, "subjects": [subject]},
        ]
        shell.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        token = shell.kubectl("create", "token", user).strip()
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [
                {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": namespace}},
                {"name": "elsewhere", "context": {"cluster": "c", "user": "u", "namespace": "elsewhere"}},
            ],
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": token}}],
        }
        (tmp_path / user).write_text(json.dumps(kubeconfig))
    return shell


# ── dalang approvals ───────────────────────────────────────────────────────────────────────────────────────────────


def test_listing(shell: Shell) -> None:
    nothing = f"Nothing waits for a human in namespace {shell.namespace}.\n"
    assert shell.run("viewer", "approvals") == (0, "", nothing)
    shell.ask("one", expiresAt="2126-01-02T03:04:05Z", question="Two\nlines?")
    shell.ask("two", subject="Output", tool=None)
    shell.ask("three", tool="greet", target={"kind": "Function", "name": "pay"})
    shell.ask("old")
    shell.write_status({"state": "Expired"}, "old")

    code, out, err = shell.run("viewer", "approvals")
    assert (code, err) == (0, "")
    heading, *rows = (line.split() for line in out.splitlines())
    assert heading == ["NAME", "RUN", "AGENT", "TOOL", "EXPIRES", "AGE", "QUESTION"]
    one, three, two = sorted(rows)
    assert three[3:6] == ["greet", "(function", "pay)"]
    assert one[:5] == ["one", "refund", "support", "refund", "in"]
    assert one[-1] == "Two\\nlines?"
    assert [*two[:5], *two[6:]] == ["two", "refund", "support", "(answer)", "never", "Pay", "it", "back?"]

    code, out, err = shell.run("viewer", "approvals", "--all", "-o", "json")
    assert (code, err) == (0, "")
    assert sorted(each["metadata"]["name"] for each in json.loads(out)["items"]) == ["old", "one", "three", "two"]
    code, out, err = shell.run("viewer", "approvals", "--all")
    assert [line.split()[4] for line in out.splitlines() if line.startswith("old")] == ["Expired"]
    code, out, err = shell.run("viewer", "approvals", "--context", "elsewhere")
    assert (code, out) == (1, "")
    assert 'cannot list resource "agentapprovals" in API group "dalang.dev" in the namespace "elsewhere"' in err
    assert shell.run("stranger", "approvals")[0] == 1
    assert shell.run("viewer", "approvals", "--context", "nowhere")[0] == 2
    assert shell.run("viewer", "approvals", "-A")[0] == 1


def test_listing_all_namespaces(shell: Shell) -> None:
    shell.ask()
    done = subprocess.run(
        [sys.executable, "-m", "dalang_cli.main", "approvals", "-A"],
        env=shell.control_plane.environment,
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith("NAMESPACE")
    assert [shell.namespace, "x"] in [line.split()[:2] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("output", ["table", "json"])
def test_watching(output: str, shell: Shell) -> None:
    shell.ask("one")
    watch = shell.start("viewer", "approvals", "-w", *(["-o", "json"] if output == "json" else []))
    assert watch.stdout

    def next_one() -> tuple[str, str]:
        assert watch.stdout
        line = watch.stdout.readline()
        if output == "json":
            found = json.loads(line)
            return found["metadata"]["name"], found["spec"].get("decision", "")
        return line.split()[0], line.split()[4].partition(",")[2]

    if output == "table":
        assert next_one()[0] == "NAME"
    assert next_one() == ("one", "")
    shell.ask("two")
    assert next_one() == ("two", "")
    assert shell.run("ada", "approve", "one", "--yes", "--wait", "0")[0] == 0
    assert next_one() == ("one", "Approve")
    watch.send_signal(2)
    assert finished(watch) == (0, "", "")


# ── Deciding ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_approved_and_applied(shell: Shell) -> None:
    shell.ask()
    process = shell.start("ada", "approve", "x", "--reason", "Known customer.", "--yes")
    shell.say("Delivered", ready("Unknown", "Delivered", "It was sent"))
    shell.say("Applied", ready("True", "Applied", "The run acted on it: Approve by ada"))
    code, out, err = finished(process)
    assert (code, err) == (0, "")
    assert '  {\n    "address": {\n      "city": "Berlin"\n    },\n    "amount": 120,\n    "note": null,' in out
    assert f"Decided: Approve by {shell.user('ada')}.\nApplied. The run acted on it: Approve by ada\n" in out
    decision = {"decision": "Approve", "reason": "Known customer.", "decidedBy": shell.user("ada")}
    assert shell.spec() == {**REQUEST, **decision}


def test_what_a_call_would_run_is_shown(shell: Shell) -> None:
    shell.ask(tool="greet", target={"kind": "MCP", "name": "pay", "server": "shop"})
    code, out, _ = shell.run("ada", "approve", "x")
    assert code == 2
    assert "\nTool          greet (pay of MCP server shop)\n" in out


def test_approved_with_changes(shell: Shell) -> None:
    """A null stays a null: in a merge patch it would be a removed argument."""
    shell.ask()
    changes = ["--set", "amount=12", "--set", "address.city=Bonn", "--set", "by=null"]
    code, out, _ = shell.run("ada", "approve", "x", *changes, "--yes", "--wait", "0")
    assert code == 0
    changed = '  - address.city: "Berlin"\n  + address.city: "Bonn"\n  - amount: 120\n  + amount: 12\n  + by: null\n'
    assert f"Changes\n{changed}" in out
    override = {"address": {"city": "Bonn"}, "amount": 12, "note": None, "order": "A-7", "by": None}
    assert shell.spec()["override"] == override


def test_rejected_and_delivered(shell: Shell) -> None:
    shell.ask()
    process = shell.start("ada", "reject", "x", "--reason", "Too much.", "--yes")
    shell.say("Delivered", ready("Unknown", "Delivered", "Reject by ada was sent to the run"))
    code, out, err = finished(process)
    assert (code, err) == (0, "")
    assert "Reason\n  Too much.\n" in out
    assert out.endswith("Delivered. Reject by ada was sent to the run\n")
    assert shell.spec()["reason"] == "Too much."


def test_who_lacks_the_verb_is_told_how_to_get_it(shell: Shell) -> None:
    shell.ask()
    code, out, err = shell.run("eve", "approve", "x", "--yes")
    assert code == 1
    assert "Decided" not in out
    missing = f"{shell.user('eve')} needs the verb approve on agents/support (or on agentapprovals) in namespace"
    assert missing in err
    assert f"--role approve-support --user '{shell.user('eve')}'\n" in err, "the message is not whole"
    code, _, err = shell.run("viewer", "approve", "x", "--yes")
    assert code == 1
    assert 'cannot patch resource "agentapprovals"' in err
    assert shell.spec() == REQUEST


def test_decided_already(shell: Shell) -> None:
    shell.ask()
    assert shell.run("ada", "approve", "x", "--yes", "--wait", "0")[0] == 0
    code, _, err = shell.run("eve", "reject", "x", "--reason", "No.", "--yes")
    assert code == 3
    said = f"error: x is decided already: Approve by {shell.user('ada')}"
    assert err == f"{said} (not yet proven); it is Pending\n", "nobody has looked yet whether it is"
    shell.write_status({"state": "Delivered", "decidedBy": shell.user("ada")})
    code, _, err = shell.run("eve", "reject", "x", "--reason", "No.", "--yes")
    assert (code, err) == (3, f"{said}; it is Delivered\n")
    _, out, _ = shell.run("viewer", "approvals", "--all")
    assert out.splitlines()[1].split()[4:6] == ["Delivered,Approve", shell.user("ada")]


def test_what_is_being_deleted(shell: Shell) -> None:
    shell.ask()
    shell.kubectl("patch", "agentapproval", "x", "--type=merge", "-p", '{"metadata":{"finalizers":["x.io/y"]}}')
    process = shell.start("ada", "approve", "x", "--yes", "--wait", "3")
    shell.kubectl("wait", "agentapproval/x", "--for=jsonpath={.spec.decision}", "--timeout=20s")
    shell.kubectl("delete", "agentapproval", "x", "--wait=false")
    why = "it is being deleted; its run asks anew once it is gone. Finalizers keep it: x.io/y"
    code, _, err = finished(process)
    assert (code, err) == (4, f"Not delivered within 3 s: {why}\n")
    shell.ask("z")
    shell.kubectl("patch", "agentapproval", "z", "--type=merge", "-p", '{"metadata":{"finalizers":["x.io/y"]}}')
    shell.kubectl("delete", "agentapproval", "z", "--wait=false")
    code, _, err = shell.run("ada", "approve", "z", "--yes")
    assert (code, err) == (3, f"error: z cannot be decided: {why}\n")
    shell.kubectl("patch", "agentapproval", "x", "z", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')


@pytest.mark.parametrize("state", ["Expired", "Superseded"])
def test_too_late(state: str, shell: Shell) -> None:
    shell.ask()
    shell.write_status({"state": state})
    code, _, err = shell.run("ada", "approve", "x", "--yes")
    assert (code, err) == (3, f"error: x need not be decided any more: it is {state}\n")
    shell.ask("y")
    process = shell.start("ada", "approve", "y", "--yes")
    shell.say(state, ready("False", state, "It came too late"), name="y")
    code, _, err = finished(process)
    assert (code, err) == (3, f"{state}. It came too late\n")


def test_no_such_approval(shell: Shell) -> None:
    code, _, err = shell.run("ada", "approve", "x", "--yes")
    assert (code, err) == (2, 'error: agentapprovals.dalang.dev "x" not found\n')


def test_nothing_proves_who_decides(shell: Shell) -> None:
    shell.ask()
    process = shell.start("ada", "approve", "x", "--yes", "--wait", "30")
    said = "ValidatingAdmissionPolicy dalang-approvals is missing. Install it: dalang admission-policies | kubectl apply -f -"
    shell.say(
        "Pending",
        ready("False", "PolicyMissing", said),
        {"type": "Proven", "status": "False", "reason": "PolicyMissing", "message": said},
    )
    code, _, err = finished(process)
    assert (code, err) == (4, f"Not delivered: PolicyMissing. {said}\n")
    code, out, err = shell.run("viewer", "approvals")
    assert (code, err) == (0, ""), "somebody has to see to it"
    assert out.splitlines()[1].endswith(f"  Approve is not delivered: PolicyMissing. {said}")


def test_the_operator_is_away(shell: Shell) -> None:
    shell.ask()
    code, _, err = shell.run("ada", "approve", "x", "--yes", "--wait", "0.5")
    assert code == 4
    assert err.startswith("Not delivered within 0.5 s: the operator has not looked at it.")
    assert shell.spec()["decision"] == "Approve"


def test_deleted_before_it_was_delivered(shell: Shell) -> None:
    shell.ask()
    process = shell.start("ada", "approve", "x", "--yes")
    shell.kubectl("wait", "agentapproval/x", "--for=jsonpath={.spec.decision}", "--timeout=20s")
    shell.kubectl("delete", "agentapproval", "x")
    code, _, err = finished(process)
    assert code == 4
    assert "asks anew" in err


# ── On a terminal, and without one ─────────────────────────────────────────────────────────────────────────────────


def test_without_a_terminal_it_needs_yes(shell: Shell) -> None:
    shell.ask()
    code, out, err = shell.run("ada", "approve", "x")
    assert code == 2
    assert '"amount": 120' in out
    assert "add --yes" in err
    assert shell.spec() == REQUEST


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 2), ("n", 2)])
def test_a_terminal_is_asked(answer: str, code: int, shell: Shell) -> None:
    """Bytes that would turn what follows on the terminal are shown, not sent."""
    shell.ask(arguments='{"note":"\\u001b[2Jgood \u202e\u009b1A"}')
    controller, terminal = pty.openpty()
    process = shell.start("ada", "approve", "x", "--wait", "0", stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    while not shown.endswith(b"[y/N] "):
        shown += os.read(controller, 65536)
    os.write(controller, f"{answer}\n".encode())
    assert process.wait(timeout=40) == code
    os.close(controller)
    assert '"note": "\\u001b[2Jgood \\u202e\\u009b1A"' in shown.decode()
    assert f"Approve, as {shell.user('ada')}? [y/N] " in shown.decode()
    assert shell.spec().get("decision") == (None if code else "Approve")


def test_as_a_plugin_of_kubectl(shell: Shell) -> None:
    """The file is what pip makes of the entry point."""
    plugin = shell.directory / "kubectl-dalang"
    plugin.write_text(f"#!{sys.executable}\nimport sys\nfrom dalang_cli.main import main\nsys.exit(main())\n")
    plugin.chmod(0o755)
    shell.ask()

    def kubectl_dalang(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = ["kubectl", "dalang", *arguments]
        return subprocess.run(command, env=shell.environment("ada"), text=True, capture_output=True, check=False)

    assert kubectl_dalang("approve", "--help").stdout.startswith("usage: kubectl dalang approve ")
    assert kubectl_dalang("approve", "x", "--yes", "--wait", "0").returncode == 0
    assert shell.spec()["decidedBy"] == shell.user("ada")
    assert kubectl_dalang("approve", "x", "--yes").returncode == 3


# ── Under the commands ─────────────────────────────────────────────────────────────────────────────────────────────


def test_another_object_of_that_name_is_not_decided(shell: Shell) -> None:
    cluster = Cluster(str(shell.directory / "ada"), None, None)
    shell.ask()
    asked = cluster.get("x")
    shell.kubectl("delete", "agentapproval", "x")
    shell.ask()
    with pytest.raises(ClusterError, match="rejected our request"):
        cluster.decide(asked, {"decision": "Approve"})
    cluster.close()
    assert shell.spec() == REQUEST


def test_the_roles_of_the_documentation(shell: Shell) -> None:
    page = (Path(__file__).parents[2] / "docs" / "approvals.md").read_text()
    block = page.partition("## Who may\n")[2].split("```sh\n")[1].partition("```")[0]
    for line in block.splitlines():
        shell.kubectl(*line.split()[1:])

    def may(verb: str, resource: str) -> bool:
        command = ["kubectl", "-n", shell.namespace, "auth", "can-i", verb, resource, "--as", "ada"]
        done = subprocess.run(command, env=shell.control_plane.environment, text=True, capture_output=True, check=False)
        return done.stdout.strip() == "yes"

    assert may("list", "agentapprovals.dalang.dev")
    assert may("patch", "agentapprovals.dalang.dev/x")
    assert may("approve", "agents.dalang.dev/support")
    assert not may("approve", "agents.dalang.dev/sales")
    assert not may("approve", "agentapprovals.dalang.dev")

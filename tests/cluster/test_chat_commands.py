"""`dalang chat` and `dalang transcript` against a real API server. The statuses are written by the tests, as the reporter does."""

import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from dalang_api import GROUP, VERSION
from dalang_api.v1alpha1.agent import Agent
from dalang_api.v1alpha1.agentrun import AgentRun
from dalang_api.v1alpha1.agentsession import AgentSession
from kubernetes import client, watch

if TYPE_CHECKING:
    from tests.cluster.conftest import ControlPlane, Objects

Json = dict[str, Any]
AT = "2026-01-02T03:04:06Z"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
REQUEST = {
    "subject": "ToolCall",
    "workflowId": "dalang.shop.s.1",
    "agent": "support",
    "tool": "refund",
    "question": "Pay it back?",
    "arguments": '{"amount":120}',
    "digest": f"sha256:{'0' * 64}",
    "requestedAt": AT,
}


@dataclass
class Typed:
    """A chat on a terminal."""

    process: "subprocess.Popen[bytes]"
    controller: int
    shown: str = ""

    def until(self, words: str) -> str:
        """Return what was shown until some words are, colours left out; it is not returned again."""
        while words not in (text := ESCAPES.sub("", self.shown).replace("\r", "")):
            try:
                self.shown += os.read(self.controller, 65536).decode()
            except OSError:  # the terminal was closed
                raise AssertionError(f"it ended before {words!r}: {text}") from None
        before, _, self.shown = text.partition(words)
        return before + words

    def type(self, text: str) -> None:
        os.write(self.controller, text.encode())

    def interrupt(self, words: str) -> None:
        """Press Ctrl-C and wait until some words are shown; once more where nothing came of it.

        A signal is lost to Python's readline in the moment between its prompt and its wait for a key.
        """
        self.shown = ""
        while words not in self.shown:
            self.type("\x03")
            while words not in self.shown and select.select([self.controller], [], [], 5.0)[0]:
                self.shown += os.read(self.controller, 65536).decode()
        self.until(words)

    def end(self) -> tuple[int, str]:
        """Wait for the end; returns exit code and what was shown before it."""
        while True:
            try:
                if not (read := os.read(self.controller, 65536)):
                    break
            except OSError:
                break
            self.shown += read.decode()
        return self.process.wait(timeout=30), ESCAPES.sub("", self.shown).replace("\r", "")


class Stage:
    """A namespace, users' shells in it, and the operator's part."""

    def __init__(self, control_plane: "ControlPlane", objects: "Objects", directory: Path) -> None:
        self.control_plane = control_plane
        self.objects = objects
        self.directory = directory
        self.processes: list[subprocess.Popen[Any]] = []
        self.controllers: list[int] = []
        """Of the terminals."""
        self._runs = self._watch_runs()
        kubeconfig = yaml.safe_load(control_plane.kubeconfig.read_text())
        kubeconfig["contexts"][0]["context"]["namespace"] = objects.namespace
        (directory / "admin").write_text(json.dumps(kubeconfig))

    def environment(self, user: str = "admin") -> dict[str, str]:
        # As most terminals are; without it rich would leave the colours out.
        return {**self.control_plane.environment, "KUBECONFIG": str(self.directory / user), "TERM": "xterm-256color"}

    def start(self, *arguments: str, user: str = "admin") -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "dalang_cli.main", *arguments],
            env=self.environment(user),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.processes.append(process)
        return process

    def run(self, *arguments: str, user: str = "admin", stdin: str = "") -> tuple[int, str, str]:
        process = self.start(*arguments, user=user)
        out, err = process.communicate(stdin, timeout=40)
        return process.returncode, out, err

    def on_a_terminal(self, *arguments: str, **environment: str) -> Typed:
        controller, terminal = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "dalang_cli.main", *arguments],
            env={**self.environment(), **environment},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=_take_the_terminal,  # else Ctrl-C would be a byte like any other
        )
        os.close(terminal)
        self.controllers.append(controller)
        self.processes.append(process)
        return Typed(process, controller)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.control_plane.kubectl("--namespace", self.objects.namespace, *arguments, stdin=stdin)

    def session(self, name: str = "s", **status: Any) -> Json:
        made = self.objects.create(AgentSession, {"agentRef": {"name": "support"}}, name=name)
        if status:
            self.write("agentsession", name, status)
        return made

    def next_run(self) -> Json:
        """Return the next run that is created."""
        return next(self._runs)

    def write(self, kind: str, name: str, status: Json) -> None:
        patch = json.dumps({"status": status})
        self.kubectl("patch", kind, name, "--subresource", "status", "--type", "merge", "--patch", patch)

    def report(self, run: Json, phase: str, reason: str, message: str = "", seq: int = 1, **status: Any) -> None:
        """Write a run's status as the reporter does."""
        outcome = {"Succeeded": "True", "Failed": "False", "Cancelled": "False"}.get(phase, "Unknown")
        common = {"status": outcome, "reason": reason, "message": message, "lastTransitionTime": AT}
        workflow = {"id": "dalang.shop.s.1", "runId": "r", "taskQueue": "q", "reportSeq": seq}
        ended = {} if outcome == "Unknown" else {"finishedAt": AT, "pendingApprovals": None}
        conditions = [{"type": "Succeeded", **common}, {"type": "Ready", **common, "status": "False"}]
        whole = {"phase": phase, "observedGeneration": 1, "conditions": conditions, "workflow": workflow}
        self.write("agentrun", run["metadata"]["name"], {**whole, **ended, **status})

    def answer(self, run: Json, text: str, **status: Any) -> None:
        self.report(run, "Succeeded", "Answered", output=text, agent="support", seq=9, **status)

    def ask(self, name: str, run: Json) -> None:
        """Create an approval as the operator does."""
        spec = {**REQUEST, "runRef": {"name": run["metadata"]["name"]}}
        made = {"apiVersion": "dalang.dev/v1alpha1", "kind": "AgentApproval", "metadata": {"name": name}, "spec": spec}
        self.kubectl("create", "-f", "-", stdin=json.dumps(made))
        pending = {"name": name, "agent": "support", "question": REQUEST["question"], "preview": '{"amount":120}'}
        self.report(run, "AwaitingApproval", "AwaitingApproval", "Pay it back?", pendingApprovals=[pending], seq=2)

    def _watch_runs(self) -> Iterator[Json]:
        with client.ApiClient(self.objects._api.api_client.configuration) as api:  # a connection of its own
            listed = client.CustomObjectsApi(api).list_namespaced_custom_object
            place = (GROUP, VERSION, self.objects.namespace, AgentRun.PLURAL)
            for event in watch.Watch().stream(listed, *place, timeout_seconds=50):
                if event["type"] == "ADDED":
                    yield event["object"]


def _take_the_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def message(role: str, content: str, sender: str | None = None) -> Json:
    return {"role": role, "content": content, **({"sender": sender} if sender else {})}


@pytest.fixture
def stage(control_plane: "ControlPlane", objects: "Objects", tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(control_plane, objects, tmp_path)
    yield stage
    for process in stage.processes:
        with process:
            process.kill()
    for controller in stage.controllers:
        os.close(controller)


# ── Without a terminal ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_agent_is_talked_to_in_a_new_session(stage: Stage) -> None:
    stage.objects.create(Agent, {"modelRef": {"name": "m"}, "instructions": "Help."}, name="support")
    chat = stage.start("chat", "support")
    assert chat.stdin
    chat.stdin.write("Where is\\\norder 42?\n\nThanks.\n")
    chat.stdin.close()

    first = stage.next_run()
    session = first["spec"]["sessionRef"]["name"]
    assert session.startswith("chat-support-")
    assert stage.objects.get(AgentSession, session)["spec"] == {
        "agentRef": {"name": "support"},
        "idleTimeout": "720h",
    }
    assert first["metadata"]["name"].startswith(f"{session}-")
    assert first["spec"]["input"] == "Where is\norder 42?"
    stage.answer(first, "In Ubud.\nStill.")
    second = stage.next_run()
    assert second["spec"]["input"] == "Thanks."
    stage.answer(second, "Welcome.")

    assert chat.stdout
    assert chat.stderr
    assert chat.stdout.read() == "In Ubud.\nStill.\nWelcome.\n"
    command = f"dalang chat session/{session} -n {stage.objects.namespace}"
    assert chat.stderr.read() == f"note: AgentSession {session}; to go on with it later: {command}\n"
    assert chat.wait(timeout=20) == 0


def test_who_says_nothing_leaves_nothing(stage: Stage) -> None:
    stage.objects.create(Agent, {"modelRef": {"name": "m"}, "instructions": "Help."}, name="support")
    assert stage.run("chat", "support", stdin="\n") == (0, "", "")
    chat = stage.on_a_terminal("chat", "support")
    chat.until("A new conversation with Agent support begins with your first message.")
    chat.until("\n> ")
    chat.type("\x04")
    assert chat.end()[0] == 0
    assert json.loads(stage.kubectl("get", "agentsessions", "-o", "json"))["items"] == []


def test_a_run_that_fails_ends_a_script(stage: Stage) -> None:
    stage.session()
    chat = stage.start("chat", "s")
    assert chat.stdin
    chat.stdin.write("One\nTwo\n")
    chat.stdin.close()
    run = stage.next_run()
    stage.report(run, "Running", "ModelRetrying", "model m: 503")
    stage.ask("x", run)
    stage.report(run, "Failed", "ModelFailed", "model m: 401: no such key", seq=5)
    assert chat.wait(timeout=20) == 1
    assert chat.stdout
    assert chat.stderr
    assert chat.stdout.read() == ""
    *notes, error = chat.stderr.read().splitlines()
    assert error == "error: ModelFailed: model m: 401: no such key"
    # A watch may skip states.
    expected = ["note: ModelRetrying: model m: 503", "note: Pay it back? Decide with: dalang approve x -n "]
    assert all(any(note.startswith(each) for each in expected) for note in notes)
    assert len(json.loads(stage.kubectl("get", "agentruns", "-o", "json"))["items"]) == 1


@pytest.mark.parametrize(
    ("status", "complaint"),
    [
        pytest.param(
            {"closedAt": AT},
            f"AgentSession s was closed at {AT}. Begin another: dalang chat agent/support",
            id="closed",
        ),
        pytest.param(
            {
                "conditions": [
                    {
                        "type": "Ready",
                        "status": "False",
                        "reason": "SessionLost",
                        "message": "Temporal has no workflow of it",
                        "lastTransitionTime": AT,
                    }
                ]
            },
            "AgentSession s is lost: Temporal has no workflow of it. Begin another: dalang chat agent/support",
            id="lost",
        ),
    ],
)
def test_a_session_that_takes_no_more_runs(status: Json, complaint: str, stage: Stage) -> None:
    stage.session(**status)
    assert stage.run("chat", "s", stdin="Hello\n") == (2, "", f"error: {complaint}\n")


def test_names_that_mean_nothing_or_two_things(stage: Stage) -> None:
    namespace = stage.objects.namespace
    code, _, err = stage.run("chat", "nobody")
    assert code == 2
    assert err == (
        f"error: there is no AgentSession or Agent 'nobody' in namespace {namespace}. There is: no AgentSession; no Agent\n"
    )
    stage.objects.create(Agent, {"modelRef": {"name": "m"}, "instructions": "Help."}, name="s")
    stage.session()
    code, _, err = stage.run("chat", "s")
    assert (code, err) == (2, "error: s is both an AgentSession and an Agent: write session/s or agent/s\n")
    assert stage.run("chat", "session/s") == (0, "", "")
    assert stage.run("chat", "agsess/s") == (0, "", "")
    code, _, err = stage.run("chat", "run/s")
    assert (code, err) == (2, "error: 'run' is no kind that is meant here: write session/NAME or agent/NAME\n")
    code, _, err = stage.run("chat", "s2")
    assert err.endswith("There is: AgentSession s; Agent s\n")


def test_who_lacks_a_verb_is_told_which(stage: Stage) -> None:
    stage.session()
    stage.kubectl("create", "serviceaccount", "viewer")
    sees = ("--verb", "get,list", "--resource", "agentsessions.dalang.dev,agents.dalang.dev")
    stage.kubectl("create", "role", "viewer", *sees)
    stage.kubectl(
        "create", "rolebinding", "v", "--role", "viewer", f"--serviceaccount={stage.objects.namespace}:viewer"
    )
    kubeconfig = json.loads((stage.directory / "admin").read_text())
    kubeconfig["users"][0]["user"] = {"token": stage.kubectl("create", "token", "viewer").strip()}
    (stage.directory / "viewer").write_text(json.dumps(kubeconfig))
    code, out, err = stage.run("chat", "s", user="viewer", stdin="Hello\n")
    assert (code, out) == (1, "")
    assert 'cannot create resource "agentruns" in API group "dalang.dev"' in err
    code, _, err = stage.run("transcript", "r", user="viewer")
    assert code == 1
    assert 'cannot get resource "agentruns" in API group "dalang.dev"' in err


# ── On a terminal ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_conversation_on_a_terminal(stage: Stage) -> None:
    """What was said stands first; what happens is shown as it does; nothing a model wrote moves the terminal's cursor."""
    stage.session(
        summary="Ada asked about order 7.", messages=[message("User", "Hi"), message("Assistant", "Hello.", "support")]
    )
    chat = stage.on_a_terminal("chat", "s")
    shown = chat.until("\n> ")
    assert "summary: Ada asked about order 7.\nyou: Hi\nsupport: Hello.\n" in shown
    chat.type("Where is order 42?\n")
    run = stage.next_run()
    stage.report(run, "Pending", "Queued", "1 run of the session comes before it", seq=0)
    chat.until("… Queued: 1 run of the session comes before it")
    said = [
        message("User", "Hi"),
        message("User", "Where is order 42?"),
        message("Assistant", "→ track({})", "support"),
    ]
    stage.report(run, "Running", "Running", agent="support", messages=said, turns=1)
    chat.until("→ track({})")
    stage.report(run, "Running", "ModelRetrying", "429", seq=2, agent="sales", messages=said)
    chat.until("⇒ support → sales")
    chat.until("… ModelRetrying: 429")
    said += [message("Tool", "in \x1b[2JUbud", "track"), message("Assistant", "In Ubud.", "sales")]
    usage = {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15, "costUSD": "0.001"}
    stage.report(
        run, "Succeeded", "Answered", seq=3, agent="sales", messages=said, output="In Ubud.", usage=usage, turns=2
    )
    shown = chat.until("\n> ")
    assert "← track: in \\u001b[2JUbud\nsales: In Ubud.\n15 tokens, $0.001, 2 turns\n" in shown
    chat.type("/what\n")
    chat.until("there is no command /what.")
    chat.type("/cancel\n")
    chat.until("Nothing is under way.")
    chat.type("/close\n")
    assert chat.end()[0] == 0
    assert stage.objects.get(AgentSession, "s")["spec"]["closed"] is True


def test_an_approval_is_decided_in_the_chat(stage: Stage) -> None:
    stage.session()
    chat = stage.on_a_terminal("chat", "s")
    chat.until("> ")
    chat.type("Pay me back!\n")
    run = stage.next_run()
    stage.ask("one", run)
    shown = chat.until("decide [L]ater, as dalang-dev-admin? ")
    assert "Question      Pay it back?" in shown
    assert '"amount": 120' in shown
    chat.type("r\n")
    chat.until("Why? The model is told: ")
    chat.type("Not ours.\n")
    stage.kubectl("wait", "agentapproval/one", "--for=jsonpath={.spec.decision}=Reject", "--timeout=20s")
    delivered = {"type": "Ready", "status": "True", "reason": "Applied", "message": "Told", "lastTransitionTime": AT}
    stage.write("agentapproval", "one", {"state": "Applied", "conditions": [delivered]})
    chat.until("Applied. Told")
    assert json.loads(stage.kubectl("get", "agentapproval", "one", "-o", "json"))["spec"]["reason"] == "Not ours."

    stage.ask("two", run)
    chat.until("decide [L]ater")
    chat.type("y\n")
    chat.until("decide [L]ater")
    chat.type("\n")
    chat.until(f"dalang approve two -n {stage.objects.namespace} (--set changes arguments)")
    chat.interrupt("/[d]ecide what waits (Ctrl-C leaves it to go on) ")
    chat.type("d\n")
    chat.until("decide [L]ater")
    chat.type("a\n")
    stage.kubectl("wait", "agentapproval/two", "--for=jsonpath={.spec.decision}=Approve", "--timeout=20s")
    stage.write("agentapproval", "two", {"state": "Applied", "conditions": [delivered]})
    stage.answer(run, "Done.")
    chat.until("support: Done.")
    chat.until("\n> ")
    chat.type("\x04")
    assert chat.end()[0] == 0


def test_ctrl_c_cancels_or_leaves(stage: Stage) -> None:
    stage.session()
    chat = stage.on_a_terminal("chat", "s")
    chat.until("> ")
    chat.type("Count to a million.\n")
    run = stage.next_run()
    stage.report(run, "Running", "ModelRetrying", "429")
    chat.until("429")
    chat.interrupt("it to go on) ")
    chat.interrupt("goes on; `dalang chat session/s -n ")
    assert chat.end()[0] == 0

    chat = stage.on_a_terminal("chat", "s")
    chat.until("is under way: Count to a million.")
    chat.until("429")
    chat.interrupt("it to go on) ")
    chat.type("y\n")
    stage.kubectl("wait", f"agentrun/{run['metadata']['name']}", "--for=jsonpath={.spec.cancel}=true", "--timeout=20s")
    stage.report(run, "Cancelled", "Cancelled", "Cancelled while waiting for the model", seq=4)
    chat.until("✗ Cancelled: Cancelled while waiting for the model")
    chat.until("\n> ")
    chat.interrupt("Ctrl-C again, or Ctrl-D, leaves")
    chat.type("/quit\n")
    assert chat.end()[0] == 0


def test_a_session_that_closes_meanwhile(stage: Stage) -> None:
    stage.session()
    chat = stage.on_a_terminal("chat", "s")
    chat.until("> ")
    chat.type("Hello\n")
    stage.report(stage.next_run(), "Failed", "SessionClosed", "The session was closed before its turn came")
    code, shown = chat.end()
    assert code == 2
    assert "✗ SessionClosed: The session was closed before its turn came\n" in shown
    assert "error: the session takes no more runs. Begin another: dalang chat agent/support\n" in shown


def test_a_run_is_deleted_meanwhile(stage: Stage) -> None:
    stage.session()
    chat = stage.on_a_terminal("chat", "s", NO_COLOR="1")
    chat.until("> ")
    chat.type("Hello\n")
    name = stage.next_run()["metadata"]["name"]
    stage.kubectl("delete", "agentrun", name)
    chat.until(f"error: AgentRun {name} was deleted")
    chat.until("> ")
    chat.type("/quit\n")
    assert chat.end()[0] == 0


def test_nobody_looks_at_a_run(stage: Stage) -> None:
    stage.session()
    chat = stage.on_a_terminal("chat", "s")
    chat.until("> ")
    chat.type("Hello\n")
    run = stage.next_run()
    chat.until(f"nobody has looked at AgentRun {run['metadata']['name']} for ")
    # The server writes whole seconds, so a run may seem older than it is.
    assert int(chat.until(" s: is the operator running").split()[0]) in {10, 11, 12}
    stage.answer(run, "Hi!")
    chat.until("support: Hi!")


# ── dalang transcript, where Temporal has nothing ──────────────────────────────────────────────────────────────────


def test_a_transcript_of_what_temporal_does_not_know(stage: Stage) -> None:
    stage.session()
    run = stage.objects.create(AgentRun, {"sessionRef": {"name": "s"}, "input": "Where is it?"}, name="r")
    code, out, err = stage.run("transcript", "r")
    assert code == 0
    assert out.strip() == "user: Where is it?"
    assert err == "note: AgentRun r has not begun: Pending: Waiting for the controller\n"
    stage.answer(run, "In Ubud.", messages=[message("User", "Where is it?"), message("Tool", "Ubud", "track")])
    code, out, err = stage.run("transcript", "run/r")
    assert code == 3
    told = ["user: Where is it?", "track ← Ubud", "support: In Ubud.", "end: Succeeded, Answered"]
    assert [line.strip() for line in out.splitlines()] == told
    assert err.startswith("note: only what the status of AgentRun r has: Temporal knows no workflow dalang.shop.s.1")
    code, out, err = stage.run("transcript", "r", "--temporal-address", "127.0.0.1:1", "-o", "json")
    assert code == 3
    whole = json.loads(out)
    assert [entry["kind"] for entry in whole["entries"]] == ["User", "Result", "Assistant", "End"]
    assert "cannot be reached at 127.0.0.1:1" in whole["incomplete"]

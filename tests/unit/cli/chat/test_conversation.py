"""What a line typed does, where no run is under way. The rest is in tests/cluster/test_chat_commands.py."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from dalang_api.v1alpha1.agentsession import AgentSession
from dalang_cli.approvals.cluster import Cluster
from dalang_cli.chat import terminal
from dalang_cli.chat.conversation import Conversation
from dalang_cli.chat.session import SessionOver, check_open, unfinished_runs
from dalang_cli.chat.terminal import Screen
from dalang_cli.cluster import ClusterError, Kind

Json = dict[str, Any]
AT, LATER = "2026-01-02T03:04:05Z", "2026-01-02T03:04:06Z"
SESSION: Json = {"metadata": {"name": "s"}, "spec": {"agentRef": {"name": "support"}}}


class Quiet:
    """A cluster in which there are some runs, and that takes no new ones."""

    namespace = "shop"

    def __init__(self, *runs: Json) -> None:
        self.runs = list(runs)
        self.patched: list[Json] = []
        self.begun: list[Json] = []
        """Specs of the sessions that were created."""

    def read_all(self, kind: Kind, *, field_selector: str | None) -> tuple[list[Json], str]:
        assert field_selector == "spec.sessionRef.name=s,status.finishedAt="
        return self.runs, "1"

    def create(self, kind: Kind, body: Json) -> Json:
        if kind is AgentSession:
            self.begun.append(body["spec"])
            return SESSION
        raise ClusterError(422, f"refused: {body['spec']['input']}")

    def patch(self, kind: Kind, name: str, patch: Json) -> Json:
        self.patched.append({name: patch})
        return {}


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Quiet]:
    """Talk, with what is typed: a line, or an exception; after the last one Ctrl-D."""

    def talk(*typed: str | type[BaseException], session: Json | None = SESSION) -> Quiet:
        lines: Iterator[str | type[BaseException]] = iter((*typed, EOFError))

        def read_message() -> str:
            line = next(lines)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr(terminal, "read_message", read_message)
        cluster = Quiet()
        screen = Screen(is_terminal=True)
        Conversation(cast(Cluster, cluster), session, "support", screen, is_terminal=True).talk()
        assert list(lines) == [] or typed[-1] in {"/quit", "/close", KeyboardInterrupt}
        return cluster

    return talk


def test_ctrl_c_twice_leaves(talk: Callable[..., Quiet], capsys: pytest.CaptureFixture[str]) -> None:
    talk(KeyboardInterrupt, "/help", KeyboardInterrupt, KeyboardInterrupt)
    assert capsys.readouterr().out.count("Ctrl-C again, or Ctrl-D, leaves") == 2


def test_commands(talk: Callable[..., Quiet], capsys: pytest.CaptureFixture[str]) -> None:
    cluster = talk("", "/cancel", "/what now", "//etc is full", "/close")
    out, err = capsys.readouterr()
    assert out.splitlines() == ["Nothing is under way.", "The session is closed; its runs that have not begun fail."]
    assert err.splitlines() == [
        "error: there is no command /what. /help tells which there are",
        "error: refused: /etc is full",
    ]
    assert cluster.patched == [{"s": {"spec": {"closed": True}}}]


def test_nothing_is_made_before_something_is_said(
    talk: Callable[..., Quiet], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = talk("", "/cancel", "/help", "/close", session=None)
    assert (cluster.begun, cluster.patched) == ([], [])
    assert capsys.readouterr().out.endswith("Nothing was said, so there is no session to close.\n")


def test_the_first_message_begins_a_session(talk: Callable[..., Quiet], capsys: pytest.CaptureFixture[str]) -> None:
    """One whose run is refused is gone on with."""
    cluster = talk("Hi", "Hello", session=None)
    assert cluster.begun == [{"agentRef": {"name": "support"}, "idleTimeout": "720h"}]
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "AgentSession s; to go on with it later: dalang chat session/s -n shop"
    assert err.splitlines() == ["error: refused: Hi", "error: refused: Hello"]


def waiting(name: str, version: str, at: str = AT, phase: str = "Pending", *, is_sent: bool = False) -> Json:
    workflow = {"workflow": {"id": "w"}} if is_sent else {}
    metadata = {"name": name, "creationTimestamp": at, "resourceVersion": version}
    return {"metadata": metadata, "spec": {}, "status": {"phase": phase, **workflow}}


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([waiting("z", "20", phase="Running"), waiting("a", "9")], id="what is under way"),
        pytest.param([waiting("z", "20", LATER, "AwaitingApproval"), waiting("a", "9")], id="or waits for a human"),
        pytest.param([waiting("b", "20"), waiting("a", "9", LATER)], id="the older"),
        pytest.param([waiting("b", "9"), waiting("a", "10")], id="of one second, whom the API server took first"),
        pytest.param([waiting("b", "20", is_sent=True), waiting("a", "9")], id="of one second, whom the session has"),
    ],
)
def test_the_order_of_runs(runs: list[Json]) -> None:
    for listed in (runs, runs[::-1]):
        cluster = cast(Cluster, Quiet(*listed))
        assert unfinished_runs(cluster, SESSION) == runs


@pytest.mark.parametrize(
    ("session", "words"),
    [
        ({"spec": {"closed": True}}, "AgentSession s was closed. Begin another: dalang chat agent/support"),
        (
            {"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Closed", "message": "idle"}]}},
            r"AgentSession s was closed \(idle\)\. Begin another",
        ),
    ],
)
def test_closed(session: Json, words: str) -> None:
    check_open(SESSION)
    with pytest.raises(SessionOver, match=words):
        check_open({**SESSION, **session, "spec": {**SESSION["spec"], **session.get("spec", {})}})

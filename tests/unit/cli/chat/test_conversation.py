"""What a line typed does, where no run is under way. The rest is in tests/cluster/test_chat_commands.py."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from dalang_cli.approvals.cluster import Cluster
from dalang_cli.chat import terminal
from dalang_cli.chat.conversation import Conversation
from dalang_cli.chat.session import SessionOver, check_open
from dalang_cli.chat.terminal import Screen
from dalang_cli.cluster import ClusterError, Kind

Json = dict[str, Any]
SESSION: Json = {"metadata": {"name": "s"}, "spec": {"agentRef": {"name": "support"}}}


class Quiet:
    """A cluster in which there is nothing, and that takes no new runs."""

    namespace = "shop"

    def __init__(self) -> None:
        self.patched: list[Json] = []

    def read_all(self, kind: Kind, *, field_selector: str | None) -> tuple[list[Json], str]:
        assert field_selector == "spec.sessionRef.name=s,status.finishedAt="
        return [], "1"

    def create(self, kind: Kind, body: Json) -> Json:
        raise ClusterError(422, f"refused: {body['spec']['input']}")

    def patch(self, kind: Kind, name: str, patch: Json) -> Json:
        self.patched.append({name: patch})
        return {}


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Quiet]:
    """Talk, with what is typed: a line, or an exception; after the last one Ctrl-D."""

    def talk(*typed: str | type[BaseException]) -> Quiet:
        lines: Iterator[str | type[BaseException]] = iter((*typed, EOFError))

        def read_message() -> str:
            line = next(lines)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr(terminal, "read_message", read_message)
        cluster = Quiet()
        screen = Screen(is_terminal=True)
        Conversation(cast(Cluster, cluster), SESSION, screen, is_terminal=True).talk()
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

"""What is typed, and what is shown."""

import io

import pytest
from dalang_cli.chat import terminal
from dalang_cli.chat.progress import Line, Shown
from dalang_cli.chat.terminal import Screen, clean, read_messages


def test_messages_of_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backslash at a line's end goes on; empty lines are none; the last line needs no newline."""
    monkeypatch.setattr("sys.stdin", io.StringIO("One\n\nTwo\\\nlines\n  \n/quit\nThree\\\n"))
    assert list(read_messages()) == ["One", "Two\nlines", "/quit", "Three\n"]


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        pytest.param(["a"], "approve", id="a letter"),
        pytest.param(["  A "], "approve", id="in capitals, with blanks"),
        pytest.param(["Reject"], "reject", id="the word"),
        pytest.param([""], "later", id="the first"),
        pytest.param(["y", "aye", "approve!", "r"], "reject", id="anything else is asked again"),
    ],
)
def test_choices(typed: list[str], answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(typed)
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert terminal.ask("? ", "later", "approve", "reject") == answer
    assert list(lines) == []


def test_bytes_that_are_no_text() -> None:
    assert clean(b"a\xffb".decode("utf-8", "surrogateescape")) == "a\ufffdb"


def test_a_script_gets_the_answers_alone(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(is_terminal=False)
    for shown in Shown:
        screen.show(Line(shown, f"{shown} \x1b[2J", sender="support"))
    screen.note("Look here")
    screen.error("No")
    out, err = capsys.readouterr()
    assert out == "Answer \x1b[2J\n"
    assert err.splitlines() == [
        "note: Wait \\u001b[2J",
        "error: Failed \\u001b[2J",
        "note: Look here",
        "error: No",
    ]


def test_a_terminal_shows_all(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(is_terminal=True)
    screen.show(Line(Shown.ANSWER, "In\tUbud.\n\x1b[2J", sender="sales"))
    screen.show(Line(Shown.TOOL, "→ track({})", sender="sales"))
    assert capsys.readouterr().out == "sales: In  Ubud.\n\\u001b[2J\n→ track({})\n"

"""What the user of a chat sees and types.

On a terminal everything is shown, in colours unless NO_COLOR is set; without one the answers alone go to standard output.
"""

import contextlib
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from dalang_api.printable import printable
from rich.console import Console
from rich.text import Text

from dalang_cli.approvals import show
from dalang_cli.chat.progress import Line, Shown
from dalang_cli.cluster import Json

PROMPT = "> "
MORE = ". "
"""Where a line before ended with a backslash."""
STYLES = {
    Shown.EARLIER: "dim",
    Shown.TOOL: "dim",
    Shown.SAID: "",
    Shown.AGENT: "magenta",
    Shown.WAIT: "yellow",
    Shown.ANSWER: "",
    Shown.USAGE: "dim",
    Shown.FAILED: "red",
}
MARKS = {Shown.AGENT: "⇒ ", Shown.WAIT: "… ", Shown.FAILED: "✗ "}


class Screen:
    """Shows lines, whole: rich would wrap them at the terminal's width."""

    def __init__(self, *, is_terminal: bool) -> None:
        self._is_terminal = is_terminal
        self._out = Console(highlight=False, markup=False, emoji=False)
        self._error = Console(highlight=False, markup=False, emoji=False, stderr=True)

    def show(self, line: Line) -> None:
        """Show what is new in a run."""
        if not self._is_terminal:
            self._show_to_a_script(line)
            return
        sender = f"{printable(line.sender)}: " if line.sender and line.shown is not Shown.TOOL else ""
        mark = MARKS.get(line.shown, "")
        self._put(self._out, Text.assemble(mark, (sender, "bold"), _words(line.text), style=STYLES[line.shown]))

    def _show_to_a_script(self, line: Line) -> None:
        if line.shown is Shown.ANSWER:
            print(line.text, flush=True)  # as it is: a script reads it, not a terminal
        elif line.shown in {Shown.WAIT, Shown.FAILED}:
            mark = "error: " if line.shown is Shown.FAILED else "note: "
            self._put(self._error, Text(mark + _words(line.text)))

    def note(self, text: str) -> None:
        """Tell something besides the conversation."""
        if self._is_terminal:
            self._put(self._out, Text(_words(text), "dim"))
        else:
            self._put(self._error, Text(f"note: {_words(text)}"))

    def error(self, text: str) -> None:
        """Tell what went wrong."""
        self._put(self._error, Text(f"error: {_words(text)}", "red"))

    def request(self, approval: Json) -> None:
        """Show all that a human is asked."""
        self._put(self._out, show.request(approval, datetime.now(UTC)))

    def _put(self, console: Console, text: Text) -> None:
        console.print(text, soft_wrap=True)
        console.file.flush()


def is_terminal() -> bool:
    """Return whether somebody types, and sees what is shown."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def read_message(prompt: str = PROMPT) -> str:
    """Return the next message typed; a line that ends with a backslash goes on with the next.

    Raises:
        EOFError: Ctrl-D.
        KeyboardInterrupt: Ctrl-C.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # from now on `input` edits lines and remembers them
    lines = [input(prompt)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input(MORE))
    return clean("\n".join(lines))


def read_messages() -> Iterator[str]:
    """Yield the messages of standard input, one a line, as `read_message` does; empty ones are left out."""
    before = ""
    for line in sys.stdin:
        text = before + line.rstrip("\n")
        if text.endswith("\\"):
            before = text[:-1] + "\n"
            continue
        before = ""
        if text.strip():
            yield clean(text)
    if before.strip():
        yield clean(before)


def ask(question: str, *choices: str) -> str:
    """Return which of some words the user types, whole or its beginning; the first for an empty line. Anything else is asked again.

    Raises:
        EOFError: Ctrl-D.
        KeyboardInterrupt: Ctrl-C.
    """
    while True:
        typed = input(question).strip().lower()
        for choice in choices:
            if choice.startswith(typed):
                return choice


def clean(text: str) -> str:
    """Return text without bytes that are no UTF-8, which JSON cannot say."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _words(text: str) -> str:
    """Return text whose lines hold nothing but what a terminal prints."""
    return "\n".join(printable(line.expandtabs(4)) for line in text.split("\n"))

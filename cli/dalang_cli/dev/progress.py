"""Shows how `up` gets on: a live line per part on a terminal, else a plain line whenever something is done."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from dalang_cli.dev.state import PartStatus, Snapshot

PLAIN_SECONDS = 20.0
"""How often a long step says that it is alive where lines cannot be rewritten."""


class Progress:
    """Use as a context manager; `report` tells of the binaries, `show` of the parts."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        # No refresh thread: the supervisor forks on this thread and wants to be alone in the process.
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._is_terminal = self._console.is_terminal and sys.stdout.isatty()
        self._preparation = ""
        self._snapshot = Snapshot()
        self._shown: dict[str, str] = {}
        self._last_plain = time.monotonic()
        self._spinner = Spinner("dots")

    def __enter__(self) -> Self:
        if self._is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._is_terminal:
            self._live.stop()

    def report(self, text: str) -> None:
        """Tell what is being done before the parts can start."""
        self._preparation = text
        headline = text.split("(")[0].split(":")[0]
        if self._is_terminal:
            self._refresh()
        elif self._shown.get("binaries") != headline or time.monotonic() - self._last_plain > PLAIN_SECONDS:
            self._shown["binaries"] = headline
            self._last_plain = time.monotonic()
            print(f"binaries: {text}", flush=True)

    def show(self, snapshot: Snapshot) -> None:
        """Show the newest snapshot."""
        self._snapshot = snapshot
        self._preparation = ""
        if self._is_terminal:
            self._refresh()
            return
        for part in snapshot.parts:
            line = plain_line(part)
            if line and self._shown.get(part.name) != line:
                self._shown[part.name] = line
                print(line, flush=True)

    def finish(self) -> None:
        """End the live display: what changes from now on is told in plain lines."""
        if self._is_terminal:
            self._live.stop()
            self._is_terminal = False
            self._shown = {part.name: plain_line(part) for part in self._snapshot.parts}

    def tick(self) -> None:
        """Move the spinners and the seconds; call a few times per second."""
        if self._is_terminal:
            self._refresh()
        elif self._snapshot.phase == "starting" and time.monotonic() - self._last_plain > PLAIN_SECONDS:
            self._last_plain = time.monotonic()
            waiting = ", ".join(f"{part.name} ({detail(part)})" for part in self._snapshot.parts if not part.ready)
            print(f"still starting: {waiting}", flush=True)

    def _refresh(self) -> None:
        table = Table.grid(padding=(0, 1))
        if self._preparation:
            table.add_row(self._spinner, "binaries", Text(self._preparation, style="dim"))
        for part in self._snapshot.parts:
            table.add_row(self._mark(part), part.name, Text(detail(part), style="dim"))
        self._live.update(table, refresh=True)

    def _mark(self, part: PartStatus) -> Spinner | Text:
        if part.ready:
            return Text("✓", style="green")
        if part.state in {"BackOff", "NotReady"}:
            return Text("✗", style="red")
        return Text(" ") if part.state in {"Waiting", "Stopped"} else self._spinner


def plain_line(part: PartStatus) -> str:
    """Return the line for a part that changed, or nothing when the change is not worth one."""
    if part.ready:
        return f"{part.name}: ready" + (f" ({part.seconds_to_ready:.1f} s)" if part.seconds_to_ready else "")
    return f"{part.name}: {part.message}" if part.message and part.state != "Waiting" else ""


def detail(part: PartStatus) -> str:
    """Return what stands behind a part's name."""
    if part.ready:
        return f"{part.seconds_to_ready:.1f} s" if part.seconds_to_ready else "ready"
    if part.state == "Starting" and part.started_at:
        return f"{time.time() - part.started_at:.1f} s"
    return part.message or part.state.lower()

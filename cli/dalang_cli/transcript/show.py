"""How a transcript looks on a terminal. Pure; nothing of what was said reaches the terminal but what it prints."""

from collections.abc import Iterator

from dalang_api.printable import printable
from rich.text import Text

from dalang_cli.approvals.show import arguments_lines
from dalang_cli.transcript.entries import Entry, Kind

TIME_WIDTH = len("00:00:00 ")
LABELS = {Kind.NOTE: "note: ", Kind.RETRY: "retry: ", Kind.END: "end: ", Kind.QUEUED: "queued: "}


class Lines:
    """Makes lines of entries; a new day gets a line of its own. Times are UTC."""

    def __init__(self) -> None:
        self._day = ""

    def of(self, entry: Entry) -> Iterator[Text]:
        """Yield the lines of one entry."""
        day = entry.at.strftime("%Y-%m-%d") if entry.at else ""
        if day and day != self._day:
            self._day = day
            yield Text(f"── {day} UTC ──", "dim")
        if entry.kind is Kind.RUN:
            yield Text()
        label, style = _label(entry)
        words = _words(entry)
        first, *rest = words or [""]
        time = entry.at.strftime("%H:%M:%S ") if entry.at else " " * TIME_WIDTH
        margin = "  " * entry.depth
        is_quiet = entry.kind in {Kind.RETRY, Kind.NOTE, Kind.RESULT}
        text_style = "red" if entry.is_error else "dim" if is_quiet else ""
        yield Text.assemble((time, "dim"), margin, (_late(entry), "dim"), (label, style), (first, text_style))
        for line in rest:
            yield Text.assemble(" " * TIME_WIDTH, margin, ("  " + line, text_style))


def _late(entry: Entry) -> str:
    """Name the run of what came after its end: it may stand below the next one's."""
    if not entry.is_late:
        return ""
    return f"after the end of AgentRun {printable(entry.run)}: " if entry.run else "after the end: "


def _label(entry: Entry) -> tuple[str, str]:
    sender, tool = printable(entry.sender), printable(entry.tool)
    match entry.kind:
        case Kind.RUN:
            return "AgentRun ", "bold"
        case Kind.USER:
            return f"{sender or 'user'}: ", "bold cyan"
        case Kind.ASSISTANT:
            return f"{sender or 'agent'}: ", "bold green"
        case Kind.CALL:
            return f"{sender} → {tool} ", "yellow"
        case Kind.RESULT:
            return f"{tool} ← ", "yellow"
        case Kind.ASKED:
            return f"{sender} asks a human ({entry.name}): ", "bold magenta"
        case Kind.DECIDED:
            return f"decided ({entry.name}): ", "bold magenta"
        case Kind.SUMMARY:
            return _summary_label(entry.count), "bold"
    return LABELS[entry.kind], "bold red" if entry.is_error else "bold"


def _summary_label(count: int) -> str:
    which = f"first {count} messages are" if count else "beginning is"
    return f"summary: from here on the {which} known to the model by this only: "


def _words(entry: Entry) -> list[str]:
    lines = [printable(line.expandtabs(4)) for line in entry.text.split("\n")]
    if entry.kind is Kind.CALL:
        return [printable(entry.arguments)]
    if entry.kind is Kind.SUMMARY:
        return ["", *lines]
    if not entry.arguments:
        return lines
    head = [f"{lines[0]} (tool {printable(entry.tool)})"] if entry.kind is Kind.ASKED and entry.tool else [lines[0]]
    changed = ["with changes:"] if entry.kind is Kind.DECIDED else []
    return [*head, *lines[1:], *changed, *arguments_lines(entry.arguments)]

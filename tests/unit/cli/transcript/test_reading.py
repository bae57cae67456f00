"""What a transcript makes of the recorded histories, each of one shape."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from dalang_api.contract import (
    CancelExchange,
    Exchange,
    Message,
    ModelCall,
    ModelReply,
    ReportResult,
    Retrying,
    RunIdentity,
    RunReport,
    SessionInput,
    SessionSettings,
    SummaryCall,
    SummaryReply,
    TextPart,
    ToolCall,
    ToolOutcome,
    Wire,
)
from dalang_api.process import data_converter
from dalang_cli.transcript.entries import Entry, Kind
from dalang_cli.transcript.history import Closed, Fact, Scheduled, Signalled, Started, facts
from dalang_cli.transcript.reading import Reader
from dalang_cli.transcript.show import Lines
from temporalio.client import WorkflowHistory

AT = datetime(2026, 1, 2, tzinfo=UTC)
HISTORIES = Path(__file__).parents[3] / "workflow" / "histories"


async def read(*names: str) -> list[Entry]:
    reader = Reader()
    entries = []
    for name in names:
        content = json.loads((HISTORIES / f"{name}.json").read_text())
        history = WorkflowHistory.from_json(content.pop("workflowId"), content)
        entries += list(reader.read(await facts(history.events, data_converter())))
    return [*entries, *reader.rest()]


def brief(entries: list[Entry]) -> list[tuple[str, ...]]:
    """Return depth and kind, who or what, and the first words."""
    words = 5
    return [
        (">" * entry.depth + entry.kind, entry.sender, entry.tool, " ".join(entry.text.split()[:words]))
        for entry in entries
    ]


ASKED = ("User", "", "", "Where is order 42?")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param(
            "tools",
            [
                ASKED,
                ("Call", "support", "weather", ""),
                ("Call", "support", "time_of", ""),
                ("Call", "support", "no_such_tool", ""),
                ("Result", "support", "no_such_tool", "There is no tool 'no_such_tool'."),
                ("Result", "", "weather", "sunny in Ubud"),
                ("Result", "", "time_of", '{"city":"Ubud","time":"12:00"}'),
                ("Call", "support", "fail", ""),
                ("Result", "", "fail", "LookupError: no such order"),
                ("Assistant", "support", "", "Sunny."),
                ("End", "", "", "Succeeded, Answered: support answered after"),
            ],
            id="each call and its result",
        ),
        pytest.param(
            "handed-over",
            [
                ASKED,
                ("Call", "desk", "remember", ""),
                ("Call", "desk", "transfer_to_sales", ""),
                ("Result", "desk", "remember", "was None"),
                ("Result", "desk", "transfer_to_sales", "Transferred to sales."),
                ("Assistant", "sales", "", "Two, then."),
                ("End", "", "", "Succeeded, Answered: sales answered after"),
            ],
            id="a hand-off",
        ),
        pytest.param(
            "agents-as-tools",
            [
                ASKED,
                ("Call", "desk", "archive", ""),
                ("Call", "desk", "weatherman", ""),
                (">User", "desk", "", "Order 42?"),
                (">User", "desk", "", "Rain?"),
                (">Call", "archive", "note", ""),
                (">Call", "weatherman", "weather", ""),
                (">Result", "archive", "note", "noted 42"),
                (">Result", "weatherman", "weather", "sunny in Ubud"),
                (">Assistant", "archive", "", "Ubud"),
                (">Assistant", "weatherman", "", "sunny in Ubud"),
                ("Result", "desk", "archive", "Ubud"),
                ("Result", "desk", "weatherman", "sunny in Ubud"),
                ("Assistant", "desk", "", "In Ubud, dry."),
                ("End", "", "", "Succeeded, Answered: desk answered after"),
            ],
            id="agents called as tools",
        ),
        pytest.param(
            "fallen-back",
            [
                ASKED,
                ("Retry", "", "", "The model of desk: attempt"),
                ("Note", "", "", "The model of desk gave"),
                ("Assistant", "desk", "", "No."),
                ("Note", "", "", "The model stopped: ContentFilter: The"),
                ("Note", "", "", "The reply before was not"),
                ("Assistant", "desk", "", "Here."),
                ("End", "", "", "Succeeded, Answered: desk answered after"),
            ],
            id="models that failed or refused",
        ),
        pytest.param(
            "answer-approved",
            [
                ASKED,
                ("Assistant", "support", "", '{"day": 7}'),
                ("Asked", "support", "", "Agent support wants to answer."),
                ("Decided", "", "", "Reject by ada: Not on"),
                ("User", "dalang", "", "Your answer does not count:"),
                ("Assistant", "support", "", '{"day": 6}'),
                ("Asked", "support", "", "Agent support wants to answer."),
                ("Decided", "", "", "Approve by ada"),
                ("End", "", "", "Succeeded, Answered: support answered after"),
            ],
            id="an answer that a human changed",
        ),
        pytest.param(
            "approval-expired",
            [
                ASKED,
                ("Call", "support", "note", ""),
                ("Asked", "support", "note", "Agent support wants to call"),
                ("Decided", "", "note", "Expired"),
                ("Result", "support", "note", "noted paid"),
                ("Assistant", "support", "", "done"),
                ("End", "", "", "Succeeded, Answered: support answered after"),
            ],
            id="an approval that nobody decided",
        ),
    ],
)
async def test_a_run(name: str, expected: list[tuple[str, ...]]) -> None:
    assert brief(await read(name)) == expected


async def test_an_approved_call_is_told_as_it_was_made() -> None:
    entries = await read("approved")
    by_kind = {kind: [entry for entry in entries if entry.kind is kind] for kind in Kind}
    assert [json.loads(entry.arguments)["line"] for entry in by_kind[Kind.CALL]] == ["paid", "paid"]
    [changed] = [json.loads(entry.arguments) for entry in by_kind[Kind.DECIDED] if entry.arguments]
    assert changed["line"] == "less"
    assert sorted(entry.text for entry in by_kind[Kind.DECIDED]) == ["Approve by ada", "Reject by ada: Once is enough."]
    asked = {entry.name for entry in by_kind[Kind.ASKED]}
    assert asked == {entry.name for entry in by_kind[Kind.DECIDED]}
    assert [entry.is_error for entry in by_kind[Kind.RESULT]] == [False, True]
    assert by_kind[Kind.RESULT][0].text.endswith("\nnoted less")


async def test_a_session() -> None:
    """A failed run and one that was cancelled while it was queued are told, and that the conversation is without them."""
    entries = await read("session")
    ends = {entry.run: entry.text for entry in entries if entry.kind is Kind.END}
    assert list(ends) == ["run-1", "run-2", "run-5", "run-3", "run-4", "run-6"]
    assert ends["run-2"].endswith("The conversation stays as it was before this run")
    assert ends["run-5"] == "AgentRun run-5 did not begin. Cancelled, Cancelled: Cancelled before its turn came"
    third = [entry.kind for entry in entries if entry.run == "run-3"]
    assert third == [Kind.RUN, Kind.USER, Kind.CALL, Kind.RESULT, Kind.ASSISTANT, Kind.END]
    counts = [entry.count for entry in entries if entry.kind is Kind.SUMMARY]
    assert len(counts) == 2
    assert 0 < counts[0] < counts[1]
    assert [entry.text for entry in entries[-2:]] == [
        "The session is told to close: it is recorded",
        "The session is closed: it is recorded",
    ]


async def test_a_session_that_continued_as_new() -> None:
    """What is carried over is told only where Temporal has not kept what was before."""
    whole = await read("session-continued", "session-continued-2")
    assert [entry.text for entry in whole if entry.kind is Kind.USER] == [f"say {number}" for number in range(9)]
    rest = await read("session-continued-2")
    assert rest[0].text == "The first 6 runs are past Temporal's retention. The last 12 messages are kept."
    assert [(entry.text, entry.at is None) for entry in rest if entry.kind is Kind.USER] == [
        (f"say {number}", number < 6) for number in range(9)
    ]


class Told:
    """A history as a session without tools writes it, as far as its transcript is made of it."""

    def __init__(self) -> None:
        self.facts: list[Fact] = [Started(AT, SessionInput(agent="desk", settings=SessionSettings()))]
        self._thread = self._seq = 0

    def send(self, name: str) -> None:
        exchange = Exchange(
            run=RunIdentity(name=name, uid=name),
            agent="desk",
            messages=[said("user", name)],
            max_turns=9,
            timeout_seconds=9.0,
            snapshot_digest="d",
        )
        self.facts.append(Signalled(AT, exchange))

    def summarise(self, name: str, count: int, text: str | None) -> None:
        run = RunIdentity(name=name, uid=name)
        call = SummaryCall(snapshot="d", model="m", thread="s", count=count, digest="d", run=run)
        self.close(self.ask(call), SummaryReply(summary=text) if text else None)

    def call(self, name: str, before: int, *, failure: str = "") -> None:
        """Call the model in a thread anew, with so many messages and then the run's own."""
        reply = None if failure else ModelReply(message=said("assistant", f"So {name}.", "desk"))
        self.close(self.ask_model(name, before), reply)

    def ask_model(self, name: str, before: int) -> int:
        """Call the model, and return the number by which it is answered."""
        self._thread += 1
        model_call = ModelCall(
            agent="desk",
            snapshot="d",
            thread=f"s{self._thread}",
            turn=1,
            count=before + 1,
            digest="d",
            run=RunIdentity(name=name, uid=name),
        )
        return self.ask(model_call)

    def end(self, name: str, phase: str = "Succeeded", *, gone: bool = False) -> None:
        self._report(gone=gone, run={"name": name, "uid": name}, phase=phase, finished_at="…")

    def progress(self, name: str, *, gone: bool = False) -> None:
        self._report(gone=gone, run={"name": name, "uid": name}, phase="Running")

    def _report(self, *, gone: bool, **more: Any) -> None:
        self._seq += 1
        report = {
            "seq": self._seq,
            "run_id": "r",
            "task_queue": "q",
            "reason": "…",
            "message": "…",
            "agent": "desk",
            "agents": [{"name": "desk", "uid": "d", "generation": 1}],
            "started_at": "…",
            **more,
        }
        self.close(self.ask(RunReport.model_validate(report)), ReportResult(gone=gone))

    def delete(self, name: str) -> None:
        cancel = CancelExchange(run=RunIdentity(name=name, uid=name), deleted=True)
        self.facts.append(Signalled(AT, cancel))

    def exchange(self, name: str, before: int, phase: str = "Succeeded", *, gone: bool = False) -> None:
        self.send(name)
        self.call(name, before)
        self.end(name, phase, gone=gone)

    def entries(self) -> list[Entry]:
        return list(Reader().read(self.facts))

    def notes(self) -> list[str]:
        return [entry.text for entry in self.entries() if entry.kind is Kind.NOTE]

    def ask(self, asked: Wire) -> int:
        """Have the workflow ask for something, and return the number by which it is closed."""
        self.facts.append(Scheduled(AT, len(self.facts), asked))
        return len(self.facts) - 1

    def close(self, number: int, value: Wire | None) -> None:
        self.facts.append(Closed(AT, number, value, "" if value else "503"))


def said(role: Literal["user", "assistant"], text: str, sender: str | None = None) -> Message:
    return Message(role=role, parts=[TextPart(text=text)], sender=sender)


def forgotten(count: int) -> str:
    return f"From here on the model does not know the oldest {count} of its messages any more: no summary was made"


def test_messages_that_are_dropped() -> None:
    """No event says so, so they are counted; a run that fails gives its own up, and no more."""
    told = Told()
    told.exchange("a", before=0)
    told.exchange("b", before=2, phase="Failed")
    told.exchange("c", before=2)
    told.exchange("d", before=2)
    told.exchange("e", before=4, gone=True)
    told.exchange("f", before=4)
    kept = "AgentRun e was deleted, or ended by the operator, before its end was told. The conversation stays as it was before it"
    assert told.notes() == [forgotten(2), kept]


def test_messages_that_are_summarised_are_not_dropped() -> None:
    told = Told()
    told.exchange("a", before=0)
    told.exchange("b", before=2)
    told.send("c")
    told.summarise("c", 2, "They talked.")
    told.end("c", "Cancelled")  # what was summarised stays so
    told.exchange("d", before=3)
    told.send("e")
    told.summarise("e", 3, None)
    told.call("e", before=5)
    told.end("e")
    told.exchange("f", before=3)
    assert told.notes() == ["The oldest 3 messages could not be summarised: 503", forgotten(4)]


def test_a_run_that_goes_on_anew_since_all_was_too_long() -> None:
    """What was before it is given up, unless it fails all the same."""
    told = Told()
    told.exchange("a", before=0)
    for name, phase in (("b", "Failed"), ("c", "Succeeded")):
        told.send(name)
        told.call(name, before=2, failure="ContextLength")
        told.call(name, before=0)
        told.end(name, phase)
    told.exchange("d", before=2)
    assert [note for note in told.notes() if "gave no answer" not in note] == [forgotten(2), forgotten(2)]


def test_a_run_that_is_deleted() -> None:
    """Under way it leaves nothing in the conversation; after its end it stays, and nothing needs to be said."""
    told = Told()
    told.exchange("a", before=0)
    told.delete("a")
    told.send("b")
    told.call("b", before=2)
    told.delete("b")
    told.exchange("c", before=2)
    told.delete("a")
    assert told.notes() == ["AgentRun b was deleted. The conversation stays as it was before it"]


def test_what_comes_after_the_end_of_its_run() -> None:
    """It is told of the run that had asked for it, whatever is under way by then."""
    a, b = (RunIdentity(name=name, uid=name) for name in "ab")
    told = Told()
    told.send("a")
    number = told.ask_model("a", before=0)
    tool = ToolCall(
        call_id="c1",
        tool="refund",
        function="refund",
        arguments="{}",
        thread="s1",
        turn=1,
        index=0,
        agent="desk",
        run=a,
    )
    tools = [told.ask(tool), told.ask(tool.model_copy(update={"call_id": "c2"}))]
    told.end("a", "Cancelled")
    told.send("b")
    second = told.ask_model("b", before=0)
    told.close(number, ModelReply(message=said("assistant", "Late.", "desk")))
    told.close(tools[0], ToolOutcome(output="refunded"))
    told.close(tools[1], None)
    told.facts.append(Signalled(AT, Retrying(reason="ModelRetrying", message="503", run=a)))
    told.facts.append(Signalled(AT, Retrying(reason="ModelRetrying", message="503", run=b)))
    told.close(second, ModelReply(message=said("assistant", "So b.", "desk")))
    entries = [
        (entry.run, entry.is_late, entry.kind.value, entry.text)
        for entry in told.entries()
        if entry.kind not in {Kind.RUN, Kind.USER, Kind.END}
    ]
    assert entries == [
        ("a", True, "Assistant", "Late."),
        ("a", True, "Result", "refunded"),
        ("a", True, "Note", "refund gave no result: 503"),
        ("a", True, "Retry", "ModelRetrying: 503"),
        ("b", False, "Retry", "ModelRetrying: 503"),
        ("b", False, "Assistant", "So b."),
    ]


@pytest.mark.parametrize("text", ["They talked.", None])
def test_a_summary_that_comes_after_the_end_of_its_run(text: str | None) -> None:
    """The conversation is not known by it, and the next run's is not affected where it failed."""
    told = Told()
    told.exchange("a", before=0)
    told.exchange("b", before=2)
    told.send("c")
    call = SummaryCall(snapshot="d", model="m", thread="s", count=2, digest="d", run=RunIdentity(name="c", uid="c"))
    number = told.ask(call)
    told.end("c", "Cancelled")
    told.send("d")
    second = told.ask_model("d", before=4)
    told.close(number, SummaryReply(summary=text) if text else None)
    told.close(second, ModelReply(message=said("assistant", "So d.", "desk")))
    told.end("d")
    told.exchange("e", before=2)
    unused = "A summary of the oldest 2 messages was made, and is not used"
    failed = "The oldest 2 messages could not be summarised: 503"
    assert told.notes() == [unused if text else failed, forgotten(4)]
    assert not any(entry.kind is Kind.SUMMARY for entry in told.entries())


def test_a_run_that_is_found_gone() -> None:
    """It has one end: by the first answer that says so, unless it could tell its end itself."""
    told = Told()
    told.exchange("a", before=0)
    told.send("b")
    told.progress("b", gone=True)
    told.progress("b", gone=True)
    told.delete("b")
    told.send("c")
    told.call("c", before=2)
    told.progress("c", gone=True)
    told.end("c")
    told.exchange("d", before=4)
    ends = [(entry.run, entry.text.partition(",")[0]) for entry in told.entries() if entry.kind is Kind.END]
    assert ends == [
        ("a", "Succeeded"),
        ("b", "AgentRun b was deleted"),
        ("c", "Succeeded"),
        ("d", "Succeeded"),
    ]
    assert told.notes() == []


async def test_lines() -> None:
    """Nothing a model or a tool wrote reaches the terminal but what it prints."""
    lines = Lines()
    entries = [
        Entry(Kind.RUN, "r"),
        Entry(Kind.USER, "Two\n\x1b[2Jlines"),
        Entry(Kind.CALL, sender="support", tool="track", arguments='{"id":\t42}'),
        Entry(Kind.RESULT, "in Ubud", tool="track", depth=1),
        Entry(Kind.ASKED, "Pay?", sender="support", tool="refund", name="r-1", arguments='{"amount":1}'),
        Entry(Kind.SUMMARY, "They talked.", count=3),
        Entry(Kind.END, "Failed, MaxTurns: …", is_error=True),
        Entry(Kind.NOTE, "It was cancelled", run="r", is_late=True),
        Entry(Kind.RESULT, "in Ubud", tool="track", is_late=True),
    ]
    shown = "\n".join(line.plain.rstrip() for entry in entries for line in lines.of(entry))
    assert shown.split("\n") == [
        "",
        "         AgentRun r",
        "         user: Two",
        "           \\u001b[2Jlines",
        '         support → track {"id":\\t42}',
        "           track ← in Ubud",
        "         support asks a human (r-1): Pay? (tool refund)",
        "           {",
        '             "amount": 1',
        "           }",
        "         summary: from here on the first 3 messages are known to the model by this only:",
        "           They talked.",
        "         end: Failed, MaxTurns: …",
        "         after the end of AgentRun r: note: It was cancelled",
        "         after the end: track ← in Ubud",
    ]


async def test_a_day_has_a_line_of_its_own() -> None:
    lines, entries = Lines(), await read("answer")
    first, *rest = [line.plain for entry in entries for line in lines.of(entry)]
    assert first.startswith("── 20")
    assert first.endswith(" UTC ──")
    assert [line[9:] for line in rest[:2]] == ["user: Where is order 42?", "support: It is on its way."]

"""What `dalang transcript` reads from a real Temporal. No worker serves while it does."""

from typing import TYPE_CHECKING

import pytest
from dalang_api import contract
from dalang_cli.transcript.entries import Entry, Kind
from dalang_cli.transcript.history import HistoryUnavailable
from dalang_cli.transcript.main import entries

if TYPE_CHECKING:
    from tests.workflow.conftest import Session, World

ECHO = {"text": "You said: {{last_user}}"}


async def transcript(session: "Session", run_uid: str | None = None) -> list[Entry]:
    return [entry async for entry in entries(session.world.client, session.handle.id, run_uid)]


def said(found: list[Entry]) -> list[tuple[str, str, str]]:
    """Return kind, run and text, the figures at a run's end left out."""
    return [(entry.kind.value, entry.run, entry.text.partition(" (")[0]) for entry in found]


def exchange(number: int, question: str, answer: str) -> list[tuple[str, str, str]]:
    run = f"run-{number}"
    return [
        ("Run", run, run),
        ("User", run, question),
        ("Assistant", run, answer),
        ("End", run, "Succeeded, Answered: support answered after 1 turn"),
    ]


async def test_a_session_that_continued_as_new(world: "World", monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, whatever is carried from one execution to the next; what a summary has taken is said."""
    monkeypatch.setattr(contract, "SESSION_CONTINUE_BYTES", 20_000)
    async with world.serving():
        session = await world.start_session(ECHO, loop=True, settings={"history_size": 4})
        reports = [await session.ask(f"say {number}") for number in range(1, 9)]
    assert len(await session.histories()) > 1

    found = await transcript(session)
    talk = [entry for entry in said(found) if entry[0] != "Summary"]
    assert talk == [
        entry for number in range(1, 9) for entry in exchange(number, f"say {number}", f"You said: say {number}")
    ]
    summaries = [entry for entry in found if entry.kind is Kind.SUMMARY]
    last = reports[-1].session
    assert last is not None
    assert summaries[-1].text == last.summary
    assert summaries[0].count == 4
    assert [entry.count for entry in summaries] == sorted({entry.count for entry in summaries})

    sixth = session.sent[5]
    own = await transcript(session, sixth.uid)
    assert [entry for entry in said(own) if entry[0] != "Summary"] == exchange(6, "say 6", "You said: say 6")
    with pytest.raises(HistoryUnavailable, match="the run is not in the session's history"):
        await transcript(session, "another")


async def test_a_workflow_that_temporal_does_not_know(world: "World") -> None:
    with pytest.raises(
        HistoryUnavailable, match=r"Temporal knows no workflow dalang\.shop\.s\.1: its retention has passed"
    ):
        _ = [entry async for entry in entries(world.client, "dalang.shop.s.1", None)]


async def test_runs_that_did_not_begin_and_one_under_way(world: "World") -> None:
    async with world.serving():
        slow = await world.script({"text": "late", "latencySeconds": 60}, loop=True)
        session = await world.start_session(models=[world.model("gpt", slow)])
        await session.send("never")
        second, third = await session.send("second"), await session.send("third")
        await session.cancel(second)
        await session.ended(second)
        await session.cancel(third, deleted=True)
        fourth = await session.send("fourth")
        found = said(await transcript(session))
        own = said(await transcript(session, second.uid))
        queued = said(await transcript(session, fourth.uid))
    cancelled = ("End", "run-2", "AgentRun run-2 did not begin. Cancelled, Cancelled: Cancelled before its turn came")
    assert found == [
        ("Run", "run-1", "run-1"),
        ("User", "run-1", "never"),
        ("Note", "run-2", "AgentRun run-2 is told to end: spec.cancel is set"),
        cancelled,
        ("Note", "run-3", "AgentRun run-3 was deleted. The conversation stays as it was before it"),
        ("Note", "run-1", "Under way: the model of support, turn 1"),
        ("Queued", "run-4", "AgentRun run-4 waits for its turn"),
    ]
    assert own == [found[2], cancelled]
    assert queued == found[-1:]

"""What `dalang transcript` reads from a real Temporal. No worker serves while it does."""

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dalang_api import contract
from dalang_api.contract import ApprovalPolicy, Decision, RunIdentity, Snapshot, ToolBinding
from dalang_cli.transcript.entries import Entry, Kind
from dalang_cli.transcript.history import HistoryUnavailable
from dalang_cli.transcript.main import entries

if TYPE_CHECKING:
    from tests.workflow.conftest import Session, World

Json = dict[str, Any]

ECHO = {"text": "You said: {{last_user}}"}
SLOW = {"text": "late", "latencySeconds": 60}


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


async def snapshot(world: "World", response: Json, **agent: Any) -> Snapshot:
    """Return a snapshot whose model answers so."""
    return Snapshot(agents=[world.agent(**agent)], models=[world.model("gpt", await world.script(response, loop=True))])


async def snapshot_calling(
    world: "World", tool: str, arguments: Json, approval: ApprovalPolicy | None = None
) -> Snapshot:
    """Return a snapshot whose model calls a tool."""
    response = {"toolCalls": [{"name": tool, "arguments": arguments}]}
    return await snapshot(world, response, tools=[ToolBinding(name=tool, function=tool, approval=approval)])


async def late(session: "Session") -> list[Entry]:
    """What came after the end of its run."""
    return [entry for entry in await transcript(session) if entry.is_late]


def asked_by(session: "Session", run: RunIdentity) -> contract.ApprovalRequest | None:
    """What the run asks a human, if it says so."""
    pending = [report.pending_approvals for report in session.reports_of(run)]
    return next((requests[0] for requests in pending if requests), None)


async def is_at_rest(session: "Session") -> bool:
    """Whether nothing is under way in Temporal."""
    described = (await session.handle.describe()).raw_description
    return not described.pending_activities and not described.HasField("pending_workflow_task")


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


# ── What comes of a run when its session has gone on ───────────────────────────────────────────────────────────────


async def test_what_came_of_a_model_call_after_the_end_of_its_run(world: "World") -> None:
    """Temporal tells of it when the next run has begun."""
    slow = await snapshot(world, SLOW)
    async with world.serving():
        session = await world.start_session(ECHO, loop=True)
        stopped = await session.send("never", snapshot=slow)
        await world.eventually(lambda: world.requests(slow.models[0].model))
        second = await session.send("hello", snapshot=session.snapshot)
        await session.cancel(stopped)
        await session.ended(second)
        await world.eventually(partial(is_at_rest, session))

    found, own = await late(session), await transcript(session, stopped.uid)
    assert said(found) == [("Note", "run-1", "The model of support gave no answer: it was cancelled")]
    assert said(await transcript(session, second.uid)) == exchange(2, "hello", "You said: hello")
    assert (own[-2].kind, own[-1:]) == (Kind.END, found)


async def test_a_tool_that_goes_on_after_the_end_of_its_run(world: "World", tmp_path: Path) -> None:
    started = tmp_path / "started"
    holding = await snapshot_calling(world, "hold_up", {"seconds": 2, "started": str(started)})
    async with world.serving():
        session = await world.start_session(ECHO, loop=True)
        stopped = await session.send("do it", snapshot=holding)
        await world.eventually(started.exists)
        second = await session.send("hello", snapshot=session.snapshot)
        await session.cancel(stopped)
        await session.ended(second)
        under_way, own = await late(session), await transcript(session, second.uid)
        await world.eventually(partial(is_at_rest, session))

    assert said(under_way) == [("Note", "run-1", "Under way: tool hold_up of support")]
    assert said(own) == exchange(2, "hello", "You said: hello")
    (entry,) = await late(session)
    assert entry.run == "run-1"
    # Which of the two the worker tells depends on when it hears of the cancellation.
    assert entry.text in {"held up", "hold_up gave no result: it was cancelled"}


async def test_nothing_is_under_way_in_an_execution_that_has_ended(
    world: "World", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract, "SESSION_CONTINUE_BYTES", 1)
    started = tmp_path / "started"
    holding = await snapshot_calling(world, "hold_up", {"seconds": 2, "started": str(started)})
    async with world.serving():
        session = await world.start_session(ECHO, loop=True)
        stopped = await session.send("do it", snapshot=holding)
        await world.eventually(started.exists)
        await session.cancel(stopped)
        await session.ask("hello", snapshot=session.snapshot)
    assert len(await session.histories()) > 1
    assert (await transcript(session, stopped.uid))[-1].kind is Kind.END


async def test_a_decision_about_a_run_that_has_ended(world: "World") -> None:
    asking = await snapshot_calling(world, "weather", {"city": "Ubud"}, ApprovalPolicy())
    slow = await snapshot(world, SLOW)
    async with world.serving():
        session = await world.start_session(ECHO, loop=True)
        stopped = await session.send("pay", snapshot=asking)
        request = await world.eventually(partial(asked_by, session, stopped))
        await session.cancel(stopped)
        second = await session.send("hello", snapshot=slow)
        await world.eventually(lambda: world.requests(slow.models[0].model))
        decision = Decision(
            run_uid=stopped.uid,
            name=request.name,
            uid=world.approval_uids[request.name],
            digest=request.digest,
            decision="Approve",
            decided_by="ada",
        )
        await session.handle.signal(contract.DECIDE_SIGNAL, decision)
        found, own = await late(session), await transcript(session, second.uid)

    assert [(entry.run, entry.text) for entry in found] == [("run-1", "Approve by ada (too late, or told again)")]
    assert [entry.kind.value for entry in own] == ["Run", "User", "Note"]


# ── Ends ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("queued", [True, False])
async def test_a_run_whose_deletion_nobody_told_of(
    world: "World", monkeypatch: pytest.MonkeyPatch, *, queued: bool
) -> None:
    """The answer to the report of its begin tells, or to one while its model is called."""
    monkeypatch.setattr("dalang_worker.workflows.session.WAITED_FOR_INTERVAL", timedelta())
    slow = await snapshot(world, SLOW)
    async with world.serving():
        session = await world.start_session(ECHO, loop=True)
        await session.ask("one")
        world.reporter_open.clear()
        gone = await session.send("two", snapshot=slow, queued=queued or None)
        if not queued:
            await world.eventually(lambda: world.requests(slow.models[0].model))
        world.deleted.add(gone.uid)
        world.reporter_open.set()
        await session.ask("three", snapshot=session.snapshot)
        await session.cancel(gone, deleted=True)
        await world.eventually(partial(is_at_rest, session))

    found = await transcript(session)
    words = "AgentRun run-2 was deleted, or ended by the operator, before its end. The conversation stays as it was before it"
    end = [("Run", "run-2", "run-2"), ("User", "run-2", "two"), ("End", "run-2", words)]
    assert said([entry for entry in found if not entry.is_late]) == [
        *exchange(1, "one", "You said: one"),
        *end,
        *exchange(3, "three", "You said: three"),
    ]
    own = await transcript(session, gone.uid)
    assert said([entry for entry in own if not entry.is_late]) == end


async def test_a_run_that_fails_before_its_first_turn(world: "World") -> None:
    async with world.serving():
        session = await world.start_session(ECHO, loop=True)
        await session.ask("hello", context={"plan": "y" * (contract.CONTEXT_VALUE_MAX_CHARS + 1)})
    *begin, end = await transcript(session)
    assert said(begin) == [("Run", "run-1", "run-1"), ("User", "run-1", "hello")]
    assert end.text.startswith("Failed, InvalidSpec: ")


async def test_a_run_that_is_told_to_end_after_its_end_and_is_gone(world: "World") -> None:
    """Its session tells of the end once more, and the answer to that says nothing of the conversation."""
    async with world.serving():
        session = await world.start_session(ECHO, loop=True)
        run = await session.send("one")
        await session.ended(run)
        await world.eventually(partial(is_at_rest, session))
        world.reported.clear()
        world.deleted.add(run.uid)
        await session.cancel(run)
        await session.ended(run)
        await session.ask("two")
    assert said(await transcript(session)) == [
        *exchange(1, "one", "You said: one"),
        *exchange(2, "two", "You said: two"),
    ]


async def test_the_end_of_a_session_is_told_once(world: "World") -> None:
    """A run that comes while it closes has it tell of that again."""
    async with world.worker():
        session = await world.start_session(ECHO, loop=True)
        await session.configure(closed="it is enough")

        async def is_closing() -> bool:
            return any(entry.text.startswith("The session is closed") for entry in await transcript(session))

        await world.eventually(is_closing)
        await session.send("too late")
        async with world.reporter():
            await session.handle.result()
    found = [entry.text for entry in await transcript(session)]
    assert found[:2] == ["The session is told to close: it is enough", "The session is closed: it is enough"]
    assert [words.startswith("AgentRun run-1 did not begin. Failed, SessionClosed") for words in found[2:]] == [True]

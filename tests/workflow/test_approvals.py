"""Humans decide: over a real Temporal, with workers that come and go meanwhile."""

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dalang_api import contract
from dalang_api.contract import (
    ApprovalFloor,
    ApprovalPolicy,
    CallVerdict,
    Message,
    ModelReply,
    ReportResult,
    RunReport,
    ToolBinding,
    ToolCallPart,
)
from temporalio import activity
from temporalio.worker import Worker

if TYPE_CHECKING:
    from tests.workflow.conftest import Run, World

Json = dict[str, Any]


def calls(*wanted: tuple[str, Any]) -> Json:
    return {"toolCalls": [{"name": name, "arguments": arguments} for name, arguments in wanted]}


def note(file: Path, line: str) -> tuple[str, Json]:
    return "note", {"file": str(file), "line": line}


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def asks(**policy: Any) -> Json:
    """An agent whose tool `note` needs approval."""
    return {"tools": [ToolBinding(name="note", function="note", approval=ApprovalPolicy(**policy))]}


def phases(run: "Run") -> list[str]:
    return [report.phase for report in run.reports]


async def test_a_call_waits_and_is_made_once_it_is_approved(world: "World") -> None:
    notes = world.path / "notes"
    async with world.serving():
        run = await world.start(calls(note(notes, "paid")), {"text": "{{last_tool}}"}, agent=asks(question="Pay?"))
        (request,) = await run.pending()
        assert lines(notes) == []
        await run.decide(request, "Approve")
        ended = await run.end()
    assert (ended.outcome, ended.report.output, lines(notes)) == ("Succeeded", "noted paid", ["paid"])
    assert (request.question, request.tool, request.subject) == ("Pay?", "note", "ToolCall")
    assert request.arguments == f'{{"file":"{notes}","line":"paid"}}'
    assert phases(run)[:2] == ["AwaitingApproval", "Running"]
    assert phases(run)[-1] == "Succeeded"
    (end,) = ended.report.ended_approvals or []
    assert (end.name, end.state, end.decision, end.decided_by) == (request.name, "Applied", "Approve", "ada")
    assert end.uid == world.approval_uids[request.name]


@pytest.mark.parametrize(
    ("decision", "more", "told", "made"),
    [
        pytest.param("Reject", {"reason": "Too much."}, "Not run: a human rejected it. Too much.", [], id="rejected"),
        pytest.param("Approve", {"override": {"line": "less"}}, "noted less", ["less"], id="changed"),
        pytest.param("Approve", {"override": {"sum": 1}}, "do not fit", [], id="changed to what does not fit"),
    ],
)
async def test_the_model_is_told_what_a_human_decided(
    world: "World", decision: str, more: Json, told: str, made: list[str]
) -> None:
    notes = world.path / "notes"
    if "line" in more.get("override", {}):
        more = {"override": {**more["override"], "file": str(notes)}}
    async with world.serving():
        run = await world.start(calls(note(notes, "paid")), {"text": "{{last_tool}}"}, agent=asks())
        (request,) = await run.pending()
        await run.decide(request, decision, **more)
        ended = await run.end()
    assert ended.outcome == "Succeeded"
    assert told in (ended.report.output or "")
    assert lines(notes) == made
    (end,) = ended.report.ended_approvals or []
    assert "do not fit" in (end.note or "") if told == "do not fit" else end.note is None
    assert "Call it again" not in (end.note or "")


async def test_only_what_the_expression_says_is_asked(world: "World") -> None:
    notes = world.path / "notes"
    two = calls(note(notes, "small"), note(notes, "large"))
    async with world.serving():
        run = await world.start(two, {"text": "done"}, agent=asks(when="args.line == 'large'"))
        (request,) = await run.pending()
        await world.eventually(lambda: lines(notes) == ["small"])
        assert "large" in request.arguments
        await run.decide(request, "Approve")
        ended = await run.end()
    assert (ended.outcome, lines(notes)) == ("Succeeded", ["small", "large"])


@pytest.mark.parametrize(
    "written",
    [pytest.param("true", id="as text that the tool reads as true"), pytest.param(True, id="as it should be")],
)
async def test_a_policy_is_not_passed_by_writing_a_value_otherwise(world: "World", written: Any) -> None:
    policy = ApprovalPolicy(when="args.force == true")
    agent = {"tools": [ToolBinding(name="drop", function="drop", approval=policy)]}
    async with world.serving():
        run = await world.start(calls(("drop", {"force": written})), {"text": "{{last_tool}}"}, agent=agent)
        (request,) = await run.pending()
        await run.decide(request, "Reject")
        ended = await run.end()
    assert "rejected" in (ended.report.output or "")


async def test_the_pool_may_ask_whatever_the_agent_says(world: "World") -> None:
    floor = ApprovalFloor(tools=["no*"], question="The platform asks.")
    async with world.serving(approvals=[floor]):
        run = await world.start(calls(note(world.path / "notes", "x")), {"text": "done"}, tools=["note"])
        (request,) = await run.pending()
        await run.decide(request, "Approve")
        ended = await run.end()
    assert (request.question, ended.outcome) == ("The platform asks.", "Succeeded")


async def test_what_a_tool_is_named_does_not_hide_what_it_runs(world: "World") -> None:
    binding = ToolBinding(name="greet", function="note", approval=ApprovalPolicy(question="Say hello?"))
    long = "hello" * 10_000
    async with world.serving(approvals=[ApprovalFloor(tools=["note"], question="Write it?")]):
        greet = calls(("greet", {"file": str(world.path / "notes"), "line": long}))
        run = await world.start(greet, {"text": "done"}, agent={"tools": [binding]})
        (request,) = await run.pending()
        await run.decide(request, "Approve")
        ended = await run.end()
    target = contract.ApprovalTarget(kind="Function", name="note")
    assert (request.question, request.tool, request.target) == ("Write it?; Say hello?", "greet", target)
    assert (ended.outcome, lines(world.path / "notes")) == ("Succeeded", [long])
    assert [end.target for end in ended.report.ended_approvals or []] == [target]


async def test_several_wait_and_are_answered_in_any_order(world: "World") -> None:
    notes = world.path / "notes"
    async with world.serving():
        three = calls(*(note(notes, line) for line in "abc"))
        run = await world.start(three, {"text": "done"}, agent=asks())
        first, second, third = await run.pending(3)
        assert len({first.name, second.name, third.name}) == 3
        for request in (third, first):
            await run.decide(request, "Approve")
        await world.eventually(lambda: sorted(lines(notes)) == ["a", "c"])
        await run.decide(second, "Reject")
        ended = await run.end()
    assert (ended.outcome, sorted(lines(notes))) == ("Succeeded", ["a", "c"])


@pytest.mark.parametrize(
    ("on_timeout", "outcome", "reason", "made"),
    [
        pytest.param("Reject", "Succeeded", "Answered", [], id="rejected"),
        pytest.param("Approve", "Succeeded", "Answered", ["paid"], id="approved"),
        pytest.param("Fail", "Failed", "ApprovalExpired", [], id="the run fails"),
    ],
)
async def test_what_nobody_decides_in_time(
    world: "World", on_timeout: str, outcome: str, reason: str, made: list[str]
) -> None:
    notes = world.path / "notes"
    async with world.serving():
        agent = asks(timeout_seconds=1, on_timeout=on_timeout)
        run = await world.start(calls(note(notes, "paid")), {"text": "done"}, agent=agent)
        ended = await run.end()
    assert (ended.outcome, ended.report.reason, lines(notes)) == (outcome, reason, made)
    assert [end.state for end in ended.report.ended_approvals or []] == ["Expired"]


async def test_the_run_s_own_clock_stands_still_meanwhile(world: "World") -> None:
    async with world.serving():
        agent = asks(timeout_seconds=4, on_timeout="Approve")
        run = await world.start(calls(note(world.path / "n", "x")), {"text": "done"}, agent=agent, timeout_seconds=2)
        ended = await run.end()
    assert ended.outcome == "Succeeded"


async def test_a_decision_is_kept_while_there_is_no_worker(world: "World") -> None:
    notes = world.path / "notes"
    async with world.reporter():
        async with world.worker():
            run = await world.start(calls(note(notes, "paid")), {"text": "done"}, agent=asks())
            (request,) = await run.pending()
        await run.decide(request, "Approve")
        async with world.worker():
            ended = await run.end()
    assert (ended.outcome, lines(notes)) == ("Succeeded", ["paid"])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("moment", ["before the decision", "after it"])
async def test_a_killed_worker_loses_no_decision_and_makes_no_call_before_it(world: "World", moment: str) -> None:
    notes = world.path / "notes"
    async with world.reporter():
        async with world.worker_process() as worker:
            run = await world.start(calls(note(notes, "paid")), {"text": "done"}, agent=asks())
            (request,) = await run.pending()
            if moment == "after it":
                await run.decide(request, "Approve")
            worker.process.kill()
            await worker.process.wait()
        if moment == "before the decision":
            assert lines(notes) == []
            await run.decide(request, "Approve")
        async with world.worker_process():
            ended = await run.end()
    assert (ended.outcome, set(lines(notes))) == ("Succeeded", {"paid"})


async def test_reports_do_not_pile_up_while_the_operator_is_away(world: "World") -> None:
    notes = world.path / "notes"
    async with world.worker():
        again = calls(*(note(notes, line) for line in "abc"))
        run = await world.start(*[again] * 3, {"text": "done"}, agent=asks(timeout_seconds=1), max_turns=4)
        for turn in range(2, 4):
            await world.eventually(partial(asked_so_often, run, turn))
            assert await run.reports_under_way() == 1
        async with world.reporter():
            ended = await run.end()
    assert (ended.outcome, ended.report.turns, lines(notes)) == ("Succeeded", 4, [])
    assert all(report.turns > 1 for report in world.reporting), "those that were replaced have not come"


async def asked_so_often(run: "Run", turn: int) -> bool:
    return len(await run.asked()) >= turn


async def test_a_report_that_hangs_is_replaced_and_its_successor_tells_what_there_is(world: "World") -> None:
    notes = world.path / "notes"
    world.reporter_open.clear()
    async with world.serving():
        run = await world.start(calls(note(notes, "a"), note(notes, "b")), {"text": "done"}, agent=asks())
        await world.eventually(lambda: len(world.reporting) == 1)
        await run.handle.signal(contract.REPORT_AGAIN_SIGNAL)
        await world.eventually(lambda: len(world.reporting) == 2)
        assert await run.reports_under_way() == 2  # the first is told that it is not wanted, and does not listen
        await run.handle.signal(contract.REPORT_AGAIN_SIGNAL)
        world.reporter_open.set()
        for request in await run.pending(2):
            await run.decide(request, "Approve")
        ended = await run.end()
    assert (ended.outcome, sorted(lines(notes))) == ("Succeeded", ["a", "b"])


async def test_what_a_replaced_report_has_made_all_the_same_is_known(world: "World") -> None:
    notes, seen, may_end = world.path / "notes", [], asyncio.Event()

    @activity.defn(name=contract.REPORT_ACTIVITY)
    async def report(report: RunReport) -> ReportResult:
        seen.append(report)
        if report.seq > 1 and not lines(notes):
            raise ConnectionError("the API server is away")
        await may_end.wait()
        world.reported.setdefault(activity.info().workflow_id or "", []).append(report)
        return ReportResult(approvals={request.name: "uid" for request in report.pending_approvals or ()})

    queue = contract.reporter_queue(world.installation)
    async with world.worker(), Worker(world.client, task_queue=queue, activities=[report]):
        run = await world.start(calls(note(notes, "paid")), {"text": "done"}, agent=asks())
        await world.eventually(lambda: seen)
        await run.handle.signal(contract.REPORT_AGAIN_SIGNAL)
        await world.eventually(lambda: len(seen) > 1)
        may_end.set()
        (request,) = seen[0].pending_approvals or []
        world.approval_uids[request.name] = "uid"
        await run.decide(request, "Approve")
        ended = await run.end()
    assert (ended.outcome, lines(notes)) == ("Succeeded", ["paid"])


async def test_a_worker_from_before_approvals_gets_no_call_past_them(world: "World") -> None:
    notes = world.path / "notes"
    name, arguments = note(notes, "paid")
    part = ToolCallPart(call_id="1", tool=name, arguments=json.dumps(arguments))
    message = Message(role="assistant", parts=[part], sender="support")
    reply = ModelReply(message=message, calls=[CallVerdict(call_id="1", function=name)])
    async with world.reporter():
        async with world.worker_before_approvals(reply):
            run = await world.start(calls(note(notes, "paid")), {"text": "done"}, agent=asks())
            await world.eventually(lambda: run.reports and "before approvals" in run.last_report.message)
        async with world.worker():
            (request,) = await run.pending()
            assert lines(notes) == []
            await run.decide(request, "Approve")
            ended = await run.end()
    assert (ended.outcome, lines(notes)) == ("Succeeded", ["paid"])


async def test_a_decision_about_an_approval_made_anew_needs_its_uid(world: "World") -> None:
    """Deleted while it is pending, the approval is made again, undecided, when the controller asks for a report."""
    notes = world.path / "notes"
    async with world.serving():
        run = await world.start(calls(note(notes, "paid")), {"text": "done"}, agent=asks())
        (request,) = await run.pending()
        old = world.approval_uids.pop(request.name)
        reports = len(run.reports)
        await run.handle.signal(contract.REPORT_AGAIN_SIGNAL)
        await world.eventually(lambda: len(run.reports) > reports)
        await run.decide(request, "Approve", uid=old)
        await run.decide(request, "Reject")
        ended = await run.end()
    assert (ended.outcome, lines(notes)) == ("Succeeded", [])
    assert [end.decision for end in ended.report.ended_approvals or []] == ["Reject"]


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("call", id="a call"),
        pytest.param("answer", id="an answer"),
        pytest.param("nested", id="a called agent's"),
    ],
)
async def test_a_cancel_ends_what_is_pending_and_says_that_a_human_was_awaited(world: "World", what: str) -> None:
    called = calls(note(world.path / "n", "x"))
    async with world.serving():
        if what == "call":
            run = await world.start(called, agent=asks())
        elif what == "answer":
            run = await world.start({"text": "Plan B."}, agent={"output_approval": ApprovalPolicy()})
        else:
            run = await world.start_team(
                [
                    world.agent("desk", tools=[ToolBinding(name="clerk", agent="clerk")]),
                    world.agent("clerk", model="b", **asks()),
                ],
                [
                    world.model("gpt", await world.script(calls(("clerk", {"message": "Pay."})))),
                    world.model("b", await world.script(called)),
                ],
            )
        await run.pending()
        await run.handle.cancel()
        ended = await run.end()
    assert (ended.outcome, ended.report.pending_approvals) == ("Cancelled", None)
    assert ended.report.message == "Cancelled while waiting for a human's decision"
    (end,) = ended.report.ended_approvals or []
    assert (end.state, (end.note or "").endswith("so it was not approved")) == ("Expired", True)


async def test_a_cancel_while_a_human_is_asked_and_a_tool_runs_names_the_tool(world: "World") -> None:
    """A human is waited for as long as it takes; what is at work is what kept the run from going on."""
    started = world.path / "started"
    waits = ("wait_for", {"file": str(world.path / "never"), "started": str(started)})
    tools = [*asks()["tools"], ToolBinding(name="wait_for", function="wait_for")]
    async with world.serving():
        run = await world.start(calls(note(world.path / "n", "x"), waits), agent={"tools": tools})
        await run.pending()
        await world.eventually(started.exists)
        await run.handle.cancel()
        ended = await run.end()
    assert ended.report.message == "Cancelled while waiting for tool wait_for of support (turn 1)"


async def test_an_answer_may_need_approval(world: "World") -> None:
    schema = {"type": "object", "properties": {"day": {"type": "integer"}}, "required": ["day"]}
    agent = {"output_schema": schema, "output_approval": ApprovalPolicy(when="output.day > 5")}
    async with world.serving():
        run = await world.start({"text": '{"day": 7}'}, {"text": '{"day": 6}'}, {"text": '{"day": 1}'}, agent=agent)
        (first,) = await run.pending()
        assert (first.subject, first.tool, first.arguments) == ("Output", None, '{"day":7}')
        await run.decide(first, "Reject", reason="Not on a Sunday.")
        await world.eventually(lambda: run.last_report.pending_approvals not in (None, [first]))
        (second,) = await run.pending()
        await run.decide(second, "Approve", override={"day": "Monday"})
        await world.eventually(lambda: run.last_report.pending_approvals not in (None, [second]))
        (third,) = await run.pending()
        problem = "at day: 'Monday' is not of type 'integer'"
        assert third.question.endswith(
            f"(The changed answer did not fit: The answer does not fit the schema: {problem})"
        )
        await run.decide(third, "Approve", override={"day": 3})
        ended = await run.end()
    assert (ended.outcome, ended.report.structured_output, ended.report.turns) == ("Succeeded", {"day": 3}, 2)
    *_, conversation = await run.conversations()
    assert "Not on a Sunday." in conversation[-1]["content"]


async def test_an_answer_that_would_be_cut_is_given_again_before_anybody_is_asked(world: "World") -> None:
    answers = [{"text": "x" * contract.MESSAGE_MAX_BYTES + " Refund it."}, {"text": "Refund it."}]
    agent = {"output_approval": ApprovalPolicy(when="output.contains('Refund')")}
    async with world.serving():
        run = await world.start(*answers, agent=agent)
        (request,) = await run.pending()
        assert request.arguments == '"Refund it."'
        await run.decide(request, "Approve")
        ended = await run.end()
    assert (ended.report.output, ended.report.turns) == ("Refund it.", 2)
    *_, conversation = await run.conversations()
    assert conversation[-1]["content"] == "The answer is longer than 32768 bytes. Answer again, shorter."


async def test_an_answer_that_never_gets_short_enough_ends_with_the_turns(world: "World") -> None:
    agent = {"output_approval": ApprovalPolicy()}
    async with world.serving():
        answer = {"text": "x" * (contract.MESSAGE_MAX_BYTES + 1)}
        run = await world.start(answer, loop=True, agent=agent, max_turns=2)
        ended = await run.end()
    assert (ended.outcome, ended.report.reason) == ("Failed", "MaxTurns")
    assert "The last answer was not taken: The answer is longer than 32768 bytes" in ended.report.message


async def test_an_answer_without_a_schema_is_changed_by_its_text(world: "World") -> None:
    async with world.serving():
        run = await world.start({"text": "Plan B."}, agent={"output_approval": ApprovalPolicy()})
        (first,) = await run.pending()
        assert first.arguments == '"Plan B."'
        await run.decide(first, "Approve", override={"plan": "C"})
        await world.eventually(lambda: run.last_report.pending_approvals not in (None, [first]))
        (second,) = await run.pending()
        assert second.question.endswith('(The changed answer cannot be used: exactly {"text": "…"} is expected)')
        await run.decide(second, "Approve", override={"text": "The plan is C."})
        ended = await run.end()
    assert (ended.report.output, ended.report.structured_output, ended.report.turns) == ("The plan is C.", None, 1)
    assert [end.state for end in ended.report.ended_approvals or []] == ["Superseded", "Applied"]


async def test_an_approved_agent_s_decision_is_told_as_applied_while_that_agent_waits_itself(world: "World") -> None:
    notes = world.path / "notes"
    clerk = ToolBinding(name="clerk", agent="clerk", approval=ApprovalPolicy())
    async with world.serving():
        run = await world.start_team(
            [world.agent("desk", tools=[clerk]), world.agent("clerk", model="b", **asks())],
            [
                world.model("gpt", await world.script(calls(("clerk", {"message": "Pay."})), {"text": "Done."})),
                world.model("b", await world.script(calls(note(notes, "paid")), {"text": "Paid."})),
            ],
        )
        (first,) = await run.pending()
        await run.decide(first, "Approve")
        await world.eventually(lambda: run.last_report.pending_approvals not in (None, [first]))
        (second,) = await run.pending()
        told = [(end.name, end.state) for end in run.last_report.ended_approvals or ()]
        assert (second.agent, told) == ("clerk", [(first.name, "Applied")])
        await run.decide(second, "Approve")
        ended = await run.end()
    assert (ended.outcome, lines(notes)) == ("Succeeded", ["paid"])


async def test_an_agent_called_as_a_tool_may_ask(world: "World") -> None:
    notes = world.path / "notes"
    async with world.serving():
        run = await world.start_team(
            [
                world.agent("desk", tools=[ToolBinding(name="clerk", agent="clerk")]),
                world.agent("clerk", model="b", **asks()),
            ],
            [
                world.model(
                    "gpt", await world.script(calls(("clerk", {"message": "Pay."})), {"text": "{{last_tool}}"})
                ),
                world.model("b", await world.script(calls(note(notes, "paid")), {"text": "Paid."})),
            ],
        )
        (request,) = await run.pending()
        await run.decide(request, "Approve")
        ended = await run.end()
    assert (request.agent, ended.report.output, lines(notes)) == ("clerk", "Paid.", ["paid"])


async def test_reports_are_few(world: "World") -> None:
    """One when it asks, one a decision, one when the turn is done, one at the end: each is a write to the API server."""
    async with world.serving():
        run = await world.start(calls(*(note(world.path / "n", line) for line in "ab")), {"text": "done"}, agent=asks())
        requests = await run.pending(2)
        await asyncio.gather(*(run.decide(request, "Approve") for request in requests))
        ended = await run.end()
    assert ended.outcome == "Succeeded"
    assert len(run.reports) <= 5

"""Asking humans: who is asked about what, what each decision leads to, and the clock that stands still meanwhile."""

import asyncio
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
from dalang_api import contract
from dalang_api.contract import (
    AgentCall,
    AgentSnapshot,
    ApprovalNeeded,
    ApprovalPolicy,
    ApprovalRequest,
    ApprovalTarget,
    CallVerdict,
    Decision,
    HandoffBinding,
    LimitSettings,
    Message,
    ModelCall,
    ModelReply,
    RunInput,
    Snapshot,
    TextPart,
    ToolBinding,
    ToolCall,
    ToolCallPart,
    ToolOutcome,
    ToolResultPart,
)
from dalang_api.v1alpha1.conditions import Reason
from dalang_worker.conductor.approvals import Approvals, Pending
from dalang_worker.conductor.budget import RunFailed
from dalang_worker.conductor.clock import Clock
from dalang_worker.conductor.loop import converse
from dalang_worker.conductor.state import Answer, Question, RunState

USER = Message(role="user", parts=[TextPart(text="Refund order 42.")])
NEEDED = ApprovalNeeded(question="Refund?", arguments='{"amount":120}', digest="sha256:1")


def needed(**more: Any) -> ApprovalNeeded:
    return NEEDED.model_copy(update=more)


def state(*agents: AgentSnapshot, **more: Any) -> RunState:
    desk = AgentSnapshot(name="desk", uid="u", generation=1, queue="i.shop.desk", model="gpt")
    snapshot = Snapshot(agents=list(agents) or [desk], models=[])
    fields = {"max_turns": 20, "timeout_seconds": 60, **more}
    return RunState(RunInput(agent=snapshot.agents[0].name, messages=[USER], snapshot=snapshot, **fields), "run-uid")


def says(text: str, **more: Any) -> ModelReply:
    return ModelReply(message=Message(role="assistant", parts=[TextPart(text=text)]), **more)


def asks(*verdicts: CallVerdict) -> ModelReply:
    parts = [ToolCallPart(call_id=verdict.call_id, tool="refund", arguments='{"amount": 120}') for verdict in verdicts]
    return ModelReply(message=Message(role="assistant", parts=list(parts)), calls=list(verdicts))


def refund(call_id: str = "1", approval: ApprovalNeeded | None = NEEDED) -> CallVerdict:
    return CallVerdict(call_id=call_id, function="refund", approval=approval)


@dataclass
class Ports:
    """Answers from lists; a question is decided as soon as it is asked, by the next decision, or never."""

    run: RunState
    replies: dict[str, list[ModelReply]]
    decisions: list[dict[str, Any] | None] = field(default_factory=list)
    outcomes: list[ToolOutcome] = field(default_factory=list)
    problems: list[str | None] = field(default_factory=list)
    makes_objects: bool = True
    fails: RunFailed | None = None
    asked: list[Question] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    made_again: list[str] = field(default_factory=list)
    awaited: list[str] = field(default_factory=list)
    """Why model calls were made again."""
    is_patched: bool = True
    """The run is one of the present version."""

    async def model(self, agent: AgentSnapshot, call: ModelCall, attempts: int) -> ModelReply:
        await asyncio.sleep(0)
        return self.replies[agent.name].pop(0)

    async def tool(self, agent: AgentSnapshot, call: ToolCall) -> ToolOutcome:
        self.tool_calls.append(call)
        await asyncio.sleep(0)
        if self.fails:
            raise self.fails
        return self.outcomes.pop(0) if self.outcomes else ToolOutcome(output="refunded")

    async def check_answer(self, agent: AgentSnapshot, answer: dict[str, Any]) -> str | None:
        return self.problems.pop(0) if self.problems else None

    def ask(self, agent: AgentSnapshot, question: Question) -> Pending:
        self.asked.append(question)
        request = ApprovalRequest(
            name=f"approval-{len(self.asked)}",
            subject="ToolCall" if question.tool else "Output",
            agent=agent.name,
            tool=question.tool,
            question=question.needed.question,
            arguments=question.needed.arguments,
            digest=question.needed.digest,
            requested_at="2026-01-01T00:00:00Z",
        )
        pending = self.run.approvals.ask(request)
        if self.makes_objects:
            self.run.approvals.learn({request.name: f"uid-{len(self.asked)}"})
        decision = self.decisions.pop(0) if self.decisions else None
        if decision is not None:
            self.run.approvals.decide(made(request, len(self.asked), **decision))
        return pending

    def awaiting(self, key: str, what: str) -> AbstractContextManager[None]:
        self.awaited.append(what)
        return nullcontext()

    def model_call_is_made_again(self, call: ModelCall, why: str) -> None:
        self.made_again.append(why)

    def patched(self, change: str) -> bool:
        return self.is_patched

    def history_is_full(self) -> bool:
        return False

    def turn_done(self) -> None:
        pass


def made(request: ApprovalRequest, number: int, **more: Any) -> Decision:
    fields = {"run_uid": "run-uid", "name": request.name, "uid": f"uid-{number}", "digest": request.digest, **more}
    return Decision.model_validate(fields)


def told(run: RunState) -> list[tuple[str, bool | None]]:
    return [
        (part.output, part.is_error)
        for message in run.main.thread.messages
        for part in message.parts
        if isinstance(part, ToolResultPart)
    ]


def ended(run: RunState) -> list[tuple[str, str | None]]:
    return [(end.state, end.decision) for end in run.approvals.ended]


def notes(run: RunState) -> list[str | None]:
    return [end.note for end in run.approvals.ended]


APPROVE = {"decision": "Approve", "decided_by": "ada"}


# ── Tool calls ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_approved_call_is_made_with_the_digest_of_what_was_approved() -> None:
    run = state()
    ports = Ports(run, {"desk": [asks(refund()), says("Done.")]}, [APPROVE])
    assert (await converse(run, run.main, ports)).text == "Done."
    (call,) = ports.tool_calls
    assert (call.arguments, call.approved_digest, call.approved_arguments) == ('{"amount": 120}', "sha256:1", None)
    assert told(run) == [("refunded", None)]
    (end,) = run.approvals.ended
    assert (end.state, end.decision, end.decided_by, end.uid) == ("Applied", "Approve", "ada", "uid-1")


async def test_a_rejected_call_is_not_made_and_the_model_is_told_why() -> None:
    run = state()
    reject = {"decision": "Reject", "reason": "Too much."}
    ports = Ports(run, {"desk": [asks(refund()), says("Sorry.")]}, [reject])
    await converse(run, run.main, ports)
    assert ports.tool_calls == []
    assert told(run) == [("Not run: a human rejected it. Too much.", True)]
    assert ended(run) == [("Applied", "Reject")]


async def test_changed_arguments_are_used_and_told() -> None:
    run = state()
    ports = Ports(run, {"desk": [asks(refund()), says("Done.")]}, [{**APPROVE, "override": {"amount": 20}}])
    await converse(run, run.main, ports)
    (call,) = ports.tool_calls
    assert (call.arguments, call.approved_arguments) == ('{"amount":20}', '{"amount": 120}')
    assert told(run) == [('[A human approved the call with other arguments: {"amount":20}]\nrefunded', None)]


@pytest.mark.parametrize(
    ("on_timeout", "calls", "output", "note"),
    [
        pytest.param(
            "Reject",
            0,
            "Not run: nobody approved it in time.",
            "Nobody decided in time, so it was not approved: onTimeout is Reject",
            id="rejected",
        ),
        pytest.param(
            "Approve",
            1,
            "refunded",
            "Nobody decided in time, which approves it: onTimeout is Approve",
            id="approved",
        ),
    ],
)
async def test_what_nobody_decides_in_time(on_timeout: str, calls: int, output: str, note: str) -> None:
    run = state()
    expires = needed(timeout_seconds=0.01, on_timeout=on_timeout)
    ports = Ports(run, {"desk": [asks(refund(approval=expires)), says("Done.")]})
    await converse(run, run.main, ports)
    assert (len(ports.tool_calls), told(run)[0][0], ended(run)) == (calls, output, [("Expired", None)])
    assert notes(run) == [note]


async def test_nobody_could_approve_what_there_was_no_object_for() -> None:
    """The operator was away until the time was over: `onTimeout: Approve` needs somebody who could have said no."""
    run = state()
    expires = needed(timeout_seconds=0.01, on_timeout="Approve")
    ports = Ports(run, {"desk": [asks(refund(approval=expires)), says("Done.")]}, makes_objects=False)
    await converse(run, run.main, ports)
    assert (ports.tool_calls, told(run)) == ([], [("Not run: nobody approved it in time.", True)])
    assert notes(run) == ["Nobody could decide in time, so it was not approved, although onTimeout is Approve"]


async def test_an_approved_call_that_is_stopped_was_applied_all_the_same() -> None:
    run = state()
    ports = Ports(run, {"desk": [asks(refund())]}, [APPROVE], fails=RunFailed(Reason.WORKFLOW_FAILED, "lost"))
    with pytest.raises(RunFailed, match="lost"):
        await converse(run, run.main, ports)
    assert ended(run) == [("Applied", "Approve")]


async def test_what_nobody_decides_in_time_may_fail_the_run() -> None:
    run = state()
    expires = needed(timeout_seconds=0.01, on_timeout="Fail")
    ports = Ports(run, {"desk": [asks(refund(approval=expires))]})
    with pytest.raises(RunFailed, match="Nobody decided in time: Refund") as failed:
        await converse(run, run.main, ports)
    assert failed.value.reason is Reason.APPROVAL_EXPIRED
    assert notes(run) == ["Nobody decided in time, so it was not approved: onTimeout is Fail"]


async def test_what_was_approved_and_not_run_all_the_same_is_noted() -> None:
    run = state()
    words = f"Not run: a human approved the call with other arguments, and those do not fit the tool. {'x' * 300}"
    outcome = ToolOutcome(output=words, is_error=True, not_run=True)
    override = {**APPROVE, "override": {"amount": "all"}}
    ports = Ports(run, {"desk": [asks(refund()), says("Done.")]}, [override], [outcome])
    await converse(run, run.main, ports)
    assert ended(run) == [("Applied", "Approve")]
    assert notes(run) == [f"{words[: contract.APPROVAL_NOTE_MAX_CHARS - 1]}…"]


async def test_what_the_model_may_do_about_a_call_that_was_not_run_is_not_for_people() -> None:
    run = state()
    why = "Not run: those do not fit the tool."
    outcome = ToolOutcome(output=f"{why} Call it again.", is_error=True, not_run=True, not_run_because=why)
    ports = Ports(
        run, {"desk": [asks(refund()), says("Done.")]}, [{**APPROVE, "override": {"amount": "all"}}], [outcome]
    )
    await converse(run, run.main, ports)
    assert told(run)[0][0].endswith(f"{why} Call it again.")
    assert notes(run) == ["Not run: those do not fit the tool"]


async def test_a_hand_off_takes_no_changed_arguments_and_that_is_noted() -> None:
    desk = AgentSnapshot(name="desk", uid="u", generation=1, queue="i.shop.desk", model="gpt")
    run = state(
        desk.model_copy(update={"handoffs": [HandoffBinding(agent="sales")]}), desk.model_copy(update={"name": "sales"})
    )
    transfer = CallVerdict(call_id="1", handoff="sales", approval=NEEDED)
    ports = Ports(run, {"desk": [asks(transfer)], "sales": [says("Hello.")]}, [{**APPROVE, "override": {"a": 1}}])
    assert (await converse(run, run.main, ports)).text == "Hello."
    assert notes(run) == ["The changed arguments were not used: a hand-off takes none"]


LARGE = {**APPROVE, "override": {"why": "x" * contract.MESSAGE_MAX_BYTES}}


async def test_changed_arguments_that_are_too_large_are_asked_about_anew() -> None:
    run = state()
    ports = Ports(run, {"desk": [asks(refund()), says("Done.")]}, [LARGE, APPROVE])
    await converse(run, run.main, ports)
    note = "The changed arguments cannot be used: more than 32768 bytes"
    assert [question.needed.question for question in ports.asked] == ["Refund?", f"Refund? ({note})"]
    assert [call.arguments for call in ports.tool_calls] == ['{"amount": 120}']
    assert (ended(run), notes(run)) == ([("Superseded", "Approve"), ("Applied", "Approve")], [note, None])


async def test_a_run_from_before_that_goes_on_as_it_began() -> None:
    run = state()
    ports = Ports(run, {"desk": [asks(refund()), says("Done.")]}, [LARGE], is_patched=False)
    await converse(run, run.main, ports)
    assert (len(ports.tool_calls), ended(run)) == (1, [("Applied", "Approve")])


async def test_a_tool_that_has_changed_is_asked_about_anew() -> None:
    run = state()
    target = ApprovalTarget(kind="Function", name="refund")
    anew = needed(question="?", digest="sha256:2", target=target, timeout_seconds=None)
    again = ToolOutcome(output="", ask_again=anew)
    first = needed(timeout_seconds=3600.0, on_timeout="Approve")
    ports = Ports(run, {"desk": [asks(refund(approval=first)), says("Done.")]}, [APPROVE, APPROVE], [again])
    await converse(run, run.main, ports)
    assert [question.place for question in ports.asked] == ["main/1/0/0", "main/1/0/1"]
    second = ports.asked[1].needed
    assert (second.question, second.digest, second.timeout_seconds) == ("Refund?", "sha256:2", 3600.0)
    assert second.target == target, "the worker that asked first knew of none"
    assert [call.approved_digest for call in ports.tool_calls] == ["sha256:1", "sha256:2"]
    assert ended(run) == [("Superseded", "Approve"), ("Applied", "Approve")]


async def test_two_identical_calls_are_asked_twice_and_answered_in_any_order() -> None:
    run = state()
    ports = Ports(run, {"desk": [asks(refund("1"), refund("2")), says("Done.")]})
    task = asyncio.create_task(converse(run, run.main, ports))
    while len(ports.asked) < 2:  # noqa: ASYNC110  # two turns of the loop
        await asyncio.sleep(0)
    first, second = (pending.request for pending in run.approvals.pending.values())
    run.approvals.decide(made(second, 2, decision="Reject", reason="Once is enough."))
    run.approvals.decide(made(first, 1, **APPROVE))
    await task
    assert [question.place for question in ports.asked] == ["main/1/0/0", "main/1/1/0"]
    assert told(run) == [("refunded", None), ("Not run: a human rejected it. Once is enough.", True)]


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"uid": "another"}, id="of an approval made anew"),
        pytest.param({"digest": "sha256:9"}, id="about something else"),
        pytest.param({"run_uid": "another"}, id="of another run"),
        pytest.param({"name": "another"}, id="of another approval"),
    ],
)
async def test_a_decision_that_is_not_of_this_request_changes_nothing(wrong: dict[str, str]) -> None:
    run = state()
    ports = Ports(
        run, {"desk": [asks(refund(approval=needed(timeout_seconds=0.02))), says("Done.")]}, [{**APPROVE, **wrong}]
    )
    await converse(run, run.main, ports)
    assert (ports.tool_calls, ended(run)) == ([], [("Expired", None)])


async def test_the_first_of_two_decisions_counts() -> None:
    run = state()
    ports = Ports(run, {"desk": [asks(refund()), says("Done.")]})
    task = asyncio.create_task(converse(run, run.main, ports))
    while not ports.asked:  # noqa: ASYNC110
        await asyncio.sleep(0)
    (pending,) = run.approvals.pending.values()
    run.approvals.decide(made(pending.request, 1, decision="Reject"))
    run.approvals.decide(made(pending.request, 1, **APPROVE))
    await task
    assert ports.tool_calls == []


async def test_a_decision_that_comes_before_the_uid_is_known_counts_when_it_is() -> None:
    run = state()
    request = ApprovalRequest(
        name="a", subject="ToolCall", agent="desk", question="?", arguments="{}", digest="sha256:1", requested_at="now"
    )
    pending = run.approvals.ask(request)
    run.approvals.decide(made(request, 1, **APPROVE))
    assert not pending.decided.done()
    run.approvals.learn({"a": "uid-1"})
    assert pending.decided.done()


async def test_a_cancel_while_a_human_is_asked_leaves_nothing_pending() -> None:
    run = state()
    ports = Ports(run, {"desk": [asks(refund())]})
    task = asyncio.create_task(converse(run, run.main, ports))
    while not ports.asked:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (run.approvals.pending, ended(run)) == ({}, [("Expired", None)])
    words = "The run, or the agent that asked, was stopped before it had a decision, so it was not approved"
    assert notes(run) == [words]


# ── Agents called as tools ─────────────────────────────────────────────────────────────────────────────────────────


CONSULT = CallVerdict(call_id="1", agent=AgentCall(agent="archive", message="All orders."), approval=NEEDED)


def consulting(
    decisions: list[dict[str, Any] | None], *replies: ModelReply, is_patched: bool = True
) -> tuple[RunState, Ports]:
    """A desk that calls the archive, which answers so."""
    desk = AgentSnapshot(name="desk", uid="u", generation=1, queue="i.shop.desk", model="gpt")
    run = state(desk, desk.model_copy(update={"name": "archive"}))
    said = {"desk": [asks(CONSULT), says("Done.")], "archive": [*replies, says("One.")]}
    return run, Ports(run, said, decisions, is_patched=is_patched)


def was_told(run: RunState) -> str:
    """What the archive was told."""
    return run.threads["1.0.archive"].messages[0].text()


async def test_an_agent_called_as_a_tool_may_need_approval_and_be_told_something_else() -> None:
    run, ports = consulting([{**APPROVE, "override": {"message": "Order 42."}}])
    await converse(run, run.main, ports)
    assert was_told(run) == "Order 42."
    assert told(run) == [('[A human approved the call with other arguments: {"message":"Order 42."}]\nOne.', None)]
    assert (ended(run), notes(run)) == ([("Applied", "Approve")], [None])


@pytest.mark.parametrize(
    "override",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"message": ""}, id="no words"),
        pytest.param({"message": 42}, id="no text"),
        pytest.param({"message": "Order 42.", "extra": 1}, id="something else beside it"),
    ],
)
async def test_an_agent_that_would_be_told_something_unfit_is_asked_about_anew(override: dict[str, Any]) -> None:
    run, ports = consulting([{**APPROVE, "override": override}, APPROVE])
    await converse(run, run.main, ports)
    note = 'The changed arguments cannot be used: exactly {"message": "…"} is expected'
    assert [question.needed.question for question in ports.asked] == ["Refund?", f"Refund? ({note})"]
    assert (was_told(run), ended(run)) == ("All orders.", [("Superseded", "Approve"), ("Applied", "Approve")])
    assert notes(run) == [note, None]


async def test_in_a_run_from_before_that_an_agent_is_told_what_is_there() -> None:
    run, ports = consulting([{**APPROVE, "override": {"message": "Order 42.", "extra": 1}}], is_patched=False)
    await converse(run, run.main, ports)
    assert (was_told(run), ended(run)) == ("Order 42.", [("Applied", "Approve")])


@pytest.mark.parametrize(("is_patched", "meanwhile"), [(True, [("Applied", "Approve")]), (False, [])])
async def test_a_decision_counts_as_acted_on_while_the_called_agent_waits_for_a_human_itself(
    is_patched: bool, meanwhile: list[tuple[str, str]]
) -> None:
    run, ports = consulting([APPROVE, None], asks(refund()), is_patched=is_patched)
    task = asyncio.create_task(converse(run, run.main, ports))
    while len(ports.asked) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert ended(run) == meanwhile
    (waiting,) = run.approvals.pending.values()
    run.approvals.decide(made(waiting.request, 2, **APPROVE))
    await task
    assert ended(run) == [("Applied", "Approve")] * 2


async def test_that_an_approved_agent_was_not_called_all_the_same_is_noted() -> None:
    run, ports = consulting([APPROVE])
    run.nested = contract.THREADS_MAX
    await converse(run, run.main, ports)
    words = f"Not run: {contract.THREADS_MAX} agents are at work already"
    assert told(run) == [(f"{words}. Call it again afterwards.", True)]
    assert (ended(run), notes(run)) == ([("Applied", "Approve")], [words])


# ── Answers ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_answer_that_is_approved_counts() -> None:
    run = state()
    ports = Ports(run, {"desk": [says('{"plan":1}', structured_output={"plan": 1}, approval=NEEDED)]}, [APPROVE])
    assert await converse(run, run.main, ports) == Answer('{"plan":1}', {"plan": 1})
    assert ports.asked[0].place == "main/1/answer/0"


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        pytest.param("Not on a Friday.", "Not on a Friday.", id="a sentence"),
        pytest.param("too unsure", "too unsure.", id="words without an end"),
        pytest.param("Friday?\n", "Friday?", id="a question"),
        pytest.param(None, "No reason was given.", id="none"),
    ],
)
async def test_an_answer_that_is_rejected_is_given_again_within_the_turns(reason: str | None, words: str) -> None:
    run = state(max_turns=2)
    reject = {"decision": "Reject", "reason": reason}
    ports = Ports(run, {"desk": [says("Today.", approval=NEEDED), says("Monday.", approval=NEEDED)]}, [reject, APPROVE])
    assert (await converse(run, run.main, ports)).text == "Monday."
    said = [message.text() for message in run.main.thread.messages]
    assert said[2] == f"Your answer does not count: a human rejected it. {words} Answer again."


async def test_an_answer_that_is_rejected_with_no_turn_left_ends_with_that() -> None:
    run = state(max_turns=1)
    reject = {"decision": "Reject", "reason": "too unsure"}
    ports = Ports(run, {"desk": [says("Today.", approval=NEEDED)]}, [reject])
    with pytest.raises(RunFailed) as failed:
        await converse(run, run.main, ports)
    assert (failed.value.reason, failed.value.message) == (
        Reason.MAX_TURNS,
        "No answer after limits.maxTurns = 1 model calls; raise the limit or narrow the task. The last answer did not "
        "count, and no turn is left for another: a human rejected it. too unsure",
    )


async def test_what_became_of_an_answer_is_not_said_of_what_came_after_it() -> None:
    run = state(max_turns=2)
    reject = {"decision": "Reject", "reason": "too unsure"}
    ports = Ports(run, {"desk": [says("Today.", approval=NEEDED), asks(refund(approval=None))]}, [reject])
    with pytest.raises(RunFailed) as failed:
        await converse(run, run.main, ports)
    assert failed.value.message.endswith("raise the limit or narrow the task")


PLANS = AgentSnapshot(name="desk", uid="u", generation=1, queue="q", model="gpt", output_schema={"type": "object"})


@pytest.mark.parametrize(
    ("agent", "override", "is_patched", "changed"),
    [
        pytest.param(PLANS, {"day": "Monday"}, True, Answer('{"day":"Monday"}', {"day": "Monday"}), id="an object"),
        pytest.param(
            PLANS, {"text": "Monday."}, True, Answer('{"text":"Monday."}', {"text": "Monday."}), id="its text"
        ),
        pytest.param(None, {"text": "Monday."}, True, Answer("Monday."), id="a text"),
        pytest.param(None, {"text": "Monday."}, False, Answer('{"text":"Monday."}'), id="a text, as it was before"),
        pytest.param(None, {"day": "Monday"}, False, Answer('{"day":"Monday"}'), id="no text, as it was before"),
    ],
)
async def test_a_changed_answer_counts_and_stands_in_the_transcript(
    agent: AgentSnapshot | None, override: dict[str, Any], is_patched: bool, changed: Answer
) -> None:
    run = state(*([agent] if agent else []))
    reply = says("Today.", approval=NEEDED)
    ports = Ports(run, {"desk": [reply]}, [{**APPROVE, "override": override}], is_patched=is_patched)
    assert await converse(run, run.main, ports) == changed
    words = f"A human approved your answer with changes. It is now: {changed.text}"
    assert run.main.thread.messages[-1].text() == words


@pytest.mark.parametrize(
    "override", [{}, {"text": ""}, {"text": ["Monday."]}, {"text": "Monday.", "day": 1}, {"day": "Monday"}]
)
async def test_a_changed_answer_that_is_no_text_is_asked_about_anew(override: dict[str, Any]) -> None:
    run = state()
    ports = Ports(run, {"desk": [says("Today.", approval=NEEDED)]}, [{**APPROVE, "override": override}, APPROVE])
    assert await converse(run, run.main, ports) == Answer("Today.")
    assert (ended(run), notes(run)) == (
        [("Superseded", "Approve"), ("Applied", "Approve")],
        ['The changed answer cannot be used: exactly {"text": "…"} is expected', None],
    )


async def test_a_changed_answer_that_does_not_fit_is_asked_about_anew() -> None:
    desk = AgentSnapshot(name="desk", uid="u", generation=1, queue="q", model="gpt", output_schema={"type": "object"})
    run = state(desk)
    override = {**APPROVE, "override": {"day": 1}}
    ports = Ports(
        run, {"desk": [says("{}", structured_output={}, approval=NEEDED)]}, [override, APPROVE], [], ["day: no"]
    )
    assert (await converse(run, run.main, ports)).structured == {}
    assert ports.asked[1].needed.question == "Refund? (The changed answer did not fit: day: no)"
    assert ended(run) == [("Superseded", "Approve"), ("Applied", "Approve")]
    assert notes(run) == ["The changed answer did not fit: day: no", None]


async def test_a_changed_answer_that_is_too_large_is_asked_about_anew() -> None:
    run = state()
    ports = Ports(run, {"desk": [says("Today.", approval=NEEDED)]}, [LARGE, APPROVE])
    assert (await converse(run, run.main, ports)).text == "Today."
    assert notes(run) == ["The changed answer cannot be used: more than 32768 bytes", None]


# ── Replies of workers that know of no approvals ───────────────────────────────────────────────────────────────────


DESK = AgentSnapshot(name="desk", uid="u", generation=1, queue="i.shop.desk", model="gpt")
ASKS_ABOUT_REFUNDS = DESK.model_copy(
    update={"tools": [ToolBinding(name="refund", function="refund", approval=ApprovalPolicy())]}
)
ASKS_ABOUT_ANSWERS = DESK.model_copy(update={"output_approval": ApprovalPolicy()})


def unjudged(reply: ModelReply) -> ModelReply:
    return reply.model_copy(update={"judged": None, "input_tokens": 10})


@pytest.mark.looptime(True)
@pytest.mark.parametrize(
    ("agent", "reply"),
    [
        pytest.param(ASKS_ABOUT_REFUNDS, asks(refund(approval=None)), id="a call"),
        pytest.param(ASKS_ABOUT_ANSWERS, says("Today."), id="an answer"),
    ],
)
async def test_what_was_not_judged_is_asked_of_the_model_again(agent: AgentSnapshot, reply: ModelReply) -> None:
    run = state(agent)
    ports = Ports(run, {"desk": [unjudged(reply)] * 8 + [says("Monday.", judged=True)]})
    began = asyncio.get_running_loop().time()
    assert (await converse(run, run.main, ports)).text == "Monday."
    assert asyncio.get_running_loop().time() - began == 1 + 2 + 4 + 8 + 16 + 32 + 60 + 60
    assert ports.made_again == ["A worker of pool desk is of a version before approvals: update the pool"] * 8
    assert ports.awaited == ["a worker of pool desk that knows of approvals"] * 8
    assert (ports.tool_calls, run.budget.turns, run.budget.input_tokens) == ([], 1, 80)
    assert [message.text() for message in run.main.thread.messages] == ["Refund order 42.", "Monday."]


@pytest.mark.looptime(True)
async def test_what_was_not_judged_counts_against_the_budget() -> None:
    run = state(ASKS_ABOUT_REFUNDS, max_tokens=25)
    ports = Ports(run, {"desk": [unjudged(says("Today."))] * 4})
    with pytest.raises(RunFailed) as failed:
        await converse(run, run.main, ports)
    assert (failed.value.reason, len(ports.made_again)) == (Reason.TOKEN_BUDGET, 3)


@pytest.mark.parametrize(
    ("agent", "is_patched"),
    [
        pytest.param(DESK, True, id="of an agent that asks for nothing"),
        pytest.param(ASKS_ABOUT_REFUNDS, False, id="in a run from before"),
    ],
)
async def test_a_reply_that_was_not_judged_counts(agent: AgentSnapshot, is_patched: bool) -> None:
    run = state(agent)
    ports = Ports(run, {"desk": [unjudged(says("Today."))]}, is_patched=is_patched)
    assert (await converse(run, run.main, ports)).text == "Today."


# ── What reports tell ──────────────────────────────────────────────────────────────────────────────────────────────


def request(name: str, size: int = 2) -> ApprovalRequest:
    return ApprovalRequest(
        name=name,
        subject="ToolCall",
        agent="desk",
        question="?",
        arguments="x" * size,
        digest="sha256:1",
        requested_at="now",
    )


async def test_what_has_been_told_is_told_no_more_but_the_last_few() -> None:
    approvals = Approvals("run-uid")

    def end(*names: str) -> None:
        for name in names:
            pending = approvals.ask(request(name))
            approvals.take(pending)
            approvals.end(pending, "Expired")

    def names() -> list[str]:
        return [end.name for end in approvals.to_tell()]

    first, second = [f"a{number}" for number in range(100)], [f"b{number}" for number in range(4)]
    end(*first)
    assert names() == first[-64:]
    approvals.were_told(approvals.to_tell())
    end(*second)
    assert names() == [*first[:36], *first[-12:], *second]
    approvals.were_told(approvals.to_tell())
    assert names() == [*first[-12:], *second]
    approvals.forget_what_was_told()
    assert names() == [*first[-60:], *second]


async def test_no_more_is_asked_at_once_than_fits_a_report() -> None:
    approvals = Approvals("run-uid")
    pending = {name: approvals.ask(request(name, 400_000)) for name in "abcd"}
    approvals.ask(request("small"))
    assert [one.name for one in approvals.that_fit()] == ["a", "b"]
    approvals.take(pending["a"])
    assert [one.name for one in approvals.that_fit()] == ["b", "c"]
    approvals.take(pending["c"])
    assert [one.name for one in approvals.that_fit()] == ["b", "d", "small"]


# ── The clock ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def spend(clock: Clock, asking: float, then: float, *, while_working: float = 0) -> None:
    """Ask for so long, part of it while something else is done, and then go on for so long, within ten seconds."""
    async with clock.limit(10):
        with clock.asking():
            await asyncio.sleep(asking)
            with clock.working():
                await asyncio.sleep(while_working)
        await asyncio.sleep(then)


@pytest.mark.looptime(True)
async def test_timeouts_stand_still_while_only_a_human_is_awaited() -> None:
    await spend(Clock(), asking=1000, then=9)
    with pytest.raises(TimeoutError):
        await spend(Clock(), asking=1000, then=11)


@pytest.mark.looptime(True)
async def test_timeouts_go_on_while_anything_else_is_done() -> None:
    await spend(Clock(), asking=1000, while_working=5, then=4)
    with pytest.raises(TimeoutError):
        await spend(Clock(), asking=1000, while_working=11, then=0)


@pytest.mark.looptime(True)
async def test_inner_timeouts_stand_still_with_the_outer() -> None:
    clock = Clock()
    changes: list[bool] = []
    clock.changed = lambda: changes.append(clock.stands_still)
    async with clock.limit(100), clock.limit(10), clock.limit(None):
        with clock.asking():
            await asyncio.sleep(1000)
            with clock.working():
                await asyncio.sleep(5)
            await asyncio.sleep(1000)
        await asyncio.sleep(4)
    assert changes == [True, False, True, False]


async def test_an_agent_called_as_a_tool_has_its_timeout_stand_still_too() -> None:
    desk = AgentSnapshot(name="desk", uid="u", generation=1, queue="i.shop.desk", model="gpt")
    limited = desk.model_copy(update={"name": "archive", "limits": LimitSettings(timeout_seconds=0.05)})
    run = state(desk, limited)
    consult = CallVerdict(call_id="1", agent=AgentCall(agent="archive", message="Find it."))
    waits = needed(timeout_seconds=0.2, on_timeout="Approve")
    replies = {"desk": [asks(consult), says("Done.")], "archive": [asks(refund(approval=waits)), says("Found.")]}
    await converse(run, run.main, Ports(run, replies))
    assert told(run) == [("Found.", None)]

"""A turn's calls: of functions, of MCP servers' tools, and of other agents, which answer in threads of their own."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from dalang_api import contract
from dalang_api.contract import (
    AgentCall,
    AgentSnapshot,
    ApprovalNeeded,
    CallVerdict,
    LimitSettings,
    Message,
    ModelReply,
    TextPart,
    ToolCall,
    ToolCallPart,
    ToolOutcome,
    ToolResultPart,
)
from dalang_api.v1alpha1.conditions import Reason

from dalang_worker.conductor.asking import (
    applied,
    as_json,
    ask,
    noting,
    override_problem,
    refusal_of,
    text_problem,
    with_override,
)
from dalang_worker.conductor.budget import Budget, LimitReached, RunFailed
from dalang_worker.conductor.state import Answer, Conversation, Ports, Question, RunState
from dalang_worker.conductor.thread import Thread

T = TypeVar("T")

APPLIED_BEFORE = "applied-before"
"""The change since when a decision about an agent's call counts as acted on while that agent works, which may take days."""

RUN_WIDE_REASONS = frozenset({Reason.HISTORY_LIMIT, Reason.WORKFLOW_FAILED})
"""What ends the run even if it meets an agent called as a tool; of anything else its caller is told."""


@dataclass(frozen=True)
class Turn:
    """A turn whose calls are to be made."""

    state: RunState
    agent: AgentSnapshot
    conversation: Conversation
    number: int
    ports: Ports
    converse: Callable[[RunState, Conversation, Ports], Awaitable[Answer]]
    """The loop, in which an agent that is called as a tool answers."""


async def call_tools(turn: Turn, reply: ModelReply) -> None:
    """Run a turn's calls side by side. Their results are one message, in call order, and so is what they change."""
    calls = list(zip(reply.message.tool_calls(), reply.calls or [], strict=True))
    outcomes = await _side_by_side(
        [_call_when_approved(turn, index, part, verdict) for index, (part, verdict) in enumerate(calls)]
    )
    conversation = turn.conversation
    outcomes = [_with_context(conversation, outcome) for outcome in outcomes]
    outcomes, next_agent = _with_handoff(turn.agent, outcomes)
    parts = [
        ToolResultPart(call_id=part.call_id, tool=part.tool, output=outcome.output, is_error=outcome.is_error)
        for (part, _), outcome in zip(calls, outcomes, strict=True)
    ]
    conversation.thread.append(Message(role="tool", parts=list(parts), sender=turn.agent.name))
    conversation.agent = next_agent or conversation.agent


async def _call_when_approved(turn: Turn, index: int, part: ToolCallPart, verdict: CallVerdict) -> ToolOutcome:
    """Make a call, after a human has approved it where that is needed.

    Asked anew where the tool has changed since, and where the arguments that a human wants instead cannot be used.
    """
    needed, asked, state, problem = verdict.approval, 0, turn.state, ""
    while needed is not None:
        place = f"{turn.conversation.thread.name}/{turn.number}/{index}/{asked}"
        question = Question(place, part.tool, noting(needed, problem))
        pending, decision = await ask(state, turn.agent, question, turn.ports)
        refusal = refusal_of(needed, pending, decision)
        if refusal is not None:
            applied(state, pending, decision)
            return _refused(f"Not run: {refusal}")
        override = decision.override if decision else None
        problem = _problem_of_arguments(verdict, override, turn.ports)
        if problem:
            state.approvals.end(pending, "Superseded", decision, problem)
            asked += 1
            continue
        if verdict.agent is not None and turn.ports.patched(APPLIED_BEFORE):
            refused = _no_agent(turn)
            applied(state, pending, decision, _why_not_run(refused) if refused else None)
            return with_override(await _call_tool(turn, index, part, verdict, needed, override), override)
        try:
            outcome = await _call_tool(turn, index, part, verdict, needed, override)
        except BaseException:
            applied(state, pending, decision)  # it may well have run
            raise
        if outcome.ask_again is None:
            applied(state, pending, decision, _note(verdict, outcome, override))
            return outcome if verdict.handoff else with_override(outcome, override)
        if decision is not None:
            state.approvals.end(pending, "Superseded", decision)
        new = outcome.ask_again
        again = {"arguments": new.arguments, "digest": new.digest, "target": new.target or needed.target}
        needed, asked = needed.model_copy(update=again), asked + 1
    return await _call_tool(turn, index, part, verdict)


def _problem_of_arguments(verdict: CallVerdict, override: dict[str, Any] | None, ports: Ports) -> str:
    problem = override_problem("arguments", override, ports)
    if problem or override is None or verdict.agent is None:
        return problem
    return text_problem("arguments", "message", override, ports)


def _note(verdict: CallVerdict, outcome: ToolOutcome, override: dict[str, Any] | None) -> str | None:
    """Return what is to be told of an approved call besides that its decision was acted on."""
    if outcome.not_run:
        return _why_not_run(outcome)
    if verdict.handoff is not None and override is not None:
        return "The changed arguments were not used: a hand-off takes none"
    return None


def _why_not_run(outcome: ToolOutcome) -> str:
    return (outcome.not_run_because or outcome.output).removesuffix(".")


async def _call_tool(
    turn: Turn,
    index: int,
    part: ToolCallPart,
    verdict: CallVerdict,
    approved: ApprovalNeeded | None = None,
    override: dict[str, Any] | None = None,
) -> ToolOutcome:
    if verdict.handoff is not None:
        return ToolOutcome(output=_transferred(verdict.handoff), handoff=verdict.handoff)
    if verdict.agent is not None:
        message = verdict.agent.message if override is None else override.get("message")
        if not isinstance(message, str) or not message:
            return _refused(
                "Not run: a human approved the call with other arguments, and those have no text `message`."
            )
        return await _call_agent(turn, index, AgentCall(agent=verdict.agent.agent, message=message))
    if verdict.function is None:
        return _refused(verdict.error or "The call cannot be run.")
    conversation = turn.conversation
    call = ToolCall(
        call_id=part.call_id,
        tool=part.tool,
        function=verdict.function,
        arguments=part.arguments if override is None else as_json(override),
        thread=conversation.thread.name,
        turn=turn.number,
        index=index,
        server=verdict.server,
        agent=turn.agent.name,
        once=verdict.once,
        context=conversation.context if verdict.reads_context else None,
        approved_digest=approved.digest if approved else None,
        approved_arguments=part.arguments if override is not None else None,
        run=turn.state.identity,
    )
    with turn.state.clock.working():
        return await turn.ports.tool(turn.agent, call)


async def _call_agent(turn: Turn, index: int, call: AgentCall) -> ToolOutcome:
    """Have another agent answer in a thread of its own. What fails there alone is told to the caller's model."""
    if refused := _no_agent(turn):
        return refused
    state, caller = turn.state, turn.conversation
    limits = state.snapshot.agent(call.agent).limits or LimitSettings()
    thread = Thread(f"{turn.number}.{index}.{call.agent}", [Message(role="user", parts=[TextPart(text=call.message)])])
    budget = Budget(limits, parent=caller.budget)
    nested = Conversation(thread, call.agent, budget, dict(caller.context), caller.depth + 1)
    state.threads[thread.name] = thread
    state.nested += 1
    try:
        async with state.clock.limit(limits.timeout_seconds):
            answer = await turn.converse(state, nested, turn.ports)
    except TimeoutError:
        words = f"Agent {call.agent} did not answer within its limits.timeout of {limits.timeout_seconds:g}s."
    except LimitReached as reached:
        if reached.budget is not budget:
            raise
        words = f"Agent {call.agent} gave no answer: {reached.message}."
    except RunFailed as failed:
        if failed.reason in RUN_WIDE_REASONS:
            raise
        words = f"Agent {call.agent} failed ({failed.reason}): {failed.message}."
    else:
        return ToolOutcome(output=answer.text, context=_changes(caller, nested))
    finally:
        state.nested -= 1
    return ToolOutcome(output=f"{words}{_done_by(thread)}", is_error=True, context=_changes(caller, nested))


def _no_agent(turn: Turn) -> ToolOutcome | None:
    """Return what a call of an agent comes to where none can be called now; None where one can."""
    if turn.conversation.depth + 1 >= contract.AGENT_DEPTH_MAX:
        return _refused(
            f"Not run: agents may call agents {contract.AGENT_DEPTH_MAX} deep.", "Answer with what you have."
        )
    if turn.state.nested >= contract.THREADS_MAX:
        return _refused(f"Not run: {contract.THREADS_MAX} agents are at work already.", "Call it again afterwards.")
    return None


def _changes(caller: Conversation, nested: Conversation) -> dict[str, Any] | None:
    """Return the context variables an agent called as a tool has set."""
    before = caller.context
    changed = {name: value for name, value in nested.context.items() if name not in before or before[name] != value}
    return changed or None


def _done_by(thread: Thread) -> str:
    """Tell what an agent without an answer has done all the same: to call it again would do that again."""
    results = [part for message in thread.messages for part in message.parts if isinstance(part, ToolResultPart)]
    done = [part.tool for part in results if not part.is_error]
    open_calls = thread.messages[-1].tool_calls() if thread.messages[-1].role == "assistant" else []
    told = f" It had already called: {', '.join(done)}." if done else ""
    if open_calls:
        told += f" Stopped while these ran, their outcome is unknown: {', '.join(call.tool for call in open_calls)}."
    return told


def _said(outcome: ToolOutcome, target: str) -> str:
    """Return what a tool said besides that it hands over."""
    return "" if outcome.output == _transferred(target) else f"{outcome.output}\n"


def _transferred(agent: str) -> str:
    return f"Transferred to {agent}."


def _refused(words: str, advice: str = "") -> ToolOutcome:
    """Return that a call was not made; the advice is for the model alone."""
    return ToolOutcome(output=f"{words} {advice}".rstrip(), is_error=True, not_run=True, not_run_because=words)


def _with_context(conversation: Conversation, outcome: ToolOutcome) -> ToolOutcome:
    """Merge what a tool sets into the context variables; where that is too much, the model is told instead."""
    if not outcome.context:
        return outcome
    merged = {**conversation.context, **outcome.context}
    if problem := contract.context_problem(merged):
        told = f"[Context variables not set: {problem}.]"
        return outcome.model_copy(update={"output": f"{outcome.output}\n{told}", "is_error": True})
    conversation.context = merged
    return outcome


def _with_handoff(agent: AgentSnapshot, outcomes: list[ToolOutcome]) -> tuple[list[ToolOutcome], str | None]:
    """Return what the model is told, and to whom the conversation goes: the last declared hand-off of the turn."""
    declared = [binding.agent for binding in agent.handoffs or ()]
    wanted = [outcome.handoff for outcome in outcomes if outcome.handoff in declared]
    winner = wanted[-1] if wanted else None
    told = []
    for outcome in outcomes:
        target = outcome.handoff
        if target is not None and target not in declared:
            words = f"Not transferred: there is no hand-off to {target} (there is: {', '.join(declared) or 'none'})."
            outcome = outcome.model_copy(update={"output": _said(outcome, target) + words, "is_error": True})
        elif target is not None and target != winner:
            words = f"Not transferred to {target}: {winner} was asked for last."
            outcome = outcome.model_copy(update={"output": _said(outcome, target) + words})
        told.append(outcome)
    return told, winner


async def _side_by_side(calls: list[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all; when one ends the conversation, stop the others before it does, as nobody would wait for them."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise

"""The agent loop: model call → tool calls → … → answer. Runs inside the workflow, so it decides by recorded facts only."""

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from dalang_api import contract
from dalang_api.contract import (
    AgentCall,
    AgentSnapshot,
    ApprovalNeeded,
    CallVerdict,
    Decision,
    LimitSettings,
    Message,
    ModelCall,
    ModelReply,
    TextPart,
    ToolCall,
    ToolCallPart,
    ToolOutcome,
    ToolResultPart,
)
from dalang_api.v1alpha1.conditions import Reason

from dalang_worker.conductor.approvals import Approvals, Pending
from dalang_worker.conductor.budget import Budget, LimitReached, RunFailed
from dalang_worker.conductor.clock import Clock
from dalang_worker.conductor.thread import Thread

T = TypeVar("T")

FALLBACK_REASONS = frozenset(
    {
        Reason.MODEL_FAILED,
        Reason.MODEL_REFUSED,
        Reason.CONTENT_FILTER,
        Reason.CONTEXT_LENGTH,
        Reason.SECRET_NOT_FOUND,
    }
)
"""What the next model may do better."""
BEFORE_THE_CALL = frozenset(
    {Reason.INVALID_INSTRUCTIONS, Reason.INVALID_OUTPUT, Reason.PRICE_UNKNOWN, Reason.SECRET_NOT_FOUND}
)
"""What fails before the model is called, so that there was no turn."""
RUN_WIDE_REASONS = frozenset({Reason.HISTORY_LIMIT, Reason.WORKFLOW_FAILED})
"""What ends the run even if it meets an agent called as a tool; of anything else its caller is told."""
CORRECTOR = "dalang"
"""Sender of the message that asks an agent to answer again."""


class Ports(Protocol):
    """What the loop asks of the world. The workflow answers with Temporal, a unit test with a list."""

    async def model(self, agent: AgentSnapshot, call: ModelCall, attempts: int) -> ModelReply:
        """Make one model call, tried so often (0: until it works); raise `RunFailed` where it failed for good."""
        ...

    async def tool(self, agent: AgentSnapshot, call: ToolCall) -> ToolOutcome:
        """Make one tool call; raise `RunFailed` where it failed for good."""
        ...

    async def check_answer(self, agent: AgentSnapshot, answer: dict[str, Any]) -> str | None:
        """Return why an answer as somebody changed it does not fit the agent's schema, or None where it does."""
        ...

    def ask(self, agent: AgentSnapshot, question: "Question") -> Pending:
        """Ask a human; the answer is `Pending.decided`."""
        ...

    def history_is_full(self) -> bool:
        """Return whether the workflow's history is near its limit."""
        ...

    def turn_done(self) -> None:
        """Take note that a turn has ended, so that progress can be reported."""
        ...


@dataclass
class Conversation:
    """A thread, and who holds it. The run's own is one; each agent called as a tool has another."""

    thread: Thread
    agent: str
    budget: Budget
    context: dict[str, Any]
    """Context variables. An agent called as a tool has its own; what it sets is merged when it has answered."""
    depth: int = 0


@dataclass(frozen=True)
class Question:
    """What a human is to decide about."""

    place: str
    """Thread, turn, call, and how often it was asked: what makes it another question than any other of the run."""
    tool: str | None
    """The tool to call; None: the agent's answer."""
    needed: ApprovalNeeded


@dataclass(frozen=True)
class Answer:
    """What a conversation came to."""

    text: str
    structured: dict[str, Any] | None = None


class RunState:
    """How far a run is. Threads, turns and tokens of all its agents are the run's."""

    def __init__(self, run: contract.RunInput, run_uid: str = "") -> None:
        self.clock = Clock()
        self.approvals = Approvals(run_uid)
        self.snapshot = run.snapshot
        self.snapshot_digest = run.snapshot.digest()
        self.budget = Budget(
            LimitSettings(max_turns=run.max_turns, max_tokens=run.max_tokens, max_cost_usd=run.max_cost_usd)
        )
        self.main = Conversation(Thread("main", run.messages), run.agent, self.budget, dict(run.context or {}))
        self.threads = {self.main.thread.name: self.main.thread}
        self.retrieval_failures: dict[str, str] = {}
        """For each agent whose last retrieval failed: why."""
        self.tools_failures: dict[str, str] = {}
        """For each agent whose last model call was without some of its tools: why."""
        self.nested = 0
        """Agents called as tools that are under way."""
        self.models: dict[str, int] = {}
        """For each agent that fell back: which of its models it calls now."""

    @property
    def agent(self) -> str:
        """Who holds the run's conversation."""
        return self.main.agent


async def converse(state: RunState, conversation: Conversation, ports: Ports) -> Answer:
    """Carry a conversation on until its agent answers.

    Raises:
        RunFailed: A limit was reached, or the model or a tool failed for good.
    """
    thread, paused, correction = conversation.thread, 0, ""
    while True:
        agent = state.snapshot.agent(conversation.agent)
        try:
            turn, reply = await _call_model(state, agent, conversation, ports)
        except LimitReached as reached:
            if not correction:
                raise
            words = f"{reached.message}. The last answer did not fit output.schema: {correction}"
            raise LimitReached(reached.budget, reached.reason, words) from None
        correction = reply.correction or ""
        paused = paused + 1 if reply.call_again else 0
        if paused > contract.CALL_AGAIN_MAX:
            raise RunFailed(Reason.MODEL_FAILED, f"The model paused {paused} times in a row without going on")
        if reply.correction is not None:
            _tell(thread, reply.correction)
        elif reply.message.tool_calls():
            await _call_tools(state, agent, conversation, turn, reply, ports)
        elif not paused:
            answer = Answer(reply.message.text(), reply.structured_output)
            approved = await _approve_answer(state, agent, thread, turn, answer, reply.approval, ports)
            if approved is not None:
                return approved
        ports.turn_done()


# ── The model ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def _call_model(
    state: RunState, agent: AgentSnapshot, conversation: Conversation, ports: Ports
) -> tuple[int, ModelReply]:
    """Make a model call, with the agent's next model where one fails for good or refuses; return turn and reply."""
    names = agent.models()
    if ports.history_is_full():
        raise RunFailed(Reason.HISTORY_LIMIT, "The run came near Temporal's history limit; split the task into runs")
    conversation.budget.begin_turn()
    turn = state.budget.turns  # read before anything is awaited: other threads of the run go on meanwhile
    failures: list[str] = []
    while True:
        place = state.models.get(agent.name, 0)
        has_next = place + 1 < len(names)
        if failures:
            conversation.budget.check_spending()
        model = names[place] if place else None
        call = _model_call(agent, conversation, state.snapshot_digest, turn, model, has_next=has_next)
        try:
            with state.clock.working():
                reply = await ports.model(agent, call, _attempts(agent, has_next=has_next))
        except RunFailed as failed:
            if failed.reason in BEFORE_THE_CALL and not has_next:
                conversation.budget.take_back_turn()
            if has_next and failed.reason in FALLBACK_REASONS:
                failures.append(_fall_back(state, agent, place, failed.reason, failed.message))
                continue
            if failures:
                raise RunFailed(failed.reason, "; before it ".join([failed.message, *failures])) from failed
            raise
        conversation.budget.charge(reply)
        _note(state.retrieval_failures, agent, reply.retrieval_failure)
        _note(state.tools_failures, agent, reply.tools_failure)
        failure = reply.failure
        if failure and has_next and failure.reason in FALLBACK_REASONS:
            # What it said while refusing is nobody's answer.
            failures.append(_fall_back(state, agent, place, failure.reason, failure.message))
            continue
        conversation.thread.append_reply(reply.message)
        if failure:
            raise RunFailed(Reason.parse(failure.reason) or Reason.MODEL_FAILED, failure.message)
        return turn, reply


def _fall_back(state: RunState, agent: AgentSnapshot, place: int, reason: str, message: str) -> str:
    """Go over to the agent's next model; never back to one that another thread has given up already."""
    state.models[agent.name] = max(place + 1, state.models.get(agent.name, 0))
    return f"AgentModel {agent.models()[place]}: {reason}: {message}"


def _note(failures: dict[str, str], agent: AgentSnapshot, failure: str | None) -> None:
    if failure is None:
        failures.pop(agent.name, None)
    else:
        failures[agent.name] = failure


def _attempts(agent: AgentSnapshot, *, has_next: bool) -> int:
    """Return how often a model is tried; 0: until the run's timeout."""
    asked = agent.retry.maximum_attempts if agent.retry else None
    return asked if asked is not None else contract.FALLBACK_ATTEMPTS if has_next else 0


def _model_call(
    agent: AgentSnapshot, conversation: Conversation, snapshot: str, turn: int, model: str | None, *, has_next: bool
) -> ModelCall:
    count, digest, tail = conversation.thread.prefix()
    cost_left = conversation.budget.cost_left()
    return ModelCall(
        agent=agent.name,
        snapshot=snapshot,
        thread=conversation.thread.name,
        turn=turn,
        count=count,
        digest=digest,
        tail=tail,
        model=model,
        context=conversation.context if conversation.context and agent.reads_context() else None,
        max_output_tokens=conversation.budget.tokens_left(),
        max_cost_usd=None if cost_left is None else f"{cost_left:f}",
        has_next=has_next or None,
    )


# ── The tools ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def _call_tools(
    state: RunState, agent: AgentSnapshot, conversation: Conversation, turn: int, reply: ModelReply, ports: Ports
) -> None:
    """Run a turn's calls side by side. Their results are one message, in call order, and so is what they change."""
    calls = list(zip(reply.message.tool_calls(), reply.calls or [], strict=True))
    outcomes = await _side_by_side(
        [
            _call_when_approved(state, agent, conversation, _Place(turn, index), part, verdict, ports)
            for index, (part, verdict) in enumerate(calls)
        ]
    )
    outcomes = [_with_context(conversation, outcome) for outcome in outcomes]
    outcomes, next_agent = _with_handoff(agent, outcomes)
    parts = [
        ToolResultPart(call_id=part.call_id, tool=part.tool, output=outcome.output, is_error=outcome.is_error)
        for (part, _), outcome in zip(calls, outcomes, strict=True)
    ]
    conversation.thread.append(Message(role="tool", parts=list(parts), sender=agent.name))
    conversation.agent = next_agent or conversation.agent


@dataclass(frozen=True)
class _Place:
    turn: int
    index: int


async def _call_when_approved(
    state: RunState,
    agent: AgentSnapshot,
    conversation: Conversation,
    place: _Place,
    part: ToolCallPart,
    verdict: CallVerdict,
    ports: Ports,
) -> ToolOutcome:
    """Make a call, after a human has approved it where that is needed; asked anew where the tool has changed since."""
    needed, asked = verdict.approval, 0
    while needed is not None:
        question = Question(f"{conversation.thread.name}/{place.turn}/{place.index}/{asked}", part.tool, needed)
        pending, decision = await _ask(state, agent, question, ports)
        refusal = _refusal(needed, pending, decision)
        if refusal is not None:
            _applied(state, pending, decision)
            return _refused(f"Not run: {refusal}")
        override = decision.override if decision else None
        try:
            outcome = await _call_tool(state, agent, conversation, place, part, verdict, ports, needed, override)
        except BaseException:
            _applied(state, pending, decision)  # it may well have run
            raise
        if outcome.ask_again is None:
            _applied(state, pending, decision)
            return outcome if verdict.handoff else _with_override(outcome, override)
        if decision is not None:
            state.approvals.end(pending, "Superseded", decision)
        again = {"arguments": outcome.ask_again.arguments, "digest": outcome.ask_again.digest}
        needed, asked = needed.model_copy(update=again), asked + 1
    return await _call_tool(state, agent, conversation, place, part, verdict, ports)


async def _call_tool(
    state: RunState,
    agent: AgentSnapshot,
    conversation: Conversation,
    place: _Place,
    part: ToolCallPart,
    verdict: CallVerdict,
    ports: Ports,
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
        return await _call_agent(
            state, conversation, place, AgentCall(agent=verdict.agent.agent, message=message), ports
        )
    if verdict.function is None:
        return _refused(verdict.error or "The call cannot be run.")
    call = ToolCall(
        call_id=part.call_id,
        tool=part.tool,
        function=verdict.function,
        arguments=part.arguments if override is None else _json(override),
        thread=conversation.thread.name,
        turn=place.turn,
        index=place.index,
        server=verdict.server,
        agent=agent.name,
        once=verdict.once,
        context=conversation.context if verdict.reads_context else None,
        approved_digest=approved.digest if approved else None,
        approved_arguments=part.arguments if override is not None else None,
    )
    with state.clock.working():
        return await ports.tool(agent, call)


async def _call_agent(
    state: RunState, caller: Conversation, place: _Place, call: AgentCall, ports: Ports
) -> ToolOutcome:
    """Have another agent answer in a thread of its own. What fails there alone is told to the caller's model."""
    if caller.depth + 1 >= contract.AGENT_DEPTH_MAX:
        return _refused(f"Not run: agents may call agents {contract.AGENT_DEPTH_MAX} deep. Answer with what you have.")
    if state.nested >= contract.THREADS_MAX:
        return _refused(f"Not run: {contract.THREADS_MAX} agents are at work already. Call it again afterwards.")
    limits = state.snapshot.agent(call.agent).limits or LimitSettings()
    thread = Thread(
        f"{place.turn}.{place.index}.{call.agent}", [Message(role="user", parts=[TextPart(text=call.message)])]
    )
    budget = Budget(limits, parent=caller.budget)
    nested = Conversation(thread, call.agent, budget, dict(caller.context), caller.depth + 1)
    state.threads[thread.name] = thread
    state.nested += 1
    try:
        async with state.clock.limit(limits.timeout_seconds):
            answer = await converse(state, nested, ports)
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


def _refused(words: str) -> ToolOutcome:
    return ToolOutcome(output=words, is_error=True)


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


# ── Approvals ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def _ask(
    state: RunState, agent: AgentSnapshot, question: Question, ports: Ports
) -> tuple[Pending, Decision | None]:
    """Wait for a human's decision; None where nobody made it in time. A decision that came first counts, even late."""
    pending = ports.ask(agent, question)
    try:
        with state.clock.asking():
            async with asyncio.timeout(question.needed.timeout_seconds):
                await asyncio.shield(pending.decided)
    except TimeoutError:
        pass  # a decision that came first is there all the same
    except asyncio.CancelledError:
        state.approvals.take(pending)
        state.approvals.end(pending, "Expired")
        raise
    decision = state.approvals.take(pending)
    if decision is None:
        state.approvals.end(pending, "Expired")
        if question.needed.on_timeout == "Fail":
            raise RunFailed(Reason.APPROVAL_EXPIRED, f"Nobody decided in time: {question.needed.question}")
    return pending, decision


def _applied(state: RunState, pending: Pending, decision: Decision | None) -> None:
    if decision is not None:
        state.approvals.end(pending, "Applied", decision)


def _refusal(needed: ApprovalNeeded, pending: Pending, decision: Decision | None) -> str | None:
    """Return why it may not go on, for the model; None where it may.

    `onTimeout: Approve` holds only where somebody could have decided: there was an AgentApproval.
    """
    if decision is not None:
        if decision.decision == "Approve":
            return None
        return f"a human rejected it. {decision.reason or 'No reason was given.'}"
    return None if needed.on_timeout == "Approve" and pending.was_made else "nobody approved it in time."


async def _approve_answer(
    state: RunState,
    agent: AgentSnapshot,
    thread: Thread,
    turn: int,
    answer: Answer,
    needed: ApprovalNeeded | None,
    ports: Ports,
) -> Answer | None:
    """Return the answer as a human approved it; None where it was rejected, which the agent is told to answer again."""
    asked, problem = 0, ""
    while needed is not None:
        question = Question(f"{thread.name}/{turn}/answer/{asked}", None, _noting(needed, problem))
        pending, decision = await _ask(state, agent, question, ports)
        refusal = _refusal(needed, pending, decision)
        override = decision.override if decision else None
        if refusal is None and override is not None and agent.output_schema is not None:
            with state.clock.working():
                problem = await ports.check_answer(agent, override) or ""
            if problem:
                state.approvals.end(pending, "Superseded", decision)
                asked += 1
                continue
        _applied(state, pending, decision)
        if refusal is not None:
            _tell(thread, f"Your answer does not count: {refusal} Answer again.")
            return None
        if override is None:
            return answer
        _tell(thread, f"A human approved your answer with changes. It is now: {_json(override)}")
        return Answer(_json(override), override if agent.output_schema is not None else None)
    return answer


def _noting(needed: ApprovalNeeded, problem: str) -> ApprovalNeeded:
    if not problem:
        return needed
    words = f"{needed.question} (The changed answer did not fit: {problem})"
    return needed.model_copy(update={"question": words[:512]})


def _with_override(outcome: ToolOutcome, override: dict[str, Any] | None) -> ToolOutcome:
    if override is None:
        return outcome
    told = f"[A human approved the call with other arguments: {_json(override)}]"
    return outcome.model_copy(update={"output": f"{told}\n{outcome.output}"})


def _tell(thread: Thread, words: str) -> None:
    thread.append(Message(role="user", parts=[TextPart(text=words)], sender=CORRECTOR))


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


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

"""The agent loop: model call → tool calls → … → answer. Runs inside the workflow, so it decides by recorded facts only."""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from dalang_api import contract
from dalang_api.contract import AgentSnapshot, CallVerdict, Message, ModelCall, ModelReply, ToolCall, ToolOutcome
from dalang_api.v1alpha1.conditions import Reason

from dalang_worker.conductor.thread import Thread


class Ports(Protocol):
    """What the loop asks of the world. The workflow answers with Temporal, a unit test with a list."""

    async def model(self, agent: AgentSnapshot, call: ModelCall) -> ModelReply:
        """Make one model call; raise `RunFailed` where it failed for good."""
        ...

    async def tool(self, agent: AgentSnapshot, call: ToolCall) -> ToolOutcome:
        """Make one tool call; raise `RunFailed` where it failed for good."""
        ...

    def history_is_full(self) -> bool:
        """Return whether the workflow's history is near its limit."""
        ...

    def turn_done(self) -> None:
        """Take note that a turn has ended, so that progress can be reported."""
        ...


class RunFailed(Exception):
    """The run ends without an answer, for a reason the user is told."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass
class RunState:
    """How far a run is. Threads, turns and tokens of all its agents count together."""

    snapshot: contract.Snapshot
    snapshot_digest: str
    max_turns: int
    agent: str
    threads: dict[str, Thread] = field(default_factory=dict)
    turns: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


async def converse(state: RunState, thread: Thread, ports: Ports) -> str:
    """Carry a thread on until its agent answers, and return the answer's text.

    Raises:
        RunFailed: A limit was reached, or the model or a tool failed for good.
    """
    state.threads[thread.name] = thread
    while True:
        agent = state.snapshot.agent(state.agent)
        reply = await _call_model(state, agent, thread, ports)
        if not reply.message.tool_calls():
            return reply.message.text()
        thread.append(await _call_tools(state, agent, thread, reply, ports))
        ports.turn_done()


async def _call_model(state: RunState, agent: AgentSnapshot, thread: Thread, ports: Ports) -> ModelReply:
    if state.turns >= state.max_turns:
        raise RunFailed(
            Reason.MAX_TURNS,
            f"No answer after limits.maxTurns = {state.max_turns} model calls; raise the limit or narrow the task",
        )
    if ports.history_is_full():
        raise RunFailed(Reason.HISTORY_LIMIT, "The run came near Temporal's history limit; split the task into runs")
    state.turns += 1
    count, digest, tail = thread.prefix()
    reply = await ports.model(
        agent,
        ModelCall(
            agent=agent.name,
            snapshot=state.snapshot_digest,
            thread=thread.name,
            turn=state.turns,
            count=count,
            digest=digest,
            tail=tail,
        ),
    )
    state.input_tokens += reply.input_tokens
    state.output_tokens += reply.output_tokens
    thread.append_reply(reply.message)
    if reply.failure:
        raise RunFailed(Reason.parse(reply.failure.reason) or Reason.MODEL_FAILED, reply.failure.message)
    return reply


async def _call_tools(
    state: RunState, agent: AgentSnapshot, thread: Thread, reply: ModelReply, ports: Ports
) -> Message:
    """Run the turn's calls side by side; their results are one message, in call order, one for each call."""
    turn = state.turns

    async def call_one(index: int, part: contract.ToolCallPart, verdict: CallVerdict) -> contract.ToolResultPart:
        if verdict.function is None:
            outcome = ToolOutcome(output=verdict.error or "The call cannot be run.", is_error=True)
        else:
            outcome = await ports.tool(
                agent,
                ToolCall(
                    call_id=part.call_id,
                    tool=part.tool,
                    function=verdict.function,
                    arguments=part.arguments,
                    thread=thread.name,
                    turn=turn,
                    index=index,
                ),
            )
        return contract.ToolResultPart(
            call_id=part.call_id, tool=part.tool, output=outcome.output, is_error=outcome.is_error
        )

    parts = await asyncio.gather(
        *(
            call_one(index, part, verdict)
            for index, (part, verdict) in enumerate(zip(reply.message.tool_calls(), reply.calls or [], strict=True))
        )
    )
    return Message(role="tool", parts=list(parts))

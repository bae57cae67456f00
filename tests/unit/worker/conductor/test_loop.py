"""The agent loop over ports that answer from lists."""

import asyncio
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
from dalang_api import contract
from dalang_api.contract import (
    AgentSnapshot,
    CallVerdict,
    Failure,
    Message,
    ModelCall,
    ModelReply,
    ModelSnapshot,
    RunInput,
    Snapshot,
    TextPart,
    ToolBinding,
    ToolCall,
    ToolCallPart,
    ToolOutcome,
    ToolResultPart,
    extend_digest,
)
from dalang_api.v1alpha1.conditions import Reason
from dalang_worker.conductor.approvals import Pending
from dalang_worker.conductor.budget import RunFailed
from dalang_worker.conductor.loop import converse
from dalang_worker.conductor.state import Question, RunState

AGENT = AgentSnapshot(
    name="support",
    uid="u",
    generation=1,
    queue="i.shop.default",
    model="gpt",
    tools=[ToolBinding(name="weather", function="weather_of")],
)
SNAPSHOT = Snapshot(
    agents=[AGENT], models=[ModelSnapshot(name="gpt", uid="m", generation=1, provider="OpenAI", model="gpt-5")]
)
USER = Message(role="user", parts=[TextPart(text="Will it rain?")])


def answer(text: str, **more: object) -> ModelReply:
    message = Message(role="assistant", parts=[TextPart(text=text)], sender="support")
    return ModelReply.model_validate({"message": message, "input_tokens": 10, "output_tokens": 2, **more})


def asks(turn: int, *cities: str, text: str | None = None, verdicts: list[CallVerdict] | None = None) -> ModelReply:
    """A reply that calls `weather` once for each city."""
    parts = [
        ToolCallPart(call_id=f"call_{turn}_{index}", tool="weather", arguments=city)
        for index, city in enumerate(cities)
    ]
    fine = [CallVerdict(call_id=part.call_id, function="weather_of") for part in parts]
    said = [TextPart(text=text)] if text else []
    return ModelReply(
        message=Message(role="assistant", parts=[*said, *parts], sender="support"),
        calls=verdicts or fine,
        input_tokens=10,
        output_tokens=2,
    )


def result(call_id: str, output: str, is_error: bool | None = None) -> ToolResultPart:
    return ToolResultPart(call_id=call_id, tool="weather", output=output, is_error=is_error)


@dataclass
class FakePorts:
    """Answers with the next reply; a tool says its arguments, when it is let."""

    replies: list[ModelReply | RunFailed]
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    """Tools that wait, by their arguments."""
    full_from_turn: int = 1000
    model_calls: list[ModelCall] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    """How often each model call might be tried."""
    outcomes: dict[str, ToolOutcome] = field(default_factory=dict)
    """What tools come to, by their arguments."""
    finished: list[str] = field(default_factory=list)
    turns_done: int = 0

    async def model(self, agent: AgentSnapshot, call: ModelCall, attempts: int) -> ModelReply:
        self.model_calls.append(call)
        self.attempts.append(attempts)
        reply = self.replies[len(self.model_calls) - 1]
        if isinstance(reply, RunFailed):
            raise reply
        return reply

    async def tool(self, agent: AgentSnapshot, call: ToolCall) -> ToolOutcome:
        self.tool_calls.append(call)
        if call.arguments in self.gates:
            await self.gates[call.arguments].wait()
        self.finished.append(call.arguments)
        for gate in self.gates.values():
            gate.set()
        return self.outcomes.get(call.arguments) or ToolOutcome(output=f"sunny in {call.arguments}")

    async def check_answer(self, agent: AgentSnapshot, answer: dict[str, Any]) -> str | None:
        raise AssertionError(answer)

    def ask(self, agent: AgentSnapshot, question: Question) -> Pending:
        raise AssertionError(question)

    def awaiting(self, key: str, what: str) -> AbstractContextManager[None]:
        return nullcontext()

    def model_call_is_made_again(self, call: ModelCall, why: str) -> None:
        raise AssertionError(why)

    def patched(self, change: str) -> bool:
        return True

    def history_is_full(self) -> bool:
        return len(self.model_calls) + 1 >= self.full_from_turn

    def turn_done(self) -> None:
        self.turns_done += 1


def state(max_turns: int = 20, *, snapshot: Snapshot = SNAPSHOT, **more: Any) -> RunState:
    agent = snapshot.agents[0].name
    return RunState(
        RunInput(agent=agent, messages=[USER], max_turns=max_turns, timeout_seconds=60, snapshot=snapshot, **more)
    )


def used(run: RunState) -> tuple[int, int, int]:
    return run.budget.turns, run.budget.input_tokens, run.budget.output_tokens


async def run_main(run: RunState, ports: "FakePorts") -> str:
    return (await converse(run, run.main, ports)).text


async def test_an_answer_ends_the_loop() -> None:
    ports, run = FakePorts([answer("No.")]), state()
    assert await run_main(run, ports) == "No."
    assert ports.model_calls == [
        ModelCall(agent="support", snapshot=SNAPSHOT.digest(), thread="main", turn=1, count=0, digest="", tail=[USER])
    ]
    assert run.main.thread.messages == [USER, answer("No.").message]
    assert (*used(run), ports.turns_done) == (1, 10, 2, 0)


async def test_a_tool_s_result_is_the_tail_of_the_next_call() -> None:
    ports, run = FakePorts([asks(1, "Ubud"), answer("No.")]), state()
    assert await run_main(run, ports) == "No."
    told = Message(role="tool", parts=[result("call_1_0", "sunny in Ubud")], sender="support")
    known = extend_digest(extend_digest(contract.EMPTY_DIGEST, USER), asks(1, "Ubud").message)
    assert ports.model_calls[1] == ModelCall(
        agent="support", snapshot=SNAPSHOT.digest(), thread="main", turn=2, count=2, digest=known, tail=[told]
    )
    assert ports.tool_calls == [
        ToolCall(
            call_id="call_1_0",
            tool="weather",
            function="weather_of",
            arguments="Ubud",
            thread="main",
            turn=1,
            index=0,
            agent="support",
        )
    ]
    assert run.main.thread.messages == [USER, asks(1, "Ubud").message, told, answer("No.").message]
    assert (*used(run), ports.turns_done) == (2, 20, 4, 1)


async def test_results_stand_in_the_order_of_the_calls_whichever_tool_is_first() -> None:
    ports = FakePorts([asks(1, "Ubud", "Kuta"), answer("No.")], gates={"Ubud": asyncio.Event()})
    run = state()
    await run_main(run, ports)
    assert ports.finished == ["Kuta", "Ubud"]
    assert [(call.call_id, call.index) for call in ports.tool_calls] == [("call_1_0", 0), ("call_1_1", 1)]
    assert run.main.thread.messages[2] == Message(
        role="tool", parts=[result("call_1_0", "sunny in Ubud"), result("call_1_1", "sunny in Kuta")], sender="support"
    )


async def test_a_call_that_cannot_be_run_is_told_and_the_others_are_run() -> None:
    verdicts = [
        CallVerdict(call_id="call_1_0", error="There is no tool 'weather'."),
        CallVerdict(call_id="call_1_1", function="weather_of"),
        CallVerdict(call_id="call_1_2"),
    ]
    ports = FakePorts([asks(1, "Ubud", "Kuta", "Sanur", verdicts=verdicts), answer("No.")])
    run = state()
    await run_main(run, ports)
    assert [call.arguments for call in ports.tool_calls] == ["Kuta"]
    assert run.main.thread.messages[2].parts == [
        result("call_1_0", "There is no tool 'weather'.", is_error=True),
        result("call_1_1", "sunny in Kuta"),
        result("call_1_2", "The call cannot be run.", is_error=True),
    ]


async def test_text_beside_tool_calls_is_no_answer() -> None:
    ports = FakePorts([asks(1, "Ubud", text="Let me look."), answer("No.")])
    assert await run_main(state(), ports) == "No."


@pytest.mark.parametrize(
    ("max_turns", "calls"), [pytest.param(1, 1, id="one turn"), pytest.param(3, 3, id="three turns")]
)
async def test_the_limit_of_turns_counts_model_calls(max_turns: int, calls: int) -> None:
    ports, run = FakePorts([asks(turn, "Ubud") for turn in range(1, 10)]), state(max_turns)
    with pytest.raises(RunFailed) as failed:
        await run_main(run, ports)
    assert failed.value.reason is Reason.MAX_TURNS
    assert (len(ports.model_calls), len(ports.tool_calls), run.budget.turns) == (calls, calls, calls)


async def test_an_answer_in_the_last_turn_counts() -> None:
    ports = FakePorts([asks(1, "Ubud"), answer("No.")])
    assert await run_main(state(max_turns=2), ports) == "No."


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        pytest.param(Failure(reason="OutputTruncated", message="limit"), Reason.OUTPUT_TRUNCATED, id="a known reason"),
        pytest.param(Failure(reason="Unheard", message="limit"), Reason.MODEL_FAILED, id="a reason of a later release"),
    ],
)
async def test_a_model_that_stopped_for_good_fails_the_run_and_what_it_said_is_kept(
    failure: Failure, reason: Reason
) -> None:
    stopped = answer("Once upon a", failure=failure)
    ports, run = FakePorts([stopped]), state()
    with pytest.raises(RunFailed, match=r"^limit$") as failed:
        await run_main(run, ports)
    assert failed.value.reason is reason
    assert run.main.thread.messages == [USER, stopped.message]
    assert used(run) == (1, 10, 2)


async def test_a_model_call_that_failed_for_good_fails_the_run() -> None:
    ports, run = FakePorts([RunFailed(Reason.MODEL_FAILED, "401")]), state()
    with pytest.raises(RunFailed, match=r"^401$"):
        await run_main(run, ports)
    assert used(run)[:2] == (1, 0)


async def test_a_full_history_ends_the_run_before_the_next_model_call() -> None:
    ports, run = FakePorts([asks(turn, "Ubud") for turn in range(1, 10)], full_from_turn=3), state()
    with pytest.raises(RunFailed) as failed:
        await run_main(run, ports)
    assert failed.value.reason is Reason.HISTORY_LIMIT
    assert (len(ports.model_calls), run.budget.turns) == (2, 2)


async def test_a_cancel_reaches_every_tool() -> None:
    never = {"Ubud": asyncio.Event(), "Kuta": asyncio.Event()}
    ports = FakePorts([asks(1, "Ubud", "Kuta")], gates=never)
    task = asyncio.create_task(run_main(state(), ports))
    while len(ports.tool_calls) < 2:  # noqa: ASYNC110  # one turn of the loop is enough
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ports.finished == []
    assert asyncio.all_tasks() == {asyncio.current_task()}

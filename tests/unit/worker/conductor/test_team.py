"""Several agents in one run: hand-offs, agents as tools, context variables, fallbacks, budgets, corrections."""

import asyncio
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
from dalang_api import contract
from dalang_api.contract import (
    AgentCall,
    AgentSnapshot,
    CallVerdict,
    Failure,
    HandoffBinding,
    LimitSettings,
    Message,
    ModelCall,
    ModelReply,
    RetrySettings,
    RunInput,
    Snapshot,
    TextPart,
    ToolCall,
    ToolCallPart,
    ToolOutcome,
    ToolResultPart,
)
from dalang_api.v1alpha1.conditions import Reason
from dalang_worker.conductor.approvals import Pending
from dalang_worker.conductor.budget import RunFailed
from dalang_worker.conductor.loop import converse
from dalang_worker.conductor.state import Answer, Question, RunState
from dalang_worker.conductor.thread import CORRECTOR

USER = Message(role="user", parts=[TextPart(text="Where is order 42?")])


def agent(name: str, *handoffs: str, **more: Any) -> AgentSnapshot:
    bindings = [HandoffBinding(agent=target) for target in handoffs]
    fields = {"uid": "u", "generation": 1, "queue": f"i.shop.{name}", "model": "gpt", **more}
    return AgentSnapshot(name=name, handoffs=bindings or None, **fields)


def state(*agents: AgentSnapshot, **more: Any) -> RunState:
    snapshot = Snapshot(agents=list(agents), models=[])
    fields = {"max_turns": 20, "timeout_seconds": 60, **more}
    return RunState(RunInput(agent=agents[0].name, messages=[USER], snapshot=snapshot, **fields))


def says(text: str, **more: Any) -> ModelReply:
    return ModelReply(
        message=Message(role="assistant", parts=[TextPart(text=text)]), input_tokens=10, output_tokens=2, **more
    )


def asks(*verdicts: CallVerdict, **more: Any) -> ModelReply:
    """A reply that makes these calls."""
    parts = [ToolCallPart(call_id=verdict.call_id, tool="tool", arguments=verdict.call_id) for verdict in verdicts]
    return ModelReply(
        message=Message(role="assistant", parts=list(parts)),
        calls=list(verdicts),
        input_tokens=10,
        output_tokens=2,
        **more,
    )


def hands_over(to: str, call_id: str = "h") -> CallVerdict:
    return CallVerdict(call_id=call_id, handoff=to)


def consults(name: str, message: str = "Find it.", call_id: str = "a") -> CallVerdict:
    return CallVerdict(call_id=call_id, agent=AgentCall(agent=name, message=message))


def runs(call_id: str = "t", **more: Any) -> CallVerdict:
    return CallVerdict(call_id=call_id, function="f", **more)


@dataclass
class Ports:
    """Answers each agent from a list of its own; tools by their arguments."""

    replies: dict[str, list[ModelReply | RunFailed]]
    outcomes: dict[str, ToolOutcome | RunFailed] = field(default_factory=dict)
    model_calls: list[ModelCall] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    never: asyncio.Event = field(default_factory=asyncio.Event)

    async def model(self, agent: AgentSnapshot, call: ModelCall, attempts: int) -> ModelReply:
        self.model_calls.append(call)
        self.attempts.append(attempts)
        await asyncio.sleep(0)  # let the other threads of the run go on
        reply = self.replies[agent.name].pop(0)
        if isinstance(reply, RunFailed):
            raise reply
        return reply

    async def tool(self, agent: AgentSnapshot, call: ToolCall) -> ToolOutcome:
        self.tool_calls.append(call)
        outcome = self.outcomes.get(call.arguments)
        if outcome is None:
            await self.never.wait()
            raise AssertionError
        if isinstance(outcome, RunFailed):
            raise outcome
        return outcome

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
        return False

    def turn_done(self) -> None:
        pass


async def run_main(run: RunState, ports: Ports) -> Answer:
    return await converse(run, run.main, ports)


def told(run: RunState, thread: str = "main") -> list[list[tuple[str, bool | None]]]:
    """The results of each turn of a thread."""
    return [
        [(part.output, part.is_error) for part in message.parts if isinstance(part, ToolResultPart)]
        for message in run.threads[thread].messages
        if message.role == "tool"
    ]


# ── Hand-offs ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_after_a_hand_off_the_other_agent_has_the_same_conversation() -> None:
    run = state(agent("desk", "sales"), agent("sales"))
    ports = Ports({"desk": [asks(hands_over("sales"))], "sales": [says("Here.")]})
    assert (await run_main(run, ports)).text == "Here."
    assert [(call.agent, call.thread) for call in ports.model_calls] == [("desk", "main"), ("sales", "main")]
    assert (run.agent, told(run)) == ("sales", [[("Transferred to sales.", None)]])
    assert [message.sender for message in run.main.thread.messages] == [None, None, "desk", None]


async def test_of_several_hand_offs_in_a_turn_the_last_counts() -> None:
    run = state(agent("desk", "sales", "support"), agent("sales"), agent("support"))
    ports = Ports({"desk": [asks(hands_over("sales", "1"), hands_over("support", "2"))], "support": [says("Here.")]})
    await run_main(run, ports)
    assert run.agent == "support"
    assert told(run) == [
        [("Not transferred to sales: support was asked for last.", None), ("Transferred to support.", None)]
    ]


async def test_a_tool_may_hand_over_to_a_declared_agent() -> None:
    run = state(agent("desk", "sales"), agent("sales"))
    ports = Ports({"desk": [asks(runs())], "sales": [says("Here.")]}, {"t": ToolOutcome(output="ok", handoff="sales")})
    await run_main(run, ports)
    assert (run.agent, told(run)) == ("sales", [[("ok", None)]])


async def test_a_hand_off_that_is_not_declared_is_refused_and_told() -> None:
    run = state(agent("desk", "sales"), agent("sales"))
    ports = Ports({"desk": [asks(runs()), says("Here.")]}, {"t": ToolOutcome(output="ok", handoff="boss")})
    await run_main(run, ports)
    assert run.agent == "desk"
    assert told(run) == [[("ok\nNot transferred: there is no hand-off to boss (there is: sales).", True)]]


async def test_what_a_tool_said_is_told_though_its_hand_off_is_not_the_last() -> None:
    run = state(agent("desk", "sales", "support"), agent("sales"), agent("support"))
    refunded = ToolOutcome(output="refunded 120", handoff="sales")
    ports = Ports({"desk": [asks(runs("1"), hands_over("support", "2"))], "support": [says("Here.")]}, {"1": refunded})
    await run_main(run, ports)
    first = told(run)[0][0]
    assert first == ("refunded 120\nNot transferred to sales: support was asked for last.", None)


# ── Agents as tools ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_agent_called_as_a_tool_answers_in_a_thread_of_its_own_and_counts_for_the_run() -> None:
    run = state(agent("desk"), agent("archive"))
    ports = Ports({"desk": [asks(consults("archive")), says("In Ubud.")], "archive": [says("Ubud")]})
    assert (await run_main(run, ports)).text == "In Ubud."
    assert [(call.agent, call.thread, call.turn) for call in ports.model_calls] == [
        ("desk", "main", 1),
        ("archive", "1.0.archive", 2),
        ("desk", "main", 3),
    ]
    assert run.threads["1.0.archive"].messages[0].text() == "Find it."
    assert told(run) == [[("Ubud", None)]]
    assert (run.budget.turns, run.budget.input_tokens, run.agent) == (3, 30, "desk")


async def test_agents_called_side_by_side_keep_their_turns_apart() -> None:
    run = state(agent("desk"), agent("a"), agent("b"))
    ports = Ports(
        {
            "desk": [asks(consults("a", call_id="1"), consults("b", call_id="2")), says("Both.")],
            "a": [asks(runs("fa")), says("A")],
            "b": [asks(runs("fb")), says("B")],
        },
        {"fa": ToolOutcome(output="fa"), "fb": ToolOutcome(output="fb")},
    )
    await run_main(run, ports)
    assert told(run) == [[("A", None), ("B", None)]]
    turns = {call.turn for call in ports.model_calls}
    assert len(turns) == len(ports.model_calls) == 6
    made_in = {call.thread: call.turn for call in ports.model_calls[1:3]}
    assert {call.thread: call.turn for call in ports.tool_calls} == made_in


async def test_what_fails_in_an_agent_called_as_a_tool_is_told_to_its_caller() -> None:
    run = state(agent("desk"), agent("archive"))
    ports = Ports(
        {"desk": [asks(consults("archive")), says("Sorry.")], "archive": [RunFailed(Reason.MODEL_FAILED, "401")]}
    )
    await run_main(run, ports)
    assert told(run) == [[("Agent archive failed (ModelFailed): 401.", True)]]


async def test_what_ends_the_run_ends_it_from_within_an_agent_called_as_a_tool() -> None:
    run = state(agent("desk"), agent("archive"), max_turns=2)
    ports = Ports({"desk": [asks(consults("archive"))], "archive": [asks(runs())]}, {"t": ToolOutcome(output="ok")})
    with pytest.raises(RunFailed, match=r"limits\.maxTurns = 2") as failed:
        await run_main(run, ports)
    assert failed.value.reason is Reason.MAX_TURNS


async def test_an_agent_called_as_a_tool_keeps_to_its_own_limits() -> None:
    run = state(agent("desk"), agent("archive", limits=LimitSettings(max_turns=1)))
    ports = Ports(
        {"desk": [asks(consults("archive")), says("Sorry.")], "archive": [asks(runs())]},
        {"t": ToolOutcome(output="ok")},
    )
    await run_main(run, ports)
    ((output, is_error),) = told(run)[0]
    assert output.startswith("Agent archive gave no answer: No answer after limits.maxTurns = 1 model calls")
    assert output.endswith("It had already called: tool.")
    assert is_error


async def test_an_agent_called_as_a_tool_keeps_to_its_own_timeout_and_leaves_nothing_running() -> None:
    run = state(agent("desk"), agent("archive", limits=LimitSettings(timeout_seconds=0.01)))
    ports = Ports({"desk": [asks(consults("archive")), says("Sorry.")], "archive": [asks(runs())]})
    await run_main(run, ports)
    words = "Agent archive did not answer within its limits.timeout of 0.01s."
    assert told(run) == [[(f"{words} Stopped while these ran, their outcome is unknown: tool.", True)]]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_agents_that_call_each_other_come_to_an_end() -> None:
    run = state(agent("a"), max_turns=50)
    deep = contract.AGENT_DEPTH_MAX
    replies = [asks(consults("a"))] * deep + [says(str(level)) for level in range(deep)]
    ports = Ports({"a": [*replies]})
    assert (await run_main(run, ports)).text == "4"
    assert len(ports.model_calls) == 2 * deep
    refused = next(thread for name, thread in run.threads.items() if name.startswith(f"{deep - 1}."))
    result = refused.messages[2].parts[0]
    assert isinstance(result, ToolResultPart)
    assert result.output.startswith("Not run: agents may call agents 5 deep")


async def test_only_so_many_agents_are_at_work_at_once() -> None:
    run = state(agent("desk"), agent("a"), max_turns=60)
    many = [consults("a", call_id=str(index)) for index in range(contract.THREADS_MAX + 2)]
    ports = Ports({"desk": [asks(*many), says("Done.")], "a": [says("A")] * contract.THREADS_MAX})
    await run_main(run, ports)
    assert [is_error for _, is_error in told(run)[0]] == [None] * contract.THREADS_MAX + [True, True]


async def test_a_failure_for_good_stops_the_calls_beside_it() -> None:
    run = state(agent("desk"))
    ports = Ports({"desk": [asks(runs("1"), runs("2"))]}, {"2": RunFailed(Reason.WORKFLOW_FAILED, "broken")})
    with pytest.raises(RunFailed, match="broken"):
        await run_main(run, ports)
    assert asyncio.all_tasks() == {asyncio.current_task()}


# ── Context variables ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_tools_set_is_merged_in_call_order_and_seen_by_the_next_turn() -> None:
    reads = agent("desk", instructions="Help {{ context.name }}.")
    run = state(reads, context={"name": "Ada", "seen": 0})
    ports = Ports(
        {"desk": [asks(runs("1", reads_context=True), runs("2")), says("Done.")]},
        {"1": ToolOutcome(output="a", context={"seen": 1}), "2": ToolOutcome(output="b", context={"seen": 2, "x": []})},
    )
    await run_main(run, ports)
    assert run.main.context == {"name": "Ada", "seen": 2, "x": []}
    assert [call.context for call in ports.tool_calls] == [{"name": "Ada", "seen": 0}, None]
    assert [call.context for call in ports.model_calls] == [{"name": "Ada", "seen": 0}, run.main.context]


async def test_an_agent_called_as_a_tool_sets_variables_when_it_has_answered_in_the_order_of_the_calls() -> None:
    """Its own turns see them at once; the caller's other tools of the turn do not, however long they take."""
    run = state(agent("desk"), agent("archive", instructions="{{ context.x }}"), context={"x": 0})
    ports = Ports(
        {
            "desk": [asks(consults("archive", call_id="1"), runs("2", reads_context=True)), says("Done.")],
            "archive": [asks(runs("inner")), says("Ubud")],
        },
        {"2": ToolOutcome(output="", context={"x": 2}), "inner": ToolOutcome(output="", context={"x": 1, "y": 1})},
    )
    await run_main(run, ports)
    assert run.main.context == {"x": 2, "y": 1}
    assert [call.context for call in ports.tool_calls if call.context] == [{"x": 0}]
    assert [call.context for call in ports.model_calls if call.agent == "archive"] == [{"x": 0}, {"x": 1, "y": 1}]


async def test_an_agent_whose_instructions_read_no_context_is_not_sent_any() -> None:
    run = state(agent("desk", instructions="Help."), context={"name": "Ada"})
    ports = Ports({"desk": [says("Done.")]})
    await run_main(run, ports)
    assert ports.model_calls[0].context is None


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        pytest.param({"x": "x" * 4096, "y": "y" * 4096}, "8201 bytes, 8192 are allowed", id="together"),
        pytest.param({"x": "x" * 4097}, "x is longer than 4096 characters", id="one value"),
        pytest.param({f"x{n}": 1 for n in range(64)}, "65 variables, 64 are allowed", id="too many"),
    ],
)
async def test_too_much_context_is_not_set_and_told(more: dict[str, Any], problem: str) -> None:
    run = state(agent("desk"), context={"name": "Ada"})
    ports = Ports({"desk": [asks(runs()), says("Done.")]}, {"t": ToolOutcome(output="ok", context=more)})
    await run_main(run, ports)
    assert run.main.context == {"name": "Ada"}
    assert told(run) == [[(f"ok\n[Context variables not set: {problem}.]", True)]]


# ── Fallbacks, attempts ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(RunFailed(Reason.MODEL_FAILED, "quota"), id="fails for good"),
        pytest.param(says("I will not.", failure=Failure(reason="ModelRefused", message="no")), id="refuses"),
    ],
)
async def test_the_next_model_is_called_and_the_run_stays_with_it(first: ModelReply | RunFailed) -> None:
    run = state(agent("desk", fallbacks=["claude"]))
    ports = Ports({"desk": [first, asks(runs()), says("Done.")]}, {"t": ToolOutcome(output="ok")})
    assert (await run_main(run, ports)).text == "Done."
    assert [call.model for call in ports.model_calls] == [None, "claude", "claude"]
    assert ports.attempts == [contract.FALLBACK_ATTEMPTS, 0, 0]
    assert "I will not." not in [message.text() for message in run.main.thread.messages]


async def test_the_last_model_s_failure_is_the_run_s() -> None:
    run = state(agent("desk", fallbacks=["claude"]))
    ports = Ports({"desk": [RunFailed(Reason.MODEL_FAILED, "one"), RunFailed(Reason.MODEL_FAILED, "two")]})
    with pytest.raises(RunFailed, match=r"^two; before it AgentModel gpt: ModelFailed: one$"):
        await run_main(run, ports)


async def test_the_next_model_is_called_in_the_same_turn() -> None:
    run = state(agent("desk", fallbacks=["claude"]), max_turns=1)
    assert (
        await run_main(run, Ports({"desk": [RunFailed(Reason.MODEL_FAILED, "one"), says("Done.")]}))
    ).text == "Done."
    assert run.budget.turns == 1


async def test_no_thread_goes_back_to_a_model_that_another_has_given_up() -> None:
    run = state(agent("desk"), agent("a", fallbacks=["b", "c"]))
    run.models["a"] = 2
    late = RunFailed(Reason.MODEL_FAILED, "late")
    ports = Ports({"desk": [asks(consults("a")), says("Done.")], "a": [late]})
    await run_main(run, ports)
    assert run.models == {"a": 2}


@pytest.mark.parametrize(
    ("asked", "attempts"),
    [
        pytest.param(7, 7, id="as the agent says"),
        pytest.param(0, 0, id="until the timeout, if it says so"),
        pytest.param(None, contract.FALLBACK_ATTEMPTS, id="a few, where another comes next"),
    ],
)
async def test_how_often_a_model_is_tried(asked: int | None, attempts: int) -> None:
    run = state(agent("desk", fallbacks=["claude"], retry=RetrySettings(maximum_attempts=asked)))
    ports = Ports({"desk": [says("Done.")]})
    await run_main(run, ports)
    assert ports.attempts == [attempts]


# ── Budgets ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_token_budget_bounds_each_answer_by_what_is_left_and_then_ends_the_run() -> None:
    run = state(agent("desk"), max_tokens=24)
    ports = Ports({"desk": [asks(runs()), asks(runs())]}, {"t": ToolOutcome(output="ok")})
    with pytest.raises(RunFailed, match=r"limits.maxTokens = 24 is used up: 24 tokens in 2 model calls") as failed:
        await run_main(run, ports)
    assert failed.value.reason is Reason.TOKEN_BUDGET
    assert [call.max_output_tokens for call in ports.model_calls] == [24, 12]
    assert len(run.main.thread.messages) == 5


async def test_a_cost_budget_bounds_each_answer_by_what_is_left_and_then_ends_the_run() -> None:
    run = state(agent("desk"), max_cost_usd="0.02")
    ports = Ports({"desk": [asks(runs(), cost_usd="0.015")] * 2}, {"t": ToolOutcome(output="ok")})
    with pytest.raises(RunFailed, match=r"limits.maxCostUSD = 0.02 is used up: 0.030 in 2 model calls") as failed:
        await run_main(run, ports)
    assert failed.value.reason is Reason.COST_BUDGET
    assert [call.max_cost_usd for call in ports.model_calls] == ["0.02", "0.005"]


async def test_an_agent_called_as_a_tool_uses_its_callers_budget() -> None:
    run = state(agent("desk"), agent("archive", limits=LimitSettings(max_tokens=100)), max_tokens=40)
    ports = Ports({"desk": [asks(consults("archive")), says("Done.")], "archive": [says("Ubud")]})
    await run_main(run, ports)
    assert [call.max_output_tokens for call in ports.model_calls] == [40, 28, 16]


async def test_without_limits_nothing_is_bounded() -> None:
    run = state(agent("desk"))
    ports = Ports({"desk": [says("Done.")]})
    await run_main(run, ports)
    assert (ports.model_calls[0].max_output_tokens, ports.model_calls[0].max_cost_usd) == (None, None)


# ── Answers ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_answer_that_does_not_fit_is_asked_for_again_each_time_a_turn() -> None:
    run = state(agent("desk"))
    ports = Ports({"desk": [says("soon", correction="Not JSON."), says("{}", structured_output={"day": 1})]})
    assert await run_main(run, ports) == Answer("{}", {"day": 1})
    assert run.budget.turns == 2
    (correction,) = (message for message in run.main.thread.messages if message.sender == CORRECTOR)
    assert (correction.role, correction.text()) == ("user", "Not JSON.")


async def test_a_model_that_pauses_is_called_again_with_what_it_said() -> None:
    run = state(agent("desk"))
    ports = Ports({"desk": [says("Let me", call_again=True), says("Done.")]})
    assert (await run_main(run, ports)).text == "Done."
    assert [message.text() for message in run.main.thread.messages[1:]] == ["Let me", "Done."]


async def test_a_model_that_only_pauses_fails_the_run() -> None:
    run = state(agent("desk"))
    ports = Ports({"desk": [says("Let me", call_again=True)] * 10})
    with pytest.raises(RunFailed, match="paused 6 times in a row"):
        await run_main(run, ports)


async def test_what_an_agent_had_to_do_without_is_remembered_until_its_next_call() -> None:
    run = state(agent("desk"), agent("archive"))
    failed = {"retrieval_failure": "refused", "tools_failure": "away"}
    ports = Ports({"desk": [asks(consults("archive"), **failed), says("Done.")], "archive": [says("Ubud", **failed)]})
    await run_main(run, ports)
    assert (run.retrieval_failures, run.tools_failures) == ({"archive": "refused"}, {"archive": "away"})

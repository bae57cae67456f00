"""What the model activity makes of an answer: a message within bounds, and a verdict on each tool call."""

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any

import pytest
from dalang import tool
from dalang.tools import ToolFunction
from dalang_api import contract
from dalang_api.contract import (
    AgentSnapshot,
    ApprovalFloor,
    ApprovalPolicy,
    CallVerdict,
    Failure,
    Message,
    ModelCall,
    ModelReply,
    ModelSnapshot,
    OpaquePart,
    RunIdentity,
    TextPart,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from dalang_worker.activities import model as model_activity
from dalang_worker.activities.model import answer_cap, circumstances_of, tool_choice
from dalang_worker.activities.model_calls import is_worth_telling
from dalang_worker.approvals import Circumstances
from dalang_worker.providers import ModelAnswer, RequestedCall, TokenUsage
from dalang_worker.runs import CallingRun
from dalang_worker.tools.offer import ARGUMENTS_ERROR_MAX_BYTES, FunctionOffer, Offers
from pydantic import AfterValidator
from temporalio.exceptions import ApplicationError

CALL = ModelCall(agent="support", snapshot="s", thread="main", turn=3, count=0, digest="")
LIMIT = contract.TURN_MAX_CALLS
AGENT = AgentSnapshot(name="support", uid="a", generation=1, queue="i.shop.default", model="gpt")
LOCAL = ModelSnapshot(
    name="gpt", uid="m", generation=1, provider="OpenAI", model="gpt-5", base_url="http://models.local:11434/v1"
)
"""An endpoint of one's own: nobody knows its prices."""
PRICED = ModelSnapshot(name="claude", uid="m", generation=1, provider="Anthropic", model="claude-sonnet-4-6")
Tools = dict[str, ToolFunction]


def make_reply(call: ModelCall, agent: AgentSnapshot, answer: ModelAnswer, tools: Tools, **more: Any) -> ModelReply:
    return model_activity.make_reply(call, agent, more.pop("model", LOCAL), answer, offering(tools), **more)


def offering(tools: Tools) -> Offers:
    return Offers({name: FunctionOffer(name, function) for name, function in tools.items()})


@pytest.fixture
def tools(registry: Tools) -> Tools:
    """The function `weather_of`, which the agent offers as `weather`."""

    @tool
    def weather_of(city: str) -> str:
        """Tell the weather."""
        return city

    return {"weather": registry["weather_of"]}


def asked(*calls: tuple[str, str], text: str = "", **more: Any) -> ModelAnswer:
    said = [TextPart(text=text)] if text else []
    return ModelAnswer([*said, *(RequestedCall(*call) for call in calls)], TokenUsage(12, 3), **more)


def call(index: int, name: str = "weather", arguments: str = '{"city":"Ubud"}') -> ToolCallPart:
    return ToolCallPart(call_id=f"call_3_{index}", tool=name, arguments=arguments)


def runs(index: int) -> CallVerdict:
    return CallVerdict(call_id=f"call_3_{index}", function="weather_of")


def test_an_answer_is_a_text(tools: Tools) -> None:
    assert make_reply(CALL, AGENT, asked(text="No."), tools) == ModelReply(
        message=Message(role="assistant", parts=[TextPart(text="No.")], sender="support"),
        input_tokens=12,
        output_tokens=3,
        judged=True,
    )


def test_an_empty_answer_is_a_text_too(tools: Tools) -> None:
    assert make_reply(CALL, AGENT, asked(), tools).message.parts == [TextPart(text="")]


def test_each_call_gets_an_id_of_ours_and_a_verdict(tools: Tools) -> None:
    fits = ("weather", '{"city":"Ubud"}')
    reply = make_reply(CALL, AGENT, asked(fits, fits, text="Let me see."), tools)
    assert reply.message.parts == [TextPart(text="Let me see."), call(0), call(1)]
    assert reply.calls == [runs(0), runs(1)]


def test_the_runs_of_a_session_share_no_ids(tools: Tools) -> None:
    """Their calls stand in one thread, and Anthropic refuses an id that comes twice."""
    runs_of_a_session = [RunIdentity(name=f"chat-{number}", uid=f"{number}14e45fc-ceea-467f") for number in (1, 2)]
    replies = [
        make_reply(CALL.model_copy(update={"run": run}), AGENT, asked(("weather", "{}")), tools)
        for run in runs_of_a_session
    ]
    assert [part.call_id for reply in replies for part in reply.message.tool_calls()] == [
        "call_114e45fc_3_0",
        "call_214e45fc_3_0",
    ]


@pytest.mark.parametrize(
    ("wanted", "kept", "error"),
    [
        pytest.param(
            ("wether", "{}"), ("wether", "{}"), "There is no tool 'wether'. The tools are: weather.", id="unknown"
        ),
        pytest.param(
            ("w\ud800" + "x" * 500, "{}"),
            ("w?" + "x" * 126, "{}"),
            f"There is no tool 'w?{'x' * 126}'. The tools are: weather.",
            id="unknown, with a name that is none",
        ),
        pytest.param(
            ("weather", '{"city":'),
            ("weather", '{"city":'),
            "The arguments do not fit tool weather_of: arguments: Invalid JSON: EOF while parsing a value at line 1"
            " column 8. Call it again with arguments that match its schema.",
            id="arguments that are no JSON",
        ),
        pytest.param(
            ("weather", '{"city":"a\ud800"}'), ("weather", '{"city":"a?"}'), None, id="a lone surrogate is replaced"
        ),
        pytest.param(
            ("weather", '{"city":"\\ud800"}'),
            ("weather", '{"city":"\\ud800"}'),
            "The arguments do not fit tool weather_of: arguments: Invalid JSON: unexpected end of hex escape at line 1"
            " column 16. Call it again with arguments that match its schema.",
            id="an escaped lone surrogate",
        ),
        pytest.param(
            ("weather", '{"city":"' + "x" * contract.CALL_ARGUMENTS_MAX_BYTES + '"}'),
            ("weather", "{}"),
            "Not run: the arguments are longer than 65536 bytes.",
            id="arguments that are too long are not kept",
        ),
        pytest.param(("weather", ""), ("weather", ""), "city: Field required", id="no arguments where some are needed"),
    ],
)
def test_a_call_that_cannot_be_run_is_kept_within_bounds_and_explained(
    tools: Tools, wanted: tuple[str, str], kept: tuple[str, str], error: str | None
) -> None:
    reply = make_reply(CALL, AGENT, asked(wanted), tools)
    assert reply.message.parts == [call(0, *kept)]
    (verdict,) = reply.calls or []
    if error is None:
        assert verdict == runs(0)
    else:
        assert verdict.function is None
        assert error in (verdict.error or "")


def test_without_tools_none_are_named() -> None:
    reply = make_reply(CALL, AGENT, asked(("weather", "{}")), {})
    assert reply.calls == [CallVerdict(call_id="call_3_0", error="There is no tool 'weather'. The tools are: none.")]


def test_of_too_many_calls_one_is_kept_to_tell_of_the_others(tools: Tools) -> None:
    reply = make_reply(CALL, AGENT, asked(*[("weather", '{"city":"Ubud"}')] * 10_000), tools)
    assert reply.message.parts == [call(index) for index in range(LIMIT + 1)]
    told = "Not run: 10000 calls in one turn, of which the first 32 were run. Ask again for the rest."
    assert reply.calls == [
        *(runs(index) for index in range(LIMIT)),
        CallVerdict(call_id=f"call_3_{LIMIT}", error=told),
    ]


def test_just_as_many_calls_as_are_run(tools: Tools) -> None:
    reply = make_reply(CALL, AGENT, asked(*[("weather", '{"city":"Ubud"}')] * LIMIT), tools)
    assert reply.calls == [runs(index) for index in range(LIMIT)]


def test_a_long_text_is_cut(tools: Tools) -> None:
    (part,) = make_reply(CALL, AGENT, asked(text="x" * 100_000), tools).message.parts
    assert isinstance(part, TextPart)
    assert len(part.text.encode()) == contract.MESSAGE_MAX_BYTES
    assert part.text.endswith("[cut: 100000 bytes in all]")


def test_a_failure_is_passed_on(tools: Tools) -> None:
    failure = Failure(reason="OutputTruncated", message="limit")
    assert make_reply(CALL, AGENT, asked(text="Once", failure=failure), tools).failure == failure


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(("weather", '{"' + '"' * 16_000), id="quotes"),
        pytest.param(("weather", "\x00" * 16_000), id="control characters"),
        pytest.param(("weather", '{"' + "\\u0000" * 2_700 + '":1}'), id="a key of control characters, quoted back"),
        pytest.param(("x" * 16_000, '"' * 16_000), id="a long name"),
    ],
)
def test_the_worst_reply_fits_a_payload(tools: Tools, wanted: tuple[str, str]) -> None:
    reply = make_reply(CALL, AGENT, asked(*[wanted] * 10_000, text='"' * 100_000), tools)
    assert len(reply.model_dump_json().encode()) < 1.5 * 1024 * 1024
    assert all(len((verdict.error or "").encode()) <= ARGUMENTS_ERROR_MAX_BYTES for verdict in reply.calls or [])


@pytest.mark.parametrize(
    ("attempt", "wait", "is_told"),
    [
        pytest.param(1, None, False, id="the first failure is noise"),
        pytest.param(2, 1.0, False, id="so is the second"),
        pytest.param(3, None, True, id="the third is told"),
        pytest.param(50, 1.0, True, id="and all after it"),
        pytest.param(1, 30.0, True, id="a long wait is told at once"),
        pytest.param(1, 5.0, False, id="a short one is not"),
    ],
)
def test_is_worth_telling(attempt: int, wait: float | None, is_told: bool) -> None:
    assert is_worth_telling(attempt, None if wait is None else timedelta(seconds=wait)) is is_told


def test_names_that_the_agent_gives_are_those_the_model_sees(registry: Tools) -> None:
    def registered(function: Callable[..., Any]) -> ToolFunction:
        tool(function)
        return registry[function.__name__]

    def lookup(order: str) -> str:
        return order

    offered = {"find_order": registered(lookup)}
    reply = make_reply(CALL, AGENT, asked(("find_order", '{"order":"1"}'), ("lookup", '{"order":"1"}')), offered)
    assert [(verdict.function, verdict.error) for verdict in reply.calls or []] == [
        ("lookup", None),
        (None, "There is no tool 'lookup'. The tools are: find_order."),
    ]


# ── Parts, cost, what an answer has to be ──────────────────────────────────────────────────────────────────────────


def test_parts_keep_the_model_s_order_and_what_is_opaque_stays_as_it_is(tools: Tools) -> None:
    thought = OpaquePart(provider="Anthropic", model="claude", data='{"type":"thinking"}')
    answer = ModelAnswer([thought, TextPart(text="Let me see."), RequestedCall("weather", "{}")], TokenUsage())
    assert [part.type for part in make_reply(CALL, AGENT, answer, tools).message.parts] == [
        "opaque",
        "text",
        "toolCall",
    ]


def test_all_texts_of_a_message_share_its_bound_and_so_does_what_is_opaque(tools: Tools) -> None:
    texts = [TextPart(text="x" * 20_000) for _ in range(10)]
    opaque = [OpaquePart(provider="A", model="m", data="y" * 60_000) for _ in range(10)]
    kept = make_reply(CALL, AGENT, ModelAnswer([*texts, *opaque], TokenUsage()), tools).message.parts
    assert sum(len(part.text) for part in kept if isinstance(part, TextPart)) <= contract.MESSAGE_MAX_BYTES
    assert sum(isinstance(part, OpaquePart) for part in kept) == 2


def test_a_call_costs_what_its_tokens_do_and_nothing_is_said_where_no_price_is_known() -> None:
    answer = ModelAnswer([TextPart(text="No.")], TokenUsage(input_tokens=1000, output_tokens=1000))
    assert make_reply(CALL, AGENT, answer, {}, model=PRICED).cost_usd == "0.018"
    assert make_reply(CALL, AGENT, answer, {}, model=LOCAL).cost_usd is None


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WITH_SCHEMA = AGENT.model_copy(update={"output_schema": CITY})


def test_an_answer_that_fits_its_schema_is_an_object() -> None:
    reply = make_reply(CALL, WITH_SCHEMA, asked(text='{"city": "Ubud"}'), {})
    assert (reply.structured_output, reply.correction) == ({"city": "Ubud"}, None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("In Ubud.", "JSON", id="no JSON"),
        pytest.param('{"city": 3}', "city", id="another type"),
        pytest.param("{}", "city", id="a field is missing"),
        pytest.param('{"city": "' + "x" * 40_000 + '"}', "longer than 32768 bytes", id="too long"),
    ],
)
def test_an_answer_that_does_not_is_asked_for_again(text: str, told: str) -> None:
    reply = make_reply(CALL, WITH_SCHEMA, asked(text=text), {})
    assert reply.structured_output is None
    assert told in (reply.correction or "")


def test_a_turn_with_tool_calls_is_no_answer_yet(tools: Tools) -> None:
    reply = make_reply(CALL, WITH_SCHEMA, asked(("weather", '{"city":"Ubud"}')), tools)
    assert (reply.structured_output, reply.correction) == (None, None)


# ── Budgets, tool choice ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("more", "cap"),
    [
        pytest.param({}, None, id="no budget"),
        pytest.param({"max_output_tokens": 500}, (500, "TokenBudget"), id="tokens that are left"),
        pytest.param({"max_cost_usd": "0.015"}, (1000, "CostBudget"), id="money that is left"),
        pytest.param({"max_output_tokens": 500, "max_cost_usd": "0.015"}, (500, "TokenBudget"), id="fewer tokens"),
        pytest.param({"max_output_tokens": 5000, "max_cost_usd": "0.015"}, (1000, "CostBudget"), id="less money"),
        pytest.param({"max_cost_usd": "0.000000001"}, (1, "CostBudget"), id="at least one token"),
    ],
)
def test_the_most_that_a_call_may_answer(more: dict[str, Any], cap: tuple[int, str] | None) -> None:
    found = answer_cap(CALL.model_copy(update=more), PRICED)
    assert (found and (found[0], found[1].reason)) == cap


def test_a_cost_budget_needs_a_price() -> None:
    with pytest.raises(ApplicationError, match=r"the price of gpt-5 \(AgentModel gpt\) is not known") as refused:
        answer_cap(CALL.model_copy(update={"max_cost_usd": "1"}), LOCAL)
    assert (refused.value.type, refused.value.non_retryable) == ("PriceUnknown", True)


@pytest.mark.parametrize(
    ("reason", "blame", "told"),
    [
        pytest.param("OutputTruncated", None, "OutputTruncated", id="the model's own limit"),
        pytest.param("OutputTruncated", "TokenBudget", "TokenBudget", id="what was left of a budget"),
        pytest.param("ContentFilter", "TokenBudget", "ContentFilter", id="something else altogether"),
    ],
)
def test_who_is_to_blame_for_an_answer_that_was_cut(reason: str, blame: str | None, told: str) -> None:
    stopped = asked(text="Once", failure=Failure(reason=reason, message="limit"))
    budget = Failure(reason=blame, message="cut") if blame else None
    failure = make_reply(CALL, AGENT, stopped, {}, blame=budget).failure
    assert failure is not None
    assert failure.reason == told


USER = Message(role="user", parts=[TextPart(text="hi")])
RESULT = Message(role="tool", parts=[ToolResultPart(call_id="c", tool="weather", output="sunny")], sender="support")
OTHERS = RESULT.model_copy(update={"sender": "desk"})
CORRECTION = Message(role="user", parts=[TextPart(text="Answer again.")], sender="dalang")


@pytest.mark.parametrize(
    ("mode", "messages", "holds"),
    [
        pytest.param("Required", [USER], True, id="a tool is demanded"),
        pytest.param("Required", [USER, RESULT], False, id="and was called"),
        pytest.param("Required", [USER, RESULT, CORRECTION], False, id="being asked again is no new message"),
        pytest.param("Required", [USER, RESULT, USER], True, id="the user's next message demands it again"),
        pytest.param("Required", [USER, OTHERS], True, id="what another agent called before it handed over"),
        pytest.param("Auto", [USER, RESULT], True, id="Auto always holds"),
        pytest.param("None", [USER, RESULT], True, id="None always holds"),
    ],
)
def test_how_long_a_tool_choice_holds(mode: Any, messages: list[Message], holds: bool, tools: Tools) -> None:
    choice = ToolChoice(mode=mode)
    agent = AGENT.model_copy(update={"tool_choice": choice})
    assert tool_choice(agent, messages, offering(tools)) == (choice if holds else None)


@pytest.mark.parametrize("choice", [ToolChoice(mode="Tool", tool="pay"), ToolChoice(mode="Required")])
def test_a_tool_that_is_not_there_is_not_demanded(choice: ToolChoice, tools: Tools) -> None:
    agent = AGENT.model_copy(update={"tool_choice": choice})
    there = offering(tools) if choice.tool else Offers()
    assert tool_choice(agent, [USER], there) is None


ASKING = AGENT.model_copy(
    update={"output_approval": ApprovalPolicy(when="output.contains('refund')", question="Say so?")}
)


def test_an_answer_that_a_human_has_to_approve() -> None:
    needed = make_reply(CALL, ASKING, asked(text="We refund."), {}).approval
    assert needed is not None
    assert (needed.question, needed.arguments) == ("Say so?", '"We refund."')
    assert make_reply(CALL, ASKING, asked(text="No."), {}).approval is None


def test_a_structured_answer_is_asked_about_as_an_object() -> None:
    agent = WITH_SCHEMA.model_copy(update={"output_approval": ApprovalPolicy(when="output.city == 'Ubud'")})
    needed = make_reply(CALL, agent, asked(text='{"city": "Ubud"}'), {}).approval
    assert needed is not None
    assert needed.arguments == '{"city":"Ubud"}'
    assert make_reply(CALL, agent, asked(text='{"city": "Kuta"}'), {}).approval is None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("refund " + "x" * contract.MESSAGE_MAX_BYTES, id="too long"),
        pytest.param("x" * contract.MESSAGE_MAX_BYTES + "refund", id="too long, and what matters at its end"),
        pytest.param("refund" + "\a" * 12_000, id="too long once it can be shown"),
    ],
)
def test_an_answer_that_would_be_cut_is_not_asked_about_but_to_be_given_again(text: str) -> None:
    reply = make_reply(CALL, ASKING, asked(text=text), {})
    assert (reply.approval, reply.structured_output) == (None, None)
    assert reply.correction == "The answer is longer than 32768 bytes. Answer again, shorter."
    whole = make_reply(CALL, ASKING, asked(text="refund" + "x" * (contract.MESSAGE_MAX_BYTES - 6)), {})
    assert (whole.approval is not None, whole.correction) == (True, None)
    assert make_reply(CALL, AGENT, asked(text=text), {}).correction is None, "nobody has to judge it"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(asked(("weather", '{"city":"Ubud"}'), text="I refund."), id="calls"),
        pytest.param(asked(("weather", '{"city":"Ubud"}'), text="refund" * 8192), id="calls, and too many words"),
        pytest.param(asked(text="refund", failure=Failure(reason="OutputTruncated", message="")), id="a failure"),
        pytest.param(asked(text="refund", call_again=True), id="a pause"),
    ],
)
def test_what_is_no_answer_is_not_asked_about(answer: ModelAnswer, tools: Tools) -> None:
    reply = make_reply(CALL, ASKING, answer, tools)
    assert (reply.approval, reply.correction) == (None, None)


def test_an_answer_that_does_not_fit_is_not_asked_about() -> None:
    agent = WITH_SCHEMA.model_copy(update={"output_approval": ApprovalPolicy()})
    reply = make_reply(CALL, agent, asked(text="Ubud"), {})
    assert (reply.approval, reply.correction is not None) == (None, True)


def test_an_answer_that_cannot_be_shown_exactly_is_to_be_given_again() -> None:
    schema = {"type": "object", "properties": {"order": {"type": "integer"}}}
    agent = AGENT.model_copy(update={"output_schema": schema, "output_approval": ApprovalPolicy()})
    reply = make_reply(CALL, agent, asked(text='{"order": 12345678901234567890}'), {})
    assert (reply.approval, reply.structured_output) == (None, None)
    assert "The answer does not count: a human has to approve it, and the answer cannot be shown" in (
        reply.correction or ""
    )


@pytest.mark.parametrize(
    ("agent", "sent", "context"),
    [
        pytest.param(AGENT, None, None, id="an agent that reads no context: it is not known"),
        pytest.param(
            AGENT.model_copy(update={"instructions": "Hi {{ context.name }}"}),
            {"name": "Ada"},
            {"name": "Ada"},
            id="in instructions",
        ),
        pytest.param(AGENT.model_copy(update={"instructions": "Hi {{ context.name }}"}), None, {}, id="an empty one"),
        pytest.param(
            ASKING.model_copy(update={"output_approval": ApprovalPolicy(when="!context.vip")}),
            None,
            {},
            id="in a policy",
        ),
        pytest.param(ASKING, None, None, id="in no policy"),
    ],
)
def test_what_policies_see_of_the_run(
    agent: AgentSnapshot, sent: dict[str, Any] | None, context: dict[str, Any] | None
) -> None:
    floors = [ApprovalFloor(tools=["pay"])]
    call = CALL.model_copy(update={"context": sent})
    found = circumstances_of(agent, call, CallingRun(("w", "e"), "shop", "my.run", "uid"), floors)
    assert found == Circumstances("support", "my.run", "shop", context, floors)


def test_arguments_that_a_tool_s_author_cannot_read_are_told_to_the_model(registry: Tools) -> None:
    """An exception there would make Temporal repeat a call that is paid for."""

    def look_up(code: str) -> str:
        return {"a": "A"}[code]

    @tool
    def ship(code: Annotated[str, AfterValidator(look_up)]) -> str:
        return code

    (verdict,) = make_reply(CALL, AGENT, asked(("ship", '{"code":"b"}')), dict(registry)).calls or []
    assert verdict.function is None
    assert verdict.error == "The arguments of ship could not be read: KeyError: 'b'"


def test_the_arguments_of_a_turn_are_bounded_together(tools: Tools) -> None:
    long = ("weather", '{"city":"' + "x" * 16_000 + '"}')
    reply = make_reply(CALL, AGENT, asked(*[long] * 20), tools)
    run = [verdict for verdict in reply.calls or [] if verdict.function]
    assert len(run) == contract.TURN_ARGUMENTS_MAX_BYTES // len(long[1])
    assert "the arguments of this turn's calls are longer" in ((reply.calls or [])[-1].error or "")

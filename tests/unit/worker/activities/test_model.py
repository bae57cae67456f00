"""What the model activity makes of an answer: a message within bounds, and a verdict on each tool call."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from dalang import tool
from dalang.tools import ToolFunction
from dalang_api import contract
from dalang_api.contract import CallVerdict, Failure, Message, ModelCall, ModelReply, TextPart, ToolCallPart
from dalang_worker.activities.model import ARGUMENTS_ERROR_MAX_BYTES, is_worth_telling, make_reply
from dalang_worker.providers import ModelAnswer, RequestedCall

CALL = ModelCall(agent="support", snapshot="s", thread="main", turn=3, count=0, digest="")
LIMIT = contract.TURN_MAX_CALLS
Tools = dict[str, ToolFunction]


@pytest.fixture
def tools(registry: Tools) -> Tools:
    """The function `weather_of`, which the agent offers as `weather`."""

    @tool
    def weather_of(city: str) -> str:
        """Tell the weather."""
        return city

    return {"weather": registry["weather_of"]}


def asked(*calls: tuple[str, str], text: str = "", **more: Any) -> ModelAnswer:
    return ModelAnswer(text, [RequestedCall(*call) for call in calls], input_tokens=12, output_tokens=3, **more)


def call(index: int, name: str = "weather", arguments: str = '{"city":"Ubud"}') -> ToolCallPart:
    return ToolCallPart(call_id=f"call_3_{index}", tool=name, arguments=arguments)


def runs(index: int) -> CallVerdict:
    return CallVerdict(call_id=f"call_3_{index}", function="weather_of")


def test_an_answer_is_a_text(tools: Tools) -> None:
    assert make_reply(CALL, "support", asked(text="No."), tools) == ModelReply(
        message=Message(role="assistant", parts=[TextPart(text="No.")], sender="support"),
        input_tokens=12,
        output_tokens=3,
    )


def test_an_empty_answer_is_a_text_too(tools: Tools) -> None:
    assert make_reply(CALL, "support", asked(), tools).message.parts == [TextPart(text="")]


def test_each_call_gets_an_id_of_ours_and_a_verdict(tools: Tools) -> None:
    fits = ("weather", '{"city":"Ubud"}')
    reply = make_reply(CALL, "support", asked(fits, fits, text="Let me see."), tools)
    assert reply.message.parts == [TextPart(text="Let me see."), call(0), call(1)]
    assert reply.calls == [runs(0), runs(1)]


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
            ("weather", '{"city":"' + "x" * contract.TOOL_OUTPUT_MAX_BYTES + '"}'),
            ("weather", "{}"),
            "Not run: the arguments are longer than 16384 bytes.",
            id="arguments that are too long are not kept",
        ),
        pytest.param(("weather", ""), ("weather", ""), "city: Field required", id="no arguments where some are needed"),
    ],
)
def test_a_call_that_cannot_be_run_is_kept_within_bounds_and_explained(
    tools: Tools, wanted: tuple[str, str], kept: tuple[str, str], error: str | None
) -> None:
    reply = make_reply(CALL, "support", asked(wanted), tools)
    assert reply.message.parts == [call(0, *kept)]
    (verdict,) = reply.calls or []
    if error is None:
        assert verdict == runs(0)
    else:
        assert verdict.function is None
        assert error in (verdict.error or "")


def test_without_tools_none_are_named() -> None:
    reply = make_reply(CALL, "support", asked(("weather", "{}")), {})
    assert reply.calls == [CallVerdict(call_id="call_3_0", error="There is no tool 'weather'. The tools are: none.")]


def test_of_too_many_calls_one_is_kept_to_tell_of_the_others(tools: Tools) -> None:
    reply = make_reply(CALL, "support", asked(*[("weather", '{"city":"Ubud"}')] * 10_000), tools)
    assert reply.message.parts == [call(index) for index in range(LIMIT + 1)]
    told = "Not run: 10000 calls in one turn, of which the first 32 were run. Ask again for the rest."
    assert reply.calls == [
        *(runs(index) for index in range(LIMIT)),
        CallVerdict(call_id=f"call_3_{LIMIT}", error=told),
    ]


def test_just_as_many_calls_as_are_run(tools: Tools) -> None:
    reply = make_reply(CALL, "support", asked(*[("weather", '{"city":"Ubud"}')] * LIMIT), tools)
    assert reply.calls == [runs(index) for index in range(LIMIT)]


def test_a_long_text_is_cut(tools: Tools) -> None:
    (part,) = make_reply(CALL, "support", asked(text="x" * 100_000), tools).message.parts
    assert isinstance(part, TextPart)
    assert len(part.text.encode()) == contract.MESSAGE_MAX_BYTES
    assert part.text.endswith("[cut: 100000 bytes in all]")


def test_a_failure_is_passed_on(tools: Tools) -> None:
    failure = Failure(reason="OutputTruncated", message="limit")
    assert make_reply(CALL, "support", asked(text="Once", failure=failure), tools).failure == failure


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
    reply = make_reply(CALL, "support", asked(*[wanted] * 10_000, text='"' * 100_000), tools)
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
    reply = make_reply(CALL, "support", asked(("find_order", '{"order":"1"}'), ("lookup", '{"order":"1"}')), offered)
    assert [(verdict.function, verdict.error) for verdict in reply.calls or []] == [
        ("lookup", None),
        (None, "There is no tool 'lookup'. The tools are: find_order."),
    ]

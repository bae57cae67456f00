"""The Messages API: what is sent is what the SDK's types and the API's rules allow, and every stop reason has a meaning."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args

import pytest
from anthropic.types import Message as ClaudeMessage
from anthropic.types import StopReason
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from dalang_api.contract import (
    Failure,
    Message,
    ModelSnapshot,
    OpaquePart,
    Part,
    TextPart,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from dalang_api.v1alpha1.conditions import Reason
from dalang_cli.dev.scripted_anthropic_rules import check_messages
from dalang_worker.conductor.memory import summary_message
from dalang_worker.providers import Credentials, ModelAnswer, ModelRequest, RequestedCall, TokenUsage, ToolSpec
from dalang_worker.providers.claude_messages import (
    BEGINNING,
    CONTINUE,
    DEFAULT_MAX_TOKENS,
    EMPTY,
    STOPS,
    make_messages,
    make_request,
    read_message,
)
from pydantic import TypeAdapter

Json = dict[str, Any]

CLAUDE = ModelSnapshot(name="claude", uid="u", generation=1, provider="Anthropic", model="claude-sonnet-5")
CACHE = {"cache_control": {"type": "ephemeral"}}

THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "abc"}
SERVER_CALL = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "Ubud"}}
WEATHER = ToolSpec("weather", "Tell the weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
CALL = ToolCallPart(call_id="call_1_0", tool="weather", arguments='{"city": "Ubud"}')
OTHER = ToolCallPart(call_id="call_1_1", tool="weather", arguments="oops")
RESULT = ToolResultPart(call_id="call_1_0", tool="weather", output="sunny")
OTHER_RESULT = ToolResultPart(call_id="call_1_1", tool="weather", output="no", is_error=True)


def user(text: str = "Will it rain?") -> Message:
    return Message(role="user", parts=[TextPart(text=text)])


def said(*parts: Part, sender: str = "support") -> Message:
    return Message(role="assistant", parts=list(parts), sender=sender)


def results(*parts: ToolResultPart) -> Message:
    return Message(role="tool", parts=list(parts), sender="support")


def text(words: str) -> Json:
    return {"type": "text", "text": words}


def opaque(block: Json, provider: str = "Anthropic", model: str = CLAUDE.model) -> OpaquePart:
    return OpaquePart(provider=provider, model=model, data=json.dumps(block, sort_keys=True))


TOOL_USE: Json = {"type": "tool_use", "id": "call_1_0", "name": "weather", "input": {"city": "Ubud"}}
OTHER_USE: Json = {"type": "tool_use", "id": "call_1_1", "name": "weather", "input": {}}
TOOL_RESULT: Json = {"type": "tool_result", "tool_use_id": "call_1_0", "content": "sunny"}
OTHER_TOOL_RESULT: Json = {"type": "tool_result", "tool_use_id": "call_1_1", "content": "no", "is_error": True}
ASKED: Json = {"role": "user", "content": [text("Will it rain?")]}

CONVERSATIONS = [
    pytest.param([user()], [ASKED], id="a question"),
    pytest.param(
        [user(), said(TextPart(text="Where?")), user("In Ubud.")],
        [
            ASKED,
            {"role": "assistant", "content": [text("Where?")]},
            {"role": "user", "content": [text("In Ubud.")]},
        ],
        id="a conversation",
    ),
    pytest.param(
        [summary_message("Ada lives in Kuta."), user(), said(TextPart(text="No."))],
        [
            {
                "role": "user",
                "content": [text("Summary of the conversation so far:\nAda lives in Kuta."), text("Will it rain?")],
            },
            {"role": "assistant", "content": [text("No.")]},
            {"role": "user", "content": [text("Continue.")]},
        ],
        id="a summary, then a question",
    ),
    pytest.param(
        [user(), said(TextPart(text="Let me see."), CALL, OTHER), results(RESULT, OTHER_RESULT)],
        [
            ASKED,
            {"role": "assistant", "content": [text("Let me see."), TOOL_USE, OTHER_USE]},
            {"role": "user", "content": [TOOL_RESULT, OTHER_TOOL_RESULT]},
        ],
        id="parallel calls, one with arguments that are no JSON: results in one message",
    ),
    pytest.param(
        [user(), said(CALL), results(RESULT), user("Quick!")],
        [
            ASKED,
            {"role": "assistant", "content": [TOOL_USE]},
            {"role": "user", "content": [TOOL_RESULT, text("Quick!")]},
        ],
        id="a word after the results is in their message",
    ),
    pytest.param(
        [
            user(),
            said(CALL, sender="support"),
            results(RESULT),
            said(TextPart(text="Sunny."), sender="sales"),
            user("Thanks."),
        ],
        [
            ASKED,
            {"role": "assistant", "content": [TOOL_USE]},
            {"role": "user", "content": [TOOL_RESULT]},
            {"role": "assistant", "content": [text("Sunny.")]},
            {"role": "user", "content": [text("Thanks.")]},
        ],
        id="a hand-off: two senders are one assistant",
    ),
    pytest.param(
        [said(TextPart(text="Welcome.")), user()],
        [
            {"role": "user", "content": [text(BEGINNING)]},
            {"role": "assistant", "content": [text("Welcome.")]},
            ASKED,
        ],
        id="an assistant begins",
    ),
    pytest.param(
        [user(), said(TextPart(text="One moment."))],
        [
            ASKED,
            {"role": "assistant", "content": [text("One moment.")]},
            {"role": "user", "content": [text(CONTINUE)]},
        ],
        id="an assistant ends",
    ),
    pytest.param([], [{"role": "user", "content": [text(BEGINNING)]}], id="nothing was said"),
    pytest.param([user(" \n")], [{"role": "user", "content": [text(EMPTY)]}], id="a question without words"),
    pytest.param(
        [user(), said(TextPart(text="")), user("Hello?")],
        [{"role": "user", "content": [text("Will it rain?"), text("Hello?")]}],
        id="an empty answer is not sent, and the questions meet",
    ),
    pytest.param(
        [user(), said(TextPart(text="\n"), CALL), results(RESULT)],
        [ASKED, {"role": "assistant", "content": [TOOL_USE]}, {"role": "user", "content": [TOOL_RESULT]}],
        id="an empty text beside a call",
    ),
    pytest.param(
        [
            user(),
            said(CALL),
            results(ToolResultPart(call_id="call_1_0", tool="weather", output="", is_error=True)),
        ],
        [
            ASKED,
            {"role": "assistant", "content": [TOOL_USE]},
            {"role": "user", "content": [{**TOOL_RESULT, "content": EMPTY, "is_error": True}]},
        ],
        id="a result without words",
    ),
    pytest.param(
        [user(), said(opaque(THOUGHT), TextPart(text="I look."), CALL), results(RESULT)],
        [
            ASKED,
            {"role": "assistant", "content": [THOUGHT, text("I look."), TOOL_USE]},
            {"role": "user", "content": [TOOL_RESULT]},
        ],
        id="a thought of this model, in its place",
    ),
    pytest.param(
        [user(), said(opaque(THOUGHT, model="claude-opus-5"), CALL), results(RESULT)],
        [ASKED, {"role": "assistant", "content": [TOOL_USE]}, {"role": "user", "content": [TOOL_RESULT]}],
        id="a thought of another model",
    ),
    pytest.param(
        [user(), said(opaque(THOUGHT, provider="Bedrock"), TextPart(text="No.")), user("Sure?")],
        [
            ASKED,
            {"role": "assistant", "content": [text("No.")]},
            {"role": "user", "content": [text("Sure?")]},
        ],
        id="a thought of another provider",
    ),
    pytest.param(
        [user(), said(opaque(THOUGHT)), user("Hello?")],
        [{"role": "user", "content": [text("Will it rain?"), text("Hello?")]}],
        id="a thought and no more",
    ),
    pytest.param(
        [user(), said(TextPart(text="I search."), opaque(SERVER_CALL))],
        [ASKED, {"role": "assistant", "content": [text("I search."), SERVER_CALL]}],
        id="a turn that paused ends the conversation",
    ),
]


@pytest.mark.parametrize(("messages", "expected"), CONVERSATIONS)
def test_a_conversation(messages: list[Message], expected: list[Json]) -> None:
    assert make_messages(messages, CLAUDE) == expected


def request(**more: Any) -> ModelRequest:
    return ModelRequest(
        **{"model": CLAUDE, "credentials": Credentials(), "instructions": None, "messages": [user()], **more}
    )


def plain(value: Any) -> Any:
    """Read a validated value to its end: pydantic checks an Iterable only as it is read."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def is_as_the_sdk_wants(body: Json) -> bool:
    """Whether the body fits the SDK's own type of a request, with nothing in it that the type does not know."""
    adapter: TypeAdapter[Any] = TypeAdapter(MessageCreateParamsNonStreaming)
    return bool(plain(adapter.validate_python(body)) == body)


class TestRequest:
    def test_holds_only_what_is_set(self) -> None:
        assert make_request(request()) == {
            "model": "claude-sonnet-5",
            "max_tokens": DEFAULT_MAX_TOKENS,
            "messages": [{"role": "user", "content": [{**text("Will it rain?"), **CACHE}]}],
        }

    def test_holds_all_that_is_set_but_the_temperature(self) -> None:
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
        full = request(
            instructions="Be brief.",
            tools=[WEATHER],
            tool_choice=ToolChoice(mode="Required"),
            parallel_tool_calls=False,
            output_schema=schema,
            temperature=0.5,
            max_output_tokens=100,
        )
        assert make_request(full) == {
            "model": "claude-sonnet-5",
            "max_tokens": 100,
            "messages": [{"role": "user", "content": [{**text("Will it rain?"), **CACHE}]}],
            "system": [{**text("Be brief."), **CACHE}],
            "tools": [{"name": "weather", "description": "Tell the weather.", "input_schema": WEATHER.schema}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            "output_config": {"format": {"type": "json_schema", "schema": schema}},
        }

    @pytest.mark.parametrize(("messages", "_expected"), CONVERSATIONS)
    def test_is_as_the_sdk_and_the_api_want_it(self, messages: list[Message], _expected: list[Json]) -> None:
        thinking = [m.model_copy(update={"parts": [p for p in m.parts if "thinking" not in str(p)]}) for m in messages]
        full = request(
            instructions="Be brief.", messages=messages, tools=[WEATHER], tool_choice=ToolChoice(mode="Auto")
        )
        assert is_as_the_sdk_wants(make_request(full))
        for spoken in (messages, thinking):
            check_messages(make_request(request(messages=spoken, tools=[WEATHER])), "2026-10-21")

    @pytest.mark.parametrize(
        "body",
        [
            pytest.param({"model": "m", "max_tokens": 1, "messages": [], "temperature": 0.5}, id="a temperature"),
            pytest.param(
                {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x", "sender": "me"}]},
                id="an unknown key",
            ),
        ],
    )
    def test_and_what_is_not_would_be_noticed(self, body: Json) -> None:
        assert not is_as_the_sdk_wants(body)

    @pytest.mark.parametrize(
        ("choice", "parallel", "expected"),
        [
            pytest.param(None, None, None, id="nothing is said"),
            pytest.param(ToolChoice(mode="Auto"), None, {"type": "auto"}, id="Auto"),
            pytest.param(ToolChoice(mode="None"), False, {"type": "none"}, id="None"),
            pytest.param(ToolChoice(mode="Required"), None, {"type": "any"}, id="Required"),
            pytest.param(
                ToolChoice(mode="Tool", tool="weather"),
                True,
                {"type": "tool", "name": "weather", "disable_parallel_tool_use": False},
                id="Tool",
            ),
            pytest.param(None, False, {"type": "auto", "disable_parallel_tool_use": True}, id="one call at a time"),
        ],
    )
    def test_tool_choice(self, choice: ToolChoice | None, parallel: bool | None, expected: Json | None) -> None:
        body = make_request(request(tools=[WEATHER], tool_choice=choice, parallel_tool_calls=parallel))
        assert body.get("tool_choice") == expected
        assert is_as_the_sdk_wants(body)

    def test_an_agent_without_tools_that_was_handed_a_conversation_with_some(self) -> None:
        body = make_request(
            request(messages=[user(), said(CALL), results(RESULT)], tool_choice=ToolChoice(mode="Auto"))
        )
        assert body["tool_choice"] == {"type": "none"}
        assert [tool["name"] for tool in body["tools"]] == ["weather"]
        assert is_as_the_sdk_wants(body)

    @pytest.mark.parametrize(
        ("schema", "expected"),
        [
            pytest.param({}, {"type": "object"}, id="no type"),
            pytest.param(
                {"type": "object", "anyOf": [{"required": ["a"]}], "properties": {"a": {"anyOf": []}}},
                {"type": "object", "properties": {"a": {"anyOf": []}}},
                id="alternatives at the top",
            ),
        ],
    )
    def test_a_tools_schema(self, schema: Json, expected: Json) -> None:
        (tool,) = make_request(request(tools=[ToolSpec("weather", "", schema)]))["tools"]
        assert tool["input_schema"] == expected

    @pytest.mark.parametrize(
        "sent",
        [
            pytest.param('{"a": "\\ud83d"}', id="half a character"),
            pytest.param('{"a":' * 5000 + "1" + "}" * 5000, id="deeper than the stack"),
            pytest.param('{"a": NaN}', id="no number"),
            pytest.param('{"a": 1e999}', id="a number without end"),
            pytest.param('{"a": ' + "9" * 5000 + "}", id="a number of 5,000 digits"),
            pytest.param("[1]", id="no object"),
        ],
    )
    def test_what_cannot_be_sent_is_left_out_for_no_later_call_could_be_made(self, sent: str) -> None:
        thought = OpaquePart(provider=CLAUDE.provider, model=CLAUDE.model, data=sent)
        call = CALL.model_copy(update={"arguments": sent})
        (_, assistant, _) = make_messages([user(), said(thought, call), results(RESULT)], CLAUDE)
        assert assistant["content"] == [{"type": "tool_use", "id": "call_1_0", "name": "weather", "input": {}}]

    def test_what_is_cached_ends_with_the_system_prompt_and_the_last_two_user_messages(self) -> None:
        spoken = [user(), said(CALL), results(RESULT), said(TextPart(text="Sunny.")), user("Thanks.")]
        body = make_request(request(instructions="Be brief.", tools=[WEATHER], messages=spoken))
        marked = [block for message in body["messages"] for block in message["content"] if "cache_control" in block]
        assert marked == [{**TOOL_RESULT, **CACHE}, {**text("Thanks."), **CACHE}]
        assert [block for block in [*body["system"], *body["tools"]] if "cache_control" in block] == body["system"]

    def test_without_a_system_prompt_the_tools_are_cached(self) -> None:
        body = make_request(request(instructions=" ", tools=[WEATHER]))
        assert "system" not in body
        assert body["tools"][-1]["cache_control"] == CACHE["cache_control"]


def message(*content: Json, stop_reason: str | None = "end_turn", **more: Any) -> ClaudeMessage:
    """Return a message as the SDK makes it: without checks."""
    return ClaudeMessage.construct(
        **{
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-sonnet-5",
            "content": list(content),
            "stop_reason": stop_reason,
            "usage": {"input_tokens": 12, "output_tokens": 3},
            **more,
        }
    )


USAGE = TokenUsage(12, 3)
NO = TextPart(text="No.")
ANSWERED = ModelAnswer(parts=[NO], usage=USAGE)
CALLED = ModelAnswer(parts=[NO, RequestedCall("weather", '{"city": "Ubud"}')], usage=USAGE)
UNKNOWN_BLOCK = {"type": "dream", "of": "rain"}


def failed(reason: Reason, words: str) -> ModelAnswer:
    return ModelAnswer(parts=[NO], usage=USAGE, failure=Failure(reason=reason, message=words))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(message(text("No.")), ANSWERED, id="end_turn"),
        pytest.param(message(text("No."), stop_reason="stop_sequence"), ANSWERED, id="stop_sequence"),
        pytest.param(message(text("No."), TOOL_USE, stop_reason="tool_use"), CALLED, id="tool_use"),
        pytest.param(message(text("No."), TOOL_USE, stop_reason="tired"), CALLED, id="a reason that is new"),
        pytest.param(
            message(text("No."), SERVER_CALL, stop_reason="pause_turn"),
            ModelAnswer(parts=[NO, opaque(SERVER_CALL)], usage=USAGE, call_again=True),
            id="pause_turn",
        ),
        pytest.param(
            message(THOUGHT, text("No."), TOOL_USE, stop_reason="max_tokens"),
            failed(Reason.OUTPUT_TRUNCATED, "The model stopped at its output limit; raise parameters.maxOutputTokens"),
            id="max_tokens: neither cut calls nor cut thoughts",
        ),
        pytest.param(
            message(text("No."), stop_reason="refusal"),
            failed(Reason.MODEL_REFUSED, "The model refused to answer"),
            id="refusal",
        ),
        pytest.param(
            message(
                text("No."),
                stop_reason="refusal",
                stop_details={"type": "refusal", "category": "bio", "explanation": "Not this."},
            ),
            failed(Reason.MODEL_REFUSED, "Not this."),
            id="refusal, explained",
        ),
        pytest.param(
            message(text("No."), stop_reason="model_context_window_exceeded"),
            failed(Reason.CONTEXT_LENGTH, "The conversation has filled the model's context window"),
            id="model_context_window_exceeded",
        ),
        pytest.param(
            message(THOUGHT, text("No."), {"type": "redacted_thinking", "data": "xyz"}, UNKNOWN_BLOCK),
            ModelAnswer(
                parts=[
                    opaque(THOUGHT),
                    NO,
                    opaque({"type": "redacted_thinking", "data": "xyz"}),
                    opaque(UNKNOWN_BLOCK),
                ],
                usage=USAGE,
            ),
            id="what is not ours, verbatim and in its place",
        ),
        pytest.param(message(text("")), ModelAnswer(parts=[], usage=USAGE), id="nothing"),
    ],
)
def test_a_message_is_read(answer: ClaudeMessage, expected: ModelAnswer) -> None:
    read = read_message(answer, CLAUDE)
    assert replace(read, parts=[in_one_order(part) for part in read.parts]) == expected


def in_one_order(part: TextPart | OpaquePart | RequestedCall) -> TextPart | OpaquePart | RequestedCall:
    """Return a part with the keys of its block in the order in which `opaque` writes them."""
    return opaque(json.loads(part.data), part.provider, part.model) if isinstance(part, OpaquePart) else part


def test_every_stop_reason_of_the_sdk_has_a_meaning() -> None:
    assert set(STOPS) == set(get_args(StopReason))


def test_an_answer_without_an_end_was_broken_off() -> None:
    with pytest.raises(ValueError, match="broke its answer off"):
        read_message(message(text("N"), stop_reason=None), CLAUDE)


def test_tokens_of_the_cache_were_sent_too() -> None:
    usage = {
        "input_tokens": 12,
        "output_tokens": 3,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 20,
    }
    assert read_message(message(text("No."), usage=usage), CLAUDE).usage == TokenUsage(132, 3, 100, 20)

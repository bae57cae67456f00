"""Chat Completions: what is sent is what the SDK's types allow, and whatever comes back is understood or refused."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import pytest
from dalang_api.contract import (
    Failure,
    Message,
    ModelSnapshot,
    OpaquePart,
    TextPart,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from dalang_api.v1alpha1.conditions import Reason
from dalang_worker.conductor.memory import summary_message
from dalang_worker.providers import Credentials, ModelAnswer, ModelRequest, RequestedCall, TokenUsage, ToolSpec
from dalang_worker.providers.chat_completions import make_messages, make_request, read_completion, read_error
from openai.types.chat.chat_completion import Choice
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter

Json = dict[str, Any]

OWN, COMPATIBLE = True, False
"""Whose the endpoint is."""

USER = Message(role="user", parts=[TextPart(text="Will it rain?")])
CALL = ToolCallPart(call_id="call_1_0", tool="weather", arguments='{"city": "Ubud"}')
OTHER = ToolCallPart(call_id="call_1_1", tool="weather", arguments="oops")
THOUGHT = OpaquePart(provider="Anthropic", model="claude", data='{"type": "thinking"}')
RESULTS = Message(
    role="tool",
    parts=[
        ToolResultPart(call_id="call_1_0", tool="weather", output="sunny"),
        ToolResultPart(call_id="call_1_1", tool="weather", output="no", is_error=True),
    ],
)
WEATHER = ToolSpec("weather", "Tell the weather.", {"type": "object", "properties": {"city": {"type": "string"}}})


def said(*parts: TextPart | ToolCallPart | OpaquePart) -> Message:
    return Message(role="assistant", parts=list(parts), sender="support")


def request(**more: Any) -> ModelRequest:
    return ModelRequest(
        **{
            "model": ModelSnapshot(name="gpt", uid="u", generation=1, provider="OpenAI", model="gpt-5"),
            "credentials": Credentials(),
            "instructions": None,
            "messages": [USER],
            **more,
        }
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
    adapter: TypeAdapter[Any] = TypeAdapter(CompletionCreateParamsNonStreaming)
    return bool(plain(adapter.validate_python(body)) == body)


class TestRequest:
    def test_holds_only_what_is_set(self) -> None:
        assert make_request(request(), OWN) == {
            "model": "gpt-5",
            "messages": [{"role": "user", "content": "Will it rain?"}],
        }

    def test_holds_all_that_is_set(self) -> None:
        full = request(instructions="Be brief.", tools=[WEATHER], temperature=0.0, max_output_tokens=100)
        body = make_request(full, COMPATIBLE)
        assert body == {
            "model": "gpt-5",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Will it rain?"},
            ],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "weather",
                        "description": "Tell the weather.",
                        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
                    },
                }
            ],
            "temperature": 0.0,
            "max_tokens": 100,
        }

    @pytest.mark.parametrize(
        ("is_openai", "name"),
        [
            pytest.param(OWN, "max_completion_tokens", id="OpenAI's reasoning models refuse the old name"),
            pytest.param(COMPATIBLE, "max_tokens", id="others know only the old name"),
        ],
    )
    def test_the_output_limit_has_the_name_that_the_endpoint_knows(self, is_openai: bool, name: str) -> None:
        body = make_request(request(max_output_tokens=100), is_openai)
        assert {key: value for key, value in body.items() if "max" in key} == {name: 100}

    @pytest.mark.parametrize("is_openai", [OWN, COMPATIBLE])
    @pytest.mark.parametrize(
        "messages",
        [
            pytest.param([USER], id="a question"),
            pytest.param([USER, said(TextPart(text="No.")), USER], id="a conversation"),
            pytest.param([USER, said(CALL, OTHER), RESULTS], id="tool calls"),
            pytest.param([USER, said(TextPart(text="Let me see."), CALL, OTHER), RESULTS], id="words and tool calls"),
            pytest.param([USER, said(TextPart(text=""))], id="an empty answer"),
            pytest.param([USER, USER, said(TextPart(text="No."))], id="a summary, then a question"),
            pytest.param([USER, said(THOUGHT, TextPart(text="No."))], id="a thought of another provider"),
        ],
    )
    def test_is_as_the_sdk_wants_it(self, is_openai: bool, messages: list[Message]) -> None:
        full = request(
            instructions="Be brief.",
            messages=messages,
            tools=[WEATHER],
            tool_choice=ToolChoice(mode="Tool", tool="weather"),
            parallel_tool_calls=False,
            output_schema={"type": "object"},
            temperature=0.5,
            max_output_tokens=9,
        )
        assert is_as_the_sdk_wants(make_request(full, is_openai))

    @pytest.mark.parametrize(
        ("choice", "expected"),
        [
            pytest.param(ToolChoice(mode="Auto"), "auto", id="Auto"),
            pytest.param(ToolChoice(mode="None"), "none", id="None"),
            pytest.param(ToolChoice(mode="Required"), "required", id="Required"),
            pytest.param(
                ToolChoice(mode="Tool", tool="weather"),
                {"type": "function", "function": {"name": "weather"}},
                id="Tool",
            ),
        ],
    )
    def test_tool_choice(self, choice: ToolChoice, expected: Any) -> None:
        assert make_request(request(tools=[WEATHER], tool_choice=choice), OWN)["tool_choice"] == expected

    @pytest.mark.parametrize("parallel", [True, False])
    def test_parallel_calls(self, parallel: bool) -> None:
        body = make_request(request(tools=[WEATHER], parallel_tool_calls=parallel), OWN)
        assert body["parallel_tool_calls"] is parallel

    def test_without_tools_nothing_is_said_about_them(self) -> None:
        body = make_request(request(tool_choice=ToolChoice(mode="Auto"), parallel_tool_calls=True), OWN)
        assert body.keys() == {"model", "messages"}

    def test_an_answer_by_schema(self) -> None:
        body = make_request(request(output_schema={"type": "object"}), OWN)
        assert body["response_format"] == {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        }

    def test_at_azure_the_model_is_the_deployment(self) -> None:
        azure = ModelSnapshot(
            name="gpt", uid="u", generation=1, provider="AzureOpenAI", model="gpt-5", deployment="our-gpt"
        )
        assert make_request(request(model=azure), OWN)["model"] == "our-gpt"

    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(
                {"model": "m", "messages": [{"role": "user", "content": "x", "sender": "me"}]}, id="unknown key"
            ),
            pytest.param({"model": "m", "messages": [], "maxTokens": 3}, id="unknown parameter"),
        ],
    )
    def test_and_what_is_not_would_be_noticed(self, body: Json) -> None:
        assert not is_as_the_sdk_wants(body)

    def test_each_result_is_a_message_right_after_its_call(self) -> None:
        assert make_messages(None, [said(TextPart(text="Let me see."), CALL, OTHER), RESULTS]) == [
            {
                "role": "assistant",
                "content": "Let me see.",
                "tool_calls": [
                    {
                        "id": "call_1_0",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Ubud"}'},
                    },
                    {"id": "call_1_1", "type": "function", "function": {"name": "weather", "arguments": "oops"}},
                ],
            },
            {"role": "tool", "tool_call_id": "call_1_0", "content": "sunny"},
            {"role": "tool", "tool_call_id": "call_1_1", "content": "no"},
        ]

    def test_what_the_user_says_after_a_summary_is_joined_to_it(self) -> None:
        """Chat templates such as Gemma's and Mistral's refuse two messages of the user in a row."""
        summary = summary_message("Ada lives in Kuta.")
        assert make_messages("Be brief.", [summary, USER, said(TextPart(text="No.")), USER]) == [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": "Summary of the conversation so far:\nAda lives in Kuta.\n\nWill it rain?",
            },
            {"role": "assistant", "content": "No."},
            {"role": "user", "content": "Will it rain?"},
        ]

    def test_calls_without_words_have_no_content(self) -> None:
        (message,) = make_messages(None, [said(CALL)])
        assert message["content"] is None


def completion(message: Json, finish_reason: str | None = "stop", **more: Any) -> bytes:
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", **message}}
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    return json.dumps({"id": "c1", "object": "chat.completion", "choices": [choice], "usage": usage, **more}).encode()


def calling(name: str, arguments: Any) -> Json:
    return {"id": "call_0", "type": "function", "function": {"name": name, "arguments": arguments}}


def answer(text: str, *calls: tuple[str, str], failure: tuple[Reason, str] | None = None) -> ModelAnswer:
    texts = [TextPart(text=text)] if text else []
    return ModelAnswer(
        parts=[*texts, *(RequestedCall(*call) for call in calls)],
        usage=TokenUsage(input_tokens=12, output_tokens=3),
        failure=Failure(reason=failure[0], message=failure[1]) if failure else None,
    )


TRUNCATED = (Reason.OUTPUT_TRUNCATED, "The model stopped at its output limit; raise parameters.maxOutputTokens")
FILTERED = (Reason.CONTENT_FILTER, "The provider's content filter stopped the answer")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(completion({"content": "No."}), answer("No."), id="stop: an answer"),
        pytest.param(completion({"content": None}), answer(""), id="stop: with nothing said"),
        pytest.param(completion({}), answer(""), id="stop: with no content at all"),
        pytest.param(completion({"content": "No."}, None), answer("No."), id="no reason given"),
        pytest.param(completion({"content": "No."}, "eos"), answer("No."), id="a reason of another server"),
        pytest.param(
            completion({"content": None, "tool_calls": [calling("weather", '{"city":"Ubud"}')]}, "tool_calls"),
            answer("", ("weather", '{"city":"Ubud"}')),
            id="tool_calls",
        ),
        pytest.param(
            completion({"content": "Hm.", "tool_calls": [calling("a", "{}"), calling("b", "{}")]}, "stop"),
            answer("Hm.", ("a", "{}"), ("b", "{}")),
            id="tool calls, though the reason is another (Ollama)",
        ),
        pytest.param(
            completion({"content": "x", "tool_calls": []}, "tool_calls"), answer("x"), id="no calls after all"
        ),
        pytest.param(
            completion({"tool_calls": [{"id": "c", "function": {"name": "a", "arguments": "{}"}}]}, "tool_calls"),
            answer("", ("a", "{}")),
            id="a tool call without a type",
        ),
        pytest.param(
            completion({"tool_calls": [calling("a", {"city": "Ubud"})]}, "tool_calls"),
            answer("", ("a", '{"city":"Ubud"}')),
            id="arguments as an object",
        ),
        pytest.param(completion({"tool_calls": [calling("a", None)]}), answer("", ("a", "")), id="no arguments"),
        pytest.param(
            completion({"tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "a", "input": "x"}}]}),
            answer(""),
            id="a tool call of a kind that was not offered",
        ),
        pytest.param(completion({"content": "Once"}, "length"), answer("Once", failure=TRUNCATED), id="length"),
        pytest.param(
            completion({"content": "Once", "tool_calls": [calling("a", '{"ci')]}, "length"),
            answer("Once", failure=TRUNCATED),
            id="length: a call that was cut is not run",
        ),
        pytest.param(
            completion({"content": None}, "content_filter"), answer("", failure=FILTERED), id="content_filter"
        ),
        pytest.param(
            completion({"content": None, "refusal": "I can't help with that."}),
            answer("", failure=(Reason.MODEL_REFUSED, "I can't help with that.")),
            id="a refusal",
        ),
        pytest.param(
            completion(
                {"content": [{"type": "thinking"}, {"type": "text", "text": "N"}, {"type": "text", "text": "o"}]}
            ),
            answer("No"),
            id="content in parts (Mistral)",
        ),
        pytest.param(
            b'{"choices":[{"message":{"content":"a\\ud83eb"}}],"usage":{"prompt_tokens":12,"completion_tokens":3}}',
            answer("a?b"),
            id="half an emoji",
        ),
    ],
)
def test_a_completion_is_read(body: bytes, expected: ModelAnswer) -> None:
    assert read_completion(body) == expected


def test_every_finish_reason_of_the_sdk_is_among_them() -> None:
    """`function_call` is of functions, which tools have replaced; none are offered."""
    known = get_args(Choice.model_fields["finish_reason"].annotation)
    assert set(known) == {"stop", "length", "tool_calls", "content_filter", "function_call"}


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        pytest.param(None, TokenUsage(), id="none"),
        pytest.param({}, TokenUsage(), id="empty"),
        pytest.param({"prompt_tokens": None, "completion_tokens": 3}, TokenUsage(0, 3), id="half of it"),
        pytest.param(
            {
                "prompt_tokens": 100,
                "completion_tokens": 30,
                "prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 32},
                "completion_tokens_details": {"reasoning_tokens": 20},
            },
            TokenUsage(100, 30, cache_read_tokens=64, cache_write_tokens=32),
            id="of the cache and of reasoning, both counted already",
        ),
        pytest.param(
            {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": None},
            TokenUsage(5, 3),
            id="no details",
        ),
    ],
)
def test_usage(usage: Json | None, tokens: TokenUsage) -> None:
    assert read_completion(completion({"content": "No."}, usage=usage)).usage == tokens


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b"<html>\n<h1>Sign in</h1>\n</html>", "<html> <h1>Sign in</h1> </html>", id="a page"),
        pytest.param(b"", "(no words)", id="nothing"),
        pytest.param(b"null", "None", id="null"),
        pytest.param(b"[1]", "[1]", id="a list"),
        pytest.param(b'{"choices": []}', "{'choices': []}", id="no choices"),
        pytest.param(b'{"choices": [{}]}', "{'choices': [{}]}", id="a choice without a message"),
        pytest.param(b'{"error": {"message": "overloaded", "code": 502}}', "overloaded", id="an error (OpenRouter)"),
        pytest.param(b"\xff\xfe", "\N{REPLACEMENT CHARACTER}" * 2, id="bytes"),
    ],
)
def test_what_is_no_completion_is_an_error_in_the_words_of_the_endpoint(body: bytes, words: str) -> None:
    with pytest.raises(ValueError, match="answered 200 with no chat completion") as raised:
        read_completion(body)
    assert str(raised.value).endswith(f": {words}")


def test_an_answer_that_was_broken_off_is_an_error() -> None:
    with pytest.raises(ValueError, match="insufficient_system_resource"):
        read_completion(completion({"content": "Once upon a"}, "insufficient_system_resource"))


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        pytest.param(
            b'{"error": {"message": "Incorrect API key.", "code": "invalid_api_key"}}',
            None,
            "Incorrect API key.",
            id="OpenAI",
        ),
        pytest.param(
            b'{"error": {"message": "No more.", "type": "insufficient_quota", "code": null}}',
            "insufficient_quota",
            "No more.",
            id="the code in the type",
        ),
        pytest.param(b'{"error": {"message": "x", "code": 404}}', None, "x", id="a code that is a number"),
        pytest.param(b'{"error": "model not found"}', None, "model not found", id="a text (Ollama)"),
        pytest.param(b'{"message": "no Route matched"}', None, "no Route matched", id="a gateway (Kong)"),
        pytest.param(b'{"detail": "Not Found"}', None, "Not Found", id="FastAPI (vLLM)"),
        pytest.param(b"<html>\n  502 Bad Gateway</html>", None, "<html> 502 Bad Gateway</html>", id="a page"),
        pytest.param(b"", None, "(no words)", id="nothing"),
        pytest.param(b'{"error": {}}', None, "{}", id="an empty error"),
        pytest.param(b'"\\ud800"', None, "\ud800", id="half an emoji"),
    ],
)
def test_an_error_is_read(body: bytes, code: str | None, words: str) -> None:
    assert read_error(body) == (code, words)


def test_an_answer_deeper_than_the_stack_is_read_as_a_page() -> None:
    body = b'{"error":' * 50_000
    assert read_error(body)[1].startswith('{"error":{"error":')
    with pytest.raises(ValueError, match="answered 200 with no chat completion"):
        read_completion(body)

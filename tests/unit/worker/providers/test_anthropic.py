"""Provider Anthropic through the SDK's real client: streams, whole and broken, and what errors come to."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from dalang_api.contract import IdentitySnapshot, Message, ModelSnapshot, OpaquePart, TextPart
from dalang_api.v1alpha1.conditions import Reason
from dalang_worker.providers import (
    CallFailure,
    Credentials,
    ModelCallError,
    ModelRequest,
    RequestedCall,
    TokenUsage,
    ToolSpec,
    Verdict,
)
from dalang_worker.providers.anthropic import AnthropicProvider, ToldError, classify, has_schemas, read_error

from tests.unit.worker.providers.servers import Endpoint, Json, ScriptedModel

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
KEY = "sk-ant-very-secret"
TOKEN = "eyJ.the-pods-own.token"
EXCHANGED = "sk-ant-oat-exchanged"
MODEL = "claude-sonnet-5"
RETRY = CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING)
FINAL = CallFailure(Verdict.FINAL, Reason.MODEL_FAILED)
SCHEMA: Json = {"type": "object", "properties": {}, "additionalProperties": False}


def model(base_url: str | None, **more: Any) -> ModelSnapshot:
    return ModelSnapshot(
        **{
            "name": "m",
            "uid": "u",
            "generation": 1,
            "provider": "Anthropic",
            "model": MODEL,
            "base_url": base_url,
            **more,
        }
    )


def request(base_url: str, credentials: Credentials | None = None, **more: Any) -> ModelRequest:
    return ModelRequest(
        model=model(base_url, **more),
        credentials=credentials or Credentials(api_key=KEY),
        instructions="Be brief.",
        messages=[Message(role="user", parts=[TextPart(text="Will it rain?")])],
        tools=[ToolSpec("weather", "Tell the weather.", {"type": "object"})],
    )


def event(kind: str, **more: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n"


START = event(
    "message_start",
    message={
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [],
        "stop_reason": None,
        "usage": {"input_tokens": 12, "output_tokens": 1, "cache_read_input_tokens": 100},
    },
)
BEGUN = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
TEXT = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "No."})
CALL = event(
    "content_block_start", index=0, content_block={"type": "tool_use", "id": "t", "name": "weather", "input": {}}
)
BAD_JSON = event("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": "}}"})
STOP = event("content_block_stop", index=0)
END = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3}) + event("message_stop")


@pytest.fixture
async def provider() -> AsyncIterator[AnthropicProvider]:
    provider = AnthropicProvider()
    yield provider
    await provider.close()


async def failing(provider: AnthropicProvider, asked: ModelRequest) -> ModelCallError:
    with pytest.raises(ModelCallError) as raised:
        await provider.complete(asked)
    assert raised.value.__cause__ is None
    for secret in (KEY, TOKEN, EXCHANGED):
        assert secret not in str(raised.value)
    return raised.value


class TestScriptedModel:
    async def test_a_turn_with_thoughts_and_calls_and_the_next(
        self, provider: AnthropicProvider, scripted: ScriptedModel
    ) -> None:
        """What comes back is sent again: the scripted model refuses a thought that is not as it was."""
        await scripted.script(
            MODEL,
            {
                "thinking": {"text": "Where is Ubud?"},
                "text": "I look.",
                "toolCalls": [{"name": "weather", "arguments": {"city": "Ubud"}}],
            },
            {"text": "Sunny."},
        )
        asked = request(f"{scripted.url}/anthropic")
        answer = await provider.complete(asked)
        thought, words, call = answer.parts
        assert isinstance(thought, OpaquePart)
        assert json.loads(thought.data)["thinking"] == "Where is Ubud?"
        assert (words, call) == (TextPart(text="I look."), RequestedCall("weather", '{"city": "Ubud"}'))
        assert answer.usage.input_tokens > 0

        asked.messages.extend(_turn(thought, "call_1_0"))
        assert (await provider.complete(asked)).parts == [TextPart(text="Sunny.")]
        first, second = await scripted.requests()
        assert (first["api"], first["authorization"], first["body"]["stream"]) == ("messages", True, True)
        assert second["body"]["messages"][1]["content"][0] == json.loads(thought.data)

    @pytest.mark.parametrize(
        ("broken", "words"),
        [
            pytest.param(
                {"errorMidStream": {"type": "overloaded_error", "message": "Busy."}}, "529: Busy.", id="overloaded"
            ),
            pytest.param({"dropAfter": 3}, "", id="dropped"),
        ],
    )
    async def test_a_stream_that_breaks_passes(
        self, provider: AnthropicProvider, scripted: ScriptedModel, broken: Json, words: str
    ) -> None:
        await scripted.script(MODEL, {"text": "No, not at all.", **broken})
        error = await failing(provider, request(f"{scripted.url}/anthropic"))
        assert error.failure == RETRY
        assert words in str(error)


def _turn(thought: OpaquePart, call_id: str) -> list[Message]:
    call = {"type": "toolCall", "call_id": call_id, "tool": "weather", "arguments": '{"city": "Ubud"}'}
    result = {"type": "toolResult", "call_id": call_id, "tool": "weather", "output": "sunny"}
    said = {"role": "assistant", "parts": [thought.model_dump(), {"type": "text", "text": "I look."}, call]}
    return [Message.model_validate(said), Message.model_validate({"role": "tool", "parts": [result]})]


class TestStreams:
    async def test_an_answer(self, provider: AnthropicProvider, endpoint: Endpoint) -> None:
        endpoint.stream(START, BEGUN, TEXT, STOP, END)
        answer = await provider.complete(request(endpoint.url))
        assert (answer.parts, answer.usage) == ([TextPart(text="No.")], TokenUsage(112, 3, cache_read_tokens=100))
        (asked,) = endpoint.asked
        assert (asked.path, asked.headers["Authorization"]) == ("/v1/messages", f"Bearer {KEY}")

    @pytest.mark.parametrize(
        ("lines", "words"),
        [
            pytest.param([], "answered 200 with no message", id="nothing"),
            pytest.param(["<h1>Sign in</h1>"], "answered 200 with no message", id="a page"),
            pytest.param([START, BEGUN, TEXT], "broke its answer off", id="no end"),
            pytest.param([START, "event: content_block_start\ndata: {\n\n"], "", id="half an event"),
            pytest.param(
                [START, CALL, BAD_JSON, STOP, END], "Unable to parse tool parameter JSON", id="a call in no JSON"
            ),
        ],
    )
    async def test_what_is_no_message_passes(
        self, provider: AnthropicProvider, endpoint: Endpoint, lines: list[str], words: str
    ) -> None:
        endpoint.stream(*lines)
        error = await failing(provider, request(endpoint.url))
        assert error.failure == RETRY
        assert words in str(error)

    @pytest.mark.parametrize(
        ("kind", "failure"),
        [
            pytest.param("overloaded_error", RETRY, id="overloaded"),
            pytest.param("rate_limit_error", RETRY, id="too many"),
            pytest.param("api_error", RETRY, id="a fault"),
            pytest.param("timeout_error", RETRY, id="too slow"),
            pytest.param("novel_error", RETRY, id="a new one is the server's"),
            pytest.param("invalid_request_error", FINAL, id="a bad request"),
            pytest.param("permission_error", FINAL, id="not allowed"),
            pytest.param("billing_error", FINAL, id="not paid"),
        ],
    )
    async def test_an_error_in_mid_stream(
        self, provider: AnthropicProvider, endpoint: Endpoint, kind: str, failure: CallFailure
    ) -> None:
        endpoint.stream(START, BEGUN, event("error", error={"type": kind, "message": f"Not with {KEY}."}))
        error = await failing(provider, request(endpoint.url))
        assert error.failure == failure
        assert "Not with [key]." in str(error)

    async def test_a_broken_connection_passes(self, provider: AnthropicProvider, endpoint: Endpoint) -> None:
        error = await failing(provider, request(endpoint.url))
        assert error.failure == RETRY
        assert endpoint.url in str(error)

    async def test_a_prompt_that_is_too_long(self, provider: AnthropicProvider, endpoint: Endpoint) -> None:
        words = "prompt is too long: 205000 tokens > 200000 maximum"
        endpoint.tell(400, {"type": "error", "error": {"type": "invalid_request_error", "message": words}})
        error = await failing(provider, request(endpoint.url))
        assert error.failure == CallFailure(Verdict.FINAL, Reason.CONTEXT_LENGTH)
        assert str(error) == f"model {MODEL}: 400: {words}"

    async def test_when_to_come_again(self, provider: AnthropicProvider, endpoint: Endpoint) -> None:
        endpoint.tell(529, {"error": {"type": "overloaded_error", "message": "Busy."}}, retry_after="7")
        error = await failing(provider, request(endpoint.url))
        assert error.failure == CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING, 7.0)


class TestIdentity:
    @pytest.fixture
    def asked(self, endpoint: Endpoint, tmp_path: Path) -> ModelRequest:
        (tmp_path / "token").write_text(f"{TOKEN}\n")
        identity = IdentitySnapshot(
            audience="anthropic", parameters={"federationRuleID": "fdrl_1", "organizationID": "org-1"}
        )
        return request(endpoint.url, Credentials(identity_token=tmp_path / "token"), identity=identity)

    async def test_the_token_is_exchanged_once(
        self, provider: AnthropicProvider, endpoint: Endpoint, asked: ModelRequest
    ) -> None:
        endpoint.tell(body={"access_token": EXCHANGED, "expires_in": 3600, "token_type": "Bearer"})
        for _ in range(2):
            endpoint.stream(START, BEGUN, TEXT, STOP, END)
            await provider.complete(asked)
        exchange, *calls = endpoint.asked
        assert (exchange.path, exchange.body["assertion"]) == ("/v1/oauth/token", TOKEN)
        assert (exchange.body["federation_rule_id"], exchange.body["organization_id"]) == ("fdrl_1", "org-1")
        assert [call.headers["Authorization"] for call in calls] == [f"Bearer {EXCHANGED}"] * 2

    @pytest.mark.parametrize(
        ("status", "failure"),
        [
            pytest.param(400, FINAL, id="a bad token"),
            pytest.param(401, FINAL, id="no rule fits"),
            pytest.param(403, FINAL, id="not allowed"),
            pytest.param(503, RETRY, id="the exchange is down"),
        ],
    )
    async def test_an_identity_that_is_refused(
        self,
        provider: AnthropicProvider,
        endpoint: Endpoint,
        asked: ModelRequest,
        status: int,
        failure: CallFailure,
    ) -> None:
        for _ in range(2):  # the SDK tries once more after 401
            endpoint.tell(status, {"error": "invalid_grant", "error_description": f"no trust in {TOKEN}"})
        error = await failing(provider, asked)
        assert error.failure == failure
        assert "no trust in [key]" in str(error)

    async def test_an_exchange_without_an_answer_passes(self, provider: AnthropicProvider, asked: ModelRequest) -> None:
        assert (await failing(provider, asked)).failure == RETRY

    async def test_a_token_that_is_not_there_yet_passes(
        self, provider: AnthropicProvider, asked: ModelRequest, tmp_path: Path
    ) -> None:
        (tmp_path / "token").unlink()
        error = await failing(provider, asked)
        assert error.failure == RETRY
        assert "Identity token file not found" in str(error)

    async def test_an_exchanged_token_that_is_repeated_is_not_told(
        self, provider: AnthropicProvider, endpoint: Endpoint, asked: ModelRequest
    ) -> None:
        endpoint.tell(body={"access_token": EXCHANGED, "expires_in": 3600})
        endpoint.tell(403, {"error": {"type": "permission_error", "message": f"{EXCHANGED} may not"}})
        error = await failing(provider, asked)
        assert (error.failure, str(error)) == (FINAL, f"model {MODEL}: 403: [key] may not")


@pytest.mark.parametrize(
    ("base_url", "name", "expected"),
    [
        pytest.param(None, MODEL, True, id="Anthropic's own"),
        pytest.param("https://api.anthropic.com", MODEL, True, id="by its name"),
        pytest.param("https://api.deepseek.com/anthropic", MODEL, False, id="a compatible endpoint"),
        pytest.param(None, "claude-3-haiku-20240307", False, id="an old model"),
    ],
)
def test_who_takes_a_schema(base_url: str | None, name: str, expected: bool) -> None:
    assert AnthropicProvider().takes_schema(model(base_url, model=name), SCHEMA) is expected
    assert not AnthropicProvider().takes_schema(model(base_url, model=name), {"type": "object"})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(
            pytest.param(name, False, id=name)
            for name in (
                *("claude-2.1", "claude-instant-1.2", "claude-3-haiku-20240307", "claude-3-7-sonnet-latest"),
                *("claude-opus-4-20250514", "claude-sonnet-4-0", "claude-4-opus-20250514", "anthropic.claude-v2"),
                "us.anthropic.claude-sonnet-4-20250514-v1:0",
            )
        ),
        *(
            pytest.param(name, True, id=name)
            for name in (
                *("claude-opus-4-1-20250805", "claude-sonnet-4-5-20250929", "claude-haiku-4-5", "claude-opus-5-5"),
                *("claude-fable-5", "us.anthropic.claude-opus-4-6-v1:0"),
            )
        ),
    ],
)
def test_which_models_have_structured_outputs(name: str, expected: bool) -> None:
    assert has_schemas(name) is expected


def anthropic_error(kind: str, message: str, code: str | None = None) -> Json:
    details = {"details": {"error_code": code}} if code else {}
    return {"type": "error", "error": {"type": kind, "message": message, **details}, "request_id": "req_1"}


@pytest.mark.parametrize(
    ("status", "headers", "body", "expected"),
    [
        pytest.param(
            401,
            {},
            anthropic_error("authentication_error", "invalid x-api-key"),
            ToldError(401, "authentication_error", "invalid x-api-key"),
            id="Anthropic",
        ),
        pytest.param(
            429,
            {},
            anthropic_error("rate_limit_error", "Limit.", "enforced_spend_limit_reached"),
            ToldError(429, "enforced_spend_limit_reached", "Limit."),
            id="a code is more exact than a type",
        ),
        pytest.param(
            200,
            {},
            anthropic_error("overloaded_error", "Busy."),
            ToldError(529, "overloaded_error", "Busy."),
            id="in mid-stream",
        ),
        pytest.param(
            200,
            {},
            {"type": "error", "error": {"type": "modelStreamErrorException", "message": "Oh."}},
            ToldError(500, "modelstreamerrorexception", "Oh."),
            id="in mid-stream at AWS",
        ),
        pytest.param(200, {}, "garbled", ToldError(500, None, "garbled"), id="in mid-stream, and no JSON"),
        pytest.param(
            429,
            {"x-amzn-errortype": "ThrottlingException:http://internal.amazon.com/coral/"},
            {"message": "Too many requests."},
            ToldError(429, "throttlingexception", "Too many requests."),
            id="AWS",
        ),
        pytest.param(403, {}, {"Message": "Denied."}, ToldError(403, None, "Denied."), id="AWS in capitals"),
        pytest.param(
            400,
            {"x-amzn-errortype": "ValidationException"},
            {"message": "Input is too long for requested model."},
            ToldError(400, "context_length", "Input is too long for requested model."),
            id="too long at AWS",
        ),
        pytest.param(
            400,
            {},
            anthropic_error(
                "invalid_request_error", "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"
            ),
            ToldError(
                400, "context_length", "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"
            ),
            id="too long together with the answer",
        ),
        pytest.param(
            413,
            {},
            anthropic_error("request_too_large", "Request exceeds the maximum size"),
            ToldError(413, "context_length", "Request exceeds the maximum size"),
            id="too large",
        ),
        pytest.param(
            400,
            {},
            anthropic_error("invalid_request_error", "Output blocked by content filtering policy"),
            ToldError(400, "content_filter", "Output blocked by content filtering policy"),
            id="filtered",
        ),
        pytest.param(502, {}, "<h1>Bad\nGateway</h1>", ToldError(502, None, "<h1>Bad Gateway</h1>"), id="a page"),
        pytest.param(500, {}, None, ToldError(500, None, "(no words)"), id="nothing"),
        pytest.param(400, {}, {"error": "no"}, ToldError(400, None, "{'error': 'no'}"), id="an error that is a text"),
    ],
)
def test_an_error_is_read(status: int, headers: dict[str, str], body: object, expected: ToldError) -> None:
    assert read_error(status, headers, body) == expected


@pytest.mark.parametrize(
    ("status", "headers", "kind", "expected"),
    [
        pytest.param(None, {}, None, RETRY, id="no answer"),
        *(pytest.param(status, {}, None, RETRY, id=str(status)) for status in (408, 409, 429, 500, 503, 504, 529)),
        *(pytest.param(status, {}, None, FINAL, id=str(status)) for status in (400, 401, 402, 403, 404, 413, 422)),
        pytest.param(
            529,
            {"retry-after": "20"},
            "overloaded_error",
            CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING, 20.0),
            id="that says when",
        ),
        pytest.param(
            429,
            {"retry-after": "Sun, 01 Mar 2026 12:00:30 GMT"},
            "rate_limit_error",
            CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING, 30.0),
            id="that says at which time",
        ),
        pytest.param(
            400,
            {"x-should-retry": "true", "retry-after-ms": "1500"},
            None,
            CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING, 1.5),
            id="that asks to be called again",
        ),
        pytest.param(503, {"x-should-retry": "false"}, None, FINAL, id="that asks not to be"),
        pytest.param(429, {"x-should-retry": "false"}, "throttlingexception", FINAL, id="that asks not to be, at AWS"),
        pytest.param(429, {"retry-after": "20"}, "enforced_spend_limit_reached", FINAL, id="a budget that is spent"),
        pytest.param(429, {}, "contract_spend_limit_reached", FINAL, id="a contract's"),
        pytest.param(429, {}, "ramp_limit_exceeded", RETRY, id="too steep a rise"),
        pytest.param(402, {}, "billing_error", FINAL, id="not paid"),
        pytest.param(400, {}, "throttlingexception", RETRY, id="AWS throttles with 400 as well"),
        pytest.param(424, {}, "modelerrorexception", RETRY, id="the model failed, at AWS"),
        pytest.param(400, {}, "servicequotaexceededexception", FINAL, id="a quota at AWS"),
        pytest.param(400, {}, "context_length", CallFailure(Verdict.FINAL, Reason.CONTEXT_LENGTH), id="400: too long"),
        pytest.param(400, {}, "content_filter", CallFailure(Verdict.FINAL, Reason.CONTENT_FILTER), id="400: filtered"),
    ],
)
def test_classify(status: int | None, headers: dict[str, str], kind: str | None, expected: CallFailure) -> None:
    assert classify(status, headers, kind, NOW) == expected

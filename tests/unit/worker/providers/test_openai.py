"""Providers OpenAI and AzureOpenAI through the SDK's real client: what is sent, whose key, and what an error comes to."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from dalang_api.contract import IdentitySnapshot, Message, ModelSnapshot, TextPart
from dalang_api.v1alpha1.conditions import Reason
from dalang_worker.providers import (
    CallFailure,
    Credentials,
    ModelAnswer,
    ModelCallError,
    ModelRequest,
    RequestedCall,
    TokenUsage,
    ToolSpec,
    Verdict,
)
from dalang_worker.providers.openai import OpenAIProvider, classify, is_openai
from openai.auth import WorkloadIdentityAuth

from tests.unit.worker.providers.servers import Endpoint, Json, ScriptedModel

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
KEY = "sk-very-secret"
TOKEN = "eyJ.the-pods-own.token"
EXCHANGED = "exchanged-access-token"
SCHEMA: Json = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
COMPLETION: Json = {
    "choices": [{"message": {"content": "No."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 12, "completion_tokens": 3},
}
ANSWER = ModelAnswer(parts=[TextPart(text="No.")], usage=TokenUsage(12, 3))
RETRY = CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING)
FINAL = CallFailure(Verdict.FINAL, Reason.MODEL_FAILED)


def model(base_url: str | None, **more: Any) -> ModelSnapshot:
    return ModelSnapshot(
        **{"name": "m", "uid": "u", "generation": 1, "provider": "OpenAI", "model": "gpt", "base_url": base_url, **more}
    )


def request(base_url: str, credentials: Credentials | None = None, **more: Any) -> ModelRequest:
    return ModelRequest(
        model=model(base_url, **more),
        credentials=credentials or Credentials(api_key=KEY),
        instructions=None,
        messages=[Message(role="user", parts=[TextPart(text="Will it rain?")])],
    )


@pytest.fixture
async def provider() -> AsyncIterator[OpenAIProvider]:
    provider = OpenAIProvider()
    yield provider
    await provider.close()


async def failing(provider: OpenAIProvider, asked: ModelRequest) -> ModelCallError:
    with pytest.raises(ModelCallError) as raised:
        await provider.complete(asked)
    assert raised.value.__cause__ is None
    for secret in (KEY, TOKEN, EXCHANGED):
        assert secret not in str(raised.value)
    return raised.value


class TestOpenAI:
    async def test_an_answer(self, provider: OpenAIProvider, endpoint: Endpoint) -> None:
        endpoint.tell(body=COMPLETION)
        assert await provider.complete(request(f"{endpoint.url}/v1")) == ANSWER
        (asked,) = endpoint.asked
        assert (asked.path, asked.headers["Authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
        assert asked.body == {"model": "gpt", "messages": [{"role": "user", "content": "Will it rain?"}]}

    async def test_tools_of_the_scripted_model(self, provider: OpenAIProvider, scripted: ScriptedModel) -> None:
        await scripted.script("gpt", {"toolCalls": [{"name": "weather", "arguments": {"city": "Ubud"}}]})
        asked = request(f"{scripted.url}/v1")
        asked.tools.append(ToolSpec("weather", "Tell the weather.", {"type": "object"}))
        answer = await provider.complete(asked)
        assert answer.parts == [RequestedCall("weather", '{"city": "Ubud"}')]

    @pytest.mark.parametrize(
        ("status", "failure", "words"),
        [
            pytest.param(401, FINAL, f"model gpt: 401: Incorrect API key provided: {KEY}.", id="a key that is refused"),
            pytest.param(429, RETRY, f"model gpt: 429: Incorrect API key provided: {KEY}.", id="too many requests"),
            pytest.param(503, RETRY, f"model gpt: 503: Incorrect API key provided: {KEY}.", id="the server"),
        ],
    )
    async def test_an_error_has_the_endpoints_words_and_no_key(
        self, provider: OpenAIProvider, endpoint: Endpoint, status: int, failure: CallFailure, words: str
    ) -> None:
        endpoint.tell(status, {"error": {"message": f"Incorrect API key provided: {KEY}."}})
        error = await failing(provider, request(endpoint.url))
        assert (error.failure, str(error)) == (failure, words.replace(KEY, "[key]"))

    async def test_a_key_at_the_cut_is_none_in_part(self, provider: OpenAIProvider, endpoint: Endpoint) -> None:
        for length in range(665, 700):
            endpoint.tell(400, {"error": {"message": "x" * length + KEY}})
            assert "sk-" not in str(await failing(provider, request(endpoint.url)))

    async def test_a_broken_connection_passes(self, provider: OpenAIProvider, endpoint: Endpoint) -> None:
        error = await failing(provider, request(endpoint.url))
        assert error.failure == RETRY
        assert endpoint.url in str(error)

    async def test_a_page_instead_of_a_completion_passes(self, provider: OpenAIProvider, endpoint: Endpoint) -> None:
        endpoint.tell(body=b"<h1>Sign in</h1>")
        error = await failing(provider, request(endpoint.url))
        assert (error.failure, str(error)) == (
            RETRY,
            "model gpt: the endpoint answered 200 with no chat completion: <h1>Sign in</h1>",
        )

    async def test_one_client_per_endpoint_and_key(self, provider: OpenAIProvider, endpoint: Endpoint) -> None:
        for key in (KEY, "another", KEY):
            endpoint.tell(body=COMPLETION)
            await provider.complete(request(endpoint.url, Credentials(api_key=key)))
        assert [asked.headers["Authorization"] for asked in endpoint.asked] == [
            f"Bearer {KEY}",
            "Bearer another",
            f"Bearer {KEY}",
        ]
        assert len(provider._clients) == 2


class TestAzure:
    async def test_the_deployment_is_in_the_path_and_the_key_in_a_header_of_its_own(
        self, provider: OpenAIProvider, endpoint: Endpoint
    ) -> None:
        endpoint.tell(body=COMPLETION)
        azure: dict[str, Any] = {"provider": "AzureOpenAI", "deployment": "our-gpt", "api_version": "2026-01-01"}
        assert await provider.complete(request(endpoint.url, **azure)) == ANSWER
        (asked,) = endpoint.asked
        assert asked.path == "/openai/deployments/our-gpt/chat/completions"
        assert asked.headers["api-key"] == KEY
        assert "Authorization" not in asked.headers

    async def test_the_scripted_model(self, provider: OpenAIProvider, scripted: ScriptedModel) -> None:
        await scripted.script("our-gpt", {"text": "No."})
        azure: dict[str, Any] = {"provider": "AzureOpenAI", "deployment": "our-gpt", "api_version": "2026-01-01"}
        answer = await provider.complete(request(scripted.url, **azure))
        assert answer.parts == [TextPart(text="No.")]
        (recorded,) = await scripted.requests()
        assert recorded["apiVersion"] == "2026-01-01"

    @pytest.mark.parametrize(
        ("name", "deployment"),
        [
            pytest.param("our-embedding", "our-embedding", id="of a deployment of its own"),
            pytest.param("gpt", "our-gpt", id="of the model's own"),
        ],
    )
    async def test_an_embedding(
        self, provider: OpenAIProvider, scripted: ScriptedModel, name: str, deployment: str
    ) -> None:
        azure = model(scripted.url, provider="AzureOpenAI", deployment="our-gpt", api_version="2026-01-01")
        await provider.embed(azure, Credentials(api_key=KEY), name, "Will it rain?")
        (recorded,) = await scripted.requests()
        assert recorded["path"] == f"/openai/deployments/{deployment}/embeddings"


class TestEmbeddings:
    async def test_of_the_scripted_model(self, provider: OpenAIProvider, scripted: ScriptedModel) -> None:
        embedding = await provider.embed(
            model(f"{scripted.url}/v1"), Credentials(), "text-embedding-3-small", "Will it rain?"
        )
        assert len(embedding.vector) == 256
        assert sum(value * value for value in embedding.vector) == pytest.approx(1.0)
        assert embedding.usage.input_tokens > 0
        (recorded,) = await scripted.requests()
        assert recorded["body"] == {
            "model": "text-embedding-3-small",
            "input": ["Will it rain?"],
            "encoding_format": "float",
        }

    async def test_an_error(self, provider: OpenAIProvider, endpoint: Endpoint) -> None:
        endpoint.tell(404, {"error": f"no such model, {KEY}"})
        with pytest.raises(ModelCallError, match=r"^model e5: 404: no such model, \[key\]$") as raised:
            await provider.embed(model(endpoint.url), Credentials(api_key=KEY), "e5", "Will it rain?")
        assert raised.value.failure == FINAL

    async def test_no_embedding(self, provider: OpenAIProvider, endpoint: Endpoint) -> None:
        endpoint.tell(body={"data": []})
        with pytest.raises(ModelCallError, match="answered 200 with no embedding") as raised:
            await provider.embed(model(endpoint.url), Credentials(api_key=KEY), "e5", "Will it rain?")
        assert raised.value.failure == RETRY


class TestIdentity:
    """A projected token is exchanged for one of OpenAI's, at an address that is the SDK's constant."""

    @pytest.fixture
    def asked(self, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModelRequest:
        defaults = WorkloadIdentityAuth.__init__.__kwdefaults__
        assert defaults is not None
        monkeypatch.setitem(defaults, "token_exchange_url", f"{endpoint.url}/oauth/token")
        (tmp_path / "token").write_text(f"{TOKEN}\n")
        identity = IdentitySnapshot(
            audience="openai", parameters={"identityProviderID": "idp_1", "serviceAccountID": "sa_1"}
        )
        return request(
            f"{endpoint.url}/v1", Credentials(identity_token=tmp_path / "token"), identity=identity, provider="OpenAI"
        )

    async def test_the_token_is_exchanged_once(
        self, provider: OpenAIProvider, endpoint: Endpoint, asked: ModelRequest
    ) -> None:
        endpoint.tell(body={"access_token": EXCHANGED, "expires_in": 3600})
        endpoint.tell(body=COMPLETION)
        endpoint.tell(body=COMPLETION)
        assert await provider.complete(asked) == ANSWER
        assert await provider.complete(asked) == ANSWER
        exchange, *calls = endpoint.asked
        assert exchange.path == "/oauth/token"
        assert exchange.body["subject_token"] == TOKEN
        assert (exchange.body["identity_provider_id"], exchange.body["service_account_id"]) == ("idp_1", "sa_1")
        assert [call.headers["Authorization"] for call in calls] == [f"Bearer {EXCHANGED}"] * 2

    @pytest.mark.parametrize("status", [400, 401, 403])
    async def test_an_identity_that_is_refused_is_final(
        self, provider: OpenAIProvider, endpoint: Endpoint, asked: ModelRequest, status: int
    ) -> None:
        endpoint.tell(status, {"error": "invalid_grant", "error_description": f"no trust in {TOKEN}"})
        error = await failing(provider, asked)
        assert (error.failure, str(error)) == (
            FINAL,
            f"model gpt: the pod's identity was refused: {status}: no trust in [key]",
        )

    async def test_an_exchange_that_is_down_passes(
        self, provider: OpenAIProvider, endpoint: Endpoint, asked: ModelRequest
    ) -> None:
        endpoint.tell(503, {"error": TOKEN})
        assert (await failing(provider, asked)).failure == RETRY

    async def test_an_exchange_without_an_answer_passes(
        self, provider: OpenAIProvider, endpoint: Endpoint, asked: ModelRequest
    ) -> None:
        assert (await failing(provider, asked)).failure == RETRY

    async def test_a_token_that_is_not_there_yet_passes(
        self, provider: OpenAIProvider, asked: ModelRequest, tmp_path: Path
    ) -> None:
        (tmp_path / "token").unlink()
        error = await failing(provider, asked)
        assert error.failure == RETRY
        assert "Failed to read the token file" in str(error)

    async def test_an_exchanged_token_that_is_repeated_is_not_told(
        self, provider: OpenAIProvider, endpoint: Endpoint, asked: ModelRequest
    ) -> None:
        endpoint.tell(body={"access_token": EXCHANGED, "expires_in": 3600})
        endpoint.tell(403, {"error": {"message": f"{EXCHANGED} may not"}})
        error = await failing(provider, asked)
        assert (error.failure, str(error)) == (FINAL, "model gpt: 403: [key] may not")


@pytest.mark.parametrize(
    ("base_url", "environment", "expected"),
    [
        pytest.param(None, None, True, id="OpenAI's own"),
        pytest.param("https://api.openai.com/v1", None, True, id="by its name"),
        pytest.param("https://API.openai.com/v1", None, True, id="in other letters"),
        pytest.param("http://ollama.models:11434/v1", None, False, id="another"),
        pytest.param("https://api.openai.com.example/v1", None, False, id="a host that only begins like it"),
        pytest.param(None, "http://ollama.models:11434/v1", False, id="another by the environment"),
    ],
)
def test_whose_the_endpoint_is(
    base_url: str | None, environment: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment:
        monkeypatch.setenv("OPENAI_BASE_URL", environment)
    assert is_openai(model(base_url)) is expected
    assert OpenAIProvider().takes_schema(model(base_url), SCHEMA) is expected
    assert not OpenAIProvider().takes_schema(model(base_url), {"type": "object"})


def test_azure_takes_less_of_a_schema() -> None:
    azure = model("https://shop.openai.azure.com", provider="AzureOpenAI")
    bounded = {**SCHEMA, "properties": {"city": {"type": "string", "pattern": "^[A-Z]"}}}
    assert OpenAIProvider().takes_schema(azure, SCHEMA)
    assert not OpenAIProvider().takes_schema(azure, bounded)
    assert OpenAIProvider().takes_schema(model(None), bounded)


@pytest.mark.parametrize(
    ("status", "headers", "code", "expected"),
    [
        pytest.param(None, {}, None, CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING), id="no answer"),
        pytest.param(500, {}, None, CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING), id="5xx"),
        pytest.param(429, {}, None, CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING), id="429"),
        pytest.param(
            429,
            {"retry-after": "20"},
            "rate_limit_exceeded",
            CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING, 20.0),
            id="429 that says when",
        ),
        pytest.param(
            429,
            {"retry-after": "20"},
            "insufficient_quota",
            CallFailure(Verdict.FINAL, Reason.MODEL_FAILED),
            id="429 of a used-up quota",
        ),
        pytest.param(401, {}, "invalid_api_key", CallFailure(Verdict.FINAL, Reason.MODEL_FAILED), id="401"),
        pytest.param(403, {}, None, CallFailure(Verdict.FINAL, Reason.MODEL_FAILED), id="403"),
        pytest.param(404, {}, "model_not_found", CallFailure(Verdict.FINAL, Reason.MODEL_FAILED), id="404"),
        pytest.param(301, {}, None, CallFailure(Verdict.FINAL, Reason.MODEL_FAILED), id="a redirect"),
        pytest.param(
            400, {}, "context_length_exceeded", CallFailure(Verdict.FINAL, Reason.CONTEXT_LENGTH), id="400: too long"
        ),
        pytest.param(400, {}, "content_filter", CallFailure(Verdict.FINAL, Reason.CONTENT_FILTER), id="400: filtered"),
        pytest.param(
            400,
            {"x-should-retry": "true", "retry-after-ms": "1500"},
            None,
            CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING, 1.5),
            id="400 that asks to be called again",
        ),
    ],
)
def test_classify(status: int | None, headers: dict[str, str], code: str | None, expected: CallFailure) -> None:
    assert classify(status, headers, code, NOW) == expected

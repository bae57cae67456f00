"""Provider Bedrock through the SDK's real client: AWS's addresses, frames, errors and credentials."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError  # type: ignore[import-untyped]
from dalang_api.contract import Message, ModelSnapshot, TextPart
from dalang_api.v1alpha1.conditions import Reason
from dalang_worker.conductor.memory import summary_message
from dalang_worker.providers import (
    CallFailure,
    Credentials,
    ModelCallError,
    ModelRequest,
    RequestedCall,
    ToolSpec,
    Verdict,
)
from dalang_worker.providers.bedrock import BedrockProvider

from tests.unit.worker.providers.servers import Endpoint, Json, ScriptedModel

KEY = "bedrock-api-key-secret"
MODEL = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
RETRY = CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING)
FINAL = CallFailure(Verdict.FINAL, Reason.MODEL_FAILED)
SCHEMA: Json = {"type": "object", "properties": {}, "additionalProperties": False}


def model(base_url: str | None, name: str = MODEL) -> ModelSnapshot:
    return ModelSnapshot(
        name="m", uid="u", generation=1, provider="Bedrock", model=name, base_url=base_url, region="eu-central-1"
    )


def request(base_url: str, key: str | None = KEY) -> ModelRequest:
    return ModelRequest(
        model=model(base_url),
        credentials=Credentials(api_key=key),
        instructions=None,
        messages=[Message(role="user", parts=[TextPart(text="Will it rain?")])],
        tools=[ToolSpec("weather", "Tell the weather.", {"type": "object"})],
    )


@pytest.fixture
async def provider() -> AsyncIterator[BedrockProvider]:
    provider = BedrockProvider()
    yield provider
    await provider.close()


async def failing(provider: BedrockProvider, asked: ModelRequest) -> ModelCallError:
    with pytest.raises(ModelCallError) as raised:
        await provider.complete(asked)
    assert KEY not in str(raised.value)
    return raised.value


async def test_an_answer(provider: BedrockProvider, scripted: ScriptedModel) -> None:
    await scripted.script(MODEL, {"text": "I look.", "toolCalls": [{"name": "weather", "arguments": {"city": "Ubud"}}]})
    answer = await provider.complete(request(f"{scripted.url}/bedrock"))
    assert answer.parts == [TextPart(text="I look."), RequestedCall("weather", '{"city": "Ubud"}')]
    (recorded,) = await scripted.requests()
    assert recorded["path"].endswith("/invoke-with-response-stream")
    assert "model" not in recorded["body"]
    assert recorded["authorization"]


async def test_a_question_after_a_summary(provider: BedrockProvider, scripted: ScriptedModel) -> None:
    await scripted.script(MODEL, {"text": "No."})
    asked = request(f"{scripted.url}/bedrock")
    asked.messages.insert(0, summary_message("Ada lives in Kuta."))
    assert (await provider.complete(asked)).parts == [TextPart(text="No.")]


@pytest.mark.parametrize(
    ("response", "failure", "words"),
    [
        pytest.param({"status": 429, "message": "Too many tokens."}, RETRY, "429: Too many tokens.", id="throttled"),
        pytest.param({"status": 403, "message": f"Not with {KEY}."}, FINAL, "403: Not with [key].", id="denied"),
        pytest.param({"status": 424, "message": "Failed."}, RETRY, "424: Failed.", id="the model failed"),
        pytest.param({"status": 400, "message": "Malformed."}, FINAL, "400: Malformed.", id="a bad request"),
        pytest.param(
            {"status": 400, "message": "Input is too long for requested model."},
            CallFailure(Verdict.FINAL, Reason.CONTEXT_LENGTH),
            "400: Input is too long",
            id="too long",
        ),
        pytest.param(
            {"text": "No, it will not.", "errorMidStream": {"type": "rate_limit_error", "message": "Slow down."}},
            RETRY,
            "429: Slow down.",
            id="throttled in mid-stream",
        ),
        pytest.param(
            {"text": "No, it will not.", "errorMidStream": {"type": "validationException", "message": "Malformed."}},
            FINAL,
            "400: Malformed.",
            id="a bad request in mid-stream",
        ),
        pytest.param({"text": "No, it will not.", "dropAfter": 2}, RETRY, "", id="dropped"),
    ],
)
async def test_an_error(
    provider: BedrockProvider, scripted: ScriptedModel, response: Json, failure: CallFailure, words: str
) -> None:
    await scripted.script(MODEL, response)
    error = await failing(provider, request(f"{scripted.url}/bedrock"))
    assert error.failure == failure
    assert words in str(error)


async def test_a_page_instead_of_a_stream_passes(provider: BedrockProvider, endpoint: Endpoint) -> None:
    endpoint.tell(body=b"<html><body><h1>Please sign in to continue</h1></body></html>")
    assert (await failing(provider, request(endpoint.url))).failure == RETRY


async def test_without_credentials_the_remedy_is_told(provider: BedrockProvider, endpoint: Endpoint) -> None:
    error = await failing(provider, request(endpoint.url, key=None))
    assert error.failure == FINAL
    assert "the pod has no AWS credentials: set spec.auth.apiKey" in str(error)
    assert endpoint.asked == []


async def test_aws_own_credentials_sign_the_call(
    provider: BedrockProvider, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anthropic.lib.aws import _auth

    sessions: Any = _auth._get_session
    sessions.cache_clear()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-aws")
    endpoint.tell(403, {"message": "Denied."})
    assert (await failing(provider, request(endpoint.url, key=None))).failure == FINAL
    sessions.cache_clear()
    (asked,) = endpoint.asked
    assert asked.headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")
    assert "/eu-central-1/bedrock/" in asked.headers["Authorization"]


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        pytest.param(CredentialRetrievalError(provider="sts", error_msg="timed out"), RETRY, id="a service is away"),
        pytest.param(
            ClientError({"ResponseMetadata": {"HTTPStatusCode": 403}}, "AssumeRoleWithWebIdentity"),
            FINAL,
            id="a role that may not be taken",
        ),
        pytest.param(
            ClientError({"ResponseMetadata": {"HTTPStatusCode": 503}}, "AssumeRoleWithWebIdentity"),
            RETRY,
            id="the token service is down",
        ),
        pytest.param(RuntimeError("something else"), RETRY, id="something else"),
    ],
)
def test_credentials_that_cannot_be_had(error: Exception, failure: CallFailure) -> None:
    assert BedrockProvider().explain(error, "https://bedrock")[0] == failure


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param(MODEL, True, id="a profile of a model"),
        pytest.param("anthropic.claude-3-haiku-20240307-v1:0", False, id="an old model"),
        pytest.param("arn:aws:bedrock:eu-central-1:1:application-inference-profile/x", False, id="a profile of ours"),
    ],
)
def test_who_takes_a_schema(name: str, expected: bool) -> None:
    assert BedrockProvider().takes_schema(model(None, name), SCHEMA) is expected

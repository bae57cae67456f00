"""The scripted model as Anthropic's client for Amazon Bedrock sees it."""

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropicBedrock

MODEL = "anthropic.claude-sonnet-4-5-20250929-v1:0"
PROFILE = "arn:aws:bedrock:eu-north-1:123456789012:inference-profile/eu.anthropic.claude"


def request(model: str = MODEL) -> Any:
    return {"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}


async def final_message(client: AsyncAnthropicBedrock, model: str = MODEL) -> Any:
    async with client.messages.stream(**request(model)) as stream:
        return await stream.get_final_message()


@pytest.fixture
async def client(scripted: Any) -> AsyncIterator[AsyncAnthropicBedrock]:
    async with AsyncAnthropicBedrock(
        base_url=f"{scripted.url}/bedrock",
        aws_region="eu-north-1",
        aws_access_key="AKIA",
        aws_secret_key="secret",
        max_retries=0,
    ) as client:
        yield client


async def test_a_whole_answer(client: AsyncAnthropicBedrock, scripted: Any) -> None:
    await scripted.script(MODEL, {"text": "hello", "usage": {"cache_read_input_tokens": 7}})
    answer = await client.messages.create(**request())
    assert answer.content[0].to_dict() == {"type": "text", "text": "hello"}
    assert answer.usage.cache_read_input_tokens == 7


async def test_a_streamed_answer(client: AsyncAnthropicBedrock, scripted: Any) -> None:
    call = {"name": "look", "arguments": {"at": "it"}}
    await scripted.script(MODEL, {"thinking": {"text": "Hm."}, "text": "so", "toolCalls": [call]})
    answer = await final_message(client)
    assert [block.type for block in answer.content] == ["thinking", "text", "tool_use"]
    assert answer.content[2].to_dict()["input"] == {"at": "it"}
    assert answer.stop_reason == "tool_use"


async def test_what_is_recorded(client: AsyncAnthropicBedrock, scripted: Any) -> None:
    await client.messages.create(**request())
    await final_message(client, PROFILE)
    whole, streamed = await scripted.requests()
    assert (whole["api"], whole["model"], whole["authorization"]) == ("bedrock", MODEL, True)
    assert whole["path"] == f"/bedrock/model/{MODEL}/invoke"
    assert whole["apiVersion"] == whole["body"]["anthropic_version"]
    assert whole["body"].keys() == {"anthropic_version", "max_tokens", "messages"}
    assert streamed["model"] == PROFILE
    assert streamed["path"].endswith("inference-profile%2Feu.anthropic.claude/invoke-with-response-stream")


async def test_an_api_key_goes_as_a_bearer(scripted: Any) -> None:
    async with AsyncAnthropicBedrock(
        base_url=f"{scripted.url}/bedrock", aws_region="eu-north-1", api_key="bedrock-api-key"
    ) as client:
        await client.messages.create(**request())
    assert (await scripted.requests())[0]["authorization"]


async def test_errors_have_the_shape_of_aws(client: AsyncAnthropicBedrock, scripted: Any) -> None:
    await scripted.script(MODEL, errors=[{"status": 429, "message": "Too many requests"}])
    with pytest.raises(anthropic.RateLimitError) as refused:
        await client.messages.create(**request())
    assert refused.value.body == {"message": "Too many requests"}
    assert refused.value.response.headers["x-amzn-ErrorType"] == "ThrottlingException"


async def test_bedrock_refuses_what_anthropic_refuses(client: AsyncAnthropicBedrock) -> None:
    unanswered: Any = {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "x", "input": {}}]}
    asked = request()
    asked["messages"] += [unanswered]
    with pytest.raises(anthropic.BadRequestError, match="`tool_use` ids were found"):
        await client.messages.create(**asked)
    with pytest.raises(anthropic.BadRequestError, match="temperature: Extra inputs"):
        await client.messages.create(**request(), extra_body={"temperature": 0.5})


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("overloaded_error", "serviceUnavailableException"),
        ("rate_limit_error", "throttlingException"),
        ("modelStreamErrorException", "modelStreamErrorException"),
    ],
)
async def test_an_error_in_mid_stream(client: AsyncAnthropicBedrock, scripted: Any, kind: str, name: str) -> None:
    await scripted.script(MODEL, {"text": "half of it", "errorMidStream": {"type": kind, "message": "No more."}})
    with pytest.raises(anthropic.APIStatusError, match=r"No more\.") as broken:
        await final_message(client)
    assert (broken.value.type, broken.value.status_code) == (name, 200)

"""The scripted model as OpenAI's own client sees it, at OpenAI and at Azure."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from dalang_cli.dev.scripted_answers import BadRequest
from dalang_cli.dev.scripted_embeddings import DIMENSIONS, embed
from dalang_cli.dev.scripted_openai import check_tool_messages
from openai import AsyncAzureOpenAI, AsyncOpenAI

Json = dict[str, Any]
User: Json = {"role": "user", "content": "hi"}


def calling(*ids: str) -> Json:
    calls = [{"id": each, "type": "function", "function": {"name": "look", "arguments": "{}"}} for each in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(call: str) -> Json:
    return {"role": "tool", "tool_call_id": call, "content": "seen"}


@pytest.fixture
async def client(scripted: Any) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{scripted.url}/v1", api_key="sk-secret", max_retries=0) as client:
        yield client


@pytest.fixture
async def azure(scripted: Any) -> AsyncIterator[AsyncAzureOpenAI]:
    async with AsyncAzureOpenAI(
        azure_endpoint=scripted.url, api_key="secret", api_version="2025-04-01-preview", max_retries=0
    ) as client:
        yield client


def closeness(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


# ── Embeddings ──


async def test_embeddings_come_in_the_order_of_their_texts(client: AsyncOpenAI) -> None:
    texts = ["How do I get a refund?", "Refunds are paid within five days.", "The weather in Oslo is mild."]
    answer = await client.embeddings.create(model="embed", input=texts)
    asked, refunds, weather = (each.embedding for each in answer.data)
    assert {len(each.embedding) for each in answer.data} == {DIMENSIONS}
    assert closeness(asked, refunds) > 2 * abs(closeness(asked, weather))
    assert closeness(asked, asked) == pytest.approx(1.0, abs=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


@pytest.mark.parametrize("encoding", ["float", "base64", None])
async def test_both_encodings_say_the_same(client: AsyncOpenAI, encoding: Any) -> None:
    more = {"encoding_format": encoding} if encoding else {}
    answer = await client.embeddings.create(model="embed", input="one two", dimensions=32, **more)
    given: Any = answer.data[0].embedding
    if encoding == "base64":  # asked for by name, the client hands it on as it is
        assert isinstance(given, str)
    else:
        assert given == pytest.approx(embed("one two", 32), abs=1e-6)


async def test_the_client_asks_for_base64_of_its_own_accord(client: AsyncOpenAI, scripted: Any) -> None:
    await client.embeddings.create(model="embed", input="one")
    (asked,) = await scripted.requests()
    assert (asked["api"], asked["path"], asked["body"]["encoding_format"]) == (
        "embeddings",
        "/v1/embeddings",
        "base64",
    )


@pytest.mark.parametrize(
    "given",
    [
        pytest.param("", id="nothing"),
        pytest.param([], id="no text"),
        pytest.param(["a", ""], id="an empty one among them"),
        pytest.param(["a"] * 2049, id="too many"),
        pytest.param("word " * 8000, id="too long"),
        pytest.param([1, 2], id="tokens"),
    ],
)
async def test_inputs_that_are_refused(client: AsyncOpenAI, given: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.embeddings.create(model="embed", input=given)
    assert refused.value.param == "input"


async def test_a_script_says_how_embeddings_fail(client: AsyncOpenAI, scripted: Any) -> None:
    await scripted.script("embed", errors=[{"status": 429, "message": "slow down", "headers": {"Retry-After": "7"}}])
    with pytest.raises(openai.RateLimitError, match="slow down") as refused:
        await client.embeddings.create(model="embed", input="a")
    assert refused.value.response.headers["Retry-After"] == "7"
    await scripted.script("embed", errors=[{"drop": True}])
    with pytest.raises(openai.APIConnectionError):
        await client.embeddings.create(model="embed", input="a")
    assert (await client.embeddings.create(model="embed", input="a")).data
    with pytest.raises(openai.AuthenticationError):
        await client.embeddings.create(model="unauthorized", input="a")


def test_texts_without_words_have_a_vector() -> None:
    assert closeness(embed("?!"), embed("")) == 1.0


# ── Chat ──


async def test_a_turn_with_a_tool(client: AsyncOpenAI, scripted: Any) -> None:
    await scripted.script("m", {"toolCalls": [{"name": "look", "arguments": {}}]}, {"text": "it was {{last_tool}}"})
    said: Any = [User]
    called = (await client.chat.completions.create(model="m", messages=said)).choices[0].message
    said += [called.to_dict(), result(called.tool_calls[0].id)]  # type: ignore[index]  # the script gives one
    answer = await client.chat.completions.create(model="m", messages=said)
    assert answer.choices[0].message.content == "it was seen"


async def test_a_refusal_has_openai_s_shape(client: AsyncOpenAI, scripted: Any) -> None:
    said: Any = [User, calling("a", "b"), result("b")]
    with pytest.raises(openai.BadRequestError, match="did not have response messages: a") as refused:
        await client.chat.completions.create(model="m", messages=said)
    assert (refused.value.type, refused.value.param) == ("invalid_request_error", "messages.[3].role")
    assert len(await scripted.requests()) == 1


async def test_what_breaks_a_stream_breaks_a_whole_answer(client: AsyncOpenAI, scripted: Any) -> None:
    faults = [{"errorMidStream": {"type": "overloaded_error", "message": "Overloaded"}}, {"dropAfter": 2}]
    await scripted.script("m", errors=faults)
    said: Any = [User]
    with pytest.raises(openai.InternalServerError, match="Overloaded"):
        await client.chat.completions.create(model="m", messages=said)
    with pytest.raises(openai.APIConnectionError):
        await client.chat.completions.create(model="m", messages=said)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        pytest.param([User, result("a")], "must be a response to a preceeding message", id="a result of nothing"),
        pytest.param([User, calling("a"), result("a"), User, result("a")], "preceeding message", id="a late result"),
        pytest.param([User, calling("a"), result("b")], "'tool_call_id' of 'b' not found", id="of another call"),
        pytest.param([User, calling("a", "b"), result("b"), User], "response messages: a", id="one is missing"),
        pytest.param([User, calling("a"), calling("b"), result("b")], "response messages: a", id="none in between"),
        pytest.param([User, calling("a")], "response messages: a", id="none at the end"),
    ],
)
def test_tool_messages_that_are_refused(messages: list[Json], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        check_tool_messages(messages)


def test_tool_messages_that_are_fine() -> None:
    check_tool_messages([User, calling("a", "b"), result("b"), result("a"), calling("c"), result("c"), User])


# ── Azure ──


async def test_azure_names_the_deployment_and_its_version(azure: AsyncAzureOpenAI, scripted: Any) -> None:
    await scripted.script("my-gpt", {"text": "hello from Azure"})
    said: Any = [User]
    answer = await azure.chat.completions.create(model="my-gpt", messages=said)
    assert answer.choices[0].message.content == "hello from Azure"
    (asked,) = await scripted.requests()
    told = {key: asked[key] for key in ("model", "api", "path", "apiVersion", "authorization", "aborted")}
    assert told == {
        "model": "my-gpt",
        "api": "chat",
        "path": "/openai/deployments/my-gpt/chat/completions",
        "apiVersion": "2025-04-01-preview",
        "authorization": True,
        "aborted": False,
    }


async def test_azure_embeds(azure: AsyncAzureOpenAI, scripted: Any) -> None:
    answer = await azure.embeddings.create(model="my-embed", input=["one"])
    assert answer.data[0].embedding == pytest.approx(embed("one"), abs=1e-6)
    assert (await scripted.requests())[0]["path"] == "/openai/deployments/my-embed/embeddings"


async def test_a_deployment_of_the_client_goes_before_the_model_of_the_request(scripted: Any) -> None:
    await scripted.script("deployed", {"text": "it is me"})
    async with AsyncAzureOpenAI(
        azure_endpoint=scripted.url, azure_deployment="deployed", api_key="secret", api_version="2025-01-01"
    ) as client:
        said: Any = [User]
        answer = await client.chat.completions.create(model="gpt-5", messages=said)
    assert answer.choices[0].message.content == "it is me"


async def test_an_azure_token_is_a_key_too(scripted: Any) -> None:
    async with AsyncAzureOpenAI(
        azure_endpoint=scripted.url, azure_ad_token="entra", api_version="2025-01-01"
    ) as client:
        await client.embeddings.create(model="e", input="a")
    assert (await scripted.requests())[0]["authorization"]


async def test_azure_knows_nothing_without_a_version(scripted: Any) -> None:
    url = f"{scripted.url}/openai/deployments/d/chat/completions"
    async with scripted.http.post(url, json={"messages": [User]}) as answer:
        assert (answer.status, (await answer.json())["error"]["message"]) == (404, "Resource not found")

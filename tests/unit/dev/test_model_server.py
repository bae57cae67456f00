"""The scripted model: which answer a request gets."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from dalang_cli.dev.model_server import BadRequest, ModelServer, Script, choose_response, completion
from dalang_worker.summaries import INSTRUCTIONS

Json = dict[str, Any]

TOOL: Json = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"days": {"type": "integer", "default": 3}, "city": {"type": "string"}},
        },
    },
}
REFUND: Json = {
    "type": "function",
    "function": {
        "name": "refund_order",
        "parameters": {
            "type": "object",
            "properties": {"order_id": {"type": "string"}, "amount": {"type": "number"}},
        },
    },
}


def request(model: str, *turns: str, tools: list[Json] | None = None, asked: str = "hello", **more: Any) -> Json:
    """Return a request in which the model has already answered `turns`, each answered by a tool."""
    messages: list[Json] = [{"role": "user", "content": asked}]
    for turn in turns:
        messages += [{"role": "assistant", "content": None}, {"role": "tool", "content": turn}]
    return {"model": model, "messages": messages, "tools": tools or [], **more}


def answer(request: Json, script: Script | None = None) -> Json:
    return choose_response(request, {request["model"]: script} if script else {})


def test_the_turn_chooses_the_response_however_often_it_is_asked() -> None:
    script = Script(responses=[{"text": "one"}, {"text": "two"}])
    assert [answer(request("m", *turns), script)["text"] for turns in ((), (), ("a",), ())] == [
        "one",
        "one",
        "two",
        "one",
    ]


def test_errors_come_first_and_once_each() -> None:
    script = Script(responses=[{"text": "one"}], errors=[{"status": 429}, {"drop": True}])
    answers = [answer(request("m"), script) for _ in range(3)]
    assert [each.get("status") or each.get("drop") or each["text"] for each in answers] == [429, True, "one"]


def test_always_error() -> None:
    script = Script(responses=[{"text": "one"}], always_error={"status": 500})
    assert [answer(request("m"), script)["status"] for _ in range(2)] == [500, 500]


def test_a_script_that_is_over() -> None:
    responses: list[Json] = [{"text": "one"}, {"text": "two"}]
    with pytest.raises(BadRequest, match="number 3"):
        answer(request("m", "a", "b"), Script(responses=responses))
    assert answer(request("m", "a", "b"), Script(responses=responses, loop=True))["text"] == "one"


def test_a_summary_takes_no_response_of_a_script_that_is_not_for_it() -> None:
    told = '<transcript>\n{"from": "user", "text": "My name is Ada."}\n</transcript>'
    messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": told}]
    asked: Json = {"model": "m", "messages": messages}
    responses: list[Json] = [{"text": "one"}]
    assert answer(asked, Script(responses=responses))["text"] == "- My name is Ada."
    assert answer(asked, Script(responses=responses, summarises=True))["text"] == "one"
    assert answer(asked, Script(responses=responses, errors=[{"status": 429}]))["status"] == 429


def test_a_misspelt_script_is_refused() -> None:
    with pytest.raises(BadRequest, match="respones"):
        Script.parse({"respones": []})


def test_texts_are_filled_in() -> None:
    filled = completion(
        request("m", "sunny", asked="and?"), {"text": "{{last_user}} {{last_tool}} {{n}} {{other}}"}, 100
    )
    assert filled["choices"][0]["message"]["content"] == "and? sunny 2 {{other}}"


def test_a_completion_with_tool_calls() -> None:
    calls = [{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": "{broken"}]
    body = completion(request("m"), {"toolCalls": calls}, 400)
    choice = body["choices"][0]
    assert [call["function"]["arguments"] for call in choice["message"]["tool_calls"]] == ['{"x": 1}', "{broken"]
    assert choice["finish_reason"] == "tool_calls"
    assert body["usage"]["prompt_tokens"] == 100
    assert body["usage"]["total_tokens"] == 100 + body["usage"]["completion_tokens"]


def test_bench_models() -> None:
    assert answer(request("bench-20")) == {"text": "ok", "latencySeconds": 0.02}
    called = answer(request("bench-0-turns-2-bytes-5", "a", tools=[TOOL]))
    assert called["toolCalls"] == [{"name": "get_weather", "arguments": {"city": "xxxxx"}}]
    assert answer(request("bench-0-turns-2-bytes-5", "a", "b", tools=[TOOL]))["text"] == "xxxxx"


@pytest.mark.parametrize(
    ("asked", "call"),
    [
        pytest.param(
            "What is the weather in New York?",
            {"name": "get_weather", "arguments": {"days": 3, "city": "New York"}},
            id="a city",
        ),
        pytest.param(
            "Please refund order 42, 19.5 euros",
            {"name": "refund_order", "arguments": {"order_id": "42", "amount": 19.5}},
            id="each number is used once",
        ),
    ],
)
def test_the_demo_calls_the_tool_that_fits(asked: str, call: Json) -> None:
    assert answer(request("gpt-5", tools=[TOOL, REFUND], asked=asked))["toolCalls"] == [call]


def test_the_demo_always_ends() -> None:
    assert answer(request("gpt-5", "sunny.", tools=[TOOL], asked="weather?"))["text"] == "Here is what I found: sunny."
    assert "hello" in answer(request("gpt-5", tools=[TOOL]))["text"]


def test_the_demo_fills_a_schema() -> None:
    schema = {
        "$defs": {"Kind": {"enum": ["Invoice", "Complaint"]}},
        "type": "object",
        "properties": {"kind": {"$ref": "#/$defs/Kind"}, "urgent": {"type": "boolean"}},
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    text = answer(request("gpt-5", asked="a complaint about noise", response_format=wanted))["text"]
    assert json.loads(text) == {"kind": "Complaint", "urgent": True}


@pytest.fixture
async def client() -> AsyncIterator[TestClient[Any, Any]]:
    server = TestServer(ModelServer().application(), handler_cancellation=True)
    async with TestClient(server) as client:
        yield client


async def ask(client: TestClient[Any, Any], model: str, **more: Any) -> aiohttp.ClientResponse:
    headers = {"Authorization": "Bearer sk-very-secret"}
    return await client.post("/v1/chat/completions", json=request(model), headers=headers, **more)


async def test_scripts_over_http(client: TestClient[Any, Any]) -> None:
    script = {"errors": [{"status": 429, "headers": {"Retry-After": "7"}}], "responses": [{"text": "hi"}]}
    await client.put("/scripts/m", json=script)
    refused = await ask(client, "m")
    assert (refused.status, refused.headers["Retry-After"]) == (429, "7")
    assert (await (await ask(client, "m")).json())["choices"][0]["message"]["content"] == "hi"
    assert (await ask(client, "unauthorized")).status == 401


async def test_a_dropped_connection(client: TestClient[Any, Any]) -> None:
    await client.put("/scripts/m", json={"alwaysError": {"drop": True}})
    with pytest.raises(aiohttp.ClientError):
        await ask(client, "m")


async def test_requests_are_recorded_without_the_key(client: TestClient[Any, Any]) -> None:
    await ask(client, "bench-0")
    await ask(client, "bench-1")
    text = await (await client.get("/requests?model=bench-0")).text()
    assert "sk-very-secret" not in text
    (recorded,) = json.loads(text)["requests"]
    assert (recorded["authorization"], recorded["aborted"]) == (True, False)
    assert recorded["body"] == request("bench-0")
    await client.delete("/requests?model=bench-0")
    assert [each["model"] for each in (await (await client.get("/requests")).json())["requests"]] == ["bench-1"]


async def test_a_client_that_goes_away_is_recorded(client: TestClient[Any, Any]) -> None:
    async def aborted() -> list[bool]:
        return [each["aborted"] for each in (await (await client.get("/requests")).json())["requests"]]

    asking = asyncio.create_task(ask(client, "bench-60000"))
    while await aborted() != [False]:  # both loops are bounded by the test's timeout
        pass
    asking.cancel()
    while await aborted() != [True]:
        pass

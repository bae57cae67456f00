"""The scripted model as Anthropic's own client sees it, and what it refuses as Anthropic does."""

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import AsyncAnthropic
from dalang_cli.dev.scripted_answers import BadRequest
from dalang_cli.dev.scripted_anthropic_rules import check_messages, signature

Json = dict[str, Any]

VERSION = "2026-10-21"
ASKED: Json = {"role": "user", "content": "Where is order 42?"}
TOOL: Json = {
    "name": "find_order",
    "description": "Find an order",
    "input_schema": {"type": "object", "properties": {"order_id": {"type": "string"}}},
}
CALL: Json = {"name": "find_order", "arguments": {"order_id": "42"}}


def said(*content: Json) -> Json:
    return {"role": "assistant", "content": list(content)}


def told(*content: Json) -> Json:
    return {"role": "user", "content": list(content)}


def use(call: str = "a") -> Json:
    return {"type": "tool_use", "id": call, "name": "find_order", "input": {}}


def result(call: str = "a") -> Json:
    return {"type": "tool_result", "tool_use_id": call, "content": "it is in Oslo"}


def text(words: str) -> Json:
    return {"type": "text", "text": words}


def thought(words: str, signed: str | None = None) -> Json:
    return {"type": "thinking", "thinking": words, "signature": signature(words) if signed is None else signed}


def request(*messages: Json, **more: Any) -> Any:
    """Return what a client is given; `Any`, because its types would refuse what the server is to refuse."""
    return {"model": "claude", "max_tokens": 4096, "messages": list(messages) or [ASKED], **more}


async def read(stream: Any, kinds: list[str]) -> None:
    """Note the kinds of a stream's events, up to where it breaks."""
    async with stream as events:
        async for event in events:
            kinds.append(event.type)  # noqa: PERF401  # a comprehension would keep nothing of a broken stream


@pytest.fixture
async def client(scripted: Any) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=f"{scripted.url}/anthropic", api_key="sk-secret", max_retries=0) as client:
        yield client


# ── Answers ──

RICH: Json = {
    "thinking": {"text": "An order. I have a tool for that.", "signature": "c2lnbmVk"},
    "text": "I look it up.",
    "toolCalls": [CALL, {"name": "find_order", "arguments": {}, "id": "toolu_mine"}],
    "usage": {"input_tokens": 10, "cache_read_input_tokens": 7, "cache_creation_input_tokens": 3, "output_tokens": 5},
}
RICH_CONTENT = [
    {"type": "thinking", "thinking": "An order. I have a tool for that.", "signature": "c2lnbmVk"},
    {"type": "text", "text": "I look it up."},
    {"type": "tool_use", "id": "toolu_0_0", "name": "find_order", "input": {"order_id": "42"}},
    {"type": "tool_use", "id": "toolu_mine", "name": "find_order", "input": {}},
]


async def test_a_whole_answer(client: AsyncAnthropic, scripted: Any) -> None:
    await scripted.script("claude", RICH)
    answer = await client.messages.create(**request())
    assert [block.to_dict() for block in answer.content] == RICH_CONTENT
    assert (answer.stop_reason, answer.usage.cache_read_input_tokens) == ("tool_use", 7)
    assert (answer._request_id or "").startswith("req_")


async def test_a_streamed_answer_is_the_same(client: AsyncAnthropic, scripted: Any) -> None:
    await scripted.script("claude", RICH)
    async with client.messages.stream(**request()) as stream:
        kinds = [event.type async for event in stream]
        answer = await stream.get_final_message()
    assert [block.to_dict() for block in answer.content] == RICH_CONTENT
    assert answer.stop_reason == "tool_use"
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens) == (10, 5)
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (7, 3)
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert {"thinking", "signature", "text", "input_json", "content_block_stop", "message_delta"} <= set(kinds)


async def test_the_events_as_they_are_sent(scripted: Any) -> None:
    await scripted.script("claude", {"text": "hi"})
    headers = {"anthropic-version": VERSION}
    async with scripted.http.post(
        f"{scripted.url}/anthropic/v1/messages", json=request(stream=True), headers=headers
    ) as answer:
        lines = (await answer.text()).splitlines()
    assert [line.removeprefix("event: ") for line in lines if line.startswith("event: ")] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


async def test_redacted_thinking(client: AsyncAnthropic, scripted: Any) -> None:
    await scripted.script("claude", {"redactedThinking": "b3BhcXVl", "text": "No."})
    async with client.messages.stream(**request()) as stream:
        answer = await stream.get_final_message()
    assert answer.content[0].to_dict() == {"type": "redacted_thinking", "data": "b3BhcXVl"}
    assert answer.stop_reason == "end_turn"


async def test_arguments_that_are_no_json(client: AsyncAnthropic, scripted: Any) -> None:
    calls = [{"name": "find_order", "arguments": '{"order_id": "42"}'}, {"name": "find_order", "arguments": "{broken"}]
    await scripted.script("claude", {"toolCalls": calls})
    answer = await client.messages.create(**request())
    assert [getattr(block, "input", None) for block in answer.content] == [{"order_id": "42"}, "{broken"]
    with pytest.raises(ValueError, match="Unable to parse tool parameter JSON"):
        await read(client.messages.stream(**request()), [])


@pytest.mark.parametrize(
    ("finish", "stop_reason"),
    [("length", "max_tokens"), ("pause_turn", "pause_turn"), ("content_filter", "refusal"), (None, "end_turn")],
)
async def test_stop_reasons(client: AsyncAnthropic, scripted: Any, finish: str | None, stop_reason: str) -> None:
    await scripted.script("claude", {"text": "so", "finishReason": finish})
    assert (await client.messages.create(**request())).stop_reason == stop_reason


async def test_turns_and_texts(client: AsyncAnthropic, scripted: Any) -> None:
    await scripted.script("claude", {"toolCalls": [CALL]}, {"text": "{{last_tool}}; you asked {{last_user}}"})
    called = await client.messages.create(**request(tools=[TOOL]))
    answered = told(result("toolu_0_0"), text("and?"))
    answer = await client.messages.create(**request(ASKED, called.to_param(), answered, tools=[TOOL]))
    assert answer.content[0].to_dict()["text"] == "it is in Oslo; you asked and?"


async def test_a_model_without_a_script_plays_along(client: AsyncAnthropic) -> None:
    called = await client.messages.create(**request(tools=[TOOL]))
    (block,) = called.content
    assert block.to_dict() == {
        "type": "tool_use",
        "id": "toolu_0_0",
        "name": "find_order",
        "input": {"order_id": "42"},
    }
    answer = await client.messages.create(**request(ASKED, called.to_param(), told(result("toolu_0_0")), tools=[TOOL]))
    assert answer.content[0].to_dict()["text"] == "Here is what I found: it is in Oslo."
    schema = {"type": "object", "properties": {"urgent": {"type": "boolean"}}}
    wanted = {"format": {"type": "json_schema", "schema": schema}}
    assert (await client.messages.create(**request(output_config=wanted))).content[0].to_dict()["text"] == (
        '{"urgent": true}'
    )


async def test_what_is_recorded(client: AsyncAnthropic, scripted: Any) -> None:
    await client.messages.create(**request())
    (asked,) = await scripted.requests()
    assert asked.pop("time") > 0
    assert asked == {
        "model": "claude",
        "api": "messages",
        "path": "/anthropic/v1/messages",
        "apiVersion": VERSION,
        "authorization": True,
        "aborted": False,
        "body": request(),
    }


# ── Failures ──


@pytest.mark.parametrize(
    ("fault", "error", "kind"),
    [
        ({"status": 401}, anthropic.AuthenticationError, "authentication_error"),
        ({"status": 404}, anthropic.NotFoundError, "not_found_error"),
        ({"status": 429, "headers": {"retry-after": "7"}}, anthropic.RateLimitError, "rate_limit_error"),
        ({"status": 500}, anthropic.InternalServerError, "api_error"),
        ({"status": 529}, anthropic.OverloadedError, "overloaded_error"),
    ],
)
async def test_scripted_errors(client: AsyncAnthropic, scripted: Any, fault: Json, error: Any, kind: str) -> None:
    await scripted.script("claude", alwaysError={**fault, "message": "No."})
    with pytest.raises(error, match=r"No\.") as refused:
        await client.messages.create(**request())
    assert refused.value.type == kind
    assert refused.value.response.headers.get("retry-after") == fault.get("headers", {}).get("retry-after")
    with pytest.raises(error):
        async with client.messages.stream(**request()):
            pass


async def test_the_model_that_accepts_no_key(client: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.AuthenticationError):
        await client.messages.create(**request(model="unauthorized"))


async def test_an_error_in_mid_stream(client: AsyncAnthropic, scripted: Any) -> None:
    fault = {"text": "half of it", "errorMidStream": {"type": "overloaded_error", "message": "Overloaded"}}
    await scripted.script("claude", {"text": "all of it"}, errors=[fault])
    seen: list[str] = []
    with pytest.raises(anthropic.APIStatusError, match="Overloaded") as broken:
        await read(client.messages.stream(**request()), seen)
    assert "text" in seen
    assert (broken.value.type, broken.value.status_code) == ("overloaded_error", 200)
    async with client.messages.stream(**request()) as stream:
        assert await stream.get_final_text() == "all of it"


async def test_an_error_in_mid_stream_without_a_stream(client: AsyncAnthropic, scripted: Any) -> None:
    await scripted.script("claude", errors=[{"errorMidStream": {"type": "overloaded_error"}}])
    with pytest.raises(anthropic.OverloadedError):
        await client.messages.create(**request())


async def test_a_connection_that_breaks_in_mid_stream(client: AsyncAnthropic, scripted: Any) -> None:
    await scripted.script("claude", {"text": "half of it", "dropAfter": 4})
    seen: list[str] = []
    # The client hands on what its HTTP library raises: once a stream has begun, it is no APIConnectionError.
    with pytest.raises(httpx2.RemoteProtocolError):
        await read(client.messages.stream(**request()), seen)
    assert "text" in seen


async def test_a_connection_that_breaks_before_the_answer(client: AsyncAnthropic, scripted: Any) -> None:
    await scripted.script("claude", alwaysError={"drop": True})
    with pytest.raises(anthropic.APIConnectionError):
        await client.messages.create(**request())


async def test_a_client_that_goes_away_in_mid_stream_is_recorded(client: AsyncAnthropic, scripted: Any) -> None:
    await scripted.script("claude", {"text": "a long story", "chunkSeconds": 60})
    async with client.messages.stream(**request()) as stream:
        assert (await anext(aiter(stream))).type == "message_start"
    while not (await scripted.requests())[0]["aborted"]:  # bounded by the test's timeout
        pass


# ── What is refused ──


async def test_a_refusal_has_anthropic_s_shape(client: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="`tool_use` ids were found") as refused:
        async with client.messages.stream(**request(ASKED, said(use()), ASKED)):
            pass
    assert refused.value.type == "invalid_request_error"
    body: Any = refused.value.body
    assert body["request_id"] == refused.value.request_id


async def test_sampling_is_refused_by_the_version_that_the_client_names(client: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature: Extra inputs are not permitted"):
        await client.messages.create(**request(extra_body={"temperature": 1.0}))
    old = {"anthropic-version": "2023-06-01"}
    assert await client.messages.create(**request(extra_body={"temperature": 1.0}, extra_headers=old))


async def test_a_version_must_be_named(scripted: Any) -> None:
    async with scripted.http.post(f"{scripted.url}/anthropic/v1/messages", json=request()) as answer:
        assert (answer.status, (await answer.json())["error"]["message"]) == (
            400,
            "anthropic-version: header is required",
        )


THINKING = {"type": "enabled", "budget_tokens": 1024}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param({"model": "m", "messages": [ASKED]}, "max_tokens: Field required", id="no max_tokens"),
        pytest.param({"max_tokens": 1, "messages": []}, "at least one message", id="no message"),
        pytest.param(request(said(text("hi")), ASKED), 'must use the "user" role', id="the model speaks first"),
        pytest.param(request(told()), "non-empty content", id="an empty message"),
        pytest.param(request({"role": "user", "content": ""}), "non-empty content", id="an empty string"),
        pytest.param(request(told(text(""))), "messages: text content blocks must be non-empty", id="an empty block"),
        pytest.param(request(told(text(" "))), "non-whitespace", id="a blank block"),
        pytest.param(request(system=[text("")]), "system: text content blocks", id="an empty system prompt"),
        pytest.param(request({"role": "tool", "content": "x"}), "messages.0.role", id="a role of another API"),
        pytest.param(request(ASKED, said(text("so"))), "prefill", id="a prefill"),
        pytest.param(request(ASKED, said(thought("so"))), "cannot be `thinking`", id="a thought at the end"),
        pytest.param(request(ASKED, said(use())), "messages.1: `tool_use` ids were found", id="a call at the end"),
        pytest.param(request(ASKED, said(use("a"), use("b")), told(result("b"))), "after: a", id="a result is missing"),
        pytest.param(
            request(ASKED, said(use()), told(text("here"), result())), "after: a", id="words before the results"
        ),
        pytest.param(request(told(result())), "messages.0.content.0: unexpected `tool_use_id`", id="no call at all"),
        pytest.param(
            request(ASKED, said(use()), told(result()), said(text("ok")), told(result())),
            "messages.4.content.0: unexpected",
            id="a call of an earlier turn",
        ),
        pytest.param(request(ASKED, said(use()), told(result(), result())), "single result", id="two results"),
        pytest.param(
            request(ASKED, said(use()), told(result()), said(use()), told(result())), "must be unique", id="an id twice"
        ),
        pytest.param(request(ASKED, said(use("a b")), told(result("a b"))), "String should match", id="a strange id"),
        pytest.param(
            request(ASKED, said(thought("so", "scripted-other"), text("ok")), ASKED),
            "messages.1.content.0: Invalid `signature`",
            id="a changed thought",
        ),
        pytest.param(request(ASKED, said(thought("so", ""), text("ok")), ASKED), "Invalid", id="an unsigned thought"),
        pytest.param(request(thinking={"type": "enabled", "budget_tokens": 5}), "1024", id="a small budget"),
        pytest.param(
            request(max_tokens=1024, thinking=THINKING), "must be greater than `thinking", id="a budget of everything"
        ),
        pytest.param(request(thinking=THINKING, tool_choice={"type": "any"}), "forces tool use", id="a forced tool"),
        pytest.param(
            request(ASKED, said(use()), told(result()), thinking=THINKING),
            "messages.1.content.0.type: Expected `thinking`",
            id="thoughts that were left out",
        ),
        pytest.param(request(tools=[{**TOOL, "name": "a.b"}]), "tools.0.custom.name", id="a strange name"),
        pytest.param(request(tools=[TOOL, TOOL]), "must be unique", id="a name twice"),
        pytest.param(request(tools=[{"name": "a", "input_schema": {}}]), "input_schema.type", id="a schema of no type"),
        pytest.param(
            request(tools=[{"name": "a", "input_schema": {"type": "object", "anyOf": []}}]), "top level", id="anyOf"
        ),
    ],
)
def test_requests_that_are_refused(content: Json, words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check_messages(content, VERSION)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(
            request(ASKED, said(use("a"), use("b")), told(result("b")), told(result("a"), text("and?"))),
            id="results in two messages of the user",
        ),
        pytest.param(
            request(ASKED, said(thought("so"), use()), told(result()), thinking=THINKING), id="thoughts that came back"
        ),
        pytest.param(
            request(
                *(ASKED, said(thought("so"), use()), told(result()), said(use("b")), told(result("b"))),
                thinking=THINKING,
            ),
            id="thoughts at the beginning of a turn of many calls",
        ),
        pytest.param(
            request(ASKED, said(use()), told(result()), said(text("ok")), ASKED, thinking=THINKING),
            id="a turn without thoughts that is over",
        ),
        pytest.param(request(ASKED, said({"type": "server_tool_use"})), id="a paused turn goes on"),
        pytest.param(
            request(thinking={"type": "adaptive"}, tools=[TOOL], tool_choice={"type": "any"}), id="adaptive thinking"
        ),
        pytest.param(request(tools=[{"type": "web_search_20260209", "name": "web_search"}]), id="a tool of the server"),
    ],
)
def test_requests_that_are_fine(content: Json) -> None:
    check_messages(content, VERSION)

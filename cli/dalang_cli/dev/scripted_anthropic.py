"""Anthropic's Messages API, streamed or whole, and the same at Amazon Bedrock (model_server.py lists the addresses).

A script's response becomes content blocks in the order in which Claude gives them: thinking, text, tool uses. The blocks
become the events of a stream; a whole answer is made from the same message, so that both say the same. At Bedrock the model
is in the path, errors are `{"message"}` with a name in a header, and the events come in AWS's frames (scripted_bedrock.py).
"""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from aiohttp import web

from dalang_cli.dev import scripted_bedrock
from dalang_cli.dev.scripted_answers import (
    BadRequest,
    Json,
    Script,
    as_text,
    choose_response,
    content_text,
    filled_text,
    tokens,
    turn_of,
)
from dalang_cli.dev.scripted_anthropic_rules import blocks, check_messages, signature

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
"""What a script written for OpenAI means by `finishReason`; Anthropic's own words are taken as they are."""

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""https://platform.claude.com/docs/en/api/errors; any other status is an `api_error`."""

DELTAS = 3
"""Into how many pieces a stream breaks a text, a thought or the arguments of a call."""


class Messages:
    """POST /anthropic/v1/messages."""

    name = "messages"

    def read(self, request: web.Request, content: Json) -> Json:
        return content

    def version(self, request: web.Request, content: Json) -> str | None:
        return request.headers.get("anthropic-version")

    def streams(self, request: web.Request, content: Json) -> bool:
        return bool(content.get("stream"))

    def check(self, request: web.Request, content: Json) -> None:
        if (version := self.version(request, content)) is None:
            raise BadRequest("anthropic-version: header is required")
        check_messages(content, version)

    def choose(self, content: Json, scripts: dict[str, Script]) -> Json:
        return choose_response(as_chat(content), scripts)

    async def answer(self, request: web.Request, content: Json, response: Json, size: int) -> web.StreamResponse:
        message = message_of(content, response, size)
        headers = {"request-id": _request_id()}
        if not self.streams(request, content):
            return web.json_response(message, headers=headers)
        stream = web.StreamResponse(headers={**headers, "Content-Type": "text/event-stream; charset=utf-8"})
        return await _send(request, stream, response, [_as_sse(event) for event in events(message, response)])

    def refuse(self, status: int, message: str | None, param: str | None = None) -> web.Response:
        """Return an error in Anthropic's shape."""
        request_id = _request_id()
        error = {"type": ERROR_TYPES.get(status, "api_error"), "message": message or f"scripted error {status}"}
        body = {"type": "error", "error": error, "request_id": request_id}
        return web.json_response(body, status=status, headers={"request-id": request_id})


class Bedrock(Messages):
    """POST /bedrock/model/{model}/invoke and …/invoke-with-response-stream."""

    name = "bedrock"

    def read(self, request: web.Request, content: Json) -> Json:
        return {**content, "model": request.match_info["model"]}

    def version(self, request: web.Request, content: Json) -> str | None:
        return content.get("anthropic_version")

    def streams(self, request: web.Request, content: Json) -> bool:
        return request.path.endswith("/invoke-with-response-stream")

    def check(self, request: web.Request, content: Json) -> None:
        if (version := self.version(request, content)) is None:
            raise BadRequest("anthropic_version: Field required")
        check_messages(content, version)

    async def answer(self, request: web.Request, content: Json, response: Json, size: int) -> web.StreamResponse:
        message = message_of(content, response, size)
        headers = {"x-amzn-RequestId": _request_id()}
        if not self.streams(request, content):
            return web.json_response(message, headers=headers)
        stream = web.StreamResponse(headers={**headers, "Content-Type": "application/vnd.amazon.eventstream"})
        told = [event for event in events(message, response) if event["type"] != "ping"]
        return await _send(request, stream, response, [scripted_bedrock.frame(event) for event in told])

    def refuse(self, status: int, message: str | None, param: str | None = None) -> web.Response:
        """Return an error in AWS's shape."""
        headers = {"x-amzn-ErrorType": scripted_bedrock.error_name(status), "x-amzn-RequestId": _request_id()}
        return web.json_response({"message": message or f"scripted error {status}"}, status=status, headers=headers)


def as_chat(content: Json) -> Json:
    """Return a request as Chat Completions write it, which is what chooses an answer."""
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool["name"],
                "description": tool.get("description", ""),
                "parameters": tool["input_schema"],
            },
        }
        for tool in content.get("tools") or []
        if "input_schema" in tool  # the others run at Anthropic
    ]
    system = [{"role": "system", "content": content["system"]}] if content.get("system") else []
    chat: Json = {
        "model": content["model"],
        "messages": [*system, *_chat_messages(content["messages"])],
        "tools": tools,
    }
    if choice := content.get("tool_choice"):
        named = {"type": "function", "function": {"name": choice.get("name")}}
        chat["tool_choice"] = {"any": "required", "none": "none", "tool": named}.get(choice["type"], "auto")
    output = (content.get("output_config") or {}).get("format") or content.get("output_format")
    if output:
        chat["response_format"] = {"type": "json_schema", "json_schema": {"schema": output.get("schema")}}
    return chat


def _chat_messages(messages: Sequence[Json]) -> Iterator[Json]:
    for message in messages:
        results = [block for block in blocks(message) if block["type"] == "tool_result"]
        for result in results:
            yield {"role": "tool", "tool_call_id": result["tool_use_id"], "content": content_text(result)}
        others = [block for block in blocks(message) if block["type"] != "tool_result"]
        if others or not results:
            yield {"role": message["role"], "content": others}


def message_of(content: Json, response: Json, request_bytes: int) -> Json:
    """Return the whole answer."""
    chat = as_chat(content)
    parts = list(_content(chat, response))
    calls = any(part["type"] == "tool_use" for part in parts)
    finish = response.get("finishReason") or ("tool_use" if calls else "end_turn")
    return {
        "id": f"msg_{time.monotonic_ns():x}",
        "type": "message",
        "role": "assistant",
        "model": content["model"],
        "content": parts,
        "stop_reason": STOP_REASONS.get(finish, finish),
        "stop_sequence": None,
        "usage": {
            "input_tokens": max(1, request_bytes // 4),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": tokens(*map(json.dumps, parts)),
            **(response.get("usage") or {}),
        },
    }


def _content(chat: Json, response: Json) -> Iterator[Json]:
    if data := response.get("redactedThinking"):
        yield {"type": "redacted_thinking", "data": data}
    if thinking := response.get("thinking"):
        text = thinking.get("text", "")
        yield {"type": "thinking", "thinking": text, "signature": thinking.get("signature") or signature(text)}
    if text := filled_text(response, chat):
        yield {"type": "text", "text": text}
    for position, call in enumerate(response.get("toolCalls") or []):
        call_id = call.get("id") or f"toolu_{turn_of(chat)}_{position}"
        yield {"type": "tool_use", "id": call_id, "name": call["name"], "input": _as_input(call.get("arguments", {}))}


def _as_input(arguments: Any) -> Any:
    """Return a call's arguments as an object; a script may give text that is no JSON, and then so does the answer."""
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def events(message: Json, response: Json) -> list[Json]:
    """Return a message as the events of a stream; an error that the script wants cuts it off in the middle."""
    told = list(_events(message))
    if error := response.get("errorMidStream"):
        after = error.get("after", len(told) // 2)
        shown = {"type": error.get("type", "api_error"), "message": error.get("message") or error.get("type", "")}
        return [*told[:after], {"type": "error", "error": shown}]
    return told


def _events(message: Json) -> Iterator[Json]:
    usage = message["usage"]
    begun = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    yield {"type": "message_start", "message": begun}
    for index, block in enumerate(message["content"]):
        empty, deltas = _block_events(block)
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        if index == 0:
            yield {"type": "ping"}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    stop = {"stop_reason": message["stop_reason"], "stop_sequence": message["stop_sequence"]}
    yield {"type": "message_delta", "delta": stop, "usage": usage}
    yield {"type": "message_stop"}


def _block_events(block: Json) -> tuple[Json, list[Json]]:
    """Return a block as a stream begins it, and what then comes of it."""
    match block["type"]:
        case "text":
            return {**block, "text": ""}, [{"type": "text_delta", "text": each} for each in _pieces(block["text"])]
        case "thinking":
            deltas = [{"type": "thinking_delta", "thinking": each} for each in _pieces(block["thinking"])]
            signed = {"type": "signature_delta", "signature": block["signature"]}
            return {**block, "thinking": "", "signature": ""}, [*deltas, signed]
        case "tool_use":
            deltas = [
                {"type": "input_json_delta", "partial_json": each} for each in ["", *_pieces(as_text(block["input"]))]
            ]
            return {**block, "input": {}}, deltas
    return block, []


def _pieces(text: str) -> list[str]:
    length = max(1, -(-len(text) // DELTAS))
    return [text[start : start + length] for start in range(0, len(text), length)]


def _as_sse(event: Json) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


async def _send(
    request: web.Request, stream: web.StreamResponse, response: Json, chunks: Sequence[bytes]
) -> web.StreamResponse:
    """Write the events one by one, and end as the script wants: whole, or with a broken connection."""
    await stream.prepare(request)
    drop_after = response.get("dropAfter")
    for chunk in chunks[:drop_after]:
        await stream.write(chunk)
        await asyncio.sleep(response.get("chunkSeconds") or 0)
    if drop_after is not None and request.transport is not None:
        request.transport.abort()
    return stream


def _request_id() -> str:
    return f"req_{time.monotonic_ns():x}"

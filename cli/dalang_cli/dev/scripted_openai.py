"""OpenAI's Chat Completions and Embeddings, at OpenAI's addresses and at Azure's (model_server.py lists them).

At Azure the model is the deployment in the path, and every request names an `api-version`. What the real servers refuse is
refused in their words: a run that sends it would fail with a customer, so it is to fail here.
"""

import time
from collections.abc import Sequence

from aiohttp import web

from dalang_cli.dev.scripted_answers import (
    BadRequest,
    Json,
    Script,
    as_text,
    choose_fault,
    choose_response,
    filled_text,
    tokens,
    turn_of,
)
from dalang_cli.dev.scripted_embeddings import DIMENSIONS, as_base64, embed

MAX_INPUTS = 2048
MAX_INPUT_TOKENS = 8192
"""Both of /v1/embeddings: openai-python `types/embedding_create_params.py`."""


class _OpenAI:
    """What both APIs have in common."""

    def read(self, request: web.Request, content: Json) -> Json:
        """Return the request with its model, which at Azure is the deployment in the path."""
        if deployment := request.match_info.get("deployment"):
            if "api-version" not in request.query:
                raise BadRequest("Resource not found", status=404)
            return {**content, "model": deployment}
        return content

    def version(self, request: web.Request, content: Json) -> str | None:
        return request.query.get("api-version")

    def streams(self, request: web.Request, content: Json) -> bool:
        return False

    def refuse(self, status: int, message: str | None, param: str | None = None) -> web.Response:
        """Return an error in OpenAI's shape."""
        kind = "invalid_request_error" if 400 <= status < 500 and status != 429 else "server_error"
        error = {
            "message": message or f"scripted error {status}",
            "type": kind if message else "scripted",
            "param": param,
            "code": "invalid_api_key" if status == 401 and message else None,
        }
        return web.json_response({"error": error}, status=status)


class Chat(_OpenAI):
    """POST …/chat/completions."""

    name = "chat"

    def check(self, request: web.Request, content: Json) -> None:
        if not isinstance(content.get("messages"), list) or not content["messages"]:
            raise BadRequest("the request has no messages", "messages")
        if content.get("stream"):
            raise BadRequest("the scripted model does not stream", "stream")
        check_tool_messages(content["messages"])

    def choose(self, content: Json, scripts: dict[str, Script]) -> Json:
        return choose_response(content, scripts)

    async def answer(self, request: web.Request, content: Json, response: Json, size: int) -> web.StreamResponse:
        return web.json_response(completion(content, response, size))


class Embeddings(_OpenAI):
    """POST …/embeddings; a script can only say how it fails, the vectors are computed."""

    name = "embeddings"

    def check(self, request: web.Request, content: Json) -> None:
        texts = _texts(content)
        if not texts or not all(texts):
            raise BadRequest("'$.input' is invalid: the input cannot be empty.", "input")
        if len(texts) > MAX_INPUTS:
            raise BadRequest(f"'$.input' is invalid: at most {MAX_INPUTS} inputs.", "input")
        if (longest := max(map(tokens, texts))) > MAX_INPUT_TOKENS:
            raise BadRequest(
                f"This model's maximum context length is {MAX_INPUT_TOKENS} tokens, however you requested {longest} tokens.",
                "input",
            )

    def choose(self, content: Json, scripts: dict[str, Script]) -> Json:
        return choose_fault(content["model"], scripts)

    async def answer(self, request: web.Request, content: Json, response: Json, size: int) -> web.StreamResponse:
        return web.json_response(embeddings(content, response))


def check_tool_messages(messages: Sequence[Json]) -> None:
    """Refuse tool results without their call, and calls without all of their results.

    Raises:
        BadRequest: in OpenAI's words, the typing error in them included.
    """
    asked: set[str] = set()
    open_calls: set[str] = set()
    for position, message in enumerate(messages):
        if message.get("role") == "tool":
            if not asked:
                raise BadRequest(
                    "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with "
                    "'tool_calls'.",
                    f"messages.[{position}].role",
                )
            if (call := message.get("tool_call_id")) not in asked:
                raise BadRequest(
                    f"Invalid parameter: 'tool_call_id' of '{call}' not found in 'tool_calls' of previous message.",
                    f"messages.[{position}].tool_call_id",
                )
            open_calls.discard(str(call))
            continue
        _check_answered(open_calls, position)
        calls = message.get("tool_calls") if message.get("role") == "assistant" else None
        asked = {call["id"] for call in calls or ()}
        open_calls = set(asked)
    _check_answered(open_calls, len(messages))


def _check_answered(open_calls: set[str], position: int) -> None:
    if open_calls:
        raise BadRequest(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. "
            f"The following tool_call_ids did not have response messages: {', '.join(sorted(open_calls))}",
            f"messages.[{position}].role",
        )


def completion(request: Json, response: Json, request_bytes: int) -> Json:
    """Return the body of a successful answer."""
    message: Json = {"role": "assistant", "content": filled_text(response, request), "refusal": None}
    if calls := response.get("toolCalls"):
        message["tool_calls"] = [
            {
                "id": call.get("id") or f"call_{turn_of(request)}_{position}",
                "type": "function",
                "function": {"name": call["name"], "arguments": as_text(call.get("arguments", {}))},
            }
            for position, call in enumerate(calls)
        ]
    prompt_tokens = max(1, request_bytes // 4)
    completion_tokens = tokens(message["content"] or "", *map(as_text, calls or ()))
    return {
        "id": f"chatcmpl-{time.monotonic_ns():x}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request["model"],
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": response.get("finishReason") or ("tool_calls" if calls else "stop"),
            }
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            **(response.get("usage") or {}),
        },
    }


def embeddings(request: Json, response: Json) -> Json:
    """Return the body of a successful answer, the vectors in the order of the input."""
    texts = _texts(request)
    vectors = [embed(text, request.get("dimensions") or DIMENSIONS) for text in texts]
    encoded = [as_base64(each) for each in vectors] if request.get("encoding_format") == "base64" else vectors
    used = tokens(*texts)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": position, "embedding": each} for position, each in enumerate(encoded)
        ],
        "model": request["model"],
        "usage": {"prompt_tokens": used, "total_tokens": used, **(response.get("usage") or {})},
    }


def _texts(request: Json) -> list[str]:
    given = request.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRequest("the scripted model embeds a text or a list of texts, not tokens", "input")
    return texts

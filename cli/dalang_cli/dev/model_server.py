"""A scripted model with OpenAI's Chat Completions API: `python -m dalang_cli.dev.model_server --port N`.

`dalang dev` runs it so that examples work without a key; tests give it scripts; benchmarks use it as a model that costs
nothing. Answers are chosen from the request alone (the number of assistant messages in it), so a retry, a restarted worker
and a replay get the same answer. Only errors are counted, because an error is there to be retried.

    PUT    /scripts/{model}        {"responses": [...], "errors": [...], "alwaysError": {...}, "latencySeconds": 0, "loop": false}
    DELETE /scripts/{model}
    GET    /requests?model=NAME    what was asked; DELETE forgets it
    POST   /v1/chat/completions    GET /v1/models    GET /healthz

A response is `{"text": "..."}` or `{"toolCalls": [{"name", "arguments"}], "text"?}`, with `finishReason` and `latencySeconds`
if wanted; an error is `{"status": 429, "headers": {}, "body": {}}` or `{"drop": true}`. In a text `{{last_tool}}` and
`{{last_user}}` stand for the last message of that role, `{{n}}` for the number of the turn, from 1.

Models without a script: `bench-<ms>` says "ok" after so many milliseconds; `bench-<ms>-turns-<k>-bytes-<b>` first calls the
first tool k times with b bytes; `unauthorized` answers 401; any other one plays along (demo_model.py).
"""

import argparse
import asyncio
import json
import re
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from dalang_cli.dev.demo_model import demo_response

Json = dict[str, Any]

MAX_RECORDED = 20_000
MAX_RECORDED_BYTES = 256 * 1024 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024
BENCH = re.compile(r"bench-(?P<latency>\d+)(?:-turns-(?P<turns>\d+)-bytes-(?P<size>\d+))?")


class BadRequest(Exception):
    """The request, or the script it asks for, makes no sense; answered with 400, which clients do not retry."""


@dataclass
class Script:
    """What one model answers."""

    responses: list[Json] = field(default_factory=list)
    errors: list[Json] = field(default_factory=list)
    """Given first, one per request, in order."""
    always_error: Json | None = None
    latency_seconds: float = 0.0
    loop: bool = False
    """Begin anew after the last response; without it a further request is an error."""

    @classmethod
    def parse(cls, content: Any) -> "Script":
        """Read the body of `PUT /scripts/{model}`; a misspelt key is an error, not a model that does something else."""
        known = {"responses", "errors", "alwaysError", "latencySeconds", "loop"}
        if not isinstance(content, dict) or (unknown := set(content) - known):
            raise BadRequest(
                f"a script is an object with the keys {sorted(known)}, not {unknown if content else content}"
            )
        return cls(
            responses=list(content.get("responses") or []),
            errors=list(content.get("errors") or []),
            always_error=content.get("alwaysError"),
            latency_seconds=float(content.get("latencySeconds") or 0.0),
            loop=bool(content.get("loop")),
        )

    def next_response(self, turn: int) -> Json:
        """Return the error or response for a request that already contains `turn` assistant messages."""
        if self.always_error is not None:
            return self.always_error
        if self.errors:
            return self.errors.pop(0)
        if self.loop and self.responses:
            return self.responses[turn % len(self.responses)]
        if turn >= len(self.responses):
            raise BadRequest(
                f"the script has {len(self.responses)} responses, but the request is for number {turn + 1}"
            )
        return self.responses[turn]


@dataclass
class Recorded:
    """One request to a model; the body stays bytes until somebody asks."""

    model: str
    body: bytes
    time: float
    authorized: bool
    aborted: bool = False
    """The client went away before it got its answer."""

    def to_json(self) -> Json:
        """Return what `GET /requests` shows; never the key itself."""
        return {
            "model": self.model,
            "time": self.time,
            "authorization": self.authorized,
            "aborted": self.aborted,
            "body": json.loads(self.body),
        }


class Recorder:
    """The last requests, bounded in number and in bytes."""

    def __init__(self) -> None:
        self.requests: deque[Recorded] = deque()
        self._bytes = 0

    def add(self, request: Recorded) -> None:
        self.requests.append(request)
        self._bytes += len(request.body)
        while len(self.requests) > MAX_RECORDED or self._bytes > MAX_RECORDED_BYTES:
            self._bytes -= len(self.requests.popleft().body)

    def clear(self, model: str | None) -> None:
        """Forget the requests of one model, or all."""
        self.requests = deque(each for each in self.requests if model is not None and each.model != model)
        self._bytes = sum(len(each.body) for each in self.requests)


def choose_response(request: Json, scripts: dict[str, Script]) -> Json:
    """Return the response (or error) for a request.

    Raises:
        BadRequest: the script has no such response.
    """
    model: str = request["model"]
    messages: list[Json] = request["messages"]
    turn = sum(message.get("role") == "assistant" for message in messages)
    if (script := scripts.get(model)) is not None:
        return {"latencySeconds": script.latency_seconds, **script.next_response(turn)}
    if match := BENCH.fullmatch(model):
        return _bench_response(match, turn, request.get("tools") or [])
    if model == "unauthorized":
        error = {"message": "Incorrect API key provided.", "type": "invalid_request_error", "code": "invalid_api_key"}
        return {"status": 401, "body": {"error": {**error, "param": None}}}
    return demo_response(request)


def _bench_response(match: re.Match[str], turn: int, tools: Sequence[Json]) -> Json:
    latency = int(match["latency"]) / 1000
    if match["turns"] is None:
        return {"text": "ok", "latencySeconds": latency}
    filling = "x" * int(match["size"])
    if turn >= int(match["turns"]) or not tools:
        return {"text": filling, "latencySeconds": latency}
    function = tools[0]["function"]
    properties = (function.get("parameters") or {}).get("properties") or {}
    name = next((name for name, schema in properties.items() if schema.get("type") == "string"), None)
    arguments = {name: filling} if name else {}
    return {"toolCalls": [{"name": function["name"], "arguments": arguments}], "latencySeconds": latency}


def completion(request: Json, response: Json, request_bytes: int) -> Json:
    """Return the body of a successful answer."""
    messages: list[Json] = request["messages"]
    turn = sum(message.get("role") == "assistant" for message in messages)
    message: Json = {"role": "assistant", "content": _filled(response.get("text"), messages, turn), "refusal": None}
    if calls := response.get("toolCalls"):
        message["tool_calls"] = [
            {
                "id": call.get("id") or f"call_{turn}_{position}",
                "type": "function",
                "function": {"name": call["name"], "arguments": _as_text(call.get("arguments", {}))},
            }
            for position, call in enumerate(calls)
        ]
    said = len(message["content"] or "") + sum(len(_as_text(call)) for call in calls or ())
    prompt_tokens, completion_tokens = max(1, request_bytes // 4), max(1, said // 4)
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


def _filled(text: str | None, messages: Sequence[Json], turn: int) -> str | None:
    if text is None or "{{" not in text:
        return text
    for role in ("tool", "user"):
        last = next((message for message in reversed(messages) if message.get("role") == role), None)
        text = text.replace(f"{{{{last_{role}}}}}", content_text(last) if last else "")
    return text.replace("{{n}}", str(turn + 1))


def content_text(message: Json) -> str:
    """Return the text of a message whose content is a string or a list of parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class ModelServer:
    """The HTTP side."""

    def __init__(self) -> None:
        self._scripts: dict[str, Script] = {}
        self._recorder = Recorder()

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_post("/v1/chat/completions", self._complete)
        application.router.add_get("/v1/models", self._list_models)
        application.router.add_get("/healthz", self._health)
        application.router.add_put("/scripts/{model}", self._put_script)
        application.router.add_delete("/scripts/{model}", self._delete_script)
        application.router.add_get("/requests", self._list_requests)
        application.router.add_delete("/requests", self._clear_requests)
        return application

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        try:
            content = _parse_request(raw)
            recorded = Recorded(content["model"], raw, time.time(), "Authorization" in request.headers)
            self._recorder.add(recorded)
            response = choose_response(content, self._scripts)
        except BadRequest as error:
            return _error(400, str(error))
        if latency := response.get("latencySeconds"):
            try:
                await asyncio.sleep(latency)
            except asyncio.CancelledError:
                recorded.aborted = True
                raise
        if response.get("drop"):
            if request.transport is not None:
                request.transport.abort()
            return web.Response()  # goes nowhere
        if status := response.get("status"):
            body = response.get("body") or {"error": {"message": f"scripted error {status}", "type": "scripted"}}
            return web.json_response(body, status=status, headers=response.get("headers"))
        return web.json_response(completion(content, response, len(raw)))

    async def _list_models(self, request: web.Request) -> web.Response:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "dalang"} for name in self._scripts]
        return web.json_response({"object": "list", "data": models})

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _put_script(self, request: web.Request) -> web.Response:
        try:
            script = Script.parse(json.loads(await request.read()))
        except (BadRequest, ValueError) as error:
            return _error(400, str(error))
        self._scripts[request.match_info["model"]] = script
        return web.json_response({})

    async def _delete_script(self, request: web.Request) -> web.Response:
        self._scripts.pop(request.match_info["model"], None)
        return web.json_response({})

    async def _list_requests(self, request: web.Request) -> web.Response:
        model = request.query.get("model")
        shown = [each.to_json() for each in self._recorder.requests if model is None or each.model == model]
        return web.json_response({"requests": shown})

    async def _clear_requests(self, request: web.Request) -> web.Response:
        self._recorder.clear(request.query.get("model"))
        return web.json_response({})


def _parse_request(raw: bytes) -> Json:
    try:
        content = json.loads(raw)
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), str):
        raise BadRequest("the request names no model")
    if not isinstance(content.get("messages"), list) or not content["messages"]:
        raise BadRequest("the request has no messages")
    if content.get("stream"):
        raise BadRequest("the scripted model does not stream")
    return content


def _error(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return web.json_response({"error": error}, status=status)


def main() -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m dalang_cli.dev.model_server", description="A scripted model.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    options = parser.parse_args()
    web.run_app(
        ModelServer().application(),
        host=options.host,
        port=options.port,
        print=None,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=0.5,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

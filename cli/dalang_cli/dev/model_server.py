"""A scripted model that speaks every provider's API: `python -m dalang_cli.dev.model_server --port N`.

`dalang dev` runs it so that examples work without a key; tests give it scripts; benchmarks use it as a model that costs
nothing. Answers are chosen from the request alone (scripted_answers.py), and what a provider refuses is refused here.

    provider      base URL of its SDK               answers
    OpenAI        http://host:port/v1               POST /v1/chat/completions, /v1/embeddings; GET /v1/models
    Azure OpenAI  http://host:port (the endpoint)   POST /openai/deployments/{deployment}/chat/completions, …/embeddings
    Anthropic     http://host:port/anthropic        POST /anthropic/v1/messages, streamed or not
    Bedrock       http://host:port/bedrock          POST /bedrock/model/{model}/invoke, …/invoke-with-response-stream

    PUT    /scripts/{model}        {"responses": [...], "errors": [...], "alwaysError": {...}, "latencySeconds": 0, "loop": false,
                                    "summarises": false}
    DELETE /scripts/{model}        the model is the deployment at Azure, the one in the path at Bedrock
    GET    /requests?model=NAME    what was asked; DELETE forgets it
    GET    /healthz

A response is `{"text": "..."}` or `{"toolCalls": [{"name", "arguments", "id"?}], "text"?}`, with `finishReason`, `usage` (in
the provider's words) and `latencySeconds` if wanted. For Anthropic and Bedrock also `thinking: {"text", "signature"?}` and
`redactedThinking: DATA`. In a text `{{last_tool}}` and `{{last_user}}` stand for the last message of that role, `{{n}}` for
the number of the turn, from 1. An error is `{"status": 429, "headers": {}, "message": "", "body": {}}`, where `body` is in
place of the provider's own shape, or `{"drop": true}`. Embeddings are computed, so that their scripts hold only errors.

What a stream may suffer stands beside the response that it breaks: `dropAfter: N` drops the connection after N events,
`errorMidStream: {"type": "overloaded_error", "message", "after"?: N}` ends it with an error (after half of the events),
`chunkSeconds` passes between two events. A client that does not stream gets the first two instead of an answer.

Models without a script: `bench-<ms>` says "ok" after so many milliseconds; `bench-<ms>-turns-<k>-bytes-<b>` first calls the
first tool k times with b bytes; `unauthorized` answers 401; any other one plays along (demo_model.py).
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aiohttp import web

from dalang_cli.dev.scripted_answers import BadRequest, Script, choose_response, without_stream
from dalang_cli.dev.scripted_anthropic import Bedrock, Messages
from dalang_cli.dev.scripted_openai import Chat, Embeddings, completion
from dalang_cli.dev.scripted_requests import Recorded, Recorder

__all__ = ["BadRequest", "ModelServer", "Script", "choose_response", "completion"]

Json = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY_BYTES = 64 * 1024 * 1024
KEY_HEADERS = ("Authorization", "api-key", "x-api-key")
"""Where a key comes along: OpenAI, Anthropic and Bedrock · Azure · Anthropic until version 2026-10-21."""


class Api(Protocol):
    """One provider's API: how it asks, refuses and answers."""

    name: str

    def read(self, request: web.Request, content: Json) -> Json:
        """Return the request with its model in `model`, wherever it was named."""

    def version(self, request: web.Request, content: Json) -> str | None:
        """Return the version of the API that the client names."""

    def streams(self, request: web.Request, content: Json) -> bool:
        """Return whether the answer is a stream."""

    def check(self, request: web.Request, content: Json) -> None:
        """Refuse what the provider refuses.

        Raises:
            BadRequest: with the words of the provider.
        """

    def choose(self, content: Json, scripts: dict[str, Script]) -> Json:
        """Return the response (or error) for a request."""

    async def answer(self, request: web.Request, content: Json, response: Json, size: int) -> web.StreamResponse:
        """Answer with a response that is no error."""

    def refuse(self, status: int, message: str | None, param: str | None = None) -> web.Response:
        """Return an error in the provider's shape."""


class ModelServer:
    """The HTTP side."""

    def __init__(self) -> None:
        self._scripts: dict[str, Script] = {}
        self._recorder = Recorder()

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        chat, embeddings, messages, bedrock = Chat(), Embeddings(), Messages(), Bedrock()
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        router = application.router
        router.add_post("/v1/chat/completions", self._model(chat))
        router.add_post("/v1/embeddings", self._model(embeddings))
        router.add_post("/openai/deployments/{deployment}/chat/completions", self._model(chat))
        router.add_post("/openai/deployments/{deployment}/embeddings", self._model(embeddings))
        router.add_post("/anthropic/v1/messages", self._model(messages))
        router.add_post("/bedrock/model/{model}/invoke", self._model(bedrock))
        router.add_post("/bedrock/model/{model}/invoke-with-response-stream", self._model(bedrock))
        router.add_get("/v1/models", self._list_models)
        router.add_get("/healthz", self._health)
        router.add_put("/scripts/{model}", self._put_script)
        router.add_delete("/scripts/{model}", self._delete_script)
        router.add_get("/requests", self._list_requests)
        router.add_delete("/requests", self._clear_requests)
        return application

    def _model(self, api: Api) -> Handler:
        """Return the handler of one API."""

        async def ask(request: web.Request) -> web.StreamResponse:
            raw = await request.read()
            try:
                content = _parse_request(api, request, raw)
                recorded = _recorded(api, request, content, raw)
                self._recorder.add(recorded)
                api.check(request, content)
                response = api.choose(content, self._scripts)
            except BadRequest as error:
                return api.refuse(error.status, str(error), error.param)
            try:
                return await _answer(api, request, content, response, len(raw))
            except (asyncio.CancelledError, ConnectionError):
                recorded.aborted = True
                raise

        return ask

    async def _list_models(self, request: web.Request) -> web.Response:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "dalang"} for name in self._scripts]
        return web.json_response({"object": "list", "data": models})

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _put_script(self, request: web.Request) -> web.Response:
        try:
            script = Script.parse(json.loads(await request.read()))
        except (BadRequest, ValueError) as error:
            return Chat().refuse(400, str(error))
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


def _parse_request(api: Api, request: web.Request, raw: bytes) -> Json:
    try:
        content = json.loads(raw)
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise BadRequest("the body is not an object")
    content = api.read(request, content)
    if not isinstance(content.get("model"), str):
        raise BadRequest("the request names no model", "model")
    return content


def _recorded(api: Api, request: web.Request, content: Json, raw: bytes) -> Recorded:
    return Recorded(
        model=content["model"],
        body=raw,
        time=time.time(),
        authorized=any(name in request.headers for name in KEY_HEADERS),
        api=api.name,
        path=request.rel_url.raw_path,
        api_version=api.version(request, content),
    )


async def _answer(api: Api, request: web.Request, content: Json, response: Json, size: int) -> web.StreamResponse:
    if latency := response.get("latencySeconds"):
        await asyncio.sleep(latency)
    if not api.streams(request, content):
        response = without_stream(response)
    if response.get("drop"):
        if request.transport is not None:
            request.transport.abort()
        return web.Response()  # goes nowhere
    if status := response.get("status"):
        refused = api.refuse(status, response.get("message"))
        if body := response.get("body"):
            refused.text = json.dumps(body)
        refused.headers.update(response.get("headers") or {})
        return refused
    return await api.answer(request, content, response, size)


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

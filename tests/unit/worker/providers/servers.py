"""Servers on a loopback port: the scripted model, and one that answers whatever it is told to."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

Json = dict[str, Any]


@dataclass(frozen=True)
class ScriptedModel:
    """A running model server."""

    url: str
    http: aiohttp.ClientSession

    async def script(self, model: str, *responses: Json, **more: Any) -> None:
        async with self.http.put(f"{self.url}/scripts/{model}", json={"responses": responses, **more}) as answer:
            assert answer.status == 200, await answer.text()

    async def requests(self) -> list[Json]:
        async with self.http.get(f"{self.url}/requests") as answer:
            found: list[Json] = (await answer.json())["requests"]
            return found


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    headers: Mapping[str, str]
    body: Json


@dataclass
class Told:
    """One answer."""

    status: int = 200
    body: Json | bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"


@dataclass
class Endpoint:
    """Answers in order, whatever the path; after the last one it breaks the connection."""

    url: str = ""
    answers: deque[Told] = field(default_factory=deque)
    asked: list[Asked] = field(default_factory=list)

    def tell(self, status: int = 200, body: Json | bytes = b"", **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.append(Told(status, body, named))

    def stream(self, *lines: str) -> None:
        self.answers.append(Told(200, "".join(lines).encode(), kind="text/event-stream"))

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(Asked(request.path, request.headers.copy(), await request.json()))
        if not self.answers:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        told = self.answers.popleft()
        if isinstance(told.body, bytes):
            return web.Response(status=told.status, body=told.body, headers=told.headers, content_type=told.kind)
        return web.json_response(told.body, status=told.status, headers=told.headers)

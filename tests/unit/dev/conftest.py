"""The scripted model on a port of its own, and a hand on its scripts."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from dalang_cli.dev.model_server import ModelServer

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


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedModel]:
    server = TestServer(ModelServer().application(), handler_cancellation=True)
    async with server, aiohttp.ClientSession() as http:
        yield ScriptedModel(str(server.make_url("")).rstrip("/"), http)

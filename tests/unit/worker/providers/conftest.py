"""Servers that the SDKs' real clients talk to, and an environment that is not the developer's own."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from dalang_cli.dev.model_server import ModelServer

from tests.unit.worker.providers.servers import Endpoint, ScriptedModel

ENVIRONMENT = (
    *("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_BEARER_TOKEN_BEDROCK", "AWS_PROFILE"),
)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the developer's own reaches a client, and AWS's chain ends at once."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedModel]:
    server = TestServer(ModelServer().application(), handler_cancellation=True)
    async with server, aiohttp.ClientSession() as http:
        yield ScriptedModel(str(server.make_url("")).rstrip("/"), http)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    endpoint = Endpoint()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", endpoint.answer)
    async with TestServer(application) as server:
        endpoint.url = str(server.make_url("")).rstrip("/")
        yield endpoint

"""MCP servers and their clients for these tests."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from dalang_api.contract import McpServerSettings
from dalang_worker.mcp.servers import McpServers

from tests.unit.worker.mcp.serving import ServerProcess, stdio

Reach = Callable[[McpServerSettings], McpServers]


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets" / "weather"
    folder.mkdir(parents=True)
    (folder / "token").write_text("a-secret-token")
    return tmp_path / "secrets"


@pytest.fixture
async def reach(secrets: Path, tmp_path: Path) -> AsyncIterator[Reach]:
    """Return a function that makes the `McpServers` of one server."""
    made: list[McpServers] = []

    def make(settings: McpServerSettings) -> McpServers:
        made.append(McpServers([settings], secrets, tmp_path))
        return made[-1]

    yield make
    for servers in made:
        await servers.close()


@pytest.fixture
def serve() -> Iterator[Callable[[str], ServerProcess]]:
    """Return a function that starts a server over HTTP."""
    started: list[ServerProcess] = []

    def start(kind: str) -> ServerProcess:
        started.append(ServerProcess(kind).start())
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture(params=["stdio", "sse", "streamable-http", "json"])
def settings(request: pytest.FixtureRequest, serve: Callable[[str], ServerProcess]) -> McpServerSettings:
    """The settings of the server that has everything, over each transport."""
    return stdio() if request.param == "stdio" else serve(request.param).settings()

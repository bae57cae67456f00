"""Servers that die, hang, come back, change their tools, and are not there at all."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from dalang_api.contract import McpServerSettings, NamedValue, SecretKey, ToolOutcome
from dalang_worker.mcp import McpConnectionLostError, McpUnavailableError
from dalang_worker.mcp import connection as connection_module
from dalang_worker.mcp import servers as servers_module
from dalang_worker.mcp.servers import McpServers

from tests.unit.worker.mcp.conftest import Reach
from tests.unit.worker.mcp.serving import ServerProcess, stdio, until

KEY = "a-key"
THREE = ToolOutcome(output="3")


async def add(servers: McpServers) -> ToolOutcome:
    return await servers.call("everything", "add", {"a": 1, "b": 2}, KEY)


async def pid(servers: McpServers) -> int:
    number: int = json.loads((await servers.call("everything", "seen", {}, KEY)).output)["pid"]
    return number


async def names(servers: McpServers) -> list[str]:
    return [tool.name for tool in await servers.list_tools("everything")]


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers_module, "BACKOFF_SECONDS", 0.0)


@pytest.fixture
def short_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "CONNECT_SECONDS", 0.3)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def nobody() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


def http(port: int, **more: object) -> McpServerSettings:
    return McpServerSettings.model_validate(
        {"name": "everything", "transport": "streamableHTTP", "url": f"http://127.0.0.1:{port}/mcp", **more}
    )


# ── Servers that come back ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("no_backoff")
@pytest.mark.parametrize("kind", ["sse", "streamable-http", "json"])
async def test_a_server_started_again_is_used_again(
    kind: str, serve: Callable[[str], ServerProcess], reach: Reach
) -> None:
    process = serve(kind)
    servers = reach(process.settings())
    assert await add(servers) == THREE
    connection = servers._servers["everything"]._connection
    assert connection is not None
    process.kill()
    if kind == "sse":
        await until(lambda: not connection.is_open)
    with pytest.raises((McpConnectionLostError, McpUnavailableError)) as first:
        await add(servers)
    if isinstance(first.value, McpConnectionLostError):
        assert first.value.may_have_run is False
    process.start()
    assert await add(servers) == THREE


async def test_a_process_that_died_is_started_again(reach: Reach) -> None:
    servers = reach(stdio())
    first = await pid(servers)
    os.kill(first, signal.SIGKILL)
    connection = servers._servers["everything"]._connection
    assert connection is not None
    await until(lambda: not connection.is_open)
    assert await pid(servers) != first


@pytest.mark.parametrize("kind", ["stdio", "sse", "streamable-http", "json"])
async def test_a_server_that_dies_in_a_call_may_have_done_it(
    kind: str, serve: Callable[[str], ServerProcess], reach: Reach, tmp_path: Path
) -> None:
    servers = reach(stdio() if kind == "stdio" else serve(kind).settings())
    with pytest.raises(McpConnectionLostError, match=r"^The connection to MCP server 'everything' was lost: ") as lost:
        await servers.call("everything", "crash", {"folder": str(tmp_path)}, KEY)
    assert lost.value.may_have_run
    assert "\n" not in str(lost.value)
    assert (tmp_path / "crashes").read_text() == "x"


@pytest.mark.usefixtures("no_backoff")
async def test_the_known_tools_are_kept_while_the_server_is_away(
    serve: Callable[[str], ServerProcess], reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers_module, "LIST_SECONDS", 0.0)
    process = serve("streamable-http")
    servers = reach(process.settings())
    known = await names(servers)
    process.kill()
    server = servers._servers["everything"]
    for _ in range(3):
        assert await names(servers) == known
        assert server._refreshing is not None
        await asyncio.wait([server._refreshing])
    assert server._failure
    process.start()
    await names(servers)
    assert server._refreshing is not None
    await asyncio.wait([server._refreshing])
    assert not server._failure


# ── Servers that are not there ─────────────────────────────────────────────────────────────────────────────────────


async def test_nobody_listens(reach: Reach) -> None:
    with pytest.raises(McpUnavailableError, match=r"'everything' is not available: All connection attempts failed$"):
        await add(reach(http(nobody())))


async def test_an_image_without_the_client_is_told(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dalang_worker.mcp.connection", None)  # importing it is an ImportError now
    servers = reach(http(nobody()))
    for attempt in (add(servers), servers.list_tools("everything")):
        with pytest.raises(McpUnavailableError, match="not available: the worker's image cannot load its MCP client: "):
            await attempt


async def test_a_fault_of_the_workers_is_not_called_its_stop(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = reach(http(nobody()))

    async def fail() -> None:
        raise KeyError("x")

    monkeypatch.setattr(servers._servers["everything"], "connect", fail)
    with pytest.raises(McpUnavailableError, match=r"could not be listed, by a fault of the worker's: KeyError$"):
        await servers.list_tools("everything")


@pytest.mark.usefixtures("short_connect")
@pytest.mark.parametrize("transport", ["streamableHTTP", "sse"])
async def test_a_server_that_says_nothing(silent_port: int, reach: Reach, transport: str) -> None:
    with pytest.raises(McpUnavailableError, match=r"did not answer within 0.3 s$"):
        await add(reach(http(silent_port, transport=transport)))


@pytest.mark.usefixtures("short_connect")
async def test_a_process_that_says_nothing(reach: Reach) -> None:
    settings = McpServerSettings(name="everything", transport="stdio", command="sleep", args=["600"])
    servers = reach(settings)
    with pytest.raises(McpUnavailableError, match=r"did not answer within 0.3 s$"):
        await add(servers)
    await servers.close()
    assert not [child for child in psutil.Process().children() if child.name() == "sleep"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param(
            McpServerSettings(name="everything", transport="stdio", command="no-such-command"),
            "'no-such-command' cannot be run: No such file or directory",
            id="a command that is not there",
        ),
        pytest.param(
            McpServerSettings(name="everything", transport="stdio", command=sys.executable, args=["-c", "exit(3)"]),
            "its process ended; the worker's log has what it wrote",
            id="a process that ends at once",
        ),
        pytest.param(
            McpServerSettings(
                name="everything",
                transport="streamableHTTP",
                url="http://127.0.0.1:1/",
                bearer_token=SecretKey(name="weather", key="nothing"),
            ),
            "Secret 'weather' has no key 'nothing' (it has: token)",
            id="a key that is not there",
        ),
        pytest.param(
            McpServerSettings(
                name="everything",
                transport="stdio",
                command="true",
                env=[NamedValue(name="KEY", secret=SecretKey(name="other", key="nothing"))],
            ),
            "Secret 'other' is not there; create it with key 'nothing'",
            id="a Secret that is not there",
        ),
    ],
)
async def test_what_cannot_be_opened_is_told_in_a_line(settings: McpServerSettings, words: str, reach: Reach) -> None:
    servers = reach(settings)
    with pytest.raises(McpUnavailableError) as failure:
        await add(servers)
    assert str(failure.value) == f"MCP server 'everything' is not available: {words}"
    with pytest.raises(McpUnavailableError) as failure:
        await servers.list_tools("everything")
    assert words in str(failure.value)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        pytest.param(401, "it refuses the credentials (HTTP 401)", id="credentials it does not take"),
        pytest.param(404, "it answered HTTP 404", id="a path that is not there"),
        pytest.param(503, "it answered HTTP 503", id="a gateway without a server"),
    ],
)
@pytest.mark.parametrize("transport", ["streamableHTTP", "sse"])
async def test_a_status_is_told(status: int, words: str, transport: str, reach: Reach) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(McpUnavailableError) as failure:
            await add(reach(http(port, transport=transport)))
    assert failure.value.words == words


@pytest.mark.parametrize("takes", [0, 2], ids=["the first", "the call"])
async def test_an_sse_server_that_refuses_a_message_answers_it(takes: int, reach: Reach) -> None:
    """The SDK would wait for the answer for ever; the event stream is still there."""
    posts = 0
    streams: list[asyncio.StreamWriter] = []
    initialized = {
        "jsonrpc": "2.0",
        "id": 1,
        "result": {
            "protocolVersion": "2024-11-05",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "s", "version": "1"},
        },
    }

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal posts
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("GET"):
            streams.append(writer)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nevent: endpoint\ndata: /m\n\n")
            return
        length = next(line for line in head.splitlines() if line.lower().startswith("content-length"))
        await reader.readexactly(int(length.split(":")[1]))
        posts += 1
        status = "202 OK" if posts <= takes else "502 No"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        if posts == 1:
            streams[0].write(f"event: message\ndata: {json.dumps(initialized)}\n\n".encode())

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises((McpConnectionLostError, McpUnavailableError), match=r"it answered HTTP 502$"):
            await add(reach(http(port, transport="sse")))
        for stream in streams:
            stream.close()


async def test_a_server_that_is_away_is_not_tried_again_at_once(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = reach(http(nobody()))
    with pytest.raises(McpUnavailableError) as first:
        await add(servers)
    begun = servers._servers["everything"]._connection
    with pytest.raises(McpUnavailableError) as second:
        await add(servers)
    assert (str(first.value), begun) == (str(second.value), servers._servers["everything"]._connection)
    monkeypatch.setattr(servers_module, "_now", lambda: asyncio.get_running_loop().time() + 5)
    with pytest.raises(McpUnavailableError):
        await add(servers)
    assert servers._servers["everything"]._connection is not begun


async def test_callers_wait_for_one_attempt(reach: Reach) -> None:
    servers = reach(stdio())
    pids = await asyncio.gather(*(pid(servers) for _ in range(5)))
    assert len(set(pids)) == 1


async def test_a_caller_that_gives_up_leaves_the_attempt_to_others(reach: Reach) -> None:
    servers = reach(stdio())
    first, second = asyncio.create_task(add(servers)), asyncio.create_task(add(servers))
    await until(lambda: servers._servers["everything"]._connection is not None)
    first.cancel()
    assert await second == THREE
    with pytest.raises(asyncio.CancelledError):
        await first


# ── Lists of tools ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["stdio", "streamable-http"])
async def test_a_tool_that_is_new_is_listed_when_the_server_says_so(
    kind: str, serve: Callable[[str], ServerProcess], reach: Reach
) -> None:
    servers = reach(stdio() if kind == "stdio" else serve(kind).settings())
    assert "grown" not in await names(servers)
    await servers.call("everything", "grow", {}, KEY)
    while "grown" not in await names(servers):  # noqa: ASYNC110 the server makes it so
        await asyncio.sleep(0.01)


async def test_a_server_of_an_old_protocol_says_that_its_tools_have_changed(reach: Reach) -> None:
    servers = reach(stdio("old_server.py", "change"))
    assert await names(servers) == ["list-1"]
    while await names(servers) != ["list-2"]:  # noqa: ASYNC110 the server makes it so
        await asyncio.sleep(0.01)


async def test_callers_ask_for_one_list(reach: Reach) -> None:
    servers = reach(stdio("old_server.py", "strict"))
    assert await asyncio.gather(*(names(servers) for _ in range(5))) == [["list-1"]] * 5
    assert await names(servers) == ["list-1"]


async def test_an_old_list_serves_while_a_new_one_is_asked_for(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = reach(stdio("old_server.py", "strict"))
    assert await names(servers) == ["list-1"]
    now = asyncio.get_running_loop().time()
    monkeypatch.setattr(servers_module, "_now", lambda: now + servers_module.LIST_SECONDS + 60)
    assert await names(servers) == ["list-1"]
    while await names(servers) != ["list-2"]:  # noqa: ASYNC110 the server makes it so
        await asyncio.sleep(0.01)


async def test_a_list_without_end_is_cut(reach: Reach) -> None:
    tools = await reach(stdio("old_server.py", "pages", "50")).list_tools("everything")
    assert [tool.name for tool in tools] == [f"tool-{number}" for number in range(128)]
    assert len(tools[0].description.encode()) <= 4096


async def test_a_list_of_empty_pages_without_end(reach: Reach) -> None:
    assert await reach(stdio("old_server.py", "pages", "0")).list_tools("everything") == []


async def test_a_server_that_never_lists_its_tools(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = reach(stdio("old_server.py", "hang"))
    await servers._servers["everything"].connect()
    monkeypatch.setattr(connection_module, "CONNECT_SECONDS", 0.1)
    with pytest.raises(McpUnavailableError, match=r"it does not list its tools: it did not answer within 0.1 s"):
        await servers.list_tools("everything")
    connection = servers._servers["everything"]._connection
    assert connection is not None
    assert connection.is_open


async def test_a_tool_with_a_large_schema_is_left_out(reach: Reach) -> None:
    assert await names(reach(stdio("old_server.py", "large"))) == ["tool-small"]


# ── The end ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_connection_nobody_uses_is_closed(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "IDLE_SECONDS", 0.2)
    servers = reach(stdio())
    first = await pid(servers)
    await until(lambda: not psutil.pid_exists(first))
    assert await pid(servers) != first


async def test_a_connection_in_use_is_not_idle(reach: Reach, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(connection_module, "IDLE_SECONDS", 0.05)
    servers = reach(stdio())
    waiting = asyncio.create_task(servers.call("everything", "wait", {"folder": str(tmp_path)}, KEY))
    await until((tmp_path / "started").exists)
    await asyncio.wait([waiting], timeout=0.3)
    (tmp_path / "release").touch()
    assert await waiting == ToolOutcome(output="released")


async def test_close_ends_processes_and_takes_no_more_calls(reach: Reach) -> None:
    servers = reach(stdio())
    first = await pid(servers)
    await servers.close()
    assert not psutil.pid_exists(first)
    with pytest.raises(McpUnavailableError, match="the worker is stopping"):
        await add(servers)
    with pytest.raises(McpUnavailableError, match="the worker is stopping"):
        await servers.list_tools("everything")


WORKER = """
import asyncio, sys
from pathlib import Path
from dalang_worker.mcp.servers import McpServers
from tests.unit.worker.mcp.serving import stdio
async def main():
    servers = McpServers([stdio()], Path("/nowhere"), None)
    print((await servers.call("everything", "seen", {}, "")).output, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_a_process_ends_when_the_worker_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True) as worker:  # noqa: ASYNC220
        assert worker.stdout is not None
        line = await asyncio.to_thread(worker.stdout.readline)
        server = json.loads(line)["pid"]
        assert psutil.pid_exists(server)
        worker.kill()
    await until(lambda: not psutil.pid_exists(server))


def test_the_sdk_is_imported_on_first_use_only() -> None:
    code = "import sys, dalang_worker.mcp.servers, dalang_worker.activities.mcp, dalang_worker.retrieval\n"
    code += "sys.exit(any(name in sys.modules for name in ('mcp', 'httpx2', 'qdrant_client', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

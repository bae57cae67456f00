"""An MCP server to test against, run as a process: `python everything_server.py stdio|sse|streamable-http|json [port [file]]`.

Over HTTP it writes its port to standard output as soon as it listens, and takes only the bearer token in the file.
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
    ToolAnnotations,
)
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

server = MCPServer("everything")
READS = ToolAnnotations(read_only_hint=True)


@server.tool(annotations=READS)
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool(annotations=ToolAnnotations(idempotent_hint=True))
def put(value: str) -> str:
    """Store a value."""
    return f"stored {value}"


@server.tool(annotations=ToolAnnotations(destructive_hint=False, idempotent_hint=False))
def fail(words: str) -> str:
    """Fail."""
    raise ToolError(words)


@server.tool()
def contents() -> CallToolResult:
    """Return every kind of content."""
    return CallToolResult(
        content=[
            TextContent(text="a text"),
            ImageContent(data="AAAA", mime_type="image/png"),
            AudioContent(data="AAA=", mime_type="audio/wav"),
            EmbeddedResource(resource=TextResourceContents(uri="file:///a.txt", text="what a.txt says")),
            EmbeddedResource(resource=BlobResourceContents(uri="file:///a.bin", mime_type="x/y", blob="AA==")),
            ResourceLink(uri="file:///b.txt", name="b", mime_type="text/plain"),
        ]
    )


@server.tool()
def structured() -> CallToolResult:
    """Return an object without text."""
    image = ImageContent(data="AAAA", mime_type="image/png")
    return CallToolResult(content=[image], structured_content={"sky": "clear", "degrees": 31.5})


@server.tool()
def long() -> str:
    """Return much text."""
    return "x" * 100_000


@server.tool()
def seen(context: Context[Any, Any]) -> str:
    """Return what came with the request."""
    headers = dict(context.headers or {})
    meta = dict(context.request_context.meta or {})
    key = meta.get("dalang.dev/idempotency-key")
    return json.dumps({"headers": headers, "key": key, "pid": os.getpid()})


@server.tool(annotations=READS)
def echo_headers(context: Context[Any, Any], names: list[str]) -> str:
    """Return values of headers."""
    return ", ".join((context.headers or {}).get(name, "-") for name in names)


@server.tool(annotations=READS)
def environment() -> str:
    """Return the process's environment and folder."""
    return json.dumps({"env": dict(os.environ), "cwd": str(Path.cwd())})


@server.tool(annotations=READS)
def complain(words: str) -> str:
    """Write to standard error."""
    sys.stderr.write(words + "\n")
    sys.stderr.flush()
    return "done"


@server.tool()
async def wait(folder: str) -> str:
    """Create `started` in the folder, and return when there is `release`; when cancelled, create `cancelled`."""
    there = anyio.Path(folder)
    await (there / "started").touch()
    try:
        while not await (there / "release").exists():  # noqa: ASYNC110 the test makes it, from another process
            await anyio.sleep(0.01)
    except BaseException:
        Path(folder, "cancelled").touch()  # noqa: ASYNC240 nothing can be awaited any more
        raise
    return "released"


@server.tool()
def crash(folder: str) -> str:
    """Count the call, and end the process."""
    with Path(folder, "crashes").open("a") as file:
        file.write("x")
    os._exit(1)


@server.tool()
async def grow(context: Context[Any, Any]) -> str:
    """Get one more tool."""
    server.add_tool(lambda: "grown", name="grown", description="A tool that was not there.")
    await context.notify_tools_changed()
    return "grown"


class Answer(BaseModel):
    colour: str


@server.tool()
async def ask(context: Context[Any, Any]) -> str:
    """Ask the user."""
    answer = await context.elicit("Which colour?", Answer)
    return f"{answer.action}"


class TokenCheck:
    """Turns away requests without the token, which is read at each of them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and len(sys.argv) > 3:
            token = await anyio.Path(sys.argv[3]).read_text()
            if Headers(scope=scope).get("authorization") != f"Bearer {token}":
                await Response(status_code=401)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def main() -> None:
    transport, port = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    if transport == "stdio":
        server.run()
        return
    app = server.sse_app() if transport == "sse" else server.streamable_http_app(json_response=transport == "json")
    app.add_middleware(TokenCheck)
    listening = socket.create_server(("127.0.0.1", port))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # 45 ms a call without; uvicorn's own has it
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main()

"""An MCP server that repeats all it was given: `python parrot_server.py NAME stdio|http FOLDER`.

Its tools begin with its name. What it was given it also writes to `parrot-NAME` in the folder, and over HTTP its port to
standard output as soon as it listens.
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, EmbeddedResource, ResourceLink, TextContent, TextResourceContents

NAME, TRANSPORT, FOLDER = sys.argv[1:]

server = MCPServer(NAME)


def given(context: Context[Any, Any]) -> dict[str, str]:
    """Return the headers, or the environment; and write it down."""
    found = {**(context.headers or {}), **(os.environ if TRANSPORT == "stdio" else {})}
    Path(FOLDER, f"parrot-{NAME}").write_text(repr(found))
    return found


def spell(found: dict[str, str]) -> str:
    return "; ".join(f"{name}={value}" for name, value in found.items())


@server.tool(name=f"{NAME}_text", description=f"Repeat. {spell(dict(os.environ))[:3000]}")
def text(context: Context[Any, Any]) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=spell(given(context)))])


@server.tool(name=f"{NAME}_json")
def as_json(context: Context[Any, Any]) -> CallToolResult:
    """Repeat as JSON in a text."""
    return CallToolResult(content=[TextContent(text=json.dumps(given(context)))])


@server.tool(name=f"{NAME}_object")
def as_object(context: Context[Any, Any]) -> CallToolResult:
    """Repeat as an object."""
    return CallToolResult(content=[], structured_content={"given": given(context)})


@server.tool(name=f"{NAME}_resource")
def as_resource(context: Context[Any, Any]) -> CallToolResult:
    """Repeat as resources."""
    found = spell(given(context))
    link = ResourceLink(uri="file:///a.txt", name=found, mime_type="text/plain")
    return CallToolResult(
        content=[EmbeddedResource(resource=TextResourceContents(uri="file:///a.txt", text=found)), link]
    )


@server.tool(name=f"{NAME}_error")
def as_error(context: Context[Any, Any]) -> str:
    """Repeat as an error."""
    raise ToolError(spell(given(context)))


@server.tool(name=f"{NAME}_log")
def as_log(context: Context[Any, Any]) -> str:
    """Repeat to standard error."""
    found = given(context)
    sys.stderr.write(f"{spell(found)}\n{json.dumps(found)}\n")
    sys.stderr.flush()
    return "logged"


def main() -> None:
    if TRANSPORT == "stdio":
        server.run()
        return
    listening = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main()

"""An MCP server of an older protocol over stdio, in plain JSON, that exits when its first message is not `initialize`.

Rust's SDK does so. What else it does stands in its arguments: `pages N` has N tools on every page and no end, `change` says
after the first list that its tools have changed, `large` has a tool with a large schema, `hang` never lists them.
"""

import json
import sys
from typing import Any


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def tool(name: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {}}
    if name == "tool-large":
        schema["description"] = "x" * 70_000
    return {"name": name, "description": "d" * 5000, "inputSchema": schema}


def main() -> None:
    what, size = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    lists = 0
    for line in sys.stdin:
        request = json.loads(line)
        method, number = request.get("method"), request.get("id")
        if method == "initialize":
            send(
                {
                    "id": number,
                    "result": {
                        "protocolVersion": "2025-06-18",
                        "capabilities": {"tools": {"listChanged": True}},
                        "serverInfo": {"name": "old", "version": "1"},
                    },
                }
            )
        elif method == "tools/list" and what == "pages":
            start = int(request.get("params", {}).get("cursor", 0))
            tools = [tool(f"tool-{n}") for n in range(start, start + size)]
            send({"id": number, "result": {"tools": tools, "nextCursor": str(start + size)}})
        elif method == "tools/list" and what == "large":
            send({"id": number, "result": {"tools": [tool("tool-large"), tool("tool-small")]}})
        elif method == "tools/list" and what == "hang":
            continue
        elif method == "tools/list":
            lists += 1
            send({"id": number, "result": {"tools": [tool(f"list-{lists}")]}})
            if lists == 1 and what == "change":
                send({"method": "notifications/tools/list_changed"})
        elif method == "tools/call" and request["params"]["name"] == "unreadable":
            send({"id": number, "result": {"content": [{"type": "nothing known"}]}})
        elif method == "tools/call":
            send({"id": number, "result": {"content": [{"type": "text", "text": "old"}]}})
        elif number is not None:
            sys.exit(2)


main()

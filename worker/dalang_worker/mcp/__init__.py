"""The pool's MCP servers: their tools, and calls of them, over connections shared by every run of this worker.

`servers` keeps one connection per server and its list of tools; `connection` holds one open; `transports` says how each
kind is reached; `content` makes text of what a tool returned. Only `servers` is imported at start: the SDK takes a second.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class McpTool:
    """A tool as its server lists it."""

    name: str
    description: str
    schema: dict[str, Any]
    """JSON schema of the arguments, an object."""
    once: bool
    """A call that was lost must not be made again: the server claims neither that it only reads nor that it may be repeated."""
    read_only: bool = False
    """The server's claims, for policies of approval: this, and the two below. What it does not claim counts against the tool."""
    destructive: bool = True
    idempotent: bool = False


class McpUnavailableError(Exception):
    """An MCP server cannot be reached. The text is fit for the model and for a status: one line, no secret."""

    def __init__(self, server: str, words: str) -> None:
        super().__init__(f"MCP server {server!r} is not available: {words}")
        self.server = server
        self.words = words


class McpConnectionLostError(Exception):
    """The connection broke during a call. The text is fit for the model and for a status."""

    def __init__(self, server: str, words: str, may_have_run: bool) -> None:
        super().__init__(f"The connection to MCP server {server!r} was lost: {words}")
        self.server = server
        self.may_have_run = may_have_run
        """False where the server surely did nothing: it could not be reached, or turned the request away."""

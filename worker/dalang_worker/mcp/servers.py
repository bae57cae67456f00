"""Every MCP server of the pool: one connection each, made on first use, and the list of its tools."""

import asyncio
import importlib
import logging
from contextvars import Context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalang_api.contract import McpServerSettings, ToolOutcome

from dalang_worker.mcp import McpTool, McpUnavailableError
from dalang_worker.secrets import SecretNotFoundError
from dalang_worker.text import cut

if TYPE_CHECKING:
    from dalang_worker.mcp.connection import Connection

log = logging.getLogger(__name__)

LIST_SECONDS = 300.0
"""How long a list of tools counts before it is asked for again."""
BACKOFF_SECONDS = 5.0
"""How long a server that could not be reached is not tried again: else each turn would wait for it."""


class McpServers:
    """The MCP servers of one worker, for all activities on the worker's event loop."""

    def __init__(self, settings: list[McpServerSettings], secrets_path: Path, tools_path: Path | None) -> None:
        self._servers = {server.name: _Server(server, secrets_path, tools_path) for server in settings}

    def has(self, server: str) -> bool:
        """Return whether the pool has a server of that name."""
        return server in self._servers

    async def list_tools(self, server: str) -> list[McpTool]:
        """Return the tools of a server, as they were at most some minutes ago, or when it could last be reached.

        Raises:
            McpUnavailableError: They have never been known.
        """
        return await self._server(server).list_tools()

    async def call(self, server: str, tool: str, arguments: dict[str, Any], key: str) -> ToolOutcome:
        """Call a tool once, with an idempotency key in its `_meta`. What the server says is wrong is an outcome too.

        Raises:
            McpUnavailableError: The server cannot be reached; the tool was not called.
            McpConnectionLostError: The connection broke before there was an answer. The next call has a fresh one.
        """
        connection = await self._server(server).connect()
        return await connection.call(tool, arguments, key)

    async def close(self) -> None:
        """Close the connections; processes are dead then."""
        await asyncio.gather(*(server.close() for server in self._servers.values()))

    def _server(self, name: str) -> "_Server":
        if name not in self._servers:
            raise McpUnavailableError(name, "the agent's pool has no MCP server of that name")
        return self._servers[name]


class _Server:
    def __init__(self, settings: McpServerSettings, secrets_path: Path, cwd: Path | None) -> None:
        self._settings = settings
        self._secrets_path = secrets_path
        self._cwd = cwd
        self._closed = False
        self._connection: Connection | None = None
        self._ending: list[Connection] = []
        """Earlier connections that are still being closed."""
        self._failure = ""
        self._failed_until = 0.0
        self._tools: list[McpTool] | None = None
        self._fresh_until = 0.0
        self._changes = 0
        self._refreshing: asyncio.Task[None] | None = None

    async def connect(self) -> "Connection":
        """Return the connection, open; begin one if there is none.

        Raises:
            McpUnavailableError: It could not be opened, now or a few seconds ago.
        """
        if self._connection is None or not self._connection.is_open:
            # The SDK takes a second to import; another caller may have begun meanwhile.
            module = await self._load()
            if self._connection is None or not self._connection.is_open:
                self._connection = self._begin(module)
        connection = self._connection
        try:
            await connection.opened()
        except McpUnavailableError as failure:
            self._remember(failure)
            raise
        return connection

    async def list_tools(self) -> list[McpTool]:
        """Return the tools; a list that is out of date serves until there is a new one."""
        if _now() >= self._fresh_until:
            self._refresh()
        if self._tools is None and self._refreshing is not None:
            await asyncio.wait([self._refreshing])
        if self._tools is None:
            raise McpUnavailableError(self._settings.name, self._failure or "the worker is stopping")
        return self._tools

    async def close(self) -> None:
        """Close the connection, and those that are being closed."""
        self._closed = True
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])
        open_now = [self._connection] if self._connection is not None else []
        await asyncio.gather(*(connection.close() for connection in self._ending + open_now))

    async def _load(self) -> Any:
        try:
            return await asyncio.to_thread(importlib.import_module, "dalang_worker.mcp.connection")
        except ImportError as error:
            words = cut(" ".join(f"the worker's image cannot load its MCP client: {error}".split()), 300)
            failure = McpUnavailableError(self._settings.name, words)
            self._remember(failure)
            raise failure from None

    def _begin(self, module: Any) -> "Connection":
        if self._closed:
            raise McpUnavailableError(self._settings.name, "the worker is stopping")
        if _now() < self._failed_until:
            raise McpUnavailableError(self._settings.name, self._failure)
        try:
            connection: Connection = module.begin(self._settings, self._secrets_path, self._cwd, self._changed)
        except SecretNotFoundError as error:
            failure = McpUnavailableError(self._settings.name, str(error))
            self._remember(failure)
            raise failure from None
        old = [self._connection] if self._connection is not None else []
        self._ending = [connection for connection in self._ending + old if not connection.is_closed]
        self._fresh_until = 0.0  # a server that was started again may have other tools
        return connection

    def _remember(self, failure: McpUnavailableError) -> None:
        if failure.words != self._failure:
            log.warning("%s", failure)
        self._failure = failure.words
        self._failed_until = _now() + BACKOFF_SECONDS

    def _changed(self) -> None:
        self._changes += 1
        self._refresh()

    def _refresh(self) -> None:
        """Begin to ask for the list of tools, unless that is under way."""
        if not self._closed and (self._refreshing is None or self._refreshing.done()):
            fetching = self._fetch()
            self._refreshing = asyncio.create_task(fetching, name=f"tools of {self._settings.name}", context=Context())

    async def _fetch(self) -> None:
        changes = self._changes
        try:
            self._tools = await (await self.connect()).list_tools()
        except McpUnavailableError as failure:
            self._failure = failure.words
            self._fresh_until = _now() + BACKOFF_SECONDS
            if self._tools is not None:
                log.warning("%s; the tools it had are still offered", failure)
        except Exception as error:
            log.exception("the tools of MCP server %s", self._settings.name)
            self._failure = f"its tools could not be listed, by a fault of the worker's: {type(error).__name__}"
            self._fresh_until = _now() + BACKOFF_SECONDS
        else:
            self._failure = ""
            self._fresh_until = _now() + LIST_SECONDS if changes == self._changes else 0.0


def _now() -> float:
    return asyncio.get_running_loop().time()

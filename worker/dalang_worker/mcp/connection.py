"""One connection to an MCP server, shared by concurrent calls and held open by a task of its own.

The SDK's transports are cancel scopes, which the task that entered them has to leave; the callers' tasks come and go. So an
owner task enters and leaves, and callers only use the client in between. It leaves when the server is gone, when nobody
has called for five minutes, and when it is told to. What ends a connection is a fault of the transport only: a tool's error
or a call that is cancelled leaves it as it is, since others may be using it.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import anyio
from dalang_api.contract import McpServerSettings, ToolOutcome
from mcp import Client, MCPError
from mcp.client.subscriptions import SubscriptionLost
from mcp_types import (
    CONNECTION_CLOSED,
    HEADER_MISMATCH,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    URL_ELICITATION_REQUIRED,
    Implementation,
    RequestParamsMeta,
    Tool,
    ToolListChangedNotification,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from dalang_worker.mcp import McpConnectionLostError, McpTool, McpUnavailableError
from dalang_worker.mcp.content import failed, make_outcome
from dalang_worker.mcp.transports import (
    CONNECT_SECONDS,
    EXCHANGE,
    Access,
    Exchange,
    open_transport,
    read_access,
)
from dalang_worker.text import cut

log = logging.getLogger(__name__)

IDLE_SECONDS = 300.0
"""How long a connection that nobody uses is kept."""
TOOLS_MAX = 128
"""The most tools of one server that are offered."""
SCHEMA_MAX_BYTES = 64 * 1024
"""A tool with a larger schema is left out: it would be sent with every model call."""
DESCRIPTION_MAX_BYTES = 4096
KEY_META = "dalang.dev/idempotency-key"
"""Where in a call's `_meta` the server finds the key under which it may recognise a call made twice."""

_BROKEN = (OSError, anyio.ClosedResourceError, anyio.BrokenResourceError)
_PROTOCOL_ERRORS = (
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    HEADER_MISMATCH,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    URL_ELICITATION_REQUIRED,
)
"""What a server says about a call; by other errors it says that it no longer knows the session, or is out of order."""

# The SDK logs whole messages at DEBUG, and stack traces of what is told in one line here.
logging.getLogger("mcp").setLevel(logging.CRITICAL)
logging.getLogger("client").setLevel(logging.CRITICAL)


def begin(
    settings: McpServerSettings, secrets_path: Path, cwd: Path | None, on_changed: Callable[[], None]
) -> "Connection":
    """Begin to open a connection; `on_changed` is called when the server says that its tools have changed.

    Raises:
        SecretNotFoundError: A Secret or its key is not there.
    """
    return Connection(read_access(settings, secrets_path), cwd, on_changed)


class Connection:
    """A connection from when it is begun; it is never opened again."""

    def __init__(self, access: Access, cwd: Path | None, on_changed: Callable[[], None]) -> None:
        self._access = access
        self._server = access.settings.name
        self._cwd = cwd
        self._on_changed = on_changed
        self._ready: asyncio.Future[Client | None] = asyncio.get_running_loop().create_future()
        self._ended = asyncio.Event()
        self._failure = "the connection was closed"
        self._calls = 0
        self._last_use = 0.0
        self._opening = anyio.CancelScope()
        # In a context of its own: it outlives the activity whose call begins it.
        self._owner = asyncio.create_task(self._own(), name=f"mcp {self._server}", context=Context())

    @property
    def is_open(self) -> bool:
        """Whether it is being opened, or can be used."""
        return not self._ended.is_set()

    @property
    def is_closed(self) -> bool:
        """Whether nothing of it is left."""
        return self._owner.done()

    async def opened(self) -> None:
        """Wait until it can be used.

        Raises:
            McpUnavailableError: It could not be opened.
        """
        await self._client()

    async def list_tools(self) -> list[McpTool]:
        """Return the server's tools, all pages.

        Raises:
            McpUnavailableError: It does not answer, or not with a list of tools.
        """
        client = await self._client()
        tools: list[Tool] = []
        cursor: str | None = None
        with self._used() as exchange:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    for _ in range(TOOLS_MAX):
                        page = await client.list_tools(cursor=cursor)
                        tools += page.tools
                        cursor = page.next_cursor
                        if cursor is None or len(tools) >= TOOLS_MAX:
                            break
            except Exception as error:  # noqa: BLE001 whatever the SDK raises, the server has no tools to offer
                if self._is_lost(error, exchange):
                    self.end()
                words = self._describe(error, exchange)
                raise McpUnavailableError(self._server, f"it does not list its tools: {words}") from None
        if len(tools) > TOOLS_MAX or cursor is not None:
            log.warning("MCP server %s has more than %d tools; the others are left out", self._server, TOOLS_MAX)
        return [made for tool in tools[:TOOLS_MAX] if (made := self._make_tool(tool)) is not None]

    async def call(self, tool: str, arguments: dict[str, Any], key: str) -> ToolOutcome:
        """Call a tool and return what it said, or what the server said is wrong with the call.

        Raises:
            McpUnavailableError: The connection could not be opened.
            McpConnectionLostError: It broke before there was an answer.
        """
        client = await self._client()
        if self._ended.is_set():
            raise McpConnectionLostError(self._server, self._failure, may_have_run=False)
        meta = cast("RequestParamsMeta", {KEY_META: key})
        with self._used() as exchange:
            try:
                result = await client.call_tool(tool, arguments, meta=meta)
            except (MCPError, *_BROKEN) as error:
                if self._is_lost(error, exchange):
                    self.end()
                    words = self._describe(error, exchange)
                    raise McpConnectionLostError(self._server, words, exchange.may_have_run()) from None
                return failed(self._access.redact(f"MCP server {self._server!r} refused the call: {error}"))
            except (ValidationError, RuntimeError) as error:  # the answer is not MCP's, or not what the tool promises
                first = self._access.redact(str(error)).partition("\n")[0]
                return failed(
                    f"MCP server {self._server!r} ran {tool}, but gave an answer that cannot be read: {first}"
                )
        return make_outcome(result, self._access.redact)

    def end(self) -> None:
        """Begin to close it: calls under way are lost, and no new one is made."""
        self._ended.set()

    async def close(self) -> None:
        """Close it; its process is dead then."""
        self._give_up()
        await asyncio.wait([self._owner])

    # ── The owner ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _own(self) -> None:
        try:
            for mode in self._modes():
                error = await self._hold(mode)
                if error is None or not self._refused_probe(error):
                    break
        finally:
            self._ended.set()
            if not self._ready.done():
                self._ready.set_result(None)

    def _modes(self) -> tuple[str, ...]:
        """Return how to agree on a version, in order.

        `auto` asks by the newest protocol first; some servers of older ones (Rust's SDK) exit on such a question. SSE is an
        old protocol's only.
        """
        return {"stdio": ("auto", "legacy"), "sse": ("legacy",)}.get(self._access.settings.transport, ("auto",))

    def _refused_probe(self, error: BaseException) -> bool:
        return not self._ready.done() and isinstance(error, MCPError) and error.code == CONNECTION_CLOSED

    async def _hold(self, mode: str) -> BaseException | None:
        """Open the connection and keep it until it is to end; return why it failed, if it did."""
        exchange = Exchange()
        EXCHANGE.set(exchange)
        ended = asyncio.Event()  # of its own, since another mode may be tried
        with anyio.CancelScope(deadline=anyio.current_time() + CONNECT_SECONDS) as scope:
            self._opening = scope
            try:
                async with self._opened(mode, ended) as client:
                    scope.deadline = math.inf
                    await self._hold_open(client, ended)
            except Exception as error:  # noqa: BLE001 the SDK raises what its tasks raised, in groups
                cause = _first(error)
                self._failure = self._describe(cause, exchange)
                if self._ready.done():
                    log.info("MCP server %s: the connection was lost: %s", self._server, self._failure)
                return cause
        if scope.cancelled_caught:
            self._failure = self._describe(TimeoutError(), exchange)
        return None

    @asynccontextmanager
    async def _opened(self, mode: str, ended: asyncio.Event) -> AsyncIterator[Client]:
        client = Client(
            open_transport(self._access, self._cwd, ended.set, self._give_up),
            mode=mode,
            client_info=Implementation(name="dalang", version=version("dalang")),
            message_handler=self._on_message,
            cache=None,
        )
        async with client:
            yield client

    async def _hold_open(self, client: Client, ended: asyncio.Event) -> None:
        async with anyio.create_task_group() as watching:
            watching.start_soon(self._listen, client)
            watching.start_soon(self._pass_on, ended)
            self._last_use = anyio.current_time()
            if not self._ready.done():
                self._ready.set_result(client)
            await self._until_idle()
            watching.cancel_scope.cancel()

    def _give_up(self) -> None:
        """End it after a message that did not reach the server: its answer would be waited for."""
        self.end()
        if not self._ready.done():
            self._opening.cancel()

    async def _pass_on(self, ended: asyncio.Event) -> None:
        await ended.wait()
        self._ended.set()

    async def _until_idle(self) -> None:
        while not self._ended.is_set():
            left = IDLE_SECONDS if self._calls else self._last_use + IDLE_SECONDS - anyio.current_time()
            if left <= 0:
                self._ended.set()
            with anyio.move_on_after(left):
                await self._ended.wait()

    async def _listen(self, client: Client) -> None:
        """Follow changes of the list of tools, where the protocol wants to be asked for them."""
        tools = client.server_capabilities.tools
        if client.protocol_version not in MODERN_PROTOCOL_VERSIONS or not (tools and tools.list_changed):
            return
        try:
            async with client.listen(tools_list_changed=True) as changes:
                async for _ in changes:
                    self._on_changed()
        except MCPError as error:
            log.debug("MCP server %s: no news of its tools: %s", self._server, error)
        except SubscriptionLost:
            # It may have been started again, with other tools. A new connection asks for them.
            if not self._calls:
                self.end()

    async def _on_message(self, message: Any) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._on_changed()

    # ── Calls ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _client(self) -> Client:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):  # the owner may take longer, to end a process that hangs
                client = await asyncio.shield(self._ready)
        except TimeoutError:
            self.end()
            raise McpUnavailableError(self._server, f"it did not answer within {CONNECT_SECONDS:g} s") from None
        if client is None:
            raise McpUnavailableError(self._server, self._failure)
        return client

    @contextmanager
    def _used(self) -> Iterator[Exchange]:
        exchange = Exchange()
        token = EXCHANGE.set(exchange)
        self._calls += 1
        try:
            yield exchange
        finally:
            self._calls -= 1
            self._last_use = anyio.current_time()
            EXCHANGE.reset(token)

    def _is_lost(self, error: Exception, exchange: Exchange) -> bool:
        """Return whether the transport failed; a server's own errors come with HTTP statuses too."""
        if not isinstance(error, MCPError):
            return isinstance(error, _BROKEN) and not isinstance(error, TimeoutError)
        if error.code == CONNECTION_CLOSED or exchange.error is not None:
            return True
        return exchange.status not in (None, 400) and error.code not in _PROTOCOL_ERRORS

    def _describe(self, error: BaseException, exchange: Exchange) -> str:
        """Return why it failed, in one line without secrets."""
        settings = self._access.settings
        if exchange.error is not None:
            words = exchange.error
        elif exchange.status in (401, 403):
            words = f"it refuses the credentials (HTTP {exchange.status})"
        elif exchange.status is not None:
            words = f"it answered HTTP {exchange.status}"
        elif isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
            words = f"{error.filename or settings.command!r} cannot be run: {error.strerror}"
        elif isinstance(error, MCPError) and error.code == CONNECTION_CLOSED and settings.transport == "stdio":
            words = "its process ended; the worker's log has what it wrote"
        elif isinstance(error, MCPError):
            words = error.message
        elif isinstance(error, TimeoutError):
            words = f"it did not answer within {CONNECT_SECONDS:g} s"
        elif isinstance(error, ValidationError):
            words = f"its answer is not MCP: {error.title}"
        else:
            words = f"{type(error).__name__}: {error}"
        return cut(" ".join(self._access.redact(words).split()), 300)

    def _make_tool(self, tool: Tool) -> McpTool | None:
        schema = self._access.redact(to_json(tool.input_schema).decode())
        if len(schema.encode()) > SCHEMA_MAX_BYTES:
            log.warning("MCP server %s: the schema of tool %s is too large", self._server, tool.name)
            return None
        hints = tool.annotations
        read_only = bool(hints and hints.read_only_hint)
        destructive = hints.destructive_hint if hints else None
        idempotent = hints.idempotent_hint if hints else None
        return McpTool(
            name=tool.name,
            description=cut(self._access.redact(tool.description or tool.title or ""), DESCRIPTION_MAX_BYTES),
            schema=from_json(schema),
            once=not (read_only or idempotent),
            read_only=read_only,
            # Of a tool that only reads the two say nothing, by the specification.
            destructive=not read_only if destructive is None else destructive,
            idempotent=read_only if idempotent is None else idempotent,
        )


def _first(error: BaseException) -> BaseException:
    """Return the first error of a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

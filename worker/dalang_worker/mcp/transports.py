"""How an MCP server is reached: the transport for its settings, with what tells us at once that it is gone.

The SDK's transports end a request that can have no answer in different ways: some raise in a task of their own, some close
a stream, SSE's lets the caller wait. Three small wrappers make one of it: an `Exchange` notes what HTTP said about the
caller's own request, `on_end` is called when the server's stream ends, and `on_failed_post` when SSE's lost a message.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
from dalang_api.contract import McpServerSettings, NamedValue
from mcp.client.sse import sse_client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from dalang_worker.secrets import read_key, redact

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
"""How long a connection may take to be made, handshake included; and how long a server may take to list its tools."""
SSE_READ_SECONDS = 300.0
"""Servers ping an event stream every few seconds; one silent for longer is taken for dead."""
STDERR_LINE_MAX = 1000
"""Characters of a line of a process's standard error that are logged."""
REDACTED = "[secret]"
SECRET_MIN_LENGTH = 8
"""Shorter values of Secrets are not looked for in texts: they would be found in any."""


@dataclass
class Exchange:
    """What HTTP said about the requests of one caller."""

    status: int | None = None
    """The last status of 400 or above."""
    error: str | None = None
    """Why no answer came."""
    was_sent: bool = True
    """False where the server could not even be reached."""

    def may_have_run(self) -> bool:
        """Return whether the server may have acted on the request."""
        return self.was_sent and not (self.status is not None and 400 <= self.status < 500)


EXCHANGE: ContextVar[Exchange] = ContextVar("mcp_exchange")
"""The exchange of the current call: the SDK's tasks run in the context of the call they work for."""


@dataclass
class Access:
    """The settings of a server with the Secrets' values read."""

    settings: McpServerSettings
    headers: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)

    def redact(self, text: str) -> str:
        """Return the text without the Secrets' values: a server may well repeat what it was sent."""
        return redact(text, self.secrets, REDACTED)


def read_access(settings: McpServerSettings, secrets_path: Path) -> Access:
    """Read what a connection needs.

    Raises:
        SecretNotFoundError: A Secret or its key is not there.
    """
    access = Access(settings)

    def value(entry: NamedValue) -> str:
        if entry.secret is None:
            return entry.value or ""
        secret = read_key(secrets_path, entry.secret)
        access.secrets += [secret] if len(secret) >= SECRET_MIN_LENGTH else []
        return secret

    access.headers = {entry.name: value(entry) for entry in settings.headers}
    access.env = {entry.name: value(entry) for entry in settings.env}
    if settings.bearer_token is not None:
        token = value(NamedValue(name="Authorization", secret=settings.bearer_token))
        access.headers["Authorization"] = f"Bearer {token}"
    return access


@asynccontextmanager
async def open_transport(
    access: Access, cwd: Path | None, on_end: Callable[[], None], on_failed_post: Callable[[], None]
) -> AsyncIterator[tuple[Any, Any]]:
    """Yield the read and the write stream of a connection.

    `on_end` is called when nothing more can come, `on_failed_post` when a message did not reach a server of SSE.
    """
    settings = access.settings
    if settings.transport == "stdio":
        transport = _stdio(access, cwd)
    elif settings.transport == "sse":
        transport = _sse(access, on_failed_post)
    else:
        transport = _streamable_http(access)
    async with transport as (read, write):
        yield _WatchedStream(read, on_end), write


# ── HTTP ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class _WatchedClient(httpx2.AsyncClient):
    """Notes in the caller's exchange what the SDK keeps to itself: the status, and why a request failed."""

    def __init__(self, on_failed_post: Callable[[], None] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._on_failed_post = on_failed_post

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        exchange = EXCHANGE.get(None) or Exchange()
        exchange.status = exchange.error = None
        try:
            response = await super().send(request, **options)
        except httpx2.TransportError as error:
            exchange.error = str(error) or type(error).__name__
            exchange.was_sent = not isinstance(
                error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol
            )
            self._post_failed(request)
            raise
        if response.status_code >= 300:
            exchange.status = response.status_code
            self._post_failed(request)
        return response

    def _post_failed(self, request: httpx2.Request) -> None:
        if self._on_failed_post is not None and request.method == "POST":
            self._on_failed_post()


def _client(access: Access, read_seconds: float | None, on_failed_post: Callable[[], None] | None) -> _WatchedClient:
    return _WatchedClient(
        on_failed_post,
        headers=access.headers,
        timeout=httpx2.Timeout(CONNECT_SECONDS, read=read_seconds),
        # A worker's slots bound the calls. With a bound here a call that waits for a place would end the connection.
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
    )


@asynccontextmanager
async def _streamable_http(access: Access) -> AsyncIterator[tuple[Any, Any]]:
    # No read timeout: how long a tool may take is the activity's to say, and one that is over would end the others' calls.
    async with (
        _client(access, None, None) as client,
        streamable_http_client(access.settings.url or "", http_client=client) as streams,
    ):
        yield streams


@asynccontextmanager
async def _sse(access: Access, on_failed_post: Callable[[], None]) -> AsyncIterator[tuple[Any, Any]]:
    def make_client(
        headers: dict[str, str] | None = None, timeout: httpx2.Timeout | None = None, auth: httpx2.Auth | None = None
    ) -> httpx2.AsyncClient:
        return _client(access, SSE_READ_SECONDS, on_failed_post)

    async with sse_client(access.settings.url or "", httpx_client_factory=make_client) as streams:
        yield streams


class _WatchedStream:
    """The SDK's stream of messages from the server, which says when it ends."""

    def __init__(self, stream: Any, on_end: Callable[[], None]) -> None:
        self._stream = stream
        self._on_end = on_end

    @property
    def last_context(self) -> Any:
        """The context of the last message's sender; the SDK looks for it."""
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> Any:
        return await self._stream.receive()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._stream.__anext__()
        except StopAsyncIteration:
            self._on_end()
            raise

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stream.__aexit__(kind, error, traceback)


# ── Processes ──────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def _stdio(access: Access, cwd: Path | None) -> AsyncIterator[tuple[Any, Any]]:
    """Run the command. Of the worker's environment it gets PATH, HOME and the like: the rest may hold credentials."""
    settings = access.settings
    parameters = StdioServerParameters(
        command=settings.command or "", args=settings.args, env=access.env, cwd=cwd, encoding_error_handler="replace"
    )
    read_end, write_end = os.pipe()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: _StderrLog(access), os.fdopen(read_end, "rb", buffering=0)
    )
    try:
        async with AsyncExitStack() as stack:
            with os.fdopen(write_end, "w") as errlog:  # the process's alone from then on, so that its end is seen
                streams = await stack.enter_async_context(stdio_client(parameters, errlog))
            yield streams
    finally:
        transport.close()


class _StderrLog(asyncio.Protocol):
    """Logs a process's standard error by lines."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[: 4 * STDERR_LINE_MAX]
        for line in lines:
            self._log(line)

    def connection_lost(self, exc: Exception | None) -> None:
        self._log(self._rest)

    def _log(self, line: bytes) -> None:
        if text := self._access.redact(line.decode(errors="replace").rstrip())[:STDERR_LINE_MAX]:
            log.info("MCP server %s: %s", self._access.settings.name, text)

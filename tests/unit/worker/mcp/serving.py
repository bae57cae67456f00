"""Runs the MCP servers of these tests as processes, and reaches them."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

from dalang_api.contract import McpServerSettings

HERE = Path(__file__).parent
Transport = Literal["streamableHTTP", "sse", "stdio"]


class ServerProcess:
    """`everything_server.py` over HTTP; on the same port when it is started again."""

    def __init__(self, kind: str, token: Path | None = None) -> None:
        self.kind = kind
        self.token = [str(token)] if token is not None else []
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                str(HERE / "everything_server.py"),
                self.kind,
                str(self.port),
                *self.token,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
        self._process = None

    def settings(self, **more: Any) -> McpServerSettings:
        transport: Transport = "sse" if self.kind == "sse" else "streamableHTTP"
        path = "sse" if self.kind == "sse" else "mcp"
        return McpServerSettings(
            name="everything", transport=transport, url=f"http://127.0.0.1:{self.port}/{path}", **more
        )


def stdio(script: str = "everything_server.py", *args: str, **more: Any) -> McpServerSettings:
    arguments = ["-W", "ignore", str(HERE / script), *(args or ("stdio",))]
    return McpServerSettings(name="everything", transport="stdio", command=sys.executable, args=arguments, **more)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so; the test's own timeout bounds it."""
    while not condition():  # noqa: ASYNC110 other processes make it so
        await asyncio.sleep(0.01)

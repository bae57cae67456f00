"""Runs tools away from the worker's event loop: sync ones in threads, async ones on event loops of their own.

A tool that blocks the loop it runs on (`time.sleep` in an `async def`) would otherwise stop every heartbeat of the worker,
and with them the neighbours' model calls (facts/review-temporal.md 18). Async tools share one loop, so that a client kept
in a module works from call to call; only while that loop is held up do new calls go to a spare one.
"""

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Coroutine
from typing import Any

from dalang.tools import ToolFunction

log = logging.getLogger(__name__)

HELD_UP_AFTER_SECONDS = 1.0
"""A loop that did not turn for so long is held up by a tool."""
SPARE_LOOPS_MAX = 8


class ToolRunner:
    """The threads and loops of one worker process."""

    def __init__(self, max_threads: int) -> None:
        self._threads = concurrent.futures.ThreadPoolExecutor(max_threads, thread_name_prefix="tool")
        self._loops: list[_ToolLoop] = []

    async def run(self, tool: ToolFunction, arguments: dict[str, Any]) -> Any:
        """Run a tool and return what it returns; whatever it raises goes through.

        Cancelled, an async tool is cancelled and a sync one abandoned: its thread ends when the tool does.
        """
        if tool.is_async:
            return await asyncio.wrap_future(self._responsive_loop().submit(tool, arguments))
        return await asyncio.wrap_future(self._threads.submit(tool.function, **arguments))

    def _responsive_loop(self) -> "_ToolLoop":
        for loop in self._loops:
            if not loop.is_held_up():
                return loop
        if len(self._loops) > SPARE_LOOPS_MAX:
            return min(self._loops, key=lambda loop: len(loop.running))
        self._loops.append(_ToolLoop(f"tools-{len(self._loops)}"))
        return self._loops[-1]


class _ToolLoop:
    """An event loop in a daemon thread, which knows when it last turned."""

    def __init__(self, name: str) -> None:
        self.running: dict[int, str] = {}
        self._loop = asyncio.new_event_loop()
        self._turned_at = time.monotonic()
        self._told = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, tool: ToolFunction, arguments: dict[str, Any]) -> "concurrent.futures.Future[Any]":
        return asyncio.run_coroutine_threadsafe(self._call(tool, arguments), self._loop)

    def is_held_up(self) -> bool:
        held_up = time.monotonic() - self._turned_at > HELD_UP_AFTER_SECONDS
        if held_up and not self._told:
            names = ", ".join(sorted(set(self.running.values())))
            log.warning("an async tool holds up its event loop (running: %s); other tools use a spare one", names)
        self._told = held_up
        return held_up

    async def _call(self, tool: ToolFunction, arguments: dict[str, Any]) -> Any:
        token = id(asyncio.current_task())
        self.running[token] = tool.name
        try:
            coroutine: Coroutine[Any, Any, Any] = tool.function(**arguments)
            return await coroutine
        finally:
            del self.running[token]

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.call_soon(self._turn)
        self._loop.run_forever()

    def _turn(self) -> None:
        self._turned_at = time.monotonic()
        self._loop.call_later(HELD_UP_AFTER_SECONDS / 4, self._turn)

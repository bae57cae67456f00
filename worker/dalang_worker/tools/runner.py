"""Runs tools away from the worker's event loop: sync ones in threads, async ones on event loops of their own.

A tool that blocks the loop it runs on (`time.sleep` in an `async def`) would otherwise stop every heartbeat of the worker,
and with them the neighbours' model calls. Async tools share one loop, so that a client kept
in a module works from call to call; only while that loop is held up do calls that have not begun go to a spare one.
Functions that make instructions run here as well: they are tools without arguments.
"""

import asyncio
import concurrent.futures
import contextvars
import inspect
import logging
import threading
import time
from dataclasses import replace
from typing import Any, cast

from dalang import ToolError
from dalang.functions import RegisteredFunction

log = logging.getLogger(__name__)


class ToolRaisedError(Exception):
    """A tool raised; the text is the exception's type and words, or a `ToolError`'s words alone."""

    def __init__(self, message: str, *, is_retryable: bool = False) -> None:
        super().__init__(message)
        self.is_retryable = is_retryable


HELD_UP_AFTER_SECONDS = 1.0
"""A loop that did not turn for so long is held up by a tool."""
SPARE_LOOPS_MAX = 8


class ToolRunner:
    """The threads and loops of one worker process."""

    def __init__(self, max_threads: int) -> None:
        self._threads = concurrent.futures.ThreadPoolExecutor(max_threads, thread_name_prefix="tool")
        self._loops: list[_ToolLoop] = []

    async def run(self, tool: RegisteredFunction, arguments: dict[str, Any]) -> Any:
        """Run a tool and return what it returns; of a sync one that returns an awaitable, what that comes to.

        Cancelled, an async tool is cancelled and a sync one abandoned: its thread ends when the tool does.

        Raises:
            ToolRaisedError: The tool raised something, whatever it was.
        """
        if tool.is_async:
            return await self._run_async(tool, arguments)
        context = contextvars.copy_context()
        returned = await asyncio.wrap_future(self._threads.submit(context.run, _call, tool, arguments))
        if not inspect.isawaitable(returned):
            return returned
        # An async function in disguise: a partial, a lambda, a wrapper that forgot functools.wraps.
        return await self._run_async(replace(tool, function=lambda: returned, is_async=True), {})

    async def _run_async(self, tool: RegisteredFunction, arguments: dict[str, Any]) -> Any:
        """Run an async tool on the first loop that begins with it: one may be held up just when a call is handed to it."""
        while True:
            claim = threading.Lock()
            running = asyncio.wrap_future(self._responsive_loop().submit(tool, arguments, claim))
            try:
                await asyncio.wait({running}, timeout=HELD_UP_AFTER_SECONDS)
            except asyncio.CancelledError:
                running.cancel()
                raise
            if running.done() or not claim.acquire(blocking=False):
                return await running

    def close(self) -> None:
        """End the loops and threads, each as soon as the tool that it runs lets it."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for loop in self._loops:
            loop.stop()

    def _responsive_loop(self) -> "_ToolLoop":
        for loop in self._loops:
            if not loop.is_held_up():
                return loop
        if len(self._loops) > SPARE_LOOPS_MAX:
            return min(self._loops, key=lambda loop: len(loop.running))
        self._loops.append(_ToolLoop(f"tools-{len(self._loops)}"))
        return self._loops[-1]


def _call(tool: RegisteredFunction, arguments: dict[str, Any]) -> Any:
    """Call a sync tool. Some exceptions must not reach a future: SystemExit would end the worker, StopIteration hang the call."""
    try:
        return tool.function(**arguments)
    except BaseException as error:  # noqa: BLE001  # somebody else's code: the model is told, whatever it raised
        raise _raised(error) from None


def _raised(error: BaseException) -> ToolRaisedError:
    try:
        words = str(error)
    except Exception:  # noqa: BLE001  # an exception's own __str__ may fail
        words = ""
    if isinstance(error, ToolError) and words:
        return ToolRaisedError(words, is_retryable=error.retryable)
    return ToolRaisedError(f"{type(error).__name__}: {words}".removesuffix(": "))


class _ToolLoop:
    """An event loop in a daemon thread, which knows when it last turned."""

    def __init__(self, name: str) -> None:
        self.running: dict[int, str] = {}
        self._loop = asyncio.new_event_loop()
        self._turned_at = time.monotonic()
        self._told = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(
        self, tool: RegisteredFunction, arguments: dict[str, Any], claim: threading.Lock
    ) -> "concurrent.futures.Future[Any]":
        """Have the tool called, unless somebody else takes the claim first."""
        return asyncio.run_coroutine_threadsafe(self._call(tool, arguments, claim), self._loop)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    def is_held_up(self) -> bool:
        held_up = time.monotonic() - self._turned_at > HELD_UP_AFTER_SECONDS
        if held_up and not self._told:
            names = ", ".join(sorted(set(self.running.values())))
            log.warning("an async tool holds up its event loop (running: %s); other tools use a spare one", names)
        self._told = held_up
        return held_up

    async def _call(self, tool: RegisteredFunction, arguments: dict[str, Any], claim: threading.Lock) -> Any:
        if not claim.acquire(blocking=False):
            return None
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self.running[id(task)] = tool.name
        try:
            return await tool.function(**arguments)
        except asyncio.CancelledError as error:
            if task.cancelling():
                raise
            raise _raised(error) from None
        except BaseException as error:  # noqa: BLE001  # see _call
            raise _raised(error) from None
        finally:
            del self.running[id(task)]

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.call_soon(self._turn)
        self._loop.run_forever()
        self._loop.close()

    def _turn(self) -> None:
        self._turned_at = time.monotonic()
        self._loop.call_later(HELD_UP_AFTER_SECONDS / 4, self._turn)

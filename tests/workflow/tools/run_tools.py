"""Tools for the tests of this folder; loaded by the workers in the test process and by those in processes of their own.

What they are to do stands in the arguments, which the scripted model writes. Files are how a test hears of a call, and how
it lets one end, whichever process the tool runs in.
"""

import asyncio
import time
from pathlib import Path

from dalang import Context, Handoff, ToolError, ToolResult, instructions, tool


@tool
def weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: The city to tell it of.
    """
    return f"sunny in {city}"


@tool
async def time_of(city: str) -> dict[str, str]:
    """Tell the time of a city."""
    await asyncio.sleep(0)
    return {"city": city, "time": "12:00"}


@tool
def note(file: str, line: str) -> str:
    """Write a line to a file, so that a test can count the calls."""
    _append(file, line)
    return f"noted {line}"


@tool
async def wait_for(file: str, started: str, attempt_log: str | None = None) -> str:
    """Make the file `started`, then wait until `file` exists."""
    _touch(started)
    if attempt_log:
        _append(attempt_log, "called")
    while not _exists(file):  # noqa: ASYNC110  # the test makes it, from another process
        await asyncio.sleep(0.02)
    return "waited"


@tool
def fail(words: str) -> str:
    """Raise."""
    raise LookupError(words)


@tool
def leave() -> str:
    """Call `sys.exit`, as code that was a script once does."""
    raise SystemExit(3)


@tool
def say(size: int) -> str:
    """Return a text of that size."""
    return "x" * size


@tool
def drop(force: bool) -> str:
    """Drop everything."""
    return f"dropped, force {force}"


@tool
def rubbish(size: int) -> bytes:
    """Return bytes that are no UTF-8."""
    return b"\xff\xfe" * (size // 2)


@tool
async def hold_up(seconds: float, started: str) -> str:
    """Block the event loop it runs on."""
    _touch(started)
    time.sleep(seconds)  # noqa: ASYNC251  # that is what this one is for
    return "held up"


@tool
def quotes(size: int) -> str:
    """Return a text that takes twice its size in JSON."""
    return '"' * size


@tool
def controls(size: int) -> bytes:
    """Return what is UTF-8 and no text."""
    return b"\x00" * size


@tool
def remember(name: str, value: str, context: Context) -> ToolResult:
    """Set a context variable, and say what it was before."""
    return ToolResult(output=f"was {context.get(name)}", context={name: value})


@tool
def send_to(agent: str) -> Handoff:
    """Hand the conversation over."""
    return Handoff(agent)


@tool
async def keyed(log: str, gate: str, number: int, context: Context) -> str:
    """Write the call's idempotency key to a log; wait for the gate if it is a slow one (odd number)."""
    _append(log, f"{number} {context.idempotency_key}")
    while number % 2 and not _exists(gate):  # noqa: ASYNC110  # the test makes it, from another process
        await asyncio.sleep(0.02)
    return f"done {number}"


@tool(once=True)
async def pay(log: str, gate: str) -> str:
    """Pay, as soon as the gate is there; what must not happen twice."""
    _append(log, "paid")
    while not _exists(gate):  # noqa: ASYNC110  # the test makes it, from another process
        await asyncio.sleep(0.02)
    return "paid"


@tool
def flaky(log: str, fails: int) -> str:
    """Fail so often, and say that another attempt is worth it."""
    _append(log, "called")
    if len(Path(log).read_text().split()) <= fails:
        raise ToolError("the shop is closed", retryable=True)
    return "open"


@instructions
def briefing(context: Context) -> str:
    """Instructions by a function."""
    return f"You are {context.agent}. Be kind to {context['user_name']}."


@instructions
def shaky_briefing(context: Context) -> str:
    """Instructions that cannot be made the first two times."""
    _append(context["log"], "asked")
    if len(Path(context["log"]).read_text().split()) < 3:
        raise ConnectionError("the shop does not answer")
    return "Be brief."


@instructions
def broken_briefing() -> str:
    """Instructions that cannot be made."""
    raise LookupError("no such customer")


def _touch(file: str) -> None:
    Path(file).touch()


def _exists(file: str) -> bool:
    return Path(file).exists()


def _append(file: str, line: str) -> None:
    with Path(file).open("a") as lines:
        lines.write(f"{line}\n")

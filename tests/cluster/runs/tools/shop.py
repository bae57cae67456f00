"""Tools of the pools under test. Every call is noted in the file `calls` of the test's folder.

`hold` waits until the test puts the file `go-<key>` there, so that a test, not a clock, decides when a tool is done; so
does `pay` if there is a file `hold-<key>`.
"""

import asyncio
import json
import time
from pathlib import Path

from dalang import Context, tool

FOLDER = Path(Path(__file__).with_name("folder.txt").read_text())


def note(name: str, key: str, **more: object) -> None:
    with (FOLDER / "calls").open("a") as calls:
        calls.write(json.dumps({"tool": name, "key": key, "time": time.time(), **more}) + "\n")


@tool
async def stamp(key: str) -> str:
    """Stamp something."""
    note("stamp", key)
    return f"stamped {key}"


@tool
async def hold(key: str) -> str:
    """Wait for the test."""
    note("hold", key)
    while not (FOLDER / f"go-{key}").exists():  # noqa: ASYNC110 it is in another process
        await asyncio.sleep(0.02)
    return f"held {key}"


@tool
async def pay(key: str, amount: int, context: Context) -> str:
    """Pay something."""
    note("pay", key, amount=amount, idempotencyKey=context.idempotency_key)
    while (FOLDER / f"hold-{key}").exists() and not (FOLDER / f"go-{key}").exists():  # noqa: ASYNC110 as above
        await asyncio.sleep(0.02)
    return f"paid {amount} for {key}"


@tool
async def block(seconds: float) -> str:
    """Hold up the event loop of the tools."""
    note("block", "")
    time.sleep(seconds)  # noqa: ASYNC251 that is what it is for
    return "done"


@tool
def explode(key: str) -> str:
    """Fail."""
    note("explode", key)
    raise ValueError("out of paper")


@tool
def flood() -> str:
    """Return far too much."""
    return "x" * 5_000_000


@tool
def garble() -> bytes:
    """Return something that is not UTF-8."""
    return b"caf\xe9"

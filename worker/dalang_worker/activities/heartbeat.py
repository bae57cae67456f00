"""Heartbeats for activities that wait on others, from a task of their own.

A model says nothing for minutes, so the beat cannot come from progress. It is also the only way in which a cancel, a
timeout or a terminated workflow reaches the call in flight.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from temporalio import activity

INTERVAL_SECONDS = 2.0


@asynccontextmanager
async def beating() -> AsyncIterator[None]:
    """Beat every 2 s for as long as the block runs."""
    task = asyncio.create_task(_beat())
    try:
        yield
    finally:
        task.cancel()


async def _beat() -> None:
    while True:
        await asyncio.sleep(INTERVAL_SECONDS)
        activity.heartbeat()

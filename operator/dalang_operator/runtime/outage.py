"""Living through an outage of the API server: trying until it is over, and saying so once in a while, not every time."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from dalang_operator.kube.errors import ApiError

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
LOG_SECONDS = 10.0


class OutageLog:
    """One line every ten seconds of an outage, however many meet it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._silent_until = float("-inf")
        self._suppressed = 0

    def tell(self, error: Exception) -> None:
        """Log the error, or count it."""
        now = time.monotonic()
        if now < self._silent_until:
            self._suppressed += 1
            return
        logger.warning("%s: %s (%d more since the last line)", self._name, error, self._suppressed)
        self._silent_until, self._suppressed = now + LOG_SECONDS, 0


async def until_done(call: Callable[[], Awaitable[None]], what: str) -> None:
    """Call until the API server lets it end well."""
    outage = OutageLog(what)
    while True:
        try:
            await call()
        except ApiError as error:
            outage.tell(error)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return

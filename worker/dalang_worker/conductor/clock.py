"""The timeouts of a run. They stand still while all that is awaited is a human."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager


class Clock:
    """Knows who is at work and who waits for a human, and with that whether time counts."""

    def __init__(self) -> None:
        self.changed: Callable[[], None] = lambda: None
        """Called when time begins to stand still, and when it goes on."""
        self._left: dict[asyncio.Timeout, float | None] = {}
        """The timeouts that were set; where one stands still, the seconds that are left of it."""
        self._working = 0
        self._asking = 0
        self.stands_still = False

    @asynccontextmanager
    async def limit(self, seconds: float | None) -> AsyncIterator[None]:
        """Raise `TimeoutError` out of the block when it has taken so long, not counting the time that stood still."""
        async with asyncio.timeout(seconds) as timeout:
            self._left[timeout] = None
            try:
                yield
            finally:
                del self._left[timeout]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Something is done in the block, so time counts."""
        self._working += 1
        self._look()
        try:
            yield
        finally:
            self._working -= 1
            self._look()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """A human is waited for in the block."""
        self._asking += 1
        self._look()
        try:
            yield
        finally:
            self._asking -= 1
            self._look()

    def _look(self) -> None:
        stands_still = self._asking > 0 and self._working == 0
        if stands_still == self.stands_still:
            return
        try:
            now = asyncio.get_running_loop().time()
        except RuntimeError:  # the run is only being taken out of memory, and goes on elsewhere
            return
        self.stands_still = stands_still
        for timeout, left in self._left.items():
            when = timeout.when()
            if stands_still and when is not None and not timeout.expired():
                self._left[timeout] = when - now
                timeout.reschedule(None)
            elif not stands_still and left is not None:
                self._left[timeout] = None
                timeout.reschedule(now + left)
        self.changed()

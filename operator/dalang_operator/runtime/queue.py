"""A queue of keys for reconciles, after client-go's workqueue: a set of what is due, one reconcile at a time per key.

Three layers, as there: the queue proper (a key added while it waits is one key; added while it is being reconciled it
comes again afterwards), delays (`add_after`), and backoff per key (`retry`). Kopf's own queueing is not used because it
runs every event with the body it carried and loses work whose writes fail.
"""

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable

from dalang_operator.kube.resources import ObjectKey
from dalang_operator.runtime.metrics import QUEUE_ADDS, QUEUE_DEPTH, QUEUE_RETRIES

BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_LAST_SECONDS = 10.0
"""The most a failing key waits: after an outage all is under way again within this time."""


class Queue:
    """Keys waiting for a reconcile. Belongs to one event loop, whose clock it uses."""

    def __init__(self, name: str, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self._ready: deque[ObjectKey] = deque()
        self._dirty: set[ObjectKey] = set()
        self._processing: set[ObjectKey] = set()
        self._failures: dict[ObjectKey, int] = {}
        self._due: dict[ObjectKey, float] = {}
        self._heap: list[tuple[float, ObjectKey]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._getters: deque[asyncio.Future[None]] = deque()
        self._depth = QUEUE_DEPTH.labels(name)
        self._adds = QUEUE_ADDS.labels(name)
        self._retries = QUEUE_RETRIES.labels(name)

    def __len__(self) -> int:
        return len(self._ready)

    def add(self, key: ObjectKey) -> None:
        """Have the key reconciled soon."""
        if key in self._dirty:
            return
        self._dirty.add(key)
        self._adds.inc()
        if key not in self._processing:
            self._push(key)

    def add_after(self, key: ObjectKey, delay: float) -> None:
        """Have the key reconciled after so many seconds; of several times the earliest holds."""
        loop = asyncio.get_running_loop()
        due = loop.time() + delay
        if delay <= 0:
            self.add(key)
        elif due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._heap, (due, key))
            self._arm(loop)

    def retry(self, key: ObjectKey) -> float:
        """Have the key reconciled after a delay that doubles with each failure in a row; returns the delay."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(BACKOFF_FIRST_SECONDS * 2.0 ** min(failures, 16), BACKOFF_LAST_SECONDS)
        delay *= 0.75 + 0.5 * self._jitter()
        self._retries.inc()
        self.add_after(key, delay)
        return delay

    def forget(self, key: ObjectKey) -> None:
        """The key's reconcile went well: its next failure is a first one."""
        self._failures.pop(key, None)

    async def get(self) -> ObjectKey:
        """Wait for a key and take it; it stays taken until `done`."""
        while not self._ready:
            getter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            try:
                await getter
            except asyncio.CancelledError:
                if not getter.cancelled() and self._ready:
                    self._wake()
                raise
        key = self._ready.popleft()
        self._depth.set(len(self._ready))
        self._processing.add(key)
        self._dirty.discard(key)
        return key

    def done(self, key: ObjectKey) -> None:
        """Give a taken key back."""
        self._processing.discard(key)
        if key in self._dirty:
            self._push(key)

    def _push(self, key: ObjectKey) -> None:
        self._ready.append(key)
        self._depth.set(len(self._ready))
        self._wake()

    def _wake(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._heap:
            self._timer = None
        elif self._timer is None or self._timer.cancelled() or self._heap[0][0] < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(self._heap[0][0], self._release_due, loop)

    def _release_due(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        while self._heap and self._heap[0][0] <= loop.time():
            due, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:  # else an earlier time replaced this one
                del self._due[key]
                self.add(key)
        self._arm(loop)

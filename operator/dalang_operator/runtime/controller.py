"""Workers: take a key, reconcile it, and decide by the outcome when it comes again.

Done → forget its failures. `requeue_after` → later. An error → backoff; expected ones (a conflict, a server that is away)
without a stack trace, and an outage says itself once in a while, not once per key.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from dalang_operator.kube.errors import AlreadyExists, ApiError, Conflict, NotFound, Terminating, Unavailable
from dalang_operator.kube.resources import ObjectKey
from dalang_operator.runtime.metrics import RECONCILE_TIME, RECONCILES
from dalang_operator.runtime.outage import OutageLog
from dalang_operator.runtime.queue import Queue
from dalang_operator.temporal.errors import TemporalError, TemporalUnavailable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Controller:
    """One kind's reconcile with its queue."""

    name: str
    queue: Queue
    reconcile: Callable[[ObjectKey], Awaitable[float | None]]
    """Brings one object to where it should be; returns after how many seconds to look again, or None."""
    workers: int

    async def run(self, may_act: Callable[[], Awaitable[object]]) -> None:
        """Work for ever. Before each reconcile `may_act` is awaited: it waits while another process leads."""
        outages = OutageLog(self.name)
        async with asyncio.TaskGroup() as group:
            for _ in range(self.workers):
                group.create_task(self._work(may_act, outages))

    async def _work(self, may_act: Callable[[], Awaitable[object]], outages: OutageLog) -> None:
        while True:
            key = await self.queue.get()
            await may_act()
            begin = time.perf_counter()
            result = await self._reconcile_once(key, outages)
            self.queue.done(key)
            RECONCILE_TIME.labels(self.name).observe(time.perf_counter() - begin)
            RECONCILES.labels(self.name, result).inc()

    async def _reconcile_once(self, key: ObjectKey, outages: OutageLog) -> str:
        try:
            requeue_after = await self.reconcile(key)
        except (Conflict, AlreadyExists, NotFound, Terminating) as error:
            logger.debug("%s %s changed meanwhile, looking again: %s", self.name, key, error)
            self.queue.retry(key)
            return "requeue"
        except (Unavailable, TemporalUnavailable) as error:
            self.queue.retry(key)
            outages.tell(error)
            return "error"
        except (ApiError, TemporalError) as error:
            delay = self.queue.retry(key)
            logger.warning("%s %s: %s (trying again in %.1f s)", self.name, key, error, delay)
            return "error"
        except Exception:
            delay = self.queue.retry(key)
            logger.exception("%s %s: reconcile failed (trying again in %.1f s)", self.name, key, delay)
            return "error"
        self.queue.forget(key)
        if requeue_after is not None:
            self.queue.add_after(key, requeue_after)
            return "requeue_after"
        return "success"

"""What the outcome of a reconcile means for its key. Time is virtual."""

import asyncio
from collections.abc import Callable

import pytest
from dalang_operator.kube.errors import Conflict, Forbidden, Unavailable
from dalang_operator.kube.resources import ObjectKey
from dalang_operator.runtime.controller import Controller
from dalang_operator.runtime.queue import Queue
from dalang_operator.temporal.errors import TemporalUnavailable

pytestmark = [pytest.mark.looptime(True)]
KEY = ObjectKey("shop", "a")


async def at_once() -> None:
    return None


async def times(outcomes: list[float | Exception | None], clock: Callable[[], float]) -> list[float]:
    """When a key's reconciles happened, which ended as given."""
    seen: list[float] = []
    over = asyncio.Event()

    async def reconcile(key: ObjectKey) -> float | None:
        seen.append(round(clock(), 3))
        outcome = outcomes.pop(0)
        if not outcomes:
            over.set()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    queue = Queue("test", jitter=lambda: 0.5)
    running = asyncio.ensure_future(Controller("Test", queue, reconcile, 2).run(at_once))
    queue.add(KEY)
    await over.wait()
    running.cancel()
    return seen


async def test_done_is_done_and_later_is_later() -> None:
    loop = asyncio.get_running_loop()
    assert await times([60.0, None], loop.time) == [0, 60]


async def test_errors_of_every_sort_come_again_with_growing_delays() -> None:
    loop = asyncio.get_running_loop()
    errors: list[float | Exception | None] = [
        Conflict("changed"),
        Unavailable("away"),
        TemporalUnavailable("away"),
        Forbidden("no"),
        ValueError("a bug"),
        None,
    ]
    assert await times(errors, loop.time) == [0, 0.1, 0.3, 0.7, 1.5, 3.1]


async def test_a_success_ends_the_backoff() -> None:
    loop = asyncio.get_running_loop()
    assert await times([Unavailable("away"), Unavailable("away"), 10.0, Unavailable("away"), None], loop.time) == [
        0,
        0.1,
        0.3,
        10.3,
        10.4,
    ]


async def test_nothing_is_reconciled_while_another_leads(looptime: float) -> None:
    leading = asyncio.Event()
    done = asyncio.Event()

    async def reconcile(key: ObjectKey) -> None:
        done.set()

    queue = Queue("test")
    running = asyncio.ensure_future(Controller("Test", queue, reconcile, 2).run(leading.wait))
    queue.add(KEY)
    await asyncio.sleep(100)
    assert not done.is_set()
    leading.set()
    await done.wait()
    assert looptime == 100
    running.cancel()


async def test_an_outage_is_one_line_however_many_keys_meet_it(caplog: pytest.LogCaptureFixture) -> None:
    async def reconcile(key: ObjectKey) -> None:
        raise Unavailable("the API server cannot be reached")

    queue = Queue("test")
    running = asyncio.ensure_future(Controller("Test", queue, reconcile, 4).run(at_once))
    for number in range(500):
        queue.add(ObjectKey("shop", str(number)))
    await asyncio.sleep(0.05)
    running.cancel()
    assert [record.getMessage() for record in caplog.records] == [
        "Test: the API server cannot be reached (0 more since the last line)"
    ]

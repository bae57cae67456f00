"""The queue: one key once, one at a time, later, and with backoff. Time is virtual."""

import asyncio

import pytest
from dalang_operator.kube.resources import ObjectKey
from dalang_operator.runtime.queue import BACKOFF_LAST_SECONDS, Queue

A, B = ObjectKey("shop", "a"), ObjectKey("shop", "b")

pytestmark = [pytest.mark.looptime(True)]


def make() -> Queue:
    return Queue("test", jitter=lambda: 0.5)  # the middle: no jitter


async def take(queue: Queue) -> ObjectKey:
    key = await queue.get()
    queue.done(key)
    return key


async def test_a_key_added_twice_is_one_key(looptime: float) -> None:
    queue = make()
    for key in (A, B, A):
        queue.add(key)
    assert [await take(queue), await take(queue)] == [A, B]
    assert len(queue) == 0


async def test_a_key_added_while_it_is_reconciled_comes_again_afterwards_and_not_before(looptime: float) -> None:
    queue = make()
    queue.add(A)
    key = await queue.get()
    queue.add(A)
    queue.add(A)
    assert len(queue) == 0
    queue.done(key)
    assert await take(queue) == A
    assert len(queue) == 0


async def test_a_waiting_worker_is_woken(looptime: float) -> None:
    queue = make()
    workers = [asyncio.ensure_future(take(queue)) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add(A)
    queue.add(B)
    assert sorted(await asyncio.gather(*workers)) == [A, B]


async def test_a_worker_that_is_cancelled_takes_no_key_with_it(looptime: float) -> None:
    queue = make()
    cancelled, other = (asyncio.ensure_future(take(queue)) for _ in range(2))
    await asyncio.sleep(0)
    queue.add(A)
    cancelled.cancel()
    assert await asyncio.wait_for(other, 1) == A


async def test_later_means_later_and_of_two_times_the_earlier_holds(looptime: float) -> None:
    queue = make()
    queue.add_after(A, 3600)
    queue.add_after(A, 10)
    queue.add_after(A, 7200)
    queue.add_after(B, 5)
    assert await take(queue) == B
    assert looptime == 5
    assert await take(queue) == A
    assert looptime == 10
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 86400)


async def test_backoff_doubles_up_to_a_bound_and_begins_anew_after_a_success(looptime: float) -> None:
    queue = make()
    delays = [queue.retry(A) for _ in range(9)]
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == BACKOFF_LAST_SECONDS
    assert queue.retry(B) == 0.1, "each key has its own"
    queue.forget(A)
    assert queue.retry(A) == 0.1


async def test_backoff_is_spread() -> None:
    assert Queue("low", jitter=lambda: 0.0).retry(A) == pytest.approx(0.075)
    assert Queue("high", jitter=lambda: 1.0).retry(A) == pytest.approx(0.125)


async def test_ten_thousand_times_to_live_are_one_timer(looptime: float) -> None:
    queue = make()
    for number in range(10_000):
        queue.add_after(ObjectKey("shop", str(number)), 86400 + number % 7)
    for _ in range(10_000):
        await take(queue)
    assert looptime == 86406

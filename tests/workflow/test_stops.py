"""What stops a run from outside: its timeout, a cancel, a terminate. Each stops the model call in flight within 10 s."""

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from dalang_worker import main

if TYPE_CHECKING:
    from tests.workflow.conftest import Run, World

Json = dict[str, Any]

LONG_SECONDS = 120
STOPS_WITHIN_SECONDS = 10.0


async def first_request(run: "Run") -> Json:
    requests: list[Json] = await run.world.eventually(run.asked)
    return requests[0]


async def model_call_stops(run: "Run") -> float:
    """Return how long it took from now until the model's endpoint saw the client go away."""
    began = time.monotonic()

    async def is_aborted() -> bool:
        return all(request["aborted"] for request in await run.asked())

    await run.world.eventually(is_aborted, within=STOPS_WITHIN_SECONDS)
    return time.monotonic() - began


async def test_a_timeout_stops_the_model_call_and_says_what_was_waited_for(world: "World") -> None:
    async with world.serving():
        run = await world.start({"text": "too late"}, latencySeconds=LONG_SECONDS, timeout_seconds=1)
        ended = await run.end()
        stopped_after = await model_call_stops(run)
    print(f"the model call stopped {stopped_after:.1f} s after the timeout")  # noqa: T201
    assert (ended.outcome, ended.report.phase, ended.report.reason) == ("Failed", "Failed", "Timeout")
    assert ended.report.message == "limits.timeout of 1s passed while waiting for the model of support (turn 1)"
    assert [report.seq for report in run.reports] == [1]


async def test_a_cancel_stops_the_model_call_and_is_reported(world: "World") -> None:
    async with world.serving():
        run = await world.start({"text": "too late"}, latencySeconds=LONG_SECONDS)
        await first_request(run)
        await run.handle.cancel()
        ended = await run.end()
        stopped_after = await model_call_stops(run)
    print(f"the model call stopped {stopped_after:.1f} s after the cancel")  # noqa: T201
    assert (ended.outcome, ended.report.phase, ended.report.reason) == ("Cancelled", "Cancelled", "Cancelled")
    assert ended.report.message == "Cancelled while waiting for the model of support (turn 1)"
    assert len(run.reports) == 1


async def test_a_terminate_stops_the_model_call(world: "World") -> None:
    async with world.serving():
        run = await world.start({"text": "too late"}, latencySeconds=LONG_SECONDS)
        await first_request(run)
        await run.handle.terminate()
        stopped_after = await model_call_stops(run)
    print(f"the model call stopped {stopped_after:.1f} s after the terminate")  # noqa: T201
    assert run.reports == []


@pytest.mark.parametrize(
    ("how", "reason"),
    [pytest.param("cancel", "Cancelled", id="a cancel"), pytest.param("time", "Timeout", id="a timeout")],
)
async def test_stops_tools_side_by_side(world: "World", how: str, reason: str) -> None:
    def waiting(number: int) -> Json:
        arguments = {"file": str(world.path / "never"), "started": str(world.path / f"started-{number}")}
        return {"name": "wait_for", "arguments": arguments}

    async with world.serving():
        run = await world.start(
            {"toolCalls": [waiting(1), waiting(2)]},
            tools=["wait_for"],
            timeout_seconds=60 if how == "cancel" else 2,
        )
        await world.eventually(lambda: (world.path / "started-1").exists() and (world.path / "started-2").exists())
        if how == "cancel":
            await run.handle.cancel()
        ended = await run.end()
    assert ended.report.reason == reason
    assert ended.report.message.endswith("while waiting for tool wait_for of support (turn 1)")


async def test_a_run_that_is_cancelled_while_no_worker_is_there_is_reported_by_the_next(world: "World") -> None:
    run = await world.start({"text": "never asked"})
    await run.handle.cancel()
    async with world.serving():
        ended = await run.end()
    assert (ended.outcome, ended.report.reason, len(run.reports)) == ("Cancelled", "Cancelled", 1)
    assert await run.asked() == []


async def test_a_run_that_timed_out_while_no_worker_was_there_is_reported_by_the_next(world: "World") -> None:
    async with world.serving(drain_seconds=0):
        run = await world.start({"text": "too late"}, latencySeconds=LONG_SECONDS, timeout_seconds=1)
        await first_request(run)
    await world.eventually(lambda: has_fired(run))
    async with world.serving():
        ended = await run.end()
    assert (ended.outcome, ended.report.reason, len(run.reports)) == ("Failed", "Timeout", 1)


async def has_fired(run: "Run") -> bool:
    history = await run.handle.fetch_history()
    return any(event.HasField("timer_fired_event_attributes") for event in history.events)


async def test_a_cancel_while_the_last_report_is_under_way_leaves_the_run_as_it_ended(world: "World") -> None:
    world.reporter_open.clear()
    async with world.serving():
        run = await world.start({"text": "done"})
        await world.eventually(lambda: world.reporting)
        await run.handle.cancel()
        await world.eventually(lambda: is_cancel_requested(run))
        world.reporter_open.set()
        ended = await run.end()
    assert (ended.outcome, ended.report.output, len(run.reports)) == ("Succeeded", "done", 1)


async def is_cancel_requested(run: "Run") -> bool:
    history = await run.handle.fetch_history()
    return any(event.HasField("workflow_execution_cancel_requested_event_attributes") for event in history.events)


async def test_runs_that_drop_out_of_the_cache_while_they_end_still_end(
    world: "World", monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evicted workflow is torn down by cancelling its tasks; the last report is shielded from that too."""
    monkeypatch.setattr(main, "MAX_CACHED_WORKFLOWS", 1)
    world.reporter_open.clear()
    async with world.serving():
        runs = await asyncio.gather(*(world.start({"text": "done"}) for _ in range(4)))
        await world.eventually(lambda: len(world.reporting) == len(runs))
        world.reporter_open.set()
        ends = await asyncio.gather(*(run.end() for run in runs))
    assert [(ended.outcome, ended.report.seq) for ended in ends] == [("Succeeded", 1)] * len(runs)

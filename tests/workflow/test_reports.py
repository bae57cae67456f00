"""Reports: each is the whole state, the last one arrives whatever happens, and nothing comes after it."""

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from dalang_api import contract
from dalang_api.contract import Retrying, RunReport
from temporalio import activity
from temporalio.worker import Worker

if TYPE_CHECKING:
    from tests.workflow.conftest import Run, World

Json = dict[str, Any]


def calls(*wanted: tuple[str, Any]) -> Json:
    return {"toolCalls": [{"name": name, "arguments": arguments} for name, arguments in wanted]}


async def test_the_last_report_waits_for_the_reporter(world: "World") -> None:
    async with world.worker():
        run = await world.start({"text": "done"})
        await world.eventually(run.asked)
        answered = asyncio.create_task(run.handle.result())
        done, _ = await asyncio.wait([answered], timeout=1)
        assert not done
        async with world.reporter():
            await answered
            ended = await run.end()
    assert (ended.outcome, ended.report.output) == ("Succeeded", "done")


async def test_a_report_that_fails_is_sent_again(world: "World") -> None:
    attempts: list[int] = []

    @activity.defn(name=contract.REPORT_ACTIVITY)
    async def report(report: RunReport) -> None:
        attempts.append(activity.info().attempt)
        if len(attempts) < 3:
            raise ConnectionError("the API server is away")
        world.reported.setdefault(activity.info().workflow_id or "", []).append(report)

    queue = contract.reporter_queue(world.installation)
    async with world.worker(), Worker(world.client, task_queue=queue, activities=[report]):
        run = await world.start({"text": "done"})
        ended = await run.end()
    assert (ended.outcome, attempts) == ("Succeeded", [1, 2, 3])


def has_reported(run: "Run", count: int) -> bool:
    return len(run.reports) == count


async def test_report_again_repeats_the_state_with_a_higher_number(world: "World") -> None:
    async with world.serving(drain_seconds=0):
        run = await world.start(
            calls(("weather", {"city": "Ubud"})), {"text": "never", "latencySeconds": 120}, tools=["weather"]
        )

        async def second() -> bool:
            return len(await run.asked()) == 2

        await world.eventually(second)
        for count in (1, 2):  # the second would replace the first if that was not written yet
            await run.handle.signal(contract.REPORT_AGAIN_SIGNAL)
            await world.eventually(partial(has_reported, run, count))
        await run.handle.terminate()
    first, second_report = sorted(run.reports, key=lambda report: report.seq)
    assert (first.phase, first.reason, first.message, first.turns) == ("Running", "Running", "Turn 2", 2)
    assert [message.role for message in first.messages] == ["User", "Assistant", "Tool"]
    assert second_report == first.model_copy(update={"seq": 2})


async def test_nothing_is_reported_after_the_last_report(world: "World") -> None:
    """A later one would have the higher number and keep the last out of the status."""
    world.reporter_open.clear()
    async with world.serving():
        run = await world.start({"text": "done"})
        await world.eventually(lambda: world.reporting)
        await run.handle.signal(contract.REPORT_AGAIN_SIGNAL)
        await run.handle.signal(contract.RETRYING_SIGNAL, Retrying(reason="ModelRetrying", message="late"))
        world.reporter_open.set()
        ended = await run.end()
    assert (ended.outcome, [report.seq for report in world.reporting]) == ("Succeeded", [1])

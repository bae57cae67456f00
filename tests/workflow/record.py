"""Records the histories that `test_replay.py` replays: `.venv/bin/pytest tests/workflow/record.py [-k name]`.

Not collected unless named. A history that a release has written stays for ever, since runs that began with it may still be
waiting: after a change of the workflow, record new ones under new names. Before the first release they may be recorded anew.
"""

import json
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalang_api import contract

if TYPE_CHECKING:
    from tests.workflow.conftest import Run, World

Json = dict[str, Any]

HISTORIES = Path(__file__).parent / "histories"


def calls(*wanted: tuple[str, Any]) -> Json:
    return {"toolCalls": [{"name": name, "arguments": arguments} for name, arguments in wanted]}


async def save(run: "Run", name: str) -> None:
    await run.end()
    history = await run.handle.fetch_history()
    content = {"workflowId": run.handle.id, **history.to_json_dict()}
    HISTORIES.mkdir(exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False)
    # Stack traces name files by where this checkout and this Python stand.
    for place in (Path(__file__).parents[2], sysconfig.get_path("stdlib")):
        text = text.replace(f"{place}/", "")
    (HISTORIES / f"{name}.json").write_text(text + "\n")


async def test_answer(world: "World") -> None:
    async with world.serving():
        await save(await world.start({"text": "It is on its way."}), "answer")


async def test_tools(world: "World") -> None:
    async with world.serving():
        run = await world.start(
            calls(("weather", {"city": "Ubud"}), ("time_of", {"city": "Ubud"}), ("no_such_tool", {})),
            calls(("fail", {"words": "no such order"})),
            {"text": "Sunny."},
            tools=["weather", "time_of", "fail"],
        )
        await save(run, "tools")


async def test_model_retried(world: "World") -> None:
    async with world.serving():
        run = await world.start(
            calls(("weather", {"city": "Ubud"})), {"text": "Sunny."}, errors=[{"status": 503}] * 3, tools=["weather"]
        )
        await save(run, "model-retried")


async def test_model_failed(world: "World") -> None:
    async with world.serving():
        await save(await world.start(alwaysError={"status": 401}), "model-failed")


async def test_model_stopped(world: "World") -> None:
    async with world.serving():
        await save(await world.start({"text": "Once upon a", "finishReason": "length"}), "model-stopped")


async def test_max_turns(world: "World") -> None:
    async with world.serving():
        again = calls(("weather", {"city": "Ubud"}))
        await save(await world.start(again, loop=True, tools=["weather"], max_turns=2), "max-turns")


async def test_timeout(world: "World") -> None:
    async with world.serving():
        await save(await world.start({"text": "late", "latencySeconds": 60}, timeout_seconds=1), "timeout")


async def test_timeout_in_tools(world: "World") -> None:
    wait = ("wait_for", {"file": str(world.path / "never"), "started": str(world.path / "started")})
    async with world.serving():
        run = await world.start(calls(wait, wait), tools=["wait_for"], timeout_seconds=2)
        await save(run, "timeout-in-tools")


async def test_cancelled(world: "World") -> None:
    async with world.serving():
        run = await world.start({"text": "late", "latencySeconds": 60})
        await world.eventually(run.asked)
        await run.handle.cancel()
        await save(run, "cancelled")


async def test_cancelled_before_the_first_turn(world: "World") -> None:
    run = await world.start({"text": "never"})
    await run.handle.cancel()
    async with world.serving():
        await save(run, "cancelled-before-the-first-turn")


async def test_cancelled_while_reporting(world: "World") -> None:
    world.reporter_open.clear()
    async with world.serving():
        run = await world.start({"text": "done"})
        await world.eventually(lambda: world.reporting)
        await run.handle.cancel()
        await run.handle.signal(contract.REPORT_AGAIN_SIGNAL)
        world.reporter_open.set()
        await save(run, "cancelled-while-reporting")


async def test_reported_again(world: "World") -> None:
    gate, started = world.path / "gate", world.path / "started"
    async with world.serving():
        run = await world.start(
            calls(("wait_for", {"file": str(gate), "started": str(started)})), {"text": "done"}, tools=["wait_for"]
        )
        await world.eventually(started.exists)
        await run.handle.signal(contract.REPORT_AGAIN_SIGNAL)
        await world.eventually(lambda: run.reports)
        gate.touch()
        await save(run, "reported-again")


async def test_long_tail(world: "World") -> None:
    """More than a model call carries, so that the next asks for it by query; and a second worker that has seen nothing."""
    said = [("say", {"size": contract.TOOL_OUTPUT_MAX_BYTES})] * 9
    gate, started = world.path / "gate", world.path / "started"
    wait = ("wait_for", {"file": str(gate), "started": str(started)})
    async with world.reporter():
        async with world.worker(drain_seconds=0):
            run = await world.start(
                calls(*said),
                calls(wait),
                calls(("weather", {"city": "Ubud"})),
                {"text": "done"},
                tools=["say", "wait_for", "weather"],
            )
            await world.eventually(started.exists)
        gate.touch()
        async with world.worker():
            await save(run, "long-tail")

"""Workers that come and go: killed, stopped, held up by a tool, without one of their tool modules."""

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from dalang_api import contract
from dalang_api.contract import Catalogue, ImportFailure

if TYPE_CHECKING:
    from tests.workflow.conftest import World

Json = dict[str, Any]


def calls(*wanted: tuple[str, Any]) -> Json:
    return {"toolCalls": [{"name": name, "arguments": arguments} for name, arguments in wanted]}


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


@pytest.mark.timeout(90)
async def test_a_killed_worker_costs_nothing_that_was_recorded(world: "World") -> None:
    """Three runs of three tool calls each, killed in a tool, in a model call, and while the last report is written."""
    tools = ["note", "wait_for"]
    notes = {name: world.path / f"notes-{name}" for name in ("tool", "model", "report")}
    gate, started, attempts = world.path / "gate", world.path / "started", world.path / "attempts"

    def note(name: str, line: str) -> Json:
        return calls(("note", {"file": str(notes[name]), "line": line}))

    wait = calls(("wait_for", {"file": str(gate), "started": str(started), "attempt_log": str(attempts)}))
    answer = {"text": "done"}
    slow = [note("model", "1"), note("model", "2"), {**note("model", "3"), "latencySeconds": 120}, answer]

    world.reporter_open.clear()
    async with world.reporter():
        async with world.worker_process() as worker:
            in_tool = await world.start(note("tool", "1"), wait, note("tool", "3"), answer, tools=tools)
            in_model = await world.start(*slow, tools=tools)
            in_report = await world.start(*(note("report", line) for line in "123"), answer, tools=tools)

            async def all_are_there() -> bool:
                return started.exists() and len(world.reporting) == 1 and len(await in_model.asked()) == 3

            await world.eventually(all_are_there)
            worker.process.kill()
            await worker.process.wait()
        await world.script(*slow[:2], note("model", "3"), answer, name=in_model.model)
        gate.touch()
        world.reporter_open.set()
        async with world.worker_process():
            ends = await asyncio.gather(in_tool.end(), in_model.end(), in_report.end())

    assert [(ended.outcome, ended.report.output, ended.report.turns) for ended in ends] == [
        ("Succeeded", "done", 4)
    ] * 3
    assert lines(notes["tool"]) == ["1", "3"]
    assert lines(attempts) == ["called", "called"]  # the one that was under way
    assert lines(notes["model"]) == lines(notes["report"]) == ["1", "2", "3"]
    made = [len(await run.asked()) for run in (in_tool, in_model, in_report)]
    assert made == [4, 5, 4]  # of the second, the one that was under way


async def test_a_worker_is_ready_soon(world: "World") -> None:
    async with world.worker_process() as worker:
        used = psutil.Process(worker.process.pid).cpu_times()
        cpu_seconds = used.user + used.system
        print(f"ready {worker.ready_after_seconds:.2f} s after its start, {cpu_seconds:.2f} s of CPU")  # noqa: T201
        # By the clock it depends on what else the machine does.
        assert cpu_seconds <= 1.5


async def test_a_stopping_worker_waits_for_the_tool_that_runs(world: "World") -> None:
    gate, started = world.path / "gate", world.path / "started"
    async with world.reporter():
        async with world.worker_process() as worker:
            run = await world.start(
                calls(("wait_for", {"file": str(gate), "started": str(started)})),
                {"text": "{{last_tool}}"},
                tools=["wait_for"],
            )
            await world.eventually(started.exists)
            worker.process.send_signal(signal.SIGTERM)
            await world.eventually(lambda: worker.says((503, "stopping")))
            gate.touch()
            assert await worker.process.wait() == 0
        async with world.worker():
            ended = await run.end()
    assert (ended.outcome, ended.report.output) == ("Succeeded", "waited")
    assert await run.attempts("tool") == [1]


async def test_what_outlasts_a_stopping_worker_is_given_to_another(world: "World") -> None:
    async with world.reporter():
        async with world.worker(drain_seconds=0):
            run = await world.start({"text": "late", "latencySeconds": 120})
            await world.eventually(run.asked)
        await world.script({"text": "at last"}, name=run.model)
        async with world.worker():
            ended = await run.end()
    assert (ended.outcome, ended.report.output) == ("Succeeded", "at last")
    assert await run.attempts("model") == [2]
    assert len(run.reports) == 1


async def test_a_tool_that_holds_up_its_loop_is_noticed_by_no_other_run(world: "World") -> None:
    """12 s are more than the 10 s in which a heartbeat must come."""
    started = world.path / "started"
    async with world.serving():
        holding = await world.start(
            calls(("hold_up", {"seconds": 12.0, "started": str(started)})), {"text": "{{last_tool}}"}, tools=["hold_up"]
        )
        await world.eventually(started.exists)
        waiting = await world.start({"text": "hi", "latencySeconds": 11.0})
        beside = await world.start(calls(("time_of", {"city": "Ubud"})), {"text": "{{last_tool}}"}, tools=["time_of"])
        async with asyncio.timeout(10):
            assert (await beside.end()).outcome == "Succeeded"
        ends = [await run.end() for run in (waiting, holding)]
    assert [ended.report.output for ended in ends] == ["hi", "held up"]
    assert [await run.attempts("model") for run in (waiting, holding)] == [[1], [1, 1]]
    assert await holding.attempts("tool") == [1]
    assert len(await waiting.asked()) == 1


async def test_a_worker_publishes_its_tools_and_what_could_not_be_imported(world: "World") -> None:
    folder = world.path / "tools"
    folder.mkdir()
    (folder / "shop_tools.py").write_text(
        "from dalang import tool\n\n\n@tool\ndef refund(order: str) -> str:\n    '''Refund.'''\n    return order\n"
    )
    (folder / "broken_tools.py").write_text("import no_such_library\n")
    (world.path / "secrets" / "openai").mkdir(parents=True)
    (world.path / "secrets" / "openai" / "api-key").write_text("sk-1")
    async with world.worker_process(
        tools="shop_tools, broken_tools,missing_tools", tools_path=folder, build="9f31c2aa10"
    ) as worker:
        published = world.client.get_workflow_handle(f"{world.installation}.shop.default.9f31c2aa10")
        history = await world.eventually(lambda: published.fetch_history())
        assert "broken_tools" in worker.log.read_text()
    attributes = history.events[0].workflow_execution_started_event_attributes
    assert attributes.workflow_type.name == contract.PUBLISH_TOOLS_WORKFLOW
    assert attributes.task_queue.name == contract.reporter_queue(world.installation)
    catalogue = world.client.data_converter.payload_converter.from_payload(attributes.input.payloads[0], Catalogue)
    assert [tool.name for tool in catalogue.tools] == ["refund"]
    assert catalogue.secret_keys == ["openai/api-key"]
    assert catalogue.failures == [
        ImportFailure(module="broken_tools", error="ModuleNotFoundError: No module named 'no_such_library'"),
        ImportFailure(module="missing_tools", error="ModuleNotFoundError: No module named 'missing_tools'"),
    ]


async def test_a_worker_waits_for_temporal_and_can_be_stopped_meanwhile(world: "World", free_port: int) -> None:
    world.temporal_address = f"127.0.0.1:{free_port}"
    async with world.worker_process(says=(503, "Temporal has not been reached yet")) as worker:
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.process.wait() == 0


async def test_a_worker_that_cannot_serve_its_endpoints_says_so_and_ends(world: "World") -> None:
    with pytest.raises(AssertionError, match=r"cannot serve on 999\.0\.0\.1:80: .*; set --http-address"):
        async with world.worker_process(http_address="999.0.0.1:80"):
            pass

"""Turns per second of one worker process: the agent loop against a bare loop that makes the same calls, and against the ideal."""

import asyncio
import itertools
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
from dalang_api import contract
from dalang_api.contract import (
    AgentSnapshot,
    Message,
    ModelSnapshot,
    RunInput,
    RunReport,
    Snapshot,
    TextPart,
    ToolBinding,
)
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from bench import bare
from bench.cluster import TOOLS
from bench.processes import agent_worker, bare_worker

INSTALLATION = "bench-turns"
QUEUE = contract.pool_queue(INSTALLATION, "bench", "default")
CASES = ((0, 50), (500, 50), (500, 20))
"""Milliseconds of model latency, and runs at once. At 50 two cores are busy with Temporal's server; at 20 they are not."""
MODEL_CALLS = 4
"""Of each run: three turns with a tool call of 64 bytes, and the answer."""

_ids = (f"turns-{number}" for number in itertools.count())


async def turns(temporal: Client, runs: int) -> dict[str, Any]:
    """Turns per second by model latency and runs at once; started in Temporal, without Kubernetes."""
    with tempfile.TemporaryDirectory(prefix="dalang-bench-") as folder:
        _write(Path(folder, "benchtools.py"), TOOLS)
        return {
            f"{latency}ms, {at_once} at once": await _turns_at(temporal, runs, latency, at_once, Path(folder))
            for latency, at_once in CASES
        }


def _write(path: Path, text: str) -> None:
    path.write_text(text)


async def _turns_at(temporal: Client, runs: int, latency: int, at_once: int, tools_path: Path) -> dict[str, Any]:
    model = f"bench-{latency}-turns-{MODEL_CALLS - 1}-bytes-64"
    with bare_worker() as worker:
        bare_figures = await _measure(runs, at_once, lambda: _run_bare(temporal, model), worker)
    with agent_worker(INSTALLATION, tools_path) as worker:
        async with Worker(temporal, task_queue=contract.reporter_queue(INSTALLATION), activities=[_report]):
            figures = await _measure(runs, at_once, lambda: _run_agent(temporal, model), worker)
    result = {
        "bareLoop": bare_figures,
        "agentLoop": figures,
        "ratio": round(figures["turnsPerSecond"] / bare_figures["turnsPerSecond"], 3),
    }
    if latency:
        ideal = at_once * 1000 / latency
        result["ideal"] = ideal
        result["ofIdeal"] = round(figures["turnsPerSecond"] / ideal, 3)
        result["bareOfIdeal"] = round(bare_figures["turnsPerSecond"] / ideal, 3)
    return result


async def _measure(
    runs: int, at_once: int, run_one: Callable[[], Awaitable[None]], worker: psutil.Process
) -> dict[str, float]:
    gate = asyncio.Semaphore(at_once)

    async def gated() -> None:
        async with gate:
            await run_one()

    await asyncio.gather(*(gated() for _ in range(5)))
    cpu, started = sum(worker.cpu_times()[:2]), time.perf_counter()
    await asyncio.gather(*(gated() for _ in range(runs)))
    seconds = time.perf_counter() - started
    made = runs * MODEL_CALLS
    return {
        "turnsPerSecond": round(made / seconds, 1),
        "workerCpuMsPerTurn": round((sum(worker.cpu_times()[:2]) - cpu) * 1000 / made, 2),
    }


async def _run_bare(temporal: Client, model: str) -> None:
    await temporal.execute_workflow(bare.BareLoop.run, model, id=next(_ids), task_queue=bare.QUEUE)


async def _run_agent(temporal: Client, model: str) -> None:
    agent = AgentSnapshot(
        name="echo", uid="a", generation=1, queue=QUEUE, model="m", tools=[ToolBinding(name="echo", function="echo")]
    )
    endpoint = ModelSnapshot(
        name="m", uid="m", generation=1, provider="OpenAI", model=model, base_url=os.environ["DALANG_MODEL_URL"] + "/v1"
    )
    run = RunInput(
        agent="echo",
        messages=[Message(role="user", parts=[TextPart(text="hi")])],
        max_turns=20,
        timeout_seconds=600,
        snapshot=Snapshot(agents=[agent], models=[endpoint]),
    )
    workflow_id = contract.run_workflow_id(INSTALLATION, "bench", next(_ids), "uid")
    await temporal.execute_workflow(contract.RUN_WORKFLOW, run, id=workflow_id, task_queue=QUEUE, result_type=RunReport)


@activity.defn(name=contract.REPORT_ACTIVITY)
async def _report(report: RunReport) -> None:
    """Take the report, as the operator's reporter does, and write it nowhere."""

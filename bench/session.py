"""A long conversation: so many runs in one session, one after another, and what the last ones cost beside the first."""

import asyncio
import json
import statistics
import time
from typing import Any

from temporalio.client import Client

from bench.cluster import Cluster
from bench.processes import ControlPlane

HISTORY_SIZE = 40
MODEL = "bench-0-turns-0-bytes-1024"
"""It answers 1 KiB at once, also when it summarises."""
INPUT = "x" * 1024
SESSION = "long"
WINDOW = 100
"""Runs of one figure. The first hundred fill the memory; the second is what the last hundred are compared with."""


async def session(plane: ControlPlane, cluster: Cluster, temporal: Client, runs: int) -> dict[str, Any]:
    """Hold a conversation of so many runs; each is created when the one before it has ended."""
    spec = {"agentRef": {"name": MODEL}, "historySize": HISTORY_SIZE}
    await cluster.create("agentsessions", {"kind": "AgentSession", "metadata": {"name": SESSION}, "spec": spec})
    seconds: list[float] = []
    status_bytes: list[int] = []
    worker_mib: list[float] = []
    for number in range(runs):
        seconds.append(await _say(cluster, number))
        if number % WINDOW == WINDOW - 1:
            status_bytes.append(len(json.dumps(await _status(cluster, number + 1)).encode()))
            worker_mib.append(round(plane.memory_mib(peak=False)["worker"], 1))
    status = await _status(cluster, runs)
    executions = await _executions(temporal, status["workflow"]["id"])
    early, late = seconds[WINDOW : 2 * WINDOW], seconds[-WINDOW:]
    return {
        "runs": runs,
        "historySize": HISTORY_SIZE,
        "executions": len(executions),
        "largestExecutionBytes": max(executions),
        "largestStatusBytes": max(status_bytes),
        "earlyMs": _milliseconds(early),
        "lateMs": _milliseconds(late),
        "lateToEarly": round(statistics.mean(late) / statistics.mean(early), 3),
        "workerMiB": worker_mib,
    }


async def _say(cluster: Cluster, number: int) -> float:
    """Create the next run; return seconds until a watch shows it finished."""
    name = f"{SESSION}-{number:04}"
    spec = {"sessionRef": {"name": SESSION}, "input": INPUT}
    started = time.perf_counter()
    await cluster.create("agentruns", {"kind": "AgentRun", "metadata": {"name": name}, "spec": spec})
    seen, status = await cluster.finished(name)
    assert status["phase"] == "Succeeded", status
    return seen - started


async def _status(cluster: Cluster, runs: int) -> dict[str, Any]:
    """Return the session's status when it has counted so many runs: it is written after the last run's."""
    while True:
        status: dict[str, Any] = (await cluster.get("agentsessions", SESSION))["status"]
        if status["runs"] >= runs:
            return status
        await asyncio.sleep(0.01)


async def _executions(temporal: Client, workflow_id: str) -> list[int]:
    """Return the bytes of history of each execution that the session was continued in, the open one included."""
    listed = [found.run_id async for found in temporal.list_workflows(f"WorkflowId = '{workflow_id}'")]
    described = [await temporal.get_workflow_handle(workflow_id, run_id=run_id).describe() for run_id in listed]
    return [each.raw_description.workflow_execution_info.history_size_bytes for each in described]


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    return {
        "mean": round(statistics.mean(seconds) * 1000, 1),
        "p50": round(statistics.median(seconds) * 1000, 1),
        "max": round(max(seconds) * 1000, 1),
    }

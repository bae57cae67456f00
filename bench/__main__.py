"""Runs the bench: `python -m bench [--runs 500] [--only PART …] [--output FILE]`. Ratios within one run are the result."""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from dalang_api import contract, process
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client

from bench import bare, goals
from bench.cluster import Cluster, connect
from bench.processes import ControlPlane, bare_worker, control_plane
from bench.session import MODEL as SESSION_MODEL
from bench.session import session
from bench.turns import turns

CONCURRENCY = 100
TURNS = (10, 40, 100)
TURN_BYTES = 1024
ASKING_MODEL = "bench-0-turns-1-bytes-64"
DECIDED = 100
PARTS = ("turns", "throughput", "alone", "history", "burst", "memory", "approvals", "session")

_names = (f"r{number}" for number in itertools.count())


def main() -> None:
    """Run the chosen parts, print their figures beside their goals, and write them as JSON; exit 1 where one is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--runs", type=int, default=500, help="runs of each throughput figure (500)")
    parser.add_argument("--burst", type=int, default=2000, help="runs created at once (2000)")
    parser.add_argument("--finished", type=int, default=10_000, help="finished runs of the memory figure (10000)")
    parser.add_argument("--live", type=int, default=1000, help="live runs of the memory figure (1000)")
    parser.add_argument("--waiting", type=int, default=10_000, help="runs that await approval (10000)")
    parser.add_argument("--exchanges", type=int, default=1000, help="runs of the one session (1000)")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="parts to run")
    parser.add_argument("--output", type=Path, default=Path("bench/results.json"))
    arguments = parser.parse_args()
    with control_plane() as plane:
        results = asyncio.run(run_parts(plane, arguments))
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nWritten to {arguments.output}\n")
    if not goals.show(list(goals.judge(results))):
        sys.exit(1)


async def run_parts(plane: ControlPlane, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the chosen parts on one control plane."""
    results: dict[str, Any] = {"cpus": os.cpu_count(), "runs": arguments.runs, "concurrency": CONCURRENCY}
    temporal = await Client.connect(os.environ["TEMPORAL_ADDRESS"], data_converter=process.data_converter())
    models = ["bench-0", "bench-500", "bench-3600000"]
    models += [ASKING_MODEL, SESSION_MODEL]
    models += [f"bench-0-turns-{turns}-bytes-{TURN_BYTES}" for turns in TURNS]
    async with connect() as cluster:
        await cluster.prepare(os.environ["DALANG_MODEL_URL"], models)
        watching = asyncio.create_task(cluster.watch_runs())
        await run_agent(cluster, "bench-0")
        parts: dict[str, Callable[[], Awaitable[Any]]] = {
            "turns": lambda: turns(temporal, arguments.runs),
            "throughput": lambda: throughput(plane, cluster, temporal, arguments.runs),
            "alone": lambda: alone(cluster, temporal),
            "history": lambda: history(cluster, temporal),
            "burst": lambda: burst(plane, cluster, temporal, arguments.burst),
            "memory": lambda: memory(plane, cluster, arguments.finished, arguments.live),
            "approvals": lambda: approvals(plane, cluster, temporal, arguments.waiting),
            "session": lambda: session(plane, cluster, temporal, arguments.exchanges),
        }
        for name in arguments.only:
            print(f"\n── {name}")
            results[name] = await parts[name]()
            print(json.dumps(results[name], indent=2))
        watching.cancel()
    return results


# ── (a) bare and (b) as AgentRuns ──


async def throughput(plane: ControlPlane, cluster: Cluster, temporal: Client, runs: int) -> dict[str, Any]:
    """Runs per second at a concurrency of 100, bare and as AgentRuns, at 0 and 500 ms of model latency."""
    return {
        f"{latency}ms": await throughput_at(plane, cluster, temporal, runs, f"bench-{latency}") for latency in (0, 500)
    }


async def throughput_at(
    plane: ControlPlane, cluster: Cluster, temporal: Client, runs: int, model: str
) -> dict[str, Any]:
    """The figures of one model."""
    with bare_worker() as worker:
        await run_bare(temporal, model)
        cost, worker_cpu = plane.cost(), sum(worker.cpu_times()[:2])
        bare_figures = await timed(runs, lambda: run_bare(temporal, model))
        spent = plane.cost().since(cost)
        spent["worker"] = sum(worker.cpu_times()[:2]) - worker_cpu
        bare_figures["cpuMsPerRun"] = per_run(spent, runs)
    cost, writes = plane.cost(), await cluster.api_writes()
    figures = await timed(runs, lambda: run_agent(cluster, model))
    figures["cpuMsPerRun"] = per_run(plane.cost().since(cost), runs)
    figures["peakMemoryMiB"] = rounded(plane.memory_mib(peak=True))
    after = await cluster.api_writes()
    figures["apiWritesPerRun"] = {
        name: round((after[name] - writes.get(name, 0)) / runs, 3)
        for name in sorted(after)
        if after[name] - writes.get(name, 0) >= runs / 100
    }
    figures["history"] = await history_of(cluster, temporal, model)
    cpu = figures["cpuMsPerRun"]
    return {
        "bare": bare_figures,
        "agentRun": figures,
        "ratio": round(figures["runsPerSecond"] / bare_figures["runsPerSecond"], 3),
        "operatorToWorkerCpu": round(cpu["operator"] / cpu["worker"], 3),
    }


async def alone(cluster: Cluster, temporal: Client, runs: int = 40) -> dict[str, Any]:
    """Create to finished of one run at a time, at 0 ms."""
    with bare_worker():
        await run_bare(temporal, "bench-0")
        bare_seconds = [await run_bare(temporal, "bench-0") for _ in range(runs)]
    agent_seconds = [await run_agent(cluster, "bench-0") for _ in range(runs)]
    figures = {"bare": quantiles(bare_seconds), "agentRun": quantiles(agent_seconds)}
    return {**figures, "ratioP50": round(figures["agentRun"]["p50Ms"] / figures["bare"]["p50Ms"], 2)}


async def timed(runs: int, run_one: Callable[[], Awaitable[float]]) -> dict[str, Any]:
    """Run so many, a hundred at a time."""
    gate = asyncio.Semaphore(CONCURRENCY)

    async def gated() -> float:
        async with gate:
            return await run_one()

    started = time.perf_counter()
    seconds = await asyncio.gather(*(gated() for _ in range(runs)))
    return {"runsPerSecond": round(runs / (time.perf_counter() - started), 1), **quantiles(seconds)}


async def run_bare(temporal: Client, model: str) -> float:
    """Run the bare workflow; return seconds from start to result."""
    started = time.perf_counter()
    await temporal.execute_workflow(bare.Bare.run, model, id=f"bare-{next(_names)}", task_queue=bare.QUEUE)
    return time.perf_counter() - started


async def run_agent(cluster: Cluster, agent: str) -> float:
    """Create an AgentRun; return seconds until a watch shows it finished."""
    name = next(_names)
    started = time.perf_counter()
    await cluster.create_run(name, agent)
    seen, status = await cluster.finished(name)
    assert status["phase"] == "Succeeded", status
    return seen - started


# ── history ──


async def history(cluster: Cluster, temporal: Client) -> dict[str, Any]:
    """Bytes of history at 10, 40 and 100 turns of 1 KB, beside what was said and what the goal allows."""
    figures = {}
    for count in TURNS:
        figure = await history_of(cluster, temporal, f"bench-0-turns-{count}-bytes-{TURN_BYTES}")
        # A turn says the call's arguments and the tool's answer; the last one an answer.
        figure["saidBytes"] = (2 * count + 1) * TURN_BYTES
        activities = 2 * count + 2
        figure["allowedBytes"] = int(1.5 * figure["saidBytes"] + 2048 * activities)
        figures[f"{count} turns"] = figure
    return figures


async def history_of(cluster: Cluster, temporal: Client, agent: str) -> dict[str, int]:
    """Events and bytes of one run's history."""
    name = next(_names)
    await cluster.create_run(name, agent)
    _, status = await cluster.finished(name)
    assert status["phase"] == "Succeeded", status
    handle = temporal.get_workflow_handle(status["workflow"]["id"])
    await handle.result()
    info = (await handle.describe()).raw_description.workflow_execution_info
    return {"events": info.history_length, "bytes": info.history_size_bytes}


# ── many at once ──


async def burst(plane: ControlPlane, cluster: Cluster, temporal: Client, runs: int) -> dict[str, Any]:
    """Create so many at once: all must end, none lost, failed, or started twice, and no history holds a cancel."""
    names = [next(_names) for _ in range(runs)]
    gate = asyncio.Semaphore(CONCURRENCY)

    async def create(name: str) -> None:
        async with gate:
            await cluster.create_run(name, "bench-0")

    started = time.perf_counter()
    await asyncio.gather(*(create(name) for name in names))
    created = time.perf_counter() - started
    statuses = [(await cluster.finished(name))[1] for name in names]
    ended = time.perf_counter() - started
    workflows = {status["workflow"]["id"] for status in statuses}
    cancels = restarts = 0
    for workflow_id in workflows:
        events = [event.event_type async for event in temporal.get_workflow_handle(workflow_id).fetch_history_events()]
        cancels += EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED in events
        restarts += events.count(EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED) != 2
    return {
        "runs": runs,
        "createdSeconds": round(created, 1),
        "endedSeconds": round(ended, 1),
        "succeeded": sum(status["phase"] == "Succeeded" for status in statuses),
        "workflows": len(workflows),
        "historiesWithACancel": cancels,
        "historiesWithOtherThanTwoActivities": restarts,
        "peakMemoryMiB": rounded(plane.memory_mib(peak=True)),
    }


async def memory(plane: ControlPlane, cluster: Cluster, finished: int, live: int) -> dict[str, Any]:
    """The operator's memory with so many finished and live runs, before and after it is started again."""
    gate = asyncio.Semaphore(CONCURRENCY)
    status = {
        "phase": "Succeeded",
        "finishedAt": "2026-01-01T00:00:00Z",
        "output": "ok" * 200,
        "turns": 1,
        "messages": [{"role": "User", "content": "hi" * 100}, {"role": "Assistant", "content": "ok" * 100}],
    }

    async def make_finished() -> None:
        async with gate:
            name = f"finished-{next(_names)}"
            spec = {"agentRef": {"name": "nobody"}, "input": "hi"}
            await cluster.create("agentruns", {"kind": "AgentRun", "metadata": {"name": name}, "spec": spec})
            await cluster.set_status(name, status)

    async def make_live() -> str:
        async with gate:
            name = next(_names)
            await cluster.create_run(name, "bench-3600000")
            return name

    await asyncio.gather(*(make_finished() for _ in range(finished)))
    await asyncio.gather(*(make_live() for _ in range(live)))
    before = plane.memory_mib(peak=False)
    for operator in plane.processes()["operator"]:
        operator.kill()
    settled = await settle(plane)
    return {
        "finished": finished,
        "live": live,
        "operatorMiB": round(before["operator"], 1),
        "operatorRestartedMiB": round(settled, 1),
        "operatorRestartedPeakMiB": round(plane.memory_mib(peak=True)["operator"], 1),
        "workerMiB": round(before["worker"], 1),
    }


async def approvals(plane: ControlPlane, cluster: Cluster, temporal: Client, waiting: int) -> dict[str, Any]:
    """So many runs await approval, without a worker; then a hundred are approved at once, and a worker is woken for them."""
    agent = await cluster.prepare_approvals(ASKING_MODEL)
    names = [next(_names) for _ in range(waiting)]
    gate = asyncio.Semaphore(CONCURRENCY)

    async def create(name: str) -> None:
        async with gate:
            await cluster.create_run(name, agent)

    started = time.perf_counter()
    await asyncio.gather(*(create(name) for name in names))
    await cluster.awaiting(names)
    all_wait = time.perf_counter() - started
    await cluster.at_zero("asking")
    operator_mib = plane.memory_mib(peak=False)["operator"]
    cost = plane.cost()
    await asyncio.sleep(20)
    idle = plane.cost().since(cost)

    async def decide(name: str) -> tuple[float, float, str]:
        """Return when it was decided, as Unix time, the seconds until the run had ended, and its workflow."""
        decided_at, decided = time.time(), time.perf_counter()
        await cluster.approve(name)
        seen, status = await cluster.finished(name)
        assert status["phase"] == "Succeeded", status
        return decided_at, seen - decided, status["workflow"]["id"]

    decisions = await asyncio.gather(*(decide(name) for name in names[:DECIDED]))
    to_call = [await call_ended(temporal, workflow_id) - decided_at for decided_at, _, workflow_id in decisions]
    return {
        "waiting": waiting,
        "allWaitAfterSeconds": round(all_wait, 1),
        "operatorMiB": round(operator_mib, 1),
        "operatorPeakMiB": round(plane.memory_mib(peak=True)["operator"], 1),
        "operatorCpuMsPerSecondIdle": round(idle["operator"] * 1000 / 20, 1),
        "decided": DECIDED,
        "decisionToCall": quantiles(to_call),
        "decisionToFinished": quantiles([seconds for _, seconds, _ in decisions]),
    }


async def call_ended(temporal: Client, workflow_id: str) -> float:
    """Return when a run's only tool call had been made, as Unix time."""
    events = [event async for event in temporal.get_workflow_handle(workflow_id).fetch_history_events()]
    scheduled = {
        event.event_id: event.activity_task_scheduled_event_attributes.activity_type.name
        for event in events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    }
    [ended] = (
        event.event_time.ToNanoseconds() / 1e9
        for event in events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED
        and scheduled[event.activity_task_completed_event_attributes.scheduled_event_id] == contract.TOOL_ACTIVITY
    )
    return ended


async def settle(plane: ControlPlane) -> float:
    """Wait until the new operator's memory has not grown for five seconds; return it in MiB."""
    last, since = 0.0, time.perf_counter()
    while time.perf_counter() - since < 5 or last == 0:
        await asyncio.sleep(0.5)
        now = plane.memory_mib(peak=False)["operator"]
        if now > last + 1:
            last, since = now, time.perf_counter()
    return last


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median, 95th and 99th percentile, in milliseconds."""
    return {
        "p50Ms": round(statistics.median(seconds) * 1000, 1),
        "p95Ms": round(statistics.quantiles(seconds, n=20)[18] * 1000, 1),
        "p99Ms": round(statistics.quantiles(seconds, n=100)[98] * 1000, 1),
    }


def per_run(spent: dict[str, float], runs: int) -> dict[str, float]:
    """CPU milliseconds per run."""
    return {name: round(seconds * 1000 / runs, 2) for name, seconds in spent.items()}


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """Figures with one digit after the point."""
    return {name: round(figure, 1) for name, figure in figures.items()}


if __name__ == "__main__":
    main()

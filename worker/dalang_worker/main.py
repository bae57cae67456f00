"""`dalang worker`: the process of an AgentPool's pod. From settings to a Temporal worker that drains when it is told to."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.metadata import version

from dalang_api import contract, process
from dalang_api.contract import Catalogue
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import TemporalError
from temporalio.worker import PollerBehaviorAutoscaling, UnsandboxedWorkflowRunner, Worker

from dalang_worker.activities.answer import check_answer
from dalang_worker.activities.mcp import McpActivity
from dalang_worker.activities.model import ModelActivity
from dalang_worker.activities.model_calls import ModelCalls
from dalang_worker.activities.summary import SummaryActivity
from dalang_worker.activities.tool import ToolActivity
from dalang_worker.mcp.servers import McpServers
from dalang_worker.secrets import visible_keys
from dalang_worker.settings import WorkerSettings
from dalang_worker.tools.loader import load_tools
from dalang_worker.tools.runner import ToolRunner
from dalang_worker.workflows.run import AgentRunWorkflow
from dalang_worker.workflows.session import AgentSessionWorkflow

log = logging.getLogger(__name__)

HEARTBEAT_THROTTLE = timedelta(seconds=2)
"""Beats are passed on every 2 s, not after 80 % of the timeout, since a cancel comes back with them."""
STICKY_TIMEOUT = timedelta(seconds=5)
"""How long a workflow's task waits for the worker that has it cached before any other gets it. The default of 10 s is too
long for a cancel while that worker drains: the call in flight has to stop within 10 s."""
MAX_CACHED_WORKFLOWS = 2000
"""A waiting run takes about 60 KB in the cache; out of it, its next task replays its history."""


def main(argv: list[str]) -> int:
    """Run until SIGTERM or SIGINT; return the exit code."""
    settings = process.read_settings(WorkerSettings, argv)
    process.configure_logging(settings)
    exit_code = asyncio.run(run(settings))
    # temporalio may abort at interpreter exit after everything is done (sdk-python #300).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


async def run(settings: WorkerSettings) -> int:
    """Serve the pool's task queue until a signal asks to stop, then drain; return the exit code."""
    stopping = _stop_on_signal()
    missing = "Temporal has not been reached yet"
    try:
        http = await process.serve_http(settings.http_address, lambda: missing)
    except OSError as error:
        log.error("cannot serve on %s: %s; set --http-address", settings.http_address, error)
        return 1
    catalogue = load_tools(settings.tool_modules, settings.tools_path)
    catalogue = catalogue.model_copy(update={"secret_keys": visible_keys(settings.secrets_path)})
    client = await _connect(settings, stopping)
    if client is not None:
        async with serve(settings, client):
            missing = ""
            publishing = asyncio.create_task(_publish(settings, client, catalogue))
            log.info("serving %s with %d tools", settings.queue, len(catalogue.tools))
            await stopping.wait()
            missing = "stopping"
            publishing.cancel()
            log.info("stopping: waiting up to %g s for the activities under way", settings.drain_seconds)
    await http.cleanup()
    return 0


def _stop_on_signal() -> asyncio.Event:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


async def _connect(settings: WorkerSettings, stopping: asyncio.Event) -> Client | None:
    """Return a client as soon as Temporal can be reached, or None where the process is told to stop before that."""
    delay = 0.25
    while not stopping.is_set():
        try:
            return await process.connect(settings, identity=settings.pod)
        except RuntimeError as error:
            log.warning("Temporal at %s cannot be reached, trying again: %s", settings.temporal_address, error)
        delay = min(delay * 2, 10.0)
        try:
            await asyncio.wait_for(stopping.wait(), delay)
        except TimeoutError:
            continue
    return None


@asynccontextmanager
async def serve(settings: WorkerSettings, client: Client) -> AsyncIterator[None]:
    """Run the pool's Temporal worker for as long as the block runs; then drain it."""
    runner = ToolRunner(settings.tool_threads)
    servers = McpServers(settings.mcp_servers, settings.secrets_path, settings.tools_path)
    calls = ModelCalls(client, settings)
    model = ModelActivity(calls, settings, runner, servers)
    worker = Worker(
        client,
        task_queue=settings.queue,
        workflows=[AgentRunWorkflow, AgentSessionWorkflow],
        # The sandbox takes a third of a run's CPU (9 of 28 ms), for one file: the conductor is passed through. What it would
        # find, ruff bans in that file, and tests/workflow/test_replay.py runs it in the sandbox.
        workflow_runner=UnsandboxedWorkflowRunner(),
        activities=[
            model.model,
            SummaryActivity(calls).summarise,
            ToolActivity(runner).tool,
            McpActivity(servers).mcp,
            check_answer,
        ],
        max_concurrent_activities=settings.slots,
        max_cached_workflows=MAX_CACHED_WORKFLOWS,
        # Of the default of five polls one is for workflows that nobody has cached. A pool that is woken for a hundred decisions
        # has none cached, so the last of them waited for most runs to end before it began.
        workflow_task_poller_behavior=PollerBehaviorAutoscaling(),
        max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
        default_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
        sticky_queue_schedule_to_start_timeout=STICKY_TIMEOUT,
        graceful_shutdown_timeout=timedelta(seconds=settings.drain_seconds),
        # Without it the SDK hashes every imported module at start.
        build_id=version("dalang"),
    )
    try:
        async with worker:
            yield
    finally:
        runner.close()
        await servers.close()
        await model.close()
        await calls.close()


async def _publish(settings: WorkerSettings, client: Client, catalogue: Catalogue) -> None:
    """Tell the pool's status what this build can do. Tried until Temporal takes it."""
    workflow_id = contract.catalogue_workflow_id(
        settings.installation, settings.namespace, settings.pool, settings.build
    )
    while True:
        try:
            await client.start_workflow(
                contract.PUBLISH_TOOLS_WORKFLOW,
                catalogue,
                id=workflow_id,
                task_queue=contract.reporter_queue(settings.installation),
                id_conflict_policy=WorkflowIDConflictPolicy.TERMINATE_EXISTING,
            )
        except (TemporalError, TimeoutError) as error:
            log.warning("the catalogue could not be published, trying again: %s", error)
            await asyncio.sleep(5)
        else:
            return

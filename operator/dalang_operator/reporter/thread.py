"""The reporter's thread: an event loop of its own with a Temporal worker and a client of the API server.

A thread of its own because kopf cancels every task of its loop when it ends, and because a burst of reports must not
delay the Lease. Any replica may serve: the guards of a report make order and number of reporters irrelevant.
"""

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib.metadata import version

from dalang_api.contract import reporter_queue
from dalang_api.process import connect
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from dalang_operator.kube.client import KubeClient
from dalang_operator.reporter.approvals import ApprovalWriter
from dalang_operator.reporter.catalogue import CataloguePublisher, PublishTools
from dalang_operator.reporter.local import LocalRuns
from dalang_operator.reporter.report import RunReporter
from dalang_operator.reporter.session import SessionReporter
from dalang_operator.reporter.triggers import RunCreator, TriggerRun
from dalang_operator.runtime.clock import utc_now
from dalang_operator.runtime.health import Health
from dalang_operator.settings import OperatorSettings
from dalang_operator.temporal.schedules import Schedules
from dalang_operator.temporal.workflows import Workflows

logger = logging.getLogger(__name__)

RESTART_SECONDS = 2.0
CONCURRENT_REPORTS = 100
API_TIMEOUT_SECONDS = 4.0
"""A report's attempt ends after 10 s, and may have to read and write: the server's silence should be our error by then."""
GRACE = timedelta(seconds=5)
"""How long reports in flight may take when the operator stops; what is cut off is tried again elsewhere."""


class ReporterThread:
    """Runs the reporter until told to stop."""

    def __init__(
        self,
        settings: OperatorSettings,
        installation: str,
        local: LocalRuns,
        health: Health,
    ) -> None:
        self._settings = settings
        self._installation = installation
        self._local = local
        self._health = health
        self._thread = threading.Thread(target=self._main, name="reporter", daemon=True)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._health.missing("reporter", "is starting")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Let reports in flight end, and wait for it."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout)

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run())

    async def _run(self) -> None:
        kube = await KubeClient.open(self._settings.kubeconfig, API_TIMEOUT_SECONDS)
        while not self._stop.is_set():
            try:
                await self._serve(kube)
            except Exception as error:  # noqa: BLE001 whatever it is, reports wait in their queue
                self._health.missing("reporter", f"waits for Temporal: {error}")
                logger.warning("reporter: %s (trying again in %.0f s)", error, RESTART_SECONDS)
                await asyncio.sleep(RESTART_SECONDS)
        await kube.close()

    async def _serve(self, kube: KubeClient) -> None:
        client = await connect(self._settings, identity=f"reporter@{self._installation}")
        namespaces = frozenset(self._settings.watch_namespace)
        approvals = ApprovalWriter(kube, self._local, utc_now)
        sessions = SessionReporter(self._installation, namespaces, kube, self._local, utc_now)
        runs = RunReporter(self._installation, namespaces, kube, self._local, approvals, sessions, utc_now)
        catalogues = CataloguePublisher(self._installation, namespaces, kube, utc_now)
        creator = RunCreator(self._installation, namespaces, kube, Schedules(client, Workflows(client)), utc_now)
        worker = Worker(
            client,
            task_queue=reporter_queue(self._installation),
            activities=[runs.report, sessions.report, catalogues.publish, creator.create, creator.cancel],
            workflows=[PublishTools, TriggerRun],
            # A few activity calls need no sandbox, which costs CPU for each workflow.
            workflow_runner=UnsandboxedWorkflowRunner(),
            workflow_task_executor=ThreadPoolExecutor(2),
            build_id=version("dalang"),  # else the SDK hashes the code of every module, for more than a second
            max_concurrent_workflow_tasks=2,
            max_concurrent_activities=CONCURRENT_REPORTS,
            max_cached_workflows=10,
            graceful_shutdown_timeout=GRACE,
        )
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(worker.run())
            group.create_task(self._watch(worker, serving))

    async def _watch(self, worker: Worker, serving: asyncio.Task[None]) -> None:
        """Say ready once it serves, and hand the stop on."""
        while not (worker.is_running or serving.done()):  # noqa: ASYNC110 the SDK offers no event
            await asyncio.sleep(0.05)
        if worker.is_running:
            self._health.ready("reporter")
            logger.info("reporter serves %s", worker.task_queue)
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if self._stop.is_set():
            await worker.shutdown()

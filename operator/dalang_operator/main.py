"""`dalang operator`: puts the parts together, runs them until told to stop, and ends the process."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

from dalang_api.process import configure_logging, connect, serve_http
from kubernetes.aio.config import ConfigException
from pydantic import ValidationError
from pydantic_settings import CliApp
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter

from dalang_operator import kopf_app
from dalang_operator.kinds.agent.reconcile import AgentReconciler
from dalang_operator.kinds.agentmodel.reconcile import ModelReconciler
from dalang_operator.kinds.agentpool.desired import WorkerSettings, deployment_name
from dalang_operator.kinds.agentpool.plan import Settings as PoolSettings
from dalang_operator.kinds.agentpool.plan import replicas_of
from dalang_operator.kinds.agentpool.reconcile import PoolFacts, PoolReconciler
from dalang_operator.kinds.agentrun.plan import Settings as RunSettings
from dalang_operator.kinds.agentrun.reconcile import RunFacts, RunReconciler
from dalang_operator.kinds.intake import Intake
from dalang_operator.kube.client import KubeClient
from dalang_operator.kube.errors import ApiError
from dalang_operator.kube.resources import NAMESPACES, ObjectKey
from dalang_operator.reporter.thread import ReporterThread
from dalang_operator.runtime.cache import Cache
from dalang_operator.runtime.clock import utc_now
from dalang_operator.runtime.controller import Controller
from dalang_operator.runtime.health import Health
from dalang_operator.runtime.lease import Lease, LeaseLost, process_identity
from dalang_operator.runtime.metrics import SWEEPS
from dalang_operator.runtime.queue import Queue
from dalang_operator.runtime.resync import Resync
from dalang_operator.settings import OperatorSettings
from dalang_operator.temporal.errors import TemporalError
from dalang_operator.temporal.sweep import Sweep
from dalang_operator.temporal.workflows import Workflows

logger = logging.getLogger("dalang_operator")

PROBE_SECONDS = 3.0
RETRY_SECONDS = 1.0
STOP_SECONDS = 8.0
"""How long a stop may take: reports in flight end, the Lease is released."""
WORKERS = {"AgentRun": 32, "AgentPool": 4, "Agent": 4, "AgentModel": 2}
"""Reconciles at once, per kind: enough to keep API server and Temporal busy, few enough not to flood them."""
SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def main(argv: list[str]) -> int:
    """Run the operator; returns the exit code, or ends the process itself."""
    try:
        settings = CliApp.run(OperatorSettings, cli_args=argv, cli_exit_on_error=True)
    except ValidationError as error:
        for problem in error.errors():
            flag = "--" + str(problem["loc"][0]).replace("_", "-")
            sys.stderr.write(f"dalang operator: {flag}: {problem['msg']}\n")
        return 2
    configure_logging(settings)
    # The SDK's core writes a line for every retry of every poll, past our log format; the probe tells of an outage.
    core = LoggingConfig(TelemetryFilter(core_level="ERROR", other_level="ERROR"))
    Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=core)))
    asyncio.run(_run_to_the_end(settings))
    return 0  # not reached


async def _run_to_the_end(settings: OperatorSettings) -> None:
    """Run, and end the process from within.

    The Temporal SDK may abort in the interpreter's own shutdown (sdk-python #300), and kopf takes seconds to cancel its
    tasks. Nothing is left to do there.
    """
    code = await run(settings)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


async def run(settings: OperatorSettings) -> int:
    """Run the operator until a signal, or until a part of it ends; returns the exit code."""
    logger.info("dalang operator %s: %s", version("dalang"), ", ".join(settings.components))
    stop = asyncio.Event()
    _stop_on_signals(stop)
    health = Health()
    health.missing("api server", "is not reached yet")
    server = await serve_http(settings.http_address, health.report)
    try:
        kube = await KubeClient.open(settings.kubeconfig)
    except ConfigException as error:
        logger.error("no access to a cluster: %s", error)
        return 1
    operator = asyncio.ensure_future(_run_parts(settings, kube, health, stop))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({operator, stopping}, return_when=asyncio.FIRST_COMPLETED)
    try:
        code = await asyncio.wait_for(operator, STOP_SECONDS)
    except LeaseLost as error:
        logger.error("%s; this process ends", error)
        return 1  # at once: another controller acts
    except TimeoutError:
        code = 0
    await server.cleanup()
    return code


async def _run_parts(settings: OperatorSettings, kube: KubeClient, health: Health, stop: asyncio.Event) -> int:
    installation = settings.installation or await _installation(kube)
    logger.info("installation %s", installation)
    client = await connect(settings, identity=f"controller@{installation}", lazy=True)
    workflows = Workflows(client)
    cache = Cache()
    has_controller = "controller" in settings.components
    reporter = None
    if "reporter" in settings.components:
        reporter = ReporterThread(settings, installation, cache.runs.get if has_controller else _no_cache, health)
        reporter.start()
    parts = [asyncio.ensure_future(_probe(kube, workflows, health)), asyncio.ensure_future(stop.wait())]
    lease = None
    if has_controller:
        lease = Lease(kube, *_lease_name(settings, installation), process_identity())
        parts.append(
            asyncio.ensure_future(_run_controller(settings, installation, kube, workflows, cache, lease, health, stop))
        )
    done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
    for part in done:
        part.result()  # raises what ended it
    if reporter:
        await asyncio.to_thread(reporter.stop, STOP_SECONDS / 2)
    if lease:
        await lease.release()
    if stop.is_set():
        logger.info("stopped")
        return 0
    logger.error("the watches ended by themselves; this process ends, to be started again")
    return 1


async def _run_controller(
    settings: OperatorSettings,
    installation: str,
    kube: KubeClient,
    workflows: Workflows,
    cache: Cache,
    lease: Lease,
    health: Health,
    stop: asyncio.Event,
) -> None:
    run_facts, pool_facts = RunFacts(), PoolFacts()
    queues = {kind: Queue(kind) for kind in WORKERS}
    intake = Intake(cache, queues, run_facts)

    def wake_pool(key: ObjectKey) -> None:
        """Enqueue a pool that has no worker; one that has any need not look at every start."""
        if not replicas_of(cache.deployments.get(ObjectKey(key.namespace, deployment_name(key.name)))):
            queues["AgentPool"].add(key)

    reconciles: dict[str, Callable[[ObjectKey], Awaitable[float | None]]] = {
        "AgentRun": RunReconciler(
            kube, workflows, cache, run_facts, RunSettings(installation, settings.run_ttl), wake_pool, utc_now
        ).reconcile,
        "AgentPool": PoolReconciler(
            kube, workflows, cache, pool_facts, _pool_settings(settings, installation), intake.applied, utc_now
        ).reconcile,
        "Agent": AgentReconciler(kube, cache, utc_now).reconcile,
        "AgentModel": ModelReconciler(kube, cache, utc_now).reconcile,
    }
    controllers = [Controller(kind, queues[kind], reconciles[kind], count) for kind, count in WORKERS.items()]
    namespaces = tuple(settings.watch_namespace)
    resync = Resync(kube, cache, intake, queues["AgentRun"], namespaces, settings.run_ttl, utc_now)
    sweep = Sweep(
        installation,
        frozenset(namespaces),
        workflows,
        kube,
        cache,
        run_facts,
        pool_facts,
        queues["AgentRun"].add,
        queues["AgentPool"].add,
        utc_now,
    )
    health.missing("cache", "is not filled yet")
    kopf_ready = asyncio.Event()
    tasks = [
        asyncio.ensure_future(lease.run()),
        asyncio.ensure_future(kopf_app.run(settings, intake, stop, kopf_ready)),
        asyncio.ensure_future(_act(controllers, resync, intake, sweep, lease, health, settings)),
    ]
    watching = asyncio.ensure_future(kopf_ready.wait())
    done, _ = await asyncio.wait([*tasks, watching], return_when=asyncio.FIRST_COMPLETED)
    if watching in done:
        _stop_on_signals(stop)  # kopf has put its own handlers in the place of ours
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _act(
    controllers: list[Controller],
    resync: Resync,
    intake: Intake,
    sweep: Sweep,
    lease: Lease,
    health: Health,
    settings: OperatorSettings,
) -> None:
    """Fill the cache, and only then begin: on a half-filled one every run's agent would be missing."""
    await _until_done(resync.list_all, "first list")
    health.ready("cache")
    async with asyncio.TaskGroup() as group:
        for controller in controllers:
            group.create_task(controller.run(lease.held))
        group.create_task(_resync(resync, intake, settings.resync_interval))
        group.create_task(_sweep(sweep, lease, settings.sweep_interval))


async def _resync(resync: Resync, intake: Intake, interval: timedelta) -> None:
    while True:
        await _until_done(resync.schedule_expiries, "list of finished runs")
        await asyncio.sleep(interval.total_seconds())
        await _until_done(resync.list_all, "resync")
        intake.enqueue_all()


async def _sweep(sweep: Sweep, lease: Lease, interval: timedelta) -> None:
    while True:
        await lease.held()
        try:
            await sweep.sweep()
        except (TemporalError, ApiError) as error:
            SWEEPS.labels("error").inc()
            logger.warning("sweep: %s", error)
        await asyncio.sleep(interval.total_seconds())


async def _until_done(call: Callable[[], Awaitable[None]], what: str) -> None:
    """Try until it works, saying so now and then."""
    attempt = 0
    while True:
        try:
            await call()
        except ApiError as error:
            if attempt % 10 == 0:
                logger.warning("%s: %s (trying again)", what, error)
            attempt += 1
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return


async def _installation(kube: KubeClient) -> str:
    """Return the default name: no two clusters share it on one Temporal (facts/review-temporal.md 1)."""
    uid = ""

    async def read() -> None:
        nonlocal uid
        uid = (await kube.get(NAMESPACES, None, "kube-system"))["metadata"]["uid"]

    await _until_done(read, "uid of kube-system")
    return f"dalang-{uid[:8]}"


async def _probe(kube: KubeClient, workflows: Workflows, health: Health) -> None:
    """Keep /readyz telling whether both servers answer."""
    while True:
        try:
            await kube.request("GET", "/version")
        except ApiError as error:
            health.missing("api server", str(error))
        else:
            health.ready("api server")
        try:
            await workflows.check()
        except TemporalError as error:
            health.missing("temporal", str(error))
        else:
            health.ready("temporal")
        await asyncio.sleep(PROBE_SECONDS)


def _no_cache(_: ObjectKey) -> None:
    return None


def _lease_name(settings: OperatorSettings, installation: str) -> tuple[str, str]:
    own = SERVICE_ACCOUNT_NAMESPACE.read_text().strip() if SERVICE_ACCOUNT_NAMESPACE.exists() else "dalang-system"
    return settings.lease_namespace or own, settings.lease_name or f"dalang-controller-{installation.lower()}"


def _pool_settings(settings: OperatorSettings, installation: str) -> PoolSettings:
    worker = WorkerSettings(
        installation=installation,
        image=settings.worker_image or f"dalang:{version('dalang')}",
        temporal_address=settings.worker_temporal_address or settings.temporal_address,
        temporal_namespace=settings.temporal_namespace,
        temporal_tls=settings.temporal_tls,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )
    return PoolSettings(worker, settings.scale_to_zero_after)


def _stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

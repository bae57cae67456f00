"""`dalang operator`: puts the parts together, runs them until told to stop, and ends the process."""

import asyncio
import gc
import logging
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path

from dalang_api.process import configure_logging, connect, read_settings, serve_http
from kubernetes.aio.config import ConfigException
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter

from dalang_operator.control import Control
from dalang_operator.kinds.agentrun.reconcile import RunFacts
from dalang_operator.kube.client import KubeClient
from dalang_operator.kube.errors import ApiError
from dalang_operator.kube.resources import NAMESPACES
from dalang_operator.reporter.local import ControllersRuns, NoRuns
from dalang_operator.reporter.thread import ReporterThread
from dalang_operator.runtime.cache import Cache
from dalang_operator.runtime.health import Health
from dalang_operator.runtime.lease import Lease, LeaseLost, process_identity
from dalang_operator.runtime.outage import until_done
from dalang_operator.settings import OperatorSettings
from dalang_operator.temporal.errors import TemporalError
from dalang_operator.temporal.schedules import Schedules
from dalang_operator.temporal.workflows import Workflows

logger = logging.getLogger("dalang_operator")

PROBE_SECONDS = 5.0
STOP_SECONDS = 8.0
"""How long a stop may take: reports in flight end, the Lease is released."""
SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def main(argv: list[str]) -> int:
    """Run the operator; returns the exit code, or ends the process itself."""
    settings = read_settings(OperatorSettings, argv)
    configure_logging(settings)
    # The cache is large, lives long and holds no cycles; with the default of 700 the collector walks it all the time.
    gc.set_threshold(20_000)
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
    try:
        server = await serve_http(settings.http_address, health.report)
        kube = await KubeClient.open(settings.kubeconfig)
    except OSError as error:
        logger.error("cannot serve on %s: %s; set --http-address", settings.http_address, error)
        return 1
    except ConfigException as error:
        logger.error("no access to a cluster: %s; set --kubeconfig", error)
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
    cache, run_facts = Cache(), RunFacts()
    parts = [asyncio.ensure_future(_probe(kube, workflows, health)), asyncio.ensure_future(stop.wait())]
    lease = reporter = None
    if "reporter" in settings.components:
        local = ControllersRuns(cache, run_facts) if "controller" in settings.components else NoRuns()
        reporter = ReporterThread(settings, installation, local, health)
        reporter.start()
    if "controller" in settings.components:
        lease = Lease(kube, *_lease_name(settings, installation), process_identity())
        schedules = Schedules(client, workflows)
        control = Control(settings, installation, kube, workflows, schedules, cache, run_facts, lease, health)
        # Kopf puts its own signal handlers in the place of ours, so ours are set again once it runs.
        parts.append(asyncio.ensure_future(control.run(stop, lambda: _stop_on_signals(stop))))
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


async def _installation(kube: KubeClient) -> str:
    """Return the default name: no two clusters share it on one Temporal."""
    uid = ""

    async def read() -> None:
        nonlocal uid
        uid = (await kube.get(NAMESPACES, None, "kube-system"))["metadata"]["uid"]

    await until_done(read, "uid of kube-system")
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


def _lease_name(settings: OperatorSettings, installation: str) -> tuple[str, str]:
    own = SERVICE_ACCOUNT_NAMESPACE.read_text().strip() if SERVICE_ACCOUNT_NAMESPACE.exists() else "dalang-system"
    return settings.lease_namespace or own, settings.lease_name or f"dalang-controller-{installation.lower()}"


def _stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

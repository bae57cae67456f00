"""The controller part of the operator: wires cache, queues, reconciles, resync and sweep, and runs them while the Lease is held."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.metadata import version

from dalang_operator import kopf_app
from dalang_operator.kinds.agent.reconcile import AgentReconciler
from dalang_operator.kinds.agentapproval.plan import Settings as ApprovalSettings
from dalang_operator.kinds.agentapproval.proof import ProofReader
from dalang_operator.kinds.agentapproval.reconcile import ApprovalFacts, ApprovalReconciler
from dalang_operator.kinds.agentmodel.reconcile import ModelReconciler
from dalang_operator.kinds.agentpool.desired import WorkerSettings
from dalang_operator.kinds.agentpool.plan import Settings as PoolSettings
from dalang_operator.kinds.agentpool.plan import replicas_of
from dalang_operator.kinds.agentpool.reconcile import PoolFacts, PoolReconciler
from dalang_operator.kinds.agentrun.plan import Settings as RunSettings
from dalang_operator.kinds.agentrun.reconcile import RunFacts, RunReconciler
from dalang_operator.kinds.agentschedule.reconcile import ScheduleFacts, ScheduleReconciler
from dalang_operator.kinds.agentsession.plan import Settings as SessionSettings
from dalang_operator.kinds.agentsession.reconcile import SessionFacts, SessionReconciler
from dalang_operator.kinds.config_maps import RecentConfigMaps
from dalang_operator.kinds.intake import Intake
from dalang_operator.kube.client import KubeClient
from dalang_operator.kube.errors import ApiError
from dalang_operator.kube.resources import ObjectKey
from dalang_operator.resync import Resync
from dalang_operator.runtime.cache import Cache, deployment_name
from dalang_operator.runtime.clock import utc_now
from dalang_operator.runtime.controller import Controller
from dalang_operator.runtime.health import Health
from dalang_operator.runtime.lease import Lease
from dalang_operator.runtime.metrics import SWEEPS
from dalang_operator.runtime.outage import until_done
from dalang_operator.runtime.queue import Queue
from dalang_operator.settings import OperatorSettings
from dalang_operator.temporal.errors import TemporalError
from dalang_operator.temporal.schedule_sweep import ScheduleSweep
from dalang_operator.temporal.schedules import Schedules
from dalang_operator.temporal.sweep import Sweep
from dalang_operator.temporal.workflows import Workflows

logger = logging.getLogger(__name__)

WORKERS = {
    "AgentRun": 32,
    "AgentSession": 16,
    "AgentApproval": 16,
    "AgentSchedule": 4,
    "AgentPool": 4,
    "Agent": 4,
    "AgentModel": 2,
}
"""Reconciles at once, per kind: enough to keep API server and Temporal busy, few enough not to flood them."""


@dataclass
class Control:
    """The controller: everything that acts for one cluster, in one process at a time."""

    settings: OperatorSettings
    installation: str
    kube: KubeClient
    workflows: Workflows
    schedules: Schedules
    cache: Cache
    run_facts: RunFacts
    lease: Lease
    health: Health
    pool_facts: PoolFacts = field(default_factory=PoolFacts)
    approval_facts: ApprovalFacts = field(default_factory=ApprovalFacts)
    session_facts: SessionFacts = field(default_factory=SessionFacts)
    schedule_facts: ScheduleFacts = field(default_factory=ScheduleFacts)

    def __post_init__(self) -> None:
        self._queues = {kind: Queue(kind) for kind in WORKERS}
        self._intake = Intake(
            self.cache, self._queues, self.run_facts, self.approval_facts, self.session_facts, self.schedule_facts
        )
        namespaces = tuple(self.settings.watch_namespace)
        self._resync = Resync(
            self.kube,
            self.cache,
            self._intake,
            self._queues["AgentRun"],
            namespaces,
            self.settings.run_ttl,
            utc_now,
        )
        self._sweep = Sweep(
            self.installation,
            frozenset(namespaces),
            self.workflows,
            self.kube,
            self.cache,
            self.run_facts,
            self.pool_facts,
            self._queues["AgentRun"].add,
            self._queues["AgentPool"].add,
            self.session_facts,
            self._queues["AgentSession"].add,
            utc_now,
            self.settings.sweep_interval,
        )

        self._schedule_sweep = ScheduleSweep(
            self.installation,
            frozenset(namespaces),
            self.workflows,
            self.schedules,
            self.kube,
            self.cache,
            self.schedule_facts,
            self._queues["AgentSchedule"].add,
            utc_now,
            self.settings.sweep_interval,
        )

    async def run(self, stop: asyncio.Event, watching: Callable[[], None]) -> None:
        """Act until told to stop; `watching` is called once kopf runs.

        Returns earlier only if kopf gives up.

        Raises:
            LeaseLost: Another process acts.
        """
        self.health.missing("cache", "is not filled yet")
        kopf_ready = asyncio.Event()
        parts = [
            asyncio.ensure_future(self.lease.run()),
            asyncio.ensure_future(kopf_app.run(self.settings, self._intake, stop, kopf_ready)),
            asyncio.ensure_future(self._act()),
        ]
        ready = asyncio.ensure_future(kopf_ready.wait())
        done, _ = await asyncio.wait([*parts, ready], return_when=asyncio.FIRST_COMPLETED)
        if ready in done:
            watching()
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        for part in done:
            part.result()  # raises what ended it

    async def _act(self) -> None:
        """Fill the cache, and only then begin: on a half-filled one every run's agent would be missing."""
        await until_done(self._resync.list_all, "first list")
        self.health.ready("cache")
        async with asyncio.TaskGroup() as group:
            for controller in self._controllers():
                group.create_task(controller.run(self.lease.held))
            group.create_task(self._resync_for_ever())
            group.create_task(self._sweep_for_ever())

    def _controllers(self) -> list[Controller]:
        run_settings = RunSettings(self.installation, self.settings.run_ttl)
        config_maps = RecentConfigMaps(self.kube, self.cache)
        runs = RunReconciler(
            self.kube,
            self.workflows,
            self.cache,
            config_maps,
            self.run_facts,
            run_settings,
            self._wake_pool,
            utc_now,
            self.session_facts,
            self._queues["AgentSession"].add,
        )
        sessions = SessionReconciler(
            self.kube,
            self.workflows,
            self.cache,
            config_maps,
            self.session_facts,
            SessionSettings(self.installation),
            self._wake_pool,
            utc_now,
        )
        pools = PoolReconciler(
            self.kube,
            self.workflows,
            self.cache,
            self.pool_facts,
            pool_settings(self.settings, self.installation),
            self._intake.applied,
            utc_now,
        )
        approvals = ApprovalReconciler(
            self.kube,
            self.workflows,
            ProofReader(self.kube),
            self.cache,
            self.approval_facts,
            ApprovalSettings(self.installation, self.settings.approval_proof == "Required"),
            self._wake_pool,
            utc_now,
        )
        schedules = ScheduleReconciler(
            self.kube, self.workflows, self.schedules, self.cache, self.schedule_facts, self.installation, utc_now
        )
        reconciles: dict[str, Callable[[ObjectKey], Awaitable[float | None]]] = {
            "AgentRun": runs.reconcile,
            "AgentSession": sessions.reconcile,
            "AgentApproval": approvals.reconcile,
            "AgentSchedule": schedules.reconcile,
            "AgentPool": pools.reconcile,
            "Agent": AgentReconciler(self.kube, self.cache, config_maps, utc_now).reconcile,
            "AgentModel": ModelReconciler(self.kube, self.cache, utc_now).reconcile,
        }
        return [Controller(kind, self._queues[kind], reconciles[kind], count) for kind, count in WORKERS.items()]

    def _wake_pool(self, key: ObjectKey) -> None:
        """Enqueue a pool that has no worker; one that has any need not look at every start."""
        if not replicas_of(self.cache.deployments.get(ObjectKey(key.namespace, deployment_name(key.name)))):
            self._queues["AgentPool"].add(key)

    async def _resync_for_ever(self) -> None:
        while True:
            await until_done(self._resync.schedule_expiries, "list of finished runs")
            await asyncio.sleep(self.settings.resync_interval.total_seconds())
            await until_done(self._resync.list_all, "resync")
            self._intake.enqueue_all()
            self.run_facts.finished.clear()  # of runs that had left the watch before the reporter was told

    async def _sweep_for_ever(self) -> None:
        while True:
            await self.lease.held()
            try:
                await self._sweep.sweep()
                await self._schedule_sweep.sweep()
            except (TemporalError, ApiError) as error:
                SWEEPS.labels("error").inc()
                logger.warning("sweep: %s", error)
            await asyncio.sleep(self.settings.sweep_interval.total_seconds())


def pool_settings(settings: OperatorSettings, installation: str) -> PoolSettings:
    """Return what the pools' plans need of the operator's settings."""
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

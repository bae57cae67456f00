"""AgentPool: observe one pool, plan, execute."""

import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from dalang_api.contract import RUN_WORKFLOW, pool_queue

from dalang_operator.kinds.actions import WriteStatus
from dalang_operator.kinds.agentpool.desired import Credentials
from dalang_operator.kinds.agentpool.plan import (
    Action,
    ApplyDeployment,
    CreateCopy,
    CreateDeployment,
    CreatePool,
    DeleteCopy,
    Observed,
    Scale,
    Settings,
    failed_status,
    is_ours,
    is_rolled_out,
    plan,
    wants_zero,
)
from dalang_operator.kinds.config_maps import read_config_map
from dalang_operator.kinds.reach import has_live_run
from dalang_operator.kube.apply import owned_by_apply
from dalang_operator.kube.errors import AlreadyExists, Conflict, Forbidden, Invalid, NotFound
from dalang_operator.kube.resources import (
    AGENT_POOLS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    Json,
    ObjectKey,
    PatchBody,
    Resource,
    key_of,
)
from dalang_operator.kube.status import write_status
from dalang_operator.runtime.cache import POOL_LABEL, Cache, deployment_name
from dalang_operator.runtime.references import (
    audience_of,
    embedding_models_of,
    model_secret_of,
    models_of,
    pool_secrets_of,
    summary_model_of,
    tools_sources_of,
)

logger = logging.getLogger(__name__)


class KubePort(Protocol):
    """What the reconcile needs of the API server."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json: ...

    def list_pages(
        self, resource: Resource, namespace: str | None, *, fields: str = "", labels: str = ""
    ) -> AsyncIterator[tuple[list[Json], str]]: ...

    async def create(self, resource: Resource, namespace: str, body: Json) -> Json: ...

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: PatchBody, subresource: str | None = None
    ) -> Json: ...

    async def apply(self, resource: Resource, namespace: str, name: str, body: Json) -> Json: ...

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, resource_version: str | None = None
    ) -> None: ...


class QueuePort(Protocol):
    """What the reconcile needs of Temporal."""

    async def count(self, query: str) -> int: ...


def open_runs_on(queue: str) -> str:
    """Return the visibility query for the open workflows of runs, not of sessions, on a task queue."""
    return f"TaskQueue = '{queue}' AND WorkflowType = '{RUN_WORKFLOW}' AND ExecutionStatus = 'Running'"


@dataclass
class PoolFacts:
    """What is known of pools beside their objects. All of it is safe to lose."""

    idle_since: dict[ObjectKey, datetime] = field(default_factory=dict)
    """Since when no run needs the pool; absent while one does."""
    build_since: dict[ObjectKey, tuple[str, datetime]] = field(default_factory=dict)
    """The build a pool has, and since when this process knows it."""
    has_open_workflow: set[ObjectKey] = field(default_factory=set)
    """Pools whose queue the sweep found filled while they had no worker."""
    cleaned: dict[ObjectKey, int] = field(default_factory=dict)
    """The Deployment's generation at which old copies were last looked for."""


@dataclass(frozen=True)
class PoolReconciler:
    """Brings AgentPools to where they should be."""

    kube: KubePort
    queues: QueuePort
    cache: Cache
    facts: PoolFacts
    settings: Settings
    applied: Callable[[str, Json], None]
    """Takes an object we wrote or read into the cache and wakes whom it concerns."""
    now: Callable[[], datetime]

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Reconcile one pool; returns after how many seconds to look again, or None."""
        observed = await self._observe(key)
        return await self._carry_out(observed)

    async def _observe(self, key: ObjectKey) -> Observed:
        pool = self.cache.pools.get(key)
        now = self.now()
        agents = self.cache.agents.by("pool", key.namespace, key.name)
        observed = Observed(
            key=key,
            settings=self.settings,
            now=now,
            pool=pool,
            has_agents=bool(agents),
            has_live_run=has_live_run(self.cache, key),
        )
        if pool is None:
            self.facts.idle_since.pop(key, None)
            self.facts.cleaned.pop(key, None)
            self.facts.build_since.pop(key, None)
            return observed
        if observed.has_live_run:
            self.facts.idle_since.pop(key, None)
        deployment = await self._deployment(key)
        if deployment is not None and not is_ours(deployment, pool):
            return replace(observed, is_foreign=True)
        observed = replace(
            observed,
            deployment=deployment,
            sources=await self._sources(key, pool),
            copies=await self._copies(key, deployment),
            credentials=self._credentials(pool, agents),
            build_since=self._build_since(key, pool, now),
            idle_since=None if observed.has_live_run else self.facts.idle_since.setdefault(key, now),
        )
        if key in self.facts.has_open_workflow:
            self.facts.has_open_workflow.discard(key)
            return replace(observed, queue_is_busy=True)
        if wants_zero(observed):
            observed = replace(observed, queue_is_busy=await self._is_busy(key))
            return replace(observed, has_live_run=has_live_run(self.cache, key))
        return observed

    async def _deployment(self, key: ObjectKey) -> Json | None:
        """Return the Deployment of the pool's name. A stranger's lacks our label and is not watched, so it is read."""
        cached = self.cache.deployments.get(ObjectKey(key.namespace, deployment_name(key.name)))
        if cached is not None:
            return cached
        try:
            return await self.kube.get(DEPLOYMENTS, key.namespace, deployment_name(key.name))
        except NotFound:
            return None

    def _build_since(self, key: ObjectKey, pool: Json, now: datetime) -> datetime:
        build = pool.get("status", {}).get("build", "")
        known, since = self.facts.build_since.get(key, ("", now))
        if known != build:
            since = now
        self.facts.build_since[key] = (build, since)
        return since

    async def _sources(self, key: ObjectKey, pool: Json) -> tuple[tuple[str, Json | None], ...]:
        names = [ObjectKey(key.namespace, name) for name in tools_sources_of(pool)]
        return tuple([(name.name, await read_config_map(self.kube, self.cache, name)) for name in names])

    async def _copies(self, key: ObjectKey, deployment: Json | None) -> tuple[Json, ...]:
        """Return the copies of tool modules there are, once after each rollout."""
        if deployment is None or not is_rolled_out(deployment):
            return ()
        generation = deployment["metadata"]["generation"]
        if self.facts.cleaned.get(key) == generation:
            return ()
        found: list[Json] = []
        async for page, _ in self.kube.list_pages(CONFIG_MAPS, key.namespace, labels=f"{POOL_LABEL}={key.name}"):
            found += page
        self.facts.cleaned[key] = generation
        pool = self.cache.pools.get(key)
        return tuple(copy for copy in found if pool and is_ours(copy, pool))

    def _credentials(self, pool: Json, agents: list[ObjectKey]) -> Credentials:
        namespace = key_of(pool).namespace
        names = set(embedding_models_of(pool))
        sessions = self.cache.sessions.by("pool", namespace, key_of(pool).name)
        for agent_key in agents:
            agent = self.cache.agents.get(agent_key)
            names.update(models_of(agent) if agent else ())
            sessions += self.cache.sessions.by("agent", namespace, agent_key.name)
        found = [self.cache.sessions.get(session_key) for session_key in sessions]
        names.update(name for session in found if session and (name := summary_model_of(session)))
        models = [model for name in names if (model := self.cache.models.get(ObjectKey(namespace, name)))]
        secrets = [reference["name"] for model in models if (reference := model_secret_of(model))]
        audiences = [audience for model in models if (audience := audience_of(model))]
        return Credentials(frozenset([*secrets, *pool_secrets_of(pool)]), frozenset(audiences))

    async def _is_busy(self, key: ObjectKey) -> bool:
        """Ask Temporal whether a run's workflow is open on the pool's queue, of those that do not await approval.

        Not the queue's backlog: that count is approximate, and one left from a terminated run kept a pool up for ever. Nor
        the workflows of sessions, most of which are idle for months: their runs tell when they need the pool.
        """
        queue = pool_queue(self.settings.worker.installation, key.namespace, key.name)
        opened = await self.queues.count(open_runs_on(queue))
        return opened > self.cache.runs.count("awaiting", key.namespace, key.name)

    async def _carry_out(self, observed: Observed) -> float | None:
        steps = plan(observed)
        for action in steps.actions:
            try:
                await self._execute(observed, action)
            except (Invalid, Forbidden) as error:
                await self._fail(observed, action, str(error))
                raise
        return steps.requeue_after

    async def _fail(self, observed: Observed, action: Action, message: str) -> None:
        if observed.pool is not None and not isinstance(action, WriteStatus):
            pool = self.cache.pools.get(observed.key) or observed.pool
            await self._write(pool, failed_status(pool, message, observed.now))

    async def _execute(self, observed: Observed, action: Action) -> None:
        namespace = observed.key.namespace
        match action:
            case CreatePool(body):
                self.applied("AgentPool", await self.kube.create(AGENT_POOLS, namespace, body))
                logger.info("AgentPool %s created, since Agents need it", observed.key)
            case WriteStatus(status):
                assert observed.pool is not None, "a status is planned for a pool"
                await self._write(observed.pool, status)
            case CreateCopy(body):
                await self._create_copy(namespace, body)
            case DeleteCopy(name, uid):
                await self._delete_copy(namespace, name, uid)
            case CreateDeployment(body):
                await self._create_deployment(observed, body)
            case ApplyDeployment(body):
                await self._apply_deployment(observed, body)
            case Scale(replicas, reason):
                await self._scale(observed, replicas, reason)

    async def _scale(self, observed: Observed, replicas: int, reason: str) -> None:
        assert observed.deployment is not None, "scaling is planned for a Deployment"
        key = observed.key
        body = {"spec": {"replicas": replicas}}
        scale = await self.kube.patch(DEPLOYMENTS, key.namespace, deployment_name(key.name), body, "scale")
        logger.info("AgentPool %s scaled to %d: %s", key, replicas, reason)
        # A Scale has the Deployment's new version, so the next reconcile need not wait for the event to know of it.
        current = self.cache.deployments.get(ObjectKey(key.namespace, deployment_name(key.name)))
        if current:
            metadata = {
                **current["metadata"],
                "resourceVersion": scale["metadata"]["resourceVersion"],
                "generation": current["metadata"]["generation"] + 1,
            }
            self.cache.deployments.put({**current, "metadata": metadata, "spec": {**current["spec"], **scale["spec"]}})

    async def _write(self, pool: Json, status: Json) -> None:
        written = await write_status(self.kube, AGENT_POOLS, pool, status, "controller")
        if written is not None:
            self.applied("AgentPool", written)

    async def _create_copy(self, namespace: str, body: Json) -> None:
        try:
            await self.kube.create(CONFIG_MAPS, namespace, body)
        except AlreadyExists:
            # Whoever may create ConfigMaps could have laid code of his own under a name that can be worked out.
            found = await self.kube.get(CONFIG_MAPS, namespace, body["metadata"]["name"])
            if any((found.get(field) or {}) != body[field] for field in ("data", "binaryData", "immutable")):
                words = (
                    f"ConfigMap {body['metadata']['name']} is not the copy of toolsFrom that it should be; delete it"
                )
                raise Invalid(words) from None
            return
        logger.info("ConfigMap %s/%s created from toolsFrom", namespace, body["metadata"]["name"])

    async def _delete_copy(self, namespace: str, name: str, uid: str) -> None:
        try:
            await self.kube.delete(CONFIG_MAPS, namespace, name, uid=uid)
        except NotFound:
            return
        logger.info("ConfigMap %s/%s deleted: no worker mounts it", namespace, name)

    async def _create_deployment(self, observed: Observed, body: Json) -> None:
        self.applied("Deployment", await self.kube.create(DEPLOYMENTS, observed.key.namespace, body))
        logger.info("AgentPool %s: Deployment %s created", observed.key, body["metadata"]["name"])

    async def _apply_deployment(self, observed: Observed, body: Json) -> None:
        namespace, name = observed.key.namespace, body["metadata"]["name"]
        current = await self.kube.get(DEPLOYMENTS, namespace, name)
        managed_fields = owned_by_apply(current)
        if managed_fields:
            metadata = {
                "uid": body["metadata"]["uid"],
                "resourceVersion": current["metadata"]["resourceVersion"],
                "managedFields": managed_fields,
            }
            await self.kube.patch(DEPLOYMENTS, namespace, name, {"metadata": metadata})
        try:
            applied = await self.kube.apply(DEPLOYMENTS, namespace, name, body)
        except Conflict:
            logger.debug("Deployment %s/%s is another than the one observed", namespace, name)
            raise
        self.applied("Deployment", applied)
        logger.info("AgentPool %s: Deployment %s applied", observed.key, name)

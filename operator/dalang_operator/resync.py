"""Lists everything at the start and every few minutes, and puts it where the watches put their events.

The first pass tells that the cache is full, which kopf does not. Later ones repair what its watches may lose: after a
relist it tells no deletions. Finished runs are listed for their time to live only; nothing
of them is kept but the key and when it is due.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from dalang_operator.kinds.agentrun.plan import time_to_live
from dalang_operator.kinds.intake import Intake
from dalang_operator.kube.client import KubeClient
from dalang_operator.kube.resources import (
    AGENT_APPROVALS,
    AGENT_MODELS,
    AGENT_POOLS,
    AGENT_RUNS,
    AGENT_SCHEDULES,
    AGENT_SESSIONS,
    AGENTS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    Json,
    ObjectKey,
    Resource,
    key_of,
)
from dalang_operator.kube.status import parse_timestamp
from dalang_operator.runtime.cache import POOL_LABEL, TOOLS_LABEL, Cache, version_of
from dalang_operator.runtime.queue import Queue

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watch:
    """What is watched and listed of one kind."""

    resource: Resource
    fields: str = ""
    labels: str = ""


WATCHES = (
    Watch(AGENT_MODELS),
    Watch(AGENT_POOLS),
    Watch(AGENTS),
    Watch(DEPLOYMENTS, labels=POOL_LABEL),
    Watch(CONFIG_MAPS, labels=TOOLS_LABEL),
    Watch(AGENT_APPROVALS, fields="status.state!=Applied,status.state!=Expired,status.state!=Superseded"),
    Watch(AGENT_SESSIONS),
    Watch(AGENT_SCHEDULES),
    Watch(AGENT_RUNS, fields="status.finishedAt="),
)
"""Runs come last, so that the first of them finds its agent and its session in the cache. Finished ones are left out: the hot watch. So are
AgentApprovals that are settled."""


@dataclass(frozen=True)
class Resync:
    """Lists everything."""

    kube: KubeClient
    cache: Cache
    intake: Intake
    run_queue: Queue
    namespaces: tuple[str, ...]
    """Watched namespaces; empty means all."""
    run_ttl: timedelta
    now: Callable[[], datetime]

    async def list_all(self) -> None:
        """Bring the cache to what the API server has.

        Raises:
            ApiError: The server did not answer, or a kind is not installed; the cache has what came before.
        """
        for watch in WATCHES:
            for namespace in self.namespaces or (None,):
                await self._list(watch, namespace)

    async def _list(self, watch: Watch, namespace: str | None) -> None:
        kind = watch.resource.kind
        store = self.cache.store(kind)
        before = {key: obj for key in store if (obj := store.get(key)) and namespace in {None, key.namespace}}
        listed_version = 0
        pages = self.kube.list_pages(watch.resource, namespace, fields=watch.fields, labels=watch.labels)
        async for page, version in pages:
            listed_version = int(version)
            for obj in page:
                before.pop(key_of(obj), None)
                self.intake.applied(kind, obj)
        for obj in before.values():
            if version_of(obj) <= listed_version:
                logger.info("%s %s vanished without an event", kind, key_of(obj))
                self.intake.removed(kind, obj)

    async def schedule_expiries(self) -> None:
        """Queue every finished run with a time to live for when it is due.

        Raises:
            ApiError: The server did not answer.
        """
        for namespace in self.namespaces or (None,):
            async for page, _ in self.kube.list_pages(AGENT_RUNS, namespace, fields="status.finishedAt!="):
                for run in page:
                    self._schedule(run)

    def _schedule(self, run: Json) -> None:
        ttl = time_to_live(run, self.run_ttl)
        if ttl is not None:
            due = parse_timestamp(run["status"]["finishedAt"]) + ttl
            key: ObjectKey = key_of(run)
            self.run_queue.add_after(key, (due - self.now()).total_seconds())

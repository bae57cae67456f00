"""Where every object enters: into the cache, and from there the keys it concerns. Watches, resync and our own reads use it.

What wakes a kind, besides its own objects:

    Agent        its AgentModel, its AgentPool (the catalogue)
    AgentPool    its Agents, their AgentModels (Secrets), its Deployment, the ConfigMaps of `toolsFrom`,
                 a run that starts, the last run that ends
    AgentRun     while it waits: its Agent, the agent's AgentModel and AgentPool
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dalang_operator.kinds.agentrun.reconcile import RunFacts
from dalang_operator.kube.resources import Json, ObjectKey, key_of, uid_of
from dalang_operator.runtime.cache import POOL_LABEL, Cache, is_finished, pool_of, queue_pool
from dalang_operator.runtime.queue import Queue


class Wake(NamedTuple):
    """A key to reconcile."""

    kind: str
    key: ObjectKey


class Intake:
    """Puts objects into the cache and enqueues what they concern."""

    def __init__(self, cache: Cache, queues: dict[str, Queue], facts: RunFacts) -> None:
        self._cache = cache
        self._queues = queues
        self._facts = facts

    def applied(self, kind: str, obj: Json) -> None:
        """An object exists in this state. An older state than the cached one is ignored."""
        if kind == "AgentRun":
            if is_finished(obj):  # the watch leaves these out; a list may race with an end
                self.removed(kind, obj)
                return
            before = self._cache.runs.get(key_of(obj))
            if before is not None and uid_of(before) != uid_of(obj):
                self._mark_gone(before)
        if self._cache.store(kind).put(obj):
            self._enqueue(wakes(self._cache, kind, obj))

    def removed(self, kind: str, obj: Json) -> None:
        """An object left the watch. Of a run that says little: it may be deleted, or just have finished."""
        if kind == "AgentRun":
            self._mark_gone(obj)
        self._cache.store(kind).drop(obj)
        self._enqueue(wakes(self._cache, kind, obj))
        if kind == "AgentRun":
            pool = _pool_key(self._cache, obj)
            if pool and not self._cache.has_live_run(pool):
                self._queues["AgentPool"].add(pool)

    def enqueue_all(self) -> None:
        """Have everything in the cache reconciled."""
        for kind, queue in self._queues.items():
            for key in self._cache.store(kind):
                queue.add(key)

    def _mark_gone(self, run: Json) -> None:
        self._facts.gone.setdefault(key_of(run), set()).add(uid_of(run))

    def _enqueue(self, found: Iterable[Wake]) -> None:
        for kind, key in found:
            self._queues[kind].add(key)


def wakes(cache: Cache, kind: str, obj: Json) -> Iterator[Wake]:
    """Yield what an object concerns, itself included."""
    key = key_of(obj)
    if kind == "Deployment":
        pool = obj["metadata"].get("labels", {}).get(POOL_LABEL)
        if pool:
            yield Wake("AgentPool", ObjectKey(key.namespace, pool))
        return
    if kind == "ConfigMap":
        for pool_key in cache.pools.by("tools", key.namespace, key.name):
            yield Wake("AgentPool", pool_key)
        return
    yield Wake(kind, key)
    if kind == "Agent":
        yield Wake("AgentPool", ObjectKey(key.namespace, pool_of(obj)))
        yield from _waiting(cache, key)
    elif kind in {"AgentModel", "AgentPool"}:
        index = "model" if kind == "AgentModel" else "pool"
        for agent_key in cache.agents.by(index, key.namespace, key.name):
            yield Wake("Agent", agent_key)
            agent = cache.agents.get(agent_key)
            if agent and kind == "AgentModel":
                yield Wake("AgentPool", ObjectKey(key.namespace, pool_of(agent)))
            yield from _waiting(cache, agent_key)


def _waiting(cache: Cache, agent: ObjectKey) -> Iterator[Wake]:
    for run_key in cache.runs.by("waiting", agent.namespace, agent.name):
        yield Wake("AgentRun", run_key)


def _pool_key(cache: Cache, run: Json) -> ObjectKey | None:
    namespace = key_of(run).namespace
    for pool in queue_pool(run):
        return ObjectKey(namespace, pool)
    agent = cache.agents.get(ObjectKey(namespace, run["spec"]["agentRef"]["name"]))
    return ObjectKey(namespace, pool_of(agent)) if agent else None

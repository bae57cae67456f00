"""Where every object enters: into the cache, and from there which keys it wakes. Watches, resync and our own reads use it.

What wakes a kind, besides its own objects:

    Agent        its AgentModel, its AgentPool (the catalogue), that it exists
    AgentModel   –
    AgentPool    its Agents (Secrets, `default` made), their AgentModels, its Deployment, the ConfigMaps of `toolsFrom`,
                 a run that needs a worker, the last run that ended
    AgentRun     while it waits: its Agent, the agent's AgentModel and AgentPool
"""

from collections.abc import Iterable
from typing import NamedTuple

from dalang_operator.kinds.agentrun.reconcile import RunFacts
from dalang_operator.kube.resources import Json, ObjectKey, key_of, uid_of
from dalang_operator.runtime.cache import POOL_LABEL, Cache, is_finished, pool_of
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
        store = self._cache.store(kind)
        key = key_of(obj)
        if kind == "AgentRun":
            if is_finished(obj):  # not selected by the watch; a list may have raced with the end
                self.removed(kind, obj)
                return
            before = store.get(key)
            if before is not None and uid_of(before) != uid_of(obj):
                self._facts.gone.setdefault(key, set()).add(uid_of(before))
        if store.put(obj):
            self._enqueue(wakes(self._cache, kind, key, obj))

    def removed(self, kind: str, obj: Json) -> None:
        """An object left the watch. Of a run that says nothing yet: it may be deleted, or just have finished."""
        key = key_of(obj)
        store = self._cache.store(kind)
        if kind == "AgentRun":
            before = store.get(key)
            if before is not None and uid_of(before) != uid_of(obj) and int(uid_is_newer(before, obj)):
                pass
            self._facts.gone.setdefault(key, set()).add(uid_of(obj))
        store.drop(obj)
        self._enqueue(wakes(self._cache, kind, key, obj))

    def enqueue_all(self) -> None:
        """Have everything in the cache reconciled."""
        for kind, queue in self._queues.items():
            for key in self._cache.store(kind):
                queue.add(key)

    def _enqueue(self, found: Iterable[Wake]) -> None:
        for kind, key in found:
            self._queues[kind].add(key)

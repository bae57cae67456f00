"""Where every object enters: into the cache, and from there the keys it concerns. Watches, resync and our own reads use it.

What wakes a kind, besides its own objects:

    Agent        every Agent it can reach, and of all of them the AgentModels, the AgentPool (but not its workers'
                 coming and going) and the ConfigMap of `instructionsFrom`
    AgentPool    its Agents, also one that leaves, the AgentModels of those and of its retrievers (Secrets, tokens), its Deployment,
                 the ConfigMaps of `toolsFrom`, a run that starts, the last run that ends
    AgentRun     while it waits: every Agent it can reach, their AgentModels, AgentPools (as above) and ConfigMaps
    AgentApproval  the AgentRun that waits for it, whenever it reports or leaves the watch

ConfigMaps are watched only with the label `dalang.dev/tools`; others are read again while they are missing.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dalang_operator.kinds.agentapproval.reconcile import ApprovalFacts
from dalang_operator.kinds.agentrun.reconcile import RunFacts
from dalang_operator.kinds.reach import Reach, find_reach, has_live_run
from dalang_operator.kube.resources import Json, ObjectKey, key_of, uid_of
from dalang_operator.runtime.cache import POOL_LABEL, Cache, is_awaiting, is_finished, pending_approvals, pools_of_run
from dalang_operator.runtime.queue import Queue
from dalang_operator.runtime.references import pool_of


class Wake(NamedTuple):
    """A key to reconcile."""

    kind: str
    key: ObjectKey


class Intake:
    """Puts objects into the cache and enqueues what they concern."""

    def __init__(self, cache: Cache, queues: dict[str, Queue], facts: RunFacts, approvals: ApprovalFacts) -> None:
        self._cache = cache
        self._queues = queues
        self._facts = facts
        self._approvals = approvals

    def applied(self, kind: str, obj: Json) -> None:
        """An object exists in this state. An older state than the cached one is ignored."""
        if kind == "AgentRun" and is_finished(obj):  # the watch leaves these out; a list may race with an end
            self.removed(kind, obj)
            return
        before = self._cache.store(kind).get(key_of(obj))
        if kind == "AgentRun" and before is not None and uid_of(before) != uid_of(obj):
            self._mark_gone(before)
        if self._cache.store(kind).put(obj):
            self._enqueue(wakes(self._cache, kind, obj, before))
            if kind == "AgentRun":
                self._reported(obj)

    def removed(self, kind: str, obj: Json) -> None:
        """An object left the watch. Of a run that says little: it may be deleted, or just have finished."""
        if kind == "AgentRun":
            self._mark_gone(obj)
        if kind == "AgentApproval":
            self._approvals.gone[key_of(obj)] = ObjectKey(key_of(obj).namespace, obj["spec"]["runRef"]["name"])
        self._cache.store(kind).drop(obj)
        self._enqueue(wakes(self._cache, kind, obj))
        if kind == "AgentRun":
            self._approvals.asked_again.pop(uid_of(obj), None)
            self._cache.awake.pop(key_of(obj), None)
            self._let_pools_rest(obj)

    def _reported(self, run: Json) -> None:
        """A run changed. One that awaits approval needs its pools no more, if it was told nothing since it said so."""
        if not self._cache.is_awake(key_of(run)):
            self._cache.awake.pop(key_of(run), None)
            if is_awaiting(run):
                self._let_pools_rest(run)

    def _let_pools_rest(self, run: Json) -> None:
        """Have the pools looked at that a run needs no more, or not for now."""
        for pool in _pool_keys(self._cache, run):
            if not has_live_run(self._cache, pool):
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


def wakes(cache: Cache, kind: str, obj: Json, before: Json | None = None) -> Iterator[Wake]:
    """Yield what an object concerns, itself included.

    Args:
        cache: Has the object by now.
        kind: Its kind.
        obj: As it is.
        before: As the cache had it; None where it is new, and where it is gone.
    """
    key = key_of(obj)
    if kind == "Deployment":
        pool = obj["metadata"].get("labels", {}).get(POOL_LABEL)
        if pool:
            yield Wake("AgentPool", ObjectKey(key.namespace, pool))
        return
    if kind == "ConfigMap":
        for pool_key in cache.pools.by("tools", key.namespace, key.name):
            yield Wake("AgentPool", pool_key)
        yield from _agents_and_runs(cache, cache.agents.by("instructions", key.namespace, key.name))
        return
    yield Wake(kind, key)
    if kind == "Agent":
        for name in dict.fromkeys(pool_of(each) for each in (obj, before) if each):
            yield Wake("AgentPool", ObjectKey(key.namespace, name))
        for caller in cache.agents_that_reach([key]):
            if caller != key:
                yield Wake("Agent", caller)
        yield from _waiting(cache, [key])
    elif kind == "AgentRun":
        asked = [*pending_approvals(obj), *(found.name for found in cache.approvals.by("run", *key))]
        for name in dict.fromkeys(asked):
            yield Wake("AgentApproval", ObjectKey(key.namespace, name))
    elif kind == "AgentPool" and (before is None or _told_by_pool(before) != _told_by_pool(obj)):
        yield from _agents_and_runs(cache, cache.agents.by("pool", key.namespace, key.name))
    elif kind == "AgentModel":
        agents = cache.agents_that_call(key)
        pools = {pool_of(agent) for agent_key in agents if (agent := cache.agents.get(agent_key))}
        pools.update(pool.name for pool in cache.pools.by("model", key.namespace, key.name))
        for pool in sorted(pools):
            yield Wake("AgentPool", ObjectKey(key.namespace, pool))
        yield from _agents_and_runs(cache, agents)


def _told_by_pool(pool: Json) -> tuple[object, ...]:
    """Return what Agents and waiting runs go by; a pool's status is written far more often, as its workers come and go."""
    status = pool.get("status", {})
    return uid_of(pool), pool["metadata"]["generation"], status.get("build"), status.get("catalogue")


def _agents_and_runs(cache: Cache, agents: list[ObjectKey]) -> Iterator[Wake]:
    for agent in cache.agents_that_reach(agents):
        yield Wake("Agent", agent)
    yield from _waiting(cache, agents)


def _waiting(cache: Cache, agents: list[ObjectKey]) -> Iterator[Wake]:
    """Yield the runs that have not started and can reach one of the Agents."""
    for agent in cache.agents_that_reach(agents):
        for run_key in cache.runs.by("waiting", agent.namespace, agent.name):
            yield Wake("AgentRun", run_key)


def _pool_keys(cache: Cache, run: Json) -> list[ObjectKey]:
    """Return the pools a run that left the watch has needed, or would have."""
    namespace = key_of(run).namespace
    pools = pools_of_run(run)
    agent = None if pools else cache.agents.get(ObjectKey(namespace, run["spec"]["agentRef"]["name"]))
    if agent:
        reach = find_reach(agent, cache.known(namespace))
        pools = reach.pools() if isinstance(reach, Reach) else [pool_of(agent)]
    return [ObjectKey(namespace, pool) for pool in pools]

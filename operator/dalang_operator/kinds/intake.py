"""Where every object enters: into the cache, and from there the keys it concerns. Watches, resync and our own reads use it.

What wakes a kind, besides its own objects:

    Agent        every Agent it can reach, and of all of them the AgentModels, the AgentPool (but not its workers'
                 coming and going) and the ConfigMap of `instructionsFrom`
    AgentPool    its Agents, also one that leaves, the AgentModels of those and of its retrievers (Secrets, tokens), its Deployment,
                 the ConfigMaps of `toolsFrom`, a run that starts, the last run that ends
    AgentRun     while it waits: every Agent it can reach, their AgentModels, AgentPools (as above) and ConfigMaps
    AgentSession   every Agent its own can reach, their AgentModels, the summary's, AgentPools (as above) and ConfigMaps; the
                 AgentPool it began in, when that comes or goes; its AgentRuns until they are sent, and when they end, and
                 always while it is not there itself
    AgentSchedule  its AgentRuns when they appear, end or are deleted
    AgentApproval  the AgentRun that waits for it, whenever it reports or leaves the watch

ConfigMaps are watched only with the label `dalang.dev/tools`; others are read again while they are missing.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dalang_operator.kinds.agentapproval.reconcile import ApprovalFacts
from dalang_operator.kinds.agentrun.reconcile import RunFacts
from dalang_operator.kinds.agentschedule.reconcile import ScheduleFacts
from dalang_operator.kinds.agentsession.reconcile import SessionFacts
from dalang_operator.kinds.reach import Reach, find_reach, has_live_run
from dalang_operator.kube.resources import Json, ObjectKey, key_of, uid_of
from dalang_operator.runtime.cache import (
    POOL_LABEL,
    Cache,
    is_awaiting,
    is_closed,
    is_finished,
    is_started,
    pending_approvals,
    pools_of_run,
    queue_pool,
    version_of,
)
from dalang_operator.runtime.queue import Queue
from dalang_operator.runtime.references import pool_of, schedule_of, session_agent_of, session_of, summary_model_of


class Wake(NamedTuple):
    """A key to reconcile."""

    kind: str
    key: ObjectKey


_MARKED = frozenset({"AgentRun", "AgentSession", "AgentSchedule"})
"""Kinds whose objects leave something in Temporal behind."""


class Intake:
    """Puts objects into the cache and enqueues what they concern."""

    def __init__(
        self,
        cache: Cache,
        queues: dict[str, Queue],
        facts: RunFacts,
        approvals: ApprovalFacts,
        sessions: SessionFacts,
        schedules: ScheduleFacts,
    ) -> None:
        self._cache = cache
        self._queues = queues
        self._facts = facts
        self._approvals = approvals
        self._sessions = sessions
        self._schedules = schedules

    def applied(self, kind: str, obj: Json) -> None:
        """An object exists in this state. An older state than the cached one is ignored."""
        if kind == "AgentRun" and is_finished(obj):  # the watch leaves these out; a list may race with an end
            self.removed(kind, obj)
            return
        before = self._cache.store(kind).get(key_of(obj))
        if kind in _MARKED and before is not None and uid_of(before) != uid_of(obj):
            self._mark_gone(kind, before)
        if kind == "AgentApproval" and before is not None and uid_of(before) != uid_of(obj):
            self._mark_approval_gone(before)
        if kind == "AgentRun" and session_of(obj) is not None:
            self._sessions.versions.setdefault(uid_of(obj), version_of(obj))
        if self._cache.store(kind).put(obj):
            self._enqueue(wakes(self._cache, kind, obj, before))
            if kind == "AgentRun":
                self._reported(obj)
                if before is None:
                    self._wake_schedule(obj)

    def removed(self, kind: str, obj: Json) -> None:
        """An object left the watch. Of a run that says little: it may be deleted, or just have finished."""
        if kind in _MARKED:
            self._mark_gone(kind, obj)
        if kind == "AgentApproval":
            self._mark_approval_gone(obj)
        self._cache.store(kind).drop(obj)
        self._enqueue(wakes(self._cache, kind, obj))
        if kind == "AgentRun":
            self._approvals.asked_again.pop(uid_of(obj), None)
            self._cache.awake.pop(key_of(obj), None)
            self._sessions.versions.pop(uid_of(obj), None)
            self._let_pools_rest(obj)
            if session_of(obj) is not None and is_awaiting(obj):  # the next one of its session may begin
                self._enqueue(Wake("AgentPool", pool) for pool in _pool_keys(self._cache, obj))

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

    def _mark_approval_gone(self, approval: Json) -> None:
        key = key_of(approval)
        self._approvals.gone[key] = ObjectKey(key.namespace, approval["spec"]["runRef"]["name"])

    def _mark_gone(self, kind: str, obj: Json) -> None:
        key, uid = key_of(obj), uid_of(obj)
        if kind == "AgentSession":
            self._sessions.gone.setdefault(key, set()).add(uid)
            return
        if kind == "AgentSchedule":
            self._schedules.gone.setdefault(key, set()).add(uid)
            return
        self._facts.gone.setdefault(key, set()).add(uid)
        self._schedules.run_left(obj)
        self._wake_schedule(obj)
        session_name = session_of(obj)
        if session_name is not None:
            session = self._cache.sessions.get(ObjectKey(key.namespace, session_name))
            self._facts.exchanges[uid] = _workflow_id(obj) or _workflow_id(session or {})

    def _wake_schedule(self, run: Json) -> None:
        owner = schedule_of(run)
        if owner is not None:
            self._queues["AgentSchedule"].add(owner[0])

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
        yield from _of_run(cache, obj)
    elif kind == "AgentSession" and (before is None or _told_by_session(before) != _told_by_session(obj)):
        for name in _pools_of_session(cache, obj):
            yield Wake("AgentPool", ObjectKey(key.namespace, name))
    elif kind == "AgentPool":
        yield from _of_pool(cache, obj, before)
    elif kind == "AgentModel":
        yield from _of_model(cache, key)


def _of_run(cache: Cache, run: Json) -> Iterator[Wake]:
    key, session_name = key_of(run), session_of(run)
    asked = [*pending_approvals(run), *(found.name for found in cache.approvals.by("run", *key))]
    for name in dict.fromkeys(asked):
        yield Wake("AgentApproval", ObjectKey(key.namespace, name))
    if session_name is None:
        return
    session_key = ObjectKey(key.namespace, session_name)
    if not is_started(run) or cache.runs.get(key) is None or cache.sessions.get(session_key) is None:
        yield Wake("AgentSession", session_key)


def _of_pool(cache: Cache, pool: Json, before: Json | None) -> Iterator[Wake]:
    key = key_of(pool)
    if before is None or _told_by_pool(before) != _told_by_pool(pool):
        yield from _agents_and_runs(cache, cache.agents.by("pool", key.namespace, key.name))
    if before is None:
        for session_key in cache.sessions.by("pool", key.namespace, key.name):
            yield Wake("AgentSession", session_key)


def _of_model(cache: Cache, key: ObjectKey) -> Iterator[Wake]:
    agents, sessions = cache.agents_that_call(key), cache.sessions.by("model", key.namespace, key.name)
    pools = {pool_of(agent) for agent_key in agents if (agent := cache.agents.get(agent_key))}
    pools.update(pool.name for pool in cache.pools.by("model", key.namespace, key.name))
    for session_key in sessions:
        session = cache.sessions.get(session_key)
        pools.update(_pools_of_session(cache, session) if session else ())
    for pool in sorted(pools):
        yield Wake("AgentPool", ObjectKey(key.namespace, pool))
    for session_key in sessions:
        yield Wake("AgentSession", session_key)
    yield from _agents_and_runs(cache, agents)


def _pools_of_session(cache: Cache, session: Json) -> list[str]:
    """Return the pools that mount the Secret of the summary's model, and have a worker until the session has closed."""
    if summary_model_of(session) is None and not session["spec"].get("closed") and not is_closed(session):
        return []
    agent = cache.agents.get(ObjectKey(key_of(session).namespace, session_agent_of(session)))
    return list(dict.fromkeys([*queue_pool(session), *([pool_of(agent)] if agent else [])]))


def _told_by_session(session: Json) -> tuple[object, ...]:
    """Return what pools go by; a session's status is written with every run."""
    return uid_of(session), session["metadata"]["generation"], queue_pool(session), is_closed(session)


def _told_by_pool(pool: Json) -> tuple[object, ...]:
    """Return what Agents and waiting runs go by; a pool's status is written far more often, as its workers come and go."""
    status = pool.get("status", {})
    return uid_of(pool), pool["metadata"]["generation"], status.get("build"), status.get("catalogue")


def _agents_and_runs(cache: Cache, agents: list[ObjectKey]) -> Iterator[Wake]:
    for agent in cache.agents_that_reach(agents):
        yield Wake("Agent", agent)
    yield from _waiting(cache, agents)


def _waiting(cache: Cache, agents: list[ObjectKey]) -> Iterator[Wake]:
    """Yield the runs that have not started and can reach one of the Agents, and the sessions whose runs do."""
    for agent in cache.agents_that_reach(agents):
        for run_key in cache.runs.by("waiting", agent.namespace, agent.name):
            yield Wake("AgentRun", run_key)
        for session_key in cache.sessions.by("agent", agent.namespace, agent.name):
            yield Wake("AgentSession", session_key)


def _pool_keys(cache: Cache, run: Json) -> list[ObjectKey]:
    """Return the pools a run that left the watch has needed, or would have."""
    namespace = key_of(run).namespace
    pools = pools_of_run(run)
    agent = None if pools else cache.agent_of_run(run)
    if agent:
        reach = find_reach(agent, cache.known(namespace))
        pools = reach.pools() if isinstance(reach, Reach) else [pool_of(agent)]
    return [ObjectKey(namespace, pool) for pool in pools]


def _workflow_id(obj: Json) -> str:
    """Return the id of the workflow that a status names, or nothing."""
    workflow_id: str = obj.get("status", {}).get("workflow", {}).get("id", "")
    return workflow_id

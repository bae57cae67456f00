"""What the watches told last: one store per kind, each with the few indexes the reconciles ask for.

Objects are kept as they came (plain dicts, without managedFields) and are replaced, never changed, so the reporter's
thread may read while the event loop writes. Finished AgentRuns and settled AgentApprovals are not kept: they leave the hot
watch.
`kopf.index` is not used: it took 58 s for 4,000 objects.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from dalang_api import contract
from dalang_api.v1alpha1.conditions import Phase

from dalang_operator.kube.resources import Json, ObjectKey, key_of
from dalang_operator.runtime.metrics import CACHED
from dalang_operator.runtime.references import (
    agents_of,
    embedding_models_of,
    instructions_key_of,
    models_of,
    pool_of,
    retriever_of,
    schedule_of,
    session_agent_of,
    session_of,
    summary_model_of,
    tools_sources_of,
)

TOOLS_LABEL = "dalang.dev/tools"
"""ConfigMaps with this label are watched, so that a change of a tool is noticed at once."""
POOL_LABEL = "dalang.dev/pool"
"""On Deployments and ConfigMap copies of a pool, and on its pods."""

_DROPPED_MAX = 4096
_IndexKey = tuple[str, str, str]

Lookup = Callable[[str], Json | None]


@dataclass(frozen=True)
class Known:
    """The objects of one namespace, by name."""

    agents: Lookup
    models: Lookup
    pools: Lookup


def version_of(obj: Json) -> int:
    """Return the resourceVersion as the number it is, so that an older event never replaces a newer object."""
    return int(obj["metadata"].get("resourceVersion") or 0)


class Store:
    """The objects of one kind, by key, with indexes from a value within a namespace to keys."""

    def __init__(
        self,
        kind: str,
        indexes: dict[str, Callable[[Json], Iterable[str]]] | None = None,
        left_out: frozenset[str] = frozenset(),
    ) -> None:
        """Make an empty store. What is `left_out` of the objects' spec is not kept: large, and nobody's question here."""
        self._objects: dict[ObjectKey, Json] = {}
        self._left_out = left_out
        self._indexes = indexes or {}
        self._keys: dict[_IndexKey, set[ObjectKey]] = {}
        self._dropped: OrderedDict[ObjectKey, int] = OrderedDict()
        self._size = CACHED.labels(kind)

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[ObjectKey]:
        """Iterate over a copy of the keys, so that the store may change meanwhile."""
        return iter(list(self._objects))

    def get(self, key: ObjectKey) -> Json | None:
        """Return an object, or None."""
        return self._objects.get(key)

    def put(self, obj: Json) -> bool:
        """Keep an object; returns whether it is news: not what is there already, nor older."""
        key = key_of(obj)
        before = self._objects.get(key)
        if version_of(obj) <= self._dropped.get(key, -1):
            return False
        if before is not None and version_of(before) >= version_of(obj):
            same_object = before["metadata"]["uid"] == obj["metadata"]["uid"]
            if same_object or version_of(before) > version_of(obj):
                return False
        obj["metadata"].pop("managedFields", None)
        for field in self._left_out:
            obj["spec"].pop(field, None)
        if before is not None:
            self._unindex(key, before)
        self._objects[key] = obj
        for index, values in self._indexes.items():
            for value in values(obj):
                self._keys.setdefault((index, key.namespace, value), set()).add(key)
        self._size.set(len(self._objects))
        return True

    def drop(self, obj: Json) -> None:
        """Forget an object that is gone, unless a newer one of its name is kept already.

        Its version is remembered for a while: the answer to our own write, which says how the object was before, may
        come after the event that it is gone.
        """
        key = key_of(obj)
        self._dropped[key] = version_of(obj)
        self._dropped.move_to_end(key)
        if len(self._dropped) > _DROPPED_MAX:
            self._dropped.popitem(last=False)
        before = self._objects.get(key)
        if before is not None and version_of(before) <= version_of(obj):
            del self._objects[key]
            self._unindex(key, before)
            self._size.set(len(self._objects))

    def by(self, index: str, namespace: str, value: str) -> list[ObjectKey]:
        """Return the keys an index has for a value, sorted."""
        keys = self._keys.get((index, namespace, value))
        return sorted(keys) if keys else []

    def count(self, index: str, namespace: str, value: str) -> int:
        """Return how many keys an index has for a value."""
        return len(self._keys.get((index, namespace, value), ()))

    def has_any(self, index: str, namespace: str, value: str, is_so: Callable[[Json], bool]) -> bool:
        """Return whether something is so of one of the objects an index has for a value."""
        return any(is_so(self._objects[key]) for key in self._keys.get((index, namespace, value), ()))

    def _unindex(self, key: ObjectKey, obj: Json) -> None:
        for index, values in self._indexes.items():
            for value in values(obj):
                keys = self._keys[(index, key.namespace, value)]
                keys.discard(key)
                if not keys:
                    del self._keys[(index, key.namespace, value)]


def deployment_name(pool: str) -> str:
    """Return the name of a pool's Deployment; the prefix keeps it from meeting somebody else's by accident."""
    return f"dalang-{pool}"


def is_started(run: Json) -> bool:
    """Return whether the run's status names a workflow."""
    return bool(run.get("status", {}).get("workflow", {}).get("id"))


def is_finished(run: Json) -> bool:
    """Return whether the run has ended, well or not."""
    return bool(run.get("status", {}).get("finishedAt"))


def report_seq(run: Json) -> int:
    """Return the number of the report a run's status comes from; 0: of none."""
    seq: int = run.get("status", {}).get("workflow", {}).get("reportSeq", 0)
    return seq


def queue_pool(run: Json) -> list[str]:
    """The pool whose queue a started run's workflow is on: the last part of `<installation>.<namespace>.<pool>`."""
    queue: str = run.get("status", {}).get("workflow", {}).get("taskQueue", "")
    return [contract.pool_of_queue(queue)] if queue else []


def pools_of_run(run: Json) -> list[str]:
    """Return the pools a started run needs: that of its workflow, and those of the agents it may yet call."""
    agents = run.get("status", {}).get("agents", ()) if is_started(run) else ()
    return list(dict.fromkeys([*queue_pool(run), *(agent["pool"] for agent in agents if agent.get("pool"))]))


def is_queued(run: Json) -> bool:
    """Return whether a run was sent to its session, and others have to end first."""
    return is_started(run) and run["status"].get("phase") == Phase.PENDING and not is_finished(run)


def is_closed(session: Json) -> bool:
    """Return whether the session's conversation has ended."""
    return bool(session.get("status", {}).get("closedAt"))


def is_awaiting(run: Json) -> bool:
    """Return whether all that a run waits for is a human: it needs no worker until somebody decides, or cancels it."""
    is_asking = run.get("status", {}).get("phase") == Phase.AWAITING_APPROVAL
    return is_asking and not is_finished(run) and not run["spec"].get("cancel")


def pending_approvals(run: Json) -> list[str]:
    """Return the names of the AgentApprovals that a run says it waits for, the first sixteen."""
    return [pending["name"] for pending in run.get("status", {}).get("pendingApprovals", ())]


def _needed_pools(run: Json) -> list[str]:
    return [] if is_awaiting(run) or is_queued(run) else pools_of_run(run)


def _queued_pools(run: Json) -> list[str]:
    return pools_of_run(run) if is_queued(run) else []


def _awaiting_pools(run: Json) -> list[str]:
    """The queue's pool, where the run has a workflow of its own: open ones on the queue are counted against these."""
    return queue_pool(run) if is_awaiting(run) and session_of(run) is None else []


def _waiting_for(run: Json) -> list[str]:
    return [] if is_started(run) or session_of(run) is not None else [run["spec"]["agentRef"]["name"]]


def _session(run: Json) -> list[str]:
    session = session_of(run)
    return [session] if session is not None else []


def _summary_model(session: Json) -> list[str]:
    model = summary_model_of(session)
    return [model] if model is not None else []


def _closing_pools(session: Json) -> list[str]:
    return queue_pool(session) if session["spec"].get("closed") and not is_closed(session) else []


def _schedule(run: Json) -> list[str]:
    schedule = schedule_of(run)
    return [schedule[0].name] if schedule else []


def _instructions_source(agent: Json) -> list[str]:
    source = instructions_key_of(agent)
    return [source.name] if source else []


class Cache:
    """All stores, and the questions that take two of them."""

    def __init__(self) -> None:
        self.agents = Store(
            "Agent",
            {
                "model": models_of,
                "pool": lambda agent: [pool_of(agent)],
                "agent": agents_of,
                "instructions": _instructions_source,
            },
        )
        self.models = Store("AgentModel")
        self.pools = Store("AgentPool", {"tools": tools_sources_of, "model": embedding_models_of})
        self.runs = Store(
            "AgentRun",
            {
                "waiting": _waiting_for,
                "pool": _needed_pools,
                "awaiting": _awaiting_pools,
                "approval": pending_approvals,
                "session": _session,
                "unsent": lambda run: [] if is_started(run) else _session(run),
                "queued": _queued_pools,
                "schedule": _schedule,
            },
        )
        self.sessions = Store(
            "AgentSession",
            {
                "agent": lambda session: [session_agent_of(session)],
                "model": _summary_model,
                "pool": queue_pool,
                "closing": _closing_pools,
            },
        )
        self.idle_sessions: dict[ObjectKey, str] = {}
        """Uids of the sessions whose idle time is over: they need a worker to close. Safe to lose: the reconcile notes it."""
        self.approvals = Store(
            "AgentApproval",
            {"run": lambda approval: [approval["spec"]["runRef"]["name"]]},
            left_out=frozenset({"arguments"}),  # up to 64 KiB, of each of thousands
        )
        self.schedules = Store("AgentSchedule")
        self.awake: dict[ObjectKey, tuple[str, int, datetime]] = {}
        """Runs that await approval and were told something since, with uid, the number of the report they had made by then,
        and when it was: until the next one they need a worker. Safe to lose: the AgentApprovals tell it again."""
        self.deployments = Store("Deployment")
        self.config_maps = Store("ConfigMap")

    def store(self, kind: str) -> Store:
        """Return the store of a kind."""
        return {
            "Agent": self.agents,
            "AgentModel": self.models,
            "AgentPool": self.pools,
            "AgentRun": self.runs,
            "AgentSession": self.sessions,
            "AgentApproval": self.approvals,
            "AgentSchedule": self.schedules,
            "Deployment": self.deployments,
            "ConfigMap": self.config_maps,
        }[kind]

    def has_worker(self, namespace: str, run: Json) -> bool:
        """Return whether a worker serves the queue a started run is on; True for a run that has none yet."""
        for pool in queue_pool(run):
            deployment = self.deployments.get(ObjectKey(namespace, deployment_name(pool)))
            return deployment is not None and bool(deployment.get("status", {}).get("readyReplicas"))
        return True

    def pool_message(self, namespace: str, run: Json) -> str:
        """Return what the pool of a started run says about being ready; empty where there is no such pool."""
        for name in queue_pool(run):
            pool = self.pools.get(ObjectKey(namespace, name)) or {}
            for condition in pool.get("status", {}).get("conditions", ()):
                if condition["type"] == "Ready":
                    return str(condition["message"])
        return ""

    def agent_of_run(self, run: Json) -> Json | None:
        """Return the Agent of a run or, where it belongs to one, of its session; None where something of it is missing."""
        namespace, session_name = key_of(run).namespace, session_of(run)
        if session_name is None:
            return self.agents.get(ObjectKey(namespace, run["spec"]["agentRef"]["name"]))
        session = self.sessions.get(ObjectKey(namespace, session_name))
        return self.agents.get(ObjectKey(namespace, session_agent_of(session))) if session else None

    def runs_of_session(self, session: ObjectKey) -> list[Json]:
        """Return the unfinished runs that name an AgentSession."""
        keys = self.runs.by("session", session.namespace, session.name)
        return [run for key in keys if (run := self.runs.get(key)) is not None]

    def needs_pool(self, session: ObjectKey, pool: str) -> bool:
        """Return whether a session that is to close for being idle needs the pool."""
        found = self.sessions.get(session)
        return (
            found is not None
            and not is_closed(found)
            and pool in queue_pool(found)
            and self.idle_sessions.get(session) == found["metadata"]["uid"]
        )

    def has_queued_next(self, pool: ObjectKey) -> bool:
        """Return whether a queued run may begin, or end, at any moment: none of its session awaits approval.

        Whether another is under way does not matter: that one needs the pool by itself.
        """
        for key in self.runs.by("queued", pool.namespace, pool.name):
            run = self.runs.get(key)
            if run is None:
                continue
            name = session_of(run) or ""
            if run["spec"].get("cancel") or not self.runs.has_any("session", pool.namespace, name, is_awaiting):
                return True
        return False

    def known(self, namespace: str) -> Known:
        """Return the objects of a namespace, to look up by name what an Agent of it names."""
        return Known(
            agents=lambda name: self.agents.get(ObjectKey(namespace, name)),
            models=lambda name: self.models.get(ObjectKey(namespace, name)),
            pools=lambda name: self.pools.get(ObjectKey(namespace, name)),
        )

    def agents_that_call(self, model: ObjectKey) -> list[ObjectKey]:
        """Return the Agents that name a model, or a retriever whose vectors it makes."""
        found = self.agents.by("model", model.namespace, model.name)
        for pool in self.pools.by("model", model.namespace, model.name):
            for key in self.agents.by("pool", pool.namespace, pool.name):
                agent = self.agents.get(key)
                if agent and retriever_of(agent) is not None:
                    found.append(key)
        return list(dict.fromkeys(found))

    def agents_that_reach(self, agents: list[ObjectKey]) -> list[ObjectKey]:
        """Return these Agents and all that reach one of them by calls or hand-offs, nearest first."""
        found = list(agents)
        seen = set(found)
        for key in found:  # grows while it is walked
            for caller in self.agents.by("agent", key.namespace, key.name):
                if caller not in seen:
                    seen.add(caller)
                    found.append(caller)
        return found

    def note_awake(self, key: ObjectKey, run: Json, now: datetime) -> None:
        """Note that a run was told something, so that it needs a worker until it reports again. Repeated, the first counts."""
        told = (run["metadata"]["uid"], report_seq(run))
        if self.awake.get(key, ())[:2] != told:
            self.awake[key] = (*told, now)

    def awake_since(self, key: ObjectKey) -> datetime | None:
        """Return when a run that awaits approval was told what it has not reported about; None where there is no such."""
        run, awake = self.runs.get(key), self.awake.get(key)
        if run is None or awake is None or not is_awaiting(run):
            return None
        return awake[2] if awake[:2] == (run["metadata"]["uid"], report_seq(run)) else None

    def is_awake(self, key: ObjectKey) -> bool:
        """Return whether a run that awaits approval was told something and has not reported since."""
        return self.awake_since(key) is not None

    def wakes(self, pool: ObjectKey) -> bool:
        """Return whether a run that was told something may need the pool."""
        return any(
            pool.name in pools_of_run(self.runs.get(key) or {}) and self.is_awake(key)
            for key in list(self.awake)
            if key.namespace == pool.namespace
        )

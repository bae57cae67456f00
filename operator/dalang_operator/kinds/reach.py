"""What a run of an Agent can reach, or the first thing that is missing. Pure: objects are looked up, nothing is asked.

An Agent reaches the Agents it calls as tools or hands over to, and theirs, cycles included; with each Agent its
AgentModels, its pool, and of that pool the MCP servers and the retriever the Agent names, with the AgentModel that makes
the retriever's vectors. The checks of one Agent are those of its readiness, too.
"""

import difflib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from dalang_api.contract import SNAPSHOT_MAX_AGENTS
from dalang_api.v1alpha1.conditions import Reason

from dalang_operator.kube.resources import Json, ObjectKey, key_of
from dalang_operator.runtime.cache import Cache, Known
from dalang_operator.runtime.references import (
    DEFAULT_POOL,
    agents_of,
    embedding_model_of,
    models_of,
    pool_of,
    retriever_of,
    retrievers_of,
    servers_of,
)

EMBEDDING_PROVIDERS = ("OpenAI", "AzureOpenAI")
"""The providers of AgentModels that can make vectors."""


@dataclass(frozen=True)
class Gap:
    """Something an Agent names that is not there, or cannot be used."""

    reason: Reason
    message: str
    """As the Agent says it."""
    waiting: str
    """As a run says it that waits for it."""


@dataclass(frozen=True)
class TooMany:
    """A run would reach more Agents than a snapshot may hold."""


@dataclass(frozen=True)
class Reach:
    """All that a run of an Agent can reach."""

    agents: tuple[Json, ...]
    """The Agent itself first, then by distance."""
    models: tuple[Json, ...]

    def pools(self) -> list[str]:
        """Return the names of the pools, each once, that of the Agent itself first."""
        return list(dict.fromkeys(map(pool_of, self.agents)))


def find_reach(agent: Json, known: Known) -> Reach | Gap | TooMany:
    """Return what a run of the Agent reaches, or the first thing that is missing, or that it is too much."""
    agents = reached_agents(agent, known)
    if len(agents) > SNAPSHOT_MAX_AGENTS:
        return TooMany()
    missing = next((gap for one in agents if (gap := agents_exist(one, known))), None)
    gap = missing or first_gap(agents, known)
    return gap or Reach(tuple(agents), tuple(_models(agents, known)))


def reached_agents(agent: Json, known: Known) -> list[Json]:
    """Return the Agents there are in reach, the Agent itself first, then by distance; of too many only some."""
    agents = {agent["metadata"]["name"]: agent}
    ahead = deque([agent])
    while ahead and len(agents) <= SNAPSHOT_MAX_AGENTS:
        for name in agents_of(ahead.popleft()):
            found = None if name in agents else known.agents(name)
            if found is not None:
                agents[name] = found
                ahead.append(found)
    return list(agents.values())


def has_live_run(cache: Cache, pool: ObjectKey) -> bool:
    """Return whether a run needs the pool: one that is under way and may call it, or one that could start.

    One that awaits approval does not, but for the while between a decision and its next report.
    """
    if cache.runs.count("pool", pool.namespace, pool.name) or cache.wakes(pool) or _has_live_session(cache, pool):
        return True
    known = cache.known(pool.namespace)
    for agent_key in cache.agents_that_reach(cache.agents.by("pool", pool.namespace, pool.name)):
        if not _has_waiting_run(cache, agent_key):
            continue
        agent = cache.agents.get(agent_key)
        if agent and isinstance(find_reach(agent, known), Reach):
            return True
    return False


def _has_live_session(cache: Cache, pool: ObjectKey) -> bool:
    """Return whether a session is about to close on the pool's queue, or a run queued in one may begin."""
    return (
        bool(cache.sessions.count("closing", pool.namespace, pool.name))
        or cache.has_queued_next(pool)
        or any(cache.needs_pool(key, pool.name) for key in list(cache.idle_sessions) if key.namespace == pool.namespace)
    )


def _has_waiting_run(cache: Cache, agent: ObjectKey) -> bool:
    """Return whether a run of the Agent, or of a session of it, could start."""
    if cache.runs.has_any("waiting", agent.namespace, agent.name, _could_start):
        return True
    sessions = cache.sessions.by("agent", agent.namespace, agent.name)
    return any(cache.runs.has_any("unsent", agent.namespace, session.name, _could_be_sent) for session in sessions)


def _could_start(run: Json) -> bool:
    """Whether nothing keeps a waiting run that its reach does not tell, such as a ConfigMap: not every one is watched."""
    conditions = run.get("status", {}).get("conditions", ())
    return all(
        condition["reason"] not in (Reason.CONFIG_MAP_NOT_FOUND, Reason.INVALID_SPEC) for condition in conditions
    )


def _could_be_sent(run: Json) -> bool:
    """Whether nothing keeps a run of a session, as far as its session has looked; a pool is woken after it was sent."""
    conditions = run.get("status", {}).get("conditions", ())
    return all(condition["reason"] in (Reason.PENDING, Reason.START_FAILED) for condition in conditions)


def with_model(reach: Reach | Gap | TooMany | None, name: str | None, known: Known) -> Reach | Gap | TooMany | None:
    """Return the reach with one more AgentModel, which writes a session's summary."""
    if name is None or not isinstance(reach, Reach) or any(model["metadata"]["name"] == name for model in reach.models):
        return reach
    model = known.models(name)
    if model is not None:
        return replace(reach, models=(*reach.models, model))
    what = f"summary names AgentModel {name}, which is not there"
    return Gap(Reason.MODEL_NOT_FOUND, f"{what}; apply it", f"Its session's {what}; the run starts when it is")


def first_gap(agents: Iterable[Json], known: Known) -> Gap | None:
    """Return the first thing missing that one of the Agents names, other Agents left out."""
    checks = (models_exist, pool_exists, servers_exist, retriever_exists)
    return next((gap for agent in agents for check in checks if (gap := check(agent, known))), None)


def agents_exist(agent: Json, known: Known) -> Gap | None:
    """There are the Agents it calls as tools or hands over to."""
    missing = next((name for name in agents_of(agent) if known.agents(name) is None), None)
    return _gap(Reason.AGENT_NOT_FOUND, agent, f"Agent {missing}") if missing else None


def models_exist(agent: Json, known: Known) -> Gap | None:
    """There are the AgentModels it calls."""
    missing = next((name for name in models_of(agent) if known.models(name) is None), None)
    return _gap(Reason.MODEL_NOT_FOUND, agent, f"AgentModel {missing}") if missing else None


def pool_exists(agent: Json, known: Known) -> Gap | None:
    """There is its pool; `default` will be made."""
    name = pool_of(agent)
    if name == DEFAULT_POOL or known.pools(name) is not None:
        return None
    return _gap(Reason.POOL_NOT_FOUND, agent, f"AgentPool {name}")


def servers_exist(agent: Json, known: Known) -> Gap | None:
    """Its pool has the MCP servers it has tools of."""
    pool = known.pools(pool_of(agent)) or {}
    there = [server["name"] for server in pool.get("spec", {}).get("mcpServers", ())]
    missing = next((name for name in servers_of(agent) if name not in there), None)
    return _pool_gap(Reason.SERVER_NOT_FOUND, agent, "MCP server", missing, there) if missing else None


def retriever_exists(agent: Json, known: Known) -> Gap | None:
    """Its pool has the retriever it names, and there is the AgentModel that makes that one's vectors, and can."""
    name = retriever_of(agent)
    if name is None:
        return None
    retrievers = retrievers_of(known.pools(pool_of(agent)) or {})
    if name not in retrievers:
        return _pool_gap(Reason.RETRIEVER_NOT_FOUND, agent, "retriever", name, list(retrievers))
    model = embedding_model_of(retrievers[name])
    found = known.models(model)
    if found is not None:
        return _embedding_gap(agent, name, found)
    who = f"Retriever {name} of AgentPool {pool_of(agent)}"
    return Gap(
        Reason.MODEL_NOT_FOUND,
        f"{who} names AgentModel {model}, which is not there",
        f"{who} names AgentModel {model}, which is not there; the run starts when it is",
    )


def nearest(name: str, there: Iterable[str]) -> str:
    """Return a hint at the name that was probably meant, to stand at a message's end; empty where none is near."""
    near = difflib.get_close_matches(name, sorted(there), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _gap(reason: Reason, agent: Json, what: str) -> Gap:
    key = key_of(agent)
    return Gap(
        reason,
        f"There is no {what} in namespace {key.namespace}",
        f"Agent {key.name} names {what}, which is not there; the run starts when it is",
    )


def _pool_gap(reason: Reason, agent: Json, noun: str, name: str, there: list[str]) -> Gap:
    pool, hint = pool_of(agent), nearest(name, there)
    return Gap(
        reason,
        f"AgentPool {pool} has no {noun} {name}{hint}",
        f"Agent {key_of(agent).name} names {noun} {name}, which AgentPool {pool} does not have; "
        f"the run starts when it does{hint}",
    )


def _embedding_gap(agent: Json, retriever: str, model: Json) -> Gap | None:
    provider = model["spec"]["provider"]
    if provider in EMBEDDING_PROVIDERS:
        return None
    message = (
        f"AgentModel {key_of(model).name} of retriever {retriever} has provider {provider}, which has no embeddings; "
        f"name one of {' or '.join(EMBEDDING_PROVIDERS)}"
    )
    waiting = f"Agent {key_of(agent).name}: {message}. The run starts when that is mended"
    return Gap(Reason.INVALID_SPEC, message, waiting)


def _models(agents: Iterable[Json], known: Known) -> Iterator[Json]:
    """Yield the AgentModels of Agents none of which lacks anything, each once."""
    seen: set[str] = set()
    for agent in agents:
        names = models_of(agent)
        if retriever := retriever_of(agent):
            names.append(embedding_model_of(retrievers_of(known.pools(pool_of(agent)) or {})[retriever]))
        for name in names:
            model = known.models(name)
            if model is not None and name not in seen:
                seen.add(name)
                yield model

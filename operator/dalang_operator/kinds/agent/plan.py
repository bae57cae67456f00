"""What to say about one Agent: whether everything it names is there, and whether what it says makes sense. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from dalang_api import prices
from dalang_api.v1alpha1.conditions import ConditionType, Reason

from dalang_operator.kinds import instructions, reach
from dalang_operator.kinds.instructions import MISSING_SECONDS, ConfigMaps
from dalang_operator.kinds.reach import Gap, nearest, reached_agents
from dalang_operator.kinds.validity import invalidity
from dalang_operator.kube.resources import Json
from dalang_operator.kube.status import condition, with_conditions
from dalang_operator.runtime.cache import Known
from dalang_operator.runtime.references import (
    base_url_of,
    embedding_model_of,
    functions_of,
    instruction_function_of,
    instructions_key_of,
    models_of,
    pool_of,
    retriever_of,
    retrievers_of,
)


@dataclass(frozen=True)
class Observed:
    """All that is known about one Agent."""

    agent: Json
    known: Known
    """Where what it names is looked up."""
    now: datetime
    config_maps: ConfigMaps = field(default_factory=dict)
    """Those of `instructionsFrom`, its own and of the Agents it reaches."""


@dataclass(frozen=True)
class Plan:
    """The status the Agent should have, and when to look again."""

    status: Json
    requeue_after: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Why an Agent is not ready, or that it cannot be known yet."""

    status: Literal["False", "Unknown"]
    reason: Reason
    message: str


# ── What it names ──────────────────────────────────────────────────────────────────────────────────────────────────


def models_exist(observed: Observed) -> Verdict | None:
    """There are the AgentModels of its `modelRef` and `fallbackModelRefs`."""
    return _verdict(reach.models_exist(observed.agent, observed.known))


def agents_exist(observed: Observed) -> Verdict | None:
    """There are the Agents it calls as tools or hands over to."""
    return _verdict(reach.agents_exist(observed.agent, observed.known))


def pool_exists(observed: Observed) -> Verdict | None:
    """There is an AgentPool of its `poolRef`; `default` will be made."""
    return _verdict(reach.pool_exists(observed.agent, observed.known))


def config_map_exists(observed: Observed) -> Verdict | None:
    """There is the ConfigMap of its `instructionsFrom`, with the key."""
    return _verdict(instructions.config_map_exists(observed.agent, observed.config_maps))


def servers_exist(observed: Observed) -> Verdict | None:
    """The pool has the MCP servers it has tools of."""
    return _verdict(reach.servers_exist(observed.agent, observed.known))


def retriever_exists(observed: Observed) -> Verdict | None:
    """The pool has its retriever, and there is that one's AgentModel."""
    return _verdict(reach.retriever_exists(observed.agent, observed.known))


# ── What it says ───────────────────────────────────────────────────────────────────────────────────────────────────


def spec_is_valid(observed: Observed) -> Verdict | None:
    """Instructions, schema, tools' names and the choice among them make sense; runs ask the same."""
    message = invalidity(observed.agent, observed.config_maps)
    return Verdict("False", Reason.INVALID_SPEC, message) if message else None


def prices_are_known(observed: Observed) -> Verdict | None:
    """With `limits.maxCostUSD`: the price of each model it calls is known, that of its retriever's vectors included."""
    if "maxCostUSD" not in observed.agent["spec"].get("limits", {}):
        return None
    for name in models_of(observed.agent):
        model = observed.known.models(name)
        if model and not prices.is_priced(model["spec"]["provider"], model["spec"]["name"], base_url_of(model)):
            return _no_price(name, model["spec"]["name"])
    return _embedding_price_is_known(observed)


def _embedding_price_is_known(observed: Observed) -> Verdict | None:
    retrievers = retrievers_of(observed.known.pools(pool_of(observed.agent)) or {})
    retriever = retrievers.get(retriever_of(observed.agent) or "")
    model = observed.known.models(embedding_model_of(retriever)) if retriever else None
    if retriever is None or model is None:
        return None
    called = retriever["qdrant"]["embedding"].get("name") or model["spec"]["name"]
    # Vectors are priced by what is sent alone.
    cost = prices.cost_usd(model["spec"]["provider"], called, base_url_of(model), input_tokens=1, output_tokens=0)
    return _no_price(embedding_model_of(retriever), called) if cost is None else None


def _no_price(name: str, called: str) -> Verdict:
    message = f"limits.maxCostUSD is set, and the price of AgentModel {name} ({called}) is not known"
    return Verdict("False", Reason.PRICE_UNKNOWN, message)


# ── What its pool's workers have ───────────────────────────────────────────────────────────────────────────────────


def catalogue_is_known(observed: Observed) -> Verdict | None:
    """A worker of the pool's present build has told its tools. Asked only of Agents that name any function."""
    names_any = bool(functions_of(observed.agent)) or instruction_function_of(observed.agent) is not None
    if not names_any or _catalogue(observed) is not None:
        return None
    message = f"No worker of AgentPool {pool_of(observed.agent)} has told its tools yet; runs start all the same"
    return Verdict("Unknown", Reason.CATALOGUE_UNKNOWN, message)


def functions_exist(observed: Observed) -> Verdict | None:
    """The pool's modules register every function it names as a tool."""
    known = [tool["name"] for tool in (_catalogue(observed) or {}).get("tools", ())]
    return _unregistered(observed, "function", functions_of(observed.agent), known)


def instruction_function_exists(observed: Observed) -> Verdict | None:
    """The pool's modules register the function that returns its instructions."""
    known = (_catalogue(observed) or {}).get("instructions", [])
    name = instruction_function_of(observed.agent)
    return _unregistered(observed, "instruction function", [name] if name else [], known)


READY_CHECKS: tuple[Callable[[Observed], Verdict | None], ...] = (
    models_exist,
    agents_exist,
    pool_exists,
    config_map_exists,
    servers_exist,
    retriever_exists,
    spec_is_valid,
    prices_are_known,
    catalogue_is_known,
    functions_exist,
    instruction_function_exists,
)
"""What must be so before an Agent is ready, of itself and of each it reaches; the first that is not gives the reason.
What only a worker can tell comes last: it may be minutes away."""


def plan(observed: Observed) -> Plan:
    """Return the status the Agent should have, and when to look again."""
    verdict = _first_verdict(observed)
    ready = (
        condition(ConditionType.READY, verdict.status, verdict.reason, verdict.message)
        if verdict
        else condition(ConditionType.READY, "True", Reason.RESOLVED, "Everything it names is there")
    )
    before = observed.agent.get("status", {})
    generation = observed.agent["metadata"]["generation"]
    status = {
        **before,
        "observedGeneration": generation,
        "conditions": with_conditions(before.get("conditions", []), [ready], generation, observed.now),
    }
    may_be_mended = verdict is not None and verdict.reason in {Reason.CONFIG_MAP_NOT_FOUND, Reason.INVALID_SPEC}
    is_unwatched = may_be_mended and any(map(instructions_key_of, reached_agents(observed.agent, observed.known)))
    return Plan(status, MISSING_SECONDS if is_unwatched else None)


def _first_verdict(observed: Observed) -> Verdict | None:
    """Return what is wrong with the Agent, or with one it reaches, nearest first; of others not what is unknown yet."""
    own = _verdict_on(observed)
    if own and own.status == "False":
        return own
    for agent in reached_agents(observed.agent, observed.known)[1:]:
        verdict = _verdict_on(replace(observed, agent=agent))
        if verdict and verdict.status == "False":
            return replace(verdict, message=f"Agent {agent['metadata']['name']}: {verdict.message}")
    return own


def _verdict_on(observed: Observed) -> Verdict | None:
    return next((verdict for check in READY_CHECKS if (verdict := check(observed))), None)


def _verdict(gap: Gap | None) -> Verdict | None:
    return Verdict("False", gap.reason, gap.message) if gap else None


def _unregistered(observed: Observed, noun: str, names: list[str], known: list[str]) -> Verdict | None:
    missing = next((name for name in names if name not in known), None)
    if missing is None or _catalogue(observed) is None:
        return None
    message = f"AgentPool {pool_of(observed.agent)} has no {noun} {missing}{nearest(missing, known)}"
    return Verdict("False", Reason.TOOL_NOT_FOUND, message)


def _catalogue(observed: Observed) -> Json | None:
    """Return the catalogue of the pool's present build, or None while it is not known."""
    status = (observed.known.pools(pool_of(observed.agent)) or {}).get("status", {})
    catalogue: Json | None = status.get("catalogue")
    return catalogue if catalogue and catalogue.get("build") == status.get("build") else None

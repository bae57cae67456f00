"""What to say about one Agent: whether everything it names is there. Pure."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from dalang_api.v1alpha1.conditions import ConditionType, Reason

from dalang_operator.kube.resources import Json, key_of
from dalang_operator.kube.status import condition, with_conditions
from dalang_operator.runtime.cache import DEFAULT_POOL, pool_of


@dataclass(frozen=True)
class Observed:
    """All that is known about one Agent."""

    agent: Json
    model: Json | None
    pool: Json | None
    now: datetime


@dataclass(frozen=True)
class Verdict:
    """Why an Agent is not ready, or that it cannot be known yet."""

    status: Literal["False", "Unknown"]
    reason: Reason
    message: str


def model_exists(observed: Observed) -> Verdict | None:
    """There is an AgentModel of its `modelRef`."""
    if observed.model:
        return None
    name, namespace = observed.agent["spec"]["modelRef"]["name"], key_of(observed.agent).namespace
    return Verdict("False", Reason.MODEL_NOT_FOUND, f"There is no AgentModel {name} in namespace {namespace}")


def pool_exists(observed: Observed) -> Verdict | None:
    """There is an AgentPool of its `poolRef`; `default` will be made."""
    name = pool_of(observed.agent)
    if observed.pool or name == DEFAULT_POOL:
        return None
    namespace = key_of(observed.agent).namespace
    return Verdict("False", Reason.POOL_NOT_FOUND, f"There is no AgentPool {name} in namespace {namespace}")


def catalogue_is_known(observed: Observed) -> Verdict | None:
    """A worker of the pool's present build has told its tools. Asked only of Agents that have any."""
    if not _functions(observed.agent) or _catalogue(observed.pool) is not None:
        return None
    message = f"No worker of AgentPool {pool_of(observed.agent)} has told its tools yet; runs start all the same"
    return Verdict("Unknown", Reason.CATALOGUE_UNKNOWN, message)


def tools_exist(observed: Observed) -> Verdict | None:
    """The pool's modules register every function it names."""
    catalogue = _catalogue(observed.pool)
    if catalogue is None:
        return None
    known = sorted(tool["name"] for tool in catalogue.get("tools", ()))
    for function in _functions(observed.agent):
        if function not in known:
            near = difflib.get_close_matches(function, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            message = f"AgentPool {pool_of(observed.agent)} has no function {function}{hint}"
            return Verdict("False", Reason.TOOL_NOT_FOUND, message)
    return None


READY_CHECKS: tuple[Callable[[Observed], Verdict | None], ...] = (
    model_exists,
    pool_exists,
    catalogue_is_known,
    tools_exist,
)
"""What must be so before an Agent is ready; the first that is not gives the reason."""


def plan(observed: Observed) -> Json:
    """Return the status the Agent should have."""
    verdict = next((verdict for check in READY_CHECKS if (verdict := check(observed))), None)
    ready = (
        condition(ConditionType.READY, verdict.status, verdict.reason, verdict.message)
        if verdict
        else condition(ConditionType.READY, "True", Reason.RESOLVED, "Everything it names is there")
    )
    before = observed.agent.get("status", {})
    generation = observed.agent["metadata"]["generation"]
    return {
        **before,
        "observedGeneration": generation,
        "conditions": with_conditions(before.get("conditions", []), [ready], generation, observed.now),
    }


def _functions(agent: Json) -> list[str]:
    return [tool["function"].get("name") or tool["name"] for tool in agent["spec"].get("tools", ())]


def _catalogue(pool: Json | None) -> Json | None:
    """Return the catalogue of the pool's present build, or None while it is not known."""
    status = (pool or {}).get("status", {})
    catalogue: Json | None = status.get("catalogue")
    return catalogue if catalogue and catalogue.get("build") == status.get("build") else None

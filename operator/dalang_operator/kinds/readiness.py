"""What must be so before a run starts, one of its own or its session's next; the first that is not gives the reason. Pure."""

from dataclasses import dataclass

from dalang_api import contract
from dalang_api.v1alpha1.conditions import Reason

from dalang_operator.kinds.instructions import MISSING_SECONDS, ConfigMaps, config_map_exists
from dalang_operator.kinds.reach import Gap, Reach, TooMany
from dalang_operator.kinds.validity import invalidity
from dalang_operator.kube.resources import Json
from dalang_operator.runtime.references import instructions_key_of

Found = Reach | Gap | TooMany | None
"""What an Agent can reach, or what is missing; None where there is no Agent."""


@dataclass(frozen=True)
class Verdict:
    """Why a run does not start: it waits, or (`is_final`) it never will."""

    reason: Reason
    message: str
    """As its session says it."""
    waiting: str
    """As the run says it."""
    is_final: bool = False
    again_after: float | None = None
    """After how many seconds to look again at what no event tells."""


def no_agent(name: str, namespace: str) -> Verdict:
    """There is no Agent of that name."""
    missing = f"There is no Agent {name} in namespace {namespace}"
    return Verdict(Reason.AGENT_NOT_FOUND, missing, f"{missing}; the run starts when it is applied")


def unready(reach: Found, config_maps: ConfigMaps) -> Verdict | None:
    """Return what of the agents in reach, and of all that they name, is missing or makes no sense; None where nothing is."""
    if isinstance(reach, Gap):
        return Verdict(reach.reason, reach.message, reach.waiting)
    if isinstance(reach, TooMany):
        return _never(f"It can reach more than {contract.SNAPSHOT_MAX_AGENTS} agents, which is the most a run may")
    agents = reached(reach)
    return _without_instructions(agents, config_maps) or _invalid(agents, config_maps)


def too_large(snapshot: contract.Snapshot) -> Verdict | None:
    """Return that what the agents and models in reach say does not fit a snapshot; None where it does."""
    size = len(snapshot.model_dump_json(exclude_none=True).encode())
    if size <= contract.SNAPSHOT_MAX_BYTES:
        return None
    return _never(f"The agents and models it can reach weigh {size} bytes; {contract.SNAPSHOT_MAX_BYTES} are allowed")


def reached(reach: Found) -> tuple[Json, ...]:
    """Return the agents in reach."""
    return reach.agents if isinstance(reach, Reach) else ()


def _without_instructions(agents: tuple[Json, ...], config_maps: ConfigMaps) -> Verdict | None:
    """There is a ConfigMap with instructions missing; nothing watches those without label, so it is looked for again."""
    gap = next(filter(None, (config_map_exists(agent, config_maps) for agent in agents)), None)
    return Verdict(gap.reason, gap.message, gap.waiting, again_after=MISSING_SECONDS) if gap else None


def _invalid(agents: tuple[Json, ...], config_maps: ConfigMaps) -> Verdict | None:
    """What an agent says makes no sense; one that is mended tells, but its ConfigMap may not."""
    for agent in agents:
        if message := invalidity(agent, config_maps):
            message = f"Agent {agent['metadata']['name']}: {message}"
            again_after = MISSING_SECONDS if instructions_key_of(agent) else None
            waiting = f"{message}. The run starts when that is mended"
            return Verdict(Reason.INVALID_SPEC, message, waiting, again_after=again_after)
    return None


def _never(message: str) -> Verdict:
    return Verdict(Reason.INVALID_SPEC, message, message, is_final=True)

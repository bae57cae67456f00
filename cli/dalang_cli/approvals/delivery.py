"""What became of a decision that was written: told from the object's status, for as long as somebody wants to wait."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from dalang_api.v1alpha1.conditions import ConditionType

from dalang_cli.approvals.show import Json, condition, deletion_words, held_back, state
from dalang_cli.cluster import ClusterError

LOOK_SECONDS = 0.25
"""Between two looks. No watch: who may decide need not hold the verb."""
DELIVERED_SECONDS = 2.0
"""How long to wait for more once Temporal has it. The run says that it acted only after it has run the tool."""


class ExitCode(IntEnum):
    """How a command ends."""

    DONE = 0
    """Delivered or applied; listed."""
    REFUSED = 1
    """The API server refused, or could not be reached."""
    USAGE = 2
    """Nothing was done: wrong usage, no such object, not confirmed."""
    TOO_LATE = 3
    """Somebody has decided, or nobody need any more."""
    NOT_DELIVERED = 4
    """Decided, and not delivered in time."""


@dataclass(frozen=True)
class Outcome:
    """What to say, and how to end."""

    code: ExitCode
    message: str
    may_change: bool = False
    """More may come of it in a moment."""


class GetPort(Protocol):
    """What waiting needs of the cluster."""

    def get(self, name: str) -> Json: ...


def outcome(found: Json) -> Outcome | None:
    """Return what became of a decision by its object; None: nothing yet, and the operator is about to tell."""
    ready = condition(found, ConditionType.READY)
    words = ready.get("message") or ""
    match state(found):
        case "Applied":
            return Outcome(ExitCode.DONE, f"Applied. {words}")
        case "Delivered":
            return Outcome(ExitCode.DONE, f"Delivered. {words}", may_change=True)
        case "Expired" | "Superseded" as ended:
            return Outcome(ExitCode.TOO_LATE, f"{ended}. {words}")
    held = held_back(found)
    return Outcome(ExitCode.NOT_DELIVERED, f"Not delivered: {held}") if held else None


def wait(
    cluster: GetPort,
    decided: Json,
    seconds: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Return what became of a decision within some seconds."""
    name, uid = decided["metadata"]["name"], decided["metadata"]["uid"]
    deadline, seen, last = clock() + seconds, None, decided
    while True:
        try:
            last = cluster.get(name)
        except ClusterError as error:
            if error.status == 404:
                return seen or _DELETED
        if last["metadata"]["uid"] != uid:
            return seen or _DELETED
        now, before = clock(), seen
        seen = outcome(last) or seen
        if seen and not seen.may_change:
            return seen
        if seen and before is None:
            deadline = min(deadline, now + DELIVERED_SECONDS)
        if now >= deadline:
            return seen or Outcome(ExitCode.NOT_DELIVERED, f"Not delivered within {seconds:g} s: {_why(last)}")
        sleep(LOOK_SECONDS)


_DELETED = Outcome(
    ExitCode.NOT_DELIVERED,
    "Not delivered: the AgentApproval was deleted. If its run still waits, it asks anew: see `dalang approvals`",
)


def _why(found: Json) -> str:
    if deletion := deletion_words(found):
        return deletion
    ready = condition(found, ConditionType.READY)
    if ready.get("lastTransitionTime", "1970").startswith("1970"):  # as by schema default
        return "the operator has not looked at it. Is it running? The decision is kept, and delivered when it is"
    return str(ready["message"])

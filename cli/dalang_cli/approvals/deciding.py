"""Deciding an AgentApproval: what `dalang approve`, `dalang reject` and `dalang chat` have in common."""

from typing import Any, Literal, Protocol

from dalang_cli.approvals import show
from dalang_cli.approvals.delivery import ExitCode
from dalang_cli.approvals.show import Json
from dalang_cli.cluster import ClusterError


class Stop(Exception):
    """It ends here, with this code and a line that says why."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class DecidePort(Protocol):
    """What deciding needs of the cluster."""

    def get(self, name: str) -> Json: ...

    def decide(self, asked: Json, decision: Json) -> Json: ...


def see_that_it_is_open(asked: Json) -> None:
    """Check that it waits for a human.

    Raises:
        Stop: It does not any more; the message says what it came to.
    """
    spec = asked["spec"]
    state, name = show.state(asked), asked["metadata"]["name"]
    if show.is_open(asked):
        if deletion := show.deletion_words(asked):
            raise Stop(ExitCode.TOO_LATE, f"{name} cannot be decided: {deletion}")
        return
    if spec.get("decision"):
        raise Stop(
            ExitCode.TOO_LATE, f"{name} is decided already: {spec['decision']} by {show.by(asked)}; it is {state}"
        )
    raise Stop(ExitCode.TOO_LATE, f"{name} need not be decided any more: it is {state}")


def decide(
    cluster: DecidePort,
    asked: Json,
    decision: Literal["Approve", "Reject"],
    *,
    user: str | None,
    reason: str | None = None,
    override: dict[str, Any] | None = None,
) -> Json:
    """Write the decision of a user into the object that was shown; returns it.

    Raises:
        Stop: Somebody was faster, or it was asked anew.
        ClusterError: The API server refused.
    """
    members = {"decision": decision, "reason": reason, "override": override, "decidedBy": user}
    try:
        return cluster.decide(asked, {name: value for name, value in members.items() if value is not None})
    except ClusterError as error:
        raise _why_refused(cluster, asked, error) from None


def _why_refused(cluster: DecidePort, asked: Json, error: ClusterError) -> Exception:
    """Return what to tell of a refused decision: whoever was faster, else what the API server says."""
    if error.status == 0:
        return ClusterError(0, f"{error}. It may have been decided all the same: look again")
    try:
        found = cluster.get(asked["metadata"]["name"])
        see_that_it_is_open(found)
    except (Stop, ClusterError) as reason:
        return reason
    if found["metadata"]["uid"] != asked["metadata"]["uid"]:
        return Stop(ExitCode.TOO_LATE, "it was asked anew meanwhile: look at it again")
    return error

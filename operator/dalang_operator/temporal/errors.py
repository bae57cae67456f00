"""Errors of Temporal, as few as callers tell apart.

TemporalError
├── WorkflowNotFound      Temporal has no such workflow, or it has ended
└── TemporalUnavailable   no answer, overloaded or starting: trying again helps
"""

from temporalio.service import RPCError, RPCStatusCode


class TemporalError(Exception):
    """A request Temporal refused."""


class WorkflowNotFound(TemporalError):
    """Temporal has no such workflow, or it has ended."""


class TemporalUnavailable(TemporalError):
    """Temporal is away, overloaded or starting."""


_UNAVAILABLE = {
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.RESOURCE_EXHAUSTED,
    RPCStatusCode.CANCELLED,
    RPCStatusCode.UNKNOWN,
    RPCStatusCode.ABORTED,
    RPCStatusCode.INTERNAL,
}


def from_rpc(error: RPCError) -> TemporalError:
    """Return our error for an RPC's."""
    if error.status is RPCStatusCode.NOT_FOUND and "amespace" not in error.message:
        return WorkflowNotFound(error.message)
    if error.status in _UNAVAILABLE or error.status is RPCStatusCode.NOT_FOUND:
        return TemporalUnavailable(f"Temporal: {error.message} ({error.status.name})")
    return TemporalError(f"Temporal: {error.message} ({error.status.name})")

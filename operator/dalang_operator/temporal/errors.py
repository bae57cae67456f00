"""Errors of Temporal, as few as callers tell apart.

TemporalError
├── WorkflowNotFound      Temporal has no such workflow, or it has ended
├── ArgumentRefused       Temporal cannot make sense of it: trying again does not help
└── TemporalUnavailable   no answer, overloaded or starting: trying again helps
"""

import temporalio.api.errordetails.v1 as errordetails
from temporalio.service import RPCError, RPCStatusCode


class TemporalError(Exception):
    """A request Temporal refused."""


class WorkflowNotFound(TemporalError):
    """Temporal has no such workflow, or it has ended."""


class ArgumentRefused(TemporalError):
    """Temporal cannot make sense of what it was sent; the message has its words."""


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
    if error.status is RPCStatusCode.NOT_FOUND and not _is_of_namespace(error):
        return WorkflowNotFound(error.message)
    if error.status in _UNAVAILABLE or error.status is RPCStatusCode.NOT_FOUND:
        return TemporalUnavailable(f"Temporal: {error.message} ({error.status.name})")
    if error.status is RPCStatusCode.INVALID_ARGUMENT:
        return ArgumentRefused(f"Temporal: {error.message}")
    return TemporalError(f"Temporal: {error.message} ({error.status.name})")


def _is_of_namespace(error: RPCError) -> bool:
    """Whether it is the namespace that is not there. Not by the message: it may hold the name of anybody's object."""
    return any(detail.Is(errordetails.NamespaceNotFoundFailure.DESCRIPTOR) for detail in error.grpc_status.details)

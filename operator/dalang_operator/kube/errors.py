"""Errors of the API server, as few as callers tell apart.

ApiError
├── NotFound       404
├── AlreadyExists  409, reason AlreadyExists
├── Conflict       409 otherwise: another resourceVersion or uid than the write named
├── Gone           410: the list's continue token is too old
├── Forbidden      401, 403
│   └── QuotaExceeded  403 by a ResourceQuota: trying again helps when something is deleted, or the quota is raised
├── Terminating    403 in a namespace that is being deleted: nothing is created there any more
├── Invalid        400, 422: the object itself is refused; trying again does not help
└── Unavailable    429, 5xx, and no answer at all: trying again helps
"""


class ApiError(Exception):
    """A request the API server refused, or did not answer."""

    def __init__(self, message: str, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        """Seconds the server asks to wait, where it says so."""


class NotFound(ApiError):
    """There is no such object, or no such resource."""


class AlreadyExists(ApiError):
    """An object of that name exists."""


class Conflict(ApiError):
    """The object changed since it was read. Read it again."""


class Gone(ApiError):
    """A list cannot be continued. Begin anew."""


class Forbidden(ApiError):
    """The credentials do not allow it."""


class QuotaExceeded(Forbidden):
    """A ResourceQuota of the namespace is full."""


class Terminating(ApiError):
    """The namespace is being deleted."""


class Invalid(ApiError):
    """The object is refused as it is."""


class Unavailable(ApiError):
    """The server is away, overloaded or starting."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: Unavailable,
}


def from_response(status: int, reason: str, message: str, retry_after: float | None = None) -> ApiError:
    """Return the error for an answer's HTTP status and its Status object's reason and message."""
    if status == 409 and reason == "AlreadyExists":
        return AlreadyExists(message, status)
    if status == 403 and "because it is being terminated" in message:
        return Terminating(message, status)
    if status == 403 and "is forbidden: exceeded quota: " in message:
        return QuotaExceeded(message, status)
    kind = _BY_STATUS.get(status, Unavailable if status >= 500 else ApiError)
    return kind(message, status, retry_after)

"""Which answer of the API server is which error."""

import pytest
from dalang_operator.kube.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    QuotaExceeded,
    Terminating,
    Unavailable,
    from_response,
)


@pytest.mark.parametrize(
    ("status", "reason", "message", "expected"),
    [
        pytest.param(401, "Unauthorized", "", Forbidden, id="401"),
        pytest.param(403, "Forbidden", "User cannot", Forbidden, id="403"),
        pytest.param(
            403,
            "Forbidden",
            "in namespace x because it is being terminated",
            Terminating,
            id="403 while a namespace goes",
        ),
        pytest.param(
            403,
            "Forbidden",
            'agentruns.dalang.dev "x" is forbidden: exceeded quota: few, requested: count/agentruns.dalang.dev=1',
            QuotaExceeded,
            id="403 by a quota",
        ),
        pytest.param(
            403, "Forbidden", "denied request: you have exceeded quota: no", Forbidden, id="403 in like words"
        ),
        pytest.param(404, "NotFound", "", NotFound, id="404"),
        pytest.param(409, "AlreadyExists", "", AlreadyExists, id="409 of a create"),
        pytest.param(409, "Conflict", "", Conflict, id="409 of a precondition"),
        pytest.param(410, "Expired", "", Gone, id="410"),
        pytest.param(422, "Invalid", "", Invalid, id="422"),
        pytest.param(429, "TooManyRequests", "", Unavailable, id="429"),
        pytest.param(503, "", "", Unavailable, id="503"),
        pytest.param(418, "", "", ApiError, id="anything else"),
    ],
)
def test_from_response(status: int, reason: str, message: str, expected: type[ApiError]) -> None:
    error = from_response(status, reason, message, 3.0)
    assert type(error) is expected
    assert error.status == status

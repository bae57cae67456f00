"""Which of our errors an RPC's is."""

import pytest
from dalang_operator.temporal.errors import (
    ArgumentRefused,
    TemporalError,
    TemporalUnavailable,
    WorkflowNotFound,
    from_rpc,
)
from temporalio.api.common.v1 import GrpcStatus
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.service import RPCError, RPCStatusCode


def rpc_error(status: RPCStatusCode, message: str = "no", *, is_of_namespace: bool = False) -> RPCError:
    raw = GrpcStatus(code=status.value, message=message)
    if is_of_namespace:
        raw.details.add().Pack(NamespaceNotFoundFailure(namespace="default"))
    return RPCError(message, status, raw.SerializeToString())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(rpc_error(RPCStatusCode.NOT_FOUND), WorkflowNotFound, id="no such workflow or schedule"),
        pytest.param(
            rpc_error(RPCStatusCode.NOT_FOUND, "workflow not found for ID: i.shop.namespace-janitor.u"),
            WorkflowNotFound,
            id="the message holds names of users' objects",
        ),
        pytest.param(
            rpc_error(RPCStatusCode.NOT_FOUND, is_of_namespace=True),
            TemporalUnavailable,
            id="no namespace: nothing is known of the workflow",
        ),
        pytest.param(rpc_error(RPCStatusCode.INVALID_ARGUMENT), ArgumentRefused, id="no sense in it"),
        pytest.param(rpc_error(RPCStatusCode.RESOURCE_EXHAUSTED), TemporalUnavailable, id="overloaded"),
        pytest.param(rpc_error(RPCStatusCode.PERMISSION_DENIED), TemporalError, id="anything else"),
    ],
)
def test_from_rpc(error: RPCError, expected: type[TemporalError]) -> None:
    assert type(from_rpc(error)) is expected

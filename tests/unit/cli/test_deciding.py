"""What is said of an AgentApproval that nobody need decide, before anybody is asked to."""

from typing import Any

import pytest
from dalang_cli.approvals.deciding import Stop, see_that_it_is_open
from dalang_cli.approvals.delivery import ExitCode

BOB = {"decision": "Approve", "decidedBy": "bob"}
GOING: dict[str, Any] = {"deletionTimestamp": "2026-01-02T03:04:05Z"}


def approval(
    spec: dict[str, str] | None = None, status: dict[str, str] | None = None, **metadata: Any
) -> dict[str, Any]:
    return {"metadata": {"name": "x", **metadata}, "spec": spec or {}, "status": status}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        pytest.param(
            approval(BOB, {"state": "Applied", "decidedBy": "bob"}),
            "x is decided already: Approve by bob; it is Applied",
            id="decided",
        ),
        pytest.param(
            approval(BOB),
            "x is decided already: Approve by bob (not yet proven); it is Pending",
            id="by whom it claims",
        ),
        pytest.param(
            approval(status={"state": "Expired"}), "x need not be decided any more: it is Expired", id="expired"
        ),
        pytest.param(
            approval(**GOING),
            "x cannot be decided: it is being deleted; its run asks anew once it is gone.",
            id="about to go",
        ),
        pytest.param(
            approval(**GOING, finalizers=["x.io/y", "z"]),
            "x cannot be decided: it is being deleted; its run asks anew once it is gone. Finalizers keep it: x.io/y, z",
            id="and kept from it",
        ),
    ],
)
def test_what_cannot_be_decided(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(Stop) as stop:
        see_that_it_is_open(asked)
    assert (str(stop.value), stop.value.code) == (said, ExitCode.TOO_LATE)


def test_what_can() -> None:
    see_that_it_is_open(approval())

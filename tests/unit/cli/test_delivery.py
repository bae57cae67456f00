"""What became of a decision, by the object's status; and how long that is waited for."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from dalang_cli.approvals.delivery import DELIVERED_SECONDS, LOOK_SECONDS, ExitCode, outcome, wait
from dalang_cli.cluster import ClusterError

NEW = {"type": "Ready", "status": "False", "reason": "Pending", "message": "Waiting for the controller"}
BORN = {**NEW, "lastTransitionTime": "1970-01-01T00:00:00Z"}
AT = "2026-01-02T03:04:06Z"


def approval(state: str = "Pending", *conditions: dict[str, str], uid: str = "1") -> dict[str, Any]:
    status = {"state": state, "conditions": list(conditions) or [BORN]}
    return {"metadata": {"name": "x", "uid": uid}, "spec": {"decision": "Approve"}, "status": status}


def ready(status: str, reason: str, message: str) -> dict[str, str]:
    return {"type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": AT}


KEPT = {
    **approval(),
    "metadata": {"name": "x", "uid": "1", "deletionTimestamp": AT, "finalizers": ["x.io/y"]},
}
PROBLEM = {"type": "Proven", "status": "False", "reason": "PolicyMissing", "message": "Install it: …"}
APPLIED = approval("Applied", ready("True", "Applied", "Done"))
DELIVERED = approval("Delivered", ready("Unknown", "Delivered", "Sent"))
TRIED_AGAIN = approval("Pending", ready("False", "Pending", "Temporal is away"))


@pytest.mark.parametrize(
    ("found", "code", "message"),
    [
        pytest.param(APPLIED, 0, "Applied. Done", id="applied"),
        pytest.param(DELIVERED, 0, "Delivered. Sent", id="delivered"),
        pytest.param(approval("Expired", ready("False", "RunEnded", "Late")), 3, "Expired. Late", id="too late"),
        pytest.param(
            approval("Superseded", ready("False", "Superseded", "New")), 3, "Superseded. New", id="asked anew"
        ),
        pytest.param(
            approval("Pending", BORN, PROBLEM), 4, "Not delivered: PolicyMissing. Install it: …", id="unproven"
        ),
        pytest.param(
            approval("Pending", ready("False", "InvalidSpec", "Not its run")),
            4,
            "Not delivered: InvalidSpec. Not its run",
        ),
    ],
)
def test_outcome(found: dict[str, Any], code: int, message: str) -> None:
    came_to = outcome(found)
    assert came_to
    assert (came_to.code, came_to.message) == (code, message)


@pytest.mark.parametrize("found", [approval(), TRIED_AGAIN, {**approval(), "status": None}])
def test_nothing_yet(found: dict[str, Any]) -> None:
    assert outcome(found) is None


@dataclass
class Script:
    """Answers in order, the last one for ever; time passes by sleeping."""

    answers: list[dict[str, Any] | ClusterError]
    now: float = 0.0
    asked: int = field(default=0)

    def get(self, name: str) -> dict[str, Any]:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, ClusterError):
            raise answer
        return answer

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, seconds: float = 10.0) -> tuple[int, str, float]:
        came_to = wait(self, approval(), seconds, self.sleep, lambda: self.now)
        return came_to.code, came_to.message, self.now


GONE = ClusterError(404, "not found")
AWAY = ClusterError(0, "refused")


@pytest.mark.parametrize(
    ("answers", "code", "message", "after"),
    [
        pytest.param([APPLIED], 0, "Applied. Done", 0.0, id="at once"),
        pytest.param([approval(), DELIVERED, APPLIED], 0, "Applied. Done", 2 * LOOK_SECONDS, id="step by step"),
        pytest.param([DELIVERED], 0, "Delivered. Sent", DELIVERED_SECONDS, id="the tool takes long"),
        pytest.param([DELIVERED, GONE], 0, "Delivered. Sent", LOOK_SECONDS, id="the run ended, and was deleted"),
        pytest.param(
            [DELIVERED, approval("Expired", ready("False", "Expired", "Late"))],
            3,
            "Expired. Late",
            LOOK_SECONDS,
            id="late",
        ),
        pytest.param([AWAY, AWAY, APPLIED], 0, "Applied. Done", 2 * LOOK_SECONDS, id="the API server is away"),
        pytest.param([approval()], 4, "the operator has not looked at it", 10.0, id="no operator"),
        pytest.param(
            [KEPT], 4, "it is being deleted; its run asks anew once it is gone. Finalizers keep it: x.io/y", 10.0
        ),
        pytest.param([TRIED_AGAIN], 4, "within 10 s: Temporal is away", 10.0, id="no Temporal"),
        pytest.param([GONE], 4, "was deleted", 0.0, id="deleted"),
        pytest.param([approval(uid="2")], 4, "was deleted", 0.0, id="deleted and made anew"),
    ],
)
def test_waiting(answers: list[dict[str, Any] | ClusterError], code: int, message: str, after: float) -> None:
    found = Script(answers).wait()
    assert (found[0], found[2]) == (ExitCode(code), after)
    assert message in found[1]

"""What the bench says of its figures."""

from typing import Any

from bench.goals import judge

ENOUGH = {
    "waiting": 10_000,
    "operatorPeakMiB": 230,
    "decisionToCall": {"p95Ms": 5_000.0},
}


def verdicts(**results: Any) -> list[tuple[str, bool]]:
    return [(verdict.goal.what, verdict.is_met) for verdict in judge(results)]


def test_a_figure_at_its_bound_meets_the_goal() -> None:
    assert verdicts(approvals=ENOUGH) == [
        ("operator's MiB", True),
        ("ms from decision to approved call, p95", True),
    ]


def test_a_figure_beyond_its_bound_misses_it() -> None:
    assert ("operator's MiB", False) in verdicts(approvals={**ENOUGH, "operatorPeakMiB": 301})


def test_what_was_measured_with_fewer_objects_is_not_judged() -> None:
    assert verdicts(approvals={**ENOUGH, "waiting": 2_000, "operatorPeakMiB": 900}) == []


def test_a_bound_that_is_itself_measured() -> None:
    burst = {"runs": 200, "succeeded": 199, "historiesWithACancel": 0, "historiesWithOtherThanTwoActivities": 0}
    assert verdicts(burst=burst)[0] == ("runs that succeeded", False)
    assert verdicts(burst={**burst, "runs": 199})[0] == ("runs that succeeded", True)

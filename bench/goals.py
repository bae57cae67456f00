"""What the figures have to reach. A part that was measured with fewer objects than its goal speaks of is not judged."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Goal:
    """One bound of one figure."""

    part: str
    what: str
    figure: tuple[str, ...]
    """The path to it within its part's figures."""
    sign: Literal["≤", "≥"]
    bound: float | tuple[str, ...]
    """A number, or the path to a figure of the same part."""
    full_size: tuple[str, int] | None = None
    """The figure that says of how many objects it is, and how many the goal speaks of."""


class Verdict(NamedTuple):
    """A goal, beside what was measured."""

    goal: Goal
    figure: float
    bound: float
    is_met: bool


WAITING = ("waiting", 10_000)
EXCHANGES = ("runs", 1_000)
GOALS = (
    Goal("turns", "turns/s at 0 ms, of the bare loop's", ("0ms, 50 at once", "ratio"), "≥", 0.7),
    Goal("turns", "turns/s at 500 ms and 20 at once, of the ideal", ("500ms, 20 at once", "ofIdeal"), "≥", 0.85),
    Goal("throughput", "runs/s at 0 ms, of bare workflows'", ("0ms", "ratio"), "≥", 0.45),
    Goal("throughput", "operator's CPU, of the worker's", ("0ms", "operatorToWorkerCpu"), "≤", 0.6),
    Goal("throughput", "status writes per run", ("0ms", "agentRun", "apiWritesPerRun", "agentruns/status"), "≤", 2.1),
    Goal("alone", "one run at a time, p50, of a bare workflow's", ("ratioP50",), "≤", 4),
    *(
        Goal("history", f"bytes at {turns} turns", (f"{turns} turns", "bytes"), "≤", (f"{turns} turns", "allowedBytes"))
        for turns in (10, 40, 100)
    ),
    Goal("burst", "runs that succeeded", ("succeeded",), "≥", ("runs",)),
    Goal("burst", "histories with a cancel", ("historiesWithACancel",), "≤", 0),
    Goal("burst", "runs with more or fewer than two activities", ("historiesWithOtherThanTwoActivities",), "≤", 0),
    Goal("memory", "operator's MiB, started again", ("operatorRestartedMiB",), "≤", 300, ("finished", 10_000)),
    Goal("memory", "worker's MiB", ("workerMiB",), "≤", 400, ("live", 1_000)),
    Goal("approvals", "operator's MiB", ("operatorPeakMiB",), "≤", 300, WAITING),
    Goal("approvals", "ms from decision to approved call, p95", ("decisionToCall", "p95Ms"), "≤", 5_000, WAITING),
    Goal("session", "bytes of the largest execution", ("largestExecutionBytes",), "≤", 4 * 1024**2, EXCHANGES),
    Goal("session", "bytes of the status", ("largestStatusBytes",), "≤", 32 * 1024, EXCHANGES),
    Goal("session", "time of the last 100 runs, of those from 100 to 200", ("lateToEarly",), "≤", 1.2, EXCHANGES),
)


def judge(results: Mapping[str, Any]) -> Iterator[Verdict]:
    """Yield a verdict on each goal whose part was measured at its size."""
    for goal in GOALS:
        figures = results.get(goal.part)
        if figures is None or (goal.full_size and figures[goal.full_size[0]] < goal.full_size[1]):
            continue
        figure = _at(figures, goal.figure)
        bound = goal.bound if isinstance(goal.bound, (int, float)) else _at(figures, goal.bound)
        yield Verdict(goal, figure, bound, figure <= bound if goal.sign == "≤" else figure >= bound)


def show(verdicts: list[Verdict]) -> bool:
    """Print the verdicts; return whether all goals are met."""
    table = Table("part", "figure", "measured", "goal", "")
    for goal, figure, bound, is_met in verdicts:
        mark = "[green]met[/]" if is_met else "[bold red]missed[/]"
        table.add_row(goal.part, goal.what, f"{figure:,.10g}", f"{goal.sign} {bound:,.10g}", mark)
    Console().print(table)
    return all(verdict.is_met for verdict in verdicts)


def _at(figures: Mapping[str, Any], path: tuple[str, ...]) -> float:
    found: Any = figures
    for name in path:
        found = found[name]
    return float(found)

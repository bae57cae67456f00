"""Every status an AgentSchedule can have, each as a pure function of the object and what is known now."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from dalang_api.v1alpha1.conditions import ConditionType, Reason

from dalang_operator.kinds.agentschedule.desired import ScheduleView, is_suspended, pauses_on_failure
from dalang_operator.kinds.agentschedule.runs import firing_of
from dalang_operator.kube.resources import Json, key_of
from dalang_operator.kube.status import condition, find_condition, timestamp, with_conditions, without_condition

SETTLED_REASONS = frozenset({Reason.SCHEDULED, Reason.SUSPENDED, Reason.PAUSED_ON_FAILURE, Reason.QUOTA_EXCEEDED})
"""Reasons that say that Temporal has the schedule as the object says it."""
NEXT_MAX = 5
ACTIVE_MAX = 20
RECENT_MAX = 10


def settled_status(
    schedule: Json,
    view: ScheduleView,
    *,
    schedule_id: str,
    active: Iterable[Json],
    finished: Sequence[Json] | None,
    orders: Json,
    quota_problem: str | None,
    problem: str | None,
    now: datetime,
) -> Json:
    """Return the status of a schedule that Temporal has.

    Args:
        schedule: The AgentSchedule.
        view: What Temporal says of it.
        schedule_id: Its id there.
        active: Its unfinished runs.
        finished: Its finished runs, or None: what the status says of them stands.
        orders: Annotations' values that are carried out now.
        quota_problem: Why no further run is allowed for now.
        problem: What is wrong with an annotation.
        now: The time.
    """
    next_times = [] if view.is_paused else [time for time in view.next_times if time > now]
    return _without_empty(
        {
            **_with(schedule, _conditions(schedule, view, quota_problem, problem), now),
            **_runs(schedule, active, finished),
            **orders,
            "nextRuns": list(map(timestamp, next_times[:NEXT_MAX])),
            "temporal": {"id": schedule_id, "digest": view.digest},
        }
    )


def refused_status(
    schedule: Json, reason: Reason, words: str, active: Iterable[Json], finished: Sequence[Json] | None, now: datetime
) -> Json:
    """Return the status of a schedule that cannot be as it is, with the parser's words."""
    conditions = [
        condition(ConditionType.READY, "False", reason, words),
        condition(ConditionType.STALLED, "True", reason, words),
    ]
    return _without_empty({**_with(schedule, conditions, now), **_runs(schedule, active, finished), "nextRuns": []})


def failed_status(schedule: Json, words: str, now: datetime) -> Json:
    """Return the present status of a schedule that Temporal could not be told of."""
    message = f"The schedule cannot be written into Temporal and is tried again. {words}"
    return _with(schedule, [condition(ConditionType.READY, "False", Reason.SCHEDULE_FAILED, message)], now)


def _conditions(schedule: Json, view: ScheduleView, quota_problem: str | None, problem: str | None) -> list[Json]:
    more = f". {problem}" if problem else ""
    if is_suspended(schedule):
        return [condition(ConditionType.READY, "True", Reason.SUSPENDED, f"spec.suspend is set{more}")]
    if pauses_on_failure(schedule) and view.is_paused_on_failure:
        message = f"{view.notes[:1].upper()}{view.notes[1:].rstrip('.')}. It goes on when its spec is changed{more}"
        return [
            condition(ConditionType.READY, "False", Reason.PAUSED_ON_FAILURE, message),
            condition(ConditionType.STALLED, "True", Reason.PAUSED_ON_FAILURE, message),
        ]
    if quota_problem:
        message = f"Runs that are due are created when the quota allows it. {quota_problem}{more}"
        return [condition(ConditionType.READY, "False", Reason.QUOTA_EXCEEDED, message)]
    said = "status.nextRuns has the next times" if view.next_times else "There are no more times"
    return [condition(ConditionType.READY, "True", Reason.SCHEDULED, f"{said}{more}")]


def _with(schedule: Json, conditions: list[Json], now: datetime) -> Json:
    """Return the present status with other conditions; `Stalled` is there only where it is among them."""
    before: Json = schedule.get("status", {})
    generation = schedule["metadata"]["generation"]
    kept = without_condition(before.get("conditions", []), ConditionType.STALLED)
    if any(each["type"] == ConditionType.STALLED for each in conditions):
        kept = before.get("conditions", [])  # so that its time stands
    return {
        **before,
        "observedGeneration": generation,
        "conditions": with_conditions(kept, conditions, generation, now),
    }


def _runs(schedule: Json, active: Iterable[Json], finished: Sequence[Json] | None) -> Json:
    before: Json = schedule.get("status", {})
    now_active = sorted(map(_run, active), key=_by_time)
    recent = {run["name"]: run for run in before.get("recentRuns", ())}
    recent |= {key_of(run).name: _recent(run) for run in finished or ()}
    known = [*now_active, *recent.values(), *([before["lastRun"]] if "lastRun" in before else [])]
    runs: Json = {
        "activeRuns": now_active[-ACTIVE_MAX:],
        "recentRuns": sorted(recent.values(), key=lambda run: (run.get("finishedAt", ""), run["name"]), reverse=True)[
            :RECENT_MAX
        ],
    }
    if known:
        last = max(known, key=_by_time)
        runs["lastRun"] = {name: last[name] for name in ("name", "scheduledAt") if name in last}
    return runs


def _without_empty(status: Json) -> Json:
    return {name: value for name, value in status.items() if value != []}


def _run(run: Json) -> Json:
    found = firing_of(run)
    return {"name": key_of(run).name, **({"scheduledAt": timestamp(found[1].scheduled_at)} if found else {})}


def _recent(run: Json) -> Json:
    status = run["status"]
    succeeded = find_condition(run, ConditionType.SUCCEEDED)
    reason = {"reason": succeeded["reason"]} if succeeded else {}
    return {**_run(run), "phase": status["phase"], **reason, "finishedAt": status["finishedAt"]}


def _by_time(run: Json) -> tuple[str, str]:
    return run.get("scheduledAt", ""), run["name"]

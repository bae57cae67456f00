"""What to do about one AgentSchedule. Pure: no clock, no calls; everything known stands in `Observed`.

the object               Temporal's schedule         the plan
A  gone, another uid     perhaps                     remove it, and end its firings
B  new or changed        any                         create or update it; then plan anew with what there is
C  template refused      any                         pause it, say why
D  times refused         any                         likewise, with Temporal's words
E  as Temporal has it    as it was written           orders of annotations, old runs, status
   as Temporal has it    as it was written           an order that is new: note it; then plan anew
F  as Temporal has it    changed there by hand       put it back, with an Event
G  as Temporal has it    deleted there by hand       create it again, with an Event
   as Temporal has it    as it was written           where a ResourceQuota is full: also say so, and look again
H  `pauseOnFailure`      paused by a run's failure   say so; it goes on when the spec changes (B)
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from dalang_api.contract import schedule_id
from dalang_api.v1alpha1.agentschedule import PolicyName
from dalang_api.v1alpha1.conditions import ConditionType, Phase, Reason

from dalang_operator.kinds.actions import WriteStatus
from dalang_operator.kinds.agentschedule.desired import (
    DesiredSchedule,
    ScheduleView,
    is_suspended,
    make_schedule,
    pauses_on_failure,
    policy_of,
)
from dalang_operator.kinds.agentschedule.orders import Order, OrderName, carried_out, orders_of
from dalang_operator.kinds.agentschedule.runs import firing_of
from dalang_operator.kinds.agentschedule.status import SETTLED_REASONS, refused_status, settled_status
from dalang_operator.kube.resources import Json, ObjectKey, key_of, uid_of
from dalang_operator.kube.status import find_condition, parse_timestamp

TRIGGER = "dalang.dev/trigger"
"""Annotation: each new value creates a run now."""
BACKFILL = "dalang.dev/backfill"
"""Annotation: `<from>/<to>`; each new value creates the runs of the times between."""
BACKFILL_MAX = 100
"""The most runs that one backfill creates: each costs money, and a wrong year is written quickly."""
RUNS_KEPT = 3
"""Of those that succeeded, and of those that did not, where the schedule does not say."""
RECORDED_MAX = 253
SOON_SECONDS = 2.0
"""When what is about to happen is looked at again."""
QUOTA_SECONDS = 30.0
"""When a full ResourceQuota is looked at again; firings try by themselves."""
HELD_SECONDS = 10.0
"""When runs that a backfill may come to yet are looked at again."""
BACKFILL_STARTS = timedelta(minutes=1)
"""Within which Temporal starts what a backfill with `Allow` asks for: ten in a second, none of which it counts as waiting."""
AFTER_TIME = timedelta(seconds=1)
"""How long after the next time the status is brought up to date."""
TRIGGER_REACH = timedelta(minutes=1)
"""How far back a second is looked for that no other run has."""
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class Observed:
    """All that is known about one AgentSchedule."""

    key: ObjectKey
    installation: str
    now: datetime
    schedule: Json | None
    """The object; None when it is gone."""
    gone: frozenset[str] = frozenset()
    """Uids of this name that left the watch, or whose schedule in Temporal has no object."""
    active: tuple[Json, ...] = ()
    """Its unfinished runs."""
    finished: tuple[Json, ...] | None = None
    """Its finished runs; None where they were not listed, since none has ended since the last time."""
    firing: frozenset[str] = frozenset()
    """Names of finished runs whose firing has not been told, as far as they are about to be deleted."""
    template_problem: str | None = None
    """Why the API server refuses a run of the template."""
    quota_problem: str | None = None
    """Why no further run is allowed for now."""
    schedule_problem: str | None = None
    """Why Temporal refuses the times."""
    view: ScheduleView | None = None
    """What Temporal has; None: nothing."""
    is_applied: bool = False
    """`view` is from after this reconcile's own write."""


@dataclass(frozen=True)
class RemoveSchedule:
    """Delete the schedule in Temporal and end its firings; harmless when there is none."""

    id: str


@dataclass(frozen=True)
class ApplySchedule:
    """Create the schedule in Temporal, or update the one of that token. Afterwards plan again with what there is."""

    desired: DesiredSchedule
    token: bytes | None
    """None: create it."""


@dataclass(frozen=True)
class PauseSchedule:
    """Let the schedule in Temporal rest; repeated it changes nothing."""

    id: str
    note: str


@dataclass(frozen=True)
class NoteTrigger:
    """Choose the time of a triggered run and write it into the status. Afterwards plan again with what that says."""

    value: str


@dataclass(frozen=True)
class NoteBackfill:
    """Write the times of a backfill into the status, if they are not too many; likewise."""

    value: str
    begin: datetime
    end: datetime


@dataclass(frozen=True)
class TriggerRun:
    """Fire in the name of that time, whatever runs; Temporal takes a request of the same id once, as long as it knows."""

    id: str
    scheduled_at: datetime
    request_id: str


@dataclass(frozen=True)
class BackfillRuns:
    """Fire for the times from `begin` to `end`, both included; likewise once."""

    id: str
    begin: datetime
    end: datetime
    policy: PolicyName
    request_id: str


@dataclass(frozen=True)
class DeleteRun:
    """Delete a finished run, if it is still the one observed."""

    name: str
    uid: str
    resource_version: str


@dataclass(frozen=True)
class TellEvent:
    """Tell what `kubectl describe` shows; one of that name is told once."""

    name: str
    kind: Literal["Normal", "Warning"]
    reason: Reason
    note: str


Note = NoteTrigger | NoteBackfill
Action = (
    RemoveSchedule
    | ApplySchedule
    | PauseSchedule
    | Note
    | TriggerRun
    | BackfillRuns
    | DeleteRun
    | TellEvent
    | WriteStatus
)


@dataclass(frozen=True)
class Plan:
    """Actions in order, and when to look again."""

    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
    lists_again: bool = False
    """Whether the finished runs are to be listed then, though none ends: some are kept only for now."""


@dataclass(frozen=True)
class Orders:
    """What is to be carried out of what the annotations ask for."""

    actions: tuple[Action, ...] = ()
    recorded: Json = field(default_factory=dict)
    """For the status, so that it is not done again."""
    is_more_asked: bool = False
    """Whether an annotation has another value by now than the one that is carried out."""


def plan(observed: Observed) -> Plan:
    """Return what to do."""
    schedule = observed.schedule
    present = None if schedule is None or schedule["metadata"].get("deletionTimestamp") else schedule
    gone = set(observed.gone) - ({uid_of(present)} if present else set())
    if schedule is not None and present is None:
        gone.add(uid_of(schedule))
    removals = tuple(RemoveSchedule(schedule_id(observed.installation, *observed.key, uid)) for uid in sorted(gone))
    if present is None:
        return Plan(removals)
    rest = _plan_present(observed, present)
    return replace(rest, actions=removals + rest.actions)


def is_settled(schedule: Json) -> bool:
    """Return whether the status says that Temporal has the schedule as the spec is now."""
    ready = find_condition(schedule, ConditionType.READY)
    observed_generation = schedule.get("status", {}).get("observedGeneration")
    is_known = observed_generation == schedule["metadata"]["generation"]
    return is_known and ready is not None and ready["reason"] in SETTLED_REASONS


def waits_for_quota(schedule: Json) -> bool:
    """Return whether the status says that a ResourceQuota allows no further run."""
    ready = find_condition(schedule, ConditionType.READY)
    return ready is not None and ready["reason"] == Reason.QUOTA_EXCEEDED


def _plan_present(observed: Observed, schedule: Json) -> Plan:
    if observed.template_problem is not None:
        return _plan_refused(observed, schedule, Reason.INVALID_TEMPLATE, observed.template_problem)
    if observed.schedule_problem is not None:
        return _plan_refused(observed, schedule, Reason.INVALID_SCHEDULE, observed.schedule_problem)
    view = observed.view
    if view is None:
        event = (_restored(schedule),) if is_settled(schedule) else ()
        return Plan((*event, ApplySchedule(make_schedule(schedule, observed.installation), None)))
    if not observed.is_applied and (not is_settled(schedule) or _has_drifted(schedule, view)):
        event = (_corrected(schedule),) if is_settled(schedule) else ()
        return Plan((*event, ApplySchedule(make_schedule(schedule, observed.installation), view.token)))
    return _plan_settled(observed, schedule, view)


def _plan_refused(observed: Observed, schedule: Json, reason: Reason, words: str) -> Plan:
    """C, D. What Temporal has from before must not go on: it is not what the object says."""
    status = refused_status(schedule, reason, words, observed.active, observed.finished, observed.now)
    pause: tuple[Action, ...] = ()
    if observed.view is not None and not observed.view.is_paused:
        pause = (PauseSchedule(_id(observed, schedule), f"the AgentSchedule is not valid: {words}"),)
    return Plan((*pause, WriteStatus(status)))


def _plan_settled(observed: Observed, schedule: Json, view: ScheduleView) -> Plan:
    note = _new_order(observed, schedule)
    if note is not None:
        return Plan((note,))
    orders = _orders(observed, schedule)
    surplus = surplus_runs(schedule, observed.finished or ())
    old = without_held(schedule, surplus, view, observed.now)
    deletions = tuple(
        DeleteRun(key_of(run).name, uid_of(run), run["metadata"]["resourceVersion"])
        for run in old
        if key_of(run).name not in observed.firing
    )
    status = settled_status(
        schedule,
        view,
        schedule_id=_id(observed, schedule),
        active=observed.active,
        finished=observed.finished,
        orders=orders.recorded,
        quota_problem=observed.quota_problem,
        problem=backfill_problem(schedule["metadata"].get("annotations", {}).get(BACKFILL, "")),
        now=observed.now,
    )
    is_held = len(old) < len(surplus)
    requeue_after = SOON_SECONDS if orders.is_more_asked else _requeue_after(observed, status, is_held)
    return Plan((*orders.actions, *deletions, WriteStatus(status)), requeue_after, is_held)


def _requeue_after(observed: Observed, status: Json, is_held: bool) -> float | None:
    if observed.firing:
        return SOON_SECONDS
    again = [QUOTA_SECONDS] if observed.quota_problem else []
    if is_held:
        again.append(HELD_SECONDS)
    if status.get("nextRuns"):
        left = parse_timestamp(status["nextRuns"][0]) + AFTER_TIME - observed.now
        again.append(max(left.total_seconds(), SOON_SECONDS))
    return min(again, default=None)


# ── Changes made in Temporal ───────────────────────────────────────────────────────────────────────────────────────


def _has_drifted(schedule: Json, view: ScheduleView) -> bool:
    """F. Whether somebody has changed it; a pause is nobody's where a run's failure explains it."""
    if view.digest != schedule["status"].get("temporal", {}).get("digest"):
        return True
    if pauses_on_failure(schedule) and view.is_paused_on_failure:
        return False
    return view.is_paused != is_suspended(schedule)


def _corrected(schedule: Json) -> TellEvent:
    note = "The schedule was changed in Temporal; it is put back to what the AgentSchedule says"
    return TellEvent(_event_name(schedule, "drift"), "Warning", Reason.DRIFT_CORRECTED, note)


def _restored(schedule: Json) -> TellEvent:
    note = "The schedule was deleted in Temporal; it is created again. Times that passed meanwhile have no runs"
    return TellEvent(_event_name(schedule, "restored"), "Warning", Reason.DRIFT_CORRECTED, note)


def _event_name(schedule: Json, what: str) -> str:
    metadata = schedule["metadata"]
    return f"{metadata['name']}.{what}.{uid_of(schedule)[:8]}.{metadata['resourceVersion']}"


# ── Orders by annotation ───────────────────────────────────────────────────────────────────────────────────────────


def _new_order(observed: Observed, schedule: Json) -> Note | None:
    """Return an order that is to be written down before anything is done about it, or None."""
    if value := _asked(schedule, "trigger"):
        return NoteTrigger(recorded_value(value))
    value = _asked(schedule, "backfill")
    if value is None or _refusal(observed, value):
        return None
    return NoteBackfill(recorded_value(value), *_period(value))


def _asked(schedule: Json, name: OrderName) -> str | None:
    """Return an annotation's value that is neither carried out nor to wait for an earlier one; an empty one asks nothing."""
    value = _annotation(schedule, name)
    is_begun = any(order.name == name and order.is_pending for order in orders_of(schedule))
    return None if not value or is_begun or _is_carried_out(schedule, name, value) else value


def _annotation(schedule: Json, name: OrderName) -> str:
    value: str = schedule["metadata"].get("annotations", {}).get({"trigger": TRIGGER, "backfill": BACKFILL}[name], "")
    return value


def _is_carried_out(schedule: Json, name: OrderName, value: str) -> bool:
    return bool(recorded_value(value) == schedule.get("status", {}).get(name))


def _orders(observed: Observed, schedule: Json) -> Orders:
    pending = [order for order in orders_of(schedule) if order.is_pending]
    actions = [_carry_out(observed, schedule, order) for order in pending]
    recorded = carried_out(schedule)
    value = _asked(schedule, "backfill")
    problem = _refusal(observed, value) if value else None
    if value and problem:
        actions.append(refused_backfill(schedule, value, problem))
        recorded["backfill"] = recorded_value(value)
    is_more_asked = any(_annotation(schedule, each.name) not in {"", each.value} for each in pending)
    return Orders(tuple(actions), recorded, is_more_asked)


def _carry_out(observed: Observed, schedule: Json, order: Order) -> Action:
    id_, request_id = _id(observed, schedule), _request_id(schedule, order.name, order.value, _times(order))
    if order.name == "trigger":
        return TriggerRun(id_, order.begin, request_id)
    # Forbid would create one run of them all: so they are created one after another, whatever the policy else.
    policy: PolicyName = "Allow" if policy_of(schedule) == "Allow" else "QueueAll"
    return BackfillRuns(id_, order.begin, order.end, policy, request_id)


def _times(order: Order) -> str:
    return "/".join(each.isoformat() for each in (order.ordered_at, order.begin, order.end))


def _refusal(observed: Observed, value: str) -> str | None:
    """Return why a backfill is refused before its times are counted, or None."""
    if problem := backfill_problem(value):
        return problem
    if _period(value)[1] > observed.now:
        return f"Annotation {BACKFILL}: the second time has not come yet; a backfill is for times that have passed"
    return None


def refused_backfill(schedule: Json, value: str, problem: str) -> TellEvent:
    """Return the Event that tells why the times of a backfill are not carried out."""
    name = f"{schedule['metadata']['name']}.backfill.{_request_id(schedule, BACKFILL, value)[:16]}"
    return TellEvent(name, "Warning", Reason.BACKFILL_REFUSED, problem)


def backfill_problem(value: str) -> str | None:
    """Return what is wrong with a backfill's annotation, or None; an empty one asks for nothing."""
    if not value:
        return None
    try:
        begin, end = _period(value)
    except ValueError:
        return f"Annotation {BACKFILL} is {value[:128]!r}; write two times such as 2027-01-31T09:00:00Z, with / between them"
    return None if begin <= end else f"Annotation {BACKFILL}: the second time is before the first"


def wrong_count(count: int) -> str | None:
    """Return why so many times are not backfilled, or None."""
    if count == 0:
        return f"Annotation {BACKFILL}: the schedule has no time in this period"
    if count > BACKFILL_MAX:
        return f"Annotation {BACKFILL}: more than {BACKFILL_MAX} times are in this period; shorten it"
    return None


def _period(value: str) -> tuple[datetime, datetime]:
    begin, end = (parse_timestamp(part.strip()) for part in value.split("/"))
    if begin.tzinfo is None or end.tzinfo is None:
        raise ValueError("no time zone")
    is_whole = begin.microsecond == 0
    begin = begin if is_whole else begin.replace(microsecond=0) + _SECOND  # times are whole seconds
    return begin.astimezone(UTC), end.astimezone(UTC).replace(microsecond=0)


def recorded_value(value: str) -> str:
    """Return an annotation's value as the status keeps it: itself, or a digest where it is too long for that."""
    if len(value) <= RECORDED_MAX:
        return value
    return f"sha256:{hashlib.sha256(value.encode()).hexdigest()}"


def _request_id(schedule: Json, *parts: str) -> str:
    return hashlib.sha256("\0".join((uid_of(schedule), *parts)).encode()).hexdigest()


def seconds_for_a_run(observed: Observed, schedule: Json, times: set[datetime]) -> Iterator[datetime]:
    """Yield full seconds that a triggered run may be named by, without end: two runs of one second would have one name.

    Args:
        observed: Knows the runs there are.
        schedule: Knows the orders of before.
        times: Of the schedule, within the last `TRIGGER_REACH`.
    """
    found = map(firing_of, (*observed.active, *(observed.finished or ())))
    triggers = [order.begin for order in orders_of(schedule) if order.name == "trigger"]
    taken = times | set(triggers) | {each[1].scheduled_at for each in found if each is not None}
    last = observed.now.replace(microsecond=0) - _SECOND
    recent = (last - number * _SECOND for number in range(TRIGGER_REACH // _SECOND - 1))
    yield from (second for second in recent if second not in taken)
    # It has a time in each second: only before it was made there are some without a run.
    second = min(parse_timestamp(schedule["metadata"]["creationTimestamp"]), last, *triggers)
    while True:
        second -= _SECOND
        yield second


# ── Old runs ───────────────────────────────────────────────────────────────────────────────────────────────────────


def surplus_runs(schedule: Json, finished: tuple[Json, ...]) -> tuple[Json, ...]:
    """Return the finished runs beyond those that are kept, the oldest first."""
    kept: Json = schedule["spec"].get("runHistory", {})
    newest_first = sorted(finished, key=lambda run: (run["status"]["finishedAt"], key_of(run).name), reverse=True)
    succeeded = [run for run in newest_first if run["status"]["phase"] == Phase.SUCCEEDED]
    failed = [run for run in newest_first if run["status"]["phase"] != Phase.SUCCEEDED]
    surplus = succeeded[kept.get("succeeded", RUNS_KEPT) :] + failed[kept.get("failed", RUNS_KEPT) :]
    return tuple(run for run in reversed(newest_first) if run in surplus)


def without_held(schedule: Json, runs: tuple[Json, ...], view: ScheduleView | None, now: datetime) -> tuple[Json, ...]:
    """Return those of the finished runs whose time no backfill comes to any more.

    One that is deleted before would be created a second time. A backfill is over when nothing waits in Temporal: by then
    each of its times has a firing, and a run is not deleted while that is open.
    """
    is_waiting = view is not None and view.buffered > 0
    periods = [
        (order.begin, order.end)
        for order in orders_of(schedule)
        if order.name == "backfill" and (is_waiting or order.is_pending or now - order.ordered_at < BACKFILL_STARTS)
    ]

    def is_held(run: Json) -> bool:
        found = firing_of(run)
        return found is not None and any(begin <= found[1].scheduled_at <= end for begin, end in periods)

    return tuple(run for run in runs if not is_held(run))


def _id(observed: Observed, schedule: Json) -> str:
    return schedule_id(observed.installation, *observed.key, uid_of(schedule))

"""What is done about a schedule, by what is known of it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest
from dalang_api.contract import scheduled_run_name
from dalang_api.v1alpha1.agentschedule import AgentScheduleStatus
from dalang_operator.kinds.actions import WriteStatus
from dalang_operator.kinds.agentschedule.desired import ScheduleView, make_schedule
from dalang_operator.kinds.agentschedule.plan import (
    Action,
    ApplySchedule,
    BackfillRuns,
    DeleteRun,
    NoteBackfill,
    NoteTrigger,
    Observed,
    PauseSchedule,
    Plan,
    RemoveSchedule,
    TellEvent,
    TriggerRun,
    plan,
    recorded_value,
    seconds_for_a_run,
    surplus_runs,
    wrong_count,
)
from dalang_operator.kinds.agentschedule.status import failed_status
from dalang_operator.kube.resources import Json, ObjectKey, key_of
from dalang_operator.kube.status import find_condition

from tests.build import INSTALLATION, NOW, at, finished_run, schedule, started_run

KEY = ObjectKey("shop", "nightly")
ID = f"{INSTALLATION}.shop.nightly.uid-nightly"
OWNER = {"kind": "AgentSchedule", "name": "nightly", "uid": "uid-nightly", "controller": True}
NEXT = tuple(NOW + timedelta(days=day, hours=1) for day in range(7))
VIEW = ScheduleView("sha256:1", b"token", next_times=NEXT)


def ready(reason: str, status: str = "True") -> Json:
    return {
        "type": "Ready",
        "status": status,
        "reason": reason,
        "message": "",
        "lastTransitionTime": at(),
        "observedGeneration": 1,
    }


def known(reason: str = "Scheduled", status: str = "True", **more: Any) -> Json:
    """The status of a schedule that Temporal has."""
    return {
        "observedGeneration": 1,
        "conditions": [ready(reason, status)],
        "temporal": {"id": ID, "digest": "sha256:1"},
        **more,
    }


def observed(obj: Json | None, **more: Any) -> Observed:
    return Observed(KEY, INSTALLATION, NOW, obj, **more)


def name_at(time: datetime) -> str:
    return scheduled_run_name("nightly", "uid-nightly", time)


def active_run(time: datetime) -> Json:
    return started_run(name_at(time), metadata={"ownerReferences": [OWNER]})


def ended_run(time: datetime, phase: str = "Succeeded", reason: str = "Answered") -> Json:
    run = finished_run(name_at(time), ago=NOW - time - timedelta(minutes=1), metadata={"ownerReferences": [OWNER]})
    run["status"]["phase"] = phase
    run["status"]["conditions"] = [{**ready(reason), "type": "Succeeded"}]
    return run


def kinds(found: Plan) -> list[str]:
    """What a plan does, in words; the status by its reason."""

    def word(action: Action) -> str:
        if isinstance(action, WriteStatus):
            AgentScheduleStatus.model_validate(action.status)
            [is_ready] = [each for each in action.status["conditions"] if each["type"] == "Ready"]
            return f"WriteStatus {is_ready['status']} {is_ready['reason']}"
        if isinstance(action, ApplySchedule):
            return "Create" if action.token is None else "Update"
        if isinstance(action, TellEvent):
            return f"TellEvent {action.reason}"
        return type(action).__name__

    return list(map(word, found.actions))


ORDERED = {"annotations": {"dalang.dev/trigger": "a", "dalang.dev/backfill": f"{at(-timedelta(hours=2))}/{at()}"}}
TRIGGERED = {"type": "Trigger", "value": "a", "orderedAt": at(), "begin": at(-timedelta(seconds=1)), "end": at()}
FILLED = {
    "type": "Backfill",
    "value": ORDERED["annotations"]["dalang.dev/backfill"],
    "orderedAt": at(),
    "begin": at(-timedelta(hours=2)),
    "end": at(),
}


def pending(*orders: Json) -> Json:
    return {"orders": [{**order, "pending": True} for order in orders]}


FAILED_NOTE = "paused since AgentRun x ended as Failed: no"


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(observed(schedule()), ["Create"], id="B: a new one is created"),
        pytest.param(
            observed(schedule(), view=VIEW), ["Update"], id="B: one that was created, and nobody noted it, is written"
        ),
        pytest.param(
            observed(schedule(), view=VIEW, is_applied=True),
            ["WriteStatus True Scheduled"],
            id="B: after that its status",
        ),
        pytest.param(
            observed(schedule(status=known(), metadata={"generation": 2}), view=VIEW),
            ["Update"],
            id="B: a change is written",
        ),
        pytest.param(
            observed(schedule(), template_problem="no"),
            ["WriteStatus False InvalidTemplate"],
            id="C: a template that is none is not scheduled",
        ),
        pytest.param(
            observed(schedule(status=known()), template_problem="no", view=VIEW),
            ["PauseSchedule", "WriteStatus False InvalidTemplate"],
            id="C: and what Temporal has from before rests",
        ),
        pytest.param(
            observed(schedule(), schedule_problem="no", view=replace(VIEW, is_paused=True)),
            ["WriteStatus False InvalidSchedule"],
            id="D: likewise, resting already",
        ),
        pytest.param(
            observed(schedule(status=known("InvalidSchedule", "False")), view=VIEW),
            ["Update"],
            id="D: it is tried again",
        ),
        pytest.param(
            observed(schedule(status=known()), view=VIEW),
            ["WriteStatus True Scheduled"],
            id="E: nothing but the status",
        ),
        pytest.param(
            observed(schedule(status=known(), metadata=ORDERED), view=VIEW),
            ["NoteTrigger"],
            id="E: an order is noted before anything is done about it",
        ),
        pytest.param(
            observed(schedule(status=known(**pending(TRIGGERED)), metadata=ORDERED), view=VIEW),
            ["NoteBackfill"],
            id="E: each of them",
        ),
        pytest.param(
            observed(schedule(status=known(**pending(TRIGGERED, FILLED)), metadata=ORDERED), view=VIEW),
            ["TriggerRun", "BackfillRuns", "WriteStatus True Scheduled"],
            id="E: orders come before the status that says they are carried out",
        ),
        pytest.param(
            observed(schedule(status=known(**pending(TRIGGERED))), view=VIEW),
            ["TriggerRun", "WriteStatus True Scheduled"],
            id="E: one that was begun is ended though its annotation is gone",
        ),
        pytest.param(
            observed(
                schedule(
                    status=known(trigger="a", backfill=ORDERED["annotations"]["dalang.dev/backfill"]), metadata=ORDERED
                ),
                view=VIEW,
            ),
            ["WriteStatus True Scheduled"],
            id="E: orders that were noted are not carried out again",
        ),
        pytest.param(
            observed(schedule(metadata=ORDERED), view=VIEW),
            ["Update"],
            id="B: orders wait until Temporal has the schedule as it is",
        ),
        pytest.param(
            observed(schedule(status=known(), metadata={"annotations": {"dalang.dev/backfill": "soon"}}), view=VIEW),
            ["TellEvent BackfillRefused", "WriteStatus True Scheduled"],
            id="E: an order that cannot be read is told",
        ),
        pytest.param(
            observed(schedule(status=known(), suspend=True), view=replace(VIEW, is_paused=True)),
            ["WriteStatus True Suspended"],
            id="E: suspended",
        ),
        pytest.param(
            observed(schedule(), quota_problem="full"), ["Create"], id="B: a full quota keeps no schedule from Temporal"
        ),
        pytest.param(
            observed(schedule(status=known()), quota_problem="full", view=VIEW),
            ["WriteStatus False QuotaExceeded"],
            id="E: it is said",
        ),
        pytest.param(
            observed(schedule(status=known("QuotaExceeded", "False")), view=VIEW),
            ["WriteStatus True Scheduled"],
            id="E: until there is room",
        ),
        pytest.param(
            observed(
                schedule(status=known("QuotaExceeded", "False"), pauseOnFailure=True),
                quota_problem="full",
                view=replace(VIEW, is_paused=True, notes=FAILED_NOTE),
            ),
            ["WriteStatus False PausedOnFailure"],
            id="H: whatever the quota says",
        ),
        pytest.param(
            observed(schedule(status=known()), view=replace(VIEW, digest="sha256:2")),
            ["TellEvent DriftCorrected", "Update"],
            id="F: other times",
        ),
        pytest.param(
            observed(schedule(status=known()), view=replace(VIEW, is_paused=True, notes="by hand")),
            ["TellEvent DriftCorrected", "Update"],
            id="F: paused by hand",
        ),
        pytest.param(
            observed(schedule(status=known(), suspend=True), view=VIEW),
            ["TellEvent DriftCorrected", "Update"],
            id="F: unpaused by hand",
        ),
        pytest.param(
            observed(schedule(status=known())), ["TellEvent DriftCorrected", "Create"], id="G: deleted by hand"
        ),
        pytest.param(
            observed(
                schedule(status=known(), pauseOnFailure=True), view=replace(VIEW, is_paused=True, notes=FAILED_NOTE)
            ),
            ["WriteStatus False PausedOnFailure"],
            id="H: a run has failed",
        ),
        pytest.param(
            observed(
                schedule(status=known(), pauseOnFailure=True),
                view=replace(VIEW, is_paused=True, notes="paused due to workflow failure: x: no"),
            ),
            ["WriteStatus False PausedOnFailure"],
            id="H: in Temporal's own words",
        ),
        pytest.param(
            observed(schedule(status=known()), view=replace(VIEW, is_paused=True, notes=FAILED_NOTE)),
            ["TellEvent DriftCorrected", "Update"],
            id="F: paused in the words of a failure, though that is not asked for",
        ),
        pytest.param(
            observed(
                schedule(status=known("PausedOnFailure", "False"), pauseOnFailure=True, metadata={"generation": 2}),
                view=replace(VIEW, is_paused=True, notes=FAILED_NOTE),
            ),
            ["Update"],
            id="H: a change of the spec goes on with it",
        ),
        pytest.param(
            observed(schedule(status=known("PausedOnFailure", "False"), pauseOnFailure=True), view=VIEW),
            ["WriteStatus True Scheduled"],
            id="H: unpaused by hand it goes on, too",
        ),
        pytest.param(observed(None, gone=frozenset({"old"})), ["RemoveSchedule"], id="A: deleted"),
        pytest.param(
            observed(schedule(status=known()), gone=frozenset({"old", "uid-nightly"}), view=VIEW),
            ["RemoveSchedule", "WriteStatus True Scheduled"],
            id="A: made anew; the one that is there is not removed",
        ),
        pytest.param(
            observed(schedule(metadata={"deletionTimestamp": at()})), ["RemoveSchedule"], id="A: about to be deleted"
        ),
    ],
)
def test_plan(seen: Observed, expected: list[str]) -> None:
    assert kinds(plan(seen)) == expected
    assert plan(seen) == plan(seen)


def test_what_is_removed_is_named_by_the_uid_that_is_gone() -> None:
    assert plan(observed(None, gone=frozenset({"a", "b"}))).actions == (
        RemoveSchedule(f"{INSTALLATION}.shop.nightly.a"),
        RemoveSchedule(f"{INSTALLATION}.shop.nightly.b"),
    )


def test_a_paused_schedule_says_why_in_temporal() -> None:
    seen = observed(schedule(status=known()), template_problem="spec.input: Too long", view=VIEW)
    assert plan(seen).actions[0] == PauseSchedule(ID, "the AgentSchedule is not valid: spec.input: Too long")


def test_orders_carry_a_request_id_of_uid_value_and_time() -> None:
    def orders(uid: str, value: str, begin: str) -> list[Action]:
        status = known(**pending({**TRIGGERED, "value": value, "begin": begin}))
        obj = schedule(status=status, metadata={"uid": uid})
        return [action for action in plan(observed(obj, view=VIEW)).actions if isinstance(action, TriggerRun)]

    second, other = at(), at(timedelta(seconds=1))
    assert orders("u", "a", second) == orders("u", "a", second)
    found = {str(orders(uid, value, begin)) for uid in "uv" for value in "ab" for begin in (second, other)}
    assert len(found) == 8


def test_the_status_says_carried_out_of_what_is_carried_out() -> None:
    obj = schedule(
        status=known(trigger="old", **pending(TRIGGERED)), metadata={"annotations": {"dalang.dev/trigger": "b"}}
    )
    found = plan(observed(obj, view=VIEW))
    status = status_of(observed(obj, view=VIEW))
    assert (status["trigger"], status["orders"]) == ("a", [TRIGGERED])
    assert found.requeue_after == 2, "the value of by now is next"
    assert plan(observed({**obj, "status": status}, view=VIEW)).actions == (NoteTrigger("b"),)


def test_a_backfill_is_noted_with_whole_seconds_in_utc() -> None:
    value = "2026-11-19T10:00:00.5+01:00/2026-11-19T11:00:00.5+01:00"
    obj = schedule(status=known(), metadata={"annotations": {"dalang.dev/backfill": value}})
    begin, end = datetime(2026, 11, 19, 9, 0, 1, tzinfo=UTC), datetime(2026, 11, 19, 10, tzinfo=UTC)
    assert plan(observed(obj, view=VIEW)).actions == (NoteBackfill(value, begin, end),)


@pytest.mark.parametrize(("policy", "expected"), [("Forbid", "QueueAll"), ("Allow", "Allow"), ("Replace", "QueueAll")])
def test_a_backfill_creates_all_of_its_runs(policy: str, expected: str) -> None:
    obj = schedule(status=known(**pending(FILLED)), concurrencyPolicy=policy)
    [backfill] = [each for each in plan(observed(obj, view=VIEW)).actions if isinstance(each, BackfillRuns)]
    assert (backfill.policy, backfill.begin, backfill.end) == (expected, NOW - timedelta(hours=2), NOW)


def test_a_backfill_of_times_to_come_is_refused() -> None:
    value = f"{at(-timedelta(hours=2))}/{at(timedelta(seconds=1))}"
    obj = schedule(status=known(), metadata={"annotations": {"dalang.dev/backfill": value}})
    event, write = plan(observed(obj, view=VIEW)).actions
    assert isinstance(event, TellEvent)
    assert isinstance(write, WriteStatus)
    assert "has not come yet" in event.note
    assert write.status["backfill"] == value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("yesterday", "write two times such as"),
        ("2026-11-20/2026-11-21", "write two times such as"),
        ("2026-11-20T00:00:00/2026-11-21T00:00:00", "write two times such as"),
        ("2026-11-20T00:00:00Z/2026-11-21T00:00:00Z/2026-11-22T00:00:00Z", "write two times such as"),
        ("2026-11-22T00:00:00Z/2026-11-21T00:00:00Z", "the second time is before the first"),
    ],
)
def test_a_backfill_that_makes_no_sense_is_said_in_the_status_and_noted(value: str, words: str) -> None:
    obj = schedule(status=known(), metadata={"annotations": {"dalang.dev/backfill": value}})
    event, write = plan(observed(obj, view=VIEW)).actions
    assert isinstance(event, TellEvent)
    assert isinstance(write, WriteStatus)
    assert words in event.note
    message = (find_condition({"status": write.status}, "Ready") or {})["message"]  # type: ignore[arg-type]
    assert words in message
    assert write.status["backfill"] == value
    again = plan(observed({**obj, "status": write.status}, view=VIEW))
    assert kinds(again) == ["WriteStatus True Scheduled"]


@pytest.mark.parametrize(("count", "is_wrong"), [(0, True), (1, False), (100, False), (101, True)])
def test_a_backfill_is_of_one_to_a_hundred_times(count: int, is_wrong: bool) -> None:
    assert (wrong_count(count) is not None) == is_wrong


def test_a_value_too_long_for_the_status_is_kept_as_its_digest() -> None:
    assert recorded_value("x" * 253) == "x" * 253
    assert len(recorded_value("x" * 254)) == 71
    assert recorded_value("x" * 254) != recorded_value("x" * 255)


def test_a_trigger_is_named_by_a_second_that_no_run_has() -> None:
    now = NOW.replace(microsecond=5)
    second = timedelta(seconds=1)
    seen = replace(observed(schedule(), active=(active_run(NOW - second),)), now=now)

    def first(seen: Observed, *times: datetime, **status: Any) -> datetime:
        return next(seconds_for_a_run(seen, schedule(status=known(**status)), set(times)))

    assert first(replace(seen, active=())) == NOW - second, "not one that may be about to come"
    assert first(seen) == NOW - 2 * second
    assert first(seen, NOW - 2 * second, NOW - 3 * second) == NOW - 4 * second
    assert first(replace(seen, finished=(ended_run(NOW - 2 * second),))) == NOW - 3 * second
    assert first(seen, orders=[{**TRIGGERED, "begin": at(-2 * second)}]) == NOW - 3 * second


def test_where_each_second_is_a_time_triggers_are_named_by_seconds_before_the_schedule() -> None:
    second = timedelta(seconds=1)
    times = {NOW - number * second for number in range(61)}
    obj = schedule(status=known())
    made = datetime.fromisoformat(obj["metadata"]["creationTimestamp"])
    found = list(islice(seconds_for_a_run(observed(obj), obj, times), 2))
    assert found == [made - second, made - 2 * second]
    noted = {**TRIGGERED, "begin": found[0].strftime("%Y-%m-%dT%H:%M:%SZ")}
    again = schedule(status=known(orders=[noted]))
    assert next(seconds_for_a_run(observed(again), again, times)) == found[1]


# ── Status ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def status_of(seen: Observed) -> Json:
    [status] = [action.status for action in plan(seen).actions if isinstance(action, WriteStatus)]
    return status


def test_a_full_quota_is_looked_at_again_and_stalls_nothing() -> None:
    seen = observed(schedule(status=known()), quota_problem="exceeded quota: few", view=VIEW)
    assert plan(seen).requeue_after == 30
    [is_ready] = status_of(seen)["conditions"]
    assert is_ready["message"] == "Runs that are due are created when the quota allows it. exceeded quota: few"
    soon = replace(VIEW, next_times=(NOW + timedelta(seconds=9),))
    assert plan(replace(seen, view=soon)).requeue_after == 10


@pytest.mark.parametrize("words", ["no", "no.", "no.."])
def test_a_pause_is_told_in_whole_sentences(words: str) -> None:
    view = replace(VIEW, is_paused=True, notes=f"paused since AgentRun x ended as Failed: {words}")
    status = status_of(observed(schedule(status=known(), pauseOnFailure=True), view=view))
    message = "Paused since AgentRun x ended as Failed: no. It goes on when its spec is changed"
    assert {each["message"] for each in status["conditions"]} == {message}


def test_a_status_names_the_next_five_times_and_is_looked_at_when_the_first_has_passed() -> None:
    seen = observed(schedule(status=known()), view=replace(VIEW, next_times=(NOW, *NEXT)))
    assert status_of(seen)["nextRuns"] == [at(timedelta(days=day, hours=1)) for day in range(5)]
    assert plan(seen).requeue_after == 3601
    soon = observed(schedule(status=known()), view=replace(VIEW, next_times=(NOW + timedelta(seconds=0.5),)))
    assert plan(soon).requeue_after == 2


def test_a_schedule_without_further_times_says_so_and_rests() -> None:
    seen = observed(schedule(status=known(nextRuns=[at()])), view=replace(VIEW, next_times=()))
    assert "nextRuns" not in status_of(seen)
    assert status_of(seen)["conditions"][0]["message"] == "There are no more times"
    assert plan(seen).requeue_after is None


def test_executing_the_plan_and_planning_again_writes_nothing() -> None:
    day = timedelta(days=1)
    runs = {"active": (active_run(NOW),), "finished": (ended_run(NOW - day), ended_run(NOW - 2 * day, "Failed"))}
    first = status_of(observed(schedule(), view=VIEW, is_applied=True, **runs))
    again = Observed(KEY, INSTALLATION, NOW + timedelta(minutes=1), schedule(status=first), view=VIEW, **runs)  # type: ignore[arg-type]
    assert status_of(again) == first
    assert status_of(replace(again, finished=None)) == first, "finished runs need not be listed each time"


def test_runs_are_told_active_by_time_and_recent_by_end() -> None:
    hour = timedelta(hours=1)
    gone = {"name": "older", "scheduledAt": at(-9 * hour), "phase": "Failed", "finishedAt": at(-8 * hour)}
    status = status_of(
        observed(
            schedule(status=known(recentRuns=[gone])),
            view=VIEW,
            active=(active_run(NOW), active_run(NOW - hour)),
            finished=(ended_run(NOW - 3 * hour, "Cancelled", "Cancelled"), ended_run(NOW - 2 * hour)),
        )
    )
    assert status["activeRuns"] == [
        {"name": name_at(NOW - hour), "scheduledAt": at(-hour)},
        {"name": name_at(NOW), "scheduledAt": at()},
    ]
    assert [(each["name"], each["phase"], each.get("reason")) for each in status["recentRuns"]] == [
        (name_at(NOW - 2 * hour), "Succeeded", "Answered"),
        (name_at(NOW - 3 * hour), "Cancelled", "Cancelled"),
        ("older", "Failed", None),
    ]
    assert status["lastRun"] == {"name": name_at(NOW), "scheduledAt": at()}


def test_lists_are_bounded() -> None:
    minute = timedelta(minutes=1)
    active = tuple(active_run(NOW - number * minute) for number in range(30))
    finished = tuple(ended_run(NOW - number * minute) for number in range(30, 60))
    status = status_of(observed(schedule(status=known()), view=VIEW, active=active, finished=finished))
    AgentScheduleStatus.model_validate(status)
    assert [len(status[name]) for name in ("activeRuns", "recentRuns")] == [20, 10]
    assert status["activeRuns"][-1]["name"] == name_at(NOW)
    assert status["recentRuns"][0]["name"] == name_at(NOW - 30 * minute)


def test_stalled_goes_when_its_cause_has() -> None:
    obj = schedule(status=known())
    refused = status_of(observed(obj, template_problem="no", view=VIEW))
    assert [each["type"] for each in refused["conditions"]] == ["Ready", "Stalled"]
    mended = status_of(observed({**obj, "status": refused}, view=VIEW, is_applied=True))
    assert [each["type"] for each in mended["conditions"]] == ["Ready"]


def test_a_schedule_that_cannot_be_written_says_so() -> None:
    status = failed_status(schedule(), "Temporal: away", NOW)
    AgentScheduleStatus.model_validate(status)
    [found] = status["conditions"]
    assert (found["status"], found["reason"]) == ("False", "ScheduleFailed")
    assert found["message"].endswith("Temporal: away")
    assert kinds(plan(observed(schedule(status=status), view=VIEW))) == ["Update"]


# ── Old runs ───────────────────────────────────────────────────────────────────────────────────────────────────────

PHASES = ("Succeeded", "Failed", "Succeeded", "Cancelled", "Succeeded", "Succeeded", "Failed")
"""Of runs that ended one after another, the last one now."""


@pytest.mark.parametrize(
    ("history", "deleted"),
    [
        pytest.param(None, [0], id="three of each, unless it says otherwise"),
        pytest.param({"succeeded": 1, "failed": 1}, [0, 1, 2, 3, 4], id="one of each"),
        pytest.param({"succeeded": 0}, [0, 2, 4, 5], id="none that succeeded"),
        pytest.param({"succeeded": 9, "failed": 0}, [1, 3, 6], id="none that did not, however it ended"),
    ],
)
def test_old_runs_are_deleted_the_oldest_first(history: Json | None, deleted: list[int]) -> None:
    times = [NOW - timedelta(hours=len(PHASES) - number) for number in range(len(PHASES))]
    runs = tuple(ended_run(time, phase) for time, phase in zip(times, PHASES, strict=True))
    more: dict[str, Any] = {"runHistory": history} if history is not None else {}
    obj = schedule(status=known(), **more)
    assert [key_of(run).name for run in surplus_runs(obj, runs)] == [name_at(times[number]) for number in deleted]
    kept = name_at(times[deleted[0]])
    seen = plan(observed(obj, view=VIEW, finished=runs, firing=frozenset({kept})))
    found = [action.name for action in seen.actions if isinstance(action, DeleteRun)]
    assert found == [name_at(times[number]) for number in deleted[1:]], "but not one whose end was not told"
    assert seen.requeue_after == 2


HOLDING = replace(VIEW, buffered=1)
HOURS_AGO = {**FILLED, "orderedAt": at(-timedelta(hours=5))}


@pytest.mark.parametrize(
    ("order", "view", "kept"),
    [
        pytest.param(HOURS_AGO, HOLDING, [0, 1], id="while times wait in Temporal"),
        pytest.param(HOURS_AGO, VIEW, [], id="until none does"),
        pytest.param({**HOURS_AGO, "pending": True}, VIEW, [0, 1], id="before Temporal is told"),
        pytest.param({**FILLED, "orderedAt": at(-timedelta(seconds=59))}, VIEW, [0, 1], id="just after"),
        pytest.param({**FILLED, "orderedAt": at(-timedelta(seconds=60))}, VIEW, [], id="not for ever"),
        pytest.param({**HOURS_AGO, "begin": at(-timedelta(minutes=90))}, HOLDING, [1], id="of the order's times only"),
        pytest.param({**HOURS_AGO, "type": "Trigger"}, HOLDING, [], id="a trigger's time had no run before"),
    ],
)
def test_a_run_whose_time_a_backfill_may_come_to_is_kept(order: Json, view: ScheduleView, kept: list[int]) -> None:
    """Else it would be created a second time."""
    runs = tuple(ended_run(NOW - timedelta(hours=hours)) for hours in (2, 1))
    obj = schedule(status=known(orders=[order]), runHistory={"succeeded": 0})
    found = plan(observed(obj, view=view, finished=runs))
    deleted = {action.name for action in found.actions if isinstance(action, DeleteRun)}
    assert [number for number, run in enumerate(runs) if key_of(run).name not in deleted] == kept
    assert (found.requeue_after, found.lists_again) == ((10, True) if kept else (3601, False))


# ── What Temporal is told ──────────────────────────────────────────────────────────────────────────────────────────


def test_defaults() -> None:
    made = make_schedule(schedule(), INSTALLATION)
    assert (made.id, made.task_queue) == (ID, f"{INSTALLATION}.reporter")
    assert (made.policy, made.catch_up_window) == ("Forbid", timedelta(hours=1))
    assert (made.cron, made.intervals, made.calendars, made.time_zone) == (("0 9 * * *",), (), (), "")
    assert (made.is_suspended, made.pause_on_failure, made.jitter) == (False, False, timedelta())
    assert (made.start_at, made.end_at) == (None, None)


def test_all_that_a_schedule_can_say() -> None:
    times = {
        "intervals": [{"every": "1h30m", "offset": "5m"}, {"every": "10s"}],
        "calendars": [{"hour": "9-17", "dayOfWeek": "MON-FRI", "comment": "office hours"}],
        "timeZone": "Europe/Berlin",
        "jitter": "30s",
        "startAt": "2027-01-01T00:00:00Z",
        "endAt": "2028-01-01T01:00:00+01:00",
    }
    made = make_schedule(
        schedule(schedule=times, concurrencyPolicy="Replace", catchUpWindow="10m", pauseOnFailure=True, suspend=True),
        INSTALLATION,
    )
    assert made.intervals == (
        (timedelta(minutes=90), timedelta(minutes=5)),
        (timedelta(seconds=10), timedelta()),
    )
    assert made.calendars == tuple(times["calendars"])
    assert (made.time_zone, made.jitter) == ("Europe/Berlin", timedelta(seconds=30))
    assert (made.start_at, made.end_at) == (datetime(2027, 1, 1, tzinfo=UTC), datetime(2028, 1, 1, tzinfo=UTC))
    assert (made.policy, made.catch_up_window) == ("Replace", timedelta(minutes=10))
    assert made.pause_on_failure
    assert made.is_suspended

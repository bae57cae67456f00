"""The Temporal Schedule that an AgentSchedule asks for, and what Temporal says of it, both in the operator's own words."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from dalang_api.contract import reporter_queue, schedule_id
from dalang_api.v1alpha1.agentschedule import PolicyName
from dalang_api.v1alpha1.schema import seconds

from dalang_operator.kube.resources import Json, key_of, uid_of
from dalang_operator.kube.status import parse_timestamp

DEFAULT_POLICY: PolicyName = "Forbid"
CATCH_UP_WINDOW = timedelta(hours=1)
SUSPENDED_NOTE = "spec.suspend of the AgentSchedule is set"
FAILURE_NOTE = "paused since AgentRun"
"""How the note begins that the operator pauses with where a run has failed."""
_TEMPORALS_NOTE = "paused due to workflow"
"""How Temporal's own begins, of `pause_on_failure`."""


@dataclass(frozen=True)
class DesiredSchedule:
    """All that Temporal is told of a schedule."""

    id: str
    task_queue: str
    """Of the reporter, who creates the runs."""
    cron: tuple[str, ...]
    intervals: tuple[tuple[timedelta, timedelta], ...]
    """How often, and how long after each multiple of that since the epoch."""
    calendars: tuple[Json, ...]
    """As in the AgentSchedule."""
    time_zone: str
    """Empty: UTC."""
    jitter: timedelta
    start_at: datetime | None
    end_at: datetime | None
    policy: PolicyName
    catch_up_window: timedelta
    pause_on_failure: bool
    is_suspended: bool


@dataclass(frozen=True)
class ScheduleView:
    """What Temporal says of a schedule."""

    digest: str
    """Of all that can be changed in Temporal, but for whether it is paused."""
    token: bytes
    """Names this state: an update of another is refused."""
    is_paused: bool = False
    notes: str = ""
    """Why it is paused."""
    next_times: tuple[datetime, ...] = ()
    """The next few, as if it were not paused."""
    buffered: int = 0
    """How many times wait there for a run to end; with `Allow` none does."""

    @property
    def is_paused_on_failure(self) -> bool:
        """Whether a run that failed has paused it."""
        return self.is_paused and self.notes.startswith((FAILURE_NOTE, _TEMPORALS_NOTE))


def make_schedule(schedule: Json, installation: str) -> DesiredSchedule:
    """Return what Temporal is to have for an AgentSchedule."""
    spec = schedule["spec"]
    times: Json = spec["schedule"]
    intervals = times.get("intervals", ())
    return DesiredSchedule(
        id=schedule_id(installation, *key_of(schedule), uid_of(schedule)),
        task_queue=reporter_queue(installation),
        cron=tuple(times.get("cron", ())),
        intervals=tuple((_duration(each["every"]), _duration(each.get("offset", ""))) for each in intervals),
        calendars=tuple(times.get("calendars", ())),
        time_zone=times.get("timeZone", ""),
        jitter=_duration(times.get("jitter", "")),
        start_at=_time(times.get("startAt")),
        end_at=_time(times.get("endAt")),
        policy=policy_of(schedule),
        catch_up_window=_duration(spec["catchUpWindow"]) if "catchUpWindow" in spec else CATCH_UP_WINDOW,
        pause_on_failure=pauses_on_failure(schedule),
        is_suspended=is_suspended(schedule),
    )


def policy_of(schedule: Json) -> PolicyName:
    """Return what happens when it is time and the run before has not ended."""
    policy: PolicyName = schedule["spec"].get("concurrencyPolicy", DEFAULT_POLICY)
    return policy


def pauses_on_failure(schedule: Json) -> bool:
    """Return whether a run that fails pauses the schedule."""
    return bool(schedule["spec"].get("pauseOnFailure"))


def is_suspended(schedule: Json) -> bool:
    """Return whether its author wants no runs for now."""
    return bool(schedule["spec"].get("suspend"))


def _duration(text: str) -> timedelta:
    return timedelta(seconds=seconds(text))


def _time(text: str | None) -> datetime | None:
    return parse_timestamp(text) if text else None

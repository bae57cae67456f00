"""AgentSchedule: when to create AgentRuns from a template. One schedule is one Temporal Schedule."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from dalang_api.v1alpha1.agentrun import RunTask
from dalang_api.v1alpha1.schema import (
    LIST_ATOMIC,
    ApiModel,
    Conditions,
    Duration,
    Resource,
    Rule,
    Timestamp,
    list_map,
    pending_conditions,
    readable,
    rule,
    rules,
)

CalendarField = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[0-9A-Za-z*,/-]+$")]
"""A part of a calendar entry: `*`, a value, a range `9-17`, steps `*/15`, or several of them with commas."""

CRON = r"^(@(yearly|annually|monthly|weekly|daily|midnight|hourly)|[^@ ]+( +[^ ]+){4})$"
"""Five fields, or a word for them. Temporal would also read six fields, as no other cron does: the sixth is a year. And it
takes what follows `#` for a comment, so that `MON#1`, elsewhere the first Monday, would be every Monday."""

LABEL_KEY = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
RESERVED = "dalang.dev/"

PolicyName = Literal["Forbid", "Allow", "Replace", "Queue", "QueueAll"]


class Interval(ApiModel):
    """A time every so often, counted from the epoch."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                readable("self.every") + "duration(self.every) >= duration('1s')",
                "every must be at least 1s",
                field_path=".every",
            ),
            rule(
                "!has(self.offset) || "
                + readable("self.offset", "self.every")
                + "duration(self.offset) < duration(self.every)",
                "offset must be shorter than every",
                field_path=".offset",
            ),
        )
    )

    every: Duration
    """How often, such as `1h`."""
    offset: Duration | None = None
    """How long after each multiple of `every`, such as `5m`. Default: none."""


class Calendar(ApiModel):
    """Times by calendar, each field as in cron, and all of them true at once."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "[has(self.second), has(self.minute), has(self.hour), has(self.dayOfMonth), has(self.month), has(self.year), "
                "has(self.dayOfWeek)].exists(x, x)",
                "set at least one of second, minute, hour, dayOfMonth, month, year and dayOfWeek",
            ),
        )
    )

    second: CalendarField | None = None
    """Second, 0–59. Default: 0."""
    minute: CalendarField | None = None
    """Minute, 0–59. Default: 0."""
    hour: CalendarField | None = None
    """Hour, 0–23. Default: 0."""
    day_of_month: CalendarField | None = None
    """Day of the month, 1–31. Default: every."""
    month: CalendarField | None = None
    """Month, 1–12 or its English name. Default: every."""
    year: CalendarField | None = None
    """Year. Default: every."""
    day_of_week: CalendarField | None = None
    """Day of the week, 0–6 from Sunday or its English name. Default: every."""
    comment: Annotated[str, Field(max_length=200)] | None = None
    """What this entry is for."""


class Times(ApiModel):
    """When runs are created: at every time that any of `cron`, `intervals` and `calendars` gives."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.cron) || has(self.intervals) || has(self.calendars)",
                "at least one of cron, intervals and calendars must be set",
            ),
            rule(
                "!has(self.startAt) || !has(self.endAt) || timestamp(self.startAt) < timestamp(self.endAt)",
                "endAt must be after startAt",
                field_path=".endAt",
            ),
            rule(
                "!has(self.cron) || !self.cron.exists(entry, entry.contains('TZ='))",
                "a time zone goes into timeZone, not into cron",
                field_path=".cron",
            ),
            rule(
                "!has(self.cron) || !self.cron.exists(entry, entry.contains('#'))",
                "cron knows no #; the first Monday of a month is dayOfMonth 1-7 and dayOfWeek 1 in calendars",
                field_path=".cron",
            ),
            rule(
                "!has(self.cron) || self.cron.all(entry, entry.contains('TZ=') || entry.contains('#') || "
                f"entry.matches('{CRON}'))",
                "an entry of cron has five fields, such as 0 9 * * 1-5, or is one of @hourly, @daily, @weekly, @monthly and "
                "@yearly; intervals has every so often, calendars has seconds and years",
                field_path=".cron",
            ),
            rule(
                "!has(self.timeZone) || self.timeZone != 'Local'",
                "timeZone is a name of the IANA database, such as Europe/Berlin; Local is nowhere",
                field_path=".timeZone",
            ),
        )
    )

    cron: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=128)]],
            Field(min_length=1, max_length=16, json_schema_extra=LIST_ATOMIC),
        ]
        | None
    ) = None
    """Times as cron writes them: five fields such as `0 9 * * 1-5`, or `@hourly`, `@daily`, `@weekly`, `@monthly`,
    `@yearly`."""
    intervals: Annotated[list[Interval], Field(min_length=1, max_length=16, json_schema_extra=LIST_ATOMIC)] | None = (
        None
    )
    """Times every so often."""
    calendars: Annotated[list[Calendar], Field(min_length=1, max_length=16, json_schema_extra=LIST_ATOMIC)] | None = (
        None
    )
    """Times by calendar, for what cron cannot say, such as a certain year."""
    time_zone: (
        Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$")]
        | None
    ) = None
    """The IANA time zone of `cron` and `calendars`, such as `Europe/Berlin`. Default: UTC. A time that daylight saving skips
    has no run; one that it repeats has one."""
    jitter: Duration | None = None
    """Each run is created up to so long after its time, differently each time. Default: at its time."""
    start_at: Timestamp | None = None
    """No times before this one."""
    end_at: Timestamp | None = None
    """No times after this one."""


class RunHistory(ApiModel):
    """How many finished runs of the schedule are kept; older ones are deleted."""

    succeeded: Annotated[int, Field(ge=0, le=100, json_schema_extra={"format": "int32"})] | None = None
    """Of those that succeeded. Default: 3."""
    failed: Annotated[int, Field(ge=0, le=100, json_schema_extra={"format": "int32"})] | None = None
    """Of those that failed or were cancelled. Default: 3."""


def _keys_are_good(field: str) -> tuple[Rule, Rule]:
    """What the API server would refuse in every run, said where it is written; and what Dalang writes there itself."""
    return (
        rule(
            f"!has(self.{field}) || self.{field}.all(key, key.matches('{LABEL_KEY}'))",
            f"a key of {field} is a name of at most 63 letters, digits and -_., with a DNS prefix and / before it if wanted",
            field_path=f".{field}",
        ),
        rule(
            f"!has(self.{field}) || !self.{field}.exists(key, key.startsWith('{RESERVED}'))",
            f"{field} that begin with {RESERVED} are written by Dalang itself",
            field_path=f".{field}",
        ),
    )


class TemplateMetadata(ApiModel):
    """Labels and annotations for the created runs."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *_keys_are_good("labels"),
            rule(
                f"!has(self.labels) || self.labels.all(key, self.labels[key].matches('{LABEL_VALUE}'))",
                "a label's value has letters, digits and -_., and begins and ends with a letter or digit",
                field_path=".labels",
            ),
            *_keys_are_good("annotations"),
        )
    )

    labels: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=32)] | None = None
    """Labels of the runs."""
    annotations: Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=32)] | None = None
    """Annotations of the runs."""


class RunTemplate(ApiModel):
    """The AgentRun to create."""

    metadata: TemplateMetadata | None = None
    """Labels and annotations of the runs."""
    spec: RunTask
    """The task of the runs, as in an AgentRun."""


class AgentScheduleSpec(ApiModel):
    """When to create runs, and which."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.catchUpWindow) || "
                + readable("self.catchUpWindow")
                + "duration(self.catchUpWindow) >= duration('10s')",
                "catchUpWindow must be at least 10s",
                field_path=".catchUpWindow",
            ),
        )
    )

    schedule: Times
    """When runs are created."""
    run_template: RunTemplate
    """The AgentRun to create each time."""
    concurrency_policy: PolicyName | None = None
    """What happens when it is time and the run before has not ended. Forbid: no run this time. Allow: one more run beside it.
    Replace: the old run is cancelled, and the new one created when it has ended. Queue: created when the old one has ended, at
    most one. QueueAll: likewise, all of them. Default: Forbid."""
    catch_up_window: Duration | None = None
    """How late a run may be created when Temporal was away at its time, at least 10s. Default: 1h."""
    pause_on_failure: bool | None = None
    """Whether a run that fails, or is cancelled other than by Replace, pauses the schedule until its spec is changed. Default:
    false."""
    suspend: bool | None = None
    """Set it to true to create no runs for now, but for those that annotations ask for. Times that pass meanwhile have none,
    nor have earlier ones whose run is not created yet. Default: false."""
    run_history: RunHistory | None = None
    """How many finished runs are kept."""


class ActiveRun(ApiModel):
    """A run of the schedule that has not ended."""

    name: Annotated[str, Field(max_length=63)]
    """Name of the AgentRun."""
    scheduled_at: Timestamp | None = None
    """The time it was created for."""


class RecentRun(ActiveRun):
    """A run of the schedule that has ended."""

    phase: Literal["Succeeded", "Failed", "Cancelled"]
    """How it ended."""
    reason: Annotated[str, Field(max_length=64)] | None = None
    """Why, in one word: the reason of its condition `Succeeded`."""
    finished_at: Timestamp | None = None
    """When it ended."""


class Order(ApiModel):
    """What an annotation asked for. It is written down before it is carried out, so that it is carried out once."""

    type: Literal["Trigger", "Backfill"]
    """Which annotation it was: `dalang.dev/trigger` or `dalang.dev/backfill`."""
    value: Annotated[str, Field(max_length=253)]
    """The annotation's value, or its digest where it is longer."""
    ordered_at: Timestamp
    """When it was written down."""
    begin: Timestamp
    """The time of the triggered run, or the first time of the backfill."""
    end: Timestamp
    """Likewise, or the last time of the backfill."""
    pending: bool | None = None
    """Whether it has yet to be carried out."""


class TemporalSchedule(ApiModel):
    """The Temporal Schedule that tells the time."""

    id: Annotated[str, Field(max_length=512)]
    """Its id: installation, namespace, name and uid of the AgentSchedule."""
    digest: Annotated[str, Field(max_length=71)] | None = None
    """Digest of what Temporal has: a change made there by hand is put back."""


class AgentScheduleStatus(ApiModel):
    """What the schedule has done, and what comes next."""

    model_config = ConfigDict(
        json_schema_extra={"default": {"observedGeneration": -1, "conditions": pending_conditions("Ready")}}
    )

    conditions: Conditions = []
    """`Ready` is True while Temporal has the schedule as it is here, suspended or not; False where it cannot be scheduled: the
    message has the parser's words."""
    observed_generation: Annotated[int, Field(ge=-1, json_schema_extra={"format": "int64"})] | None = None
    """The `metadata.generation` that Temporal has; -1: the controller has not looked yet."""
    next_runs: Annotated[list[Timestamp], Field(max_length=5, json_schema_extra=LIST_ATOMIC)] | None = None
    """The next times, at most five; none while it is suspended."""
    last_run: ActiveRun | None = None
    """The newest run: the one that was created for the latest time."""
    active_runs: Annotated[list[ActiveRun], Field(max_length=20, json_schema_extra=list_map("name"))] | None = None
    """The runs that have not ended, at most twenty."""
    recent_runs: Annotated[list[RecentRun], Field(max_length=10, json_schema_extra=list_map("name"))] | None = None
    """The last ten that have ended, the newest first; they may be deleted by now."""
    trigger: Annotated[str, Field(max_length=253)] | None = None
    """The value of annotation `dalang.dev/trigger` that was carried out last."""
    backfill: Annotated[str, Field(max_length=253)] | None = None
    """The value of annotation `dalang.dev/backfill` that was dealt with last: carried out, then it is among `orders`; or refused,
    then Event `BackfillRefused` says why."""
    orders: Annotated[list[Order], Field(max_length=20, json_schema_extra=LIST_ATOMIC)] | None = None
    """What annotations asked for lately, at most twenty, the newest last. While the schedule is suspended only their times have
    runs."""
    temporal: TemporalSchedule | None = None
    """The Temporal Schedule that tells the time."""


class AgentSchedule(Resource):
    """When to create AgentRuns from a template: at times, days, dates or intervals.

    To create a run now, set annotation `dalang.dev/trigger` to any new value. For times that have passed, set
    `dalang.dev/backfill` to `<from>/<to>`, both in RFC 3339. Each value is carried out once.
    """

    KIND: ClassVar[str] = "AgentSchedule"
    PLURAL: ClassVar[str] = "agentschedules"
    SHORT: ClassVar[str] = "agsched"
    NAME_MAX: ClassVar[int] = 52
    SELECTABLE: ClassVar[list[str]] = []
    COLUMNS: ClassVar[list[dict[str, Any]]] = [
        {"name": "Schedule", "type": "string", "jsonPath": ".spec.schedule.cron"},
        {"name": "Suspend", "type": "boolean", "jsonPath": ".spec.suspend"},
        {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"},
        {"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].reason"},
        {"name": "Active", "type": "string", "jsonPath": ".status.activeRuns[*].name"},
        {"name": "Next", "type": "string", "jsonPath": ".status.nextRuns[0]"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        {"name": "Last Run", "type": "string", "jsonPath": ".status.lastRun.name", "priority": 1},
        {"name": "Policy", "type": "string", "jsonPath": ".spec.concurrencyPolicy", "priority": 1},
        {"name": "Time Zone", "type": "string", "jsonPath": ".spec.schedule.timeZone", "priority": 1},
    ]

    spec: AgentScheduleSpec
    """When to create runs, and which."""
    status: AgentScheduleStatus | None = None
    """What the schedule has done, and what comes next."""

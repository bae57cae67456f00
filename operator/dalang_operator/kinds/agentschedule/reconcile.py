"""AgentSchedule: observe one schedule, plan, execute."""

import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal, Protocol

from dalang_api.contract import (
    RUN_ENDED_SIGNAL,
    CreatedRun,
    RunEnded,
    Wire,
    run_workflow_id,
    schedule_id,
    scheduled_run_name,
    trigger_workflow_id,
)
from dalang_api.v1alpha1.conditions import Phase

from dalang_operator.kinds.actions import WriteStatus
from dalang_operator.kinds.agentschedule.desired import (
    FAILURE_NOTE,
    DesiredSchedule,
    ScheduleView,
    pauses_on_failure,
)
from dalang_operator.kinds.agentschedule.orders import Order, with_order
from dalang_operator.kinds.agentschedule.plan import (
    BACKFILL,
    SOON_SECONDS,
    TRIGGER_REACH,
    Action,
    ApplySchedule,
    BackfillRuns,
    DeleteRun,
    NoteBackfill,
    NoteTrigger,
    Observed,
    PauseSchedule,
    RemoveSchedule,
    TellEvent,
    TriggerRun,
    is_settled,
    plan,
    refused_backfill,
    seconds_for_a_run,
    surplus_runs,
    waits_for_quota,
    without_held,
    wrong_count,
)
from dalang_operator.kinds.agentschedule.runs import (
    DRY_RUN_AT,
    SCHEDULE_LABEL,
    Firing,
    firing_of,
    gone_run_ended,
    is_run_of,
    make_run,
    run_ended,
)
from dalang_operator.kinds.agentschedule.status import failed_status
from dalang_operator.kinds.workflow import WorkflowState, WorkflowView
from dalang_operator.kube.errors import AlreadyExists, Conflict, Forbidden, Invalid, NotFound, QuotaExceeded
from dalang_operator.kube.events import tell_event
from dalang_operator.kube.resources import (
    AGENT_RUNS,
    AGENT_SCHEDULES,
    Json,
    ObjectKey,
    PatchBody,
    Resource,
    key_of,
    uid_of,
)
from dalang_operator.kube.status import clip, write_status
from dalang_operator.kube.user import own_user
from dalang_operator.runtime.cache import Cache, is_finished
from dalang_operator.runtime.facts import forget
from dalang_operator.temporal.errors import ArgumentRefused, TemporalError, WorkflowNotFound

logger = logging.getLogger(__name__)

NOTE_MAX = 512
FAILED_AFTER = timedelta(seconds=15)
"""A schedule that could not be written for so long says so; shorter outages cost no write."""

_Look = Literal["done", "again", "due"]
"""What a look at a firing came to: nothing is left, look again soon, or its run has not been created."""


class KubePort(Protocol):
    """What the reconcile needs of the API server."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json: ...

    def list_pages(
        self, resource: Resource, namespace: str | None, *, fields: str = "", labels: str = ""
    ) -> AsyncIterator[tuple[list[Json], str]]: ...

    async def create(self, resource: Resource, namespace: str, body: Json, *, dry_run: bool = False) -> Json: ...

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: PatchBody, subresource: str | None = None
    ) -> Json: ...

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, resource_version: str | None = None
    ) -> None: ...


class WorkflowPort(Protocol):
    """What the reconcile needs of Temporal's workflows."""

    async def signal(self, workflow_id: str, name: str, value: Wire | None, request_id: str) -> None: ...

    async def look(self, workflow_id: str) -> WorkflowView: ...


class SchedulePort(Protocol):
    """What the reconcile needs of Temporal's schedules."""

    async def create(self, desired: DesiredSchedule) -> None: ...

    async def update(self, desired: DesiredSchedule, token: bytes) -> None: ...

    async def describe(self, id_: str) -> ScheduleView | None: ...

    async def pause(self, id_: str, note: str, request_id: str) -> None: ...

    async def trigger(self, id_: str, scheduled_at: datetime, request_id: str) -> None: ...

    async def backfill(self, wanted: BackfillRuns) -> None: ...

    async def times(self, id_: str, begin: datetime, end: datetime) -> list[datetime]: ...

    async def remove(self, id_: str, reason: str) -> bool: ...

    async def created_run(self, workflow_id: str) -> CreatedRun | None: ...


@dataclass
class ScheduleFacts:
    """What is known of schedules beside their objects. All of it is safe to lose: the sweep finds it out again."""

    gone: dict[ObjectKey, set[str]] = field(default_factory=dict)
    """Uids that were deleted, or whose schedule in Temporal has no object, and were not looked after yet."""
    firings: dict[ObjectKey, set[Firing]] = field(default_factory=dict)
    """Firings whose run has left the watch, or which wait though their run is not under way."""
    listed: dict[ObjectKey, tuple[str, int]] = field(default_factory=dict)
    """Uid and generation for which the finished runs were listed; forgotten when one ends."""
    user: str | None = ""
    """As whom the operator creates runs. Empty: not asked yet; None: the API server does not tell."""
    failing_since: dict[ObjectKey, datetime] = field(default_factory=dict)
    """Keys that Temporal could not be told of, and when that was the first time in a row."""

    def run_left(self, run: Json) -> None:
        """Note that a schedule's run has ended, or was deleted."""
        found = firing_of(run)
        if found is not None:
            key, firing = found
            self.firings.setdefault(key, set()).add(firing._replace(has_created=True))
            self.listed.pop(key, None)


@dataclass(frozen=True)
class ScheduleReconciler:
    """Brings AgentSchedules to where they should be."""

    kube: KubePort
    workflows: WorkflowPort
    schedules: SchedulePort
    cache: Cache
    facts: ScheduleFacts
    installation: str
    now: Callable[[], datetime]

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Reconcile one schedule; returns after how many seconds to look again, or None."""
        gone = frozenset(self.facts.gone.get(key, ()))
        firings = frozenset(self.facts.firings.get(key, ()))
        schedule = self.cache.schedules.get(key)
        if schedule is None or uid_of(schedule) in gone:
            schedule = await self._read(AGENT_SCHEDULES, key)
        looks = await self._end_firings(key, schedule, firings)
        left = frozenset(firing for firing, look in looks.items() if look == "again")
        requeue_after = await self._carry_out(await self._observe(key, schedule, gone, "due" in looks.values()))
        self._settle(key, gone, firings - left)
        may_be_paused = firings and schedule is not None and pauses_on_failure(schedule)  # by Temporal, a moment later
        return SOON_SECONDS if left or may_be_paused else requeue_after

    # ── Firings ──

    async def _end_firings(
        self, key: ObjectKey, schedule: Json | None, firings: frozenset[Firing]
    ) -> dict[Firing, _Look]:
        """Tell each of these firings whose run has ended; returns what is left to do."""
        if schedule is None:
            return {}  # removed with their schedule
        return {each: await self._look_at(key, schedule, each) for each in sorted(firings)}

    async def _look_at(self, key: ObjectKey, schedule: Json, firing: Firing) -> _Look:
        run_key = ObjectKey(key.namespace, scheduled_run_name(key.name, firing.uid, firing.scheduled_at))
        cached, user = self.cache.runs.get(run_key), await self._user()
        if firing.uid != uid_of(schedule) or (cached is not None and is_run_of(schedule, cached, user)):
            return "done"
        workflow_id = trigger_workflow_id(schedule_id(self.installation, *key, firing.uid), firing.scheduled_at)
        run = await self._read(AGENT_RUNS, run_key)
        if run is not None and is_run_of(schedule, run, user):
            return await self._tell_if_finished(schedule, workflow_id, run)
        created = await self.schedules.created_run(workflow_id)
        if created is None:
            return await self._look_at_due(firing, workflow_id)
        if created.run is None:
            return "done"  # the firing has ended without
        if run is not None and uid_of(run) == created.run.uid:  # by an operator of another name
            return await self._tell_if_finished(schedule, workflow_id, run)
        view = await self.workflows.look(
            run_workflow_id(self.installation, run_key.namespace, run_key.name, created.run.uid)
        )
        ended = gone_run_ended(created.run.uid, view)
        return "again" if ended is None else await self._tell(schedule, workflow_id, run_key.name, ended)

    async def _look_at_due(self, firing: Firing, workflow_id: str) -> _Look:
        """Look at a firing that has not recorded a creation: one that is about to is not lost because its run is gone again."""
        if not firing.has_created:
            return "due"
        return "again" if (await self.workflows.look(workflow_id)).state is WorkflowState.OPEN else "done"

    async def _tell_if_finished(self, schedule: Json, workflow_id: str, run: Json) -> _Look:
        return await self._tell(schedule, workflow_id, key_of(run).name, run_ended(run)) if is_finished(run) else "done"

    async def _tell(self, schedule: Json, workflow_id: str, run: str, ended: RunEnded) -> _Look:
        """Tell a firing what became of its run, once or more.

        Temporal itself pauses for a firing that fails only where it watches it: not where several may run at once, nor
        one that was triggered by hand. So the operator does, and first: afterwards nothing would bring it here again.
        But only once the firing has recorded that it waits for this run: it may be of an earlier firing of the same time.
        """
        if pauses_on_failure(schedule) and ended.phase in {Phase.FAILED, Phase.CANCELLED}:
            firing = await self.workflows.look(workflow_id)
            if firing.state is not WorkflowState.OPEN:
                return "done"
            created = await self.schedules.created_run(workflow_id)
            if created is None:
                return "again"
            if created.run is None or created.run.uid != ended.run_uid:
                return "done"
            if not firing.is_cancelled:  # as by Replace
                await self._pause(schedule, run, ended)
        try:
            await self.workflows.signal(workflow_id, RUN_ENDED_SIGNAL, ended, f"ended {ended.run_uid}")
        except WorkflowNotFound:
            return "done"
        logger.info("AgentSchedule %s: run %s: %s", key_of(schedule), run, ended.phase)
        return "done"

    async def _pause(self, schedule: Json, run: str, ended: RunEnded) -> None:
        note = clip(f"{FAILURE_NOTE} {run} ended as {ended.phase}: {ended.message}", NOTE_MAX)
        await self.schedules.pause(self._id(schedule), note, f"pause {ended.run_uid}")

    # ── Observe ──

    async def _observe(self, key: ObjectKey, schedule: Json | None, gone: frozenset[str], is_run_due: bool) -> Observed:
        observed = Observed(key, self.installation, self.now(), schedule, gone)
        if schedule is None or schedule["metadata"].get("deletionTimestamp"):
            return observed
        view = await self._describe(schedule)  # before the firings: what waits no more by then has one
        finished = await self._finished(key, schedule)
        surplus = surplus_runs(schedule, finished or ())
        old = without_held(schedule, surplus, view, observed.now)
        observed = replace(
            observed,
            active=tuple(await self._active(key, schedule)),
            finished=finished,
            firing=frozenset([run async for run in self._firing(key, schedule, old)]),
            view=view,
        )
        if is_run_due or not is_settled(schedule) or waits_for_quota(schedule):
            observed = await self._try_template(observed, schedule)
        return observed

    async def _active(self, key: ObjectKey, schedule: Json) -> list[Json]:
        user = await self._user()
        found = map(self.cache.runs.get, self.cache.runs.by("schedule", *key))
        return [run for run in found if run is not None and is_run_of(schedule, run, user)]

    async def _finished(self, key: ObjectKey, schedule: Json) -> tuple[Json, ...] | None:
        """Return the finished runs, or None where none has ended since they were listed."""
        version = (uid_of(schedule), schedule["metadata"]["generation"])
        if self.facts.listed.get(key) == version:
            return None
        user = await self._user()
        self.facts.listed[key] = version  # before the list: a run that ends meanwhile takes it away again
        found: list[Json] = []
        try:
            labels = f"{SCHEDULE_LABEL}={key.name}"
            async for page, _ in self.kube.list_pages(
                AGENT_RUNS, key.namespace, fields="status.finishedAt!=", labels=labels
            ):
                found += [run for run in page if is_run_of(schedule, run, user)]
        except BaseException:
            self.facts.listed.pop(key, None)
            raise
        return tuple(found)

    async def _firing(self, key: ObjectKey, schedule: Json, old: tuple[Json, ...]) -> AsyncIterator[str]:
        """Yield the names of those runs whose firing does not know yet that they have ended."""
        for run in old:
            found = firing_of(run)
            if found is None:
                continue
            workflow_id = trigger_workflow_id(
                schedule_id(self.installation, *key, uid_of(schedule)), found[1].scheduled_at
            )
            if (await self.workflows.look(workflow_id)).state is WorkflowState.OPEN:
                self.facts.run_left(run)
                yield key_of(run).name

    async def _try_template(self, observed: Observed, schedule: Json) -> Observed:
        """Ask the API server, admission included, whether it would take a run of the template.

        Once Temporal has the schedule, what is refused fails its firings, which say so; only a full quota passes by itself.
        """
        try:
            await self.kube.create(AGENT_RUNS, observed.key.namespace, make_run(schedule, DRY_RUN_AT), dry_run=True)
        except QuotaExceeded as error:
            return replace(observed, quota_problem=str(error))
        except (Invalid, Forbidden) as error:
            return observed if is_settled(schedule) else replace(observed, template_problem=str(error))
        except AlreadyExists:
            return observed
        return observed

    async def _user(self) -> str | None:
        if self.facts.user == "":
            self.facts.user = await own_user(self.kube)
        return self.facts.user

    def _id(self, schedule: Json) -> str:
        return schedule_id(self.installation, *key_of(schedule), uid_of(schedule))

    async def _describe(self, schedule: Json) -> ScheduleView | None:
        try:
            return await self.schedules.describe(self._id(schedule))
        except TemporalError as error:
            await self._fail(schedule, error)
            raise

    async def _read(self, resource: Resource, key: ObjectKey) -> Json | None:
        try:
            return await self.kube.get(resource, key.namespace, key.name)
        except NotFound:
            return None

    # ── Execute ──

    async def _carry_out(self, observed: Observed) -> float | None:
        """Execute the plan. A write to the schedule changes what is known, so after it the rest is planned anew."""
        steps = plan(observed)
        if steps.lists_again:
            self.facts.listed.pop(observed.key, None)
        for action in steps.actions:
            if isinstance(action, ApplySchedule):
                return await self._carry_out(await self._apply(observed, action))
            if isinstance(action, NoteTrigger | NoteBackfill):
                return await self._carry_out(await self._note(observed, action))
            await self._execute(observed, action)
        return steps.requeue_after

    async def _apply(self, observed: Observed, apply: ApplySchedule) -> Observed:
        schedule = observed.schedule
        assert schedule is not None, "it is written for an object"
        try:
            if apply.token is None:
                await self.schedules.create(apply.desired)
            else:
                await self.schedules.update(apply.desired, apply.token)
            view = await self.schedules.describe(apply.desired.id)
        except ArgumentRefused as error:
            return replace(observed, schedule_problem=str(error))
        except TemporalError as error:
            await self._fail(schedule, error)
            raise
        logger.info("AgentSchedule %s: written to Temporal", observed.key)
        if view is None:
            raise Conflict(f"schedule {apply.desired.id} was deleted in Temporal just now")
        return replace(observed, view=view, is_applied=True)

    async def _fail(self, schedule: Json, error: TemporalError) -> None:
        """Say of a schedule that Temporal does not have as it is that it could not be written, if that lasts."""
        since = self.facts.failing_since.setdefault(key_of(schedule), self.now())
        if not is_settled(schedule) and self.now() - since >= FAILED_AFTER:
            await self._write(schedule, failed_status(schedule, str(error), self.now()))

    async def _execute(self, observed: Observed, action: Action) -> None:
        key, schedule = observed.key, observed.schedule
        match action:
            case RemoveSchedule(id_):
                if await self.schedules.remove(id_, "the AgentSchedule was deleted"):
                    logger.info("AgentSchedule %s: removed from Temporal", key)
            case PauseSchedule(id_, note):
                await self.schedules.pause(id_, clip(note, NOTE_MAX), f"pause {observed.now.timestamp():.0f}")
            case TriggerRun():
                await self._trigger(key, action)
            case BackfillRuns():
                await self._backfill(key, action)
            case DeleteRun():
                await self._delete(key, action)
            case TellEvent():
                assert schedule is not None, "it is about an object"
                await self._tell_event(schedule, action)
            case WriteStatus(status):
                assert schedule is not None, "a status is planned for an object"
                await self._write(schedule, status)

    async def _note(self, observed: Observed, order: NoteTrigger | NoteBackfill) -> Observed:
        """Write down what is about to be carried out, or, of a backfill of too many times, that it is not."""
        schedule = observed.schedule
        assert schedule is not None, "an order is an annotation of an object"
        match order:
            case NoteTrigger(value):
                second = await self._free_second(observed, schedule)
                status = with_order(schedule, Order("trigger", value, observed.now, second, second))
            case NoteBackfill(value, begin, end):
                count = len(await self.schedules.times(self._id(schedule), begin, end))
                if problem := wrong_count(count):
                    asked = schedule["metadata"]["annotations"][BACKFILL]
                    await self._tell_event(schedule, refused_backfill(schedule, asked, problem))
                    status = {**schedule.get("status", {}), "backfill": value}
                else:
                    status = with_order(schedule, Order("backfill", value, observed.now, begin, end))
        return replace(observed, schedule=await self._write(schedule, status))

    async def _free_second(self, observed: Observed, schedule: Json) -> datetime:
        """Return a second that no run has, nor a firing: also none whose run ended long ago, or was deleted."""
        times = await self.schedules.times(self._id(schedule), observed.now - TRIGGER_REACH, observed.now)
        seconds = seconds_for_a_run(observed, schedule, set(times))
        while await self._is_taken(schedule, second := next(seconds)):
            pass
        return second

    async def _is_taken(self, schedule: Json, second: datetime) -> bool:
        key = key_of(schedule)
        name = scheduled_run_name(key.name, uid_of(schedule), second)
        if await self._read(AGENT_RUNS, ObjectKey(key.namespace, name)) is not None:
            return True
        return await self._has_fired(self._id(schedule), second)

    async def _has_fired(self, id_: str, second: datetime) -> bool:
        firing = await self.workflows.look(trigger_workflow_id(id_, second))
        return firing.state is not WorkflowState.MISSING

    async def _trigger(self, key: ObjectKey, wanted: TriggerRun) -> None:
        """Fire once more, unless that was done and only not noted: Temporal may have forgotten the request since."""
        if await self._has_fired(wanted.id, wanted.scheduled_at):
            return
        await self.schedules.trigger(wanted.id, wanted.scheduled_at, wanted.request_id)
        logger.info("AgentSchedule %s: triggered by annotation", key)

    async def _backfill(self, key: ObjectKey, wanted: BackfillRuns) -> None:
        await self.schedules.backfill(wanted)
        logger.info("AgentSchedule %s: %s to %s backfilled", key, wanted.begin, wanted.end)

    async def _tell_event(self, schedule: Json, event: TellEvent) -> None:
        about = {"apiVersion": AGENT_SCHEDULES.api_version, "kind": AGENT_SCHEDULES.kind, **schedule}
        await tell_event(
            self.kube,
            about,
            name=event.name,
            kind=event.kind,
            reason=event.reason,
            action="Schedule",
            note=event.note,
            now=self.now(),
        )
        logger.warning("AgentSchedule %s: %s", key_of(schedule), event.note)

    async def _delete(self, key: ObjectKey, deletion: DeleteRun) -> None:
        try:
            await self.kube.delete(
                AGENT_RUNS, key.namespace, deletion.name, uid=deletion.uid, resource_version=deletion.resource_version
            )
        except NotFound:
            return
        except Conflict:
            self.facts.listed.pop(key, None)
            raise
        logger.info("AgentRun %s/%s deleted: its schedule keeps newer ones", key.namespace, deletion.name)

    async def _write(self, schedule: Json, status: Json) -> Json:
        """Write the status; returns the object as it is then."""
        try:
            written = await write_status(self.kube, AGENT_SCHEDULES, schedule, status, "controller")
        except NotFound as error:
            self.cache.schedules.drop(schedule)
            self.facts.gone.setdefault(key_of(schedule), set()).add(uid_of(schedule))
            raise Conflict(str(error)) from error
        if written is None:
            return schedule
        self.cache.schedules.put(written)
        return written

    def _settle(self, key: ObjectKey, gone: frozenset[str], firings: frozenset[Firing]) -> None:
        """Forget what was looked after. Only now: had anything failed, the next attempt would need it."""
        forget(self.facts.gone, key, gone)
        forget(self.facts.firings, key, firings)
        self.facts.failing_since.pop(key, None)
        if self.cache.schedules.get(key) is None:
            self.facts.listed.pop(key, None)

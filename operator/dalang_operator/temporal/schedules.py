"""What the controller and the reporter ask of Temporal's Schedules, by raw RPC.

By raw RPC as in `workflows`: the SDK draws a new request id for each call, so that a trigger that is repeated after a
crash would fire twice, and its update cannot tell that somebody else's came between.
"""

import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import temporalio.api.common.v1 as common
import temporalio.api.enums.v1 as enums
import temporalio.api.schedule.v1 as schedules
import temporalio.api.taskqueue.v1 as taskqueue
import temporalio.api.workflow.v1 as workflow
import temporalio.api.workflowservice.v1 as service
from dalang_api.contract import CREATE_RUN_ACTIVITY, TRIGGER_WORKFLOW, CreatedRun
from dalang_api.v1alpha1.agentschedule import PolicyName
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.client import Client

from dalang_operator.kinds.agentschedule.desired import SUSPENDED_NOTE, DesiredSchedule, ScheduleView
from dalang_operator.kinds.agentschedule.plan import BackfillRuns
from dalang_operator.kube.resources import Json
from dalang_operator.temporal.errors import WorkflowNotFound
from dalang_operator.temporal.workflows import Workflows

PAGE_SIZE = 1000
_A_MOMENT = timedelta(milliseconds=1)

_Overlap = enums.ScheduleOverlapPolicy
OVERLAPS: dict[PolicyName, enums.ScheduleOverlapPolicy.ValueType] = {
    "Forbid": _Overlap.SCHEDULE_OVERLAP_POLICY_SKIP,
    "Allow": _Overlap.SCHEDULE_OVERLAP_POLICY_ALLOW_ALL,
    "Replace": _Overlap.SCHEDULE_OVERLAP_POLICY_CANCEL_OTHER,
    "Queue": _Overlap.SCHEDULE_OVERLAP_POLICY_BUFFER_ONE,
    "QueueAll": _Overlap.SCHEDULE_OVERLAP_POLICY_BUFFER_ALL,
}
_CALENDAR_FIELDS = {
    "second": "second",
    "minute": "minute",
    "hour": "hour",
    "dayOfMonth": "day_of_month",
    "month": "month",
    "year": "year",
    "dayOfWeek": "day_of_week",
    "comment": "comment",
}


class Schedules:
    """Calls to one Temporal namespace."""

    def __init__(self, client: Client, workflows: Workflows) -> None:
        self._client = client
        self._namespace = client.namespace
        self._service = client.workflow_service
        self._workflows = workflows

    async def create(self, desired: DesiredSchedule) -> None:
        """Create a schedule.

        Raises:
            ArgumentRefused: Temporal cannot read its times.
            TemporalError: There is one of that id.
        """
        request = service.CreateScheduleRequest(
            namespace=self._namespace,
            schedule_id=desired.id,
            schedule=make_message(desired),
            identity=self._client.identity,
            # One that was deleted by hand would still answer to the request that made it.
            request_id=str(uuid4()),
        )
        await self._workflows.call("createSchedule", self._service.create_schedule, request)

    async def update(self, desired: DesiredSchedule, token: bytes) -> None:
        """Update the schedule of that state; Temporal drops an update of another state without a word.

        Raises:
            ArgumentRefused: Temporal cannot read its times.
        """
        request = service.UpdateScheduleRequest(
            namespace=self._namespace,
            schedule_id=desired.id,
            schedule=make_message(desired),
            conflict_token=token,
            identity=self._client.identity,
            request_id=str(uuid4()),
        )
        await self._workflows.call("updateSchedule", self._service.update_schedule, request)

    async def describe(self, id_: str) -> ScheduleView | None:
        """Return what Temporal has, or None where it has nothing."""
        request = service.DescribeScheduleRequest(namespace=self._namespace, schedule_id=id_)
        try:
            answer = await self._workflows.call("describeSchedule", self._service.describe_schedule, request)
        except WorkflowNotFound:
            return None
        return ScheduleView(
            digest=_digest(answer.schedule),
            token=answer.conflict_token,
            is_paused=answer.schedule.state.paused,
            notes=answer.schedule.state.notes,
            next_times=tuple(time.ToDatetime(UTC) for time in answer.info.future_action_times),
            buffered=answer.info.buffer_size,
        )

    async def pause(self, id_: str, note: str, request_id: str) -> None:
        """Pause a schedule, if there is one."""
        try:
            await self._patch(id_, schedules.SchedulePatch(pause=note), request_id)
        except WorkflowNotFound:
            return

    async def trigger(self, id_: str, scheduled_at: datetime, request_id: str) -> None:
        """Fire once, in the name of a time, whatever runs and even if it is paused."""
        trigger = schedules.TriggerImmediatelyRequest(
            overlap_policy=_Overlap.SCHEDULE_OVERLAP_POLICY_ALLOW_ALL, scheduled_time=_timestamp(scheduled_at)
        )
        await self._patch(id_, schedules.SchedulePatch(trigger_immediately=trigger), request_id)

    async def backfill(self, wanted: BackfillRuns) -> None:
        """Fire for times of the past."""
        backfill = schedules.BackfillRequest(
            start_time=_timestamp(wanted.begin),
            end_time=_timestamp(wanted.end),
            overlap_policy=OVERLAPS[wanted.policy],
        )
        await self._patch(wanted.id, schedules.SchedulePatch(backfill_request=[backfill]), wanted.request_id)

    async def _patch(self, id_: str, patch: schedules.SchedulePatch, request_id: str) -> None:
        """Carry something out; Temporal takes a request of the same id once."""
        request = service.PatchScheduleRequest(
            namespace=self._namespace,
            schedule_id=id_,
            patch=patch,
            identity=self._client.identity,
            request_id=request_id,
        )
        await self._workflows.call("patchSchedule", self._service.patch_schedule, request)

    async def times(self, id_: str, begin: datetime, end: datetime) -> list[datetime]:
        """Return the times of a schedule from `begin` to `end`, both included; the first thousand at the most."""
        request = service.ListScheduleMatchingTimesRequest(
            namespace=self._namespace,
            schedule_id=id_,
            start_time=_timestamp(begin - _A_MOMENT),  # which Temporal takes as the last time that is over
            end_time=_timestamp(end),
        )
        answer = await self._workflows.call("listMatchingTimes", self._service.list_schedule_matching_times, request)
        return [time.ToDatetime(UTC) for time in answer.start_time]

    async def remove(self, id_: str, reason: str) -> bool:
        """Delete a schedule and end its firings; returns whether there was anything of it."""
        was_there = await self.delete(id_)
        query = (
            f"WorkflowId STARTS_WITH '{id_}-' AND WorkflowType = '{TRIGGER_WORKFLOW}' AND ExecutionStatus = 'Running'"
        )
        async for firing in self._workflows.list(query):
            was_there = await self._workflows.terminate(firing.workflow_id, reason) or was_there
        return was_there

    async def delete(self, id_: str) -> bool:
        """Delete a schedule; returns whether there was one. What it has fired goes on."""
        request = service.DeleteScheduleRequest(
            namespace=self._namespace, schedule_id=id_, identity=self._client.identity
        )
        try:
            await self._workflows.call("deleteSchedule", self._service.delete_schedule, request)
        except WorkflowNotFound:
            return False
        return True

    async def list(self) -> AsyncIterator[str]:
        """Yield the ids of all schedules in the namespace, also of others'; the newest may be missing for seconds."""
        token = b""
        while True:
            request = service.ListSchedulesRequest(
                namespace=self._namespace, maximum_page_size=PAGE_SIZE, next_page_token=token
            )
            page = await self._workflows.call("listSchedules", self._service.list_schedules, request)
            for entry in page.schedules:
                yield entry.schedule_id
            token = page.next_page_token
            if not token:
                return

    async def created_run(self, workflow_id: str) -> CreatedRun | None:
        """Return what an open firing's activity `createRun` came to, as its history has it; None: nothing yet."""
        request = service.GetWorkflowExecutionHistoryRequest(
            namespace=self._namespace, execution=common.WorkflowExecution(workflow_id=workflow_id)
        )
        try:
            answer = await self._workflows.call("history", self._service.get_workflow_execution_history, request)
        except WorkflowNotFound:
            return None
        asked: dict[int, str] = {}
        for event in answer.history.events:
            if event.HasField("activity_task_scheduled_event_attributes"):
                asked[event.event_id] = event.activity_task_scheduled_event_attributes.activity_type.name
            completed = event.activity_task_completed_event_attributes
            if asked.get(completed.scheduled_event_id) == CREATE_RUN_ACTIVITY:
                return await self._decoded(completed.result)
        return None

    async def _decoded(self, result: common.Payloads) -> CreatedRun:
        [created] = await self._client.data_converter.decode(result.payloads, [CreatedRun])
        assert isinstance(created, CreatedRun)
        return created


def make_message(desired: DesiredSchedule) -> schedules.Schedule:
    """Return the schedule as Temporal is told."""
    spec = schedules.ScheduleSpec(
        cron_string=desired.cron,
        interval=[
            schedules.IntervalSpec(interval=_duration(every), phase=_duration(offset))
            for every, offset in desired.intervals
        ],
        calendar=list(map(_calendar, desired.calendars)),
        timezone_name=desired.time_zone,
        jitter=_duration(desired.jitter),
        start_time=_timestamp(desired.start_at) if desired.start_at else None,
        end_time=_timestamp(desired.end_at) if desired.end_at else None,
    )
    action = workflow.NewWorkflowExecutionInfo(
        workflow_id=desired.id,  # Temporal adds the time
        workflow_type=common.WorkflowType(name=TRIGGER_WORKFLOW),
        task_queue=taskqueue.TaskQueue(name=desired.task_queue),
    )
    return schedules.Schedule(
        spec=spec,
        action=schedules.ScheduleAction(start_workflow=action),
        policies=schedules.SchedulePolicies(
            overlap_policy=OVERLAPS[desired.policy],
            catchup_window=_duration(desired.catch_up_window),
            pause_on_failure=desired.pause_on_failure,
        ),
        state=schedules.ScheduleState(
            paused=desired.is_suspended, notes=SUSPENDED_NOTE if desired.is_suspended else ""
        ),
    )


def _calendar(calendar: Json) -> schedules.CalendarSpec:
    return schedules.CalendarSpec(**{_CALENDAR_FIELDS[name]: value for name, value in calendar.items()})


def _digest(schedule: schedules.Schedule) -> str:
    """Return a digest of all that can be changed in Temporal, but for whether it is paused, and the words of that."""
    state = schedules.ScheduleState(
        limited_actions=schedule.state.limited_actions,
        remaining_actions=schedule.state.remaining_actions if schedule.state.limited_actions else 0,
    )
    seen = schedules.Schedule(spec=schedule.spec, action=schedule.action, policies=schedule.policies, state=state)
    return f"sha256:{hashlib.sha256(seen.SerializeToString(deterministic=True)).hexdigest()}"


def _duration(length: timedelta) -> Duration:
    message = Duration()
    message.FromTimedelta(length)
    return message


def _timestamp(time: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(time.astimezone(UTC))
    return message

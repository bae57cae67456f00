"""Workflow `TriggerRun` and its activities: a time of a schedule becomes an AgentRun.

Temporal starts it at each time. It lives as long as its run, so that Temporal's policies for what happens when the next
time comes, and for pausing after a failure, hold for runs. It does not poll: the controller signals how the run ended. The
AgentSchedule and the time are taken from the workflow's id, which Temporal vouches for, and the template is read live.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from dalang_api.contract import (
    CANCEL_RUN_ACTIVITY,
    CREATE_RUN_ACTIVITY,
    RUN_ENDED_SIGNAL,
    TRIGGER_WORKFLOW,
    CreatedRun,
    RunEnded,
    RunIdentity,
    WorkflowTarget,
    parse_trigger_id,
    schedule_id,
)
from dalang_api.v1alpha1.conditions import Reason
from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError

from dalang_operator.kinds.agentschedule.runs import make_run
from dalang_operator.kube.client import KubeClient
from dalang_operator.kube.errors import AlreadyExists, ApiError, Conflict, Forbidden, Invalid, NotFound
from dalang_operator.kube.events import tell_event
from dalang_operator.kube.resources import AGENT_RUNS, AGENT_SCHEDULES, Json, ObjectKey, controller_uid, key_of, uid_of
from dalang_operator.kube.status import timestamp
from dalang_operator.reporter.report import retryable
from dalang_operator.temporal.errors import TemporalError
from dalang_operator.temporal.schedules import Schedules

logger = logging.getLogger(__name__)

ATTEMPT = timedelta(seconds=10)
RETRIES = RetryPolicy(maximum_interval=timedelta(seconds=10))
"""For ever: a time of an outage has its run when the outage is over. For how long, the catch-up window does not say."""

_Result = TypeVar("_Result")


@workflow.defn(name=TRIGGER_WORKFLOW)
class TriggerRun:
    """Creates the run of one time and waits for its end."""

    def __init__(self) -> None:
        self._ended: dict[str, RunEnded] = {}
        self._is_cancelled = False

    @workflow.signal(name=RUN_ENDED_SIGNAL)
    def run_ended(self, ended: RunEnded) -> None:
        """Note how a run ended: before its creation was recorded, too."""
        self._ended.setdefault(ended.run_uid, ended)

    @workflow.run
    async def run(self) -> None:
        """Create the run and end as it does; cancelled, cancel it and end when it has."""
        created = await self._to_its_end(
            workflow.execute_activity(
                CREATE_RUN_ACTIVITY, result_type=CreatedRun, start_to_close_timeout=ATTEMPT, retry_policy=RETRIES
            )
        )
        if created.problem is not None:
            raise ApplicationError(created.problem, type=Reason.RUN_REFUSED, non_retryable=True)
        if created.run is not None:
            await self._wait(created.run)
        if self._is_cancelled:
            raise asyncio.CancelledError

    async def _wait(self, run: RunIdentity) -> None:
        await self._to_its_end(workflow.wait_condition(lambda: run.uid in self._ended or self._is_cancelled))
        if run.uid not in self._ended:
            await self._to_its_end(
                workflow.execute_activity(
                    CANCEL_RUN_ACTIVITY, run, start_to_close_timeout=ATTEMPT, retry_policy=RETRIES
                )
            )
            await self._to_its_end(workflow.wait_condition(lambda: run.uid in self._ended))
        ended = self._ended[run.uid]
        if ended.phase in {"Failed", "Cancelled"} and not self._is_cancelled:
            message = f"AgentRun {run.name} ended as {ended.phase}: {ended.message}"
            raise ApplicationError(message, type=ended.phase, non_retryable=True)

    async def _to_its_end(self, waited: Awaitable[_Result]) -> _Result:
        """Await something that a cancellation of the workflow does not end; the cancellation is noted."""
        task = asyncio.ensure_future(waited)
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                self._is_cancelled = True
        return task.result()


@dataclass(frozen=True)
class RunCreator:
    """Creates and cancels the runs of schedules."""

    installation: str
    namespaces: frozenset[str]
    """Watched namespaces; empty means all."""
    kube: KubeClient
    schedules: Schedules
    now: Callable[[], datetime]

    @activity.defn(name=CREATE_RUN_ACTIVITY)
    async def create(self) -> CreatedRun:
        """Create the run of the calling workflow's time, if it is not there; returns which it is.

        Where the AgentSchedule is gone, its schedule in Temporal is deleted instead: this is the first to notice when
        no controller did.

        Raises:
            ApplicationError: The API server or Temporal refused or did not answer; Temporal tries again.
        """
        firing = self._firing()
        if firing is None:
            return CreatedRun(problem="The workflow's id names no AgentSchedule of this installation")
        try:
            return await self._create(*firing)
        except ApiError as error:
            raise retryable(error) from error
        except TemporalError as error:
            raise ApplicationError(str(error), type=type(error).__name__) from error

    @activity.defn(name=CANCEL_RUN_ACTIVITY)
    async def cancel(self, run: RunIdentity) -> None:
        """Have a run of the calling workflow cancelled, unless it has ended or is gone.

        Raises:
            ApplicationError: The API server refused or did not answer; Temporal tries again.
        """
        firing = self._firing()
        if firing is None:
            return
        target, _ = firing
        body = {"metadata": {"uid": run.uid}, "spec": {"cancel": True}}
        try:
            found = await self.kube.get(AGENT_RUNS, target.namespace, run.name)
            if uid_of(found) == run.uid and controller_uid(found) == target.suffix:
                await self.kube.patch(AGENT_RUNS, target.namespace, run.name, body)
        except (NotFound, Conflict, Invalid):
            return  # gone, another by now, or it has just ended
        except ApiError as error:
            raise retryable(error) from error

    def _firing(self) -> tuple[WorkflowTarget, datetime] | None:
        """Return what the calling workflow's id names; None when it is not ours to create for."""
        info = activity.info()
        try:
            target, scheduled_at = parse_trigger_id(info.workflow_id or "")
        except ValueError:
            return None
        if target.installation != self.installation or info.workflow_type != TRIGGER_WORKFLOW:
            return None
        is_watched = not self.namespaces or target.namespace in self.namespaces
        return (target, scheduled_at) if is_watched else None

    async def _create(self, target: WorkflowTarget, scheduled_at: datetime) -> CreatedRun:
        schedule = await self._live(target)
        if schedule is None:
            await self.schedules.delete(schedule_id(self.installation, target.namespace, target.name, target.suffix))
            return CreatedRun()
        body = make_run(schedule, scheduled_at)
        try:
            run = await self.kube.create(AGENT_RUNS, target.namespace, body)
        except AlreadyExists as error:
            return await self._adopt(schedule, key_of(body), error)
        except (Invalid, Forbidden) as error:
            return await self._refused(schedule, body, scheduled_at, error)
        logger.info("AgentRun %s created for %s", key_of(run), timestamp(scheduled_at))
        return CreatedRun(run=_identity(run))

    async def _live(self, target: WorkflowTarget) -> Json | None:
        try:
            schedule = await self.kube.get(AGENT_SCHEDULES, target.namespace, target.name)
        except NotFound:
            return None
        is_it = uid_of(schedule) == target.suffix and not schedule["metadata"].get("deletionTimestamp")
        return schedule if is_it else None

    async def _adopt(self, schedule: Json, key: ObjectKey, error: ApiError) -> CreatedRun:
        """An earlier attempt has created it, or it is somebody else's of that name."""
        found = await self.kube.get(AGENT_RUNS, key.namespace, key.name)
        if controller_uid(found) == uid_of(schedule):
            return CreatedRun(run=_identity(found))
        return await self._refused(schedule, found, None, error)

    async def _refused(self, schedule: Json, run: Json, scheduled_at: datetime | None, error: ApiError) -> CreatedRun:
        name = key_of(run).name
        problem = f"AgentRun {name} cannot be created: {error}"
        when = f" for {timestamp(scheduled_at)}" if scheduled_at else ""
        await tell_event(
            self.kube,
            {"apiVersion": AGENT_SCHEDULES.api_version, "kind": AGENT_SCHEDULES.kind, **schedule},
            name=f"{name}.refused",
            kind="Warning",
            reason=Reason.RUN_REFUSED,
            action="CreateRun",
            note=f"There is no run{when}. {problem}",
            now=self.now(),
        )
        logger.warning("AgentSchedule %s: %s", key_of(schedule), problem)
        return CreatedRun(problem=problem)


def _identity(run: Json) -> RunIdentity:
    return RunIdentity(name=key_of(run).name, uid=uid_of(run))

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
from dalang_api.v1alpha1.conditions import Phase, Reason
from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError

from dalang_operator.kinds.agentschedule.desired import is_suspended
from dalang_operator.kinds.agentschedule.orders import is_ordered
from dalang_operator.kinds.agentschedule.plan import TRIGGER
from dalang_operator.kinds.agentschedule.runs import (
    DRY_RUN_AT,
    creator_of,
    is_created_by,
    lasting_digest,
    make_run,
)
from dalang_operator.kube.client import KubeClient
from dalang_operator.kube.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    QuotaExceeded,
)
from dalang_operator.kube.events import tell_event
from dalang_operator.kube.resources import AGENT_RUNS, AGENT_SCHEDULES, Json, ObjectKey, controller_uid, key_of, uid_of
from dalang_operator.kube.status import timestamp
from dalang_operator.kube.user import own_user
from dalang_operator.reporter.report import retryable
from dalang_operator.runtime.cache import is_finished
from dalang_operator.runtime.references import schedule_of
from dalang_operator.temporal.errors import TemporalError
from dalang_operator.temporal.schedules import Schedules

logger = logging.getLogger(__name__)

ATTEMPT = timedelta(seconds=10)
RETRIES = RetryPolicy(maximum_interval=timedelta(seconds=10))
"""For ever: a time of an outage has its run when the outage is over. For how long, the catch-up window does not say."""

ATTEMPTS_NOTED = 8
"""Of how many versions of a template the digests are kept while its run is not created."""

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
        """Create the run of the calling workflow's time, if it is not there; returns which it is, if it is to be waited for.

        Where the AgentSchedule is gone, its schedule in Temporal is deleted instead: this is the first to notice when
        no controller did. Likewise where it is suspended: only what was ordered by hand has its run.

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
        earlier = _note_attempt(lasting_digest(body["spec"]))
        if is_suspended(schedule) and not is_ordered(schedule, scheduled_at):
            return await self._known(schedule, key_of(body), earlier)
        try:
            run = await self.kube.create(AGENT_RUNS, target.namespace, body)
        except (AlreadyExists, Invalid, Forbidden) as error:
            if found := await self._find(key_of(body)):  # a full quota, in which it counts, is told first
                return await self._adopt(schedule, found, scheduled_at, earlier)
            if isinstance(error, AlreadyExists):
                raise  # and gone by now
            if isinstance(error, QuotaExceeded):
                await self._tell_waiting(schedule, body, scheduled_at, error)
                raise
            return await self._refused(schedule, body, scheduled_at, str(error))
        logger.info("AgentRun %s created for %s", key_of(run), timestamp(scheduled_at))
        return CreatedRun(run=_identity(run))

    async def _live(self, target: WorkflowTarget) -> Json | None:
        try:
            schedule = await self.kube.get(AGENT_SCHEDULES, target.namespace, target.name)
        except NotFound:
            return None
        is_it = uid_of(schedule) == target.suffix and not schedule["metadata"].get("deletionTimestamp")
        return schedule if is_it else None

    async def _find(self, key: ObjectKey) -> Json | None:
        try:
            return await self.kube.get(AGENT_RUNS, key.namespace, key.name)
        except NotFound:
            return None

    async def _known(self, schedule: Json, key: ObjectKey, earlier: frozenset[str]) -> CreatedRun:
        """Create nothing; but an earlier attempt may have, before the schedule was suspended."""
        found = await self._find(key)
        if found is not None and await self._strangeness(schedule, found, earlier) is None:
            return _awaited(found)
        logger.info("AgentRun %s is not created: its schedule is suspended", key)
        return CreatedRun()

    async def _adopt(self, schedule: Json, found: Json, scheduled_at: datetime, earlier: frozenset[str]) -> CreatedRun:
        """An earlier attempt or firing has created it; or somebody else, who knows the name and can write any owner."""
        problem = await self._strangeness(schedule, found, earlier)
        if problem is None:
            return _awaited(found)
        remedy = f"Delete AgentRun {key_of(found).name} and trigger the schedule with annotation {TRIGGER}"
        return await self._refused(
            schedule, found, scheduled_at, f"there is one of that name already, {problem}. {remedy}"
        )

    async def _strangeness(self, schedule: Json, found: Json, earlier: frozenset[str]) -> str | None:
        """Return why a run is not what an attempt has created, or None."""
        if schedule_of(found) != (key_of(schedule), uid_of(schedule)):
            return "which is not owned by the schedule"
        if not is_created_by(found, await own_user(self.kube)):
            return f"created by {creator_of(found)}"
        digest = lasting_digest(found["spec"])
        if digest in earlier or digest == await self._admitted_digest(schedule):
            return None
        return "whose spec is not that of spec.runTemplate"

    async def _admitted_digest(self, schedule: Json) -> str | None:
        """Return the digest of a run of the template as admission would have it, or None where that refuses it."""
        body = make_run(schedule, DRY_RUN_AT)
        try:
            admitted = await self.kube.create(AGENT_RUNS, key_of(schedule).namespace, body, dry_run=True)
        except QuotaExceeded:
            raise  # which tells nothing of the run
        except (Invalid, Forbidden):
            return None
        return lasting_digest(admitted["spec"])

    async def _tell_waiting(self, schedule: Json, body: Json, scheduled_at: datetime, error: ApiError) -> None:
        note = f"The run of {timestamp(scheduled_at)} is created when the quota allows it; it is tried again. {error}"
        await self._tell(schedule, f"{key_of(body).name}.quota", Reason.QUOTA_EXCEEDED, note)

    async def _refused(self, schedule: Json, run: Json, scheduled_at: datetime, words: str) -> CreatedRun:
        name = key_of(run).name
        problem = f"AgentRun {name} cannot be created: {words}"
        note = f"There is no run for {timestamp(scheduled_at)}. {problem}"
        await self._tell(schedule, f"{name}.refused", Reason.RUN_REFUSED, note)
        return CreatedRun(problem=problem)

    async def _tell(self, schedule: Json, name: str, reason: Reason, note: str) -> None:
        await tell_event(
            self.kube,
            {"apiVersion": AGENT_SCHEDULES.api_version, "kind": AGENT_SCHEDULES.kind, **schedule},
            name=name,
            kind="Warning",
            reason=reason,
            action="CreateRun",
            note=note,
            now=self.now(),
        )
        logger.warning("AgentSchedule %s: %s", key_of(schedule), note)


def _note_attempt(digest: str) -> frozenset[str]:
    """Note with Temporal what is about to be created, and return what all attempts have tried, this one included.

    Where an answer was lost and the template is edited before the next attempt, this tells the run of the earlier one from
    a stranger's: nothing in the object could, since whoever creates one may write anything there.
    """
    noted = (*activity.info().heartbeat_details, digest)
    tried = tuple(dict.fromkeys(map(str, noted)))[-ATTEMPTS_NOTED:]
    activity.heartbeat(*tried)
    return frozenset(tried)


def _awaited(run: Json) -> CreatedRun:
    """Return a run that was there already, unless there is nothing to wait for.

    What has ended before the first attempt is of an earlier firing of the same time, as where a backfill asks for it again.
    Its end was told then, and nobody tells it again: it neither fails this firing nor pauses the schedule anew. At a later
    attempt a run that failed may be of an earlier one, whose answer was lost: the controller tells it, and pauses.
    """
    if is_finished(run) and (activity.info().attempt == 1 or run["status"]["phase"] == Phase.SUCCEEDED):
        logger.info("AgentRun %s has ended already", key_of(run))
        return CreatedRun()
    return CreatedRun(run=_identity(run))


def _identity(run: Json) -> RunIdentity:
    return RunIdentity(name=key_of(run).name, uid=uid_of(run))

"""AgentSession: observe one session with its runs, plan, execute."""

import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from dalang_api.contract import (
    CANCEL_EXCHANGE_SIGNAL,
    CONFIGURE_SIGNAL,
    EXCHANGE_SIGNAL,
    REPORT_AGAIN_SIGNAL,
    SESSION_WORKFLOW,
    CancelExchange,
    Wire,
    parse_workflow_id,
)
from dalang_api.v1alpha1.conditions import Reason

from dalang_operator.kinds.actions import TerminateWorkflow, WakePool, WriteStatus
from dalang_operator.kinds.agentrun.snapshot import make_snapshot
from dalang_operator.kinds.agentsession.plan import (
    SECOND_LOOK_SECONDS,
    Action,
    CancelUnsent,
    CloseIdle,
    Configure,
    Observed,
    ReportAgain,
    SendRun,
    Settings,
    StartSession,
    WriteRun,
    held,
    is_idle,
    needs_look,
    place_of,
    plan,
    workflow_id_of,
)
from dalang_operator.kinds.config_maps import RecentConfigMaps
from dalang_operator.kinds.instructions import ConfigMaps
from dalang_operator.kinds.reach import Reach, find_reach, with_model
from dalang_operator.kinds.workflow import WorkflowState, WorkflowView
from dalang_operator.kube.errors import Conflict, NotFound
from dalang_operator.kube.resources import AGENT_RUNS, AGENT_SESSIONS, Json, ObjectKey, PatchBody, Resource, uid_of
from dalang_operator.kube.status import parse_timestamp, write_status
from dalang_operator.runtime.cache import Cache, is_closed, is_finished, is_started, queue_pool
from dalang_operator.runtime.facts import forget
from dalang_operator.runtime.references import session_agent_of, summary_model_of
from dalang_operator.temporal.errors import TemporalError, WorkflowNotFound

logger = logging.getLogger(__name__)

START_FAILED_AFTER = timedelta(seconds=15)
"""A run that could not be sent for so long says so; shorter outages cost no write."""


class KubePort(Protocol):
    """What the reconcile needs of the API server."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json: ...

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: PatchBody, subresource: str | None = None
    ) -> Json: ...

    def list_pages(
        self, resource: Resource, namespace: str | None, *, fields: str = ""
    ) -> AsyncIterator[tuple[list[Json], str]]: ...


class WorkflowPort(Protocol):
    """What the reconcile needs of Temporal."""

    async def start(
        self, workflow_id: str, task_queue: str, workflow_input: Wire, request_id: str, workflow_type: str
    ) -> WorkflowView: ...

    async def signal(self, workflow_id: str, name: str, value: Wire | None, request_id: str) -> None: ...

    async def terminate(self, workflow_id: str, reason: str) -> bool: ...

    async def look(self, workflow_id: str) -> WorkflowView: ...


@dataclass
class SessionFacts:
    """What is known of sessions beside their objects. Filled by the intake (gone, versions), runs and the sweep."""

    gone: dict[ObjectKey, set[str]] = field(default_factory=dict)
    """Uids that were deleted and not looked after yet."""
    versions: dict[str, int] = field(default_factory=dict)
    """Uid of an unfinished run of a session → its resourceVersion when it was seen first, so mostly that of its creation.
    Before the first write of ours it goes into the run's `status.order`."""
    doubtful: set[str] = field(default_factory=set)
    """Ids of session workflows that were found closed, or not found: Temporal has to be asked."""
    missing_since: dict[str, datetime] = field(default_factory=dict)
    """Ids of session workflows that a look did not find, and when it was the first time."""
    problems: dict[str, str] = field(default_factory=dict)
    """Id of a session workflow → why its code fails."""
    snapshots: dict[str, str] = field(default_factory=dict)
    """Id of a session workflow → digest of the snapshot that this process sent it last."""
    met: set[str] = field(default_factory=set)
    """Ids of session workflows that this process has started, sent a run, or had report."""
    left: dict[str, datetime | None] = field(default_factory=dict)
    """Id of a session workflow → when this process saw that its last run had ended or was gone; None while there is one."""

    def forget(self, workflow_id: str) -> None:
        """The session has ended or is gone."""
        self.doubtful.discard(workflow_id)
        self.missing_since.pop(workflow_id, None)
        self.problems.pop(workflow_id, None)
        self.snapshots.pop(workflow_id, None)
        self.met.discard(workflow_id)
        self.left.pop(workflow_id, None)


@dataclass(frozen=True)
class SessionReconciler:
    """Brings AgentSessions to where they should be, and their runs to them."""

    kube: KubePort
    workflows: WorkflowPort
    cache: Cache
    config_maps: RecentConfigMaps
    facts: SessionFacts
    settings: Settings
    wake_pool: Callable[[ObjectKey], None]
    now: Callable[[], datetime]

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Reconcile one session; returns after how many seconds to look again, or None."""
        gone = frozenset(self.facts.gone.get(key, ()))
        observed = await self._observe(key, gone)
        self.cache.idle_sessions.pop(key, None)
        requeue_after = await self._carry_out(observed)
        self._settle(gone, observed)
        return requeue_after

    async def _observe(self, key: ObjectKey, gone: frozenset[str]) -> Observed:
        session, runs = self.cache.sessions.get(key), self._runs(key)
        asked = {run["status"]["workflow"]["id"] for run in runs if is_started(run)}
        # What runs were sent to and is not there was deleted as well, though it was while nobody watched.
        uids = gone | {parse_workflow_id(workflow_id).suffix for workflow_id in asked}
        if uids - _uids(session) or gone & _uids(session):
            session = await self._read(key)  # a workflow that is stopped for nothing takes all that was said with it
        observed = Observed(
            key=key,
            settings=self.settings,
            now=self.now(),
            session=session,
            runs=runs,
            versions=self.facts.versions,
            gone=uids - _uids(session),
        )
        if session is not None:
            own = workflow_id_of(observed, uid_of(session))
            asked.add(own)
            observed = await self._observe_idleness(observed, own)
            if not is_closed(session):
                observed = await self._observe_reach(observed, session)
            observed = replace(
                observed,
                sent_snapshot=self.facts.snapshots.get(own),
                problem=self.facts.problems.get(own),
                is_met=own in self.facts.met,
                has_pool=all(self.cache.pools.get(ObjectKey(key.namespace, pool)) for pool in queue_pool(session)),
            )
            if needs_look(session):
                observed = await self._look(observed, own)
        for workflow_id in sorted(asked & (self.facts.doubtful | self.facts.missing_since.keys())):
            observed = await self._look(observed, workflow_id)
        return observed

    async def _observe_idleness(self, observed: Observed, own: str) -> Observed:
        """Find out when the session had a run. What would close it is not the watch's word alone."""
        if observed.runs:
            self.facts.left[own] = None
        elif own in self.facts.left and self.facts.left[own] is None:
            self.facts.left[own] = observed.now
        observed = replace(observed, last_busy=self.facts.left.get(own))
        if not is_idle(observed):
            return observed
        listed = await self._last_busy(observed)
        return replace(observed, last_busy=max(filter(None, (observed.last_busy, listed)), default=None))

    async def _last_busy(self, observed: Observed) -> datetime | None:
        """Return when the last run of a session ended that the API server has; now, where one is there of which no watch told.

        A status is written after that of the run, and not at all for one that the controller has ended.
        """
        ends = [
            parse_timestamp(run["status"]["finishedAt"]) if is_finished(run) else observed.now
            async for page, _ in self.kube.list_pages(
                AGENT_RUNS, observed.key.namespace, fields=f"spec.sessionRef.name={observed.key.name}"
            )
            for run in page
        ]
        return max(ends, default=None)

    async def _read(self, key: ObjectKey) -> Json | None:
        try:
            session = await self.kube.get(AGENT_SESSIONS, key.namespace, key.name)
        except NotFound:
            return None
        self.cache.sessions.put(session)
        return session

    def _runs(self, key: ObjectKey) -> tuple[Json, ...]:
        """Return the unfinished runs of a session in the order of their creation."""
        runs = self.cache.runs_of_session(key)
        return tuple(sorted(runs, key=lambda run: place_of(run, self.facts.versions)))

    async def _observe_reach(self, observed: Observed, session: Json) -> Observed:
        namespace = observed.key.namespace
        agent = self.cache.agents.get(ObjectKey(namespace, session_agent_of(session)))
        if agent is None:
            return observed
        known = self.cache.known(namespace)
        reach = with_model(find_reach(agent, known), summary_model_of(session), known)
        config_maps: ConfigMaps = {}
        if isinstance(reach, Reach):
            config_maps = await self.config_maps.of(namespace, reach.agents)
        observed = replace(observed, agent=agent, reach=reach, config_maps=config_maps)
        if not isinstance(reach, Reach) or all(map(is_started, observed.runs)):
            return observed
        return replace(observed, snapshot=make_snapshot(reach, config_maps, self.settings.installation, namespace))

    async def _look(self, observed: Observed, workflow_id: str) -> Observed:
        view = await self.workflows.look(workflow_id)
        since = self.facts.missing_since.get(workflow_id)
        was_missing = observed.was_missing
        if view.state is not WorkflowState.MISSING:
            self.facts.missing_since.pop(workflow_id, None)
        elif since is None:
            self.facts.missing_since[workflow_id] = observed.now
        elif (observed.now - since).total_seconds() >= SECOND_LOOK_SECONDS - 1:
            was_missing |= {workflow_id}
        return replace(observed, views={**observed.views, workflow_id: view}, was_missing=was_missing)

    async def _carry_out(self, observed: Observed) -> float | None:
        """Execute the plan. A start, and a workflow that is not there, change what is known: the rest is planned anew."""
        steps = plan(observed)
        for action in steps.actions:
            try:
                view = await self._execute(observed, action)
            except WorkflowNotFound:
                workflow_id = _workflow_of(action)
                if workflow_id is None or workflow_id in observed.views:
                    raise
                return await self._carry_out(await self._look(self._after_writes(observed), workflow_id))
            except TemporalError as error:
                await self._tell_failure(observed, error)
                raise
            if view is not None:
                assert isinstance(action, StartSession), "nothing else returns a view"
                views = {**observed.views, action.workflow_id: view}
                return await self._carry_out(replace(observed, views=views, is_met=True))
        return steps.requeue_after

    def _after_writes(self, observed: Observed) -> Observed:
        """Return what is known with the objects as the writes of this plan have left them."""
        session, latest = observed.session, self.cache.sessions.get(observed.key)
        is_same = session is not None and latest is not None and uid_of(latest) == uid_of(session)
        return replace(observed, session=latest if is_same else session, runs=self._runs(observed.key))

    async def _execute(self, observed: Observed, action: Action) -> WorkflowView | None:
        match action:
            case StartSession():
                return await self._start(observed, action)
            case SendRun():
                await self._send(action)
            case CancelUnsent(workflow_id, run):
                message = CancelExchange(run=run, deleted=True)
                await self._signal(workflow_id, CANCEL_EXCHANGE_SIGNAL, message, f"cancel unsent {run.uid}")
            case Configure(workflow_id, settings, request_id):
                await self._signal(workflow_id, CONFIGURE_SIGNAL, settings, request_id)
            case ReportAgain(workflow_id, request_id):
                await self._signal(workflow_id, REPORT_AGAIN_SIGNAL, None, request_id)
                self.facts.met.add(workflow_id)
            case TerminateWorkflow(workflow_id, reason):
                if await self.workflows.terminate(workflow_id, reason):
                    logger.info("AgentSession %s: workflow %s terminated: %s", observed.key, workflow_id, reason)
            case WriteRun(run, status):
                await self._write_run(run, status)
            case WriteStatus(status):
                assert observed.session is not None, "a status is planned for an object"
                await self._write(observed.session, status)
            case WakePool(pool):
                self.wake_pool(pool)
            case CloseIdle(uid):
                self.cache.idle_sessions[observed.key] = uid
        return None

    async def _start(self, observed: Observed, start: StartSession) -> WorkflowView:
        logger.info("AgentSession %s: workflow %s is started", observed.key, start.workflow_id)
        view = await self.workflows.start(
            start.workflow_id, start.task_queue, start.session_input, start.request_id, SESSION_WORKFLOW
        )
        self.facts.met.add(start.workflow_id)
        return view

    async def _send(self, action: SendRun) -> None:
        exchange = action.exchange
        await self._signal(action.workflow_id, EXCHANGE_SIGNAL, exchange, f"exchange {exchange.run.uid}")
        self.facts.met.add(action.workflow_id)
        if exchange.snapshot is not None:
            self.facts.snapshots[action.workflow_id] = exchange.snapshot_digest
        await self._write_run(action.run, action.status)

    async def _signal(self, workflow_id: str, name: str, value: Wire | None, request_id: str) -> None:
        await self.workflows.signal(workflow_id, name, value, request_id)

    async def _tell_failure(self, observed: Observed, error: TemporalError) -> None:
        """Say of runs that wait for long already that they could not be sent."""
        for run in observed.runs:
            waited = observed.now - parse_timestamp(run["metadata"]["creationTimestamp"])
            is_latest = self.cache.runs.get(ObjectKey(observed.key.namespace, run["metadata"]["name"])) is run
            if not is_started(run) and is_latest and waited > START_FAILED_AFTER:
                message = f"The run cannot be sent to its session and is tried again. {error}"
                await self._write_run(run, held(observed, run, Reason.START_FAILED, message))

    async def _write(self, session: Json, status: Json) -> None:
        try:
            written = await write_status(self.kube, AGENT_SESSIONS, session, status, "controller")
        except NotFound as error:
            raise Conflict(str(error)) from error  # the watch will tell
        if written is None:
            return
        self.cache.sessions.put(written)
        ready = next(each for each in written["status"]["conditions"] if each["type"] == "Ready")
        logger.info(
            "AgentSession %s/%s: %s", session["metadata"]["namespace"], session["metadata"]["name"], ready["reason"]
        )

    async def _write_run(self, run: Json, status: Json) -> None:
        try:
            written = await write_status(self.kube, AGENT_RUNS, run, status, "controller")
        except NotFound as error:
            raise Conflict(str(error)) from error  # the watch will tell
        if written is None:
            return
        if is_finished(written):
            self.cache.runs.drop(written)
            name = written["metadata"]["name"]
            logger.info("AgentRun %s/%s: %s", written["metadata"]["namespace"], name, status["conditions"][0]["reason"])
        else:
            self.cache.runs.put(written)

    def _settle(self, gone: frozenset[str], observed: Observed) -> None:
        """Forget what was looked after. Only now: had anything failed, the next attempt would need it."""
        forget(self.facts.gone, observed.key, gone)
        needed = {run["status"]["workflow"]["id"] for run in observed.runs if is_started(run)}
        for uid in gone:
            workflow_id = workflow_id_of(observed, uid)
            if workflow_id not in needed:
                self.facts.forget(workflow_id)
        for workflow_id in observed.views:
            self.facts.doubtful.discard(workflow_id)


def _uids(session: Json | None) -> frozenset[str]:
    return frozenset() if session is None else frozenset({uid_of(session)})


def _workflow_of(action: Action) -> str | None:
    """Return the id of the workflow that an action signals."""
    if isinstance(action, (SendRun, CancelUnsent, Configure, ReportAgain)):
        return action.workflow_id
    return None

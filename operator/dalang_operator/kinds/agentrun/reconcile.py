"""AgentRun: observe one run, plan, execute."""

import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from dalang_api.contract import (
    CANCEL_EXCHANGE_SIGNAL,
    RunInput,
    Wire,
    run_workflow_id,
    schedule_id,
    trigger_workflow_id,
)
from dalang_api.v1alpha1.conditions import Reason

from dalang_operator.kinds.actions import TerminateWorkflow, WakePool, WriteStatus
from dalang_operator.kinds.agentrun.plan import (
    SECOND_LOOK_SECONDS,
    Action,
    CancelWorkflow,
    DeleteRun,
    LeaveOut,
    Observed,
    Settings,
    StartWorkflow,
    needs_firing,
    needs_look,
    needs_waited,
    plan,
    time_waited,
)
from dalang_operator.kinds.agentrun.status import pending_status
from dalang_operator.kinds.agentschedule.runs import firing_of
from dalang_operator.kinds.agentsession.reconcile import SessionFacts
from dalang_operator.kinds.config_maps import RecentConfigMaps
from dalang_operator.kinds.reach import Reach, find_reach
from dalang_operator.kinds.workflow import WorkflowState, WorkflowView
from dalang_operator.kube.errors import Conflict, NotFound
from dalang_operator.kube.resources import (
    AGENT_APPROVALS,
    AGENT_RUNS,
    Json,
    ObjectKey,
    PatchBody,
    Resource,
    controller_uid,
    uid_of,
)
from dalang_operator.kube.status import parse_timestamp, write_status
from dalang_operator.runtime.cache import Cache, is_finished, is_started
from dalang_operator.runtime.facts import forget
from dalang_operator.runtime.references import session_of
from dalang_operator.temporal.errors import TemporalError, WorkflowNotFound

logger = logging.getLogger(__name__)

START_FAILED_AFTER = timedelta(seconds=15)
"""A run that could not be started for so long says so; shorter outages cost no write."""

ENDING_SECONDS = 0.05


class KubePort(Protocol):
    """What the reconcile needs of the API server."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json: ...

    def list_pages(
        self, resource: Resource, namespace: str | None, *, fields: str = "", labels: str = ""
    ) -> AsyncIterator[tuple[list[Json], str]]: ...

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: PatchBody, subresource: str | None = None
    ) -> Json: ...

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, resource_version: str | None = None
    ) -> None: ...


class WorkflowPort(Protocol):
    """What the reconcile needs of Temporal."""

    async def start(self, workflow_id: str, task_queue: str, run_input: RunInput, request_id: str) -> WorkflowView: ...

    async def cancel(self, workflow_id: str, reason: str) -> None: ...

    async def signal(self, workflow_id: str, name: str, value: Wire | None, request_id: str) -> None: ...

    async def terminate(self, workflow_id: str, reason: str) -> bool: ...

    async def look(self, workflow_id: str) -> WorkflowView: ...


@dataclass
class RunFacts:
    """What is known of runs beside their objects. Filled by the intake (gone), the reporter (expiry) and the sweep."""

    gone: dict[ObjectKey, set[str]] = field(default_factory=dict)
    """Uids that left the hot watch and were not looked after yet."""
    exchanges: dict[str, str] = field(default_factory=dict)
    """Those of them that belong to a session → id of its workflow, empty where it had none."""
    ending: set[str] = field(default_factory=set)
    """Uids whose last status the reporter of this process is about to write."""
    finished: dict[str, Json] = field(default_factory=dict)
    """Uid → the run as the reporter of this process ended it: saves the read when it leaves the watch for that."""
    doubtful: set[str] = field(default_factory=set)
    """Uids whose workflow the sweep found closed, or did not find: Temporal has to be asked."""
    missing_since: dict[str, datetime] = field(default_factory=dict)
    """Uids whose workflow a look did not find, and when it was the first time."""
    problems: dict[str, str] = field(default_factory=dict)
    """Uid → why its workflow's code fails."""
    swept: bool = False
    """The sweep has filled `problems` at least once."""
    cancel_sent: dict[str, datetime] = field(default_factory=dict)
    """Uids whose workflow was asked to cancel, and when."""

    def end(self, run: Json) -> None:
        """Note a run that was just ended. Called by the reporter's thread; only what its time to live needs is kept."""
        spec = {key: value for key, value in run["spec"].items() if key == "ttlAfterFinished"}
        metadata = {key: value for key, value in run["metadata"].items() if key not in {"annotations", "managedFields"}}
        self.finished[uid_of(run)] = {
            "metadata": metadata,
            "spec": spec,
            "status": {"finishedAt": run["status"]["finishedAt"]},
        }

    def forget(self, uid: str) -> None:
        """The run has ended or is gone."""
        self.exchanges.pop(uid, None)
        self.doubtful.discard(uid)
        self.missing_since.pop(uid, None)
        self.problems.pop(uid, None)
        self.cancel_sent.pop(uid, None)


@dataclass(frozen=True)
class RunReconciler:
    """Brings AgentRuns to where they should be."""

    kube: KubePort
    workflows: WorkflowPort
    cache: Cache
    config_maps: RecentConfigMaps
    facts: RunFacts
    settings: Settings
    wake_pool: Callable[[ObjectKey], None]
    now: Callable[[], datetime]
    sessions: SessionFacts
    wake_session: Callable[[ObjectKey], None]

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Reconcile one run; returns after how many seconds to look again, or None."""
        gone = frozenset(self.facts.gone.get(key, ()))
        if gone & self.facts.ending:
            return ENDING_SECONDS  # the event was quicker than the answer to the write that caused it
        observed = await self._observe(key, gone)
        requeue_after = await self._carry_out(observed)
        self._settle(key, gone, observed)
        return requeue_after

    async def _observe(self, key: ObjectKey, gone: frozenset[str]) -> Observed:
        run = self.cache.runs.get(key)
        if run is None or uid_of(run) in gone:
            run = self._just_ended(gone) or await self._read(key)
        exchanges = {uid: self.facts.exchanges[uid] for uid in gone if uid in self.facts.exchanges}
        observed = Observed(key=key, settings=self.settings, now=self.now(), run=run, gone=gone, exchanges=exchanges)
        if run is None or is_finished(run):
            return replace(observed, is_firing=needs_firing(observed) and await self._is_firing(run))
        uid = uid_of(run)
        agent = self.cache.agent_of_run(run)
        session_name = session_of(run)
        observed = replace(
            observed,
            agent=agent,
            session=None if session_name is None else self.cache.sessions.get(ObjectKey(key.namespace, session_name)),
            swept=self.facts.swept,
            problem=self._problem(run),
            cancel_sent=self.facts.cancel_sent.get(uid),
            has_worker=self.cache.has_worker(key.namespace, run),
            pool_message=self.cache.pool_message(key.namespace, run),
            awake_since=self.cache.awake_since(key),
        )
        if agent is not None and not is_started(run) and session_name is None:
            observed = await self._observe_reach(observed, agent)
        if uid in self.facts.doubtful or uid in self.facts.missing_since or needs_look(run, observed.cancel_sent):
            observed = await self._look(observed, uid)
        if needs_waited(observed):
            observed = replace(observed, waited=time_waited(await self._approvals(key, uid), observed.now))
        return observed

    async def _is_firing(self, run: Json | None) -> bool:
        found = firing_of(run) if run is not None else None
        if found is None:
            return False
        key, firing = found
        workflow_id = trigger_workflow_id(
            schedule_id(self.settings.installation, *key, firing.uid), firing.scheduled_at
        )
        return (await self.workflows.look(workflow_id)).state is WorkflowState.OPEN

    def _problem(self, run: Json) -> str | None:
        """Return why the code of the run's workflow fails, or that of its session's."""
        if session_of(run) is None:
            return self.facts.problems.get(uid_of(run))
        return self.sessions.problems.get(run.get("status", {}).get("workflow", {}).get("id", ""))

    async def _approvals(self, key: ObjectKey, uid: str) -> list[Json]:
        """Return all AgentApprovals of a run, those that are settled as well, which the cache does not keep."""
        found: list[Json] = []
        pages = self.kube.list_pages(AGENT_APPROVALS, key.namespace, fields=f"spec.runRef.name={key.name}")
        async for page, _ in pages:
            found += [approval for approval in page if controller_uid(approval) == uid]
        return found

    async def _observe_reach(self, observed: Observed, agent: Json) -> Observed:
        namespace = observed.key.namespace
        reach = find_reach(agent, self.cache.known(namespace))
        if not isinstance(reach, Reach):
            return replace(observed, reach=reach)
        config_maps = await self.config_maps.of(namespace, reach.agents)
        return replace(observed, reach=reach, config_maps=config_maps)

    def _just_ended(self, gone: frozenset[str]) -> Json | None:
        """Return the run if it left the watch because the reporter of this process ended it, which needs no read."""
        ended = [self.facts.finished.pop(uid, None) for uid in gone]
        return ended[0] if len(ended) == 1 else None

    async def _read(self, key: ObjectKey) -> Json | None:
        """Read the live object: what is not in the cache may be finished, deleted, or known to us a moment later."""
        try:
            run = await self.kube.get(AGENT_RUNS, key.namespace, key.name)
        except NotFound:
            return None
        if not is_finished(run):
            self.cache.runs.put(run)
        return run

    async def _look(self, observed: Observed, uid: str) -> Observed:
        view = await self.workflows.look(self._workflow_id(observed.key, uid))
        since = self.facts.missing_since.get(uid)
        was_missing = since is not None and (observed.now - since).total_seconds() >= SECOND_LOOK_SECONDS - 1
        if view.state is not WorkflowState.MISSING:
            self.facts.missing_since.pop(uid, None)
        elif since is None:
            self.facts.missing_since[uid] = observed.now
        return replace(observed, workflow=view, was_missing=was_missing)

    async def _carry_out(self, observed: Observed) -> float | None:
        """Execute the plan. A start changes what is known, so after it the rest is planned anew (see plan B, E)."""
        steps = plan(observed)
        for action in steps.actions:
            view = await self._execute(observed, action)
            if view is not None:
                return await self._carry_out(replace(observed, workflow=view, gone=frozenset()))
        return steps.requeue_after

    async def _execute(self, observed: Observed, action: Action) -> WorkflowView | None:
        key, run = observed.key, observed.run
        match action:
            case StartWorkflow():
                return await self._start(observed, action)
            case WriteStatus(status):
                assert run is not None, "a status is planned for an object"
                await self._write(key, run, status)
            case CancelWorkflow(workflow_id, reason):
                assert run is not None, "a cancel is planned for an object"
                return await self._cancel(observed, uid_of(run), workflow_id, reason)
            case TerminateWorkflow(workflow_id, reason):
                if await self.workflows.terminate(workflow_id, reason):
                    logger.info("AgentRun %s: workflow %s terminated: %s", key, workflow_id, reason)
            case LeaveOut():
                await self._leave_out(observed, action)
            case WakePool(pool):
                self.wake_pool(pool)
            case DeleteRun(uid, resource_version):
                await self._delete(key, uid, resource_version)
        return None

    async def _start(self, observed: Observed, start: StartWorkflow) -> WorkflowView:
        try:
            return await self.workflows.start(start.workflow_id, start.task_queue, start.run_input, start.request_id)
        except TemporalError as error:
            run = observed.run
            assert run is not None, "a start is planned for an object"
            if observed.now - parse_timestamp(run["metadata"]["creationTimestamp"]) > START_FAILED_AFTER:
                message = f"The workflow cannot be started and is tried again. {error}"
                await self._write(observed.key, run, pending_status(run, Reason.START_FAILED, message, observed.now))
            raise

    async def _write(self, key: ObjectKey, run: Json, status: Json) -> None:
        try:
            written = await write_status(self.kube, AGENT_RUNS, run, status, "controller")
        except NotFound as error:
            self.cache.runs.drop(run)
            self.facts.gone.setdefault(key, set()).add(uid_of(run))
            raise Conflict(str(error)) from error
        if written is None:
            return
        if is_finished(written):
            logger.info("AgentRun %s: %s", key, status["conditions"][0]["reason"])
        else:
            self.cache.runs.put(written)

    async def _cancel(self, observed: Observed, uid: str, workflow_id: str, reason: str) -> WorkflowView | None:
        try:
            await self.workflows.cancel(workflow_id, reason)
        except WorkflowNotFound:
            return (await self._look(observed, uid)).workflow  # it has ended, or is lost
        self.facts.cancel_sent.setdefault(uid, self.now())
        logger.info("AgentRun %s: workflow asked to cancel: %s", observed.key, reason)
        return None

    async def _leave_out(self, observed: Observed, action: LeaveOut) -> None:
        uid, kind = action.message.run.uid, "delete" if action.message.deleted else "cancel"
        try:
            await self.workflows.signal(action.workflow_id, CANCEL_EXCHANGE_SIGNAL, action.message, f"{kind} {uid}")
        except WorkflowNotFound:
            self._doubt_session(observed, action.workflow_id)
            return
        if not action.message.deleted:
            self.facts.cancel_sent.setdefault(uid, self.now())
        logger.info("AgentRun %s: its session is told: %s", observed.key, action.reason)

    def _doubt_session(self, observed: Observed, workflow_id: str) -> None:
        """Have the session looked at, which ends its runs where it has ended itself. One without runs need not be."""
        name = session_of(observed.run) if observed.run is not None else None
        if name is not None:
            self.sessions.doubtful.add(workflow_id)
            self.wake_session(ObjectKey(observed.key.namespace, name))

    async def _delete(self, key: ObjectKey, uid: str, resource_version: str) -> None:
        try:
            await self.kube.delete(AGENT_RUNS, key.namespace, key.name, uid=uid, resource_version=resource_version)
        except NotFound:
            return
        except Conflict:
            logger.debug("AgentRun %s changed before its time was over, looking again", key)
            raise
        logger.info("AgentRun %s deleted: its ttlAfterFinished is over", key)

    def _settle(self, key: ObjectKey, gone: frozenset[str], observed: Observed) -> None:
        """Forget what was looked after. Only now: had anything failed, the next attempt would need it."""
        forget(self.facts.gone, key, gone)
        for uid in gone:
            self.facts.forget(uid)
        if observed.run is not None and observed.workflow is not None:
            self.facts.doubtful.discard(uid_of(observed.run))

    def _workflow_id(self, key: ObjectKey, uid: str) -> str:
        return run_workflow_id(self.settings.installation, key.namespace, key.name, uid)

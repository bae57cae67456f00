"""What to do about one AgentRun. Pure: no clock, no calls; everything known stands in `Observed`.

the object            its workflow               the plan
A  not started        not asked                  start it, or say what it waits for
B  not started        open (start was not noted) write Running; with `cancel`: cancel it
C  not started        missing, with `cancel`     Cancelled, final
D  started            not asked                  nothing; with `cancel`: cancel once
E  unfinished         closed                     write how it ended, from its last report if it left one
F  started            missing, seen twice        WorkflowLost, final
G  unfinished         its code fails             Stalled; past timeout + 10 min: terminate, Failed
H  finished           never asked                delete it when its time, and its schedule's firing, is over
J  unfinished         open, but no worker        say so; past its timeout or cancelled: terminate, final
K  awaits approval    open                       as D; its clock stands still, and it needs no worker
L  decided, awaits    open, but no worker        say so; the decision is kept
I  gone, another uid  never asked                terminate the workflow of the uid that is gone

A run of a session is started by its session's reconcile, and shares its workflow. So there B, C, E and F are left to that
one; D, J and I tell the workflow to leave this run out instead of stopping it; and while it is queued, J does not hold.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from dalang_api import contract
from dalang_api.v1alpha1.conditions import ConditionType, Phase, Reason
from dalang_api.v1alpha1.schema import seconds

from dalang_operator.kinds.actions import TerminateWorkflow, WakePool, WriteStatus
from dalang_operator.kinds.agentrun.snapshot import agent_versions, limits, make_run_input
from dalang_operator.kinds.agentrun.status import (
    STARTED_MESSAGE,
    asking_status,
    ended_status,
    is_final,
    pending_status,
    run_status,
    running_status,
    says_name_taken,
    says_worker_missing,
    stalled_status,
    unstalled_status,
    waiting_status,
)
from dalang_operator.kinds.agentschedule.runs import firing_of
from dalang_operator.kinds.instructions import ConfigMaps
from dalang_operator.kinds.reach import Reach
from dalang_operator.kinds.readiness import Found, Verdict, no_agent, reached, too_large, unready
from dalang_operator.kinds.workflow import WorkflowState, WorkflowView
from dalang_operator.kube.resources import Json, ObjectKey, controller_uid, uid_of
from dalang_operator.kube.status import find_condition, parse_timestamp
from dalang_operator.runtime.cache import is_awaiting, is_finished, is_queued, is_started, report_seq
from dalang_operator.runtime.references import DEFAULT_POOL, pool_of, schedule_of, session_of

STUCK_GRACE = timedelta(minutes=10)
"""How long past its timeout a run whose workflow code fails is left to Temporal's retries."""
NO_WORKER_PATIENCE = timedelta(seconds=10)
"""How long a pool may take to start a worker before a run says that it waits for one."""
NO_WORKER_GRACE = timedelta(seconds=30)
"""Timeout and cancel are the workflow's own affair; so long after them the controller ends a run that has no worker."""
FIRING_SECONDS = 5.0
"""When a run whose time is over is looked at again, since its schedule's firing is not."""
SECOND_LOOK_SECONDS = 60.0
"""Between the two looks that must both find no workflow before a run is called lost."""


@dataclass(frozen=True)
class Settings:
    """What of the operator's settings the plans need."""

    installation: str
    run_ttl: timedelta


@dataclass(frozen=True)
class Observed:
    """All that is known about one AgentRun."""

    key: ObjectKey
    settings: Settings
    now: datetime
    run: Json | None
    """The object; None when it is gone. From the cache, or read just now where the cache does not hold it."""
    gone: frozenset[str] = frozenset()
    """Uids of this name that left the watch: deleted, or finished."""
    exchanges: Mapping[str, str] = field(default_factory=dict)
    """Of those that belong to a session: uid → id of its workflow, empty where it had none."""
    session: Json | None = None
    """The AgentSession the run belongs to."""
    agent: Json | None = None
    reach: Found = None
    """What the agent can reach, or what is missing; None without agent, and of a run that has started."""
    config_maps: ConfigMaps = field(default_factory=dict)
    """Those that agents in reach take their instructions from."""
    workflow: WorkflowView | None = None
    """What Temporal says; None where it was not asked."""
    was_missing: bool = False
    """An earlier look, at least a minute ago, found no workflow."""
    swept: bool = False
    """A sweep has looked for workflows whose code fails; before the first, nothing is known."""
    problem: str | None = None
    """Why the workflow's code fails, as the last sweep saw it."""
    cancel_sent: datetime | None = None
    """When Temporal took our request to cancel."""
    waited: timedelta = timedelta()
    """For how long at the most its clock stood still for humans; found out only where it matters (`needs_waited`)."""
    has_worker: bool = True
    """A worker of the run's pool is ready."""
    pool_message: str = ""
    """What the pool says about that."""
    is_firing: bool = False
    """Its schedule's firing does not know yet that it has ended, and may not even know that it was created: were the run
    deleted, it would be created again. Found out only where it matters (`needs_firing`)."""
    awake_since: datetime | None = None
    """When a run that awaits approval was told what it has not acted on yet: a decision, or that a time-out is due."""


@dataclass(frozen=True)
class StartWorkflow:
    """Start the workflow; a repeated start changes nothing. Afterwards plan again with what there is."""

    workflow_id: str
    task_queue: str
    run_input: contract.RunInput
    request_id: str


@dataclass(frozen=True)
class CancelWorkflow:
    """Ask the workflow to end, so that it reports; a repeated request changes nothing."""

    workflow_id: str
    reason: str


@dataclass(frozen=True)
class LeaveOut:
    """Tell the session's workflow that this run is cancelled, or that nobody waits for it; repeated it changes nothing."""

    workflow_id: str
    message: contract.CancelExchange
    reason: str


@dataclass(frozen=True)
class DeleteRun:
    """Delete the object, if it is still the one observed."""

    uid: str
    resource_version: str


Action = StartWorkflow | WriteStatus | CancelWorkflow | TerminateWorkflow | LeaveOut | WakePool | DeleteRun


@dataclass(frozen=True)
class Plan:
    """Actions in order, and when to look again."""

    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None


def plan(observed: Observed) -> Plan:
    """Return what to do."""
    run = observed.run
    stop_gone = tuple(
        _stop_gone(observed, uid)
        for uid in sorted(observed.gone)
        if (run is None or uid != uid_of(run)) and observed.exchanges.get(uid) != ""
    )
    if run is None:
        return Plan(stop_gone)
    rest = _plan_present(observed, run)
    return replace(rest, actions=stop_gone + rest.actions)


def needs_look(run: Json, cancel_sent: datetime | None) -> bool:
    """Return whether Temporal must be asked before planning: a cancelled run may have been started unnoticed (B, C)."""
    is_unnoted = not is_started(run) and session_of(run) is None
    return _is_cancelled(run) and is_unnoted and not is_finished(run) and not cancel_sent


def _plan_present(observed: Observed, run: Json) -> Plan:
    if is_finished(run):
        return _plan_expiry(observed, run)
    if session_of(run) is not None:
        return _plan_exchange(observed, run)
    if run["metadata"].get("deletionTimestamp"):
        if not (is_started(run) or observed.workflow):
            return Plan()
        return Plan((TerminateWorkflow(_workflow_id(observed, uid_of(run)), "the AgentRun is being deleted"),))
    workflow = observed.workflow
    if workflow and workflow.state.is_closed:
        return Plan((WriteStatus(_closed_status(run, workflow, _workflow_id(observed, uid_of(run)), observed.now)),))
    if workflow and workflow.state is WorkflowState.MISSING:
        return _plan_missing(observed, run)
    if is_started(run) or workflow:
        return _plan_open(observed, run)
    return _plan_start(observed, run)


def _plan_missing(observed: Observed, run: Json) -> Plan:
    if not is_started(run):
        if _is_cancelled(run):
            message = "Cancelled before it was started"
            return Plan((WriteStatus(ended_status(run, Phase.CANCELLED, Reason.CANCELLED, message, observed.now)),))
        return _plan_start(observed, run)
    if not observed.was_missing:
        return Plan(requeue_after=SECOND_LOOK_SECONDS)
    message = f"Temporal has no workflow {run['status']['workflow']['id']}"
    return Plan((WriteStatus(ended_status(run, Phase.FAILED, Reason.WORKFLOW_LOST, message, observed.now)),))


def _plan_open(observed: Observed, run: Json) -> Plan:
    workflow_id = _workflow_id(observed, uid_of(run))
    if _is_cancelled(run):
        if observed.cancel_sent:
            return Plan() if observed.has_worker else _plan_without_worker(observed, run, workflow_id)
        cancel = CancelWorkflow(workflow_id, "spec.cancel was set")
        return Plan((cancel, WakePool(ObjectKey(observed.key.namespace, _pool_name(observed, run)))))
    if not is_started(run) and observed.workflow:
        if observed.agent is None:
            return Plan()  # deleted since the start; the workflow has its snapshot, and its report will tell all
        status = running_status(
            run,
            workflow_id=workflow_id,
            run_id=observed.workflow.run_id,
            task_queue=_task_queue(observed),
            agents=_agent_versions(observed, observed.agent),
            now=observed.now,
        )
        return Plan((WriteStatus(status),))
    steps = _plan_problem(observed, run, workflow_id)
    if steps.actions:
        return steps
    if is_awaiting(run):
        return _plan_awaiting(observed, run)
    return _plan_without_worker(observed, run, workflow_id)


def _plan_awaiting(observed: Observed, run: Json) -> Plan:
    """K, L. Who has decided must learn that nobody acts on it; a report says more, and replaces this."""
    if says_name_taken(run):
        return Plan()  # whoever has taken the name is in the way, with and without a worker
    if observed.has_worker or observed.awake_since is None:
        return Plan((WriteStatus(asking_status(run, observed.now)),)) if says_worker_missing(run) else Plan()
    left = (observed.awake_since + NO_WORKER_PATIENCE - observed.now).total_seconds()
    if left > 0:
        return Plan(requeue_after=left)
    message = f"It has been decided, or its time is over, and a worker is needed to go on. {_no_worker(observed, run)}"
    return Plan((WriteStatus(waiting_status(run, Reason.WORKER_MISSING, message, observed.now)),))


def _no_worker(observed: Observed, run: Json) -> str:
    return f"Pool {_pool_name(observed, run)} has no worker: {observed.pool_message or 'it does not exist'}"


def _plan_without_worker(observed: Observed, run: Json, workflow_id: str) -> Plan:
    """J. Without a worker nobody sees the workflow's timer or a cancel, and nobody reports."""
    if observed.has_worker:
        if not says_worker_missing(run) or report_seq(run):
            return Plan()
        return Plan((WriteStatus(waiting_status(run, Reason.RUNNING, STARTED_MESSAGE, observed.now)),))
    why = _no_worker(observed, run)
    stop_reason = "its pool has no worker to end it"
    if observed.cancel_sent:
        if observed.now < observed.cancel_sent + NO_WORKER_GRACE:
            return Plan(requeue_after=NO_WORKER_GRACE.total_seconds())
        message = f"Cancelled. {why}"
        status = ended_status(run, Phase.CANCELLED, Reason.CANCELLED, message, observed.now)
        return Plan(_end(run, workflow_id, stop_reason, status))
    if observed.now >= _deadline(observed, run) + NO_WORKER_GRACE:
        message = f"limits.timeout passed while waiting for a worker. {why}"
        status = ended_status(run, Phase.FAILED, Reason.TIMEOUT, message, observed.now)
        return Plan(_end(run, workflow_id, stop_reason, status))
    if report_seq(run) or observed.now < _started_at(run) + NO_WORKER_PATIENCE:
        return Plan()
    return Plan((WriteStatus(waiting_status(run, Reason.WORKER_MISSING, why, observed.now)),))


def _plan_problem(observed: Observed, run: Json, workflow_id: str) -> Plan:
    stalled = find_condition(run, ConditionType.STALLED)
    is_stalled = stalled is not None and stalled["reason"] == Reason.WORKFLOW_TASK_FAILING
    if observed.problem is None:
        return Plan((WriteStatus(unstalled_status(run)),)) if is_stalled and observed.swept else Plan()
    if is_awaiting(run) or observed.now < _deadline(observed, run) + STUCK_GRACE:
        return Plan((WriteStatus(stalled_status(run, observed.problem, observed.now)),))
    message = f"The workflow's code failed until long past the run's timeout. Temporal: {observed.problem}"
    status = ended_status(run, Phase.FAILED, Reason.WORKFLOW_TASK_FAILING, message, observed.now)
    return Plan(_end(run, workflow_id, "its code fails, past its timeout", status))


def _started_at(run: Json) -> datetime:
    return parse_timestamp(run.get("status", {}).get("startedAt") or run["metadata"]["creationTimestamp"])


def _deadline(observed: Observed, run: Json) -> datetime:
    """Return when the run's timeout has passed for certain."""
    return _started_at(run) + limits(observed.agent, run, observed.session).timeout + observed.waited


def needs_waited(observed: Observed) -> bool:
    """Return whether it must be known how long humans took: the run seems past its time, and nobody serves it well."""
    run = observed.run
    if run is None or is_finished(run) or is_awaiting(run) or not (observed.problem or not observed.has_worker):
        return False
    status = run.get("status", {})
    has_asked = bool(status.get("approvals") or status.get("pendingApprovals"))
    return has_asked and observed.now >= _deadline(observed, run)


def time_waited(approvals: Iterable[Json], now: datetime) -> timedelta:
    """Return for how long at least one of a run's AgentApprovals was open, which bounds how long its clock stood still."""
    spans = sorted(
        (parse_timestamp(approval["spec"]["requestedAt"]), _settled_at(approval, now)) for approval in approvals
    )
    waited, until = timedelta(), None
    for begin, end in spans:
        if until is None or begin > until:
            until = begin
        waited += max(end - until, timedelta())
        until = max(end, until)
    return waited


def _settled_at(approval: Json, now: datetime) -> datetime:
    ready = find_condition(approval, ConditionType.READY)
    is_open = approval.get("status", {}).get("state", "Pending") == "Pending"
    return now if is_open or ready is None else parse_timestamp(ready["lastTransitionTime"])


def _plan_expiry(observed: Observed, run: Json) -> Plan:
    ttl = time_to_live(run, observed.settings.run_ttl)
    if ttl is None:
        return Plan()
    left = (parse_timestamp(run["status"]["finishedAt"]) + ttl - observed.now).total_seconds()
    if left > 0:
        return Plan(requeue_after=left)
    if observed.is_firing:
        return Plan(requeue_after=FIRING_SECONDS)
    return Plan((DeleteRun(uid_of(run), run["metadata"]["resourceVersion"]),))


def needs_firing(observed: Observed) -> bool:
    """Return whether it must be known if the firing of the run's schedule is over: the run is about to be deleted."""
    run = observed.run
    is_scheduled = run is not None and is_finished(run) and firing_of(run) is not None
    return is_scheduled and any(isinstance(action, DeleteRun) for action in plan(observed).actions)


def time_to_live(run: Json, run_ttl: timedelta) -> timedelta | None:
    """Return how long a finished run is kept; None for ever.

    A run with a name of its own is a declared object: deleted, Git would create it again, and it would act and pay
    again. So the default holds only for generated names and owned runs. Of its own runs a schedule keeps as many as its
    `runHistory` says.
    """
    own: str | None = run["spec"].get("ttlAfterFinished")
    if own is not None:
        return timedelta(seconds=seconds(own))
    is_generated = bool(run["metadata"].get("generateName")) or controller_uid(run) is not None
    return run_ttl if is_generated and schedule_of(run) is None else None


# ── In a session ───────────────────────────────────────────────────────────────────────────────────────────────────


def _plan_exchange(observed: Observed, run: Json) -> Plan:
    """Its session's reconcile sends it, and ends it where the session is closed or lost."""
    if not is_started(run):
        return Plan()
    workflow_id: str = run["status"]["workflow"]["id"]
    if run["metadata"].get("deletionTimestamp"):
        return Plan((_leave_out(run, workflow_id, "the AgentRun is being deleted", deleted=True),))
    if _is_cancelled(run):
        if not observed.cancel_sent:
            pool = ObjectKey(observed.key.namespace, _pool_name(observed, run))
            return Plan((_leave_out(run, workflow_id, "spec.cancel was set"), WakePool(pool)))
        return Plan() if observed.has_worker else _plan_without_worker(observed, run, workflow_id)
    if is_queued(run):
        return Plan()
    steps = _plan_problem(observed, run, workflow_id)
    if steps.actions or is_awaiting(run):
        return steps
    return _plan_without_worker(observed, run, workflow_id)


def _stop_gone(observed: Observed, uid: str) -> Action:
    reason = "the AgentRun was deleted"
    if uid not in observed.exchanges:
        return TerminateWorkflow(_workflow_id(observed, uid), reason)
    identity = contract.RunIdentity(name=observed.key.name, uid=uid)
    return LeaveOut(observed.exchanges[uid], contract.CancelExchange(run=identity, deleted=True), reason)


def _end(run: Json, workflow_id: str, reason: str, status: Json) -> tuple[Action, Action]:
    """Return what ends a run by the controller's word. Whichever of the two is done last, the other follows from it.

    A workflow of the run's own stops first: once terminated it is found by the sweep, which leaves that of a finished run
    alone. In a session the status comes first: a run that was left out is reported no more, while one that is finished is
    left out as soon as it reports.
    """
    if session_of(run) is None:
        return TerminateWorkflow(workflow_id, reason), WriteStatus(status)
    return WriteStatus(status), _leave_out(run, workflow_id, reason, deleted=True)


def _leave_out(run: Json, workflow_id: str, reason: str, deleted: bool | None = None) -> LeaveOut:
    identity = contract.RunIdentity(name=run["metadata"]["name"], uid=uid_of(run))
    return LeaveOut(workflow_id, contract.CancelExchange(run=identity, deleted=deleted), reason)


# ── Starting ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _plan_start(observed: Observed, run: Json) -> Plan:
    if observed.agent is None:
        return _plan_not_starting(observed, run, no_agent(run["spec"]["agentRef"]["name"], observed.key.namespace))
    verdict = unready(observed.reach, observed.config_maps)
    if verdict:
        return _plan_not_starting(observed, run, verdict)
    reach = observed.reach
    assert isinstance(reach, Reach), "checked before"
    run_input = make_run_input(run, reach, observed.config_maps, observed.settings.installation)
    verdict = too_large(run_input.snapshot)
    if verdict:
        return _plan_not_starting(observed, run, verdict)
    start = StartWorkflow(_workflow_id(observed, uid_of(run)), _task_queue(observed), run_input, uid_of(run))
    wake = [WakePool(ObjectKey(observed.key.namespace, pool)) for pool in reach.pools()]
    return Plan((*wake, start))


def _plan_not_starting(observed: Observed, run: Json, verdict: Verdict) -> Plan:
    if verdict.is_final:
        status = ended_status(run, Phase.FAILED, verdict.reason, verdict.waiting, observed.now)
    else:
        status = pending_status(run, verdict.reason, verdict.waiting, observed.now)
    return Plan((WriteStatus(status),), verdict.again_after)


# ── Ends ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _closed_status(run: Json, workflow: WorkflowView, workflow_id: str, now: datetime) -> Json:
    report = workflow.report
    if report and is_final(report) and report.seq >= report_seq(run):
        return run_status(report, run, workflow_id, now)
    words = f": {workflow.message}" if workflow.message else ""
    if workflow.state is WorkflowState.CANCELED:
        return ended_status(
            run, Phase.CANCELLED, Reason.CANCELLED, f"The workflow was cancelled in Temporal{words}", now
        )
    if workflow.state is WorkflowState.TERMINATED:
        return ended_status(
            run, Phase.FAILED, Reason.TERMINATED, f"The workflow was terminated in Temporal{words}", now
        )
    message = f"The workflow ended as {workflow.state} without a report{words}"
    return ended_status(run, Phase.FAILED, Reason.WORKFLOW_FAILED, message, now)


# ── Names ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _is_cancelled(run: Json) -> bool:
    return bool(run["spec"].get("cancel"))


def _workflow_id(observed: Observed, uid: str) -> str:
    return contract.run_workflow_id(observed.settings.installation, observed.key.namespace, observed.key.name, uid)


def _pool_name(observed: Observed, run: Json) -> str:
    queue: str = run.get("status", {}).get("workflow", {}).get("taskQueue", "")
    if queue:
        return contract.pool_of_queue(queue)
    return pool_of(observed.agent) if observed.agent else DEFAULT_POOL


def _task_queue(observed: Observed) -> str:
    pool = pool_of(observed.agent) if observed.agent else DEFAULT_POOL
    return contract.pool_queue(observed.settings.installation, observed.key.namespace, pool)


def _agent_versions(observed: Observed, agent: Json) -> list[contract.AgentVersion]:
    """Return the agents of a run that was started unnoticed; of one that cannot be resolved any more its own alone."""
    return agent_versions(reached(observed.reach) or (agent,))

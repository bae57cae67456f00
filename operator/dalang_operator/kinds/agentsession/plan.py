"""What to do about one AgentSession and the runs that were not sent to it yet. Pure: everything known stands in `Observed`.

the object            its workflow                 the plan
A  not begun          not asked                    start it, or say what it waits for
B  not begun, closed  missing                      Closed: it need not begin
C  begun              not asked, or open           send runs in order, as many as may queue; end those that were cancelled
D  changed            as C                         tell it, then note that it knows
   with runs          as C, not yet by us          have it report: a run of it may have been deleted or ended meanwhile
E  closed, or idle    as C                         have it close, see that a worker does; its unsent runs end: SessionClosed
F  not closed         ended by its own decision    the status of its last report
G  not closed         missing twice, or ended      SessionLost; it is never begun anew
H  closed, or lost    not asked                    its runs end: SessionClosed, SessionLost
I  gone               never asked                  stop it; where a run is under way have it close after that one
J  gone               not asked                    its unsent runs wait: SessionNotFound

The signal comes before the run's first status: repeated it changes nothing, since a session ignores a run that it has seen.
Where a run is ended here its status comes first: a session that was not told hears of it when it reports of the run. Until
its status names the workflow a run is this reconcile's alone, from then on the run's own.

That a session is idle is found here: its workflow does not know of runs that wait for something, or that were created while
the controller was away.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from dalang_api import contract
from dalang_api.v1alpha1.conditions import Phase, Reason
from dalang_api.v1alpha1.schema import seconds

from dalang_operator.kinds.actions import TerminateWorkflow, WakePool, WriteStatus
from dalang_operator.kinds.agentrun.snapshot import (
    agent_versions,
    context_of,
    exchange_size,
    make_exchange,
)
from dalang_operator.kinds.agentrun.status import ended_status, held_status, queued_status, running_status
from dalang_operator.kinds.agentsession.status import (
    active_status,
    closed_status,
    is_lost,
    lost_status,
    observed_status,
    session_status,
    started_status,
    unready_status,
)
from dalang_operator.kinds.instructions import ConfigMaps
from dalang_operator.kinds.reach import Reach
from dalang_operator.kinds.readiness import Found, Verdict, no_agent, too_large, unready
from dalang_operator.kinds.workflow import WorkflowState, WorkflowView
from dalang_operator.kube.resources import Json, ObjectKey, uid_of
from dalang_operator.kube.status import parse_timestamp
from dalang_operator.runtime.cache import is_closed, is_started, queue_pool, version_of
from dalang_operator.runtime.references import (
    DEFAULT_POOL,
    pool_of,
    session_agent_of,
    summary_model_of,
)

SECOND_LOOK_SECONDS = 60.0
"""Between the two looks that must both find no workflow before a session is called lost."""
CLOSED_BY_SPEC = "Closed by spec.closed"


@dataclass(frozen=True)
class Settings:
    """What of the operator's settings the plans need."""

    installation: str


@dataclass(frozen=True)
class Observed:
    """All that is known about one AgentSession."""

    key: ObjectKey
    settings: Settings
    now: datetime
    session: Json | None
    """The object; None when it is gone."""
    runs: tuple[Json, ...] = ()
    """The unfinished AgentRuns that name it, in the order in which they are sent."""
    versions: Mapping[str, int] = field(default_factory=dict)
    """Uid of a run → its resourceVersion when it was seen first."""
    last_busy: datetime | None = None
    """When it had a run, as far as its status may not tell yet: one that ended just now, or was deleted."""
    gone: frozenset[str] = frozenset()
    """Uids of this name that were deleted."""
    has_pool: bool = True
    """There is the AgentPool whose queue its workflow is on; True of one that has none yet."""
    agent: Json | None = None
    reach: Found = None
    """What the agent can reach, with the summary's model, or what is missing; None without agent."""
    config_maps: ConfigMaps = field(default_factory=dict)
    """Those that agents in reach take their instructions from."""
    snapshot: contract.Snapshot | None = None
    """What is in reach, as the next run takes it; None where no run is to be sent, or something is missing."""
    views: Mapping[str, WorkflowView] = field(default_factory=dict)
    """By id, what Temporal says of workflows it was asked about: of the session, and of gone ones of its name."""
    was_missing: frozenset[str] = frozenset()
    """Ids that an earlier look, at least a minute ago, did not find."""
    sent_snapshot: str | None = None
    """Digest of the snapshot this process sent it last."""
    problem: str | None = None
    """Why the workflow's code fails, as the last sweep saw it."""
    is_met: bool = False
    """This process has started it, sent it a run, or had it report."""


@dataclass(frozen=True)
class StartSession:
    """Start the workflow; a repeated start changes nothing. Afterwards plan again with what there is."""

    workflow_id: str
    task_queue: str
    session_input: contract.SessionInput
    request_id: str


@dataclass(frozen=True)
class SendRun:
    """Send a run, and write its first status; a repeated one changes nothing."""

    workflow_id: str
    run: Json
    exchange: contract.Exchange
    status: Json


@dataclass(frozen=True)
class CancelUnsent:
    """Have the workflow leave a run out that it may have been sent without anybody noting it."""

    workflow_id: str
    run: contract.RunIdentity


@dataclass(frozen=True)
class Configure:
    """Tell the workflow what it may do; the last one holds."""

    workflow_id: str
    settings: contract.SessionSettings
    request_id: str


@dataclass(frozen=True)
class ReportAgain:
    """Have the workflow report, and so hear that its run was deleted while nobody watched, or ended without its being told."""

    workflow_id: str
    request_id: str


@dataclass(frozen=True)
class WriteRun:
    """Write a run's status, if the run is still the one observed."""

    run: Json
    status: Json


@dataclass(frozen=True)
class CloseIdle:
    """Note that the session needs a worker to close, since it is idle."""

    uid: str


Action = (
    StartSession
    | SendRun
    | CancelUnsent
    | Configure
    | ReportAgain
    | TerminateWorkflow
    | WriteRun
    | WriteStatus
    | WakePool
    | CloseIdle
)


@dataclass(frozen=True)
class Plan:
    """Actions in order, and when to look again."""

    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None


def plan(observed: Observed) -> Plan:
    """Return what to do."""
    session = observed.session
    stop_gone = _stop_gone(observed)
    if session is None or session["metadata"].get("deletionTimestamp"):
        rest = _plan_gone(observed)
    else:
        rest = _plan_present(observed, session)
    return replace(rest, actions=stop_gone + rest.actions)


def needs_look(session: Json) -> bool:
    """Return whether Temporal must be asked before planning: a closed one may have been started unnoticed (B)."""
    return _is_to_close(session) and not is_started(session) and not is_closed(session)


def is_idle(observed: Observed) -> bool:
    """Return whether, by all that is known, the session's idle time is over: then the API server is asked for its runs."""
    session = observed.session
    if session is None or not is_started(session) or is_closed(session) or is_lost(session) or _is_to_close(session):
        return False
    return _is_idle(observed, session)


def workflow_id_of(observed: Observed, uid: str) -> str:
    """Return the id of the workflow of a session of this name."""
    return contract.session_workflow_id(observed.settings.installation, observed.key.namespace, observed.key.name, uid)


def place_of(run: Json, versions: Mapping[str, int]) -> tuple[str, int, str]:
    """Return by what runs are put in the order of their creation; timestamps have whole seconds only."""
    metadata = run["metadata"]
    return metadata["creationTimestamp"], _order(run, versions), metadata["name"]


def _order(run: Json, versions: Mapping[str, int]) -> int:
    """Return the resourceVersion a run was created with, as far as that is known: every write changes it."""
    noted: int | None = run.get("status", {}).get("order")
    return versions.get(uid_of(run), version_of(run)) if noted is None else noted


def held(observed: Observed, run: Json, reason: Reason, message: str) -> Json:
    """Return the status of a run that is not sent yet, which keeps its place."""
    return held_status(run, _order(run, observed.versions), reason, message, observed.now)


# ── Gone ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _stop_gone(observed: Observed) -> tuple[Action, ...]:
    """I. A run that is under way is left to end: its answer is waited for, only the conversation is not."""
    session = observed.session
    uids = set(observed.gone)
    if session is not None:
        uids.discard(uid_of(session))
        if session["metadata"].get("deletionTimestamp"):
            uids.add(uid_of(session))
    workflow_ids = [workflow_id_of(observed, uid) for uid in sorted(uids)]
    return tuple(_stop(observed, each) for each in workflow_ids if _may_be_open(observed, each))


def _stop(observed: Observed, workflow_id: str) -> Action:
    if _sent_to(observed, workflow_id):
        settings = contract.SessionSettings(closed="The AgentSession was deleted")
        return Configure(workflow_id, settings, f"configure deleted {workflow_id}")
    return TerminateWorkflow(workflow_id, "the AgentSession was deleted")


def _plan_gone(observed: Observed) -> Plan:
    namespace, name = observed.key
    message = f"There is no AgentSession {name} in namespace {namespace}; the run starts when it is applied"
    verdict = Verdict(Reason.SESSION_NOT_FOUND, message, message)
    ended, requeue_after = _end_sent(observed, {run["status"]["workflow"]["id"] for run in _sent(observed)})
    return Plan((*_end_cancelled(observed), *_hold(observed, verdict), *ended), requeue_after)


def _end_sent(observed: Observed, workflow_ids: set[str]) -> tuple[list[Action], float | None]:
    """Return what ends the runs whose workflow has ended without a word about them, and when to look again."""
    actions: list[Action] = []
    requeue_after = None
    for workflow_id in sorted(workflow_ids):
        fate = _fate(observed, workflow_id)
        if fate is not None:
            actions += [_end(observed, run, fate) for run in _sent_to(observed, workflow_id)]
        elif _is_missing(observed, workflow_id):
            requeue_after = SECOND_LOOK_SECONDS
    return actions, requeue_after


@dataclass(frozen=True)
class Fate:
    """What has become of a session that takes no runs any more."""

    reason: Literal[Reason.SESSION_CLOSED, Reason.SESSION_LOST]
    message: str


def _fate(observed: Observed, workflow_id: str) -> Fate | None:
    """Return what has become of the session of a workflow that has ended, as far as Temporal was asked."""
    view = observed.views.get(workflow_id)
    if view is None or view.state is WorkflowState.OPEN:
        return None
    is_own = observed.session is not None and workflow_id == workflow_id_of(observed, uid_of(observed.session))
    if view.session is not None and view.session.closed_at is not None:
        return Fate(Reason.SESSION_CLOSED, view.session.closed_message or "The session was closed")
    if view.state is WorkflowState.MISSING and workflow_id not in observed.was_missing:
        return None
    if not is_own:
        return Fate(Reason.SESSION_CLOSED, "The AgentSession was deleted")
    if view.state is WorkflowState.MISSING:
        return Fate(Reason.SESSION_LOST, f"Temporal has no workflow {workflow_id}. {_LOST_REMEDY}")
    words = f": {view.message}" if view.message else ""
    return Fate(Reason.SESSION_LOST, f"Workflow {workflow_id} ended as {view.state}{words}. {_LOST_REMEDY}")


_LOST_REMEDY = "What was said is gone; create another session"


def _may_be_open(observed: Observed, workflow_id: str) -> bool:
    view = observed.views.get(workflow_id)
    return view is None or view.state is WorkflowState.OPEN


def _is_missing(observed: Observed, workflow_id: str) -> bool:
    view = observed.views.get(workflow_id)
    return view is not None and view.state is WorkflowState.MISSING


# ── There ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _plan_present(observed: Observed, session: Json) -> Plan:
    own = workflow_id_of(observed, uid_of(session))
    others = {run["status"]["workflow"]["id"] for run in _sent(observed)} - {own}
    ended, look_again = _end_sent(observed, others)
    steps = _plan_own(observed, session, own)
    actions = (*ended, *steps.actions)
    return Plan(actions, min(filter(None, (look_again, steps.requeue_after)), default=None))


def _plan_own(observed: Observed, session: Json, own: str) -> Plan:
    view = observed.views.get(own)
    if is_closed(session):
        return _plan_closed(observed, session, own)
    fate = _fate(observed, own)
    if fate is not None and (is_started(session) or not _is_missing(observed, own)):
        return _plan_ended(observed, session, own, fate)
    if is_lost(session) and (view is None or view.state is not WorkflowState.OPEN):
        lost = Fate(Reason.SESSION_LOST, f"AgentSession {observed.key.name} is lost. {_LOST_REMEDY}")
        return Plan((*_note_seen(session), *_end_all(observed, lost)))
    if is_started(session) and _is_missing(observed, own):
        return Plan(requeue_after=SECOND_LOOK_SECONDS)
    if is_started(session) or (view is not None and view.state is WorkflowState.OPEN):
        return _plan_open(observed, session, own)
    if _is_to_close(session):
        message = "Closed before it had begun"
        closed = WriteStatus(closed_status(session, message, observed.now))
        return Plan((closed, *_end_all(observed, Fate(Reason.SESSION_CLOSED, message))))
    return _plan_start(observed, session, own)


def _plan_closed(observed: Observed, session: Json, own: str) -> Plan:
    """H. The workflow ends the runs it was sent; only where it has ended without are they ended here."""
    ended, requeue_after = _end_sent(observed, {own} if _sent_to(observed, own) else set())
    return Plan((*_note_seen(session), *_end_unsent(observed), *ended), requeue_after)


def _end_unsent(observed: Observed) -> tuple[Action, ...]:
    """Return what ends the runs that a session which closes will not be sent."""
    closed = Fate(Reason.SESSION_CLOSED, f"AgentSession {observed.key.name} is closed; create another one")
    return tuple(_end(observed, run, closed) for run in _unsent(observed))


def _note_seen(session: Json) -> tuple[Action, ...]:
    """Return what says that a session which nothing can be told any more was seen as it is."""
    return (WriteStatus(observed_status(session, session["status"])),)


def _plan_ended(observed: Observed, session: Json, own: str, fate: Fate) -> Plan:
    view = observed.views[own]
    if fate.reason is Reason.SESSION_CLOSED and view.session is not None:
        status = session_status(view.session, session, own, observed.now)
    else:
        status = lost_status(session, fate.message, observed.now)
    return Plan((WriteStatus(status), *_end_all(observed, fate)))


def _plan_open(observed: Observed, session: Json, own: str) -> Plan:
    """C, D, E. It is begun; whether it was noted does not matter."""
    verdict = _verdict(observed, session)
    view = observed.views.get(own)
    queue = session.get("status", {}).get("workflow", {}).get("taskQueue") or _task_queue(observed)
    status = session.get("status", {})
    if view is not None:
        status = started_status(session, own, view, queue, session_agent_of(session), observed.now)
    tell: tuple[Action, ...] = ()
    generation = session["metadata"]["generation"]
    if status.get("observedGeneration") != generation:
        # What is at its first generation when it starts was told all by its input.
        if is_started(session) or generation > 1:
            tell = (Configure(own, settings_of(session), f"configure {uid_of(session)} {generation}"),)
        status = observed_status(session, status)
    now_known = {**session, "status": status}
    closing = _why_closing(observed, now_known)
    if closing is None:
        status = _ready_status(observed, now_known, verdict)
        rest = _plan_runs(observed, now_known, own, verdict)
    else:
        status = _closing_status(observed, now_known, own, closing, verdict)
        rest = _plan_closing(observed, now_known, own, closing)
    return Plan((*tell, WriteStatus({**status, **_queue(observed, own, rest)}), *rest.actions), rest.requeue_after)


def _ready_status(observed: Observed, session: Json, verdict: Verdict | None) -> Json:
    if verdict:
        return unready_status(session, verdict.reason, verdict.message, observed.now)
    return active_status(session, observed.problem, observed.now)


def _closing_status(observed: Observed, session: Json, own: str, why: str, verdict: Verdict | None) -> Json:
    """Return the status of a session that is to close: what a next run would need does not matter, but for its queue's pool."""
    if not observed.has_pool:
        return _ready_status(observed, session, verdict)
    until = "when the run under way has ended" if _sent_to(observed, own) else "as soon as a worker has heard of it"
    return active_status(session, observed.problem, observed.now, f"{why}; the session closes {until}")


def _queue(observed: Observed, own: str, steps: Plan) -> Json:
    """Return how many runs will wait in the session, where some are sent that have to.

    Otherwise the number is left to the reports, which come when runs begin and end.
    """
    sent = [action for action in steps.actions if isinstance(action, SendRun)]
    before = [run for run in _sent_to(observed, own) if not _is_cancelled(run)]
    waiting = len(sent) + len(before) - 1
    return {"queuedRuns": waiting} if sent and waiting > 0 else {}


def _plan_closing(observed: Observed, session: Json, own: str, why: str) -> Plan:
    """E. The workflow ends what it was sent, the run under way in its own time; `closed` it was told as part of the spec."""
    tell: tuple[Action, ...] = ()
    if not _is_to_close(session):
        uid, last = uid_of(session), session["status"].get("lastRun", {}).get("name", "")
        settings = settings_of(session).model_copy(update={"closed": why})
        tell = (Configure(own, settings, f"configure idle {uid} {last}"), CloseIdle(uid))
    pools = (WakePool(ObjectKey(observed.key.namespace, pool)) for pool in queue_pool(session))
    return Plan((*tell, *_end_unsent(observed), *pools))


def _plan_runs(observed: Observed, session: Json, own: str, verdict: Verdict | None) -> Plan:
    cancelled = _cancel_unsent(observed, own)
    if not observed.runs:
        left, again_after = _idle_left(observed, session), verdict.again_after if verdict else None
        return Plan(requeue_after=min(filter(None, (left, again_after)), default=None))
    if verdict:
        return Plan((*cancelled, *_hold(observed, verdict)), verdict.again_after)
    meet: tuple[Action, ...] = ()
    if not observed.is_met:
        meet = (ReportAgain(own, f"report again {observed.now.isoformat()}"),)
    return Plan((*meet, *cancelled, *_send(observed, session, own)))


# ── Closing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _why_closing(observed: Observed, session: Json) -> str | None:
    """Return why a session is to close, for people; None where it is to go on."""
    if _is_to_close(session):
        return CLOSED_BY_SPEC
    if _is_idle(observed, session):
        return f"No run came within idleTimeout, {seconds(session['spec']['idleTimeout']):g}s"
    return None


def _is_idle(observed: Observed, session: Json) -> bool:
    """Whether its idle time is over. A run that waits for something, even outside the session, keeps it open."""
    left = _idle_left(observed, session)
    return left is not None and left <= 0 and not observed.runs


def _idle_left(observed: Observed, session: Json) -> float | None:
    """Return for how many seconds no run has to come until it closes; None where it never does for that."""
    idle_timeout = session["spec"].get("idleTimeout")
    if idle_timeout is None:
        return None
    since = _idle_since(session)
    if observed.last_busy is not None:
        since = max(since, observed.last_busy)
    return seconds(idle_timeout) - (observed.now - since).total_seconds()


def _idle_since(session: Json) -> datetime:
    status = session.get("status", {})
    last = status.get("lastRun", {}).get("finishedAt") or status.get("startedAt")
    return parse_timestamp(last or session["metadata"]["creationTimestamp"])


# ── Sending ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _send(observed: Observed, session: Json, own: str) -> list[Action]:
    """Return what sends as many runs as may be queued; the first one's pools are woken with it."""
    reach, agent, snapshot = observed.reach, observed.agent, observed.snapshot
    to_send = _within_window(observed, own)
    if not to_send:
        return []
    assert isinstance(reach, Reach), "checked before"
    assert agent is not None, "checked before"
    assert snapshot is not None, "there is a run to be sent"
    workflow = session["status"]["workflow"]
    digest = snapshot.digest()
    is_known = digest == observed.sent_snapshot
    is_busy = bool(_sent_to(observed, own))
    versions = agent_versions(reach.agents)
    holder = session["status"].get("agent")
    actions: list[Action] = []
    for run in to_send:
        exchange = make_exchange(run, session, agent, digest)
        if not is_known:
            exchange = exchange.model_copy(update={"snapshot": snapshot})
        if is_busy:
            exchange = exchange.model_copy(update={"queued": True})
        first = queued_status if is_busy else running_status
        status = first(
            run,
            workflow_id=own,
            run_id=workflow["runId"],
            task_queue=workflow["taskQueue"],
            agents=versions,
            now=observed.now,
        )
        if not is_busy and holder in {version.name for version in versions}:
            status["agent"] = holder
        actions.append(SendRun(own, run, exchange, status))
        is_known = is_busy = True
    pools = dict.fromkeys([*queue_pool(session), *reach.pools()])
    actions[1:1] = [WakePool(ObjectKey(observed.key.namespace, pool)) for pool in pools]
    return actions


def _within_window(observed: Observed, own: str) -> list[Json]:
    """Return the runs that are sent now; one that is too large for the window by itself is sent alone."""
    under_way = _sent_to(observed, own)
    count, size = len(under_way), sum(map(exchange_size, under_way))
    chosen = []
    for run in _unsent(observed):
        if _is_cancelled(run):
            continue
        count, size = count + 1, size + exchange_size(run)
        if count > contract.SESSION_QUEUE_MAX_RUNS or (count > 1 and size > contract.SESSION_QUEUE_MAX_BYTES):
            break
        chosen.append(run)
    return chosen


def _cancel_unsent(observed: Observed, own: str) -> list[Action]:
    """Return what ends runs that were cancelled before they were sent, as far as anybody noted.

    The write comes first: of a run that the workflow was told to leave out, and whose cancel is then taken back, nothing
    would ever come, while one that has ended and goes on is found by its next report.
    """
    actions: list[Action] = []
    for run in _unsent(observed):
        if _is_cancelled(run):
            identity = contract.RunIdentity(name=run["metadata"]["name"], uid=uid_of(run))
            actions += [_cancelled(observed, run), CancelUnsent(own, identity)]
    return actions


def _end_cancelled(observed: Observed) -> list[WriteRun]:
    """Return what ends the cancelled runs of a session that has no workflow which could have been sent them."""
    return [_cancelled(observed, run) for run in _unsent(observed) if _is_cancelled(run)]


def _cancelled(observed: Observed, run: Json) -> WriteRun:
    message = "Cancelled before its turn came"
    return WriteRun(run, ended_status(run, Phase.CANCELLED, Reason.CANCELLED, message, observed.now))


def _hold(observed: Observed, verdict: Verdict) -> list[Action]:
    """Return what tells the unsent runs why they wait, or that they need not; cancelled ones are not looked at."""
    actions: list[Action] = []
    for run in _unsent(observed):
        if _is_cancelled(run):
            continue
        if verdict.is_final:
            status = ended_status(run, Phase.FAILED, verdict.reason, verdict.waiting, observed.now)
            actions.append(WriteRun(run, status))
        else:
            actions.append(WriteRun(run, held(observed, run, verdict.reason, verdict.waiting)))
    return actions


def _end_all(observed: Observed, fate: Fate) -> tuple[Action, ...]:
    """Return what ends every run of the session, sent or not."""
    session = observed.session
    assert session is not None, "the fate of one that is there"
    own = workflow_id_of(observed, uid_of(session))
    return tuple(_end(observed, run, fate) for run in (*_sent_to(observed, own), *_unsent(observed)))


def _end(observed: Observed, run: Json, fate: Fate) -> WriteRun:
    if _is_cancelled(run):
        return _cancelled(observed, run)
    return WriteRun(run, ended_status(run, Phase.FAILED, fate.reason, fate.message, observed.now))


# ── Starting ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _verdict(observed: Observed, session: Json) -> Verdict | None:
    """Return why the session takes no run now: its runs wait, or never will begin."""
    if not observed.has_pool:
        # A workflow stays on the queue of the pool it began in, whatever its Agent says by now.
        missing = f"The session began in AgentPool {' '.join(queue_pool(session))}, which is gone; apply it again"
        return Verdict(Reason.POOL_NOT_FOUND, missing, f"{missing}, and the run starts")
    if observed.agent is None:
        return no_agent(session_agent_of(session), observed.key.namespace)
    verdict = unready(observed.reach, observed.config_maps)
    if verdict or observed.snapshot is None:
        return verdict
    return too_large(observed.snapshot)


def _plan_start(observed: Observed, session: Json, own: str) -> Plan:
    verdict = _verdict(observed, session)
    if verdict:
        waits = WriteStatus(unready_status(session, verdict.reason, verdict.message, observed.now))
        return Plan((waits, *_end_cancelled(observed), *_hold(observed, verdict)), verdict.again_after)
    session_input = contract.SessionInput(
        agent=session_agent_of(session), settings=settings_of(session), context=context_of(session)
    )
    return Plan((StartSession(own, _task_queue(observed), session_input, uid_of(session)),))


def settings_of(session: Json) -> contract.SessionSettings:
    """Return what of the session's spec may change, as its workflow is told it."""
    spec = session["spec"]
    idle_timeout = spec.get("idleTimeout")
    return contract.SessionSettings(
        history_size=spec.get("historySize", contract.DEFAULT_HISTORY_SIZE),
        summary_enabled=spec.get("summary", {}).get("enabled", True),
        summary_model=summary_model_of(session),
        idle_timeout_seconds=None if idle_timeout is None else seconds(idle_timeout),
        closed=CLOSED_BY_SPEC if _is_to_close(session) else None,
    )


# ── Names ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _sent(observed: Observed) -> list[Json]:
    return [run for run in observed.runs if is_started(run)]


def _sent_to(observed: Observed, workflow_id: str) -> list[Json]:
    return [run for run in _sent(observed) if run["status"]["workflow"]["id"] == workflow_id]


def _unsent(observed: Observed) -> list[Json]:
    """Return the runs that are still to be sent; one that is being deleted never will."""
    return [run for run in observed.runs if not is_started(run) and not run["metadata"].get("deletionTimestamp")]


def _is_cancelled(run: Json) -> bool:
    return bool(run["spec"].get("cancel"))


def _is_to_close(session: Json) -> bool:
    return bool(session["spec"].get("closed"))


def _task_queue(observed: Observed) -> str:
    pool = pool_of(observed.agent) if observed.agent else DEFAULT_POOL
    return contract.pool_queue(observed.settings.installation, observed.key.namespace, pool)

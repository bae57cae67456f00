"""What to do about one AgentApproval. Pure: everything known stands in `Observed`.

the object              its run                      the plan
A  settled              not asked                    nothing
B  undecided            unfinished                   nothing; from `expiresAt` on: see that a worker lets the time-out happen
C  decided              unfinished                   DELIVERY_CHECKS; then signal, wake the pools, write Delivered
D  Delivered            says that it still waits     see that there is a worker; from a minute on: as K
E  not settled          finished, or no workflow     Expired, RunEnded
F  not settled          gone, or another uid         nothing: the garbage collector takes the object
G  deleted              says that it still waits     have the run report again, so that it is asked anew
H  Approve, unproven    unfinished                   hold it back, or delete it (then G): nothing tells who decided
J  Reject, unproven     unfinished                   as C, without name and reason: whoever it was, it only stops something
K  not settled          does not list it             from a minute on: have the run report again, which settles it
L  about to go          says that it still waits     deliver nothing, say which finalizers keep it; when it is gone: as G
M  not the run's own    says that it still waits     as G: the run then says NameConflict, and is asked no more
N  put there anew       says that it still waits     have the run report again, which finds out whether it is what it asks

The signal comes before the status: repeated, it changes nothing, while a status without signal would end everything. Who
was first, a decision or the time-out, only the workflow decides; it says so in its next report.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from dalang_api import contract
from dalang_api.v1alpha1.conditions import ConditionType, Reason

from dalang_operator.kinds.actions import WriteStatus
from dalang_operator.kinds.agentrun.status import says_name_taken
from dalang_operator.kube.resources import Json, ObjectKey, controller_uid, uid_of
from dalang_operator.kube.status import condition, find_condition, parse_timestamp, timestamp, with_conditions
from dalang_operator.runtime.cache import is_finished, pending_approvals, pools_of_run
from dalang_operator.runtime.references import session_of

SETTLED = frozenset({"Applied", "Expired", "Superseded"})
"""States that nothing leads out of."""
PROOF_SECONDS = 10.0
"""When to look again whether the admission policies are there: nothing watches them."""
ENFORCED_AFTER = timedelta(seconds=2)
"""Timestamps have whole seconds, and the API server enforces a policy up to a second after it was created."""
ASK_AGAIN = timedelta(minutes=1)
"""After how long a run that was told to report again, and did not, is told once more."""
ASK_AGAIN_MOST = timedelta(hours=1)
"""The most between two requests to tell what has come of an approval; they begin at a minute and double."""
PENDING_LISTED = 16
"""How many pending approvals a run's status lists at the most."""


@dataclass(frozen=True)
class Settings:
    """What of the operator's settings the plans need."""

    installation: str
    needs_proof: bool


@dataclass(frozen=True)
class Proof:
    """What the admission policies say of all decisions."""

    problem: str | None
    """Why nothing proves who decides, and the command that mends it."""
    since: datetime | None
    """Since when the policies are as they are."""


@dataclass(frozen=True)
class Observed:
    """All that is known about one AgentApproval."""

    key: ObjectKey
    settings: Settings
    now: datetime
    approval: Json | None
    """The object; None when it is gone. Without its arguments, which the cache does not keep."""
    run: Json | None
    """The AgentRun it names, finished or not; None where there is none of that name."""
    proof: Proof | None = None
    """Read after the decision was seen; None where it need not be known (`needs_proof`)."""
    has_no_workflow: bool = False
    """Temporal has no open workflow of the run."""
    asked_again: datetime | None = None
    """When the run was told to report again, if it has not reported since."""
    last_asked: datetime | None = None
    """When the run was last told to report again, whatever it has reported since."""
    has_worker: bool = True
    """A worker of the run's pool is ready, so that the run can report."""
    was_replaced: bool = False
    """An object of this name has gone since somebody last looked, and here is another."""


@dataclass(frozen=True)
class SignalDecision:
    """Send the decision to the workflow; a repeated one changes nothing."""

    workflow_id: str
    decision: contract.Decision


@dataclass(frozen=True)
class AskAgain:
    """Have the workflow report what it waits for and what has ended; the reporter makes, and settles, what is not yet so."""

    workflow_id: str


@dataclass(frozen=True)
class WakeRun:
    """See that the run has workers until it reports again."""

    pools: tuple[ObjectKey, ...]


@dataclass(frozen=True)
class DeleteApproval:
    """Delete the object, if it is still the one observed, and say why in an Event on its run."""

    uid: str
    resource_version: str
    note: str


Action = SignalDecision | AskAgain | WakeRun | WriteStatus | DeleteApproval


@dataclass(frozen=True)
class Plan:
    """Actions in order, and when to look again."""

    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None


def state_of(approval: Json) -> str:
    """Return the state of an AgentApproval."""
    state: str = approval.get("status", {}).get("state", "Pending")
    return state


def needs_proof(settings: Settings, approval: Json | None) -> bool:
    """Return whether the admission policies must be looked at before planning (C)."""
    return settings.needs_proof and approval is not None and _is_decided(approval) and state_of(approval) == "Pending"


def waits_for(run: Json, name: str) -> bool:
    """Return whether a run says that it waits for an AgentApproval, or may: its status lists sixteen."""
    listed = pending_approvals(run)
    return not is_finished(run) and (name in listed or len(listed) >= PENDING_LISTED)


def plan(observed: Observed) -> Plan:
    """Return what to do."""
    approval, run = observed.approval, observed.run
    if approval is None:
        return _plan_deleted(observed)
    if state_of(approval) in SETTLED:
        return Plan()
    if run is None or uid_of(run) != controller_uid(approval):
        return _plan_foreign(observed, approval)
    if is_finished(run) or observed.has_no_workflow:
        return Plan((WriteStatus(_run_ended_status(approval, observed.now)),))
    if run["metadata"].get("deletionTimestamp"):
        return Plan()
    if state_of(approval) == "Delivered":
        return _plan_untold(observed, run, _delivered_at(approval))
    if approval["metadata"].get("deletionTimestamp"):
        return _plan_terminating(observed, approval, run)
    steps = (_plan_decided if _is_decided(approval) else _plan_undecided)(observed, approval, run)
    if observed.was_replaced and waits_for(run, observed.key.name):
        return replace(steps, actions=(_ask_again(observed, run), *_wake(observed, run), *steps.actions))
    return steps


def _plan_deleted(observed: Observed) -> Plan:
    """G. Only a run that still waits, and is to stay, is asked again: also the garbage collector deletes AgentApprovals."""
    run = observed.run
    if run is None or not waits_for(run, observed.key.name):
        return Plan()
    if run["metadata"].get("deletionTimestamp") or run["spec"].get("cancel"):
        return Plan()
    if observed.asked_again and (not observed.has_worker or observed.now < observed.asked_again + ASK_AGAIN):
        return Plan(_wake(observed, run), ASK_AGAIN.total_seconds())
    return Plan((_ask_again(observed, run), *_wake(observed, run)), ASK_AGAIN.total_seconds())


def _plan_foreign(observed: Observed, approval: Json) -> Plan:
    """F, M. Somebody has put it in the place of the run's own, which went unseen: only the run's next report finds that out.

    That report is tried again until the object is gone, so a run that says `NameConflict` need not be asked.
    """
    verdict = is_of_its_run(observed, approval) if _is_decided(approval) else None
    refused = _refuse(observed, approval, verdict) if verdict else ()
    if observed.run is not None and says_name_taken(observed.run):
        return Plan((*refused, *_wake(observed, observed.run)))
    steps = _plan_deleted(observed)
    return replace(steps, actions=(*refused, *steps.actions))


def _ask_again(observed: Observed, run: Json) -> AskAgain:
    return AskAgain(_workflow_id(observed, run))


def _plan_untold(observed: Observed, run: Json, since: datetime) -> Plan:
    """D, K. A report got lost, or one overtook another: the next one tells what has come of this approval.

    Without a worker the run cannot report. Each interval is as long as all before it, so a run that never tells is asked
    a few times an hour at first and once an hour in the end; no counter is kept.
    """
    wake = _wake(observed, run)
    last = max(observed.last_asked or since, since)
    left = last + _interval(since, last) - observed.now
    if left > timedelta():
        return Plan(wake, left.total_seconds())
    if not observed.has_worker:
        return Plan(wake, ASK_AGAIN.total_seconds())
    return Plan((_ask_again(observed, run), *wake), _interval(since, observed.now).total_seconds())


def _interval(since: datetime, last: datetime) -> timedelta:
    return min(max(last - since, ASK_AGAIN), ASK_AGAIN_MOST)


def _plan_undecided(observed: Observed, approval: Json, run: Json) -> Plan:
    if not waits_for(run, observed.key.name):
        return _plan_untold(observed, run, parse_timestamp(approval["metadata"]["creationTimestamp"]))
    expires_at = approval["spec"].get("expiresAt")
    if expires_at is None:
        return Plan()
    left = (parse_timestamp(expires_at) - observed.now).total_seconds()
    return Plan(requeue_after=left) if left > 0 else Plan(_wake(observed, run))


def _plan_terminating(observed: Observed, approval: Json, run: Json) -> Plan:
    """L. As if it were undecided; and a finalizer, which may put off for ever that the run asks anew, is named."""
    steps = _plan_undecided(observed, approval, run)
    if not approval["metadata"].get("finalizers") or not waits_for(run, observed.key.name):
        return steps
    return replace(steps, actions=(WriteStatus(_terminating_status(approval, observed.now)), *steps.actions))


def _wake(observed: Observed, run: Json) -> tuple[Action, ...]:
    """Return what brings up the workers of a run that still waits; one that does not has gone on, or never began to."""
    if not waits_for(run, observed.key.name):
        return ()
    return (WakeRun(_pools(observed, run)),)


# ── Delivery ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Verdict:
    """Why a decision is not delivered."""

    type: Literal[ConditionType.READY, ConditionType.PROVEN]
    reason: Reason
    message: str
    again_after: float | None = None
    asks_again: bool = False
    """It can never be delivered: the object is deleted, so that the run asks anew."""

    def stops(self, approval: Json) -> bool:
        """Return whether the decision is held back for it: any but a Reject that is only not proven.

        That held back, the run would be left to its time-out, and `onTimeout: Approve` would make an approval of it.
        """
        return self.type is not ConditionType.PROVEN or approval["spec"]["decision"] != "Reject"


def is_of_its_run(observed: Observed, approval: Json) -> Verdict | None:
    """The workflow it names is that of the AgentRun that owns it, in this namespace and installation."""
    spec = approval["spec"]
    uid = controller_uid(approval) or ""
    own = contract.run_workflow_id(observed.settings.installation, observed.key.namespace, spec["runRef"]["name"], uid)
    if observed.run is not None and uid_of(observed.run) == uid:
        own = _workflow_id(observed, observed.run)
    elif uid and _is_of_a_session(observed, approval):
        return None
    if uid and spec["workflowId"] == own:
        return None
    wrong = f"workflowId is not that of AgentRun {spec['runRef']['name']}, or that does not own this object"
    message = f"{wrong}. No run asks with it: {removal_of(approval)}"
    return Verdict(ConditionType.READY, Reason.INVALID_SPEC, message)


def _is_of_a_session(observed: Observed, approval: Json) -> bool:
    """Return whether the workflow named may be that of the session of a run that is gone, so that nothing tells it now."""
    try:
        target = contract.parse_workflow_id(approval["spec"]["workflowId"])
    except ValueError:
        return False
    ours = (observed.settings.installation, observed.key.namespace)
    return (target.installation, target.namespace) == ours


def _workflow_id(observed: Observed, run: Json) -> str:
    """Return the id of the run's workflow; of a run of a session its status tells it, which only the operator writes."""
    if session_of(run) is not None:
        noted: str = run.get("status", {}).get("workflow", {}).get("id", "")
        return noted
    return contract.run_workflow_id(
        observed.settings.installation, observed.key.namespace, run["metadata"]["name"], uid_of(run)
    )


def policies_are_there(observed: Observed, _: Json) -> Verdict | None:
    """The admission policies are there, unaltered."""
    if not observed.settings.needs_proof:
        return None
    problem = observed.proof.problem if observed.proof else "Nobody has looked at the admission policies yet"
    if problem is None:
        return None
    return Verdict(ConditionType.PROVEN, Reason.POLICY_MISSING, problem, again_after=PROOF_SECONDS)


def policies_are_older(observed: Observed, approval: Json) -> Verdict | None:
    """They were so before the object was made, thus also when it was decided."""
    if not observed.settings.needs_proof or observed.proof is None:
        return None
    since, created = observed.proof.since, parse_timestamp(approval["metadata"]["creationTimestamp"])
    if since is not None and since + ENFORCED_AFTER < created:
        return None
    message = "The admission policies are younger than this AgentApproval, so nothing proves who decided"
    return Verdict(ConditionType.PROVEN, Reason.POLICY_MISSING, message, asks_again=True)


DELIVERY_CHECKS: tuple[Callable[[Observed, Json], Verdict | None], ...] = (
    is_of_its_run,
    policies_are_there,
    policies_are_older,
)
"""What must be so before an Approve is delivered; the first that is not gives the reason. See `Verdict.stops`."""


def _plan_decided(observed: Observed, approval: Json, run: Json) -> Plan:
    verdict = next((verdict for check in DELIVERY_CHECKS if (verdict := check(observed, approval))), None)
    if verdict and verdict.stops(approval):
        return Plan(_refuse(observed, approval, verdict), verdict.again_after)
    decision = decision_of(approval, is_proven=verdict is None)
    return Plan(
        (
            SignalDecision(approval["spec"]["workflowId"], decision),
            WakeRun(_pools(observed, run)),
            WriteStatus(_delivered_status(observed, approval, decision, verdict)),
        )
    )


def _refuse(observed: Observed, approval: Json, verdict: Verdict) -> tuple[Action, ...]:
    if verdict.asks_again:
        metadata = approval["metadata"]
        note = f"{verdict.message}; it is asked anew"
        return (DeleteApproval(metadata["uid"], metadata["resourceVersion"], note),)
    conditions = [condition(ConditionType.READY, "False", verdict.reason, verdict.message)]
    if verdict.type is ConditionType.PROVEN:
        conditions.append(condition(ConditionType.PROVEN, "False", verdict.reason, verdict.message))
    return (WriteStatus(_status(approval, "Pending", conditions, observed.now)),)


def decision_of(approval: Json, *, is_proven: bool = True) -> contract.Decision:
    """Return the decision as the workflow is told it; of one that is not proven neither name nor words, which reach the model."""
    spec = approval["spec"]
    return contract.Decision(
        run_uid=controller_uid(approval) or "",
        name=approval["metadata"]["name"],
        uid=uid_of(approval),
        digest=spec["digest"],
        decision=spec["decision"],
        reason=spec.get("reason") if is_proven else None,
        override=spec.get("override"),
        decided_by=spec.get("decidedBy") if is_proven else None,
    )


def _is_decided(approval: Json) -> bool:
    return bool(approval["spec"].get("decision"))


def _pools(observed: Observed, run: Json) -> tuple[ObjectKey, ...]:
    return tuple(ObjectKey(observed.key.namespace, pool) for pool in pools_of_run(run))


# ── Status ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _delivered_at(approval: Json) -> datetime:
    return parse_timestamp(approval["status"].get("deliveredAt") or approval["metadata"]["creationTimestamp"])


def _delivered_status(
    observed: Observed, approval: Json, decision: contract.Decision, unproven: Verdict | None
) -> Json:
    words = _said(decision.decision, decision.decided_by) + (" without name and reason" if unproven else "")
    message = f"{words} was sent to the run, which says next what came of it"
    conditions = [condition(ConditionType.READY, "Unknown", Reason.DELIVERED, message)]
    if unproven:
        anonymous = f"A Reject is delivered even so, in nobody's name. {unproven.message}"
        conditions.append(condition(ConditionType.PROVEN, "False", unproven.reason, anonymous))
    elif observed.settings.needs_proof:
        proven = "The admission policies are there, unaltered, since before it was asked"
        conditions.append(condition(ConditionType.PROVEN, "True", Reason.POLICY_FOUND, proven))
    status = _status(approval, "Delivered", conditions, observed.now)
    status["deliveredAt"] = timestamp(observed.now)
    if decision.decided_by:
        status["decidedBy"] = decision.decided_by
    return status


def sent_status(settled: Json, sent: Json, now: datetime) -> Json:
    """Return the status of an object that was settled before it could be written that its decision was sent; `sent` is that."""
    proven = [each for each in sent["conditions"] if each["type"] == ConditionType.PROVEN]
    status = {**sent, **settled["status"]}
    return _status({**settled, "status": status}, state_of(settled), proven, now)


def undelivered_status(approval: Json, decision: contract.Decision, problem: str, now: datetime) -> Json:
    """Return the status of a decision that Temporal could not be told yet."""
    words = _said(decision.decision, decision.decided_by)
    message = f"{words} is not delivered yet and tried again. {problem}"
    return _status(approval, "Pending", [condition(ConditionType.READY, "False", Reason.PENDING, message)], now)


def _terminating_status(approval: Json, now: datetime) -> Json:
    kept_by = ", ".join(approval["metadata"]["finalizers"])
    # In nobody's name: what proves it is looked at only to deliver it.
    said = f"{approval['spec']['decision']} is not delivered: it" if _is_decided(approval) else "It"
    message = f"{said} is being deleted, and its run asks anew once it is gone. Finalizers keep it ({kept_by})"
    ready = condition(ConditionType.READY, "False", Reason.DELETING, f"{message}: {removal_of(approval)}")
    return _status(approval, "Pending", [ready], now)


def removal_of(approval: Json) -> str:
    """Return the command that makes an AgentApproval go: to delete one that is being deleted does nothing to its finalizers."""
    metadata = approval["metadata"]
    where = f"agentapproval {metadata['name']} -n {metadata['namespace']}"
    if not metadata.get("deletionTimestamp"):
        return f"kubectl delete {where}"
    return f"kubectl patch {where} --type merge -p '{_NO_FINALIZERS}'"


_NO_FINALIZERS = '{"metadata":{"finalizers":null}}'


def _run_ended_status(approval: Json, now: datetime) -> Json:
    if state_of(approval) == "Delivered":
        message = f"{_words(approval)} was sent, and the run has ended without saying what came of it"
    elif _is_decided(approval):
        message = f"{_words(approval)} was not used: the run has ended. {START_ANOTHER}"
    else:
        message = "Nobody need decide any more: the run has ended"
    return _status(approval, "Expired", [condition(ConditionType.READY, "False", Reason.RUN_ENDED, message)], now)


START_ANOTHER = "If it is still wanted, start another run"
"""What to do about a decision that nothing came of: a run that has gone on is not disturbed."""


def settled_status(approval: Json, end: contract.ApprovalEnd, now: datetime) -> Json:
    """Return the status for what the workflow says has become of an approval.

    A decision that the run did not act on is `Expired`, whatever the run acted on instead, and the reason says why.
    """
    if end.uid not in {None, uid_of(approval)}:
        return unknown_status(approval, "The run had asked with another AgentApproval of this name", START_ANOTHER, now)
    if end.state == "Applied" and _is_decided(approval) and end.decision not in {None, approval["spec"]["decision"]}:
        acted_on = _said(str(end.decision), end.decided_by)
        message = f"{_words(approval)} was not used: the run had acted on {acted_on} already. {START_ANOTHER}"
        return _status(approval, "Expired", [condition(ConditionType.READY, "False", Reason.CONFLICTING, message)], now)
    status = _status(approval, end.state, [_settled(approval, end)], now)
    if end.state == "Applied" and end.decided_by:
        # Who sent the decision may have died before it wrote this.
        status["decidedBy"] = end.decided_by
    return status


def _settled(approval: Json, end: contract.ApprovalEnd) -> Json:
    decided = _words(approval) if _is_decided(approval) else ""
    match end.state:
        case "Applied":
            message = f"The run acted on it: {decided or end.decision or 'the default'}"
            if end.note:
                message += f". {end.note}"
            return condition(ConditionType.READY, "True", Reason.APPLIED, message)
        case "Expired" if decided:
            why = end.note or "The run had gone on, as onTimeout says, or was stopped"
            return condition(
                ConditionType.READY, "False", Reason.TOO_LATE, f"{decided} came too late. {why}. {START_ANOTHER}"
            )
        case "Expired":
            message = end.note or "Nobody decided in time, or before the run ended; nobody need now"
            return condition(ConditionType.READY, "False", Reason.EXPIRED, message)
        case "Superseded":
            message = f"{end.note or 'The tool has changed since it was asked'}; the run asks anew, decide that one"
            return condition(ConditionType.READY, "False", Reason.SUPERSEDED, message)


def unknown_status(approval: Json, why: str, remedy: str, now: datetime) -> Json:
    """Return the status of an object that its run does not ask with: a decision in it means nothing to the run."""
    words = f"{_words(approval)} was not used" if _is_decided(approval) else "Nobody need decide this"
    ready = condition(ConditionType.READY, "False", Reason.UNKNOWN_REQUEST, f"{words}. {why}. {remedy}")
    return _status(approval, "Expired", [ready], now)


def _words(approval: Json) -> str:
    """Return decision and name; not the name where it is known that nothing proves it."""
    spec, proven = approval["spec"], find_condition(approval, ConditionType.PROVEN)
    is_named = proven is None or proven["status"] != "False"
    return _said(spec["decision"], spec.get("decidedBy") if is_named else None)


def _said(decision: str, decided_by: str | None) -> str:
    return f"{decision} by {decided_by}" if decided_by else decision


def _status(approval: Json, state: str, conditions: list[Json], now: datetime) -> Json:
    before = approval.get("status", {})
    generation = approval["metadata"].get("generation", 1)
    return {
        **before,
        "state": state,
        "conditions": with_conditions(before.get("conditions", []), conditions, generation, now),
    }

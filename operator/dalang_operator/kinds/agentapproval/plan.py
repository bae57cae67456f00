"""What to do about one AgentApproval. Pure: everything known stands in `Observed`.

the object              its run                      the plan
A  settled              not asked                    nothing
B  undecided            unfinished                   nothing; from `expiresAt` on: see that a worker lets the time-out happen
C  decided              unfinished                   DELIVERY_CHECKS; then signal, wake the pools, write Delivered
D  Delivered            says that it still waits     see that there is a worker
E  not settled          finished, or no workflow     Expired, RunEnded
F  not settled          gone, or another uid         nothing: the garbage collector takes the object
G  deleted              says that it still waits     have the run report again, so that it is asked anew
H  decided, unproven    unfinished                   delete it (then G): nothing tells who decided

The signal comes before the status: repeated, it changes nothing, while a status without signal would end everything. Who
was first, a decision or the time-out, only the workflow decides; it says so in its next report.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from dalang_api import contract
from dalang_api.v1alpha1.conditions import ConditionType, Reason

from dalang_operator.kube.resources import Json, ObjectKey, controller_uid, uid_of
from dalang_operator.kube.status import condition, parse_timestamp, timestamp, with_conditions
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


@dataclass(frozen=True)
class SignalDecision:
    """Send the decision to the workflow; a repeated one changes nothing."""

    workflow_id: str
    decision: contract.Decision


@dataclass(frozen=True)
class AskAgain:
    """Have the workflow report what it waits for; the reporter makes the object anew, undecided."""

    workflow_id: str


@dataclass(frozen=True)
class WakeRun:
    """See that the run has workers until it reports again."""

    pools: tuple[ObjectKey, ...]


@dataclass(frozen=True)
class WriteStatus:
    """Write the status, if the object is still the one observed."""

    status: Json


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
    if approval["metadata"].get("deletionTimestamp") or state_of(approval) in SETTLED:
        return Plan()
    if run is None or uid_of(run) != controller_uid(approval):
        verdict = is_of_its_run(observed, approval) if _is_decided(approval) else None
        return Plan(_refuse(observed, approval, verdict)) if verdict else Plan()
    if is_finished(run) or observed.has_no_workflow:
        return Plan((WriteStatus(_run_ended_status(approval, observed.now)),))
    if run["metadata"].get("deletionTimestamp"):
        return Plan()
    if state_of(approval) == "Delivered":
        return Plan(_wake(observed, run))
    if _is_decided(approval):
        return _plan_decided(observed, approval, run)
    return _plan_undecided(observed, approval, run)


def _plan_deleted(observed: Observed) -> Plan:
    """G. Only a run that still waits, and is to stay, is asked again: also the garbage collector deletes AgentApprovals."""
    run = observed.run
    if run is None or not waits_for(run, observed.key.name):
        return Plan()
    if run["metadata"].get("deletionTimestamp") or run["spec"].get("cancel"):
        return Plan()
    if observed.asked_again and observed.now < observed.asked_again + ASK_AGAIN:
        return Plan(_wake(observed, run), ASK_AGAIN.total_seconds())
    return Plan((AskAgain(_workflow_id(observed, run)), *_wake(observed, run)), ASK_AGAIN.total_seconds())


def _plan_undecided(observed: Observed, approval: Json, run: Json) -> Plan:
    expires_at = approval["spec"].get("expiresAt")
    if expires_at is None:
        return Plan()
    left = (parse_timestamp(expires_at) - observed.now).total_seconds()
    return Plan(requeue_after=left) if left > 0 else Plan(_wake(observed, run))


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
    message = f"workflowId is not that of AgentRun {spec['runRef']['name']}, or that does not own this object"
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
    message = (
        "The admission policies are younger than this AgentApproval, so nothing proves who decided; it is asked anew"
    )
    return Verdict(ConditionType.PROVEN, Reason.POLICY_MISSING, message, asks_again=True)


DELIVERY_CHECKS: tuple[Callable[[Observed, Json], Verdict | None], ...] = (
    is_of_its_run,
    policies_are_there,
    policies_are_older,
)
"""What must be so before a decision is delivered; the first that is not gives the reason."""


def _plan_decided(observed: Observed, approval: Json, run: Json) -> Plan:
    verdict = next((verdict for check in DELIVERY_CHECKS if (verdict := check(observed, approval))), None)
    if verdict:
        return Plan(_refuse(observed, approval, verdict), verdict.again_after)
    return Plan(
        (
            SignalDecision(approval["spec"]["workflowId"], decision_of(approval)),
            WakeRun(_pools(observed, run)),
            WriteStatus(_delivered_status(observed, approval)),
        )
    )


def _refuse(observed: Observed, approval: Json, verdict: Verdict) -> tuple[Action, ...]:
    if verdict.asks_again:
        metadata = approval["metadata"]
        return (DeleteApproval(metadata["uid"], metadata["resourceVersion"], verdict.message),)
    conditions = [condition(ConditionType.READY, "False", verdict.reason, verdict.message)]
    if verdict.type is ConditionType.PROVEN:
        conditions.append(condition(ConditionType.PROVEN, "False", verdict.reason, verdict.message))
    return (WriteStatus(_status(approval, "Pending", conditions, observed.now)),)


def decision_of(approval: Json) -> contract.Decision:
    """Return the decision as the workflow is told it."""
    spec = approval["spec"]
    return contract.Decision(
        run_uid=controller_uid(approval) or "",
        name=approval["metadata"]["name"],
        uid=uid_of(approval),
        digest=spec["digest"],
        decision=spec["decision"],
        reason=spec.get("reason"),
        override=spec.get("override"),
        decided_by=spec.get("decidedBy"),
    )


def _is_decided(approval: Json) -> bool:
    return bool(approval["spec"].get("decision"))


def _pools(observed: Observed, run: Json) -> tuple[ObjectKey, ...]:
    return tuple(ObjectKey(observed.key.namespace, pool) for pool in pools_of_run(run))


# ── Status ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _delivered_status(observed: Observed, approval: Json) -> Json:
    message = f"{_words(approval)} was sent to the run, which says next what came of it"
    conditions = [condition(ConditionType.READY, "Unknown", Reason.DELIVERED, message)]
    if observed.settings.needs_proof:
        proven = "The admission policies are there, unaltered, since before it was asked"
        conditions.append(condition(ConditionType.PROVEN, "True", Reason.POLICY_FOUND, proven))
    status = _status(approval, "Delivered", conditions, observed.now)
    return {**status, "deliveredAt": timestamp(observed.now)}


def undelivered_status(approval: Json, problem: str, now: datetime) -> Json:
    """Return the status of a decision that Temporal could not be told yet."""
    message = f"{_words(approval)} is not delivered yet and tried again. {problem}"
    return _status(approval, "Pending", [condition(ConditionType.READY, "False", Reason.PENDING, message)], now)


def _run_ended_status(approval: Json, now: datetime) -> Json:
    if state_of(approval) == "Delivered":
        message = f"{_words(approval)} was sent, and the run has ended without saying what came of it"
    else:
        what = f"{_words(approval)} was not used" if _is_decided(approval) else "Nobody need decide any more"
        message = f"{what}: the run has ended"
    return _status(approval, "Expired", [condition(ConditionType.READY, "False", Reason.RUN_ENDED, message)], now)


def settled_status(approval: Json, end: contract.ApprovalEnd, now: datetime) -> Json:
    """Return the status for what the workflow says has become of an approval."""
    decided = _words(approval) if _is_decided(approval) else ""
    match end.state:
        case "Applied":
            message = f"The run acted on it: {decided or end.decision or 'the default'}"
            ready = condition(ConditionType.READY, "True", Reason.APPLIED, message)
        case "Expired":
            message = (
                f"{decided} came too late"
                if decided
                else "Nobody decided in time, or before the run ended; nobody need now"
            )
            ready = condition(ConditionType.READY, "False", Reason.EXPIRED, message)
        case "Superseded":
            message = "The tool has changed since it was asked; the run asks anew, decide that one"
            ready = condition(ConditionType.READY, "False", Reason.SUPERSEDED, message)
    return _status(approval, end.state, [ready], now)


def _words(approval: Json) -> str:
    spec = approval["spec"]
    return f"{spec['decision']} by {spec['decidedBy']}" if spec.get("decidedBy") else str(spec["decision"])


def _status(approval: Json, state: str, conditions: list[Json], now: datetime) -> Json:
    before = approval.get("status", {})
    generation = approval["metadata"].get("generation", 1)
    return {
        **before,
        "state": state,
        "conditions": with_conditions(before.get("conditions", []), conditions, generation, now),
    }

"""Every status an AgentSession can have, each as a pure function of the session and what is known now.

The controller writes `Ready` (but for `Closed`), `Stalled`, `observedGeneration`, at the start which workflow it is, and how many
runs it has just queued; the reporter all else. Both keep what is the other's.
"""

from datetime import datetime

from dalang_api import contract
from dalang_api.contract import SessionReport
from dalang_api.v1alpha1.conditions import ConditionType, Reason
from pydantic_core import to_json

from dalang_operator.kinds.agentrun.status import STATUS_MAX_BYTES, bounded_context, usage
from dalang_operator.kinds.workflow import WorkflowView
from dalang_operator.kube.resources import Json
from dalang_operator.kube.status import (
    clip,
    condition,
    find_condition,
    timestamp,
    with_conditions,
    without_condition,
)

_SUMMARY_KEPT = 1024
"""How much of the summary is kept where a status would be too large."""


def active_status(session: Json, problem: str | None, now: datetime, closing: str | None = None) -> Json:
    """Return the present status as that of a session that is open.

    Args:
        session: As it is known.
        problem: Why its workflow's code fails.
        now: The time.
        closing: Why it takes no more runs, and when it will have closed; None where it goes on.
    """
    ready = condition(ConditionType.READY, "True", Reason.ACTIVE, closing or _goes_on(session))
    if problem is None:
        return _with(session, [ready], now)
    message = f"The workflow's code fails on its worker and is tried again; see the worker's log. Temporal: {problem}"
    stalled = condition(ConditionType.STALLED, "True", Reason.WORKFLOW_TASK_FAILING, message)
    return _with(session, [ready, stalled], now)


def _goes_on(session: Json) -> str:
    """Return what is said of a session that takes runs."""
    goes_on = "The conversation goes on with the next run"
    unsummarised = find_condition(session, ConditionType.SUMMARISED)
    if unsummarised is None:
        return goes_on
    kept = "What could not be summarised is kept while there is room, and the next run tries again"
    return f"{goes_on}. {kept}: {unsummarised['message']}"


def unready_status(session: Json, reason: Reason, message: str, now: datetime) -> Json:
    """Return the present status as that of a session whose next run waits for something."""
    return _with(session, [condition(ConditionType.READY, "False", reason, message)], now)


def lost_status(session: Json, message: str, now: datetime) -> Json:
    """Return the present status as that of a session that has no workflow any more."""
    conditions = [
        condition(ConditionType.READY, "False", Reason.SESSION_LOST, message),
        condition(ConditionType.STALLED, "True", Reason.SESSION_LOST, message),
    ]
    return observed_status(session, _with(session, conditions, now))


def is_lost(session: Json) -> bool:
    """Return whether the status says that the session has lost its workflow."""
    ready = find_condition(session, ConditionType.READY)
    return ready is not None and ready["reason"] == Reason.SESSION_LOST


def started_status(
    session: Json, workflow_id: str, view: WorkflowView, task_queue: str, agent: str, now: datetime
) -> Json:
    """Return the status once the workflow is there; its first report may have come before.

    The report has its own `startedAt`; until the first one, which may be that of a run much later, idle time counts from this.
    """
    status: Json = session.get("status", {})
    if status.get("workflow"):
        return status
    workflow = {"id": workflow_id, "runId": view.run_id, "taskQueue": task_queue, "reportSeq": 0}
    return {**status, "agent": agent, "startedAt": timestamp(now), "workflow": workflow}


def observed_status(session: Json, status: Json) -> Json:
    """Return a status that says the workflow knows this version of the session."""
    return {**status, "observedGeneration": session["metadata"]["generation"]}


def closed_status(session: Json, message: str, now: datetime) -> Json:
    """Return the status of a session that was closed before it had a workflow."""
    closed = condition(ConditionType.READY, "True", Reason.CLOSED, message)
    return observed_status(session, {**_with(session, [closed], now), "closedAt": timestamp(now)})


def session_status(report: SessionReport, session: Json, workflow_id: str, now: datetime) -> Json:
    """Return the status a report makes of a session. A report is the whole state: only what the controller writes stays."""
    before = session.get("status", {})
    status: Json = {
        "conditions": _reported_conditions(report, session, now),
        "agent": report.agent,
        "runs": report.runs,
        "queuedRuns": report.queued_runs,
        "usage": usage(report),
        "startedAt": report.started_at,
        "workflow": {
            "id": workflow_id,
            "runId": report.run_id,
            "taskQueue": report.task_queue,
            "reportSeq": report.seq,
        },
    }
    if "observedGeneration" in before:
        status["observedGeneration"] = before["observedGeneration"]
    if report.last_run is not None:
        last = report.last_run
        status["lastRun"] = {"name": last.name, "phase": last.phase, "finishedAt": last.finished_at}
    if report.messages:
        status["messages"] = [message.model_dump(exclude_none=True) for message in report.messages]
    if report.summary is not None:
        status["summary"] = clip(report.summary, contract.SUMMARY_MAX_CHARS)
    if report.context:
        status["context"] = bounded_context(report.context)
    if report.closed_at is not None:
        message = report.closed_message or "The conversation has ended"
        closed = [condition(ConditionType.READY, "True", Reason.CLOSED, message)]
        status["conditions"] = _conditions({"metadata": session["metadata"], "status": status}, closed, now)
        status["observedGeneration"] = session["metadata"]["generation"]
        status["closedAt"] = report.closed_at
    return _fitted(status)


def _reported_conditions(report: SessionReport, session: Json, now: datetime) -> list[Json]:
    """Return the conditions with what a report says of the last summary."""
    before = session.get("status", {}).get("conditions", [])
    if report.summary_problem is None:
        return without_condition(before, ConditionType.SUMMARISED)
    failed = condition(ConditionType.SUMMARISED, "False", Reason.SUMMARY_FAILED, report.summary_problem)
    return with_conditions(before, [failed], session["metadata"]["generation"], now)


def _with(session: Json, conditions: list[Json], now: datetime) -> Json:
    return {**session.get("status", {}), "conditions": _conditions(session, conditions, now)}


def _conditions(session: Json, conditions: list[Json], now: datetime) -> list[Json]:
    """Return the session's conditions with these; `Stalled` stays only where it is among them."""
    before = without_condition(session.get("status", {}).get("conditions", []), ConditionType.STALLED)
    was = find_condition(session, ConditionType.STALLED)
    if was is not None and any(each["type"] == ConditionType.STALLED for each in conditions):
        before = [*before, was]
    return with_conditions(before, conditions, session["metadata"]["generation"], now)


def _fitted(status: Json) -> Json:
    """Drop what is least missed until the status fits: the transcript has the messages whole, the workflow the summary."""
    while len(to_json(status)) > STATUS_MAX_BYTES:
        if "messages" in status:
            status["messages"] = status["messages"][1:]
            if not status["messages"]:
                del status["messages"]
        elif len(status.get("summary", "")) > _SUMMARY_KEPT:
            status["summary"] = clip(status["summary"], _SUMMARY_KEPT)
        elif "context" in status:
            del status["context"]
        else:
            break
    return status

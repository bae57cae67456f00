"""Every status an AgentRun can have, each as a pure function of the run and what is known now.

The controller writes until the workflow's first report (`status.workflow.reportSeq` > 0), the reporter from then on, and
nobody after `finishedAt`; both take their statuses from here. Of a run that cannot report the controller tells why: its
workflow's code fails (`Stalled`/`WorkflowTaskFailing`), or nobody acts on what was decided (`WorkerMissing`). A report
removes both.
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

from dalang_api import contract
from dalang_api.contract import AgentVersion, ApprovalEnd, ApprovalRequest, RunReport, SessionReport
from dalang_api.prices import decimal_text
from dalang_api.printable import printable
from dalang_api.v1alpha1.conditions import ConditionType, Phase, Reason
from pydantic_core import to_json

from dalang_operator.kube.resources import Json
from dalang_operator.kube.status import (
    clip,
    clip_bytes,
    condition,
    find_condition,
    timestamp,
    with_conditions,
    without_condition,
)

STATUS_MAX_BYTES = 32 * 1024
"""The most a status may weigh: thousands of runs are listed, watched and kept in etcd."""
_OUTPUT_MAX = 8192
_OUTPUT_KEPT = 1024
"""How much of the answer's text is kept at the cost of the answer as an object, and of the context variables."""
_COST_UNIT = Decimal("1e-9")
"""The API has nine decimals."""
STARTED_MESSAGE = "The workflow was started"
_PENDING_MAX = 16
_DECIDED_MAX = 16
_PREVIEW_MAX_BYTES = 256
_QUESTION_KEPT = 64
"""How much of the questions is kept where a status would be too large: the AgentApprovals have them whole."""


def pending_status(run: Json, reason: Reason, message: str, now: datetime) -> Json:
    """Return the status of a run that cannot start yet."""
    conditions = [
        condition(ConditionType.SUCCEEDED, "Unknown", reason, message),
        condition(ConditionType.READY, "False", reason, message),
    ]
    return _with(run, Phase.PENDING, conditions, now)


def held_status(run: Json, order: int, reason: Reason, message: str, now: datetime) -> Json:
    """Return the status of a run that cannot be sent to its session yet; `order` is its place, which the write would lose."""
    return {**pending_status(run, reason, message, now), "order": order}


def running_status(
    run: Json, *, workflow_id: str, run_id: str, task_queue: str, agents: Sequence[AgentVersion], now: datetime
) -> Json:
    """Return the first status of a run whose workflow was started. Of its agents the first begins."""
    message = STARTED_MESSAGE
    conditions = [
        condition(ConditionType.SUCCEEDED, "Unknown", Reason.RUNNING, message),
        condition(ConditionType.READY, "False", Reason.RUNNING, message),
    ]
    return {
        **_with(run, Phase.RUNNING, conditions, now),
        "agent": agents[0].name,
        "agents": [agent.model_dump(exclude_none=True) for agent in agents],
        "startedAt": timestamp(now),
        "workflow": {"id": workflow_id, "runId": run_id, "taskQueue": task_queue, "reportSeq": 0},
    }


def queued_status(
    run: Json, *, workflow_id: str, run_id: str, task_queue: str, agents: Sequence[AgentVersion], now: datetime
) -> Json:
    """Return the first status of a run that was sent to its session while another one is under way there."""
    message = "Runs of its session that came before it have to end first"
    return {
        **pending_status(run, Reason.QUEUED, message, now),
        "agents": [agent.model_dump(exclude_none=True) for agent in agents],
        "workflow": {"id": workflow_id, "runId": run_id, "taskQueue": task_queue, "reportSeq": 0},
    }


def waiting_status(run: Json, reason: Reason, message: str, now: datetime) -> Json:
    """Return the present status of a started run with another reason."""
    conditions = [
        condition(ConditionType.SUCCEEDED, "Unknown", reason, message),
        condition(ConditionType.READY, "False", reason, message),
    ]
    return _with(run, Phase(run["status"]["phase"]), conditions, now)


def asking_status(run: Json, now: datetime) -> Json:
    """Return the present status of a run that awaits approval with that for a reason, as its report had it."""
    message = "; ".join(printable(pending["question"]) for pending in run["status"].get("pendingApprovals", ()))
    return waiting_status(run, Reason.AWAITING_APPROVAL, message, now)


def name_taken_status(run: Json, message: str, now: datetime) -> Json:
    """Return the present status of a run that cannot ask, since somebody's object has the name of its AgentApproval."""
    return waiting_status(run, Reason.NAME_CONFLICT, message, now)


def says_name_taken(run: Json) -> bool:
    """Return whether the status tells that somebody's object has the name of the run's AgentApproval."""
    return _has_reason(run, Reason.NAME_CONFLICT)


def says_worker_missing(run: Json) -> bool:
    """Return whether the status tells that the run's pool has no worker."""
    return _has_reason(run, Reason.WORKER_MISSING)


def _has_reason(run: Json, reason: Reason) -> bool:
    succeeded = find_condition(run, ConditionType.SUCCEEDED)
    return succeeded is not None and succeeded["reason"] == reason


def ended_status(run: Json, phase: Phase, reason: Reason, message: str, now: datetime) -> Json:
    """Return the last status of a run whose workflow left no report of its end."""
    status = _with(run, phase, _ended_conditions(reason, message), now)
    status.pop("pendingApprovals", None)
    return {**status, "finishedAt": timestamp(now)}


def stalled_status(run: Json, cause: str, now: datetime) -> Json:
    """Return the present status with `Stalled`: the workflow's code fails and Temporal tries it again."""
    message = f"The workflow's code fails on its worker and is tried again; see the worker's log. Temporal: {cause}"
    stalled = [condition(ConditionType.STALLED, "True", Reason.WORKFLOW_TASK_FAILING, message)]
    status = run.get("status", {})
    conditions = with_conditions(status.get("conditions", []), stalled, run["metadata"]["generation"], now)
    return {**status, "conditions": conditions}


def unstalled_status(run: Json) -> Json:
    """Return the present status without `Stalled`."""
    status = run.get("status", {})
    return {**status, "conditions": without_condition(status.get("conditions", []), ConditionType.STALLED)}


def run_status(report: RunReport, run: Json, workflow_id: str, now: datetime) -> Json:
    """Return the status a report makes of a run. A report is the whole state, so nothing but conditions survives.

    `observedGeneration` is that of the run as it was just read: a finished run is watched no more, and nobody would
    raise it afterwards.
    """
    status: Json = {
        "phase": report.phase,
        "conditions": _report_conditions(report, run, now),
        "observedGeneration": run["metadata"]["generation"],
        "agent": report.agent,
        "agents": [agent.model_dump(exclude_none=True) for agent in report.agents],
        "startedAt": report.started_at,
        "turns": report.turns,
        "usage": usage(report),
        "workflow": {
            "id": workflow_id,
            "runId": report.run_id,
            "taskQueue": report.task_queue,
            "reportSeq": report.seq,
        },
    }
    if report.messages:
        status["messages"] = [message.model_dump(exclude_none=True) for message in report.messages]
    if report.output is not None:
        status["output"] = clip(report.output, _OUTPUT_MAX)
    if report.output_truncated or (report.output is not None and len(report.output) > _OUTPUT_MAX):
        status["outputTruncated"] = True
    if report.structured_output is not None:
        status["structuredOutput"] = report.structured_output
    if report.context:
        status["context"] = bounded_context(report.context)
    if report.ended_approvals:
        status["approvals"] = _decided(report.ended_approvals)
    if is_final(report):
        status["finishedAt"] = report.finished_at or timestamp(now)
    elif report.pending_approvals:
        status["pendingApprovals"] = _pending(report.pending_approvals)
    return _fitted(status)


def is_final(report: RunReport) -> bool:
    """Return whether a report says how the run ended."""
    return report.phase not in {Phase.RUNNING, Phase.AWAITING_APPROVAL}


def _pending(requests: list[ApprovalRequest]) -> list[Json]:
    pending = []
    for request in {request.name: request for request in requests}.values():
        entry: Json = {"name": request.name, "agent": request.agent, "question": clip(request.question, 512)}
        entry["preview"] = clip_bytes(request.arguments, _PREVIEW_MAX_BYTES)
        if request.tool is not None:
            entry["tool"] = request.tool
        if request.expires_at is not None:
            entry["expiresAt"] = request.expires_at
        pending.append(entry)
    return pending[:_PENDING_MAX]


def _decided(ends: list[ApprovalEnd]) -> list[Json]:
    decided = []
    for end in {end.name: end for end in ends}.values():
        entry: Json = {
            "name": end.name,
            "decision": (end.decision or "Approve") if end.state == "Applied" else end.state,
        }
        if end.tool is not None:
            entry["tool"] = end.tool
        if end.state == "Applied" and end.decided_by is not None:
            entry["decidedBy"] = end.decided_by
        decided.append(entry)
    return decided[-_DECIDED_MAX:]


def usage(report: RunReport | SessionReport) -> Json:
    """Return the tokens a report tells of, and what they cost."""
    used: Json = {
        "inputTokens": report.input_tokens,
        "outputTokens": report.output_tokens,
        "totalTokens": report.input_tokens + report.output_tokens,
    }
    if report.cost_usd is not None:
        used["costUSD"] = decimal_text(Decimal(report.cost_usd).quantize(_COST_UNIT))
    return used


def bounded_context(context: dict[str, str]) -> dict[str, str]:
    """Return the context variables within the schema's bounds: a status that breaks one would be refused for ever."""
    return {
        name: clip(context[name], contract.CONTEXT_VALUE_MAX_CHARS)
        for name in sorted(context)[: contract.CONTEXT_MAX_VARIABLES]
    }


def _with(run: Json, phase: Phase, conditions: list[Json], now: datetime) -> Json:
    status = run.get("status", {})
    generation = run["metadata"]["generation"]
    return {
        **status,
        "phase": str(phase),
        "observedGeneration": generation,
        "conditions": with_conditions(status.get("conditions", []), conditions, generation, now),
    }


def _ended_conditions(reason: Reason | str, message: str) -> list[Json]:
    return [
        condition(ConditionType.SUCCEEDED, "False", reason, message),
        condition(ConditionType.READY, "False", reason, message),
        condition(ConditionType.STALLED, "True", reason, message),
    ]


def _report_conditions(report: RunReport, run: Json, now: datetime) -> list[Json]:
    if report.phase in {"Failed", "Cancelled"}:
        conditions = _ended_conditions(report.reason, report.message)
    else:
        done = report.phase == "Succeeded"
        # What is asked is a model's words, in part: a line of it must not look like one of ours.
        message = printable(report.message) if report.phase == "AwaitingApproval" else report.message
        conditions = [
            condition(ConditionType.SUCCEEDED, "True" if done else "Unknown", report.reason, message),
            condition(ConditionType.READY, "True" if done else "False", report.reason, message),
        ]
    before = without_condition(run.get("status", {}).get("conditions", []), ConditionType.STALLED)
    did_without = (
        (ConditionType.RETRIEVED, Reason.RETRIEVAL_FAILED, report.retrieval_failure),
        (ConditionType.TOOLS_AVAILABLE, Reason.TOOLS_MISSING, report.tools_failure),
    )
    for about, reason, failure in did_without:
        if failure is None:
            before = without_condition(before, about)
        else:
            conditions.append(condition(about, "False", reason, failure))
    return with_conditions(before, conditions, run["metadata"]["generation"], now)


def _fitted(status: Json) -> Json:
    """Drop what is least missed until the status fits: 64 agents, context, answer and messages may be 50 KiB.

    First the oldest messages and most of the answer's text: the transcript has both whole. Then the answer as an object,
    the context variables, what is left of the text, what was decided, and most of what is asked. The agents stay: by them a
    pool knows that it is needed; and so do the names of what is pending.
    """
    while len(to_json(status)) > STATUS_MAX_BYTES:
        if "messages" in status:
            status["messages"] = status["messages"][1:]
            if not status["messages"]:
                del status["messages"]
        elif len(status.get("output", "")) > _OUTPUT_KEPT:
            _shorten_output(status)
        elif "structuredOutput" in status:
            del status["structuredOutput"]
        elif "context" in status:
            del status["context"]
        elif status.get("output"):
            _shorten_output(status)
        elif "approvals" in status:
            del status["approvals"]
        elif any(pending["preview"] for pending in status.get("pendingApprovals", ())):
            status["pendingApprovals"] = [
                {**pending, "preview": "", "question": clip(pending["question"], _QUESTION_KEPT)}
                for pending in status["pendingApprovals"]
            ]
        else:
            break
    return status


def _shorten_output(status: Json) -> None:
    length = len(status["output"]) * 3 // 4
    status["output"] = clip(status["output"], length) if length else ""
    status["outputTruncated"] = True

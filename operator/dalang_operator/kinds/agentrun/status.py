"""Every status an AgentRun can have, each as a pure function of the run and what is known now.

The controller writes until the workflow's first report (`status.workflow.reportSeq` > 0), the reporter from then on, and
nobody after `finishedAt`; both take their statuses from here. The one exception is `Stalled`/`WorkflowTaskFailing` on a
run that reports no more because its workflow's code fails: that condition is the controller's, and a report removes it.
"""

from datetime import datetime

from dalang_api.contract import AgentVersion, RunReport
from dalang_api.v1alpha1.conditions import ConditionType, Phase, Reason
from pydantic_core import to_json

from dalang_operator.kube.resources import Json
from dalang_operator.kube.status import clip, condition, find_condition, timestamp, with_conditions, without_condition

STATUS_MAX_BYTES = 32 * 1024
"""The most a status may weigh: thousands of runs are listed, watched and kept in etcd."""
_OUTPUT_MAX = 8192
STARTED_MESSAGE = "The workflow was started"


def report_seq(run: Json) -> int:
    """Return the number of the report the status comes from; 0 when the controller wrote it."""
    seq: int = run.get("status", {}).get("workflow", {}).get("reportSeq", 0)
    return seq


def pending_status(run: Json, reason: Reason, message: str, now: datetime) -> Json:
    """Return the status of a run that cannot start yet."""
    conditions = [
        condition(ConditionType.SUCCEEDED, "Unknown", reason, message),
        condition(ConditionType.READY, "False", reason, message),
    ]
    return _with(run, Phase.PENDING, conditions, now)


def running_status(
    run: Json, *, workflow_id: str, run_id: str, task_queue: str, agent: AgentVersion, now: datetime
) -> Json:
    """Return the first status of a run whose workflow was started."""
    message = STARTED_MESSAGE
    conditions = [
        condition(ConditionType.SUCCEEDED, "Unknown", Reason.RUNNING, message),
        condition(ConditionType.READY, "False", Reason.RUNNING, message),
    ]
    return {
        **_with(run, Phase.RUNNING, conditions, now),
        "agent": agent.name,
        "agents": [agent.model_dump()],
        "startedAt": timestamp(now),
        "workflow": {"id": workflow_id, "runId": run_id, "taskQueue": task_queue, "reportSeq": 0},
    }


def waiting_status(run: Json, reason: Reason, message: str, now: datetime) -> Json:
    """Return the present status of a started run that has not reported yet, with another reason."""
    conditions = [
        condition(ConditionType.SUCCEEDED, "Unknown", reason, message),
        condition(ConditionType.READY, "False", reason, message),
    ]
    return _with(run, Phase.RUNNING, conditions, now)


def says_worker_missing(run: Json) -> bool:
    """Return whether the status tells that the run's pool has no worker."""
    succeeded = find_condition(run, ConditionType.SUCCEEDED)
    return succeeded is not None and succeeded["reason"] == Reason.WORKER_MISSING


def ended_status(run: Json, phase: Phase, reason: Reason, message: str, now: datetime) -> Json:
    """Return the last status of a run whose workflow left no report of its end."""
    return {**_with(run, phase, _ended_conditions(reason, message), now), "finishedAt": timestamp(now)}


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
        "agents": [agent.model_dump() for agent in report.agents],
        "startedAt": report.started_at,
        "turns": report.turns,
        "usage": {
            "inputTokens": report.input_tokens,
            "outputTokens": report.output_tokens,
            "totalTokens": report.input_tokens + report.output_tokens,
        },
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
    if report.phase != "Running":
        status["finishedAt"] = report.finished_at or timestamp(now)
    return _fitted(status)


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
        conditions = [
            condition(ConditionType.SUCCEEDED, "True" if done else "Unknown", report.reason, report.message),
            condition(ConditionType.READY, "True" if done else "False", report.reason, report.message),
        ]
    before = without_condition(run.get("status", {}).get("conditions", []), ConditionType.STALLED)
    return with_conditions(before, conditions, run["metadata"]["generation"], now)


def _fitted(status: Json) -> Json:
    """Drop the oldest messages, then the output's end, until the status fits: 8,192 characters may be 32 KiB."""
    while len(to_json(status)) > STATUS_MAX_BYTES:
        if status.get("messages"):
            status["messages"] = status["messages"][1:]
        elif status.get("output"):
            status["output"] = clip(status["output"], len(status["output"]) * 3 // 4)
            status["outputTruncated"] = True
        else:
            break
    return status

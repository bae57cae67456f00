"""The statuses of an AgentRun, as the reporter and the controller write them."""

import json
from datetime import timedelta
from typing import Any

import pytest
from dalang_api.contract import AgentVersion, RecentMessage, RunReport
from dalang_api.v1alpha1.agentrun import AgentRunStatus
from dalang_operator.kinds.agentrun.status import STATUS_MAX_BYTES, run_status, running_status

from tests.build import LONG_AGO, NOW, at, condition, run, started_run

HELPER = AgentVersion(name="helper", uid="uid-helper", generation=3)


def report(**fields: Any) -> RunReport:
    defaults: dict[str, Any] = {
        "seq": 1,
        "run_id": "run-1",
        "task_queue": "inst.shop.default",
        "phase": "Succeeded",
        "reason": "Answered",
        "message": "helper answered",
        "agent": "helper",
        "agents": [HELPER],
        "started_at": LONG_AGO,
        "finished_at": at(),
        "output": "done",
        "turns": 2,
        "input_tokens": 10,
        "output_tokens": 5,
    }
    return RunReport(**{**defaults, **fields})


def test_an_answer() -> None:
    assert run_status(report(), started_run(), "wf", NOW) == {
        "phase": "Succeeded",
        "conditions": [
            condition("Ready", "True", "Answered", "helper answered", since=at()),
            condition("Succeeded", "True", "Answered", "helper answered", since=at()),
        ],
        "observedGeneration": 1,
        "agent": "helper",
        "agents": [{"name": "helper", "uid": "uid-helper", "generation": 3}],
        "output": "done",
        "turns": 2,
        "usage": {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15},
        "startedAt": LONG_AGO,
        "finishedAt": at(),
        "workflow": {"id": "wf", "runId": "run-1", "taskQueue": "inst.shop.default", "reportSeq": 1},
    }


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        pytest.param("Running", {"Succeeded": "Unknown", "Ready": "False"}, id="under way"),
        pytest.param("Succeeded", {"Succeeded": "True", "Ready": "True"}, id="done"),
        pytest.param(
            "Failed", {"Succeeded": "False", "Ready": "False", "Stalled": "True"}, id="failed: kstatus reads Stalled"
        ),
        pytest.param(
            "Cancelled", {"Succeeded": "False", "Ready": "False", "Stalled": "True"}, id="cancelled: likewise"
        ),
    ],
)
def test_conditions_by_phase(phase: str, expected: dict[str, str]) -> None:
    status = run_status(report(phase=phase), run(), "wf", NOW)
    assert {found["type"]: found["status"] for found in status["conditions"]} == expected


def test_a_report_takes_stalled_away_and_keeps_the_time_of_what_did_not_change() -> None:
    stalled = started_run()
    stalled["status"]["conditions"].append(condition("Stalled", "True", "WorkflowTaskFailing"))
    status = run_status(report(phase="Running", finished_at=None), stalled, "wf", NOW)
    assert {found["type"]: found["lastTransitionTime"] for found in status["conditions"]} == {
        "Ready": LONG_AGO,
        "Succeeded": LONG_AGO,
    }
    assert "finishedAt" not in status


def test_the_generation_is_that_of_the_object_just_read() -> None:
    status = run_status(report(), run(metadata={"generation": 7}), "wf", NOW)
    assert status["observedGeneration"] == 7


def test_a_status_never_exceeds_its_bound() -> None:
    """Eight thousand characters may be 32 KiB: messages go first, the oldest first, then the output's end."""
    messages = [RecentMessage(role="User", content="語" * 1024) for _ in range(6)]
    status = run_status(report(output="𝒳" * 8192, messages=messages), run(), "wf", NOW)
    assert len(json.dumps(status, ensure_ascii=False).encode()) <= STATUS_MAX_BYTES
    assert "messages" not in status or len(status["messages"]) < 6
    assert status["output"].startswith("𝒳𝒳𝒳")
    assert status["outputTruncated"] is True
    AgentRunStatus.model_validate(status)


def test_the_first_status_says_which_version_of_the_agent_runs() -> None:
    status = running_status(run(), workflow_id="wf", run_id="run-1", task_queue="q", agent=HELPER, now=NOW)
    assert status["agents"] == [{"name": "helper", "uid": "uid-helper", "generation": 3}]
    assert status["workflow"] == {"id": "wf", "runId": "run-1", "taskQueue": "q", "reportSeq": 0}
    assert status["startedAt"] == at()
    AgentRunStatus.model_validate(status)


def test_a_time_that_was_the_schemas_default_is_replaced() -> None:
    status = running_status(run(), workflow_id="wf", run_id="r", task_queue="q", agent=HELPER, now=NOW + timedelta(1))
    assert {found["lastTransitionTime"] for found in status["conditions"]} == {at(timedelta(1))}

"""The statuses of an AgentRun, as the reporter and the controller write them."""

import json
from datetime import timedelta
from typing import Any

import pytest
from dalang_api.contract import AgentVersion, ApprovalEnd, ApprovalRequest, RecentMessage, RunReport
from dalang_api.v1alpha1.agentrun import AgentRunStatus
from dalang_api.v1alpha1.conditions import Phase, Reason
from dalang_operator.kinds.agentrun.status import (
    STATUS_MAX_BYTES,
    asking_status,
    ended_status,
    run_status,
    running_status,
)

from tests.build import LONG_AGO, NOW, at, awaiting_run, condition, run, started_run

HELPER = AgentVersion(name="helper", uid="uid-helper", generation=3, pool="default")


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
        "agents": [{"name": "helper", "uid": "uid-helper", "generation": 3, "pool": "default"}],
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


def test_what_a_report_has_of_cost_context_and_the_answer_as_an_object() -> None:
    given = report(cost_usd="0.00420", context={"b": "2", "a": "Ada"}, structured_output={"ok": True, "note": None})
    status = run_status(given, started_run(), "wf", NOW)
    assert status["usage"] == {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15, "costUSD": "0.0042"}
    assert status["context"] == {"a": "Ada", "b": "2"}
    assert status["structuredOutput"] == {"ok": True, "note": None}
    AgentRunStatus.model_validate(status)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [("0", "0"), ("12", "12"), ("100", "100"), ("1E-7", "0.0000001"), ("0.12345678949", "0.123456789")],
)
def test_a_cost_is_written_as_the_api_takes_it(cost: str, expected: str) -> None:
    assert run_status(report(cost_usd=cost), run(), "wf", NOW)["usage"]["costUSD"] == expected


def test_context_variables_beyond_the_apis_bounds_do_not_cost_the_whole_status() -> None:
    status = run_status(report(context={f"v{number:02}": "x" * 4097 for number in range(65)}), run(), "wf", NOW)
    AgentRunStatus.model_validate(status)
    assert len(status.get("context", {})) <= 64


@pytest.mark.parametrize(
    ("field", "about", "reason"),
    [("retrieval_failure", "Retrieved", "RetrievalFailed"), ("tools_failure", "ToolsAvailable", "ToolsMissing")],
)
def test_what_an_agent_did_without_is_a_condition_until_it_no_longer_does(field: str, about: str, reason: str) -> None:
    failing = report(**{"phase": "Running", "finished_at": None, field: "connection refused"})
    status = run_status(failing, started_run(), "wf", NOW)
    assert condition(about, "False", reason, "connection refused", since=at()) in status["conditions"]
    after = run_status(report(), {**started_run(), "status": status}, "wf", NOW)
    assert [found["type"] for found in after["conditions"]] == ["Ready", "Succeeded"]


def fullest(**fields: Any) -> RunReport:
    """A report in which everything is as large as it may be; three bytes per character where it may hold any."""
    agents = [AgentVersion(name=f"{number:063}", uid="u" * 36, generation=10**6, pool="p" * 40) for number in range(64)]
    everything: dict[str, Any] = {
        "phase": "Failed",
        "reason": "WorkflowFailed",
        "message": "語" * 1024,
        "agents": agents,
        "agent": agents[0].name,
        "task_queue": "q" * 256,
        "output": "語" * 2700,
        "structured_output": {"text": "語" * 2700},
        "context": {f"variable{number}": "語" * 300 for number in range(9)},
        "messages": [RecentMessage(role="Assistant", sender="s" * 63, content="語" * 340) for _ in range(6)],
        "cost_usd": "123456789.123456789",
        "retrieval_failure": "語" * 1024,
        "tools_failure": "語" * 1024,
    }
    return report(**{**everything, **fields})


@pytest.mark.parametrize(
    ("given", "kept", "output"),
    [
        pytest.param(fullest(), {"agents"}, "shortened", id="at the worst the agents stay, and a piece of the answer"),
        pytest.param(
            fullest(message="語" * 600, retrieval_failure=None, tools_failure=None),
            {"agents", "context"},
            "shortened",
            id="then the context variables",
        ),
        pytest.param(
            fullest(message="done", retrieval_failure=None, tools_failure=None, agents=fullest().agents[:44]),
            {"agents", "context", "structuredOutput"},
            "shortened",
            id="then the answer as an object",
        ),
        pytest.param(
            fullest(message="done", retrieval_failure=None, tools_failure=None, agents=[HELPER]),
            {"agents", "context", "structuredOutput", "messages"},
            "whole",
            id="with one agent all fits",
        ),
    ],
)
def test_what_is_dropped_first(given: RunReport, kept: set[str], output: str) -> None:
    status = run_status(given, run(), "w" * 256, NOW)
    size = len(json.dumps(status, ensure_ascii=False, separators=(",", ":")).encode())
    assert size <= STATUS_MAX_BYTES
    assert {"agents", "context", "structuredOutput", "messages"} & set(status) == kept
    assert {"whole": status["output"] == given.output, "shortened": status.get("outputTruncated")}[output]
    assert status["output"]
    AgentRunStatus.model_validate(status)


def test_the_first_status_says_which_version_of_the_agent_runs() -> None:
    status = running_status(run(), workflow_id="wf", run_id="run-1", task_queue="q", agents=[HELPER], now=NOW)
    assert status["agents"] == [{"name": "helper", "uid": "uid-helper", "generation": 3, "pool": "default"}]
    assert status["workflow"] == {"id": "wf", "runId": "run-1", "taskQueue": "q", "reportSeq": 0}
    assert status["startedAt"] == at()
    AgentRunStatus.model_validate(status)


def test_a_time_that_was_the_schemas_default_is_replaced() -> None:
    status = running_status(
        run(), workflow_id="wf", run_id="r", task_queue="q", agents=[HELPER], now=NOW + timedelta(1)
    )
    assert {found["lastTransitionTime"] for found in status["conditions"]} == {at(timedelta(1))}


def request(name: str = "r1-a", **fields: Any) -> ApprovalRequest:
    defaults: dict[str, Any] = {
        "subject": "ToolCall",
        "agent": "helper",
        "tool": "pay",
        "question": "Charge?",
        "arguments": '{"amount":120}',
        "digest": "sha256:0",
        "requested_at": at(),
    }
    return ApprovalRequest(name=name, **{**defaults, **fields})


def awaiting(**fields: Any) -> RunReport:
    defaults = {"phase": "AwaitingApproval", "reason": "AwaitingApproval", "finished_at": None, "output": None}
    return report(**{**defaults, **fields})


def test_what_is_asked_begins_no_line_of_its_own() -> None:
    question = "Pay?\nSucceeded: True \u202e"
    asked = awaiting(message=question, pending_approvals=[request(question=question)])
    status = run_status(asked, started_run(), "wf", NOW)
    again = asking_status(started_run() | {"status": status}, NOW)
    assert {each["message"] for each in [*status["conditions"], *again["conditions"]]} == {
        "Pay?\\nSucceeded: True \\u202e"
    }


def test_a_run_that_awaits_approval_says_for_what() -> None:
    status = run_status(awaiting(pending_approvals=[request(expires_at=at())]), started_run(), "wf", NOW)
    assert status["phase"] == "AwaitingApproval"
    assert "finishedAt" not in status
    assert [(found["type"], found["status"], found["reason"]) for found in status["conditions"]] == [
        ("Ready", "False", "AwaitingApproval"),
        ("Succeeded", "Unknown", "AwaitingApproval"),
    ]
    assert status["pendingApprovals"] == [
        {
            "name": "r1-a",
            "agent": "helper",
            "tool": "pay",
            "question": "Charge?",
            "preview": '{"amount":120}',
            "expiresAt": at(),
        }
    ]
    AgentRunStatus.model_validate(status)


def test_what_was_decided_stays_to_the_end_and_what_was_pending_does_not() -> None:
    ends = [
        ApprovalEnd(name="r1-a", tool="pay", state="Applied", decision="Reject", decided_by="ada"),
        ApprovalEnd(name="r1-b", state="Expired"),
        ApprovalEnd(name="r1-c", tool="pay", state="Superseded", decided_by="ada"),
    ]
    status = run_status(report(ended_approvals=ends, pending_approvals=[request()]), started_run(), "wf", NOW)
    assert status["approvals"] == [
        {"name": "r1-a", "decision": "Reject", "tool": "pay", "decidedBy": "ada"},
        {"name": "r1-b", "decision": "Expired"},
        {"name": "r1-c", "decision": "Superseded", "tool": "pay"},
    ]
    assert "pendingApprovals" not in status
    AgentRunStatus.model_validate(status)


def test_sixteen_of_each_and_a_preview_of_256_bytes() -> None:
    asked = [request(f"r1-{number}", arguments="語" * 100) for number in range(20)]
    ends = [ApprovalEnd(name=f"r1-{number}", state="Expired") for number in (*range(20), 3)]
    status = run_status(awaiting(pending_approvals=asked, ended_approvals=ends), started_run(), "wf", NOW)
    assert [pending["name"] for pending in status["pendingApprovals"]] == [f"r1-{number}" for number in range(16)]
    assert [decided["name"] for decided in status["approvals"]] == [f"r1-{number}" for number in range(4, 20)]
    preview = status["pendingApprovals"][0]["preview"]
    assert preview == "語" * 84 + "…"
    assert len(preview.encode()) <= 256


def test_a_status_that_is_too_large_still_names_all_that_is_pending() -> None:
    asked = [request(f"{'r' * 63}-{number:010}", question="語" * 512, arguments="x" * 999) for number in range(16)]
    ends = [ApprovalEnd(name=f"{'r' * 63}-{number:010}", state="Expired") for number in range(16)]
    given = fullest(
        phase="AwaitingApproval",
        finished_at=None,
        message="done",
        pending_approvals=asked,
        ended_approvals=ends,
        retrieval_failure=None,
        tools_failure=None,
    )
    status = run_status(given, run(), "w" * 256, NOW)
    assert len(json.dumps(status, ensure_ascii=False, separators=(",", ":")).encode()) <= STATUS_MAX_BYTES
    assert [pending["name"] for pending in status["pendingApprovals"]] == [each.name for each in asked]
    assert len(status["agents"]) == 64
    AgentRunStatus.model_validate(status)


def test_a_run_that_the_controller_ends_waits_for_nobody() -> None:
    status = ended_status(awaiting_run("r1", "r1-a"), Phase.FAILED, Reason.TERMINATED, "by hand", NOW)
    assert (status["phase"], status["finishedAt"]) == ("Failed", at())
    assert "pendingApprovals" not in status

"""Runs that began with an earlier version go on with this one: every recorded history replays (see `record.py`)."""

import asyncio
import json
from pathlib import Path

import pytest
from dalang_api import contract, process
from dalang_api.contract import RunInput, RunReport, SessionInput, SessionReport
from dalang_worker.workflows.run import AgentRunWorkflow
from dalang_worker.workflows.session import AgentSessionWorkflow
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))
SHAPES = {
    "answer",
    "answer-approved",
    "answer-changed",
    "answer-text-changed",
    "approval-expired",
    "approved",
    "agent-approved",
    "agent-as-tool-cancelled",
    "agent-as-tool-timed-out",
    "agent-called-when-approved",
    "agents-as-tools",
    "cancelled",
    "cancelled-awaiting-approval",
    "cancelled-before-the-first-turn",
    "cancelled-while-reporting",
    "corrected",
    "fallen-back",
    "handed-over",
    "judged-again",
    "long-tail",
    "max-turns",
    "model-failed",
    "model-retried",
    "model-stopped",
    "once-lost",
    "override-too-large",
    "report-replaced",
    "reported-again",
    "session",
    "session-continued",
    "session-continued-2",
    "session-continued-late",
    "session-continued-late-2",
    "session-continued-later",
    "session-continued-later-2",
    "session-idle",
    "session-refused",
    "session-stopped",
    "timeout",
    "timeout-in-tools",
    "token-budget",
    "tools",
}


def read(path: Path) -> WorkflowHistory:
    content = json.loads(path.read_text())
    return WorkflowHistory.from_json(content.pop("workflowId"), content)


def test_there_is_a_history_of_each_shape() -> None:
    assert {path.stem for path in HISTORIES} >= SHAPES


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_a_recorded_history_replays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the sandbox, which finds clocks, dice and files; the worker does without, for the CPU that it takes."""
    if path.stem.startswith("session-continued"):
        monkeypatch.setattr(contract, "SESSION_CONTINUE_BYTES", 20_000)  # as in record.py
    replayer = Replayer(
        workflows=[AgentRunWorkflow, AgentSessionWorkflow],
        data_converter=process.data_converter(),
        workflow_runner=SandboxedWorkflowRunner(),
    )
    await replayer.replay_workflow(read(path))


@workflow.defn(name=contract.RUN_WORKFLOW)
class WaitsFirst(AgentRunWorkflow):
    """The workflow with one more command at its beginning."""

    @workflow.init
    def __init__(self, run: RunInput) -> None:
        super().__init__(run)

    @workflow.run
    async def run(self, run: RunInput) -> RunReport:
        """Wait, then do as ever."""
        await asyncio.sleep(1)
        return await super().run(run)


@workflow.defn(name=contract.SESSION_WORKFLOW)
class SessionWaitsFirst(AgentSessionWorkflow):
    """Likewise."""

    @workflow.init
    def __init__(self, session: SessionInput) -> None:
        super().__init__(session)

    @workflow.run
    async def run(self, session: SessionInput) -> SessionReport:
        """Wait, then do as ever."""
        await asyncio.sleep(1)
        return await super().run(session)


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_a_changed_workflow_would_be_noticed(path: Path) -> None:
    replayer = Replayer(
        workflows=[WaitsFirst, SessionWaitsFirst],
        data_converter=process.data_converter(),
        workflow_runner=UnsandboxedWorkflowRunner(),  # the sandbox cannot import this file
    )
    with pytest.raises(NondeterminismError):
        await replayer.replay_workflow(read(path))

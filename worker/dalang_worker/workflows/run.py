"""The workflow `AgentRun`: one run is one workflow, whatever it composes.

A change that alters its commands goes behind `workflow.patched`, and `tests/workflow/histories` replays what earlier
versions recorded.
"""

import asyncio

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from dalang_api import contract
    from dalang_api.contract import (
        Decision,
        Retrying,
        RunInput,
        RunReport,
        Snapshot,
        TranscriptPage,
        TranscriptRequest,
    )

    from dalang_worker.conductor.state import RunState
    from dalang_worker.workflows.execution import RunExecution


@workflow.defn(name=contract.RUN_WORKFLOW)
class AgentRunWorkflow:
    """Carries one AgentRun out."""

    @workflow.init
    def __init__(self, run: RunInput) -> None:
        target = contract.parse_workflow_id(workflow.info().workflow_id)
        self._snapshot = run.snapshot
        self._execution = RunExecution(run, RunState(run, target.suffix), target)

    @workflow.run
    async def run(self, run: RunInput) -> RunReport:
        """Return the last report; fail with it, or be cancelled, where there is no answer."""
        ended = await self._execution.carry_out()
        await ended.reported()
        if ended.failure is not None:
            reason, message = ended.failure.reason, ended.failure.message
            raise ApplicationError(message, ended.report, type=reason, non_retryable=True)
        if ended.report.phase == "Cancelled":
            raise asyncio.CancelledError
        return ended.report

    @workflow.query(name=contract.TRANSCRIPT_QUERY)
    def transcript(self, request: TranscriptRequest) -> TranscriptPage:
        """Return a page of a thread."""
        return self._execution.page(request)

    @workflow.query(name=contract.SNAPSHOT_QUERY)
    def snapshot(self) -> Snapshot:
        """Return what the run started with."""
        return self._snapshot

    @workflow.signal(name=contract.RETRYING_SIGNAL)
    def retrying(self, retrying: Retrying) -> None:
        """Take note that an activity fails and is tried again."""
        self._execution.retrying(retrying)

    @workflow.signal(name=contract.DECIDE_SIGNAL)
    def decide(self, decision: Decision) -> None:
        """Take a human's decision."""
        self._execution.decide(decision)

    @workflow.signal(name=contract.REPORT_AGAIN_SIGNAL)
    def report_again(self) -> None:
        """Report the present state once more."""
        self._execution.report_again()

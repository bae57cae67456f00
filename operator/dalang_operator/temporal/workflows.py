"""What the controller asks of Temporal: start, cancel, terminate and describe workflows, lists and counts of them.

By raw RPC: the SDK's `describe` and `list_workflows` raise on a status they do not know, such as a paused workflow's, and
one such run would stop every sweep. It is cheaper, too.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import temporalio.api.common.v1 as common
import temporalio.api.enums.v1 as enums
import temporalio.api.errordetails.v1 as errordetails
import temporalio.api.taskqueue.v1 as taskqueue
import temporalio.api.workflow.v1 as workflow
import temporalio.api.workflowservice.v1 as service
from dalang_api.contract import RUN_WORKFLOW, RunReport, SessionReport, Wire
from google.protobuf.message import Message
from pydantic import ValidationError
from pydantic_core import from_json
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from dalang_operator.kinds.workflow import WorkflowState, WorkflowView
from dalang_operator.runtime.metrics import WORKFLOW_CALLS
from dalang_operator.temporal.errors import TemporalUnavailable, WorkflowNotFound, from_rpc

CALL_TIMEOUT = timedelta(seconds=10)
PAGE_SIZE = 1000

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response")
_Report = TypeVar("_Report", RunReport, SessionReport)


_STATES = {
    enums.WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED: WorkflowState.COMPLETED,
    enums.WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_FAILED: WorkflowState.FAILED,
    enums.WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_CANCELED: WorkflowState.CANCELED,
    enums.WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_TERMINATED: WorkflowState.TERMINATED,
    enums.WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_TIMED_OUT: WorkflowState.TIMED_OUT,
}


@dataclass(frozen=True)
class ListedWorkflow:
    """A line of a list of workflows."""

    workflow_id: str
    run_id: str
    state: WorkflowState
    started_at: datetime
    workflow_type: str
    problems: str = ""
    """What `TemporalReportedProblems` says, joined."""


class Workflows:
    """Calls to one Temporal namespace."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._namespace = client.namespace

    async def start(
        self,
        workflow_id: str,
        task_queue: str,
        workflow_input: Wire,
        request_id: str,
        workflow_type: str = RUN_WORKFLOW,
    ) -> WorkflowView:
        """Start a workflow unless one of that id exists or existed; returns the one there is now.

        Starting twice is harmless: the request id (the object's uid) makes Temporal answer a repeated call like the first,
        and REJECT_DUPLICATE refuses any other.
        """
        payloads = await self._client.data_converter.encode([workflow_input])
        request = service.StartWorkflowExecutionRequest(
            namespace=self._namespace,
            workflow_id=workflow_id,
            workflow_type=common.WorkflowType(name=workflow_type),
            task_queue=taskqueue.TaskQueue(name=task_queue),
            input=common.Payloads(payloads=payloads),
            identity=self._client.identity,
            request_id=request_id,
            workflow_id_reuse_policy=enums.WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
        )
        try:
            response = await self._call("start", self._client.workflow_service.start_workflow_execution, request)
        except RPCError as error:
            run_id = _already_started(error)
            if run_id is None:
                raise from_rpc(error) from error
            return await self.look(workflow_id)
        if response.started:
            return WorkflowView(WorkflowState.OPEN, response.run_id)
        return await self.look(workflow_id)

    async def cancel(self, workflow_id: str, reason: str) -> None:
        """Ask a workflow to end by itself, so that it reports.

        Raises:
            WorkflowNotFound: There is none, or it has ended.
        """
        request = service.RequestCancelWorkflowExecutionRequest(
            namespace=self._namespace,
            workflow_execution=common.WorkflowExecution(workflow_id=workflow_id),
            identity=self._client.identity,
            request_id=f"cancel {workflow_id}",
            reason=reason,
        )
        await self._translated("cancel", self._client.workflow_service.request_cancel_workflow_execution, request)

    async def signal(self, workflow_id: str, name: str, value: Wire | None, request_id: str) -> None:
        """Signal a workflow; Temporal takes a signal of the same request id once.

        Raises:
            WorkflowNotFound: There is none, or it has ended.
        """
        payloads = [] if value is None else await self._client.data_converter.encode([value])
        request = service.SignalWorkflowExecutionRequest(
            namespace=self._namespace,
            workflow_execution=common.WorkflowExecution(workflow_id=workflow_id),
            signal_name=name,
            input=common.Payloads(payloads=payloads),
            identity=self._client.identity,
            request_id=request_id,
        )
        await self._translated("signal", self._client.workflow_service.signal_workflow_execution, request)

    async def terminate(self, workflow_id: str, reason: str) -> bool:
        """Stop a workflow where it stands; returns whether there was one to stop."""
        request = service.TerminateWorkflowExecutionRequest(
            namespace=self._namespace,
            workflow_execution=common.WorkflowExecution(workflow_id=workflow_id),
            identity=self._client.identity,
            reason=reason,
        )
        try:
            await self._translated("terminate", self._client.workflow_service.terminate_workflow_execution, request)
        except WorkflowNotFound:
            return False
        return True

    async def look(self, workflow_id: str) -> WorkflowView:
        """Return how a workflow stands; of one that has ended also its last report."""
        request = service.DescribeWorkflowExecutionRequest(
            namespace=self._namespace, execution=common.WorkflowExecution(workflow_id=workflow_id)
        )
        try:
            response = await self._translated(
                "describe", self._client.workflow_service.describe_workflow_execution, request
            )
        except WorkflowNotFound:
            return WorkflowView(WorkflowState.MISSING)
        info = response.workflow_execution_info
        view = WorkflowView(
            _STATES.get(info.status, WorkflowState.OPEN),
            info.execution.run_id,
            is_cancelled=response.workflow_extended_info.cancel_requested,
        )
        return await self._ended(workflow_id, view) if view.state.is_closed else view

    async def _ended(self, workflow_id: str, view: WorkflowView) -> WorkflowView:
        request = service.GetWorkflowExecutionHistoryRequest(
            namespace=self._namespace,
            execution=common.WorkflowExecution(workflow_id=workflow_id, run_id=view.run_id),
            history_event_filter_type=enums.HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT,
            maximum_page_size=1,
        )
        try:
            response = await self._translated(
                "history", self._client.workflow_service.get_workflow_execution_history, request
            )
        except WorkflowNotFound:
            return view
        payloads: list[common.Payload] = []
        message = ""
        for event in response.history.events:
            completed = event.workflow_execution_completed_event_attributes
            failure = event.workflow_execution_failed_event_attributes.failure
            terminated = event.workflow_execution_terminated_event_attributes
            payloads += completed.result.payloads
            payloads += failure.application_failure_info.details.payloads
            payloads += event.workflow_execution_canceled_event_attributes.details.payloads
            message = failure.message or terminated.reason
        report = await self._last_report(payloads, RunReport)
        # What a run's workflow leaves could be read as a session's report, but not the other way round.
        session = None if report else await self._last_report(payloads, SessionReport)
        return WorkflowView(view.state, view.run_id, message, report, session)

    async def _last_report(self, payloads: list[common.Payload], as_type: type[_Report]) -> _Report | None:
        if not payloads:
            return None
        try:
            [report] = await self._client.data_converter.decode(payloads[:1], [as_type])
        except (RuntimeError, ValueError, ValidationError):
            return None  # a result in a form of its own says nothing about the object
        return report if isinstance(report, as_type) else None

    async def list(self, query: str) -> AsyncIterator[ListedWorkflow]:
        """Yield the workflows a visibility query finds, in pages of 1,000."""
        token = b""
        while True:
            request = service.ListWorkflowExecutionsRequest(
                namespace=self._namespace, page_size=PAGE_SIZE, next_page_token=token, query=query
            )
            page = await self._translated("list", self._client.workflow_service.list_workflow_executions, request)
            for info in page.executions:
                yield _listed(info)
            token = page.next_page_token
            if not token:
                return

    async def count(self, query: str) -> int:
        """Return how many workflows a visibility query finds."""
        request = service.CountWorkflowExecutionsRequest(namespace=self._namespace, query=query)
        response = await self._translated("count", self._client.workflow_service.count_workflow_executions, request)
        return response.count

    async def check(self) -> None:
        """Return if Temporal answers and has our namespace.

        Raises:
            TemporalError: It does not, or has not.
        """
        request = service.DescribeNamespaceRequest(namespace=self._namespace)
        await self._translated("check", self._client.workflow_service.describe_namespace, request)

    async def call(self, name: str, method: Callable[..., Awaitable[_Response]], request: _Request) -> _Response:
        """Make a call of Temporal's service as all here are made: with a deadline, counted, with our errors."""
        return await self._translated(name, method, request)

    async def _translated(self, call: str, method: Callable[..., Awaitable[_Response]], request: _Request) -> _Response:
        try:
            return await self._call(call, method, request)
        except RPCError as error:
            raise from_rpc(error) from error

    async def _call(self, call: str, method: Callable[..., Awaitable[_Response]], request: _Request) -> _Response:
        try:
            response = await method(request, timeout=CALL_TIMEOUT)
        except RPCError as error:
            WORKFLOW_CALLS.labels(call, error.status.name).inc()
            raise
        except RuntimeError as error:  # what a lazy client raises when it cannot connect
            WORKFLOW_CALLS.labels(call, "UNREACHABLE").inc()
            raise TemporalUnavailable(f"Temporal cannot be reached: {error}") from error
        WORKFLOW_CALLS.labels(call, "OK").inc()
        return response


def _already_started(error: RPCError) -> str | None:
    if error.status is not RPCStatusCode.ALREADY_EXISTS:
        return None
    details = errordetails.WorkflowExecutionAlreadyStartedFailure()
    for detail in error.grpc_status.details:
        if detail.Unpack(details):
            return details.run_id
    return ""


def _listed(info: workflow.WorkflowExecutionInfo) -> ListedWorkflow:
    problems = info.search_attributes.indexed_fields.get("TemporalReportedProblems")
    return ListedWorkflow(
        info.execution.workflow_id,
        info.execution.run_id,
        _STATES.get(info.status, WorkflowState.OPEN),
        info.start_time.ToDatetime(UTC),
        info.type.name,
        ", ".join(from_json(problems.data)) if problems else "",
    )

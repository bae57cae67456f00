"""The histories of a workflow in Temporal, as the few facts that tell what was said.

A session continues as new, so it is a chain of executions under one workflow id, of which Temporal deletes the oldest when
its retention has passed.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from dalang_api import contract
from dalang_api.contract import (
    CancelExchange,
    Decision,
    Exchange,
    ModelCall,
    ModelReply,
    ReportResult,
    Retrying,
    RunInput,
    RunReport,
    SessionInput,
    SessionReport,
    SessionSettings,
    SummaryCall,
    SummaryReply,
    ToolCall,
    ToolOutcome,
    Wire,
)
from temporalio.api.common.v1 import Payloads
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client
from temporalio.converter import DataConverter
from temporalio.service import RPCError, RPCStatusCode

_W = TypeVar("_W", bound=Wire)

STARTS: Mapping[str, type[Wire]] = {
    contract.RUN_WORKFLOW: RunInput,
    contract.SESSION_WORKFLOW: SessionInput,
}
INPUTS: Mapping[str, type[Wire]] = {
    contract.MODEL_ACTIVITY: ModelCall,
    contract.TOOL_ACTIVITY: ToolCall,
    contract.MCP_ACTIVITY: ToolCall,
    contract.SUMMARY_ACTIVITY: SummaryCall,
    contract.REPORT_ACTIVITY: RunReport,
    contract.REPORT_SESSION_ACTIVITY: SessionReport,
}
RESULTS: Mapping[str, type[Wire]] = {
    contract.MODEL_ACTIVITY: ModelReply,
    contract.TOOL_ACTIVITY: ToolOutcome,
    contract.MCP_ACTIVITY: ToolOutcome,
    contract.SUMMARY_ACTIVITY: SummaryReply,
    contract.REPORT_ACTIVITY: ReportResult,
}
SIGNALS: Mapping[str, type[Wire]] = {
    contract.EXCHANGE_SIGNAL: Exchange,
    contract.CANCEL_EXCHANGE_SIGNAL: CancelExchange,
    contract.CONFIGURE_SIGNAL: SessionSettings,
    contract.DECIDE_SIGNAL: Decision,
    contract.RETRYING_SIGNAL: Retrying,
}
ENDS: Mapping[str, str] = {
    "workflow_execution_terminated_event_attributes": "terminated",
    "workflow_execution_timed_out_event_attributes": "timed out",
    "workflow_execution_completed_event_attributes": "completed",
    "workflow_execution_failed_event_attributes": "failed",
    "workflow_execution_canceled_event_attributes": "cancelled",
    "workflow_execution_continued_as_new_event_attributes": "continued",
}


class HistoryUnavailable(Exception):
    """Temporal could not be asked, or knows nothing of it; the text says which."""


@dataclass(frozen=True)
class Fact:
    """Something that happened, with its time."""

    at: datetime


@dataclass(frozen=True)
class Started(Fact):
    """The execution began with this."""

    value: Wire


@dataclass(frozen=True)
class Signalled(Fact):
    """Somebody told the workflow this."""

    value: Wire


@dataclass(frozen=True)
class Scheduled(Fact):
    """The workflow asked for this, to be carried out by a worker or the reporter."""

    id: int
    """Number of the event, unique in the execution."""
    value: Wire


@dataclass(frozen=True)
class Closed(Fact):
    """What came of it."""

    id: int
    """That of `Scheduled`."""
    value: Wire | None = None
    """The result; None where it failed."""
    problem: str = ""
    """Why there is no result."""
    attempts: int = 1
    last_failure: str = ""
    """Why the attempt before the last failed."""


@dataclass(frozen=True)
class Ended(Fact):
    """The execution ended."""

    how: str
    """One of the values of `ENDS`."""
    why: str = ""


@dataclass(frozen=True)
class Execution:
    """One of a chain."""

    run_id: str
    continued_from: str
    """Temporal's id of the execution before; empty: it is the first."""


async def chain(client: Client, workflow_id: str) -> AsyncIterator[Execution]:
    """Yield the executions that Temporal still has, the newest first; the last one's `continued_from` is gone.

    Raises:
        HistoryUnavailable: It has none, or could not be asked.
    """
    try:
        description = await client.get_workflow_handle(workflow_id).describe()
    except RPCError as error:
        raise _unavailable(error, workflow_id) from error
    run_id = description.run_id
    while run_id:
        try:
            first = await anext(
                client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history_events(page_size=1)
            )
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return
            raise _unavailable(error, workflow_id) from error
        execution = Execution(run_id, first.workflow_execution_started_event_attributes.continued_execution_run_id)
        yield execution
        run_id = execution.continued_from


async def read(client: Client, workflow_id: str, execution: Execution) -> list[Fact]:
    """Return what happened in one execution so far.

    Raises:
        HistoryUnavailable: Temporal could not be asked, or deleted it just now.
    """
    handle = client.get_workflow_handle(workflow_id, run_id=execution.run_id)
    try:
        events = [event async for event in handle.fetch_history_events()]
    except RPCError as error:
        raise _unavailable(error, workflow_id) from error
    return await facts(events, client.data_converter)


async def facts(events: Sequence[HistoryEvent], converter: DataConverter) -> list[Fact]:
    """Return what of a history tells what was said, in its order.

    Raises:
        HistoryUnavailable: It is not ours, or written in a way that this version does not read.
    """
    decoder = _Decoder(converter)
    try:
        return [fact for event in events if (fact := await decoder.fact(event)) is not None]
    except (ValueError, RuntimeError) as error:
        raise HistoryUnavailable(f"its history cannot be read: {error}") from error


class _Decoder:
    """Reads one history; what an activity came to names it by the numbers of its events."""

    def __init__(self, converter: DataConverter) -> None:
        self._converter = converter
        self._types: dict[int, str] = {}
        self._attempts: dict[int, tuple[int, str]] = {}
        """For each activity that a worker took, as it was recorded at its end: which attempt, and why the last failed."""

    async def fact(self, event: HistoryEvent) -> Fact | None:
        at = event.event_time.ToDatetime(UTC)
        attribute = event.WhichOneof("attributes") or ""
        details: Any = getattr(event, attribute) if attribute else None
        match attribute:
            case "workflow_execution_started_event_attributes":
                value = await self._value(details.input, STARTS.get(details.workflow_type.name))
                return Started(at, value) if value is not None else None
            case "workflow_execution_signaled_event_attributes":
                value = await self._value(details.input, SIGNALS.get(details.signal_name))
                return Signalled(at, value) if value is not None else None
            case "activity_task_scheduled_event_attributes":
                name = self._types[event.event_id] = details.activity_type.name
                value = await self._value(details.input, INPUTS.get(name))
                return Scheduled(at, event.event_id, value) if value is not None else None
            case "activity_task_started_event_attributes":
                failure = self._words(details.last_failure) if details.HasField("last_failure") else ""
                self._attempts[details.scheduled_event_id] = (details.attempt, failure)
                return None
            case "activity_task_completed_event_attributes":
                wanted = RESULTS.get(self._types[details.scheduled_event_id])
                return self._closed(at, details, value=await self._value(details.result, wanted))
            case "activity_task_failed_event_attributes" | "activity_task_timed_out_event_attributes":
                return self._closed(at, details, problem=self._words(details.failure))
            case "activity_task_canceled_event_attributes":
                return self._closed(at, details, problem="it was cancelled")
        if attribute in ENDS:
            return Ended(at, ENDS[attribute], str(getattr(details, "reason", "")))
        return None

    def _closed(self, at: datetime, details: Any, value: Wire | None = None, problem: str = "") -> Closed:
        number = details.scheduled_event_id
        attempts, last_failure = self._attempts.get(number, (1, ""))
        return Closed(at, number, value, problem, attempts, last_failure)

    async def _value(self, payloads: Payloads, wanted: type[_W] | None) -> _W | None:
        if wanted is None or not payloads.payloads:
            return None
        decoded: list[_W | None] = await self._converter.decode(payloads.payloads[:1], [wanted])
        return decoded[0]

    def _words(self, failure: Failure) -> str:
        """Return the words nearest to the cause."""
        while failure.HasField("cause") and failure.cause.message:
            failure = failure.cause
        kind = failure.application_failure_info.type
        return f"{kind}: {failure.message}" if kind else failure.message


def _unavailable(error: RPCError, workflow_id: str) -> HistoryUnavailable:
    if error.status is RPCStatusCode.NOT_FOUND:
        return HistoryUnavailable(
            f"Temporal knows no workflow {workflow_id}: its retention has passed, or it is another"
        )
    return HistoryUnavailable(f"Temporal does not answer: {error.message}")

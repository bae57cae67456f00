"""The chain of a session's executions, of which Temporal deletes the oldest. A dev server never does, so one is played."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
from dalang_cli.transcript.history import Execution, HistoryUnavailable, chain
from temporalio.api.history.v1 import HistoryEvent, WorkflowExecutionStartedEventAttributes
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

KEPT = {"r3": "r2", "r2": "r1"}
"""What Temporal still has, each with the execution before it."""


@dataclass
class Handle:
    run_id: str
    error: RPCStatusCode | None

    async def describe(self) -> Any:
        if self.error:
            raise RPCError("no", self.error, b"")
        return self

    async def fetch_history_events(self, *, page_size: int) -> AsyncIterator[HistoryEvent]:
        if self.run_id not in KEPT:
            raise RPCError("no", RPCStatusCode.NOT_FOUND, b"")
        started = WorkflowExecutionStartedEventAttributes(continued_execution_run_id=KEPT[self.run_id])
        yield HistoryEvent(workflow_execution_started_event_attributes=started)


@dataclass
class Temporal:
    """Knows one workflow, whose newest execution is r3."""

    error: RPCStatusCode | None = None

    def get_workflow_handle(self, workflow_id: str, run_id: str = "r3") -> Handle:
        return Handle(run_id, self.error)


async def executions(temporal: Temporal) -> list[Execution]:
    return [each async for each in chain(cast(Client, temporal), "dalang.shop.s.1")]


async def test_the_chain_ends_where_retention_has_passed() -> None:
    assert await executions(Temporal()) == [Execution("r3", "r2"), Execution("r2", "r1")]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (RPCStatusCode.NOT_FOUND, "Temporal knows no workflow dalang.shop.s.1"),
        (RPCStatusCode.UNAVAILABLE, "Temporal does not answer: no"),
    ],
)
async def test_temporal_has_nothing_or_is_away(status: RPCStatusCode, words: str) -> None:
    with pytest.raises(HistoryUnavailable, match=words):
        await executions(Temporal(status))

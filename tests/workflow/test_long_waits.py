"""Waits of hours and weeks, on a server that skips the time in which nothing is due."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from dalang_api import process
from dalang_api.contract import ApprovalPolicy, Snapshot, ToolBinding
from temporalio.testing import WorkflowEnvironment

from tests.workflow.conftest import TEMPORAL, World

if TYPE_CHECKING:
    from dalang_api.contract import RunReport

Json = dict[str, Any]

PAY = {"toolCalls": [{"name": "weather", "arguments": {"city": "Ubud"}}]}


@pytest.fixture
async def skipping(model_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """An installation on such a server."""
    environment = await WorkflowEnvironment.start_time_skipping_v2(
        data_converter=process.data_converter(),
        dev_server_existing_path=str(TEMPORAL),
        dev_server_extra_args=["--dynamic-config-value", "frontend.WorkflowTimeSkippingEnabled=true"],
    )
    async with environment, aiohttp.ClientSession() as http:
        address = environment.client.service_client.config.target_host
        made = World(environment.client, address, model_url, http, tmp_path)
        made.reporter_open.set()
        yield made


def hours(report: "RunReport") -> float:
    assert report.finished_at is not None
    took = datetime.fromisoformat(report.finished_at) - datetime.fromisoformat(report.started_at)
    return took / timedelta(hours=1)


@pytest.mark.parametrize(
    ("on_timeout", "reason"), [("Reject", "Answered"), ("Approve", "Answered"), ("Fail", "ApprovalExpired")]
)
async def test_an_approval_that_nobody_decides_in_twelve_hours(skipping: World, on_timeout: str, reason: str) -> None:
    """The run's own timeout of a minute stands still meanwhile."""
    policy = ApprovalPolicy.model_validate({"timeout_seconds": 12 * 3600.0, "on_timeout": on_timeout})
    tool = ToolBinding(name="weather", function="weather", approval=policy)
    async with skipping.serving():
        run = await skipping.start(PAY, {"text": "{{last_tool}}"}, agent={"tools": [tool]})
        ended = await run.end()
    assert ended.report.reason == reason
    assert 12 <= hours(ended.report) < 12.1


async def test_a_session_in_which_an_approval_expires_goes_on(skipping: World) -> None:
    policy = ApprovalPolicy(timeout_seconds=12 * 3600.0, on_timeout="Fail")
    tool = ToolBinding(name="weather", function="weather", approval=policy)
    async with skipping.serving():
        session = await skipping.start_session(PAY, agents=[skipping.agent(tools=[tool])])
        first = await session.ask("pay")
        model = skipping.model("gpt", await skipping.script({"text": "Hello"}))
        second = await session.ask("hello", snapshot=Snapshot(agents=[skipping.agent()], models=[model]))
    assert (first.reason, second.output) == ("ApprovalExpired", "Hello")
    assert 12 <= hours(first) < 12.1

"""The activity `mcp`, in Temporal's activity environment, with real servers."""

import asyncio
import importlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dalang_api.contract import McpServerSettings, SecretKey, ToolCall, ToolOutcome, idempotency_key
from dalang_worker.activities.mcp import McpActivity
from dalang_worker.approvals import CHANGED_DO_NOT_FIT, CalledTool, unknown_outcome
from dalang_worker.mcp.servers import McpServers
from dalang_worker.metrics import TOOL_CALLS
from temporalio.activity import ActivityCancellationDetails
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from tests.unit.worker.mcp.serving import ServerProcess, stdio, until

UID = "5f0d7f0e-0000-4000-8000-000000000001"


def call(function: str, *, once: bool | None = None, arguments: str | None = None, **values: Any) -> ToolCall:
    return ToolCall(
        call_id="call_1",
        tool=f"everything_{function}",
        function=function,
        arguments=arguments if arguments is not None else json.dumps(values),
        thread="main",
        turn=1,
        index=0,
        server="everything",
        once=once,
    )


def counted(function: str, result: str) -> float:
    value: float = TOOL_CALLS.labels(f"everything_{function}", result)._value.get()
    return value


@pytest.fixture
def environment() -> ActivityEnvironment:
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, workflow_id=f"dalang.shop.my.run.{UID}")
    return environment


@pytest.fixture
async def activity(tmp_path: Path) -> AsyncIterator[McpActivity]:
    away = McpServerSettings(name="away", transport="stdio", command="no-such-command")
    servers = McpServers([stdio(), away], tmp_path, None)
    yield McpActivity(servers)
    await servers.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., ServerProcess]]:
    """Return a function that starts a server over HTTP."""
    started: list[ServerProcess] = []

    def start(kind: str, token: Path | None = None) -> ServerProcess:
        started.append(ServerProcess(kind, token).start())
        return started[-1]

    yield start
    for process in started:
        process.kill()


async def test_the_tool_is_called_under_the_runs_key(activity: McpActivity, environment: ActivityEnvironment) -> None:
    asked = call("seen")
    outcome = await environment.run(activity.mcp, asked)
    assert json.loads(outcome.output)["key"] == idempotency_key(UID, asked)
    assert outcome.is_error is None


async def test_calls_are_counted_by_how_they_ended(activity: McpActivity, environment: ActivityEnvironment) -> None:
    before = counted("add", "ok"), counted("fail", "failed")
    assert await environment.run(activity.mcp, call("add", a=1, b=2)) == ToolOutcome(output="3")
    assert (await environment.run(activity.mcp, call("fail", words="no"))).is_error
    assert (counted("add", "ok"), counted("fail", "failed")) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param("{", "The arguments are not JSON: ", id="no JSON"),
        pytest.param('{"a": NaN}', "The arguments are not JSON: ", id="not a number"),
        pytest.param('{"a": "\\ud800"}', "The arguments are not JSON: ", id="a lone surrogate"),
        pytest.param("[1]", "The arguments are not a JSON object", id="a list"),
    ],
)
async def test_arguments_that_cannot_be_sent(
    arguments: str, words: str, activity: McpActivity, environment: ActivityEnvironment
) -> None:
    outcome = await environment.run(activity.mcp, call("add", arguments=arguments))
    assert outcome.is_error
    assert outcome.output.startswith(words)


async def test_a_server_that_is_away_is_told_to_the_model(
    activity: McpActivity, environment: ActivityEnvironment
) -> None:
    outcome = await environment.run(activity.mcp, call("add").model_copy(update={"server": "away"}))
    words = "MCP server 'away' is not available: 'no-such-command' cannot be run: No such file or directory"
    assert outcome == ToolOutcome(output=words, is_error=True, not_run=True)


@pytest.mark.parametrize(
    ("once", "crashes", "ending"),
    [
        pytest.param(True, "x", "assume neither that it did nor that it did not", id="a tool that must not run twice"),
        pytest.param(None, "xx", "assume neither that it did nor that it did not", id="another is called once more"),
    ],
)
async def test_a_server_that_dies_in_the_call(
    once: bool | None,
    crashes: str,
    ending: str,
    activity: McpActivity,
    environment: ActivityEnvironment,
    tmp_path: Path,
) -> None:
    outcome = await environment.run(activity.mcp, call("crash", once=once, folder=str(tmp_path)))
    assert outcome.is_error
    assert outcome.output.endswith(ending)
    assert (tmp_path / "crashes").read_text() == crashes
    assert await environment.run(activity.mcp, call("add", a=1, b=2)) == ToolOutcome(output="3")


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize("kind", ["streamable-http", "json"])
async def test_a_call_the_server_turned_away_is_made_again(
    mode: str,
    kind: str,
    serve: Callable[..., ServerProcess],
    environment: ActivityEnvironment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pod was replaced: the new one does not know the session of an older protocol, so a tool may run that must run once."""
    connection_module = importlib.import_module("dalang_worker.mcp.connection")
    monkeypatch.setattr(connection_module.Connection, "_modes", lambda self: (mode,))
    process = serve(kind)
    servers = McpServers([process.settings()], tmp_path, None)
    activity = McpActivity(servers)
    assert await environment.run(activity.mcp, call("add", a=1, b=2)) == ToolOutcome(output="3")
    process.kill()
    process.start()
    assert await environment.run(activity.mcp, call("put", once=True, value="a")) == ToolOutcome(output="stored a")
    await servers.close()


@pytest.mark.parametrize("kind", ["sse", "streamable-http"])
async def test_a_token_that_has_changed_is_read_again(
    kind: str, serve: Callable[..., ServerProcess], environment: ActivityEnvironment, tmp_path: Path
) -> None:
    token = tmp_path / "weather" / "token"
    token.parent.mkdir()
    token.write_text("the-old-token")
    process = serve(kind, token)
    settings = process.settings(bearer_token=SecretKey(name="weather", key="token"))
    servers = McpServers([settings], tmp_path, None)
    activity = McpActivity(servers)
    assert await environment.run(activity.mcp, call("put", once=True, value="a")) == ToolOutcome(output="stored a")
    token.write_text("the-new-token")
    assert await environment.run(activity.mcp, call("put", once=True, value="b")) == ToolOutcome(output="stored b")
    await servers.close()


@pytest.mark.parametrize("cancel_requested", [True, False], ids=["by its workflow", "by a stopping worker"])
async def test_a_cancelled_call(
    cancel_requested: bool, activity: McpActivity, environment: ActivityEnvironment, tmp_path: Path
) -> None:
    running = asyncio.ensure_future(environment.run(activity.mcp, call("wait", folder=str(tmp_path))))
    await until((tmp_path / "started").exists)
    environment.cancel(cancellation_details=ActivityCancellationDetails(cancel_requested=cancel_requested))
    with pytest.raises(asyncio.CancelledError if cancel_requested else ApplicationError):
        await running
    await until((tmp_path / "cancelled").exists)
    assert await another(environment).run(activity.mcp, call("add", a=1, b=2)) == ToolOutcome(output="3")


def another(environment: ActivityEnvironment) -> ActivityEnvironment:
    fresh = ActivityEnvironment()
    fresh.info = environment.info
    return fresh


async def approved(activity: McpActivity, arguments: str = '{"a":1,"b":2}', **more: Any) -> ToolCall:
    """Return a call of `add`, one and two being what was approved."""
    tools = {tool.name: tool for tool in await activity._servers.list_tools("everything")}
    digest = CalledTool.mcp("everything_add", "everything", tools["add"]).digest('{"a":1,"b":2}')
    return call("add", arguments=arguments).model_copy(update={"approved_digest": digest, **more})


async def test_what_was_approved_is_called(activity: McpActivity, environment: ActivityEnvironment) -> None:
    assert await environment.run(activity.mcp, await approved(activity)) == ToolOutcome(output="3")
    changed = await approved(activity, '{"a":1,"b":5}', approved_arguments='{"a":1,"b":2}')
    assert await environment.run(activity.mcp, changed) == ToolOutcome(output="6")


async def test_what_was_not_approved_is_asked_again(activity: McpActivity, environment: ActivityEnvironment) -> None:
    other = await environment.run(activity.mcp, await approved(activity, '{"a":1,"b":3}'))
    assert other.ask_again is not None
    assert (other.output, other.ask_again.arguments) == ("", '{"a":1,"b":3}')
    before = f"sha256:{'0' * 64}"  # of another schema
    again = await environment.run(activity.mcp, await approved(activity, approved_digest=before))
    fresh = await approved(activity)
    assert again.ask_again is not None
    assert again.ask_again.digest == fresh.approved_digest


async def test_what_has_changed_since_a_worker_was_lost_may_have_run(
    activity: McpActivity, environment: ActivityEnvironment
) -> None:
    lost = another(environment)
    lost.info = replace(environment.info, attempt=2)
    other = await approved(activity, approved_digest=f"sha256:{'0' * 64}")
    assert await lost.run(activity.mcp, other) == unknown_outcome("everything_add")
    gone = (await approved(activity)).model_copy(update={"function": "burn"})
    assert await lost.run(activity.mcp, gone) == unknown_outcome("everything_add")


async def test_a_tool_that_is_gone_is_told(activity: McpActivity, environment: ActivityEnvironment) -> None:
    gone = (await approved(activity)).model_copy(update={"function": "burn"})
    outcome = await environment.run(activity.mcp, gone)
    assert (outcome.is_error, outcome.output) == (True, "Not run: MCP server 'everything' has no tool 'burn' any more")


async def test_an_approver_s_arguments_that_do_not_fit(activity: McpActivity, environment: ActivityEnvironment) -> None:
    changed = await approved(activity, '{"a":"one","b":5}', approved_arguments='{"a":1,"b":2}')
    outcome = await environment.run(activity.mcp, changed)
    assert (outcome.is_error, outcome.not_run) == (True, True)
    assert outcome.output.startswith(f"{CHANGED_DO_NOT_FIT} The answer does not fit the schema: at a: 'one' is not")
    assert "Answer again" not in outcome.output

"""Calls of MCP tools, over each transport, of real servers."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from dalang_api.contract import TOOL_OUTPUT_MAX_BYTES, McpServerSettings, NamedValue, SecretKey, ToolOutcome
from dalang_worker.mcp import McpTool, McpUnavailableError
from dalang_worker.mcp.servers import McpServers

from tests.unit.worker.mcp.conftest import Reach
from tests.unit.worker.mcp.serving import ServerProcess, stdio, until

KEY = "a-key"
TOKEN = SecretKey(name="weather", key="token")


async def call(servers: McpServers, tool: str, **arguments: object) -> ToolOutcome:
    return await servers.call("everything", tool, dict(arguments), KEY)


async def test_a_tool_is_listed_and_called(settings: McpServerSettings, reach: Reach) -> None:
    servers = reach(settings)
    tools = {tool.name: tool for tool in await servers.list_tools("everything")}
    schema = tools["add"].schema
    assert tools["add"] == McpTool(
        "add", "Add two numbers.", schema, once=False, read_only=True, destructive=False, idempotent=True
    )
    assert schema["required"] == ["a", "b"]
    assert await call(servers, "add", a=1, b=2) == ToolOutcome(output="3")


async def test_only_a_tool_that_says_so_may_be_called_again(reach: Reach) -> None:
    tools = await reach(stdio()).list_tools("everything")
    once = {tool.name: tool.once for tool in tools if tool.name in ("add", "put", "fail", "seen")}
    assert once == {"add": False, "put": False, "fail": True, "seen": True}


async def test_what_a_server_does_not_claim_counts_against_the_tool(reach: Reach) -> None:
    tools = {tool.name: tool for tool in await reach(stdio()).list_tools("everything")}
    claims = {
        name: (tools[name].read_only, tools[name].destructive, tools[name].idempotent)
        for name in ("add", "put", "seen")
    }
    assert claims == {"add": (True, False, True), "put": (False, True, True), "seen": (False, True, False)}


async def test_an_error_of_the_tool_is_an_outcome(settings: McpServerSettings, reach: Reach) -> None:
    outcome = await call(reach(settings), "fail", words="no such city")
    assert outcome.is_error
    assert "no such city" in outcome.output


async def test_what_is_no_text_is_named(settings: McpServerSettings, reach: Reach) -> None:
    outcome = await call(reach(settings), "contents")
    assert outcome.output.splitlines() == [
        "a text",
        "[image image/png, 3 bytes: not shown]",
        "[audio audio/wav, 2 bytes: not shown]",
        "what a.txt says",
        "[resource file:///a.bin x/y, 1 bytes: not shown]",
        "[resource file:///b.txt (b, text/plain): not read]",
    ]


async def test_an_object_stands_in_for_text(settings: McpServerSettings, reach: Reach) -> None:
    outcome = await call(reach(settings), "structured")
    assert outcome.output == '{"sky":"clear","degrees":31.5}\n[image image/png, 3 bytes: not shown]'


async def test_long_text_is_cut(settings: McpServerSettings, reach: Reach) -> None:
    outcome = await call(reach(settings), "long")
    assert len(outcome.output.encode()) <= TOOL_OUTPUT_MAX_BYTES
    assert outcome.output.endswith("[cut: 100000 bytes in all]")


async def test_the_server_sees_the_idempotency_key(settings: McpServerSettings, reach: Reach) -> None:
    outcome = await call(reach(settings), "seen")
    assert json.loads(outcome.output)["key"] == KEY


async def test_a_tool_that_is_not_there(settings: McpServerSettings, reach: Reach) -> None:
    outcome = await call(reach(settings), "nothing")
    assert outcome.is_error
    assert "nothing" in outcome.output


async def test_a_question_to_the_user_is_an_error(settings: McpServerSettings, reach: Reach) -> None:
    servers = reach(settings)
    outcome = await call(servers, "ask")
    assert outcome.is_error
    assert "licitation" in outcome.output
    assert await call(servers, "add", a=1, b=2) == ToolOutcome(output="3")


async def test_calls_at_the_same_time_share_a_connection(
    settings: McpServerSettings, reach: Reach, tmp_path: Path
) -> None:
    servers = reach(settings)
    waiting = asyncio.create_task(call(servers, "wait", folder=str(tmp_path)))
    await until((tmp_path / "started").exists)
    first, second = await asyncio.gather(call(servers, "seen"), call(servers, "seen"))
    assert json.loads(first.output)["pid"] == json.loads(second.output)["pid"]
    (tmp_path / "release").touch()
    assert await waiting == ToolOutcome(output="released")


async def test_a_cancelled_call_ends_at_the_server_and_no_other_does(
    settings: McpServerSettings, reach: Reach, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    servers = reach(settings)
    folders = [tmp_path / "cancelled", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    cancelled, other = (asyncio.create_task(call(servers, "wait", folder=str(folder))) for folder in folders)
    await until(lambda: all((folder / "started").exists() for folder in folders))
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    if "json" not in request.node.name:  # a server of mcp 2.3 that answers in plain JSON does not notice
        await until((folders[0] / "cancelled").exists)
    (folders[1] / "release").touch()
    assert await other == ToolOutcome(output="released")


@pytest.mark.parametrize("kind", ["sse", "streamable-http"])
async def test_headers_and_token_are_sent_and_never_come_back(
    kind: str, serve: Callable[[str], ServerProcess], reach: Reach
) -> None:
    headers = [NamedValue(name="X-Team", value="shop"), NamedValue(name="X-Key", secret=TOKEN)]
    servers = reach(serve(kind).settings(headers=headers, bearer_token=TOKEN))
    outcome = await call(servers, "echo_headers", names=["x-team", "x-key", "authorization"])
    assert outcome.output == "shop, [secret], Bearer [secret]"


async def test_a_process_gets_its_own_environment_only(
    reach: Reach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DALANG_NAMESPACE", "shop")
    env = [NamedValue(name="REGION", value="bali"), NamedValue(name="API_KEY", secret=TOKEN)]
    seen = json.loads((await call(reach(stdio(env=env)), "environment")).output)
    assert seen["cwd"] == str(tmp_path)
    assert seen["env"]["REGION"] == "bali"
    assert seen["env"]["API_KEY"] == "[secret]"
    own = {"HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "REGION", "API_KEY", "LC_CTYPE"}
    assert set(seen["env"]) <= own


async def test_standard_error_is_logged_by_lines(reach: Reach, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    servers = reach(stdio(env=[NamedValue(name="API_KEY", secret=TOKEN)]))
    await call(servers, "complain", words="the key is a-secret-token\nand " + "x" * 5000)
    await servers.close()
    lines = [record.getMessage() for record in caplog.records if record.name == "dalang_worker.mcp.transports"]
    assert lines[0] == "MCP server everything: the key is [secret]"
    assert lines[1] == "MCP server everything: and " + "x" * 996


async def test_a_server_of_no_such_name(reach: Reach) -> None:
    with pytest.raises(McpUnavailableError, match="no MCP server of that name"):
        await reach(stdio()).call("other", "add", {}, KEY)


async def test_an_answer_that_is_not_mcp(reach: Reach) -> None:
    servers = reach(stdio("old_server.py", "strict"))
    outcome = await call(servers, "unreadable")
    assert outcome.is_error
    assert "cannot be read" in outcome.output
    assert await call(servers, "old") == ToolOutcome(output="old")

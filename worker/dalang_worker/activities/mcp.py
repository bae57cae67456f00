"""The activity `mcp`: one call of an MCP server's tool. Whatever goes wrong with it, the model is told."""

import asyncio
import logging
from typing import Any

from dalang_api import contract, output_schema
from dalang_api.contract import ToolCall, ToolOutcome
from pydantic_core import from_json
from temporalio import activity

from dalang_worker.activities.failures import interrupted
from dalang_worker.activities.heartbeat import beating
from dalang_worker.approvals import (
    CHANGED_DO_NOT_FIT,
    CalledTool,
    UnshowableError,
    approved_text,
    ask_again,
    unknown_outcome,
)
from dalang_worker.mcp import McpConnectionLostError, McpTool, McpUnavailableError
from dalang_worker.mcp.content import failed
from dalang_worker.mcp.servers import McpServers
from dalang_worker.metrics import TOOL_CALL_TIME, TOOL_CALLS, measured
from dalang_worker.runs import calling_run

log = logging.getLogger(__name__)


class McpActivity:
    """Calls MCP tools for every run of this worker."""

    def __init__(self, servers: McpServers) -> None:
        self._servers = servers

    @activity.defn(name=contract.MCP_ACTIVITY)
    async def mcp(self, call: ToolCall) -> ToolOutcome:
        """Call one tool and return what it said, or what went wrong with it."""
        run = calling_run(call, activity.info())
        key = contract.idempotency_key(run.uid, call)
        async with beating():
            try:
                with measured(TOOL_CALLS, TOOL_CALL_TIME, call.tool):
                    return await self._call(call, key)
            except asyncio.CancelledError as error:
                raise interrupted(error) from None
            except _FailedError as error:
                log.info("%s: tool %s of MCP server %s failed", run, call.tool, call.server)
                return error.outcome

    async def _call(self, call: ToolCall, key: str) -> ToolOutcome:
        try:
            if call.approved_digest is not None:
                tool = await self._tool(call)
                if (again := ask_again(CalledTool.mcp(call.tool, call.server or "", tool), call)) is not None:
                    if activity.info().attempt > 1:
                        raise _FailedError(unknown_outcome(call.tool))
                    return ToolOutcome(output="", ask_again=again)
                call = call.model_copy(update={"arguments": approved_text(call)})
                _check_changed(call, tool)
            arguments = _parse(call.arguments)
            outcome = await self._call_again_if_lost(call, arguments, key)
        except UnshowableError as error:
            raise _FailedError(_not_run(f"Not run: {error}.")) from None
        except (_ArgumentsError, McpUnavailableError) as error:
            raise _FailedError(_not_run(str(error))) from None
        except McpConnectionLostError as error:
            words = f"{error}. Whether {call.tool} ran is not known: assume neither that it did nor that it did not"
            raise _FailedError(failed(words if error.may_have_run else str(error))) from None
        if outcome.is_error:
            raise _FailedError(outcome)
        return outcome

    async def _tool(self, call: ToolCall) -> McpTool:
        """Return the tool as its server lists it now."""
        for tool in await self._servers.list_tools(call.server or ""):
            if tool.name == call.function:
                return tool
        if activity.info().attempt > 1:
            raise _FailedError(unknown_outcome(call.tool))
        raise _ArgumentsError(f"Not run: MCP server {call.server!r} has no tool {call.function!r} any more")

    async def _call_again_if_lost(self, call: ToolCall, arguments: dict[str, Any], key: str) -> ToolOutcome:
        """Call; once more, over a fresh connection, where the first was lost and the tool may be called twice."""
        server = call.server or ""
        try:
            return await self._servers.call(server, call.function, arguments, key)
        except McpConnectionLostError as error:
            if call.once and error.may_have_run:
                raise
            log.info("%s; trying once more", error)
        return await self._servers.call(server, call.function, arguments, key)


class _ArgumentsError(Exception):
    """The call cannot be made with these arguments, or not any more."""


class _FailedError(Exception):
    """A call that counts as failed, with what the model is told."""

    def __init__(self, outcome: ToolOutcome) -> None:
        super().__init__(outcome.output)
        self.outcome = outcome


def _not_run(words: str) -> ToolOutcome:
    # An attempt before this one may have been lost while it ran.
    return failed(words).model_copy(update={"not_run": activity.info().attempt == 1 or None})


def _check_changed(call: ToolCall, tool: McpTool) -> None:
    """Check arguments that an approver changed; of a schema that we do not check, the server does."""
    if call.approved_arguments is None:
        return
    try:
        output_schema.check(tool.schema)
        output_schema.fit(tool.schema, call.arguments)
    except output_schema.AnswerError as error:
        raise _ArgumentsError(f"{CHANGED_DO_NOT_FIT} {error.problem}.") from None
    except output_schema.OutputSchemaError:
        return


def _parse(arguments: str) -> dict[str, Any]:
    try:
        parsed = from_json(arguments.strip() or "{}", allow_inf_nan=False)
    except ValueError as error:
        raise _ArgumentsError(f"The arguments are not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise _ArgumentsError("The arguments are not a JSON object")
    return parsed

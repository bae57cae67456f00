"""The activity `mcp`: one call of an MCP server's tool. Whatever goes wrong with it, the model is told."""

import asyncio
import logging
from typing import Any

from dalang_api import contract
from dalang_api.contract import ToolCall, ToolOutcome
from pydantic_core import from_json
from temporalio import activity

from dalang_worker.activities.failures import interrupted
from dalang_worker.activities.heartbeat import beating
from dalang_worker.mcp import McpConnectionLostError, McpUnavailableError
from dalang_worker.mcp.content import failed
from dalang_worker.mcp.servers import McpServers
from dalang_worker.metrics import TOOL_CALL_TIME, TOOL_CALLS, measured

log = logging.getLogger(__name__)


class McpActivity:
    """Calls MCP tools for every run of this worker."""

    def __init__(self, servers: McpServers) -> None:
        self._servers = servers

    @activity.defn(name=contract.MCP_ACTIVITY)
    async def mcp(self, call: ToolCall) -> ToolOutcome:
        """Call one tool and return what it said, or what went wrong with it."""
        run = contract.parse_workflow_id(activity.info().workflow_id or "")
        key = contract.idempotency_key(run.suffix, call)
        async with beating():
            try:
                with measured(TOOL_CALLS, TOOL_CALL_TIME, call.tool):
                    return await self._call(call, key)
            except asyncio.CancelledError as error:
                raise interrupted(error) from None
            except _FailedError as error:
                log.info("tool %s of MCP server %s failed", call.tool, call.server)
                return error.outcome

    async def _call(self, call: ToolCall, key: str) -> ToolOutcome:
        try:
            arguments = _parse(call.arguments)
            outcome = await self._call_again_if_lost(call, arguments, key)
        except (_ArgumentsError, McpUnavailableError) as error:
            raise _FailedError(failed(str(error))) from None
        except McpConnectionLostError as error:
            words = f"{error}. Whether {call.tool} ran is not known: assume neither that it did nor that it did not"
            raise _FailedError(failed(words if error.may_have_run else str(error))) from None
        if outcome.is_error:
            raise _FailedError(outcome)
        return outcome

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
    """The arguments cannot be sent."""


class _FailedError(Exception):
    """A call that counts as failed, with what the model is told."""

    def __init__(self, outcome: ToolOutcome) -> None:
        super().__init__(outcome.output)
        self.outcome = outcome


def _parse(arguments: str) -> dict[str, Any]:
    try:
        parsed = from_json(arguments.strip() or "{}", allow_inf_nan=False)
    except ValueError as error:
        raise _ArgumentsError(f"The arguments are not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise _ArgumentsError("The arguments are not a JSON object")
    return parsed

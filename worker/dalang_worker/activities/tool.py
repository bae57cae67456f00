"""The activity `tool`: one tool call. Whatever the tool does, the model is told; only a lost worker makes it run again."""

import asyncio
import logging
from typing import Any

from dalang.tools import ArgumentsError, registered_tools
from dalang_api import contract
from dalang_api.contract import ToolCall, ToolOutcome
from dalang_api.v1alpha1.conditions import Reason
from pydantic_core import to_json
from temporalio import activity

from dalang_worker.activities.failures import interrupted, retryable
from dalang_worker.activities.heartbeat import beating
from dalang_worker.metrics import TOOL_CALL_TIME, TOOL_CALLS, measured
from dalang_worker.text import cut
from dalang_worker.tools.runner import ToolRaisedError, ToolRunner

log = logging.getLogger(__name__)


class ToolActivity:
    """Runs tools for every run of this worker."""

    def __init__(self, runner: ToolRunner) -> None:
        self._runner = runner

    @activity.defn(name=contract.TOOL_ACTIVITY)
    async def tool(self, call: ToolCall) -> ToolOutcome:
        """Run one tool and return what it said, or what went wrong with it."""
        function = registered_tools().get(call.function)
        if function is None:
            raise retryable(Reason.TOOL_NOT_FOUND, f"This worker registers no function {call.function}")
        try:
            arguments = function.parse(call.arguments)
        except ArgumentsError as error:
            return _failed(str(error))
        async with beating():
            try:
                with measured(TOOL_CALLS, TOOL_CALL_TIME, call.tool):
                    return ToolOutcome(output=render(await self._runner.run(function, arguments)))
            except asyncio.CancelledError as error:
                raise interrupted(error) from None
            except ToolRaisedError as error:
                log.info("tool %s raised %s", call.tool, error)
                return _failed(str(error))


def render(value: Any) -> str:
    """Return what a tool returned as the text the model reads: strings as they are, all else as JSON, within bounds."""
    if isinstance(value, bytes):
        value = _decode(value)
    elif not isinstance(value, str):
        value = _as_json(value)
    return cut(value, contract.TOOL_OUTPUT_MAX_BYTES)


def _as_json(value: Any) -> str:
    try:
        return to_json(value, fallback=repr, inf_nan_mode="constants").decode()
    except ValueError as error:  # it holds itself, or text that is no Unicode
        return f"[not JSON: {error}]\n{value!r}"


def _decode(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return "[not UTF-8: what cannot be read is shown as \N{REPLACEMENT CHARACTER}]\n" + value.decode(
            errors="replace"
        )


def _failed(message: str) -> ToolOutcome:
    return ToolOutcome(output=cut(message, contract.TOOL_OUTPUT_MAX_BYTES), is_error=True)

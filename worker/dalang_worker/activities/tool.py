"""The activity `tool`: one tool call. Whatever the tool does, the model is told.

Only a lost worker makes it run again, or its author's wish: `attempts`, or a `ToolError` that is retryable.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from dalang import Context, Handoff, ToolFunction, ToolResult
from dalang.tools import ArgumentsError, registered_tools
from dalang_api import contract
from dalang_api.contract import ApprovalNeeded, ToolCall, ToolOutcome
from dalang_api.json_values import check_json
from dalang_api.v1alpha1.conditions import Reason
from dalang_api.v1alpha1.schema import DNS_SUBDOMAIN
from pydantic_core import to_json, to_jsonable_python
from temporalio import activity

from dalang_worker.activities.failures import interrupted, retryable
from dalang_worker.activities.heartbeat import beating
from dalang_worker.approvals import (
    CHANGED_DO_NOT_FIT,
    CalledTool,
    UnshowableError,
    approved_text,
    ask_again,
    unknown_outcome,
)
from dalang_worker.metrics import TOOL_CALL_TIME, TOOL_CALLS, measured
from dalang_worker.runs import CallingRun, calling_run
from dalang_worker.text import cut
from dalang_worker.tools.runner import ToolRaisedError, ToolRunner

log = logging.getLogger(__name__)


MISSING_ATTEMPTS = 5
"""How often a tool is looked for that this worker does not have: some 15 s, in which a rollout may bring it back."""
_VARIABLE_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,63}")
_AGENT_NAME_MAX = 63


class ToolActivity:
    """Runs tools for every run of this worker."""

    def __init__(self, runner: ToolRunner) -> None:
        self._runner = runner

    @activity.defn(name=contract.TOOL_ACTIVITY)
    async def tool(self, call: ToolCall) -> ToolOutcome:
        """Run one tool and return what it said, or what went wrong with it.

        Temporal counts attempts, whatever ended them: one that another worker lost is one fewer for a tool that raises.
        """
        function = registered_tools().get(call.function)
        if function is None:
            problem = f"This worker registers no function {call.function}"
            # Where there is no further attempt the model is not to think that the outcome is unknown.
            if call.once or activity.info().attempt >= MISSING_ATTEMPTS:
                return _not_run(f"The tool did not run. {problem}.")
            raise retryable(Reason.TOOL_NOT_FOUND, problem)
        try:
            if (again := _ask_again(function, call)) is not None:
                if activity.info().attempt > 1:
                    return unknown_outcome(call.tool)
                return ToolOutcome(output="", ask_again=again)
            arguments = function.parse(call.arguments if call.approved_digest is None else approved_text(call))
        except UnshowableError as error:
            return _not_run(f"Not run: {error}.")
        except ArgumentsError as error:
            which = "" if call.approved_arguments is None else f"{CHANGED_DO_NOT_FIT} "
            return _not_run(f"{which}{error}", f"{which}{error.problem}")
        info = activity.info()
        run = calling_run(call, info)
        arguments = function.with_context(arguments, context_of(call, run))
        async with beating():
            try:
                with measured(TOOL_CALLS, TOOL_CALL_TIME, call.tool):
                    returned = await self._runner.run(function, arguments)
            except asyncio.CancelledError as error:
                raise interrupted(error) from None
            except ToolRaisedError as error:
                log.info("%s: tool %s raised %s (attempt %d)", run, call.tool, error, info.attempt)
                if may_try_again(function, call, error, info.attempt):
                    raise retryable(RETRYING, cut(str(error), contract.TOOL_OUTPUT_MAX_BYTES)) from None
                return _failed(str(error))
            return to_outcome(returned, call.context or {})


def _ask_again(function: ToolFunction, call: ToolCall) -> ApprovalNeeded | None:
    if call.approved_digest is None:
        return None
    return ask_again(CalledTool.function(call.tool, function), call)


RETRYING = "ToolRetrying"
"""Type of the failure of a tool that raised and is to be run again."""


def context_of(call: ToolCall, run: CallingRun) -> Context:
    """Return what the tool is told of its run."""
    return Context(
        variables=call.context or {},
        idempotency_key=contract.idempotency_key(run.uid, call),
        run=run.name,
        namespace=run.namespace,
        agent=call.agent or "",
        session=run.session,
    )


def may_try_again(function: ToolFunction, call: ToolCall, error: ToolRaisedError, attempt: int) -> bool:
    """Return whether a tool that raised in this attempt, counted from 1, is to be run again."""
    if call.once or function.once:
        return False
    return attempt < (function.retryable_attempts if error.is_retryable else function.attempts)


def to_outcome(returned: Any, context: dict[str, Any]) -> ToolOutcome:
    """Return what the model and the run are told of what a tool returned.

    A value that cannot be used is an error that says that the tool did run, so that the model does not simply call it
    again.

    Args:
        returned: What the tool returned.
        context: The context variables that its call carried; what it sets is added to them.
    """
    result = returned if isinstance(returned, ToolResult) else _wrap(returned)
    try:
        if isinstance(result.output, Iterator | AsyncIterator):
            raise ValueError(f"its output is a {type(result.output).__name__}, which yields; return a list instead")
        updates = None if result.context is None else _context_updates(result.context, context)
        agent = None if result.handoff is None else _agent_of(result.handoff)
        has_no_words = result.output is None and agent is not None
        output = f"Transferred to {agent}." if has_no_words else render(result.output)
    except Exception as error:  # noqa: BLE001  # also what a value's own __repr__ or serializer raises
        return _failed(f"The tool ran, but what it returned cannot be used: {_words(error)}")
    return ToolOutcome(output=output, context=updates or None, handoff=agent)


def _wrap(returned: Any) -> ToolResult:
    return ToolResult(None, handoff=returned) if isinstance(returned, Handoff) else ToolResult(returned)


def _context_updates(updates: Any, context: dict[str, Any]) -> dict[str, Any]:
    """Return the context variables to set, as JSON values.

    Raises:
        ValueError: They are no variables, or too many or too large together with those there are.
    """
    if not isinstance(updates, Mapping):
        raise ValueError(f"context is a {type(updates).__name__}; it has to be a dict of variables")
    for name in updates:
        if not isinstance(name, str) or not _VARIABLE_NAME.fullmatch(name):
            raise ValueError(f"context variable {str(name)[:80]!r}: a name is letters, digits and _, at most 64 in all")
    values: dict[str, Any] = to_jsonable_python(dict(updates))
    try:
        check_json(values)
    except ValueError as error:
        raise ValueError(f"context: {error}") from None
    if problem := contract.context_problem({**context, **values}):
        raise ValueError(f"the context variables: {problem}")
    return values


def _agent_of(handoff: Any) -> str:
    agent = handoff.agent if isinstance(handoff, Handoff) else handoff
    if not isinstance(agent, str) or not 0 < len(agent) <= _AGENT_NAME_MAX or not re.fullmatch(DNS_SUBDOMAIN, agent):
        raise ValueError(f"handoff {cut(repr(agent), 100)} is no agent's name; return Handoff(name)")
    return agent


def _words(error: Exception) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001  # an exception's own __str__ may fail
        return type(error).__name__


def render(value: Any) -> str:
    """Return what a tool returned as the text the model reads: strings as they are, all else as JSON, within bounds."""
    if isinstance(value, bytes):
        value = _decode(value)
    elif not isinstance(value, str):
        value = _as_json(value)
    return cut(value, contract.TOOL_OUTPUT_MAX_BYTES)


def _as_json(value: Any) -> str:
    try:
        return to_json(value, fallback=_shown, inf_nan_mode="constants").decode()
    except ValueError as error:  # it holds itself, or text that is no Unicode
        return f"[not JSON: {error}]\n{value!r}"


def _shown(value: Any) -> Any:
    # A Context's variables are a mapping that is no dict.
    return dict(value) if isinstance(value, Mapping) else repr(value)


def _decode(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return "[not UTF-8: what cannot be read is shown as \N{REPLACEMENT CHARACTER}]\n" + value.decode(
            errors="replace"
        )


def _not_run(message: str, because: str | None = None) -> ToolOutcome:
    """Return that the tool did not run; `because` is why, for people, where the message holds more than that."""
    if activity.info().attempt > 1:  # one before may have been lost while it ran
        return _failed(message)
    why = because and cut(because, contract.TOOL_OUTPUT_MAX_BYTES)
    return _failed(message).model_copy(update={"not_run": True, "not_run_because": why})


def _failed(message: str) -> ToolOutcome:
    return ToolOutcome(output=cut(message, contract.TOOL_OUTPUT_MAX_BYTES), is_error=True)

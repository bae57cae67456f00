"""Whether a human has to approve a call, or an answer, and what exactly is approved. Pure but for the clock of `cel`.

Three may ask: the pool (a floor, by patterns of names), the tool's author (`@tool(approval=…)`) and the Agent (on a tool, or
its output). So none can undo what another wants:

- asked is when **any** of them asks; an expression that fails means that it asks;
- the questions of all that ask are put, the pool's first, then the author's, then the Agent's; without any, one is made;
- `onTimeout` is Fail if any that asks says so, Approve only if all that ask say so, else Reject;
- the timeout is the shortest that is given, but where its end would approve the call the longest: for ever where one that
  asks gives none. So each has at least the time to object that it asks for.

Who approves is also shown what the call would run: the tool's name and the Agent's question are whatever the Agent's author
likes.

What is approved is a digest of the tool (its name as the model sees it, and what is behind it), of the arguments as canonical
JSON, and of their schema. The activity that runs the call makes the digest again: the wrong one is asked about again.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from dalang import ToolFunction
from dalang_api import cel
from dalang_api.canonical import NotCanonicalError, canonical, digest
from dalang_api.contract import (
    AgentSnapshot,
    ApprovalFloor,
    ApprovalNeeded,
    ApprovalPolicy,
    ApprovalTarget,
    ToolCall,
    ToolOutcome,
)
from pydantic_core import from_json

from dalang_worker.mcp import McpTool

log = logging.getLogger(__name__)

ARGUMENTS_MAX_BYTES = 64 * 1024
"""The most, as canonical JSON, that a human can be asked about: what an AgentApproval holds. More is refused, never cut."""
QUESTION_MAX_CHARS = 512
"""The longest question that an AgentApproval holds."""
TARGET_MAX_CHARS = 128
"""The longest name of what is behind a tool that an AgentApproval holds."""

OnTimeout = Literal["Reject", "Approve", "Fail"]

_TARGET_KINDS: dict[str, Literal["Function", "MCP", "Agent", "Handoff"]] = {
    "function": "Function",
    "mcp": "MCP",
    "agent": "Agent",
    "handoff": "Handoff",
}
"""Kinds of tools in expressions, and in an AgentApproval."""

CHANGED_DO_NOT_FIT = "Not run: a human approved the call with other arguments, and those do not fit the tool."
"""What the model is told of an approver's arguments that do not fit, before what is wrong with them."""


def unknown_outcome(tool: str) -> ToolOutcome:
    """Return what the model is told where an approved call is to be tried again and the tool is another by now.

    The attempt before may have run it as it was approved; to ask again would say that it has not.
    """
    words = (
        f"The outcome of {tool} is unknown: its worker was lost after the call was approved, and the tool has changed since. "
        "It may have done its work or not, and it is not run again by itself. Find out before you call it again."
    )
    return ToolOutcome(output=words, is_error=True)


class UnshowableError(Exception):
    """A human would have to approve it, and it cannot be shown in full. The text is for the model, the end of a sentence."""


@dataclass(frozen=True)
class CalledTool:
    """What a call would run, as expressions see it and as the digest covers it."""

    name: str
    """As the model sees it."""
    kind: Literal["function", "mcp", "agent", "handoff"]
    behind: str
    """The function, the MCP server's tool, or the agent."""
    schema: dict[str, Any]
    server: str = ""
    read_only: bool = False
    destructive: bool = True
    idempotent: bool = False
    of_author: ApprovalPolicy | None = None
    """What its author asks for."""

    @classmethod
    def function(cls, name: str, function: ToolFunction) -> "CalledTool":
        """Return what is known of a Python function: nothing that would spare a question."""
        approval = function.approval
        policy = (
            approval
            if approval is None
            else ApprovalPolicy(
                when=approval.when,
                question=approval.question,
                timeout_seconds=approval.timeout_seconds,
                on_timeout=approval.on_timeout,
            )
        )
        return cls(name, "function", function.name, function.schema, of_author=policy)

    @classmethod
    def mcp(cls, name: str, server: str, tool: McpTool) -> "CalledTool":
        """Return what is known of an MCP server's tool; its hints are claims of the server's."""
        return cls(name, "mcp", tool.name, tool.schema, server, tool.read_only, tool.destructive, tool.idempotent)

    def variable(self) -> dict[str, Any]:
        """Return the variable `tool` of expressions."""
        return {
            "name": self.name,
            "kind": self.kind,
            "server": self.server,
            "readOnly": self.read_only,
            "destructive": self.destructive,
            "idempotent": self.idempotent,
        }

    def target(self) -> ApprovalTarget:
        """Return what a call would run, as a human is shown it.

        Raises:
            UnshowableError: Its name, which an MCP server chooses freely, cannot be shown as it is.
        """
        if not (0 < len(self.behind) <= TARGET_MAX_CHARS and self.behind.isprintable()):
            words = f"what is behind {self.name} has no name of 1 to {TARGET_MAX_CHARS} printable characters"
            raise UnshowableError(f"a human has to approve it, and {words}")
        return ApprovalTarget(kind=_TARGET_KINDS[self.kind], name=self.behind, server=self.server or None)

    def digest(self, arguments: str) -> str:
        """Return the digest of a call with these arguments, which are canonical JSON."""
        place = {"name": self.name, "kind": self.kind, "server": self.server, "behind": self.behind}
        return digest(place, arguments, self.schema)


@dataclass(frozen=True)
class Circumstances:
    """What else is known when a call or an answer is judged."""

    agent: str
    run: str
    namespace: str
    context: dict[str, Any] | None = None
    """The context variables; None: not known here, so that an expression that needs them asks."""
    floors: Sequence[ApprovalFloor] = field(default=())
    """What the pool asks for."""

    def variables(self) -> dict[str, Any]:
        """Return the variables of expressions that do not depend on the call."""
        known: dict[str, Any] = {
            "agent": {"name": self.agent},
            "run": {"name": self.run, "namespace": self.namespace},
        }
        return known if self.context is None else {**known, "context": self.context}


def for_call(
    tool: CalledTool,
    arguments: str,
    circumstances: Circumstances,
    of_agent: Iterable[ApprovalPolicy] = (),
    read_as: Callable[[], list[dict[str, Any]] | None] = list,
) -> ApprovalNeeded | None:
    """Return what a human has to approve before a call, or None where nobody asks.

    Asked is also where a policy would ask about the arguments as the tool itself reads them: a model that writes `"true"`
    for `true`, which the tool takes and `args.force == true` does not, must not get past it.

    Args:
        tool: What would be run.
        arguments: As the model wrote them, a JSON object; empty text means none. Defaults are not filled in.
        circumstances: What else expressions see.
        of_agent: The Agent's policies for this tool.
        read_as: Returns the other ways in which the tool may read the arguments; None where that is not known, and then
            all are asked that look at them.

    Raises:
        UnshowableError: A human would have to approve it, and cannot be shown what.
    """
    floors = [floor for floor in circumstances.floors if _covers(floor, tool)]
    policies = [*floors, *([tool.of_author] if tool.of_author else []), *of_agent]
    if not policies:
        return None
    parsed = parse_arguments(arguments)
    variables = {**circumstances.variables(), "args": parsed, "tool": tool.variable()}
    readings = read_as()
    asking = [
        policy
        for policy in policies
        if readings is None
        or any(_asks(policy, {**variables, "args": reading}, tool.name) for reading in [parsed, *readings])
    ]
    if not asking:
        return None
    shown = _shown(parsed, f"the arguments of {tool.name}")
    target = tool.target()
    made = f"Agent {circumstances.agent} wants to call {_named(tool.name, target)}. Approve?"
    return _combined(asking, made, shown, tool.digest(shown), target)


def for_answer(agent: AgentSnapshot, answer: Any, circumstances: Circumstances) -> ApprovalNeeded | None:
    """Return what a human has to approve before an answer counts, or None where the agent does not ask.

    Args:
        agent: Who answers.
        answer: The answer as an object where the agent has a schema, else its text.
        circumstances: What else expressions see.

    Raises:
        UnshowableError: A human would have to approve it, and cannot be shown what.
    """
    policy = agent.output_approval
    if policy is None or not _asks(policy, {**circumstances.variables(), "output": answer}, "the answer"):
        return None
    shown = _shown(answer, "the answer")
    place = {"kind": "output", "agent": agent.name}
    return _combined(
        [policy], f"Agent {agent.name} wants to answer. Approve?", shown, digest(place, shown, agent.output_schema)
    )


def ask_again(tool: CalledTool, call: ToolCall) -> ApprovalNeeded | None:
    """Return what has to be asked anew before an approved call is run; None where it is what was approved.

    It has the new digest, and a question of its own that waits for ever: the policies are not known here, and the workflow keeps
    question, timeout and `onTimeout` of those it was asked by.

    Raises:
        UnshowableError: The arguments cannot have been approved.
    """
    covered = call.arguments if call.approved_arguments is None else call.approved_arguments
    shown = _shown(parse_arguments(covered), f"the arguments of {call.tool}")
    now = tool.digest(shown)
    if now == call.approved_digest:
        return None
    log.info("tool %s has changed since its call was approved", call.tool)
    target = tool.target()
    called = _named(call.tool, target)
    question = f"Agent {call.agent or ''} wants to call {called}, which has changed since it was approved. Approve?"
    return ApprovalNeeded(question=question, arguments=shown, digest=now, target=target)


def approved_text(call: ToolCall) -> str:
    """Return the arguments of an approved call as they were shown, so that not a byte else is run.

    Raises:
        UnshowableError: They are none.
    """
    return _shown(parse_arguments(call.arguments), f"the arguments of {call.tool}")


def parse_arguments(arguments: str) -> dict[str, Any]:
    """Return the arguments as JSON values.

    Raises:
        UnshowableError: They are no JSON object.
    """
    try:
        parsed = from_json(arguments.strip() or "{}", allow_inf_nan=False)
    except ValueError as error:
        raise UnshowableError(f"the arguments are not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise UnshowableError("the arguments are not a JSON object")
    return parsed


def _covers(floor: ApprovalFloor, tool: CalledTool) -> bool:
    """Return whether a floor is for this tool: by the name the model sees, or of what is behind it."""
    return any(fnmatchcase(name, pattern) for pattern in floor.tools for name in (tool.name, tool.behind))


def _asks(policy: ApprovalPolicy, variables: dict[str, Any], what: str) -> bool:
    if policy.when is None:
        return True
    try:
        return cel.evaluate(policy.when, variables)
    except cel.CelError as error:
        log.info("a human is asked about %s, since %r cannot be evaluated: %s", what, policy.when, error)
        return True


def _shown(value: Any, what: str) -> str:
    try:
        text = canonical(value)
    except NotCanonicalError as error:
        raise UnshowableError(f"a human has to approve it, and {what} cannot be shown exactly: {error}") from None
    if len(text.encode()) > ARGUMENTS_MAX_BYTES:
        limit = ARGUMENTS_MAX_BYTES
        raise UnshowableError(f"a human has to approve it, and {what} takes more than {limit} bytes")
    return text


def _named(tool: str, target: ApprovalTarget) -> str:
    """Return a tool's name, and what is behind it where that has another."""
    return tool if target.name == tool else f"{tool} ({target.words})"


def _combined(
    asking: list[ApprovalPolicy], made: str, arguments: str, of: str, target: ApprovalTarget | None = None
) -> ApprovalNeeded:
    on_timeout = _on_timeout(asking)
    return ApprovalNeeded(
        question=_question(asking) or made,
        arguments=arguments,
        digest=of,
        target=target,
        timeout_seconds=_timeout(asking, on_timeout),
        on_timeout=on_timeout,
    )


def _question(asking: list[ApprovalPolicy]) -> str:
    """Return the questions of all that ask, each once; what does not fit is cut at the end, where the Agent's is."""
    text = "; ".join(dict.fromkeys(policy.question for policy in asking if policy.question))
    return text if len(text) <= QUESTION_MAX_CHARS else f"{text[: QUESTION_MAX_CHARS - 1]}…"


def _on_timeout(asking: list[ApprovalPolicy]) -> OnTimeout:
    said = {policy.on_timeout for policy in asking}
    if "Fail" in said:
        return "Fail"
    return "Approve" if said == {"Approve"} else "Reject"


def _timeout(asking: list[ApprovalPolicy], on_timeout: OnTimeout) -> float | None:
    """Return how long to wait: what ends in a yes, nobody may hurry."""
    timeouts = [policy.timeout_seconds for policy in asking if policy.timeout_seconds is not None]
    if on_timeout != "Approve":
        return min(timeouts, default=None)
    return max(timeouts) if len(timeouts) == len(asking) else None

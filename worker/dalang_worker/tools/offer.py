"""What an agent offers its model in one turn, by one name each: functions, agents, hand-offs, and tools of MCP servers.

An offer has two sides: how the model is told of it, and the verdict on a call of it. The workflow acts on the verdict.
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dalang.tools import ArgumentsError, ToolFunction, describe_misfit
from dalang_api import contract, output_schema
from dalang_api.contract import AgentCall, AgentSnapshot, ApprovalPolicy, CallVerdict, HandoffBinding, Snapshot
from dalang_api.v1alpha1.conditions import Reason
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json, to_jsonable_python

from dalang_worker import approvals
from dalang_worker.approvals import CalledTool, Circumstances, UnshowableError
from dalang_worker.mcp import McpTool, McpUnavailableError
from dalang_worker.providers import ToolSpec
from dalang_worker.text import cut

log = logging.getLogger(__name__)

ARGUMENTS_ERROR_MAX_BYTES = 2048
NAME_MAX_CHARS = 64
"""The most that providers take as a tool's name."""


class NotHereError(Exception):
    """This worker does not have a function or server the agent names; the next build of its pool may."""

    def __init__(self, reason: Reason, words: str) -> None:
        super().__init__(
            f"{words}. A run keeps its agent as it was: if the Agent was mended since, create another run"[:900]
        )
        self.reason = reason


class Offer(Protocol):
    """One tool of a turn."""

    @property
    def spec(self) -> ToolSpec:
        """How the model is told of it."""
        ...

    @property
    def called(self) -> CalledTool:
        """What a call of it would run."""
        ...

    @property
    def policies(self) -> tuple[ApprovalPolicy, ...]:
        """What the Agent says about who approves calls of it."""
        ...

    def judge(self, call_id: str, arguments: str) -> CallVerdict:
        """Return whether a call can be run, and if not, what the model is told."""
        ...

    def read_as(self, arguments: str) -> list[dict[str, Any]] | None:
        """Return how else than as JSON says the tool may read arguments; None where that is not known."""
        ...


class Servers(Protocol):
    """The pool's MCP servers."""

    def has(self, server: str) -> bool:
        """Return whether the pool, as this worker knows it, has a server of that name."""
        ...

    async def list_tools(self, server: str) -> Sequence[McpTool]:
        """Return a server's tools; raise `McpUnavailableError` where nobody knows them."""
        ...


@dataclass(frozen=True)
class Offers:
    """The tools of a turn, by the name the model sees, and what is missing among them."""

    tools: dict[str, Offer] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """For the model and the run's status: which tools are not there, and why."""
    circumstances: Circumstances = field(default_factory=lambda: Circumstances("", "", ""))
    """What policies of approval see besides the call."""

    def judge(self, call_id: str, tool: str, arguments: str) -> CallVerdict:
        """Return the verdict on a call as the model asked for it."""
        offer = self.tools.get(tool)
        if offer is None:
            known = ", ".join(sorted(self.tools)) or "none"
            return CallVerdict(call_id=call_id, error=f"There is no tool {tool!r}. The tools are: {known}.")
        if len(arguments.encode()) > contract.CALL_ARGUMENTS_MAX_BYTES:
            limit = contract.CALL_ARGUMENTS_MAX_BYTES
            return CallVerdict(call_id=call_id, error=f"Not run: the arguments are longer than {limit} bytes.")
        try:
            verdict = offer.judge(call_id, arguments)
        except Exception as error:  # noqa: BLE001  # a tool author's own validator; the call is paid for, and must not be made again
            log.info("the arguments of tool %s could not be read: %s", tool, type(error).__name__)
            words = f"The arguments of {tool} could not be read: {type(error).__name__}: {error}"
            return CallVerdict(call_id=call_id, error=cut(words, ARGUMENTS_ERROR_MAX_BYTES))
        if verdict.error is not None:
            return verdict
        try:
            needed = approvals.for_call(
                offer.called,
                "" if verdict.handoff else arguments,
                self.circumstances,
                offer.policies,
                lambda: offer.read_as(arguments),
            )
        except UnshowableError as error:
            return CallVerdict(call_id=call_id, error=cut(f"Not run: {error}.", ARGUMENTS_ERROR_MAX_BYTES))
        return verdict if needed is None else verdict.model_copy(update={"approval": needed})


async def make_offers(
    agent: AgentSnapshot,
    snapshot: Snapshot,
    functions: dict[str, ToolFunction],
    servers: Servers,
    circumstances: Circumstances,
) -> Offers:
    """Return what an agent offers now.

    Raises:
        NotHereError: The worker does not have a function or a server of the agent's.
    """
    tools: dict[str, Offer] = {}
    for binding in agent.tools:
        policies = (binding.approval,) if binding.approval is not None else ()
        if binding.function is not None:
            tools[binding.name] = FunctionOffer(binding.name, _function(binding.function, functions), policies)
        elif binding.agent is not None:
            tools[binding.name] = AgentOffer(binding.name, snapshot.agent(binding.agent), policies)
    for handoff in agent.handoffs or ():
        description = handoff.description or snapshot.agent(handoff.agent).description
        tools[handoff.tool] = HandoffOffer(handoff.model_copy(update={"description": description}))
    listed, missing = await _list_servers(agent, servers)
    names = Counter(_fitting(tool.name) for _, tool in listed)
    for server, tool in listed:
        name = _fitting(tool.name)
        if name in tools or names[name] > 1:
            name = _fitting(f"{server}__{tool.name}")
        if name in tools:
            missing.append(f"Tool {tool.name} of MCP server {server} has no name left: {name} is taken")
            continue
        tools[name] = McpOffer(name, server, tool, _policies(agent, server, tool.name))
    return Offers(tools, _with_choice(agent, tools, missing), circumstances)


def _policies(agent: AgentSnapshot, server: str, tool: str) -> tuple[ApprovalPolicy, ...]:
    """Return what the Agent says about a server's tool: all of it, where more than one binding has the tool."""
    bindings = (
        (binding.mcp, binding.approval)
        for binding in agent.tools
        if binding.mcp is not None and binding.mcp.server == server
    )
    return tuple(
        approval for mcp, approval in bindings if approval is not None and (mcp.tools is None or tool in mcp.tools)
    )


def _with_choice(agent: AgentSnapshot, tools: dict[str, Offer], missing: list[str]) -> list[str]:
    choice = agent.tool_choice
    if choice is None or choice.tool is None or choice.tool in tools:
        return missing
    known = ", ".join(sorted(tools)) or "none"
    return [*missing, f"toolChoice names {choice.tool}, which is none of the agent's tools: {known}"[:700]]


def _function(name: str, functions: dict[str, ToolFunction]) -> ToolFunction:
    if name in functions:
        return functions[name]
    have = ", ".join(sorted(functions)) or "none"
    raise NotHereError(
        Reason.TOOL_NOT_FOUND, f"The pool's modules register no function {name} (they register: {have})"[:700]
    )


async def _list_servers(agent: AgentSnapshot, servers: Servers) -> tuple[list[tuple[str, McpTool]], list[str]]:
    """Return the tools of the agent's MCP servers; one that is away is noted and stops nothing."""
    listed: list[tuple[str, McpTool]] = []
    missing: list[str] = []
    for mcp in (binding.mcp for binding in agent.tools if binding.mcp is not None):
        if not servers.has(mcp.server):
            raise NotHereError(
                Reason.SERVER_NOT_FOUND, f"This worker's pool has no MCP server {mcp.server}, or not yet"
            )
        try:
            tools = await servers.list_tools(mcp.server)
        except McpUnavailableError as error:
            log.warning("agent %s does without a server's tools: %s", agent.name, error)
            missing.append(f"The tools of MCP server {mcp.server} cannot be used now: {error.words}")
            continue
        listed += [(mcp.server, tool) for tool in tools if mcp.tools is None or tool.name in mcp.tools]
        lacking = sorted(set(mcp.tools or ()) - {tool.name for tool in tools})
        if lacking:
            have = ", ".join(sorted(tool.name for tool in tools)) or "none"
            missing.append(f"MCP server {mcp.server} has no tool {', '.join(lacking)} (it has: {have})"[:700])
    # A server may be named twice, with other tools each time, or the same.
    return list({(server, tool.name): (server, tool) for server, tool in listed}.values()), missing


def _fitting(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:NAME_MAX_CHARS]


# ── The kinds of offers ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class FunctionOffer:
    """A Python function."""

    name: str
    function: ToolFunction
    policies: tuple[ApprovalPolicy, ...] = ()

    @property
    def called(self) -> CalledTool:
        return CalledTool.function(self.name, self.function)

    @property
    def spec(self) -> ToolSpec:
        return ToolSpec(self.name, self.function.description, self.function.schema)

    def judge(self, call_id: str, arguments: str) -> CallVerdict:
        try:
            self.function.parse(arguments)
        except ArgumentsError as error:
            return CallVerdict(call_id=call_id, error=cut(str(error), ARGUMENTS_ERROR_MAX_BYTES))
        return CallVerdict(
            call_id=call_id,
            function=self.function.name,
            once=self.function.once or None,
            reads_context=self.function.reads_context or None,
        )

    def read_as(self, arguments: str) -> list[dict[str, Any]] | None:
        try:
            return [to_jsonable_python(self.function.parse(arguments))]
        except ValueError:  # a type of the author's own
            return None


@dataclass(frozen=True)
class McpOffer:
    """A tool of an MCP server. The server checks the arguments against its schema itself."""

    name: str
    server: str
    tool: McpTool
    policies: tuple[ApprovalPolicy, ...] = ()

    @property
    def called(self) -> CalledTool:
        return CalledTool.mcp(self.name, self.server, self.tool)

    @property
    def spec(self) -> ToolSpec:
        return ToolSpec(self.name, self.tool.description, self.tool.schema)

    def judge(self, call_id: str, arguments: str) -> CallVerdict:
        try:
            parsed = from_json(arguments.strip() or "{}", allow_inf_nan=False)
        except ValueError as error:
            return CallVerdict(call_id=call_id, error=f"The arguments of {self.name} are not JSON: {error}")
        if not isinstance(parsed, dict):
            return CallVerdict(call_id=call_id, error=f"The arguments of {self.name} are not a JSON object.")
        return CallVerdict(call_id=call_id, function=self.tool.name, server=self.server, once=self.tool.once or None)

    def read_as(self, arguments: str) -> list[dict[str, Any]] | None:
        """Nobody knows how a server reads what does not fit its schema."""
        try:
            output_schema.check(self.tool.schema)
            output_schema.fit(self.tool.schema, arguments.strip() or "{}")
        except (output_schema.OutputSchemaError, output_schema.AnswerError):
            return None
        return []


class _Task(BaseModel):
    model_config = ConfigDict(extra="forbid")

    message: str = Field(
        min_length=1, description="What the agent is to do, with all it has to know: it sees nothing else."
    )


@dataclass(frozen=True)
class AgentOffer:
    """Another agent, called as a tool."""

    name: str
    agent: AgentSnapshot
    policies: tuple[ApprovalPolicy, ...] = ()

    @property
    def called(self) -> CalledTool:
        return CalledTool(self.name, "agent", self.agent.name, self.spec.schema)

    @property
    def spec(self) -> ToolSpec:
        return ToolSpec(self.name, self.agent.description or f"Ask the agent {self.agent.name}.", _schema(_Task))

    def judge(self, call_id: str, arguments: str) -> CallVerdict:
        try:
            task = _Task.model_validate_json(arguments.strip() or "{}")
        except ValidationError as error:
            words = f"{describe_misfit(self.name, error)} It takes one string, message."
            return CallVerdict(call_id=call_id, error=cut(words, ARGUMENTS_ERROR_MAX_BYTES))
        return CallVerdict(call_id=call_id, agent=AgentCall(agent=self.agent.name, message=task.message))

    def read_as(self, arguments: str) -> list[dict[str, Any]] | None:
        return []


@dataclass(frozen=True)
class HandoffOffer:
    """A hand-off. Models send arguments all the same at times; they mean nothing."""

    handoff: HandoffBinding
    policies: tuple[ApprovalPolicy, ...] = ()

    @property
    def called(self) -> CalledTool:
        return CalledTool(self.handoff.tool, "handoff", self.handoff.agent, self.spec.schema)

    @property
    def spec(self) -> ToolSpec:
        words = f"Hand the conversation over to {self.handoff.agent}, who goes on with it."
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
        return ToolSpec(self.handoff.tool, f"{words} {self.handoff.description or ''}".strip(), schema)

    def judge(self, call_id: str, arguments: str) -> CallVerdict:
        return CallVerdict(call_id=call_id, handoff=self.handoff.agent)

    def read_as(self, arguments: str) -> list[dict[str, Any]] | None:
        return []


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    schema.pop("title", None)
    return schema

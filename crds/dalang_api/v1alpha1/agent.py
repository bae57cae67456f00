"""Agent: a definition. It names a model, a pool and tools; it holds no credential and no code."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from dalang_api.v1alpha1.agentmodel import ModelParameters
from dalang_api.v1alpha1.agentpool import ServerName
from dalang_api.v1alpha1.schema import (
    ANY_OBJECT,
    LIST_ATOMIC,
    LIST_SET,
    MAP_ATOMIC,
    ApiModel,
    ApprovalPolicy,
    Conditions,
    Decimal,
    Duration,
    LocalReference,
    Resource,
    list_map,
    pending_conditions,
    rule,
    rules,
)

ToolName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z_][a-zA-Z0-9_-]*$")]
FunctionName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[a-zA-Z_][a-zA-Z0-9_.]*$")]


class FunctionTool(ApiModel):
    """A Python function that a module of the pool registers with `@dalang.tool`."""

    name: FunctionName | None = None
    """Name of the registered function. Default: the tool's name."""


class McpTools(ApiModel):
    """Tools of an MCP server of the pool."""

    server: ServerName
    """Name of the server in the pool's `mcpServers`."""
    tools: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=128)]],
            Field(min_length=1, max_length=64, json_schema_extra=LIST_SET),
        ]
        | None
    ) = None
    """The server's tools the model may call. Default: all it has."""


class AgentTool(ApiModel):
    """Something the model may call: exactly one of `function`, `mcp` and `agentRef`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "[has(self.function), has(self.mcp), has(self.agentRef)].filter(x, x).size() == 1",
                "set exactly one of function, mcp and agentRef",
            ),
        )
    )

    name: ToolName
    """Name of the tool, as the model sees it. The tools of an MCP server keep the server's names for them; where one is
    taken already the model sees `<server>__<tool>`."""
    function: FunctionTool | None = None
    """A Python function. `function: {}` is the function that has the tool's name."""
    mcp: McpTools | None = None
    """Tools of an MCP server."""
    approval: ApprovalPolicy | None = None
    """A human has to approve calls of this tool. The pool and the tool's author may ask for approval as well; asked is when
    any of them asks."""
    agent_ref: LocalReference | None = None
    """Another agent, called as a tool: it gets one message and returns its answer. Its turns and tokens are the run's."""


class Handoff(ApiModel):
    """Another agent to whom this one may hand the conversation over."""

    agent_ref: LocalReference
    """The agent. The model sees a tool `transfer_to_<agent>`."""
    description: Annotated[str, Field(max_length=1024)] | None = None
    """When to hand over. Default: the other agent's own description."""


class ConfigMapKeyReference(ApiModel):
    """One key of a ConfigMap in the same namespace."""

    model_config = ConfigDict(json_schema_extra=MAP_ATOMIC)

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the ConfigMap."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """Key whose value is used."""


class InstructionFunction(ApiModel):
    """A Python function that a module of the pool registers with `@dalang.instructions`."""

    name: FunctionName
    """Name of the registered function."""


class InstructionsSource(ApiModel):
    """Where the instructions come from: exactly one of `configMapKeyRef` and `function`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("has(self.configMapKeyRef) != has(self.function)", "set exactly one of configMapKeyRef and function"),
        )
    )

    config_map_key_ref: ConfigMapKeyReference | None = None
    """A key of a ConfigMap, read when a run starts. Its text is a template, as `instructions` is."""
    function: InstructionFunction | None = None
    """A Python function of the pool. What it returns is used as it is."""


class ToolChoice(ApiModel):
    """Whether the model calls tools."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("has(self.tool) == (self.mode == 'Tool')", "mode: Tool needs tool, and no other mode takes it"),
        )
    )

    mode: Literal["Auto", "None", "Required", "Tool"]
    """Auto: the model decides. None: it calls none. Required: it begins with some tool. Tool: it begins with the one in
    `tool`. Required and Tool hold until a tool was called since the last message of the user; else no answer could come."""
    tool: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """The tool of mode Tool, by the name the model sees."""


class Retrieval(ApiModel):
    """Documents looked up for the user's last message and added to the instructions."""

    retriever: ServerName
    """Name of the retriever in the pool's `retrievers`. One that fails is noted in the run's condition `Retrieved`, and the
    run goes on without."""


class AgentOutput(ApiModel):
    """What the final answer has to be."""

    model_config = ConfigDict(
        json_schema_extra=rules(rule("has(self.schema) || has(self.approval)", "set schema, approval or both")),
    )

    schema_: Annotated[dict[str, Any] | None, Field(alias="schema", json_schema_extra=ANY_OBJECT)] = None
    """JSON schema (2020-12) of the answer; its `type` is object. An answer that does not fit is sent back to the model, each
    time a turn."""
    approval: ApprovalPolicy | None = None
    """A human has to approve the answer before it counts. Rejected, the agent is told why and answers again."""


class Retry(ApiModel):
    """How model calls are tried again that fail by no fault of the request: refused, 408, 409, 429, 5xx."""

    timeout: Duration | None = None
    """The longest one attempt may take. Default: 10m."""
    maximum_attempts: Annotated[int, Field(ge=0, le=1000, json_schema_extra={"format": "int32"})] | None = None
    """How often one call is tried. 0: until the run's timeout. Default: 0, and 3 where another model of
    `fallbackModelRefs` comes next."""
    initial_interval: Duration | None = None
    """The wait before the second attempt; it doubles each time. An endpoint's Retry-After wins. Default: 1s."""
    maximum_interval: Duration | None = None
    """The longest of these waits. Default: 1m."""


class Limits(ApiModel):
    """Where a run ends at the latest. A run's own limits may only lower its agent's."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.timeout) || self.timeout.matches('[1-9]')",
                "timeout must be longer than 0s",
                field_path=".timeout",
            ),
            rule(
                "!has(self.maxCostUSD) || self.maxCostUSD.matches('[1-9]')",
                "maxCostUSD must be more than 0",
                field_path=".maxCostUSD",
            ),
        )
    )

    max_turns: Annotated[int, Field(ge=1, le=200, json_schema_extra={"format": "int32"})] | None = None
    """The most turns of a run. A turn is one model call and the tool calls it asks for. Default: 20."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000_000, json_schema_extra={"format": "int64"})] | None = None
    """The most tokens, sent and received, of all model calls together. Looked at before each call; what is left is the
    most the call may answer. Calls made side by side may exceed it together."""
    max_cost_usd: Annotated[Decimal | None, Field(alias="maxCostUSD")] = None
    """The most the model calls may cost in US dollars, as a string such as "0.50". Looked at before each call. A model
    whose price is not known is an error, not free."""
    timeout: Duration | None = None
    """The longest a run may take, counted from its first turn, such as `90s` or `1h30m`. Default: 1h."""


class AgentSpec(ApiModel):
    """What the agent is: its model, its instructions and its tools."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!(has(self.instructions) && has(self.instructionsFrom))",
                "set at most one of instructions and instructionsFrom",
            ),
            rule(
                "!has(self.handoffs) || self.handoffs.all(h, self.handoffs.exists_one(o, o.agentRef.name == h.agentRef.name))",
                "handoffs name each agent once",
            ),
            rule(
                "!has(self.fallbackModelRefs) || self.fallbackModelRefs.all(f, f.name != self.modelRef.name)",
                "fallbackModelRefs names the agent's own modelRef; name other models",
                field_path=".fallbackModelRefs",
            ),
        )
    )

    description: Annotated[str, Field(max_length=1024)] | None = None
    """What the agent does, for people and for other agents."""
    pool_ref: LocalReference | None = None
    """The AgentPool whose workers run the agent. Default: the pool `default`, which the operator makes when it is
    missing."""
    model_ref: LocalReference
    """The AgentModel the agent calls."""
    fallback_model_refs: Annotated[list[LocalReference], Field(max_length=4, json_schema_extra=LIST_ATOMIC)] = []
    """The AgentModels to call instead, in this order, when one fails for good, refuses, or has used up its attempts. The
    run stays with the one that answered."""
    parameters: ModelParameters | None = None
    """Parameters of the model calls. They win over those of the AgentModel."""
    instructions: Annotated[str, Field(max_length=32768)] | None = None
    """The system prompt: what the model is told before the conversation. A Jinja2 template over `context` (the run's context
    variables), `agent` (its name) and `run` (its name and namespace), such as `Help {{ context.user_name }}`."""
    instructions_from: InstructionsSource | None = None
    """Where the instructions come from instead."""
    tools: Annotated[list[AgentTool], Field(max_length=64, json_schema_extra=list_map("name"))] = []
    """The tools the model may call. Each name appears once."""
    handoffs: Annotated[list[Handoff], Field(max_length=32, json_schema_extra=LIST_ATOMIC)] = []
    """The agents to whom this one may hand the conversation over: they go on with it under their own instructions."""
    tool_choice: ToolChoice | None = None
    """Whether the model calls tools. Default: Auto."""
    parallel_tool_calls: bool | None = None
    """Whether the model may ask for several tool calls in one turn; they run side by side. Default: the provider's, mostly
    true."""
    retrieval: Retrieval | None = None
    """Documents to look up for each message of the user."""
    output: AgentOutput | None = None
    """What the final answer has to be. Default: any text."""
    retry: Retry | None = None
    """How model calls are tried again that failed."""
    limits: Limits | None = None
    """Where a run of the agent ends at the latest. A run may set lower limits of its own. Called as a tool, the agent
    keeps to them too, and the caller is told when it reaches one."""


class AgentStatus(ApiModel):
    """Whether everything the agent names is there."""

    model_config = ConfigDict(
        json_schema_extra={"default": {"observedGeneration": -1, "conditions": pending_conditions("Ready")}}
    )

    conditions: Conditions = []
    """`Ready` is True with reason Resolved when everything the agent names exists. Otherwise its reason says what is
    missing: ModelNotFound, AgentNotFound, PoolNotFound, ConfigMapNotFound, ToolNotFound, ServerNotFound, RetrieverNotFound,
    PriceUnknown, CatalogueUnknown or InvalidSpec."""
    observed_generation: Annotated[int, Field(ge=-1, json_schema_extra={"format": "int64"})] | None = None
    """The `metadata.generation` the conditions are of; -1: the controller has not looked yet."""


class Agent(Resource):
    """An agent: a model with instructions and tools.

    An Agent does nothing by itself: an AgentRun gives it a task. A run keeps the agent as it was when the run started, so
    edits touch later runs only.
    """

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.spec.handoffs) || self.spec.handoffs.all(h, h.agentRef.name != self.metadata.name)",
                "an agent cannot hand over to itself",
                field_path=".spec.handoffs",
            ),
        )
    )

    KIND: ClassVar[str] = "Agent"
    PLURAL: ClassVar[str] = "agents"
    SHORT: ClassVar[str] = "ag"
    NAME_MAX: ClassVar[int] = 63
    SELECTABLE: ClassVar[list[str]] = []
    COLUMNS: ClassVar[list[dict[str, Any]]] = [
        {"name": "Model", "type": "string", "jsonPath": ".spec.modelRef.name"},
        {"name": "Pool", "type": "string", "jsonPath": ".spec.poolRef.name"},
        {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"},
        {"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].reason"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]

    spec: AgentSpec
    """What the agent is: its model, its instructions, its tools and its limits."""
    status: AgentStatus | None = None
    """Whether everything the agent names is there."""

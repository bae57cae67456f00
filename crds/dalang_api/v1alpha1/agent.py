"""Agent: a definition. It names a model, a pool and tools; it holds no credential and no code."""

from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from dalang_api.v1alpha1.agentmodel import ModelParameters
from dalang_api.v1alpha1.schema import (
    ApiModel,
    Conditions,
    Duration,
    LocalReference,
    Resource,
    list_map,
    pending_conditions,
)

ToolName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z_][a-zA-Z0-9_-]*$")]
FunctionName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[a-zA-Z_][a-zA-Z0-9_.]*$")]


class FunctionTool(ApiModel):
    """A Python function that a module of the pool registers with `@dalang.tool`."""

    name: FunctionName | None = None
    """Name of the registered function. Default: the tool's name."""


class AgentTool(ApiModel):
    """One tool the model may call."""

    name: ToolName
    """Name of the tool, as the model sees it."""
    function: FunctionTool
    """The Python function behind the tool. `function: {}` is the function that has the tool's name."""


class Limits(ApiModel):
    """Where a run ends at the latest. A run's own limits may only lower its agent's."""

    max_turns: Annotated[int, Field(ge=1, le=200, json_schema_extra={"format": "int32"})] | None = None
    """The most turns of a run. A turn is one model call and the tool calls it asks for. Default: 20."""
    timeout: Duration | None = None
    """The longest a run may take, counted from its first turn, such as `90s` or `1h30m`. Default: 1h."""


class AgentSpec(ApiModel):
    """What the agent is: its model, its instructions and its tools."""

    description: Annotated[str, Field(max_length=1024)] | None = None
    """What the agent does, for people and for other agents."""
    pool_ref: LocalReference | None = None
    """The AgentPool whose workers run the agent. Default: the pool `default`, which the operator makes when it is
    missing."""
    model_ref: LocalReference
    """The AgentModel the agent calls."""
    parameters: ModelParameters | None = None
    """Parameters of the model calls. They win over those of the AgentModel."""
    instructions: Annotated[str, Field(max_length=32768)] | None = None
    """The system prompt: what the model is told before the conversation."""
    tools: Annotated[list[AgentTool], Field(max_length=64, json_schema_extra=list_map("name"))] = []
    """The tools the model may call. Each name appears once."""
    limits: Limits | None = None
    """Where a run of the agent ends at the latest. A run may set lower limits of its own."""


class AgentStatus(ApiModel):
    """Whether everything the agent names is there."""

    model_config = ConfigDict(
        json_schema_extra={"default": {"observedGeneration": -1, "conditions": pending_conditions("Ready")}}
    )

    conditions: Conditions = []
    """`Ready` is True with reason Resolved when everything the agent names exists. Otherwise its reason says what is
    missing: ModelNotFound, PoolNotFound, ToolNotFound, CatalogueUnknown or InvalidSpec."""
    observed_generation: Annotated[int, Field(ge=-1, json_schema_extra={"format": "int64"})] | None = None
    """The `metadata.generation` the conditions are of; -1: the controller has not looked yet."""


class Agent(Resource):
    """An agent: a model with instructions and tools.

    An Agent does nothing by itself: an AgentRun gives it a task. A run keeps the agent as it was when the run started, so
    edits touch later runs only.
    """

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

"""AgentPool: what the agents of a namespace run in and can do. The platform's side: who may write it may run code."""

from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from dalang_api.v1alpha1.schema import (
    LIST_ATOMIC,
    LIST_SET,
    MAP_ATOMIC,
    ApiModel,
    Conditions,
    Duration,
    Resource,
    list_map,
    pending_conditions,
)

ModuleName = Annotated[
    str, Field(min_length=1, max_length=256, pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*(\.[a-zA-Z_][a-zA-Z0-9_]*)*$")
]


class ConfigMapReference(ApiModel):
    """A ConfigMap of the same namespace."""

    model_config = ConfigDict(json_schema_extra=MAP_ATOMIC)

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the ConfigMap."""


class ToolsSource(ApiModel):
    """Where Python modules come from, besides the image."""

    config_map_ref: ConfigMapReference
    """A ConfigMap whose keys are files such as `weather.py`. When it changes, the workers are replaced."""


class Scaling(ApiModel):
    """How many workers there are."""

    min_replicas: Annotated[int, Field(ge=0, le=100, json_schema_extra={"format": "int32"})] | None = None
    """The fewest workers. Default: 0, so with nothing to do there is none."""
    scale_to_zero_after: Duration | None = None
    """How long the pool keeps its last worker with nothing to do, such as `10m`. Default: 10m."""


class AgentPoolSpec(ApiModel):
    """What the workers run and how many there are. An empty spec is a working pool."""

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """The workers' container image. Default: the one set at the operator, so an upgrade of the operator moves it."""
    tools: Annotated[list[ModuleName], Field(max_length=64, json_schema_extra=LIST_SET)] = []
    """Python modules with tools, such as `shop.tools`. A worker imports them when it starts, from its image or from
    `toolsFrom`."""
    tools_from: Annotated[list[ToolsSource], Field(max_length=16, json_schema_extra=LIST_ATOMIC)] = []
    """ConfigMaps with Python modules that the image does not have. Label them `dalang.dev/tools` so that a change is
    noticed at once."""
    slots: Annotated[int, Field(ge=1, le=1000, json_schema_extra={"format": "int32"})] | None = None
    """How many model and tool calls one worker runs at the same time. Default: 100."""
    scaling: Scaling | None = None
    """How many workers there are, and when there is none."""


class PoolTool(ApiModel):
    """A function the pool's workers registered."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    """Name of the function."""
    digest: Annotated[str, Field(max_length=80)]
    """SHA-256 of its schema, the first 16 hex digits."""


class PoolCatalogue(ApiModel):
    """What a worker of one build can do, as it told when it started."""

    build: Annotated[str, Field(max_length=64)]
    """Digest of what the worker was built from: image, version, tool modules."""
    tools: Annotated[list[PoolTool], Field(max_length=512, json_schema_extra=list_map("name"))] = []
    """The functions it registered."""


class AgentPoolStatus(ApiModel):
    """The workers there are, and what they can do."""

    model_config = ConfigDict(
        json_schema_extra={"default": {"observedGeneration": -1, "conditions": pending_conditions("Ready")}}
    )

    conditions: Conditions = []
    """`Ready`: whether runs are carried out, with reason Available, ScaledToZero, Scaling, NameConflict, ConfigMapNotFound
    or DeploymentFailed. `ToolsLoaded`: whether every tool module could be imported, with reason Loaded or ImportFailed."""
    observed_generation: Annotated[int, Field(ge=-1, json_schema_extra={"format": "int64"})] | None = None
    """The `metadata.generation` the conditions are of; -1: the controller has not looked yet."""
    replicas: Annotated[int, Field(ge=0, json_schema_extra={"format": "int32"})] | None = None
    """How many workers are wanted."""
    ready_replicas: Annotated[int, Field(ge=0, json_schema_extra={"format": "int32"})] | None = None
    """How many workers are ready."""
    build: Annotated[str, Field(max_length=64)] | None = None
    """Digest of what the workers are built from now: image, version and tool modules."""
    catalogue: PoolCatalogue | None = None
    """The tools a worker reported when it started. They count while `catalogue.build` equals `build`."""


class AgentPool(Resource):
    """The workers that run agents: their image, their Python tools and their number.

    A pool is one Deployment, `dalang-<pool>`, and one Temporal task queue. Agents name it in `poolRef`; the pool `default`
    is made when an agent needs it.
    """

    KIND: ClassVar[str] = "AgentPool"
    PLURAL: ClassVar[str] = "agentpools"
    SHORT: ClassVar[str] = "agpool"
    NAME_MAX: ClassVar[int] = 40
    SELECTABLE: ClassVar[list[str]] = []
    COLUMNS: ClassVar[list[dict[str, Any]]] = [
        {"name": "Desired", "type": "integer", "jsonPath": ".status.replicas"},
        {"name": "Workers", "type": "integer", "jsonPath": ".status.readyReplicas"},
        {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"},
        {"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].reason"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]

    spec: AgentPoolSpec = AgentPoolSpec()
    """What the workers run and how many there are. An empty spec is a working pool."""
    status: AgentPoolStatus | None = None
    """The workers there are, and what they can do."""

"""AgentPool: what the agents of a namespace run in and can do. The platform's side: who may write it may run code."""

from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from dalang_api.v1alpha1.agentmodel import ApiKey
from dalang_api.v1alpha1.schema import (
    LIST_ATOMIC,
    LIST_SET,
    MAP_ATOMIC,
    ApiModel,
    ApprovalPolicy,
    Conditions,
    Duration,
    LocalReference,
    Resource,
    SecretKeyReference,
    list_map,
    pending_conditions,
    rule,
    rules,
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


ServerName = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
HttpURL = Annotated[str, Field(min_length=8, max_length=2048, pattern=r"^https?://[^\s/?#@]+(/[^\s#]*)?$")]


class ValueSource(ApiModel):
    """Where a value comes from instead."""

    secret_key_ref: SecretKeyReference
    """The key of a Secret that holds the value. Only the workers read it."""


class NamedValue(ApiModel):
    """A value by name: exactly one of `value` and `valueFrom`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("has(self.value) != has(self.valueFrom)", "set exactly one of value and valueFrom"),
        )
    )

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_-]+$")]
    """Its name."""
    value: Annotated[str, Field(max_length=4096)] | None = None
    """The value, for everyone to read."""
    value_from: ValueSource | None = None
    """Where the value comes from, when it is secret."""


class McpHttp(ApiModel):
    """An MCP server behind HTTP."""

    url: HttpURL
    """Its address, such as `http://weather.tools:8080/mcp`. It holds no credentials."""
    headers: Annotated[list[NamedValue], Field(max_length=16, json_schema_extra=list_map("name"))] = []
    """Headers sent with each request."""
    bearer_token: ValueSource | None = None
    """A token sent as `Authorization: Bearer …`."""


class McpStdio(ApiModel):
    """An MCP server that the worker starts and speaks to over standard input and output."""

    command: Annotated[str, Field(min_length=1, max_length=1024)]
    """The program, from the worker's image. Its working directory is the one with the files of `toolsFrom`, if any."""
    args: Annotated[
        list[Annotated[str, Field(max_length=4096)]], Field(max_length=64, json_schema_extra=LIST_ATOMIC)
    ] = []
    """Its arguments."""
    env: Annotated[list[NamedValue], Field(max_length=64, json_schema_extra=list_map("name"))] = []
    """Its environment, beside PATH and the like; it gets none of the worker's own variables."""


class McpServer(ApiModel):
    """A server whose tools agents of the pool may use: exactly one of `streamableHTTP`, `sse` and `stdio`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "[has(self.streamableHTTP), has(self.sse), has(self.stdio)].filter(x, x).size() == 1",
                "set exactly one of streamableHTTP, sse and stdio",
            ),
        )
    )

    name: ServerName
    """Name by which Agents name it."""
    streamable_http: Annotated[McpHttp | None, Field(alias="streamableHTTP")] = None
    """A server that speaks Streamable HTTP, the current transport."""
    sse: McpHttp | None = None
    """A server that speaks HTTP with server-sent events, the transport before it."""
    stdio: McpStdio | None = None
    """A program that each worker runs."""


class Embedding(ApiModel):
    """What makes a vector of a question."""

    model_ref: LocalReference
    """The AgentModel whose endpoint has the embeddings; provider OpenAI or AzureOpenAI."""
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """The embedding model's name there. Default: that of the AgentModel."""


class Qdrant(ApiModel):
    """A collection of a Qdrant server."""

    model_config = ConfigDict(
        json_schema_extra=rules(rule("has(self.url) != has(self.path)", "set exactly one of url and path")),
    )

    url: HttpURL | None = None
    """Address of the server, such as `http://qdrant.search:6333`."""
    path: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """A folder of the worker with a local database instead of a server, for trying things out. One process at a time can
    open it."""
    collection: Annotated[str, Field(min_length=1, max_length=255)]
    """Name of the collection. The text of a point is its payload's `text`, `page_content`, `content` or `document`."""
    limit: Annotated[int, Field(ge=1, le=50, json_schema_extra={"format": "int32"})] = 5
    """How many points a question brings."""
    api_key: ApiKey | None = None
    """Key of the server."""
    embedding: Embedding
    """What makes a vector of the question: the same model that made the collection's."""


class Retriever(ApiModel):
    """Something an agent looks its questions up in."""

    name: ServerName
    """Name by which Agents name it."""
    qdrant: Qdrant
    """A collection of a Qdrant server."""


class ApprovalFloor(ApprovalPolicy):
    """Approvals that the pool asks for, whatever its Agents say."""

    tools: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[a-zA-Z0-9_.*?-]+$")]],
        Field(min_length=1, max_length=64, json_schema_extra=LIST_SET),
    ]
    """Names of tools as the model sees them, or of what is behind them: the function, the server's tool, the agent. `*` and
    `?` stand for any characters and any one, as in `process_*`."""


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
    mcp_servers: Annotated[list[McpServer], Field(max_length=32, json_schema_extra=list_map("name"))] = []
    """MCP servers whose tools Agents may name. A server that is away is told to the model and stops nothing."""
    retrievers: Annotated[list[Retriever], Field(max_length=16, json_schema_extra=list_map("name"))] = []
    """What Agents may look questions up in."""
    approvals: Annotated[list[ApprovalFloor], Field(max_length=32, json_schema_extra=LIST_ATOMIC)] = []
    """Calls that a human has to approve, whatever Agents say: they may ask for more, never for less."""
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
    instructions: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=128)]], Field(max_length=128, json_schema_extra=LIST_SET)
    ] = []
    """The instruction functions it registered."""
    secret_keys: Annotated[
        list[Annotated[str, Field(min_length=3, max_length=512)]], Field(max_length=256, json_schema_extra=LIST_SET)
    ] = []
    """The keys of mounted Secrets that it could read, as `secret/key`."""


class AgentPoolStatus(ApiModel):
    """The workers there are, and what they can do."""

    model_config = ConfigDict(
        json_schema_extra={"default": {"observedGeneration": -1, "conditions": pending_conditions("Ready")}}
    )

    conditions: Conditions = []
    """`Ready`: whether runs are carried out, with reason Available, ScaledToZero, Scaling, NameConflict, ConfigMapNotFound,
    InvalidSpec or DeploymentFailed. `ToolsLoaded`: whether every tool module could be imported, with reason Loaded or
    ImportFailed."""
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

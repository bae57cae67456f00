"""AgentSession: a conversation that lasts. One session is one Temporal workflow; each AgentRun with `sessionRef` is an exchange in it."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from dalang_api.v1alpha1.agent import Limits
from dalang_api.v1alpha1.agentrun import RecentMessage, Usage, WorkflowReference
from dalang_api.v1alpha1.schema import (
    CONTEXT_RULES,
    LIST_ATOMIC,
    ApiModel,
    Conditions,
    ContextVariables,
    Duration,
    LocalReference,
    Resource,
    Timestamp,
    immutable_except,
    pending_conditions,
    readable,
    rule,
    rules,
)


class SummarySettings(ApiModel):
    """How what was said long ago is kept."""

    enabled: bool | None = None
    """Whether the oldest messages are summarised by a model when the conversation becomes too long for `historySize`. If
    false they are dropped without a word. Default: true."""
    model_ref: LocalReference | None = None
    """The AgentModel that writes the summary. Default: the one of the session's Agent."""


class AgentSessionSpec(ApiModel):
    """The conversation: with whom, and how it remembers."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *CONTEXT_RULES,
            rule(
                "!has(self.idleTimeout) || "
                + readable("self.idleTimeout")
                + "duration(self.idleTimeout) >= duration('1s')",
                "idleTimeout must be at least 1s",
                field_path=".idleTimeout",
            ),
            rule(
                "!has(oldSelf.closed) || !oldSelf.closed || (has(self.closed) && self.closed)",
                "a closed session stays closed; create another one",
                field_path=".closed",
                forbidden=True,
            ),
            immutable_except(
                ["historySize", "summary", "limits", "idleTimeout", "closed"],
                "agentRef and context of a session are immutable; create another session",
            ),
        )
    )

    agent_ref: LocalReference
    """The Agent with whom the conversation begins. After a hand-off the next run goes on with the agent who holds it. An edit
    of the Agent counts from the next run on that is handed to the session; one that is `Queued` has it as it was: cancel or delete
    that run where the edit has to count. If there is none of that name yet, the session's runs wait for it."""
    context: ContextVariables | None = None
    """Context variables the conversation begins with. They last: runs add to them, tools change them."""
    history_size: Annotated[int, Field(ge=4, le=400, json_schema_extra={"format": "int32"})] | None = None
    """How many messages the conversation keeps word for word. Beyond it, or beyond 512 KiB, the older half is summarised
    before the next run's first turn; while no summary can be written, all are kept up to 1 MiB, and each run tries again.
    Default: 40."""
    summary: SummarySettings | None = None
    """How what was said before that is kept. Default: summarised by the Agent's own model."""
    limits: Limits | None = None
    """Where each run of the session ends at the latest. Each limit counts only where it is lower than the agent's. A change
    counts from the next run on that is handed to the session; one that is `Queued` has the limits as they were."""
    idle_timeout: Duration | None = None
    """After how long without a run the session closes by itself, such as `720h`; at least 1s. Default: never."""
    closed: bool | None = None
    """Set it to true to end the conversation after the run that is under way; those that are queued fail with
    `SessionClosed`. It cannot be opened again."""


class LastRun(ApiModel):
    """The run that ended last."""

    name: Annotated[str, Field(max_length=63)]
    """Name of the AgentRun; it may be deleted by now."""
    phase: Literal["Succeeded", "Failed", "Cancelled"]
    """How it ended."""
    finished_at: Timestamp
    """When it ended."""


class AgentSessionStatus(ApiModel):
    """What the conversation has come to."""

    model_config = ConfigDict(
        json_schema_extra={"default": {"observedGeneration": -1, "conditions": pending_conditions("Ready")}}
    )

    conditions: Conditions = []
    """`Ready` is True while the session takes runs and, with reason `Closed`, when it has ended as it should; False when
    something it names is missing or it has lost its workflow; the message says which. `Stalled` is there, as True, where it
    will not get further by itself; `Summarised`, as False, where the last summary could not be written."""
    observed_generation: Annotated[int, Field(ge=-1, json_schema_extra={"format": "int64"})] | None = None
    """The `metadata.generation` that the workflow was told of; -1: the controller has not looked yet."""
    agent: Annotated[str, Field(max_length=63)] | None = None
    """Name of the agent that holds the conversation."""
    runs: Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})] | None = None
    """How many runs have ended, whether they succeeded or not."""
    queued_runs: Annotated[int, Field(ge=0, json_schema_extra={"format": "int32"})] | None = None
    """How many runs wait for the one that is under way. At most 200 are queued; more wait in the cluster."""
    last_run: LastRun | None = None
    """The run that ended last."""
    messages: Annotated[list[RecentMessage], Field(max_length=8, json_schema_extra=LIST_ATOMIC)] | None = None
    """The last few messages of the conversation. `dalang transcript` prints all of it."""
    summary: Annotated[str, Field(max_length=4096)] | None = None
    """What was said before the messages that are kept, as a model summarised it."""
    context: ContextVariables | None = None
    """The context variables as they are now: text as it is, all else as JSON."""
    usage: Usage | None = None
    """Tokens used so far, in all runs, summaries included."""
    started_at: Timestamp | None = None
    """When the session was started."""
    closed_at: Timestamp | None = None
    """When the conversation ended."""
    workflow: WorkflowReference | None = None
    """The Temporal workflow that holds the conversation."""


class AgentSession(Resource):
    """A conversation that remembers for months.

    Each AgentRun with `sessionRef` is its next exchange: it begins with what was said before, with the context variables as
    they were left, and with the agent who holds the conversation. A run that fails, is cancelled or deleted leaves the
    conversation as it was before it.
    """

    KIND: ClassVar[str] = "AgentSession"
    PLURAL: ClassVar[str] = "agentsessions"
    SHORT: ClassVar[str] = "agsess"
    NAME_MAX: ClassVar[int] = 63
    SELECTABLE: ClassVar[list[str]] = [".spec.agentRef.name"]
    COLUMNS: ClassVar[list[dict[str, Any]]] = [
        {"name": "Agent", "type": "string", "jsonPath": ".status.agent"},
        {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"},
        {"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].reason"},
        {"name": "Runs", "type": "integer", "jsonPath": ".status.runs"},
        {"name": "Queued", "type": "integer", "jsonPath": ".status.queuedRuns"},
        {"name": "Tokens", "type": "integer", "jsonPath": ".status.usage.totalTokens"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        {"name": "Last Run", "type": "string", "jsonPath": ".status.lastRun.name", "priority": 1},
        {"name": "Cost", "type": "string", "jsonPath": ".status.usage.costUSD", "priority": 1},
    ]

    spec: AgentSessionSpec
    """The conversation: with whom, and how it remembers."""
    status: AgentSessionStatus | None = None
    """What the conversation has come to."""

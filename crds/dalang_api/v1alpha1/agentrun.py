"""AgentRun: one task given to an agent, or the next exchange of a conversation, and its result."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from dalang_api.v1alpha1.agent import Limits
from dalang_api.v1alpha1.schema import (
    ANY_OBJECT,
    CONTEXT_RULES,
    LIST_ATOMIC,
    ApiModel,
    Conditions,
    ContextVariables,
    Decimal,
    Duration,
    LocalReference,
    Resource,
    Timestamp,
    immutable_except,
    list_map,
    pending_conditions,
    rule,
    rules,
)

INPUT_MAX = 32768
CONVERSATION_MAX = 4 * INPUT_MAX
"""The most characters of all `messages` together. At up to 4 bytes each, these and the snapshot (512 KiB) stay well below
what etcd takes as one object (1.5 MiB, else an error 500) and Temporal as one payload (2 MiB)."""


class InputMessage(ApiModel):
    """One message said before the agent's turn."""

    role: Literal["User", "Assistant"]
    """Who said it."""
    content: Annotated[str, Field(min_length=1, max_length=INPUT_MAX)]
    """What was said."""


TASK_RULES = (
    rule("has(self.agentRef) != has(self.sessionRef)", "exactly one of agentRef and sessionRef must be set"),
    rule("has(self.input) != has(self.messages)", "exactly one of input and messages must be set"),
    rule(
        "!has(self.messages) || size(self.messages) == 0 || self.messages[size(self.messages) - 1].role == 'User'",
        "the last of messages must have role User",
    ),
    rule(
        f"!has(self.messages) || self.messages.map(message, size(message.content)).sum() <= {CONVERSATION_MAX}",
        f"messages may have at most {CONVERSATION_MAX} characters together",
    ),
    *CONTEXT_RULES,
)
"""What holds of every task, also of one that stands in a template and may be edited there."""


class RunTask(ApiModel):
    """A task: who does it, what it is, and where it ends at the latest."""

    model_config = ConfigDict(json_schema_extra=rules(*TASK_RULES))

    agent_ref: LocalReference | None = None
    """The Agent that does the task. If there is none of that name yet, the run waits for it. Exactly one of `agentRef` and
    `sessionRef` is set."""
    session_ref: LocalReference | None = None
    """The AgentSession whose next exchange this is: it remembers what was said before. Runs of a session are carried out one
    after another, in the order of their creation. If there is no session of that name yet, the run waits for it."""
    input: Annotated[str, Field(min_length=1, max_length=INPUT_MAX)] | None = None
    """The task, as one message of the user. Exactly one of `input` and `messages` is set."""
    messages: (
        Annotated[list[InputMessage], Field(min_length=1, max_length=64, json_schema_extra=LIST_ATOMIC)] | None
    ) = None
    """The task, as a conversation so far, the user's message last; at most 131072 characters together. Exactly one of
    `input` and `messages` is set."""
    context: ContextVariables | None = None
    """Context variables: read by instructions and tools, changed by tools, and never shown to the model by themselves. A
    value that is JSON is read as such (`"3"` is a number), any other is text; each at most 4096 characters, together at most 8192 bytes.
    In a session they are added to those of the conversation."""
    limits: Limits | None = None
    """Where this run ends at the latest. Each limit counts only where it is lower than the agent's and the session's."""
    ttl_after_finished: Duration | None = None
    """How long the run is kept after its end, such as `24h`. Default: the time set at the operator (24h) for a run made
    with `generateName` or owned by a controller; an AgentSchedule keeps as many of its runs as its `runHistory` says, and any
    other run is a declared object and is never deleted by Dalang. Changed on a finished run, it is noticed within ten
    minutes."""


class AgentRunSpec(RunTask):
    """The task. Only `cancel` and `ttlAfterFinished` can be changed later; for anything else create another run."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *TASK_RULES,
            immutable_except(
                ["ttlAfterFinished", "cancel"],
                "a run's spec is immutable but for cancel and ttlAfterFinished; create another run",
            ),
        )
    )

    cancel: bool | None = None
    """Set it to true to cancel the run. What a tool has already done stays done."""


class SnapshottedAgent(ApiModel):
    """An agent as it was when the run started or, in a session, was handed to it."""

    name: Annotated[str, Field(max_length=63)]
    """Name of the Agent."""
    uid: Annotated[str, Field(max_length=64)]
    """Its uid."""
    generation: Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})]
    """Its `metadata.generation`: which version of the agent this run uses."""
    pool: Annotated[str, Field(max_length=63)] | None = None
    """The AgentPool whose workers run it."""


class RecentMessage(ApiModel):
    """One of the last messages, cut to what fits a status."""

    role: Literal["User", "Assistant", "Tool"]
    """Who said it: the user, the agent, or a tool."""
    sender: Annotated[str, Field(max_length=128)] | None = None
    """Name of the agent or tool."""
    content: Annotated[str, Field(max_length=1024)]
    """What was said; a tool call reads `→ tool(arguments)`."""


class Usage(ApiModel):
    """Tokens of all model calls whose completion was recorded."""

    input_tokens: Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})]
    """Tokens sent."""
    output_tokens: Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})]
    """Tokens received."""
    total_tokens: Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})]
    """Both together."""
    cost_usd: Annotated[Decimal | None, Field(alias="costUSD")] = None
    """What they cost in US dollars by the providers' public prices. Absent before a call was counted, and when the price of
    any model called is not known."""


class PendingApproval(ApiModel):
    """Something that waits for a human. The AgentApproval of that name has all of it."""

    name: Annotated[str, Field(max_length=253)]
    """Name of the AgentApproval to decide."""
    agent: Annotated[str, Field(max_length=63)]
    """Name of the agent that asks."""
    tool: Annotated[str, Field(max_length=128)] | None = None
    """The tool to be called; absent: the agent's answer waits."""
    question: Annotated[str, Field(max_length=512)]
    """What the human is asked."""
    preview: Annotated[str, Field(max_length=256)]
    """The beginning of the arguments or the answer."""
    expires_at: Timestamp | None = None
    """When nobody need decide any more."""


class DecidedApproval(ApiModel):
    """Something that waited for a human, and what came of it."""

    name: Annotated[str, Field(max_length=253)]
    """Name of the AgentApproval."""
    tool: Annotated[str, Field(max_length=128)] | None = None
    """The tool; absent: it was the agent's answer."""
    decision: Literal["Approve", "Reject", "Expired", "Superseded"]
    """What was decided; Expired: nobody did in time; Superseded: the question was asked anew."""
    decided_by: Annotated[str, Field(max_length=256)] | None = None
    """Who decided, as admission proved it."""


class WorkflowReference(ApiModel):
    """The Temporal workflow that carries the run, or the conversation, out."""

    id: Annotated[str, Field(max_length=512)]
    """Workflow id: installation, namespace, and name and uid of the run or, where it belongs to one, its session."""
    run_id: Annotated[str, Field(max_length=64)]
    """Temporal's id of the execution."""
    task_queue: Annotated[str, Field(max_length=256)]
    """The task queue of the pool."""
    report_seq: Annotated[int, Field(ge=0, json_schema_extra={"format": "int32"})]
    """Number of the workflow's report that this status comes from. 0: the controller wrote it, before any report."""


class AgentRunStatus(ApiModel):
    """How far the run is, and what came out of it."""

    model_config = ConfigDict(
        json_schema_extra={
            "default": {
                "phase": "Pending",
                "observedGeneration": -1,
                "conditions": pending_conditions("Ready", "Succeeded"),
            }
        }
    )

    phase: Literal["Pending", "Running", "AwaitingApproval", "Succeeded", "Failed", "Cancelled"] = "Pending"
    """The state in one word, for columns. Scripts read the conditions."""
    conditions: Conditions = []
    """`Succeeded` is True, False or, until the run ends, Unknown; its reason and message say why. `Ready` and `Stalled` say
    the same to tools such as Flux and Argo CD. `Retrieved` and `ToolsAvailable` are there, as
    False, where an agent had to do without its documents or without some of its tools."""
    observed_generation: Annotated[int, Field(ge=-1, json_schema_extra={"format": "int64"})] | None = None
    """The `metadata.generation` the conditions are of; -1: the controller has not looked yet."""
    agent: Annotated[str, Field(max_length=63)] | None = None
    """Name of the agent that holds the conversation."""
    agents: Annotated[list[SnapshottedAgent], Field(max_length=64, json_schema_extra=list_map("name"))] | None = None
    """The agents of the run as they were when it started or, in a session, when it was handed to it, which may be long before
    its turn (reason `Queued`). Later edits of them do not change this run."""
    output: Annotated[str, Field(max_length=8192)] | None = None
    """The answer. At most 8192 characters; `outputTruncated` tells whether it was cut."""
    output_truncated: bool | None = None
    """Whether `output` was cut. The whole answer is in the workflow's transcript."""
    structured_output: Annotated[dict[str, Any] | None, Field(json_schema_extra=ANY_OBJECT)] = None
    """The answer as an object, where the agent has an `output.schema`. Left out where it weighs more than 8192 bytes, or
    the status would be too large."""
    context: ContextVariables | None = None
    """The context variables as they are now: text as it is, all else as JSON."""
    messages: Annotated[list[RecentMessage], Field(max_length=8, json_schema_extra=LIST_ATOMIC)] | None = None
    """The last few messages of the conversation."""
    pending_approvals: (
        Annotated[list[PendingApproval], Field(max_length=16, json_schema_extra=list_map("name"))] | None
    ) = None
    """What waits for a human now; decide with `kubectl patch agentapproval NAME --type merge -p
    '{"spec":{"decision":"Approve"}}'`."""
    approvals: Annotated[list[DecidedApproval], Field(max_length=16, json_schema_extra=list_map("name"))] | None = None
    """What was decided in this run, the last sixteen."""
    turns: Annotated[int, Field(ge=0, json_schema_extra={"format": "int32"})] | None = None
    """How many turns there were. A turn is one model call and the tool calls it asks for."""
    usage: Usage | None = None
    """Tokens used so far, in all model calls whose reply was recorded."""
    started_at: Timestamp | None = None
    """When the first turn began or, until that is known, when the workflow was started."""
    finished_at: Timestamp | None = None
    """When the run ended, whether it succeeded or not. To wait for it:
    `kubectl wait --for=jsonpath='{.status.finishedAt}' agentrun/NAME`."""
    workflow: WorkflowReference | None = None
    """The Temporal workflow that carries the run out."""
    order: Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})] | None = None
    """Place among the runs of its session that were created within the same second; there while it waits for something that
    the session lacks. It is the resourceVersion with which the run was created."""


class AgentRun(Resource):
    """One task given to an agent, and its result.

    The task is `spec.input`, the answer `status.output`. A run is one Temporal workflow, or the next exchange in the workflow
    of its AgentSession: it goes on where it was when a worker, the operator or Temporal is restarted.
    """

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(oldSelf.status) || !has(oldSelf.status.finishedAt) || "
                "!has(self.spec.cancel) || !self.spec.cancel || (has(oldSelf.spec.cancel) && oldSelf.spec.cancel)",
                "the run has finished: it can no longer be cancelled",
                field_path=".spec.cancel",
                forbidden=True,
            ),
        )
    )

    KIND: ClassVar[str] = "AgentRun"
    PLURAL: ClassVar[str] = "agentruns"
    SHORT: ClassVar[str] = "agrun"
    NAME_MAX: ClassVar[int] = 63
    SELECTABLE: ClassVar[list[str]] = [
        ".status.finishedAt",
        ".status.phase",
        ".spec.agentRef.name",
        ".spec.sessionRef.name",
    ]
    COLUMNS: ClassVar[list[dict[str, Any]]] = [
        {"name": "Agent", "type": "string", "jsonPath": ".spec.agentRef.name"},
        {"name": "Session", "type": "string", "jsonPath": ".spec.sessionRef.name", "priority": 1},
        {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
        {"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Succeeded')].reason"},
        {"name": "Turns", "type": "integer", "jsonPath": ".status.turns"},
        {"name": "Approvals", "type": "string", "jsonPath": ".status.pendingApprovals[*].name", "priority": 1},
        {"name": "Tokens", "type": "integer", "jsonPath": ".status.usage.totalTokens"},
        {"name": "Cost", "type": "string", "jsonPath": ".status.usage.costUSD"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        {"name": "Output", "type": "string", "jsonPath": ".status.output", "priority": 1},
    ]

    spec: AgentRunSpec
    """The task. Only `cancel` and `ttlAfterFinished` can be changed later; for anything else create another run."""
    status: AgentRunStatus | None = None
    """How far the run is, and what came out of it."""

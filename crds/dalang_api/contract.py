"""What crosses Temporal between operator and worker: names, sizes, and one type per message.

These types are persisted in histories that wait for days, so they change by adding optional fields only. Nothing here is
an SDK's object, and nothing holds a Secret's value: keys travel as references and are read on the worker.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

# ── Sizes ──────────────────────────────────────────────────────────────────────────────────────────────────────────
# Temporal refuses payloads over 2 MiB and retries the workflow task for ever, so each part is
# bounded well below that where it is made.

MESSAGE_MAX_BYTES = 32 * 1024
"""The most one message of the model keeps; longer text is cut, with a mark."""
OPAQUE_MAX_BYTES = 128 * 1024
"""The most one message keeps of what is a provider's own; more is dropped, as it cannot be cut."""
TOOL_OUTPUT_MAX_BYTES = 16 * 1024
"""The most of a tool's output that is kept and sent to the model."""
SNAPSHOT_MAX_BYTES = 512 * 1024
"""The most a run's snapshot may weigh."""
SNAPSHOT_MAX_AGENTS = 64
"""The most agents a snapshot may hold."""
TAIL_MAX_BYTES = 128 * 1024
"""The most new messages a model call carries; a longer tail is left out and asked for by query."""
PAGE_MAX_BYTES = 1024 * 1024
"""The most one answer of the transcript query holds."""
HISTORY_MAX_BYTES = 30 * 1024 * 1024
"""A run whose history grows past this ends with `HistoryLimit` (Temporal ends it without a word at 50 MiB)."""
HISTORY_MAX_EVENTS = 30_000
"""Likewise in events (Temporal: 51,200)."""
OUTPUT_MAX_BYTES = 8192
"""The most of the answer that stands in the status."""
RECENT_MESSAGES = 6
"""How many of the last messages stand in the status."""
RECENT_MESSAGE_MAX_BYTES = 1024
"""The most of each of them."""

CONTEXT_MAX_BYTES = 8192
"""The most a run's context variables may weigh as JSON, names included: they stand in the status, and in the input of
each call that reads them."""
CONTEXT_MAX_VARIABLES = 64
CONTEXT_VALUE_MAX_CHARS = 4096
"""The longest that one of them may be."""
INSTRUCTIONS_MAX_BYTES = 64 * 1024
"""The most that rendered instructions may weigh."""
STRUCTURED_OUTPUT_MAX_BYTES = 8192
"""The most of an answer as an object that stands in the status; a larger one is left out of it."""

AGENT_DEPTH_MAX = 5
"""How deep agents may call agents as tools; the graph may have cycles."""
THREADS_MAX = 20
"""How many agents called as tools may be under way in one run at once."""
CALL_AGAIN_MAX = 5
"""How often in a row a model may pause and be called again (Anthropic's `pause_turn`)."""
FALLBACK_ATTEMPTS = 3
"""How often a model is tried before the next of `fallbackModelRefs`, unless `retry.maximumAttempts` says so."""

CALL_ARGUMENTS_MAX_BYTES = 64 * 1024
"""The most that the arguments of one call may weigh: as much as a human can be asked about."""
TURN_ARGUMENTS_MAX_BYTES = 256 * 1024
"""The most that the arguments of one turn's calls may weigh together."""
TURN_MAX_CALLS = 32
"""The most tool calls of one turn that are run; the model is told of the others."""

PENDING_APPROVALS_MAX_BYTES = 1024 * 1024
"""The most that the pending requests of one report may weigh; what does not fit is asked when others have been decided."""
APPROVAL_NOTE_MAX_CHARS = 256

SESSION_TRANSCRIPT_BYTES = 512 * 1024
"""Beyond this, or beyond its `historySize`, a session's older messages are summarised before the next run's first turn."""
SESSION_TRANSCRIPT_MAX_BYTES = 1024 * 1024
"""Beyond this they are given up even where no summary can be written."""
SESSION_QUEUE_MAX_RUNS = 200
"""The most runs a session's workflow is sent before it has ended them; more wait in the cluster."""
SESSION_QUEUE_MAX_BYTES = 512 * 1024
"""The most those may weigh together, but for one that is larger by itself. With this, the transcript and the snapshot,
continuing as new stays below 2 MiB."""
SESSION_SEEN_MAX = 400
"""How many runs a session remembers that it was sent: a repeated one is ignored."""
SESSION_CONTINUE_BYTES = 2 * 1024 * 1024
"""A session whose history grows past this continues as new, between two runs. Workflow code decides by it, as by
`SESSION_TRANSCRIPT_BYTES`: another figure goes behind `workflow.patched`."""
SESSION_CARRY_MAX_BYTES = 1792 * 1024
"""The most a session may carry when it continues as new."""
SUMMARY_HEADING = "Summary of the conversation so far:"
"""What the message begins with that stands for what was given up."""
SUMMARY_MAX_CHARS = 4096
"""The longest that a summary may be: all of it stands in the status."""

DEFAULT_HISTORY_SIZE = 40
DEFAULT_MAX_TURNS = 20
DEFAULT_TIMEOUT_SECONDS = 3600.0

# ── Names ──────────────────────────────────────────────────────────────────────────────────────────────────────────

RUN_WORKFLOW = "AgentRun"
SESSION_WORKFLOW = "AgentSession"
TRIGGER_WORKFLOW = "TriggerRun"
PUBLISH_TOOLS_WORKFLOW = "PublishTools"
MODEL_ACTIVITY = "model"
TOOL_ACTIVITY = "tool"
MCP_ACTIVITY = "mcp"
CHECK_ANSWER_ACTIVITY = "checkAnswer"
SUMMARY_ACTIVITY = "summarise"
REPORT_ACTIVITY = "report"
REPORT_SESSION_ACTIVITY = "reportSession"
CREATE_RUN_ACTIVITY = "createRun"
CANCEL_RUN_ACTIVITY = "cancelRun"
CATALOGUE_ACTIVITY = "publishCatalogue"
TRANSCRIPT_QUERY = "transcript"
SNAPSHOT_QUERY = "snapshot"
DECIDE_SIGNAL = "decide"
RETRYING_SIGNAL = "retrying"
REPORT_AGAIN_SIGNAL = "reportAgain"
EXCHANGE_SIGNAL = "exchange"
CANCEL_EXCHANGE_SIGNAL = "cancelExchange"
CONFIGURE_SIGNAL = "configure"
RUN_ENDED_SIGNAL = "runEnded"


def reporter_queue(installation: str) -> str:
    """Task queue of the reporter."""
    return f"{installation}.reporter"


def pool_queue(installation: str, namespace: str, pool: str) -> str:
    """Task queue of a pool's workers."""
    return f"{installation}.{namespace}.{pool}"


def pool_of_queue(queue: str) -> str:
    """Return the pool's name of a pool's task queue; it may hold dots, installation and namespace may not."""
    return queue.split(".", 2)[2]


def run_workflow_id(installation: str, namespace: str, name: str, uid: str) -> str:
    """Workflow id of an AgentRun. The uid makes a recreated object a new run."""
    return f"{installation}.{namespace}.{name}.{uid}"


def session_workflow_id(installation: str, namespace: str, name: str, uid: str) -> str:
    """Workflow id of an AgentSession; the uid keeps it from meeting that of a run of the same name."""
    return f"{installation}.{namespace}.{name}.{uid}"


def schedule_id(installation: str, namespace: str, name: str, uid: str) -> str:
    """Id of an AgentSchedule's Temporal Schedule, and of its workflows `TriggerRun` before Temporal adds the time."""
    return f"{installation}.{namespace}.{name}.{uid}"


def scheduled_run_name(schedule: str, uid: str, scheduled_at: datetime) -> str:
    """Return the name of the AgentRun a schedule creates for a time: the same whoever asks, and sorted by time.

    Ten characters beside the schedule's name: the time in whole seconds, to the base of 36, and the beginning of the
    schedule's uid, so that one that was made anew does not meet the runs of the old one.
    """
    return f"{schedule}-{_base36(int(scheduled_at.timestamp())):0>7}{uid[:3]}"


def scheduled_run_time(schedule: str, run: str) -> datetime | None:
    """Return the time that `scheduled_run_name` put into a run's name; None where the name is none of the schedule's."""
    digits = run.removeprefix(f"{schedule}-")[:-3]
    return datetime.fromtimestamp(int(digits, 36), UTC) if re.fullmatch("[0-9a-z]{7}", digits) else None


def trigger_workflow_id(schedule: str, scheduled_at: datetime) -> str:
    """Return the workflow id that Temporal makes of a schedule's id for the `TriggerRun` of a time."""
    return f"{schedule}-{scheduled_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, rest = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[rest] + digits
    return digits


def catalogue_workflow_id(installation: str, namespace: str, pool: str, build: str) -> str:
    """Workflow id of a pool's `PublishTools`."""
    return f"{installation}.{namespace}.{pool}.{build}"


@dataclass(frozen=True)
class WorkflowTarget:
    """The object a workflow id names: of a run or a session with its uid, of a pool with its build."""

    installation: str
    namespace: str
    name: str
    suffix: str
    """The run's or the session's uid, or the pool's build; of a schedule's firing its uid, `-` and the time."""


def parse_workflow_id(workflow_id: str) -> WorkflowTarget:
    """Read a workflow id back. Only an object's name may hold dots.

    Raises:
        ValueError: The id is not one of ours.
    """
    installation, _, rest = workflow_id.partition(".")
    namespace, _, rest = rest.partition(".")
    name, _, suffix = rest.rpartition(".")
    if not (installation and namespace and name and suffix):
        raise ValueError(f"{workflow_id!r} is not <installation>.<namespace>.<name>.<uid>")
    return WorkflowTarget(installation, namespace, name, suffix)


def parse_trigger_id(workflow_id: str) -> tuple[WorkflowTarget, datetime]:
    """Read the id of a `TriggerRun` back: the AgentSchedule with its uid, and the time.

    Raises:
        ValueError: The id is not one of ours.
    """
    target = parse_workflow_id(workflow_id)
    uid, time = target.suffix[:-21], target.suffix[-20:]
    if not uid:
        raise ValueError(f"{workflow_id!r} is not <schedule>-<time>")
    return replace(target, suffix=uid), datetime.strptime(time, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


# ── The transcript ─────────────────────────────────────────────────────────────────────────────────────────────────


class Wire(BaseModel):
    """Base of everything that crosses Temporal. `None` is left out of the JSON."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class TextPart(Wire):
    """Something said."""

    type: Literal["text"] = "text"
    text: str


class ToolCallPart(Wire):
    """One request of the model to run a tool."""

    type: Literal["toolCall"] = "toolCall"
    call_id: str
    """Ours, unique in the run: models repeat theirs, or send none."""
    tool: str
    arguments: str
    """The arguments as the model wrote them: JSON if all is well."""


class ToolResultPart(Wire):
    """What a tool call came to."""

    type: Literal["toolResult"] = "toolResult"
    call_id: str
    tool: str
    output: str
    is_error: bool | None = None


class OpaquePart(Wire):
    """Something of a provider's own, such as signed thinking: returned verbatim, and only to that provider and model."""

    type: Literal["opaque"] = "opaque"
    provider: str
    model: str
    """The model's name at the provider."""
    data: str
    """JSON, as it came."""


Part = Annotated[TextPart | ToolCallPart | ToolResultPart | OpaquePart, Field(discriminator="type")]


class Message(Wire):
    """One entry of a thread. All tool results of a turn are one message, in call order."""

    role: Literal["user", "assistant", "tool"]
    parts: list[Part]
    sender: str | None = None
    """Name of the agent that said it, or called the tools; absent: the user."""

    def text(self) -> str:
        """Return the text parts, joined by newlines."""
        return "\n".join(part.text for part in self.parts if isinstance(part, TextPart))

    def tool_calls(self) -> list[ToolCallPart]:
        """Return the tool calls, in the model's order."""
        return [part for part in self.parts if isinstance(part, ToolCallPart)]


EMPTY_DIGEST = ""
"""Digest of a thread with no messages."""


def extend_digest(digest: str, message: Message) -> str:
    """Return the running SHA-256 (hex) of a thread after one more message.

    Two threads with the same digest have said the same words, so a cached prefix may be sent only if its digest is the
    one the workflow names.
    """
    running = hashlib.sha256(digest.encode())
    running.update(message.model_dump_json(exclude_none=True).encode())
    return running.hexdigest()


# ── The snapshot ───────────────────────────────────────────────────────────────────────────────────────────────────


class SecretKey(Wire):
    """A Secret's key, by name."""

    name: str
    key: str


class IdentitySnapshot(Wire):
    """The pod's own identity, exchanged at the provider for a token."""

    audience: str
    """The audience of the projected token; its file is `token` in the folder `identity_folder` names."""
    parameters: dict[str, str]
    """What else the exchange asks for: `identityProviderID` and `serviceAccountID`, or `federationRuleID` and
    `organizationID`."""


class ModelSnapshot(Wire):
    """An AgentModel as it was when the run started."""

    name: str
    uid: str
    generation: int
    provider: Literal["OpenAI", "AzureOpenAI", "Anthropic", "Bedrock"]
    model: str
    """Its name at the provider; by this it is priced."""
    base_url: str | None = None
    """Root of the API, AzureOpenAI's endpoint included; absent: the provider's own."""
    api_key: SecretKey | None = None
    identity: IdentitySnapshot | None = None
    api_version: str | None = None
    """AzureOpenAI only, as `deployment`."""
    deployment: str | None = None
    region: str | None = None
    """Bedrock only."""
    temperature: str | None = None
    max_output_tokens: int | None = None


class ApprovalPolicy(Wire):
    """When a human decides first. Agents, pools and authors of tools may each have one; see `dalang_worker.approvals`."""

    when: str | None = None
    """CEL; absent: always."""
    question: str | None = None
    timeout_seconds: float | None = None
    on_timeout: Literal["Reject", "Approve", "Fail"] = "Reject"


class ApprovalFloor(ApprovalPolicy):
    """A policy of the pool, for tools whose names match one of the patterns."""

    tools: list[str]


class McpBinding(Wire):
    """Tools of an MCP server of the pool."""

    server: str
    tools: list[str] | None = None
    """Absent: all the server has."""


class ToolBinding(Wire):
    """A tool an agent offers its model, and what is behind it: exactly one of `function`, `mcp` and `agent`."""

    name: str
    function: str | None = None
    mcp: McpBinding | None = None
    agent: str | None = None
    approval: ApprovalPolicy | None = None


class HandoffBinding(Wire):
    """An agent to whom the conversation may be handed over."""

    agent: str
    description: str | None = None
    """When to, as the model is told; absent: the agent's own description."""

    @property
    def tool(self) -> str:
        """Name of the tool the model sees: names of objects may hold dots, those of tools may not."""
        return f"transfer_to_{self.agent.replace('-', '_').replace('.', '_')}"[:64]


class ToolChoice(Wire):
    """Whether the model calls tools."""

    mode: Literal["Auto", "None", "Required", "Tool"]
    tool: str | None = None


class RetrySettings(Wire):
    """How an agent's model calls are tried again; absent: the default."""

    timeout_seconds: float | None = None
    maximum_attempts: int | None = None
    initial_seconds: float | None = None
    maximum_seconds: float | None = None


class LimitSettings(Wire):
    """Where a conversation ends at the latest."""

    max_turns: int | None = None
    max_tokens: int | None = None
    max_cost_usd: str | None = None
    timeout_seconds: float | None = None


class AgentSnapshot(Wire):
    """An Agent as it was when the run started."""

    name: str
    uid: str
    generation: int
    queue: str
    """Task queue of its pool."""
    model: str
    """Name of its ModelSnapshot."""
    fallbacks: list[str] | None = None
    """Names of the ModelSnapshots to call instead, in order."""
    description: str | None = None
    instructions: str | None = None
    """A template; see `dalang_api.templates`."""
    instructions_function: str | None = None
    """Name of the function that returns the instructions instead."""
    tools: list[ToolBinding] = []
    handoffs: list[HandoffBinding] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    retriever: str | None = None
    output_schema: dict[str, Any] | None = None
    output_approval: ApprovalPolicy | None = None
    temperature: str | None = None
    """The agent's own; it wins over the model's, as `max_output_tokens` does."""
    max_output_tokens: int | None = None
    retry: RetrySettings | None = None
    limits: LimitSettings | None = None
    """The agent's own: they hold where it is called as a tool. Those of the run stand in its input."""

    def models(self) -> list[str]:
        """Return the names of its models, in the order in which they are called."""
        return [self.model, *(self.fallbacks or [])]

    def reads_context(self) -> bool:
        """Return whether its instructions or approvals may depend on context variables, so that a call has to carry them."""
        policies = [self.output_approval, *(tool.approval for tool in self.tools)]
        return (
            self.instructions_function is not None
            or "{" in (self.instructions or "")
            or any("context" in (policy.when or "") for policy in policies if policy is not None)
        )


class Snapshot(Wire):
    """Every agent and model a run can reach, resolved at its start."""

    agents: list[AgentSnapshot]
    models: list[ModelSnapshot]

    def agent(self, name: str) -> AgentSnapshot:
        """Return the agent of that name; it is there, since the controller resolved it."""
        return next(agent for agent in self.agents if agent.name == name)

    def model(self, name: str) -> ModelSnapshot:
        """Return the model of that name; it is there, since the controller resolved it."""
        return next(model for model in self.models if model.name == name)

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the snapshot, under which workers cache it."""
        return hashlib.sha256(self.model_dump_json(exclude_none=True).encode()).hexdigest()


# ── The run workflow ───────────────────────────────────────────────────────────────────────────────────────────────


class RunIdentity(Wire):
    """An AgentRun. Where a workflow is that of its session, its id does not name the run."""

    name: str
    uid: str


class RunInput(Wire):
    """Input of the workflow `AgentRun`. Namespace, name and uid stand in the workflow's id."""

    agent: str
    """Name of the agent that begins."""
    messages: list[Message]
    max_turns: int
    timeout_seconds: float
    snapshot: Snapshot
    max_tokens: int | None = None
    max_cost_usd: str | None = None
    context: dict[str, Any] | None = None
    """Context variables, as JSON values."""


class ModelCall(Wire):
    """Input of the activity `model`: one model call. The transcript is never in it, only what the worker may not have."""

    agent: str
    snapshot: str
    """Digest of the run's snapshot; a worker that does not have it asks by query."""
    thread: str
    turn: int
    """Number of the model call in the run, from 1."""
    count: int
    """Messages of the thread before `tail`."""
    digest: str
    """Running digest of those messages."""
    tail: list[Message] | None = None
    """The messages after them; absent when they are too long: then `count` and `digest` cover all."""
    model: str | None = None
    """Name of the ModelSnapshot to call; absent: the agent's first."""
    context: dict[str, Any] | None = None
    """The context variables, where the agent's instructions or approvals may read them."""
    max_output_tokens: int | None = None
    """What is left of a token budget: the most this call may answer."""
    max_cost_usd: str | None = None
    """What is left of a cost budget: a model without a known price must not be called, and no answer may cost more."""
    has_next: bool | None = None
    """Another model comes next, so a long wait that the endpoint asks for is not worth it."""
    run: RunIdentity | None = None
    """The run, where it is an exchange of a session; absent: the one that the workflow's id names."""


class AgentCall(Wire):
    """A call of another agent as a tool."""

    agent: str
    message: str
    """What it is told: the first message of its thread."""


class ApprovalTarget(Wire):
    """What a call that a human judges would run, as its AgentApproval shows it."""

    kind: Literal["Function", "MCP", "Agent", "Handoff"]
    name: str
    server: str | None = None

    @property
    def words(self) -> str:
        """What it is, as people are told: `function pay`, `pay of MCP server shop`."""
        match self.kind:
            case "Function":
                return f"function {self.name}"
            case "MCP":
                return f"{self.name} of MCP server {self.server}"
            case "Agent":
                return f"agent {self.name}"
            case "Handoff":
                return f"hand-off to {self.name}"


class ApprovalNeeded(Wire):
    """What the model activity found: a human has to decide about a call, or about the answer."""

    question: str
    arguments: str
    """Canonical JSON (RFC 8785) of the arguments or the answer."""
    digest: str
    """`sha256:` and the SHA-256 of tool, arguments and the tool's schema; see `dalang_worker.approvals`."""
    target: ApprovalTarget | None = None
    """None for an answer, and of a worker from before there was this."""
    timeout_seconds: float | None = None
    on_timeout: Literal["Reject", "Approve", "Fail"] = "Reject"


class CallVerdict(Wire):
    """What the model activity found about one tool call of the reply. All that the workflow may decide by.

    At most one of `function`, `agent` and `handoff` is set; none where the call cannot be run.
    """

    call_id: str
    function: str | None = None
    """The Python function to run or, with `server`, the MCP server's tool."""
    server: str | None = None
    """The MCP server."""
    agent: AgentCall | None = None
    handoff: str | None = None
    """The agent to hand the conversation over to."""
    error: str | None = None
    """What the model is told instead: no such tool, arguments that do not fit."""
    once: bool | None = None
    """A lost worker must not run it again: the model is told that its outcome is unknown."""
    reads_context: bool | None = None
    """The function takes the context variables, so its call has to carry them."""
    approval: ApprovalNeeded | None = None
    """A human has to approve the call before it is made."""


class Failure(Wire):
    """Why a run ends otherwise than with an answer."""

    reason: str
    """One of `dalang_api.v1alpha1.conditions.Reason`."""
    message: str


class ModelReply(Wire):
    """Result of the activity `model`."""

    message: Message
    failure: Failure | None = None
    """Set where the model stopped for good without an answer, such as at its output limit; what it said is kept."""
    calls: list[CallVerdict] | None = None
    """One for each tool call of the message, in order."""
    input_tokens: int = 0
    """Tokens sent, those read from or written to the provider's cache included, and those of embeddings."""
    output_tokens: int = 0
    cost_usd: str | None = None
    """What the call cost, a decimal; absent where the price is not known."""
    call_again: bool | None = None
    """The model paused: it goes on when it is called again with what it said."""
    structured_output: dict[str, Any] | None = None
    """The answer as an object, checked against the agent's schema."""
    correction: str | None = None
    """The answer does not fit the agent's schema: what the model is told, to answer again."""
    approval: ApprovalNeeded | None = None
    """A human has to approve the answer before it counts."""
    retrieval_failure: str | None = None
    """Why nothing could be looked up; the call was made without."""
    tools_failure: str | None = None
    """Which of the agent's tools the model could not be offered, and why; the call was made without."""
    judged: bool | None = None
    """What needs approval has been looked for. Absent: a worker from before there were approvals made the reply."""


class ToolCall(Wire):
    """Input of the activities `tool` and `mcp`: one tool call."""

    call_id: str
    tool: str
    """Name as the model sees it."""
    function: str
    """The Python function, or the MCP server's tool."""
    arguments: str
    thread: str
    turn: int
    index: int
    """Place of the call in its turn, from 0."""
    server: str | None = None
    """The MCP server; absent: a Python function."""
    agent: str | None = None
    """Name of the agent that calls."""
    once: bool | None = None
    context: dict[str, Any] | None = None
    """The context variables, where the function takes them."""
    approved_digest: str | None = None
    """What a human approved: a tool whose schema has changed since has another digest, and must not be run."""
    approved_arguments: str | None = None
    """The arguments that the digest covers, where a human approved the call with others; absent: `arguments`."""
    run: RunIdentity | None = None
    """As in `ModelCall`."""


def idempotency_key(run_uid: str, call: ToolCall) -> str:
    """Return the key under which a tool may recognise a call made twice: SHA-256 (hex) of run, place and arguments.

    Not of the model's call ids, which repeat, nor of the attempt or Temporal's run id, which change (finding 9).
    """
    parts = (run_uid, call.thread, str(call.turn), str(call.index), call.tool, call.arguments)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class ToolOutcome(Wire):
    """Result of the activities `tool` and `mcp`. A tool that raised is an outcome too: the model is told."""

    output: str
    is_error: bool | None = None
    context: dict[str, Any] | None = None
    """Context variables to set; merged into those there are."""
    handoff: str | None = None
    """The agent to whom the tool hands the conversation over."""
    ask_again: ApprovalNeeded | None = None
    """The tool was not run, since it is not what was approved any more: a human has to decide about this."""
    not_run: bool | None = None
    """The tool was certainly not run; `output` says why."""
    not_run_because: str | None = None
    """Why it was not, for people, where `output` also says what the model may do about it."""


class Retrying(Wire):
    """Signal `retrying`: an activity of the run fails and is tried again."""

    reason: str
    message: str
    thread: str = "main"
    run: RunIdentity | None = None
    """As in `ModelCall`: a session may have gone on to another run by now."""


class TranscriptRequest(Wire):
    """Query `transcript`: `count` messages of a thread, from `start` on."""

    thread: str
    start: int
    count: int


class TranscriptPage(Wire):
    """Answer: as many of them as fit a page; ask again for the rest."""

    messages: list[Message]


# ── Approvals ──────────────────────────────────────────────────────────────────────────────────────────────────────


def approval_name(run: str, run_uid: str, place: str) -> str:
    """Return the name of an AgentApproval: the run's and a digest of its uid and the place of what is asked.

    Not of tool and arguments: the same call made twice is asked twice (finding 4). `place` is thread, turn, call and how
    often it was asked.
    """
    return f"{run}-{hashlib.sha256(f'{run_uid}/{place}'.encode()).hexdigest()[:10]}"


class ApprovalRequest(Wire):
    """Something that waits for a human, as the reporter makes an AgentApproval of it."""

    name: str
    subject: Literal["ToolCall", "Output"]
    agent: str
    tool: str | None = None
    target: ApprovalTarget | None = None
    question: str
    arguments: str
    digest: str
    requested_at: str
    """RFC 3339, UTC, whole seconds; likewise `expires_at`."""
    expires_at: str | None = None


class ApprovalEnd(Wire):
    """What came of an approval, as the workflow says."""

    name: str
    uid: str | None = None
    """Of the AgentApproval, if the workflow ever learned it."""
    tool: str | None = None
    target: ApprovalTarget | None = None
    state: Literal["Applied", "Expired", "Superseded"]
    decision: Literal["Approve", "Reject"] | None = None
    decided_by: str | None = None
    note: str | None = None
    """What `state` alone does not tell, a sentence without its full stop; at most `APPROVAL_NOTE_MAX_CHARS`."""


class AnswerCheck(Wire):
    """Input of the activity `checkAnswer`: an answer as an approver changed it. Its result is what is wrong, or null."""

    output_schema: dict[str, Any]
    answer: dict[str, Any]


class ReportResult(Wire):
    """Result of the activity `report`: the uid of the AgentApproval of each pending request, by name."""

    approvals: dict[str, str] | None = None
    gone: bool | None = None
    """Nobody waits for the AgentRun any more: it was deleted or, though its session goes on with it, ended by the controller."""


class Decision(Wire):
    """Signal `decide`: what a human decided. Repeated it changes nothing; the workflow decides who was first."""

    run_uid: str
    name: str
    """Of the AgentApproval; `uid` is its uid, so that one made anew needs a new decision."""
    uid: str
    digest: str
    decision: Literal["Approve", "Reject"]
    reason: str | None = None
    override: dict[str, Any] | None = None
    decided_by: str | None = None


# ── Reports ────────────────────────────────────────────────────────────────────────────────────────────────────────


class AgentVersion(Wire):
    """Which version of an agent a run uses."""

    name: str
    uid: str
    generation: int
    pool: str | None = None


class RecentMessage(Wire):
    """One of the last messages, cut for the status."""

    role: Literal["User", "Assistant", "Tool"]
    content: str
    sender: str | None = None


class RunReport(Wire):
    """Input of the activity `report`, and the workflow's result: the **whole** state of a run, not a change.

    So a later report replaces an earlier one, and a lost one loses nothing.
    """

    seq: int
    """Rises by one with each report; a status never goes back to a lower one."""
    run_id: str
    """Temporal's id of the execution."""
    task_queue: str
    phase: Literal["Running", "AwaitingApproval", "Succeeded", "Failed", "Cancelled"]
    reason: str
    message: str
    agent: str
    agents: list[AgentVersion]
    started_at: str
    """RFC 3339, UTC, whole seconds; likewise `finished_at`."""
    finished_at: str | None = None
    output: str | None = None
    output_truncated: bool | None = None
    messages: list[RecentMessage] = []
    turns: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: str | None = None
    """Absent where the price of any call is not known."""
    structured_output: dict[str, Any] | None = None
    context: dict[str, str] | None = None
    """The context variables, as `context_text` writes them."""
    retrieval_failure: str | None = None
    """Whose last retrieval failed, and why."""
    pending_approvals: list[ApprovalRequest] | None = None
    ended_approvals: list[ApprovalEnd] | None = None
    """The last that were decided, expired or superseded."""
    tools_failure: str | None = None
    """Whose model could not be offered all its tools at its last call, and why."""
    run: RunIdentity | None = None
    """The run, where it is an exchange of a session."""
    session: "SessionReport | None" = None
    """The state of the session it is an exchange of."""


class SessionReport(Wire):
    """The **whole** state of a session: input of `reportSession`, and part of the reports of its runs."""

    seq: int
    """Rises by one with each report of the session or of one of its runs."""
    run_id: str
    """Temporal's id of the execution."""
    task_queue: str
    agent: str
    """Who holds the conversation."""
    started_at: str
    """RFC 3339, UTC, whole seconds; likewise `closed_at`."""
    runs: int = 0
    """Runs that have ended."""
    queued_runs: int = 0
    last_run: "LastRun | None" = None
    messages: list[RecentMessage] = []
    summary: str | None = None
    summary_problem: str | None = None
    """Why the last try to write a summary failed; a sentence without its full stop, at most `APPROVAL_NOTE_MAX_CHARS`."""
    context: dict[str, str] | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: str | None = None
    """Absent where the price of any call is not known."""
    closed_at: str | None = None
    closed_message: str | None = None
    """Why it closed, for people."""


class LastRun(Wire):
    """The run of a session that ended last."""

    name: str
    phase: Literal["Succeeded", "Failed", "Cancelled"]
    finished_at: str


# ── The session workflow ───────────────────────────────────────────────────────────────────────────────────────────


class SessionSettings(Wire):
    """What of an AgentSession's spec may change. Signal `configure`; it counts from the next run on, `closed` at once."""

    history_size: int = DEFAULT_HISTORY_SIZE
    summary_enabled: bool = True
    summary_model: str | None = None
    """Name of the ModelSnapshot that summarises; absent: the one of the session's agent."""
    idle_timeout_seconds: float | None = None
    closed: str | None = None
    """Set to end the session after the run that is under way: why, for people."""


class Exchange(Wire):
    """Signal `exchange`: an AgentRun of the session. They are carried out in the order in which they were sent."""

    run: RunIdentity
    agent: str
    """Name of the session's agent, with whom the conversation goes on if the one that holds it is not in the snapshot any more."""
    messages: list[Message]
    max_turns: int
    timeout_seconds: float
    snapshot_digest: str
    snapshot: Snapshot | None = None
    """Absent where the run before was sent with the same one: a session keeps the last."""
    max_tokens: int | None = None
    max_cost_usd: str | None = None
    context: dict[str, Any] | None = None
    queued: bool | None = None
    """Its status says `Queued`, so its begin has to be reported."""


class CancelExchange(Wire):
    """Signal `cancelExchange`: a run was cancelled or deleted; the conversation stays as it was before it.

    It may be queued, under way, or not have been sent yet.
    """

    run: RunIdentity
    deleted: bool | None = None
    """Nobody waits for a report."""


class SessionState(Wire):
    """What a session carries when it continues as new."""

    started_at: str
    seq: int
    threads: int
    """How many threads there were: no two have the same name."""
    messages: list[Message]
    queue: list[Exchange]
    """Without snapshots; those stand beside, once each."""
    snapshots: dict[str, Snapshot]
    """By the digest under which they were sent."""
    seen: list[str]
    """Uids of the last runs that were sent, the newest last."""
    runs: int
    input_tokens: int
    output_tokens: int
    cost_usd: str
    is_priced: bool
    summary: str | None = None
    summary_problem: str | None = None
    """As in `SessionReport`."""
    last_run: LastRun | None = None
    idle_since: str | None = None
    """Since when there was no run; RFC 3339. Only of executions that closed themselves after `idleTimeout`."""


class SessionInput(Wire):
    """Input of the workflow `AgentSession`. Namespace, name and uid stand in the workflow's id."""

    agent: str
    """Who holds the conversation."""
    settings: SessionSettings
    context: dict[str, Any] | None = None
    state: SessionState | None = None
    """Absent at the session's start."""


class SummaryCall(Wire):
    """Input of the activity `summarise`: the first `count` messages of a thread, in at most `SUMMARY_MAX_CHARS`.

    The first message may be an earlier summary.
    """

    snapshot: str
    """Digest of the snapshot, as in `ModelCall`; likewise `thread`, `count` and `digest`."""
    model: str
    """Name of the ModelSnapshot."""
    thread: str
    count: int
    digest: str
    run: RunIdentity
    max_cost_usd: str | None = None
    """What is left of a cost budget: a model without a known price must not be called."""


class SummaryReply(Wire):
    """Result of the activity `summarise`."""

    summary: str
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: str | None = None


# ── Schedules ──────────────────────────────────────────────────────────────────────────────────────────────────────


class CreatedRun(Wire):
    """Result of the activity `createRun`: the AgentRun that a firing waits for; without one it ends, or fails with the problem."""

    run: RunIdentity | None = None
    problem: str | None = None


class RunEnded(Wire):
    """Signal `runEnded`: what became of the AgentRun of a firing. Repeated it changes nothing."""

    run_uid: str
    phase: Literal["Succeeded", "Failed", "Cancelled", "Deleted"]
    message: str = ""


# ── Context variables ──────────────────────────────────────────────────────────────────────────────────────────────


def context_value(text: str) -> Any:
    """Return the value of a context variable as a manifest writes it: JSON where it is JSON, else the text itself."""
    try:
        return from_json(text, allow_inf_nan=False)  # refuses half characters and endless nesting, too
    except ValueError:
        return text


def context_text(value: Any) -> str:
    """Return a context variable as the status writes it, so that `context_value` gives the same value back."""
    if isinstance(value, str) and context_value(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def context_problem(context: dict[str, Any]) -> str | None:
    """Return why these context variables are too much, or None where they are not."""
    texts = {name: context_text(value) for name, value in context.items()}
    if len(texts) > CONTEXT_MAX_VARIABLES:
        return f"{len(texts)} variables, {CONTEXT_MAX_VARIABLES} are allowed"
    if long := [name for name, text in texts.items() if len(text) > CONTEXT_VALUE_MAX_CHARS]:
        return f"{long[0]} is longer than {CONTEXT_VALUE_MAX_CHARS} characters"
    size = sum(len(name.encode()) + len(text.encode()) for name, text in texts.items())
    return f"{size} bytes, {CONTEXT_MAX_BYTES} are allowed" if size > CONTEXT_MAX_BYTES else None


# ── The catalogue ──────────────────────────────────────────────────────────────────────────────────────────────────


class CatalogueTool(Wire):
    """A function a worker registered."""

    name: str
    digest: str


class ImportFailure(Wire):
    """A tool module that could not be imported."""

    module: str
    error: str
    """The traceback's last line."""


class Catalogue(Wire):
    """Input of the workflow `PublishTools` and its activity: what a worker can do. Pool and build stand in the id."""

    tools: list[CatalogueTool]
    failures: list[ImportFailure] = []
    instructions: list[str] | None = None
    """Names of the instruction functions."""
    secret_keys: list[str] | None = None
    """The keys of mounted Secrets that the worker can read, as `secret/key`; never a value."""


# ── What a pool's pods are given ───────────────────────────────────────────────────────────────────────────────────
# As JSON in the environment of the pool's Deployment: what a worker may reach is the pool's to say, not a run's.


class NamedValue(Wire):
    """A header or an environment variable: a value, or a Secret's key."""

    name: str
    value: str | None = None
    secret: SecretKey | None = None


class McpServerSettings(Wire):
    """An MCP server of the pool."""

    name: str
    transport: Literal["streamableHTTP", "sse", "stdio"]
    url: str | None = None
    headers: list[NamedValue] = []
    bearer_token: SecretKey | None = None
    command: str | None = None
    args: list[str] = []
    env: list[NamedValue] = []


class RetrieverSettings(Wire):
    """A retriever of the pool."""

    name: str
    url: str | None = None
    path: str | None = None
    collection: str
    limit: int
    api_key: SecretKey | None = None
    embedding_model: str
    """Name of the ModelSnapshot whose endpoint makes the vectors; it is in each run's snapshot."""
    embedding_name: str | None = None
    """The embedding model's name there; absent: the ModelSnapshot's own."""


IDENTITY_PATH = "/var/run/dalang/identity"
"""Where a pod's projected tokens are mounted, each in a folder named by `identity_folder`."""


def identity_folder(audience: str) -> str:
    """Return the name of the folder, and of the volume, that holds the token of an audience."""
    return f"identity-{hashlib.sha256(audience.encode()).hexdigest()[:16]}"

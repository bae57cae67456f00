"""What crosses Temporal between operator and worker: names, sizes, and one type per message.

These types are persisted in histories that wait for days, so they change by adding optional fields only. Nothing here is
an SDK's object, and nothing holds a Secret's value: keys travel as references and are read on the worker.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# ── Sizes ──────────────────────────────────────────────────────────────────────────────────────────────────────────
# Temporal refuses payloads over 2 MiB and retries the workflow task for ever, so each part is
# bounded well below that where it is made.

MESSAGE_MAX_BYTES = 32 * 1024
"""The most one message of the model keeps; longer text is cut, with a mark."""
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

TURN_MAX_CALLS = 32
"""The most tool calls of one turn that are run; the model is told of the others."""

DEFAULT_MAX_TURNS = 20
DEFAULT_TIMEOUT_SECONDS = 3600.0

# ── Names ──────────────────────────────────────────────────────────────────────────────────────────────────────────

RUN_WORKFLOW = "AgentRun"
PUBLISH_TOOLS_WORKFLOW = "PublishTools"
MODEL_ACTIVITY = "model"
TOOL_ACTIVITY = "tool"
REPORT_ACTIVITY = "report"
CATALOGUE_ACTIVITY = "publishCatalogue"
TRANSCRIPT_QUERY = "transcript"
SNAPSHOT_QUERY = "snapshot"
RETRYING_SIGNAL = "retrying"
REPORT_AGAIN_SIGNAL = "reportAgain"


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


def catalogue_workflow_id(installation: str, namespace: str, pool: str, build: str) -> str:
    """Workflow id of a pool's `PublishTools`."""
    return f"{installation}.{namespace}.{pool}.{build}"


@dataclass(frozen=True)
class WorkflowTarget:
    """The object a workflow id names: of a run with its uid, of a pool with its build."""

    installation: str
    namespace: str
    name: str
    suffix: str
    """The run's uid, or the pool's build."""


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


Part = Annotated[TextPart | ToolCallPart | ToolResultPart, Field(discriminator="type")]


class Message(Wire):
    """One entry of a thread. All tool results of a turn are one message, in call order."""

    role: Literal["user", "assistant", "tool"]
    parts: list[Part]
    sender: str | None = None
    """Name of the agent that said it."""

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


class ModelSnapshot(Wire):
    """An AgentModel as it was when the run started."""

    name: str
    uid: str
    generation: int
    provider: Literal["OpenAI"]
    model: str
    base_url: str | None = None
    api_key: SecretKey | None = None


class ToolBinding(Wire):
    """A tool an agent offers its model, and the Python function behind it."""

    name: str
    function: str


class AgentSnapshot(Wire):
    """An Agent as it was when the run started, with the model's parameters merged in."""

    name: str
    uid: str
    generation: int
    queue: str
    """Task queue of its pool."""
    model: str
    """Name of its ModelSnapshot."""
    instructions: str | None = None
    tools: list[ToolBinding] = []
    temperature: str | None = None
    max_output_tokens: int | None = None


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


class RunInput(Wire):
    """Input of the workflow `AgentRun`. Namespace, name and uid stand in the workflow's id."""

    agent: str
    """Name of the agent that begins."""
    messages: list[Message]
    max_turns: int
    timeout_seconds: float
    snapshot: Snapshot


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


class CallVerdict(Wire):
    """What the model activity found about one tool call of the reply. All that the workflow may decide by."""

    call_id: str
    function: str | None = None
    """The function to run; absent when the call cannot be run."""
    error: str | None = None
    """What the model is told instead: no such tool, arguments that do not fit."""


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
    output_tokens: int = 0


class ToolCall(Wire):
    """Input of the activity `tool`: one tool call."""

    call_id: str
    tool: str
    function: str
    arguments: str
    thread: str
    turn: int
    index: int
    """Place of the call in its turn, from 0."""


class ToolOutcome(Wire):
    """Result of the activity `tool`. A tool that raised is an outcome too: the model is told."""

    output: str
    is_error: bool | None = None


class Retrying(Wire):
    """Signal `retrying`: an activity of the run fails and is tried again."""

    reason: str
    message: str


class TranscriptRequest(Wire):
    """Query `transcript`: `count` messages of a thread, from `start` on."""

    thread: str
    start: int
    count: int


class TranscriptPage(Wire):
    """Answer: as many of them as fit a page; ask again for the rest."""

    messages: list[Message]


# ── Reports ────────────────────────────────────────────────────────────────────────────────────────────────────────


class AgentVersion(Wire):
    """Which version of an agent a run uses."""

    name: str
    uid: str
    generation: int


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
    phase: Literal["Running", "Succeeded", "Failed", "Cancelled"]
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

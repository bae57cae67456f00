"""Condition types and reasons: the strings users see and scripts match. Renaming one is a breaking change.

Each condition has one writer at a time. On an AgentRun the controller writes them until the workflow's first report
(`status.workflow.reportSeq` > 0), the reporter from then on; nobody writes after `status.finishedAt`.
"""

from enum import StrEnum


class ConditionType(StrEnum):
    """What a condition is about."""

    READY = "Ready"
    """The object is usable; on an AgentRun: it has succeeded. The one that kstatus, Flux and Argo CD read."""
    SUCCEEDED = "Succeeded"
    """AgentRun: True when it answered, False when it ended otherwise, Unknown until it ends."""
    STALLED = "Stalled"
    """AgentRun, AgentSession, AgentSchedule: it will not get further by itself; the reason says why. kstatus reads it as Failed."""
    TOOLS_LOADED = "ToolsLoaded"
    """AgentPool: the pool's tool modules could be imported. Written by the reporter from what a worker published."""
    PROVEN = "Proven"
    """AgentApproval: whether admission proves who decided; without that no Approve is delivered."""
    RETRIEVED = "Retrieved"
    """AgentRun: False where an agent's last retrieval failed; the run goes on without documents. Absent otherwise."""
    TOOLS_AVAILABLE = "ToolsAvailable"
    """AgentRun: False where an agent's model could not be offered all its tools at its last call. Absent otherwise."""
    SUMMARISED = "Summarised"
    """AgentSession: False where the last summary could not be written; `Ready` says what that means. Absent otherwise."""


class Phase(StrEnum):
    """AgentRun's one-word state for columns. Scripts read conditions instead."""

    PENDING = "Pending"
    RUNNING = "Running"
    AWAITING_APPROVAL = "AwaitingApproval"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class Reason(StrEnum):
    """Why a condition has its status."""

    @classmethod
    def parse(cls, text: str | None) -> "Reason | None":
        """Return the reason of that name, or None where there is none."""
        return next((reason for reason in cls if reason == text), None)

    PENDING = "Pending"
    """Any, by schema default: the controller has not looked at the object yet."""

    # AgentModel, Agent, AgentPool: Ready
    ACCEPTED = "Accepted"
    """AgentModel Ready=True: the definition is usable. Whether key and endpoint are right only a call can tell."""
    RESOLVED = "Resolved"
    """Agent Ready=True: everything the agent names exists, and what the agents it reaches name."""
    MODEL_NOT_FOUND = "ModelNotFound"
    """Agent Ready=False, AgentRun Succeeded=Unknown: no AgentModel of that name. Apply it; what waits goes on."""
    POOL_NOT_FOUND = "PoolNotFound"
    """Agent Ready=False, AgentRun Succeeded=Unknown: no AgentPool of that name (only `default` is made by itself). AgentSession
    Ready=False: the one it began in is gone; apply it again."""
    TOOL_NOT_FOUND = "ToolNotFound"
    """Agent Ready=False: the pool's modules register no function, or instruction function, of that name."""
    SERVER_NOT_FOUND = "ServerNotFound"
    """Agent Ready=False, AgentRun Succeeded=Unknown: the pool has no MCP server of that name in `mcpServers`."""
    RETRIEVER_NOT_FOUND = "RetrieverNotFound"
    """Agent Ready=False, AgentRun Succeeded=Unknown: the pool has no retriever of that name in `retrievers`."""
    CATALOGUE_UNKNOWN = "CatalogueUnknown"
    """Agent Ready=Unknown: no worker of the pool's present build has told its tools yet. Runs start all the same."""
    AVAILABLE = "Available"
    """AgentPool Ready=True: a worker is ready."""
    SCALED_TO_ZERO = "ScaledToZero"
    """AgentPool Ready=True: nothing to do, no worker; the next run starts one."""
    SCALING = "Scaling"
    """AgentPool Ready=False: workers are wanted and none is ready yet."""
    NAME_CONFLICT = "NameConflict"
    """AgentPool Ready=False: a Deployment of the pool's name belongs to somebody else. Rename the pool or delete it. AgentRun
    Succeeded=Unknown: an AgentApproval that it did not ask for has the name of one it asks for; delete that object."""
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
    """AgentPool Ready=False: a ConfigMap in `toolsFrom` does not exist. Agent Ready=False, AgentRun Succeeded=Unknown: the
    one in `instructionsFrom` does not, or has not the key. Apply it; what waits goes on."""
    DEPLOYMENT_FAILED = "DeploymentFailed"
    """AgentPool Ready=False: the API server refused the Deployment; the message repeats what it said."""

    # AgentPool: ToolsLoaded
    LOADED = "Loaded"
    """AgentPool ToolsLoaded=True: every module was imported."""
    IMPORT_FAILED = "ImportFailed"
    """AgentPool ToolsLoaded=False: the message has the module and the traceback's last line. Mend it and apply."""

    # AgentRun: before and while it runs
    AGENT_NOT_FOUND = "AgentNotFound"
    """Agent Ready=False, AgentRun Succeeded=Unknown: no Agent of that name. What waits for it goes on when it appears."""
    INVALID_SPEC = "InvalidSpec"
    """Agent Ready=False: instructions that are no template, a schema that is none, tools that do not fit together. AgentRun
    Succeeded=Unknown: it can reach such an Agent, and starts when that is mended; Succeeded=False: the snapshot would be too
    large. AgentPool Ready=False: `mcpServers` or `retrievers` are too large."""
    QUEUED = "Queued"
    """AgentRun Succeeded=Unknown: runs of its session that came before it have to end first."""
    SESSION_NOT_FOUND = "SessionNotFound"
    """AgentRun Succeeded=Unknown: no AgentSession of that name. The run starts when it is applied."""
    SESSION_CLOSED = "SessionClosed"
    """AgentRun Succeeded=False: its session was closed, or deleted, before its turn came."""
    SESSION_LOST = "SessionLost"
    """AgentSession Ready=False, Stalled=True: it had a workflow and Temporal has none (retention, another server, terminated by
    hand). It is never begun anew by itself: what was said is gone. AgentRun Succeeded=False: its session is lost."""
    START_FAILED = "StartFailed"
    """AgentRun Succeeded=Unknown: Temporal could not be reached or refused the start; it is tried again."""
    RUNNING = "Running"
    """AgentRun Succeeded=Unknown: the workflow runs."""
    AWAITING_APPROVAL = "AwaitingApproval"
    """AgentRun Succeeded=Unknown: a human has to decide; `status.pendingApprovals` names the AgentApprovals."""
    APPROVAL_EXPIRED = "ApprovalExpired"
    """AgentRun Succeeded=False: nobody decided in time, and the approval says `onTimeout: Fail`."""
    MODEL_RETRYING = "ModelRetrying"
    """AgentRun Succeeded=Unknown: the model's endpoint fails (refused, 429, 5xx); the message has its words."""
    SECRET_NOT_FOUND = "SecretNotFound"
    """AgentRun Succeeded=Unknown: a worker does not see the Secret or its key; looked for until the run's timeout."""
    WORKER_MISSING = "WorkerMissing"
    """AgentRun Succeeded=Unknown: its pool has no worker that is ready; the message repeats what the pool says of it. While
    the run awaits approval, this is said only once there is something to act on: a decision, or a time-out."""
    WORKFLOW_TASK_FAILING = "WorkflowTaskFailing"
    """AgentRun Stalled=True: the workflow's code fails on a worker and Temporal tries it again; see the worker's log."""

    # AgentRun: ended
    ANSWERED = "Answered"
    """AgentRun Succeeded=True: the agent gave its answer."""
    CANCELLED = "Cancelled"
    """AgentRun Succeeded=False: `spec.cancel` was set, or the workflow was cancelled in Temporal."""
    TIMEOUT = "Timeout"
    """AgentRun Succeeded=False: `limits.timeout` passed; the message names what it was waiting for."""
    MAX_TURNS = "MaxTurns"
    """AgentRun Succeeded=False: `limits.maxTurns` model calls were made without an answer."""
    TOKEN_BUDGET = "TokenBudget"
    """AgentRun Succeeded=False: `limits.maxTokens` was used up; the message has the figures."""
    COST_BUDGET = "CostBudget"
    """AgentRun Succeeded=False: `limits.maxCostUSD` was used up; the message has the figures."""
    PRICE_UNKNOWN = "PriceUnknown"
    """Agent Ready=False, AgentRun Succeeded=False: `limits.maxCostUSD` is set and the price of a model is not known."""
    INVALID_INSTRUCTIONS = "InvalidInstructions"
    """AgentRun Succeeded=False: the instructions could not be rendered; the message has the template's line, or what the
    function raised."""
    INVALID_OUTPUT = "InvalidOutput"
    """AgentRun Succeeded=False: the agent's `output.schema` is no JSON schema."""
    MODEL_FAILED = "ModelFailed"
    """AgentRun Succeeded=False: the provider refused for good (401, 403, 404, quota, 400); the message has its words."""
    OUTPUT_TRUNCATED = "OutputTruncated"
    """AgentRun Succeeded=False: the model stopped at its output limit. Raise `parameters.maxOutputTokens`."""
    CONTENT_FILTER = "ContentFilter"
    """AgentRun Succeeded=False: the provider's content filter stopped the answer."""
    MODEL_REFUSED = "ModelRefused"
    """AgentRun Succeeded=False: the model declined to answer; the message has its words."""
    CONTEXT_LENGTH = "ContextLength"
    """AgentRun Succeeded=False: the conversation no longer fits the model's context."""
    RETRIEVAL_FAILED = "RetrievalFailed"
    """AgentRun Retrieved=False: the last retrieval failed; the message has the words. The run went on without."""
    TOOLS_MISSING = "ToolsMissing"
    """AgentRun ToolsAvailable=False: an MCP server is away, or has no tool of a name; the message says which and why."""
    # AgentSession: Ready
    ACTIVE = "Active"
    """AgentSession Ready=True: the conversation goes on with the next run, or is about to close, as the message says."""
    SUMMARY_FAILED = "SummaryFailed"
    """AgentSession Summarised=False: the model could not write the last summary; the message has the words."""
    CLOSED = "Closed"
    """AgentSession Ready=True: the conversation has ended, by `closed` or `idleTimeout`."""

    # AgentSchedule: Ready
    SCHEDULED = "Scheduled"
    """AgentSchedule Ready=True: Temporal has it; `status.nextRuns` has the next times."""
    SUSPENDED = "Suspended"
    """AgentSchedule Ready=True: `spec.suspend` is set."""
    PAUSED_ON_FAILURE = "PausedOnFailure"
    """AgentSchedule Ready=False, Stalled=True: a run failed and `pauseOnFailure` is set. A change of the spec goes on with it."""
    INVALID_SCHEDULE = "InvalidSchedule"
    """AgentSchedule Ready=False, Stalled=True: Temporal cannot read a time or the time zone; the message has its words. Nothing
    is scheduled."""
    INVALID_TEMPLATE = "InvalidTemplate"
    """AgentSchedule Ready=False, Stalled=True: the API server would refuse such an AgentRun; the message has its words. Nothing
    is scheduled."""
    QUOTA_EXCEEDED = "QuotaExceeded"
    """AgentSchedule Ready=False, and Event: a ResourceQuota allows no further AgentRun; those that are due are created when it does."""
    SCHEDULE_FAILED = "ScheduleFailed"
    """AgentSchedule Ready=False: Temporal could not be reached; it is tried again."""
    DRIFT_CORRECTED = "DriftCorrected"
    """Event on an AgentSchedule: its schedule was changed or deleted in Temporal, and is as it should be again."""
    BACKFILL_REFUSED = "BackfillRefused"
    """Event on an AgentSchedule: annotation `dalang.dev/backfill` was not carried out; the note says why. Write another value."""
    RUN_REFUSED = "RunRefused"
    """Event on an AgentSchedule: the API server refused the AgentRun of a time, which has none; the note has its words."""

    # AgentApproval
    DELIVERED = "Delivered"
    """AgentApproval Ready=Unknown: Temporal took the decision; the run says what came of it."""
    APPLIED = "Applied"
    """AgentApproval Ready=True: the run acted on the decision."""
    EXPIRED = "Expired"
    """AgentApproval Ready=False: nobody decided in time, or the run ended first."""
    TOO_LATE = "TooLate"
    """AgentApproval Ready=False: decided after the run had gone on without, as `onTimeout` says, or was stopped. Nothing is
    undone or done again: start another run if it is still wanted."""
    CONFLICTING = "Conflicting"
    """AgentApproval Ready=False: the run had acted on another decision already; the message has which, and whose."""
    UNKNOWN_REQUEST = "UnknownRequest"
    """AgentApproval Ready=False: the run does not ask with this object but with another of its name, or with none yet; the
    message says what to do."""
    SUPERSEDED = "Superseded"
    """AgentApproval Ready=False: the run asked anew, since the tool had changed or the override cannot be used; decide the
    new one."""
    POLICY_FOUND = "PolicyFound"
    """AgentApproval Proven=True: the admission policies are there, unaltered."""
    POLICY_MISSING = "PolicyMissing"
    """AgentApproval Proven=False: a policy or its binding is missing or altered; the message has the command that installs
    them."""
    DELETING = "Deleting"
    """AgentApproval Ready=False: it is being deleted and a finalizer keeps it, so nothing decided here is delivered; the
    message has the command that removes it. Its run asks anew once it is gone."""
    RUN_ENDED = "RunEnded"
    """AgentApproval Ready=False: the run had ended before the decision arrived."""
    HISTORY_LIMIT = "HistoryLimit"
    """AgentRun Succeeded=False: the run came near Temporal's limit of 50 MiB or 51,200 events and was ended."""
    TERMINATED = "Terminated"
    """AgentRun Succeeded=False: the workflow was terminated in Temporal, not by Dalang."""
    WORKFLOW_FAILED = "WorkflowFailed"
    """AgentRun Succeeded=False: the workflow ended in a way it should not; the message says what Temporal holds."""
    WORKFLOW_LOST = "WorkflowLost"
    """AgentRun Succeeded=False: the run had a workflow and Temporal knows nothing of it (retention, another server)."""

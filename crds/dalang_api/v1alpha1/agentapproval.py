"""AgentApproval: one tool call, or one answer, that waits for a human. The operator asks; who may, decides, once."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from dalang_api.v1alpha1.schema import (
    ANY_OBJECT,
    ApiModel,
    Conditions,
    LocalReference,
    Resource,
    Timestamp,
    immutable_except,
    pending_conditions,
    rule,
    rules,
)

_DECIDING = ["decision", "reason", "override", "decidedBy"]


class ApprovalTarget(ApiModel):
    """What a call would run."""

    kind: Literal["Function", "MCP", "Agent", "Handoff"]
    """A Python function, an MCP server's tool, an agent that is called, or one that takes the conversation over."""
    name: Annotated[str, Field(min_length=1, max_length=128)]
    """Name of the function, of the server's tool, or of the Agent."""
    server: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """The MCP server."""


class AgentApprovalSpec(ApiModel):
    """The request, which the operator makes and nobody changes, and the decision, which is made once."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.decision) || !(has(self.reason) || has(self.override) || has(self.decidedBy))",
                "reason, override and decidedBy are set together with decision",
            ),
            rule(
                "!has(oldSelf.decision) || self == oldSelf",
                "the decision is final",
                forbidden=True,
            ),
            immutable_except(_DECIDING, "the request is immutable; only decision, reason and override can be set"),
            rule(
                "!has(self.override) || !has(self.decision) || self.decision == 'Approve'",
                "override goes with decision: Approve",
                field_path=".override",
            ),
        )
    )

    subject: Literal["ToolCall", "Output"]
    """What waits: a tool call, or an agent's answer."""
    run_ref: LocalReference
    """The AgentRun that asks."""
    workflow_id: Annotated[str, Field(min_length=1, max_length=512)]
    """The run's Temporal workflow, to which the decision is sent."""
    agent: Annotated[str, Field(min_length=1, max_length=63)]
    """Name of the Agent that asks. Who holds the verb `approve` on `agents` of that name may decide."""
    tool: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """The tool to be called, by the name the model sees, which the Agent gives it; absent for an answer."""
    target: ApprovalTarget | None = None
    """What the call would run, whatever its tool is named; absent for an answer."""
    question: Annotated[str, Field(min_length=1, max_length=512)]
    """What is asked."""
    arguments: Annotated[str, Field(max_length=65536)]
    """The exact arguments or answer, as canonical JSON (RFC 8785). Never cut."""
    digest: Annotated[str, Field(min_length=1, max_length=80, pattern=r"^sha256:[0-9a-f]{64}$")]
    """SHA-256 of tool, arguments and the tool's schema: what exactly is decided about."""
    requested_at: Timestamp
    """When the run asked."""
    expires_at: Timestamp | None = None
    """When the run no longer waits. Absent: it waits for ever."""
    decision: Literal["Approve", "Reject"] | None = None
    """Approve or Reject, set once: `kubectl patch agentapproval NAME --type merge -p '{"spec":{"decision":"Approve"}}'`."""
    reason: Annotated[str, Field(max_length=4096)] | None = None
    """Why. The model is told on Reject. Only together with `decision`."""
    override: Annotated[dict[str, Any] | None, Field(json_schema_extra=ANY_OBJECT)] = None
    """Other arguments, or another answer, to go on with; the answer of an agent without `output.schema` is `{"text": "…"}`.
    Only together with `decision: Approve`; the model is told."""
    decided_by: Annotated[str, Field(max_length=256)] | None = None
    """Who decides: the name of the user who writes the decision, filled in or proved by the API server."""


class AgentApprovalStatus(ApiModel):
    """What came of the decision."""

    model_config = ConfigDict(
        json_schema_extra={
            "default": {
                "state": "Pending",
                "conditions": pending_conditions(
                    "Ready", message="Waits for a human to set spec.decision, then for the controller"
                ),
            }
        }
    )

    state: Literal["Pending", "Delivered", "Applied", "Expired", "Superseded"] = "Pending"
    """Pending: nobody has decided, or it is not delivered yet. Delivered: Temporal has the decision. Applied: the run acted
    on it. Expired: the run no longer waits, and did not act on it. Superseded: the run asked anew."""
    delivered_at: Timestamp | None = None
    """When Temporal took the decision."""
    decided_by: Annotated[str, Field(max_length=256)] | None = None
    """Who decided, as the run was told. Nobody, where nothing proves who it was."""
    conditions: Conditions = []
    """`Ready` is True once the decision was applied; its reason says how far it is, or why it was not used: `TooLate`,
    `Conflicting`, `UnknownRequest`. `Proven` tells whether admission proves who decided."""


class AgentApproval(Resource):
    """A tool call, or an answer, that waits for a human.

    The run stops before it and goes on with the decision, days later if need be. `kubectl describe` shows the arguments; who
    holds the verb `approve` on `agentapprovals`, or on `agents` with the agent's name, decides by one patch.
    """

    KIND: ClassVar[str] = "AgentApproval"
    PLURAL: ClassVar[str] = "agentapprovals"
    SHORT: ClassVar[str] = "agappr"
    NAME_MAX: ClassVar[int] = 253
    SELECTABLE: ClassVar[list[str]] = [".status.state", ".spec.decision", ".spec.runRef.name"]
    COLUMNS: ClassVar[list[dict[str, Any]]] = [
        {"name": "Run", "type": "string", "jsonPath": ".spec.runRef.name"},
        {"name": "Agent", "type": "string", "jsonPath": ".spec.agent"},
        {"name": "Tool", "type": "string", "jsonPath": ".spec.tool"},
        {"name": "State", "type": "string", "jsonPath": ".status.state"},
        {"name": "Decision", "type": "string", "jsonPath": ".spec.decision"},
        {"name": "By", "type": "string", "jsonPath": ".status.decidedBy"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        {"name": "Target", "type": "string", "jsonPath": ".spec.target.name", "priority": 1},
        {"name": "Question", "type": "string", "jsonPath": ".spec.question", "priority": 1},
    ]

    spec: AgentApprovalSpec
    """The request, and the decision."""
    status: AgentApprovalStatus | None = None
    """What came of the decision."""

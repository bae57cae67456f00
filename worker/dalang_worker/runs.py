"""Which AgentRun an activity works for: the one that its workflow's id names, or the session's exchange that the call names."""

from dataclasses import dataclass

from dalang_api import contract
from dalang_api.contract import ModelCall, SummaryCall, ToolCall
from temporalio import activity

RunKey = tuple[str, str]
"""Workflow id and Temporal's id of the execution."""


@dataclass(frozen=True)
class CallingRun:
    """The AgentRun that a call is made for."""

    workflow: RunKey
    """The run's own, or its session's."""
    namespace: str
    name: str
    uid: str
    session: str | None = None
    """Name of the AgentSession that the run is an exchange of."""

    def __str__(self) -> str:
        """Return what log lines begin with."""
        return self.workflow[0] if self.session is None else f"{self.workflow[0]}, AgentRun {self.name}"


def calling_run(call: ModelCall | ToolCall | SummaryCall, info: activity.Info) -> CallingRun:
    """Return the run that an activity's call is made for."""
    workflow = (info.workflow_id or "", info.workflow_run_id or "")
    target = contract.parse_workflow_id(workflow[0])
    if call.run is None:
        return CallingRun(workflow, target.namespace, target.name, target.suffix)
    return CallingRun(workflow, target.namespace, call.run.name, call.run.uid, session=target.name)

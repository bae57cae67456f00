"""What Temporal says of a workflow, in the operator's own words, so that plans need not know Temporal's."""

from dataclasses import dataclass
from enum import StrEnum

from dalang_api.contract import RunReport, SessionReport


class WorkflowState(StrEnum):
    """How a workflow stands, as far as the operator tells apart."""

    OPEN = "Open"
    """Running, paused, or in any state this version does not know: not ended."""
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELED = "Canceled"
    TERMINATED = "Terminated"
    TIMED_OUT = "TimedOut"
    MISSING = "Missing"
    """Temporal has nothing of that id."""

    @property
    def is_closed(self) -> bool:
        """Whether the workflow existed and has ended."""
        return self not in {WorkflowState.OPEN, WorkflowState.MISSING}


@dataclass(frozen=True)
class WorkflowView:
    """What Temporal says of one workflow."""

    state: WorkflowState
    run_id: str = ""
    message: str = ""
    """Of one that has ended: why, in Temporal's words; may be empty."""
    report: RunReport | None = None
    """Of one that has ended: its last report, where it left one."""
    session: SessionReport | None = None
    """Likewise, of a session's."""
    is_cancelled: bool = False
    """Of an open one: whether it was asked to end by itself."""

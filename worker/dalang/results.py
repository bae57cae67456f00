"""What a tool may return or raise besides plain values and exceptions."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Handoff:
    """Hands the conversation over to another agent; the model reads `Transferred to sales.` or the like."""

    agent: str
    """Name of the Agent."""


@dataclass(frozen=True)
class ToolResult:
    """A tool's output together with what else it brings about."""

    output: Any
    """What the model is told: a string or any JSON value."""
    context: dict[str, Any] | None = None
    """Context variables to set, as JSON values; the others stay as they are."""
    handoff: Handoff | None = None
    """The agent to whom the conversation is handed over."""


class ToolError(Exception):
    """Says to the model, in these words alone, what went wrong."""

    retryable: bool = False

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        """Make an error for the model.

        Args:
            message: What the model is told.
            retryable: Run the tool again first: 3 times in all, or as often as `@tool(attempts=…)` says.
        """
        super().__init__(message)
        self.retryable = retryable

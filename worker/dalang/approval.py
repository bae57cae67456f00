"""What a tool's author says about who decides before it is run."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

WHEN_MAX_CHARS = 2048
QUESTION_MAX_CHARS = 512


@dataclass(frozen=True, kw_only=True)
class Approval:
    """A human has to approve a tool's calls. Agents and pools may ask for more, never for less."""

    when: str | None = None
    """A CEL expression over `args`, `context`, `agent`, `run` and `tool`, such as `args.amount > 100`; one that fails means
    that a human is asked. Absent: always."""
    question: str | None = None
    """What the human is asked, after what the pool and before what the Agent asks. Where none of the three has a question, one
    is made of the names of the agent, the tool and its function."""
    timeout: timedelta | float | None = None
    """How long to wait for a decision, more than nothing; a number is seconds. Where Agent or pool ask as well it is the
    shortest, or the longest where its end approves the call. Absent: for ever."""
    on_timeout: Literal["Reject", "Approve", "Fail"] = "Reject"
    """What an expired approval comes to: the model is told that nobody approved, as if approved, or the run fails."""

    def __post_init__(self) -> None:
        if self.when is not None and not 0 < len(self.when) <= WHEN_MAX_CHARS:
            raise ValueError(f"Approval.when has to have 1 to {WHEN_MAX_CHARS} characters")
        if self.question is not None and not 0 < len(self.question) <= QUESTION_MAX_CHARS:
            raise ValueError(f"Approval.question has to have 1 to {QUESTION_MAX_CHARS} characters")
        if self.timeout_seconds is not None and not self.timeout_seconds > 0:
            raise ValueError(f"Approval.timeout is {self.timeout}; it has to be more than nothing")
        if self.on_timeout not in ("Reject", "Approve", "Fail"):
            raise ValueError(f"Approval.on_timeout is {self.on_timeout!r}; it is one of Reject, Approve and Fail")

    @property
    def timeout_seconds(self) -> float | None:
        """The timeout as a number."""
        return self.timeout.total_seconds() if isinstance(self.timeout, timedelta) else self.timeout

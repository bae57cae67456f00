"""What a transcript is made of: one entry for each thing that was said, called, decided or that went wrong."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What an entry is about. The names stand in the output of `-o json`."""

    RUN = "Run"
    """A run begins; `text` is its name."""
    USER = "User"
    """Said by the user or, where `sender` is set, by an agent to another, or by Dalang to correct the model."""
    ASSISTANT = "Assistant"
    """Said by the agent `sender`."""
    CALL = "Call"
    """The agent `sender` asks for `tool` with `arguments`; `call` is its id."""
    RESULT = "Result"
    """What `tool` gave back for `call`, as the model was told; `is_error` where it failed."""
    ASKED = "Asked"
    """A human is asked: `text` is the question, `name` the AgentApproval, `arguments` what is judged."""
    DECIDED = "Decided"
    """What came of it; `text` says who decided and why."""
    RETRY = "Retry"
    """Something failed and was tried again."""
    SUMMARY = "Summary"
    """What was said before is known to the model by this text only; `count` messages, where that is known."""
    END = "End"
    """The run ended; `text` says how."""
    QUEUED = "Queued"
    """The run was sent, and has not begun yet."""
    NOTE = "Note"
    """Anything else worth knowing."""


@dataclass(frozen=True)
class Entry:
    """One entry. What does not belong to its kind is empty."""

    kind: Kind
    text: str = ""
    at: datetime | None = None
    """When; None where Temporal has not kept it."""
    run: str = ""
    """Name of the AgentRun."""
    run_uid: str = ""
    thread: str = ""
    """Name of the nested thread; empty: the conversation itself."""
    depth: int = 0
    """How many agents called as tools stand between it and the conversation."""
    sender: str = ""
    tool: str = ""
    call: str = ""
    name: str = ""
    arguments: str = ""
    count: int = 0
    is_error: bool = False
    is_late: bool = False
    """It came after the end of `run`: of a decision, or of what the run had asked for and did not wait for when it was stopped."""

    def to_json(self) -> dict[str, Any]:
        """Return it with camelCase names, without what is empty."""
        members: dict[str, Any] = {
            "kind": str(self.kind),
            "time": self.at.strftime("%Y-%m-%dT%H:%M:%SZ") if self.at else "",
            "run": self.run,
            "thread": self.thread,
            "depth": self.depth,
            "sender": self.sender,
            "tool": self.tool,
            "call": self.call,
            "name": self.name,
            "arguments": self.arguments,
            "isError": self.is_error,
            "isLate": self.is_late,
            "count": self.count,
            "text": self.text,
        }
        return {name: value for name, value in members.items() if value or name == "kind"}


def figures(tokens: int, cost_usd: str | None) -> str:
    """Return what a run has used, as its end tells it."""
    return f"{tokens} tokens, ${cost_usd}" if cost_usd else f"{tokens} tokens"

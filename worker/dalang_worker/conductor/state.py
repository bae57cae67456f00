"""What the conductor's parts share: the run's state, its conversations, and the ports through which it reaches the world."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from dalang_api import contract
from dalang_api.contract import (
    AgentSnapshot,
    ApprovalNeeded,
    LimitSettings,
    ModelCall,
    ModelReply,
    RunIdentity,
    ToolCall,
    ToolOutcome,
)

from dalang_worker.conductor.approvals import Approvals, Pending
from dalang_worker.conductor.budget import Budget
from dalang_worker.conductor.clock import Clock
from dalang_worker.conductor.thread import Thread

A_DECISION = "a human's decision"
"""What is awaited while a human is asked, as `Ports.awaiting` is told."""


class Ports(Protocol):
    """What the loop asks of the world. The workflow answers with Temporal, a unit test with a list."""

    async def model(self, agent: AgentSnapshot, call: ModelCall, attempts: int) -> ModelReply:
        """Make one model call, tried so often (0: until it works); raise `RunFailed` where it failed for good."""
        ...

    async def tool(self, agent: AgentSnapshot, call: ToolCall) -> ToolOutcome:
        """Make one tool call; raise `RunFailed` where it failed for good."""
        ...

    async def check_answer(self, agent: AgentSnapshot, answer: dict[str, Any]) -> str | None:
        """Return why an answer as somebody changed it does not fit the agent's schema, or None where it does."""
        ...

    def ask(self, agent: AgentSnapshot, question: "Question") -> Pending:
        """Ask a human; the answer is `Pending.decided`."""
        ...

    def awaiting(self, key: str, what: str) -> AbstractContextManager[None]:
        """Remember what is awaited in the block, for the message of a run that is stopped meanwhile."""
        ...

    def model_call_is_made_again(self, call: ModelCall, why: str) -> None:
        """Take note that a reply cannot be used and the call is made again, so that the run's condition can say so."""
        ...

    def patched(self, change: str) -> bool:
        """Return whether this run began with this change of what is awaited or done, or came to it since."""
        ...

    def history_is_full(self) -> bool:
        """Return whether the workflow's history is near its limit."""
        ...

    def turn_done(self) -> None:
        """Take note that a turn has ended, so that progress can be reported."""
        ...


@dataclass
class Conversation:
    """A thread, and who holds it. The run's own is one; each agent called as a tool has another."""

    thread: Thread
    agent: str
    budget: Budget
    context: dict[str, Any]
    """Context variables. An agent called as a tool has its own; what it sets is merged when it has answered."""
    depth: int = 0


@dataclass(frozen=True)
class Question:
    """What a human is to decide about."""

    place: str
    """Thread, turn, call, and how often it was asked: what makes it another question than any other of the run."""
    tool: str | None
    """The tool to call; None: the agent's answer."""
    needed: ApprovalNeeded


@dataclass(frozen=True)
class Answer:
    """What a conversation came to."""

    text: str
    structured: dict[str, Any] | None = None


class RunState:
    """How far a run is. Threads, turns and tokens of all its agents are the run's."""

    def __init__(
        self,
        run: contract.RunInput,
        run_uid: str = "",
        *,
        thread: Thread | None = None,
        identity: RunIdentity | None = None,
    ) -> None:
        """Begin a run; in a session, with its thread and with the AgentRun that the workflow's id does not name."""
        self.identity = identity
        self.clock = Clock()
        self.approvals = Approvals(run_uid)
        self.snapshot = run.snapshot
        self.snapshot_digest = run.snapshot.digest()
        self.budget = Budget(
            LimitSettings(max_turns=run.max_turns, max_tokens=run.max_tokens, max_cost_usd=run.max_cost_usd)
        )
        said = thread or Thread("main", run.messages)
        self.main = Conversation(said, run.agent, self.budget, dict(run.context or {}))
        self.threads = {self.main.thread.name: self.main.thread}
        self.retrieval_failures: dict[str, str] = {}
        """For each agent whose last retrieval failed: why."""
        self.tools_failures: dict[str, str] = {}
        """For each agent whose last model call was without some of its tools: why."""
        self.nested = 0
        """Agents called as tools that are under way."""
        self.models: dict[str, int] = {}
        """For each agent that fell back: which of its models it calls now."""

    @property
    def agent(self) -> str:
        """Who holds the run's conversation."""
        return self.main.agent

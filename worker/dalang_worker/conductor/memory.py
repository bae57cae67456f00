"""What a session remembers between its runs. A run works on it, and it is kept only if the run succeeds."""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from dalang_api import contract
from dalang_api.contract import Message, SessionInput, SessionSettings, SessionState, TextPart

from dalang_worker.conductor.budget import Budget
from dalang_worker.conductor.thread import CORRECTOR, Thread


@dataclass(frozen=True)
class Checkpoint:
    """A conversation as a run has found it."""

    thread: Thread
    count: int
    """Of the thread's messages; it may have grown since."""
    summary: str | None
    agent: str
    context: dict[str, Any]


@dataclass
class Memory:
    """A conversation: what was said, what it is known by where that was given up, and who holds it."""

    thread: Thread
    agent: str
    context: dict[str, Any]
    summary: str | None = None
    summary_problem: str | None = None
    """Why the last try to write one failed."""
    threads: int = 1
    """How many threads there were. Each has a name of its own, since workers remember threads by name."""
    budget: Budget = field(default_factory=lambda: Budget(contract.LimitSettings()))
    """What all runs have used; it limits nothing."""

    @classmethod
    def of(cls, session: SessionInput) -> "Memory":
        """Return what a session begins or, continued as new, goes on with."""
        state, context = session.state, dict(session.context or {})
        if state is None:
            return cls(_thread(1, []), session.agent, context)
        budget = Budget(
            contract.LimitSettings(),
            input_tokens=state.input_tokens,
            output_tokens=state.output_tokens,
            cost_usd=Decimal(state.cost_usd),
            is_priced=state.is_priced,
        )
        threads = state.threads + 1
        return cls(
            _thread(threads, state.messages),
            session.agent,
            context,
            state.summary,
            state.summary_problem,
            threads,
            budget,
        )

    def checkpoint(self) -> Checkpoint:
        """Return the conversation as it is."""
        return Checkpoint(self.thread, len(self.thread.messages), self.summary, self.agent, self.context)

    def restore(self, found: Checkpoint) -> None:
        """Leave the conversation as it was: the run that went on with it failed.

        In a thread anew, so that the run's own, which its report is made of, stays whole.
        """
        self.summary, self.agent, self.context = found.summary, found.agent, found.context
        if self.thread is not found.thread or len(self.thread.messages) > found.count:
            self._replace(found.thread.messages[: found.count])

    def take_back(self) -> None:
        """Give up the last message."""
        self._replace(self.thread.messages[:-1])

    def shorten(self, count: int, summary: str | None) -> None:
        """Give up the first `count` messages for a summary; None where there is none, not even an earlier one."""
        self.summary = summary
        kept = self.thread.messages[count:]
        self._replace([summary_message(summary), *kept] if summary else kept)

    def _replace(self, messages: list[Message]) -> None:
        self.threads += 1
        self.thread = _thread(self.threads, messages)


def summary_message(summary: str) -> Message:
    """Return the first message of a thread whose beginning is known by a summary."""
    text = f"{contract.SUMMARY_HEADING}\n{summary}"
    return Message(role="user", parts=[TextPart(text=text)], sender=CORRECTOR)


def too_many(thread: Thread, settings: SessionSettings) -> int:
    """Return how many of a thread's oldest messages are to be given up for a summary; 0 while it is short enough.

    What is kept begins with something the user said, so that no tool call is parted from its result, and is at most half
    of what may be kept, so that the next runs need no summary; where the last run alone is more, that run is kept,
    and where it is more than all that may be kept, nothing.
    """
    sizes, count = thread.sizes, len(thread.messages)
    if count <= settings.history_size and sum(sizes) <= contract.SESSION_TRANSCRIPT_BYTES:
        return 0
    begins = [place for place in range(1, count) if _is_users(thread.messages[place])]
    for place in begins:
        is_few = count - place <= settings.history_size // 2
        if is_few and sum(sizes[place:]) <= contract.SESSION_TRANSCRIPT_BYTES // 2:
            return place
    last = begins[-1] if begins else count
    if last == 1 and not _is_users(thread.messages[0]):
        return 0  # all that is left is the last run, and the summary of what was before it
    return last if sum(sizes[last:]) <= contract.SESSION_TRANSCRIPT_BYTES else count


def must_shorten(thread: Thread) -> bool:
    """Return whether a thread is so large that its oldest messages are given up even where no summary can be written."""
    return sum(thread.sizes) > contract.SESSION_TRANSCRIPT_MAX_BYTES


def _is_users(message: Message) -> bool:
    return message.role == "user" and message.sender is None


def state_of(memory: Memory, **more: Any) -> SessionState:
    """Return what a session carries of its memory when it continues as new."""
    return SessionState(
        threads=memory.threads,
        messages=memory.thread.messages,
        summary=memory.summary,
        summary_problem=memory.summary_problem,
        input_tokens=memory.budget.input_tokens,
        output_tokens=memory.budget.output_tokens,
        cost_usd=f"{memory.budget.cost_usd:f}",
        is_priced=memory.budget.is_priced,
        **more,
    )


def _thread(number: int, messages: list[Message]) -> Thread:
    return Thread(f"s{number}", messages)

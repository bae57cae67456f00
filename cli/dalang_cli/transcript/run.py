"""What is told of one run. Pure.

Each run keeps what was told of it, so that what comes of it late, when its session has gone on to the next, is told of it
and of nobody else.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dalang_api.contract import (
    ApprovalEnd,
    ApprovalRequest,
    Decision,
    Message,
    ModelCall,
    ModelReply,
    Retrying,
    RunIdentity,
    TextPart,
    ToolCall,
    ToolCallPart,
    ToolOutcome,
    ToolResultPart,
)

from dalang_cli.transcript.entries import Entry, Kind
from dalang_cli.transcript.history import Closed

NESTED = re.compile(r"(\d+)\.\d+\..+")
"""Name of the thread of an agent called as a tool: turn and place of the call, and the agent."""


@dataclass
class Thread:
    """One thread of a run."""

    name: str
    depth: int
    length: int = 0
    """Messages whose words are told, or need not be."""


@dataclass(frozen=True)
class Memory:
    """What the model knows of the conversation."""

    length: int | None = None
    """How many messages, the summary among them; None where that cannot be told."""
    given_up: int = 0
    """Messages that were said and are not among them any more."""
    has_summary: bool = False


@dataclass
class Run:
    """How far a run is that is being told."""

    identity: RunIdentity | None = None
    """None: the workflow is that of the run itself."""
    asked_with: int | None = None
    """How many messages it was sent with; None where that is not known, or it is no session's."""
    threads: dict[str, Thread] = field(default_factory=dict)
    main: Thread | None = None
    """The conversation as the run goes on with it; one that is shortened is a thread anew."""
    has_no_summary: bool = False
    """A summary was wanted, and failed."""
    checkpoint: Memory = Memory()
    """What the conversation comes back to should the run not succeed."""
    has_ended: bool = False
    """What comes now comes too late for it."""
    last_seq: int | None = None
    """Number of its last report; None: there was none yet, or it ended without one."""
    _turns: dict[int, tuple[str, str]] = field(default_factory=dict)
    """For each turn: the thread it was made in, and the agent who made it."""
    _told_calls: set[str] = field(default_factory=set)
    """Ids of the calls whose result is told."""
    _asked: set[str] = field(default_factory=set)
    """Names of the AgentApprovals; likewise `_decided`."""
    _decided: set[str] = field(default_factory=set)
    _told_ends: set[ApprovalEnd] = field(default_factory=set)
    _retrying: Retrying | None = None

    @property
    def uid(self) -> str:
        return self.identity.uid if self.identity else ""

    # ── Models and tools ──

    def thread_of(self, call: ModelCall) -> tuple[Thread, bool]:
        """Return the thread of a model call, and whether the conversation goes on in it from here."""
        self._turns[call.turn] = (call.thread, call.agent)
        if thread := self.threads.get(call.thread):
            return thread, False
        thread = self.threads[call.thread] = Thread(call.thread, self._depth(call.thread))
        # What a conversation begins with is told; what an agent called as a tool is told, is only in its first call.
        thread.length = 0 if thread.depth else call.count + len(call.tail or ())
        return thread, not thread.depth

    def called(self, call: ModelCall, thread: Thread) -> Iterator[Entry]:
        """Tell what a thread has come to since its model was called last."""
        tail = call.tail or []
        total = call.count + len(tail)
        if total < thread.length:
            yield self.entry(Kind.NOTE, "The reply before was not used: the model is called again", thread=call.thread)
        for place, message in enumerate(tail, call.count):
            if place >= thread.length:
                yield from self._added(message, call)
        thread.length = total

    def model_answered(self, call: ModelCall, closed: Closed) -> Iterator[Entry]:
        """Tell what came of a model call."""
        self._retrying = None
        yield from self.retried(closed, call.thread, f"The model of {call.agent}")
        if isinstance(closed.value, ModelReply):
            yield from self._replied(call, closed.value)
        else:
            words = f"The model {call.model or ''} of {call.agent}".replace("  ", " ")
            yield self.entry(Kind.NOTE, f"{words} gave no answer: {closed.problem}", thread=call.thread)

    def tool_called(self, call: ToolCall) -> Iterator[Entry]:
        """Tell of a call that is made otherwise than the model asked for it."""
        self._retrying = None
        if call.approved_arguments is not None:
            words = f"{call.tool} is called with the arguments a human approved: {call.arguments}"
            yield self.entry(Kind.NOTE, words, thread=call.thread)

    def tool_ended(self, call: ToolCall, closed: Closed, told: ToolResultPart | None) -> Iterator[Entry]:
        """Tell what came of a tool call; `told`: what the model was told of it."""
        yield from self.retried(closed, call.thread, call.tool)
        outcome = closed.value
        if isinstance(outcome, ToolOutcome) and outcome.ask_again is not None:
            words = f"{call.tool} was not run: it is not what was approved any more, so it is asked about anew"
            yield self.entry(Kind.NOTE, words, thread=call.thread)
        elif told is not None:
            yield self.result(told, call.agent or "", call.thread)
        elif isinstance(outcome, ToolOutcome):
            result = ToolResultPart(
                call_id=call.call_id, tool=call.tool, output=outcome.output, is_error=outcome.is_error
            )
            yield self.result(result, call.agent or "", call.thread)
        else:
            yield self.entry(Kind.NOTE, f"{call.tool} gave no result: {closed.problem}", thread=call.thread)

    def retrying(self, retrying: Retrying) -> Iterator[Entry]:
        """Tell that something fails and is tried again, unless that was told just now."""
        if retrying != self._retrying:
            self._retrying = retrying
            yield self.entry(Kind.RETRY, f"{retrying.reason}: {retrying.message}", thread=retrying.thread)

    def retried(self, closed: Closed, thread: str, what: str) -> Iterator[Entry]:
        """Tell that something was tried more than once."""
        if closed.attempts > 1:
            words = f"{what}: attempt {closed.attempts}, after: {closed.last_failure or 'its worker was lost'}"
            yield self.entry(Kind.RETRY, words, thread=thread)

    def _added(self, message: Message, call: ModelCall) -> Iterator[Entry]:
        """Tell a message that the workflow put into a thread."""
        if message.role == "user" and message.sender is None and (caller := self._caller(call.thread)):
            message = message.model_copy(update={"sender": caller[1]})
        yield from self.said(message, call.thread)
        for part in message.parts:
            if isinstance(part, ToolResultPart) and part.call_id not in self._told_calls:
                yield self.result(part, message.sender or "", call.thread)

    def _replied(self, call: ModelCall, reply: ModelReply) -> Iterator[Entry]:
        if thread := self.threads.get(call.thread):
            thread.length += 1
        yield from self.said(reply.message, call.thread)
        for verdict in reply.calls or ():
            if verdict.error is not None:
                tool = next((part.tool for part in reply.message.tool_calls() if part.call_id == verdict.call_id), "")
                refused = ToolResultPart(call_id=verdict.call_id, tool=tool, output=verdict.error, is_error=True)
                yield self.result(refused, call.agent, call.thread)
        for failure in (reply.retrieval_failure, reply.tools_failure):
            if failure:
                yield self.entry(Kind.NOTE, f"The call was made without: {failure}", thread=call.thread)
        if reply.failure:
            words = f"The model stopped: {reply.failure.reason}: {reply.failure.message}"
            yield self.entry(Kind.NOTE, words, thread=call.thread, is_error=True)

    # ── Approvals ──

    def asked(self, request: ApprovalRequest) -> Iterator[Entry]:
        """Tell that a human is asked, once: each report tells of all that waits."""
        if request.name not in self._asked:
            self._asked.add(request.name)
            yield self.entry(
                Kind.ASKED,
                request.question,
                name=request.name,
                sender=request.agent,
                tool=request.tool or "",
                arguments=request.arguments,
            )

    def decision(self, decision: Decision) -> Iterator[Entry]:
        """Tell what a human decided."""
        words = f"{decision.decision} by {decision.decided_by or 'somebody'}"
        if decision.reason:
            words += f": {decision.reason}"
        if decision.name in self._decided:
            words += " (too late, or told again)"
        self._decided.add(decision.name)
        arguments = "" if decision.override is None else json.dumps(decision.override, ensure_ascii=False)
        yield self.entry(Kind.DECIDED, words, name=decision.name, arguments=arguments)

    def approval_ended(self, end: ApprovalEnd) -> Iterator[Entry]:
        """Tell what came of a request, unless a decision that was told says it all; reports tell it again."""
        is_decided, self._decided = end.name in self._decided, self._decided | {end.name}
        if end in self._told_ends or (end.state == "Applied" and is_decided and not end.note):
            return
        self._told_ends.add(end)
        words = end.state if end.decision is None else f"{end.state}: {end.decision} by {end.decided_by or 'somebody'}"
        yield self.entry(
            Kind.DECIDED, f"{words}. {end.note}" if end.note else words, name=end.name, tool=end.tool or ""
        )

    # ── Entries ──

    def said(self, message: Message, thread: str = "") -> Iterator[Entry]:
        """Tell the words of a message and the calls it asks for; results are told where they came."""
        if text := "\n".join(part.text for part in message.parts if isinstance(part, TextPart)):
            kind = Kind.ASSISTANT if message.role == "assistant" else Kind.USER
            yield self.entry(kind, text, thread=thread, sender=message.sender or "")
        for part in message.parts:
            if isinstance(part, ToolCallPart):
                more = {"tool": part.tool, "arguments": part.arguments, "call": part.call_id}
                yield self.entry(Kind.CALL, thread=thread, sender=message.sender or "", **more)

    def result(self, part: ToolResultPart, sender: str, thread: str = "") -> Entry:
        """Tell what a tool gave back."""
        self._told_calls.add(part.call_id)
        more = {"sender": sender, "tool": part.tool, "call": part.call_id, "is_error": bool(part.is_error)}
        return self.entry(Kind.RESULT, part.output, thread=thread, **more)

    def entry(self, kind: Kind, text: str = "", *, thread: str = "", **more: Any) -> Entry:
        """Return an entry of this run."""
        depth = self._depth(thread) if thread else 0
        return Entry(
            kind,
            text,
            run=self.identity.name if self.identity else "",
            run_uid=self.uid,
            thread=thread if depth else "",
            depth=depth,
            **more,
        )

    def _depth(self, thread: str) -> int:
        """Return how deep a thread is nested: one more than the one whose turn called it."""
        if known := self.threads.get(thread):
            return known.depth
        caller = self._caller(thread)
        return 1 + self._depth(caller[0]) if caller and caller[0] != thread else 0

    def _caller(self, thread: str) -> tuple[str, str] | None:
        """Return the thread and the agent that called the agent of a nested thread; None: it is not nested."""
        nested = NESTED.fullmatch(thread)
        return self._turns.get(int(nested[1])) if nested else None

"""Facts of a history → entries of a transcript. Pure.

The transcript itself is in no history: a model call carries only the messages its worker may not have. But every reply of
a model is an activity's result, every tool call an activity of its own, and what the workflow adds (results of agents
called as tools, of hand-offs, corrections) is in the `tail` of the next model call. Messages have a place in their thread,
so nothing is told twice when a call is made again.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from dalang_api.contract import (
    ApprovalEnd,
    ApprovalRequest,
    CancelExchange,
    Decision,
    Exchange,
    Message,
    ModelCall,
    ModelReply,
    ReportResult,
    Retrying,
    RunIdentity,
    RunInput,
    RunReport,
    SessionInput,
    SessionReport,
    SessionSettings,
    SessionState,
    SummaryCall,
    SummaryReply,
    TextPart,
    ToolCall,
    ToolCallPart,
    ToolOutcome,
    ToolResultPart,
    Wire,
)

from dalang_cli.transcript.entries import Entry, Kind
from dalang_cli.transcript.history import Closed, Ended, Fact, Scheduled, Signalled, Started

NESTED = re.compile(r"(\d+)\.\d+\..+")
"""Name of the thread of an agent called as a tool: turn and place of the call, and the agent."""


@dataclass
class _Thread:
    """One thread of a run."""

    name: str
    depth: int
    length: int = 0
    """Messages whose words are told, or need not be."""


@dataclass(frozen=True)
class _Memory:
    """What the model knows of the conversation."""

    length: int | None = None
    """How many messages, the summary among them; None where that cannot be told."""
    given_up: int = 0
    """Messages that were said and are not among them any more."""
    has_summary: bool = False


@dataclass
class _Run:
    """How far the run is that is being told."""

    identity: RunIdentity | None = None
    """None: the workflow is that of the run itself."""
    asked_with: int | None = None
    """How many messages it was sent with; None where that is not known, or it is no session's."""
    threads: dict[str, _Thread] = field(default_factory=dict)
    main: _Thread | None = None
    """The conversation as the run goes on with it; one that is shortened is a thread anew."""
    has_no_summary: bool = False
    """A summary was wanted, and failed."""
    checkpoint: _Memory = _Memory()
    """What the conversation comes back to should the run not succeed."""
    turns: dict[int, tuple[str, str]] = field(default_factory=dict)
    """For each turn: the thread it was made in, and the agent who made it."""
    told_calls: set[str] = field(default_factory=set)
    """Ids of the calls whose result is told."""
    asked: set[str] = field(default_factory=set)
    """Names of the AgentApprovals; likewise `decided`."""
    decided: set[str] = field(default_factory=set)
    told_ends: set[ApprovalEnd] = field(default_factory=set)
    retrying: Retrying | None = None
    has_ended: bool = False

    @property
    def uid(self) -> str:
        return self.identity.uid if self.identity else ""


class Reader:
    """Reads the executions of one workflow, the oldest that there is first."""

    def __init__(self) -> None:
        self._run = _Run()
        self._exchanges: dict[str, Exchange] = {}
        """Runs that were sent and have not begun, by uid, in their order."""
        self._over: set[str] = set()
        """Uids of runs of which nothing more is told."""
        self._open: dict[int, Wire] = {}
        self._results: dict[tuple[str, str], ToolResultPart] = {}
        """What models were told of calls, by the run's uid and the call's id."""
        self._is_first = True
        self._memory = _Memory()
        self._knows_all = True
        """Whether the conversation's beginning was read."""
        self._is_closing = self._has_ended = False

    def read(self, facts: list[Fact]) -> Iterator[Entry]:
        """Yield the entries of one execution."""
        self._open = {}
        self._results = dict(_results(facts))
        for fact in facts:
            # When what was carried over had been said is not kept.
            at = None if isinstance(fact, Started) and isinstance(fact.value, SessionInput) else fact.at
            for entry in self._entries(fact):
                yield replace(entry, at=at)

    def rest(self) -> Iterator[Entry]:
        """Yield, after the last execution, what is under way or waits."""
        if self._has_ended:
            return
        for value in self._open.values():
            if words := _doing(value):
                yield self._entry(Kind.NOTE, f"Under way: {words}")
        for exchange in self._exchanges.values():
            run = exchange.run
            yield Entry(Kind.QUEUED, f"AgentRun {run.name} waits for its turn", run=run.name, run_uid=run.uid)

    # ── Facts ──

    def _entries(self, fact: Fact) -> Iterable[Entry]:
        match fact:
            case Started(value=RunInput() as run):
                return self._input(run.messages)
            case Started(value=SessionInput() as session):
                return self._session_started(session)
            case Signalled(value=value):
                return self._signalled(value)
            case Scheduled(id=number, value=value):
                self._open[number] = value
                return self._scheduled(value)
            case Closed(id=number):
                return self._closed(fact, self._open.pop(number, None))
            case Ended(how=how, why=why):
                return self._ended(how, why)
        return ()

    def _input(self, messages: list[Message]) -> Iterator[Entry]:
        for message in messages:
            yield from self._said(message)

    def _session_started(self, session: SessionInput) -> Iterator[Entry]:
        state = session.state
        if state is None:
            self._memory = _Memory(length=0)
        else:
            self._memory = replace(self._memory, length=len(state.messages), has_summary=state.summary is not None)
            self._over |= {*state.seen} - {exchange.run.uid for exchange in state.queue}
            for exchange in state.queue:
                self._sent(exchange)
            if self._is_first:
                self._knows_all = False
                yield from self._carried(state)
        self._is_first = False

    def _carried(self, state: SessionState) -> Iterator[Entry]:
        """Tell what is still known of executions that Temporal has deleted."""
        runs = "1 run" if state.runs == 1 else f"{state.runs} runs"
        messages = state.messages
        if state.summary is not None:
            text = f"The first {runs} are past Temporal's retention. Of what was said then, there is a summary"
            messages = messages[1:]
            yield Entry(Kind.NOTE, f"{text} and the last {len(messages)} messages.")
            yield Entry(Kind.SUMMARY, state.summary)
        else:
            yield Entry(
                Kind.NOTE,
                f"The first {runs} are past Temporal's retention. The last {len(messages)} messages are kept.",
            )
        for message in messages:
            yield from self._said(message)
            for part in message.parts:
                if isinstance(part, ToolResultPart):
                    yield self._result(part, message.sender or "")

    def _signalled(self, value: Wire) -> Iterator[Entry]:
        match value:
            case Exchange():
                self._sent(value)
            case CancelExchange():
                yield from self._cancelled(value)
            case SessionSettings(closed=str(why)) if not self._is_closing:
                self._is_closing = True
                yield Entry(Kind.NOTE, f"The session is told to close: {why}")
            case Decision():
                yield from self._decision(value)
            case Retrying() if value != self._run.retrying:
                self._run.retrying = value
                yield self._entry(Kind.RETRY, f"{value.reason}: {value.message}", thread=value.thread)

    def _sent(self, exchange: Exchange) -> None:
        if exchange.run.uid not in self._over and exchange.run.uid != self._run.uid:
            self._exchanges.setdefault(exchange.run.uid, exchange)

    def _cancelled(self, cancel: CancelExchange) -> Iterator[Entry]:
        run = cancel.run
        if run.uid in self._over or (run.uid == self._run.uid and self._run.has_ended):
            return  # what has ended stays as it was
        if cancel.deleted:
            self._exchanges.pop(run.uid, None)
            self._over.add(run.uid)
        words = "was deleted" if cancel.deleted else "is told to end: spec.cancel is set"
        kept = ". The conversation stays as it was before it" if cancel.deleted else ""
        yield Entry(Kind.NOTE, f"AgentRun {run.name} {words}{kept}", run=run.name, run_uid=run.uid)

    def _scheduled(self, value: Wire) -> Iterator[Entry]:
        match value:
            case ModelCall():
                yield from self._begun(value.run)
                yield from self._model_called(value)
            case ToolCall():
                self._run.retrying = None
                if value.approved_arguments is not None:
                    words = f"{value.tool} is called with the arguments a human approved: {value.arguments}"
                    yield self._entry(Kind.NOTE, words, thread=value.thread)
            case SummaryCall():
                yield from self._begun(value.run)
            case RunReport(run=RunIdentity() as run) if value.finished_at and run.uid != self._run.uid:
                yield from self._ended_unbegun(run, value)
            case RunReport():
                yield from self._begun(value.run)
                yield from self._reported(value)
            case SessionReport(closed_at=str()):
                yield Entry(Kind.NOTE, f"The session is closed: {value.closed_message or 'no reason was given'}")

    def _closed(self, closed: Closed, asked: Wire | None) -> Iterator[Entry]:
        match asked:
            case ModelCall():
                self._run.retrying = None
                yield from self._retried(closed, asked.thread, f"The model of {asked.agent}")
                if isinstance(closed.value, ModelReply):
                    yield from self._replied(asked, closed.value)
                else:
                    words = f"The model {asked.model or ''} of {asked.agent}".replace("  ", " ")
                    yield self._entry(Kind.NOTE, f"{words} gave no answer: {closed.problem}", thread=asked.thread)
            case ToolCall():
                yield from self._retried(closed, asked.thread, asked.tool)
                yield from self._tool_ended(asked, closed)
            case SummaryCall():
                yield from self._retried(closed, "", "The summary")
                yield from self._summarised(asked, closed)
            case RunReport(run=RunIdentity() as run, finished_at=str()):
                yield from self._told(run, closed)

    def _ended(self, how: str, why: str) -> Iterator[Entry]:
        self._has_ended = how != "continued"
        if how in {"terminated", "timed out"}:
            yield Entry(Kind.NOTE, f"The workflow was {how} in Temporal{f': {why}' if why else ''}")

    # ── A run ──

    def _begun(self, identity: RunIdentity | None) -> Iterator[Entry]:
        """Tell that a run of the session begins, once."""
        if identity is None or identity == self._run.identity or identity.uid in self._over:
            return
        if not self._run.has_ended and self._run.identity:
            self._memory = self._run.checkpoint  # it was deleted: nobody was told of its end
        self._over.add(self._run.uid)
        exchange = self._exchanges.pop(identity.uid, None)
        self._run = _Run(identity, len(exchange.messages) if exchange else None, checkpoint=self._memory)
        yield self._entry(Kind.RUN, identity.name)
        if exchange is not None:
            yield from self._input(exchange.messages)

    def _ended_unbegun(self, run: RunIdentity, report: RunReport) -> Iterator[Entry]:
        """Tell of a queued run that ends, perhaps while another is under way."""
        self._exchanges.pop(run.uid, None)
        if run.uid not in self._over:
            self._over.add(run.uid)
            words = f"AgentRun {run.name} did not begin. {report.phase}, {report.reason}: {report.message}"
            yield Entry(Kind.END, words, run=run.name, run_uid=run.uid, is_error=True)

    def _reported(self, report: RunReport) -> Iterator[Entry]:
        for request in report.pending_approvals or ():
            yield from self._asked(request)
        for end in report.ended_approvals or ():
            yield from self._approval_ended(end)
        if report.finished_at is None or self._run.has_ended:
            return
        self._run.has_ended = True
        figures = f"{report.input_tokens + report.output_tokens} tokens" + (
            f", ${report.cost_usd}" if report.cost_usd else ""
        )
        words = f"{report.phase}, {report.reason}: {report.message} ({figures})"
        if report.phase == "Succeeded":
            self._memory = replace(self._memory, length=self._run.main.length if self._run.main else None)
        elif report.run:
            self._memory = self._run.checkpoint
            words += ". The conversation stays as it was before this run"
        yield self._entry(Kind.END, words, is_error=report.phase != "Succeeded")

    def _told(self, run: RunIdentity, closed: Closed) -> Iterator[Entry]:
        """Tell that the end of a run was told to nobody, which the conversation goes by if it has not gone on."""
        if isinstance(closed.value, ReportResult) and closed.value.gone and run.uid == self._run.uid:
            self._memory = self._run.checkpoint
            words = "was deleted, or ended by the operator, before its end was told"
            yield self._entry(Kind.NOTE, f"AgentRun {run.name} {words}. The conversation stays as it was before it")

    def _model_called(self, call: ModelCall) -> Iterator[Entry]:
        self._run.turns[call.turn] = (call.thread, call.agent)
        thread = self._run.threads.get(call.thread)
        tail = call.tail or []
        total = call.count + len(tail)
        if thread is None:
            thread = self._run.threads[call.thread] = _Thread(call.thread, self._depth(call.thread))
            # What a conversation begins with is told; what an agent called as a tool is told, is only here.
            thread.length = 0 if thread.depth else total
            if not thread.depth:
                yield from self._forgotten(total)
                self._run.main = thread
        if total < thread.length:
            yield self._entry(Kind.NOTE, "The reply before was not used: the model is called again", thread=call.thread)
        for place, message in enumerate(tail, call.count):
            if place >= thread.length:
                yield from self._added(message, call)
        thread.length = total

    def _forgotten(self, total: int) -> Iterator[Entry]:
        """Tell how many messages a conversation was shortened by without a summary: no event of its own says so."""
        run, memory = self._run, self._memory
        if run.asked_with is None or memory.length is None:
            return
        # Where the run goes on anew, since all did not fit the model's context, what was before it is given up.
        is_anew = run.main is not None
        left = min(memory.length, 1 if memory.has_summary else 0) if is_anew else total - run.asked_with
        dropped = memory.length - left
        self._memory = replace(memory, length=left, given_up=memory.given_up + max(dropped, 0))
        if not is_anew and not run.has_no_summary:
            run.checkpoint = self._memory
        if dropped > 0:
            self._knows_all = False
            words = f"From here on the model does not know the oldest {dropped} of its messages any more"
            yield self._entry(Kind.NOTE, f"{words}: no summary was made")

    def _added(self, message: Message, call: ModelCall) -> Iterator[Entry]:
        """Tell a message that the workflow put into a thread."""
        if message.role == "user" and message.sender is None and (caller := self._caller(call.thread)):
            message = message.model_copy(update={"sender": caller[1]})
        yield from self._said(message, call.thread)
        for part in message.parts:
            if isinstance(part, ToolResultPart) and part.call_id not in self._run.told_calls:
                yield self._result(part, message.sender or "", call.thread)

    def _replied(self, call: ModelCall, reply: ModelReply) -> Iterator[Entry]:
        if thread := self._run.threads.get(call.thread):
            thread.length += 1
        yield from self._said(reply.message, call.thread)
        for verdict in reply.calls or ():
            if verdict.error is not None:
                tool = next((part.tool for part in reply.message.tool_calls() if part.call_id == verdict.call_id), "")
                refused = ToolResultPart(call_id=verdict.call_id, tool=tool, output=verdict.error, is_error=True)
                yield self._result(refused, call.agent, call.thread)
        for failure in (reply.retrieval_failure, reply.tools_failure):
            if failure:
                yield self._entry(Kind.NOTE, f"The call was made without: {failure}", thread=call.thread)
        if reply.failure:
            words = f"The model stopped: {reply.failure.reason}: {reply.failure.message}"
            yield self._entry(Kind.NOTE, words, thread=call.thread, is_error=True)

    def _tool_ended(self, call: ToolCall, closed: Closed) -> Iterator[Entry]:
        told = self._results.get((self._run.uid, call.call_id))
        outcome = closed.value
        if isinstance(outcome, ToolOutcome) and outcome.ask_again is not None:
            words = f"{call.tool} was not run: it is not what was approved any more, so it is asked about anew"
            yield self._entry(Kind.NOTE, words, thread=call.thread)
        elif told is not None:
            yield self._result(told, call.agent or "", call.thread)
        elif isinstance(outcome, ToolOutcome):
            result = ToolResultPart(
                call_id=call.call_id, tool=call.tool, output=outcome.output, is_error=outcome.is_error
            )
            yield self._result(result, call.agent or "", call.thread)
        else:
            yield self._entry(Kind.NOTE, f"{call.tool} gave no result: {closed.problem}", thread=call.thread)

    def _retried(self, closed: Closed, thread: str, what: str) -> Iterator[Entry]:
        if closed.attempts > 1:
            words = f"{what}: attempt {closed.attempts}, after: {closed.last_failure or 'its worker was lost'}"
            yield self._entry(Kind.RETRY, words, thread=thread)

    def _summarised(self, call: SummaryCall, closed: Closed) -> Iterator[Entry]:
        reply = closed.value
        if not isinstance(reply, SummaryReply):
            self._run.has_no_summary = True
            yield self._entry(Kind.NOTE, f"The oldest {call.count} messages could not be summarised: {closed.problem}")
            return
        memory = self._memory
        length = None if memory.length is None else memory.length - call.count + 1
        # The first of them is the summary before, where there was one.
        given_up = memory.given_up + call.count - (1 if memory.has_summary else 0)
        self._memory = _Memory(length, given_up, has_summary=True)
        if self._run.main is None:
            self._run.checkpoint = self._memory  # made before the run's first turn, it is kept whatever becomes of it
        count = given_up if self._knows_all else 0
        yield self._entry(Kind.SUMMARY, reply.summary, count=count)

    # ── Approvals ──

    def _asked(self, request: ApprovalRequest) -> Iterator[Entry]:
        if request.name not in self._run.asked:
            self._run.asked.add(request.name)
            yield self._entry(
                Kind.ASKED,
                request.question,
                name=request.name,
                sender=request.agent,
                tool=request.tool or "",
                arguments=request.arguments,
            )

    def _decision(self, decision: Decision) -> Iterator[Entry]:
        words = f"{decision.decision} by {decision.decided_by or 'somebody'}"
        if decision.reason:
            words += f": {decision.reason}"
        if decision.name in self._run.decided:
            words += " (too late, or told again)"
        self._run.decided.add(decision.name)
        arguments = "" if decision.override is None else _text(decision.override)
        yield self._entry(Kind.DECIDED, words, name=decision.name, arguments=arguments)

    def _approval_ended(self, end: ApprovalEnd) -> Iterator[Entry]:
        """Tell what came of a request, unless a decision that was told says it all; reports tell it again."""
        is_decided, self._run.decided = end.name in self._run.decided, self._run.decided | {end.name}
        if end in self._run.told_ends or (end.state == "Applied" and is_decided and not end.note):
            return
        self._run.told_ends.add(end)
        words = end.state if end.decision is None else f"{end.state}: {end.decision} by {end.decided_by or 'somebody'}"
        yield self._entry(
            Kind.DECIDED, f"{words}. {end.note}" if end.note else words, name=end.name, tool=end.tool or ""
        )

    # ── Entries ──

    def _said(self, message: Message, thread: str = "") -> Iterator[Entry]:
        """Tell the words of a message and the calls it asks for; results are told where they came."""
        if text := "\n".join(part.text for part in message.parts if isinstance(part, TextPart)):
            kind = Kind.ASSISTANT if message.role == "assistant" else Kind.USER
            yield self._entry(kind, text, thread=thread, sender=message.sender or "")
        for part in message.parts:
            if isinstance(part, ToolCallPart):
                more = {"tool": part.tool, "arguments": part.arguments, "call": part.call_id}
                yield self._entry(Kind.CALL, thread=thread, sender=message.sender or "", **more)

    def _result(self, part: ToolResultPart, sender: str, thread: str = "") -> Entry:
        self._run.told_calls.add(part.call_id)
        more = {"sender": sender, "tool": part.tool, "call": part.call_id, "is_error": bool(part.is_error)}
        return self._entry(Kind.RESULT, part.output, thread=thread, **more)

    def _entry(self, kind: Kind, text: str = "", *, thread: str = "", **more: Any) -> Entry:
        depth = self._depth(thread) if thread else 0
        identity = self._run.identity
        return Entry(
            kind,
            text,
            run=identity.name if identity else "",
            run_uid=self._run.uid,
            thread=thread if depth else "",
            depth=depth,
            **more,
        )

    def _depth(self, thread: str) -> int:
        """Return how deep a thread is nested: one more than the one whose turn called it."""
        if known := self._run.threads.get(thread):
            return known.depth
        caller = self._caller(thread)
        return 1 + self._depth(caller[0]) if caller and caller[0] != thread else 0

    def _caller(self, thread: str) -> tuple[str, str] | None:
        """Return the thread and the agent that called the agent of a nested thread; None: it is not nested."""
        nested = NESTED.fullmatch(thread)
        return self._run.turns.get(int(nested[1])) if nested else None


def _results(facts: list[Fact]) -> Iterator[tuple[tuple[str, str], ToolResultPart]]:
    """Yield what models were told of calls: it may be other than what the tool gave back, such as after a changed approval."""
    for fact in facts:
        if isinstance(fact, Scheduled) and isinstance(fact.value, ModelCall):
            uid = fact.value.run.uid if fact.value.run else ""
            for message in fact.value.tail or ():
                for part in message.parts:
                    if isinstance(part, ToolResultPart):
                        yield (uid, part.call_id), part


def _doing(value: Wire) -> str:
    match value:
        case ModelCall():
            return f"the model of {value.agent}, turn {value.turn}"
        case ToolCall():
            return f"tool {value.tool} of {value.agent}"
        case SummaryCall():
            return "a summary"
    return ""


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)

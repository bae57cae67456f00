"""Facts of a history → entries of a transcript. Pure.

The transcript itself is in no history: a model call carries only the messages its worker may not have. But every reply of
a model is an activity's result, every tool call an activity of its own, and what the workflow adds (results of agents
called as tools, of hand-offs, corrections) is in the `tail` of the next model call. Messages have a place in their thread,
so nothing is told twice when a call is made again.

A run that is stopped does not wait for what it had asked for, so its session goes on to the next while that is still to
come. Hence each fact is told of the run that it names, not of the one that was begun last.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from dalang_api.contract import (
    CancelExchange,
    Decision,
    Exchange,
    Message,
    ModelCall,
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
    ToolCall,
    ToolResultPart,
    Wire,
)

from dalang_cli.transcript.entries import Entry, Kind, figures
from dalang_cli.transcript.history import Closed, Ended, Fact, Scheduled, Signalled, Started
from dalang_cli.transcript.run import Memory, Run


class Reader:
    """Reads the executions of one workflow, the oldest that there is first."""

    def __init__(self) -> None:
        self._run = Run()
        """The one that was begun last."""
        self._runs: dict[str, Run] = {}
        """Those of a session that have begun, by uid."""
        self._exchanges: dict[str, Exchange] = {}
        """Runs that were sent and have not begun, by uid, in their order."""
        self._over: set[str] = set()
        """Uids of runs that do not begin any more."""
        self._open: dict[int, Wire] = {}
        self._results: dict[tuple[str, str], ToolResultPart] = {}
        """What models were told of calls, by the run's uid and the call's id."""
        self._ending: set[str] = set()
        """Uids of the runs that tell of their end in this execution."""
        self._is_first = True
        self._memory = Memory()
        self._knows_all = True
        """Whether the conversation's beginning was read."""
        self._is_closing = self._is_closed = self._has_ended = False

    def read(self, facts: list[Fact]) -> Iterator[Entry]:
        """Yield the entries of one execution."""
        self._open = {}
        self._results = dict(_results(facts))
        self._ending = set(_ending(facts))
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
            if isinstance(value, ModelCall | ToolCall | SummaryCall):
                run = self._of(value.run)
                yield replace(run.entry(Kind.NOTE, f"Under way: {_doing(value)}"), is_late=run.has_ended)
        for exchange in self._exchanges.values():
            waiting = exchange.run
            words = f"AgentRun {waiting.name} waits for its turn"
            yield Entry(Kind.QUEUED, words, run=waiting.name, run_uid=waiting.uid)

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

    def _of(self, identity: RunIdentity | None) -> Run:
        """Return a run that something is told of. One that is not known had ended before what is read."""
        if identity is None or not self._runs:
            return self._run
        return self._runs.get(identity.uid) or Run(identity, has_ended=True)

    def _input(self, messages: list[Message]) -> Iterator[Entry]:
        for message in messages:
            yield from self._run.said(message)

    def _session_started(self, session: SessionInput) -> Iterator[Entry]:
        state = session.state
        if state is None:
            self._memory = Memory(length=0)
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
            yield from self._run.said(message)
            for part in message.parts:
                if isinstance(part, ToolResultPart):
                    yield self._run.result(part, message.sender or "")

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
                run = self._of(RunIdentity(name="", uid=value.run_uid))
                yield from _late(run, run.decision(value))
            case Retrying():
                run = self._of(value.run)
                yield from _late(run, run.retrying(value))

    def _sent(self, exchange: Exchange) -> None:
        uid = exchange.run.uid
        if uid not in self._over and uid not in self._runs:
            self._exchanges.setdefault(uid, exchange)

    def _cancelled(self, cancel: CancelExchange) -> Iterator[Entry]:
        identity = cancel.run
        begun = self._runs.get(identity.uid)
        if identity.uid in self._over or (begun and begun.has_ended):
            return  # what has ended stays as it was
        if cancel.deleted and begun:
            self._give_up(begun)
        elif cancel.deleted:
            self._exchanges.pop(identity.uid, None)
            self._over.add(identity.uid)
        words = "was deleted" if cancel.deleted else "is told to end: spec.cancel is set"
        kept = ". The conversation stays as it was before it" if cancel.deleted else ""
        yield Entry(Kind.NOTE, f"AgentRun {identity.name} {words}{kept}", run=identity.name, run_uid=identity.uid)

    def _scheduled(self, value: Wire) -> Iterator[Entry]:
        match value:
            case ModelCall():
                yield from self._begun(value.run)
                yield from self._model_called(self._of(value.run), value)
            case ToolCall():
                yield from self._of(value.run).tool_called(value)
            case SummaryCall():
                yield from self._begun(value.run)
            case RunReport(run=RunIdentity() as identity, finished_at=str()) if not value.agents:
                yield from self._ended_unbegun(identity, value)
            case RunReport():
                yield from self._begun(value.run)
                yield from self._reported(self._of(value.run), value)
            case SessionReport(closed_at=str()) if not self._is_closed:
                self._is_closed = True
                yield Entry(Kind.NOTE, f"The session is closed: {value.closed_message or 'no reason was given'}")

    def _closed(self, closed: Closed, asked: Wire | None) -> Iterator[Entry]:
        match asked:
            case ModelCall() | ToolCall() | SummaryCall():
                run = self._of(asked.run)
                yield from _late(run, self._came(run, asked, closed))
            case RunReport(run=RunIdentity() as identity):
                if isinstance(closed.value, ReportResult) and closed.value.gone:
                    yield from self._gone(identity, asked)

    def _came(self, run: Run, asked: ModelCall | ToolCall | SummaryCall, closed: Closed) -> Iterator[Entry]:
        match asked:
            case ModelCall():
                yield from run.model_answered(asked, closed)
            case ToolCall():
                yield from run.tool_ended(asked, closed, self._results.get((run.uid, asked.call_id)))
            case SummaryCall():
                yield from run.retried(closed, "", "The summary")
                yield from self._summarised(run, asked, closed)

    def _ended(self, how: str, why: str) -> Iterator[Entry]:
        self._open = {}  # an execution leaves nothing under way
        self._has_ended = how != "continued"
        if how in {"terminated", "timed out"}:
            yield Entry(Kind.NOTE, f"The workflow was {how} in Temporal{f': {why}' if why else ''}")

    # ── A run ──

    def _begun(self, identity: RunIdentity | None) -> Iterator[Entry]:
        """Tell that a run of the session begins, once."""
        if identity is None or identity.uid in self._runs or identity.uid in self._over:
            return
        exchange = self._exchanges.pop(identity.uid, None)
        asked_with = len(exchange.messages) if exchange else None
        self._run = self._runs[identity.uid] = Run(identity, asked_with, checkpoint=self._memory)
        yield self._run.entry(Kind.RUN, identity.name)
        if exchange is not None:
            yield from self._input(exchange.messages)

    def _ended_unbegun(self, identity: RunIdentity, report: RunReport) -> Iterator[Entry]:
        """Tell of a queued run that ends, perhaps while another is under way."""
        self._exchanges.pop(identity.uid, None)
        if identity.uid not in self._over and identity.uid not in self._runs:
            self._over.add(identity.uid)
            words = f"AgentRun {identity.name} did not begin. {report.phase}, {report.reason}: {report.message}"
            yield Entry(Kind.END, words, run=identity.name, run_uid=identity.uid, is_error=True)

    def _reported(self, run: Run, report: RunReport) -> Iterator[Entry]:
        for request in report.pending_approvals or ():
            yield from run.asked(request)
        for end in report.ended_approvals or ():
            yield from run.approval_ended(end)
        if report.finished_at is None or run.has_ended:
            return
        run.last_seq = report.seq
        used = figures(report.input_tokens + report.output_tokens, report.cost_usd)
        words = f"{report.phase}, {report.reason}: {report.message} ({used})"
        if report.phase == "Succeeded":
            run.has_ended = True
            self._memory = replace(self._memory, length=run.main.length if run.main else None)
        else:
            self._give_up(run)
            if report.run:
                words += ". The conversation stays as it was before this run"
        yield run.entry(Kind.END, words, is_error=report.phase != "Succeeded")

    def _give_up(self, run: Run) -> None:
        """Take note that the conversation goes on as if the run had not been."""
        run.has_ended = True
        self._memory = run.checkpoint

    def _gone(self, identity: RunIdentity, report: RunReport) -> Iterator[Entry]:
        """Tell that nobody was there any more to be told of a run, if no other has gone on with the conversation."""
        run = self._of(identity)
        if run is not self._run:
            return
        kept = "The conversation stays as it was before it"
        gone = f"AgentRun {identity.name} was deleted, or ended by the operator, before its end"
        if report.seq == run.last_seq:
            self._give_up(run)
            yield run.entry(Kind.NOTE, f"{gone} was told. {kept}")
        elif not run.has_ended and run.uid not in self._ending:
            self._give_up(run)
            yield run.entry(Kind.END, f"{gone}. {kept}", is_error=True)

    def _model_called(self, run: Run, call: ModelCall) -> Iterator[Entry]:
        thread, is_conversation = run.thread_of(call)
        if is_conversation:
            yield from self._forgotten(run, thread.length)
            run.main = thread
        yield from run.called(call, thread)

    # ── What the model knows ──

    def _forgotten(self, run: Run, total: int) -> Iterator[Entry]:
        """Tell how many messages a conversation was shortened by without a summary: no event of its own says so."""
        memory = self._memory
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
            yield run.entry(Kind.NOTE, f"{words}: no summary was made")

    def _summarised(self, run: Run, call: SummaryCall, closed: Closed) -> Iterator[Entry]:
        reply = closed.value
        if not isinstance(reply, SummaryReply):
            run.has_no_summary = True
            yield run.entry(Kind.NOTE, f"The oldest {call.count} messages could not be summarised: {closed.problem}")
            return
        if run.has_ended:
            yield run.entry(Kind.NOTE, f"A summary of the oldest {call.count} messages was made, and is not used")
            return
        memory = self._memory
        length = None if memory.length is None else memory.length - call.count + 1
        # The first of them is the summary before, where there was one.
        given_up = memory.given_up + call.count - (1 if memory.has_summary else 0)
        self._memory = Memory(length, given_up, has_summary=True)
        if run.main is None:
            run.checkpoint = self._memory  # made before the run's first turn, it is kept whatever becomes of it
        count = given_up if self._knows_all else 0
        yield run.entry(Kind.SUMMARY, reply.summary, count=count)


def _late(run: Run, entries: Iterator[Entry]) -> Iterator[Entry]:
    """Mark what comes of a run after its end."""
    is_late = run.has_ended
    for entry in entries:
        yield replace(entry, is_late=is_late)


def _results(facts: list[Fact]) -> Iterator[tuple[tuple[str, str], ToolResultPart]]:
    """Yield what models were told of calls: it may be other than what the tool gave back, such as after a changed approval."""
    for fact in facts:
        if isinstance(fact, Scheduled) and isinstance(fact.value, ModelCall):
            uid = fact.value.run.uid if fact.value.run else ""
            for message in fact.value.tail or ():
                for part in message.parts:
                    if isinstance(part, ToolResultPart):
                        yield (uid, part.call_id), part


def _ending(facts: list[Fact]) -> Iterator[str]:
    """Yield the uids of the runs that tell of their end."""
    for fact in facts:
        match fact:
            case Scheduled(value=RunReport(run=RunIdentity(uid=uid), finished_at=str())):
                yield uid


def _doing(value: ModelCall | ToolCall | SummaryCall) -> str:
    match value:
        case ModelCall():
            return f"the model of {value.agent}, turn {value.turn}"
        case ToolCall():
            return f"tool {value.tool} of {value.agent}"
        case SummaryCall():
            return "a summary"

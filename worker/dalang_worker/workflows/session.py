"""The workflow `AgentSession`: a conversation that lasts. It carries out the runs it is sent one after another.

Between two runs it continues as new when its history has grown. A change that alters its commands goes behind
`workflow.patched`, and `tests/workflow/histories` replays what earlier versions recorded.
"""

import asyncio
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError

with workflow.unsafe.imports_passed_through():
    from dalang_api import contract
    from dalang_api.contract import (
        CancelExchange,
        Decision,
        Exchange,
        LastRun,
        ReportResult,
        Retrying,
        RunIdentity,
        RunInput,
        RunReport,
        SessionInput,
        SessionReport,
        SessionSettings,
        Snapshot,
        SummaryCall,
        SummaryReply,
        TranscriptPage,
        TranscriptRequest,
        WorkflowTarget,
    )
    from dalang_api.v1alpha1.conditions import Phase, Reason

    from dalang_worker.conductor.budget import RunFailed
    from dalang_worker.conductor.memory import Memory, must_shorten, state_of, too_many
    from dalang_worker.conductor.report import context_texts, recent_messages, timestamp
    from dalang_worker.conductor.state import Answer, RunState
    from dalang_worker.workflows.execution import (
        HEARTBEAT_TIMEOUT,
        MODEL_START_TO_CLOSE,
        Ended,
        ReportHandle,
        RunExecution,
        start_report,
    )

SNAPSHOTS_KEPT = 3
"""The last ones that were sent: a run that is sent without names one of them."""
TOLD_PATIENCE_SECONDS = 5.0
"""How long a run waits until the end of the one before is written, and where it was queued its own begin: the answer tells
of a run that was deleted. With the operator away no run is held up for longer."""
WAITED_FOR_INTERVAL = timedelta(seconds=10)
REPORT_PATIENCE = timedelta(days=30)
"""How long the last report of a run, and of the session, is tried. A run of its own that could not tell its end is found by the
sweep, since its workflow has ended; that of a session goes on."""
CANCELLED_IN_TEMPORAL = "Its workflow was cancelled in Temporal"

CLOSED_BY_CONTROLLER = "closed-by-controller"
"""The change since when `idleTimeout` is the controller's: it alone knows of runs that came and were not sent."""
REFUSED_AT_ONCE = "refused-at-once"
"""The change since when closing ends the queued runs at once, whatever the one under way waits for."""
CONTINUED_LATER = "continued-later"
"""The change since when open reports put continuing as new off; before, the session stood still until they were written."""
PUT_OFF_MAX_BYTES = 16 * 1024 * 1024
"""How large a history may be for that: far below what Temporal ends a workflow at (50 MiB), and with room for a long run below
`contract.HISTORY_MAX_BYTES`. It is reached only while the reporter is away for hundreds of runs."""
PUT_OFF_MAX_EVENTS = 16_000
"""Likewise in events (Temporal: 51,200)."""


@workflow.defn(name=contract.SESSION_WORKFLOW)
class AgentSessionWorkflow:
    """Holds one conversation."""

    @workflow.init
    def __init__(self, session: SessionInput) -> None:
        self.target = contract.parse_workflow_id(workflow.info().workflow_id)
        self.memory = Memory.of(session)
        self.settings = session.settings
        state, now = session.state, timestamp(workflow.now())
        self._queue: list[Exchange] = list(state.queue) if state else []
        self._snapshots = dict(state.snapshots) if state else {}
        """By the digest under which they were sent, the newest last."""
        self._seen: list[str] = list(state.seen) if state else []
        self._started_at = state.started_at if state else now
        self._idle_since = (state.idle_since if state else None) or now
        self._seq = state.seq if state else 0
        self._runs = state.runs if state else 0
        self._last_run = state.last_run if state else None
        self._current: _ExchangeExecution | None = None
        self._reports: list[ReportHandle] = []
        """Last reports of runs that are not written yet."""
        self._was_told = False
        """Something was said to the session since it waits for its next run."""
        self._carried_bytes = 0

    @workflow.run
    async def run(self, session: SessionInput) -> SessionReport:
        """Carry runs out until the session is closed; return its last report."""
        self._carried_bytes = _weight(session)
        while await self._has_next():
            await self._carry_out(self._queue.pop(0))
            if self._is_long() and not self._puts_off():
                await self._continue()
        return await self._close()

    async def _has_next(self) -> bool:
        """Wait for the next run; return False when the session is to close instead."""
        while not (self._queue or self.settings.closed):
            self._was_told = False
            try:
                await workflow.wait_condition(lambda: self._was_told, timeout=self._idle_left())
            except TimeoutError:
                seconds = self.settings.idle_timeout_seconds or 0
                self._close_because(f"No run came within idleTimeout, {seconds:g}s")
            except asyncio.CancelledError:
                self._close_because(CANCELLED_IN_TEMPORAL)
        return self.settings.closed is None

    def _idle_left(self) -> timedelta | None:
        """Return what is left of `idleTimeout` in an execution that still keeps it itself; None where nothing is."""
        limit = self.settings.idle_timeout_seconds
        if limit is None or workflow.patched(CLOSED_BY_CONTROLLER):
            return None
        left = datetime.fromisoformat(self._idle_since) + timedelta(seconds=limit) - workflow.now()
        return max(left, timedelta())

    def _close_because(self, why: str) -> None:
        self.settings = self.settings.model_copy(update={"closed": why})

    async def _carry_out(self, exchange: Exchange) -> None:
        snapshot = self._snapshots.get(exchange.snapshot_digest) or next(reversed(self._snapshots.values()), None)
        if snapshot is None:
            self._end_unbegun(exchange.run, Phase.FAILED, Reason.WORKFLOW_FAILED, "The run came without its agents")
            return
        current = self._current = _ExchangeExecution(self, exchange, snapshot)
        if exchange.queued:
            await self._until_told(current.report_begin())
        task = current.start()
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if not task.done():
                    self._close_because(CANCELLED_IN_TEMPORAL)
                    current.cancel()
        self._current = None
        self._idle_since = timestamp(workflow.now())
        writing = task.result().writing
        if writing is not None:
            writing.add_done_callback(partial(self._learn, current))
        self._reports = [report for report in self._reports if not report.done()] + [writing or self._report()]
        await self._until_told(self._reports[-1])

    async def _until_told(self, report: "ReportHandle | None") -> None:
        """Wait until a report is written, and with it is known whether its run was deleted; the reporter may be away."""
        try:
            await workflow.wait([report] if report else [], timeout=TOLD_PATIENCE_SECONDS)
        except asyncio.CancelledError:
            self._close_because(CANCELLED_IN_TEMPORAL)

    def _learn(self, ended: "_ExchangeExecution", done: "asyncio.Future[dict[str, Any] | None]") -> None:
        """Give up what a run has said that was deleted before its end was told, if nothing was built on it yet."""
        if done.cancelled() or done.exception() is not None or self._current is not None:
            return
        if ReportResult.model_validate(done.result() or {}).gone and ended.undo():
            self._reports.append(self._report())

    async def _close(self) -> SessionReport:
        """Tell of the end, the runs that are still queued first."""
        closed_at = timestamp(workflow.now())
        while True:
            self._refuse_queued()
            self._reports.append(self._report(closed_at))
            await self._all_reported()
            if not self._queue:
                return self.session_report(self._seq, closed_at)

    def _refuse_queued(self) -> None:
        """End the runs whose turn does not come, since the session is closed."""
        message = f"AgentSession {self.target.name} was closed before the run's turn came. {self.settings.closed}"
        queue, self._queue = self._queue, []
        for exchange in queue:
            self._end_unbegun(exchange.run, Phase.FAILED, Reason.SESSION_CLOSED, message)

    def _refuse_at_once(self) -> None:
        """Do that while a run is under way, which may wait for a human for ever; without one `_close` does it now."""
        is_due = self.settings.closed is not None and self._current is not None and bool(self._queue)
        if is_due and workflow.patched(REFUSED_AT_ONCE):
            self._refuse_queued()

    # ── Continuing as new ──

    def _is_long(self) -> bool:
        info = workflow.info()
        size = info.get_current_history_size()
        return (
            size > max(contract.SESSION_CONTINUE_BYTES, 2 * self._carried_bytes) or info.is_continue_as_new_suggested()
        )

    def _puts_off(self) -> bool:
        """Return whether the next run comes first: an open report would be lost, and the reporter may be away."""
        info = workflow.info()
        is_small = (
            info.get_current_history_size() <= PUT_OFF_MAX_BYTES
            and info.get_current_history_length() <= PUT_OFF_MAX_EVENTS
        )
        is_open = not all(report.done() for report in self._reports)
        return is_open and is_small and workflow.patched(CONTINUED_LATER)

    async def _continue(self) -> None:
        """Continue as new, if what is to be carried is not too much, as after a very long run; then after the next."""
        await self._all_reported()
        carried = self._carried()
        if _weight(carried) <= contract.SESSION_CARRY_MAX_BYTES and not self.settings.closed:
            workflow.continue_as_new(carried)

    def _carried(self) -> SessionInput:
        wanted = {exchange.snapshot_digest for exchange in self._queue}
        newest = list(self._snapshots)[-1:]
        return SessionInput(
            agent=self.memory.agent,
            settings=self.settings,
            context=self.memory.context or None,
            state=state_of(
                self.memory,
                started_at=self._started_at,
                seq=self._seq,
                queue=self._queue,
                snapshots={digest: one for digest, one in self._snapshots.items() if digest in {*wanted, *newest}},
                seen=self._seen,
                runs=self._runs,
                last_run=self._last_run,
            ),
        )

    # ── What others say to the session ──

    @workflow.signal(name=contract.EXCHANGE_SIGNAL)
    def exchange(self, exchange: Exchange) -> None:
        """Take a run into the queue; a repeated one changes nothing."""
        if exchange.snapshot is not None:
            self._keep(exchange.snapshot_digest, exchange.snapshot)
        if self._sees(exchange.run):
            self._queue.append(exchange.model_copy(update={"snapshot": None}))
            self._was_told = True
            self._refuse_at_once()
            if self._current is not None:
                self._current.is_waited_for()

    @workflow.signal(name=contract.CANCEL_EXCHANGE_SIGNAL)
    def cancel_exchange(self, cancel: CancelExchange) -> None:
        """Have a run end, wherever it is; one that has ended stays as it is."""
        current, uid = self._current, cancel.run.uid
        if current is not None and current.uid == uid:
            current.cancel(deleted=bool(cancel.deleted))
            return
        queued = [exchange for exchange in self._queue if exchange.run.uid == uid]
        self._queue = [exchange for exchange in self._queue if exchange.run.uid != uid]
        is_new = self._sees(cancel.run)
        if cancel.deleted:
            return
        if queued or is_new:
            self._end_unbegun(cancel.run, Phase.CANCELLED, Reason.CANCELLED, "Cancelled before its turn came")
        elif all(report.done() for report in self._reports):
            # Else its end is still to be written; so this changes nothing but a status that would say Running for ever.
            self._tell_end(cancel.run, Phase.CANCELLED, Reason.CANCELLED, "Cancelled; its session had ended it before")

    @workflow.signal(name=contract.CONFIGURE_SIGNAL)
    def configure(self, settings: SessionSettings) -> None:
        """Take other settings; what has closed stays closed."""
        self.settings = settings.model_copy(update={"closed": self.settings.closed or settings.closed})
        self._was_told = True
        self._refuse_at_once()

    @workflow.signal(name=contract.DECIDE_SIGNAL)
    def decide(self, decision: Decision) -> None:
        """Take a human's decision about the run that is under way."""
        if self._current is not None:
            self._current.decide(decision)

    @workflow.signal(name=contract.RETRYING_SIGNAL)
    def retrying(self, retrying: Retrying) -> None:
        """Take note that an activity of the run that is under way fails and is tried again."""
        current = self._current
        if current is not None and (retrying.run is None or retrying.run.uid == current.uid):
            current.retrying(retrying)

    @workflow.signal(name=contract.REPORT_AGAIN_SIGNAL)
    def report_again(self) -> None:
        """Report the present state once more."""
        if self._current is not None:
            self._current.report_again()
        else:
            self._report()

    @workflow.query(name=contract.TRANSCRIPT_QUERY)
    def transcript(self, request: TranscriptRequest) -> TranscriptPage:
        """Return a page of a thread of the run that is under way."""
        if self._current is None:
            raise ValueError("no run is under way")
        return self._current.page(request)

    @workflow.query(name=contract.SNAPSHOT_QUERY)
    def snapshot(self) -> Snapshot:
        """Return what the run that is under way started with."""
        if self._current is None:
            raise ValueError("no run is under way")
        return self._current.state.snapshot

    def _sees(self, run: RunIdentity) -> bool:
        """Return whether the run is new, and remember it."""
        if run.uid in self._seen:
            return False
        self._seen = [*self._seen, run.uid][-contract.SESSION_SEEN_MAX :]
        return True

    def _keep(self, digest: str, snapshot: Snapshot) -> None:
        self._snapshots.pop(digest, None)
        self._snapshots[digest] = snapshot
        wanted = {exchange.snapshot_digest for exchange in self._queue}
        for old in list(self._snapshots)[:-SNAPSHOTS_KEPT]:
            if old not in wanted:
                del self._snapshots[old]

    # ── What the session says of itself ──

    def next_seq(self) -> int:
        """Return the number of the next report, of a run or of the session."""
        self._seq += 1
        return self._seq

    def has_ended(self, run: RunIdentity, phase: Phase) -> None:
        """Count a run."""
        self._runs += 1
        told = {"name": run.name, "phase": phase, "finished_at": timestamp(workflow.now())}
        self._last_run = LastRun.model_validate(told)

    def session_report(self, seq: int, closed_at: str | None = None) -> SessionReport:
        """Return the state of the session."""
        info, budget = workflow.info(), self.memory.budget
        return SessionReport(
            seq=seq,
            run_id=info.run_id,
            task_queue=info.task_queue,
            agent=self.memory.agent,
            started_at=self._started_at,
            runs=self._runs,
            queued_runs=len(self._queue),
            last_run=self._last_run,
            messages=recent_messages(self.memory.thread),
            summary=self.memory.summary,
            summary_problem=self.memory.summary_problem if self.settings.summary_enabled else None,
            context=context_texts(self.memory.context),
            input_tokens=budget.input_tokens,
            output_tokens=budget.output_tokens,
            cost_usd=f"{budget.cost_usd:f}" if budget.is_priced and budget.tokens() else None,
            closed_at=closed_at,
            closed_message=self.settings.closed if closed_at else None,
        )

    def _report(self, closed_at: str | None = None) -> ReportHandle:
        report = self.session_report(self.next_seq(), closed_at)
        return start_report(contract.REPORT_SESSION_ACTIVITY, report, self.target.installation, REPORT_PATIENCE)

    def _end_unbegun(self, run: RunIdentity, phase: Phase, reason: Reason, message: str) -> None:
        """End a run that never began."""
        self.has_ended(run, phase)
        self._tell_end(run, phase, reason, message)

    def _tell_end(self, run: RunIdentity, phase: Phase, reason: Reason, message: str) -> None:
        """Report the end of a run of which no more is known."""
        seq, now, info = self.next_seq(), timestamp(workflow.now()), workflow.info()
        report = RunReport.model_validate(
            {
                "seq": seq,
                "run_id": info.run_id,
                "task_queue": info.task_queue,
                "phase": phase,
                "reason": reason,
                "message": message,
                "agent": self.memory.agent,
                "agents": [],
                "started_at": now,
                "finished_at": now,
                "run": run,
                "session": self.session_report(seq),
            }
        )
        self._reports.append(start_report(contract.REPORT_ACTIVITY, report, self.target.installation, REPORT_PATIENCE))

    async def _all_reported(self) -> None:
        """Wait until all that was reported is written, or cannot be."""
        while self._reports:
            try:
                await asyncio.shield(self._reports[0])
            except asyncio.CancelledError:
                self._close_because(CANCELLED_IN_TEMPORAL)
                continue
            except ActivityError:
                workflow.logger.exception("a report could not be written")
            self._reports.pop(0)


class _ExchangeExecution(RunExecution):
    """A run of a session: it goes on with what was said before, and tells of the session, too."""

    report_patience = REPORT_PATIENCE

    def __init__(self, session: AgentSessionWorkflow, exchange: Exchange, snapshot: Snapshot) -> None:
        memory = session.memory
        self._session = session
        self._exchange = exchange
        self._task: asyncio.Task[Ended] | None = None
        self._left = memory.thread
        """The conversation as the run has left it."""
        self._has_begun = self._is_cancelled = self._is_deleted = False
        self._found = memory.checkpoint()
        """What a run that fails leaves."""
        known = {agent.name for agent in snapshot.agents}
        run = RunInput(
            agent=memory.agent if memory.agent in known else exchange.agent,
            messages=[],
            max_turns=exchange.max_turns,
            timeout_seconds=exchange.timeout_seconds,
            snapshot=snapshot,
            max_tokens=exchange.max_tokens,
            max_cost_usd=exchange.max_cost_usd,
            context={**memory.context, **(exchange.context or {})},
        )
        identity, target = exchange.run, session.target
        super().__init__(
            run,
            RunState(run, identity.uid, thread=memory.thread, identity=identity),
            WorkflowTarget(target.installation, target.namespace, identity.name, identity.uid),
        )

    @property
    def uid(self) -> str:
        """Uid of the AgentRun."""
        return self._exchange.run.uid

    def start(self) -> "asyncio.Task[Ended]":
        """Carry the run out in a task of its own, so that it can be cancelled alone."""
        self._task = asyncio.create_task(self.carry_out())
        return self._task

    def cancel(self, *, deleted: bool = False) -> None:
        """Have the run end; `deleted`: nobody is to be told."""
        self._is_cancelled = True
        self._is_deleted |= deleted
        if self._has_begun and self._task is not None:  # a task that has not begun would end without a word
            self._task.cancel()

    async def answer(self) -> Answer:
        """Go on with the conversation; where it has become too long for the model, once more with a summary.

        Raises:
            RunFailed: It ends without an answer.
        """
        self._has_begun = True
        if self._is_cancelled:
            raise asyncio.CancelledError
        if problem := contract.context_problem(self.state.main.context):
            raise RunFailed(Reason.INVALID_SPEC, f"spec.context and the session's context variables: {problem}")
        await self._make_room()
        before = len(self.state.main.thread.messages)
        for message in self._exchange.messages:
            self.state.main.thread.append(message)
        try:
            return await super().answer()
        except RunFailed as failed:
            if failed.reason is not Reason.CONTEXT_LENGTH or not before:
                raise
            too_long = failed
        memory, summary = self._session.memory, None
        if self._session.settings.summary_enabled and (summary := await self._summary(before)) is None:
            raise too_long
        if memory.thread.messages[-1].role == "assistant":  # what it said before it had no more room
            memory.take_back()
        self._shorten(before, summary or memory.summary)
        return await super().answer()

    async def _make_room(self) -> None:
        """Give up the oldest messages for a summary, where there are too many; without one they are kept while they may be."""
        memory, settings = self._session.memory, self._session.settings
        count = too_many(memory.thread, settings)
        if not count:
            memory.summary_problem = None
            return
        written = await self._summary(count) if settings.summary_enabled else None
        if settings.summary_enabled and written is None and not must_shorten(memory.thread):
            return
        self._shorten(count, written or memory.summary)
        if written or not settings.summary_enabled:
            self._found = memory.checkpoint()  # it was paid for, and is as good as what it stands for

    def _shorten(self, count: int, summary: str | None) -> None:
        memory = self._session.memory
        memory.shorten(count, summary)
        self.state.main.thread = memory.thread
        self.state.threads[memory.thread.name] = memory.thread

    async def _summary(self, count: int) -> str | None:
        """Return a summary of the oldest messages; None where no model could write it, which is not the run's failure."""
        thread, snapshot = self._session.memory.thread, self.state.snapshot
        agent = snapshot.agent(self._exchange.agent)
        wanted = self._session.settings.summary_model
        known = {model.name for model in snapshot.models}
        self.state.budget.check_spending()
        cost_left = self.state.budget.cost_left()
        call = SummaryCall(
            snapshot=self.state.snapshot_digest,
            model=wanted if wanted in known else agent.model,
            thread=thread.name,
            count=count,
            digest=thread.digest(count),
            run=self._exchange.run,
            max_cost_usd=None if cost_left is None else f"{cost_left:f}",
        )
        try:
            with self.state.clock.working(), self.awaiting("summary", "the summary of what was said before"):
                reply: SummaryReply = await workflow.execute_activity(
                    contract.SUMMARY_ACTIVITY,
                    call,
                    result_type=SummaryReply,
                    task_queue=agent.queue,
                    start_to_close_timeout=MODEL_START_TO_CLOSE,
                    heartbeat_timeout=HEARTBEAT_TIMEOUT,
                    retry_policy=RetryPolicy(maximum_attempts=contract.FALLBACK_ATTEMPTS),
                )
        except ActivityError as error:
            if isinstance(error.cause, CancelledError):
                raise asyncio.CancelledError from error
            workflow.logger.warning("the conversation goes on without a summary: %s", error.cause)
            self._session.memory.summary_problem = _why_none(error, call.model)
            self._charge_failed(error)
            return None
        self._session.memory.summary_problem = None
        self.state.budget.charge(reply)
        return reply.summary

    def _charge_failed(self, error: ActivityError) -> None:
        """Count a call that was paid for and gave no summary."""
        details = error.cause.details if isinstance(error.cause, ApplicationError) else ()
        if details:
            self.state.budget.charge(SummaryReply.model_validate(details[0]))

    # ── Reports ──

    def report_begin(self) -> "ReportHandle | None":
        """Tell that the run's turn has come; the answer says whether it was deleted meanwhile."""
        self.report_progress()
        return self._reporting

    def is_waited_for(self) -> None:
        """Another run waits for this one: should it have been deleted without a word, the answer to a report tells."""
        if workflow.now() - self._reported_at >= WAITED_FOR_INTERVAL:
            self.report_progress(REPORT_PATIENCE)

    def undo(self) -> bool:
        """Leave the conversation as it was before this run; return False where another has gone on with it."""
        memory = self._session.memory
        if memory.thread is not self._left:
            return False
        memory.restore(self._found)
        return True

    def end(self, phase: Phase, reason: Reason, message: str, answer: Answer | None = None) -> Ended:
        """Keep what was said, or give it up, and tell."""
        memory = self._session.memory
        if phase is Phase.SUCCEEDED:
            memory.agent, memory.context = self.state.agent, self.state.main.context
        else:
            memory.restore(self._found)
        self._left = memory.thread
        memory.budget.add(self.state.budget)
        self._session.has_ended(self._exchange.run, phase)
        if self._is_deleted:
            return self.end_untold(phase, reason, message)
        return super().end(phase, reason, message, answer)

    def report(
        self,
        phase: Phase,
        reason: Reason,
        message: str,
        answer: Answer | None = None,
        finished_at: datetime | None = None,
    ) -> RunReport:
        """Return the report of the run's present state, with that of its session."""
        report = super().report(phase, reason, message, answer, finished_at)
        session = self._session.session_report(report.seq)
        return report.model_copy(update={"run": self._exchange.run, "session": session})

    def next_seq(self) -> int:
        """Return the number of the next report: they are the session's."""
        return self._session.next_seq()

    def object_is_gone(self) -> None:
        """End the run: it was deleted, and nobody had told."""
        self.cancel(deleted=True)


def _weight(session: SessionInput) -> int:
    return len(session.model_dump_json(exclude_none=True).encode())


def _why_none(error: ActivityError, model: str) -> str:
    """Return why a model wrote no summary, as the session tells it."""
    cause = error.cause
    lost = f"AgentModel {model} gave no answer in time, or its worker was lost"
    words = cause.message if isinstance(cause, ApplicationError) else lost
    return words[: contract.APPROVAL_NOTE_MAX_CHARS].rstrip(".")

"""Carries one AgentRun out inside a workflow: gives the conductor's ports to Temporal, keeps the timeout, and reports.

A change that alters its commands goes behind `workflow.patched`, and `tests/workflow/histories` replays what earlier
versions recorded.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeAlias

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, TimeoutType
from temporalio.exceptions import TimeoutError as ActivityTimeoutError

with workflow.unsafe.imports_passed_through():
    from dalang_api import contract
    from dalang_api.contract import (
        AgentSnapshot,
        AnswerCheck,
        ApprovalRequest,
        Decision,
        ModelCall,
        ModelReply,
        ReportResult,
        Retrying,
        RetrySettings,
        RunInput,
        RunReport,
        SessionReport,
        ToolCall,
        ToolOutcome,
        TranscriptPage,
        TranscriptRequest,
        WorkflowTarget,
    )
    from dalang_api.v1alpha1.conditions import Phase, Reason

    from dalang_worker.conductor.approvals import Pending
    from dalang_worker.conductor.budget import RunFailed
    from dalang_worker.conductor.loop import converse
    from dalang_worker.conductor.report import make_report, timestamp
    from dalang_worker.conductor.state import A_DECISION, Answer, Question, RunState

MODEL_START_TO_CLOSE = timedelta(minutes=10)
"""One attempt of a model call; a long answer of a large model takes minutes."""
HEARTBEAT_TIMEOUT = timedelta(seconds=10)
"""After a lost worker, how long until its activities are given to another. Activities beat every 2 s."""
CALL_RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=2.0, maximum_interval=timedelta(minutes=1)
)
"""Of tool calls, which are made again only when their worker was lost or the tool asks for it. Model calls have the same
unless their agent's `retry` says otherwise."""
ONCE = RetryPolicy(maximum_attempts=1)
"""Of a tool that must not run twice: not even when nobody can know whether it ran."""
NO_FAULT_OF_THE_MODEL = frozenset(
    {
        Reason.TOOL_NOT_FOUND,
        Reason.SERVER_NOT_FOUND,
        Reason.RETRIEVER_NOT_FOUND,
        "Interrupted",
        "TranscriptUnavailable",
    }
)
"""Failures of a model call that pass with a rollout, whatever `retry.maximumAttempts` says: something that this worker
does not have yet, a worker that was stopped, a workflow that could not be asked."""
REPORT_RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=10)
)
ONE_REPORT = "one-report"
"""The change since when a report replaces the one under way."""
PROGRESS_INTERVAL = timedelta(seconds=30)
"""Progress is reported at most this often: each report is a write to the API server and six events of history."""


ReportHandle: TypeAlias = "workflow.ActivityHandle[dict[str, Any] | None]"
"""A report on its way."""


@dataclass(frozen=True)
class Ended:
    """How a run ended, and its last report, which may still be on its way."""

    report: RunReport
    writing: "ReportHandle | None"
    """None where there is nobody to report to: the AgentRun was deleted."""
    failure: RunFailed | None = None

    async def reported(self) -> None:
        """Wait until the last report is written, whatever happens to the workflow meanwhile."""
        while self.writing is not None and not self.writing.done():
            try:
                await asyncio.shield(self.writing)
            except asyncio.CancelledError:
                continue
            except ActivityError:
                workflow.logger.exception("the last report could not be written; the sweep will")


def start_report(
    activity: str, report: RunReport | SessionReport, installation: str, give_up_after: timedelta | None
) -> ReportHandle:
    """Have the operator's reporter write what a workflow reports."""
    return workflow.start_activity(
        activity,
        report,
        task_queue=contract.reporter_queue(installation),
        start_to_close_timeout=timedelta(seconds=10),
        schedule_to_close_timeout=give_up_after,
        retry_policy=REPORT_RETRY,
        # One that a reporter has at hand is carried out all the same: what it has made is to be known.
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
    )


class RunExecution:
    """One run under way."""

    report_patience = timedelta(hours=24)
    """How long the last report is tried; then the sweep finds a workflow that has ended without its run's saying so."""

    def __init__(self, run: RunInput, state: RunState, target: WorkflowTarget) -> None:
        """Take a run up; `target` names the AgentRun."""
        self._run = run
        self._target = target
        self.state = state
        state.clock.changed = state.approvals.changed = self._changed
        self._will_look = False
        self._told: tuple[bool, tuple[str, ...], str] = self._approvals_now()
        """What the last report said of approvals."""
        self._learned = 0
        """Number of the newest report whose AgentApprovals are known."""
        self._started_at = workflow.now()
        self._seq = 0
        self._reported_at = self._started_at
        self._reporting: ReportHandle | None = None
        self._retrying: dict[str, Retrying] = {}
        """For each thread whose model call fails: how."""
        self._has_recovered = False
        self._has_ended = False
        self._waiting: dict[str, str] = {}
        """What is awaited, the oldest first; side by side there are several."""
        self._stopped = _Stopped()

    async def carry_out(self) -> Ended:
        """Carry the run out; a cancel ends it, too, and is not raised."""
        try:
            async with self.state.clock.limit(self._run.timeout_seconds):
                answer = await self.answer()
        except TimeoutError:
            failure = RunFailed(Reason.TIMEOUT, self._timeout_message(self._run.timeout_seconds))
            return self._fail(failure)
        except RunFailed as failure:
            return self._fail(failure)
        except asyncio.CancelledError:
            message = f"Cancelled while waiting for {self._waiting_for()}"
            return self.end(Phase.CANCELLED, Reason.CANCELLED, message)
        message = f"{self.state.agent} answered after {self._turns()}{self._model()}"
        return self.end(Phase.SUCCEEDED, Reason.ANSWERED, message, answer)

    async def answer(self) -> Answer:
        """Have the conversation until its agent answers.

        Raises:
            RunFailed: It ends without an answer.
        """
        return await converse(self.state, self.state.main, self)

    # ── What others ask of a running run ──

    def page(self, request: TranscriptRequest) -> TranscriptPage:
        """Return a page of a thread."""
        thread = self.state.threads[request.thread]
        return TranscriptPage(messages=thread.page(request.start, request.count))

    def retrying(self, retrying: Retrying) -> None:
        """Take note that an activity fails and is tried again, so that the condition can say so."""
        before = self._retrying.get(retrying.thread)
        first = before is None or before.reason != retrying.reason
        self._retrying[retrying.thread] = retrying
        if first or self._is_report_due():
            self.report_progress()

    def decide(self, decision: Decision) -> None:
        """Take a human's decision; it counts if it is the first about exactly what is pending."""
        self.state.approvals.decide(decision)

    def report_again(self) -> None:
        """Report the present state once more; somebody found the object's status out of date."""
        self.state.approvals.forget_what_was_told()
        self.report_progress()

    # ── The conductor's ports ──

    async def model(self, agent: AgentSnapshot, call: ModelCall, attempts: int) -> ModelReply:
        """Make a model call as one activity, on the queue of the agent's pool."""
        retry = agent.retry or RetrySettings()
        attempt_timeout = timedelta(seconds=retry.timeout_seconds) if retry.timeout_seconds else MODEL_START_TO_CLOSE
        reply: ModelReply | None = None
        try:
            with self.awaiting(f"model {call.thread}", f"the model of {self._place(agent)} (turn {call.turn})"):
                while reply is None:
                    reply = await self._try_model(agent, call, attempt_timeout, _retry_policy(retry, attempts))
        except BaseException:
            self._retrying.pop(call.thread, None)
            raise
        self._recovered(call.thread)
        return reply

    async def _try_model(
        self, agent: AgentSnapshot, call: ModelCall, attempt_timeout: timedelta, retry_policy: RetryPolicy
    ) -> ModelReply | None:
        """Make the activity; None, after a second, where it failed by nothing that says anything of the model."""
        reply: ModelReply
        try:
            reply = await workflow.execute_activity(
                contract.MODEL_ACTIVITY,
                call,
                result_type=ModelReply,
                task_queue=agent.queue,
                start_to_close_timeout=attempt_timeout,
                heartbeat_timeout=HEARTBEAT_TIMEOUT,
                retry_policy=retry_policy,
            )
        except ActivityError as error:
            if not _is_no_fault_of_the_model(error):
                raise _stopped_by(error, call.model or agent.model, retry_policy.maximum_attempts) from error
            await asyncio.sleep(1)
            return None
        return reply

    async def tool(self, agent: AgentSnapshot, call: ToolCall) -> ToolOutcome:
        """Make a tool call as one activity, on the queue of the agent's pool."""
        if self._has_recovered:
            self.report_progress()
        outcome: ToolOutcome
        with self.awaiting(f"tool {call.call_id}", f"tool {call.tool} of {self._place(agent)} (turn {call.turn})"):
            try:
                outcome = await workflow.execute_activity(
                    contract.MCP_ACTIVITY if call.server is not None else contract.TOOL_ACTIVITY,
                    call,
                    result_type=ToolOutcome,
                    task_queue=agent.queue,
                    start_to_close_timeout=timedelta(seconds=self._run.timeout_seconds),
                    heartbeat_timeout=HEARTBEAT_TIMEOUT,
                    retry_policy=ONCE if call.once else CALL_RETRY,
                )
            except ActivityError as error:
                if call.once and not isinstance(error.cause, CancelledError):
                    return _unknown_outcome(call.tool)
                raise _stopped_by(error) from error
        return outcome

    async def check_answer(self, agent: AgentSnapshot, answer: dict[str, Any]) -> str | None:
        """Check an answer that an approver has changed, as one activity."""
        with self.awaiting("answer", f"the check of an answer of {self._place(agent)}"):
            try:
                problem: str | None = await workflow.execute_activity(
                    contract.CHECK_ANSWER_ACTIVITY,
                    AnswerCheck(output_schema=agent.output_schema or {}, answer=answer),
                    task_queue=agent.queue,
                    start_to_close_timeout=timedelta(seconds=30),
                )
            except ActivityError as error:
                raise _stopped_by(error) from error
        return problem

    def ask(self, agent: AgentSnapshot, question: Question) -> Pending:
        """Ask a human: the report makes an AgentApproval of it, and the decision comes as a signal."""
        needed, now = question.needed, workflow.now()
        expires_at = None if needed.timeout_seconds is None else now + timedelta(seconds=needed.timeout_seconds)
        return self.state.approvals.ask(
            ApprovalRequest(
                name=contract.approval_name(self._target.name, self._target.suffix, question.place),
                subject="Output" if question.tool is None else "ToolCall",
                agent=agent.name,
                tool=question.tool,
                target=needed.target,
                question=needed.question,
                arguments=needed.arguments,
                digest=needed.digest,
                requested_at=timestamp(now),
                expires_at=timestamp(expires_at) if expires_at else None,
            )
        )

    def model_call_is_made_again(self, call: ModelCall, why: str) -> None:
        """Tell it as what a model activity tells of itself."""
        self.retrying(Retrying(reason=Reason.MODEL_RETRYING, message=why, thread=call.thread))

    def patched(self, change: str) -> bool:
        """Return whether this run's history is one of after a change."""
        return workflow.patched(change)

    def history_is_full(self) -> bool:
        """Return whether the history comes near the size at which Temporal ends a workflow without a word."""
        info = workflow.info()
        return (
            info.get_current_history_size() > contract.HISTORY_MAX_BYTES
            or info.get_current_history_length() > contract.HISTORY_MAX_EVENTS
        )

    def turn_done(self) -> None:
        """Report progress if the last report is old enough."""
        if self._has_recovered or self._is_report_due() or self._approvals_now() != self._told:
            self.report_progress()

    # ── Reports ──

    def _recovered(self, thread: str) -> None:
        """After a model call that had been failing: the condition must not go on saying so, should the run go on."""
        self._has_recovered |= self._retrying.pop(thread, None) is not None

    def _changed(self) -> None:
        """What waits for humans has changed, or whether anything else is awaited. Told once all that is due has been done."""
        if not self._will_look and not self._has_ended:
            self._will_look = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._will_look = False
        if self._approvals_now()[:2] != self._told[:2]:
            self.report_progress(timedelta(days=1))

    def _approvals_now(self) -> tuple[bool, tuple[str, ...], str]:
        """Whether all waits for approvals, the names of those, and the last that ended."""
        approvals = self.state.approvals
        last = approvals.ended[-1].name if approvals.ended else ""
        return self.state.clock.stands_still, tuple(approvals.pending), last

    def _is_report_due(self) -> bool:
        return workflow.now() - self._reported_at >= PROGRESS_INTERVAL

    def report_progress(self, give_up_after: timedelta = timedelta(minutes=1)) -> None:
        """Send a report and do not wait for it: a later one replaces it, so it may get lost, but not while it asks.

        None after the last: with its higher `seq` it would keep that out of the status.
        """
        if self._has_ended:
            return
        self._reported_at = workflow.now()
        self._has_recovered = False
        reason, message = Reason.RUNNING, f"Turn {self.state.budget.turns}"
        for retrying in self._retrying.values():
            reason, message = Reason.parse(retrying.reason) or reason, retrying.message
        phase, pending = Phase.RUNNING, self.state.approvals.pending
        self._told = self._approvals_now()
        if self.state.clock.stands_still:
            phase, reason = Phase.AWAITING_APPROVAL, Reason.AWAITING_APPROVAL
            message = "; ".join(one.request.question for one in pending.values())
        report = self.report(phase, reason, message)
        sent = self._start_report(report, None if pending else give_up_after)
        sent.add_done_callback(partial(self._learn, report))

    def _learn(self, report: RunReport, done: "asyncio.Future[dict[str, Any] | None]") -> None:
        """Take note of the AgentApprovals that a report has made. A report that was lost is none to asyncio's log.

        What an older one says of them comes too late: an approval may have been made anew since.
        """
        if done.cancelled() or done.exception() is not None:
            return
        result = ReportResult.model_validate(done.result() or {})
        if result.gone:
            self.object_is_gone()
        self.state.approvals.were_told(report.ended_approvals or ())
        if report.seq > self._learned:
            self._learned = report.seq
            self.state.approvals.learn(result.approvals or {})

    def _fail(self, failure: RunFailed) -> Ended:
        return replace(self.end(Phase.FAILED, failure.reason, failure.message), failure=failure)

    def end(self, phase: Phase, reason: Reason, message: str, answer: Answer | None = None) -> Ended:
        """Send the last report.

        What is left of it, the workflow's result, is without the messages: they stand in the history twice as it is.
        """
        self._has_ended = True
        report = self.report(phase, reason, message, answer=answer, finished_at=workflow.now())
        return Ended(report.model_copy(update={"messages": []}), self._start_report(report, self.report_patience))

    def end_untold(self, phase: Phase, reason: Reason, message: str) -> Ended:
        """End without a word: the AgentRun was deleted."""
        self._has_ended = True
        if self._reporting is not None:
            self._reporting.cancel()
        return Ended(self.report(phase, reason, message, finished_at=workflow.now()), None)

    def report(
        self,
        phase: Phase,
        reason: Reason,
        message: str,
        answer: Answer | None = None,
        finished_at: datetime | None = None,
    ) -> RunReport:
        """Return the report of the present state, with the next number."""
        self._seq = self.next_seq()
        info = workflow.info()
        return make_report(
            self.state,
            seq=self._seq,
            run_id=info.run_id,
            task_queue=info.task_queue,
            phase=phase,
            reason=reason,
            message=message,
            started_at=self._started_at,
            finished_at=finished_at,
            answer=answer,
        )

    def next_seq(self) -> int:
        """Return the number of the next report."""
        return self._seq + 1

    def object_is_gone(self) -> None:
        """Take note that the AgentRun was deleted. The workflow of a run of its own is terminated for it."""

    def _start_report(self, report: RunReport, give_up_after: timedelta | None) -> ReportHandle:
        """Start a report in place of the one under way.

        While the operator is away Temporal would try that for ever with what it said at first, and so each of those that
        came after it. The new one waits for nothing, since the reporter takes no status back to an older report; else one
        that cannot succeed, as where another object has the name of an AgentApproval, would hold up all later ones.
        """
        if self._reporting is not None and not self._reporting.done() and workflow.patched(ONE_REPORT):
            self._reporting.cancel()
        self._reporting = start_report(contract.REPORT_ACTIVITY, report, self._target.installation, give_up_after)
        return self._reporting

    def _turns(self) -> str:
        turns = self.state.budget.turns
        return "1 turn" if turns == 1 else f"{turns} turns"

    def _model(self) -> str:
        """Name the model where it was not the agent's first."""
        place = self.state.models.get(self.state.agent)
        return f", by AgentModel {self.state.snapshot.agent(self.state.agent).models()[place]}" if place else ""

    def _timeout_message(self, timeout_seconds: float) -> str:
        message = f"limits.timeout of {timeout_seconds:g}s passed while waiting for {self._waiting_for()}"
        return "; ".join([message, *(self._stopped.failing if self._stopped.at == workflow.now() else ())])

    @contextmanager
    def awaiting(self, key: str, what: str) -> Iterator[None]:
        """Remember what is awaited, for the message of a run that is stopped meanwhile."""
        self._waiting[key] = what
        try:
            yield
        except asyncio.CancelledError:
            if self._stopped.at != workflow.now():  # the first of all that are stopped now
                failing = tuple(f"{one.reason}: {one.message}" for one in self._retrying.values())
                self._stopped = _Stopped(workflow.now(), self._waiting_for(), failing)
            raise
        finally:
            del self._waiting[key]

    def _waiting_for(self) -> str:
        if self._stopped.at == workflow.now():
            return self._stopped.waiting_for
        # A decision last: while anything else is awaited time counts, and that is what took it.
        waiting = sorted(self._waiting.values(), key=lambda what: what == A_DECISION)
        return next(iter(waiting), "the first turn")

    def _place(self, agent: AgentSnapshot) -> str:
        """Name an agent, and its pool where it is another than the run's: a pool without workers answers nothing."""
        if agent.queue == workflow.info().task_queue:
            return agent.name
        return f"{agent.name} in pool {contract.pool_of_queue(agent.queue)}"


@dataclass(frozen=True)
class _Stopped:
    """How things stood when something that was awaited was stopped last: what to tell of a run that ends with it."""

    at: datetime | None = None
    waiting_for: str = ""
    failing: tuple[str, ...] = ()


def _retry_policy(retry: RetrySettings, attempts: int) -> RetryPolicy:
    return RetryPolicy(
        initial_interval=timedelta(seconds=retry.initial_seconds or 1.0),
        backoff_coefficient=2.0,
        maximum_interval=timedelta(seconds=max(retry.maximum_seconds or 60.0, retry.initial_seconds or 1.0)),
        maximum_attempts=attempts,
    )


def _is_no_fault_of_the_model(error: ActivityError) -> bool:
    """Return whether a call failed, its attempts used up, by what says nothing of the model: it is made again."""
    cause = error.cause
    if isinstance(cause, ApplicationError):
        return cause.type in NO_FAULT_OF_THE_MODEL
    return isinstance(cause, ActivityTimeoutError) and cause.type is TimeoutType.HEARTBEAT


def _unknown_outcome(tool: str) -> ToolOutcome:
    words = (
        f"The outcome of {tool} is unknown: its worker was lost while it ran. It may have done its work or not, and it is "
        "not run again by itself. Find out before you call it again."
    )
    return ToolOutcome(output=words, is_error=True)


def _stopped_by(error: ActivityError, model: str = "", attempts: int = 0) -> RunFailed | asyncio.CancelledError:
    """Turn an activity's failure for good into the reason the user is told.

    A cancelled activity fails like any other, while a cancel and `asyncio.timeout` wait for asyncio's own exception:
    without this a run that was cancelled or timed out would end as `WorkflowFailed`.
    """
    cause = error.cause
    tried = f"AgentModel {model} failed {attempts} times, retry.maximumAttempts; the last time: "
    if isinstance(cause, CancelledError):
        return asyncio.CancelledError()
    if isinstance(cause, ApplicationError) and (reason := Reason.parse(cause.type)):
        if reason is Reason.MODEL_RETRYING:
            return RunFailed(Reason.MODEL_FAILED, tried + cause.message)
        return RunFailed(reason, cause.message)
    if model and isinstance(cause, ActivityTimeoutError):
        return RunFailed(Reason.MODEL_FAILED, tried + "no answer within retry.timeout, or its worker was lost")
    return RunFailed(Reason.WORKFLOW_FAILED, f"{error.activity_type}: {cause or error}")

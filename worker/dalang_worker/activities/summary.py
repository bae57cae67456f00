"""The activity `summarise`: one model call that makes a summary of a conversation's older messages."""

import asyncio
import math
from decimal import Decimal

from dalang_api import contract, prices
from dalang_api.contract import Message, ModelSnapshot, SummaryCall, SummaryReply, TextPart
from dalang_api.v1alpha1.conditions import Reason
from temporalio import activity

from dalang_worker import summaries
from dalang_worker.activities.failures import final
from dalang_worker.activities.model_calls import ModelCalls, complete, cost_of, failure_of, tokens_for
from dalang_worker.providers import ModelAnswer, ModelCallError, ModelRequest
from dalang_worker.runs import calling_run

HALVINGS_MAX = 3
"""How often a transcript that is too long for the model is sent again, half as long each time."""


class SummaryActivity:
    """Makes summaries for every session of this worker."""

    def __init__(self, calls: ModelCalls) -> None:
        self._calls = calls

    @activity.defn(name=contract.SUMMARY_ACTIVITY)
    async def summarise(self, call: SummaryCall) -> SummaryReply:
        """Make one model call, more only where the transcript is too long for the model, and return the summary.

        A failure for good that was paid for carries a `SummaryReply` without a summary in its details.
        """
        async with self._calls.guarded(call):
            return await self._summarise(call)

    async def _summarise(self, call: SummaryCall) -> SummaryReply:
        run = calling_run(call, activity.info())
        snapshot = await self._calls.snapshots.get(run.workflow, call.snapshot)
        model = next((one for one in snapshot.models if one.name == call.model), None)
        if model is None:
            words = f"The run was sent without AgentModel {call.model}, which is to make the summary"
            raise final(Reason.MODEL_NOT_FOUND, words)
        affordable = None if call.max_cost_usd is None else tokens_for(model, call.max_cost_usd)
        messages = await self._calls.transcripts.messages_to_summarise(run.workflow, call)
        # Away from the worker's loop: it may be half a megabyte.
        transcript = await asyncio.to_thread(summaries.transcript_text, messages)
        return await self._ask(call, model, affordable, transcript)

    async def _ask(
        self, call: SummaryCall, model: ModelSnapshot, affordable: int | None, transcript: str
    ) -> SummaryReply:
        """Ask the model, each time with half as much, until it fits the model's context."""
        provider = await self._calls.provider(model.provider)
        paid = SummaryReply(summary="", cost_usd="0")
        size = min(len(transcript.encode()), summaries.TRANSCRIPT_MAX_BYTES)
        for halvings in range(HALVINGS_MAX + 1):
            text = summaries.shortened(transcript, size >> halvings)
            try:
                answer = await complete(provider, self._request(model, affordable, text))
            except ModelCallError as error:
                failure = failure_of(error)
            else:
                paid = _charged(paid, model, answer)
                if answer.failure is None or answer.failure.reason != Reason.CONTEXT_LENGTH:
                    return _read(call, model, affordable, answer, paid)
                failure = final(Reason.CONTEXT_LENGTH, answer.failure.message, paid)
            if failure.type != Reason.CONTEXT_LENGTH:
                raise failure from None
        raise failure from None

    def _request(self, model: ModelSnapshot, affordable: int | None, transcript: str) -> ModelRequest:
        limits = (model.max_output_tokens, affordable)
        return ModelRequest(
            model=model,
            credentials=self._calls.credentials_or_wait(model),
            instructions=summaries.INSTRUCTIONS,
            messages=[Message(role="user", parts=[TextPart(text=summaries.request_text(transcript))])],
            temperature=float(model.temperature) if model.temperature else None,
            max_output_tokens=min((limit for limit in limits if limit is not None), default=None),
        )


def _read(
    call: SummaryCall, model: ModelSnapshot, affordable: int | None, answer: ModelAnswer, paid: SummaryReply
) -> SummaryReply:
    """Return the reply. A summary that was cut at the model's own output limit is one; the conversation can do with it.

    Raises:
        ApplicationError: There is none.
    """
    stop = answer.failure
    is_cut = stop is not None and stop.reason == Reason.OUTPUT_TRUNCATED
    if is_cut and affordable is not None and affordable < (model.max_output_tokens or math.inf):
        words = f"The summary was cut at what was left of limits.maxCostUSD: {call.max_cost_usd}"
        raise final(Reason.COST_BUDGET, words, paid)
    summary = summaries.kept_summary("\n".join(part.text for part in answer.parts if isinstance(part, TextPart)))
    if stop is not None and not (is_cut and summary):
        raise final(Reason.MODEL_FAILED, f"The model made no summary: {stop.message}", paid)
    if not summary:
        raise final(Reason.MODEL_FAILED, "The model made no summary: its answer is empty", paid)
    return paid.model_copy(update={"summary": summary})


def _charged(paid: SummaryReply, model: ModelSnapshot, answer: ModelAnswer) -> SummaryReply:
    cost = cost_of(model, answer.usage)
    is_priced = cost is not None and paid.cost_usd is not None
    return SummaryReply(
        summary="",
        input_tokens=paid.input_tokens + answer.usage.input_tokens,
        output_tokens=paid.output_tokens + answer.usage.output_tokens,
        cost_usd=prices.decimal_text(Decimal(paid.cost_usd or 0) + (cost or 0)) if is_priced else None,
    )

"""The activity `model`: one model call.

It does everything about a turn that a later release might do otherwise (render instructions, look passages up, find the
tools' schemas, judge calls and answers, price the usage), and returns what it found, so that the workflow decides by
recorded facts only.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

from cachetools import LRUCache
from dalang.tools import registered_tools
from dalang_api import contract, output_schema, prices
from dalang_api.contract import (
    AgentSnapshot,
    ApprovalFloor,
    ApprovalNeeded,
    CallVerdict,
    Failure,
    Message,
    ModelCall,
    ModelReply,
    ModelSnapshot,
    OpaquePart,
    Snapshot,
    TextPart,
    ToolCallPart,
    ToolChoice,
)
from dalang_api.v1alpha1.conditions import Reason
from temporalio import activity
from temporalio.exceptions import ApplicationError

from dalang_worker import approvals, instructions
from dalang_worker.activities.failures import final, retryable
from dalang_worker.activities.model_calls import ModelCalls, complete, cost_of, failure_of, price_unknown, tokens_for
from dalang_worker.approvals import Circumstances, UnshowableError
from dalang_worker.providers import (
    EMBEDDERS,
    CallFailure,
    Embedder,
    Embedding,
    ModelAnswer,
    ModelCallError,
    ModelRequest,
    RequestedCall,
    Verdict,
)
from dalang_worker.retrieval import RetrievalError, Retrievers
from dalang_worker.runs import CallingRun, RunKey, calling_run
from dalang_worker.settings import WorkerSettings
from dalang_worker.text import clean, cut
from dalang_worker.tools.offer import NotHereError, Offers, Servers, make_offers
from dalang_worker.tools.runner import ToolRunner

log = logging.getLogger(__name__)

TOOL_NAME_MAX_CHARS = 128
LOOKED_UP_NOTHING = (
    "Documents should stand here, and they could not be looked up. Say so where the answer depends on them."
)
PASSAGES_MAX_BYTES = 16 * 1024 * 1024
"""The most that looked-up passages may take in memory; what is forgotten is looked up again."""


PassagesKey = tuple[RunKey, str, str, str, int]
"""Workflow, uid of the run, thread, retriever, and the place of the user's message in the thread: in a session, a message of
another run takes the place of one whose run has failed."""


@dataclass(frozen=True)
class Passages:
    """What a retrieval brought, or why it did not; found again for the same message, it costs nothing."""

    text: str | None = None
    failure: str | None = None
    input_tokens: int = 0
    cost_usd: Decimal | None = Decimal(0)

    def size_bytes(self) -> int:
        """Return about what they take in memory."""
        return len((self.text or "").encode()) + 600


class ModelActivity:
    """Makes model calls for every run of this worker."""

    def __init__(self, calls: ModelCalls, settings: WorkerSettings, runner: ToolRunner, servers: Servers) -> None:
        self._calls = calls
        self._settings = settings
        self._runner = runner
        self._servers = servers
        self._retrievers = Retrievers(settings.retrievers, settings.secrets_path, self._embed)
        self._passages: LRUCache[PassagesKey, Passages] = LRUCache(PASSAGES_MAX_BYTES, getsizeof=Passages.size_bytes)

    @activity.defn(name=contract.MODEL_ACTIVITY)
    async def model(self, call: ModelCall) -> ModelReply:
        """Make one model call and return the reply with a verdict on each tool call it asks for."""
        async with self._calls.guarded(call):
            return await self._complete(call)

    async def _complete(self, call: ModelCall) -> ModelReply:
        run = calling_run(call, activity.info())
        snapshot = await self._calls.snapshots.get(run.workflow, call.snapshot)
        agent = snapshot.agent(call.agent)
        model = snapshot.model(call.model or agent.model)
        await _check_schema(agent)
        cap = answer_cap(call, model)
        most = cap[0] if cap else None
        circumstances = circumstances_of(agent, call, run, self._settings.approvals)
        offers = await self._offers(agent, snapshot, circumstances)
        messages = await self._calls.transcripts.messages(run.workflow, call)
        passages = await self._look_up(run, call, agent, messages, snapshot)
        provider = await self._calls.provider(model.provider)
        takes_schema = agent.output_schema is not None and provider.takes_schema(model, agent.output_schema)
        wanted = agent.max_output_tokens or model.max_output_tokens
        request = ModelRequest(
            model=model,
            credentials=self._calls.credentials_or_wait(model),
            instructions=instructions.compose(
                await instructions.render(agent, call, run, self._runner),
                notes=[*offers.missing, *([LOOKED_UP_NOTHING] if passages.failure else [])],
                passages=passages.text,
                schema=None if takes_schema else agent.output_schema,
            ),
            messages=messages,
            tools=[offer.spec for offer in offers.tools.values()],
            tool_choice=tool_choice(agent, messages, offers),
            parallel_tool_calls=agent.parallel_tool_calls,
            output_schema=agent.output_schema if takes_schema else None,
            temperature=_temperature(agent, model),
            max_output_tokens=min((limit for limit in (wanted, most) if limit is not None), default=None),
        )
        try:
            answer = await complete(provider, request)
        except ModelCallError as error:
            raise failure_of(error, has_next=bool(call.has_next)) from None
        blame = cap[1] if cap and (wanted is None or cap[0] < wanted) else None
        try:
            # Away from the worker's loop: a large schema takes a while, and so do policies of approval.
            reply = await asyncio.to_thread(make_reply, call, agent, model, answer, offers, blame)
        except ApplicationError:
            raise
        except Exception as error:  # a bug here; the call is paid for, and must not be made again
            log.exception("%s: the model's answer could not be read", run)
            words = f"{type(error).__name__} in the worker while reading the model's answer; see its log"
            raise final(Reason.MODEL_FAILED, words) from None
        self._calls.transcripts.said(run.workflow, call.thread, reply.message)
        self._paid_for(run, call, agent, messages)
        return _with_passages(reply, passages)

    async def _offers(self, agent: AgentSnapshot, snapshot: Snapshot, circumstances: Circumstances) -> Offers:
        try:
            return await make_offers(agent, snapshot, registered_tools(), self._servers, circumstances)
        except NotHereError as error:
            raise retryable(error.reason, str(error)) from None

    async def _look_up(
        self, run: CallingRun, call: ModelCall, agent: AgentSnapshot, messages: list[Message], snapshot: Snapshot
    ) -> Passages:
        """Look the user's last message up, once however many turns it takes to answer."""
        place = _last_of_user(messages)
        if agent.retriever is None or place is None:
            return Passages()
        if not self._retrievers.has(agent.retriever):
            words = f"This worker's pool has no retriever {agent.retriever}, or not yet"
            raise retryable(Reason.RETRIEVER_NOT_FOUND, words)
        key = (run.workflow, run.uid, call.thread, agent.retriever, place)
        if (known := self._passages.get(key)) is not None:
            return known
        try:
            found = await self._retrievers.retrieve(agent.retriever, messages[place].text(), snapshot)
        except RetrievalError as error:
            log.warning("%s: nothing could be looked up: %s", run, error)
            return Passages(failure=str(error))
        settings = next(one for one in self._settings.retrievers if one.name == agent.retriever)
        cost = cost_of(found.model, found.usage, settings.embedding_name)
        if cost is None and call.max_cost_usd is not None:
            raise price_unknown(found.model, settings.embedding_name or found.model.model)
        self._passages[key] = Passages(found.text, None, found.usage.input_tokens, cost)
        return self._passages[key]

    def _paid_for(self, run: CallingRun, call: ModelCall, agent: AgentSnapshot, messages: list[Message]) -> None:
        """A reply has carried what the passages cost; the next one that uses them is not to carry it again."""
        key = (run.workflow, run.uid, call.thread, agent.retriever or "", _last_of_user(messages) or 0)
        if (known := self._passages.get(key)) is not None:
            self._passages[key] = Passages(known.text)

    async def _embed(self, model: ModelSnapshot, name: str, text: str) -> Embedding:
        if model.provider not in EMBEDDERS:
            failure = CallFailure(Verdict.FINAL, Reason.MODEL_FAILED)
            words = f"AgentModel {model.name} has provider {model.provider}, which has no embeddings; name one of"
            raise ModelCallError(failure, f"{words} {' or '.join(EMBEDDERS)}")
        provider = cast(Embedder, await self._calls.provider(model.provider))
        return await provider.embed(model, self._calls.credentials(model), name, text)

    async def close(self) -> None:
        """Close the connections to retrievers."""
        await self._retrievers.close()


# ── The request ────────────────────────────────────────────────────────────────────────────────────────────────────


def circumstances_of(
    agent: AgentSnapshot, call: ModelCall, run: CallingRun, floors: Sequence[ApprovalFloor]
) -> Circumstances:
    """Return what policies of approval see. The workflow sends the context only where the agent reads it, and if not empty."""
    context = (call.context or {}) if agent.reads_context() else None
    return Circumstances(agent.name, run.name, run.namespace, context, floors)


def tool_choice(agent: AgentSnapshot, messages: list[Message], offers: Offers) -> ToolChoice | None:
    """Return the choice that holds for this call: what demands a tool is over once one was called, else none could answer."""
    choice = agent.tool_choice
    if choice is None or choice.mode in ("Auto", "None"):
        return choice
    if not offers.tools or (choice.tool is not None and choice.tool not in offers.tools):
        return None  # noted among what is missing
    place = _last_of_user(messages)
    was_called = any(message.role == "tool" and message.sender == agent.name for message in messages[place or 0 :])
    return None if was_called else choice


def _last_of_user(messages: list[Message]) -> int | None:
    """Return the place of the last message that the user wrote; one that asks for another answer has a sender."""
    places = (place for place in reversed(range(len(messages))) if messages[place].role == "user")
    return next((place for place in places if messages[place].sender is None), None)


def _temperature(agent: AgentSnapshot, model: ModelSnapshot) -> float | None:
    own = agent.temperature or model.temperature
    return float(own) if own else None


async def _check_schema(agent: AgentSnapshot) -> None:
    """Check the schema of the answer before anything is paid for.

    Raises:
        ApplicationError: It is none.
    """
    if agent.output_schema is None:
        return
    try:
        await asyncio.to_thread(output_schema.check, agent.output_schema)
    except output_schema.OutputSchemaError as error:
        raise final(Reason.INVALID_OUTPUT, f"output.schema of Agent {agent.name}: {error}") from None


def answer_cap(call: ModelCall, model: ModelSnapshot) -> tuple[int, Failure] | None:
    """Return the most tokens that the budgets leave for this answer, and what to say of one that is cut there.

    Raises:
        ApplicationError: There is a cost budget and the model's price is not known.
    """
    caps: list[tuple[int, Failure]] = []
    if call.max_output_tokens is not None:
        words = f"The answer was cut at what was left of limits.maxTokens: {call.max_output_tokens} tokens"
        caps.append((call.max_output_tokens, Failure(reason=Reason.TOKEN_BUDGET, message=words)))
    if call.max_cost_usd is not None:
        most = tokens_for(model, call.max_cost_usd)
        if most is not None:
            words = f"The answer was cut at what was left of limits.maxCostUSD: {call.max_cost_usd}"
            caps.append((most, Failure(reason=Reason.COST_BUDGET, message=words)))
    return min(caps, key=lambda cap: cap[0], default=None)


# ── The reply ──────────────────────────────────────────────────────────────────────────────────────────────────────


def make_reply(
    call: ModelCall,
    agent: AgentSnapshot,
    model: ModelSnapshot,
    answer: ModelAnswer,
    offers: Offers,
    blame: Failure | None = None,
) -> ModelReply:
    """Return the reply as it is recorded: bounded in size, call ids replaced by ours, a verdict on each call.

    `blame` is the budget that is to blame, and not the model, where the answer was cut.

    Of the calls beyond `TURN_MAX_CALLS` one is kept, to tell the model of all of them: some models repeat themselves
    until their output limit.
    """
    parts: list[contract.Part] = []
    verdicts: list[CallVerdict] = []
    asked = sum(isinstance(part, RequestedCall) for part in answer.parts)
    text_left, opaque_left = contract.MESSAGE_MAX_BYTES, contract.OPAQUE_MAX_BYTES
    arguments_left = contract.TURN_ARGUMENTS_MAX_BYTES
    for part in answer.parts:
        if isinstance(part, TextPart):
            text = cut(part.text, text_left) if text_left > 0 else ""
            text_left -= len(text.encode())
            if text:
                parts.append(TextPart(text=text))
        elif isinstance(part, OpaquePart):
            opaque_left -= len(part.data.encode())
            if opaque_left >= 0:
                parts.append(part)
        elif (index := len(verdicts)) <= contract.TURN_MAX_CALLS:
            call_id = make_call_id(call, index)
            name, arguments = clean(part.tool)[:TOOL_NAME_MAX_CHARS], clean(part.arguments)
            fits = index < contract.TURN_MAX_CALLS
            size = len(arguments.encode())
            arguments_left -= size
            if not fits:
                verdicts.append(_too_many(call_id, asked))
            elif arguments_left < 0:
                verdicts.append(_too_long(call_id))
            else:
                verdicts.append(offers.judge(call_id, name, arguments))
            # Arguments that do not fit our bounds are not kept: cut JSON is no JSON.
            is_kept = size <= contract.CALL_ARGUMENTS_MAX_BYTES and arguments_left >= 0
            parts.append(ToolCallPart(call_id=call_id, tool=name, arguments=arguments if is_kept else "{}"))
    message = Message(role="assistant", parts=parts or [TextPart(text="")], sender=agent.name)
    structured, correction = _judge_answer(agent, answer, is_answer=not verdicts)
    needed: ApprovalNeeded | None = None
    if not (verdicts or correction or answer.failure or answer.call_again):
        try:
            counts = message.text() if structured is None else structured
            needed = approvals.for_answer(agent, counts, offers.circumstances)
        except UnshowableError as error:
            structured, correction = None, f"The answer does not count: {error}. Answer again."
    cost = cost_of(model, answer.usage)
    return ModelReply(
        message=message,
        calls=verdicts or None,
        input_tokens=answer.usage.input_tokens,
        output_tokens=answer.usage.output_tokens,
        cost_usd=None if cost is None else prices.decimal_text(cost),
        failure=blame if blame and _is_cut(answer) else answer.failure,
        tools_failure="; ".join(offers.missing)[:700] or None,
        call_again=answer.call_again or None,
        structured_output=structured,
        correction=correction,
        approval=needed,
        judged=True,
    )


def make_call_id(call: ModelCall, index: int) -> str:
    """Return our id of a turn's call, unique in its thread, as Anthropic demands: a session's runs share one."""
    run = f"{call.run.uid[:8]}_" if call.run else ""
    return f"call_{run}{call.turn}_{index}"


def _judge_answer(
    agent: AgentSnapshot, answer: ModelAnswer, *, is_answer: bool
) -> tuple[dict[str, Any] | None, str | None]:
    """Return the answer as an object, or what the model is told to answer again; neither where plain text will do.

    What was cut would be no object, and no human can approve it.
    """
    may_be_cut = agent.output_schema is None and agent.output_approval is None
    if may_be_cut or not is_answer or answer.failure or answer.call_again:
        return None, None
    text = "\n".join(part.text for part in answer.parts if isinstance(part, TextPart))
    if len(clean(text).encode()) > contract.MESSAGE_MAX_BYTES:
        return None, f"The answer is longer than {contract.MESSAGE_MAX_BYTES} bytes. Answer again, shorter."
    if agent.output_schema is None:
        return None, None
    try:
        return output_schema.fit(agent.output_schema, text), None
    except output_schema.AnswerError as error:
        return None, cut(str(error), contract.TOOL_OUTPUT_MAX_BYTES)


def _is_cut(answer: ModelAnswer) -> bool:
    return answer.failure is not None and answer.failure.reason == Reason.OUTPUT_TRUNCATED


def _with_passages(reply: ModelReply, passages: Passages) -> ModelReply:
    """Count what the retrieval cost into the turn."""
    if passages.failure is None and not passages.input_tokens:
        return reply
    costs = (passages.cost_usd, None if reply.cost_usd is None else Decimal(reply.cost_usd))
    known = [cost for cost in costs if cost is not None]
    return reply.model_copy(
        update={
            "input_tokens": reply.input_tokens + passages.input_tokens,
            "cost_usd": prices.decimal_text(sum(known, Decimal(0))) if len(known) == len(costs) else None,
            "retrieval_failure": passages.failure,
        }
    )


def _too_long(call_id: str) -> CallVerdict:
    limit = contract.TURN_ARGUMENTS_MAX_BYTES
    return CallVerdict(
        call_id=call_id, error=f"Not run: the arguments of this turn's calls are longer than {limit} bytes."
    )


def _too_many(call_id: str, asked: int) -> CallVerdict:
    limit = contract.TURN_MAX_CALLS
    error = f"Not run: {asked} calls in one turn, of which the first {limit} were run. Ask again for the rest."
    return CallVerdict(call_id=call_id, error=error)

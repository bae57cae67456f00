"""The activity `model`: one model call.

It does everything about a turn that a later release might do otherwise (render instructions, look passages up, find the
tools' schemas, judge calls and answers, price the usage), and returns what it found, so that the workflow decides by
recorded facts only.
"""

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, cast

from cachetools import LRUCache, TTLCache
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
    Retrying,
    Snapshot,
    TextPart,
    ToolCallPart,
    ToolChoice,
)
from dalang_api.v1alpha1.conditions import Reason
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError, TemporalError

from dalang_worker import approvals, instructions, providers
from dalang_worker.activities.failures import final, interrupted, retryable
from dalang_worker.activities.heartbeat import beating
from dalang_worker.approvals import Circumstances, UnshowableError
from dalang_worker.metrics import MODEL_CALL_TIME, MODEL_CALLS, TOKENS, measured
from dalang_worker.providers import (
    EMBEDDERS,
    CallFailure,
    Credentials,
    Embedder,
    Embedding,
    ModelAnswer,
    ModelCallError,
    ModelRequest,
    Provider,
    RequestedCall,
    TokenUsage,
    Verdict,
)
from dalang_worker.retrieval import RetrievalError, Retrievers
from dalang_worker.secrets import SecretNotFoundError, read_key
from dalang_worker.settings import WorkerSettings
from dalang_worker.text import clean, cut
from dalang_worker.tools.offer import NotHereError, Offers, Servers, make_offers
from dalang_worker.tools.runner import ToolRunner
from dalang_worker.transcripts import RunKey, Snapshots, Transcripts

log = logging.getLogger(__name__)

TELL_FROM_ATTEMPT = 3
"""The attempt whose failure the run's condition first tells; earlier ones are the usual noise of networks."""
TELL_LONG_WAIT_SECONDS = 5.0
"""A longer wait that the endpoint asks for is told whatever the attempt."""
LONGEST_WAIT_BEFORE_NEXT_SECONDS = 30.0
"""Where another model of `fallbackModelRefs` comes next, an endpoint that asks for a longer wait is not waited for."""
TELL_INTERVAL_SECONDS = 30.0
"""A call's failures are told at most this often; each is a signal in the run's history."""
TOOL_NAME_MAX_CHARS = 128
LOOKED_UP_NOTHING = (
    "Documents should stand here, and they could not be looked up. Say so where the answer depends on them."
)
PASSAGES_MAX_BYTES = 16 * 1024 * 1024
"""The most that looked-up passages may take in memory; what is forgotten is looked up again."""


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

    def __init__(self, client: Client, settings: WorkerSettings, runner: ToolRunner, servers: Servers) -> None:
        self._client = client
        self._settings = settings
        self._runner = runner
        self._servers = servers
        self._transcripts = Transcripts(client, settings.transcript_cache_mib * 1024 * 1024)
        self._snapshots = Snapshots(client)
        self._retrievers = Retrievers(settings.retrievers, settings.secrets_path, self._embed)
        self._passages: LRUCache[tuple[RunKey, str, str, int], Passages] = LRUCache(
            PASSAGES_MAX_BYTES, getsizeof=Passages.size_bytes
        )
        self._providers: dict[str, Provider] = {}
        self._told: TTLCache[tuple[str, str, str], None] = TTLCache(maxsize=10_000, ttl=TELL_INTERVAL_SECONDS)

    @activity.defn(name=contract.MODEL_ACTIVITY)
    async def model(self, call: ModelCall) -> ModelReply:
        """Make one model call and return the reply with a verdict on each tool call it asks for."""
        async with beating():
            try:
                return await self._complete(call)
            except ApplicationError as error:
                await self._tell(error, call.thread)
                raise
            except asyncio.CancelledError as error:
                raise interrupted(error) from None
            except Exception as error:  # a bug here; without this the run would say Running until its timeout
                log.exception("%s: model call failed", activity.info().workflow_id)
                told = retryable(Reason.MODEL_RETRYING, f"{type(error).__name__} in the worker; see its log")
                await self._tell(told, call.thread)
                raise told from None

    async def _complete(self, call: ModelCall) -> ModelReply:
        info = activity.info()
        run = (info.workflow_id or "", info.workflow_run_id or "")
        snapshot = await self._snapshots.get(run, call.snapshot)
        agent = snapshot.agent(call.agent)
        model = snapshot.model(call.model or agent.model)
        await _check_schema(agent)
        cap = answer_cap(call, model)
        most = cap[0] if cap else None
        circumstances = circumstances_of(agent, call, run, self._settings.approvals)
        offers = await self._offers(agent, snapshot, circumstances)
        messages = await self._transcripts.messages(run, call)
        passages = await self._look_up(run, call, agent, messages, snapshot)
        provider = await self._provider(model.provider)
        takes_schema = agent.output_schema is not None and provider.takes_schema(model, agent.output_schema)
        wanted = agent.max_output_tokens or model.max_output_tokens
        request = ModelRequest(
            model=model,
            credentials=self._credentials_or_wait(model),
            instructions=instructions.compose(
                await instructions.render(agent, call, contract.parse_workflow_id(run[0]), self._runner),
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
        answer = await _call(provider, request, has_next=bool(call.has_next))
        blame = cap[1] if cap and (wanted is None or cap[0] < wanted) else None
        try:
            # Away from the worker's loop: a large schema takes a while, and so do policies of approval.
            reply = await asyncio.to_thread(make_reply, call, agent, model, answer, offers, blame)
        except ApplicationError:
            raise
        except Exception as error:  # a bug here; the call is paid for, and must not be made again
            log.exception("%s: the model's answer could not be read", run[0])
            words = f"{type(error).__name__} in the worker while reading the model's answer; see its log"
            raise final(Reason.MODEL_FAILED, words) from None
        self._transcripts.said(run, call.thread, reply.message)
        self._paid_for(run, call, agent, messages)
        return _with_passages(reply, passages)

    async def _offers(self, agent: AgentSnapshot, snapshot: Snapshot, circumstances: Circumstances) -> Offers:
        try:
            return await make_offers(agent, snapshot, registered_tools(), self._servers, circumstances)
        except NotHereError as error:
            raise retryable(error.reason, str(error)) from None

    def _credentials(self, model: ModelSnapshot) -> Credentials:
        """Return how calls of a model prove who they are.

        Raises:
            SecretNotFoundError: This pod does not have the key or the token, or not yet.
        """
        if model.identity is None:
            return Credentials(read_key(self._settings.secrets_path, model.api_key) if model.api_key else None)
        token = self._settings.identity_path / contract.identity_folder(model.identity.audience) / "token"
        if not token.is_file():
            raise SecretNotFoundError(f"The pod has no token for audience {model.identity.audience!r} of {model.name}")
        return Credentials(identity_token=token)

    def _credentials_or_wait(self, model: ModelSnapshot) -> Credentials:
        try:
            return self._credentials(model)
        except SecretNotFoundError as error:
            raise retryable(Reason.SECRET_NOT_FOUND, str(error)) from None

    async def _look_up(
        self, run: RunKey, call: ModelCall, agent: AgentSnapshot, messages: list[Message], snapshot: Snapshot
    ) -> Passages:
        """Look the user's last message up, once however many turns it takes to answer."""
        place = _last_of_user(messages)
        if agent.retriever is None or place is None:
            return Passages()
        if not self._retrievers.has(agent.retriever):
            words = f"This worker's pool has no retriever {agent.retriever}, or not yet"
            raise retryable(Reason.RETRIEVER_NOT_FOUND, words)
        key = (run, call.thread, agent.retriever, place)
        if (known := self._passages.get(key)) is not None:
            return known
        try:
            found = await self._retrievers.retrieve(agent.retriever, messages[place].text(), snapshot)
        except RetrievalError as error:
            log.warning("%s: nothing could be looked up: %s", run[0], error)
            return Passages(failure=str(error))
        settings = next(one for one in self._settings.retrievers if one.name == agent.retriever)
        cost = _cost(found.model, found.usage, settings.embedding_name)
        if cost is None and call.max_cost_usd is not None:
            raise _price_unknown(found.model, settings.embedding_name or found.model.model)
        self._passages[key] = Passages(found.text, None, found.usage.input_tokens, cost)
        return self._passages[key]

    def _paid_for(self, run: RunKey, call: ModelCall, agent: AgentSnapshot, messages: list[Message]) -> None:
        """A reply has carried what the passages cost; the next one that uses them is not to carry it again."""
        key = (run, call.thread, agent.retriever or "", _last_of_user(messages) or 0)
        if (known := self._passages.get(key)) is not None:
            self._passages[key] = Passages(known.text)

    async def _embed(self, model: ModelSnapshot, name: str, text: str) -> Embedding:
        if model.provider not in EMBEDDERS:
            failure = CallFailure(Verdict.FINAL, Reason.MODEL_FAILED)
            words = f"AgentModel {model.name} has provider {model.provider}, which has no embeddings; name one of"
            raise ModelCallError(failure, f"{words} {' or '.join(EMBEDDERS)}")
        provider = cast(Embedder, await self._provider(model.provider))
        return await provider.embed(model, self._credentials(model), name, text)

    async def _provider(self, name: str) -> Provider:
        if name not in self._providers:
            loaded = await providers.load(name)
            if self._providers.setdefault(name, loaded) is not loaded:
                await loaded.close()
        return self._providers[name]

    async def close(self) -> None:
        """Close the connections to models and retrievers."""
        await self._retrievers.close()
        for provider in self._providers.values():
            await provider.close()

    async def _tell(self, error: ApplicationError, thread: str) -> None:
        """Signal the run's workflow that this call fails; a workflow cannot see its activities' attempts."""
        info = activity.info()
        log.warning("%s: model call failed (attempt %d): %s", info.workflow_id, info.attempt, error.message)
        call = (info.workflow_id or "", info.workflow_run_id or "", info.activity_id)
        if error.non_retryable or call in self._told or not is_worth_telling(info.attempt, error.next_retry_delay):
            return
        self._told[call] = None
        handle = self._client.get_workflow_handle(call[0], run_id=call[1])
        reason = Reason.parse(error.type) or Reason.MODEL_RETRYING
        retrying = Retrying(reason=reason, message=f"{error.message} (attempt {info.attempt})", thread=thread)
        try:
            await handle.signal(contract.RETRYING_SIGNAL, retrying)
        except (TemporalError, TimeoutError) as unsent:
            log.warning("%s could not be told of it: %s", info.workflow_id, unsent)


def is_worth_telling(attempt: int, wait: timedelta | None) -> bool:
    """Return whether the run should hear of this attempt: from the third on, or when the next is long in coming."""
    return attempt >= TELL_FROM_ATTEMPT or (wait is not None and wait.total_seconds() > TELL_LONG_WAIT_SECONDS)


async def _call(provider: Provider, request: ModelRequest, *, has_next: bool) -> ModelAnswer:
    name = request.model.model
    try:
        with measured(MODEL_CALLS, MODEL_CALL_TIME, name):
            answer = await provider.complete(request)
    except ModelCallError as error:
        # From None: Temporal records causes too, and the SDK's error holds the body, and that perhaps the key.
        raise _application_error(error, has_next=has_next) from None
    TOKENS.labels(name, "input").inc(answer.usage.input_tokens)
    TOKENS.labels(name, "output").inc(answer.usage.output_tokens)
    return answer


# ── The request ────────────────────────────────────────────────────────────────────────────────────────────────────


def circumstances_of(
    agent: AgentSnapshot, call: ModelCall, run: RunKey, floors: Sequence[ApprovalFloor]
) -> Circumstances:
    """Return what policies of approval see. The workflow sends the context only where the agent reads it, and if not empty."""
    target = contract.parse_workflow_id(run[0])
    context = (call.context or {}) if agent.reads_context() else None
    return Circumstances(agent.name, target.name, target.namespace, context, floors)


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
        million = _cost(model, TokenUsage(output_tokens=1_000_000))
        if million is None:
            raise _price_unknown(model, model.model)
        if million:
            words = f"The answer was cut at what was left of limits.maxCostUSD: {call.max_cost_usd}"
            most = max(int(Decimal(call.max_cost_usd) * 1_000_000 / million), 1)
            caps.append((most, Failure(reason=Reason.COST_BUDGET, message=words)))
    return min(caps, key=lambda cap: cap[0], default=None)


def _price_unknown(model: ModelSnapshot, name: str) -> ApplicationError:
    words = (
        f"limits.maxCostUSD is set and the price of {name} (AgentModel {model.name}) is not known; limit by maxTokens"
    )
    return final(Reason.PRICE_UNKNOWN, words)


def _cost(model: ModelSnapshot, usage: TokenUsage, name: str | None = None) -> Decimal | None:
    base_url = model.base_url
    if base_url is None and model.provider == "OpenAI":
        base_url = os.environ.get("OPENAI_BASE_URL") or None  # as its SDK does
    return prices.cost_usd(
        model.provider,
        name or model.model,
        base_url,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )


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
            call_id = f"call_{call.turn}_{index}"
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
            is_kept = size <= contract.TOOL_OUTPUT_MAX_BYTES and arguments_left >= 0
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
    cost = _cost(model, answer.usage)
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


def _judge_answer(
    agent: AgentSnapshot, answer: ModelAnswer, *, is_answer: bool
) -> tuple[dict[str, Any] | None, str | None]:
    """Return the answer as an object, or what the model is told to answer again; neither where no object is due."""
    if agent.output_schema is None or not is_answer or answer.failure or answer.call_again:
        return None, None
    text = "\n".join(part.text for part in answer.parts if isinstance(part, TextPart))
    if len(text.encode()) > contract.MESSAGE_MAX_BYTES:
        return None, f"The answer is longer than {contract.MESSAGE_MAX_BYTES} bytes. Answer again, shorter."
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


def _application_error(error: ModelCallError, *, has_next: bool) -> ApplicationError:
    wait = error.failure.after_seconds
    if has_next and wait is not None and wait > LONGEST_WAIT_BEFORE_NEXT_SECONDS:
        return final(Reason.MODEL_FAILED, f"{error} (asks to be called again in {wait:g} s)")
    if error.failure.verdict is Verdict.FINAL:
        return final(error.failure.reason, str(error))
    return retryable(error.failure.reason, str(error), error.failure.after_seconds)

"""What the activities that call models have in common: transcripts, providers, credentials, prices, and how failures are told."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal

from cachetools import TTLCache
from dalang_api import contract, prices
from dalang_api.contract import ModelCall, ModelSnapshot, Retrying, SummaryCall
from dalang_api.v1alpha1.conditions import Reason
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError, TemporalError

from dalang_worker import providers
from dalang_worker.activities.failures import final, interrupted, retryable
from dalang_worker.activities.heartbeat import beating
from dalang_worker.metrics import MODEL_CALL_TIME, MODEL_CALLS, TOKENS, measured
from dalang_worker.providers import (
    Credentials,
    ModelAnswer,
    ModelCallError,
    ModelRequest,
    Provider,
    TokenUsage,
    Verdict,
)
from dalang_worker.runs import CallingRun, calling_run
from dalang_worker.secrets import SecretNotFoundError, read_key
from dalang_worker.settings import WorkerSettings
from dalang_worker.transcripts import Snapshots, Transcripts

log = logging.getLogger(__name__)

TELL_FROM_ATTEMPT = 3
"""The attempt whose failure the run's condition first tells; earlier ones are the usual noise of networks."""
TELL_LONG_WAIT_SECONDS = 5.0
"""A longer wait that the endpoint asks for is told whatever the attempt."""
LONGEST_WAIT_BEFORE_NEXT_SECONDS = 30.0
"""Where another model of `fallbackModelRefs` comes next, an endpoint that asks for a longer wait is not waited for."""
TELL_INTERVAL_SECONDS = 30.0
"""A call's failures are told at most this often; each is a signal in the run's history."""


class ModelCalls:
    """How the activities of this worker call models; one for all of them."""

    def __init__(self, client: Client, settings: WorkerSettings) -> None:
        self.transcripts = Transcripts(client, settings.transcript_cache_mib * 1024 * 1024)
        self.snapshots = Snapshots(client)
        self._client = client
        self._settings = settings
        self._providers: dict[str, Provider] = {}
        self._told: TTLCache[tuple[str, str, str], None] = TTLCache(maxsize=10_000, ttl=TELL_INTERVAL_SECONDS)

    @asynccontextmanager
    async def guarded(self, call: ModelCall | SummaryCall) -> AsyncIterator[None]:
        """Beat for as long as the block runs; what it raises becomes what Temporal and the run understand."""
        run = calling_run(call, activity.info())
        async with beating():
            try:
                yield
            except ApplicationError as error:
                await self._tell(error, call, run)
                raise
            except asyncio.CancelledError as error:
                raise interrupted(error) from None
            except Exception as error:  # a bug here; without this the run would say Running until its timeout
                log.exception("%s: model call failed", run)
                told = retryable(Reason.MODEL_RETRYING, f"{type(error).__name__} in the worker; see its log")
                await self._tell(told, call, run)
                raise told from None

    async def provider(self, name: str) -> Provider:
        """Return the provider of that name."""
        if name not in self._providers:
            loaded = await providers.load(name)
            if self._providers.setdefault(name, loaded) is not loaded:
                await loaded.close()
        return self._providers[name]

    def credentials(self, model: ModelSnapshot) -> Credentials:
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

    def credentials_or_wait(self, model: ModelSnapshot) -> Credentials:
        """Return the same.

        Raises:
            ApplicationError: They are not there; to be tried again.
        """
        try:
            return self.credentials(model)
        except SecretNotFoundError as error:
            raise retryable(Reason.SECRET_NOT_FOUND, str(error)) from None

    async def close(self) -> None:
        """Close the connections to models."""
        for provider in self._providers.values():
            await provider.close()

    async def _tell(self, error: ApplicationError, call: ModelCall | SummaryCall, run: CallingRun) -> None:
        """Signal the run's workflow that this call fails; a workflow cannot see its activities' attempts."""
        info = activity.info()
        log.warning("%s: model call failed (attempt %d): %s", run, info.attempt, error.message)
        key = (*run.workflow, info.activity_id)
        if error.non_retryable or key in self._told or not is_worth_telling(info.attempt, error.next_retry_delay):
            return
        self._told[key] = None
        handle = self._client.get_workflow_handle(run.workflow[0], run_id=run.workflow[1])
        retrying = Retrying(
            reason=Reason.parse(error.type) or Reason.MODEL_RETRYING,
            message=f"{error.message} (attempt {info.attempt})",
            thread=call.thread,
            run=call.run,
        )
        try:
            await handle.signal(contract.RETRYING_SIGNAL, retrying)
        except (TemporalError, TimeoutError) as unsent:
            log.warning("%s could not be told of it: %s", run, unsent)


def is_worth_telling(attempt: int, wait: timedelta | None) -> bool:
    """Return whether the run should hear of this attempt: from the third on, or when the next is long in coming."""
    return attempt >= TELL_FROM_ATTEMPT or (wait is not None and wait.total_seconds() > TELL_LONG_WAIT_SECONDS)


async def complete(provider: Provider, request: ModelRequest) -> ModelAnswer:
    """Make one model call, measured and counted.

    Raises:
        ModelCallError: It failed. To be raised as `failure_of` it, `from None`: Temporal records causes too, and the SDK's
            error holds the body, and that perhaps the key.
    """
    name = request.model.model
    with measured(MODEL_CALLS, MODEL_CALL_TIME, name):
        answer = await provider.complete(request)
    TOKENS.labels(name, "input").inc(answer.usage.input_tokens)
    TOKENS.labels(name, "output").inc(answer.usage.output_tokens)
    return answer


def failure_of(error: ModelCallError, *, has_next: bool = False) -> ApplicationError:
    """Return what the activity raises for a call that failed; `has_next`: another model is called then."""
    wait = error.failure.after_seconds
    if has_next and wait is not None and wait > LONGEST_WAIT_BEFORE_NEXT_SECONDS:
        return final(Reason.MODEL_FAILED, f"{error} (asks to be called again in {wait:g} s)")
    if error.failure.verdict is Verdict.FINAL:
        return final(error.failure.reason, str(error))
    return retryable(error.failure.reason, str(error), error.failure.after_seconds)


# ── Prices ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def tokens_for(model: ModelSnapshot, max_cost_usd: str) -> int | None:
    """Return how many tokens an answer may have that costs no more; None where they cost nothing.

    Raises:
        ApplicationError: The model's price is not known.
    """
    million = cost_of(model, TokenUsage(output_tokens=1_000_000))
    if million is None:
        raise price_unknown(model, model.model)
    return max(int(Decimal(max_cost_usd) * 1_000_000 / million), 1) if million else None


def price_unknown(model: ModelSnapshot, name: str) -> ApplicationError:
    """Return the failure of a call that a cost budget forbids; `name` is the model's at the provider."""
    words = (
        f"limits.maxCostUSD is set and the price of {name} (AgentModel {model.name}) is not known; limit by maxTokens"
    )
    return final(Reason.PRICE_UNKNOWN, words)


def cost_of(model: ModelSnapshot, usage: TokenUsage, name: str | None = None) -> Decimal | None:
    """Return what a call cost, in US dollars; None where the price is not known.

    Args:
        model: What was called.
        usage: Its tokens.
        name: The model's name at the provider, where it is not the snapshot's.
    """
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

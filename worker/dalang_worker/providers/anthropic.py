"""Provider Anthropic: the Messages API, called with streaming and gathered.

Through Anthropic's SDK, whose retries are off since Temporal's are on; without a stream it refuses to ask for long answers.
What is sent and what comes back is claude_messages.py.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import anthropic
import httpx2
from anthropic import AsyncAnthropic, AsyncAnthropicBedrock
from anthropic.lib.credentials import IdentityTokenFile, WorkloadIdentityCredentials, WorkloadIdentityError
from cachetools import LRUCache
from dalang_api.contract import ModelSnapshot
from dalang_api.v1alpha1.conditions import Reason

from dalang_worker.providers import (
    CallFailure,
    Credentials,
    ModelAnswer,
    ModelCallError,
    ModelRequest,
    Verdict,
    schemas,
)
from dalang_worker.providers.claude_messages import make_request, read_message
from dalang_worker.providers.http import (
    CONNECT_TIMEOUT_SECONDS,
    READ_TIMEOUT_SECONDS,
    error_message,
    is_passing,
    one_line,
    retry_after_seconds,
)

ANTHROPIC_HOST = "api.anthropic.com"
RETRY = CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING)
TIMEOUT = anthropic.Timeout(READ_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS)

CONTEXT_LENGTH = "context_length"
CONTENT_FILTER = "content_filter"
"""Kinds of errors that the API tells by words only; by these classify knows them."""
_WORDS = {
    CONTEXT_LENGTH: re.compile(
        r"(prompt|input) is too long|exceed context limit|request exceeds the maximum size", re.I
    ),
    CONTENT_FILTER: re.compile(r"content filtering policy", re.I),
}
_REASONS = {CONTEXT_LENGTH: Reason.CONTEXT_LENGTH, CONTENT_FILTER: Reason.CONTENT_FILTER}
_SPENT = frozenset(
    {"billing_error", "enforced_spend_limit_reached", "contract_spend_limit_reached"}
    | {"linked_organization_spend_limit_reached", "linked_organization_billing_unavailable"}
)
_PASSING_AT_AWS = frozenset({"throttlingexception", "modelerrorexception", "modelstreamerrorexception"})
_STREAMED = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
    # Bedrock
    "validationexception": 400,
    "throttlingexception": 429,
}
"""The statuses of errors that come in mid-stream, after a 200; any other is the server's (500)."""
_OLD_MODELS = re.compile(r"claude-(instant|v?[123]|(opus|sonnet)-4-(0|2025\d{4})|4-(opus|sonnet))")
"""Models without structured outputs (those of the API that still have a name at Bedrock)."""


class AnthropicProvider:
    """One client, and with it one pool of connections, per endpoint and credential."""

    broken: tuple[type[Exception], ...] = (anthropic.AnthropicError, httpx2.HTTPError, ValueError, AssertionError)
    """What a call may raise; the last two where the stream is none, or ends before it has begun."""

    def __init__(self) -> None:
        self._clients: LRUCache[tuple[object, ...], AsyncAnthropic | AsyncAnthropicBedrock] = LRUCache(maxsize=64)

    async def complete(self, request: ModelRequest) -> ModelAnswer:
        """Make one call of the Messages API."""
        client = self._client(request.model, request.credentials)
        body = make_request(request)
        try:
            async with client.messages.stream(**body) as stream:
                message = await stream.get_final_message()
            return read_message(message, request.model)
        except self.broken as error:
            failure, words = self.explain(error, str(client.base_url))
            sent = error.request.headers if isinstance(error, anthropic.APIError) else {}
            told = error_message(request.model.model, words, request.credentials, sent)
            raise ModelCallError(failure, told) from None

    def takes_schema(self, model: ModelSnapshot, schema: dict[str, Any]) -> bool:
        """Return whether the API's own mode takes the schema; compatible endpoints refuse the mode, or ignore it."""
        base_url = model.base_url or os.environ.get("ANTHROPIC_BASE_URL")
        is_own = not base_url or httpx2.URL(base_url).host == ANTHROPIC_HOST
        return is_own and has_schemas(model.model) and schemas.qualifies(schema, schemas.ANTHROPIC)

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            await client.close()

    def explain(self, error: Exception, base_url: str) -> tuple[CallFailure, str]:
        """Return what an error comes to, and in which words. They may hold secrets."""
        now = datetime.now(UTC)
        if isinstance(error, anthropic.APIStatusError):
            headers = error.response.headers
            told = read_error(error.status_code, headers, error.body)
            return classify(told.status, headers, told.kind, now), f"{told.status}: {told.words}"
        if isinstance(error, WorkloadIdentityError):
            return classify(error.status_code, {}, None, now), one_line(f"the pod's identity was refused: {error}")
        if isinstance(error, anthropic.CredentialsError):
            return RETRY, one_line(f"the pod's identity: {error}")
        words = f"{error} {error.__cause__ or ''}" if str(error) else "the endpoint answered 200 with no message"
        return RETRY, f"{one_line(words)} ({base_url})"

    def make_client(self, model: ModelSnapshot, credentials: Credentials) -> AsyncAnthropic | AsyncAnthropicBedrock:
        """Return a new client."""
        if model.identity is not None and credentials.identity_token is not None:
            identity = WorkloadIdentityCredentials(
                identity_token_provider=IdentityTokenFile(credentials.identity_token),
                federation_rule_id=model.identity.parameters["federationRuleID"],
                organization_id=model.identity.parameters["organizationID"],
            )
            return AsyncAnthropic(credentials=identity, base_url=model.base_url, max_retries=0, timeout=TIMEOUT)
        # With a key that is none the SDK does not look for others in the pod.
        key = credentials.api_key or "none"
        return AsyncAnthropic(api_key=key, base_url=model.base_url, max_retries=0, timeout=TIMEOUT)

    def _client(self, model: ModelSnapshot, credentials: Credentials) -> AsyncAnthropic | AsyncAnthropicBedrock:
        identity = tuple(sorted(model.identity.parameters.items())) if model.identity else None
        key = (model.base_url, model.region, credentials, identity)
        if key not in self._clients:
            self._clients[key] = self.make_client(model, credentials)
        return self._clients[key]


def make_provider() -> AnthropicProvider:
    """Return the provider of this process."""
    return AnthropicProvider()


def has_schemas(model: str) -> bool:
    """Return whether a model has structured outputs: Claude since Opus 4.1 and Sonnet 4.5."""
    return _OLD_MODELS.search(model) is None


@dataclass(frozen=True)
class ToldError:
    """What an endpoint says of an error."""

    status: int
    kind: str | None
    """The most exact name it has, in lower case."""
    words: str


def read_error(status: int, headers: Mapping[str, str], body: object) -> ToldError:
    """Return what an error's body and headers tell. An error in mid-stream comes with the status 200 of the stream.

    Anthropic: `{"error": {"type", "message", "details": {"error_code"}}}`; AWS: `{"message"}` and its name in
    `x-amzn-errortype`, with an address behind a colon; others: a page.
    """
    content: dict[str, Any] = body if isinstance(body, dict) else {}
    error: dict[str, Any] = content["error"] if isinstance(content.get("error"), dict) else content
    details = error.get("details")
    code = details.get("error_code") if isinstance(details, dict) else None
    name = code or error.get("type") or headers.get("x-amzn-errortype", "").partition(":")[0]
    kind = str(name).lower() if name else None
    words = one_line(error.get("message") or error.get("Message") or body or "")
    if status < 400:
        status = _STREAMED.get(str(error.get("type")).lower(), 500)
    if status in (400, 413):
        kind = next((known for known, pattern in _WORDS.items() if pattern.search(words)), kind)
    return ToldError(status, kind, words)


def classify(status: int | None, headers: Mapping[str, str], kind: str | None, now: datetime) -> CallFailure:
    """Return what a failed call means. No status: no answer came (refused, reset, timed out).

    A spent budget is a 429 that waiting does not mend; at AWS some errors that waiting mends have a status that is final.
    """
    if kind in _SPENT:
        return CallFailure(Verdict.FINAL, Reason.MODEL_FAILED)
    if is_passing(status, headers) or (kind in _PASSING_AT_AWS and "x-should-retry" not in headers):
        return CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING, retry_after_seconds(headers, now))
    return CallFailure(Verdict.FINAL, _REASONS.get(kind or "", Reason.MODEL_FAILED))

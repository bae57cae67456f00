"""Providers OpenAI and AzureOpenAI: Chat Completions, of OpenAI itself or any compatible endpoint (DeepSeek, Ollama, vLLM).

Through OpenAI's SDK, whose retries are off since Temporal's are on. What is sent and what comes back is chat_completions.py.
"""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import httpx2
import openai
from cachetools import LRUCache
from dalang_api.contract import ModelSnapshot
from dalang_api.v1alpha1.conditions import Reason
from openai import AsyncAzureOpenAI, AsyncOpenAI
from openai.auth import WorkloadIdentity, k8s_service_account_token_provider

from dalang_worker.providers import (
    CallFailure,
    Credentials,
    Embedding,
    ModelAnswer,
    ModelCallError,
    ModelRequest,
    Verdict,
    schemas,
)
from dalang_worker.providers.chat_completions import (
    QUOTA_CODES,
    REASONS,
    make_request,
    read_completion,
    read_error,
)
from dalang_worker.providers.embeddings import read_embedding
from dalang_worker.providers.http import (
    CONNECT_TIMEOUT_SECONDS,
    READ_TIMEOUT_SECONDS,
    error_message,
    is_passing,
    one_line,
    retry_after_seconds,
)

OPENAI_HOST = "api.openai.com"
RETRY = CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING)


class OpenAIProvider:
    """One client, and with it one pool of connections, per endpoint and credential."""

    def __init__(self) -> None:
        self._clients: LRUCache[tuple[object, ...], AsyncOpenAI] = LRUCache(maxsize=64)

    async def complete(self, request: ModelRequest) -> ModelAnswer:
        """Make one Chat Completions call."""
        body = make_request(request, is_openai(request.model))
        content = await self._post("/chat/completions", body, request.model, request.credentials)
        try:
            return read_completion(content)
        except ValueError as error:
            told = error_message(request.model.model, str(error), request.credentials, {})
            raise ModelCallError(RETRY, told) from None

    async def embed(self, model: ModelSnapshot, credentials: Credentials, name: str, text: str) -> Embedding:
        """Make a vector of a text; at Azure the name is a deployment's, if it is not the model's own."""
        deployment = model.deployment if name == model.model else None
        # As numbers: some compatible servers do not know the SDK's default, base64.
        body = {"model": deployment or name, "input": [text], "encoding_format": "float"}
        content = await self._post("/embeddings", body, model, credentials)
        try:
            return read_embedding(content)
        except ValueError as error:
            raise ModelCallError(RETRY, error_message(name, str(error), credentials, {})) from None

    def takes_schema(self, model: ModelSnapshot, schema: dict[str, Any]) -> bool:
        """Return whether the schema qualifies for strict mode; compatible servers refuse the mode, or ignore it."""
        rules = schemas.AZURE_OPENAI if model.provider == "AzureOpenAI" else schemas.OPENAI
        return is_openai(model) and schemas.qualifies(schema, rules)

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            await client.close()

    async def _post(self, path: str, body: dict[str, Any], model: ModelSnapshot, credentials: Credentials) -> bytes:
        client = self._client(model, credentials)
        try:
            response = await client.post(path, body=body, cast_to=openai.HttpxBinaryResponseContent)
        except (openai.OpenAIError, httpx2.HTTPError) as error:
            failure, words = explain(error, str(client.base_url))
            sent = error.request.headers if isinstance(error, openai.APIError) else {}
            raise ModelCallError(failure, error_message(body["model"], words, credentials, sent)) from None
        return response.content

    def _client(self, model: ModelSnapshot, credentials: Credentials) -> AsyncOpenAI:
        identity = tuple(sorted(model.identity.parameters.items())) if model.identity else None
        key = (model.provider, model.base_url, model.api_version, credentials, identity)
        if key not in self._clients:
            self._clients[key] = _make_client(model, credentials)
        return self._clients[key]


def make_provider() -> OpenAIProvider:
    """Return the provider of this process."""
    return OpenAIProvider()


def is_openai(model: ModelSnapshot) -> bool:
    """Return whether the endpoint is Azure's or OpenAI's own, and none that is only compatible."""
    if model.provider == "AzureOpenAI":
        return True
    base_url = model.base_url or os.environ.get("OPENAI_BASE_URL")
    return not base_url or httpx2.URL(base_url).host == OPENAI_HOST


def explain(error: openai.OpenAIError | httpx2.HTTPError, base_url: str) -> tuple[CallFailure, str]:
    """Return what an error of the SDK comes to, and in which words. They may hold secrets."""
    now = datetime.now(UTC)
    if isinstance(error, openai.OAuthError):
        failure = classify(error.status_code, error.response.headers, None, now)
        return failure, one_line(f"the pod's identity was refused: {error.status_code}: {error.message}")
    if isinstance(error, openai.APIStatusError):
        code, words = read_error(error.response.content)
        return classify(error.status_code, error.response.headers, code, now), f"{error.status_code}: {words}"
    if isinstance(error, openai.APIError | httpx2.HTTPError):
        words = one_line(f"{error} {error.__cause__ or ''}")
        return RETRY, f"{words} ({base_url})"
    # The token's file cannot be read, or its exchange failed on the other side.
    return RETRY, one_line(f"the pod's identity: {error}")


def classify(status: int | None, headers: Mapping[str, str], code: str | None, now: datetime) -> CallFailure:
    """Return what a failed call means. No status: no answer came (refused, reset, timed out).

    A used-up quota is a 429 that waiting does not mend.
    """
    if code in QUOTA_CODES:
        return CallFailure(Verdict.FINAL, Reason.MODEL_FAILED)
    if is_passing(status, headers):
        return CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING, retry_after_seconds(headers, now))
    return CallFailure(Verdict.FINAL, REASONS.get(code or "", Reason.MODEL_FAILED))


def _make_client(model: ModelSnapshot, credentials: Credentials) -> AsyncOpenAI:
    timeout = openai.Timeout(READ_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS)
    # The SDK insists on a key; endpoints that need none ignore it. Without a URL it takes $OPENAI_BASE_URL.
    key = credentials.api_key or "none"
    if model.provider == "AzureOpenAI":
        # The deployment is each request's, which the SDK takes from its `model`: embeddings have another one.
        return AsyncAzureOpenAI(
            azure_endpoint=model.base_url or "",
            api_version=model.api_version,
            api_key=key,
            max_retries=0,
            timeout=timeout,
        )
    if model.identity is not None and credentials.identity_token is not None:
        identity = WorkloadIdentity(
            identity_provider_id=model.identity.parameters["identityProviderID"],
            service_account_id=model.identity.parameters["serviceAccountID"],
            provider=k8s_service_account_token_provider(credentials.identity_token),
        )
        return AsyncOpenAI(workload_identity=identity, base_url=model.base_url, max_retries=0, timeout=timeout)
    return AsyncOpenAI(api_key=key, base_url=model.base_url, max_retries=0, timeout=timeout)

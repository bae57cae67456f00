"""The providers: one small module each behind one interface, imported on first use (an SDK costs a second to import)."""

import asyncio
import importlib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from dalang_api.contract import Failure, Message, ModelSnapshot, OpaquePart, TextPart, ToolChoice
from dalang_api.v1alpha1.conditions import Reason

_MODULES = {
    "OpenAI": "dalang_worker.providers.openai",
    "AzureOpenAI": "dalang_worker.providers.openai",
    "Anthropic": "dalang_worker.providers.anthropic",
    "Bedrock": "dalang_worker.providers.bedrock",
}


EMBEDDERS = ("OpenAI", "AzureOpenAI")
"""The providers that have embeddings."""


@dataclass(frozen=True)
class ToolSpec:
    """A tool as the model is told of it."""

    name: str
    description: str
    schema: dict[str, Any]
    """JSON schema of the arguments, an object."""


@dataclass(frozen=True)
class Credentials:
    """How a call proves who it is: a key, a file with the pod's projected token, or nothing."""

    api_key: str | None = None
    identity_token: Path | None = None


@dataclass(frozen=True)
class ModelRequest:
    """One model call, in no provider's form."""

    model: ModelSnapshot
    credentials: Credentials
    instructions: str | None
    messages: list[Message]
    tools: list[ToolSpec] = field(default_factory=list)
    tool_choice: ToolChoice | None = None
    """As it holds for this call; None: the provider's default."""
    parallel_tool_calls: bool | None = None
    output_schema: dict[str, Any] | None = None
    """JSON schema of the answer, where `Provider.takes_schema` says that the provider's own mode takes it."""
    temperature: float | None = None
    max_output_tokens: int | None = None


@dataclass(frozen=True)
class RequestedCall:
    """A tool call as the model asked for it."""

    tool: str
    arguments: str


@dataclass(frozen=True)
class TokenUsage:
    """Tokens of one call, as the provider counted them."""

    input_tokens: int = 0
    """All that were sent, those of the cache included."""
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0


@dataclass(frozen=True)
class ModelAnswer:
    """What came back."""

    parts: list[TextPart | OpaquePart | RequestedCall]
    """In the model's order, which some providers want back as it was. Empty where it said nothing."""
    usage: TokenUsage
    failure: Failure | None = None
    """Set where the model stopped for good without an answer."""
    call_again: bool = False
    """The model paused and goes on when it is called with what it said."""


class Verdict(StrEnum):
    """What a failed call means for the run."""

    RETRY = "Retry"
    FINAL = "Final"


@dataclass(frozen=True)
class CallFailure:
    """What one provider's status and headers come to."""

    verdict: Verdict
    reason: Reason
    after_seconds: float | None = None
    """When the endpoint asks to be called again; None: Dalang's own backoff."""


class ModelCallError(Exception):
    """A model call failed; `failure` says what that means, the text is the provider's, without the key."""

    def __init__(self, failure: CallFailure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


class Provider(Protocol):
    """Speaks one provider's API. Its clients are pooled and live as long as the process."""

    async def complete(self, request: ModelRequest) -> ModelAnswer:
        """Make one call, without retries.

        Raises:
            ModelCallError: It failed.
        """
        ...

    def takes_schema(self, model: ModelSnapshot, schema: dict[str, Any]) -> bool:
        """Return whether the provider itself can hold an answer to this JSON schema."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


@dataclass(frozen=True)
class Embedding:
    """A text as a vector."""

    vector: list[float]
    usage: TokenUsage


class Embedder(Protocol):
    """A provider that has embeddings: OpenAI and AzureOpenAI."""

    async def embed(self, model: ModelSnapshot, credentials: Credentials, name: str, text: str) -> Embedding:
        """Make a vector of a text with the embedding model of that name.

        Raises:
            ModelCallError: It failed.
        """
        ...


async def load(provider: str) -> Provider:
    """Import a provider's module, in a thread since that may take a second, and return its provider."""
    module = await asyncio.to_thread(importlib.import_module, _MODULES[provider])
    made: Provider = module.make_provider()
    return made

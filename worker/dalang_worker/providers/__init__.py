"""The providers: one small module each behind one interface, imported on first use (an SDK costs a second to import)."""

import asyncio
import importlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from dalang_api.contract import Failure, Message, ModelSnapshot
from dalang_api.v1alpha1.conditions import Reason

_MODULES = {"OpenAI": "dalang_worker.providers.openai"}


@dataclass(frozen=True)
class ToolSpec:
    """A tool as the model is told of it."""

    name: str
    description: str
    schema: dict[str, Any]
    """JSON schema of the arguments, an object."""


@dataclass(frozen=True)
class ModelRequest:
    """One model call, in no provider's form."""

    model: ModelSnapshot
    api_key: str | None
    instructions: str | None
    messages: list[Message]
    tools: list[ToolSpec]
    temperature: float | None
    max_output_tokens: int | None


@dataclass(frozen=True)
class RequestedCall:
    """A tool call as the model asked for it."""

    tool: str
    arguments: str


@dataclass(frozen=True)
class ModelAnswer:
    """What came back."""

    text: str
    calls: list[RequestedCall]
    input_tokens: int
    output_tokens: int
    failure: Failure | None = None
    """Set where the model stopped for good without an answer."""


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

    async def close(self) -> None:
        """Close its connections."""
        ...


async def load(provider: str) -> Provider:
    """Import a provider's module, in a thread since that may take a second, and return its provider."""
    module = await asyncio.to_thread(importlib.import_module, _MODULES[provider])
    made: Provider = module.make_provider()
    return made

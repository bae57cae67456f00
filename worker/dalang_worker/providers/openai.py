"""Provider OpenAI: Chat Completions, of OpenAI itself or any compatible endpoint (DeepSeek, Ollama, vLLM).

Retries are Temporal's, so the SDK's own are off.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import openai
from cachetools import LRUCache
from dalang_api.contract import Failure, Message, TextPart, ToolCallPart, ToolResultPart
from dalang_api.v1alpha1.conditions import Reason
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionMessageFunctionToolCall, ChatCompletionMessageParam

from dalang_worker.providers import CallFailure, ModelAnswer, ModelCallError, ModelRequest, RequestedCall, Verdict
from dalang_worker.providers.http import is_passing, retry_after_seconds

CONNECT_TIMEOUT_SECONDS = 10.0
READ_TIMEOUT_SECONDS = 590.0
"""Just under the activity's own ten minutes, so that the error is the endpoint's."""

_QUOTA_CODES = frozenset({"insufficient_quota", "enforced_spend_limit_reached", "billing_hard_limit_reached"})
_REASONS = {"context_length_exceeded": Reason.CONTEXT_LENGTH, "content_filter": Reason.CONTENT_FILTER}
_STOPS = {
    "length": Failure(
        reason=Reason.OUTPUT_TRUNCATED,
        message="The model stopped at its output limit; raise parameters.maxOutputTokens",
    ),
    "content_filter": Failure(reason=Reason.CONTENT_FILTER, message="The provider's content filter stopped the answer"),
}


class OpenAIProvider:
    """One client per endpoint and key, pooled."""

    def __init__(self) -> None:
        self._clients: LRUCache[tuple[str | None, str | None], AsyncOpenAI] = LRUCache(maxsize=64)

    async def complete(self, request: ModelRequest) -> ModelAnswer:
        """Make one Chat Completions call."""
        client = self._client(request)
        try:
            completion = await client.chat.completions.create(**make_request(request, client.base_url.host))
        except openai.APIStatusError as error:
            failure = classify(error.status_code, error.response.headers, _code(error), datetime.now(UTC))
            raise ModelCallError(failure, _message(request, f"{error.status_code}: {_words(error)}")) from error
        except openai.APIError as error:
            failure = classify(None, {}, None, datetime.now(UTC))
            raise ModelCallError(failure, _message(request, f"{error.message} ({error.__cause__})")) from error
        return read_completion(completion)

    def _client(self, request: ModelRequest) -> AsyncOpenAI:
        key = (request.model.base_url, request.api_key)
        if key not in self._clients:
            # The SDK insists on a key; endpoints that need none ignore it.
            self._clients[key] = AsyncOpenAI(
                api_key=request.api_key or "none",
                base_url=request.model.base_url,
                max_retries=0,
                timeout=openai.Timeout(READ_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
            )
        return self._clients[key]


def make_provider() -> OpenAIProvider:
    """Return the provider of this process."""
    return OpenAIProvider()


def make_request(request: ModelRequest, host: str) -> dict[str, Any]:
    """Return the arguments of `chat.completions.create`; absent is not the same as null to compatible servers."""
    arguments: dict[str, Any] = {
        "model": request.model.model,
        "messages": make_messages(request.instructions, request.messages),
    }
    if request.tools:
        arguments["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.schema},
            }
            for tool in request.tools
        ]
    if request.temperature is not None:
        arguments["temperature"] = request.temperature
    if request.max_output_tokens is not None:
        # OpenAI's reasoning models refuse the old name; most compatible servers know only that.
        name = "max_completion_tokens" if host == "api.openai.com" else "max_tokens"
        arguments[name] = request.max_output_tokens
    return arguments


def make_messages(instructions: str | None, messages: list[Message]) -> list[ChatCompletionMessageParam]:
    """Return the conversation in Chat Completions form: one `tool` message per result, right after its calls."""
    made: list[ChatCompletionMessageParam] = []
    if instructions:
        made.append({"role": "system", "content": instructions})
    for message in messages:
        made += _make_message(message)
    return made


def _make_message(message: Message) -> list[ChatCompletionMessageParam]:
    if message.role == "user":
        return [{"role": "user", "content": message.text()}]
    if message.role == "tool":
        return [
            {"role": "tool", "tool_call_id": part.call_id, "content": part.output}
            for part in message.parts
            if isinstance(part, ToolResultPart)
        ]
    texts = [part.text for part in message.parts if isinstance(part, TextPart)]
    calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
    if not calls:
        return [{"role": "assistant", "content": "\n".join(texts)}]
    return [
        {
            "role": "assistant",
            "content": "\n".join(texts) or None,
            "tool_calls": [
                {
                    "id": call.call_id,
                    "type": "function",
                    "function": {"name": call.tool, "arguments": call.arguments},
                }
                for call in calls
            ],
        }
    ]


def read_completion(completion: ChatCompletion) -> ModelAnswer:
    """Return a completion in Dalang's form. What the model stopped for is in `_STOPS`; all else is an answer or tools.

    Raises:
        ModelCallError: The endpoint answered 200 without a choice; tried again.
    """
    if not completion.choices:
        raise ModelCallError(CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING), "the endpoint returned no choices")
    choice = completion.choices[0]
    failure = _STOPS.get(choice.finish_reason)
    if choice.message.refusal:
        failure = Failure(reason=Reason.MODEL_REFUSED, message=choice.message.refusal[:512])
    # A call that was cut at the output limit must not be run.
    calls = [] if failure else choice.message.tool_calls or []
    return ModelAnswer(
        text=choice.message.content or "",
        calls=[
            RequestedCall(call.function.name, call.function.arguments or "")
            for call in calls
            if isinstance(call, ChatCompletionMessageFunctionToolCall)
        ],
        input_tokens=completion.usage.prompt_tokens if completion.usage else 0,
        output_tokens=completion.usage.completion_tokens if completion.usage else 0,
        failure=failure,
    )


def classify(status: int | None, headers: Mapping[str, str], code: str | None, now: datetime) -> CallFailure:
    """Return what a failed call means. No status: no answer came (refused, reset, timed out).

    A used-up quota is a 429 that waiting does not mend.
    """
    if code in _QUOTA_CODES:
        return CallFailure(Verdict.FINAL, Reason.MODEL_FAILED)
    if is_passing(status, headers):
        return CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING, retry_after_seconds(headers, now))
    return CallFailure(Verdict.FINAL, _REASONS.get(code or "", Reason.MODEL_FAILED))


def _code(error: openai.APIStatusError) -> str | None:
    # Compatible servers put anything here.
    for candidate in (error.code, error.type):
        if isinstance(candidate, str) and candidate in _QUOTA_CODES | _REASONS.keys():
            return candidate
    return None


def _words(error: openai.APIStatusError) -> str:
    """Return the provider's own sentence, out of the body where it has one."""
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return str(body["message"])
    return error.message


def _message(request: ModelRequest, words: str) -> str:
    if request.api_key:
        words = words.replace(request.api_key, "[key]")
    return f"model {request.model.model}: {words}"[:700]

"""Provider OpenAI: Chat Completions, of OpenAI itself or any compatible endpoint (DeepSeek, Ollama, vLLM).

Through OpenAI's SDK, whose retries are off since Temporal's are on, but past its types. It walks through every message
that is sent, in Python (26 ms of CPU a call at 80 messages, 2.5 without), and what compatible servers answer is looser. The
tests check every request against those types.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import openai
from cachetools import LRUCache
from dalang_api.contract import Failure, Message, TextPart, ToolCallPart, ToolResultPart
from dalang_api.v1alpha1.conditions import Reason
from openai import AsyncOpenAI
from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic_core import to_json

from dalang_worker.providers import CallFailure, ModelAnswer, ModelCallError, ModelRequest, RequestedCall, Verdict
from dalang_worker.providers.http import is_passing, retry_after_seconds
from dalang_worker.text import clean

DEFAULT_BASE_URL = "https://api.openai.com/v1"
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
_INTERRUPTED = "insufficient_system_resource"
"""DeepSeek's finish reason for an answer that it broke off under load."""


class OpenAIProvider:
    """One client, and with it one pool of connections, per endpoint and key."""

    def __init__(self) -> None:
        self._clients: LRUCache[tuple[str | None, str | None], AsyncOpenAI] = LRUCache(maxsize=64)

    async def complete(self, request: ModelRequest) -> ModelAnswer:
        """Make one Chat Completions call."""
        client = self._client(request)
        try:
            response = await client.post(
                "/chat/completions",
                body=make_request(request, str(client.base_url)),
                cast_to=openai.HttpxBinaryResponseContent,
            )
        except openai.APIStatusError as error:
            code, words = read_error(error.response.content)
            failure = classify(error.status_code, error.response.headers, code, datetime.now(UTC))
            raise ModelCallError(failure, _message(request, f"{error.status_code}: {words}")) from None
        except openai.APIError as error:
            failure = classify(None, {}, None, datetime.now(UTC))
            words = f"{error.message} {error.__cause__ or ''}".strip()
            raise ModelCallError(failure, _message(request, f"{words} ({client.base_url})")) from None
        try:
            return read_completion(response.content)
        except ValueError as error:
            failure = CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING)
            raise ModelCallError(failure, _message(request, str(error))) from None

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            await client.close()

    def _client(self, request: ModelRequest) -> AsyncOpenAI:
        key = (request.model.base_url, request.api_key)
        if key not in self._clients:
            # The SDK insists on a key; endpoints that need none ignore it. Without a URL it takes $OPENAI_BASE_URL.
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


# ── What is sent ───────────────────────────────────────────────────────────────────────────────────────────────────


def make_request(request: ModelRequest, base_url: str) -> dict[str, Any]:
    """Return the body of the POST; absent is not the same as null to compatible servers."""
    body: dict[str, Any] = {
        "model": request.model.model,
        "messages": make_messages(request.instructions, request.messages),
    }
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.schema},
            }
            for tool in request.tools
        ]
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.max_output_tokens is not None:
        # OpenAI's reasoning models refuse the old name; most compatible servers know only that.
        is_openai = base_url.startswith(DEFAULT_BASE_URL.removesuffix("v1"))
        body["max_completion_tokens" if is_openai else "max_tokens"] = request.max_output_tokens
    return body


def make_messages(instructions: str | None, messages: list[Message]) -> list[dict[str, Any]]:
    """Return the conversation in Chat Completions form: one `tool` message per result, right after its calls."""
    made: list[dict[str, Any]] = []
    if instructions:
        made.append({"role": "system", "content": instructions})
    for message in messages:
        made += _make_message(message)
    return made


def _make_message(message: Message) -> list[dict[str, Any]]:
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


# ── What comes back ────────────────────────────────────────────────────────────────────────────────────────────────


def _text(value: Any) -> Any:
    """Join a content that is a list of parts, as Mistral's reasoning models send it."""
    if not isinstance(value, list):
        return value
    return "".join(part.get("text", "") for part in value if isinstance(part, dict) and part.get("type") == "text")


def _json_text(value: Any) -> Any:
    """Write arguments that came as an object; OpenAI sends them as text."""
    return value if isinstance(value, str) else "" if value is None else to_json(value).decode()


class _Function(BaseModel):
    name: str
    arguments: Annotated[str, BeforeValidator(_json_text)] = ""


class _ToolCall(BaseModel):
    function: _Function | None = None


class _ChatMessage(BaseModel):
    content: Annotated[str | None, BeforeValidator(_text)] = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(BaseModel):
    message: _ChatMessage
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(BaseModel):
    """The part of a chat completion that is used here, and no stricter than it must be."""

    choices: list[_Choice]
    usage: _Usage | None = None


def read_completion(body: bytes) -> ModelAnswer:
    """Return a completion in Dalang's form. What the model stopped for is in `_STOPS`; all else is an answer or tools.

    Raises:
        ValueError: It is no completion, or one that was broken off; asked again, a server under load may do better.
    """
    completion = _parse(body)
    if completion is None or not completion.choices:
        raise ValueError(f"the endpoint answered 200 with no chat completion: {read_error(body)[1]}")
    choice = completion.choices[0]
    if choice.finish_reason == _INTERRUPTED:
        raise ValueError(f"the endpoint broke its answer off: {_INTERRUPTED}")
    failure = _STOPS.get(choice.finish_reason or "")
    if choice.message.refusal:
        failure = Failure(reason=Reason.MODEL_REFUSED, message=choice.message.refusal[:512])
    # A call that was cut at the output limit must not be run.
    functions = [] if failure else [call.function for call in choice.message.tool_calls or [] if call.function]
    usage = completion.usage or _Usage()
    return ModelAnswer(
        text=choice.message.content or "",
        calls=[RequestedCall(function.name, function.arguments) for function in functions],
        input_tokens=usage.prompt_tokens or 0,
        output_tokens=usage.completion_tokens or 0,
        failure=failure,
    )


def _parse(body: bytes) -> _Completion | None:
    try:
        return _Completion.model_validate_json(body)
    except ValidationError:
        pass
    try:
        # Lone surrogates, half an emoji cut by the output limit, are JSON to Python and not to pydantic.
        text = json.dumps(json.loads(body), ensure_ascii=False)
        return _Completion.model_validate_json(text.encode(errors="replace"))
    except ValueError:
        return None


def read_error(body: bytes) -> tuple[str | None, str]:
    """Return the code we know, if any, and the provider's own sentence, of an answer that tells of an error.

    OpenAI: `{"error": {"message", "code", "type"}}`; others: `{"error": "…"}`, `{"message": "…"}`, `{"detail": "…"}`, a page.
    """
    try:
        content = json.loads(body)
    except ValueError:
        content = body.decode(errors="replace")
    error = content.get("error", content) if isinstance(content, dict) else content
    if not isinstance(error, dict):
        return None, _one_line(error)
    known = _QUOTA_CODES | _REASONS.keys()
    code = next((error[key] for key in ("code", "type") if str(error.get(key)) in known), None)
    return code, _one_line(error.get("message") or error.get("detail") or error)


def classify(status: int | None, headers: Mapping[str, str], code: str | None, now: datetime) -> CallFailure:
    """Return what a failed call means. No status: no answer came (refused, reset, timed out).

    A used-up quota is a 429 that waiting does not mend.
    """
    if code in _QUOTA_CODES:
        return CallFailure(Verdict.FINAL, Reason.MODEL_FAILED)
    if is_passing(status, headers):
        return CallFailure(Verdict.RETRY, Reason.MODEL_RETRYING, retry_after_seconds(headers, now))
    return CallFailure(Verdict.FINAL, _REASONS.get(code or "", Reason.MODEL_FAILED))


def _one_line(words: object) -> str:
    return " ".join(str(words).split())[:600] or "(no words)"


def _message(request: ModelRequest, words: str) -> str:
    if request.api_key:
        words = words.replace(request.api_key, "[key]")
    return clean(f"model {request.model.model}: {words}"[:700])

"""Chat Completions in and out, without I/O: Dalang's messages as a request's body, and what came back as an answer.

Past the SDK's types: it walks through every message that is sent, in Python (26 ms of CPU a call at 80 messages, 2.5
without), and what compatible servers answer is looser. The tests check every request against those types.
"""

import json
from typing import Annotated, Any

from dalang_api.contract import Failure, Message, TextPart, ToolCallPart, ToolChoice, ToolResultPart
from dalang_api.v1alpha1.conditions import Reason
from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic_core import to_json

from dalang_worker.providers import ModelAnswer, ModelRequest, RequestedCall, TokenUsage
from dalang_worker.providers.http import one_line

Json = dict[str, Any]

QUOTA_CODES = frozenset({"insufficient_quota", "enforced_spend_limit_reached", "billing_hard_limit_reached"})
REASONS = {"context_length_exceeded": Reason.CONTEXT_LENGTH, "content_filter": Reason.CONTENT_FILTER}
"""Codes of errors that have a reason of their own."""
STOPS = {
    "length": Failure(
        reason=Reason.OUTPUT_TRUNCATED,
        message="The model stopped at its output limit; raise parameters.maxOutputTokens",
    ),
    "content_filter": Failure(reason=Reason.CONTENT_FILTER, message="The provider's content filter stopped the answer"),
}
_INTERRUPTED = "insufficient_system_resource"
"""DeepSeek's finish reason for an answer that it broke off under load."""
_TOOL_CHOICES = {"Auto": "auto", "None": "none", "Required": "required"}


# ── What is sent ───────────────────────────────────────────────────────────────────────────────────────────────────


def make_request(request: ModelRequest, is_openai: bool) -> Json:
    """Return the body of the POST; absent is not the same as null to compatible servers.

    Args:
        request: What to ask.
        is_openai: The endpoint is OpenAI's or Azure's own.
    """
    body: Json = {
        "model": request.model.deployment or request.model.model,
        "messages": make_messages(request.instructions, request.messages),
    }
    if request.tools:
        body |= _make_tools(request)
    if request.output_schema is not None:
        schema = {"name": "answer", "schema": request.output_schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.max_output_tokens is not None:
        # OpenAI's reasoning models refuse the old name; most compatible servers know only that.
        body["max_completion_tokens" if is_openai else "max_tokens"] = request.max_output_tokens
    return body


def _make_tools(request: ModelRequest) -> Json:
    """Return the tools and how to choose among them, which the API takes only together."""
    functions = [
        {"name": tool.name, "description": tool.description, "parameters": tool.schema} for tool in request.tools
    ]
    made: Json = {"tools": [{"type": "function", "function": function} for function in functions]}
    if request.tool_choice is not None:
        made["tool_choice"] = _make_tool_choice(request.tool_choice)
    if request.parallel_tool_calls is not None:
        made["parallel_tool_calls"] = request.parallel_tool_calls
    return made


def _make_tool_choice(choice: ToolChoice) -> str | Json:
    if choice.mode == "Tool":
        return {"type": "function", "function": {"name": choice.tool}}
    return _TOOL_CHOICES[choice.mode]


def make_messages(instructions: str | None, messages: list[Message]) -> list[Json]:
    """Return the conversation in Chat Completions form: one `tool` message per result, right after its calls.

    What the user says twice in a row, as after a summary, is one message: the chat templates of some open models refuse two
    (https://github.com/vllm-project/vllm/issues/6862).
    """
    made: list[Json] = []
    if instructions:
        made.append({"role": "system", "content": instructions})
    for message in messages:
        if message.role == "user" and made and made[-1]["role"] == "user":
            made[-1]["content"] += f"\n\n{message.text()}"
        else:
            made += _make_message(message)
    return made


def _make_message(message: Message) -> list[Json]:
    if message.role == "user":
        return [{"role": "user", "content": message.text()}]
    if message.role == "tool":
        return [
            {"role": "tool", "tool_call_id": part.call_id, "content": part.output}
            for part in message.parts
            if isinstance(part, ToolResultPart)
        ]
    # Opaque parts are another API's: none are made of a completion.
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


class _PromptTokens(BaseModel):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _Usage(BaseModel):
    """Tokens of the cache are among those of the prompt, those of reasoning among those of the completion."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptTokens | None = None

    def tokens(self) -> TokenUsage:
        details = self.prompt_tokens_details or _PromptTokens()
        return TokenUsage(
            input_tokens=self.prompt_tokens or 0,
            output_tokens=self.completion_tokens or 0,
            cache_read_tokens=details.cached_tokens or 0,
            cache_write_tokens=details.cache_write_tokens or 0,
        )


class _Completion(BaseModel):
    """The part of a chat completion that is used here, and no stricter than it must be."""

    choices: list[_Choice]
    usage: _Usage | None = None


def read_completion(body: bytes) -> ModelAnswer:
    """Return a completion in Dalang's form. What the model stopped for is in `STOPS`; all else is an answer or tools.

    Raises:
        ValueError: It is no completion, or one that was broken off; asked again, a server under load may do better.
    """
    completion = _parse(body)
    if completion is None or not completion.choices:
        raise ValueError(f"the endpoint answered 200 with no chat completion: {read_error(body)[1]}")
    choice = completion.choices[0]
    if choice.finish_reason == _INTERRUPTED:
        raise ValueError(f"the endpoint broke its answer off: {_INTERRUPTED}")
    failure = STOPS.get(choice.finish_reason or "")
    if choice.message.refusal:
        failure = Failure(reason=Reason.MODEL_REFUSED, message=choice.message.refusal[:512])
    texts = [TextPart(text=choice.message.content)] if choice.message.content else []
    # A call that was cut at the output limit must not be run.
    functions = [] if failure else [call.function for call in choice.message.tool_calls or [] if call.function]
    calls = [RequestedCall(function.name, function.arguments) for function in functions]
    return ModelAnswer(parts=[*texts, *calls], usage=(completion.usage or _Usage()).tokens(), failure=failure)


def _parse(body: bytes) -> _Completion | None:
    try:
        return _Completion.model_validate_json(body)
    except ValidationError:
        pass
    try:
        # Lone surrogates, half an emoji cut by the output limit, are JSON to Python and not to pydantic.
        text = json.dumps(json.loads(body), ensure_ascii=False)
        return _Completion.model_validate_json(text.encode(errors="replace"))
    except (ValueError, RecursionError):
        return None


def read_error(body: bytes) -> tuple[str | None, str]:
    """Return the code we know, if any, and the provider's own sentence, of an answer that tells of an error.

    OpenAI: `{"error": {"message", "code", "type"}}`; others: `{"error": "…"}`, `{"message": "…"}`, `{"detail": "…"}`, a page.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = body.decode(errors="replace")
    error = content.get("error", content) if isinstance(content, dict) else content
    if not isinstance(error, dict):
        return None, one_line(error)
    known = QUOTA_CODES | REASONS.keys()
    code = next((error[key] for key in ("code", "type") if str(error.get(key)) in known), None)
    return code, one_line(error.get("message") or error.get("detail") or error)

"""Anthropic's Messages API in and out, without I/O: Dalang's messages as a request, and a message as an answer.

The API is strict about the form of a conversation, and a transcript that it refuses ends a run for good. So what it refuses
is mended here: empty texts, a conversation that an assistant begins or ends, results without tools. The rules' sources are
told in `dalang_cli/dev/scripted_anthropic_rules.py`, which the tests run against.
"""

import json
from dataclasses import dataclass
from typing import Any

from anthropic.types import Message as ClaudeMessage
from anthropic.types import Usage
from dalang_api.contract import (
    Failure,
    Message,
    ModelSnapshot,
    OpaquePart,
    Part,
    TextPart,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from dalang_api.v1alpha1.conditions import Reason
from pydantic_core import from_json

from dalang_worker.providers import ModelAnswer, ModelRequest, RequestedCall, TokenUsage, ToolSpec

Json = dict[str, Any]

DEFAULT_MAX_TOKENS = 16_384
"""The API demands a limit. Every model since Claude 3.7 takes this one; an older one answers 400 and names its own, which
is then to be set as `parameters.maxOutputTokens`."""
CACHED_MESSAGES = 2
"""How many of the last user messages end a cached prefix: the last for the next call, the one before since that call has
written it. The API itself looks back 20 blocks only, and a turn may have more results."""

BEGINNING = "(The conversation begins with what you said.)"
CONTINUE = "Continue."
EMPTY = "(empty)"
"""Words of ours where the API demands some."""

_CACHE = {"cache_control": {"type": "ephemeral"}}
_THOUGHTS = ("thinking", "redacted_thinking")
_TOOL_CHOICES = {"Auto": "auto", "None": "none", "Required": "any", "Tool": "tool"}


@dataclass(frozen=True)
class Stop:
    """What a stop reason means; with neither, what the model said is an answer or asks for tools."""

    failure: Failure | None = None
    call_again: bool = False


STOPS: dict[str, Stop] = {
    "end_turn": Stop(),
    "stop_sequence": Stop(),
    "tool_use": Stop(),
    "pause_turn": Stop(call_again=True),
    "max_tokens": Stop(
        Failure(
            reason=Reason.OUTPUT_TRUNCATED,
            message="The model stopped at its output limit; raise parameters.maxOutputTokens",
        )
    ),
    "refusal": Stop(Failure(reason=Reason.MODEL_REFUSED, message="The model refused to answer")),
    "model_context_window_exceeded": Stop(
        Failure(reason=Reason.CONTEXT_LENGTH, message="The conversation has filled the model's context window")
    ),
}
"""Every stop reason that the SDK knows."""


# ── What is sent ───────────────────────────────────────────────────────────────────────────────────────────────────


def make_request(request: ModelRequest) -> Json:
    """Return the arguments of `messages.stream`. There is no temperature: the API has none any more."""
    limit = request.max_output_tokens
    body: Json = {
        "model": request.model.model,
        "max_tokens": DEFAULT_MAX_TOKENS if limit is None else limit,
        "messages": make_messages(request.messages, request.model),
    }
    if request.instructions and not request.instructions.isspace():
        body["system"] = [{"type": "text", "text": request.instructions}]
    body |= _make_tools(request)
    if request.output_schema is not None:
        body["output_config"] = {"format": {"type": "json_schema", "schema": request.output_schema}}
    _cache(body)
    return body


def _cache(body: Json) -> None:
    """Mark where cached prefixes end, block by block: not every platform takes the mark for the whole request.

    The order of a prefix is tools, system, messages, so that the mark of the system prompt covers the tools.
    """
    prefixes = [body.get("system") or body.get("tools") or []]
    spoken = [message["content"] for message in body["messages"] if message["role"] == "user"]
    for blocks in [*prefixes, *spoken[-CACHED_MESSAGES:]]:
        if blocks:
            blocks[-1] |= _CACHE


def _make_tools(request: ModelRequest) -> Json:
    if not request.tools:
        return _make_past_tools(request.messages)
    made: Json = {"tools": [_make_tool(tool) for tool in request.tools]}
    choice = request.tool_choice
    if choice is not None or request.parallel_tool_calls is not None:
        made["tool_choice"] = _make_tool_choice(choice or ToolChoice(mode="Auto"), request.parallel_tool_calls)
    return made


def _make_past_tools(messages: list[Message]) -> Json:
    """Return the tools of a conversation that was handed over to an agent without any, not to be called.

    "Requests which include `tool_use` or `tool_result` blocks must define tools" (anthropic-sdk-python #494).
    """
    names = {call.tool: None for message in messages for call in message.tool_calls()}
    if not names:
        return {}
    tools = [ToolSpec(name, "Not available any more.", {"type": "object"}) for name in names]
    return {"tools": [_make_tool(tool) for tool in tools], "tool_choice": {"type": "none"}}


def _make_tool(tool: ToolSpec) -> Json:
    """Return a tool. At its top, the schema has a type and no alternatives; arguments are checked here all the same."""
    refused = ("oneOf", "anyOf", "allOf")
    schema = {name: value for name, value in tool.schema.items() if name not in refused}
    return {"name": tool.name, "description": tool.description, "input_schema": {"type": "object", **schema}}


def _make_tool_choice(choice: ToolChoice, parallel: bool | None) -> Json:
    made: Json = {"type": _TOOL_CHOICES[choice.mode]}
    if choice.mode == "Tool":
        made["name"] = choice.tool
    if parallel is not None and choice.mode != "None":
        made["disable_parallel_tool_use"] = not parallel
    return made


def make_messages(messages: list[Message], model: ModelSnapshot) -> list[Json]:
    """Return the conversation: user and assistant in turns, the user first and last, all results of a turn at once."""
    made: list[Json] = []
    for message in messages:
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _make_assistant(message, model) if role == "assistant" else _make_user(message)
        if blocks and made and made[-1]["role"] == role:
            made[-1]["content"] += blocks
        elif blocks:
            made.append({"role": role, "content": blocks})
    if not made or made[0]["role"] == "assistant":
        made.insert(0, _user(BEGINNING))
    if not _may_end(made[-1]):
        made.append(_user(CONTINUE))
    return made


def _user(text: str) -> Json:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def _may_end(message: Json) -> bool:
    """Whether a conversation may end so: by the user, or in the midst of a tool that runs at Anthropic (`pause_turn`)."""
    return message["role"] == "user" or any(block["type"] == "server_tool_use" for block in message["content"])


def _make_user(message: Message) -> list[Json]:
    results = [part for part in message.parts if isinstance(part, ToolResultPart)]
    texts = [part.text for part in message.parts if isinstance(part, TextPart) and part.text.strip()]
    if not results and not texts:
        texts = [EMPTY]
    return [*map(_make_result, results), *({"type": "text", "text": text} for text in texts)]


def _make_result(part: ToolResultPart) -> Json:
    output = part.output if part.output.strip() else EMPTY
    made: Json = {"type": "tool_result", "tool_use_id": part.call_id, "content": output}
    if part.is_error:
        made["is_error"] = True
    return made


def _make_assistant(message: Message, model: ModelSnapshot) -> list[Json]:
    """Return its blocks in their order; none if nothing is left of it. Its last block may not be a thought."""
    blocks = [block for part in message.parts if (block := _make_block(part, model))]
    while blocks and blocks[-1]["type"] in _THOUGHTS:
        blocks.pop()
    return blocks


def _make_block(part: Part, model: ModelSnapshot) -> Json | None:
    match part:
        case TextPart() if part.text.strip():
            return {"type": "text", "text": part.text}
        case ToolCallPart():
            return {"type": "tool_use", "id": part.call_id, "name": part.tool, "input": _object(part.arguments) or {}}
        case OpaquePart(provider=model.provider, model=model.model):
            return _object(part.data)
    return None


def _object(text: str) -> Json | None:
    """Return a text's JSON object; None if there is none that can be sent, for every later call would fail over it.

    Of arguments the call's result has told that to the model.
    """
    try:
        found = from_json(text, allow_inf_nan=False)  # refuses half characters and endless nesting, too
        json.dumps(found, allow_nan=False)  # as the SDK writes it; 1e999 has become infinity
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


# ── What comes back ────────────────────────────────────────────────────────────────────────────────────────────────


def read_message(message: ClaudeMessage, model: ModelSnapshot) -> ModelAnswer:
    """Return a message in Dalang's form. A stop reason that is not in `STOPS` goes by what was said.

    Raises:
        ValueError: It has no end: the stream was broken off.
    """
    if message.stop_reason is None:
        raise ValueError("the endpoint broke its answer off")
    stop = STOPS.get(message.stop_reason, Stop())
    parts = [part for block in message.content if (part := _read_block(block, model))]
    if stop.failure:
        # A call that was cut must not be run, and a thought that was cut is not signed.
        parts = [part for part in parts if isinstance(part, TextPart)]
    return ModelAnswer(
        parts=parts,
        usage=_read_usage(message.usage),
        failure=_with_words(stop.failure, message),
        call_again=stop.call_again,
    )


def _read_block(block: Any, model: ModelSnapshot) -> TextPart | OpaquePart | RequestedCall | None:
    match block.type:
        case "text":
            return TextPart(text=block.text) if block.text else None
        case "tool_use":
            return RequestedCall(block.name, json.dumps(block.input, ensure_ascii=False))
    return OpaquePart(provider=model.provider, model=model.model, data=json.dumps(block.to_dict(mode="json")))


def _read_usage(usage: Usage) -> TokenUsage:
    """Return the tokens; the API's `input_tokens` are only those that the cache has no part in."""
    read, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    return TokenUsage(
        input_tokens=(usage.input_tokens or 0) + read + written,
        output_tokens=usage.output_tokens or 0,
        cache_read_tokens=read,
        cache_write_tokens=written,
    )


def _with_words(failure: Failure | None, message: ClaudeMessage) -> Failure | None:
    """Return the failure, a refusal with the API's explanation if it gives one."""
    words = message.stop_details.explanation if message.stop_details else None
    if failure and failure.reason == Reason.MODEL_REFUSED and words:
        return Failure(reason=failure.reason, message=words[:512])
    return failure

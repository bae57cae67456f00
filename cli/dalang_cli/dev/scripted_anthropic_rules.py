"""What Anthropic's Messages API answers with 400, in its words: a run that sends it would fail with a customer.

The rules are those that a client with a transcript of its own breaks. Sources: the docstrings of anthropic 2.11 (`types/`),
https://platform.claude.com/docs/en/api/errors, and the answers that users have reported (anthropics/claude-code #8210,
#13460, #59812, #6774; forgecode #2107; opencode #3077; jobrunr/JavaClaw #36). Rules that depend on the model are those of
the newer models.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any

from dalang_cli.dev.scripted_answers import BadRequest

Json = dict[str, Any]

SAMPLING = ("temperature", "top_p", "top_k")
"""Gone since version 2026-10-21, at their default values too: "temperature: Extra inputs are not permitted"."""
VERSION_WITHOUT_SAMPLING = "2026-10-21"

MIN_THINKING_TOKENS = 1024
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
CALL_ID = re.compile(r"[a-zA-Z0-9_-]+")
THINKING = ("thinking", "redacted_thinking")
OWN_SIGNATURE = "scripted-"


def check_messages(content: Json, version: str) -> None:
    """Refuse what the API refuses.

    Raises:
        BadRequest: in Anthropic's words, where they are known.
    """
    _check_fields(content, version)
    _check_thinking_config(content)
    _check_tools(content.get("tools") or [])
    for rule in RULES:
        for message in rule(content):
            raise BadRequest(message)


def blocks(message: Json) -> list[Json]:
    """Return the content of a message (or of a system prompt's holder) as blocks; a string is one of text."""
    content = message.get("content")
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or [])


def signature(thinking: str) -> str:
    """Return the signature of a thought of the scripted model; one that comes back must fit its text."""
    return OWN_SIGNATURE + sha256(thinking.encode()).hexdigest()


def _check_fields(content: Json, version: str) -> None:
    if "max_tokens" not in content:
        raise BadRequest("max_tokens: Field required")
    if not isinstance(content["max_tokens"], int) or content["max_tokens"] < 0:
        raise BadRequest("max_tokens: Input should be a valid integer")
    if not isinstance(content.get("messages"), list) or not content["messages"]:
        raise BadRequest("messages: at least one message is required")
    # Bedrock's own version, bedrock-2023-05-31, is an old one too, and "b" would sort behind every year.
    if version[:1].isdigit() and version >= VERSION_WITHOUT_SAMPLING:
        for name in SAMPLING:
            if name in content:
                raise BadRequest(f"{name}: Extra inputs are not permitted")


def _check_thinking_config(content: Json) -> None:
    thinking = content.get("thinking") or {}
    if thinking.get("type") != "enabled":
        return
    budget = thinking.get("budget_tokens", 0)
    if budget < MIN_THINKING_TOKENS:
        raise BadRequest(
            f"thinking.enabled.budget_tokens: Input should be greater than or equal to {MIN_THINKING_TOKENS}"
        )
    if budget >= content["max_tokens"]:
        raise BadRequest("`max_tokens` must be greater than `thinking.budget_tokens`.")
    if (content.get("tool_choice") or {}).get("type") in ("any", "tool"):
        raise BadRequest("Thinking may not be enabled when tool_choice forces tool use.")


def _check_tools(tools: Sequence[Json]) -> None:
    own = [(position, tool) for position, tool in enumerate(tools) if tool.get("type") in (None, "custom")]
    for position, tool in own:
        if not TOOL_NAME.fullmatch(tool.get("name", "")):
            raise BadRequest(f"tools.{position}.custom.name: String should match pattern '^{TOOL_NAME.pattern}$'")
        schema = tool.get("input_schema")
        if not isinstance(schema, dict) or schema.get("type") != "object":
            raise BadRequest(f"tools.{position}.custom.input_schema.type: Field required")
        if {"oneOf", "allOf", "anyOf"} & schema.keys():
            raise BadRequest(
                f"tools.{position}.custom.input_schema: input_schema does not support oneOf, allOf, or anyOf at the top level"
            )
    if len({tool["name"] for _, tool in own}) < len(own):
        raise BadRequest("tools: Tool names must be unique.")


def _roles(content: Json) -> Iterator[str]:
    for position, message in enumerate(content["messages"]):
        if message.get("role") not in ("user", "assistant", "system"):
            yield f"messages.{position}.role: Input should be 'user', 'assistant' or 'system', not \"{message.get('role')}\""
    if content["messages"][0].get("role") != "user":
        yield 'messages: first message must use the "user" role'


def _contents(content: Json) -> Iterator[str]:
    for position, message in enumerate(content["messages"]):
        if not message.get("content"):
            yield (
                f"messages.{position}: all messages must have non-empty content except for the optional final assistant "
                "message"
            )
    for part in ("system", "messages"):
        holders = content["messages"] if part == "messages" else [{"content": content.get("system") or []}]
        texts = [block.get("text") for holder in holders for block in blocks(holder) if block.get("type") == "text"]
        if not all(texts):
            yield f"{part}: text content blocks must be non-empty"
        if not all(text.strip() for text in texts if text):
            yield f"{part}: text content blocks must contain non-whitespace text"


def _tool_uses(content: Json) -> Iterator[str]:
    """Each tool use is answered by one result at the head of the next message, and nothing else is."""
    seen: set[str] = set()
    asked: list[str] = []
    for position, message in _joined(content["messages"]):
        results = _leading_results(message) if message["role"] == "user" else []
        for place, block in enumerate(message["content"]):
            if block.get("type") == "tool_result" and block.get("tool_use_id") not in asked:
                yield (
                    f"messages.{position}.content.{place}: unexpected `tool_use_id` found in `tool_result` blocks: "
                    f"{block.get('tool_use_id')}. Each `tool_result` block must have a corresponding `tool_use` block in "
                    "the previous message."
                )
        yield from _unanswered(position - 1, asked, results)
        if twice := {each for each in results if results.count(each) > 1}:
            yield (
                f"messages.{position}: each tool_use must have a single result. Found multiple `tool_result` blocks with "
                f"id: {', '.join(sorted(twice))}"
            )
        asked = [block.get("id", "") for block in message["content"] if block.get("type") == "tool_use"]
        yield from _call_ids(position, asked, seen)
        seen.update(asked)
    yield from _unanswered(len(content["messages"]) - 1, asked, [])


def _unanswered(position: int, asked: Sequence[str], results: Sequence[str]) -> Iterator[str]:
    if missing := [each for each in asked if each not in results]:
        yield (
            f"messages.{position}: `tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{', '.join(missing)}. Each `tool_use` block must have a corresponding `tool_result` block in the next message."
        )


def _call_ids(position: int, asked: Sequence[str], seen: set[str]) -> Iterator[str]:
    for each in asked:
        if not CALL_ID.fullmatch(each):
            yield f"messages.{position}.content: tool_use.id: String should match pattern '^{CALL_ID.pattern}$'"
    if len(set(asked)) < len(asked) or seen & set(asked):
        yield f"messages.{position}: `tool_use` ids must be unique"


def _thoughts(content: Json) -> Iterator[str]:
    """Thoughts come back as they were given; with `thinking: enabled` those of the open turn must come back."""
    for position, message in enumerate(content["messages"]):
        for place, block in enumerate(blocks(message)):
            if block.get("type") == "thinking" and not _is_signed(block):
                yield f"messages.{position}.content.{place}: Invalid `signature` in `thinking` block"
    if (content.get("thinking") or {}).get("type") != "enabled":
        return
    position, first = _open_turn(content["messages"])
    if first not in (None, *THINKING):
        yield (
            f"messages.{position}.content.0.type: Expected `thinking` or `redacted_thinking`, but found `{first}`. When "
            "`thinking` is enabled, a final `assistant` message must start with a thinking block (preceeding the lastmost "
            "set of `tool_use` and `tool_result` blocks)."
        )


def _open_turn(messages: Sequence[Json]) -> tuple[int, str | None]:
    """Return where the model began the turn that results of tools are now to go on with, and its first block's kind."""
    began: tuple[int, str | None] = (0, None)
    for position, message in _joined(messages):
        if message["role"] == "user" and not _leading_results(message):
            began = (0, None)
        elif message["role"] == "assistant" and began[1] is None:
            began = (position, message["content"][0].get("type"))
    return began


def _is_signed(block: Json) -> bool:
    given = block.get("signature")
    if not given:
        return False
    return not given.startswith(OWN_SIGNATURE) or given == signature(block.get("thinking", ""))


def _end(content: Json) -> Iterator[str]:
    """The last word is the user's, but for a turn of server tools that is to go on (`pause_turn`)."""
    last = content["messages"][-1]
    if last.get("role") != "assistant":
        return
    kinds = [block.get("type") for block in blocks(last)]
    if kinds[-1] in THINKING:
        yield f"messages.{len(content['messages']) - 1}: The final block in an assistant message cannot be `{kinds[-1]}`."
    if "server_tool_use" not in kinds:
        yield "This model does not support assistant message prefill. The conversation must end with a user message."


RULES: tuple[Callable[[Json], Iterator[str]], ...] = (_roles, _contents, _tool_uses, _thoughts, _end)
"""Each gives what is wrong with the messages; the first one found is the answer."""


def _joined(messages: Sequence[Json]) -> Iterator[tuple[int, Json]]:
    """Yield the turns: messages of one role in a row are one, named by the position of the first."""
    position, turn = 0, {"role": "", "content": list[Json]()}
    for at, message in enumerate(messages):
        if message["role"] == turn["role"]:
            turn["content"] = [*turn["content"], *blocks(message)]
            continue
        if turn["role"]:
            yield position, turn
        position, turn = at, {"role": message["role"], "content": blocks(message)}
    yield position, turn


def _leading_results(message: Json) -> list[str]:
    results: list[str] = []
    for block in message["content"]:
        if block.get("type") != "tool_result":
            break
        results.append(block.get("tool_use_id", ""))
    return results

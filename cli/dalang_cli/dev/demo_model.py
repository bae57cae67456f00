"""Plays a model well enough for examples to look alive: picks a tool by its words, guesses arguments, reads results aloud.

Used by the model server for models without a script. It understands nothing, follows few instructions (tools that one
sentence orders with "first … then …", a JSON schema for the answer, the reason for which a human rejected a call, a summary
of a conversation), remembers what it was told when it is asked in the same words, and always ends: each tool is called at most once for a message of the user, twice if a human said what to do better, unless the
request demands a call.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dalang_api.contract import SUMMARY_HEADING

Json = dict[str, Any]

STOP_WORDS = frozenset(
    [
        "and",
        "are",
        "can",
        "could",
        "does",
        "for",
        "from",
        "get",
        "how",
        "its",
        "please",
        "show",
        "tell",
        "that",
        "the",
        "this",
        "what",
        "when",
        "where",
        "with",
        "you",
        "your",
    ]
)
HANDOFF = "transfer_to_"
HANDOFF_WORDS = frozenset({"transfer", "hand", "conversation", "over", "who", "goe"})
"""Words of every hand-off, which say nothing about when to choose it."""
WHOLE_TEXT = frozenset(
    {"answer", "content", "explanation", "input", "message", "prompt", "query", "question", "reason", "summary", "text"}
)
"""Names of strings that hold all that was said rather than a name found in it."""
FOUND = "Here is what I found: "
SUMMARISER = "You keep the memory of a conversation"
"""How Dalang's request for a summary begins."""
SUMMARY_LINE_CHARS = 100
SUMMARY_LINES = (10, 20)
"""How many lines of the beginning and of the end a summary has."""

_SCHEMA = re.compile(r"fits this JSON schema:\s*(?=\{)")
_CORRECTION = re.compile(r"\b(does not fit|answer again|not (?:one|a|an) JSON|no JSON)\b", re.IGNORECASE)
_PASSAGE = re.compile(r"^\[\d+\]\n(?:source: (?P<source>.+)\n)?(?P<text>(?:(?!---$).+\n?)+)", re.MULTILINE)
_ORDER = re.compile(r"\bfirst\b.*\bthen\b", re.IGNORECASE)
_REJECTED = re.compile(r"Not run: a human rejected it\. (?!No reason was given)(?P<reason>.+)", re.DOTALL)
_SENTENCE = re.compile(r"\S.*?(?:[.!?](?=\s)|\Z)", re.DOTALL)


def demo_response(request: Json) -> Json:
    """Return a response in the script format of the model server."""
    if is_for_summary(request):
        return {"text": _summary(request)}
    exchange = _Exchange.of(request["messages"])
    tools = [tool["function"] for tool in request.get("tools") or []]
    if tool := _next_tool(exchange, tools, request.get("tool_choice") or "auto"):
        return {"toolCalls": [{"name": tool["name"], "arguments": _arguments(exchange, tool)}]}
    found = exchange.results or exchange.passages()
    if schema := _answer_schema(request, exchange.system):
        return {"text": json.dumps(_answer(exchange, schema, found), ensure_ascii=False)}
    if found:
        return {"text": f"{FOUND}{'; '.join(found)}."}
    if told := exchange.recalled():
        return {"text": f'You told me: "{told}"'}
    first = next(iter(_SENTENCE.findall(exchange.system)), "").strip()
    instructions = f' My instructions begin: "{first[:200]}"' if first else ""
    return {"text": f'This is the scripted model of dalang dev.{instructions} You said: "{exchange.asked.strip()}"'}


# ── What was said ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Exchange:
    """The last message of the user, and what came of it so far."""

    system: str
    asked: str
    told: list[str]
    """What the user said before that, and what summaries tell of it, in sentences, the oldest first; without questions."""
    called: list[str]
    """Names of the tools called since."""
    results: list[str]
    """What they said, each thing once; not of hand-offs."""
    corrections: int
    """How often an answer was sent back because it does not fit."""
    feedback: str
    """Why a human rejected the last call; empty if none did, or without a reason."""

    @classmethod
    def of(cls, messages: Sequence[Json]) -> "_Exchange":
        users = [place for place, message in enumerate(messages) if message.get("role") == "user"]
        asked = next((place for place in reversed(users) if not _is_correction(messages, place)), None)
        since = messages[(0 if asked is None else asked + 1) :]
        said = [_result(message) for message in since if message.get("role") == "tool"]
        # What was rejected is worth telling only if nothing came of it.
        results = [result for result in said[:-1] if not _REJECTED.match(result)] + said[-1:]
        rejection = _REJECTED.match(said[-1]) if said else None
        remembered, question = _split_summary("" if asked is None else _text(messages[asked]))
        earlier = [_text(messages[place]) for place in users if place != asked and not _is_correction(messages, place)]
        return cls(
            system="\n\n".join(_text(each) for each in messages if each.get("role") in ("system", "developer")),
            asked=question,
            told=[sentence for text in [*earlier, remembered] for sentence in _told(text)],
            called=[name for message in since for name in _called(message)],
            results=list(
                dict.fromkeys(result for result in results if not re.fullmatch(r"Transferred to \S+", result))
            ),
            corrections=sum(message.get("role") == "user" for message in since),
            feedback=rejection["reason"] if rejection else "",
        )

    def passages(self) -> list[str]:
        """Return what a retrieval put into the system prompt: the nearest passage, with where it stands."""
        if (match := _PASSAGE.search(self.system)) is None:
            return []
        text = " ".join(match["text"].split()).rstrip(".")
        return [f"{text} (source: {match['source']})" if match["source"] else text]

    def recalled(self) -> str | None:
        """Return what the user has told that shares the most words with the question, of several such the last."""
        words = _words(self.asked) if "?" in self.asked else set()
        best = max(reversed(self.told), key=lambda sentence: len(words & _words(sentence)), default="")
        return best if words & _words(best) else None


def _split_summary(text: str) -> tuple[str, str]:
    """Return the summary that a message begins with, if it does, and the rest: providers join messages in a row."""
    if not text.startswith(SUMMARY_HEADING):
        return "", text
    summary, _, rest = text.rpartition("\n\n")
    return summary or text, rest if summary else ""


def _told(text: str) -> list[str]:
    lines = (line.removeprefix("- ") for line in text.removeprefix(SUMMARY_HEADING).splitlines())
    return [sentence for line in lines for sentence in _SENTENCE.findall(line) if not sentence.endswith("?")]


def _is_correction(messages: Sequence[Json], place: int) -> bool:
    """Tell whether a user's message is not the user's: it sends the answer before it back."""
    before = messages[place - 1] if place else {}
    is_after_answer = before.get("role") == "assistant" and not list(_called(before))
    return is_after_answer and _CORRECTION.search(_text(messages[place])) is not None


def _called(message: Json) -> Iterator[str]:
    """Yield the names of the tools a message calls, in Chat Completions' words or in Anthropic's."""
    for call in message.get("tool_calls") or ():
        yield call["function"]["name"]
    content = message.get("content")
    for part in content if isinstance(content, list) else ():
        if part.get("type") == "tool_use":
            yield part["name"]


def _result(message: Json) -> str:
    return _text(message).strip().removeprefix(FOUND).rstrip(".")


def _text(message: Json) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n\n".join(part.get("text", "") for part in content)


def _words(text: str) -> set[str]:
    separate = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", text).lower()
    return {word.rstrip("s") for word in re.findall(r"[a-z]{3,}", separate)} - STOP_WORDS


# ── Summaries ──────────────────────────────────────────────────────────────────────────────────────────────────────


def is_for_summary(request: Json) -> bool:
    """Return whether a request asks for the summary of a conversation."""
    first: Json = next(iter(request["messages"]), {})
    return first.get("role") in ("system", "developer") and _text(first).startswith(SUMMARISER)


def _summary(request: Json) -> str:
    """Return what the user has said, and the tools, a line each; what an earlier summary tells comes first."""
    lines = list(dict.fromkeys(line for entry in _transcript(request) for line in _summary_lines(entry)))
    first, last = SUMMARY_LINES
    kept = lines if len(lines) <= first + last else lines[:first] + lines[-last:]
    return "\n".join(f"- {line}" for line in kept) or "- Nothing was told."


def _transcript(request: Json) -> Iterator[Json]:
    """Yield the entries of the transcript that is to be summarised: one JSON object a line."""
    for line in _text(request["messages"][-1]).splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def _summary_lines(entry: Json) -> list[str]:
    if (earlier := entry.get("earlier summary")) is not None:
        return [line.removeprefix("- ") for line in earlier.splitlines() if line]
    if (said := entry.get("said")) is not None:
        return [f"{entry.get('tool')}: {' '.join(said.split())}"[:SUMMARY_LINE_CHARS]]
    is_users = entry.get("from") == "user"
    return [" ".join(sentence.split())[:SUMMARY_LINE_CHARS] for sentence in _told(entry["text"])] if is_users else []


# ── Tools ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _next_tool(exchange: _Exchange, tools: Sequence[Json], choice: str | Json) -> Json | None:
    """Return the tool to call now, if any."""
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
        return next((tool for tool in tools if tool["name"] == name), None)
    if choice == "none" or not tools:
        return None
    left = [tool for tool in tools if tool["name"] not in exchange.called]
    if exchange.feedback and exchange.called.count(last := exchange.called[-1]) == 1:
        return next((tool for tool in tools if tool["name"] == last), None)
    if tool := next((tool for tool in _ordered(exchange.system, tools) if tool in left), None):
        return tool
    if not exchange.results and not exchange.corrections and (tool := _best_tool(exchange.asked, left)):
        return tool
    return (left or list(tools))[0] if choice == "required" else None


def _ordered(system: str, tools: Sequence[Json]) -> list[Json]:
    """Return the tools that the first sentence of the kind "first … then …" names, in its order."""
    by_name = {tool["name"]: tool for tool in tools}
    for sentence in _SENTENCE.findall(system):
        if _ORDER.search(" ".join(sentence.split())):
            named = (by_name.get(word) for word in re.findall(r"[\w-]+", sentence))
            return [tool for tool in named if tool is not None]
    return []


def _best_tool(asked: str, tools: Sequence[Json]) -> Json | None:
    """Return the tool that shares the most words with the question, of several such a hand-off before any other."""
    words = _words(asked)

    def score(tool: Json) -> tuple[int, bool]:
        known = _words(f"{tool['name']} {tool.get('description', '')}")
        is_handoff = tool["name"].startswith(HANDOFF)
        return len(words & (known - HANDOFF_WORDS if is_handoff else known)), is_handoff

    best = max(tools, key=score, default=None)
    return best if best is not None and score(best)[0] else None


# ── What is written ────────────────────────────────────────────────────────────────────────────────────────────────


def _arguments(exchange: _Exchange, tool: Json) -> Any:
    """Return arguments guessed from the question; a text for somebody else holds what was found as well."""
    schema = tool.get("parameters") or {"type": "object"}
    whole = "\n\n".join([exchange.asked.strip(), *exchange.results])
    text = f"{exchange.feedback} {exchange.asked}".strip()  # what was said last is found first
    return _Guess(text, whole, schema.get("$defs") or {}).value(schema)


def _answer_schema(request: Json, system: str) -> Json | None:
    """Return the JSON schema of the answer, from the request or, as compatible endpoints are asked, the system prompt."""
    wanted: Json | None = ((request.get("response_format") or {}).get("json_schema") or {}).get("schema")
    if wanted or (match := _SCHEMA.search(system)) is None:
        return wanted
    try:
        schema: Json = json.JSONDecoder().raw_decode(system, match.end())[0]
    except ValueError:
        return None
    return schema


def _answer(exchange: _Exchange, schema: Json, found: list[str]) -> Any:
    """Return an answer from what was found, else from the question; sent back once, it has only what has to be there."""
    text = "; ".join(found) or exchange.asked
    return _Guess(text, text, schema.get("$defs") or {}, only_required=exchange.corrections > 0).value(schema)


class _Guess:
    """Guesses values that fit a schema from a text; each number of the text is used once.

    What the text labels goes where it belongs: `source: travel` is the value of `source`, and the first of `sources`.
    """

    def __init__(self, text: str, whole: str, definitions: Json, *, only_required: bool = False) -> None:
        """Make one.

        Args:
            text: What to find values in.
            whole: What strings hold whose name is in `WHOLE_TEXT`.
            definitions: The schema's `$defs`.
            only_required: Leave out the properties that need not be there.
        """
        self._text = text
        self._whole = whole
        self._definitions = definitions
        self._only_required = only_required
        self._numbers = re.findall(r"-?\d+(?:\.\d+)?", text)

    def value(self, schema: Json, name: str = "") -> Any:
        if "$ref" in schema:
            return self.value(self._definitions.get(schema["$ref"].rsplit("/", 1)[-1], {}), name)
        for fixed in ("const", "default"):
            if fixed in schema:
                return schema[fixed]
        if options := schema.get("enum"):
            return next((option for option in options if _words(str(option)) & _words(self._text)), options[0])
        if alternatives := schema.get("anyOf") or schema.get("oneOf"):
            return self.value(alternatives[0], name)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        match kind[0] if isinstance(kind, list) else kind:
            case "object":
                return self._object(schema)
            case "array":
                return self._array(schema, name)
            case "boolean":
                return True
            case "null":
                return None
            case "integer" | "number" as kind:
                return self._number(schema, is_whole=kind == "integer")
        return self._string(name)[: schema.get("maxLength")]

    def _object(self, schema: Json) -> Json:
        properties: Json = schema.get("properties") or {}
        wanted = schema.get("required") or [] if self._only_required else properties
        return {name: self.value(properties.get(name) or {}, name) for name in wanted}

    def _array(self, schema: Json, name: str) -> list[Any]:
        items = schema.get("items") or {}
        if items.get("type") == "string" and "enum" not in items and (labelled := self._labelled(name)):
            return list(labelled[: schema.get("maxItems")])
        return [self.value(items, name) for _ in range(max(1, schema.get("minItems", 1)))]

    def _number(self, schema: Json, *, is_whole: bool) -> float:
        number = float(self._numbers.pop(0)) if self._numbers else 1.0
        number = min(max(number, schema.get("minimum", number)), schema.get("maximum", number))
        return int(number) if is_whole else number

    def _string(self, name: str) -> str:
        if labelled := self._labelled(name):
            return labelled[0]
        if self._numbers and re.search(r"(^|_)(id|number|code|order|key)", name.lower()):
            return str(self._numbers.pop(0))
        if name.lower() in WHOLE_TEXT:
            return self._whole.strip()
        capitalised: list[str] = re.findall(r"(?<=[\w,] )[A-Z]\w+(?: [A-Z]\w+)*", self._text)
        return capitalised[-1] if capitalised and len(self._text) < 200 else self._text.strip()

    def _labelled(self, name: str) -> list[str]:
        if not name:
            return []
        label = re.escape(name.rstrip("s"))
        values = re.findall(rf"\b{label}s?: *([^\n,;()]+)", self._text, re.IGNORECASE)
        return list(dict.fromkeys(value.strip() for value in values))

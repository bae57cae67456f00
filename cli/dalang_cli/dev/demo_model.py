"""Plays a model well enough for examples to look alive: picks a tool by its words, guesses arguments, reads results aloud.

Used by the model server for models without a script. It understands nothing, and always ends: after tool results it answers.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

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


def demo_response(request: Json) -> Json:
    """Return a response in the script format of the model server."""
    messages: list[Json] = request["messages"]
    tools = [] if request.get("tool_choice") == "none" else [tool["function"] for tool in request.get("tools") or []]
    asked = next((_text(message) for message in reversed(messages) if message.get("role") == "user"), "")
    if schema := ((request.get("response_format") or {}).get("json_schema") or {}).get("schema"):
        if messages[-1].get("role") == "tool" or not _best_tool(asked, tools):
            return {"text": json.dumps(_Guess(asked, schema.get("$defs") or {}).value(schema))}
    elif messages[-1].get("role") == "tool":
        return {"text": f"Here is what I found: {'; '.join(_tool_results(messages))}."}
    if tool := _best_tool(asked, tools):
        parameters = tool.get("parameters") or {"type": "object"}
        arguments = _Guess(asked, parameters.get("$defs") or {}).value(parameters)
        return {"toolCalls": [{"name": tool["name"], "arguments": arguments}]}
    return {"text": f'This is the scripted model of dalang dev. You said: "{asked.strip()}"'}


def _text(message: Json) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def _words(text: str) -> set[str]:
    separate = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", text).lower()
    return {word.rstrip("s") for word in re.findall(r"[a-z]{3,}", separate)} - STOP_WORDS


def _best_tool(asked: str, tools: Iterable[Json]) -> Json | None:
    words = _words(asked)
    shared = [(len(words & _words(f"{tool['name']} {tool.get('description', '')}")), tool) for tool in tools]
    score, tool = max(shared, key=lambda scored: scored[0], default=(0, {}))
    return tool if score else None


class _Guess:
    """Guesses values that fit a schema from a text; each number of the text is used once."""

    def __init__(self, text: str, definitions: Json) -> None:
        self._text = text
        self._definitions = definitions
        self._numbers = re.findall(r"-?\d+(?:\.\d+)?", text)

    def value(self, schema: Json, name: str = "") -> Any:
        if "$ref" in schema:
            return self.value(self._definitions.get(schema["$ref"].rsplit("/", 1)[-1], {}), name)
        if "default" in schema:
            return schema["default"]
        if options := schema.get("enum"):
            return next((option for option in options if _words(str(option)) & _words(self._text)), options[0])
        if alternatives := schema.get("anyOf") or schema.get("oneOf"):
            return self.value(alternatives[0], name)
        match schema.get("type", "object" if "properties" in schema else "string"):
            case "object":
                return {key: self.value(each, key) for key, each in (schema.get("properties") or {}).items()}
            case "array":
                return [self.value(schema.get("items") or {}, name)]
            case "boolean":
                return True
            case "integer" | "number" as kind:
                number = float(self._numbers.pop(0)) if self._numbers else 1.0
                return int(number) if kind == "integer" else number
        return self._string(name)

    def _string(self, name: str) -> str:
        if self._numbers and re.search(r"(^|_)(id|number|code|order|key)", name.lower()):
            return str(self._numbers.pop(0))
        capitalised: list[str] = re.findall(r"(?<=[\w,] )[A-Z]\w+(?: [A-Z]\w+)*", self._text)
        return capitalised[-1] if capitalised and len(self._text) < 200 else self._text.strip()


def _tool_results(messages: list[Json]) -> list[str]:
    results: list[str] = []
    for message in reversed(messages):
        if message.get("role") != "tool":
            break
        results.insert(0, _text(message).strip().rstrip("."))
    return results

"""Which answer a request to the scripted model gets, whoever's API it speaks.

A request is read here as Chat Completions write it; the other APIs translate theirs before they ask. The answer is chosen
from the request alone (the number of assistant messages in it), so a retry, a restarted worker and a replay get the same
one. Only errors are counted, because an error is there to be retried. The format of scripts is told in model_server.py.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dalang_cli.dev.demo_model import demo_response, is_for_summary

Json = dict[str, Any]

BENCH = re.compile(r"bench-(?P<latency>\d+)(?:-turns-(?P<turns>\d+)-bytes-(?P<size>\d+))?")
STREAM_ERROR_STATUS = {"overloaded_error": 529, "rate_limit_error": 429, "timeout_error": 504}


class BadRequest(Exception):
    """The request, or the script it asks for, makes no sense; answered with 400, which clients do not retry."""

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        """The part of the request that is wrong, as OpenAI names it."""
        self.status = status


@dataclass
class Script:
    """What one model answers."""

    responses: list[Json] = field(default_factory=list)
    errors: list[Json] = field(default_factory=list)
    """Given first, one per request, in order."""
    always_error: Json | None = None
    latency_seconds: float = 0.0
    loop: bool = False
    """Begin anew after the last response; without it a further request is an error."""
    summarises: bool = False
    """The responses are for requests for a summary as well, which otherwise get an extract of the transcript."""

    @classmethod
    def parse(cls, content: Any) -> "Script":
        """Read the body of `PUT /scripts/{model}`; a misspelt key is an error, not a model that does something else."""
        known = {"responses", "errors", "alwaysError", "latencySeconds", "loop", "summarises"}
        if not isinstance(content, dict) or (unknown := set(content) - known):
            raise BadRequest(
                f"a script is an object with the keys {sorted(known)}, not {unknown if content else content}"
            )
        return cls(
            responses=list(content.get("responses") or []),
            errors=list(content.get("errors") or []),
            always_error=content.get("alwaysError"),
            latency_seconds=float(content.get("latencySeconds") or 0.0),
            loop=bool(content.get("loop")),
            summarises=bool(content.get("summarises")),
        )

    def next_error(self) -> Json | None:
        """Return the error that is due, if one is."""
        if self.always_error is not None:
            return self.always_error
        return self.errors.pop(0) if self.errors else None

    def next_response(self, turn: int) -> Json:
        """Return the error or response for a request that already contains `turn` assistant messages."""
        if (error := self.next_error()) is not None:
            return error
        if self.loop and self.responses:
            return self.responses[turn % len(self.responses)]
        if turn >= len(self.responses):
            raise BadRequest(
                f"the script has {len(self.responses)} responses, but the request is for number {turn + 1}"
            )
        return self.responses[turn]


def choose_response(request: Json, scripts: dict[str, Script]) -> Json:
    """Return the response (or error) for a request.

    Raises:
        BadRequest: the script has no such response.
    """
    model: str = request["model"]
    if (script := scripts.get(model)) is not None:
        if is_for_summary(request) and not script.summarises:
            return {"latencySeconds": script.latency_seconds, **(script.next_error() or demo_response(request))}
        return {"latencySeconds": script.latency_seconds, **script.next_response(turn_of(request))}
    if match := BENCH.fullmatch(model):
        return _bench_response(match, turn_of(request), request.get("tools") or [])
    return unauthorized(model) or demo_response(request)


def choose_fault(model: str, scripts: dict[str, Script]) -> Json:
    """Return what a script or a model's name does to a request whose answer is computed; `{}` for nothing."""
    if (script := scripts.get(model)) is not None:
        return {"latencySeconds": script.latency_seconds, **(script.next_error() or {})}
    if match := BENCH.fullmatch(model):
        return {"latencySeconds": int(match["latency"]) / 1000}
    return unauthorized(model) or {}


def unauthorized(model: str) -> Json | None:
    """Return the error of the model that accepts no key."""
    return {"status": 401, "message": "Incorrect API key provided."} if model == "unauthorized" else None


def _bench_response(match: re.Match[str], turn: int, tools: Sequence[Json]) -> Json:
    latency = int(match["latency"]) / 1000
    if match["turns"] is None:
        return {"text": "ok", "latencySeconds": latency}
    filling = "x" * int(match["size"])
    if turn >= int(match["turns"]) or not tools:
        return {"text": filling, "latencySeconds": latency}
    function = tools[0]["function"]
    properties = (function.get("parameters") or {}).get("properties") or {}
    name = next((name for name, schema in properties.items() if schema.get("type") == "string"), None)
    arguments = {name: filling} if name else {}
    return {"toolCalls": [{"name": function["name"], "arguments": arguments}], "latencySeconds": latency}


def without_stream(response: Json) -> Json:
    """Return a response for a client that does not stream: what breaks a stream in the middle breaks all of it."""
    if "dropAfter" in response:
        return {**response, "drop": True}
    if error := response.get("errorMidStream"):
        status = STREAM_ERROR_STATUS.get(error.get("type", ""), 500)
        return {"status": status, "message": error.get("message") or error.get("type", "")}
    return response


def turn_of(request: Json) -> int:
    """Return how often the model has answered already."""
    return sum(message.get("role") == "assistant" for message in request["messages"])


def filled_text(response: Json, request: Json) -> str | None:
    """Return the text of a response with its `{{…}}` filled in."""
    text: str | None = response.get("text")
    if text is None or "{{" not in text:
        return text
    for role in ("tool", "user"):
        last = next((message for message in reversed(request["messages"]) if message.get("role") == role), None)
        text = text.replace(f"{{{{last_{role}}}}}", content_text(last) if last else "")
    return text.replace("{{n}}", str(turn_of(request) + 1))


def content_text(message: Json) -> str:
    """Return the text of a message whose content is a string or a list of parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def as_text(value: Any) -> str:
    """Return a call's arguments as models write them; a script may give text that is no JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def tokens(*texts: str) -> int:
    """Return about how many tokens texts have: one for four characters, and never none."""
    return max(1, sum(map(len, texts)) // 4)

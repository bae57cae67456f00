"""What may travel as a JSON value: models and tools make values that Python takes and others choke on.

A payload that cannot be read wedges its workflow, and a status that the API server refuses is reported for ever. So
values are checked where they come in.
"""

from typing import Any

DEPTH_MAX = 32
"""How deep lists and objects may nest: pydantic's parser stops at 200, and a value travels inside others."""
_NUMBER_MAX = 1e300


def check_json(value: Any) -> None:
    """Check that a value is JSON that every reader takes.

    Raises:
        ValueError: It is not; the text tells where, and why.
    """
    waiting: list[tuple[str, Any, int]] = [("", value, 1)]
    while waiting:
        path, current, depth = waiting.pop()
        if problem := _problem(current, depth):
            raise ValueError(f"{path.removeprefix('.')}: {problem}" if path else problem)
        if isinstance(current, dict):
            waiting += [(f"{path}.{key[:64]}", item, depth + 1) for key, item in current.items()]
        elif isinstance(current, list):
            waiting += [(f"{path}[{index}]", item, depth + 1) for index, item in enumerate(current)]


def _problem(value: Any, depth: int) -> str | None:
    if isinstance(value, str):
        return None if _is_unicode(value) else "text with half a character (a lone surrogate)"
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return None if -_NUMBER_MAX < value < _NUMBER_MAX else "a number beyond what JSON readers take"
    if not isinstance(value, dict | list):
        return f"{type(value).__name__} is no JSON"
    if depth > DEPTH_MAX:
        return f"lists and objects nest deeper than {DEPTH_MAX}"
    if isinstance(value, dict) and not all(isinstance(key, str) and _is_unicode(key) for key in value):
        return "a key that is no text"
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

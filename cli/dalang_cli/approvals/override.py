"""`--set key=value`: the arguments, or the answer, a human approves instead of those that were asked about. Pure."""

import copy
import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from dalang_api.canonical import NotCanonicalError, canonical


class OverrideError(ValueError):
    """A `--set` that cannot be meant; the text says why."""


class Absent:
    """The side of a change where there is no value; null is one."""


ABSENT = Absent()


@dataclass(frozen=True)
class Change:
    """One value that differs."""

    path: str
    """Keys and indices with dots between, as `--set` takes them."""
    before: Any
    """A JSON value, or `ABSENT`; likewise `after`."""
    after: Any


def override(arguments: str, assignments: list[str]) -> dict[str, Any]:
    """Return the request's arguments, or the answer, with the assignments made, in their order.

    An answer that is a text is the member `text`, as a run takes it.

    Raises:
        OverrideError: An assignment does not fit the arguments, changes nothing, or has a number that is not exact in JSON.
    """
    asked = members(arguments)
    is_text = not arguments.lstrip().startswith("{")
    changed = copy.deepcopy(asked)
    for assignment in assignments:
        before = copy.deepcopy(changed)
        if is_text:
            changed = _text(assignment)
        else:
            _assign(changed, assignment)
        if not changes(before, changed):
            raise OverrideError(f"--set {assignment} changes nothing")
    try:
        canonical(changed)
    except NotCanonicalError as error:
        raise OverrideError(f"--set: {error}") from None
    if not changes(asked, changed):
        raise OverrideError("--set changes nothing")
    return changed


def changes(before: Any, after: Any, path: tuple[str, ...] = ()) -> list[Change]:
    """Return where two JSON values differ, in the order of the second; what was removed comes last."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*after, *(key for key in before if key not in after)]
        pairs = [(_escaped(key), before.get(key, ABSENT), after.get(key, ABSENT)) for key in keys]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(before, after, strict=True))]
    else:
        # Not by ==, to which 1, 1.0 and true are the same.
        is_same = type(before) is type(after) and (before is ABSENT or json.dumps(before) == json.dumps(after))
        return [] if is_same else [Change(".".join(path), before, after)]
    return [change for key, old, new in pairs for change in changes(old, new, (*path, key))]


def members(arguments: str) -> dict[str, Any]:
    """Return what can be changed of arguments, or of an answer, by name.

    Raises:
        OverrideError: They are neither an object nor a text.
    """
    try:
        parsed = json.loads(arguments)
    except ValueError:
        parsed = None
    if isinstance(parsed, str):
        return {"text": parsed}
    if not isinstance(parsed, dict):
        raise OverrideError("--set changes members of an object, and what waits here is none; reject it with a reason")
    return parsed


def _text(assignment: str) -> dict[str, Any]:
    member, _, text = assignment.partition("=")
    if member != "text" or not text:
        raise OverrideError(f"--set {assignment}: what waits here is a text; change it with --set text=…")
    return {"text": text}


def _assign(target: dict[str, Any], assignment: str) -> None:
    path, separator, text = assignment.partition("=")
    keys = [re.sub(r"\\(.)", r"\1", key) for key in re.split(r"(?<!\\)\.", path)]
    if not separator or not all(keys):
        raise OverrideError(f"--set {assignment!r} is not key=value, with dots between the keys of what is nested")
    place: Any = target
    for depth, key in enumerate(keys):
        is_last = depth == len(keys) - 1
        if isinstance(place, dict):
            if is_last:
                place[key] = _value(text)
            else:
                place = place.setdefault(key, {})
        elif isinstance(place, list):
            if not re.fullmatch(r"[0-9]+", key) or int(key) >= len(place):
                raise OverrideError(f"--set {assignment}: {key} is no index of a list of {len(place)}, from 0 on")
            if is_last:
                place[int(key)] = _value(text)
            else:
                place = place[int(key)]
        else:
            raise OverrideError(f"--set {assignment}: {'.'.join(keys[:depth])} has no members")


def _value(text: str) -> Any:
    """Return what the text says as JSON, else the text."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        return text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON, though Python reads it")


def _escaped(key: str) -> str:
    return re.sub(r"([\\.])", r"\\\1", key)

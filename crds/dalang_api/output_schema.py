"""The JSON schema of an agent's answer: checked by the controller, and what models answer checked against it by workers.

Whoever may write an Agent must not be able to hang a worker, and a model writes anything. So the schema is a part of JSON
Schema 2020-12 whose checking is bounded:

- keywords whose checking follows others around (`unevaluated…`, `$dynamicRef`), or that match names by pattern, are refused;
- `pattern` is matched by the linear-time engine that pydantic has, never by `re`, which backtracks; it knows no look-around
  and no back-references;
- each keyword checked is paid from a budget, since alternatives within alternatives double with each level.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, cast

from pydantic_core import SchemaError, SchemaValidator, ValidationError, core_schema

from dalang_api.contract import MESSAGE_MAX_BYTES
from dalang_api.json_values import check_json

SCHEMA_MAX_BYTES = 32 * 1024
PATTERN_MAX = 256
"""The most characters of a `pattern`."""
PATTERN_REPEATS_MAX = 500
"""The most a pattern may come to with its counted repetitions written out: `(a{10}b){5}` is 55."""
PATTERNED_TEXT_MAX = 32 * 1024
"""The most characters of one answer that are matched against patterns: 0.3 s at the worst."""
BUDGET = 50_000
"""Keywords checked in one answer, each weighed by how much it looks at."""
ANSWER_MAX_BYTES = MESSAGE_MAX_BYTES
"""The longest answer: more of it is not kept as a message either."""
OBJECTS_TRIED_MAX = 32
"""At how many places of a text an object is looked for."""

_AGAIN = "Answer again with only a JSON object that fits."
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REF = re.compile(r"#|#/(\$defs|definitions)/[^/~%]+")
_REFUSED = frozenset(
    {"$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$vocabulary"}
    | {"patternProperties", "unevaluatedProperties", "unevaluatedItems"}
)
_HOLDS_ONE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_HOLDS_LIST = ("allOf", "anyOf", "oneOf", "prefixItems")
_HOLDS_MAP = ("properties", "$defs", "definitions", "dependentSchemas")


class OutputSchemaError(ValueError):
    """The schema cannot be used; the text tells its author where and why."""


class AnswerError(ValueError):
    """The answer does not fit; the text is written for the model."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}. {_AGAIN}")
        self.problem = problem
        """What is wrong alone, without a full stop: for people."""


# ── The schema ─────────────────────────────────────────────────────────────────────────────────────────────────────


def check(schema: dict[str, Any]) -> None:
    """Check that answers can be checked against a schema.

    Raises:
        OutputSchemaError: They cannot.
    """
    try:
        check_json(schema)
        text = json.dumps(schema, ensure_ascii=False)
    except (ValueError, TypeError) as error:
        raise OutputSchemaError(str(error)) from None
    size = len(text.encode())
    if size > SCHEMA_MAX_BYTES:
        raise OutputSchemaError(f"the schema is {size} bytes long; at most {SCHEMA_MAX_BYTES} are taken")
    if problem := _verdict(text):
        raise OutputSchemaError(problem)


@lru_cache(maxsize=512)
def _verdict(text: str) -> str | None:
    """Return what is wrong with a schema. Remembered: 32 KiB take 0.3 s, and each wake of an Agent asks."""
    try:
        _check(json.loads(text))
    except OutputSchemaError as error:
        return str(error)
    return None


def _check(schema: dict[str, Any]) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError as MetaError

    if schema.get("type") != "object":
        raise OutputSchemaError('type: the answer has to be an object, so this is "object"')
    if str(schema.get("$schema", _DIALECT)).rstrip("#") != _DIALECT:
        raise OutputSchemaError(f"$schema: only {_DIALECT} is known")
    for path, part in _parts(schema):
        if problem := _problem(part, schema):
            raise OutputSchemaError(f"{_join(path, problem[0])}: {problem[1]}")
    try:
        Draft202012Validator.check_schema(schema)
    except MetaError as error:
        raise OutputSchemaError(
            f"{error.json_path.removeprefix('$').removeprefix('.')}: {error.message[:500]}"
        ) from None


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return each schema in the schema, with its place. What is no schema (`default`, `enum`) is not looked into."""
    waiting: list[tuple[str, Any]] = [("", schema)]
    while waiting:
        path, part = waiting.pop()
        if not isinstance(part, dict):
            continue  # true and false are schemas; anything else the meta schema refuses
        yield path, part
        waiting += [(_join(path, name), part.get(name)) for name in _HOLDS_ONE]
        for name in _HOLDS_LIST:
            held = part.get(name)
            if isinstance(held, list):
                waiting += [(f"{_join(path, name)}[{index}]", item) for index, item in enumerate(held)]
        for name in _HOLDS_MAP:
            held = part.get(name)
            if isinstance(held, dict):
                waiting += [(f"{_join(path, name)}.{key[:64]}", item) for key, item in held.items()]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _problem(part: dict[str, Any], root: dict[str, Any]) -> tuple[str, str] | None:
    """Return the keyword of one schema that cannot be used, and why."""
    for keyword in part:
        if keyword in _REFUSED:
            return keyword, "this keyword is not supported"
    if "$schema" in part and part is not root:
        return "$schema", "this keyword is supported at the top only"
    if (reference := part.get("$ref")) is not None and (reason := _reference_problem(reference, root)):
        return "$ref", reason
    if (pattern := part.get("pattern")) is not None and (reason := _pattern_problem(pattern)):
        return "pattern", reason
    return None


def _reference_problem(reference: Any, root: dict[str, Any]) -> str | None:
    if not isinstance(reference, str) or not _REF.fullmatch(reference):
        return "only # and #/$defs/<name> can be referred to"
    if reference == "#":
        return None
    _, place, name = reference.split("/")
    held = root.get(place)
    return None if isinstance(held, dict) and name in held else f"there is no {reference[:200]}"


def _pattern_problem(pattern: Any) -> str | None:
    if not isinstance(pattern, str):
        return "a pattern is text"
    if len(pattern) > PATTERN_MAX:
        return f"the pattern is longer than {PATTERN_MAX} characters"
    try:
        _matcher(pattern)
    except SchemaError as error:
        reason = str(error).strip().splitlines()[-1].strip().removeprefix("error: ")
        return f"the pattern cannot be used (no look-around, no back-references): {reason}"
    if _written_out(pattern) > PATTERN_REPEATS_MAX:
        return f"its counted repetitions come to more than {PATTERN_REPEATS_MAX} characters"
    return None


_TOKEN = re.compile(r"\\[pP]\{[^}]*\}|\\x\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(\d+)?(?:,(\d*))?\}|.", re.DOTALL)


def _written_out(pattern: str) -> int:
    """Return roughly how many characters a valid pattern has with its counted repetitions written out."""
    groups = [0]
    last = 0
    for token in _TOKEN.finditer(pattern):
        text = token[0]
        if text == "(":
            groups[-1] += last
            groups.append(0)
            last = 0
        elif text == ")" and len(groups) > 1:
            last += groups.pop()
        elif text[0] == "{" and (token[1] or token[2]):
            last *= max(int(token[1] or 0), int(token[2] or 0), 1)
        elif text not in "*+?|^$":
            groups[-1] += last
            last = 1
    return groups[-1] + last


@lru_cache(maxsize=256)
def _matcher(pattern: str) -> SchemaValidator:
    return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))


# ── The answer ─────────────────────────────────────────────────────────────────────────────────────────────────────


def fit(schema: dict[str, Any], text: str) -> dict[str, Any]:
    """Return the object that a model answered.

    The answer may stand in a Markdown fence or between words, as long as it is the only object there.

    Args:
        schema: One that `check` lets pass.
        text: All that the model said.

    Raises:
        AnswerError: There is no such object, or it does not fit.
    """
    from jsonschema import ValidationError as Misfit

    answer = _find_object(text)
    # By "$schema" jsonschema would take its own class for the one below.
    schema = {keyword: value for keyword, value in schema.items() if keyword != "$schema"}
    token = _METER.set(_Meter(schema, answer))
    try:
        problems = list(_first(_validator()(schema).iter_errors(answer), 5))
    except (_OverBudgetError, RecursionError):
        raise AnswerError("The answer is too large or too deep to be checked against the schema") from None
    except ArithmeticError:
        raise AnswerError("The answer holds a number that cannot be checked") from None
    finally:
        _METER.reset(token)
    if problems:
        told = "; ".join(_explain(problem) for problem in problems if isinstance(problem, Misfit))
        raise AnswerError(f"The answer does not fit the schema: {told}")
    return answer


def _explain(problem: Any) -> str:
    path = str(problem.json_path).removeprefix("$").removeprefix(".")[:200] or "the object"
    message = str(problem.message)
    return f"at {path}: {message if len(message) <= 300 else message[:140] + ' … ' + message[-140:]}"


def _first(items: Iterator[Any], count: int) -> Iterator[Any]:
    for _, item in zip(range(count), items, strict=False):
        yield item


_FENCE = re.compile(r"^[ \t]*```[a-zA-Z0-9_-]*[ \t]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)


def _find_object(text: str) -> dict[str, Any]:
    size = len(text.encode(errors="replace"))
    if size > ANSWER_MAX_BYTES:
        raise AnswerError(f"The answer is {size} bytes long; at most {ANSWER_MAX_BYTES} are taken")
    try:
        found: Any = _parse(text.strip())
    except ValueError as error:
        found = _only_object(text, error)
    if not isinstance(found, dict):
        raise AnswerError("The answer is no JSON object")
    try:
        check_json(found)
    except ValueError as error:
        raise AnswerError(f"The answer cannot be used: at {error}") from None
    return found


def _only_object(text: str, error: ValueError) -> dict[str, Any]:
    """Return the object in a text that is more than that."""
    fenced = _FENCE.findall(text)
    objects = _objects(fenced[0] if len(fenced) == 1 else text)
    if len(objects) == 1:
        return objects[0]
    if objects:
        raise AnswerError("The answer holds more than one JSON object")
    raise AnswerError(f"The answer is no JSON object: {str(error)[:200]}")


def _objects(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects of a text, those within others not; more than one is as good as many."""
    objects: list[dict[str, Any]] = []
    place = text.find("{")
    for _ in range(OBJECTS_TRIED_MAX):
        if place < 0 or len(objects) > 1:
            break
        try:
            found, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            objects.append(found)
        place = text.find("{", end)
    return objects


def _parse(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


# ── The checking of an answer ──────────────────────────────────────────────────────────────────────────────────────


class _OverBudgetError(Exception):
    """Checking takes too long."""


class _Meter:
    """What is left of one answer's budget."""

    def __init__(self, schema: Any, answer: Any) -> None:
        self.left = BUDGET
        self.text_left = PATTERNED_TEXT_MAX
        self._sizes: dict[int, int] = {}
        """By identity of each list and object: jsonschema writes them out for each thing that is wrong."""
        self._measure(schema)
        self._measure(answer)

    def charge(self, value: Any, instance: Any) -> None:
        self.left -= 1 + (len(value) if isinstance(value, dict | list) else 0)
        self.left -= (self._size(value) + self._size(instance)) // 128
        if self.left < 0:
            raise _OverBudgetError

    def _size(self, value: Any) -> int:
        return len(value) if isinstance(value, str) else self._sizes.get(id(value), 0)

    def _measure(self, value: Any) -> int:
        if isinstance(value, str):
            return len(value)
        if not isinstance(value, dict | list):
            return 4
        held = value.values() if isinstance(value, dict) else value
        size = sum(map(self._measure, held)) + 2 * len(value) + (sum(map(len, value)) if isinstance(value, dict) else 0)
        self._sizes[id(value)] = size
        return size


_METER: ContextVar[_Meter] = ContextVar("_METER")
Keyword = Callable[[Any, Any, Any, Any], Any]


def _paid(keyword: Keyword) -> Keyword:
    def paid(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        _METER.get().charge(value, instance)
        return keyword(validator, value, instance, schema)

    return paid


def _pattern(validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError as Misfit

    if not isinstance(instance, str):
        return
    meter = _METER.get()
    meter.text_left -= len(instance)
    if meter.text_left < 0:
        raise _OverBudgetError
    try:
        _matcher(pattern).validate_python(instance)
    except ValidationError:
        yield Misfit(f"{instance!r} does not match {pattern!r}")


def _unique_items(_validator: Any, is_unique: bool, instance: Any, _schema: Any) -> Iterator[Any]:
    """Check in one pass; jsonschema compares each with each where items are objects."""
    from jsonschema import ValidationError as Misfit

    if is_unique and isinstance(instance, list) and len({_canonical(item) for item in instance}) < len(instance):
        yield Misfit("its items are not all different")


def _canonical(value: Any) -> str:
    """Return equal text for equal JSON values: 1 and 1.0 are equal, 1 and true are not."""
    return json.dumps(_with_whole_numbers(value), sort_keys=True)


def _with_whole_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@lru_cache(maxsize=1)
def _validator() -> Any:
    # jsonschema is imported on first use: the controller and most workers never check an answer.
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    keywords = {**Draft202012Validator.VALIDATORS, "pattern": _pattern, "uniqueItems": _unique_items}
    extended: Any = cast("Callable[..., Any]", extend)(
        Draft202012Validator, {name: _paid(keyword) for name, keyword in keywords.items()}
    )
    return extended

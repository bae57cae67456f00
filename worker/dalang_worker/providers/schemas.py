"""Which JSON schemas a provider holds an answer to by itself: each takes a part of JSON Schema, and answers 400 to the rest.

So what is in doubt does not qualify: such an answer is checked here all the same, and the model is asked again. Depths are
counted without following references. That a schema is one, and short, the controller has seen to (`dalang_api.output_schema`).

Sources: https://platform.openai.com/docs/guides/structured-outputs#supported-schemas,
https://learn.microsoft.com/azure/ai-services/openai/how-to/structured-outputs,
https://platform.claude.com/docs/en/build-with-claude/structured-outputs#json-schema-limitations.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_BASIC = frozenset(
    {"type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf"}
    | {"$ref", "$defs", "definitions", "title", "description"}
)
_BOUNDS = frozenset(
    {"pattern", "format", "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
    | {"minItems", "maxItems"}
)
_MAX_ENUM = 250
"""OpenAI bounds longer ones by their letters."""


@dataclass(frozen=True)
class SchemaRules:
    """What a provider takes."""

    keywords: frozenset[str]
    """All that may stand in a schema."""
    formats: frozenset[str] = _FORMATS
    takes_recursion: bool = False
    max_depth: int = 10
    """How deep objects may hold objects."""
    max_properties: int = 5000
    max_optional: int = 0
    """How many properties need not be there."""
    max_unions: int = 1000
    max_min_items: int = 1000


OPENAI = SchemaRules(keywords=_BASIC | _BOUNDS, takes_recursion=True)
AZURE_OPENAI = SchemaRules(keywords=_BASIC, takes_recursion=True, max_depth=5, max_properties=100)
ANTHROPIC = SchemaRules(
    keywords=_BASIC | {"allOf", "format", "minItems", "default"},
    formats=_FORMATS | {"uri"},
    max_optional=24,
    max_unions=16,
    max_min_items=1,
)


def qualifies(schema: Json, rules: SchemaRules) -> bool:
    """Return whether a schema keeps to the rules. Its root must be an object."""
    if schema.get("type") != "object" or "anyOf" in schema:
        return False
    nodes = list(_nodes(schema, 0))
    return (
        all(isinstance(node, dict) and depth <= rules.max_depth and _fits(node, rules) for node, depth in nodes)
        and sum(len(_properties(node)) for node, _ in nodes) <= rules.max_properties
        and sum(len(_optional(node)) for node, _ in nodes) <= rules.max_optional
        and sum("anyOf" in node or isinstance(node.get("type"), list) for node, _ in nodes) <= rules.max_unions
        and (rules.takes_recursion or not _is_recursive(schema))
    )


def _fits(node: Json, rules: SchemaRules) -> bool:
    if "$ref" in node:
        return len(node) == 1 and str(node["$ref"]).startswith("#")
    types = node.get("type", [])
    types = types if isinstance(types, list) else [types]
    return (
        node.keys() <= rules.keywords
        and bool(types or "anyOf" in node or "allOf" in node)
        and (node.get("additionalProperties") is False if "object" in types else "properties" not in node)
        and ("items" in node or "array" not in types)
        and node.get("format", "date") in rules.formats
        and node.get("minItems", 0) <= rules.max_min_items
        and len(node.get("enum", [])) <= _MAX_ENUM
        and not any(isinstance(value, dict | list) for value in [*node.get("enum", []), node.get("const")])
    )


def _nodes(node: Any, depth: int) -> Iterator[tuple[Any, int]]:
    """Yield a schema and every schema in it, with the number of objects around it."""
    yield node, depth
    if not isinstance(node, dict):
        return
    for child in _properties(node).values():
        yield from _nodes(child, depth + 1)
    for name in ("$defs", "definitions"):
        for child in node.get(name, {}).values():
            yield from _nodes(child, 0)
    for child in [*node.get("anyOf", []), *node.get("allOf", [])]:
        yield from _nodes(child, depth)
    if "items" in node:
        yield from _nodes(node["items"], depth)


def _properties(node: Json) -> Json:
    properties: Json = node.get("properties", {})
    return properties


def _optional(node: Json) -> set[str]:
    return _properties(node).keys() - set(node.get("required", []))


def _is_recursive(schema: Json) -> bool:
    """Whether following references can come back to where it began."""
    named = {
        f"#/{group}/{name}": {child["$ref"] for child, _ in _nodes(node, 0) if "$ref" in child}
        for group in ("$defs", "definitions")
        for name, node in schema.get(group, {}).items()
    }
    while any(leaves := [name for name, refs in named.items() if not refs & named.keys()]):
        named = {name: refs for name, refs in named.items() if name not in leaves}
    return bool(named) or any(child.get("$ref") == "#" for child, _ in _nodes(schema, 0))

"""Which schemas go to a provider: what it would answer 400 to is checked here instead."""

from typing import Any

import pytest
from dalang_worker.providers.schemas import ANTHROPIC, AZURE_OPENAI, OPENAI, SchemaRules, qualifies

Json = dict[str, Any]
TEXT: Json = {"type": "string"}
ALL = {"openai", "azure", "anthropic"}
RULES: dict[str, SchemaRules] = {"openai": OPENAI, "azure": AZURE_OPENAI, "anthropic": ANTHROPIC}


def thing(**properties: Any) -> Json:
    """A closed object with these properties, all of them required."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def nested(depth: int) -> Json:
    return thing(inner=nested(depth - 1)) if depth else thing()


@pytest.mark.parametrize(
    ("schema", "takers"),
    [
        pytest.param(thing(city=TEXT), ALL, id="a property"),
        pytest.param(thing(), ALL, id="none"),
        pytest.param({**thing(city=TEXT), "title": "Answer", "description": "An answer."}, ALL, id="words about it"),
        pytest.param(thing(city={"type": ["string", "null"]}), ALL, id="a property that may be null"),
        pytest.param(thing(city={"anyOf": [TEXT, {"type": "null"}]}), ALL, id="alternatives"),
        pytest.param(thing(days={"type": "array", "items": thing(day=TEXT)}), ALL, id="a list of objects"),
        pytest.param(thing(sky={"type": "string", "enum": ["clear", "grey"]}), ALL, id="a choice"),
        pytest.param({**thing(a={"$ref": "#/$defs/A"}), "$defs": {"A": TEXT}}, ALL, id="a definition"),
        pytest.param({**thing(a={"$ref": "#/definitions/A"}), "definitions": {"A": TEXT}}, ALL, id="of draft 7"),
        pytest.param({**thing(city=TEXT), "required": []}, {"anthropic"}, id="a property that need not be there"),
        pytest.param({**thing(**{f"p{n}": TEXT for n in range(25)}), "required": []}, set(), id="too many of those"),
        pytest.param(
            thing(**{f"p{n}": {"type": ["string", "null"]} for n in range(17)}), {"openai", "azure"}, id="17 unions"
        ),
        pytest.param({"type": "object", "properties": {"city": TEXT}, "required": ["city"]}, set(), id="open to more"),
        pytest.param({**thing(city=TEXT), "additionalProperties": TEXT}, set(), id="a map"),
        pytest.param(thing(a={"type": "object"}), set(), id="any object"),
        pytest.param(thing(a={"properties": {"b": TEXT}}), set(), id="properties of what may be no object"),
        pytest.param(thing(a={}), set(), id="anything"),
        pytest.param(thing(a=True), set(), id="anything, in short"),
        pytest.param({"type": "array", "items": TEXT}, set(), id="a list"),
        pytest.param({"anyOf": [thing(), thing(a=TEXT)]}, set(), id="alternatives at the root"),
        pytest.param({**thing(), "anyOf": [thing()]}, set(), id="an object with alternatives at the root"),
        pytest.param({**thing(city=TEXT), "allOf": [thing(city=TEXT)]}, {"anthropic"}, id="all of some"),
        pytest.param(thing(a={"type": "array"}), set(), id="a list of anything"),
        pytest.param(thing(a={"type": "array", "items": [TEXT]}), set(), id="a tuple of draft 7"),
        pytest.param(thing(a={"type": "array", "prefixItems": [TEXT], "items": TEXT}), set(), id="a tuple"),
        pytest.param(thing(a={"type": "string", "pattern": "^x"}), {"openai"}, id="a pattern"),
        pytest.param(thing(a={"type": "string", "format": "date"}), {"openai", "anthropic"}, id="a date"),
        pytest.param(thing(a={"type": "string", "format": "uri"}), {"anthropic"}, id="an address"),
        pytest.param(thing(a={"type": "string", "format": "color"}), set(), id="a format of one's own"),
        pytest.param(thing(a={"type": "string", "minLength": 1}), set(), id="a length"),
        pytest.param(thing(a={"type": "integer", "minimum": 0}), {"openai"}, id="a bound"),
        pytest.param(
            thing(a={"type": "array", "items": TEXT, "minItems": 1}), {"openai", "anthropic"}, id="one or more"
        ),
        pytest.param(thing(a={"type": "array", "items": TEXT, "minItems": 2}), {"openai"}, id="two or more"),
        pytest.param(thing(a={"type": "array", "items": TEXT, "uniqueItems": True}), set(), id="a set"),
        pytest.param(thing(a={"type": "string", "default": "x"}), {"anthropic"}, id="a default"),
        pytest.param(thing(a={"oneOf": [TEXT]}), set(), id="one of some"),
        pytest.param(thing(a={"not": TEXT}), set(), id="a negation"),
        pytest.param(thing(a={"type": "object", "patternProperties": {"^x": TEXT}}), set(), id="names by pattern"),
        pytest.param(thing(a={"type": "object", "enum": [{}]}), set(), id="a choice of objects"),
        pytest.param(thing(a={"type": "string", "enum": [str(n) for n in range(251)]}), set(), id="a long choice"),
        pytest.param(thing(a={"$ref": "https://example.com/a"}), set(), id="a definition elsewhere"),
        pytest.param(
            {**thing(a={"$ref": "#/$defs/A", "description": "x"}), "$defs": {"A": TEXT}},
            set(),
            id="words at a reference",
        ),
        pytest.param(
            {**thing(a={"$ref": "#/$defs/A"}), "$defs": {"A": thing(more={"$ref": "#/$defs/A"})}},
            {"openai", "azure"},
            id="a tree",
        ),
        pytest.param(thing(more={"$ref": "#"}), {"openai", "azure"}, id="a tree from the root"),
        pytest.param(
            {
                **thing(a={"$ref": "#/$defs/A"}),
                "$defs": {"A": thing(b={"$ref": "#/$defs/B"}), "B": thing(a={"$ref": "#/$defs/A"})},
            },
            {"openai", "azure"},
            id="a tree of two",
        ),
        pytest.param(
            {**thing(a={"$ref": "#/$defs/A"}), "$defs": {"A": thing(b={"$ref": "#/$defs/B"}), "B": TEXT}},
            ALL,
            id="a definition in a definition",
        ),
        pytest.param(nested(5), ALL, id="five deep"),
        pytest.param(nested(6), {"openai", "anthropic"}, id="six deep"),
        pytest.param(nested(11), set(), id="too deep"),
        pytest.param(thing(**{f"p{n}": TEXT for n in range(101)}), {"openai", "anthropic"}, id="101 properties"),
        pytest.param(thing(a={"type": "string", "const": "x"}), ALL, id="a constant"),
        pytest.param(thing(a={"type": "array", "items": TEXT, "const": ["x"]}), set(), id="a constant list"),
    ],
)
def test_who_takes_it(schema: Json, takers: set[str]) -> None:
    assert {name for name, rules in RULES.items() if qualifies(schema, rules)} == takers

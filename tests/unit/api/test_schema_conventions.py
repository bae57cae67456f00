"""The generated schemas keep the conventions of DESIGN.md §2, and the files in `crds/` are the generated ones.

The conventions are a list of checks over one schema each; the table of bad schemas at the end shows that every check bites.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dalang_api import crdgen
from dalang_api.v1alpha1.schema import Resource

Schema = dict[str, Any]

CRDS = Path(__file__).parents[3] / "crds"


def has_one_type(schema: Schema) -> str | None:
    if schema.get("x-kubernetes-int-or-string"):
        return "is a string or a number"
    if any(keyword in schema for keyword in ("anyOf", "oneOf", "allOf", "not")):
        return "is a choice of schemas"
    return None if schema.get("type") else "has no type"


def is_no_float(schema: Schema) -> str | None:
    is_float = schema.get("type") == "number" or schema.get("format") in ("float", "double")
    return "is a float; use a string with a pattern" if is_float else None


def says_how_wide_an_integer_is(schema: Schema) -> str | None:
    lacks_format = schema.get("type") == "integer" and schema.get("format") not in ("int32", "int64")
    return "is an integer without format int32 or int64" if lacks_format else None


def has_camel_case_values(schema: Schema) -> str | None:
    wrong = [value for value in schema.get("enum", []) if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", str(value))]
    return f"has enum values that are not CamelCase: {wrong}" if wrong else None


def bounds_a_string(schema: Schema) -> str | None:
    bounded = "maxLength" in schema or "enum" in schema or schema.get("format") == "date-time"
    return "is a string without maxLength" if schema.get("type") == "string" and not bounded else None


def bounds_a_list(schema: Schema) -> str | None:
    return "is a list without maxItems" if schema.get("type") == "array" and "maxItems" not in schema else None


def says_how_a_list_is_merged(schema: Schema) -> str | None:
    if schema.get("type") != "array":
        return None
    match schema.get("x-kubernetes-list-type"):
        case "atomic":
            return None
        case "set":
            return "is a set of objects" if schema["items"].get("type") == "object" else None
        case "map":
            optional = set(schema["x-kubernetes-list-map-keys"]) - set(schema["items"].get("required", []))
            return f"has optional list keys: {sorted(optional)}" if optional else None
    return "is a list without list type"


def bounds_a_map(schema: Schema) -> str | None:
    return (
        "is a map without maxProperties" if "additionalProperties" in schema and "maxProperties" not in schema else None
    )


def names_the_fields_of_an_object(schema: Schema) -> str | None:
    if schema.get("type") != "object" or "properties" in schema or "additionalProperties" in schema:
        return None
    return "is an object without fields"


def is_absent_rather_than_null(schema: Schema) -> str | None:
    return "is nullable" if "nullable" in schema else None


def explains_its_rules(schema: Schema) -> str | None:
    silent = [rule["rule"] for rule in schema.get("x-kubernetes-validations", []) if not rule.get("message")]
    return f"has rules without message: {silent}" if silent else None


SCHEMA_CHECKS: tuple[Callable[[Schema], str | None], ...] = (
    has_one_type,
    is_no_float,
    says_how_wide_an_integer_is,
    has_camel_case_values,
    bounds_a_string,
    bounds_a_list,
    says_how_a_list_is_merged,
    bounds_a_map,
    names_the_fields_of_an_object,
    is_absent_rather_than_null,
    explains_its_rules,
)


def field_violations(name: str, schema: Schema) -> Iterator[str]:
    if not re.fullmatch(r"[a-z][a-zA-Z0-9]*", name):
        yield "is not named in camelCase"
    description = schema.get("description", "")
    if not re.match(r"[A-Z`].*[.](\n|$)", description, re.DOTALL):
        yield f"is not described in sentences: {description!r}"
    if "default" in schema and name != "status":
        yield "has a default, which would rewrite stored objects"


def violations(schema: Schema, path: str = "") -> Iterator[str]:
    """Yield every broken convention of a schema and of what is in it, as "path: what is wrong"."""
    for check in SCHEMA_CHECKS:
        if wrong := check(schema):
            yield f"{path}: {wrong}"
    for name, field in schema.get("properties", {}).items():
        yield from (f"{path}.{name}: {wrong}" for wrong in field_violations(name, field))
        yield from violations(field, f"{path}.{name}")
    if "items" in schema:
        yield from violations(schema["items"], f"{path}[]")
    if isinstance(values := schema.get("additionalProperties"), dict):
        yield from violations(values, f"{path}[*]")


def root_schema(definition: dict[str, Any]) -> Schema:
    """Return the schema of a kind without what every object has."""
    schema: Schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    ours = {name: field for name, field in schema["properties"].items() if name in ("spec", "status")}
    return {**schema, "properties": ours}


OTHERS_FIELDS = {
    "Agent": [".spec.output.schema: is an object without fields"],
    "AgentApproval": [".spec.override: is an object without fields"],
    "AgentRun": [".status.structuredOutput: is an object without fields"],
}
"""Objects whose fields are an author's own: a JSON schema, an answer that fits one, and arguments of a tool. All others are
ours to name."""


@pytest.mark.parametrize(
    "definition", crdgen.custom_resource_definitions(), ids=lambda definition: definition["spec"]["names"]["kind"]
)
def test_a_kind_keeps_the_conventions(definition: dict[str, Any]) -> None:
    kind = definition["spec"]["names"]["kind"]
    assert list(violations(root_schema(definition))) == OTHERS_FIELDS.get(kind, [])


@pytest.mark.parametrize("kind", crdgen.KINDS, ids=lambda kind: kind.KIND)
def test_a_status_starts_with_a_default_that_has_ready(kind: type[Resource]) -> None:
    status = crdgen.structural_schema(kind)["properties"]["status"]
    default = status["default"]
    if "observedGeneration" in status["properties"]:  # not in an AgentApproval, which says itself how far it is
        assert default["observedGeneration"] == -1
    assert [c["status"] for c in default["conditions"] if c["type"] == "Ready"] == ["False"]


def test_the_files_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert crdgen.main(["--check", str(CRDS)]) == 0, capsys.readouterr().err


TEXT = {"description": "What was said.", "type": "string", "maxLength": 8}
LIST = {
    "description": "What was said.",
    "type": "array",
    "maxItems": 8,
    "x-kubernetes-list-type": "atomic",
    "items": TEXT,
}
MAP = {"description": "What was said.", "type": "object", "maxProperties": 8, "additionalProperties": TEXT}
OBJECT = {"description": "What was said.", "type": "object", "required": ["name"], "properties": {"name": TEXT}}
NAMED = {**LIST, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": OBJECT}
NUMBER = {"description": "How often.", "type": "integer", "format": "int32"}


def without(schema: Schema, keyword: str) -> Schema:
    return {key: value for key, value in schema.items() if key != keyword}


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param(TEXT, id="a bounded string"),
        pytest.param({"description": "When it ended.", "type": "string", "format": "date-time"}, id="a time"),
        pytest.param({"description": "What it is.", "type": "string", "enum": ["OpenAI", "True"]}, id="an enum"),
        pytest.param(NUMBER, id="an integer"),
        pytest.param(LIST, id="a bounded list"),
        pytest.param(NAMED, id="a list merged by name"),
        pytest.param(MAP, id="a bounded map"),
    ],
)
def test_a_good_field_passes(schema: Schema) -> None:
    assert list(violations({"type": "object", "properties": {"field": schema}})) == []


@pytest.mark.parametrize(
    ("schema", "violation"),
    [
        pytest.param(without(TEXT, "type"), ".field: has no type", id="no type"),
        pytest.param(
            {"description": "A port.", "x-kubernetes-int-or-string": True},
            ".field: is a string or a number",
            id="int or string",
        ),
        pytest.param(
            {"description": "Anything.", "x-kubernetes-preserve-unknown-fields": True},
            ".field: has no type",
            id="anything at all",
        ),
        pytest.param({**TEXT, "anyOf": [TEXT, OBJECT]}, ".field: is a choice of schemas", id="string or object"),
        pytest.param(
            {"description": "A share.", "type": "number"},
            ".field: is a float; use a string with a pattern",
            id="float by type",
        ),
        pytest.param(
            {**TEXT, "format": "double"}, ".field: is a float; use a string with a pattern", id="float by format"
        ),
        pytest.param(
            without(NUMBER, "format"), ".field: is an integer without format int32 or int64", id="integer of any width"
        ),
        pytest.param(
            {"description": "What it is.", "type": "string", "enum": ["Auto", "openai", "in_turn", "In-Turn"]},
            ".field: has enum values that are not CamelCase: ['openai', 'in_turn', 'In-Turn']",
            id="enum in other case",
        ),
        pytest.param(without(TEXT, "maxLength"), ".field: is a string without maxLength", id="unbounded string"),
        pytest.param(
            {**LIST, "items": without(TEXT, "maxLength")},
            ".field[]: is a string without maxLength",
            id="unbounded string in a list",
        ),
        pytest.param(
            {**MAP, "additionalProperties": without(TEXT, "maxLength")},
            ".field[*]: is a string without maxLength",
            id="unbounded string in a map",
        ),
        pytest.param(
            {**OBJECT, "properties": {"name": without(TEXT, "maxLength")}},
            ".field.name: is a string without maxLength",
            id="unbounded string in an object",
        ),
        pytest.param(without(LIST, "maxItems"), ".field: is a list without maxItems", id="unbounded list"),
        pytest.param(
            without(LIST, "x-kubernetes-list-type"), ".field: is a list without list type", id="list without list type"
        ),
        pytest.param({**NAMED, "x-kubernetes-list-type": "set"}, ".field: is a set of objects", id="set of objects"),
        pytest.param(
            {**NAMED, "items": without(OBJECT, "required")},
            ".field: has optional list keys: ['name']",
            id="optional list key",
        ),
        pytest.param(without(MAP, "maxProperties"), ".field: is a map without maxProperties", id="unbounded map"),
        pytest.param(
            without(OBJECT, "properties"), ".field: is an object without fields", id="object that holds anything"
        ),
        pytest.param({**TEXT, "nullable": True}, ".field: is nullable", id="nullable"),
        pytest.param(
            {**TEXT, "default": "x"}, ".field: has a default, which would rewrite stored objects", id="default"
        ),
        pytest.param(
            {**TEXT, "x-kubernetes-validations": [{"rule": "self != ''"}]},
            ".field: has rules without message: [\"self != ''\"]",
            id="rule without message",
        ),
        pytest.param(
            without(TEXT, "description"), ".field: is not described in sentences: ''", id="field without description"
        ),
        pytest.param(
            {**TEXT, "description": "the name"},
            ".field: is not described in sentences: 'the name'",
            id="field described in a fragment",
        ),
    ],
)
def test_a_bad_field_is_found(schema: Schema, violation: str) -> None:
    assert list(violations({"type": "object", "properties": {"field": schema}})) == [violation]


@pytest.mark.parametrize("name", ["max_turns", "MaxTurns", "max-turns"])
def test_a_name_in_another_case_is_found(name: str) -> None:
    assert list(violations({"type": "object", "properties": {name: TEXT}})) == [f".{name}: is not named in camelCase"]

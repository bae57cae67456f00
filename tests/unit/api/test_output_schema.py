"""Schemas of answers, and answers of models; both may be hostile."""

import json
import time
from typing import Any

import pytest
from dalang_api.contract import MESSAGE_MAX_BYTES
from dalang_api.output_schema import AnswerError, OutputSchemaError, check, fit

Json = dict[str, Any]
OBJECT: Json = {"type": "object"}
ORDER: Json = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
        "code": {"type": "string", "pattern": r"^[A-Z]{2}-\d{4}$"},
        "tags": {"type": "array", "uniqueItems": True},
    },
    "required": ["items"],
    "additionalProperties": False,
    "$defs": {"item": {"type": "object", "properties": {"price": {"type": "number"}}, "required": ["price"]}},
}


def of(schema: Any) -> Json:
    """An object with one property of that schema."""
    return {"type": "object", "properties": {"a": schema}}


def deep(depth: int) -> Json:
    schema: Json = {"type": "string"}
    for _ in range(depth):
        schema = of(schema)
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param(OBJECT, id="any object"),
        pytest.param(ORDER, id="an order"),
        pytest.param(of({"$ref": "#"}), id="a tree"),
        pytest.param(of({"default": {"patternProperties": 1}, "enum": [{"$id": 1}]}), id="keywords within values"),
        pytest.param({**OBJECT, "properties": {"$id": {}, "pattern": {"type": "string"}}}, id="properties named as keywords"),
        pytest.param(of({"pattern": r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"}), id="a UUID's pattern"),
        pytest.param(of({"pattern": "^(a+)+$"}), id="a pattern that hangs Python's own engine"),
        pytest.param(deep(10), id="ten deep"),
    ],
)  # fmt: skip
def test_a_schema_that_can_be_used(schema: Json) -> None:
    check(schema)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        pytest.param({}, "^type: the answer has to be an object", id="no type"),
        pytest.param({"type": "array"}, "^type: the answer has to be an object", id="a list"),
        pytest.param({**OBJECT, "$schema": "http://json-schema.org/draft-07/schema#"}, r"^\$schema: only", id="another draft"),
        pytest.param({**OBJECT, "$schema": 7}, r"^\$schema: only", id="no draft"),
        pytest.param(of({"$schema": "http://json-schema.org/draft-04/schema#"}), r"^properties.a.\$schema: .* at the top only", id="another within"),
        pytest.param(of({"type": "text"}), "^properties.a.type: 'text' is not valid", id="an unknown type"),
        pytest.param({**OBJECT, "properties": []}, "^properties: .* is not of type 'object'", id="properties as a list"),
        pytest.param({**OBJECT, "required": "a"}, "^required: 'a' is not of type 'array'", id="required as text"),
        pytest.param(of({"$ref": "https://example.com/x.json"}), r"^properties.a.\$ref: only # and", id="a remote reference"),
        pytest.param(of({"$ref": "#/properties/a/default"}), r"^properties.a.\$ref: only # and", id="a reference to a value"),
        pytest.param(of({"$ref": 1}), r"^properties.a.\$ref: only # and", id="a reference that is none"),
        pytest.param(of({"$ref": "#/$defs/x"}), r"^properties.a.\$ref: there is no #/\$defs/x", id="a reference to nothing"),
        pytest.param(of({"anyOf": [{}, {"unevaluatedProperties": False}]}), r"^properties.a.anyOf\[1\].unevaluatedProperties: .* not supported", id="what follows others around"),
        pytest.param(of({"patternProperties": {"(a+)+$": {}}}), "patternProperties: this keyword is not supported", id="names by pattern"),
        pytest.param({**OBJECT, "$defs": {"x": {"$dynamicRef": "#x"}}}, r"^\$defs.x.\$dynamicRef: .* not supported", id="a dynamic reference"),
        pytest.param(of({"$id": "https://example.com"}), r"\$id: this keyword is not supported", id="another base"),
        pytest.param(of({"pattern": "("}), "^properties.a.pattern: the pattern cannot be used .* unclosed group", id="a broken pattern"),
        pytest.param(of({"pattern": "(?=a)"}), "pattern cannot be used .* look-around", id="look-around"),
        pytest.param(of({"pattern": r"(a)\1"}), "pattern cannot be used .* backreferences", id="back-references"),
        pytest.param(of({"pattern": "a" * 257}), "longer than 256", id="a long pattern"),
        pytest.param(of({"pattern": ".{0,501}"}), "come to more than 500", id="a count"),
        pytest.param(of({"pattern": "(.{0,30}b){20}"}), "come to more than 500", id="counts of counts"),
        pytest.param(of({"pattern": "((a{99}){99}){99}"}), "pattern cannot be used", id="counts of counts of counts"),
        pytest.param(of({"pattern": 1}), "^properties.a.pattern: a pattern is text", id="no pattern"),
        pytest.param({**OBJECT, "description": "x" * 33_000}, "at most 32768", id="too long"),
        pytest.param(deep(25), "nest deeper than 32", id="schemas in schemas in schemas"),
        pytest.param(of({"default": float("nan")}), "^properties.a.default: a number beyond", id="not a number"),
        pytest.param(of({"enum": ["\ud800"]}), "half a character", id="a lone surrogate"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_is_told_with_its_place(schema: Json, words: str) -> None:
    began = time.process_time()
    with pytest.raises(OutputSchemaError, match=words):
        check(schema)
    assert time.process_time() - began < 1


ANSWER = '{"items": [{"price": 1.5}]}'


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(ANSWER, id="the object alone"),
        pytest.param(f"\n  {ANSWER}\n", id="white space around it"),
        pytest.param(f"```json\n{ANSWER}\n```", id="in a fence"),
        pytest.param(f"Here you are:\n\n```\n{ANSWER}\n```\nAnything else?", id="in a fence, between words"),
        pytest.param(f"Of course! {ANSWER} Anything else?", id="between words"),
        pytest.param(f"A set {{a, b}} first: {ANSWER}", id="after braces that are no JSON"),
    ],
)
def test_the_object_of_an_answer(text: str) -> None:
    assert fit(ORDER, text) == {"items": [{"price": 1.5}]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param('{"items": [{"price": "x"}]}', "The answer does not fit the schema: at items[0].price: 'x' is not of type 'number'.", id="a wrong type"),
        pytest.param("{}", "at the object: 'items' is a required property.", id="something missing"),
        pytest.param('{"items": [], "x": 1}', "at the object: Additional properties are not allowed ('x' was unexpected).", id="too much"),
        pytest.param('{"items": [], "code": "AB-123"}', "at code: 'AB-123' does not match", id="a pattern"),
        pytest.param('{"items": [], "tags": [1, 1.0]}', "at tags: its items are not all different.", id="items that are equal"),
        pytest.param('{"items": [], "tags": [{"a": 1, "b": 2}, {"b": 2, "a": 1}]}', "at tags: its items are not all different.", id="objects that are equal"),
        pytest.param("", "The answer is no JSON object: Expecting value", id="nothing"),
        pytest.param("Sorry, I cannot.", "The answer is no JSON object: Expecting value", id="words"),
        pytest.param("[1]", "The answer is no JSON object.", id="a list"),
        pytest.param('"{}"', "The answer is no JSON object.", id="an object as a string"),
        pytest.param(f"{ANSWER} or {ANSWER}", "more than one JSON object", id="two objects"),
        pytest.param(f"```\n{ANSWER}\n```\n```\n{ANSWER}\n```", "more than one JSON object", id="two fences"),
        pytest.param('{"items": [NaN]}', "NaN is no JSON", id="not a number"),
        pytest.param('{"items": [1e999]}', "at items[0]: a number beyond", id="infinity"),
        pytest.param('{"items": [' + "1" * 5000 + "]}", "The answer is no JSON object", id="a number of 5,000 digits"),
        pytest.param('{"items": ["\\ud800"]}', "at items[0]: text with half a character", id="a lone surrogate"),
        pytest.param('{"items": ' + "[" * 60 + "]" * 60 + "}", "nest deeper than 32", id="too deep"),
        pytest.param("x" * (MESSAGE_MAX_BYTES + 1), "at most 32768", id="too long"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_to_the_model(text: str, words: str) -> None:
    with pytest.raises(AnswerError) as raised:
        fit(ORDER, text)
    assert words in str(raised.value)
    assert str(raised.value) == f"{raised.value.problem}. Answer again with only a JSON object that fits."


def test_true_is_not_one() -> None:
    assert fit(ORDER, '{"items": [], "tags": [1, true, "1"]}')["tags"] == [1, True, "1"]


def test_not_everything_that_is_wrong_is_told() -> None:
    with pytest.raises(AnswerError) as raised:
        fit(ORDER, json.dumps({"items": [{}] * 5000}))
    assert str(raised.value).count("is a required property") == 5


DOUBLING: Json = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i - 1}"}] * 2} for i in range(1, 30)}
DOUBLING["d0"] = {"type": "string"}
NINES = '{"a": [' + ",".join("9" * 15_000) + "]}"


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        pytest.param({**OBJECT, "$ref": "#"}, "{}", id="a schema that is itself"),
        pytest.param({**of({"$ref": "#/$defs/d29"}), "$defs": DOUBLING}, '{"a": 1}', id="alternatives that double"),
        pytest.param(
            {**of({"$ref": "#"}), "oneOf": [of({"$ref": "#"}), of({"$ref": "#"})]},
            '{"a":' * 25 + "{}" + "}" * 25,
            id="alternatives that double with the answer",
        ),
        pytest.param(of({"anyOf": [{"type": "string"}] * 1500}), NINES, id="a long answer written out again and again"),
        pytest.param(of({"contains": {"enum": ["x" * 30_000]}}), NINES, id="a long value written out again and again"),
        pytest.param(of({"items": {"enum": list(range(10, 5000))}}), NINES, id="many values for many items"),
        pytest.param(of({"items": {"allOf": [{"pattern": ".{0,490}b"}] * 9}}), json.dumps({"a": ["x" * 3000] * 10}), id="slow patterns"),
        pytest.param(of({"pattern": "^(a+)+$"}), json.dumps({"a": "a" * 30_000 + "b"}), id="a pattern that hangs Python's own engine"),
        pytest.param(of({"items": {"required": [f"b{i}" for i in range(3000)]}}), json.dumps({"a": [{}] * 8000}), id="much that is missing"),
        pytest.param(OBJECT, '{"a":' * 6000, id="objects that do not end"),
        pytest.param(OBJECT, "{ " * 16_000, id="braces"),
        pytest.param(OBJECT, "[" * 32_000, id="brackets"),
        pytest.param(OBJECT, "```\n" * 8000, id="fences"),
        pytest.param(OBJECT, "```" + " " * 32_000, id="a fence of spaces"),
    ],
)  # fmt: skip
def test_neither_schema_nor_answer_can_hold_a_worker_up(schema: Json, text: str) -> None:
    check(schema)
    began = time.process_time()
    with pytest.raises(AnswerError):
        fit(schema, text)
    assert time.process_time() - began < 2


def test_many_objects_are_compared_in_one_pass() -> None:
    answer = {"items": [], "tags": [{"a": number} for number in range(2500)]}
    began = time.process_time()
    assert fit(ORDER, json.dumps(answer)) == answer
    assert time.process_time() - began < 1


@pytest.mark.parametrize("answer", ['{"a": 1e299}', '{"a": ' + "9" * 290 + "}"])
def test_large_numbers_are_checked(answer: str) -> None:
    assert fit(of({"multipleOf": 0.1, "minimum": 1}), answer)


def test_a_schema_is_checked_once_whatever_the_verdict() -> None:
    fields = {f"field_{number}": {"type": "string", "description": "what it says"} for number in range(300)}
    for schema in ({**OBJECT, "properties": fields}, {**OBJECT, "properties": {**fields, "z": {"type": "text"}}}):
        problems = set()
        for attempt in range(200):
            if attempt == 1:
                began = time.process_time()
            try:
                check(json.loads(json.dumps(schema)))
            except OutputSchemaError as error:
                problems.add(str(error))
        assert time.process_time() - began < 1  # 0.1 s each without a memory
        assert len(problems) == ("z" in schema["properties"])

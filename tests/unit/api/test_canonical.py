"""Canonical JSON, by the examples of RFC 8785, and the digest of what is approved."""

import json
import struct
from typing import Any

import pytest
from dalang_api.canonical import NotCanonicalError, canonical, digest

RFC_INPUT = r"""{
  "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
  "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
  "literals": [null, true, false]
}"""
RFC_OUTPUT = (
    r'{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
    r'"string":"€$\u000f\nA' + "'" + r'B\"\\\\\"/"}'
)


def test_the_example_of_section_3_2() -> None:
    assert canonical(json.loads(RFC_INPUT)) == RFC_OUTPUT


def test_keys_are_sorted_by_utf_16_as_in_section_3_2_3() -> None:
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\x80", "\u00f6"]
    assert list(json.loads(canonical(dict.fromkeys(keys, 0)))) == [
        "\r",
        "1",
        "\x80",
        "\u00f6",
        "\u20ac",
        "\U0001f600",
        "\ufb33",
    ]


@pytest.mark.parametrize(
    ("bits", "written"),
    [
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
    ],
)
def test_numbers_as_in_appendix_b(bits: str, written: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical(number) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        pytest.param({"b": 1, "a": {"d": [], "c": {}}}, '{"a":{"c":{},"d":[]},"b":1}', id="keys, at every depth"),
        pytest.param(1.0, "1", id="a whole double is an integer"),
        pytest.param(2**53 - 1, "9007199254740991", id="the largest integer"),
        pytest.param("é\u2028", '"é\u2028"', id="text as it is"),
    ],
)
def test_values(value: Any, written: str) -> None:
    assert canonical(value) == written


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(2**53, id="an integer that not every reader shows exactly"),
        pytest.param(-(2**53), id="a negative one"),
        pytest.param([float("nan")], id="no number"),
        pytest.param(float("inf"), id="infinity"),
        pytest.param("\ud800", id="half a character"),
        pytest.param({"\ud800": 1}, id="half a character in a key"),
        pytest.param({1: 2}, id="a key that is no text"),
        pytest.param(object(), id="no JSON"),
    ],
)
def test_what_it_refuses(value: Any) -> None:
    with pytest.raises(NotCanonicalError):
        canonical(value)


def test_nesting_without_end_is_refused() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(NotCanonicalError):
        canonical(value)


def test_a_digest_is_of_tool_arguments_and_schema() -> None:
    tool, schema = {"name": "pay"}, {"type": "object", "maximum": 2**64}
    made = digest(tool, '{"a":1}', schema)
    assert made == digest(dict(tool), '{"a":1}', {"maximum": 2**64, "type": "object"})
    assert len(made) == len("sha256:") + 64
    others = [({"name": "pax"}, '{"a":1}', schema), (tool, '{"a":2}', schema), (tool, '{"a":1}', {"type": "object"})]
    assert made not in [digest(*other) for other in others]

"""Values that Python takes for JSON and others do not."""

from typing import Any

import pytest
from dalang_api.json_values import DEPTH_MAX, check_json


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"a": [1, 2.5, "ü", True, None, {"b": {}}]}, id="all that JSON has"),
        pytest.param(nested(DEPTH_MAX), id="as deep as may be"),
        pytest.param(10**300 - 1, id="a large number"),
    ],
)
def test_json_passes(value: Any) -> None:
    check_json(value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        pytest.param({"a": [0, float("nan")]}, "^a\\[1\\]: a number beyond", id="not a number"),
        pytest.param(float("-inf"), "^a number beyond", id="infinity"),
        pytest.param({"a": 10**400}, "^a: a number beyond", id="a number no float holds"),
        pytest.param({"a": {"b": "x\ud800"}}, "^a.b: text with half a character", id="a lone surrogate"),
        pytest.param({"\ud800": 1}, "^a key that is no text", id="a lone surrogate as a key"),
        pytest.param({1: 1}, "^a key that is no text", id="a number as a key"),
        pytest.param([b"x"], "^\\[0\\]: bytes is no JSON", id="bytes"),
        pytest.param(nested(DEPTH_MAX + 1), "nest deeper than 32", id="too deep"),
        pytest.param(nested(100_000), "nest deeper than 32", id="deeper than Python's stack"),
    ],
)
def test_what_others_choke_on_is_told_with_its_place(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_json(value)

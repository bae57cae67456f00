"""What a tool returned, as the text that the model reads."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import pytest
from dalang_api.contract import TOOL_OUTPUT_MAX_BYTES
from dalang_worker.activities.tool import render
from pydantic import BaseModel

LOST = "\N{REPLACEMENT CHARACTER}"


class Order(BaseModel):
    number: int
    placed: date


@dataclass
class Weather:
    sky: str
    degrees: float


class Opaque:
    def __repr__(self) -> str:
        return "<an opaque thing>"


def looped() -> list[Any]:
    ring: list[Any] = [1]
    ring.append(ring)
    return ring


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param("sunny", "sunny", id="a string as it is"),
        pytest.param("", "", id="an empty string"),
        pytest.param(None, "null", id="nothing"),
        pytest.param(True, "true", id="a truth"),
        pytest.param(3.5, "3.5", id="a number"),
        pytest.param(["a", 1, None], '["a",1,null]', id="a list"),
        pytest.param({"city": "Kuta", "Ü": "漢"}, '{"city":"Kuta","Ü":"漢"}', id="an object"),
        pytest.param({1: "a", (2, 3): "b"}, '{"1":"a","2,3":"b"}', id="keys that are no strings"),
        pytest.param(float("nan"), "NaN", id="not a number"),
        pytest.param([float("inf")], "[Infinity]", id="infinity"),
        pytest.param(Order(number=42, placed=date(2026, 3, 1)), '{"number":42,"placed":"2026-03-01"}', id="a model"),
        pytest.param(Weather("sunny", 31.5), '{"sky":"sunny","degrees":31.5}', id="a dataclass"),
        pytest.param(datetime(2026, 3, 1, 12, tzinfo=UTC), '"2026-03-01T12:00:00Z"', id="a time"),
        pytest.param({"x": Opaque()}, '{"x":"<an opaque thing>"}', id="an object that is no JSON, as its repr"),
        pytest.param(b"sunny", "sunny", id="bytes that are UTF-8"),
        pytest.param(
            b"a\xff", f"[not UTF-8: what cannot be read is shown as {LOST}]\na{LOST}", id="bytes that are not, marked"
        ),
        pytest.param("a\ud800", "a?", id="a lone surrogate"),
        pytest.param("\x1b[31mred", f"{LOST}[31mred", id="control characters"),
    ],
)
def test_render(value: Any, text: str) -> None:
    assert render(value) == text


@pytest.mark.parametrize(
    ("value", "ending"),
    [
        pytest.param({"x": b"\xff"}, "{'x': b'\\xff'}", id="bytes inside that are not UTF-8"),
        pytest.param({"x": "\ud800"}, "{'x': '\\ud800'}", id="a lone surrogate inside"),
        pytest.param(looped(), "[1, [...]]", id="a list that holds itself"),
    ],
)
def test_what_is_no_json_is_marked_and_shown(value: Any, ending: str) -> None:
    text = render(value)
    assert text.startswith("[not JSON: ")
    assert text.endswith(f"]\n{ending}")


@pytest.mark.parametrize(
    ("value", "size"),
    [
        pytest.param("x" * 5_000_000, 5_000_000, id="5 MB of text"),
        pytest.param(b"x" * 5_000_000, 5_000_000, id="5 MB of bytes"),
        pytest.param(["x" * 1_000_000] * 5, 5_000_016, id="5 MB of JSON"),
        pytest.param("ü" * 10_000, 20_000, id="what is too long only in bytes"),
        pytest.param(b"\x00" * 6_000, 18_000, id="what is too long only when cleaned"),
    ],
)
def test_what_is_too_long_is_cut_with_a_mark(value: Any, size: int) -> None:
    text = render(value)
    assert text.endswith(f"\n… [cut: {size} bytes in all]")
    assert TOOL_OUTPUT_MAX_BYTES - 3 <= len(text.encode()) <= TOOL_OUTPUT_MAX_BYTES

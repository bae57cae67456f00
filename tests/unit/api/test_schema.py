"""The vocabulary of the API models: durations."""

import re

import pytest
from dalang_api.v1alpha1.schema import Duration, seconds
from pydantic import TypeAdapter, ValidationError

DURATION: TypeAdapter[str] = TypeAdapter(Duration)


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        pytest.param("90s", 90.0, id="seconds"),
        pytest.param("10m", 600.0, id="minutes"),
        pytest.param("24h", 86400.0, id="hours"),
        pytest.param("250ms", 0.25, id="milliseconds are not minutes"),
        pytest.param("1h30m", 5400.0, id="several parts"),
        pytest.param("1h2m3s4ms", 3723.004, id="all parts"),
        pytest.param("30m1h", 5400.0, id="parts in any order"),
        pytest.param("1h1h", 7200.0, id="a unit twice"),
        pytest.param("1m1ms", 60.001, id="minutes before milliseconds"),
        pytest.param("0s", 0.0, id="nothing"),
        pytest.param("99999h", 359_996_400.0, id="the longest part"),
    ],
)
def test_a_duration_in_seconds(duration: str, expected: float) -> None:
    assert DURATION.validate_python(duration) == duration
    assert seconds(duration) == pytest.approx(expected)


@pytest.mark.parametrize(
    "duration", ["", "10", "1d", "1.5h", "-1s", "1h ", " 1h", "100000s", "1h1h1h1h1h", "PT1H", "h"]
)
def test_what_is_no_duration_is_refused(duration: str) -> None:
    with pytest.raises(ValidationError):
        DURATION.validate_python(duration)


def test_every_unit_of_the_pattern_is_understood() -> None:
    pattern = DURATION.json_schema()["pattern"]
    units = re.search(r"\(([a-z|]+)\)", pattern)
    assert units
    assert all(seconds(f"1{unit}") > 0 for unit in units[1].split("|"))

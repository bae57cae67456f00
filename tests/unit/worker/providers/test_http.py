"""What HTTP says about a failed call."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from dalang_worker.providers import Credentials
from dalang_worker.providers.http import (
    LONGEST_WAIT_SECONDS,
    MESSAGE_MAX_CHARS,
    error_message,
    is_passing,
    one_line,
    retry_after_seconds,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "headers", "passes"),
    [
        *(pytest.param(status, {}, True, id=f"{status} passes") for status in (408, 409, 429, 500, 502, 503, 529)),
        *(pytest.param(status, {}, False, id=f"{status} does not") for status in (301, 400, 401, 403, 404, 413, 422)),
        pytest.param(None, {}, True, id="no answer at all may be one later"),
        pytest.param(400, {"x-should-retry": "true"}, True, id="the endpoint asks to be called again"),
        pytest.param(503, {"x-should-retry": "false"}, False, id="the endpoint asks not to be"),
        pytest.param(503, {"x-should-retry": "perhaps"}, True, id="what it says makes no sense"),
    ],
)
def test_is_passing(status: int | None, headers: dict[str, str], passes: bool) -> None:
    assert is_passing(status, headers) is passes


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        pytest.param({}, None, id="nothing said"),
        pytest.param({"retry-after": "20"}, 20.0, id="seconds"),
        pytest.param({"retry-after": "1.5"}, 1.5, id="parts of a second"),
        pytest.param({"retry-after": " 20 "}, 20.0, id="seconds with spaces"),
        pytest.param({"retry-after-ms": "250"}, 0.25, id="milliseconds"),
        pytest.param({"retry-after-ms": "250", "retry-after": "20"}, 0.25, id="milliseconds are more exact"),
        pytest.param({"retry-after-ms": "soon", "retry-after": "20"}, 20.0, id="milliseconds that are no number"),
        pytest.param({"retry-after": "Sun, 01 Mar 2026 12:00:30 GMT"}, 30.0, id="a date"),
        pytest.param({"retry-after": "Sun, 01 Mar 2026 13:00:30 +0100"}, 30.0, id="a date of another zone"),
        pytest.param({"retry-after": "Sun, 01 Mar 2026 11:00:00 GMT"}, None, id="a date that has passed"),
        pytest.param({"retry-after": "Sun, 01 Mar 2026 12:00:30 -0000"}, None, id="a date without a zone"),
        pytest.param({"retry-after": "Sun, 01 Mar 99999 12:00:30 GMT"}, None, id="a year that there is not"),
        pytest.param({"retry-after": "86400"}, LONGEST_WAIT_SECONDS, id="a day is too long"),
        pytest.param({"retry-after": "0"}, None, id="no wait at all: our own"),
        pytest.param({"retry-after": "-5"}, None, id="less than none"),
        pytest.param({"retry-after": "soon"}, None, id="rubbish"),
        pytest.param({"retry-after": "nan"}, None, id="not a number"),
        pytest.param({"retry-after": "inf"}, None, id="for ever"),
        pytest.param({"retry-after": ""}, None, id="nothing"),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers, NOW) == seconds


@pytest.mark.parametrize(
    ("words", "headers", "expected"),
    [
        pytest.param("404: no such model", {}, "model m: 404: no such model", id="the endpoint's words"),
        pytest.param("no sk-12345!", {}, "model m: no [key]!", id="the key"),
        pytest.param(
            "no abc.def!", {"authorization": "Bearer abc.def"}, "model m: no [key]!", id="a token that was sent"
        ),
        pytest.param("no abc.def!", {"api-key": "abc.def"}, "model m: no [key]!", id="in Azure's header"),
        pytest.param("none of it", {"authorization": "Bearer none"}, "model m: none of it", id="no key at all"),
        pytest.param("no pod.token!", {}, "model m: no [key]!", id="the pod's token"),
        pytest.param("half an \ud83e", {}, "model m: half an ?", id="half an emoji"),
        pytest.param("x" * 5000, {}, f"model m: {'x' * 5000}"[:MESSAGE_MAX_CHARS], id="a lot"),
    ],
)
def test_error_message(words: str, headers: dict[str, str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("pod.token\n")
    credentials = Credentials(api_key="sk-12345", identity_token=tmp_path / "token")
    assert error_message("m", words, credentials, headers) == expected


def test_one_line() -> None:
    assert one_line(" two\n lines ") == "two lines"
    assert one_line("") == "(no words)"

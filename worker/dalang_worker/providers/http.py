"""What HTTP says about a failed model call, alike for every provider: which statuses pass, Retry-After, and the words."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from dalang_worker.providers import Credentials
from dalang_worker.secrets import redact
from dalang_worker.text import clean

CONNECT_TIMEOUT_SECONDS = 10.0
READ_TIMEOUT_SECONDS = 590.0
"""Just under the activity's own ten minutes, so that the error is the endpoint's. A stream's is that between two chunks."""
LONGEST_WAIT_SECONDS = 600.0
MESSAGE_MAX_CHARS = 700

_PASSING_STATUSES = frozenset({408, 409, 429})
_KEY_HEADERS = ("authorization", "api-key", "x-api-key")
_SHORTEST_SECRET = 5
"""What is shorter is no secret but the `none` that the SDKs are given where there is no key."""


def is_passing(status: int | None, headers: Mapping[str, str]) -> bool:
    """Return whether the same call may succeed later. No status means that no answer came at all.

    `x-should-retry` is the endpoint's own word and wins over the status.
    """
    told = headers.get("x-should-retry")
    if told in ("true", "false"):
        return told == "true"
    return status is None or status in _PASSING_STATUSES or status >= 500


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return how long the endpoint asks to wait, at most ten minutes; None where it says nothing one can use.

    `retry-after-ms` is exact; `retry-after` holds seconds or an HTTP date (RFC 9110 §10.2.3). No wait at all, or a date
    that has passed, is None too: an endpoint that always says so would be called in a loop.
    """
    seconds = _seconds(headers, now)
    return None if seconds is None or seconds <= 0 else min(seconds, LONGEST_WAIT_SECONDS)


def one_line(words: object) -> str:
    """Return an endpoint's words on one line."""
    return " ".join(str(words).split()) or "(no words)"


def error_message(model: str, words: str, credentials: Credentials, headers: Mapping[str, str]) -> str:
    """Return what a run is told: bounded, and without any secret, since some endpoints repeat the key that they refuse.

    Args:
        model: The model's name at the provider.
        words: The endpoint's own.
        credentials: What the call was to prove itself with.
        headers: The headers of the request, in which an exchanged token may stand; empty where none was sent.
    """
    sent = [headers.get(name, "").removeprefix("Bearer ") for name in _KEY_HEADERS]
    told = f"model {model}: {words}"
    secrets = _secrets([credentials.api_key, _read(credentials.identity_token), *sent])
    return clean(redact(told, secrets, "[key]")[:MESSAGE_MAX_CHARS])


def _secrets(values: Iterable[str | None]) -> list[str]:
    return [value for value in values if value and len(value) >= _SHORTEST_SECRET]


def _read(path: Path | None) -> str | None:
    try:
        return path.read_text().strip() if path else None
    except (OSError, ValueError):
        return None


def _seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if value is None or (number := _number(value)) is not None:
        return None if value is None else number
    try:
        return (parsedate_to_datetime(value) - now).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else None
    except ValueError:
        return None
    return number if number is not None and 0 <= number < float("inf") else None

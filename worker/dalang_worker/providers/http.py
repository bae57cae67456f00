"""What HTTP says about a failed model call, alike for every provider: Retry-After and which statuses pass."""

from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime

LONGEST_WAIT_SECONDS = 600.0

_PASSING_STATUSES = frozenset({408, 409, 429})


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

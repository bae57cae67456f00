"""How an activity fails: to be tried again, or for good. BENIGN keeps stack traces of foreseen failures out of the log."""

from datetime import timedelta

from temporalio.exceptions import ApplicationError, ApplicationErrorCategory


def retryable(reason: str, message: str, after_seconds: float | None = None) -> ApplicationError:
    """Return a failure that Temporal tries again, after this delay or by its own backoff."""
    return ApplicationError(
        message,
        type=reason,
        next_retry_delay=None if after_seconds is None else timedelta(seconds=after_seconds),
        category=ApplicationErrorCategory.BENIGN,
    )


def final(reason: str, message: str) -> ApplicationError:
    """Return a failure that ends the run."""
    return ApplicationError(message, type=reason, non_retryable=True, category=ApplicationErrorCategory.BENIGN)

"""How an activity fails: to be tried again, or for good. BENIGN keeps stack traces of foreseen failures out of the log."""

import asyncio
from datetime import timedelta

from dalang_api.contract import Wire
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory


def retryable(reason: str, message: str, after_seconds: float | None = None) -> ApplicationError:
    """Return a failure that Temporal tries again, after this delay or by its own backoff."""
    return ApplicationError(
        message,
        type=reason,
        next_retry_delay=None if after_seconds is None else timedelta(seconds=after_seconds),
        category=ApplicationErrorCategory.BENIGN,
    )


def final(reason: str, message: str, *details: Wire) -> ApplicationError:
    """Return a failure that is not tried again; most end the run. The details are for the workflow."""
    return ApplicationError(
        message, *details, type=reason, non_retryable=True, category=ApplicationErrorCategory.BENIGN
    )


def interrupted(error: asyncio.CancelledError) -> BaseException:
    """Return what an activity raises that was cancelled: only a cancel by its workflow is one to Temporal.

    A stopping worker's activities are to be tried by another. Where the workflow has ended or the attempt has timed out,
    nobody hears of it; without BENIGN it would be a stack trace in the log of every run that is stopped.
    """
    details = activity.cancellation_details()
    if details is not None and details.cancel_requested:
        return error
    return retryable("Interrupted", "the worker was stopped" if activity.is_worker_shutdown() else "no longer wanted")

"""Asking again: how often, how patiently, and what a failure is once the attempts are spent.

Not here: what is asked, and which of its failures may pass (download.py).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from retail_assets.resources.http.locations import (
    DownloadError,
    PermanentDownloadError,
    TransientDownloadError,
)

_T = TypeVar("_T")


@dataclass(frozen=True)
class Retries:
    """How often and how patiently to ask again.

    Waits are in seconds, doubled each time. A server's Retry-After replaces the wait; one above
    `max_retry_after_s` ends the attempts, as asking sooner is futile.
    """

    attempts: int = 5
    first_wait_s: float = 1.0
    max_wait_s: float = 30.0
    max_retry_after_s: float = 120.0
    sleep: Callable[[float], None] = time.sleep


class RetryableError(Exception):
    """One attempt's failure; `becomes` says what it is once the attempts are spent."""

    def __init__(
        self,
        expected: str,
        found: str,
        advice: str,
        *,
        becomes: type[DownloadError] = TransientDownloadError,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"expected {expected}, found {found}. {advice}")
        self.becomes = becomes
        self.retry_after_s = retry_after_s


def truncated(found: str) -> RetryableError:
    """Return the failure of a body that is not whole."""
    return RetryableError(
        "the whole body",
        found,
        "Download the file by other means and give its path, or use a mirror.",
        becomes=PermanentDownloadError,
    )


def retrying(retries: Retries, shown: str, attempt: Callable[[], _T]) -> _T:
    """Return what `attempt` returns, asked again while its failures are retryable."""
    wait, made = retries.first_wait_s, 0
    while True:
        made += 1
        try:
            return attempt()
        except RetryableError as failure:
            asked = failure.retry_after_s
            if made < retries.attempts and (asked or 0.0) <= retries.max_retry_after_s:
                retries.sleep(min(wait, retries.max_wait_s) if asked is None else asked)
                wait *= 2
                continue
            tries = "1 attempt" if made == 1 else f"{made} attempts"
            told = "" if asked is None else f" The server asks to wait {asked:.0f} s."
            error = failure.becomes(f"{shown}: {failure}{told} Gave up after {tries}.")
            if isinstance(error, TransientDownloadError):
                error.retry_after_s = asked
                # Not where the server asks for a longer wait than is made here: then a step may.
                error.already_retried = made >= retries.attempts
            raise error from failure.__cause__

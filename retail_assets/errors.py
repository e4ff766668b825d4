"""The two kinds of failure, and what Dagster does about each.

Here: the kinds. Not here: particular errors, which derive from them beside the code that raises.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

# In a failure's metadata: no retry mends it.
PERMANENT = "permanent"
_MOST_RETRIES = 3
_FIRST_WAIT_S = 5.0


class PermanentError(Exception):
    """No retry mends it: the message says what was expected, what was found, what to do.

    Attributes:
        metadata: what Dagster's record of the failure says besides the message.
    """

    metadata: Mapping[str, Any] = MappingProxyType({})


class TransientError(Exception):
    """It may pass by itself: a retry is worth while, unless who raised it has made its own."""

    retry_after_s: float | None = None
    already_retried: bool = False


@contextmanager
def failures_by_kind(retry_number: int) -> Iterator[None]:
    """Tell Dagster which failures to retry: transient ones not yet retried, with a growing wait.

    ``retry_number`` is the context's: 0 on the first try. Errors of neither kind pass unchanged
    and are not retried: they are defects.

    Raises:
        dagster.Failure: with ``allow_retries=False``, for a PermanentError, which has PERMANENT in
            its metadata: by that the run is not asked for again either (runs.py); and for a
            TransientError that was already retried.
        dagster.RetryRequested: for a TransientError.
    """
    import dagster as dg

    try:
        yield
    except PermanentError as error:
        metadata = {**error.metadata, PERMANENT: True}
        raise dg.Failure(str(error), metadata=metadata, allow_retries=False) from error
    except TransientError as error:
        if error.already_retried:
            raise dg.Failure(str(error), allow_retries=False) from error
        wait = error.retry_after_s or _FIRST_WAIT_S * 2**retry_number
        raise dg.RetryRequested(_MOST_RETRIES, seconds_to_wait=wait) from error

"""What Google's refusals mean: whose fault it is, and what to do.

Here: errors of Cloud Storage's client, and of delta-rs, which has a client of its own. Not here:
who may do what (cloud_checks.py).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from retail_assets.resources.lake.objects import LakeAccessError, LakeUnreachableError

_READ_ROLE = "roles/storage.objectViewer"
_WRITE_ROLE = "roles/storage.objectUser"
_QUOTA_REASONS = {"rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded"}
# What delta-rs says of an answer: the class of its error is the same for all.
_REFUSED = "403 Forbidden"
_NO_CREDENTIALS = ("401 Unauthorized", "service account file", "computeMetadata", "invalid_grant")
_DRAWN = re.compile("\x1b\\[[0-9]*m|\u21b3")  # colours and arrows
_NO_BUCKET = ("NoSuchBucket", "The specified bucket does not exist")


@contextmanager
def told(doing: str, uri: str, bucket: str, retry_s: float) -> Iterator[None]:
    """Say by whose fault it failed: ours (permanent) or the moment's (transient)."""
    import requests.exceptions
    from google.api_core import exceptions as api
    from google.auth import exceptions as auth
    from google.cloud.storage.exceptions import DataCorruption

    try:
        yield
    except (auth.DefaultCredentialsError, auth.RefreshError, api.Unauthorized) as error:
        raise _no_credentials(bucket, error) from error
    except api.Forbidden as error:
        if {item.get("reason") for item in error.errors or ()} & _QUOTA_REASONS:
            raise _unreachable(doing, uri, retry_s, error) from error
        raise _refused(doing, uri, bucket, error) from error
    except api.NotFound as error:
        raise _no_bucket(bucket) from error
    except (api.TooManyRequests, api.ServerError, api.RetryError) as error:
        raise _unreachable(doing, uri, retry_s, error) from error
    except api.GoogleAPICallError as error:
        if error.code == 408:  # request timeout, which has no class of its own
            raise _unreachable(doing, uri, retry_s, error) from error
        raise
    except (
        requests.exceptions.RequestException,
        auth.TransportError,
        DataCorruption,
        ConnectionError,
    ) as error:
        raise _unreachable(doing, uri, retry_s, error) from error


@contextmanager
def told_of_table(doing: str, uri: str, bucket: str, retry_s: float) -> Iterator[None]:
    """The same of delta-rs, whose own answers on versions and races pass unchanged."""
    from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

    try:
        yield
    except (CommitFailedError, TableNotFoundError):
        raise
    except (DeltaError, OSError) as error:
        said = str(error)
        if any(mark in said for mark in _NO_BUCKET):
            raise _no_bucket(bucket) from error
        if any(mark in said for mark in _NO_CREDENTIALS):
            raise _no_credentials(bucket, error) from error
        if _REFUSED in said:
            raise _refused(doing, uri, bucket, error) from error
        if isinstance(error, OSError) or "Generic GCS error" in said:
            raise _unreachable(doing, uri, retry_s, error) from error
        raise


def _no_credentials(bucket: str, error: Exception) -> LakeAccessError:
    return LakeAccessError(
        f"{bucket}: no valid credentials of Google ({in_one_line(error)}). On a laptop:"
        " gcloud auth application-default login; on Google Cloud: attach a service"
        f" account that has {_WRITE_ROLE} on the bucket."
    )


def _refused(doing: str, uri: str, bucket: str, error: Exception) -> LakeAccessError:
    role = _READ_ROLE if doing in ("read", "list") else _WRITE_ROLE
    return LakeAccessError(
        f"{uri}: not allowed to {doing} it ({in_one_line(error)}). The account that runs"
        f" this needs {role} on the bucket: gcloud storage buckets add-iam-policy-binding"
        f" {bucket} --member=MEMBER --role={role}"
    )


def _no_bucket(bucket: str) -> LakeAccessError:
    return LakeAccessError(
        f"{bucket}: there is no such bucket, which RETAIL_LAKE names. Correct RETAIL_LAKE,"
        f" or make it: gcloud storage buckets create {bucket} --location=LOCATION (the"
        " warehouse's location)"
    )


def _unreachable(doing: str, uri: str, retry_s: float, error: Exception) -> LakeUnreachableError:
    return LakeUnreachableError(
        f"{uri}: could not {doing} it, though tried for {retry_s:.0f} s"
        f" ({in_one_line(error)}). Nothing half is visible. Run this again; if it stays,"
        " see status.cloud.google.com and the machine's network."
    )


def in_one_line(error: Exception) -> str:
    """What an error says, in one line of a length to be read.

    delta-rs says each cause on a line below, the last ones what happened.
    """
    first, *causes = _DRAWN.sub("", str(error).strip()).splitlines() or [""]
    if not str(error).partition("\n")[2].lstrip().startswith("\x1b"):
        return first[:300]
    return ": ".join(line.strip()[:150] for line in (first, *causes[-2:]))

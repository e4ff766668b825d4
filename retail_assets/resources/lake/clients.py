"""Whom a bucket's requests go to: Google's client for objects, delta-rs's for tables.

Here: how each is made, for Google or for an emulator. Not here: what is asked of them (bucket.py,
tables.py).
"""

import base64
import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.cloud import storage

# A key of no account: an emulator asks for none, and delta-rs for one that is well formed.
_NO_ACCOUNT = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
_BUCKETS: set[tuple[str | None, str]] = set()


@lru_cache(maxsize=8)
def google_client(emulator_host: str | None) -> "storage.Client":
    """Google's client, one a process, with the application's default credentials."""
    if emulator_host is None:
        from dagster_gcp.gcs import GCSResource

        return GCSResource(project=None).get_client()
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    return storage.Client(
        project="emulated",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": emulator_host},
    )


def require_bucket(emulator_host: str | None, bucket: str, retry: Any, *, again: bool) -> None:
    """Ask Google for an object of a bucket that was not asked for before, or ``again``.

    Raises:
        google.api_core.exceptions.NotFound: there is no such bucket.
    """
    known = (emulator_host, bucket)
    if again or known not in _BUCKETS:
        listed = google_client(emulator_host).list_blobs(
            bucket, max_results=1, fields="items(name)", retry=retry
        )
        list(listed)
        _BUCKETS.add(known)


def delta_options(emulator_host: str | None, retry_s: float, timeout_s: float) -> dict[str, str]:
    """Storage options of delta-rs, which finds the application's default credentials by itself.

    It tries a request for ``retry_s`` seconds, each time for ``timeout_s``.
    """
    options = {
        "retry_timeout": f"{retry_s:.0f}s",
        "max_retries": "1000",  # so that it is the time that ends it
        "timeout": f"{timeout_s:.0f}s",
    }
    if emulator_host is None:
        return options
    key = json.dumps({"gcs_base_url": emulator_host, **_NO_ACCOUNT})
    return options | {"google_service_account_key": key, "allow_http": "true"}


def crc32c(file: Path) -> str:
    """A file's checksum as Cloud Storage writes it."""
    import google_crc32c

    new: Any = google_crc32c.Checksum  # the library has no types
    checksum = new()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            checksum.update(piece)
    return base64.b64encode(checksum.digest()).decode()

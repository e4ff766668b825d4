"""A file behind a URL or a path: ask which version the origin holds, fetch it whole or not at all.

Here: HTTP, paths, versions, integrity. Not here: what the bytes mean (tabular/), where they are
kept, when they are asked for.
"""

import hashlib
import json
import logging
import os
import re
import ssl
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from retail_assets.resources.http.locations import (
    PermanentDownloadError,
    is_url,
    local_path,
    redact,
    stripped,
)
from retail_assets.resources.http.part import CHUNK_BYTES, Part, decompressed, progress_bar
from retail_assets.resources.http.retries import Retries, RetryableError, retrying, truncated

if TYPE_CHECKING:
    import httpx

MAX_REDIRECTS = 10

_CONTENT_RANGE = re.compile(r"bytes (?:(?P<first>\d+)-\d+|\*)/(?P<total>\d+|\*)")
_HEAD_REFUSED = frozenset({400, 403, 405, 501})  # 403: a signed URL is often signed for GET alone
_TRANSIENT = frozenset({408, 429})  # and every 5xx


FETCH_RETRIES = Retries()
PROBE_RETRIES = Retries(attempts=3, max_wait_s=4.0)


@dataclass(frozen=True)
class Fingerprint:
    """What the origin says of a file's version.

    `location` is redacted, a path absolute; `last_modified` is the server's own text, or a path's
    mtime in ISO 8601, UTC, to the nanosecond; `size` is in bytes.
    """

    location: str
    etag: str | None = None
    last_modified: str | None = None
    size: int | None = None

    def token(self) -> str:
        """Return 16 hex digits that change when any field does.

        Compare a probe's token with a probe's; against a Download use `same_version`.
        """
        fields = json.dumps([self.location, self.etag, self.last_modified, self.size])
        return hashlib.sha256(fields.encode()).hexdigest()[:16]

    def same_version(self, other: "Fingerprint") -> bool:
        """Return whether both name the same bytes; False where the origin says too little to tell.

        ETags decide where both are known; otherwise the modification times, and the sizes where
        both are known (a server may leave the size out of one answer and not of another, so tokens
        would differ).
        """
        if self.location != other.location:
            return False
        if self.etag is not None and other.etag is not None:
            return self.etag.removeprefix("W/") == other.etag.removeprefix("W/")
        if self.last_modified is None or self.last_modified != other.last_modified:
            return False
        return self.size is None or other.size is None or self.size == other.size


@dataclass(frozen=True)
class Download:
    """A fetched file.

    `location` is redacted, `size` is in bytes as stored. When `not_modified`, `path` and `sha256`
    are None, and the rest is as it was known.
    """

    location: str
    path: Path | None
    etag: str | None
    last_modified: str | None
    size: int | None
    sha256: str | None

    @property
    def not_modified(self) -> bool:
        """Return whether the origin holds the version that was known."""
        return self.path is None

    @property
    def fingerprint(self) -> Fingerprint:
        """Return the version fetched, to compare with a later probe by `same_version`."""
        return Fingerprint(self.location, self.etag, self.last_modified, self.size)


def probe(
    location: str, *, timeout_s: float = 30.0, retries: Retries = PROBE_RETRIES
) -> Fingerprint:
    """Return the version the origin holds now, without transferring its body.

    Asks by HEAD, or where that is refused by a GET closed at once. `timeout_s` bounds each silence,
    not the whole. Raises PermanentDownloadError and TransientDownloadError.
    """
    location = stripped(location)
    if not is_url(location):
        path = local_path(location)
        return _path_fingerprint(path, _stat(path))
    shown = redact(location)
    with _client(timeout_s) as client:
        return retrying(retries, shown, lambda: _probe_url(client, location, shown))


def fetch(
    location: str,
    target: Path,
    *,
    previous: Fingerprint | None = None,
    timeout_s: float = 60.0,
    max_bytes: int | None = None,
    progress: bool | None = None,
    retries: Retries = FETCH_RETRIES,
) -> Download:
    """Bring the file to `target` and return what was brought; on failure `target` is untouched.

    `previous` is the version whose bytes the caller still keeps: if the origin holds the same,
    nothing is transferred, `target` is not written and `not_modified` is true. `timeout_s` bounds
    each silence, not the whole; `max_bytes` bounds what is stored (None: no bound); `progress` None
    shows a bar when stderr is a terminal. A body the server compressed in transit is stored
    decompressed, so a `.gz` name does not prove a gzip file. Raises PermanentDownloadError, and
    TransientDownloadError once the retries are spent.
    """
    location = stripped(location)
    path = None if is_url(location) else local_path(location)
    shown = redact(location) if path is None else str(path)
    if target.is_dir():
        raise PermanentDownloadError(
            f"{target}: expected a file name to write {shown} to, found a directory. "
            "Name a file inside it."
        )
    with (
        progress_bar(shown, sys.stderr.isatty() if progress is None else progress) as advance,
        Part(target, shown, max_bytes, advance) as part,
    ):
        if path is None:
            with _client(timeout_s) as client:
                known = _usable(previous, location)
                found = retrying(
                    retries, shown, lambda: _fetch_url(client, location, shown, known, part)
                )
        else:
            found = retrying(retries, shown, lambda: _copy(path, previous, part))
        if found is None:
            assert previous is not None  # only a known version can be found unchanged
            it, brought, sha256 = previous, None, None
        else:
            part.commit()
            it, brought, sha256 = found, target, part.sha256
    size = part.size if brought else it.size
    return Download(shown, brought, it.etag, it.last_modified, size, sha256)


# --- paths ----------------------------------------------------------------------------------------


def _stat(path: Path) -> os.stat_result:
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise PermanentDownloadError(
            f"{path}: expected a file, found nothing. Check the path, or put the file there."
        ) from error
    except OSError as error:
        raise PermanentDownloadError(
            f"{path}: expected a readable file, found {error.strerror}. "
            "Check the path and its permissions."
        ) from error
    if not stat.S_ISREG(found.st_mode):  # a pipe would block for ever
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "a device, pipe or socket"
        raise PermanentDownloadError(
            f"{path}: expected a file, found {kind}. Name one file; list several."
        )
    return found


def _path_fingerprint(path: Path, found: os.stat_result) -> Fingerprint:
    seconds, nanoseconds = divmod(found.st_mtime_ns, 1_000_000_000)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return Fingerprint(str(path), None, f"{moment}.{nanoseconds:09d}Z", found.st_size)


def _copy(path: Path, previous: Fingerprint | None, part: Part) -> Fingerprint | None:
    """Copy the file into the part; return its version, or None if that is the previous one."""
    version = _path_fingerprint(path, _stat(path))
    if previous is not None and version.same_version(previous):
        return None
    part.refuse_source(path)
    try:
        source = path.open("rb")
    except OSError as error:
        raise PermanentDownloadError(
            f"{path}: expected a readable file, found {error.strerror}. Check its permissions."
        ) from error
    with source:
        before = _path_fingerprint(path, os.fstat(source.fileno()))
        part.restart(before.size)
        while chunk := _read(source, path):
            part.write(chunk)
        after = _path_fingerprint(path, os.fstat(source.fileno()))
    if before != after or part.size != after.size:
        raise RetryableError(
            "a file at rest",
            f"one that changed during the copy ({before.size} bytes before, {after.size} after)",
            "Wait until its writer has finished, or have it written elsewhere and moved in.",
        )
    return after


def _read(source: IO[bytes], path: Path) -> bytes:
    try:
        return source.read(CHUNK_BYTES)
    except OSError as error:  # network drives and failing disks
        raise RetryableError(
            "a readable file",
            f"{error.strerror} while reading",
            f"Check the disk or the share that holds {path.name}.",
        ) from error


# --- http -----------------------------------------------------------------------------------------


@contextmanager
def _client(timeout_s: float) -> Iterator["httpx.Client"]:
    import httpx

    logger, hide = logging.getLogger("httpx"), _HideSecrets()
    logger.addFilter(hide)
    try:
        with httpx.Client(
            timeout=timeout_s,
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            # Compressed in transit, Content-Length and ranges would not speak of the file itself.
            headers={"Accept-Encoding": "identity", "User-Agent": "retail-assets"},
        ) as client:
            yield client
    finally:
        logger.removeFilter(hide)


class _HideSecrets(logging.Filter):
    """httpx logs every request's whole URL at level INFO."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                redact(str(a)) if type(a).__name__ == "URL" else a for a in record.args
            )
        return True


def _usable(previous: Fingerprint | None, location: str) -> Fingerprint | None:
    """Return what of the previous version may be asked about at this URL."""
    if previous is None or redact(previous.location) != redact(location):
        return None
    if "?" not in location:
        return previous
    # Redacted, two queries look alike; an ETag still tells their files apart, a date does not.
    if previous.etag is None:
        return None
    return Fingerprint(previous.location, previous.etag, None, previous.size)


def _probe_url(client: "httpx.Client", location: str, shown: str) -> Fingerprint:
    with _translated_errors(shown):
        with client.stream("HEAD", location) as response:
            if response.status_code not in _HEAD_REFUSED:
                _require(response, shown, 200)
                return _response_fingerprint(response, shown)
        with client.stream("GET", location, headers={"Range": "bytes=0-0"}) as response:
            _require(response, shown, 200, 206, 416)  # 416: the file is empty
            return _response_fingerprint(response, shown)


def _fetch_url(
    client: "httpx.Client", location: str, shown: str, previous: Fingerprint | None, part: Part
) -> Fingerprint | None:
    """Stream the body into the part, going on where the last attempt broke off if the server can.

    Returns the version received, or None if it is the previous one.
    """
    headers = {}
    if resuming := part.resumable_etag is not None:
        headers = {"Range": f"bytes={part.size}-", "If-Range": part.resumable_etag}
    elif previous is not None:
        known = {"If-None-Match": previous.etag, "If-Modified-Since": previous.last_modified}
        headers = {n: v for n, v in known.items() if v and v.isascii() and v.isprintable()}
    with _translated_errors(shown), client.stream("GET", location, headers=headers) as response:
        if response.status_code == 304 and headers and not resuming:
            return None
        version = _response_fingerprint(response, shown)
        if resuming and response.status_code in (206, 416):
            _require_rest(response, part)
        else:
            _require(response, shown, 200)
            if not resuming and previous is not None and version.same_version(previous):
                return None  # a server that knows no conditional requests: hang up before the body
        _receive(response, shown, version, part)
        return version


def _require_rest(response: "httpx.Response", part: Part) -> None:
    """Raise unless the answer holds what the part still lacks, of the same version."""
    span = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    if (
        span is None
        or span["first"] != str(part.size)
        or response.headers.get("ETag") != part.resumable_etag  # some heed Range, not If-Range
        or _encoding(response) != "identity"
    ):
        part.resumable_etag = None  # the next attempt starts afresh
        raise RetryableError(
            f"the bytes from {part.size} on",
            "others",
            "If it persists, download the file by other means and give its path.",
        )


def _receive(response: "httpx.Response", shown: str, version: Fingerprint, part: Part) -> None:
    import httpx

    encoding = _encoding(response)
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        # httpx would hand on such a body undecoded, without a word.
        raise PermanentDownloadError(
            f"{shown}: expected the file as it is, found Content-Encoding {encoding!r}, "
            "which is not understood here. Ask the server's operator to honour `Accept-Encoding: "
            "identity`, or download the file by other means and give its path."
        )
    if response.status_code != 206:
        part.restart(_int(response.headers.get("Content-Length")))
    if encoding == "identity" and version.etag and not version.etag.startswith("W/"):
        part.resumable_etag = version.etag
    raw = response.iter_raw()  # as they arrive: a bigger chunk would be lost when the line drops
    try:
        for chunk in raw if encoding == "identity" else decompressed(raw):
            part.write(chunk)
    except httpx.RemoteProtocolError as error:
        raise truncated("a connection closed before the end") from error
    if version.size is not None and part.size != version.size:
        raise truncated(f"{part.size} bytes of {version.size}")


def _encoding(response: "httpx.Response") -> str:
    found: str = response.headers.get("Content-Encoding", "")
    return found.strip().lower() or "identity"


def _response_fingerprint(response: "httpx.Response", shown: str) -> Fingerprint:
    """Return the version an answer names; a size only where it is that of the file itself."""
    told, size = response.headers.get, None
    if _encoding(response) == "identity":
        size = _int(told("Content-Length"))
        if response.status_code in (206, 416):
            total = _CONTENT_RANGE.match(told("Content-Range", ""))
            size = _int(total["total"]) if total is not None else None
    return Fingerprint(shown, told("ETag"), told("Last-Modified"), size)


def _require(response: "httpx.Response", shown: str, *expected: int) -> None:
    if (status := response.status_code) in expected:
        return
    found = f"HTTP {status} {response.reason_phrase}".strip()
    if response.history:
        found += f" from {redact(str(response.url))}"
    if status in _TRANSIENT or status >= 500:
        raise RetryableError(
            "HTTP 200",
            found,
            "Wait and run again; if it persists, ask the server's operator or use a mirror.",
            retry_after_s=_retry_after_s(response.headers.get("Retry-After")),
        )
    if status in (401, 403, 407):
        advice = "Check the user, password or token in the location; a signed URL may have expired."
    elif status in (404, 410):
        advice = "Check the location; if the file has moved, set the new one."
    else:
        advice = "Open the location in a browser to see what it serves, then correct it."
    raise PermanentDownloadError(f"{shown}: expected HTTP 200, found {found}. {advice}")


@contextmanager
def _translated_errors(shown: str) -> Iterator[None]:
    """Turn what httpx raises into this module's two kinds of failure."""
    import httpx

    try:
        yield
    except httpx.TimeoutException as error:
        raise RetryableError(
            "an answer in time",
            f"silence ({type(error).__name__})",
            "Check the network, or raise the timeout.",
        ) from error
    except httpx.TooManyRedirects as error:
        raise PermanentDownloadError(
            f"{shown}: expected at most {MAX_REDIRECTS} redirects, found more (a loop?). "
            "Give the final address of the file."
        ) from error
    except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as error:
        # No cause: the text of these may quote a piece of the URL, a misread password with it.
        raise PermanentDownloadError(
            f"{shown}: expected a valid http(s) URL, redirects included, found one that cannot be "
            f"requested ({type(error).__name__}). Correct it; percent-encode what is special in a "
            "user, password or query."
        ) from None
    except httpx.RemoteProtocolError as error:
        raise RetryableError(
            "an HTTP answer", str(error), "Check that the port speaks HTTP, then run again."
        ) from error
    except httpx.TransportError as error:
        if _is_caused_by(error, ssl.SSLCertVerificationError):
            raise PermanentDownloadError(
                f"{shown}: expected a certificate this machine trusts, found {error}. "
                "Correct the host name, or add the authority's certificate by SSL_CERT_FILE."
            ) from error
        raise RetryableError(
            "a connection",
            f"{type(error).__name__} {error}".strip(),
            "Check the host name, the network and any proxy.",
        ) from error


def _is_caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, kind):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def _int(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _retry_after_s(text: str | None) -> float | None:
    """Return the seconds a Retry-After header asks for; None if it is neither number nor date."""
    if text is None:
        return None
    if (seconds := _int(text.strip())) is not None:
        return float(seconds)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())

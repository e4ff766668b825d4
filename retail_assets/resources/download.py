"""A file behind a URL or a path: ask which version the origin holds, fetch it whole or not at all.

Here: HTTP, retries, limits, integrity, secrets in locations. Not here: what the bytes mean
(tabular.py), where they are kept, when they are asked for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import ssl
import stat
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self, TypeVar
from urllib.parse import unquote

from retail_assets.errors import PermanentError, TransientError

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

MAX_REDIRECTS = 10
CHUNK_BYTES = 1 << 20

_T = TypeVar("_T")
_URL = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]+)://(?P<host>[^/?#]*)(?P<path>[^?#]*)(?P<query>\?[^#]*)?", re.I
)
_MISSPELT_URL = re.compile(r"https?:(?!//)", re.I)
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")
_CONTENT_RANGE = re.compile(r"bytes (?:(?P<first>\d+)-\d+|\*)/(?P<total>\d+|\*)")
_HEAD_REFUSED = frozenset({400, 403, 405, 501})  # 403: a signed URL is often signed for GET alone
_TRANSIENT = frozenset({408, 429})  # and every 5xx
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


class DownloadError(Exception):
    """The file could not be had.

    The message names the file, what was expected, what was found and what to do.
    """


class PermanentDownloadError(DownloadError, PermanentError):
    """Asking again will not help: the location, the file, a limit or this machine must change."""


class TransientDownloadError(DownloadError, TransientError):
    """Still failing after the retries, but likely to pass: ask again later.

    `retry_after_s` is the wait in seconds the server asked for, when it asked for one.
    """

    retry_after_s: float | None = None


@dataclass(frozen=True)
class Retries:
    """How often and how patiently to ask again.

    Waits are in seconds, doubled each time, with up to one second of jitter. A server's Retry-After
    replaces the wait; one above `max_retry_after_s` ends the attempts, as asking sooner is futile.
    """

    attempts: int = 5
    first_wait_s: float = 1.0
    max_wait_s: float = 30.0
    max_retry_after_s: float = 120.0
    sleep: Callable[[float], None] = time.sleep


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

    def same_version(self, other: Fingerprint) -> bool:
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

    `location` is redacted, `size` is in bytes as stored, `seconds` is the time the fetch took. When
    `not_modified`, `path` is None and `size` and `sha256` are those of the previous version, as far
    as known.
    """

    location: str
    path: Path | None
    etag: str | None
    last_modified: str | None
    size: int | None
    sha256: str | None
    not_modified: bool
    seconds: float

    @property
    def fingerprint(self) -> Fingerprint:
        """Return the version fetched, to compare with a later probe by `same_version`."""
        return Fingerprint(self.location, self.etag, self.last_modified, self.size)


def is_url(location: str) -> bool:
    """Return whether the location is fetched by HTTP; all others are paths, `file://` included."""
    return location.lstrip().lower().startswith(("http://", "https://"))


def redact(location: str) -> str:
    """Return the location without user, password, query values and fragment; a path as it is.

    All query values go, as no list of secret parameter names is complete.
    """
    location = _stripped(location)
    if _MISSPELT_URL.match(location):
        return location.partition(":")[0] + ":***"
    parts = _URL.match(location)
    if parts is None:
        return location
    host, query = parts["host"], parts["query"] or ""
    if "@" in host:
        host = "***@" + host.rpartition("@")[2]
    elif not _HOST_AND_PORT.fullmatch(host):
        # Invalid; an unquoted / ? or # in a password ends the host early, so trust none of it.
        return f"{parts['scheme']}://***"
    if len(query) > 1:
        pairs = (pair.partition("=") for pair in query[1:].split("&"))
        query = "?" + "&".join(f"{name}=***" if equals else "***" for name, equals, _ in pairs)
    return f"{parts['scheme']}://{host}{parts['path']}{query}"


def probe(
    location: str, *, timeout_s: float = 30.0, retries: Retries = PROBE_RETRIES
) -> Fingerprint:
    """Return the version the origin holds now, without transferring its body.

    Asks by HEAD, or where that is refused by a GET closed at once. `timeout_s` bounds each silence,
    not the whole. Raises PermanentDownloadError and TransientDownloadError.
    """
    location = _stripped(location)
    if not is_url(location):
        path = _local_path(location)
        return _path_fingerprint(path, _stat(path))
    shown = redact(location)
    with _client(timeout_s) as client:
        return _retrying(retries, shown, lambda: _probe_url(client, location, shown))


def fetch(
    location: str,
    target: Path,
    *,
    previous: Fingerprint | Download | None = None,
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
    started = time.monotonic()
    location = _stripped(location)
    known = previous.fingerprint if isinstance(previous, Download) else previous
    path = None if is_url(location) else _local_path(location)
    shown = redact(location) if path is None else str(path)
    if target.is_dir():
        raise PermanentDownloadError(
            f"{target}: expected a file name to write {shown} to, found a directory. "
            "Name a file inside it."
        )
    with (
        _progress_bar(shown, sys.stderr.isatty() if progress is None else progress) as advance,
        _Part(target, shown, max_bytes, advance) as part,
    ):
        if path is None:
            with _client(timeout_s) as client:
                usable = _usable(known, location)
                found = _retrying(
                    retries, shown, lambda: _fetch_url(client, location, shown, usable, part)
                )
        else:
            found = _retrying(retries, shown, lambda: _copy(path, known, part))
        if found is not None:
            part.commit()
            return Download(
                shown,
                target,
                found.etag,
                found.last_modified,
                part.size,
                part.sha256,
                not_modified=False,
                seconds=time.monotonic() - started,
            )
    assert known is not None  # only a known version can be found unchanged
    return Download(
        shown,
        None,
        known.etag,
        known.last_modified,
        known.size,
        previous.sha256 if isinstance(previous, Download) else None,
        not_modified=True,
        seconds=time.monotonic() - started,
    )


def _stripped(location: str) -> str:
    """Return a URL without the blanks around it; in a path they belong to the name."""
    bare = location.strip()
    return bare if _URL.match(bare) or _MISSPELT_URL.match(bare) else location


# --- paths ----------------------------------------------------------------------------------------


def _local_path(location: str) -> Path:
    """Return the absolute path a location names; raises PermanentDownloadError if it names none."""
    if not location.strip() or "\0" in location:
        raise PermanentDownloadError(
            f"{location!r}: expected a path or an http(s) URL, found no usable text. "
            "Give one of the two."
        )
    if _MISSPELT_URL.match(location):
        raise PermanentDownloadError(
            f"{redact(location)}: expected two slashes after http: or https:, found otherwise. "
            "Correct the URL."
        )
    parts = _URL.match(location)
    if parts is not None and parts["scheme"].lower() != "file":
        raise PermanentDownloadError(
            f"{redact(location)}: expected http://, https://, file:// or a path, found the scheme "
            f"{parts['scheme']!r}. Download the file by other means and give its path."
        )
    if parts is not None:
        if parts["host"].lower() not in ("", "localhost"):
            raise PermanentDownloadError(
                f"{redact(location)}: expected file:///absolute/path, found a host name. "
                "Write three slashes, or mount the share and give its path."
            )
        location = unquote(location[parts.end("host") :])
    try:
        return Path(os.path.abspath(Path(location).expanduser()))
    except RuntimeError as error:  # ~nobody: no such home
        raise PermanentDownloadError(
            f"{location}: expected an existing home directory after ~, found none. "
            "Write the path in full."
        ) from error


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


def _copy(path: Path, previous: Fingerprint | None, part: _Part) -> Fingerprint | None:
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
        raise _RetryableError(
            "a file at rest",
            f"one that changed during the copy ({before.size} bytes before, {after.size} after)",
            "Wait until its writer has finished, or have it written elsewhere and moved in.",
        )
    return after


def _read(source: IO[bytes], path: Path) -> bytes:
    try:
        return source.read(CHUNK_BYTES)
    except OSError as error:  # network drives and failing disks
        raise _RetryableError(
            "a readable file",
            f"{error.strerror} while reading",
            f"Check the disk or the share that holds {path.name}.",
        ) from error


# --- http -----------------------------------------------------------------------------------------


@contextmanager
def _client(timeout_s: float) -> Iterator[httpx.Client]:
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
    return (
        None
        if previous.etag is None
        else Fingerprint(previous.location, previous.etag, None, previous.size)
    )


def _probe_url(client: httpx.Client, location: str, shown: str) -> Fingerprint:
    with _translated_errors(shown):
        with client.stream("HEAD", location) as response:
            if response.status_code not in _HEAD_REFUSED:
                _require(response, shown, 200)
                return _response_fingerprint(response, shown)
        with client.stream("GET", location, headers={"Range": "bytes=0-0"}) as response:
            _require(response, shown, 200, 206, 416)  # 416: the file is empty
            return _response_fingerprint(response, shown)


def _fetch_url(
    client: httpx.Client, location: str, shown: str, previous: Fingerprint | None, part: _Part
) -> Fingerprint | None:
    """Stream the body into the part, going on where the last attempt broke off if the server can.

    Returns the version received, or None if it is the previous one.
    """
    headers = {}
    if part.resumable_etag is not None:
        headers = {"Range": f"bytes={part.size}-", "If-Range": part.resumable_etag}
    elif previous is not None:
        known = {"If-None-Match": previous.etag, "If-Modified-Since": previous.last_modified}
        headers = {n: v for n, v in known.items() if v and v.isascii() and v.isprintable()}
    resuming = part.resumable_etag is not None
    with (
        _translated_errors(shown) as phase,
        client.stream("GET", location, headers=headers) as response,
    ):
        if response.status_code == 304 and headers and not resuming:
            return None
        if resuming and response.status_code in (206, 416):
            _require_rest(response, part)
        else:
            _require(response, shown, 200)
        version = _response_fingerprint(response, shown)
        if not resuming and previous is not None and version.same_version(previous):
            return None  # a server that knows no conditional requests: hang up before the body
        _receive(response, shown, version, part, phase)
        return version


def _require_rest(response: httpx.Response, part: _Part) -> None:
    """Raise unless the answer holds what the part still lacks, of the same version."""
    span = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    if (
        span is None
        or span["first"] != str(part.size)
        or response.headers.get("ETag") != part.resumable_etag  # some heed Range, not If-Range
        or _encoding(response) != "identity"
    ):
        part.resumable_etag = None  # the next attempt starts afresh
        raise _RetryableError(
            f"the bytes from {part.size} on",
            "others",
            "If it persists, download the file by other means and give its path.",
        )


def _receive(
    response: httpx.Response, shown: str, version: Fingerprint, part: _Part, phase: _Phase
) -> None:
    encoding = _encoding(response)
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        # httpx would hand on such a body undecoded, without a word.
        raise PermanentDownloadError(
            f"{shown}: expected the file as it is, found Content-Encoding {encoding!r}, "
            "which is not understood here. Ask the server's operator to honour `Accept-Encoding: "
            "identity`, or download the file by other means and give its path."
        )
    declared = _int(response.headers.get("Content-Length"))
    if response.status_code == 206:
        part.expect(version.size)
    else:
        part.restart(declared)
        if (
            encoding == "identity"
            and version.etag is not None
            and not version.etag.startswith("W/")
        ):
            part.resumable_etag = version.etag
    phase.in_body = True
    raw = response.iter_raw()  # as they arrive: a bigger chunk would be lost when the line drops
    for chunk in raw if encoding == "identity" else _decompressed(raw):
        part.write(chunk)
    if declared is not None and response.num_bytes_downloaded != declared:
        raise _truncated(f"{response.num_bytes_downloaded} bytes of {declared}")
    if encoding == "identity" and version.size is not None and part.size != version.size:
        raise _truncated(f"{part.size} bytes of {version.size}")


def _decompressed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the content of a gzip or zlib stream in bounded pieces.

    httpx's own decoder drops every gzip member but the first and takes a stream without its end for
    a whole one.
    """
    decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        for chunk in chunks:
            rest = chunk
            while rest:
                if decoder.eof:
                    rest = rest.lstrip(b"\0")  # padding between members
                    if not rest:
                        break
                    decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
                if piece := decoder.decompress(rest, CHUNK_BYTES):
                    yield piece
                rest = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
        if piece := decoder.flush():
            yield piece
    except zlib.error as error:
        raise _truncated(f"a compressed body that does not decompress ({error})") from error
    if not decoder.eof:
        raise _truncated("a compressed body without its end")


def _encoding(response: httpx.Response) -> str:
    found: str = response.headers.get("Content-Encoding", "")
    return found.strip().lower() or "identity"


def _response_fingerprint(response: httpx.Response, shown: str) -> Fingerprint:
    """Return the version an answer names; a size only where it is that of the file itself."""
    size = None
    if _encoding(response) == "identity":
        size = _int(response.headers.get("Content-Length"))
        if response.status_code in (206, 416):
            total = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
            size = _int(total["total"]) if total is not None else None
    return Fingerprint(
        shown, response.headers.get("ETag"), response.headers.get("Last-Modified"), size
    )


def _require(response: httpx.Response, shown: str, *expected: int) -> None:
    """Raise unless the status is one of those expected."""
    status = response.status_code
    if status in expected:
        return
    found = f"HTTP {status} {response.reason_phrase}".strip()
    if response.history:
        found += f" from {redact(str(response.url))}"
    if status in _TRANSIENT or status >= 500:
        raise _RetryableError(
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


@dataclass
class _Phase:
    in_body: bool = False


@contextmanager
def _translated_errors(shown: str) -> Iterator[_Phase]:
    """Turn what httpx raises into this module's two kinds of failure."""
    import httpx

    phase = _Phase()
    try:
        yield phase
    except httpx.TimeoutException as error:
        raise _RetryableError(
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
        if phase.in_body:
            raise _truncated("a connection closed before the end") from error
        raise _RetryableError(
            "an HTTP answer", str(error), "Check that the port speaks HTTP, then run again."
        ) from error
    except httpx.TransportError as error:
        if _is_caused_by(error, ssl.SSLCertVerificationError):
            raise PermanentDownloadError(
                f"{shown}: expected a certificate this machine trusts, found {error}. "
                "Correct the host name, or add the authority's certificate by SSL_CERT_FILE."
            ) from error
        raise _RetryableError(
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


# --- common to both -------------------------------------------------------------------------------


class _RetryableError(Exception):
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


def _truncated(found: str) -> _RetryableError:
    return _RetryableError(
        "the whole body",
        found,
        "Download the file by other means and give its path, or use a mirror.",
        becomes=PermanentDownloadError,
    )


def _retrying(retries: Retries, shown: str, attempt: Callable[[], _T]) -> _T:
    """Return what `attempt` returns, asked again while its failures are retryable."""
    from tenacity import Retrying, retry_if_exception_type, wait_exponential_jitter

    backoff = wait_exponential_jitter(
        initial=retries.first_wait_s, max=retries.max_wait_s, jitter=1.0
    )
    made = 0

    def asked_wait(state: RetryCallState) -> float | None:
        failure = state.outcome.exception() if state.outcome is not None else None
        return failure.retry_after_s if isinstance(failure, _RetryableError) else None

    def wait(state: RetryCallState) -> float:
        asked = asked_wait(state)
        return backoff(state) if asked is None else asked

    def stop(state: RetryCallState) -> bool:
        nonlocal made
        made = state.attempt_number
        return made >= retries.attempts or (asked_wait(state) or 0.0) > retries.max_retry_after_s

    try:
        return Retrying(
            retry=retry_if_exception_type(_RetryableError),
            wait=wait,
            stop=stop,
            sleep=retries.sleep,
            reraise=True,
        )(attempt)
    except _RetryableError as failure:
        tries = "1 attempt" if made == 1 else f"{made} attempts"
        asked = (
            ""
            if failure.retry_after_s is None
            else f" The server asks to wait {failure.retry_after_s:.0f} s."
        )
        error = failure.becomes(f"{shown}: {failure}{asked} Gave up after {tries}.")
        if isinstance(error, TransientDownloadError):
            error.retry_after_s = failure.retry_after_s
            # Not where the server asks for a longer wait than is made here: then a step may wait.
            error.already_retried = made >= retries.attempts
        raise error from failure.__cause__


class _Part(AbstractContextManager["_Part"]):
    """The temporary file beside the target, with its size and SHA-256; gone on exit.

    Its name is its own, so that two processes fetching to one target cannot mix their bytes.
    Nothing is made on disk before a body begins.
    """

    def __init__(
        self,
        target: Path,
        shown: str,
        max_bytes: int | None,
        advance: Callable[[int, int | None], None],
    ) -> None:
        self.size = 0
        self.resumable_etag: str | None = None
        self._target = target
        self._path = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        self._shown = shown
        self._max_bytes = max_bytes
        self._advance = advance
        self._total: int | None = None
        self._hash = hashlib.sha256()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            # A full disk may refuse the last flush; that failure is already on its way.
            with suppress(OSError):
                self._file.close()
            self._path.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def refuse_source(self, source: Path) -> None:
        """Raise if the target is the source itself, which is never to be touched."""
        if self._target.exists() and self._target.samefile(source):
            raise PermanentDownloadError(
                f"{self._shown}: expected a target other than the source, found the same "
                "file. Name another target."
            )

    def restart(self, total: int | None) -> None:
        """Forget what was received and expect `total` bytes, if known."""
        self.size, self.resumable_etag, self._hash = 0, None, hashlib.sha256()
        self.expect(total)
        with self._local_errors():
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("xb")
            self._file.seek(0)
            self._file.truncate()

    def expect(self, total: int | None) -> None:
        """Raise if a file of `total` bytes is over the limit."""
        self._total = total
        if total is not None:
            self._check_limit(total, f"{total} bytes announced")
        self._advance(self.size, total)

    def write(self, chunk: bytes) -> None:
        assert self._file is not None  # restart() opens it
        self._check_limit(self.size + len(chunk), "a longer body")
        with self._local_errors():
            self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)
        self._advance(self.size, self._total)

    def commit(self) -> None:
        """Put the file in the target's place in one step, its bytes on disk first."""
        assert self._file is not None
        with self._local_errors():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._path, self._target)

    def _check_limit(self, size: int, found: str) -> None:
        if self._max_bytes is not None and size > self._max_bytes:
            raise PermanentDownloadError(
                f"{self._shown}: expected at most {self._max_bytes} bytes, found {found}. "
                "Check that the location is the right file; if it is, raise the size limit."
            )

    @contextmanager
    def _local_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PermanentDownloadError(
                f"{self._target}: expected to write {self._shown} there, found {error.strerror}. "
                "Check free space and permissions."
            ) from error


@contextmanager
def _progress_bar(shown: str, enabled: bool) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a function that takes the bytes received so far and the total, if known."""
    if not enabled:
        yield lambda completed, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    name = shown.partition("?")[0].rstrip("/").rpartition("/")[2] or shown
    columns = (
        TextColumn("{task.description}", markup=False),  # a file's name may hold brackets
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda completed, total: bar.update(task, completed=completed, total=total)

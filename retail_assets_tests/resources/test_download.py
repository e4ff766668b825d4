"""Tests of retail_assets.resources.http, against a real HTTP server and real files."""

import gzip
import hashlib
import logging
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retail_assets.resources.http import DownloadError, Fingerprint, fetch, is_url, probe, redact
from retail_assets.resources.http.download import MAX_REDIRECTS, Download
from retail_assets.resources.http.locations import PermanentDownloadError, TransientDownloadError
from retail_assets.resources.http.retries import Retries

BODY = bytes(range(256)) * 1200  # 300 kB: several network reads
ETAG = '"v1"'
MODIFIED = "Tue, 01 Oct 2024 08:00:00 GMT"

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Gives each path's answers in turn, the last one for ever."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self.server.origin.requests.append((self.command, self.path, dict(self.headers)))
        path = unquote(self.path.partition("?")[0])
        answers = self.server.origin.answers.get(path, [status(404)])
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    do_HEAD = do_GET  # noqa: N815  (the name that http.server looks for)

    def begin(self, code: int, **headers: str | int) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send_body(self, data: bytes) -> None:
        if self.command != "HEAD":
            self.wfile.write(data)

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    origin: "Origin"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that hung up."""


@dataclass
class Origin:
    """The server as the tests see it: what it answers, what it was asked."""

    base: str
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def on(self, path: str, *answers: Answer) -> str:
        self.answers[path] = list(answers)
        return self.base + path

    def headers(self, name: str) -> list[str | None]:
        return [headers.get(name) for _, _, headers in self.requests]


def status(code: int, **headers: str | int) -> Answer:
    return lambda handler: handler.begin(code, Content_Length=0, **headers)


def body(data: bytes = BODY, **headers: str | int) -> Answer:
    def answer(handler: Handler) -> None:
        handler.begin(200, **{"Content_Length": len(data), **headers})
        handler.send_body(data)

    return answer


def dropped(sent: int = 100_000, **headers: str | int) -> Answer:
    """Announce the whole body, close after `sent` bytes of it."""

    def answer(handler: Handler) -> None:
        handler.begin(200, Content_Length=len(BODY), **headers)
        handler.send_body(BODY[:sent])
        handler.hang_up()

    return answer


def reset(handler: Handler) -> None:
    """Break the connection without an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


def chunked(*chunks: bytes, ended: bool = True) -> Answer:
    def answer(handler: Handler) -> None:
        handler.begin(200, Transfer_Encoding="chunked")
        for chunk in chunks:
            handler.send_body(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        if ended:
            handler.send_body(b"0\r\n\r\n")
        handler.hang_up()

    return answer


def conditional(handler: Handler) -> None:
    """Answer 304 to whoever holds this version."""
    held = handler.headers["If-None-Match"], handler.headers["If-Modified-Since"]
    if ETAG in held or MODIFIED in held:
        handler.begin(304, ETag=ETAG)
    else:
        body(ETag=ETAG, Last_Modified=MODIFIED)(handler)


def ranged(handler: Handler) -> None:
    """Go on where the client asks."""
    asked = handler.headers["Range"]
    if asked is None or handler.headers["If-Range"] not in (None, ETAG):
        return body(ETag=ETAG)(handler)
    first = int(asked.removeprefix("bytes=").partition("-")[0])
    last = int(asked.partition("-")[2] or len(BODY) - 1)
    data = BODY[first : last + 1]
    span = f"bytes {first}-{last}/{len(BODY)}"
    handler.begin(206, Content_Length=len(data), Content_Range=span, ETag=ETAG)
    return handler.send_body(data)


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Origin]:
    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    scheme = "https" if tls else "http"
    server.origin = Origin(f"{scheme}://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.origin
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def origin() -> Iterator[Origin]:
    with serving() as origin:
        yield origin


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def waits() -> list[float]:
    """The seconds `retries` would have slept."""
    return []


@pytest.fixture
def retries(waits: list[float]) -> Retries:
    return Retries(attempts=3, sleep=waits.append)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A target whose previous content must survive every failure."""
    path = tmp_path / "target" / "file.bin"
    path.parent.mkdir()
    path.write_bytes(b"previous")
    return path


def assert_untouched(target: Path) -> None:
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert target.read_bytes() == b"previous"


def assert_fetched(download: Download, target: Path, content: bytes = BODY) -> None:
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert target.read_bytes() == content
    assert (download.path, download.size) == (target, len(content))
    assert download.sha256 == hashlib.sha256(content).hexdigest()
    assert not download.not_modified


def refused_port() -> int:
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        port: int = probe_socket.getsockname()[1]
    return port


# --- what arrives ---------------------------------------------------------------------------------


def test_fetch_stores_the_body_and_what_the_server_says_of_it(origin: Origin, target: Path) -> None:
    url = origin.on("/file.zip", body(ETag=ETAG, Last_Modified=MODIFIED))
    download = fetch(url, target)
    assert_fetched(download, target)
    assert download.fingerprint == Fingerprint(url, ETAG, MODIFIED, len(BODY))
    assert origin.headers("Accept-Encoding") == ["identity"]


def test_fetch_makes_the_folder_of_the_target(origin: Origin, tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.bin"
    assert_fetched(fetch(origin.on("/file", body()), target), target)


def test_fetched_file_has_the_usual_permissions(origin: Origin, target: Path) -> None:
    other = target.parent.parent / "other"
    other.write_bytes(b"")
    fetch(origin.on("/file", body()), target)
    assert target.stat().st_mode == other.stat().st_mode


def test_an_empty_body_is_an_empty_file(origin: Origin, target: Path) -> None:
    assert_fetched(fetch(origin.on("/file", body(b"")), target), target, b"")


@pytest.mark.parametrize(
    "compressed",
    [
        pytest.param(gzip.compress(BODY), id="gzip"),
        pytest.param(gzip.compress(BODY[:1000]) + gzip.compress(BODY[1000:]), id="members"),
        pytest.param(gzip.compress(BODY) + bytes(512), id="padded"),
    ],
)
def test_a_body_compressed_in_transit_is_stored_as_the_file(
    origin: Origin, target: Path, compressed: bytes
) -> None:
    url = origin.on("/file", body(compressed, Content_Encoding="gzip", ETag=ETAG))
    assert_fetched(fetch(url, target), target)
    assert probe(url).size is None  # the length announced is not the file's


def test_a_deflated_body_is_stored_as_the_file(origin: Origin, target: Path) -> None:
    url = origin.on("/file", body(zlib.compress(BODY), Content_Encoding="deflate"))
    assert_fetched(fetch(url, target), target)


def test_a_gzip_file_is_not_decompressed(origin: Origin, target: Path) -> None:
    content = gzip.compress(BODY)
    url = origin.on("/file.gz", body(content, Content_Type="application/gzip"))
    assert_fetched(fetch(url, target), target, content)


def test_a_compressed_body_without_its_end_is_refused(
    origin: Origin, target: Path, retries: Retries
) -> None:
    cut = gzip.compress(BODY)[:-20]
    url = origin.on("/file", body(cut, Content_Encoding="gzip"))
    with pytest.raises(PermanentDownloadError, match=r"without its end.* give its path"):
        fetch(url, target, retries=retries)
    assert_untouched(target)


def test_a_damaged_compressed_body_is_refused(
    origin: Origin, target: Path, retries: Retries
) -> None:
    url = origin.on("/file", body(b"no gzip at all", Content_Encoding="gzip"))
    with pytest.raises(PermanentDownloadError, match=r"does not decompress.* give its path"):
        fetch(url, target, retries=retries)
    assert_untouched(target)


def test_an_unknown_content_encoding_is_refused(origin: Origin, target: Path) -> None:
    url = origin.on("/file", body(b"x", Content_Encoding="br"))
    with pytest.raises(PermanentDownloadError, match=r"'br'.* Ask the server's operator"):
        fetch(url, target)
    assert_untouched(target)


# --- what has not changed -------------------------------------------------------------------------


@pytest.mark.parametrize(("etag", "modified"), [(ETAG, None), (None, MODIFIED), (ETAG, MODIFIED)])
def test_an_unchanged_url_is_not_transferred(
    origin: Origin, target: Path, etag: str | None, modified: str | None
) -> None:
    url = origin.on("/file", conditional)
    download = fetch(url, target, previous=Fingerprint(url, etag, modified, len(BODY)))
    assert download.not_modified
    assert download.path is None
    assert download.size == len(BODY)
    assert origin.headers("If-None-Match") == [etag]
    assert origin.headers("If-Modified-Since") == [modified]
    assert_untouched(target)


def test_a_fetch_can_be_the_previous_of_the_next(origin: Origin, target: Path) -> None:
    url = origin.on("/file", conditional)
    first = fetch(url, target)
    second = fetch(url, target, previous=first.fingerprint)
    assert second.not_modified
    assert second.fingerprint == first.fingerprint


def test_a_changed_url_is_transferred(origin: Origin, target: Path) -> None:
    url = origin.on("/file", conditional)
    download = fetch(url, target, previous=Fingerprint(url, '"v0"', None, 3))
    assert_fetched(download, target)


def test_a_server_without_conditional_requests_is_left_before_the_body(
    origin: Origin, target: Path
) -> None:
    url = origin.on("/file", body(ETag=ETAG))
    assert fetch(url, target, previous=Fingerprint(url, ETAG)).not_modified
    assert_untouched(target)


def test_the_version_of_another_url_does_not_count(origin: Origin, target: Path) -> None:
    url = origin.on("/file", conditional)
    other = Fingerprint(origin.base + "/other", ETAG, MODIFIED, len(BODY))
    assert_fetched(fetch(url, target, previous=other), target)
    assert origin.headers("If-None-Match") == [None]


def test_a_date_does_not_count_where_the_query_was_redacted(origin: Origin, target: Path) -> None:
    url = origin.on("/file", conditional)
    july = Fingerprint(redact(url + "?month=07"), None, MODIFIED, len(BODY))
    assert_fetched(fetch(url + "?month=08", target, previous=july), target)
    assert fetch(url + "?month=07", target, previous=replace(july, etag=ETAG)).not_modified


def test_304_to_an_unconditional_request_is_refused(origin: Origin, target: Path) -> None:
    with pytest.raises(PermanentDownloadError, match=r"found HTTP 304 .*Open the location"):
        fetch(origin.on("/file", status(304)), target)
    assert_untouched(target)


# --- redirects ------------------------------------------------------------------------------------


def test_redirects_are_followed(origin: Origin, target: Path) -> None:
    url = origin.on("/a", status(302, Location="/b"))
    origin.on("/b", status(301, Location=origin.base + "/c"))
    origin.on("/c", body())
    download = fetch(url, target)
    assert_fetched(download, target)
    assert download.location == url


def test_a_redirect_loop_is_refused(origin: Origin, target: Path) -> None:
    url = origin.on("/a", status(302, Location="/b"))
    origin.on("/b", status(302, Location="/a"))
    with pytest.raises(PermanentDownloadError, match=r"at most 10 redirects.* final address"):
        fetch(url, target)
    assert len(origin.requests) == MAX_REDIRECTS + 1
    assert_untouched(target)


def test_a_redirect_out_of_http_is_refused(origin: Origin, target: Path) -> None:
    url = origin.on("/a", status(302, Location="ftp://127.0.0.1/file"))
    with pytest.raises(PermanentDownloadError, match=r"valid http\(s\) URL.* Correct it"):
        fetch(url, target)
    assert_untouched(target)


def test_credentials_do_not_follow_to_another_server(origin: Origin, target: Path) -> None:
    with serving() as other:
        other.on("/b", body())
        there = other.base.replace("127.0.0.1", "localhost") + "/b"
        url = origin.on("/a", status(302, Location=there)).replace("//", "//user:secret@")
        fetch(url, target)
        assert other.headers("Authorization") == [None]
    assert origin.headers("Authorization") == ["Basic dXNlcjpzZWNyZXQ="]


# --- what fails at once ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (401, "Check the user, password or token"),
        (403, "Check the user, password or token"),
        (404, "Check the location"),
        (410, "Check the location"),
        (204, "Open the location in a browser"),
        (206, "Open the location in a browser"),
        (418, "Open the location in a browser"),
    ],
)
def test_a_refusal_is_not_retried(
    origin: Origin, target: Path, retries: Retries, waits: list[float], code: int, advice: str
) -> None:
    url = origin.on("/file", status(code))
    with pytest.raises(PermanentDownloadError, match=f"expected HTTP 200, found HTTP {code}") as e:
        fetch(url, target, retries=retries)
    assert str(e.value).startswith(url)
    assert advice in str(e.value)
    assert len(origin.requests) == 1
    assert waits == []
    assert_untouched(target)


@pytest.mark.parametrize("location", ["s3://bucket/key", "ftp://host/file", "gs://bucket/key"])
def test_another_scheme_is_refused(target: Path, location: str) -> None:
    for ask in (lambda: fetch(location, target), lambda: probe(location)):
        with pytest.raises(PermanentDownloadError, match=r"found the scheme.* give its path"):
            ask()
    assert_untouched(target)


@pytest.mark.parametrize("location", ["http://", "http://user:pa/ss@host/", "http://[::1/x"])
def test_an_invalid_url_is_refused_without_its_password(target: Path, location: str) -> None:
    with pytest.raises(PermanentDownloadError, match="Correct it") as error:
        fetch(location, target)
    assert "pa" not in str(error.value).replace("password", "").replace("percent", "")
    assert error.value.__cause__ is None
    assert_untouched(target)


@pytest.mark.parametrize("location", ["", "  ", "a\0b"])
def test_no_location_is_refused(target: Path, location: str) -> None:
    with pytest.raises(PermanentDownloadError, match="Give one of the two"):
        fetch(location, target)


def test_a_misspelt_url_is_no_path(target: Path) -> None:
    with pytest.raises(PermanentDownloadError, match=r"^https:\*\*\*: .*Correct the URL") as error:
        fetch("https:/user:secret@host/file", target)
    assert "secret" not in str(error.value)


def test_a_directory_as_target_is_refused(origin: Origin, tmp_path: Path) -> None:
    with pytest.raises(PermanentDownloadError, match="Name a file inside it"):
        fetch(origin.on("/file", body()), tmp_path)
    assert origin.requests == []


def test_a_folder_that_cannot_be_made_is_reported(origin: Origin, target: Path) -> None:
    with pytest.raises(PermanentDownloadError, match="Check free space and permissions"):
        fetch(origin.on("/file", body()), target / "below" / "a file")
    assert_untouched(target)


def test_a_file_the_disk_does_not_take_is_reported(origin: Origin, target: Path) -> None:
    resource = pytest.importorskip("resource")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, usual[1]))  # the writing end sees EFBIG
    try:
        with pytest.raises(PermanentDownloadError, match="Check free space and permissions"):
            fetch(origin.on("/file", body()), target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert_untouched(target)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate by openssl")
def test_an_untrusted_certificate_is_not_retried(
    tmp_path: Path, target: Path, retries: Retries, waits: list[float]
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    names = ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with (
        serving(context) as origin,
        pytest.raises(PermanentDownloadError, match=r"certificate this machine trusts.* SSL_CERT"),
    ):
        fetch(origin.on("/file", body()), target, retries=retries)
    assert waits == []
    assert_untouched(target)


# --- what is asked again --------------------------------------------------------------------------


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_retried(
    origin: Origin, target: Path, retries: Retries, waits: list[float], code: int
) -> None:
    url = origin.on("/file", status(code), status(code), body())
    assert_fetched(fetch(url, target, retries=retries), target)
    assert waits == [1.0, 2.0]


def test_a_lasting_failure_is_transient(origin: Origin, target: Path, retries: Retries) -> None:
    url = origin.on("/file", status(503))
    with pytest.raises(TransientDownloadError, match=r"HTTP 503.* Wait and run.* 3 attempts") as e:
        fetch(url, target, retries=retries)
    assert e.value.retry_after_s is None
    assert len(origin.requests) == 3
    assert_untouched(target)


def test_retry_after_sets_the_wait(
    origin: Origin, target: Path, retries: Retries, waits: list[float]
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    url = origin.on("/file", status(429, Retry_After=7), status(503, Retry_After=date), body())
    assert_fetched(fetch(url, target, retries=retries), target)
    assert waits[0] == 7.0
    assert 50.0 < waits[1] <= 60.0


def test_a_retry_after_out_of_bounds_ends_the_attempts(
    origin: Origin, target: Path, retries: Retries, waits: list[float]
) -> None:
    url = origin.on("/file", status(429, Retry_After=3600))
    with pytest.raises(TransientDownloadError, match=r"Wait and run.* 3600 s\. .*1 attempt") as e:
        fetch(url, target, retries=retries)
    assert e.value.retry_after_s == 3600.0
    assert waits == []
    assert_untouched(target)


def test_an_unreadable_retry_after_is_ignored(
    origin: Origin, target: Path, retries: Retries, waits: list[float]
) -> None:
    url = origin.on("/file", status(503, Retry_After="soon"), body())
    assert_fetched(fetch(url, target, retries=retries), target)
    assert waits == [1.0]


def test_a_refused_connection_is_transient(target: Path, retries: Retries) -> None:
    url = f"http://127.0.0.1:{refused_port()}/file"
    with pytest.raises(TransientDownloadError, match=r"refused.* Check the host name"):
        fetch(url, target, retries=retries)
    assert_untouched(target)


def test_a_reset_connection_is_retried(origin: Origin, target: Path, retries: Retries) -> None:
    url = origin.on("/file", reset, body())
    assert_fetched(fetch(url, target, retries=retries), target)


def test_a_silent_server_is_transient(origin: Origin, target: Path, retries: Retries) -> None:
    released = threading.Event()

    def silent(handler: Handler) -> None:
        released.wait(5)
        handler.close_connection = True

    url = origin.on("/file", silent)
    started = time.monotonic()
    with pytest.raises(TransientDownloadError, match=r"silence.* raise the timeout"):
        fetch(url, target, timeout_s=0.1, retries=retries)
    released.set()
    assert time.monotonic() - started < 3
    assert_untouched(target)


def test_silence_in_the_body_is_transient(origin: Origin, target: Path, retries: Retries) -> None:
    released = threading.Event()

    def stall(handler: Handler) -> None:
        handler.begin(200, Content_Length=len(BODY))
        handler.send_body(BODY[:1000])
        handler.wfile.flush()
        released.wait(5)

    with pytest.raises(TransientDownloadError, match=r"silence.* raise the timeout"):
        fetch(origin.on("/file", stall), target, timeout_s=0.1, retries=retries)
    released.set()
    assert_untouched(target)


def test_a_slow_but_steady_body_is_no_silence(origin: Origin, target: Path) -> None:
    def trickle(handler: Handler) -> None:
        handler.begin(200, Content_Length=5)
        for byte in b"steady"[:5]:
            handler.send_body(bytes([byte]))
            handler.wfile.flush()
            time.sleep(0.1)

    download = fetch(origin.on("/file", trickle), target, timeout_s=0.3)
    assert_fetched(download, target, b"stead")


# --- bodies cut short -----------------------------------------------------------------------------


def test_a_body_cut_short_is_fetched_again(
    origin: Origin, target: Path, retries: Retries, waits: list[float]
) -> None:
    url = origin.on("/file", dropped(), body())
    assert_fetched(fetch(url, target, retries=retries), target)
    assert origin.headers("Range") == [None, None]
    assert len(waits) == 1


@pytest.mark.parametrize(
    "answer",
    [dropped(), dropped(0), chunked(BODY[:1000], ended=False)],
    ids=["length", "nothing", "chunked"],
)
def test_a_body_always_cut_short_is_permanent(
    origin: Origin, target: Path, retries: Retries, answer: Answer
) -> None:
    url = origin.on("/file", answer)
    with pytest.raises(
        PermanentDownloadError, match=r"the whole body.* give its path.* after 3 attempts"
    ):
        fetch(url, target, retries=retries)
    assert len(origin.requests) == 3
    assert_untouched(target)


def test_a_shorter_body_leaves_nothing_of_a_longer_one(
    origin: Origin, target: Path, retries: Retries
) -> None:
    url = origin.on("/file", dropped(), body(b"short"))
    assert_fetched(fetch(url, target, retries=retries), target, b"short")


def test_a_strong_etag_lets_it_go_on(origin: Origin, target: Path, retries: Retries) -> None:
    url = origin.on("/file", dropped(ETag=ETAG), status(503), ranged)
    assert_fetched(fetch(url, target, retries=retries), target)
    assert origin.headers("If-Range") == [None, ETAG, ETAG]
    assert origin.headers("Range")[2] == "bytes=100000-"


def test_a_version_changed_meanwhile_starts_afresh(
    origin: Origin, target: Path, retries: Retries
) -> None:
    url = origin.on("/file", dropped(ETag='"v0"'), ranged)
    assert_fetched(fetch(url, target, retries=retries), target)


def test_the_rest_of_another_version_is_never_joined(
    origin: Origin, target: Path, retries: Retries
) -> None:
    def heeds_no_if_range(handler: Handler) -> None:
        span = f"bytes 100000-{len(BODY) - 1}/{len(BODY)}"
        rest = bytes(len(BODY) - 100_000)
        handler.begin(206, Content_Length=len(rest), Content_Range=span, ETag='"v2"')
        handler.send_body(rest)

    url = origin.on("/file", dropped(ETag=ETAG), heeds_no_if_range, body())
    assert_fetched(fetch(url, target, retries=retries), target)
    assert origin.headers("Range") == [None, "bytes=100000-", None]


def test_a_rest_never_given_is_transient(origin: Origin, target: Path) -> None:
    url = origin.on("/file", dropped(ETag=ETAG), status(416, Content_Range="bytes */5"))
    with pytest.raises(TransientDownloadError, match=r"bytes from 100000 on.* give its path"):
        fetch(url, target, retries=Retries(attempts=2, sleep=lambda seconds: None))
    assert_untouched(target)


# --- limits ---------------------------------------------------------------------------------------


def test_an_announced_length_over_the_limit_is_refused_unread(origin: Origin, target: Path) -> None:
    def only_headers(handler: Handler) -> None:
        handler.begin(200, Content_Length=10**12)
        handler.hang_up()

    url = origin.on("/file", only_headers)
    with pytest.raises(PermanentDownloadError, match=r"at most 1000 bytes.* raise the size limit"):
        fetch(url, target, max_bytes=1000)
    assert len(origin.requests) == 1
    assert_untouched(target)


def test_an_unannounced_body_over_the_limit_is_refused(origin: Origin, target: Path) -> None:
    url = origin.on("/file", chunked(b"a" * 600, b"b" * 600, ended=False))
    with pytest.raises(PermanentDownloadError, match=r"at most 1000 bytes.* raise the size limit"):
        fetch(url, target, max_bytes=1000)
    assert_untouched(target)


def test_the_limit_is_on_the_decompressed_size(origin: Origin, target: Path) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    url = origin.on("/file", body(bomb, Content_Encoding="gzip"))
    tracemalloc.start()
    try:
        with pytest.raises(PermanentDownloadError, match="raise the size limit"):
            fetch(url, target, max_bytes=len(bomb) * 2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 25_000_000  # never the whole in memory
    assert_untouched(target)


def test_a_file_of_exactly_the_limit_is_taken(origin: Origin, target: Path) -> None:
    assert_fetched(fetch(origin.on("/a", body()), target, max_bytes=len(BODY)), target)
    assert_fetched(fetch(origin.on("/b", chunked(BODY)), target, max_bytes=len(BODY)), target)


# --- probe ----------------------------------------------------------------------------------------


def test_probe_asks_no_body(origin: Origin) -> None:
    url = origin.on("/file", body(ETag=ETAG, Last_Modified=MODIFIED))
    assert probe(url) == Fingerprint(url, ETAG, MODIFIED, len(BODY))
    assert [method for method, _, _ in origin.requests] == ["HEAD"]


@pytest.mark.parametrize("code", [403, 405, 501])
@pytest.mark.parametrize("answer", [ranged, body(ETag=ETAG)], ids=["range", "no range"])
def test_probe_manages_without_head(origin: Origin, code: int, answer: Answer) -> None:
    url = origin.on("/file", status(code), answer)
    assert probe(url) == Fingerprint(url, ETAG, None, len(BODY))
    assert [method for method, _, _ in origin.requests] == ["HEAD", "GET"]
    assert origin.headers("Range") == [None, "bytes=0-0"]


def test_probe_of_an_empty_file_without_head(origin: Origin) -> None:
    url = origin.on("/file", status(405), status(416, Content_Range="bytes */0"))
    assert probe(url).size == 0


def test_probe_of_what_is_missing_or_forbidden_is_permanent(origin: Origin) -> None:
    with pytest.raises(PermanentDownloadError, match=r"HTTP 404.* Check the location"):
        probe(origin.on("/missing", status(404)))
    with pytest.raises(PermanentDownloadError, match=r"HTTP 403.* Check the user"):
        probe(origin.on("/forbidden", status(403)))


def test_probe_retries(origin: Origin, retries: Retries) -> None:
    url = origin.on("/file", status(503), reset, body(ETag=ETAG))
    assert probe(url, retries=retries).etag == ETAG
    with pytest.raises(TransientDownloadError, match="Wait and run again"):
        probe(origin.on("/down", status(500)), retries=retries)


def test_token_changes_with_each_field() -> None:
    first = Fingerprint("http://h/f", "e", "m", 1)
    others = [
        replace(first, location="http://h/g"),
        replace(first, etag=None),
        replace(first, last_modified=None),
        replace(first, size=None),
        replace(first, size=2),
    ]
    assert len({each.token() for each in [first, *others]}) == 6
    assert first.token() == Fingerprint("http://h/f", "e", "m", 1).token()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("e", "m", 1), ("e", "n", None), True),  # servers behind a balancer differ in dates
        (("e", "m", 1), ("f", "m", 1), False),
        (("W/e", None, None), ("e", None, None), True),
        ((None, "m", 1), (None, "m", None), True),
        ((None, "m", 1), ("e", "m", 1), True),
        ((None, "m", 1), (None, "m", 2), False),
        ((None, "m", 1), (None, "n", 1), False),
        ((None, None, 1), (None, None, 1), False),  # a size alone proves nothing
        (("e", None, 1), (None, None, 1), False),
    ],
)
def test_same_version(one: tuple[Any, ...], other: tuple[Any, ...], same: bool) -> None:
    left, right = Fingerprint("http://h/f", *one), Fingerprint("http://h/f", *other)
    assert left.same_version(right) is same
    assert right.same_version(left) is same
    assert not left.same_version(replace(right, location="http://h/g"))


# --- paths ----------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a source.bin"
    path.write_bytes(BODY)
    return path


def test_a_path_is_copied(source: Path, target: Path) -> None:
    before = source.stat()
    download = fetch(str(source), target)
    assert_fetched(download, target)
    assert download.fingerprint == probe(str(source))
    assert source.read_bytes() == BODY
    assert source.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("host", ["", "localhost"])
def test_a_file_url_is_a_path(source: Path, target: Path, host: str) -> None:
    url = f"file://{host}" + str(source).replace(" ", "%20")
    assert_fetched(fetch(url, target), target)
    assert probe(url).location == str(source)


def test_a_file_url_of_another_host_is_refused(target: Path) -> None:
    with pytest.raises(PermanentDownloadError, match=r"a host name.* Write three slashes"):
        fetch("file://share/file", target)


def test_home_and_the_working_directory_are_understood(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(source.parent))
    monkeypatch.chdir(source.parent)
    for location in (f"~/{source.name}", source.name):
        assert probe(location) == probe(str(source))
        assert_fetched(fetch(location, target), target)


def test_an_unknown_home_is_reported(target: Path) -> None:
    with pytest.raises(PermanentDownloadError, match="Write the path in full"):
        fetch("~nobody-of-that-name/file", target)


def test_an_unchanged_path_is_not_copied(source: Path, target: Path) -> None:
    first = fetch(str(source), target.with_name("first"))
    target.with_name("first").unlink()
    second = fetch(str(source), target, previous=first.fingerprint)
    assert second.not_modified
    assert second.path is None
    assert fetch(str(source), target, previous=probe(str(source))).not_modified
    assert_untouched(target)


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_path_is_copied(source: Path, target: Path, change: str) -> None:
    previous = probe(str(source))
    moment = source.stat().st_mtime_ns
    content = BODY + b"more" if change == "size" else BODY[::-1]
    source.write_bytes(content)
    os.utime(source, ns=(moment, moment + (change == "time")))
    assert probe(str(source)).token() != previous.token()
    assert_fetched(fetch(str(source), target, previous=previous), target, content)


def test_a_missing_path_is_permanent(tmp_path: Path, target: Path) -> None:
    for ask in (probe, lambda location: fetch(location, target)):
        with pytest.raises(PermanentDownloadError, match=r"found nothing.* Check the path"):
            ask(str(tmp_path / "missing"))
    assert_untouched(target)


def test_a_path_below_a_file_is_permanent(source: Path) -> None:
    with pytest.raises(PermanentDownloadError, match="Check the path and its permissions"):
        probe(str(source / "below"))


def test_a_directory_is_permanent(tmp_path: Path, target: Path) -> None:
    with pytest.raises(PermanentDownloadError, match=r"found a directory.* Name one file"):
        fetch(str(tmp_path), target)
    assert_untouched(target)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path, target: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PermanentDownloadError, match=r"pipe or socket.* Name one file"):
        fetch(str(tmp_path / "pipe"), target)
    assert_untouched(target)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_an_unreadable_path_is_permanent(source: Path, target: Path) -> None:
    source.chmod(0)
    with pytest.raises(PermanentDownloadError, match="Check its permissions"):
        fetch(str(source), target)
    assert_untouched(target)


def test_a_path_over_the_limit_is_refused(source: Path, target: Path) -> None:
    with pytest.raises(PermanentDownloadError, match=r"at most 1000 bytes.* raise the size limit"):
        fetch(str(source), target, max_bytes=1000)
    assert_untouched(target)


def test_the_source_is_never_its_own_target(source: Path) -> None:
    link = source.with_name("link")
    link.symlink_to(source)
    for same in (source, link):
        with pytest.raises(PermanentDownloadError, match="Name another target"):
            fetch(str(source), same)
    assert source.read_bytes() == BODY


@pytest.mark.parametrize("content", [BODY + b"more", BODY[::-1]], ids=["size", "time"])
def test_a_path_still_being_written_is_waited_for(
    source: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    retries: Retries,
    waits: list[float],
    content: bytes,
) -> None:
    usual, asked = os.fstat, []

    def written_meanwhile(descriptor: int) -> os.stat_result:
        asked.append(descriptor)
        if len(asked) == 2:  # the look after the first copy
            source.write_bytes(content)
        return usual(descriptor)

    os.utime(source, ns=(0, 0))
    monkeypatch.setattr(os, "fstat", written_meanwhile)
    assert_fetched(fetch(str(source), target, retries=retries), target, content)
    assert len(waits) == 1


def test_a_path_that_never_rests_is_transient(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, retries: Retries
) -> None:
    usual = os.fstat

    def grow(descriptor: int) -> os.stat_result:
        with source.open("ab") as writer:
            writer.write(b"more")
        return usual(descriptor)

    monkeypatch.setattr(os, "fstat", grow)
    with pytest.raises(TransientDownloadError, match="Wait until its writer has finished"):
        fetch(str(source), target, retries=retries)
    assert_untouched(target)


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://user:secret@host:8443/f.zip", "https://***@host:8443/f.zip"),
        ("https://secret@host/f.zip", "https://***@host/f.zip"),
        ("https://user:sec@ret@host/f.zip", "https://***@host/f.zip"),
        ("HTTPS://host/f?id=1&token=secret#secret", "HTTPS://host/f?id=***&token=***"),
        ("https://host/f?secret", "https://host/f?***"),
        ("https://user:sec/ret@host/f", "https://***"),
        ("https://user:sec#ret@host/f", "https://***"),
        (" https://user:secret@host/f", "https://***@host/f"),
        ("https:/user:secret@host/f", "https:***"),
        ("s3://key:secret@bucket/f", "s3://***@bucket/f"),
        ("https://[::1]:80/@scope/f", "https://[::1]:80/@scope/f"),
        ("/data/what?.csv", "/data/what?.csv"),
        (r"C:\data\file.csv", r"C:\data\file.csv"),
    ],
)
def test_redact(location: str, shown: str) -> None:
    assert redact(location) == shown


@given(
    st.from_regex(r"[!-~]{0,20}", fullmatch=True),
    st.sampled_from(["http://", "https://u:{}@h/f", "https://h/f?a={}", "https://h/f#{}"]),
)
def test_redact_twice_is_redact_once(secret: str, pattern: str) -> None:
    once = redact(pattern.format(secret))
    assert redact(once) == once


@given(st.from_regex(r"[A-Za-z0-9:@=&+%._~!$'()*,;-]{1,20}", fullmatch=True))
def test_redact_hides_any_secret(secret: str) -> None:
    marked = f"<{secret}>"
    for pattern in ("https://u:{}@h/f", "https://{}@h/f", "https://h/f?a={}", "https://h/f#{}"):
        shown = redact(pattern.format(marked))
        assert marked not in shown
        assert shown.count(">") == 0 or "=***" in shown  # at most a name of a name=value is left


@pytest.mark.parametrize(
    "answer",
    [
        status(404),
        status(503),
        status(302, Location="/elsewhere?token=secret2"),
        dropped(),
        body(b"x" * 2000),
        body(b"x", Content_Encoding="br"),
        reset,
    ],
)
def test_no_error_and_no_log_shows_a_secret(
    origin: Origin,
    target: Path,
    retries: Retries,
    caplog: pytest.LogCaptureFixture,
    answer: Answer,
) -> None:
    caplog.set_level(logging.INFO)
    url = origin.on("/file", answer).replace("//", "//user:secret0@") + "?token=secret1"
    with pytest.raises(DownloadError) as error:
        fetch(url, target, max_bytes=1000, retries=retries)
    text = str(error.value) + caplog.text
    assert redact(url) in text
    assert "secret" not in text
    assert_untouched(target)


def test_a_fetched_url_shows_no_secret(
    origin: Origin, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    url = origin.on("/file", body(ETag=ETAG)).replace("//", "//user:secret@") + "?token=secret"
    assert "secret" not in f"{fetch(url, target)} {probe(url)} {caplog.text}"
    assert origin.headers("Authorization") == ["Basic dXNlcjpzZWNyZXQ="] * 2
    assert {path for _, path, _ in origin.requests} == {"/file?token=secret"}


# --- the rest -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://h/f", True),
        ("HTTPS://h/f", True),
        ("file:///f", False),
        ("gs://b/f", False),
        ("/f", False),
        ("https", False),
    ],
)
def test_is_url(location: str, expected: bool) -> None:
    assert is_url(location) is expected


def test_progress_is_shown_on_demand(
    origin: Origin, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = origin.on("/a [b].zip", dropped(), body())
    quick = Retries(sleep=lambda seconds: None)
    assert_fetched(fetch(url, target, progress=True, retries=quick), target)
    shown = capsys.readouterr()
    assert "[b].zip" in shown.err
    assert shown.out == ""
    fetch(url, target)
    assert capsys.readouterr().err == ""  # no terminal here


def test_an_interrupted_fetch_leaves_nothing(origin: Origin, target: Path) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    url = origin.on("/file", dropped())
    with pytest.raises(KeyboardInterrupt):
        fetch(url, target, retries=Retries(sleep=interrupt))
    assert_untouched(target)


def test_two_fetches_to_one_target_do_not_mix(origin: Origin, target: Path) -> None:
    halfway = threading.Barrier(4)

    def meeting(content: bytes) -> Answer:
        def answer(handler: Handler) -> None:
            handler.begin(200, Content_Length=2 * len(content))
            handler.send_body(content)
            handler.wfile.flush()
            halfway.wait(5)
            handler.send_body(content)

        return answer

    urls = [origin.on(f"/{n}", meeting(bytes([n]) * 100_000)) for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        downloads = list(pool.map(lambda url: fetch(url, target), urls))
    assert len({download.sha256 for download in downloads}) == 4
    content = target.read_bytes()
    assert len(content) == 200_000
    assert len(set(content)) == 1
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_import_loads_no_client_library() -> None:
    code = (
        "import sys, retail_assets.resources.http;"
        "print([m for m in ('httpx', 'tenacity', 'rich', 'dagster') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"

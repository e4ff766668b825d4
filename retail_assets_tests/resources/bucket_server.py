"""A bucket in this process: what Google's client and delta-rs send, recorded and answered.

Here: a server that answers by a script, and ``Store``, a script that keeps objects as Cloud
Storage does: by its JSON API, which Google's client speaks, and by its XML API, which delta-rs
does. Not here: a real server behind a proxy (live/storage_xml_proxy.py).

Source: "Cloud Storage JSON API v1" and "XML API", cloud.google.com/storage/docs.
"""

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

import google_crc32c

from retail_assets.resources.lake.bucket import GcsLake

BUCKET = "shop-lake"
UPLOAD = f"/upload/storage/v1/b/{BUCKET}/o"
OBJECTS = f"/storage/v1/b/{BUCKET}/o"
CREATED = datetime(2026, 11, 21, 10, tzinfo=UTC)
_PAGE = 1000


@dataclass(frozen=True)
class Request:
    """One request, as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def is_xml(self) -> bool:
        """Whether it is of the XML API: delta-rs's."""
        return not self.path.startswith(("/storage/", "/upload/"))

    @property
    def object(self) -> str:
        """The object that it is about: by its path, or by the metadata of an upload."""
        if self.is_xml:
            return unquote(self.path).removeprefix(f"/{BUCKET}").removeprefix("/")
        if "/o/" in self.path:
            return unquote(self.path.partition("/o/")[2])
        return str(self.metadata.get("name", self.query.get("name", "")))

    @property
    def metadata(self) -> dict[str, Any]:
        """The JSON part of an upload."""
        found = re.search(rb"\{.*?\}(?=\r\n|$)", self.body)
        return dict(json.loads(found[0])) if found and self.method == "POST" else {}

    @property
    def content(self) -> bytes:
        """The bytes of an upload."""
        if self.is_xml:
            return self.body
        boundary = self.headers["content-type"].partition('boundary="')[2].strip('"').encode()
        part = self.body.split(b"--" + boundary)[2]
        return part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")

    @property
    def condition(self) -> int | None:
        """The generation that the object must have to be written; 0: it must not be there."""
        said = self.query.get("ifGenerationMatch", self.headers.get("x-goog-if-generation-match"))
        return None if said is None else int(said)


@dataclass(frozen=True)
class Answer:
    """One answer; ``lost`` is one that never arrives."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    lost: bool = False


Script = Callable[[Request], Answer]


def crc32c(content: bytes) -> str:
    """The checksum as Cloud Storage writes it."""
    new: Any = google_crc32c.Checksum  # the library has no types
    return base64.b64encode(new(content).digest()).decode()


def stored(name: str, content: bytes, generation: int = 7, at: datetime = CREATED) -> Answer:
    """An object's resource."""
    resource = {
        "kind": "storage#object",
        "name": name,
        "bucket": BUCKET,
        "size": str(len(content)),
        "generation": str(generation),
        "crc32c": crc32c(content),
        "timeCreated": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    return Answer(body=json.dumps(resource).encode())


def media(content: bytes, request: Request) -> Answer:
    """An object's bytes, or the range asked for."""
    hashes = {"X-Goog-Hash": f"crc32c={crc32c(content)}"}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not asked:
        return Answer(body=content, headers=hashes)
    start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
    ranged = {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
    return Answer(206, content[start : end + 1], ranged)


def refusal(status: int, reason: str, message: str) -> Answer:
    """An error of the JSON API."""
    error = {"reason": reason, "message": message, "domain": "global"}
    body = {"error": {"code": status, "message": message, "errors": [error]}}
    return Answer(status, json.dumps(body).encode())


def refusal_of(request: Request, status: int, code: str, message: str) -> Answer:
    """An error of the API that the request is of."""
    if not request.is_xml:
        return refusal(status, code, message)
    text = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    return Answer(status, text.encode(), {"Content-Type": "application/xml"})


def nothing_there(request: Request) -> Answer:
    """An empty bucket that takes what is uploaded, and forgets it."""
    if request.method == "GET" and request.path == OBJECTS:
        return Answer(body=b'{"kind": "storage#objects"}')
    if request.method == "POST":
        return stored(request.object, request.content)
    if request.method == "DELETE":
        return Answer(204)
    return refusal(404, "notFound", f"No such object: {request.object}")


class Store:
    """A script: a bucket that keeps what is uploaded, by the conditions of each upload.

    ``clock`` says when an object is made.
    """

    def __init__(self, clock: Callable[[], datetime] = lambda: CREATED) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.generation = 0
        self._clock = clock
        self._made: dict[str, datetime] = {}

    def __call__(self, request: Request) -> Answer:
        """What Cloud Storage would answer."""
        if request.is_xml:
            return self._xml(request)
        name, query = request.object, request.query
        if request.method == "GET" and request.path == OBJECTS:
            first, end = query.get("startOffset", ""), query.get("endOffset", "~")
            items = [self.resource(n) for n in self.names(query.get("prefix", "")) if first <= n]
            return Answer(
                body=json.dumps({"items": [x for x in items if x["name"] < end]}).encode()
            )
        held = self.objects.get(name)
        if request.method == "POST":
            if not self._put(request):
                return refusal(412, "conditionNotMet", "At least one precondition failed.")
        elif held is None or query.get("generation", str(held[1])) != str(held[1]):
            return refusal(404, "notFound", f"No such object: {name}")
        elif request.method == "DELETE":
            del self.objects[name]
            return Answer(204)
        elif query.get("alt") == "media":
            return media(held[0], request)
        return Answer(body=json.dumps(self.resource(name)).encode())

    def _xml(self, request: Request) -> Answer:
        name = request.object
        if request.method == "GET" and "list-type" in request.query:
            return self._xml_list(request.query)
        if request.method == "PUT" and not request.query:
            if not self._put(request):
                return refusal_of(request, 412, "PreconditionFailed", "A precondition failed.")
            return Answer(headers=self._xml_headers(name))
        held = self.objects.get(name)
        if held is None:
            return refusal_of(request, 404, "NoSuchKey", "The specified key does not exist.")
        if request.method == "DELETE":
            del self.objects[name]
            return Answer(204)
        assert request.method in ("GET", "HEAD"), request
        answer = media(held[0], request)
        return Answer(answer.status, answer.body, answer.headers | self._xml_headers(name))

    def _xml_headers(self, name: str) -> dict[str, str]:
        generation = str(self.objects[name][1])
        changed = format_datetime(self._when(name), usegmt=True)
        return {
            "ETag": f'"{generation}"',
            "x-goog-generation": generation,
            "Last-Modified": changed,
        }

    def _xml_list(self, query: dict[str, str]) -> Answer:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = max(query.get("start-after", ""), query.get("continuation-token", ""))
        keys: list[str] = []
        folders: dict[str, None] = {}
        for name in self.names(prefix):
            if name <= after:
                continue
            head, cut, _ = name[len(prefix) :].partition(delimiter or "\0")
            if delimiter and cut:
                folders[f"{prefix}{head}{cut}"] = None
            else:
                keys.append(name)
        page = keys[:_PAGE]
        text = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(self.objects[name][0])}</Size>"
            f'<ETag>"{self.objects[name][1]}"</ETag>'
            f"<LastModified>{self._when(name):%Y-%m-%dT%H:%M:%S.%fZ}</LastModified></Contents>"
            for name in page
        )
        text += "".join(
            f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
            for folder in folders
        )
        if len(keys) > _PAGE:
            text += f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"
        body = f"<ListBucketResult>{text}</ListBucketResult>"
        return Answer(body=body.encode(), headers={"Content-Type": "application/xml"})

    def _put(self, request: Request) -> bool:
        held = self.objects.get(request.object)
        if request.condition not in (None, held[1] if held else 0):
            return False
        self.generation += 1
        self.objects[request.object] = (request.content, self.generation)
        self._made[request.object] = self._clock()
        return True

    def resource(self, name: str) -> dict[str, Any]:
        """An object as the JSON API tells of it."""
        return dict(json.loads(stored(name, *self.objects[name], self._when(name)).body))

    def _when(self, name: str) -> datetime:
        return self._made.get(name, CREATED)

    def names(self, prefix: str = "processed/") -> list[str]:
        """Names of the objects that begin with ``prefix``, in order."""
        return sorted(name for name in self.objects if name.startswith(prefix))


class Server:
    """Records every request, and answers by a script, one at a time."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.script: Script = nothing_there
        self.url = ""
        self._lock = threading.Lock()

    def answer(self, request: Request) -> Answer:
        """What the script says."""
        with self._lock:
            self.requests.append(request)
            return self.script(request)

    def sent(self, method: str, path: str = "") -> list[Request]:
        """Requests so far, of a method and below a path."""
        return [r for r in self.requests if r.method == method and r.path.startswith(path)]


class _Handler(BaseHTTPRequestHandler):
    server_of: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        url = urlsplit(self.path)
        request = Request(
            self.command,
            url.path.removeprefix("/download") if "alt=media" in url.query else url.path,
            dict(parse_qsl(url.query, keep_blank_values=True)),
            {name.lower(): value for name, value in self.headers.items()},
            self.rfile.read(int(self.headers.get("Content-Length") or 0)),
        )
        answer = self.server_of.answer(request)
        if answer.lost:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Type" not in answer.headers:
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _serve  # noqa: N815


@contextmanager
def running() -> Iterator[Server]:
    """A server while the block runs."""
    server = Server()
    handler = type("Handler", (_Handler,), {"server_of": server})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def lake_at(url: str | None, folder: Path, **fields: Any) -> GcsLake:
    """A lake in the bucket of a server."""
    options: dict[str, Any] = {"retry_s": 3, **fields}
    return GcsLake(
        root=f"gs://{BUCKET}", cache_dir=str(folder / "cache"), emulator_host=url, **options
    )

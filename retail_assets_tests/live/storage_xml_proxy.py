"""A proxy before fake-gcs-server, for what that lacks of the XML API, which delta-rs speaks.

Requests of the JSON API pass as they are. Those of the XML API are asked of the JSON API:

* An upload on condition of a generation (``x-goog-if-generation-match``), which the server's own
  XML API ignores: without it no commit is exclusive.
* A listing after a name (``start-after``), which it ignores too, in one page.
* An object's bytes, by range; its deletion; an absent bucket, which it does not tell from an absent
  object.

Its own words on both are at the top of .ci/servers.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit
from xml.sax.saxutils import escape

_JSON_API = ("/storage/", "/upload/", "/download/", "/resumable/", "/batch/", "/b/", "/_internal/")
_NOT_PASSED = {"host", "connection", "content-length", "transfer-encoding"}
_KEPT = {"etag", "last-modified", "content-range", "x-goog-generation", "x-goog-hash"}
_XML = [("Content-Type", "application/xml")]

Headers = list[tuple[str, str]]
Answer = tuple[int, Headers, bytes]


class _Handler(BaseHTTPRequestHandler):
    backend: str  # host:port
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if self.path.startswith(_JSON_API):
                status, headers, content = self._ask(self.command, self.path, body, self._passed())
            else:
                status, headers, content = self._xml(body)
        except (OSError, HTTPException):  # the server is gone, and so is its answer
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _NOT_PASSED:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = _serve  # noqa: N815

    def _passed(self) -> dict[str, str]:
        return {k: v for k, v in self.headers.items() if k.lower() not in _NOT_PASSED}

    def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        connection = HTTPConnection(self.backend, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _xml(self, body: bytes) -> Answer:
        url = urlsplit(self.path)
        bucket, _, name = unquote(url.path).lstrip("/").partition("/")
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if self.command == "GET" and "list-type" in query:
            return self._list(bucket, query)
        if self.command == "PUT" and not query:
            return self._put(bucket, name, body)
        path = f"/storage/v1/b/{quote(bucket)}/o/{quote(name, safe='')}"
        if self.command in ("GET", "HEAD") and not query:
            asked = {k: v for k, v in self._passed().items() if k.lower() == "range"}
            status, headers, content = self._ask("GET", f"{path}?alt=media", b"", asked)
        elif self.command == "DELETE" and not query:
            status, headers, content = self._ask("DELETE", path, b"", {})
        else:
            return _refusal(501, "NotImplemented", f"{self.command} {self.path}")
        if status == 404:
            return self._absent(bucket)
        return status, [(k, v) for k, v in headers if k.lower() in _KEPT], content

    def _put(self, bucket: str, name: str, body: bytes) -> Answer:
        query = {"uploadType": "media", "name": name}
        if (expected := self.headers.get("x-goog-if-generation-match")) is not None:
            query["ifGenerationMatch"] = expected
        path = f"/upload/storage/v1/b/{quote(bucket)}/o?{urlencode(query)}"
        kind = self.headers.get("Content-Type") or "application/octet-stream"
        status, _, content = self._ask("POST", path, body, {"Content-Type": kind})
        if status == 404:
            return self._absent(bucket)
        if status != 200:
            code = "PreconditionFailed" if status == 412 else "InternalError"
            return _refusal(status, code, content.decode(errors="replace"))
        made = json.loads(content)
        headers = [("ETag", f'"{made["etag"]}"'), ("x-goog-generation", str(made["generation"]))]
        return 200, headers, b""

    def _absent(self, bucket: str) -> Answer:
        if self._ask("GET", f"/storage/v1/b/{quote(bucket)}", b"", {})[0] == 404:
            return _refusal(404, "NoSuchBucket", "The specified bucket does not exist.")
        return _refusal(404, "NoSuchKey", "The specified key does not exist.")

    def _list(self, bucket: str, query: dict[str, str]) -> Answer:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("start-after", "")
        asked = {"prefix": prefix, "startOffset": after}
        found: list[str] = []
        folders: dict[str, None] = {}
        while True:
            path = f"/storage/v1/b/{quote(bucket)}/o?{urlencode(asked)}"
            status, _, content = self._ask("GET", path, b"", {})
            if status == 404:
                return self._absent(bucket)
            page = json.loads(content)
            for item in page.get("items", []):
                head, cut, _ = item["name"][len(prefix) :].partition(delimiter or "\0")
                if item["name"] <= after:
                    continue
                if cut:
                    folders[f"{prefix}{head}{cut}"] = None
                    continue
                found.append(
                    f"<Contents><Key>{escape(item['name'])}</Key><Size>{item['size']}</Size>"
                    f'<ETag>"{item["etag"]}"</ETag><LastModified>{item["updated"]}</LastModified>'
                    "</Contents>"
                )
            if "nextPageToken" not in page:
                break
            asked["pageToken"] = page["nextPageToken"]
        found += [f"<CommonPrefixes><Prefix>{escape(x)}</Prefix></CommonPrefixes>" for x in folders]
        text = f"<ListBucketResult>{''.join(found)}</ListBucketResult>"
        return 200, _XML, text.encode()


def _refusal(status: int, code: str, message: str) -> Answer:
    text = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    return status, _XML, text.encode()


def _server(backend: str, port: int) -> ThreadingHTTPServer:
    handler = type("Handler", (_Handler,), {"backend": urlsplit(backend).netloc})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    return server


@contextmanager
def storage_xml_proxy(backend: str, port: int) -> Iterator[None]:
    """A proxy in this process while the block runs."""
    with _server(backend, port) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":  # storage_xml_proxy.py http://127.0.0.1:4443 4444
    _server(sys.argv[1], int(sys.argv[2])).serve_forever()

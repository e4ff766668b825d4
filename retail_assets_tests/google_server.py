"""A small HTTP server that answers Google's clients by the REST references, for doctor's tests.

Here: Cloud Storage's buckets.get and testIamPermissions, BigQuery's jobs.insert (dry run),
datasets.get, tables.get and testIamPermissions, and the metadata server of a machine with an
attached service account. Not here: anything that stores data (live/).
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

BUCKET_PERMISSIONS = {
    "storage.objects.get",
    "storage.objects.list",
    "storage.objects.create",
    "storage.objects.delete",
    "storage.buckets.get",
}
ACCOUNT = "retail@shop-1234.iam.gserviceaccount.com"


@dataclass
class Google:
    """What the project holds and grants; and what was asked of it."""

    url: str = ""
    buckets: dict[str, str] = field(default_factory=lambda: {"shop-lake": "EU"})
    bucket_permissions: set[str] = field(default_factory=lambda: set(BUCKET_PERMISSIONS))
    datasets: dict[str, str] = field(default_factory=dict)
    tables: set[str] = field(default_factory=set)
    table_permissions: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    disabled: set[str] = field(default_factory=set)
    public: bool = False
    busy: int = 0
    requests: list[tuple[str, str, Any, str | None]] = field(default_factory=list)

    def bodies(self, path_ends: str) -> list[Any]:
        """Bodies of the requests to a path, in order."""
        return [body for _, path, body, _ in self.requests if path.endswith(path_ends)]


class _Refusal(Exception):  # noqa: N818
    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


class _Handler(BaseHTTPRequestHandler):
    google: Google
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # a response in one packet: two would wait for each other 40 ms

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET", None)

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer("POST", json.loads(text) if text else None)

    def _answer(self, method: str, body: Any) -> None:
        url = urlsplit(self.path)
        self.google.requests.append((method, url.path, body, self.headers.get("Authorization")))
        status, answer = 200, None
        try:
            if self.google.busy and not url.path.startswith("/computeMetadata"):
                self.google.busy -= 1
                raise _Refusal(503, "backendError", "try again")
            answer = self._route(method, url.path.strip("/").split("/"), parse_qs(url.query), body)
        except _Refusal as refusal:
            status = refusal.status
            error = {"reason": refusal.reason, "message": str(refusal), "domain": "global"}
            answer = {"error": {"code": status, "message": str(refusal), "errors": [error]}}
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        kind = "text/plain" if isinstance(answer, bytes) else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if url.path.startswith("/computeMetadata") or url.path == "/":
            self.send_header("Metadata-Flavor", "Google")
        self.end_headers()
        self.wfile.write(data)

    def _need(self, permission: str, on: str) -> None:
        service = permission.partition(".")[0]
        if service in self.google.disabled:
            api = f"{service}.googleapis.com"
            raise _Refusal(403, "accessNotConfigured", f"{api} has not been used in project 1")
        if permission in self.google.refused:
            raise _Refusal(403, "forbidden", f"Permission {permission} denied on {on}")

    def _route(self, method: str, path: list[str], query: dict[str, list[str]], body: Any) -> Any:
        match path:
            case [""]:
                return b""
            case ["computeMetadata", "v1", *rest]:
                return self._metadata(rest)
            case ["storage", "v1", "b", bucket, *rest]:
                self._need("storage.buckets.get" if not rest else "storage", bucket)
                if bucket not in self.google.buckets:
                    raise _Refusal(404, "notFound", "The specified bucket does not exist.")
                if rest:
                    held = self.google.bucket_permissions
                    granted = [name for name in query["permissions"] if name in held]
                    return {"kind": "storage#testIamPermissionsResponse", "permissions": granted}
                return self._bucket(bucket)
            case ["bigquery", "v2", "projects", project, "jobs"]:
                return self._job(project, body)
            case ["bigquery", "v2", "projects", project, "datasets", dataset]:
                self._need("bigquery.datasets.get", dataset)
                if dataset not in self.google.datasets:
                    raise _Refusal(404, "notFound", f"Not found: Dataset {project}:{dataset}")
                return {
                    "datasetReference": {"projectId": project, "datasetId": dataset},
                    "location": self.google.datasets[dataset],
                }
            case ["bigquery", "v2", "projects", project, "datasets", dataset, "tables", table]:
                name, _, verb = table.partition(":")
                if verb == "testIamPermissions":
                    granted = self.google.table_permissions
                    return {"permissions": [p for p in body["permissions"] if p in granted]}
                self._need("bigquery.tables.get", name)
                if f"{dataset}.{name}" not in self.google.tables:
                    raise _Refusal(404, "notFound", f"Not found: Table {project}:{dataset}.{name}")
                reference = {"projectId": project, "datasetId": dataset, "tableId": name}
                return {"tableReference": reference}
        raise AssertionError(f"not expected: {method} {path}")

    def _bucket(self, name: str) -> dict[str, Any]:
        location = self.google.buckets[name]
        return {
            "kind": "storage#bucket",
            "id": name,
            "name": name,
            "location": location,
            "locationType": "region" if "-" in location else "multi-region",
            "iamConfiguration": {
                "uniformBucketLevelAccess": {"enabled": not self.google.public},
                "publicAccessPrevention": "inherited" if self.google.public else "enforced",
            },
        }

    def _job(self, project: str, body: Any) -> dict[str, Any]:
        configuration = body["configuration"]
        assert configuration["dryRun"] is True, "doctor must run nothing"
        self._need("bigquery.jobs.create", project)
        if project == "no-such-project":
            raise _Refusal(404, "notFound", f"Not found: Project {project}")
        sql = configuration["query"]["query"]
        if sql.startswith("create schema"):
            self._need("bigquery.datasets.create", project)
        if sql.startswith("create table"):
            self._need("bigquery.tables.create", sql)
        return {
            "kind": "bigquery#job",
            "configuration": configuration,
            "jobReference": {"projectId": project, "location": body["jobReference"]["location"]},
            "statistics": {"query": {"totalBytesProcessed": "0"}},
            "status": {"state": "DONE"},
        }

    def _metadata(self, rest: list[str]) -> Any:
        match rest:
            case ["project", "project-id"]:
                return b"shop-1234"
            case ["universe", _]:
                return b"googleapis.com"
            case ["instance", "service-accounts", _, "token"]:
                return {"access_token": "the-token", "expires_in": 3600, "token_type": "Bearer"}
            case ["instance", "service-accounts", _]:
                return {"email": ACCOUNT, "scopes": [], "aliases": ["default"]}
        return b""


@contextmanager
def running() -> Iterator[Google]:
    """A server on localhost; it has a bucket in the EU and grants everything."""
    google = Google()
    handler = type("Handler", (_Handler,), {"google": google})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        google.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield google
        finally:
            server.shutdown()
            thread.join()

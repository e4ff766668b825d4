"""A BigQuery of one process, for contract tests: it records what Google's own client sends.

It answers by the REST reference (v2) and keeps just enough state to tell whether a table holds the
right rows after a fault, by day (under "" where it has no partitions): load jobs from ``files``,
the swap's and record's statements, the counts. Faults are ordered by the test. Not here: SQL at
large (the emulator's part).
"""

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PROJECT = "test-project"
_ROOT = f"/bigquery/v2/projects/{PROJECT}"
_RANGE = re.compile(r"BETWEEN DATE '([\d-]+)' AND DATE '([\d-]+)'")
_NAME = rf"`{PROJECT}[.](\w+[.]\w+)`"

Json = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, str]
    body: Json
    headers: dict[str, str]


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests that match, after ``skip`` of them.

    ``drop`` is "before" (the request is lost) or "after" (it is carried out, the answer is lost);
    a ``fatal`` one is the server's last: it answers nothing more, until ``dead`` is false again.
    """

    method: str
    path: str
    status: int = 0
    reason: str = ""
    message: str = "as the test wants it"
    drop: str = ""
    times: int = 1
    skip: int = 0
    fatal: bool = False


@dataclass
class JobFault:
    """How the next ``times`` jobs whose id matches end."""

    name: str
    reason: str
    message: str = "as the test wants it"
    times: int = 1


@dataclass
class BigQueryServer:
    """State, faults and records of the server."""

    location: str = "EU"
    files: dict[str, dict[str, int]] = field(default_factory=dict)
    datasets: dict[str, Json] = field(default_factory=dict)
    tables: dict[str, Json] = field(default_factory=dict)
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    record: dict[tuple[str, str, str], str] = field(default_factory=dict)
    jobs: dict[str, Json] = field(default_factory=dict)
    answers: dict[str, list[list[Any]]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    job_faults: list[JobFault] = field(default_factory=list)
    address: str = ""
    dead: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)

    @contextmanager
    def run(self) -> Iterator["BigQueryServer"]:
        """Serve on a port of the system's choice."""
        owner = self

        class Handler(_Handler):
            state = owner

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def sent(self, method: str, path: str) -> list[Request]:
        """Requests of that method whose path matches ``path`` to the end."""
        return [
            r
            for r in self.requests
            if r.method == method and re.search(rf"{path}$", r.path.removeprefix(_ROOT))
        ]

    def inserted(self, kind: str) -> list[Json]:
        """Bodies of the jobs.insert requests of a kind, repetitions included."""
        return [
            r.body for r in self.sent("POST", "/jobs") if kind in r.body.get("configuration", {})
        ]

    def ran(self, kind: str) -> list[Json]:
        """Jobs of a kind that were accepted, in order."""
        return [job for job in self.jobs.values() if kind in job["configuration"]]

    def scripts(self) -> list[str]:
        """The transactions, as they ran."""
        texts = [job["configuration"]["query"]["query"] for job in self.ran("query")]
        return [text for text in texts if "BEGIN TRANSACTION" in text]

    # The REST reference's methods; each gives a status and a body.

    def answer(self, request: Request) -> tuple[int, Json]:
        path = request.path.removeprefix(_ROOT)
        parts = path.strip("/").split("/")
        match (request.method, parts):
            case ("GET", ["datasets"]):
                return 200, {
                    "datasets": [
                        {k: v for k, v in found.items() if k in ("datasetReference", "labels")}
                        for found in self.datasets.values()
                    ]
                }
            case ("POST", ["datasets"]):
                name = request.body["datasetReference"]["datasetId"]
                if name in self.datasets:
                    return refusal(409, "duplicate", f"Already Exists: Dataset {PROJECT}:{name}")
                self.datasets[name] = request.body
                return 200, request.body
            case ("GET", ["datasets", name]):
                return _found(self.datasets.get(name), f"Dataset {PROJECT}:{name}")
            case ("GET", ["datasets", name, "tables"]):
                own = [t for key, t in self.tables.items() if key.startswith(f"{name}.")]
                return 200, {
                    "tables": [
                        {k: v for k, v in t.items() if k in ("tableReference", "labels")}
                        for t in own
                    ],
                    "totalItems": len(own),
                }
            case ("POST", ["datasets", name, "tables"]):
                table = f"{name}.{request.body['tableReference']['tableId']}"
                if name not in self.datasets:
                    return _found(None, f"Dataset {PROJECT}:{name}")
                if table in self.tables:
                    return refusal(409, "duplicate", f"Already Exists: Table {table}")
                self.tables[table] = request.body | {
                    "etag": "first",
                    "location": self.datasets[name].get("location"),
                }
                self.rows[table] = {}
                return 200, self.tables[table]
            case ("GET", ["datasets", name, "tables", table]):
                return _found(self.tables.get(f"{name}.{table}"), f"Table {name}.{table}")
            case ("PATCH", ["datasets", name, "tables", table]):
                if request.headers["If-Match"] != self.tables[f"{name}.{table}"]["etag"]:
                    return refusal(412, "conditionNotMet", "Precondition Failed")
                self.tables[f"{name}.{table}"].update(request.body, etag="patched")
                return 200, self.tables[f"{name}.{table}"]
            case ("DELETE", ["datasets", name, "tables", table]):
                self.rows.pop(f"{name}.{table}", None)
                gone = self.tables.pop(f"{name}.{table}", None)
                return _found(gone and {}, f"Table {name}.{table}")
            case ("POST", ["jobs"]):
                return self._insert(request.body)
            case ("GET", ["jobs", name]):
                job = self.jobs.get(name)
                if job:
                    job["status"]["state"] = "DONE"
                return _found(job, f"Job {PROJECT}:{name}")
            case ("GET", ["queries", name]):
                return self._results(name)
        raise AssertionError(f"no answer for {request}")

    def _insert(self, body: Json) -> tuple[int, Json]:
        reference = body["jobReference"]
        name = reference["jobId"]
        if reference.get("location") != self.location:
            return refusal(404, "notFound", f"Not found: location {reference.get('location')}")
        if name in self.jobs:
            return refusal(409, "duplicate", f"Already Exists: Job {PROJECT}:{name}")
        fault = next((f for f in self.job_faults if f.times and re.search(f.name, name)), None)
        error: Json | None = None
        statistics: Json = {"creationTime": "1"}
        if fault:
            fault.times -= 1
            error = {"reason": fault.reason, "message": fault.message}
        elif "load" in body["configuration"]:
            error = self._load(body["configuration"]["load"], statistics)
        else:
            error = self._query(name, body["configuration"]["query"], statistics)
        status: Json = {"state": "RUNNING"}
        if error:
            status |= {"errorResult": error, "errors": [error]}
        self.jobs[name] = body | {"status": status, "statistics": statistics}
        return 200, json.loads(json.dumps(self.jobs[name]))

    def _load(self, load: Json, statistics: Json) -> Json | None:
        destination = load["destinationTable"]
        name, _, partition = destination["tableId"].partition("$")
        table = f"{destination['datasetId']}.{name}"
        loaded: dict[str, int] = {}
        for uri in load["sourceUris"]:
            if uri not in self.files:
                return {"reason": "notFound", "message": f"Not found: URI {uri}"}
            for day, count in self.files[uri].items():
                loaded[day] = loaded.get(day, 0) + count
        statistics["load"] = {
            "outputRows": str(sum(loaded.values())),
            "inputFileBytes": str(100 * len(load["sourceUris"])),
        }
        if partition:
            day = f"{partition[:4]}-{partition[4:6]}-{partition[6:]}"
            if set(loaded) - {day}:
                return {
                    "reason": "invalid",
                    "message": "Some rows belong to different partitions rather than"
                    f" destination partition {partition}",
                }
            self.rows[table].pop(day, None)
        elif load["writeDisposition"] == "WRITE_TRUNCATE":
            self.rows[table] = {}
            self.tables[table]["schema"] = load["schema"]
        for day, count in loaded.items():
            self.rows[table][day] = self.rows[table].get(day, 0) + count
        return None

    def _query(self, name: str, query: Json, statistics: Json) -> Json | None:
        sql = query["query"]
        statistics["query"] = {"totalBytesProcessed": "10", "totalBytesBilled": "20"}
        self.answers.setdefault(name, [])
        for text, rows in list(self.answers.items()):
            if text in sql:
                self.answers[name] = rows
        if "BEGIN TRANSACTION" in sql:
            return self._script(sql)
        if found := re.search(rf"SELECT .* AS partition_key, COUNT.* FROM {_NAME}", sql):
            if found[1] not in self.rows:
                return {"reason": "notFound", "message": f"Not found: Table {found[1]}"}
            held = self.rows[found[1]]
            grouped = "GROUP BY partition_key" in sql
            self.answers[name] = (
                [[day, n] for day, n in held.items()] if grouped else [["", sum(held.values())]]
            )
        elif "SELECT DISTINCT table_name" in sql:
            self.answers[name] = [[table] for table in sorted({key[0] for key in self.record})]
        elif "SELECT partition_key, version" in sql:
            wanted = tuple(re.findall(r'"([^"]*)"', sql))
            self.answers[name] = [[k[2], v] for k, v in self.record.items() if k[:2] == wanted]
        return None

    def _script(self, sql: str) -> Json | None:
        for statement in sql.split(";\n"):
            if re.match(r"DELETE FROM .*loaded_partitions` WHERE", statement):
                table, *more = re.findall(r'"([^"]*)"', statement)
                stages, keys = more[:1], more[1:]
                for entry in list(self.record):
                    if entry[0] == table and (not more or entry[1:] in product(stages, keys)):
                        del self.record[entry]
            elif re.match(r"INSERT INTO .*loaded_partitions` ", statement):
                table, stage, *pairs = re.findall(r'"([^"]*)"', statement)
                for key, version in zip(pairs[::2], pairs[1::2], strict=True):
                    self.record[table, stage, key] = version
            elif found := re.match(rf"DELETE FROM {_NAME} WHERE", statement):
                for day in _days(statement, self.rows[found[1]]):
                    del self.rows[found[1]][day]
            elif found := re.match(rf"INSERT INTO {_NAME} .* FROM {_NAME} WHERE", statement):
                for day in _days(statement, self.rows[found[2]]):
                    held = self.rows[found[1]].get(day, 0)
                    self.rows[found[1]][day] = held + self.rows[found[2]][day]
        return None

    def _results(self, name: str) -> tuple[int, Json]:
        rows = self.answers.get(name, [])
        kinds = {str: "STRING", int: "INTEGER"}
        return 200, {
            "jobReference": {"projectId": PROJECT, "jobId": name, "location": self.location},
            "jobComplete": True,
            "totalRows": str(len(rows)),
            "schema": {
                "fields": [
                    {"name": f"f{i}_", "type": kinds[type(value)], "mode": "NULLABLE"}
                    for i, value in enumerate(rows[0] if rows else ["", ""])
                ]
            },
            "rows": [{"f": [{"v": str(value)} for value in row]} for row in rows],
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer: two would wait for each other's acknowledgement
    state: BigQueryServer

    def _serve(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        request = Request(
            self.command,
            unquote(url.path),
            {name: values[0] for name, values in parse_qs(url.query).items()},
            json.loads(self.rfile.read(length) or b"{}"),
            dict(self.headers),
        )
        state = self.state
        with state.lock:
            if state.dead:
                return self._drop()
            state.requests.append(request)
            fault = next(
                (
                    f
                    for f in state.faults
                    if f.times
                    and re.fullmatch(f.method, request.method)
                    and re.search(rf"{f.path}$", request.path)
                ),
                None,
            )
            if fault and fault.skip:
                fault.skip -= 1
                fault = None
            elif fault:
                fault.times -= 1
                state.dead = fault.fatal
            if fault and fault.drop == "before":
                return self._drop()
            if fault and not fault.drop:
                status, body = refusal(fault.status, fault.reason, fault.message)
            else:
                status, body = state.answer(request)
        if fault and fault.drop == "after":
            return self._drop()
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()
        return None

    do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        pass


def refusal(status: int, reason: str, message: str) -> tuple[int, Json]:
    """An error as the REST reference has it."""
    errors = [{"reason": reason, "message": message}] if reason else []
    return status, {"error": {"code": status, "message": message, "errors": errors}}


def _found(resource: Json | None, what: str) -> tuple[int, Json]:
    if resource is None:
        return refusal(404, "notFound", f"Not found: {what}")
    return 200, resource


def _days(statement: str, held: dict[str, int]) -> list[str]:
    if statement.endswith(" WHERE TRUE"):
        return list(held)
    ranges = _RANGE.findall(statement)
    return [day for day in held if any(first <= day <= last for first, last in ranges)]

"""A proxy before bqemulator, for what that emulator lacks of BigQuery's REST interface.

It rewrites, and nothing else:

* A table created by columns and a query at once (``create table t (...) as (...)``, which dbt sends
  for a model with a contract): the emulator takes either. The table is created, then filled by
  an INSERT; the answer is that of one CREATE_TABLE_AS_SELECT.
* Load jobs. The emulator knows no ``table$partition``; for it WRITE_TRUNCATE needs the table to be
  there, time partitioning and clustering of a load are nothing, and outputRows is the table's
  rows. The files are loaded into a table of the proxy's, which then makes the destination: a
  partition, in one transaction, refusing rows of other days as BigQuery does; or the whole
  table, created anew from the job's schema, partitioning and clustering; or an addition to it.
* A job id that was used before: the emulator runs it again, BigQuery answers 409.
* Locations: the emulator says that every job ran in US; the proxy says what the job asked for.
* Precision and scale of NUMERIC columns, which the emulator keeps but leaves out of its answers.
* ``date_trunc(column, month)``, a DATE in BigQuery if the column is one: the emulator makes it a
  DATETIME. The marts truncate dates alone.
* Scripts: parameters, which the emulator does not hand on to the statements of a script, become
  literals; ASSERT, which it does not know, is asked for before.
* ``array[OFFSET(column)]``: the emulator is off by one where the offset is no literal.
* ``cast(round(x, n) as numeric)``: the emulator leaves three decimals where BigQuery keeps nine,
  whatever the cast says; its safe_cast does not.

What it cannot add: roles, quotas, bytes billed, pruning, snapshot isolation of transactions and
their atomicity when the emulator is killed, Parquet columns matched by name (the emulator goes by
position). What it does in steps is atomic in BigQuery: a table created by columns and query, and
the load of a whole table.
"""

import json
import re
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import urlsplit

_ROOT = r"(?:/bigquery/v2)?/projects/(?P<project>[^/?]+)"
_JOBS = re.compile(rf"{_ROOT}/jobs/?(?:\?.*)?")
_JOB = re.compile(rf"{_ROOT}/jobs/(?P<job>[^/?]+)(?:\?.*)?")
_TABLES = re.compile(rf"{_ROOT}/datasets/(?P<dataset>[^/?]+)/tables/?(?:\?.*)?")
_TABLE = re.compile(rf"{_ROOT}/datasets/(?P<dataset>[^/?]+)/tables/(?P<table>[^/?]+)(?:\?.*)?")
_CREATE = re.compile(
    r"(?:\s|/\*.*?\*/|--[^\n]*\n)*create\s+(?:or\s+replace\s+)?table\s+(?P<table>[`\w.-]+)\s*\(",
    re.IGNORECASE | re.DOTALL,
)
_QUOTED = re.compile(
    r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`[^`]*`|--[^\n]*|/\*.*?\*/""", re.DOTALL
)
_QUERY = re.compile(r"as\s*\(", re.IGNORECASE)
_JSON = [("Content-Type", "application/json")]
_MONTH = re.compile(r"\bdate_trunc\((\w+), month\)")
_NUMERIC = re.compile(r"\bcast\((round\([^\n]*?, \d+\)) as numeric\)")
_OFFSET = re.compile(r"\[offset\(([a-z_]\w*)\)\]", re.IGNORECASE)
_SCRIPT = re.compile(r"\bbegin transaction\b", re.IGNORECASE)
_ASSERT = re.compile(r"\s*assert (\(.*?\) = \d+)\s+as '((?:\\.|[^'\\])*)';", re.I | re.S)
_UPSTREAM_S = 600
Json = dict[str, Any]


class UpstreamError(Exception):
    """The emulator refused a request of the proxy's own; its answer goes to the client."""

    def __init__(self, status: int, answer: Json) -> None:
        super().__init__(str(answer))
        self.status = status
        self.answer = answer


def split_create(sql: str) -> tuple[str, str, str] | None:
    """(CREATE, INSERT, table) of a table created by columns and a query at once, else None."""
    match = _CREATE.match(sql)
    if match is None:
        return None
    columns_end = _closing(sql, match.end() - 1)
    names = [part.split()[0] for part in _top_level(sql[match.end() : columns_end])]
    for at, _ in _outside(sql, columns_end + 1):
        query = _QUERY.match(sql, at)
        if query and not (sql[at - 1].isalnum() or sql[at - 1] == "_"):
            end = _closing(sql, query.end() - 1)
            select = sql[query.end() : end].strip().rstrip(";")
            return (
                sql[:at].rstrip(),
                f"insert into {match['table']} ({', '.join(names)})\n{select}",
                match["table"].replace("`", ""),
            )
    return None


def _outside(sql: str, start: int) -> Iterator[tuple[int, str]]:
    """Places outside of parentheses, quotes and comments."""
    depth, at = 0, start
    while at < len(sql):
        if found := _QUOTED.match(sql, at):
            at = found.end()
            continue
        if sql[at] == ")":
            depth -= 1
        if depth == 0:
            yield at, sql[at]
        if sql[at] == "(":
            depth += 1
        if depth < 0:
            return
        at += 1


def _with_literals(sql: str, parameters: list[Json]) -> str:
    """A script in which named parameters, strings and arrays of them, stand as literals."""
    for parameter in parameters:
        value = parameter["parameterValue"]
        if "arrayValues" in value or parameter["parameterType"]["type"] == "ARRAY":
            items = [_literal(item["value"]) for item in value.get("arrayValues", [])]
            literal = f"[{', '.join(items)}]" if items else "cast([] as array<string>)"
        else:
            literal = _literal(value["value"])
        sql = re.sub(rf"@{parameter['name']}\b", lambda _, text=literal: text, sql)
    return sql


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _closing(sql: str, opening: int) -> int:
    return next(at for at, sign in _outside(sql, opening) if sign == ")" and at > opening)


def _top_level(columns: str) -> list[str]:
    cuts = [at for at, sign in _outside(columns, 0) if sign == ","]
    edges = zip([0, *[at + 1 for at in cuts]], [*cuts, len(columns)], strict=True)
    return [columns[first:last].strip() for first, last in edges]


class BigQueryProxy(ThreadingHTTPServer):
    """The proxy, on a free port; ``url`` is what clients are given."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.jobs: dict[str, Json] = {}
        self.schemas: dict[str, dict[str, Json]] = {}
        self.lock = Lock()

    def ask(self, method: str, path: str, body: Json | None = None) -> tuple[int, Json]:
        """Status and answer of the emulator."""
        status, _, answer = self.forward(
            method,
            path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        return status, json.loads(answer or b"{}")

    def forward(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Hand a request on as it is."""
        connection = HTTPConnection(self.upstream, timeout=_UPSTREAM_S)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def insert_job(self, path: str, project: str, job: Json) -> tuple[int, Json]:
        """Answer jobs.insert."""
        configuration = job.get("configuration", {})
        if configuration.get("dryRun"):
            return self.ask("POST", path, job)
        reference = job.setdefault("jobReference", {})
        reference.setdefault("projectId", project)
        name = reference.setdefault("jobId", uuid.uuid4().hex)
        with self.lock:
            if name in self.jobs:
                return 409, _error(409, "duplicate", f"Already Exists: Job {project}:{name}")
            self.jobs[name] = {}
        try:
            if "load" in configuration:
                answer = self._load(path, project, job)
            else:
                answer = self._query(path, job)
        except BaseException:
            del self.jobs[name]
            raise
        answer["jobReference"] = reference | {"location": reference.get("location", "US")}
        self.jobs[name] = answer
        return 200, answer

    def _query(self, path: str, job: Json) -> Json:
        query = job["configuration"].get("query", {})
        sql = _MONTH.sub(r"cast(date_trunc(\1, month) as date)", query.get("query", ""))
        sql = _NUMERIC.sub(r"safe_cast(\1 as numeric(38, 9))", sql)
        sql = _OFFSET.sub(r"[ordinal(\1 + 1)]", sql)
        if _SCRIPT.search(sql):
            sql = _with_literals(sql, query.pop("queryParameters", []))
        while claim := _ASSERT.match(sql):
            if self._rows(path.split("/jobs")[0], f"select {claim[1]}") != [["true"]]:
                return _failed(job | {"statistics": {"query": {}}}, "invalidQuery", claim[2])
            sql = sql[claim.end() :]
        parts = split_create(sql)
        if parts is None:
            return self._run(path, job, sql)
        create, insert, table = parts
        answer = self._run(path, job, create)
        if "errorResult" not in answer["status"]:
            answer = self._run(path, job, insert)
        project, dataset, name = ([job["jobReference"]["projectId"], *table.split(".")])[-3:]
        destination = {"projectId": project, "datasetId": dataset, "tableId": name}
        answer["configuration"]["query"]["destinationTable"] = destination
        answer.get("statistics", {}).get("query", {})["statementType"] = "CREATE_TABLE_AS_SELECT"
        return answer

    def _run(self, path: str, job: Json, sql: str) -> Json:
        configuration = job["configuration"]
        query = {**configuration["query"], "query": sql}
        sent = {**job, "configuration": {**configuration, "query": query}}
        answer = self._ask_well("POST", path, sent)
        answer["configuration"]["query"]["query"] = configuration["query"].get("query", "")
        return answer

    def _load(self, path: str, project: str, job: Json) -> Json:
        load = job["configuration"]["load"]
        destination = load["destinationTable"]
        dataset, table_id = destination["datasetId"], destination["tableId"]
        name, _, partition = table_id.partition("$")
        base = path.split("/jobs")[0]
        tables = f"{base}/datasets/{dataset}/tables"
        status, found = self.ask("GET", f"{tables}/{name}")
        table = found if status == 200 else None
        schema = load.get("schema") or (table or {}).get("schema")
        staging = f"{name}__loading_{uuid.uuid4().hex}"
        target = {
            "tableReference": {"projectId": project, "datasetId": dataset, "tableId": name},
            "schema": schema,
            **{k: load[k] for k in ("timePartitioning", "clustering") if k in load},
            **load.get("destinationTableProperties", {}),
        }
        self._ask_well(
            "POST",
            tables,
            {"tableReference": target["tableReference"] | {"tableId": staging}, "schema": schema},
        )
        try:
            answer = self._ask_well(
                "POST",
                path,
                {
                    **job,
                    "configuration": {
                        "load": {
                            "sourceUris": load["sourceUris"],
                            "sourceFormat": load["sourceFormat"],
                            "destinationTable": target["tableReference"] | {"tableId": staging},
                            "writeDisposition": "WRITE_APPEND",
                        }
                    },
                },
            )
            answer["configuration"] = job["configuration"]
            if "errorResult" in answer["status"]:
                return answer
            rows = int(self._rows(base, f"select count(*) from `{dataset}`.`{staging}`")[0][0])
            answer["statistics"].setdefault("load", {}).update(
                outputRows=str(rows), inputFiles=str(len(load["sourceUris"])), inputFileBytes="0"
            )
            whole = load.get("writeDisposition") == "WRITE_TRUNCATE" and not partition
            if table is None or whole:
                if table is not None:
                    self._ask_well("DELETE", f"{tables}/{name}")
                self.remember(dataset, name, schema)
                self._ask_well("POST", tables, target)
            columns = ", ".join(f"`{field['name']}`" for field in schema["fields"])
            script = (
                f"insert into `{dataset}`.`{name}` ({columns})"
                f" select {columns} from `{dataset}`.`{staging}`;"
            )
            if partition:
                field = (load.get("timePartitioning") or (table or {})["timePartitioning"])["field"]
                day = f"date '{partition[:4]}-{partition[4:6]}-{partition[6:]}'"
                others = self._rows(
                    base,
                    f"select count(*) from `{dataset}`.`{staging}`"
                    f" where `{field}` is null or date(`{field}`) <> {day}",
                )
                if int(others[0][0]):
                    return _failed(
                        answer,
                        "invalid",
                        "Some rows belong to different partitions rather than destination"
                        f" partition {partition}",
                    )
                if load.get("writeDisposition") == "WRITE_TRUNCATE":
                    where = f"date(`{field}`) = {day}"
                    script = f"delete from `{dataset}`.`{name}` where {where}; {script}"
            self._rows(base, f"begin transaction; {script} commit transaction;")
            return answer
        finally:
            self.ask("DELETE", f"{tables}/{staging}")

    def _rows(self, base: str, sql: str) -> list[list[str]]:
        answer = self._ask_well("POST", f"{base}/queries", {"query": sql, "useLegacySql": False})
        if answer.get("errors"):
            raise UpstreamError(400, _error(400, "invalid", str(answer["errors"])))
        return [[cell["v"] for cell in row["f"]] for row in answer.get("rows", [])]

    def _ask_well(self, method: str, path: str, body: Json | None = None) -> Json:
        status, answer = self.ask(method, path, body)
        if status >= 300:
            raise UpstreamError(status, answer)
        return answer

    def remember(self, dataset: str, table: str, schema: Json | None) -> None:
        """Keep the schema that a table was given."""
        fields = (schema or {}).get("fields", [])
        self.schemas[f"{dataset}.{table}"] = {field["name"]: field for field in fields}

    def completed(self, dataset: str, table: str, resource: Json) -> Json:
        """A table's resource with precision and scale of its columns."""
        known = self.schemas.get(f"{dataset}.{table}", {})
        for field in resource.get("schema", {}).get("fields", []):
            given = known.get(field["name"], {})
            field |= {key: given[key] for key in ("precision", "scale") if key in given}
        return resource


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: BigQueryProxy

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in ("host", "accept-encoding", "connection")
        }
        try:
            known = self._rewritten(body)
            if known is None:
                sent = self.server.forward(self.command, self.path, body, headers)
            else:
                sent = known[0], _JSON, json.dumps(known[1]).encode()
        except UpstreamError as error:
            sent = error.status, _JSON, json.dumps(error.answer).encode()
        except (OSError, HTTPException):  # the emulator is gone: so is the connection
            self.close_connection = True
            return
        self._send(*sent)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815

    def _rewritten(self, body: bytes) -> tuple[int, Json] | None:
        """Status and answer, or None where the request goes on as it is."""
        server = self.server
        if self.command == "POST" and (match := _JOBS.fullmatch(self.path)):
            return server.insert_job(self.path, match["project"], json.loads(body))
        if self.command == "GET" and (match := _JOB.fullmatch(self.path)):
            job = server.jobs.get(match["job"])
            return (200, job) if job else None
        if self.command == "POST" and (match := _TABLES.fullmatch(self.path)):
            table = json.loads(body)
            name = table["tableReference"]["tableId"]
            status, answer = server.ask("POST", self.path, table)
            if status < 300:
                server.remember(match["dataset"], name, table.get("schema"))
                answer = server.completed(match["dataset"], name, answer)
            return status, answer
        if self.command in ("GET", "PATCH") and (match := _TABLE.fullmatch(self.path)):
            sent = json.loads(body) if body else None
            status, answer = server.ask(self.command, self.path, sent)
            if status < 300 and sent and "schema" in sent:
                server.remember(match["dataset"], match["table"], sent["schema"])
            return status, server.completed(match["dataset"], match["table"], answer)
        return None

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the emulator has a log."""


def _error(code: int, reason: str, message: str) -> Json:
    detail = {"reason": reason, "message": message, "domain": "global"}
    return {"error": {"code": code, "message": message, "errors": [detail]}}


def _failed(job: Json, reason: str, message: str) -> Json:
    error = {"reason": reason, "message": message}
    job["status"] = {"state": "DONE", "errorResult": error, "errors": [error]}
    return job


@contextmanager
def bigquery_proxy(upstream: str) -> Iterator[BigQueryProxy]:
    """The proxy before the emulator at ``upstream``, until the block ends."""
    with BigQueryProxy(upstream) as proxy:
        Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()


if __name__ == "__main__":  # by hand: bigquery_proxy.py http://127.0.0.1:9050
    with BigQueryProxy(sys.argv[1]) as server:
        print(server.url, flush=True)
        server.serve_forever()

"""dbt's models on BigQuery: every statement that dbt sends is one that BigQuery's dialect takes.

dbt-bigquery runs against a server of this module that parses, binds and types each statement with
sqlglot, and answers by the REST reference; no row exists. What sqlglot lets pass and BigQuery
refuses is looked for besides. With rows: retail_assets_tests/live.
"""

import json
import re
import uuid
from collections.abc import Iterator
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import pytest
import sqlglot
from sqlglot import exp
from sqlglot.optimizer.annotate_types import annotate_types
from sqlglot.optimizer.qualify import qualify
from sqlglot.schema import MappingSchema

from retail_assets.defs.coffee_chain.contract import LANDED
from retail_assets.defs.online_retail.contract import ONLINE_RETAIL_DATA
from retail_assets.defs.supply_chain.contract import LANDED as SUPPLY_CHAIN
from retail_assets.resources.dbt.project import dbt_build, run_dbt
from retail_assets.settings import Settings, load_settings

PROJECT = "retail-assets"
WINDOW = "online_retail_window"
FACT = "fact_online_retail_data_partitioned_clustered"
COFFEE_WINDOW = "coffee_chain_window"
COFFEE_CUSTOMER_WINDOW = "coffee_chain_customer_window"
SALES_COLUMNS = [
    *("sale_line_id", "invoice_no", "date_time", "sale_date", "customer_id", "outlet_id"),
    *("outlet_state", "product_id", "product_name", "quantity", "product_price", "total_price"),
    *("customer_age", "drop_date"),
]
MOST_BYTES = 10**9
Json = dict[str, Any]


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# Source: "Lexical structure and syntax" of GoogleSQL, reserved keywords.
RESERVED = words(
    """all and any array as asc assert_rows_modified at between by case cast collate contains create
    cross cube current default define desc distinct else end enum escape except exclude exists
    extract false fetch following for from full group grouping groups hash having if ignore in inner
    intersect interval into is join lateral left like limit lookup merge natural new no not null
    nulls of on or order outer over partition preceding proto qualify range recursive respect right
    rollup rows select set some struct tablesample then to treat true unbounded union unnest using
    when where window with within"""
)
TYPES = words("BOOLEAN DATE DATETIME BIGINT INT TEXT DECIMAL TIMESTAMP")
FUNCTIONS = words(
    """cast coalesce concat count current_timestamp date_diff date_trunc datetime_trunc div extract
    generate_date_array lag max min ntile nullif round row_number substr sum timestamp_add unnest"""
)
# What is written like a function's call, and is none.
SYNTAX = words("and as by decimal from in insert not options or over table using values when where")


def parse(sql: str) -> list[exp.Expression]:
    """The statements of a script, comments left out."""
    parts = sqlglot.parse(sql, dialect="bigquery")
    return [part for part in parts if part is not None and not isinstance(part, exp.Semicolon)]


def refusals(sql: str) -> list[str]:
    """What BigQuery would refuse in statements that sqlglot takes."""
    found = []
    for statement in parse(sql):
        for cast in statement.find_all(exp.Cast):
            kind = cast.to
            if kind.expressions:
                found.append(f"a cast to a type with parameters: {cast.sql()}")
            if kind.this.name not in TYPES:
                found.append(f"a type of others: {cast.sql()}")
        found += [f"unknown function {call.name}" for call in statement.find_all(exp.Anonymous)]
        found += [
            f"reserved word {word.name}"
            for word in statement.find_all(exp.Identifier)
            if not word.quoted and word.name.lower() in RESERVED
        ]
    bare = re.sub(r"--[^\n]*|/\*.*?\*/|'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "", sql, flags=re.S)
    tables = r"(?:table|into)\s+[`\w.-]+\s*\("
    called = re.findall(r"(?<![`\w.])([a-z_]\w*)\s*\(", re.sub(tables, "", bare, flags=re.I), re.I)
    known = FUNCTIONS | SYNTAX
    found += [f"unknown function {name}" for name in called if name.lower() not in known]
    if "::" in bare:
        found.append("a cast by ::")
    return found


class TypingServer(ThreadingHTTPServer):
    """BigQuery's REST interface over tables of no rows, their columns typed by sqlglot."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.statements: list[str] = []
        self.requests: list[Json] = []
        self.tables: dict[tuple[str, str], dict[str, str]] = {}
        self.views: set[tuple[str, str]] = set()
        self.jobs: dict[str, tuple[list[Json], list[Any]]] = {}
        self.lock = Lock()

    def run(self, sql: str) -> tuple[str, list[Json], list[Any]]:
        """Statement type, columns and rows; every statement is kept."""
        with self.lock:
            self.statements.append(sql)
            parsed = parse(sql)
            kinds = [self._apply(statement) for statement in parsed]
            kind = kinds[0] if len(kinds) == 1 else "SCRIPT"
            if kind != "SELECT":
                return kind, [], []
            fields = [{"name": n, "type": t} for n, t in self._columns(parsed[0]).items()]
        # A test's verdict, no failures; all else selects no row.
        verdict = [0, False, False] if fields[0]["name"] == "failures" else None
        return kind, fields, [verdict] if verdict else []

    def _apply(self, statement: exp.Expression) -> str:
        if isinstance(statement, exp.Create) and statement.kind == "SCHEMA":
            return "CREATE_SCHEMA"
        if isinstance(statement, exp.Create):
            target = statement.find(exp.Table)
            assert target is not None
            name = (target.db, target.name)
            columns = self._columns(statement.expression) if statement.expression else {}
            declared = {
                column.name: column.kind.sql("bigquery").partition("(")[0]
                for column in statement.this.expressions
                if isinstance(column, exp.ColumnDef) and column.kind
            }
            if declared and columns:
                assert list(declared) == list(columns), f"{name}: {declared} {columns}"
            self.tables[name] = declared or columns
            if statement.kind == "VIEW":
                self.views.add(name)
                return "CREATE_VIEW"
            return "CREATE_TABLE_AS_SELECT" if statement.expression else "CREATE_TABLE"
        if isinstance(statement, exp.Drop):
            target = statement.find(exp.Table)
            assert target is not None
            self.tables.pop((target.db, target.name), None)
            return "DROP_TABLE"
        if isinstance(statement, exp.Merge):
            source = statement.args["using"].this
            target = self.tables[(statement.this.db, statement.this.name)]
            assert list(self._columns(source)) == list(target)
            return "MERGE"
        assert isinstance(statement, exp.Query), f"not expected of dbt: {statement.sql()}"
        return "SELECT"

    def _columns(self, query: exp.Expression) -> dict[str, str]:
        """Name to type of a query's columns.

        Raises:
            sqlglot.errors.OptimizeError: a column or a table is not there.
        """
        tables: Json = {}
        for (dataset, table), columns in self.tables.items():
            tables.setdefault(PROJECT, {}).setdefault(dataset, {})[table] = columns
        schema = MappingSchema(tables, dialect="bigquery")
        bound = qualify(query.copy().unnest(), schema=schema, dialect="bigquery")
        typed = annotate_types(bound, schema=schema, dialect="bigquery")
        return {c.alias_or_name: c.type.sql("bigquery") for c in typed.selects}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TypingServer

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        tables = self.server.tables
        if match := re.search(r"/queries/([^/]+)$", path):
            fields, rows = self.server.jobs[match[1]]
            self._send(
                {
                    "jobComplete": True,
                    "jobReference": self._reference(match[1]),
                    "schema": {"fields": fields},
                    "rows": [{"f": [{"v": json.dumps(v)} for v in row]} for row in rows],
                    "totalRows": str(len(rows)),
                }
            )
        elif match := re.search(r"/datasets/([^/]+)/tables/([^/]+)$", path):
            name = (match[1], match[2])
            if match[1] == "answers":
                self._send(self._table(name, {}) | {"numRows": "0"})
            elif name in tables:
                self._send(self._table(name, tables[name]))
            else:
                self._error(404, f"Not found: {name}")
        elif match := re.search(r"/datasets/([^/]+)/tables$", path):
            found = [self._table(n, c) for n, c in tables.items() if n[0] == match[1]]
            self._send({"tables": found, "totalItems": len(found)})
        elif path.endswith("/routines"):
            self._send({"routines": []})
        elif path.endswith("/datasets"):
            names = sorted({dataset for dataset, _ in tables})
            self._send({"datasets": [{"datasetReference": self._dataset(n)} for n in names]})
        elif match := re.search(r"/datasets/([^/]+)$", path):
            self._send({"datasetReference": self._dataset(match[1]), "location": "EU"})
        else:
            self._error(404, f"Not found: {path}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.split("?")[0].endswith("/datasets"):
            self._send(body)
            return
        self.server.requests.append(body)
        query = body["configuration"]["query"]
        name = body["jobReference"].get("jobId") or uuid.uuid4().hex
        try:
            kind, fields, rows = self.server.run(query["query"])
        except (sqlglot.errors.SqlglotError, AssertionError, KeyError) as error:
            self._error(400, f"{type(error).__name__}: {error}")
            return
        self.server.jobs[name] = fields, rows
        query["destinationTable"] = self._dataset("answers") | {"tableId": name}
        self._send(
            {
                "jobReference": self._reference(name),
                "configuration": body["configuration"],
                "status": {"state": "DONE"},
                "statistics": {"query": {"statementType": kind}},
            }
        )

    def do_DELETE(self) -> None:
        match = re.search(r"/datasets/([^/]+)/tables/([^/?]+)", self.path)
        assert match is not None
        self.server.tables.pop((match[1], match[2]), None)
        self._send({})

    def _dataset(self, name: str) -> Json:
        return {"projectId": PROJECT, "datasetId": name}

    def _reference(self, job: str) -> Json:
        return {"projectId": PROJECT, "jobId": job, "location": "EU"}

    def _table(self, name: tuple[str, str], columns: dict[str, str]) -> Json:
        return {
            "tableReference": self._dataset(name[0]) | {"tableId": name[1]},
            "type": "VIEW" if name in self.server.views else "TABLE",
            "schema": {"fields": [{"name": n, "type": t} for n, t in columns.items()]},
        }

    def _error(self, code: int, message: str) -> None:
        errors = [{"reason": "invalidQuery" if code == 400 else "notFound", "message": message}]
        self._send({"error": {"code": code, "message": message, "errors": errors}}, code)

    def _send(self, answer: Json, code: int = 200) -> None:
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[TypingServer]:
    with TypingServer() as server:
        types = {"string": "STRING", "bool": "BOOL", "date": "DATE", "timestamp": "DATETIME"}
        for dataset in (ONLINE_RETAIL_DATA, *LANDED, *SUPPLY_CHAIN):
            server.tables[(dataset.schema, dataset.name)] = {
                c.name: types.get(c.type, "NUMERIC" if c.type.startswith("decimal") else "INT64")
                for c in dataset.columns
            }
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


Windows = dict[str, list[list[str]] | None]
# Of each build. A drop comes with new customers in "days", without any in "nothing".
BUILDS: dict[str, Windows] = {
    "first": {
        WINDOW: [["2010-12-01", "2011-12-09"]],
        COFFEE_WINDOW: [["2018-12-31", "2019-12-31"]],
        COFFEE_CUSTOMER_WINDOW: [["2018-12-31", "2019-12-31"]],
    },
    "days": {
        WINDOW: [["2011-02-27", "2011-03-01"], ["2011-11-14", "2011-11-14"]],
        COFFEE_WINDOW: [["2018-12-31", "2018-12-31"], ["2020-12-31", "2020-12-31"]],
        COFFEE_CUSTOMER_WINDOW: [["2020-12-31", "2020-12-31"]],
    },
    "nothing": {
        WINDOW: [],
        COFFEE_WINDOW: [["2020-12-31", "2020-12-31"]],
        COFFEE_CUSTOMER_WINDOW: [],
    },
    "everything": {WINDOW: None, COFFEE_WINDOW: None, COFFEE_CUSTOMER_WINDOW: None},
}


@pytest.fixture(scope="module")
def settings(server: TypingServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home whose BigQuery is the server."""
    return load_settings(
        home=tmp_path_factory.mktemp("home"),
        lake="gs://retail-assets-lake",
        warehouse=f"bigquery://{PROJECT}?location=EU",
        bigquery_max_bytes_billed=MOST_BYTES,
        BIGQUERY_EMULATOR_HOST=server.url,
    )


@pytest.fixture(scope="module")
def sent(server: TypingServer, settings: Settings) -> dict[str, list[str]]:
    """What dbt sent in a first build, for a window of days, for none, and for a build anew."""
    builds = {}
    for name, windows in BUILDS.items():
        server.statements.clear()
        # The supply chain has no window: what it sends is the same in every build.
        exclude = ["resource_type:unit_test"] + ["path:models/supply_chain"] * (name != "first")
        with dbt_build(settings, windows):
            code = run_dbt(settings, ["build", "--exclude", *exclude])
        assert code == 0, f"{name}: dbt failed"
        builds[name] = list(server.statements)
    return builds


def text(part: exp.Expression) -> str:
    """A part of a statement as BigQuery writes it, in lower case."""
    return part.sql("bigquery").lower()


def one(statements: list[str], *words: str) -> str:
    """The one statement that holds all of these words."""
    found = [s for s in statements if all(word in s for word in words)]
    assert len(found) == 1, f"{words}: {len(found)} statements"
    return found[0]


def created(statements: list[str], table: str, schema: str = "online_retail_core") -> str:
    """The statement that creates the table with all its columns."""
    return one(statements, f"create or replace table `{PROJECT}`.`{schema}`.`{table}`")


@pytest.mark.parametrize("build", BUILDS)
def test_bigquery_would_take_every_statement(sent: dict[str, list[str]], build: str) -> None:
    # 20 models, each with two looks at its contract, and 46 tests; 13 and 44 of the supply chain.
    assert len(sent[build]) > (170 if build == "first" else 100)
    assert {sql: found for sql in sent[build] if (found := refusals(sql))} == {}


@pytest.mark.parametrize(
    ("sql", "refusal"),
    [
        ("select cast(a as decimal(18, 3)) from t", "a cast to a type with parameters"),
        ("select cast(a as varchar) from t", "a type of others"),
        ("select a::int64 from t", "a cast by ::"),
        ("select strftime(a, '%Y') from t", "unknown function strftime"),
        ("select a as rows from t", "reserved word rows"),
        ("with hash as (select 1 as a) select a from hash", "reserved word hash"),
    ],
)
def test_a_refusal_is_seen(sql: str, refusal: str) -> None:
    assert [found for found in refusals(sql) if found.startswith(refusal)]


def test_the_fact_is_partitioned_by_day_and_clustered(sent: dict[str, list[str]]) -> None:
    for build in ("first", "everything"):
        statement = sqlglot.parse_one(created(sent[build], FACT), dialect="bigquery")
        assert isinstance(statement, exp.Create)
        properties = [text(p) for p in statement.args["properties"].expressions]
        assert properties[:2] == [
            "partition by datetime_trunc(invoice_datetime, day)",
            "cluster by customer_id",
        ]
    other = created(sent["first"], "fact_online_retail_data_unpartitioned")
    assert "partition by" not in other and "cluster by" not in other


def replaced(statements: list[str]) -> list[str]:
    """The partitions that the fact's MERGE replaces, as SQL."""
    statement = parse(one(statements, "merge into", FACT))[0]
    assert isinstance(statement, exp.Merge)
    assert text(statement.args["on"]) == "false"
    (partitions,) = statement.find_all(exp.In)
    assert text(partitions.this) == "datetime_trunc(dbt_internal_dest.invoice_datetime, day)"
    return [text(literal) for literal in partitions.expressions]


def read(statements: list[str]) -> str:
    """The condition by which the fact's new rows are read."""
    create = one(statements, "create or replace table", f"{FACT}__dbt_tmp")
    statement = sqlglot.parse_one(create, dialect="bigquery")
    (where,) = statement.find_all(exp.Where)
    return text(where.this)


def days(window: list[list[str]]) -> list[date]:
    """Every day of the window, in order."""
    spans = [(date.fromisoformat(a), date.fromisoformat(b)) for a, b in window]
    return [a + timedelta(days=n) for a, b in spans for n in range((b - a).days + 1)]


def test_a_window_replaces_exactly_its_partitions(sent: dict[str, list[str]]) -> None:
    window = BUILDS["days"][WINDOW] or []
    assert replaced(sent["days"]) == [f"cast('{day} 00:00:00' as datetime)" for day in days(window)]
    # Read by literals as well, so that the landed table is pruned.
    assert (
        read(sent["days"])
        == "line_type in ('sale', 'gift') and ("
        + " or ".join(
            f"invoice_date between cast('{first}' as date) and cast('{last}' as date)"
            for first, last in window
        )
        + ")"
    )


def test_an_empty_window_replaces_no_partition(sent: dict[str, list[str]]) -> None:
    assert replaced(sent["nothing"]) == ["cast(null as datetime)"]
    assert read(sent["nothing"]) == "line_type in ('sale', 'gift') and false"


def test_only_a_window_merges(sent: dict[str, list[str]]) -> None:
    for build in ("first", "everything"):
        assert not [sql for sql in sent[build] if "merge into" in sql]
        (where,) = sqlglot.parse_one(created(sent[build], FACT), dialect="bigquery").find_all(
            exp.Where
        )
        assert text(where.this) == "line_type in ('sale', 'gift')"


def test_sales_are_partitioned_by_month_and_clustered(sent: dict[str, list[str]]) -> None:
    for build in ("first", "everything"):
        sql = created(sent[build], "fact_sales", "coffee_chain_core")
        statement = sqlglot.parse_one(sql, dialect="bigquery")
        assert isinstance(statement, exp.Create)
        properties = [text(p) for p in statement.args["properties"].expressions]
        assert properties[:2] == [
            "partition by date_trunc(sale_date, month)",
            "cluster by outlet_id",
        ]
        # Every landed line is read, whatever a window says: the table is built anew.
        assert not statement.find(exp.Between, exp.Union)


def merged(statements: list[str], table: str = "fact_sales") -> exp.Merge:
    """The MERGE of a table; the build sends this one statement against it."""
    statement = parse(one(statements, "merge into", f"`{table}` as"))[0]
    assert isinstance(statement, exp.Merge)
    return statement


def clauses(merge: exp.Merge) -> list[tuple[str, str, str]]:
    """(which rows, further condition, what is done) of a MERGE's clauses."""
    found = []
    for when in merge.args["whens"].expressions:
        unmatched = "only in target" if when.args["source"] else "only in source"
        condition = when.args.get("condition")
        found.append(
            (
                "matched" if when.args["matched"] else unmatched,
                text(condition) if condition else "",
                text(when.args["then"]).split()[0],
            )
        )
    return found


def between(column: str, *pairs: tuple[str, str]) -> str:
    """The condition that a date is in one of the ranges."""
    return " or ".join(
        f"{column} between cast('{first}' as date) and cast('{last}' as date)"
        for first, last in pairs
    )


def test_a_drop_with_customers_is_one_merge_by_the_lines_key(sent: dict[str, list[str]]) -> None:
    merge = merged(sent["days"])
    window = between(
        "dbt_internal_dest.drop_date", ("2018-12-31", "2018-12-31"), ("2020-12-31", "2020-12-31")
    )

    assert text(merge.args["on"]) == (
        "dbt_internal_dest.sale_line_id = dbt_internal_source.sale_line_id"
    )
    assert clauses(merge) == [
        ("matched", "", "update"),
        ("only in target", f"(({window}))", "delete"),
        ("only in source", "", "insert"),
    ]
    (update,) = merge.find_all(exp.Update)
    assert [assignment.this.name for assignment in update.expressions] == SALES_COLUMNS[1:]
    create = one(sent["days"], "create or replace table", "fact_sales__dbt_tmp")
    (union,) = sqlglot.parse_one(create, dialect="bigquery").find_all(exp.Union)
    (customers,) = union.right.find_all(exp.In)
    assert text(customers).endswith(
        "where (" + between("landed.drop_date", ("2020-12-31", "2020-12-31")) + "))"
    )


def test_a_drop_without_customers_joins_nothing(sent: dict[str, list[str]]) -> None:
    merge = merged(sent["nothing"])
    window = between("dbt_internal_dest.drop_date", ("2020-12-31", "2020-12-31"))

    assert text(merge.args["on"]) == "false"
    assert clauses(merge) == [
        ("only in target", f"(({window}))", "delete"),
        ("only in source", "", "insert"),
    ]
    create = one(sent["nothing"], "create or replace table", "fact_sales__dbt_tmp")
    statement = sqlglot.parse_one(create, dialect="bigquery")
    assert not statement.find(exp.Union)
    (where,) = statement.find_all(exp.Where)
    assert text(where.this) == "(" + between("drop_date", ("2020-12-31", "2020-12-31")) + ")"


@pytest.mark.parametrize(
    ("build", "window"),
    [("days", between("landed.drop_date", ("2020-12-31", "2020-12-31"))), ("nothing", "false")],
)
def test_customers_are_one_merge_by_their_key(
    sent: dict[str, list[str]], build: str, window: str
) -> None:
    merge = merged(sent[build], "dim_customer")
    create = one(sent[build], "create or replace table", "dim_customer__dbt_tmp")
    (taken, *_) = sqlglot.parse_one(create, dialect="bigquery").find_all(exp.In)

    assert text(merge.args["on"]) == (
        "dbt_internal_dest.customer_id = dbt_internal_source.customer_id"
    )
    assert clauses(merge) == [("matched", "", "update"), ("only in source", "", "insert")]
    assert window in text(taken)


def test_a_model_that_does_not_ask_has_dbts_own_merge(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = "('target', '(select 1 as id)', 'id', [], ['day = 1'])"
    macros = ("get_merge_sql", "dbt.default__get_merge_sql")
    inline = " ; ".join(f"{{{{ {macro}{arguments} }}}}" for macro in macros)
    capfd.readouterr()
    assert run_dbt(settings, ["--quiet", "compile", "--inline", inline]) == 0
    dispatched, own = parse(capfd.readouterr().out)
    assert isinstance(own, exp.Merge)
    assert dispatched == own


def test_every_job_has_the_location_and_the_limit(
    sent: dict[str, list[str]], server: TypingServer
) -> None:
    assert len(server.requests) == sum(map(len, sent.values()))
    for request in server.requests:
        assert request["jobReference"]["location"] == "EU"
        assert request["configuration"]["query"]["maximumBytesBilled"] == str(MOST_BYTES)


def test_columns_are_those_of_the_contract(
    sent: dict[str, list[str]], server: TypingServer
) -> None:
    """NUMERIC keeps precision and scale in the table, where a cast may not have them."""
    statement = sqlglot.parse_one(created(sent["first"], "daily_revenue"), dialect="bigquery")
    columns = {c.name: text(c.kind) for c in statement.find_all(exp.ColumnDef) if c.kind}
    assert columns["net_revenue"] == "numeric(18, 3)"
    assert columns["order_count"] == "int64"
    assert server.tables[("online_retail_core", FACT)]["invoice_datetime"] == "DATETIME"


def test_the_supply_chains_months_are_an_array_of_dates(sent: dict[str, list[str]]) -> None:
    sql = created(sent["first"], "customer_retention_rate", "supply_chain_core")
    (series,) = sqlglot.parse_one(sql, dialect="bigquery").find_all(exp.GenerateDateArray)
    assert text(series) == "generate_date_array(first_month, last_month, interval '1' month)"


def test_reserved_columns_of_the_supply_chain_are_quoted(sent: dict[str, list[str]]) -> None:
    sql = one(sent["first"], "create or replace view", "stg_dim_metadata")
    for column in ("key", "offset", "partition", "time"):
        assert f"`{column}`" in sql


def test_money_and_ratios_of_the_supply_chain_are_numeric(
    sent: dict[str, list[str]], server: TypingServer
) -> None:
    sql = created(sent["first"], "overall_performance", "supply_chain_core")
    statement = sqlglot.parse_one(sql, dialect="bigquery")
    columns = {c.name: text(c.kind) for c in statement.find_all(exp.ColumnDef) if c.kind}
    assert columns["profit"] == "numeric(28, 2)"
    assert columns["margin"] == "numeric(38, 9)"
    assert columns["late_delivery_rate"] == "numeric(12, 9)"
    for table, found in server.tables.items():
        if table[0].startswith("supply_chain"):
            assert not [c for c, kind in found.items() if kind.startswith("FLOAT")], table

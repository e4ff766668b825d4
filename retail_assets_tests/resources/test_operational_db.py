"""Tests of retail_assets.resources.operational_db, on the embedded server."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.operational_db import (
    OperationalDbRefusedError,
    OperationalDbResource,
    OperationalDbUnreachableError,
    OperationalTableError,
    UnstorableValueError,
    copy_text,
    delete_before,
    ensure_table,
    insert_new,
)
from retail_assets.resources.operational_db.embedded import EmbeddedPostgres
from retail_assets.settings import load_settings

COLUMNS = {"id": "bigint", "text": "text", "payload": "jsonb"}
KEY = ("id",)
SECRET = "s3cret-word"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    yield folder
    EmbeddedPostgres.leave(folder)


@pytest.fixture(scope="module")
def database(home: Path) -> OperationalDbResource:
    return OperationalDbResource(url="embedded", home=str(home))


@pytest.fixture(scope="module")
def url(database: OperationalDbResource) -> str:
    """The embedded server as a URL, which is checked as any other."""
    with database.connect() as connection:
        return f"postgresql:///postgres?host={connection.info.host}&port=5432&user=postgres"


@pytest.fixture
def table(database: OperationalDbResource, request: pytest.FixtureRequest) -> str:
    """An empty table of COLUMNS."""
    name = f"landing.{request.node.originalname}"
    with database.connect() as connection:
        ensure_table(connection, name, COLUMNS, KEY)
        connection.execute(f'truncate landing."{request.node.originalname}"'.encode())
    return name


def ask(database: OperationalDbResource, question: str) -> list[tuple[Any, ...]]:
    with database.connect() as connection:
        return connection.execute(question.encode()).fetchall()


def refer(table: str) -> str:
    return ".".join(f'"{part}"' for part in table.split("."))


def arrow(rows: list[tuple[Any, ...]]) -> pa.Table:
    kinds = [pa.int64(), pa.string(), pa.string()]
    columns = [
        pa.array([row[i] for row in rows], kind) for i, kind in zip(range(3), kinds, strict=True)
    ]
    return pa.table(columns, names=list(COLUMNS))


# Connections


def test_a_block_that_ends_commits_and_one_that_raises_does_not(
    database: OperationalDbResource, table: str
) -> None:
    with database.connect() as connection:
        insert_new(connection, table, COLUMNS, [(1, "kept", "{}")], KEY)
    with pytest.raises(ZeroDivisionError), database.connect() as connection:
        _ = insert_new(connection, table, COLUMNS, [(2, "lost", "{}")], KEY) / 0

    assert connection.closed
    assert ask(database, f"select id, text from {refer(table)}") == [(1, "kept")]


def test_it_is_what_the_settings_name(home: Path) -> None:
    assert OperationalDbResource.of(load_settings(home=str(home))).url == "embedded"
    found = OperationalDbResource.of(load_settings(home=str(home), postgres="postgresql://h/d"))
    assert (found.url, found.home) == ("postgresql://h/d", str(home))


def test_the_probe_says_where_and_which_version(database: OperationalDbResource, url: str) -> None:
    version = ask(database, "show server_version")[0][0]

    assert (
        database.probe() == f"{Path(database.home) / 'postgres'} (embedded), PostgreSQL {version}"
    )
    assert OperationalDbResource(url=url, home="").probe() == f"{url}, PostgreSQL {version}"


def test_the_probe_refuses_what_cannot_be_loaded_into(url: str) -> None:
    options = "options=-c%20default_transaction_read_only%3Don"
    read_only = OperationalDbResource(url=f"{url}&{options}", home="")
    with pytest.raises(OperationalDbRefusedError, match="found one that is read only"):
        read_only.probe()

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop database if exists bytes_only")
        connection.execute("create database bytes_only encoding 'SQL_ASCII' template template0")
        connection.execute("drop role if exists reader")
        connection.execute("create role reader login")
        connection.execute("revoke temporary on database bytes_only from public")
    other = url.replace("/postgres?", "/bytes_only?")
    with pytest.raises(OperationalDbRefusedError, match="found SQL_ASCII"):
        OperationalDbResource(url=other, home="").probe()
    with pytest.raises(OperationalDbRefusedError, match="privilege TEMP"):
        OperationalDbResource(url=other.replace("user=postgres", "user=reader"), home="").probe()


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("/postgres?", "/absent?", 'database "absent" does not exist'),
        ("user=postgres", "user=nobody-here", 'role "nobody-here" does not exist'),
        ("port=5432", "port=5432&sslrootcert=/absent.crt&sslmode=verify-full&host=127.0.0.1", ""),
    ],
)
def test_a_database_that_refuses_is_no_matter_of_retries(
    url: str, old: str, new: str, found: str
) -> None:
    broken = url.replace(old, new)
    kind = PermanentError if found else TransientError  # nobody listens at 127.0.0.1
    with pytest.raises(kind) as error, OperationalDbResource(url=broken, home="").connect():
        pass

    assert str(error.value).startswith(f"RETAIL_POSTGRES is {broken!r}; ")
    assert found in str(error.value)


def test_a_server_that_is_not_there_may_come(tmp_path: Path) -> None:
    shown = f"postgresql://retail:***@127.0.0.1:1/d?host={tmp_path}&password=***"
    real = f"postgresql://retail:{SECRET}@127.0.0.1:1/d?host={tmp_path}&password={SECRET}"
    with (
        pytest.raises(OperationalDbUnreachableError) as error,
        OperationalDbResource(url=real, home="").connect(),
    ):
        pass

    assert str(error.value).startswith(f"RETAIL_POSTGRES is {shown!r}; no answer: ")
    assert SECRET not in f"{error.value} {error.value.__cause__}"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://retail:{SECRET}%zz@h/d",
        f"postgresql://retail:{SECRET}@h/d?no_such_option={SECRET}",
        f"postgresql://retail@h/d?password={SECRET}&x",
    ],
)
def test_a_url_that_libpq_does_not_read_is_told_without_its_password(url: str) -> None:
    resource = OperationalDbResource(url=url, home="")
    with pytest.raises(PermanentError) as error, resource.connect():
        pass

    assert "RETAIL_POSTGRES" in str(error.value)
    assert f":{SECRET}" not in f"{error.value}" and f"password={SECRET}" not in f"{error.value}"
    assert error.value.__suppress_context__


def test_the_password_is_in_no_field_that_dagster_shows() -> None:
    url = f"postgresql://retail:{SECRET}@db.shop.test/retail"
    resource = OperationalDbResource(url=url, home="/srv")
    definitions = dg.Definitions(resources={"database": resource})

    assert resource.url == "postgresql://retail:***@db.shop.test/retail"
    shown = definitions.resources["database"]
    assert SECRET not in f"{resource!r} {resource} {resource.where} {shown!r} {vars(shown)}"
    assert SECRET not in str(shown.get_resource_definition().config_schema.default_value)


def test_the_password_reaches_a_run_nevertheless(url: str) -> None:
    """Dagster makes the resource of a run anew, from its fields."""
    seen = []

    @dg.asset
    def connected(database: OperationalDbResource) -> None:
        with database.connect() as connection:
            seen.append(connection.info.password)

    resource = OperationalDbResource(url=f"{url}&password={SECRET}", home="")
    assert dg.materialize([connected], resources={"database": resource}).success
    assert seen == [SECRET]


def test_a_password_of_another_process_is_said_to_be_missing() -> None:
    resource = OperationalDbResource(url="postgresql://somebody:***@h/d", home="")
    with (
        pytest.raises(OperationalDbRefusedError, match="is in another process"),
        resource.connect(),
    ):
        pass


def test_a_lost_connection_is_told_and_nothing_is_half_done(
    database: OperationalDbResource, table: str
) -> None:
    def rows(connection: psycopg.Connection[Any]) -> Iterator[tuple[Any, ...]]:
        yield (1, "lost", "{}")
        with psycopg.connect(connection.info.dsn, autocommit=True) as killer:
            pid = connection.info.backend_pid
            killer.execute("select pg_terminate_backend(%s, 5000)", [pid])
        yield (2, "lost", "{}")

    with pytest.raises(OperationalDbUnreachableError) as error, database.connect() as connection:
        insert_new(connection, table, COLUMNS, rows(connection), KEY)

    assert "RETAIL_POSTGRES is 'embedded'; the transaction was lost: " in str(error.value)
    assert ask(database, f"select count(*) from {refer(table)}") == [(0,)]


def test_other_errors_of_the_block_stay_what_they_are(database: OperationalDbResource) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero), database.connect() as connection:
        connection.execute("select 1 / 0")


def test_a_missing_privilege_names_the_variable(url: str, table: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop owned by stranger") if connection.execute(
            "select 1 from pg_roles where rolname = 'stranger'"
        ).fetchone() else connection.execute("create role stranger login")
    stranger = OperationalDbResource(url=url.replace("user=postgres", "user=stranger"), home="")
    with (
        pytest.raises(OperationalDbRefusedError, match="permission denied for schema landing"),
        stranger.connect() as connection,
    ):
        connection.execute(f"select * from {refer(table)}".encode())


# Tables


def test_a_table_is_made_once_however_many_ask(database: OperationalDbResource) -> None:
    """Without the lock, `create schema if not exists` of two sessions fails by its unique index."""
    with database.connect() as connection:
        connection.execute("drop schema if exists raced cascade")
    start = threading.Barrier(8)
    errors: list[BaseException] = []

    def make() -> None:
        try:
            with database.connect() as connection:
                start.wait()
                ensure_table(connection, "raced.orders", COLUMNS, KEY)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    question = "select count(*) from pg_tables where schemaname = 'raced'"
    assert ask(database, question) == [(1,)]


def test_a_table_has_its_columns_key_and_options(database: OperationalDbResource) -> None:
    columns = {"offset": "bigint", "a b": "text not null", 'q"': "varchar(10)", "n": "timestamp"}
    with database.connect() as connection:
        for _ in range(2):
            ensure_table(
                connection,
                "landing.odd",
                columns,
                ("offset", "a b"),
                "with (toast_tuple_target = 8160)",
            )
    assert ask(
        database,
        "select column_name::text, data_type::text, is_nullable::text"
        " from information_schema.columns where table_name = 'odd' order by ordinal_position",
    ) == [
        ("offset", "bigint", "NO"),
        ("a b", "text", "NO"),
        ('q"', "character varying", "YES"),
        ("n", "timestamp without time zone", "YES"),
    ]
    assert ask(database, "select reloptions from pg_class where relname = 'odd'") == [
        (["toast_tuple_target=8160"],)
    ]
    with database.connect() as connection:
        row = (1, "a", "b", datetime(2026, 1, 2, 3, 4, 5, 6))
        assert insert_new(connection, "landing.odd", columns, [row], ("offset", "a b")) == 1
        assert connection.execute("select * from landing.odd").fetchall() == [row]


@pytest.mark.parametrize(
    ("change", "found"),
    [("drop column text", "id bigint, payload jsonb"), ("alter text type int using 1", "integer")],
)
def test_a_table_that_differs_is_told_and_left(
    database: OperationalDbResource, table: str, change: str, found: str
) -> None:
    with database.connect() as connection:
        connection.execute(f"alter table {refer(table)} {change}".encode())
    with pytest.raises(OperationalTableError) as error, database.connect() as connection:
        ensure_table(connection, table, COLUMNS, KEY)
    with database.connect() as connection:
        connection.execute(f"drop table {refer(table)}".encode())

    assert str(error.value).startswith(f"{table}: expected the columns id bigint, text text")
    assert found in str(error.value)


def test_a_table_of_more_columns_will_do(database: OperationalDbResource, table: str) -> None:
    with database.connect() as connection:
        connection.execute(f"alter table {refer(table)} add column if not exists x int".encode())
        ensure_table(connection, table, COLUMNS, KEY)


def test_who_may_not_create_may_use_what_is_there(url: str, table: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        known = connection.execute("select 1 from pg_roles where rolname = 'loader'").fetchone()
        if known is None:
            connection.execute("create role loader login")
        connection.execute("grant usage on schema landing to loader")
        connection.execute(f"grant select, insert on {refer(table)} to loader".encode())
    loader = OperationalDbResource(url=url.replace("user=postgres", "user=loader"), home="")
    with loader.connect() as connection:
        ensure_table(connection, table, COLUMNS, KEY)
        assert insert_new(connection, table, COLUMNS, [(1, "a", "{}")], KEY) == 1


# Rows


@pytest.mark.parametrize("form", [list, arrow, iter])
def test_rows_that_are_there_are_left_alone(
    database: OperationalDbResource, table: str, form: Any
) -> None:
    first = [(1, "one", '{"n": 1}'), (2, None, None), (1, "again", "{}")]
    second = [(2, "other", "{}"), (3, "three", "[1, 2]")]
    with database.connect() as connection:
        assert insert_new(connection, table, COLUMNS, form(first), KEY) == 2
        assert insert_new(connection, table, COLUMNS, form(second), KEY) == 1
        assert insert_new(connection, table, COLUMNS, form([]), KEY) == 0

    assert ask(database, f"select * from {refer(table)} order by id") == [
        (1, "one", {"n": 1}),
        (2, None, None),
        (3, "three", [1, 2]),
    ]


# Any text but what PostgreSQL cannot hold: U+0000 and lone surrogates.
TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
    | st.sampled_from('\\\t\n\r\x0b\b\f\x1f\x7f"N.,\\u0001é\u2028'),
    max_size=40,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(st.integers(-(2**63), 2**63 - 1), st.none() | TEXTS, JSON), max_size=20
    ),
    escaped=st.booleans(),
)
def test_what_was_put_in_comes_out(
    database: OperationalDbResource,
    table: str,
    rows: list[tuple[int, str | None, Any]],
    escaped: bool,
) -> None:
    told = [(i, text, json.dumps(value, ensure_ascii=escaped)) for i, text, value in rows]
    first: dict[int, tuple[Any, ...]] = {}
    for row in rows:
        first.setdefault(row[0], row)
    for form in (list, arrow):
        with database.connect() as connection:
            connection.execute(f"truncate {refer(table)}".encode())
            assert insert_new(connection, table, COLUMNS, form(told), KEY) == len(first)
            found = connection.execute(f"select * from {refer(table)} order by id".encode())
            assert found.fetchall() == sorted(first.values(), key=lambda row: row[0])


KINDS: list[tuple[str, pa.DataType, list[Any]]] = [
    ("smallint", pa.int16(), [-1, 2, None]),
    ("boolean", pa.bool_(), [True, False, None]),
    ("date", pa.date32(), [date(1, 1, 1), date(2026, 11, 21), None]),
    ("timestamp", pa.timestamp("us"), [datetime(2017, 2, 28, 23, 59, 59, 999999), None]),
    ("timestamp", pa.timestamp("ms"), [datetime(1969, 12, 31, 1, 2, 3, 4000), None]),
    ("numeric", pa.decimal128(18, 2), [Decimal("-299.98"), Decimal("0.00"), None]),
    ("numeric", pa.decimal128(20, 9), [Decimal("0.000000001"), None]),
    ("double precision", pa.float64(), [1e-300, 0.1, -1.5e300, float("inf"), None]),
    ("text", pa.large_string(), ["a\tb", "\\N", None]),
    ("text", pa.dictionary(pa.int8(), pa.string()), ["a\\", "b", "a\\", None]),
    ("text", pa.null(), [None, None]),
]


@pytest.mark.parametrize(("kind", "arrow_kind", "values"), KINDS)
def test_values_of_every_type_come_out_as_they_are(
    database: OperationalDbResource, kind: str, arrow_kind: pa.DataType, values: list[Any]
) -> None:
    columns = {"id": "integer", "value": kind}
    rows = pa.table({"value": pa.array(values, arrow_kind), "id": pa.array(range(len(values)))})
    with database.connect() as connection:
        connection.execute("drop table if exists landing.kinds")
        ensure_table(connection, "landing.kinds", columns, KEY)
        assert insert_new(connection, "landing.kinds", columns, rows, KEY) == len(values)
        found = connection.execute("select value from landing.kinds order by id").fetchall()

    assert [value for (value,) in found] == values


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.none() | TEXTS, min_size=1, max_size=50), data=st.data())
def test_a_slice_and_its_chunks_are_the_same_text(
    texts: list[str | None], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(texts)))
    cut = data.draw(st.integers(start, len(texts)))
    whole = pa.table({"a": pa.array(texts, pa.string()), "b": pa.array(range(len(texts)))})
    chunked = pa.concat_tables([whole.slice(start, cut - start), whole.slice(cut)])
    expected = [
        (escaped(text) if text is not None else "\\N") + f"\t{number}\n"
        for number, text in enumerate(texts)
    ][start:]

    assert b"".join(copy_text(chunked, ["a", "b"])).decode() == "".join(expected)
    assert (
        b"".join(copy_text(chunked.select(["b"]), ["b"]))
        == "".join(f"{number}\n" for number in range(start, len(texts))).encode()
    )


def escaped(text: str) -> str:
    table = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
    return "".join(table.get(character, character) for character in text)


def test_a_record_batch_is_rows_too(database: OperationalDbResource, table: str) -> None:
    (batch,) = arrow([(1, "a", "{}"), (2, "b", "{}"), (3, "c", "{}")]).to_batches()
    with database.connect() as connection:
        assert insert_new(connection, table, COLUMNS, batch.slice(1), KEY) == 2

    assert ask(database, f"select id from {refer(table)} order by id") == [(2,), (3,)]


def test_columns_are_matched_by_name_and_all_are_wanted(
    database: OperationalDbResource, table: str
) -> None:
    rows = arrow([(1, "a", "{}")])
    with database.connect() as connection:
        assert insert_new(connection, table, COLUMNS, rows.select(["payload", "id", "text"]), KEY)
    assert ask(database, f"select id, text from {refer(table)}") == [(1, "a")]
    for wrong in (rows.drop_columns(["text"]), rows.append_column("more", rows["id"])):
        with pytest.raises(ValueError, match="expected the columns"), database.connect() as other:
            insert_new(other, table, COLUMNS, wrong, KEY)
    lists = pa.table({"id": pa.array([1]), "text": pa.array([["a"]]), "payload": pa.array([b""])})
    with pytest.raises(TypeError, match="text: expected text, numbers"):
        list(copy_text(lists, list(COLUMNS)))


BAD = [
    ("payload", '{"name": "NUL \\u0000 in JSON"}', "unsupported Unicode escape"),
    ("payload", "{", "invalid input syntax for type json"),
    ("payload", '{"n": 1e999999}', "value overflows numeric format"),
    ("payload", '"\\ud800"', "invalid input syntax for type json"),
    ("payload", "[" * 50_000, "stack depth limit exceeded"),
    ("text", "NUL \x00 itself", "NUL|0x00"),
]


@pytest.mark.parametrize(("column", "value", "found"), BAD)
@pytest.mark.parametrize("form", [list, arrow])
def test_a_value_that_cannot_be_stored_is_named_but_not_shown(
    database: OperationalDbResource, table: str, form: Any, column: str, value: str, found: str
) -> None:
    bad = {"id": 3, "text": "", "payload": "{}"} | {column: value}
    rows = form([(1, "fine", "{}"), (2, "fine", "{}"), tuple(bad.values()), (4, "fine", "{}")])
    with (
        pytest.raises(UnstorableValueError, match=found) as error,
        database.connect() as connection,
    ):
        insert_new(connection, table, COLUMNS, rows, KEY)

    message = str(error.value)
    assert message.startswith(f"{table}: a value cannot be stored (row 3")
    assert value[:10] not in message and "NUL " not in message.replace("contain NUL ", "")
    assert error.value.__cause__ is None and error.value.__suppress_context__
    assert ask(database, f"select count(*) from {refer(table)}") == [(0,)]


def test_a_lone_surrogate_and_a_missing_value_are_named(
    database: OperationalDbResource, table: str
) -> None:
    def told(columns: Mapping[str, str], *rows: tuple[Any, ...]) -> str:
        with pytest.raises(UnstorableValueError) as error, database.connect() as connection:
            insert_new(connection, table, columns, rows, KEY)
        return str(error.value)

    assert "(row 1): surrogates not allowed (U+D800)" in told(COLUMNS, (1, "\ud800", "{}"))
    strict = COLUMNS | {"payload": "jsonb not null"}
    assert "(row 2, column payload): null value" in told(strict, (1, "", "{}"), (2, "", None))
    assert "(column id): null value" in told(COLUMNS, (1, "", "{}"), (None, "", "{}"))


def test_what_went_wrong_with_a_value_is_not_in_the_servers_log(
    database: OperationalDbResource, table: str, home: Path
) -> None:
    row = (1, "Ada Lovelace-Byron", '{"street": "Ada Lovelace-Byron Street", "x": "\\u0000"}')
    with pytest.raises(UnstorableValueError), database.connect() as connection:
        insert_new(connection, table, COLUMNS, [row], KEY)

    log = (home / "postgres" / "server.log").read_text()
    assert "unsupported Unicode escape sequence" in log
    assert "Lovelace" not in log


@pytest.mark.parametrize(
    ("columns", "key", "found"),
    [
        (COLUMNS, ("text",), "no unique or exclusion constraint"),
        ({**COLUMNS, "more": "text"}, KEY, '"more"'),
        ({**COLUMNS, "text": "no_such_type"}, KEY, "no_such_type"),
    ],
)
def test_a_table_that_cannot_take_the_rows_is_named(
    database: OperationalDbResource,
    table: str,
    columns: Mapping[str, str],
    key: tuple[str, ...],
    found: str,
) -> None:
    row = (1, "a", "{}", "more")[: len(columns)]
    with pytest.raises(OperationalTableError) as error, database.connect() as connection:
        insert_new(connection, table, columns, [row], key)

    assert str(error.value).startswith(f"{table}: expected the columns ")
    assert found in str(error.value)


def test_two_tables_in_one_transaction_and_two_sessions_at_once(
    database: OperationalDbResource, table: str
) -> None:
    """The rows of two that load the same are inserted once; the second waits for the first."""
    other = f"{table}_letters"
    rows = [(number, "x", "{}") for number in range(1000)]
    with database.connect() as connection:
        ensure_table(connection, other, COLUMNS, KEY)
        connection.execute(f"truncate {refer(other)}".encode())
    inserted: list[int] = []

    def load() -> None:
        with database.connect() as connection:
            for name in (table, other):
                inserted.append(insert_new(connection, name, COLUMNS, rows, KEY))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(inserted) == 2000 and len(inserted) == 6
    for name in (table, other):
        assert ask(database, f"select count(*) from {refer(name)}") == [(1000,)]


def test_what_is_committed_is_on_the_disk(database: OperationalDbResource) -> None:
    with database.connect() as connection:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert connection.execute(f"show {name}".encode()).fetchall() == [("on",)]


def test_loading_is_no_slower_than_a_bare_copy_of_the_same_rows_by_far(
    database: OperationalDbResource,
) -> None:
    """The helper against psycopg's own rows, copied and inserted by hand: at most double."""
    columns = {"id": "bigint", "payload": "jsonb"}
    payload = json.dumps({f"Column {n}": f"value {n}" for n in range(50)})
    rows = pa.table({"id": pa.array(range(10_000)), "payload": pa.array([payload] * 10_000)})
    took: dict[str, float] = {}
    with database.connect() as connection:
        ensure_table(connection, "landing.bare", columns, KEY)
        for attempt in range(3):
            connection.execute("truncate landing.bare")
            start = time.perf_counter()
            with connection.cursor().copy("copy landing.bare from stdin") as copy:
                for row in zip(rows["id"].to_pylist(), rows["payload"].to_pylist(), strict=True):
                    copy.write_row(row)
            bare = time.perf_counter() - start
            connection.execute("truncate landing.bare")
            start = time.perf_counter()
            assert insert_new(connection, "landing.bare", columns, rows, KEY) == 10_000
            ours = time.perf_counter() - start
            took[f"{attempt}"] = ours / bare
    assert min(took.values()) < 2, took


# ---- delete_before


def test_rows_before_a_day_are_counted_or_deleted(database: OperationalDbResource) -> None:
    table, columns = "landing.dated", {"id": "bigint", "day": "date"}
    first, last = date(2026, 1, 1), date(2026, 1, 2)
    with database.connect() as connection:
        assert delete_before(connection, table, "day", last, dry_run=False) == 0  # no table yet
        ensure_table(connection, table, columns, KEY)
        insert_new(connection, table, columns, [(1, first), (2, last), (3, first)], KEY)

        assert delete_before(connection, table, "day", last, dry_run=True) == 2
        assert delete_before(connection, table, "day", last, dry_run=False) == 2

        assert connection.execute(f"select id from {refer(table)}".encode()).fetchall() == [(2,)]

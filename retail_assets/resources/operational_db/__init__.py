"""The operational database: PostgreSQL, into which rows are copied that are not there yet.

Here: connections and what may go wrong with them, tables by their columns, the copying. Not here:
the embedded server's processes (embedded.py), which rows (defs/).
"""

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import dagster as dg
from pydantic import field_validator

from retail_assets.database_url import redacted
from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.operational_db.embedded import ADMINISTRATOR, EmbeddedPostgres
from retail_assets.settings import Settings

if TYPE_CHECKING:
    import psycopg
    import pyarrow as pa

    Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
    Rows: TypeAlias = pa.Table | pa.RecordBatch | Iterable[Sequence[Any]]

EMBEDDED = "embedded"
_CONNECT_S = 10
# Shorter messages keep fewer rows in memory twice; longer ones are not faster.
_COPY_ROWS = 2048
_NEW = "retail_new_rows"
# An advisory lock of ours: `create ... if not exists` fails where two sessions create at once.
_CREATE_LOCK = 0x7265_7461_696C
# What PostgreSQL's text format of COPY takes for its own.
_ESCAPES = (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r"))
_COPY_CONTEXT = re.compile(r"^COPY \w+, line (\d+)(?:, column ([^:\n]+))?", re.MULTILINE)
# Connection failures come without a code; these words of them say that no retry mends it.
_REFUSED = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|does not exist"
    r"|permission denied|not permitted to log in|not currently accepting connections"
    r"|does not support SSL|certificate|invalid (?:port|integer|[a-z_]+ value)",
    re.IGNORECASE,
)
# Classes of SQLSTATE that may pass: connection, transaction rollback, resources, intervention,
# system; 25006 is a server that became a standby.
_PASSING = ("08", "40", "53", "57", "58")
_SCHEMA_CODES = ("25006", "42501", "42601", "42703", "42704", "42804", "42P01", "42P10", "3F000")
# Passwords are no part of the resource's fields, which Dagster's UI shows.
_full_urls: dict[str, str] = {}


class OperationalDbUnreachableError(TransientError):
    """The database does not answer, or the connection to it was lost; nothing was half done."""


class OperationalDbRefusedError(PermanentError):
    """The database does not let us in, or do what is needed."""


class OperationalTableError(PermanentError):
    """A table is not what its declaration says."""


class UnstorableValueError(PermanentError):
    """A value that the database cannot hold: U+0000, a lone surrogate, no JSON, another type."""


class OperationalDbResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The PostgreSQL that messages go to (RETAIL_POSTGRES).

    ``url`` is libpq's, or ``embedded`` for a server below ``home``.
    Of a URL with a password, ``url`` shows ``***``; the password stays in this process.
    """

    url: str
    home: str

    @field_validator("url")
    @classmethod
    def _keep_password_to_ourselves(cls, url: str) -> str:
        shown = redacted(url)
        if shown != url:
            _full_urls[shown] = url
        return shown

    @classmethod
    def of(cls, settings: Settings) -> "OperationalDbResource":
        """The database that the settings name."""
        return cls(url=settings.postgres, home=str(settings.home))

    @property
    def where(self) -> str:
        """Where it is, for people: no password."""
        return f"{Path(self.home) / 'postgres'} (embedded)" if self.url == EMBEDDED else self.url

    @contextmanager
    def connect(self) -> Iterator["Connection"]:
        """A connection, its transaction committed where the block ends, else rolled back; closed.

        Commits in between are the caller's. The embedded server is started where it does not run.

        Raises:
            OperationalDbUnreachableError: it does not answer, or was lost within the block. A
                commit that was under way then may have happened: load the same rows again.
            OperationalDbRefusedError: wrong password, no such database, no permission.
            EmbeddedPostgresError: the embedded server cannot run here.
            EmbeddedPostgresBusyError: the embedded server was not ready in time.
        """
        import psycopg

        connection = self._open()
        try:
            with connection:
                yield connection
        except psycopg.Error as error:
            if (failure := self._failure(error)) is None:
                raise
            raise failure from error

    def probe(self) -> str:
        """Where the database is and its version, after a look at what loading needs.

        Raises:
            OperationalDbRefusedError: it may not be written to, or does not hold Unicode; and as
                ``connect``.
        """
        question = (
            "select current_setting('server_version'), current_setting('transaction_read_only'),"
            " has_database_privilege(current_database(), 'TEMP'),"
            " current_setting('server_encoding')"
        )
        with self.connect() as connection:
            row = connection.execute(question).fetchone()
        assert row is not None
        version, read_only, may_copy, encoding = row
        wrong = None
        if read_only == "on":
            wrong = "a database that is written to, found one that is read only"
        elif not may_copy:
            wrong = "the privilege TEMP, found none: grant temporary on database ... to the user"
        elif encoding != "UTF8":
            wrong = f"a database in UTF8, found {encoding}: create database ... encoding 'UTF8'"
        if wrong is not None:
            raise OperationalDbRefusedError(f"RETAIL_POSTGRES is {self.url!r}; expected {wrong}.")
        return f"{self.where}, PostgreSQL {version}"

    def _open(self) -> "Connection":
        import psycopg

        options: dict[str, Any] = {
            "client_encoding": "utf8",
            "fallback_application_name": "retail-assets",
            # A pooler may give each transaction another session.
            "prepare_threshold": None,
        }
        if self.url == EMBEDDED:
            return self._open_embedded(options)
        url = _full_urls.get(self.url, self.url)
        if url == self.url and "***" in url:
            raise OperationalDbRefusedError(
                f"RETAIL_POSTGRES is {self.url!r} here; its password is in another process."
                " Build the resource by OperationalDbResource.of(settings) in this one."
            )
        if "connect_timeout" not in url:
            options["connect_timeout"] = _CONNECT_S
        try:
            return psycopg.connect(url, **options)
        except psycopg.ProgrammingError:  # its message has parts of the URL, the password maybe
            raise OperationalDbRefusedError(
                f"RETAIL_POSTGRES is {self.url!r}, which libpq does not read. Expected"
                " postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with % and two digits for"
                " characters of the password that are no letters or digits."
            ) from None
        except psycopg.OperationalError as error:
            found = _one_line(error)
            if _REFUSED.search(found):
                raise OperationalDbRefusedError(
                    f"RETAIL_POSTGRES is {self.url!r}; the database refused: {found}. Set the"
                    " user, password, host and database that are right, or create them."
                ) from error
            raise OperationalDbUnreachableError(
                f"RETAIL_POSTGRES is {self.url!r}; no answer: {found}. Look whether the server"
                " runs and takes connections from here."
            ) from error

    def _open_embedded(self, options: dict[str, Any]) -> "Connection":
        """Where the server ends or recovers between the look at it and the call, look again."""
        import psycopg

        options |= {"port": 5432, "user": ADMINISTRATOR, "dbname": ADMINISTRATOR}
        options |= {"gssencmode": "disable", "connect_timeout": _CONNECT_S}
        end = time.monotonic() + _CONNECT_S
        while True:
            host = EmbeddedPostgres.attach(self.home)
            try:
                return psycopg.connect(host=host, **options)
            except psycopg.OperationalError as error:
                if time.monotonic() > end:
                    raise OperationalDbUnreachableError(
                        f"RETAIL_POSTGRES is 'embedded'; no answer: {_one_line(error)}. Run this"
                        f" again; look at {Path(self.home) / 'postgres'} if it stays."
                    ) from error
                time.sleep(0.1)

    def _failure(self, error: "psycopg.Error") -> PermanentError | TransientError | None:
        import psycopg

        code = error.sqlstate
        found = _one_line(error.diag.message_primary or error)
        is_lost = code is None and isinstance(error, psycopg.OperationalError)
        if is_lost or (code is not None and code.startswith(_PASSING)):
            return OperationalDbUnreachableError(
                f"RETAIL_POSTGRES is {self.url!r}; the transaction was lost: {found}"
                f"{f' ({code})' if code else ''}. Run this again; look at the server if it stays."
            )
        if code == "25006":
            return OperationalDbRefusedError(
                f"RETAIL_POSTGRES is {self.url!r}; {found}. Name a server that is written to."
            )
        if code == "42501":
            return OperationalDbRefusedError(
                f"RETAIL_POSTGRES is {self.url!r}; {found}. Grant that to its user."
            )
        return None


def ensure_table(
    connection: "Connection",
    table: str,
    columns: Mapping[str, str],
    key: Sequence[str],
    options: str = "",
) -> None:
    """Create ``table`` ("schema.name"), and its schema, where they are not there.

    ``columns`` are SQL types by name, such as "jsonb" or "text not null"; ``key`` is the primary
    key; ``options`` goes after the columns, such as "with (toast_tuple_target = 8160)". Many may
    ask at once: they wait for each other, to the end of the transaction, so ask in one of its own.

    Raises:
        OperationalTableError: the table is there and lacks a column, or has it in another type; it
            is unchanged.
    """
    schema, _, _ = table.rpartition(".")
    with connection.transaction():
        if _found_columns(connection, table) is None:
            connection.execute("select pg_advisory_xact_lock(%s)", [_CREATE_LOCK])
            # Asked first: creating needs a privilege even where there is nothing to create.
            if schema and not _one(connection, "select to_regnamespace(%s)", _quoted(schema)):
                connection.execute(f"create schema {_quoted(schema)}".encode())
            if _found_columns(connection, table) is None:
                fields = [f"{_quoted(name)} {kind}" for name, kind in columns.items()]
                fields.append(f"primary key ({', '.join(_quoted(name) for name in key)})")
                sql = f"create table {_quoted(table)} ({', '.join(fields)}) {options}"
                connection.execute(sql.encode())
        found = _found_columns(connection, table)
        expected = {
            name: _one(connection, "select to_regtype(%s)::text", _bare(kind))
            for name, kind in columns.items()
        }
    assert found is not None
    if not expected.items() <= found.items():
        raise OperationalTableError(
            f"{table}: expected the columns {_shown(expected)}, found {_shown(found)}. Alter the"
            " table, or rename it; it is then made anew."
        )


def insert_new(
    connection: "Connection",
    table: str,
    columns: Mapping[str, str],
    rows: "Rows",
    key: Sequence[str],
) -> int:
    """Insert the rows whose ``key`` is not in ``table`` ("schema.name") yet; how many these were.

    ``rows`` have the values of ``columns`` (SQL types by name) in order, jsonb as JSON text; or
    they are an Arrow table that has the columns, and no other. Of rows with one key the first is
    inserted. All is in the connection's transaction, which is the caller's to commit.

    Raises:
        UnstorableValueError: the line of the rows, counted from 1, and the column; the transaction
            is lost. PostgreSQL holds no U+0000, neither in text nor as an escape in jsonb.
        OperationalTableError: the table lacks a column, or has no unique key of these columns.
    """
    import psycopg

    names = ", ".join(_quoted(name) for name in columns)
    fields = ", ".join(f"{_quoted(name)} {kind}" for name, kind in columns.items())
    keys = ", ".join(_quoted(name) for name in key)
    row = 0
    try:
        with connection.cursor() as cursor:
            # Compressed once, where the rows stay, if at all.
            cursor.execute(
                f"create temporary table {_NEW} ({fields}) with (toast_tuple_target = 8160)"
                " on commit drop".encode()
            )
            with cursor.copy(f"copy pg_temp.{_NEW} ({names}) from stdin".encode()) as copy:
                if _is_arrow(rows):
                    for text in copy_text(rows, tuple(columns)):
                        copy.write(text)
                else:
                    for values in rows:
                        row += 1
                        copy.write_row(values)
            row = 0
            cursor.execute(
                f"insert into {_quoted(table)} ({names}) select {names} from pg_temp.{_NEW}"
                f" on conflict ({keys}) do nothing".encode()
            )
            inserted = cursor.rowcount
            cursor.execute(f"drop table pg_temp.{_NEW}".encode())
    except (psycopg.DataError, psycopg.IntegrityError, UnicodeEncodeError) as error:
        raise _unstorable(table, row, error) from None  # its text has the value
    except psycopg.errors.StatementTooComplex as error:
        raise _unstorable(table, row, error) from None
    except psycopg.ProgrammingError as error:
        if error.sqlstate not in _SCHEMA_CODES:
            raise
        raise OperationalTableError(
            f"{table}: expected the columns {_shown(columns)} and a unique key ({keys});"
            f" {error.diag.message_primary}. Alter the table."
        ) from error
    return inserted


def delete_before(
    connection: "Connection", table: str, column: str, day: date, *, dry_run: bool
) -> int:
    """Delete the rows of ``table`` whose date in ``column`` is before ``day``; how many these are.

    With ``dry_run`` they are counted. None where the table is not there. The commit is the
    caller's.
    """
    if _found_columns(connection, table) is None:
        return 0
    rows = f"from {_quoted(table)} where {_quoted(column)} < %s"
    if dry_run:
        found = connection.execute(f"select count(*) {rows}".encode(), [day]).fetchone()
        return int(found[0]) if found else 0
    return connection.execute(f"delete {rows}".encode(), [day]).rowcount


def copy_text(rows: "pa.Table | pa.RecordBatch", names: Sequence[str]) -> Iterator[bytes]:
    """The rows in COPY's text format, columns in the order of ``names``, in pieces of some MB.

    Raises:
        ValueError: the columns are not those of ``names``.
        TypeError: a column's type has no text here, such as lists and binary.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if sorted(rows.schema.names) != sorted(names):
        raise ValueError(f"expected the columns {sorted(names)}, found {rows.schema.names}")
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_batches([rows])
    end = pa.scalar("\n", pa.large_string())
    empty, tab = pa.scalar("", pa.large_string()), pa.scalar("\t", pa.large_string())
    for batch in table.select(list(names)).to_batches(max_chunksize=_COPY_ROWS):
        if batch.num_rows == 0:
            continue
        values = [_field_text(name, batch.column(name)) for name in names]
        values[-1] = pc.binary_join_element_wise(values[-1], end, empty)
        lines = pc.binary_join_element_wise(*values, tab) if len(values) > 1 else values[0]
        yield _data(lines)


def _field_text(name: str, values: "pa.Array") -> "pa.Array":
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    if pa.types.is_dictionary(kind):
        values = values.dictionary_decode()
        kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        text = values.cast(pa.large_string())
        data = _data(text)
        for character, escape in _ESCAPES:
            # JSON has few of them: to look first is a third of the time.
            if character.encode() in data:
                text = pc.replace_substring(text, character, escape)
    elif pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise TypeError(f"{name}: expected text, numbers or times, found {kind}")
    else:
        text = values.cast(pa.string()).cast(pa.large_string())
    return pc.fill_null(text, "\\N") if text.null_count else text


def _data(text: "pa.Array") -> bytes:
    """The bytes of all texts, one after the other."""
    _, offsets, data = text.buffers()
    if data is None:
        return b""
    view = memoryview(offsets).cast("q")
    start, stop = view[text.offset], view[text.offset + len(text)]
    return memoryview(data)[start:stop].tobytes()


def _is_arrow(rows: object) -> bool:
    return type(rows).__module__.partition(".")[0] == "pyarrow"


def _unstorable(table: str, row: int, error: Exception) -> UnstorableValueError:
    """What and where, without the value: it may be personal."""
    import psycopg

    found, context, column = str(error), "", None
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        found, context = error.diag.message_primary, error.diag.context or ""
        column = error.diag.column_name
    elif isinstance(error, UnicodeEncodeError):
        found = f"{error.reason} (U+{ord(error.object[error.start]):04X})"
    if match := _COPY_CONTEXT.search(context):
        row, column = int(match[1]), match[2] or column
    found = re.sub(r': ".*', "", found, flags=re.DOTALL)
    places = [f"row {row}"] if row else []
    places += [f"column {column}"] if column else []
    return UnstorableValueError(
        f"{table}: a value cannot be stored ({', '.join(places) or 'place unknown'}):"
        f" {found}. Expected text without U+0000 that its column's type can read; take the row out"
        " (a dead letter), and load the others."
    )


def _found_columns(connection: "Connection", table: str) -> dict[str, str] | None:
    """Type of each column by name; None where the table is not there."""
    oid = _one(connection, "select to_regclass(%s)::oid", _quoted(table))
    if oid is None:
        return None
    question = (
        "select attname::text, atttypid::regtype::text from pg_attribute"
        " where attrelid = %s and attnum > 0 and not attisdropped"
    )
    return dict(connection.execute(question, [oid]).fetchall())


def _one(connection: "Connection", question: str, *values: object) -> Any:
    row = connection.execute(question.encode(), values).fetchone()
    assert row is not None
    return row[0]


def _bare(kind: str) -> str:
    """The type of "text not null" or "text collate ...": without what follows it."""
    return re.split(r"(?i)\s+(?:not null|null|default|collate|check)\b", kind)[0]


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:400].rstrip(".")


def _quoted(name: str) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))


def _shown(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in columns.items()) or "none"

"""The warehouse of a DuckDB file: loading Parquet files, atomically and one writer at a time.

Here: connections, who has the file, loading by a Dataset's declaration, and the record of what
each partition was loaded from. Not here: dbt's models (defs/marts/), what a partition should hold.
"""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from retail_assets.dataset import Dataset, SchemaDrift
from retail_assets.resources.waiting import HeldError, Wait, lock_file
from retail_assets.resources.warehouse import row_groups
from retail_assets.resources.warehouse.protocol import (
    BY_HAND,
    LoadResult,
    Origin,
    WarehouseBusyError,
    WarehouseResource,
    WarehouseSchemaError,
    partition_keys,
)

if TYPE_CHECKING:
    import duckdb
    from tenacity import RetryCallState

_RECORD = "retail_operations.loaded_partitions"
_HOLDER = re.compile(r"lock is held in (?P<program>.+?) \(PID (?P<pid>\d+)\)")
_FILES = "read_parquet(?, hive_partitioning = false, union_by_name = true)"
# Connections that a thread keeps open, by path.
_kept = threading.local()


class DuckDBWarehouse(WarehouseResource):
    """The warehouse (RETAIL_WAREHOUSE): landed tables and marts, in a DuckDB file.

    One process has it at a time: others wait, up to ``timeout_s`` seconds.
    """

    row_as_json: ClassVar[str] = "to_json(t)::varchar"

    path: str
    memory_limit: str | None = None
    timeout_s: float = 1800

    @contextmanager
    def exclusive(self, timeout_s: float | None = None) -> Iterator[None]:
        """Keep every other process of ours off the file, for a writer that opens it itself.

        Raises:
            WarehouseBusyError: the file was not free in time.
        """
        wait = self.timeout_s if timeout_s is None else timeout_s
        try:
            with lock_file(Path(f"{self.path}.lock"), wait):
                yield
        except HeldError as error:
            raise self._busy(wait, str(error)) from error

    @contextmanager
    def kept_open(self, timeout_s: float | None = None) -> Iterator[None]:
        """Hold one connection for the calls within: to open a file of 1 GB takes 30 ms.

        Where the file is not there, each call opens it for itself, or finds nothing.
        """
        if not Path(self.path).exists():
            yield
            return
        with self.connect(timeout_s=timeout_s) as connection:
            before = getattr(_kept, "connections", {})
            _kept.connections = {**before, self.path: connection}
            try:
                yield
            finally:
                _kept.connections = before

    @contextmanager
    def connect(self, *, timeout_s: float | None = None) -> Iterator["duckdb.DuckDBPyConnection"]:
        """A connection that has the file to itself; within ``kept_open`` the one that is held.

        Raises:
            WarehouseBusyError: another process (a notebook, the DuckDB shell) kept it open.
        """
        kept = getattr(_kept, "connections", {}).get(self.path)
        if kept is not None:
            yield kept
            return
        import duckdb
        from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

        wait = self.timeout_s if timeout_s is None else timeout_s

        def locked(error: BaseException) -> bool:
            return isinstance(error, duckdb.IOException) and "Could not set lock" in str(error)

        def tell(state: "RetryCallState") -> None:
            error = state.outcome.exception() if state.outcome else None
            told.tell(lambda: _foreign_holder(error))

        config: dict[str, str] = {"memory_limit": self.memory_limit} if self.memory_limit else {}
        if not row_groups.are_merged_now(Path(self.path)):
            config[row_groups.SETTING] = row_groups.NONE
        with self.exclusive(wait):
            told = Wait(self.path)
            try:
                connection = Retrying(
                    retry=retry_if_exception(locked),
                    stop=stop_after_delay(wait),
                    wait=wait_fixed(0.2),
                    before_sleep=tell,
                    reraise=True,
                )(duckdb.connect, self.path, config=config)
            except duckdb.IOException as error:
                if locked(error):
                    raise self._busy(wait, _foreign_holder(error)) from error
                raise
            try:
                yield connection
            finally:
                connection.close()

    def _busy(self, wait: float, holder: str) -> WarehouseBusyError:
        return WarehouseBusyError(
            f"{self.path} was kept open by another process for {wait:.0f} s: {holder}. Close"
            " notebooks and DuckDB shells that hold it, or wait for the run in progress, and run"
            " this again."
        )

    def replace_partitions(
        self,
        dataset: Dataset,
        uris: Sequence[str],
        versions: Mapping[str, str],
        origin: Origin = BY_HAND,
    ) -> LoadResult:
        """Delete and insert in one transaction; see ``WarehouseResource``."""
        with self.connect() as connection, _transaction(connection):
            return _load(connection, dataset, uris, versions)

    def replace_table(
        self,
        dataset: Dataset,
        uris: Sequence[str],
        versions: Mapping[str, str],
        origin: Origin = BY_HAND,
    ) -> LoadResult:
        """Drop, create and insert in one transaction; see ``WarehouseResource``."""
        with self.connect() as connection, _transaction(connection):
            connection.execute(f"drop table if exists {_qualified(connection, dataset.table)}")
            _create_record(connection)
            connection.execute(f"delete from {_RECORD} where table_name = ?", [dataset.table])
            return _load(connection, dataset, uris, versions)

    def loaded_versions(
        self, dataset: Dataset, stage: str = "landed", timeout_s: float | None = None
    ) -> dict[str, str]:
        """Fingerprint of each partition as of its last load; {} where the table is not there."""
        import duckdb

        if not Path(self.path).exists():
            return {}
        with self.connect(timeout_s=timeout_s) as connection:
            try:
                connection.execute(f"select 1 from {_qualified(connection, dataset.table)} limit 0")
                return dict(
                    connection.execute(
                        f"select partition_key, version from {_RECORD}"
                        " where table_name = ? and stage = ?",
                        [dataset.table, stage],
                    ).fetchall()
                )
            except duckdb.CatalogException:  # no such table; to ask first would take 20 ms
                return {}

    def record_versions(self, dataset: Dataset, stage: str, versions: Mapping[str, str]) -> None:
        """Record that ``stage`` (a consumer such as the marts) now holds ``versions``."""
        with self.connect() as connection, _transaction(connection):
            _record(connection, dataset, stage, versions)

    def name_of(self, dataset: Dataset) -> str:
        """With its catalog, which is the file's name: a schema may have the same."""
        return f'"{Path(self.path).stem}".{dataset.table}'

    def query(
        self, sql: str, parameters: Sequence[Any] = (), *, timeout_s: float | None = None
    ) -> list[tuple[Any, ...]]:
        """All rows of a query; ``?`` stands for a parameter."""
        with self.connect(timeout_s=timeout_s) as connection:
            return connection.execute(sql, list(parameters)).fetchall()

    def row_counts(self, timeout_s: float | None = None) -> dict[str, int]:
        """Rows of each table; {} where the file is not there."""
        if not Path(self.path).exists():
            return {}
        with self.kept_open(timeout_s):
            names = self.query(
                "select table_catalog, table_schema, table_name from information_schema.tables"
                " where table_schema <> 'retail_operations' and table_type = 'BASE TABLE'"
            )
            if not names:
                return {}
            counts = " union all ".join(
                f'select \'{schema}.{name}\', count(*) from "{catalog}"."{schema}"."{name}"'
                for catalog, schema, name in names
            )
            return dict(self.query(counts))


def _foreign_holder(error: BaseException | None) -> str:
    """Who has the file open, by what DuckDB says of it."""
    found = _HOLDER.search(str(error))
    return f"{found['program']} (process {found['pid']})" if found else "another process"


@contextmanager
def _transaction(connection: "duckdb.DuckDBPyConnection") -> Iterator[None]:
    connection.begin()
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def _load(
    connection: "duckdb.DuckDBPyConnection",
    dataset: Dataset,
    uris: Sequence[str],
    versions: Mapping[str, str],
) -> LoadResult:
    keys = partition_keys(dataset, versions)
    table = _qualified(connection, dataset.table)
    _prepare(connection, dataset)
    column = dataset.partition_by
    if column is None:
        asked, key = "true", "''"
    else:
        connection.execute(f"create or replace temp table requested ({column} date primary key)")
        connection.execute("insert into requested select unnest(?::date[])", [keys])
        asked, key = f"{column} in (select {column} from requested)", f"{column}::varchar"
    if connection.execute(f"select 1 from {table} limit 1").fetchone():
        connection.execute(f"delete from {table} where {asked}")
    if uris:
        found = _check_files(connection, dataset, uris)
        # Keeping an order that means nothing costs a third more, and a fifth of the table's size.
        order = "true" if dataset.ordered else "false"
        connection.execute(f"set preserve_insertion_order = {order}")
        # A nullable column that is younger than the files stays null.
        names = ", ".join(f'"{name}"' for name in dataset.column_names if name in found)
        connection.execute(
            f"insert into {table} ({names}) select {names} from {_FILES}", [list(uris)]
        )
    counts = connection.execute(
        f"select {key}, count(*) from {table} where {asked} group by all"
    ).fetchall()
    rows = dict.fromkeys(keys, 0) | dict(counts)
    if uris:
        _check_total(connection, dataset, uris, sum(rows.values()))
    connection.execute("drop table if exists requested")
    _record(connection, dataset, "landed", versions)
    return LoadResult(rows)


def _qualified(connection: "duckdb.DuckDBPyConnection", name: str) -> str:
    """A schema or table with its catalog: DuckDB's is the file's name, maybe also a schema's."""
    row = connection.execute("select current_database()").fetchone()
    assert row is not None
    return f'"{row[0]}".{name}'


def _columns(connection: "duckdb.DuckDBPyConnection", dataset: Dataset) -> dict[str, str]:
    """Name to type of the table's columns as it stands; {} where it is not there."""
    # Not information_schema.columns: its first use takes a connection 15 ms.
    return dict(
        connection.execute(
            "select column_name, data_type from duckdb_columns()"
            " where database_name = current_database() and schema_name = ? and table_name = ?"
            " order by column_index",
            [dataset.schema, dataset.name],
        ).fetchall()
    )


def _prepare(connection: "duckdb.DuckDBPyConnection", dataset: Dataset) -> None:
    """Create the table, or bring it to the declaration where that only adds nullable columns."""
    connection.execute(f"create schema if not exists {_qualified(connection, dataset.schema)}")
    _create_record(connection)
    found = _columns(connection, dataset)
    table = _qualified(connection, dataset.table)
    if not found:
        connection.execute(f"create table {table} ({dataset.duckdb_ddl()})")
        return
    _let_be_null(connection, dataset)
    drift = dataset.compare(found)
    if not drift:
        return
    if not drift.only_adds_nullable:
        raise WarehouseSchemaError(
            f"{dataset.table} differs from its contract: {drift.describe()}. Nothing was written."
            f" Run: retail-assets rebuild {dataset.table}"
        )
    for column in drift.missing:
        connection.execute(f'alter table {table} add column "{column.name}" {column.duckdb_type}')


def _let_be_null(connection: "duckdb.DuckDBPyConnection", dataset: Dataset) -> None:
    """Columns that an earlier version declared never null, and this one does not, may be."""
    nullable = [column.name for column in dataset.columns if column.nullable]
    for (name,) in connection.execute(
        "select column_name from duckdb_columns() where database_name = current_database()"
        " and schema_name = ? and table_name = ? and not is_nullable"
        " and list_contains(?, column_name)",
        [dataset.schema, dataset.name, nullable],
    ).fetchall():
        table = _qualified(connection, dataset.table)
        connection.execute(f'alter table {table} alter column "{name}" drop not null')


def _check_files(
    connection: "duckdb.DuckDBPyConnection", dataset: Dataset, uris: Sequence[str]
) -> dict[str, str]:
    """The files' columns, name to type.

    Raises:
        WarehouseSchemaError: they differ from the declaration by more than a nullable column.
    """
    required = {column.name for column in dataset.columns if not column.nullable}
    for file, names in connection.execute(
        "select file_name, list(name) from parquet_schema(?) group by all order by all",
        [list(uris)],
    ).fetchall():
        if lacking := required.difference(names):
            raise WarehouseSchemaError(
                f"{file} differs from the contract of {dataset.table}: missing"
                f" {', '.join(sorted(lacking))}. Nothing was written. Materialize the processed"
                " partitions again."
            )
    described = connection.execute(f"describe select * from {_FILES}", [list(uris)]).fetchall()
    found = {name: kind for name, kind, *_ in described}
    drift: SchemaDrift = dataset.compare(found)
    if drift and not drift.only_adds_nullable:
        raise WarehouseSchemaError(
            f"the Parquet files of {dataset.table} differ from its contract: {drift.describe()}."
            " Nothing was written. Materialize the processed partitions again."
        )
    return found


def _check_total(
    connection: "duckdb.DuckDBPyConnection", dataset: Dataset, uris: Sequence[str], loaded: int
) -> None:
    row = connection.execute(
        "select sum(num_rows) from parquet_file_metadata(?)", [list(uris)]
    ).fetchone()
    expected = int(row[0]) if row else 0
    if expected != loaded:
        raise WarehouseSchemaError(
            f"{dataset.table}: the files hold {expected} rows, of which {loaded} belong to the"
            " partitions asked for. Nothing was written. Materialize the processed partitions"
            " again."
        )


def _create_record(connection: "duckdb.DuckDBPyConnection") -> None:
    connection.execute("create schema if not exists retail_operations")
    connection.execute(
        f"create table if not exists {_RECORD} (table_name varchar, stage varchar,"
        " partition_key varchar, version varchar,"
        " primary key (table_name, stage, partition_key))"
    )


def _record(
    connection: "duckdb.DuckDBPyConnection",
    dataset: Dataset,
    stage: str,
    versions: Mapping[str, str],
) -> None:
    _create_record(connection)
    connection.execute(
        f"insert or replace into {_RECORD} select ?, ?, unnest(?::varchar[]), unnest(?::varchar[])",
        [dataset.table, stage, list(versions), list(versions.values())],
    )

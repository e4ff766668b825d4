"""DuckDB over the star's files: what merge and check ask alike.

Here: a database whose memory is bounded, and how files become rows of it. Not here: what is asked.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retail_assets.dataset import Dataset
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.tables import Snapshot

if TYPE_CHECKING:
    import duckdb

# Beyond this the merge spills to disk, which is a twentieth slower.
_MERGE_MEMORY = "300MB"


@contextmanager
def open_database(folder: Path) -> "Iterator[duckdb.DuckDBPyConnection]":
    """A database in memory, which spills into the folder beyond its share."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(f"set memory_limit = '{_MERGE_MEMORY}'")
        connection.execute(f"set temp_directory = '{quoted(folder / 'spilled')}'")
        # By what the statistics of its sources say, a file would have a column as required or not:
        # the same rows in other bytes, so of another fingerprint.
        connection.execute("set disabled_optimizers = 'statistics_propagation'")
        yield connection


def one(database: "duckdb.DuckDBPyConnection", query: str) -> tuple[Any, ...]:
    """The one row that a query has."""
    row = database.execute(query).fetchone()
    assert row is not None
    return row


def local_files(
    lake: LakeResource, there: Snapshot, keys: Iterable[str] | None = None
) -> list[str]:
    """Files with rows, of the partitions ``keys`` of a table or of all, on this machine."""
    return lake.local_copies([lake.uri(file.name) for file in there.filled(keys)])


def quoted(path: Path | str) -> str:
    """A path inside a text of SQL."""
    return str(path).replace("'", "''")


def rows_of(files: Sequence[Path | str]) -> str:
    """Rows of Parquet files by name; what their folders are called is no column."""
    names = ", ".join(f"'{quoted(file)}'" for file in files)
    return f"read_parquet([{names}], hive_partitioning = false, union_by_name = true)"


def columns_of(dataset: Dataset) -> str:
    """The columns of a table, each as its type."""
    return ", ".join(
        f'"{name}"::{kind} as "{name}"' for name, kind in dataset.duckdb_columns.items()
    )

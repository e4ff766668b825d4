"""What others read of the lake's tables is what was committed, now and as of each version."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from retail_assets.dataset import Column, Dataset
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.spark import EMBEDDED, SparkResource

COLUMNS = (
    Column("id", "string", "Key.", key=True),
    Column("day", "date", "Day."),
    Column("price", "decimal(18,3)", "Price.", nullable=True),
    Column("sold_at", "timestamp", "When.", nullable=True),
    Column("pieces", "int32", "Pieces.", nullable=True),
    Column("offset", "int64", "Offset.", nullable=True),
    Column("is_gift", "bool", "Gift or not.", nullable=True),
)
BY_DAY = Dataset("shop", "by_day", "Days, in files that have the day too.", COLUMNS, "day")
BY_FOLDER = Dataset(
    *("shop", "by_folder", "Folders, of which the files say nothing."),
    tuple(column for column in COLUMNS if column.name != "day"),
    zone="quarantine",
    folder_by=Column("reason", "string", "Reason."),
)
WHOLE = Dataset("shop", "whole", "One partition.", COLUMNS, zone="")
D1, D2, D3, D4 = "1883-11-18", "2020-03-29", "2020-03-30", "2020-03-31"
Row = dict[str, Any]
Reader = Callable[[str, int | None], pa.Table]


@dataclass(frozen=True)
class Version:
    """What a table is to have: as of a version, or now."""

    uri: str
    version: int | None
    rows: list[Row]


def rows_of(day: str, *numbers: int) -> list[Row]:
    """Rows with nulls in each column that may have them, and what engines get wrong at times."""
    return [
        {
            "id": f"{n} 🙂",
            "day": date.fromisoformat(day),
            "price": Decimal(f"-{n}.001") if n % 2 else None,
            # Of a time zone that came to be on the first day, of an hour that summer time skips.
            "sold_at": datetime.fromisoformat(f"{day} 02:30:00.00000{n % 10}") if n % 3 else None,
            "pieces": -n if n % 4 else None,
            "offset": 2**62 + n if n % 5 else None,
            "is_gift": n % 2 == 0 if n % 6 else None,
        }
        for n in numbers
    ]


def arrow(dataset: Dataset, rows: list[Row]) -> pa.Table:
    taken = [{name: row[name] for name in dataset.column_names} for row in rows]
    return pa.Table.from_pylist(taken, schema=dataset.arrow_schema)


def commit(lake: LocalLake, dataset: Dataset, partitions: dict[str, list[Row]]) -> None:
    """Replace partitions, each with its ledger; those of no rows have a file for that."""
    with lake.staging("0f3c-run", "asset") as stage:
        filled = {key: rows for key, rows in partitions.items() if rows}
        stage.write_partitions(
            dataset, [(key, arrow(dataset, rows)) for key, rows in filled.items()]
        )
        ledgers = {key: Ledger("f1-_", len(rows) + 2, 1, 1) for key, rows in partitions.items()}
        stage.publish(dataset, partitions, ledgers)


def adopt(lake: LocalLake, dataset: Dataset, key: str, below: dict[str, list[Row]]) -> None:
    """Replace a partition by several files in folders, as those that Spark writes."""
    with lake.staging("0f3c-run", "asset") as stage, lake.scratch() as folder:
        for name, rows in below.items():
            pq.write_table(arrow(dataset, rows), folder / f"{name}.parquet")
            stage.adopt(dataset, key, [folder / f"{name}.parquet"], name)
        stage.publish(dataset, [key], {key: Ledger("f2", 9)})


def write_tables(lake: LocalLake) -> list[Version]:
    """Tables of each kind in several versions, and what each version has."""
    found: list[Version] = []

    def note(dataset: Dataset, *partitions: list[Row]) -> None:
        of = lake.table(dataset)
        rows = [row for part in partitions for row in part]
        found.append(Version(of.uri, of.snapshot().version, rows))

    first, second, other = rows_of(D1, 1, 2, 3, 4), rows_of(D2, 5, 6), rows_of(D1, 7, 8, 9)
    commit(lake, BY_DAY, {D1: first, D2: second, D3: []})
    note(BY_DAY, first, second)
    commit(lake, BY_DAY, {D1: other, D2: [], D3: rows_of(D3, 10)})
    note(BY_DAY, other, rows_of(D3, 10))
    adopt(lake, BY_DAY, D3, {"2020": rows_of(D3, 11), "2021": rows_of(D3, 12)})
    note(BY_DAY, other, rows_of(D3, 11, 12))
    DeltaTable(lake.table(BY_DAY).uri).create_checkpoint()
    wider = replace(BY_DAY, columns=(*COLUMNS, Column("note", "string", "Note.", nullable=True)))
    noted = [row | {"note": "new"} for row in rows_of(D4, 13)]
    commit(lake, wider, {D4: noted})
    note(BY_DAY, [row | {"note": None} for row in (*other, *rows_of(D3, 11, 12))], noted)

    def reasoned(rows: list[Row], reason: str) -> list[Row]:
        return [
            {name: v for name, v in row.items() if name != "day"} | {"reason": reason}
            for row in rows
        ]

    commit(lake, BY_FOLDER, {D1: first, "no date": second, "__none__": []})
    note(BY_FOLDER, reasoned(first, D1), reasoned(second, "no date"))
    commit(lake, BY_FOLDER, {D1: [], "__none__": other})
    note(BY_FOLDER, reasoned(second, "no date"), reasoned(other, "__none__"))
    commit(lake, WHOLE, {"": first})
    note(WHOLE, first)
    commit(lake, WHOLE, {"": other})
    note(WHOLE, other)
    lake.table(WHOLE).restore(0)
    note(WHOLE, first)
    latest = {of.uri: of for of in found}
    return [*found, *(replace(of, version=None) for of in latest.values())]


def counted(rows: list[Row]) -> list[str]:
    """Rows as they can be compared, in an order that readers do not promise."""
    return sorted(repr(sorted(row.items())) for row in rows)


def by_deltalake(uri: str, version: int | None) -> pa.Table:
    return DeltaTable(uri, version=version).to_pyarrow_dataset().to_table()


def by_duckdb(uri: str, version: int | None) -> pa.Table:
    with duckdb.connect() as connection:
        connection.register("asked", DeltaTable(uri, version=version).to_pyarrow_dataset())
        return connection.sql("from asked").to_arrow_table()


def by_polars(uri: str, version: int | None) -> pa.Table:
    return pl.scan_delta(uri, version=version).collect().to_arrow()


def by_sail(uri: str, version: int | None) -> pa.Table:
    reader = SparkResource(master=EMBEDDED).session.read.format("delta")
    if version is not None:
        reader = reader.option("versionAsOf", version)
    return reader.load(uri).toArrow()


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Version]:
    return write_tables(LocalLake(root=str(tmp_path_factory.mktemp("lake"))))


@pytest.mark.parametrize("read", [by_deltalake, by_duckdb, by_polars, by_sail])
def test_a_table_is_read_as_it_was_committed(versions: list[Version], read: Reader) -> None:
    for asked in versions:
        found = read(asked.uri, asked.version).to_pylist()

        assert counted(found) == counted(asked.rows), asked


def test_a_listing_of_the_folder_shows_rows_that_were_replaced(versions: list[Version]) -> None:
    table = next(of for of in versions if of.version is None)
    with duckdb.connect() as connection:
        glob = str(Path(table.uri) / "**" / "*.parquet")
        ((listed,),) = connection.execute(
            "select count(*) from read_parquet($1)", [glob]
        ).fetchall()

    assert listed > len(table.rows)


def test_a_folder_that_would_be_taken_for_a_column_is_refused(tmp_path: Path) -> None:
    lake = LocalLake(root=str(tmp_path))

    with pytest.raises(ValueError, match="without '='"):
        adopt(lake, BY_DAY, D1, {"year=2020": rows_of(D1, 1)})

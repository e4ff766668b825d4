"""Tests of retail_assets.resources.warehouse, over real DuckDB and Parquet files."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retail_assets.dataset import Column, Dataset
from retail_assets.resources.warehouse import (
    DuckDBWarehouse,
    LoadResult,
    WarehouseBusyError,
    WarehouseSchemaError,
)

SALES = Dataset(
    schema="shop",
    name="sales",
    description="Sales.",
    partition_by="day",
    columns=(
        Column("id", "int64", "Key."),
        Column("day", "date", "Day."),
        Column("price", "decimal(12,3)", "Pounds."),
    ),
)
SHOPS = Dataset(
    schema="landed_shop",
    domain="shop",
    name="shops",
    description="Shops.",
    columns=(Column("id", "int64", "Key."),),
)
NOTED = replace(SALES, columns=(*SALES.columns, Column("note", "string", "New.", nullable=True)))
D1, D2, D3 = "2011-01-01", "2011-01-02", "2011-01-03"

Row = tuple[int, str, str]
Write = Callable[..., str]


@pytest.fixture
def warehouse(tmp_path: Path) -> DuckDBWarehouse:
    return DuckDBWarehouse(path=str(tmp_path / "warehouse.duckdb"), timeout_s=30)


@pytest.fixture
def parquet(tmp_path: Path) -> Write:
    def write(name: str, *rows: Row, schema: pa.Schema = SALES.arrow_schema) -> str:
        values: dict[str, list[object]] = {
            "id": [row[0] for row in rows],
            "day": [date.fromisoformat(row[1]) for row in rows],
            "price": [Decimal(row[2]) for row in rows],
            "note": ["x" for _ in rows],
        }
        arrays = [pa.array(values[f.name]).cast(f.type) for f in schema]
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path)
        return str(path)

    return write


def rows_of(warehouse: DuckDBWarehouse) -> list[tuple[object, ...]]:
    return warehouse.query("select id, day::varchar, price from shop.sales order by id, price")


def test_partitions_are_loaded_with_their_versions(
    warehouse: DuckDBWarehouse, parquet: Write
) -> None:
    uris = [parquet("one", (1, D1, "2.550"), (2, D1, "-0.001")), parquet("two", (3, D2, "9"))]

    loaded = warehouse.replace_partitions(SALES, uris, {D1: "v1", D2: "v1", D3: ""})

    assert loaded == LoadResult({D1: 2, D2: 1, D3: 0})
    assert loaded.total == 3
    assert rows_of(warehouse) == [
        (1, D1, Decimal("2.550")),
        (2, D1, Decimal("-0.001")),
        (3, D2, Decimal("9.000")),
    ]
    assert warehouse.loaded_versions(SALES) == {D1: "v1", D2: "v1", D3: ""}


def test_the_table_has_the_declared_types_in_order(
    warehouse: DuckDBWarehouse, parquet: Write
) -> None:
    warehouse.replace_partitions(SALES, [parquet("one", (1, D1, "1"))], {D1: "v1"})

    described = warehouse.query("describe shop.sales")

    assert [(name, kind, null) for name, kind, null, *_ in described] == [
        ("id", "BIGINT", "NO"),
        ("day", "DATE", "NO"),
        ("price", "DECIMAL(12,3)", "NO"),
    ]


def test_a_load_twice_changes_nothing(warehouse: DuckDBWarehouse, parquet: Write) -> None:
    uris = [parquet("one", (1, D1, "1"), (1, D1, "1")), parquet("two", (3, D2, "9"))]
    first = warehouse.replace_partitions(SALES, uris, {D1: "v1", D2: "v1"})
    before = rows_of(warehouse)

    assert warehouse.replace_partitions(SALES, uris, {D1: "v1", D2: "v1"}) == first

    assert rows_of(warehouse) == before
    assert warehouse.loaded_versions(SALES) == {D1: "v1", D2: "v1"}


def test_only_the_partitions_asked_for_change(warehouse: DuckDBWarehouse, parquet: Write) -> None:
    uris = [parquet("one", (1, D1, "1")), parquet("two", (2, D2, "2"))]
    warehouse.replace_partitions(SALES, uris, {D1: "v1", D2: "v1"})

    warehouse.replace_partitions(SALES, [parquet("new", (9, D2, "9"))], {D2: "v2"})

    assert [row[0] for row in rows_of(warehouse)] == [1, 9]
    assert warehouse.loaded_versions(SALES) == {D1: "v1", D2: "v2"}


def test_an_empty_partition_is_emptied(warehouse: DuckDBWarehouse, parquet: Write) -> None:
    uris = [parquet("one", (1, D1, "1")), parquet("two", (2, D2, "2"))]
    warehouse.replace_partitions(SALES, uris, {D1: "v1", D2: "v1"})

    assert warehouse.replace_partitions(SALES, [], {D1: ""}).rows == {D1: 0}

    assert [row[0] for row in rows_of(warehouse)] == [2]
    assert warehouse.loaded_versions(SALES) == {D1: "", D2: "v1"}


def test_rows_of_other_partitions_are_refused(warehouse: DuckDBWarehouse, parquet: Write) -> None:
    warehouse.replace_partitions(SALES, [parquet("one", (1, D1, "1"))], {D1: "v1"})
    stray = parquet("stray", (2, D1, "2"), (3, D3, "3"))

    with pytest.raises(WarehouseSchemaError, match="Nothing was written"):
        warehouse.replace_partitions(SALES, [stray], {D1: "v2", D2: "v2"})

    assert [row[0] for row in rows_of(warehouse)] == [1]
    assert warehouse.loaded_versions(SALES) == {D1: "v1"}


def test_a_first_load_that_fails_leaves_no_table(
    warehouse: DuckDBWarehouse, parquet: Write
) -> None:
    with pytest.raises(WarehouseSchemaError):
        warehouse.replace_partitions(SALES, [parquet("stray", (1, D1, "1"))], {D2: "v1"})

    assert warehouse.query("select table_name from information_schema.tables") == []
    assert warehouse.loaded_versions(SALES) == {}


def test_a_failing_insert_rolls_back_rows_and_record(
    warehouse: DuckDBWarehouse, parquet: Write, tmp_path: Path
) -> None:
    warehouse.replace_partitions(SALES, [parquet("one", (1, D1, "1"))], {D1: "v1"})
    null = tmp_path / "null.parquet"
    pq.write_table(
        pa.Table.from_pylist(
            [{"id": None, "day": date(2011, 1, 1), "price": Decimal("1.000")}],
            schema=pa.schema([f.with_nullable(True) for f in SALES.arrow_schema]),
        ),
        null,
    )

    with pytest.raises(duckdb.ConstraintException):
        warehouse.replace_partitions(SALES, [str(null)], {D1: "v2"})

    assert [row[0] for row in rows_of(warehouse)] == [1]
    assert warehouse.loaded_versions(SALES) == {D1: "v1"}


def test_a_new_nullable_column_is_added(warehouse: DuckDBWarehouse, parquet: Write) -> None:
    warehouse.replace_partitions(SALES, [parquet("one", (1, D1, "1"))], {D1: "v1"})

    new = parquet("new", (2, D2, "2"), schema=NOTED.arrow_schema)
    warehouse.replace_partitions(NOTED, [new], {D2: "v1"})

    assert warehouse.query("select id, note from shop.sales order by id") == [(1, None), (2, "x")]


def test_a_column_that_may_be_null_by_now_may_be(
    warehouse: DuckDBWarehouse, parquet: Write, tmp_path: Path
) -> None:
    warehouse.replace_partitions(SALES, [parquet("one", (1, D1, "1"))], {D1: "v1"})
    key, day, price = SALES.columns
    eased = replace(SALES, columns=(key, day, replace(price, nullable=True)))
    null = tmp_path / "null.parquet"
    row = {"id": 2, "day": date(2011, 1, 2), "price": None}
    pq.write_table(pa.Table.from_pylist([row], schema=eased.arrow_schema), null)

    warehouse.replace_partitions(eased, [str(null)], {D2: "v1"})

    assert rows_of(warehouse) == [(1, D1, Decimal("1.000")), (2, D2, None)]


@pytest.mark.parametrize("mixed", [False, True], ids=["old files", "old and new files"])
def test_files_from_before_a_nullable_column_load_as_nulls(
    warehouse: DuckDBWarehouse, parquet: Write, mixed: bool
) -> None:
    uris = [parquet("old", (1, D1, "1"))]
    if mixed:
        uris.append(parquet("new", (2, D2, "2"), schema=NOTED.arrow_schema))

    warehouse.replace_partitions(NOTED, uris, {D1: "v1", D2: "v1"})

    expected = [(1, None), (2, "x")] if mixed else [(1, None)]
    assert warehouse.query("select id, note from shop.sales order by id") == expected


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("alter table shop.sales alter price type double", "price is DOUBLE"),
        ("alter table shop.sales drop column price", "missing price decimal"),
        ("alter table shop.sales add column extra int", "unexpected extra"),
    ],
)
def test_other_drift_of_the_table_is_refused(
    warehouse: DuckDBWarehouse, parquet: Write, change: str, named: str
) -> None:
    uris = [parquet("one", (1, D1, "1"))]
    warehouse.replace_partitions(SALES, uris, {D1: "v1"})
    warehouse.query(change)
    before = warehouse.query("select * from shop.sales")

    with pytest.raises(WarehouseSchemaError, match=r"retail-assets rebuild shop\.sales") as error:
        warehouse.replace_partitions(SALES, uris, {D1: "v2"})

    assert named in str(error.value)
    assert warehouse.query("select * from shop.sales") == before
    assert warehouse.loaded_versions(SALES) == {D1: "v1"}


@pytest.mark.parametrize("place", [0, 1], ids=["first file", "second file"])
@pytest.mark.parametrize(
    "schema",
    [
        pa.schema([("id", pa.int64()), ("day", pa.date32()), ("price", pa.float64())]),
        pa.schema([*SALES.arrow_schema, ("note", pa.string())]),
        pa.schema([("id", pa.int64()), ("day", pa.date32())]),
    ],
    ids=["price as float", "extra column", "missing column"],
)
def test_a_file_that_differs_from_the_contract_is_refused(
    warehouse: DuckDBWarehouse, parquet: Write, schema: pa.Schema, place: int
) -> None:
    uris = [parquet("good", (1, D1, "1"))]
    uris.insert(place, parquet("bad", (2, D2, "2"), schema=schema))

    with pytest.raises(WarehouseSchemaError, match="differ"):
        warehouse.replace_partitions(SALES, uris, {D1: "v1", D2: "v1"})

    assert warehouse.loaded_versions(SALES) == {}


def test_a_rebuild_makes_the_table_anew(warehouse: DuckDBWarehouse, parquet: Write) -> None:
    uris = [parquet("one", (1, D1, "1")), parquet("two", (2, D2, "2"))]
    warehouse.replace_partitions(SALES, uris, {D1: "v1", D2: "v1"})
    warehouse.record_versions(SALES, "marts", {D1: "v1"})
    warehouse.query("alter table shop.sales alter price type double")

    loaded = warehouse.replace_table(SALES, uris[:1], {D1: "v2"})

    assert loaded.rows == {D1: 1}
    assert rows_of(warehouse) == [(1, D1, Decimal("1.000"))]
    assert warehouse.loaded_versions(SALES) == {D1: "v2"}
    assert warehouse.loaded_versions(SALES, "marts") == {}


def test_a_rebuild_that_fails_leaves_the_table_as_it_was(
    warehouse: DuckDBWarehouse, parquet: Write
) -> None:
    warehouse.replace_partitions(SALES, [parquet("one", (1, D1, "1"))], {D1: "v1"})

    with pytest.raises(WarehouseSchemaError):
        warehouse.replace_table(SALES, [parquet("stray", (2, D3, "2"))], {D1: "v2"})

    assert warehouse.loaded_versions(SALES) == {D1: "v1"}
    assert [row[0] for row in rows_of(warehouse)] == [1]


def shops_of(warehouse: DuckDBWarehouse) -> list[int]:
    return [row[0] for row in warehouse.query("select id from landed_shop.shops order by id")]


def write_shops(folder: Path, *ids: int) -> str:
    path = folder / f"shops-{'-'.join(map(str, ids))}.parquet"
    pq.write_table(pa.table({"id": pa.array(ids)}, schema=SHOPS.arrow_schema), path)
    return str(path)


@pytest.mark.parametrize("whole", [False, True], ids=["replace_partitions", "replace_table"])
def test_a_table_without_partitions_is_replaced_as_a_whole(
    warehouse: DuckDBWarehouse, parquet: Write, tmp_path: Path, whole: bool
) -> None:
    change = warehouse.replace_table if whole else warehouse.replace_partitions
    warehouse.replace_partitions(SALES, [parquet("one", (9, D1, "1"))], {D1: "v1"})
    contents: list[tuple[int, ...]] = [(1, 2, 3), (2, 3, 4), (2, 3, 4), (5,), (), (6, 7)]
    for number, ids in enumerate(contents):
        uris = [write_shops(tmp_path, i) for i in ids]  # several files, or none

        assert change(SHOPS, uris, {"": f"v{number}"}) == LoadResult({"": len(ids)})

        assert shops_of(warehouse) == list(ids)
        assert warehouse.loaded_versions(SHOPS) == {"": f"v{number}"}
    assert [row[0] for row in rows_of(warehouse)] == [9]
    assert warehouse.loaded_versions(SALES) == {D1: "v1"}


def test_a_first_load_of_no_files_makes_an_empty_table(warehouse: DuckDBWarehouse) -> None:
    assert warehouse.replace_partitions(SHOPS, [], {"": ""}).rows == {"": 0}

    assert shops_of(warehouse) == []
    assert warehouse.row_counts() == {"landed_shop.shops": 0}


WRONG_KEYS: list[tuple[Dataset, dict[str, str]]] = [
    (SHOPS, {}),
    (SHOPS, {D1: "v2"}),
    (SHOPS, {"": "v2", D1: "v2"}),
    (SALES, {"": "v2"}),
    (SALES, {"": "v2", D1: "v2"}),
]


@pytest.mark.parametrize("whole", [False, True], ids=["replace_partitions", "replace_table"])
@pytest.mark.parametrize(("dataset", "versions"), WRONG_KEYS)
def test_keys_that_are_not_of_the_tables_partitioning_are_refused(
    warehouse: DuckDBWarehouse,
    parquet: Write,
    tmp_path: Path,
    dataset: Dataset,
    versions: dict[str, str],
    whole: bool,
) -> None:
    warehouse.replace_partitions(SHOPS, [write_shops(tmp_path, 1)], {"": "v1"})
    warehouse.replace_partitions(SALES, [parquet("one", (9, D1, "1"))], {D1: "v1"})
    change = warehouse.replace_table if whole else warehouse.replace_partitions

    with pytest.raises(ValueError, match=rf"{dataset.table}: expected keys that are"):
        change(dataset, [], versions)

    assert shops_of(warehouse) == [1]
    assert [row[0] for row in rows_of(warehouse)] == [9]
    assert warehouse.loaded_versions(SHOPS) == {"": "v1"}


def test_a_new_nullable_column_is_added_to_a_table_without_partitions(
    warehouse: DuckDBWarehouse, tmp_path: Path
) -> None:
    warehouse.replace_partitions(SHOPS, [write_shops(tmp_path, 1)], {"": "v1"})
    town = Column("town", "string", "New.", nullable=True)
    located = replace(SHOPS, columns=(*SHOPS.columns, town))
    new = tmp_path / "new.parquet"
    rows = pa.table({"id": [2], "town": ["Ipoh"]}, schema=located.arrow_schema)
    pq.write_table(rows, new)

    warehouse.replace_partitions(located, [write_shops(tmp_path, 1), str(new)], {"": "v2"})

    found = warehouse.query("select id, town from landed_shop.shops order by id")
    assert found == [(1, None), (2, "Ipoh")]
    with pytest.raises(WarehouseSchemaError, match="unexpected town"):
        warehouse.replace_partitions(SHOPS, [], {"": "v3"})


def test_a_load_that_fails_leaves_a_table_without_partitions_as_it_was(
    warehouse: DuckDBWarehouse, tmp_path: Path
) -> None:
    warehouse.replace_partitions(SHOPS, [write_shops(tmp_path, 1)], {"": "v1"})
    bad = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"id": ["one"]}), bad)

    for change in (warehouse.replace_partitions, warehouse.replace_table):
        with pytest.raises(WarehouseSchemaError, match="id is VARCHAR"):
            change(SHOPS, [write_shops(tmp_path, 2), str(bad)], {"": "v2"})

        assert shops_of(warehouse) == [1]
        assert warehouse.loaded_versions(SHOPS) == {"": "v1"}


def test_a_table_may_lose_its_partitions_by_a_rebuild(
    warehouse: DuckDBWarehouse, parquet: Write
) -> None:
    warehouse.replace_partitions(SALES, [parquet("one", (1, D1, "1"))], {D1: "v1"})
    whole = replace(SALES, partition_by=None)

    loaded = warehouse.replace_table(whole, [parquet("two", (2, D2, "2"))], {"": "v2"})

    assert loaded.rows == {"": 1}
    assert [row[0] for row in rows_of(warehouse)] == [2]
    assert warehouse.loaded_versions(whole) == {"": "v2"}


def test_versions_of_a_warehouse_that_is_not_there(warehouse: DuckDBWarehouse) -> None:
    assert warehouse.loaded_versions(SALES) == {}
    assert not Path(warehouse.path).exists()


def test_versions_are_kept_by_table_and_stage(warehouse: DuckDBWarehouse, parquet: Write) -> None:
    other = replace(SALES, name="other")
    warehouse.replace_partitions(SALES, [parquet("one", (1, D1, "1"))], {D1: "v1"})
    warehouse.replace_partitions(other, [], {D2: "w1"})

    warehouse.record_versions(SALES, "marts", {D1: "m1", D3: "m1"})
    warehouse.record_versions(SALES, "marts", {D1: "m2"})

    assert warehouse.loaded_versions(SALES) == {D1: "v1"}
    assert warehouse.loaded_versions(other) == {D2: "w1"}
    assert warehouse.loaded_versions(SALES, "marts") == {D1: "m2", D3: "m1"}


def test_versions_of_a_table_that_was_dropped_are_none(
    warehouse: DuckDBWarehouse, parquet: Write
) -> None:
    warehouse.replace_partitions(SALES, [parquet("one", (1, D1, "1"))], {D1: "v1"})

    warehouse.query("drop table shop.sales")

    assert warehouse.loaded_versions(SALES) == {}


@contextmanager
def other_process(code: str, path: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process that runs ``code`` (it says "held") and goes on until told to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


HOLDS_DUCKDB = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.readline()
connection.close()
"""
HOLDS_LOCK = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1] + ".lock"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("code", [HOLDS_DUCKDB, HOLDS_LOCK], ids=["a DuckDB shell", "a run"])
def test_a_second_process_waits_for_the_first(
    warehouse: DuckDBWarehouse, parquet: Write, code: str
) -> None:
    uri = parquet("one", (1, D1, "1"))
    let_go_after = 0.4
    with other_process(code, warehouse.path) as holder:
        assert holder.stdin is not None
        ending = subprocess.Popen(  # tells the holder to end, later
            ["sh", "-c", f"sleep {let_go_after}; echo end"], stdout=holder.stdin
        )
        began = time.monotonic()
        loaded = warehouse.replace_partitions(SALES, [uri], {D1: "v1"})
        waited = time.monotonic() - began
        ending.wait()

    assert loaded.rows == {D1: 1}
    assert waited >= let_go_after * 0.8


@pytest.mark.parametrize("code", [HOLDS_DUCKDB, HOLDS_LOCK], ids=["a DuckDB shell", "a run"])
def test_waiting_ends_with_an_error_that_names_the_file(
    warehouse: DuckDBWarehouse, code: str
) -> None:
    impatient = DuckDBWarehouse(path=warehouse.path, timeout_s=0.2)
    with other_process(code, warehouse.path), pytest.raises(WarehouseBusyError) as error:
        impatient.query("select 1")

    assert warehouse.path in str(error.value)


def test_a_file_named_like_the_schema_is_no_problem(tmp_path: Path, parquet: Write) -> None:
    warehouse = DuckDBWarehouse(path=str(tmp_path / f"{SALES.schema}.duckdb"))

    loaded = warehouse.replace_partitions(SALES, [parquet("one", (1, D1, "1"))], {D1: "v1"})

    assert loaded.rows == {D1: 1}
    assert warehouse.loaded_versions(SALES) == {D1: "v1"}


@pytest.mark.parametrize("folder", ["plain", "blockchain"])
def test_a_file_that_is_no_database_is_not_taken_for_a_busy_one(
    tmp_path: Path, folder: str
) -> None:
    path = tmp_path / folder / "shop.duckdb"
    path.parent.mkdir()
    path.write_text("no database" * 1000)

    with pytest.raises(duckdb.IOException, match="not a valid DuckDB"):
        DuckDBWarehouse(path=str(path), timeout_s=0.3).query("select 1")


def test_calls_within_share_the_connection_that_is_kept_open(
    warehouse: DuckDBWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse.replace_partitions(SHOPS, [], {"": "v1"})
    opened: list[object] = []
    connect = duckdb.connect
    monkeypatch.setattr(duckdb, "connect", lambda *a, **k: opened.append(a) or connect(*a, **k))

    with warehouse.kept_open():
        assert warehouse.loaded_versions(SHOPS) == {"": "v1"}
        warehouse.record_versions(SHOPS, "marts", {"": "v1"})
        with warehouse.kept_open():
            assert warehouse.loaded_versions(SHOPS, "marts") == {"": "v1"}
        assert warehouse.row_counts() == {SHOPS.table: 0}
    assert len(opened) == 1

    assert warehouse.loaded_versions(SHOPS) == {"": "v1"}
    assert len(opened) == 2


def test_a_failure_within_leaves_the_file_closed(warehouse: DuckDBWarehouse) -> None:
    warehouse.replace_partitions(SHOPS, [], {"": "v1"})

    with pytest.raises(ValueError, match="keys"), warehouse.kept_open():
        warehouse.replace_partitions(SHOPS, [], {"day": "v2"})

    with duckdb.connect(warehouse.path) as other:  # nobody holds it
        assert other.execute("select 1").fetchall() == [(1,)]


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    warehouse = DuckDBWarehouse(path=str(tmp_path / "none.duckdb"))

    with warehouse.kept_open():
        assert warehouse.loaded_versions(SHOPS) == {}

    assert not Path(warehouse.path).exists()

"""Tests of retail_assets.feeds.files.taking and assets: real files, embedded Spark, DuckDB.

The files, and their typing, are the coffee chain's.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain import typing
from retail_assets.defs.coffee_chain.contract import (
    CUSTOMER,
    OUTLET,
    PRODUCT,
    RAW_CUSTOMER,
    RAW_OUTLET,
    RAW_PRODUCT,
    RAW_SALES,
    SALES,
)
from retail_assets.defs.coffee_chain.feed import FEED
from retail_assets.domain import REFUSED_PARTITIONS
from retail_assets.feeds import WHOLE_TABLE
from retail_assets.feeds.checks import BALANCE_CHECK, SCHEMA_CHECK, check_processed
from retail_assets.feeds.files import ABSENT, FileTable, quarantine_of, taking
from retail_assets.feeds.files.taking import DropError, Room, take_files
from retail_assets.feeds.landing import rebuild
from retail_assets.feeds.processed import RefusedPartitionsError, Taken, processed_key
from retail_assets.losses import QUARANTINE_CHECK, SKIPPED, Quarantined, ShrunkError
from retail_assets.resources.lake import LakeObject
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.restoring import restore
from retail_assets.resources.lake.staging import Stage
from retail_assets.resources.spark import SparkResource
from retail_assets.resources.tabular import UnreadableFileError
from retail_assets.resources.warehouse import DuckDBWarehouse
from retail_assets.settings import load_settings
from retail_assets_tests.defs.coffee_chain.raw_zone import D1, D2, D3, RawZone, person, sale

SPARK = SparkResource(master="embedded")
OUTLETS, PRODUCTS, CUSTOMER_DROPS, SALES_DROPS = FEED.tables


@pytest.fixture
def raw(tmp_path: Path) -> RawZone:
    return RawZone(tmp_path / "lake")


def take_all(
    lake: LocalLake, table: FileTable, *dates: str, most_lost: float = 1.0, by_sensor: bool = False
) -> dict[str, Taken]:
    room = Room(lake, "run", SimpleNamespace(spark=SPARK))
    return take_files(FEED, table, dates, room, most_lost=most_lost, leave_restored=by_sensor)


def take(
    lake: LocalLake, large: FileTable, *dates: str, most_lost: float = 1.0
) -> dict[str, Ledger]:
    return {
        key: taken.ledger
        for key, taken in take_all(lake, large, *dates, most_lost=most_lost).items()
    }


def take_small(lake: LocalLake, small: FileTable, most_lost: float = 1.0) -> Ledger:
    return take_all(lake, small, WHOLE_TABLE, most_lost=most_lost)[WHOLE_TABLE].ledger


def processed(lake: LocalLake, dataset: Dataset, *keys: str) -> list[dict[str, Any]]:
    """Rows of the processed partitions, ordered by all their values."""
    uris = lake.partition_uris(dataset, keys)
    rows = [row for uri in uris for row in pq.read_table(uri, partitioning=None).to_pylist()]
    return sorted(rows, key=lambda row: [str(value) for value in row.values()])


def quarantined(
    lake: LocalLake, dataset: Dataset, key: str, *, row_stays: bool = False
) -> list[tuple[str, str, str]]:
    """File, reason and text of the partition's quarantined rows, or of values, in their order."""
    quarantine = quarantine_of(dataset)
    files = lake.partition_uris(quarantine, [key])
    tables = [pq.read_table(file, partitioning=None) for file in files]
    for table in tables:
        assert table.schema.equals(quarantine.arrow_schema)
    return [
        (row["file"], row["reason"], row["text"])
        for table in tables
        for row in table.to_pylist()
        if row["row_stays"] is row_stays
    ]


def ledgers_of(lake: LocalLake, dataset: Dataset) -> dict[str, Ledger]:
    return dict(lake.table(dataset).snapshot().ledgers)


def everything(lake: LocalLake) -> dict[str, bytes]:
    """Every file of the lake but the raw ones and locks, by name: state, processed, staging."""
    return {
        entry.name: lake.path(entry.name).read_bytes()
        for entry in lake.list_objects("")
        if not entry.name.startswith("raw/") and not entry.name.endswith(".lock")
    }


# ---- drops


DIRTY = [
    sale(1),
    sale(2, "2019-01-05 23:59:59"),
    sale(3),
    "4,I3,2018-03-01 10:00:00,c1,MY001,PD001,1",  # as 3 but for the index
    "5,I3,2018-03-01 10:00:00,c1,MY001,PD001,1",
    sale(6, quantity="two"),
    sale(7, quantity=""),
    sale(8, "2018-02-30 10:00:00"),
    "9,I9,2018-03-01 10:00:00,c1",
    sale(6, quantity="two"),  # a copy of a bad row is as bad
]


def test_a_drop_is_written_by_year_and_its_ledger_balances(raw: RawZone) -> None:
    path = raw.sales(D1, *DIRTY)

    ledgers = take(raw.lake, SALES_DROPS, D1)

    (ledger,) = ledgers.values()
    assert (ledger.read, ledger.written, ledger.duplicates, ledger.quarantined) == (10, 3, 2, 5)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert ledger.fingerprint.startswith(f"{digest[:32]}-")
    assert ledgers_of(raw.lake, SALES) == ledgers
    told = raw.lake.table(SALES).history()[0].told
    assert told["source"] == json.dumps({RAW_SALES.name(D1): digest})
    assert (told["run_id"], told["asset"]) == ("run", "coffee_chain/processed_sales")
    assert (told["rows_read"], told["rows_written"], told["quarantined"]) == ("10", "3", "5")
    found = {(r["invoice_no"], r["sale_year"]) for r in processed(raw.lake, SALES, D1)}
    assert found == {("I1", 2018), ("I2", 2019), ("I3", 2018)}
    folder = raw.root / f"processed/coffee_chain/sales/drop_date={D1}"
    assert sorted(p.parent.name for p in folder.rglob("*.parquet")) == [
        "2018",
        "2019",
    ]


def test_bad_rows_lie_in_quarantine_with_file_reason_and_text(raw: RawZone) -> None:
    raw.sales(D1, *DIRTY)

    take(raw.lake, SALES_DROPS, D1)

    file = RAW_SALES.name(D1)
    whole = "a whole number of 32 bits"
    assert sorted(quarantined(raw.lake, SALES, D1)) == sorted(
        [
            (file, f"quantity: expected {whole}, found 'two'", sale(6, quantity="two")),
            (file, f"quantity: expected {whole}, found 'two'", sale(6, quantity="two")),
            (file, f"quantity: expected {whole}, found none", sale(7, quantity="")),
            (
                file,
                "date_time: expected a valid YYYY-MM-DD HH:MM:SS, found '2018-02-30 10:00:00'",
                sale(8, "2018-02-30 10:00:00"),
            ),
            (file, "expected 7 fields, found 4", "9,I9,2018-03-01 10:00:00,c1"),
        ]
    )


def test_what_was_bad_leaves_quarantine_when_the_drop_is_mended(raw: RawZone) -> None:
    raw.sales(D1, *DIRTY)
    take(raw.lake, SALES_DROPS, D1)

    raw.sales(D1, sale(1))
    ledgers = take(raw.lake, SALES_DROPS, D1)

    assert (ledgers[D1].read, ledgers[D1].quarantined) == (1, 0)
    assert quarantined(raw.lake, SALES, D1) == []
    assert [row["sale_year"] for row in processed(raw.lake, SALES, D1)] == [2018]


def test_a_header_alone_empties_a_drop(raw: RawZone) -> None:
    raw.sales(D1, sale())
    raw.customers(D1, person())
    for large in (SALES_DROPS, CUSTOMER_DROPS):
        take(raw.lake, large, D1)
    assert processed(raw.lake, SALES, D1) and processed(raw.lake, CUSTOMER, D1)

    raw.sales(D1)
    raw.customers(D1)
    for large in (SALES_DROPS, CUSTOMER_DROPS):
        (ledger,) = take(raw.lake, large, D1).values()
        assert (ledger.read, ledger.written) == (0, 0)
        assert processed(raw.lake, large.dataset, D1) == []
        assert D1 in ledgers_of(raw.lake, large.dataset)


def test_a_date_without_a_file_of_the_table_is_an_empty_partition(raw: RawZone) -> None:
    raw.sales(D1, sale())
    raw.customers(D2, person())

    assert set(take(raw.lake, SALES_DROPS, D1, D2)) == {D1}
    assert set(take(raw.lake, CUSTOMER_DROPS, D1, D2)) == {D2}

    assert len(processed(raw.lake, SALES, D1, D2)) == 1
    assert len(processed(raw.lake, CUSTOMER, D1, D2)) == 1
    assert FEED.lake_versions(raw.lake, CUSTOMER).keys() == {D2}


@pytest.mark.parametrize("large", [SALES_DROPS, CUSTOMER_DROPS], ids=["sales", "customers"])
def test_a_date_that_no_file_has_is_refused(raw: RawZone, large: FileTable) -> None:
    raw.sales(D1, sale())

    with pytest.raises(RefusedPartitionsError) as error:
        take(raw.lake, large, D1, D3)

    assert f"no raw file has the date {D3}; expected {large.file_name(D3)}" in str(error.value)
    assert error.value.metadata == {REFUSED_PARTITIONS: [D3]}
    assert set(ledgers_of(raw.lake, large.dataset)) == set(error.value.taken) <= {D1}


def test_a_drop_that_was_taken_and_then_deleted_stays(raw: RawZone) -> None:
    raw.sales(D1, *DIRTY)
    raw.sales(D2, sale())
    before = take(raw.lake, SALES_DROPS, D1, D2)
    rows = processed(raw.lake, SALES, D1)
    (raw.root / RAW_SALES.name(D1)).unlink()

    assert take(raw.lake, SALES_DROPS, D1, D2) == before

    assert processed(raw.lake, SALES, D1) == rows
    assert len(quarantined(raw.lake, SALES, D1)) == 5
    assert set(ledgers_of(raw.lake, SALES)) == {D1, D2}
    assert outcomes(raw.lake, SALES, take_all(raw.lake, SALES_DROPS, D1, D2))[:2] == (True, True)


def test_drops_from_1700_on_are_taken(raw: RawZone) -> None:
    raw.sales("1700-01-01", sale(1, "1700-01-01 00:00:00"), sale(2, "1699-12-31 23:59:59"))

    take(raw.lake, SALES_DROPS, "1700-01-01")

    rows = processed(raw.lake, SALES, "1700-01-01")
    assert {row["sale_year"] for row in rows} == {1699, 1700}
    assert {str(row["drop_date"]) for row in rows} == {"1700-01-01"}


def test_the_same_line_in_two_drops_is_two_rows(raw: RawZone) -> None:
    raw.sales(D1, sale())
    raw.sales(D2, sale())

    take(raw.lake, SALES_DROPS, D1, D2)

    rows = processed(raw.lake, SALES, D1, D2)
    assert len({row["sale_line_id"] for row in rows}) == 2


def test_drops_taken_again_hold_the_same(raw: RawZone) -> None:
    raw.sales(D1, *DIRTY)
    raw.sales(D2, sale())
    first = take(raw.lake, SALES_DROPS, D1, D2)
    rows = processed(raw.lake, SALES, D1, D2)

    assert take(raw.lake, SALES_DROPS, D2) == {D2: first[D2]}
    assert take(raw.lake, SALES_DROPS, D1, D2) == first

    assert processed(raw.lake, SALES, D1, D2) == rows
    assert len(quarantined(raw.lake, SALES, D1)) == 5


Sabotage = Callable[[RawZone, pytest.MonkeyPatch], type[Exception]]


def another_header(raw: RawZone, monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    raw.deliver(RAW_SALES, D3, sale(), header=",invoice,date_time,customer_id,outlet,product,qty")
    return RefusedPartitionsError


def replaced_while_read(raw: RawZone, monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    write = SparkResource.write

    def write_and_replace(self: SparkResource, *arguments: Any) -> Any:
        written = write(self, *arguments)
        raw.sales(D3, sale(quantity=4))
        return written

    monkeypatch.setattr(SparkResource, "write", write_and_replace)
    return RefusedPartitionsError


def second_batch_fails(raw: RawZone, monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    write = SparkResource.write
    batches: list[object] = []

    def write_once(self: SparkResource, *arguments: Any) -> Any:
        batches.append(arguments)
        if len(batches) == 2:
            raise RuntimeError("the engine fell over")
        return write(self, *arguments)

    monkeypatch.setattr(taking, "_MOST_FILES_A_JOB", 1)
    monkeypatch.setattr(SparkResource, "write", write_once)
    return RuntimeError


def engine_loses_a_row(raw: RawZone, monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    write = SparkResource.write

    def write_less(self: SparkResource, frame: Any, *arguments: Any) -> Any:
        return write(self, frame.filter("coalesce(quantity, 0) <> 7"), *arguments)

    monkeypatch.setattr(SparkResource, "write", write_less)
    return RefusedPartitionsError


def disk_is_full(raw: RawZone, monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(taking, "_quarantine_table", fail)
    return OSError


@pytest.mark.parametrize(
    "sabotage",
    [another_header, replaced_while_read, second_batch_fails, engine_loses_a_row, disk_is_full],
    ids=lambda f: f.__name__,
)
def test_a_failed_run_touches_nothing_and_one_that_refuses_drops_no_partition_of_these(
    raw: RawZone, monkeypatch: pytest.MonkeyPatch, sabotage: Sabotage
) -> None:
    raw.sales(D1, *DIRTY)
    raw.sales(D3, sale(quantity=2))
    take(raw.lake, SALES_DROPS, D1, D3)
    raw.sales(D1, *DIRTY, sale(11))
    raw.sales(D2, sale(quantity=2))
    raw.sales(D3, sale(1), sale(2, quantity=7))
    before, rows = everything(raw.lake), processed(raw.lake, SALES, D3)
    expected = sabotage(raw, monkeypatch)

    with pytest.raises(expected) as error:
        take(raw.lake, SALES_DROPS, D1, D2, D3)

    if not isinstance(error.value, RefusedPartitionsError):
        assert everything(raw.lake) == before
        return
    assert str(error.value).startswith("1 of 3 drops cannot be taken; all others were. ")
    assert f"sales_data_{D3}.csv" in str(error.value)
    assert error.value.metadata == {REFUSED_PARTITIONS: [D3]}
    assert processed(raw.lake, SALES, D3) == rows and len(rows) == 1
    ledgers = ledgers_of(raw.lake, SALES)
    taken = error.value.taken
    assert {key: x.ledger for key, x in taken.items()} == {key: ledgers[key] for key in (D1, D2)}
    assert (ledgers[D1].written, ledgers[D2].written) == (4, 1)
    assert len(quarantined(raw.lake, SALES, D1)) == 5


def test_a_replaced_file_is_told_with_what_to_do(
    raw: RawZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw.sales(D3, sale())
    replaced_while_read(raw, monkeypatch)

    told = r"replaced while it was read.* Run this again; deliver"
    with pytest.raises(RefusedPartitionsError, match=told):
        take(raw.lake, SALES_DROPS, D3)


def test_a_run_that_ends_between_quarantine_and_table_leaves_new_work(
    raw: RawZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw.sales(D1, *DIRTY)
    raw.sales(D2, sale())
    before = take(raw.lake, SALES_DROPS, D1, D2)
    raw.sales(D1, sale(quantity=3))
    raw.sales(D2, sale(quantity=3))
    publish = Stage.publish

    def publish_one(self: Stage, dataset: Dataset, *arguments: Any, **named: Any) -> int:
        publish(self, dataset, *arguments, **named)
        raise KeyboardInterrupt  # as a killed process: nothing that comes after is done

    with monkeypatch.context() as context:
        context.setattr(Stage, "publish", publish_one)
        with pytest.raises(KeyboardInterrupt):
            take(raw.lake, SALES_DROPS, D1, D2)

    assert quarantined(raw.lake, SALES, D1) == []
    assert ledgers_of(raw.lake, SALES) == before  # which are not of the files that are there
    take(raw.lake, SALES_DROPS, D1, D2)
    assert [row["quantity"] for row in processed(raw.lake, SALES, D1, D2)] == [3, 3]


def test_what_a_person_restored_is_left_to_a_person(raw: RawZone) -> None:
    """By a run that none asked for, until the file is another."""
    raw.sales(D1, *DIRTY)
    raw.outlets()
    before = take(raw.lake, SALES_DROPS, D1)
    small = take_small(raw.lake, OUTLETS)
    raw.sales(D1, sale(), sale(2))
    raw.sales(D2, sale())
    raw.outlets("MY009,KLCC,1 Jalan Ampang,Selangor,1000,")
    newer = take(raw.lake, SALES_DROPS, D1, D2)
    take_small(raw.lake, OUTLETS)
    for dataset in (SALES, OUTLET):
        restore(raw.lake, dataset, 0, {})

    taken = take_all(raw.lake, SALES_DROPS, D1, D2, by_sensor=True)
    assert {key: x.ledger for key, x in taken.items()} == before
    assert outcomes(raw.lake, SALES, taken)[:2] == (True, True)
    assert ledgers_of(raw.lake, SALES) == before
    assert FEED.lake_versions(raw.lake, SALES)[D2] == ABSENT
    (left,) = take_all(raw.lake, OUTLETS, WHOLE_TABLE, by_sensor=True).values()
    assert left.ledger == small == ledgers_of(raw.lake, OUTLET)[WHOLE_TABLE]

    raw.sales(D1, sale(3), sale(4))
    raw.outlets()
    assert set(take_all(raw.lake, SALES_DROPS, D1, D2, by_sensor=True)) == {D1}
    assert {row["invoice_no"] for row in processed(raw.lake, SALES, D1)} == {"I3", "I4"}
    assert take_all(raw.lake, OUTLETS, WHOLE_TABLE, by_sensor=True)[WHOLE_TABLE] != left
    assert take(raw.lake, SALES_DROPS, D1, D2)[D2] == newer[D2]


# ---- values that are left out


def test_a_birthday_that_cannot_be_read_costs_no_row(raw: RawZone) -> None:
    odd, copy = (person(n, "c1", "2/1/1990") for n in (1, 2))
    raw.customers(D1, odd, copy, copy, person(3, "c2", "1990-02-30"), person(4, "c3", "NULL"))

    taken = take_all(raw.lake, CUSTOMER_DROPS, D1)

    assert taken[D1].ledger[1:5] == (5, 2, 0, 2)
    found = processed(raw.lake, CUSTOMER, D1)
    assert [(row["customer_id"], row["birthday"]) for row in found] == [
        ("c1", None),
        ("c2", None),
        ("c3", None),
    ]
    assert {row["first_name"] for row in found} == {"Siti"}
    file = RAW_CUSTOMER.name(D1)
    reason = "birthday: expected a valid YYYY-MM-DD or none, found "
    assert quarantined(raw.lake, CUSTOMER, D1) == []
    assert sorted(quarantined(raw.lake, CUSTOMER, D1, row_stays=True)) == [
        (file, f"{reason}'1990-02-30'", person(3, "c2", "1990-02-30")),
        (file, f"{reason}'2/1/1990'", odd),
    ]
    # Nor is a person's value told where anybody reads it.
    assert taken[D1].quarantined == Quarantined(
        0, 2, "birthday: expected a valid YYYY-MM-DD or none"
    )
    assert outcomes(raw.lake, CUSTOMER, taken)[:2] == (True, True)
    assert take_all(raw.lake, CUSTOMER_DROPS, D1) == taken


def test_rows_with_and_without_their_values_lie_in_one_table(raw: RawZone) -> None:
    raw.customers(D1, *(person(n, f"c{n}", "" if n % 2 else f"{n}") for n in range(20)), "1,2")

    taken = take_all(raw.lake, CUSTOMER_DROPS, D1)

    assert taken[D1].ledger[1:5] == (21, 0, 1, 10)
    assert taken[D1].quarantined.first == "expected 8 fields, found 2"
    assert {row["customer_id"] for row in processed(raw.lake, CUSTOMER, D1)} == {
        f"c{n}" for n in range(20)
    }
    assert len(quarantined(raw.lake, CUSTOMER, D1, row_stays=True)) == 10


# ---- tables that shrink


def test_a_drop_that_would_lose_its_rows_is_refused_and_keeps_them(raw: RawZone) -> None:
    raw.sales(D1, *(sale(n) for n in range(6)))
    take(raw.lake, SALES_DROPS, D1, most_lost=0.1)
    before = everything(raw.lake)

    raw.sales(D1, *(sale(n, "2/1/2019 8:00") for n in range(6)))
    with pytest.raises(RefusedPartitionsError) as error:
        take(raw.lake, SALES_DROPS, D1, most_lost=0.1)

    assert everything(raw.lake) == before
    told = str(error.value)
    assert f"malaysian_coffee_chain.sales, drop {D1} has 6 rows and would have 0" in told
    assert "6 rows quarantined; date_time: expected a valid" in told and "'2/1/2019 8:00'" in told
    assert f"retail-assets run coffee_chain --partitions {D1} --allow-emptying" in told
    assert "allow_emptying: true on coffee_chain/processed_sales" in told
    assert take(raw.lake, SALES_DROPS, D1, most_lost=1.0)[D1].written == 0


@pytest.mark.parametrize("loss", ["of the ledger", "of the file"])
def test_rows_are_those_of_the_table_whatever_was_lost(raw: RawZone, loss: str) -> None:
    raw.sales(D1, sale(1), sale(2))
    raw.customers(D1, person())
    take(raw.lake, SALES_DROPS, D1)
    table = pq.read_table(raw.lake.partition_uris(SALES)[0], partitioning=None)
    with raw.lake.staging("other") as stage:
        stage.write_partitions(SALES, [(D1, table)])
        stage.publish(SALES, [D1])
    assert ledgers_of(raw.lake, SALES) == {}
    if loss == "of the file":
        (raw.root / RAW_SALES.name(D1)).unlink()
    else:
        raw.sales(D1)

    with pytest.raises(RefusedPartitionsError, match="has 2 rows and would have 0, a loss of more"):
        take(raw.lake, SALES_DROPS, D1, most_lost=0.1)

    assert len(processed(raw.lake, SALES, D1)) == 2


def test_a_first_drop_that_is_quarantined_whole_is_refused(raw: RawZone) -> None:
    raw.sales(D1, sale(1, "x"), sale(2, "y"))
    with pytest.raises(RefusedPartitionsError, match=r"be quarantined \(2 rows quarantined; date"):
        take(raw.lake, SALES_DROPS, D1, most_lost=0.1)
    assert everything(raw.lake) == {}

    # What was let through once is not refused again, until it is another file.
    for most_lost in (1.0, 0.1):
        ledger = take(raw.lake, SALES_DROPS, D1, most_lost=most_lost)[D1]
        assert (ledger.written, ledger.quarantined) == (0, 2)
    raw.sales(D1, sale(1, "x"))
    with pytest.raises(RefusedPartitionsError, match="1 rows quarantined"):
        take(raw.lake, SALES_DROPS, D1, most_lost=0.1)

    raw.sales(D1)
    assert take(raw.lake, SALES_DROPS, D1, most_lost=0.1)[D1].read == 0


def test_all_drops_that_cannot_be_taken_are_told_of_at_once(raw: RawZone) -> None:
    days = [f"2018-01-{n:02}" for n in range(1, 8)]
    for day in days:
        raw.sales(day, *(sale(n) for n in range(10)))
    take(raw.lake, SALES_DROPS, *days)
    good = days.pop(3)
    raw.sales(good, *(sale(n) for n in range(9)))  # a tenth less
    raw.sales(days[0], sale())
    for day in days[1:]:
        raw.deliver(RAW_SALES, day, sale(), header="a,b,c,d,e,f,quantity")

    with pytest.raises(RefusedPartitionsError) as error:
        take(raw.lake, SALES_DROPS, *days, good, most_lost=0.1)

    assert error.value.metadata == {REFUSED_PARTITIONS: days}
    told = str(error.value)
    assert told.startswith("6 of 7 drops cannot be taken; all others were. ")
    assert f"drop {days[0]} has 10 rows and would have 1" in told
    assert told.count("has the header 'a,b,c,d,e,f,quantity'") == 2 and told.endswith(
        " And 3 more."
    )
    written = {key: ledger.written for key, ledger in ledgers_of(raw.lake, SALES).items()}
    assert written == dict.fromkeys(days, 10) | {good: 9}


@pytest.mark.parametrize("name", ["Unnamed: 0", "Unnamed: 12", "index"])
def test_the_index_may_have_the_name_that_pandas_gives_it(raw: RawZone, name: str) -> None:
    raw.deliver(RAW_SALES, D1, sale(), header=name + ",".join(RAW_SALES.header))

    assert take(raw.lake, SALES_DROPS, D1)[D1].written == 1


# ---- batches and files


def sized(size: int) -> LakeObject:
    return LakeObject("name", size, "1")


@given(
    st.dictionaries(
        st.dates().map(str), st.integers(0, 3 * taking._MOST_BYTES_A_JOB).map(sized), max_size=100
    )
)
def test_batches_hold_every_drop_once_in_order_within_the_limits(
    files: Mapping[str, LakeObject],
) -> None:
    batches = list(taking._batches(files))

    assert [key for batch in batches for key in batch] == sorted(files)
    for batch in batches:
        assert 1 <= len(batch) <= taking._MOST_FILES_A_JOB
        total = sum(entry.size for entry in batch.values())
        assert total <= taking._MOST_BYTES_A_JOB or len(batch) == 1
    for one, other in pairwise(batches):
        first = next(iter(other.values()))
        assert (
            len(one) == taking._MOST_FILES_A_JOB
            or sum(entry.size for entry in one.values()) + first.size > taking._MOST_BYTES_A_JOB
        )


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that Spark writes."""
    done: list[int] = []
    write = SparkResource.write

    def write_and_count(self: SparkResource, *arguments: Any) -> Any:
        written = write(self, *arguments)
        done.append(len(written))
        return written

    monkeypatch.setattr(SparkResource, "write", write_and_count)
    return done


@pytest.mark.parametrize(("limit", "batches"), [("files", 2), ("bytes", 3), ("none", 1)])
def test_drops_go_to_spark_in_batches_that_change_nothing(
    raw: RawZone, monkeypatch: pytest.MonkeyPatch, jobs: list[int], limit: str, batches: int
) -> None:
    paths = [raw.sales(day, *DIRTY, sale(quantity=2)) for day in (D1, D2, D3)]
    if limit == "files":
        monkeypatch.setattr(taking, "_MOST_FILES_A_JOB", 2)
    if limit == "bytes":
        monkeypatch.setattr(taking, "_MOST_BYTES_A_JOB", paths[0].stat().st_size)

    ledgers = take(raw.lake, SALES_DROPS, D3, D1, D2)

    assert len(jobs) == batches
    assert {key: ledger[1:5] for key, ledger in ledgers.items()} == dict.fromkeys(
        (D1, D2, D3), (11, 2, 5, 0)
    )
    assert len(processed(raw.lake, SALES, D1, D2, D3)) == 12


def test_small_files_of_a_folder_become_one_and_large_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = OUTLET.arrow_schema

    def write(name: str, start: int) -> Path:
        ids = [f"MY{n:03}" for n in range(start, start + 2)]
        columns = [pa.array(ids), *(pa.nulls(2, pa.string()) for _ in schema.names[1:])]
        # As an engine writes them: string views, every column nullable.
        view = pa.table(dict(zip(schema.names, columns, strict=True)))
        pq.write_table(view, tmp_path / name)
        return tmp_path / name

    files = [write(f"{n}.parquet", 2 * n) for n in range(3)]
    size = sum(file.stat().st_size for file in files)

    assert typing._merge_small(OUTLET, files[:1]) == files[:1]
    with monkeypatch.context() as context:
        context.setattr(typing, "_SMALL_BYTES", size - 1)
        assert typing._merge_small(OUTLET, files) == files
    monkeypatch.setattr(typing, "_SMALL_BYTES", size)
    (merged,) = typing._merge_small(OUTLET, files)

    table = pq.read_table(merged)
    assert table.schema.equals(schema)
    assert table["outlet_id"].to_pylist() == [f"MY{n:03}" for n in range(6)]


# ---- small tables


def test_a_small_table_is_written_whole_with_its_ledger(raw: RawZone) -> None:
    raw.outlets(
        "MY001,KLCC,1 Jalan Ampang,Selangor,1000,",
        'MY002,Uptown,"2 Jalan SS, 21",Selangor,,Petaling',
        "MY003,Nowhere,3 Jalan X,Johor,12A45,",
        "MY001,KLCC,1 Jalan Ampang,Selangor,1000,",
        "MY004,Short,4 Jalan Y",
    )

    ledger = take_small(raw.lake, OUTLETS)

    assert ledger[1:5] == (5, 1, 1, 1)
    assert ledgers_of(raw.lake, OUTLET) == {WHOLE_TABLE: ledger}
    rows = processed(raw.lake, OUTLET, WHOLE_TABLE)
    assert [(r["outlet_id"], r["outlet_address"], r["postcode"]) for r in rows] == [
        ("MY001", "1 Jalan Ampang", "01000"),
        ("MY002", "2 Jalan SS, 21", None),
        ("MY003", "3 Jalan X", None),
    ]
    file = RAW_OUTLET.name()
    assert quarantined(raw.lake, OUTLET, WHOLE_TABLE) == [
        (file, "expected 6 fields, found 3", "MY004,Short,4 Jalan Y"),
    ]
    assert quarantined(raw.lake, OUTLET, WHOLE_TABLE, row_stays=True) == [
        (
            file,
            "postcode: expected up to five digits or none, found '12A45'",
            "MY003,Nowhere,3 Jalan X,Johor,12A45,",
        ),
    ]


def test_a_small_table_taken_again_holds_what_its_file_holds(raw: RawZone) -> None:
    raw.products("1,PD001,Latte,RM 9.90", "2,PD002,Mocha,9.90")
    first = take_small(raw.lake, PRODUCTS)
    assert first[1:5] == (2, 0, 1, 0)
    assert take_small(raw.lake, PRODUCTS) == first

    raw.products("1,PD001,Latte,RM 10.90")
    second = take_small(raw.lake, PRODUCTS)

    assert second[1:5] == (1, 0, 0, 0)
    assert second.fingerprint != first.fingerprint
    assert [str(r["product_price"]) for r in processed(raw.lake, PRODUCT, "")] == ["10.90"]
    assert quarantined(raw.lake, PRODUCT, WHOLE_TABLE) == []


def test_a_small_table_that_would_lose_its_rows_is_refused(raw: RawZone) -> None:
    raw.products("1,PD001,Latte,9.90")
    with pytest.raises(ShrunkError, match="all that was delivered would be quarantined"):
        take_small(raw.lake, PRODUCTS, 0.1)
    assert everything(raw.lake) == {}

    raw.products(*(f"{n}.0,PD{n:03},Latte,RM 9.9" for n in range(1, 11)))
    assert take_small(raw.lake, PRODUCTS, 0.1).written == 10
    before = everything(raw.lake)
    raw.products(*(f"{n},PD{n:03},Latte,RM 9.90" for n in range(1, 9)))
    with pytest.raises(ShrunkError) as error:
        take_small(raw.lake, PRODUCTS, 0.1)
    assert "malaysian_coffee_chain.product has 10 rows and would have 8" in str(error.value)
    assert "run: retail-assets run coffee_chain --allow-emptying" in str(error.value)
    assert everything(raw.lake) == before
    assert take_small(raw.lake, PRODUCTS).written == 8


@pytest.mark.parametrize("index", ["", ",", "Unnamed: 0,"])
def test_an_outlet_list_that_went_through_pandas_keeps_its_outlets(
    raw: RawZone, index: str
) -> None:
    rows = (
        "MY001,KL One,Jalan Raja,Kuala Lumpur,50000.0,Bukit",
        "MY002,Two,Jalan X,Perlis,1000.0,Kangar",
        "MY003,Three,Jalan 3,Johor,80000.0,JB",
        "MY004,Four,Jalan 4,Kedah,,AS",
    )
    numbered = (f"{n},{row}" if index else row for n, row in enumerate(rows))
    raw.deliver(RAW_OUTLET, "", *numbered, header=index + ",".join(RAW_OUTLET.header))

    (taken,) = take_all(raw.lake, OUTLETS, WHOLE_TABLE, most_lost=0.1).values()

    assert not taken.quarantined
    rows = processed(raw.lake, OUTLET, WHOLE_TABLE)
    assert [row["postcode"] for row in rows] == ["50000", "01000", "80000", None]


def test_decimal_commas_are_read_where_another_mark_separates(raw: RawZone) -> None:
    lines = [
        "1,0;PD1,0;Latte 2,0;RM 9,90",
        "2;PD2;Teh;RM12,5",
        "3;PD3;Kopi;RM 1,234",
        "4;4,0;x;RM 1",
    ]
    raw.deliver(RAW_PRODUCT, "", *lines, header=";".join(RAW_PRODUCT.header))
    raw.deliver(
        RAW_SALES,
        D1,
        *(
            sale(n, outlet="7#0", quantity=text).replace(",", ";").replace("#", ",")
            for n, text in enumerate(["2#0", "3", "1#5", "1#000"])
        ),
        header=";".join(RAW_SALES.header),
    )
    raw.sales(D2, sale(quantity='"2,0"'), sale(2))

    assert take_small(raw.lake, PRODUCTS)[1:5] == (4, 0, 1, 0)
    found = take(raw.lake, SALES_DROPS, D1, D2)

    products = processed(raw.lake, PRODUCT, WHOLE_TABLE)
    assert {
        (r["no"], r["product_id"], r["product_name"], str(r["product_price"])) for r in products
    } == {
        (1, "PD1,0", "Latte 2,0", "9.90"),
        (2, "PD2", "Teh", "12.50"),
        (4, "4", "x", "1.00"),
    }
    sales = processed(raw.lake, SALES, D1)
    assert {(r["outlet_id"], r["quantity"]) for r in sales} == {("7", 2), ("7", 3)}
    # Nor where the comma separates.
    assert [ledger[1:5] for ledger in found.values()] == [(4, 0, 2, 0), (2, 0, 1, 0)]


def test_what_stands_above_a_header_is_told(raw: RawZone) -> None:
    raw.deliver(RAW_PRODUCT, "", "no,product_id,product_name,product_price", header="Prices of May")
    raw.deliver(RAW_SALES, D1, ",".join(RAW_SALES.header), sale(), header="Sales of May")

    small = take_all(raw.lake, PRODUCTS, WHOLE_TABLE)[WHOLE_TABLE]
    large = take_all(raw.lake, SALES_DROPS, D1)[D1]

    assert small.metadata[SKIPPED] == "product.csv: 1 row above the header"
    assert str(large.metadata[SKIPPED]).endswith(": 1 row above the header")
    raw.products()
    assert SKIPPED not in take_all(raw.lake, PRODUCTS, "")[WHOLE_TABLE].metadata


@pytest.mark.parametrize("small", FEED.single, ids=lambda small: small.dataset.name)
def test_a_small_file_that_is_not_there_is_told(raw: RawZone, small: FileTable) -> None:
    with pytest.raises(DropError) as error:
        take_small(raw.lake, small)

    assert str(error.value).startswith(f"{raw.root}/{small.path} is not there.")
    assert "retail-assets sample coffee_chain" in str(error.value)


def test_a_small_file_that_is_refused_touches_nothing(
    raw: RawZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw.products()
    take_small(raw.lake, PRODUCTS)
    before = everything(raw.lake)

    raw.deliver(RAW_PRODUCT, "", "PD001,RM 1.00", header="product_id,product_price")
    with pytest.raises(UnreadableFileError, match="expected 'no,product_id,product_name"):
        take_small(raw.lake, PRODUCTS)
    assert everything(raw.lake) == before

    raw.products()
    scan = typing.scan_csv

    def scan_and_replace(*arguments: Any) -> Any:
        found = scan(*arguments)
        raw.products("1,PD001,Latte,RM 1.90")
        return found

    monkeypatch.setattr(typing, "scan_csv", scan_and_replace)
    with pytest.raises(DropError, match=r"product\.csv was replaced while it was read"):
        take_small(raw.lake, PRODUCTS)
    assert everything(raw.lake) == before


# ---- checks and what is loaded


def checks(
    lake: LocalLake, dataset: Dataset, taken: Mapping[str, Taken]
) -> list[dg.AssetCheckResult]:
    """The checks of a run that took this, as the asset makes them."""
    (table,) = (x for x in FEED.tables if x.dataset is dataset)
    lost = sum((x.quarantined for x in taken.values()), Quarantined())
    asset = processed_key(FEED, table.dataset)
    return check_processed(lake, asset, dataset, quarantine_of(dataset), taken, lost, taken)


def outcomes(
    lake: LocalLake, dataset: Dataset, taken: Mapping[str, Taken]
) -> tuple[bool, bool, Any]:
    """Whether the balance holds, whether the schema does, and the metadata of all checks."""
    found = {check.check_name: check for check in checks(lake, dataset, taken)}
    metadata = {name: {k: v.value for k, v in c.metadata.items()} for name, c in found.items()}
    return found[BALANCE_CHECK].passed, found[SCHEMA_CHECK].passed, metadata


def test_what_was_written_passes_the_checks_by_its_files(raw: RawZone) -> None:
    raw.sales(D1, *DIRTY)
    raw.sales(D2)
    raw.outlets()
    taken = take_all(raw.lake, SALES_DROPS, D1, D2)
    small = take_all(raw.lake, OUTLETS, WHOLE_TABLE, most_lost=0.1)

    *passed, metadata = outcomes(raw.lake, SALES, taken)

    assert passed == [True, True]
    assert metadata[BALANCE_CHECK] == {
        "partitions": 2,
        "partitions_by_their_files": 2,
        "read": 10,
        "written": 3,
        "duplicates": 2,
        "quarantined": 5,
        "unbalanced": {},
    }
    assert outcomes(raw.lake, OUTLET, small)[:2] == (True, True)
    assert outcomes(raw.lake, SALES, {})[:2] == (True, True)
    first = "date_time: expected a valid YYYY-MM-DD HH:MM:SS, found '2018-02-30 10:00:00'"
    lost = {"quarantined": 5, "left_out_values": 0, "first_reason": first}
    ledger = taken[D1].ledger
    assert taken[D1].metadata == {
        "dagster/partition_row_count": 3,
        "read": 10,
        "duplicates": 2,
        **lost,
        "bytes": ledger.size,
        "sha256": hashlib.sha256(Path(raw.root / RAW_SALES.name(D1)).read_bytes()).hexdigest(),
    }
    assert metadata[QUARANTINE_CHECK] == lost
    check = checks(raw.lake, SALES, taken)[-1]
    assert not check.passed and check.severity is dg.AssetCheckSeverity.WARN
    assert f"5 rows quarantined; {first}" in str(check.description)
    assert checks(raw.lake, OUTLET, small)[-1].passed


@pytest.mark.parametrize("dataset", [SALES, quarantine_of(SALES)], ids=lambda x: x.zone)
def test_rows_that_are_gone_fail_the_balance(raw: RawZone, dataset: Dataset) -> None:
    raw.sales(D1, *DIRTY)
    raw.sales(D2, sale())
    taken = take_all(raw.lake, SALES_DROPS, D1, D2)
    raw.lake.table(dataset).commit([], replace=[D1])

    balances, _, metadata = outcomes(raw.lake, SALES, taken)

    assert not balances
    assert list(metadata[BALANCE_CHECK]["unbalanced"]) == [D1]
    found = metadata[BALANCE_CHECK]["unbalanced"][D1]
    assert (
        found
        == {
            "processed": "the table has nothing of it",
            "quarantine": "read 10, duplicates 2, found 3 rows and 0 quarantined",
        }[dataset.zone]
    )


def test_files_of_another_schema_fail_the_check_with_both(raw: RawZone) -> None:
    raw.customers(D1, person())
    taken = take_all(raw.lake, CUSTOMER_DROPS, D1)
    (uri,) = raw.lake.partition_uris(CUSTOMER, [D1])
    table = pq.read_table(uri, partitioning=None)
    pq.write_table(table.drop_columns(["email"]), uri)

    _, is_as_declared, metadata = outcomes(raw.lake, CUSTOMER, taken)

    assert not is_as_declared
    assert "email" in metadata[SCHEMA_CHECK]["expected"]
    (found,) = metadata[SCHEMA_CHECK]["found"].values()
    assert "email" not in found


def test_versions_are_of_what_was_processed(raw: RawZone) -> None:
    """Also what a table is landed as of which there never was a file."""
    assert {x: FEED.lake_versions(raw.lake, x) for x in (SALES, CUSTOMER, OUTLET)} == {
        SALES: {},
        CUSTOMER: {},
        OUTLET: {},
    }
    raw.sales(D1, sale())
    raw.sales(D2, sale())
    sales = take(raw.lake, SALES_DROPS, D2, D1)

    assert FEED.lake_versions(raw.lake, SALES) == {k: x.fingerprint for k, x in sales.items()}
    assert FEED.lake_versions(raw.lake, CUSTOMER) == {D1: ABSENT}
    assert FEED.lake_versions(raw.lake, OUTLET) == {}
    raw.customers(D2, person())
    (ledger,) = take(raw.lake, CUSTOMER_DROPS, D1, D2).values()
    assert FEED.lake_versions(raw.lake, CUSTOMER) == {D2: ledger.fingerprint}


def test_a_table_that_never_had_a_file_is_landed_empty(raw: RawZone, tmp_path: Path) -> None:
    raw.sales(D1, sale(1), sale(2, "2019-01-01 00:00:00"))
    raw.sales(D2)
    take(raw.lake, SALES_DROPS, D1, D2)
    warehouse = DuckDBWarehouse(path=str(tmp_path / "warehouse.duckdb"))

    assert [rebuild(raw.lake, warehouse, FEED, x) for x in (SALES, CUSTOMER)] == [2, 0]

    assert warehouse.row_counts() == {SALES.table: 2, CUSTOMER.table: 0}
    for dataset in (SALES, CUSTOMER):
        versions = FEED.lake_versions(raw.lake, dataset)
        assert warehouse.loaded_versions(dataset) == versions


def deleted(lake: LocalLake) -> Any:
    (check,) = FEED.build_defs(load_settings()).asset_checks or ()
    assert isinstance(check, dg.AssetChecksDefinition)
    return check(lake=lake)


def test_drops_that_are_there_pass_the_check(raw: RawZone) -> None:
    assert deleted(raw.lake).passed
    raw.sales(D1, sale())
    raw.customers(D1, person())
    raw.sales(D2, sale())
    take(raw.lake, SALES_DROPS, D1)
    take(raw.lake, CUSTOMER_DROPS, D1)
    raw.deliver_bytes("raw/coffee_chain/sales/sales_data_20190630.csv", b"x")

    check = deleted(raw.lake)

    assert check.passed and check.description is None
    assert check.metadata["drops"].value == 2
    assert check.metadata["no_drops"].value == ["raw/coffee_chain/sales/sales_data_20190630.csv"]


def test_drops_that_were_deleted_fail_the_check_which_names_them(raw: RawZone) -> None:
    for day in (D1, D2):
        raw.sales(day, sale())
        raw.customers(day, person())
    take(raw.lake, SALES_DROPS, D1, D2)
    take(raw.lake, CUSTOMER_DROPS, D1, D2)
    for name in (RAW_SALES.name(D1), RAW_SALES.name(D2), RAW_CUSTOMER.name(D2)):
        (raw.root / name).unlink()

    check = deleted(raw.lake)

    assert not check.passed
    assert check.description == (
        f"3 raw files were taken and are gone ({D1}, {D2}). Their rows stay. Put the files back;"
        " to remove rows, deliver the drop with a header alone, and run it with --allow-emptying."
    )
    assert check.metadata["deleted"].value == {"customer": [D2], "sales": [D1, D2]}
    raw.sales(D1)
    raw.sales(D2, sale())
    raw.customers(D2, person())
    assert deleted(raw.lake).passed

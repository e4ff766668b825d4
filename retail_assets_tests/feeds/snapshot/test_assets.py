"""Tests of retail_assets.feeds.snapshot.assets: what is written, and the checks of it."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retail_assets.dataset import Dataset
from retail_assets.defs.online_retail.contract import ONLINE_RETAIL_DATA
from retail_assets.defs.online_retail.feed import FEED
from retail_assets.feeds.checks import BALANCE_CHECK, check_processed
from retail_assets.feeds.processed import processed_key
from retail_assets.feeds.snapshot.definitions import write_days
from retail_assets.feeds.snapshot.manifest import EMPTY_DAY
from retail_assets.feeds.snapshot.source import Source
from retail_assets.losses import Quarantined
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.lake.restoring import restore
from retail_assets.resources.lake.tables import NewFile
from retail_assets.settings import load_settings

QUARANTINE = FEED.quarantine
HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
D1, D2, D3 = DAYS = ["2010-12-01", "2010-12-02", "2010-12-03"]


def take(lake: LocalLake, *lines: tuple[str, str]) -> None:
    """Make lines of (day, quantity) the source, and write its days."""
    path = Path(lake.root).parent / "origin.csv"
    path.write_text(
        HEADER + "".join(f"1,85123A,HEART,{n},{day} 08:26:00,2.55,17850,EIRE\n" for day, n in lines)
    )
    settings = load_settings(
        home=path.parent, online_retail_source=str(path), online_retail_start=D1
    )
    Source(FEED, settings).refresh(lake, allow_emptying=True)
    write_days(FEED, lake, "a-run", DAYS)


@pytest.fixture
def lake(tmp_path: Path) -> LocalLake:
    """Of two good lines, a copy, one that is rejected, and a day without any."""
    lake = LocalLake(root=str(tmp_path / "lake"))
    take(lake, (D1, "6"), (D1, "6"), (D1, "six"), (D3, "1"))
    return lake


def check(
    lake: LocalLake, days: Sequence[str] = DAYS
) -> tuple[bool, Mapping[str, dg.MetadataValue]]:
    """Whether the ledgers balance, and what the check says, in a run of those days."""
    found = check_processed(
        lake, processed_key(FEED, FEED.dataset), FEED.dataset, QUARANTINE, days, Quarantined()
    )
    (balance,) = [result for result in found if result.check_name == BALANCE_CHECK]
    return balance.passed, balance.metadata


def test_a_day_is_known_by_the_ledger_of_its_commit(lake: LocalLake) -> None:
    table = lake.table(ONLINE_RETAIL_DATA)

    one, two, three = (table.snapshot().ledgers[day] for day in DAYS)

    assert (one.read, one.written, one.duplicates, one.quarantined) == (3, 1, 1, 1)
    assert (two, three.read, three.written) == (EMPTY_DAY, 1, 1)
    assert lake.table(QUARANTINE).snapshot().rows_of(DAYS) == {D1: 1, D2: 0, D3: 0}
    told = table.history(1)[0].told
    (source,) = lake.list_objects("raw/")
    assert list(json.loads(told["source"])) == [source.name]
    assert (told["run_id"], told["asset"], told["code_version"]) == (
        "a-run",
        "online_retail/processed_online_retail_data",
        "1",
    )
    assert (told["rows_read"], told["rows_written"], told["quarantined"]) == ("4", "2", "1")


def test_what_was_written_balances(lake: LocalLake) -> None:
    passed, told = check(lake)

    assert passed
    assert {
        name: told[name].value for name in ("partitions", "read", "written", "quarantined")
    } == {
        "partitions": 3,
        "read": 4,
        "written": 2,
        "quarantined": 1,
    }


@pytest.mark.parametrize("days", [[D1, D2], [D1], DAYS])
@pytest.mark.parametrize("dataset", [ONLINE_RETAIL_DATA, QUARANTINE], ids=lambda x: x.zone)
@pytest.mark.parametrize("harm", ["gone", "cut", "other"])
def test_files_of_the_run_that_are_not_what_was_written_are_found(
    lake: LocalLake, days: list[str], dataset: Dataset, harm: str
) -> None:
    (uri,) = lake.partition_uris(dataset, [D1])
    if harm == "gone":
        Path(uri).unlink()
    elif harm == "cut":
        Path(uri).write_bytes(Path(uri).read_bytes()[:-9])
    else:
        table = pq.ParquetFile(uri).read()
        pq.write_table(pa.concat_tables([table, table]), uri)

    passed, told = check(lake, days)

    assert not passed
    unbalanced = told["unbalanced"].value
    assert isinstance(unbalanced, dict) and list(unbalanced) == [D1]


def test_rows_that_another_program_added_are_found(lake: LocalLake) -> None:
    (uri,) = lake.partition_uris(ONLINE_RETAIL_DATA, [D1])
    shutil.copy(uri, Path(uri).with_name("other.parquet"))
    lake.table(ONLINE_RETAIL_DATA).commit(
        [NewFile(f"invoice_date={D1}/other.parquet", D1, 1, Path(uri).stat().st_size)]
    )

    assert not check(lake, [D3])[0]


def test_days_that_a_person_restored_balance_by_their_own_ledgers(lake: LocalLake) -> None:
    take(lake, (D1, "6"), (D3, "1"))
    restore(lake, ONLINE_RETAIL_DATA, 0, {})

    assert lake.table(ONLINE_RETAIL_DATA).snapshot().ledgers[D1].quarantined == 1
    assert lake.table(QUARANTINE).snapshot().rows_of([D1]) == {D1: 0}
    assert check(lake)[0]

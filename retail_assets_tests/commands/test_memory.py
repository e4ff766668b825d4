"""Tests of retail_assets.commands.memory, over lakes to which the core committed."""

import json
import os
import time
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from retail_assets.cli import app
from retail_assets.commands.run import rebuild_table
from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain.contract import OUTLET, SALES
from retail_assets.defs.online_retail.contract import ONLINE_RETAIL_DATA
from retail_assets.defs.online_retail.feed import FEED
from retail_assets.defs.registry import domains
from retail_assets.defs.supply_chain.contract import DIM_CUSTOMER, MESSAGES
from retail_assets.feeds.files import quarantine_of
from retail_assets.resources.lake import LakeResource, open_lake
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.restoring import set_aside
from retail_assets.resources.warehouse import open_warehouse
from retail_assets.settings import Settings, load_settings

D1, D2, D3 = "2011-11-30", "2011-12-01", "2011-12-02"
DAY_S = 86_400


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in list(os.environ):
        if name.startswith(("RETAIL_", "DAGSTER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RETAIL_HOME", str(tmp_path / "home"))
    return load_settings()


@pytest.fixture
def lake(settings: Settings) -> LakeResource:
    return open_lake(settings)


def retail_assets(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def made(dataset: Dataset, key: str, rows: int) -> pa.Table:
    """Rows of a partition, of any values that the columns take."""

    def value(kind: str, number: int) -> Any:
        plain = {"string": f"{key} {number}", "date": date(2011, 12, 1), "bool": True}
        plain |= {"timestamp": datetime(2011, 12, 1, 9, 30), "int32": number, "int64": number}
        return plain.get(kind, Decimal(number))

    return pa.Table.from_pylist(
        [
            {c.name: value(c.type, n) for c in dataset.columns}
            | ({dataset.partition_by: date.fromisoformat(key)} if dataset.partition_by else {})
            for n in range(rows)
        ],
        schema=dataset.arrow_schema,
    )


def publish(
    lake: LakeResource,
    dataset: Dataset,
    rows: Mapping[str, int],
    *,
    quarantine: Dataset | None = None,
    bad: Mapping[str, int] | None = None,
    fingerprint: str = "f1",
    source: Mapping[str, str] | None = None,
) -> None:
    """Replace partitions of a table, and of its quarantine, as a domain's asset does."""
    bad = bad or {}
    told = {"source": dict(source or {"raw/a.csv": "0123456789abcdef"})}
    with lake.staging("5eb01f80-c781", "shop/processed") as stage:
        if quarantine is not None:
            stage.write_partitions(
                quarantine, [(k, made(quarantine, k, n)) for k, n in bad.items()]
            )
            stage.publish(quarantine, rows, told=told)
        stage.write_partitions(dataset, [(k, made(dataset, k, n)) for k, n in rows.items() if n])
        ledgers = {
            k: Ledger(fingerprint, n + bad.get(k, 0) + 1, 1, bad.get(k, 0)) for k, n in rows.items()
        }
        stage.publish(dataset, rows, ledgers, told)


def age(lake: LakeResource, dataset: Dataset, before_version: int, days: float) -> None:
    """Let commits before a version, and the files that are there by now, be as old as that."""
    folder = Path(lake.root) / dataset.location
    log = [folder / f"_delta_log/{v:020}.json" for v in range(before_version)]
    for file in [*log, *folder.rglob("*.parquet")]:
        os.utime(file, (time.time() - days * DAY_S,) * 2)


def test_history_tells_of_each_version(lake: LakeResource) -> None:
    publish(lake, SALES, {D1: 3, D2: 2}, bad={D1: 1}, quarantine=quarantine_of(SALES))
    many = {f"raw/{n}[b].csv": f"{n}23456789abcdef" for n in range(4)}
    publish(lake, SALES, {D1: 0}, source=many)

    shown = retail_assets("history", "malaysian_coffee_chain.sales")
    last = retail_assets("history", "malaysian_coffee_chain.sales", "--limit", "1", "--json")

    assert (shown.exit_code, last.exit_code) == (0, 0), shown.output
    rows = [line for line in shown.output.splitlines() if "shop/processed" in line]
    second, first = ([cell.strip() for cell in row.strip("│ ").split("│")] for row in rows)
    assert [first[0], *first[2:]] == [
        *("0", "5eb01f80", "shop/processed", "8", "5", "2", "1", "raw/a.csv 0123456789ab", "yes"),
    ]
    assert second[0] == "1"
    assert "raw/0[b].csv 023456789abc, raw/1[b].csv" in second[8]
    assert "2 more" in shown.output
    (found,) = json.loads(last.output)["versions"]
    assert (found["version"], found["read"], found["written"], found["readable"]) == (1, 1, 0, True)
    assert found["run"] == "5eb01f80-c781"


def test_history_says_which_versions_can_no_longer_be_read(
    lake: LakeResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETAIL_LAKE_HISTORY_DAYS", "0")
    for rows in (1, 2):
        publish(open_lake(load_settings()), OUTLET, {"": rows})

    told = json.loads(retail_assets("history", "malaysian_coffee_chain.outlet", "--json").output)[
        "versions"
    ]

    assert [(x["version"], x["readable"]) for x in told] == [(1, True), (0, False)]
    done = retail_assets("restore", "malaysian_coffee_chain.outlet", "--version", "0")
    assert "version 0 can no longer be restored: 1 of its files are gone" in str(done.exception)


def test_restoring_takes_table_quarantine_and_warehouse_back(
    lake: LakeResource, settings: Settings
) -> None:
    table, warehouse = lake.table(ONLINE_RETAIL_DATA), open_warehouse(settings)
    name = ONLINE_RETAIL_DATA.table
    publish(lake, ONLINE_RETAIL_DATA, {D1: 3, D2: 2}, bad={D1: 1}, quarantine=FEED.quarantine)
    first, first_bad = table.snapshot(), lake.table(FEED.quarantine).snapshot()
    publish(
        lake,
        ONLINE_RETAIL_DATA,
        {D1: 1, D3: 5},
        bad={D1: 4, D3: 2},
        quarantine=FEED.quarantine,
        fingerprint="f2",
    )
    later = table.snapshot()
    assert rebuild_table(settings, name) == 8

    done = retail_assets("restore", name, "--version", "0")

    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[:2] == [
        f"{name}: version 0 is now version 2; 8 rows before, 5 now",
        f"changed: {D1}, {D3}",
    ]
    assert f"Now: retail-assets rebuild {name}; then the job online_retail_marts" in done.output
    assert table.snapshot().files == first.files
    assert lake.table(FEED.quarantine).snapshot().files == first_bad.files
    assert set_aside(lake, ONLINE_RETAIL_DATA) == {k: later.ledgers[k] for k in (D1, D3)}
    told = json.loads(retail_assets("history", name, "--json", "--limit", "1").output)
    assert told["versions"][0]["source"] == "version 0"
    assert told["versions"][0]["asset"] == "retail-assets restore"
    # What the last line says to do.
    assert retail_assets("rebuild", name).exit_code == 0
    loaded = warehouse.loaded_versions(ONLINE_RETAIL_DATA)
    assert {day: of for day, of in loaded.items() if of} == table.snapshot().fingerprints
    assert warehouse.row_counts()[name] == 5
    again = retail_assets("restore", name, "--version", "0")
    assert "nothing was changed" in again.output


def test_a_quarantine_that_was_not_there_is_emptied(lake: LakeResource) -> None:
    publish(lake, SALES, {D1: 3})
    quarantine = quarantine_of(SALES)
    publish(lake, SALES, {D1: 2}, bad={D1: 1}, quarantine=quarantine, fingerprint="f2")

    done = retail_assets("restore", SALES.table, "--version", "0")

    assert done.exit_code == 0, done.output
    assert lake.table(SALES).snapshot().rows == 3
    assert lake.table(quarantine).snapshot().files == ()


@pytest.mark.parametrize(
    ("table", "instead"),
    [
        (f"quarantine.{SALES.table}", f"retail-assets restore {SALES.table} --version N"),
        (MESSAGES.table, "positions in the topic"),
        (f"quarantine.{MESSAGES.table}", "positions in the topic"),
        (DIM_CUSTOMER.table, "the star is built of the messages"),
    ],
)
def test_what_stands_on_others_is_not_restored(
    lake: LakeResource, table: str, instead: str
) -> None:
    done = retail_assets("restore", table, "--version", "0")

    assert f"{table} is not restored: " in str(done.exception)
    assert instead in str(done.exception)
    assert not Path(lake.root).exists()


@pytest.mark.parametrize("command", ["history", "restore", "vacuum"])
def test_an_unknown_table_is_refused_with_the_known_ones(lake: LakeResource, command: str) -> None:
    options = ("--version", "0") if command == "restore" else ()

    done = retail_assets(command, "sales", *options)

    assert "'sales' is no table of the lake; one of: malaysian_coffee_chain." in str(done.exception)
    for dataset in (SALES, MESSAGES, DIM_CUSTOMER):
        assert dataset.table in str(done.exception)
    assert not Path(lake.root).exists()


@pytest.mark.parametrize("command", ["history", "restore"])
def test_a_table_without_commits_says_so(settings: Settings, command: str) -> None:
    options = ("--version", "0") if command == "restore" else ()

    done = retail_assets(command, OUTLET.table, *options)

    assert not settings.home.exists()
    assert str(done.exception).startswith(f"nothing was committed to {OUTLET.table} yet. Run: ")


def test_each_domains_tables_lie_in_places_of_their_own() -> None:
    tables = [table for domain in domains() for table in domain.lake_tables().items()]

    assert len({name for name, _ in tables}) == len(tables)
    assert len({dataset.location for _, dataset in tables}) == len(tables)


def test_vacuum_takes_what_no_kept_version_has(lake: LakeResource) -> None:
    publish(lake, SALES, {D1: 3, D2: 2})
    publish(lake, SALES, {D1: 4})
    age(lake, SALES, before_version=2, days=8)
    publish(lake, SALES, {D1: 5})
    publish(lake, OUTLET, {"": 2})
    files = {p: p.stat().st_size for p in (Path(lake.root) / SALES.location).rglob("*.parquet")}
    kept = {f.name for v in (1, 2) for f in lake.table(SALES).snapshot(v).files}
    gone = {p for p in files if str(p.relative_to(lake.root)) not in kept}

    tried = retail_assets("vacuum", "--dry-run")
    there = {p for p in files if p.exists()}
    done = retail_assets("vacuum", SALES.table)

    told = f"{SALES.table}: 1 files, {sum(files[p] for p in gone):,} bytes"
    assert tried.output.splitlines() == [
        f"{OUTLET.table}: 0 files, 0 bytes would be deleted",
        f"{told} would be deleted",
    ]
    assert there == set(files)
    assert done.output == f"{told} deleted\n"
    assert {p for p in files if not p.exists()} == gone

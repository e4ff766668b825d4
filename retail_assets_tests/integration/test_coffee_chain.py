"""The coffee chain by its command, held against a computation of its own over the raw files.

A sample with odd files among it, then what is delivered later. After each run every table is
compared row for row with what plain DuckDB and Python make of the raw files as they then lie.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest

from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain.contract import (
    CUSTOMER,
    DOMAIN,
    OUTLET,
    PRODUCT,
    RAW_CUSTOMER,
    RAW_PRODUCT,
    RAW_SALES,
    SALES,
    WAREHOUSE,
    RawFiles,
)
from retail_assets.defs.coffee_chain.feed import FEED
from retail_assets.defs.coffee_chain.sample import DropCounts, SampleCounts, write_sample
from retail_assets.feeds.files import quarantine_of
from retail_assets.feeds.files.definitions import DELETED_CHECK, raw_key
from retail_assets.feeds.landing import landed_key
from retail_assets.resources.lake import open_lake
from retail_assets.resources.lake.tables import Snapshot
from retail_assets.settings import load_settings
from retail_assets_tests.conftest import PROJECT, Command, instance_of
from retail_assets_tests.integration.reckoning import Expected

CORE = "coffee_chain_core"
# Our tables, by the name of the table in which Expected has the same.
TABLES = {
    "outlet": f"{WAREHOUSE}.outlet",
    "product": f"{WAREHOUSE}.product",
    "customer": f"{WAREHOUSE}.customer",
    "sales": f"{WAREHOUSE}.sales",
    "dim_outlet": f"{CORE}.dim_outlet",
    "dim_product": f"{CORE}.dim_product",
    "dim_customer": f"{CORE}.dim_customer",
    "fact_sales": f"{CORE}.fact_sales",
    "state_revenue": f"{CORE}.state_revenue",
    "age_group_purchase": f"{CORE}.age_group_purchase",
}
DROPPED = {"customer": (CUSTOMER, RAW_CUSTOMER), "sales": (SALES, RAW_SALES)}

WINDOWS_1252 = "2017-12-31"
CUSTOMERS_ALONE = "2016-02-29"
HEADER_ALONE = "1700-01-01"
LEAP = "00000000-0000-4000-8000-000000000229"
ACCENTED = "00000000-0000-4000-8000-0000000000e9"


class Home:
    """A home of the coffee chain, and the command over it."""

    def __init__(self, path: Path, command: Command) -> None:
        self.path = path
        self.lake = path / "lake"
        self.command = command

    def run(self, *arguments: str) -> str:
        """Run the domain; what it printed."""
        done = self.command("run", DOMAIN, *arguments, home=self.path)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def windows(self) -> dict[str, Any]:
        """What the last run's marts were built for, by its log."""
        log = (self.path / "logs" / f"{DOMAIN}.log").read_text()
        (found,) = set(re.findall(r"windows of changed partitions: (\{.*\})", log))
        return dict(ast.literal_eval(found))

    def raw(self, kind: RawFiles, day: str = "") -> Path:
        """A raw file."""
        return self.lake / kind.name(day)

    def lines(self, kind: RawFiles, day: str = "") -> list[str]:
        """The lines of a raw file in UTF-8, its header first."""
        return self.raw(kind, day).read_text().splitlines()

    def deliver(self, kind: RawFiles, day: str, lines: Sequence[str]) -> None:
        """Write a raw file of these lines, under its name when it is whole."""
        path = self.raw(kind, day)
        partial = path.with_suffix(".part")
        partial.write_text("".join(f"{line}\n" for line in lines))
        partial.replace(path)

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """All rows of a query on the warehouse."""
        with duckdb.connect(self.path / "warehouse.duckdb", read_only=True) as connection:
            return connection.execute(sql).fetchall()

    def table(self, dataset: Dataset) -> Snapshot:
        """A table of the lake as it is."""
        return open_lake(load_settings(home=self.path)).table(dataset).snapshot()

    def files(self, dataset: Dataset, *keys: str) -> list[str]:
        """Files with rows of a table of the lake, of some partitions or of all."""
        return [f"{self.lake}/{file.name}" for file in self.table(dataset).filled(keys or None)]

    def keep(self, folder: Path) -> Path:
        """A copy of the warehouse as it is."""
        return Path(shutil.copy(self.path / "warehouse.duckdb", folder / "before.duckdb"))

    def hashes(self) -> dict[str, tuple[Any, ...]]:
        """Rows and content of every table, whatever their order."""
        return {
            name: self.ask(f"select count(*), sum(hash(t)::hugeint) from {table} as t")[0]
            for name, table in TABLES.items()
        }


@contextmanager
def attached(db: duckdb.DuckDBPyConnection, warehouse: Path, name: str) -> Iterator[None]:
    """A warehouse beside the tables of a connection."""
    db.execute(f"attach '{warehouse}' as {name} (read_only)")
    try:
        yield
    finally:
        db.execute(f"detach {name}")


def difference(
    db: duckdb.DuckDBPyConnection, left: str, right: str
) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Rows of the left that are not in the right, and the other way; columns by their place."""
    names = [
        db.execute(f"select column_name from (describe {table})").fetchall()
        for table in (left, right)
    ]
    assert names[0] == names[1]
    return (
        db.execute(f"from {left} except all from {right}").fetchall(),
        db.execute(f"from {right} except all from {left}").fetchall(),
    )


def changes(home: Home, before: Path) -> dict[str, tuple[list[Any], list[Any]]]:
    """Rows that are gone and that are new since, of the tables that differ."""
    with (
        duckdb.connect() as db,
        attached(db, home.path / "warehouse.duckdb", "after"),
        attached(db, before, "earlier"),
    ):
        found = {
            name: difference(db, f"earlier.{table}", f"after.{table}")
            for name, table in TABLES.items()
        }
    return {name: pair for name, pair in found.items() if pair != ([], [])}


def hold(home: Home, expected: Expected | None = None) -> Expected:
    """Every table of the warehouse is what the raw files come to, row for row."""
    expected = expected or Expected(home.lake)
    with attached(expected.db, home.path / "warehouse.duckdb", "ours"):
        for name, table in TABLES.items():
            lacking, too_many = difference(expected.db, name, f"ours.{table}")
            assert (lacking[:3], too_many[:3]) == ([], []), name
    return expected


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SampleCounts]:
    """A generated delivery with odd files among it, and what was generated."""
    lake = tmp_path_factory.mktemp("sample")
    counts = write_sample(lake, sales=30_000, customers=2_000, drops=4, seed=11)
    first, second, *_ = [drop.date for drop in counts.drops]
    copied = (lake / RAW_SALES.name(first)).read_text().splitlines()[1]
    same_elsewhere = (lake / RAW_SALES.name(second)).read_text().splitlines()[1]
    with (lake / RAW_SALES.name(first)).open("a") as file:
        for line in (
            "1,2,3",
            f"{copied},more",
            f'"90000","INV-1","2018-05-06 07:08:09","{LEAP}","MY001","PD001","2"',
            '90001,"INV-""2""",2018-05-06 07:08:09,"no, customer",MY002,PD002,4',
            f"90002,INV-3,2018-02-28 00:00:00,{LEAP},MY001,PD001,02",
            f"90003,INV-3,2018-03-01 23:59:59,{LEAP},MY001,PD001,2",
            f"90004,INV-4,2018-02-28 23:59:60,{LEAP},MY001,PD001,2",
            f"90005,INV-4,2018-02-28 24:00:00,{LEAP},MY001,PD001,2",
            f"90006,INV-4,2018-02-29 10:00:00,{LEAP},MY001,PD001,2",
            f"90006,INV-4,2018-02-29 10:00:00,{LEAP},MY001,PD001,2",
            f"90007,INV-5,2018-05-06 07:08:09,{LEAP},MY001,PD001,+3",
            f"90008,INV-5,2018-05-06 07:08:09,{LEAP},MY001,PD001, 3",
            f"90009,INV-5,2018-05-06 07:08:09,{LEAP},MY001,PD001,2147483648",
            f"90010,INV-5,2018-05-06 07:08:09,{LEAP},MY001,PD001,-0003",
            f"90011,INV-6,2018-05-06 07:08:09,{ACCENTED},MY001,PD001,1",
            same_elsewhere,
            copied,
            copied,
        ):
            file.write(f"{line}\n")
    # As a spreadsheet saves it, with a copy and two rows that cannot be typed.
    path = lake / RAW_CUSTOMER.name(second)
    lines = path.read_text().splitlines()
    lines += [lines[1], "0,odd,A,B,,1990-02-30,,", "0,odder,A,B,,NULL,,", "0,,No,Id,,,,"]
    lines += ["0,,,,,,,1", "0,ragged"]
    path.write_bytes(b"\xef\xbb\xbf" + "".join(f"{x}\r\n" for x in lines).encode())
    # As an old till writes it.
    for kind, rows in (
        (RAW_CUSTOMER, [f"0,{ACCENTED},Zoé,Müller,Female,1999-12-31,zoe@example.com,+60 1"]),
        (RAW_SALES, [f"0,N° 1,2017-12-31 12:00:00,{ACCENTED},Café,PD003,3"]),
    ):
        text = "".join(f"{line}\r\n" for line in [",".join(kind.header), *rows])
        (lake / kind.name(WINDOWS_1252)).write_bytes(text.encode("cp1252"))
    leaping = f"0,{LEAP},Leap,Day,,2000-02-29,,"
    for kind, day, rows in (
        (RAW_CUSTOMER, CUSTOMERS_ALONE, [leaping]),
        (RAW_SALES, HEADER_ALONE, []),
    ):
        lines = [",".join(kind.header), *rows]
        (lake / kind.name(day)).write_text("".join(f"{line}\n" for line in lines))
    return lake, counts


@pytest.fixture(scope="module")
def home(
    sample: tuple[Path, SampleCounts],
    retail_assets: Command,
    tmp_path_factory: pytest.TempPathFactory,
) -> Home:
    """A home in which the domain ran once. Tests deliver to it, one after the other."""
    home = Home(tmp_path_factory.mktemp("coffee"), retail_assets)
    shutil.copytree(sample[0], home.lake)
    home.run()
    return home


@pytest.fixture(scope="module")
def expected(home: Home) -> Expected:
    """What the first delivery comes to."""
    return Expected(home.lake)


def test_every_table_is_what_the_raw_files_come_to(home: Home, expected: Expected) -> None:
    hold(home, expected)


def test_rows_are_counted_alike_everywhere(home: Home, expected: Expected) -> None:
    """By the independent count, the ledger, the lake's table, quarantine and the warehouse."""
    for table, (dataset, _) in DROPPED.items():
        counted = expected.ledgers(table)
        ledgers = {
            day: (x.read, x.written, x.duplicates, x.quarantined)
            for day, x in home.table(dataset).ledgers.items()
        }
        assert ledgers == counted
        assert sum(quarantined for *_, quarantined in counted.values()) >= 3
        files = f"read_parquet({home.files(dataset)}"
        columns = ", ".join(dataset.column_names)
        with attached(expected.db, home.path / "warehouse.duckdb", "ours"):
            same = difference(
                expected.db,
                f"(select {columns} from {files}, hive_partitioning = false))",
                f"ours.{dataset.table}",
            )
        assert same == ([], [])
        for day in counted:
            bad = home.files(quarantine_of(dataset), day)
            texts, odd = expected.quarantined(table, day), expected.left_out(table, day)
            columns = "text, file, drop_date::varchar, reason, row_stays"
            found = (
                expected.db.execute(f"select {columns} from read_parquet({bad})").fetchall()
                if bad
                else []
            )
            assert sorted(text for text, *_, stays in found if not stays) == texts
            assert sorted(text for text, *_, stays in found if stays) == odd
            assert {(file, at) for _, file, at, *_ in found} <= {(DROPPED[table][1].name(day), day)}
            assert all("expected" in reason for *_, reason, _ in found)


def test_files_lie_by_drop_and_year(home: Home, expected: Expected) -> None:
    years = expected.db.execute("select distinct drop_date, sale_year from sales").fetchall()
    found = {
        Path(file).parent.relative_to(home.lake / SALES.location) for file in home.files(SALES)
    }
    assert set(map(str, found)) == {f"drop_date={day}/{year}" for day, year in years}
    days = expected.db.execute("select distinct drop_date from customer").fetchall()
    found = {Path(file).parent for file in home.files(CUSTOMER)}
    assert {path.name for path in found} == {f"drop_date={day}" for (day,) in days}
    assert [len(home.files(small)) for small in (OUTLET, PRODUCT)] == [1, 1]
    # Nothing is left of what runs wrote on their way.
    assert not [path for path in (home.lake / "_stage").rglob("*") if path.is_file()]


def test_counts_are_those_of_the_sample(
    home: Home, sample: tuple[Path, SampleCounts], expected: Expected
) -> None:
    _, counts = sample
    first, second, *later = counts.drops
    sales, customers = expected.ledgers("sales"), expected.ledgers("customer")
    for drop in (second, *later):
        assert sales[drop.date] == (drop.sales, drop.kept, drop.duplicates, drop.quarantined)
    assert len(expected.left_out("customer", second.date)) == 1
    for drop in (first, *later):
        assert customers[drop.date] == (drop.customer_rows, drop.customer_rows, 0, 0)
    fact = f"{CORE}.fact_sales"
    days = ", ".join(f"'{drop.date}'" for drop in (second, *later))
    ((lines, customer, outlet, product, unpriced),) = home.ask(
        "select count(*), count(*) filter (where customer_id = 'UNKNOWN'),"
        " count(*) filter (where outlet_id = 'UNKNOWN' and outlet_state = 'UNKNOWN'),"
        " count(*) filter (where product_id = 'UNKNOWN' and product_name = 'UNKNOWN'),"
        f" count(*) filter (where total_price is null) from {fact} where drop_date in ({days})"
    )

    def total(name: str) -> int:
        return sum(int(getattr(drop, name)) for drop in (second, *later))

    # Those who came early are known by now: every drop was loaded.
    assert total("early_customers") > 0
    assert (lines, customer, outlet, product, unpriced) == (
        total("kept"),
        total("missing_customers") + total("orphan_customers"),
        total("orphan_outlets"),
        total("orphan_products"),
        total("orphan_products"),
    )
    ((outlets, short, none),) = home.ask(
        "select count(*), count(*) filter (where postcode[1] = '0'),"
        f" count(*) filter (where postcode is null) from {WAREHOUSE}.outlet"
    )
    assert (outlets, none) == (counts.outlets, counts.missing_postcodes)
    assert short >= counts.short_postcodes > 0
    names = home.ask(f"select product_name from {WAREHOUSE}.product")
    assert len(names) == counts.products
    assert sum(n for n in Counter(names).values() if n > 1) == counts.shared_names
    assert not [name for (name,) in names if "Ã" in name]


def test_odd_rows_are_what_they_say(home: Home) -> None:
    """Some rows whose values are plain enough to be written here."""
    found = home.ask(
        "select s.sale_date::varchar, f.customer_age, s.quantity"
        f" from {CORE}.fact_sales as f join {WAREHOUSE}.sales as s using (sale_line_id)"
        f" where f.customer_id = '{LEAP}' order by all"
    )
    assert found == [
        ("2018-02-28", 17, 2),
        ("2018-03-01", 18, 2),
        ("2018-05-06", 18, -3),
        ("2018-05-06", 18, 2),
    ]
    assert home.ask(
        "select f.invoice_no, f.outlet_id, f.outlet_state, s.outlet_id, f.customer_age, d.last_name"
        f" from {CORE}.fact_sales as f join {WAREHOUSE}.sales as s using (sale_line_id)"
        f" join {CORE}.dim_customer as d on d.customer_id = f.customer_id"
        f" where f.drop_date = '{WINDOWS_1252}'"
    ) == [("N° 1", "UNKNOWN", "UNKNOWN", "Café", 18, "Müller")]
    assert home.ask(
        f"select invoice_no, customer_id from {WAREHOUSE}.sales where contains(invoice_no, '\"')"
    ) == [('INV-"2"', "no, customer")]


def test_the_latest_record_of_a_customer_is_valid(
    home: Home, sample: tuple[Path, SampleCounts]
) -> None:
    _, counts = sample
    ((corrected,),) = home.ask(
        "select count(*) from (select customer_id, max(drop_date) as last, count(*) as records"
        f" from {WAREHOUSE}.customer group by all) as c join {CORE}.dim_customer as d"
        " on d.customer_id = c.customer_id and d.drop_date = c.last where records > 1"
    )
    drops: tuple[DropCounts, ...] = counts.drops
    assert 3 <= corrected <= sum(drop.corrections for drop in drops)
    ((members, distinct),) = home.ask(
        f"select count(*), count(distinct customer_id) from {CORE}.dim_customer"
    )
    assert members == distinct == counts.total.customers + 5  # the odd four, and UNKNOWN


def test_running_again_changes_nothing(home: Home, sample: tuple[Path, SampleCounts]) -> None:
    """Nor does a drop that is delivered again with the same bytes."""
    before = home.hashes()
    path = home.raw(RAW_SALES, sample[1].drops[1].date)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    home.run()
    assert home.hashes() == before
    assert home.windows() == {"coffee_chain_window": [], "coffee_chain_customer_window": []}


def registered(home: Home) -> list[str]:
    """The drops that Dagster knows, in its order."""
    with instance_of(home.path) as instance:
        return list(instance.get_dynamic_partitions(FEED.partitions))


def test_a_backfill_of_drops_is_one_run(home: Home) -> None:
    """By Dagster's own command, over drops whose processed files somebody deleted."""
    before = home.hashes()
    first, last = registered(home)[3:5]
    for day in (first, last):
        shutil.rmtree(home.lake / f"processed/{DOMAIN}/sales/drop_date={day}")
    with instance_of(home.path) as instance:
        runs = instance.get_runs_count()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RETAIL_")}
    environment |= {"RETAIL_HOME": str(home.path), "DAGSTER_HOME": str(home.path / "dagster")}
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("dagster")),
            *("asset", "materialize", "-m", "retail_assets.definitions"),
            *("--select", f"{DOMAIN}/processed_sales,{WAREHOUSE}/sales"),
            *("--partition-range", f"{first}...{last}"),
        ],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with instance_of(home.path) as instance:
        assert instance.get_runs_count() == runs + 1
        (run,) = instance.get_runs(limit=1)
        assert run.status is dg.DagsterRunStatus.SUCCESS
        processed, landed = dg.AssetKey([DOMAIN, "processed_sales"]), landed_key(SALES)
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=processed, asset_partitions=[first, last]), limit=2
        ).records
        assert {(record.run_id, record.partition_key) for record in records} == {
            (run.run_id, first),
            (run.run_id, last),
        }
        (record,) = instance.fetch_materializations(landed, limit=1).records
        assert (record.run_id, record.partition_key) == (run.run_id, None)
    for day in (first, last):
        assert list((home.lake / f"processed/{DOMAIN}/sales/drop_date={day}").rglob("*.parquet"))
    assert home.hashes() == before


def test_a_drop_delivered_again_changes_its_rows_alone(
    home: Home, sample: tuple[Path, SampleCounts], tmp_path: Path
) -> None:
    day = sample[1].drops[2].date
    ((number, removed),) = home.ask(
        "select min(s.invoice_no), min(sale_line_id)"
        f" from {CORE}.fact_sales as s where drop_date = '{day}' and total_price is not null"
        " group by invoice_no having count(*) = 1 order by all limit 1"
    )
    lines = home.lines(RAW_SALES, day)
    gone = [line for line in lines if f",{number}," in line]
    assert len(gone) == 1
    rest = [line for line in lines if line not in gone]
    at = next(n for n, line in enumerate(rest) if re.search(r",MY0..,PD0..,[1-4]$", line))
    rest[at] = rest[at][:-1] + "9"
    before = home.keep(tmp_path)

    home.deliver(RAW_SALES, day, rest)
    home.run()

    assert home.windows() == {
        "coffee_chain_window": [[day, day]],
        "coffee_chain_customer_window": [],
    }
    found = changes(home, before)
    assert set(found) <= {"sales", "fact_sales", "state_revenue", "age_group_purchase"}
    for table in ("sales", "fact_sales"):
        lost, new = found[table]
        assert (len(lost), len(new)) == (2, 1)
        assert removed in {row[0] for row in lost}
        assert 9 in new[0]
    assert 1 <= len(found["state_revenue"][1]) <= 2
    hold(home)


def test_nothing_is_stale_after_it(home: Home) -> None:
    """In Dagster's eyes: neither a view of a table that was loaded, nor what was left out."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RETAIL_")}
    environment |= {"RETAIL_HOME": str(home.path), "DAGSTER_HOME": str(home.path / "dagster")}
    answer = home.path / "stale.json"
    subprocess.run(
        [
            str(Path(sys.executable).with_name("dagster-graphql")),
            *("-m", "retail_assets.definitions", "-o", str(answer)),
            *("-t", "{assetNodes {assetKey {path} groupName staleStatus}}"),
        ],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        timeout=120,
        check=True,
    )
    nodes = json.loads(answer.read_text())["data"]["assetNodes"]
    found = {node["assetKey"]["path"][-1]: node for node in nodes if node["groupName"] == DOMAIN}
    assert {"stg_sales", "coffee_chain_dim_outlet", "fact_sales"} <= found.keys()
    assert {name for name, node in found.items() if node["staleStatus"] != "FRESH"} == set()


def test_a_late_customer_fills_in_the_sales_before(home: Home, tmp_path: Path) -> None:
    day = "2023-01-31"
    ((late, lines),) = home.ask(
        f"select s.customer_id, count(*) from {CORE}.fact_sales as f"
        f" join {WAREHOUSE}.sales as s using (sale_line_id)"
        " where f.customer_id = 'UNKNOWN' and s.customer_id like '%-%-%-%-%'"
        " group by all order by all limit 1"
    )
    before = home.keep(tmp_path)
    header = ",".join(RAW_CUSTOMER.header)
    home.deliver(RAW_CUSTOMER, day, [header, f"0,{late},Late,Comer,,1980-06-15,,"])
    home.run()
    assert home.windows() == {
        "coffee_chain_window": [],  # of which there are no sales
        "coffee_chain_customer_window": [[day, day]],
    }
    found = changes(home, before)
    assert set(found) == {"customer", "dim_customer", "fact_sales", "age_group_purchase"}
    lost, new = found["fact_sales"]
    assert len(lost) == len(new) == lines
    hold(home)


def test_a_corrected_customer_file_changes_ages(
    home: Home, sample: tuple[Path, SampleCounts], tmp_path: Path
) -> None:
    """The record of an earlier drop that a later one left alone; it may concern any line."""
    day = sample[1].drops[0].date
    ((customer,),) = home.ask(
        f"select customer_id from {CORE}.fact_sales as f join {CORE}.dim_customer as d"
        f" using (customer_id) where d.drop_date = '{day}' and d.birthday is not null"
        " group by all order by count(distinct f.drop_date) desc, customer_id limit 1"
    )
    lines = home.lines(RAW_CUSTOMER, day)
    (at,) = (n for n, line in enumerate(lines) if customer in line)
    lines[at] = re.sub(r",\d{4}-\d\d-\d\d,", ",1931-01-01,", lines[at])
    before = home.keep(tmp_path)
    home.deliver(RAW_CUSTOMER, day, lines)
    home.run()
    found = changes(home, before)
    assert set(found) == {"customer", "dim_customer", "fact_sales", "age_group_purchase"}
    assert {row[4] for row in found["fact_sales"][1]} == {customer}
    hold(home)


def test_a_changed_price_changes_every_line_of_the_product(home: Home, tmp_path: Path) -> None:
    lines = home.lines(RAW_PRODUCT)
    assert lines[1].startswith("1,PD001,")
    lines[1] = re.sub(r"RM .*", "RM 99.95", lines[1])
    before = home.keep(tmp_path)
    home.deliver(RAW_PRODUCT, "", lines)
    home.run()
    found = changes(home, before)
    assert set(found) == {
        "product",
        "dim_product",
        "fact_sales",
        "state_revenue",
        "age_group_purchase",
    }
    ((of_product,),) = home.ask(
        f"select count(*) from {CORE}.fact_sales where product_id = 'PD001'"
    )
    assert len(found["fact_sales"][1]) == of_product > 100
    hold(home)


def test_after_all_deliveries_a_fresh_build_is_the_same(
    home: Home, retail_assets: Command, tmp_path: Path
) -> None:
    """Another home, in which all was built at once of the same raw files."""
    fresh = Home(tmp_path / "fresh", retail_assets)
    shutil.copytree(home.lake / "raw", fresh.lake / "raw")
    fresh.run()
    assert changes(home, fresh.path / "warehouse.duckdb") == {}


def test_bad_drops_hold_back_no_others_and_keep_their_rows(
    home: Home, sample: tuple[Path, SampleCounts], tmp_path: Path
) -> None:
    """One saved again by a spreadsheet, one of another header; a good one beside them."""
    day = sample[1].drops[1].date
    lines = home.lines(RAW_SALES, day)
    ((had,),) = home.ask(f"select count(*) from {WAREHOUSE}.sales where drop_date = '{day}'")
    header = ",".join(RAW_SALES.header)
    line = "1,INV-9,2024-01-05 10:00:00,c-none,MY001,PD001,1"
    resaved = [header, *(re.sub(r"\d{4}-\d\d-\d\d", "2/1/2019", x) for x in lines[1:])]
    home.deliver(RAW_SALES, day, resaved)
    home.deliver(RAW_SALES, "2024-01-31", [f"Unnamed: 0{header}", line])
    home.deliver(RAW_SALES, "2024-02-29", [header.replace("outlet", "shop"), line])
    before = home.keep(tmp_path)

    done = home.command("run", DOMAIN, home=home.path)

    assert done.returncode == 1
    told = done.stderr.strip().splitlines()[-1]
    assert f"sales, drop {day} has {had:,} rows and would have 0" in told
    assert "found '2/1/2019 " in told and "--allow-emptying" in told
    assert "sales_data_2024-02-29.csv has the header" in told
    found = changes(home, before)
    for table in ("sales", "fact_sales"):
        assert (len(found[table][0]), len(found[table][1])) == (0, 1)

    home.deliver(RAW_SALES, day, lines)
    for late in ("2024-01-31", "2024-02-29"):
        home.deliver(RAW_SALES, late, [header])
    home.run("--allow-emptying")
    assert changes(home, before) == {}
    hold(home)


def deleted_check(home: Home) -> dg.AssetCheckEvaluation:
    """The last evaluation of the check on deleted drops."""
    key = dg.AssetCheckKey(raw_key(FEED, FEED.dated[0]), DELETED_CHECK)
    with instance_of(home.path) as instance:
        record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
        assert record.event is not None and record.event.dagster_event is not None
        return record.event.dagster_event.asset_check_evaluation_data


def test_a_deleted_drop_is_told_and_not_obeyed(
    home: Home, sample: tuple[Path, SampleCounts], tmp_path: Path
) -> None:
    """Its rows stay, the check fails and names it; the other drops are still taken."""
    half, whole = sample[1].drops[1].date, WINDOWS_1252
    expected = Expected(home.lake)
    gone = [(RAW_SALES, half), (RAW_SALES, whole), (RAW_CUSTOMER, whole)]
    for kind, day in gone:
        kept = tmp_path / f"{kind.prefix}/{day}"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(home.raw(kind, day), kept)
    other = sample[1].drops[3].date
    lines = home.lines(RAW_SALES, other)
    home.deliver(RAW_SALES, other, lines[:-5])
    home.run()
    evaluation = deleted_check(home)
    assert not evaluation.passed
    assert evaluation.description is not None
    assert half in evaluation.description
    assert whole in evaluation.description

    for day, found in (
        (half, expected.ledgers("sales")[half]),
        (whole, expected.ledgers("sales")[whole]),
        (other, Expected(home.lake).ledgers("sales")[other]),
    ):
        for table in ("sales", "fact_sales"):
            rows = home.ask(f"select count(*) from {TABLES[table]} where drop_date = '{day}'")
            assert rows == [(found[1],)]

    for kind, day in gone:
        shutil.move(tmp_path / f"{kind.prefix}/{day}", home.raw(kind, day))
    home.run()
    assert deleted_check(home).passed
    hold(home)

"""The real data set, from its file to the marts, against its known answers."""

import datetime
import hashlib
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest

from retail_assets.defs.online_retail.contract import ONLINE_RETAIL_DATA
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.tables import Snapshot
from retail_assets_tests.conftest import Command, instance_of

LANDED = ONLINE_RETAIL_DATA.table
FACTS = [
    "online_retail_core.fact_online_retail_data_partitioned_clustered",
    "online_retail_core.fact_online_retail_data_unpartitioned",
]
DAY = "2011-11-14"


@pytest.fixture(scope="module")
def home(
    real_source: Path, retail_assets: Command, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A home in which the domain ran once on the real file."""
    home = tmp_path_factory.mktemp("real")
    done = retail_assets("run", "online_retail", home=home, online_retail_source=real_source)
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture
def run(home: Path, real_source: Path, retail_assets: Command) -> Any:
    """Run the domain again in the same home."""

    def again(*arguments: str) -> str:
        done = retail_assets(
            "run", "online_retail", *arguments, home=home, online_retail_source=real_source
        )
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    return again


def ask(home: Path, sql: str) -> list[tuple[Any, ...]]:
    """All rows of a query on the home's warehouse."""
    with duckdb.connect(home / "warehouse.duckdb", read_only=True) as connection:
        return connection.execute(sql).fetchall()


def table_of(home: Path) -> Snapshot:
    """The processed table as it is."""
    return LocalLake(root=str(home / "lake")).table(ONLINE_RETAIL_DATA).snapshot()


def processed(home: Path) -> str:
    """The processed table as a reader finds it: the files that it says are its own."""
    return f"read_parquet({[str(home / 'lake' / file.name) for file in table_of(home).filled()]})"


def relations(home: Path) -> list[str]:
    """The processed files and the landed table, which must agree."""
    return [processed(home), LANDED]


def tree(home: Path) -> dict[object, str]:
    """Content of every raw file by name, and of the table's by day and ledger."""
    lake = home / "lake"
    files: dict[object, Path] = {p: p for p in (lake / "raw").rglob("*") if p.is_file()}
    files |= {(f.key, Ledger.of_file(f.name)): lake / f.name for f in table_of(home).files}
    return {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in files.items()}


def contents(home: Path) -> list[tuple[Any, ...]]:
    """Rows, money and a hash of every table of the warehouse."""
    return [
        (
            table,
            *ask(home, f"select count(*), bit_xor(hash({table.split('.')[1]})) from {table}")[0],
        )
        for table in [LANDED, *FACTS]
    ]


def test_processed_and_landed_match_the_oracle(home: Path, oracle: dict[str, Any]) -> None:
    expected = oracle["processed"]
    for relation in relations(home):
        ((rows, total, days, first, last),) = ask(
            home,
            "select count(*), sum(total_price), count(distinct invoice_date),"
            f" min(invoice_date)::varchar, max(invoice_date)::varchar from {relation}",
        )
        assert (rows, days, first, last) == (
            expected["rows"],
            expected["partitions"],
            expected["first_day"],
            expected["last_day"],
        )
        assert total == Decimal(expected["total_price"])
        by_type = {
            kind: {"rows": n, "total_price": str(price), "quantity": int(quantity)}
            for kind, n, price, quantity in ask(
                home,
                "select line_type, count(*), sum(total_price), sum(quantity)"
                f" from {relation} group by all",
            )
        }
        assert by_type == expected["by_line_type"]
        ((n, price),) = ask(
            home,
            "select count(*), sum(total_price)::varchar"
            f" from {relation} where line_type = 'sale' and is_product",
        )
        assert {"rows": n, "total_price": price} == expected["sale_products"]
        ((ids,),) = ask(home, f"select count(distinct transaction_id) from {relation}")
        assert ids == expected["rows"]


def test_a_day_matches_the_oracle(home: Path, oracle: dict[str, Any]) -> None:
    for relation in relations(home):
        ((rows, total, sold, revenue),) = ask(
            home,
            "select count(*), sum(total_price)::varchar,"
            " count(*) filter (where line_type in ('sale', 'gift')),"
            " (sum(total_price) filter (where line_type in ('sale', 'gift')))::varchar"
            f" from {relation} where invoice_date = date '{DAY}'",
        )
        assert {
            "rows": rows,
            "total_price": total,
            "sale_and_gift_rows": sold,
            "sale_and_gift_total_price": revenue,
        } == oracle["processed"][DAY]


def test_partitions_are_one_file_a_day_of_trade(home: Path, oracle: dict[str, Any]) -> None:
    table = table_of(home)
    assert len(table.filled()) == oracle["processed"]["partitions"]
    assert len(table.files) == len(table.ledgers) == 374  # a day without trade has a ledger alone
    assert table.rows == oracle["processed"]["rows"]
    assert not list((home / "lake/quarantine").rglob("*.parquet"))  # nothing to reject


@pytest.mark.parametrize("fact", FACTS)
def test_facts_match_the_oracle(home: Path, oracle: dict[str, Any], fact: str) -> None:
    expected = oracle["fact"]
    ((rows, total),) = ask(home, f"select count(*), sum(total_price)::varchar from {fact}")
    assert (rows, total) == (expected["rows"], expected["total_price"])
    for column, name in [
        ("country", "by_country"),
        ("description", "by_description"),
        ("strftime(invoice_datetime, '%Y-%m')", "by_month"),
    ]:
        found = dict(
            ask(home, f"select {column}, sum(total_price)::varchar from {fact} group by all")
        )
        assert {key: found[key] for key in expected[name]} == expected[name]
    columns = [c for (c,) in ask(home, f"select column_name from (describe {fact})")]
    assert columns == [c for (c,) in ask(home, f"select column_name from (describe {LANDED})")]


def test_marts_agree_with_the_oracle(home: Path, oracle: dict[str, Any]) -> None:
    core = "online_retail_core"
    revenue = Decimal(oracle["fact"]["total_price"])
    for mart in ("daily_revenue", "country_revenue"):
        ((total,),) = ask(home, f"select sum(gross_revenue) from {core}.{mart}")
        assert total == revenue
    ((products,),) = ask(home, f"select sum(gross_revenue) from {core}.product_ranking")
    assert products == Decimal(oracle["processed"]["sale_products"]["total_price"])
    ((returned, lines),) = ask(
        home, f"select sum(returned_value), count(*) from {core}.fact_returns"
    )
    returns = oracle["processed"]["by_line_type"]["return"]
    assert (-returned, lines) == (Decimal(returns["total_price"]), returns["rows"])
    ((codes,),) = ask(home, f"select count(*) from {core}.dim_product")
    assert codes == oracle["raw"]["distinct_stock_code"]
    ((anonymous,),) = ask(home, f"select count(*) from {core}.dim_customer where customer_id = 0")
    assert anonymous == 0
    # December 2010 and December 2011 are two months.
    ((cohorts,),) = ask(
        home, f"select count(distinct cohort_month) from {core}.monthly_cohort_retention"
    )
    assert cohorts == 13


def test_running_again_changes_nothing(home: Path, run: Any) -> None:
    before = tree(home), contents(home)
    run()
    assert (tree(home), contents(home)) == before


def test_one_day_touches_nothing_else(home: Path, run: Any) -> None:
    before = tree(home), contents(home)
    files = set(table_of(home).files)
    run("--partitions", DAY)
    assert (tree(home), contents(home)) == before
    assert {file.key for file in files ^ set(table_of(home).files)} == {DAY}


def test_a_range_restores_deleted_files_in_one_run(home: Path, run: Any) -> None:
    before = tree(home), contents(home)
    with instance_of(home) as instance:
        runs = instance.get_runs_count()
    folder = home / "lake" / ONLINE_RETAIL_DATA.location
    for partition in sorted(folder.glob("invoice_date=*"))[::2]:
        shutil.rmtree(partition)
    run("--partitions", "2010-12-01...2011-12-09")
    assert (tree(home), contents(home)) == before
    with instance_of(home) as instance:
        assert instance.get_runs_count() == runs + 1
        days = instance.get_materialized_partitions(
            dg.AssetKey(["online_retail", "processed_online_retail_data"])
        )
    first, last = datetime.date(2010, 12, 1), datetime.date(2011, 12, 9)
    assert len(days) == (last - first).days + 1  # days without trade are empty partitions


def test_a_vanished_day_leaves_the_facts(
    home: Path, real_source: Path, retail_assets: Command, tmp_path: Path
) -> None:
    """A source that lacks a day empties it everywhere, and leaves every other day as it was."""
    other = tmp_path / "home"
    shutil.copytree(home, other)
    shorter = tmp_path / "without_a_day.csv"
    duckdb.connect().execute(
        f"copy (select * from read_csv('{real_source}', all_varchar = true)"
        f" where InvoiceDate not like '{DAY}%') to '{shorter}' (header)"
    )
    done = retail_assets("run", "online_retail", home=other, online_retail_source=shorter)
    assert done.returncode == 0, done.stderr
    for table in (*relations(other), *FACTS):
        rows = f"select count(*) from {table} where invoice_date = date '{DAY}'"
        assert ask(other, rows) == [(0,)]
    for table in (LANDED, *FACTS):
        rest = f"select count(*), sum(total_price) from {table} where invoice_date <> date '{DAY}'"
        assert ask(other, rest) == ask(home, rest)

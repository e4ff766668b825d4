"""The commands in the order a newcomer types them, on the generated sample."""

import json
import re
from pathlib import Path

import pytest

from retail_assets_tests.conftest import Command


@pytest.fixture(scope="module")
def home(retail_assets: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the demo ran."""
    home = tmp_path_factory.mktemp("demo")
    assert retail_assets("sample", "online_retail", "--days", "40", home=home).returncode == 0
    sample = ("--sales", "3000", "--customers", "300", "--drops", "2")
    done = retail_assets("sample", "coffee_chain", *sample, home=home)
    assert done.returncode == 0, done.stderr
    assert re.search(r"3,000 sales lines.*, 2 drops", " ".join(done.stdout.split()))
    for domain, last_table in (
        ("online_retail", "product_ranking"),
        ("coffee_chain", "age_group_purchase"),
    ):
        done = retail_assets("run", domain, home=home)
        assert done.returncode == 0, done.stderr
        assert last_table in done.stdout
        assert "checks passed" in done.stdout.splitlines()[-1]
    done = retail_assets("sample", "supply_chain", "--orders", "200", home=home)
    assert done.returncode == 0, done.stderr
    sample = home / "samples" / "supply_chain.csv"
    done = retail_assets("run", "supply_chain", "--stream", str(sample), home=home)
    assert done.returncode == 0, done.stderr
    for table in ("operational_db/supply_chain_messages", "supply_chain_core/shipping_delays"):
        assert table in done.stdout
    assert "checks passed" in done.stdout.splitlines()[-1]
    return home


def test_doctor_finds_nothing_wrong(home: Path, retail_assets: Command) -> None:
    done = retail_assets("doctor", home=home)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 10
    assert re.search(r"ok +postgres: .* \(embedded\), PostgreSQL 1", done.stdout)
    assert re.search(r"ok +kafka: embedded, not running", done.stdout)
    assert all(line.startswith("ok") for line in lines)


def test_doctor_names_the_fix(home: Path, retail_assets: Command, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = retail_assets("doctor", home=home, lake=blocked / "lake", laek="x")
    assert done.returncode == 1
    assert re.search(r"FAIL lake: .*Fix: set RETAIL_LAKE", done.stdout)
    assert "RETAIL_LAEK is no variable of Retail Assets. Fix: rename it to RETAIL_LAKE" in (
        done.stdout
    )


def test_status_shows_settings_and_tables(home: Path, retail_assets: Command) -> None:
    done = retail_assets("status", home=home)
    assert done.returncode == 0, done.stderr
    assert "RETAIL_ONLINE_RETAIL_SOURCE" in done.stdout
    (row,) = [x for x in done.stdout.splitlines() if "processed_online_retail_data" in x]
    assert " 40 " in row  # partitions
    (row,) = [x for x in done.stdout.splitlines() if "coffee_chain/processed_sales" in x]
    assert " 2 " in row
    assert "coffee_chain_core/state_revenue" in done.stdout
    assert "transformed_data/fact_order" in done.stdout
    assert "supply_chain_core/inventory_levels" in done.stdout
    assert "never" not in done.stdout


def test_quarantine_lists_what_the_sample_has_that_cannot_be_read(
    home: Path, retail_assets: Command
) -> None:
    done = retail_assets("quarantine", "--json", home=home)
    assert done.returncode == 0, done.stderr
    tables = {table["table"]: table for table in json.loads(done.stdout)["tables"]}
    sales = tables["malaysian_coffee_chain.sales"]
    kinds = {reason["expected"].partition(":")[0] for reason in sales["reasons"]}
    assert kinds == {"date_time", "quantity"}
    samples = [sample for reason in sales["reasons"] for sample in reason["samples"]]
    assert all(re.fullmatch("none|'.*'", sample["found"]) for sample in samples)
    assert tables["raw_streaming.supply_chain_data"]["reasons"] == []


def test_status_redacts_credentials(tmp_path: Path, retail_assets: Command) -> None:
    done = retail_assets(
        "status",
        home=tmp_path,
        online_retail_source="https://me:s3cr3t@source.example.org/r.zip?k=t0ken",
        postgres="postgresql://clerk:s3cr3t@db.example.org/shop",
        kafka="broker.example.org:9092",
        kafka_options='{"sasl.password": "t0ken"}',
    )
    assert done.returncode == 0, done.stderr
    assert "source.example.org" in done.stdout
    assert "postgresql://clerk:***@db.example.org/shop" in done.stdout
    assert "s3cr3t" not in done.stdout
    assert "t0ken" not in done.stdout


def test_rebuild_makes_the_table_anew(home: Path, retail_assets: Command) -> None:
    done = retail_assets("rebuild", "online_retail.online_retail_data", home=home)
    assert done.returncode == 0, done.stderr
    assert "rows" in done.stdout


def test_an_invalid_variable_is_one_clear_line(retail_assets: Command, tmp_path: Path) -> None:
    done = retail_assets("run", "online_retail", home=tmp_path, warehouse="snowflake://x")
    assert done.returncode == 1
    assert done.stderr.startswith("error: RETAIL_WAREHOUSE is 'snowflake://x'")
    assert "duckdb:PATH" in done.stderr


@pytest.mark.parametrize(
    ("domain", "fewest"),
    [("online_retail", 5), ("coffee_chain", 10), ("supply_chain", 6)],
)
def test_dbt_unit_tests_pass(home: Path, retail_assets: Command, domain: str, fewest: int) -> None:
    """By domain: dbt looks at what models read, which is there once the domain ran."""
    select = f"test_type:unit,path:models/{domain}"
    done = retail_assets("dbt", "test", "--select", select, home=home)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"PASS=(\d+) WARN=0 ERROR=0", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= fewest


def test_a_second_run_takes_what_is_asked_for(home: Path, retail_assets: Command) -> None:
    """One drop of two, and nothing but its lines in the facts."""
    done = retail_assets("run", "coffee_chain", "--partitions", "2022-12-31", home=home)
    assert done.returncode == 0, done.stderr
    (row,) = [x for x in done.stdout.splitlines() if "│ coffee_chain/processed_sales" in x]
    assert re.search(r"│ +[\d,]+ │ +1 │", row)  # of one partition
    assert done.stdout.splitlines()[-1].startswith("2022-12-31")


def test_dbt_docs_are_generated(home: Path, retail_assets: Command) -> None:
    done = retail_assets("dbt", "docs", "generate", home=home)
    assert done.returncode == 0, done.stdout
    assert (home / "dbt/docs/catalog.json").exists()


def test_every_model_parses_for_bigquery(tmp_path: Path, retail_assets: Command) -> None:
    done = retail_assets("dbt", "parse", "--target", "bigquery", home=tmp_path)
    assert done.returncode == 0, done.stdout

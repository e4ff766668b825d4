"""The domain in both worlds: a bucket and BigQuery against a folder and DuckDB, row for row.

On the real file, through the servers of .ci/servers and the proxy of bigquery_proxy.py. What those
cannot show is listed there and in docs/production.md.
"""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest

from retail_assets.definitions import build_defs
from retail_assets.defs.online_retail.contract import ONLINE_RETAIL_DATA
from retail_assets.feeds.snapshot.manifest import EMPTY_DAY
from retail_assets.resources.lake import open_lake
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.warehouse import (
    WarehouseResource,
    WarehouseSchemaError,
    open_warehouse,
)
from retail_assets.settings import Settings, load_settings
from retail_assets_tests.conftest import Command
from retail_assets_tests.live.bigquery_proxy import bigquery_proxy
from retail_assets_tests.live.conftest import make_bucket

pytestmark = pytest.mark.live

DAY = "2011-11-14"
SPAN = ("2010-12-01", "2011-12-09")
LANDED = ONLINE_RETAIL_DATA.table
STAGING = "online_retail_staging.stg_online_retail_data"
FACT = "online_retail_core.fact_online_retail_data_partitioned_clustered"
COPY = "online_retail_core.fact_online_retail_data_unpartitioned"
# Each with what its rows are put in order by.
MARTS = {
    "online_retail_core.country_revenue": "country",
    "online_retail_core.daily_revenue": "invoice_date",
    "online_retail_core.dim_customer": "customer_id",
    "online_retail_core.dim_product": "stock_code",
    "online_retail_core.fact_returns": "transaction_id",
    "online_retail_core.monthly_cohort_retention": "cohort_month, activity_month",
    "online_retail_core.product_ranking": "revenue_rank",
}
TABLES = [LANDED, STAGING, FACT, COPY, *MARTS]


@dataclass
class World:
    """One place where the domain runs."""

    settings: Settings
    variables: dict[str, str | Path]
    retail_assets: Command

    @property
    def warehouse(self) -> WarehouseResource:
        return open_warehouse(self.settings)

    def run(self, *arguments: str, **variables: str | Path) -> str:
        done = self.retail_assets(
            "run", "online_retail", *arguments, timeout=540, **self.variables | variables
        )
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        return self.warehouse.query(sql)

    def lake(self) -> dict[object, str]:
        """Version of every raw object, and hash of the table's files by day and ledger."""
        lake = open_lake(self.settings)
        files = {
            (file.key, Ledger.of_file(file.name)): sha256(
                lake.local_file(file.name).read_bytes()
            ).hexdigest()
            for file in lake.table(ONLINE_RETAIL_DATA).snapshot().files
        }
        return files | {raw.name: raw.version for raw in lake.list_objects("raw/")}


@pytest.fixture(scope="module")
def worlds(
    real_source: Path,
    storage_host: str,
    bigquery_host: str,
    retail_assets: Command,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, World]]:
    """Both worlds, in each of which the domain ran once."""
    cloud: dict[str, str | Path] = {
        "lake": f"gs://{make_bucket(storage_host)}/lake",
        "warehouse": f"bigquery://retail-{uuid.uuid4().hex[:12]}?location=EU",
    }
    with bigquery_proxy(bigquery_host) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", storage_host)
        patch.setenv("BIGQUERY_EMULATOR_HOST", proxy.url)
        found = {}
        for name, where in {"embedded": {}, "cloud": cloud}.items():
            variables = {
                "home": tmp_path_factory.mktemp(name),
                "online_retail_source": real_source,
                **where,
            }
            found[name] = World(
                load_settings(**{k: str(v) for k, v in variables.items()}), variables, retail_assets
            )
            found[name].run()
        yield found


@pytest.fixture(scope="module")
def cloud(worlds: dict[str, World]) -> World:
    return worlds["cloud"]


@pytest.fixture(scope="module")
def embedded(worlds: dict[str, World]) -> World:
    return worlds["embedded"]


def columns(world: World, table: str) -> list[str]:
    """A table's columns in order."""
    schema, name = table.split(".")
    source = "information_schema.columns"
    if world.settings.bigquery:
        source = f"{schema}.INFORMATION_SCHEMA.COLUMNS"
    return [
        str(column)
        for (column,) in world.ask(
            f"select column_name from {source} where table_schema = '{schema}'"
            f" and table_name = '{name}' order by ordinal_position"
        )
    ]


def rows(world: World, table: str, order: str) -> list[tuple[Any, ...]]:
    """A table's rows in order."""
    return world.ask(f"select * from {table} order by {order}")


def same(one: Sequence[tuple[Any, ...]], other: Sequence[tuple[Any, ...]]) -> None:
    """Fail by the first row that differs, not by a print of all."""
    assert len(one) == len(other)
    different = next(((a, b) for a, b in zip(one, other, strict=True) if a != b), None)
    assert different is None


def differing(world: World, one: str, other: str) -> int:
    """Rows that stand in one of two tables only; both have a key."""
    but = "except distinct" if world.settings.bigquery else "except"
    ((found,),) = world.ask(
        f"select (select count(*) from (select * from {one} {but} select * from {other}))"
        f" + (select count(*) from (select * from {other} {but} select * from {one}))"
    )
    return int(found)


def by_day(world: World, table: str) -> list[tuple[Any, ...]]:
    """Rows and money of each day."""
    return world.ask(
        "select invoice_date, count(*), sum(quantity), sum(total_price), sum(customer_id)"
        f" from {table} group by invoice_date order by invoice_date"
    )


@pytest.fixture(scope="module")
def before(cloud: World) -> dict[str, str]:
    """Copies of the cloud's tables after the first run, by the name of the table."""
    copies = {table: f"online_retail_core.before_{table.split('.')[1]}" for table in TABLES}
    for table, copy in copies.items():
        cloud.ask(f"create table {copy} as (select * from {table})")
    return copies


def unchanged(cloud: World, before: dict[str, str]) -> None:
    """Every table of the cloud is as after the first run."""
    counts = cloud.warehouse.row_counts()
    rows = {t: counts[t] for t in before if t != STAGING}  # a view's are not counted
    assert rows == {t: counts[before[t]] for t in rows}
    assert {t: differing(cloud, t, copy) for t, copy in before.items()} == dict.fromkeys(before, 0)


def test_tables_are_the_same(cloud: World, embedded: World) -> None:
    counts = {name: w.warehouse.row_counts() for name, w in (("c", cloud), ("e", embedded))}
    assert counts["c"] == counts["e"]
    assert counts["c"].keys() == {*TABLES} - {STAGING}
    for table in TABLES:
        assert columns(cloud, table) == columns(embedded, table)


@pytest.mark.parametrize("mart", MARTS)
def test_a_mart_is_the_same_row_for_row(cloud: World, embedded: World, mart: str) -> None:
    same(rows(cloud, mart, MARTS[mart]), rows(embedded, mart, MARTS[mart]))


@pytest.mark.parametrize("table", [LANDED, FACT])
def test_lines_are_the_same_row_for_row(cloud: World, embedded: World, table: str) -> None:
    same(rows(cloud, table, "transaction_id"), rows(embedded, table, "transaction_id"))


def test_view_and_second_fact_are_the_same_row_for_row(cloud: World, embedded: World) -> None:
    """Each holds what the landed table, or the first fact, holds; those were compared."""
    for world in (cloud, embedded):
        assert differing(world, STAGING, LANDED) == 0
        assert differing(world, COPY, FACT) == 0


def test_the_record_of_loads_is_the_same(cloud: World, embedded: World) -> None:
    for stage in ("landed", "marts"):
        found = cloud.warehouse.loaded_versions(ONLINE_RETAIL_DATA, stage)
        assert found == embedded.warehouse.loaded_versions(ONLINE_RETAIL_DATA, stage)
        assert len(found) == 374


def test_the_lake_is_in_the_bucket_alone(cloud: World, oracle: dict[str, Any]) -> None:
    files = open_lake(cloud.settings).partition_uris(ONLINE_RETAIL_DATA)
    assert len(files) == oracle["processed"]["partitions"]
    assert all(file.startswith("gs://") for file in files)
    assert not (cloud.settings.home / "lake").exists()
    assert not list(cloud.settings.home.rglob("*.duckdb"))


def test_running_again_changes_nothing(cloud: World, before: dict[str, str]) -> None:
    lake = cloud.lake()
    cloud.run()
    unchanged(cloud, before)
    assert cloud.lake() == lake


def test_one_day_again_changes_nothing(cloud: World, before: dict[str, str]) -> None:
    lake = cloud.lake()
    cloud.run("--partitions", DAY)
    unchanged(cloud, before)
    assert cloud.lake() == lake


@pytest.mark.parametrize("days", [[DAY], [DAY, "2011-11-16"]], ids=["a day", "a range"])
def test_rows_of_another_day_are_refused(
    cloud: World, before: dict[str, str], days: list[str]
) -> None:
    uris = open_lake(cloud.settings).partition_uris(ONLINE_RETAIL_DATA, ["2011-11-15"])
    with pytest.raises(WarehouseSchemaError, match="partition"):
        cloud.warehouse.replace_partitions(ONLINE_RETAIL_DATA, uris, dict.fromkeys(days, "other"))
    unchanged(cloud, before)


def answer(definitions: dg.Definitions, instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    """What the sensor asks for."""
    sensor = definitions.resolve_sensor_def("online_retail_source_sensor")
    resources = {k: v for k, v in (definitions.resources or {}).items() if k != "dbt"}
    with dg.build_sensor_context(instance=instance, resources=resources) as context:
        data = sensor.evaluate_tick(context)
    return list(data.run_requests or ())


def test_the_sensor_mends_what_was_lost(cloud: World, before: dict[str, str]) -> None:
    """It rests, asks for a load of the days that the warehouse lost, and rests again."""
    definitions = build_defs(cloud.settings)
    lost = ("2011-11-13", "2011-11-14", "2011-11-15")
    with dg.DagsterInstance.ephemeral() as instance:
        assert answer(definitions, instance) == []
        cloud.ask(
            f"delete from {LANDED} where invoice_date between date '{lost[0]}' and date '{lost[2]}'"
        )
        cloud.warehouse.record_versions(
            ONLINE_RETAIL_DATA, "landed", dict.fromkeys(lost, "of another file")
        )
        (request,) = answer(definitions, instance)
        assert request.job_name == "online_retail_lake_to_warehouse"
        done = definitions.resolve_job_def(request.job_name).execute_in_process(
            instance=instance, tags=dict(request.tags), raise_on_error=False
        )
        assert done.success
        assert answer(definitions, instance) == []
    unchanged(cloud, before)


def test_a_vanished_day_leaves_the_same_in_both_worlds(
    cloud: World, embedded: World, real_source: Path, tmp_path: Path
) -> None:
    shorter = tmp_path / "without_a_day.csv"
    duckdb.connect().execute(
        f"copy (select * from read_csv('{real_source}', all_varchar = true)"
        f" where InvoiceDate not like '{DAY}%') to '{shorter}' (header)"
    )
    for world in (cloud, embedded):
        world.run(online_retail_source=shorter)
    for table in (LANDED, STAGING, FACT, COPY):
        found = by_day(cloud, table)
        assert (str(found[0][0]), str(found[-1][0])) == SPAN
        assert DAY not in {str(day) for day, *_ in found}
        same(found, by_day(embedded, table))
    for mart, order in MARTS.items():
        same(rows(cloud, mart, order), rows(embedded, mart, order))
    held = open_lake(cloud.settings).table(ONLINE_RETAIL_DATA).snapshot()
    assert (held.filled([DAY]), held.ledgers[DAY]) == ([], EMPTY_DAY)

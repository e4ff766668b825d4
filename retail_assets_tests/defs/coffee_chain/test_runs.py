"""The coffee chain's jobs executed for real, as its sensor asks for them: Spark, DuckDB, dbt.

Also what only a whole build can show: which columns the marts have.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from retail_assets.commands.audit import trace
from retail_assets.definitions import build_defs
from retail_assets.defs.coffee_chain.contract import (
    CUSTOMER,
    DOMAIN,
    LANDED,
    RAW_CUSTOMER,
    RAW_SALES,
    SALES,
    WAREHOUSE,
)
from retail_assets.defs.coffee_chain.feed import FEED
from retail_assets.defs.coffee_chain.sample import SampleCounts, write_sample
from retail_assets.domain import range_tags
from retail_assets.feeds.files.definitions import DELETED_CHECK
from retail_assets.feeds.landing import landed_key
from retail_assets.feeds.processed import processed_key
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.warehouse import DuckDBWarehouse
from retail_assets.settings import Settings, load_settings

PERSONAL = {column.name for dataset in LANDED for column in dataset.columns if column.pii}
# The tables and views that may carry them: customers as landed, and as a dimension.
OF_PERSONS = {"stg_customer", "dim_customer"}
Rows = list[tuple[Any, ...]]
(SALES_FILES,) = (table for table in FEED.dated if table.dataset is SALES)


@dataclass
class Shop:
    """A sample's home, with the definitions and an instance on disk."""

    settings: Settings
    counts: SampleCounts
    instance: dg.DagsterInstance
    definitions: dg.Definitions
    ran: list[str] = field(default_factory=list)

    @property
    def lake(self) -> LocalLake:
        return LocalLake(root=self.settings.lake)

    @property
    def warehouse(self) -> DuckDBWarehouse:
        return DuckDBWarehouse(path=str(self.settings.warehouse_path), timeout_s=30)

    def execute(self, job: str, tags: dict[str, str] | None = None) -> dg.ExecuteInProcessResult:
        """Run a job here."""
        return self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance, tags=tags or {}, raise_on_error=False
        )

    def tick(self) -> tuple[list[dg.RunRequest], str]:
        """One evaluation of the sensor, as the daemon's: requests, or why there are none."""
        sensor = self.definitions.resolve_sensor_def(f"{DOMAIN}_drops_sensor")
        repository = self.definitions.get_repository_def()
        with dg.build_sensor_context(
            instance=self.instance,
            repository_def=repository,
            resources={"lake": self.lake, "warehouse": self.warehouse},
        ) as context:
            data = sensor.evaluate_tick(context)
        assert data.cursor is None
        for asked in data.dynamic_partitions_requests or ():
            self.instance.add_dynamic_partitions(asked.partitions_def_name, asked.partition_keys)
        for event in data.asset_events:
            self.instance.report_runless_asset_event(event)
        return list(data.run_requests or ()), data.skip_message or ""

    def settle(self) -> str:
        """Run what the sensor asks for until it asks for nothing; its last word."""
        for _ in range(6):
            asked, why_not = self.tick()
            if not asked:
                return why_not
            for request in asked:
                assert request.job_name is not None
                result = self.execute(request.job_name, dict(request.tags))
                assert result.success, request
                self.ran.append(request.job_name.removeprefix(f"{DOMAIN}_"))
        raise AssertionError(f"the sensor never rests: {self.ran}")

    def tables(self) -> dict[str, Rows]:
        """Rows of each table and view of the domain, in an order of their own."""
        names = self.warehouse.query(
            "select table_schema, table_name from information_schema.tables"
            " where table_schema in (?, ?, ?)",
            [WAREHOUSE, f"{DOMAIN}_staging", f"{DOMAIN}_core"],
        )
        return {
            f"{schema}.{name}": self.warehouse.query(
                f'select * from "{schema}"."{name}" order by all'
            )
            for schema, name in names
        }


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop of which the sensor has asked for everything, and all that was done."""
    home = tmp_path_factory.mktemp("shop")
    settings = load_settings(home=home)
    counts = write_sample(Path(settings.lake), sales=2_000, customers=300, drops=3, seed=5)
    (home / "instance").mkdir()
    quiet = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(home / "instance"), overrides=quiet) as instance:
        definitions = build_defs(settings, domains=[FEED])
        found = Shop(settings, counts, instance, definitions)
        assert found.settle() == "nothing has changed"
        yield found


def test_what_the_sensor_asks_for_is_each_job_once(shop: Shop) -> None:
    assert shop.ran[:3] == ["small_files", "large_files", "marts"]


def test_every_drop_is_materialized_as_a_partition(shop: Shop) -> None:
    dates = [drop.date for drop in shop.counts.drops]

    assert list(shop.instance.get_dynamic_partitions(FEED.partitions)) == dates
    for table in FEED.dated:
        assert shop.instance.get_materialized_partitions(processed_key(FEED, table.dataset)) == set(
            dates
        )
        # Landed, a drop is recorded no second time.
        assert shop.instance.get_materialized_partitions(landed_key(table.dataset)) == set()
        assert shop.instance.get_latest_materialization_event(landed_key(table.dataset))
    for drop in shop.counts.drops:
        of_drop = dg.AssetRecordsFilter(
            processed_key(FEED, SALES_FILES.dataset), asset_partitions=[drop.date]
        )
        (record,) = shop.instance.fetch_materializations(of_drop, limit=1).records
        assert record.asset_materialization is not None
        metadata = record.asset_materialization.metadata
        assert metadata["dagster/partition_row_count"].value == drop.kept
        assert metadata["read"].value == drop.sales


def test_what_landed_is_what_the_sample_counts(shop: Shop) -> None:
    rows = {name: len(found) for name, found in shop.tables().items()}

    total = shop.counts.total
    assert rows[SALES.table] == rows["coffee_chain_core.fact_sales"] == total.kept
    assert rows[CUSTOMER.table] == total.customer_rows
    assert rows["coffee_chain_core.dim_customer"] == total.customers + 1  # UNKNOWN


def test_drops_backfilled_twice_leave_every_table_as_it_was(shop: Shop) -> None:
    before = shop.tables()
    first, last = shop.counts.drops[1].date, shop.counts.drops[2].date

    for _ in range(2):
        result = shop.execute(FEED.large_job, range_tags(first, last))
        assert result.success
        keys = {
            event.partition
            for event in result.filter_events(lambda e: e.is_step_materialization)
            if event.asset_key == processed_key(FEED, SALES_FILES.dataset)
        }
        assert keys == {first, last} or keys == {first, last, None}

    assert shop.tables() == before
    assert shop.tick() == ([], "nothing has changed")


def test_a_range_with_a_date_that_has_no_file_fails_in_words(shop: Shop) -> None:
    before = shop.tables()
    last = shop.counts.drops[-1].date
    shop.instance.add_dynamic_partitions(FEED.partitions, ["2024-06-30"])

    result = shop.execute(FEED.large_job, range_tags(last, "2024-06-30"))
    shop.instance.delete_dynamic_partition(FEED.partitions, "2024-06-30")

    failures = [event.step_failure_data for event in result.get_step_failure_events()]
    texts = [found.user_failure_data.description for found in failures if found.user_failure_data]
    assert len(texts) == 2 and all("no raw file has the date 2024-06-30" in x for x in texts)
    assert shop.tables() == before


def test_a_deleted_drop_fails_its_check_and_no_run(shop: Shop) -> None:
    before = shop.tables()
    path = shop.lake.path(RAW_SALES.name(shop.counts.drops[0].date))
    content, times = path.read_bytes(), path.stat()
    path.unlink()
    try:
        result = shop.execute(FEED.large_job, range_tags(*[shop.counts.drops[0].date] * 2))
        nightly = shop.execute(FEED.nightly_job)
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    for done in (result, nightly):
        assert done.success
        (check,) = [x for x in done.get_asset_check_evaluations() if x.check_name == DELETED_CHECK]
        assert not check.passed and "1 raw files were taken and are gone" in str(check.description)
    assert shop.tables() == before


def made(shop: Shop) -> tuple[set[str], set[str]]:
    """The models that the last run of the marts made, and those that it left as they were."""
    (run,) = shop.instance.get_runs(dg.RunsFilter(job_name=FEED.marts_job), limit=1)
    entries = shop.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    found = [x for entry in entries if (x := entry.asset_materialization)]
    names = {
        left: {x.asset_key.path[-1] for x in found if ("left_out" in x.metadata) is left}
        for left in (False, True)
    }
    return names[False], names[True]


def test_a_drop_delivered_again_and_a_late_one_end_in_the_marts(shop: Shop) -> None:
    def units() -> int:
        ((found,),) = shop.warehouse.query(
            "select sum(quantity) from coffee_chain_core.age_group_purchase"
        )
        return int(found)

    before, ran = units(), len(shop.ran)
    date = shop.counts.drops[1].date
    line = "1,I1,2021-03-01 10:00:00,{customer},MY001,PD001,4"
    sales = shop.lake.path(RAW_SALES.name(date))
    sales.write_text(sales.read_text() + line.format(customer="c-late") + "\n")
    late = shop.lake.path(RAW_SALES.name("1999-12-31"))
    late.write_text(",".join(RAW_SALES.header) + "\n" + line.format(customer="c-late") + "\n")
    shop.lake.path(RAW_CUSTOMER.name("1999-12-31")).write_text(
        ",".join(RAW_CUSTOMER.header) + "\n1,c-late,Ah,Tan,F,1990-01-02,a@example.com,+60\n"
    )

    assert shop.settle() == "nothing has changed"

    assert shop.ran[ran:] == ["large_files", "large_files", "marts"]
    assert units() == before + 8
    customers = shop.warehouse.query(
        "select customer_id, first_name, drop_date::varchar from coffee_chain_core.dim_customer"
        " where customer_id in ('c-late', 'UNKNOWN') order by all"
    )
    assert customers == [("UNKNOWN", None, None), ("c-late", "Ah", "1999-12-31")]
    # What stands on outlets and products alone is as it was, and so is every view.
    assert made(shop) == (
        {"coffee_chain_dim_customer", "fact_sales", "state_revenue", "age_group_purchase"},
        {"coffee_chain_dim_outlet", "coffee_chain_dim_product"},
    )
    ages = shop.warehouse.query(
        "select customer_age from coffee_chain_core.fact_sales where customer_id = 'c-late'"
    )
    assert ages == [(31,), (31,)]


def told_of(shop: Shop, key: dg.AssetKey) -> dict[str, Any]:
    """Metadata of the asset's last materialization that made something."""
    found = shop.instance.fetch_materializations(key, limit=20).records
    materialized = [x.asset_materialization for x in found if x.asset_materialization]
    metadata = next(x.metadata for x in materialized if "left_out" not in x.metadata)
    return {name: value.value for name, value in metadata.items()}


def test_a_table_tells_its_rows_and_ten_of_them(shop: Shop) -> None:
    counted = {name: len(rows) for name, rows in shop.tables().items()}
    for name in ("coffee_chain_dim_customer", "fact_sales", "state_revenue"):
        told = told_of(shop, dg.AssetKey(["coffee_chain_core", name]))
        table = f"coffee_chain_core.{name.removeprefix('coffee_chain_')}"
        assert told["dagster/row_count"] == counted[table] > 0
        first = [record.data for record in told["preview"].records]
        assert len(first) == min(10, counted[table])
        assert not any(map(is_personal, first[0]))
    landed = told_of(shop, landed_key(CUSTOMER))
    assert landed["dagster/row_count"] == counted[CUSTOMER.table]
    shown = {name for record in landed["preview"].records for name in record.data}
    assert shown == set(CUSTOMER.column_names) - PERSONAL


def test_columns_of_a_mart_are_traced_to_what_they_are_made_of(shop: Shop) -> None:
    told = told_of(shop, dg.AssetKey(["coffee_chain_core", "fact_sales"]))
    lineage = told["dagster/column_lineage"].deps_by_column

    made_of = {(x.asset_key.path[-1], x.column_name) for x in lineage["total_price"]}
    assert made_of == {("stg_sales", "quantity"), ("coffee_chain_dim_product", "product_price")}
    of_dates = {(x.asset_key.path[-1], x.column_name) for x in lineage["drop_date"]}
    assert of_dates == {("stg_sales", "drop_date")}


def test_a_test_that_warns_tells_which_rows(shop: Shop) -> None:
    name = "warn_of_unknown_members"
    key = dg.AssetCheckKey(dg.AssetKey(["coffee_chain_core", "fact_sales"]), name)
    record = shop.instance.get_latest_asset_check_evaluation_record(key)
    found = record.event.dagster_event.event_specific_data if record and record.event else None
    assert isinstance(found, dg.AssetCheckEvaluation) and not found.passed

    rows = found.metadata["failed_rows"].value
    assert isinstance(rows, list | tuple) and rows
    assert str(found.description).startswith(f"{len(rows)} rows do not pass: ")


def test_a_number_of_a_mart_leads_to_the_files_that_it_is_of(shop: Shop) -> None:
    date = shop.counts.drops[0].date

    found = trace(shop.settings, "coffee_chain_core.state_revenue", date, None)

    assert {x.table for x in found} == {SALES.table, CUSTOMER.table}
    (sales,) = (x for x in found if x.table == SALES.table)
    name = RAW_SALES.name(date)
    digest = hashlib.sha256(shop.lake.path(name).read_bytes()).hexdigest()
    assert sales.files == {name: digest}
    assert shop.instance.has_run(sales.run)
    assert sales.is_landed and sales.is_built


# ---- personal data


def is_personal(column: str) -> bool:
    """Whether a column is one of the contract's personal ones, or is named after one."""
    return any(name in column.lower() for name in PERSONAL)


def test_only_the_customers_dimension_carries_personal_columns(shop: Shop) -> None:
    columns: dict[str, set[str]] = {}
    for name, column in shop.warehouse.query(
        "select table_name, column_name from information_schema.columns"
        " where table_schema in (?, ?)",
        [f"{DOMAIN}_staging", f"{DOMAIN}_core"],
    ):
        columns.setdefault(name, set()).add(column)

    assert {"fact_sales", "state_revenue", "age_group_purchase"} < set(columns)
    assert {"first_name", "last_name", "birthday", "email", "phone_no"} <= PERSONAL
    carrying = {name for name, found in columns.items() if any(map(is_personal, found))}
    assert carrying == OF_PERSONS


def test_dbts_manifest_marks_every_personal_column_and_no_mart_has_one(shop: Shop) -> None:
    manifest = json.loads(
        (shop.settings.home / "dbt" / "duckdb" / "parsed" / "manifest.json").read_text()
    )
    models = [
        node
        for node in manifest["nodes"].values()
        if node["resource_type"] == "model" and node["fqn"][1] == DOMAIN
    ]

    assert len(models) == 10
    for model in models:
        personal = {name for name in model["columns"] if is_personal(name)}
        marked = {
            name
            for name, column in model["columns"].items()
            if column["meta"].get("pii") or column.get("config", {}).get("meta", {}).get("pii")
        }
        assert bool(personal) is (model["alias"] in OF_PERSONS)
        assert marked == personal


def test_no_value_of_a_person_is_found_in_a_mart(shop: Shop) -> None:
    persons = {
        str(value)
        for row in shop.warehouse.query(f"select email, phone_no from {CUSTOMER.table}")
        for value in row
        if value is not None
    }
    assert len(persons) > 300

    for name, rows in shop.tables().items():
        if name.startswith(f"{DOMAIN}_core.") and name.rpartition(".")[2] not in OF_PERSONS:
            assert not persons & {str(value) for row in rows for value in row}, name

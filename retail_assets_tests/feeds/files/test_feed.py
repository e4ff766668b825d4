"""Tests of retail_assets.feeds.files for any domain: one that is not of the project, whole.

Real lake, warehouse and Dagster runs; no marts (defs/coffee_chain/test_runs.py has some).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from retail_assets.domain import REFUSED_PARTITIONS, Asked, Execution, PlanError, range_tags
from retail_assets.feeds.checks import BALANCE_CHECK, SCHEMA_CHECK
from retail_assets.feeds.files import ABSENT, FileFeed, FileTable, mask_personal
from retail_assets.feeds.files.definitions import DELETED_CHECK, drops_of
from retail_assets.feeds.landing import landed_key
from retail_assets.losses import QUARANTINE_CHECK
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.warehouse import DuckDBWarehouse
from retail_assets.settings import Settings, load_settings
from retail_assets_tests.feeds.files.shop import (
    DOORS,
    OF_DOORS,
    OF_RETURNS,
    OF_VISITS,
    RETURNS,
    VISITS,
    deliver,
    shop,
)

D1, D2, D3 = "2024-01-01", "2024-01-02", "2024-01-03"


@dataclass
class House:
    """A lake, a warehouse and an instance on disk, for any of the shop's domains."""

    settings: Settings
    instance: dg.DagsterInstance

    @property
    def lake(self) -> LocalLake:
        return LocalLake(root=self.settings.lake)

    @property
    def warehouse(self) -> DuckDBWarehouse:
        return DuckDBWarehouse(path=str(self.settings.warehouse_path), timeout_s=30)

    def deliver(self, table: FileTable, key: str, *rows: str) -> Path:
        return deliver(Path(self.settings.lake), table, key, *rows)

    def definitions(self, feed: FileFeed) -> dg.Definitions:
        resources = {"lake": self.lake, "warehouse": self.warehouse}
        return dg.Definitions.merge(
            feed.build_defs(self.settings), dg.Definitions(resources=resources)
        )

    def plan(self, feed: FileFeed, *partitions: str, emptying: bool = False) -> list[Execution]:
        asked = Asked((partitions[0], partitions[1]) if partitions else None, emptying)
        return list(feed.plan(self.settings, asked, lambda: self.instance))

    def run(
        self, feed: FileFeed, job: str, tags: dict[str, str] | None = None
    ) -> dg.ExecuteInProcessResult:
        resolved = self.definitions(feed).resolve_job_def(job)
        return resolved.execute_in_process(
            instance=self.instance, tags=tags or {}, raise_on_error=False
        )

    def settle(self, feed: FileFeed) -> list[str]:
        """Run what the sensor asks for until it asks for nothing."""
        definitions, done = self.definitions(feed), list[str]()
        for _ in range(20):
            with dg.build_sensor_context(
                instance=self.instance,
                repository_def=definitions.get_repository_def(),
                resources={"lake": self.lake, "warehouse": self.warehouse},
            ) as context:
                tick = definitions.resolve_sensor_def("shop_drops_sensor").evaluate_tick(context)
            for asked in tick.dynamic_partitions_requests or ():
                self.instance.add_dynamic_partitions(
                    asked.partitions_def_name, asked.partition_keys
                )
            wanted = [x for x in tick.run_requests or () if x.job_name != feed.marts_job]
            if not wanted:
                return done
            for request in wanted:
                assert request.job_name is not None
                result = self.run(feed, request.job_name, dict(request.tags))
                name = request.job_name.removeprefix("shop_")
                done.append(name if result.success else f"{name} failed")
        raise AssertionError(f"the sensor never rests: {done}")

    def rows(self, dataset: object) -> list[tuple[object, ...]]:
        name = getattr(dataset, "table")  # noqa: B009
        return list(self.warehouse.query(f"select * from {name} order by all"))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        yield House(load_settings(home=tmp_path / "home"), instance)


def test_each_table_has_its_assets_and_the_domain_the_jobs_that_it_needs(house: House) -> None:
    def names(feed: FileFeed) -> tuple[set[str], set[str], set[str]]:
        repository = house.definitions(feed).get_repository_def()
        return (
            {key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()},
            {name for name in repository.job_names if not name.startswith("__")},
            {x.name for x in repository.schedule_defs},
        )

    always = {"shop", "shop_marts", "shop_nightly", "shop_lake_to_warehouse"}
    dated = {"shop_large_files", "shop_drops_to_marts"}
    assert names(shop(OF_VISITS)) == (
        {"shop/raw_drops", "shop/processed_visits", "shop/visits"},
        always | dated,
        {"shop_nightly", "shop_drops_nightly"},
    )
    assert names(shop(OF_DOORS)) == (
        {"shop/raw_doors", "shop/processed_doors", "shop/doors"},
        always | {"shop_small_files"},
        {"shop_nightly"},
    )
    assert names(shop(OF_VISITS, OF_DOORS))[1] == always | dated | {"shop_small_files"}


def test_a_domain_of_dated_files_goes_from_raw_to_warehouse_by_its_sensor(house: House) -> None:
    feed = shop(OF_VISITS)
    house.deliver(OF_VISITS, D1, "north,3", "north,3", "south,x")
    house.deliver(OF_VISITS, D2, "north,4")

    assert house.settle(feed) == ["drops_to_marts"]

    assert [row[:2] for row in house.rows(VISITS)] == [("north", 3), ("north", 4)]
    assert feed.count_rows(house.lake) == {"shop.processed_visits": 2}
    processed = dg.AssetKey(["shop", "processed_visits"])
    assert house.instance.get_materialized_partitions(processed) == {D1, D2}
    house.deliver(OF_VISITS, D2, "north,5")
    assert house.settle(feed) == ["drops_to_marts"]
    assert [row[1] for row in house.rows(VISITS)] == [3, 5]
    assert house.settle(feed) == []


def test_a_domain_of_one_list_goes_from_raw_to_warehouse_by_its_sensor(house: House) -> None:
    feed = shop(OF_DOORS)
    house.deliver(OF_DOORS, "", "north,30")

    assert house.settle(feed) == ["small_files"]
    assert house.rows(DOORS) == [("north", 30)]
    assert house.plan(feed) == [Execution("shop")]
    assert house.plan(feed, emptying=True)[0].run_config == {
        "ops": {"shop__processed_doors": {"config": {"allow_emptying": True}}}
    }
    with pytest.raises(PlanError, match=f"holds no drop from {D1} to {D2}"):
        house.plan(feed, D1, D2)


def test_a_table_that_never_had_a_file_is_there_and_empty(house: House) -> None:
    feed = shop(OF_VISITS, OF_RETURNS)
    house.deliver(OF_VISITS, D2, "north,3")

    assert house.settle(feed) == ["drops_to_marts"]

    assert house.rows(RETURNS) == []
    assert house.warehouse.loaded_versions(RETURNS) == {D2: ABSENT}
    assert house.settle(feed) == []
    house.deliver(OF_RETURNS, D1, "north,1")
    assert house.settle(feed) == ["drops_to_marts"]
    assert [row[1] for row in house.rows(RETURNS)] == [1]


def test_a_load_leaves_out_a_list_that_never_came(house: House) -> None:
    feed = shop(OF_VISITS, OF_DOORS)
    house.deliver(OF_VISITS, D1, "north,3")
    house.settle(feed)
    house.settings.warehouse_path.unlink()

    assert house.settle(feed) == ["lake_to_warehouse"]

    assert [row[1] for row in house.rows(VISITS)] == [3]
    assert DOORS.table not in house.warehouse.row_counts()


def test_a_refused_file_keeps_back_no_other(house: House) -> None:
    feed = shop(OF_VISITS)
    for day in (D1, D2, D3):
        house.deliver(OF_VISITS, day, f"north,{day[-1]}")
    Path(house.settings.lake, OF_VISITS.file_name(D2)).write_text("other\n")

    house.instance.add_dynamic_partitions(feed.partitions, [D1, D2, D3])

    result = house.run(feed, "shop_large_files", range_tags(D1, D3))

    # The good ones are taken, recorded and checked, and the step fails for the bad one.
    assert not result.success
    taken = result.filter_events(lambda e: e.is_step_materialization)
    found = {e.partition: e.materialization.metadata for e in taken}
    assert {key: x["dagster/partition_row_count"].value for key, x in found.items()} == {
        D1: 1,
        D3: 1,
    }
    checks = {x.check_name: x.passed for x in result.get_asset_check_evaluations()}
    names = (BALANCE_CHECK, SCHEMA_CHECK, QUARANTINE_CHECK, DELETED_CHECK)
    assert checks == dict.fromkeys(names, True)
    (failure,) = result.filter_events(lambda e: e.is_step_failure)
    data = failure.step_failure_data.user_failure_data
    assert data is not None and data.metadata[REFUSED_PARTITIONS].value == [D2]
    assert str(data.description).startswith("1 of 3 drops cannot be taken; all others were. ")
    processed = dg.AssetKey(["shop", "processed_visits"])
    shown = house.instance.get_status_by_partition(processed, [D1, D2, D3], drops_of(feed))
    assert shown is not None and {key: x and x.name for key, x in shown.items()} == {
        D1: "MATERIALIZED",
        D2: "FAILED",
        D3: "MATERIALIZED",
    }
    assert house.settle(feed) == [*["drops_to_marts failed"] * 3, "lake_to_warehouse"]
    assert [row[1] for row in house.rows(VISITS)] == [1, 3]


def test_drops_and_the_landed_table_chosen_together_are_one_run(house: House) -> None:
    feed = shop(OF_VISITS)
    for day in (D1, D2):
        house.deliver(OF_VISITS, day, "north,3")
    house.instance.add_dynamic_partitions(feed.partitions, [D1, D2])

    result = house.run(feed, "shop_large_files", range_tags(D1, D2))

    assert result.success
    found = {
        (e.asset_key, e.partition)
        for e in result.filter_events(lambda e: e.is_step_materialization)
    }
    processed = dg.AssetKey(["shop", "processed_visits"])
    assert found == {(processed, D1), (processed, D2), (landed_key(VISITS), None)}


def test_what_is_personal_of_rows_without_a_declared_header_is_masked_whole() -> None:
    assert mask_personal(OF_DOORS, "visitors: expected a number", "a,b") == (
        "visitors: expected a number",
        "a,b",
    )

"""Tests of retail_assets.landing: partitions of a real lake into a real DuckDB, by Dagster runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retail_assets.dataset import Column, Dataset
from retail_assets.domain import range_tags
from retail_assets.landing import NotProcessedError, lake_versions, landed_asset, rebuild
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.restoring import restore
from retail_assets.resources.warehouse import DuckDBWarehouse
from retail_assets.settings import load_settings

SHOPS = Dataset(
    schema="landed_shop",
    domain="shop",
    name="shops",
    description="Shops.",
    columns=(Column("id", "int64", "Key.", key=True),),
)
SALES = replace(
    SHOPS,
    name="sales",
    partition_by="day",
    columns=(*SHOPS.columns, Column("day", "date", "Day.")),
)
D1, D2, D3 = "2011-01-01", "2011-01-02", "2011-01-03"
KEY = dg.AssetKey(["landed_shop", "table"])
DAYS = dg.StaticPartitionsDefinition([D1, D2, D3])


@dataclass
class Shop:
    """A lake of one table, and the warehouse that it is landed in."""

    root: Path
    dataset: Dataset
    instance: dg.DagsterInstance

    @property
    def lake(self) -> LocalLake:
        return LocalLake(root=str(self.root / "lake"))

    @property
    def warehouse(self) -> DuckDBWarehouse:
        return DuckDBWarehouse(path=str(self.root / "warehouse.duckdb"), timeout_s=30)

    def put(self, key: str, *ids: int, version: str) -> None:
        """Replace a partition by rows of these ids."""
        by = self.dataset.partition_by
        days = {by: pa.array([key] * len(ids)).cast(pa.date32())} if by else {}
        table = pa.table({"id": pa.array(ids, pa.int64())} | days).cast(self.dataset.arrow_schema)
        with self.lake.staging("run") as stage:
            stage.write_partitions(self.dataset, [(key, table)])
            stage.publish(self.dataset, [key], {key: Ledger(version, len(ids))})

    def land(
        self,
        *,
        only_changed: bool = False,
        partitions: "dg.PartitionsDefinition[str] | None" = None,
        tags: Mapping[str, str] | None = None,
    ) -> dg.ExecuteInProcessResult:
        """A run of the asset."""
        asset = landed_asset(
            load_settings(home=self.root),
            self.dataset,
            key=KEY,
            deps=[],
            partitions=partitions,
            only_changed=only_changed,
        )
        return dg.materialize(
            [asset],
            instance=self.instance,
            resources={"lake": self.lake, "warehouse": self.warehouse},
            tags=dict(tags or {}),
            raise_on_error=False,
        )

    def rows(self) -> list[tuple[Any, ...]]:
        """What the warehouse has."""
        names = ", ".join(f"{name}::varchar" for name in self.dataset.column_names)
        return self.warehouse.query(f"select {names} from {self.dataset.table} order by all")


def metadata_of(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """What the only materialization of a run says."""
    assert result.success
    (event,) = result.get_asset_materialization_events()
    return {name: value.value for name, value in event.materialization.metadata.items()}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


@pytest.fixture
def shops(tmp_path: Path, instance: dg.DagsterInstance) -> Shop:
    return Shop(tmp_path, SHOPS, instance)


@pytest.fixture
def sales(tmp_path: Path, instance: dg.DagsterInstance) -> Shop:
    return Shop(tmp_path, SALES, instance)


def test_a_whole_table_is_replaced_each_time(shops: Shop) -> None:
    shops.put("", 1, 2, version="v1")
    assert metadata_of(shops.land())["dagster/row_count"] == 2

    shops.put("", 3, version="v1")  # of the same version: it is not looked at
    assert metadata_of(shops.land())["dagster/row_count"] == 1

    assert shops.rows() == [("3",)]
    assert shops.warehouse.loaded_versions(SHOPS) == {"": "v1"}


def test_a_whole_table_of_which_nothing_changed_is_left(shops: Shop) -> None:
    shops.put("", 1, 2, version="v1")
    first = metadata_of(shops.land(only_changed=True))
    assert (first["rows_in_run"], first["partitions_in_run"]) == (2, 1)

    shops.put("", 3, version="v1")  # would be seen if it were read
    again = metadata_of(shops.land(only_changed=True))

    assert (again["rows_in_run"], again["partitions_in_run"]) == (0, 0)
    assert shops.rows() == [("1",), ("2",)]
    shops.put("", 3, version="v2")
    assert metadata_of(shops.land(only_changed=True))["rows_in_run"] == 1
    assert shops.rows() == [("3",)]


def test_only_partitions_that_changed_are_loaded(sales: Shop) -> None:
    sales.put(D1, 1, version="a1")
    sales.put(D2, 2, version="a2")
    first = metadata_of(sales.land(only_changed=True))
    assert (first["rows_in_run"], first["partitions_in_run"]) == (2, 2)

    sales.put(D1, 10, version="a1")  # the same version
    sales.put(D2, 20, 21, version="b2")
    sales.put(D3, 3, version="a3")
    second = metadata_of(sales.land(only_changed=True))

    assert (second["rows_in_run"], second["partitions_in_run"]) == (3, 2)
    assert sales.rows() == [("1", D1), ("20", D2), ("21", D2), ("3", D3)]
    assert sales.warehouse.loaded_versions(SALES) == {D1: "a1", D2: "b2", D3: "a3"}


def test_a_partition_that_lost_its_rows_is_emptied(sales: Shop) -> None:
    sales.put(D1, 1, version="a1")
    sales.put(D2, 2, version="a2")
    sales.land(only_changed=True)

    sales.put(D1, version="empty")
    found = metadata_of(sales.land(only_changed=True))

    assert (found["rows_in_run"], found["partitions_in_run"]) == (0, 1)
    assert sales.rows() == [("2", D2)]


def test_dagsters_partitions_are_loaded_as_asked_for_in_one_run(sales: Shop) -> None:
    for number, day in enumerate((D1, D2, D3)):
        sales.put(day, number, version="v")

    result = sales.land(partitions=DAYS, tags=range_tags(D2, D3))

    assert result.success
    assert sales.rows() == [("1", D2), ("2", D3)]
    events = [e.materialization for e in result.get_asset_materialization_events()]
    assert {e.partition: e.metadata["dagster/partition_row_count"].value for e in events} == {
        D2: 1,
        D3: 1,
    }
    assert {e.metadata["partitions_in_run"].value for e in events} == {2}


@pytest.mark.parametrize("dataset", [SHOPS, SALES], ids=lambda dataset: dataset.name)
def test_of_nothing_the_table_is_made(
    tmp_path: Path, instance: dg.DagsterInstance, dataset: Dataset
) -> None:
    shop = Shop(tmp_path, dataset, instance)

    if dataset.partition_by is None:
        assert not shop.land(only_changed=True).success  # it was never made
        shop.put("", version="empty")

    found = metadata_of(shop.land(only_changed=True))

    assert found["rows_in_run"] == 0
    assert shop.rows() == []
    assert shop.warehouse.row_counts() == {dataset.table: 0}


def test_a_failure_touches_nothing_and_is_not_tried_again(sales: Shop) -> None:
    sales.put(D1, 1, version="a1")
    sales.land(only_changed=True)
    sales.put(D1, 2, version="a2")

    result = sales.land(partitions=DAYS, tags=range_tags(D1, D3))

    assert not result.success
    (event,) = result.filter_events(lambda e: e.is_step_failure)
    data = event.step_failure_data.user_failure_data
    assert data is not None and data.description == (
        f"{sales.lake.root}/processed/shop/sales has nothing of 2 of 3 partitions ({D2}...{D3}):"
        " they were never processed. Nothing was loaded. Materialize them in the lake first."
    )
    assert not result.filter_events(lambda e: e.is_step_up_for_retry)
    assert sales.rows() == [("1", D1)]


def test_a_rebuild_has_what_the_lake_has_and_no_more(sales: Shop) -> None:
    sales.put(D1, 1, version="a1")
    sales.put(D2, 2, version="a2")
    sales.land(only_changed=True)
    sales.put(D1, 10, 11, version="a1")
    sales.lake.table(SALES).commit([], replace=[D2])

    versions = lake_versions(sales.lake, SALES)
    assert rebuild(sales.lake, sales.warehouse, SALES, versions) == 2

    assert sales.rows() == [("10", D1), ("11", D1)]
    assert sales.warehouse.loaded_versions(SALES) == {D1: "a1"}
    assert metadata_of(sales.land(only_changed=True))["partitions_in_run"] == 0


def test_the_warehouse_follows_a_table_that_was_restored(sales: Shop) -> None:
    sales.put(D1, 1, version="a1")
    sales.put(D1, 2, version="a2")
    sales.put(D2, 3, version="b1")
    sales.land(partitions=DAYS, tags=range_tags(D1, D2))

    restore(sales.lake, SALES, 0, {})

    assert lake_versions(sales.lake, SALES) == {D1: "a1", D2: ""}
    assert sales.land(partitions=DAYS, tags=range_tags(D1, D2)).success
    assert sales.rows() == [("1", D1)]
    assert sales.warehouse.loaded_versions(SALES) == {D1: "a1", D2: ""}
    with pytest.raises(NotProcessedError, match=f"1 of 2 partitions .{D3}"):
        lake_versions(sales.lake, SALES, [D2, D3])


PARTITION = st.lists(st.integers(0, 9), max_size=3, unique=True)
STATES = st.lists(
    st.dictionaries(st.sampled_from([D1, D2, D3]), PARTITION, min_size=1), min_size=1, max_size=3
)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(STATES)
def test_after_each_load_the_warehouse_has_what_the_lake_has(
    tmp_path_factory: pytest.TempPathFactory, states: list[dict[str, list[int]]]
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        sales = Shop(tmp_path_factory.mktemp("home"), SALES, instance)
        expected: dict[str, list[int]] = {}
        for state in states:
            for key, ids in state.items():
                sales.put(key, *ids, version="-".join(map(str, ids)))
            expected |= state
            assert sales.land(only_changed=True).success
            assert sales.rows() == sorted(
                (str(number), key) for key, ids in expected.items() for number in ids
            )

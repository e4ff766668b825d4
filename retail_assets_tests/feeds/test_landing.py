"""Tests of retail_assets.feeds.landing: a real lake into a real DuckDB, by Dagster runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retail_assets.dataset import Dataset
from retail_assets.feeds.landing import lake_versions, rebuild
from retail_assets.resources.lake.restoring import restore
from retail_assets_tests.feeds.shop import D1, D2, D3, SALES, SHOPS, Shop, Shops


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


def test_a_whole_table_of_which_nothing_changed_is_left(shops: Shop) -> None:
    shops.put("", 1, 2, version="v1")
    first = metadata_of(shops.land())
    assert (first["rows_in_run"], first["partitions_in_run"]) == (2, 1)

    shops.put("", 3, version="v1")  # would be seen if it were read
    again = metadata_of(shops.land())

    assert (again["rows_in_run"], again["partitions_in_run"]) == (0, 0)
    assert shops.rows() == [("1",), ("2",)]
    shops.put("", 3, version="v2")
    assert metadata_of(shops.land())["rows_in_run"] == 1
    assert shops.rows() == [("3",)]


def test_only_partitions_that_changed_are_loaded(sales: Shop) -> None:
    sales.put(D1, 1, version="a1")
    sales.put(D2, 2, version="a2")
    first = metadata_of(sales.land())
    assert (first["rows_in_run"], first["partitions_in_run"]) == (2, 2)

    sales.put(D1, 10, version="a1")  # the same version
    sales.put(D2, 20, 21, version="b2")
    sales.put(D3, 3, version="a3")
    second = metadata_of(sales.land())

    assert (second["rows_in_run"], second["partitions_in_run"]) == (3, 2)
    assert sales.rows() == [("1", D1), ("20", D2), ("21", D2), ("3", D3)]
    assert sales.warehouse.loaded_versions(SALES) == {D1: "a1", D2: "b2", D3: "a3"}


def test_a_partition_that_lost_its_rows_is_emptied(sales: Shop) -> None:
    sales.put(D1, 1, version="a1")
    sales.put(D2, 2, version="a2")
    sales.land()

    sales.put(D1, version="empty")
    found = metadata_of(sales.land())

    assert (found["rows_in_run"], found["partitions_in_run"]) == (0, 1)
    assert sales.rows() == [("2", D2)]


def test_chosen_partitions_are_loaded_changed_or_not(sales: Shop) -> None:
    for number, day in enumerate((D1, D2, D3)):
        sales.put(day, number, version="v")
    sales.land(D2, D3)
    assert sales.rows() == [("1", D2), ("2", D3)]

    sales.put(D2, 10, version="v")
    found = metadata_of(sales.land(D2))

    assert (found["rows_in_run"], found["partitions_in_run"]) == (1, 1)
    assert sales.rows() == [("10", D2), ("2", D3)]


def test_a_load_without_news_has_the_data_version_that_was(sales: Shop) -> None:
    def version() -> str | None:
        (event,) = sales.land().get_asset_materialization_events()
        return (event.materialization.tags or {})["dagster/data_version"]

    sales.put(D1, 1, version="a1")
    first = version()
    assert version() == first
    sales.put(D2, 2, version="a2")
    assert version() != first


@pytest.mark.parametrize("dataset", [SHOPS, SALES], ids=lambda dataset: dataset.name)
def test_of_nothing_the_table_is_made(
    tmp_path: Path, instance: dg.DagsterInstance, dataset: Dataset
) -> None:
    shop = Shop(tmp_path, dataset, instance)

    if dataset.partition_by is None:
        assert metadata_of(shop.land())["partitions_in_run"] == 0
        assert shop.warehouse.row_counts() == {}  # it was never made, and is waited for
        shop.put("", version="empty")

    found = metadata_of(shop.land())

    assert found["rows_in_run"] == 0
    assert shop.rows() == []
    assert shop.warehouse.row_counts() == {dataset.table: 0}


def test_a_failure_touches_nothing_and_is_not_tried_again(sales: Shop) -> None:
    sales.put(D1, 1, version="a1")
    sales.land()
    sales.put(D1, 2, version="a2")

    result = sales.land(D1, D2, D3)

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
    sales.land()
    sales.put(D1, 10, 11, version="a1")
    sales.lake.table(SALES).commit([], replace=[D2])

    assert rebuild(sales.lake, sales.warehouse, Shops(), SALES) == 2

    assert sales.rows() == [("10", D1), ("11", D1)]
    assert sales.warehouse.loaded_versions(SALES) == {D1: "a1"}
    assert metadata_of(sales.land())["partitions_in_run"] == 0


def test_the_warehouse_follows_a_table_that_was_restored(sales: Shop) -> None:
    sales.put(D1, 1, version="a1")
    sales.put(D1, 2, version="a2")
    sales.put(D2, 3, version="b1")
    sales.land()

    restore(sales.lake, SALES, 0, {})

    assert lake_versions(sales.lake, SALES) == {D1: "a1", D2: ""}
    assert sales.land().success
    assert sales.rows() == [("1", D1)]
    assert sales.warehouse.loaded_versions(SALES) == {D1: "a1", D2: ""}


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
            assert sales.land().success
            assert sales.rows() == sorted(
                (str(number), key) for key, ids in expected.items() for number in ids
            )

"""Tests of retail_assets.defs.marts.dbt: which models an asset has, and what dbt is handed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain.contract import CUSTOMER, LANDED, OUTLET, SALES
from retail_assets.defs.coffee_chain.feed import FEED as COFFEE_CHAIN
from retail_assets.defs.coffee_chain.feed import CoffeeChain
from retail_assets.defs.marts.dbt import (
    OF_THE_MODELS,
    build_defs,
    selection,
    tables_left_out,
)
from retail_assets.defs.marts.dbt import models_of as reduced
from retail_assets.defs.online_retail.contract import ONLINE_RETAIL_DATA
from retail_assets.defs.online_retail.feed import FEED
from retail_assets.defs.supply_chain.feed import SupplyChain
from retail_assets.domain import MARTS_STAGE, Domain, MartsPlan
from retail_assets.feeds.snapshot import SnapshotFeed
from retail_assets.resources.dbt.cli import LeanDbtCliResource
from retail_assets.resources.dbt.project import dbt_resource, prepare_project
from retail_assets.resources.warehouse import DuckDBWarehouse, WarehouseResource
from retail_assets.settings import DBT_PROJECT_DIR, Settings, load_settings

FACT = dg.AssetKey(["online_retail_core", "fact_returns"])
VERSIONS = {"2010-12-01": "a", "2010-12-02": "b"}


class Planned(SnapshotFeed):
    """Online retail with a plan of the test's own."""

    def plan_marts(self, warehouse: WarehouseResource) -> MartsPlan:
        return MartsPlan(
            {"online_retail_window": [["2010-12-01", "2010-12-02"]], "customer_window": None},
            {ONLINE_RETAIL_DATA: VERSIONS},
        )


class Build:
    """dbt's build that makes nothing: it keeps what it was handed."""

    def __init__(self) -> None:
        self.arguments: list[str] = []
        self.windows: dict[str, Any] = {}
        self.succeeds = True

    def cli(self, arguments: list[str], **_: object) -> "Build":
        self.arguments = arguments
        self.windows = {
            name: json.loads(value)
            for name, value in os.environ.items()
            if name.startswith("DBT_") and name.endswith("_WINDOW")
        }
        return self

    def stream_raw_events(self) -> Iterator[object]:
        if not self.succeeds:
            raise RuntimeError("dbt failed")
        return iter(())


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    # Dagster resolves definitions by the instance that was entered last: let that be a live one.
    with dg.DagsterInstance.ephemeral():
        yield load_settings(home=tmp_path_factory.mktemp("home"))


def models_of(settings: Settings) -> dg.AssetsDefinition:
    (found,) = build_defs(settings, [Planned(FEED.name, FEED.dataset, FEED.first_day)]).assets or ()
    assert isinstance(found, dg.AssetsDefinition)
    return found


def test_a_domain_has_one_definition_of_all_its_models(settings: Settings) -> None:
    models = models_of(settings)

    files = (DBT_PROJECT_DIR / "models" / "online_retail").rglob("*.sql")
    assert models.node_def.name == "online_retail_dbt_models"
    assert {key.path[-1] for key in models.keys} == {path.stem for path in files}
    assert {spec.group_name for spec in models.specs} == {"online_retail"}


@pytest.mark.parametrize(
    ("domain", "virtual"), [(FEED, True), (COFFEE_CHAIN, True), (SupplyChain(), False)]
)
def test_a_view_is_never_stale_where_loads_say_what_is(
    settings: Settings, domain: Domain, virtual: bool
) -> None:
    (models,) = build_defs(settings, [domain]).assets or ()
    assert isinstance(models, dg.AssetsDefinition)

    views = {spec.key.path[-1] for spec in models.specs if spec.is_virtual}

    files = (DBT_PROJECT_DIR / "models" / domain.name / "staging").glob("*.sql")
    assert views == ({path.stem for path in files} if virtual else set())


def test_no_domain_has_no_models(settings: Settings) -> None:
    assert list(build_defs(settings, []).assets or ()) == []


def recorded(warehouse: DuckDBWarehouse) -> dict[str, Mapping[str, str]]:
    """Versions by stage, as the warehouse keeps them."""
    rows = warehouse.query(
        "select count(*) from information_schema.tables where table_name = 'loaded_partitions'"
    )
    if rows == [(0,)]:
        return {}
    found: dict[str, dict[str, str]] = {}
    for stage, key, version in warehouse.query(
        "select stage, partition_key, version from retail_operations.loaded_partitions"
    ):
        found.setdefault(stage, {})[key] = version
    return dict(found)


@pytest.mark.parametrize("whole", [True, False])
def test_dbt_is_handed_every_window_and_a_whole_build_is_recorded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: bool
) -> None:
    build = Build()
    monkeypatch.setattr(LeanDbtCliResource, "cli", lambda _, arguments, **x: build.cli(arguments))
    warehouse = DuckDBWarehouse(path=str(tmp_path / "warehouse.duckdb"))

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [models_of(settings)],
            selection=None if whole else [FACT],
            resources={"warehouse": warehouse, "dbt": dbt_resource(settings)},
            instance=instance,
        )

    assert result.success
    assert build.arguments[0] == "build"
    assert ("path:models/online_retail" in build.arguments) == whole
    assert build.windows == {
        "DBT_ONLINE_RETAIL_WINDOW": [["2010-12-01", "2010-12-02"]],
        "DBT_CUSTOMER_WINDOW": None,
    }
    assert recorded(warehouse) == {"marts": VERSIONS if whole else dict.fromkeys(VERSIONS, "")}
    assert not [name for name in os.environ if name.endswith("_WINDOW")]


@pytest.mark.parametrize("domain", ["online_retail", "coffee_chain", "supply_chain"])
def test_what_dbt_selects_by_the_domains_path_is_in_its_part_of_the_manifest(
    settings: Settings, domain: str
) -> None:
    manifest = json.loads(prepare_project(settings).read_bytes())
    listed = run_dbt_list(settings, "--select", f"path:models/{domain}")

    part = reduced(manifest, domain)["nodes"]

    assert listed == {name for name in part if not name.startswith("unit_test.")}


# ---- builds of what changed

PLAN = {"coffee_chain_window": [["2020-12-31", "2020-12-31"]], "coffee_chain_customer_window": []}


class Changed(CoffeeChain):
    """The coffee chain, of which the test says what changed."""

    changed: tuple[Dataset, ...] = ()
    sales: Mapping[str, str] = {"2020-12-31": "s"}

    def plan_marts(self, warehouse: WarehouseResource) -> MartsPlan:
        return MartsPlan(PLAN, {OUTLET: {"": "o"}, SALES: self.sales}, self.changed)


class Shop:
    """A warehouse and builds of the coffee chain's marts that make nothing, or fail."""

    def __init__(self, settings: Settings, warehouse: DuckDBWarehouse, build: Build) -> None:
        self.domain = Changed(COFFEE_CHAIN.name, COFFEE_CHAIN.tables)
        self.settings, self.warehouse, self.build = settings, warehouse, build
        self.reported: set[str] = set()

    def selected(self, *changed: Dataset, succeeds: bool = True) -> str:
        """What a whole build selects after these tables have changed."""
        self.domain.changed = changed
        self.build.succeeds = succeeds
        (models,) = build_defs(self.settings, [self.domain]).assets or ()
        assert isinstance(models, dg.AssetsDefinition)
        with dg.DagsterInstance.ephemeral() as instance:
            result = dg.materialize(
                [models],
                resources={"warehouse": self.warehouse, "dbt": dbt_resource(self.settings)},
                instance=instance,
                raise_on_error=False,
            )
        assert result.success is succeeds
        self.reported = {
            event.asset_key.path[-1]
            for event in result.get_asset_materialization_events()
            if event.asset_key is not None
        }
        arguments = self.build.arguments
        assert arguments[-2] == "--exclude"
        is_partial = arguments[-1] == f"resource_type:unit_test tag:{OF_THE_MODELS}"
        selected = arguments[arguments.index("--select") + 1]
        assert is_partial is ("path:" not in selected)
        return selected


@pytest.fixture
def shop(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shop:
    build = Build()
    monkeypatch.setattr(LeanDbtCliResource, "cli", lambda _, arguments, **x: build.cli(arguments))
    warehouse = DuckDBWarehouse(path=str(tmp_path / "warehouse.duckdb"))
    warehouse.replace_table(OUTLET, [], {"": "o"})
    return Shop(settings, warehouse, build)


WHOLE = "path:models/coffee_chain"


def test_a_build_is_of_everything_then_of_what_changed(shop: Shop) -> None:
    of_sales = selection("coffee_chain", [SALES])
    assert shop.selected(SALES) == WHOLE  # nothing is known of what the other tables' models are

    assert shop.selected(SALES) == of_sales
    assert shop.selected(SALES) == of_sales
    # Else Dagster takes them for older than a table that was loaded again with what it had.
    assert shop.reported == {f"coffee_chain_dim_{x}" for x in ("customer", "outlet", "product")}
    assert shop.selected(CUSTOMER, SALES) == selection("coffee_chain", [CUSTOMER, SALES])
    assert shop.selected() == WHOLE  # who asks for a build of nothing new wants a build
    assert shop.reported == set()


def test_other_models_are_built_whole(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.selected(SALES)
    assert shop.selected(SALES) != WHOLE

    monkeypatch.setattr("retail_assets.defs.marts.dbt.project_state", lambda _: "other models")

    assert shop.selected(SALES) == WHOLE
    assert shop.selected(SALES) != WHOLE


def test_after_a_build_that_failed_everything_is_built(shop: Shop) -> None:
    shop.selected(SALES)
    assert shop.selected(SALES, succeeds=False) != WHOLE

    assert shop.selected(SALES, succeeds=False) == WHOLE
    assert shop.selected(SALES) == WHOLE
    assert shop.selected(SALES) != WHOLE


def test_what_a_failed_build_may_have_taken_is_not_taken_for_built(shop: Shop) -> None:
    """Though it is then delivered again as it was before."""
    shop.warehouse.replace_table(SALES, [], {"2019-12-31": "r", "2020-12-31": "s"})
    shop.domain.sales = {"2019-12-31": "r", "2020-12-31": "s"}
    shop.selected(SALES)
    assert shop.warehouse.loaded_versions(SALES, MARTS_STAGE) == shop.domain.sales

    shop.domain.sales = {"2019-12-31": "r", "2020-12-31": "bad"}
    shop.selected(SALES, succeeds=False)

    built = shop.warehouse.loaded_versions(SALES, MARTS_STAGE)
    assert built == {"2019-12-31": "r", "2020-12-31": ""}


@pytest.mark.parametrize("changed", [[OUTLET], [SALES], [CUSTOMER, SALES], list(LANDED)])
def test_what_stands_on_changed_tables_is_built_and_tested_but_views(
    settings: Settings, changed: list[Dataset]
) -> None:
    manifest = json.loads(prepare_project(settings).read_bytes())
    children, nodes = manifest["child_map"], manifest["nodes"]
    reached: set[str] = set()
    ahead = [f"source.retail_assets.{dataset.schema}.{dataset.name}" for dataset in changed]
    while ahead:
        found = [name for name in children.get(ahead.pop(), ()) if name not in reached]
        reached.update(found)
        ahead += found
    expected = {
        name
        for name in reached & set(nodes)
        if nodes[name]["config"]["materialized"] != "view"
        and OF_THE_MODELS not in nodes[name]["tags"]
    }

    listed = run_dbt_list(
        settings,
        *("--select", *selection("coffee_chain", changed).split()),
        *("--exclude", f"tag:{OF_THE_MODELS}"),
    )

    tables = {
        name
        for name, node in nodes.items()
        if node["resource_type"] == "model"
        and node["fqn"][1] == "coffee_chain"
        and node["config"]["materialized"] != "view"
    }
    part = reduced(manifest, "coffee_chain")
    assert {x["unique_id"] for x in tables_left_out(part, changed)} == tables - listed
    assert "model.retail_assets.fact_sales" in expected
    assert "test.retail_assets.fact_sales_holds_every_line" in expected
    assert "test.retail_assets.personal_data_stops_at_the_customers" in reached - expected
    assert listed == expected


def run_dbt_list(settings: Settings, *options: str) -> set[str]:
    """What dbt itself selects."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "retail_assets.cli", "dbt", "--quiet", "list"),
            *options,
            *("--resource-types", "model", "--resource-types", "test"),
            *("--output", "json", "--output-keys", "unique_id"),
        ],
        env=os.environ | {"RETAIL_HOME": str(settings.home)},
        capture_output=True,
        text=True,
        check=True,
    )
    return {json.loads(line)["unique_id"] for line in done.stdout.splitlines() if line[:1] == "{"}

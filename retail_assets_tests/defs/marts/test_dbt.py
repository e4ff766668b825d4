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

from retail_assets.defs.marts.dbt import build_defs
from retail_assets.defs.marts.dbt import models_of as reduced
from retail_assets.defs.online_retail.contract import ONLINE_RETAIL_DATA
from retail_assets.defs.online_retail.domain import OnlineRetail
from retail_assets.domain import MartsPlan
from retail_assets.resources.dbt import dbt_resource, prepare_project
from retail_assets.resources.dbt_cli import LeanDbtCliResource
from retail_assets.resources.warehouse import DuckDBWarehouse, WarehouseResource
from retail_assets.settings import DBT_PROJECT_DIR, Settings, load_settings

FACT = dg.AssetKey(["online_retail_core", "fact_returns"])
VERSIONS = {"2010-12-01": "a", "2010-12-02": "b"}


class Planned(OnlineRetail):
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

    def cli(self, arguments: list[str], **_: object) -> "Build":
        self.arguments = arguments
        self.windows = {
            name: json.loads(value)
            for name, value in os.environ.items()
            if name.startswith("DBT_") and name.endswith("_WINDOW")
        }
        return self

    def stream(self) -> Iterator[object]:
        return iter(())


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    # Dagster resolves definitions by the instance that was entered last: let that be a live one.
    with dg.DagsterInstance.ephemeral():
        yield load_settings(home=tmp_path_factory.mktemp("home"))


def models_of(settings: Settings) -> dg.AssetsDefinition:
    (found,) = build_defs(settings, [Planned()]).assets or ()
    assert isinstance(found, dg.AssetsDefinition)
    return found


def test_a_domain_has_one_definition_of_all_its_models(settings: Settings) -> None:
    models = models_of(settings)

    files = (DBT_PROJECT_DIR / "models" / "online_retail").rglob("*.sql")
    assert models.node_def.name == "online_retail_dbt_models"
    assert {key.path[-1] for key in models.keys} == {path.stem for path in files}
    assert {spec.group_name for spec in models.specs} == {"online_retail"}


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
    assert recorded(warehouse) == ({"marts": VERSIONS} if whole else {})
    assert not [name for name in os.environ if name.endswith("_WINDOW")]


@pytest.mark.parametrize("domain", ["online_retail", "coffee_chain", "supply_chain"])
def test_what_dbt_selects_by_the_domains_path_is_in_its_part_of_the_manifest(
    settings: Settings, domain: str
) -> None:
    manifest = json.loads(prepare_project(settings).read_bytes())
    listed = run_dbt_list(settings, domain)

    part = reduced(manifest, domain)["nodes"]

    assert listed == {name for name in part if not name.startswith("unit_test.")}


def run_dbt_list(settings: Settings, domain: str) -> set[str]:
    """What dbt itself selects of a domain."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "retail_assets.cli", "dbt", "--quiet", "list"),
            *("--select", f"path:models/{domain}"),
            *("--resource-types", "model", "--resource-types", "test"),
            *("--output", "json", "--output-keys", "unique_id"),
        ],
        env=os.environ | {"RETAIL_HOME": str(settings.home)},
        capture_output=True,
        text=True,
        check=True,
    )
    return {json.loads(line)["unique_id"] for line in done.stdout.splitlines() if line[:1] == "{"}

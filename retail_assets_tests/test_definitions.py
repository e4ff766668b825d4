"""What Dagster is given: it loads, it is light, and its lineage has no gap."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
import yaml

from retail_assets.definitions import build_defs
from retail_assets.settings import load_settings
from retail_assets_tests.conftest import PROJECT

RAW = dg.AssetKey(["online_retail", "raw_online_retail"])
UPSTREAM = {
    "raw_online_retail": set(),
    "processed_online_retail_data": {"raw_online_retail"},
    "online_retail_data": {"processed_online_retail_data"},
    "stg_online_retail_data": {"online_retail_data"},
    "fact_online_retail_data_partitioned_clustered": {"stg_online_retail_data"},
    "fact_online_retail_data_unpartitioned": {"stg_online_retail_data"},
    "fact_returns": {"stg_online_retail_data"},
    "dim_product": {
        "stg_online_retail_data",
        "fact_online_retail_data_partitioned_clustered",
    },
    "dim_customer": {
        "stg_online_retail_data",
        "fact_online_retail_data_partitioned_clustered",
    },
    "daily_revenue": {"fact_online_retail_data_partitioned_clustered", "fact_returns"},
    "country_revenue": {"fact_online_retail_data_partitioned_clustered", "fact_returns"},
    "product_ranking": {"dim_product", "fact_online_retail_data_partitioned_clustered"},
    "monthly_cohort_retention": {"fact_online_retail_data_partitioned_clustered"},
}


@pytest.fixture(scope="module")
def defs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.Definitions]:
    """The definitions of default settings in an empty home."""
    # Dagster resolves definitions by the instance that was entered last: let that be a live one.
    with dg.DagsterInstance.ephemeral():
        yield build_defs(load_settings(home=tmp_path_factory.mktemp("home")))


def test_the_code_location_loads(defs: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(defs)


def test_lineage_is_unbroken_from_source_to_marts(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    found = {
        key.path[-1]: {parent.path[-1] for parent in graph.get(key).parent_keys}
        for key in graph.materializable_asset_keys
    }
    assert found == UPSTREAM
    assert graph.get_all_asset_keys() == graph.materializable_asset_keys  # nothing from nowhere


def test_partitioned_assets_take_a_range_in_one_run(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    partitioned = [graph.get(key) for key in graph.get_all_asset_keys()]
    policies = {
        node.key.path[-1]: node.backfill_policy for node in partitioned if node.is_partitioned
    }
    assert policies == {
        "processed_online_retail_data": dg.BackfillPolicy.single_run(),
        "online_retail_data": dg.BackfillPolicy.single_run(),
    }


def test_every_dbt_test_is_a_check_of_its_model(defs: dg.Definitions) -> None:
    checks = {key.name for key in defs.resolve_asset_graph().asset_check_keys}
    singular = {path.stem for path in (PROJECT / "dbt_project/tests").rglob("*/*.sql")}
    singular -= {path.stem for path in (PROJECT / "dbt_project/tests/generic").glob("*.sql")}
    assert len(singular) >= 10
    assert singular <= checks


def test_checks_of_the_lake_block_what_is_downstream(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    blocking = {key.name for key in graph.asset_check_keys if graph.get(key).blocking}
    assert blocking >= {"ledger_balances", "schema_matches_contract"}


def test_personal_columns_are_tagged_in_the_ui(defs: dg.Definitions) -> None:
    specs = {spec.key.path[-1]: spec for spec in defs.resolve_all_asset_specs()}
    schema = specs["online_retail_data"].metadata["dagster/column_schema"]
    columns = {column.name: column.tags for column in schema.columns}
    assert columns["customer_id"] == {"pii": "true"}
    assert columns["quantity"] == {}


def test_workspace_and_dg_name_the_same_module() -> None:
    workspace: dict[str, Any] = yaml.safe_load((PROJECT / "workspace.yaml").read_text())
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["dg"]["project"]
    (entry,) = workspace["load_from"]
    assert entry["python_module"] == {
        "module_name": f"{project['root_module']}.definitions",
        "location_name": project["code_location_name"],
    }


def test_loading_imports_nothing_heavy() -> None:
    code = """
import json, sys
from retail_assets.definitions import defs
defs().get_repository_def()
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    heavy = {"pyspark", "pysail", "pandas", "duckdb", "pyarrow", "fastexcel", "xlsxwriter"}
    assert not loaded & heavy
    assert not loaded & {"dbt.cli", "dbt.adapters.duckdb"}
    # google.protobuf comes with dagster-dbt's own imports; the empty packages above it are names.
    google = {name for name in loaded if name.startswith("google.")}
    assert not {n for n in google if not n.startswith(("google.protobuf", "google._upb"))} - {
        "google.cloud"
    }

"""What Dagster is given: it loads, it is light, and its lineage has no gap."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from retail_assets.definitions import build_defs
from retail_assets.defs.registry import domains
from retail_assets.feeds.landing import landed_key
from retail_assets.settings import load_settings
from retail_assets_tests.conftest import PROJECT

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
    "processed_outlet": {"raw_outlet"},
    "processed_product": {"raw_product"},
    "processed_customer": {"raw_drops"},
    "processed_sales": {"raw_drops"},
    "outlet": {"processed_outlet"},
    "product": {"processed_product"},
    "customer": {"processed_customer"},
    "sales": {"processed_sales"},
    "stg_outlet": {"outlet"},
    "stg_product": {"product"},
    "stg_customer": {"customer"},
    "stg_sales": {"sales"},
    "coffee_chain_dim_outlet": {"stg_outlet"},
    "coffee_chain_dim_product": {"stg_product"},
    "coffee_chain_dim_customer": {"stg_customer"},
    "fact_sales": {
        "stg_sales",
        "coffee_chain_dim_outlet",
        "coffee_chain_dim_product",
        "coffee_chain_dim_customer",
    },
    "state_revenue": {"fact_sales"},
    "age_group_purchase": {"fact_sales"},
}
STAR = ("customer", "product", "location", "shipping", "department", "metadata")
STAR_TABLES = (*(f"dim_{name}" for name in STAR), "fact_order")
# By their whole keys: a table of the star has one name in the lake and in the warehouse.
SUPPLY_CHAIN = {
    "raw_streaming/supply_chain_data": {"supply_chain/topic"},
    "operational_db/supply_chain_messages": {"supply_chain/topic"},
    **{f"transformed_data/{name}": {"raw_streaming/supply_chain_data"} for name in STAR_TABLES},
    **{f"supply_chain/{name}": {f"transformed_data/{name}"} for name in STAR_TABLES},
    **{f"supply_chain_staging/stg_{name}": {f"supply_chain/{name}"} for name in STAR_TABLES},
    **{
        f"supply_chain_core/{mart}": {f"supply_chain_staging/stg_{name}" for name in sources}
        for mart, sources in {
            "inventory_levels": ("fact_order", "dim_product"),
            "customer_retention_rate": ("fact_order",),
            "financial_commitments": ("fact_order",),
            "fraud_detection": ("fact_order",),
            "overall_performance": ("fact_order", "dim_shipping"),
            "shipping_delays": ("fact_order", "dim_shipping"),
        }.items()
    },
}
# Files that others deliver, and the topic that others send to: nothing here makes them.
EXTERNAL = {
    *(dg.AssetKey(["coffee_chain", name]) for name in ("raw_drops", "raw_outlet", "raw_product")),
    dg.AssetKey(["supply_chain", "topic"]),
}


@pytest.fixture(scope="module")
def defs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.Definitions]:
    """The definitions of default settings in an empty home."""
    # Dagster resolves definitions by the instance that was entered last: let that be a live one.
    with dg.DagsterInstance.ephemeral():
        yield build_defs(load_settings(home=tmp_path_factory.mktemp("home")))


def test_the_code_location_loads(defs: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(defs)


def test_definitions_are_those_of_the_chosen_domains_alone(
    defs: dg.Definitions, tmp_path_factory: pytest.TempPathFactory
) -> None:
    empty = build_defs(load_settings(home=tmp_path_factory.mktemp("home")), domains=[])

    assert not empty.resolve_asset_graph().get_all_asset_keys()
    assert set(empty.resources or ()) == {"lake", "warehouse", "dbt"}
    own = {name for domain in domains() for name in domain.resources(load_settings())}
    assert set(defs.resources or ()) == {"lake", "warehouse", "dbt"} | own


def test_lineage_is_unbroken_from_source_to_marts(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    found = {
        key.path[-1]: {parent.path[-1] for parent in graph.get(key).parent_keys}
        for key in graph.materializable_asset_keys
        if graph.get(key).group_name != "supply_chain"
    }
    assert found == UPSTREAM
    found = {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.materializable_asset_keys
        if graph.get(key).group_name == "supply_chain"
    }
    assert found == SUPPLY_CHAIN
    # Nothing from nowhere.
    assert graph.get_all_asset_keys() == graph.materializable_asset_keys | EXTERNAL
    assert graph.external_asset_keys == EXTERNAL
    assert {graph.get(key).group_name for key in graph.get_all_asset_keys()} == {
        domain.name for domain in domains()
    }


def test_partitioned_assets_take_a_range_in_one_run(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    partitioned = [graph.get(key) for key in graph.get_all_asset_keys()]
    policies = {
        node.key.path[-1]: node.backfill_policy
        for node in partitioned
        if node.is_partitioned and node.key not in EXTERNAL
    }
    single_run = dg.BackfillPolicy.single_run()
    assert policies == {
        "processed_online_retail_data": single_run,
        "processed_customer": single_run,
        "processed_sales": single_run,
    }
    # Without it Dagster's own command takes no range of them together with the landed table.
    landed = [landed_key(dataset) for domain in domains() for dataset in domain.datasets]
    assert all(graph.get(key).backfill_policy == single_run for key in landed)


def test_each_domain_has_its_jobs_schedules_and_sensors(defs: dg.Definitions) -> None:
    repository = defs.get_repository_def()

    assert {name for name in repository.job_names if not name.startswith("__")} == {
        "online_retail",
        "online_retail_source_to_lake",
        "online_retail_lake_to_warehouse",
        "online_retail_changed_days",
        "online_retail_days_to_marts",
        "online_retail_marts",
        "coffee_chain",
        "coffee_chain_small_files",
        "coffee_chain_large_files",
        "coffee_chain_lake_to_warehouse",
        "coffee_chain_marts",
        "coffee_chain_nightly",
        "coffee_chain_drops_to_marts",
        "supply_chain",
        "supply_chain_messages",
        "olap_transformation_pipeline",
        "gcs_to_bigquery_pipeline",
        "batch_pipeline",
        "supply_chain_marts",
        "prune",
    }
    assert {x.name for x in repository.schedule_defs} == {
        "online_retail_source_to_lake_daily",
        "online_retail_lake_to_warehouse_daily",
        "online_retail_marts_every_12_hours",
        "coffee_chain_drops_nightly",
        "coffee_chain_nightly",
        "batch_pipeline_hourly",
        "prune_nightly",
    }
    assert {x.name for x in repository.sensor_defs} == {
        "online_retail_source_sensor",
        "coffee_chain_drops_sensor",
        "supply_chain_messages_sensor",
        "lost_runs_sensor",
        "alerts_sensor",
        "freshness_sensor",
    }


def test_the_jobs_of_the_coffee_chain_share_its_work_without_rest(defs: dg.Definitions) -> None:
    def selected(job: str) -> set[dg.AssetKey]:
        return set(defs.resolve_job_def(job).asset_layer.selected_asset_keys)

    small, large, marts = (
        selected(f"coffee_chain_{name}") for name in ("small_files", "large_files", "marts")
    )

    assert {key.path[-1] for key in large} == {
        *("processed_customer", "processed_sales", "customer", "sales")
    }
    assert not small & large and not small & marts and not large & marts
    assert selected("coffee_chain") == small | large | marts
    assert selected("coffee_chain_nightly") == small | marts
    load = selected("coffee_chain_lake_to_warehouse")
    assert {key.path[-1] for key in load} == {"outlet", "product", "customer", "sales"}
    assert load < small | large
    # A load of what has not changed costs nothing: outlets that the warehouse lacks come along.
    assert selected("coffee_chain_drops_to_marts") == large | load | marts
    jobs = ("", "_large_files", "_nightly", "_drops_to_marts")
    for job in (f"coffee_chain{suffix}" for suffix in jobs):
        steps = {node.name for node in defs.resolve_job_def(job).nodes}
        assert any(name.endswith("no_drop_was_deleted") for name in steps), job


def test_the_jobs_of_the_supply_chain_share_its_work_without_rest(defs: dg.Definitions) -> None:
    def selected(job: str) -> set[str]:
        keys = defs.resolve_job_def(job).asset_layer.selected_asset_keys
        return {key.to_user_string() for key in keys}

    messages, star, load, marts = (
        selected(job)
        for job in (
            "supply_chain_messages",
            "olap_transformation_pipeline",
            "gcs_to_bigquery_pipeline",
            "supply_chain_marts",
        )
    )

    assert messages == {"raw_streaming/supply_chain_data", "operational_db/supply_chain_messages"}
    assert star == {f"transformed_data/{name}" for name in STAR_TABLES}
    assert load == {f"supply_chain/{name}" for name in STAR_TABLES}
    assert selected("batch_pipeline") == star | load
    assert selected("supply_chain") == messages | star | load | marts == set(SUPPLY_CHAIN)
    assert not marts & (messages | star | load)


def test_every_dbt_test_is_a_check_of_its_model(defs: dg.Definitions) -> None:
    checks = {key.name for key in defs.resolve_asset_graph().asset_check_keys}
    folders = [PROJECT / "dbt_project" / "tests" / domain.name for domain in domains()]
    singular = {path.stem for folder in folders for path in folder.glob("*.sql")}
    assert len(singular) >= 10
    assert singular <= checks


def test_checks_of_the_lake_block_what_is_downstream(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    blocking = {
        (key.asset_key.path[-1], key.name)
        for key in graph.asset_check_keys
        if graph.get(key).blocking
    }
    processed = [name for name in UPSTREAM if name.startswith("processed_")]
    assert len(processed) == 5
    for name in processed:
        assert {(name, "ledger_balances"), (name, "schema_matches_contract")} <= blocking
    star = {
        key.asset_key.to_user_string()
        for key in graph.asset_check_keys
        if key.name == "star_matches_contract" and graph.get(key).blocking
    }
    assert star == {f"transformed_data/{name}" for name in STAR_TABLES}


def test_personal_columns_are_tagged_in_the_ui(defs: dg.Definitions) -> None:
    specs = {
        spec.key.path[-1]: spec
        for spec in defs.resolve_all_asset_specs()
        if spec.group_name != "supply_chain"  # whose names are others' too
    }
    schema = specs["online_retail_data"].metadata["dagster/column_schema"]
    columns = {column.name: column.tags for column in schema.columns}
    assert columns["customer_id"] == {"pii": "true"}
    assert columns["quantity"] == {}
    for name in ("processed_customer", "customer"):
        schema = specs[name].metadata["dagster/column_schema"]
        personal = {column.name for column in schema.columns if column.tags == {"pii": "true"}}
        assert personal == {"first_name", "last_name", "birthday", "email", "phone_no"}


def test_every_asset_says_its_zone_owners_and_where_it_is_declared(tmp_path: Path) -> None:
    settings = load_settings(
        home=tmp_path, owners="team:retail,ana@example.com", fresh_within_h="coffee_chain=26"
    )
    with dg.DagsterInstance.ephemeral():
        specs = {x.key: x for x in build_defs(settings).resolve_all_asset_specs()}
    topic = specs.pop(dg.AssetKey(["supply_chain", "topic"]))  # nobody here owns it

    assert topic.tags["zone"] == "raw"
    assert {tuple(x.owners) for x in specs.values()} == {("team:retail", "ana@example.com")}
    zones = {x.tags["zone"] for x in specs.values()}
    assert zones == {"raw", "processed", "warehouse", "staging", "marts"}
    for key, spec in specs.items():
        references = spec.metadata["dagster/code_references"].code_references
        assert references and all(Path(x.file_path).is_file() for x in references), key
    late = {x for x, spec in specs.items() if spec.freshness_policy}
    assert late == {
        key
        for key, spec in specs.items()
        if spec.group_name == "coffee_chain" and spec.tags["zone"] in ("warehouse", "marts")
    }
    schema = specs[dg.AssetKey(["coffee_chain_core", "coffee_chain_dim_customer"])].metadata
    tagged = {x.name for x in schema["dagster/column_schema"].columns if x.tags.get("pii")}
    assert tagged == {"first_name", "last_name", "birthday", "email", "phone_no"}


def test_whatever_runs_or_is_checked_says_what_it_is(defs: dg.Definitions) -> None:
    graph, repository = defs.resolve_asset_graph(), defs.get_repository_def()
    checks = {key: graph.get(key).description for key in graph.asset_check_keys}
    assert not [key for key, told in checks.items() if not told]
    named = [*repository.schedule_defs, *repository.sensor_defs]
    named += [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    assert not [x.name for x in named if not x.description]


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
    heavy |= {"confluent_kafka", "psycopg"}
    assert not loaded & heavy
    assert not loaded & {"dbt.cli", "dbt.adapters.duckdb"}
    # google.protobuf comes with dagster-dbt's own imports; the empty packages above it are names.
    google = {name for name in loaded if name.startswith("google.")}
    assert not {n for n in google if not n.startswith(("google.protobuf", "google._upb"))} - {
        "google.cloud"
    }


def test_what_one_machine_bears_once_is_in_a_pool(tmp_path: Path) -> None:
    """The writers of a DuckDB file, and Spark here; BigQuery and a cluster take many at once."""

    def pools(**changes: str) -> dict[str, str]:
        definitions = build_defs(load_settings(home=tmp_path, **changes))
        jobs = (definitions.resolve_job_def(domain.name) for domain in domains())
        ops = (node for job in jobs for node in job.all_node_defs)
        return {op.name: op.pool for op in ops if isinstance(op, dg.OpDefinition) and op.pool}

    here = pools()
    assert {name for name, pool in here.items() if pool == "spark"} == {
        "coffee_chain__processed_customer",
        "coffee_chain__processed_sales",
        "supply_chain_star",
    }
    assert set(here.values()) == {"spark", "warehouse"}
    assert {x for x in here if x.endswith("_dbt_models")} == {
        f"{x.name}_dbt_models" for x in domains()
    }
    assert pools(lake="gs://b-1-2", warehouse="bigquery://shop-1234", spark="sc://a:1") == {}

"""Tests of retail_assets.defs.coffee_chain.contract, and of dbt's sources and models against it."""

from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain.contract import (
    CUSTOMER,
    DOMAIN,
    LANDED,
    OUTLET,
    PRODUCT,
    RAW_CUSTOMER,
    RAW_OUTLET,
    RAW_SALES,
    SALES,
)
from retail_assets.feeds.files import quarantine_of
from retail_assets.settings import DBT_PROJECT_DIR

MODELS = DBT_PROJECT_DIR / "models" / DOMAIN
PERSONAL = {c.name for dataset in LANDED for c in dataset.columns if c.pii}
Json = dict[str, Any]

of_each_table = pytest.mark.parametrize("dataset", LANDED, ids=lambda dataset: dataset.name)


def declared(kind: str) -> list[Json]:
    """The sources or models that the domain's YAML files declare."""
    return [
        entry
        for file in sorted(MODELS.rglob("*.yml"))
        for entry in yaml.safe_load(file.read_text()).get(kind, [])
    ]


def pii(entry: Json) -> set[str]:
    """The columns that are marked as personal."""
    return {c["name"] for c in entry["columns"] if c.get("config", {}).get("meta", {}).get("pii")}


@pytest.fixture(scope="module")
def sources() -> dict[str, Json]:
    """dbt's declaration of each landed table, by schema.name."""
    return {
        f"{source.get('schema', source['name'])}.{table['name']}": table
        for source in declared("sources")
        for table in source["tables"]
    }


@pytest.fixture(scope="module")
def models() -> dict[str, Json]:
    """dbt's models by name."""
    return {model["name"]: model for model in declared("models")}


def test_dbt_reads_the_tables_that_are_loaded(sources: dict[str, Json]) -> None:
    assert set(sources) == {dataset.table for dataset in LANDED}


@of_each_table
def test_dbts_source_has_the_contracts_columns_and_types_in_order(
    sources: dict[str, Json], dataset: Dataset
) -> None:
    columns = sources[dataset.table]["columns"]
    found = {c["name"]: c["data_type"].replace(" ", "").upper() for c in columns}

    assert list(found.items()) == list(dataset.duckdb_columns.items())


@of_each_table
def test_dbts_source_marks_the_contracts_personal_columns(
    sources: dict[str, Json], dataset: Dataset
) -> None:
    assert pii(sources[dataset.table]) == {c.name for c in dataset.columns if c.pii}


@of_each_table
def test_staging_has_the_contracts_columns(models: dict[str, Json], dataset: Dataset) -> None:
    model = models[f"stg_{dataset.name}"]

    assert tuple(c["name"] for c in model["columns"]) == dataset.column_names


def test_personal_columns_are_in_the_customer_models_only(models: dict[str, Json]) -> None:
    carriers = {"stg_customer", "coffee_chain_dim_customer"}
    found = {
        name: {c["name"] for c in model["columns"]} & PERSONAL for name, model in models.items()
    }

    assert {name for name, columns in found.items() if columns} == carriers
    assert {name: pii(models[name]) for name in carriers} == dict.fromkeys(carriers, PERSONAL)
    assert not any(pii(model) for name, model in models.items() if name not in carriers)


def test_every_file_of_a_model_is_declared_with_its_grain(models: dict[str, Json]) -> None:
    assert {file.stem for file in MODELS.rglob("*.sql")} == set(models)
    for name, model in models.items():
        assert model["description"].startswith("Grain: one row a"), name
        assert all(c["description"].endswith(".") and c["data_type"] for c in model["columns"])


def test_names_and_contacts_are_personal() -> None:
    assert {"first_name", "last_name", "birthday", "email", "phone_no"} == PERSONAL


def test_the_tables_are_partitioned_clustered_and_keyed_as_promised() -> None:
    assert [dataset.table.partition(".")[0] for dataset in LANDED] == ["malaysian_coffee_chain"] * 4
    assert [d.partition_by for d in (OUTLET, PRODUCT)] == [None, None]
    assert [d.partition_by for d in (CUSTOMER, SALES)] == ["drop_date", "drop_date"]
    assert SALES.cluster_by == ("outlet_id",)
    keys = {d.name: [c.name for c in d.columns if c.key] for d in LANDED}
    assert keys == {
        "outlet": ["outlet_id"],
        "product": ["product_id"],
        "customer": [],
        "sales": ["sale_line_id"],
    }


def test_raw_files_are_where_they_are_dropped() -> None:
    assert RAW_OUTLET.name() == "raw/coffee_chain/outlets/outlet.csv"
    assert RAW_SALES.name("2019-12-31") == "raw/coffee_chain/sales/sales_data_2019-12-31.csv"
    assert RAW_CUSTOMER.prefix == "raw/coffee_chain/customers/customer_data_"


@of_each_table
def test_quarantine_keeps_the_partition_and_the_text(dataset: Dataset) -> None:
    quarantine = quarantine_of(dataset)

    assert quarantine.folder == dataset.folder
    assert quarantine.partition_by == dataset.partition_by
    assert [c.name for c in quarantine.columns if c.pii] == ["text"]
    assert quarantine.column_names[-4:] == ("file", "reason", "text", "row_stays")


def test_every_column_is_described() -> None:
    for dataset in (*LANDED, *map(quarantine_of, LANDED)):
        for column in dataset.columns:
            assert column.description.endswith((".", "..."))

"""Tests of retail_assets.defs.online_retail.contract, and of dbt's sources against it."""

from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from retail_assets.defs.online_retail.contract import (
    LINE_TYPES,
    ONLINE_RETAIL_DATA,
    SOURCE_COLUMNS,
)
from retail_assets.defs.online_retail.feed import FEED
from retail_assets.settings import DBT_PROJECT_DIR


@pytest.fixture(scope="module")
def dbt_source() -> dict[str, Any]:
    """dbt's declaration of the landed table."""
    folder = DBT_PROJECT_DIR / "models" / "online_retail" / "staging"
    tables = [
        {**table, "schema": source.get("schema", source["name"])}
        for file in sorted(folder.glob("*.yml"))
        for source in yaml.safe_load(file.read_text()).get("sources", [])
        for table in source["tables"]
    ]
    (found,) = [table for table in tables if table["name"] == ONLINE_RETAIL_DATA.name]
    return found


def test_dbt_reads_the_schema_that_is_loaded(dbt_source: dict[str, Any]) -> None:
    assert dbt_source["schema"] == ONLINE_RETAIL_DATA.schema


def test_dbts_source_has_the_contracts_columns_in_order(dbt_source: dict[str, Any]) -> None:
    assert tuple(c["name"] for c in dbt_source["columns"]) == ONLINE_RETAIL_DATA.column_names


def test_dbts_source_has_the_contracts_types(dbt_source: dict[str, Any]) -> None:
    found = {c["name"]: c["data_type"].replace(" ", "").upper() for c in dbt_source["columns"]}

    assert found == ONLINE_RETAIL_DATA.duckdb_columns


def test_dbts_source_marks_the_contracts_personal_columns(dbt_source: dict[str, Any]) -> None:
    found = {
        c["name"] for c in dbt_source["columns"] if c.get("config", {}).get("meta", {}).get("pii")
    }

    assert found == {c.name for c in ONLINE_RETAIL_DATA.columns if c.pii} == {"customer_id"}


def test_staging_accepts_the_contracts_line_types() -> None:
    folder = DBT_PROJECT_DIR / "models" / "online_retail" / "staging"
    (model,) = yaml.safe_load((folder / "stg_online_retail_data.yml").read_text())["models"]
    (column,) = [c for c in model["columns"] if c["name"] == "line_type"]
    (values,) = [
        test["accepted_values"]["arguments"]["values"]
        for test in column["data_tests"]
        if "accepted_values" in test
    ]

    assert set(values) == set(LINE_TYPES)


def test_the_table_is_partitioned_clustered_and_keyed_as_promised() -> None:
    assert ONLINE_RETAIL_DATA.table == "online_retail.online_retail_data"
    assert ONLINE_RETAIL_DATA.partition_by == "invoice_date"
    assert ONLINE_RETAIL_DATA.cluster_by == ("customer_id",)
    assert [c.name for c in ONLINE_RETAIL_DATA.columns if c.key] == ["transaction_id"]
    assert not any(c.nullable for c in ONLINE_RETAIL_DATA.columns)


def test_money_is_decimal() -> None:
    types = {c.name: c.type for c in ONLINE_RETAIL_DATA.columns}

    assert (types["unit_price"], types["total_price"]) == ("decimal(12,3)", "decimal(18,3)")


def test_every_column_is_described() -> None:
    for dataset in (ONLINE_RETAIL_DATA, FEED.quarantine):
        assert all(column.description.endswith(".") for column in dataset.columns)


def test_no_spelling_of_a_source_column_means_two() -> None:
    spellings = [s.casefold() for names in SOURCE_COLUMNS.values() for s in names]

    assert len(spellings) == len(set(spellings))


def test_the_quarantine_of_a_table_lies_in_a_folder_of_its_name() -> None:
    assert FEED.quarantine.folder == ONLINE_RETAIL_DATA.folder == "online_retail/online_retail_data"


def test_quarantined_text_is_personal() -> None:
    assert [c.name for c in FEED.quarantine.columns if c.pii] == ["text"]

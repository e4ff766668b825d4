"""Tests of retail_assets.resources.warehouse.bigquery: what Google's own client sends and survives.

The server is bigquery_server.py's; statements are parsed by sqlglot's BigQuery dialect too.
"""

import datetime as dt
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlglot
from hypothesis import given
from hypothesis import strategies as st

from retail_assets.dataset import Column, Dataset
from retail_assets.defs.online_retail.contract import ONLINE_RETAIL_DATA
from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.warehouse import (
    LoadResult,
    Origin,
    WarehouseSchemaError,
    bigquery,
    jobs,
    open_warehouse,
)
from retail_assets.resources.warehouse.bigquery import (
    PARTITIONS_A_JOB,
    URIS_A_LOAD_JOB,
    BigQueryWarehouse,
)
from retail_assets.resources.warehouse.jobs import (
    LABEL_CHARACTERS,
    WarehouseAccessError,
    WarehouseLocationError,
    WarehouseQueryError,
    WarehouseUnavailableError,
    label,
)
from retail_assets.resources.warehouse.statements import record_statements, swap_statements
from retail_assets.settings import load_settings
from retail_assets_tests.bigquery_server import PROJECT, BigQueryServer, Fault, JobFault

SALES = Dataset(
    schema="shop",
    name="sales",
    description="Sales.",
    partition_by="day",
    cluster_by=("id",),
    columns=(
        Column("id", "int64", "Key."),
        Column("day", "date", "Day."),
        Column("price", "decimal(12,3)", "Pounds."),
    ),
)
SHOPS = Dataset(
    schema="landed_shop",
    domain="shop",
    name="shops",
    description="Shops.",
    columns=(Column("id", "int64", "Key."),),
)
NOTED = replace(SALES, columns=(*SALES.columns, Column("note", "string", "New.", nullable=True)))
FIELDS = [
    {"name": "id", "type": "INTEGER", "mode": "REQUIRED", "description": "Key."},
    {"name": "day", "type": "DATE", "mode": "REQUIRED", "description": "Day."},
    {
        "name": "price",
        "type": "NUMERIC",
        "mode": "REQUIRED",
        "description": "Pounds.",
        "precision": "12",
        "scale": "3",
    },
]
D1, D2, D3 = "2011-01-01", "2011-01-02", "2011-01-03"
RUN = Origin("0f1e2d3c-run", "shop/Sales")
ONE, TWO = "gs://lake/one.parquet", "gs://lake/two.parquet"
FILES = {ONE: {D1: 2}, TWO: {D2: 3}}
LABELS = {
    "managed-by": "retail-assets",
    "run_id": "0f1e2d3c-run",
    "asset": "shop_sales",
    "domain": "shop",
}
RECORD = f"`{PROJECT}.retail_operations.loaded_partitions`"
TABLE = f"`{PROJECT}.shop.sales`"
SHOPS_TABLE = f"`{PROJECT}.landed_shop.shops`"


@pytest.fixture
def server() -> Iterator[BigQueryServer]:
    with BigQueryServer(files=dict(FILES)).run() as running:
        yield running


@pytest.fixture
def warehouse(server: BigQueryServer) -> BigQueryWarehouse:
    return BigQueryWarehouse(
        project=PROJECT,
        location="EU",
        max_bytes_billed=10**9,
        emulator_host=server.address,
        request_s=5,
        retry_s=1,
        job_s=5,
        first_wait_s=0.004,
    )


def of_a_call(name: str) -> str:
    """A job's or a staging table's name without what tells one call from another."""
    return re.sub(r"_[0-9a-f]{32}$", "", name)


# --- the requests, as they are sent ---


def test_the_settings_name_the_warehouse() -> None:
    found = open_warehouse(
        load_settings(
            lake="gs://lake",
            warehouse="bigquery://my-project?location=europe-west1",
            bigquery_max_bytes_billed=5,
            BIGQUERY_EMULATOR_HOST="http://localhost:9050",
        )
    )

    assert isinstance(found, BigQueryWarehouse)
    assert (found.project, found.location) == ("my-project", "europe-west1")
    assert (found.max_bytes_billed, found.emulator_host) == (5, "http://localhost:9050")


def test_one_key_is_one_load_into_its_partition(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    loaded = warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)

    (sent,) = server.inserted("load")
    name = sent["jobReference"]["jobId"]
    assert of_a_call(name) == "retail_shop_sales_load"
    assert sent == {
        "jobReference": {"projectId": PROJECT, "jobId": name, "location": "EU"},
        "configuration": {
            "load": {
                "sourceUris": [ONE],
                "sourceFormat": "PARQUET",
                "schema": {"fields": FIELDS},
                "destinationTable": {
                    "projectId": PROJECT,
                    "datasetId": "shop",
                    "tableId": "sales$20110101",
                },
                "writeDisposition": "WRITE_TRUNCATE",
                "timePartitioning": {"type": "DAY", "field": "day"},
                "clustering": {"fields": ["id"]},
            },
            "labels": LABELS,
        },
    }
    assert loaded.rows == {D1: 2}
    assert loaded.metadata == {
        "bytes_loaded": 100,
        "bytes_processed": 10,
        "bytes_billed": 20,
        "bigquery_jobs": list(server.jobs),
    }
    assert [of_a_call(name) for name in server.jobs] == [
        "retail_shop_sales_load",
        "retail_shop_sales_record",
    ]
    assert server.rows["shop.sales"] == {D1: 2}
    assert warehouse.loaded_versions(SALES) == {D1: "v1"}


def test_datasets_and_tables_are_created_by_the_contract(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)

    shop, operations = (r.body for r in server.sent("POST", "/datasets"))
    assert shop == {
        "datasetReference": {"projectId": PROJECT, "datasetId": "shop"},
        "location": "EU",
        "description": "Tables of Retail Assets.",
        "labels": {"managed-by": "retail-assets", "domain": "shop"},
    }
    assert operations["datasetReference"]["datasetId"] == "retail_operations"
    (table,) = (r.body for r in server.sent("POST", "/datasets/shop/tables"))
    assert table == {
        "tableReference": {"projectId": PROJECT, "datasetId": "shop", "tableId": "sales"},
        "schema": {"fields": FIELDS},
        "description": "Sales.",
        "labels": {"managed-by": "retail-assets", "domain": "shop"},
        "timePartitioning": {"type": "DAY", "field": "day"},
        "clustering": {"fields": ["id"]},
    }
    warehouse.replace_partitions(SALES, [TWO], {D2: "v1"}, RUN)
    assert len(server.sent("POST", "/datasets")) == 2
    assert len(server.sent("POST", "/tables")) == 2


def test_a_range_is_staged_and_swapped_in_one_transaction(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    versions = {D1: "v1", D2: "v2", "2011-02-01": ""}
    loaded = warehouse.replace_partitions(SALES, [ONE, TWO], versions, RUN)

    table = server.sent("POST", "/datasets/retail_operations/tables")[-1].body
    staging = table["tableReference"]["tableId"]
    assert of_a_call(staging) == "stage_shop_sales"
    life = int(table["expirationTime"]) / 1000 - time.time()
    assert 23 * 3600 < life <= 24 * 3600
    assert "timePartitioning" not in table
    (load,) = server.inserted("load")
    assert of_a_call(load["jobReference"]["jobId"]) == "retail_shop_sales_stage0"
    assert load["configuration"]["load"] == {
        "sourceUris": [ONE, TWO],
        "sourceFormat": "PARQUET",
        "schema": {"fields": FIELDS},
        "destinationTable": {
            "projectId": PROJECT,
            "datasetId": "retail_operations",
            "tableId": staging,
        },
        "writeDisposition": "WRITE_TRUNCATE",
    }
    swap = server.inserted("query")[-1]
    where = (
        "`day` BETWEEN DATE '2011-01-01' AND DATE '2011-01-02'"
        " OR `day` BETWEEN DATE '2011-02-01' AND DATE '2011-02-01'"
    )
    from_staging = f"`{PROJECT}.retail_operations.{staging}`"
    assert swap == {
        "jobReference": {
            "projectId": PROJECT,
            "jobId": list(server.jobs)[2],
            "location": "EU",
        },
        "configuration": {
            "query": {
                "query": (
                    "BEGIN TRANSACTION;\n"
                    f"DELETE FROM {TABLE} WHERE {where};\n"
                    f"INSERT INTO {TABLE} (`id`, `day`, `price`)"
                    f" SELECT `id`, `day`, `price` FROM {from_staging} WHERE {where};\n"
                    f'DELETE FROM {RECORD} WHERE table_name = "shop.sales" AND stage = "landed"'
                    ' AND partition_key IN ("2011-01-01", "2011-01-02", "2011-02-01");\n'
                    f"INSERT INTO {RECORD} (table_name, stage, partition_key, version)"
                    ' SELECT "shop.sales", "landed", entry.partition_key, entry.version'
                    " FROM UNNEST(ARRAY<STRUCT<partition_key STRING, version STRING>>["
                    '("2011-01-01", "v1"), ("2011-01-02", "v2"), ("2011-02-01", "")]) AS entry;\n'
                    "COMMIT TRANSACTION;"
                ),
                "useLegacySql": False,
                "maximumBytesBilled": str(10**9),
            },
            "labels": LABELS,
            "jobTimeoutMs": "5000",
        },
    }
    assert loaded.rows == {D1: 2, D2: 3, "2011-02-01": 0}
    assert server.rows["shop.sales"] == {D1: 2, D2: 3}
    assert warehouse.loaded_versions(SALES) == versions
    assert [r.path.rpartition("/")[2] for r in server.sent("DELETE", ".*")] == [staging]


def test_every_statement_is_bigquerys(warehouse: BigQueryWarehouse, server: BigQueryServer) -> None:
    warehouse.replace_partitions(SALES, [ONE, TWO], {D1: "v1", D2: "v1"}, RUN)
    warehouse.replace_table(SALES, [ONE, TWO], {D1: "v1", D2: "v1"}, RUN)
    warehouse.record_versions(SALES, "marts", {D1: "v1"})
    warehouse.loaded_versions(SALES)
    warehouse.row_counts()

    texts = [body["configuration"]["query"]["query"] for body in server.inserted("query")]
    assert len(texts) == 8
    for text in texts:
        for statement in sqlglot.parse(text, dialect="bigquery"):
            assert statement is not None
            plain = statement.key in ("transaction", "commit")
            assert plain or statement.key in ("delete", "insert", "select", "union"), statement


def test_every_query_job_has_its_limit_and_labels(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    warehouse.replace_partitions(SALES, [ONE, TWO], {D1: "v1", D2: "v1"}, RUN)
    warehouse.loaded_versions(SALES)
    warehouse.record_versions(SALES, "marts", {D1: "v1"})
    warehouse.query("SELECT 1")

    bodies = server.inserted("query")
    assert len(bodies) == 5
    for body in bodies:
        assert body["configuration"]["query"]["maximumBytesBilled"] == str(10**9)
        assert body["configuration"]["labels"]["managed-by"] == "retail-assets"


def test_no_limit_is_sent_where_none_is_set(server: BigQueryServer) -> None:
    free = BigQueryWarehouse(project=PROJECT, location="EU", emulator_host=server.address)

    free.query("SELECT 1")

    assert "maximumBytesBilled" not in server.inserted("query")[0]["configuration"]["query"]


# --- what the table holds afterwards ---


def test_only_the_partitions_asked_for_change(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    warehouse.replace_partitions(SALES, [ONE, TWO], {D1: "v1", D2: "v1"}, RUN)
    server.files["gs://lake/new"] = {D2: 9}

    warehouse.replace_partitions(SALES, ["gs://lake/new"], {D2: "v2", D3: ""}, RUN)

    assert server.rows["shop.sales"] == {D1: 2, D2: 9}
    assert warehouse.loaded_versions(SALES) == {D1: "v1", D2: "v2", D3: ""}


@pytest.mark.parametrize("days", [[D1], [D1, D2]])
def test_no_files_empty_the_partitions_by_literal_bounds(
    warehouse: BigQueryWarehouse, server: BigQueryServer, days: list[str]
) -> None:
    warehouse.replace_partitions(SALES, [ONE, TWO], {D1: "v1", D2: "v1"}, RUN)
    loads = len(server.ran("load"))

    emptied = warehouse.replace_partitions(SALES, [], dict.fromkeys(days, ""), RUN)

    assert emptied.rows == dict.fromkeys(days, 0)
    assert not set(days) & set(server.rows["shop.sales"])
    assert len(server.ran("load")) == loads
    script = server.scripts()[-1]
    assert f"BETWEEN DATE '{days[0]}' AND DATE '{days[-1]}'" in script
    assert f"INSERT INTO {TABLE}" not in script
    assert warehouse.loaded_versions(SALES) == {D1: "v1", D2: "v1"} | dict.fromkeys(days, "")


def test_the_whole_table_is_one_load_that_truncates(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    server.files[ONE] = {D1: 2, D3: 1}
    warehouse.replace_partitions(SALES, [ONE], {D1: "v1", D3: "v1"}, RUN)
    warehouse.record_versions(SALES, "marts", {D1: "v1"})
    server.files[ONE] = {D1: 2}
    before = len(server.ran("load"))

    loaded = warehouse.replace_table(NOTED, [ONE, TWO], {D1: "v9", D2: "v9"}, RUN)

    assert loaded.rows == {D1: 2, D2: 3}
    (load,) = server.ran("load")[before:]
    assert load["configuration"]["load"]["destinationTable"]["tableId"] == "sales"
    assert load["configuration"]["load"]["writeDisposition"] == "WRITE_TRUNCATE"
    assert load["configuration"]["load"]["schema"]["fields"][-1]["name"] == "note"
    assert server.rows["shop.sales"] == {D1: 2, D2: 3}
    assert warehouse.loaded_versions(NOTED) == {D1: "v9", D2: "v9"}
    assert warehouse.loaded_versions(NOTED, "marts") == {}


def test_a_table_of_another_layout_is_created_anew_after_its_files_were_staged(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)
    other = replace(SALES, cluster_by=("price",))

    warehouse.replace_table(other, [ONE, TWO], {D1: "v2", D2: "v2"}, RUN)

    assert server.tables["shop.sales"]["clustering"] == {"fields": ["price"]}
    assert server.rows["shop.sales"] == {D1: 2, D2: 3}
    assert warehouse.loaded_versions(other) == {D1: "v2", D2: "v2"}
    bodies = [json.dumps(r.body) for r in server.requests]
    stage = next(i for i, body in enumerate(bodies) if "stage0" in body)
    forgotten = next(i for i, body in enumerate(bodies) if "renew" in body)
    gone = server.requests.index(server.sent("DELETE", "/datasets/shop/tables/sales")[0])
    assert stage < forgotten < gone
    assert server.tables["shop.sales"]["schema"]["fields"] == FIELDS


def test_a_table_of_no_files_is_empty(warehouse: BigQueryWarehouse, server: BigQueryServer) -> None:
    warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)

    assert warehouse.replace_table(SALES, [], {D1: ""}, RUN).rows == {D1: 0}

    assert server.rows["shop.sales"] == {}
    assert warehouse.loaded_versions(SALES) == {D1: ""}


def test_versions_of_what_is_not_there(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    assert warehouse.loaded_versions(SALES) == {}
    warehouse.record_versions(SALES, "marts", {D1: "v1"})
    assert warehouse.loaded_versions(SALES, "marts") == {}
    assert server.inserted("load") == []


def test_versions_are_kept_by_stage(warehouse: BigQueryWarehouse) -> None:
    warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)
    warehouse.record_versions(SALES, "marts", {D1: "v0", D2: "v0"})
    warehouse.record_versions(SALES, "marts", {D1: "v1"})

    assert warehouse.loaded_versions(SALES) == {D1: "v1"}
    assert warehouse.loaded_versions(SALES, "marts") == {D1: "v1", D2: "v0"}


def test_exclusive_holds_nothing(warehouse: BigQueryWarehouse, server: BigQueryServer) -> None:
    with warehouse.exclusive(timeout_s=0.1), warehouse.exclusive(timeout_s=0.1):
        pass

    assert server.requests == []


# --- a table without partitions ---


@pytest.fixture
def shops(server: BigQueryServer) -> dict[int, list[str]]:
    """Files of a table without partitions, by the rows that they hold together."""
    server.files |= {f"gs://lake/shops-{n}": {"": n} for n in (1, 2, 5)}
    return {0: [], 3: ["gs://lake/shops-1", "gs://lake/shops-2"], 5: ["gs://lake/shops-5"]}


def test_a_table_without_partitions_is_one_load_that_truncates(
    warehouse: BigQueryWarehouse, server: BigQueryServer, shops: dict[int, list[str]]
) -> None:
    loaded = warehouse.replace_partitions(SHOPS, shops[3], {"": "v1"}, RUN)

    (sent,) = server.inserted("load")
    assert sent == {
        "jobReference": {
            "projectId": PROJECT,
            "jobId": next(iter(server.jobs)),
            "location": "EU",
        },
        "configuration": {
            "load": {
                "sourceUris": shops[3],
                "sourceFormat": "PARQUET",
                "schema": {"fields": FIELDS[:1]},
                "destinationTable": {
                    "projectId": PROJECT,
                    "datasetId": "landed_shop",
                    "tableId": "shops",
                },
                "writeDisposition": "WRITE_TRUNCATE",
            },
            "labels": LABELS,
        },
    }
    (script,) = server.scripts()
    assert script == (
        "BEGIN TRANSACTION;\n"
        f'DELETE FROM {RECORD} WHERE table_name = "landed_shop.shops" AND stage = "landed"'
        ' AND partition_key IN ("");\n'
        f"INSERT INTO {RECORD} (table_name, stage, partition_key, version)"
        ' SELECT "landed_shop.shops", "landed", entry.partition_key, entry.version'
        " FROM UNNEST(ARRAY<STRUCT<partition_key STRING, version STRING>>"
        '[("", "v1")]) AS entry;\n'
        "COMMIT TRANSACTION;"
    )
    assert [of_a_call(name) for name in server.jobs] == [
        "retail_landed_shop_shops_load",
        "retail_landed_shop_shops_record",  # after it
    ]
    assert loaded.rows == {"": 3}
    assert warehouse.loaded_versions(SHOPS) == {"": "v1"}


@pytest.mark.parametrize("whole", [False, True])
def test_a_table_without_partitions_holds_what_was_loaded_last(
    warehouse: BigQueryWarehouse,
    server: BigQueryServer,
    shops: dict[int, list[str]],
    whole: bool,
) -> None:
    change = warehouse.replace_table if whole else warehouse.replace_partitions
    warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)
    for number, count in enumerate((3, 3, 5, 0, 0, 3)):
        run = replace(RUN, run_id=f"run-{number}")

        assert change(SHOPS, shops[count], {"": f"v{number}"}, run).rows == {"": count}

        assert sum(server.rows["landed_shop.shops"].values()) == count
        assert warehouse.loaded_versions(SHOPS) == {"": f"v{number}"}
    assert server.rows["shop.sales"] == {D1: 2}
    assert not [name for name in server.tables if "stage_" in name]


def test_no_files_empty_a_table_without_partitions_with_its_record(
    warehouse: BigQueryWarehouse, server: BigQueryServer, shops: dict[int, list[str]]
) -> None:
    warehouse.replace_partitions(SHOPS, shops[5], {"": "v1"}, RUN)

    warehouse.replace_partitions(SHOPS, [], {"": "v2"}, RUN)

    assert len(server.ran("load")) == 1
    first, second, *record, last = server.scripts()[-1].split(";\n")
    assert (first, second) == ("BEGIN TRANSACTION", f"DELETE FROM {SHOPS_TABLE} WHERE TRUE")
    assert [text.split()[0] for text in record] == ["DELETE", "INSERT"]
    assert last == "COMMIT TRANSACTION;"


@pytest.mark.parametrize("whole", [False, True])
def test_more_files_than_a_job_takes_are_staged_and_swapped_for_the_whole_table(
    warehouse: BigQueryWarehouse,
    server: BigQueryServer,
    shops: dict[int, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    whole: bool,
) -> None:
    warehouse.replace_partitions(SHOPS, shops[5], {"": "v1"}, RUN)
    monkeypatch.setattr(bigquery, "URIS_A_LOAD_JOB", 1)
    change = warehouse.replace_table if whole else warehouse.replace_partitions

    assert change(SHOPS, shops[3], {"": "v2"}, RUN).rows == {"": 3}

    assert server.rows["landed_shop.shops"] == {"": 3}
    assert warehouse.loaded_versions(SHOPS) == {"": "v2"}
    made = server.sent("POST", "/datasets/retail_operations/tables")[-1].body
    staging = made["tableReference"]["tableId"]
    assert made["labels"] == {"managed-by": "retail-assets", "domain": "shop"}
    statements = server.scripts()[-1].split(";\n")
    from_staging = f"`{PROJECT}.retail_operations.{staging}`"
    assert statements[1:3] == [
        f"DELETE FROM {SHOPS_TABLE} WHERE TRUE",
        f"INSERT INTO {SHOPS_TABLE} (`id`) SELECT `id` FROM {from_staging} WHERE TRUE",
    ]
    assert statements[-1] == "COMMIT TRANSACTION;"
    for text in (body["configuration"]["query"]["query"] for body in server.inserted("query")):
        assert None not in sqlglot.parse(text.rstrip(";"), dialect="bigquery")


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("dataset", "versions"),
    [
        (SHOPS, {}),
        (SHOPS, {D1: "v2"}),
        (SHOPS, {"": "v2", D1: "v2"}),
        (SALES, {"": "v2"}),
        (SALES, {"": "v2", D1: "v2"}),
    ],
)
def test_keys_that_are_not_of_the_tables_partitioning_are_refused_unasked(
    warehouse: BigQueryWarehouse,
    server: BigQueryServer,
    dataset: Dataset,
    versions: dict[str, str],
    whole: bool,
) -> None:
    change = warehouse.replace_table if whole else warehouse.replace_partitions

    with pytest.raises(ValueError, match=rf"{dataset.table}: expected keys that are"):
        change(dataset, [], versions, RUN)

    assert server.requests == []


def test_a_table_may_lose_its_partitions_by_a_rebuild(
    warehouse: BigQueryWarehouse, server: BigQueryServer, shops: dict[int, list[str]]
) -> None:
    warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)
    whole = replace(SALES, partition_by=None)

    assert warehouse.replace_table(whole, shops[5], {"": "v2"}, RUN).rows == {"": 5}

    assert server.rows["shop.sales"] == {"": 5}
    assert "timePartitioning" not in server.tables["shop.sales"]
    assert warehouse.loaded_versions(whole) == {"": "v2"}


def test_a_new_nullable_column_is_added_to_a_table_without_partitions_first(
    warehouse: BigQueryWarehouse, server: BigQueryServer, shops: dict[int, list[str]]
) -> None:
    warehouse.replace_partitions(SHOPS, shops[3], {"": "v1"}, RUN)
    town = Column("town", "string", "New.", nullable=True)

    warehouse.replace_partitions(
        replace(SHOPS, columns=(*SHOPS.columns, town)), shops[5], {"": "v2"}, RUN
    )

    (patch,) = server.sent("PATCH", "/datasets/landed_shop/tables/shops")
    assert patch.body["schema"]["fields"][1]["name"] == "town"
    assert server.rows["landed_shop.shops"] == {"": 5}
    with pytest.raises(WarehouseSchemaError, match="unexpected town"):
        warehouse.replace_partitions(SHOPS, shops[3], {"": "v3"}, RUN)
    assert server.rows["landed_shop.shops"] == {"": 5}


@pytest.mark.parametrize(
    ("whole", "changes"),
    [(False, ["load", "record"]), (True, ["table", "count", "renew"])],
)
def test_a_server_that_dies_leaves_a_table_without_partitions_old_or_new(
    warehouse: BigQueryWarehouse,
    server: BigQueryServer,
    shops: dict[int, list[str]],
    whole: bool,
    changes: list[str],
) -> None:
    for nth in range(len(changes)):
        run = replace(RUN, run_id=f"run-{nth}")
        warehouse.replace_partitions(SHOPS, shops[5], {"": "v0"}, run)
        server.faults.append(Fault("POST|PATCH|DELETE", ".*", drop="after", skip=nth, fatal=True))
        hasty = warehouse.model_copy(update={"retry_s": 0.05})
        with pytest.raises(WarehouseUnavailableError):
            (hasty.replace_table if whole else hasty.replace_partitions)(
                SHOPS, shops[3], {"": "v1"}, run
            )
        assert server.rows["landed_shop.shops"] in [{"": 5}, {"": 3}]
        server.dead = False

        change = warehouse.replace_table if whole else warehouse.replace_partitions
        assert change(SHOPS, shops[3], {"": "v1"}, run).rows == {"": 3}

        assert server.rows["landed_shop.shops"] == {"": 3}
        assert warehouse.loaded_versions(SHOPS) == {"": "v1"}


# --- queries ---


def test_the_same_query_twice_is_two_jobs(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    server.answers["SELECT n"] = [[1]]
    assert warehouse.query("SELECT n") == [(1,)]
    server.answers["SELECT n"] = [[2]]
    assert warehouse.query("SELECT n") == [(2,)]


def test_row_counts_are_of_our_datasets_and_dbts_beside_them(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)
    for name in ("shop_core", "somebody_elses", "shopping"):
        reference = {"projectId": PROJECT, "datasetId": name}
        server.datasets[name] = {"datasetReference": reference, "location": "EU"}
        server.tables[f"{name}.fact"] = {"tableReference": reference | {"tableId": "fact"}}
    server.answers["COUNT(*)"] = [["shop.sales", 2], ["shop_core.fact", 1]]

    assert warehouse.row_counts() == {"shop.sales": 2, "shop_core.fact": 1}

    text = server.inserted("query")[-1]["configuration"]["query"]["query"]
    assert text == (
        f"SELECT 'shop.sales', COUNT(*) FROM {TABLE} UNION ALL"
        f" SELECT 'shop_core.fact', COUNT(*) FROM `{PROJECT}.shop_core.fact`"
    )


def test_row_counts_find_dbts_datasets_where_the_landed_one_has_another_name(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    for name in ("shop_core", "shop_staging", "shop", "workshop_core", "shopping_a"):
        reference = {"projectId": PROJECT, "datasetId": name}
        server.datasets[name] = {"datasetReference": reference, "location": "EU"}
        server.tables[f"{name}.t"] = {"tableReference": reference | {"tableId": "t"}}
    warehouse.replace_partitions(SHOPS, [], {"": "v1"}, RUN)

    warehouse.row_counts()

    text = server.inserted("query")[-1]["configuration"]["query"]["query"]
    counted = re.findall(r"SELECT '([\w.]+)', COUNT", text)
    assert counted == ["landed_shop.shops", "shop_core.t", "shop_staging.t"]


def test_labels_say_the_domain_where_the_schema_is_another(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    warehouse.replace_partitions(SHOPS, [], {"": "v1"}, RUN)

    made = [r.body["labels"]["domain"] for r in server.sent("POST", "/datasets(/landed.*)?")]
    assert made == ["shop", "retail_operations", "shop"]
    ran = [job["configuration"]["labels"]["domain"] for job in server.jobs.values()]
    assert ran == ["shop"] * len(server.jobs) and ran


def test_row_counts_of_nothing(warehouse: BigQueryWarehouse, server: BigQueryServer) -> None:
    assert warehouse.row_counts() == {}
    assert server.inserted("query") == []


# --- rows that do not belong, schemas that differ ---


def test_a_row_of_another_day_is_refused_by_the_partition(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)
    server.files["gs://lake/bad"] = {D1: 1, D2: 1}

    with pytest.raises(WarehouseSchemaError, match=r"shop\.sales.*different partitions.*Material"):
        warehouse.replace_partitions(SALES, ["gs://lake/bad"], {D1: "v2"}, RUN)

    assert server.rows["shop.sales"] == {D1: 2}
    assert warehouse.loaded_versions(SALES) == {D1: "v1"}


def test_a_row_of_another_day_is_refused_before_the_swap(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    server.files["gs://lake/bad"] = {D1: 4, D3: 1}

    with pytest.raises(
        WarehouseSchemaError,
        match=r"shop\.sales: the files hold 5 rows, of which 4 belong .*2011-01-03.*Nothing was",
    ):
        warehouse.replace_partitions(SALES, ["gs://lake/bad"], {D1: "v1", D2: "v1"}, RUN)

    assert server.rows["shop.sales"] == {}
    assert server.scripts() == []
    assert warehouse.loaded_versions(SALES) == {}


def test_a_row_of_another_day_in_a_whole_table_is_not_recorded(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    with pytest.raises(WarehouseSchemaError, match=r"hold 5 rows, of which 2 .*2011-01-02"):
        warehouse.replace_table(SALES, [ONE, TWO], {D1: "v1"}, RUN)

    assert warehouse.loaded_versions(SALES) == {}


def test_a_new_nullable_column_is_added_first(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)

    warehouse.replace_partitions(NOTED, [ONE], {D1: "v2"}, RUN)

    (patch,) = server.sent("PATCH", "/datasets/shop/tables/sales")
    added = {"name": "note", "type": "STRING", "mode": "NULLABLE", "description": "New."}
    assert patch.body == {"schema": {"fields": [*FIELDS, added]}}
    assert patch.headers["If-Match"] == "first"
    assert server.requests.index(patch) < server.requests.index(server.sent("POST", "/jobs")[-1])
    warehouse.replace_partitions(NOTED, [ONE], {D1: "v3"}, RUN)
    assert len(server.sent("PATCH", ".*")) == 1


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"columns": SALES.columns[:2]}, "unexpected price"),
        (
            {"columns": (*SALES.columns, Column("till", "string", "Till."))},
            "missing till string",
        ),
        (
            {"columns": (*SALES.columns[:2], Column("price", "decimal(18,3)", "Pounds."))},
            r"price is NUMERIC\(12,3\) NOT NULL, declared NUMERIC\(18,3\) NOT NULL",
        ),
        (
            {"columns": (*SALES.columns[:2], replace(SALES.columns[2], nullable=True))},
            r"price is NUMERIC\(12,3\) NOT NULL, declared NUMERIC\(12,3\)\.",
        ),
        ({"cluster_by": ()}, r"clustered by\[\"id\"\], declared .* clustered by\[\]"),
        ({"partition_by": None}, "partitioned by DAY of day, .* declared partitioned not"),
    ],
)
@pytest.mark.parametrize("days", [[D1], [D1, D2]])
def test_any_other_drift_is_refused_before_a_job(
    warehouse: BigQueryWarehouse,
    server: BigQueryServer,
    changed: dict[str, Any],
    words: str,
    days: list[str],
) -> None:
    warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)
    before = len(server.jobs)
    keys = [""] if "partition_by" in changed else days

    with pytest.raises(WarehouseSchemaError, match=words) as caught:
        warehouse.replace_partitions(
            replace(SALES, **changed), [ONE], dict.fromkeys(keys, "v2"), RUN
        )

    assert "Run: retail-assets rebuild shop.sales" in str(caught.value)
    assert len(server.jobs) == before
    assert server.sent("PATCH", ".*") == []


# --- once, whatever happens ---

CASES: list[tuple[list[str], dict[str, str], dict[str, int]]] = [
    ([ONE], {D1: "v1"}, {D1: 2}),
    ([ONE, TWO], {D1: "v1", D2: "v1"}, {D1: 2, D2: 3}),
]


@pytest.mark.parametrize(("uris", "versions", "rows"), CASES)
def test_a_retry_comes_to_the_same(
    warehouse: BigQueryWarehouse,
    server: BigQueryServer,
    uris: list[str],
    versions: dict[str, str],
    rows: dict[str, int],
) -> None:
    for _ in range(2):
        assert warehouse.replace_partitions(SALES, uris, versions, RUN).rows == rows

        assert server.rows["shop.sales"] == rows
        assert warehouse.loaded_versions(SALES) == versions


@pytest.mark.parametrize("drop", ["before", "after"])
@pytest.mark.parametrize(
    ("case", "nth", "step"),
    [
        (0, 1, "_load_"),
        (0, 2, "_record_"),
        (1, 1, "_stage0_"),
        (1, 2, "_count_"),
        (1, 3, "_swap0_"),
    ],
)
def test_a_dropped_connection_is_survived_and_nothing_is_loaded_twice(
    warehouse: BigQueryWarehouse,
    server: BigQueryServer,
    case: int,
    nth: int,
    step: str,
    drop: str,
) -> None:
    """The nth jobs.insert loses its request, or its answer after the job was accepted."""
    uris, versions, rows = CASES[case]
    server.faults.append(Fault("POST", "/jobs", drop=drop, skip=nth - 1))

    loaded = warehouse.replace_partitions(SALES, uris, versions, RUN)

    assert loaded.rows == rows
    assert server.rows["shop.sales"] == rows
    assert len(server.ran("load")) == 1
    posts = [r.body["jobReference"]["jobId"] for r in server.sent("POST", "/jobs")]
    twice = {name for name in posts if posts.count(name) == 2}
    assert len(twice) == 1 and step in twice.pop()
    assert len(server.jobs) == len(set(posts))
    if drop == "after":  # a 409, and the job that is there
        assert server.sent("GET", "/jobs/.*")


@pytest.mark.parametrize(
    ("case", "whole", "changes"),
    [
        (0, False, ["load", "record"]),
        (1, False, ["create staging", "stage0", "count", "swap0", "drop staging"]),
        (0, True, ["table", "count", "renew"]),
        (
            1,
            True,
            [
                *("create staging", "stage0", "stage1", "count"),
                *("renew", "drop", "create", "swap0", "drop staging"),
            ],
        ),
    ],
)
def test_a_server_that_dies_after_any_change_leaves_the_old_or_the_new_table(
    warehouse: BigQueryWarehouse,
    server: BigQueryServer,
    monkeypatch: pytest.MonkeyPatch,
    case: int,
    whole: bool,
    changes: list[str],
) -> None:
    """After its nth change nothing is answered; then it is back, and the run tries again."""
    uris, versions, rows = CASES[case]
    replace_rows = warehouse.replace_table if whole else warehouse.replace_partitions
    hasty = warehouse.model_copy(update={"retry_s": 0.05})
    replace_hastily = hasty.replace_table if whole else hasty.replace_partitions
    server.files["gs://lake/old"] = old = {D1: 7, D2: 7}
    new = rows if whole else old | rows
    for nth in range(len(changes)):
        run = replace(RUN, run_id=f"run-{nth}")
        warehouse.replace_partitions(SALES, ["gs://lake/old"], dict.fromkeys(old, "v0"), run)
        if "stage1" in changes:
            monkeypatch.setattr(bigquery, "URIS_A_LOAD_JOB", 1)
        server.faults.append(Fault("POST|PATCH|DELETE", ".*", drop="after", skip=nth, fatal=True))
        with pytest.raises(WarehouseUnavailableError):
            replace_hastily(SALES, uris, versions, run)
        assert server.dead
        between: list[dict[str, int]] = [{}] if "drop" in changes else []  # as documented
        assert server.rows.get("shop.sales", {}) in [old, new, *between]
        if not server.rows.get("shop.sales"):
            assert not server.record  # nothing counts as loaded
        server.dead = False

        assert replace_rows(SALES, uris, versions, run).rows == rows

        assert server.rows["shop.sales"] == new
        expected = versions if whole else dict.fromkeys(old, "v0") | versions
        assert warehouse.loaded_versions(SALES) == expected
    server.faults.append(Fault("POST|PATCH|DELETE", ".*", drop="after", skip=len(changes)))
    replace_rows(SALES, uris, versions, replace(RUN, run_id="last"))
    assert server.faults[-1].skip == 0 and server.faults[-1].times == 1  # no change was left out


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", "/jobs", 503, "backendError", times=2),
        Fault("POST", "/jobs", 503, times=2),
        Fault("POST", "/jobs", 500, "internalError", times=2),
        Fault("POST", "/jobs", 403, "rateLimitExceeded", times=2),
        Fault("POST", "/jobs", 403, "quotaExceeded", times=2),
        Fault("POST", "/jobs", 429, times=2),
        Fault("GET", "/jobs/.*", 503, "backendError", times=2),
        Fault("GET", "/jobs/.*", drop="before", times=2),
        Fault("GET", "/queries/.*", 503, "backendError", times=2),
        Fault("GET", "/datasets/shop", 503, "backendError", times=2),
        Fault("POST", "/datasets", drop="after"),
        Fault("POST", "/tables", drop="after"),
        Fault("DELETE", "/tables/.*", drop="after"),
        Fault("PATCH", "/tables/.*", drop="after"),
        Fault("PATCH", "/tables/.*", 412, "conditionNotMet"),
    ],
    ids=lambda f: f"{f.method}-{f.path}-{f.status or f.drop}-{f.reason}",
)
def test_a_passing_fault_is_retried(
    warehouse: BigQueryWarehouse, server: BigQueryServer, fault: Fault
) -> None:
    table = SALES
    if fault.method == "PATCH":
        warehouse.replace_partitions(SALES, [], {D1: "", D2: ""}, RUN)
        server.jobs.clear()
        table = NOTED
    server.faults.append(replace(fault))

    warehouse.replace_partitions(table, [ONE, TWO], {D1: "v1", D2: "v1"}, RUN)

    assert server.faults[0].times == 0
    assert server.rows["shop.sales"] == {D1: 2, D2: 3}
    assert len(server.ran("load")) == 1
    assert len(server.scripts()) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", "/jobs", 503, "backendError", times=10**6),
        Fault("POST", "/jobs", 403, "quotaExceeded", "Quota exceeded: imports", times=10**6),
        Fault("POST", "/jobs", drop="before", times=10**6),
    ],
    ids=["503", "quota", "drop"],
)
def test_a_fault_that_stays_is_transient_to_dagster(
    warehouse: BigQueryWarehouse, server: BigQueryServer, fault: Fault
) -> None:
    server.faults.append(replace(fault))
    began = time.monotonic()

    with pytest.raises(WarehouseUnavailableError, match=r"shop\.sales in BigQuery") as caught:
        warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)

    assert isinstance(caught.value, TransientError)
    assert time.monotonic() - began < 10
    if fault.reason == "quotaExceeded":
        assert "A quota was exceeded" in str(caught.value)
    posts = [r.body["jobReference"]["jobId"] for r in server.sent("POST", "/jobs")]
    assert len(posts) > 2 and len(set(posts)) == 1
    server.faults.clear()
    warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)
    assert server.rows["shop.sales"] == {D1: 2}


def test_a_server_that_is_not_there_is_transient(warehouse: BigQueryWarehouse) -> None:
    away = warehouse.model_copy(update={"emulator_host": "http://127.0.0.1:9", "retry_s": 0.2})

    with pytest.raises(WarehouseUnavailableError, match="Connection refused"):
        away.loaded_versions(SALES)


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("backendError", "try again"),
        ("jobRateLimitExceeded", "slow down"),
        ("quotaExceeded", "imports per table"),
        (
            "invalidQuery",
            "Transaction is aborted due to concurrent update against table p:d.t",
        ),
    ],
)
def test_a_job_that_failed_in_passing_is_followed_by_the_next_attempt(
    warehouse: BigQueryWarehouse, server: BigQueryServer, reason: str, message: str
) -> None:
    server.job_faults.append(JobFault("swap0", reason, message, times=2))

    warehouse.replace_partitions(SALES, [ONE, TWO], {D1: "v1", D2: "v1"}, RUN)

    assert len([name for name in server.jobs if "swap0" in name]) == 3
    assert len(server.ran("load")) == 1
    assert server.rows["shop.sales"] == {D1: 2, D2: 3}


def test_jobs_that_keep_failing_end_transient_and_the_runs_retry_goes_well(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    server.job_faults.append(JobFault("_load_", "backendError", times=5))

    with pytest.raises(WarehouseUnavailableError, match=r"step load.*_load_.*backendError"):
        warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)

    warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)

    assert len([name for name in server.jobs if "_load_" in name]) == 6
    assert server.rows["shop.sales"] == {D1: 2}


def test_a_permanent_failure_is_not_tried_again(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    server.job_faults.append(
        JobFault("_load_", "invalid", "Provided Schema does not match Table p:shop.sales")
    )

    with pytest.raises(WarehouseSchemaError, match=r"load job retail_.*Provided Schema.*Expected"):
        warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)

    assert len(server.jobs) == 1


def test_a_running_job_is_waited_for_then_given_up(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    answer = server.answer

    def running(request: Any) -> Any:
        status, body = answer(request)
        if "status" in body:
            body["status"]["state"] = "RUNNING"
        return status, body

    server.answer = running  # type: ignore[method-assign]
    hasty = warehouse.model_copy(update={"job_s": 0.3})

    with pytest.raises(WarehouseUnavailableError, match=r"not done after 0 s"):
        hasty.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)

    assert len(server.sent("GET", "/jobs/.*")) > 1
    server.answer = answer  # type: ignore[method-assign]
    warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)
    assert server.rows["shop.sales"] == {D1: 2}


def test_calls_with_the_same_work_share_no_staging_table(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    """One that was given up, whose jobs may still run, takes nothing from the one after it."""
    server.job_faults.append(JobFault("swap0", "backendError", times=5))
    versions = {D1: "v1", D2: "v1"}
    with pytest.raises(WarehouseUnavailableError):
        warehouse.replace_partitions(SALES, [ONE, TWO], versions, RUN)
    (left,) = [name for name in server.tables if "stage_" in name]
    assert server.tables[left]["expirationTime"]

    warehouse.replace_partitions(SALES, [ONE, TWO], versions, RUN)

    assert [name for name in server.tables if "stage_" in name] == [left]
    assert server.rows["shop.sales"] == {D1: 2, D2: 3}


# --- faults with a person to mend them ---


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            Fault(
                "POST",
                "/jobs",
                403,
                "accessDenied",
                "Access Denied: Project p: User does not have bigquery.jobs.create permission",
            ),
            "Missing: bigquery.jobs.create. Grant roles/bigquery.jobUser on the project",
        ),
        (
            Fault(
                "GET",
                "/datasets/shop",
                403,
                "accessDenied",
                "Access Denied: Permission bigquery.datasets.get denied on dataset p:shop",
            ),
            "Missing: bigquery.datasets.get. Grant roles/bigquery.dataEditor on the dataset",
        ),
        (
            Fault("POST", "/datasets", 403, "accessDenied", "needs bigquery.datasets.create here"),
            "Grant roles/bigquery.user on the project (or create the dataset yourself)",
        ),
        (
            Fault("POST", "/tables", 403, "", "Permission bigquery.tables.create denied"),
            "Missing: bigquery.tables.create. Grant roles/bigquery.dataEditor on the dataset",
        ),
        (Fault("GET", "/datasets/shop", 401, "authError"), "gcloud auth application-default login"),
    ],
)
def test_a_refused_request_names_the_role(
    warehouse: BigQueryWarehouse, server: BigQueryServer, fault: Fault, words: str
) -> None:
    server.faults.append(replace(fault))

    with pytest.raises(WarehouseAccessError) as caught:
        warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)

    assert words in str(caught.value)
    assert "project test-project, location EU" in str(caught.value)
    assert isinstance(caught.value, PermanentError)
    assert server.ran("load") == []


def test_a_load_job_that_may_not_read_the_bucket_names_the_role(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    message = "Access Denied: File gs://lake/one: caller lacks storage.objects.get access"
    server.job_faults.append(JobFault("_load_", "accessDenied", message))

    with pytest.raises(
        WarehouseAccessError,
        match=r"storage\.objects\.get\. Grant roles/storage\.objectViewer on the bucket",
    ):
        warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)


def test_a_file_that_is_gone_is_named(warehouse: BigQueryWarehouse) -> None:
    with pytest.raises(WarehouseQueryError, match=r"gs://lake/gone.*Materialize the processed"):
        warehouse.replace_partitions(SALES, ["gs://lake/gone"], {D1: "v1"}, RUN)


def test_a_dataset_in_another_location_says_which(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    server.datasets["shop"] = {
        "datasetReference": {"projectId": PROJECT, "datasetId": "shop"},
        "location": "US",
    }

    with pytest.raises(
        WarehouseLocationError,
        match=r"dataset test-project\.shop: expected in location EU.*found in US.*\?location=US",
    ):
        warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)

    assert server.jobs == {}


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "Not found: Dataset test-project:shop was not found in location EU"),
        (400, "Cannot read and write in different locations: source: US, destination: EU"),
    ],
)
def test_a_job_in_another_location_says_what_to_set(
    warehouse: BigQueryWarehouse, server: BigQueryServer, status: int, message: str
) -> None:
    server.faults.append(Fault("POST", "/jobs", status, "invalid", message))

    with pytest.raises(WarehouseLocationError, match=r"location EU.*set \?location="):
        warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)


def test_versions_of_a_table_elsewhere_are_no_versions_of_nothing(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    warehouse.replace_partitions(SALES, [ONE], {D1: "v1"}, RUN)
    server.tables["shop.sales"]["location"] = "US"

    with pytest.raises(WarehouseLocationError, match=r"table test-project\.shop\.sales"):
        warehouse.loaded_versions(SALES)


def test_the_limit_of_bytes_names_its_variable(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    message = "Query exceeded limit for bytes billed: 1000000000. 2000000000 or higher required."
    server.job_faults.append(JobFault("query", "bytesBilledLimitExceeded", message))

    with pytest.raises(WarehouseQueryError, match="RETAIL_BIGQUERY_MAX_BYTES_BILLED"):
        warehouse.query("SELECT 1")


def test_no_credentials_are_asked_of_the_operator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "BIGQUERY_EMULATOR_HOST", "CLOUDSDK_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")

    with pytest.raises(WarehouseAccessError, match="gcloud auth application-default login"):
        BigQueryWarehouse(project=PROJECT, location="EU").loaded_versions(SALES)


# --- limits ---


def days_from(first: str, count: int) -> list[str]:
    start = dt.date.fromisoformat(first)
    return [str(start + dt.timedelta(days=n)) for n in range(count)]


@pytest.mark.parametrize("whole", [False, True])
def test_a_range_is_cut_into_transactions_of_so_many_days(
    warehouse: BigQueryWarehouse, server: BigQueryServer, whole: bool
) -> None:
    assert PARTITIONS_A_JOB == 4_000
    days = days_from("2000-01-01", 4_001)
    server.files[ONE] = dict.fromkeys(days, 1)
    replace_rows = warehouse.replace_table if whole else warehouse.replace_partitions

    loaded = replace_rows(SALES, [ONE], dict.fromkeys(days, "v1"), RUN)

    assert loaded.total == 4_001
    assert server.rows["shop.sales"] == dict.fromkeys(days, 1)
    assert warehouse.loaded_versions(SALES) == dict.fromkeys(days, "v1")
    first, second = (text for text in server.scripts() if f"INSERT INTO {TABLE}" in text)
    assert first.count(f"BETWEEN DATE '{days[0]}' AND DATE '{days[3_999]}'") == 2
    assert second.count(f"BETWEEN DATE '{days[4_000]}' AND DATE '{days[4_000]}'") == 2
    (load,) = server.ran("load")
    assert load["configuration"]["load"]["destinationTable"]["datasetId"] == "retail_operations"


@pytest.mark.parametrize("days", [[D1], [D1, D2]])
@pytest.mark.parametrize("whole", [False, True])
def test_files_are_loaded_so_many_a_job(
    warehouse: BigQueryWarehouse, server: BigQueryServer, days: list[str], whole: bool
) -> None:
    assert URIS_A_LOAD_JOB == 10_000
    uris = [f"gs://lake/{n}" for n in range(10_001)]
    server.files |= {uri: {days[n % len(days)]: 1} for n, uri in enumerate(uris)}
    replace_rows = warehouse.replace_table if whole else warehouse.replace_partitions

    loaded = replace_rows(SALES, uris, dict.fromkeys(days, "v1"), RUN)

    assert loaded.total == 10_001
    assert sum(server.rows["shop.sales"].values()) == 10_001
    first, second = (job["configuration"]["load"] for job in server.ran("load"))
    assert first["sourceUris"] + second["sourceUris"] == uris
    assert len(first["sourceUris"]) == URIS_A_LOAD_JOB
    assert [first["writeDisposition"], second["writeDisposition"]] == [
        "WRITE_TRUNCATE",
        "WRITE_APPEND",
    ]
    assert first["destinationTable"] == second["destinationTable"]
    assert first["destinationTable"]["datasetId"] == "retail_operations"


def test_a_backfill_of_the_days_that_a_table_may_be_loaded_is_one_load(
    warehouse: BigQueryWarehouse, server: BigQueryServer
) -> None:
    days = days_from("2005-01-01", 1_501)  # a table takes 1,500 loads a day
    server.files[ONE] = dict.fromkeys(days, 1)

    warehouse.replace_partitions(SALES, [ONE], dict.fromkeys(days, "v1"), RUN)

    assert len(server.ran("load")) == 1
    assert len(server.scripts()) == 1


@given(st.text(max_size=200))
def test_a_label_is_one_that_bigquery_takes(text: str) -> None:
    assert re.fullmatch(rf"[a-z0-9_-]{{0,{LABEL_CHARACTERS}}}", label(text))


def test_the_longest_script_is_one_that_bigquery_takes() -> None:
    """As many days as a transaction takes, no two together, each with a SHA-256 as version."""
    days = days_from("1990-01-01", 2 * PARTITIONS_A_JOB)[::2]
    versions = dict.fromkeys(days, "f" * 64)

    statements = [
        *swap_statements(ONLINE_RETAIL_DATA, "`a-project.d.t`", days, "`a-project.d.s`"),
        *record_statements(ONLINE_RETAIL_DATA, "landed", RECORD, versions),
    ]

    # Source: "Query jobs" in BigQuery's quotas and limits: 1 MB of unresolved GoogleSQL.
    assert len("".join(statements)) < 1_000_000


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_a_version_of_any_characters_is_a_literal(version: str) -> None:
    statement = record_statements(SALES, "landed", RECORD, {D1: version})[1]

    parsed = sqlglot.parse_one(statement, dialect="bigquery")

    assert version in [found.this for found in parsed.find_all(sqlglot.exp.Literal)]


def test_a_key_that_is_no_day_never_reaches_a_statement() -> None:
    with pytest.raises(ValueError, match="isoformat"):
        swap_statements(SALES, TABLE, ["2011-01-01' OR TRUE --"], None)


def test_google_is_not_imported_where_the_settings_are_local() -> None:
    code = (
        "import sys; from retail_assets.settings import load_settings;"
        "from retail_assets.resources.warehouse import open_warehouse;"
        "open_warehouse(load_settings());"
        "import retail_assets.resources.warehouse.bigquery;"
        "heavy = ('google.cloud.', 'google.auth', 'google.api_core', 'requests', 'dagster_gcp');"
        "print(*(m for m in sys.modules if m.startswith(heavy)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "\n", "")


def test_faults_that_pass_are_few_and_named() -> None:
    """The word of a permanent refusal among them would be retried for minutes."""
    assert not jobs._PASSING_REASONS & {"invalid", "invalidQuery", "notFound"}
    assert LoadResult({}).metadata == {}

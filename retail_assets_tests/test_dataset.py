"""Tests of retail_assets.dataset: one declaration, and every schema that derives from it."""

import duckdb
import pyarrow as pa
import pytest

from retail_assets.dataset import Column, Dataset, SchemaDrift

COLUMNS = (
    Column("id", "string", "Key.", key=True),
    Column("day", "date", "Day."),
    Column("at", "timestamp", "Time."),
    Column("units", "int64", "Units."),
    Column("year", "int32", "Year."),
    Column("price", "decimal(12,3)", "Pounds."),
    Column("paid", "bool", "Paid."),
    Column("note", "string", "Note.", nullable=True, pii=True),
)
SALES = Dataset("shop", "sales", "Sales.", COLUMNS, partition_by="day", cluster_by=("id",))


def test_arrow_schema() -> None:
    assert SALES.arrow_schema == pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("day", pa.date32(), nullable=False),
            pa.field("at", pa.timestamp("us"), nullable=False),
            pa.field("units", pa.int64(), nullable=False),
            pa.field("year", pa.int32(), nullable=False),
            pa.field("price", pa.decimal128(12, 3), nullable=False),
            pa.field("paid", pa.bool_(), nullable=False),
            pa.field("note", pa.string(), nullable=True),
        ]
    )


def test_a_duckdb_table_of_the_declaration_does_not_differ_from_it() -> None:
    with duckdb.connect() as connection:
        connection.execute(f"create table sales ({SALES.duckdb_ddl()})")
        described = connection.execute("describe sales").fetchall()

    found = {name: kind for name, kind, *_ in described}
    assert tuple(found) == SALES.column_names
    assert not SALES.compare(found)
    assert [name for name, _, null, *_ in described if null == "YES"] == ["note"]


def test_an_arrow_table_of_the_declaration_has_its_duckdb_types() -> None:
    with duckdb.connect() as connection:
        connection.register("sales", SALES.arrow_schema.empty_table())
        described = connection.execute("describe sales").fetchall()

    assert {name: kind for name, kind, *_ in described} == SALES.duckdb_columns


def test_drift_says_what_is_missing_unexpected_and_of_another_type() -> None:
    found = dict(SALES.duckdb_columns)
    del found["units"]
    found["price"] = "DOUBLE"
    found["extra"] = "VARCHAR"

    drift = SALES.compare(found)

    assert drift
    assert [column.name for column in drift.missing] == ["units"]
    assert drift.describe() == (
        "missing units int64; unexpected extra; other type: price is DOUBLE, declared DECIMAL(12,3)"
    )


@pytest.mark.parametrize(
    ("removed", "added", "only_nullable"),
    [
        ("note", None, True),
        ("units", None, False),
        ("note", "extra", False),
        (None, "extra", False),
    ],
)
def test_only_a_missing_nullable_column_is_harmless(
    removed: str | None, added: str | None, only_nullable: bool
) -> None:
    found = {name: kind for name, kind in SALES.duckdb_columns.items() if name != removed}
    if added:
        found[added] = "VARCHAR"

    assert SALES.compare(found).only_adds_nullable is only_nullable


def test_the_order_of_a_tables_columns_is_no_drift() -> None:
    assert not SALES.compare(dict(reversed(SALES.duckdb_columns.items())))
    assert not SchemaDrift()


def test_bigquery_schema_is_the_rest_references() -> None:
    assert SALES.bigquery_schema == [
        {"name": "id", "type": "STRING", "mode": "REQUIRED", "description": "Key."},
        {"name": "day", "type": "DATE", "mode": "REQUIRED", "description": "Day."},
        {"name": "at", "type": "DATETIME", "mode": "REQUIRED", "description": "Time."},
        {"name": "units", "type": "INTEGER", "mode": "REQUIRED", "description": "Units."},
        {"name": "year", "type": "INTEGER", "mode": "REQUIRED", "description": "Year."},
        {
            "name": "price",
            "type": "NUMERIC",
            "mode": "REQUIRED",
            "description": "Pounds.",
            "precision": "12",
            "scale": "3",
        },
        {"name": "paid", "type": "BOOLEAN", "mode": "REQUIRED", "description": "Paid."},
        {"name": "note", "type": "STRING", "mode": "NULLABLE", "description": "Note."},
    ]


def test_bigquery_schema_survives_googles_own_client() -> None:
    """What the client makes of the schema, and sends, is the same again."""
    from google.cloud.bigquery import SchemaField

    sent = [SchemaField.from_api_repr(field).to_api_repr() for field in SALES.bigquery_schema]

    assert [{k: str(v) for k, v in field.items()} for field in sent] == SALES.bigquery_schema


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("decimal(38,9)", "NUMERIC(38,9)"),
        ("decimal(29,0)", "NUMERIC(29,0)"),
        ("decimal(30,0)", "BIGNUMERIC(30,0)"),
        ("decimal(12,10)", "BIGNUMERIC(12,10)"),
        ("int32", "INT64"),
        ("bool", "BOOL"),
        ("timestamp", "DATETIME"),
    ],
)
def test_bigquery_type(kind: str, expected: str) -> None:
    assert Column("x", kind, "X.").bigquery_type == expected


def test_a_bigquery_table_of_the_declaration_does_not_differ_from_it() -> None:
    assert not SALES.compare_bigquery(SALES.bigquery_schema)
    assert not SALES.compare_bigquery(list(reversed(SALES.bigquery_schema)))
    spelt = {"INTEGER": "INT64", "BOOLEAN": "BOOL"}
    fields = [f | {"type": spelt.get(f["type"], f["type"])} for f in SALES.bigquery_schema]
    assert not SALES.compare_bigquery(fields)


def test_drift_of_a_bigquery_table_shows_expected_and_found() -> None:
    fields = {field["name"]: field for field in SALES.bigquery_schema}
    del fields["note"]
    assert SALES.compare_bigquery(fields.values()).only_adds_nullable
    fields["price"] = {"name": "price", "type": "FLOAT", "mode": "REQUIRED"}
    fields["units"] = {"name": "units", "type": "INTEGER"}
    fields["year"] = {"name": "year", "type": "INTEGER", "mode": "REPEATED"}
    fields["extra"] = {"name": "extra", "type": "NUMERIC", "precision": "5"}

    drift = SALES.compare_bigquery(fields.values())

    assert not drift.only_adds_nullable
    assert drift.describe() == (
        "missing note string; unexpected extra; other type: units is INT64, declared INT64 NOT"
        " NULL, year is INT64 REPEATED, declared INT64 NOT NULL, price is FLOAT64 NOT NULL,"
        " declared NUMERIC(12,3) NOT NULL"
    )


def test_the_ui_shows_types_descriptions_keys_and_personal_data() -> None:
    shown = {column.name: column for column in SALES.table_schema().columns}

    assert tuple(shown) == SALES.column_names
    assert shown["price"].type == "decimal(12,3)"
    assert shown["price"].description == "Pounds."
    assert shown["id"].constraints.unique
    assert not shown["id"].constraints.nullable
    assert shown["note"].constraints.nullable
    assert shown["note"].tags == {"pii": "true"}
    assert all(not column.tags for name, column in shown.items() if name != "note")


def test_the_table_is_named_with_its_schema() -> None:
    assert SALES.table == "shop.sales"


@pytest.mark.parametrize("kind", ["float", "decimal", "decimal(12)", "varchar", "", "Decimal(1,1)"])
def test_an_unknown_type_is_refused_with_the_known_ones(kind: str) -> None:
    with pytest.raises(ValueError, match=r"price.*int64.*decimal"):
        Column("price", kind, "Pounds.")


def test_a_column_declared_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shop\.sales"):
        Dataset("shop", "sales", "Sales.", (*COLUMNS, COLUMNS[0]))


def test_a_partition_or_cluster_that_is_no_column_is_refused() -> None:
    with pytest.raises(ValueError, match="week"):
        Dataset("shop", "sales", "Sales.", COLUMNS, partition_by="week")
    with pytest.raises(ValueError, match="till"):
        Dataset("shop", "sales", "Sales.", COLUMNS, cluster_by=("id", "till"))

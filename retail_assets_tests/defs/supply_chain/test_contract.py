"""Tests of retail_assets.defs.supply_chain.contract: what SYSTEMS.md promises, and its patterns.

dbt's sources and models are held against the contract in test_models.py.
"""

import re
from datetime import datetime
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import (
    CSV_HEADER,
    DATE_TIME,
    DEAD_LETTERS,
    DIM_CUSTOMER,
    DIM_METADATA,
    DOMAIN,
    FACT_ORDER,
    KEY_HEADER,
    LANDED,
    MESSAGES,
    MONEY,
    NUMBER,
    RATIO,
    SOURCE_COLUMNS,
    STREAMING,
    TOPIC,
    WHOLE_NUMBER,
    WITHHELD_HEADER,
)

# Key and columns of each table, as promised; message_order and ingest_date are ours.
PROMISED = {
    "dim_customer": "customer_id email fname lname segment city country state street zipcode",
    "dim_product": "product_card_id product_category_id category_name product_description"
    " product_image product_name product_price product_status",
    "dim_location": "location_id order_zipcode order_city order_state order_region order_country"
    " latitude longitude",
    "dim_shipping": "shipping_id shipping_date days_for_shipping_real days_for_shipment_scheduled"
    " shipping_mode delivery_status",
    "dim_department": "department_id department_name",
    "dim_metadata": "metadata_id key offset partition time topic",
    "fact_order": "order_item_id order_id customer_id product_card_id location_id department_id"
    " shipping_id metadata_id market order_date order_item_discount order_item_discount_rate"
    " order_item_product_price order_item_profit_ratio order_item_quantity sales_per_customer"
    " sales order_item_total order_profit_per_order order_status payment_type",
}
of_each_table = pytest.mark.parametrize("dataset", LANDED, ids=lambda dataset: dataset.name)


def test_the_source_has_its_53_columns() -> None:
    assert len(CSV_HEADER) == len(set(CSV_HEADER)) == 53
    assert (CSV_HEADER[0], CSV_HEADER[15], CSV_HEADER[-1]) == (
        "Type",
        WITHHELD_HEADER,
        "Shipping Mode",
    )
    assert CSV_HEADER.index("Customer Lname") + 1 == CSV_HEADER.index(WITHHELD_HEADER)
    assert KEY_HEADER in CSV_HEADER


def test_what_is_withheld_is_no_column_of_anything() -> None:
    assert WITHHELD_HEADER not in {c.header for c in SOURCE_COLUMNS}
    for dataset in (MESSAGES, DEAD_LETTERS, *LANDED):
        for column in dataset.columns:
            assert "password" not in f"{column.name} {column.description}".lower()


@of_each_table
def test_a_table_has_the_promised_key_and_columns(dataset: Dataset) -> None:
    promised = PROMISED[dataset.name].split()

    own = [name for name in dataset.column_names if name not in ("message_order", "ingest_date")]
    assert own == promised
    assert [column.name for column in dataset.columns if column.key] == promised[:1]
    assert dataset.table == f"{DOMAIN}.{dataset.name}"


def test_tables_that_grow_with_the_messages_are_partitioned() -> None:
    assert {d.name: d.partition_by for d in LANDED if d.partition_by} == {
        "dim_metadata": "ingest_date",
        "fact_order": "ingest_date",
    }


def test_money_ratios_ids_and_times_have_the_promised_types() -> None:
    types = {column.name: column.type for column in FACT_ORDER.columns}

    money = [name for name, kind in types.items() if kind == MONEY]
    assert money == [
        *("order_item_discount", "order_item_product_price", "sales_per_customer", "sales"),
        *("order_item_total", "order_profit_per_order"),
    ]
    ratios = [name for name, kind in types.items() if kind == RATIO]
    assert ratios == ["order_item_discount_rate", "order_item_profit_ratio"]
    assert (types["order_item_id"], types["order_id"], types["customer_id"]) == ("int64",) * 3
    assert types["order_date"] == "timestamp"
    assert (MONEY, RATIO) == ("decimal(18,2)", "decimal(12,9)")


def test_the_fact_names_a_row_of_every_dimension() -> None:
    for dimension in LANDED[:-1]:
        (key,) = (column for column in dimension.columns if column.key)
        (own,) = (column for column in FACT_ORDER.columns if column.name == key.name)
        assert own.type == key.type and not own.nullable


def test_personal_columns_are_the_customers() -> None:
    personal = {c.name for c in DIM_CUSTOMER.columns if c.pii}

    assert personal == {"email", "fname", "lname", "street", "zipcode"}
    assert {c.name for c in MESSAGES.columns if c.pii} == {f"customer_{name}" for name in personal}
    assert [c.name for c in DEAD_LETTERS.columns if c.pii] == ["text"]
    others = (dataset for dataset in LANDED if dataset is not DIM_CUSTOMER)
    assert not [c.name for dataset in others for c in dataset.columns if c.pii]


def test_messages_have_each_source_column_as_text() -> None:
    fields = MESSAGES.columns[-len(SOURCE_COLUMNS) :]

    assert [c.name for c in fields] == [source.name for source in SOURCE_COLUMNS]
    assert {c.type for c in fields} == {"string"}
    assert [c.nullable for c in fields] == [not source.required for source in SOURCE_COLUMNS]
    assert {s.name for s in SOURCE_COLUMNS if s.is_side} == {
        *("late_delivery_risk", "category_id", "product_category_id", "product_status"),
        *("latitude", "longitude", "order_item_discount_rate", "order_item_profit_ratio"),
        *("order_customer_id", "order_item_cardprod_id", "customer_zipcode", "order_zipcode"),
    }
    assert MESSAGES.table == f"{STREAMING}.{TOPIC}" == "raw_streaming.supply_chain_data"
    assert DEAD_LETTERS.table == "raw_streaming.dead_letters"
    assert DIM_METADATA.column_names[:6] == (
        *("metadata_id", "key", "offset", "partition", "time", "topic"),
    )


@of_each_table
def test_every_column_is_described(dataset: Dataset) -> None:
    for column in dataset.columns:
        assert column.description.endswith(".")


# ---- patterns


@settings(deadline=None)
@given(st.integers(-(10**18), 10**18))
def test_whole_numbers_match(number: int) -> None:
    assert re.fullmatch(WHOLE_NUMBER, str(number))
    assert re.fullmatch(NUMBER, str(number)) or abs(number) >= 10**18


@settings(deadline=None)
@given(
    st.decimals(-(10**9), 10**9, places=9, allow_nan=False),
    st.sampled_from(["", "e5", "E-12", "e+1"]),
)
def test_numbers_match_with_and_without_exponents(number: Decimal, exponent: str) -> None:
    assert re.fullmatch(NUMBER, f"{number:f}{exponent}")


@settings(deadline=None)
@given(st.datetimes(datetime(1900, 1, 1), datetime(2199, 12, 31)))
def test_times_match_with_years_of_two_and_four_digits(moment: datetime) -> None:
    m, d, y = moment.month, moment.day, moment.year
    for year in (f"{y:04}", f"{y % 100:02}"):
        assert re.fullmatch(DATE_TIME, f"{m}/{d}/{year} {moment.hour}:{moment.minute:02}")
        assert re.fullmatch(DATE_TIME, f"{m:02}/{d:02}/{year} {moment:%H:%M}")


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        *((WHOLE_NUMBER, text) for text in ("", "1.5", "1.", ".0", "+1", " 1", "1e3", "1" * 20)),
        *((NUMBER, text) for text in ("", ".5", "5.", "NaN", "inf", "1,5", "1e999", "0x1", "1 ")),
        *((DATE_TIME, text) for text in ("", "1/31/118 22:56", "1/31/18", "1/31/18 22:56:00.")),
        *((DATE_TIME, f"2018-01-31{text}") for text in ("Z", " 22", " 22:56 CET", " 22:56+08:00")),
        *((DATE_TIME, text) for text in ("31-01-2018 22:56", "18-01-31 22:56", "2018/01/31 22:56")),
    ],
)
def test_anything_else_does_not_match(pattern: str, text: str) -> None:
    assert not re.fullmatch(pattern, text)

"""Messages as they land, and the star that they must become, in plain Python.

Here: what the tests of transforms and star share. Not here: tests.
"""

import random
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, localcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import (
    DIM_CUSTOMER,
    DIM_DEPARTMENT,
    DIM_METADATA,
    DIM_PRODUCT,
    FACT_ORDER,
    LANDED,
    MESSAGES,
    SOURCE_COLUMNS,
)
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.lake.tables import NewFile
from retail_assets_tests.identities import expected_identity

Row = dict[str, Any]

VALUES = {
    "payment_type": "DEBIT",
    "days_for_shipping_real": "3",
    "days_for_shipment_scheduled": "4",
    "benefit_per_order": "91.25",
    "sales_per_customer": "314.6400146",
    "delivery_status": "Advance shipping",
    "late_delivery_risk": "0",
    "category_id": "73",
    "category_name": "Sporting Goods",
    "customer_city": "Caguas",
    "customer_country": "Puerto Rico",
    "customer_email": "XXXXXXXXX",
    "customer_fname": "Ann",
    "customer_id": "20755",
    "customer_lname": "Lee",
    "customer_segment": "Consumer",
    "customer_state": "PR",
    "customer_street": "1 Noble Nectar Island",
    "customer_zipcode": "00725",
    "department_id": "2",
    "department_name": "Fitness",
    "latitude": "18.2514534",
    "longitude": "-66.03705597",
    "market": "Pacific Asia",
    "order_city": "Bekasi",
    "order_country": "Indonesia",
    "order_customer_id": "20755",
    "order_date": "1/31/18 22:56",
    "order_id": "77202",
    "order_item_cardprod_id": "1360",
    "order_item_discount": "13.10999966",
    "order_item_discount_rate": "0.039999999",
    "order_item_id": "180517",
    "order_item_product_price": "327.75",
    "order_item_profit_ratio": "0.289999992",
    "order_item_quantity": "1",
    "sales": "327.75",
    "order_item_total": "314.6400146",
    "order_profit_per_order": "91.25",
    "order_region": "Southeast Asia",
    "order_state": "Java Occidental",
    "order_status": "COMPLETE",
    "order_zipcode": "",
    "product_card_id": "1360",
    "product_category_id": "73",
    "product_description": "",
    "product_image": "http://images.example/Smart+watch",
    "product_name": "Smart watch ",
    "product_price": "327.75",
    "product_status": "0",
    "shipping_date": "2/3/2018 22:56",
    "shipping_mode": "Standard Class",
}
assert list(VALUES) == [source.name for source in SOURCE_COLUMNS]
SIDES = {source.name for source in SOURCE_COLUMNS if source.is_side}


# One moment in many spellings, and some close by.
TIMES = (
    *("1/31/18 22:56", "01/31/2018 22:56:00", "1/31/2018 10:56 PM", "1/31/18 10:56:00pm"),
    *("2018-01-31 22:56", "2018-01-31T22:56:00", "2018-1-31 10:56 PM", "2018-01-31 22:56:00.0"),
    *("2018-01-31 22:56:07", "2018-01-31 22:56:00.5", "2018-01-31 22:56:00.000001999"),
    *("2018-01-31", "2018-01-31 12:00 am", "1/31/2018 12:05 PM", "2199-12-31T23:59:59.999999999"),
)
_TIME_FORMATS = [
    f"{day}{clock}"
    for day in ("%m/%d/%Y", "%m/%d/%y", "%Y-%m-%d")
    for clock in ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")
]
_NONE = ("NULL", "null", "nan", "NaN", "None", "NA", "N/A", "\\N", "")


@dataclass(frozen=True)
class Message:
    """A message that landed: where it is in the topic, and its texts."""

    partition: int = 0
    offset: int = 0
    values: dict[str, str | None] = field(default_factory=lambda: dict(VALUES))
    incarnation: str = "first"
    started_at: datetime = datetime(2026, 1, 1, 2, 3, 4, 5)
    key: str | None = "77202"

    @property
    def order(self) -> str:
        return f"{self.started_at:%Y%m%dT%H%M%S%f}-{self.offset:019d}-{self.partition:05d}"

    @property
    def time(self) -> datetime:
        return self.started_at + timedelta(milliseconds=self.offset)

    def with_values(self, **values: str | None) -> "Message":
        assert values.keys() <= VALUES.keys()
        return replace(self, values=self.values | values)


def of(offset: int = 0, *, partition: int = 0, **values: str | None) -> Message:
    """A message of these values, and for the others the usual ones."""
    return Message(partition, offset).with_values(**values)


def table_of(messages: Sequence[Message]) -> pa.Table:
    """Rows as the topic's files have them."""
    rows = [
        {
            "incarnation": m.incarnation,
            "topic": "supply_chain_data",
            "partition": m.partition,
            "offset": m.offset,
            "key": m.key,
            "time": m.time,
            "message_order": m.order,
            **m.values,
        }
        for m in messages
    ]
    return pa.Table.from_pylist(rows, MESSAGES.arrow_schema)


def land(lake: Path, day: str, messages: Iterable[Message]) -> list[str]:
    """Commit a batch to the topic's table: a file for each incarnation and partition; their names.

    As batches do, but for the transactions, which say nothing to a star.
    """
    parts: dict[tuple[str, int], list[Message]] = {}
    for message in messages:
        parts.setdefault((message.incarnation, message.partition), []).append(message)
    files = []
    for (incarnation, partition), found in parts.items():
        found.sort(key=lambda m: m.offset)
        span = f"{found[0].offset}-{found[-1].offset + 1}"
        name = f"ingest_date={day}/m-{incarnation}-{partition}-{span}.parquet"
        file = lake / MESSAGES.location / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table_of(found), file, compression="zstd")
        files.append(NewFile(name, day, len(found), file.stat().st_size))
    LocalLake(root=str(lake)).table(MESSAGES).commit(files)
    return [f"{MESSAGES.location}/{file.name}" for file in files]


def random_messages(chance: random.Random, count: int, **at: Any) -> list[Message]:
    """Messages of few items, customers and products, so that many supersede others."""
    offsets = [0] * 3
    messages = []
    for _ in range(count):
        partition = chance.randrange(3)
        number = chance.choice(
            ["1.5E-05", "-5e-3", "0.005", "-0.005", "299.980011", "1E+2", "0", "-12.345", "7"]
        )
        year = chance.choice(["18", "2018", "2015", "00"])
        point = chance.choice(["", "", ".0"])
        messages.append(
            Message(partition, offsets[partition], **at).with_values(
                order_item_id=f"{chance.randrange(1, 40)}{point}",
                customer_id=f"{chance.randrange(1, 8)}{point}",
                customer_zipcode=chance.choice(["00725", "725.0", "725", "NULL", "SW1A 1AA"]),
                product_status=chance.choice(["0", "0.0", "1", "nan", "yes", ""]),
                product_category_id=chance.choice(["73", "73.0", None, "7.5", "9" * 11]),
                customer_fname=chance.choice(["Ann", "Bo", "", "José"]),
                product_card_id=str(chance.randrange(1, 5)),
                product_price=number,
                department_id=str(chance.randrange(1, 4)),
                department_name=chance.choice(["Golf", "Fan Shop", None]),
                order_city=chance.choice(["Bogotá", "São Paulo", "", None]),
                latitude=chance.choice(
                    ["18.2514534", "18.25145340", "5e-10", "-0.000000001", "north", "N/A", "1000"]
                ),
                order_zipcode=chance.choice(
                    ["", "725", "00725", None, "725.0", "00725.00", "9.4E+04", "725.5", " \\N"]
                ),
                order_date=chance.choice(["1/31/18 22:56", *TIMES]),
                shipping_date=chance.choice([f"{chance.randrange(1, 13)}/1/{year} 0:00", *TIMES]),
                shipping_mode=chance.choice(["First Class", ""]),
                sales=number,
                order_profit_per_order=f"-{chance.randrange(100)}.{chance.randrange(10**6):06d}",
            )
        )
        offsets[partition] += chance.choice([1, 1, 1, 2])
    return messages


# ---- the star, in plain Python


def moment_of(text: str) -> datetime:
    """By Python's own parser, which knows six digits of a fraction and puts 69 into 1969."""
    text = re.sub(r"([.][0-9]{6})[0-9]+", r"\1", text.replace("T", " "))
    text = re.sub(r" ?([ap]m)$", r" \1", text, flags=re.IGNORECASE)
    for form in _TIME_FORMATS:
        with suppress(ValueError):
            found = datetime.strptime(text, form)
            return found.replace(year=2000 + found.year % 100) if "%y" in form else found
    raise ValueError(text)


def decimal_of(text: str, digits: int) -> Decimal:
    with localcontext(prec=200):  # of any number that has an exponent of two digits
        return Decimal(text).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)


def typed_of(kind: str, text: str | None, source: str = "") -> Any:
    """The value of a text in a column of the source; None for what is none or left out."""
    if not text:
        return None
    if source.endswith("zipcode"):
        is_number = re.fullmatch(r"([0-9]+)([.][0-9]+)?([eE][+][0-9]+)?", text)
        if text.strip() in _NONE or (is_number and (is_number[3] or float(text) % 1)):
            return None
        return is_number[1] if is_number else text
    if kind == "string":
        return text
    if kind == "timestamp":
        return moment_of(text)
    is_side = source in SIDES
    if kind.startswith("decimal"):
        precision, digits = (int(part) for part in kind[8:-1].split(","))
        if is_side and not re.fullmatch("-?[0-9]+([.][0-9]+)?([eE][+-]?[0-9]+)?", text):
            return None
        found = decimal_of(text, digits)
        return found if abs(found) < 10 ** (precision - digits) or not is_side else None
    if not (whole := re.fullmatch("(-?[0-9]+)([.]0+)?", text)):
        assert is_side
        return None
    bits = int(kind[3:]) - 1
    return int(whole[1]) if -(1 << bits) <= int(whole[1]) < 1 << bits else None


def digest_of(*values: Any) -> str:
    """Of typed values; a ratio in billionths, a time as text."""
    units = [int(v.scaleb(9)) if isinstance(v, Decimal) else v for v in values]
    return expected_identity([None if value is None else str(value) for value in units])


def row_of(dataset: Dataset, message: Message, day: str) -> Row:
    """The row of a table that a message is."""
    prefix = "customer_" if dataset is DIM_CUSTOMER else ""
    found: Row = {
        "message_order": message.order,
        "ingest_date": date.fromisoformat(day),
        "key": message.key,
        "offset": message.offset,
        "partition": message.partition,
        "time": message.time,
        "topic": "supply_chain_data",
        "metadata_id": digest_of(
            message.incarnation, "supply_chain_data", message.partition, message.offset
        ),
    }
    for table in LANDED:
        if table.name in ("dim_location", "dim_shipping"):
            key, *columns = table.columns
            values = [typed_of(c.type, message.values[c.name], c.name) for c in columns]
            found[key.name] = digest_of(*values)
    for column in dataset.columns:
        if column.name not in found:
            source = column.name if column.name in message.values else prefix + column.name
            found[column.name] = typed_of(column.type, message.values[source], source)
    return {name: found[name] for name in dataset.column_names}


def expected_star(landed: Iterable[tuple[str, Message]]) -> dict[str, list[Row]]:
    """Every table's rows, in order of their keys, of messages and the days they landed on."""
    ordered = sorted(landed, key=lambda pair: pair[1].order)
    facts = {typed_of("int64", m.values["order_item_id"]): (day, m) for day, m in ordered}
    star = {}
    for dataset in LANDED:
        chosen = facts.values() if dataset in (FACT_ORDER, DIM_METADATA) else ordered
        rows = {}
        for day, message in chosen:
            row = row_of(dataset, message, day)
            rows[row[dataset.column_names[0]]] = row
        star[dataset.name] = [rows[key] for key in sorted(rows)]
    return star


def star_of(typed: Sequence[Row]) -> dict[str, list[Row]]:
    """Every table's rows, in order of their keys, of the rows that Spark makes of messages."""
    ordered = sorted(typed, key=lambda row: str(row["message_order"]))
    facts = {row["order_item_id"]: row for row in ordered}
    star = {}
    for dataset in LANDED:
        chosen = facts.values() if dataset in (FACT_ORDER, DIM_METADATA) else ordered
        rows = {row[dataset.column_names[0]]: row for row in chosen}
        star[dataset.name] = [
            {name: rows[key][name] for name in dataset.column_names} for key in sorted(rows)
        ]
    return star


def read_star(lake: Path) -> dict[str, list[Row]]:
    """Every table's rows as the lake has them, in order of their keys."""
    star = {}
    for dataset in LANDED:
        rows = []
        for file in LocalLake(root=str(lake)).table(dataset).snapshot().files:
            found = pq.ParquetFile(lake / file.name).read().to_pylist()
            assert len(found) == file.rows
            if dataset.partition_by:
                assert all(str(row["ingest_date"]) == file.key for row in found)
            rows += found
        star[dataset.name] = sorted(rows, key=lambda row: row[dataset.column_names[0]])
    return star


assert DIM_PRODUCT in LANDED and DIM_DEPARTMENT in LANDED

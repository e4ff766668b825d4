"""What the supply chain's tables must hold, reckoned from the CSV files alone, in plain Python.

Here: where each row's message lies in the topic, the star and the marts. Not here: how our tables
are read and compared (test_supply_chain.py). Nothing of the package is used.
"""

import csv
import io
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import ROUND_HALF_UP, Decimal
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

Row = dict[str, str]
Values = dict[str, Any]
PARTITIONS = 4
PASSWORD = "Customer Password"
_CENT, _BILLIONTH = Decimal("0.01"), Decimal("0.000000001")
_FINISHED = ("COMPLETE", "CLOSED")


@dataclass(frozen=True)
class Sent:
    """A row as a message: its place, and its fields but for the password."""

    incarnation: str
    partition: int
    offset: int
    row: Row
    malformed: bool
    number: int
    """Of its incarnation, in the order in which they began."""

    @property
    def place(self) -> tuple[str, int, int]:
        return self.incarnation, self.partition, self.offset

    @property
    def order(self) -> tuple[int, int, int]:
        return self.number, self.offset, self.partition


class Topic:
    """The topic: what was sent to each of its incarnations, which all begin at offset 0."""

    def __init__(self) -> None:
        self.messages: list[Sent] = []
        self.incarnations: list[str] = []

    def send(self, incarnation: str, file: Path, malformed: Iterable[str] = ()) -> list[Sent]:
        """All rows of a file, in an incarnation of their own; ``malformed`` are order item ids."""
        assert incarnation not in self.incarnations
        self.incarnations.append(incarnation)
        ends = [0] * PARTITIONS
        sent = []
        for row in read_rows(file):
            partition = zlib.crc32(row["Order Id"].encode()) % PARTITIONS
            bad = row["Order Item Id"] in malformed
            place = incarnation, partition, ends[partition]
            sent.append(Sent(*place, row, bad, len(self.incarnations)))
            ends[partition] += 1
        self.messages += sent
        return sent


def read_rows(file: Path) -> list[Row]:
    """The rows of a file in UTF-8 or else Windows-1252, without the password."""
    data = file.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    for row in rows:
        del row[PASSWORD]
    return rows


def money(text: str) -> Decimal:
    """Cents, rounded half up once."""
    return Decimal(text).quantize(_CENT, ROUND_HALF_UP)


def ratio(text: str) -> Decimal:
    """Nine places, rounded half up once."""
    return Decimal(text).quantize(_BILLIONTH, ROUND_HALF_UP)


def moment(text: str) -> datetime:
    """M/D/Y H:MM, of a year of two digits one of this century."""
    day, time = text.split(" ")
    month, of_month, year = map(int, day.split("/"))
    hour, minute = map(int, time.split(":"))
    return datetime(year + 2000 if year < 100 else year, month, of_month, hour, minute)


def month(day: date) -> date:
    """The first day of its month."""
    return date(day.year, day.month, 1)


class Star:
    """The star of what was sent: of each order item, customer, product the latest message."""

    def __init__(self, messages: Sequence[Sent]) -> None:
        self.good = sorted((m for m in messages if not m.malformed), key=lambda m: m.order)
        self.items = {int(m.row["Order Item Id"]): m for m in self.good}

    @cached_property
    def fact(self) -> dict[int, Values]:
        """Fact by order item, with the columns of location, shipping and metadata beside it."""
        return {item: self._fact(message) for item, message in self.items.items()}

    def _fact(self, message: Sent) -> Values:
        row = message.row
        return {
            "order_item_id": int(row["Order Item Id"]),
            "order_id": int(row["Order Id"]),
            "customer_id": int(row["Customer Id"]),
            "product_card_id": int(row["Product Card Id"]),
            "department_id": int(row["Department Id"]),
            "market": row["Market"],
            "order_date": moment(row["order date (DateOrders)"]),
            "order_item_discount": money(row["Order Item Discount"]),
            "order_item_discount_rate": ratio(row["Order Item Discount Rate"]),
            "order_item_product_price": money(row["Order Item Product Price"]),
            "order_item_profit_ratio": ratio(row["Order Item Profit Ratio"]),
            "order_item_quantity": int(row["Order Item Quantity"]),
            "sales_per_customer": money(row["Sales per customer"]),
            "sales": money(row["Sales"]),
            "order_item_total": money(row["Order Item Total"]),
            "order_profit_per_order": money(row["Order Profit Per Order"]),
            "order_status": row["Order Status"],
            "payment_type": row["Type"],
            **self._location(row),
            **self._shipping(row),
            "incarnation": message.incarnation,
            "partition": message.partition,
            "offset": message.offset,
            "key": row["Order Id"],
        }

    @staticmethod
    def _location(row: Row) -> Values:
        return {
            "order_zipcode": row["Order Zipcode"] or None,
            "order_city": row["Order City"],
            "order_state": row["Order State"],
            "order_region": row["Order Region"],
            "order_country": row["Order Country"],
            "latitude": ratio(row["Latitude"]),
            "longitude": ratio(row["Longitude"]),
        }

    @staticmethod
    def _shipping(row: Row) -> Values:
        return {
            "shipping_date": moment(row["shipping date (DateOrders)"]),
            "days_for_shipping_real": int(row["Days for shipping (real)"]),
            "days_for_shipment_scheduled": int(row["Days for shipment (scheduled)"]),
            "shipping_mode": row["Shipping Mode"],
            "delivery_status": row["Delivery Status"],
        }

    def dimensions(self) -> dict[str, list[Values]]:
        """The whole-table dimensions, without hashes and message_order, in no order."""
        rows = [m.row for m in self.good]
        customers = {
            int(row["Customer Id"]): {
                "customer_id": int(row["Customer Id"]),
                **{
                    name: row[f"Customer {name.capitalize()}"] or None
                    for name in (
                        *("email", "fname", "lname", "segment", "city", "country", "state"),
                        *("street", "zipcode"),
                    )
                },
            }
            for row in rows
        }
        products = {
            int(row["Product Card Id"]): {
                "product_card_id": int(row["Product Card Id"]),
                "product_category_id": int(row["Product Category Id"]),
                "category_name": row["Category Name"],
                "product_description": row["Product Description"] or None,
                "product_image": row["Product Image"],
                "product_name": row["Product Name"],
                "product_price": money(row["Product Price"]),
                "product_status": int(row["Product Status"]),
            }
            for row in rows
        }
        departments = {
            int(row["Department Id"]): {
                "department_id": int(row["Department Id"]),
                "department_name": row["Department Name"],
            }
            for row in rows
        }
        return {
            "dim_customer": list(customers.values()),
            "dim_product": list(products.values()),
            "dim_department": list(departments.values()),
            "dim_location": _distinct(map(self._location, rows)),
            "dim_shipping": _distinct(map(self._shipping, rows)),
        }

    def marts(self) -> dict[str, list[Values]]:
        """Every mart, in no order; shares are exact fractions, as floats."""
        facts = list(self.fact.values())
        return {
            "inventory_levels": self._inventory(facts),
            "customer_retention_rate": _retention(facts),
            "financial_commitments": _commitments(facts),
            "fraud_detection": _fraud(facts),
            "overall_performance": _performance(facts),
            "shipping_delays": _delays(facts),
        }

    def _inventory(self, facts: Sequence[Values]) -> list[Values]:
        products = {row["product_card_id"]: row for row in self.dimensions()["dim_product"]}
        as_of = max(f["order_date"] for f in facts).date()
        last = {
            product: max(f["order_date"] for f in sold).date()
            for product, sold in _by(facts, lambda f: f["product_card_id"]).items()
        }
        found = []
        for (product, of), sold in _by(
            facts, lambda f: (f["product_card_id"], month(f["order_date"]))
        ).items():
            age = (as_of - last[product]).days
            bands = ((30, "0-30"), (60, "31-60"), (90, "61-90"))
            found.append(
                {
                    "product_card_id": product,
                    "order_month": of,
                    "product_name": products[product]["product_name"],
                    "category_name": products[product]["category_name"],
                    "units_sold": sum(f["order_item_quantity"] for f in sold),
                    "sales_value": sum(f["sales"] for f in sold),
                    "as_of_date": as_of,
                    "last_sale_date": last[product],
                    "days_since_last_sale": age,
                    "age_band": next((name for most, name in bands if age <= most), "over 90"),
                }
            )
        return found


def _distinct(rows: Iterable[Values]) -> list[Values]:
    return [dict(row) for row in {tuple(row.items()) for row in rows}]


def _by(facts: Iterable[Values], key: Any) -> Mapping[Any, list[Values]]:
    return {of: list(found) for of, found in groupby(sorted(facts, key=key), key)}


def _retention(facts: Sequence[Values]) -> list[Values]:
    buyers: dict[date, set[int]] = defaultdict(set)
    for fact in facts:
        buyers[month(fact["order_date"])].add(fact["customer_id"])
    found: list[Values] = []
    at, before = min(buyers), None
    while at <= max(buyers):
        now = buyers.get(at, set())
        found.append(
            {
                "order_month": at,
                "customer_count": len(now),
                "previous_customer_count": None if before is None else len(before),
                "retained_customer_count": None if before is None else len(now & before),
                "retention_rate": len(now & before) / len(before) if before else None,
            }
        )
        at, before = date(at.year + at.month // 12, at.month % 12 + 1, 1), now
    return found


def _commitments(facts: Sequence[Values]) -> list[Values]:
    open_items = [f for f in facts if f["order_status"] not in (*_FINISHED, "CANCELED")]
    return [
        {
            "order_month": of,
            "order_status": status,
            "order_count": len({f["order_id"] for f in found}),
            "committed_value": sum(f["order_item_total"] for f in found),
        }
        for (of, status), found in _by(
            open_items, lambda f: (month(f["order_date"]), f["order_status"])
        ).items()
    ]


def _fraud(facts: Sequence[Values]) -> list[Values]:
    rows = []
    for customer, found in _by(facts, lambda f: f["customer_id"]).items():
        suspected = [f for f in found if f["order_status"] == "SUSPECTED_FRAUD"]
        if not suspected:
            continue
        orders, value = (
            len({f["order_id"] for f in found}),
            sum(f["order_item_total"] for f in found),
        )
        suspected_orders = len({f["order_id"] for f in suspected})
        suspected_value = sum(f["order_item_total"] for f in suspected)
        rows.append(
            {
                "customer_id": customer,
                "suspected_order_count": suspected_orders,
                "order_count": orders,
                "suspected_order_share": suspected_orders / orders,
                "suspected_value": suspected_value,
                "total_value": value,
                "suspected_value_share": float(suspected_value / value),
            }
        )
    return rows


def _performance(facts: Sequence[Values]) -> list[Values]:
    orders = _by(facts, lambda f: f["order_id"])
    by_month: dict[date, list[list[Values]]] = defaultdict(list)
    for found in orders.values():
        by_month[month(min(f["order_date"] for f in found))].append(found)
    rows = []
    for of, found in _by(facts, lambda f: month(f["order_date"])).items():
        sales = sum(f["sales"] for f in found)
        profit = sum(f["order_profit_per_order"] for f in found)
        count = len(by_month[of])
        fulfilled = sum(all(f["order_status"] in _FINISHED for f in o) for o in by_month[of])
        late = sum(any(f["delivery_status"] == "Late delivery" for f in o) for o in by_month[of])
        rows.append(
            {
                "order_month": of,
                "sales": sales,
                "profit": profit,
                "margin": float(profit / sales),
                "order_count": count,
                "fulfilled_order_count": fulfilled,
                "fulfilment_rate": fulfilled / count,
                "late_order_count": late,
                "late_delivery_rate": late / count,
            }
        )
    return rows


def _delays(facts: Sequence[Values]) -> list[Values]:
    rows = []
    for (mode, status), found in _by(
        facts, lambda f: (f["shipping_mode"], f["delivery_status"])
    ).items():
        delays = [f["days_for_shipping_real"] - f["days_for_shipment_scheduled"] for f in found]
        late = sum(delay > 0 for delay in delays)
        rows.append(
            {
                "shipping_mode": mode,
                "delivery_status": status,
                "line_count": len(delays),
                "total_delay_days": sum(delays),
                "mean_delay_days": sum(delays) / len(delays),
                "late_line_count": late,
                "late_share": late / len(delays),
            }
        )
    return rows

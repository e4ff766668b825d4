"""Tests of retail_assets.defs.supply_chain.sample: its file, read by other means."""

import csv
import hashlib
import re
import tempfile
import tracemalloc
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retail_assets.defs.supply_chain import sample
from retail_assets.defs.supply_chain.contract import CSV_HEADER, SOURCE_COLUMNS
from retail_assets.defs.supply_chain.sample import SampleCounts, write_sample

Row = dict[str, str]
# Of 100 orders of seed 7. It differs only if the sample was changed on purpose: by another
# interpreter, numpy, platform or locale it must not.
DIGEST = "33e6b57fa6e98ff292cd1de38d04686485ba1a2adc66209c8bbc3d8dd0f6e382"
CENT = Decimal("0.01")
DATE = re.compile(
    r"([1-9]|1[0-2])/([1-9]|[12][0-9]|3[01])/([0-9]{2}|20[0-9]{2}) [0-9]{1,2}:[0-9]{2}"
)


@dataclass(frozen=True)
class File:
    """A sample, read by the csv module."""

    path: Path
    counts: SampleCounts

    @cached_property
    def rows(self) -> list[Row]:
        with self.path.open(encoding="cp1252", newline="") as file:
            reader = csv.reader(file, strict=True)
            assert tuple(next(reader)) == CSV_HEADER
            return [dict(zip(CSV_HEADER, row, strict=True)) for row in reader]

    @cached_property
    def first_rows(self) -> dict[str, Row]:
        """The first row of each item."""
        found: dict[str, Row] = {}
        for row in self.rows:
            found.setdefault(row["Order Item Id"], row)
        return found

    def distinct(self, *names: str) -> int:
        return len({tuple(row[name] for name in names) for row in self.rows})


def _counted(file: File) -> SampleCounts:
    """What the file holds, found without the generator."""
    firsts = file.first_rows
    later = Counter(
        row == firsts[row["Order Item Id"]]
        for row in file.rows
        if row is not firsts[row["Order Item Id"]]
    )
    return SampleCounts(
        lines=len(file.rows),
        orders=file.distinct("Order Id"),
        items=len(firsts),
        customers=file.distinct("Customer Id"),
        replayed=later[True],
        corrected=later[False],
    )


def _cents(text: str) -> Decimal:
    return Decimal(text).quantize(CENT, ROUND_HALF_UP)


def _moment(text: str) -> datetime:
    # Ten times as fast as strptime; DATE says what it looks like.
    month, day, year, hour, minute = map(int, re.split("[/ :]", text))
    return datetime(year if year > 99 else 2000 + year, month, day, hour, minute)


def _write(folder: Path, **arguments: Any) -> File:
    path = folder / "orders.csv"
    return File(path, write_sample(path, **arguments))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> File:
    return _write(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> File:
    """As many orders as DataCo's file has, without lines that come again."""
    return _write(tmp_path_factory.mktemp("full"), orders=65_752, repeats=False)


def test_the_bytes_are_these(tmp_path: Path) -> None:
    file = _write(tmp_path, orders=100)

    assert hashlib.sha256(file.path.read_bytes()).hexdigest() == DIGEST


def test_a_seed_gives_the_same_bytes_and_another_others(tmp_path: Path) -> None:
    first, again, other = (
        _write(tmp_path / str(n), orders=500, seed=seed) for n, seed in enumerate((1, 1, 2))
    )

    assert first.path.read_bytes() == again.path.read_bytes()
    assert first.counts == again.counts == other.counts
    assert all(a != b for a, b in zip(first.rows, other.rows, strict=True))


@settings(max_examples=15, deadline=None)
@given(
    chunk=st.integers(1, 400),
    orders=st.integers(1, 1500),
    seed=st.integers(0, 2**32 - 1),
    repeats=st.booleans(),
)
def test_the_size_of_a_chunk_does_not_matter(
    chunk: int, orders: int, seed: int, repeats: bool
) -> None:
    chunk = max(chunk, orders // 40)  # one of a few orders costs as much as one of hundreds
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        one = _write(Path(name) / "1", orders=orders, seed=seed, repeats=repeats)
        patch.setattr(sample, "_CHUNK_ORDERS", chunk)
        other = _write(Path(name) / "2", orders=orders, seed=seed, repeats=repeats)

        assert one.counts == other.counts
        assert one.path.read_bytes() == other.path.read_bytes()


@settings(max_examples=40, deadline=None)
@given(orders=st.integers(1, 2500), seed=st.integers(0, 2**32 - 1), repeats=st.booleans())
def test_the_counts_are_those_of_the_file(orders: int, seed: int, repeats: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        file = _write(Path(name), orders=orders, seed=seed, repeats=repeats)

        assert file.counts == _counted(file)
        assert file.counts.orders == orders
        assert (file.counts.replayed > 0) == (file.counts.corrected > 0) == repeats
        _check_invariants(file.rows)
        sizes = Counter(row["Order Id"] for row in file.first_rows.values())
        assert set(sizes.values()) <= {1, 2, 3, 4, 5}


def _check_invariants(rows: list[Row]) -> None:
    """What holds in every line of DataCo's file, corrected ones included."""
    for row in rows:
        quantity = int(row["Order Item Quantity"])
        sales, total = _cents(row["Sales"]), _cents(row["Order Item Total"])
        discount = _cents(row["Order Item Discount"])
        assert sales == _cents(row["Order Item Product Price"]) * quantity
        assert abs(total - (sales - discount)) <= CENT
        assert abs(discount - sales * Decimal(row["Order Item Discount Rate"])) <= CENT
        assert row["Benefit per order"] == row["Order Profit Per Order"]
        assert row["Sales per customer"] == row["Order Item Total"]
        profit = total * Decimal(row["Order Item Profit Ratio"])
        assert abs(_cents(row["Order Profit Per Order"]) - profit) <= CENT
        assert row["Customer Id"] == row["Order Customer Id"]
        assert row["Order Item Cardprod Id"] == row["Product Card Id"]
        assert row["Category Id"] == row["Product Category Id"]
        late = row["Delivery Status"] == "Late delivery"
        assert row["Late_delivery_risk"] == str(int(late))
        took = int(row["Days for shipping (real)"])
        if late:
            assert took > int(row["Days for shipment (scheduled)"])
        ordered = _moment(row["order date (DateOrders)"])
        assert _moment(row["shipping date (DateOrders)"]) == ordered + timedelta(days=took)
        assert date(2015, 1, 1) <= ordered.date() <= date(2018, 1, 31)
        assert DATE.fullmatch(row["order date (DateOrders)"])
        assert DATE.fullmatch(row["shipping date (DateOrders)"])


def test_every_required_field_has_the_type_of_the_contract(demo: File) -> None:
    for column in SOURCE_COLUMNS:
        if not column.required:
            continue
        for row in demo.rows:
            text = row[column.header]
            if column.type.startswith("int"):
                assert re.fullmatch("[0-9]+", text), column
            elif column.type.startswith("decimal"):
                assert re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text), column
            else:
                assert column.type == "timestamp" and _moment(text)
            if column.type == "decimal(12,9)":
                assert abs(Decimal(text)) < 1000
                if "ati" in column.header and "tude" not in column.header:
                    assert -Decimal(text).as_tuple().exponent <= 9, column


def test_the_full_shape_is_datacos(full: File) -> None:
    assert full.counts == SampleCounts(180_519, 65_752, 180_519, 20_652, 0, 0) == _counted(full)
    ids = sorted(int(row["Order Item Id"]) for row in full.rows)
    assert ids == list(range(1, 180_520))
    assert full.distinct("Product Card Id") == 118
    assert full.distinct("Product Name") == 118
    assert full.distinct("Category Id") == 51
    assert full.distinct("Category Name") == 50
    assert full.distinct("Category Id", "Department Id", "Department Name") == 51
    assert {row["Category Id"] for row in full.rows if row["Category Name"] == "Electronics"} == {
        "13",
        "37",
    }
    assert full.distinct("Department Id") == full.distinct("Department Name") == 11
    assert full.distinct("Market") == 5
    assert full.distinct("Order Region") == full.distinct("Market", "Order Region") == 23
    assert full.distinct("Shipping Mode") == 4
    assert full.distinct("Type") == 4
    assert full.distinct("Delivery Status") == 4
    sizes = Counter(Counter(row["Order Id"] for row in full.rows).values())
    assert set(sizes) == {1, 2, 3, 4, 5}
    assert min(sizes.values()) > 5_000
    dates = [_moment(row["order date (DateOrders)"]) for row in full.rows]
    assert min(dates).date() == date(2015, 1, 1)
    assert max(dates).date() == date(2018, 1, 31)
    assert all(a <= b for a, b in pairwise(dates))


def test_the_full_shape_has_datacos_shares(full: File) -> None:
    lines = len(full.rows)
    known = {
        "COMPLETE": 59_491,
        "PENDING_PAYMENT": 39_832,
        "PROCESSING": 21_902,
        "PENDING": 20_227,
        "CLOSED": 19_616,
        "ON_HOLD": 9_804,
        "SUSPECTED_FRAUD": 4_062,
        "CANCELED": 3_692,
        "PAYMENT_REVIEW": 1_893,
    }
    found = Counter(row["Order Status"] for row in full.rows)
    assert found.keys() == known.keys()
    for status, count in known.items():
        assert abs(found[status] - count) < 0.01 * lines, status
    empty = sum(row["Order Zipcode"] == "" for row in full.rows)
    assert abs(empty - 155_679) < 0.01 * lines
    assert {row["Market"] for row in full.rows if row["Order Zipcode"]} == {"USCA"}
    no_zipcode = sum(row["Customer Zipcode"] == "" for row in full.rows)
    assert 0 < no_zipcode < 0.02 * lines
    late = sum(row["Late_delivery_risk"] == "1" for row in full.rows)
    assert 0.45 * lines < late < 0.65 * lines
    assert 0.75 < sum(Decimal(r["Benefit per order"]) > 0 for r in full.rows) / lines < 0.9
    off = sum(
        _cents(r["Sales"]) - _cents(r["Order Item Discount"]) != _cents(r["Order Item Total"])
        for r in full.rows
    )
    assert 0.01 * lines < off < 0.05 * lines
    assert 400 < full.path.stat().st_size / lines < 700


def test_customers_come_again_and_some_move(demo: File) -> None:
    orders, places, names = defaultdict(set), defaultdict(set), defaultdict(set)
    for row in demo.rows:
        customer = row["Customer Id"]
        orders[customer].add(row["Order Id"])
        places[customer].add((row["Customer Street"], row["Customer City"]))
        names[customer].add((row["Customer Fname"], row["Customer Lname"]))

    assert len(orders) == 628
    assert Counter(len(found) > 1 for found in orders.values())[True] > 300
    assert set(map(len, names.values())) == {1}
    assert set(map(len, places.values())) == {1, 2}


def test_a_status_decides_how_an_order_is_paid_and_shipped(demo: File) -> None:
    paid, shipped = defaultdict(set), defaultdict(set)
    for row in demo.rows:
        paid[row["Order Status"]].add(row["Type"])
        shipped[row["Order Status"]].add(row["Delivery Status"])

    assert set(map(len, paid.values())) == {1}
    for status, found in shipped.items():
        stopped = status in ("CANCELED", "SUSPECTED_FRAUD")
        assert (found == {"Shipping canceled"}) == stopped
        assert ("Shipping canceled" in found) == stopped


def test_what_comes_again_is_later_and_what_is_corrected_differs_in_what_is_paid(
    demo: File,
) -> None:
    seen: dict[str, Row] = {}
    last = 0
    changed = set()
    far = 0
    for row in demo.rows:
        item = int(row["Order Item Id"])
        if row["Order Item Id"] not in seen:
            assert item == last + 1
            last = item
            seen[row["Order Item Id"]] = row
            continue
        first = seen[row["Order Item Id"]]
        far += last - item > 100
        changed |= {name for name in CSV_HEADER if row[name] != first[name]}

    assert far > 50
    assert {"Order Item Quantity", "Order Item Discount Rate", "Sales"} <= changed
    assert changed <= {
        "Order Item Quantity",
        "Order Item Discount",
        "Order Item Discount Rate",
        "Sales",
        "Order Item Total",
        "Sales per customer",
        "Benefit per order",
        "Order Profit Per Order",
    }
    assert demo.counts.replayed == demo.counts.corrected == 50


def test_the_text_has_the_dirt_of_the_original(demo: File) -> None:
    raw = demo.path.read_bytes()
    with pytest.raises(UnicodeDecodeError):
        raw.decode("utf-8")
    text = raw.decode("cp1252")
    assert all(city in text for city in ("Bogotá", "São Paulo", "München"))
    # Characters that Latin-1 has not, each of its own.
    assert set(text) >= set("€™Žš\u2019\u2013")
    assert not any(byte in raw for byte in (b"\x81", b"\x8d", b"\x8f", b"\x90", b"\x9d"))
    assert '""' in text and "\r" not in text
    assert any("," in row["Product Name"] for row in demo.rows)
    assert any('"' in row["Product Name"] for row in demo.rows)
    assert {"South of  USA "} <= {row["Order Region"] for row in demo.rows}
    for name in ("order date (DateOrders)", "shipping date (DateOrders)"):
        years = Counter(len(row[name].split(" ")[0].split("/")[2]) for row in demo.rows)
        assert min(years[2], years[4]) > len(demo.rows) / 4
    assert any(len(row["Sales"]) > 9 for row in demo.rows)
    assert any(re.fullmatch(r"[0-9]+\.[0-9]{2}", row["Sales"]) for row in demo.rows)


def test_no_person_and_no_password_is_in_it(demo: File) -> None:
    assert {row["Customer Password"] for row in demo.rows} == {"XXXXXXXXX"}
    assert {row["Customer Email"] for row in demo.rows} == {"XXXXXXXXX"}
    assert {row["Product Description"] for row in demo.rows} == {""}
    assert all(row["Product Image"].startswith("https://images.example.com/") for row in demo.rows)


def test_memory_does_not_grow_with_the_orders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "_CHUNK_ORDERS", 500)

    def peak(orders: int) -> int:
        tracemalloc.start()
        _write(tmp_path, orders=orders)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(1_000), peak(6_000)

    assert many < 1.1 * few
    assert many < 8e6


def test_progress_tells_of_every_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "_CHUNK_ORDERS", 100)
    told: list[int] = []
    _write(tmp_path, orders=950, progress=told.append)

    assert told == [100] * 9 + [50]


def test_a_file_stands_under_its_name_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "_CHUNK_ORDERS", 100)
    old = _write(tmp_path, orders=10).path.read_bytes()

    def interrupt(orders: int) -> None:
        assert len(list(tmp_path.iterdir())) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path, orders=1000, progress=interrupt)

    assert [path.name for path in tmp_path.iterdir()] == ["orders.csv"]
    assert (tmp_path / "orders.csv").read_bytes() == old


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("orders", 0, "orders: expected 1 to 10000000, found 0"),
        ("orders", 10_000_001, "orders: expected 1 to 10000000, found 10000001"),
        ("seed", -1, "seed: expected 0 to 4294967295, found -1"),
    ],
)
def test_a_number_out_of_range_is_refused(
    tmp_path: Path, name: str, number: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _write(tmp_path, **{name: number})
    assert list(tmp_path.iterdir()) == []

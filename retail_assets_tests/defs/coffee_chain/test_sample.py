"""Tests of retail_assets.defs.coffee_chain.sample: its files, read by other means, and its dirt."""

import csv
import hashlib
import re
import tempfile
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from datetime import date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retail_assets.defs.coffee_chain import sample
from retail_assets.defs.coffee_chain.contract import (
    RAW_CUSTOMER,
    RAW_OUTLET,
    RAW_PRODUCT,
    RAW_SALES,
    USUAL_QUANTITY,
    RawFiles,
)
from retail_assets.defs.coffee_chain.sample import DropCounts, SampleCounts, write_sample

Row = dict[str, str]
SMALLEST: dict[str, Any] = {"sales": 500, "customers": 50, "drops": 2}
# Of the smallest sample of seed 7. It differs only if the sample was changed on purpose: by
# another interpreter, numpy, platform or locale it must not.
DIGEST = "87435804e49fc9aee53b7a3f93693dcff251f9295bad315e2992bac8c7495e4e"


@dataclass(frozen=True)
class Lake:
    """The files of a sample, read by the csv module."""

    folder: Path
    counts: SampleCounts

    def rows(self, kind: RawFiles, drop: str = "") -> list[Row]:
        with (self.folder / kind.name(drop)).open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            assert tuple(next(reader)) == kind.header
            return [dict(zip(kind.header, row, strict=True)) for row in reader]

    @property
    def drops(self) -> list[str]:
        return [drop.date for drop in self.counts.drops]

    @property
    def customers(self) -> list[tuple[str, Row]]:
        return [(drop, row) for drop in self.drops for row in self.rows(RAW_CUSTOMER, drop)]

    @property
    def sales(self) -> list[tuple[str, Row]]:
        return [(drop, row) for drop in self.drops for row in self.rows(RAW_SALES, drop)]


def _moment(text: str) -> datetime | None:
    try:
        found = datetime.strptime(text, "%Y-%m-%d %H:%M:%S")
    except ValueError:
        return None
    return found if len(text) == 19 else None


def _is_typed(row: Row) -> bool:
    return bool(re.fullmatch("-?[0-9]+", row["quantity"])) and _moment(row["date_time"]) is not None


def _counted(lake: Lake) -> list[DropCounts]:
    """What the files hold, found without the generator."""
    outlets = {row["outlet_id"] for row in lake.rows(RAW_OUTLET)}
    products = {row["product_id"] for row in lake.rows(RAW_PRODUCT)}
    first_drop: dict[str, str] = {}
    for drop, row in lake.customers:
        first_drop.setdefault(row["customer_id"], drop)
    counted = []
    for drop in lake.drops:
        people = lake.rows(RAW_CUSTOMER, drop)
        lines = lake.rows(RAW_SALES, drop)
        typed = [tuple(row.values())[1:] for row in lines if _is_typed(row)]
        quantities = [row["quantity"] for row in lines]
        buyers = [row["customer_id"] for row in lines]
        counted.append(
            DropCounts(
                date=drop,
                customers=sum(first_drop[row["customer_id"]] == drop for row in people),
                corrections=sum(first_drop[row["customer_id"]] < drop for row in people),
                without_birthday=sum(row["birthday"] == "" for row in people),
                sales=len(lines),
                duplicates=len(typed) - len(set(typed)),
                bad_quantities=sum(not re.fullmatch("-?[0-9]+", q) for q in quantities),
                bad_dates=sum(_moment(row["date_time"]) is None for row in lines),
                unusual_quantities=sum(
                    not USUAL_QUANTITY[0] <= int(q) <= USUAL_QUANTITY[1]
                    for q in quantities
                    if re.fullmatch("-?[0-9]+", q)
                ),
                missing_customers=buyers.count(""),
                orphan_customers=sum(b not in first_drop for b in buyers if b),
                early_customers=sum(first_drop.get(b, "") > drop for b in buyers),
                orphan_outlets=sum(row["outlet"] not in outlets for row in lines),
                orphan_products=sum(row["product"] not in products for row in lines),
            )
        )
    return counted


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The sample of the demo."""
    folder = tmp_path_factory.mktemp("lake")
    return Lake(folder, write_sample(folder))


@pytest.fixture(params=range(3))
def smallest(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    return Lake(tmp_path, write_sample(tmp_path, **SMALLEST, seed=request.param))


def test_the_bytes_are_these(tmp_path: Path) -> None:
    write_sample(tmp_path, **SMALLEST, seed=7)

    assert _digest(tmp_path) == DIGEST


def test_a_seed_gives_the_same_bytes_and_another_others(tmp_path: Path) -> None:
    counts = [
        write_sample(tmp_path / str(n), sales=3000, customers=200, seed=seed)
        for n, seed in enumerate((1, 1, 2))
    ]

    assert counts[0] == counts[1]
    first, again, other = (tmp_path / str(n) for n in range(3))
    assert _digest(first) == _digest(again)
    for path in (p.relative_to(first) for p in first.rglob("*.csv")):
        assert (first / path).read_bytes() != (other / path).read_bytes(), path


@settings(max_examples=15, deadline=None)
@given(
    chunk=st.integers(1, 3000),
    sales=st.integers(500, 2000),
    drops=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_size_of_a_chunk_does_not_matter(chunk: int, sales: int, drops: int, seed: int) -> None:
    # A chunk of a few lines costs as much as one of thousands.
    chunk = max(chunk, sales // 50)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        one, other = Path(name) / "one", Path(name) / "other"
        counts = write_sample(one, sales=sales, customers=300, drops=drops, seed=seed)
        patch.setattr(sample, "_CHUNK_ROWS", chunk)

        assert write_sample(other, sales=sales, customers=300, drops=drops, seed=seed) == counts
        assert _digest(one) == _digest(other)


@settings(max_examples=25, deadline=None)
@given(
    sales=st.integers(500, 25_000),
    customers=st.integers(50, 1000),
    drops=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_counts_are_those_of_the_files(
    sales: int, customers: int, drops: int, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts = write_sample(folder, sales=sales, customers=customers, drops=drops, seed=seed)
        lake = Lake(folder, counts)

        assert list(counts.drops) == _counted(lake)
        assert counts.total.sales == sales
        assert counts.total.customers == customers
        assert counts.outlets == len(lake.rows(RAW_OUTLET)) == 272
        assert counts.products == len(lake.rows(RAW_PRODUCT)) == 89
        assert len(list(folder.rglob("*.*"))) == counts.files == 2 + 2 * drops


def test_the_counts_of_the_demo_are_those_that_duckdb_finds(lake: Lake) -> None:
    import duckdb

    root = lake.folder.as_posix()
    found = (
        duckdb.connect()
        .execute(f"""
        with lines as (
            select * exclude (column0) from read_csv(
                '{root}/{RAW_SALES.prefix}*.csv', header = true, all_varchar = true, filename = true
            )
        ),
        typed as (
            select * from lines
            where regexp_matches(quantity, '^-?[0-9]+$')
                and length(date_time) = 19
                and try_cast(date_time as timestamp) is not null
        )
        select
            (select count(*) from lines),
            (select count(*) from typed),
            (select count(*) from (select distinct * from typed)),
            (select count(*) from read_csv(
                '{root}/{RAW_CUSTOMER.prefix}*.csv', header = true, all_varchar = true
            ))
    """)
        .fetchall()
    )
    total = lake.counts.total

    assert found == [
        (
            total.sales,
            total.sales - total.quarantined,
            total.kept,
            total.customer_rows,
        )
    ]
    assert total.sales == 50_000
    assert total.customers == 5_000


def test_every_fault_is_in_the_smallest_sample(smallest: Lake) -> None:
    total = replace(smallest.counts.total, date="-")

    assert [f.name for f in fields(total) if not getattr(total, f.name)] == []
    quantities = {row["quantity"] for _, row in smallest.sales}
    assert quantities >= {"", "two", "dua", "n/a", "2.5", "0", "-1", "12"}
    moments = {row["date_time"] for _, row in smallest.sales}
    assert moments >= {"", "2019-02-30 10:00:00", "2020-06-15 25:00:00", "30/06/2019 10:00"}


def test_a_larger_sample_has_more_faults(lake: Lake, tmp_path: Path) -> None:
    twice = write_sample(tmp_path, sales=100_000).total

    for field in fields(twice):
        if field.name not in ("date", "customers", "corrections", "without_birthday"):
            once = getattr(lake.counts.total, field.name)
            assert 1.5 * once <= getattr(twice, field.name) <= 3 * once, field.name


def test_drops_are_dated_evenly_to_the_last_day(lake: Lake, tmp_path: Path) -> None:
    ten = [date.fromisoformat(d.date) for d in write_sample(tmp_path, sales=500, drops=10).drops]

    assert ten[-1] == date(2022, 12, 31)
    assert {(b - a).days for a, b in pairwise([date(2017, 12, 31), *ten])} == {182, 183}
    assert lake.drops[-1] == "2022-12-31"


def test_a_drop_holds_the_sales_since_the_one_before(lake: Lake) -> None:
    before = "2017-12-31"
    for drop in lake.drops:
        moments = [m for m in (_moment(r["date_time"]) for r in lake.rows(RAW_SALES, drop)) if m]
        days = {moment.date().isoformat() for moment in moments}
        assert before < min(days) and max(days) == drop
        before = drop
    assert len({row["date_time"][:10] for _, row in lake.sales if _is_typed(row)}) == 1826


def test_sales_are_in_the_order_of_time_but_for_lines_delivered_twice(lake: Lake) -> None:
    back = near = far = 0
    for drop in lake.drops:
        lines = [row for row in lake.rows(RAW_SALES, drop) if _is_typed(row)]
        seen: dict[tuple[str, ...], int] = {}
        last = ""
        for number, row in enumerate(lines):
            key = tuple(row.values())[1:]
            if key in seen:
                near += number - seen[key] == 1
                far += number - seen[key] > 100
                continue
            seen[key] = number
            back += row["date_time"] < last
            last = row["date_time"]
    assert back == 0
    assert near and far


def test_the_index_counts_the_rows_of_each_file(lake: Lake) -> None:
    for drop in lake.drops:
        for kind in (RAW_SALES, RAW_CUSTOMER):
            rows = lake.rows(kind, drop)
            assert [row[""] for row in rows] == [str(n) for n in range(len(rows))]


def test_an_invoice_has_up_to_five_lines_of_one_sale(lake: Lake) -> None:
    outlets = {row["outlet_id"] for row in lake.rows(RAW_OUTLET)}
    ids = {row["customer_id"] for _, row in lake.customers}
    parties, lines = defaultdict(set), defaultdict(set)
    invoices = defaultdict(set)
    for _, row in lake.sales:
        if not _is_typed(row) or row["outlet"] not in outlets or row["customer_id"] not in ids:
            continue
        key = row["invoice_no"], row["date_time"]
        parties[key].add(row["outlet"])
        lines[key].add(row["product"])
        invoices[row["invoice_no"]].add(row["date_time"])
    assert {len(found) for found in parties.values()} == {1}
    assert {len(found) for found in lines.values()} == {1, 2, 3, 4, 5}
    assert all(re.fullmatch("INV-[1-9][0-9]{0,5}", invoice) for invoice in invoices)
    assert min(len(found) for found in invoices.values()) > 1


def test_an_invoice_has_one_customer_but_for_faults(lake: Lake) -> None:
    customers = defaultdict(set)
    for _, row in lake.sales:
        customers[row["invoice_no"], row["date_time"]].add(row["customer_id"])
    total = lake.counts.total
    faults = total.missing_customers + total.orphan_customers + total.early_customers

    assert 0 < sum(len(found) > 1 for found in customers.values()) <= faults


def test_sales_have_the_usual_quantities_and_all_that_is_sold(lake: Lake) -> None:
    quantities = Counter(row["quantity"] for _, row in lake.sales)

    assert [text for text, _ in quantities.most_common(4)] == ["1", "2", "3", "4"]
    assert len({row["product"] for _, row in lake.sales}) == 89 + 1
    assert len({row["outlet"] for _, row in lake.sales}) == 272 + 2


def test_sales_and_customers_need_no_quotes_and_outlets_do(lake: Lake) -> None:
    for path in lake.folder.rglob("*.csv"):
        quoted = b'"' in path.read_bytes()
        assert quoted == (path == lake.folder / RAW_OUTLET.name()), path
        assert b"\r" not in path.read_bytes()
    assert all("," in row["outlet_address"] for row in lake.rows(RAW_OUTLET))


def test_customers_look_like_customers(lake: Lake) -> None:
    for _, row in lake.customers:
        assert UUID(row["customer_id"]).version == 4
        assert str(UUID(row["customer_id"])) == row["customer_id"]
        assert re.fullmatch(r"[a-z]+\.[a-z]+[0-9]{1,5}@example\.(com|org)", row["email"])
        assert re.fullmatch(r"\+60 1[0-46-9]-[0-9]{3} [0-9]{4}", row["phone_no"])
        assert re.fullmatch("[A-Z][a-z]+", row["first_name"])
        assert re.fullmatch("[A-Z][a-z]+", row["last_name"])
        assert row["birthday"] == "" or date.fromisoformat(row["birthday"])
    assert {row["gender"] for _, row in lake.customers} == {
        "Female",
        "Male",
        "Prefer not to say",
        "",
    }


def test_half_of_the_customers_come_with_the_first_drop(smallest: Lake, lake: Lake) -> None:
    assert [drop.customers for drop in smallest.counts.drops] == [25, 25]
    assert [drop.customers for drop in lake.counts.drops] == [2500, 1250, 1250]


def test_customers_come_again_with_one_thing_corrected(smallest: Lake) -> None:
    known: dict[str, Row] = {}
    changed = []
    for _, row in smallest.customers:
        old = known.get(row["customer_id"])
        if old is not None:
            changed.append({name for name in row if name and row[name] != old[name]})
        known[row["customer_id"]] = row

    assert sorted(changed, key=str) == sorted([{"birthday"}, {"email"}, {"phone_no"}], key=str)


def _ages(lake: Lake) -> Iterator[tuple[date, date | None]]:
    """The day of sale and the birthday, as delivered first, of each kept line of a customer."""
    birthdays: dict[str, str] = {}
    for _, row in lake.customers:
        birthdays.setdefault(row["customer_id"], row["birthday"])
    for _, row in lake.sales:
        if _is_typed(row) and row["customer_id"] in birthdays:
            born = birthdays[row["customer_id"]]
            day = date.fromisoformat(row["date_time"][:10])
            yield day, date.fromisoformat(born) if born else None


def test_sales_stand_on_both_sides_of_every_band_of_ages(smallest: Lake) -> None:
    """The day before a customer is so old, and, but for 29 February, the day itself."""
    reached, nearly = set(), set()
    for day, born in _ages(smallest):
        if born is None:
            continue
        tomorrow = day + timedelta(days=1)
        if (day.month, day.day) in ((born.month, born.day), (2, 29)):
            reached.add(day.year - born.year)
        if (tomorrow.month, tomorrow.day) == (born.month, born.day):
            nearly.add(tomorrow.year - born.year)

    bands = {21, 26, 31, 36, 41, 46, 51}
    assert reached >= bands
    assert nearly >= bands


def test_some_buyers_have_no_birthday_and_some_a_later_one(smallest: Lake) -> None:
    ages = list(_ages(smallest))

    assert any(born is None for _, born in ages)
    assert len({born for day, born in ages if born is not None and born > day}) == 2


def test_the_demo_sells_around_the_birthday_of_a_leap_day(lake: Lake) -> None:
    leap = {day for day, born in _ages(lake) if born == date(2000, 2, 29)}

    assert leap >= {date(2021, 2, 28), date(2021, 3, 1)}


def test_postcodes_have_leading_zeros_or_lost_them_or_are_missing(lake: Lake) -> None:
    outlets = lake.rows(RAW_OUTLET)
    postcodes = [row["postcode"] for row in outlets]

    assert [row["outlet_id"] for row in outlets] == [f"MY{n:03}" for n in range(1, 273)]
    assert all(re.fullmatch("|[0-9]{4}|[0-9]{5}", text) for text in postcodes)
    assert sum(len(text) == 4 for text in postcodes) == lake.counts.short_postcodes > 0
    assert sum(text == "" for text in postcodes) == lake.counts.missing_postcodes > 0
    assert any(text.startswith("0") for text in postcodes)
    with_zero = [r for r in outlets if r["postcode"] and int(r["postcode"]) < 10_000]
    assert len(with_zero) == 23
    assert {row["outlet_state"] for row in with_zero} == {"Perlis", "Kedah"}
    assert len({row["outlet_state"] for row in outlets}) == 16


def test_products_have_names_encoded_twice_and_names_that_others_have(lake: Lake) -> None:
    products = lake.rows(RAW_PRODUCT)
    spoiled = [row for row in products if "Ã" in row["product_name"]]
    prices = defaultdict(set)
    for row in products:
        name = row["product_name"]
        if row in spoiled:
            name = name.encode("latin-1").decode("utf-8")
        prices[name].add(row["product_price"])
    named = Counter(name for name, found in prices.items() for _ in found)

    assert [row["product_id"] for row in products] == [f"PD{n:03}" for n in range(1, 90)]
    assert [row["no"] for row in products] == [str(n) for n in range(1, 90)]
    assert all(re.fullmatch(r"RM [1-9][0-9]?\.[0-9]{2}", row["product_price"]) for row in products)
    assert len(spoiled) == lake.counts.spoiled_names > 0
    assert any("é" in row["product_name"] for row in products if row not in spoiled)
    assert sum(n for n in named.values() if n > 1) == lake.counts.shared_names > 0
    assert sum(named.values()) == 89
    right = {row["product_name"] for row in products} & named.keys()
    assert any(
        name.encode().decode("latin-1") in {row["product_name"] for row in spoiled}
        for name in right
        if not name.isascii()
    )


def test_memory_does_not_grow_with_the_sales(tmp_path: Path) -> None:
    def peak(sales: int) -> int:
        tracemalloc.start()
        write_sample(tmp_path, sales=sales, customers=1000, drops=1)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(200_000), peak(1_000_000)

    assert many < 1.05 * few
    assert many < 100e6


def test_progress_tells_of_every_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "_CHUNK_ROWS", 1000)
    told: list[int] = []
    write_sample(tmp_path, sales=5500, customers=100, drops=2, progress=told.append)

    assert sum(told) == 5500
    assert max(told) == 1000


def test_a_file_stands_under_its_name_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "_CHUNK_ROWS", 100)
    seen: list[list[str]] = []

    def stop_at_the_fifth(lines: int) -> None:
        folder = tmp_path / RAW_SALES.prefix
        seen.append(sorted(path.name for path in folder.parent.iterdir()))
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path, **SMALLEST, progress=stop_at_the_fifth)

    first, second = "sales_data_2020-07-01.csv", "sales_data_2022-12-31.csv"
    assert seen[0] == [f"{first}.part"]
    assert seen[4] == [first, f"{second}.part"]
    assert [path.name for path in (tmp_path / RAW_SALES.prefix).parent.iterdir()] == [first]
    assert not list(tmp_path.rglob("*.part"))


def test_a_file_is_replaced_whole_and_others_are_left(tmp_path: Path) -> None:
    other = tmp_path / RAW_SALES.name("2030-01-01")
    other.parent.mkdir(parents=True)
    other.write_text("kept")
    write_sample(tmp_path, sales=900, customers=80, drops=2, seed=1)
    write_sample(tmp_path, **SMALLEST)

    assert other.read_text() == "kept"
    other.unlink()
    assert _digest(tmp_path) == DIGEST


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("sales", 499, "sales: expected 500 to 999999999, found 499"),
        ("customers", 49, "customers: expected 50 to 99999999, found 49"),
        ("drops", 0, "drops: expected 1 to 1826, found 0"),
        ("drops", 1827, "drops: expected 1 to 1826, found 1827"),
        ("seed", -1, "seed: expected 0 to 4294967295, found -1"),
    ],
)
def test_a_number_out_of_range_is_refused(
    tmp_path: Path, name: str, number: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_sample(tmp_path, **{**SMALLEST, name: number})
    assert list(tmp_path.iterdir()) == []

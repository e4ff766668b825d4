"""Tests of retail_assets.defs.online_retail.sample: deterministic, and with every kind of dirt."""

import re
from collections import Counter, defaultdict
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from retail_assets.defs.online_retail.sample import HEADER, Row, sample_rows, write_sample
from retail_assets.resources.tabular import open_tables


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(sample_rows())


def test_a_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "one.xlsx", tmp_path / "b" / "two.xlsx"]
    counts = [write_sample(path, days=3, lines_a_day=30) for path in paths]

    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert counts[0] == counts[1] == len(list(sample_rows(3, 30)))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["one.xlsx"]


def test_another_seed_gives_other_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one.xlsx", tmp_path / "two.xlsx"
    write_sample(one, days=2, lines_a_day=20, seed=7)
    write_sample(two, days=2, lines_a_day=20, seed=8)

    assert one.read_bytes() != two.read_bytes()


def test_the_workbook_holds_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "sample.xlsx"
    expected = list(sample_rows(3, 40))
    write_sample(path, days=3, lines_a_day=40)

    with open_tables(path, tmp_path / "scratch") as opened:
        (table,) = opened.tables
        found = [row for batch in table.batches for row in batch.to_pylist()]

    assert table.header == list(HEADER)
    assert len(found) == len(expected)
    for cells, row in zip(found, expected, strict=True):
        invoice, code, description, quantity, at, price, customer, country = (
            cells[str(i)] for i in range(8)
        )
        assert (invoice, code, description, country) == (row[0], row[1], row[2], row[7])
        assert int(quantity) == row[3]
        assert datetime.fromisoformat(at) == row[4]
        assert Decimal(price) == row[5]
        assert (None if customer is None else int(customer)) == row[6]


def test_it_has_its_days_but_for_saturdays(rows: list[Row]) -> None:
    days = {row[4].date() for row in rows}

    assert (str(min(days)), str(max(days))) == ("2010-12-01", "2011-03-30")
    assert 5 not in {day.weekday() for day in days}
    assert len(days) == 103


def test_it_has_exact_duplicates(rows: list[Row]) -> None:
    assert max(Counter(rows).values()) >= 2


def test_it_has_returns_adjustments_gifts_and_bad_debts(rows: list[Row]) -> None:
    assert any(r[0].startswith("C") and r[3] < 0 for r in rows)
    assert any(r[0].isdigit() and r[3] < 0 and r[5] == 0 for r in rows)
    assert any(r[0].isdigit() and r[3] > 0 and r[5] == 0 for r in rows)
    debts = [r for r in rows if r[0].startswith("A")]
    assert {r[5] > 0 for r in debts} == {True, False}
    assert sum(r[5] for r in debts) == 0


def test_it_has_postage_and_fees(rows: list[Row]) -> None:
    assert {r[1] for r in rows if not re.match(r"\d{5}", r[1])} >= {"POST", "DOT", "M"}


def test_it_has_missing_descriptions_and_customers(rows: list[Row]) -> None:
    sales = [r for r in rows if r[0].isdigit() and r[3] > 0]

    assert any(r[2] is None for r in sales)
    assert any(r[6] is None for r in sales)
    assert any(r[6] is not None for r in sales)


def test_it_has_descriptions_with_blanks_at_their_end(rows: list[Row]) -> None:
    assert any(r[2] is not None and r[2] != r[2].strip() for r in rows)


def test_it_has_products_whose_name_changes(rows: list[Row]) -> None:
    names = defaultdict(set)
    for row in rows:
        if row[2] is not None and row[3] > 0 and row[0].isdigit():
            names[row[1]].add(row[2])

    assert any(len(found) > 1 for found in names.values())


def test_it_has_customers_of_several_countries(rows: list[Row]) -> None:
    assert len({r[7] for r in rows}) > 3

"""Tests of retail_assets.defs.online_retail.transforms, held against plain Python oracles."""

import csv
import gzip
import hashlib
import io
import itertools
import json
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import xlsxwriter
from hypothesis import given, settings
from hypothesis import strategies as st

from retail_assets.defs.online_retail.contract import ONLINE_RETAIL_DATA
from retail_assets.defs.online_retail.feed import FEED
from retail_assets.defs.online_retail.transforms import FIELDS, type_rows
from retail_assets.feeds.reading import (
    AmbiguousDatesError,
    Reading,
    ReadTable,
    SchemaDriftError,
)
from retail_assets.feeds.snapshot.manifest import EMPTY_DAY
from retail_assets.feeds.snapshot.rows import TypedRows, day_predicate
from retail_assets.moments import Moments, Order
from retail_assets.resources.tabular import ROW, TextTable, open_tables

HEADER = [
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
    "Country",
]
HEADER_II = [
    "Invoice",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "Price",
    "Customer ID",
    "Country",
]
FIRST, LAST = date(2010, 12, 1), date(2010, 12, 10)

Cells = list[str | None]


@dataclass(frozen=True)
class Line:
    """A source row, typed."""

    invoice_no: str
    stock_code: str
    description: str | None
    quantity: int
    at: datetime
    unit_price: Decimal
    customer_id: int | None
    country: str

    def cells(self) -> Cells:
        return [
            self.invoice_no,
            self.stock_code,
            self.description,
            str(self.quantity),
            f"{self.at:%Y-%m-%d %H:%M:%S}",
            str(self.unit_price),
            None if self.customer_id is None else f"{self.customer_id}.0",
            self.country,
        ]

    def identity(self) -> str:
        """The transaction_id by its definition, in plain Python."""
        text = "\x1f".join(
            [
                self.invoice_no,
                self.stock_code,
                "\x1e" if self.description is None else self.description,
                str(self.quantity),
                f"{self.at:%Y-%m-%d %H:%M:%S}",
                f"{self.unit_price:.3f}",
                "\x1e" if self.customer_id is None else str(self.customer_id),
                self.country,
            ]
        )
        return hashlib.sha256(text.encode()).hexdigest()[:32]


LINE = Line(
    "536365",
    "85123A",
    "WHITE HANGING HEART T-LIGHT HOLDER",
    6,
    datetime(2010, 12, 1, 8, 26),
    Decimal("2.55"),
    17850,
    "United Kingdom",
)


def text_table(rows: Sequence[Cells], label: str = "table", cuts: int = 4) -> TextTable:
    """``rows`` as a reader of files would hand them over, in batches of ``cuts``."""
    table = TextTable(label, list(HEADER), iter(()), file=label)

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), cuts):
            part = rows[start : start + cuts]
            numbers = pa.array(range(start + 2, start + 2 + len(part)), pa.int64())
            columns = [pa.array([row[i] for row in part], pa.string()) for i in range(8)]
            yield pa.RecordBatch.from_arrays([numbers, *columns], schema=table.schema)

    table.batches = batches()
    table.rows = len(rows)
    assert table.schema.names[0] == ROW
    return table


@cache
def shared_connection() -> duckdb.DuckDBPyConnection:
    """One small connection for the whole module: a property runs hundreds of queries."""
    return duckdb.connect(config={"threads": 1})


@contextmanager
def typed(*tables: TextTable, order: Order = "mdy") -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that has what ``type_rows`` makes of the tables, as ``typed``."""
    connection = shared_connection()
    reads = [ReadTable(table, FIELDS, Reading(order), Moments(order)) for table in tables]
    rows = type_rows(connection, reads).to_arrow_table()
    connection.register("typed", rows)
    yield connection


def rows_of(connection: duckdb.DuckDBPyConnection) -> TypedRows:
    return TypedRows(connection, FEED, "typed")


def records(relation: duckdb.DuckDBPyRelation | pa.Table) -> list[dict[str, Any]]:
    table = relation if isinstance(relation, pa.Table) else relation.to_arrow_table()
    found: list[dict[str, Any]] = table.to_pylist()
    return found


# Python has no infinite dates.
FINITE = (
    "case when isfinite(invoice_date) then invoice_date end as invoice_date,"
    " case when isfinite(invoice_datetime) then invoice_datetime end as invoice_datetime"
)


def type_one(cells: Cells) -> dict[str, Any]:
    with typed(text_table([cells])) as connection:
        (row,) = records(connection.sql(f"select * replace ({FINITE}) from typed"))
    return row


def with_cell(column: str, value: str | None, line: Line = LINE) -> Cells:
    cells = line.cells()
    cells[HEADER.index(column)] = value
    return cells


# Small pools, so that duplicates and near duplicates are common.
lines = st.builds(
    Line,
    invoice_no=st.sampled_from(["536365", "536366", "C536379", "A563185", "c536380", "1C"]),
    stock_code=st.sampled_from(["85123A", "22423", "POST", "1234A", "M", "gift_0001_20", "123456"]),
    description=st.sampled_from([None, "WHITE HEART", "White heart", " ", 'Café £5, "x"', "20713"]),
    quantity=st.sampled_from([6, 1, 0, -1, -80995, 80995]),
    at=st.builds(
        lambda day, minute: datetime(2010, 12, 1) + timedelta(days=day, minutes=minute),
        st.integers(0, 9),
        st.sampled_from([0, 506, 507, 1439]),
    ),
    unit_price=st.sampled_from([Decimal(x) for x in ("2.55", "2.550", "0", "0.001", "-11062.06")]),
    customer_id=st.sampled_from([None, 17850, 12346]),
    country=st.sampled_from(["United Kingdom", "EIRE"]),
)

# Column, value, whether the row's day stays readable.
FAULTS: list[tuple[str, str | None, bool]] = [
    ("Quantity", "six", True),
    ("Quantity", "6.5", True),
    ("Quantity", None, True),
    ("Quantity", "1e3", True),
    ("UnitPrice", "free", True),
    ("UnitPrice", "2.5555", True),
    ("UnitPrice", None, True),
    ("UnitPrice", "nan", True),
    ("CustomerID", "anna", True),
    ("CustomerID", "17850.5", True),
    ("InvoiceNo", None, True),
    ("InvoiceNo", "  ", True),
    ("StockCode", None, True),
    ("Description", "a\x00b", True),
    ("InvoiceDate", None, False),
    ("InvoiceDate", "yesterday", False),
    ("InvoiceDate", "2010-02-30 10:00:00", False),
    ("InvoiceDate", "31/12/2010 10:00", False),
]


@dataclass(frozen=True)
class Source:
    """Generated source rows: each with its line, and its fault where it has one."""

    rows: list[tuple[Line, tuple[str, str | None, bool] | None]]

    def cells(self) -> list[Cells]:
        return [
            line.cells() if fault is None else with_cell(fault[0], fault[1], line)
            for line, fault in self.rows
        ]

    def good(self, day: date) -> list[Line]:
        return [x for x, fault in self.rows if fault is None and x.at.date() == day]

    def bad(self, day: date) -> list[Line]:
        return [x for x, fault in self.rows if fault and fault[2] and x.at.date() == day]


sources = st.builds(
    Source,
    st.lists(
        st.tuples(lines, st.one_of(st.none(), st.none(), st.none(), st.sampled_from(FAULTS))),
        min_size=1,
        max_size=30,
    ),
)
DAYS = [FIRST + timedelta(days=n) for n in range((LAST - FIRST).days + 1)]


@settings(deadline=None, max_examples=20)
@given(source=sources, last=st.sampled_from([LAST, date(2010, 12, 5)]))
def test_every_row_read_is_written_a_duplicate_or_quarantined(source: Source, last: date) -> None:
    with typed(text_table(source.cells())) as connection:
        ledgers = rows_of(connection).ledgers(FIRST, last)
        outside = records(rows_of(connection).outside(FIRST, last))
        written = records(rows_of(connection).good("true"))
        rejected = records(rows_of(connection).quarantined("true"))
    inside = [day for day in DAYS if day <= last]

    for day in inside:
        ledger = ledgers.get(str(day), EMPTY_DAY)
        good, bad = source.good(day), source.bad(day)
        assert ledger.read == len(good) + len(bad)
        assert ledger.duplicates == len(good) - len({x.identity() for x in good})
        assert ledger.quarantined == len(bad)
        assert ledger.written == len([w for w in written if w["invoice_date"] == day])
        assert ledger.quarantined == len([r for r in rejected if r["invoice_date"] == day])
    assert set(ledgers) <= {str(day) for day in inside}
    assert sum(x.read for x in ledgers.values()) + len(outside) == len(source.rows)


@settings(deadline=None, max_examples=20)
@given(source=sources)
def test_no_row_is_lost_and_money_is_exact(source: Source) -> None:
    cells = source.cells()
    with typed(text_table(cells)) as connection:
        written = records(rows_of(connection).good("true"))
        rejected = records(
            connection.sql("select _row, _text from typed where _reason is not null")
        )

    kept = {line.identity(): line for line, fault in source.rows if fault is None}
    assert Counter(w["transaction_id"] for w in written) == Counter(list(kept))
    assert all(isinstance(w["total_price"], Decimal) for w in written)
    assert sum(w["total_price"] for w in written) == sum(
        x.quantity * x.unit_price for x in kept.values()
    )
    for day in DAYS:
        found = [w["total_price"] for w in written if w["invoice_date"] == day]
        due = [x.quantity * x.unit_price for x in kept.values() if x.at.date() == day]
        assert sum(found) == sum(due)
    broken = {
        number: row
        for number, (row, (_, fault)) in enumerate(zip(cells, source.rows, strict=True), start=2)
        if fault
    }
    assert {r["_row"]: json.loads(r["_text"]) for r in rejected} == broken


@settings(deadline=None, max_examples=15)
@given(source=sources, data=st.data())
def test_fingerprints_do_not_depend_on_the_order_of_rows_or_tables(
    source: Source, data: st.DataObject
) -> None:
    cells = source.cells()
    shuffled = data.draw(st.permutations(cells))
    cut = data.draw(st.integers(0, len(cells)))
    with typed(text_table(cells)) as connection:
        before = rows_of(connection).ledgers(FIRST, LAST)
    with typed(text_table(shuffled[:cut], "a"), text_table(shuffled[cut:], "b", 3)) as connection:
        after = rows_of(connection).ledgers(FIRST, LAST)

    assert after == before


CHANGES: list[Callable[[Line], Line]] = [
    lambda x: replace(x, invoice_no="999999"),
    lambda x: replace(x, stock_code="NEW"),
    lambda x: replace(x, description="new"),
    lambda x: replace(x, description=f"{x.description} "),
    lambda x: replace(x, quantity=x.quantity + 100),
    lambda x: replace(x, at=x.at.replace(second=59)),
    lambda x: replace(x, unit_price=x.unit_price + Decimal("0.010")),
    lambda x: replace(x, customer_id=1),
    lambda x: replace(x, country="Spain"),
]


@settings(deadline=None, max_examples=15)
@given(source=sources, change=st.sampled_from(CHANGES), data=st.data())
def test_any_change_of_a_row_changes_its_day_and_no_other(
    source: Source, change: Callable[[Line], Line], data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(source.rows) - 1))
    line, fault = source.rows[index]
    changed = list(source.cells())
    if fault is None:
        changed[index] = change(line).cells()
    elif fault[2]:
        changed[index] = [*changed[index][:7], f"{changed[index][7]} changed"]
    else:
        changed[index] = line.cells()
    with typed(text_table(source.cells())) as connection:
        before = rows_of(connection).ledgers(FIRST, LAST)
    with typed(text_table(changed)) as connection:
        after = rows_of(connection).ledgers(FIRST, LAST)

    day = str(line.at.date())
    assert before.get(day) != after.get(day)
    if day in before and day in after:
        assert before[day].fingerprint != after[day].fingerprint
    assert {k: v for k, v in before.items() if k != day} == {
        k: v for k, v in after.items() if k != day
    }


@settings(deadline=None, max_examples=15)
@given(source=sources, data=st.data())
def test_a_row_more_or_less_changes_its_day(source: Source, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(source.rows) - 1))
    line, fault = source.rows[index]
    day = str(line.at.date())
    cells = source.cells()
    with typed(text_table([*cells, cells[index]])) as connection:
        more = rows_of(connection).ledgers(FIRST, LAST)
    with typed(text_table(cells)) as connection:
        less = rows_of(connection).ledgers(FIRST, LAST)

    if fault and not fault[2]:
        assert more == less
    else:
        assert more[day].fingerprint != less[day].fingerprint
        assert more[day].read == less[day].read + 1


def oracle(line: Line) -> dict[str, Any]:
    """The landed row, by the written rules."""
    if line.invoice_no[0] in "Cc":
        line_type = "return"
    elif line.invoice_no[0] in "Aa":
        line_type = "bad_debt"
    elif line.quantity <= 0:
        line_type = "adjustment"
    elif line.unit_price <= 0:
        line_type = "gift"
    else:
        line_type = "sale"
    code = line.stock_code
    return {
        "transaction_id": line.identity(),
        "invoice_no": line.invoice_no,
        "stock_code": code,
        "description": "Unknown" if line.description is None else line.description.lower(),
        "quantity": line.quantity,
        "unit_price": line.unit_price,
        "total_price": line.quantity * line.unit_price,
        "customer_id": line.customer_id or 0,
        "country": line.country,
        "invoice_datetime": line.at,
        "invoice_date": line.at.date(),
        "time": f"{line.at:%H:%M:%S}",
        "month": f"{line.at:%B}",
        "day": f"{line.at:%A}",
        "year": line.at.year,
        "line_type": line_type,
        "is_product": len(code) >= 5 and all(c in "0123456789" for c in code[:5]),
    }


@settings(deadline=None, max_examples=20)
@given(
    chosen=st.lists(lines, min_size=1, max_size=20),
    moved=st.lists(st.integers(-700, 700), min_size=20, max_size=20),
)
def test_derived_columns_are_those_of_the_written_rules(
    chosen: list[Line], moved: list[int]
) -> None:
    spread = [replace(x, at=x.at + timedelta(days=n)) for x, n in zip(chosen, moved, strict=False)]
    with typed(text_table([x.cells() for x in spread])) as connection:
        relation = rows_of(connection).good("true")
        assert tuple(relation.columns) == ONLINE_RETAIL_DATA.column_names
        found = {row["transaction_id"]: row for row in records(relation)}

    assert found == {x.identity(): oracle(x) for x in spread}


def test_derived_types_are_those_of_the_contract() -> None:
    with typed(text_table([LINE.cells()])) as connection:
        relation = rows_of(connection).good("true")
        found = {
            name: str(kind) for name, kind in zip(relation.columns, relation.types, strict=True)
        }

    assert found == ONLINE_RETAIL_DATA.duckdb_columns


def test_a_predicate_takes_only_its_days() -> None:
    other = replace(LINE, at=datetime(2010, 12, 2, 0, 0))
    bad = with_cell("Quantity", "x", other)
    with typed(text_table([LINE.cells(), other.cells(), bad])) as connection:
        where = day_predicate("invoice_date", ["2010-12-02"])
        written = records(rows_of(connection).good(where))
        rejected = records(rows_of(connection).quarantined(where))

    assert [w["transaction_id"] for w in written] == [other.identity()]
    assert [r["row"] for r in rejected] == [4]


@pytest.mark.parametrize(
    ("column", "value", "typed_column", "expected"),
    [
        ("InvoiceNo", " 536365\t", "invoice_no", "536365"),
        ("StockCode", "\xa085123A ", "stock_code", "85123A"),
        ("Country", " EIRE ", "country", "EIRE"),
        ("Description", " Two  Spaces ", "description", " Two  Spaces "),
        ("Description", None, "description", None),
        ("Quantity", " 6.0 ", "quantity", 6),
        ("Quantity", "+7", "quantity", 7),
        ("Quantity", "-7.", "quantity", -7),
        ("CustomerID", "9007199254740993", "customer_id", 9007199254740993),
        ("UnitPrice", "4.1500000000000004", "unit_price", Decimal("4.150")),
        ("UnitPrice", "-0.001", "unit_price", Decimal("-0.001")),
        ("UnitPrice", "999999999.999", "unit_price", Decimal("999999999.999")),
        ("CustomerID", "17850.0", "customer_id", 17850),
        ("CustomerID", " ", "customer_id", None),
        ("InvoiceDate", "12/1/2010 8:26", "invoice_datetime", datetime(2010, 12, 1, 8, 26)),
        ("InvoiceDate", "12/1/10 8:26", "invoice_datetime", datetime(2010, 12, 1, 8, 26)),
        (
            "InvoiceDate",
            "12/31/2010 23:59:58",
            "invoice_datetime",
            datetime(2010, 12, 31, 23, 59, 58),
        ),
        ("InvoiceDate", "12/1/2010", "invoice_datetime", datetime(2010, 12, 1)),
        ("InvoiceDate", "2010-12-01T08:26", "invoice_datetime", datetime(2010, 12, 1, 8, 26)),
        ("InvoiceDate", "2010-12-01", "invoice_datetime", datetime(2010, 12, 1)),
    ],
)
def test_a_value_is_typed(column: str, value: str | None, typed_column: str, expected: Any) -> None:
    row = type_one(with_cell(column, value))

    assert row["_reason"] is None
    assert row[typed_column] == expected


MISSING = ["NULL", "null", "nan", "NaN", "None", "NA", "N/A", "\\N", " NULL "]


@pytest.mark.parametrize("word", MISSING)
def test_a_word_for_nothing_is_no_customer_and_no_code(word: str) -> None:
    row = type_one(with_cell("CustomerID", word))
    assert row["_reason"] is None and row["customer_id"] is None
    assert row["transaction_id"] == type_one(with_cell("CustomerID", None))["transaction_id"]
    assert type_one(with_cell("StockCode", word))["_reason"] == "stock_code is empty"


def test_a_missing_name_costs_no_row() -> None:
    for column, word in (("Country", None), ("Country", "nan"), ("Description", "NULL")):
        with typed(text_table([with_cell(column, word)])) as connection:
            (row,) = records(rows_of(connection).good("true"))
        assert row[column.lower()] == {"Country": "Unspecified", "Description": "Unknown"}[column]
    assert type_one(with_cell("Country", "NA"))["country"] == "NA"  # Namibia


@pytest.mark.parametrize("column", ["InvoiceNo", "StockCode"])
def test_a_code_that_was_taken_for_a_number_is_the_code(column: str) -> None:
    name = {"InvoiceNo": "invoice_no", "StockCode": "stock_code"}[column]
    assert type_one(with_cell(column, "536365.0"))[name] == "536365"
    assert type_one(with_cell(column, "0536365.00"))[name] == "0536365"
    assert type_one(with_cell(column, "C536365.0"))[name] == "C536365.0"
    for text in ("5.36E+05", "5,36E+05", "5e+05"):
        assert type_one(with_cell(column, text))["_reason"] == (
            f"{name}: expected a code, found {text}, which has lost digits"
        )
    for text in ("#N/A", "######", '="536365"', "'536365", "-1", "@"):
        assert type_one(with_cell(column, text))["_reason"] == (
            f"{name}: expected a code, found {text}"
        )
    assert "customer_id" in type_one(with_cell("CustomerID", "1.78E+04"))["_reason"]


def test_a_table_is_typed_in_the_order_that_it_is_read_in() -> None:
    texts = ["13.12.2010 8.26", "01.12.2010 08:26 PM", "2010-12-02 12:05:00 AM"]
    table = text_table([with_cell("InvoiceDate", text) for text in texts])
    with typed(table, order="dmy") as connection:
        rows = records(connection.sql("select * from typed order by _row"))
    assert [row["invoice_datetime"] for row in rows] == [
        datetime(2010, 12, 13, 8, 26),
        datetime(2010, 12, 1, 20, 26),
        datetime(2010, 12, 2, 0, 5),
    ]


@pytest.mark.parametrize(
    ("texts", "order", "settled"),
    [
        (["12/1/2010 8:26"], None, "mdy"),
        (["01/12/2010 08:26", "13/12/2010 08:26"], None, "dmy"),
        (["01/12/2010 08:26"], "dmy", "dmy"),
        (["01/12/2010 08:26"], "iso", "iso"),
        (["01/12/2010 08:26"], None, None),
    ],
)
def test_dates_are_settled_by_the_setting_or_the_column(
    texts: list[str], order: Order | None, settled: Order | None
) -> None:
    table = text_table([with_cell("InvoiceDate", text) for text in texts])
    read = ReadTable(table, FIELDS, Reading(), Moments())
    type_rows(shared_connection(), [read]).fetchall()
    if settled:
        assert read.settle(order) == Reading(settled)
        return
    with pytest.raises(
        AmbiguousDatesError, match=r"'01/12/2010 08:26'.*RETAIL_ONLINE_RETAIL_DATES"
    ):
        read.settle(order)


def test_a_comma_is_decimal_only_beside_another_delimiter() -> None:
    def reasons(delimiter: str, *prices: str) -> tuple[Reading, list[str | None]]:
        reading = Reading()
        while True:  # as the source reads it
            table = text_table([with_cell("UnitPrice", price) for price in prices])
            table.delimiter = delimiter
            read = ReadTable(table, FIELDS, reading, Moments())
            found = (
                type_rows(shared_connection(), [read]).order("_row").project("_reason").fetchall()
            )
            settled = read.settle(None)
            if settled == reading:
                return settled, [reason for (reason,) in found]
            reading = settled

    assert reasons(";", "2,55", "3") == (Reading(decimal=","), [None, None])
    assert reasons(";", "2.55", "3") == (Reading(), [None, None])
    # A point beside decimal commas: thousands, or a fraction. Nobody knows.
    reading, (first, second) = reasons(";", "2,55", "1.234")
    assert reading.decimal == "," and first is None and second is not None
    assert reasons(";", "2,550") == (Reading(decimal=","), [None])
    assert reasons("\t", "2,550", "2,5 ") == (Reading(decimal=","), [None, None])
    # A comma that may part thousands proves nothing; one before a point does part them.
    for delimiter, price in (("\t", "1,234"), ("\t", "1,234.50"), (";", "1,234.50")):
        reading, (first, second) = reasons(delimiter, price, "2.55")
        assert reading.decimal == "." and first is not None and second is None
    table = text_table([["536365,0", "8,5", "A,B", "6,0", "2010-12-01", "2,55", "17850,0", "A,0"]])
    read = ReadTable(table, FIELDS, Reading(decimal=","), Moments())
    names = "invoice_no, stock_code, description, quantity, customer_id, country"
    (row,) = type_rows(shared_connection(), [read]).project(names).fetchall()
    assert row == ("536365", "8,5", "A,B", 6, 17850, "A,0")
    reading, (first,) = reasons(",", "2,55")
    assert reading.decimal == "." and first is not None


@pytest.mark.parametrize("column", ["Description", "CustomerID", "Country", "InvoiceDate"])
def test_the_mark_of_a_cell_without_a_value_rejects_its_row(column: str) -> None:
    table = text_table([with_cell(column, "#REF!"), LINE.cells()])
    table.has_marked_cells = True
    read = ReadTable(table, FIELDS, Reading(), Moments())
    rows = type_rows(shared_connection(), [read]).order("_row").project("_reason").fetchall()
    assert [reason for (reason,) in rows] == [
        f"{list(read.match.positions)[HEADER.index(column)]}: expected a value, found #REF!",
        None,
    ]


@pytest.mark.parametrize(
    ("column", "value", "has_day"), [*FAULTS, ("InvoiceDate", "infinity", False)]
)
def test_a_value_that_cannot_be_typed_rejects_its_row(
    column: str, value: str | None, has_day: bool
) -> None:
    cells = with_cell(column, value)
    row = type_one(cells)

    assert row["_reason"]
    assert row["transaction_id"] is None
    assert (row["invoice_date"] == date(2010, 12, 1)) is has_day
    assert json.loads(row["_text"]) == cells


@pytest.mark.parametrize("value", ["1_000", "0x10", "1 000", "1,5", "£5", "1e400", "1e-4"])
def test_a_price_that_is_no_plain_number_rejects_its_row(value: str) -> None:
    assert type_one(with_cell("UnitPrice", value))["_reason"] is not None


def test_a_reason_names_the_column_and_what_was_found() -> None:
    assert type_one(with_cell("Quantity", "half a dozen"))["_reason"] == (
        "quantity: expected a whole number, found half a dozen"
    )
    assert "found nothing" in type_one(with_cell("Quantity", None))["_reason"]
    for control in "\x1b\x07\x7f\x9b\n":
        assert type_one(with_cell("Quantity", f"{control}[31m6"))["_reason"].endswith(
            "found ?[31m6"
        )


def test_a_total_beyond_its_type_rejects_its_row() -> None:
    cells = with_cell("Quantity", "999999999")
    cells[HEADER.index("UnitPrice")] = "999999999.999"

    assert "exceeds" in type_one(cells)["_reason"]


def test_rows_of_days_outside_the_span_are_told_one_a_copy() -> None:
    far = replace(LINE, at=datetime(2031, 1, 1, 9, 0))
    rows = [LINE.cells(), far.cells(), far.cells(), with_cell("InvoiceDate", "never")]
    with typed(text_table(rows)) as connection:
        outside = records(rows_of(connection).outside(FIRST, LAST))

    assert [(r["source"], r["row"]) for r in outside] == [("table", n) for n in (3, 3, 5)]
    reason = outside[0]["reason"]
    assert "expected a day inside 2010-12-01...2010-12-10" in reason
    assert reason.endswith("found 2031-01-01 09:00:00")
    assert json.loads(outside[0]["text"])[0] == "536365"
    assert "never" in outside[2]["reason"]


def test_an_infinite_date_has_no_day_though_the_end_is_open() -> None:
    with typed(text_table([LINE.cells(), with_cell("InvoiceDate", "infinity")])) as connection:
        ledgers = rows_of(connection).ledgers(FIRST, date.max)
        outside = records(rows_of(connection).outside(FIRST, date.max))

    assert list(ledgers) == ["2010-12-01"]
    assert [r["row"] for r in outside] == [3]


# ---- transaction_id


def test_the_identity_is_the_documented_hash() -> None:
    text = (
        "536365\x1f85123A\x1fWHITE HANGING HEART T-LIGHT HOLDER\x1f6\x1f2010-12-01 08:26:00"
        "\x1f2.550\x1f17850\x1fUnited Kingdom"
    )
    expected = hashlib.sha256(text.encode()).hexdigest()[:32]

    assert type_one(LINE.cells())["transaction_id"] == expected == LINE.identity()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (replace(LINE, description=None), replace(LINE, description="\x1e")),
        (
            replace(LINE, stock_code="A", description="B\x1fC"),
            replace(LINE, stock_code="A\x1fB", description="C"),
        ),
    ],
    ids=["null mark", "separator"],
)
def test_different_rows_never_share_an_identity(one: Line, other: Line) -> None:
    with typed(text_table([one.cells(), other.cells()])) as connection:
        copies = [row["_copies"] for row in records(connection.sql("from typed"))]

    assert copies == [1, 1]


def us_date(at: datetime) -> str:
    return f"{at.month}/{at.day}/{at.year} {at.hour}:{at.minute:02}"


def as_csv(rows: Sequence[Cells], header: list[str], encoding: str = "utf-8") -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([header, *([c or "" for c in row] for row in rows)])
    return buffer.getvalue().encode(encoding)


def iso_csv(chosen: Sequence[Line]) -> bytes:
    return as_csv([x.cells() for x in chosen], HEADER)


def us_csv(chosen: Sequence[Line]) -> bytes:
    rows = []
    for x in chosen:
        cells = x.cells()
        cells[4] = us_date(x.at)
        cells[6] = None if x.customer_id is None else str(x.customer_id)
        rows.append(cells)
    return as_csv(rows, HEADER, "cp1252")


def ii_csv(chosen: Sequence[Line]) -> bytes:
    order = [7, 0, 1, 2, 3, 4, 5, 6]
    rows = [[x.cells()[i] for i in order] for x in chosen]
    return b"\xef\xbb\xbf" + as_csv(rows, [HEADER_II[i] for i in order])


def xlsx(header: list[str], *sheets: Sequence[Line]) -> bytes:
    """As published: numbers as numeric cells wherever a text is one, dates as dates."""
    buffer = io.BytesIO()
    with xlsxwriter.Workbook(buffer) as book:
        when = book.add_format({"num_format": "m/d/yy h:mm"})
        for number, chosen in enumerate(sheets):
            sheet = book.add_worksheet(f"Year {number}")
            sheet.write_row(0, 0, header)
            for row, x in enumerate(chosen, start=1):
                texts = [x.invoice_no, x.stock_code, x.description]
                for column, value in enumerate(texts):
                    if value is not None and value.isdigit():
                        sheet.write_number(row, column, int(value))
                    elif value is not None:
                        sheet.write_string(row, column, value)
                sheet.write_number(row, 3, x.quantity)
                sheet.write_datetime(row, 4, x.at, when)
                sheet.write_number(row, 5, float(x.unit_price))
                if x.customer_id is not None:
                    sheet.write_number(row, 6, x.customer_id)
                sheet.write_string(row, 7, x.country)
    return buffer.getvalue()


def zipped(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


SHAPES: dict[str, Callable[[Sequence[Line]], bytes]] = {
    "iso.csv": iso_csv,
    "us.csv": us_csv,
    "two.csv": ii_csv,
    "one.xlsx": lambda x: xlsx(HEADER, x),
    "two.xlsx": lambda x: xlsx(HEADER_II, x),
    "us.csv.gz": lambda x: gzip.compress(us_csv(x)),
    "iso.zip": lambda x: zipped("online_retail.csv", iso_csv(x)),
    "one.zip": lambda x: zipped("Online Retail.xlsx", xlsx(HEADER, x)),
    "two.xlsx.gz": lambda x: gzip.compress(xlsx(HEADER_II, x)),
}


def identities(folder: Path, *files: tuple[str, bytes]) -> dict[str, int]:
    """transaction_id -> copies of all the files' rows; none may be rejected."""
    with ExitStack() as stack:
        tables: list[TextTable] = []
        for name, data in files:
            path = folder / name
            path.write_bytes(data)
            tables += stack.enter_context(open_tables(path, folder / "scratch")).tables
        with typed(*tables) as connection:
            found = records(connection.sql("from typed"))
    assert [row["_reason"] for row in found if row["_reason"]] == []
    return {row["transaction_id"]: row["_copies"] for row in found}


QUIRKS = [
    LINE,
    LINE,
    replace(LINE, customer_id=None, description=None),
    replace(LINE, stock_code="22423", description="20713"),
    replace(LINE, invoice_no="C536379", quantity=-1, description=" POPPY'S  PLAYHOUSE "),
    replace(LINE, invoice_no="A563185", stock_code="B", unit_price=Decimal("-11062.06")),
    replace(LINE, stock_code="POST", description='Café £5, "6" €', unit_price=Decimal("0.001")),
    replace(LINE, at=datetime(2011, 12, 9, 12, 50), country="EIRE", unit_price=Decimal("8142.75")),
    replace(LINE, at=datetime(2010, 12, 1, 0, 0), description="?"),
    replace(LINE, description="one\ntwo", unit_price=Decimal("38970")),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_identity_is_equal_in_every_shape(tmp_path: Path, shape: str) -> None:
    found = identities(tmp_path, (shape, SHAPES[shape](QUIRKS)))

    assert found == Counter(x.identity() for x in QUIRKS)


@settings(deadline=None, max_examples=15)
@given(chosen=st.lists(lines, min_size=1, max_size=6), shape=st.sampled_from(sorted(SHAPES)))
def test_the_identity_of_any_row_is_equal_in_every_shape(chosen: list[Line], shape: str) -> None:
    if shape == "two.xlsx.gz":
        shape = "two.xlsx"
    with tempfile.TemporaryDirectory() as folder:
        found = identities(Path(folder), (shape, SHAPES[shape](chosen)))

    assert found == Counter(x.identity() for x in chosen)


def test_every_minute_of_a_day_comes_back_from_a_workbook(tmp_path: Path) -> None:
    minutes = [replace(LINE, at=datetime(2011, 3, 4) + timedelta(minutes=n)) for n in range(1440)]

    found = identities(tmp_path, ("day.xlsx", xlsx(HEADER, minutes)))

    assert set(found) == {x.identity() for x in minutes}


def test_rows_of_two_sheets_and_files_that_overlap_are_there_once(tmp_path: Path) -> None:
    days = [replace(LINE, at=LINE.at + timedelta(days=n)) for n in range(6)]

    found = identities(
        tmp_path,
        ("two.xlsx", xlsx(HEADER_II, days[:3], days[2:5])),
        ("one.csv.gz", gzip.compress(us_csv(days[4:]))),
    )

    assert found == {x.identity(): 2 if n in (2, 4) else 1 for n, x in enumerate(days)}


# ---- headers


@pytest.mark.parametrize("header", [HEADER, HEADER_II])
@pytest.mark.parametrize("case", [str, str.upper, str.lower])
def test_both_spellings_match_in_any_case(header: list[str], case: Callable[[str], str]) -> None:
    match = FIELDS.match([f" {case(name)} " for name in header], "t")

    assert list(match.positions.values()) == list(range(8))
    assert match.extra == ()


@given(order=st.permutations(range(8)), header=st.sampled_from([HEADER, HEADER_II]))
def test_a_header_matches_in_any_order(order: list[int], header: list[str]) -> None:
    match = FIELDS.match([header[i] for i in order], "t")

    assert [order[place] for place in match.positions.values()] == list(range(8))


def test_blanks_are_no_part_of_a_name() -> None:
    assert FIELDS.match(["Invoice No", *HEADER[1:]], "t").positions["invoice_no"] == 0


def test_extra_columns_are_reported() -> None:
    match = FIELDS.match(["Till", *HEADER, "", "Colour"], "t")

    assert match.extra == ("Till", "Colour")
    assert match.positions["invoice_no"] == 1


@pytest.mark.parametrize("missing", range(8))
def test_a_missing_column_says_what_was_expected_and_found(missing: int) -> None:
    names = [name for i, name in enumerate(HEADER) if i != missing]

    with pytest.raises(SchemaDriftError) as error:
        FIELDS.match(names, "sales.csv")

    message = str(error.value)
    assert message.startswith("sales.csv: missing " + HEADER_II[missing]) or message.startswith(
        "sales.csv: missing " + HEADER[missing]
    )
    assert ", ".join(names) in message


@pytest.mark.parametrize(
    "twice", [("Quantity", "quantity"), ("UnitPrice", "Price"), ("CustomerID", "Customer ID")]
)
def test_a_column_that_stands_there_twice_is_refused(twice: tuple[str, str]) -> None:
    names = [name for name in HEADER if name != twice[0]]

    with pytest.raises(SchemaDriftError, match=f"2 times .{twice[0]}, {twice[1]}"):
        FIELDS.match([*names, *twice], "sales.csv")


# ---- quarantine


def test_sources_are_labelled_by_name() -> None:
    bad = with_cell("Quantity", "x")
    with typed(text_table([LINE.cells()], "a.csv"), text_table([bad], "b's.csv")) as connection:
        rows = rows_of(connection).quarantined("true").to_arrow_table()

    assert rows.column_names == ["invoice_date", *FEED.quarantine.column_names]
    (row,) = rows.to_pylist()
    assert (row["source"], row["row"]) == ("b's.csv", 2)
    assert json.loads(row["text"]) == bad


def test_rows_that_never_became_fields_keep_their_text() -> None:
    rows = [("a.csv", 7, "too short", 'x,"é'), ("a.csv", None, "y", "z")]
    table = rows_of(shared_connection()).rejected(rows)

    assert table.schema == FEED.quarantine.arrow_schema
    assert [json.loads(text) for text in table["text"].to_pylist()] == [['x,"é'], ["z"]]
    assert table["row"].to_pylist() == [7, None]


# ---- days

day_sets = st.sets(st.integers(0, 45)).map(
    lambda found: {(date(2011, 12, 15) + timedelta(days=n)).isoformat() for n in found}
)


@settings(deadline=None, max_examples=50)
@given(days=day_sets)
def test_the_predicate_takes_exactly_the_days(days: set[str]) -> None:
    taken = (
        shared_connection()
        .execute(
            "select day::date::varchar from generate_series(date '2011-12-10', date '2012-02-10',"
            f" interval 1 day) as t(day) where {day_predicate('day::date', sorted(days))}"
        )
        .fetchall()
    )

    assert [day for (day,) in taken] == sorted(days)


def test_a_predicate_of_no_days_takes_none() -> None:
    with typed(text_table([LINE.cells()])) as connection:
        assert records(rows_of(connection).good(day_predicate("invoice_date", []))) == []


def test_every_pair_of_changes_is_told_apart() -> None:
    """The fingerprints of all single changes of one row differ from one another."""
    fingerprints = []
    for change in CHANGES:
        with typed(text_table([change(LINE).cells()])) as connection:
            (ledger,) = rows_of(connection).ledgers(FIRST, LAST).values()
        fingerprints.append(ledger.fingerprint)

    assert all(a != b for a, b in itertools.combinations(fingerprints, 2))

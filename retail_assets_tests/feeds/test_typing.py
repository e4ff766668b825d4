"""Tests of retail_assets.feeds.typing: files of text become rows as their contract declares."""

import csv
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
import xlsxwriter
from hypothesis import given, settings
from hypothesis import strategies as st

from retail_assets.dataset import MISSING_WORDS, Column, Dataset
from retail_assets.feeds.reading import AmbiguousDatesError, Dates, ReadFiles, SchemaDriftError
from retail_assets.feeds.typing import type_files
from retail_assets.losses import public_reason

Row = dict[str, Any]
Cells = Sequence[str | None]


def table_of(*columns: Column, partition_by: str | None = None) -> Dataset:
    return Dataset("shop", "visits", "Visits.", columns, partition_by=partition_by)


def column(name: str, kind: str, **more: Any) -> Column:
    return Column(name, kind, f"The {name}.", **more)


@cache
def shared_connection() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1})


def csv_of(header: Cells, rows: Sequence[Cells], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerows([header, *rows])
    return text.getvalue().encode()


def type_bytes(
    dataset: Dataset, *files: bytes, dates: Dates = "auto", name: str = "visits.csv", **more: Any
) -> tuple[list[Row], ReadFiles]:
    """The typed rows as Python has them, and what was read."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, content in enumerate(files):
            path = Path(folder, str(number), name)
            path.parent.mkdir()
            path.write_bytes(content)
            paths.append(path)
        target = Path(folder, "typed.parquet")
        scratch = Path(folder, "scratch")
        read = type_files(shared_connection(), paths, dataset, target, scratch, dates=dates, **more)
        rows: list[Row] = pq.read_table(target).to_pylist()
    return rows, read


def type_column(kind: str, *texts: str | None, delimiter: str = ",", **more: Any) -> list[Row]:
    """What becomes of texts in a column of that type, beside one of numbers, in order."""
    dataset = table_of(column("n", "int64"), column("x", kind, **more))
    rows = [[str(i), text] for i, text in enumerate(texts)]
    return type_bytes(dataset, csv_of(["n", "x"], rows, delimiter))[0]


def only(kind: str, text: str | None, delimiter: str = ",", **more: Any) -> Row:
    (row,) = type_column(kind, text, delimiter=delimiter, **more)
    return row


# ---- numbers


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=20), st.booleans())
def test_whole_numbers_are_exact_or_told(numbers: list[int], pointed: bool) -> None:
    rows = type_column("int64", *(f"{n}.0" if pointed else f"{n}" for n in numbers), nullable=True)

    for n, row in zip(numbers, rows, strict=True):
        fits = -(2**63) <= n < 2**63
        assert row["x"] == (n if fits else None)
        assert (row["_left_out"] is None) == fits and row["_reason"] is None


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.decimals(-(10**7), 10**7, places=None, allow_nan=False).map(lambda d: f"{d:f}"),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from([",", ";"]),
)
def test_decimals_are_exact_or_told(texts: list[str], delimiter: str) -> None:
    shown = [t.replace(".", ",") for t in texts] if delimiter == ";" else texts
    rows = type_column("decimal(9,3)", *shown, delimiter=delimiter, nullable=True)

    for text, row in zip(texts, rows, strict=True):
        number = Decimal(text)
        fits = number == round(number, 3) and abs(number) < 10**6
        assert row["x"] == (number if fits else None)
        assert (row["_left_out"] is None) == fits


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("int64", " 7 ", 7),
        ("int64", "+7", 7),
        ("int64", "007.", 7),
        ("int32", "2147483647", 2147483647),
        ("decimal(6,2)", "0012.500", Decimal("12.5")),
        ("decimal(6,2)", ".5", Decimal("0.5")),
        ("decimal(6,2)", "-5.", Decimal("-5")),
        ("bool", "Yes", True),
        ("bool", "0", False),
        ("string", " North  End ", "North  End"),
        ("string", "NA", "NA"),
        ("string", "007", "007"),
        ("date", "2024-03-01", date(2024, 3, 1)),
        ("date", "2024-03-01T23:59", date(2024, 3, 1)),
        ("timestamp", "2024-03-01 09:05", datetime(2024, 3, 1, 9, 5)),
    ],
)
def test_a_text_in_a_shape_of_its_type_is_its_value(kind: str, text: str, value: object) -> None:
    row = only(kind, text)

    assert (row["x"], row["_reason"], row["_left_out"], row["_text"]) == (value, None, None, None)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("int64", "6.5", "a whole number"),
        ("int64", "1e3", "a whole number"),
        ("int64", "1,000", "a whole number"),
        ("int32", "2147483648", "a whole number of 32 bits"),
        ("decimal(6,2)", "1.005", "a number of at most 4 digits and 2 decimals"),
        ("decimal(6,2)", "12345", "a number of at most 4 digits and 2 decimals"),
        ("decimal(6,2)", "2,55", "a number of at most 4 digits and 2 decimals"),
        ("decimal(6,2)", "1E+02", "a number of at most 4 digits and 2 decimals"),
        ("decimal(6,2)", ".", "a number of at most 4 digits and 2 decimals"),
        ("bool", "2", "true or false"),
        ("date", "2024-02-30", "a day"),
        ("date", "infinity", "a day"),
        ("timestamp", "yesterday", "a day and time"),
        ("string", "#N/A", "a text"),
        ("string", "####", "a text"),
        ("string", '="007"', "a text"),
    ],
)
def test_a_text_in_no_shape_costs_the_row_only_where_the_column_decides(
    kind: str, text: str, expected: str
) -> None:
    raw = json.dumps(["0", text], separators=(",", ":"))

    decides, side = only(kind, text), only(kind, text, nullable=True)

    assert decides["_reason"] == f"x: expected {expected}, found '{text}'"
    assert (decides["_left_out"], decides["_text"], decides["x"]) == (None, raw, None)
    assert side["_left_out"] == [f"x: expected {expected} or nothing, found '{text}'"]
    assert (side["_reason"], side["_text"], side["x"]) == (None, raw, None)


@pytest.mark.parametrize("kind", ["int64", "decimal(6,2)", "bool", "date", "timestamp", "string"])
@pytest.mark.parametrize("word", [w for w in MISSING_WORDS if w not in ("NA", "N/A")] + ["  "])
def test_words_that_stand_for_nothing_are_none(kind: str, word: str) -> None:
    decides, side = only(kind, word), only(kind, word, nullable=True)

    assert decides["_reason"] is not None and re.match("x: expected .*, found ", decides["_reason"])
    assert (side["x"], side["_left_out"], side["_reason"]) == (None, None, None)


def test_what_a_reason_shows_is_no_terminals_command() -> None:
    reason = only("int64", "\x1b[2J\x9b" + "a" * 99)["_reason"]

    assert reason == "x: expected a whole number, found '?[2J?" + "a" * 35 + "'"


def test_several_values_of_a_row_may_be_left_out() -> None:
    dataset = table_of(
        column("a", "int64", nullable=True),
        column("b", "date", nullable=True, pii=True),
        column("c", "string"),
    )
    ((row,), _) = type_bytes(dataset, csv_of("abc", [["one", "someday", "x"]]))

    assert len(row["_left_out"]) == 2 and row["c"] == "x"
    shown = [public_reason(reason, dataset.personal) for reason in row["_left_out"]]
    assert "'one'" in shown[0] and "someday" not in shown[1]


# ---- codes


def test_codes_of_digits_lose_a_floats_point_and_nothing_else() -> None:
    assert [
        row["x"] for row in type_column("string", "536365.0", "17850", None, nullable=True)
    ] == [
        "536365",
        "17850",
        None,
    ]
    # 1.1 says that these are no whole numbers, A1 that they are no numbers.
    for other in ("1.1", "A1"):
        assert [row["x"] for row in type_column("string", "2.0", other)] == ["2.0", other]


def test_codes_have_a_floats_comma_where_commas_are_decimal() -> None:
    dataset = table_of(column("code", "string"), column("price", "decimal(6,2)"))

    (row,), _ = type_bytes(dataset, csv_of(["code", "price"], [["536365,0", "2,55"]], ";"))
    assert (row["code"], row["price"]) == ("536365", Decimal("2.55"))
    (row,), _ = type_bytes(dataset, csv_of(["code", "price"], [["1,000", "2.55"]]))
    assert (row["code"], row["price"]) == ("1,000", Decimal("2.55"))


@pytest.mark.parametrize("text", ["5.36E+05", "5,36E+05", "5e+5"])
def test_a_code_that_a_spreadsheet_made_a_number_has_lost_digits(text: str) -> None:
    reason = f"x: expected a text, found '{text}', which has lost digits"

    assert only("string", text)["_reason"] == reason


# ---- dates


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.dates(date(1900, 1, 1), date(2100, 1, 1)), min_size=1, max_size=20),
    st.sampled_from([("mdy", "%m/%d/%Y"), ("dmy", "%d/%m/%Y"), ("iso", "%Y-%m-%d")]),
)
def test_dates_are_read_as_the_whole_column_says(
    days: list[date], shape: tuple[Dates, str]
) -> None:
    order, pattern = shape
    # A day above twelve proves which of the numbers the month is.
    days = [*days, date(2024, 1, 31)]
    content = csv_of("nx", [[str(i), day.strftime(pattern)] for i, day in enumerate(days)])
    dataset = table_of(column("n", "int64"), column("x", "date"))
    for given_order in ("auto", order):
        rows, _ = type_bytes(dataset, content, dates=given_order)

        assert [row["x"] for row in rows] == days


def test_where_nothing_says_the_order_the_setting_is_named() -> None:
    dataset = table_of(column("n", "int64"), column("x", "date", source="Day of visit"))
    content = csv_of(["n", "Day of visit"], [["1", "01/02/2024"]])

    with pytest.raises(AmbiguousDatesError, match=r"Day of visit: '01/02/2024'.* Set SHOP_DATES"):
        type_bytes(dataset, content, setting="SHOP_DATES")
    assert type_bytes(dataset, content, dates="dmy")[0][0]["x"] == date(2024, 2, 1)


def test_the_order_is_of_a_file_not_of_all() -> None:
    dataset = table_of(column("x", "date"))
    contents = [csv_of("x", [["01/02/2024"], [day]]) for day in ("13/02/2024", "02/13/2024")]

    rows, _ = type_bytes(dataset, *contents)

    assert sorted(row["x"] for row in rows) == [
        *(date(2024, 1, 2), date(2024, 2, 1)),
        *[date(2024, 2, 13)],
    ]
    assert sum(row["_copies"] for row in rows) == 4


def test_two_columns_may_be_of_one_field() -> None:
    dataset = table_of(
        column("at", "timestamp", source="When"), column("day", "date", source="When")
    )
    (row,), read = type_bytes(dataset, csv_of(["when", "who"], [["2024-03-01 09:05", "x"]]))

    assert (row["at"], row["day"]) == (datetime(2024, 3, 1, 9, 5), date(2024, 3, 1))
    assert read.extra == ("who",)


# ---- copies and keys

small = st.sampled_from(["1", "2", "x", ""])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(small, small, small), max_size=30), st.integers(0, 30))
def test_every_row_is_kept_a_copy_or_quarantined(
    lines: list[tuple[str, str, str]], cut: int
) -> None:
    dataset = table_of(
        column("a", "int64"), column("b", "int64", nullable=True), column("c", "string")
    )
    read_as = Counter(
        (int(a), b if b not in ("x", "") else None, b == "x", b if b == "x" else "", c)
        for a, b, c in lines
        if a.isdigit() and c
    )
    files = [csv_of("abc", part) for part in (lines[:cut], lines[cut:])]

    rows, read = type_bytes(dataset, *files)

    blank = sum(line == ("", "", "") for line in lines)
    assert sum(row["_copies"] for row in rows) == read.rows == len(lines) - blank
    good = [row for row in rows if row["_reason"] is None]
    assert sorted(row["_copies"] for row in good) == sorted(read_as.values())
    assert len([r for r in rows if r["_reason"]]) == len(lines) - blank - sum(read_as.values())
    assert [row["_row"] for row in good if row["_source"]] == [row["_row"] for row in good]


def test_a_key_that_comes_again_with_other_values_is_expected_once() -> None:
    dataset = table_of(column("store", "string", key=True), column("visits", "int64"))
    lines = [["A", "1"], ["B", "2"], ["A", "1"], ["A", "3"], ["B", "x"]]

    rows, read = type_bytes(dataset, csv_of(["store", "visits"], lines))

    assert [
        (row["store"], row["visits"], row["_copies"]) for row in rows if not row["_reason"]
    ] == [
        ("A", 1, 2),
        ("B", 2, 1),
    ]
    again, unreadable = (row for row in rows if row["_reason"])
    assert again["_reason"] == "store: expected once, found 'A' again"
    assert (again["_row"], again["_text"]) == (5, '["A","3"]')
    assert unreadable["_reason"].startswith("visits: expected")
    assert sum(row["_copies"] for row in rows) == read.rows


def test_a_key_of_several_columns_is_masked_by_the_personal_one() -> None:
    dataset = table_of(
        column("store", "string", key=True),
        column("who", "string", key=True, pii=True),
        column("n", "int64"),
    )
    lines = [["A", "Ann", "1"], ["B", "Ann", "2"], ["A", "Ann", "3"]]

    rows, _ = type_bytes(dataset, csv_of(["store", "who", "n"], lines))

    (reason,) = (row["_reason"] for row in rows if row["_reason"])
    assert reason == "who: expected once with store, found 'Ann' again"
    assert public_reason(reason, dataset.personal) == "who: expected once with store"


# ---- files


def test_constants_are_columns_that_no_file_has() -> None:
    dataset = table_of(column("n", "int64"), column("drop_date", "date"), partition_by="drop_date")

    (row, bad), _ = type_bytes(
        dataset, csv_of("n", [["1"], ["x"]]), constants={"drop_date": "2024-03-01"}
    )

    assert {row["drop_date"], bad["drop_date"]} == {date(2024, 3, 1)}
    assert bad["_reason"] == "n: expected a whole number, found 'x'"


def test_rows_are_in_the_order_of_their_partitions_a_bad_one_too() -> None:
    dataset = table_of(column("day", "date"), column("n", "int64"), partition_by="day")
    lines = [["2024-03-02", "1"], ["2024-03-01", "x"], ["2024-03-01", "2"], ["never", "3"]]

    rows, _ = type_bytes(dataset, csv_of(["day", "n"], lines))

    assert [row["_row"] for row in rows] == [5, 3, 4, 2]
    assert [row["_reason"] is None for row in rows] == [False, False, True, True]


def test_names_of_any_kind_are_no_matter_to_the_sql() -> None:
    names = ["row", "at", "text", "select", "Café", "x y", "0"]
    dataset = table_of(*(column(name, "int64") for name in names))

    (row,), _ = type_bytes(dataset, csv_of(names, [[str(i) for i in range(len(names))]]))

    assert [row[name] for name in names] == list(range(len(names)))


def test_a_column_that_is_not_there_says_where_to_name_it() -> None:
    dataset = table_of(column("n", "int64"), column("store", "string", source="Store no."))

    with pytest.raises(SchemaDriftError, match=r"missing Store no\.; found n, shop.*shop\.visits"):
        type_bytes(dataset, csv_of(["n", "shop"], [["1", "A"]]))


def test_a_ragged_row_is_told_by_the_reader() -> None:
    dataset = table_of(column("a", "int64"), column("b", "int64"))

    rows, read = type_bytes(dataset, b"a,b\n1,2\n1,2,3\n")

    assert read.rows == 2 and len(rows) == 1
    assert read.rejected == [("visits.csv", 3, "expected 2 fields, found 3", "1,2,3")]


def test_sheets_of_a_workbook_are_one_table(tmp_path: Path) -> None:
    path = tmp_path / "visits.xlsx"
    with xlsxwriter.Workbook(path) as book:
        for name, code in (("North", 7), ("South", 8)):
            sheet = book.add_worksheet(name)
            sheet.write_row(0, 0, ["code", "n", "at"])
            sheet.write_row(1, 0, [code, 1.5])
            form = book.add_format({"num_format": "yyyy-mm-dd hh:mm"})
            sheet.write_datetime(1, 2, datetime(2024, 3, 1, 9, 5), form)
    dataset = table_of(
        column("code", "string"), column("n", "decimal(4,1)"), column("at", "timestamp")
    )

    rows, read = type_bytes(dataset, path.read_bytes(), name="visits.xlsx")

    assert [(row["code"], row["n"], row["at"]) for row in rows] == [
        (code, Decimal("1.5"), datetime(2024, 3, 1, 9, 5)) for code in ("7", "8")
    ]
    assert len({row["_source"] for row in rows}) == 2 == len(read.labels)


def test_a_file_of_no_rows_gives_none() -> None:
    rows, read = type_bytes(table_of(column("n", "int64", key=True)), b"n\n")

    assert rows == [] and read.rows == 0

"""Tests of retail_assets.defs.coffee_chain.transforms, held against plain Python."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from retail_assets.dataset import MISSING_WORDS, Dataset
from retail_assets.defs.coffee_chain.contract import (
    CUSTOMER,
    OUTLET,
    PRODUCT,
    RAW_CUSTOMER,
    RAW_OUTLET,
    RAW_PRODUCT,
    RAW_SALES,
    SALES,
)
from retail_assets.defs.coffee_chain.sample import write_sample
from retail_assets.defs.coffee_chain.transforms import (
    CUSTOMER_COLUMNS,
    LEFT_OUT,
    REJECTED,
    SALES_COLUMNS,
    STAGED,
    STAGED_COPIES,
    STAGED_DROP,
    STAGED_PART,
    WHOLE,
    SmallTable,
    repair_encoding,
    split_left_out,
    split_rejected,
    stage_customers,
    stage_sales,
    type_outlets,
    type_products,
)
from retail_assets.resources.spark import EMBEDDED, SparkResource
from retail_assets_tests.identities import expected_identity

SPARK = SparkResource(master=EMBEDDED)
DROP = "2022-12-31"

Cells = tuple[str | None, ...]
Record = dict[str, Any]

SALE: Cells = ("0", "INV-1", "2022-05-06 07:08:09", "c-1", "MY001", "PD001", "2")
PERSON: Cells = ("0", "c-1", "Ann", "Lee", "Female", "1990-05-06", "ann@example.com", "+60 1")


@dataclass(frozen=True)
class Kind:
    """A table that Spark stages: how, and its good row to begin with."""

    dataset: Dataset
    columns: tuple[str, ...]
    good: Cells
    stage_rows: Callable[..., Any]

    def stage(self, rows: Sequence[Cells], drop: str = DROP) -> pa.Table:
        schema = ", ".join(f"{name} string" for name in self.columns)
        return self.stage_rows(SPARK.session.createDataFrame(list(rows), schema), drop).toArrow()

    def changed(self, **values: str | None) -> Cells:
        return tuple(
            values.get(name, value) for name, value in zip(self.columns, self.good, strict=True)
        )

    def rejected(self, rows: Sequence[Cells]) -> Counter[tuple[str, str]]:
        """Reason and text of the rows that were staged as rejected, with their copies."""
        return Counter(
            {
                split_rejected(row[self.dataset.column_names[0]]): int(row[STAGED_COPIES])
                for row in self.stage(rows).to_pylist()
                if row[STAGED_PART] == REJECTED
            }
        )

    def left_out(self, rows: Sequence[Cells]) -> Counter[tuple[str, str]]:
        """Reason and text of the rows that were staged without a value, with their copies."""
        return Counter(
            {
                split_left_out(row[self.dataset.column_names[0]])[:2]: int(row[STAGED_COPIES])
                for row in self.stage(rows).to_pylist()
                if row[STAGED_PART].startswith(LEFT_OUT)
            }
        )


SALE_LINES = Kind(SALES, SALES_COLUMNS, SALE, stage_sales)
PEOPLE = Kind(CUSTOMER, CUSTOMER_COLUMNS, PERSON, stage_customers)


# ---- the same, in plain Python


def moment_of(text: str | None) -> datetime | None:
    if text is None or not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}", text):
        return None
    try:
        return datetime.strptime(text, "%Y-%m-%d %H:%M:%S")
    except ValueError:
        return None


def day_of(text: str | None) -> date | None:
    moment = None if text is None else moment_of(f"{text} 00:00:00")
    return moment and moment.date()


def birthday_of(text: str | None) -> date | None:
    return day_of(text and text.removesuffix(" 00:00:00"))


def quantity_of(text: str | None) -> int | None:
    if text is None or not re.fullmatch(r"-?[0-9]+(\.0*)?", text):
        return None
    number = int(text.partition(".")[0])
    return number if -(2**31) <= number < 2**31 else None


def id_of(text: str | None) -> str | None:
    whole, point, zeros = (text or "").partition(".")
    is_float = point and not zeros.strip("0") and whole.isascii() and whole.isdigit()
    return whole if is_float else text


def found_in(text: str | None) -> str:
    """As a reason has it, which ends at the first unit separator."""
    return "none" if text is None else "'" + text.replace("\x1f", " ") + "'"


def identity_of(row: Cells, drop: str = DROP) -> str:
    return expected_identity([drop, *row[1:]])


def rejected_as(reason: str, row: Cells) -> tuple[str, str]:
    return reason, ",".join(value or "" for value in row)


def sale_of(row: Cells) -> Record | tuple[str, str]:
    """The row of the table with its part, or reason and text."""
    _, invoice_no, at, customer_id, outlet_id, product_id, quantity = row
    moment, units = moment_of(at), quantity_of(quantity)
    if moment is None:
        expected = "a valid YYYY-MM-DD HH:MM:SS"
        return rejected_as(f"date_time: expected {expected}, found {found_in(at)}", row)
    if units is None:
        expected = "a whole number of 32 bits"
        return rejected_as(f"quantity: expected {expected}, found {found_in(quantity)}", row)
    return {
        "sale_line_id": identity_of(row),
        "drop_date": date.fromisoformat(DROP),
        "invoice_no": invoice_no,
        "date_time": moment,
        "sale_date": moment.date(),
        "sale_year": moment.year,
        "customer_id": id_of(customer_id),
        "outlet_id": id_of(outlet_id),
        "product_id": id_of(product_id),
        "quantity": units,
        STAGED_PART: str(moment.year),
    }


def person_of(row: Cells) -> Record | tuple[str, str]:
    _, customer_id, first_name, last_name, gender, birthday, email, phone_no = row
    day = birthday_of(birthday)
    if customer_id is None or customer_id in MISSING_WORDS:
        return rejected_as(f"customer_id: expected one, found {found_in(customer_id)}", row)
    return {
        "customer_id": id_of(customer_id),
        "first_name": first_name,
        "last_name": last_name,
        "gender": gender,
        "birthday": day,
        "email": email,
        "phone_no": phone_no,
        "drop_date": date.fromisoformat(DROP),
        STAGED_PART: WHOLE,
    }


def told_of(row: Cells) -> tuple[str, str] | None:
    """Reason and text of a person whose birthday is left out."""
    birthday = row[5]
    is_none = birthday is None or birthday.strip(" \t\r\n") in MISSING_WORDS
    if row[1] is None or row[1] in MISSING_WORDS or is_none or birthday_of(birthday):
        return None
    expected = "a valid YYYY-MM-DD or none"
    return rejected_as(f"birthday: expected {expected}, found {found_in(birthday)}", row)


def restored(staged: Record) -> Record:
    """A staged row as one of the table, if a value of it was left out: its id unpacked."""
    part = staged[STAGED_PART]
    if not part.startswith(LEFT_OUT):
        return staged
    return staged | {
        "customer_id": split_left_out(staged["customer_id"]).row_id,
        STAGED_PART: part.removeprefix(LEFT_OUT),
    }


def assert_staged_as(
    kind: Kind,
    rows: Sequence[Cells],
    row_of: Callable[[Cells], Record | tuple[str, str]],
    told_of: Callable[[Cells], tuple[str, str] | None] = lambda _: None,
) -> None:
    rejected = Counter(found for row in rows if isinstance(found := row_of(row), tuple))
    left_out = Counter(told for row in rows if (told := told_of(row)))
    # What is told has the index, and so copies that differ by that alone.
    good = {
        (identity_of(row), told_of(row)): found
        for row in rows
        if isinstance(found := row_of(row), dict)
    }
    copies = Counter((identity_of(row), told_of(row)) for row in rows)

    staged = kind.stage(rows).to_pylist()

    assert kind.rejected(rows) == rejected
    assert kind.left_out(rows) == left_out
    expected = [
        {**row, STAGED_DROP: DROP, STAGED_COPIES: str(copies[key])} for key, row in good.items()
    ]
    found = [restored(row) for row in staged if row[STAGED_PART] != REJECTED]
    assert Counter(map(fingerprint, found)) == Counter(map(fingerprint, expected))
    assert {row[STAGED_DROP] for row in staged} == {DROP}
    assert sum(int(row[STAGED_COPIES]) for row in staged) == len(rows)


def fingerprint(row: Record) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(row.items()))


texts = st.none() | st.text(
    st.sampled_from("\x1e\x1f") | st.characters(codec="utf-8"), min_size=1, max_size=5
)
names = st.sampled_from([None, "A", "B", " A", "a", "6", "6.0", "06.", "6.5", "\u0666.0", ".0"])
days = st.sampled_from(
    ["2018-02-30", "2020-02-29", "1900-02-29", "0000-01-01", "0001-01-01", "9999-12-31", "1700-3-1"]
) | st.dates().map(str)
times = st.sampled_from(["00:00:00", "23:59:59", "24:00:00", "23:59:60", "7:00:00", "07:00"])
whole_numbers = st.sampled_from(
    [
        *("0", "-0", "0003", "+3", " 3", "3 ", "3\n", "\u0663", "2147483648", "-2147483648", "-"),
        *("2.0", "-2.", "2.00", "2.5", ".0", "-.0", "2.0.", "2.0\n", "2147483648.0"),
    ]
)
sale_rows = st.lists(
    st.tuples(
        st.sampled_from(["0", "1"]),
        names,
        st.one_of(
            texts, st.builds("{} {}".format, days, times), st.just(SALE[2]), st.just(SALE[2])
        ),
        names | texts,
        names,
        names,
        st.one_of(whole_numbers, texts, st.integers().map(str), st.just("2"), st.just("2")),
    ),
    min_size=1,
    max_size=40,
)
words = st.sampled_from([*MISSING_WORDS, "Null", "none", "n/a", "NULL\u00a0"])
people_rows = st.lists(
    st.tuples(
        st.sampled_from(["0", "1"]),
        names | texts | words,
        names,
        names | texts,
        names,
        st.one_of(
            days,
            st.builds("{} {}".format, days, times),
            texts,
            st.none(),
            st.just("1990-05-06"),
            st.builds("{}{}".format, st.sampled_from(["", " ", "\r"]), words),
        ),
        names,
        names,
    ),
    min_size=1,
    max_size=40,
)


# ---- Spark


@settings(deadline=None, max_examples=100)
@given(rows=sale_rows)
def test_sales_are_staged_as_plain_python_would(rows: list[Cells]) -> None:
    assert_staged_as(SALE_LINES, rows, sale_of)


@settings(deadline=None, max_examples=100)
@given(rows=people_rows)
def test_customers_are_staged_as_plain_python_would(rows: list[Cells]) -> None:
    assert_staged_as(PEOPLE, rows, person_of, told_of)


@pytest.mark.parametrize("kind", [SALE_LINES, PEOPLE], ids=lambda kind: kind.dataset.name)
def test_columns_are_those_of_the_contract_in_order(kind: Kind) -> None:
    found = kind.stage([kind.good]).schema

    assert found.names == [*kind.dataset.column_names, *STAGED]
    assert [str(f.type) for f in found] == [
        *(str(c.arrow_type) for c in kind.dataset.columns),
        *("string" for _ in STAGED),
    ]


@pytest.mark.parametrize("kind", [SALE_LINES, PEOPLE], ids=lambda kind: kind.dataset.name)
def test_no_rows_stage_no_rows(kind: Kind) -> None:
    assert kind.stage([]).num_rows == 0


def test_a_line_has_the_documented_identity() -> None:
    (row,) = SALE_LINES.stage([SALE]).to_pylist()

    text = "2022-12-31\x1fINV-1\x1f2022-05-06 07:08:09\x1fc-1\x1fMY001\x1fPD001\x1f2"
    assert row["sale_line_id"] == hashlib.sha256(text.encode()).hexdigest()[:32]


def test_the_same_line_of_two_drops_is_two() -> None:
    ids = [
        SALE_LINES.stage([SALE], drop)["sale_line_id"][0].as_py() for drop in (DROP, "2023-01-01")
    ]

    assert len(set(ids)) == 2


def test_a_line_is_the_same_under_another_index_and_another_for_any_other_value() -> None:
    rows = [SALE, SALE_LINES.changed(index="7")]
    others = {"date_time": "2022-05-06 07:08:10", "quantity": "02"}
    for name in SALES_COLUMNS[1:]:
        rows.append(SALE_LINES.changed(**{name: others.get(name, "x")}))
        if name not in others:
            rows.append(SALE_LINES.changed(**{name: None}))

    copies = SALE_LINES.stage(rows)[STAGED_COPIES].to_pylist()

    assert sorted(copies) == ["1"] * (len(rows) - 2) + ["2"]


def test_customers_of_one_id_with_other_values_all_stay() -> None:
    rows = [PERSON, PEOPLE.changed(email="new@example.com"), PEOPLE.changed(email=None), PERSON]

    found = PEOPLE.stage(rows).to_pylist()

    assert {(row["email"], row[STAGED_COPIES]) for row in found} == {
        ("ann@example.com", "2"),
        ("new@example.com", "1"),
        (None, "1"),
    }


def test_a_rejected_row_keeps_its_index_and_so_its_copies() -> None:
    rows = [SALE_LINES.changed(index=index, quantity="two") for index in ("1", "2", "2")]

    reason = "quantity: expected a whole number of 32 bits, found 'two'"
    assert SALE_LINES.rejected(rows) == {
        (reason, "1,INV-1,2022-05-06 07:08:09,c-1,MY001,PD001,two"): 1,
        (reason, "2,INV-1,2022-05-06 07:08:09,c-1,MY001,PD001,two"): 2,
    }


def test_a_row_that_is_wrong_twice_is_rejected_once() -> None:
    (found,) = SALE_LINES.rejected([SALE_LINES.changed(date_time=None, quantity=None)])

    assert found == (
        "date_time: expected a valid YYYY-MM-DD HH:MM:SS, found none",
        "0,INV-1,,c-1,MY001,PD001,",
    )


def test_a_birthday_that_cannot_be_read_is_left_out_and_told() -> None:
    rows = [PEOPLE.changed(index=index, birthday="5/6/1990") for index in ("1", "2", "2")]

    staged = PEOPLE.stage(rows).to_pylist()

    assert {restored(row)["customer_id"] for row in staged} == {"c-1"}
    assert {row["birthday"] for row in staged} == {None}
    assert len({split_left_out(row["customer_id"]).line_id for row in staged}) == 1
    reason = "birthday: expected a valid YYYY-MM-DD or none, found '5/6/1990'"
    assert PEOPLE.left_out(rows) == {
        (reason, "1,c-1,Ann,Lee,Female,5/6/1990,ann@example.com,+60 1"): 1,
        (reason, "2,c-1,Ann,Lee,Female,5/6/1990,ann@example.com,+60 1"): 2,
    }


@pytest.mark.parametrize("day", ["1990-12-31", "1990-12-31 00:00:00"])
def test_a_birthday_may_have_the_midnight_that_pandas_writes(day: str) -> None:
    (row,) = PEOPLE.stage([PEOPLE.changed(birthday=day)]).to_pylist()

    assert (row["birthday"], row[STAGED_PART]) == (date(1990, 12, 31), WHOLE)


@pytest.mark.parametrize("word", MISSING_WORDS)
def test_a_word_for_no_birthday_is_none(word: str) -> None:
    (row,) = PEOPLE.stage([PEOPLE.changed(birthday=f" {word}")]).to_pylist()

    assert (row["birthday"], row[STAGED_PART]) == (None, WHOLE)


def test_a_unit_separator_in_a_value_does_not_end_the_reason() -> None:
    (found,) = SALE_LINES.rejected([SALE_LINES.changed(quantity="2\x1f3")])

    assert found == (
        "quantity: expected a whole number of 32 bits, found '2 3'",
        "0,INV-1,2022-05-06 07:08:09,c-1,MY001,PD001,2\x1f3",
    )


def test_the_sample_gives_the_counts_that_it_tells(tmp_path: Path) -> None:
    counts = write_sample(tmp_path, sales=4_000, customers=200, drops=2, seed=3)

    for drop in counts.drops:
        totals = {}
        for raw, kind in ((RAW_SALES, SALE_LINES), (RAW_CUSTOMER, PEOPLE)):
            rows = SPARK.read_csv(tmp_path / raw.name(drop.date), kind.columns)
            table = kind.stage_rows(rows, drop.date).toArrow()
            totals[kind] = Counter[str]()
            for part, copies in zip(table[STAGED_PART], table[STAGED_COPIES], strict=True):
                is_bad = part.as_py() == REJECTED
                totals[kind]["rejected" if is_bad else "kept"] += (
                    int(copies.as_py()) if is_bad else 1
                )
                totals[kind]["copies"] += 0 if is_bad else int(copies.as_py()) - 1
        assert totals[SALE_LINES] == {
            "kept": drop.kept,
            "copies": drop.duplicates,
            "rejected": drop.quarantined,
        }
        assert +totals[PEOPLE] == {"kept": drop.customer_rows}
    assert counts.total.duplicates and counts.total.quarantined


# ---- pandas


def small(names_: Sequence[str], *rows: Sequence[str | None]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(names_), dtype="string")


def outlets(*rows: Sequence[str | None]) -> SmallTable:
    return type_outlets(small(RAW_OUTLET.header, *rows))


def products(*rows: Sequence[str | None]) -> SmallTable:
    return type_products(small(RAW_PRODUCT.header, *rows))


def records_of(table: SmallTable, dataset: Dataset) -> list[Record]:
    """Rows as the landed table has them: a value of another type would not fit."""
    found: list[Record] = pa.Table.from_pandas(
        table.rows, dataset.arrow_schema, preserve_index=False
    ).to_pylist()
    return found


@pytest.mark.parametrize(
    ("delivered", "expected"),
    [
        ("1000", "01000"),
        ("01000", "01000"),
        ("87000", "87000"),
        (" 2800 ", "02800"),
        ("7", "00007"),
        ("1000.0", "01000"),
        ("50000.00", "50000"),
        ("7.", "00007"),
        (None, None),
        ("  ", None),
        *((word, None) for word in MISSING_WORDS),
        (" NULL ", None),
    ],
)
def test_a_postcode_has_five_digits_or_is_absent(
    delivered: str | None, expected: str | None
) -> None:
    table = outlets(["MY001", "Kangar", "1, Jalan Melur", "Perlis", delivered, "Kangar"])

    (row,) = records_of(table, OUTLET)
    assert row == {
        "outlet_id": "MY001",
        "outlet_name": "Kangar",
        "outlet_address": "1, Jalan Melur",
        "outlet_state": "Perlis",
        "postcode": expected,
        "district": "Kangar",
    }
    assert (table.duplicates, table.rejected) == (0, ())


@pytest.mark.parametrize(
    "postcode",
    [
        "123456",
        "1000A",
        "-1000",
        "1 000",
        "1000.5",
        "\u0661000",
        "5E+04",
        "null.",
        ".0",
        "123456.0",
    ],
)
def test_another_postcode_is_left_out_and_told(postcode: str) -> None:
    table = outlets(
        ["MY001", "a", None, "s", postcode, None], ["MY002", "b", None, "s", "1000", None]
    )

    assert [(row["outlet_id"], row["postcode"]) for row in records_of(table, OUTLET)] == [
        ("MY001", None),
        ("MY002", "01000"),
    ]
    assert (table.duplicates, table.rejected) == (0, ())
    assert table.left_out == (
        (
            f"postcode: expected up to five digits or none, found '{postcode}'",
            f"MY001,a,,s,{postcode},",
        ),
    )


@settings(deadline=None, max_examples=50)
@given(number=st.integers(0, 99_999), zeros=st.sampled_from(["", ".", ".0", ".00"]))
def test_whole_numbers_are_read_with_and_without_a_point(number: int, zeros: str) -> None:
    (outlet,) = records_of(
        outlets([f"{number}{zeros}", "a", "", "", f"{number}{zeros}", ""]), OUTLET
    )
    (product,) = records_of(
        products([f"{number}{zeros}", f"{number}{zeros}", "a", "RM 1"]), PRODUCT
    )

    assert (outlet["outlet_id"], outlet["postcode"]) == (str(number), f"{number:05}")
    assert (product["no"], product["product_id"]) == (number, str(number))


def test_copies_are_counted_and_taken_ids_rejected() -> None:
    row = ["MY001", "a", "x", "s", "1000", "d"]
    other = ["MY001", "b", "x", "s", "1000", "d"]
    table = outlets(row, ["MY002", *row[1:]], row, other, row, other)

    assert [(r["outlet_id"], r["outlet_name"]) for r in records_of(table, OUTLET)] == [
        ("MY001", "a"),
        ("MY002", "a"),
    ]
    assert table.duplicates == 3
    assert table.rejected == (
        ("outlet_id: expected once, found again with other values", "MY001,b,x,s,1000,d"),
    )


def test_a_rejected_row_takes_no_id() -> None:
    table = products(["1", "PD001", "Kopi", "9.90"], ["2", "PD001", "Teh", "RM 1"])

    assert [r["product_name"] for r in records_of(table, PRODUCT)] == ["Teh"]
    assert len(table.rejected) == 1


def test_nothing_is_told_of_what_a_rejected_row_or_a_copy_leaves_out() -> None:
    row = ["MY001", "a", "x", "s", "??", "d"]
    table = outlets(row, [None, *row[1:]], row, ["MY001", "b", "x", "s", "!", "d"])

    assert [(r["outlet_name"], r["postcode"]) for r in records_of(table, OUTLET)] == [("a", None)]
    assert (len(table.left_out), table.duplicates, len(table.rejected)) == (1, 1, 2)


@pytest.mark.parametrize("outlet_id", [None, " ", *MISSING_WORDS])
def test_rows_without_an_id_are_rejected(outlet_id: str | None) -> None:
    row = [outlet_id, "a", "x", "s", "1000", "d"]
    table = outlets(row, [outlet_id, "b", "x", "s", "1000", "d"], row)

    assert records_of(table, OUTLET) == []
    assert table.duplicates == 1
    assert [reason[:24] for reason, _ in table.rejected] == ["outlet_id: expected one,"] * 2


@pytest.mark.parametrize("word", MISSING_WORDS)
def test_a_word_for_none_is_no_product(word: str) -> None:
    assert len(products(["1", word, "Teh", "RM 1"]).rejected) == 1


def test_a_table_of_no_rows_is_one() -> None:
    assert records_of(outlets(), OUTLET) == []
    assert records_of(products(), PRODUCT) == []


@pytest.mark.parametrize(
    ("delivered", "expected"),
    [
        ("RM 9.90", "9.90"),
        ("RM9.9", "9.90"),
        ("RM 9.9 ", "9.90"),
        ("RM\u00a09.90\u00a0", "9.90"),
        ("RM 10", "10.00"),
        (" RM  0.05 ", "0.05"),
        ("RM 0", "0.00"),
        ("RM 999999.99", "999999.99"),
    ],
)
def test_a_price_is_a_decimal(delivered: str, expected: str) -> None:
    table = products(["1", "PD001", "Kopi", delivered])

    (row,) = records_of(table, PRODUCT)
    assert row == {
        "no": 1,
        "product_id": "PD001",
        "product_name": "Kopi",
        "product_price": Decimal(expected),
    }
    assert str(row["product_price"]) == expected


@settings(deadline=None, max_examples=50)
@given(price=st.decimals(0, Decimal("999999.99"), places=2), space=st.sampled_from(["", " "]))
def test_every_price_keeps_its_sen(price: Decimal, space: str) -> None:
    (row,) = records_of(products(["1", "PD001", "Kopi", f"RM{space}{price}"]), PRODUCT)

    assert row["product_price"] == price


@pytest.mark.parametrize(
    "price",
    [
        *(None, "9.90", "RM", "RM -1", "RM 1.234", "RM 1,000", "RM 1000000", "RM .5", "RM 5."),
        *("rm 9.90", "USD 9.90", "RM 9.90 each", "RM 1e3", "RM nan", "RM \u0663"),
    ],
)
def test_another_price_rejects_its_row_alone(price: str | None) -> None:
    table = products(["1", "PD001", "Kopi", price], ["2", "PD002", "Teh", "RM 1"])

    assert [row["product_id"] for row in records_of(table, PRODUCT)] == ["PD002"]
    ((reason, text),) = table.rejected
    assert reason == (
        "product_price: expected RM and up to two decimals, such as RM 9.90,"
        f" found {found_in(price)}"
    )
    assert text == f"1,PD001,Kopi,{price or ''}"


@pytest.mark.parametrize("number", ["x", "1.5", "-1", "1234567890", "\u0663", "1e3"])
def test_another_number_is_left_out_and_told(number: str) -> None:
    table = products([number, "PD001", "Kopi", "RM 1"], ["6.0", "PD002", "Teh", "RM 1"])

    assert [(row["no"], row["product_id"]) for row in records_of(table, PRODUCT)] == [
        (None, "PD001"),
        (6, "PD002"),
    ]
    assert table.rejected == ()
    assert table.left_out == (
        (f"no: expected a whole number or none, found '{number}'", f"{number},PD001,Kopi,RM 1"),
    )


def test_two_products_of_one_name_stay_two() -> None:
    table = products(["1", "PD001", "Latté", "RM 1"], ["2", "PD002", "LattÃ©", "RM 2"])

    assert [row["product_name"] for row in records_of(table, PRODUCT)] == ["Latté", "Latté"]


def test_the_sample_s_small_tables_are_all_good(tmp_path: Path) -> None:
    counts = write_sample(tmp_path, sales=500, customers=50, drops=1)

    def read(name: str) -> pd.DataFrame:
        return pd.read_csv(tmp_path / name, dtype="string", keep_default_na=False, na_values=[""])

    stores, goods = type_outlets(read(RAW_OUTLET.name())), type_products(read(RAW_PRODUCT.name()))

    postcodes = [row["postcode"] for row in records_of(stores, OUTLET)]
    assert len(postcodes) == counts.outlets
    assert postcodes.count(None) == counts.missing_postcodes > 0
    assert {len(code) for code in postcodes if code} == {5}
    names_ = [row["product_name"] for row in records_of(goods, PRODUCT)]
    assert len(names_) == counts.products
    assert not [name for name in names_ if "Ã" in name]
    assert (stores.rejected, goods.rejected) == ((), ())
    assert (stores.left_out, goods.left_out) == ((), ())


# ---- encodings


def misread(text: str, encoding: str) -> str:
    """UTF-8 as a reader takes it for a single-byte encoding."""
    read = []
    for byte in text.encode():
        try:
            read.append(bytes([byte]).decode(encoding))
        except UnicodeDecodeError:
            read.append(chr(byte))
    return "".join(read)


@pytest.mark.parametrize(
    ("spoiled", "right"),
    [
        ("LattÃ©", "Latté"),
        ("CrÃ¨me BrÃ»lÃ©e LattÃ©", "Crème Brûlée Latté"),
        ("LattÃƒÂ©", "Latté"),
        ("LattÃƒÆ\u2019Ã\u201aÂ©", "Latté"),
        ("Ã\u00a0 la carte", "à la carte"),
        ("Ã\x81rpa", "Árpa"),
        ("â€œÃ\x81rpaâ€\x9d", "“Árpa”"),
        ("æ—¥æœ¬", "日本"),
    ],
)
def test_spoiled_names_are_repaired(spoiled: str, right: str) -> None:
    assert repair_encoding(spoiled) == right


@pytest.mark.parametrize(
    "name",
    ["", "Latte", "Café", "Latté Ã", "São", "日本", "é©", "“Kopi”", "50 €", "\u00c3", "a\x81"],
)
def test_right_names_stay(name: str) -> None:
    assert repair_encoding(name) == name


@given(
    text=st.text(st.characters(codec="utf-8"), max_size=12),
    encodings=st.lists(st.sampled_from(["cp1252", "latin-1"]), min_size=1, max_size=3),
)
def test_what_was_misread_is_repaired(text: str, encodings: list[str]) -> None:
    assume(repair_encoding(text) == text)
    spoiled = text
    for encoding in encodings:
        spoiled = misread(spoiled, encoding)

    assert repair_encoding(spoiled) == text


@given(text=st.text(max_size=20))
def test_a_repaired_name_needs_no_repair(text: str) -> None:
    repaired = repair_encoding(text)

    assert repair_encoding(repaired) == repaired

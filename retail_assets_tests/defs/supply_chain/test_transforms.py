"""Tests of retail_assets.defs.supply_chain.transforms, held against plain Python."""

import random
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import (
    DATE_TIME,
    DIM_CUSTOMER,
    DIM_LOCATION,
    DIM_SHIPPING,
    LANDED,
    MESSAGES,
    NUMBER,
)
from retail_assets.defs.supply_chain.messages import read_time
from retail_assets.defs.supply_chain.transforms import TYPED_COLUMNS, type_messages
from retail_assets.resources.spark import EMBEDDED, SparkResource
from retail_assets_tests.defs.supply_chain.star_messages import (
    Message,
    Row,
    decimal_of,
    expected_star,
    moment_of,
    of,
    random_messages,
    star_of,
    table_of,
)

SPARK = SparkResource(master=EMBEDDED)
DAY = "2026-01-05"
NAMES = count()
ODD = [column.name for column in TYPED_COLUMNS]


class Typing:
    """Types messages by the embedded engine, as files of the topic hold them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def rows(self, messages: Sequence[Message], odd: Sequence[str] = ODD) -> pa.Table:
        """A row for each message, in order of the items."""
        file = self._folder / f"{next(NAMES)}.parquet"
        pq.write_table(table_of(messages), file)
        frame = type_messages(SPARK.read_parquet([file], MESSAGES), DAY, odd)
        return frame.toArrow().sort_by("order_item_id")

    def dimension(self, dataset: Dataset, messages: Sequence[Message]) -> list[Row]:
        """Its rows, in order of their keys."""
        return star_of(self.rows(messages).to_pylist())[dataset.name]


@pytest.fixture(scope="module")
def typing(tmp_path_factory: pytest.TempPathFactory) -> Typing:
    return Typing(tmp_path_factory.mktemp("messages"))


@pytest.mark.parametrize("seed", range(3))
def test_every_table_is_what_plain_python_makes(typing: Typing, seed: int) -> None:
    messages = random_messages(random.Random(seed), 120)

    rows = typing.rows(messages).to_pylist()

    assert len(rows) == len(messages)
    assert star_of(rows) == expected_star((DAY, message) for message in messages)


def test_columns_have_the_types_of_the_contract(typing: Typing) -> None:
    schema = typing.rows([of()]).schema

    found = {f.name: str(f.type).replace("string_view", "string") for f in schema}
    assert found == {c.name: str(c.arrow_type) for d in LANDED for c in d.columns}


def typed(typing: Typing, column: str, texts: Sequence[str]) -> list[Any]:
    """What the fact has of these texts in a column."""
    messages = [of(n, **{"order_item_id": str(n), column: text}) for n, text in enumerate(texts)]
    return typing.rows(messages, [column])[column].to_pylist()


MONEY = {
    "0.005": "0.01",
    "-0.005": "-0.01",
    "0.00499999999999999999": "0.00",
    "0.00499E0": "0.00",
    "299.980011": "299.98",
    "2.675": "2.68",
    "-2.675": "-2.68",
    "1.5E-05": "0.00",
    "5e-3": "0.01",
    "-5E-3": "-0.01",
    "4.999E-03": "0.00",
    "1E+5": "100000.00",
    "1e0": "1.00",
    "123456789012345678e-3": "123456789012345.68",
    "0.00000000000000000001e20": "1.00",
    "0e99": "0.00",
    "7e-99": "0.00",
    "0012.5": "12.50",
    "-0": "0.00",
    "9999999999999999.99": "9999999999999999.99",
    "-9999999999999999.994": "-9999999999999999.99",
}


def test_money_is_rounded_half_up_once(typing: Typing) -> None:
    assert typed(typing, "sales", list(MONEY)) == [Decimal(money) for money in MONEY.values()]


NUMBERS = st.from_regex(NUMBER, fullmatch=True)


@settings(deadline=None, max_examples=6)
@given(texts=st.lists(NUMBERS, min_size=100, max_size=200))
def test_any_number_is_what_decimal_makes_of_it(typing: Typing, texts: list[str]) -> None:
    for column, digits, bound in (
        ("sales", 2, Decimal(10) ** 16),
        ("order_item_discount_rate", 9, Decimal(10) ** 3),
    ):
        values = [decimal_of(text, digits) for text in texts]
        expected = [None if abs(value) >= bound else value for value in values]

        assert typed(typing, column, texts) == expected


MOMENTS = st.from_regex(DATE_TIME, fullmatch=True).filter(read_time)
DATES = st.datetimes(datetime(1900, 1, 1), datetime(2199, 12, 31, 23, 59))


@settings(deadline=None, max_examples=5)
@given(
    moments=st.lists(st.tuples(DATES, st.integers(0, 15)), min_size=50, max_size=100),
    others=st.lists(MOMENTS, max_size=50),
)
def test_any_time_is_read_padded_or_not(
    typing: Typing, moments: list[tuple[datetime, int]], others: list[str]
) -> None:
    texts = []
    for at, how in moments:
        month = f"{at.month:02d}" if how & 1 else at.month
        day = f"{at.day:02d}" if how & 2 else at.day
        hour = f"{at.hour:02d}" if how & 4 else at.hour
        year = f"{at.year % 100:02d}" if how & 8 and at.year // 100 == 20 else at.year
        texts.append(f"{month}/{day}/{year} {hour}:{at.minute:02d}")
        texts += [str(at), at.isoformat(), f"{at:%Y-%m-%d %I:%M:%S %p}"]

    expected = [
        each
        for at, _ in moments
        for each in (at.replace(second=0, microsecond=0), at, at, at.replace(microsecond=0))
    ]
    assert typed(typing, "order_date", texts) == expected
    assert typed(typing, "order_date", others) == [read_time(text) for text in others]


def test_texts_in_the_plainest_way_are_read_where_none_is_odd(typing: Typing) -> None:
    messages = [of(order_date="1/2/18 3:04")]

    assert typing.rows(messages, []) == typing.rows(messages)


def test_a_year_of_two_digits_is_of_this_century(typing: Typing) -> None:
    assert typed(typing, "order_date", ["1/31/18 22:56", "12/1/99 0:00", "2/29/00 1:02"]) == [
        datetime(2018, 1, 31, 22, 56),
        datetime(2099, 12, 1),
        datetime(2000, 2, 29, 1, 2),
    ]


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        ("sales", "1", ["x", "1e30", "99999999999999999", ""]),
        ("order_item_profit_ratio", "1", ["1000", "1e3"]),
        ("order_item_quantity", "1", ["2147483648", "1.5"]),
        ("order_id", "1", ["9223372036854775808"]),
        ("order_id", "1", ["1.5", "1L", "1e3", " 1", "0x1", "1\n"]),
        ("sales", "1", ["1,5", "1d", ".5", "5.", " 1", "1\n", "Infinity"]),
        ("order_date", "1/1/18 0:00", ["2/30/2018 1:00", "1/1/2018", "", "1/1/18 24:00"]),
        ("order_date", "2018-01-01 1:00 PM", ["2018-01-01 13:00 CET", "2018-01-01 13:00Z", "\n"]),
        ("order_date", "2018-02-28", ["2018-02-29", "2018-02-28 23:59:60", "2018-02-28T01:00+08"]),
    ],
)
def test_what_cannot_be_read_is_null_and_no_row_is_lost(
    typing: Typing, column: str, good: str, bad: list[str]
) -> None:
    found = typed(typing, column, [good, *bad])

    assert [value is None for value in found] == [False, *(True for _ in bad)]


def test_an_empty_text_is_null_and_others_stay_as_they_are(typing: Typing) -> None:
    (row,) = typing.dimension(
        DIM_CUSTOMER, [of(customer_zipcode="", customer_fname=" Bo ", customer_street="00")]
    )

    assert (row["zipcode"], row["fname"], row["street"]) == (None, " Bo ", "00")


def test_equal_places_have_one_identity_and_others_another(typing: Typing) -> None:
    texts = ["18.2514534", "18.251453400", "18.2514534004", "1.82514534e1"]
    same = [of(n, latitude=text) for n, text in enumerate(texts)]
    assert len(typing.dimension(DIM_LOCATION, same)) == 1

    # Values that run together, nulls, and a sign must not be mixed up.
    others = [
        of(1, order_city="a", order_state="bc"),
        of(2, order_city="ab", order_state="c"),
        of(3, order_city="abc", order_state=None),
        of(4, order_city=None, order_state="abc"),
        of(5, order_city="", order_state="abc"),
        of(6, latitude="-18.2514534"),
        of(7, latitude="0.000000001"),
        of(8, latitude="1e-9"),
    ]
    found = typing.dimension(DIM_LOCATION, others)
    assert len(found) == 6


def test_a_time_of_shipping_is_part_of_its_identity(typing: Typing) -> None:
    times = ["2/3/2018 22:56", "02/03/18 22:56", "2018-02-03T22:56:00", "2/3/2018 10:56 PM"]
    times += ["2/3/2018 22:57", "2018-02-03 22:57:00.000001"]
    found = typing.dimension(DIM_SHIPPING, [of(n, shipping_date=t) for n, t in enumerate(times)])

    assert sorted(row["shipping_date"] for row in found) == sorted({moment_of(t) for t in times})

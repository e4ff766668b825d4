"""Texts as dates and times: every shape against Python's own parser, orders by whole columns."""

from datetime import date, datetime, timedelta

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from retail_assets.moments import Moments, Order, UndecidedOrderError

ORDERS: tuple[Order, Order] = ("mdy", "dmy")
DATES = st.dates(date(2000, 1, 1), date(2099, 12, 31))
MOMENTS = st.builds(
    lambda day, second: datetime(day.year, day.month, day.day) + timedelta(seconds=second),
    DATES,
    st.integers(0, 86_399),
)
MARKS = st.sampled_from("/-.")
# Directives of Python's strptime that write and read the time of day.
CLOCKS = st.sampled_from(
    ["%H:%M", "%H:%M:%S", "%H.%M", "%H.%M.%S", "%I:%M %p", "%I:%M:%S %p", "%I:%M%p", "%H:%M:%S.%f"]
)


def unpadded(text: str) -> str:
    """The text without zeros before the day, the month and the hour."""
    day, space, clock = text.partition(" ")
    mark = day[2]
    first, second, year = day.split(mark)
    return (
        mark.join([first.lstrip("0"), second.lstrip("0"), year])
        + space
        + (clock[1:] if clock.startswith("0") else clock)
    )


def read_one(text: str, order: Order = "mdy") -> datetime | None:
    (found,) = Moments(order).read([text])
    return found


@given(moment=MOMENTS, mark=MARKS, clock=CLOCKS, between=st.sampled_from(" T"))
def test_a_year_first_is_read_as_python_reads_it(
    moment: datetime, mark: str, clock: str, between: str
) -> None:
    pattern = f"%Y{mark}%m{mark}%d{between}{clock}"
    text = moment.strftime(pattern)
    for order in (*ORDERS, "iso"):
        assert read_one(text, order) == datetime.strptime(text, pattern)


@given(
    moment=MOMENTS,
    order=st.sampled_from(ORDERS),
    year=st.sampled_from(["%Y", "%y"]),
    mark=MARKS,
    clock=CLOCKS,
    is_padded=st.booleans(),
)
@example(datetime(2010, 12, 1, 0, 5), "mdy", "%y", "/", "%I:%M %p", False)
def test_both_orders_are_read_as_python_reads_them(
    moment: datetime, order: Order, year: str, mark: str, clock: str, is_padded: bool
) -> None:
    first, second = ("%m", "%d") if order == "mdy" else ("%d", "%m")
    pattern = f"{first}{mark}{second}{mark}{year} {clock}"
    written = moment.strftime(pattern)
    # Python's years of two digits are of two centuries: ours are all of this one.
    expected = datetime.strptime(written, pattern).replace(year=moment.year)
    text = written if is_padded else unpadded(written)
    assert read_one(text, order) == expected
    assert read_one(text.replace("AM", "a.m.").replace("PM", "pm"), order) == expected
    # Spanish, and programs that take a narrow blank that does not break.
    assert read_one(text.replace("AM", "a. m.").replace(" PM", "\u202fPM"), order) == expected
    assert read_one(text, "iso") is None


@pytest.mark.parametrize(
    "text",
    [
        "2010-12-01 08:26:00 UTC",
        "2010-12-01 08:26:00Z",
        "2010-12-01T08:26:00+00:00",
        "2010-12-01 08:26:00 Uhr",
        "2010-12-01 13:26 PM",
        "2010-12-01 00:26 AM",
        "2010-12-01 24:00",
        "2010-12-01 8:60",
        "2010-12-01 8",
        "2010-02-29",
        "2010-12/01",
        "12/1-2010",
        "1/12/1/2010",
        "1.12.201",
        "12/1/2010 8:26.30",
        "0000-01-01",
        "20101201",
        "40513.35",
        "infinity",
        "today",
        "1-Dec-2010",
        "",
        " ",
    ],
)
def test_no_other_shape_is_read(text: str) -> None:
    assert [read_one(text, order) for order in (*ORDERS, "iso")] == [None] * 3


@given(st.text(alphabet="0123456789/-.: TAPMZ+", max_size=22))
def test_what_is_read_has_the_digits_of_the_text(text: str) -> None:
    found = read_one(text)
    if found is not None:
        assert f"{found.year % 100:02}" in text and str(found.day) in text


@given(
    days=st.lists(DATES, min_size=1, max_size=20),
    order=st.sampled_from(ORDERS),
    mark=MARKS,
    is_padded=st.booleans(),
)
def test_a_column_is_read_in_one_order_or_refused(
    days: list[date], order: Order, mark: str, is_padded: bool
) -> None:
    """A column written in one order is never settled in the other, but for the published form."""
    pattern = f"%m{mark}%d{mark}%Y %H:%M" if order == "mdy" else f"%d{mark}%m{mark}%Y %H:%M"
    texts = [datetime(d.year, d.month, d.day, 8, 26).strftime(pattern) for d in days]
    texts = texts if is_padded else list(map(unpadded, texts))
    column = Moments()
    column.read(texts)
    is_proved = any(day.day > 12 for day in days)
    is_one = all(day.day == day.month for day in days)
    is_published = mark == "/" and not is_padded
    if is_proved:
        assert column.decide() == order
    elif is_one or is_published:
        assert column.decide() == "mdy"
    else:
        with pytest.raises(UndecidedOrderError, match="may have the month or the day first"):
            column.decide()


@given(days=st.lists(DATES, min_size=2, max_size=20))
def test_a_column_of_two_orders_is_refused(days: list[date]) -> None:
    assume(days[0].day > 12 and days[1].day > 12)
    texts = [days[0].strftime("%m/%d/%Y"), days[1].strftime("%d/%m/%Y")]
    column = Moments()
    column.read(texts)
    with pytest.raises(UndecidedOrderError, match="has the month first"):
        column.decide()


def test_a_published_column_says_so_by_one_number_of_one_digit() -> None:
    column = Moments()
    column.read(["12/10/2010 10:26", "12/11/2010 11:26"])
    with pytest.raises(UndecidedOrderError):
        column.decide()
    column.read(["12/10/2010 9:26"])
    assert column.decide() == "mdy"
    column.read(["13/12/2010 9:26"])  # a value proves otherwise
    assert column.decide() == "dmy"


def test_a_column_that_has_no_such_value_needs_no_order() -> None:
    for order in (*ORDERS, "iso"):
        column = Moments(order)
        assert column.read(["2010-12-01", None, "x"]) == [datetime(2010, 12, 1), None, None]
        assert column.decide() in ORDERS

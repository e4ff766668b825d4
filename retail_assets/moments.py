"""Texts that are dates and times: the shapes that are taken, and a column's order of day and month.

Here: reading a column of one file as a whole, for one value alone cannot say whether 1/2/2011 is in
January or in February. Not here: which column that is, and what becomes of what cannot be read.

The shapes, and no other: a day as YEAR-M-D (also with / or .), or as two numbers and a year of four
or two digits (20YY), parted by /, - or .; then, after a space (or the T of ISO), H:MM or H.MM, with
seconds and their fraction or without, and AM or PM (`a. m.`) on a clock of twelve hours. A zone is
none of it: times are local business time.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, time
from typing import Literal, NamedTuple

Order = Literal["mdy", "dmy", "iso"]

_YEAR_FIRST = re.compile(r"([0-9]{4})([-/.])([0-9]{1,2})\2([0-9]{1,2})")
_YEAR_LAST = re.compile(r"([0-9]{1,2})([-/.])([0-9]{1,2})\2([0-9]{4}|[0-9]{2})")
_TIME = re.compile(
    r"([0-9]{1,2})([:.])([0-9]{2})(?:\2([0-9]{2})(?:\.([0-9]{1,6})0*)?)?(?:\s?([AP])\.?\s?M\.?)?",
    re.IGNORECASE,
)
_CENTURY = 2000
_MIDNIGHT = time()


class UndecidedOrderError(ValueError):
    """Nothing in a column says whether its days or its months come first; the text shows why."""


class _Day(NamedTuple):
    """A day of the second shape: two numbers of which one is the month."""

    first: int
    second: int
    year: int
    is_published: bool
    """Whether it is written as UCI's file has it: with slashes, and no number padded by a zero."""
    has_one_digit: bool

    def read(self, order: Order) -> date | None:
        month, day = (self.first, self.second) if order == "mdy" else (self.second, self.first)
        return None if order == "iso" else _date(self.year, month, day)


class _Time(NamedTuple):
    of_day: time
    is_padded: bool
    has_one_digit: bool


@dataclass
class Moments:
    """Reads the values of one column, and says in what order its days and months are.

    The column may go through several tables, such as the sheets of a workbook.
    ``order`` is that of values of the second shape; ``decide`` tells afterwards whether it was the
    right one. With ``iso`` such values are not read at all.
    """

    order: Order = "mdy"
    _days: dict[str, date | _Day | None] = field(default_factory=dict)
    _times: dict[str, _Time | None] = field(default_factory=dict)
    _texts: dict[str, str] = field(default_factory=dict)  # the first whole text of each day
    _is_published: bool = True
    _has_one_digit: bool = False

    def read(self, texts: Iterable[str | None]) -> list[datetime | None]:
        """The values in the column's order; None for what is missing or in no shape of ours."""
        return [None if text is None else self._read(text.strip()) for text in texts]

    def _read(self, text: str) -> datetime | None:
        # Pandas and SQL write a T or a space; months' names, which may have a T, are no shape.
        day_text, _, time_text = text.replace("T", " ", 1).partition(" ")
        try:
            day = self._days[day_text]
        except KeyError:
            day = self._days[day_text] = _read_day(day_text)
            if isinstance(day, _Day):
                self._texts[day_text] = text
        if day is None:
            return None
        try:
            at = self._times[time_text]
        except KeyError:
            at = self._times[time_text] = _read_time(time_text)
        if at is None:
            return None
        if isinstance(day, _Day):
            # Set one way alone: several threads may read the tables of one column.
            if not day.is_published or at.is_padded:
                self._is_published = False
            if day.has_one_digit or at.has_one_digit:
                self._has_one_digit = True
            read = day.read(self.order)
            return None if read is None else datetime.combine(read, at.of_day)
        return datetime.combine(day, at.of_day)

    def decide(self) -> Order:
        """The order that all values read so far prove, or that their form says.

        A number above twelve proves that the other is the month. Where no value proves anything,
        the form of UCI's published file (slashes, and nothing padded with zeros) is month first.

        Raises:
            UndecidedOrderError: values fit both orders and nothing decides, or some prove one order
                and some the other.
        """
        proofs: dict[Order, str] = {}
        ambiguous = ""
        for text, day in self._days.items():
            if not isinstance(day, _Day):
                continue
            fits: list[Order] = [order for order in _ORDERS if day.read(order) is not None]
            if len(fits) == 1:
                proofs.setdefault(fits[0], self._texts[text])
            elif fits and day.first != day.second:
                ambiguous = ambiguous or self._texts[text]
        if len(proofs) == 2:
            raise UndecidedOrderError(
                f"'{proofs['mdy']}' has the month first, '{proofs['dmy']}' the day"
            )
        for order in proofs:
            return order
        if ambiguous and not (self._is_published and self._has_one_digit):
            raise UndecidedOrderError(f"'{ambiguous}' may have the month or the day first")
        return self.order if self.order != "iso" and not ambiguous else "mdy"


_ORDERS: tuple[Order, Order] = ("mdy", "dmy")


def _read_day(text: str) -> date | _Day | None:
    if match := _YEAR_FIRST.fullmatch(text):
        return _date(int(match[1]), int(match[3]), int(match[4]))
    if match := _YEAR_LAST.fullmatch(text):
        first, mark, second, year = match.groups()
        return _Day(
            int(first),
            int(second),
            int(year) + (_CENTURY if len(year) == 2 else 0),
            mark == "/" and not first.startswith("0") and not second.startswith("0"),
            len(first) == 1 or len(second) == 1,
        )
    return None


def _date(year: int, month: int, day: int) -> date | None:
    try:
        return date(year, month, day)
    except ValueError:
        return None


def _read_time(text: str) -> _Time | None:
    if not text:
        return _Time(_MIDNIGHT, False, False)
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    hour, _, minute, second, fraction, half = match.groups()
    value = int(hour)
    if half is not None:
        if not 1 <= value <= 12:
            return None
        value = value % 12 + (12 if half in "Pp" else 0)
    try:
        of_day = time(value, int(minute), int(second or 0), int((fraction or "").ljust(6, "0")))
    except ValueError:
        return None
    return _Time(of_day, hour.startswith("0") and len(hour) == 2, len(hour) == 1)

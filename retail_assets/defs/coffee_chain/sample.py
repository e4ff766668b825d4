"""A made-up delivery of the coffee chain: outlets, products and dated drops, with their dirt.

Here: what the demo, the tests and the benchmarks run on, each line a function of the seed and of
its place alone. Not here: the files' names and headers (contract.py), reading them (transforms.py).
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import date, timedelta
from enum import IntEnum, auto
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from retail_assets.defs.coffee_chain.contract import (
    RAW_CUSTOMER,
    RAW_OUTLET,
    RAW_PRODUCT,
    RAW_SALES,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Raw = NDArray[np.uint64]
    Whole = NDArray[np.int64]
    Text = NDArray[np.bytes_]

FIRST_DAY = date(2018, 1, 1)
LAST_DAY = date(2022, 12, 31)
_DAYS = (LAST_DAY - FIRST_DAY).days + 1
_OUTLETS = 272
_PRODUCTS = 89
_CHUNK_ROWS = 100_000
_FEWEST_SALES, _MOST_SALES = 500, 999_999_999
_FEWEST_CUSTOMERS, _MOST_CUSTOMERS = 50, 99_999_999

# Of a week, Monday first, the share of each day; over the years the chain grows.
_WEEK = (10, 10, 10, 11, 13, 14, 12)
_OPENS_S, _OPEN_S = 7 * 3600, 15 * 3600

# The lines of the invoices of one block; their order changes from block to block.
_INVOICE_LINES = (1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5)
_BLOCK_INVOICES, _BLOCK_LINES = len(_INVOICE_LINES), sum(_INVOICE_LINES)
_LAYOUTS = 64
# Of 64 lines, how many have 1, 2, 3 and 4 units.
_QUANTITIES = (36, 17, 7, 4)
# An invoice steps through the first products or through all. Both numbers are primes, so that its
# lines, at most five, never meet the same product twice.
_FAVOURITES = 23
_FAVOURITE_INVOICES = 2**15  # of 2**16

# What is wrong once in every stretch of ten thousand lines (or in all lines, if they are fewer):
# the kind, and the text that stands where a good one belongs.
_STRETCH = 10_000
_FAULTS: tuple[tuple[str, bytes], ...] = (
    ("duplicates", b"near"),
    ("bad_quantities", b"two"),
    ("bad_dates", b"2019-02-30 10:00:00"),
    ("orphan_customers", b""),
    ("unusual_quantities", b"0"),
    ("early_customers", b""),
    ("orphan_outlets", b"MY999"),
    ("duplicates", b"far"),
    ("bad_quantities", b""),
    ("bad_dates", b"2020-06-15 25:00:00"),
    ("missing_customers", b""),
    ("unusual_quantities", b"-1"),
    ("orphan_products", b"PD999"),
    ("duplicates", b"near"),
    ("bad_quantities", b"2.5"),
    ("bad_dates", b""),
    ("unusual_quantities", b"12"),
    ("orphan_customers", b""),
    ("duplicates", b"far"),
    ("bad_quantities", b"n/a"),
    ("bad_dates", b"30/06/2019 10:00"),
    ("missing_customers", b""),
    ("orphan_outlets", b"MY000"),
    ("bad_quantities", b"dua"),
)
_SLOTS = len(_FAULTS)

# Customers 0 to 18 buy once for the sake of their age: on the day on which they enter a band and
# on the day before; with a birthday still to come; with none; on both sides of a 29 February.
_BAND_STARTS = (21, 26, 31, 36, 41, 46, 51)
_UNBORN = 2
_AGED = len(_BAND_STARTS) * 2 + _UNBORN
_NO_BIRTHDAY_EVERY = 25
_LEAP_BIRTHDAY = date(2000, 2, 29)
_LEAP_SALES = (date(2021, 2, 28), date(2021, 3, 1))
_FIRST_CORRECTED = _AGED + 3
_FEWEST_CORRECTED = 3
# Ages in 2020 from which the customers come evenly: younger ones weigh more.
_AGES_2020 = (15, 17, 19, 21, 22, 23, 24, 26, 28, 30, 32, 34, 38, 43, 48, 56)

_STATES: tuple[tuple[str, int, int, int, tuple[str, ...]], ...] = (
    # state, outlets, first and last postcode, districts; Perlis and Kedah begin with a zero
    ("Perlis", 4, 1000, 2800, ("Kangar", "Arau", "Padang Besar")),
    ("Kedah", 19, 5000, 9800, ("Kota Setar", "Kuala Muda", "Kulim", "Langkawi", "Kubang Pasu")),
    ("Pulau Pinang", 24, 10000, 14400, ("Timur Laut", "Barat Daya", "Seberang Perai Tengah")),
    ("Kelantan", 9, 15000, 18500, ("Kota Bharu", "Pasir Mas", "Tanah Merah", "Gua Musang")),
    ("Terengganu", 8, 20000, 24300, ("Kuala Terengganu", "Kemaman", "Dungun", "Besut")),
    ("Pahang", 11, 25000, 28800, ("Kuantan", "Temerloh", "Pekan", "Bentong", "Raub")),
    ("Perak", 20, 30000, 36800, ("Kinta", "Manjung", "Hilir Perak", "Larut Matang dan Selama")),
    ("Selangor", 58, 40000, 48300, ("Petaling", "Klang", "Gombak", "Hulu Langat", "Sepang")),
    ("Kuala Lumpur", 46, 50000, 59800, ("Bukit Bintang", "Cheras", "Kepong", "Segambut")),
    ("Putrajaya", 4, 62000, 62900, ("Putrajaya",)),
    ("Negeri Sembilan", 12, 70000, 73500, ("Seremban", "Port Dickson", "Jempol", "Tampin")),
    ("Melaka", 11, 75000, 78300, ("Melaka Tengah", "Alor Gajah", "Jasin")),
    ("Johor", 26, 79000, 86900, ("Johor Bahru", "Batu Pahat", "Muar", "Kluang", "Segamat")),
    ("Labuan", 2, 87000, 87000, ("Labuan",)),
    ("Sabah", 9, 88000, 91300, ("Kota Kinabalu", "Sandakan", "Tawau", "Lahad Datu")),
    ("Sarawak", 9, 93000, 98800, ("Kuching", "Miri", "Sibu", "Bintulu")),
)
_STREETS = ("Kenanga", "Melur", "Cempaka", "Teratai", "Anggerik", "Bunga Raya", "Seroja", "Dahlia")
_QUARTERS = ("Taman Sri Damai", "Bandar Baru", "Pusat Perniagaan Indah", "Kampung Baru")
_SHORT_POSTCODE_EVERY, _NO_POSTCODE_EVERY = 4, 50

_DRINKS = (
    "Latté",
    "Café Mocha",
    "Crème Brûlée Latté",
    "Americano",
    "Cappuccino",
    "Flat White",
    "Kopi Tarik",
    "Teh Tarik",
    "Gula Melaka Frappé",
    "Matcha",
    "Hot Chocolate",
)
_STYLES = ("", "Iced", "Large", "Large Iced", "Oat Milk", "Blended", "Decaf", "Double")
_SPOILED_EVERY = 3

_FIRST_STARTS = ("A", "Ba", "Da", "Fa", "Ha", "I", "Ja", "Ka", "Li", "Ma", "Na", "Ra", "Su", "Za")
_FIRST_ENDS = ("dira", "fiq", "lina", "mir", "nesh", "rul", "shan", "wei", "yana", "zlan")
_LAST_STARTS = ("Am", "Bak", "Chor", "Des", "Gan", "Hal", "Kem", "Lor", "Mus", "Pal", "Ris", "Tor")
_LAST_ENDS = ("andi", "bert", "engan", "imun", "okan", "ulam", "usin", "yen")
_GENDERS = ("Female", "Male", "Female", "Male", "Female", "Male", "Prefer not to say", "")
_MAIL_DOMAINS = ("@example.com", "@example.org")
_MOBILE_PREFIXES = ("0", "1", "2", "3", "4", "6", "7", "8", "9")

_BIRTHDAYS_FROM = date(1930, 1, 1)
_BIRTHDAYS_TO = date(2029, 12, 31)


@dataclass(frozen=True)
class DropCounts:
    """What one drop holds, in rows of its two files; without a date, the sum of several.

    ``customers`` counts the rows of those who joined, ``corrections`` of those who were delivered
    before. No line of sales has two of these faults, and a line that is repeated has none: so
    each count can be held against what a pipeline finds.
    """

    date: str = ""
    customers: int = 0
    corrections: int = 0
    without_birthday: int = 0
    sales: int = 0
    duplicates: int = 0
    """Lines that equal an earlier one of the drop in all but the index."""
    bad_quantities: int = 0
    """Lines whose quantity is no whole number."""
    bad_dates: int = 0
    """Lines whose date_time is not one."""
    unusual_quantities: int = 0
    """Lines with a whole number outside 1 to 4."""
    missing_customers: int = 0
    """Lines with an empty customer."""
    orphan_customers: int = 0
    """Lines with a customer whom no drop delivers."""
    early_customers: int = 0
    """Lines with a customer whom only the next drop delivers."""
    orphan_outlets: int = 0
    orphan_products: int = 0

    @property
    def customer_rows(self) -> int:
        """Rows of the customers' file."""
        return self.customers + self.corrections

    @property
    def quarantined(self) -> int:
        """Lines of sales that cannot be typed."""
        return self.bad_quantities + self.bad_dates

    @property
    def kept(self) -> int:
        """Lines of sales that are typed and no duplicates."""
        return self.sales - self.duplicates - self.quarantined


@dataclass(frozen=True)
class SampleCounts:
    """What ``write_sample`` wrote."""

    outlets: int
    short_postcodes: int
    """Outlets whose postcode came without its leading zero."""
    missing_postcodes: int
    products: int
    spoiled_names: int
    """Products whose name is encoded twice."""
    shared_names: int
    """Products whose name, once repaired, another product has too."""
    drops: tuple[DropCounts, ...]

    @property
    def total(self) -> DropCounts:
        """The sum of the drops; its ``customers`` are the distinct ones."""
        numbers = [f.name for f in fields(DropCounts) if f.name != "date"]
        return DropCounts(**{n: sum(getattr(drop, n) for drop in self.drops) for n in numbers})

    @property
    def files(self) -> int:
        """Raw files written."""
        return 2 + 2 * len(self.drops)


def write_sample(
    folder: Path,
    *,
    sales: int = 50_000,
    customers: int = 5_000,
    drops: int = 3,
    seed: int = 7,
    progress: Callable[[int], None] | None = None,
) -> SampleCounts:
    """Write the raw files of the coffee chain below ``folder``, the root of a lake.

    The bytes depend on the arguments alone. Each file appears under its name when it is whole,
    customers before the sales of the same drop; a file of that name is replaced, others are left.

    Args:
        folder: The root; files go to the places that the contract names.
        sales: Lines of sales of all drops together, the faulty ones included.
        customers: Distinct customers; about 70 bytes of memory each.
        drops: Dated deliveries, evenly from 2018 to the last day of 2022. Each holds the sales
            since the one before, in the order of time but for lines delivered twice, and the
            customers who joined since, half of all in the first.
        seed: Zero or more; another seed gives other bytes.
        progress: Called with the lines of sales written since its last call.

    Raises:
        ValueError: When a number is out of range; the message names it.
    """
    for name, number, least, most in (
        ("sales", sales, _FEWEST_SALES, _MOST_SALES),
        ("customers", customers, _FEWEST_CUSTOMERS, _MOST_CUSTOMERS),
        ("drops", drops, 1, _DAYS),
        ("seed", seed, 0, 2**32 - 1),
    ):
        if not least <= number <= most:
            raise ValueError(
                f"{name}: expected {least} to {most}, found {number}: give a number within these"
            )
    short, missing = _write_outlets(folder / RAW_OUTLET.name(), seed)
    spoiled, shared = _write_products(folder / RAW_PRODUCT.name(), seed)
    invoices = _Invoices(sales, seed)
    people = _Customers(customers, drops, seed, invoices)
    ends = [_DAYS * (number + 1) // drops for number in range(drops)]
    written = []
    first_line = 0
    for number, end in enumerate(ends):
        day = (FIRST_DAY + timedelta(days=end - 1)).isoformat()
        counts: Counter[str] = Counter()
        _write_customers(folder / RAW_CUSTOMER.name(day), people, number, counts)
        last_line = invoices.first_line(invoices.first_of_day[end])
        with _whole_file(folder / RAW_SALES.name(day), RAW_SALES.header) as file:
            for start in range(first_line, last_line, _CHUNK_ROWS):
                lines = range(start, min(start + _CHUNK_ROWS, last_line))
                file.write(_sales_text(lines, first_line, number, invoices, people, counts))
                if progress is not None:
                    progress(len(lines))
        counts["sales"] = last_line - first_line
        written.append(DropCounts(date=day, **counts))
        first_line = last_line
    return SampleCounts(_OUTLETS, short, missing, _PRODUCTS, spoiled, shared, tuple(written))


class _Stream(IntEnum):
    """The independent sequences of random numbers; a new one goes to the end."""

    OUTLET = 0
    PRODUCT = auto()
    LAYOUT = auto()
    BLOCK = auto()
    INVOICE_PARTIES = auto()
    INVOICE_CONTENT = auto()
    LINE = auto()
    FAULT = auto()
    ORPHAN = auto()
    CUSTOMER_ID = auto()
    CUSTOMER_NAME = auto()
    CUSTOMER_BIRTHDAY = auto()
    CUSTOMER_MAIL = auto()
    CUSTOMER_PHONE = auto()
    CORRECTION = auto()


def _draw(seed: int, stream: _Stream, start: int, count: int) -> Raw:
    """The 64-bit numbers ``start`` to ``start + count`` of a stream.

    Only the generator's raw output is used: numpy promises that it never changes, which it does
    not of the distributions; and any part of it can be had without the part before.
    """
    import numpy as np

    source = np.random.PCG64([seed, int(stream)])
    source.advance(start)
    raw: Raw = source.random_raw(count)
    return raw


def _pick(raw: Raw, below: int | Raw) -> Whole:
    """Whole numbers from 0 to ``below``, exclusive and under 2**31, from the upper 32 bits."""
    import numpy as np

    return ((raw >> np.uint64(32)) * np.asarray(below, np.uint64) >> np.uint64(32)).astype(np.int64)


def _pick_low(raw: Raw, below: int) -> Whole:
    """As ``_pick``, from the lower 32 bits."""
    import numpy as np

    return _pick(raw << np.uint64(32), below)


class _Invoices:
    """Which lines make an invoice, and which invoices a day has, by their places alone."""

    def __init__(self, lines: int, seed: int) -> None:
        import numpy as np

        self.lines = lines
        self.seed = seed
        raw = _draw(seed, _Stream.LAYOUT, 0, _LAYOUTS * _BLOCK_INVOICES)
        orders = raw.reshape(_LAYOUTS, _BLOCK_INVOICES).argsort(axis=1, kind="stable")
        sizes = np.array(_INVOICE_LINES)[orders]
        self._starts = np.cumsum(sizes, axis=1) - sizes
        every = np.arange(_BLOCK_INVOICES)
        self._invoice = np.array([np.repeat(every, row) for row in sizes])
        self._position = np.arange(_BLOCK_LINES) - np.take_along_axis(
            self._starts, self._invoice, axis=1
        )
        self.count = self.of_line(lines - 1) + 1
        weights = [
            _WEEK[(FIRST_DAY + timedelta(days=day)).weekday()] * (2 * _DAYS + day)
            for day in range(_DAYS)
        ]
        whole = sum(weights)
        firsts, before = [0], 0
        for weight in weights:
            before += weight
            firsts.append(-(-self.count * before // whole))
        self.first_of_day: list[int] = firsts
        self._firsts = np.array(firsts, dtype=np.int64)
        # Small samples reuse their numbers as well.
        self.numbers = min(999_999, self.count // 4 + 1)

    def of_lines(self, lines: Whole) -> tuple[Whole, Whole]:
        """The invoice of each line, and the line's place in it from 0."""
        block = lines // _BLOCK_LINES
        first = int(block.min())
        layout = _pick(
            _draw(self.seed, _Stream.BLOCK, first, int(block.max()) - first + 1), _LAYOUTS
        )[block - first]
        within = lines - block * _BLOCK_LINES
        invoice = block * _BLOCK_INVOICES + self._invoice[layout, within]
        return invoice, self._position[layout, within]

    def of_line(self, line: int) -> int:
        """The invoice of one line."""
        import numpy as np

        return int(self.of_lines(np.array([line], dtype=np.int64))[0][0])

    def first_line(self, invoice: int) -> int:
        """The first line of an invoice, or the number of lines when there is no such invoice."""
        block, within = divmod(invoice, _BLOCK_INVOICES)
        layout = _pick(_draw(self.seed, _Stream.BLOCK, block, 1), _LAYOUTS)[0]
        return min(self.lines, block * _BLOCK_LINES + int(self._starts[layout, within]))

    def days(self, invoices: Whole) -> Whole:
        """The day of each invoice, from 0."""
        import numpy as np

        return np.searchsorted(self._firsts, invoices, side="right").astype(np.int64) - 1

    def seconds(self, invoices: Whole, days: Whole, jitter: Whole) -> Whole:
        """The time of each invoice, in seconds of its day; ``jitter`` is below 2**16."""
        rank = invoices - self._firsts[days]
        among = self._firsts[days + 1] - self._firsts[days]
        return _OPENS_S + ((rank << 16) + jitter) * _OPEN_S // (among << 16)

    def day(self, invoice: int) -> date:
        """The date of one invoice."""
        import numpy as np

        return FIRST_DAY + timedelta(days=int(self.days(np.array([invoice]))[0]))


class _Faults:
    """Where the faults of the sales stand: one of each kind a stretch, in a slot of its own.

    A fault stands in the first half of its slot. What must be sound (a line to be repeated, an
    invoice that matters) is taken from the second half of one.
    """

    def __init__(self, lines: int, seed: int) -> None:
        self.stretch = min(_STRETCH, lines)
        self.stretches = lines // self.stretch
        self.seed = seed

    def start(self, slot: Any) -> Any:
        """The first line of a slot, counted over all stretches; of a number or an array."""
        return slot // _SLOTS * self.stretch + slot % _SLOTS * self.stretch // _SLOTS

    def sound_line(self, slot: int) -> int:
        """A line in a slot's second half."""
        start = int(self.start(slot))
        return start + (int(self.start(slot + 1)) - start) // 2

    def within(self, start: int, stop: int) -> _FoundFaults:
        """The faults of the lines ``start`` to ``stop``."""
        import numpy as np

        first = start // self.stretch * _SLOTS
        end = min((stop - 1) // self.stretch + 1, self.stretches) * _SLOTS
        slots = np.arange(first, max(first, end), dtype=np.int64)
        raw = _draw(self.seed, _Stream.FAULT, first, len(slots))
        begins = self.start(slots)
        half = ((self.start(slots + 1) - begins) // 2).astype(np.uint64)
        lines = begins + _pick(raw, half)
        here = (lines >= start) & (lines < stop)
        return _FoundFaults(self, slots[here], lines[here], raw[here])


@dataclass(frozen=True)
class _FoundFaults:
    """Faults: the slot, the line and a random number of each."""

    among: _Faults
    slots: Whole
    lines: Whole
    raw: Raw

    @property
    def kinds(self) -> Whole:
        """The place of each in ``_FAULTS``."""
        return self.slots % _SLOTS

    def copies(self, first_line: int) -> tuple[Whole, Whole]:
        """The lines that repeat another, and the lines that they repeat, ``first_line`` or later.

        That is the line before, or, some slots back, the last line of a slot.
        """
        import numpy as np

        near, far = (
            np.array([fault == ("duplicates", text) for fault in _FAULTS])[self.kinds]
            for text in (b"near", b"far")
        )
        origins = self.lines - 1
        back = _pick_low(self.raw, 16)
        distant = self.among.start(self.slots - back) - 1
        origins = np.where(far & (distant >= first_line), distant, origins)
        chosen = (near | far) & (origins >= first_line)
        return self.lines[chosen], origins[chosen]


class _Customers:
    """All customers in the order of joining, the drops that deliver them, and special ones."""

    def __init__(self, count: int, drops: int, seed: int, invoices: _Invoices) -> None:
        import numpy as np

        self.seed = seed
        self.ids = _uuids(_draw(seed, _Stream.CUSTOMER_ID, 0, 2 * count))
        half = (count + 1) // 2
        later = count - half
        self.delivered = (
            [half + later * n // (drops - 1) for n in range(drops)] if drops > 1 else [count]
        )
        self.names = _draw(seed, _Stream.CUSTOMER_NAME, 0, count)
        self.mails = _draw(seed, _Stream.CUSTOMER_MAIL, 0, count)
        self.phones = _draw(seed, _Stream.CUSTOMER_PHONE, 0, count)
        self.birthdays = _birthdays(_draw(seed, _Stream.CUSTOMER_BIRTHDAY, 0, count))
        self.birthdays[_AGED::_NO_BIRTHDAY_EVERY] = -1
        # The invoice of each customer who buys for the sake of the age.
        self.sales_of: dict[int, int] = {}
        for day, customer in zip(_LEAP_SALES, (_AGED + 1, _AGED + 2), strict=True):
            self.sales_of[invoices.first_of_day[(day - FIRST_DAY).days]] = customer
            self.birthdays[customer] = (_LEAP_BIRTHDAY - _BIRTHDAYS_FROM).days
        faults = _Faults(invoices.lines, seed)
        for customer in range(_AGED + 1):
            stretch = faults.stretches * customer // (_AGED + 1)
            line = faults.sound_line(stretch * _SLOTS + customer)
            invoice = invoices.of_line(line - 1) + 1
            self.sales_of[invoice] = customer
            if customer < _AGED:
                birthday = _telling_birthday(customer, invoices.day(invoice))
                self.birthdays[customer] = (birthday - _BIRTHDAYS_FROM).days
        self._special = np.array(sorted(self.sales_of), dtype=np.int64)

    def buyers(self, first: int, raw: Raw, drop: int) -> Whole:
        """The customers of the invoices from ``first`` on, in the upper 32 bits of ``raw``."""
        import numpy as np

        buyers = _pick(raw, self.delivered[drop])
        low, high = np.searchsorted(self._special, [first, first + len(raw)])
        for invoice in self._special[low:high].tolist():
            buyers[invoice - first] = self.sales_of[invoice]
        return buyers

    def early(self, raw: Raw, drop: int) -> Text:
        """Ids of customers whom only the next drop delivers; none if it has no new ones."""
        first, *later = self.delivered[drop : drop + 2]
        count = later[0] - first if later else 0
        return self.ids[first + _pick_low(raw, count)] if count else self.ids[:0]

    def strangers(self, slots: Whole) -> Text:
        """Ids of customers whom no drop delivers; one a slot."""
        import numpy as np

        raw = [_draw(self.seed, _Stream.ORPHAN, 2 * slot, 2) for slot in slots.tolist()]
        return _uuids(np.concatenate(raw))

    def correct(self, drop: int) -> Whole:
        """Change some customers whom an earlier drop delivered, and say which, in order.

        As many as a hundredth of those who join with the drop, three at least: in turn another
        birthday, which may fill in one that was missing, e-mail address or telephone number.
        """
        import numpy as np

        if drop == 0:
            return np.empty(0, dtype=np.int64)
        joined = self.delivered[drop] - self.delivered[drop - 1]
        among = self.delivered[drop - 1] - _FIRST_CORRECTED
        count = min(among, max(_FEWEST_CORRECTED, joined // 100))
        raw = _draw(self.seed, _Stream.CORRECTION, (drop - 1) << 40, 2 * count)
        steps = np.arange(count, dtype=np.int64) * among // count
        chosen = _FIRST_CORRECTED + steps + _pick(raw[:count], among // count)
        fresh = raw[count:]
        self.birthdays[chosen[::3]] = _birthdays(fresh[::3])
        self.mails[chosen[1::3]] = fresh[1::3]
        self.phones[chosen[2::3]] = fresh[2::3]
        return chosen


def _birthdays(raw: Raw) -> Whole:
    """Birthdays of customers of every age, in days since ``_BIRTHDAYS_FROM``."""
    import numpy as np

    ages = np.array(_AGES_2020)[_pick(raw, len(_AGES_2020))]
    days = (date(2020, 1, 1) - _BIRTHDAYS_FROM).days - ages * 1461 // 4
    return (days - _pick_low(raw, 3 * 365)).astype(np.int64)


def _telling_birthday(customer: int, sale: date) -> date:
    """A birthday at which an error of one day puts the sale into a wrong band of ages."""
    band, eve = divmod(customer, 2)
    if band == len(_BAND_STARTS):
        return sale + timedelta(days=1 + 400 * eve)
    day = 28 if (sale.month, sale.day) == (2, 29) else sale.day
    return date(sale.year - _BAND_STARTS[band], sale.month, day) + timedelta(days=eve)


def _write_outlets(path: Path, seed: int) -> tuple[int, int]:
    """Write the outlets; returns how many postcodes are short, and how many missing."""
    raw = _draw(seed, _Stream.OUTLET, 0, 5 * _OUTLETS)
    order, codes, districts, houses, streets = (raw[n::5] for n in range(5))
    states = [state for state in _STATES for _ in range(state[1])]
    rows: list[Sequence[str]] = []
    seen: Counter[bool] = Counter()
    for number, place in enumerate(order.argsort(kind="stable").tolist()):
        state, _, low, high, names = states[place]
        this = slice(number, number + 1)
        postcode = low + 100 * int(_pick(codes[this], (high - low) // 100 + 1)[0])
        district = names[int(_pick(districts[this], len(names))[0])]
        house = 1 + int(_pick(houses[this], 180)[0])
        street = _STREETS[int(_pick(streets[this], len(_STREETS))[0])]
        quarter = _QUARTERS[int(_pick_low(streets[this], len(_QUARTERS))[0])]
        text = f"{postcode:05}"
        zero = text.startswith("0")
        if seen[zero] % (_SHORT_POSTCODE_EVERY if zero else _NO_POSTCODE_EVERY) == 0:
            text = text.lstrip("0") if zero else ""
        seen[zero] += 1
        rows.append(
            (
                f"MY{number + 1:03}",
                f"Kopi Embun {district} {number + 1}",
                f"{house}, Jalan {street} {house % 9 + 1}, {quarter}",
                state,
                text,
                district,
            )
        )
    _write_csv(path, RAW_OUTLET.header, rows)
    lengths = Counter(len(row[4]) for row in rows)
    return lengths[4], lengths[0]


def _write_products(path: Path, seed: int) -> tuple[int, int]:
    """Write the products; returns how many names are encoded twice, and how many shared."""
    steps = _pick(_draw(seed, _Stream.PRODUCT, 0, _PRODUCTS), 9).tolist()
    names = [f"{style} {drink}".strip() for style in _STYLES for drink in _DRINKS]
    prices = [490 + 50 * (n % 11) + 120 * (n // 11) + 10 * steps[n] for n in range(len(names))]
    # Two names that two products have, at different prices; one is spoiled in one of its places.
    names[86] = names[1]
    names.append(names[0])
    prices.append(prices[0] + 150)
    rows: list[Sequence[str]] = []
    spoiled = 0
    for number, (name, cents) in enumerate(zip(names, prices, strict=True), start=1):
        if number % _SPOILED_EVERY == 0 and not name.isascii():
            name, spoiled = name.encode().decode("latin-1"), spoiled + 1
        price = f"RM {cents // 100}.{cents % 100:02}"
        rows.append((str(number), f"PD{number:03}", name, price))
    _write_csv(path, RAW_PRODUCT.header, rows)
    shared = sum(count for count in Counter(names).values() if count > 1)
    return spoiled, shared


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a small file whose texts may hold commas."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with _whole_file(path, header) as file:
        file.write(text.getvalue().encode())


@contextmanager
def _whole_file(path: Path, header: Sequence[str]) -> Iterator[BinaryIO]:
    """A file, begun with its header, that stands under its name only when all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    try:
        with partial.open("wb") as file:
            file.write((",".join(header) + "\n").encode())
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_customers(path: Path, people: _Customers, drop: int, counts: Counter[str]) -> None:
    """Write the customers who joined with a drop, and below them those who are corrected."""
    import numpy as np

    corrected = people.correct(drop)
    first = people.delivered[drop - 1] if drop else 0
    joined = np.arange(first, people.delivered[drop], dtype=np.int64)
    every = np.concatenate([joined, corrected])
    with _whole_file(path, RAW_CUSTOMER.header) as file:
        for start in range(0, len(every), _CHUNK_ROWS):
            file.write(_customers_text(every[start : start + _CHUNK_ROWS], start, people))
    counts["customers"] = len(joined)
    counts["corrections"] = len(corrected)
    counts["without_birthday"] = int((people.birthdays[every] < 0).sum())


def _customers_text(chosen: Whole, start: int, people: _Customers) -> bytes:
    """The lines of some customers, whose index begins at ``start``."""
    import numpy as np

    firsts = [begin + end for begin in _FIRST_STARTS for end in _FIRST_ENDS]
    lasts = [begin + end for begin in _LAST_STARTS for end in _LAST_ENDS]
    name, mail, phone = people.names[chosen], people.mails[chosen], people.phones[chosen]
    first, last = _pick(name, len(firsts)), _pick_low(name, len(lasts))
    prefix, middle = np.divmod(_pick(phone, len(_MOBILE_PREFIXES) * 1000), 1000)
    born = people.birthdays[chosen]
    columns = (
        _numbers(np.arange(start, start + len(chosen)), 9),
        b",",
        people.ids[chosen],
        b",",
        _texts(firsts)[first],
        b",",
        _texts(lasts)[last],
        b",",
        _texts(_GENDERS)[(name % np.uint64(len(_GENDERS))).astype(np.int64)],
        b",",
        np.where(born < 0, b"", _dates(_BIRTHDAYS_FROM, _BIRTHDAYS_TO)[born]),
        b",",
        _texts([text.lower() for text in firsts])[first],
        b".",
        _texts([text.lower() for text in lasts])[last],
        _numbers(_pick(mail, 100_000), 5),
        _texts(_MAIL_DOMAINS)[_pick_low(mail, len(_MAIL_DOMAINS))],
        b",+60 1",
        _texts(_MOBILE_PREFIXES)[prefix],
        b"-",
        _numbers(middle, 3, zeros=True),
        b" ",
        _numbers(_pick_low(phone, 10_000), 4, zeros=True),
        b"\n",
    )
    return _join(columns, len(chosen))


def _sales_text(
    lines: range,
    first_of_drop: int,
    drop: int,
    invoices: _Invoices,
    people: _Customers,
    counts: Counter[str],
) -> bytes:
    """The text of some lines of one drop; adds their faults to ``counts``."""
    import numpy as np

    seed = invoices.seed
    faults = _Faults(invoices.lines, seed).within(lines.start, lines.stop)
    copies, origins = faults.copies(first_of_drop)
    # A line that was delivered twice is made from the place of the first.
    source = np.arange(lines.start, lines.stop, dtype=np.int64)
    source[copies - lines.start] = origins
    counts["duplicates"] += len(copies)

    invoice, position = invoices.of_lines(source)
    first = int(invoice.min())
    each = np.arange(first, int(invoice.max()) + 1, dtype=np.int64)
    of = invoice - first
    parties = _draw(seed, _Stream.INVOICE_PARTIES, first, len(each))
    content = _draw(seed, _Stream.INVOICE_CONTENT, first, len(each))
    days = invoices.days(each)
    seconds = invoices.seconds(each, days, _bits(content, 0))
    # The square of an even draw: the first outlets sell more than the last.
    outlet = _pick_low(parties, 1 << 20) ** 2 * _OUTLETS >> 40
    menu = np.where(_bits(content, 48) < _FAVOURITE_INVOICES, _FAVOURITES, _PRODUCTS)
    begin, step = _bits(content, 32) % menu, 1 + _bits(content, 16) % (menu - 1)
    product = (begin[of] + step[of] * position) % menu[of]
    units = np.repeat(np.arange(1, len(_QUANTITIES) + 1), _QUANTITIES)
    low = int(source.min())
    unit = _pick(_draw(seed, _Stream.LINE, low, int(source.max()) - low + 1), len(units))

    texts = {
        "date": _dates(FIRST_DAY, LAST_DAY)[days][of],
        "clock": _clocks()[seconds][of],
        "customer": people.ids[people.buyers(first, parties, drop)[of]],
        "outlet": _texts([f"MY{n + 1:03}" for n in range(_OUTLETS)])[outlet[of]],
        "product": _texts([f"PD{n + 1:03}" for n in range(_PRODUCTS)])[product],
        "quantity": _numbers(units[unit[source - low]], 5),
    }
    _spoil(texts, faults, lines.start, drop, people, counts)
    columns = (
        _numbers(np.arange(lines.start - first_of_drop, lines.stop - first_of_drop), 9),
        b",INV-",
        _numbers(1 + invoice % invoices.numbers, 6),
        b",",
        texts["date"],
        texts["clock"],
        b",",
        texts["customer"],
        b",",
        texts["outlet"],
        b",",
        texts["product"],
        b",",
        texts["quantity"],
        b"\n",
    )
    return _join(columns, len(lines))


def _spoil(
    texts: dict[str, Text],
    faults: _FoundFaults,
    first_line: int,
    drop: int,
    people: _Customers,
    counts: Counter[str],
) -> None:
    """Put the faults, but for repeated lines, into the texts, and count them."""
    for kind, (name, text) in enumerate(_FAULTS):
        this = faults.kinds == kind
        at = faults.lines[this] - first_line
        if name == "duplicates" or not len(at):
            continue
        if name == "bad_dates":
            texts["date"][at], texts["clock"][at] = text[:10], text[10:]
        elif name in ("bad_quantities", "unusual_quantities"):
            texts["quantity"][at] = text
        elif name == "orphan_outlets":
            texts["outlet"][at] = text
        elif name == "orphan_products":
            texts["product"][at] = text
        elif name == "missing_customers":
            texts["customer"][at] = text
        elif name == "orphan_customers":
            texts["customer"][at] = people.strangers(faults.slots[this])
        else:
            early = people.early(faults.raw[this], drop)
            if not len(early):
                continue
            texts["customer"][at] = early
        counts[name] += len(at)


def _bits(raw: Raw, lowest: int) -> Whole:
    """Sixteen bits of each number, from ``lowest`` on."""
    import numpy as np

    return (raw >> np.uint64(lowest) & np.uint64(0xFFFF)).astype(np.int64)


def _uuids(raw: Raw) -> Text:
    """Version-4 UUIDs in small letters; two numbers make one."""
    import numpy as np

    octets = raw.astype(">u8").view(np.uint8).reshape(-1, 16)
    octets[:, 6] = octets[:, 6] & 0x0F | 0x40
    octets[:, 8] = octets[:, 8] & 0x3F | 0x80
    pairs = np.frombuffer(bytes(range(256)).hex().encode(), dtype="S2")
    text = np.full((len(octets), 36), ord("-"), dtype=np.uint8)
    column = 0
    for octet in range(16):
        column += octet in (4, 6, 8, 10)
        text[:, column : column + 2] = pairs[octets[:, octet]].view(np.uint8).reshape(-1, 2)
        column += 2
    return text.view("S36")[:, 0]


def _numbers(values: Whole, digits: int, *, zeros: bool = False) -> Text:
    """Whole numbers from 0 as text, with leading zeros up to ``digits`` if wanted."""
    import numpy as np

    text = np.empty((len(values), digits), dtype=np.uint8)
    rest = values
    for column in reversed(range(digits)):
        higher = rest // 10
        text[:, column] = rest - higher * 10 + ord("0")
        if not zeros and column < digits - 1:
            text[rest == 0, column] = 0
        rest = higher
    return text.view(f"S{digits}")[:, 0]


def _texts(texts: Sequence[str]) -> Text:
    """An array to take ASCII texts from."""
    import numpy as np

    return np.array([text.encode("ascii") for text in texts])


@cache
def _dates(first: date, last: date) -> Text:
    """The dates from ``first`` to ``last``."""
    return _texts([str(first + timedelta(days=day)) for day in range((last - first).days + 1)])


@cache
def _clocks() -> Text:
    """The times of a day by its seconds, each after a blank."""
    return _texts([f" {s // 3600:02}:{s // 60 % 60:02}:{s % 60:02}" for s in range(24 * 3600)])


def _join(columns: Sequence[Text | bytes], rows: int) -> bytes:
    """The lines that the columns make, side by side; a text alone stands in every line.

    An array of bytes pads its texts with NULs on the right, and none of ours holds one: so the
    columns are laid into one table of bytes, and its NULs dropped.
    """
    import numpy as np

    widths = [len(c) if isinstance(c, bytes) else c.dtype.itemsize for c in columns]
    table = np.empty((rows, sum(widths)), dtype=np.uint8)
    left = 0
    for column, width in zip(columns, widths, strict=True):
        if isinstance(column, bytes):
            table[:, left : left + width] = np.frombuffer(column, dtype=np.uint8)
        else:
            table[:, left : left + width] = (
                np.ascontiguousarray(column).view(np.uint8).reshape(rows, width)
            )
        left += width
    return table.tobytes().translate(None, b"\0")

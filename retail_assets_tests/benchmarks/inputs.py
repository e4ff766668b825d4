"""The files that contestants read: the source, ten times its rows, and the same rows as xlsx.

Here: finding and writing them, untimed. Not here: reading them fast (bare_duckdb.py); the coffee
chain's raw files, which the product's own sample is (sized here).
"""

import csv
import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.settings import PROJECT_ROOT

if TYPE_CHECKING:
    from retail_assets.defs.coffee_chain.sample import SampleCounts

_DEFAULT = PROJECT_ROOT.parent / "shared" / "data" / "online_retail.csv.gz"
_VARIABLE = "RETAIL_ONLINE_RETAIL_SOURCE"
_COPIES = 10
_SHIFT = 1_000_000
_SAMPLE_DAYS = 374
_INVOICE, _QUANTITY, _DATE, _PRICE, _CUSTOMER = 0, 3, 4, 5, 6


class NoInputError(Exception):
    """The source asked for cannot be benched; the message says what can."""


@dataclass(frozen=True)
class Source:
    """The CSV that both contestants read, and how it is called in the output."""

    path: Path
    label: str
    is_sample: bool


def find_source(asked: Path | None, scratch: Path) -> Source:
    """The CSV to bench with: asked for, by variable, the published data, or a generated sample.

    Raises:
        NoInputError: what was asked for is not a CSV file with UCI's columns.
    """
    named = str(asked) if asked else os.environ.get(_VARIABLE)
    if named:
        path = Path(named).expanduser().absolute()
        if not path.is_file() or not path.name.lower().endswith((".csv", ".csv.gz")):
            raise NoInputError(
                f"{named}: expected a .csv or .csv.gz file, UTF-8 with ISO dates, for bare DuckDB"
                " reads it too. Give one by --source."
            )
        return Source(path, path.name, False)
    if _DEFAULT.is_file():
        return Source(_DEFAULT, _DEFAULT.name, False)
    path = scratch / "sample.csv"
    _write_sample(path)
    return Source(path, f"generated sample of {_SAMPLE_DAYS} days, not the published data", True)


@contextmanager
def _open_rows(path: Path) -> Iterator[Iterator[list[str]]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="", encoding="utf-8-sig") as text:
        yield csv.reader(text)


def _write_sample(path: Path) -> None:
    from retail_assets.defs.online_retail.sample import HEADER, sample_rows

    with path.open("w", newline="", encoding="utf-8") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(sample_rows(_SAMPLE_DAYS))


def shift_invoice(invoice: str, copy: int) -> str:
    """The invoice number of a copy: its letters, and its digits plus ``copy`` millions."""
    digits = invoice.lstrip("ACac")
    prefix = invoice[: len(invoice) - len(digits)]
    return f"{prefix}{int(digits) + copy * _SHIFT}"


def write_tenfold(source: Path, target: Path) -> int:
    """Write ten copies of ``source``, on the same days under other invoices; returns the rows."""
    rows = 0
    with gzip.open(target, "wt", newline="", encoding="utf-8", compresslevel=4) as text:
        writer = csv.writer(text, lineterminator="\n")
        for copy in range(_COPIES):
            with _open_rows(source) as lines:
                header = next(lines)
                if copy == 0:
                    writer.writerow(header)
                for row in lines:
                    row[_INVOICE] = shift_invoice(row[_INVOICE], copy)
                    writer.writerow(row)
                    rows += 1
    return rows


def write_xlsx(source: Path, target: Path) -> int:
    """Write ``source`` as one .xlsx sheet, typed as UCI's is; returns the rows.

    Numbers are numbers, also codes and invoices of digits alone; dates are dates.
    """
    import xlsxwriter

    rows = 0
    with (
        xlsxwriter.Workbook(str(target), {"constant_memory": True}) as workbook,
        _open_rows(source) as lines,
    ):
        sheet = workbook.add_worksheet("Online Retail")
        when = workbook.add_format({"num_format": "m/d/yy h:mm"})
        sheet.write_row(0, 0, next(lines))
        for rows, row in enumerate(lines, start=1):
            for column, value in enumerate(row):
                if not value:
                    continue
                if column == _DATE:
                    sheet.write_datetime(rows, column, datetime.fromisoformat(value), when)
                elif column in (_QUANTITY, _PRICE, _CUSTOMER) or _is_plain_number(value):
                    sheet.write_number(rows, column, float(value))
                else:
                    sheet.write_string(rows, column, value)
    return rows


def _is_plain_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and (text == "0" or text[0] != "0")


def coffee_customers(sales: int) -> int:
    """How many customers buy so many lines of coffee: as in the real files, one for 21.4."""
    return max(50, round(sales / 21.4))


def drop_nearest_to_average(counts: "SampleCounts") -> str:
    """The date of the drop whose lines are nearest to an equal share of all."""
    share = counts.total.sales / len(counts.drops)
    return min(counts.drops, key=lambda drop: abs(drop.sales - share)).date

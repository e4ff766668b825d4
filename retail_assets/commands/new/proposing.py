"""What a file says of its columns: names that SQL takes, and types by the shapes of all values.

Here: reading and proposing. Not here: asking and writing (making.py), the text of the files that
come of it (rendering.py), how the values are typed afterwards (feeds/typing.py).
"""

import keyword
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from retail_assets.dataset import Column, Dataset
from retail_assets.errors import PermanentError
from retail_assets.feeds.typing import type_files
from retail_assets.moments import Moments, Order
from retail_assets.resources.tabular import open_tables

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

DROP_DATE = "drop_date"
_DATE_IN_NAME = re.compile(r"(?<!\d)\d{4}-\d{2}-\d{2}(?!\d)")
# What stands for nothing but in texts: NA is Namibia as well.
_WORDS = "'NA', 'N/A'"
# What is not DuckDB's own is BigQuery's: words reserved in "Lexical structure and syntax".
_RESERVED = (
    "at between by contains cross cube current define enum escape exclude exists extract following"
    " full grouping groups hash if ignore inner interval is join left like lookup merge natural new"
    " no nulls of outer over partition preceding proto range recursive respect right rollup rows"
    " set struct tablesample treat unbounded unnest within"
)
# Whole numbers that are names of something: their sum says nothing.
_NO_MEASURE = re.compile(r"(^|_)(id|no|nr|number|code|key|year|month|week|zip|postcode|phone)$")
_AMOUNT = re.compile(r"amount|sales|revenue|turnover|total|price|value|cost")
_PERSONAL = re.compile(
    r"e_?mail|phone|birth|address|(^|_)((first|last|given|family|full|user|customer)_?)?name$|surname"
)
_MOST_DIGITS = 18
_MOST_PRECISION = 38
_MOST_ROWS = 20
_MOST_SHOWN = 50


class ProposalError(PermanentError):
    """A file or a choice makes no domain; the message says what was expected and what to do."""


@dataclass(frozen=True)
class Proposal:
    """What a file says of itself: its columns, and the texts of its fullest rows.

    ``name`` is the file's with ``{date}`` in place of the date in it, and ``date`` that date.
    ``has_iso_dates`` says that no order of days and months has to be known.
    """

    file: Path
    columns: tuple[Column, ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]
    name: str
    date: str
    delimiter: str
    has_iso_dates: bool

    def find(self, wanted: str, among: Sequence[Column]) -> Column:
        """The column of that name or header, one of ``among``.

        Raises:
            ProposalError: there is none.
        """
        for column in among:
            if wanted in (column.name, column.source):
                return column
        found = ", ".join(f"{column.name} {column.type}" for column in self.columns)
        names = ", ".join(column.name for column in among) or "none of its columns"
        raise ProposalError(f"{wanted!r} cannot be it: {names} can. {self.file.name} has {found}")

    @property
    def days(self) -> list[Column]:
        """The columns of dates and times."""
        return [column for column in self.columns if column.type in ("date", "timestamp")]

    @property
    def numbers(self) -> list[Column]:
        """The columns of numbers."""
        return [x for x in self.columns if x.type == "int64" or x.type.startswith("decimal")]

    @property
    def measures(self) -> list[Column]:
        """The columns of numbers whose sum says something; first what looks like an amount."""
        found = [x for x in self.numbers if x.type != "int64" or not _NO_MEASURE.search(x.name)]
        return sorted(found, key=lambda x: (not _AMOUNT.search(x.name), x.type == "int64"))


def propose(file: Path) -> Proposal:
    """Read all of a CSV or xlsx file, and say what its columns are.

    Raises:
        ProposalError: it is not there, has no row, or columns without a name.
        UnreadableFileError, SchemaDriftError: it is no table.
    """
    import duckdb

    if not file.is_file():
        raise ProposalError(f"--from is {file}; expected a CSV or xlsx file, found none there")
    with TemporaryDirectory() as folder, duckdb.connect() as connection:
        with open_tables(file, Path(folder)) as opened:
            header, delimiter = opened.tables[0].header, opened.tables[0].delimiter
        if not all(header):
            raise ProposalError(f"{file.name}: a column has no name; found {', '.join(header)}")
        texts = [Column(str(i), "string", x, nullable=True, source=x) for i, x in enumerate(header)]
        target = Path(folder, "texts.parquet")
        type_files(connection, [file], Dataset("", "texts", "", tuple(texts)), target, Path(folder))
        relation = connection.read_parquet(str(target))
        reserved = connection.sql(
            "select keyword_name from duckdb_keywords() where keyword_category = 'reserved'"
        ).fetchall()
        names = column_names(
            header, {*_RESERVED.split(), *keyword.kwlist, *(word for (word,) in reserved)}
        )
        columns, has_iso_dates = [], True
        for i, name in enumerate(names):
            kind, nullable, is_iso = _type_of(relation, f'"{i}"', delimiter)
            has_iso_dates = has_iso_dates and is_iso
            source = "" if "".join(header[i].split()).casefold() == name else header[i]
            about, pii = f"{header[i][:_MOST_SHOWN]}, as delivered.", bool(_PERSONAL.search(name))
            columns.append(Column(name, kind, about, nullable, pii=pii, source=source))
        # The fullest rows, which show the most.
        filled = " + ".join(f'("{i}" is not null)::integer' for i in range(len(header)))
        fullest = relation.order(f"{filled} desc, _row").limit(_MOST_ROWS)
        rows = fullest.project(", ".join(f'"{i}"' for i in range(len(header)))).fetchall()
    if not rows:
        raise ProposalError(f"{file.name} has a header and no row; its rows say the types")
    dated = _DATE_IN_NAME.search(file.name)
    name = _DATE_IN_NAME.sub("{date}", file.name, count=1)
    return Proposal(
        file,
        tuple(columns),
        tuple(header),
        tuple(rows),
        name,
        dated[0] if dated else "",
        delimiter,
        has_iso_dates,
    )


def _type_of(relation: "DuckDBPyRelation", text: str, delimiter: str) -> tuple[str, bool, bool]:
    """The type that all values of a column are of, whether some are missing, if days are ISO's."""
    number = text if delimiter == "," else f"replace({text}, ',', '.')"
    found = relation.project(f"{text} as t, case when {text} not in ({_WORDS}) then {number} end v")
    ((has_nulls, misses, is_whole, is_number, has_zeros, digits, scale, is_bool, values),) = (
        found.aggregate("""
            count(*) > count(t), count(*) > count(v),
            bool_and(regexp_full_match(v, '[+-]?[0-9]+(\\.0?)?')),
            bool_and(regexp_full_match(v, '[+-]?([0-9]+\\.?[0-9]*|\\.[0-9]+)')),
            bool_or(regexp_matches(v, '^[+-]?0[0-9]')),
            max(len(regexp_extract(v, '[0-9]+'))), max(len(split_part(v, '.', 2))),
            bool_and(lower(v) in ('true', 'false', 'yes', 'no', 't', 'f', 'y', 'n')),
            list(distinct v) filter (v is not null)
        """).fetchall()
    )
    if is_whole and not has_zeros and digits <= _MOST_DIGITS:
        return "int64", misses, True
    if is_number and not is_whole and not has_zeros and digits + scale <= _MOST_PRECISION:
        # Room for two digits more than were seen, and for twelve in all.
        precision = min(max(digits + scale + 2, 12), _MOST_PRECISION)
        return f"decimal({precision},{scale})", misses, True
    if is_bool:
        return "bool", misses, True
    orders: tuple[Order, ...] = ("iso", "mdy", "dmy")
    for order in orders if values else ():
        read = Moments(order).read(values)
        if None not in read:
            days = [at for at in read if at and at.time() == time()]
            return "date" if len(days) == len(read) else "timestamp", misses, order == "iso"
    return "string", has_nulls, True


def column_names(header: Sequence[str], reserved: Iterable[str]) -> list[str]:
    """Names that SQL takes without quotes, each once, of a header's texts."""
    words = set(reserved)
    taken = {DROP_DATE}
    names = []
    for number, text in enumerate(header, start=1):
        name = _folded(text) or f"column_{number}"
        name = f"n_{name}" if name[0].isdigit() else name
        name = f"{name}_value" if name in words else name
        same = (name if n == 1 else f"{name}_{n}" for n in range(1, len(header) + 3))
        names.append(next(x for x in same if x not in taken))
        taken.add(names[-1])
    return names


def _folded(text: str) -> str:
    """A header's text in snake case: VisitorsIn and Visitors (in) are visitors_in."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", plain)
    return re.sub(r"[^a-z0-9]+", "_", parted.lower()).strip("_")

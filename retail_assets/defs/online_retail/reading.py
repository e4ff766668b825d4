"""How the texts of a source's table are to be read: which column is which, dates, decimal commas.

Here: what a header, or a column as a whole, says. Not here: what the texts become (transforms.py),
opening files (resources/tabular/).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from retail_assets.defs.online_retail.contract import SOURCE_COLUMNS
from retail_assets.errors import PermanentError
from retail_assets.moments import Moments, Order, UndecidedOrderError

if TYPE_CHECKING:
    import pyarrow as pa

# In batches: the time that a row's text is.
AT = "moment"
CODES = ("invoice_no", "stock_code")
_NUMBERS = ("quantity", "unit_price", "customer_id")
_TRIMMED = (*CODES, "country", *_NUMBERS)
_BLANKS = "concat(' ', chr(9), chr(10), chr(13), chr(160))"
# Semicolons part fields where commas are decimal ones. Beside others a comma has to prove it: three
# digits behind it may be thousands.
_COMMA = r"^[^.]*,[0-9]*\s*$"
_PROVED_COMMA = r"^[^.]*,([0-9]{1,2}|[0-9]{4,})\s*$"


class SchemaDriftError(PermanentError):
    """A source's header lacks columns; the message shows expected and found."""


class AmbiguousDatesError(PermanentError):
    """A source's dates can be read in two orders; the message names one and the setting."""


@dataclass(frozen=True)
class HeaderMatch:
    """Where each of our columns stands in a source's header, and what else it holds."""

    positions: dict[str, int]
    extra: tuple[str, ...]


class TextRows(Protocol):
    """What a reader of files hands over: a label, a header, batches of text by position."""

    label: str
    file: str
    header: list[str]
    batches: "Iterator[pa.RecordBatch]"
    delimiter: str
    has_marked_cells: bool

    @property
    def schema(self) -> "pa.Schema":
        """Arrow schema of the batches: ``row`` int64, then text columns "0", "1", ..."""
        ...


@dataclass(frozen=True)
class Reading:
    """How the texts of a table are read that can be read in two ways."""

    order: Order = "mdy"
    decimal: Literal[".", ","] = "."


@dataclass
class ReadTable:
    """One table on its way to DuckDB, with what its columns as a whole say of their reading.

    ``marks`` are the texts that stand for cells without a value; ``moments`` reads the dates, which
    all tables of a file share. After their batches were read, ``settle`` says in which reading all
    of them are right: another one than was given means that the table has to be read again.
    """

    table: TextRows
    match: HeaderMatch
    reading: Reading
    moments: Moments
    marks: frozenset[str] = frozenset()
    _has_decimal_comma: bool = field(init=False, default=False)

    @property
    def batches(self) -> "pa.RecordBatchReader":
        """The table's batches, and the time that each row's text is: column AT."""
        import pyarrow as pa

        schema = self.table.schema.append(pa.field(AT, pa.timestamp("us")))
        return pa.RecordBatchReader.from_batches(schema, self._read(schema))

    def _read(self, schema: "pa.Schema") -> "Iterator[pa.RecordBatch]":
        import pyarrow as pa
        import pyarrow.compute as pc

        at, price = (
            str(self.match.positions[column]) for column in ("invoice_datetime", "unit_price")
        )
        for batch in self.table.batches:
            # Each text once: most rows share theirs with others of their invoice.
            texts = batch.column(at).dictionary_encode()
            read = self.moments.read(texts.dictionary.to_pylist())
            moments = pa.array(read, schema.field(AT).type).take(texts.indices)
            yield pa.RecordBatch.from_arrays([*batch.columns, moments], schema=schema)
            if self.table.delimiter != "," and not self._has_decimal_comma:
                comma = _COMMA if self.table.delimiter == ";" else _PROVED_COMMA
                found = pc.any(pc.match_substring_regex(batch.column(price), comma))
                self._has_decimal_comma = bool(found.as_py())

    def settle(self, order: Order | None) -> Reading:
        """The reading in which all rows are right; ``order`` where a setting says it.

        Raises:
            AmbiguousDatesError: nothing says whether days or months come first.
        """
        decimal: Literal[".", ","] = "," if self._has_decimal_comma else "."
        try:
            return Reading(order or self.moments.decide(), decimal)
        except UndecidedOrderError as error:
            raise AmbiguousDatesError(
                f"{self.table.file}: InvoiceDate: {error}, and nothing else in the file decides."
                " Nothing was changed. Set RETAIL_ONLINE_RETAIL_DATES to dmy or mdy, whichever its"
                " dates are."
            ) from error

    def select(self, number: int, view: str) -> str:
        """The rows of ``view``, which has the batches, under the names of our columns."""
        texts = {column: f'"{i}"' for column, i in self.match.positions.items()}
        columns = [f"{text} as {column}" for column, text in texts.items()]
        for column in _TRIMMED:
            trimmed = f"trim({texts[column]}, {_BLANKS})"
            if self.reading.decimal == ",":
                trimmed = self._with_points(column, trimmed)
            columns.append(f"{trimmed} as {column}_text")
        return (
            f'select {number}::integer as source_no, "row", {AT}, {self._marked()} as marked,'
            f" {', '.join(columns)} from {view}"
        )

    def _with_points(self, column: str, text: str) -> str:
        if column in _NUMBERS:
            # A point beside decimal commas parts thousands, or is a decimal one: nobody knows.
            return f"case when not contains({text}, '.') then replace({text}, ',', '.') end"
        if column in CODES:
            return f"regexp_replace({text}, '^([0-9]+),(0+)$', '\\1.\\2')"
        return text

    def _marked(self) -> str:
        """The reason of a row in which a text is the mark of a cell without a value, or null."""
        if not self.table.has_marked_cells:
            return "null::varchar"
        marks = ", ".join(f"'{mark}'" for mark in sorted(self.marks))
        texts = {column: f'"{i}"' for column, i in self.match.positions.items()}
        return (
            "case "
            + " ".join(
                f"when {text} in ({marks}) then '{column}: expected a value, found ' || {text}"
                for column, text in texts.items()
            )
            + " end"
        )


def match_header(header: Sequence[str], label: str) -> HeaderMatch:
    """Find our columns in a header of cleaned names, in either published spelling and any order.

    Raises:
        SchemaDriftError: a column is missing or stands there twice.
    """
    positions: dict[str, int] = {}
    missing = []
    for column, found in _places(header).items():
        if len(found) > 1:
            names = ", ".join(header[i] for i in found)
            raise SchemaDriftError(
                f"{label}: {column} stands there {len(found)} times ({names})."
                " Take all but one away at the origin."
            )
        if found:
            positions[column] = found[0]
        else:
            missing.append(" or ".join(SOURCE_COLUMNS[column]))
    extra = tuple(name for i, name in enumerate(header) if name and i not in positions.values())
    if missing:
        raise SchemaDriftError(
            f"{label}: missing {', '.join(missing)}; found {', '.join(header) or 'no header'}."
            " Rename the columns at the origin, or add their spelling to SOURCE_COLUMNS in"
            " contract.py."
        )
    return HeaderMatch(positions, extra)


def is_header(names: Sequence[str]) -> bool:
    """Whether a row of a file is meant as the header: most of our columns stand there.

    Of a part that lacks one of them somebody has to be told; to skip it would lose its rows.
    """
    return sum(map(bool, _places(names).values())) > len(SOURCE_COLUMNS) / 2


def _places(names: Sequence[str]) -> dict[str, list[int]]:
    """Where each of our columns stands among names; case and blanks differ by program."""
    folded = [_folded(name) for name in names]
    return {
        column: [i for i, name in enumerate(folded) if name in map(_folded, spellings)]
        for column, spellings in SOURCE_COLUMNS.items()
    }


def _folded(name: str) -> str:
    return "".join(name.split()).casefold()

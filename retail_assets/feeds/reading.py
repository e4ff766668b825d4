"""How the texts of a raw file's table are read: which column is which, dates, decimal commas.

Here: what a header, or a column as a whole, says; opening files anew where what was assumed of them
proves wrong. Not here: what the texts become (typing.py, or a domain's transforms.py).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from retail_assets.errors import PermanentError
from retail_assets.moments import Moments, Order, UndecidedOrderError
from retail_assets.resources.tabular import CELL_MARKS, ROW, TextTable, open_tables

if TYPE_CHECKING:
    import pyarrow as pa

Dates = Literal["auto", "iso", "mdy", "dmy"]
_BLANKS = "concat(' ', chr(9), chr(10), chr(13), chr(160))"
# Semicolons part fields where commas are decimal ones. Beside others a comma has to prove it: three
# digits behind it may be thousands.
_COMMA = r"^[^.]*,[0-9]*\s*$"
_PROVED_COMMA = r"^[^.]*,([0-9]{1,2}|[0-9]{4,})\s*$"
_DIGITS = r"^\s*[0-9]+([.,]0)?\s*$"
_POINTED = r"[.,]0\s*$"


class SchemaDriftError(PermanentError):
    """A source's header lacks columns; the message shows expected and found."""


class AmbiguousDatesError(PermanentError):
    """A source's dates can be read in two orders; the message names one and the setting."""


@dataclass(frozen=True)
class HeaderMatch:
    """Where each of our fields stands in a source's header, and what else it holds."""

    positions: Mapping[str, int]
    extra: tuple[str, ...]


@dataclass(frozen=True)
class Fields:
    """The fields of a raw table that are wanted, and what their texts are.

    Attributes:
        spellings: name -> how headers have it; case and blanks differ by program.
        moments: fields of dates and times; all of a file have one order of days and months.
        numbers: fields in which a comma may be the decimal one.
        decimals: those whose commas prove it.
        codes: fields of codes, of which one of digits may have a float's point: 536365.0.
        texts: fields that are such codes in a table where all of their values are digits.
        remedy: what to do where a header lacks a field.
        setting: what says the order of dates where nothing else does.
    """

    spellings: Mapping[str, Sequence[str]]
    remedy: str
    setting: str
    moments: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    decimals: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def match(self, header: Sequence[str], label: str) -> HeaderMatch:
        """Find the fields in a header of cleaned names, in any spelling and any order.

        Raises:
            SchemaDriftError: a field is missing or stands there twice.
        """
        positions: dict[str, int] = {}
        missing = []
        for name, found in self._places(header).items():
            if len(found) > 1:
                names = ", ".join(header[i] for i in found)
                raise SchemaDriftError(
                    f"{label}: {name} stands there {len(found)} times ({names})."
                    " Take all but one away at the origin."
                )
            if found:
                positions[name] = found[0]
            else:
                missing.append(" or ".join(self.spellings[name]))
        extra = tuple(name for i, name in enumerate(header) if name and i not in positions.values())
        if missing:
            raise SchemaDriftError(
                f"{label}: missing {', '.join(missing)}; found {', '.join(header) or 'no header'}."
                f" {self.remedy}"
            )
        return HeaderMatch(positions, extra)

    def is_header(self, names: Sequence[str]) -> bool:
        """Whether a row of a file is meant as the header: most of the fields stand there.

        Of a part that lacks one of them somebody has to be told; to skip it would lose its rows.
        """
        return sum(map(bool, self._places(names).values())) > len(self.spellings) / 2

    def _places(self, names: Sequence[str]) -> dict[str, list[int]]:
        folded = [_folded(name) for name in names]
        return {
            field: [i for i, name in enumerate(folded) if name in map(_folded, spellings)]
            for field, spellings in self.spellings.items()
        }


def _folded(name: str) -> str:
    return "".join(name.split()).casefold()


@dataclass(frozen=True)
class Reading:
    """How the texts of a table are read that can be read in two ways.

    ``pointed`` are the fields of texts that are codes of digits, some with a float's point.
    """

    order: Order = "mdy"
    decimal: Literal[".", ","] = "."
    pointed: frozenset[str] = frozenset()


@dataclass
class ReadTable:
    """One table on its way to DuckDB, with what its columns as a whole say of their reading.

    ``moments`` reads the dates, which all tables of a file share. After their batches were read,
    ``settle`` says in which reading all of them are right: another one than was given means that
    the table has to be read again.
    """

    table: TextTable
    fields: Fields
    reading: Reading
    moments: Moments
    match: HeaderMatch = field(init=False)
    _has_decimal_comma: bool = field(init=False, default=False)
    _digits: set[str] = field(init=False)
    _pointed: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.match = self.fields.match(self.table.header, self.table.label)
        self._digits = set(self.fields.texts)

    @property
    def batches(self) -> "pa.RecordBatchReader":
        """The table's batches, and of each field of moments the times that its texts are."""
        import pyarrow as pa

        schema = self.table.schema
        for name in self.fields.moments:
            schema = schema.append(pa.field(self._at(name), pa.timestamp("us")))
        return pa.RecordBatchReader.from_batches(schema, self._read(schema))

    def _read(self, schema: "pa.Schema") -> "Iterator[pa.RecordBatch]":
        import pyarrow as pa

        for batch in self.table.batches:
            times = []
            for name in self.fields.moments:
                # Each text once: most rows share theirs with others, as of their invoice.
                texts = self._column(batch, name).dictionary_encode()
                read = self.moments.read(texts.dictionary.to_pylist())
                times.append(pa.array(read, pa.timestamp("us")).take(texts.indices))
            yield pa.RecordBatch.from_arrays([*batch.columns, *times], schema=schema)
            self._look_at_numbers(batch)

    def _look_at_numbers(self, batch: "pa.RecordBatch") -> None:
        def any_of(name: str, pattern: str) -> bool:
            return bool(
                pc.any(pc.match_substring_regex(self._column(batch, name), pattern)).as_py()
            )

        import pyarrow.compute as pc

        if self.table.delimiter != "," and not self._has_decimal_comma:
            comma = _COMMA if self.table.delimiter == ";" else _PROVED_COMMA
            self._has_decimal_comma = any(any_of(name, comma) for name in self.fields.decimals)
        for name in tuple(self._digits):
            is_digits = pc.match_substring_regex(self._column(batch, name), _DIGITS)
            if pc.all(is_digits).as_py() is False:
                self._digits.remove(name)
            elif any_of(name, _POINTED):
                self._pointed.add(name)

    def _column(self, batch: "pa.RecordBatch", name: str) -> "pa.Array":
        return batch.column(str(self.match.positions[name]))

    def settle(self, order: Order | None) -> Reading:
        """The reading in which all rows are right; ``order`` where a setting says it.

        Raises:
            AmbiguousDatesError: nothing says whether days or months come first.
        """
        decimal: Literal[".", ","] = "," if self._has_decimal_comma else "."
        pointed = frozenset(self._pointed & self._digits)
        try:
            return Reading(order or self.moments.decide(), decimal, pointed)
        except UndecidedOrderError as error:
            names = ", ".join(self.fields.spellings[name][0] for name in self.fields.moments)
            raise AmbiguousDatesError(
                f"{self.table.file}: {names}: {error}, and nothing else in the file decides."
                f" Nothing was changed. Set {self.fields.setting} to dmy or mdy, whichever its"
                " dates are."
            ) from error

    def raw(self, name: str) -> str:
        """In SQL over the batches: a field's text as it came."""
        return f'"{self.match.positions[name]}"'

    def at(self, name: str) -> str:
        """In SQL over the batches: the time that a field's text is, or null."""
        return f'"{self._at(name)}"'

    def _at(self, name: str) -> str:
        return f"{ROW} {name}"  # no other column of the batches has a blank

    def is_marked(self, name: str) -> str:
        """In SQL over the batches: whether a field's text marks a cell without a value."""
        if not self.table.has_marked_cells:
            return "false"
        marks = ", ".join(f"'{mark}'" for mark in sorted(CELL_MARKS))
        return f"{self.raw(name)} in ({marks})"

    def text(self, name: str) -> str:
        """In SQL over the batches: a field's text trimmed, with a point where that is decimal."""
        fields, decimal, raw = self.fields, self.reading.decimal, self.raw(name)
        text = f"trim({raw}, {_BLANKS})"
        if name in fields.codes or name in self.reading.pointed:
            # Programs that take codes of digits for numbers write 536365.0.
            digits = f"regexp_replace({text}, '^([0-9]+)[{decimal}]0+$', '\\1')"
            return f"case when contains({raw}, '{decimal}0') then {digits} else {text} end"
        if name in fields.numbers and decimal == ",":
            # A point beside decimal commas parts thousands, or is a decimal one: nobody knows.
            return f"case when not contains({raw}, '.') then replace({text}, ',', '.') end"
        return text


@dataclass(frozen=True)
class ReadFiles:
    """The tables of a source's files, all read, and what of the files is none of the table."""

    tables: Sequence[ReadTable]
    skipped: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Data rows of all tables, those included that are no row of text."""
        return sum(read.table.rows for read in self.tables)

    @property
    def labels(self) -> tuple[str, ...]:
        """The tables' names: the file's, and the sheet's where it has any."""
        return tuple(read.table.label for read in self.tables)

    @property
    def extra(self) -> tuple[str, ...]:
        """Columns of the tables that are none of the fields."""
        return tuple(sorted({name for read in self.tables for name in read.match.extra}))

    @property
    def rejected(self) -> list[tuple[str, int | None, str, str]]:
        """What never became fields: label, row, reason, text."""
        return [
            (read.table.label, row.row, row.reason, row.text)
            for read in self.tables
            for row in read.table.rejected
        ]


def read_files(
    files: Iterable[Path],
    scratch: Path,
    fields: Fields,
    dates: Dates,
    consume: Callable[[Sequence[ReadTable]], object],
) -> ReadFiles:
    """Have all tables of the files consumed, each in the reading that all of its values say.

    A table is read in the usual order of dates, which its values prove right or wrong: where they
    do not, all is read, and consumed, again. What the last call of ``consume`` made counts.

    Raises:
        UnreadableFileError, SchemaDriftError: a file is not the table that it should be.
        AmbiguousDatesError: nothing says whether days or months come first.
    """
    order: Order | None = None if dates == "auto" else dates
    readings: list[Reading] = []
    while True:
        with ExitStack() as stack:
            opened = [
                stack.enter_context(open_tables(file, scratch, is_header=fields.is_header))
                for file in files
            ]
            # Of each file, which may have a name that another folder's has as well.
            places = [
                ((place, table.file), table)
                for place, file in enumerate(opened)
                for table in file.tables
            ]
            assumed = readings or [Reading(order or Reading.order)] * len(places)
            moments: dict[tuple[int, str], Moments] = {}
            tables = [
                ReadTable(table, fields, reading, moments.setdefault(place, Moments(reading.order)))
                for (place, table), reading in zip(places, assumed, strict=True)
            ]
            try:
                consume(tables)
            except Exception:
                for read in tables:  # what broke while an engine pulled, in its own words
                    if read.table.failure is not None:
                        raise read.table.failure from None
                raise
        readings = [read.settle(order) for read in tables]
        if readings == assumed:
            return ReadFiles(tables, tuple(note for file in opened for note in file.skipped))

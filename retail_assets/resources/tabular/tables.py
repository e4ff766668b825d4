"""What every reader hands over: tables of text, the rows that are none, and why a file is none."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from retail_assets.errors import PermanentError

if TYPE_CHECKING:
    import pyarrow as pa

ROW = "row"
BLANKS = " \t"
HEADER_WITHIN = 20  # the rows that are not blank among which a header is looked for
_MOST_SHOWN = 200

# Whether a row of cleaned texts is the header that is wanted.
IsHeader = Callable[[Sequence[str]], bool]


class UnreadableFileError(PermanentError):
    """A file is not the table it should be; the message says what was found and what to do."""


class NoTableError(UnreadableFileError):
    """A file, or a part of one, is empty: where another part is the table, that is no fault."""


@dataclass(frozen=True)
class RejectedRow:
    """A row that is no row of the table: its line (header = 1), why, and its text."""

    row: int | None
    reason: str
    text: str


@dataclass
class TextTable:
    """One table of a file: a header of cleaned names, then batches of text columns.

    ``batches`` can be read once; ``rows`` and ``rejected`` are complete when it is exhausted. An
    engine that pulls the batches may raise an error of its own for ours: ``failure`` keeps ours.
    Columns of a batch are named by position ("0", "1", ...) and ``row`` (int64): the row's number
    in the file, of a CSV counted from the header's line over the rows that have all fields. Missing
    values are null. ``rows`` counts every data row met, rejected ones included; a row of nothing
    but blanks is none. ``file`` is the label of the file that the table is all of, or a sheet of.
    ``delimiter`` is "," for a workbook, ``encoding`` "" for one; ``has_marked_cells`` says that a
    workbook's cells hold some of CELL_MARKS.
    """

    label: str
    header: list[str]
    batches: "Iterator[pa.RecordBatch]"
    rejected: list[RejectedRow] = field(default_factory=list)
    rows: int = 0
    failure: UnreadableFileError | None = None
    delimiter: str = ","
    encoding: str = ""
    has_marked_cells: bool = False
    file: str = field(kw_only=True)

    @property
    def schema(self) -> "pa.Schema":
        """Arrow schema of the batches."""
        import pyarrow as pa

        return pa.schema(
            [(ROW, pa.int64()), *((str(i), pa.string()) for i in range(len(self.header)))]
        )


@dataclass(frozen=True)
class FoundTable:
    """A table, whether its header is the wanted one, and how many rows of text stand above it."""

    table: TextTable
    is_wanted: bool
    rows_above: int


def clean_name(text: str) -> str:
    """A header's name without the marks, quotes and blanks that programs put around and into it.

    A byte order mark, a non-breaking space, a line break become a plain space, several become one.
    """
    return " ".join(text.replace("\ufeff", " ").split()).strip('" ')


def shown(text: str) -> str:
    """A text of a file as an error may print it: cut, and nothing that a terminal would act on."""
    cut = text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def holds(batch: "pa.RecordBatch", pattern: bytes) -> bool:
    """Whether some value may hold the pattern, by a look at each column's bytes as a whole."""
    values = (column.buffers()[2] for column in batch.columns)
    return any(value is not None and pattern in value.to_pybytes() for value in values)


def blank_rows(columns: "Sequence[pa.Array]") -> "pa.BooleanArray | None":
    """Which rows hold nothing but blanks in all columns (no text may be empty); None: none does."""
    if not all(_may_be_blank(column) for column in columns):
        return None  # as a rule the first column says so
    import pyarrow.compute as pc

    is_blank = None
    for column in columns:
        found = pc.equal(pc.ascii_trim(column, BLANKS), "").fill_null(True)
        is_blank = found if is_blank is None else pc.and_(is_blank, found)
        if not pc.any(is_blank).as_py():
            return None
    return is_blank


def _may_be_blank(column: "pa.Array") -> bool:
    values = column.buffers()[2]
    text = b"" if values is None else values.to_pybytes()
    return column.null_count > 0 or any(blank.encode() in text for blank in BLANKS)

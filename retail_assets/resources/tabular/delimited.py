"""CSV in all its dialects: where the header stands, what separates fields, which rows are none.

Not here: which characters the bytes are (encodings.py), what the file lies in (containers.py).
"""

import csv
import io
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.resources.tabular.encodings import (
    BLOCK_BYTES,
    MARK_PREFIX,
    MARKS,
    Encoding,
    Utf8Stream,
    detect_encoding,
    open_text,
    unmarked,
)
from retail_assets.resources.tabular.formats import open_stream, telling_breakage
from retail_assets.resources.tabular.tables import (
    BLANKS,
    HEADER_WITHIN,
    FoundTable,
    IsHeader,
    NoTableError,
    RejectedRow,
    TextTable,
    UnreadableFileError,
    blank_rows,
    clean_name,
    holds,
    shown,
)

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.csv as pacsv

_DELIMITERS = (",", ";", "\t", "|")
_HEAD_CHARACTERS = 1 << 18
_LONGEST_RECORD_LINES = 1000
# What Excel takes as the delimiter's declaration.
_DECLARATION = re.compile(r'"?sep=([\t !#-/:-@\[-`{-~])"?[\r\n]*', re.I)


@dataclass(frozen=True)
class _Layout:
    """What a file's first lines say: its header, whether it is the wanted one, and its place."""

    header: list[str]
    is_wanted: bool
    delimiter: str
    lines: int  # up to the header's last, included
    rows_above: int


def read_delimited(
    path: Path,
    label: str,
    opened: ExitStack,
    is_header: IsHeader | None,
    encoding: Encoding | None = None,
) -> FoundTable:
    """The table of a CSV file that may be in a gzip; ``opened`` closes what it reads from.

    Its encoding is detected where it is not given.

    Raises:
        NoTableError: it is empty, or holds nothing but blanks and delimiters.
        UnreadableFileError: it is broken.
    """
    encoding = encoding or detect_encoding(path, label)
    with telling_breakage(label), open_text(path, encoding.name) as text:
        layout = _find_header(text.read(_HEAD_CHARACTERS), is_header)
    if layout is None:
        raise NoTableError(f"{label} has no header; expected the table's column names.")
    table = TextTable(label, layout.header, iter(()), file=label)
    table.delimiter, table.encoding = layout.delimiter, encoding.name
    table.batches = _batches(table, layout, path, encoding, opened)
    return FoundTable(table, layout.is_wanted, layout.rows_above)


def _find_header(head: str, is_header: IsHeader | None) -> _Layout | None:
    """The wanted header, or else the first row that is not blank; None where all rows are."""
    lines = io.StringIO(head, newline="").readlines()
    declared = _DECLARATION.fullmatch(lines[0]) if lines else None
    first = 1 if declared else 0
    delimiters = (declared[1], *_DELIMITERS) if declared else _DELIMITERS
    filled = [
        at for at, line in enumerate(lines) if at >= first and line.strip(_blanks_of(delimiters))
    ]
    for above, at in enumerate(filled[:HEADER_WITHIN]) if is_header else ():
        for delimiter in delimiters:
            names, count = _first_record(lines[at:], delimiter)
            if is_header is not None and is_header(names):
                return _Layout(names, True, delimiter, at + count, above)
    for at in filled:
        # The first of equals: what was declared, then the comma.
        delimiter = (
            declared[1]
            if declared
            else max(delimiters, key=lambda d: len(_first_record(lines[at:], d)[0]))
        )
        names, count = _first_record(lines[at:], delimiter)
        if any(names):
            return _Layout(names, False, delimiter, at + count, 0)
    return None


def _blanks_of(delimiters: tuple[str, ...]) -> str:
    return "".join(delimiters) + BLANKS + '"\r\n'


def _first_record(lines: list[str], delimiter: str) -> tuple[list[str], int]:
    """The cleaned fields of the record that begins the lines, and how many lines it takes."""
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        fields = next(reader, [])
    except csv.Error:  # a value of more than 128 KiB
        return [], 1
    if reader.line_num > 1 and not _is_well_formed(lines[: reader.line_num], delimiter):
        return _first_record(lines[:1], delimiter)  # a quote that takes what is not its own
    return [clean_name(unmarked(field)) for field in fields], reader.line_num


def _batches(
    table: TextTable, layout: _Layout, path: Path, encoding: Encoding, opened: ExitStack
) -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa
    import pyarrow.csv as pacsv

    label, delimiter = table.label, layout.delimiter

    def reject(row: "pacsv.InvalidRow") -> str:
        if not _is_blank(row.text, delimiter):
            reason = f"expected {row.expected_columns} fields, found {row.actual_columns}"
            table.rejected.append(RejectedRow(None, reason, row.text))
        return "skip"

    names = [str(i) for i in range(len(layout.header))]
    end = secrets.token_hex(8)
    stream = Utf8Stream(
        opened.enter_context(open_stream(path)),
        None if encoding.is_valid_utf8 else encoding.name,
        f"\n{delimiter.join([end] * len(names))}\n".encode(),
    )

    def read() -> "Iterator[pa.RecordBatch]":
        try:
            with telling_breakage(label):
                yield from pacsv.open_csv(
                    stream,
                    read_options=pacsv.ReadOptions(
                        block_size=BLOCK_BYTES, column_names=names, skip_rows=layout.lines
                    ),
                    parse_options=pacsv.ParseOptions(
                        delimiter=delimiter, newlines_in_values=True, invalid_row_handler=reject
                    ),
                    convert_options=pacsv.ConvertOptions(
                        column_types={name: pa.string() for name in names},
                        null_values=[""],
                        strings_can_be_null=True,
                    ),
                )
        except pa.ArrowInvalid as error:
            line = _runaway_line(path, encoding.name, layout, is_ended=True)
            raise UnreadableFileError(
                f"{label} is no well-formed CSV ({shown(str(error))}). A quote that is never closed"
                f" is the usual cause{f', here at line {line}' if line else ''}: mend the file at"
                " its origin."
            ) from error

    try:
        yield from _rows(read(), table, layout, path, encoding, end)
    except UnreadableFileError as error:
        table.failure = error
        raise


def _is_blank(text: str, delimiter: str) -> bool:
    """Whether a row's text is nothing but delimiters and blanks, quoted or not."""
    if text.strip(_blanks_of((delimiter,))):
        return False
    fields = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
    return not any(field.strip(BLANKS) for record in fields for field in record)


def _rows(
    batches: "Iterator[pa.RecordBatch]",
    table: TextTable,
    layout: _Layout,
    path: Path,
    encoding: Encoding,
    end: str,
) -> "Iterator[pa.RecordBatch]":
    """Number the rows, reject the broken and, at the end, count them and place the ragged.

    ``end`` is every value of the row that was put behind the file's last: if it does not come
    out, an open quote took it. A quote within an unquoted field (6" plate) opens none.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    complete = blank = 0
    is_ended = has_long_values = False
    broken: list[RejectedRow] = []
    for batch in batches:
        if batch.num_rows and all(column[-1].as_py() == end for column in batch.columns):
            is_ended = True
            batch = batch.slice(0, batch.num_rows - 1)
        has_long_values = has_long_values or holds(batch, b"\n")
        first = layout.lines + 1 + complete
        numbers = pa.arange(first, first + batch.num_rows)
        complete += batch.num_rows
        numbered = pa.RecordBatch.from_arrays([numbers, *batch.columns], schema=table.schema)
        is_blank = blank_rows(batch.columns)
        if is_blank is not None:
            numbered = numbered.filter(pc.invert(is_blank))
            blank += batch.num_rows - numbered.num_rows
        if not encoding.is_valid_utf8 and holds(batch, MARK_PREFIX):
            numbered = _without_broken(numbered, layout.delimiter, broken)
        if numbered.num_rows:
            yield numbered
    table.rows = complete - blank + len(table.rejected)
    if (
        not is_ended
        or has_long_values
        or any(row.text.count("\n") > _LONGEST_RECORD_LINES for row in table.rejected)
    ):
        line = _runaway_line(path, encoding.name, layout, is_ended=is_ended)
        if line is not None:
            raise UnreadableFileError(
                f"{table.label} has a quote that is never closed, or closed far too late, in the"
                f" record that begins at line {line}: mend that line at the file's origin."
            )
    table.rejected[:] = _place(table.rejected, path, encoding.name, layout.lines) + broken


def _without_broken(
    numbered: "pa.RecordBatch", delimiter: str, rejected: list[RejectedRow]
) -> "pa.RecordBatch":
    import pyarrow as pa
    import pyarrow.compute as pc

    is_broken = pa.repeat(False, numbered.num_rows)
    for column in numbered.columns[1:]:
        marked = pc.match_substring_regex(column, MARKS)
        is_broken = pc.or_(is_broken, marked.fill_null(False))
    for number, *values in zip(*numbered.filter(is_broken).to_pydict().values(), strict=True):
        rejected.append(
            RejectedRow(
                number,
                "broken text: a byte sequence that is no character",
                unmarked(delimiter.join(value or "" for value in values)),
            )
        )
    return numbered.filter(pc.invert(is_broken))


def _runaway_line(path: Path, encoding: str, layout: _Layout, *, is_ended: bool) -> int | None:
    """Line where the first record begins whose quote took lines of others, or None.

    That is one of too many lines, one of several that has all fields although text follows a
    closing quote, or else the last one, unless ``is_ended``. The lines of a ragged record are no
    loss: they are told as rejected. Slow, hence only for files with values of several lines.
    """
    lines: list[str] = []

    def kept(text: Iterator[str]) -> Iterator[str]:
        for line in text:
            lines.append(line)
            yield line

    with open_text(path, encoding) as text:
        reader = csv.reader(kept(islice(text, layout.lines, None)), delimiter=layout.delimiter)
        start = previous = layout.lines + 1
        while True:
            previous, start = start, layout.lines + reader.line_num + 1
            lines.clear()
            try:
                record = next(reader, None)
                if record is None:
                    return None if is_ended else previous
            except csv.Error:  # a value of more than 128 KiB
                record = None
            if len(lines) > _LONGEST_RECORD_LINES or (
                len(lines) > 1
                and (
                    record is None
                    or (
                        len(record) == len(layout.header)
                        and not _is_well_formed(lines, layout.delimiter)
                    )
                )
            ):
                return start


def find_unpaired_quote(path: Path, table: TextTable) -> RejectedRow | None:
    """The first row in which a value's quote is not closed, or closed before the value's end.

    The latter is else forgiven, as other programs do: ``"5" plate`` would be ``5 plate``.
    """
    with telling_breakage(table.label), open_text(path, table.encoding) as text:
        for number, line in (numbered := enumerate(text, start=1)):
            if '"' in line:
                record = chain((line,), (further for _, further in numbered))
                try:
                    next(csv.reader(record, delimiter=table.delimiter, strict=True))
                except csv.Error as error:
                    return RejectedRow(number, str(error), line)
    return None


def _is_well_formed(record: list[str], delimiter: str) -> bool:
    try:
        list(csv.reader(record, delimiter=delimiter, strict=True))
    except csv.Error:
        return False
    return True


def _place(
    ragged: list[RejectedRow], path: Path, encoding: str, lines_above: int
) -> list[RejectedRow]:
    """Find the lines of ragged rows (the reader does not tell); only for files that have any."""
    waiting: dict[str, list[int]] = {}
    for i, row in enumerate(ragged):
        waiting.setdefault(row.text.split("\n", 1)[0].rstrip("\r"), []).append(i)
    placed = [RejectedRow(None, row.reason, unmarked(row.text)) for row in ragged]
    if waiting:
        with open_text(path, encoding) as text:
            for number, line in enumerate(islice(text, lines_above, None), start=lines_above + 1):
                indexes = waiting.get(line.rstrip("\r\n"))
                if indexes:
                    i = indexes.pop(0)
                    placed[i] = RejectedRow(number, placed[i].reason, placed[i].text)
    return placed

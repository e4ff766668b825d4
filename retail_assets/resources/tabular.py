"""Tables in files: CSV and xlsx in any container, as streams of text columns.

Here: containers (.gz, .zip), encodings, sheets, field counts; every value comes out as the text
that stood in the file, with its row number. A large CSV file is made fit for another engine
(``scan_csv``). Not here: what the text means (each domain's
transforms.py), where the file came from (download.py).
"""

import codecs
import csv
import gzip
import hashlib
import io
import lzma
import re
import secrets
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from retail_assets.errors import PermanentError

if TYPE_CHECKING:
    import fastexcel
    import pyarrow as pa
    import pyarrow.csv as pacsv

ROW = "row"
_BLOCK_BYTES = 4 * 1024**2
_LONGEST_RECORD_LINES = 1000
_NO_SEPARATORS = bytes(set(range(256)) - set(b",\n"))
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_XLSX_MEMBER = "xl/workbook.xml"
_ENCRYPTED = 0x1
_XLSX_ERROR = re.compile(r"Error\((\w+)\)")
_XLSX_ERRORS = {
    "Div0": "#DIV/0!",
    "NA": "#N/A",
    "Name": "#NAME?",
    "Null": "#NULL!",
    "Num": "#NUM!",
    "Ref": "#REF!",
    "Value": "#VALUE!",
    "GettingData": "#GETTING_DATA",
}


class UnreadableFileError(PermanentError):
    """A file is not the table it should be; the message says what was found and what to do."""


@dataclass(frozen=True)
class RejectedRow:
    """A row that is no row of the table: its line (header = 1), why, and its text."""

    row: int | None
    reason: str
    text: str


@dataclass
class TextTable:
    """One table of a file: a header, then batches of text columns.

    ``batches`` can be read once; ``rows`` and ``rejected`` are complete when it is exhausted. An
    engine that pulls the batches may raise an error of its own for ours: ``failure`` keeps ours.
    Columns of a batch are named by position ("0", "1", ...) and ``row`` (int64, header = 1,
    counted over the rows that have all fields). Missing values are null. ``rows`` counts every
    data row met, rejected ones included.
    """

    label: str
    header: list[str]
    batches: "Iterator[pa.RecordBatch]"
    rejected: list[RejectedRow] = field(default_factory=list)
    rows: int = 0
    failure: UnreadableFileError | None = None
    delimiter: str = ","
    has_marked_cells: bool = False

    @property
    def schema(self) -> "pa.Schema":
        """Arrow schema of the batches."""
        import pyarrow as pa

        return pa.schema(
            [(ROW, pa.int64()), *((str(i), pa.string()) for i in range(len(self.header)))]
        )


@contextmanager
def open_tables(path: Path, scratch: Path) -> Iterator[list[TextTable]]:
    """The tables of a CSV or xlsx file, plain or inside .gz or .zip, told by content.

    ``scratch`` is a folder for what must be unpacked; what is put there is removed at exit.

    Raises:
        UnreadableFileError: the file is empty, truncated, or none of these.
    """
    if path.stat().st_size == 0:
        raise UnreadableFileError(
            f"{path.name} has 0 bytes; expected a CSV or xlsx file. Fetch it again."
        )
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder, ExitStack() as opened:
        tables: list[TextTable] = []
        for file, label, is_workbook in _unpack(path, path.name, Path(folder)):
            if is_workbook:
                tables += _xlsx_tables(file, label)
            else:
                tables.append(_csv_table(file, label, opened))
        yield tables


@dataclass(frozen=True)
class ScannedCsv:
    """A CSV file that an engine can read: UTF-8, a header, all rows of as many fields.

    ``file`` is the file that was scanned, or a copy of its good rows; ``rows`` counts every data
    row met, those in ``rejected`` included.
    """

    file: Path
    sha256: str
    rows: int
    quoted: bool = False
    rejected: tuple[RejectedRow, ...] = ()


def scan_csv(path: Path, header: Sequence[str], scratch: Path) -> ScannedCsv:
    """Make sure of a plain CSV file by one look at its bytes; a file that is not plain is copied.

    Plain is valid UTF-8 without quotes, lines ending in a line feed, of as many fields each (two
    or more): such a file is hashed and counted at the disk's speed, and nothing of it is copied.
    Of others the good rows are copied to ``scratch``, and the bad ones told.

    Raises:
        UnreadableFileError: the header is another, or the file is no CSV; see ``open_tables``.
    """
    digest, rows = _scan_plain(path, header)
    if rows is not None:
        return ScannedCsv(path, digest, rows)
    with open_tables(path, scratch) as tables:
        if len(tables) != 1:
            raise UnreadableFileError(f"{path.name} holds {len(tables)} tables; expected one CSV.")
        table = tables[0]
        _require_header(path, header, table.header)
        copy = scratch / f"{digest[:16]}-{path.stem}.csv"  # an engine would unpack a .gz
        quoted = _write_copy(table, copy)
    return ScannedCsv(copy, digest, table.rows, quoted, tuple(table.rejected))


def _require_header(path: Path, expected: Sequence[str], found: Sequence[str]) -> None:
    if list(found) != list(expected):
        raise UnreadableFileError(
            f"{path.name} has the header {','.join(found)!r}, expected {','.join(expected)!r}."
            " Nothing of it was taken. Deliver the file again with these columns, in this order."
        )


def _scan_plain(path: Path, header: Sequence[str]) -> tuple[str, int | None]:
    """SHA-256 of the file, and its data rows; None where it is not plain."""
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    expected = ",".join(header).encode() + b"\n"
    # One line's separators: so many commas, then a line feed.
    line = b"," * (len(header) - 1) + b"\n"
    lines, last, carried = 0, b"", b""
    with path.open("rb") as stream:
        # An empty line is a row of one column to some, and no row to others.
        plain = len(header) > 1 and stream.read(len(expected)) == expected
        stream.seek(0)
        while chunk := stream.read(_BLOCK_BYTES):
            digest.update(chunk)
            if plain:
                plain = not any(mark in chunk for mark in (b'"', b"\r", b"\0"))
            if plain and not (chunk.isascii() and not decoder.getstate()[0]):
                plain = _decodes(decoder, chunk)
            if plain:
                separators = carried + chunk.translate(None, _NO_SEPARATORS)
                whole = len(separators) // len(line)
                carried = separators[whole * len(line) :]
                plain = separators.startswith(line * whole)
                lines += whole
            last = chunk[-1:]
    if last != b"\n":  # the last line may lack its end
        plain = plain and carried == line[:-1]
        carried, lines = b"", lines + 1
    plain = plain and not carried and not decoder.getstate()[0]
    return digest.hexdigest(), lines - 1 if plain else None


def _decodes(decoder: codecs.IncrementalDecoder, chunk: bytes) -> bool:
    try:
        decoder.decode(chunk)
    except UnicodeDecodeError:
        return False
    return True


def _write_copy(table: TextTable, copy: Path) -> bool:
    """Write the good rows of a table as CSV; returns whether some values need their quotes."""
    import pyarrow as pa
    import pyarrow.csv as pacsv

    names = [name or "index" for name in table.header]
    schema = pa.schema([(name, pa.string()) for name in names])
    quoted = False
    with pacsv.CSVWriter(
        copy, schema, write_options=pacsv.WriteOptions(quoting_style="needed")
    ) as out:
        for batch in table.batches:
            values = pa.RecordBatch.from_arrays(batch.columns[1:], schema=schema)
            # A NUL that ends a line is lost to the JVM's Spark, unless it reads by quotes.
            marks = (b'"', b",", b"\n", b"\r", b"\0")
            quoted = quoted or any(_holds(values, mark) for mark in marks)
            out.write_batch(values)
    return quoted


@contextmanager
def _telling_breakage(label: str) -> Iterator[None]:
    """Turn what the decompressors raise for what they cannot read into an UnreadableFileError."""
    try:
        yield
    except NotImplementedError as error:
        raise UnreadableFileError(
            f"{label} cannot be unpacked ({error}). Pack it anew with the method deflate."
        ) from error
    except (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        # With a number it is the disk's complaint, not the decompressor's: it may pass.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UnreadableFileError(
            f"{label} is broken or truncated ({error}). Fetch it again; if its origin is broken"
            " too, replace it there."
        ) from error


def _unpack(path: Path, label: str, folder: Path) -> Iterator[tuple[Path, str, bool]]:
    """Each file to read, its label, and whether it is a workbook; a gzip of CSV stays packed."""
    with _telling_breakage(label), _open_stream(path) as stream:
        if not stream.read(4).startswith(_ZIP_MAGIC):
            yield path, label, False
            return
        if isinstance(stream, gzip.GzipFile):
            # Zips need seeking: what lies in the gzip is unpacked first.
            stream.seek(0)
            path = _copied(stream, folder)
    with _telling_breakage(label), zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if not m.is_dir()]
        if any(m.filename == _XLSX_MEMBER for m in members):
            yield path, label, True
            return
        wanted = [
            m
            for m in members
            if not Path(m.filename).name.startswith((".", "~"))
            and not m.filename.startswith("__MACOSX/")
            and Path(m.filename).suffix.lower() in (".csv", ".txt", ".xlsx", ".gz")
        ]
        if not wanted:
            names = ", ".join(m.filename for m in members[:5]) or "nothing"
            raise UnreadableFileError(
                f"{label} is a zip that holds {names}; expected a .csv or .xlsx in it."
            )
        for member in wanted:
            yield from _unpack_member(archive, member, label, folder)


def _unpack_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, label: str, folder: Path
) -> Iterator[tuple[Path, str, bool]]:
    inner = f"{label}/{member.filename}"
    if member.flag_bits & _ENCRYPTED:
        raise UnreadableFileError(f"{inner} is encrypted. Unpack it with its password first.")
    with _telling_breakage(inner), archive.open(member) as source:
        target = _copied(source, folder)
    for file, file_label, is_workbook in _unpack(target, inner, folder):
        if member.filename.lower().endswith(".xlsx") and not is_workbook:
            raise UnreadableFileError(
                f"{inner} is no workbook, whatever its name. Fetch it again, or save it anew as"
                " .xlsx."
            )
        yield file, file_label, is_workbook


def _copied(source: io.BufferedIOBase | IO[bytes], folder: Path) -> Path:
    # A name of our own: members of different folders may share theirs, and ../x must not leave.
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as sink:
        shutil.copyfileobj(source, sink, 1024**2)
    return Path(sink.name)


def _xlsx_tables(path: Path, label: str) -> list[TextTable]:
    """A table for every sheet that is not empty."""
    import fastexcel

    tables = []
    try:
        workbook = fastexcel.read_excel(path)
        for name in workbook.sheet_names:
            # Loaded here, once: reading the header alone would parse the sheet twice.
            loaded = workbook.load_sheet(name, header_row=None, dtypes="string")
            sheet, errors = loaded.to_arrow_with_errors()
            if sheet.num_columns == 0 or sheet.num_rows == 0:
                continue
            if errors is not None:
                sheet = _with_error_cells(sheet, errors)
            header = ["" if column[0].as_py() is None else column[0].as_py() for column in sheet]
            table = TextTable(f"{label}[{name}]", header, iter(()))
            table.batches = _sheet_batches(sheet, table)
            tables.append(table)
    except fastexcel.FastExcelError as error:
        raise UnreadableFileError(
            f"{label} is not a readable xlsx workbook ({error}). Fetch it again, or save it anew"
            " as .xlsx."
        ) from error
    if not tables:
        raise UnreadableFileError(f"{label} has no sheet with a header. Replace it at its origin.")
    return tables


def _with_error_cells(sheet: "pa.RecordBatch", errors: "fastexcel.CellErrors") -> "pa.RecordBatch":
    """Put the texts of error cells (#N/A, ...) where the reader left nulls.

    As a null, an error in a customer's number would pass for a row without a customer.
    """
    import pyarrow as pa

    columns = {}
    for error in errors.errors:
        row, column = error.offset_position
        found = _XLSX_ERROR.search(error.detail)
        if column not in columns:
            columns[column] = sheet.column(column).to_pylist()
        columns[column][row] = _XLSX_ERRORS.get(found[1], "#ERROR") if found else "#ERROR"
    return pa.RecordBatch.from_arrays(
        [
            pa.array(columns[i], pa.string()) if i in columns else column
            for i, column in enumerate(sheet.columns)
        ],
        names=sheet.schema.names,
    )


def _sheet_batches(sheet: "pa.RecordBatch", table: TextTable) -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = sheet.slice(1)
    columns = [column.cast(pa.string()) for column in rows.columns]
    numbers = pa.arange(2, rows.num_rows + 2)
    # A sheet's used range may end in rows without a value: they are no rows.
    filled = columns[0].is_valid()
    for column in columns[1:]:
        filled = pc.or_(filled, column.is_valid())
    numbers = numbers.filter(filled)
    table.rows = len(numbers)
    yield pa.RecordBatch.from_arrays(
        [numbers, *(column.filter(filled) for column in columns)], schema=table.schema
    )


def _open_stream(path: Path) -> io.BufferedReader | gzip.GzipFile:
    with path.open("rb") as handle:
        magic = handle.read(2)
    return gzip.open(path, "rb") if magic == b"\x1f\x8b" else path.open("rb")


def _open_text(path: Path, encoding: str) -> IO[str]:
    """The file's lines, each with its end, and with marks where a byte is no character."""
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding
    return io.TextIOWrapper(_open_stream(path), encoding=encoding, errors=_MARK, newline="")


# A byte that is no character travels as a mark, a private character that holds the byte's value:
# the reader of CSV cannot hand over ragged rows that are not UTF-8, and the row is to be told.
_MARK = "retail_assets.mark"
_FIRST_MARK = 0x10FE00
_MARK_PREFIX = b"\xf4\x8f"  # of the marks in UTF-8; other private characters may share it
_MARKS = f"[{chr(_FIRST_MARK + 0x80)}-{chr(_FIRST_MARK + 0xFF)}]"


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    broken = error.object[error.start : error.end]
    return "".join(chr(_FIRST_MARK + byte) for byte in broken), error.end


codecs.register_error(_MARK, _mark)


def _unmarked(text: str) -> str:
    return re.sub(_MARKS, lambda m: f"\\x{ord(m[0]) - _FIRST_MARK:02x}", text)


@dataclass(frozen=True)
class _Encoding:
    """utf-8 or cp1252, and whether every byte of the file is valid UTF-8."""

    name: str
    is_valid_utf8: bool


def _csv_table(path: Path, label: str, opened: ExitStack) -> TextTable:
    import pyarrow as pa
    import pyarrow.csv as pacsv

    encoding = _detect_encoding(path, label)
    with _open_text(path, encoding.name) as text:
        header = [_unmarked(name) for name in next(csv.reader([text.readline()]), [])]
    if not any(name.strip() for name in header):
        raise UnreadableFileError(f"{label} has no header; expected the table's column names.")
    table = TextTable(label, header, iter(()))

    def reject(row: "pacsv.InvalidRow") -> str:
        reason = f"expected {row.expected_columns} fields, found {row.actual_columns}"
        table.rejected.append(RejectedRow(None, reason, row.text))
        return "skip"

    names = [str(i) for i in range(len(header))]
    end = secrets.token_hex(8)
    stream = _Utf8(
        opened.enter_context(_open_stream(path)),
        None if encoding.is_valid_utf8 else encoding.name,
        f"\n{','.join([end] * len(names))}\n".encode(),
    )

    def read() -> "Iterator[pa.RecordBatch]":
        try:
            with _telling_breakage(label):
                yield from pacsv.open_csv(
                    stream,
                    read_options=pacsv.ReadOptions(
                        block_size=_BLOCK_BYTES, column_names=names, skip_rows=1
                    ),
                    parse_options=pacsv.ParseOptions(
                        newlines_in_values=True, invalid_row_handler=reject
                    ),
                    convert_options=pacsv.ConvertOptions(
                        column_types={name: pa.string() for name in names},
                        null_values=[""],
                        strings_can_be_null=True,
                    ),
                )
        except pa.ArrowInvalid as error:
            line = _runaway_line(path, encoding.name, len(header), is_ended=True)
            raise UnreadableFileError(
                f"{label} is no well-formed CSV ({error}). A quote that is never closed is the"
                f" usual cause{f', here at line {line}' if line else ''}: mend the file at its"
                " origin."
            ) from error

    def batches() -> "Iterator[pa.RecordBatch]":
        try:
            yield from _rows(read(), table, path, encoding, end)
        except UnreadableFileError as error:
            table.failure = error
            raise

    table.batches = batches()
    return table


def _rows(
    batches: "Iterator[pa.RecordBatch]", table: TextTable, path: Path, encoding: _Encoding, end: str
) -> "Iterator[pa.RecordBatch]":
    """Number the rows, reject the broken and, at the end, count them and place the ragged.

    ``end`` is every value of the row that was put behind the file's last: if it does not come
    out, an open quote took it. A quote within an unquoted field (6" plate) opens none.
    """
    import pyarrow as pa

    complete = 0
    is_ended = has_long_values = False
    broken: list[RejectedRow] = []
    for batch in batches:
        if batch.num_rows and all(column[-1].as_py() == end for column in batch.columns):
            is_ended = True
            batch = batch.slice(0, batch.num_rows - 1)
        has_long_values = has_long_values or _holds(batch, b"\n")
        numbers = pa.arange(complete + 2, complete + 2 + batch.num_rows)
        complete += batch.num_rows
        numbered = pa.RecordBatch.from_arrays([numbers, *batch.columns], schema=table.schema)
        if not encoding.is_valid_utf8 and _holds(batch, _MARK_PREFIX):
            numbered = _without_broken(numbered, broken)
        if numbered.num_rows:
            yield numbered
    table.rows = complete + len(table.rejected)
    if (
        not is_ended
        or has_long_values
        or any(row.text.count("\n") > _LONGEST_RECORD_LINES for row in table.rejected)
    ):
        line = _runaway_line(path, encoding.name, len(table.header), is_ended=is_ended)
        if line is not None:
            raise UnreadableFileError(
                f"{table.label} has a quote that is never closed, or closed far too late, in the"
                f" record that begins at line {line}: mend that line at the file's origin."
            )
    table.rejected[:] = _place(table.rejected, path, encoding.name) + broken


def _holds(batch: "pa.RecordBatch", pattern: bytes) -> bool:
    """Whether some value may hold the pattern, by a look at each column's bytes as a whole."""
    values = (column.buffers()[2] for column in batch.columns)
    return any(value is not None and pattern in value.to_pybytes() for value in values)


def _without_broken(numbered: "pa.RecordBatch", rejected: list[RejectedRow]) -> "pa.RecordBatch":
    import pyarrow as pa
    import pyarrow.compute as pc

    is_broken = pa.repeat(False, numbered.num_rows)
    for column in numbered.columns[1:]:
        marked = pc.match_substring_regex(column, _MARKS)
        is_broken = pc.or_(is_broken, marked.fill_null(False))
    for number, *values in zip(*numbered.filter(is_broken).to_pydict().values(), strict=True):
        rejected.append(
            RejectedRow(
                number,
                "broken text: a byte sequence that is no character",
                _unmarked(",".join(value or "" for value in values)),
            )
        )
    return numbered.filter(pc.invert(is_broken))


def _runaway_line(path: Path, encoding: str, fields: int, *, is_ended: bool) -> int | None:
    """Line where the first record begins whose quote took lines of others, or None.

    That is one of too many lines, one of several that has all fields although text follows a
    closing quote, or else the last one, unless ``is_ended``. The lines of a ragged record are no
    loss: they are told as rejected. Slow, hence only for files with values of several lines.
    """
    lines: list[str] = []

    def kept(text: IO[str]) -> Iterator[str]:
        for line in text:
            lines.append(line)
            yield line

    with _open_text(path, encoding) as text:
        reader = csv.reader(kept(text))
        start = previous = 1
        while True:
            previous, start = start, reader.line_num + 1
            lines.clear()
            try:
                record = next(reader, None)
                if record is None:
                    return None if is_ended else previous
            except csv.Error:  # a value of more than 128 KiB
                record = None
            if len(lines) > _LONGEST_RECORD_LINES or (
                len(lines) > 1
                and (record is None or (len(record) == fields and not _is_well_formed(lines)))
            ):
                return start


def _is_well_formed(record: list[str]) -> bool:
    try:
        list(csv.reader(record, strict=True))
    except csv.Error:
        return False
    return True


def _place(ragged: list[RejectedRow], path: Path, encoding: str) -> list[RejectedRow]:
    """Find the lines of ragged rows (the reader does not tell); only for files that have any."""
    waiting: dict[str, list[int]] = {}
    for i, row in enumerate(ragged):
        waiting.setdefault(row.text.split("\n", 1)[0].rstrip("\r"), []).append(i)
    placed = [RejectedRow(None, row.reason, _unmarked(row.text)) for row in ragged]
    if waiting:
        with _open_text(path, encoding) as text:
            for number, line in enumerate(text, start=1):
                indexes = waiting.get(line.rstrip("\r\n"))
                if indexes:
                    i = indexes.pop(0)
                    placed[i] = RejectedRow(number, placed[i].reason, placed[i].text)
    return placed


def _detect_encoding(path: Path, label: str) -> _Encoding:
    """utf-8 or cp1252, by the bytes of the whole file.

    A file with invalid UTF-8 is Windows-1252 unless it has a UTF-8 mark or at least as many
    valid multi-byte characters as invalid bytes: then it is UTF-8 with broken rows.
    """
    size = characters = invalid = 0
    is_marked = False
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    with _telling_breakage(label), _open_stream(path) as stream:
        while True:
            chunk = stream.read(_BLOCK_BYTES)
            if size == 0:
                is_marked = chunk.startswith(codecs.BOM_UTF8)
                if chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise UnreadableFileError(
                        f"{label} is UTF-16; expected UTF-8 or Windows-1252. Save it as UTF-8."
                    )
            size += len(chunk)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError:
                # Counted from here on; a character that the last chunk began is not lost.
                state = decoder.getstate()
                decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
                decoder.setstate(state)
                text = decoder.decode(chunk, final=not chunk)
            characters += len(text)
            if decoder.errors != "strict":
                invalid += len(text) - len(text.encode(errors="ignore").decode())
            if not chunk:
                break
    if size == 0:
        raise UnreadableFileError(f"{label} is empty; expected a header and rows. Fetch it again.")
    is_cp1252 = invalid and not is_marked and size - characters < invalid
    return _Encoding("cp1252" if is_cp1252 else "utf-8", invalid == 0)


class _Utf8(io.RawIOBase):
    """A byte stream read as UTF-8, then ``ending``; what is no character comes as a mark.

    ``encoding`` is the source's, None where it is valid UTF-8 already.
    """

    def __init__(self, source: io.BufferedIOBase, encoding: str | None, ending: bytes) -> None:
        self._source = source
        self._decoder = codecs.getincrementaldecoder(encoding)(_MARK) if encoding else None
        self._ending = ending

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return self.readall()
        # A byte becomes four at most, and the caller must not get more than it asked for.
        asked = size if self._decoder is None else max(size // 4, 1)
        chunk = self._source.read(asked)
        is_last = len(chunk) < asked
        if self._decoder is not None:
            chunk = self._decoder.decode(chunk, final=is_last).encode()
        if is_last:
            # In one block with the file's last bytes: they may be a header without a line end.
            room = size - len(chunk)
            chunk, self._ending = chunk + self._ending[:room], self._ending[room:]
        return chunk

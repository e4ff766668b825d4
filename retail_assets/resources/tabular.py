"""Tables in files: CSV and xlsx in any container, as streams of text columns.

Here: containers (.gz, .zip), encodings, sheets, field counts; every value comes out as the text
that stood in the file, with its row number. Not here: what the text means (each domain's
transforms.py), where the file came from (download.py).
"""

import codecs
import csv
import gzip
import io
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from retail_assets.errors import PermanentError

if TYPE_CHECKING:
    import pyarrow as pa

ROW = "row"
_BLOCK_BYTES = 4 * 1024**2
_LONGEST_RECORD_LINES = 1000
_XLSX_MEMBER = "xl/workbook.xml"


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

    ``batches`` can be read once; ``rows`` and ``rejected`` are complete when it is exhausted.
    Columns of a batch are named by position ("0", "1", ...) and ``row`` (int64, header = 1,
    counted over the rows that have all fields). Missing values are null. ``rows`` counts every
    data row met, rejected ones included.
    """

    label: str
    header: list[str]
    batches: "Iterator[pa.RecordBatch]"
    rejected: list[RejectedRow] = field(default_factory=list)
    rows: int = 0

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
    unpacked: list[Path] = []
    opened: list[IO[bytes]] = []
    try:
        files = _unpack(path, scratch, unpacked)
        tables: list[TextTable] = []
        for file in files:
            label = path.name if file == path else f"{path.name}/{file.name}"
            if zipfile.is_zipfile(file):
                tables += _xlsx_tables(file, label)
            else:
                tables.append(_csv_table(file, label, opened))
        yield tables
    finally:
        for handle in opened:
            handle.close()
        for file in unpacked:
            file.unlink(missing_ok=True)


def _unpack(path: Path, scratch: Path, unpacked: list[Path]) -> list[Path]:
    """The files to read: ``path`` itself, or what a zip holds; gzip is read as a stream."""
    with path.open("rb") as handle:
        magic = handle.read(4)
    if not magic.startswith(b"PK"):
        return [path]
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            if any(m.filename == _XLSX_MEMBER for m in members):
                return [path]
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
                    f"{path.name} is a zip that holds {names}; expected a .csv or .xlsx in it."
                )
            for member in wanted:
                # The member's own folders are dropped: a name such as ../x must not leave scratch.
                target = scratch / Path(member.filename).name
                unpacked.append(target)
                with archive.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1024**2)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, zipfile.BadZipFile | EOFError):
            raise
        raise UnreadableFileError(
            f"{path.name} is a broken or truncated zip ({error}). Fetch it again; if its origin"
            " is broken too, replace it there."
        ) from error
    return list(unpacked)


def _xlsx_tables(path: Path, label: str) -> list[TextTable]:
    """A table for every sheet that is not empty."""
    import fastexcel

    try:
        workbook = fastexcel.read_excel(path)
        names = workbook.sheet_names
    except fastexcel.FastExcelError as error:
        raise UnreadableFileError(
            f"{label} is not a readable xlsx workbook ({error}). Fetch it again, or save it anew"
            " as .xlsx."
        ) from error
    tables = []
    for name in names:
        # Loaded here, once: reading the header alone would parse the sheet twice.
        sheet = workbook.load_sheet(name, header_row=None, dtypes="string").to_arrow()
        if sheet.num_columns == 0 or sheet.num_rows == 0:
            continue
        header = ["" if column[0].as_py() is None else column[0].as_py() for column in sheet]
        table = TextTable(f"{label}[{name}]", header, iter(()))
        table.batches = _sheet_batches(sheet, table)
        tables.append(table)
    if not tables:
        raise UnreadableFileError(f"{label} has no sheet with a header. Replace it at its origin.")
    return tables


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


def _open_stream(path: Path) -> IO[bytes]:
    with path.open("rb") as handle:
        magic = handle.read(2)
    return gzip.open(path, "rb") if magic == b"\x1f\x8b" else path.open("rb")  # type: ignore[return-value]


def _csv_table(path: Path, label: str, opened: list[IO[bytes]]) -> TextTable:
    import pyarrow as pa
    import pyarrow.csv as pacsv

    encoding = _detect_encoding(path, label)
    head = _read_header(path, encoding)
    if not any(name.strip() for name in head):
        raise UnreadableFileError(f"{label} has no header; expected the table's column names.")
    table = TextTable(label, head, iter(()))

    def reject(row: "pacsv.InvalidRow") -> str:
        table.rejected.append(
            RejectedRow(
                None,
                f"expected {row.expected_columns} fields, found {row.actual_columns}",
                row.text,
            )
        )
        return "skip"

    names = [str(i) for i in range(len(head))]
    stream = _open_stream(path)
    opened.append(stream)
    if encoding == "cp1252":
        stream = _Transcoded(stream)  # type: ignore[assignment]

    def read() -> "Iterator[pa.RecordBatch]":
        # Bytes, not text: one broken row must not stop the file (see _decoded).
        try:
            yield from pacsv.open_csv(
                stream,
                read_options=pacsv.ReadOptions(
                    block_size=_BLOCK_BYTES, column_names=names, skip_rows=1
                ),
                parse_options=pacsv.ParseOptions(
                    newlines_in_values=True, invalid_row_handler=reject
                ),
                convert_options=pacsv.ConvertOptions(
                    column_types={name: pa.binary() for name in names},
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )
        except pa.ArrowInvalid as error:
            if "Empty CSV" in str(error) or "no data" in str(error):
                return
            raise UnreadableFileError(
                f"{label} is no well-formed CSV ({error}). A quote that is never closed is the"
                " usual cause: mend the file at its origin."
            ) from error
        except (EOFError, gzip.BadGzipFile, OSError) as error:
            raise UnreadableFileError(
                f"{label} is broken or truncated ({error}). Fetch it again."
            ) from error

    table.batches = _numbered(read(), table, path)
    return table


def _read_header(path: Path, encoding: str) -> list[str]:
    with (
        _open_stream(path) as raw,
        io.TextIOWrapper(
            raw, encoding="cp1252" if encoding == "cp1252" else "utf-8-sig", errors="replace"
        ) as text,
    ):
        return next(csv.reader([text.readline()]), [])


def _numbered(
    batches: "Iterator[pa.RecordBatch]", table: TextTable, path: Path
) -> "Iterator[pa.RecordBatch]":
    """Number the rows, decode their bytes and, at the end, count them and place the ragged."""
    import pyarrow as pa

    complete = 0
    broken: list[RejectedRow] = []
    for batch in batches:
        numbers = pa.arange(complete + 2, complete + 2 + batch.num_rows)
        complete += batch.num_rows
        columns, keep = _decoded(batch, numbers, broken)
        decoded = pa.RecordBatch.from_arrays([numbers, *columns], schema=table.schema)
        yield decoded if keep is None else decoded.filter(keep)
    table.rows = complete + len(table.rejected)
    for ragged in table.rejected:
        if ragged.text.count("\n") > _LONGEST_RECORD_LINES:
            raise UnreadableFileError(
                f"{table.label} has a quote that is never closed, at {ragged.text[:60]!r}:"
                " mend that line at the file's origin."
            )
    table.rejected[:] = _place(table.rejected, path) + broken


def _place(ragged: list[RejectedRow], path: Path) -> list[RejectedRow]:
    """Find the lines of ragged rows (the reader does not tell); only for files that have any."""
    waiting: dict[bytes, list[int]] = {}
    for i, row in enumerate(ragged):
        first_line = row.text.split("\n", 1)[0].rstrip("\r")
        waiting.setdefault(first_line.encode(), []).append(i)
    placed = list(ragged)
    if waiting:
        with _open_stream(path) as stream:
            for number, line in enumerate(stream, start=1):
                indexes = waiting.get(line.rstrip(b"\r\n"))
                if indexes:
                    i = indexes.pop(0)
                    placed[i] = RejectedRow(number, ragged[i].reason, ragged[i].text)
    return placed


def _decoded(
    batch: "pa.RecordBatch", numbers: "pa.Array", rejected: list[RejectedRow]
) -> "tuple[list[pa.Array], pa.Array | None]":
    """Text columns, and which rows to keep (None: all); rows of broken UTF-8 are rejected."""
    import pyarrow as pa

    columns: list[pa.Array] = []
    broken: set[int] = set()
    for column in batch.columns:
        try:
            columns.append(column.cast(pa.string()))
        except pa.ArrowInvalid:
            values = []
            for i, value in enumerate(column.to_pylist()):
                try:
                    values.append(None if value is None else value.decode())
                except UnicodeDecodeError:
                    broken.add(i)
                    values.append(None)
            columns.append(pa.array(values, pa.string()))
    if not broken:
        return columns, None
    for i in sorted(broken):
        raw = b",".join(column[i].as_py() or b"" for column in batch.columns)
        rejected.append(
            RejectedRow(
                numbers[i].as_py(),
                "broken UTF-8: a byte sequence that is no character",
                raw.decode(errors="backslashreplace"),
            )
        )
    return columns, pa.array([i not in broken for i in range(batch.num_rows)])


def _detect_encoding(path: Path, label: str) -> str:
    """utf-8 or cp1252, by the bytes of the whole file.

    A file with invalid UTF-8 is Windows-1252 unless it has a UTF-8 mark or at least as many
    valid multi-byte characters as invalid bytes: then it is UTF-8 with broken rows.
    """
    valid = invalid = 0
    marked = False
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    first = True
    try:
        with _open_stream(path) as stream:
            while chunk := stream.read(_BLOCK_BYTES):
                if first:
                    marked = chunk.startswith(codecs.BOM_UTF8)
                    if chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                        raise UnreadableFileError(
                            f"{label} is UTF-16; expected UTF-8 or Windows-1252. Save it as UTF-8."
                        )
                    first = False
                if invalid == 0:
                    try:
                        text = decoder.decode(chunk)
                        if not chunk.isascii():
                            valid += len(chunk) - len(text)
                        continue
                    except UnicodeDecodeError:
                        pass
                text = chunk.decode("utf-8", errors="surrogateescape")
                bad = sum(0xDC80 <= ord(c) <= 0xDCFF for c in text)
                invalid += bad
                valid += len(chunk) - bad - (len(text) - bad)
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        raise UnreadableFileError(
            f"{label} is broken or truncated ({error}). Fetch it again."
        ) from error
    if first:
        raise UnreadableFileError(f"{label} is empty; expected a header and rows. Fetch it again.")
    return "cp1252" if invalid and not marked and valid < invalid else "utf-8"


class _Transcoded(io.RawIOBase):
    """A Windows-1252 byte stream, read as UTF-8.

    The five bytes that Windows-1252 leaves undefined stay as invalid UTF-8, so that their rows
    are rejected with a reason rather than changed.
    """

    _TABLE = tuple(
        bytes([b]).decode("cp1252").encode() if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else b"\xff"
        for b in range(256)
    )

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        if not self._pending:
            chunk = self._source.read(1024**2)
            try:
                self._pending = chunk.decode("cp1252").encode()
            except UnicodeDecodeError:
                self._pending = b"".join(self._TABLE[b] for b in chunk)
        size = min(len(view), len(self._pending))
        view[:size] = self._pending[:size]
        self._pending = self._pending[size:]
        return size

"""A CSV file made fit for another engine: looked at once, copied only where it must be."""

import codecs
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retail_assets.resources.tabular.encodings import BLOCK_BYTES, decodes
from retail_assets.resources.tabular.files import open_tables
from retail_assets.resources.tabular.tables import (
    RejectedRow,
    TextTable,
    UnreadableFileError,
    holds,
    shown,
)

_NO_SEPARATORS = bytes(set(range(256)) - set(b",\n"))
_INDEX = re.compile(r"(index|Unnamed: [0-9.]+)?")  # as pandas writes one without a name


@dataclass(frozen=True)
class ScannedCsv:
    """A CSV file that an engine can read: UTF-8, commas, a header, all rows of as many fields.

    ``file`` is the file that was scanned, or a copy of its good rows; ``rows`` counts every data
    row met, those in ``rejected`` included. ``delimiter`` is that of the file scanned; ``skipped``
    has a sentence for each part of it that is not read.
    """

    file: Path
    sha256: str
    rows: int
    quoted: bool = False
    rejected: tuple[RejectedRow, ...] = ()
    delimiter: str = ","
    skipped: tuple[str, ...] = ()


def scan_csv(path: Path, header: Sequence[str], scratch: Path) -> ScannedCsv:
    """Make sure of a plain CSV file by one look at its bytes; a file that is not plain is copied.

    Plain is valid UTF-8 without quotes, lines ending in a line feed, of as many fields each (two
    or more) and not all of them empty: such a file is hashed and counted at the disk's speed, and
    nothing of it is copied. Of others the good rows are copied to ``scratch``, and the bad ones
    told. Where ``header`` has a column without a name, a row's index, the file may name it as
    pandas does; further ones before all columns are left out.

    Raises:
        UnreadableFileError: the header is another, or the file is no CSV; see ``open_tables``.
    """
    digest, rows = _scan_plain(path, header)
    if rows is not None:
        return ScannedCsv(path, digest, rows)

    def is_header(names: Sequence[str]) -> bool:
        expected = [*[""] * (len(names) - len(header)), *header]
        return len(names) == len(expected) and all(
            name == wanted or (not wanted and _INDEX.fullmatch(name) is not None)
            for name, wanted in zip(names, expected, strict=True)
        )

    with open_tables(path, scratch, is_header=is_header) as opened:
        if len(opened.tables) != 1:
            raise UnreadableFileError(
                f"{path.name} holds {len(opened.tables)} tables; expected one CSV."
            )
        table = opened.tables[0]
        if not is_header(table.header):
            raise UnreadableFileError(
                f"{path.name} has {_describe_header(table.header, header)}, expected"
                f" '{','.join(header)}'. Nothing of it was taken. Deliver the file again with these"
                " columns, in this order."
            )
        copy = scratch / f"{digest[:16]}-{path.stem}.csv"  # an engine would unpack a .gz
        quoted = _write_copy(table, header, copy)
        return ScannedCsv(
            copy,
            digest,
            table.rows,
            quoted,
            tuple(table.rejected),
            table.delimiter,
            tuple(opened.skipped),
        )


def _describe_header(found: Sequence[str], expected: Sequence[str]) -> str:
    """A header as an error tells it: a row without any name of it may have a person's data."""
    names = {name.casefold() for name in expected if name}
    if names.isdisjoint(name.casefold() for name in found):
        return f"no header: of the {len(found)} fields of its first row none is a column's name"
    return f"the header '{shown(','.join(found))}'"


def _scan_plain(path: Path, header: Sequence[str]) -> tuple[str, int | None]:
    """SHA-256 of the file, and its data rows; None where it is not plain."""
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    expected = ",".join(header).encode() + b"\n"
    # One line's separators: so many commas, then a line feed.
    line = b"," * (len(header) - 1) + b"\n"
    lines, last, carried, line_begun = 0, b"", b"", b""
    # A row of commas alone, and how it begins: the shorter is found in a third of the time.
    blank = b"\n" + line
    begun = blank[:5]
    with path.open("rb") as stream:
        # An empty line is a row of one column to some, and no row to others.
        plain = len(header) > 1 and stream.read(len(expected)) == expected
        stream.seek(0)
        while chunk := stream.read(BLOCK_BYTES):
            digest.update(chunk)
            if plain:
                plain = not any(mark in chunk for mark in (b'"', b"\r", b"\0"))
            if plain and not (chunk.isascii() and not decoder.getstate()[0]):
                plain = decodes(decoder, chunk)
            if plain:
                separators = carried + chunk.translate(None, _NO_SEPARATORS)
                whole = len(separators) // len(line)
                carried = separators[whole * len(line) :]
                plain = separators.startswith(line * whole)
                lines += whole
            if plain:
                first, end = chunk.find(b"\n") + 1, chunk.rfind(b"\n")
                line_begun += chunk[:first] if first else chunk
                plain = not (blank in line_begun or (begun in chunk and blank in chunk))
                line_begun = chunk[end:] if first else line_begun
            last = chunk[-1:]
    if last != b"\n":  # the last line may lack its end
        plain = plain and carried == line[:-1] and blank[:-1] != line_begun
        carried, lines = b"", lines + 1
    plain = plain and not carried and not decoder.getstate()[0]
    return digest.hexdigest(), lines - 1 if plain else None


def _write_copy(table: TextTable, header: Sequence[str], copy: Path) -> bool:
    """Write the good rows of a table as CSV; returns whether some values need their quotes."""
    import pyarrow as pa
    import pyarrow.csv as pacsv

    schema = pa.schema([(name or "index", pa.string()) for name in header])
    quoted = False
    with pacsv.CSVWriter(
        copy, schema, write_options=pacsv.WriteOptions(quoting_style="needed")
    ) as out:
        for batch in table.batches:
            columns = batch.columns[-len(header) :]
            values = pa.RecordBatch.from_arrays(columns, schema=schema)
            # A NUL that ends a line is lost to the JVM's Spark, unless it reads by quotes.
            marks = (b'"', b",", b"\n", b"\r", b"\0")
            quoted = quoted or any(holds(values, mark) for mark in marks)
            out.write_batch(values)
    return quoted

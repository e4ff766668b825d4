"""The tables of a file: which of what lies in it is one, and what was skipped and why."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from retail_assets.resources.tabular.containers import unpack
from retail_assets.resources.tabular.delimited import read_delimited
from retail_assets.resources.tabular.encodings import Encoding, detect_single_encoding
from retail_assets.resources.tabular.formats import (
    HEAD_BYTES,
    open_stream,
    refuse_other_formats,
    telling_breakage,
)
from retail_assets.resources.tabular.tables import (
    FoundTable,
    IsHeader,
    NoTableError,
    TextTable,
    UnreadableFileError,
)
from retail_assets.resources.tabular.workbooks import read_workbook


@dataclass(frozen=True)
class Opened:
    """The tables of a file, and a sentence for each part of it that is in none of them."""

    tables: list[TextTable]
    skipped: list[str]


@contextmanager
def open_tables(
    path: Path, scratch: Path, *, is_header: IsHeader | None = None
) -> Iterator[Opened]:
    """The tables of a CSV or xlsx file, plain or inside .gz or .zip, told by content.

    ``is_header`` says whether a row of cleaned texts is the header that is wanted: it is looked for
    among the first rows, in each of CSV's dialects, and parts of the file without it are skipped.
    Where no part has it, or it is not given, the first row that is not blank is the header of each.
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
        found: list[FoundTable] = []
        empty: list[NoTableError] = []
        skipped: list[str] = []
        for part in unpack(path, path.name, Path(folder), skipped):
            try:
                if part.is_workbook:
                    found += read_workbook(part.path, part.label, Path(folder), is_header, skipped)
                else:
                    found.append(read_delimited(part.path, part.label, opened, is_header))
            except NoTableError as error:
                empty.append(error)
        yield _choose(found, empty, skipped)


@contextmanager
def open_strict_csv(
    path: Path, is_header: IsHeader, *, encoding: str | None = None
) -> Iterator[TextTable]:
    """The table of a CSV file, plain or in a gzip, of which nothing may be taken amiss.

    Every byte of it is a character (``detect_single_encoding``), and nothing of it is unpacked to
    the disk. ``encoding`` is that of the table, where an earlier look at the file has told it.

    Raises:
        UnreadableFileError: see ``open_tables``; a zip or a workbook is refused as well.
    """
    label = str(path)
    with ExitStack() as opened:
        if encoding is None:
            with telling_breakage(label), open_stream(path) as stream:
                refuse_other_formats(stream.read(HEAD_BYTES), label)
            found = detect_single_encoding(path, label)
        else:
            found = Encoding(encoding, is_valid_utf8=encoding == "utf-8")
        yield read_delimited(path, label, opened, is_header, found).table


def _choose(found: list[FoundTable], empty: list[NoTableError], skipped: list[str]) -> Opened:
    wanted = [candidate for candidate in found if candidate.is_wanted]
    if not wanted:
        if empty:
            raise empty[0]
        return Opened([candidate.table for candidate in found], skipped)
    skipped += [str(error) for error in empty]
    for candidate in found:
        label, above = candidate.table.label, candidate.rows_above
        if not candidate.is_wanted:
            skipped.append(f"{label}: no row of it is the header")
        elif above:
            skipped.append(f"{label}: {above} row{'s' if above > 1 else ''} above the header")
    return Opened([candidate.table for candidate in wanted], skipped)

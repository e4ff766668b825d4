"""The XML of a workbook where its reader falls short: hidden sheets, dates, formulas' values.

A formula whose value was never stored gets a mark, and a number format of a date that the reader
does not know one that it knows, in a copy of the workbook.
"""

import html
import posixpath
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO
from xml.parsers import expat

from retail_assets.resources.tabular.containers import normal_names
from retail_assets.resources.tabular.tables import UnreadableFileError

# What a cell comes out as whose formula has no stored value.
NO_VALUE_MARK = "#FORMULA WITHOUT A VALUE"
_READ_BYTES = 1024**2
_BOOK, _BOOK_FILES, _STYLES = "xl/workbook.xml", "xl/_rels/workbook.xml.rels", "xl/styles.xml"


@dataclass(frozen=True)
class Sheet:
    """Whether a sheet is hidden, and the file of the workbook that holds its cells, if any."""

    is_hidden: bool
    member: str | None


@dataclass(frozen=True)
class Area:
    """Rows and columns (from 1, both ends included) of a formula that fills several cells."""

    first_row: int
    last_row: int
    first_column: int
    last_column: int


def find_sheets(path: Path, label: str) -> dict[str, Sheet]:
    """The sheets of a workbook by name.

    Raises:
        UnreadableFileError: what should say so is no XML.
    """
    with zipfile.ZipFile(path) as archive:
        members = normal_names(archive)
        try:
            files = {
                found.get("Id"): found.get("Target", "")
                for name, found in _elements(archive, members.get(_BOOK_FILES))
                if name == "Relationship"
            }
            sheets = {}
            for name, found in _elements(archive, members.get(_BOOK)):
                if name == "sheet":
                    # A path from the folder xl, or from the root.
                    target = files.get(found["id"], "").replace("\\", "/")
                    target = posixpath.normpath(posixpath.join("/xl", target))
                    member = members.get(target.lstrip("/").lower())
                    sheets[found["name"]] = Sheet(
                        found.get("state", "visible") != "visible",
                        None if member is None else member.filename,
                    )
        except (expat.ExpatError, KeyError) as error:
            raise UnreadableFileError(
                f"{label} is no readable workbook: its list of sheets is broken ({error}). Fetch it"
                " again, or save it anew as .xlsx."
            ) from error
    return sheets


def _elements(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo | None
) -> list[tuple[str, dict[str, str]]]:
    """Name and attributes of each element of a small XML file, without their prefixes."""
    found: list[tuple[str, dict[str, str]]] = []

    def start(name: str, attributes: Mapping[str, str]) -> None:
        plain = {key.rpartition(":")[2]: value for key, value in attributes.items()}
        found.append((name.rpartition(":")[2], plain))

    if member is not None:
        parser = expat.ParserCreate()
        parser.StartElementHandler = start
        parser.Parse(archive.read(member), True)
    return found


# ---- dates

# Formats that stand for a date or time by their number, each language with its own code: those of
# East Asia, then those of Thailand. The numbers have no code in the file.
_OTHER_DATES = frozenset({*range(27, 37), *range(50, 59), *range(71, 79), 80, 81})
_KNOWN_DATE, _GENERAL = "22", "0"
_DURATIONS = frozenset({46, 79})
# Quoted text, characters taken as they are, and what stands in brackets: colours, languages.
_LITERAL = re.compile(r'"[^"]*"?|[\\_*].|\[[^\]]*\]', re.DOTALL)
_ELAPSED = re.compile(r"\[(h+|m+|s+)\]", re.I)
_HALF_DAY = re.compile(r"am/pm|a/p", re.I)


def with_known_dates(path: Path, folder: Path) -> Path:
    """The workbook, or a copy of it with the number formats of dates that the reader knows."""
    with zipfile.ZipFile(path) as archive:
        member = normal_names(archive).get(_STYLES)
        if member is None:
            return path
        styles = archive.read(member)
    mended = _mend_styles(styles)
    return path if mended == styles else _copy(path, folder, {member.filename: lambda: [mended]})


_CELL_FORMATS = re.compile(rb"<(?:\w+:)?cellXfs\b.*?</(?:\w+:)?cellXfs>", re.DOTALL)
_FORMAT_ID = re.compile(rb"""(\bnumFmtId\s*=\s*["'])(\d+)""")
_FORMAT = re.compile(rb"""<(?:\w+:)?numFmt\b((?:[^>"']|"[^"]*"|'[^']*')*)>""")
_ATTRIBUTE = re.compile(rb"""([\w:]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")


def _mend_styles(styles: bytes) -> bytes:
    codes = {}
    for element in _FORMAT.finditer(styles):
        found = {name: one or other for name, one, other in _ATTRIBUTE.findall(element[1])}
        code = found.get(b"formatCode", b"").decode(errors="replace")
        codes[found.get(b"numFmtId")] = html.unescape(code)

    def known(found: re.Match[bytes]) -> bytes:
        number = found[2]
        as_known = _known_format(int(number), codes.get(number))
        return found[1] + (number if as_known is None else as_known.encode())

    return _CELL_FORMATS.sub(lambda formats: _FORMAT_ID.sub(known, formats[0]), styles)


def _known_format(number: int, code: str | None) -> str | None:
    """The format by which the reader knows what another is; None where it knows that itself.

    A duration is a number: as a date it would be one of 1900.
    """
    if code is None:
        is_date, is_duration = number in _OTHER_DATES, number in _DURATIONS
        return _KNOWN_DATE if is_date else _GENERAL if is_duration else None
    if _ELAPSED.search(re.sub(r'"[^"]*"|\\.', "", code)):
        return _GENERAL
    plain = _HALF_DAY.sub("", _LITERAL.sub("", code)).split(";")[0].lower()
    if plain.strip() in ("general", "standard"):
        return _GENERAL
    # Eras (g), their years (e), Buddhist years (b) and weekdays (a) are what the reader lacks.
    letters = set(re.findall("[a-z]", plain))
    is_known = letters & set("dmhys") and "a" not in letters
    if is_known or letters - set("dmhysgeba") or re.search("[0#?]", plain):
        return None
    return _KNOWN_DATE if letters & set("dmhysgeb") or "aaa" in plain else None


# ---- formulas without a value


@dataclass(frozen=True)
class _Grammar:
    """Patterns for a sheet's elements, which may all have a prefix (<x:c>)."""

    formula: bytes  # as a formula's element begins
    row_end: bytes
    rows_end: bytes
    lacking: re.Pattern[bytes]  # a formula that no value may follow
    cell: re.Pattern[bytes]
    row: re.Pattern[bytes]
    value: re.Pattern[bytes]
    no_value: re.Pattern[bytes]
    area: re.Pattern[bytes]
    mark: bytes

    @classmethod
    def of(cls, head: bytes) -> "_Grammar":
        """The patterns for a sheet, by its first bytes."""
        found = re.search(rb"<(\w+:)?worksheet\b", head)
        p = (found and found[1]) or b""
        empty = rb"<%bv(?:\s[^>]*)?(?:/>|>\s*</%bv\s*>)" % (p, p)
        return cls(
            formula=b"<%bf" % p,
            row_end=b"</%brow>" % p,
            rows_end=b"</%bsheetData>" % p,
            lacking=re.compile(
                rb"(?:</%bf\s*>|<%bf(?:\s[^>]*)?/>)\s*(?:</%bc\s*>|%b)" % (p, p, p, empty)
            ),
            cell=re.compile(
                rb"<%bc(\s[^>]*)?(?<!/)>(.*?)</%bc\s*>" % (p, p),
                re.DOTALL,
            ),
            row=re.compile(rb"""<%brow(?:\s[^>]*?\br\s*=\s*["'](\d+)["'][^>]*|\s[^>]*)?>""" % p),
            value=re.compile(rb"<%b(?:v|is)\b" % p),
            no_value=re.compile(empty),
            area=re.compile(rb"""<%bf\s[^>]*?\bref\s*=\s*["']([A-Z]+\d+:[A-Z]+\d+)["']""" % p),
            mark=b'<%bc%%b t="str"><%bv>%b</%bv></%bc>' % (p, p, NO_VALUE_MARK.encode(), p, p),
        )

    def lacks_value(self, attributes: bytes, content: bytes) -> bool:
        """Whether a cell has a formula and no stored value; an empty text is a value."""
        if self.formula not in content:
            return False
        if not self.value.search(content):
            return True
        return bool(self.no_value.search(content)) and not _IS_TEXT.search(attributes)


_IS_TEXT = re.compile(rb"""\bt\s*=\s*["']str["']""")
_TYPE = re.compile(rb"""\s+t\s*=\s*["'][^"']*["']""")


def find_valueless(path: Path, members: Iterable[str]) -> dict[str, list[Area]]:
    """Which sheets hold formulas without a stored value, and the areas that such formulas fill."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for member in members:
            areas: list[Area] = []
            has_some = False
            with archive.open(member) as stream:
                for grammar, rows in _rows(stream):
                    if grammar.formula not in rows or not grammar.lacking.search(rows):
                        continue
                    for attributes, content in grammar.cell.findall(rows):
                        if grammar.lacks_value(attributes, content):
                            has_some = True
                            areas += [_area(ref) for ref in grammar.area.findall(content)]
            if has_some:
                found[member] = areas
    return found


def _rows(stream: IO[bytes]) -> Iterator[tuple[_Grammar, bytes]]:
    """A sheet's XML in pieces, none of which ends within a row."""
    carried = stream.read(_READ_BYTES)
    grammar = _Grammar.of(carried)
    are_ended = False
    while chunk := stream.read(_READ_BYTES):
        end = carried.rfind(grammar.row_end) + len(grammar.row_end)
        if end < len(grammar.row_end):
            are_ended = are_ended or grammar.rows_end in carried
            end = len(carried) if are_ended else 0
        if end:
            yield grammar, carried[:end]
        carried = carried[end:] + chunk
    yield grammar, carried


def _area(reference: bytes) -> Area:
    (first_column, first_row), (last_column, last_row) = re.findall(
        r"([A-Z]+)(\d+)", reference.decode()
    )
    return Area(int(first_row), int(last_row), _number(first_column), _number(last_column))


def _number(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("A") + 1
    return number


def _letters(number: int) -> str:
    letters = ""
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def with_marks(path: Path, folder: Path, valueless: Mapping[str, Sequence[Area]]) -> Path:
    """A copy of a workbook in which NO_VALUE_MARK is the text of what ``find_valueless`` found."""

    def mended(member: str, areas: Sequence[Area]) -> Iterator[bytes]:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            row = 0

            def mark_cell(grammar: _Grammar, cell: re.Match[bytes]) -> bytes:
                attributes = cell[1] or b""
                if not grammar.lacks_value(attributes, cell[2]):
                    return cell[0]
                return grammar.mark % _TYPE.sub(b"", attributes)

            def mark_row(grammar: _Grammar, begun: re.Match[bytes]) -> bytes:
                nonlocal row
                row = int(begun[1]) if begun[1] else row + 1
                if begun[0].endswith(b"/>"):
                    return begun[0]
                # Before the row's own cells: where one has a value, the reader takes that.
                return begun[0] + b"".join(
                    grammar.mark % f' r="{_letters(column)}{row}"'.encode()
                    for area in areas
                    if area.first_row <= row <= area.last_row
                    for column in range(area.first_column, area.last_column + 1)
                )

            for grammar, rows in _rows(stream):
                marked = grammar.cell.sub(partial(mark_cell, grammar), rows)
                if areas:
                    marked = grammar.row.sub(partial(mark_row, grammar), marked)
                yield marked

    return _copy(
        path, folder, {name: partial(mended, name, areas) for name, areas in valueless.items()}
    )


def _copy(path: Path, folder: Path, members: Mapping[str, Callable[[], Iterable[bytes]]]) -> Path:
    """A copy of a workbook with other contents of some of its files."""
    with path.open("rb") as source, tempfile.NamedTemporaryFile(dir=folder, delete=False) as copy:
        shutil.copyfileobj(source, copy, _READ_BYTES)
    with zipfile.ZipFile(copy.name, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, pieces in members.items():
            # Put behind the others, which are not unpacked; the index forgets the old one.
            archive.filelist.remove(archive.NameToInfo.pop(name))
            with archive.open(name, "w", force_zip64=True) as sink:
                for piece in pieces():
                    sink.write(piece)
    return Path(copy.name)

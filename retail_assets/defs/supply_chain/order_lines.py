"""A CSV file of order lines: what it must be, and the message of each of its rows.

Here: header, rows and marks that are the source's own, and what never leaves it. Not here: how a
file is read (resources/tabular), how messages are sent (stream.py), what becomes of them
(messages.py).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain, dropwhile
from json.encoder import encode_basestring
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retail_assets.defs.supply_chain.contract import KEY_HEADER, SOURCE_COLUMNS, WITHHELD_HEADER
from retail_assets.defs.supply_chain.messages import list_names, names_withheld
from retail_assets.errors import PermanentError
from retail_assets.resources.tabular import (
    NoTableError,
    TextTable,
    UnreadableFileError,
    find_unpaired_quote,
    open_strict_csv,
)

if TYPE_CHECKING:
    import pyarrow as pa

_END_BYTES = 1 << 20
# A row is refused from here on: Kafka's brokers take messages of up to a million bytes.
_MOST_CHARACTERS = 500_000
_INDEX = re.compile(r"(Unnamed: [0-9.]+)?")  # what pandas calls an index without a name
_HEADERS = [column.header for column in SOURCE_COLUMNS]
_KNOWN = {*_HEADERS, WITHHELD_HEADER}
# Where a number may be written with a decimal comma, and where it surely is a number.
_NUMERIC = [at for at, c in enumerate(SOURCE_COLUMNS) if c.type not in ("string", "timestamp")]
_DECIMAL = [at for at in _NUMERIC if SOURCE_COLUMNS[at].type.startswith("decimal")]
_TIMES = [at for at, c in enumerate(SOURCE_COLUMNS) if c.type == "timestamp"]
_WITH_COMMA = r"\A(-?[0-9]+),([0-9]+(?:[eE][+-]?[0-9]+)?)\z"
_WITH_POINT = _WITH_COMMA.replace(",", "[.]")
_MONTH_FIRST = r"\A(?:0?[0-9]|1[0-2])/(?:1[3-9]|[2-9][0-9])/"
_DAY_FIRST = r"\A(?:1[3-9]|2[0-9]|3[01])/(?:0?[0-9]|1[0-2])/"
# What stands in JSON as it is, as bytes of UTF-8.
_UNESCAPED = bytes(set(range(0x20, 0x100)) - set(b'"\\'))


class UnreadableSourceError(PermanentError):
    """The file is not there, or is not the CSV file that it should be."""


@dataclass(frozen=True)
class Source:
    """A file that ``examine_source`` found good."""

    file: Path
    encoding: str
    """As resources/tabular names it."""
    rows: int
    identity: dict[str, Any] = field(repr=False)
    """Size, time of the last change, and a digest of both ends; JSON."""
    has_decimal_commas: bool = False
    """Whether its numbers are written 2,55; only where another mark separates its fields."""


def examine_source(file: Path) -> Source:
    """Read a file once, before anything of it is sent, and say what it is.

    It is a CSV file with the columns of the contract, in any order, with or without the withheld
    one and an index's; fields may be separated by semicolons, tabs or bars as well: the header
    decides. A row with another number of fields makes the whole file unreadable: where the fields
    of a row are shifted, no one can tell which of them is the withheld one. So do numbers of which
    some have a decimal comma and others a point, and times that prove to have the day first: of
    those below 13 a message would say another day. A column of which some values prove one order
    and some the other has rows that are wrong.

    Raises:
        UnreadableSourceError: naming the file, the line, what was expected and what was found.
    """
    import pyarrow.compute as pc

    identity = identify(file)
    rows = 0
    comma = point = None
    month_first: dict[int, _Proof | None] = {}
    day_first: dict[int, _Proof | None] = {}
    with _open_table(file) as table:
        if row := find_unpaired_quote(file, table):
            raise UnreadableSourceError(
                f"{file}, line {row.row}: expected a row of CSV, in which quotes come in pairs,"
                f" found one that ends otherwise ({row.reason}). Mend the line."
            )
        for numbers, texts in _read_texts(file, table):
            rows += len(numbers)
            lengths = reduce(pc.add, map(pc.utf8_length, texts))
            if long := _first(numbers, texts[0], pc.greater_equal(lengths, _MOST_CHARACTERS)):
                raise _too_long(file, long.row)
            for at in _DECIMAL if table.delimiter != "," else ():
                comma = comma or _first_match(numbers, texts[at], _WITH_COMMA)
                point = point or _first_match(numbers, texts[at], _WITH_POINT)
            for at in _TIMES:
                if not month_first.get(at):
                    month_first[at] = _first_match(numbers, texts[at], _MONTH_FIRST)
                    day_first[at] = day_first.get(at) or _first_match(
                        numbers, texts[at], _DAY_FIRST
                    )
    if comma and point:
        raise UnreadableSourceError(
            f"{file}: expected numbers with one decimal mark, found a comma in line {comma.row} and"
            f" a point in line {point.row}: write all with points."
        )
    for at, proof in day_first.items():
        if proof and not month_first[at]:
            raise UnreadableSourceError(
                f"{file}, line {proof.row}: expected {_HEADERS[at]} with the month first, as"
                f" 1/31/2018 22:56, or as ISO, found {proof.text!r}, and no value whose month is"
                " first: write the times of the file as 2018-01-31 22:56."
            )
    return Source(file, table.encoding, rows, identity, comma is not None)


class _Proof(NamedTuple):
    """A value that proves something, and the number of its row."""

    row: int
    text: str


def _first(numbers: pa.Array, texts: pa.Array, mask: pa.Array) -> _Proof | None:
    import pyarrow.compute as pc

    at = pc.index(mask, True).as_py()
    return None if at < 0 else _Proof(numbers[at].as_py(), texts[at].as_py())


def _first_match(numbers: pa.Array, texts: pa.Array, pattern: str) -> _Proof | None:
    import pyarrow.compute as pc

    return _first(numbers, texts, pc.match_substring_regex(texts, pattern))


def read_messages(source: Source, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """The key and the value of each row from ``start`` on, counted from 0.

    The value is a JSON object in UTF-8 of the fields' texts, unchanged but for decimal commas,
    under their headers, in the contract's order; the withheld one is not in it. The key is the text
    of Order Id.

    Raises:
        UnreadableSourceError: for a row that was not there when the file was examined.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    names = [f'"{header}":"' for header in map(_escape, _HEADERS)]
    before = ["{" + names[0], *(f'",{name}' for name in names[1:])]
    with _open_table(source.file, source.encoding) as table:
        for numbers, texts in _read_texts(source.file, table):
            skipped = min(start, len(numbers))
            start -= skipped
            texts = [column.slice(skipped) for column in texts]
            for at in _NUMERIC if source.has_decimal_commas else ():
                # No message says which mark it has.
                texts[at] = pc.replace_substring_regex(texts[at], _WITH_COMMA, r"\1.\2")
            keys = texts[_HEADERS.index(KEY_HEADER)].cast(pa.binary())
            parts = chain.from_iterable(zip(before, map(_escaped, texts), strict=True))
            values = pc.binary_join_element_wise(*parts, '"}', "").cast(pa.binary())
            yield from zip(keys.to_pylist(), values.to_pylist(), strict=True)


def _escaped(texts: pa.Array) -> pa.Array:
    """The texts as they stand in JSON, where most need no change."""
    import pyarrow as pa

    data = texts.buffers()[2]
    if data is None or not data.to_pybytes().translate(None, _UNESCAPED):
        return texts
    return pa.array(map(_escape, texts.to_pylist()), pa.string())


def _escape(text: str) -> str:
    return encode_basestring(text)[1:-1]


@contextmanager
def _open_table(file: Path, encoding: str | None = None) -> Iterator[TextTable]:
    """The file's table, whose header is the source's."""
    try:
        with open_strict_csv(file, _is_header, encoding=encoding) as table:
            _require_header(file, table.header)
            yield table
    except NoTableError:
        _require_header(file, ())
    except UnreadableFileError as error:
        raise UnreadableSourceError(
            f"{file}: expected a CSV file, plain or packed by gzip, found otherwise. {error}"
        ) from error


def _read_texts(file: Path, table: TextTable) -> Iterator[tuple[pa.Array, list[pa.Array]]]:
    """The rows' numbers and the texts of SOURCE_COLUMNS, many rows at once.

    Raises:
        UnreadableSourceError: there is a row with another number of fields, or broken text.
    """
    import pyarrow.compute as pc

    places = [table.header.index(header) + 1 for header in _HEADERS]  # after the row's number
    for batch in table.batches:
        if table.rejected:
            deque(table.batches, maxlen=0)  # at the end its line is told
            break
        yield batch.column(0), [pc.fill_null(batch.column(at), "") for at in places]
    for row in table.rejected:
        if len(row.text) >= _MOST_CHARACTERS:
            raise _too_long(file, row.row)
        reason = row.reason.replace(" fields", " fields, as many as the header's", 1)
        raise UnreadableSourceError(
            f"{file}, line {row.row}: {reason}. Mend the line: of a row whose fields are shifted,"
            " nothing can be sent."
        )


def _too_long(file: Path, line: int | None) -> UnreadableSourceError:
    return UnreadableSourceError(
        f"{file}, line {line}: expected a row of less than {_MOST_CHARACTERS:,} characters, found"
        " a longer one: look whether it is a CSV file."
    )


def _is_header(names: Sequence[str]) -> bool:
    found = list(dropwhile(_INDEX.fullmatch, names))
    return set(_HEADERS) <= set(found) <= _KNOWN and len(set(found)) == len(found)


def _require_header(file: Path, header: Sequence[str]) -> None:
    """Raise where a column is missing, unknown or there twice, and say which.

    An index, which may come first, is none.
    """
    header = list(dropwhile(_INDEX.fullmatch, header))
    missing = [name for name in _HEADERS if name not in header]
    extra = [n for at, n in enumerate(header) if n not in _KNOWN or n in header[:at]]
    if not missing and not extra:
        return
    said = f"{file}: expected a first line with the source's {len(_HEADERS) + 1} columns"
    if len(missing) > len(_HEADERS) // 2:
        # Its words may be a customer's: they are not told.
        raise UnreadableSourceError(
            f"{said}, separated by commas, found {len(_HEADERS) - len(missing)} of them among"
            f" {len(header)}: put the header there."
        )
    found = [f"no {list_names(missing)}"] if missing else []
    if extra:
        shown = ["(withheld)" if names_withheld(name) else name for name in extra]
        found.append(f"{list_names(shown)} unknown or twice")
    raise UnreadableSourceError(f"{said}, found {'; '.join(found)}: mend the header.")


def identify(file: Path) -> dict[str, Any]:
    """What tells whether a file is the one that it was: a change within it changes its time."""
    try:
        with file.open("rb") as binary:
            found = os.fstat(binary.fileno())
            digest = hashlib.sha256(binary.read(_END_BYTES))
            binary.seek(max(0, found.st_size - _END_BYTES))
            digest.update(binary.read(_END_BYTES))
    except OSError as error:
        raise UnreadableSourceError(
            f"{file}: expected a CSV file, found that it cannot be opened: {error.strerror}."
        ) from error
    return {
        "size": found.st_size,
        "changed_ns": found.st_mtime_ns,
        "ends_sha256": digest.hexdigest(),
    }

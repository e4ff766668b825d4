"""How messages of the topic become rows, and why some do not.

Here: reading and checking what a message holds, fast and by definition, and what of a bad one may
be kept. Not here: where messages come from and where rows go (batches.py), types (transforms.py).
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_UP, Context, Decimal
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from retail_assets.defs.supply_chain.contract import (
    CODE,
    CSV_HEADER,
    DATE_TIME,
    DEAD_LETTERS,
    LOST_CODE,
    MESSAGES,
    MISSING,
    NEWEST_YEAR,
    NUMBER,
    OLDEST_YEAR,
    SOURCE_COLUMNS,
    TOPIC,
    WHOLE_NUMBER,
    WITHHELD_HEADER,
    SourceColumn,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from retail_assets.resources.broker.resource import Message

# What is read at once: more leaves the processor's caches.
_PIECE_BYTES = 8 * 1024**2
_BLOCK_BYTES = 1024**2
# So few that are not all good are read one by one.
_FEW = 64
_SHOWN = 100
_OPENING, _CLOSING, _LINE_END = ord("{"), ord("}"), b"\n"
_EXACT = Context(prec=200, rounding=ROUND_HALF_UP)
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_DECIMAL = re.compile(r"decimal\((\d+),(\d+)\)")
_CENTURY = 2000
# Of a text that is of the contract's shape.
_TIME_PARTS = re.compile(
    r"(\d+)[-/](\d+)[-/](\d+)(?:[ T](\d+):(\d+)(?::(\d+)(?:\.(\d+))?)?)? ?([AaPp]?)[Mm]?"
)
_LOST = rf"\A(?:{LOST_CODE})\z"

_HEADERS = tuple(c.header for c in SOURCE_COLUMNS)
_EXPECTED_HEADERS = frozenset(_HEADERS)


class MalformedError(ValueError):
    """A message is not what it should be; the text says what was expected and what was found."""


@dataclass(frozen=True)
class Parsed:
    """What messages hold, each in the order that they came.

    ``good`` has MESSAGES's columns and ``payloads`` the JSON object of each of its rows; ``dead``
    has DEAD_LETTERS's columns, of the others and of each value that a good one is without.
    """

    good: "pa.Table"
    payloads: Sequence[bytes]
    dead: "pa.Table"


def parse_messages(
    messages: "Sequence[Message]", *, incarnation: str, started_at: datetime, topic: str = TOPIC
) -> Parsed:
    """Read messages: rows of those that are what they should be, dead letters of the others.

    ``read_message`` is the definition of both, ``left_out_values`` of what rows are without. What
    is plainly right is read many at once; only what is not is looked at one by one.
    """
    import pyarrow as pa

    fast: list[_Piece] = []
    doubtful: list[int] = []
    for rows in _pieces(messages, doubtful):
        _read_fast(messages, rows, fast, doubtful)

    good: list[tuple[int, list[str | None]]] = []
    dead: list[tuple[int, str, bool]] = []
    for row in sorted(doubtful):
        message = messages[row]
        try:
            fields = read_message(message.key, message.value)
        except MalformedError as error:
            dead.append((row, str(error), False))
        else:
            good.append((row, list(fields.values())))
            dead += [(row, reason, True) for reason in left_out_values(fields)]
    if good:
        texts = zip(*(values for _, values in good), strict=True)
        table = pa.table([pa.array(t, pa.string()) for t in texts], names=list(_HEADERS))
        payloads = [write_payload(values) for _, values in good]
        fast.append(_Piece([row for row, _ in good], table, payloads))

    identity = _Identity(incarnation, started_at, topic)
    good_rows, columns, ordered = _in_order(fast)
    described = [_describe(messages[row].key, messages[row].value) for row, *_ in dead]
    return Parsed(
        good=pa.table(
            [
                *identity.columns(
                    [messages[row] for row in good_rows],
                    _texts([messages[row].key for row in good_rows]),
                ),
                *columns,
            ],
            schema=MESSAGES.arrow_schema,
        ),
        payloads=ordered,
        dead=pa.table(
            [
                *identity.columns(
                    [messages[row] for row, *_ in dead],
                    pa.array([key for key, _ in described], pa.string()),
                ),
                pa.array([reason for _, reason, _ in dead], pa.string()),
                pa.array([row_stays for *_, row_stays in dead], pa.bool_()),
                pa.array([text for _, text in described], pa.string()),
            ],
            schema=DEAD_LETTERS.arrow_schema,
        ),
    )


def write_payload(texts: Sequence[str | None]) -> bytes:
    """The JSON object of one message, of the texts in SOURCE_COLUMNS's order."""
    return json.dumps(
        dict(zip(_HEADERS, texts, strict=True)), ensure_ascii=False, separators=(",", ":")
    ).encode()


def payloads_of(good: "pa.Table") -> list[bytes]:
    """The JSON object of each row of MESSAGES: what its message said, where that is gone."""
    columns = [good.column(c.name).to_pylist() for c in SOURCE_COLUMNS]
    return [write_payload(texts) for texts in zip(*columns, strict=True)]


def message_order(started_at: datetime, offset: int, partition: int) -> str:
    """What orders messages as text: start of the incarnation, offset, partition."""
    return f"{started_at:%Y%m%dT%H%M%S%f}-{offset:019d}-{partition:05d}"


class _Identity(NamedTuple):
    """Who messages are, but for what each has of its own."""

    incarnation: str
    started_at: datetime
    topic: str

    def columns(self, messages: "Sequence[Message]", keys: "pa.Array") -> "list[pa.Array]":
        """MESSAGE_COLUMNS of the messages."""
        import pyarrow as pa
        import pyarrow.compute as pc

        count = len(messages)
        partitions = pa.array([m.partition for m in messages], pa.int32())
        offsets = pa.array([m.offset for m in messages], pa.int64())

        def padded(numbers: "pa.Array", width: int) -> "pa.Array":
            return pc.utf8_lpad(numbers.cast(pa.string()), width=width, padding="0")

        start = message_order(self.started_at, 0, 0).partition("-")[0]
        return [
            pa.repeat(pa.scalar(self.incarnation), count),
            pa.repeat(pa.scalar(self.topic), count),
            partitions,
            offsets,
            keys,
            pa.array([m.time for m in messages], pa.timestamp("us")),
            pc.binary_join_element_wise(start, padded(offsets, 19), padded(partitions, 5), "-"),
        ]


# The fast way: many at once, and only what is plainly right.


class _Piece(NamedTuple):
    """Fields of some messages, by the messages' rows, and their JSON."""

    rows: Sequence[int]
    fields: "pa.Table"
    payloads: Sequence[bytes]


def _pieces(messages: "Sequence[Message]", doubtful: list[int]) -> "list[list[int]]":
    """Rows to read together; those that are not one object on one line are doubtful.

    Of values that begin with ``{``, end with ``}`` and have no line end, one a line, a reader of
    many objects can find as many as there are values only where each value is one: none can end
    within an object, since no object goes on with ``{`` after a ``}``.
    """
    pieces: list[list[int]] = []
    size = _PIECE_BYTES
    for row, message in enumerate(messages):
        value = message.value
        if not value or value[0] != _OPENING or value[-1] != _CLOSING or _LINE_END in value:
            doubtful.append(row)
            continue
        if size >= _PIECE_BYTES:
            pieces.append([])
            size = 0
        pieces[-1].append(row)
        size += len(value)
    return pieces


def _read_fast(
    messages: "Sequence[Message]", rows: list[int], found: list[_Piece], doubtful: list[int]
) -> None:
    """Read rows together; halve them until what cannot be read is among few."""
    import pyarrow as pa

    values: list[bytes] = [messages[row].value or b"" for row in rows]
    try:
        fields = _read_objects(values)
        keys = _texts([messages[row].key for row in rows])
    except (pa.ArrowInvalid, UnicodeDecodeError):
        if len(rows) <= _FEW:
            doubtful.extend(rows)
            return
        half = len(rows) // 2
        _read_fast(messages, rows[:half], found, doubtful)
        _read_fast(messages, rows[half:], found, doubtful)
        return
    mask = _doubts(fields, keys)
    if mask is None:
        found.append(_Piece(rows, fields, values))
        return
    doubts = mask.to_pylist()
    doubtful.extend(row for row, doubt in zip(rows, doubts, strict=True) if doubt)
    found.append(
        _Piece(
            [row for row, doubt in zip(rows, doubts, strict=True) if not doubt],
            fields.filter(_not(mask)),
            [value for value, doubt in zip(values, doubts, strict=True) if not doubt],
        )
    )


def _read_objects(values: list[bytes]) -> "pa.Table":
    """Fields by header, of texts or null; one row a value.

    Raises:
        pyarrow.ArrowInvalid: a value is no JSON object, has a column that is not known or is
            there twice, or one that is neither text nor null; or is no UTF-8.
    """
    import pyarrow as pa
    import pyarrow.json as pj

    table = pj.read_json(
        pa.BufferReader(b"\n".join(values)),
        read_options=pj.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
        parse_options=pj.ParseOptions(
            explicit_schema=pa.schema([(header, pa.string()) for header in _HEADERS]),
            unexpected_field_behavior="error",
        ),
    ).combine_chunks()
    if table.num_rows != len(values):
        raise pa.ArrowInvalid(f"{table.num_rows} objects in {len(values)} values")
    table.validate(full=True)  # the reader takes bytes that are no UTF-8
    return table


def _texts(keys: Sequence[bytes | None]) -> "pa.Array":
    """Keys as text. Raises pyarrow.ArrowInvalid where one is no UTF-8."""
    import pyarrow as pa

    return pa.array(keys, pa.binary()).cast(pa.string())


def _doubts(fields: "pa.Table", keys: "pa.Array") -> "pa.Array | None":
    """Which rows may not be good, or None for no row.

    A field that is null may be one that is not there. A pattern here takes only what surely is
    within the type's bounds.
    """
    import pyarrow.compute as pc

    doubts: list[pa.Array] = []
    for column in SOURCE_COLUMNS:
        texts = fields.column(column.header)
        if texts.null_count:
            doubts.append(pc.is_null(texts))
        if column.type in ("string", CODE):
            doubts.extend(_doubtful_texts(texts, _LOST if column.type == CODE else None))
            continue
        matched = pc.match_substring_regex(texts, _sure_pattern(column.type))
        if not pc.all(matched, min_count=0).as_py():
            doubts.append(_not(matched))
    doubts.extend(_doubtful_texts(keys))
    if not doubts:
        return None
    mask = doubts[0]
    for doubt in doubts[1:]:
        mask = pc.or_kleene(mask, doubt)
    return _as_array(mask)


def _doubtful_texts(texts: "pa.Array", lost: str | None = None) -> "list[pa.Array]":
    """Which texts may have something that no text may; few distinct ones are looked at once.

    So are those that match ``lost``.
    """
    import pyarrow.compute as pc

    distinct = pc.unique(texts)

    def search(among: "pa.Array", part: str) -> "pa.Array":
        if part == lost:
            return pc.match_substring_regex(among, part)
        return pc.match_substring(among, part, ignore_case=True)

    return [
        pc.fill_null(search(texts, part), False)
        for part in ("\0", _SIGN, *([lost] if lost else ()))
        if pc.any(search(distinct, part), min_count=0).as_py()
    ]


def _not(mask: "pa.Array") -> "pa.Array":
    import pyarrow.compute as pc

    return pc.invert(pc.fill_null(mask, False))


def _as_array(mask: Any) -> "pa.Array":
    """One array of a column, whose one chunk it is."""
    return mask.combine_chunks() if hasattr(mask, "combine_chunks") else mask


def _in_order(pieces: list[_Piece]) -> "tuple[list[int], list[pa.ChunkedArray], list[bytes]]":
    """Rows, fields and JSON of all pieces, by row."""
    import pyarrow as pa

    rows = list(chain.from_iterable(piece.rows for piece in pieces))
    payloads = list(chain.from_iterable(piece.payloads for piece in pieces))
    if not rows:
        return [], [pa.chunked_array([], pa.string()) for _ in _HEADERS], []
    table = pa.concat_tables([piece.fields for piece in pieces])
    order = sorted(range(len(rows)), key=rows.__getitem__)
    if order != list(range(len(rows))):
        table = table.combine_chunks().take(pa.array(order))
        rows = [rows[at] for at in order]
        payloads = [payloads[at] for at in order]
    return rows, list(table.columns), payloads


@cache
def _sure_pattern(kind: str) -> str:
    """What only texts match that surely are values of the type: some that are do not."""
    if kind == "int32":
        pattern = r"-?[0-9]{1,9}(?:\.0{1,9})?"
    elif kind == "int64":
        pattern = r"-?[0-9]{1,18}(?:\.0{1,9})?"
    elif kind == "timestamp":
        clock = "(?:[01]?[0-9]|2[0-3]):[0-5][0-9]"
        pattern = (
            "(?:(?:0?[1-9]|1[0-2])/(?:0?[1-9]|1[0-9]|2[0-8])|(?:0?[13-9]|1[0-2])/(?:29|30)"
            f"|(?:0?[13578]|1[02])/31)/(?:(?:19|20|21)[0-9]{{2}}|[0-9]{{2}}) {clock}"
            "|(?:19|20|21)[0-9]{2}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])"
            "|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
            rf"[ T]{clock}(?::[0-5][0-9](?:\.[0-9]{{1,9}})?)?"
        )
    else:  # a first digit of at most 8 does not become another digit by rounding
        fewer = _whole_digits(kind) - 1
        pattern = rf"-?[0-8]?[0-9]{{1,{fewer}}}(?:\.[0-9]{{1,20}})?(?:[eE]-[0-9]{{1,2}})?"
    return rf"\A(?:{pattern})\z"


# The definition: one by one.


def read_message(key: bytes | None, value: bytes | None) -> dict[str, str | None]:
    """Texts of a message by header, in SOURCE_COLUMNS's order; None for null.

    A number counts as its own text.

    What is no key, date, quantity or amount may be any text: see ``left_out_values``.

    Raises:
        MalformedError: it is not what it should be; nothing that is withheld is in the text.
    """
    try:
        return _read_message(key, value)
    except MalformedError as error:
        if _names_withheld(str(error)):
            raise MalformedError("expected nothing that is withheld, found it") from None
        raise


def _read_message(key: bytes | None, value: bytes | None) -> dict[str, str | None]:
    if key is not None:
        _check_text("key", _decode("key", key))
    if value is None:
        raise MalformedError("expected a JSON object, found a tombstone: a message of no value")
    found = _read_object(_decode("message", value))
    fields = dict(found)
    if len(fields) < len(found):
        names = [name for name, _ in found]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise MalformedError(f"expected each column once, found twice: {_list(twice)}")
    if unknown := sorted(fields.keys() - _EXPECTED_HEADERS):
        if any(_names_withheld(name) for name in unknown):
            raise MalformedError("expected no column that is withheld, found one")
        raise MalformedError(f"expected no other columns, found {_list(unknown)}")
    if missing := [header for header in _HEADERS if header not in fields]:
        raise MalformedError(f"expected all columns, found none named {_list(missing)}")
    for column in SOURCE_COLUMNS:
        _check_field(column, fields[column.header])
    return {header: fields[header] for header in _HEADERS}


def left_out_values(fields: Mapping[str, str | None]) -> list[str]:
    """Why values of a message that ``read_message`` read are left out of the star, a reason each.

    Of side attributes those that cannot be read; none is no value.
    """
    reasons = []
    for column in SOURCE_COLUMNS:
        text = fields[column.header]
        if column.is_side and text is not None and not re.fullmatch(MISSING, text):
            expected, holds = _type_check(column.type)
            if not holds(text):
                reasons.append(f"{column.header}: expected {expected}, found {_shown(text)}")
    return reasons


def _decode(what: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise MalformedError(
            f"{what}: expected UTF-8, found byte {value[error.start]:#04x} at {error.start}"
        ) from None


class _Pairs(list[tuple[str, Any]]):
    """Members of a JSON object, in order, those of the same name included."""


class _Literal(str):
    """A JSON number as it is written."""


def _no_constant(text: str) -> None:
    raise MalformedError(f"expected a JSON object, found {text}, which JSON does not know")


def _load(text: str) -> Any:
    return json.loads(
        text,
        object_pairs_hook=_Pairs,
        parse_float=_Literal,
        parse_int=_Literal,
        parse_constant=_no_constant,
    )


def _read_object(text: str) -> _Pairs:
    try:
        found = _load(text)
    except json.JSONDecodeError as error:
        raise MalformedError(f"expected a JSON object, found no JSON: {error}") from None
    except RecursionError:
        raise MalformedError("expected a JSON object, found one too deeply nested") from None
    if not isinstance(found, _Pairs):
        raise MalformedError(f"expected a JSON object, found {_kind(found)}")
    return found


def _kind(found: Any) -> str:
    if isinstance(found, _Pairs):
        return "an object"
    if isinstance(found, list):
        return "an array"
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, _Literal):
        return f"the number {_shown(found)}"
    return "null" if found is None else "a text"  # which may be anybody's name


def _check_field(column: SourceColumn, found: Any) -> None:
    expected, holds = _type_check(column.type)
    if found is None or found == "":
        if column.required:
            raise MalformedError(
                f"{column.header}: expected {expected}, found {'null' if found is None else 'none'}"
            )
        return
    if not isinstance(found, str):
        raise MalformedError(f"{column.header}: expected {expected}, found {_kind(found)}")
    _check_text(column.header, found)
    if column.required and not holds(found):
        raise MalformedError(f"{column.header}: expected {expected}, found {_shown(found)}")


def _check_text(name: str, text: str) -> None:
    if "\0" in text:
        raise MalformedError(f"{name}: expected a text without NUL, found {_shown(text)}")
    if _HALF_PAIR.search(text):
        raise MalformedError(f"{name}: expected Unicode, found half a pair in {_shown(text)}")
    if _SIGN in text.lower() and _names_withheld(text):
        raise MalformedError(f"{name}: expected no column that is withheld, found one named")


@cache
def _type_check(kind: str) -> tuple[str, Callable[[str], bool]]:
    """What is expected of a text that is to become a value of the type, and whether it can."""
    if kind == "string":
        return "a text", lambda text: True
    if kind in ("int32", "int64"):
        bits = int(kind[3:])
        return f"a whole number of {bits} bits", lambda text: _is_whole(text, bits)
    if kind == CODE:
        return "a code of digits, or a text", lambda text: not re.fullmatch(LOST_CODE, text)
    if kind == "timestamp":
        return (
            "a time without a zone (times are local business time) of"
            f" {OLDEST_YEAR} to {NEWEST_YEAR}, as month/day/year hour:minute or ISO",
            lambda text: read_time(text) is not None,
        )
    digits = _whole_digits(kind)
    unit = Decimal(1).scaleb(-_scale(kind))
    return (
        f"a number of at most {digits} digits before the point",
        lambda text: _is_number(text, digits, unit),
    )


def _is_whole(text: str, bits: int) -> bool:
    if not re.fullmatch(WHOLE_NUMBER, text):
        return False
    bound = 1 << (bits - 1)
    return -bound <= int(text.partition(".")[0]) < bound


def _is_number(text: str, digits: int, unit: Decimal) -> bool:
    if not re.fullmatch(NUMBER, text):
        return False
    rounded = Decimal(text).quantize(unit, context=_EXACT)
    return abs(rounded) < Decimal(1).scaleb(digits)


def read_time(text: str) -> datetime | None:
    """The time that a text is, to the microsecond; None where it is none."""
    parts = _TIME_PARTS.fullmatch(text) if re.fullmatch(DATE_TIME, text) else None
    if parts is None:
        return None
    *date, hours, minutes, seconds, fraction, half = parts.groups("0")
    year, month, day = date if "-" in text else (date[2], *date[:2])
    hour = int(hours)
    if half:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half in "Pp" else 0)
    try:
        found = datetime(
            int(year) + (_CENTURY if len(year) == 2 else 0),
            int(month),
            int(day),
            hour,
            int(minutes),
            int(seconds),
            int(fraction[:6].ljust(6, "0")),
        )
    except ValueError:  # such as a 30th of February
        return None
    return found if OLDEST_YEAR <= found.year <= NEWEST_YEAR else None


def _precision_and_scale(kind: str) -> tuple[int, int]:
    match = _DECIMAL.fullmatch(kind)
    if match is None:
        raise ValueError(f"type {kind!r}: a message cannot have it")
    return int(match[1]), int(match[2])


def _whole_digits(kind: str) -> int:
    precision, scale = _precision_and_scale(kind)
    return precision - scale


def _scale(kind: str) -> int:
    return _precision_and_scale(kind)[1]


def _shown(text: str) -> str:
    """A text for a reason: short, and without what would break a line."""
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return repr(shown)


def _list(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(_shown(name) for name in names[:most]) + rest


# What is withheld: the column's name, however it is spelled, and what stands under it.

_SIGN = WITHHELD_HEADER.split()[-1].lower()
_ESCAPE = re.compile(
    r"\\+u\{?([0-9a-f]{4})\}?|\\+x([0-9a-f]{2})|%([0-9a-f]{2})|&#x0*([0-9a-f]{2,4});"
    r"|&#0*([0-9]{2,5});",
    re.IGNORECASE,
)
_NOT_LETTERS = re.compile(r"[\W_]+")
_MOST_LAYERS = 5
_DELIMITERS = ",;\t|"


def _plain(text: str) -> str:
    """Letters and digits of a text, its escapes undone, in lower case."""
    for _ in range(_MOST_LAYERS):
        undone = _ESCAPE.sub(_unescape, text)
        if undone == text:
            break
        text = undone
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _NOT_LETTERS.sub("", text.casefold())


def _unescape(match: re.Match[str]) -> str:
    *hexadecimal, decimal = match.groups()
    digits = next((group for group in hexadecimal if group), None)
    code = int(digits, 16) if digits else int(decimal)
    return chr(code) if code <= 0xFFFF else ""


_WITHHELD = _plain(WITHHELD_HEADER)


def _names_withheld(text: str) -> bool:
    return _WITHHELD in _plain(text)


def _describe(key: bytes | None, value: bytes | None) -> tuple[str | None, str | None]:
    r"""Key and text of a dead letter: as they came, but for what is withheld.

    Bytes that are no UTF-8, and NUL, which no database's text holds, are written as ``\xNN``.
    """
    return _keepable(key), _keepable(value)


def _keepable(raw: bytes | None) -> str | None:
    if raw is None:
        return None
    text = raw.decode(errors="backslashreplace").replace("\0", r"\x00")
    named = _names_withheld(text)
    if not named and not _may_be_row(text):
        return text
    try:
        found = _load(raw.decode())
        if not _has_row(found):
            kept = _render(found)
            if not _names_withheld(kept):
                return kept if named else text
    except (ValueError, RecursionError):  # no JSON, no text
        if not named and not _is_row(text):
            return text
    return (
        f"withheld: {len(raw)} bytes, SHA-256 {hashlib.sha256(raw).hexdigest()}, for they may hold"
        " a column that is withheld"
    )


def _may_be_row(text: str) -> bool:
    """Whether a text has as many delimiters as a row of the source: its fields have no names."""
    return any(text.count(mark) >= len(CSV_HEADER) - 1 for mark in _DELIMITERS)


def _is_row(text: str) -> bool:
    """Whether a text that is no JSON may be a row of the source; a torn object is none."""
    return not text.lstrip().startswith(("{", "["))


def _has_row(found: Any) -> bool:
    """Whether an array of JSON may be a row of the source."""
    if isinstance(found, _Pairs):
        return any(_has_row(value) for _, value in found)
    if isinstance(found, list):
        return len(found) == len(CSV_HEADER) or any(_has_row(value) for value in found)
    return isinstance(found, str) and _may_be_row(found) and _is_row(found)


def _render(found: Any) -> str:
    """JSON of what ``_load`` gave, without members whose name is withheld."""
    if isinstance(found, _Pairs):
        members = (
            f"{_quote(name)}:{_render(value)}" for name, value in found if not _names_withheld(name)
        )
        return "{" + ",".join(members) + "}"
    if isinstance(found, list):
        return "[" + ",".join(map(_render, found)) + "]"
    return str(found) if isinstance(found, _Literal) else _quote(found)


def _quote(found: Any) -> str:
    """JSON of a text or a constant; half a pair, which is no Unicode, stays escaped."""
    is_text = not isinstance(found, str) or not _HALF_PAIR.search(found)
    return json.dumps(found, ensure_ascii=not is_text)


# What is personal.

_PERSONAL = {c.header for c in SOURCE_COLUMNS if c.name in MESSAGES.personal}
_PUBLIC = set(_HEADERS) - _PERSONAL


def mask_personal(reason: str, text: str) -> tuple[str, str]:
    """Reason and text of a dead letter without what may be personal.

    That is also what stands under an unknown name, holds other values, or is in no object.
    """
    from retail_assets.losses import MASK, public_reason

    shown = public_reason(reason, _PERSONAL)
    if shown.startswith("expected"):  # of the message as a whole
        shown = shown.partition(", found the ")[0]
    try:
        found = _load(text)
    except (ValueError, RecursionError):
        return shown, MASK
    if not isinstance(found, _Pairs):
        return shown, MASK
    members = (
        f"{_quote(name)}:{_render(value if _is_public(name, value) else MASK)}"
        for name, value in found
    )
    return shown, "{" + ",".join(members) + "}"


def _is_public(name: str, value: Any) -> bool:
    return value is None or (name in _PUBLIC and not isinstance(value, list))

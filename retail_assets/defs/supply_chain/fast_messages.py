"""Messages of the topic as rows, many at once; one by one only what is not plainly right.

Here: reading by Arrow, and the tables of what was read. Not here: what a message should be, which
messages.py defines; where messages come from and where rows go (batches.py).
"""

from collections.abc import Sequence
from datetime import datetime
from functools import cache, reduce
from typing import TYPE_CHECKING, NamedTuple

from retail_assets.defs.supply_chain.contract import (
    CODE,
    DEAD_LETTERS,
    LOST_CODE,
    MESSAGES,
    SOURCE_COLUMNS,
    TOPIC,
)
from retail_assets.defs.supply_chain.messages import (
    SIGN,
    MalformedError,
    decimal_digits,
    keepable,
    left_out_values,
    payloads_of,
    read_message,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from retail_assets.resources.broker.resource import Message

# What is read at once: more leaves the processor's caches.
_PIECE_BYTES = 8 * 1024**2
_BLOCK_BYTES = 1024**2
# So few that are not all good are read one by one.
_FEW = 64
_OPENING, _CLOSING, _LINE_END = ord("{"), ord("}"), b"\n"
_ROW = "row"  # the place among the messages
_NAMES = [c.name for c in SOURCE_COLUMNS]


class Parsed(NamedTuple):
    """What messages hold, each in the order that they came.

    ``good`` has MESSAGES's columns and ``payloads`` the JSON object of each of its rows; ``dead``
    has DEAD_LETTERS's columns, of the others and of each value that a good one is without.
    """

    good: "pa.Table"
    payloads: Sequence[bytes]
    dead: "pa.Table"


def parse_messages(
    messages: "Sequence[Message]", *, incarnation: str, started_at: datetime
) -> Parsed:
    """Read messages: rows of those that are what they should be, dead letters of the others.

    ``read_message`` is the definition of both, ``left_out_values`` of what rows are without. What
    is plainly right is read many at once; only what is not is looked at one by one.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    read: list[pa.Table] = []
    doubtful: list[int] = []
    for piece in _pieces(messages, doubtful):
        _read_fast(messages, piece, read, doubtful)

    good: dict[int, list[str | None]] = {}
    dead: list[tuple[int, str, bool]] = []
    for row in sorted(doubtful):
        try:
            fields = read_message(messages[row].key, messages[row].value)
        except MalformedError as error:
            dead.append((row, str(error), False))
        else:
            good[row] = list(fields.values())
            dead += [(row, reason, True) for reason in left_out_values(fields)]
    written: dict[int, bytes] = {}
    schema = pa.schema([*((name, pa.string()) for name in _NAMES), (_ROW, pa.int64())])
    if good:
        texts = pa.table([*zip(*good.values(), strict=True), list(good)], schema=schema)
        written = dict(zip(good, payloads_of(texts), strict=True))
        read.append(texts)
    table = pa.concat_tables([schema.empty_table(), *read])
    if good:
        table = table.sort_by(_ROW)

    def identify(rows: Sequence[int], keys: "pa.Array") -> "list[pa.Array]":
        """MESSAGE_COLUMNS of the messages."""
        partitions = pa.array([messages[row].partition for row in rows], pa.int32())
        offsets = pa.array([messages[row].offset for row in rows], pa.int64())
        padded = [
            pc.utf8_lpad(numbers.cast(pa.string()), width=width, padding="0")
            for numbers, width in ((offsets, 19), (partitions, 5))
        ]
        return [
            pa.repeat(pa.scalar(incarnation), len(rows)),
            pa.repeat(pa.scalar(TOPIC), len(rows)),
            partitions,
            offsets,
            keys,
            pa.array([messages[row].time for row in rows], pa.timestamp("us")),
            # Orders messages as text.
            pc.binary_join_element_wise(f"{started_at:%Y%m%dT%H%M%S%f}", *padded, "-"),
        ]

    rows = table.column(_ROW).to_pylist()
    bad = [messages[row] for row, *_ in dead]
    return Parsed(
        good=pa.table(
            [*identify(rows, _keys(messages, rows)), *table.drop_columns(_ROW).columns],
            schema=MESSAGES.arrow_schema,
        ),
        payloads=[written.get(row) or messages[row].value or b"" for row in rows],
        dead=pa.table(
            [
                *identify(
                    [row for row, *_ in dead], pa.array([keepable(m.key) for m in bad], pa.string())
                ),
                [reason for _, reason, _ in dead],
                [row_stays for *_, row_stays in dead],
                [keepable(message.value) for message in bad],
            ],
            schema=DEAD_LETTERS.arrow_schema,
        ),
    )


def _keys(messages: "Sequence[Message]", rows: Sequence[int]) -> "pa.Array":
    """Keys as text. Raises pyarrow.ArrowInvalid where one is no UTF-8."""
    import pyarrow as pa

    return pa.array([messages[row].key for row in rows], pa.binary()).cast(pa.string())


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
    messages: "Sequence[Message]", rows: list[int], read: "list[pa.Table]", doubtful: list[int]
) -> None:
    """Read rows together; halve them until what cannot be read is among few."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        fields = _read_objects([messages[row].value or b"" for row in rows])
        keys = _keys(messages, rows)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        if len(rows) <= _FEW:
            doubtful.extend(rows)
            return
        half = len(rows) // 2
        _read_fast(messages, rows[:half], read, doubtful)
        _read_fast(messages, rows[half:], read, doubtful)
        return
    table = fields.append_column(_ROW, pa.array(rows, pa.int64()))
    doubts = _doubts(fields, keys)
    if pc.any(doubts).as_py():
        doubtful += table.column(_ROW).filter(doubts).to_pylist()
        table = table.filter(pc.invert(doubts))
    read.append(table)


def _read_objects(values: list[bytes]) -> "pa.Table":
    """Fields by our names, of texts or null; one row a value.

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
            explicit_schema=pa.schema([(c.header, pa.string()) for c in SOURCE_COLUMNS]),
            unexpected_field_behavior="error",
        ),
    ).combine_chunks()
    if table.num_rows != len(values):
        raise pa.ArrowInvalid(f"{table.num_rows} objects in {len(values)} values")
    table.validate(full=True)  # the reader takes bytes that are no UTF-8
    return table.rename_columns(_NAMES)


def _doubts(fields: "pa.Table", keys: "pa.Array") -> "pa.ChunkedArray":
    """Which rows may not be good; a field that is null may be one that is not there."""
    import pyarrow.compute as pc

    masks = [_has(keys.fill_null(""), _UNFIT)]
    for column in SOURCE_COLUMNS:
        texts = fields.column(column.name)
        if column.type == "string":
            masks.append(_has(texts, _UNFIT))
        elif column.type == CODE:
            masks.append(_has(texts, rf"{_UNFIT}|\A(?:{LOST_CODE})\z"))
        else:
            matched = pc.match_substring_regex(texts, _sure_pattern(column.type))
            masks.append(pc.invert(matched).fill_null(True))
    return reduce(pc.or_, masks)


# What no text may have, and what may be a sign of it.
_UNFIT = rf"\x00|(?i:{SIGN})"


def _has(texts: "pa.ChunkedArray", pattern: str) -> "pa.ChunkedArray":
    """Which texts have something, or are null; few distinct ones are looked at once."""
    import pyarrow.compute as pc

    if not pc.any(pc.match_substring_regex(pc.unique(texts), pattern), min_count=0).as_py():
        return pc.is_null(texts)
    return pc.match_substring_regex(texts, pattern).fill_null(True)


@cache
def _sure_pattern(kind: str) -> str:
    """What only texts match that surely are values of the type, within its bounds: not all."""
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
        whole, _ = decimal_digits(kind)
        pattern = rf"-?[0-8]?[0-9]{{1,{whole - 1}}}(?:\.[0-9]{{1,20}})?(?:[eE]-[0-9]{{1,2}})?"
    return rf"\A(?:{pattern})\z"

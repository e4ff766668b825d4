"""Messages in the operational database: its tables, and how far it is behind the lake.

Here: the database's half of a batch, catching up from the lake's files, filling it anew. Not here:
the lake's half (lake_sink.py), connections (resources/operational_db).

The database keeps its own positions, written in the transaction that inserts the rows before them.
So it knows what it lacks, whatever became of the run, of the broker or of the topic since.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from retail_assets.defs.supply_chain.contract import DEAD_LETTERS, MESSAGES, STREAMING, TOPIC
from retail_assets.defs.supply_chain.lake_sink import LandedPart, Part, landed_parts
from retail_assets.defs.supply_chain.positions import LOCK
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.operational_db import (
    OperationalDbResource,
    ensure_table,
    insert_new,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from retail_assets.resources.operational_db import Connection

KEY = ("incarnation", "topic", "partition", "offset")
_IDENTITY = {
    "incarnation": "text not null",
    "topic": "text not null",
    "partition": "integer not null",
    "offset": "bigint not null",
    "key": "text",
    "time": "timestamp not null",
    "ingest_date": "date not null",
}
ROWS_TABLE = MESSAGES.table
ROWS_COLUMNS = _IDENTITY | {"payload": "jsonb not null"}
# A payload of some 2 kB is kept in its row, not compressed: a third less time to insert.
_IN_PLACE = "with (toast_tuple_target = 8160)"
LETTERS_TABLE = DEAD_LETTERS.table
LETTERS_COLUMNS = _IDENTITY | {"reason": "text not null", "text": "text"}
POSITIONS_TABLE = f"{STREAMING}.positions"
_POSITIONS_COLUMNS = {
    **{name: _IDENTITY[name] for name in KEY[:-1]},
    "next_offset": "bigint not null",
}


class OperationalSink:
    """The database's tables of messages, over a connection whose transactions are the caller's."""

    def __init__(self, connection: "Connection") -> None:
        self.connection = connection
        ensure_table(connection, ROWS_TABLE, ROWS_COLUMNS, KEY, _IN_PLACE)
        ensure_table(connection, LETTERS_TABLE, LETTERS_COLUMNS, KEY)
        ensure_table(connection, POSITIONS_TABLE, _POSITIONS_COLUMNS, KEY[:-1])
        found = connection.execute(
            f"select incarnation, partition, next_offset from {POSITIONS_TABLE}"
            " where topic = %s".encode(),
            [TOPIC],
        )
        self._positions: dict[tuple[str, int], int] = {(i, p): at for i, p, at in found.fetchall()}
        connection.commit()

    def lacks(self, landed: LandedPart) -> bool:
        """Whether the database has not all of what the lake has of a range."""
        incarnation, of, _ = landed.place
        return of.end > self._positions.get((incarnation, of.partition), 0)

    def insert(self, parts: Iterable[Part], ends: Mapping[tuple[str, int], int]) -> int:
        """Insert what the database does not have; rows inserted.

        ``ends`` are the next offsets by incarnation and partition after that.
        """
        import pyarrow as pa

        parts = [part.beyond(self._position(part)) for part in parts]
        inserted = 0
        for table, columns, rows in (
            (ROWS_TABLE, ROWS_COLUMNS, [_rows(part) for part in parts]),
            (LETTERS_TABLE, LETTERS_COLUMNS, [_letters(part) for part in parts]),
        ):
            filled = [each for each in rows if each.num_rows]
            if filled:
                together = pa.concat_tables(filled)
                inserted += insert_new(self.connection, table, columns, together, KEY)
        moved = {of: end for of, end in ends.items() if end > self._positions.get(of, 0)}
        for (incarnation, partition), end in moved.items():
            self.connection.execute(
                f"insert into {POSITIONS_TABLE} as known"
                " (incarnation, topic, partition, next_offset) values (%s, %s, %s, %s)"
                " on conflict (incarnation, topic, partition) do update"
                " set next_offset = greatest(known.next_offset, excluded.next_offset)".encode(),
                [incarnation, TOPIC, partition, end],
            )
        self._positions |= moved
        return inserted

    def insert_landed(
        self, lake: LakeResource, landed: Iterable[LandedPart]
    ) -> Iterator[tuple[Part, int]]:
        """Insert what lies in the lake, a range at a time: what it holds, and rows inserted."""
        for each in landed:
            incarnation, (partition, _, end), _ = each.place
            part = each.read(lake)
            yield part, self.insert([part], {(incarnation, partition): end})

    def clear(self) -> None:
        """Delete everything: what was there is read by others until the transaction's end."""
        for table in (ROWS_TABLE, LETTERS_TABLE, POSITIONS_TABLE):
            self.connection.execute(f"delete from {table}".encode())
        self._positions.clear()

    def _position(self, part: Part) -> int:
        return self._positions.get((part.place.incarnation, part.place.range.partition), 0)


def rebuild_messages(lake: LakeResource, database: OperationalDbResource) -> int:
    """Fill the database anew with what the lake has, in one transaction; its rows of messages.

    Raises:
        LakeBusyError: messages are landing, for longer than is waited.
    """
    with lake.lock(LOCK), database.connect() as connection:
        sink = OperationalSink(connection)
        sink.clear()
        landed = sink.insert_landed(lake, landed_parts(lake))
        return sum(part.good.num_rows for part, _ in landed)


def _rows(part: Part) -> "pa.Table":
    """Rows of ROWS_TABLE; ``payload`` as text."""
    import pyarrow as pa

    texts = pa.array(part.payloads, pa.binary()).cast(pa.string())
    return _identified(part.good, part).append_column("payload", texts)


def _letters(part: Part) -> "pa.Table":
    """Rows of LETTERS_TABLE: a message is in it or in ROWS_TABLE, never in both."""
    letters = _identified(part.letters, part)
    for name in ("reason", "text"):
        letters = letters.append_column(name, part.letters.column(name))
    return letters


def _identified(table: "pa.Table", part: Part) -> "pa.Table":
    """Columns of _IDENTITY."""
    import pyarrow as pa

    names = [name for name in _IDENTITY if name in table.column_names]
    days = pa.repeat(pa.scalar(part.place.ingest_date), table.num_rows)
    return table.select(names).append_column("ingest_date", days)

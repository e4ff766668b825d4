"""Where messages land: files of the lake's tables, and rows of the operational database.

Here: each sink's half of a batch, what of it a killed run left, the database from the lake's files.
Not here: positions in the lake (positions.py), batches (batches.py).

Dead letters are committed before the rows of their batch, for the rows' commit has the positions,
which say what has landed. What a run that was killed between the two left begins at or beyond its
position: it is taken out again before anything else lands.

The database keeps its own positions, written in the transaction that inserts the rows before them.
So it knows what it lacks, whatever became of the run, of the broker or of the topic since.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.feeds.stream import StreamFeed
from retail_assets.feeds.stream.positions import LakePositions, Place, position_name
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.tables import NewFile, TransactionLostError
from retail_assets.resources.lake.vacuum import delete_replaced, vacuum_now_and_then
from retail_assets.resources.operational_db import OperationalDbResource, ensure_table, insert_new

if TYPE_CHECKING:
    import pyarrow as pa

    from retail_assets.resources.operational_db import Connection

KEY = ("incarnation", "topic", "partition", "offset")
_PARTITION = {
    "incarnation": "text not null",
    "topic": "text not null",
    "partition": "integer not null",
}
_IDENTITY = {
    **_PARTITION,
    "offset": "bigint not null",
    "key": "text",
    "time": "timestamp not null",
    "ingest_date": "date not null",
}
ROWS_COLUMNS = _IDENTITY | {"payload": "jsonb not null"}
LETTERS_COLUMNS = _IDENTITY | {"reason": "text not null", "text": "text"}
# A payload of some 2 kB is kept in its row, not compressed: a third less time to insert.
_IN_PLACE = "with (toast_tuple_target = 8160)"


@dataclass(frozen=True)
class Part:
    """What a range holds: rows, the JSON of each, and dead letters.

    ``dead`` has, beside the dead letters, values that good messages are without. ``files`` are,
    by table, those that were written aside.
    """

    place: Place
    good: "pa.Table"
    payloads: Sequence[bytes]
    dead: "pa.Table"
    files: dict[str, tuple[NewFile, Path]] = field(default_factory=dict)

    @cached_property
    def letters(self) -> "pa.Table":
        """The dead letters alone."""
        import pyarrow.compute as pc

        return self.dead.filter(pc.invert(self.dead.column("row_stays")))


class LakeSink:
    """The lake's tables of messages and of dead letters; ``folder`` is where files are aside."""

    def __init__(self, feed: StreamFeed, lake: LakeResource, folder: Path) -> None:
        self._feed, self._lake, self._folder = feed, lake, folder
        self._token = uuid.uuid4().hex[:16]
        self._tables = [lake.table(x) for x in (feed.messages, feed.dead_letters)]

    def write(self, part: Part) -> None:
        """Write the files of a part aside."""
        import pyarrow.parquet as pq

        name = part.place.file_name(self._feed.topic, self._token)
        for table, rows in zip(self._tables, (part.good, part.dead), strict=True):
            if rows.num_rows:
                path = self._folder / f"{table.dataset.name}-{Path(name).name}"
                pq.write_table(rows, path, compression="zstd", store_schema=False)
                size = path.stat().st_size
                file = NewFile(name, part.place.ingest_date, rows.num_rows, size)
                part.files[table.dataset.location] = file, path

    def commit(
        self,
        positions: LakePositions,
        parts: Sequence[Part],
        ends: Mapping[int, int],
        told: Mapping[str, object],
    ) -> list[str]:
        """Commit parts that were written aside, and with them ``ends`` as positions; files' names.

        Raises:
            TransactionLostError: another drain landed meanwhile; nothing is left of this.
        """
        moves = {
            f"{location}/{file.name}": path
            for part in parts
            for location, (file, path) in part.files.items()
        }
        self._lake.put_files(moves)
        rows, letters = (
            [part.files[at][0] for part in parts if (at := table.dataset.location) in part.files]
            for table in self._tables
        )
        if letters:
            self._tables[1].commit(letters, told=told)
        try:
            positions.commit(ends, rows, told)
        except TransactionLostError:
            self._remove_letters(moves, told)
            raise
        return list(moves)

    def landed(self) -> dict[Place, tuple[str | None, str | None]]:
        """Files of rows and of dead letters, by incarnation, partition and offset.

        What a killed run left of dead letters is taken out first: only under the lock.
        """
        topic = self._feed.topic
        rows, letters = (
            {Place.of_file(topic, file.name): file.name for file in table.snapshot().files}
            for table in self._tables
        )
        # Before rows that landed they landed too; of the others, which are few, the position says
        # it, and each look at one costs a millisecond.
        ends = {x[:2]: x.end for x in sorted(filter(None, rows))}
        names = {
            x: position_name(topic, x.incarnation, x.partition)
            for x in letters
            if x and x.start >= ends.get(x[:2], 0)
        }
        positions = self._tables[0].transactions(set(names.values()))
        left = [letters.pop(x) for x, at in names.items() if x.start >= positions.get(at, 0)]
        self._remove_letters(left, {"left_by": "a batch that was killed before its rows"})
        places = sorted(x for x in {*rows, *letters} if x)
        return {place: (rows.get(place), letters.get(place)) for place in places}

    def read(self, place: Place, files: Iterable[str | None]) -> Part:
        """What has landed of a range."""
        import pyarrow.parquet as pq

        good, dead = (
            pq.read_table(self._lake.local_file(file), partitioning=None)
            if file
            else table.dataset.arrow_schema.empty_table()
            for table, file in zip(self._tables, files, strict=True)
        )
        return Part(place, good, self._feed.payloads_of(good), dead)

    def vacuum(self) -> None:
        """Take files that are of no more use, once a day."""
        for table in self._tables:
            vacuum_now_and_then(self._lake, table)

    def _remove_letters(self, names: Iterable[str], told: Mapping[str, object]) -> None:
        """Take files out of the table of dead letters, whose rows never came."""
        if gone := set(names):
            _, files = self._tables[1].commit([], remove=lambda x: x.name in gone, told=told)
            delete_replaced(self._lake, files)


class DatabaseSink:
    """The database's tables of messages, over a connection whose transactions are the caller's."""

    def __init__(self, feed: StreamFeed, connection: "Connection") -> None:
        self.connection = connection
        self._feed, self._positions_table = feed, positions_table(feed)
        ensure_table(connection, feed.messages.table, ROWS_COLUMNS, KEY, _IN_PLACE)
        ensure_table(connection, feed.dead_letters.table, LETTERS_COLUMNS, KEY)
        columns = _PARTITION | {"next_offset": "bigint not null"}
        ensure_table(connection, self._positions_table, columns, KEY[:-1])
        found = connection.execute(
            f"select incarnation, partition, next_offset from {self._positions_table}"
            " where topic = %s".encode(),
            [feed.topic],
        )
        self._positions: dict[tuple[str, int], int] = {(i, p): at for i, p, at in found.fetchall()}
        connection.commit()

    def lacks(self, place: Place) -> bool:
        """Whether the database has not all of a range that landed in the lake."""
        return place.end > self._positions.get((place.incarnation, place.partition), 0)

    def insert(self, parts: Iterable[Part], incarnation: str, ends: Mapping[int, int]) -> int:
        """Insert what the database does not have; rows inserted.

        ``ends`` are the incarnation's next offsets after that, by partition.
        """
        import pyarrow as pa

        rows, letters = [], []
        for part in parts:
            # A message is in one of the tables, never in both.
            payloads = pa.array(part.payloads, pa.binary()).cast(pa.string())
            good = part.good.append_column("payload", payloads)
            rows.append(_dated(good, ROWS_COLUMNS, part.place))
            letters.append(_dated(part.letters, LETTERS_COLUMNS, part.place))
        inserted = 0
        for table, columns, found in (
            (self._feed.messages.table, ROWS_COLUMNS, rows),
            (self._feed.dead_letters.table, LETTERS_COLUMNS, letters),
        ):
            if filled := [each for each in found if each.num_rows]:
                together = pa.concat_tables(filled)
                inserted += insert_new(self.connection, table, columns, together, KEY)
        for partition, end in ends.items():
            self.connection.execute(
                f"insert into {self._positions_table} as known"
                " (incarnation, topic, partition, next_offset) values (%s, %s, %s, %s)"
                " on conflict (incarnation, topic, partition) do update"
                " set next_offset = greatest(known.next_offset, excluded.next_offset)".encode(),
                [incarnation, self._feed.topic, partition, end],
            )
        return inserted


def positions_table(feed: StreamFeed) -> str:
    """The database's table of how far it is."""
    return f"{feed.messages.schema}.positions"


def lock_name(feed: StreamFeed) -> str:
    """The lake's lock that is held by whoever lands messages."""
    return f"{feed.name}-{feed.topic}"


def rebuild_messages(feed: StreamFeed, lake: LakeResource, database: OperationalDbResource) -> int:
    """Fill the database anew with what the lake has, in one transaction; its rows of messages.

    Raises:
        LakeBusyError: messages are landing, for longer than is waited.
    """
    rows = 0
    with lake.lock(lock_name(feed)), lake.scratch() as folder, database.connect() as connection:
        sink, landed = DatabaseSink(feed, connection), LakeSink(feed, lake, folder)
        # What was there is read by others until the transaction's end.
        for table in feed.messages.table, feed.dead_letters.table, positions_table(feed):
            connection.execute(f"delete from {table}".encode())
        for place, files in landed.landed().items():
            part = landed.read(place, files)
            sink.insert([part], place.incarnation, {place.partition: place.end})
            rows += part.good.num_rows
    return rows


def _dated(table: "pa.Table", columns: Mapping[str, str], place: Place) -> "pa.Table":
    """Rows of a table of the database that has these columns."""
    import pyarrow as pa

    days = pa.repeat(pa.scalar(place.ingest_date), table.num_rows)
    return table.append_column("ingest_date", days).select(list(columns))

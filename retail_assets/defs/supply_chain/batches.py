"""How messages land, exactly once: from the topic into the lake and the operational database.

Here: micro-batches, the state that says what has landed, and the way back after a run was killed.
Not here: what a message says (messages.py), clients (resources/), when a batch runs (automation).

The state object says, for each incarnation of the topic, the next offset of each partition, and
which batch is open. A batch goes through these steps, each of which may be done twice:

1. read, parse, write files aside: nothing is changed;
2. state: the batch is open, with its exact ranges;
3. lake: a file of dead letters, where there are any, then one of rows, for each partition that has
   messages. A range is landed where its file of rows is; that has no row if all are dead letters;
4. database: one transaction; keys that are there stay;
5. broker: the new offsets are committed for the group, which tells the sensor and the producer;
6. state: the new offsets, and no batch is open.

Whoever finds a batch open finishes it first. What is in the lake is loaded from there; what is not
is read again from the broker, the same ranges into the same names. Where that incarnation is gone,
what is not in the lake is nowhere, since the database comes later: it is dropped, and told.

A state that was lost is made anew from the files' names. A file of dead letters without its file
of rows is half of a batch that was open: it is removed, for its messages will be read again,
perhaps in another range. The last file of each partition is loaded again: its batch may have been
open. Ranges without any message (Kafka's own marks) leave no file, and may be read twice.
"""

import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import (
    CODE,
    DEAD_LETTERS,
    DOMAIN,
    GROUP,
    MESSAGES,
    MONEY,
    RATIO,
    SOURCE_COLUMNS,
    STREAMING,
    TOPIC,
)
from retail_assets.defs.supply_chain.messages import parse_messages, payloads_of
from retail_assets.errors import TransientError
from retail_assets.resources.broker import (
    BrokerResource,
    Incarnation,
    LostMessagesError,
    Message,
    UnknownTopicError,
    Watermark,
)
from retail_assets.resources.lake import BrokenStateError, LakeResource
from retail_assets.resources.operational_db import (
    OperationalDbResource,
    ensure_table,
    insert_new,
)

if TYPE_CHECKING:
    import psycopg
    import pyarrow as pa

STATE = f"{DOMAIN}/batches"
LOCK = f"{DOMAIN}-{TOPIC}"
LANDED_PREFIX = f"{STREAMING}/{TOPIC}/"
DEAD_PREFIX = f"quarantine/{DEAD_LETTERS.folder}/"

# What a batch takes: small enough for a flat memory, and for the producer that waits for it.
MOST_MESSAGES = 20_000
MOST_BYTES = 64 * 1024**2
_POLL_S = 0.05
# In a file of rows: when its incarnation began, naive UTC; it may have no row that says it.
_STARTED_AT = "started_at"
_STEP = timedelta(microseconds=1)
_NAME = re.compile(
    rf"ingest_date=(?P<date>\d{{4}}-\d\d-\d\d)/(?P<incarnation>[^/]+)-{re.escape(TOPIC)}"
    r"-(?P<partition>\d+)-(?P<start>\d+)-(?P<end>\d+)\.parquet\Z"
)
# Others have nearly as many values as rows: a dictionary of them helps nobody.
_DICTIONARIES = [
    "incarnation",
    "topic",
    "partition",
    "time",
    *(c.name for c in SOURCE_COLUMNS if c.type in ("string", CODE, "int32", MONEY, RATIO)),
    "product_card_id",
    "order_item_cardprod_id",
]

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


class BrokerBehindError(TransientError):
    """The broker has fewer messages than have landed."""


class Range(NamedTuple):
    """Offsets of a partition, from ``start`` up to ``end``, which is not of it."""

    partition: int
    start: int
    end: int


@dataclass(frozen=True)
class Landed:
    """What a drain did.

    ``good`` and ``bad`` are messages that landed as rows and as dead letters, ``left_out`` values
    of the good ones that the star is without, ``reason`` the first of why: of a dead letter, if
    there is one. ``files`` are the names of those written, ``inserted`` the rows that the database
    did not have. ``lag`` is what was in the broker at the end and has not landed, by partition;
    ``oldest_s`` how long the oldest message had waited when it landed, in seconds. ``lost`` are
    ranges whose loss was accepted, ``dropped`` those of an incarnation that ended before they
    landed.
    """

    incarnation: str | None = None
    batches: int = 0
    good: int = 0
    bad: int = 0
    left_out: int = 0
    reason: str | None = None
    inserted: int = 0
    files: tuple[str, ...] = ()
    lag: Mapping[int, int] = field(default_factory=dict)
    oldest_s: float = 0.0
    seconds: float = 0.0
    recovered: int = 0
    lost: tuple[Range, ...] = ()
    dropped: tuple[Range, ...] = ()

    @property
    def messages(self) -> int:
        """Messages that landed."""
        return self.good + self.bad


def drain(
    lake: LakeResource,
    broker: BrokerResource,
    database: OperationalDbResource,
    *,
    ingest_date: str,
    ranges: Mapping[int, tuple[int, int]] | None = None,
    incarnation: str | None = None,
    follow: Callable[[], bool] | None = None,
    most_messages: int = MOST_MESSAGES,
    most_bytes: int = MOST_BYTES,
    accept_loss: bool = False,
    report: Callable[[Landed], None] | None = None,
) -> Landed:
    """Land what is in the topic, in batches of at most ``most_messages`` and ``most_bytes``.

    Without ``ranges`` that is what is there at the beginning; while ``follow`` says that more is
    coming, also what comes. With ``ranges`` it is what lies before their ends: a batch always
    begins where the last one ended, whatever a range says of its start, so that there is never a
    gap; what landed already is left out. Where they are of another ``incarnation`` than is there
    now, nothing is left of them. ``ingest_date`` (YYYY-MM-DD) is of the request, never today's.
    ``report`` is told after each batch. Of two at once, one waits.

    Raises:
        LostMessagesError: the broker no longer has what should come next. The message says what,
            and that ``accept_loss`` goes on after it.
        BrokerBehindError: the broker has less than has landed.
        LakeBusyError: another one took too long.
    """
    if date.fromisoformat(ingest_date).isoformat() != ingest_date:
        raise ValueError(f"ingest_date: expected YYYY-MM-DD, found {ingest_date!r}")
    started = time.monotonic()
    with lake.lock(LOCK), ExitStack() as stack:
        run = _Drain(
            lake=lake,
            broker=broker,
            database=database,
            stack=stack,
            folder=stack.enter_context(lake.scratch()),
            ingest_date=ingest_date,
            most_messages=most_messages,
            most_bytes=most_bytes,
            accept_loss=accept_loss,
            report=report,
        )
        run.recover()
        run.follow(ranges, incarnation, follow)
        run.repeat_commit()
        return replace(run.landed, lag=run.lag(), seconds=time.monotonic() - started)


def plan_ranges(
    positions: Mapping[int, int],
    watermarks: Mapping[int, Watermark],
    most_messages: int | None = None,
) -> dict[int, tuple[int, int]]:
    """What comes next, by partition: from its position to its high watermark.

    Of at most ``most_messages`` offsets each partition gets a fair share. A partition that has no
    position begins at 0; one that has nothing to read is left out.

    Raises:
        LostMessagesError: a low watermark is past the position.
        BrokerBehindError: a high watermark is before the position.
    """
    lost = lost_ranges(positions, watermarks)
    if lost:
        raise LostMessagesError(
            f"{TOPIC}: the broker no longer has {_describe(lost)}, which have not landed. Replay"
            " their source and accept their loss (accept_loss), which goes on with what is there;"
            " give the topic a longer retention than consumers may be down."
        )
    starts = {p: positions.get(p, 0) for p in watermarks}
    for partition, start in sorted(starts.items()):
        if start > (high := watermarks[partition].high):
            raise BrokerBehindError(
                f"{TOPIC}, partition {partition}: expected at least the {start} offsets of which"
                f" all has landed, found {high}. A new leader may have to catch up: run this"
                " again. If it stays so, the broker has lost messages and would give their offsets"
                " to others: make the topic anew, which is another incarnation, and replay."
            )
    waiting = {p: watermarks[p].high - start for p, start in starts.items()}
    left = sum(waiting.values()) if most_messages is None else most_messages
    ranges: dict[int, tuple[int, int]] = {}
    todo = sorted((p for p in waiting if waiting[p] > 0), key=lambda p: (waiting[p], p))
    for at, partition in enumerate(todo):
        share = min(waiting[partition], left // (len(todo) - at))
        left -= share
        if share:
            ranges[partition] = (starts[partition], starts[partition] + share)
    return dict(sorted(ranges.items()))


def lost_ranges(
    positions: Mapping[int, int], watermarks: Mapping[int, Watermark]
) -> tuple[Range, ...]:
    """What has not landed and is no longer in the broker."""
    return tuple(
        Range(p, positions.get(p, 0), mark.low)
        for p, mark in sorted(watermarks.items())
        if positions.get(p, 0) < mark.low
    )


def read_positions(lake: LakeResource, incarnation: str) -> dict[int, int]:
    """Next offset by partition, of what has landed of the incarnation as the state says.

    Raises:
        BrokenStateError: the state is not readable.
    """
    state = State.read(lake)
    known = state.incarnations.get(incarnation) if state else None
    return dict(known.positions) if known else {}


def landed_files(lake: LakeResource) -> dict[str, dict[str, int]]:
    """The lake's files of rows by ingest date: sizes in bytes by name, which is under the root.

    A file never changes once it is there. One has no row where all its range is dead letters.
    """
    found: dict[str, dict[str, int]] = {}
    for entry in lake.list_objects(LANDED_PREFIX):
        match = _NAME.search(entry.name)
        if match is not None:
            found.setdefault(match["date"], {})[entry.name] = entry.size
    return found


# The state.


@dataclass
class Known:
    """What is known of an incarnation: its start, naive UTC, and each partition's next offset."""

    started_at: datetime
    positions: dict[int, int]
    lost: list[Range] = field(default_factory=list)


@dataclass(frozen=True)
class OpenBatch:
    """A batch that was begun: whether its files are there, the lake tells."""

    incarnation: str
    ingest_date: str
    ranges: tuple[Range, ...]


@dataclass
class State:
    """What has landed, as the state object has it."""

    incarnations: dict[str, Known] = field(default_factory=dict)
    open: OpenBatch | None = None

    @classmethod
    def read(cls, lake: LakeResource) -> "State | None":
        """The state, or None where there is none.

        Raises:
            BrokenStateError: it is there and is not what ``write`` writes.
        """
        said = lake.read_state(STATE)
        if said is None:
            return None
        try:
            state = cls(
                {
                    str(known["id"]): Known(
                        datetime.fromisoformat(known["started_at"]),
                        {int(p): int(offset) for p, offset in known["positions"].items()},
                        [Range(*map(int, lost)) for lost in known.get("lost", ())],
                    )
                    for known in said["incarnations"]
                },
                said["open"]
                and OpenBatch(
                    str(said["open"]["incarnation"]),
                    str(said["open"]["ingest_date"]),
                    tuple(Range(*map(int, each)) for each in said["open"]["ranges"]),
                ),
            )
            if state.open is not None:
                _ = state.incarnations[state.open.incarnation]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BrokenStateError(
                f"{lake.uri(f'_state/{STATE}.json')} is not what a batch writes ({error!r}). Delete"
                " it: the next batch makes it anew from the names of the files that landed."
            ) from error
        return state

    def write(self, lake: LakeResource) -> None:
        """Replace the state object."""
        lake.write_state(
            STATE,
            {
                "incarnations": [
                    {
                        "id": name,
                        "started_at": known.started_at.isoformat(),
                        "positions": {str(p): at for p, at in sorted(known.positions.items())},
                        "lost": [list(each) for each in known.lost],
                    }
                    for name, known in self.incarnations.items()
                ],
                "open": self.open
                and {
                    "incarnation": self.open.incarnation,
                    "ingest_date": self.open.ingest_date,
                    "ranges": [list(each) for each in self.open.ranges],
                },
            },
        )

    def latest_start(self) -> datetime:
        """When the latest incarnation began."""
        starts = [known.started_at for known in self.incarnations.values()]
        return max(starts, default=datetime.min)


def file_name(prefix: str, ingest_date: str, incarnation: str, of: Range) -> str:
    """A file of the range, of rows or of dead letters as ``prefix`` says."""
    return (
        f"{prefix}ingest_date={ingest_date}/"
        f"{incarnation}-{TOPIC}-{of.partition}-{of.start}-{of.end}.parquet"
    )


# A drain.


@dataclass(frozen=True)
class _Part:
    """What a range holds; ``payloads`` are the JSON of ``good``, None where only files are left.

    ``dead`` has, beside the dead letters, values that good messages are without.
    """

    range: Range
    good: "pa.Table"
    dead: "pa.Table"
    payloads: Sequence[bytes] | None

    @property
    def letters(self) -> "pa.Table":
        """The dead letters alone."""
        import pyarrow.compute as pc

        return self.dead.filter(pc.invert(self.dead.column("row_stays")))


@dataclass(frozen=True)
class _Batch:
    """Ranges that land together; those without any message have no part."""

    incarnation: str
    ranges: tuple[Range, ...]
    parts: tuple[_Part, ...]
    oldest: datetime | None


class _Drain:
    """One drain, which holds the lock."""

    def __init__(
        self,
        *,
        lake: LakeResource,
        broker: BrokerResource,
        database: OperationalDbResource,
        stack: ExitStack,
        folder: Path,
        ingest_date: str,
        most_messages: int,
        most_bytes: int,
        accept_loss: bool,
        report: Callable[[Landed], None] | None,
    ) -> None:
        self.lake, self.broker, self.database = lake, broker, database
        self.ingest_date = ingest_date
        self.most_messages, self.most_bytes = most_messages, most_bytes
        self.accept_loss, self.report = accept_loss, report
        self.landed = Landed()
        self._stack, self._folder = stack, folder
        self._ended = threading.Event()
        self._connected: psycopg.Connection[Any] | None = None
        self.state = State()

    def _connection(self) -> "psycopg.Connection[Any]":
        """The database, whose tables are there; nothing is asked of it before something lands."""
        if self._connected is None:
            self._connected = self._stack.enter_context(self.database.connect())
            ensure_table(self._connected, ROWS_TABLE, ROWS_COLUMNS, KEY, _IN_PLACE)
            ensure_table(self._connected, LETTERS_TABLE, LETTERS_COLUMNS, KEY)
        return self._connected

    def living(self) -> Incarnation | None:
        """The incarnation that is there; an embedded broker is not started to be asked."""
        if not self.broker.running:
            return None
        try:
            return self.broker.incarnation(TOPIC)
        except UnknownTopicError:
            return None

    # The way back.

    def recover(self) -> None:
        """Find what has landed, and finish the batch that is open."""
        found = State.read(self.lake)
        if found is None:
            self._rebuild()
        else:
            self.state = found
        if self.state.open is not None:
            self._finish(self.state.open)

    def _finish(self, batch: OpenBatch) -> None:
        living = self.living()
        is_living = living is not None and living.id == batch.incarnation
        known = self.state.incarnations[batch.incarnation]
        parts: list[_Part] = []
        landed: list[Range] = []
        dropped: list[Range] = []
        for of in batch.ranges:
            part = self._read_part(batch.incarnation, batch.ingest_date, of)
            if part is not None:
                parts.append(part)
                landed.append(of)
                continue
            again = self._read_again(batch.incarnation, known, of) if is_living else None
            # Half of it may be there, of other rules than these: a newer version may run now.
            self.lake.delete(file_name(DEAD_PREFIX, batch.ingest_date, batch.incarnation, of))
            if again is None:
                dropped.append(of)
                continue
            landed.append(of)
            for part in again.parts:
                self._put(batch.incarnation, batch.ingest_date, part)
                parts.append(part)
        self._load(batch.incarnation, batch.ingest_date, parts)
        self._close(batch.incarnation, landed, commit=is_living)
        self._count(parts, recovered=True, dropped=tuple(dropped))

    def _read_part(self, incarnation: str, ingest_date: str, of: Range) -> _Part | None:
        """What the lake has of a range, or None."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        name = file_name(LANDED_PREFIX, ingest_date, incarnation, of)
        if not self.lake.exists(name):
            return None
        good = pq.read_table(self.lake.local_file(name), partitioning=None)
        dead_name = file_name(DEAD_PREFIX, ingest_date, incarnation, of)
        if self.lake.exists(dead_name):
            dead = pq.read_table(self.lake.local_file(dead_name), partitioning=None)
            if "row_stays" not in dead.column_names:  # an earlier version's: dead letters alone
                none = pa.repeat(pa.scalar(False), dead.num_rows)
                dead = dead.append_column("row_stays", none)
        else:
            dead = DEAD_LETTERS.arrow_schema.empty_table()
        return _Part(of, good, dead, None)

    def _read_again(self, incarnation: str, known: Known, of: Range) -> _Batch | None:
        """A range from the broker; None where it is lost and that is accepted."""
        messages: list[Message] = []
        try:
            for some in self.broker.read(
                TOPIC,
                {of.partition: (of.start, of.end)},
                most_messages=self.most_messages,
                most_bytes=self.most_bytes,
                incarnation=incarnation,
            ):
                messages.extend(some)
        except LostMessagesError as error:
            if self.accept_loss:
                return None  # what is left of it is planned anew
            raise LostMessagesError(
                f"{error} A batch was open that has it; accept_loss goes on after what is lost."
            ) from error
        return self._prepare(incarnation, known, (of,), messages)

    def _rebuild(self) -> None:
        """The state from the names in the lake; what may not be in the database is loaded."""
        last: dict[tuple[str, int], tuple[str, Range]] = {}
        rows: set[tuple[str, str, Range]] = set()
        for ingest_date, incarnation, of in self._listed(LANDED_PREFIX):
            rows.add((ingest_date, incarnation, of))
            known = last.get((incarnation, of.partition))
            if known is None or known[1].end < of.end:
                last[incarnation, of.partition] = (ingest_date, of)
        for ingest_date, incarnation, of in self._listed(DEAD_PREFIX):
            if (ingest_date, incarnation, of) not in rows:
                self.lake.delete(file_name(DEAD_PREFIX, ingest_date, incarnation, of))
        if not last:
            return
        for (incarnation, partition), (ingest_date, of) in sorted(last.items()):
            part = self._read_part(incarnation, ingest_date, of)
            assert part is not None
            self._load(incarnation, ingest_date, [part])
            began = self._read_start(file_name(LANDED_PREFIX, ingest_date, incarnation, of))
            found = self.state.incarnations.setdefault(incarnation, Known(began, {}))
            found.positions[partition] = of.end
        self.state.write(self.lake)

    def _read_start(self, name: str) -> datetime:
        """When the incarnation of a file of rows began."""
        import pyarrow.parquet as pq

        written = pq.read_metadata(self.lake.local_file(name)).metadata[_STARTED_AT.encode()]
        return datetime.fromisoformat(written.decode())

    def _listed(self, prefix: str) -> Iterator[tuple[str, str, Range]]:
        for entry in self.lake.list_objects(prefix):
            match = _NAME.search(entry.name)
            if match is not None:
                numbers = (int(match[name]) for name in Range._fields)
                yield match["date"], match["incarnation"], Range(*numbers)

    # The way on.

    def follow(
        self,
        asked: Mapping[int, tuple[int, int]] | None,
        incarnation: str | None,
        follow: Callable[[], bool] | None,
    ) -> None:
        """Land what is there and what comes. The next batch is prepared while one lands."""
        batches = self._batches(asked, incarnation, follow)
        with closing(batches), ThreadPoolExecutor(1) as pool:

            def prepare() -> "Future[_Batch | None]":
                return pool.submit(next, batches, None)

            try:
                coming = prepare()
                while (batch := coming.result()) is not None:
                    coming = prepare()
                    self._land(batch)
            finally:
                self._ended.set()  # the other thread shall not wait for what may never come

    def _batches(
        self,
        asked: Mapping[int, tuple[int, int]] | None,
        incarnation: str | None,
        follow: Callable[[], bool] | None,
    ) -> Generator[_Batch, None, None]:
        """Batches in order, prepared in another thread; after the first it changes nothing."""
        known: Known | None = None
        living: Incarnation | None = None
        while True:
            # Asked before the broker is: what came before there was no more is seen below.
            more = follow is not None and not self._ended.is_set() and follow()
            if known is None or living is None:
                living = self.living()
                if living is not None and incarnation in (None, living.id):
                    known = self._begin(living)
            ranges = self._next_ranges(known, asked, more) if known else {}
            if ranges:
                assert known is not None and living is not None
                yield from self._read(living.id, known, ranges)
            if not more:
                return
            if not ranges:
                self._ended.wait(_POLL_S)

    def _begin(self, living: Incarnation) -> Known:
        """What is known of the incarnation, for reading on: a copy, ahead of what has landed."""
        known = self.state.incarnations.get(living.id)
        watermarks = self.broker.watermarks(TOPIC)
        if known is None:
            now = datetime.now(UTC).replace(tzinfo=None)
            # A clock that was set back must not make a later topic's messages earlier ones.
            latest = self.state.latest_start()
            started_at = living.started_at or (max(now, latest + _STEP) if latest.year > 1 else now)
            # Of an embedded broker we know that it began at 0. Of Kafka's topic we have never had
            # anything: we begin with what there is.
            begins = {} if living.started_at else {p: mark.low for p, mark in watermarks.items()}
            known = Known(started_at, begins)
            self.state.incarnations[living.id] = known
        self.landed = replace(self.landed, incarnation=living.id)
        lost = lost_ranges(known.positions, watermarks)
        if lost and self.accept_loss:
            known.lost.extend(lost)
            known.positions.update({of.partition: of.end for of in lost})
            self.landed = replace(self.landed, lost=(*self.landed.lost, *lost))
            self.state.write(self.lake)
        return Known(known.started_at, dict(known.positions))

    def _next_ranges(
        self, known: Known, asked: Mapping[int, tuple[int, int]] | None, more: bool
    ) -> dict[int, tuple[int, int]]:
        """What to read: of what is asked for, or all; where more is coming, worth a batch."""
        ranges = plan_ranges(known.positions, self.broker.watermarks(TOPIC))
        if asked is not None:
            limits = {p: min(end, asked[p][1]) for p, (_, end) in ranges.items() if p in asked}
            return {p: (ranges[p][0], end) for p, end in limits.items() if ranges[p][0] < end}
        while more and _count(ranges) < self.most_messages:
            if not ranges or self._ended.wait(_POLL_S):
                return ranges
            later = plan_ranges(known.positions, self.broker.watermarks(TOPIC))
            if later == ranges:  # its producer waits, perhaps for us
                return ranges
            ranges = later
        if more:  # what is left over goes with what comes
            return plan_ranges(known.positions, self.broker.watermarks(TOPIC), self.most_messages)
        return ranges

    def _read(
        self, incarnation: str, known: Known, ranges: Mapping[int, tuple[int, int]]
    ) -> Iterator[_Batch]:
        """Batches of the ranges; the positions of ``known`` go with them."""
        for messages in self.broker.read(
            TOPIC,
            ranges,
            most_messages=self.most_messages,
            most_bytes=self.most_bytes,
            incarnation=incarnation,
        ):
            ends = {m.partition: m.offset + 1 for m in messages}
            of = tuple(Range(p, known.positions.get(p, 0), end) for p, end in sorted(ends.items()))
            batch = self._prepare(incarnation, known, of, messages)
            known.positions.update(ends)
            yield batch
        # Kafka's own marks may stand at the end: nothing of them lands, but we are past them.
        past = tuple(
            Range(p, known.positions.get(p, 0), end)
            for p, (_, end) in sorted(ranges.items())
            if known.positions.get(p, 0) < end
        )
        if past:
            known.positions.update({of.partition: of.end for of in past})
            yield _Batch(incarnation, past, (), None)

    def _prepare(
        self,
        incarnation: str,
        known: Known,
        ranges: tuple[Range, ...],
        messages: Sequence[Message],
    ) -> _Batch:
        """Parse messages and write their files aside."""
        by_partition: dict[int, list[Message]] = defaultdict(list)
        for message in messages:
            by_partition[message.partition].append(message)
        parts: list[_Part] = []
        for of in ranges:
            if of.partition not in by_partition:
                continue
            parsed = parse_messages(
                by_partition.pop(of.partition), incarnation=incarnation, started_at=known.started_at
            )
            part = _Part(of, parsed.good, parsed.dead, parsed.payloads)
            self._write(part, known.started_at)
            parts.append(part)
        oldest = min((m.time for m in messages), default=None)
        return _Batch(incarnation, ranges, tuple(parts), oldest)

    def _aside(self, of: Range, kind: Dataset) -> Path:
        return self._folder / f"{kind.name}-{of.partition}-{of.start}-{of.end}.parquet"

    def _write(self, part: _Part, started_at: datetime) -> None:
        import pyarrow.parquet as pq

        with pq.ParquetWriter(
            self._aside(part.range, MESSAGES),
            part.good.schema,
            compression="zstd",
            use_dictionary=_DICTIONARIES,
            store_schema=False,
        ) as writer:
            writer.write_table(part.good)
            writer.add_key_value_metadata({_STARTED_AT: started_at.isoformat()})
        if part.dead.num_rows:
            pq.write_table(
                part.dead,
                self._aside(part.range, DEAD_LETTERS),
                compression="zstd",
                store_schema=False,
            )

    def _land(self, batch: _Batch) -> None:
        """Steps 2 to 6."""
        self.state.open = OpenBatch(batch.incarnation, self.ingest_date, batch.ranges)
        self.state.write(self.lake)
        files = [
            name
            for part in batch.parts
            for name in self._put(batch.incarnation, self.ingest_date, part)
        ]
        inserted = self._load(batch.incarnation, self.ingest_date, batch.parts)
        self._close(batch.incarnation, batch.ranges, commit=True)
        waited = 0.0
        if batch.oldest is not None:
            now = datetime.now(UTC).replace(tzinfo=None)
            waited = max(0.0, (now - batch.oldest).total_seconds())
        self.landed = replace(
            self.landed,
            batches=self.landed.batches + 1,
            files=(*self.landed.files, *files),
            inserted=self.landed.inserted + inserted,
            oldest_s=max(self.landed.oldest_s, waited),
        )
        self._count(batch.parts)

    def _put(self, incarnation: str, ingest_date: str, part: _Part) -> list[str]:
        """Move a range's files in: dead letters first, for rows say that the range has landed."""
        names: list[str] = []
        kinds = [(DEAD_PREFIX, DEAD_LETTERS)] if part.dead.num_rows else []
        for prefix, kind in [*kinds, (LANDED_PREFIX, MESSAGES)]:
            name = file_name(prefix, ingest_date, incarnation, part.range)
            self.lake.put_file(name, self._aside(part.range, kind))
            names.append(name)
        return names

    def _load(self, incarnation: str, ingest_date: str, parts: Iterable[_Part]) -> int:
        """Insert what the database does not have, in one transaction; rows inserted."""
        import pyarrow as pa

        parts = [part for part in parts if part.good.num_rows or part.dead.num_rows]
        if not parts:
            return 0
        connection = self._connection()
        inserted = 0
        for table, columns, rows in (
            (ROWS_TABLE, ROWS_COLUMNS, [_rows(part, ingest_date) for part in parts]),
            (LETTERS_TABLE, LETTERS_COLUMNS, [_letters(part, ingest_date) for part in parts]),
        ):
            together = pa.concat_tables(rows)
            if together.num_rows:
                inserted += insert_new(connection, table, columns, together, KEY)
        connection.commit()
        return inserted

    def _close(self, incarnation: str, ranges: Sequence[Range], *, commit: bool) -> None:
        """Steps 5 and 6."""
        known = self.state.incarnations[incarnation]
        ends = {of.partition: of.end for of in ranges}
        if commit:
            self.broker.commit(TOPIC, GROUP, known.positions | ends, incarnation=incarnation)
        known.positions.update(ends)
        self.state.open = None
        self.state.write(self.lake)

    def _count(
        self, parts: Sequence[_Part], *, recovered: bool = False, dropped: tuple[Range, ...] = ()
    ) -> None:
        good = sum(part.good.num_rows for part in parts)
        letters = [part.letters for part in parts]
        bad = sum(table.num_rows for table in letters)
        told = self.landed.reason
        self.landed = replace(
            self.landed,
            good=self.landed.good + good,
            bad=self.landed.bad + bad,
            left_out=self.landed.left_out + sum(part.dead.num_rows for part in parts) - bad,
            reason=(told if self.landed.bad else None)
            or _first_reason(letters)
            or told
            or _first_reason([part.dead for part in parts]),
            recovered=self.landed.recovered + (good + bad if recovered else 0),
            dropped=(*self.landed.dropped, *dropped),
        )
        if self.report is not None:
            self.report(self.landed)

    def repeat_commit(self) -> None:
        """Commit what the state says where nothing landed: perhaps it is not known there.

        After a loss, of the state or of messages, and where the broker has forgotten, a sensor
        would otherwise ask again and again for what has landed.
        """
        living = self.living()
        if self.landed.batches == 0 and living is not None:
            known = self.state.incarnations.get(living.id)
            if known is not None:
                self.broker.commit(TOPIC, GROUP, known.positions, incarnation=living.id)

    def lag(self) -> dict[int, int]:
        """Offsets by partition that have not landed; nothing where there is no broker."""
        living = self.living()
        if living is None:
            return {}
        known = self.state.incarnations.get(living.id)
        positions = known.positions if known else {}
        return {
            p: mark.high - max(mark.low, positions.get(p, 0))
            for p, mark in sorted(self.broker.watermarks(TOPIC).items())
        }


def _rows(part: _Part, ingest_date: str) -> "pa.Table":
    """Rows of ROWS_TABLE; ``payload`` as text."""
    import pyarrow as pa

    payloads = payloads_of(part.good) if part.payloads is None else part.payloads
    texts = pa.array(payloads, pa.binary()).cast(pa.string())
    return _identified(part.good, ingest_date).append_column("payload", texts)


def _letters(part: _Part, ingest_date: str) -> "pa.Table":
    """Rows of LETTERS_TABLE: a message is in it or in ROWS_TABLE, never in both."""
    letters = _identified(part.letters, ingest_date)
    for name in ("reason", "text"):
        letters = letters.append_column(name, part.letters.column(name))
    return letters


def _first_reason(tables: "Iterable[pa.Table]") -> str | None:
    return next((t.column("reason")[0].as_py() for t in tables if t.num_rows), None)


def _identified(table: "pa.Table", ingest_date: str) -> "pa.Table":
    """Columns of _IDENTITY."""
    import pyarrow as pa

    names = [name for name in _IDENTITY if name in table.column_names]
    days = pa.repeat(pa.scalar(ingest_date), table.num_rows)
    return table.select(names).append_column("ingest_date", days)


def _count(ranges: Mapping[int, tuple[int, int]]) -> int:
    return sum(end - start for start, end in ranges.values())


def _describe(ranges: Iterable[Range]) -> str:
    return ", ".join(
        f"offsets {of.start} to {of.end - 1} of partition {of.partition}" for of in ranges
    )

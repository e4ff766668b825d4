"""How messages land, exactly once: from the topic into the lake and the operational database.

Here: micro-batches, in order, and what is told of them. Not here: how far the lake is
(positions.py), files, commits and rows (sinks.py), what a message says (the domain), when a batch
runs (automation.py).

A batch goes through these steps:

1. read, parse, write files aside: nothing is changed;
2. lake: a commit of the dead letters, if there are any; then one of the rows and the positions;
3. database: one transaction of rows, dead letters and positions; keys that are there stay;
4. broker: the lake's positions are committed for the group, which tells the producer.

A run may be killed anywhere. Whoever comes next takes dead letters out whose rows never came,
brings the database to what the lake has, and goes on reading from the lake's positions.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

import dagster as dg

from retail_assets.feeds.stream import StreamFeed
from retail_assets.feeds.stream.positions import (
    LakePositions,
    Place,
    Ranges,
    lost_ranges,
    plan_ranges,
    shown,
)
from retail_assets.feeds.stream.sinks import DatabaseSink, LakeSink, Part, lock_name
from retail_assets.losses import Quarantined
from retail_assets.resources.broker.resource import (
    BrokerResource,
    Incarnation,
    Message,
    UnknownTopicError,
)
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.operational_db import OperationalDbResource

_POLL_S = 0.05


class MicroBatchConfig(dg.Config):
    """What a micro-batch lands.

    ``ranges`` are [start, end) offsets by partition, of the topic's ``incarnation``; without any,
    all that is there when it begins. ``ingest_date`` (YYYY-MM-DD) is the request's; without one it
    is today, UTC. ``file`` is produced to the topic meanwhile.
    ``accept_loss`` goes on after messages that the broker no longer has. A batch takes at most
    ``most_messages`` and ``most_bytes``: small enough for a flat memory, and for the producer.
    """

    ranges: dict[str, list[int]] = {}  # noqa: RUF012  (a field of pydantic's: copied)
    incarnation: str | None = None
    ingest_date: str | None = None
    file: str | None = None
    accept_loss: bool = False
    most_messages: int = 20_000
    most_bytes: int = 64 * 1024**2


@dataclass
class Landed:
    """What a drain did.

    ``good`` are messages that landed as rows; ``lost`` has those that are dead letters, values of
    the good ones that no table has, and the first reason: of a dead letter, if there is one.
    ``recovered`` of the messages lay in the lake already, and not in the database. ``files`` are
    the names of those written, ``inserted`` the rows that the database did not have. ``lag`` is
    what was in the broker at the end and has not landed, by partition; ``oldest_s`` how long the
    oldest message had waited when it landed, in seconds. ``accepted`` are ranges whose loss was.
    """

    incarnation: str | None = None
    batches: int = 0
    good: int = 0
    lost: Quarantined = Quarantined(unit="messages")  # noqa: RUF009  (it is frozen)
    inserted: int = 0
    recovered: int = 0
    files: list[str] = field(default_factory=list)
    lag: Mapping[int, int] = field(default_factory=dict)
    oldest_s: float = 0.0
    seconds: float = 0.0
    accepted: Ranges = field(default_factory=dict)

    @property
    def messages(self) -> int:
        """Messages that landed."""
        return self.good + self.lost.rows


@dataclass(frozen=True)
class _Batch:
    """Ranges that land together; those without any message have no part."""

    ranges: Ranges
    parts: Sequence[Part] = ()
    oldest: datetime | None = None


@dataclass
class Drain:
    """Landing what ``config`` says, in batches.

    Without ranges that is what is there at the beginning; while ``follow`` says that more is
    coming, also what comes. With ranges it is what lies before their ends: a batch always begins
    where the last one ended, whatever a range says of its start, so that there is never a gap; what
    landed already is left out. Where they are of another incarnation than is there now, nothing is
    left of them. ``report`` is told after each batch; ``told`` is what the history of the lake's
    tables says of who wrote.
    """

    feed: StreamFeed
    lake: LakeResource
    broker: BrokerResource
    database: OperationalDbResource
    config: MicroBatchConfig
    follow: Callable[[], bool] = lambda: False
    report: Callable[[Landed], None] = lambda _: None
    told: Mapping[str, object] = field(default_factory=dict)
    _landed: Landed = field(default_factory=Landed)
    _stack: ExitStack = field(default_factory=ExitStack)
    _ended: threading.Event = field(default_factory=threading.Event)
    _positions: LakePositions | None = None
    _database_sink: DatabaseSink | None = None

    def run(self) -> Landed:
        """Do it. Of two at once, one waits.

        Raises:
            LostMessagesError: the broker no longer has what should come next. The message says
                what, and that ``accept_loss`` goes on after it.
            BrokerBehindError: the broker has less than has landed.
            LakeBusyError: another one took too long.
            TransactionLostError: another one landed at the same time, as its lock was lost.
        """
        asked = self.config.ingest_date
        self._day = day = f"{_now():%Y-%m-%d}" if asked is None else asked
        if date.fromisoformat(day).isoformat() != day:
            raise ValueError(f"ingest_date: expected YYYY-MM-DD, found {day!r}")
        started = time.monotonic()
        with self.lake.lock(lock_name(self.feed)), self._stack:
            folder = self._stack.enter_context(self.lake.scratch())
            self._sink = LakeSink(self.feed, self.lake, folder)
            self._catch_up()
            self._land_all()
            if not self._landed.batches:
                # After a kill or a loss they may not be known there: its producer waits.
                self._commit_at_broker()
            self._sink.vacuum()
            self._landed.lag = self._lag()
        self._landed.seconds = time.monotonic() - started
        return self._landed

    def _living(self) -> Incarnation | None:
        """The incarnation that is there; an embedded broker is not started to be asked."""
        try:
            return self.broker.incarnation(self.feed.topic) if self.broker.running else None
        except UnknownTopicError:
            return None

    def _catch_up(self) -> None:
        """Bring the database to what the lake has; of a lake without messages it is not asked."""
        for place, files in self._sink.landed().items():
            if self._in_database().lacks(place):
                part = self._sink.read(place, files)
                self._insert([part], place.incarnation, {place.partition: place.end})
                self._landed.recovered = self._landed.messages
                self.report(self._landed)

    def _in_database(self) -> DatabaseSink:
        if self._database_sink is None:
            connection = self._stack.enter_context(self.database.connect())
            self._database_sink = DatabaseSink(self.feed, connection)
        return self._database_sink

    def _land_all(self) -> None:
        """Land what is there and what comes. The next batch is prepared while one lands."""
        batches = self._batches()
        with closing(batches), ThreadPoolExecutor(1) as pool:
            try:
                coming = pool.submit(next, batches, None)
                while (batch := coming.result()) is not None:
                    coming = pool.submit(next, batches, None)
                    self._land(batch)
            finally:
                self._ended.set()  # the other thread shall not wait for what may never come

    def _batches(self) -> Generator[_Batch, None, None]:
        """Batches in order, prepared in another thread; after the first it changes nothing."""
        # Positions for reading on: a copy, ahead of what has landed.
        ahead: dict[int, int] = {}
        while True:
            # Asked before the broker is: what came before there was no more is seen below.
            more = not self._ended.is_set() and self.follow()
            living = self._living() if self._positions is None else None
            if living and self.config.incarnation in (None, living.id):
                self._positions = self._begin(living)
                ahead |= self._positions.positions
            ranges: Ranges = {}
            if self._positions is not None and (ranges := self._next_ranges(ahead, more)):
                yield from self._read(self._positions, ahead, ranges)
            if not more:
                return
            if not ranges:
                self._ended.wait(_POLL_S)

    def _begin(self, living: Incarnation) -> LakePositions:
        """Positions of the incarnation, from which to read on."""
        watermarks = self.broker.watermarks(self.feed.topic)
        positions = LakePositions(self.feed, self.lake, living, watermarks)
        self._landed.incarnation = living.id
        lost = lost_ranges(positions.positions, watermarks)
        if lost and self.config.accept_loss:
            told = self._history(living.id, lost) | {"accepted_loss": listed(lost)}
            positions.commit({p: end for p, (_, end) in lost.items()}, [], told)
            self._landed.accepted = lost
        return positions

    def _next_ranges(self, ahead: Mapping[int, int], more: bool) -> Ranges:
        """What to read: of what is asked for, or all; where more is coming, worth a batch."""

        def waiting(most: int | None = None) -> Ranges:
            marks = self.broker.watermarks(self.feed.topic)
            return plan_ranges(self.feed.topic, ahead, marks, most)

        ranges, most = waiting(), self.config.most_messages
        if asked := self.config.ranges:
            limits = {p: asked[str(p)][1] for p in ranges if str(p) in asked}
            spans = {p: (ranges[p][0], min(ranges[p][1], limit)) for p, limit in limits.items()}
            return {p: span for p, span in spans.items() if span[0] < span[1]}
        while more and sum(end - start for start, end in ranges.values()) < most:
            if self._ended.wait(_POLL_S) or (later := waiting()) == ranges:
                return ranges  # its producer waits, perhaps for us
            ranges = later
        # What is left over goes with what comes.
        return waiting(most) if more else ranges

    def _read(
        self, positions: LakePositions, ahead: dict[int, int], ranges: Ranges
    ) -> Iterator[_Batch]:
        """Batches of the ranges; ``ahead`` goes with them."""
        for messages in self.broker.read(
            self.feed.topic,
            ranges,
            most_messages=self.config.most_messages,
            most_bytes=self.config.most_bytes,
            incarnation=positions.incarnation,
        ):
            batch = self._prepare(positions, ahead, messages)
            ahead |= {p: end for p, (_, end) in batch.ranges.items()}
            yield batch
        # Kafka's own marks may stand at the end: nothing of them lands, but we are past them.
        ends = {p: end for p, (_, end) in sorted(ranges.items()) if ahead.get(p, 0) < end}
        if ends:
            past = {p: (ahead.get(p, 0), end) for p, end in ends.items()}
            ahead |= ends
            yield _Batch(past)

    def _prepare(
        self, positions: LakePositions, ahead: Mapping[int, int], messages: Sequence[Message]
    ) -> _Batch:
        """Parse messages and write their files aside."""
        by_partition: dict[int, list[Message]] = {}
        for message in messages:
            by_partition.setdefault(message.partition, []).append(message)
        ranges = {p: (ahead.get(p, 0), of[-1].offset + 1) for p, of in sorted(by_partition.items())}
        parts: list[Part] = []
        for partition, (start, end) in ranges.items():
            place = Place(positions.incarnation, partition, start, end, self._day)
            found = by_partition[partition]
            parsed = self.feed.parse(found, positions.incarnation, positions.started_at)
            parts.append(Part(place, *parsed))
            self._sink.write(parts[-1])
        return _Batch(ranges, parts, min(message.time for message in messages))

    def _land(self, batch: _Batch) -> None:
        """Steps 2 to 4."""
        positions, landed = self._positions, self._landed
        assert positions is not None
        good = sum(part.good.num_rows for part in batch.parts)
        bad = sum(part.letters.num_rows for part in batch.parts)
        told = self._history(positions.incarnation, batch.ranges) | {
            "rows_read": good + bad,
            "rows_written": good,
            "quarantined": bad,
            "values_left_out": sum(part.dead.num_rows for part in batch.parts) - bad,
        }
        ends = {p: end for p, (_, end) in batch.ranges.items()}
        landed.files += self._sink.commit(positions, batch.parts, ends, told)
        self._insert(batch.parts, positions.incarnation, ends)
        self._commit_at_broker()
        landed.batches += 1
        if batch.oldest is not None:
            landed.oldest_s = max(landed.oldest_s, (_now() - batch.oldest).total_seconds())
        self.report(landed)

    def _insert(self, parts: Sequence[Part], incarnation: str, ends: Mapping[int, int]) -> None:
        sink, landed = self._in_database(), self._landed
        landed.inserted += sink.insert(parts, incarnation, ends)
        sink.connection.commit()
        for part in parts:
            landed.good += part.good.num_rows
            bad = part.letters.num_rows
            reasons = (part.letters if bad else part.dead).column("reason")
            first = self.feed.mask(reasons[0].as_py(), "")[0] if len(reasons) else None
            lost = Quarantined(bad, part.dead.num_rows - bad, first, landed.lost.unit)
            # The first reason is of a dead letter, if there is one.
            is_first = bad and not landed.lost.rows
            landed.lost = lost + landed.lost if is_first else landed.lost + lost

    def _history(self, incarnation: str, ranges: Ranges) -> dict[str, object]:
        """What the tables' history says of a commit."""
        source = f"{self.feed.topic}, incarnation {incarnation}: {shown(ranges)}"
        return {**self.told, "source": source}

    def _commit_at_broker(self) -> None:
        """Commit the lake's positions for the group."""
        if (at := self._positions) is not None:
            topic, group = self.feed.topic, self.feed.group
            self.broker.commit(topic, group, at.positions, incarnation=at.incarnation)

    def _lag(self) -> dict[int, int]:
        """Offsets by partition that have not landed; nothing where the broker is another."""
        living, at = self._living(), self._positions
        if living is None or at is None or living.id != at.incarnation:
            return {}
        marks = sorted(self.broker.watermarks(self.feed.topic).items())
        return {p: mark.high - max(mark.low, at.positions.get(p, 0)) for p, mark in marks}


@contextmanager
def produced(produce: Callable[[threading.Event], str]) -> Iterator[Future[str]]:
    """Produce in a thread while the block runs; what it says at its end.

    Raises:
        Exception: what ended the producer.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(1, "producer") as pool:
        producing = pool.submit(produce, stop)
        try:
            yield producing
        finally:
            stop.set()
            producing.result()


def listed(ranges: Ranges) -> list[list[int]]:
    """Ranges as lists of partition, start and end."""
    return [[partition, *span] for partition, span in ranges.items()]


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)

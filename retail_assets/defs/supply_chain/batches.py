"""How messages land, exactly once: from the topic into the lake and the operational database.

Here: micro-batches, in order, and what is told of them. Not here: how far each sink is
(positions.py, operational_sink.py), files and commits (lake_sink.py), what a message says
(messages.py), when a batch runs (automation.py).

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
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.defs.supply_chain.contract import GROUP, TOPIC
from retail_assets.defs.supply_chain.lake_sink import (
    Part,
    land_parts,
    landed_parts,
    vacuum_tables,
    write_part,
)
from retail_assets.defs.supply_chain.messages import parse_messages
from retail_assets.defs.supply_chain.operational_sink import OperationalSink
from retail_assets.defs.supply_chain.positions import (
    LOCK,
    LakePositions,
    Place,
    Range,
    lost_ranges,
    plan_ranges,
    read_positions,
)
from retail_assets.resources.broker.resource import (
    BrokerResource,
    Incarnation,
    Message,
    UnknownTopicError,
)
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.operational_db import OperationalDbResource

if TYPE_CHECKING:
    import pyarrow as pa

# What a batch takes: small enough for a flat memory, and for the producer that waits for it.
MOST_MESSAGES = 20_000
MOST_BYTES = 64 * 1024**2
_POLL_S = 0.05


@dataclass(frozen=True)
class Landed:
    """What a drain did.

    ``good`` and ``bad`` are messages that landed as rows and as dead letters, ``left_out`` values
    of the good ones that the star is without, ``reason`` the first of why: of a dead letter, if
    there is one. ``recovered`` of the messages lay in the lake already, and not in the database.
    ``files`` are the names of those written, ``inserted`` the rows that the database did not have.
    ``lag`` is what was in the broker at the end and has not landed, by partition; ``oldest_s`` how
    long the oldest message had waited when it landed, in seconds. ``lost`` are ranges whose loss
    was accepted.
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
    told: Mapping[str, object] | None = None,
) -> Landed:
    """Land what is in the topic, in batches of at most ``most_messages`` and ``most_bytes``.

    Without ``ranges`` that is what is there at the beginning; while ``follow`` says that more is
    coming, also what comes. With ``ranges`` it is what lies before their ends: a batch always
    begins where the last one ended, whatever a range says of its start, so that there is never a
    gap; what landed already is left out. Where they are of another ``incarnation`` than is there
    now, nothing is left of them. ``ingest_date`` (YYYY-MM-DD) is of the request, never today's.
    ``report`` is told after each batch; ``told`` is what the history of the lake's tables says of
    who wrote. Of two at once, one waits.

    Raises:
        LostMessagesError: the broker no longer has what should come next. The message says what,
            and that ``accept_loss`` goes on after it.
        BrokerBehindError: the broker has less than has landed.
        LakeBusyError: another one took too long.
        TransactionLostError: another one landed at the same time, as its lock was lost.
    """
    if date.fromisoformat(ingest_date).isoformat() != ingest_date:
        raise ValueError(f"ingest_date: expected YYYY-MM-DD, found {ingest_date!r}")
    started = time.monotonic()
    with lake.lock(LOCK), ExitStack() as stack:
        run = _Drain(
            *(lake, broker, database, ingest_date, most_messages, most_bytes, accept_loss),
            *(report, told or {}, stack, stack.enter_context(lake.scratch())),
        )
        run.catch_up()
        run.follow(ranges, incarnation, follow)
        if not run.landed.batches:
            # After a kill or a loss they may not be known there, or no more: its producer waits.
            run.commit_at_broker()
        vacuum_tables(lake)
        return replace(run.landed, lag=run.lag(), seconds=time.monotonic() - started)


@dataclass(frozen=True)
class _Batch:
    """Ranges that land together; those without any message have no part."""

    ranges: tuple[Range, ...]
    parts: tuple[Part, ...] = ()
    oldest: datetime | None = None


@dataclass
class _Drain:
    """One drain, which holds the lock."""

    lake: LakeResource
    broker: BrokerResource
    database: OperationalDbResource
    ingest_date: str
    most_messages: int
    most_bytes: int
    accept_loss: bool
    report: Callable[[Landed], None] | None
    told: Mapping[str, object]
    stack: ExitStack
    folder: Path
    landed: Landed = field(default_factory=Landed)
    _ended: threading.Event = field(default_factory=threading.Event)
    _positions: LakePositions | None = None
    _sink: OperationalSink | None = None

    def living(self) -> Incarnation | None:
        """The incarnation that is there; an embedded broker is not started to be asked."""
        if not self.broker.running:
            return None
        try:
            return self.broker.incarnation(TOPIC)
        except UnknownTopicError:
            return None

    def catch_up(self) -> None:
        """Bring the database to what the lake has; of a lake without messages it is not asked."""
        landed = landed_parts(self.lake)
        if not landed:
            return
        sink = self._open_sink()
        for part, inserted in sink.insert_landed(self.lake, filter(sink.lacks, landed)):
            sink.connection.commit()
            self._count([part], inserted, recovered=True)

    def _open_sink(self) -> OperationalSink:
        if self._sink is None:
            self._sink = OperationalSink(self.stack.enter_context(self.database.connect()))
        return self._sink

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
        ahead: dict[int, int] | None = None
        while True:
            # Asked before the broker is: what came before there was no more is seen below.
            more = follow is not None and not self._ended.is_set() and follow()
            if ahead is None:
                living = self.living()
                if living is not None and incarnation in (None, living.id):
                    ahead = self._begin(living)
            ranges = self._next_ranges(ahead, asked, more) if ahead is not None else {}
            if ranges:
                assert ahead is not None
                yield from self._read(ahead, ranges)
            if not more:
                return
            if not ranges:
                self._ended.wait(_POLL_S)

    def _begin(self, living: Incarnation) -> dict[int, int]:
        """Positions of the incarnation, for reading on: a copy, ahead of what has landed."""
        watermarks = self.broker.watermarks(TOPIC)
        positions = LakePositions(self.lake, living.id, watermarks)
        if positions.started_at is None:
            # Of an embedded broker we know that it began at 0. Of Kafka's topic we have never had
            # anything: we begin with what there is.
            begins = {} if living.started_at else {p: mark.low for p, mark in watermarks.items()}
            now = datetime.now(UTC).replace(tzinfo=None)
            positions.begin(living.started_at, now, begins)
        self._positions = positions
        self.landed = replace(self.landed, incarnation=living.id)
        lost = lost_ranges(positions.positions, watermarks)
        if lost and self.accept_loss:
            told = {"source": _source(living.id, lost), "accepted_loss": [list(of) for of in lost]}
            positions.commit({of.partition: of.end for of in lost}, [], {**self.told, **told})
            self.landed = replace(self.landed, lost=(*self.landed.lost, *lost))
        return dict(positions.positions)

    def _next_ranges(
        self,
        ahead: Mapping[int, int],
        asked: Mapping[int, tuple[int, int]] | None,
        more: bool,
    ) -> dict[int, tuple[int, int]]:
        """What to read: of what is asked for, or all; where more is coming, worth a batch."""
        ranges = plan_ranges(ahead, self.broker.watermarks(TOPIC))
        if asked is not None:
            limits = {p: min(end, asked[p][1]) for p, (_, end) in ranges.items() if p in asked}
            return {p: (ranges[p][0], end) for p, end in limits.items() if ranges[p][0] < end}
        while more and _size(ranges) < self.most_messages:
            if not ranges or self._ended.wait(_POLL_S):
                return ranges
            later = plan_ranges(ahead, self.broker.watermarks(TOPIC))
            if later == ranges:  # its producer waits, perhaps for us
                return ranges
            ranges = later
        if more:  # what is left over goes with what comes
            return plan_ranges(ahead, self.broker.watermarks(TOPIC), self.most_messages)
        return ranges

    def _read(
        self, ahead: dict[int, int], ranges: Mapping[int, tuple[int, int]]
    ) -> Iterator[_Batch]:
        """Batches of the ranges; ``ahead`` goes with them."""
        assert self._positions is not None
        for messages in self.broker.read(
            TOPIC,
            ranges,
            most_messages=self.most_messages,
            most_bytes=self.most_bytes,
            incarnation=self._positions.incarnation,
        ):
            ends = {m.partition: m.offset + 1 for m in messages}
            of = tuple(Range(p, ahead.get(p, 0), end) for p, end in sorted(ends.items()))
            batch = self._prepare(self._positions, of, messages)
            ahead.update(ends)
            yield batch
        # Kafka's own marks may stand at the end: nothing of them lands, but we are past them.
        past = tuple(
            Range(p, ahead.get(p, 0), end)
            for p, (_, end) in sorted(ranges.items())
            if ahead.get(p, 0) < end
        )
        if past:
            ahead.update({of.partition: of.end for of in past})
            yield _Batch(past)

    def _prepare(
        self, positions: LakePositions, ranges: tuple[Range, ...], messages: Sequence[Message]
    ) -> _Batch:
        """Parse messages and write their files aside."""
        assert positions.started_at is not None
        by_partition: dict[int, list[Message]] = defaultdict(list)
        for message in messages:
            by_partition[message.partition].append(message)
        parts: list[Part] = []
        for of in ranges:
            parsed = parse_messages(
                by_partition[of.partition],
                incarnation=positions.incarnation,
                started_at=positions.started_at,
            )
            place = Place(positions.incarnation, of, self.ingest_date)
            parts.append(Part(place, parsed.good, parsed.dead, parsed.payloads))
            write_part(parts[-1], self.folder)
        return _Batch(ranges, tuple(parts), min(m.time for m in messages))

    def _land(self, batch: _Batch) -> None:
        """Steps 2 to 4."""
        positions = self._positions
        assert positions is not None
        ends = {of.partition: of.end for of in batch.ranges}
        good, bad, left_out = _counts(batch.parts)
        told = {
            **self.told,
            "source": _source(positions.incarnation, batch.ranges),
            "rows_read": good + bad,
            "rows_written": good,
            "quarantined": bad,
            "values_left_out": left_out,
        }
        files = land_parts(self.lake, positions, batch.parts, ends, self.folder, told)
        of_database = {(positions.incarnation, p): end for p, end in ends.items()}
        sink = self._open_sink()
        inserted = sink.insert(batch.parts, of_database)
        sink.connection.commit()
        self.commit_at_broker()
        waited = 0.0
        if batch.oldest is not None:
            now = datetime.now(UTC).replace(tzinfo=None)
            waited = max(0.0, (now - batch.oldest).total_seconds())
        self.landed = replace(
            self.landed,
            batches=self.landed.batches + 1,
            files=(*self.landed.files, *files),
            oldest_s=max(self.landed.oldest_s, waited),
        )
        self._count(batch.parts, inserted)

    def _count(self, parts: Sequence[Part], inserted: int, *, recovered: bool = False) -> None:
        good, bad, left_out = _counts(parts)
        told = self.landed.reason
        self.landed = replace(
            self.landed,
            good=self.landed.good + good,
            bad=self.landed.bad + bad,
            left_out=self.landed.left_out + left_out,
            reason=(told if self.landed.bad else None)
            or _first_reason([part.letters for part in parts])
            or told
            or _first_reason([part.dead for part in parts]),
            inserted=self.landed.inserted + inserted,
            recovered=self.landed.recovered + (good + bad if recovered else 0),
        )
        if self.report is not None:
            self.report(self.landed)

    def commit_at_broker(self) -> None:
        """Commit the lake's positions for the group."""
        if (at := self._positions) is not None:
            self.broker.commit(TOPIC, GROUP, at.positions, incarnation=at.incarnation)

    def lag(self) -> dict[int, int]:
        """Offsets by partition that have not landed; nothing where there is no broker."""
        living = self.living()
        if living is None:
            return {}
        watermarks = self.broker.watermarks(TOPIC)
        positions = read_positions(self.lake, living.id, watermarks)
        return {
            p: mark.high - max(mark.low, positions.get(p, 0))
            for p, mark in sorted(watermarks.items())
        }


def _counts(parts: Sequence[Part]) -> tuple[int, int, int]:
    """Rows, dead letters, and values that rows are without."""
    good = sum(part.good.num_rows for part in parts)
    bad = sum(part.letters.num_rows for part in parts)
    return good, bad, sum(part.dead.num_rows for part in parts) - bad


def _source(incarnation: str, ranges: Iterable[Range]) -> str:
    """What was read, for the history."""
    shown = ",".join(f"{of.partition}:{of.start}-{of.end}" for of in ranges)
    return f"{TOPIC}, incarnation {incarnation}: {shown}"


def _first_reason(tables: "Iterable[pa.Table]") -> str | None:
    return next((t.column("reason")[0].as_py() for t in tables if t.num_rows), None)


def _size(ranges: Mapping[int, tuple[int, int]]) -> int:
    return sum(end - start for start, end in ranges.values())

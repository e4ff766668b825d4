"""How far a topic has landed in the lake, and what comes next.

Here: positions, which are transactions of the table of messages; what the name of a file of
messages says; plans. Not here: what lands (sinks.py), reading from the broker (batches.py).

The position of a partition, the next offset to land, is part of the very commit that adds the rows
before it: no other state has to agree with the table. Ranges without rows, which are dead letters
or Kafka's own marks, are a commit of positions alone.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from retail_assets.errors import TransientError
from retail_assets.feeds.stream import StreamFeed
from retail_assets.resources.broker.resource import Incarnation, LostMessagesError, Watermark
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.tables import NewFile

_EPOCH = datetime(1970, 1, 1)
_STEP = timedelta(microseconds=1)
# Offsets by partition, [start, end).
Ranges = Mapping[int, tuple[int, int]]


class BrokerBehindError(TransientError):
    """The broker has fewer messages than have landed."""


class Place(NamedTuple):
    """Offsets of a partition, from ``start`` up to ``end``, and the day on which they landed."""

    incarnation: str
    partition: int
    start: int
    end: int
    ingest_date: str

    def file_name(self, topic: str, token: str) -> str:
        """Name of a file of it below its table's folder; ``token`` tells it from all others."""
        # An incarnation may begin with _ or -: some engines would take its files for hidden ones.
        where = f"m-{self.incarnation}-{topic}-{self.partition}-{self.start}-{self.end}"
        return f"ingest_date={self.ingest_date}/{where}.{token}.parquet"

    @classmethod
    def of_file(cls, topic: str, name: str) -> "Place | None":
        """What a file's name says; None of one that is not ours."""
        found = re.search(
            r"ingest_date=(\d{4}-\d\d-\d\d)/m-([^/]+)-"
            rf"{re.escape(topic)}-(\d+)-(\d+)-(\d+)\.[^./]+\.parquet\Z",
            name,
        )
        if found is None:
            return None
        date, incarnation, partition, start, end = found.groups()
        return cls(incarnation, int(partition), int(start), int(end), date)


class LakePositions:
    """How far an incarnation of a topic has landed: the next offset of each of its partitions.

    ``started_at`` is when it began, naive UTC; the first commit says so. Where nobody knows when it
    did, it is ``now``, and after all others: a clock that was set back must not make a later
    topic's messages earlier ones.
    """

    def __init__(
        self,
        feed: StreamFeed,
        lake: LakeResource,
        incarnation: Incarnation,
        watermarks: Mapping[int, Watermark],
        now: datetime | None = None,
    ) -> None:
        self.incarnation = incarnation.id
        self._topic, self._table = feed.topic, lake.table(feed.messages)
        self._start, self._latest = f"{incarnation.id}/started_at", f"{feed.topic}/latest_start"
        names = {p: position_name(feed.topic, incarnation.id, p) for p in watermarks}
        found = self._table.transactions([self._latest, self._start, *names.values()])
        self._committed = found
        self.positions = {p: found[name] for p, name in names.items() if name in found}
        if self._start in found:
            self.started_at = _EPOCH + found[self._start] * _STEP
            return
        now = now or datetime.now(UTC).replace(tzinfo=None)
        later = _EPOCH + (found.get(self._latest, -1) + 1) * _STEP
        self.started_at = incarnation.started_at or max(now, later)
        if incarnation.started_at is None:
            # An embedded broker began at 0. Kafka's topic, of which we have never had anything,
            # begins with what there is.
            self.positions = {p: mark.low for p, mark in watermarks.items()}

    def commit(
        self, ends: Mapping[int, int], files: Sequence[NewFile], told: Mapping[str, object]
    ) -> None:
        """Add files of rows to the table, and move positions to ``ends``, at once.

        Raises:
            TransactionLostError: another drain landed meanwhile; nothing was added.
        """
        positions = self.positions | dict(ends)
        started = (self.started_at - _EPOCH) // _STEP
        numbers = {position_name(self._topic, self.incarnation, p): positions[p] for p in positions}
        numbers |= {
            self._start: started,
            self._latest: max(started, self._committed.get(self._latest, started)),
        }
        moved = {
            name: (self._committed.get(name), number)
            for name, number in numbers.items()
            if self._committed.get(name) != number
        }
        self._table.commit(files, told=told, transactions=moved)
        self._committed |= numbers
        self.positions = positions


def position_name(topic: str, incarnation: str, partition: int) -> str:
    """The transaction of the table of messages that is a partition's position."""
    return f"{incarnation}/{topic}/{partition}"


def plan_ranges(
    topic: str,
    positions: Mapping[int, int],
    watermarks: Mapping[int, Watermark],
    most_messages: int | None = None,
) -> Ranges:
    """What comes next, by partition: from its position to its high watermark.

    Of at most ``most_messages`` offsets each partition gets a fair share. A partition that has no
    position begins at 0; one that has nothing to read is left out.

    Raises:
        LostMessagesError: a low watermark is past the position.
        BrokerBehindError: a high watermark is before the position.
    """
    if lost := lost_ranges(positions, watermarks):
        offsets = ", ".join(
            f"offsets {start} to {end - 1} of partition {p}" for p, (start, end) in lost.items()
        )
        raise LostMessagesError(
            f"{topic}: the broker no longer has {offsets}, which have not landed. Replay their"
            " source and accept their loss (accept_loss), which goes on with what is there; give"
            " the topic a longer retention than consumers may be down."
        )
    waiting: dict[int, int] = {}
    for partition, mark in sorted(watermarks.items()):
        waiting[partition] = mark.high - positions.get(partition, 0)
        if waiting[partition] < 0:
            raise BrokerBehindError(
                f"{topic}, partition {partition}: expected at least the {positions[partition]}"
                f" offsets of which all has landed, found {mark.high}. A new leader may have to"
                " catch up: run this again. If it stays so, the broker has lost messages and would"
                " give their offsets to others: make the topic anew, which is another incarnation,"
                " and replay."
            )
    left = sum(waiting.values()) if most_messages is None else most_messages
    ranges: dict[int, tuple[int, int]] = {}
    todo = sorted((p for p in waiting if waiting[p]), key=lambda p: waiting[p])
    for at, partition in enumerate(todo):
        share = min(waiting[partition], left // (len(todo) - at))
        left -= share
        if share:
            start = positions.get(partition, 0)
            ranges[partition] = (start, start + share)
    return dict(sorted(ranges.items()))


def lost_ranges(positions: Mapping[int, int], watermarks: Mapping[int, Watermark]) -> Ranges:
    """What has not landed and is no longer in the broker."""
    return {
        p: (positions.get(p, 0), mark.low)
        for p, mark in sorted(watermarks.items())
        if positions.get(p, 0) < mark.low
    }


def shown(ranges: Ranges) -> str:
    """Ranges in short: partition, start and end of each."""
    return ",".join(f"{p}:{start}-{end}" for p, (start, end) in sorted(ranges.items()))

"""How far the topic has landed in the lake, and what comes next.

Here: positions, which are transactions of the table of messages; what the name of a file of
messages says; plans. Not here: what lands (lake_sink.py), reading from the broker (batches.py).

The position of a partition, the next offset to land, is part of the very commit that adds the rows
before it: no other state has to agree with the table. Ranges without rows, which are dead letters
or Kafka's own marks, are a commit of positions alone.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from retail_assets.defs.supply_chain.contract import DOMAIN, MESSAGES, TOPIC
from retail_assets.errors import TransientError
from retail_assets.resources.broker.resource import LostMessagesError, Watermark
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.tables import NewFile

# Held by whoever lands messages.
LOCK = f"{DOMAIN}-{TOPIC}"
_LATEST_START = f"{TOPIC}/latest_start"
_EPOCH = datetime(1970, 1, 1)
_STEP = timedelta(microseconds=1)
# An incarnation may begin with _ or -: some engines would take its files for hidden ones.
_NAME = re.compile(
    rf"ingest_date=(?P<date>\d{{4}}-\d\d-\d\d)/m-(?P<incarnation>[^/]+)-{re.escape(TOPIC)}"
    r"-(?P<partition>\d+)-(?P<start>\d+)-(?P<end>\d+)\.[^./]+\.parquet\Z"
)


class BrokerBehindError(TransientError):
    """The broker has fewer messages than have landed."""


class Range(NamedTuple):
    """Offsets of a partition, from ``start`` up to ``end``, which is not of it."""

    partition: int
    start: int
    end: int


class Place(NamedTuple):
    """A range of an incarnation of the topic, and the day on which it landed (YYYY-MM-DD)."""

    incarnation: str
    range: Range
    ingest_date: str

    def file_name(self, token: str) -> str:
        """Name of a file of it below its table's folder; ``token`` tells it from all others."""
        partition, start, end = self.range
        return (
            f"ingest_date={self.ingest_date}/"
            f"m-{self.incarnation}-{TOPIC}-{partition}-{start}-{end}.{token}.parquet"
        )

    @classmethod
    def of_file(cls, name: str) -> "Place | None":
        """What a file's name says; None of one that is not ours."""
        found = _NAME.search(name)
        if found is None:
            return None
        numbers = (int(found[name]) for name in Range._fields)
        return cls(found["incarnation"], Range(*numbers), found["date"])


class LakePositions:
    """How far an incarnation has landed in the lake: the next offset of each of ``partitions``.

    ``started_at`` is when it began, naive UTC; None before ``begin``, where nothing of it landed.
    """

    def __init__(self, lake: LakeResource, incarnation: str, partitions: Iterable[int]) -> None:
        self.incarnation = incarnation
        self._table = lake.table(MESSAGES)
        self._start = f"{incarnation}/started_at"
        names = {p: position_name(incarnation, p) for p in partitions}
        self._committed = self._table.transactions([_LATEST_START, self._start, *names.values()])
        self.positions = {
            p: self._committed[name] for p, name in names.items() if name in self._committed
        }
        started = self._committed.get(self._start)
        self.started_at = None if started is None else _EPOCH + started * _STEP

    def begin(
        self, started_at: datetime | None, now: datetime, positions: Mapping[int, int]
    ) -> None:
        """Have the incarnation begin at ``positions``; the first commit says so.

        Where nobody knows when it did, it is ``now``, and after all others: a clock that was set
        back must not make a later topic's messages earlier ones.
        """
        latest = self._committed.get(_LATEST_START)
        if latest is not None:
            now = max(now, _EPOCH + (latest + 1) * _STEP)
        self.started_at = started_at or now
        self.positions = dict(positions)

    def commit(
        self, ends: Mapping[int, int], files: Sequence[NewFile], told: Mapping[str, object]
    ) -> None:
        """Add files of rows to the table, and move positions to ``ends``, at once.

        Raises:
            TransactionLostError: another drain landed meanwhile; nothing was added.
        """
        assert self.started_at is not None
        positions = self.positions | dict(ends)
        started = (self.started_at - _EPOCH) // _STEP
        latest = max(started, self._committed.get(_LATEST_START, started))
        numbers = {position_name(self.incarnation, p): at for p, at in positions.items()}
        numbers |= {self._start: started, _LATEST_START: latest}
        moved = {
            name: (self._committed.get(name), number)
            for name, number in numbers.items()
            if self._committed.get(name) != number
        }
        self._table.commit(files, told=told, transactions=moved)
        self._committed |= numbers
        self.positions = positions


def position_name(incarnation: str, partition: int) -> str:
    """The transaction of the table of messages that is a partition's position."""
    return f"{incarnation}/{TOPIC}/{partition}"


def read_positions(
    lake: LakeResource, incarnation: str, partitions: Iterable[int]
) -> dict[int, int]:
    """Next offset by partition, of those partitions of the incarnation of which any has landed."""
    return LakePositions(lake, incarnation, partitions).positions


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


def _describe(ranges: Iterable[Range]) -> str:
    return ", ".join(
        f"offsets {of.start} to {of.end - 1} of partition {of.partition}" for of in ranges
    )

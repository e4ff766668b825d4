"""Producing to a topic: acknowledged in order, and on the embedded broker no faster than consumed.

Here: sending, counting what was delivered, waiting for the consumer. Not here: what a message says
(defs/), connections (clients.py).
"""

import json
import logging
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.broker.clients import (
    CONNECT_S,
    BrokerRefusedError,
    Clients,
    Heard,
    LostMessagesError,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

    from confluent_kafka import Consumer, KafkaError, KafkaException, Message
    from confluent_kafka.admin import AdminClient

PARTITIONS = 4
STALLED_AFTER_S = 600.0
# The embedded broker keeps 5 MiB a partition: room for two producers, each of which counts its own.
_MOST_UNCOMMITTED_BYTES = 5 * 1024**2 // 2
_STATISTICS_MS = 25
_CONNECT_PAUSE_S = 0.03
_LOOK_S = 0.03
_WARN_AFTER_S = 5.0
_ABANDON_S = 5.0
_POLL_EVERY = 0xFF
_log = logging.getLogger(__name__)


class DeliveryError(TransientError):
    """The broker did not take a message in time."""


class RefusedMessageError(PermanentError):
    """The broker will never take a message: too large, or not allowed."""


class StalledConsumerError(PermanentError):
    """The embedded broker is full, and nobody consumes."""


class Room:
    """Bytes in each partition that the consumer has not committed yet; in all never too few.

    The client counts compressed bytes for all partitions together: those of a while are shared
    out by what each partition was sent uncompressed, which is an estimate. What it may not have
    counted yet is taken as if it did not compress.
    """

    def __init__(
        self, topic: str, next_offsets: Sequence[int], most: int = _MOST_UNCOMMITTED_BYTES
    ) -> None:
        partitions = len(next_offsets)
        self._topic = topic
        self._most = most
        self._shares = [0.0] * partitions
        self._compressed = 0
        self._sent = [0] * partitions
        self._arrived = [0] * partitions
        self._arrived_before = [0] * partitions
        self._counted = [0] * partitions
        self._known = [0] * partitions
        self._held = [0.0] * partitions
        self._entries: list[deque[tuple[int, float]]] = [deque() for _ in range(partitions)]
        self._unacknowledged = [0] * partitions
        self._next = list(next_offsets)

    def is_full(self, partition: int, size: int) -> bool:
        """Whether a message of ``size`` bytes has to wait; never where the partition is empty."""
        taken = self.taken(partition)
        return taken > 0 and taken + size > self._most

    def taken(self, partition: int) -> float:
        """Bytes that are there or on their way; what is sent twice, after a lost answer, twice."""
        return self._held[partition] + self._sent[partition] - self._known[partition]

    def send(self, partition: int, size: int) -> None:
        """A message is on its way."""
        self._sent[partition] += size
        self._unacknowledged[partition] += 1

    def acknowledge(self, partition: int, size: int, offset: int) -> None:
        """A message has arrived, as ``offset``."""
        self._arrived[partition] += size
        self._unacknowledged[partition] -= 1
        self._next[partition] = offset + 1

    def hold(self, partition: int, until: int, size: float) -> None:
        """The partition has ``size`` more compressed bytes, in messages before offset ``until``."""
        self._held[partition] += size
        self._entries[partition].append((until, size))

    def count(self, statistics: str) -> None:
        """Take the client's statistics in: what was sent since the last."""
        told = json.loads(statistics)
        found = told["topics"].get(self._topic, {"partitions": {}})["partitions"]
        counted = [found.get(str(p), {"txbytes": 0})["txbytes"] for p in range(len(self._sent))]
        new = [now - before for now, before in zip(counted, self._counted, strict=True)]
        if any(new):  # else the rest of what was being sent at the last count
            self._shares = [size / sum(new) for size in new]
        sent = sum(broker["txbytes"] for broker in told["brokers"].values())
        compressed = sent - self._compressed
        for partition, share in enumerate(self._shares):
            if share * compressed > 0:
                until = self._next[partition] + self._unacknowledged[partition]
                self.hold(partition, until, share * compressed)
        self._counted, self._compressed = counted, sent
        # A message is counted for its partition before its bytes are, when they are written; and
        # an answer may come while the statistics are made. What had arrived by the ones before was
        # written when these were made.
        self._known = list(map(min, self._arrived_before, counted))
        self._arrived_before = list(self._arrived)

    def release(self, committed: Mapping[int, int]) -> bool:
        """Forget what was consumed; whether there was any."""
        released = False
        for partition, position in committed.items():
            entries = self._entries[partition]
            while entries and entries[0][0] <= position:
                self._held[partition] -= entries.popleft()[1]
                released = True
            if not entries:
                self._held[partition] = 0.0
        return released


class Producer:
    """Sends messages to one topic, for one thread. Equal keys go to one partition, in order.

    Each message arrives once, also where the broker restarts meanwhile.
    """

    def __init__(
        self,
        clients: Clients,
        topic: str,
        partitions: int,
        room: Room | None,
        watch: "Watch | None",
    ) -> None:
        from confluent_kafka import KafkaException
        from confluent_kafka import Producer as Client

        self._refused = KafkaException  # for send, which runs for every message
        self.sent = 0
        self._clients = clients
        self._topic = topic
        self._partitions = partitions
        self._room = room
        self._watch = watch
        self._heard = Heard()
        self._failure: KafkaError | None = None
        self._failed: set[int] = set()
        # Of each partition, number and size of the messages that are not acknowledged yet.
        self._pending: list[deque[tuple[int, int]]] = [deque() for _ in range(partitions)]
        self._told = [self._acknowledged(partition) for partition in range(partitions)]
        ours: dict[str, Any] = {"enable.idempotence": True, "error_cb": self._heard}
        if room is not None:
            ours |= {"statistics.interval.ms": _STATISTICS_MS, "stats_cb": room.count}
        # Batches of many messages compress best; the options may say otherwise.
        tuned = {
            "compression.type": "zstd",
            "linger.ms": "20",
            "batch.size": "1000000",
            "queue.buffering.max.kbytes": "65536",
            # The embedded broker is in this machine: where it is silent, it has ended.
            "message.timeout.ms": "15000" if clients.embedded else "300000",
        }
        with clients.told_about_options():
            self._client = Client(tuned | clients.settings(ours))
        # Unless it is connected by the first message, it asks for its id again after 500 ms only.
        time.sleep(_CONNECT_PAUSE_S)

    @property
    def delivered(self) -> int:
        """The broker has all of the first so many messages that were sent."""
        return min((pending[0][0] for pending in self._pending if pending), default=self.sent)

    def send(self, key: bytes, value: bytes) -> None:
        """Send a message; returns before it has arrived.

        Raises:
            DeliveryError: an earlier message did not arrive in time.
            RefusedMessageError: the broker does not take this one, or an earlier one.
            StalledConsumerError: the embedded broker is full, and nobody consumes.
        """
        if self._failure is not None:
            raise self._as_error(self._failure)
        partition = zlib.crc32(key) % self._partitions  # as librdkafka's own "consistent"
        size = len(key) + len(value)
        if self._room is not None:
            if self._room.is_full(partition, size):
                self._wait(partition, size)
            self._room.send(partition, size)
        told = self._told[partition]
        while True:
            try:
                self._client.produce(self._topic, value, key, partition, told)
            except BufferError:  # its queue is full
                self._client.poll(0.05)
                if self._failure is not None:
                    raise self._as_error(self._failure) from None
            except self._refused as error:
                raise self._as_error(error.args[0]) from error
            else:
                break
        self._pending[partition].append((self.sent, size))
        self.sent += 1
        if not self.sent & _POLL_EVERY:
            self._client.poll(0)

    def flush(self) -> None:
        """Wait until all messages have arrived; raises as ``send`` does."""
        while self._client.flush(0.5) and self._failure is None:
            pass
        if self._failure is not None:
            raise self._as_error(self._failure)
        if self._watch is not None:
            self._watch.look()

    def abandon(self) -> None:
        """Give up what is not on its way yet, and soon the rest; then ``delivered`` is final."""
        self._client.purge(in_flight=False)
        if self._client.flush(_ABANDON_S):
            self._client.purge()  # or else to close it would wait for them
            self._client.flush(_ABANDON_S)

    def close(self) -> None:
        """End the client."""
        self._client.close()

    def _acknowledged(self, partition: int) -> "Callable[[KafkaError | None, Message], None]":
        from confluent_kafka import KafkaError

        pending, room = self._pending[partition], self._room
        given_up = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)

        def told(error: "KafkaError | None", message: "Message") -> None:
            # Within a partition they arrive in order, and after one that did not, none counts.
            if error is not None and error.code() in given_up:
                pass  # what was sent before it may still arrive
            elif error is not None:
                self._failure = self._failure or error
                self._failed.add(partition)
            elif partition not in self._failed:
                _, size = pending.popleft()
                if room is not None:
                    room.acknowledge(partition, size, message.offset() or 0)

        return told

    def _wait(self, partition: int, size: int) -> None:
        """Until the consumer has made room."""
        assert self._room is not None and self._watch is not None
        self._watch.begin()
        while self._room.is_full(partition, size):
            self._client.poll(0.01)
            if self._failure is not None:
                raise self._as_error(self._failure)
            self._watch.wait(self._room)

    def _as_error(self, error: "KafkaError") -> Exception:
        from confluent_kafka import KafkaError

        place = f"{self._topic} at {self._clients.servers}"
        reason = self._heard.refusal or error
        late = (KafkaError._MSG_TIMED_OUT, KafkaError._TIMED_OUT)
        if error.code() in late and self._heard.refusal is None:
            heard = f" ({self._heard.last.str()})" if self._heard.last else ""
            return DeliveryError(
                f"{place}: the first {self.delivered:,} of {self.sent:,} messages arrived, then"
                f" {error.str()}{heard}. Look at the broker, and send the others again."
            )
        failure = self._clients.failure(reason, f"producing to {self._topic}")
        if isinstance(failure, BrokerRefusedError):
            return failure
        kind = DeliveryError if error.retriable() else RefusedMessageError
        return kind(
            f"{place}: expected every message to be taken, found one refused after the first"
            f" {self.delivered:,} of {self.sent:,}: {error.str()}. Look at the message, and at the"
            " topic's settings."
        )


class Watch:
    """What the consumer of the embedded broker does, looked at while a producer waits for it."""

    def __init__(
        self,
        clients: Clients,
        consumer: "Consumer",
        topic: str,
        group: str,
        stalled_after_s: float,
        on_wait: Callable[[float], None] | None,
    ) -> None:
        self._clients = clients
        self._consumer = consumer
        self._topic = topic
        self._group = group
        self._stalled_after_s = stalled_after_s
        self._on_wait = on_wait
        self._looked = self._progress = time.monotonic()
        self._has_warned = False

    def begin(self) -> None:
        """A producer begins to wait."""
        self._progress = time.monotonic()
        self._has_warned = False

    def wait(self, room: Room) -> None:
        """Look, if it is time; tell who waits how long nothing was consumed.

        Raises:
            StalledConsumerError: for longer than it may be.
            LostMessagesError: messages vanished before they were consumed.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        if room.release(self.look()):
            self._progress = now
        idle = now - self._progress
        if self._on_wait is not None:
            self._on_wait(idle)
        elif idle > _WARN_AFTER_S and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "The embedded broker is full; waiting for %s to be consumed, for %.0f s at most.",
                self._topic,
                self._stalled_after_s,
            )
        if idle > self._stalled_after_s:
            raise StalledConsumerError(
                f"the embedded broker is full, and nothing of {self._topic} was consumed for"
                f" {idle:.0f} s: expected the group {self._group} to commit. Start what consumes"
                " it (retail-assets dev, or run supply_chain), then stream the file again."
            )

    def look(self) -> dict[int, int]:
        """Next offsets that the consumer committed; raises LostMessagesError."""
        committed = self._clients.committed(self._consumer, self._topic, self._group)
        for partition, (low, _) in self._clients.watermarks(self._consumer, self._topic).items():
            if low > committed.get(partition, 0):
                raise LostMessagesError(
                    f"{self._topic}, partition {partition}: the embedded broker has dropped"
                    f" messages before offset {low}, expected it to keep them from"
                    f" {committed.get(partition, 0)} on until they are consumed. Stream to it with"
                    " one retail-assets stream at a time, or set RETAIL_KAFKA to a real broker;"
                    " then stream the files again."
                )
        return committed


@contextmanager
def open_producer(
    clients: Clients,
    topic: str,
    group: str,
    stalled_after_s: float,
    on_wait: Callable[[float], None] | None,
) -> Iterator[Producer]:
    """A producer to a topic, which is made where it is not there; ``BrokerResource.producer``."""
    with clients.consumer(group) as consumer:
        partitions = clients.partitions(consumer, topic)
        if not partitions:
            if not clients.embedded:  # there it appears by the first message
                _create(clients, topic)
                partitions = _await_topic(clients, consumer, topic)
            partitions = partitions or list(range(PARTITIONS))
        room = watch = None
        if clients.embedded:
            watch = Watch(clients, consumer, topic, group, stalled_after_s, on_wait)
            room = _reckon_backlog(clients, consumer, topic, partitions, watch.look())
        producer = Producer(clients, topic, len(partitions), room, watch)
        try:
            yield producer
            producer.flush()
        except BaseException:
            producer.abandon()
            raise
        finally:
            producer.close()


def _create(clients: Clients, topic: str) -> None:
    """Make the topic, unless somebody else has."""
    from confluent_kafka import KafkaException
    from confluent_kafka.cimpl import NewTopic

    def ask(admin: "AdminClient") -> "Future[None]":
        wanted = NewTopic(topic, PARTITIONS)  # replicated as the broker does by default
        return admin.create_topics([wanted], request_timeout=CONNECT_S)[topic]

    try:
        clients.administer(f"making the topic {topic}", ask)
    except (PermanentError, TransientError) as error:
        cause = error.__cause__
        if not isinstance(cause, KafkaException) or not _is_there_already(cause):
            raise


def _is_there_already(error: "KafkaException") -> bool:
    from confluent_kafka import KafkaError

    return bool(error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS)


def _await_topic(clients: Clients, consumer: "Consumer", topic: str) -> list[int]:
    """Partitions of a topic that was just made: the brokers learn of it one by one."""
    deadline = time.monotonic() + CONNECT_S
    while not (partitions := clients.partitions(consumer, topic)):
        if time.monotonic() > deadline:
            raise DeliveryError(
                f"{topic} at {clients.servers} was made, and is not listed after"
                f" {CONNECT_S:.0f} s. Run this again."
            )
        time.sleep(0.05)
    return partitions


def _reckon_backlog(
    clients: Clients,
    consumer: "Consumer",
    topic: str,
    partitions: Sequence[int],
    committed: Mapping[int, int],
) -> Room:
    """Room beside what earlier producers left unconsumed, which is read to find out its size."""
    present = clients.watermarks(consumer, topic)
    ends = {p: present[p][1] if p in present else 0 for p in partitions}
    room = Room(topic, [ends[p] for p in partitions])
    backlog = {p: (committed.get(p, 0), ends[p]) for p in partitions}
    if all(start >= end for start, end in backlog.values()):
        return room
    # Taken as if it had not been compressed: what was read does not say how it lies there.
    raw: Counter[int] = Counter()
    with clients.consumer("retail-assets-backlog") as reader:
        for batch in clients.fetch(reader, topic, backlog):
            for message in batch:
                raw[message.partition() or 0] += len(message)
    for partition, size in raw.items():
        room.hold(partition, ends[partition], size)
    return room

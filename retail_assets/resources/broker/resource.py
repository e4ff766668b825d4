"""The broker that order events go through: embedded, or Apache Kafka.

Here: what a topic has (watermarks, what was committed, its incarnation), reading ranges of it,
producing to it. Not here: what a message says, and when it has landed (defs/supply_chain).

The embedded one is librdkafka's own, for one machine: it keeps 5 MiB a partition and drops older
messages without a word, so that producers wait for the consumer; it lives as long as the process
that started it, and then begins anew at offset 0. Hence a message's identity has the incarnation.
"""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import dagster as dg

from retail_assets.resources.broker import embedded
from retail_assets.resources.broker.clients import (
    CONNECT_S,
    RESERVED_OPTIONS,
    BrokerRefusedError,
    BrokerUnreachableError,
    Clients,
    CommitRefusedError,
    LostMessagesError,
    ReplacedTopicError,
    UnknownTopicError,
)
from retail_assets.resources.broker.embedded import EmbeddedBrokerError
from retail_assets.resources.broker.producer import (
    STALLED_AFTER_S,
    DeliveryError,
    Producer,
    RefusedMessageError,
    StalledConsumerError,
    open_producer,
)
from retail_assets.settings import Settings, variable_name

if TYPE_CHECKING:
    from concurrent.futures import Future

    from confluent_kafka import Message as ClientMessage
    from confluent_kafka.admin import AdminClient

__all__ = [
    "EMBEDDED",
    "BrokerRefusedError",
    "BrokerResource",
    "BrokerUnreachableError",
    "CommitRefusedError",
    "DeliveryError",
    "EmbeddedBrokerError",
    "Incarnation",
    "LostMessagesError",
    "Message",
    "Producer",
    "RefusedMessageError",
    "ReplacedTopicError",
    "StalledConsumerError",
    "UnknownTopicError",
    "Watermark",
]

EMBEDDED = "embedded"
_EPOCH = datetime(1970, 1, 1)
_LAST_MS = 253_402_300_799_999  # of the year 9999
# A group of its own on the embedded broker: there a group that once had members, such as a
# consumer started by hand, takes no commit without joining for as long as the broker lives.
_EMBEDDED_SUFFIX = ".assigned"


class Message(NamedTuple):
    """A message of a topic; ``time`` is the broker's, naive UTC."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    time: datetime


class Watermark(NamedTuple):
    """First offset of a partition that is there, and the next to be written."""

    low: int
    high: int


@dataclass(frozen=True)
class Incarnation:
    """Which of the topics that had this name in turn: 32 hex digits, and naive UTC.

    Kafka does not tell when a topic was made: there ``started_at`` is None.
    """

    id: str
    started_at: datetime | None


class BrokerResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The Kafka of the topics (RETAIL_KAFKA).

    ``servers`` are HOST:PORT of brokers, or ``embedded``, which is found by ``home``.

    ``options`` is a JSON object of librdkafka's settings, for a login: nothing shows its values.
    """

    servers: str
    home: str
    options: str = ""

    @classmethod
    def of(cls, settings: Settings) -> "BrokerResource":
        """The broker that the settings name."""
        options = settings.kafka_options.get_secret_value()
        # Dagster shows a resource's values in the UI; of a variable, its name.
        variable = dg.EnvVar(variable_name("kafka_options"))
        if options and variable.get_value() == options:
            options = variable
        return cls(servers=settings.kafka, home=str(settings.home), options=options)

    @property
    def is_embedded(self) -> bool:
        """Whether it lives in a process of ours."""
        return self.servers == EMBEDDED

    @property
    def address(self) -> str:
        """Where clients connect; starts the embedded broker in this process if there is none.

        Raises:
            EmbeddedBrokerError: it did not start.
        """
        return self._clients().servers

    @property
    def running(self) -> bool:
        """Whether there is a broker to ask: an embedded one may not be; none is started."""
        return not self.is_embedded or embedded.find(Path(self.home)) is not None

    def incarnation(self, topic: str) -> Incarnation:
        """Which incarnation of the topic is there now.

        Raises:
            UnknownTopicError: Kafka has no such topic. An embedded broker has them all.
            BrokerUnreachableError, BrokerRefusedError: as for every question.
        """
        if self.is_embedded:
            found = embedded.ensure(Path(self.home))
            return Incarnation(found.incarnation, found.started_at)

        def ask(admin: "AdminClient") -> "Future[Any]":
            from confluent_kafka import TopicCollection

            asked = TopicCollection([topic])
            return admin.describe_topics(asked, request_timeout=CONNECT_S)[topic]

        described = self._clients().administer(f"describing {topic}", ask)
        return Incarnation(base64.urlsafe_b64decode(f"{described.topic_id}==").hex(), None)

    def watermarks(self, topic: str) -> dict[int, Watermark]:
        """Watermarks by partition; none where the topic is not there (yet)."""
        clients = self._clients()
        with clients.consumer("retail-assets-watermarks") as consumer:
            found = clients.watermarks(consumer, topic)
        return {partition: Watermark(*offsets) for partition, offsets in found.items()}

    def committed(self, topic: str, group: str) -> dict[int, int]:
        """Next offset by partition, of those partitions for which the group has committed one."""
        clients = self._clients()
        group = self._own(group)
        with clients.consumer(group) as consumer:
            return clients.committed(consumer, topic, group)

    def commit(
        self,
        topic: str,
        group: str,
        positions: Mapping[int, int],
        *,
        incarnation: str | None = None,
    ) -> None:
        """Commit next offsets, and wait for the answer.

        Raises:
            CommitRefusedError: the group has members, which alone may commit (Kafka only).
            ReplacedTopicError: ``incarnation`` is given, and the topic is another by now.
        """
        if positions:
            self._require(topic, incarnation)
            self._clients().commit(topic, self._own(group), positions)

    def read(
        self,
        topic: str,
        ranges: Mapping[int, tuple[int, int]],
        *,
        most_messages: int,
        most_bytes: int,
        incarnation: str | None = None,
    ) -> Iterator[list[Message]]:
        """Every message of the half-open ranges of offsets, a list at a time.

        A list has at most ``most_messages``, and ``most_bytes`` of keys and values unless one
        message alone has more; within a partition by offset. The reader joins no group. Where
        ``incarnation`` is given, every list is known to be of it.

        Raises:
            LostMessagesError: a range begins before what is still there, or ends after it.
            UnknownTopicError: a partition is not there.
            ReplacedTopicError: the topic is of another incarnation.
            BrokerUnreachableError: the broker went away.
        """
        self._require(topic, incarnation)
        clients = self._clients()
        chunk: list[Message] = []
        size = 0
        times: dict[int, datetime] = {}
        with clients.consumer("retail-assets-reader") as consumer:
            for batch in clients.fetch(consumer, topic, ranges):
                if len(times) > most_messages:
                    times.clear()
                for found in batch:
                    length = len(found) + len(found.key() or b"")
                    if chunk and (len(chunk) >= most_messages or size + length > most_bytes):
                        self._require(topic, incarnation)
                        yield chunk
                        chunk, size = [], 0
                    chunk.append(_message(found, times))
                    size += length
            if chunk:
                self._require(topic, incarnation)
                yield chunk

    def producer(
        self,
        topic: str,
        group: str,
        *,
        stalled_after_s: float = STALLED_AFTER_S,
        on_wait: Callable[[float], None] | None = None,
    ) -> AbstractContextManager[Producer]:
        """A producer to the topic, which Kafka is asked to make where it is not there.

        At the end of the block all messages have arrived; after an error, ``delivered`` says how
        many. On the embedded broker ``send`` waits while 2.5 MiB of a partition are not committed
        by ``group``: then ``on_wait`` is called many times a second with the seconds without any
        progress, and may raise to stop; without it a warning is logged.

        Raises:
            StalledConsumerError: from ``send``, after ``stalled_after_s`` without progress.
            LostMessagesError: the embedded broker dropped messages before they were consumed.
            DeliveryError, RefusedMessageError: from ``send``, ``flush`` and at the end.
        """
        group = self._own(group)
        return open_producer(self._clients(), topic, group, stalled_after_s, on_wait)

    def _own(self, group: str) -> str:
        return f"{group}{_EMBEDDED_SUFFIX}" if self.is_embedded else group

    def _require(self, topic: str, incarnation: str | None) -> None:
        if incarnation is None:
            return
        found = self.incarnation(topic).id
        if found != incarnation:
            raise ReplacedTopicError(
                f"{topic}: expected incarnation {incarnation}, found {found}: the topic was made"
                " anew, or the process that owned the embedded broker has ended. Run this again:"
                " it begins with what is there now."
            )

    def _clients(self) -> Clients:
        if self.is_embedded:
            return Clients(embedded.ensure(Path(self.home)).address, embedded=True)
        return Clients(self.servers, embedded=False, options=self._options())

    def _options(self) -> dict[str, str]:
        text = self.options
        if isinstance(text, dg.EnvVar):  # outside of a run Dagster does not look it up
            text = text.get_value() or ""
        if not text:
            return {}
        options: dict[str, str] = json.loads(text)
        reserved = sorted(RESERVED_OPTIONS & options.keys())
        if reserved:
            raise BrokerRefusedError(
                "RETAIL_KAFKA_OPTIONS: expected settings for a login or for speed, found"
                f" {', '.join(reserved)}, on which exactly-once delivery rests. Leave it out."
            )
        return options


def _message(found: "ClientMessage", times: dict[int, datetime]) -> Message:
    milliseconds = found.timestamp()[1]
    time = times.get(milliseconds)  # many have the same: a batch is stamped as one
    if time is None:
        # A producer may claim any; what is no time is shown as the earliest.
        known = milliseconds if 0 <= milliseconds <= _LAST_MS else 0
        time = times[milliseconds] = _EPOCH + timedelta(milliseconds=known)
    partition, offset = found.partition(), found.offset()
    assert partition is not None and offset is not None  # only a message not sent yet has none
    return Message(partition, offset, found.key(), found.value(), time)

"""Clients of a broker: how they are set up, how they fetch, and what their errors mean.

Here: what embedded broker and real Kafka have in common, below the resource. Not here: where the
broker is (resource.py, embedded.py), producing (producer.py).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from retail_assets.errors import PermanentError, TransientError

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
    from confluent_kafka.admin import AdminClient

_T = TypeVar("_T")

CONNECT_S = 10.0
_TRY_S = 1.0
_COMMIT_S = 30.0
# A request for more messages than come, as where there is a gap, takes so long.
_WAIT_S = 0.05
_MOST_AT_ONCE = 2_000
_BYTES_AT_ONCE = 4 * 1024**2
_FIRST_GUESS_BYTES = 40_000
_MOST_AHEAD_KB = 32 * 1024
# Ours, whatever RETAIL_KAFKA_OPTIONS says: on them rests that each message lands exactly once.
RESERVED_OPTIONS = frozenset(
    {
        "acks",
        "auto.offset.reset",
        "bootstrap.servers",
        "delivery.report.only.error",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.idempotence",
        "enable.partition.eof",
        "group.id",
        "isolation.level",
        "metadata.broker.list",
        "request.required.acks",
        "test.mock.num.brokers",
        "transactional.id",
    }
)


class BrokerUnreachableError(TransientError):
    """The broker does not answer."""


class BrokerRefusedError(PermanentError):
    """The broker, or its client, refuses what it was given: login, rights, settings."""


class UnknownTopicError(TransientError):
    """The topic, or a partition of it, is not there: not yet, or while a broker starts."""


class LostMessagesError(PermanentError):
    """Messages that were not read are no longer in the broker."""


class CommitRefusedError(TransientError):
    """The consumer group has members, which alone may commit for it."""


class ReplacedTopicError(TransientError):
    """The topic is another one than it was: deleted and made again, or the broker was."""


@dataclass(frozen=True)
class Clients:
    """Where a broker is, and the settings that its clients need; their values are never shown."""

    servers: str
    embedded: bool
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def most_silence_s(self) -> float:
        """Seconds without an expected message after which the broker has gone."""
        return 10.0 if self.embedded else 30.0  # a real one may restart meanwhile

    def settings(self, ours: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a client; the options come second to ours."""
        # Its log repeats what the errors say, for every try to connect.
        quiet = {"log_level": "2", "client.id": "retail-assets"}
        return quiet | dict(self.options) | {"bootstrap.servers": self.servers} | dict(ours)

    @contextmanager
    def consumer(self, group: str) -> "Iterator[Consumer]":
        """A consumer that is connected and member of no group.

        Raises:
            BrokerUnreachableError: nothing answers in time.
            BrokerRefusedError: the settings are not valid, or the broker refuses the login.
        """
        with self._heard_consumer(group) as (consumer, _):
            yield consumer

    @contextmanager
    def _heard_consumer(self, group: str) -> "Iterator[tuple[Consumer, Heard]]":
        from confluent_kafka import Consumer

        heard = Heard()
        settings = self.settings(
            {
                "group.id": group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "queued.max.messages.kbytes": _MOST_AHEAD_KB,
                # What is asked for is there: a longer wait only delays the next assignment.
                "fetch.wait.max.ms": 20,
                # Members must poll in time; this is none, and its reader may be slow.
                "max.poll.interval.ms": 86_400_000,
                "error_cb": heard,
                "on_commit": heard.commit,
            }
        )
        with self.told_about_options():
            consumer = Consumer(settings)
        try:
            self._connect(consumer, heard)
            yield consumer, heard
        finally:
            consumer.close()

    def _connect(self, consumer: "Consumer", heard: "Heard") -> None:
        from confluent_kafka import KafkaException

        deadline = time.monotonic() + CONNECT_S
        while True:
            try:
                # Of one topic only: a cluster may have thousands.
                consumer.list_topics("__consumer_offsets", timeout=_TRY_S)
            except KafkaException as error:
                consumer.poll(0)  # meanwhile its errors are heard
                reason = heard.refusal or heard.last or error.args[0]
                if heard.refusal is not None or time.monotonic() > deadline:
                    raise self.failure(reason, "connecting") from error
            else:
                return

    @contextmanager
    def told_about_options(self) -> Iterator[None]:
        """Say which options a client does not take, never their values."""
        from confluent_kafka import KafkaException

        try:
            yield
        except (KafkaException, ValueError, TypeError) as error:
            named = [name for name in sorted(self.options) if name in str(error)]
            raise BrokerRefusedError(
                "RETAIL_KAFKA_OPTIONS: expected settings that librdkafka knows, with values that"
                f" it takes; found {', '.join(named) or 'one'} that is not. Its documentation,"
                ' "Configuration properties", lists them.'
            ) from None

    def administer(self, doing: str, ask: "Callable[[AdminClient], Future[_T]]") -> _T:
        """The answer to a question, or a request, about topics; raises as ``consumer`` does."""
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        heard = Heard()
        with self.told_about_options():
            admin = AdminClient(self.settings({"error_cb": heard}))
        try:
            return ask(admin).result()
        except KafkaException as error:
            admin.poll(0)
            raise self.failure(heard.refusal or error.args[0], doing) from error

    def failure(self, error: "KafkaError", doing: str) -> Exception:
        """What a client's error means, as one of ours."""
        from confluent_kafka import KafkaError

        said = error.str().rstrip(".")
        where = f"RETAIL_KAFKA names {self.servers}" if not self.embedded else "the embedded broker"
        if error.code() in _refusals():
            return BrokerRefusedError(
                f"{where}: {doing} was refused: {said}. Look at RETAIL_KAFKA_OPTIONS, and at the"
                " rights of the user that it names: it must describe, read and write the topic, and"
                " read the consumer group."
            )
        if error.code() in (
            KafkaError.UNKNOWN_TOPIC_OR_PART,
            KafkaError._UNKNOWN_TOPIC,
            KafkaError._UNKNOWN_PARTITION,
        ):
            return UnknownTopicError(
                f"{where}: {doing} found no such topic or partition: {said}. Stream a file to it"
                " first, or look at what deleted it."
            )
        hint = (
            "Its owner has ended, and its messages with it; the next command starts another"
            if self.embedded
            else "Expected a broker that answers there; look at it, at the network and at"
            " RETAIL_KAFKA"
        )
        return BrokerUnreachableError(f"{where}: {doing} failed: {said}. {hint}.")

    def partitions(self, client: Any, topic: str) -> list[int]:
        """Partitions of a topic, in order; none where it is not there."""
        from confluent_kafka import KafkaError, KafkaException

        deadline = time.monotonic() + CONNECT_S
        while True:
            try:
                found = client.list_topics(topic, timeout=CONNECT_S).topics[topic]
            except KafkaException as error:
                raise self.failure(error.args[0], f"listing {topic}") from error
            if found.error is None:
                return sorted(found.partitions)
            code = found.error.code()
            if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
                return []
            if code != KafkaError.LEADER_NOT_AVAILABLE or time.monotonic() > deadline:
                raise self.failure(found.error, f"listing {topic}")
            time.sleep(0.1)

    def watermarks(self, consumer: "Consumer", topic: str) -> dict[int, tuple[int, int]]:
        """First offset that is there and the next to be written, by partition."""
        from confluent_kafka import KafkaException, TopicPartition

        try:
            return {
                partition: consumer.get_watermark_offsets(
                    TopicPartition(topic, partition), timeout=CONNECT_S
                )
                for partition in self.partitions(consumer, topic)
            }
        except KafkaException as error:
            raise self.failure(error.args[0], f"asking for the offsets of {topic}") from error

    def committed(self, consumer: "Consumer", topic: str, group: str) -> dict[int, int]:
        """Next offsets by partition that the consumer's group has committed."""
        from confluent_kafka import KafkaException, TopicPartition

        asked = [TopicPartition(topic, p) for p in self.partitions(consumer, topic)]
        if not asked:
            return {}
        try:
            found = consumer.committed(asked, timeout=CONNECT_S)
        except KafkaException as error:
            raise self.failure(error.args[0], f"asking what {group} has committed") from error
        for partition in found:
            if partition.error is not None:
                raise self.failure(partition.error, f"asking what {group} has committed")
        return {p.partition: p.offset for p in found if p.offset >= 0}

    def commit(self, topic: str, group: str, positions: Mapping[int, int]) -> None:
        """Commit next offsets for a group, and wait until the broker has them."""
        from confluent_kafka import KafkaError, TopicPartition

        offsets = [TopicPartition(topic, p, at) for p, at in sorted(positions.items())]
        with self._heard_consumer(group) as (consumer, heard):
            # Asynchronously, for the other way has no limit of time.
            consumer.commit(offsets=offsets, asynchronous=True)
            deadline = time.monotonic() + _COMMIT_S
            while not heard.commits:
                consumer.poll(0.01)
                if time.monotonic() > deadline:
                    raise BrokerUnreachableError(
                        f"{self.servers}: committing for {group} had no answer within"
                        f" {_COMMIT_S:.0f} s. Look at the broker, and run this again."
                    )
            error = heard.commits[-1]
        if error is None:
            return
        if error.code() in (
            KafkaError.UNKNOWN_MEMBER_ID,
            KafkaError.ILLEGAL_GENERATION,
            KafkaError.REBALANCE_IN_PROGRESS,
            KafkaError.FENCED_INSTANCE_ID,
        ):
            raise CommitRefusedError(
                f"the consumer group {group} has members, found in committing for {topic}"
                f" ({error.str()}); expected none: what landed is committed without joining. Stop"
                " the consumers that joined it; they belong in a group of their own."
            )
        raise self.failure(error, f"committing for {group}")

    def fetch(
        self, consumer: "Consumer", topic: str, ranges: Mapping[int, tuple[int, int]]
    ) -> "Iterator[list[Message]]":
        """Every message of the half-open ranges, a few MB at a time; by offset in a partition.

        Raises:
            LostMessagesError: a range is no longer there as a whole.
            UnknownTopicError: a partition is not there.
            BrokerUnreachableError: the broker went away.
        """
        from confluent_kafka import TopicPartition

        ends = {p: end for p, (start, end) in ranges.items() if start < end}
        if not ends:
            return
        positions = {p: ranges[p][0] for p in ends}
        self._require(topic, positions, ends, self.watermarks(consumer, topic))
        consumer.assign([TopicPartition(topic, p, at) for p, at in positions.items()])
        last_progress = time.monotonic()
        average = _FIRST_GUESS_BYTES
        while ends:
            left = sum(end - positions[p] for p, end in ends.items())
            most = max(1, min(left, _MOST_AT_ONCE, _BYTES_AT_ONCE // average))
            got = consumer.consume(most, timeout=_WAIT_S)
            batch, gaps = self._take(topic, got, positions, ends)
            if gaps:
                # Compaction and transactions leave gaps; what retention removes lies before low.
                self._require(topic, gaps, {}, self.watermarks(consumer, topic))
            if batch:
                average = max(1, sum(map(len, batch)) // len(batch))
                yield batch
            done = [p for p in positions if p not in ends]
            if done:
                consumer.incremental_unassign([TopicPartition(topic, p) for p in done])
                for partition in done:
                    del positions[partition]
            if got:
                last_progress = time.monotonic()  # after the reader had its time
            elif time.monotonic() - last_progress > (most_s := self.most_silence_s):
                raise BrokerUnreachableError(
                    f"{self.servers}: no message of {topic} came for {most_s:.0f} s; expected those"
                    f" of {_shown(positions, ends)}. Look at the broker, and run this again."
                )

    def _take(
        self,
        topic: str,
        got: "list[Message]",
        positions: dict[int, int],
        ends: dict[int, int],
    ) -> "tuple[list[Message], dict[int, int]]":
        """Messages within the ranges, which advance, and the first offset of each gap."""
        from confluent_kafka import KafkaError

        batch: list[Message] = []
        gaps: dict[int, int] = {}
        for message in got:
            partition, offset = message.partition(), message.offset()
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                    raise LostMessagesError(
                        f"{topic}: expected the messages of {_shown(positions, ends)}; found that"
                        f" the broker has them no more ({error.str()}). {_AFTER_A_LOSS}"
                    )
                raise self.failure(error, f"reading {topic}")
            if partition not in ends or offset is None:
                continue
            if error is None and offset < ends[partition]:
                if offset > positions[partition]:
                    gaps.setdefault(partition, positions[partition])
                positions[partition] = offset + 1
                batch.append(message)
            elif positions[partition] < min(offset, ends[partition]):
                gaps.setdefault(partition, positions[partition])
            # By position, not by count: the end of a range may lie in a gap.
            if positions[partition] >= ends[partition] or offset >= ends[partition]:
                del ends[partition]
        return batch, gaps

    def _require(
        self,
        topic: str,
        starts: Mapping[int, int],
        ends: Mapping[int, int],
        present: Mapping[int, tuple[int, int]],
    ) -> None:
        for partition, start in starts.items():
            if partition not in present:
                raise UnknownTopicError(
                    f"{topic}: expected partition {partition}, found {sorted(present) or 'none'}."
                    " Stream a file to it first, or look at what deleted it."
                )
            low, high = present[partition]
            if start < low or ends.get(partition, high) > high:
                raise LostMessagesError(
                    f"{topic}, partition {partition}: expected the messages from offset {start} to"
                    f" {ends.get(partition, high)}, found {low} to {high}. {_AFTER_A_LOSS}"
                )


_AFTER_A_LOSS = (
    "What the broker no longer has cannot be landed: replay its source, and give the topic a longer"
    " retention than consumers may be down"
)


class Heard:
    """What a client said of its connections: the last, and the first that is final.

    ``commits`` are the answers to its commits, None where they succeeded.
    """

    def __init__(self) -> None:
        self.last: KafkaError | None = None
        self.refusal: KafkaError | None = None
        self.commits: list[KafkaError | None] = []

    def __call__(self, error: "KafkaError") -> None:
        """Hear an error; the client calls this."""
        from confluent_kafka import KafkaError

        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self.last = error
        if self.refusal is None and error.code() in _refusals():
            self.refusal = error

    def commit(self, error: "KafkaError | None", partitions: "list[TopicPartition]") -> None:
        """Hear of a commit; the client calls this."""
        self.commits.append(error or next((p.error for p in partitions if p.error), None))


def _refusals() -> frozenset[int]:
    from confluent_kafka import KafkaError

    return frozenset(
        {
            KafkaError._AUTHENTICATION,
            KafkaError.SASL_AUTHENTICATION_FAILED,
            KafkaError.UNSUPPORTED_SASL_MECHANISM,
            KafkaError.TOPIC_AUTHORIZATION_FAILED,
            KafkaError.GROUP_AUTHORIZATION_FAILED,
            KafkaError.CLUSTER_AUTHORIZATION_FAILED,
            KafkaError.SECURITY_DISABLED,
            KafkaError.POLICY_VIOLATION,
        }
    )


def _shown(starts: Mapping[int, int], ends: Mapping[int, int]) -> str:
    return ", ".join(f"partition {p} from {starts[p]} to {end}" for p, end in ends.items())

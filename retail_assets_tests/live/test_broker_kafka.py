"""Tests of retail_assets.resources.broker on Apache Kafka, as .ci/servers starts it.

A node of the module's own, of the same artifacts, is stopped, killed and started again in
mid-stream; it also asks for a login.
"""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka import Producer as Client
from confluent_kafka.admin import AdminClient

from retail_assets.errors import TransientError
from retail_assets.resources.broker.resource import (
    BrokerRefusedError,
    BrokerResource,
    BrokerUnreachableError,
    CommitRefusedError,
    LostMessagesError,
    Message,
    RefusedMessageError,
    ReplacedTopicError,
    UnknownTopicError,
    Watermark,
)
from retail_assets_tests.live.conftest import Servers, wait_until

pytestmark = pytest.mark.live

GROUP = "group"
MANY = 1_000_000_000
PASSWORD = "hidden-word"


@pytest.fixture(scope="module")
def address(servers: Servers) -> str:
    return servers.address("KAFKA_SERVERS", "kafka")


@pytest.fixture
def broker(address: str, tmp_path: Path) -> BrokerResource:
    return BrokerResource(servers=address, home=str(tmp_path))


@pytest.fixture
def topic() -> str:
    return f"events-{uuid.uuid4().hex[:12]}"


def produce(broker: BrokerResource, topic: str, count: int, key: bytes | None = None) -> None:
    with broker.producer(topic, GROUP) as producer:
        for n in range(count):
            producer.send(key or b"%d" % n, b"value %d" % n)


def read(broker: BrokerResource, topic: str, ranges: dict[int, tuple[int, int]]) -> list[Message]:
    chunks = broker.read(topic, ranges, most_messages=1_000, most_bytes=MANY)
    return [message for chunk in chunks for message in chunk]


def whole(broker: BrokerResource, topic: str) -> dict[int, tuple[int, int]]:
    return {p: tuple(mark) for p, mark in broker.watermarks(topic).items()}


def test_a_producer_makes_the_topic_and_every_message_arrives_once(
    broker: BrokerResource, topic: str
) -> None:
    assert broker.running and broker.watermarks(topic) == {}
    assert broker.committed(topic, GROUP) == {}
    produce(broker, topic, 20_000)

    marks = broker.watermarks(topic)
    found = read(broker, topic, whole(broker, topic))

    assert sorted(marks) == [0, 1, 2, 3]
    assert sum(mark.high - mark.low for mark in marks.values()) == 20_000
    assert Counter(m.value for m in found) == Counter(b"value %d" % n for n in range(20_000))
    assert not list(Path(broker.home).iterdir())


def test_a_topic_made_anew_is_another_incarnation(broker: BrokerResource, topic: str) -> None:
    with pytest.raises(UnknownTopicError, match=topic):
        broker.incarnation(topic)
    produce(broker, topic, 10)
    first = broker.incarnation(topic)
    admin = AdminClient({"bootstrap.servers": broker.servers})

    assert first.started_at is None and re.fullmatch("[0-9a-f]{32}", first.id)
    assert broker.incarnation(topic) == first
    admin.delete_topics([topic])[topic].result()
    wait_until(lambda: broker.watermarks(topic) == {})
    produce(broker, topic, 10)
    assert broker.incarnation(topic).id != first.id
    with pytest.raises(ReplacedTopicError, match="made anew"):
        broker.commit(topic, GROUP, {0: 1}, incarnation=first.id)
    with pytest.raises(ReplacedTopicError, match="made anew"):
        list(broker.read(topic, {0: (0, 1)}, most_messages=1, most_bytes=1, incarnation=first.id))


def test_what_was_committed_is_kept_by_group(broker: BrokerResource, topic: str) -> None:
    produce(broker, topic, 100)
    group = f"group of {topic}"

    assert broker.committed(topic, group) == {}
    broker.commit(topic, group, {0: 3, 2: 7}, incarnation=broker.incarnation(topic).id)
    broker.commit(topic, group, {2: 8})
    assert broker.committed(topic, group) == {0: 3, 2: 8}
    assert broker.committed(topic, "another") == {}


def test_a_group_with_members_refuses_the_commit_until_they_have_left(
    broker: BrokerResource, topic: str
) -> None:
    produce(broker, topic, 10)
    group = f"group of {topic}"
    member = Consumer({"bootstrap.servers": broker.servers, "group.id": group})
    member.subscribe([topic])
    wait_until(lambda: member.poll(0.1) is None and bool(member.assignment()))

    with pytest.raises(CommitRefusedError, match=f"the consumer group {group} has members"):
        broker.commit(topic, group, {0: 1})
    assert broker.committed(topic, group) == {}
    member.close()

    broker.commit(topic, group, {0: 1})
    assert broker.committed(topic, group) == {0: 1}


def test_gaps_of_transactions_are_passed_over(broker: BrokerResource, topic: str) -> None:
    produce(broker, topic, 5, key=b"x")
    (partition,) = (p for p, mark in broker.watermarks(topic).items() if mark.high)
    client = Client({"bootstrap.servers": broker.servers, "transactional.id": topic})
    client.init_transactions(20)
    for name, finish in (
        (b"aborted", client.abort_transaction),
        (b"kept", client.commit_transaction),
        (b"aborted at the end", client.abort_transaction),
    ):
        client.begin_transaction()
        for _ in range(3):
            client.produce(topic, name, b"x", partition)
        client.flush(20)
        finish(20)
    # 5 messages, then three times 3 messages and a marker.
    wait_until(lambda: broker.watermarks(topic)[partition] == Watermark(0, 17))

    found = read(broker, topic, {partition: (0, 17)})

    kept = [(m.offset, m.value) for m in found]
    assert kept[:5] == [(n, b"value %d" % n) for n in range(5)]
    assert kept[5:] == [(n, b"kept") for n in (9, 10, 11)]
    for start, end in ((4, 5), (4, 6), (5, 9), (6, 10), (8, 12), (9, 12), (9, 13), (12, 17)):
        some = read(broker, topic, {partition: (start, end)})
        assert [m.offset for m in some] == [o for o, _ in kept if start <= o < end]


def test_an_open_transaction_is_not_there_yet(broker: BrokerResource, topic: str) -> None:
    produce(broker, topic, 5, key=b"x")
    (partition,) = (p for p, mark in broker.watermarks(topic).items() if mark.high)
    client = Client({"bootstrap.servers": broker.servers, "transactional.id": topic})
    client.init_transactions(20)
    client.begin_transaction()
    client.produce(topic, b"open", b"x", partition)
    client.flush(20)

    assert broker.watermarks(topic)[partition] == Watermark(0, 5)
    client.commit_transaction(20)
    wait_until(lambda: broker.watermarks(topic)[partition] == Watermark(0, 7))
    assert [m.value for m in read(broker, topic, {partition: (5, 7)})] == [b"open"]


def test_messages_that_retention_removed_are_an_error(broker: BrokerResource, topic: str) -> None:
    produce(broker, topic, 50, key=b"x")
    (partition,) = (p for p, mark in broker.watermarks(topic).items() if mark.high)
    admin = AdminClient({"bootstrap.servers": broker.servers})
    for answer in admin.delete_records([TopicPartition(topic, partition, 20)]).values():
        answer.result()

    assert broker.watermarks(topic)[partition] == Watermark(20, 50)
    with pytest.raises(LostMessagesError, match="from offset 19 to 50, found 20 to 50"):
        read(broker, topic, {partition: (19, 50)})
    assert len(read(broker, topic, {partition: (20, 50)})) == 30


def test_a_message_that_the_topic_does_not_take_is_refused(
    broker: BrokerResource, topic: str
) -> None:
    from confluent_kafka.cimpl import NewTopic

    admin = AdminClient({"bootstrap.servers": broker.servers})
    small = NewTopic(topic, 1, config={"max.message.bytes": "1000"})
    admin.create_topics([small])[topic].result()
    wait_until(lambda: bool(broker.watermarks(topic)))
    opened = broker.producer(topic, GROUP)

    def send() -> None:
        with opened as producer:
            producer.send(b"1", b"x")
            producer.flush()
            producer.send(b"2", os.urandom(16_000))

    with pytest.raises(RefusedMessageError, match="refused after the first 1 of 2: "):
        send()
    assert len(read(broker, topic, whole(broker, topic))) == 1


class OwnKafka:
    """A node of the module's own, to be stopped and started again at the same address."""

    def __init__(self, servers: Servers, folder: Path) -> None:
        self._libraries = servers.address("KAFKA_LIBRARIES", "kafka")
        plain, controller, login = (self._free_port() for _ in range(3))
        self.address = f"127.0.0.1:{plain}"
        self.login_address = f"127.0.0.1:{login}"
        settings = (servers.folder / "kafka.properties").read_text()
        for name, value in {
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{plain},LOGIN://127.0.0.1:{login},"
            f"CONTROLLER://127.0.0.1:{controller}",
            "log.dirs": str(folder / "kafka"),
            # So long a killed node counts as there, and its successor is refused.
            "broker.session.timeout.ms": "6000",
        }.items():
            settings = re.sub(rf"(?m)^{re.escape(name)}=.*$", f"{name}={value}", settings)
        settings += (
            "initial.broker.registration.timeout.ms=120000\n"
            "listener.security.protocol.map="
            "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,LOGIN:SASL_PLAINTEXT\n"
            "sasl.enabled.mechanisms=PLAIN\n"
            "listener.name.login.plain.sasl.jaas.config="
            "org.apache.kafka.common.security.plain.PlainLoginModule required"
            f' user_retail="{PASSWORD}";\n'
        )
        self._settings = folder / "kafka.properties"
        self._settings.write_text(settings)
        self._log = folder / "kafka.log"
        self._process: subprocess.Popen[bytes] | None = None
        tool = ["kafka.tools.StorageTool", "format", "--cluster-id", "AAAAAAAAAAAAAAAAAAAAAQ"]
        self._java(*tool, "--config", str(self._settings)).wait(60)

    @staticmethod
    def _free_port() -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return int(free.getsockname()[1])

    def _java(self, *arguments: str) -> "subprocess.Popen[bytes]":
        quick = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        command = ["java", *quick, "-cp", f"{self._libraries}/*"]
        with self._log.open("ab") as log:
            return subprocess.Popen([*command, *arguments], stdout=log, stderr=log)

    def start(self) -> None:
        self._process = self._java("kafka.Kafka", str(self._settings))
        wait_until(self._listens, 120)

    def _listens(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self._log.read_text()
        try:
            host, _, port = self.address.partition(":")
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            return False
        return True

    def end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None


@pytest.fixture(scope="module")
def own_kafka(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnKafka]:
    """A node that a test may stop, and starts again."""
    node = OwnKafka(servers, tmp_path_factory.mktemp("kafka"))
    try:
        node.start()
        yield node
    finally:
        node.end(signal.SIGKILL)


def test_a_login_is_by_the_options(own_kafka: OwnKafka, topic: str, tmp_path: Path) -> None:
    options = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "retail",
        "sasl.password": PASSWORD,
    }

    def broker(options: dict[str, str]) -> BrokerResource:
        return BrokerResource(
            servers=own_kafka.login_address, home=str(tmp_path), options=json.dumps(options)
        )

    produce(broker(options), topic, 100)
    assert len(read(broker(options), topic, whole(broker(options), topic))) == 100
    assert broker(options).incarnation(topic).id
    wrong = options | {"sasl.password": f"not {PASSWORD}"}
    began = time.monotonic()
    for ask in (
        lambda: broker(wrong).watermarks(topic),
        lambda: broker(wrong).producer(topic, GROUP).__enter__(),
    ):
        with pytest.raises(BrokerRefusedError) as error:
            ask()
        assert own_kafka.login_address in str(error.value)
        assert "RETAIL_KAFKA_OPTIONS" in str(error.value) and PASSWORD not in str(error.value)
    assert time.monotonic() - began < 10  # it does not wait for what will not come
    with pytest.raises(BrokerRefusedError, match="RETAIL_KAFKA_OPTIONS"):
        broker(wrong).incarnation(topic)


def test_a_restart_in_mid_stream_loses_and_doubles_nothing(
    own_kafka: OwnKafka, topic: str, tmp_path: Path
) -> None:
    broker = BrokerResource(servers=own_kafka.address, home=str(tmp_path))
    produce(broker, topic, 1)
    incarnation = broker.incarnation(topic).id
    count = 20_000
    found: list[Message] = []
    problems: list[BaseException] = []
    retried: list[TransientError] = []
    sent = [1]
    produced = threading.Event()

    def send() -> None:
        try:
            with broker.producer(topic, GROUP) as producer:
                for n in range(1, count):
                    producer.send(b"%d" % n, b"value %d" % n)
                    if n % 500 == 0:  # else all would be on its way before the first restart
                        producer.flush()
                        sent[0] = producer.delivered
                        time.sleep(0.1)
        except BaseException as error:
            problems.append(error)
        finally:
            produced.set()

    def receive() -> None:
        positions = dict.fromkeys(range(4), 0)
        while True:
            is_last = produced.is_set()
            try:
                marks = broker.watermarks(topic)
                ranges = {p: (positions[p], mark.high) for p, mark in marks.items()}
                for chunk in broker.read(
                    topic, ranges, most_messages=500, most_bytes=MANY, incarnation=incarnation
                ):
                    found.extend(chunk)
                    positions |= {m.partition: m.offset + 1 for m in chunk}
                broker.commit(topic, GROUP, positions)
            except TransientError as error:
                retried.append(error)
                continue
            except BaseException as error:
                problems.append(error)
                return
            if is_last:
                return
            time.sleep(0.1)

    threads = [threading.Thread(target=send), threading.Thread(target=receive)]
    for thread in threads:
        thread.start()
    for number, least in ((signal.SIGTERM, 3_000), (signal.SIGKILL, 9_000)):
        wait_until(lambda least=least: sent[0] > least or bool(problems), 120)  # type: ignore[misc]
        own_kafka.end(number)
        was_found = len(found)
        assert not produced.is_set()  # in mid-stream
        time.sleep(1)
        own_kafka.start()
        assert len(found) <= was_found + 6_000
    for thread in threads:
        thread.join(180)

    assert not problems and not any(thread.is_alive() for thread in threads)
    assert broker.incarnation(topic).id == incarnation
    # Once by place, once by content.
    assert len({(m.partition, m.offset) for m in found}) == len(found) == count
    assert {m.key: m.value for m in found} == {
        b"%d" % n: b"value %d" % n for n in range(1, count)
    } | {b"0": b"value 0"}
    marks = broker.watermarks(topic)
    assert sum(mark.high for mark in marks.values()) == count
    assert broker.committed(topic, GROUP) == {p: mark.high for p, mark in marks.items()}
    # A broker that starts may not know its topics yet.
    kinds = BrokerUnreachableError | UnknownTopicError
    assert all(isinstance(error, kinds) for error in retried)


def test_a_broker_that_is_down_is_named_within_seconds(
    own_kafka: OwnKafka, topic: str, tmp_path: Path
) -> None:
    broker = BrokerResource(servers=own_kafka.address, home=str(tmp_path))
    produce(broker, topic, 10)
    own_kafka.end(signal.SIGTERM)
    try:
        for ask in (broker.watermarks, broker.incarnation):
            began = time.monotonic()
            with pytest.raises(BrokerUnreachableError) as error:
                ask(topic)
            assert f"RETAIL_KAFKA names {own_kafka.address}" in str(error.value)
            assert time.monotonic() - began < 15
    finally:
        own_kafka.start()
    assert len(read(broker, topic, whole(broker, topic))) == 10

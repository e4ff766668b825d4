"""Tests of retail_assets.resources.broker on the embedded broker: who owns it, reading, waiting."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from confluent_kafka import Producer as Client
from hypothesis import given, settings
from hypothesis import strategies as st

from retail_assets.resources.broker import embedded as broker_embedded
from retail_assets.resources.broker.producer import Room
from retail_assets.resources.broker.resource import (
    BrokerRefusedError,
    BrokerResource,
    BrokerUnreachableError,
    LostMessagesError,
    Message,
    Producer,
    RefusedMessageError,
    ReplacedTopicError,
    StalledConsumerError,
    UnknownTopicError,
    Watermark,
)
from retail_assets.settings import load_settings

TOPIC = "events"
GROUP = "group"
MANY = 1_000_000_000


def embedded(home: Path) -> BrokerResource:
    return BrokerResource(servers="embedded", home=str(home))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerResource]:
    """An embedded broker that this process owns."""
    found = embedded(tmp_path)
    assert found.address
    yield found
    broker_embedded.let_go(tmp_path)


def read_all(broker: BrokerResource, **ranges: Any) -> list[Message]:
    wanted = ranges.get("ranges") or {
        p: (mark.low, mark.high) for p, mark in broker.watermarks(TOPIC).items()
    }
    chunks = broker.read(TOPIC, wanted, most_messages=10_000, most_bytes=MANY)
    return [message for chunk in chunks for message in chunk]


def produce_raw(broker: BrokerResource, *values: bytes | None, partition: int = 0) -> None:
    """Past the flow control, and uncompressed."""
    client = Client({"bootstrap.servers": broker.address, "log_level": 2})
    for value in values:
        client.produce(TOPIC, value, b"key", partition)
        client.poll(0)
    assert client.flush(20) == 0


# Who owns it.

CHILD = """
import sys, time
from pathlib import Path
from retail_assets.resources.broker import embedded as broker_embedded
found = broker_embedded.ensure(Path(sys.argv[1]))
print(found.incarnation, found.address, found.pid, found.started_at.isoformat(), flush=True)
sys.stdin.read()
"""


class Child:
    """A process that uses the home's broker until its standard input ends."""

    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def found(self) -> tuple[str, str, int, datetime]:
        assert self.process.stdout is not None
        incarnation, address, pid, started_at = self.process.stdout.readline().split()
        return incarnation, address, int(pid), datetime.fromisoformat(started_at)

    def end(self, number: int | None = None) -> None:
        if number is not None:
            self.process.send_signal(number)
        self.process.communicate(timeout=20)


def test_it_starts_when_it_is_asked_for_and_not_before(tmp_path: Path) -> None:
    home = tmp_path / "not there yet"
    broker = embedded(home)
    before = datetime.now(UTC).replace(tzinfo=None)

    assert not broker.running and not home.exists()
    address = broker.address
    found = broker.incarnation(TOPIC)

    assert broker.running and embedded(home).address == address
    assert embedded(home).incarnation("another") == found
    assert len(found.id) == 32 and set(found.id) <= set("0123456789abcdef")
    assert found.started_at is not None and found.started_at.tzinfo is None
    assert timedelta() <= found.started_at - before < timedelta(seconds=20)
    broker_embedded.let_go(home)
    assert not broker.running


def test_each_home_has_its_own(tmp_path: Path) -> None:
    one, two = embedded(tmp_path / "one"), embedded(tmp_path / "two")

    assert one.address != two.address
    assert one.incarnation(TOPIC) != two.incarnation(TOPIC)
    broker_embedded.let_go(tmp_path / "one")
    assert not one.running and two.running
    broker_embedded.let_go(tmp_path / "two")


def test_a_second_process_attaches_and_sees_the_same_messages(
    broker: BrokerResource, tmp_path: Path
) -> None:
    child = Child(tmp_path)
    incarnation, address, pid, _ = child.found()

    assert (incarnation, address) == (broker.incarnation(TOPIC).id, broker.address)
    assert pid == os.getpid()
    child.end()
    assert broker.running  # who only attached takes nothing with it


@pytest.mark.parametrize("number", [None, signal.SIGKILL])
def test_after_its_owner_it_begins_anew(tmp_path: Path, number: int | None) -> None:
    child = Child(tmp_path)
    incarnation, address, pid, started_at = child.found()
    broker = embedded(tmp_path)
    assert broker.running and broker.address == address and pid == child.process.pid
    with broker.producer(TOPIC, GROUP) as producer:
        producer.send(b"1", b"x")
    broker.commit(TOPIC, GROUP, {0: 5}, incarnation=incarnation)
    child.end(number)

    assert not broker.running
    found = broker.incarnation(TOPIC)

    assert found.id != incarnation and found.started_at is not None
    assert found.started_at > started_at
    assert broker.watermarks(TOPIC) == {} and broker.committed(TOPIC, GROUP) == {}
    with pytest.raises(ReplacedTopicError, match=rf"expected incarnation {incarnation}, found"):
        broker.commit(TOPIC, GROUP, {0: 5}, incarnation=incarnation)
    with pytest.raises(ReplacedTopicError, match="made anew"):
        list(
            broker.read(TOPIC, {0: (0, 1)}, most_messages=1, most_bytes=1, incarnation=incarnation)
        )
    broker_embedded.let_go(tmp_path)


def test_processes_that_start_at_once_share_one(tmp_path: Path) -> None:
    children = [Child(tmp_path) for _ in range(4)]
    found = [child.found() for child in children]

    assert len(set(found)) == 1
    for child in children:
        child.end()


def test_a_clock_that_was_set_back_does_not_make_a_later_broker_an_earlier_one(
    tmp_path: Path,
) -> None:
    future = datetime(2100, 1, 1)
    (tmp_path / "broker.json").write_text(
        json.dumps({"address": "", "incarnation": "0", "started_at": future.isoformat(), "pid": 1})
    )

    found = embedded(tmp_path).incarnation(TOPIC)

    assert found.started_at == future + timedelta(microseconds=1)
    broker_embedded.let_go(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"address": "127.0.0.1:1"}'])
def test_a_broken_announcement_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "broker.json").write_text(text)
    broker = embedded(tmp_path)

    assert not broker.running
    assert broker.watermarks(TOPIC) == {}
    broker_embedded.let_go(tmp_path)


def test_an_announcement_whose_owner_was_killed_is_none_though_its_number_is_anothers(
    tmp_path: Path,
) -> None:
    said = {"address": "127.0.0.1:1", "incarnation": "0", "started_at": "2020-01-01", "pid": 1}
    (tmp_path / "broker.json").write_text(json.dumps(said))

    assert not embedded(tmp_path).running


# Its keeper.


def start_keeper(home: Path, parent: int) -> "subprocess.Popen[str]":
    module = "retail_assets.resources.broker.keeper"
    command = [sys.executable, "-m", module, "--home", str(home), "--parent", str(parent)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)


def test_the_keeper_owns_it_until_it_is_told_to_stop(tmp_path: Path) -> None:
    broker = embedded(tmp_path)
    keeper = start_keeper(tmp_path, os.getpid())
    assert keeper.stdout is not None
    line = keeper.stdout.readline()

    assert broker.running and line == f"broker {broker.address}\n"
    keeper.send_signal(signal.SIGINT)  # of the terminal, for its parent
    time.sleep(0.5)
    assert keeper.poll() is None and broker.running
    keeper.terminate()

    assert keeper.wait(20) == 0
    assert not broker.running


def test_the_keeper_ends_with_its_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE)
    keeper = start_keeper(tmp_path, parent.pid)
    assert keeper.stdout is not None and keeper.stdout.readline().startswith("broker ")
    parent.communicate()

    assert keeper.wait(20) == 0
    assert not embedded(tmp_path).running


def test_the_keeper_takes_over_when_the_owner_ends(tmp_path: Path) -> None:
    child = Child(tmp_path)
    incarnation, address, _, _ = child.found()
    keeper = start_keeper(tmp_path, os.getpid())
    assert keeper.stdout is not None
    assert keeper.stdout.readline() == f"broker {address}\n"
    child.end()
    second = keeper.stdout.readline()

    broker = embedded(tmp_path)
    assert second == f"broker {broker.address}\n"
    assert broker.incarnation(TOPIC).id != incarnation
    keeper.terminate()
    assert keeper.wait(20) == 0


def test_the_keeper_does_not_wait_for_dagster() -> None:
    code = "import sys, retail_assets.resources.broker.keeper; print('dagster' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert told.stdout == "False\n"


# What a topic has.


def test_an_absent_topic_has_nothing_and_is_not_made_by_asking(broker: BrokerResource) -> None:
    for _ in range(2):
        assert broker.watermarks(TOPIC) == {}
        assert broker.committed(TOPIC, GROUP) == {}

    with pytest.raises(UnknownTopicError, match=r"events: expected partition 0, found none"):
        read_all(broker, ranges={0: (0, 1)})


def test_watermarks_and_what_was_committed(broker: BrokerResource) -> None:
    produce_raw(broker, b"a", b"b", b"c", partition=2)

    assert broker.watermarks(TOPIC) == {p: Watermark(0, 3 if p == 2 else 0) for p in range(4)}
    assert broker.committed(TOPIC, GROUP) == {}
    broker.commit(TOPIC, GROUP, {2: 2, 0: 0})
    assert broker.committed(TOPIC, GROUP) == {0: 0, 2: 2}
    broker.commit(TOPIC, GROUP, {2: 3})
    broker.commit(TOPIC, GROUP, {})
    assert broker.committed(TOPIC, GROUP) == {0: 0, 2: 3}
    assert broker.committed(TOPIC, "another") == {}


def test_a_message_has_its_place_key_value_and_time(broker: BrokerResource) -> None:
    before = datetime.now(UTC).replace(tzinfo=None) - timedelta(milliseconds=1)
    produce_raw(broker, "é".encode(), None, b"")

    one, two, three = read_all(broker)

    assert one[:4] == (0, 0, b"key", "é".encode())
    assert two[:4] == (0, 1, b"key", None)
    assert three[:4] == (0, 2, b"key", b"")
    assert before <= one.time <= datetime.now(UTC).replace(tzinfo=None)


def test_an_absurd_time_does_not_stop_a_reader(broker: BrokerResource) -> None:
    client = Client({"bootstrap.servers": broker.address, "log_level": 2})
    client.produce(TOPIC, b"x", b"key", 0, timestamp=2**62)
    assert client.flush(20) == 0

    (message,) = read_all(broker)

    assert message.time == datetime(1970, 1, 1)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerResource]:
    """A broker whose partitions have 40 messages of 0 to 117 bytes each."""
    home = tmp_path_factory.mktemp("filled")
    broker = embedded(home)
    for partition in range(4):
        produce_raw(broker, *(b"x" * (3 * n) for n in range(40)), partition=partition)
    yield broker
    broker_embedded.let_go(home)


RANGES = st.dictionaries(
    st.integers(0, 3),
    st.tuples(st.integers(0, 40), st.integers(0, 40)),
    max_size=4,
)


@settings(max_examples=40, deadline=None)
@given(ranges=RANGES, most_messages=st.integers(1, 200), most_bytes=st.integers(1, 5_000))
def test_a_read_gives_the_ranges_exactly_and_keeps_the_caps(
    filled: BrokerResource,
    ranges: dict[int, tuple[int, int]],
    most_messages: int,
    most_bytes: int,
) -> None:
    chunks = list(filled.read(TOPIC, ranges, most_messages=most_messages, most_bytes=most_bytes))

    found: dict[int, list[int]] = {}
    for chunk in chunks:
        size = sum(len(m.value or b"") + len(m.key or b"") for m in chunk)
        assert 0 < len(chunk) <= most_messages
        assert size <= most_bytes or len(chunk) == 1
        for message in chunk:
            assert message.value == b"x" * (3 * message.offset)
            found.setdefault(message.partition, []).append(message.offset)
    wanted = {p: list(range(*offsets)) for p, offsets in ranges.items()}
    assert found == {p: offsets for p, offsets in wanted.items() if offsets}


def test_a_reader_may_stop_in_the_middle_and_another_begins(filled: BrokerResource) -> None:
    chunks = filled.read(TOPIC, {0: (0, 40)}, most_messages=3, most_bytes=MANY)
    assert [m.offset for m in next(chunks)] == [0, 1, 2]
    chunks.close()  # type: ignore[attr-defined]

    again = filled.read(TOPIC, {0: (3, 6)}, most_messages=3, most_bytes=MANY)
    assert [m.offset for chunk in again for m in chunk] == [3, 4, 5]


def test_readers_in_threads_do_not_disturb_each_other(filled: BrokerResource) -> None:
    found: list[int] = []

    def read(partition: int) -> None:
        for _ in range(5):
            chunks = filled.read(TOPIC, {partition: (0, 40)}, most_messages=7, most_bytes=MANY)
            found.append(sum(m.partition == partition for chunk in chunks for m in chunk))

    threads = [threading.Thread(target=read, args=(p,)) for p in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [40] * 20


# What vanished.


def test_messages_that_vanished_are_an_error(broker: BrokerResource) -> None:
    produce_raw(broker, *(os.urandom(100_000) for _ in range(70)))
    low, high = broker.watermarks(TOPIC)[0]
    assert 0 < low < high == 70

    with pytest.raises(LostMessagesError) as error:
        read_all(broker, ranges={0: (0, 70)})

    assert "events, partition 0: expected the messages from offset 0" in str(error.value)
    assert f"found {low} to 70" in str(error.value) and "replay its source" in str(error.value)
    assert [m.offset for m in read_all(broker, ranges={0: (low, 70)})] == list(range(low, 70))


def test_a_range_past_the_end_is_an_error(broker: BrokerResource) -> None:
    produce_raw(broker, b"a")

    with pytest.raises(LostMessagesError, match=r"from offset 0 to 2, found 0 to 1"):
        read_all(broker, ranges={0: (0, 2)})
    with pytest.raises(UnknownTopicError, match=r"expected partition 7, found \[0, 1, 2, 3\]"):
        read_all(broker, ranges={7: (0, 1)})


def test_messages_that_vanish_while_they_are_read_are_an_error(
    broker: BrokerResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retail_assets.resources.broker.clients._MOST_AHEAD_KB", 200)
    monkeypatch.setattr("retail_assets.resources.broker.clients._BYTES_AT_ONCE", 100_000)
    size = 100_000
    produce_raw(broker, *(os.urandom(size) for _ in range(40)))
    produce_raw(broker, *(os.urandom(size) for _ in range(40)), partition=1)
    seen: Counter[int] = Counter()
    with pytest.raises(LostMessagesError, match="events"):  # noqa: PT012 (the loop reads)
        for chunk in broker.read(TOPIC, {0: (0, 40), 1: (0, 40)}, most_messages=1, most_bytes=MANY):
            if not seen:  # what was fetched ahead is still read
                for partition in (0, 1):
                    produce_raw(broker, *(os.urandom(size) for _ in range(60)), partition=partition)
            seen.update(m.partition for m in chunk)
    assert 0 < seen.total() < 80


# Producing.


def send_all(producer: Producer, values: Iterable[bytes], key: bytes | None = None) -> None:
    """Keyed by number, or all by one key."""
    for n, value in enumerate(values):
        producer.send(key or b"%d" % n, value)


def test_a_producer_delivers_everything_in_order_by_key(broker: BrokerResource) -> None:
    keys = [b"%d" % (n // 3) for n in range(3_000)]
    delivered = []
    with broker.producer(TOPIC, GROUP) as producer:
        for n, key in enumerate(keys):
            producer.send(key, b"%d" % n)
            delivered.append(producer.delivered)
            assert delivered[-1] <= producer.sent == n + 1
        producer.flush()
        assert producer.delivered == 3_000
    assert delivered == sorted(delivered)

    found = read_all(broker)

    assert sorted(int(m.value or b"") for m in found) == list(range(3_000))
    places: dict[bytes, list[tuple[int, int]]] = {}
    for message in sorted(found, key=lambda m: int(m.value or b"")):
        places.setdefault(message.key or b"", []).append((message.partition, message.offset))
    for of_key in places.values():
        assert len({partition for partition, _ in of_key}) == 1 and of_key == sorted(of_key)
    assert Counter(m.partition for m in found).keys() == {0, 1, 2, 3}


def test_a_message_that_no_broker_takes_is_refused(broker: BrokerResource) -> None:
    with broker.producer(TOPIC, GROUP) as producer:
        producer.send(b"1", b"x")
        producer.flush()
        with pytest.raises(RefusedMessageError, match="refused after the first 1 of 1: ") as error:
            producer.send(b"2", b"x" * 2_000_000)

    assert "too large" in str(error.value).lower()
    assert producer.delivered == 1 and len(read_all(broker)) == 1


def test_after_an_error_of_the_callers_delivered_is_final(broker: BrokerResource) -> None:
    def values() -> Iterator[bytes]:
        yield from [b"x" * 100] * 5_000
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), broker.producer(TOPIC, GROUP) as producer:
        send_all(producer, values())

    found = {int(m.key or b"") for m in read_all(broker)}
    assert producer.delivered <= 5_000
    # What was on its way had been sent first, in each partition: none is missing before the last.
    assert set(range(producer.delivered)) <= found and producer.delivered not in found


def incompressible(count: int, size: int = 20_000) -> list[bytes]:
    source = random.Random(5)
    return [b"%d:" % n + source.randbytes(size) for n in range(count)]


def test_a_producer_waits_for_a_slow_consumer_and_nothing_vanishes(broker: BrokerResource) -> None:
    values = incompressible(1_500)  # 30 MB; the broker keeps 20
    waits: list[float] = []
    failures: list[BaseException] = []
    found: list[bytes] = []
    worst = 0

    def consume() -> None:
        nonlocal worst
        positions = dict.fromkeys(range(4), 0)
        try:
            while len(found) < len(values):
                marks = broker.watermarks(TOPIC)
                ranges = {p: (positions[p], mark.high) for p, mark in marks.items()}
                for start, end in ranges.values():
                    worst = max(worst, (end - start) * len(values[0]))
                for chunk in broker.read(TOPIC, ranges, most_messages=50, most_bytes=MANY):
                    time.sleep(0.01)
                    found.extend(m.value or b"" for m in chunk)
                positions |= {p: end for p, (_, end) in ranges.items()}
                broker.commit(TOPIC, GROUP, positions)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=consume)
    thread.start()
    with broker.producer(TOPIC, GROUP, on_wait=waits.append) as producer:
        send_all(producer, values)
    thread.join(60)

    assert not failures and not thread.is_alive()
    assert sorted(found) == sorted(values)
    assert waits and max(waits) < 20
    assert worst < 3 * 1024**2  # of the 5 MiB that it keeps


def test_a_producer_that_nobody_consumes_says_so_and_then_gives_up(
    broker: BrokerResource, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retail_assets.resources.broker.producer._WARN_AFTER_S", 0.1)
    opened = broker.producer(TOPIC, GROUP, stalled_after_s=0.5)
    with pytest.raises(StalledConsumerError) as error, opened as producer:
        send_all(producer, incompressible(1_000))

    assert "nothing of events was consumed" in str(error.value)
    assert "expected the group group" in str(error.value)
    assert [r.message for r in caplog.records if "is full; waiting for events" in r.message]
    found = read_all(broker)  # all are there: none before the first has vanished
    assert all(mark.low == 0 for mark in broker.watermarks(TOPIC).values())
    assert {int(m.key or b"") for m in found} >= set(range(producer.delivered))
    assert 400 < producer.delivered < 530  # of 20 kB: half of the 5 MiB a partition


def test_whoever_waits_may_be_stopped(broker: BrokerResource) -> None:
    class StoppedError(Exception):
        pass

    def stop(idle: float) -> None:
        if idle > 1:
            raise StoppedError

    with pytest.raises(StoppedError), broker.producer(TOPIC, GROUP, on_wait=stop) as producer:
        send_all(producer, incompressible(1_000))

    assert producer.delivered > 300


def test_what_an_earlier_producer_left_takes_room(broker: BrokerResource) -> None:
    values = incompressible(75)  # 1.5 MB, to one partition
    with broker.producer(TOPIC, GROUP) as producer:
        send_all(producer, values, key=b"1")

    opened = broker.producer(TOPIC, GROUP, stalled_after_s=0.5)
    with pytest.raises(StalledConsumerError), opened as producer:
        send_all(producer, values, key=b"1")
    assert 40 < producer.delivered < 60

    broker.commit(TOPIC, GROUP, {p: m.high for p, m in broker.watermarks(TOPIC).items()})
    with broker.producer(TOPIC, GROUP, stalled_after_s=0.5) as producer:
        send_all(producer, values, key=b"1")


def test_a_producer_notices_that_messages_vanished(broker: BrokerResource) -> None:
    produce_raw(broker, *(os.urandom(100_000) for _ in range(70)))

    with pytest.raises(LostMessagesError, match="dropped messages before offset"):
        broker.producer(TOPIC, GROUP).__enter__()


def statistics(raw: Sequence[int], compressed: int) -> str:
    """What a client tells of the bytes it sent, before and after compression."""
    partitions = {str(p): {"txbytes": sent} for p, sent in enumerate(raw)}
    brokers = {"a": {"txbytes": compressed}, "b": {"txbytes": 0}}
    return json.dumps({"topics": {TOPIC: {"partitions": partitions}}, "brokers": brokers})


STATISTICS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 200_000), st.integers(1, 100)), max_size=30
)


@given(steps=STATISTICS)
def test_room_is_what_was_sent_less_what_was_committed(
    steps: list[tuple[int, int, int]],
) -> None:
    room = Room(TOPIC, [10, 20, 30, 40], most=100_000)
    raw, compressed, offsets = [0] * 4, 0, [10, 20, 30, 40]
    for partition, size, percent in steps:
        assert not room.is_full(partition, size) or raw[partition]
        room.send(partition, size)
        room.acknowledge(partition, size, offsets[partition])
        offsets[partition] += 1
        raw[partition] += size
        compressed += size * percent // 100 + 1
        room.count(statistics(raw, compressed))
    room.count(statistics(raw, compressed))  # what had arrived by the ones before is known now
    for partition in range(4):
        held = sum(s * c // 100 + 1 for p, s, c in steps if p == partition)
        if held > 100_001:
            assert room.is_full(partition, 0)
        if held < 99_999:
            assert not room.is_full(partition, 0)
        if raw[partition]:
            assert room.release({partition: offsets[partition]})
        assert not room.release({partition: offsets[partition]})
        assert not room.is_full(partition, 10_000_000)


class SlowClient:
    """A client of one partition whose threads go on at any time, each step by itself."""

    def __init__(self) -> None:
        self.room = Room(TOPIC, [0], most=1)
        self.sent: list[int] = []
        self.requested = self.written = self.answered = 0  # of what was sent
        self._told: list[Callable[[], None]] = []
        self._broker_bytes: int | None = None

    def bytes_written(self) -> int:
        return sum(size // 10 for size in self.sent[: self.written])

    def send(self) -> None:
        size = 1000 + 10 * len(self.sent)
        self.room.send(0, size)
        self.sent.append(size)

    def request(self) -> None:
        self.requested = len(self.sent)

    def write(self) -> None:
        self.written = min(self.written + 1, self.requested)

    def answer(self) -> None:
        if self.answered < self.written:
            offset, self.answered = self.answered, self.answered + 1
            self._told.append(lambda: self.room.acknowledge(0, self.sent[offset], offset))

    def begin_statistics(self) -> None:
        if self._broker_bytes is None:
            self._broker_bytes = self.bytes_written()

    def end_statistics(self) -> None:
        if self._broker_bytes is None:
            return
        text = statistics([sum(self.sent[: self.requested])], self._broker_bytes)
        self._broker_bytes = None
        self._told.append(lambda: self.room.count(text))

    def poll(self) -> None:
        told, self._told = self._told, []
        for each in told:
            each()


STEPS = [n for n, f in vars(SlowClient).items() if callable(f) and n[0] != "_" and "bytes" not in n]


def test_room_never_counts_fewer_bytes_than_there_are() -> None:
    for seed in range(300):
        chance, client = random.Random(seed), SlowClient()
        for _ in range(200):
            getattr(client, chance.choice(STEPS))()
            assert client.room.taken(0) >= client.bytes_written()


# What is refused.


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    "ask",
    [
        lambda broker: broker.watermarks(TOPIC),
        lambda broker: broker.committed(TOPIC, GROUP),
        lambda broker: broker.commit(TOPIC, GROUP, {0: 1}),
        lambda broker: list(broker.read(TOPIC, {0: (0, 1)}, most_messages=1, most_bytes=1)),
        lambda broker: broker.producer(TOPIC, GROUP).__enter__(),
        lambda broker: broker.incarnation(TOPIC),
    ],
)
def test_a_broker_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ask: Callable[[BrokerResource], object]
) -> None:
    for module in ("resource", "clients", "producer"):
        monkeypatch.setattr(f"retail_assets.resources.broker.{module}.CONNECT_S", 1.0)
    address = f"127.0.0.1:{closed_port()}"
    broker = BrokerResource(servers=address, home=str(tmp_path))

    with pytest.raises(BrokerUnreachableError) as error:
        ask(broker)

    assert f"RETAIL_KAFKA names {address}: " in str(error.value)
    assert broker.running  # nobody was asked
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sasl.passwort": "hidden-word"}, "sasl.passwort"),
        ({"security.protocol": "hidden-word"}, "security.protocol"),
        ({"ssl.ca.location": "/hidden-word", "security.protocol": "SSL"}, "ssl.ca.location"),
        ({"acks": "0"}, "acks, on which exactly-once"),
        ({"group.id": "hidden-word", "client.id": "x"}, "group.id, on which exactly-once"),
    ],
)
def test_options_that_are_not_taken_are_named_without_their_values(
    tmp_path: Path, options: dict[str, str], named: str
) -> None:
    broker = BrokerResource(
        servers=f"127.0.0.1:{closed_port()}", home=str(tmp_path), options=json.dumps(options)
    )

    with pytest.raises(BrokerRefusedError) as error:
        broker.watermarks(TOPIC)

    assert "RETAIL_KAFKA_OPTIONS" in str(error.value) and named in str(error.value)
    assert "hidden-word" not in str(error.value)
    assert error.value.__cause__ is None


def test_options_reach_the_clients_and_no_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {"sasl.password": "hidden-word", "linger.ms": "7"}
    monkeypatch.setenv("RETAIL_KAFKA_OPTIONS", json.dumps(options))
    found = load_settings(home=tmp_path, kafka="kafka.test:9092")
    broker = BrokerResource.of(found)
    clients = broker._clients()

    # Dagster shows the values of a resource's fields, of a variable its name.
    assert isinstance(broker.options, dg.EnvVar)
    assert clients.options == options
    assert clients.settings({"group.id": "g"}) | options == clients.settings({"group.id": "g"})
    assert clients.settings({})["bootstrap.servers"] == "kafka.test:9092"
    assert "hidden-word" not in f"{broker!r} {clients!r}"


def test_options_of_an_override_are_taken_too(tmp_path: Path) -> None:
    found = load_settings(home=tmp_path, kafka="a:1", kafka_options='{"linger.ms": "7"}')

    assert BrokerResource.of(found)._clients().options == {"linger.ms": "7"}
    assert BrokerResource.of(load_settings(home=tmp_path, kafka="a:1"))._clients().options == {}


def test_the_embedded_broker_needs_no_options(tmp_path: Path) -> None:
    broker = BrokerResource(
        servers="embedded", home=str(tmp_path), options='{"security.protocol": "SSL"}'
    )

    assert broker.watermarks(TOPIC) == {}
    broker_embedded.let_go(tmp_path)

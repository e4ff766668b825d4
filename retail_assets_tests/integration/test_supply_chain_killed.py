"""Micro-batches that are killed land each message once in each sink all the same.

Killed as by the kernel: SIGKILL, between each two steps of a batch, and at moments that fixed seeds
draw. The broker belongs to the test's process, and in the last test to the one that is killed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from retail_assets.defs.supply_chain.contract import (
    DEAD_LETTERS,
    GROUP,
    MESSAGES,
    SOURCE_COLUMNS,
    TOPIC,
)
from retail_assets.defs.supply_chain.feed import FEED
from retail_assets.feeds.stream import batches, sinks
from retail_assets.feeds.stream.batches import Landed
from retail_assets.feeds.stream.positions import LakePositions, Place, plan_ranges
from retail_assets.feeds.stream.sinks import positions_table
from retail_assets.resources.broker import embedded as broker_embedded
from retail_assets.resources.broker.resource import BrokerResource, Incarnation, Watermark
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.operational_db import OperationalDbResource
from retail_assets.resources.operational_db.embedded import EmbeddedPostgres
from retail_assets_tests.defs.supply_chain.test_messages import as_json, fields
from retail_assets_tests.feeds.stream.draining import drain

LINES = 20_000
KILLS = 20
# What a request asks for, and what one batch of it takes.
ASKED, BATCH = 600, 200
PARTITIONS = {partition: Watermark(0, 0) for partition in range(4)}
ROWS_TABLE, LETTERS_TABLE = MESSAGES.table, DEAD_LETTERS.table
POSITIONS_TABLE = positions_table(FEED)
DAYS = ("2026-01-02", "2026-01-03", "2026-01-04")
# Each step of a batch, to be killed before it and after it; a step's call by number.
STEPS = [
    ("prepare", 1, True),
    ("put", 1, False),
    ("put", 1, True),
    ("rows", 1, False),
    ("rows", 1, True),
    ("insert", 1, False),
    ("insert", 1, True),
    ("insert", 2, True),
    ("database", 2, False),
    ("database", 2, True),
    ("broker", 1, False),
    ("broker", 1, True),
    ("rows", 2, True),
]
# Those after which the lake has what the database has not.
BETWEEN = [
    ("rows", 1, True),
    ("rows", 2, True),
    ("insert", 3, False),
    ("insert", 3, True),
    ("insert", 4, True),
    ("database", 3, False),
]
Identity = tuple[str, int, int]
Said = dict[str, Any] | str


class Home:
    """One RETAIL_HOME, as each process that works in it sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lake = LocalLake(root=str(path / "lake"))
        self.broker = BrokerResource(servers="embedded", home=str(path))
        self.database = OperationalDbResource(url="embedded", home=str(path))

    def drain(self, ingest_date: str, **how: Any) -> Landed:
        return drain(self.lake, self.broker, self.database, ingest_date=ingest_date, **how)

    def at(self, incarnation: str) -> LakePositions:
        """How far an embedded broker's topic has landed."""
        began = Incarnation(incarnation, datetime(2026, 1, 1))
        return LakePositions(FEED, self.lake, began, PARTITIONS)

    def in_lake(self) -> dict[Identity, Said]:
        """What each message is in the lake; each is there once."""
        names = {c.name: c.header for c in SOURCE_COLUMNS}
        found: list[tuple[Identity, Said]] = []
        for dataset in (MESSAGES, DEAD_LETTERS):
            for file in self.lake.table(dataset).snapshot().files:
                table = pq.read_table(self.lake.local_file(file.name), partitioning=None)
                who = zip(
                    *(table.column(c).to_pylist() for c in ("incarnation", "partition", "offset")),
                    strict=True,
                )
                if dataset is DEAD_LETTERS:
                    told = table.column("text").to_pylist()
                else:
                    told = table.select(list(names)).rename_columns(list(names.values()))
                    told = told.to_pylist()
                found.extend(zip(who, told, strict=True))
        return once(found)

    def in_database(self) -> dict[Identity, Said]:
        """The same of the database."""
        identity = 'select incarnation, partition, "offset"'
        found: list[tuple[Identity, Said]] = []
        with self.database.connect() as connection:
            for what, table in (("payload", ROWS_TABLE), ("text", LETTERS_TABLE)):
                rows = connection.execute(f"{identity}, {what} from {table}".encode())
                found.extend(((str(i), int(p), int(o)), told) for i, p, o, told in rows)
        return once(found)

    def in_lake_only(self, incarnation: str) -> int:
        """Offsets that have landed in the lake and not in the database."""
        landed = self.at(incarnation).positions
        with self.database.connect() as connection:
            (known,) = connection.execute("select to_regclass(%s)", [POSITIONS_TABLE]).fetchone()
            found = (
                connection.execute(
                    f"select coalesce(sum(next_offset), 0)::bigint from {POSITIONS_TABLE}".encode()
                )
                if known
                else None
            )
            return sum(landed.values()) - (found.fetchone()[0] if found else 0)


def once(found: Sequence[tuple[Identity, Said]]) -> dict[Identity, Said]:
    twice = [who for who, times in Counter(who for who, _ in found).items() if times > 1]
    assert not twice
    return dict(found)


def lines(count: int, seed: int) -> Iterator[bytes]:
    """Messages, one of fifty a bad one."""
    generator = random.Random(seed)
    for number in range(count):
        if generator.random() < 0.02:
            yield b"torn %d" % number
            continue
        yield as_json(
            fields(
                order_item_id=str(number),
                order_id=str(number // 3),
                sales=f"{generator.random() * 500:.9f}",
                latitude=f"{generator.random() * 50:.7f}",
                customer_id=str(generator.randrange(20_652)),
                order_date=f"{generator.randint(1, 12)}/{generator.randint(1, 28)}/17 1:05",
            )
        )


def said(value: bytes) -> Said:
    return json.loads(value) if value.startswith(b"{") else value.decode()


def produce(home: Home, values: Iterator[bytes]) -> dict[Identity, Said]:
    """Send all; what the broker acknowledged, and where."""
    incarnation = home.broker.incarnation(TOPIC).id
    sent: dict[Identity, Said] = {}

    def arrived(error: Any, message: Any) -> None:
        assert error is None, error
        sent[incarnation, message.partition(), message.offset()] = said(message.value())

    producer = Producer({"bootstrap.servers": home.broker.address, "compression.type": "zstd"})
    for number, value in enumerate(values):
        producer.produce(TOPIC, value, b"%d" % number, on_delivery=arrived)
        producer.poll(0)
    assert producer.flush(30) == 0
    return sent


# Processes that are killed.


class Nursery:
    """A process that has imported everything, and forks one for each task: that takes no time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, **task: Any) -> int:
        """Begin a task in a process of its own: its number."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return self._read()

    def result(self) -> int:
        """How the process ended: 0, or the signal's number below 0."""
        return self._read()

    def run(self, **task: Any) -> int:
        self.start(**task)
        return self.result()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(120) == 0

    def _read(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


def serve() -> None:
    """The nursery's side: a task a line, answered by the process's number and its end."""
    import confluent_kafka.admin
    import deltalake
    import pandas
    import psutil
    import pyarrow.compute
    import pyarrow.json

    assert (
        confluent_kafka.admin
        and deltalake
        and pandas
        and psutil
        and pyarrow.compute
        and pyarrow.json
    )
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work(**json.loads(line))
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    os._exit(0)  # tidying up all that was imported takes longer than a task


def work(
    home: str,
    ingest_date: str,
    ranges: dict[str, tuple[int, int]] | None = None,
    step: tuple[str, int, bool] | None = None,
    most: int = BATCH,
    own: int = 0,
    seed: int = 0,
) -> None:
    """A micro-batch as it is requested; or one with a broker of its own, which it fills first."""
    here = Home(Path(home))
    if step is not None:
        die_at(*step)
    if own:
        produce(here, lines(own, seed))
    asked = {int(p): (start, end) for p, (start, end) in ranges.items()} if ranges else None
    here.drain(ingest_date, ranges=asked, most_messages=most)
    EmbeddedPostgres.leave(home)


def die_at(step: str, call: int, done: bool) -> None:
    """Kill this process at a call of the step, before it or when it is done."""
    calls = 0

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call and not done:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **named)
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return instead

    owner, name = {
        "prepare": (batches.Drain, "_prepare"),
        "put": (LocalLake, "put_files"),
        "rows": (LakePositions, "commit"),
        "insert": (sinks, "insert_new"),
        "database": (psycopg.Connection, "commit"),  # its first is of the tables
        "broker": (BrokerResource, "commit"),
    }[step]
    setattr(owner, name, deadly(getattr(owner, name)))


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()


@pytest.fixture
def home() -> Iterator[Home]:
    # Not below pytest's folder, which only its user may enter: root's server is another's.
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o755)
        yield Home(Path(path))
        EmbeddedPostgres.leave(path)
        broker_embedded.let_go(Path(path))


@contextmanager
def rebalancing(home: Home) -> Iterator[Counter[str]]:
    """Foreign members join our group by its name, take messages, commit them, and leave."""
    done = threading.Event()
    seen: Counter[str] = Counter()

    def assigned(member: Consumer, partitions: list[TopicPartition]) -> None:
        seen["assigned"] += 1

    def join() -> None:
        while not done.is_set():
            member = Consumer(
                {
                    "bootstrap.servers": home.broker.address,
                    "group.id": GROUP,
                    "auto.offset.reset": "earliest",
                    "session.timeout.ms": 6000,
                }
            )
            before = seen["assigned"]
            member.subscribe([TOPIC], on_assign=assigned)
            polls = 0
            while not done.is_set() and polls < 5:
                got = member.consume(200, timeout=0.1)
                seen["messages"] += sum(message.error() is None for message in got)
                polls += seen["assigned"] > before
                if got:
                    with suppress(KafkaException):  # the group may be rebalancing
                        member.commit(asynchronous=False)
            member.close()

    members = [threading.Thread(target=join) for _ in range(2)]
    for member in members:
        member.start()
    try:
        yield seen
    finally:
        done.set()
        for member in members:
            member.join()


def await_rebalance(seen: Counter[str]) -> None:
    """Until a member is given partitions that it had not before."""
    before, end = seen["assigned"], time.monotonic() + 60
    while seen["assigned"] == before:
        assert time.monotonic() < end, "no member of the group was given a partition"
        time.sleep(0.01)


def ask(home: Home, incarnation: str) -> dict[int, tuple[int, int]]:
    """What a sensor would ask for next."""
    marks = home.broker.watermarks(TOPIC)
    return plan_ranges(TOPIC, home.at(incarnation).positions, marks, ASKED)


def kill_at_random(
    nursery: Nursery, home: Home, task: dict[str, Any], within_s: float, generator: random.Random
) -> bool:
    """Kill a micro-batch within so long of its start, or of its first change; if it still ran.

    A start takes longer than a batch: of moments from the start on most are before any change.
    """
    changed = changed_at(home)
    pid = nursery.start(**task)
    if generator.random() < 0.6:
        end = time.monotonic() + 20 * within_s
        while changed_at(home) == changed and time.monotonic() < end:
            time.sleep(0.0005)
        within_s /= 4
    time.sleep(generator.random() * within_s)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    ended = nursery.result()
    assert ended in (0, -signal.SIGKILL)
    return ended < 0


def changed_at(home: Home) -> int:
    """How many commits the lake's tables have."""
    return sum(1 for _ in Path(home.lake.root).glob("**/_delta_log/*.json"))


@pytest.mark.parametrize("rebalance", [False, True])
def test_each_message_lands_once_whatever_is_killed_when(
    home: Home, nursery: Nursery, rebalance: bool
) -> None:
    EmbeddedPostgres.attach(str(home.path))  # else each of the killed ones would start a server
    sent = produce(home, lines(LINES, seed=7))
    assert len(sent) == LINES
    incarnation = home.broker.incarnation(TOPIC).id
    generator = random.Random(f"rebalance {rebalance}")
    task: dict[str, Any] = {"home": str(home.path), "ingest_date": DAYS[0]}
    with ExitStack() as stack:
        seen = stack.enter_context(rebalancing(home)) if rebalance else Counter[str]()
        for step in STEPS if not rebalance else ():
            task |= {"ranges": ask(home, incarnation)}
            assert nursery.run(**task, step=step) == -signal.SIGKILL, step

        task |= {"ingest_date": DAYS[1], "ranges": ask(home, incarnation)}
        began = time.monotonic()
        assert nursery.run(**task) == 0
        undisturbed = time.monotonic() - began

        kills = found_between = 0
        while kills < KILLS and (ranges := ask(home, incarnation)):
            if rebalance and kills in (0, KILLS // 2):
                await_rebalance(seen)
            task |= {"ingest_date": DAYS[kills % 2], "ranges": ranges}
            kills += kill_at_random(nursery, home, task, undisturbed, generator)
            found_between += home.in_lake_only(incarnation) > 0
        assert kills == KILLS, "the messages are too few for so many kills"
        assert found_between

        rest = {"home": str(home.path), "ingest_date": DAYS[2], "most": 5000}
        assert nursery.run(**rest) == 0

    assert home.in_lake() == sent
    assert home.in_database() == sent
    highs = {p: mark.high for p, mark in home.broker.watermarks(TOPIC).items()}
    assert home.broker.committed(TOPIC, GROUP) == highs
    assert home.drain(DAYS[2]).messages == 0
    if rebalance:
        assert seen["messages"] > 0


def test_kills_between_the_commit_and_the_database_leave_every_message_once(
    home: Home, nursery: Nursery
) -> None:
    EmbeddedPostgres.attach(str(home.path))
    sent = produce(home, lines(KILLS * ASKED, seed=8))
    incarnation = home.broker.incarnation(TOPIC).id
    behind = 0
    for seed in range(KILLS):
        step = random.Random(seed).choice(BETWEEN)
        task = {"home": str(home.path), "ranges": ask(home, incarnation), "step": step}
        assert nursery.run(**task, ingest_date=DAYS[seed % 2]) == -signal.SIGKILL, step
        # Of one batch alone, though the one before was killed there too.
        behind = home.in_lake_only(incarnation)
        assert 0 < behind <= BATCH, (seed, step)

    assert home.drain(DAYS[2], ranges={99: (0, 1)}).recovered == behind
    assert home.in_lake() == home.in_database()
    home.drain(DAYS[2])
    assert home.in_lake() == home.in_database() == sent


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_broker_that_dies_with_its_process_is_followed_by_another(
    home: Home, nursery: Nursery, seed: int
) -> None:
    """What landed of the first stays, whole; all of the second lands beside it."""
    task = {"home": str(home.path), "ingest_date": DAYS[0]}
    name, call, done = random.Random(seed).choice([s for s in STEPS if s[0] != "prepare"])
    # In its second or third batch, so that something has landed.
    step = name, call + (4 if name == "insert" else 2), done
    assert nursery.run(**task, own=3000, seed=seed, step=step) < 0
    files = home.lake.table(MESSAGES).snapshot().files
    ((old, *_),) = {place[:1] for file in files if (place := Place.of_file(TOPIC, file.name))}
    landed = home.at(old).positions
    assert 0 < sum(landed.values()) < 3000
    assert not home.broker.running

    corrected = as_json(fields(order_item_id="1", sales="1.25"))
    new = as_json(fields(order_item_id="3000"))
    sent = produce(home, iter([*lines(3000, seed), corrected, new]))
    told = home.drain(DAYS[1])
    assert told.incarnation not in (None, old)
    everything = home.in_lake()
    assert home.in_database() == everything
    assert {who: what for who, what in everything.items() if who[0] != old} == sent
    before = [(who, what) for who, what in everything.items() if who[0] == old]
    contents = {json.dumps(said(line), sort_keys=True) for line in lines(3000, seed)}
    assert {json.dumps(what, sort_keys=True) for _, what in before} <= contents
    for partition, end in landed.items():
        offsets = sorted(who[2] for who, _ in before if who[1] == partition)
        assert offsets == list(range(end))  # what had landed, without a gap
    assert len(before) == sum(landed.values())
    starts = [home.at(each).started_at for each in (old, told.incarnation)]
    assert starts[0] < starts[1]


if __name__ == "__main__":
    serve()

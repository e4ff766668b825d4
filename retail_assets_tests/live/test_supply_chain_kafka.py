"""The supply chain's micro-batches between Apache Kafka and Debian's PostgreSQL.

Both are restarted in mid-stream, and a stranger joins the group and leaves it: every message is
once in each sink all the same.
"""

import json
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from confluent_kafka import Consumer

from retail_assets.defs.supply_chain.contract import (
    DEAD_LETTERS,
    GROUP,
    MESSAGES,
    STREAMING,
    TOPIC,
)
from retail_assets.defs.supply_chain.order_lines import examine_source, read_messages
from retail_assets.defs.supply_chain.sample import write_sample
from retail_assets.errors import TransientError
from retail_assets.feeds.stream.batches import Landed
from retail_assets.resources.broker.resource import BrokerResource, CommitRefusedError
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.operational_db import OperationalDbResource
from retail_assets.settings import load_settings
from retail_assets_tests.conftest import PROJECT
from retail_assets_tests.feeds.stream.draining import drain
from retail_assets_tests.live.conftest import Servers, wait_until
from retail_assets_tests.live.test_broker_kafka import OwnKafka

pytestmark = pytest.mark.live

ORDERS = 3_000
TORN = b'{"Order Id": "1", torn'


@pytest.fixture(scope="module")
def kafka(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnKafka]:
    node = OwnKafka(servers, tmp_path_factory.mktemp("kafka"))
    node.start()
    try:
        yield node
    finally:
        node.end(signal.SIGKILL)


@pytest.fixture
def database(servers: Servers) -> Iterator[OperationalDbResource]:
    url = servers.address("POSTGRES_URL", "postgres")
    resource = OperationalDbResource.of(load_settings(postgres=url))

    def clear() -> None:
        with resource.connect() as connection:
            connection.execute(f"drop schema if exists {STREAMING} cascade")

    clear()
    yield resource
    clear()


def restart_postgres(servers: Servers) -> None:
    command = [str(PROJECT / ".ci" / "postgres"), "restart", str(servers.folder), "immediate"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def join_and_leave(address: str, seconds: float) -> None:
    """A stranger's consumer that is a member of our group for a while."""
    stranger = Consumer(
        {"bootstrap.servers": address, "group.id": GROUP, "enable.auto.commit": False}
    )
    stranger.subscribe([TOPIC])

    def has_joined() -> bool:
        stranger.poll(0.1)
        return bool(stranger.assignment())

    try:
        wait_until(has_joined, 60)
        time.sleep(seconds)
    finally:
        stranger.close()


def in_lake(lake: LocalLake) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for dataset in (MESSAGES, DEAD_LETTERS):
        for file in lake.table(dataset).snapshot().files:
            rows = pq.read_table(lake.local_file(file.name), partitioning=None)
            columns = (rows.column(name).to_pylist() for name in ("partition", "offset"))
            found += zip(*columns, strict=True)
    return sorted(found)


def in_database(database: OperationalDbResource) -> tuple[list[tuple[int, int]], list[Any]]:
    """Places of all rows and dead letters, and the payloads of the rows."""
    with database.connect() as connection:
        rows = connection.execute(
            f'select partition, "offset", payload from {MESSAGES.table}'.encode()
        ).fetchall()
        letters = connection.execute(
            f'select partition, "offset" from {DEAD_LETTERS.table}'.encode()
        ).fetchall()
    return sorted([*((p, o) for p, o, _ in rows), *letters]), [payload for *_, payload in rows]


def test_restarts_and_rebalances_in_mid_stream_lose_and_double_nothing(
    servers: Servers, kafka: OwnKafka, database: OperationalDbResource, tmp_path: Path
) -> None:
    file = tmp_path / "orders.csv"
    write_sample(file, orders=ORDERS)
    sent = [*read_messages(examine_source(file)), (b"1", TORN)]
    broker = BrokerResource(servers=kafka.address, home=str(tmp_path))
    lake = LocalLake(root=str(tmp_path / "lake"))
    problems: list[BaseException] = []
    retried: list[TransientError] = []
    landed: list[Landed] = []
    produced = threading.Event()

    def produce() -> None:
        try:
            with broker.producer(TOPIC, GROUP) as producer:
                for number, (key, value) in enumerate(sent):
                    producer.send(key, value)
                    if number % 50 == 0:
                        time.sleep(0.1)
        except BaseException as error:
            problems.append(error)
        finally:
            produced.set()

    def land() -> None:
        while not problems:
            is_last = produced.is_set()
            try:
                landed.append(
                    drain(lake, broker, database, ingest_date="2026-01-02", most_messages=300)
                )
            except TransientError as error:  # as Dagster would: again
                retried.append(error)
                time.sleep(0.2)
                continue
            except BaseException as error:
                problems.append(error)
                return
            if is_last:
                return
            time.sleep(0.1)

    def messages() -> int:
        return sum(found.messages for found in landed)

    threads = [threading.Thread(target=produce), threading.Thread(target=land)]
    for thread in threads:
        thread.start()
    wait_until(lambda: messages() > 500 or bool(problems), 120)
    join_and_leave(kafka.address, 2)
    wait_until(lambda: messages() > 2_000 or bool(problems), 120)
    assert not produced.is_set()  # in mid-stream
    kafka.end(signal.SIGKILL)
    time.sleep(1)
    kafka.start()
    wait_until(lambda: messages() > 4_000 or bool(problems), 120)
    restart_postgres(servers)
    for thread in threads:
        thread.join(300)

    assert not problems and not any(thread.is_alive() for thread in threads)
    expected = sorted(
        (partition, offset)
        for partition, mark in broker.watermarks(TOPIC).items()
        for offset in range(mark.low, mark.high)
    )
    assert len(expected) == len(sent)
    assert in_lake(lake) == expected
    places, payloads = in_database(database)
    assert places == expected
    good = [value for _, value in sent if value != TORN]
    assert Counter(json.dumps(p, sort_keys=True) for p in payloads) == Counter(
        json.dumps(json.loads(value), sort_keys=True) for value in good
    )
    marks = broker.watermarks(TOPIC)
    assert broker.committed(TOPIC, GROUP) == {p: m.high for p, m in marks.items() if m.high}
    assert any(isinstance(error, CommitRefusedError) for error in retried)
    again = drain(lake, broker, database, ingest_date="2026-01-03")
    assert again.messages == 0 and sum(again.lag.values()) == 0

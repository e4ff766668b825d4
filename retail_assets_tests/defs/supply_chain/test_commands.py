"""Tests of the supply chain's commands: what is refused, and a stream stopped in its middle."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from retail_assets.cli import app
from retail_assets.defs.supply_chain.commands import NobodyReadsError, stream_with_progress
from retail_assets.defs.supply_chain.contract import CSV_HEADER, MESSAGES, WITHHELD_HEADER
from retail_assets.defs.supply_chain.order_lines import UnreadableSourceError
from retail_assets.defs.supply_chain.sample import write_sample
from retail_assets.resources.broker import embedded as broker_embedded
from retail_assets.resources.broker.resource import BrokerResource
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.operational_db import OperationalDbResource
from retail_assets.resources.operational_db.embedded import EmbeddedPostgres
from retail_assets.settings import load_settings
from retail_assets_tests.feeds.stream.draining import drain

DAY = "2026-01-02"
ROWS = 500
# Of a row, which compresses to a half: 500 of them are more than the embedded broker takes.
HEX_DIGITS = 80_000


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in list(os.environ):
        if name.startswith(("RETAIL_", "DAGSTER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RETAIL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "orders.csv"
    write_sample(path, orders=20)
    return path


def retail_assets(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=True)


# ---- what is refused


def test_without_a_broker_a_stream_says_what_to_do(home: Path, sample: Path) -> None:
    done = retail_assets("stream", str(sample))

    assert done.exit_code != 0
    assert isinstance(done.exception, NobodyReadsError)
    text = str(done.exception)
    assert "RETAIL_KAFKA is 'embedded'" in text and "make dev" in text
    assert f"retail-assets run supply_chain --stream {sample}" in text
    assert not (home / "broker.json").exists()  # none was started


def test_a_file_that_is_not_there_is_told(home: Path, tmp_path: Path) -> None:
    broker_embedded.ensure(home)
    try:
        with pytest.raises(UnreadableSourceError, match=r"none\.csv"):
            stream_with_progress(load_settings(), tmp_path / "none.csv")
    finally:
        broker_embedded.let_go(home)


@pytest.mark.parametrize("domain", ["online_retail", "coffee_chain"])
def test_a_domain_without_a_topic_takes_no_stream(
    home: Path, sample: Path, domain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retail_assets.commands import run
    from retail_assets.domain import PlanError

    # What takes seconds, and is not asked here.
    monkeypatch.setattr(run, "start_ahead", lambda *_: None)

    done = retail_assets("run", domain, "--stream", str(sample))

    assert isinstance(done.exception, PlanError)
    assert f"--stream is {sample}; {domain} has no topic" in str(done.exception)
    assert "Leave it out" in str(done.exception)


def test_the_supply_chain_takes_no_partitions(home: Path, sample: Path) -> None:
    from retail_assets.domain import PlanError

    done = retail_assets("run", "supply_chain", "--partitions", "2026-01-01")

    assert isinstance(done.exception, PlanError)
    assert "supply_chain has none" in str(done.exception)
    assert not home.exists()


# ---- a stream, stopped and gone on with


def test_a_stream_to_a_running_broker_delivers_every_row(home: Path, sample: Path) -> None:
    broker_embedded.ensure(home)
    try:
        done = retail_assets("stream", str(sample))
        marks = BrokerResource(servers="embedded", home=str(home)).watermarks("supply_chain_data")
    finally:
        broker_embedded.let_go(home)

    assert done.exit_code == 0, done.output
    rows = len(sample.read_bytes().splitlines()) - 1
    assert f"{sample}: {rows:,} messages delivered" in done.output
    assert sum(mark.high for mark in marks.values()) == rows


@contextmanager
def kept_broker(home: Path) -> Iterator[BrokerResource]:
    """A broker in a process of its own, as `retail-assets dev` has it."""
    keeper = subprocess.Popen(
        [
            *(sys.executable, "-m", "retail_assets.resources.broker.keeper"),
            *("--home", str(home), "--parent", str(os.getpid())),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert keeper.stdout is not None
        assert keeper.stdout.readline().startswith("broker ")
        yield BrokerResource(servers="embedded", home=str(home))
    finally:
        keeper.terminate()
        keeper.wait(30)


def write_big(file: Path, small: Path) -> None:
    """So many rows, each of an order of its own, too much for the broker without a consumer."""
    header, line, *_ = small.read_text("latin-1").splitlines()
    assert header == ",".join(CSV_HEADER)
    values = line.split(",")
    generator = random.Random(7)
    with file.open("w", encoding="utf-8") as target:
        target.write(f"{header}\n")
        for number in range(ROWS):
            values[CSV_HEADER.index("Order Id")] = str(number)
            values[CSV_HEADER.index("Order Item Id")] = str(number)
            noise = generator.randbytes(HEX_DIGITS // 2).hex()
            values[CSV_HEADER.index("Product Description")] = noise
            values[CSV_HEADER.index(WITHHELD_HEADER)] = "hunter2"
            target.write(f"{','.join(values)}\n")


def wait_for(what: str, question: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.1)


def streaming(home: Path, file: Path) -> "subprocess.Popen[str]":
    command = Path(sys.executable).with_name("retail-assets")
    return subprocess.Popen(
        [str(command), "stream", str(file)],
        env=os.environ | {"RETAIL_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_stream_stopped_by_ctrl_c_goes_on_where_it_was(
    home: Path, sample: Path, tmp_path: Path
) -> None:
    """The first waits for a consumer and is stopped; the second goes on while it is consumed."""
    big = tmp_path / "big.csv"
    write_big(big, sample)
    lake = LocalLake(root=str(home / "lake"))
    database = OperationalDbResource(url="embedded", home=str(home))
    with kept_broker(home) as broker:

        def in_topic() -> int:
            marks = broker.watermarks("supply_chain_data")
            return sum(mark.high for mark in marks.values())

        first = streaming(home, big)
        seen = [-1]

        def is_full() -> bool:
            time.sleep(1)
            seen.append(in_topic())
            return seen[-1] == seen[-2] > 0

        wait_for("the broker filling up", is_full)
        assert first.poll() is None, first.communicate()  # it waits
        first.send_signal(signal.SIGINT)
        told, errors = first.communicate(timeout=120)

        assert first.returncode == 130, errors
        delivered = in_topic()
        assert 0 < delivered < ROWS
        assert f"stopped: {delivered:,} of {ROWS:,} rows of {big} are delivered" in told
        assert "Give the same command again" in told

        second = streaming(home, big)
        ended = threading.Event()
        outcome: list[str] = []

        def listen() -> None:
            outcome.extend(second.communicate())
            ended.set()

        threading.Thread(target=listen, daemon=True).start()
        landed = drain(lake, broker, database, ingest_date=DAY, follow=lambda: not ended.is_set())
        EmbeddedPostgres.leave(home)

    assert second.returncode == 0, outcome
    assert f"{ROWS - delivered:,} messages delivered, after {delivered:,} before" in outcome[0]
    # A stream that was stopped counts exactly: no row is lost, and none comes twice.
    assert (landed.messages, landed.lost.rows) == (ROWS, 0)
    assert items(lake) == list(range(ROWS))
    assert "hunter2" not in json.dumps(outcome)


def items(lake: LocalLake) -> list[int]:
    """The order items of all messages in the lake, in order."""
    import pyarrow.parquet as pq

    found = []
    for file in lake.partition_uris(MESSAGES):
        table = pq.read_table(file, columns=["order_item_id"], partitioning=None)
        found += table.column(0).to_pylist()
    return sorted(map(int, found))

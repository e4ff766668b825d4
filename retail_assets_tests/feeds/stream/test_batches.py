"""Each message lands once in each sink, wherever a batch failed and whatever was lost since."""

import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import (
    DEAD_LETTERS,
    GROUP,
    MESSAGES,
    SOURCE_COLUMNS,
    TOPIC,
    WITHHELD_HEADER,
)
from retail_assets.defs.supply_chain.feed import FEED
from retail_assets.feeds.stream import sinks
from retail_assets.feeds.stream.batches import Landed
from retail_assets.feeds.stream.positions import (
    BrokerBehindError,
    LakePositions,
    Place,
    plan_ranges,
)
from retail_assets.feeds.stream.sinks import positions_table, rebuild_messages
from retail_assets.resources.broker import embedded as broker_embedded
from retail_assets.resources.broker.resource import (
    BrokerResource,
    Incarnation,
    LostMessagesError,
    Watermark,
)
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.lake.tables import LakeTable, TransactionLostError
from retail_assets.resources.operational_db import OperationalDbResource
from retail_assets.resources.operational_db.embedded import EmbeddedPostgres
from retail_assets_tests.defs.supply_chain.test_messages import as_json, fields
from retail_assets_tests.feeds.stream.draining import drain

DAY = "2026-01-02"
NORTH = "north"
ROWS_TABLE, LETTERS_TABLE = MESSAGES.table, DEAD_LETTERS.table
POSITIONS_TABLE = positions_table(FEED)
Identity = tuple[str, int, int]


@dataclass
class Flow:
    """A home: what was sent through its brokers, and both sinks."""

    home: Path
    lake: LocalLake
    broker: BrokerResource
    database: OperationalDbResource

    def send(self, values: Iterable[bytes | None]) -> None:
        """Produce as others may, tombstones too; keys spread over the partitions."""
        producer = Producer({"bootstrap.servers": self.broker.address})
        for number, value in enumerate(values):
            producer.produce(TOPIC, value, b"%d" % number)
        assert producer.flush(30) == 0

    def drain(self, ingest_date: str = DAY, **how: Any) -> Landed:
        return drain(self.lake, self.broker, self.database, ingest_date=ingest_date, **how)

    def sent(self) -> dict[Identity, bytes | None]:
        """All that is in the living broker."""
        incarnation = self.broker.incarnation(TOPIC).id
        ranges = {p: (mark.low, mark.high) for p, mark in self.broker.watermarks(TOPIC).items()}
        chunks = self.broker.read(TOPIC, ranges, most_messages=10**6, most_bytes=10**9)
        return {(incarnation, m.partition, m.offset): m.value for c in chunks for m in c}

    def end_broker(self) -> None:
        """As where its owner was killed: the next to ask starts another."""
        broker_embedded.let_go(self.home)

    def files(self, dataset: Dataset = MESSAGES) -> dict[str, int]:
        """Files of a table of the lake by name, and their rows."""
        return {file.name: file.rows for file in self.lake.table(dataset).snapshot().files}

    def positions(self) -> dict[int, int]:
        """How far the living incarnation has landed."""
        return self.at().positions

    def at(self) -> LakePositions:
        living = self.broker.incarnation(TOPIC)
        return LakePositions(FEED, self.lake, living, self.broker.watermarks(TOPIC))

    def in_lake(self) -> dict[Identity, dict[str, str | None] | str | None]:
        """What each message is in the lake: fields by header, or the text of a dead letter.

        Values that are left out are listed of exactly the rows that have one.
        """
        names = {c.name: c.header for c in SOURCE_COLUMNS}
        found: list[tuple[Identity, Any]] = []
        without: list[Identity] = []
        for dataset in (MESSAGES, DEAD_LETTERS):
            for file in self.files(dataset):
                table = pq.read_table(self.lake.local_file(file), partitioning=None)
                assert table.schema.equals(dataset.arrow_schema), file
                for row in table.to_pylist():
                    if row.get("row_stays"):
                        without.append((row["incarnation"], row["partition"], row["offset"]))
                        continue
                    said = (
                        row["text"]
                        if "text" in row
                        else {header: row[name] for name, header in names.items()}
                    )
                    found.append(((row["incarnation"], row["partition"], row["offset"]), said))
        twice = [at for at, times in Counter(at for at, _ in found).items() if times > 1]
        assert not twice
        odd = [at for at, said in found if isinstance(said, dict) and said["Latitude"] == NORTH]
        assert sorted(odd) == sorted(without)
        return dict(found)

    def in_database(self) -> dict[Identity, dict[str, str | None] | str | None]:
        """The same, of the database, whose keys are unique by its own count."""
        with self.database.connect() as connection:
            identity = 'select incarnation, partition, "offset"'
            rows, letters = (
                connection.execute(f"{identity}, {what} from {table}".encode()).fetchall()
                for what, table in (
                    ("payload", ROWS_TABLE),
                    ("text", LETTERS_TABLE),
                )
            )
        found = {(str(i), int(p), int(o)): said for i, p, o, said in [*rows, *letters]}
        assert len(found) == len(rows) + len(letters)
        return found

    def assert_once(self, sent: Mapping[Identity, bytes | None]) -> None:
        """Each message sent is in each sink once, and says there what it said."""
        expected = {at: said(value) for at, value in sent.items()}
        assert self.in_lake() == expected
        assert self.in_database() == expected


def said(value: bytes | None) -> dict[str, Any] | str | None:
    """What these tests' messages become: the good ones have texts only."""
    if value is None:
        return None
    with suppress(ValueError):
        found = json.loads(value)
        if isinstance(found, dict) and found.keys() == fields().keys():
            return found
    return value.decode()


def mixed(count: int, seed: int = 0) -> list[bytes | None]:
    """Messages, a tenth of them bad, and another with a value that is left out."""
    generator = random.Random(seed)
    return [
        generator.choice([None, b"hello", b'{"Type": 1}'])
        if (chance := generator.random()) < 0.1
        else as_json(
            fields(
                order_item_id=str(number),
                sales=f"{number}.5",
                latitude=NORTH if chance < 0.2 else "1.5",
            )
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def database() -> Iterator[OperationalDbResource]:
    # Not below pytest's folder, which only its user may enter: root's server is another's.
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o755)
        yield OperationalDbResource(url="embedded", home=home)
        EmbeddedPostgres.leave(home)


@contextmanager
def opened_flow(home: Path, database: OperationalDbResource) -> Iterator[Flow]:
    """An empty home and an empty database."""
    lake = LocalLake(root=str(home / "lake"))
    found = Flow(home, lake, BrokerResource(servers="embedded", home=str(home)), database)
    lose_database(found)
    yield found
    broker_embedded.let_go(home)


@pytest.fixture
def flow(tmp_path: Path, database: OperationalDbResource) -> Iterator[Flow]:
    with opened_flow(tmp_path / "home", database) as found:
        yield found


# What comes next.

# Kafka's topic, of which nothing is known, begins with what there is.
MARKS_OF_THREE = {p: Watermark(7, 2**41) for p in range(3)}
MARKS = st.dictionaries(
    st.integers(0, 9),
    st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda t: Watermark(t[0], t[0] + t[1])),
    max_size=6,
)


@given(MARKS, st.data(), st.one_of(st.none(), st.integers(0, 120)))
def test_plans_are_fair_and_without_a_gap(
    marks: dict[int, Watermark], data: st.DataObject, most: int | None
) -> None:
    positions = {
        p: data.draw(st.integers(mark.low, mark.high))
        for p, mark in marks.items()
        if mark.low or data.draw(st.booleans())
    }
    ranges = plan_ranges(TOPIC, positions, marks, most)
    waiting = {p: mark.high - positions.get(p, 0) for p, mark in marks.items()}
    lengths = {p: end - start for p, (start, end) in ranges.items()}
    assert all(start == positions.get(p, 0) for p, (start, _) in ranges.items())
    assert all(0 < length <= waiting[p] for p, length in lengths.items())
    together = sum(waiting.values())
    assert sum(lengths.values()) == (together if most is None else min(most, together))
    cut = {p: lengths.get(p, 0) for p in waiting if lengths.get(p, 0) < waiting[p]}
    if cut:  # none gets more than one that has to wait, but for what does not divide
        assert max(lengths.values(), default=0) <= min(cut.values()) + 1
    # A batch after another lands all, whatever the cap.
    if most:
        rounds = 0
        while ranges:
            positions |= {p: end for p, (_, end) in ranges.items()}
            ranges = plan_ranges(TOPIC, positions, marks, most)
            rounds += 1
        assert rounds == -(-together // most)
        assert all(positions.get(p, 0) == mark.high for p, mark in marks.items())


@given(MARKS, st.data())
def test_a_plan_never_steps_over_what_is_lost(
    marks: dict[int, Watermark], data: st.DataObject
) -> None:
    positions = {p: data.draw(st.integers(0, mark.high)) for p, mark in marks.items()}
    lost = {p for p, mark in marks.items() if positions[p] < mark.low}
    if not lost:
        assert plan_ranges(TOPIC, positions, marks).keys() == {
            p for p, mark in marks.items() if positions[p] < mark.high
        }
        return
    with pytest.raises(LostMessagesError, match=f"of partition {min(lost)}.*accept_loss"):
        plan_ranges(TOPIC, positions, marks)


def test_a_broker_that_has_less_than_has_landed_is_waited_for() -> None:
    """Its next messages would have offsets that are others' already."""
    marks = {0: Watermark(0, 5), 1: Watermark(0, 5)}
    with pytest.raises(BrokerBehindError, match="partition 1: expected at least the 6 offsets"):
        plan_ranges(TOPIC, {0: 2, 1: 6}, marks)


# An incarnation may be any text without a slash; a number is at most what Kafka has.
PLACES = st.builds(
    Place,
    st.from_regex(r"[0-9a-z_-]{1,40}", fullmatch=True),
    st.integers(0, 10**5),
    st.integers(0, 2**63),
    st.integers(0, 2**63),
    st.dates().map(str),
)


@given(PLACES, st.from_regex(r"[0-9a-f]{16}", fullmatch=True))
def test_a_name_says_what_a_file_has(place: Place, token: str) -> None:
    name = place.file_name(TOPIC, token)
    assert Place.of_file(TOPIC, f"{MESSAGES.location}/{name}") == place
    assert name.startswith(f"ingest_date={place.ingest_date}/m-")  # never hidden
    assert Place.of_file(TOPIC, name.replace("/m-", "/")) is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.dictionaries(st.integers(0, 2), st.integers(0, 2**40), max_size=3),
        ),
        max_size=4,
    ),
    st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),
)
@limits(deadline=None, max_examples=25)
def test_positions_are_what_the_last_commits_made_them(
    moves: list[tuple[str, dict[int, int]]], began: datetime
) -> None:
    with tempfile.TemporaryDirectory() as home:
        lake = LocalLake(root=home)
        expected: dict[str, dict[int, int]] = {}
        starts: dict[str, datetime] = {}
        for incarnation, ends in moves:
            # By a clock that stands still, or goes back.
            now = began - timedelta(days=len(starts))
            found = LakePositions(FEED, lake, Incarnation(incarnation, None), MARKS_OF_THREE, now)
            assert found.positions == expected.get(incarnation, dict.fromkeys(range(3), 7))
            if incarnation in starts:
                assert found.started_at == starts[incarnation]
            else:
                assert found.started_at > max(starts.values(), default=datetime.min)
            found.commit(ends, [], {})
            starts[incarnation] = found.started_at
            expected.setdefault(incarnation, dict.fromkeys(range(3), 7))
            expected[incarnation] |= ends
        for incarnation, positions in expected.items():
            found = LakePositions(FEED, lake, Incarnation(incarnation, None), MARKS_OF_THREE)
            assert found.positions == positions


# Landing.


def test_messages_land_in_both_sinks_once(flow: Flow) -> None:
    flow.send(mixed(500))
    sent = flow.sent()
    landed = flow.drain()
    flow.assert_once(sent)
    assert landed.messages == landed.inserted == 500
    assert landed.lost.rows == sum(isinstance(said(v), str | None) for v in sent.values())
    assert landed.incarnation == flow.broker.incarnation(TOPIC).id
    assert set(landed.lag.values()) == {0}
    assert 0 < landed.oldest_s < 60
    highs = {p: mark.high for p, mark in flow.broker.watermarks(TOPIC).items()}
    assert flow.broker.committed(TOPIC, GROUP) == highs
    assert flow.positions() == highs
    assert sorted(landed.files) == sorted({**flow.files(), **flow.files(DEAD_LETTERS)})
    assert all(f"/ingest_date={DAY}/m-" in name for name in landed.files)

    again = flow.drain("2026-01-03")
    assert (again.messages, again.batches, again.files) == (0, 0, [])
    flow.assert_once(sent)


def test_rows_say_who_they_are(flow: Flow) -> None:
    flow.send([as_json(fields()), b"hello"])
    flow.drain()
    incarnation = flow.broker.incarnation(TOPIC)
    with flow.database.connect() as connection:
        for table in (ROWS_TABLE, LETTERS_TABLE):
            sql = (
                "select incarnation, topic, key, ingest_date::text,"
                f" now() at time zone 'utc' - time < '1 minute' from {table}"
            )
            found = connection.execute(sql.encode()).fetchall()
            key = "0" if table == ROWS_TABLE else "1"
            assert found == [(incarnation.id, TOPIC, key, DAY, True)]
    assert incarnation.started_at is not None
    (name,) = flow.files()
    (row,) = pq.read_table(flow.lake.local_file(name), partitioning=None).to_pylist()
    assert row["message_order"].startswith(f"{incarnation.started_at:%Y%m%dT%H%M%S%f}-")


@pytest.mark.parametrize(("most_messages", "most_bytes"), [(70, 10**9), (10**6, 50_000), (1000, 1)])
def test_batches_keep_to_their_caps(flow: Flow, most_messages: int, most_bytes: int) -> None:
    count = 20 if most_bytes == 1 else 300
    flow.send(mixed(count))
    seen: list[int] = []
    landed = flow.drain(
        most_messages=most_messages,
        most_bytes=most_bytes,
        report=lambda so_far: seen.append(so_far.messages),
    )
    flow.assert_once(flow.sent())
    sizes = [after - before for before, after in zip([0, *seen], seen, strict=False)]
    assert len(sizes) == landed.batches > 1
    assert max(sizes) <= most_messages
    if most_bytes == 1:
        assert set(sizes) == {1}


def test_ranges_asked_for_end_there_and_never_leave_a_gap(flow: Flow) -> None:
    flow.send(mixed(400))
    sent = flow.sent()
    partition = max(sent)[1]

    def upto(end: int) -> dict[Identity, bytes | None]:
        return {at: value for at, value in sent.items() if at[1] == partition and at[2] < end}

    assert flow.drain(ranges={partition: (0, 10)}).messages == 10
    flow.assert_once(upto(10))
    assert flow.drain(ranges={partition: (0, 10)}).messages == 0  # landed already
    assert flow.drain(ranges={partition: (5, 15)}).messages == 5  # but for its beginning
    assert flow.drain(ranges={partition: (18, 20)}).messages == 5  # no gap from 15 to 18
    flow.assert_once(upto(20))
    assert flow.drain(ranges={partition: (20, 30)}, incarnation="another").messages == 0
    assert flow.drain(ranges={99: (0, 30)}).messages == 0
    flow.drain(ranges={partition: (20, 10**9)})
    flow.assert_once(upto(10**9))
    flow.drain()
    flow.assert_once(sent)


def test_following_ends_with_what_came_last(flow: Flow) -> None:
    values = mixed(3000)
    done = threading.Event()

    def produce() -> None:
        for start in range(0, len(values), 500):
            flow.send(values[start : start + 500])
            time.sleep(0.05)
        done.set()

    assert not flow.broker.running
    producer = threading.Thread(target=produce)
    producer.start()
    landed = flow.drain(follow=lambda: not done.is_set(), most_messages=700)
    producer.join()
    assert landed.messages == 3000
    flow.assert_once(flow.sent())


def test_an_error_ends_following_at_once(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that waits for more does not keep the failed one."""
    flow.send(mixed(100))

    def fill_up(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(LocalLake, "put_files", fill_up)
    began = time.monotonic()
    with pytest.raises(OSError, match="no space left"):
        flow.drain(follow=lambda: True)
    assert time.monotonic() - began < 20


def test_of_two_drains_at_once_one_waits(flow: Flow) -> None:
    flow.send(mixed(600))
    landed: list[Landed] = []
    both = [
        threading.Thread(target=lambda: landed.append(flow.drain(most_messages=50)))
        for _ in range(2)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert sorted(each.messages for each in landed) == [0, 600]
    flow.assert_once(flow.sent())


def test_without_a_broker_nothing_is_started(flow: Flow) -> None:
    landed = flow.drain()
    assert (landed.messages, landed.incarnation, dict(landed.lag)) == (0, None, {})
    assert not flow.broker.running


@pytest.mark.parametrize("day", ["20260102", "2026-1-2", "today", ""])
def test_a_day_is_a_day(flow: Flow, day: str) -> None:
    with pytest.raises(ValueError, match=r"ingest_date|isoformat"):
        flow.drain(day)


# The way back.


class Cut(Exception):  # noqa: N818
    """The end of a run, at a step."""


def fail(*_: object) -> None:
    raise Cut


# The steps of a batch, in order: what does each, and at which of its calls.
STEPS: dict[str, tuple[Any, str, int]] = {
    "put": (LocalLake, "put_files", 1),
    "letters": (LakeTable, "commit", 1),
    "rows": (LakeTable, "commit", 2),
    "insert": (sinks, "insert_new", 1),
    "insert letters": (sinks, "insert_new", 2),
    "database": (psycopg.Connection, "commit", 2),  # once its tables were made
    "broker": (BrokerResource, "commit", 1),
}


def drain_and_cut(flow: Flow, step: str, *, done: bool, **how: Any) -> None:
    """A first drain that ends at a step: when it is ``done``, or before."""
    owner, name, last = STEPS[step]
    function = getattr(owner, name)
    calls = 0

    def instead(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == last and not done:
            raise Cut
        result = function(*args, **named)
        if calls == last:
            raise Cut
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, instead)
        with pytest.raises(Cut):
            flow.drain(**how)


def lose_database(flow: Flow) -> None:
    with flow.database.connect() as connection:
        connection.execute("drop schema if exists raw_streaming cascade")


@pytest.mark.parametrize("then", ["", "database lost", "broker gone", "both"])
@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_batch_that_was_cut_short_lands_once(
    flow: Flow, step: str, done: bool, then: str
) -> None:
    """At each step; and where the database is lost since, or the broker, or both."""
    flow.send(mixed(120, seed=len(step)))
    sent = flow.sent()
    drain_and_cut(flow, step, done=done, most_messages=60)
    reached = flow.positions()
    if then in ("database lost", "both"):
        lose_database(flow)
    if then in ("broker gone", "both"):
        flow.end_broker()
        landed = flow.drain("2026-01-03")
        # What had not come into the lake is nowhere; what had is in both, and whole.
        there = {at: value for at, value in sent.items() if at[2] < reached.get(at[1], 0)}
        assert flow.in_lake().keys() == there.keys()
        if there:  # else nothing was ever asked of the database
            flow.assert_once(there)
        assert landed.messages == landed.recovered
        flow.send(mixed(50, seed=99))
        new = flow.sent()
        flow.drain("2026-01-03")
        assert not new.keys() & sent.keys()
        flow.assert_once(there | new)
        return
    landed = flow.drain("2026-01-03")
    flow.assert_once(sent)
    recovered = 0 if then == "" and (step, done) in IN_BOTH else sum(reached.values())
    assert landed.recovered == recovered
    highs = {p: mark.high for p, mark in flow.broker.watermarks(TOPIC).items()}
    assert flow.broker.committed(TOPIC, GROUP) == highs
    # Nothing is left to do, and nothing changes.
    before = flow.files(), flow.files(DEAD_LETTERS)
    again = flow.drain("2026-01-04")
    assert (again.messages, again.inserted) == (0, 0)
    assert before == (flow.files(), flow.files(DEAD_LETTERS))
    flow.assert_once(sent)


IN_BOTH = {("database", True), ("broker", False), ("broker", True)}


def test_dead_letters_whose_rows_never_came_are_taken_out(flow: Flow) -> None:
    """Else they would be there twice: their messages are read again, in another range."""
    flow.send(mixed(60, seed=4))
    sent = flow.sent()
    drain_and_cut(flow, "letters", done=True)
    left = flow.files(DEAD_LETTERS)
    assert left and not flow.files()
    flow.drain(most_messages=7)
    flow.assert_once(sent)
    assert not left.keys() & flow.files(DEAD_LETTERS).keys()

    flow.send([b"hello"] * 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LakePositions, "commit", fail)
        with pytest.raises(Cut):
            flow.drain()
    assert len(flow.in_lake()) == 100
    flow.end_broker()
    flow.drain()
    flow.assert_once(sent)


def test_a_writer_whose_lock_was_lost_adds_nothing(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both read the same messages; the second to commit finds that another went on."""
    flow.send(mixed(100))
    monkeypatch.setattr(LocalLake, "lock", lambda *_: nullcontext())
    commit = LakePositions.commit

    def commit_late(*args: Any) -> None:
        monkeypatch.setattr(LakePositions, "commit", commit)
        assert flow.drain(most_messages=30).messages == 100
        commit(*args)

    monkeypatch.setattr(LakePositions, "commit", commit_late)
    with pytest.raises(TransactionLostError):
        flow.drain()
    flow.assert_once(flow.sent())


@given(st.integers(0, 2**32), st.data())
@limits(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_database_that_is_behind_gets_what_it_lacks(
    database: OperationalDbResource, seed: int, data: st.DataObject
) -> None:
    """From any position of each partition on, within a file or between two."""
    with tempfile.TemporaryDirectory() as home, opened_flow(Path(home), database) as flow:
        flow.send(mixed(60, seed))
        flow.drain(most_messages=25)
        ends = flow.positions()
        kept = {p: data.draw(st.integers(0, end)) for p, end in ends.items()}
        with database.connect() as connection:
            for partition, position in kept.items():
                for table in (ROWS_TABLE, LETTERS_TABLE):
                    sql = f'delete from {table} where partition = %s and "offset" >= %s'
                    connection.execute(sql.encode(), [partition, position])
                sql = f"update {POSITIONS_TABLE} set next_offset = %s where partition = %s"
                connection.execute(sql.encode(), [position, partition])
        assert flow.drain().inserted == sum(ends.values()) - sum(kept.values())
        flow.assert_once(flow.sent())


def test_ranges_of_dead_letters_only_count_as_landed(flow: Flow) -> None:
    """They have no file of rows: the position alone says so, and when the incarnation began."""
    flow.send([b"hello"] * 30)
    landed = flow.drain()
    assert (landed.good, landed.lost.rows, flow.files()) == (0, 30, {})
    positions = flow.positions()
    flow.send([as_json(fields())])
    assert flow.drain().messages == 1
    flow.assert_once(flow.sent())
    assert sum(flow.positions().values()) == sum(positions.values()) + 1
    incarnation = flow.broker.incarnation(TOPIC)
    assert flow.at().started_at == incarnation.started_at


def test_the_history_says_what_each_batch_brought(flow: Flow) -> None:
    flow.send([as_json(fields(latitude=NORTH)), b"hello", as_json(fields())])
    landed = flow.drain(told={"run_id": "a-run"})
    for dataset in (MESSAGES, DEAD_LETTERS):
        (commit,) = flow.lake.table(dataset).history()
        said_there = {name: commit.told[name] for name in HISTORY}
        assert said_there == dict(zip(HISTORY, ("a-run", "3", "2", "1", "1"), strict=True))
        source = commit.told["source"]
        assert source.startswith(f"{TOPIC}, incarnation {landed.incarnation}: ")
        ends = {
            int(each.split(":")[0]): int(each.split("-")[1])
            for each in source.split(": ")[1].split(",")
        }
        assert ends == {p: at for p, at in flow.positions().items() if at}


HISTORY = ("run_id", "rows_read", "rows_written", "quarantined", "values_left_out")


# The database, filled anew.


def test_a_rebuild_fills_the_database_with_what_the_lake_has(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything: dict[Identity, bytes | None] = {}
    for seed in range(2):
        flow.send(mixed(60, seed))
        everything |= flow.sent()
        flow.drain(most_messages=40)
        flow.end_broker()
    with flow.database.connect() as connection:
        connection.execute(f"update {ROWS_TABLE} set payload = '{{}}', key = 'old'".encode())
        connection.execute(f"delete from {LETTERS_TABLE}".encode())
    old = flow.in_database()
    assert old
    insert = sinks.insert_new
    seen: list[Any] = []

    def insert_and_look(*args: Any) -> int:
        inserted = insert(*args)
        seen.append(flow.in_database())
        return inserted

    monkeypatch.setattr(sinks, "insert_new", insert_and_look)
    rows = rebuild_messages(FEED, flow.lake, flow.database)
    assert len(seen) > 2 and all(each == old for each in seen)  # until it is all there
    assert rows == sum(isinstance(said(value), dict) for value in everything.values())
    flow.assert_once(everything)
    flow.send(mixed(20))
    everything |= flow.sent()
    assert flow.drain().recovered == 0
    flow.assert_once(everything)


def test_a_rebuild_that_fails_changes_nothing(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    flow.send(mixed(60))
    flow.drain()
    monkeypatch.setattr(sinks, "insert_new", fail)
    with pytest.raises(Cut):
        rebuild_messages(FEED, flow.lake, flow.database)
    flow.assert_once(flow.sent())


def test_what_the_broker_forgot_is_committed_again(flow: Flow) -> None:
    """Else a sensor would ask for ever for what has landed."""
    flow.send(mixed(40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BrokerResource, "commit", lambda *_, **__: None)
        flow.drain()
    assert flow.broker.committed(TOPIC, GROUP) == {}
    flow.drain()
    highs = {p: mark.high for p, mark in flow.broker.watermarks(TOPIC).items()}
    assert flow.broker.committed(TOPIC, GROUP) == highs


def test_incarnations_follow_each_other(flow: Flow) -> None:
    everything: dict[Identity, bytes | None] = {}
    orders: list[str] = []
    for day in ("2026-01-02", "2026-01-03", "2026-01-04"):
        flow.send(mixed(60, seed=int(day[-1])))
        everything |= flow.sent()
        flow.drain(day)
        flow.end_broker()
    flow.assert_once(everything)
    for day, files in groupby(flow.files(), lambda name: Path(name).parent.name):
        tables = [pq.read_table(flow.lake.local_file(n), partitioning=None) for n in files]
        found = sorted(o for table in tables for o in table.column("message_order").to_pylist())
        assert not orders or orders[-1] < found[0], day
        orders = found


# Losses.


def overflow(flow: Flow, count: int) -> None:
    """Produce more than the embedded broker keeps, without waiting for a consumer."""
    producer = Producer({"bootstrap.servers": flow.broker.address})
    for number in range(count):
        value = as_json(fields(product_description="x" * 9000, order_item_id=str(number)))
        producer.produce(TOPIC, value, b"1", partition=0)
        producer.poll(0)
    producer.flush(30)


def test_a_loss_is_an_error_until_it_is_accepted(flow: Flow) -> None:
    flow.send([as_json(fields())] * 8)
    flow.drain()
    landed = flow.in_lake()
    overflow(flow, 1500)
    low = flow.broker.watermarks(TOPIC)[0].low
    position = max((o for _, p, o in landed if p == 0), default=-1) + 1
    assert low > position
    for _ in range(2):  # again and again
        with pytest.raises(LostMessagesError, match=f"offsets {position} to {low - 1} of part"):
            flow.drain()
    assert flow.in_lake() == landed
    accepted = flow.drain(accept_loss=True, most_messages=100)
    assert accepted.accepted == {0: (position, low)}
    flow.assert_once(flow.sent() | {at: as_json(fields()) for at in landed})
    assert flow.drain().accepted == {}
    told = [commit.told.get("accepted_loss") for commit in flow.lake.table(MESSAGES).history()]
    assert [each for each in told if each] == [f"[[0, {position}, {low}]]"]


def test_what_is_withheld_is_in_no_stored_byte(flow: Flow) -> None:
    secret = "hunter2hunter2"
    flow.send(
        [
            as_json(fields()),
            as_json(fields() | {WITHHELD_HEADER: secret}),
            as_json(fields() | {"customer_password": secret})[:-1],
            as_json({"x": json.dumps({WITHHELD_HEADER: secret})}),
        ]
    )
    assert flow.drain().lost.rows == 3
    with flow.database.connect() as connection:
        rows = connection.execute(f"select * from {LETTERS_TABLE}".encode()).fetchall()
    kept = repr(rows) + repr(flow.in_lake())
    for path in flow.home.glob("lake/**/*"):
        if path.is_file():
            kept += path.read_bytes().decode("latin-1")
    assert secret not in kept
    assert "customerpassword" not in "".join(filter(str.isalpha, kept.lower()))

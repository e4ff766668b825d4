"""Each message lands once in each sink, wherever a batch failed and whatever was lost since."""

import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st

from retail_assets.defs.supply_chain import batches
from retail_assets.defs.supply_chain.batches import (
    DEAD_PREFIX,
    LANDED_PREFIX,
    STATE,
    BrokerBehindError,
    Known,
    Landed,
    OpenBatch,
    Range,
    State,
    drain,
    file_name,
    landed_files,
    plan_ranges,
    read_positions,
)
from retail_assets.defs.supply_chain.contract import (
    DEAD_LETTERS,
    GROUP,
    MESSAGES,
    SOURCE_COLUMNS,
    TOPIC,
    WITHHELD_HEADER,
)
from retail_assets.resources import broker_embedded
from retail_assets.resources.broker import BrokerResource, LostMessagesError, Watermark
from retail_assets.resources.embedded_postgres import EmbeddedPostgres
from retail_assets.resources.lake import BrokenStateError, LocalLake
from retail_assets.resources.operational_db import OperationalDbResource
from retail_assets_tests.defs.supply_chain.test_messages import as_json, fields

DAY = "2026-01-02"
NORTH = "north"
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

    def in_lake(self) -> dict[Identity, dict[str, str | None] | str | None]:
        """What each message is in the lake: fields by header, or the text of a dead letter.

        Values that are left out are listed of exactly the rows that have one.
        """
        names = {c.name: c.header for c in SOURCE_COLUMNS}
        found: list[tuple[Identity, Any]] = []
        without: list[Identity] = []
        for prefix, schema in (
            (LANDED_PREFIX, MESSAGES.arrow_schema),
            (DEAD_PREFIX, DEAD_LETTERS.arrow_schema),
        ):
            for entry in self.lake.list_objects(prefix):
                table = pq.read_table(self.lake.local_file(entry.name), partitioning=None)
                assert table.schema.equals(schema), entry.name
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
                    ("payload", batches.ROWS_TABLE),
                    ("text", batches.LETTERS_TABLE),
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


@pytest.fixture
def flow(tmp_path: Path, database: OperationalDbResource) -> Iterator[Flow]:
    with database.connect() as connection:
        connection.execute("drop schema if exists raw_streaming cascade")
    home = tmp_path / "home"
    yield Flow(
        home,
        LocalLake(root=str(home / "lake")),
        BrokerResource(servers="embedded", home=str(home)),
        database,
    )
    broker_embedded.let_go(home)


# What comes next.

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
    ranges = plan_ranges(positions, marks, most)
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
            ranges = plan_ranges(positions, marks, most)
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
        assert plan_ranges(positions, marks).keys() == {
            p for p, mark in marks.items() if positions[p] < mark.high
        }
        return
    with pytest.raises(LostMessagesError, match=f"of partition {min(lost)}.*accept_loss"):
        plan_ranges(positions, marks)


def test_a_broker_that_has_less_than_has_landed_is_waited_for() -> None:
    """Its next messages would have offsets that are others' already."""
    marks = {0: Watermark(0, 5), 1: Watermark(0, 5)}
    with pytest.raises(BrokerBehindError, match="partition 1: expected at least the 6 offsets"):
        plan_ranges({0: 2, 1: 6}, marks)


RANGES = st.builds(Range, st.integers(0, 99), st.integers(0, 10**15), st.integers(0, 10**15))


@given(
    st.dictionaries(
        st.text("0123456789abcdef", min_size=1),
        st.builds(
            Known,
            st.datetimes(datetime(1970, 1, 1)),
            st.dictionaries(st.integers(0, 99), st.integers(0, 2**60)),
            st.lists(RANGES, max_size=2),
        ),
        min_size=1,
        max_size=3,
    ),
    st.lists(RANGES, max_size=3).map(tuple),
    st.booleans(),
)
def test_the_state_is_read_as_it_was_written(
    known: dict[str, Known], ranges: tuple[Range, ...], is_open: bool
) -> None:
    class Memory:
        said: Any = None

        def write_state(self, name: str, state: Mapping[str, Any]) -> None:
            self.said = json.loads(json.dumps({name: state}))

        def read_state(self, name: str) -> Any:
            return self.said[name]

    lake: Any = Memory()
    state = State(known, OpenBatch(min(known), DAY, ranges) if is_open else None)
    state.write(lake)
    assert State.read(lake) == state


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"incarnations": [], "open": {"incarnation": "a", "ingest_date": DAY, "ranges": []}},
        {"incarnations": [{"id": "a", "started_at": "x", "positions": {}}], "open": None},
        {"incarnations": [{"id": "a"}], "open": None},
        {"incarnations": 1, "open": None},
    ],
)
def test_a_state_that_is_none_says_what_to_do(flow: Flow, content: dict[str, Any]) -> None:
    flow.lake.write_state(STATE, content)
    with pytest.raises(BrokenStateError, match=r"batches\.json.*Delete it.*from the names"):
        flow.drain()


# Landing.


def test_messages_land_in_both_sinks_once(flow: Flow) -> None:
    flow.send(mixed(500))
    sent = flow.sent()
    landed = flow.drain()
    flow.assert_once(sent)
    assert landed.messages == landed.inserted == 500
    assert landed.bad == sum(isinstance(said(v), str | None) for v in sent.values())
    assert landed.incarnation == flow.broker.incarnation(TOPIC).id
    assert set(landed.lag.values()) == {0}
    assert 0 < landed.oldest_s < 60
    highs = {p: mark.high for p, mark in flow.broker.watermarks(TOPIC).items()}
    assert flow.broker.committed(TOPIC, GROUP) == highs
    assert read_positions(flow.lake, str(landed.incarnation)) == highs
    rows = [name for name in landed.files if name.startswith(LANDED_PREFIX)]
    assert landed_files(flow.lake) == {
        DAY: {name: flow.lake.path(name).stat().st_size for name in rows}
    }

    again = flow.drain("2026-01-03")
    assert (again.messages, again.batches, again.files) == (0, 0, ())
    flow.assert_once(sent)


def test_rows_say_who_they_are(flow: Flow) -> None:
    flow.send([as_json(fields()), b"hello"])
    flow.drain()
    incarnation = flow.broker.incarnation(TOPIC)
    with flow.database.connect() as connection:
        for table in (batches.ROWS_TABLE, batches.LETTERS_TABLE):
            sql = (
                "select incarnation, topic, key, ingest_date::text,"
                f" now() at time zone 'utc' - time < '1 minute' from {table}"
            )
            found = connection.execute(sql.encode()).fetchall()
            key = "0" if table == batches.ROWS_TABLE else "1"
            assert found == [(incarnation.id, TOPIC, key, DAY, True)]
    assert incarnation.started_at is not None
    (name,) = [
        name
        for name in landed_files(flow.lake)[DAY]
        if pq.read_metadata(flow.lake.local_file(name)).num_rows
    ]
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
    assert flow.drain(ranges={}).messages == 0
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

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(LocalLake, "put_file", fail)
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


def cut(patch: pytest.MonkeyPatch, step: str, after: int, *, done: bool) -> None:
    """Let the step fail at its call number ``after``, when it is ``done`` or before."""
    calls = Counter[str]()

    def fails(function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **named: Any) -> Any:
            calls[step] += 1
            if calls[step] == after and not done:
                raise Cut
            result = function(*args, **named)
            if calls[step] == after:
                raise Cut
            return result

        return instead

    if step in ("state", "closed"):
        write = State.write

        def write_or_fail(state: State, lake: Any) -> None:
            if (state.open is None) == (step == "closed"):
                fails(write)(state, lake)
            else:
                write(state, lake)

        patch.setattr(State, "write", write_or_fail)
    elif step == "put":
        patch.setattr(LocalLake, "put_file", fails(LocalLake.put_file))
    elif step == "insert":
        patch.setattr(batches, "insert_new", fails(batches.insert_new))
    elif step == "database":
        patch.setattr(psycopg.Connection, "commit", fails(psycopg.Connection.commit))
    else:
        patch.setattr(BrokerResource, "commit", fails(BrokerResource.commit))


def drain_and_cut(flow: Flow, step: str, after: int, *, done: bool, **how: Any) -> None:
    """A drain that ends at a step."""
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, step, after, done=done)
        with pytest.raises(Cut):
            flow.drain(**how)


WITHIN_FILES = [("put", 1, False), *(("put", after, True) for after in range(1, 8))]
MOMENTS = [
    *(("state", after, done) for after, done in [(1, False), (1, True), (2, True)]),
    *WITHIN_FILES,
    *(("insert", after, done) for after, done in [(1, False), (1, True), (2, True)]),
    *((step, 1, done) for step in ("database", "commit", "closed") for done in (False, True)),
]
AFTERWARDS = [
    *((moment, then) for moment in MOMENTS for then in ("", "state lost")),
    *(
        (moment, then)
        for moment in [("state", 1, True), *WITHIN_FILES, ("database", 1, False)]
        for then in ("broker gone", "both")
    ),
]


@pytest.mark.parametrize(("moment", "then"), AFTERWARDS)
def test_a_batch_that_was_cut_short_lands_once(
    flow: Flow, moment: tuple[str, int, bool], then: str
) -> None:
    """At each step; and where the state is lost since, or the broker, or both."""
    step, after, done = moment
    flow.send(mixed(120, seed=after))
    sent = flow.sent()
    drain_and_cut(flow, step, after, done=done, most_messages=60)
    state = State.read(flow.lake)
    if then in ("state lost", "both"):
        flow.lake.delete(f"_state/{STATE}.json")
    if then in ("broker gone", "both"):
        flow.end_broker()
        landed = flow.drain("2026-01-03")
        # What had not come into the lake is nowhere; what had is in both, and whole.
        found = flow.in_lake()
        assert found.items() <= {at: said(value) for at, value in sent.items()}.items()
        if found:
            assert flow.in_database() == found
        for part in landed.dropped:
            assert not {at for at in found if at[1] == part.partition and at[2] >= part.start}
        flow.send(mixed(50, seed=99))
        new = flow.sent()
        flow.drain("2026-01-03")
        assert not new.keys() & sent.keys()
        flow.assert_once({at: value for at, value in sent.items() if at in found} | new)
        return
    flow.drain("2026-01-03")
    flow.assert_once(sent)
    highs = {p: mark.high for p, mark in flow.broker.watermarks(TOPIC).items()}
    assert flow.broker.committed(TOPIC, GROUP) == highs
    if then == "" and state is not None and state.open is not None:
        of_day = landed_files(flow.lake)[DAY]  # and not of the day on which it was finished
        incarnation = state.open.incarnation
        names = {file_name(LANDED_PREFIX, DAY, incarnation, of) for of in state.open.ranges}
        assert names <= of_day.keys()
    # Nothing is left to do, and nothing changes.
    before = {path: path.read_bytes() for path in flow.home.glob("lake/[!_]*/**/*.parquet")}
    assert flow.drain("2026-01-04").messages == 0
    assert before == {path: path.read_bytes() for path in flow.home.glob("lake/[!_]*/**/*.parquet")}
    flow.assert_once(sent)


def test_of_what_is_dropped_no_half_stays(flow: Flow) -> None:
    """Dead letters come first: without their rows they are taken back."""
    flow.send([b"hello"] * 40)
    drain_and_cut(flow, "put", 1, done=True)
    (half,) = flow.lake.list_objects(DEAD_PREFIX)
    flow.end_broker()
    landed = flow.drain()
    assert landed.dropped
    assert sum(of.end - of.start for of in landed.dropped) == 40
    assert not flow.lake.exists(half.name)
    assert list(flow.lake.list_objects(DEAD_PREFIX)) == []


def test_half_a_batch_of_older_rules_is_replaced(flow: Flow) -> None:
    """What was a dead letter when the run was killed is a row by now."""
    flow.send(mixed(30, seed=4))
    drain_and_cut(flow, "put", 1, done=True)
    (half,) = flow.lake.list_objects(DEAD_PREFIX)
    state = State.read(flow.lake)
    assert state is not None and state.open is not None
    others = [file_name(DEAD_PREFIX, DAY, state.open.incarnation, of) for of in state.open.ranges]
    for name in others:
        if name != half.name:
            flow.lake.path(name).write_bytes(flow.lake.path(half.name).read_bytes())
    flow.drain()
    flow.assert_once(flow.sent())


def test_dead_letters_of_an_earlier_version_are_loaded_again(flow: Flow) -> None:
    """Their files do not say whether rows stay: none did."""
    flow.send([b"hello", as_json(fields())] * 5)
    sent = flow.sent()
    flow.drain()
    for entry in flow.lake.list_objects(DEAD_PREFIX):
        file = flow.lake.path(entry.name)
        pq.write_table(pq.read_table(file, partitioning=None).drop_columns("row_stays"), file)
    with flow.database.connect() as connection:
        connection.execute("drop schema raw_streaming cascade")
        connection.commit()
    flow.lake.delete(f"_state/{STATE}.json")

    flow.drain()

    assert flow.in_database() == {at: said(value) for at, value in sent.items()}


def test_ranges_of_dead_letters_only_count_as_landed(flow: Flow) -> None:
    """Their file of rows has none, and still says when the incarnation began."""
    flow.send([b"hello"] * 30)
    landed = flow.drain()
    assert (landed.good, landed.bad) == (0, 30)
    positions = read_positions(flow.lake, str(landed.incarnation))
    flow.lake.delete(f"_state/{STATE}.json")
    flow.send([as_json(fields())])
    assert flow.drain().messages == 1
    flow.assert_once(flow.sent())
    after = read_positions(flow.lake, str(landed.incarnation))
    assert sum(after.values()) == sum(positions.values()) + 1
    state = State.read(flow.lake)
    assert state is not None
    (known,) = state.incarnations.values()
    assert known.started_at == flow.broker.incarnation(TOPIC).started_at


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
    for _, names in sorted(landed_files(flow.lake).items()):
        tables = [pq.read_table(flow.lake.local_file(n), partitioning=None) for n in names]
        found = sorted(o for table in tables for o in table.column("message_order").to_pylist())
        assert not orders or orders[-1] < found[0]
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
    assert accepted.lost == (Range(0, position, low),)
    flow.assert_once(flow.sent() | {at: as_json(fields()) for at in landed})
    assert flow.drain().lost == ()
    state = State.read(flow.lake)
    assert state is not None
    (known,) = state.incarnations.values()
    assert known.lost == [Range(0, position, low)]


def test_an_open_batch_whose_messages_are_lost_is_an_error_until_accepted(flow: Flow) -> None:
    overflow(flow, 20)
    drain_and_cut(flow, "state", 1, done=True)
    overflow(flow, 1500)
    with pytest.raises(LostMessagesError, match="accept_loss"):
        flow.drain()
    low = flow.broker.watermarks(TOPIC)[0].low
    landed = flow.drain(accept_loss=True)
    assert landed.dropped == (Range(0, 0, 20),)
    assert landed.lost == (Range(0, 0, low),)
    flow.assert_once(flow.sent())


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
    assert flow.drain().bad == 3
    with flow.database.connect() as connection:
        rows = connection.execute(f"select * from {batches.LETTERS_TABLE}".encode()).fetchall()
    kept = repr(rows) + repr(flow.in_lake())
    for path in flow.home.glob("lake/**/*"):
        if path.is_file():
            kept += path.read_bytes().decode("latin-1")
    assert secret not in kept
    assert "customerpassword" not in "".join(filter(str.isalpha, kept.lower()))


def test_names_tell_what_a_file_has() -> None:
    of = Range(3, 10, 25)
    name = file_name(LANDED_PREFIX, DAY, "0f-3c", of)
    assert name == (
        "raw_streaming/supply_chain_data/ingest_date=2026-01-02/0f-3c-supply_chain_data-3-10-25.parquet"
    )
    match = batches._NAME.search(name)
    assert match is not None
    assert match.groupdict() == {
        "date": DAY,
        "incarnation": "0f-3c",
        "partition": "3",
        "start": "10",
        "end": "25",
    }

"""What every lake promises, whether it lies in a folder or in a bucket.

Here: one suite, which a test class of each lake inherits and gives the fixture ``new_lake``. Not
here: what only a folder (test_lake.py) or a bucket (test_lake_gcs.py, live/) has to hold.
"""

import itertools
import multiprocessing
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retail_assets.dataset import Column, Dataset
from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.lake import (
    BrokenStateError,
    LakeBusyError,
    LakeResource,
    staging,
    tables,
    vacuum,
)
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.objects import FormerLayoutError
from retail_assets.resources.lake.restoring import restore, set_aside
from retail_assets.resources.lake.tables import (
    BrokenTableError,
    LakeTable,
    TableSchemaError,
    TransactionLostError,
    UnknownVersionError,
)

SALES = Dataset(
    schema="shop",
    name="sales",
    description="Sales.",
    partition_by="day",
    columns=(Column("id", "int64", "Key."), Column("day", "date", "Day.")),
)
SHOPS = Dataset(
    schema="landed_shop",
    domain="shop",
    name="shops",
    description="Shops.",
    columns=(Column("id", "int64", "Key."),),
)
NOTES = replace(SHOPS, name="notes", zone="", folder_by=Column("topic", "string", "Topic."))
DAYS = [f"2011-01-0{n}" for n in range(1, 5)]
D1, D2, D3, D4 = DAYS
DAY_S = 86_400.0
PROCESSES = multiprocessing.get_context("forkserver")  # delta-rs does not live through a fork
PROCESSES.set_forkserver_preload([__name__])

NewLake = Callable[[], LakeResource]
few = settings(
    deadline=None,
    max_examples=12,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)


def publish(
    lake: LakeResource,
    content: Mapping[str, Sequence[int]],
    keys: Sequence[str] | None = None,
    dataset: Dataset = SALES,
    **options: Any,
) -> int:
    """Replace ``keys``, or what there is content of, by one file each; the version."""
    with lake.staging("run-1", "shop/sales") as stage:
        stage.write_partitions(dataset, [(k, rows_of(dataset, k, v)) for k, v in content.items()])
        return stage.publish(dataset, keys or list(content), **options)


def every_day(ids: list[int]) -> dict[str, list[int]]:
    """The same ids for each day."""
    return dict.fromkeys(DAYS, ids)


def rows_of(dataset: Dataset, key: str, ids: Sequence[int]) -> pa.Table:
    """Rows of a partition."""
    values: dict[str, Any] = {"note": [None] * len(ids), "other": [""] * len(ids), "id": ids}
    if dataset.partition_by:
        values["day"] = [date.fromisoformat(key or D1)] * len(ids)
    schema = dataset.arrow_schema
    return pa.table({name: values[name] for name in schema.names}, schema)


def content_of(
    lake: LakeResource, dataset: Dataset = SALES, version: int | None = None
) -> dict[str, list[int]]:
    """What a reader of the table gets: the ids of each partition that has rows."""
    found: dict[str, list[int]] = {}
    files = lake.table(dataset).snapshot(version).filled()
    copies = lake.local_copies([lake.uri(file.name) for file in files])
    for file, copy in zip(files, copies, strict=True):
        ids = pq.read_table(copy, columns=["id"], partitioning=None)["id"].to_pylist()
        assert len(ids) == file.rows
        found.setdefault(file.key, []).extend(ids)
    return {key: sorted(ids) for key, ids in found.items()}


def parquet_of(lake: LakeResource, dataset: Dataset = SALES) -> set[str]:
    """Parquet files where a table lies, its own or not, but for its log's."""
    found = lake.list_objects(f"{dataset.location}/")
    return {x.name for x in found if x.name.endswith(".parquet") and "_delta_log" not in x.name}


def names_of(lake: LakeResource) -> set[tuple[str, str]]:
    """All objects, by name and version."""
    return {(found.name, found.version) for found in lake.list_objects("")}


def put(lake: LakeResource, name: str, text: str | bytes) -> None:
    """Make an object of a text."""
    with lake.scratch() as folder:
        (folder / "file").write_bytes(text.encode() if isinstance(text, str) else text)
        lake.put_file(name, folder / "file")


@contextmanager
def later(days: float) -> Iterator[None]:
    """Let so many days have gone by for a table and for its vacuum."""
    clock = SimpleNamespace(time=lambda: time.time() + days * DAY_S, sleep=time.sleep)
    with pytest.MonkeyPatch.context() as patch:
        for module in (tables, vacuum):
            patch.setattr(module, "time", clock)
        yield


def in_parallel(*work: Callable[[], object]) -> None:
    """Do all at once; fails where one does."""
    errors: list[BaseException] = []

    def guarded(one: Callable[[], object]) -> None:
        try:
            one()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def publish_for_ever(kind: Any, fields: dict[str, Any], first: int, point: str, ready: Any) -> None:
    """A process that replaces all days by one version after the other, until it is killed.

    At ``point``, before or after a commit, it waits for that.
    """
    commit = LakeTable.commit

    def waiting(*arguments: Any, **options: Any) -> Any:
        done = commit(*arguments, **options) if point == "after" else None
        if point:
            ready.set()
            time.sleep(600)
        return done or commit(*arguments, **options)

    LakeTable.commit = waiting  # type: ignore[method-assign]
    lake = kind(**fields)
    for version in itertools.count(first):
        publish(lake, every_day([version] * (1 + version % 5)))
        ready.set()


def hold_lock(kind: Any, fields: dict[str, Any], ready: Any) -> None:
    """A process that holds a lock until it is killed."""
    with kind(**fields).lock("shop"):
        ready.set()
        time.sleep(600)


@contextmanager
def a_process(target: Any, lake: LakeResource, *arguments: Any) -> Iterator[Any]:
    """A process over the same lake that has said it is ready; killed afterwards."""
    ready = PROCESSES.Event()
    process = PROCESSES.Process(
        target=target, args=(type(lake), lake.model_dump(), *arguments, ready)
    )
    process.start()
    try:
        assert ready.wait(60)
        yield process
    finally:
        process.kill()
        process.join()


IDS = st.lists(st.integers(0, 99), max_size=3)
PARTITION = st.tuples(st.lists(IDS, max_size=3), st.booleans())  # files, and whether a ledger
PUBLISH = st.dictionaries(st.sampled_from(DAYS), PARTITION, max_size=3)


class LakeContract:
    """The suite; ``new_lake`` makes an empty lake, of the class that inherits it."""

    @pytest.fixture
    def lake(self, new_lake: NewLake) -> LakeResource:
        return new_lake()

    # ---- tables

    @few
    @given(steps=st.lists(PUBLISH, min_size=1, max_size=4), chosen=st.integers(0, 3))
    def test_a_publish_replaces_its_partitions_and_each_version_stays(
        self, new_lake: NewLake, steps: list[Any], chosen: int
    ) -> None:
        lake, state = new_lake(), dict[str, list[int]]()
        ledgers, versions = dict[str, Ledger](), list[tuple[Any, Any]]()
        for number, step in enumerate(steps):
            said = {}
            with lake.scratch() as scratch, lake.staging("run") as stage:
                for key, (files, has_ledger) in step.items():
                    for place, ids in enumerate(files):
                        file = scratch / f"{key}-{place}.parquet"
                        pq.write_table(pa.table({"id": pa.array(ids, pa.int64())}), file)
                        stage.adopt(SALES, key, [file], below=f"{place % 2}")
                    if has_ledger:
                        said[key] = Ledger(f"f{number}", len(files), stamp=f"{number}", size=number)
                version = stage.publish(SALES, step, said)
            changed = bool(step) or number == 0
            for key, (files, _) in step.items():
                state[key] = sorted(i for ids in files for i in ids)
                ledgers.pop(key, None)
            ledgers |= said
            snapshot = lake.table(SALES).snapshot()
            assert snapshot.version == version
            assert snapshot.ledgers == ledgers
            assert snapshot.rows_of(DAYS) == {key: len(state.get(key, ())) for key in DAYS}
            filled = {key: ids for key, ids in state.items() if ids}
            if version == len(versions):
                versions.append((filled, dict(ledgers)))
            else:  # nothing to commit
                assert not changed or versions[version] == (filled, ledgers)
            assert content_of(lake) == filled

        for number, (rows, noted) in enumerate(versions):
            assert content_of(lake, version=number) == rows
            assert lake.table(SALES).snapshot(number).ledgers == noted
        chosen %= len(versions)
        restore(lake, SALES, chosen, {"run_id": "r"})
        assert content_of(lake) == versions[chosen][0]
        assert lake.table(SALES).snapshot().ledgers == versions[chosen][1]

    def test_a_table_without_partitions_is_one_of_the_key_nothing(self, lake: LakeResource) -> None:
        assert lake.table(SHOPS).snapshot().version == -1
        assert lake.partition_uris(SHOPS, [""]) == []
        publish(lake, {"": [1, 2]}, dataset=SHOPS)
        publish(lake, {"": [3]}, dataset=SHOPS)
        assert content_of(lake, SHOPS) == {"": [3]}
        assert lake.table(SHOPS).snapshot().rows_of([""]) == {"": 1}
        publish(lake, {}, [""], SHOPS)
        assert content_of(lake, SHOPS) == {}
        for key, dataset in ((D1, SHOPS), ("", SALES)):
            with pytest.raises(ValueError, match="expected a key where"):
                publish(lake, {key: []}, dataset=dataset)

    @few
    @given(keys=st.sets(st.text(" a%20b#?é&'+=:~[]*", min_size=1, max_size=6), min_size=1))
    def test_a_key_may_have_any_character_of_a_name(
        self, new_lake: NewLake, keys: set[str]
    ) -> None:
        lake = new_lake()
        for number in range(2):
            publish(lake, {key: [number] for key in keys}, dataset=NOTES)
        assert content_of(lake, NOTES) == {key: [1] for key in keys}
        with later(8):
            assert len(vacuum.vacuum(lake, lake.table(NOTES))) == len(keys)
        assert content_of(lake, NOTES) == {key: [1] for key in keys}

    def test_uris_are_in_the_order_asked_for_and_of_a_readable_schema(
        self, lake: LakeResource
    ) -> None:
        publish(lake, {D1: [1], D2: [], D3: list(range(100_000))})
        uris = lake.partition_uris(SALES, [D3, D4, D2, D1])
        assert [Path(uri).parent.name for uri in uris] == [f"day={D3}", f"day={D1}"]
        assert lake.partition_uris(SALES) == sorted(uris)
        assert lake.read_schema(uris[0]) == SALES.arrow_schema

    def test_what_a_commit_says_stands_in_the_history(self, lake: LakeResource) -> None:
        assert lake.table(SALES).history() == []
        ledger = Ledger("f", 5, duplicates=1, quarantined=2, left_out=3)
        publish(lake, {D1: [1, 2]}, ledgers={D1: ledger}, told={"source": {"a.csv": "0af"}})
        publish(lake, {D1: [3]})
        last, first = lake.table(SALES).history()
        assert [last.version, first.version] == [1, 0]
        assert abs(first.time.timestamp() - time.time()) < 60
        assert first.told == {
            **{"run_id": "run-1", "asset": "shop/sales", "source": '{"a.csv": "0af"}'},
            **{"partitions": "1", "rows_read": "5", "rows_written": "2", "duplicates": "1"},
            **{"quarantined": "2", "values_left_out": "3"},
        }
        assert [x.version for x in lake.table(SALES).history(limit=1)] == [1]

    def test_a_transaction_is_of_the_commit_or_nothing_is(self, lake: LakeResource) -> None:
        table = lake.table(SALES)
        assert table.transactions(["t"]) == {}
        publish(lake, {D1: [1]}, transactions={"t": (None, 5)})
        publish(lake, {}, ["2011-12-31"], transactions={"t": (5, 6), "u": (None, 1)})
        before = table.snapshot()
        for wrong in ({"t": (5, 7)}, {"u": (1, 2), "w": (3, 4)}):
            with pytest.raises(TransactionLostError, match="another writer"):
                publish(lake, {D1: [2]}, transactions=wrong)
        assert table.snapshot() == before
        assert table.transactions(["t", "u", "w"]) == {"t": 6, "u": 1}

    def test_a_nullable_column_is_added_and_other_drift_refused(self, lake: LakeResource) -> None:
        def with_column(column: Column) -> Dataset:
            return replace(SALES, columns=(*SALES.columns, column))

        publish(lake, {D1: [1], D2: [2]})
        wider = with_column(Column("note", "string", "Note.", nullable=True))
        assert publish(lake, {D2: [3]}, dataset=wider) == 2  # the column is a version of its own
        assert content_of(lake, wider) == {D1: [1], D2: [3]}
        before = lake.table(SALES).snapshot()
        drifts = {
            "note is not in it": SALES,
            "note is string and not long": with_column(
                Column("note", "int64", "Note.", nullable=True)
            ),
            "other is missing": replace(
                wider, columns=(*wider.columns, Column("other", "string", "Other."))
            ),
        }
        for said, dataset in drifts.items():
            with pytest.raises(TableSchemaError, match=said):
                publish(lake, {D1: [9]}, dataset=dataset)
        assert lake.table(SALES).snapshot() == before

    def test_a_lake_of_an_earlier_version_is_refused_and_not_touched(
        self, lake: LakeResource
    ) -> None:
        put(lake, f"_state/tables/processed/shop/sales/{D1}.json", "{}")
        put(lake, f"processed/shop/sales/day={D1}/part-0.parquet", "rows")
        before = names_of(lake)
        with pytest.raises(FormerLayoutError, match="Start anew") as error:
            publish(lake, {D1: [1]})
        assert isinstance(error.value, PermanentError) and lake.root in str(error.value)
        assert names_of(lake) == before

    def test_a_log_that_cannot_be_read_is_told_and_not_replaced(self, lake: LakeResource) -> None:
        for number in range(3):
            publish(lake, {D1: [number]})
        log = f"{SALES.location}/_delta_log/"
        for broken in (2, 1):  # the last one cut short; then one between
            put(lake, f"{log}{broken:020}.json", b'{"add":{"pa')
            before = names_of(lake)
            for call in (lambda: content_of(lake), lambda: lake.table(SALES).commit([])):
                with pytest.raises(BrokenTableError, match="_delta_log cannot be read") as error:
                    call()
                assert f"{lake.root}/{SALES.location}" in str(error.value)
            assert names_of(lake) == before

    # ---- writers, readers, and their deaths

    def test_writers_at_once_lose_nothing(self, lake: LakeResource) -> None:
        def write(day: str) -> Callable[[], object]:
            return lambda: [publish(lake, {day: [n]}) for n in range(4)]

        in_parallel(*(write(day) for day in DAYS))  # none of them finds a table

        assert content_of(lake) == {day: [3] for day in DAYS}
        assert lake.table(SALES).snapshot().version == 4 * len(DAYS) - 1

    def test_the_last_of_two_writers_of_the_same_partitions_has_them_all(
        self, lake: LakeResource
    ) -> None:
        def write(writer: int) -> Callable[[], object]:
            return lambda: [
                publish(lake, every_day([writer] * writer), transactions={}) for _ in range(4)
            ]

        in_parallel(write(1), write(2))

        for version in range(lake.table(SALES).snapshot().version + 1):
            found = content_of(lake, version=version)
            assert list(found) == DAYS and found[D1] in ([1], [2, 2])
            assert all(ids == found[D1] for ids in found.values())
        assert version == 7

    def test_two_writers_that_go_on_from_one_number_do_not_both(self, lake: LakeResource) -> None:
        publish(lake, {D1: [0]}, transactions={"t": (None, 0)})
        outcomes: list[object] = []

        def write(number: int) -> None:
            try:
                outcomes.append(publish(lake, {DAYS[number]: [9]}, transactions={"t": (0, number)}))
            except TransactionLostError as error:
                outcomes.append(error)

        in_parallel(lambda: write(1), lambda: write(2))

        assert sum(isinstance(one, int) for one in outcomes) == 1
        number = lake.table(SALES).transactions(["t"])["t"]
        assert number in (1, 2)
        assert content_of(lake) == {D1: [0], DAYS[number]: [9]}

    def test_a_reader_never_sees_a_mixture_while_writers_are_killed(
        self, lake: LakeResource
    ) -> None:
        moments = random.Random(20111209)
        publish(lake, every_day([0]))
        done, seen = threading.Event(), set[int]()

        def read_often() -> None:
            while not done.is_set():
                found = content_of(lake)
                ids = found[D1]
                assert found == every_day([ids[0]] * (1 + ids[0] % 5))
                seen.add(ids[0])

        def kill_often() -> None:
            try:
                for life, point in enumerate(["", "before", "", "after", "before", "", ""]):
                    with a_process(publish_for_ever, lake, 1000 * (life + 1), point):
                        time.sleep(0 if point else moments.uniform(0, 0.3))
            finally:
                done.set()

        in_parallel(read_often, kill_often)

        assert max(seen) > 5000, seen
        kept = {
            file.name
            for commit in lake.table(SALES).history()
            for file in lake.table(SALES).snapshot(commit.version).files
        }
        orphans = parquet_of(lake) - kept
        assert len(orphans) >= 2 * len(DAYS), "no writer was killed before its commit"
        assert content_of(lake)[D1][0] == max(seen)  # and nothing came after
        publish(lake, every_day([7]))
        assert vacuum.vacuum(lake, lake.table(SALES)) == []  # they may be living writers'
        with later(2):
            assert set(vacuum.vacuum(lake, lake.table(SALES))) == orphans
        assert kept <= parquet_of(lake)
        assert content_of(lake) == every_day([7])

    # ---- history

    @few
    @given(
        history_days=st.sampled_from([0, 1, 7]),
        steps=st.lists(
            st.one_of(
                st.dictionaries(st.sampled_from(DAYS), IDS, min_size=1, max_size=2),
                st.sampled_from(["orphan", "restore", "vacuum"]),
                st.integers(5, 100),  # hours that go by
            ),
            max_size=12,
        ),
    )
    def test_vacuum_takes_what_no_kept_version_needs_and_nothing_else(
        self, new_lake: NewLake, history_days: int, steps: list[Any]
    ) -> None:
        lake = new_lake().model_copy(update={"history_days": history_days})
        table, born, now = lake.table(SALES), dict[str, float](), time.time()
        versions: list[tuple[float, set[str]]] = []
        listed = type(lake).list_objects

        def aged(*arguments: Any) -> Iterator[Any]:
            for found in listed(*arguments):
                yield found._replace(modified=born.setdefault(found.name, now))

        def sweep() -> None:
            before, current = parquet_of(lake), versions[-1][1] if versions else set()
            since = now - history_days * DAY_S
            ended = [at for at, _ in versions[1:]]
            kept = [names for at, (_, names) in zip(ended, versions, strict=False) if at > since]
            needed = current.union(*kept)
            expected = {x for x in before if x in needed or now - born[x] <= DAY_S}
            vacuum.vacuum(lake, table)
            assert parquet_of(lake) == (expected if versions else before)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(lake), "list_objects", aged)
            patch.setattr(vacuum, "time", SimpleNamespace(time=lambda: now))
            patch.setattr(staging, "vacuum_now_and_then", lambda *_: None)
            for number, step in enumerate([*steps, "vacuum"]):
                if isinstance(step, int):
                    now += step * 3600
                elif step == "orphan":
                    put(lake, f"{SALES.location}/day={D1}/dead-{number}.parquet", "rows")
                elif step == "vacuum":
                    sweep()
                elif step == "restore":
                    if len(versions) > 1 and versions[-2][1] <= parquet_of(lake):
                        table.restore(len(versions) - 2)
                else:
                    publish(lake, step)
                parquet_of(lake), list(lake.list_objects(""))  # so that all is born by now
                snapshot = table.snapshot()
                if snapshot.version == len(versions):
                    versions.append((now, {file.name for file in snapshot.files}))
                content_of(lake)

    def test_a_version_is_kept_for_as_long_as_it_is_said(self, lake: LakeResource) -> None:
        for number in range(3):
            publish(lake, {D1: [number], D2: [number]}, [D1, D2])
        table = lake.table(SALES)
        with later(6.9):
            vacuum.vacuum(lake, table)
            assert [commit.readable for commit in table.history()] == [True, True, True]
            assert restore(lake, SALES, 0, {"run_id": "r"}) == (3, ())
        assert content_of(lake) == {D1: [0], D2: [0]}
        assert table.history()[0].told == {"restored_version": "0", "run_id": "r"}
        with later(7.1):
            assert [commit.readable for commit in table.history()] == [True, False, False, False]
            assert len(vacuum.vacuum(lake, table, dry_run=True)) == 4
            assert len(vacuum.vacuum(lake, table)) == 4
            with pytest.raises(UnknownVersionError, match=r"version 2 can no longer.* 7 days"):
                table.restore(2)
        for unknown in (-1, 4, 1 << 70):
            with pytest.raises(UnknownVersionError, match=f"shop.sales has no version {unknown}"):
                table.snapshot(unknown)
        assert content_of(lake) == {D1: [0], D2: [0]}

    def test_a_restored_table_remembers_what_was_set_aside(self, lake: LakeResource) -> None:
        good, bad, other = Ledger("good", 1), Ledger("bad", 1), Ledger("other", 1)
        publish(lake, {D1: [1], D2: [2]}, ledgers={D1: good, D2: other})
        publish(lake, {D1: [9]}, ledgers={D1: bad})
        assert restore(lake, SALES, 0, {}) == (2, (D1,))
        assert set_aside(lake, SALES) == {D1: bad}
        assert lake.table(SALES).snapshot().ledgers == {D1: good, D2: other}

    def test_a_table_without_history_has_its_own_files_alone(self, lake: LakeResource) -> None:
        lake = lake.model_copy(update={"history_days": 0})
        for number in range(3):
            publish(lake, {D1: [number], D2: [number]})
        assert content_of(lake) == {D1: [2], D2: [2]}
        assert len(parquet_of(lake)) == 2

    def test_a_publish_vacuums_once_a_day(self, lake: LakeResource) -> None:
        for number in range(3):
            publish(lake, {D1: [number]})
        with later(8):
            publish(lake, {D1: [3]})
            assert len(parquet_of(lake)) == 1
            put(lake, f"{SALES.location}/day={D1}/dead.parquet", "rows")
        with later(8.9):
            publish(lake, {D1: [4]})
            assert len(parquet_of(lake)) == 3
        with later(10):
            publish(lake, {D1: [5]})
            assert len(parquet_of(lake)) == 1

    # ---- objects

    def test_objects_are_listed_by_name(self, lake: LakeResource) -> None:
        names = [f"raw/shop/sales/{n}.csv" for n in ("a_1", "a_2", "deep/a_0", "deep/a_3", "é b")]
        names += ["raw/shop/sales_0.csv", "raw/shopping.csv", "top.csv"]
        for name in reversed(names):
            put(lake, name, name)
        prefixes = ["", "raw", "raw/", "raw/shop", "raw/shop/sales", "raw/shop/sales/", "no/thing"]
        prefixes += ["raw/shop/sales/a_", "raw/shop/sales/deep/", "top.csv", "top.csv/"]
        for prefix in prefixes:
            found = list(lake.list_objects(prefix))
            expected = [n for n in names if n.startswith(prefix)]
            assert [x.name for x in found] == expected
            assert [x.size for x in found] == [len(name.encode()) for name in expected]

    def test_an_object_is_what_was_put_last(self, lake: LakeResource) -> None:
        versions = []
        for text in ("one", "two"):
            put(lake, "raw/shop/file.xlsx", text)
            assert lake.exists("raw/shop/file.xlsx")
            copy = lake.local_file("raw/shop/file.xlsx")
            assert (copy.read_text(), copy.name) == (text, "file.xlsx")
            versions += [found.version for found in lake.list_objects("raw/")]
        assert len(set(versions)) == 2
        for _ in range(2):
            lake.delete("raw/shop/file.xlsx")
        assert not lake.exists("raw/shop/file.xlsx")
        assert lake.read_bytes("raw/shop/file.xlsx") is None
        with pytest.raises(FileNotFoundError, match=r"file\.xlsx"):
            lake.local_file("raw/shop/file.xlsx")

    def test_a_failed_run_leaves_nothing(self, lake: LakeResource) -> None:
        publish(lake, {D1: [1]})
        before = names_of(lake)

        def fail_after_writing() -> None:
            with lake.staging("run") as stage:
                stage.write_partitions(SALES, [(D1, rows_of(SALES, D1, [2]))])
                raise KeyError

        with pytest.raises(KeyError):
            fail_after_writing()
        assert names_of(lake) == before

    def test_state_is_what_was_written_last_and_never_half(self, lake: LakeResource) -> None:
        assert lake.read_state("shop/note") is None
        states = [{"values": [n] * 20_000, "b": None, "a": "é"} for n in range(2)]
        lake.write_state("shop/note", states[0])
        done, seen = threading.Event(), list[bool]()

        def write_often() -> None:
            for n in range(20):
                lake.write_state("shop/note", states[n % 2])
            done.set()

        def read_often() -> None:
            while not done.is_set():
                seen.append(lake.read_state("shop/note") in states)

        in_parallel(write_often, read_often)
        assert seen and all(seen)
        with pytest.raises(TypeError):
            lake.write_state("shop/note", {"version": object()})
        assert lake.read_state("shop/note") == states[1]
        assert [found.name for found in lake.list_objects("")] == ["_state/shop/note.json"]

    @pytest.mark.parametrize("broken", [b'{"a": ', b"", b"\x00" * 20, b'{"a": "\xff"}'])
    def test_broken_state_says_which_and_what_to_do(
        self, lake: LakeResource, broken: bytes
    ) -> None:
        put(lake, "_state/shop/note.json", broken)
        with pytest.raises(BrokenStateError, match="Delete it") as error:
            lake.read_state("shop/note")
        assert lake.uri("_state/shop/note.json") in str(error.value)

    def test_a_lock_is_held_by_one_at_a_time(self, lake: LakeResource) -> None:
        inside, most, entries = 0, 0, 0

        def enter() -> None:
            nonlocal inside, most, entries
            for _ in range(4):
                with lake.lock("shop", timeout_s=60):
                    inside, entries = inside + 1, entries + 1
                    most = max(most, inside)
                    time.sleep(0.01)
                    inside -= 1

        in_parallel(*[enter] * 3)
        assert (most, entries) == (1, 12)
        with pytest.raises(KeyError), lake.lock("shop"):
            raise KeyError
        with lake.lock("shop", timeout_s=1):
            pass

    def test_a_lock_of_another_process_is_waited_for_and_a_dead_ones_taken(
        self, lake: LakeResource
    ) -> None:
        with a_process(hold_lock, lake) as holder:
            with pytest.raises(LakeBusyError, match=r"shop\.lock") as error, lake.lock("shop", 1):
                pytest.fail("two held the lock at once")
            assert isinstance(error.value, TransientError)
            assert f"process {holder.pid}" in str(error.value)
        with lake.lock("shop", timeout_s=30):
            pass

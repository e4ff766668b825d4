"""Tests of retail_assets.resources.lake, over lakes in temporary folders."""

import json
import os
import subprocess
import sys
import threading
import time
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retail_assets.dataset import Column, Dataset
from retail_assets.resources.lake import (
    BrokenStateError,
    LakeBusyError,
    LocalLake,
    split_by_partition,
)

SALES = Dataset(
    schema="shop",
    name="sales",
    description="Sales.",
    partition_by="day",
    columns=(Column("id", "int64", "Key."), Column("day", "date", "Day.")),
)
D1, D2, D3 = "2011-01-01", "2011-01-02", "2011-01-03"


@pytest.fixture
def lake(tmp_path: Path) -> LocalLake:
    return LocalLake(root=str(tmp_path / "lake"))


def rows(day: str, *ids: int) -> tuple[str, pa.Table]:
    records = [{"id": i, "day": date.fromisoformat(day)} for i in ids]
    return day, pa.Table.from_pylist(records, schema=SALES.arrow_schema)


def replace(lake: LocalLake, keys: list[str], *parts: tuple[str, pa.Table]) -> dict[str, int]:
    with lake.staging("run") as stage:
        counts = stage.write_partitions("processed", SALES, "day", parts)
        stage.publish("processed", SALES, "day", keys)
    return counts


def content(lake: LocalLake) -> dict[str, list[int]]:
    """What a reader of processed/<schema>/<table>/**/*.parquet sees, by folder."""
    folder = lake.path("processed/shop/sales")
    return {
        file.parent.name: pq.read_table(file, partitioning=None)["id"].to_pylist()
        for file in sorted(folder.glob("**/*.parquet"))
    }


def files(lake: LocalLake) -> list[str]:
    root = Path(lake.root)
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def test_publish_writes_one_file_a_partition(lake: LocalLake) -> None:
    assert replace(lake, [D1, D2], rows(D1, 1, 2), rows(D2, 3)) == {D1: 2, D2: 1}

    assert content(lake) == {f"day={D1}": [1, 2], f"day={D2}": [3]}
    assert files(lake) == [
        f"processed/shop/sales/day={D1}/part-0.parquet",
        f"processed/shop/sales/day={D2}/part-0.parquet",
    ]


def test_publish_replaces_its_partitions_and_no_others(lake: LocalLake) -> None:
    replace(lake, [D1, D2], rows(D1, 1, 2), rows(D2, 3))

    replace(lake, [D2], rows(D2, 4, 5))

    assert content(lake) == {f"day={D1}": [1, 2], f"day={D2}": [4, 5]}


def test_publish_empties_what_was_not_staged(lake: LocalLake) -> None:
    replace(lake, [D1, D2], rows(D1, 1), rows(D2, 2))

    replace(lake, [D1, D2, D3], rows(D2, 3))

    assert content(lake) == {f"day={D2}": [3]}
    assert not lake.partition_path("processed", SALES, "day", D1).exists()


def test_publish_twice_changes_no_byte(lake: LocalLake) -> None:
    replace(lake, [D1], rows(D1, 1, 2))
    file = lake.partition_path("processed", SALES, "day", D1) / "part-0.parquet"
    before = file.read_bytes()

    replace(lake, [D1], rows(D1, 1, 2))

    assert file.read_bytes() == before


def test_bytes_do_not_depend_on_the_lake_or_the_other_partitions(tmp_path: Path) -> None:
    one, other = LocalLake(root=str(tmp_path / "a")), LocalLake(root=str(tmp_path / "b"))

    replace(one, [D1], rows(D1, 1, 2))
    replace(other, [D1, D2, D3], rows(D1, 1, 2), rows(D2, 3), rows(D3, 4))

    paths = [x.partition_path("processed", SALES, "day", D1) for x in (one, other)]
    first, second = ((path / "part-0.parquet").read_bytes() for path in paths)
    assert first == second


def test_publish_removes_a_stranger_file_of_its_partition(lake: LocalLake) -> None:
    replace(lake, [D1, D2], rows(D1, 1), rows(D2, 2))
    for day in (D1, D2):
        folder = lake.partition_path("processed", SALES, "day", day)
        pq.write_table(rows(day, 99)[1], folder / "part-1.parquet")

    replace(lake, [D1], rows(D1, 3))

    names = [p.name for p in lake.partition_path("processed", SALES, "day", D1).iterdir()]
    assert names == ["part-0.parquet"]
    assert len(list(lake.partition_path("processed", SALES, "day", D2).iterdir())) == 2


def test_publish_removes_a_stranger_folder_of_its_partition(lake: LocalLake) -> None:
    replace(lake, [D1], rows(D1, 1))
    stranger = lake.partition_path("processed", SALES, "day", D1) / "_temporary"
    stranger.mkdir()
    pq.write_table(rows(D1, 99)[1], stranger / "part-0.parquet")

    replace(lake, [D1], rows(D1, 2))

    assert content(lake) == {f"day={D1}": [2]}


def test_a_partition_staged_twice_is_refused(lake: LocalLake) -> None:
    with pytest.raises(FileExistsError):
        replace(lake, [D1], rows(D1, 1), rows(D1, 2))

    assert files(lake) == []


def test_staging_leaves_nothing_on_an_exception(lake: LocalLake) -> None:
    replace(lake, [D1], rows(D1, 1))
    before = files(lake)

    def fail_after_writing() -> None:
        with lake.staging("run") as stage:
            stage.write_partitions("processed", SALES, "day", [rows(D1, 2)])
            raise KeyError

    with pytest.raises(KeyError):
        fail_after_writing()

    assert files(lake) == before
    assert list(lake.path("_stage/runs").iterdir()) == []
    assert content(lake) == {f"day={D1}": [1]}


def test_staging_removes_what_a_killed_run_left_long_ago(lake: LocalLake) -> None:
    old, recent = lake.path("_stage/runs/old"), lake.path("_stage/runs/recent")
    for folder in (old, recent):
        folder.mkdir(parents=True)
    long_ago = time.time() - 8 * 24 * 3600
    os.utime(old, (long_ago, long_ago))

    with lake.staging("run"):
        assert not old.exists()
        assert recent.exists()


def test_runs_that_stage_at_once_do_not_disturb_each_other(lake: LocalLake) -> None:
    errors: list[BaseException] = []

    def stage_often() -> None:
        try:
            for _ in range(200):
                with lake.staging("run"):
                    pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=stage_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []


def test_partition_uris_are_those_that_hold_rows(lake: LocalLake) -> None:
    replace(lake, [D1, D2, D3], rows(D1, 1), rows(D3, 2))

    uris = lake.partition_uris(SALES, [D1, D2, D3])

    assert [Path(uri).parent.name for uri in uris] == [f"day={D1}", f"day={D3}"]
    assert all(Path(uri).is_file() for uri in uris)


def test_partition_rows_counts_what_the_files_hold(lake: LocalLake) -> None:
    replace(lake, [D1, D2], rows(D1, 1, 2, 3), rows(D2, 4))

    assert lake.partition_rows("processed", SALES, "day", [D1, D2, D3]) == {D1: 3, D2: 1, D3: 0}
    assert lake.partition_rows("quarantine", SALES, "day", [D1]) == {D1: 0}


def test_state_comes_back_as_it_was_written(lake: LocalLake) -> None:
    assert lake.read_state("shop/manifest") is None

    lake.write_state("shop/manifest", {"b": [1, None], "a": "é"})
    lake.write_state("shop/manifest", {"a": "£"})

    assert lake.read_state("shop/manifest") == {"a": "£"}
    assert files(lake) == ["_state/shop/manifest.json"]


def test_state_that_cannot_be_written_leaves_the_old_one(lake: LocalLake) -> None:
    lake.write_state("manifest", {"version": 1})

    with pytest.raises(TypeError):
        lake.write_state("manifest", {"version": object()})

    assert lake.read_state("manifest") == {"version": 1}
    assert files(lake) == ["_state/manifest.json"]


def test_a_reader_of_state_never_sees_half_of_it(lake: LocalLake) -> None:
    states = [{"values": [n] * 20_000} for n in range(2)]
    lake.write_state("manifest", states[0])
    done = threading.Event()

    def write_often() -> None:
        for n in range(40):
            lake.write_state("manifest", states[n % 2])
        done.set()

    writer = threading.Thread(target=write_often)
    writer.start()
    seen = 0
    while not done.is_set():
        assert lake.read_state("manifest") in states
        seen += 1
    writer.join()
    assert seen > 0


@pytest.mark.parametrize("broken", [b'{"a": ', b"", b"\x00" * 20, b'{"a": "\xff"}'])
def test_broken_state_says_which_file_and_what_to_do(lake: LocalLake, broken: bytes) -> None:
    lake.write_state("shop/manifest", {"a": 1})
    path = lake.path("_state/shop/manifest.json")
    path.write_bytes(broken)

    with pytest.raises(BrokenStateError, match="Delete it") as error:
        lake.read_state("shop/manifest")

    assert str(path) in str(error.value)


def test_state_is_json_with_sorted_keys(lake: LocalLake) -> None:
    lake.write_state("manifest", {"b": 1, "a": 2})

    text = lake.path("_state/manifest.json").read_text()
    assert list(json.loads(text)) == ["a", "b"]


def test_a_lock_held_by_another_process_is_waited_for_then_given_up(lake: LocalLake) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from filelock import FileLock\n"
            "with FileLock(sys.argv[1]): print('held', flush=True); sys.stdin.read()",
            str(lake.path("_state/shop.lock")),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    lake.path("_state").mkdir(parents=True)
    try:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LakeBusyError, match=r"shop\.lock"), lake.lock("shop", timeout_s=0.1):
            pytest.fail("two held the lock at once")
        holder.stdin.close()
        with lake.lock("shop", timeout_s=10):
            pass
    finally:
        holder.kill()
        holder.wait()


@settings(deadline=None, max_examples=80)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=0, max_size=6),
    cuts=st.lists(st.integers(0, 40), max_size=8),
)
def test_split_gives_each_key_once_whatever_the_cuts(lengths: list[int], cuts: list[int]) -> None:
    first = date(2011, 1, 1)
    days = [first + timedelta(days=2 * i) for i, n in enumerate(lengths) for _ in range(n)]
    expected = {str(day): [x for x, other in enumerate(days) if other == day] for day in set(days)}
    whole = pa.RecordBatch.from_pydict(
        {"day": pa.array(days, pa.date32()), "id": pa.array(range(len(days)), pa.int64())}
    )
    edges = sorted(min(cut, len(days)) for cut in [0, *cuts, 40])
    batches = [whole.slice(a, b - a) for a, b in pairwise(edges)]

    parts = list(split_by_partition(batches, "day", SALES.arrow_schema))

    assert [key for key, _ in parts] == sorted(expected)
    assert {key: table["id"].to_pylist() for key, table in parts} == expected
    assert all(table.schema == SALES.arrow_schema for _, table in parts)
    assert all(set(map(str, table["day"].to_pylist())) == {key} for key, table in parts)

"""Tests of retail_assets.resources.lake, over lakes in temporary folders."""

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

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
SHOPS = Dataset(
    schema="landed_shop",
    domain="shop",
    name="shops",
    description="Shops.",
    columns=(Column("id", "int64", "Key."),),
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


def spill(folder: Path, *files: tuple[int, ...]) -> list[Path]:
    """Files as an engine writes them, named by chance; each holds the ids of one tuple."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{secrets.token_hex(8)}.parquet" for _ in files]
    for path, ids in zip(paths, files, strict=True):
        pq.write_table(pa.table({"id": pa.array(ids, pa.int64())}), path)
    return paths


def adopt(lake: LocalLake, keys: list[str], parts: dict[str, list[tuple[int, ...]]]) -> None:
    """Publish ``keys`` from files of an engine; ``parts`` are its folders below the table's."""
    with lake.scratch() as scratch, lake.staging("run") as stage:
        for number, (folder, written) in enumerate(parts.items()):
            stage.adopt("processed", SALES, folder, spill(scratch / str(number), *written))
        stage.publish("processed", SALES, "day", keys)


def replace_shops(lake: LocalLake, *ids: int) -> None:
    table = pa.table({"id": pa.array(ids, pa.int64())}, schema=SHOPS.arrow_schema)
    with lake.staging("run") as stage:
        stage.write_partitions("processed", SHOPS, "", [("", table)])
        stage.publish("processed", SHOPS, "", [""])


def ids_of(uris: list[str]) -> list[int]:
    return [i for uri in uris for i in pq.read_table(uri, partitioning=None)["id"].to_pylist()]


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


def test_adopted_files_are_moved_in_by_number_in_their_folders(lake: LocalLake) -> None:
    with lake.scratch() as scratch, lake.staging("run") as stage:
        paths = spill(scratch, (1, 2), (3,), (4,))
        stage.adopt("processed", SALES, f"day={D1}/year=2011", paths[:1])
        stage.adopt("processed", SALES, f"day={D1}/year=2010", paths[1:2])
        stage.adopt("processed", SALES, f"day={D1}/year=2010", paths[2:])
        assert not any(path.exists() for path in paths)
        assert content(lake) == {}  # not before it is published
        stage.publish("processed", SALES, "day", [D1])

    table = "processed/shop/sales"
    assert files(lake) == [
        f"{table}/day={D1}/year=2010/part-0.parquet",
        f"{table}/day={D1}/year=2010/part-1.parquet",
        f"{table}/day={D1}/year=2011/part-0.parquet",
    ]
    uris = lake.partition_uris(SALES, [D1])
    assert uris == [str(lake.path(name)) for name in files(lake)]
    assert ids_of(uris) == [3, 4, 1, 2]
    assert lake.partition_rows("processed", SALES, "day", [D1, D2]) == {D1: 4, D2: 0}


LAYOUTS: list[dict[str, list[tuple[int, ...]]]] = [
    {"": [(1,)]},
    {"": [(1,), (2,)]},
    {"/year=2010": [(1,)]},
    {"/year=2010": [(1,), (2,)], "/year=2011": [(3,)]},
    {},
]


@pytest.mark.parametrize("old", LAYOUTS, ids=str)
@pytest.mark.parametrize("new", LAYOUTS, ids=str)
def test_a_partition_of_any_layout_replaces_one_of_any_other(
    lake: LocalLake,
    old: dict[str, list[tuple[int, ...]]],
    new: dict[str, list[tuple[int, ...]]],
) -> None:
    adopt(lake, [D1, D2], {f"day={d}{below}": old[below] for d in (D1, D2) for below in old})
    before = ids_of(lake.partition_uris(SALES, [D2]))

    adopt(lake, [D1], {f"day={D1}{b}": [tuple(10 * i for i in f) for f in new[b]] for b in new})

    expected = [10 * i for written in new.values() for file in written for i in file]
    assert ids_of(lake.partition_uris(SALES, [D1])) == expected
    assert ids_of(lake.partition_uris(SALES, [D2])) == before
    counted = lake.partition_rows("processed", SALES, "day", [D1, D2])
    assert counted == {D1: len(expected), D2: len(before)}


@pytest.mark.parametrize("old", LAYOUTS[1:4], ids=str)
@pytest.mark.parametrize("new", LAYOUTS[:4], ids=str)
def test_a_publish_that_dies_leaves_no_mixture(
    lake: LocalLake,
    monkeypatch: pytest.MonkeyPatch,
    old: dict[str, list[tuple[int, ...]]],
    new: dict[str, list[tuple[int, ...]]],
) -> None:
    """It dies before each of its changes to the file system in turn."""
    whole = [
        {i * factor for written in layout.values() for file in written for i in file}
        for layout, factor in ((old, 1), (new, 10), ({}, 0))
    ]
    tens = {f"day={D1}{b}": [tuple(10 * i for i in f) for f in new[b]] for b in new}
    seen = []
    for allowed in range(4):
        adopt(lake, [D1], {f"day={D1}{below}": old[below] for below in old})
        with monkeypatch.context() as patch:
            dying_after(patch, allowed)
            with suppress(SystemExit):
                adopt(lake, [D1], tens)
        seen.append(set(ids_of(lake.partition_uris(SALES, [D1]))))
        assert seen[-1] in whole

    assert seen[0] == whole[0]
    assert seen[-1] == whole[1]


def dying_after(patch: pytest.MonkeyPatch, changes: int) -> None:
    """Let so many of a publish's changes of names through; the next ends the process."""
    left = iter([True] * changes)

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if next(left, False):
                return real(*arguments)
            raise SystemExit

        return call

    for name in ("rename", "replace", "unlink"):
        patch.setattr(Path, name, dying(getattr(Path, name)))


def test_a_stage_may_publish_twice(lake: LocalLake) -> None:
    adopt(lake, [D1, D2], {f"day={D1}": [(1,), (2,)], f"day={D2}": [(3,), (4,)]})

    with lake.scratch() as scratch, lake.staging("run") as stage:
        for number, day in enumerate((D1, D2)):
            stage.adopt("processed", SALES, f"day={day}", spill(scratch / day, (number,), (9,)))
            stage.publish("processed", SALES, "day", [day])

    assert ids_of(lake.partition_uris(SALES, [D1, D2])) == [0, 9, 1, 9]


def test_a_table_without_partitions_is_one_file_in_its_own_folder(lake: LocalLake) -> None:
    assert lake.partition_uris(SHOPS, [""]) == []

    replace_shops(lake, 1, 2)
    replace_shops(lake, 3)

    assert files(lake) == ["processed/shop/shops/part-0.parquet"]
    assert ids_of(lake.partition_uris(SHOPS, [""])) == [3]
    assert lake.partition_rows("processed", SHOPS, "", [""]) == {"": 1}


def test_a_table_without_partitions_that_was_not_staged_becomes_empty(lake: LocalLake) -> None:
    replace_shops(lake, 1)
    replace(lake, [D1], rows(D1, 2))

    with lake.staging("run") as stage:
        stage.publish("processed", SHOPS, "", [""])

    assert lake.partition_rows("processed", SHOPS, "", [""]) == {"": 0}
    assert content(lake) == {f"day={D1}": [2]}


@pytest.mark.parametrize(("column", "key"), [("", D1), ("day", "")])
def test_a_key_without_a_column_is_refused(lake: LocalLake, column: str, key: str) -> None:
    with lake.staging("run") as stage:
        with pytest.raises(ValueError, match="expected both, or neither"):
            stage.write_partitions("processed", SHOPS, column, [(key, rows(D1, 1)[1])])
        with pytest.raises(ValueError, match="expected both, or neither"):
            stage.publish("processed", SHOPS, column, [key])

    assert files(lake) == []


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


def test_table_files_are_those_of_one_zone_by_name(lake: LocalLake) -> None:
    assert lake.table_files("processed", SALES) == []
    replace(lake, [D2, D1], rows(D2, 2), rows(D1, 1))
    adopt(lake, [D3], {f"day={D3}/year=2011": [(3,), (4,)]})
    Path(lake.root, "processed/shop/sales/notes.txt").write_text("not of the table")

    names = lake.table_files("processed", SALES)

    folder = "processed/shop/sales"
    assert names == [
        f"{folder}/day={D1}/part-0.parquet",
        f"{folder}/day={D2}/part-0.parquet",
        f"{folder}/day={D3}/year=2011/part-0.parquet",
        f"{folder}/day={D3}/year=2011/part-1.parquet",
    ]
    assert all(lake.exists(name) for name in names)
    assert lake.table_files("quarantine", SALES) == []


NAMES = [
    "raw/sales_a.csv",
    "raw/shop/sales/2011/sales_1.csv",
    "raw/shop/sales/drop=1/sales_1.csv",
    "raw/shop/sales/sales_2011-01-01.csv",
    "raw/shop/sales/sales_2011-01-02.csv",
    "raw/shop/sales_2.csv",
    "raw/shopping/list.csv",
    "top.csv",
]


@pytest.mark.parametrize(
    "prefix",
    [
        *("", "t", "raw", "raw/", "raw/s", "raw/shop", "raw/shop/", "raw/shop/sales"),
        *("raw/shop/sales/", "raw/shop/sales/sales_", "raw/shop/sales/sales_2011-01-0"),
        *("raw/shop/sales/drop=1/", "nothing", "nothing/", "raw/nothing/at", "top.csv", "top.csv/"),
    ],
)
@pytest.mark.parametrize(
    "start", ["", "raw/shop/sales/sales_2011-01-02", "raw/shop/sales/drop=1/sales_1.csv", "z"]
)
def test_list_objects_is_by_name_from_a_name_on(lake: LocalLake, prefix: str, start: str) -> None:
    for name in reversed(NAMES):
        lake.path(name).parent.mkdir(parents=True, exist_ok=True)
        lake.path(name).write_text(name)

    found = list(lake.list_objects(prefix, start))

    expected = [name for name in NAMES if name.startswith(prefix) and name >= start]
    assert [one.name for one in found] == expected
    assert [one.size for one in found] == [len(name) for name in expected]


def test_a_version_tells_a_file_from_the_one_that_it_replaces(lake: LocalLake) -> None:
    with lake.scratch() as folder:
        for text in ("one", "two"):  # of one size
            (folder / text).write_text(text)
            lake.put_file(f"raw/{text}", folder / text)
        (before,) = lake.list_objects("raw/one")
        (folder / "new").write_text("six")
        os.utime(folder / "new", ns=(0, 1))
        lake.put_file("raw/one", folder / "new")

    first, second = lake.list_objects("raw/")

    assert (first.name, first.size) == (before.name, before.size)
    assert first.version != before.version
    assert list(lake.list_objects("raw/two")) == [second]


def test_list_objects_leaves_out_what_was_removed_meanwhile(lake: LocalLake) -> None:
    for name in ("a", "b", "c"):
        lake.path("raw").mkdir(parents=True, exist_ok=True)
        lake.path(f"raw/{name}").write_text(name)

    found = lake.list_objects("raw/")
    first = next(found).name
    lake.delete("raw/b")

    assert [first, *(one.name for one in found)] == ["raw/a", "raw/c"]


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

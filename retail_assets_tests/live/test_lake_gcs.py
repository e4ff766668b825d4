"""Tests of retail_assets.resources.lake_gcs against a real server: the same promises as a folder's
lake, and those that only a bucket needs."""

import json
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import PrivateAttr

from retail_assets.dataset import Column, Dataset
from retail_assets.resources.lake import BrokenStateError, LakeBusyError, LakeObject, LocalLake
from retail_assets.resources.lake_gcs import (
    GcsLake,
    LakeAccessError,
    LakeUnreachableError,
    TableManifest,
    manifest_name,
)
from retail_assets.settings import load_settings
from retail_assets_tests.live.conftest import OwnStorage, make_bucket, wait_until

pytestmark = pytest.mark.live

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
TABLE = "processed/shop/sales"
MANIFEST = manifest_name("processed", SALES)
HOUR = 3600.0
SPAWN = multiprocessing.get_context("spawn")


def lake_of(host: str, bucket: str, cache: Path, **fields: Any) -> GcsLake:
    root = f"gs://{bucket}/retail/lake"
    return GcsLake(root=root, cache_dir=str(cache), emulator_host=host, **fields)


@pytest.fixture
def lake(storage_host: str, bucket: str, tmp_path: Path) -> GcsLake:
    return lake_of(storage_host, bucket, tmp_path / "cache")


def rows(day: str, *ids: int) -> tuple[str, pa.Table]:
    records = [{"id": i, "day": date.fromisoformat(day)} for i in ids]
    return day, pa.Table.from_pylist(records, schema=SALES.arrow_schema)


def replace(lake: Any, keys: list[str], *parts: tuple[str, pa.Table]) -> dict[str, int]:
    with lake.staging("run") as stage:
        counts = stage.write_partitions("processed", SALES, "day", parts)
        stage.publish("processed", SALES, "day", keys)
    return dict(counts)


def adopt(lake: GcsLake, keys: list[str], parts: dict[str, list[tuple[int, ...]]]) -> None:
    """Publish ``keys`` from files of an engine: those of each folder, by the ids they hold."""
    with lake.scratch() as scratch, lake.staging("run") as stage:
        for folder, files in parts.items():
            for ids in files:
                path = scratch / "written.parquet"
                pq.write_table(pa.table({"id": pa.array(ids, pa.int64())}), path)
                stage.adopt("processed", SALES, folder, [path])
        stage.publish("processed", SALES, "day", keys)


def ids_of(lake: GcsLake, keys: list[str], dataset: Dataset = SALES) -> list[int]:
    copies = lake.local_copies(lake.partition_uris(dataset, keys))
    return [i for file in copies for i in pq.read_table(file, partitioning=None)["id"].to_pylist()]


def name_of(lake: GcsLake, uri: str) -> str:
    assert uri.startswith(f"{lake.root}/")
    return uri.removeprefix(f"{lake.root}/")


def content(lake: GcsLake, keys: list[str]) -> dict[str, list[int]]:
    """What a reader of the table sees, by partition."""
    names = [name_of(lake, uri) for uri in lake.partition_uris(SALES, keys)]
    return {
        name.split("/")[-2]: pq.read_table(lake.local_file(name), partitioning=None)[
            "id"
        ].to_pylist()
        for name in names
    }


def objects(lake: GcsLake, prefix: str = "") -> dict[str, LakeObject]:
    return {found.name: found for found in lake.list_objects(prefix)}


def in_parallel(*work: Callable[[], object]) -> None:
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


# --- what every lake promises


def test_settings_make_the_lake(storage_host: str, bucket: str, tmp_path: Path) -> None:
    settings = load_settings(
        home=tmp_path, lake=f"gs://{bucket}/a/b", STORAGE_EMULATOR_HOST=storage_host
    )
    lake = GcsLake.of(settings)

    lake.write_state("shop/manifest", {"a": 1})

    client = lake.client()
    assert [b.name for b in client.list_blobs(bucket)] == ["a/b/_state/shop/manifest.json"]


def test_a_lake_may_be_the_whole_bucket(storage_host: str, bucket: str, tmp_path: Path) -> None:
    lake = GcsLake(root=f"gs://{bucket}", cache_dir=str(tmp_path), emulator_host=storage_host)

    replace(lake, [D1], rows(D1, 1))

    assert content(lake, [D1]) == {f"day={D1}": [1]}
    assert MANIFEST in objects(lake)


def test_publish_writes_one_file_a_partition(lake: GcsLake) -> None:
    assert replace(lake, [D1, D2], rows(D1, 1, 2), rows(D2, 3)) == {D1: 2, D2: 1}

    assert content(lake, [D1, D2]) == {f"day={D1}": [1, 2], f"day={D2}": [3]}
    assert sorted(Path(name).parent.name for name in objects(lake, f"{TABLE}/")) == [
        f"day={D1}",
        f"day={D2}",
    ]


def test_publish_replaces_its_partitions_and_no_others(lake: GcsLake) -> None:
    replace(lake, [D1, D2], rows(D1, 1, 2), rows(D2, 3))

    replace(lake, [D2], rows(D2, 4, 5))

    assert content(lake, [D1, D2]) == {f"day={D1}": [1, 2], f"day={D2}": [4, 5]}


def test_publish_empties_what_was_not_staged(lake: GcsLake) -> None:
    replace(lake, [D1, D2], rows(D1, 1), rows(D2, 2))

    replace(lake, [D1, D2, D3], rows(D2, 3))

    assert content(lake, [D1, D2, D3]) == {f"day={D2}": [3]}
    assert list(lake.read_manifest("processed", SALES).partitions) == [f"day={D2}"]


def test_publish_twice_changes_no_byte(lake: GcsLake) -> None:
    replace(lake, [D1, D2], rows(D1, 1, 2), rows(D2, 3))
    before = objects(lake)

    replace(lake, [D1, D2], rows(D1, 1, 2), rows(D2, 3))

    assert objects(lake) == before  # generations too


def test_a_partition_of_several_files_is_one(lake: GcsLake) -> None:
    y10, y11 = f"day={D1}/year=2010", f"day={D1}/year=2011"
    several: dict[str, list[tuple[int, ...]]] = {
        y11: [(1, 2)],
        y10: [(3,), (4,), (4,)],
        f"day={D2}/year=2011": [(5,)],
    }
    adopt(lake, [D1, D2], several)
    before = objects(lake)

    assert sorted(ids_of(lake, [D1])) == [1, 2, 3, 4, 4]
    assert lake.partition_rows("processed", SALES, "day", [D1, D2, D3]) == {D1: 5, D2: 1, D3: 0}
    assert lake.partition_rows("processed", SALES, "day", [D2]) == {D2: 1}
    adopt(lake, [D1, D2], several)
    assert objects(lake) == before

    adopt(lake, [D1], {y10: [(4,), (6,)], f"day={D1}": [(7,)]})

    assert sorted(ids_of(lake, [D1])) == [4, 6, 7]
    assert lake.partition_rows("processed", SALES, "day", [D1, D2]) == {D1: 3, D2: 1}
    adopt(lake, [D1], {})
    assert ids_of(lake, [D1, D2]) == [5]


def test_a_reader_of_several_files_never_sees_some_of_them(lake: GcsLake, tmp_path: Path) -> None:
    def parts(version: int) -> dict[str, list[tuple[int, ...]]]:
        return {f"day={D1}/year={2008 + n}": [(version,)] for n in range(2 + version % 3)}

    adopt(lake, [D1], parts(0))
    done, seen = threading.Event(), list[list[int]]()

    def write_often() -> None:
        try:
            for version in range(1, 12):
                adopt(lake, [D1], parts(version))
        finally:
            done.set()

    def read_often() -> None:
        reader = lake.model_copy(update={"cache_dir": str(tmp_path / "reader")})
        while not done.is_set():
            seen.append(ids_of(reader, [D1]))

    in_parallel(write_often, read_often)

    assert len({ids[0] for ids in seen}) > 1
    assert all(ids == [ids[0]] * (2 + ids[0] % 3) for ids in seen), seen


def test_a_table_without_partitions_is_replaced_and_emptied(lake: GcsLake) -> None:
    def publish(*parts: tuple[str, pa.Table]) -> None:
        with lake.staging("run") as stage:
            stage.write_partitions("processed", SHOPS, "", parts)
            stage.publish("processed", SHOPS, "", [""])

    def shops(*ids: int) -> tuple[str, pa.Table]:
        return "", pa.table({"id": pa.array(ids, pa.int64())}, schema=SHOPS.arrow_schema)

    replace(lake, [D1], rows(D1, 1))
    publish(shops(1, 2))
    publish(shops(3))

    assert ids_of(lake, [""], SHOPS) == [3]
    assert lake.partition_rows("processed", SHOPS, "", [""]) == {"": 1}
    publish()
    assert lake.partition_uris(SHOPS, [""]) == []
    assert lake.partition_rows("processed", SHOPS, "", [""]) == {"": 0}
    assert content(lake, [D1]) == {f"day={D1}": [1]}


def test_publish_writes_again_what_was_deleted_by_hand(lake: GcsLake) -> None:
    replace(lake, [D1, D2], rows(D1, 1, 2), rows(D2, 3))
    (uri,) = lake.partition_uris(SALES, [D1])
    lake.delete(name_of(lake, uri))
    assert lake.partition_rows("processed", SALES, "day", [D1, D2]) == {D1: 0, D2: 1}

    replace(lake, [D1, D2], rows(D1, 1, 2), rows(D2, 3))

    assert content(lake, [D1, D2]) == {f"day={D1}": [1, 2], f"day={D2}": [3]}
    assert lake.partition_rows("processed", SALES, "day", [D1, D2]) == {D1: 2, D2: 1}


def test_bytes_are_those_of_a_lake_in_a_folder(lake: GcsLake, tmp_path: Path) -> None:
    local = LocalLake(root=str(tmp_path / "local"))

    replace(lake, [D1, D2], rows(D1, 1, 2), rows(D2, 3))
    replace(local, [D1], rows(D1, 1, 2))

    (uri,) = lake.partition_uris(SALES, [D1])
    file = local.partition_path("processed", SALES, "day", D1) / "part-0.parquet"
    assert lake.local_file(name_of(lake, uri)).read_bytes() == file.read_bytes()


def test_a_stranger_object_of_a_partition_is_not_read(lake: GcsLake, tmp_path: Path) -> None:
    replace(lake, [D1], rows(D1, 1))
    stranger = tmp_path / "stranger.parquet"
    pq.write_table(rows(D1, 99)[1], stranger)
    lake.put_file(f"{TABLE}/day={D1}/stranger.parquet", stranger)

    assert content(lake, [D1]) == {f"day={D1}": [1]}
    assert lake.partition_rows("processed", SALES, "day", [D1]) == {D1: 1}


def test_a_partition_staged_twice_is_refused(lake: GcsLake) -> None:
    with pytest.raises(FileExistsError):
        replace(lake, [D1], rows(D1, 1), rows(D1, 2))

    assert objects(lake) == {}


def test_staging_leaves_nothing_on_an_exception(lake: GcsLake) -> None:
    replace(lake, [D1], rows(D1, 1))
    before = objects(lake)

    def fail_after_writing() -> None:
        with lake.staging("run") as stage:
            stage.write_partitions("processed", SALES, "day", [rows(D1, 2)])
            raise KeyError

    with pytest.raises(KeyError):
        fail_after_writing()

    assert objects(lake) == before
    assert list((Path(lake.cache_dir) / "stage").iterdir()) == []


def test_partition_uris_are_in_the_order_asked_for(lake: GcsLake) -> None:
    replace(lake, [D1, D2, D3], rows(D1, 1), rows(D3, 2))

    uris = lake.partition_uris(SALES, [D3, D2, D1])

    assert [Path(uri).parent.name for uri in uris] == [f"day={D3}", f"day={D1}"]
    assert lake.partition_uris(SALES, []) == []


def test_local_copies_are_in_order_and_kept(lake: GcsLake, tmp_path: Path) -> None:
    replace(lake, [D1, D2], rows(D1, 1), rows(D2, 2))
    lake = lake.model_copy(update={"cache_dir": str(tmp_path / "another")})
    uris = lake.partition_uris(SALES, [D2, D1])

    copies = lake.local_copies(uris)

    assert [pq.read_table(copy)["id"].to_pylist() for copy in copies] == [[2], [1]]
    inodes = [Path(copy).stat().st_ino for copy in copies]
    assert [Path(copy).stat().st_ino for copy in lake.local_copies(uris)] == inodes


def test_partition_rows_counts_what_is_there(lake: GcsLake) -> None:
    assert lake.partition_rows("processed", SALES, "day", [D1]) == {D1: 0}
    replace(lake, [D1, D2], rows(D1, 1, 2, 3), rows(D2, 4))

    assert lake.partition_rows("processed", SALES, "day", [D1, D2, D3]) == {D1: 3, D2: 1, D3: 0}
    assert lake.partition_rows("processed", SALES, "day", [D2]) == {D2: 1}
    assert lake.partition_rows("quarantine", SALES, "day", [D1]) == {D1: 0}


def test_partition_rows_does_not_count_a_file_that_another_replaced(
    lake: GcsLake, tmp_path: Path
) -> None:
    replace(lake, [D1], rows(D1, 1, 2))
    (uri,) = lake.partition_uris(SALES, [D1])
    other = tmp_path / "other.parquet"
    pq.write_table(rows(D1, 9)[1], other)

    lake.put_file(name_of(lake, uri), other)

    assert lake.partition_rows("processed", SALES, "day", [D1]) == {D1: 0}


def test_read_schema_is_the_files(lake: GcsLake) -> None:
    replace(lake, [D1], rows(D1, *range(500_000)))

    (uri,) = lake.partition_uris(SALES, [D1])

    assert lake.read_schema(uri) == SALES.arrow_schema
    with pytest.raises(FileNotFoundError, match=r"absent\.parquet"):
        lake.read_schema(f"{lake.root}/absent.parquet")


def test_list_objects_is_by_name_from_a_name_on(lake: GcsLake, tmp_path: Path) -> None:
    for day in range(9, 0, -1):
        file = tmp_path / "drop"
        file.write_bytes(b"x" * day)
        lake.put_file(f"raw/coffee/day=2011-01-0{day}/drop=1.csv", file)

    every = list(lake.list_objects("raw/coffee/"))
    later = list(lake.list_objects("raw/coffee/", "raw/coffee/day=2011-01-08"))

    assert [found.size for found in every] == list(range(1, 10))
    assert [found.size for found in later] == [8, 9]
    assert later[0].version.isdigit()
    assert len({found.version for found in every}) == 9
    assert list(lake.list_objects("nothing/")) == []


def test_list_objects_at_prefixes_within_a_folder_and_below(lake: GcsLake, tmp_path: Path) -> None:
    names = [f"raw/shop/sales/{n}.csv" for n in ("a_1", "a_2", "deep/a_0", "deep/a_3")]
    names += ["raw/shop/sales_0.csv", "raw/shopping.csv"]
    for name in reversed(names):
        file = tmp_path / "file"
        file.write_text(name)
        lake.put_file(name, file)

    def listed(*arguments: str) -> list[str]:
        return [found.name for found in lake.list_objects(*arguments)]

    assert listed("raw/shop/sales/") == names[:4]
    assert listed("raw/shop/sales/a_") == names[:2]
    assert listed("raw/shop/sales") == names[:5]
    assert listed("raw/shop/sales/", "raw/shop/sales/a_2.csv") == names[1:4]
    assert listed("raw/shop/sales/deep/", "raw/shop/sales/deep/a_1") == names[3:4]
    assert listed("", "raw/shop/sales_") == names[4:]


@pytest.mark.parametrize("megabytes", [1, 40])  # at once, and by a resumable upload in pieces
def test_a_file_comes_back_as_it_was_put(lake: GcsLake, tmp_path: Path, megabytes: int) -> None:
    expected = random.Random(megabytes).randbytes(megabytes * 1024**2)
    with lake.scratch() as folder:
        file = folder / "file.xlsx"
        file.write_bytes(expected)
        lake.put_file("raw/shop/file.xlsx", file)
        assert not file.exists()
    other = lake.model_copy(update={"cache_dir": str(tmp_path / "another")})

    assert lake.exists("raw/shop/file.xlsx")
    assert lake.local_file("raw/shop/file.xlsx").read_bytes() == expected
    copy = other.local_file("raw/shop/file.xlsx")
    assert copy.read_bytes() == expected
    assert copy.name == "file.xlsx"
    assert other.local_file("raw/shop/file.xlsx") == copy

    lake.delete("raw/shop/file.xlsx")
    lake.delete("raw/shop/file.xlsx")

    assert not lake.exists("raw/shop/file.xlsx")
    with pytest.raises(FileNotFoundError, match=r"file\.xlsx"):
        lake.local_file("raw/shop/file.xlsx")


def test_a_put_file_replaces_and_the_old_copy_is_not_read(lake: GcsLake, tmp_path: Path) -> None:
    for text in ("one", "two"):
        file = tmp_path / "file"
        file.write_text(text)
        lake.put_file("raw/file", file)
        assert lake.local_file("raw/file").read_text() == text


def test_copies_that_nobody_used_for_a_week_are_removed(lake: GcsLake, tmp_path: Path) -> None:
    for name in ("old", "new"):
        file = tmp_path / name
        file.write_text(name)
        lake.put_file(name, file)
        if name == "old":
            old = lake.local_file("old")
            long_ago = time.time() - 8 * 24 * HOUR
            os.utime(old.parent, (long_ago, long_ago))

    assert not old.exists()
    assert lake.local_file("old").read_text() == "old"


def test_state_comes_back_as_it_was_written(lake: GcsLake) -> None:
    assert lake.read_state("shop/manifest") is None

    lake.write_state("shop/manifest", {"b": [1, None], "a": "é"})
    lake.write_state("shop/manifest", {"a": "£"})

    assert lake.read_state("shop/manifest") == {"a": "£"}
    assert list(objects(lake)) == ["_state/shop/manifest.json"]


def test_a_reader_of_state_never_sees_half_of_it(lake: GcsLake) -> None:
    states = [{"values": [n] * 20_000} for n in range(2)]
    lake.write_state("manifest", states[0])
    done, seen = threading.Event(), []

    def write_often() -> None:
        for n in range(40):
            lake.write_state("manifest", states[n % 2])
        done.set()

    def read_often() -> None:
        while not done.is_set():
            seen.append(lake.read_state("manifest") in states)

    in_parallel(write_often, read_often)

    assert seen and all(seen)


@pytest.mark.parametrize("broken", [b'{"a": ', b"", b"\x00" * 20, b'{"a": "\xff"}'])
def test_broken_state_says_which_object_and_what_to_do(lake: GcsLake, broken: bytes) -> None:
    lake._write_bytes("_state/shop/manifest.json", broken)

    with pytest.raises(BrokenStateError, match="Delete it") as error:
        lake.read_state("shop/manifest")

    assert f"{lake.root}/_state/shop/manifest.json" in str(error.value)


@pytest.mark.parametrize("broken", [b"", b"[]", b"{}", b'{"partitions": {"a": 1}, "retired": {}}'])
def test_a_broken_manifest_is_neither_read_nor_replaced(lake: GcsLake, broken: bytes) -> None:
    replace(lake, [D1], rows(D1, 1))
    lake._write_bytes(MANIFEST, broken)

    with pytest.raises(BrokenStateError, match=r"sales\.json is no manifest.*materialize every"):
        lake.partition_uris(SALES, [D1])
    with pytest.raises(BrokenStateError):
        replace(lake, [D1], rows(D1, 2))

    assert lake._read_bytes(MANIFEST) == broken


# --- what only a bucket needs


def test_an_absent_bucket_is_named(storage_host: str, tmp_path: Path) -> None:
    lake = lake_of(storage_host, "nobodys-bucket", tmp_path)
    calls: list[Callable[[], object]] = [
        lambda: lake.exists("a"),
        lambda: lake.read_state("a"),
        lambda: lake.write_state("a", {}),
        lambda: list(lake.list_objects("a")),
        lambda: replace(lake, [D1], rows(D1, 1)),
        lambda: lake.partition_uris(SALES, [D1]),
    ]

    for call in calls:
        with pytest.raises(LakeAccessError, match="gs://nobodys-bucket: there is no such bucket"):
            call()


class Interrupted(GcsLake):
    """A lake whose first write of a manifest comes after another writer's."""

    _first: Callable[[], object] | None = PrivateAttr(default=None)

    def _write_bytes(self, name: str, *arguments: Any, **options: Any) -> int | None:
        if name == MANIFEST and self._first is not None:
            other, self._first = self._first, None
            other()
        return super()._write_bytes(name, *arguments, **options)


def interrupted(lake: GcsLake, other: Callable[[], object]) -> GcsLake:
    late = Interrupted(**lake.model_dump())
    late._first = other
    return late


def test_a_lost_race_applies_its_own_partitions_again(lake: GcsLake) -> None:
    replace(lake, [D1, D2, D3], rows(D1, 1), rows(D2, 2), rows(D3, 3))

    def other() -> object:
        return replace(lake, [D2, D3], rows(D2, 20), rows(D3, 30))

    replace(interrupted(lake, other), [D1, D2], rows(D1, 100), rows(D2, 200))

    assert content(lake, [D1, D2, D3]) == {
        f"day={D1}": [100],
        f"day={D2}": [200],
        f"day={D3}": [30],
    }
    manifest = lake.read_manifest("processed", SALES)
    assert manifest.names() == set(objects(lake, f"{TABLE}/"))
    assert len(manifest.retired) == 4


def test_a_lost_race_uploads_what_it_meant_to_keep(lake: GcsLake) -> None:
    replace(lake, [D1], rows(D1, 1))

    late = interrupted(lake, lambda: replace(lake, [D1], rows(D1, 2)))
    replace(late, [D1, D2], rows(D1, 1), rows(D2, 3))  # its D1 is equal to what it read

    assert content(lake, [D1, D2]) == {f"day={D1}": [1], f"day={D2}": [3]}


def test_a_first_manifest_is_written_once(lake: GcsLake) -> None:
    late = interrupted(lake, lambda: replace(lake, [D1], rows(D1, 1)))

    replace(late, [D2], rows(D2, 2))

    assert content(lake, [D1, D2]) == {f"day={D1}": [1], f"day={D2}": [2]}


def test_writers_at_once_lose_nothing(lake: GcsLake) -> None:
    days = [str(date(2011, 1, 1) + timedelta(n)) for n in range(6)]

    def write(day: str) -> Callable[[], object]:
        return lambda: [replace(lake, [day], rows(day, n)) for n in range(4)]

    in_parallel(*(write(day) for day in days))

    assert content(lake, days) == {f"day={day}": [3] for day in days}


def test_what_was_replaced_is_deleted_after_an_hour(lake: GcsLake) -> None:
    start, passed = time.time(), 0.0
    lake._clock = lambda: start + passed
    replace(lake, [D1, D2], rows(D1, 1), rows(D2, 2))
    (old,) = lake.partition_uris(SALES, [D1])

    replace(lake, [D1], rows(D1, 10))
    passed = HOUR - 1
    replace(lake, [D2], rows(D2, 20))
    assert lake.exists(name_of(lake, old))
    assert len(objects(lake, f"{TABLE}/")) == 4

    passed = HOUR + 1
    replace(lake, [D2], rows(D2, 20))  # equal content, and yet what is due is deleted

    assert not lake.exists(name_of(lake, old))
    assert len(objects(lake, f"{TABLE}/")) == 3  # D2's old object has most of an hour left
    assert content(lake, [D1, D2]) == {f"day={D1}": [10], f"day={D2}": [20]}


def test_what_a_killed_writer_uploaded_is_deleted_after_a_day(
    lake: GcsLake, tmp_path: Path
) -> None:
    start, passed = time.time(), 0.0
    lake._clock = lambda: start + passed
    orphan = f"{TABLE}/day={D1}/dead.parquet"
    file = tmp_path / "dead.parquet"
    pq.write_table(rows(D1, 99)[1], file)
    lake.put_file(orphan, file)

    passed = 23 * HOUR
    replace(lake, [D1], rows(D1, 1))
    assert lake.exists(orphan)

    passed = 25 * HOUR
    replace(lake, [D1], rows(D1, 1))  # changes nothing else

    assert not lake.exists(orphan)
    assert content(lake, [D1]) == {f"day={D1}": [1]}


DAYS = [str(date(2011, 1, 1) + timedelta(n)) for n in range(8)]


def replace_for_ever(host: str, bucket: str, cache: Path, version: int, ready: Any) -> None:
    """A process that replaces all days by one version after the other, until it is killed."""
    lake = lake_of(host, bucket, cache)
    while True:
        replace(lake, DAYS, *(rows(day, *[version] * (1 + version % 7)) for day in DAYS))
        ready.set()
        version += 1


def test_a_reader_never_sees_half_while_writers_are_killed(
    lake: GcsLake, storage_host: str, bucket: str, tmp_path: Path
) -> None:
    moments = random.Random(20111209)
    replace(lake, DAYS, *(rows(day, 0) for day in DAYS))
    done, seen, left = threading.Event(), set[int](), 0

    def read_often() -> None:
        reader = lake.model_copy(update={"cache_dir": str(tmp_path / "reader")})
        while not done.is_set():
            found = content(reader, DAYS)
            assert list(found) == [f"day={day}" for day in DAYS]
            assert len(set(map(tuple, found.values()))) == 1, f"a mixture: {found}"
            ids = found[f"day={DAYS[0]}"]
            assert len(set(ids)) == 1
            assert len(ids) == 1 + ids[0] % 7, f"half a partition: {ids}"
            seen.add(ids[0])

    def kill_often() -> None:
        nonlocal left
        try:
            for life in range(6):
                ready = SPAWN.Event()
                process = SPAWN.Process(
                    target=replace_for_ever,
                    args=(storage_host, bucket, tmp_path / f"{life}", 1000 * (life + 1), ready),
                )
                process.start()
                assert ready.wait(60)
                if life % 2:  # in the middle of its uploads, for certain
                    wait_until(lambda: bool(unnamed(lake)))
                else:
                    time.sleep(moments.uniform(0.1, 1.0))
                process.kill()
                process.join()
                left = max(left, len(unnamed(lake)))
        finally:
            done.set()

    in_parallel(read_often, kill_often)

    assert len(seen) > 6, seen
    assert left > 0, "no writer was killed between its uploads and its manifest"
    replace(lake, DAYS, *(rows(day, 7) for day in DAYS))
    lake._clock = lambda: time.time() + 25 * HOUR
    replace(lake, DAYS, *(rows(day, 8) for day in DAYS))
    assert content(lake, DAYS) == {f"day={day}": [8] for day in DAYS}
    assert unnamed(lake) == set()
    assert len(objects(lake, f"{TABLE}/")) == 2 * len(DAYS)  # and what was replaced just now


def unnamed(lake: GcsLake) -> set[str]:
    """Objects of the table that its manifest does not name."""
    found = set(objects(lake, f"{TABLE}/"))
    return found - lake.read_manifest("processed", SALES).names()


def test_a_server_killed_during_a_publish_and_a_run_again(
    own_storage: OwnStorage, tmp_path: Path
) -> None:
    bucket = make_bucket(own_storage.host)
    lake = lake_of(own_storage.host, bucket, tmp_path / "cache", retry_s=1)
    days = [str(date(2011, 1, 1) + timedelta(n)) for n in range(150)]
    replace(lake, days, *(rows(day, 1) for day in days))
    files = tmp_path / "buckets" / bucket
    before = set(files.rglob("*.parquet"))

    def kill() -> None:
        wait_until(lambda: len(set(files.rglob("*.parquet")) - before) > 5)
        own_storage.kill()

    def publish() -> None:
        with pytest.raises(LakeUnreachableError, match="Run this again"):
            replace(lake, days, *(rows(day, 2) for day in days))

    in_parallel(publish, kill)
    assert len(set(files.rglob("*.parquet")) - before) < 150
    own_storage.start()

    assert content(lake, days) == {f"day={day}": [1] for day in days}
    replace(lake, days, *(rows(day, 2) for day in days))
    assert content(lake, days) == {f"day={day}": [2] for day in days}


def test_a_server_killed_during_a_resumable_upload_is_waited_for(
    own_storage: OwnStorage, tmp_path: Path
) -> None:
    lake = lake_of(own_storage.host, make_bucket(own_storage.host), tmp_path / "cache", retry_s=30)
    expected = random.Random(1).randbytes(120 * 1024**2)
    file = tmp_path / "large.parquet"
    file.write_bytes(expected)
    assert own_storage._process is not None
    server = psutil.Process(own_storage._process.pid)
    size = server.memory_info().rss

    def kill() -> None:
        wait_until(lambda: server.memory_info().rss > size + 24 * 1024**2)
        own_storage.kill()
        assert not list((tmp_path / "buckets").rglob("large*")), "it was over already"
        time.sleep(0.5)
        own_storage.start()

    in_parallel(lambda: lake.put_file("raw/large.parquet", file), kill)

    other = lake.model_copy(update={"cache_dir": str(tmp_path / "other")})
    assert other.local_file("raw/large.parquet").read_bytes() == expected


def test_the_warehouses_server_loads_what_the_lake_names(lake: GcsLake, bigquery_host: str) -> None:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery

    replace(lake, [D1, D2], rows(D1, 1, 2), rows(D2, 3))
    client = bigquery.Client(
        project="emulated",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": bigquery_host},
    )
    dataset = lake.bucket_name.replace("-", "_")
    client.create_dataset(dataset)
    config = bigquery.LoadJobConfig(
        source_format="PARQUET",
        schema=[bigquery.SchemaField("id", "INT64"), bigquery.SchemaField("day", "DATE")],
    )
    uris = lake.partition_uris(SALES, [D1, D2])

    job = client.load_table_from_uri(uris, f"emulated.{dataset}.sales", job_config=config)
    job.result(timeout=60)

    found = client.list_rows(f"emulated.{dataset}.sales")
    assert sorted(row["id"] for row in found) == [1, 2, 3]


# --- locks


def hold_for_ever(host: str, bucket: str, cache: Path, ready: Any) -> None:
    with lake_of(host, bucket, cache, lease_s=2).lock("shop"):
        ready.set()
        time.sleep(3600)


def test_a_lock_of_a_living_process_is_waited_for_and_a_dead_ones_taken(
    storage_host: str, bucket: str, tmp_path: Path
) -> None:
    lake = lake_of(storage_host, bucket, tmp_path / "cache", lease_s=2)
    ready = SPAWN.Event()
    holder = SPAWN.Process(target=hold_for_ever, args=(storage_host, bucket, tmp_path, ready))
    holder.start()
    try:
        assert ready.wait(60)
        # Twice the lease: it is renewed.
        with pytest.raises(LakeBusyError, match=r"shop\.lock") as error, lake.lock("shop", 4):
            pytest.fail("two held the lock at once")
        assert f"process {holder.pid}" in str(error.value)
    finally:
        holder.kill()
        holder.join()

    began = time.monotonic()
    with lake.lock("shop", timeout_s=20):
        assert 1 < time.monotonic() - began < 10
    assert not lake.exists("_state/shop.lock")


def test_a_lock_is_held_by_one_at_a_time(lake: GcsLake) -> None:
    inside, most, entries = 0, 0, 0

    def enter() -> None:
        nonlocal inside, most, entries
        for _ in range(5):
            with lake.lock("shop", timeout_s=60):
                inside += 1
                entries += 1
                most = max(most, inside)
                time.sleep(0.01)
                inside -= 1

    in_parallel(*[enter] * 4)

    assert (most, entries) == (1, 20)


def test_a_lock_that_was_left_long_ago_is_taken_at_once(lake: GcsLake) -> None:
    lake._write_bytes("_state/shop.lock", b'{"owner": "a machine that burnt down"}')
    lake._clock = lambda: time.time() + HOUR

    began = time.monotonic()
    with lake.lock("shop", timeout_s=20):
        assert time.monotonic() - began < 5


def test_a_run_that_lost_its_lock_says_so_and_leaves_it_to_the_other(
    storage_host: str, bucket: str, tmp_path: Path
) -> None:
    lake = lake_of(storage_host, bucket, tmp_path / "cache", lease_s=1)

    def hold() -> None:
        with lake.lock("shop"):
            lake._write_bytes("_state/shop.lock", b'{"owner": "another"}')
            time.sleep(1.5)

    with pytest.raises(LakeBusyError, match="another took the lock"):
        hold()

    left = lake._read_bytes("_state/shop.lock")
    assert left is not None and json.loads(left) == {"owner": "another"}


def test_a_lock_passes_an_exception_on_and_is_free_after_it(lake: GcsLake) -> None:
    with pytest.raises(KeyError), lake.lock("shop"):
        raise KeyError

    assert not lake.exists("_state/shop.lock")


def test_a_manifest_is_its_own_text(lake: GcsLake) -> None:
    replace(lake, [D1, D2], rows(D1, 1), rows(D2, 2))
    replace(lake, [D1], rows(D1, 3))

    manifest = lake.read_manifest("processed", SALES)

    assert TableManifest.from_json(manifest.to_json().encode()) == manifest
    (file,) = manifest.partitions[f"day={D1}"]
    found = objects(lake)[file.name]
    assert (str(file.generation), file.bytes, file.rows) == (found.version, found.size, 1)

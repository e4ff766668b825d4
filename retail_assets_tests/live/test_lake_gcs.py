"""Tests of retail_assets.resources.lake over a real server: the contract, and what takes a server
to hold."""

import json
import random
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from retail_assets.resources.lake import LakeBusyError, open_lake
from retail_assets.resources.lake.bucket import GcsLake
from retail_assets.resources.lake.objects import LakeAccessError, LakeUnreachableError
from retail_assets.settings import load_settings
from retail_assets_tests.live.conftest import OwnStorage, make_bucket, wait_until
from retail_assets_tests.resources.lake_contract import (
    D1,
    D2,
    SALES,
    LakeContract,
    NewLake,
    a_process,
    content_of,
    hold_lock,
    in_parallel,
    publish,
)

pytestmark = pytest.mark.live

HOUR = 3600.0


def lake_of(host: str, bucket: str, cache: Path, **fields: Any) -> GcsLake:
    root = f"gs://{bucket}/retail/lake"
    return GcsLake(root=root, cache_dir=str(cache), emulator_host=host, **fields)


class TestServer(LakeContract):
    @pytest.fixture(scope="class")
    @classmethod
    def new_lake(cls, storage_host: str, tmp_path_factory: pytest.TempPathFactory) -> NewLake:
        cache = tmp_path_factory.mktemp("cache")
        return lambda: lake_of(storage_host, make_bucket(storage_host), cache, lease_s=2)


@pytest.fixture
def lake(storage_host: str, bucket: str, tmp_path: Path) -> GcsLake:
    return lake_of(storage_host, bucket, tmp_path / "cache")


def test_settings_make_the_lake(storage_host: str, bucket: str, tmp_path: Path) -> None:
    settings = load_settings(
        home=tmp_path, lake=f"gs://{bucket}/a/b", STORAGE_EMULATOR_HOST=storage_host
    )
    lake = open_lake(settings)

    lake.write_state("shop/manifest", {"a": 1})

    assert isinstance(lake, GcsLake)
    client = lake.client()
    assert [b.name for b in client.list_blobs(bucket)] == ["a/b/_state/shop/manifest.json"]


def test_a_lake_may_be_the_whole_bucket(storage_host: str, bucket: str, tmp_path: Path) -> None:
    lake = GcsLake(root=f"gs://{bucket}", cache_dir=str(tmp_path), emulator_host=storage_host)
    publish(lake, {D1: [1]})
    assert content_of(lake) == {D1: [1]}
    assert lake.exists(f"{SALES.location}/_delta_log/{0:020}.json")


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


def test_an_absent_bucket_is_named(storage_host: str, tmp_path: Path) -> None:
    lake = lake_of(storage_host, "nobodys-bucket", tmp_path)
    calls: list[Callable[[], object]] = [
        lambda: lake.exists("a"),
        lambda: lake.read_state("a"),
        lambda: lake.write_state("a", {}),
        lambda: list(lake.list_objects("a")),
        lambda: publish(lake, {D1: [1]}),
        lambda: lake.table(SALES).snapshot(),
    ]

    for call in calls:
        with pytest.raises(LakeAccessError, match="gs://nobodys-bucket: there is no such bucket"):
            call()


def test_a_server_killed_during_a_publish_and_a_run_again(
    own_storage: OwnStorage, tmp_path: Path
) -> None:
    bucket = make_bucket(own_storage.host)
    lake = lake_of(own_storage.host, bucket, tmp_path / "cache", retry_s=1)
    days = [str(date(2011, 1, 1) + timedelta(n)) for n in range(150)]
    publish(lake, {day: [1] for day in days})
    files = tmp_path / "buckets" / bucket
    before = set(files.rglob("*.parquet"))

    def kill() -> None:
        wait_until(lambda: len(set(files.rglob("*.parquet")) - before) > 5)
        own_storage.kill()

    def publish_again() -> None:
        with pytest.raises(LakeUnreachableError, match="Run this again"):
            publish(lake, {day: [2] for day in days})

    in_parallel(publish_again, kill)
    assert len(set(files.rglob("*.parquet")) - before) < 150
    own_storage.start()

    assert content_of(lake) == {day: [1] for day in days}
    publish(lake, {day: [2] for day in days})
    assert content_of(lake) == {day: [2] for day in days}


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

    publish(lake, {D1: [1, 2], D2: [3]})
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


def test_a_lock_of_a_living_process_is_renewed_and_a_dead_ones_taken(
    storage_host: str, bucket: str, tmp_path: Path
) -> None:
    lake = lake_of(storage_host, bucket, tmp_path / "cache", lease_s=2)
    with (
        a_process(hold_lock, lake),
        pytest.raises(LakeBusyError, match=r"shop\.lock"),
        lake.lock("shop", 4),  # twice the lease
    ):
        pytest.fail("two held the lock at once")

    began = time.monotonic()
    with lake.lock("shop", timeout_s=20):
        assert 1 < time.monotonic() - began < 10
    assert not lake.exists("_state/shop.lock")


def test_a_lock_that_was_left_long_ago_is_taken_at_once(lake: GcsLake) -> None:
    lake.write_bytes("_state/shop.lock", b'{"owner": "a machine that burnt down"}')
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
            lake.write_bytes("_state/shop.lock", b'{"owner": "another"}')
            time.sleep(1.5)

    with pytest.raises(LakeBusyError, match="another took the lock"):
        hold()

    left = lake.read_bytes("_state/shop.lock")
    assert left is not None and json.loads(left) == {"owner": "another"}

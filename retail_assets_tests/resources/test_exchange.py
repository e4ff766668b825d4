"""Tests of what an engine and this process hand to each other: Exchange, and Spark's use of it.

That a cluster's own connector reads and writes a bucket is its maker's to test: here an engine
that sees only the bucket is the embedded one, behind a copy of every file.
"""

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import PrivateAttr

from retail_assets.defs.coffee_chain.contract import RAW_SALES
from retail_assets.defs.coffee_chain.feed import FEED
from retail_assets.feeds.files import FileTable
from retail_assets.feeds.files.taking import Room, take_files
from retail_assets.resources.lake.bucket import GcsLake
from retail_assets.resources.lake.exchange import LakeObject, RemoteFolder
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.lake.objects import LakeResource, ReplacedError
from retail_assets.resources.spark import (
    EMBEDDED,
    SparkResource,
    UnreadablePathError,
    UnsharedLakeError,
    WrittenFile,
    _Engine,
)
from retail_assets_tests.defs.coffee_chain.raw_zone import D1, D2, RawZone, person, sale
from retail_assets_tests.resources.bucket_server import CREATED, Store, lake_at, refusal, running
from retail_assets_tests.resources.test_spark import child, connect_server

RUN = "11111111-2222-3333-4444-555555555555"
ENGINE = "_stage/engine/"
RAW = "raw/shop/day.csv"
MADE = CREATED.timestamp()  # of each object, as Store tells it
DAY = 24 * 3600.0
SPARK = SparkResource(master=EMBEDDED)


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[tuple[GcsLake, Store]]:
    with running() as server:
        server.script = store = Store()
        yield lake_at(server.url, tmp_path), store


def upload(lake: LakeResource, name: str, text: str = "part,text\na,b\n") -> LakeObject:
    with lake.scratch() as folder:
        (folder / "file").write_text(text)
        lake.put_file(name, folder / "file")
    (found,) = lake.list_objects(name)
    return found


class Elsewhere(SparkResource):
    """An engine that sees nothing of this machine but the bucket."""

    _lake: Any = PrivateAttr()  # typed, Dagster would take it for a resource to be configured
    _folder: Path = PrivateAttr()
    _when_written: Callable[[], object] | None = PrivateAttr(default=None)
    _places: list[str] = PrivateAttr(default_factory=list)

    @property
    def is_cluster(self) -> bool:
        return True

    def read_csv(self, file: Path | str, columns: Sequence[str], *, quoted: bool = False) -> Any:
        assert isinstance(file, str)
        self._places.append(file)
        copy = self._folder / f"read-{len(self._places)}.csv"
        shutil.copy(self._lake.local_file(self._name(file)), copy)
        return super().read_csv(copy, columns, quoted=quoted)

    def write(
        self, frame: Any, folder: Path | RemoteFolder, by: Sequence[str]
    ) -> list[WrittenFile]:
        assert isinstance(folder, RemoteFolder)
        name, here = self._name(folder.uri), self._folder / f"written-{len(self._places)}"

        def through_the_bucket() -> Path:
            for file in [file for file in here.rglob("*") if file.is_file()]:
                self._lake.put_file(f"{name}/{file.relative_to(here).as_posix()}", file)
            if name.endswith("/written") and self._when_written is not None:
                self._when_written()
            return folder.fetch()

        return super().write(frame, RemoteFolder(str(here), through_the_bucket), by)

    def _name(self, uri: str) -> str:
        assert uri.startswith(f"{self._lake.root}/")
        return uri.removeprefix(f"{self._lake.root}/")


@pytest.fixture
def elsewhere(bucket: tuple[GcsLake, Store], tmp_path: Path) -> Iterator[Elsewhere]:
    spark = Elsewhere(master=EMBEDDED)
    spark._lake, spark._folder = bucket[0], tmp_path / "elsewhere"
    spark._folder.mkdir()
    _Engine.of(EMBEDDED).shared.clear()
    yield spark
    _Engine.of(EMBEDDED).shared.clear()


def deliver(root: Path) -> RawZone:
    """Two drops: one plain, of which nothing is copied, and one with all that needs a copy."""
    zone = RawZone(root)
    zone.sales(D1, sale(1), sale(2, quantity="two"), sale(3), sale(4).replace("I4", "I3"))
    zone.sales(D2, sale(1, at="2017-12-31 23:59:59"), '2,"I,2",2018-03-01 10:00:00', sale(3))
    zone.customers(D1, person(1), person(2, "c2", "1990-02-30"), person(3, "\u00e9"))
    return zone


def content(lake: LakeResource, large: FileTable) -> list[str]:
    """Rows of a table's processed partitions, as text, in order."""
    files = lake.local_copies(lake.partition_uris(large.dataset, [D1, D2]))
    tables = [pq.read_table(file, partitioning=None) for file in files]
    return sorted(json.dumps(row, default=str) for table in tables for row in table.to_pylist())


def take(lake: LakeResource, spark: SparkResource) -> dict[str, Any]:
    """Take both drops of each table; returns the ledgers' counts and the rows."""
    found: dict[str, Any] = {}
    room = Room(lake, RUN, SimpleNamespace(spark=spark))
    for large in FEED.dated:
        taken = take_files(FEED, large, [D1, D2], room, most_lost=0.1)
        counts = {k: [x.ledger.read, x.ledger.written, *x.ledger[2:4]] for k, x in taken.items()}
        found[large.dataset.name] = {"counts": counts, "rows": content(lake, large)}
    return found


# ---- where an engine runs here


def test_nothing_is_copied_for_an_engine_of_this_machine(
    bucket: tuple[GcsLake, Store], tmp_path: Path
) -> None:
    lake, store = bucket
    raw = upload(lake, RAW)
    local = LocalLake(root=str(tmp_path / "lake"))
    for one, cluster in ((lake, False), (local, False), (local, True)):
        with one.exchange(RUN, cluster=cluster) as exchange:
            file = exchange.folder / "clean.csv"
            file.touch()
            assert exchange.place(file) is file
            assert exchange.place(file, raw) is file
            assert exchange.target("written") == exchange.folder / "written"
        assert not exchange.folder.exists()
    assert list(store.objects) == [RAW]


# ---- a bucket between


def test_a_raw_object_is_read_where_it_is_and_a_clean_copy_is_uploaded(
    bucket: tuple[GcsLake, Store],
) -> None:
    lake, store = bucket
    raw = upload(lake, RAW)
    with lake.exchange(RUN, cluster=True) as exchange:
        assert exchange.place(lake.local_file(RAW), raw) == f"gs://shop-lake/{RAW}"
        assert store.names("") == [RAW]
        copies = []
        for text in ("one", "two"):  # of one name, in two folders
            file = exchange.folder / text / "same.csv"
            file.parent.mkdir()
            file.write_text(text)
            copies.append(str(exchange.place(file)))
        names = [uri.removeprefix("gs://shop-lake/") for uri in copies]
        assert [store.objects[name][0] for name in names] == [b"one", b"two"]
        assert all(name.startswith(f"{ENGINE}{RUN}-") for name in names)
    assert store.names("") == [RAW]


def test_a_raw_object_that_was_replaced_before_it_was_placed_is_uploaded_as_it_was_scanned(
    bucket: tuple[GcsLake, Store],
) -> None:
    lake, store = bucket
    listed = upload(lake, RAW, "old")
    upload(lake, RAW, "new")
    scanned = lake.local_file(RAW)
    with lake.exchange(RUN, cluster=True) as exchange:
        placed = str(exchange.place(scanned, listed)).removeprefix("gs://shop-lake/")
        assert placed.startswith(ENGINE)
        assert store.objects[placed][0] == b"new"


@pytest.mark.parametrize("gone", [False, True])
def test_a_raw_object_that_was_replaced_while_it_was_read_is_told(
    bucket: tuple[GcsLake, Store], gone: bool
) -> None:
    lake, store = bucket
    raw = upload(lake, RAW)
    with lake.exchange(RUN, cluster=True) as exchange:
        exchange.place(lake.local_file(RAW), raw)
        target = exchange.target("written")
        assert isinstance(target, RemoteFolder)
        target.fetch()
        if gone:
            lake.delete(RAW)
        else:
            upload(lake, RAW, "other")
        with pytest.raises(ReplacedError, match=rf"gs://shop-lake/{RAW} was replaced while"):
            target.fetch()
    assert store.names(ENGINE) == []


def test_what_an_engine_wrote_comes_here_but_for_what_it_gave_up(
    bucket: tuple[GcsLake, Store],
) -> None:
    lake, store = bucket
    with lake.exchange(RUN, cluster=True) as exchange:
        target = exchange.target("written")
        assert isinstance(target, RemoteFolder)
        name = target.uri.removeprefix("gs://shop-lake/")
        for inner in (
            "a=1/b=x%3Ay/p.parquet",
            "a=2/b=z/p.parquet",
            "_SUCCESS",
            "a=1/.p.parquet.crc",
            "_temporary/0/a=3/b=z/p.parquet",
            "a=1/_p.parquet",
            "_c=1/p.parquet",
        ):
            upload(lake, f"{name}/{inner}", inner)
        for marker in (f"{name}/", f"{name}/a=1/"):  # as connectors make for folders
            store.objects[marker] = (b"", 1)
        upload(lake, f"{name}-other/p.parquet")
        folder = target.fetch()
        files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        assert sorted(files) == ["_c=1/p.parquet", "a=1/b=x%3Ay/p.parquet", "a=2/b=z/p.parquet"]
        assert all(file.read_text() == inner for inner, file in files.items())
    assert store.names("") == []


def test_an_engine_that_wrote_nothing_is_no_error_of_the_exchange(
    bucket: tuple[GcsLake, Store],
) -> None:
    with bucket[0].exchange(RUN, cluster=True) as exchange:
        target = exchange.target("written")
        assert isinstance(target, RemoteFolder)
        assert not list(target.fetch().glob("*"))


def test_what_was_handed_over_is_deleted_when_the_run_fails(
    bucket: tuple[GcsLake, Store],
) -> None:
    lake, store = bucket

    def fail() -> None:
        with lake.exchange(RUN, cluster=True) as exchange:
            (exchange.folder / "x.csv").touch()
            exchange.place(exchange.folder / "x.csv")
            assert store.names(ENGINE)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.names(ENGINE) == []


def test_objects_that_cannot_be_deleted_fail_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running() as server:
        store = Store()
        server.script = lambda request: (
            refusal(403, "forbidden", "no") if request.method == "DELETE" else store(request)
        )
        with lake_at(server.url, tmp_path).exchange(RUN, cluster=True) as exchange:
            (exchange.folder / "x.csv").touch()
            exchange.place(exchange.folder / "x.csv")
    assert f"objects below gs://shop-lake/{ENGINE}{RUN}" in caplog.text
    assert "were left" in caplog.text


KILLED = """
import sys, time
from pathlib import Path
from retail_assets_tests.resources.bucket_server import lake_at
with lake_at({url!r}, Path({folder!r})).exchange({run!r}, cluster=True) as exchange:
    (exchange.folder / "x.csv").touch()
    print(exchange.place(exchange.folder / "x.csv"), flush=True)
    time.sleep(600)
"""


def test_what_a_killed_run_left_is_deleted_after_a_day(tmp_path: Path) -> None:
    with running() as server:
        server.script = store = Store()
        process = child(KILLED.format(url=server.url, folder=str(tmp_path), run=RUN))
        uri = process.stdout.readline().strip()
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        left = [uri.removeprefix("gs://shop-lake/")]
        assert store.names("") == left and left[0].startswith(ENGINE)
        lake = lake_at(server.url, tmp_path)
        for now, expected in ((MADE + DAY - 1, left), (MADE + DAY + 1, [])):
            lake._clock = lambda now=now: now
            with lake.exchange("another", cluster=True):
                assert store.names("") == expected


# ---- whole drops


def test_drops_through_a_bucket_are_those_of_a_folder(
    bucket: tuple[GcsLake, Store], elsewhere: Elsewhere, tmp_path: Path
) -> None:
    lake, store = bucket
    zone = deliver(tmp_path / "here")
    for raw in zone.lake.list_objects("raw/"):
        upload(lake, raw.name, zone.lake.path(raw.name).read_text())

    found = take(lake, elsewhere)

    assert found == take(zone.lake, SPARK)
    assert found["sales"]["counts"] == {D1: [4, 2, 1, 1], D2: [3, 2, 0, 1]}
    places = [elsewhere._name(uri) for uri in elsewhere._places]
    assert RAW_SALES.name(D1) in places  # plain, so it was read where it lies
    copied = [name for name in places if name.startswith(ENGINE)]
    assert len([name for name in copied if "shared.csv" in name]) == 1  # tried once a process
    assert len(copied) == 2  # that, and the clean copy of the second drop
    assert store.names("_stage/") == []


def test_a_drop_that_is_replaced_while_the_cluster_reads_touches_nothing(
    bucket: tuple[GcsLake, Store], elsewhere: Elsewhere, tmp_path: Path
) -> None:
    lake, store = bucket
    zone = deliver(tmp_path / "here")
    for raw in zone.lake.list_objects("raw/"):
        upload(lake, raw.name, zone.lake.path(raw.name).read_text())
    elsewhere._when_written = lambda: upload(lake, RAW_SALES.name(D1), "another")
    sales = next(large for large in FEED.dated if large.dataset.name == "sales")
    room = Room(lake, RUN, SimpleNamespace(spark=elsewhere))

    with pytest.raises(ReplacedError, match="Nothing was touched"):
        take_files(FEED, sales, [D1, D2], room, most_lost=0.1)

    assert all(name.startswith("raw/") for name in store.objects)


def test_an_object_of_a_name_that_is_a_pattern_is_refused() -> None:
    with pytest.raises(UnreadablePathError, match=r"gs://shop-lake/raw/a\[1\].csv"):
        SPARK.read_csv("gs://shop-lake/raw/a[1].csv", ["a"])


def test_a_cluster_that_reads_nothing_and_says_nothing_is_found_out(
    bucket: tuple[GcsLake, Store], elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Elsewhere, "write", lambda *_: [])
    with (
        pytest.raises(UnsharedLakeError) as raised,
        elsewhere.exchange(bucket[0], RUN),
    ):
        pytest.fail("it was not found out")
    assert "gs://shop-lake: found nothing of a file that it was to copy" in str(raised.value)
    assert "roles/storage.objectUser" in str(raised.value)
    assert bucket[1].names("") == []


# ---- a real server


BY_SERVER = """
import json
from pathlib import Path
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.spark import SparkResource
from retail_assets_tests.resources.test_exchange import take
spark = SparkResource(master={master!r})
assert spark.is_cluster
print("FOUND" + json.dumps(take(LocalLake(root={root!r}), spark)))
"""

REFUSED = """
from pathlib import Path
from retail_assets.resources.spark import SparkResource, UnsharedLakeError
from retail_assets_tests.resources.bucket_server import Store, lake_at, running
with running() as server:
    server.script = store = Store()
    try:
        with SparkResource(master={master!r}).exchange(
            lake_at(server.url, Path({folder!r})), "run"
        ):
            print("exchanged")
    except UnsharedLakeError as error:
        print(error)
    assert store.names("") == []
"""


def output_of(code: str) -> str:
    process = child(code)
    output, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    return str(output)


def test_a_server_that_shares_the_folder_gives_the_rows_of_the_embedded_engine(
    tmp_path: Path,
) -> None:
    expected = take(deliver(tmp_path / "here").lake, SPARK)
    zone = deliver(tmp_path / "there")
    with connect_server() as (master, _):
        output = output_of(BY_SERVER.format(master=master, root=str(zone.root)))
    found = json.loads(output.partition("FOUND")[2])
    assert found == expected
    assert not list((zone.root / "_stage").rglob("*.parquet"))


def test_a_server_without_access_to_the_bucket_is_told_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "no-key.json"))
    with connect_server() as (master, _):
        output = output_of(REFUSED.format(master=master, folder=str(tmp_path)))
    assert f"RETAIL_SPARK is '{master}'; it cannot exchange files by gs://shop-lake" in output
    assert "roles/storage.objectUser on the bucket" in output

"""Tests of retail_assets.resources.lake over a folder: the contract, and what only a folder has."""

import os
import resource
import signal
import threading
import time
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retail_assets.errors import TransientError
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.objects import LakeAccessError, LakeUnreachableError
from retail_assets.resources.lake.staging import split_by_partition
from retail_assets_tests.resources.lake_contract import (
    D1,
    D2,
    PROCESSES,
    SALES,
    LakeContract,
    NewLake,
    content_of,
    names_of,
    parquet_of,
    publish,
    put,
)


class TestFolder(LakeContract):
    @pytest.fixture(scope="class")
    @classmethod
    def new_lake(cls, tmp_path_factory: pytest.TempPathFactory) -> NewLake:
        return lambda: LocalLake(root=str(tmp_path_factory.mktemp("lake")))


@pytest.fixture
def lake(tmp_path: Path) -> LocalLake:
    return LocalLake(root=str(tmp_path / "lake"))


def commit_on_a_full_disk(root: str, told: Any) -> None:
    """What a commit says where no file may have more than a hundred bytes."""
    table = LocalLake(root=root).table(SALES)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    try:
        table.commit([], replace=[D1])
    except LakeUnreachableError as error:
        told.put(str(error))
    else:
        told.put("it was committed")


@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_is_told_and_nothing_is_visible(lake: LocalLake, there: bool) -> None:
    if there:
        publish(lake, {D1: [1]})
    before = names_of(lake)
    told = PROCESSES.Queue()
    process = PROCESSES.Process(target=commit_on_a_full_disk, args=(lake.root, told))
    process.start()
    said = told.get(timeout=60)
    process.join()
    assert f"{lake.root}/processed/shop/sales: could not write it" in said
    assert "File too large" in said and "Free the disk" in said and "\x1b" not in said
    assert issubclass(LakeUnreachableError, TransientError)
    assert names_of(lake) == before
    assert content_of(lake) == ({D1: [1]} if there else {})
    publish(lake, {D1: [2]})
    assert content_of(lake) == {D1: [2]}


def test_a_path_may_have_what_a_person_calls_a_folder(tmp_path: Path) -> None:
    odd = LocalLake(root=str(tmp_path / "my lake #1 (é) 100%?"))
    publish(odd, {D1: [1]})
    assert content_of(odd) == {D1: [1]}
    with pytest.raises(LakeAccessError, match="must not have %"):
        publish(LocalLake(root=str(tmp_path / "a%20b")), {D1: [1]})


def test_the_bytes_of_a_partition_do_not_depend_on_the_lake_or_the_others(tmp_path: Path) -> None:
    lakes = [LocalLake(root=str(tmp_path / name)) for name in "ab"]
    publish(lakes[0], {D1: [1, 2]})
    publish(lakes[1], {D1: [1, 2], D2: [3]})
    files = [min(x.path(name) for name in parquet_of(x)) for x in lakes]
    assert files[0].name != files[1].name
    assert files[0].read_bytes() == files[1].read_bytes()


def test_staging_removes_what_a_killed_run_left_long_ago(lake: LocalLake) -> None:
    old, recent = lake.path("_stage/scratch/old"), lake.path("_stage/scratch/recent")
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


def test_a_listing_leaves_out_what_was_removed_meanwhile(lake: LocalLake) -> None:
    for name in ("a", "b", "c"):
        put(lake, f"raw/{name}", name)
    found = lake.list_objects("raw/")
    first = next(found).name
    lake.delete("raw/b")
    assert [first, *(one.name for one in found)] == ["raw/a", "raw/c"]


# ---- without a lake

PLAIN = st.text("09azAZ-_", max_size=12).filter(lambda text: text != "-")
COUNT = st.integers(0, 10**12)


@given(st.builds(Ledger, PLAIN, COUNT, COUNT, COUNT, COUNT, PLAIN, COUNT))
def test_a_ledger_comes_back_from_the_name_of_a_file(ledger: Ledger) -> None:
    name = ledger.file_name("run-0a-0")
    assert Ledger.of_file(f"processed/shop/sales/day={D1}/{name}") == ledger
    assert "/" not in name and name.endswith(".parquet") and len(name) < 200


@pytest.mark.parametrize("name", ["run-0a.parquet", "v1.a.b.parquet", "v2.f.-.0.1.0.0.0.t.parquet"])
def test_a_name_without_a_ledger_has_none(name: str) -> None:
    assert Ledger.of_file(name) is None


@pytest.mark.parametrize("text", ["a.b", "a/b", "é", "a b", "a\n", "-"])
def test_a_ledger_of_characters_that_no_name_can_have_is_refused(text: str) -> None:
    for ledger, token in ((Ledger(text, 1), "t"), (Ledger("f", 1, stamp=text), "t")):
        with pytest.raises(ValueError, match="expected letters"):
            ledger.file_name(token)


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

"""Tests of retail_assets.resources.waiting: two real processes, and the event log of real runs."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

from retail_assets.resources import waiting
from retail_assets.resources.lake import LakeBusyError
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.waiting import HeldError, lock_file, this_process
from retail_assets.resources.warehouse import DuckDBWarehouse, WarehouseBusyError

HOLDS_LOCK = """
import sys
from pathlib import Path
from retail_assets.resources.waiting import lock_file
with lock_file(Path(sys.argv[1]), 5):
    print("held", flush=True)
    sys.stdin.readline()
"""
HOLDS_DUCKDB = """
import sys
import duckdb
with duckdb.connect(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def holder(code: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process named holds.py that has the file until it reads a line."""
    script = path.with_name("holds.py")
    script.write_text(code)
    with subprocess.Popen(
        [sys.executable, str(script), str(path), "rebuild", "--password", "secret"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_FIRST_TOLD_S", 0.2)
    monkeypatch.setattr(waiting, "_TOLD_AGAIN_S", 0.4)
    monkeypatch.setattr(waiting, "_LOOK_S", 0.05)


def lines_of_a_run(wait: Callable[[], None]) -> list[str]:
    """What a run's event log has of waiting, where an asset of it does ``wait``."""

    @dg.asset
    def waits() -> None:
        wait()

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([waits], instance=instance, raise_on_error=False)
        return [
            entry.user_message
            for entry in instance.all_logs(result.run_id)
            if "waiting for" in entry.user_message
        ]


def test_a_run_that_waits_for_another_of_ours_says_for_whom(
    tmp_path: Path, impatience: None
) -> None:
    warehouse = DuckDBWarehouse(path=str(tmp_path / "shop.duckdb"), timeout_s=1.2)
    lock = tmp_path / "shop.duckdb.lock"
    errors: list[str] = []

    def wait() -> None:
        with pytest.raises(WarehouseBusyError) as error, warehouse.exclusive():
            pytest.fail("two held the lock at once")
        errors.append(str(error.value))

    with holder(HOLDS_LOCK, lock) as other:
        lines = lines_of_a_run(wait)

    name = f"`holds.py {lock} rebuild` (process {other.pid}) since 20"
    assert 2 <= len(lines) <= 3  # at first, and now and then
    assert all(f"waiting for {lock} for " in line and name in line for line in lines)
    assert name in errors[0] and str(warehouse.path) in errors[0]
    assert "secret" not in " ".join(lines + errors)


def test_a_run_that_waits_for_a_shell_says_for_which(tmp_path: Path, impatience: None) -> None:
    warehouse = DuckDBWarehouse(path=str(tmp_path / "shop.duckdb"), timeout_s=0.8)
    errors: list[str] = []

    def wait() -> None:
        with pytest.raises(WarehouseBusyError) as error:
            warehouse.query("select 1")
        errors.append(str(error.value))

    with holder(HOLDS_DUCKDB, Path(warehouse.path)) as other:
        lines = lines_of_a_run(wait)

    assert lines and all(f"(process {other.pid})" in line for line in [*lines, *errors])


def test_a_run_that_waits_for_a_lock_of_the_lake_says_for_whom(
    tmp_path: Path, impatience: None
) -> None:
    lake = LocalLake(root=str(tmp_path))
    (tmp_path / "_state").mkdir()
    errors: list[str] = []

    def wait() -> None:
        with pytest.raises(LakeBusyError) as error, lake.lock("shop", timeout_s=0.5):
            pytest.fail("two held the lock at once")
        errors.append(str(error.value))

    with holder(HOLDS_LOCK, tmp_path / "_state" / "shop.lock") as other:
        lines = lines_of_a_run(wait)

    assert lines and all(f"(process {other.pid})" in line for line in [*lines, *errors])


def test_a_short_wait_is_not_worth_a_line(tmp_path: Path) -> None:
    def wait() -> None:
        with pytest.raises(HeldError), lock_file(tmp_path / "a.lock", 0.3):
            pytest.fail("two held the lock at once")

    with holder(HOLDS_LOCK, tmp_path / "a.lock"):
        assert lines_of_a_run(wait) == []


def test_a_run_is_named_by_its_id(tmp_path: Path) -> None:
    notes = []

    @dg.asset
    def holds() -> None:
        with lock_file(tmp_path / "a.lock", 1):
            notes.append((tmp_path / "a.lock.holder").read_text())

    run_id = dg.materialize([holds]).run_id

    assert notes[0].startswith(f"run {run_id} (process ")
    assert not (tmp_path / "a.lock.holder").exists()
    assert this_process().startswith("`")


def test_a_note_holds_nothing_up(tmp_path: Path) -> None:
    """One of a killed process is taken over; one that cannot be written or read is done without."""
    lock, note = tmp_path / "a.lock", tmp_path / "a.lock.holder"
    with holder(HOLDS_LOCK, lock) as other:
        other.kill()
        other.wait()
    assert f"(process {other.pid})" in note.read_text()
    with lock_file(lock, 1):
        assert str(other.pid) not in note.read_text()

    note.mkdir()
    with lock_file(lock, 1), pytest.raises(HeldError, match="another process"), lock_file(lock, 0):
        pytest.fail("two held the lock at once")
    assert note.is_dir()

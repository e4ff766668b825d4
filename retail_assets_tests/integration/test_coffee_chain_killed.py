"""A run of the coffee chain that is killed, and run again, leaves what an undisturbed one does.

Killed as by the kernel: SIGKILL to the process group, at moments drawn by fixed seeds within the
stages that an undisturbed run was seen to have.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest

from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain.contract import (
    DOMAIN,
    LANDED,
    RAW_CUSTOMER,
    RAW_SALES,
    SALES,
)
from retail_assets.defs.coffee_chain.sample import write_sample
from retail_assets.feeds.files import quarantine_of
from retail_assets.resources.lake import open_lake
from retail_assets.settings import load_settings
from retail_assets_tests.conftest import Command

IN_THE_LAKE = [*LANDED, *(quarantine_of(dataset) for dataset in LANDED)]
# A seed stands for one moment of the stage; these spread over it, most where most is written.
MOMENTS = [
    ("start", 1),
    *(("lake", seed) for seed in (2, 3, 29)),
    *(("load", seed) for seed in (5, 8)),
    *(("marts", seed) for seed in (28, 7, 10, 24)),
]

Signs = dict[str, Callable[[], object]]
Contents = dict[str, Any]


def changed_at(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 where it is not there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


class Killable:
    """A home at one path, put back to what it was before each run: dbt's state holds the path."""

    def __init__(self, path: Path, command: Command) -> None:
        self.path = path
        self.lake = path / "lake"
        self.command = command

    def save(self, folder: Path) -> None:
        """Keep the home as it is."""
        shutil.copytree(self.path, folder)

    def restore(self, folder: Path) -> None:
        """Make the home what it was; raw files keep their times."""
        shutil.rmtree(self.path)
        shutil.copytree(folder, self.path)

    def empty(self) -> None:
        """Leave raw files, and what Dagster and dbt keep between runs."""
        for path in self.lake.iterdir():
            if path.name != "raw":
                shutil.rmtree(path)
        for path in self.path.glob("warehouse.duckdb*"):
            path.unlink()

    def run(self) -> None:
        """Run the domain to its end."""
        done = self.command("run", DOMAIN, home=self.path)
        assert done.returncode == 0, done.stderr

    @contextmanager
    def started(self) -> Iterator["subprocess.Popen[bytes]"]:
        """The command in a process group of its own, which is killed at the end."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RETAIL_", "DAG"))}
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("retail-assets")), "run", DOMAIN],
            env=environment | {"RETAIL_HOME": str(self.path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def signs(self) -> Signs:
        """By what each stage is seen to have begun, in order; to be asked for before the start."""
        warehouse, log = self.path / "warehouse.duckdb", self.path / "dbt/duckdb/build/dbt.log"
        written, built = changed_at(warehouse), changed_at(log)
        staged = self.lake / "_stage/scratch"
        return {
            "start": lambda: True,
            "lake": lambda: staged.exists() and any(staged.iterdir()),
            "load": lambda: changed_at(warehouse) != written,
            "marts": lambda: changed_at(log) != built,
        }

    def time_stages(self) -> dict[str, float]:
        """Seconds that each stage takes, undisturbed."""
        signs, begun = self.signs(), {}
        with self.started() as process:
            for stage, has_begun in signs.items():
                wait_for(process, has_begun)
                begun[stage] = time.monotonic()
            assert process.wait(300) == 0
        ends = [*list(begun.values())[1:], time.monotonic()]
        return {s: end - start for (s, start), end in zip(begun.items(), ends, strict=True)}

    def kill_in(self, stage: str, seconds: float) -> bool:
        """Start a run and kill it so long after the stage began; whether it had not yet ended."""
        has_begun = self.signs()[stage]
        with self.started() as process:
            wait_for(process, has_begun)
            time.sleep(seconds)
        return process.returncode == -signal.SIGKILL

    def contents(self) -> Contents:
        """Rows and content, whatever their order, of all tables of lake and warehouse."""
        with duckdb.connect(self.path / "warehouse.duckdb", read_only=True) as db:
            tables = db.execute(
                "select table_schema || '.' || table_name from information_schema.tables"
            ).fetchall()
            found: Contents = {
                table: db.execute(
                    f"select count(*), sum(hash(t)::hugeint) from {table} as t"
                ).fetchone()
                for (table,) in tables
            }
        return found | {dataset.location: self.rows_of(dataset) for dataset in IN_THE_LAKE}

    def rows_of(self, dataset: Dataset) -> dict[str, Any]:
        """Rows and content of each partition of a table in the lake."""
        files: dict[str, list[str]] = {}
        for file in open_lake(load_settings(home=self.path)).table(dataset).snapshot().filled():
            files.setdefault(file.key, []).append(f"{self.lake}/{file.name}")
        with duckdb.connect() as db:
            return {
                key: db.execute(
                    "select count(*), sum(hash(t)::hugeint)"
                    f" from read_parquet({found}, hive_partitioning = false) as t"
                ).fetchone()
                for key, found in files.items()
            }


def wait_for(process: "subprocess.Popen[bytes]", has_begun: Callable[[], object]) -> None:
    """Return once it has; fails where the process ends before."""
    end = time.monotonic() + 120
    while not has_begun():
        assert process.poll() is None, "the run ended before the stage began"
        assert time.monotonic() < end
        time.sleep(0.002)


def moment_in(seconds: float, seed: int) -> float:
    """A moment of a stage that takes so long."""
    return random.Random(seed).random() * seconds


@pytest.fixture(scope="module")
def home(retail_assets: Command, tmp_path_factory: pytest.TempPathFactory) -> Killable:
    """A home in which the domain ran once: dbt's project is parsed."""
    home = Killable(tmp_path_factory.mktemp("killed") / "home", retail_assets)
    write_sample(home.lake, sales=4_000, customers=400, drops=3, seed=5)
    home.run()
    return home


@pytest.fixture(scope="module")
def ran(home: Killable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the home was after one undisturbed run."""
    folder = tmp_path_factory.mktemp("saved") / "ran"
    home.save(folder)
    return folder


def test_killed_at_ten_moments_and_run_again(home: Killable, ran: Path, tmp_path: Path) -> None:
    home.restore(ran)
    undisturbed = home.contents()
    assert undisturbed["coffee_chain_core.fact_sales"][0] > 3_900
    assert len(undisturbed[SALES.location]) == 3
    home.empty()
    home.save(tmp_path / "raw")
    seconds = home.time_stages()
    assert home.contents() == undisturbed
    killed = []
    for stage, seed in MOMENTS:
        home.restore(tmp_path / "raw")
        if home.kill_in(stage, moment_in(seconds[stage], seed)):
            killed.append(stage)
        for dataset in IN_THE_LAKE:
            # What is there by now is there as a whole; the rest is where no reader looks.
            assert home.rows_of(dataset).items() <= undisturbed[dataset.location].items()
        home.run()
        assert home.contents() == undisturbed, (stage, seed)
    assert set(killed) == {"start", "lake", "load", "marts"}
    assert len(killed) >= 8


@pytest.mark.parametrize(("stage", "seed"), [("lake", 27), ("marts", 25)])
def test_killed_while_a_drop_is_delivered_again(
    home: Killable, ran: Path, stage: str, seed: int
) -> None:
    """What was there before is there as a whole, or what is new."""
    home.restore(ran)
    before = home.contents()
    for kind in (RAW_SALES, RAW_CUSTOMER):
        path = sorted((home.lake / kind.prefix).parent.glob("*.csv"))[1]
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[: len(lines) * 19 // 20]))
    delivered = ran.with_name(f"delivered {stage}")
    home.save(delivered)
    seconds = home.time_stages()
    undisturbed = home.contents()
    assert undisturbed["malaysian_coffee_chain.sales"] != before["malaysian_coffee_chain.sales"]
    home.restore(delivered)

    assert home.kill_in(stage, moment_in(seconds[stage] * 0.8, seed))
    for dataset in IN_THE_LAKE:
        either = [x[dataset.location] for x in (before, undisturbed)]
        for key, found in home.rows_of(dataset).items():
            assert found in [versions.get(key) for versions in either]
    home.run()
    assert home.contents() == undisturbed

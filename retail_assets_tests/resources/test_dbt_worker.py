"""The dbt process that waits for its command: it must be one with a process of the caller's."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from retail_assets.resources.dbt.project import dbt_ahead, dbt_build, dbt_variables
from retail_assets.resources.dbt.worker import ADDRESS_VARIABLE, WAIT_OPTION
from retail_assets.settings import DBT_PROJECT_DIR, Settings, load_settings

DBT = str(Path(sys.executable).with_name("retail-assets-dbt"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings(home=tmp_path_factory.mktemp("home"))


def dbt(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DBT, *arguments],
        cwd=folder,
        env=environment_of(folder, **variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def environment_of(folder: Path, **variables: str) -> dict[str, str]:
    return os.environ | {
        "DBT_PROJECT_DIR": str(DBT_PROJECT_DIR),
        "DBT_PROFILES_DIR": str(DBT_PROJECT_DIR),
        "DBT_TARGET_PATH": str(folder / "target"),
        "DBT_LOG_PATH": str(folder / "logs"),
        "DBT_DUCKDB_PATH": str(folder / "warehouse.duckdb"),
        **variables,
    }


def workers(parent: int) -> list[psutil.Process]:
    children = psutil.Process(parent).children()
    return [child for child in children if not has_ended(child) and WAIT_OPTION in child.cmdline()]


def has_ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@contextmanager
def inherited(disposition: signal.Handlers) -> Iterator[None]:
    """What children that are started in the block do with SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, disposition)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def waiting(settings: Settings) -> Iterator[psutil.Process]:
    with ExitStack() as running:
        with inherited(signal.SIG_IGN):  # it obeys whom it runs the command for all the same
            running.enter_context(dbt_ahead(settings))
        wait_until(Path(os.environ[ADDRESS_VARIABLE]).exists)  # else a command runs by itself
        (worker,) = workers(os.getpid())
        yield worker
    assert not worker.is_running()
    assert ADDRESS_VARIABLE not in os.environ


QUERY = ("show", "--quiet", "--output", "json", "--inline")
WHERE = "select '{{ env_var(\"GREETING\") }}' as greeting, '{{ target.path }}' as path"


def test_the_command_runs_in_the_waiting_process_as_it_would_in_its_own(
    waiting: psutil.Process, tmp_path: Path
) -> None:
    handed_over = dbt(*QUERY, WHERE, folder=tmp_path, GREETING="hello")
    waiting.wait(10)  # it ended with the command that it ran
    by_itself = dbt(*QUERY, WHERE, folder=tmp_path, GREETING="hello")  # nobody waits any more

    assert "hello" in handed_over.stdout
    assert str(tmp_path / "warehouse.duckdb") in handed_over.stdout
    assert handed_over.stdout == by_itself.stdout
    assert (handed_over.returncode, by_itself.returncode) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("show", "--inline", "select no_such_column"), (1, 2)),
        (("build", "--no-such-option"), (2,)),
    ],
)
def test_a_failure_is_told_with_dbts_exit_code(
    waiting: psutil.Process, tmp_path: Path, arguments: tuple[str, ...], code: tuple[int, ...]
) -> None:
    handed_over = dbt(*arguments, folder=tmp_path)
    by_itself = dbt(*arguments, folder=tmp_path)

    assert handed_over.returncode == by_itself.returncode
    assert handed_over.returncode in code
    assert "no" in handed_over.stdout + handed_over.stderr


def test_a_command_runs_by_itself_where_the_waiting_process_died(
    waiting: psutil.Process, tmp_path: Path
) -> None:
    waiting.kill()

    done = dbt(*QUERY, WHERE, folder=tmp_path, GREETING="hello")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "hello" in done.stdout


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_does_not_run_on(
    waiting: psutil.Process, tmp_path: Path, sent: signal.Signals
) -> None:
    endless = "select count(*) as n from range(4000000000) a, range(1000) b where a.range % 7 = 3"
    with inherited(signal.SIG_DFL):
        running = dbt_show(endless, tmp_path)
    wait_until((tmp_path / "warehouse.duckdb").exists, 60)

    running.send_signal(sent)  # SIGINT takes SIGTERM's way; dbt would first end its query

    try:
        output, _ = running.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        pytest.fail(f"still there: {signals_of(running.pid)}, {signals_of(waiting.pid)}")
    waiting.wait(10)
    if sent == signal.SIGTERM and running.returncode != -sent:  # else it was not yet handed over
        assert running.returncode == 2
        assert "it was killed" in output


def test_a_command_ignores_what_was_ignored_where_it_was_started(
    waiting: psutil.Process, tmp_path: Path
) -> None:
    with inherited(signal.SIG_IGN):
        running = dbt_show("select count(*) as n from range(300000000)", tmp_path)
    wait_until((tmp_path / "warehouse.duckdb").exists, 60)

    running.send_signal(signal.SIGTERM)

    output, _ = running.communicate(timeout=60)
    assert running.returncode == 0, output
    assert "300000000" in output
    waiting.wait(10)


def dbt_show(query: str, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [DBT, *QUERY, query],
        cwd=folder,
        env=environment_of(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def signals_of(process: int) -> list[str]:
    """A process's state and what it does with signals."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return [line for line in lines if line.startswith(("Name", "Pid", "State", "Sig", "Shd"))]


def test_the_waiting_process_ends_with_the_one_that_wanted_it(settings: Settings) -> None:
    script = (
        "import sys, time\n"
        "from retail_assets.resources.dbt.project import dbt_ahead\n"
        "from retail_assets.settings import load_settings\n"
        f"with dbt_ahead(load_settings(home={str(settings.home)!r})):\n"
        "    print('waiting', flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "waiting\n"
    wait_until(lambda: bool(workers(parent.pid)))
    (worker,) = workers(parent.pid)

    parent.kill()
    parent.communicate()

    wait_until(lambda: has_ended(worker))


@pytest.mark.parametrize(
    ("others", "parses"),
    [
        ((), False),
        (("--vars", '{"online_retail_as_of": "2011-12-09"}'), True),
        (("--target", "bigquery"), True),
    ],
)
def test_what_was_parsed_is_not_parsed_again_for_the_same_vars_and_target(
    settings: Settings, tmp_path: Path, others: tuple[str, ...], parses: bool
) -> None:
    listed = list_facts(settings, tmp_path, "--target", "duckdb", *others)
    assert ("artial parsing" in listed) == parses


def test_what_the_environment_had_a_say_in_is_parsed_again(tmp_path: Path) -> None:
    bigquery = load_settings(
        home=tmp_path / "home", lake="gs://bucket/lake", warehouse="bigquery://project?location=EU"
    )
    # There a fact's partitions are in its config, which dbt reads as it parses.
    assert "artial parsing" in list_facts(bigquery, tmp_path, "--target", "bigquery")


def list_facts(settings: Settings, folder: Path, *options: str) -> str:
    """What dbt prints, debugging, of a list that the waiting process makes, with a window."""
    arguments = ("list", "--select", "fact_sales", "--vars", json.dumps(dbt_variables(settings)))
    with dbt_ahead(settings):
        wait_until(lambda: len(workers(os.getpid())) == 1)  # until it is executed, it is not named
        (started,) = workers(os.getpid())
        wait_until(Path(os.environ[ADDRESS_VARIABLE]).exists)
        with dbt_build(settings, {"online_retail_window": [["2011-12-09", "2011-12-09"]]}):
            done = dbt("--log-level", "debug", *arguments, *options, folder=folder)
        wait_until(lambda: has_ended(started))
    assert done.returncode == 0, done.stdout
    assert "fact_sales" in done.stdout
    return done.stdout


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)

"""Tests of resources.operational_db.embedded: processes that come, go and are killed."""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from retail_assets.resources.operational_db import (
    OperationalDbResource,
    OperationalDbUnreachableError,
)
from retail_assets.resources.operational_db import embedded as embedded_postgres
from retail_assets.resources.operational_db.embedded import EmbeddedPostgres, EmbeddedPostgresError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run it as another user")

# Connects, adds a row, says so, and stays until its input ends or what follows is done.
CHILD = """
import sys
import psycopg
from retail_assets.process import QuickEnd
from retail_assets.resources.operational_db.embedded import EmbeddedPostgres
with QuickEnd():
    folder = EmbeddedPostgres.attach(sys.argv[1])
    with psycopg.connect(host=folder, user="postgres", dbname="postgres") as connection:
        connection.execute("select pg_advisory_xact_lock(1)")
        connection.execute("create table if not exists seen (pid int)")
        connection.execute("insert into seen values (%s)", [connection.info.backend_pid])
    print("ready", flush=True)
    sys.stdin.read()
"""


def start_child(home: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_ready(child: "subprocess.Popen[str]") -> None:
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"


def end(child: "subprocess.Popen[str]") -> None:
    child.communicate(timeout=60)
    assert child.returncode == 0


def postmaster(home: Path) -> int | None:
    file = home / "postgres" / "data" / "postmaster.pid"
    return int(file.read_text().splitlines()[0]) if file.exists() else None


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not come true in time"
        time.sleep(0.02)


def connect(home: Path) -> AbstractContextManager["psycopg.Connection[tuple[int]]"]:
    return OperationalDbResource(url="embedded", home=str(home)).connect()


def seen(home: Path) -> int:
    with connect(home) as connection:
        row = connection.execute("select count(*) from seen").fetchone()
    assert row is not None
    return row[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose server was made and stopped, to be copied: initdb costs most of a start."""
    home = tmp_path_factory.mktemp("made")
    child = start_child(home)
    wait_ready(child)
    end(child)
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A home with a row in ``seen``; its server ends with the test."""
    home = tmp_path / "home"
    shutil.copytree(made / "postgres", home / "postgres", ignore=shutil.ignore_patterns("*.log"))
    for path in (home / "postgres").rglob("*"):
        owner = (made / path.relative_to(home)).stat()
        os.chown(path, owner.st_uid, owner.st_gid)
    yield home
    EmbeddedPostgres.leave(home)
    if (left := postmaster(home)) is not None and is_alive(left):
        os.kill(left, signal.SIGQUIT)


def test_a_process_that_ends_stops_the_server_and_its_rows_stay(home: Path) -> None:
    child = start_child(home)
    wait_ready(child)
    pid = postmaster(home)
    assert pid is not None and is_alive(pid)
    end(child)

    assert postmaster(home) is None and not is_alive(pid)
    assert "database system is shut down" in (home / "postgres" / "server.log").read_text()
    assert seen(home) == 2


def test_the_last_one_stops_it_whoever_started_it(home: Path) -> None:
    first = start_child(home)
    wait_ready(first)
    pid = postmaster(home)
    assert pid is not None
    second = start_child(home)
    wait_ready(second)
    assert postmaster(home) == pid
    end(first)
    assert is_alive(pid)
    assert seen(home) == 3
    EmbeddedPostgres.leave(home)
    assert is_alive(pid)
    end(second)

    assert not is_alive(pid)


def test_many_that_start_and_end_at_once_share_one_server(home: Path) -> None:
    children = [start_child(home) for _ in range(6)]
    for child in children:
        wait_ready(child)
    pid = postmaster(home)
    assert pid is not None and is_alive(pid)
    for child in children:
        assert child.stdin is not None
        child.stdin.close()
    for child in children:
        assert child.wait(60) == 0

    assert postmaster(home) is None and not is_alive(pid)
    assert seen(home) == 7


# Becomes another program, as `dev` does, while its keeper stays beside it.
PARENT = """
import os
import subprocess
import sys
keeper = [sys.executable, "-m", "retail_assets.resources.operational_db.keeper"]
subprocess.Popen([*keeper, sys.argv[1], str(os.getpid())])
os.execv("/bin/cat", ["cat"])
"""


def test_a_keeper_holds_it_until_its_parent_has_ended(home: Path) -> None:
    """Also where both are told to end at once, as by Ctrl-C."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"held\n"
    pid = postmaster(home)
    assert pid is not None and is_alive(pid)

    os.killpg(parent.pid, signal.SIGTERM)

    parent.communicate(timeout=30)  # to the end of the keeper, which has its output too
    assert not is_alive(pid)


def test_after_a_killed_process_the_next_takes_over_and_stops_it(home: Path) -> None:
    child = start_child(home)
    wait_ready(child)
    pid = postmaster(home)
    assert pid is not None
    child.kill()
    child.wait()
    assert is_alive(pid)
    following = start_child(home)
    wait_ready(following)
    assert postmaster(home) == pid
    end(following)

    assert not is_alive(pid)
    assert seen(home) == 3


def test_after_a_killed_server_what_was_committed_is_there(home: Path) -> None:
    def rows(connection: "psycopg.Connection[tuple[int]]") -> None:
        connection.execute("insert into seen values (0)")
        connection.commit()
        connection.execute("insert into seen values (0)")
        os.kill(pid, signal.SIGKILL)
        for _ in range(400):  # its children need a moment to see it
            connection.execute("select 1")
            time.sleep(0.05)

    assert seen(home) == 1
    pid = postmaster(home)
    assert pid is not None
    with pytest.raises(OperationalDbUnreachableError), connect(home) as connection:
        rows(connection)

    assert seen(home) == 2
    assert postmaster(home) != pid


def test_after_a_killed_server_and_process_the_next_recovers(home: Path) -> None:
    child = start_child(home)
    wait_ready(child)
    pid = postmaster(home)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    child.kill()
    child.wait()
    assert (home / "postgres" / "data" / "postmaster.pid").exists()

    assert seen(home) == 2


def test_a_number_that_is_now_another_process_is_no_server(home: Path) -> None:
    """As after a restart of a machine or a container, where numbers begin anew."""
    EmbeddedPostgres.attach(home)
    file = home / "postgres" / "data" / "postmaster.pid"
    lines = file.read_text().splitlines()
    EmbeddedPostgres.leave(home)
    for number in (os.getpid(), 1, 2**22 - 3):
        file.write_text("\n".join([str(number), *lines[1:]]) + "\n")
        assert seen(home) == 1
        EmbeddedPostgres.leave(home)


@pytest.mark.parametrize("text", ["", "x\n", "17\n/data\n"])
def test_a_damaged_note_of_a_server_is_no_server(home: Path, text: str) -> None:
    (home / "postgres" / "data" / "postmaster.pid").write_text(text)

    assert seen(home) == 1


def test_a_server_that_lost_its_socket_is_started_again(home: Path) -> None:
    socket = Path(EmbeddedPostgres.attach(home)) / ".s.PGSQL.5432"
    pid = postmaster(home)
    socket.unlink()

    assert seen(home) == 1
    assert postmaster(home) != pid


def arguments_of_all() -> Iterator[str]:
    """The command line of every process of this machine."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            yield " ".join(process.cmdline())


def test_a_making_that_was_killed_does_not_count(tmp_path: Path) -> None:
    """initdb writes PG_VERSION first: a folder that has it need not be a server's."""
    child = start_child(tmp_path)
    folder = tmp_path / "postgres"
    wait_until(lambda: any(folder.glob("making-*/PG_VERSION")))
    child.kill()
    child.wait()
    (left,) = folder.glob("making-*")
    assert not (folder / "data").exists()
    # Its initdb lives on for a moment, and would write into what the next start takes away.
    wait_until(lambda: not any(str(left) in arguments for arguments in arguments_of_all()))
    following = start_child(tmp_path)
    wait_ready(following)
    end(following)

    assert not left.exists()
    assert seen(tmp_path) == 1
    EmbeddedPostgres.leave(tmp_path)


@pytest.mark.parametrize("name", ['a folder\'s "name" with $HOME and `id`', "ü" * 60, "x" * 120])
def test_a_home_of_any_name_will_do(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    child = start_child(home)
    wait_ready(child)
    lines = (home / "postgres" / "data" / "postmaster.pid").read_text().splitlines()
    socket_folder = Path(lines[4])
    mode = stat.S_IMODE(socket_folder.stat().st_mode)
    assert mode == 0o700
    assert seen(home) == 1
    end(child)
    EmbeddedPostgres.leave(home)

    is_elsewhere = not socket_folder.is_relative_to(home)
    assert is_elsewhere == (len(os.fsencode(home / "postgres/run/.s.PGSQL.5432")) > 103)
    assert socket_folder.exists() != is_elsewhere


def test_no_place_for_a_socket_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    deep = tmp_path / ("y" * 120)
    deep.mkdir()
    home.rename(deep / "home")
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(EmbeddedPostgresError) as error:
        EmbeddedPostgres.attach(deep / "home")

    assert "a socket's path has 103 bytes at most" in str(error.value)
    assert "Set RETAIL_HOME or TMPDIR" in str(error.value)


def test_data_of_another_release_are_told_and_left(home: Path) -> None:
    version = home / "postgres" / "data" / "PG_VERSION"
    version.write_text("9\n")
    with pytest.raises(EmbeddedPostgresError, match=r"expected data of PostgreSQL \d+, which"):
        EmbeddedPostgres.attach(home)

    assert version.read_text() == "9\n"


def test_a_server_that_cannot_start_says_what_its_log_says(home: Path) -> None:
    (home / "postgres" / "data" / "postgresql.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(EmbeddedPostgresError) as error:
        EmbeddedPostgres.attach(home)

    message = str(error.value)
    assert f"its data in {home / 'postgres' / 'data'}: the server ended at its start" in message
    assert "no_such_setting" in message and "or set RETAIL_POSTGRES=" in message


def test_a_child_by_fork_leaves_the_server_to_its_parent(home: Path) -> None:
    assert seen(home) == 1
    pid = postmaster(home)
    assert pid is not None
    child = os.fork()
    if child == 0:
        EmbeddedPostgres.leave(home)
        os._exit(0)
    os.waitpid(child, 0)

    assert is_alive(pid)
    assert seen(home) == 1


@as_root
def test_folders_of_roots_stay_closed(home: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(0o700)
    home.rename(closed / "home")
    (closed / "home").chmod(0o700)
    before = {path: path.stat().st_mode for path in (closed / "home").parents}
    pid = seen(closed / "home") and postmaster(closed / "home")
    assert pid is not None
    uids = set(psutil.Process(pid).uids())
    EmbeddedPostgres.leave(closed / "home")

    assert {path: path.stat().st_mode for path in before} == before
    assert uids == {pwd.getpwnam("nobody").pw_uid}
    folder = (closed / "home" / "postgres").stat()  # others of that user must not get to it
    assert (folder.st_uid, stat.S_IMODE(folder.st_mode)) == (0, 0o700)


@as_root
def test_root_without_setpriv_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EmbeddedPostgresError) as error:
        EmbeddedPostgres.attach(tmp_path)

    message = str(error.value)
    assert "setpriv could not be run (No such file or directory)" in message
    assert "Run as an ordinary user, or set RETAIL_POSTGRES=" in message


@as_root
def test_an_ordinary_user_cannot_take_anothers_home(home: Path) -> None:
    """Nor can it be asked to: its locks are another's."""
    python = Path(sys.executable).resolve()
    nobody = pwd.getpwnam("nobody")
    ways = [str(path) for path in (python.parent, Path(embedded_postgres.__file__).parent)]
    able = subprocess.run(
        ["sh", "-c", 'for way; do cd "$way" || exit 1; done', "sh", *ways, str(home.parent)],
        user=nobody.pw_uid,
        check=False,
    )
    if able.returncode:
        pytest.skip(f"nobody may not enter {' or '.join(ways)}, or the test's folder")
    run = subprocess.run(
        [sys.executable, "-c", CHILD, str(home)], user=nobody.pw_uid, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "another user made it. Run as that user" in run.stderr

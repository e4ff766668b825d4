"""Dagster's UI and daemon on localhost, over the instance of the settings.

Here: what `dagster dev` needs before it starts, and what keeps it from starting. Not here:
definitions.
"""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from retail_assets.defs.registry import domains
from retail_assets.errors import PermanentError
from retail_assets.instance import open_instance, prepare_instance
from retail_assets.instance_config import EMBEDDED, differences
from retail_assets.resources.dbt.project import prepare_project
from retail_assets.settings import PROJECT_ROOT, Settings

_HOST = "127.0.0.1"


class CannotServeError(PermanentError):
    """Another process has what the UI needs; the message says which."""


def serve(settings: Settings, port: int) -> NoReturn:
    """Become ``dagster dev``: signals then reach it, and it stops what it started.

    Raises:
        CannotServeError: the port is taken, or another one serves the instance. Nothing was
            started.
    """
    prepare_instance(settings)
    if behind := differences(settings):
        print(
            f"{settings.instance_dir / 'dagster.yaml'}: {len(behind)} lines are not as ours:"
            " retail-assets doctor says which, and --fix writes them",
            flush=True,
        )
    hold(settings.instance_dir / "dev.lock")
    refuse_daemon(settings.instance_dir)
    require_free(port)
    prepare_project(settings)
    for domain in domains():
        domain.prepare(settings)
    _fail_lost_runs(settings)
    if settings.dagster_storage.get_secret_value() == EMBEDDED:
        _keep_postgres(settings)
    if settings.kafka == "embedded":
        _keep_broker(settings)
    environment = os.environ | {
        "DAGSTER_HOME": str(settings.instance_dir),
        "RETAIL_HOME": str(settings.home),
    }
    dagster = str(Path(sys.executable).with_name("dagster"))
    os.chdir(PROJECT_ROOT)
    os.execve(  # noqa: S606  (no shell is wanted)
        dagster,
        [dagster, "dev", "-w", "workspace.yaml", "-h", _HOST, "-p", str(port)],
        environment,
    )


def require_free(port: int) -> None:
    """Refuse a port that cannot be listened on.

    Raises:
        CannotServeError: it names the port, and what listens there where that can be told.
    """
    with socket.socket() as probe:
        # As servers do: connections that have ended do not keep the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            is_taken = error.errno == errno.EADDRINUSE
            why = f"is taken{_listener(port)}" if is_taken else f"is refused ({error.strerror})"
            raise CannotServeError(
                f"port {port} of {_HOST} {why}. Nothing was started. Free it, or take another one:"
                f" retail-assets dev --port {port + 1 if 1024 < port < 65535 else 3001}"
            ) from None


def _listener(port: int) -> str:
    """Who listens on a port, for a message; empty where the system does not tell."""
    import psutil

    try:
        for found in psutil.net_connections("tcp"):
            is_there = found.status == psutil.CONN_LISTEN and found.laddr[1:] == (port,)
            if is_there and found.pid:
                command = " ".join(psutil.Process(found.pid).cmdline())
                return f" by process {found.pid} ({command[:120]})"
    except psutil.Error:
        pass  # another user's, or it has just ended
    return ""


def hold(file: Path) -> None:
    """Lock a file for as long as this process lives, whatever program it becomes.

    Raises:
        CannotServeError: another process holds it; the message says which.
    """
    lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 100).decode().strip()
        os.close(lock)
        raise CannotServeError(
            f"process {holder or 'of another host'} serves {file.parent} already: two daemons would"
            " start each run twice. Nothing was started. Use that one, end it, or set another"
            " RETAIL_HOME."
        ) from None
    os.truncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    os.set_inheritable(lock, True)


def refuse_daemon(instance_dir: Path) -> None:
    """Refuse an instance that a daemon serves: it outlives a ``dev`` that was killed alone.

    Raises:
        CannotServeError: it names the process.
    """
    import psutil

    for process in psutil.process_iter():
        try:
            if "dagster._daemon" not in process.cmdline():
                continue
            if process.environ().get("DAGSTER_HOME") != str(instance_dir):
                continue
        except psutil.Error:
            continue  # another user's, or it has just ended
        raise CannotServeError(
            f"process {process.pid} is a daemon that serves {instance_dir} already, left behind by"
            " one that was killed: two would start each run twice. Nothing was started. End it:"
            f" kill {process.pid}"
        )


def _fail_lost_runs(settings: Settings) -> None:
    """Fail the runs that an earlier daemon left behind: sensors then ask for them again."""
    with open_instance(settings) as instance:
        from retail_assets.runs import fail_lost_runs

        for run_id, why in fail_lost_runs(instance, nobody_starts=True).items():
            print(f"failed run {run_id}. {why}", flush=True)


def _keep_broker(settings: Settings) -> None:
    """Have a process own the embedded broker as long as this one, which becomes Dagster's, lives.

    The UI's runs, the sensor and commands in other terminals then share it.
    """
    keeper = [sys.executable, "-m", "retail_assets.resources.broker.keeper"]
    subprocess.Popen([*keeper, "--home", str(settings.home), "--parent", str(os.getpid())])


def _keep_postgres(settings: Settings) -> None:
    """Have a process hold the embedded PostgreSQL as long as this one lives, and a little longer.

    What Dagster starts has its state there, and holds nothing.
    """
    keeper = [sys.executable, "-m", "retail_assets.resources.operational_db.keeper"]
    command = [*keeper, str(settings.home), str(os.getpid())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # it holds the server now, or has ended and said why

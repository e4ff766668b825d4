"""A dbt process that is started before its command is known, and the way the command reaches it.

dbt's imports and its first parse take seconds, which a run can spend while it reads its source.
Here: waiting for one command, handing it over, running it. Not here: which command (project.py),
nor any behaviour of its own; where no process waits, the caller runs dbt itself.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dbt.contracts.graph.manifest import Manifest

# Between our own processes, hence not one of Settings: dagster-dbt hands its environment on.
ADDRESS_VARIABLE = "DBT_WORKER_ADDRESS"
WAIT_OPTION = "--wait-at"
_TAKEN = b"t"
_STANDARD_STREAMS = (0, 1, 2)
_END_TIMEOUT_S = 10
_connections: list[socket.socket] = []


@contextmanager
def waiting_dbt(
    executable: str, warm_up: Sequence[str], environment: Mapping[str, str]
) -> Iterator[None]:
    """Keep a dbt process waiting for the block's first dbt command, in ``environment``.

    Until then it imports dbt, and runs ``warm_up``, which parses the project.
    """
    # A folder of our own: nobody else may connect, and a socket's path is at most 108 bytes.
    with tempfile.TemporaryDirectory(prefix="retail-assets-") as folder:
        address = str(Path(folder) / "dbt")
        worker = subprocess.Popen(
            [executable, WAIT_OPTION, address, *warm_up],
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches it by the command that it runs
        )
        os.environ[ADDRESS_VARIABLE] = address
        assert worker.stdin is not None
        try:
            yield
        finally:
            del os.environ[ADDRESS_VARIABLE]
            worker.stdin.close()  # which ends it, if it still waits
            try:
                worker.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def hand_over(arguments: Sequence[str]) -> int | None:
    """Have the waiting process run a dbt command for this one; returns the exit code.

    None where no process waits, or it ended before it took the command.
    """
    address = os.environ.get(ADDRESS_VARIABLE)
    if address is None:
        return None
    taken = False
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
            request = {"arguments": arguments, "folder": os.getcwd(), "environment": {**os.environ}}
            socket.send_fds(connection, [b"\n"], _STANDARD_STREAMS)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as answers:
                if answers.read(1) != _TAKEN:
                    return None
                worker = int(answers.readline())
                taken = True
                for number in (signal.SIGINT, signal.SIGTERM):
                    # What was ignored where this was started, dbt would ignore as well.
                    if signal.getsignal(number) is not signal.SIG_IGN:
                        signal.signal(number, lambda received, _frame: os.kill(worker, received))
                code = answers.readline()
                answers.read()  # until its end, so that it has let go of the database
        except OSError:
            if not taken:
                return None
            code = b""  # a command that was taken is not run a second time
    if not code:
        sys.stderr.write("the dbt process ended without an exit code: it was killed\n")
        return 2
    return int(code)


def wait_for_command(address: str, warm_up: Sequence[str]) -> None:
    """Import dbt, run ``warm_up``, and run the first command that is handed over.

    ``warm_up`` is a parse, which the command does not repeat where it would come to the same.

    Raises:
        SystemExit: with dbt's exit code; with 0 when standard input ended while no command came,
            for then the process that wanted it is gone.
    """
    # In a session of its own it has only those that a caller sends on, who knows which to ignore.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    taken = False

    def follow_parent() -> None:
        sys.stdin.buffer.read()
        if not taken:
            os._exit(0)

    with socket.socket(socket.AF_UNIX) as listener:
        # Under its name only when it listens: who finds it there can connect.
        listener.bind(f"{address}.new")
        listener.listen(1)
        os.rename(f"{address}.new", address)
        Thread(target=follow_parent, daemon=True).start()
        from dbt.cli.main import dbtRunner
        from dbt.contracts.graph.manifest import Manifest

        warmed_up = dbtRunner().invoke(list(warm_up))
        connection, _ = listener.accept()
    taken = True
    streams = socket.recv_fds(connection, 1, len(_STANDARD_STREAMS))[1]
    request = json.loads(connection.makefile("rb").readline())
    connection.sendall(_TAKEN + f"{os.getpid()}\n".encode())
    Thread(target=_end_with_caller, args=(connection,), daemon=True).start()
    _become(streams, request["folder"], request["environment"])
    arguments = request["arguments"]
    parsed = warmed_up.result if isinstance(warmed_up.result, Manifest) else None
    if parsed and not _would_parse_the_same(parsed, warm_up, arguments):
        parsed = None
    result = dbtRunner(manifest=parsed).invoke(arguments)
    if result.exception is not None:
        print(result.exception, file=sys.stderr)
    code = 0 if result.success else 1 if result.exception is None else 2
    connection.sendall(f"{code}\n".encode())
    # Left open: its end tells the caller that this process has ended, and left the database.
    _connections.append(connection)
    sys.exit(code)


def _would_parse_the_same(
    manifest: "Manifest", warm_up: Sequence[str], arguments: Sequence[str]
) -> bool:
    """Whether a command can have what the warm-up, a parse, made of the project.

    Not with other vars or another target; nor where the project asked for the environment while
    it was parsed, which is the caller's by now.
    """
    return not manifest.env_vars and all(
        _value_of(option, warm_up) == _value_of(option, arguments)
        for option in ("--vars", "--target", "--profile")
    )


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    """The argument after the last ``option``, which counts; None where there is none."""
    return dict(pairwise(arguments)).get(option)


def _become(streams: Sequence[int], folder: str, environment: Mapping[str, str]) -> None:
    """Take on the caller's standard streams, working directory and environment."""
    for stream, ours in zip(streams, _STANDARD_STREAMS, strict=True):
        os.dup2(stream, ours)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)


def _end_with_caller(connection: socket.socket) -> None:
    # The caller sends nothing more: the end of its stream is its own end. It was killed, for it
    # would have waited, and so would dbt have been in its place.
    with suppress(ConnectionResetError):  # killed before it read what was answered
        connection.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)

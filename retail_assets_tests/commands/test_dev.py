"""Tests of retail_assets.commands.dev: what keeps it from starting. That it starts: integration."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from retail_assets.commands.dev import CannotServeError, hold, refuse_daemon, require_free

HOLDS = "import sys; from pathlib import Path; from retail_assets.commands.dev import hold;"
HOLDS += " hold(Path(sys.argv[1]));"


def test_a_port_that_something_listens_on_is_refused_and_who_does_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        with pytest.raises(CannotServeError) as refused:
            require_free(port)

    assert f"port {port} of 127.0.0.1 is taken by process {os.getpid()} (" in str(refused.value)
    assert f"--port {port + 1}" in str(refused.value)
    require_free(port)


def test_a_port_of_connections_that_have_ended_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            accepted.close()  # first: on this side it then waits for what is late

    require_free(port)


def test_an_instance_is_served_once_also_by_what_the_process_becomes(tmp_path: Path) -> None:
    file = tmp_path / "dev.lock"
    becomes = f"{HOLDS} import os; os.execv('/bin/cat', ['cat'])"
    command = [sys.executable, "-c", becomes, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdin.write(b"it is cat\n")
        other.stdin.flush()
        assert other.stdout.readline() == b"it is cat\n"

        with pytest.raises(CannotServeError, match=f"process {other.pid} serves {tmp_path}"):
            hold(file)

        other.kill()
        other.wait()
        subprocess.run([sys.executable, "-c", HOLDS, str(file)], check=True)


def test_an_instance_whose_daemon_outlived_its_dev_is_refused(tmp_path: Path) -> None:
    # As `dagster dev` starts one; what it executes makes no difference.
    command = [sys.executable, "-c", "input()", "-m", "dagster._daemon", "run"]
    environment = os.environ | {"DAGSTER_HOME": str(tmp_path / "dagster")}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as daemon:
        with pytest.raises(CannotServeError, match=f"End it: kill {daemon.pid}$"):
            refuse_daemon(tmp_path / "dagster")
        refuse_daemon(tmp_path / "another")
        daemon.kill()

    refuse_daemon(tmp_path / "dagster")

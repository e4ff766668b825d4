"""The servers that .ci/servers started; a test whose server is not there is skipped, with why."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from retail_assets_tests.conftest import PROJECT
from retail_assets_tests.live.storage_xml_proxy import storage_xml_proxy


@dataclass(frozen=True)
class Servers:
    """What ``.ci/servers start`` left in its folder."""

    folder: Path
    addresses: dict[str, str] = field(default_factory=dict)

    def address(self, variable: str, name: str) -> str:
        """The value of a line of servers.env; skips where there is none."""
        if variable not in self.addresses:
            reasons = self.folder / "unavailable"
            lines = reasons.read_text().splitlines() if reasons.exists() else []
            why = [line for line in lines if line.startswith(f"{name}: ")]
            pytest.skip(why[0] if why else f"{name}: not started; make test-live starts it")
        return self.addresses[variable]


@pytest.fixture(scope="session")
def servers() -> Servers:
    folder = Path(os.environ.get("LIVE_SERVERS", PROJECT / ".retail" / "servers" / "run"))
    file = folder / "servers.env"
    lines = file.read_text().splitlines() if file.exists() else []
    return Servers(folder, dict(line.split("=", 1) for line in lines))


@pytest.fixture(scope="session")
def storage_host(servers: Servers) -> str:
    """STORAGE_EMULATOR_HOST."""
    return servers.address("STORAGE_EMULATOR_HOST", "storage")


@pytest.fixture(scope="session")
def bigquery_host(servers: Servers) -> str:
    """BIGQUERY_EMULATOR_HOST; it reads the files of ``storage_host``'s buckets."""
    return servers.address("BIGQUERY_EMULATOR_HOST", "warehouse")


def make_bucket(host: str) -> str:
    """A new bucket's name."""
    name = f"retail-{uuid.uuid4().hex[:12]}"
    request = urllib.request.Request(
        f"{host}/storage/v1/b?project=emulated",
        data=f'{{"name": "{name}"}}'.encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()
    return name


@pytest.fixture
def bucket(storage_host: str) -> str:
    """A new bucket of ``storage_host``."""
    return make_bucket(storage_host)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class OwnStorage:
    """A storage server of one test's own, behind a proxy, to be killed and started again."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.port, behind = _free_port(), _free_port()
        self.host = f"http://127.0.0.1:{self.port}"
        self.backend = f"http://127.0.0.1:{behind}"
        self._command = [
            *(binary, "-scheme", "http", "-host", "127.0.0.1", "-port", str(behind)),
            *("-public-host", f"127.0.0.1:{behind}", "-external-url", self.host),
            *("-filesystem-root", str(folder / "buckets"), "-log-level", "error"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command)
        for _ in range(100):
            try:
                urllib.request.urlopen(f"{self.backend}/_internal/healthcheck", timeout=2).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError("the storage server does not answer")

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def own_storage(servers: Servers, tmp_path: Path) -> Iterator[OwnStorage]:
    """A storage server that a test may kill."""
    server = OwnStorage(servers.address("FAKE_GCS_SERVER", "storage"), tmp_path)
    server.start()
    try:
        with storage_xml_proxy(server.backend, server.port):
            yield server
    finally:
        server.kill()


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Fail where it does not become true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)

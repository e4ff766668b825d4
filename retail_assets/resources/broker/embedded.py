"""The embedded broker: librdkafka's own, in the process that needs it first; others attach.

Here: who owns it, how others find it, its incarnation. Not here: talking to it (resource.py).
Dagster is not imported, so that its keeper (keeper.py) starts at once.
"""

import atexit
import json
import os
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retail_assets.errors import TransientError

if TYPE_CHECKING:
    from filelock import FileLock

_ANNOUNCEMENT = "broker.json"
_LOCK = "broker.lock"
_START_S = 10.0
_STEP = timedelta(microseconds=1)


class EmbeddedBrokerError(TransientError):
    """The embedded broker did not start, or its owner does not say where it is."""


@dataclass(frozen=True)
class Announcement:
    """A broker that lives as long as the process ``pid`` owns it; ``started_at`` is naive UTC."""

    address: str
    incarnation: str
    started_at: datetime
    pid: int


class _Owned:
    """The broker that this process owns for one home."""

    def __init__(self, announcement: Announcement, lock: "FileLock", cluster: Any) -> None:
        self.announcement = announcement
        self.lock = lock
        self.cluster = cluster


_guard = threading.RLock()
_owned: dict[Path, _Owned] = {}


def find(home: Path) -> Announcement | None:
    """The living broker of a home, or None; none is started."""
    import psutil

    found = _read(home)
    if found is None or not found.address or not psutil.pid_exists(found.pid):
        return None
    if found.pid != os.getpid() and not _is_locked(home):
        return None  # its owner was killed, and the number is another's by now
    return found


def ensure(home: Path) -> Announcement:
    """The living broker of a home; where there is none, one in this process, which then owns it.

    Raises:
        EmbeddedBrokerError: none answers and none could be started.
    """
    deadline = time.monotonic() + _START_S
    while True:
        found = find(home) or try_own(home)
        if found is not None:
            return found
        if time.monotonic() > deadline:
            raise EmbeddedBrokerError(
                f"{home / _LOCK} is held by another process, expected it to announce its broker in"
                f" {home / _ANNOUNCEMENT}: found {_read(home)}. End that process, or, where it"
                " runs on another machine, set RETAIL_HOME or RETAIL_KAFKA."
            )
        time.sleep(0.02)


def try_own(home: Path) -> Announcement | None:
    """Start a broker in this process and own it; None where another process owns the home's."""
    from filelock import FileLock, Timeout

    with _guard:
        mine = _owned.get(home)
        if mine is not None and mine.announcement.pid == os.getpid():
            return mine.announcement
        home.mkdir(parents=True, exist_ok=True)
        # One for all threads: the one that started the broker need not be the one that ends it.
        lock = FileLock(home / _LOCK, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            return None
        try:
            cluster, address = _start()
            before = _read(home)
            now = datetime.now(UTC).replace(tzinfo=None)
            # A clock that was set back must not make a later broker's messages earlier ones.
            started_at = max(now, before.started_at + _STEP) if before else now
            announcement = Announcement(address, uuid.uuid4().hex, started_at, os.getpid())
            _write(home, announcement)
        except BaseException:
            lock.release()
            raise
        if not _owned:
            atexit.register(_let_all_go)
        _owned[home] = _Owned(announcement, lock, cluster)
        return announcement


def let_go(home: Path) -> None:
    """End the broker that this process owns, if it does; its messages are gone."""
    with _guard:
        mine = _owned.pop(home, None)
        if mine is None or mine.announcement.pid != os.getpid():
            return
        # Kept without an address: the next incarnation begins after this one.
        _write(home, replace(mine.announcement, address=""))
        mine.cluster = None
        mine.lock.release()


def _let_all_go() -> None:
    for home in list(_owned):
        let_go(home)


def _start() -> tuple[Any, str]:
    """A cluster of one broker in this process, and where it listens."""
    from confluent_kafka import KafkaException, Producer

    # The producer is never used: the cluster lives as long as it does.
    cluster = Producer(
        {"bootstrap.servers": "embedded", "test.mock.num.brokers": 1, "log_level": 2}
    )
    try:
        brokers = cluster.list_topics(timeout=_START_S).brokers.values()
    except KafkaException as error:
        raise EmbeddedBrokerError(
            f"the embedded broker did not answer within {_START_S:.0f} s ({error})."
            " Run this again, or set RETAIL_KAFKA."
        ) from error
    return cluster, ",".join(f"{broker.host}:{broker.port}" for broker in brokers)


def _read(home: Path) -> Announcement | None:
    """What was announced last, by a living process or not."""
    try:
        said = json.loads((home / _ANNOUNCEMENT).read_text())
        return Announcement(
            str(said["address"]),
            str(said["incarnation"]),
            datetime.fromisoformat(said["started_at"]),
            int(said["pid"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none yet; it is written as a whole, so that a broken one is nobody's


def _write(home: Path, announcement: Announcement) -> None:
    text = json.dumps(asdict(announcement) | {"started_at": announcement.started_at.isoformat()})
    partial = home / f"{_ANNOUNCEMENT}.{os.getpid()}.tmp"
    partial.write_text(text + "\n")
    partial.replace(home / _ANNOUNCEMENT)


def _is_locked(home: Path) -> bool:
    from filelock import FileLock, Timeout

    try:
        with FileLock(home / _LOCK, timeout=0):
            return False
    except Timeout:
        return True

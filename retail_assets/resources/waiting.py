"""Waiting for what another process holds: who has it is noted beside it, and told to who waits.

Here: lock files, the note of their holder, and what a run's log says meanwhile. Not here: what is
locked, nor the lease of a bucket's lock (lake/lease.py), which keeps its note itself.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

_FIRST_TOLD_S = 5.0
_TOLD_AGAIN_S = 60.0
_LOOK_S = 1.0
_LONGEST_NOTE = 300


def logger() -> logging.Logger:
    """What has the lines on waits; Dagster takes them into the event log of the run in progress."""
    return dg.get_dagster_logger("waiting")


class HeldError(Exception):
    """Another process held it for too long; the message says which."""


class Wait:
    """Tells in a run's log for whom it waits: after 5 s, then each minute.

    Outside of a run the log is standard error.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = time.monotonic()
        self._next = self._began + _FIRST_TOLD_S

    def tell(self, holder: Callable[[], str]) -> None:
        """Say who holds it, if that is due; ``holder`` is asked only then."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _TOLD_AGAIN_S
        logger().warning(
            f"waiting for {self._what} for {now - self._began:.0f} s; it is held by {holder()}"
        )


def this_process() -> str:
    """Who this is to those who wait for it: the run or else the command, the process, the time."""
    try:
        who = f"run {dg.OpExecutionContext.get().run_id}"
    except dg.DagsterInvariantViolationError:  # no step is executed in this thread
        program = Path(sys.argv[0])
        name = program.parent.name if program.name == "__main__.py" else program.name
        # Without what follows: a command's options may hold what is not for everybody.
        who = f"`{' '.join([name, *sys.argv[1:3]])}`"
    return f"{who} (process {os.getpid()}) since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


@contextmanager
def lock_file(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock file ``path``; other processes wait, and are told who has it.

    Raises:
        HeldError: others held it for ``timeout_s`` seconds.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock, note = FileLock(path), path.with_name(f"{path.name}.holder")
    wait, end = Wait(str(path)), time.monotonic() + timeout_s
    while True:
        left = max(0.0, end - time.monotonic())
        try:
            lock.acquire(timeout=min(left, _LOOK_S))
            break
        except Timeout as error:
            if left <= _LOOK_S:
                raise HeldError(_read(note)) from error
            wait.tell(lambda: _read(note))
    try:
        # The note holds nothing up: it may fail, and one that a killed process left is overwritten.
        with suppress(OSError):
            note.write_text(this_process())
        yield
    finally:
        with suppress(OSError):
            note.unlink()
        lock.release()


def _read(note: Path) -> str:
    try:
        return note.read_text(errors="replace")[:_LONGEST_NOTE] or "another process"
    except OSError:  # it has just ended, or could not say
        return "another process"

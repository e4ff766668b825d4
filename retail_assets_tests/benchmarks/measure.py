"""One command, measured: wall and CPU seconds, and the peak memory of its process tree.

Here: starting, sampling, waiting. Not here: which commands (online_retail.py), printing
(report.py).
"""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from threading import Event, Thread

import psutil

from retail_assets.settings import PROJECT_ROOT

_SAMPLE_S = 0.02
_LOOK_FOR_CHILDREN_EVERY = 5
_TAIL_CHARACTERS = 3000
MIB = 1024**2


class CommandFailed(Exception):  # noqa: N818  (says what happened)
    """A measured command ended with an error; the message is the end of its output."""


@dataclass(frozen=True)
class Measurement:
    """One run of a command. ``peak_mib`` is the largest sum of RSS over its process tree."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def median_of(runs: Sequence[Measurement]) -> Measurement:
    """The median of each figure by itself."""
    return Measurement(
        median(run.wall_s for run in runs),
        median(run.cpu_s for run in runs),
        median(run.peak_mib for run in runs),
    )


def child_environment(**variables: str) -> dict[str, str]:
    """This process's environment without what would change the product's, plus ``variables``.

    Bytecode is written and read, whatever the caller's shell says.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RETAIL_", "DAGSTER_", "DBT_", "PYTHON", "COVERAGE_", "PYTEST_"))
    }
    return kept | variables


def run(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Measurement:
    """Run ``command`` in a fresh process at the project's root, its output to ``log``.

    CPU is the kernel's count for the process and all descendants that were waited for.

    Raises:
        CommandFailed: it ended with another code than 0.
    """
    ended = Event()
    peak = [0.0]
    with log.open("wb") as sink:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=PROJECT_ROOT,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
        sampler = Thread(target=_sample, args=(process.pid, ended, peak), daemon=True)
        sampler.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        finally:
            wall = time.perf_counter() - started
            ended.set()
        process.returncode = os.waitstatus_to_exitcode(status)
        sampler.join()
    if process.returncode:
        shown = " ".join(command[:4])
        raise CommandFailed(f"{shown}: exit code {process.returncode}\n{tail_of(log)}")
    # Not the kernel's ru_maxrss: it begins at the size of the process that forked, this one.
    return Measurement(wall, usage.ru_utime + usage.ru_stime, peak[0] / MIB)


def tail_of(log: Path) -> str:
    """The end of a log, for an error message."""
    return log.read_text(errors="replace")[-_TAIL_CHARACTERS:]


def _sample(pid: int, ended: Event, peak: list[float]) -> None:
    """Keep the largest sum of resident memory in ``peak``, sampled every 20 ms.

    Looking for children reads all of /proc, so that it is done every fifth time only: a
    sampler must leave the two cores to what it measures.
    """
    try:
        root = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    tree = [root]
    turn = 0
    while not ended.wait(_SAMPLE_S):
        turn += 1
        if turn % _LOOK_FOR_CHILDREN_EVERY == 0:
            try:
                tree = [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
        peak[0] = max(peak[0], sum(_resident(process) for process in tree))


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0

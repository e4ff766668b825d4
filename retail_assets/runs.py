"""What a run's own process leaves on the run, and the runs whose process is gone.

Here: the executor of every job, which notes its process and whether a failure is permanent;
failing the runs that nobody executes any more, and ending processes that outlive their run. Not
here: asking for a failed run again (requests.py), runs that do not start, which Dagster's run
monitoring fails.
"""

import hashlib
import os
import platform
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import dagster as dg

from retail_assets.database_url import redacted
from retail_assets.errors import PERMANENT
from retail_assets.settings import load_settings

if TYPE_CHECKING:
    import psutil

# A run that is executed again has the tags of the first: each value names the run that it is of.
PROCESS_TAG = "retail_assets/process"
PERMANENT_FAILURE_TAG = "retail_assets/permanent_failure"
_IN_PROGRESS = (
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)
# Dagster's, on runs that its daemon launched: a process of their own executes them.
_LAUNCHED_TAG = ".dagster/grpc_info"
_START_TIMEOUT = {"dagster/failure_reason": "START_TIMEOUT"}
# For a process to end by itself after its run; and for how long it is looked for.
_LONGEST_END = timedelta(seconds=30)
_LOOKED_FOR = timedelta(hours=1)
_TO_HEAR_S = 1.0
_OVER = (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.SUCCESS)
# Of a run of another host: what a step of ours says nothing for, and much more.
_LONGEST_SILENCE_S = 3600.0
# An event is written within moments of its process's start; clocks are set by more at times.
_CLOCK_SLACK_S = 60.0
_LONGEST_REASON = 300
_HOW = "it was killed, or its machine stopped"
_WHAT_NEXT = (
    "What a sensor asked for, it asks for again when it looks next; Dagster tries anything else"
    " that its daemon launched again, twice."
)
_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process: its host, its number, and what tells it from others that had the number."""

    host: str
    pid: int
    started: str

    @classmethod
    def here(cls) -> Self:
        """This process."""
        return cls(platform.node(), os.getpid(), _started(os.getpid()))

    @property
    def is_gone(self) -> bool:
        """Whether it has ended. Of another host nobody knows: False."""
        return self.host == platform.node() and _started(self.pid) != self.started

    @property
    def is_here(self) -> bool:
        """Whether it lives on this host."""
        return self.host == platform.node() and not self.is_gone


def _started(pid: int) -> str:
    """When a process began, in what no clock that is set can change; empty if none lives."""
    if (_PROC / "self/stat").exists():
        try:
            # Its name may hold anything; after it, the state is the first and the start the 20th.
            fields = (_PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return "" if fields[0] in "ZX" else f"{boot}:{fields[19]}"
    import psutil

    try:
        process = psutil.Process(pid)
        is_over = process.status() == psutil.STATUS_ZOMBIE
        return "" if is_over else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""


def process_tags(run_id: str) -> dict[str, str]:
    """The tags by which others know that this process executes the run."""
    this = Process.here()
    return {PROCESS_TAG: f"{run_id} {this.pid} {this.started} {this.host}"}


def _process_of(run: dg.DagsterRun) -> Process | None:
    of, _, noted = run.tags.get(PROCESS_TAG, "").partition(" ")
    if of != run.run_id:
        return None
    pid, started, host = noted.split(" ", 2)
    return Process(host, int(pid), started)


class _Noting(dg.Executor):
    """Executes as another executor does, and notes on the run what others must know of it."""

    def __init__(self, executor: dg.Executor) -> None:
        self._executor = executor

    @property
    def retries(self) -> Any:
        """As of the other."""
        return self._executor.retries

    @property
    def step_dependency_config(self) -> Any:
        """As of the other."""
        return self._executor.step_dependency_config

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        """All steps, as the other executes them."""
        run_id, instance = plan_context.run_id, plan_context.instance
        instance.add_run_tags(run_id, process_tags(run_id))
        failures: list[str | None] = []
        for event in self._executor.execute(plan_context, execution_plan):
            if event.is_step_failure:
                failures.append(_permanent_reason(event))
            yield event
        # One that may pass by itself makes the run worth another.
        if failures and all(failures):
            instance.add_run_tags(
                run_id, {PERMANENT_FAILURE_TAG: f"{run_id} {code_version()} {failures[0]}"}
            )


def _noting(context: dg.InitExecutorContext) -> dg.Executor:
    create = dg.in_process_executor.executor_creation_fn
    assert create is not None
    return _Noting(create(context))


in_process_executor = dg.ExecutorDefinition(
    dg.in_process_executor.name,
    config_schema=dg.in_process_executor.config_schema.as_field(),
    executor_creation_fn=_noting,
    description=(
        "Executes all steps in one process, and notes on the run which process that is, and"
        " whether what failed will not pass by itself."
    ),
)


def _permanent_reason(event: dg.DagsterEvent) -> str | None:
    """The first line of what failed a step permanently; None if it may pass by itself."""
    told = event.step_failure_data.user_failure_data
    if told is None or PERMANENT not in told.metadata:
        return None
    line = (told.description or "").strip().partition("\n")[0]
    return textwrap.shorten(line, _LONGEST_REASON, placeholder=" ...") or "no reason"


def permanent_failure(run: dg.DagsterRun) -> str | None:
    """Why a failed run would fail again as code and settings are, in a line; None: it may pass."""
    of, _, noted = run.tags.get(PERMANENT_FAILURE_TAG, "").partition(" ")
    version, _, why = noted.partition(" ")
    return why if of == run.run_id and version == code_version() else None


@cache
def code_version() -> str:
    """Differs where the package's code or the settings do: what a run depends on but its source."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    settings = load_settings()
    # Without passwords, which nobody should be able to try against a digest.
    digest.update(settings.model_dump_json(exclude={"postgres"}).encode())
    digest.update(redacted(settings.postgres).encode())
    return digest.hexdigest()[:12]


def fail_lost_runs(instance: dg.DagsterInstance, *, nobody_starts: bool = False) -> dict[str, str]:
    """Fail the runs in progress whose process is gone; returns why, by run id.

    Queued runs wait for a daemon, and are left. A run of another host is lost when it has said
    nothing for an hour, and one that never had a process at once where ``nobody_starts`` runs now;
    else Dagster's run monitoring fails it in time. Where another launcher than Dagster's default
    one starts runs, it knows better: then only processes of this host are judged.
    """
    lost = {}
    for record in instance.get_run_records(dg.RunsFilter(statuses=list(_IN_PROGRESS))):
        run = record.dagster_run
        why = _why_lost(instance, record, nobody_starts)
        if why is None:
            continue
        latest = instance.get_run_by_id(run.run_id)
        if latest is None or latest.status != run.status:
            continue  # its process ended because the run did
        lost[run.run_id] = why
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, why)
        else:
            instance.report_run_failed(run, f"{why} {_WHAT_NEXT}")
    return lost


def _why_lost(
    instance: dg.DagsterInstance, record: dg.RunRecord, nobody_starts: bool
) -> str | None:
    run = record.dagster_run
    process = _process_of(run)
    if process is not None and process.is_gone:
        return f"The process of this run ({process.pid} on {process.host}) is gone: {_HOW}."
    if process is not None and process.host == platform.node():
        return None
    if not isinstance(instance.run_launcher, dg.DefaultRunLauncher):
        return None
    if process is None and (told := _told_process(instance, run.run_id)) is not None:
        # Of a run that was begun otherwise, or by a version of ours that noted none.
        pid, at = told
        return None if _lived(pid, at) else f"The process of this run ({pid}) is gone: {_HOW}."
    if process is None:
        return "No process has begun this run: what launched it is gone." if nobody_starts else None
    silent_s = time.time() - _last_sign(instance, record)
    is_lost = silent_s > _LONGEST_SILENCE_S
    return f"Nothing was heard of {process.host} for {silent_s:.0f} s." if is_lost else None


def end_left_processes(instance: dg.DagsterInstance, longest_s: float) -> dict[str, str]:
    """Kill this host's processes that hang; returns why, by run id.

    These are of runs that are in progress for more than ``longest_s`` seconds, which are then lost;
    and of those that ended half a minute ago, or were told to, and whose process goes on. Only of
    runs that Dagster's daemon launched: a command goes on after a run.
    """
    import psutil

    killed = {}
    for run, why in _overdue(instance, longest_s):
        process = _process_of(run)
        if process is None and _START_TIMEOUT.items() <= run.tags.items():
            process = _begun_process(instance, run.run_id)
        if _LAUNCHED_TAG not in run.tags or process is None or not process.is_here:
            continue
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            left = psutil.Process(process.pid)
            # What it started ends with it, but for servers, which have a session of their own.
            below = [x for x in left.children(recursive=True) if _session(x) == _session(left)]
            if run.status == dg.DagsterRunStatus.CANCELING:
                # Dagster's code server waits for its process to hear that, and starts no other.
                left.resume()
                psutil.wait_procs([left], _TO_HEAR_S)
            for each in (left, *below):
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        killed[run.run_id] = f"Killed process {process.pid}: {why}."
        instance.report_engine_event(killed[run.run_id], run)
    return killed


def _overdue(instance: dg.DagsterInstance, longest_s: float) -> Iterator[tuple[dg.DagsterRun, str]]:
    now = datetime.now(UTC)
    for record in instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        if record.start_time is not None and now.timestamp() - record.start_time > longest_s:
            yield record.dagster_run, f"the run was in progress for more than {longest_s:.0f} s"
    for run in instance.get_runs(
        dg.RunsFilter(
            statuses=[*_OVER, dg.DagsterRunStatus.CANCELING],
            updated_after=now - _LOOKED_FOR,
            updated_before=now - _LONGEST_END,
        )
    ):
        yield run, "it went on after its run had ended, or should have"


def _begun_process(instance: dg.DagsterInstance, run_id: str) -> Process | None:
    """The process of a run that never came to its steps, if it lives."""
    told = _told_process(instance, run_id)
    if told is None or not _lived(*told):
        return None
    return Process(platform.node(), told[0], _started(told[0]))


def _session(process: "psutil.Process") -> int:
    return os.getsid(process.pid)


def _told_process(instance: dg.DagsterInstance, run_id: str) -> tuple[int, float] | None:
    """The number of the process that Dagster told for a run last, and when (epoch seconds)."""
    found = instance.get_records_for_run(
        run_id, of_type=dg.DagsterEventType.ENGINE_EVENT, ascending=False
    )
    for record in found.records:
        event = record.event_log_entry.dagster_event
        pid = event.engine_event_data.metadata.get("pid") if event is not None else None
        if pid is not None:
            return int(str(pid.value)), record.event_log_entry.timestamp
    return None


def _lived(pid: int, at: float) -> bool:
    """Whether a process of the number lives that lived at a time (epoch seconds)."""
    import psutil

    if not _started(pid):
        return False
    try:
        return psutil.Process(pid).create_time() <= at + _CLOCK_SLACK_S
    except psutil.NoSuchProcess:
        return False


def _last_sign(instance: dg.DagsterInstance, record: dg.RunRecord) -> float:
    """When a run was heard of last, in seconds of the epoch."""
    found = instance.get_records_for_run(record.dagster_run.run_id, limit=1, ascending=False)
    told = [event.event_log_entry.timestamp for event in found.records]
    return max([*told, record.create_timestamp.timestamp()])

"""Tests of retail_assets.runs, over a real Dagster instance and real processes."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dagster as dg
import psutil
import pytest

from retail_assets import runs
from retail_assets.errors import PermanentError, TransientError, failures_by_kind
from retail_assets.feeds.requests import Request, requests_for
from retail_assets.instance import prepare_instance
from retail_assets.runs import (
    PERMANENT_FAILURE_TAG,
    PROCESS_TAG,
    Process,
    code_version,
    end_left_processes,
    fail_lost_runs,
    in_process_executor,
    permanent_failure,
    process_tags,
)
from retail_assets.settings import load_settings
from retail_assets_tests.conftest import instance_of

STARTED, FAILURE = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.FAILURE
STARTING, NOT_STARTED = dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.NOT_STARTED
CANCELING, CANCELED = dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """One that keeps events, and has the launcher that people have."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as found:
        yield found


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def tags_of(run_id: str, pid: int, **changed: str) -> dict[str, str]:
    """The tags that a run has whose process is ``pid``."""
    process = replace(Process(platform.node(), pid, runs._started(pid)), **changed)
    return {PROCESS_TAG: f"{run_id} {process.pid} {process.started} {process.host}"}


def record(
    instance: dg.DagsterInstance,
    status: dg.DagsterRunStatus,
    pid: int = 0,
    more: Mapping[str, str] = MappingProxyType({}),
    **changed: str,
) -> str:
    """A run of that status, with ``more`` tags, which the process ``pid`` executes; its id."""
    run_id = str(uuid.uuid4())
    tags = {**more, **(tags_of(run_id, pid, **changed) if pid else {})}
    instance.add_run(dg.DagsterRun(job_name="job", run_id=run_id, tags=tags, status=status))
    return run_id


def status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def end(process: subprocess.Popen[bytes], *, reaped: bool = True) -> None:
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    if reaped:
        process.wait()


# ---- a run's process


@pytest.mark.parametrize("reaped", [True, False])
def test_a_process_that_was_killed_is_gone(other: subprocess.Popen[bytes], reaped: bool) -> None:
    process = Process(platform.node(), other.pid, runs._started(other.pid))
    assert not process.is_gone

    end(other, reaped=reaped)

    assert process.is_gone


def test_another_process_of_the_number_is_not_the_one() -> None:
    assert not Process.here().is_gone
    assert replace(Process.here(), started="earlier").is_gone


def test_of_a_process_of_another_host_nobody_knows() -> None:
    assert not Process("elsewhere", os.getpid(), "earlier").is_gone


# ---- fail_lost_runs


@pytest.mark.parametrize("status_before", [STARTING, STARTED, NOT_STARTED])
@pytest.mark.parametrize("nobody_starts", [True, False])
def test_a_run_is_failed_once_its_process_is_gone(
    instance: dg.DagsterInstance,
    other: subprocess.Popen[bytes],
    status_before: dg.DagsterRunStatus,
    nobody_starts: bool,
) -> None:
    run_id = record(instance, status_before, other.pid)
    assert fail_lost_runs(instance, nobody_starts=nobody_starts) == {}
    assert status(instance, run_id) is status_before

    end(other)

    assert list(fail_lost_runs(instance, nobody_starts=nobody_starts)) == [run_id]
    assert status(instance, run_id) is FAILURE
    (told,) = instance.get_records_for_run(run_id).records
    assert f"{other.pid} on {platform.node()}) is gone: it was killed" in (
        told.event_log_entry.message
    )
    assert "asks for again" in told.event_log_entry.message
    assert fail_lost_runs(instance) == {}


def test_a_run_that_was_to_end_is_canceled(
    instance: dg.DagsterInstance, other: subprocess.Popen[bytes]
) -> None:
    run_id = record(instance, CANCELING, other.pid)
    end(other)

    fail_lost_runs(instance)

    assert status(instance, run_id) is CANCELED


def test_runs_that_have_ended_are_left(
    instance: dg.DagsterInstance, other: subprocess.Popen[bytes]
) -> None:
    end(other)
    for found in (FAILURE, CANCELED, dg.DagsterRunStatus.SUCCESS):
        record(instance, found, other.pid)

    assert fail_lost_runs(instance, nobody_starts=True) == {}


def test_tags_that_a_run_has_of_the_one_it_repeats_say_nothing_of_it(
    instance: dg.DagsterInstance, other: subprocess.Popen[bytes]
) -> None:
    """Dagster gives a run that is executed again the tags of the first."""
    first = tags_of("first", other.pid) | {
        PERMANENT_FAILURE_TAG: f"first {code_version()} no reason"
    }
    end(other)
    again = dg.DagsterRun(job_name="job", run_id="again", tags=first, status=STARTING)
    instance.add_run(again)

    assert fail_lost_runs(instance) == {}
    assert permanent_failure(again) is None


def test_a_run_that_nobody_begins_is_lost_at_once_where_nobody_could(
    instance: dg.DagsterInstance,
) -> None:
    """Else Dagster's run monitoring waits for its start."""
    run_id = record(instance, STARTING)
    assert fail_lost_runs(instance) == {}

    assert list(fail_lost_runs(instance, nobody_starts=True)) == [run_id]


def test_a_run_of_another_host_is_lost_when_it_is_silent_for_long(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = record(instance, STARTED, os.getpid(), host="elsewhere")
    run = instance.get_run_by_id(run_id)
    assert run is not None
    now = time.time()
    instance.report_engine_event("says something", run)

    monkeypatch.setattr(time, "time", lambda: now + 3500)
    assert fail_lost_runs(instance, nobody_starts=True) == {}
    monkeypatch.setattr(time, "time", lambda: now + 3700)
    assert list(fail_lost_runs(instance)) == [run_id]


def test_a_run_without_our_tag_is_judged_by_the_process_that_dagster_told(
    instance: dg.DagsterInstance, other: subprocess.Popen[bytes]
) -> None:
    """One of an earlier version of ours, or that another program executes."""

    @dg.op
    def killed_here() -> None:
        lost.append(fail_lost_runs(instance, nobody_starts=True))

    @dg.job
    def job() -> None:
        killed_here()

    lost: list[Any] = []
    assert job.execute_in_process(instance=instance).success
    assert lost == [{}]

    program = (
        "import dagster as dg, os, signal, sys\n"
        "@dg.op\n"
        "def die(): os.kill(os.getpid(), signal.SIGKILL)\n"
        "@dg.job\n"
        "def job(): die()\n"
        "with dg.DagsterInstance.local_temp(sys.argv[1]) as instance:\n"
        "    job.execute_in_process(instance=instance)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, instance.root_directory], check=False)
    assert done.returncode == -signal.SIGKILL
    (run_id,) = fail_lost_runs(instance)
    assert status(instance, run_id) is FAILURE


@pytest.mark.parametrize(("by_sensor", "again"), [(False, "true"), (True, "false")])
def test_dagster_tries_a_lost_run_again_but_for_what_a_sensor_asks_for_again(
    tmp_path: Path,
    other: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    by_sensor: bool,
    again: str,
) -> None:
    """By the dagster.yaml of ours. What a step failed of, is never tried again so."""
    monkeypatch.setenv("DAGSTER_HOME", "")
    settings = load_settings(home=tmp_path)
    prepare_instance(settings)
    with instance_of(tmp_path) as instance:
        requests, _ = requests_for(
            lambda: [Request("days:1", "job", ())], instance, by_sensor=by_sensor
        )
        tags = dict(requests[0].tags)
        run_id = record(instance, STARTED, other.pid, more=tags)
        end(other)
        fail_lost_runs(instance)

        assert instance.get_runs()[0].tags["dagster/will_retry"] == again
        failed = dg.execute_job(
            dg.reconstructable(job), instance=instance, tags={"told": '["transient"]'}
        )
        tags = dict(instance.get_runs(dg.RunsFilter([failed.run_id]))[0].tags)
    assert run_id != failed.run_id and tags["dagster/will_retry"] == "false"


# ---- end_left_processes


@pytest.mark.parametrize("is_launched", [True, False])
def test_a_process_that_outlives_its_run_is_ended_with_what_it_started(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, is_launched: bool
) -> None:
    """But not a command's, which goes on after its run, nor a server of its own session."""
    program = (
        "import subprocess, sys, time\n"
        "wait = [sys.executable, '-c', 'import time; time.sleep(99)']\n"
        "below = subprocess.Popen(wait); server = subprocess.Popen(wait, start_new_session=True)\n"
        "print(below.pid, server.pid, flush=True); time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        below, server = (psutil.Process(int(x)) for x in process.stdout.readline().split())
        try:
            tags = {".dagster/grpc_info": "{}"} if is_launched else {}
            run_id = record(instance, STARTED, process.pid, more=tags)
            run = instance.get_run_by_id(run_id)
            assert run is not None
            instance.report_run_failed(run)
            assert end_left_processes(instance, 60) == {}  # it may end by itself

            monkeypatch.setattr(runs, "_LONGEST_END", timedelta(0))
            killed = end_left_processes(instance, 60)

            assert list(killed) == ([run_id] if is_launched else [])
            if is_launched:
                assert process.wait(10) == -signal.SIGKILL
                psutil.wait_procs([below], 10)
                assert end_left_processes(instance, 60) == {}
            assert (process.poll() is None, below.is_running()) == (not is_launched,) * 2
            assert server.is_running()
        finally:
            for each in (process, below, server):
                with suppress(psutil.NoSuchProcess):
                    each.kill()


# ---- the executor


@dg.asset
def ends(context: dg.AssetExecutionContext) -> None:
    told = json.loads(context.run.tags.get("told", "[]"))
    run = context.instance.get_run_by_id(context.run.run_id)
    assert run is not None and PROCESS_TAG in run.tags  # while it runs
    with failures_by_kind(context.retry_number):
        if "permanent" in told:
            raise PermanentError("a.csv: expected a, found b. Mend it.\nIn full: c")
        if "long" in told:
            raise PermanentError("a.csv: expected" + " a" * 200)
        if "transient" in told:
            error = TransientError("it may pass")
            error.retry_after_s = 0.01
            raise error
        if "defect" in told:
            raise ValueError("a defect")


@dg.asset
def ends_otherwise(context: dg.AssetExecutionContext) -> None:
    if "other" in json.loads(context.run.tags.get("told", "[]")):
        raise ValueError("a defect")


def job() -> dg.JobDefinition:
    """What the tests execute as a launched run is."""
    assets = [ends, ends_otherwise]
    return dg.Definitions(
        assets=assets, jobs=[dg.define_asset_job("job", assets)], executor=in_process_executor
    ).resolve_job_def("job")


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ([], None),
        (["permanent"], "a.csv: expected a, found b. Mend it."),
        (["long"], "a.csv: expected" + " a" * 140 + " ..."),
        (["permanent", "other"], None),
        (["transient"], None),
        (["defect"], None),
    ],
)
def test_a_run_notes_its_process_and_whether_all_that_failed_is_permanent(
    instance: dg.DagsterInstance,
    told: list[str],
    why: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = dg.execute_job(
        dg.reconstructable(job), instance=instance, tags={"told": json.dumps(told)}
    )

    assert done.success is not bool(told)
    run = instance.get_run_by_id(done.run_id)
    assert run is not None
    assert run.tags.items() >= process_tags(done.run_id).items()
    assert permanent_failure(run) == why
    monkeypatch.setattr(runs, "code_version", lambda: "another")
    assert permanent_failure(run) is None


def test_the_version_is_of_the_code_and_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [code_version()]
    for name, value in (("RETAIL_ONLINE_RETAIL_DATES", "dmy"), ("RETAIL_HOME", str(tmp_path))):
        code_version.cache_clear()
        monkeypatch.setenv(name, value)
        versions.append(code_version())
    code_version.cache_clear()
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "runs.py"))
    (tmp_path / "runs.py").write_text("")
    versions.append(code_version())
    code_version.cache_clear()

    assert len({*versions}) == 4

"""Dagster's own UI server and daemon over the project: what a person starts with `make dev`."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from retail_assets.defs.online_retail.sample import write_sample
from retail_assets.domain import range_tags
from retail_assets.instance import prepare_instance
from retail_assets.resources.operational_db.embedded import EmbeddedPostgres
from retail_assets.runs import PROCESS_TAG, end_left_processes, fail_lost_runs
from retail_assets.settings import load_settings
from retail_assets_tests.conftest import instance_of
from retail_assets_tests.integration.served import COMMAND, REPOSITORY, Dev, served, tag, wait_for

SENSOR = "online_retail_source_sensor"
ENDED = ("SUCCESS", "FAILURE")
DAYS = [f"2010-12-{day:02}" for day in range(1, 11)]


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """A running `retail-assets dev` on a small sample, its state in PostgreSQL."""
    home = tmp_path_factory.mktemp("dev")
    source = home / "source.xlsx"
    write_sample(source, days=10, lines_a_day=20)
    prepare_instance(load_settings(home=home, dagster_storage="embedded"))
    config = home / "dagster/dagster.yaml"  # it looks after runs more often than ours
    config.write_text(config.read_text().replace("interval_seconds: 30", "interval_seconds: 2"))
    with served(home, online_retail_source=source, dagster_storage="embedded") as found:
        yield found
    EmbeddedPostgres.attach(home)  # where its keeper was killed too, the server stays
    EmbeddedPostgres.leave(home)


def test_everything_is_loaded(dev: Dev) -> None:
    found = dev.ask(
        "{repositoriesOrError {... on RepositoryConnection"
        " {nodes {jobs {name} schedules {name} sensors {name}}}}}"
    )
    (repository,) = found["repositoriesOrError"]["nodes"]
    names = {kind: {entry["name"] for entry in repository[kind]} for kind in repository}
    assert names["jobs"] >= {
        "online_retail",
        "online_retail_source_to_lake",
        "online_retail_lake_to_warehouse",
        "online_retail_marts",
    }
    assert len(names["schedules"]) == 7
    assert names["sensors"] >= {SENSOR}


def test_a_second_one_refuses_and_starts_nothing(dev: Dev) -> None:
    for port in (dev.port, Dev(dev.home).port):
        refused = dev.command("dev", "--port", str(port))
        assert refused.returncode == 1
        assert f"serves {dev.home / 'dagster'} already" in refused.stderr


def test_one_of_another_home_refuses_the_port(dev: Dev, tmp_path: Path) -> None:
    other = Dev(tmp_path)
    refused = other.command("dev", "--port", str(dev.port))
    assert refused.returncode == 1
    assert f"port {dev.port} of 127.0.0.1 is taken by process" in refused.stderr
    assert "retail-assets dev --port" in refused.stderr


def test_runs_are_looked_after_by_default(dev: Dev) -> None:
    found = dev.ask(
        '{sensorsOrError(repositorySelector: {repositoryName: "__repository__",'
        ' repositoryLocationName: "retail_assets"}) {... on Sensors {results'
        " {name sensorState {status}}}}}"
    )["sensorsOrError"]["results"]
    running = [each["name"] for each in found if each["sensorState"]["status"] == "RUNNING"]
    assert running == ["alerts_sensor", "freshness_sensor", "lost_runs_sensor"]


def test_a_file_that_is_not_as_ours_is_obeyed_and_told(dev: Dev) -> None:
    told = (dev.home / "dev.log").read_text()
    assert "dagster.yaml: 1 lines are not as ours: retail-assets doctor says which" in told


def test_a_run_that_hangs_is_failed_and_tried_again(dev: Dev) -> None:
    """One that stops while it has the warehouse; another is queued until then."""
    command = [COMMAND, "launch", "online_retail_lake_to_warehouse", "--url", dev.url, "--wait"]
    launched = subprocess.Popen(command, env=dev.environment, stdout=subprocess.PIPE, text=True)
    with FileLock(dev.home / "warehouse.duckdb.lock"):
        assert launched.stdout is not None
        run_id = launched.stdout.readline().strip().rpartition("/")[2]

        def begun() -> str | None:
            (run,) = dev.runs()
            is_waiting = [step["status"] for step in run["stepStats"]] == ["IN_PROGRESS"]
            return tag(run, PROCESS_TAG) if is_waiting else None

        process = psutil.Process(int(wait_for("the load", begun).split()[1]))
        queued = dev.launch("online_retail_lake_to_warehouse")
        os.kill(process.pid, signal.SIGSTOP)  # alive, silent, and deaf to all but SIGKILL
        time.sleep(6)  # the daemon looks at the queue each 5 s
        assert {run["id"]: run["status"] for run in dev.runs()}[queued] == "QUEUED"
        with instance_of(dev.home) as instance:  # as the sensor does, each half minute
            assert list(end_left_processes(instance, 5)) == [run_id]
            wait_for("its end", lambda: list(fail_lost_runs(instance)) == [run_id], 10)
    told, _ = launched.communicate(timeout=90)

    assert (launched.returncode, told.splitlines()[-1]) == (0, "success")
    (again,) = (line for line in told.splitlines() if line.startswith("Dagster tries it again"))
    wait_for("the other", lambda: dev.runs()[-2]["status"] == "SUCCESS", 60)
    found = {run["id"]: (run["status"], tag(run, "dagster/parent_run_id")) for run in dev.runs()}
    assert found == {
        run_id: ("FAILURE", None),
        queued: ("SUCCESS", None),
        again.rpartition("/")[2]: ("SUCCESS", run_id),
    }


def test_health_tells_of_each_part(dev: Dev) -> None:
    well = dev.command("health", "--url", dev.url, "--json")
    assert well.returncode == 0, well.stdout
    assert [(sign["part"], sign["ok"]) for sign in json.loads(well.stdout)] == [
        ("webserver", True),
        ("code location", True),
        ("daemon", True),
    ]
    nobody = dev.command("health", "--url", "http://127.0.0.1:1", "--notify")
    assert nobody.returncode == 1
    assert nobody.stderr.count("not running: webserver") == 1
    assert "daemon SENSOR" not in nobody.stderr  # which the instance knows to be well
    assert [line[:4] for line in nobody.stdout.splitlines()] == ["FAIL"] * 3


def test_the_sensor_takes_the_source_and_then_its_days_to_the_marts(dev: Dev) -> None:
    dev.start_sensor(SENSOR)

    def done() -> list[dict[str, Any]]:
        found = dev.runs(**{"dagster/sensor_name": SENSOR})
        finished = [run for run in found if run["status"] in ENDED]
        return finished[-2:] if len(finished) >= 2 else []

    days, source = wait_for("the sensor's two runs", done, 240)
    assert [source["status"], days["status"]] == ["SUCCESS", "SUCCESS"]
    assert source["jobName"] == "online_retail_source_to_lake"
    assert tag(source, "dagster/asset_partition_range_start") is None
    assert days["jobName"] == "online_retail_days_to_marts"
    assert tag(days, "dagster/asset_partition_range_start") == DAYS[0]
    assert tag(days, "dagster/asset_partition_range_end") == DAYS[-1]
    found = dev.ask("{assetNodes {assetKey {path} groupName staleStatus}}")["assetNodes"]
    status = {
        node["assetKey"]["path"][-1]: node["staleStatus"]
        for node in found
        if node["groupName"] == "online_retail"
    }
    assert {"stg_online_retail_data", "fact_returns"} <= status.keys()
    assert set(status.values()) == {"FRESH"}


BACKFILLS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "of assets": (
        {
            "assetSelection": [
                {"path": ["online_retail", "processed_online_retail_data"]},
                {"path": ["online_retail", "online_retail_data"]},
            ]
        },
        DAYS[:5],
    ),
    "of a job": (
        {
            "selector": {
                "partitionSetName": "online_retail_changed_days_partition_set",
                "repositorySelector": REPOSITORY,
            }
        },
        DAYS[5:],
    ),
}


@pytest.fixture(scope="module")
def backfills(dev: Dev) -> dict[str, str]:
    """Ids of the backfills, which are underway at once."""
    return {name: dev.backfill(target, days) for name, (target, days) in BACKFILLS.items()}


@pytest.mark.parametrize("name", BACKFILLS)
def test_a_backfill_is_one_run_of_its_days(dev: Dev, backfills: dict[str, str], name: str) -> None:
    """And, of assets, one more: the load, which has no partitions, when the days are there."""
    ended = wait_for("the backfill", lambda: dev.backfill_status(backfills[name]), 180)

    assert ended == "COMPLETED_SUCCESS"
    found = dev.runs(**{"dagster/backfill": backfills[name]})
    assert {run["status"] for run in found} == {"SUCCESS"}
    (run,) = (run for run in found if tag(run, "dagster/asset_partition_range_start"))
    assert len(found) == (2 if name == "of assets" else 1)
    days = BACKFILLS[name][1]
    assert tag(run, "dagster/asset_partition_range_start") == days[0]
    assert tag(run, "dagster/asset_partition_range_end") == days[-1]


def test_launch_follows_a_range_as_one_run(dev: Dev, backfills: dict[str, str]) -> None:
    span = f"{DAYS[0]}...{DAYS[1]}"

    done = dev.command(
        *("launch", "online_retail_changed_days", "--partitions", span),
        *("--url", dev.url, "--wait"),
    )

    assert done.returncode == 0, done.stderr
    link, *statuses = done.stdout.splitlines()
    assert statuses[-1] == "success"
    (run,) = (run for run in dev.runs() if link == f"{dev.url}/runs/{run['id']}")
    assert tag(run, "dagster/asset_partition_range_start") == DAYS[0]
    assert tag(run, "dagster/asset_partition_range_end") == DAYS[1]


def test_four_runs_at_once(dev: Dev, backfills: dict[str, str]) -> None:
    spans = [range_tags(first, last) for first, last in zip(DAYS[::2], DAYS[1::2], strict=True)]

    def states(ids: set[str]) -> set[str]:
        return {run["status"] for run in dev.runs() if run["id"] in ids}

    with FileLock(dev.home / "lake/_state/online_retail.lock"):  # for which each waits
        ids = {dev.launch("online_retail_source_to_lake", **tags) for tags in spans[:4]}
        wait_for("four runs", lambda: states(ids) == {"STARTED"}, 60)
    wait_for("their ends", lambda: states(ids) == {"SUCCESS"}, 60)


def test_launch_ends_with_the_run_s_status_and_says_why(dev: Dev) -> None:
    failed = dev.command("launch", "coffee_chain_small_files", "--url", dev.url, "--wait")

    assert failed.returncode == 1
    assert "failure\n" in failed.stdout
    assert "processed_outlet: " in failed.stdout and "Traceback" not in failed.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["no_job"], "'no_job' is no job of"),
        (["online_retail_changed_days"], "is by partitions: say which, such as --partitions 2009-"),
        (["online_retail_changed_days", "--partitions", "1999-01-01"], "expected A...B of the"),
        (["online_retail_marts", "--partitions", "2010-12-01"], "of which there are none"),
        (["online_retail_marts", "--config", "{"], "--config is no JSON"),
        (["online_retail_marts", "--config", '{"ops": {"no_op": {}}}'], "no_op"),
    ],
)
def test_launch_refuses_what_cannot_be_started(dev: Dev, arguments: list[str], told: str) -> None:
    before = len(dev.runs())

    refused = dev.command("launch", *arguments, "--url", dev.url)

    assert refused.returncode == 1
    assert told in refused.stderr
    assert len(dev.runs()) == before

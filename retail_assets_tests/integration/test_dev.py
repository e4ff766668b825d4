"""Dagster's own UI server and daemon over the project: what a person starts with `make dev`."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retail_assets.defs.online_retail.sample import write_sample

REPOSITORY = {
    "repositoryName": "__repository__",
    "repositoryLocationName": "retail_assets",
}
SENSOR = "online_retail_source_sensor"
MARTS = "online_retail_marts"
ENDED = ("SUCCESS", "FAILURE")
DAYS = [f"2010-12-{day:02}" for day in range(1, 11)]

Ask = Callable[..., dict[str, Any]]


def wait_for(what: str, question: Callable[[], Any], seconds: float = 120) -> Any:
    """The first true answer; fails after ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := question():
            return answer
        time.sleep(1)
    raise AssertionError(f"{what} did not happen within {seconds} s")


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """GraphQL against a running `retail-assets dev` on a small sample."""
    home = tmp_path_factory.mktemp("dev")
    source = home / "source.xlsx"
    write_sample(source, days=10, lines_a_day=20)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RETAIL_", "DAG"))}
    log = (home / "dev.log").open("w")
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("retail-assets")), "dev", "--port", str(port)],
        env=environment | {"RETAIL_HOME": str(home), "RETAIL_ONLINE_RETAIL_SOURCE": str(source)},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )

    def post(query: str, **variables: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.load(answer)["data"])

    def answers() -> bool:
        try:
            found = post("{repositoriesOrError {... on RepositoryConnection {nodes {name}}}}")
        except OSError:
            return False
        return bool(found["repositoriesOrError"].get("nodes"))

    try:
        wait_for("the UI", answers)
        yield post
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        log.close()


def runs(ask: Ask, **tags: str) -> list[dict[str, Any]]:
    """Runs that carry these tags, latest first."""
    found = ask(
        "query($filter: RunsFilter) {runsOrError(filter: $filter) {... on Runs {results"
        " {id status jobName tags {key value}}}}}",
        filter={"tags": [{"key": key, "value": value} for key, value in tags.items()]},
    )
    return list(found["runsOrError"]["results"])


def tag(run: dict[str, Any], key: str) -> str | None:
    """The value of a run's tag."""
    return next((t["value"] for t in run["tags"] if t["key"] == key), None)


def test_everything_is_loaded(ask: Ask) -> None:
    found = ask(
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
    assert len(names["schedules"]) == 6
    assert names["sensors"] >= {SENSOR}


def test_the_sensor_asks_for_the_source_and_then_for_its_days(ask: Ask) -> None:
    ask(
        "mutation($selector: SensorSelector!)"
        " {startSensor(sensorSelector: $selector) {__typename}}",
        selector=REPOSITORY | {"sensorName": SENSOR},
    )

    def done() -> list[dict[str, Any]]:
        found = runs(ask, **{"dagster/sensor_name": SENSOR})
        finished = [run for run in found if run["status"] in ENDED]
        return finished[-2:] if len(finished) >= 2 else []

    days, source = wait_for("the sensor's two runs", done, 240)
    assert [source["status"], days["status"]] == ["SUCCESS", "SUCCESS"]
    assert source["jobName"] == "online_retail_source_to_lake"
    assert tag(source, "dagster/asset_partition_range_start") is None
    assert tag(days, "dagster/asset_partition_range_start") == DAYS[0]
    assert tag(days, "dagster/asset_partition_range_end") == DAYS[-1]


def test_the_sensor_then_asks_for_the_marts_and_nothing_is_stale(ask: Ask) -> None:
    def marts() -> list[dict[str, Any]]:
        found = runs(ask, **{"dagster/sensor_name": SENSOR})
        return [x for x in found if x["jobName"] == MARTS and x["status"] in ENDED]

    (run,) = wait_for("the marts", marts, 180)

    assert run["status"] == "SUCCESS"
    found = ask("{assetNodes {assetKey {path} groupName staleStatus}}")["assetNodes"]
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
def backfills(ask: Ask) -> dict[str, str]:
    """Ids of the backfills, which are underway at once."""
    return {
        name: ask(
            "mutation($parameters: LaunchBackfillParams!) {launchPartitionBackfill("
            "backfillParams: $parameters) {... on LaunchBackfillSuccess {backfillId}"
            " ... on PythonError {message}}}",
            parameters=target | {"partitionNames": days},
        )["launchPartitionBackfill"]["backfillId"]
        for name, (target, days) in BACKFILLS.items()
    }


@pytest.mark.parametrize("name", BACKFILLS)
def test_a_backfill_is_one_run(ask: Ask, backfills: dict[str, str], name: str) -> None:
    def status() -> str | None:
        found = ask(
            "query($id: String!) {partitionBackfillOrError(backfillId: $id)"
            " {... on PartitionBackfill {status}}}",
            id=backfills[name],
        )["partitionBackfillOrError"]["status"]
        return None if found in ("REQUESTED", "COMPLETING") else str(found)

    assert wait_for("the backfill", status, 180) == "COMPLETED_SUCCESS"
    (run,) = runs(ask, **{"dagster/backfill": backfills[name]})
    assert run["status"] == "SUCCESS"
    days = BACKFILLS[name][1]
    assert tag(run, "dagster/asset_partition_range_start") == days[0]
    assert tag(run, "dagster/asset_partition_range_end") == days[-1]

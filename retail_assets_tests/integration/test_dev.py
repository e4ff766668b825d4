"""Dagster's own UI server and daemon over the project: what a person starts with `make dev`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retail_assets.defs.online_retail.sample import write_sample
from retail_assets_tests.integration.served import REPOSITORY, Dev, served, tag, wait_for

SENSOR = "online_retail_source_sensor"
MARTS = "online_retail_marts"
ENDED = ("SUCCESS", "FAILURE")
DAYS = [f"2010-12-{day:02}" for day in range(1, 11)]


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """A running `retail-assets dev` on a small sample."""
    home = tmp_path_factory.mktemp("dev")
    source = home / "source.xlsx"
    write_sample(source, days=10, lines_a_day=20)
    with served(home, online_retail_source=source) as found:
        yield found


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
    assert len(names["schedules"]) == 6
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
    assert running == ["alerts_sensor", "lost_runs_sensor"]


def test_the_sensor_asks_for_the_source_and_then_for_its_days(dev: Dev) -> None:
    dev.start_sensor(SENSOR)

    def done() -> list[dict[str, Any]]:
        found = dev.runs(**{"dagster/sensor_name": SENSOR})
        finished = [run for run in found if run["status"] in ENDED]
        return finished[-2:] if len(finished) >= 2 else []

    days, source = wait_for("the sensor's two runs", done, 240)
    assert [source["status"], days["status"]] == ["SUCCESS", "SUCCESS"]
    assert source["jobName"] == "online_retail_source_to_lake"
    assert tag(source, "dagster/asset_partition_range_start") is None
    assert tag(days, "dagster/asset_partition_range_start") == DAYS[0]
    assert tag(days, "dagster/asset_partition_range_end") == DAYS[-1]


def test_the_sensor_then_asks_for_the_marts_and_nothing_is_stale(dev: Dev) -> None:
    def marts() -> list[dict[str, Any]]:
        found = dev.runs(**{"dagster/sensor_name": SENSOR})
        return [x for x in found if x["jobName"] == MARTS and x["status"] in ENDED]

    (run,) = wait_for("the marts", marts, 180)

    assert run["status"] == "SUCCESS"
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
    runs = dev.runs(**{"dagster/backfill": backfills[name]})
    assert {run["status"] for run in runs} == {"SUCCESS"}
    (run,) = (run for run in runs if tag(run, "dagster/asset_partition_range_start"))
    assert len(runs) == (2 if name == "of assets" else 1)
    days = BACKFILLS[name][1]
    assert tag(run, "dagster/asset_partition_range_start") == days[0]
    assert tag(run, "dagster/asset_partition_range_end") == days[-1]

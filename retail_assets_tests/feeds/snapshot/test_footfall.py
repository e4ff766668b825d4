"""A domain of one source that says no more than its dataset, from its file to the warehouse."""

import json
from datetime import date
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest

from retail_assets.dataset import Column, Dataset
from retail_assets.domain import range_tags
from retail_assets.feeds.landing import landed_key
from retail_assets.feeds.processed import processed_key
from retail_assets.feeds.snapshot import SnapshotFeed
from retail_assets.feeds.snapshot.definitions import build_assets
from retail_assets.losses import MASK, QUARANTINE_CHECK
from retail_assets.resources.lake import open_lake
from retail_assets.resources.warehouse import open_warehouse
from retail_assets.settings import Settings, load_settings

VISITS = Dataset(
    schema="footfall",
    name="visits",
    description="A store's visitors of a day.",
    partition_by="day",
    columns=(
        Column("store", "string", "Store.", key=True),
        Column("day", "date", "Day.", key=True),
        Column("visitors", "int64", "Visitors."),
        Column("manager", "string", "Who was in charge.", nullable=True, pii=True),
        Column("sales", "decimal(12,2)", "Sales, euros.", nullable=True, source="Sales (EUR)"),
    ),
)
FEED = SnapshotFeed("footfall", VISITS, first_day=date(2024, 1, 1), sums={"sales": "sales"})
HEADER = "store,day,visitors,manager,Sales (EUR)\n"
FIRST, LAST = "2024-01-01", "2024-01-03"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The source is named by a variable: no setting knows the domain."""
    file = tmp_path / "visits.csv"
    file.write_text(
        HEADER
        + "001,2024-01-01,5,Ann,1.20\n"
        + "001,2024-01-01,5,Ann,1.20\n"  # twice
        + "002,2024-01-01,x,Ben,1.20\n"  # no number of visitors
        + "002,2024-01-03,7,Ben,abc\n"  # no amount
        + "003,2023-01-03,7,Cem,1.00\n"  # before the first day
    )
    monkeypatch.setenv("RETAIL_FOOTFALL_SOURCE", str(file))
    return load_settings(home=tmp_path / "home")


def run(settings: Settings) -> dg.ExecuteInProcessResult:
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize(
            build_assets(FEED, settings),
            resources={"lake": open_lake(settings), "warehouse": open_warehouse(settings)},
            instance=instance,
            tags=range_tags(FIRST, LAST),
            raise_on_error=False,
        )


def test_a_dataset_is_enough(settings: Settings) -> None:
    result = run(settings)

    assert result.success
    failed = [x for x in result.get_asset_check_evaluations() if not x.passed]
    assert {x.check_name for x in failed} == {QUARANTINE_CHECK}
    found = open_warehouse(settings).query(f"select * from {VISITS.table} order by day")
    assert [(row[0], str(row[1]), row[2], row[3], row[4] and str(row[4])) for row in found] == [
        ("001", FIRST, 5, "Ann", "1.20"),
        ("002", LAST, 7, "Ben", None),
    ]
    days = {
        x.partition: x.metadata
        for x in result.asset_materializations_for_node(
            processed_key(FEED, FEED.dataset).to_python_identifier()
        )
    }
    told = ("read", "duplicates", "quarantined", "left_out_values")
    assert [days[FIRST][name].value for name in told] == [3, 1, 1, 0]
    assert [days[LAST][name].value for name in told] == [1, 0, 0, 1]
    assert days[FIRST]["sales"].value == "1.20"


def test_what_cannot_be_read_is_in_quarantine(settings: Settings) -> None:
    run(settings)

    files = open_lake(settings).partition_uris(FEED.quarantine)
    found = {row["row"]: row for file in files for row in pq.read_table(file).to_pylist()}
    assert {n: row["reason"].partition(":")[0] for n, row in found.items()} == {
        4: "visitors",
        5: "sales",
        6: "day",
    }
    assert "(RETAIL_FOOTFALL_START, RETAIL_FOOTFALL_END)" in found[6]["reason"]
    assert json.loads(found[4]["text"]) == ["002", FIRST, "x", "Ben", "1.20"]
    # Which of the fields is personal, nobody knows of a row as it came.
    assert FEED.mask("manager: expected a text, found 'Ben'", found[4]["text"]) == (
        "manager: expected a text",
        MASK,
    )


def test_another_contract_types_again(settings: Settings) -> None:
    version = FEED.row_typing().version
    other = SnapshotFeed(
        "footfall",
        Dataset("footfall", "visits", "Visits.", VISITS.columns[:3], partition_by="day"),
        first_day=date(2024, 1, 1),
    )

    assert other.row_typing().version != version


def test_a_source_that_nothing_names_is_refused_by_its_asset_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RETAIL_FOOTFALL_SOURCE")
    unnamed = load_settings(home=settings.home)

    assert FEED.build_defs(unnamed).jobs
    result = run(unnamed)

    (failure,) = result.filter_events(lambda e: e.is_step_failure)
    assert failure.step_key == FEED.raw_key.to_python_identifier()
    assert "RETAIL_FOOTFALL_SOURCE is not set" in failure.step_failure_data.error.message


def test_everything_is_called_by_the_domain_and_its_dataset(settings: Settings) -> None:
    defs = FEED.build_defs(settings)

    assert [key.to_user_string() for key in (FEED.raw_key, processed_key(FEED, FEED.dataset))] == [
        "footfall/raw_footfall",
        "footfall/processed_visits",
    ]
    assert landed_key(VISITS).to_user_string() == VISITS.table.replace(".", "/")
    assert {job.name for job in defs.jobs or ()} == {
        "footfall",
        "footfall_source_to_lake",
        "footfall_changed_days",
        "footfall_days_to_marts",
        "footfall_lake_to_warehouse",
        "footfall_marts",
    }
    assert [sensor.name for sensor in defs.sensors or ()] == ["footfall_source_sensor"]

"""Tests of retail_assets.defs.online_retail.domain, over a source file and a temporary lake."""

from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pytest

from retail_assets.defs.online_retail.assets import RAW, write_days
from retail_assets.defs.online_retail.contract import ONLINE_RETAIL_DATA
from retail_assets.defs.online_retail.domain import WINDOW, OnlineRetail
from retail_assets.domain import Execution, PlanError
from retail_assets.resources.cloud_checks import Question
from retail_assets.resources.lake import open_lake
from retail_assets.resources.warehouse import open_warehouse
from retail_assets.settings import Settings, load_settings

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
DAYS = ["2010-12-01", "2010-12-02", "2010-12-03"]
ONLINE_RETAIL = OnlineRetail()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a source that holds one line on the first and the third of December 2010."""
    origin = tmp_path / "origin.csv"
    origin.write_text(
        HEADER
        + "1,85123A,HEART,6,2010-12-01 08:26:00,2.55,17850,EIRE\n"
        + "2,85123A,HEART,6,2010-12-03 08:26:00,2.55,17850,EIRE\n"
    )
    return load_settings(home=tmp_path / "home", online_retail_source=(str(origin),))


def no_instance() -> dg.DagsterInstance:
    raise AssertionError("days need no instance")


def plan(
    settings: Settings, partitions: tuple[str, str] | None = None, *, allow_emptying: bool = False
) -> Execution:
    (execution,) = ONLINE_RETAIL.plan(
        settings, partitions, allow_emptying=allow_emptying, instance=no_instance
    )
    return execution


def config(*, allow_emptying: bool) -> dict[str, object]:
    return {
        "ops": {"online_retail__raw_online_retail": {"config": {"allow_emptying": allow_emptying}}}
    }


def test_a_run_takes_the_days_of_the_source(settings: Settings) -> None:
    assert plan(settings) == Execution(
        "online_retail", (DAYS[0], DAYS[-1]), config(allow_emptying=False)
    )


def test_days_that_are_asked_for_need_no_source(settings: Settings) -> None:
    Path(settings.online_retail_source[0]).unlink()

    execution = plan(settings, ("2011-01-01", "2011-01-31"), allow_emptying=True)

    assert execution == Execution(
        "online_retail", ("2011-01-01", "2011-01-31"), config(allow_emptying=True)
    )
    assert not Path(settings.lake).exists()


def test_a_source_that_cannot_be_had_is_left_to_its_asset(settings: Settings) -> None:
    Path(settings.online_retail_source[0]).unlink()

    execution = plan(settings)

    assert (execution.partitions, execution.asset_selection) == (None, [RAW])
    (op,) = execution.run_config["ops"].values()
    assert "origin.csv: expected a file, found nothing" in op["config"]["refused"]


@pytest.mark.parametrize(
    ("first", "last"),
    [("2009-11-30", "2010-12-01"), ("2011-12-31", "2012-01-01"), ("2009-11-30", "2012-01-01")],
)
def test_days_outside_the_configured_span_are_refused(
    settings: Settings, first: str, last: str
) -> None:
    with pytest.raises(PlanError) as error:
        ONLINE_RETAIL.check_partitions(settings, first, last)

    assert str(error.value) == (
        f"--partitions is {first}...{last}; expected days inside 2009-12-01...2011-12-31"
        " (RETAIL_ONLINE_RETAIL_START, RETAIL_ONLINE_RETAIL_END)"
    )


def test_the_configured_span_is_taken_and_an_open_one_to_today(settings: Settings) -> None:
    ONLINE_RETAIL.check_partitions(settings, "2009-12-01", "2011-12-31")

    live = settings.model_copy(update={"online_retail_end": None})
    ONLINE_RETAIL.check_partitions(live, "2009-12-01", str(date.today()))
    with pytest.raises(PlanError, match="expected days inside"):
        ONLINE_RETAIL.check_partitions(live, "2009-12-01", str(date.today() + timedelta(days=2)))


def test_rows_are_counted_and_rebuilt_from_what_was_processed(settings: Settings) -> None:
    lake, warehouse = open_lake(settings), open_warehouse(settings)
    plan(settings)
    assert ONLINE_RETAIL.count_rows(lake) == {"online_retail.raw_online_retail": 2}
    with pytest.raises(PlanError, match="holds nothing processed"):
        ONLINE_RETAIL.rebuild(settings, ONLINE_RETAIL_DATA)

    write_days(lake, "run", DAYS)

    assert ONLINE_RETAIL.count_rows(lake) == {
        "online_retail.raw_online_retail": 2,
        "online_retail.processed_online_retail_data": 2,
    }
    assert ONLINE_RETAIL.rebuild(settings, ONLINE_RETAIL_DATA) == 2
    assert warehouse.row_counts() == {ONLINE_RETAIL_DATA.table: 2}


def test_the_marts_take_the_days_that_they_were_not_built_from(settings: Settings) -> None:
    lake, warehouse = open_lake(settings), open_warehouse(settings)
    plan(settings)
    write_days(lake, "run", DAYS)
    ONLINE_RETAIL.rebuild(settings, ONLINE_RETAIL_DATA)

    first = ONLINE_RETAIL.plan_marts(warehouse)
    assert first.windows == {WINDOW: [[DAYS[0], DAYS[-1]]]}
    landed = first.versions[ONLINE_RETAIL_DATA]
    assert sorted(landed) == DAYS

    warehouse.record_versions(
        ONLINE_RETAIL_DATA, "marts", {day: landed[day] for day in (DAYS[0], DAYS[2])}
    )
    assert ONLINE_RETAIL.plan_marts(warehouse).windows == {WINDOW: [[DAYS[1], DAYS[1]]]}

    warehouse.record_versions(ONLINE_RETAIL_DATA, "marts", landed)
    assert ONLINE_RETAIL.plan_marts(warehouse).windows == {WINDOW: []}


def test_the_sample_is_made_only_where_the_settings_want_it(tmp_path: Path) -> None:
    other = load_settings(home=tmp_path, online_retail_source=(str(tmp_path / "own.csv"),))
    ONLINE_RETAIL.prepare(other)
    assert list(tmp_path.iterdir()) == []

    wanted = load_settings(home=tmp_path)
    ONLINE_RETAIL.prepare(wanted)
    made = wanted.sample_path.stat()
    ONLINE_RETAIL.prepare(wanted)
    assert wanted.sample_path.stat().st_mtime_ns == made.st_mtime_ns


def asked(settings: Settings) -> Question:
    (question,) = ONLINE_RETAIL.questions(settings)
    return question


def test_doctor_asks_whether_the_source_answers(settings: Settings, tmp_path: Path) -> None:
    origin = Path(settings.online_retail_source[0])
    assert asked(settings).ask() == f"{origin}, {origin.stat().st_size:,} bytes"
    assert asked(load_settings(home=tmp_path)).ask() == "sample (made by the first run)"

    origin.unlink()
    with pytest.raises(Exception, match=str(origin)):
        asked(settings).ask()
    assert "RETAIL_ONLINE_RETAIL_SOURCE" in asked(settings).fix

"""Tests of retail_assets.feeds.snapshot, over a source file and a temporary lake."""

from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pytest

from retail_assets.defs.online_retail.contract import ONLINE_RETAIL_DATA
from retail_assets.defs.online_retail.feed import FEED
from retail_assets.domain import Asked, Execution, PlanError
from retail_assets.feeds.snapshot.definitions import write_days
from retail_assets.feeds.snapshot.source import Source
from retail_assets.resources.cloud_checks import Question
from retail_assets.resources.lake import open_lake
from retail_assets.resources.warehouse import open_warehouse
from retail_assets.settings import Settings, load_settings

RAW, WINDOW = FEED.raw_key, "online_retail_window"
HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
DAYS = ["2010-12-01", "2010-12-02", "2010-12-03"]


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


def instance() -> dg.DagsterInstance:
    return dg.DagsterInstance.ephemeral()


def refresh(settings: Settings) -> None:
    """What the source's asset does."""
    Source(FEED, settings).refresh(open_lake(settings))


def config(*, allow_emptying: bool) -> dict[str, object]:
    return {
        "ops": {"online_retail__raw_online_retail": {"config": {"allow_emptying": allow_emptying}}}
    }


def test_a_run_takes_the_source_and_then_its_days(settings: Settings) -> None:
    planned = FEED.plan(settings, Asked(), instance)

    first = next(planned)

    assert first == Execution("online_retail", None, config(allow_emptying=False), [RAW])
    assert not Path(settings.lake).exists()  # a plan does no work
    refresh(settings)
    (then,) = planned
    assert (then.job_name, then.partitions, then.run_config) == (
        "online_retail",
        (DAYS[0], DAYS[-1]),
        {},
    )
    assert then.asset_selection == dg.AssetSelection.groups(
        "online_retail"
    ) - dg.AssetSelection.assets(RAW)


def test_a_run_takes_the_days_that_the_source_no_longer_has(settings: Settings) -> None:
    refresh(settings)
    lake = open_lake(settings)
    write_days(FEED, lake, "run", DAYS)
    origin = Path(FEED.place(settings).locations[0])
    origin.write_text("".join(origin.read_text().splitlines(keepends=True)[:2]))

    planned = FEED.plan(settings, Asked(allow_emptying=True), instance)

    assert next(planned).run_config == config(allow_emptying=True)
    Source(FEED, settings).refresh(lake, allow_emptying=True)
    assert [x.partitions for x in planned] == [(DAYS[0], DAYS[-1])]


def test_days_that_are_asked_for_need_no_source(settings: Settings) -> None:
    Path(FEED.place(settings).locations[0]).unlink()

    asked = Asked(("2011-01-01", "2011-01-31"), allow_emptying=True)
    (execution,) = FEED.plan(settings, asked, instance)

    assert execution == Execution(
        "online_retail", ("2011-01-01", "2011-01-31"), config(allow_emptying=True)
    )
    assert not Path(settings.lake).exists()


@pytest.mark.parametrize(
    ("first", "last"),
    [("2009-11-30", "2010-12-01"), ("2011-12-31", "2012-01-01"), ("2009-11-30", "2012-01-01")],
)
def test_days_outside_the_configured_span_are_refused(
    settings: Settings, first: str, last: str
) -> None:
    with pytest.raises(PlanError) as error:
        FEED.check(settings, Asked((first, last)))

    assert str(error.value) == (
        f"--partitions is {first}...{last}; expected days inside 2009-12-01...2011-12-31"
        " (RETAIL_ONLINE_RETAIL_START, RETAIL_ONLINE_RETAIL_END)"
    )


def test_the_configured_span_is_taken_and_an_open_one_to_today(settings: Settings) -> None:
    FEED.check(settings, Asked(("2009-12-01", "2011-12-31")))

    live = settings.model_copy(update={"online_retail_end": None})
    FEED.check(live, Asked(("2009-12-01", str(date.today()))))
    with pytest.raises(PlanError, match="expected days inside"):
        FEED.check(live, Asked(("2009-12-01", str(date.today() + timedelta(days=2)))))


def test_rows_are_counted_and_rebuilt_from_what_was_processed(settings: Settings) -> None:
    lake, warehouse = open_lake(settings), open_warehouse(settings)
    refresh(settings)
    assert FEED.count_rows(lake) == {"online_retail.raw_online_retail": 2}
    with pytest.raises(PlanError, match="holds nothing processed"):
        FEED.rebuild(settings, ONLINE_RETAIL_DATA)

    write_days(FEED, lake, "run", DAYS)

    assert FEED.count_rows(lake) == {
        "online_retail.raw_online_retail": 2,
        "online_retail.processed_online_retail_data": 2,
    }
    assert FEED.rebuild(settings, ONLINE_RETAIL_DATA) == 2
    assert warehouse.row_counts() == {ONLINE_RETAIL_DATA.table: 2}


def test_the_marts_take_the_days_that_they_were_not_built_from(settings: Settings) -> None:
    lake, warehouse = open_lake(settings), open_warehouse(settings)
    refresh(settings)
    write_days(FEED, lake, "run", DAYS)
    FEED.rebuild(settings, ONLINE_RETAIL_DATA)

    first = FEED.plan_marts(warehouse)
    assert first.windows == {WINDOW: [[DAYS[0], DAYS[-1]]]}
    landed = first.versions[ONLINE_RETAIL_DATA]
    assert sorted(landed) == DAYS

    warehouse.record_versions(
        ONLINE_RETAIL_DATA, "marts", {day: landed[day] for day in (DAYS[0], DAYS[2])}
    )
    assert FEED.plan_marts(warehouse).windows == {WINDOW: [[DAYS[1], DAYS[1]]]}

    warehouse.record_versions(ONLINE_RETAIL_DATA, "marts", landed)
    assert FEED.plan_marts(warehouse).windows == {WINDOW: []}


def test_the_sample_is_made_only_where_the_settings_want_it(tmp_path: Path) -> None:
    other = load_settings(home=tmp_path, online_retail_source=(str(tmp_path / "own.csv"),))
    FEED.prepare(other)
    assert list(tmp_path.iterdir()) == []

    wanted = load_settings(home=tmp_path)
    FEED.prepare(wanted)
    made = FEED.sample(wanted).stat()
    FEED.prepare(wanted)
    assert FEED.sample(wanted).stat().st_mtime_ns == made.st_mtime_ns


def asked(settings: Settings) -> Question:
    (question,) = FEED.questions(settings)
    return question


def test_doctor_asks_whether_the_source_answers(settings: Settings, tmp_path: Path) -> None:
    origin = Path(FEED.place(settings).locations[0])
    assert asked(settings).ask() == f"{origin}, {origin.stat().st_size:,} bytes"
    assert asked(load_settings(home=tmp_path)).ask() == "sample (made by the first run)"

    origin.unlink()
    with pytest.raises(Exception, match=str(origin)):
        asked(settings).ask()
    assert "RETAIL_ONLINE_RETAIL_SOURCE" in asked(settings).fix


def test_the_sample_is_resolved_among_other_sources() -> None:
    found = load_settings(home="/srv/retail", online_retail_source="/a.csv,sample")

    assert FEED.place(found).locations == ("/a.csv", "/srv/retail/samples/online_retail.xlsx")


def test_what_no_variable_says_is_as_declared(settings: Settings) -> None:
    place = FEED.place(settings)

    assert (place.first_day, place.last_day) == (date(2009, 12, 1), date(2011, 12, 31))
    assert place.dates == "auto"

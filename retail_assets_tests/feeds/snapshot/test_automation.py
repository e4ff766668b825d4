"""Tests of retail_assets.feeds.snapshot.definitions: what is asked for and when.

Over a real Dagster instance, lake, warehouse and source file.
"""

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from retail_assets.defs.online_retail.contract import DOMAIN, ONLINE_RETAIL_DATA
from retail_assets.defs.online_retail.feed import FEED
from retail_assets.domain import MARTS_STAGE
from retail_assets.feeds import automation as asking
from retail_assets.feeds.landing import lake_versions, landed_key
from retail_assets.feeds.processed import processed_key
from retail_assets.feeds.requests import Request
from retail_assets.feeds.snapshot.definitions import source_request, write_days
from retail_assets.feeds.snapshot.manifest import Manifest, read_manifest
from retail_assets.feeds.snapshot.source import Source
from retail_assets.resources.http import Fingerprint
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.lake.restoring import restore
from retail_assets.resources.warehouse import DuckDBWarehouse
from retail_assets.settings import Settings, load_settings

RAW, PROCESSED, LANDED = FEED.raw_key, processed_key(FEED, FEED.dataset), landed_key(FEED.dataset)
SOURCE_JOB, DAYS_JOB = "online_retail_source_to_lake", "online_retail_changed_days"
TO_MARTS_JOB = "online_retail_days_to_marts"
LOAD_JOB, MARTS_JOB = "online_retail_lake_to_warehouse", "online_retail_marts"
HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
START, END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
OTHER = dg.AssetKey(["coffee_chain", "processed_sales"])
SUCCESS, FAILURE = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


def record(
    instance: dg.DagsterInstance,
    job_name: str,
    status: dg.DagsterRunStatus,
    tags: Mapping[str, str] | None = None,
    assets: Iterable[dg.AssetKey] = (),
) -> str:
    """A run, as the daemon would have launched it; its id."""
    run = dg.DagsterRun(
        job_name=job_name,
        run_id=str(uuid.uuid4()),
        tags=dict(tags or {}),
        status=status,
        asset_selection=frozenset(assets) or None,
    )
    return instance.add_run(run).run_id


# ---- the source


def origin(etag: str | None) -> list[Fingerprint]:
    return [Fingerprint("https://example.org/retail.xlsx", etag=etag)]


def source(etag: str | None, manifest: Manifest | None = None) -> Request:
    return source_request(FEED, origin(etag), manifest)


def test_the_source_is_asked_for_by_version() -> None:
    assert source("a") == source("a")
    assert source("a").identity != source("b").identity
    assert source("a").asset_selection == (RAW,)


def test_an_origin_without_versions_is_asked_for_once(house: "House") -> None:
    house.publish(d01=1)
    house.settle()

    manifest = read_manifest(house.lake, DOMAIN)
    assert manifest is not None
    assert source(None, manifest).once
    assert not source(None).once
    assert not source("a", manifest).once


# ---- the sensor and the schedules


@dataclass
class House:
    """A whole domain in a folder: the origin, the lake, the warehouse, Dagster's instance."""

    settings: Settings
    instance: dg.DagsterInstance
    origin: Path
    lake: LocalLake
    warehouse: DuckDBWarehouse
    clock: int = 1_600_000_000

    def publish(self, **days: int) -> None:
        """Make the origin hold these days: d01=2 is two invoices on 2010-12-01."""
        rows = "".join(
            f"{number},85123A,HEART,6,2010-12-{name[1:]} 08:26:00,2.55,17850,EIRE\n"
            for name, count in days.items()
            for number in range(count)
        )
        self.origin.write_text(HEADER + rows)
        self.clock += 1
        os.utime(self.origin, (self.clock, self.clock))

    def sense(self) -> list[dg.RunRequest] | str:
        """The sensor's requests, or why it makes none."""
        (sensor,) = FEED.build_defs(self.settings).sensors or ()
        assert isinstance(sensor, dg.SensorDefinition)
        with dg.build_sensor_context(
            instance=self.instance,
            resources={"lake": self.lake, "warehouse": self.warehouse},
        ) as context:
            return _answer(sensor(context))

    def schedule(self, name: str) -> list[dg.RunRequest] | str:
        found = FEED.build_defs(self.settings).schedules or ()
        (schedule,) = [x for x in found if isinstance(x, dg.ScheduleDefinition) and x.name == name]
        resources: dict[str, object] = {"lake": self.lake}
        if "warehouse" in name:
            resources["warehouse"] = self.warehouse
        with dg.build_schedule_context(
            instance=self.instance,
            scheduled_execution_time=datetime(2024, 5, 6, 2, 0, tzinfo=UTC),
            resources=resources,
        ) as context:
            return _answer(schedule(context))

    def run(self, request: dg.RunRequest, status: dg.DagsterRunStatus = SUCCESS) -> str:
        """Do what the requested run would do, and record the run; its id."""
        selection, job = request.asset_selection or [], request.job_name
        if status is SUCCESS and RAW in selection:
            self.refresh()
        elif status is SUCCESS:
            if PROCESSED in selection or job in (DAYS_JOB, TO_MARTS_JOB):
                write_days(FEED, self.lake, "run", days_of(request))
            if job in (DAYS_JOB, TO_MARTS_JOB, LOAD_JOB):
                self.load()
            if job in (TO_MARTS_JOB, MARTS_JOB):
                landed = self.warehouse.loaded_versions(ONLINE_RETAIL_DATA)
                self.warehouse.record_versions(ONLINE_RETAIL_DATA, MARTS_STAGE, landed)
        return record(self.instance, str(request.job_name), status, request.tags)

    def refresh(self) -> None:
        Source(FEED, self.settings).refresh(self.lake, allow_emptying=True)

    def load(self) -> None:
        """What the lake has otherwise than the warehouse."""
        there = self.warehouse.loaded_versions(ONLINE_RETAIL_DATA)
        found = lake_versions(self.lake, ONLINE_RETAIL_DATA)
        changed = {day: version for day, version in found.items() if there.get(day) != version}
        uris = self.lake.partition_uris(ONLINE_RETAIL_DATA, list(changed))
        self.warehouse.replace_partitions(ONLINE_RETAIL_DATA, uris, changed)

    def settle(self) -> list[list[str]]:
        """Do whatever the sensor asks for until it asks for nothing; the days of each request."""
        done: list[list[str]] = []
        for _ in range(10):
            answer = self.sense()
            if isinstance(answer, str):
                return done
            for request in answer:
                self.run(request)
                other = str(request.job_name).removeprefix("online_retail_").split("_")[0]
                done.append(days_of(request) if START in request.tags else [other])
                done += [["marts"]] if request.job_name == TO_MARTS_JOB else []
        raise AssertionError(f"the sensor never rests: {done}")

    def landed(self) -> dict[str, int]:
        return dict(
            self.warehouse.query(
                f"select strftime(invoice_date, '%d'), count(*) from {ONLINE_RETAIL_DATA.table}"
                " group by all order by all"
            )
        )


def _answer(found: object) -> list[dg.RunRequest] | str:
    if isinstance(found, dg.SkipReason):
        assert found.skip_message
        return found.skip_message
    if isinstance(found, dg.SensorResult):
        return list(found.run_requests or [])
    assert isinstance(found, list)
    return found


def days_of(request: dg.RunRequest) -> list[str]:
    first, last = (date.fromisoformat(request.tags[x]) for x in (START, END))
    return [(first + timedelta(days=n)).isoformat() for n in range((last - first).days + 1)]


@pytest.fixture
def house(tmp_path: Path, instance: dg.DagsterInstance) -> House:
    return make_house(tmp_path, instance)


@pytest.fixture
def scheduled_house(tmp_path: Path) -> Iterator[House]:
    """As ``house``, with an instance on disk: the context of a schedule takes no other."""
    folder = tmp_path / "dagster"
    folder.mkdir()
    with dg.DagsterInstance.local_temp(str(folder)) as found:
        yield make_house(tmp_path, found)


def make_house(tmp_path: Path, instance: dg.DagsterInstance) -> House:
    origin = tmp_path / "origin.csv"
    settings = load_settings(
        home=str(tmp_path / "home"),
        lake=str(tmp_path / "lake"),
        warehouse=f"duckdb:{tmp_path / 'warehouse.duckdb'}",
        online_retail_source=(str(origin),),
        online_retail_start=date(2010, 11, 1),
        online_retail_end=date(2011, 2, 28),
    )
    return House(
        settings,
        instance,
        origin,
        LocalLake(root=settings.lake),
        DuckDBWarehouse(path=str(settings.warehouse_path), timeout_s=30),
    )


def only(answer: list[dg.RunRequest] | str) -> dg.RunRequest:
    assert isinstance(answer, list), answer
    (request,) = answer
    return request


def test_the_sensor_asks_for_a_new_source_once(house: House) -> None:
    house.publish(d01=1)

    request = only(house.sense())

    assert request.job_name == "online_retail_source_to_lake"
    assert request.asset_selection == [RAW]
    assert START not in request.tags
    run_id = house.run(request, dg.DagsterRunStatus.STARTED)
    answer = house.sense()
    assert isinstance(answer, str)
    assert f"online_retail_source_to_lake is underway (run {run_id})" in answer


def test_the_sensor_then_asks_for_exactly_the_days_of_the_source(house: House) -> None:
    house.publish(d01=1, d02=2, d05=1)
    house.run(only(house.sense()))

    request = only(house.sense())

    # Of what is all that lacks, one run goes on to the marts.
    assert (request.job_name, request.asset_selection) == (TO_MARTS_JOB, None)
    assert days_of(request) == [f"2010-12-0{n}" for n in range(1, 6)]
    house.run(request)
    assert house.sense() == "nothing has changed"
    assert house.landed() == {"01": 1, "02": 2, "05": 1}


def test_only_changed_and_vanished_days_are_asked_for_again(house: House) -> None:
    house.publish(d01=1, d02=1, d03=1, d06=1, d07=1)
    house.settle()

    house.publish(d01=1, d02=2, d03=1, d07=1)
    house.run(only(house.sense()))
    ranges = house.sense()
    assert isinstance(ranges, list) and {x.job_name for x in ranges} == {DAYS_JOB}

    assert house.settle() == [["2010-12-02"], ["2010-12-06"], ["marts"]]
    assert house.landed() == {"01": 1, "02": 2, "03": 1, "07": 1}


def test_the_same_bytes_again_are_no_new_work(house: House) -> None:
    house.publish(d01=1, d02=1)
    house.settle()

    house.publish(d01=1, d02=1)  # the origin says that it changed

    assert house.settle() == [["source"]]
    assert house.sense() == "nothing has changed"


def test_a_source_that_goes_back_to_older_content_is_taken(house: House) -> None:
    house.publish(d01=1, d02=1)
    house.settle()
    house.publish(d01=1, d02=2)
    house.settle()

    house.publish(d01=1, d02=1)
    house.settle()
    house.publish(d01=1, d02=2)
    house.settle()

    assert house.landed() == {"01": 1, "02": 2}
    assert house.sense() == "nothing has changed"


def test_an_origin_restored_with_its_old_date_is_fetched(house: House) -> None:
    house.publish(d01=1)
    old = house.origin.stat().st_mtime_ns
    house.settle()
    house.publish(d01=3)
    house.settle()

    house.origin.write_text(HEADER + "0,85123A,HEART,6,2010-12-01 08:26:00,2.55,17850,EIRE\n")
    os.utime(house.origin, ns=(old, old))
    house.settle()

    assert house.landed() == {"01": 1}


def test_a_warehouse_that_is_gone_is_filled_again(house: House) -> None:
    house.publish(d01=1, d02=1)
    house.settle()
    house.settings.warehouse_path.unlink()

    request = only(house.sense())

    assert request.job_name == LOAD_JOB
    assert START not in request.tags  # the landed table has no partitions in Dagster
    house.run(request)
    assert house.landed() == {"01": 1, "02": 1}


def test_a_lake_that_is_gone_is_filled_again(house: House, tmp_path: Path) -> None:
    house.publish(d01=1, d02=1)
    house.settle()
    Path(house.lake.root).rename(tmp_path / "lost")

    house.settle()

    assert set(lake_versions(house.lake, ONLINE_RETAIL_DATA)) == {"2010-12-01", "2010-12-02"}


def test_days_that_the_warehouse_alone_has_are_emptied(house: House, tmp_path: Path) -> None:
    house.publish(d01=1, d02=1)
    house.settle()
    Path(house.lake.root).rename(tmp_path / "lost")
    house.publish(d01=1)

    assert house.settle() == [["source"], ["2010-12-01", "2010-12-02"], ["marts"]]
    assert house.landed() == {"01": 1}


def test_days_that_a_person_restored_stay_until_the_source_is_another(
    scheduled_house: House,
) -> None:
    house = scheduled_house
    house.publish(d01=1, d02=1)
    house.settle()
    version = house.lake.table(ONLINE_RETAIL_DATA).snapshot().version
    house.publish(d01=2, d02=1, d05=4)
    house.settle()
    assert house.landed() == {"01": 2, "02": 1, "05": 4}

    restore(house.lake, ONLINE_RETAIL_DATA, version, {})

    answer = house.sense()
    assert isinstance(answer, list)
    assert {request.job_name for request in answer} == {LOAD_JOB}
    loads = house.schedule("online_retail_lake_to_warehouse_daily")
    assert isinstance(loads, list)
    assert [x.run_key for x in loads] == [x.run_key for x in answer]
    assert only(house.schedule("online_retail_source_to_lake_daily")).asset_selection == [RAW]
    assert house.settle() == [["lake"], ["marts"]]
    assert house.landed() == {"01": 1, "02": 1}
    assert house.sense() == "nothing has changed"

    house.publish(d01=2, d02=1, d05=5)
    assert house.settle() == [["source"], ["2010-12-05"], ["marts"]]
    assert house.landed() == {"01": 1, "02": 1, "05": 5}


@pytest.mark.parametrize(
    ("job", "assets"),
    [
        *((job, ()) for job in (SOURCE_JOB, DAYS_JOB, TO_MARTS_JOB, DOMAIN)),
        ("__ASSET_JOB", (RAW, PROCESSED)),
    ],
)
def test_the_marts_wait_for_days_that_are_underway(
    house: House, job: str, assets: tuple[dg.AssetKey, ...]
) -> None:
    """Whoever brings them on: the sensor, a schedule, a person, a backfill of assets."""
    house.publish(d01=1)
    house.run(only(house.sense()))
    write_days(FEED, house.lake, "run", days_of(only(house.sense())))
    house.load()
    other = record(house.instance, "__ASSET_JOB", dg.DagsterRunStatus.STARTED, assets=[OTHER])
    run_id = record(house.instance, job, dg.DagsterRunStatus.STARTED, assets=assets)

    answer = house.sense()

    assert isinstance(answer, str) and f"is underway (run {run_id})" in answer
    assert other not in answer
    house.instance.delete_run(run_id)
    assert only(house.sense()).job_name == MARTS_JOB


def test_an_origin_that_does_not_answer_is_told(house: House) -> None:
    answer = house.sense()

    assert isinstance(answer, str)
    assert "the source does not answer" in answer
    assert str(house.origin) in answer


def test_pending_days_are_asked_for_though_the_origin_does_not_answer(house: House) -> None:
    house.publish(d01=1)
    house.run(only(house.sense()))
    house.origin.unlink()

    assert days_of(only(house.sense())) == ["2010-12-01"]


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Another holder of the warehouse."""
    from filelock import FileLock

    with FileLock(f"{path}.lock", thread_local=False):
        yield


def test_a_busy_warehouse_puts_the_days_off(
    scheduled_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = scheduled_house
    monkeypatch.setattr(asking, "WAREHOUSE_WAIT_S", 0.1)
    house.publish(d01=1)
    house.settle()
    with held(house.settings.warehouse_path):
        house.publish(d01=2)
        house.run(only(house.sense()))
        answer = house.sense()
        scheduled = house.schedule("online_retail_lake_to_warehouse_daily")

    assert isinstance(answer, str)
    assert str(house.settings.warehouse_path) in answer
    assert isinstance(scheduled, str)
    assert str(house.settings.warehouse_path) in scheduled
    assert days_of(only(house.sense())) == ["2010-12-01"]


def test_the_source_schedule_looks_at_the_source_and_writes_what_changed(
    scheduled_house: House,
) -> None:
    house = scheduled_house
    name = "online_retail_source_to_lake_daily"
    house.publish(d01=1, d03=1)

    first = only(house.schedule(name))
    assert (first.run_key, first.asset_selection) == ("source:2024-05-06", [RAW])
    house.run(first)
    answer = house.schedule(name)
    assert isinstance(answer, list)
    look, write = answer
    assert look.asset_selection == [RAW]
    assert write.asset_selection == [PROCESSED]
    assert days_of(write) == ["2010-12-01", "2010-12-02", "2010-12-03"]
    house.run(write)
    assert only(house.schedule(name)).asset_selection == [RAW]


def test_the_source_schedule_leaves_days_to_the_run_that_has_them(scheduled_house: House) -> None:
    house = scheduled_house
    house.publish(d01=1, d02=1)
    house.refresh()
    record(house.instance, TO_MARTS_JOB, dg.DagsterRunStatus.STARTED, only(house.sense()).tags)

    assert only(house.schedule("online_retail_source_to_lake_daily")).asset_selection == [RAW]


def test_the_warehouse_schedule_loads_what_was_processed(scheduled_house: House) -> None:
    house = scheduled_house
    name = "online_retail_lake_to_warehouse_daily"
    assert house.schedule(name) == "the warehouse is up to date"
    house.publish(d01=1, d02=1)
    house.refresh()
    write_days(FEED, house.lake, "run", ["2010-12-01", "2010-12-02"])

    request = only(house.schedule(name))

    assert (request.job_name, request.asset_selection) == (LOAD_JOB, None)
    house.run(request)
    assert house.schedule(name) == "the warehouse is up to date"
    assert house.landed() == {"01": 1, "02": 1}


def test_days_outside_a_narrowed_span_are_not_asked_for(scheduled_house: House) -> None:
    house = scheduled_house
    house.publish(d01=1, d02=1, d03=1)
    house.refresh()
    write_days(FEED, house.lake, "run", ["2010-12-01", "2010-12-02", "2010-12-03"])
    house.settings = house.settings.model_copy(update={"online_retail_end": date(2010, 12, 2)})

    house.publish(d01=2, d02=1, d03=2)
    house.refresh()
    answer = house.sense()

    assert days_of(only(answer)) == ["2010-12-01"]


def test_the_jobs_run_as_often_as_promised(house: House) -> None:
    found = FEED.build_defs(house.settings).schedules or ()
    schedules = {x.name: x for x in found if isinstance(x, dg.ScheduleDefinition)}

    assert {name: x.cron_schedule for name, x in schedules.items()} == {
        "online_retail_source_to_lake_daily": "0 2 * * *",
        "online_retail_lake_to_warehouse_daily": "0 4 * * *",
        "online_retail_marts_every_12_hours": "0 6,18 * * *",
    }
    assert {x.execution_timezone for x in schedules.values()} == {"UTC"}

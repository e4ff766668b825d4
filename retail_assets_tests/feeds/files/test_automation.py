"""Tests of retail_assets.feeds.files.definitions: what is asked for, of the coffee chain's drops.

Over a real Dagster instance, lake, warehouse and Spark; the runs are done here in place of the
daemon's (defs/coffee_chain/test_runs.py executes them).
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import dagster as dg
import pytest

from retail_assets.defs.coffee_chain.contract import (
    DOMAIN,
    RAW_CUSTOMER,
    RAW_SALES,
    SALES,
)
from retail_assets.defs.coffee_chain.feed import FEED
from retail_assets.domain import MARTS_STAGE, RANGE_TAGS, range_tags
from retail_assets.errors import PermanentError
from retail_assets.feeds import WHOLE_TABLE
from retail_assets.feeds.files import FileTable
from retail_assets.feeds.files.definitions import raw_key
from retail_assets.feeds.files.taking import Room, take_files
from retail_assets.feeds.landing import loadable_uris
from retail_assets.feeds.processed import processed_key
from retail_assets.feeds.requests import REQUEST_TAG
from retail_assets.resources.lake.restoring import restore
from retail_assets.resources.spark import SparkResource
from retail_assets.resources.warehouse import DuckDBWarehouse
from retail_assets.runs import (
    PERMANENT_FAILURE_TAG,
    PROCESS_TAG,
    code_version,
    fail_lost_runs,
    process_tags,
)
from retail_assets.settings import Settings, load_settings
from retail_assets_tests.defs.coffee_chain.raw_zone import D1, D2, D3, RawZone, person, sale

SPARK = SparkResource(master="embedded")
SMALL_JOB, LARGE_JOB, LOAD_JOB = FEED.small_job, FEED.large_job, FEED.load_job
DROPS_JOB, MARTS_JOB, NIGHTLY_JOB = FEED.drops_job, FEED.marts_job, FEED.nightly_job
D0, D4 = "2017-12-31", "2019-12-31"
SUCCESS, FAILURE = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE
STARTED = dg.DagsterRunStatus.STARTED
NOTHING = "nothing has changed"


# ---- the sensor and the schedule


@dataclass
class House:
    """A whole domain in a folder: raw files, lake, warehouse, Dagster's instance."""

    settings: Settings
    instance: dg.DagsterInstance
    raw: RawZone
    warehouse: DuckDBWarehouse

    def tick(self) -> dg.SensorResult | dg.SkipReason:
        """The sensor's answer; what it registers is registered, as the daemon does."""
        (sensor,) = FEED.build_defs(self.settings).sensors or ()
        assert isinstance(sensor, dg.SensorDefinition)
        with dg.build_sensor_context(
            instance=self.instance,
            resources={"lake": self.raw.lake, "warehouse": self.warehouse},
        ) as context:
            answer = sensor(context)
            assert context.cursor is None
        assert isinstance(answer, dg.SensorResult | dg.SkipReason)
        if isinstance(answer, dg.SensorResult):
            assert answer.cursor is None
            for asked in answer.dynamic_partitions_requests or ():
                self.instance.add_dynamic_partitions(
                    asked.partitions_def_name, asked.partition_keys
                )
        return answer

    def sense(self) -> list[dg.RunRequest] | str:
        """The sensor's requests, or why it makes none."""
        answer = self.tick()
        if isinstance(answer, dg.SkipReason):
            assert answer.skip_message
            return answer.skip_message
        assert answer.run_requests
        return list(answer.run_requests)

    def registered(self) -> list[str]:
        return list(self.instance.get_dynamic_partitions(FEED.partitions))

    def keys_of(self, request: dg.RunRequest) -> list[str]:
        """The drops of a request, as Dagster orders them."""
        keys = self.registered()
        first, last = (keys.index(request.tags[tag]) for tag in RANGE_TAGS)
        return keys[first : last + 1]

    def shown(self, request: dg.RunRequest) -> str:
        """A request in short: small, load, marts or its drops."""
        if request.job_name in (LARGE_JOB, DROPS_JOB):
            return " ".join(self.keys_of(request))
        shown = str(request.job_name).removeprefix(f"{DOMAIN}_").removesuffix("_files")
        return {"lake_to_warehouse": "load"}.get(shown, shown)

    def record(self, request: dg.RunRequest, status: dg.DagsterRunStatus) -> str:
        """A run of the request, as the daemon would have launched it."""
        assert request.job_name is not None
        run = dg.DagsterRun(
            job_name=request.job_name, run_id=str(uuid4()), tags=dict(request.tags), status=status
        )
        return self.instance.add_run(run).run_id

    def take(self, table: FileTable, keys: Sequence[str]) -> None:
        room = Room(self.raw.lake, "run", SimpleNamespace(spark=SPARK))
        take_files(FEED, table, keys, room, most_lost=1.0, leave_restored=True)

    def process(self, dates: Sequence[str]) -> None:
        for table in FEED.dated:
            self.take(table, dates)

    def land(self, tables: Sequence[FileTable] = FEED.tables) -> None:
        """Load what the lake has otherwise, as the landed assets do."""
        lake = self.raw.lake
        for dataset in (table.dataset for table in tables):
            there = self.warehouse.loaded_versions(dataset)
            snapshot = lake.table(dataset).snapshot()
            found = FEED.lake_versions(lake, dataset, snapshot)
            behind = {key: v for key, v in found.items() if there.get(key) != v}
            if behind or (dataset.partition_by and not there):
                uris = loadable_uris(lake, self.warehouse, snapshot, behind)
                self.warehouse.replace_partitions(dataset, uris, behind)

    def build_marts(self) -> None:
        for dataset, versions in FEED.plan_marts(self.warehouse).versions.items():
            self.warehouse.record_versions(dataset, MARTS_STAGE, versions)

    def run(self, request: dg.RunRequest) -> bool:
        """Do what the requested run does, and record the run as it went."""
        try:
            if request.job_name == SMALL_JOB:
                for table in FEED.single:
                    self.take(table, [WHOLE_TABLE])
                self.land(FEED.single)
            elif request.job_name == LARGE_JOB:
                self.process(self.keys_of(request))
                self.land(FEED.dated)
            elif request.job_name == DROPS_JOB:
                self.process(self.keys_of(request))
                self.land()
                self.build_marts()
            elif request.job_name == LOAD_JOB:
                self.land()
            else:
                self.build_marts()
        except PermanentError:
            self.record(request, FAILURE)
            return False
        self.record(request, SUCCESS)
        return True

    def settle(self) -> list[str]:
        """Do whatever the sensor asks for until it asks for nothing; what that was, in short."""
        done: list[str] = []
        for _ in range(30):
            answer = self.sense()
            if isinstance(answer, str):
                return done
            for request in answer:
                is_done = self.run(request)
                done.append(self.shown(request) + ("" if is_done else " failed"))
                done += ["marts"] if is_done and request.job_name == DROPS_JOB else []
        raise AssertionError(f"the sensor never rests: {done}")

    def landed(self) -> dict[str, int]:
        """Rows of sales by drop."""
        return dict(
            self.warehouse.query(
                f"select drop_date::varchar, count(*) from {SALES.table} group by all order by all"
            )
        )


def make_house(folder: Path, instance: dg.DagsterInstance) -> House:
    settings = load_settings(
        home=folder / "home",
        lake=str(folder / "lake"),
        warehouse=f"duckdb:{folder / 'warehouse.duckdb'}",
    )
    return House(
        settings,
        instance,
        RawZone(folder / "lake"),
        DuckDBWarehouse(path=str(settings.warehouse_path), timeout_s=30),
    )


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with dg.DagsterInstance.ephemeral() as instance:
        found = make_house(tmp_path, instance)
        found.raw.outlets()
        found.raw.products()
        yield found


def deliver(house: House, *days: str, rows: int = 1) -> None:
    for day in days:
        house.raw.sales(day, *(sale(n) for n in range(rows)))
        house.raw.customers(day, person())


def only(answer: list[dg.RunRequest] | str) -> dg.RunRequest:
    assert isinstance(answer, list), answer
    (request,) = answer
    return request


def test_a_lake_without_files_asks_for_nothing(tmp_path: Path) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert make_house(tmp_path, instance).sense() == NOTHING


def test_the_first_tick_asks_for_all_drops_in_one_run_and_registers_them_by_date(
    house: House,
) -> None:
    deliver(house, D3, D1)
    house.raw.sales(D2, sale())

    answer = house.tick()

    assert isinstance(answer, dg.SensorResult)
    small, large = answer.run_requests or ()
    assert small.job_name == SMALL_JOB and not small.asset_selection
    assert large.job_name == LARGE_JOB and not large.asset_selection
    assert house.keys_of(large) == house.registered() == [D1, D2, D3]
    events = {event.partition: event for event in answer.asset_events}
    assert list(events) == [D1, D2, D3]
    assert {event.asset_key for event in events.values()} == {raw_key(FEED, FEED.dated[0])}
    assert set(events[D2].metadata) == {"sales_file", "sales_bytes", "sales_version"}
    assert events[D1].metadata["customer_file"].value == RAW_CUSTOMER.name(D1)


def test_work_is_done_once_then_the_marts_then_nothing(house: House) -> None:
    deliver(house, D1, D2)

    assert house.settle() == ["small", f"{D1} {D2}", "marts"]

    assert house.sense() == NOTHING
    assert house.landed() == {D1: 1, D2: 1}


def test_one_run_takes_a_range_to_the_marts_where_that_is_all_that_lacks(house: House) -> None:
    deliver(house, D1)
    assert [x.job_name for x in house.sense()] == [SMALL_JOB, LARGE_JOB]  # type: ignore[union-attr]
    house.settle()

    deliver(house, D2, D3)
    assert only(house.sense()).job_name == DROPS_JOB
    house.raw.products("1,PD001,Latte,RM 10.90")
    assert [x.job_name for x in house.sense()] == [SMALL_JOB, LARGE_JOB]  # type: ignore[union-attr]
    house.settle()

    deliver(house, D1, D3, rows=2)  # two ranges
    assert [x.job_name for x in house.sense()] == [LARGE_JOB] * 2  # type: ignore[union-attr]
    house.settle()
    deliver(house, D1, rows=3)
    house.instance.add_run(dg.DagsterRun(job_name=NIGHTLY_JOB, run_id=str(uuid4()), status=STARTED))
    assert only(house.sense()).job_name == LARGE_JOB


def test_drops_that_come_late_are_asked_for_alone(house: House) -> None:
    deliver(house, D1, D3)
    house.settle()

    deliver(house, D2)
    deliver(house, "1700-01-01")

    assert house.settle() == [f"1700-01-01 {D2}", "marts"]
    assert house.registered() == [D1, D3, "1700-01-01", D2]
    deliver(house, D1, D2, rows=2)  # of the dates between, none
    assert house.settle() == [D1, D2, "marts"]
    assert house.landed() == {"1700-01-01": 1, D1: 2, D2: 2, D3: 1}


def test_exactly_what_was_delivered_again_with_new_bytes_is_asked_for(house: House) -> None:
    deliver(house, D1, D2, D3)
    house.settle()

    deliver(house, D1)
    assert house.settle() == []
    house.raw.customers(D2, person(birthday="1991-01-02"))
    assert house.settle() == [D2, "marts"]
    house.raw.products("1,PD001,Latte,RM 10.90")
    assert house.settle() == ["small", "marts"]


def test_a_drop_that_goes_back_to_older_content_is_taken(house: House) -> None:
    for rows in (1, 2, 1, 2):
        deliver(house, D1, rows=rows)
        house.settle()

    assert house.landed() == {D1: 2}
    assert house.sense() == NOTHING


def test_what_is_underway_is_not_asked_for_again(house: House) -> None:
    deliver(house, D1, D2)
    requests = house.sense()
    assert isinstance(requests, list)
    small, large = (house.record(x, dg.DagsterRunStatus.NOT_STARTED) for x in requests)

    assert house.sense() == (
        f"{SMALL_JOB} is underway (run {small}); {LARGE_JOB} is underway (run {large})"
    )

    deliver(house, D4)
    assert house.shown(only(house.sense())) == D4


@pytest.mark.parametrize("stage", ["nothing", "processed", "landed"])
def test_a_run_is_left_to_its_work_at_every_stage(house: House, stage: str) -> None:
    house.settle()
    deliver(house, D1, D2)
    run_id = house.record(only(house.sense()), STARTED)
    if stage != "nothing":
        house.process([D1, D2])
    if stage == "landed":
        house.land()

    assert house.sense() == f"{DROPS_JOB} is underway (run {run_id})"


def test_runs_of_small_files_are_left_to_their_work(house: House) -> None:
    run_id = house.record(only(house.sense()), STARTED)
    house.take(FEED.single[0], [WHOLE_TABLE])

    assert house.sense() == f"{SMALL_JOB} is underway (run {run_id})"


def test_a_drop_whose_run_was_killed_is_asked_for_again(house: House) -> None:
    house.settle()
    deliver(house, D1)
    run_id = house.record(only(house.sense()), STARTED)
    _, pid, _, host = process_tags(run_id)[PROCESS_TAG].split(" ", 3)
    deliver(house, D1, rows=2)
    assert house.sense() == f"{DROPS_JOB} is underway (run {run_id})"

    house.instance.add_run_tags(run_id, {PROCESS_TAG: f"{run_id} {pid} earlier {host}"})
    assert list(fail_lost_runs(house.instance)) == [run_id]

    assert house.shown(only(house.sense())) == D1


def test_what_a_failed_run_leaves_undone_is_asked_for(house: House) -> None:
    house.settle()
    deliver(house, D1, D2)
    request = only(house.sense())
    house.process([D1])
    house.record(request, FAILURE)

    assert house.settle() == [D2, "marts"]  # which loads the other too
    assert house.landed() == {D1: 1, D2: 1}


def test_what_is_in_the_lake_alone_is_loaded_and_not_taken_again(house: House) -> None:
    house.settle()
    deliver(house, D1, D2)
    request = only(house.sense())
    house.process([D1, D2])
    house.record(request, FAILURE)

    assert house.settle() == ["load", "marts"]
    assert house.landed() == {D1: 1, D2: 1}


def test_a_run_that_a_person_asked_for_is_waited_for(house: House) -> None:
    """By the load and the marts, not by other drops."""
    deliver(house, D1)
    house.settle()
    house.process([D1])
    by_hand = dg.DagsterRun(job_name=DOMAIN, run_id=str(uuid4()), status=STARTED)
    house.instance.add_run(by_hand)
    house.settings.warehouse_path.unlink()

    assert house.sense() == f"{DOMAIN} is underway (run {by_hand.run_id})"
    deliver(house, D2)
    assert house.shown(only(house.sense())) == D2


@pytest.mark.parametrize("job", [DOMAIN, "__ASSET_JOB"])
@pytest.mark.parametrize("tags", [range_tags(D1, D1), {"dagster/partition": D1}])
def test_what_a_person_has_in_hand_is_left_to_them(
    house: House, job: str, tags: dict[str, str]
) -> None:
    deliver(house, D1)
    house.settle()
    deliver(house, D1, rows=2)
    run = dg.DagsterRun(
        job_name=job,
        run_id=str(uuid4()),
        tags=tags,
        status=STARTED,
        asset_selection=frozenset([processed_key(FEED, SALES)]),
    )
    house.instance.add_run(run)

    assert f"is underway (run {run.run_id})" in str(house.sense())


def test_lists_that_a_run_by_hand_takes_are_left_to_it(house: House) -> None:
    house.settle()
    house.raw.products("1,PD001,Latte,RM 10.90")
    house.instance.add_run(dg.DagsterRun(job_name=NIGHTLY_JOB, run_id=str(uuid4()), status=STARTED))

    assert f"{NIGHTLY_JOB} is underway" in str(house.sense())


def test_marts_that_are_being_built_are_waited_for_by_the_next(house: House) -> None:
    deliver(house, D1)
    house.settle()
    house.instance.add_run(dg.DagsterRun(job_name=MARTS_JOB, run_id=str(uuid4()), status=STARTED))

    deliver(house, D2)
    request = only(house.sense())
    assert request.job_name == LARGE_JOB
    house.run(request)
    assert f"{MARTS_JOB} is underway" in str(house.sense())


def test_a_bad_drop_does_not_keep_back_the_others_nor_the_marts(house: House) -> None:
    deliver(house, D1, D2, D3)
    house.raw.deliver(RAW_SALES, D2, "x", header="another")

    done = house.settle()

    # The first run takes what it can; the others are of what it could not.
    assert done == ["small", f"{D1} {D2} {D3} failed", *[f"{D2} failed"] * 3, "load", "marts"]
    assert house.landed() == {D1: 1, D3: 1}
    deliver(house, D4)
    assert D4 in house.settle()
    assert house.landed() == {D1: 1, D3: 1, D4: 1}
    answer = house.sense()
    assert isinstance(answer, str)
    assert f"{LARGE_JOB}:{D2}...{D2}:" in answer and "failed 3 times" in answer
    deliver(house, D0)
    tick = house.tick()
    assert isinstance(tick, dg.SensorResult)  # and what arrived is told once
    assert [event.partition for event in tick.asset_events] == [D0]
    house.settle()

    deliver(house, D2)
    assert house.settle() == [D2, "marts"]


def test_a_refused_drop_is_asked_for_once_a_delivery(house: House) -> None:
    deliver(house, D1, D2, rows=10)
    house.settle()
    deliver(house, D2, rows=2)
    house.raw.sales(D1, *(sale(n) for n in range(9)))

    def refuse(request: dg.RunRequest) -> None:
        run_id = house.record(request, FAILURE)
        why = f"{run_id} {code_version()} sales has 10 rows and would have 2"
        house.instance.add_run_tags(run_id, {PERMANENT_FAILURE_TAG: why})

    both = only(house.sense())
    assert house.shown(both) == f"{D1} {D2}"
    house.take(FEED.dated[-1], [D1])
    refuse(both)
    alone = only(house.sense())
    assert house.shown(alone) == D2
    refuse(alone)

    assert house.settle() == ["load", "marts"]
    assert house.landed() == {D1: 9, D2: 10}
    answer = house.sense()
    assert isinstance(answer, str)
    assert "sales has 10 rows and would have 2): deliver it anew" in answer

    house.raw.sales(D2, *(sale(n) for n in range(11)))
    assert house.settle() == [D2, "marts"]
    assert house.landed() == {D1: 9, D2: 11}


def test_marts_wait_for_drops_that_are_underway(house: House) -> None:
    deliver(house, D1)
    house.settle()
    deliver(house, D1, rows=2)
    first = only(house.sense())
    house.process([D1])
    house.land()
    run_id = house.record(first, STARTED)
    assert house.sense() == f"{DROPS_JOB} is underway (run {run_id})"

    house.instance.delete_run(run_id)
    house.record(first, SUCCESS)

    assert house.shown(only(house.sense())) == "marts"


def test_a_deleted_drop_is_not_obeyed(house: House) -> None:
    deliver(house, D1, D2)
    house.settle()

    for kind in (RAW_SALES, RAW_CUSTOMER):
        (house.raw.root / kind.name(D1)).unlink()

    assert house.sense() == NOTHING
    assert house.landed() == {D1: 1, D2: 1}


def test_a_lost_warehouse_is_filled_again_with_what_was_deleted_too(house: House) -> None:
    deliver(house, D1, D2)
    house.settle()
    for kind in (RAW_SALES, RAW_CUSTOMER):
        (house.raw.root / kind.name(D1)).unlink()
    house.settings.warehouse_path.unlink()

    assert house.settle() == ["load", "marts"]

    assert house.landed() == {D1: 1, D2: 1}


def test_a_lost_zone_asks_for_everything(house: House) -> None:
    deliver(house, D1, D2)
    house.settle()

    shutil.rmtree(house.raw.root / "processed")

    assert house.settle() == ["small", f"{D1} {D2}"]  # the same bytes: the marts are as they were
    assert house.landed() == {D1: 1, D2: 1}


def test_the_warehouse_follows_what_was_restored_and_nothing_undoes_it(house: House) -> None:
    deliver(house, D1)
    house.settle()
    deliver(house, D1, D2, rows=2)
    house.settle()

    restore(house.raw.lake, SALES, 0, {})

    assert house.settle() == ["load", "marts"]
    assert house.landed() == {D1: 1}
    assert house.sense() == NOTHING
    deliver(house, D1, rows=3)
    assert house.settle() == [D1, "marts"]
    assert house.landed() == {D1: 3}


def test_files_whose_names_are_no_drops_are_told(house: House) -> None:
    house.settle()
    house.raw.deliver_bytes("raw/coffee_chain/sales/sales_20180630.csv", b"x")
    house.raw.deliver_bytes("raw/coffee_chain/sales/sales_data_2018-06-30.csv.part", b"x")

    assert house.sense() == "no drop by its name: raw/coffee_chain/sales/sales_20180630.csv"


@pytest.fixture
def scheduled(tmp_path: Path) -> Iterator[House]:
    """As ``house``, with an instance on disk: the context of a schedule takes no other."""
    folder = tmp_path / "dagster"
    folder.mkdir()
    with dg.DagsterInstance.local_temp(str(folder)) as instance:
        found = make_house(tmp_path, instance)
        found.raw.outlets()
        found.raw.products()
        yield found


def schedule(house: House) -> list[dg.RunRequest] | str:
    """What the nightly schedule of drops asks for, or why nothing."""
    found = FEED.build_defs(house.settings).schedules or ()
    (nightly,) = (x for x in found if x.name == f"{DOMAIN}_drops_nightly")
    assert isinstance(nightly, dg.ScheduleDefinition)
    with dg.build_schedule_context(
        instance=house.instance,
        scheduled_execution_time=datetime(2024, 5, 6, 3, 0, tzinfo=UTC),
        resources={"lake": house.raw.lake},
    ) as context:
        answer = nightly(context)
    if isinstance(answer, dg.SkipReason):
        return str(answer.skip_message)
    assert isinstance(answer, list)
    return answer


def test_the_schedule_catches_up_with_the_drops_that_the_sensor_missed(scheduled: House) -> None:
    house = scheduled
    assert schedule(house) == "no drop has changed"
    deliver(house, D1, D3)

    request = only(schedule(house))

    assert request.job_name == LARGE_JOB and REQUEST_TAG in request.tags
    assert house.registered() == house.keys_of(request) == [D1, D3]
    house.process([D1, D3])
    assert schedule(house) == "no drop has changed"
    deliver(house, D2)
    deliver(house, D1, rows=2)
    again = schedule(house)
    assert isinstance(again, list)
    assert [house.keys_of(x) for x in again] == [[D1], [D2]]
    assert len({x.run_key for x in again}) == 2


def test_the_schedule_leaves_to_a_run_what_it_has_in_hand(scheduled: House) -> None:
    house = scheduled
    house.settle()
    deliver(house, D1)
    run_id = house.record(only(house.sense()), STARTED)

    assert schedule(house) == f"{DROPS_JOB} is underway (run {run_id})"
    deliver(house, D2)
    assert house.keys_of(only(schedule(house))) == [D2]


def test_jobs_run_as_often_as_promised_and_nothing_by_itself(house: House) -> None:
    defs = FEED.build_defs(house.settings)
    schedules = {x.name: x for x in defs.schedules or () if isinstance(x, dg.ScheduleDefinition)}
    (sensor,) = defs.sensors or ()

    assert {name: (x.cron_schedule, x.job_name) for name, x in schedules.items()} == {
        f"{DOMAIN}_drops_nightly": ("0 3 * * *", LARGE_JOB),
        NIGHTLY_JOB: ("0 4 * * *", NIGHTLY_JOB),
    }
    assert {x.execution_timezone for x in schedules.values()} == {"UTC"}
    assert isinstance(sensor, dg.SensorDefinition)
    assert sensor.minimum_interval_seconds == 30
    sensed = {SMALL_JOB, LARGE_JOB, DROPS_JOB, LOAD_JOB, MARTS_JOB}
    assert {job.name for job in sensor.jobs} == sensed
    assert {x.default_status.name for x in (*schedules.values(), sensor)} == {"STOPPED"}

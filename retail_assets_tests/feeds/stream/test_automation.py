"""Tests of retail_assets.feeds.stream.automation: what the sensor asks for, and that it runs.

Over a real Dagster instance, embedded broker and PostgreSQL; the runs are done here in place of the
daemon's.
"""

import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retail_assets.defs.supply_chain.contract import DIM_CUSTOMER, DOMAIN, LANDED, MESSAGES, TOPIC
from retail_assets.defs.supply_chain.feed import FEED
from retail_assets.domain import MARTS_STAGE
from retail_assets.feeds import automation
from retail_assets.feeds.landing import landed_key
from retail_assets.feeds.requests import REQUEST_TAG
from retail_assets.feeds.stream.assets import transformed_key
from retail_assets.feeds.stream.automation import find_arrivals, messages_request
from retail_assets.feeds.stream.batches import MicroBatchConfig
from retail_assets.feeds.stream.sinks import DatabaseSink
from retail_assets.resources.broker import embedded as broker_embedded
from retail_assets.resources.broker.resource import LostMessagesError
from retail_assets.resources.operational_db import OperationalDbResource
from retail_assets_tests.defs.supply_chain.shop import (
    Shop,
    opened_database,
    opened_shop,
    order_line,
)
from retail_assets_tests.feeds.stream.names import (
    BATCH_JOB,
    LOAD_JOB,
    MARTS_JOB,
    MESSAGES_JOB,
    MESSAGES_KEY,
    OPERATIONAL_KEY,
    STAR_JOB,
)

YESTERDAY = "2026-01-02"
STARTED, SUCCESS = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.SUCCESS
FAILURE = dg.DagsterRunStatus.FAILURE


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperationalDbResource]:
    with opened_database(tmp_path_factory.mktemp("database")) as found:
        yield found


@pytest.fixture
def shop(tmp_path: Path, database: OperationalDbResource) -> Iterator[Shop]:
    with opened_shop(tmp_path / "home", database) as found:
        yield found


def tick(shop: Shop, today: str = YESTERDAY) -> tuple[list[dg.RunRequest], str]:
    """What the sensor asks for, or why it asks for nothing."""
    arrivals = find_arrivals(FEED, shop.instance, shop.lake, shop.broker, today)
    found = automation.ask(shop.instance, FEED, shop.lake, shop.warehouse, arrivals)
    if isinstance(found, dg.SkipReason):
        return [], found.skip_message or ""
    return list(found.run_requests or ()), ""


def jobs(found: tuple[list[dg.RunRequest], str]) -> list[str]:
    """The jobs that the sensor asks for."""
    return [str(request.job_name) for request in found[0]]


def record(
    shop: Shop, job: str, status: dg.DagsterRunStatus, tags: Mapping[str, str] | None = None
) -> str:
    """A run, as the daemon would have launched it; its id."""
    run_id = str(uuid.uuid4())
    tags = {REQUEST_TAG: "any"} if tags is None else dict(tags)
    shop.instance.add_run(dg.DagsterRun(job_name=job, run_id=run_id, tags=tags, status=status))
    return run_id


# ---- the topic


def test_exactly_what_has_not_landed_is_asked_for_and_lands(shop: Shop) -> None:
    shop.send(map(order_line, range(5)), 0)
    shop.send(map(order_line, range(3)), 2)
    incarnation = shop.broker.incarnation(TOPIC).id

    (request,), _ = tick(shop)

    assert request.job_name == MESSAGES_JOB
    assert request.run_key == f"{MESSAGES_JOB}:{incarnation}:0:0-5,2:0-3:1"
    assert request.run_config == {
        "ops": {
            "supply_chain_micro_batch": {
                "config": {
                    "incarnation": incarnation,
                    "ingest_date": YESTERDAY,
                    "ranges": {"0": [0, 5], "2": [0, 3]},
                }
            }
        }
    }

    # More comes before the run begins: it is not of the request.
    shop.send(map(order_line, range(4)), 0)
    shop.send(map(order_line, range(2)), 1)
    assert shop.execute(MESSAGES_JOB, request.run_config, request.tags).success

    asked = {*((0, n) for n in range(5)), *((2, n) for n in range(3))}
    # On the request's day, though the run is of another.
    assert f"{datetime.now(UTC):%Y-%m-%d}" != YESTERDAY
    assert shop.landed() == shop.in_database() == dict.fromkeys(asked, YESTERDAY)

    (second, batch), _ = tick(shop, "2026-01-03")
    config = second.run_config["ops"]["supply_chain_micro_batch"]["config"]
    assert config["ranges"] == {"0": [5, 9], "1": [0, 2]}
    assert second.run_key != request.run_key
    assert shop.execute(MESSAGES_JOB, second.run_config, second.tags).success
    assert jobs(tick(shop)) == [batch.job_name] == [BATCH_JOB]
    landed = shop.landed()
    assert landed == shop.in_database()
    assert {place for place, day in landed.items() if day == YESTERDAY} == asked
    assert len(landed) == 14


def test_a_request_executed_twice_lands_once(shop: Shop) -> None:
    shop.send(map(order_line, range(5)), 0)
    (request,), _ = tick(shop)

    for _ in range(2):
        assert shop.execute(MESSAGES_JOB, request.run_config, request.tags).success

    assert shop.landed() == shop.in_database() == {(0, n): YESTERDAY for n in range(5)}


def test_nothing_is_asked_for_of_a_topic_that_is_not_there(shop: Shop) -> None:
    assert shop.broker.address
    assert tick(shop) == ([], "every message has landed")


def test_no_broker_is_a_reason_that_says_what_to_do(shop: Shop) -> None:
    requests, reason = tick(shop)

    assert requests == []
    assert "no embedded broker is running" in reason
    assert "retail-assets dev" in reason
    assert f"retail-assets run {DOMAIN} --stream FILE" in reason
    assert not shop.broker.running  # none was started to ask


def test_a_broker_that_begins_anew_has_everything_to_land(shop: Shop) -> None:
    shop.send(map(order_line, range(5)), 0)
    (request,), _ = tick(shop)
    assert shop.execute(MESSAGES_JOB, request.run_config, request.tags).success
    broker_embedded.let_go(Path(shop.broker.home))
    assert jobs(tick(shop)) == [BATCH_JOB]
    shop.send(map(order_line, range(2)), 0)

    (second, _), _ = tick(shop)

    config = second.run_config["ops"]["supply_chain_micro_batch"]["config"]
    assert config["ranges"] == {"0": [0, 2]}
    assert config["incarnation"] == shop.broker.incarnation(TOPIC).id
    assert config["incarnation"] not in request.run_key


@pytest.mark.parametrize("is_gone", [False, True])
@pytest.mark.parametrize("job", [MESSAGES_JOB, DOMAIN])
def test_a_batch_that_was_killed_is_finished_though_no_message_comes(
    shop: Shop, job: str, is_gone: bool
) -> None:
    """After the lake had its rows, and before the database had; the broker may have gone too."""
    shop.send(map(order_line, range(5)), 0)
    (request,), _ = tick(shop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatabaseSink, "insert", lambda *_: 1 / 0)
        assert not shop.execute(MESSAGES_JOB, request.run_config).success
    assert len(shop.landed()) == 5 and shop.in_database() == {}
    record(shop, job, FAILURE, request.tags if job == MESSAGES_JOB else {})
    if is_gone:
        broker_embedded.let_go(Path(shop.broker.home))
        assert shop.broker.address

    (rest, _), _ = tick(shop, "2026-01-03")
    assert rest.job_name == MESSAGES_JOB and rest.run_key != request.run_key
    assert shop.execute(MESSAGES_JOB, rest.run_config, rest.tags).success

    assert shop.in_database() == {(0, n): YESTERDAY for n in range(5)}
    assert jobs(tick(shop)) == [BATCH_JOB]


def test_a_batch_that_cannot_be_finished_is_not_asked_for_without_end(shop: Shop) -> None:
    assert shop.broker.address
    record(shop, MESSAGES_JOB, FAILURE, {})  # a person's
    for _ in range(3):
        (request,), _ = tick(shop)
        record(shop, MESSAGES_JOB, FAILURE, request.tags)

    requests, reason = tick(shop)
    assert requests == []
    assert "failed 3 times: mend its cause and run it by hand" in reason


@pytest.mark.parametrize("status", [STARTED, dg.DagsterRunStatus.NOT_STARTED])
def test_one_batch_at_a_time(shop: Shop, status: dg.DagsterRunStatus) -> None:
    shop.send([order_line(1)], 0)
    run_id = record(shop, MESSAGES_JOB, status)

    assert tick(shop) == ([], f"{MESSAGES_JOB} is underway (run {run_id})")

    record(shop, MESSAGES_JOB, SUCCESS)
    assert tick(shop) == ([], f"{MESSAGES_JOB} is underway (run {run_id})")


def test_a_batch_that_failed_is_asked_for_again_and_not_for_ever(shop: Shop) -> None:
    shop.send([order_line(1)], 0)
    keys = []
    for _ in range(3):
        (request,), _ = tick(shop)
        keys.append(request.run_key)
        record(shop, MESSAGES_JOB, FAILURE, request.tags)

    assert len(set(keys)) == 3
    requests, reason = tick(shop)
    assert requests == []
    assert "failed 3 times: mend its cause and run it by hand" in reason
    shop.send([order_line(2)], 0)  # another range is another batch
    (request,), _ = tick(shop)
    assert "0:0-2" in (request.run_key or "")


def test_lost_messages_are_an_error_of_the_tick(shop: Shop) -> None:
    """The embedded broker drops what is more than 5 MiB of a partition."""
    big = order_line(1, product_description=uuid.uuid4().hex * 5_000)
    shop.send([big] * 60, 0)
    assert shop.broker.watermarks(TOPIC)[0].low > 0

    with pytest.raises(LostMessagesError, match="offsets 0 to"):
        tick(shop)


RANGES = st.dictionaries(
    st.integers(0, 9),
    st.tuples(st.integers(0, 99), st.integers(1, 99)).map(lambda t: (t[0], t[0] + t[1])),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(RANGES, RANGES, st.sampled_from("ab"), st.sampled_from("ab"))
def test_a_batch_is_identified_by_its_incarnation_and_ranges(
    one: dict[int, tuple[int, int]], other: dict[int, tuple[int, int]], a: str, b: str
) -> None:
    request, second = (
        messages_request(FEED, a, one, YESTERDAY),
        messages_request(FEED, b, other, "2026-01-03"),
    )

    assert (request.identity == second.identity) is ((a, one) == (b, other))
    config = MicroBatchConfig(**request.run_config["ops"]["supply_chain_micro_batch"]["config"])
    assert {int(p): tuple(span) for p, span in config.ranges.items()} == one
    assert (config.incarnation, config.ingest_date, config.file) == (a, YESTERDAY, None)


# ---- the star and the marts


def build_marts(shop: Shop) -> None:
    """Note the marts as built of what is landed."""
    for dataset in LANDED:
        versions = shop.warehouse.loaded_versions(dataset)
        shop.warehouse.record_versions(dataset, MARTS_STAGE, versions)


def test_what_lands_reaches_the_marts_by_the_sensor_alone(shop: Shop) -> None:
    def land(item: int) -> None:
        shop.send([order_line(item)], 0)
        (request, *_), _ = tick(shop)
        assert request.job_name == MESSAGES_JOB
        assert shop.execute(MESSAGES_JOB, request.run_config, request.tags).success

    land(1)
    (batch,), _ = tick(shop)
    assert batch.job_name == BATCH_JOB and jobs(tick(shop)) == [BATCH_JOB]
    assert shop.execute(BATCH_JOB, batch.run_config, batch.tags).success
    # What comes meanwhile does not keep the marts waiting, nor the marts what comes.
    land(2)
    assert jobs(tick(shop)) == [MARTS_JOB]
    marts = record(shop, MARTS_JOB, STARTED, {})
    shop.send([order_line(3)], 0)
    assert jobs(tick(shop)) == [MESSAGES_JOB]
    shop.instance.delete_run(marts)
    build_marts(shop)
    (messages, second), _ = tick(shop)
    assert second.job_name == BATCH_JOB and second.run_key != batch.run_key
    assert shop.execute(MESSAGES_JOB, messages.run_config, messages.tags).success
    assert shop.execute(BATCH_JOB).success

    assert jobs(tick(shop)) == [MARTS_JOB]
    build_marts(shop)
    assert tick(shop) == ([], "every message has landed")


def test_a_star_that_is_half_published_is_built_and_not_loaded(shop: Shop) -> None:
    shop.send([order_line(1)], 0)
    assert shop.execute(MESSAGES_JOB).success
    assert shop.execute(BATCH_JOB).success
    table = shop.lake.table(DIM_CUSTOMER)
    before = table.transactions([MESSAGES.location])[MESSAGES.location]
    table.commit([], transactions={MESSAGES.location: (before, before + 1)})

    assert jobs(tick(shop)) == [MARTS_JOB]
    build_marts(shop)
    assert jobs(tick(shop)) == [BATCH_JOB]
    assert not shop.execute(LOAD_JOB).success


def load(shop: Shop, version: str, stage: str = "landed") -> None:
    """Have every table, and note it as loaded, of this version."""
    shop.warehouse.query(f"create schema if not exists {DOMAIN}")
    for dataset in LANDED:
        columns = dataset.duckdb_ddl()
        shop.warehouse.query(f"create table if not exists {dataset.table} ({columns})")
        shop.warehouse.record_versions(dataset, stage, {"": version})


def test_marts_are_asked_for_where_landed_tables_changed(shop: Shop) -> None:
    assert shop.broker.address
    assert tick(shop)[0] == []
    load(shop, "v1")

    (request,), _ = tick(shop)
    assert request.job_name == MARTS_JOB
    assert request.run_config == {}
    record(shop, MARTS_JOB, SUCCESS, request.tags)
    load(shop, "v1", MARTS_STAGE)
    assert tick(shop) == ([], "every message has landed")

    shop.warehouse.record_versions(DIM_CUSTOMER, "landed", {"": "v2"})
    (second,), _ = tick(shop)
    assert second.job_name == MARTS_JOB and second.run_key != request.run_key


def test_marts_are_asked_for_without_a_broker_and_beside_messages(shop: Shop) -> None:
    load(shop, "v1")
    (request,), _ = tick(shop)
    assert request.job_name == MARTS_JOB

    shop.send([order_line(1)], 0)
    requests, _ = tick(shop)
    assert [each.job_name for each in requests] == [MESSAGES_JOB, MARTS_JOB]


@pytest.mark.parametrize("job", [BATCH_JOB, LOAD_JOB, DOMAIN])
def test_marts_wait_for_the_load_that_is_underway(shop: Shop, job: str) -> None:
    """Whoever started it: the schedule, or a person."""
    load(shop, "v1")
    run_id = record(shop, job, STARTED, {})

    requests, reason = tick(shop)

    assert requests == []
    assert f"{job} is underway (run {run_id})" in reason


# ---- what Dagster is given


def test_the_sensor_gives_dagster_what_it_asks_for(shop: Shop) -> None:
    shop.send(map(order_line, range(5)), 3)
    sensor = shop.definitions.resolve_sensor_def(f"{DOMAIN}_messages_sensor")
    assert {target.job_name for target in sensor.targets} == {
        *(MESSAGES_JOB, BATCH_JOB, LOAD_JOB, MARTS_JOB)
    }

    with dg.build_sensor_context(
        instance=shop.instance,
        repository_def=shop.definitions.get_repository_def(),
        resources={"lake": shop.lake, "broker": shop.broker, "warehouse": shop.warehouse},
    ) as context:
        data = sensor.evaluate_tick(context)

    assert data.cursor is None
    (request,) = data.run_requests or ()
    config = request.run_config["ops"]["supply_chain_micro_batch"]["config"]
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert config["ingest_date"] == today
    assert config["ranges"] == {"3": [0, 5]}
    dg.validate_run_config(shop.definitions.resolve_job_def(MESSAGES_JOB), request.run_config)


def test_jobs_share_the_work_in_order(shop: Shop) -> None:
    def selected(job: str) -> set[dg.AssetKey]:
        return set(shop.definitions.resolve_job_def(job).asset_layer.selected_asset_keys)

    messages, star, landed = (selected(job) for job in (MESSAGES_JOB, STAR_JOB, LOAD_JOB))
    assert (STAR_JOB, LOAD_JOB, BATCH_JOB) == (
        "olap_transformation_pipeline",
        "gcs_to_bigquery_pipeline",
        "batch_pipeline",
    )
    assert messages == {MESSAGES_KEY, OPERATIONAL_KEY}
    assert star == set(map(transformed_key, LANDED))
    assert landed == set(map(landed_key, LANDED))
    assert selected(BATCH_JOB) == star | landed
    assert selected(DOMAIN) == messages | star | landed  # dbt's models are left out here


def test_the_batch_is_made_every_hour(shop: Shop) -> None:
    (schedule,) = shop.definitions.get_repository_def().schedule_defs

    assert schedule.job_name == BATCH_JOB
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 * * * *", "UTC")
    now = datetime.now(UTC)
    with dg.build_schedule_context(shop.instance, scheduled_execution_time=now) as context:
        tick = schedule.evaluate_tick(context)
    (request,) = tick.run_requests or ()
    dg.validate_run_config(shop.definitions.resolve_job_def(BATCH_JOB), request.run_config)

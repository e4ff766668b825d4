"""Tests of retail_assets.feeds.stream.assets: a broker, PostgreSQL, Spark and DuckDB."""

import json
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from retail_assets.defs.supply_chain.contract import (
    DIM_CUSTOMER,
    DIM_DEPARTMENT,
    DOMAIN,
    FACT_ORDER,
    LANDED,
    MESSAGES,
    TOPIC,
)
from retail_assets.defs.supply_chain.feed import FEED
from retail_assets.defs.supply_chain.sample import write_sample
from retail_assets.feeds.landing import landed_key
from retail_assets.feeds.stream import BuiltTable
from retail_assets.feeds.stream.assets import (
    LAG_CHECK,
    READABLE_CHECK,
    STAR_CHECK,
    check_lag,
    check_star,
    transformed_key,
)
from retail_assets.feeds.stream.batches import Landed
from retail_assets.losses import QUARANTINE_CHECK
from retail_assets.resources.operational_db import OperationalDbResource
from retail_assets.settings import Settings, load_settings
from retail_assets_tests.defs.supply_chain.shop import (
    Shop,
    opened_database,
    opened_shop,
    order_line,
)
from retail_assets_tests.feeds.stream.names import (
    BATCH_JOB,
    LOAD_JOB,
    MESSAGES_JOB,
    MESSAGES_KEY,
    OPERATIONAL_KEY,
    STAR_JOB,
    TOPIC_KEY,
    messages_config,
    star_config,
)

DAY = "2026-01-02"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperationalDbResource]:
    with opened_database(tmp_path_factory.mktemp("database")) as found:
        yield found


@pytest.fixture
def shop(tmp_path: Path, database: OperationalDbResource) -> Iterator[Shop]:
    with opened_shop(tmp_path / "home", database) as found:
        yield found


def metadata_of(result: dg.ExecuteInProcessResult, key: dg.AssetKey) -> dict[str, Any]:
    """What an asset's only materialization of a run says."""
    (event,) = (m for m in result.get_asset_materialization_events() if m.asset_key == key)
    return {name: value.value for name, value in event.materialization.metadata.items()}


def check_of(result: dg.ExecuteInProcessResult, name: str) -> dg.AssetCheckEvaluation:
    (found,) = (c for c in result.get_asset_check_evaluations() if c.check_name == name)
    return found


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    """What the failed step says, of a failure that is not tried again."""
    assert not result.filter_events(lambda e: e.is_step_up_for_retry)
    (event,) = result.filter_events(lambda e: e.is_step_failure)
    data = event.step_failure_data.user_failure_data
    assert data is not None and data.description is not None
    return str(data.description)


# ---- messages


def test_messages_land_in_both_sinks_and_the_malformed_ones_in_quarantine(shop: Shop) -> None:
    shop.send([order_line(1), b"no JSON", order_line(2), None, order_line(3, sales="many")], 1)

    result = shop.execute(MESSAGES_JOB, messages_config(ingest_date=DAY))

    assert result.success
    assert shop.landed() == shop.in_database() == {(1, 0): DAY, (1, 2): DAY}
    assert shop.in_database("dead_letters") == dict.fromkeys([(1, 1), (1, 3), (1, 4)], DAY)
    found = metadata_of(result, MESSAGES_KEY)
    assert {name: found[name] for name in ("messages", "dead_letters", "inserted", "files")} == {
        "messages": 5,
        "dead_letters": 3,
        "inserted": 5,
        "files": 2,
    }
    assert (found["rows_landed"], found["batches"], found["lag"]) == (2, 1, 0)
    assert found["lag_by_partition"]["1"] == 0
    assert 0 <= found["oldest_message_waited_s"] < 600
    assert metadata_of(result, OPERATIONAL_KEY)["rows_landed"] == 2
    assert check_of(result, LAG_CHECK).passed
    # Three of five: a topic cannot be refused, but somebody is told.
    said = "the first: expected a JSON object, found no JSON: Expecting value"
    found_check = check_of(result, READABLE_CHECK)
    assert (found_check.passed, found_check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert (found_check.description or "").startswith(
        f"3 of 5 messages that landed are dead letters, expected at most half; {said}"
    )
    warning = check_of(result, QUARANTINE_CHECK)
    assert (warning.passed, warning.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "3 messages quarantined; expected a JSON object" in (warning.description or "")
    assert (found["quarantined"], found["left_out_values"]) == (3, 0)


def test_a_value_that_is_left_out_is_told_and_its_message_lands(shop: Shop) -> None:
    odd = {"latitude": "north", "customer_zipcode": "9.4E+04", "order_zipcode": "94103.0"}
    shop.send([order_line(1, **odd), order_line(2), order_line(3, latitude="NULL")], 1)

    result = shop.execute(DOMAIN, messages_config(ingest_date=DAY))

    assert result.success
    assert len(shop.landed()) == len(shop.in_database()) == 3
    assert shop.in_database("dead_letters") == {}
    found = metadata_of(result, MESSAGES_KEY)
    assert (found["quarantined"], found["left_out_values"]) == (0, 2)
    # A zip code is personal: what it was is in quarantine, and not here.
    reason = "Customer Zipcode: expected a code of digits, or a text"
    assert found["first_reason"] == reason
    assert f"2 values left out; {reason}" in (check_of(result, QUARANTINE_CHECK).description or "")
    assert check_of(result, READABLE_CHECK).passed
    (file,) = Path(shop.settings.lake).glob("quarantine/supply_chain/dead_letters/*/*.parquet")
    listed = pq.read_table(file, partitioning=None).to_pylist()
    assert [(entry["offset"], entry["row_stays"]) for entry in listed] == [(0, True)] * 2
    assert {json.loads(entry["text"])["Latitude"] for entry in listed} == {"north"}
    rows = shop.warehouse.query(
        "select order_zipcode, latitude, count(*) from supply_chain.fact_order"
        " join supply_chain.dim_location using (location_id) group by all order by all"
    )
    assert [(code, str(latitude), n) for code, latitude, n in rows] == [
        ("94103", "None", 1),
        ("Bogotá", "-66.037060000", 1),
        ("Bogotá", "None", 1),
    ]


def test_half_of_the_messages_may_be_dead_letters(shop: Shop) -> None:
    shop.send([order_line(1), b"no JSON"], 1)

    result = shop.execute(MESSAGES_JOB, messages_config(ingest_date=DAY))

    assert check_of(result, READABLE_CHECK).passed
    assert metadata_of(result, MESSAGES_KEY)["quarantined"] == 1


def test_a_run_without_a_date_lands_on_the_day_of_its_creation(
    shop: Shop,
) -> None:
    shop.send([order_line(1)], 0)

    result = shop.execute(MESSAGES_JOB)

    assert result.success
    record = shop.instance.get_run_record_by_id(result.run_id)
    assert record is not None
    created = record.create_timestamp.astimezone(UTC)
    assert shop.landed() == shop.in_database() == {(0, 0): f"{created:%Y-%m-%d}"}


def test_only_the_ranges_that_are_asked_for_land(shop: Shop) -> None:
    for partition in (0, 1, 2):
        shop.send(map(order_line, range(5)), partition)
    incarnation = shop.broker.incarnation(TOPIC).id
    ranges = {"0": [0, 3], "2": [0, 5]}

    result = shop.execute(
        MESSAGES_JOB, messages_config(ingest_date=DAY, incarnation=incarnation, ranges=ranges)
    )

    assert result.success
    places = {(0, 0), (0, 1), (0, 2), *((2, offset) for offset in range(5))}
    assert shop.landed().keys() == shop.in_database().keys() == places
    found = metadata_of(result, MESSAGES_KEY)
    assert (found["lag"], found["lag_by_partition"]) == (7, {"0": 2, "1": 5, "2": 0, "3": 0})


def test_ranges_of_a_broker_that_ended_are_nothing(shop: Shop) -> None:
    shop.send([order_line(1)], 0)

    result = shop.execute(
        MESSAGES_JOB,
        messages_config(ingest_date=DAY, incarnation="another", ranges={"0": [0, 1]}),
    )

    assert result.success
    assert shop.landed() == {}
    assert metadata_of(result, MESSAGES_KEY)["messages"] == 0


def test_a_run_lands_in_batches_of_the_size_asked_for(shop: Shop) -> None:
    shop.send(map(order_line, range(10)), 3)

    result = shop.execute(MESSAGES_JOB, messages_config(ingest_date=DAY, most_messages=4))

    assert metadata_of(result, MESSAGES_KEY)["batches"] == 3
    assert len(shop.landed()) == len(shop.in_database()) == 10


def test_a_file_lands_while_it_is_produced(shop: Shop, tmp_path: Path) -> None:
    sample = tmp_path / "orders.csv"
    counts = write_sample(sample, orders=300)

    result = shop.execute(
        MESSAGES_JOB, messages_config(ingest_date=DAY, file=str(sample), most_messages=200)
    )

    assert result.success
    assert len(shop.landed()) == len(shop.in_database()) == sum(shop.ends().values())
    assert sum(shop.ends().values()) == counts.lines
    assert metadata_of(result, MESSAGES_KEY)["messages"] == counts.lines


def test_a_file_that_is_no_source_fails_for_good_before_anything_is_sent(
    shop: Shop, tmp_path: Path
) -> None:
    shop.send([order_line(1)], 0)
    file = tmp_path / "orders.csv"
    file.write_text("Order Id,Sales\n1,2\n")

    result = shop.execute(MESSAGES_JOB, messages_config(ingest_date=DAY, file=str(file)))

    assert not result.success
    text = failure_of(result)
    assert text.startswith(f"{file}") and "expected" in text
    assert shop.ends() == {0: 1}
    assert shop.landed() == {}


# ---- the topic


def observations(result: dg.ExecuteInProcessResult) -> list[dg.AssetObservation]:
    return [
        event.asset_observation_data.asset_observation
        for event in result.all_events
        if event.event_type_value == "ASSET_OBSERVATION"
    ]


def observe(shop: Shop) -> dg.AssetObservation:
    """What an observation of the topic, as from the UI, says."""
    topic, *_ = shop.definitions.assets or ()
    assert isinstance(topic, dg.SourceAsset) and topic.key == TOPIC_KEY
    job = dg.define_asset_job("observe", selection=dg.AssetSelection.assets(TOPIC_KEY))
    definitions = dg.Definitions(assets=[topic], jobs=[job], resources={"broker": shop.broker})
    result = definitions.resolve_job_def("observe").execute_in_process(instance=shop.instance)
    (found,) = observations(result)
    assert found.asset_key == TOPIC_KEY
    return found


def test_the_topic_is_others_and_can_be_observed(shop: Shop) -> None:
    graph = shop.definitions.resolve_asset_graph()
    topic = graph.get(TOPIC_KEY)

    assert topic.is_external and topic.is_observable
    assert topic.child_keys == {MESSAGES_KEY, OPERATIONAL_KEY}


def test_an_observation_of_the_topic_has_its_watermarks(shop: Shop) -> None:
    shop.send(map(order_line, range(5)), 2)

    found = observe(shop)

    incarnation = shop.broker.incarnation(TOPIC).id
    assert {name: value.value for name, value in found.metadata.items()} == {
        "incarnation": incarnation,
        "high_watermarks": {"0": 0, "1": 0, "2": 5, "3": 0},
        "low_watermarks": {"0": 0, "1": 0, "2": 0, "3": 0},
        "messages": 5,
    }
    assert found.data_version == f"{incarnation}:0,0,5,0"
    shop.send([order_line(6)], 0)
    assert observe(shop).data_version == f"{incarnation}:1,0,5,0"


def test_an_observation_starts_no_broker(shop: Shop) -> None:
    found = observe(shop)

    assert found.metadata["broker"].value == "no embedded broker is running"
    assert not shop.broker.running


def test_a_micro_batch_observes_the_topic(shop: Shop) -> None:
    shop.send(map(order_line, range(3)), 1)

    result = shop.execute(MESSAGES_JOB, messages_config(ingest_date=DAY))

    (found,) = observations(result)
    assert found.asset_key == TOPIC_KEY
    assert found.metadata["high_watermarks"].value == {"0": 0, "1": 3, "2": 0, "3": 0}


# ---- the lag


def settings_of(most_lag: int, most_age_s: float) -> Settings:
    return load_settings(supply_chain_most_lag=most_lag, supply_chain_most_age_s=most_age_s)


@limits(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lag=st.dictionaries(st.integers(0, 9), st.integers(0, 50), max_size=4),
    oldest_s=st.floats(0, 100),
    most_lag=st.integers(1, 100),
    most_age_s=st.floats(0.5, 100),
)
def test_the_lag_check_warns_past_its_thresholds_and_names_each(
    lag: dict[int, int], oldest_s: float, most_lag: int, most_age_s: float
) -> None:
    landed = Landed(lag=lag, oldest_s=oldest_s)

    found = check_lag(settings_of(most_lag, most_age_s), FEED, landed)

    text = found.description or ""
    too_much, too_old = sum(lag.values()) > most_lag, oldest_s > most_age_s
    assert found.passed is not (too_much or too_old)
    assert found.severity is dg.AssetCheckSeverity.WARN
    assert ("RETAIL_SUPPLY_CHAIN_MOST_LAG" in text) is too_much
    assert ("RETAIL_SUPPLY_CHAIN_MOST_AGE_S" in text) is too_old


def test_too_much_lag_warns_and_the_run_succeeds(
    tmp_path: Path, database: OperationalDbResource
) -> None:
    with opened_shop(tmp_path / "home", database, supply_chain_most_lag=3) as shop:
        shop.send(map(order_line, range(10)), 0)

        result = shop.execute(MESSAGES_JOB, messages_config(ingest_date=DAY, ranges={"0": [0, 6]}))

        assert result.success
        found = check_of(result, LAG_CHECK)
        assert not found.passed and found.severity is dg.AssetCheckSeverity.WARN
        assert found.description == (
            "4 messages wait, expected at most 3 (RETAIL_SUPPLY_CHAIN_MOST_LAG)"
        )
        assert shop.execute(MESSAGES_JOB, messages_config(ingest_date=DAY)).success
        assert len(shop.landed()) == 10


# ---- the star, and its load


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory, database: OperationalDbResource
) -> Iterator[tuple[Shop, dg.ExecuteInProcessResult]]:
    """A shop with three order items, one of them twice, in star and warehouse; the batch's run."""
    with opened_shop(tmp_path_factory.mktemp("built"), database) as shop:
        shop.send([order_line(1), order_line(2), order_line(1, sales="7.005"), order_line(3)], 0)
        assert shop.execute(MESSAGES_JOB, messages_config(ingest_date=DAY)).success
        yield shop, shop.execute(BATCH_JOB)


def test_a_batch_is_the_star_and_its_load(built: tuple[Shop, dg.ExecuteInProcessResult]) -> None:
    shop, result = built

    assert result.success
    keys = [event.asset_key for event in result.get_asset_materialization_events()]
    assert set(keys) == {make(d) for d in LANDED for make in (transformed_key, landed_key)}
    assert max(keys.index(transformed_key(d)) for d in LANDED) < min(
        keys.index(landed_key(d)) for d in LANDED
    )
    found = metadata_of(result, transformed_key(FACT_ORDER))
    ledger = ("messages", "written", "superseded_within", "superseded_by_later", "removed")
    assert [found[name] for name in ledger] == [4, 3, 1, 0, 0]
    assert (found["dagster/row_count"], found["files"], found["ingest_dates"]) == (3, 1, [DAY])
    assert found["changed_partitions"] == [DAY]
    checks = [c for c in result.get_asset_check_evaluations() if c.check_name == STAR_CHECK]
    assert {c.asset_key for c in checks} == set(map(transformed_key, LANDED))
    assert all(c.passed for c in checks)
    rows = shop.warehouse.query(f"select order_item_id, sales from {FACT_ORDER.table} order by 1")
    assert [(item, str(sales)) for item, sales in rows] == [(1, "7.01"), (2, "2.50"), (3, "3.50")]


def test_what_is_loaded_is_not_loaded_again(
    built: tuple[Shop, dg.ExecuteInProcessResult],
) -> None:
    shop, first = built
    assert metadata_of(first, landed_key(FACT_ORDER))["partitions_in_run"] == 1

    again = shop.execute(LOAD_JOB)

    assert again.success
    for dataset in LANDED:
        found = metadata_of(again, landed_key(dataset))
        assert (found["rows_in_run"], found["partitions_in_run"]) == (0, 0), dataset.name


def test_the_star_of_nothing_new_changes_nothing(
    built: tuple[Shop, dg.ExecuteInProcessResult],
) -> None:
    shop, _ = built

    result = shop.execute(STAR_JOB)

    assert result.success
    for dataset in LANDED:
        found = metadata_of(result, transformed_key(dataset))
        assert found["changed_partitions"] == []
        assert found["dagster/row_count"] > 0
    assert metadata_of(result, transformed_key(FACT_ORDER))["messages"] == 0


def test_ingest_dates_that_are_asked_for_are_taken_again(
    built: tuple[Shop, dg.ExecuteInProcessResult],
) -> None:
    shop, _ = built

    result = shop.execute(
        STAR_JOB, {"ops": {"supply_chain_star": {"config": {"ingest_dates": [DAY]}}}}
    )

    assert result.success
    found = metadata_of(result, transformed_key(FACT_ORDER))
    assert (found["messages"], found["written"], found["dagster/row_count"]) == (4, 3, 3)


def test_a_star_that_is_not_as_it_should_be_is_not_loaded(
    built: tuple[Shop, dg.ExecuteInProcessResult],
) -> None:
    """A department is lost from its file: the fact's check fails, and blocks the load."""
    shop, _ = built
    folder = Path(shop.settings.lake) / DIM_DEPARTMENT.zone / DIM_DEPARTMENT.folder
    (file,) = folder.rglob("*.parquet")
    pq.write_table(pq.read_table(file, partitioning=None).slice(0, 0), file)

    result = shop.execute(BATCH_JOB)

    assert not result.success
    failed = [c for c in result.get_asset_check_evaluations() if not c.passed]
    assert [c.asset_key for c in failed] == [transformed_key(FACT_ORDER)]
    assert "3 rows have a department_id of no dimension" in (failed[0].description or "")
    assert "the config anew: true" in (failed[0].description or "")
    keys = {event.asset_key for event in result.get_asset_materialization_events()}
    assert keys == set(map(transformed_key, LANDED))
    # What the check tells to do mends it.
    assert shop.execute(STAR_JOB, star_config(anew=True)).success
    assert shop.lake.table(DIM_DEPARTMENT).snapshot().rows_of([""]) == {"": 1}


def test_a_star_that_lost_its_messages_is_refused_unless_that_is_meant(
    built: tuple[Shop, dg.ExecuteInProcessResult],
) -> None:
    shop, _ = built
    shop.lake.table(MESSAGES).commit([], remove=lambda _: True)

    result = shop.execute(STAR_JOB, star_config(anew=True))

    assert not result.success
    said = failure_of(result)
    assert "3 of the 3 rows of supply_chain.fact_order are of messages that are gone" in said
    assert "--allow-emptying" in said and "allow_emptying: true" in said
    result = shop.execute(STAR_JOB, star_config(anew=True, allow_emptying=True))
    assert result.success
    assert metadata_of(result, transformed_key(FACT_ORDER))["dagster/row_count"] == 0


def test_a_load_before_the_star_is_told_what_lacks(shop: Shop) -> None:
    result = shop.execute(LOAD_JOB)

    assert not result.success
    texts = [
        event.step_failure_data.user_failure_data.description or ""
        for event in result.filter_events(lambda e: e.is_step_failure)
        if event.step_failure_data.user_failure_data
    ]
    assert texts and all("was never built" in text and "Materialize it" in text for text in texts)
    assert shop.warehouse.row_counts() == {}


def test_each_fault_of_the_star_fails_the_check_of_its_table() -> None:
    faults = ["email: int", "2 rows have a key that another row has"]

    found, well = (check_star(BuiltTable(DIM_CUSTOMER, 5, faults=x)) for x in (faults, []))

    assert (found.asset_key, found.passed) == (transformed_key(DIM_CUSTOMER), False)
    assert (found.description or "").startswith("; ".join(faults))
    assert found.metadata["rows"].value == 5
    assert well.passed


# ---- what the graph says


def test_personal_columns_are_tagged_in_the_ui(shop: Shop) -> None:
    specs = {spec.key: spec for spec in shop.definitions.resolve_all_asset_specs()}
    for dataset in LANDED:
        for key in (transformed_key(dataset), landed_key(dataset)):
            schema = specs[key].metadata["dagster/column_schema"]
            personal = {c.name for c in schema.columns if c.tags == {"pii": "true"}}
            assert personal == {c.name for c in dataset.columns if c.pii}
    assert {c.name for c in DIM_CUSTOMER.columns if c.pii} == {
        *("email", "fname", "lname", "street", "zipcode")
    }


def test_the_star_blocks_and_the_lag_does_not(shop: Shop) -> None:
    graph = shop.definitions.resolve_asset_graph()

    blocking = {key.name: graph.get(key).blocking for key in graph.asset_check_keys}
    assert blocking == {
        LAG_CHECK: False,
        READABLE_CHECK: False,
        QUARANTINE_CHECK: False,
        STAR_CHECK: True,
    }

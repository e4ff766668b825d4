"""Tests of retail_assets.defs.supply_chain.feed: plans, and what doctor and status are told."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from confluent_kafka import Producer

from retail_assets.commands.run import rebuild_table
from retail_assets.commands.status import shown_settings
from retail_assets.defs.supply_chain.contract import (
    DEAD_LETTERS,
    DOMAIN,
    FACT_ORDER,
    LANDED,
    MESSAGES,
    STREAMING,
    TOPIC,
)
from retail_assets.defs.supply_chain.feed import SupplyChain
from retail_assets.domain import Asked, Domain, Execution, PlanError
from retail_assets.errors import PermanentError, TransientError
from retail_assets.feeds.stream import step_config
from retail_assets.resources.broker import embedded as broker_embedded
from retail_assets.resources.broker.resource import BrokerResource
from retail_assets.resources.cloud_checks import Question
from retail_assets.resources.lake import open_lake
from retail_assets.resources.operational_db import OperationalDbResource
from retail_assets.resources.operational_db.embedded import EmbeddedPostgres
from retail_assets.resources.warehouse import open_warehouse
from retail_assets.settings import Settings, load_settings
from retail_assets_tests.defs.supply_chain.shop import order_line
from retail_assets_tests.feeds.stream.draining import drain

SUPPLY_CHAIN = SupplyChain()
PASSWORD = "hunter2"
# Nobody listens on port 1.
REMOTE = f"postgresql://clerk:{PASSWORD}@127.0.0.1:1/shop"


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    yield load_settings(home=tmp_path / "home")
    broker_embedded.let_go(tmp_path / "home")
    EmbeddedPostgres.leave(tmp_path / "home")


def no_instance() -> dg.DagsterInstance:
    raise AssertionError("a topic needs no instance")


def today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


def test_a_run_takes_what_is_in_the_topic_and_fixes_its_date(settings: Settings) -> None:
    before = today()

    plan = [*SUPPLY_CHAIN.plan(settings, Asked(), no_instance)]

    assert plan in (
        [Execution(DOMAIN, run_config=step_config(SUPPLY_CHAIN.micro_batch, ingest_date=day))]
        for day in (before, today())
    )
    assert not settings.home.exists()


def test_a_stream_is_a_run_that_produces_a_file(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    asked = Asked(stream=Path("orders.csv"))
    (execution,) = SUPPLY_CHAIN.plan(settings, asked, no_instance)

    assert (execution.job_name, execution.partitions, execution.tags) == (DOMAIN, None, {})
    config = execution.run_config["ops"]["supply_chain_micro_batch"]["config"]
    assert config["file"] == str(tmp_path / "orders.csv")  # wherever the run is
    assert set(config) == {"file", "ingest_date"}
    assert set(execution.run_config["ops"]) == {"supply_chain_micro_batch"}


def test_the_star_may_be_emptied_where_that_is_asked_for(settings: Settings) -> None:
    plans = [
        *SUPPLY_CHAIN.plan(settings, Asked(allow_emptying=True), no_instance),
        *SUPPLY_CHAIN.plan(
            settings, Asked(allow_emptying=True, stream=Path("orders.csv")), no_instance
        ),
    ]

    for execution in plans:
        ops = execution.run_config["ops"]
        assert set(ops) == {"supply_chain_micro_batch", "supply_chain_star"}
        assert ops["supply_chain_star"]["config"] == {"allow_emptying": True}


def test_partitions_are_refused_with_what_to_do(settings: Settings) -> None:
    with pytest.raises(PlanError) as error:
        SUPPLY_CHAIN.check(settings, Asked(("2026-01-01", "2026-01-02")))

    assert "--partitions is 2026-01-01...2026-01-02" in str(error.value)
    assert "supply_chain has none" in str(error.value) and "Leave it out" in str(error.value)


def test_what_is_offered_is_a_domain(settings: Settings) -> None:
    assert isinstance(SUPPLY_CHAIN, Domain)
    assert SUPPLY_CHAIN.datasets == LANDED
    assert set(SUPPLY_CHAIN.resources(settings)) == {"broker", "operational_db", "spark"}
    SUPPLY_CHAIN.prepare(settings)
    assert not settings.home.exists()


def test_before_the_first_message_there_is_nothing(settings: Settings) -> None:
    lake, warehouse = open_lake(settings), open_warehouse(settings)

    assert SUPPLY_CHAIN.count_rows(lake) == {}
    plan = SUPPLY_CHAIN.plan_marts(warehouse)
    assert plan.windows == {}
    assert plan.versions == {dataset: {} for dataset in LANDED}
    with pytest.raises(PermanentError, match="holds nothing processed"):
        SUPPLY_CHAIN.rebuild(settings, FACT_ORDER)
    with pytest.raises(PlanError, match="holds nothing processed"):
        rebuild_table(settings, MESSAGES.table)
    assert not (settings.home / "postgres").exists()


def test_a_rebuild_of_the_messages_fills_the_database_again(settings: Settings) -> None:
    lake, database = open_lake(settings), OperationalDbResource.of(settings)
    broker = BrokerResource.of(settings)
    producer = Producer({"bootstrap.servers": broker.address})
    for number in range(4):
        producer.produce(TOPIC, order_line(number) if number else b"torn")
    assert producer.flush(30) == 0
    drain(lake, broker, database, ingest_date="2026-01-02")
    with database.connect() as connection:
        connection.execute(f"drop schema {STREAMING} cascade".encode())

    assert rebuild_table(settings, MESSAGES.table) == 3

    with database.connect() as connection:
        for table, rows in ((MESSAGES, 3), (DEAD_LETTERS, 1)):
            found = connection.execute(f"select count(*) from {table.table}".encode()).fetchone()
            assert found == (rows,)


# ---- doctor and status


def questions(settings: Settings) -> dict[str, Question]:
    return {question.system: question for question in SUPPLY_CHAIN.questions(settings)}


def test_doctor_asks_broker_and_database(settings: Settings) -> None:
    asked = questions(settings)

    assert list(asked) == ["kafka", "postgres"]
    assert "RETAIL_KAFKA" in asked["kafka"].fix
    assert "RETAIL_POSTGRES" in asked["postgres"].fix


def test_doctor_starts_no_broker(settings: Settings) -> None:
    assert questions(settings)["kafka"].ask().startswith("embedded, not running")

    assert not (settings.home / "broker.json").exists()


def test_doctor_finds_the_broker_that_runs(settings: Settings) -> None:
    address = BrokerResource.of(settings).address
    producer = Producer({"bootstrap.servers": address})
    producer.produce(TOPIC, b"{}")
    assert producer.flush(30) == 0

    assert questions(settings)["kafka"].ask() == f"{address}, {TOPIC} has 4 partitions"


def test_doctor_finds_the_embedded_database(settings: Settings) -> None:
    assert "(embedded), PostgreSQL 1" in questions(settings)["postgres"].ask()


def test_doctor_tells_no_password(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, postgres=REMOTE, kafka="127.0.0.1:1")

    with pytest.raises(TransientError) as error:
        questions(settings)["postgres"].ask()

    assert "postgresql://clerk:***@127.0.0.1:1/shop" in str(error.value)
    cause: BaseException | None = error.value
    while cause is not None:
        assert PASSWORD not in str(cause)
        cause = cause.__cause__ or cause.__context__


def test_status_shows_no_password(tmp_path: Path) -> None:
    options = '{"sasl.password": "hunter2"}'
    settings = load_settings(
        home=tmp_path, postgres=REMOTE, kafka="broker-1:9092", kafka_options=options
    )

    shown = dict(shown_settings(settings))

    assert shown["RETAIL_POSTGRES"] == "postgresql://clerk:***@127.0.0.1:1/shop"
    assert shown["RETAIL_KAFKA"] == "broker-1:9092"
    assert not [value for value in shown.values() if PASSWORD in value]
    assert not [value for value in (repr(settings), str(settings)) if PASSWORD in value]


def test_resources_show_no_password(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, postgres=REMOTE)
    database = SUPPLY_CHAIN.resources(settings)["operational_db"]

    assert isinstance(database, OperationalDbResource)
    assert PASSWORD not in f"{database!r} {database.where} {database.model_dump()}"

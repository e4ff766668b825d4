"""SIGKILL to all of `retail-assets dev` while it runs a drop, a day's backfill and a micro-batch.

All are caught in their middle by what they wait for: the test holds the warehouse's lock, and a
table of PostgreSQL. A new `retail-assets dev` must then bring everything into the marts within
three minutes, by sensors alone. But what only the embedded broker held died with it: the producer
sends its file again, as the README says.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
from filelock import FileLock

from retail_assets.definitions import build_defs
from retail_assets.defs.coffee_chain import sample as coffee_sample
from retail_assets.defs.online_retail.feed import FEED
from retail_assets.defs.online_retail.sample import write_sample
from retail_assets.defs.supply_chain import sample as supply_sample
from retail_assets.defs.supply_chain.contract import MESSAGES
from retail_assets.defs.supply_chain.feed import FEED as SUPPLY_CHAIN
from retail_assets.feeds.landing import landed_key
from retail_assets.feeds.processed import processed_key
from retail_assets.feeds.snapshot.manifest import read_manifest
from retail_assets.feeds.stream.positions import LakePositions
from retail_assets.feeds.stream.sinks import KEY, ROWS_COLUMNS
from retail_assets.instance import prepare_instance
from retail_assets.resources.broker.resource import Incarnation, Watermark
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.operational_db import OperationalDbResource, ensure_table
from retail_assets.resources.operational_db.embedded import EmbeddedPostgres
from retail_assets.settings import load_settings
from retail_assets_tests.conftest import instance_of
from retail_assets_tests.integration.served import Dev, tag, wait_for

DAY = "2010-12-03"
RUN_FAILURE = dg.DagsterEventType.RUN_FAILURE
WITHIN_S = 180.0


@dataclass
class Killed:
    """A home, what its files hold, and what was underway there when all was killed, by name."""

    dev: Dev
    orders: Path
    sales: int
    lines: int
    items: int
    backfill: str = ""
    runs: dict[str, str] = field(default_factory=dict)
    restarted: float = 0.0

    @property
    def home(self) -> Path:
        return self.dev.home

    @property
    def left_s(self) -> float:
        """Of the three minutes."""
        return WITHIN_S - (time.monotonic() - self.restarted)

    def await_rows(self, what: str, sql: str, expected: tuple[Any, ...]) -> None:
        """Until the warehouse answers so, at most three minutes from the new start on."""
        found: list[tuple[Any, ...]] = []

        def arrived() -> bool:
            try:  # a run has the file to itself, and at first no table is there
                with duckdb.connect(str(self.home / "warehouse.duckdb"), read_only=True) as it:
                    found[:] = it.execute(sql).fetchall()
            except (duckdb.IOException, duckdb.CatalogException):
                return False
            return found == [expected]

        try:
            wait_for(what, arrived, self.left_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: expected {expected}, found {found}") from None


def prepare(home: Path) -> Killed:
    """Samples of every domain; online retail's source is fetched, and nothing is processed."""
    source, orders = home / "source.xlsx", home / "orders.csv"
    write_sample(source, days=5, lines_a_day=20)
    counts = coffee_sample.write_sample(home / "lake", sales=2000, customers=200, drops=1).total
    made = supply_sample.write_sample(orders, orders=200)
    settings = load_settings(home=home, online_retail_source=str(source))
    prepare_instance(settings)
    with instance_of(home) as instance:
        # All three wait for the warehouse at once, in their middle, and not in the queue.
        instance.event_log_storage.set_concurrency_slots("warehouse", 3)
        fetched = (
            build_defs(settings, domains=[FEED])
            .resolve_job_def("online_retail_source_to_lake")
            .execute_in_process(instance=instance, asset_selection=[FEED.raw_key])
        )
    assert fetched.success
    sales = counts.sales - counts.duplicates - counts.quarantined
    return Killed(Dev(home, online_retail_source=source), orders, sales, made.lines, made.items)


def in_lake_and_database(home: Path) -> tuple[int, int]:
    """Messages that landed as rows, in each."""
    with OperationalDbResource(url="embedded", home=str(home)).connect() as connection:
        found = connection.execute(f"select count(*) from {MESSAGES.table}".encode()).fetchone()
    return lake_of(home).table(MESSAGES).snapshot().rows, found[0] if found else 0


def lake_of(home: Path) -> LocalLake:
    return LocalLake(root=str(home / "lake"))


def in_the_middle(killed: Killed, names: set[str]) -> bool:
    """Whether those of ``names`` have written to the lake and wait with what comes after it."""
    at = {
        "drop": "malaysian_coffee_chain__customer",
        "day": "online_retail__online_retail_data",
        "batch": "supply_chain_micro_batch",
    }
    for run in killed.dev.runs():
        steps = {step["stepKey"]: step["status"] for step in run["stepStats"]}
        for name, step in at.items():
            if run["status"] == "STARTED" and steps.get(step) == "IN_PROGRESS":
                killed.runs[name] = run["id"]
                assert (name == "day") == (tag(run, "dagster/backfill") == killed.backfill)
    return killed.runs.keys() >= names


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killed]:
    """A home whose `dev` was killed in the middle of all three, and runs again."""
    home = tmp_path_factory.mktemp("killed")
    killed = prepare(home)
    dev = killed.dev
    try:
        with ExitStack() as held:
            held.enter_context(FileLock(home / "warehouse.duckdb.lock"))
            database = OperationalDbResource(url="embedded", home=str(home))
            connection = held.enter_context(database.connect())
            ensure_table(connection, MESSAGES.table, ROWS_COLUMNS, KEY)
            connection.execute(f"lock table {MESSAGES.table} in share mode".encode())
            dev.start()
            keys = (processed_key(FEED, FEED.dataset), landed_key(FEED.dataset))
            assets = [{"path": list(key.path)} for key in keys]
            killed.backfill = dev.backfill({"assetSelection": assets}, [DAY])
            dev.start_sensor("coffee_chain_drops_sensor")
            wait_for("a drop and a day", lambda: in_the_middle(killed, {"drop", "day"}), 180)
            # Later: what it asks for would wait for the warehouse too, in the place of these.
            dev.start_sensor("supply_chain_messages_sensor")
            streamed = dev.command("stream", str(killed.orders))
            assert streamed.returncode == 0, streamed.stderr
            wait_for("a batch", lambda: in_the_middle(killed, {"batch"}), 180)
            wait_for("its messages", lambda: in_lake_and_database(killed.home)[0] > 0, 180)
            assert in_lake_and_database(killed.home)[1] == 0
            # It would have asked for that day too, before the backfill's run began.
            dev.start_sensor("online_retail_source_sensor")
            dev.kill()
            # Where a run started the server, it is of that tree.
            server = (home / "postgres/data/postmaster.pid").read_text().split()[0]
            os.kill(int(server), signal.SIGKILL)
            connection.close()
        killed.restarted = time.monotonic()
        dev.start()
        yield killed
    finally:
        dev.stop()
        EmbeddedPostgres.leave(home)


def test_killed_runs_are_failed_and_say_so(killed: Killed) -> None:
    runs = {run["id"]: run["status"] for run in killed.dev.runs()}

    assert {name: runs[run_id] for name, run_id in killed.runs.items()} == dict.fromkeys(
        ("drop", "day", "batch"), "FAILURE"
    )
    with instance_of(killed.home) as instance:
        for run_id in killed.runs.values():
            failures = instance.get_records_for_run(run_id, of_type=RUN_FAILURE).records
            assert ["is gone: it was killed" in x.event_log_entry.message for x in failures] == [
                True
            ]
    # The UI's button is answered, and not by an HTTP error.
    assert killed.dev.terminate(killed.runs["drop"]) == "TerminateRunFailure"


def test_the_messages_of_the_killed_batch_are_in_both_sinks(killed: Killed) -> None:
    """What was in the lake goes on to the database, though no message comes after it."""

    def is_in_both() -> bool:
        landed, inserted = in_lake_and_database(killed.home)
        return landed == inserted > 0

    wait_for("the end of the batch", is_in_both, killed.left_s)


def test_messages_that_are_sent_again_reach_the_marts(killed: Killed) -> None:
    streamed = killed.dev.command("stream", str(killed.orders))
    assert streamed.returncode == 0, streamed.stderr

    def is_landed() -> bool:
        incarnation = json.loads((killed.home / "broker.json").read_text())["incarnation"]
        began = Incarnation(incarnation, datetime(2026, 1, 1))
        marks = dict.fromkeys(range(4), Watermark(0, 0))
        landed = LakePositions(SUPPLY_CHAIN, lake_of(killed.home), began, marks).positions
        return sum(landed.values()) == killed.lines

    wait_for("the last batch", is_landed, killed.left_s)
    killed.await_rows(
        "the marts of the supply chain",
        "select (select count(*) from supply_chain.fact_order),"
        " (select sum(order_count)::int from supply_chain_core.overall_performance)",
        (killed.items, 200),
    )


def test_the_drop_reaches_the_marts(killed: Killed) -> None:
    killed.await_rows(
        "the marts of the coffee chain",
        "select (select count(*) from coffee_chain_core.fact_sales),"
        " (select sum(quantity) from coffee_chain_core.fact_sales)"
        " = (select sum(quantity) from coffee_chain_core.state_revenue)",
        (killed.sales, True),
    )


def test_the_backfilled_day_reaches_the_marts_with_the_others(killed: Killed) -> None:
    manifest = read_manifest(LocalLake(root=str(killed.home / "lake")), FEED.name)
    assert manifest is not None
    rows = [ledger.written for ledger in manifest.days.values()]

    killed.await_rows(
        "the days of online retail",
        "select count(*), count(distinct invoice_date) from online_retail.online_retail_data",
        (sum(rows), len(rows)),
    )
    killed.await_rows(
        "the marts of online retail",
        "select (select count(*) from online_retail_core.fact_online_retail_data_unpartitioned)"
        " = count(*) from online_retail.online_retail_data where line_type in ('sale', 'gift')",
        (True,),
    )
    ended = wait_for("the backfill", lambda: killed.dev.backfill_status(killed.backfill), 60)
    assert ended == "COMPLETED_SUCCESS"  # for Dagster tried its run again

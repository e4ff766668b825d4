"""What the supply chain's benchmark computes, and that its baseline does the product's work.

Here: the baseline's sinks and star against the generator's counts and the contract, comparing,
stages and verdicts. Not here: the whole benchmark, which compares everything itself.
"""

import hashlib
import io
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest
from rich.console import Console

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import (
    DIM_LOCATION,
    FACT_ORDER,
    LANDED,
    MESSAGES,
    SOURCE_COLUMNS,
    STREAMING,
    TOPIC,
    TRANSFORMED,
    WITHHELD_HEADER,
)
from retail_assets.defs.supply_chain.sample import SampleCounts, write_sample
from retail_assets.resources.operational_db import OperationalDbResource
from retail_assets.resources.operational_db.embedded import EmbeddedPostgres
from retail_assets_tests.benchmarks import supply_chain as bench
from retail_assets_tests.benchmarks.bare_supply_chain import build
from retail_assets_tests.benchmarks.measure import Measurement
from retail_assets_tests.benchmarks.supply_content import describe_contents
from retail_assets_tests.benchmarks.supply_report import (
    figures,
    print_parts,
    print_report,
    told_medians,
)
from retail_assets_tests.benchmarks.supply_until_star import Parts
from retail_assets_tests.benchmarks.tables import differences

DATE = "2020-01-02"
Baseline = tuple[Path, SampleCounts, dict[str, Any], dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    folder = tmp_path_factory.mktemp("baseline")
    counts = write_sample(folder / "orders.csv", orders=300)
    bare = folder / "bare"
    bare.mkdir()
    told = build(folder / "orders.csv", bare, DATE, plain_copy=False)
    return bare, counts, told, describe_contents(bare, bare)


def ask(query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        return connection.execute(query).fetchall()


def rows_of(lake: Path, dataset: Dataset) -> str:
    files = f"{lake / TRANSFORMED / dataset.folder}/**/*.parquet"
    return f"read_parquet('{files}', hive_partitioning = false)"


def test_the_baseline_lands_every_message_in_both_sinks(baseline: Baseline) -> None:
    _, counts, told, found = baseline
    assert counts.replayed and counts.corrected  # or the latest of an item would show nothing
    assert found["lake"]["rows"] == found["database"]["rows"] == counts.lines == told["messages"]
    assert found["fact_order"]["rows"] == counts.items < counts.lines
    assert bench.against_sample(found, counts) == []


def test_every_row_of_the_baseline_is_of_the_message_that_it_names(baseline: Baseline) -> None:
    _, counts, _, found = baseline
    for table in ("dim_metadata", "fact_order"):
        assert found[table]["rows with their message"] == counts.items


@pytest.mark.parametrize("dataset", LANDED, ids=lambda dataset: dataset.name)
def test_the_baseline_has_the_columns_and_types_of_the_contract(
    baseline: Baseline, dataset: Dataset
) -> None:
    assert baseline[3][dataset.name]["types"] == dataset.duckdb_columns


def test_the_baseline_hashes_what_the_contract_says(baseline: Baseline) -> None:
    rows = ask(
        f"select * replace (latitude::varchar as latitude, longitude::varchar as longitude)"
        f" from {rows_of(baseline[0], DIM_LOCATION)}"
    )
    assert any(row[1] is None for row in rows) and any(row[1] for row in rows)
    for identity, *texts, latitude, longitude in rows:
        units = [str(int(degrees.replace(".", ""))) for degrees in (latitude, longitude)]
        text = "\x1f".join("\x1e" if t is None else t for t in [*texts, *units])
        assert identity == hashlib.sha256(text.encode()).hexdigest()[:32]


def test_the_baseline_keeps_the_latest_message_of_an_item(baseline: Baseline) -> None:
    raw = f"read_parquet('{baseline[0] / STREAMING / TOPIC}/**/*.parquet')"
    latest = ask(
        f"select order_item_id::bigint, max(message_order) from {raw} group by 1 order by 1"
    )
    fact = rows_of(baseline[0], FACT_ORDER)
    assert ask(f"select order_item_id, message_order from {fact} order by 1") == latest


def test_the_baselines_sinks_hold_every_field_but_the_withheld_one(baseline: Baseline) -> None:
    bare, counts, _, found = baseline
    assert found["lake"]["types"] == MESSAGES.duckdb_columns
    database = OperationalDbResource(url="embedded", home=str(bare))
    with database.connect() as connection:
        payloads = connection.execute(
            "select array(select jsonb_object_keys(payload)), count(*) from"
            f" {MESSAGES.table} group by 1"
        ).fetchall()
    EmbeddedPostgres.leave(bare)
    ((names, rows),) = payloads
    assert sorted(names) == sorted(column.header for column in SOURCE_COLUMNS)
    assert WITHHELD_HEADER not in names and rows == counts.lines


def test_a_run_of_another_incarnation_compares_equal_and_another_value_does_not(
    baseline: Baseline, tmp_path: Path
) -> None:
    bare, _, _, found = baseline
    again = tmp_path / "again"
    again.mkdir()
    build(bare.parent / "orders.csv", again, DATE, plain_copy=True)
    other = describe_contents(again, again)
    assert differences(other, found) == []
    (file,) = (again / TRANSFORMED / FACT_ORDER.folder).rglob("*.parquet")
    changed = tmp_path / "changed.parquet"
    ask(
        "copy (select * replace (case when order_item_id = 1 then order_item_quantity + 1"
        f" else order_item_quantity end as order_item_quantity) from '{file}') to '{changed}'"
    )
    shutil.move(changed, file)
    (line,) = differences(describe_contents(again, again), found)
    assert line.startswith("fact_order: ")


def test_steps_belong_to_stages() -> None:
    stages = bench.stages_of(
        {
            "supply_chain_micro_batch": 8.0,
            "supply_chain_star": 4.0,
            "supply_chain__dim_customer": 1.0,
            "supply_chain__fact_order": 2.0,
            "supply_chain_dbt_models": 16.0,
            "something": 0.5,
        }
    )
    assert stages == {"sinks": 8.0, "star": 4.0, "load": 3.0, "marts": 16.0, "other": 0.5}


def told(peak: float = 100.0, **seconds: float) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "cpu": seconds,
        "messages": 10,
        "produced_a_second": 5.0,
        "consumed_a_second": 4.0,
        "own_peak_mib": peak,
    }


def measured_results() -> bench.Results:
    results = bench.Results()
    walls = {bench.BARE: 20.0, bench.PRODUCT: 25.0, bench.TENFOLD[1]: 3.0, bench.TENFOLD[10]: 33.0}
    for name, wall in walls.items():
        results.measurements[name] = [Measurement(wall, 2 * wall, 100.0)]
        results.told[name] = [told(sinks=1.0, star=2.0)]
    for (stage, times), name in bench.FLAT.items():
        results.told[name] = [told(200.0 + (50.0 * times if stage == "star" else 0.0))]
    for times in (1, 10):
        results.samples[times] = SampleCounts(5 * times, times, 5 * times, times, 0, 0)
        results.file_mib[times] = 1.0
    results.servers = bench.Servers("one:1")
    results.differences = {bench.BARE: [], bench.PRODUCT: ["fact_order: other rows"]}
    return results


def test_figures_hold_each_limit_against_the_right_run() -> None:
    found = figures(measured_results())
    assert found["supply"]["wall_ratio"] == found["supply"]["cpu_ratio"] == 1.25
    assert found["supply_tenfold"]["wall_ratio"] == 11.0
    assert found["memory"]["sinks"]["ratio"] == 1.0
    assert found["memory"]["star"]["ratio"] == 350 / 250
    assert figures(bench.Results()) == {}


def test_the_report_names_brokers_verdicts_and_differences() -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    print_report(console, measured_results(), 1)
    print_parts(console, {"batch: parse": [2.0, 1.0, 0.5, 0.75]})
    text = console.export_text()
    assert "5 messages" in text and "broker embedded: the brokers of librdkafka" in text
    assert "50 messages" in text and "Kafka at one:1" in text
    assert "wall of the product against bare: 1.25x (limit 1.5x: kept)" in text
    assert "memory of star: 250 MiB, 350 MiB of three times the messages: 1.40x" in text
    assert "wall of ten times the messages: 11.00x (limit 11x: kept)" in text
    assert "supply_product equals bare's contents: NO" in text
    assert "fact_order: other rows" in text and "batch: parse" in text


def test_medians_are_of_each_figure_by_itself() -> None:
    found = told_medians([told(1.0, sinks=9.0), told(5.0, sinks=2.0), told(3.0, sinks=4.0)])
    assert found["own_peak_mib"] == 3.0 and found["seconds"] == {"sinks": 4.0}


def test_a_generator_is_timed_only_while_it_works() -> None:
    parts = Parts()
    taken = list(parts.iterated("numbers", lambda most: iter(range(most)))(3))
    assert taken == [0, 1, 2]
    calls, wall, cpu, _ = parts.seconds["numbers"]
    assert calls == 4 and 0 <= cpu <= wall + 0.01


def test_no_server_is_used_that_has_what_would_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "RETAIL_KAFKA" in bench.find_servers({}, tmp_path).reason
    (tmp_path / "servers.env").write_text("KAFKA_SERVERS=one:1\nPOSTGRES_URL=postgresql://two\n")
    asked: list[tuple[str, str]] = []

    def look(kafka: str, postgres: str) -> str:
        asked.append((kafka, postgres))
        return "the topic is there" if kafka == "taken:1" else ""

    monkeypatch.setattr(bench, "_why_not", look)
    assert bench.find_servers({}, tmp_path) == bench.Servers("one:1", "postgresql://two")
    named = {"RETAIL_KAFKA": "taken:1", "RETAIL_POSTGRES": "postgresql://mine"}
    refused = bench.find_servers(named, tmp_path)
    assert not refused.kafka and refused.reason == "the topic is there"
    assert asked == [("one:1", "postgresql://two"), ("taken:1", "postgresql://mine")]


def test_a_kafka_that_does_not_answer_is_a_reason_to_skip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_CONNECT_S", 1)
    found = bench.find_servers({"RETAIL_KAFKA": "127.0.0.1:1"}, tmp_path)
    assert not found.kafka and found.reason.startswith("127.0.0.1:1 does not answer: ")

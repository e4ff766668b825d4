"""What the coffee chain's benchmark computes, and that its baseline does the product's work.

Here: the baseline's lake stage against the generator's counts, stages, shares and verdicts. Not
here: the whole benchmark, which compares every table itself.
"""

import hashlib
from pathlib import Path

import duckdb
import pytest

from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain.contract import CUSTOMER, OUTLET, PRODUCT, SALES
from retail_assets.defs.coffee_chain.sample import DropCounts, SampleCounts, write_sample
from retail_assets_tests.benchmarks import coffee_chain as bench
from retail_assets_tests.benchmarks.bare_coffee import PROCESSED, QUARANTINE, write_lake
from retail_assets_tests.benchmarks.coffee_chain import describe_quarantine, stages_of
from retail_assets_tests.benchmarks.coffee_report import figures, judged, stage_medians
from retail_assets_tests.benchmarks.coffee_tick import write_drops
from retail_assets_tests.benchmarks.inputs import coffee_customers, drop_nearest_to_average
from retail_assets_tests.benchmarks.measure import Measurement


def counts_of(*sales: int) -> SampleCounts:
    drops = tuple(DropCounts(date=f"2020-01-{n:02}", sales=x) for n, x in enumerate(sales, 1))
    return SampleCounts(0, 0, 0, 0, 0, 0, drops)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SampleCounts]:
    folder = tmp_path_factory.mktemp("baseline")
    counts = write_sample(folder / "lake", sales=30_000, customers=1_500, drops=2)
    with duckdb.connect() as connection:
        write_lake(connection, folder / "lake", folder)
    return folder, counts


def ask(query: str) -> list[tuple[object, ...]]:
    with duckdb.connect() as connection:
        return connection.execute(query).fetchall()


def rows_of(folder: Path, table: str) -> list[tuple[object, ...]]:
    glob = f"{folder / PROCESSED / table}/**/*.parquet"
    return ask(f"from read_parquet('{glob}', hive_partitioning = false)")


def test_the_baseline_types_quarantines_and_removes_copies(
    baseline: tuple[Path, SampleCounts],
) -> None:
    folder, counts = baseline
    total = counts.total
    assert total.duplicates and total.quarantined  # or this would show nothing
    sales = rows_of(folder, SALES.name)
    assert len(sales) == total.kept == len({row[0] for row in sales})
    assert describe_quarantine(folder / QUARANTINE / SALES.name)["rows"] == total.quarantined
    assert len(rows_of(folder, CUSTOMER.name)) == total.customer_rows
    assert len(rows_of(folder, OUTLET.name)) == counts.outlets
    assert len(rows_of(folder, PRODUCT.name)) == counts.products


@pytest.mark.parametrize("dataset", [SALES, CUSTOMER, OUTLET, PRODUCT], ids=lambda x: x.name)
def test_the_baseline_has_the_columns_and_types_of_the_contract(
    baseline: tuple[Path, SampleCounts], dataset: Dataset
) -> None:
    folder, _ = baseline
    glob = f"{folder / PROCESSED / dataset.name}/**/*.parquet"
    described = ask(f"describe from read_parquet('{glob}', hive_partitioning = false)")
    assert {name: kind for name, kind, *_ in described} == dataset.duckdb_columns


def test_the_baseline_hashes_what_the_contract_says(
    baseline: tuple[Path, SampleCounts],
) -> None:
    folder, _ = baseline
    names = SALES.column_names
    for row in rows_of(folder, SALES.name)[::997]:
        line = dict(zip(names, row, strict=True))
        delivered = [
            str(line["drop_date"]),
            line["invoice_no"],
            str(line["date_time"]),
            line["customer_id"],
            line["outlet_id"],
            line["product_id"],
            str(line["quantity"]),
        ]
        text = "\x1f".join("\x1e" if value is None else value for value in delivered)
        assert line["sale_line_id"] == hashlib.sha256(text.encode()).hexdigest()[:32]


def test_quarantine_is_described_without_regard_to_order(tmp_path: Path) -> None:
    for number, texts in enumerate((["a", "b"], ["b", "a"], ["a", "c"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        rows = " union all ".join(f"select '{text}' as text" for text in texts)
        ask(f"copy ({rows}) to '{folder}/part-0.parquet'")
    first, second, other = (describe_quarantine(tmp_path / str(n)) for n in range(3))
    assert first == second != other
    assert describe_quarantine(tmp_path / "absent")["rows"] == 0


def test_steps_belong_to_stages() -> None:
    stages = stages_of(
        {
            "coffee_chain__processed_sales": 8.0,
            "coffee_chain__processed_customer": 2.0,
            "coffee_chain__processed_outlet": 0.5,
            "malaysian_coffee_chain__sales": 4.0,
            "malaysian_coffee_chain__product": 0.25,
            "coffee_chain_dbt_models": 7.0,
            "coffee_chain__raw_drops_no_drop_was_deleted": 0.125,
        }
    )
    assert stages == {
        bench.LAKE: 10.0,
        "small files": 0.5,
        bench.LOAD: 4.25,
        bench.MARTS: 7.0,
        "other": 0.125,
    }


def test_medians_are_of_each_stage_by_itself() -> None:
    runs = [{"lake": 1.0, "load": 9.0}, {"lake": 5.0, "load": 2.0}, {"lake": 3.0, "load": 4.0}]
    assert stage_medians(runs) == {"lake": 3.0, "load": 4.0}


def test_the_further_drop_is_the_one_nearest_to_an_equal_share() -> None:
    assert drop_nearest_to_average(counts_of(10, 19, 21, 40)) == "2020-01-03"


def test_customers_are_as_many_as_in_the_real_files() -> None:
    assert coffee_customers(10_700_000) == 500_000
    assert coffee_customers(500) == 50


def test_drops_of_the_tick_are_dated_day_by_day(tmp_path: Path) -> None:
    keys = write_drops(tmp_path, 40)
    assert keys[0] == "1700-01-01" and keys[-1] == "1700-02-09"
    files = sorted(file.name for file in tmp_path.rglob("*.csv"))
    assert files == [f"sales_data_{key}.csv" for key in keys]


def test_figures_hold_each_limit_against_the_right_contestant() -> None:
    drops = {bench.LATE: "2020-01-01", bench.NEWEST: "2020-01-02"}
    results = bench.Results(sample=counts_of(10, 30), further_drops=drops)
    walls = {bench.BARE: 20.0, bench.PRODUCT: 25.0, bench.LATE: 5.0, bench.NEWEST: 7.5}
    for name, wall in walls.items():
        results.measurements[name] = [Measurement(wall, 2 * wall, 100.0)]
    results.measurements[bench.JVM] = [Measurement(60.0, 90.0, 3000.0)]
    for name, lake in ((bench.BARE, 6.0), (bench.PRODUCT, 8.0), (bench.JVM, 32.0)):
        results.stages[name] = [{bench.LAKE: lake}]
    results.stages |= {name: [{bench.LAKE: 1.0}] for name in bench.FURTHER}
    results.measurements[bench.FEW] = [Measurement(4.0, 6.0, 90.0)]
    results.stages[bench.FEW] = [{bench.LAKE: 0.5}]
    found = figures(results)
    assert found["coffee"]["wall_ratio"] == 1.25
    assert found["coffee"]["lake_ratio"] == 0.25
    assert found[bench.LATE]["wall_ratio"] == 0.2
    assert found[bench.LATE]["share_of_lines"] == 0.25
    assert found[bench.LATE]["few_lines_ratio"] == 0.16
    assert found[bench.LATE]["lines_ratio"] == 1 / 21
    assert found[bench.LATE]["least_ratio"] == 0.37
    newest = found[bench.NEWEST]
    assert (newest["wall_ratio"], newest["share_of_lines"]) == (0.3, 0.75)
    assert "coffee_tick" not in found


def test_a_value_at_its_limit_keeps_it() -> None:
    assert judged(0.2, 0.2) == "0.20x (limit 0.2x: kept)"
    assert judged(0.21, 0.2) == "0.21x (limit 0.2x: MISSED)"

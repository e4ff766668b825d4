"""What the coffee chain's benchmark says: its tables, what each figure means, its limits.

Here: figures from measurements, verdicts, printing. Not here: measuring, the machine (report.py).
"""

from dataclasses import asdict
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from retail_assets_tests.benchmarks import coffee_chain as bench
from retail_assets_tests.benchmarks.measure import Measurement, median_of

# Of bare DuckDB's wall time, of the JVM way's lake stage, of the whole run.
WALL_LIMIT, LAKE_LIMIT, DROP_LIMIT = 1.5, 0.5, 0.2
MEMORY_LIMIT_MIB = 3 * 1024
TICK_LIMIT_S, COMMIT_LIMIT_S, CURSOR_LIMIT_BYTES = 2.0, 2.0, 1000

EXPLANATIONS = (
    "bare: one process, DuckDB alone: raw CSVs -> typed, bad rows quarantined, copies out, hashed"
    " -> Parquet by drop and year -> tables -> dbt's compiled SQL of every model; no tests, no"
    " records, no check of a file before it is read.",
    "run: `retail-assets run coffee_chain`, from the shell and back, the embedded engine, in a home"
    " that has Dagster's instance and dbt's parsed project. cold: once, where no home is.",
    "the JVM way: PySpark on local[*] reads the CSVs with a schema, adds the year, writes Parquet"
    " by it; then DuckDB loads that and makes the marts. It removes no copies and hashes nothing.",
    "lake: raw files to processed Parquet. Of the run, the steps of both tables of drops, Spark's"
    " start included; of the JVM way, from before pyspark's import to the JVM's end.",
    "load: the warehouse's tables. marts: dbt's models; of the run, with all their tests.",
    "a further drop: `run --partitions DATE` where all other drops are already in the marts. late:"
    " the one nearest to an equal share, whose customers bought in later drops too; newest: the"
    " one of the last date, the largest. The tables must be those of the whole run.",
    "few lines: the same command of the last of two drops with 5,000 lines in all: the start of"
    " Dagster, dbt and Spark, their records and every test. Lines: run and drop less that. By"
    " their share: that start, and the drop's part of what all lines take.",
    "wall: from starting the process to its end. CPU: of it and its children. peak: largest sum of"
    " RSS over the process tree, sampled every 20 ms. The raw files are in the page cache.",
)

TICK_EXPLANATION = (
    "tick: Dagster evaluates the sensor on the drops in process, nothing being new, after one tick"
    " to warm up; all drops are known, landed and in the marts. commit: one of these drops'"
    " partitions of the lake's table is replaced."
)

_KINDS = {bench.LATE: "a late", bench.NEWEST: "the newest"}
_STAGES = (bench.LAKE, bench.LOAD, bench.MARTS)


def figures(results: bench.Results) -> dict[str, Any]:
    """Every derived figure, by scenario; what was not measured is absent."""
    medians = {name: median_of(runs) for name, runs in results.measurements.items()}
    stages = {name: stage_medians(runs) for name, runs in results.stages.items()}
    found: dict[str, Any] = {}
    if bench.PRODUCT in medians and bench.BARE in medians:
        run, bare = medians[bench.PRODUCT], medians[bench.BARE]
        found["coffee"] = {
            name: asdict(medians[name]) | {"stages": stages.get(name, {})}
            for name in (bench.BARE, bench.PRODUCT, bench.COLD, bench.JVM)
            if name in medians
        } | {
            "wall_ratio": run.wall_s / bare.wall_s,
            "cpu_ratio": run.cpu_s / bare.cpu_s,
            "peak_mib": run.peak_mib,
        }
        if bench.JVM in stages:
            found["coffee"]["lake_ratio"] = (
                stages[bench.PRODUCT][bench.LAKE] / stages[bench.JVM][bench.LAKE]
            )
    for name in bench.FURTHER:
        if name in medians and bench.PRODUCT in medians:
            found[name] = _further_drop(results, name, medians, stages)
    if results.tick:
        found["coffee_tick"] = results.tick | {
            "tick_s": median(results.tick["ticks_s"]),
            "tick_cpu_s": median(results.tick["ticks_cpu_s"]),
            "commit_s": median(results.tick["commits_s"]),
            "peak_mib": medians[bench.TICK].peak_mib,
        }
    return found


def _further_drop(
    results: bench.Results,
    name: str,
    medians: dict[str, Measurement],
    stages: dict[str, dict[str, float]],
) -> dict[str, Any]:
    drop, whole = medians[name].wall_s, medians[bench.PRODUCT].wall_s
    found = asdict(medians[name]) | {
        "stages": stages[name],
        "drop": results.further_drops[name],
        "share_of_lines": share_of_drop(results, name),
        "wall_ratio": drop / whole,
    }
    if bench.FEW in medians:
        few = medians[bench.FEW].wall_s
        found |= {
            "few_lines": asdict(medians[bench.FEW]) | {"stages": stages[bench.FEW]},
            "few_lines_ratio": few / whole,
            "lines_ratio": (drop - few) / (whole - few),
            # With this start, and each line as dear as it is in the whole.
            "least_ratio": (few + found["share_of_lines"] * (whole - few)) / whole,
        }
    return found


def stage_medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median seconds of each stage by itself."""
    return {stage: median(run[stage] for run in runs) for stage in runs[0]}


def share_of_drop(results: bench.Results, name: str) -> float:
    """The part of all lines of sales that the further drop of a contestant has."""
    sample = results.sample
    assert sample is not None
    (drop,) = (drop for drop in sample.drops if drop.date == results.further_drops[name])
    return drop.sales / sample.total.sales


def judged(value: float, limit: float, unit: str = "x") -> str:
    """A value beside its limit."""
    verdict = "kept" if value <= limit else "MISSED"
    shown = f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
    return f"{shown}{unit} (limit {limit:g}{unit}: {verdict})"


def print_report(console: Console, results: bench.Results, repeat: int) -> None:
    """One table of the contestants, the verdicts, the explanations."""
    found = figures(results)
    console.print()
    explanations: list[str] = []
    if "coffee" in found or bench.LATE in found:
        _print_contestants(console, results, found, repeat)
        explanations += EXPLANATIONS
    if "coffee_tick" in found:
        _print_tick(console, found["coffee_tick"])
        explanations.append(TICK_EXPLANATION)
    console.print()
    for line in explanations:
        console.print(f"- {line}", highlight=False, markup=False)
    if results.code_changed:
        console.print("warning: the product's files changed meanwhile; measure again")


def _print_contestants(
    console: Console, results: bench.Results, found: dict[str, Any], repeat: int
) -> None:
    sample = results.sample
    assert sample is not None
    of = "1 run" if repeat == 1 else f"medians of {repeat} runs"
    total = sample.total
    table = Table(
        title=f"coffee chain: {total.sales:,} sales lines, {total.customers:,} customers,"
        f" {len(sample.drops)} drops, {of}",
        title_justify="left",
    )
    for heading in ("contestant", "wall s", "min-max", "CPU s", "peak MiB", *_STAGES):
        table.add_column(heading, justify="left" if heading == "contestant" else "right")
    for name, key in (
        ("bare DuckDB", bench.BARE),
        ("run", bench.PRODUCT),
        ("run, cold", bench.COLD),
        ("the JVM way", bench.JVM),
        *((f"{kind} drop, {results.further_drops.get(key)}", key) for key, kind in _KINDS.items()),
        ("a drop of few lines", bench.FEW),
    ):
        if key in results.measurements:
            table.add_row(name, *_cells(results.measurements[key], results.stages.get(key, [])))
    console.print(table)
    say = _sayer(console)
    if coffee := found.get("coffee"):
        say(
            f"wall of run against bare: {judged(coffee['wall_ratio'], WALL_LIMIT)};"
            f" CPU {coffee['cpu_ratio']:.2f}x"
        )
        if "lake_ratio" in coffee:
            say(f"lake stage against the JVM way's: {judged(coffee['lake_ratio'], LAKE_LIMIT)}")
        elif not results.has_java:
            say("lake stage against the JVM way's: not measured, for there is no Java here")
        say(f"peak of run: {judged(coffee['peak_mib'], MEMORY_LIMIT_MIB, ' MiB')}")
    for name, kind in _KINDS.items():
        if (drop := found.get(name)) is None:
            continue
        share = f"{drop['share_of_lines']:.1%} of the lines"
        say(f"{kind} drop, {share}, against run: {judged(drop['wall_ratio'], DROP_LIMIT)}")
        if "lines_ratio" in drop:
            say(
                f"  of few lines: {drop['few_lines_ratio']:.2f}x; what the lines take:"
                f" {drop['lines_ratio']:.2f}x of the whole's; by their share it would be"
                f" {drop['least_ratio']:.2f}x"
            )
    for name, lines in results.differences.items():
        against = "the sample's counts" if name == bench.BARE else "bare's tables"
        say(
            f"{name} equals {against}: {'NO' if lines else 'yes'}"
            " (rows, sums, types and a hash of every value; quarantine; Parquet folders)"
        )
        for line in lines:
            say(f"  {line}")


def _print_tick(console: Console, tick: dict[str, Any]) -> None:
    say = _sayer(console)
    say(
        f"tick over {tick['files']:,} drops from 1700-01-01 to {tick['last_day']}:"
        f" {judged(tick['tick_s'], TICK_LIMIT_S, ' s')},"
        f" {min(tick['ticks_s']):.2f}-{max(tick['ticks_s']):.2f} s, {tick['tick_cpu_s']:.2f} s of"
        " CPU; the process's first"
        f" {tick['first_tick_s']:.2f} s; with one new drop {tick['new_drop_s']:.2f} s"
    )
    say(f"cursor: {judged(tick['cursor_bytes'], CURSOR_LIMIT_BYTES, ' bytes')}")
    say(
        f"commit of one drop among {tick['files']:,}:"
        f" {judged(tick['commit_s'], COMMIT_LIMIT_S, ' s')},"
        f" {min(tick['commits_s']):.2f}-{max(tick['commits_s']):.2f} s"
    )
    say(f"the table's log: {tick['log_bytes']:,} bytes; peak {tick['peak_mib']:.0f} MiB")


def _sayer(console: Console) -> Any:
    return lambda text: console.print(text, highlight=False, markup=False)


def _cells(runs: list[Measurement], stages: list[dict[str, float]]) -> list[str]:
    middle = median_of(runs)
    walls = [run.wall_s for run in runs]
    spread = f"{min(walls):.2f}-{max(walls):.2f}" if len(walls) > 1 else ""
    seconds = stage_medians(stages) if stages else {}
    return [
        f"{middle.wall_s:.2f}",
        spread,
        f"{middle.cpu_s:.2f}",
        f"{middle.peak_mib:.0f}",
        *(f"{seconds[stage]:.2f}" if stage in seconds else "" for stage in _STAGES),
    ]

"""What the benchmark says: one table a scenario, what each figure means, the machine.

Here: figures from measurements, limits, printing. Not here: measuring.
"""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from retail_assets_tests.benchmarks import online_retail as bench
from retail_assets_tests.benchmarks.measure import MIB, Measurement, median_of
from retail_assets_tests.benchmarks.profiling import Line

AIMS_AND_LIMITS = {"real": (2.0, 4.0), "tenfold": (1.2, 2.0)}
XLSX_LIMIT_S = 12.0
DEFINITIONS_LIMIT_S = 3.0
# A day among the most of them, against one among the fewest.
DAY_LIMIT = 1.5
_PACKAGES = ("duckdb", "dagster", "dagster-dbt", "dbt-core", "pyspark", "pysail")

EXPLANATIONS = (
    "wall: from starting the process to its end. CPU: of it and its children. peak: largest sum of"
    " RSS over the process tree, sampled every 20 ms; pages shared by two processes count twice.",
    "prepared beforehand, not measured: bytecode, dbt's parsed project (RETAIL_HOME/dbt/parsed),"
    " Dagster's instance (SQLite files); the home is otherwise new for each run.",
    "bare: one process, DuckDB alone: CSV -> a Parquet partition a day -> landed table -> dbt's"
    " compiled SQL of every model, DECIMAL throughout; no tests, no records, no dbt, no Dagster.",
    "run: `retail-assets run online_retail`, from the shell and back.",
    "(a) start-up: the same command with empty bodies over no partitions: imports, definitions,"
    " instance, run, 13 assets and their checks, dbt started to build nothing, the table printed.",
    "(b) recording: the same with empty bodies over the run's partitions and its metadata, less"
    " (a).",
    "(c) the rest: run - (a) - (b): source to last mart and test. What the run imports in bodies"
    " (DuckDB, Arrow) is in (c), as it is in bare.",
    "one after the other: the run imports Dagster and dbt while it reads the source, so that (c)"
    " hides work behind (a). These rows are of a run that imports first: (c) with nothing hidden.",
    "all figures are medians, of each figure by itself; memory is not subtracted: the whole run's"
    " peak, Dagster and dbt included, is held against bare's.",
)


def figures(results: bench.Results) -> dict[str, Any]:
    """Every derived figure, by scenario; what was not measured is absent."""
    medians = {name: median_of(runs) for name, runs in results.measurements.items()}
    found: dict[str, Any] = {}
    if bench.START_UP in medians and bench.RECORDING in medians:
        start_up = medians[bench.START_UP]
        recording = _less(medians[bench.RECORDING], start_up)
        for scenario, run, serial, bare in (
            ("real", bench.PRODUCT, bench.SERIAL, bench.BARE),
            ("tenfold", bench.PRODUCT_TENFOLD, bench.SERIAL_TENFOLD, bench.BARE_TENFOLD),
            ("xlsx", bench.PRODUCT_XLSX, "", ""),
        ):
            if run not in medians:
                continue
            rest = _less(_less(medians[run], start_up), recording)
            found[scenario] = {
                "run": asdict(medians[run]),
                "start_up": asdict(start_up),
                "recording": _times(recording),
                "rest": _times(rest),
                "without_recording_s": medians[run].wall_s - recording.wall_s,
            }
            if bare:
                hidden = _less(_less(medians[serial], start_up), recording)
                found[scenario] |= {
                    "bare": asdict(medians[bare]),
                    "serial": asdict(medians[serial]),
                    "rest_serial": _times(hidden),
                    "serial_wall_ratio": hidden.wall_s / medians[bare].wall_s,
                    "serial_cpu_ratio": hidden.cpu_s / medians[bare].cpu_s,
                    "wall_ratio": rest.wall_s / medians[bare].wall_s,
                    "cpu_ratio": rest.cpu_s / medians[bare].cpu_s,
                    "memory_ratio": medians[run].peak_mib / medians[bare].peak_mib,
                }
    if results.days_told:
        found["days"] = [
            {key: median(row[key] for row in rows) for key in rows[0]}
            for rows in zip(*([asdict(x) for x in told] for told in results.days_told), strict=True)
        ]
    if bench.DEFINITIONS in medians:
        found["definitions"] = {
            "cpu_s": medians[bench.DEFINITIONS].cpu_s,
            "offending_modules": results.offending_modules,
        }
    return found


def _less(whole: Measurement, part: Measurement) -> Measurement:
    return Measurement(
        whole.wall_s - part.wall_s, whole.cpu_s - part.cpu_s, whole.peak_mib - part.peak_mib
    )


def _times(measured: Measurement) -> dict[str, float]:
    return {"wall_s": measured.wall_s, "cpu_s": measured.cpu_s}


def machine_facts() -> dict[str, str]:
    """What the figures depend on."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{psutil.virtual_memory().total / MIB / 1024:.1f} GiB",
        "load average at the end": load,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def print_report(console: Console, results: bench.Results, source: str, repeat: int) -> None:
    """One table a scenario, the explanations."""
    found = figures(results)
    for scenario, title in (
        ("real", f"online retail, {source}"),
        ("tenfold", f"ten times its rows, {source}"),
        ("xlsx", "the same rows as .xlsx"),
    ):
        if scenario in found:
            _print_scenario(console, results, scenario, title, found[scenario], repeat)
    if "definitions" in found:
        _print_definitions(console, found["definitions"])
    if "days" in found:
        _print_days(console, found["days"])
    console.print()
    for line in EXPLANATIONS:
        console.print(f"- {line}", highlight=False, markup=False)
    if results.code_changed:
        console.print("warning: the product's files changed meanwhile; measure again")


def print_machine(console: Console) -> None:
    """What the figures depend on, a line each."""
    console.print()
    for name, value in machine_facts().items():
        console.print(f"{name}: {value}", highlight=False)


def _print_scenario(
    console: Console,
    results: bench.Results,
    scenario: str,
    title: str,
    found: dict[str, Any],
    repeat: int,
) -> None:
    names = {
        "real": (bench.BARE, bench.PRODUCT, bench.SERIAL),
        "tenfold": (bench.BARE_TENFOLD, bench.PRODUCT_TENFOLD, bench.SERIAL_TENFOLD),
        "xlsx": ("", bench.PRODUCT_XLSX, ""),
    }[scenario]
    of = "1 run" if repeat == 1 else f"medians of {repeat} runs"
    table = Table(
        title=f"{title}: {results.rows[scenario]:,} rows landed, {of}", title_justify="left"
    )
    for heading in ("contestant", "wall s", "min-max", "CPU s", "peak MiB", "against bare"):
        table.add_column(heading, justify="left" if heading == "contestant" else "right")

    def add(name: str, row: dict[str, float], key: str = "", against: str = "") -> None:
        walls = [run.wall_s for run in results.measurements.get(key, [])]
        spread = f"{min(walls):.2f}-{max(walls):.2f}" if len(walls) > 1 else ""
        peak = f"{row['peak_mib']:.0f}" if "peak_mib" in row else ""
        table.add_row(name, f"{row['wall_s']:.2f}", spread, f"{row['cpu_s']:.2f}", peak, against)

    if "bare" in found:
        add("bare DuckDB", found["bare"], names[0], "1")
    memory = rest = serial = ""
    if scenario in AIMS_AND_LIMITS:
        aim, limit = AIMS_AND_LIMITS[scenario]
        memory = f"memory {_judged(found['memory_ratio'], aim, limit)}"
        rest = f"wall {_judged(found['wall_ratio'], aim, limit)}, CPU {found['cpu_ratio']:.2f}x"
        wall = _judged(found["serial_wall_ratio"], aim, limit)
        serial = f"wall {wall}, CPU {found['serial_cpu_ratio']:.2f}x"
    add("run = (a) + (b) + (c)", found["run"], names[1], memory)
    add("(a) start-up", found["start_up"], bench.START_UP)
    add("(b) recording", found["recording"])
    add("(c) the rest", found["rest"], against=rest)
    if "serial" in found:
        add("run, one after the other", found["serial"], names[2])
        add("(c) of that run", found["rest_serial"], against=serial)
    if scenario == "xlsx":
        seconds = found["without_recording_s"]
        verdict = "kept" if seconds < XLSX_LIMIT_S else "MISSED"
        table.add_row(
            "(a) + (c)", f"{seconds:.2f}", "", "", "", f"limit {XLSX_LIMIT_S:.0f} s: {verdict}"
        )
    console.print()
    console.print(table)
    equal = "yes" if results.tables_equal.get(scenario) else "NO"
    console.print(
        f"tables equal: {equal} (rows, sums, types and a hash of every value, bare against run);"
        f" {results.partitions[scenario]} Parquet partitions of {results.days} days",
        highlight=False,
    )
    for line in results.differences.get(scenario, []):
        console.print(f"  {line}", highlight=False, markup=False)


def _judged(ratio: float, aim: float, limit: float) -> str:
    verdict = "aim kept" if ratio <= aim else "limit kept" if ratio <= limit else "LIMIT MISSED"
    return f"{ratio:.2f}x (aim {aim:g}x, limit {limit:g}x: {verdict})"


def _print_definitions(console: Console, found: dict[str, Any]) -> None:
    verdict = "kept" if found["cpu_s"] <= DEFINITIONS_LIMIT_S else "MISSED"
    modules = found["offending_modules"]
    console.print()
    console.print(
        f"definitions: import, defs(), repository: {found['cpu_s']:.2f} s of CPU in a fresh"
        f" interpreter (limit {DEFINITIONS_LIMIT_S:.0f} s: {verdict}); forbidden modules loaded:"
        f" {', '.join(modules[:20]) or 'none'}",
        highlight=False,
    )


def _print_days(console: Console, found: Sequence[dict[str, float]]) -> None:
    console.print()
    for row in found:
        console.print(
            f"{row['days']:,.0f} days in one run: {row['first_ms']:.2f} ms a day,"
            f" {row['again_ms']:.2f} ms where they replace others; one day among them:"
            f" {row['one_day_ms']:.0f} ms",
            highlight=False,
        )
    ratio = found[-1]["first_ms"] / found[0]["first_ms"]
    verdict = "kept" if ratio <= DAY_LIMIT else "MISSED"
    console.print(
        f"a day among the most against one among the fewest: {ratio:.2f}x (limit {DAY_LIMIT:g}x:"
        f" {verdict})",
        highlight=False,
    )


def print_profile(
    console: Console, own: Sequence[tuple[str, float]], lines: Sequence[Line]
) -> None:
    """Own seconds by package, then the top functions by cumulative seconds."""
    groups = Table(title="profile: own seconds by package", title_justify="left")
    groups.add_column("package")
    groups.add_column("own s", justify="right")
    for name, seconds in own[:20]:
        groups.add_row(name, f"{seconds:.2f}")
    functions = Table(
        title="profile: top functions by cumulative time, without those that only pass it on",
        title_justify="left",
    )
    functions.add_column("package")
    functions.add_column("function", overflow="fold")
    for heading in ("calls", "cumulative s", "own s"):
        functions.add_column(heading, justify="right")
    previous = ""
    for line in lines:
        functions.add_row(
            line.group if line.group != previous else "",
            line.name,
            f"{line.calls:,}",
            f"{line.cumulative_s:.2f}",
            f"{line.own_s:.2f}",
        )
        previous = line.group
    console.print()
    console.print(groups)
    console.print(functions)
    console.print(
        "the main thread under cProfile, which slows Python's own code down; dbt's process shows"
        " as reading its pipe",
        highlight=False,
    )

"""The benchmark's command line: ``python -m retail_assets_tests.benchmarks``, or ``make bench``.

Here: options, scratch, exit code. Not here: what is measured (online_retail.py, coffee_chain.py,
supply_chain.py) or printed (report.py, coffee_report.py, supply_report.py).
"""

import json
import tempfile
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from retail_assets_tests.benchmarks import (
    coffee_chain,
    coffee_report,
    online_retail,
    report,
    supply_chain,
    supply_report,
)
from retail_assets_tests.benchmarks.inputs import NoInputError, Source, find_source
from retail_assets_tests.benchmarks.measure import CommandFailed, run
from retail_assets_tests.benchmarks.profiling import profile_command, read_profile
from retail_assets_tests.benchmarks.tables import TablesDiffer

_ALL = (*online_retail.SCENARIOS, *coffee_chain.SCENARIOS, *supply_chain.SCENARIOS)
Scenario = Enum("Scenario", {name: name for name in _ALL})  # type: ignore[misc]
AnyBench = online_retail.Bench | coffee_chain.Bench | supply_chain.Bench


def main(
    repeat: Annotated[int, typer.Option(min=1, help="runs of each contestant")] = 5,
    source: Annotated[
        Path | None,
        typer.Option(help="CSV or CSV.gz; default: RETAIL_ONLINE_RETAIL_SOURCE, else a sample"),
    ] = None,
    coffee_repeat: Annotated[
        int, typer.Option(min=1, help="runs of each contestant of the coffee chain")
    ] = 3,
    coffee_sales: Annotated[
        int, typer.Option(min=5000, help="sales lines of the coffee chain")
    ] = coffee_chain.SALES_LINES,
    coffee_files: Annotated[
        int, typer.Option(min=1, help="drops in the lake of the sensor's tick")
    ] = coffee_chain.TICK_FILES,
    supply_repeat: Annotated[
        int, typer.Option(min=1, help="runs of each contestant of the supply chain")
    ] = 3,
    supply_orders: Annotated[
        int, typer.Option(min=100, help="orders of the supply chain")
    ] = supply_chain.ORDERS,
    quick: Annotated[bool, typer.Option("--quick", help="one run each, no tenfold")] = False,
    scenario: Annotated[
        list[Scenario] | None, typer.Option(help="which to run; may be given several times")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="one more run, under cProfile")
    ] = False,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="write every figure to this file")
    ] = None,
) -> None:
    """Measure `retail-assets run` against bare scripts and the JVM's Spark, domain by domain."""
    chosen = [item.value for item in scenario] if scenario else list(_ALL)
    if quick:
        repeat = coffee_repeat = supply_repeat = 1
        chosen = [name for name in chosen if "tenfold" not in name or scenario]
    # Wide enough for the tables where the output is no terminal.
    console = Console(width=None if Console().is_terminal else 150)
    progress = Console(stderr=True, highlight=False)
    retail = [name for name in chosen if name in online_retail.SCENARIOS]
    coffee = [name for name in chosen if name in coffee_chain.SCENARIOS]
    supply = [name for name in chosen if name in supply_chain.SCENARIOS]
    told: dict[str, Any] = {}
    failures = []
    with tempfile.TemporaryDirectory(prefix="retail-assets-bench-") as folder:
        scratch = Path(folder)
        try:
            if retail:
                found = find_source(source, scratch)
                console.print(f"source: {found.label}", highlight=False)
                if found.is_sample:
                    console.print("the limits are meant for the published data, not for a sample")
                bench = online_retail.Bench(scratch, found, retail, progress.print)
                failures.append(_measure(bench, repeat))
                report.print_report(console, bench.results, found.label, repeat)
                if profile:
                    _profile(bench, "online_retail", scratch, console)
                told |= _retail_figures(bench, found, repeat)
            if coffee:
                if coffee_sales != coffee_chain.SALES_LINES:
                    console.print("the coffee chain's limits are meant for its whole size")
                coffee_bench = coffee_chain.Bench(
                    scratch, coffee, progress.print, sales=coffee_sales, tick_files=coffee_files
                )
                failures.append(_measure(coffee_bench, coffee_repeat))
                coffee_report.print_report(console, coffee_bench.results, coffee_repeat)
                if profile and {"coffee", "coffee_drop"} & set(coffee):
                    _profile(coffee_bench, "coffee_chain", scratch, console)
                told["coffee_chain"] = _coffee_figures(coffee_bench, coffee_repeat)
            if supply:
                if supply_orders != supply_chain.ORDERS:
                    console.print("the supply chain's limits are meant for its whole size")
                supply_bench = supply_chain.Bench(
                    scratch, supply, progress.print, orders=supply_orders
                )
                failures.append(_measure(supply_bench, supply_repeat))
                supply_report.print_report(console, supply_bench.results, supply_repeat)
                if profile and "supply" in supply:
                    supply_report.print_parts(console, supply_bench.profile())
                told["supply_chain"] = _supply_figures(supply_bench, supply_repeat)
            report.print_machine(console)
        except (NoInputError, CommandFailed) as error:
            raise SystemExit(f"error: {error}") from None
        if json_path is not None:
            told["machine"] = report.machine_facts()
            json_path.write_text(json.dumps(told, indent=1) + "\n")
    if any(failures):
        raise SystemExit(f"error: the contestants' tables differ: {chr(10).join(failures)}")


def _measure(bench: AnyBench, repeat: int) -> str:
    bench.prepare()
    try:
        bench.measure(repeat)
    except TablesDiffer as error:
        return str(error)
    return ""


def _profile(bench: AnyBench, domain: str, scratch: Path, console: Console) -> None:
    target = scratch / "run.profile"
    command = profile_command(target, domain)
    run(command, bench.fresh_environment(), scratch / "profile.log")
    report.print_profile(console, *read_profile(target))


def _retail_figures(bench: online_retail.Bench, source: Source, repeat: int) -> dict[str, Any]:
    results = bench.results
    return {
        "source": source.label,
        "is_sample": source.is_sample,
        "repeat": repeat,
        "figures": report.figures(results),
        "tables_equal": results.tables_equal,
        "rows": results.rows,
        "partitions": results.partitions,
        "measurements": _measurements(bench),
    }


def _coffee_figures(bench: coffee_chain.Bench, repeat: int) -> dict[str, Any]:
    results = bench.results
    return {
        "repeat": repeat,
        "figures": coffee_report.figures(results),
        "differences": results.differences,
        "sample": asdict(results.sample) if results.sample else None,
        "stages": results.stages,
        "measurements": _measurements(bench),
    }


def _supply_figures(bench: supply_chain.Bench, repeat: int) -> dict[str, Any]:
    results = bench.results
    return {
        "repeat": repeat,
        "broker": supply_report.broker_name(),
        "figures": supply_report.figures(results),
        "differences": results.differences,
        "samples": {times: asdict(sample) for times, sample in results.samples.items()},
        "told": results.told,
        "steps": results.steps,
        "skipped": results.servers.reason,
        "measurements": _measurements(bench),
    }


def _measurements(bench: AnyBench) -> dict[str, list[dict[str, float]]]:
    return {
        name: [asdict(measured) for measured in runs]
        for name, runs in bench.results.measurements.items()
    }


if __name__ == "__main__":
    typer.run(main)

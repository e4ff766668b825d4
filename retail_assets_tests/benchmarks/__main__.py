"""The benchmark's command line: ``python -m retail_assets_tests.benchmarks``, or ``make bench``.

Here: options, scratch, exit code. Not here: what is measured (online_retail.py) or printed
(report.py).
"""

import json
import tempfile
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from retail_assets_tests.benchmarks import report
from retail_assets_tests.benchmarks.inputs import NoInputError, Source, find_source
from retail_assets_tests.benchmarks.measure import CommandFailed, run
from retail_assets_tests.benchmarks.online_retail import SCENARIOS, Bench, TablesDiffer
from retail_assets_tests.benchmarks.profiling import profile_command, read_profile

Scenario = Enum("Scenario", {name: name for name in SCENARIOS})  # type: ignore[misc]


def main(
    repeat: Annotated[int, typer.Option(min=1, help="runs of each contestant")] = 5,
    source: Annotated[
        Path | None,
        typer.Option(help="CSV or CSV.gz; default: RETAIL_ONLINE_RETAIL_SOURCE, else a sample"),
    ] = None,
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
    """Measure `retail-assets run online_retail` against bare DuckDB, and what it is made of."""
    chosen = [item.value for item in scenario] if scenario else list(SCENARIOS)
    if quick:
        repeat = 1
        chosen = [name for name in chosen if name != "tenfold" or scenario]
    # Wide enough for the tables where the output is no terminal.
    console = Console(width=None if Console().is_terminal else 150)
    progress = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="retail-assets-bench-") as folder:
        scratch = Path(folder)
        try:
            found = find_source(source, scratch)
            console.print(f"source: {found.label}", highlight=False)
            if found.is_sample:
                console.print("the limits are meant for the published data, not for a sample")
            bench = Bench(scratch, found, chosen, progress.print)
            bench.prepare()
            failure = _measure(bench, repeat)
            report.print_report(console, bench.results, found.label, repeat)
            if profile:
                _profile(bench, scratch, console)
        except (NoInputError, CommandFailed) as error:
            raise SystemExit(f"error: {error}") from None
        if json_path is not None:
            _write_json(json_path, bench, found, repeat)
    if failure:
        raise SystemExit(f"error: the contestants' tables differ: {failure}")


def _measure(bench: Bench, repeat: int) -> str:
    try:
        bench.measure(repeat)
    except TablesDiffer as error:
        return str(error)
    return ""


def _profile(bench: Bench, scratch: Path, console: Console) -> None:
    target = scratch / "run.profile"
    run(profile_command(target), bench.fresh_environment(), scratch / "profile.log")
    report.print_profile(console, *read_profile(target))


def _write_json(path: Path, bench: Bench, source: Source, repeat: int) -> None:
    results = bench.results
    path.write_text(
        json.dumps(
            {
                "source": source.label,
                "is_sample": source.is_sample,
                "repeat": repeat,
                "machine": report.machine_facts(),
                "figures": report.figures(results),
                "tables_equal": results.tables_equal,
                "rows": results.rows,
                "partitions": results.partitions,
                "measurements": {
                    name: [asdict(measured) for measured in runs]
                    for name, runs in results.measurements.items()
                },
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    typer.run(main)

"""What the supply chain's benchmark says: its tables, what each figure means, its limits.

Here: figures from measurements, verdicts, printing. Not here: measuring, the machine (report.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from retail_assets_tests.benchmarks import supply_chain as bench
from retail_assets_tests.benchmarks.coffee_report import judged, stage_medians
from retail_assets_tests.benchmarks.measure import Measurement, median_of
from retail_assets_tests.benchmarks.supply_until_star import SINKS, STAR

# Of bare's wall time; of the peak of a third of the messages; of the seconds of a tenth of them.
WALL_LIMIT, FLAT_LIMIT, TENFOLD_LIMIT = 1.5, 1.25, 11.0

EXPLANATIONS = (
    "bare: one process: a thread reads the CSV and produces JSON; beside it 20,000 messages at a"
    " time go to Parquet files (pyarrow) and to PostgreSQL (COPY to a temporary table, insert on"
    " conflict do nothing); then the star, by DuckDB. No record, no recovery, no check.",
    "product: the same work as one recorded Dagster run; from the shell and back, as bare.",
    "whole: `retail-assets run supply_chain --stream FILE`, which also loads the warehouse, builds"
    " and tests the marts. All begin with an empty database whose data folder is there.",
    "produced: a second, from the first row on until the broker has all. consumed: until all is in"
    " both sinks. They go on side by side, and the embedded broker has the producer wait.",
    "wall: from starting the process to its end. CPU: of it and its children; server: what of it is"
    " PostgreSQL's, a child. peak: largest sum of RSS over the process tree, sampled every 20 ms,"
    " PostgreSQL's shared buffers counted once a process; own: the largest RSS of the process.",
)
FLAT_EXPLANATION = (
    "memory: the stages in processes of their own, once each, of as many messages and of three"
    " times as many; by the process's own peak."
)
TENFOLD_EXPLANATION = (
    "tenfold: the product from file to star, once each; its topic and schema are deleted after it."
)


def figures(results: bench.Results) -> dict[str, Any]:
    """Every derived figure, by scenario; what was not measured is absent."""
    medians = {name: median_of(runs) for name, runs in results.measurements.items()}
    found: dict[str, Any] = {}
    if bench.PRODUCT in medians and bench.BARE in medians:
        product, bare = medians[bench.PRODUCT], medians[bench.BARE]
        found["supply"] = {
            name: asdict(medians[name]) | told_medians(results.told.get(name, []))
            for name in (bench.BARE, bench.PRODUCT, bench.WHOLE, bench.COLD)
            if name in medians
        } | {
            "wall_ratio": product.wall_s / bare.wall_s,
            "cpu_ratio": product.cpu_s / bare.cpu_s,
            "whole_steps": stage_medians(results.steps) if results.steps else {},
        }
    flat = {
        stage: [results.told[bench.FLAT[stage, times]][0]["own_peak_mib"] for times in (1, 3)]
        for stage in (SINKS, STAR)
        if all(bench.FLAT[stage, times] in results.told for times in (1, 3))
    }
    if flat:
        found["memory"] = {
            stage: {"own_peak_mib": peaks, "ratio": peaks[1] / peaks[0]}
            for stage, peaks in flat.items()
        }
    if all(name in medians for name in bench.TENFOLD.values()):
        once, tenfold = (medians[name] for name in bench.TENFOLD.values())
        found["supply_tenfold"] = {
            name: asdict(medians[name]) | told_medians(results.told[name])
            for name in bench.TENFOLD.values()
        } | {
            "kafka": results.servers.kafka,
            "wall_ratio": tenfold.wall_s / once.wall_s,
            "cpu_ratio": tenfold.cpu_s / once.cpu_s,
        }
    return found


def told_medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The medians of what runs told: numbers, and seconds by stage."""
    if not runs:
        return {}
    found: dict[str, Any] = {
        name: stage_medians([run[name] for run in runs]) for name in ("seconds", "cpu")
    }
    for name in ("messages", "produced_a_second", "consumed_a_second", "own_peak_mib"):
        found[name] = median(run[name] for run in runs)
    return found


def broker_name(servers: bench.Servers | None = None) -> str:
    """The broker, as the figures name it."""
    import confluent_kafka

    library = f"librdkafka {confluent_kafka.libversion()[0]}"
    if servers is None:
        return f"embedded: the brokers of {library} itself, in the contestant's process"
    return f"Kafka at {servers.kafka}, by {library}"


def print_report(console: Console, results: bench.Results, repeat: int) -> None:
    """One table a scenario, the verdicts, the explanations."""
    found = figures(results)
    explanations: list[str] = []
    console.print()
    if "supply" in found:
        _print_supply(console, results, found, repeat)
        explanations += [*EXPLANATIONS, FLAT_EXPLANATION]
    if "supply_tenfold" in found:
        _print_tenfold(console, results, found["supply_tenfold"])
        explanations.append(TENFOLD_EXPLANATION)
    elif results.servers.reason:
        _say(console, f"supply_tenfold: skipped: {results.servers.reason}")
    for name, lines in results.differences.items():
        is_counted = name == bench.BARE or name in bench.TENFOLD.values()
        against = "the sample's counts" if is_counted else "bare's contents"
        by = "" if is_counted else " (rows, types, sums, a hash of every value: sinks and star)"
        _say(console, f"{name} equals {against}: {'NO' if lines else 'yes'}{by}")
        for line in lines:
            _say(console, f"  {line}")
    console.print()
    for line in explanations:
        _say(console, f"- {line}")
    if results.code_changed:
        console.print("warning: the product's files changed meanwhile; measure again")


def print_parts(console: Console, parts: Mapping[str, Sequence[float]]) -> None:
    """Where a run of the product leaves its seconds, by part, the largest first."""
    table = Table(title="profile: the product, file to star, by part", title_justify="left")
    for heading in ("part", "calls", "wall s", "CPU s of its thread", "CPU s of the process"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for name, (calls, *seconds) in sorted(parts.items(), key=lambda item: -item[1][2]):
        table.add_row(name, f"{calls:,.0f}", *(f"{value:.2f}" for value in seconds))
    console.print(table)
    _say(console, "the process's CPU is of all threads meanwhile; what a part calls is in it")


def _print_supply(
    console: Console, results: bench.Results, found: dict[str, Any], repeat: int
) -> None:
    of = "1 run" if repeat == 1 else f"medians of {repeat} runs"
    table = _table(f"{_size(results, 1)}, {of}; broker {broker_name()}")
    for name, key in (
        ("bare", bench.BARE),
        ("product", bench.PRODUCT),
        ("whole", bench.WHOLE),
        ("whole, cold, 548 lines", bench.COLD),
    ):
        if key in results.measurements:
            table.add_row(name, *_cells(results, key))
    console.print(table)
    supply = found["supply"]
    _say(
        console,
        f"wall of the product against bare: {judged(supply['wall_ratio'], WALL_LIMIT)};"
        f" CPU {supply['cpu_ratio']:.2f}x",
    )
    for name, key in (("bare", bench.BARE), ("product", bench.PRODUCT)):
        seconds = ", ".join(f"{stage} {s:.2f}" for stage, s in supply[key]["cpu"].items())
        _say(console, f"CPU s of {name}'s own process: {seconds}")
    if supply["whole_steps"]:
        seconds = ", ".join(f"{stage} {s:.2f}" for stage, s in supply["whole_steps"].items())
        _say(console, f"wall s of whole's steps: {seconds}")
    for stage, memory in found.get("memory", {}).items():
        small, large = memory["own_peak_mib"]
        _say(
            console,
            f"memory of {stage}: {small:.0f} MiB, {large:.0f} MiB of three times the messages:"
            f" {judged(memory['ratio'], FLAT_LIMIT)}",
        )


def _print_tenfold(console: Console, results: bench.Results, found: dict[str, Any]) -> None:
    console.print()
    table = _table(f"{_size(results, 10)}, and a tenth; broker {broker_name(results.servers)}")
    for times, key in bench.TENFOLD.items():
        table.add_row(f"product, {times}x", *_cells(results, key))
    console.print(table)
    ratio = judged(found["wall_ratio"], TENFOLD_LIMIT)
    _say(console, f"wall of ten times the messages: {ratio}; CPU {found['cpu_ratio']:.2f}x")
    where = "embedded" if results.servers.postgres == "embedded" else "a server of its own"
    _say(console, f"PostgreSQL: {where}")


def _size(results: bench.Results, times: int) -> str:
    sample = results.samples[times]
    return f"supply chain: {sample.lines:,} messages, a CSV of {results.file_mib[times]:.0f} MiB"


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in (
        *("contestant", "wall s", "min-max", "CPU s", "server", "peak MiB", "own MiB"),
        *("produced/s", "consumed/s", "sinks s", "star s"),
    ):
        table.add_column(heading, justify="left" if heading == "contestant" else "right")
    return table


def _cells(results: bench.Results, name: str) -> list[str]:
    runs: list[Measurement] = results.measurements[name]
    middle, told = median_of(runs), told_medians(results.told.get(name, []))
    walls = [run.wall_s for run in runs]
    spread = f"{min(walls):.2f}-{max(walls):.2f}" if len(walls) > 1 else ""
    cells = [f"{middle.wall_s:.2f}", spread, f"{middle.cpu_s:.2f}"]
    if not told:
        return [*cells, "", f"{middle.peak_mib:.0f}"]
    server = middle.cpu_s - sum(told["cpu"].values())
    return [
        *cells,
        f"{server:.2f}",
        f"{middle.peak_mib:.0f}",
        f"{told['own_peak_mib']:.0f}",
        f"{told['produced_a_second']:,.0f}",
        f"{told['consumed_a_second']:,.0f}",
        *(f"{told['seconds'].get(stage, 0.0):.2f}" for stage in (SINKS, STAR)),
    ]


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)

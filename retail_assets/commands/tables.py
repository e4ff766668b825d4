"""What the commands print: Rich tables.

Here: layout. Not here: finding out what to print (the command's own module).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from retail_assets.settings import Settings

if TYPE_CHECKING:
    from retail_assets.commands.doctor import Finding
    from retail_assets.commands.run import RunOutcome

_PIPE_WIDTH = 170


def _console() -> Console:
    # A pipe has no width of its own: rows must not be folded there.
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_WIDTH)


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def print_outcome(outcome: "RunOutcome", seconds: float) -> None:
    """Each asset of a run: rows, partitions, seconds, where it landed."""
    table = Table("asset", title=f"run {outcome.run_id}", title_justify="left")
    for name in ("rows", "partitions", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("where", overflow="fold")
    for asset in outcome.assets:
        table.add_row(
            asset.key,
            _count(asset.rows),
            _count(asset.partitions),
            f"{asset.seconds:.2f}",
            asset.where,
        )
    console = _console()
    console.print(table)
    days = f"{outcome.partitions[0]}...{outcome.partitions[1]}, " if outcome.partitions else ""
    console.print(f"{days}{outcome.checks_passed} checks passed, {seconds:.1f} s", highlight=False)


def print_status(settings: Settings) -> None:
    """The settings, then every table."""
    from retail_assets.commands.status import shown_settings, table_statuses

    console = _console()
    table = Table("variable", "value", title="settings", title_justify="left")
    for name, value in shown_settings(settings):
        table.add_row(name, value)
    console.print(table)
    table = Table("asset", title="tables", title_justify="left")
    table.add_column("rows", justify="right")
    table.add_column("partitions", justify="right")
    table.add_column("last materialized")
    for status in table_statuses(settings):
        at = f"{status.materialized:%Y-%m-%d %H:%M:%S} UTC" if status.materialized else "never"
        table.add_row(status.key, _count(status.rows), _count(status.partitions), at)
    console.print(table)


def print_findings(findings: Iterable["Finding"]) -> bool:
    """One line a system, as each is known; returns whether all work."""
    console = _console()
    healthy = True
    for finding in findings:
        mark = "[green]ok  [/]" if finding.ok else "[red]FAIL[/]"
        console.print(f"{mark} {finding.system}: ", end="", highlight=False)
        console.print(finding.found, markup=False, highlight=False, end="")
        console.print(f". Fix: {finding.fix}" if finding.fix else "", markup=False, highlight=False)
        healthy = healthy and finding.ok
    return healthy

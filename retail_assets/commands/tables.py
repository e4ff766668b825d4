"""What the commands print: Rich tables.

Here: layout. Not here: finding out what to print (runner.py, doctor.py).
"""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from retail_assets.runner import RunOutcome


def _console() -> Console:
    # A pipe has no width of its own: rows must not be folded there.
    console = Console()
    return console if console.is_terminal else Console(width=160)


def print_outcome(outcome: "RunOutcome", seconds: float) -> None:
    """Each asset of a run: rows, partitions, seconds, where it landed."""
    table = Table(title=f"run {outcome.run_id}", title_justify="left")
    table.add_column("asset", overflow="fold")
    for name in ("rows", "partitions", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("where", overflow="fold")
    for asset in outcome.assets:
        table.add_row(
            asset.key,
            "" if asset.rows is None else f"{asset.rows:,}",
            "" if asset.partitions is None else f"{asset.partitions:,}",
            f"{asset.seconds:.2f}",
            asset.where,
        )
    console = _console()
    console.print(table)
    days = f"{outcome.partitions[0]}...{outcome.partitions[1]}, " if outcome.partitions else ""
    console.print(f"{days}{outcome.checks_passed} checks passed, {seconds:.1f} s", highlight=False)

"""The commands that online retail brings. Not here: what they do (sample.py)."""

from pathlib import Path
from typing import Annotated

import typer

from retail_assets.settings import load_settings


def sample(
    days: Annotated[int, typer.Option(min=1, help="days of trade")] = 120,
    lines: Annotated[int, typer.Option(min=1, help="invoice lines a day, about")] = 150,
    seed: Annotated[int, typer.Option(help="the same seed gives the same bytes")] = 7,
    to: Annotated[Path | None, typer.Option(help="file; default: where the demo reads it")] = None,
) -> None:
    """Write a workbook of invoices."""
    from retail_assets.defs.online_retail.sample import write_sample

    path = to or load_settings().sample_path
    rows = write_sample(path, days=days, lines_a_day=lines, seed=seed)
    typer.echo(f"{path}: {rows:,} rows, {path.stat().st_size:,} bytes")


COMMANDS = {"sample": sample}

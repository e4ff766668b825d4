"""The commands that the coffee chain brings. Not here: what they do (sample.py)."""

from pathlib import Path
from typing import Annotated

import typer

from retail_assets.settings import Settings, load_settings


def sample(
    sales: Annotated[int, typer.Option(min=1, help="sales lines")] = 50_000,
    customers: Annotated[int, typer.Option(min=1, help="customers")] = 5_000,
    drops: Annotated[int, typer.Option(min=1, help="dated deliveries")] = 3,
    seed: Annotated[int, typer.Option(help="the same seed gives the same bytes")] = 7,
    to: Annotated[Path | None, typer.Option(help="folder; default: the lake")] = None,
) -> None:
    """Write outlets, products, and drops of customers and sales, under the names of the lake."""
    from retail_assets.defs.coffee_chain.sample import write_sample
    from retail_assets.progress import progress_bar

    folder = to or _lake_folder(load_settings())
    try:
        with progress_bar("sales lines", sales) as advance:
            counts = write_sample(
                folder, sales=sales, customers=customers, drops=drops, seed=seed, progress=advance
            )
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    made = counts.total
    typer.echo(
        f"{folder}: {made.sales:,} sales lines ({made.duplicates:,} twice, {made.quarantined:,}"
        f" that cannot be read), {made.customer_rows:,} customer rows, {drops:,} drops"
    )


def _lake_folder(settings: Settings) -> Path:
    if settings.lake.startswith("gs://"):
        raise SystemExit(
            f"error: RETAIL_LAKE is {settings.lake}, and a sample is written to a folder. Give"
            " --to FOLDER, and copy what is in it to the lake."
        )
    return Path(settings.lake)


COMMANDS = {"sample": sample}

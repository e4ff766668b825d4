"""The command retail-assets.

Here: reading arguments, calling the package, printing. Not here: work of any kind.
"""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from retail_assets.defs.registry import UnknownDomainError, domains, load_domain
from retail_assets.errors import PermanentError, TransientError
from retail_assets.process import QuickEnd, spare_garbage_collection
from retail_assets.settings import Settings, SettingsError, load_settings

app = typer.Typer(
    name="retail-assets",
    help="Retail data from raw files to tested marts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_DOMAINS = ", ".join(domain.name for domain in domains())
DomainName = Annotated[str, typer.Argument(metavar="DOMAIN", help=f"one of: {_DOMAINS}")]
Seed = Annotated[int, typer.Option(help="the same seed gives the same bytes")]


class _Samples(TyperGroup):
    """The sample of each domain is a command of its own, for their options differ."""

    # Typer has a click of its own in some versions: its types have no name that lasts.
    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is None:
            names = ", ".join(self.commands)
            raise SystemExit(f"error: {cmd_name!r} is no domain; one of: {names}")
        return command


samples = typer.Typer(
    cls=_Samples, help="Write a generated source.", subcommand_metavar="DOMAIN [ARGS]..."
)
app.add_typer(samples, name="sample")


def _settings() -> Settings:
    try:
        return load_settings()
    except SettingsError as error:
        raise SystemExit(f"error: {error}") from None


@samples.command("online_retail")
def sample_online_retail(
    days: Annotated[int, typer.Option(min=1, help="days of trade")] = 120,
    lines: Annotated[int, typer.Option(min=1, help="invoice lines a day, about")] = 150,
    seed: Seed = 7,
    to: Annotated[Path | None, typer.Option(help="file; default: where the demo reads it")] = None,
) -> None:
    """Write a workbook of invoices."""
    from retail_assets.defs.online_retail.sample import write_sample

    path = to or _settings().sample_path
    rows = write_sample(path, days=days, lines_a_day=lines, seed=seed)
    typer.echo(f"{path}: {rows:,} rows, {path.stat().st_size:,} bytes")


@samples.command("coffee_chain")
def sample_coffee_chain(
    sales: Annotated[int, typer.Option(min=1, help="sales lines")] = 50_000,
    customers: Annotated[int, typer.Option(min=1, help="customers")] = 5_000,
    drops: Annotated[int, typer.Option(min=1, help="dated deliveries")] = 3,
    seed: Seed = 7,
    to: Annotated[Path | None, typer.Option(help="folder; default: the lake")] = None,
) -> None:
    """Write outlets, products, and drops of customers and sales, under the names of the lake."""
    from retail_assets.commands.tables import progress_bar
    from retail_assets.defs.coffee_chain.sample import write_sample

    folder = to or _lake_folder(_settings())
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


@samples.command("supply_chain")
def sample_supply_chain(
    orders: Annotated[int, typer.Option(min=1, help="orders, of 1 to 5 items")] = 2_000,
    seed: Seed = 7,
    to: Annotated[Path | None, typer.Option(help="file; default: where the demo reads it")] = None,
) -> None:
    """Write a file of order lines, to be streamed."""
    from retail_assets.commands.tables import progress_bar
    from retail_assets.defs.supply_chain.sample import write_sample

    path = to or _settings().sample_orders_path
    try:
        with progress_bar("orders", orders) as advance:
            made = write_sample(path, orders=orders, seed=seed, progress=advance)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    typer.echo(
        f"{path}: {made.lines:,} lines of {made.items:,} order items ({made.replayed:,} replayed,"
        f" {made.corrected:,} corrected), {made.customers:,} customers"
    )


def _lake_folder(settings: Settings) -> Path:
    if settings.lake.startswith("gs://"):
        raise SystemExit(
            f"error: RETAIL_LAKE is {settings.lake}, and a sample is written to a folder. Give"
            " --to FOLDER, and copy what is in it to the lake."
        )
    return Path(settings.lake)


@app.command()
def run(
    domain: DomainName,
    partitions: Annotated[
        str | None, typer.Option(help="one day, or a range A...B; default: all of the source")
    ] = None,
    allow_emptying: Annotated[
        bool, typer.Option(help="let a source empty more than a tenth of the filled days")
    ] = False,
    stream: Annotated[
        Path | None,
        typer.Option(help="a file of order lines to produce to the topic meanwhile, or: sample"),
    ] = None,
) -> None:
    """Materialize every asset of a domain in one recorded run in this process."""
    from retail_assets.commands.run import RunFailed, failures, run_domain

    settings = _settings()
    try:
        chosen = load_domain(domain)
    except UnknownDomainError as error:
        raise SystemExit(f"error: {error}") from None
    started = time.perf_counter()
    try:
        outcomes = run_domain(
            settings,
            chosen,
            partitions,
            allow_emptying=allow_emptying,
            stream=settings.orders_path(stream) if stream else None,
        )
    except RunFailed as failure:
        raise SystemExit(f"error: {failure}") from None
    from retail_assets.commands.tables import one_line, print_outcomes

    print_outcomes(outcomes, time.perf_counter() - started)
    if failed := failures(outcomes):
        raise SystemExit("\n".join(one_line(f"error: {failure}") for failure in failed))


@app.command()
def stream(
    file: Annotated[Path, typer.Argument(help="a CSV file of order lines, or: sample")],
) -> None:
    """Produce a file's lines to the supply chain's topic; Ctrl-C stops, the same goes on."""
    from retail_assets.commands.stream import stream_with_progress

    settings = _settings()
    streamed = stream_with_progress(settings, settings.orders_path(file))
    typer.echo(streamed.summary)
    if not streamed.finished:
        raise SystemExit(130)


@app.command()
def status() -> None:
    """Print the settings, and each asset's rows, partitions and last materialization."""
    from retail_assets.commands.tables import print_status

    print_status(_settings())


@app.command()
def doctor() -> None:
    """Check each outside system that the settings name; exit 1 if one fails."""
    from retail_assets.commands.doctor import examine
    from retail_assets.commands.tables import print_findings

    if not print_findings(examine(_settings())):
        raise SystemExit(1)


@app.command()
def quarantine(
    table: Annotated[
        str | None,
        typer.Argument(
            metavar="[TABLE]",
            help="such as malaysian_coffee_chain.sales, or a domain; default: all",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document")] = False,
    personal: Annotated[bool, typer.Option("--personal", help="show personal data too")] = False,
) -> None:
    """List what could not be read, by reason, with a few rows of each."""
    from retail_assets.commands.quarantine import UnknownTableError, read_quarantine, to_json

    try:
        found = read_quarantine(_settings(), table, personal=personal)
    except UnknownTableError as error:
        raise SystemExit(f"error: {error}") from None
    if as_json:
        typer.echo(to_json(found))
        return
    from retail_assets.commands.tables import print_quarantine

    print_quarantine(found)


@app.command()
def rebuild(
    table: Annotated[str, typer.Argument(help="for example online_retail.online_retail_data")],
) -> None:
    """Re-create a table of the warehouse, or PostgreSQL's messages, from the lake."""
    from retail_assets.commands.run import RunFailed, rebuild_table

    try:
        rows = rebuild_table(_settings(), table)
    except RunFailed as failure:
        raise SystemExit(f"error: {failure}") from None
    typer.echo(f"{table}: {rows:,} rows")


TableName = Annotated[
    str, typer.Argument(metavar="TABLE", help="such as malaysian_coffee_chain.sales")
]


@app.command()
def history(
    table: TableName,
    limit: Annotated[int, typer.Option(min=1, help="versions to show")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document")] = False,
) -> None:
    """List a lake table's versions, the latest first: run, rows, source, and if it can be had."""
    from retail_assets.commands.memory import read_history, to_json

    found = read_history(_settings(), table, limit)
    if as_json:
        typer.echo(to_json(table, found))
        return
    from retail_assets.commands.tables import print_history

    print_history(table, found)


@app.command()
def restore(
    table: TableName,
    version: Annotated[int, typer.Option(min=0, help="as `history` numbers them")],
) -> None:
    """Make a lake table, and its quarantine, what they were as of a version."""
    from retail_assets.commands.memory import restore_table
    from retail_assets.commands.tables import print_restored

    print_restored(table, version, restore_table(_settings(), table, version))


@app.command()
def vacuum(
    table: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", help="default: every table of the lake")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="count, and delete nothing")] = False,
) -> None:
    """Delete the files of lake tables that no kept version has (RETAIL_LAKE_HISTORY_DAYS)."""
    from retail_assets.commands.memory import vacuum_tables

    done = "would be deleted" if dry_run else "deleted"
    for freed in vacuum_tables(_settings(), table, dry_run=dry_run):
        typer.echo(f"{freed.table}: {freed.files:,} files, {freed.size:,} bytes {done}")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def dbt(context: typer.Context) -> None:
    """Run dbt on the project and the warehouse of the settings, e.g. `dbt docs generate`."""
    from retail_assets.resources.dbt.project import run_dbt

    raise SystemExit(run_dbt(_settings(), context.args))


@app.command()
def dev(
    port: Annotated[int, typer.Option(min=1, max=65535, help="port on localhost")] = 3000,
) -> None:
    """Start Dagster's UI and daemon on localhost, until Ctrl-C."""
    from retail_assets.commands.dev import serve

    serve(_settings(), port)


def main() -> None:
    """Entry point of the console script."""
    with QuickEnd():
        spare_garbage_collection()
        try:
            app()
        except KeyboardInterrupt:
            sys.exit(130)
        except (PermanentError, TransientError) as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

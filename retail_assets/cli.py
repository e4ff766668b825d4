"""The command retail-assets.

Here: reading arguments, calling the package, printing. Not here: work of any kind, and what only
one domain has (its commands.py).
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from retail_assets.defs.registry import domains, load_commands, load_domain
from retail_assets.errors import PermanentError, TransientError
from retail_assets.process import QuickEnd, spare_garbage_collection
from retail_assets.settings import SettingsError, load_settings

_SAMPLE = "sample"
_DOMAINS = ", ".join(domain.name for domain in domains())
_A_TABLE = next((dataset.table for domain in domains() for dataset in domain.datasets), "")


class _Commands(TyperGroup):
    """The commands of this module, and those that domains bring, imported where they are needed."""

    def brought(self) -> Mapping[str, Callable[..., None]]:
        """The functions that domains bring, by the command's name."""
        return {
            name: function
            for commands in load_commands().values()
            for name, function in commands.items()
            if name != _SAMPLE
        }

    # Typer has a click of its own in some versions: its types have no name that lasts.
    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *self.brought()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is None and (function := self.brought().get(cmd_name)):
            alone = typer.Typer(add_completion=False)
            alone.command(cmd_name)(function)
            return typer.main.get_command(alone)
        return command


class _Samples(_Commands):
    """The sample of each domain is a command of its own, for their options differ."""

    def brought(self) -> Mapping[str, Callable[..., None]]:
        found = load_commands().items()
        return {domain: commands[_SAMPLE] for domain, commands in found if _SAMPLE in commands}

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.brought():
            names = ", ".join(self.brought())
            raise PermanentError(f"{cmd_name!r} is no domain; one of: {names}")
        return super().get_command(ctx, cmd_name)


app = typer.Typer(
    name="retail-assets",
    cls=_Commands,
    help="Retail data from raw files to tested marts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(
    typer.Typer(
        cls=_Samples, help="Write a generated source.", subcommand_metavar="DOMAIN [ARGS]..."
    ),
    name=_SAMPLE,
)
DomainName = Annotated[str, typer.Argument(metavar="DOMAIN", help=f"one of: {_DOMAINS}")]
Url = Annotated[
    str | None, typer.Option(help="of the instance's webserver; default: RETAIL_UI_URL")
]
TableName = Annotated[str, typer.Argument(metavar="TABLE", help=f"such as {_A_TABLE}")]


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
        typer.Option(help="a file to produce to the domain's topic meanwhile, or: sample"),
    ] = None,
) -> None:
    """Materialize every asset of a domain in one recorded run in this process."""
    from retail_assets.commands.run import failures, run_domain
    from retail_assets.domain import Asked, parse_partitions

    settings = load_settings()
    chosen = load_domain(domain)
    started = time.perf_counter()
    asked = Asked(
        parse_partitions(partitions) if partitions else None,
        allow_emptying,
        settings.file_to_stream(domain, stream) if stream else None,
    )
    outcomes = run_domain(settings, chosen, asked)
    from retail_assets.commands.tables import one_line, print_outcomes

    print_outcomes(outcomes, time.perf_counter() - started)
    if failed := failures(outcomes):
        raise SystemExit("\n".join(one_line(f"error: {failure}") for failure in failed))


@app.command()
def status() -> None:
    """Print the settings, and each asset's rows, partitions and last materialization."""
    from retail_assets.commands.tables import print_status

    print_status(load_settings())


@app.command()
def doctor(
    fix: Annotated[
        bool, typer.Option("--fix", help="write our lines into dagster.yaml; a copy is kept")
    ] = False,
) -> None:
    """Check each outside system that the settings name; exit 1 if one fails."""
    from retail_assets.commands.doctor import examine, mend
    from retail_assets.commands.tables import print_findings

    settings = load_settings()
    if fix:
        typer.echo(mend(settings))
    if not print_findings(examine(settings)):
        raise SystemExit(1)


@app.command()
def alerts(
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document")] = False,
    test: Annotated[bool, typer.Option("--test", help="send each receiver a message")] = False,
) -> None:
    """List what is at fault, what was told and what waits; or try the receivers."""
    from retail_assets.commands.alerts import read_alerts, try_receivers

    settings = load_settings()
    if test:
        results = dict(try_receivers(settings))
        for name, why in results.items():
            typer.echo(f"{name}: {why or 'sent'}")
        raise SystemExit(int(any(results.values())))
    found = read_alerts(settings)
    if as_json:
        typer.echo(found.to_json())
        return
    from retail_assets.commands.tables import print_alerts

    print_alerts(found)


@app.command()
def quarantine(
    table: Annotated[
        str | None,
        typer.Argument(metavar="[TABLE]", help=f"such as {_A_TABLE}, or a domain; default: all"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document")] = False,
    personal: Annotated[bool, typer.Option("--personal", help="show personal data too")] = False,
) -> None:
    """List what could not be read, by reason, with a few rows of each."""
    from retail_assets.commands.quarantine import read_quarantine, to_json

    found = read_quarantine(load_settings(), table, personal=personal)
    if as_json:
        typer.echo(to_json(found))
        return
    from retail_assets.commands.tables import print_quarantine

    print_quarantine(found)


@app.command()
def rebuild(table: TableName) -> None:
    """Re-create a table of the warehouse, or what else a domain fills, from the lake."""
    from retail_assets.commands.run import rebuild_table

    typer.echo(f"{table}: {rebuild_table(load_settings(), table):,} rows")


@app.command()
def history(
    table: TableName,
    limit: Annotated[int, typer.Option(min=1, help="versions to show")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document")] = False,
) -> None:
    """List a lake table's versions, the latest first: run, rows, source, and if it can be had."""
    from retail_assets.commands.memory import read_history, to_json

    found = read_history(load_settings(), table, limit)
    if as_json:
        typer.echo(to_json(table, found))
        return
    from retail_assets.commands.tables import print_history

    print_history(table, found)


@app.command()
def audit(
    table: Annotated[str, typer.Argument(help="of the warehouse: a landed one, or a mart")],
    partition: Annotated[str | None, typer.Option(help="one day or drop alone")] = None,
    row: Annotated[str | None, typer.Option(help="a row of a landed table, by its key")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document")] = False,
) -> None:
    """Say where a table's rows come from: landed partition, lake version, run, file, SHA-256."""
    from retail_assets.commands.audit import to_json, trace

    found = trace(load_settings(), table, partition, row)
    if as_json:
        typer.echo(to_json(table, found))
        return
    from retail_assets.commands.tables import print_traces

    print_traces(table, found)


@app.command()
def restore(
    table: TableName,
    version: Annotated[int, typer.Option(min=0, help="as `history` numbers them")],
) -> None:
    """Make a lake table, and its quarantine, what they were as of a version."""
    from retail_assets.commands.memory import restore_table
    from retail_assets.commands.tables import print_restored

    print_restored(table, version, restore_table(load_settings(), table, version))


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
    for freed in vacuum_tables(load_settings(), table, dry_run=dry_run):
        typer.echo(f"{freed.table}: {freed.files:,} files, {freed.size:,} bytes {done}")


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="count, and remove nothing")] = False,
) -> None:
    """Remove what is older than RETAIL_KEEP_..._DAYS keep: runs and logs, raw files, messages."""
    from retail_assets.defs.retention import prune as remove
    from retail_assets.instance import open_instance

    settings = load_settings()
    done = "would be removed" if dry_run else "removed"
    with open_instance(settings) as instance:
        for pruned in remove(settings, instance, domains(), dry_run=dry_run):
            typer.echo(f"{pruned.what}: {pruned.count:,}, {pruned.size:,} bytes {done}")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def dbt(context: typer.Context) -> None:
    """Run dbt on the project and the warehouse of the settings, e.g. `dbt docs generate`."""
    from retail_assets.resources.dbt.project import run_dbt

    raise SystemExit(run_dbt(load_settings(), context.args))


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="of the domain, such as store_visits")],
    file: Annotated[Path, typer.Option("--from", help="a CSV or xlsx file, one of dated ones")],
    feed: Annotated[str | None, typer.Option(help="files or snapshot; default: files")] = None,
    date: Annotated[
        str | None, typer.Option(help="column whose days the mart is by; default: the first")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="columns that together name a row, as A,B; default: none")
    ] = None,
    amount: Annotated[
        str | None, typer.Option(help="column of amounts; default: by its name, or the first")
    ] = None,
    dates: Annotated[
        str | None, typer.Option(help="iso, mdy or dmy, where the file's values do not say it")
    ] = None,
) -> None:
    """Write a domain for files like one of yours: contract, feed, models, tests."""
    from retail_assets.commands.new.making import make_domain

    said = {"feed": feed, "date": date, "key": key, "amount": amount, "dates": dates}
    typer.echo(make_domain(name, file, said))


@app.command()
def launch(
    job: Annotated[str, typer.Argument(metavar="JOB", help="such as batch_pipeline")],
    partitions: Annotated[
        str | None, typer.Option(help="a range A...B of the job's partitions, as one run")
    ] = None,
    config: Annotated[str | None, typer.Option(help="the run's config: a JSON object")] = None,
    url: Url = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="follow the run; exit 1 where it does not succeed")
    ] = False,
) -> None:
    """Start a job in a running instance (retail-assets dev), and print the run's link."""
    from retail_assets.commands.launch import follow
    from retail_assets.commands.launch import launch as start

    launched = start(url or load_settings().ui_url, job, partitions, config)
    typer.echo(launched.link)
    if wait and not follow(launched, typer.echo):
        raise SystemExit(1)


@app.command()
def health(
    url: Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document")] = False,
    notify: Annotated[
        bool, typer.Option("--notify", help="tell RETAIL_NOTIFY what is not well, or is again")
    ] = False,
) -> None:
    """Look whether a running instance works: webserver, code, daemon; exit 1 if one does not."""
    from retail_assets.commands.health import look, tell

    settings = load_settings()
    signs = look(url or settings.ui_url)
    if notify:
        tell(settings, signs)
    if as_json:
        typer.echo(json.dumps([vars(sign) for sign in signs], indent=2))
    else:
        for sign in signs:
            typer.echo(f"{'ok  ' if sign.ok else 'FAIL'} {sign.part}: {sign.found}")
    if not all(sign.ok for sign in signs):
        raise SystemExit(1)


@app.command()
def dev(
    port: Annotated[int, typer.Option(min=1, max=65535, help="port on localhost")] = 3000,
) -> None:
    """Start Dagster's UI and daemon on localhost, until Ctrl-C."""
    from retail_assets.commands.dev import serve

    serve(load_settings(), port)


def main() -> None:
    """Entry point of the console script."""
    with QuickEnd():
        spare_garbage_collection()
        try:
            app()
        except KeyboardInterrupt:
            sys.exit(130)
        except (PermanentError, TransientError, SettingsError) as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

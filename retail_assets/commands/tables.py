"""What the commands print: Rich tables.

Here: layout. Not here: finding out what to print (the command's own module).
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from retail_assets.settings import Settings

if TYPE_CHECKING:
    from retail_assets.commands.alerts import Alerts
    from retail_assets.commands.audit import Trace
    from retail_assets.commands.doctor import Finding
    from retail_assets.commands.memory import Restored, Version
    from retail_assets.commands.quarantine import TableQuarantine
    from retail_assets.commands.run import RunOutcome

_PIPE_WIDTH = 170
_LONGEST_LINE = 300
_MOST_REASONS = 20


def _console() -> Console:
    # A pipe has no width of its own: rows must not be folded there.
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_WIDTH)


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def print_outcomes(outcomes: "Sequence[RunOutcome]", seconds: float) -> None:
    """Each asset of each run: rows, partitions, seconds, where it landed; then what was lost."""
    from retail_assets.commands.run import quarantined_assets

    console = _console()
    for outcome in outcomes:
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
        console.print(table)
    for asset in (asset for outcome in outcomes for asset in outcome.assets):
        for note in asset.skipped:
            _print_line(console, f"skipped: {asset.key}: {note}")
    for key, found in quarantined_assets(outcomes).items():
        _print_line(console, f"quarantined: {key}: {found.describe()}")
    for warning in (warning for outcome in outcomes for warning in outcome.warnings):
        _print_line(console, f"warning: {warning}")
    ranges = "".join(f"{x.partitions[0]}...{x.partitions[1]}, " for x in outcomes if x.partitions)
    counts = {
        "checks passed": sum(outcome.checks_passed for outcome in outcomes),
        "failed": sum(len(outcome.failures) for outcome in outcomes),
        "warn": sum(outcome.checks_warned for outcome in outcomes),
    }
    told = [f"{n} {name}" for name, n in counts.items() if n or name == "checks passed"]
    console.print(f"{ranges}{', '.join(told)}, {seconds:.1f} s", highlight=False)


def one_line(text: str) -> str:
    """A text of others on one line, without what a terminal would obey."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())


def _print_line(console: Console, text: str, indent: str = "") -> None:
    line = f"{indent}{one_line(text)}"
    line = line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_alerts(alerts: "Alerts") -> None:
    """What is at fault, with cause, advice and link; then the messages, then the receivers."""
    from retail_assets.resources.notify.alert import shown_time

    console = _console()
    for fault in alerts.faults:
        again = f", again {fault.again}" if fault.again else f", since {shown_time(fault.opened)}"
        _print_line(console, f"{fault.alert.title}{again}")
        for line in filter(None, (fault.alert.cause, fault.alert.what_to_do, fault.alert.link)):
            _print_line(console, line, "  ")
    if not alerts.faults:
        _print_line(console, "nothing is at fault")
    for message in alerts.messages[:_MOST_REASONS]:
        names = ", ".join(alerts.waits_for(message))
        waits = f" (waits for {names})" if names else ""
        _print_line(console, f"told {shown_time(message.at)}: {message.title}{waits}")
    for x in alerts.standings:
        last = shown_time(x.sent_at) if x.sent_at else "never"
        why = f", last error: {x.error}" if x.error else ""
        waiting = alerts.waiting(x)
        _print_line(console, f"receiver {x.name}: {waiting:,} wait, last sent {last}{why}")


def print_quarantine(tables: "Sequence[TableQuarantine]") -> None:
    """Each table's reasons, with how many rows and values there are of each, and a few of them."""
    from retail_assets.losses import Quarantined

    console = _console()
    for table in tables:
        counted = Quarantined(table.rows, table.values).describe() or "nothing is quarantined"
        _print_line(console, f"{table.table}: {counted}")
        for reason in table.reasons[:_MOST_REASONS]:
            counted = Quarantined(reason.rows, reason.values).describe()
            _print_line(console, f"{counted}: {reason.expected}", "  ")
            for sample in reason.samples:
                place = " ".join(
                    value if isinstance(value, str) else f"{name} {value}"
                    for name, value in sample.places.items()
                    if value is not None
                )
                stays = ", the row stays" if sample.row_stays else ""
                found = f", found {sample.found}" if sample.found else ""
                text = "" if sample.text is None else f": {sample.text}"
                _print_line(console, f"{place}{stays}{found}{text}", "    ")
        more = len(table.reasons) - _MOST_REASONS
        if more > 0:
            _print_line(console, f"and {more:,} more reasons: --json has all", "  ")


def print_history(name: str, versions: "Sequence[Version]") -> None:
    """One line a version, the latest first."""
    table = Table("version", "time, UTC", "run", "asset", title=name, title_justify="left")
    for column in ("read", "written", "duplicates", "quarantined"):
        table.add_column(column, justify="right")
    table.add_column("source", overflow="fold")
    table.add_column("readable")
    for x in versions:
        counts = map(_count, (x.read, x.written, x.duplicates, x.quarantined))
        table.add_row(
            str(x.version),
            f"{x.time:%Y-%m-%d %H:%M:%S}",
            x.run[:8],
            Text(one_line(x.asset)),
            *counts,
            Text(one_line(x.source)),
            "yes" if x.readable else "no",
        )
    _console().print(table)


def print_traces(name: str, traces: "Sequence[Trace]") -> None:
    """One line a partition, with the files that it was made of below each other."""
    table = Table("table", "partition", title=f"{name} is made of", title_justify="left")
    for column in ("read", "written", "duplicates", "quarantined"):
        table.add_column(column, justify="right")
    for column in ("landed", "in marts", "version", "time, UTC", "run"):
        table.add_column(column)
    table.add_column("source, SHA-256", overflow="fold")
    for x in traces:
        table.add_row(
            x.table,
            x.partition,
            *map(_count, (x.read, x.written, x.duplicates, x.quarantined)),
            *("yes" if found else "no" for found in (x.is_landed, x.is_built)),
            "" if x.version is None else str(x.version),
            f"{x.time:%Y-%m-%d %H:%M:%S}" if x.time else "no longer in the log",
            x.run[:8],
            Text("\n".join(one_line(f"{file} {digest}") for file, digest in x.files.items())),
        )
    _console().print(table)


def print_restored(table: str, version: int, done: "Restored") -> None:
    """What changed, and how the warehouse and the marts follow."""
    console = _console()
    if done.after == done.before:
        _print_line(console, f"{table} is as it was in version {version}: nothing was changed")
        return
    _print_line(
        console,
        f"{table}: version {version} is now version {done.after}; {done.rows_before:,} rows before,"
        f" {done.rows_after:,} now",
    )
    shown = ", ".join(key or "all of it" for key in done.partitions[:_MOST_REASONS])
    more = len(done.partitions) - _MOST_REASONS
    _print_line(console, f"changed: {shown}{f' and {more:,} more' if more > 0 else ''}")
    _print_line(
        console,
        "The warehouse follows with the next load, the marts with their next build. Now:"
        f" retail-assets rebuild {table}; then the job {done.marts_job} in the UI",
    )


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
        fix = f". Fix: {finding.fix}" if finding.fix else ""
        console.print(f"{finding.found}{fix}", markup=False, highlight=False, soft_wrap=True)
        healthy = healthy and finding.ok
    return healthy

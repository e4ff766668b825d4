"""Making a domain of a proposal: what is chosen, typing the file by it, writing, what comes next.

Here: choices, and all that touches the project. Not here: what the file says (proposing.py), what
the domain's files say (rendering.py).
"""

import csv
import keyword
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, get_args

from retail_assets.commands.new.proposing import DROP_DATE, Proposal, ProposalError, propose
from retail_assets.commands.new.rendering import Design, render
from retail_assets.dataset import Column, Dataset
from retail_assets.feeds.reading import AmbiguousDatesError, ReadFiles
from retail_assets.feeds.typing import type_files
from retail_assets.moments import Order
from retail_assets.settings import PROJECT_ROOT

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# What was said with the command: feed, date, key, amount, dates.
Said = Mapping[str, str | None]
# Personal texts of a file do not go into the project's tests.
_MADE_UP = {"string": "someone", "date": "2000-01-31", "timestamp": "2000-01-31"}
_LONGEST = 25
_FEEDS = "files (dated ones, or one list) or snapshot (one source that is all of its days)"


def make_domain(name: str, file: Path, said: Said) -> str:
    """Write a domain of the file's kind into the project; what a person is to read.

    What was not said is asked where a terminal is there to answer, or else by default: the data
    come as files, the mart is by the first column of dates, no columns are the key, the amount is
    the first number whose name says so, or the first of all.

    Raises:
        ProposalError: a choice cannot be, or the domain's files are there. Nothing was written.
        UnreadableFileError, AmbiguousDatesError: the file cannot be typed. The same.
    """
    import duckdb

    from retail_assets.defs.marts.sources import sources_path, write_sources
    from retail_assets.defs.registry import load_domain

    _require_free(name)
    design = _design(name, propose(file), said)
    with duckdb.connect() as connection:
        read = _type(design, file, connection, said.get("dates"))
        ((first_day, bad, reason, left_out),) = connection.sql(
            f"select min({design.by_day}), coalesce(sum(_copies) filter (_reason is not null), 0),"
            " min(_reason), coalesce(sum(len(_left_out)), 0) from typed"
        ).fetchall()
        order = None if design.proposal.has_iso_dates else read.tables[0].reading.order
        design = _with_sample(replace(design, order=order, first_day=first_day), connection)
    files = {PROJECT_ROOT / path: text for path, text in render(design).items()}
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as stream:  # never over another
            stream.write(text)
    write_sources(load_domain(name))
    sources = sources_path(load_domain(name))
    files[sources] = sources.read_text("utf-8")
    target = design.raw_path.format(date=design.proposal.date)
    return "\n".join(
        [
            f"{file.name}: {read.rows:,} rows, {bad + len(read.rejected):,} that cannot be read"
            f"{f' ({reason})' if reason else ''}, {left_out:,} values left out",
            *(f"skipped: {note}" for note in read.skipped),
            f"{len(files)} files, {sum(text.count(chr(10)) for text in files.values())} lines:",
            *(f"  {path.relative_to(PROJECT_ROOT)}" for path in files),
            "next:",
            f"  read retail_assets/defs/{name}/contract.py: what it says is yours to change",
            f"  if the source is elsewhere than {file}: export RETAIL_{name.upper()}_SOURCE=..."
            if design.is_snapshot
            else f"  copy {file} to {target} in the lake (default: .retail/lake)",
            f"  retail-assets run {name}",
            f"  ask the warehouse: select * from {name}_core.{name}_daily order by {design.by_day}",
        ]
    )


def _require_free(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ProposalError(
            f"{name!r} is no name for a domain; expected small letters, digits and _, such as"
            " store_visits, and no word of Python"
        )
    models, defs = PROJECT_ROOT / "dbt_project" / "models", PROJECT_ROOT / "retail_assets" / "defs"
    taken = [defs / name, defs / f"{name}.py", models / name]
    taken += [PROJECT_ROOT / "retail_assets_tests" / "defs" / name]
    taken += [*models.rglob(f"stg_{name}.sql"), *models.rglob(f"{name}_daily.sql")]
    if there := [path for path in taken if path.exists()]:
        raise ProposalError(f"{there[0]} is there. Nothing was written. Choose another name")


def _choose(said: str | None, question: str, default: str) -> str:
    """What was said, or is answered on a terminal, or else the default."""
    if said is not None or not sys.stdin.isatty():
        return default if said is None else said
    return input(f"{question} [{default or 'none'}]: ").strip() or default


def _design(name: str, proposal: Proposal, said: Said) -> Design:
    """The domain, by what was asked for."""
    feed = _choose(said.get("feed"), f"How the data come: {_FEEDS}", "files")
    if feed not in ("files", "snapshot"):
        raise ProposalError(f"--feed is {feed!r}; expected {_FEEDS}")
    is_dated = feed == "files" and bool(proposal.date)
    if not proposal.days and not is_dated:
        raise ProposalError(
            f"{proposal.file.name} has no column of dates, which the daily mart needs; expected"
            f" one, or files with their date in the name, such as {name}_2024-12-31.csv"
        )
    first = proposal.days[0].name if proposal.days else DROP_DATE
    date = _choose(said.get("date"), "The column whose days the mart is by", first)
    day = None if is_dated and date == DROP_DATE else proposal.find(date, proposal.days)
    by_day = DROP_DATE if day is None else day.name
    key = _choose(said.get("key"), "Columns that together name a row, with commas between", "")
    keys = [proposal.find(x.strip(), proposal.columns) for x in key.split(",") if x.strip()]
    measures = [x for x in proposal.measures if x not in keys]
    if measures or said.get("amount"):
        first = measures[0].name if measures else ""
        text = _choose(said.get("amount"), "The column of amounts", first)
        amount = proposal.find(text, proposal.numbers)
        measures = [amount, *(x for x in measures if x != amount)]
    columns = []
    for x in proposal.columns:
        is_key = x in keys
        columns.append(replace(x, key=is_key, nullable=x.nullable and not is_key and x != day))
        if x == day and x.type == "timestamp":
            names = {other.name for other in proposal.columns}
            by_day = next(
                f"{x.name}_{y}" for y in ("day", "date", "on") if f"{x.name}_{y}" not in names
            )
            about, source = f"Day of {x.name}.", x.source or x.name
            columns.append(Column(by_day, "date", about, source=source))
    if is_dated:
        columns.append(Column(DROP_DATE, "date", "Date of the file; the partition."))
    partition = DROP_DATE if is_dated else by_day if feed == "snapshot" else None
    dataset = Dataset(name, name, f"One row a line of {proposal.name}.", tuple(columns), partition)
    return Design(proposal, dataset, feed == "snapshot", by_day, tuple(measures))


def _type(
    design: Design, file: Path, connection: "DuckDBPyConnection", order: str | None
) -> ReadFiles:
    """Type a file as the feed will, to the table ``typed``; a person is asked what it leaves open.

    Raises:
        AmbiguousDatesError: there is nobody to ask.
    """
    known = next((x for x in get_args(Order) if x == order), None)
    if order is not None and known is None:
        raise ProposalError(f"--dates is {order!r}; expected one of {', '.join(get_args(Order))}")
    with TemporaryDirectory() as folder:
        target, scratch = Path(folder, "typed.parquet"), Path(folder, "scratch")
        try:
            read = type_files(
                connection,
                [file],
                design.dataset,
                target,
                scratch,
                dates=known or "auto",
                setting="--dates",
                constants=design.constants,
            )
        except AmbiguousDatesError as error:
            answer = _choose(None, f"{error}\nmdy or dmy", "")
            if not answer:
                raise
            return _type(design, file, connection, answer)
        connection.execute(f"create or replace table typed as from read_parquet('{target}')")
    return read


def _with_sample(design: Design, connection: "DuckDBPyConnection") -> Design:
    """The design with a row of the file, the first of the fullest that is good, for its test."""
    proposal = design.proposal
    lines = [
        [
            _MADE_UP.get(x.type, text) if x.pii and text else (text or "")[:_LONGEST]
            for x, text in zip(proposal.columns, row, strict=True)
        ]
        for row in proposal.rows
    ]
    with TemporaryDirectory() as folder:
        file = Path(folder, "sample.csv")
        with file.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, delimiter=proposal.delimiter).writerows([proposal.header, *lines])
        _type(design, file, connection, design.order)
    rows = connection.sql(
        "from typed where _reason is null and _left_out is null order by _row limit 1"
    )
    for row in rows.to_arrow_table().to_pylist():
        texts = dict(zip(proposal.header, lines[row["_row"] - 2], strict=True))  # 1: the header
        values = {x: None if row[x] is None else str(row[x]) for x in design.dataset.column_names}
        return replace(design, texts=texts, row=values)
    raise ProposalError(
        f"{proposal.file.name} has no row that can be read whole; choose other columns for --date,"
        " --key and --amount, or mend the file"
    )

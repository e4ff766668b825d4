"""What is in the lake's quarantine: the reasons, how often each, and a few rows of each.

Here: counting, and choosing what is shown. Not here: which tables have a quarantine and what of a
row is personal (each domain's domain.py), printing (tables.py).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from retail_assets.defs.registry import domains
from retail_assets.domain import QuarantineTable
from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.lake import LakeResource, open_lake
from retail_assets.settings import Settings

_SAMPLES = 3
# DuckDB keeps the footer of each file that it reads until all are read, 20 kB each.
_FILES_AT_ONCE = 10_000
# A reason says what was expected, then this and what was found.
_FOUND = ", found "


class UnknownTableError(PermanentError):
    """No table of that name has a quarantine; the message says which have."""


class UnreadQuarantineError(TransientError):
    """Files of a quarantine could not be read; the message says why."""


@dataclass(frozen=True)
class Sample:
    """A row of a source that was quarantined, or that stands without the value that was found.

    ``places`` say where in the source it stood, ``file`` which file of the lake has it.
    """

    places: Mapping[str, str | int | None]
    found: str | None
    text: str | None
    row_stays: bool
    file: str


@dataclass(frozen=True)
class Reason:
    """What was expected; of how many rows, and of how many values whose rows stay."""

    expected: str
    rows: int
    values: int
    samples: Sequence[Sample]


@dataclass(frozen=True)
class TableQuarantine:
    """A table's reasons, the most frequent first."""

    table: str
    reasons: Sequence[Reason]

    @property
    def rows(self) -> int:
        """Rows that are not in the table."""
        return sum(reason.rows for reason in self.reasons)

    @property
    def values(self) -> int:
        """Values that are null in rows that stand."""
        return sum(reason.values for reason in self.reasons)


def read_quarantine(
    settings: Settings, asked: str | None, *, personal: bool
) -> list[TableQuarantine]:
    """The quarantine of the table ``asked``, of all tables of the domain ``asked``, or of all.

    Without ``personal``, personal data is masked.

    Raises:
        UnknownTableError: there is neither a table nor a domain of that name.
        UnreadQuarantineError: a file could not be read.
    """
    tables = {domain.name: domain.quarantines() for domain in domains()}
    chosen = [
        table
        for name, found in tables.items()
        for table in found
        if asked in (None, name, table.table)
    ]
    if not chosen:
        names = ", ".join(table.table for found in tables.values() for table in found)
        raise UnknownTableError(
            f"{asked!r} is no table that has a quarantine; one of: {names}; or a domain:"
            f" {', '.join(tables)}"
        )
    lake = open_lake(settings)
    return [_read(lake, table, personal) for table in chosen]


def to_json(tables: Sequence[TableQuarantine]) -> str:
    """One JSON document of what ``read_quarantine`` found."""
    found = [
        {"table": table.table, "rows": table.rows, "values": table.values, **asdict(table)}
        for table in tables
    ]
    return json.dumps({"tables": found}, indent=2, ensure_ascii=False)


class _Counted(NamedTuple):
    rows: int
    values: int
    samples: list[dict[str, Any]]


def _read(lake: LakeResource, table: QuarantineTable, personal: bool) -> TableQuarantine:
    names = [file.name for file in lake.table(table.dataset).snapshot().filled()]
    if not names:
        return TableQuarantine(table.table, [])
    import duckdb

    try:
        files = lake.local_copies([lake.uri(name) for name in names])
        found = _count(files, names, table.places)
    except (duckdb.IOException, duckdb.InvalidInputException, FileNotFoundError) as error:
        raise UnreadQuarantineError(
            f"{lake.uri(table.dataset.location)} could not be read"
            f" ({str(error).splitlines()[0]}). Where a run replaced it meanwhile, run this again."
        ) from error
    reasons = [
        Reason(expected, x.rows, x.values, [_sample(table, row, personal) for row in x.samples])
        for expected, x in found.items()
    ]
    return TableQuarantine(table.table, reasons)


def _count(
    files: Sequence[str], names: Sequence[str], places: Sequence[str]
) -> dict[str, _Counted]:
    """By reason without what was found, the most frequent first; rows of the latest partitions."""
    found: dict[str, _Counted] = {}
    for start in range(0, len(files), _FILES_AT_ONCE):
        part = slice(start, start + _FILES_AT_ONCE)
        for expected, rows, values, samples in _count_some(files[part], names[part], places):
            before = found.get(expected, _Counted(0, 0, []))
            found[expected] = _Counted(
                before.rows + rows,
                before.values + values,
                [*samples, *before.samples][:_SAMPLES],  # names are in order: these are later
            )
    return dict(sorted(found.items(), key=lambda item: (-item[1].rows - item[1].values, item[0])))


def _count_some(
    files: Sequence[str], names: Sequence[str], places: Sequence[str]
) -> list[tuple[str, int, int, list[dict[str, Any]]]]:
    import duckdb
    import pyarrow as pa

    place = ", ".join(f'"{name}": rows."{name}"' for name in places)
    with duckdb.connect() as connection:
        connection.register("lake_files", pa.table({"filename": files, "file": names}))
        # Online retail's do not say whether a row stays: none does.
        return connection.execute(
            f"""
            with rows as (
                select * from read_parquet(
                    $1, union_by_name = true, filename = true, hive_partitioning = false
                )
                union all by name
                (select null::boolean as row_stays limit 0)
            ),
            marked as (
                select
                    split_part(reason, $2, 1) as expected,
                    coalesce(row_stays, false) as stays,
                    {{
                        file: lake_files.file,
                        places: {{{place}}},
                        reason: reason,
                        text: text,
                        stays: coalesce(row_stays, false)
                    }} as sample
                from rows join lake_files using (filename)
            )
            select
                expected,
                count(*) filter (where not stays),
                count(*) filter (where stays),
                max(sample, {_SAMPLES})
            from marked
            group by expected
            """,
            [files, _FOUND.rstrip()],
        ).fetchall()


def _sample(table: QuarantineTable, row: Mapping[str, Any], personal: bool) -> Sample:
    reason, text = row["reason"], row["text"]
    if not personal:
        reason, masked = table.mask(reason, text or "")
        text = masked if text else text
    _, _, found = reason.partition(_FOUND)
    return Sample(row["places"], found or None, text, row["stays"], row["file"])

"""The merge of what Spark made of messages with what is there, by DuckDB: the latest of each key.

Everything is made of maxima: the row of the latest message that has a key stays. So messages that
are taken again change nothing. Here: rows, and whether all are there. Not here: which messages are
new, how rows get into the tables (new.py). Nothing here knows which stream's tables these are: a
table's key is its first column, and its rows say by ``message_order`` how late they are, where that
matters.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retail_assets.dataset import Column, Dataset
from retail_assets.defs.supply_chain.star.new import Plan, StarError
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.tables import Snapshot

if TYPE_CHECKING:
    import duckdb

_FORCE = "run it with --allow-emptying (in the UI: with the star's config allow_emptying: true)"
_REPORT = (
    "Nothing was published. A message may lie in two files of the topic; if not, this is a defect"
    " of the engine or of ours: please report it."
)
_PACKING = "compression zstd, row_group_size 122880"
# Beyond this the merge spills to disk, which is a twentieth slower.
_MEMORY = "300MB"


class StarImbalanceError(StarError):
    """Rows were lost or made up on the way; nothing was published."""


class Merged(NamedTuple):
    """How many ``keys`` the messages name, how many of these have a ``later`` message there
    already, and how many rows of an earlier one were ``removed``.
    """  # noqa: D205

    keys: int = 0
    later: int = 0
    removed: int = 0


@contextmanager
def open_database(folder: Path) -> "Iterator[duckdb.DuckDBPyConnection]":
    """A database in memory, which spills into the folder beyond its share."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(f"set memory_limit = '{_MEMORY}'")
        connection.execute(f"set temp_directory = '{_quoted(folder / 'spilled')}'")
        # By what the statistics of its sources say, a file would have a column as required or not:
        # the same rows in other bytes, so of another fingerprint.
        connection.execute("set disabled_optimizers = 'statistics_propagation'")
        yield connection


def one(database: "duckdb.DuckDBPyConnection", query: str) -> tuple[Any, ...]:
    """The one row that a query has."""
    row = database.execute(query).fetchone()
    assert row is not None
    return row


def rows_of(files: Sequence[Path | str], columns: Iterable[Column]) -> str:
    """Rows of Parquet files by name, whatever their folders say; without files, no row."""
    if not files:
        nulls = ", ".join(f'null::{c.duckdb_type} as "{c.name}"' for c in columns)
        return f"(select {nulls} limit 0)"
    names = ", ".join(f"'{_quoted(file)}'" for file in files)
    return f"read_parquet([{names}], hive_partitioning = false, union_by_name = true)"


def rows_there(
    lake: LakeResource, dataset: Dataset, there: Snapshot, keys: Iterable[str] | None = None
) -> str:
    """Rows of the partitions ``keys`` of a table, or of all."""
    files = lake.local_copies([lake.uri(file.name) for file in there.filled(keys)])
    return rows_of(files, dataset.columns)


def _quoted(path: Path | str) -> str:
    return str(path).replace("'", "''")


@dataclass
class Merger:
    """Merges rows of messages, ``typed`` by Spark into files by partition, with what is there.

    Only partitions that get or lose rows are written again, each as one file, in order: then equal
    rows are equal bytes. ``partitions`` are those, as ``publish`` takes them.
    """

    lake: LakeResource
    database: "duckdb.DuckDBPyConnection"
    folder: Path
    plan: Plan
    typed: Mapping[str, Sequence[Path]]
    partitions: dict[str, dict[str, tuple[Path | None, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = {c.name: c for dataset in self.plan.tables for c in dataset.columns}
        files = [file for found in self.typed.values() for file in found]
        self.database.execute(f"create view typed as from {rows_of(files, columns.values())}")

    def require_all(self, key: str, total: int) -> None:
        """Each message must have become a row, and no value that is never null may be null.

        Raises:
            StarImbalanceError: a message's text could not be read; or there are other rows than
                messages, or the sum of their numbers in ``key`` is not ``total``.
        """
        for dataset in self.plan.tables:
            required = [c.name for c in dataset.columns if not c.nullable]
            tests = ", ".join(f'count(*) - count("{column}")' for column in required)
            nulls = one(self.database, f"select {tests} from typed")
            if bad := [f"{c} in {n}" for c, n in zip(required, nulls, strict=True) if n]:
                raise StarImbalanceError(
                    f"{dataset.table}: Spark could not read, as the contract types them, texts of"
                    f" {', '.join(bad)} rows, though the messages were held against it when they"
                    " landed. Nothing was published. This is a defect of the engine or of ours:"
                    " please report it."
                )
        rows, found = one(self.database, f"select count(*), coalesce(sum({key}), 0) from typed")
        if (rows, found) != (self.plan.count, total):
            raise StarImbalanceError(
                f"{self.plan.messages.table}: of {self.plan.count} messages, whose {key} sum up"
                f" to {total}, Spark made {rows} rows, whose sum up to {found}. {_REPORT}"
            )

    def merge(self, lead: Dataset, *beside: Dataset) -> Merged:
        """Write the partitions of a table that change; of those ``beside``, with the same ones.

        These have a row for each row of the table, of the same message, and may be of a build that
        was killed before it published the table.

        Raises:
            StarImbalanceError: rows were lost or made up.
        """
        tables, key, by = (lead, *beside), lead.columns[0].name, lead.partition_by
        # Where rows do not say of which message they are, all of a key are alike.
        order = "message_order" if "message_order" in lead.column_names else "''"
        for query in (
            "table latest as"
            f" select {key}, max(message_order) as message_order from typed group by 1",
            # Of what is there, only rows of the same keys matter.
            f"table rivals as select {key}, {order} as message_order,"
            f" {by or 'null'}::varchar as part from {self._there(lead)}"
            f" semi join latest using ({key})",
            f"table won as from latest anti join rivals on rivals.{key} = latest.{key}"
            " and rivals.message_order > latest.message_order",
        ):
            self.database.execute(f"create or replace {query}")
        latest, won, replaced, removed, losing = one(
            self.database,
            "select (select count(*) from latest), (select count(*) from won), count(*),"
            " count(*) filter (rivals.message_order < won.message_order), list(distinct part)"
            f" from rivals join won using ({key})",
        )
        parts = {""}
        if by:
            # Every date that was read gets a fingerprint, though all its messages be superseded.
            parts = {*self.plan.files, *(losing or ())}
            if self.plan.anew:  # what is there and is not written again has no more messages
                parts.update(*(self.plan.there[dataset.name].by_key for dataset in tables))
        for dataset in tables:
            self.partitions[dataset.name] = {}
            for part in sorted(parts):
                self.partitions[dataset.name][part] = self._write(dataset, part, lead)
        before = sum(self._snapshot(lead).rows_of(parts).values())
        expected = before - replaced + won
        for dataset in tables:
            found = sum(rows for _, rows in self.partitions[dataset.name].values())
            if found != expected:
                raise StarImbalanceError(
                    f"{lead.table}: {before} rows were in the {len(parts)} partitions that change,"
                    f" {replaced} of them to be replaced, and {won} to be added; expected"
                    f" {expected} rows, found {found} in {dataset.table}. {_REPORT}"
                )
        return Merged(latest, latest - won, removed)

    def require_messages(self, lead: Dataset) -> None:
        """Rows that are there must be of messages that are there, if these make all of it anew.

        Raises:
            StarError: rows of the table that was merged last would go, or be of earlier messages.
        """
        there, key = self.plan.there[lead.name], lead.columns[0].name
        (lost,) = one(
            self.database,
            f"select count(*) from {rows_there(self.lake, lead, there)} as fact"
            f" left join won using ({key})"
            " where coalesce(won.message_order < fact.message_order, true)",
        )
        if lost:
            raise StarError(
                f"the star of {lead.schema} is to be built anew (typing {self.plan.typing}), but"
                f" {lost:,} of the {there.rows:,} rows of {lead.table} are of messages that are"
                f" gone from {self.lake.uri(self.plan.messages.location)}. Nothing was"
                f" published. Put their files back; or, to go on without these rows, {_FORCE}."
            )

    def _snapshot(self, dataset: Dataset) -> Snapshot:
        """A table as it is; without rows, where everything is built anew."""
        return Snapshot(-1) if self.plan.anew else self.plan.there[dataset.name]

    def _there(self, dataset: Dataset, keys: Sequence[str] | None = None) -> str:
        return rows_there(self.lake, dataset, self._snapshot(dataset), keys)

    def _write(self, dataset: Dataset, part: str, lead: Dataset) -> tuple[Path | None, int]:
        """Write a partition's rows, if it has any, into a file; after those of ``lead``."""
        file = self.folder / f"{dataset.name}-{part or 'whole'}.parquet"
        columns = ", ".join(f'"{n}"::{t} as "{n}"' for n, t in dataset.duckdb_columns.items())
        own_key, key = dataset.columns[0].name, lead.columns[0].name
        new, kept = "typed", f"anti join won using ({key})"
        if part:
            files = self.typed.get(part)
            new = rows_of(files, ()) if files else "(from typed limit 0)"
        if dataset is not lead:
            leading, _ = self.partitions[lead.name][part]
            leads = rows_of([leading] if leading else [], lead.columns)
            kept = f"anti join {new} using ({own_key}) semi join {leads} using ({own_key})"
        # The order in which messages lay there packs best; else a later look for some ids is quick.
        first = '"partition", "offset", ' if "offset" in dataset.column_names else ""
        (rows,) = one(
            self.database,
            f"copy (from (select {columns} from {new} semi join won using ({key}, message_order)"
            f" union all select {columns} from (select there.* from {self._there(dataset, [part])}"
            f" as there {kept})) order by {first}{own_key})"
            f" to '{_quoted(file)}' (format parquet, {_PACKING})",
        )
        return (file if rows else None, rows)

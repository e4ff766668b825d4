"""The merge of what Spark made of messages with what is in the star, by DuckDB.

Everything is made of maxima: of an order item, and of a customer, the row of the latest message
stays. So messages that are taken again change nothing. Here: rows, and whether all are there. Not
here: which of them are new (new.py), how they get into the tables (publish.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import (
    DIM_METADATA,
    DOMAIN,
    FACT_ORDER,
    MESSAGES,
)
from retail_assets.defs.supply_chain.star.candidates import Candidates
from retail_assets.defs.supply_chain.star.new import Plan, StarError
from retail_assets.defs.supply_chain.star.sql import (
    columns_of,
    local_files,
    one,
    quoted,
    rows_of,
)
from retail_assets.defs.supply_chain.transforms import (
    INGEST_DATE,
    ORDER_COLUMNS,
    STAGED_DIMENSIONS,
    TYPING_VERSION,
)
from retail_assets.resources.lake import LakeResource

if TYPE_CHECKING:
    import duckdb

WHOLE_TABLE = ""
_DIMENSIONS = tuple(STAGED_DIMENSIONS)
_BY_DATE = (DIM_METADATA, FACT_ORDER)
_FORCE = "run it with --allow-emptying (in the UI: with the star's config allow_emptying: true)"
_REPORT = (
    "Nothing was published. A message may lie in two files of the topic; if not, this is a defect"
    " of the engine or of ours: please report it."
)
_PACKING = "compression zstd, row_group_size 122880"


class StarImbalanceError(StarError):
    """Rows were lost or made up on the way; nothing was published."""


@dataclass
class Merged:
    """Partitions as they are to be: by table, the key, the file (None: no rows) and its rows.

    Of the ``items`` that the messages name, ``superseded_by_later`` have a later message there, and
    ``removed`` had an earlier one.
    """

    partitions: dict[str, dict[str, tuple[Path | None, int]]] = field(default_factory=dict)
    items: int = 0
    superseded_by_later: int = 0
    removed: int = 0


class Merger:
    """Merges candidates with what is in the lake, by DuckDB: memory is bounded, the rest spills.

    Only partitions that get or lose rows are written again, each as one file, ordered by its key:
    then equal rows are equal bytes, and a later look for some ids passes over most row groups.
    """

    def __init__(
        self,
        lake: LakeResource,
        database: "duckdb.DuckDBPyConnection",
        folder: Path,
        plan: Plan,
        candidates: Candidates,
    ) -> None:
        self._lake, self._database, self._folder = lake, database, folder
        self._plan, self._candidates = plan, candidates
        self._merged = Merged(items=candidates.items)

    def merge(self, *, allow_emptying: bool) -> Merged:
        """Write every partition that is to change into the folder.

        ``allow_emptying`` lets rows go whose messages are gone, where all is built anew.

        Raises:
            StarImbalanceError: rows were lost or made up, or a value could not be read.
            StarError: rows would go whose messages are gone.
        """
        self._require_typed()
        for dataset in _DIMENSIONS:
            self._merge_dimension(dataset)
        self._find_winners()
        if self._plan.anew and not allow_emptying:
            self._require_messages()
        self._merge_dates()
        return self._merged

    def _there(self, dataset: Dataset, keys: Sequence[str] | None = None) -> list[str]:
        """Files of partitions as they are; none, where everything is built anew."""
        if self._plan.anew:
            return []
        return local_files(self._lake, self._plan.there[dataset.name], keys)

    def _require_typed(self) -> None:
        """No value of a column that is never null may be: then a text could not be read."""
        files = {FACT_ORDER.name: [f for found in self._candidates.orders.values() for f in found]}
        columns = {FACT_ORDER.name: ORDER_COLUMNS}
        for dataset in _DIMENSIONS:
            files[dataset.name] = self._candidates.dimensions.get(dataset.name, [])
            columns[dataset.name] = dataset.columns
        for name, found in files.items():
            if not found:
                continue
            required = [c.name for c in columns[name] if not c.nullable]
            nulls = one(
                self._database,
                "select "
                + ", ".join(f'count(*) - count("{column}")' for column in required)
                + f" from {rows_of(found)}",
            )
            if bad := [f"{c} in {n}" for c, n in zip(required, nulls, strict=True) if n]:
                raise StarImbalanceError(
                    f"{DOMAIN}.{name}: Spark could not read, as the contract types them, texts of"
                    f" {', '.join(bad)} rows, though the messages were held against it when they"
                    " landed. Nothing was published. This is a defect of the engine or of ours:"
                    " please report it."
                )

    def _merge_dimension(self, dataset: Dataset) -> None:
        new = self._candidates.dimensions.get(dataset.name, [])
        if not (new or self._plan.anew):
            return
        key = dataset.columns[0].name
        is_latest = "message_order" in dataset.column_names
        later = "message_order desc, " if is_latest else ""
        found: tuple[Sequence[Path | str], ...] = (new, self._there(dataset))
        sources = [
            f"select {columns_of(dataset)}, {rank} as source from {rows_of(files)}"
            for rank, files in enumerate(found)
            if files
        ]
        query = (
            f"select * exclude (source) from ({' union all '.join(sources)})"
            f" qualify row_number() over (partition by {key} order by {later}source) = 1"
            f" order by {key}"
        )
        self._write(dataset, WHOLE_TABLE, query if sources else "")

    def _find_winners(self) -> None:
        """Of which message each item's row is to be, and which rows that are there lose."""
        database = self._database
        database.execute(
            "create table candidates (order_item_id bigint, message_order varchar,"
            f" {INGEST_DATE} date)"
        )
        key_columns = f"order_item_id, message_order, {INGEST_DATE}"
        if new := [file for found in self._candidates.orders.values() for file in found]:
            database.execute(f"insert into candidates select {key_columns} from {rows_of(new)}")
        self._require_items()
        # Of what is there, only rows of the same items matter.
        database.execute("create table rivals as from candidates limit 0")
        if there := self._there(FACT_ORDER):
            database.execute(
                f"insert into rivals select {key_columns} from {rows_of(there)}"
                " semi join candidates using (order_item_id)"
            )
        database.execute(
            "create table winners as select order_item_id, max(message_order) as message_order"
            " from (from candidates union all from rivals) group by 1"
        )
        database.execute(
            "create table losers as select * from rivals"
            " anti join winners using (order_item_id, message_order)"
        )

    def _merge_dates(self) -> None:
        touched = self._database.execute(
            f"select distinct {INGEST_DATE}::varchar from ("
            "select * from candidates semi join winners using (order_item_id, message_order)"
            " union all from losers)"
        ).fetchall()
        # Every date that was read gets a fingerprint, though all its messages be superseded.
        dates = {*self._plan.files, *(date for (date,) in touched)}
        if self._plan.anew:
            # Whatever is there and is not written again has no more messages.
            dates.update(*(self._plan.there[d.name].by_key for d in _BY_DATE))
        for date in sorted(dates):
            self._merge_date(date)
        self._count()

    def _merge_date(self, date: str) -> None:
        new = self._candidates.orders.get(date, [])
        facts = self._write(
            FACT_ORDER,
            date,
            self._both(
                FACT_ORDER,
                new,
                self._there(FACT_ORDER, [date]),
                # A row that is taken again is of the new ones; else it stays if it is the latest.
                taken="semi join winners using (order_item_id, message_order)",
                kept="anti join candidates using (order_item_id, message_order)"
                " anti join losers using (order_item_id, message_order)",
                order="order_item_id",
            ),
        )
        of_facts = "limit 0"
        if facts:
            of_facts = f"semi join {rows_of([facts])} as fact using (metadata_id)"
        again = f"anti join {rows_of(new)} as again using (metadata_id)" if new else ""
        metadata = self._write(
            DIM_METADATA,
            date,
            self._both(
                DIM_METADATA,
                new,
                self._there(DIM_METADATA, [date]),
                taken=of_facts,
                kept=f"{again} {of_facts}",
                order='"partition", "offset", metadata_id',
            ),
        )
        rows = self._merged.partitions
        counts = [rows[d.name][date][1] for d in _BY_DATE]
        if counts[0] != counts[1] or bool(facts) != bool(metadata):
            raise StarImbalanceError(
                f"{INGEST_DATE} {date}: {DIM_METADATA.table} would have {counts[0]} rows, and"
                f" {FACT_ORDER.table} {counts[1]}; expected as many. {_REPORT}"
            )

    def _both(
        self,
        dataset: Dataset,
        new: Sequence[Path],
        there: Sequence[str],
        *,
        taken: str,
        kept: str,
        order: str,
    ) -> str:
        columns = columns_of(dataset)
        sources = [
            f"select {columns} from (select part.* from {rows_of(files)} as part {chosen})"
            for files, chosen in ((new, taken), (there, kept))
            if files
        ]
        return f"from ({' union all '.join(sources)}) order by {order}" if sources else ""

    def _write(self, dataset: Dataset, key: str, query: str) -> Path | None:
        """Write a partition's rows, if it has any, into a file."""
        file = self._folder / f"{dataset.name}-{key or 'whole'}.parquet"
        rows = 0
        if query:
            (rows,) = one(
                self._database, f"copy ({query}) to '{quoted(file)}' (format parquet, {_PACKING})"
            )
        written = file if rows else None
        self._merged.partitions.setdefault(dataset.name, {})[key] = (written, rows)
        return written

    def _require_items(self) -> None:
        """Spark must have made rows of exactly the items that the messages name."""
        named, made, both = one(
            self._database,
            "select (select count(*) from items),"
            " (select count(distinct order_item_id) from candidates),"
            " (select count(*) from items semi join candidates using (order_item_id))",
        )
        if not named == made == both:
            raise StarImbalanceError(
                f"{FACT_ORDER.table}: the messages name {named} order items, Spark made rows of"
                f" {made}, {both} of them the same. {_REPORT}"
            )

    def _require_messages(self) -> None:
        """Rows that are there must be of messages that are there, if these make all of it anew."""
        there = self._plan.there[FACT_ORDER.name]
        if not there.rows:
            return
        (lost,) = one(
            self._database,
            f"select count(*) from {rows_of(local_files(self._lake, there))} as fact"
            " left join winners using (order_item_id)"
            " where coalesce(winners.message_order < fact.message_order, true)",
        )
        if lost:
            raise StarError(
                f"the star of {DOMAIN} is to be built anew (typing {TYPING_VERSION}), but {lost:,}"
                f" of the {there.rows:,} rows of {FACT_ORDER.table} are of messages that are gone"
                f" from {self._lake.uri(MESSAGES.location)}. Nothing was published. Put their files"
                f" back; or, to go on without these rows, {_FORCE}."
            )

    def _count(self) -> None:
        """Every message that was read is in the fact or superseded, and no other row has gone."""
        merged = self._merged
        (rivals, winners, merged.superseded_by_later, merged.removed) = one(
            self._database,
            "select (select count(*) from rivals), (select count(*) from winners),"
            " (select count(*) from winners"
            " anti join candidates using (order_item_id, message_order)),"
            " (select count(*) from losers)",
        )
        written = merged.partitions.get(FACT_ORDER.name, {})
        there = self._plan.there[FACT_ORDER.name].rows_of([] if self._plan.anew else written)
        before, found = sum(there.values()), sum(rows for _, rows in written.values())
        # A rival that won may be of a date that stays as it is: it counts on neither side.
        expected = before - rivals + winners
        if found != expected or winners != merged.items:
            raise StarImbalanceError(
                f"{FACT_ORDER.table}: of {len(written)} ingest dates {before} rows were there, and"
                f" {rivals} of the {merged.items} order items that were read; expected"
                f" {expected} rows, found {found}. {_REPORT}"
            )

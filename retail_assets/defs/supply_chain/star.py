"""The star of the supply chain: which messages are in it, and how new ones are merged into it.

Here: what is new, the merge of what Spark made of it with what is there, publishing, the state that
remembers. Not here: how a message becomes a row (transforms.py), assets and checks (assets.py).

Everything is made of maxima: of an order item, and of a customer, the row of the latest message
stays. So messages that are taken again change nothing, and whatever a killed build left is mended
by the next one, which takes its messages again.
"""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import (
    CODE,
    DIM_CUSTOMER,
    DIM_DEPARTMENT,
    DIM_LOCATION,
    DIM_METADATA,
    DIM_PRODUCT,
    DIM_SHIPPING,
    DOMAIN,
    FACT_ORDER,
    LANDED,
    MESSAGES,
    STREAMING,
    TOPIC,
    TRANSFORMED,
    SourceColumn,
)
from retail_assets.defs.supply_chain.transforms import (
    INGEST_DATE,
    ORDER_COLUMNS,
    STAGED_DATE,
    STAGED_DIMENSIONS,
    TYPED_COLUMNS,
    TYPING_VERSION,
    stage_orders,
    write_plainly,
)
from retail_assets.errors import PermanentError
from retail_assets.losses import Quarantined, refuse_to_shrink
from retail_assets.resources.lake import (
    BrokenStateError,
    Exchange,
    LakeObject,
    LakeResource,
    Stage,
    partition_folder,
)
from retail_assets.resources.spark import SparkResource

if TYPE_CHECKING:
    import duckdb
    from pyspark.sql import DataFrame

STATE = f"{DOMAIN}/star"
RAW_FOLDER = f"{STREAMING}/{TOPIC}/"
WHOLE_TABLE = ""
# The version of a partition of which every row was superseded.
EMPTY = "empty"

# What one Spark job takes: its memory goes with the bytes, 4 MiB being some 65,000 messages, its
# plan with the dates and the files.
_MOST_BYTES_A_JOB = 4 * 1024**2
_MOST_FILES_A_JOB = 1_000
_MOST_DATES_A_JOB = 32
_JOBS_AT_ONCE = 2
# Beyond this the merge spills to disk, which is a twentieth slower.
_MERGE_MEMORY = "300MB"
_HIDDEN = ("_", ".")
_DIMENSIONS = tuple(STAGED_DIMENSIONS)
_BY_DATE = (DIM_METADATA, FACT_ORDER)
_FOREIGN_KEYS = (
    DIM_CUSTOMER,
    DIM_PRODUCT,
    DIM_LOCATION,
    DIM_DEPARTMENT,
    DIM_SHIPPING,
    DIM_METADATA,
)


class StarError(PermanentError):
    """The star cannot be built, or be read as it is; the message says why, and what to do."""


class StarImbalanceError(StarError):
    """Rows were lost or made up on the way; nothing was published."""


@dataclass(frozen=True)
class StarBuilt:
    """What a build did.

    ``rows`` are those of each table now, and ``changed`` the partitions (WHOLE_TABLE for a table
    without) whose content is another than before. ``messages`` were read of ``dates``: ``written``
    are in the fact, the others superseded by one of them or by one that was there. ``removed`` rows
    of the fact were superseded by this build's. ``gone`` files were taken once and are no longer in
    the lake; their rows stay.
    """

    dates: tuple[str, ...]
    files: int
    messages: int
    written: int
    superseded_within: int
    superseded_by_later: int
    removed: int
    gone: int
    rows: Mapping[str, int]
    changed: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class StarChecked:
    """How the star's files stand to the contract, by count; all is well where nothing is found.

    ``drifted`` has, by table, columns that differ; ``duplicates`` rows of a key beyond its first;
    ``orphans`` rows of the fact whose key is in no row of the dimension, and ``unused`` rows of
    dim_metadata that no row of the fact has.
    """

    rows: Mapping[str, int]
    drifted: Mapping[str, str]
    duplicates: Mapping[str, int]
    orphans: Mapping[str, int]
    unused: int


@dataclass
class _State:
    """What is in the star: by date a fingerprint and the number of its files and messages, and by
    table and partition a fingerprint and the number of its rows.

    ``open`` is what a build was about to publish: its ``dates``, its ``partitions`` by table, and
    whether it took ``everything`` anew.
    """  # noqa: D205

    typing: str = TYPING_VERSION
    dates: dict[str, list[Any]] = field(default_factory=dict)
    tables: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    open: dict[str, Any] | None = None

    def keys(self, dataset: Dataset) -> list[str]:
        """Partitions that may have rows, those half published included."""
        opened = self.open["partitions"].get(dataset.name, []) if self.open else []
        return sorted({*self.tables.get(dataset.name, {}), *opened})

    def rows(self) -> dict[str, int]:
        return {d.name: sum(n for _, n in self.tables.get(d.name, {}).values()) for d in LANDED}


@dataclass(frozen=True)
class _Plan:
    """What a build takes: files by date, of all that lie there; ``everything`` is built anew."""

    listed: Mapping[str, Sequence[LakeObject]]
    files: Mapping[str, Sequence[LakeObject]]
    everything: bool
    gone: int


@dataclass
class _Candidates:
    """Files of what Spark made of the messages: of the fact by date, of dimensions by name."""

    orders: dict[str, list[Path]] = field(default_factory=dict)
    dimensions: dict[str, list[Path]] = field(default_factory=dict)
    messages: dict[str, int] = field(default_factory=dict)
    items: int = 0


def build_star(
    lake: LakeResource,
    spark: SparkResource,
    run_id: str,
    dates: Sequence[str] | None = None,
    *,
    most_lost: float | None = 0.1,
) -> StarBuilt:
    """Bring the star to what the topic's files hold: of each order item the latest message.

    Takes the files that are new since the last build; of ``dates``, where they are given, all
    files. What a killed build took is taken again; everything, where the state was lost or
    TYPING_VERSION is another. Only then can rows be lost, of messages whose files are gone: of the
    fact the share ``most_lost`` at most, and where it is None any.

    Raises:
        ShrunkError: more rows would be lost.
        StarImbalanceError: rows were lost, or a value of a message could not be read.
        StarError: everything is to be built anew, and files that were taken are gone.
        BrokenStateError: the state is there and is not readable.
    """
    with lake.lock(STATE):
        state = _read_state(lake)
        plan = _plan_build(lake, state, dates, all_or_none=most_lost is not None)
        state = state or _State()
        if plan.everything:
            state.typing, state.dates = TYPING_VERSION, {}
        elif not plan.files and not state.open:
            return _built(plan, state, _Candidates(), _Merged())
        with (
            lake.scratch() as scratch,
            lake.staging(run_id) as stage,
            spark.exchange(lake, run_id) as exchange,
            _database(scratch) as database,
        ):
            candidates = _stage_candidates(lake, spark, exchange, database, plan)
            merged = _Merger(lake, database, scratch, state, plan, candidates).merge()
            if plan.everything and most_lost is not None:
                had = state.rows()[FACT_ORDER.name] or _count_items(lake, database)
                has = sum(n for _, n in merged.partitions.get(FACT_ORDER.name, {}).values())
                refuse_to_shrink(
                    FACT_ORDER.table, had, has, Quarantined(), most_lost=most_lost, force=_FORCE
                )
            _publish(lake, stage, state, plan, candidates, merged)
        return _built(plan, state, candidates, merged)


def star_versions(lake: LakeResource, dataset: Dataset) -> dict[str, str]:
    """Fingerprint of each partition of a table of the star; WHOLE_TABLE where there are none.

    EMPTY is one that has lost all its rows.

    Raises:
        StarError: it was never built, or a build was killed while it published.
    """
    state = _read_state(lake)
    if state is None or state.open:
        found = "was never built" if state is None else "is half published: a build was killed"
        raise StarError(
            f"the star of {DOMAIN} {found}. Nothing was loaded. Materialize it, then run this"
            " again."
        )
    return {key: version for key, (version, _) in state.tables.get(dataset.name, {}).items()}


def star_rows(lake: LakeResource) -> dict[str, int]:
    """Rows of each table of the star, by name; {} where it was never built."""
    state = _read_state(lake)
    return state.rows() if state else {}


def check_star(lake: LakeResource) -> StarChecked:
    """Hold the star's files against the contract: columns, keys, and the fact's foreign keys."""
    state = _read_state(lake) or _State()
    rows: dict[str, int] = {}
    drifted: dict[str, str] = {}
    duplicates: dict[str, int] = {}
    orphans: dict[str, int] = {}
    unused = 0
    with lake.scratch() as scratch, _database(scratch) as database:
        for dataset in LANDED:
            files = lake.local_copies(lake.partition_uris(dataset, state.keys(dataset)))
            source = f"select * from {_rows_of(files)}"
            if not files:
                columns = (f'null::{c.duckdb_type} as "{c.name}"' for c in dataset.columns)
                source = f"select {', '.join(columns)} limit 0"
            database.execute(f"create view {dataset.name} as {source}")
            found = database.execute(f"describe {dataset.name}").fetchall()
            if drift := dataset.compare({name: kind for name, kind, *_ in found}):
                rows[dataset.name] = 0
                drifted[dataset.name] = drift.describe()
                continue
            key = dataset.columns[0].name
            rows[dataset.name], distinct = _one(
                database, f"select count(*), count(distinct {key}) from {dataset.name}"
            )
            duplicates[dataset.name] = rows[dataset.name] - distinct
        if not drifted:
            for dataset in _FOREIGN_KEYS:
                key = dataset.columns[0].name
                (orphans[key],) = _one(
                    database,
                    f"select count(*) from {FACT_ORDER.name}"
                    f" anti join {dataset.name} using ({key})",
                )
            (unused,) = _one(
                database,
                f"select count(*) from {DIM_METADATA.name}"
                f" anti join {FACT_ORDER.name} using (metadata_id)",
            )
    return StarChecked(
        rows,
        drifted,
        {name: n for name, n in duplicates.items() if n},
        {name: n for name, n in orphans.items() if n},
        unused,
    )


# ---- what is new


def _read_state(lake: LakeResource) -> _State | None:
    found = lake.read_state(STATE)
    if found is None:
        return None
    try:
        return _State(**found)
    except TypeError as error:
        raise BrokenStateError(
            f"{lake.uri(f'_state/{STATE}.json')} holds something else than what is in the star"
            f" ({error}). Delete it: the next build takes all messages again."
        ) from error


def _write_state(lake: LakeResource, state: _State) -> None:
    lake.write_state(STATE, vars(state))


def _list_files(lake: LakeResource, dates: Iterable[str] | None) -> dict[str, list[LakeObject]]:
    """The topic's files by date."""
    files: dict[str, list[LakeObject]] = {}
    folder = f"{RAW_FOLDER}{INGEST_DATE}="
    for prefix in [folder] if dates is None else [f"{folder}{date}/" for date in dates]:
        for entry in lake.list_objects(prefix):
            date, _, name = entry.name.removeprefix(folder).partition("/")
            if name.endswith(".parquet") and "/" not in name:
                files.setdefault(date, []).append(entry)
    return files


def _fingerprint(files: Iterable[LakeObject]) -> str:
    """Of the names alone: a file's name says which messages it has."""
    return hashlib.sha256("\n".join(sorted(f.name for f in files)).encode()).hexdigest()[:32]


def _note(date: str) -> str:
    return f"{STATE}/{date}"


def _read_note(lake: LakeResource, state: _State, date: str) -> set[str]:
    """Names of the files of a date that are in the star; none, where that is not sure."""
    known, note = state.dates.get(date), lake.read_state(_note(date))
    if known is None or note is None or note["fingerprint"] != known[0]:
        return set()
    return set(note["files"])


def _plan_build(
    lake: LakeResource, state: _State | None, dates: Sequence[str] | None, *, all_or_none: bool
) -> _Plan:
    if state is None or state.typing != TYPING_VERSION or (state.open or {}).get("everything"):
        listed = _list_files(lake, None)
        if all_or_none:
            _require_all(lake, state, listed)
        return _Plan(listed, listed, everything=True, gone=0)
    opened = set(state.open["dates"]) if state.open else set()
    whole = opened.union(dates or ())
    listed = _list_files(lake, None if dates is None else sorted(whole))
    files: dict[str, Sequence[LakeObject]] = {}
    gone = 0
    for date, found in sorted(listed.items()):
        if date in whole:
            files[date] = found
        elif (known := state.dates.get(date)) is None or known[0] != _fingerprint(found):
            taken = _read_note(lake, state, date)
            gone += len(taken.difference(entry.name for entry in found))
            if new := [entry for entry in found if entry.name not in taken]:
                files[date] = new
    if dates is None:
        gone += sum(known[1] for date, known in state.dates.items() if date not in listed)
    return _Plan(listed, files, everything=False, gone=gone)


def _require_all(
    lake: LakeResource, state: _State | None, listed: Mapping[str, Sequence[LakeObject]]
) -> None:
    """Files that were taken must be there, if all rows are to be made of them anew."""
    lacking = [
        date
        for date, (_, files, _) in sorted((state.dates if state else {}).items())
        if files > len(listed.get(date, ()))
    ]
    if lacking:
        raise StarError(
            f"the star of {DOMAIN} is to be built anew (typing {TYPING_VERSION}), but of"
            f" {len(lacking)} ingest dates, {lacking[0]} the first, files that it holds are gone"
            f" from {lake.uri(RAW_FOLDER)}. Nothing was touched. Put them back; or, to go on"
            f" without their rows, {_FORCE}."
        )


# ---- what Spark makes of it


def _stage_candidates(
    lake: LakeResource,
    spark: SparkResource,
    exchange: Exchange,
    database: "duckdb.DuckDBPyConnection",
    plan: _Plan,
) -> _Candidates:
    """Rows of the messages that a plan takes, as many at a time as one Spark job takes."""
    candidates = _Candidates()
    database.execute("create table items (order_item_id bigint primary key)")
    for number, batch in enumerate(_batches(plan.files)):
        local = {date: [lake.local_file(f.name) for f in files] for date, files in batch.items()}
        odd = _count_messages(database, local, candidates)
        messages = write_plainly(_read(spark, exchange, batch, local), odd)
        # Two at once: one's reading, a core, goes beside the other's join.
        with ThreadPoolExecutor(_JOBS_AT_ONCE) as pool:
            orders = pool.submit(
                spark.write,
                stage_orders(messages),
                exchange.target(f"orders-{number}"),
                [STAGED_DATE],
            )
            dimensions = {
                dataset.name: pool.submit(
                    spark.write, stage(messages), exchange.target(f"{dataset.name}-{number}"), []
                )
                for dataset, stage in STAGED_DIMENSIONS.items()
            }
        for written in orders.result():
            candidates.orders.setdefault(written.values[0], []).append(written.path)
        for name, future in dimensions.items():
            found = candidates.dimensions.setdefault(name, [])
            found += [written.path for written in future.result()]
    return candidates


def _batches(
    files: Mapping[str, Sequence[LakeObject]],
) -> Iterator[dict[str, list[LakeObject]]]:
    """Files by date, as many together as one Spark job takes; a large date is cut."""
    batch: dict[str, list[LakeObject]] = {}
    size = count = 0
    for date, found in sorted(files.items()):
        for entry in found:
            is_full = size + entry.size > _MOST_BYTES_A_JOB or count == _MOST_FILES_A_JOB
            if batch and (is_full or len({*batch, date}) > _MOST_DATES_A_JOB):
                yield batch
                batch, size, count = {}, 0, 0
            batch.setdefault(date, []).append(entry)
            size, count = size + entry.size, count + 1
    if batch:
        yield batch


def _count_messages(
    database: "duckdb.DuckDBPyConnection",
    files: Mapping[str, Sequence[Path]],
    candidates: _Candidates,
) -> list[str]:
    """Count the messages by date, and note their items, without Spark; then it has to agree.

    Returns the columns that hold texts which are not written in the plainest way.
    """
    paths = [str(path) for found in files.values() for path in found]
    database.execute(
        "insert or ignore into items select distinct order_item_id::bigint"
        " from read_parquet(?, hive_partitioning = false)",
        [paths],
    )
    for date, on_date in files.items():
        (count,) = _one(
            database,
            "select sum(num_rows)::bigint from parquet_file_metadata(?)",
            [str(path) for path in on_date],
        )
        candidates.messages[date] = candidates.messages.get(date, 0) + count
    found = _one(
        database,
        f"select {', '.join(f'coalesce(bool_or({_is_odd(c)}), false)' for c in TYPED_COLUMNS)}"
        " from read_parquet(?, hive_partitioning = false)",
        paths,
    )
    return [column.name for column, odd in zip(TYPED_COLUMNS, found, strict=True) if odd]


def _is_odd(column: SourceColumn) -> str:
    """SQL: whether a text of a column that landed is not written in the plainest way.

    Of the ways to ask, the quickest ones.
    """
    name, is_decimal = column.name, column.type.startswith("decimal")
    if column.type == "timestamp":
        return f"regexp_matches({name}, '-|:.*:|[mM]$')"
    if column.type == CODE:
        return " or ".join(f"contains(lower({name}), '{mark}')" for mark in ".+n \t")
    if column.is_side:  # it may be anything
        number = "-?[0-9]{1,18}([.][0-9]{1,20})?" if is_decimal else "-?[0-9]{1,19}"
        return f"not regexp_full_match({name}, '{number}')"
    return f"contains(lower({name}), 'e')" if is_decimal else f"contains({name}, '.')"


def _read(
    spark: SparkResource,
    exchange: Exchange,
    batch: Mapping[str, Sequence[LakeObject]],
    local: Mapping[str, Sequence[Path]],
) -> "DataFrame":
    """Messages with the date on which they landed, which only their folder says."""
    from pyspark.sql import functions as F  # noqa: N812

    frames = []
    for date, entries in batch.items():
        places: list[Path | str] = []
        for entry, file in zip(entries, local[date], strict=True):
            if file.name.startswith(_HIDDEN):  # as an incarnation's id may: no engine reads those
                seen = exchange.folder / date / f"messages{file.name}"
                seen.parent.mkdir(exist_ok=True)
                places.append(exchange.place(Path(shutil.copyfile(file, seen))))
            else:
                places.append(exchange.place(file, entry))
        frames.append(spark.read_parquet(places, MESSAGES).withColumn(INGEST_DATE, F.lit(date)))
    return reduce(lambda left, right: left.unionAll(right), frames)


# ---- the merge


@dataclass
class _Merged:
    """Partitions as they are to be: by table, the key, the file (None: no rows) and its rows."""

    partitions: dict[str, dict[str, tuple[Path | None, int]]] = field(default_factory=dict)
    written: int = 0
    superseded_by_later: int = 0
    removed: int = 0
    changed: dict[str, tuple[str, ...]] = field(default_factory=dict)


class _Merger:
    """Merges candidates with what is in the lake, by DuckDB: memory is bounded, the rest spills.

    Only partitions that get or lose rows are written again, each as one file, ordered by its key:
    then equal rows are equal bytes, and a later look for some ids passes over most row groups.
    """

    def __init__(
        self,
        lake: LakeResource,
        database: "duckdb.DuckDBPyConnection",
        folder: Path,
        state: _State,
        plan: _Plan,
        candidates: _Candidates,
    ) -> None:
        self._lake, self._database, self._folder = lake, database, folder
        self._state, self._plan, self._candidates = state, plan, candidates
        self._merged = _Merged()

    def merge(self) -> _Merged:
        """Write every partition that is to change into the folder.

        Raises:
            StarImbalanceError: rows were lost or made up, or a value could not be read.
        """
        self._require_typed()
        for dataset in _DIMENSIONS:
            self._merge_dimension(dataset)
        self._merge_orders()
        return self._merged

    def _there(self, dataset: Dataset, keys: Sequence[str]) -> list[str]:
        """Files of partitions as they are; none, where everything is built anew."""
        if self._plan.everything:
            return []
        return self._lake.local_copies(self._lake.partition_uris(dataset, keys))

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
            nulls = _one(
                self._database,
                "select "
                + ", ".join(f'count(*) - count("{column}")' for column in required)
                + f" from {_rows_of(found)}",
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
        there = self._there(dataset, [WHOLE_TABLE])
        key = dataset.columns[0].name
        if not new and not self._plan.everything and not self._is_open(dataset, WHOLE_TABLE):
            return
        is_latest = "message_order" in dataset.column_names
        later = "message_order desc, " if is_latest else ""
        found: tuple[Sequence[Path | str], ...] = (new, there)
        sources = [
            f"select {_columns_of(dataset)}, {rank} as source from {_rows_of(files)}"
            for rank, files in enumerate(found)
            if files
        ]
        if not sources:
            self._put(dataset, WHOLE_TABLE, None, 0)
            return
        self._write(
            dataset,
            WHOLE_TABLE,
            f"select * exclude (source) from ({' union all '.join(sources)})"
            f" qualify row_number() over (partition by {key} order by {later}source) = 1"
            f" order by {key}",
        )

    def _merge_orders(self) -> None:
        database, new = self._database, self._candidates.orders
        database.execute(
            "create table candidates (order_item_id bigint, message_order varchar,"
            f" {INGEST_DATE} date)"
        )
        key_columns = f"order_item_id, message_order, {INGEST_DATE}"
        if new:
            every = [file for found in new.values() for file in found]
            database.execute(f"insert into candidates select {key_columns} from {_rows_of(every)}")
        self._require_items()
        keys = [] if self._plan.everything else self._state.keys(FACT_ORDER)
        there = self._there(FACT_ORDER, keys)
        # Of what is there, only rows of the same items matter.
        database.execute("create table rivals as from candidates limit 0")
        before = 0
        if there:
            database.execute(
                f"insert into rivals select {key_columns} from {_rows_of(there)}"
                " semi join candidates using (order_item_id)"
            )
            (before,) = _one(
                database, "select sum(num_rows)::bigint from parquet_file_metadata(?)", there
            )
        database.execute(
            "create table winners as select order_item_id, max(message_order) as message_order"
            " from (from candidates union all from rivals) group by 1"
        )
        database.execute(
            "create table losers as select * from rivals"
            " anti join winners using (order_item_id, message_order)"
        )
        touched = database.execute(
            f"select distinct {INGEST_DATE}::varchar from ("
            "select * from candidates semi join winners using (order_item_id, message_order)"
            " union all from losers)"
        ).fetchall()
        # Every date that was read gets a version, though all its messages be superseded.
        dates = {*self._plan.files, *(date for (date,) in touched)}
        dates.update(key for d in _BY_DATE for key in self._opened(d))
        if self._plan.everything:
            # Whatever is there and is not written again has no more messages.
            dates.update(*(_dates_there(self._lake, d) for d in _BY_DATE))
            dates.update(*(self._state.keys(d) for d in _BY_DATE))
        for date in sorted(dates):
            self._merge_date(date)
        self._count(before)

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
            of_facts = f"semi join {_rows_of([facts])} as fact using (metadata_id)"
        again = f"anti join {_rows_of(new)} as again using (metadata_id)" if new else ""
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
        columns = _columns_of(dataset)
        sources = [
            f"select {columns} from (select part.* from {_rows_of(files)} as part {chosen})"
            for files, chosen in ((new, taken), (there, kept))
            if files
        ]
        return f"from ({' union all '.join(sources)}) order by {order}" if sources else ""

    def _write(self, dataset: Dataset, key: str, query: str) -> Path | None:
        """Write a partition's rows, if it has any, into a file."""
        file = self._folder / f"{dataset.name}-{key or 'whole'}.parquet"
        rows = 0
        if query:
            (rows,) = _one(
                self._database, f"copy ({query}) to '{_quoted(file)}' (format parquet, {_PACKING})"
            )
        written = file if rows else None
        self._put(dataset, key, written, rows)
        return written

    def _put(self, dataset: Dataset, key: str, file: Path | None, rows: int) -> None:
        self._merged.partitions.setdefault(dataset.name, {})[key] = (file, rows)

    def _opened(self, dataset: Dataset) -> list[str]:
        opened = self._state.open
        return list(opened["partitions"].get(dataset.name, [])) if opened else []

    def _is_open(self, dataset: Dataset, key: str) -> bool:
        return key in self._opened(dataset)

    def _require_items(self) -> None:
        """Spark must have made rows of exactly the items that the messages name."""
        named, made, both = _one(
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
        self._candidates.items = named

    def _count(self, before: int) -> None:
        """Every message that was read is in the fact or superseded, and no other row has gone."""
        merged, database = self._merged, self._database
        (rivals, winners, merged.superseded_by_later, merged.removed) = _one(
            database,
            "select (select count(*) from rivals), (select count(*) from winners),"
            " (select count(*) from winners"
            " anti join candidates using (order_item_id, message_order)),"
            " (select count(*) from losers)",
        )
        merged.written = self._candidates.items - merged.superseded_by_later
        rewritten = merged.partitions.get(FACT_ORDER.name, {})
        untouched = [] if self._plan.everything else self._state.keys(FACT_ORDER)
        untouched = [key for key in untouched if key not in rewritten]
        files = self._there(FACT_ORDER, untouched)
        left = 0
        if files:
            (left,) = _one(
                database, "select sum(num_rows)::bigint from parquet_file_metadata(?)", files
            )
        found = left + sum(rows for _, rows in rewritten.values())
        expected = before - rivals + winners
        if found != expected or winners != self._candidates.items:
            raise StarImbalanceError(
                f"{FACT_ORDER.table}: {before} rows were there, {rivals} of them of the"
                f" {self._candidates.items} order items that were read; expected {expected} rows,"
                f" found {found}. {_REPORT}"
            )


_FORCE = "run it with --allow-emptying (in the UI: with the star's config allow_emptying: true)"
_REPORT = (
    "Nothing was published. A message may lie in two files of the topic; if not, this is a defect"
    " of the engine or of ours: please report it."
)
_PACKING = "compression zstd, row_group_size 122880"


@contextmanager
def _database(folder: Path) -> "Iterator[duckdb.DuckDBPyConnection]":
    """A database in memory, which spills into the folder beyond its share."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(f"set memory_limit = '{_MERGE_MEMORY}'")
        connection.execute(f"set temp_directory = '{_quoted(folder / 'spilled')}'")
        # By what the statistics of its sources say, a file would have a column as required or not:
        # the same rows in other bytes, so in another version.
        connection.execute("set disabled_optimizers = 'statistics_propagation'")
        yield connection


def _one(
    database: "duckdb.DuckDBPyConnection", query: str, files: Sequence[str] | None = None
) -> tuple[Any, ...]:
    row = database.execute(query, None if files is None else [list(files)]).fetchone()
    assert row is not None
    return row


def _quoted(path: Path | str) -> str:
    return str(path).replace("'", "''")


def _rows_of(files: Sequence[Path | str]) -> str:
    """Rows of Parquet files by name; what their folders are called is no column."""
    names = ", ".join(f"'{_quoted(file)}'" for file in files)
    return f"read_parquet([{names}], hive_partitioning = false, union_by_name = true)"


def _columns_of(dataset: Dataset) -> str:
    return ", ".join(
        f'"{name}"::{kind} as "{name}"' for name, kind in dataset.duckdb_columns.items()
    )


def _count_items(lake: LakeResource, database: "duckdb.DuckDBPyConnection") -> int:
    """Order items of the fact's files, whatever the state says."""
    dates = sorted(_dates_there(lake, FACT_ORDER))
    files = lake.local_copies(lake.partition_uris(FACT_ORDER, dates))
    if not files:
        return 0
    query = f"select count(distinct order_item_id) from {_rows_of(files)}"
    return int(_one(database, query)[0])


def _dates_there(lake: LakeResource, dataset: Dataset) -> set[str]:
    """Partitions of a table that have files, whatever the state says."""
    prefix = f"{TRANSFORMED}/{dataset.folder}/{dataset.partition_by}="
    names = (entry.name.removeprefix(prefix) for entry in lake.list_objects(prefix))
    return {name.partition("/")[0] for name in names}


# ---- publishing


def _publish(
    lake: LakeResource,
    stage: Stage,
    state: _State,
    plan: _Plan,
    candidates: _Candidates,
    merged: _Merged,
) -> None:
    """Move in what differs from what is there, and take note.

    The partitions and dates are told open before, and closed after: if the build ends between, the
    next one takes the same messages again, and writes these partitions again.
    """
    changes: dict[str, dict[str, list[Any]]] = {}
    opened = state.open["partitions"] if state.open else {}
    for dataset in LANDED:
        known = state.tables.get(dataset.name, {})
        for key, (file, rows) in merged.partitions.get(dataset.name, {}).items():
            entry = [_hash(file) if file else EMPTY, rows]
            if known.get(key) == entry and key not in opened.get(dataset.name, []):
                continue
            changes.setdefault(dataset.name, {})[key] = entry
            if file is not None:
                folder = partition_folder(dataset.partition_by or "", key)
                stage.adopt(TRANSFORMED, dataset, folder, [file])
    partitions = {
        name: sorted({*opened.get(name, []), *changes.get(name, {})})
        for name in {*opened, *changes}
    }
    before = state.open or {"dates": [], "everything": False}
    state.open = {
        "everything": before["everything"] or plan.everything,
        "dates": sorted({*before["dates"], *plan.files}),
        "partitions": partitions,
    }
    _write_state(lake, state)
    for dataset in LANDED:
        if keys := sorted(changes.get(dataset.name, {})):
            stage.publish(TRANSFORMED, dataset, dataset.partition_by or "", keys)
    for date, files in plan.files.items():
        _record_date(lake, state, plan, date, files, candidates.messages[date])
    for name, entries in changes.items():
        state.tables.setdefault(name, {}).update(entries)
    merged.changed = {name: tuple(sorted(entries)) for name, entries in changes.items()}
    state.open = None
    _write_state(lake, state)


def _record_date(
    lake: LakeResource,
    state: _State,
    plan: _Plan,
    date: str,
    files: Sequence[LakeObject],
    messages: int,
) -> None:
    """Note which files of a date are in the star; the state says whether the note holds."""
    listed = plan.listed[date]
    names, taken = {entry.name for entry in files}, _read_note(lake, state, date)
    if taken and names.isdisjoint(taken):  # else the date was taken as a whole
        messages += state.dates[date][2]
    names |= taken  # those that are gone by now included: their rows stay
    fingerprint = _fingerprint(listed)
    lake.write_state(_note(date), {"fingerprint": fingerprint, "files": sorted(names)})
    state.dates[date] = [fingerprint, len(names), messages]


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]


def _built(plan: _Plan, state: _State, candidates: _Candidates, merged: _Merged) -> StarBuilt:
    messages = sum(candidates.messages.values())
    return StarBuilt(
        dates=tuple(sorted(plan.files)),
        files=sum(len(files) for files in plan.files.values()),
        messages=messages,
        written=merged.written,
        superseded_within=messages - candidates.items,
        superseded_by_later=merged.superseded_by_later,
        removed=merged.removed,
        gone=plan.gone,
        rows=state.rows(),
        changed=merged.changed,
    )

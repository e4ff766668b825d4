"""What Spark makes of messages: rows that may come into the star.

Here: how much one Spark job takes, and what is counted without Spark, so that it has to agree. Not
here: how a message becomes a row (transforms.py), what is there already (merge.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.defs.supply_chain.contract import CODE, MESSAGES, SourceColumn
from retail_assets.defs.supply_chain.star.sql import one, rows_of
from retail_assets.defs.supply_chain.transforms import (
    INGEST_DATE,
    STAGED_DATE,
    STAGED_DIMENSIONS,
    TYPED_COLUMNS,
    stage_orders,
    write_plainly,
)
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.exchange import Exchange
from retail_assets.resources.lake.staging import partition_folder
from retail_assets.resources.lake.tables import TableFile
from retail_assets.resources.spark import SparkResource

if TYPE_CHECKING:
    import duckdb
    from pyspark.sql import DataFrame

# What one Spark job takes: its memory goes with the bytes, 4 MiB being some 65,000 messages, its
# plan with the dates and the files.
_MOST_BYTES_A_JOB = 4 * 1024**2
_MOST_FILES_A_JOB = 1_000
_MOST_DATES_A_JOB = 32
_JOBS_AT_ONCE = 2

# Messages by the date on which they landed: the lake's files, and where each is on this machine.
Batch = Mapping[str, Sequence[tuple[TableFile, Path]]]


@dataclass
class Candidates:
    """Files of what Spark made of the messages: of the fact by date, of dimensions by name.

    ``items`` are the order items that the messages name; the database's table ``items`` has them.
    """

    orders: dict[str, list[Path]] = field(default_factory=dict)
    dimensions: dict[str, list[Path]] = field(default_factory=dict)
    items: int = 0


def stage_candidates(
    lake: LakeResource,
    spark: SparkResource,
    exchange: Exchange,
    database: "duckdb.DuckDBPyConnection",
    files: Mapping[str, Sequence[TableFile]],
) -> Candidates:
    """Rows of the messages of ``files`` by date, as many at a time as one Spark job takes."""
    candidates = Candidates()
    database.execute("create table items (order_item_id bigint primary key)")
    for number, taken in enumerate(_batches(files)):
        batch = {date: [(f, lake.local_file(f.name)) for f in on] for date, on in taken.items()}
        odd = _note_items(database, batch)
        messages = write_plainly(_read(lake, spark, exchange, batch), odd)
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
    (candidates.items,) = one(database, "select count(*) from items")
    return candidates


def _batches(
    files: Mapping[str, Sequence[TableFile]],
) -> Iterator[dict[str, list[TableFile]]]:
    """Files by date, as many together as one Spark job takes; a large date is cut."""
    batch: dict[str, list[TableFile]] = {}
    size = count = 0
    for date, found in files.items():
        for file in found:
            is_full = size + file.size > _MOST_BYTES_A_JOB or count == _MOST_FILES_A_JOB
            if batch and (is_full or len({*batch, date}) > _MOST_DATES_A_JOB):
                yield batch
                batch, size, count = {}, 0, 0
            batch.setdefault(date, []).append(file)
            size, count = size + file.size, count + 1
    if batch:
        yield batch


def _note_items(database: "duckdb.DuckDBPyConnection", batch: Batch) -> list[str]:
    """Note the messages' order items without Spark, which then has to agree.

    Returns the columns that hold texts which are not written in the plainest way.
    """
    messages = rows_of([path for found in batch.values() for _, path in found])
    database.execute(
        f"insert or ignore into items select distinct order_item_id::bigint from {messages}"
    )
    tests = ", ".join(f"coalesce(bool_or({_is_odd(c)}), false)" for c in TYPED_COLUMNS)
    found = one(database, f"select {tests} from {messages}")
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
    lake: LakeResource, spark: SparkResource, exchange: Exchange, batch: Batch
) -> "DataFrame":
    """Messages with the date on which they landed, which only their folder says."""
    from pyspark.sql import functions as F  # noqa: N812

    frames = []
    for date, found in batch.items():
        folder = f"{MESSAGES.location}/{partition_folder(MESSAGES, date)}/"
        objects = {entry.name: entry for entry in lake.list_objects(folder)}
        places = [exchange.place(path, objects.get(file.name)) for file, path in found]
        frames.append(spark.read_parquet(places, MESSAGES).withColumn(INGEST_DATE, F.lit(date)))
    return reduce(lambda left, right: left.unionAll(right), frames)

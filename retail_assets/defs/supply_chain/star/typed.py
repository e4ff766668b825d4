"""What Spark makes of messages: a row for each, with the values of all tables of the star.

Here: how much one Spark job takes, and what is found out without Spark: how texts are written, and
a total with which its rows have to agree. Not here: how a text becomes a value (transforms.py),
which message is the latest (merge.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.defs.supply_chain.contract import CODE, MESSAGES, SourceColumn
from retail_assets.defs.supply_chain.star.merge import one, rows_of
from retail_assets.defs.supply_chain.transforms import TYPED_COLUMNS, type_messages
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.exchange import Exchange
from retail_assets.resources.lake.staging import partition_folder
from retail_assets.resources.lake.tables import TableFile
from retail_assets.resources.spark import SparkResource

if TYPE_CHECKING:
    import duckdb

_JOBS_AT_ONCE = 2
# A job's memory goes with the bytes that it takes; these are some 32,000 messages.
_MOST_BYTES_A_JOB = 2 * 1024**2


def stage_messages(
    lake: LakeResource,
    spark: SparkResource,
    exchange: Exchange,
    database: "duckdb.DuckDBPyConnection",
    files: Mapping[str, Sequence[TableFile]],
) -> tuple[dict[str, list[Path]], int]:
    """Rows of the messages of ``files``, by the date on which they landed; their items' sum."""

    def stage(number: int, job: tuple[str, list[TableFile]]) -> tuple[str, list[Path], int]:
        date, taken = job
        folder = f"{MESSAGES.location}/{partition_folder(MESSAGES, date)}/"
        objects = {entry.name: entry for entry in lake.list_objects(folder)}
        local = {file.name: lake.local_file(file.name) for file in taken}
        odd, total = _look_at(database.cursor(), list(local.values()))
        places = [exchange.place(path, objects.get(name)) for name, path in local.items()]
        frame = type_messages(spark.read_parquet(places, MESSAGES), date, odd)
        written = spark.write(frame, exchange.target(f"typed-{number}"), [])
        return date, [file.path for file in written], total

    typed: dict[str, list[Path]] = {}
    total = 0
    with ThreadPoolExecutor(_JOBS_AT_ONCE) as pool:
        for date, paths, items in pool.map(stage, count(), _jobs(files)):
            typed.setdefault(date, []).extend(paths)
            total += items
    return typed, total


def _jobs(
    files: Mapping[str, Sequence[TableFile]],
) -> Iterator[tuple[str, list[TableFile]]]:
    """Files of a date, as many together as one Spark job takes."""
    for date, found in files.items():
        job: list[TableFile] = []
        for file in found:
            if job and sum(taken.size for taken in job) + file.size > _MOST_BYTES_A_JOB:
                yield date, job
                job = []
            job.append(file)
        yield date, job


def _look_at(database: "duckdb.DuckDBPyConnection", files: Sequence[Path]) -> tuple[list[str], int]:
    """Columns with texts that are not written in the plainest way, and the sum of the items."""
    tests = [f"coalesce(bool_or({_is_odd(column)}), false)" for column in TYPED_COLUMNS]
    *found, total = one(
        database,
        f"select {', '.join(tests)}, sum(order_item_id::bigint)"
        f" from {rows_of(files, MESSAGES.columns)}",
    )
    return [column.name for column, odd in zip(TYPED_COLUMNS, found, strict=True) if odd], total


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

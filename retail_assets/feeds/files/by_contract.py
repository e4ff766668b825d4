"""Raw files typed by the columns of their table, where a domain has no typing of its own.

Here: what feeds/typing.py makes of a file, as feeds/files takes it. Not here: the typing itself.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb

from retail_assets.errors import PermanentError
from retail_assets.feeds.files import FileTable
from retail_assets.feeds.files.listing import hash_file
from retail_assets.feeds.files.taking import Bad, RawFile, Room, Typed
from retail_assets.feeds.reading import ReadFiles
from retail_assets.feeds.typing import type_files

_BATCH_ROWS = 100_000


def type_by_contract(
    table: FileTable, room: Room, files: Mapping[str, RawFile]
) -> Iterator[tuple[str, Typed | PermanentError]]:
    """One file after the other, in DuckDB."""
    dataset = table.dataset
    for key, file in files.items():
        constants = {dataset.partition_by: key} if dataset.partition_by and table.is_dated else {}
        with room.lake.scratch() as scratch, duckdb.connect() as connection:
            typed, sha256 = scratch / "typed.parquet", hash_file(file.path)
            setting = f"dates of {dataset.table} in its feed.py"
            try:
                read = type_files(
                    connection,
                    [file.path],
                    dataset,
                    typed,
                    scratch / "unpacked",
                    dates=table.dates,
                    setting=setting,
                    constants=constants,
                )
            except PermanentError as error:
                yield key, error
            else:
                rows = connection.read_parquet(str(typed))
                yield key, _typed(table, rows, read, sha256, scratch / "rows.parquet")


def _typed(
    table: FileTable, rows: duckdb.DuckDBPyRelation, read: ReadFiles, sha256: str, target: Path
) -> Typed:
    import pyarrow.parquet as pq

    names, schema = table.dataset.column_names, table.dataset.arrow_schema
    good = rows.filter("_reason is null")
    columns = ", ".join(f'"{name}"' for name in names)
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for batch in good.project(columns).to_arrow_reader(_BATCH_ROWS):
            writer.write_batch(batch.cast(schema))
    ((written, copies),) = good.aggregate("count(*), coalesce(sum(_copies), 0)").fetchall()
    bad = [Bad(reason, text) for _, _, reason, text in read.rejected]
    for reason, left_out, text, times in (
        rows.filter("_reason is not null or _left_out is not null")
        .project("_reason, _left_out, _text, _copies")
        .fetchall()
    ):
        told = [Bad(reason, text)] * times if reason else []
        bad += told or [Bad(why, text, row_stays=True) for why in left_out]
    skipped = [*read.skipped, *(f"the column {name}" for name in read.extra)]
    return Typed(sha256, read.rows, written, copies - written, {"": [target]}, bad, skipped)

"""How raw files of the coffee chain are typed: small ones by pandas, large ones by Spark.

Here: what an engine is handed, and what comes back from it. Not here: how rows change
(transforms.py), what becomes of what was typed (feeds/files).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain.contract import CUSTOMER, OUTLET, PRODUCT, SALES
from retail_assets.defs.coffee_chain.transforms import (
    CUSTOMER_COLUMNS,
    LEFT_OUT,
    REJECTED,
    SALES_COLUMNS,
    STAGED,
    SmallTable,
    split_left_out,
    split_rejected,
    stage_customers,
    stage_sales,
    type_outlets,
    type_products,
    write_points,
    write_points_small,
)
from retail_assets.errors import PermanentError
from retail_assets.feeds.files import FileTable, TypeFiles
from retail_assets.feeds.files.taking import Bad, RawFile, Room, Typed
from retail_assets.resources.spark import SparkResource, WrittenFile
from retail_assets.resources.tabular import ScannedCsv, scan_csv

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

_SMALL_BYTES = 16 * 1024**2
Results = Iterator[tuple[str, Typed | PermanentError]]


@dataclass(frozen=True)
class ByPandas:
    """Types a file of few rows by ``type_rows``; ``numbers`` name the raw fields that have any."""

    type_rows: "Callable[[pd.DataFrame], SmallTable]"
    numbers: tuple[str, ...]

    def __call__(self, table: FileTable, room: Room, files: Mapping[str, RawFile]) -> Results:
        """One file after the other."""
        for key, file in files.items():
            with room.lake.scratch() as scratch:
                try:
                    scanned = scan_csv(file.path, table.header, scratch)
                except PermanentError as error:
                    yield key, error
                else:
                    yield key, self._typed(table, scanned, scratch / "rows.parquet")

    def _typed(self, table: FileTable, scanned: ScannedCsv, target: Path) -> Typed:
        import pandas as pd
        import pyarrow as pa
        import pyarrow.parquet as pq

        # By position: a copy's header has a name for the index.
        raw = pd.read_csv(scanned.file, dtype="string", keep_default_na=False, na_values=[""])
        raw = raw.set_axis(list(table.header), axis="columns")
        if scanned.delimiter != ",":
            raw = write_points_small(raw, self.numbers)
        typed = self.type_rows(raw)
        schema = table.dataset.arrow_schema
        rows = pa.Table.from_pandas(typed.rows, schema, preserve_index=False)
        pq.write_table(rows, target, compression="zstd")
        bad = [Bad(row.reason, row.text) for row in scanned.rejected]
        bad += [Bad(*told) for told in typed.rejected]
        bad += [Bad(*told, row_stays=True) for told in typed.left_out]
        counts = scanned.rows, rows.num_rows, typed.duplicates
        return Typed(scanned.sha256, *counts, {"": [target]}, bad, scanned.skipped)


@dataclass(frozen=True)
class BySpark:
    """Types drops by ``stage_rows``, as one frame.

    ``columns`` name the raw fields, ``numbers`` those that may have any; ``has_parts`` says that a
    part is a folder below the drop's.
    """

    stage_rows: "Callable[[DataFrame, str], DataFrame]"
    columns: tuple[str, ...]
    numbers: tuple[str, ...]
    has_parts: bool = False

    def __call__(self, table: FileTable, room: Room, files: Mapping[str, RawFile]) -> Results:
        """All files by one job."""
        spark: SparkResource = room.resources.spark
        with spark.exchange(room.lake, room.run_id) as exchange:
            scanned: dict[str, ScannedCsv] = {}
            for key, file in files.items():
                try:
                    scanned[key] = scan_csv(file.path, table.header, exchange.folder)
                except PermanentError as error:
                    yield key, error
            if not scanned:
                return
            frames = []
            for key, found in scanned.items():
                as_delivered = files[key].entry if found.file == files[key].path else None
                place = exchange.place(found.file, as_delivered)
                rows = spark.read_csv(place, self.columns, quoted=found.quoted)
                if found.delimiter != ",":
                    rows = write_points(rows, self.numbers)
                frames.append(self.stage_rows(rows, key))
            union = reduce(lambda left, right: left.unionAll(right), frames)
            written = spark.write(union, exchange.target("written"), STAGED)
            for key, found in scanned.items():
                of_drop = [file for file in written if file.values[0] == key]
                yield key, self._typed(table.dataset, found, of_drop)

    def _typed(
        self, dataset: Dataset, scanned: ScannedCsv, written: Iterable[WrittenFile]
    ) -> Typed:
        """What Spark wrote of one drop: good rows by part, and the rejected ones."""
        import pyarrow.parquet as pq

        rows = duplicates = 0
        bad = [Bad(row.reason, row.text) for row in scanned.rejected]
        parts: dict[str, list[Path]] = {}
        lines: set[str] = set()
        for file in written:
            _, part, copies = file.values
            if part == REJECTED:
                identities = pq.read_table(file.path, columns=[dataset.column_names[0]])[0]
                found = [Bad(*split_rejected(text)) for text in identities.to_pylist()]
                bad += found * int(copies)
                continue
            count = total = pq.read_metadata(file.path).num_rows
            if part.startswith(LEFT_OUT):
                part = part.removeprefix(LEFT_OUT)
                told = _restore_left_out(dataset, file.path, lines)
                bad += told
                count = len(told)
            rows += count
            duplicates += total * int(copies) - count
            parts.setdefault(part if self.has_parts else "", []).append(file.path)
        merged = {below: _merge_small(dataset, files) for below, files in parts.items()}
        counts = scanned.rows, rows, duplicates
        return Typed(scanned.sha256, *counts, merged, bad, scanned.skipped)


def _restore_left_out(dataset: Dataset, file: Path, lines: set[str]) -> list[Bad]:
    """Write a file of rows with values left out anew as rows of the table; what is told of each.

    ``lines`` are the identities that the drop's files had so far: of copies, one stays.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(file, partitioning=None).cast(dataset.arrow_schema)
    found = [split_left_out(packed) for packed in table[0].to_pylist()]
    kept = []
    for number in sorted(range(len(found)), key=found.__getitem__):
        if found[number].line_id not in lines:
            lines.add(found[number].line_id)
            kept.append(number)
    rows = table.set_column(
        0, dataset.arrow_schema.field(0), pa.array([row.row_id for row in found])
    ).take(pa.array(kept, pa.int64()))
    pq.write_table(rows, file, compression="zstd")
    return [Bad(found[number].reason, found[number].text, row_stays=True) for number in kept]


def _merge_small(dataset: Dataset, files: list[Path]) -> list[Path]:
    """One file in place of several small ones: copies and tasks have files of their own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if len(files) < 2 or sum(file.stat().st_size for file in files) > _SMALL_BYTES:
        return files
    tables = [pq.read_table(file, partitioning=None) for file in files]
    merged = pa.concat_tables(table.cast(dataset.arrow_schema) for table in tables)
    pq.write_table(merged, files[0], compression="zstd")
    return files[:1]


CUSTOMER_DROPS = BySpark(stage_customers, CUSTOMER_COLUMNS, ("customer_id",))
SALES_DROPS = BySpark(
    stage_sales,
    SALES_COLUMNS,
    ("customer_id", "outlet_id", "product_id", "quantity"),
    has_parts=True,
)
TYPINGS: dict[Dataset, TypeFiles] = {
    OUTLET: ByPandas(type_outlets, ("outlet_id", "postcode")),
    PRODUCT: ByPandas(type_products, ("no", "product_id", "product_price")),
    CUSTOMER: CUSTOMER_DROPS,
    SALES: SALES_DROPS,
}

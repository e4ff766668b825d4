"""A domain of files that is no domain of the project's: visitors of a shop, and its doors."""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from retail_assets.dataset import Column, Dataset
from retail_assets.errors import PermanentError
from retail_assets.feeds.files import FileFeed, FileTable
from retail_assets.feeds.files.taking import Bad, RawFile, Room, Typed

DAY = Column("drop_date", "date", "Date of the file; the partition.")
VISITS = Dataset(
    schema="shop",
    name="visits",
    description="Visitors by door and day.",
    partition_by="drop_date",
    columns=(
        Column("door", "string", "Door.", key=True),
        Column("visitors", "int64", "Visitors."),
        DAY,
    ),
)
RETURNS = Dataset(
    schema="shop",
    name="returns",
    description="Returns by door and day.",
    partition_by="drop_date",
    columns=VISITS.columns,
)
DOORS = Dataset(
    schema="shop",
    name="doors",
    description="Doors.",
    columns=(Column("door", "string", "Door.", key=True), Column("visitors", "int64", "At most.")),
)


class NoTableError(PermanentError):
    """A file has no header."""


def type_files(
    table: FileTable, room: Room, files: Mapping[str, RawFile]
) -> Iterator[tuple[str, Typed | PermanentError]]:
    """Types "door,visitors": rows without a number are bad, and copies left out."""
    with room.lake.scratch() as folder:
        for key, file in files.items():
            yield key, _typed(table, key, file.path, folder / f"{key or 'all'}.parquet")


def _typed(table: FileTable, key: str, file: Path, target: Path) -> Typed | PermanentError:
    content = file.read_bytes()
    if not content.startswith(b"door,visitors\n"):
        return NoTableError(f"{file.name} has no header door,visitors.")
    kinds = pacsv.ConvertOptions(column_types={"door": pa.string(), "visitors": pa.string()})
    text = pacsv.read_csv(file, convert_options=kinds)
    is_good = pc.match_substring_regex(text["visitors"], "^[0-9]+$")
    rows = text.filter(is_good).group_by(["door", "visitors"]).aggregate([])
    columns = {"door": rows["door"], "visitors": pc.cast(rows["visitors"], pa.int64())}
    if table.is_dated:
        columns["drop_date"] = pc.cast(pa.repeat(key, rows.num_rows), pa.date32())
    pq.write_table(pa.table(columns, schema=table.dataset.arrow_schema), target)
    bad = [
        Bad("visitors: expected a number", f"{row['door']},{row['visitors']}")
        for row in text.filter(pc.invert(is_good)).to_pylist()
    ]
    return Typed(
        sha256(content).hexdigest(),
        text.num_rows,
        rows.num_rows,
        text.num_rows - rows.num_rows - len(bad),
        {"": [target]},
        bad,
    )


OF_VISITS = FileTable(VISITS, "raw/shop/visits_{date}.csv", type_files)
OF_RETURNS = FileTable(RETURNS, "raw/shop/returns_{date}.csv", type_files)
OF_DOORS = FileTable(DOORS, "raw/shop/doors.csv", type_files)


def shop(*tables: FileTable) -> FileFeed:
    """The domain, of some of its tables."""
    return FileFeed("shop", tables)


def deliver(lake: Path, table: FileTable, key: str, *rows: str) -> Path:
    """Write a raw file."""
    path = lake / table.file_name(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["door,visitors", *rows, ""]))
    return path

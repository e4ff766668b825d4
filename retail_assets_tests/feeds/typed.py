"""A row of a file as a feed types it by its contract, for the tests of domains."""

import csv
import tempfile
from collections.abc import Mapping
from pathlib import Path

import duckdb

from retail_assets.feeds.files import FileFeed
from retail_assets.feeds.snapshot import SnapshotFeed
from retail_assets.feeds.typing import type_files


def type_row(
    feed: FileFeed | SnapshotFeed, texts: Mapping[str, str], delimiter: str = ",", **constants: str
) -> Mapping[str, str | None]:
    """What becomes of a row whose texts are under these headers, as text.

    Raises:
        AssertionError: it is quarantined, or a value of it is left out; it says why.
    """
    dataset = feed.datasets[0]
    dates = feed.tables[0].dates if isinstance(feed, FileFeed) else feed.dates
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        file, target = Path(folder, "row.csv"), Path(folder, "typed.parquet")
        with file.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, delimiter=delimiter).writerows([texts.keys(), texts.values()])
        type_files(
            *(connection, [file], dataset, target, Path(folder, "scratch")),
            dates=dates,
            constants=constants,
        )
        (row,) = connection.read_parquet(str(target)).to_arrow_table().to_pylist()
    assert (row["_reason"], row["_left_out"]) == (None, None)
    return {x: None if row[x] is None else str(row[x]) for x in dataset.column_names}

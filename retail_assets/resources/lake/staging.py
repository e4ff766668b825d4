"""A run's files on their way into tables: written aside, then put where their table lies, and
committed.

Here: one stage for every lake. Not here: the commit itself (tables.py), files that an engine
writes (resources/spark.py).
"""  # noqa: D205

import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from retail_assets.dataset import Dataset
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.tables import LakeTable, NewFile
from retail_assets.resources.lake.vacuum import delete_replaced, vacuum_now_and_then

if TYPE_CHECKING:
    import pyarrow as pa

    from retail_assets.resources.lake.vacuum import Sweeper

    class Home(Sweeper, Protocol):
        """What a stage asks of the lake that it is for."""

        def table(self, dataset: Dataset) -> LakeTable:
            """The table of a dataset."""
            ...

        def put_files(self, files: Mapping[str, Path]) -> None:
            """Make local files, which are given up, objects of those names."""
            ...


_WRITERS = 2


@dataclass(frozen=True)
class _Staged:
    key: str
    below: str
    file: Path
    rows: int


class Stage:
    """Files of a run that no reader sees; ``publish`` makes them partitions of their table."""

    def __init__(self, lake: "Home", folder: Path, run_id: str, asset: str = "") -> None:
        self._lake = lake
        self._folder = folder
        self._run_id, self._asset = run_id, asset
        self._staged: dict[str, list[_Staged]] = {}

    def write_partitions(
        self, dataset: Dataset, partitions: "Iterable[tuple[str, pa.Table]]"
    ) -> dict[str, int]:
        """Write one file a partition; returns the rows of each. Order and bytes are repeatable.

        A table without partitions is one partition, of the key "".
        """
        rows: dict[str, int] = {}
        waiting: list[Future[None]] = []
        with ThreadPoolExecutor(_WRITERS) as pool:
            for key, table in partitions:
                rows[key] = table.num_rows
                file = self._new_file()
                self._note(dataset, _Staged(key, "", file, table.num_rows))
                waiting.append(pool.submit(_write, table, file))
                if len(waiting) > 2 * _WRITERS:  # bounds the memory of a long range
                    waiting.pop(0).result()
            for future in waiting:
                future.result()
        return rows

    def adopt(self, dataset: Dataset, key: str, files: Sequence[Path], below: str = "") -> None:
        """Take local Parquet files that an engine wrote, which are given up, into a partition.

        ``below`` is the folder below the partition's that they are to lie in, such as 2018.

        Raises:
            ValueError: ``below`` is column=value. Polars reads no table that has such a folder for
                a column by which it is not partitioned.
        """
        import pyarrow.parquet as pq

        if "=" in below:
            raise ValueError(f"{dataset.table}: folder {below!r}; expected a name without '='")
        for file in files:
            taken = self._new_file()
            rows = pq.read_metadata(file).num_rows
            shutil.move(file, taken)
            self._note(dataset, _Staged(key, below, taken, rows))

    def publish(
        self,
        dataset: Dataset,
        keys: Iterable[str],
        ledgers: Mapping[str, Ledger] | None = None,
        told: Mapping[str, object] | None = None,
        transactions: Mapping[str, tuple[int | None, int]] | None = None,
    ) -> int:
        """Replace the partitions ``keys`` by what was staged of them; those not staged are empty.

        A reader sees all as it was before or all as it is after, never a mixture. ``ledgers`` are
        theirs, of those that have one: of one without rows too, a file without rows says it.
        ``told`` and ``transactions`` are ``LakeTable.commit``'s. Returns the table's version.
        """
        asked, said = set(keys), ledgers or {}
        staged = [x for x in self._staged.pop(dataset.location, []) if x.key in asked]
        for key in sorted(said.keys() - {x.key for x in staged}):
            file = self._new_file()
            _write(dataset.arrow_schema.empty_table(), file)
            staged.append(_Staged(key, "", file, 0))
        token = f"{self._run_id[:8]}-{uuid.uuid4().hex[:16]}"
        new: list[NewFile] = []
        moves: dict[str, Path] = {}
        for number, item in enumerate(sorted(staged, key=lambda x: (x.key, x.below, x.file))):
            ledger = said.get(item.key)
            token_of = f"{token}-{number}"
            name = ledger.file_name(token_of) if ledger else f"{token_of}.parquet"
            place = [partition_folder(dataset, item.key), item.below, name]
            name = "/".join(part for part in place if part)
            new.append(NewFile(name, item.key, item.rows, item.file.stat().st_size))
            moves[f"{dataset.location}/{name}"] = item.file
        table = self._lake.table(dataset)
        self._lake.put_files(moves)
        version, replaced = table.commit(
            new,
            replace=asked,
            told={
                "run_id": self._run_id,
                "asset": self._asset,
                "rows_written": sum(file.rows for file in new),
                **_totals(said),
                **(told or {}),
            },
            transactions=transactions,
        )
        delete_replaced(self._lake, replaced)
        vacuum_now_and_then(self._lake, table)
        return version

    def _note(self, dataset: Dataset, staged: _Staged) -> None:
        self._staged.setdefault(dataset.location, []).append(staged)

    def _new_file(self) -> Path:
        return self._folder / f"{uuid.uuid4().hex}.parquet"


def partition_folder(dataset: Dataset, key: str) -> str:
    """``column=key``; "" for a table without partitions, which lies in its own folder.

    Raises:
        ValueError: there is a key and no column, or a column and no key.
    """
    column = dataset.lake_partition
    if bool(column) != bool(key):
        raise ValueError(
            f"{dataset.table}: partition {key!r}; expected a key where the table has partitions,"
            " and '' where it has none"
        )
    return f"{column.name}={key}" if column else ""


def _write(table: "pa.Table", file: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, file, compression="zstd")


def _totals(ledgers: Mapping[str, Ledger]) -> dict[str, int]:
    """What the ledgers come to; each partition's own is in its files' names."""
    if not ledgers:
        return {}
    return {
        "partitions": len(ledgers),
        "rows_read": sum(x.read for x in ledgers.values()),
        "duplicates": sum(x.duplicates for x in ledgers.values()),
        "quarantined": sum(x.quarantined for x in ledgers.values()),
        "values_left_out": sum(x.left_out for x in ledgers.values()),
    }


def split_by_partition(
    batches: "Iterable[pa.RecordBatch]", column: str, schema: "pa.Schema"
) -> "Iterator[tuple[str, pa.Table]]":
    """Cut batches that are ordered by ``column`` into (key, table), one table a key."""
    import pyarrow as pa
    import pyarrow.compute as pc

    key: str | None = None
    pieces: list[pa.RecordBatch] = []

    def table() -> "pa.Table":
        return pa.Table.from_batches(pieces).select(schema.names).cast(schema).combine_chunks()

    for batch in batches:
        if batch.num_rows == 0:
            continue
        runs = pc.run_end_encode(batch.column(column))
        start = 0
        for value, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
            if str(value) != key:
                if key is not None:
                    yield key, table()
                key, pieces = str(value), []
            pieces.append(batch.slice(start, end - start))
            start = end
    if key is not None:
        yield key, table()

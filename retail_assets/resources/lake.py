"""The lake: where raw files, processed partitions, quarantine and manifests lie.

Here: paths, whole-partition replacement, small state objects, locks. Not here: what rows mean
(defs/), how a source file is read (tabular.py, download.py).
"""

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import dagster as dg

from retail_assets.dataset import Dataset
from retail_assets.errors import PermanentError, TransientError
from retail_assets.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

_PART = "part-0.parquet"
_STALE_STAGE_SECONDS = 7 * 24 * 3600
_WRITERS = 2


class LakeBusyError(TransientError):
    """Another run held a lock of the lake for longer than this one waits."""


class BrokenStateError(PermanentError):
    """A state object in the lake is not readable."""


class LakeResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """A lake below a local folder; ``processed/<schema>/<table>/**/*.parquet`` is the table.

    A partition is ``<column>=<key>`` holding one file of a fixed name, so that replacing it is
    one atomic rename. Staging (``_stage``) and state (``_state``) lie outside the tables.
    """

    root: str

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The lake that the settings name."""
        return cls(root=settings.lake)

    def path(self, relative: str) -> Path:
        """The local path of a location given relative to the lake's root."""
        return Path(self.root) / relative

    def partition_path(self, zone: str, dataset: Dataset, column: str, key: str) -> Path:
        """Folder of a partition in ``processed`` or ``quarantine``."""
        return self.path(f"{zone}/{dataset.schema}/{dataset.name}/{column}={key}")

    def partition_uris(self, dataset: Dataset, keys: Iterable[str]) -> list[str]:
        """Parquet files of the processed partitions ``keys``, those that are not empty."""
        assert dataset.partition_by is not None
        files = (
            self.partition_path("processed", dataset, dataset.partition_by, key) / _PART
            for key in keys
        )
        return [str(file) for file in files if file.exists()]

    def partition_rows(
        self, zone: str, dataset: Dataset, column: str, keys: Iterable[str]
    ) -> dict[str, int]:
        """Rows of each partition as its file's footer counts them; 0 where there is no file."""
        import pyarrow.parquet as pq

        rows = {}
        for key in keys:
            file = self.partition_path(zone, dataset, column, key) / _PART
            rows[key] = pq.read_metadata(file).num_rows if file.exists() else 0
        return rows

    @contextmanager
    def staging(self, run_id: str) -> Iterator["Stage"]:
        """A place for a run to write before it publishes; gone afterwards, whatever happened."""
        parent = self.path("_stage/runs")
        parent.mkdir(parents=True, exist_ok=True)
        for old in parent.iterdir():  # what a killed run left behind
            with suppress(FileNotFoundError):  # another run may be ending
                if time.time() - old.stat().st_mtime > _STALE_STAGE_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)
        folder = parent / f"{run_id}-{os.getpid()}-{time.monotonic_ns()}"
        folder.mkdir()
        try:
            yield Stage(self, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def read_state(self, name: str) -> dict[str, Any] | None:
        """The state object ``name``, or None where there is none.

        Raises:
            BrokenStateError: it is there and is not JSON; the message says how to rebuild it.
        """
        path = self.path(f"_state/{name}.json")
        try:
            return json.loads(path.read_text())  # type: ignore[no-any-return]
        except FileNotFoundError:
            return None
        except ValueError as error:  # no JSON, or no text
            raise BrokenStateError(
                f"{path} is no JSON ({error}). Delete it: the next run of its asset rebuilds it."
            ) from error

    def write_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Replace the state object ``name`` as a whole."""
        path = self.path(f"_state/{name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(state, indent=1, sort_keys=True) + "\n")
        temporary.replace(path)

    @contextmanager
    def lock(self, name: str, timeout_s: float = 3600) -> Iterator[None]:
        """Hold the lake's lock ``name``; other runs, in any process, wait.

        Raises:
            LakeBusyError: another run held it for ``timeout_s`` seconds.
        """
        from filelock import FileLock, Timeout

        path = self.path(f"_state/{name}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path, timeout=timeout_s):
                yield
        except Timeout as error:
            raise LakeBusyError(
                f"{path} was held by another run for {timeout_s:.0f} s. See the runs in progress"
                " in the UI; end the one that hangs and run this again."
            ) from error


class Stage:
    """Partitions written but not yet seen by a reader; ``publish`` moves them in."""

    def __init__(self, lake: LakeResource, folder: Path) -> None:
        self._lake = lake
        self.folder = folder

    def write_partitions(
        self,
        zone: str,
        dataset: Dataset,
        column: str,
        partitions: "Iterable[tuple[str, pa.Table]]",
    ) -> dict[str, int]:
        """Write one file a partition; returns the rows of each. Order and bytes are repeatable."""
        import pyarrow.parquet as pq

        rows: dict[str, int] = {}
        waiting: list[Future[None]] = []

        def write(key: str, table: "pa.Table") -> None:
            folder = self._partition(zone, dataset, column, key)
            folder.mkdir(parents=True)
            pq.write_table(table, folder / _PART, compression="zstd")

        with ThreadPoolExecutor(_WRITERS) as pool:
            for key, table in partitions:
                rows[key] = table.num_rows
                waiting.append(pool.submit(write, key, table))
                if len(waiting) > 2 * _WRITERS:  # bounds the memory of a long range
                    waiting.pop(0).result()
            for future in waiting:
                future.result()
        return rows

    def publish(self, zone: str, dataset: Dataset, column: str, keys: Sequence[str]) -> None:
        """Replace the partitions ``keys`` by what was staged; those not staged become empty.

        A reader sees each partition as it was before or as it is after, never a mixture.
        """
        for key in keys:
            staged = self._partition(zone, dataset, column, key) / _PART
            target = self._lake.partition_path(zone, dataset, column, key)
            if staged.exists():
                target.mkdir(parents=True, exist_ok=True)
                staged.replace(target / _PART)
                for file in target.iterdir():  # a reader counts every file of the folder
                    if file.is_dir():
                        shutil.rmtree(file)
                    elif file.name != _PART:
                        file.unlink()
            elif target.exists():
                shutil.rmtree(target)

    def _partition(self, zone: str, dataset: Dataset, column: str, key: str) -> Path:
        return self.folder / zone / dataset.name / f"{column}={key}"


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

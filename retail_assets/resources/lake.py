"""The lake: where raw files, processed partitions, quarantine and manifests lie.

Here: what a lake can do, and the lake of a local folder: names, whole-partition replacement,
small state objects, locks. Not here: the lake of a bucket (lake_gcs.py), what rows mean (defs/),
how a source file is read (tabular.py, download.py).
"""

import json
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import dagster as dg

from retail_assets.dataset import Dataset
from retail_assets.errors import PermanentError, TransientError
from retail_assets.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

_PART = "part-0.parquet"
_STALE_STAGE_SECONDS = 7 * 24 * 3600


class LakeBusyError(TransientError):
    """Another run held a lock of the lake for longer than this one waits."""


class BrokenStateError(PermanentError):
    """A state object in the lake is not readable."""


@dataclass(frozen=True)
class LakeObject:
    """One object of the lake: where it is, and what tells this version of it from others.

    ``name`` is relative to the lake's root; ``version`` is a generation, or size and time.
    """

    name: str
    size: int
    version: str


class LakeResource(dg.ConfigurableResource, ABC):  # type: ignore[type-arg]
    """A lake: objects by name below ``root``, and tables of whole partitions among them.

    Names are relative to the root. ``processed/<schema>/<table>/`` is the table; staging
    (``_stage``) and state (``_state``) lie outside.
    """

    root: str

    @staticmethod
    def of(settings: Settings) -> "LakeResource":
        """The lake that the settings name."""
        if settings.lake.startswith("gs://"):
            from retail_assets.resources.lake_gcs import GcsLake

            return GcsLake.of(settings)
        return LocalLake(root=settings.lake)

    def uri(self, name: str) -> str:
        """A location as other programs know it."""
        return f"{self.root}/{name}"

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""

    @abstractmethod
    def list_objects(self, prefix: str, start: str = "") -> "Iterator[LakeObject]":
        """Objects whose name begins with ``prefix``, by name, from the name ``start`` on."""

    @abstractmethod
    def local_file(self, name: str) -> Path:
        """A local file with the object's bytes: itself, or a copy that is kept.

        For objects that are never replaced; the file is not to be changed.

        Raises:
            FileNotFoundError: there is no such object.
        """

    @abstractmethod
    def put_file(self, name: str, file: Path) -> None:
        """Make a local file, which is given up, the object of that name; as a whole or not."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""

    @abstractmethod
    def scratch(self) -> AbstractContextManager[Path]:
        """A local folder for files on their way into the lake; gone afterwards."""

    @abstractmethod
    def partition_uris(self, dataset: Dataset, keys: Iterable[str]) -> list[str]:
        """Parquet files of the processed partitions ``keys``, those that are not empty."""

    @abstractmethod
    def local_copies(self, uris: Sequence[str]) -> list[str]:
        """Local files of what ``partition_uris`` named, for a reader that knows no bucket."""

    @abstractmethod
    def partition_rows(
        self, zone: str, dataset: Dataset, column: str, keys: Iterable[str]
    ) -> dict[str, int]:
        """Rows of each partition, in ``processed`` or ``quarantine``; 0 where it is empty."""

    @abstractmethod
    def read_schema(self, uri: str) -> "pa.Schema":
        """Arrow schema of one of the Parquet files that ``partition_uris`` names."""

    @abstractmethod
    def staging(self, run_id: str) -> AbstractContextManager["Stage"]:
        """A place for a run to write before it publishes; gone afterwards, whatever happened."""

    def read_state(self, name: str) -> dict[str, Any] | None:
        """The state object ``name``, or None where there is none.

        Raises:
            BrokenStateError: it is there and is not JSON; the message says how to rebuild it.
        """
        location = f"_state/{name}.json"
        try:
            text = self._read_text(location)
            return None if text is None else json.loads(text)
        except ValueError as error:  # no JSON, or no text
            raise BrokenStateError(
                f"{self.uri(location)} is no JSON ({error}). Delete it: the next run of its asset"
                " rebuilds it."
            ) from error

    def write_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Replace the state object ``name`` as a whole."""
        text = json.dumps(state, indent=1, sort_keys=True) + "\n"
        self._write_text(f"_state/{name}.json", text)

    @abstractmethod
    def _read_text(self, name: str) -> str | None: ...

    @abstractmethod
    def _write_text(self, name: str, text: str) -> None: ...

    @abstractmethod
    def lock(self, name: str, timeout_s: float = 3600) -> AbstractContextManager[None]:
        """Hold the lake's lock ``name``; other runs, in any process, wait.

        Raises:
            LakeBusyError: another run held it for ``timeout_s`` seconds.
        """


class Stage(ABC):
    """Partitions written but not yet seen by a reader; ``publish`` moves them in."""

    def write_partitions(
        self,
        zone: str,
        dataset: Dataset,
        column: str,
        partitions: "Iterable[tuple[str, pa.Table]]",
    ) -> dict[str, int]:
        """Write one file a partition; returns the rows of each. Order and bytes are repeatable."""
        rows: dict[str, int] = {}
        waiting: list[Future[None]] = []
        with ThreadPoolExecutor(self.writers) as pool:
            for key, table in partitions:
                rows[key] = table.num_rows
                waiting.append(pool.submit(self._write, zone, dataset, f"{column}={key}", table))
                if len(waiting) > 2 * self.writers:  # bounds the memory of a long range
                    waiting.pop(0).result()
            for future in waiting:
                future.result()
        return rows

    writers = 2

    @abstractmethod
    def _write(self, zone: str, dataset: Dataset, partition: str, table: "pa.Table") -> None: ...

    @abstractmethod
    def publish(self, zone: str, dataset: Dataset, column: str, keys: Sequence[str]) -> None:
        """Replace the partitions ``keys`` by what was staged; those not staged become empty.

        A reader sees each partition as it was before or as it is after, never a mixture.
        """


class LocalLake(LakeResource):
    """A lake below a local folder; ``processed/<schema>/<table>/**/*.parquet`` is the table.

    A partition is ``<column>=<key>`` holding one file of a fixed name, so that replacing it is
    one atomic rename.
    """

    def path(self, name: str) -> Path:
        """The file behind a name."""
        return Path(self.root) / name

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return self.path(name).is_file()

    def list_objects(self, prefix: str, start: str = "") -> Iterator[LakeObject]:
        """Files whose name begins with ``prefix``, by name, from the name ``start`` on."""
        folder = self.path(prefix if prefix.endswith("/") else str(PurePosixPath(prefix).parent))
        files = (file for file in folder.rglob("*") if file.is_file())
        for name, file in sorted((file.relative_to(self.root).as_posix(), file) for file in files):
            if name.startswith(prefix) and name >= start:
                found = file.stat()
                yield LakeObject(name, found.st_size, f"{found.st_size}-{found.st_mtime_ns}")

    def local_file(self, name: str) -> Path:
        """The file itself."""
        path = self.path(name)
        if not path.is_file():
            raise FileNotFoundError(str(path))
        return path

    def put_file(self, name: str, file: Path) -> None:
        """Move the file in by one rename; it must lie on the lake's file system (``scratch``)."""
        target = self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        self.path(name).unlink(missing_ok=True)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the lake's own file system, so that files move in by renaming."""
        parent = self.path("_stage/scratch")
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        folder = parent / f"{os.getpid()}-{time.monotonic_ns()}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def partition_path(self, zone: str, dataset: Dataset, column: str, key: str) -> Path:
        """Folder of a partition in ``processed`` or ``quarantine``."""
        return self.path(f"{zone}/{dataset.folder}/{column}={key}")

    def partition_uris(self, dataset: Dataset, keys: Iterable[str]) -> list[str]:
        """Parquet files of the processed partitions ``keys``, those that are not empty."""
        assert dataset.partition_by is not None
        files = (
            self.partition_path("processed", dataset, dataset.partition_by, key) / _PART
            for key in keys
        )
        return [str(file) for file in files if file.exists()]

    def local_copies(self, uris: Sequence[str]) -> list[str]:
        """The files themselves."""
        return list(uris)

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

    def read_schema(self, uri: str) -> "pa.Schema":
        """Arrow schema of a Parquet file."""
        import pyarrow.parquet as pq

        return pq.read_schema(uri)

    @contextmanager
    def staging(self, run_id: str) -> Iterator["LocalStage"]:
        """A folder of the lake for a run to write to before it publishes."""
        parent = self.path("_stage/runs")
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        folder = parent / f"{run_id}-{os.getpid()}-{time.monotonic_ns()}"
        folder.mkdir()
        try:
            yield LocalStage(self, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _read_text(self, name: str) -> str | None:
        try:
            return self.path(name).read_text()
        except FileNotFoundError:
            return None

    def _write_text(self, name: str, text: str) -> None:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(text)
        temporary.replace(path)

    @contextmanager
    def lock(self, name: str, timeout_s: float = 3600) -> Iterator[None]:
        """Hold a lock file; other runs, in any process, wait."""
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


def _sweep(parent: Path) -> None:
    """Remove what killed runs left behind."""
    for old in parent.iterdir():
        with suppress(FileNotFoundError):  # another run may be ending
            if time.time() - old.stat().st_mtime > _STALE_STAGE_SECONDS:
                shutil.rmtree(old, ignore_errors=True)


class LocalStage(Stage):
    """Partitions staged in a folder of the lake: publishing one is a rename."""

    def __init__(self, lake: LocalLake, folder: Path) -> None:
        self._lake = lake
        self.folder = folder

    def _write(self, zone: str, dataset: Dataset, partition: str, table: "pa.Table") -> None:
        import pyarrow.parquet as pq

        folder = self.folder / zone / dataset.name / partition
        folder.mkdir(parents=True)
        pq.write_table(table, folder / _PART, compression="zstd")

    def publish(self, zone: str, dataset: Dataset, column: str, keys: Sequence[str]) -> None:
        """Rename each staged partition into its place; see ``Stage.publish``."""
        for key in keys:
            staged = self.folder / zone / dataset.name / f"{column}={key}" / _PART
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

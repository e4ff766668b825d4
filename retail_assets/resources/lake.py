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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from retail_assets.dataset import Dataset
from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.waiting import HeldError, lock_file
from retail_assets.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

_PART = "part-0.parquet"
_STALE_STAGE_SECONDS = 7 * 24 * 3600


class LakeBusyError(TransientError):
    """Another run held a lock of the lake for longer than this one waits."""


class ReplacedError(TransientError):
    """An object was replaced while an engine read it."""


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


@dataclass(frozen=True)
class RemoteFolder:
    """A folder that an engine writes by its ``uri``; ``fetch`` brings what it wrote here."""

    uri: str
    fetch: Callable[[], Path]


class Exchange:
    """What this process and an engine hand to each other: files that both see, here in ``folder``.

    Nothing is copied. Where an engine cannot see them, the lake has an exchange of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, file: Path, of: LakeObject | None = None) -> Path | str:
        """Where an engine reads a local file: a path, or a URI.

        ``of`` is the object whose bytes the file has, if it is one's: that need not be copied.
        """
        return file

    def target(self, name: str) -> Path | RemoteFolder:
        """A folder for an engine to write to, which is not there yet."""
        return self.folder / name


class LakeResource(dg.ConfigurableResource, ABC):  # type: ignore[type-arg]
    """A lake: objects by name below ``root``, and tables of whole partitions among them.

    Names are relative to the root. ``processed/<domain>/<table>/`` is the table; staging
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

    @contextmanager
    def exchange(self, run_id: str, *, cluster: bool) -> Iterator[Exchange]:
        """Hand files to an engine and back; gone afterwards, whatever happened.

        ``cluster`` says that the engine runs elsewhere: all that it shares with this process is
        the lake.
        """
        with self.scratch() as folder:
            yield Exchange(folder)

    @abstractmethod
    def partition_uris(self, dataset: Dataset, keys: Iterable[str]) -> list[str]:
        """Parquet files of the partitions ``keys`` in the dataset's zone, those not empty.

        A table without partitions is one partition, of the key "".
        """

    @abstractmethod
    def table_files(self, zone: str, dataset: Dataset) -> list[str]:
        """Names of all Parquet files of a table in ``processed`` or ``quarantine``, in order."""

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
        """Write one file a partition; returns the rows of each. Order and bytes are repeatable.

        Without a ``column`` the table is one partition, of the key "".
        """
        rows: dict[str, int] = {}
        waiting: list[Future[None]] = []
        with ThreadPoolExecutor(self.writers) as pool:
            for key, table in partitions:
                rows[key] = table.num_rows
                partition = partition_folder(column, key)
                waiting.append(pool.submit(self._write, zone, dataset, partition, table))
                if len(waiting) > 2 * self.writers:  # bounds the memory of a long range
                    waiting.pop(0).result()
            for future in waiting:
                future.result()
        return rows

    writers = 2

    @abstractmethod
    def _write(self, zone: str, dataset: Dataset, partition: str, table: "pa.Table") -> None: ...

    @abstractmethod
    def adopt(self, zone: str, dataset: Dataset, folder: str, files: Sequence[Path]) -> None:
        """Take local Parquet files that an engine wrote, which are given up.

        ``folder`` is the partition's ("" where there are none), with those below it:
        drop_date=2018-06-30/sale_year=2018.
        """

    @abstractmethod
    def publish(self, zone: str, dataset: Dataset, column: str, keys: Sequence[str]) -> None:
        """Replace the partitions ``keys`` by what was staged; those not staged become empty.

        A reader sees each partition as it was before or as it is after, never a mixture.
        """


def partition_folder(column: str, key: str) -> str:
    """``column=key``; "" for a table without partitions, which lies in its own folder.

    Raises:
        ValueError: there is a key and no column, or a column and no key.
    """
    if bool(column) != bool(key):
        raise ValueError(
            f"partition {key!r} by column {column!r}: expected both, or neither for a table"
            " without partitions, whose one key is ''"
        )
    return f"{column}={key}" if column else ""


class LocalLake(LakeResource):
    """A lake below a local folder; ``processed/<domain>/<table>/**/*.parquet`` is the table.

    A partition is the folder ``<column>=<key>``. Where it holds one file of a fixed name, and is
    to hold one, that is replaced by one atomic rename. Any other folder is moved out and the new
    one in: between these two renames a reader, or a run that was killed, finds nothing; never a
    mixture.
    """

    def path(self, name: str) -> Path:
        """The file behind a name."""
        return Path(self.root) / name

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return self.path(name).is_file()

    def list_objects(self, prefix: str, start: str = "") -> Iterator[LakeObject]:
        """Files whose name begins with ``prefix``, by name, from the name ``start`` on."""
        folder = prefix[: prefix.rfind("/") + 1]
        # scandir, for a folder may hold 100,000 files: paths as objects would take seconds.
        found = [
            (name, entry)
            for name, entry in _scan(os.path.join(self.root, folder), folder)
            if name.startswith(prefix) and name >= start
        ]
        for name, entry in sorted(found, key=itemgetter(0)):
            try:
                stat = entry.stat()
            except FileNotFoundError:  # removed since
                continue
            yield LakeObject(name, stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}")

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
        return self.path(f"{zone}/{dataset.folder}") / partition_folder(column, key)

    def partition_uris(self, dataset: Dataset, keys: Iterable[str]) -> list[str]:
        """Parquet files of the partitions ``keys`` in the dataset's zone, those not empty."""
        column = dataset.partition_by or ""
        return [
            str(file)
            for key in keys
            for file in _parquet_files(self.partition_path(dataset.zone, dataset, column, key))
        ]

    def table_files(self, zone: str, dataset: Dataset) -> list[str]:
        """Names of all Parquet files of a table in ``processed`` or ``quarantine``, in order."""
        found = _scan(str(self.path(f"{zone}/{dataset.folder}")), f"{zone}/{dataset.folder}/")
        return sorted(name for name, _ in found if name.endswith(".parquet"))

    def local_copies(self, uris: Sequence[str]) -> list[str]:
        """The files themselves."""
        return list(uris)

    def partition_rows(
        self, zone: str, dataset: Dataset, column: str, keys: Iterable[str]
    ) -> dict[str, int]:
        """Rows of each partition as its files' footers count them; 0 where there is no file."""
        import pyarrow.parquet as pq

        return {
            key: sum(
                pq.read_metadata(file).num_rows
                for file in _parquet_files(self.partition_path(zone, dataset, column, key))
            )
            for key in keys
        }

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
        path = self.path(f"_state/{name}.lock")
        try:
            with lock_file(path, timeout_s):
                yield
        except HeldError as error:
            raise LakeBusyError(
                f"{path} was held by another run for {timeout_s:.0f} s: {error}. See the runs in"
                " progress in the UI; end the one that hangs and run this again."
            ) from error


def _sweep(parent: Path) -> None:
    """Remove what killed runs left behind."""
    for old in parent.iterdir():
        with suppress(FileNotFoundError):  # another run may be ending
            if time.time() - old.stat().st_mtime > _STALE_STAGE_SECONDS:
                shutil.rmtree(old, ignore_errors=True)


def _scan(folder: str, name: str) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Files below ``folder``, by their name in the lake, of which the folder's is ``name``."""
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if entry.is_dir():
                yield from _scan(entry.path, f"{name}{entry.name}/")
            else:
                yield f"{name}{entry.name}", entry


def _parquet_files(folder: Path) -> list[Path]:
    """Parquet files of a partition, those of the folders below it included, in order."""
    names = sorted(name for name, _ in _scan(str(folder), "") if name.endswith(".parquet"))
    return [folder / name for name in names]


class LocalStage(Stage):
    """Partitions staged in a folder of the lake: publishing one is a rename."""

    def __init__(self, lake: LocalLake, folder: Path) -> None:
        self._lake = lake
        self.folder = folder
        self._replaced = count()

    def _place(self, zone: str, dataset: Dataset) -> Path:
        return self.folder / zone / dataset.folder

    def _write(self, zone: str, dataset: Dataset, partition: str, table: "pa.Table") -> None:
        import pyarrow.parquet as pq

        folder = self._place(zone, dataset) / partition
        folder.mkdir(parents=True)
        pq.write_table(table, folder / _PART, compression="zstd")

    def adopt(self, zone: str, dataset: Dataset, folder: str, files: Sequence[Path]) -> None:
        """Move the files in, named by number; see ``Stage.adopt``."""
        target = self._place(zone, dataset) / folder
        target.mkdir(parents=True, exist_ok=True)
        first = sum(1 for _ in target.glob("*.parquet"))
        for number, file in enumerate(files, start=first):
            shutil.move(file, target / f"part-{number}.parquet")

    def publish(self, zone: str, dataset: Dataset, column: str, keys: Sequence[str]) -> None:
        """Rename each staged partition into its place; see ``Stage.publish``."""
        for key in keys:
            staged = self._place(zone, dataset) / partition_folder(column, key)
            target = self._lake.partition_path(zone, dataset, column, key)
            files = _parquet_files(staged)
            # A reader counts every file of the folder: with others there, one is not all of it.
            if files == [staged / _PART] and _names(target) <= {_PART}:
                target.mkdir(parents=True, exist_ok=True)
                files[0].replace(target / _PART)
                continue
            if target.exists():
                target.rename(self.folder / f"replaced-{next(self._replaced)}")
            if files:
                target.parent.mkdir(parents=True, exist_ok=True)
                staged.rename(target)


def _names(folder: Path) -> set[str]:
    """What lies in a folder; nothing where it is not there."""
    return set(os.listdir(folder)) if folder.exists() else set()


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

"""Objects of the lake: raw files, state, locks and what is on its way, on a folder or a bucket.

Here: what any lake can do with them, and how one comes by its tables. Not here: a folder
(folder.py), a bucket (bucket.py), what a table does (tables.py).

Names are relative to the lake's root. Staging (``_stage``) and state (``_state``) lie outside of
every table.
"""

import json
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from retail_assets.dataset import Dataset
from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.lake.exchange import Exchange, LakeObject
from retail_assets.resources.lake.staging import Stage
from retail_assets.resources.lake.tables import LakeTable

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# What a lake has that an earlier version wrote, of tables that were no Delta tables.
_FORMER_STATE = (
    "_state/tables/",
    "_state/coffee_chain/drops",
    "_state/online_retail/processed",
    "_state/supply_chain/batches",
    "_state/supply_chain/star",
)
_NEW_LAYOUTS: set[str] = set()
_UNUSED_SECONDS = 7 * 24 * 3600


class LakeBusyError(TransientError):
    """Another run held a lock of the lake for longer than this one waits."""


class LakeAccessError(PermanentError):
    """The lake is not there, or what is asked of it is not allowed."""


class LakeUnreachableError(TransientError):
    """The lake did not answer, or not well, for as long as is tried."""


class ReplacedError(TransientError):
    """An object was replaced while an engine read it."""


class BrokenStateError(PermanentError):
    """A state object in the lake is not readable."""


class FormerLayoutError(PermanentError):
    """The lake was written by an earlier version, whose tables were no Delta tables."""


class LakeResource(dg.ConfigurableResource, ABC):  # type: ignore[type-arg]
    """A lake: objects by name below ``root``, and Delta tables among them."""

    root: str
    history_days: float = Field(
        default=7.0, ge=0, description="days that replaced files are kept for"
    )

    def uri(self, name: str) -> str:
        """A location as other programs know it."""
        return f"{self.root}/{name}"

    # Objects.

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""

    @abstractmethod
    def list_objects(self, prefix: str) -> "Iterator[LakeObject]":
        """Objects whose name begins with ``prefix``, by name."""

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
    def put_files(self, files: Mapping[str, Path]) -> None:
        """``put_file`` for each of ``files`` by name: names that are used once."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""

    @abstractmethod
    def delete_all(self, names: Iterable[str]) -> None:
        """Remove objects, those that are there."""

    @abstractmethod
    def read_bytes(self, name: str) -> bytes | None:
        """An object's bytes; None where there is none."""

    @abstractmethod
    def _write_text(self, name: str, text: str) -> None: ...

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
    def local_copies(self, uris: Sequence[str]) -> list[str]:
        """Local files of what ``partition_uris`` named, for a reader that knows no bucket."""

    @abstractmethod
    def read_footer(self, uri: str) -> "pq.FileMetaData":
        """What one of the Parquet files that ``partition_uris`` names says of its rows.

        Raises:
            FileNotFoundError: it is gone.
        """

    def read_schema(self, uri: str) -> "pa.Schema":
        """Arrow schema of one of the Parquet files that ``partition_uris`` names."""
        return self.read_footer(uri).schema.to_arrow_schema()

    def read_state(self, name: str) -> dict[str, Any] | None:
        """The state object ``name``, or None where there is none.

        Raises:
            BrokenStateError: it is there and is not JSON; the message says how to rebuild it.
        """
        location = f"_state/{name}.json"
        try:
            text = self.read_bytes(location)
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
    def lock(self, name: str, timeout_s: float = 3600) -> AbstractContextManager[None]:
        """Hold the lake's lock ``name``; other runs, in any process, wait.

        Raises:
            LakeBusyError: another run held it for ``timeout_s`` seconds.
        """

    # Tables.

    def table(self, dataset: Dataset) -> LakeTable:
        """The table of a dataset, whether or not anything was committed to it."""
        return LakeTable(self, dataset)

    @contextmanager
    def staging(self, run_id: str, asset: str = "") -> Iterator[Stage]:
        """A place for a run to write before it publishes; gone afterwards, whatever happened.

        ``asset`` is what the history of the tables says of who wrote.
        """
        self.require_new_layout()  # before anything is put into it
        with self.scratch() as folder:
            yield Stage(self, folder, run_id, asset)

    def partition_uris(self, dataset: Dataset, keys: Iterable[str] | None = None) -> list[str]:
        """Parquet files that have rows, of the partitions ``keys`` or of all.

        A table without partitions is one partition, of the key "".
        """
        return [self.uri(file.name) for file in self.table(dataset).snapshot().filled(keys)]

    @abstractmethod
    def storage_options(self) -> dict[str, str] | None:
        """How delta-rs reaches the lake; None for a folder."""

    @abstractmethod
    def table_faults(self, doing: str, uri: str) -> AbstractContextManager[None]:
        """Say by whose fault a commit or a reading failed: ours or the moment's."""

    def require_new_layout(self) -> None:
        """Refuse a lake that an earlier version wrote; asked once a process for each lake.

        Raises:
            FormerLayoutError: it is one; nothing was touched.
        """
        if self.root in _NEW_LAYOUTS:
            return
        for prefix in _FORMER_STATE:
            if next(iter(self.list_objects(prefix)), None) is not None:
                raise FormerLayoutError(
                    f"{self.root} was written by an earlier version, whose tables were no Delta"
                    f" tables ({self.uri(prefix)}). Nothing in it was touched. Start anew with"
                    " another RETAIL_HOME or RETAIL_LAKE, to which the raw files are copied; the"
                    " former tables stay readable as Parquet."
                )
        _NEW_LAYOUTS.add(self.root)


def sweep_unused(parent: Path) -> None:
    """Remove folders below ``parent`` that nobody used for a week, or that killed runs left."""
    for old in parent.iterdir() if parent.is_dir() else ():
        with suppress(FileNotFoundError):  # another run may be ending
            if time.time() - old.stat().st_mtime > _UNUSED_SECONDS:
                shutil.rmtree(old, ignore_errors=True)

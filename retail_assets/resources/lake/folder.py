"""The lake below a local folder.

Here: files by name, locks, and what a broken disk means. Not here: tables (tables.py).
"""

import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.resources.lake.exchange import LakeObject
from retail_assets.resources.lake.faults import in_one_line
from retail_assets.resources.lake.objects import (
    LakeAccessError,
    LakeBusyError,
    LakeResource,
    LakeUnreachableError,
    sweep_unused,
)
from retail_assets.resources.waiting import HeldError, lock_file

if TYPE_CHECKING:
    import pyarrow.parquet as pq


class LocalLake(LakeResource):
    """The lake (RETAIL_LAKE): raw files and tables, below the folder ``root``."""

    def path(self, name: str) -> Path:
        """The file behind a name."""
        return Path(self.root) / name

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return self.path(name).is_file()

    def list_objects(self, prefix: str) -> Iterator[LakeObject]:
        """Files whose name begins with ``prefix``, by name."""
        folder = prefix[: prefix.rfind("/") + 1]
        # scandir, for a folder may hold 100,000 files: paths as objects would take seconds.
        found = [
            (name, entry)
            for name, entry in _scan(os.path.join(self.root, folder), folder)
            if name.startswith(prefix)
        ]
        for name, entry in sorted(found, key=itemgetter(0)):
            try:
                stat = entry.stat()
            except FileNotFoundError:  # removed since
                continue
            version = f"{stat.st_size}-{stat.st_mtime_ns}"
            yield LakeObject(name, stat.st_size, version, stat.st_mtime)

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

    def put_files(self, files: Mapping[str, Path]) -> None:
        """Move each in by one rename."""
        for name, file in files.items():
            self.put_file(name, file)

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        self.path(name).unlink(missing_ok=True)

    def delete_all(self, names: Iterable[str]) -> None:
        """Remove files, those that are there."""
        for name in names:
            self.delete(name)

    def read_bytes(self, name: str) -> bytes | None:
        """A file's bytes; None where there is none."""
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            return None

    def _write_text(self, name: str, text: str) -> None:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(text)
        temporary.replace(path)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the lake's own file system, so that files move in by renaming."""
        parent = self.path("_stage/scratch")
        parent.mkdir(parents=True, exist_ok=True)
        sweep_unused(parent)
        folder = parent / f"{os.getpid()}-{time.monotonic_ns()}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def local_copies(self, uris: Sequence[str]) -> list[str]:
        """The files themselves."""
        return list(uris)

    def read_footer(self, uri: str) -> "pq.FileMetaData":
        """What a Parquet file says of its rows."""
        import pyarrow.parquet as pq

        return pq.read_metadata(uri)

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

    def storage_options(self) -> dict[str, str] | None:
        """None: delta-rs takes a path as it is."""
        return None

    def require_new_layout(self) -> None:
        """Refuse what an earlier version wrote, and a path that delta-rs takes for another.

        Raises:
            FormerLayoutError: an earlier version wrote it.
            LakeAccessError: the path has an escape such as %20, which delta-rs reads as a space.
        """
        if re.search("%[0-9A-Fa-f]{2}", self.root):
            raise LakeAccessError(
                f"{self.root}: a lake's path must not have % before two digits, which is read as"
                " one character. Name another RETAIL_HOME or RETAIL_LAKE, or rename the folder."
            )
        super().require_new_layout()

    @contextmanager
    def table_faults(self, doing: str, uri: str) -> Iterator[None]:
        """A disk that is full, or not to be written to, in one line; nothing half is visible."""
        try:
            yield
        except OSError as error:
            raise LakeUnreachableError(
                f"{uri}: could not {doing} it ({in_one_line(error)}). What was"
                " committed before stands. Free the disk or mend its permissions, and run this"
                " again."
            ) from error


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

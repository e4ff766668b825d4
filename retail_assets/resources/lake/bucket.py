"""The lake of a bucket on Google Cloud Storage.

Here: objects, local copies of them, and what is handed to a cluster. Not here: whom the requests
go to (clients.py), locks (lease.py), what refusals mean (faults.py), tables (tables.py), who may do
what (cloud_checks.py).
"""

import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import Field, PrivateAttr

from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.lake import clients
from retail_assets.resources.lake.exchange import Exchange, LakeObject, RemoteFolder
from retail_assets.resources.lake.faults import told, told_of_table
from retail_assets.resources.lake.lease import Lease
from retail_assets.resources.lake.objects import (
    LakeBusyError,
    LakeResource,
    ReplacedError,
    sweep_unused,
)

if TYPE_CHECKING:
    import pyarrow.parquet as pq
    from google.cloud import storage

_log = logging.getLogger(__name__)

_PARQUET = "application/vnd.apache.parquet"
# A file above 8 MiB goes up by a resumable upload (the client's own limit), in these pieces.
_CHUNK_BYTES = 16 * 1024**2
_FOOTER_BYTES = 64 * 1024
_PARALLEL = 8  # the client keeps ten connections
_TIMEOUT_SECONDS = 60.0  # of one request, as the client has it
_MOST_RACES = 12
# An upload and what is made of it are minutes apart: after a day its writer is dead.
_ORPHAN_SECONDS = 24 * 3600
_ENGINE = "_stage/engine"


@dataclass(frozen=True)
class _Stat:
    name: str
    size: int
    generation: int
    crc32c: str
    created: float

    @property
    def object(self) -> LakeObject:
        return LakeObject(self.name, self.size, str(self.generation), self.created)


class GcsLake(LakeResource):
    """The lake (RETAIL_LAKE): raw files and tables in a bucket; ``root`` is gs://BUCKET[/PREFIX].

    Objects of tables are never overwritten: their names are used once. Those of them that this
    machine wrote or read are kept in ``cache_dir`` for a week.
    """

    cache_dir: str
    emulator_host: str | None = None
    retry_s: float = Field(default=120.0, gt=0, description="seconds a request is tried for")
    lease_s: float = Field(default=60.0, gt=0, description="seconds a silent lock is held")

    _clock: Callable[[], float] = PrivateAttr(default=time.time)

    @property
    def bucket_name(self) -> str:
        """The bucket's name."""
        return self.root.removeprefix("gs://").partition("/")[0]

    def client(self) -> "storage.Client":
        """Google's client, one a process; its credentials are the application's default ones.

        Raises:
            LakeAccessError: there are no credentials.
        """
        with self._faults("use", self.root):
            return clients.google_client(self.emulator_host)

    def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""
        return self._stat(name) is not None

    def list_objects(self, prefix: str) -> Iterator[LakeObject]:
        """Objects whose name begins with ``prefix``, by name."""
        for found in self._list(prefix):
            yield found.object

    def local_file(self, name: str) -> Path:
        """A copy below ``cache_dir``, of the generation that is there now."""
        found = self._stat(name)
        if found is None:
            raise FileNotFoundError(self.uri(name))
        return self._copy(name, found.generation)

    def _copy(self, name: str, generation: int | None) -> Path:
        target = self._cached(name, generation)
        if target.exists():
            os.utime(target.parent)  # so that it is not swept
            return target
        with self._faults("read", self.uri(name)):
            from google.api_core.exceptions import NotFound

            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{uuid.uuid4().hex}")
            try:
                self._download_file(name, generation, partial)
                partial.replace(target)
            except NotFound as error:
                self._require_bucket()
                raise FileNotFoundError(self.uri(name)) from error
            finally:
                partial.unlink(missing_ok=True)
        return target

    def _download_file(self, name: str, generation: int | None, file: Path) -> None:
        self._blob(name, generation).download_to_filename(str(file), retry=self._retry())

    def local_copies(self, uris: Sequence[str]) -> list[str]:
        """Local copies of what ``partition_uris`` named, for a reader that knows no bucket."""
        with ThreadPoolExecutor(_PARALLEL) as pool:
            names = [uri.removeprefix(f"{self.root}/") for uri in uris]
            # A table's file never changes: a copy of it is good without asking.
            return [str(file) for file in pool.map(lambda name: self._copy(name, None), names)]

    def put_file(self, name: str, file: Path) -> None:
        """Upload the file, and keep it as the object's local copy."""
        found = self._upload_file(name, file)
        self._into_cache(file, self._cached(name, found.generation))

    def put_files(self, files: Mapping[str, Path]) -> None:
        """Upload several, of names that are used once, at a time."""

        def put(name: str, file: Path) -> None:
            self._upload_file(name, file)
            self._into_cache(file, self._cached(name, None))

        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(put, files, files.values()))

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        self.delete_generation(name, None)

    def delete_all(self, names: Iterable[str]) -> None:
        """Remove several at once, those that are there."""
        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(self.delete, names))

    def read_bytes(self, name: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        from google.api_core.exceptions import NotFound

        with self._faults("read", self.uri(name)):
            try:
                return self._download(self._blob(name))
            except NotFound:
                self._require_bucket()
                return None

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder below ``cache_dir``, so that what was uploaded moves into the cache."""
        with self._folder("scratch") as folder:
            yield folder

    def read_footer(self, uri: str) -> "pq.FileMetaData":
        """What a Parquet object says of its rows; no more of it is read."""
        import pyarrow.parquet as pq
        from google.api_core.exceptions import NotFound

        name = uri.removeprefix(f"{self.root}/")
        with self._faults("read", uri):
            try:
                blob = self._blob(name)
                with blob.open("rb", chunk_size=_FOOTER_BYTES, retry=self._retry()) as file:
                    return pq.read_metadata(file)
            except NotFound as error:
                raise FileNotFoundError(uri) from error

    @contextmanager
    def exchange(self, run_id: str, *, cluster: bool) -> Iterator[Exchange]:
        """Hand files to an engine: those of this machine, or objects where it is a cluster.

        What a killed run left is deleted by another's exchange, after a day.
        """
        with self.scratch() as folder:
            if not cluster:
                yield Exchange(folder)
                return
            self._discard(f"{_ENGINE}/", before=self._clock() - _ORPHAN_SECONDS)
            prefix = f"{_ENGINE}/{run_id}-{uuid.uuid4().hex[:16]}"
            try:
                yield GcsExchange(self, folder, prefix)
            finally:
                self._discard(f"{prefix}/")

    def _discard(self, prefix: str, before: float | None = None) -> None:
        """Delete what is below ``prefix``, or what of it was made ``before``; or leave a warning.

        It is of no more use to anyone, so that a failure is no reason to fail a run.
        """
        try:
            found = [
                stat.name
                for stat in self._list(prefix, markers=True)
                if before is None or stat.created < before
            ]
            with ThreadPoolExecutor(_PARALLEL) as pool:
                list(pool.map(self.delete, found))
        except (TransientError, PermanentError) as error:
            _log.warning("objects below %s were left: %s", self.uri(prefix), error)

    @contextmanager
    def lock(self, name: str, timeout_s: float = 3600) -> Iterator[None]:
        """Hold a lease, renewed while the block runs; a dead run's is free after ``lease_s``.

        Raises:
            LakeBusyError: another run held it for ``timeout_s`` seconds, or took it because this
                one was silent for longer than the lease.
        """
        lease = Lease(self, f"_state/{name}.lock")
        lease.acquire(timeout_s)
        try:
            yield
        finally:
            lease.release()
        if lease.lost:
            raise LakeBusyError(
                f"{self.uri(f'_state/{name}.lock')}: this run was silent for longer than"
                f" {self.lease_s:.0f} s (a suspended machine?) and another took the lock. Run this"
                " again: what was written is replaced as a whole."
            )

    def _write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def storage_options(self) -> dict[str, str] | None:
        """Application default credentials, which delta-rs finds by itself; none of an emulator."""
        return clients.delta_options(self.emulator_host, self.retry_s, _TIMEOUT_SECONDS)

    def table_faults(self, doing: str, uri: str) -> AbstractContextManager[None]:
        """Say by whose fault a commit or a reading failed; see faults.py."""
        return told_of_table(doing, uri, f"gs://{self.bucket_name}", self.retry_s)

    def clock(self) -> float:
        """Seconds since 1970."""
        return self._clock()

    def stat(self, name: str) -> LakeObject | None:
        """An object's generation, and when it was made."""
        found = self._stat(name)
        return None if found is None else found.object

    def read_version(self, name: str) -> tuple[bytes | None, int]:
        """An object's bytes and their generation; (None, 0) where there is none."""
        from google.api_core.exceptions import NotFound

        for _ in range(_MOST_RACES):
            found = self._stat(name)
            if found is None:
                return None, 0
            with self._faults("read", self.uri(name)):
                try:
                    return self._download(self._blob(name, found.generation)), found.generation
                except NotFound:  # replaced since: look again
                    continue
        raise LakeBusyError(f"{self.uri(name)} is replaced faster than it can be read. Run again.")

    def delete_generation(self, name: str, generation: int | None) -> None:
        """Remove an object, if that is its generation; with None, whichever it is."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with self._faults("delete", self.uri(name)), suppress(NotFound, PreconditionFailed):
            blob = self._blob(name, generation)
            blob.delete(if_generation_match=generation, retry=self._retry())

    def write_bytes(
        self, name: str, content: bytes, expected: int | None = None, retry_s: float | None = None
    ) -> int | None:
        """Replace an object; with ``expected``, only if that is its generation (0: none).

        Returns the new generation, or None if another writer was first.
        """
        from google.api_core.exceptions import PreconditionFailed

        with self._faults("write", self.uri(name)):
            blob = self._blob(name)
            try:
                blob.upload_from_string(
                    content,
                    content_type="application/json",
                    if_generation_match=expected,
                    timeout=min(retry_s or _TIMEOUT_SECONDS, _TIMEOUT_SECONDS),
                    retry=self._retry(retry_s),
                )
            except PreconditionFailed:
                return None
            return int(blob.generation)

    # What follows is the only talk with Google, but for delta-rs.

    def _faults(self, doing: str, uri: str) -> AbstractContextManager[None]:
        return told(doing, uri, f"gs://{self.bucket_name}", self.retry_s)

    def _object(self, name: str) -> str:
        prefix = self.root.removeprefix("gs://").partition("/")[2]
        return f"{prefix}/{name}" if prefix else name

    def _blob(self, name: str, generation: int | None = None) -> "storage.Blob":
        bucket = self.client().bucket(self.bucket_name)
        return bucket.blob(self._object(name), generation=generation)

    def _retry(self, seconds: float | None = None) -> Any:
        from google.cloud.storage.retry import DEFAULT_RETRY

        return DEFAULT_RETRY.with_timeout(seconds or self.retry_s)

    def _stat(self, name: str) -> _Stat | None:
        from google.api_core.exceptions import NotFound

        with self._faults("read", self.uri(name)):
            blob = self._blob(name)
            try:
                blob.reload(retry=self._retry())
            except NotFound:
                self._require_bucket()
                return None
            return self._stat_of(blob)

    def _stat_of(self, blob: "storage.Blob") -> _Stat:
        name = blob.name[len(self._object("")) :]
        created = blob.time_created.timestamp() if blob.time_created else 0.0
        return _Stat(name, int(blob.size), int(blob.generation), str(blob.crc32c), created)

    def _require_bucket(self, again: bool = False) -> None:
        """Tell an absent bucket from an absent object, once for each bucket or ``again``."""
        clients.require_bucket(self.emulator_host, self.bucket_name, self._retry(), again=again)

    def _list(self, prefix: str, *, markers: bool = False) -> Iterator[_Stat]:
        """Objects by name; ``markers`` are those that some programs make for a folder."""
        with self._faults("list", self.uri(prefix)):
            pages = iter(
                self.client()
                .list_blobs(
                    self.bucket_name,
                    prefix=self._object(prefix),
                    fields="items(name,size,generation,crc32c,timeCreated),nextPageToken",
                    retry=self._retry(),
                )
                .pages
            )
        while True:
            with self._faults("list", self.uri(prefix)):
                page = next(pages, None)  # may be empty and not the last
                found = [] if page is None else [self._stat_of(blob) for blob in page]
            if page is None:
                return
            yield from (stat for stat in found if markers or not stat.name.endswith("/"))

    def _download(self, blob: "storage.Blob") -> bytes:
        from google.cloud.storage.exceptions import DataCorruption

        with suppress(DataCorruption):  # once more: the client does not by itself
            return bytes(blob.download_as_bytes(retry=self._retry()))
        return bytes(blob.download_as_bytes(retry=self._retry()))

    def _upload_file(self, name: str, file: Path) -> _Stat:
        """Make a file an object; a lost answer or a retry never leaves it half."""
        from google.api_core.exceptions import GoogleAPICallError, PreconditionFailed

        size, checksum = file.stat().st_size, clients.crc32c(file)
        expected = 0
        for _ in range(_MOST_RACES):
            with self._faults("write", self.uri(name)):
                blob = self._blob(name)
                blob.chunk_size = _CHUNK_BYTES
                try:
                    blob.upload_from_filename(
                        str(file),
                        content_type=_PARQUET if file.suffix == ".parquet" else None,
                        if_generation_match=expected,
                        retry=self._retry(),
                    )
                except PreconditionFailed:
                    pass
                except GoogleAPICallError as error:
                    if error.code not in (404, 410):
                        raise
                    # No bucket; or the server forgot a resumable upload, which then starts anew.
                    self._require_bucket(again=True)
                else:
                    return self._stat_of(blob)
            # Either our own upload, whose answer was lost, or another content that we replace.
            found = self._stat(name)
            if found is not None and (found.size, found.crc32c) == (size, checksum):
                return found
            expected = found.generation if found else 0
        raise LakeBusyError(f"{self.uri(name)} is written by others all the time. Run again.")

    # Local copies.

    def _cached(self, name: str, generation: int | None) -> Path:
        key = sha256(f"{self.emulator_host} {self.uri(name)}".encode()).hexdigest()[:16]
        return Path(self.cache_dir) / "objects" / f"{key}-{generation or 0}" / Path(name).name

    def _into_cache(self, file: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            file.replace(target)
        except OSError:  # from another file system
            partial = target.with_name(f".{uuid.uuid4().hex}")
            shutil.move(file, partial)
            partial.replace(target)

    @contextmanager
    def _folder(self, kind: str) -> Iterator[Path]:
        parent = Path(self.cache_dir) / kind
        for old in (parent, Path(self.cache_dir) / "objects"):
            sweep_unused(old)
        folder = parent / f"{os.getpid()}-{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class GcsExchange(Exchange):
    """Files handed over as objects below ``prefix``, for an engine that sees only the bucket."""

    def __init__(self, lake: GcsLake, folder: Path, prefix: str) -> None:
        super().__init__(folder)
        self._lake = lake
        self._prefix = prefix
        self._placed = 0
        self._read: dict[str, int] = {}

    def place(self, file: Path, of: LakeObject | None = None) -> str:
        """URI of an object with the file's bytes: of the lake's own, or of a copy."""
        # No engine reads a generation: that it was this one is seen when all is read.
        if of is not None and file == self._lake._cached(of.name, int(of.version)):
            self._read[of.name] = int(of.version)
            return self._lake.uri(of.name)
        name = f"{self._prefix}/in/{self._placed}-{file.name}"
        self._placed += 1
        self._lake._upload_file(name, file)
        return self._lake.uri(name)

    def target(self, name: str) -> RemoteFolder:
        """Where an engine writes; ``fetch`` downloads the Parquet files of it.

        Raises, by ``fetch``:
            ReplacedError: what was placed is another generation by now.
        """
        location = f"{self._prefix}/{name}"
        return RemoteFolder(self._lake.uri(location), lambda: self._fetch(location, name))

    def _fetch(self, location: str, name: str) -> Path:
        target = self.folder / name
        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(self._require_unchanged, self._read))
            written = self._lake._list(f"{location}/")
            list(pool.map(lambda stat: self._bring(stat, location, target), written))
        return target

    def _require_unchanged(self, name: str) -> None:
        found = self._lake._stat(name)
        if found is None or found.generation != self._read[name]:
            raise ReplacedError(
                f"{self._lake.uri(name)} was replaced while the cluster read it. Nothing was"
                " touched. Run this again."
            )

    def _bring(self, found: _Stat, location: str, target: Path) -> None:
        inner = PurePosixPath(found.name).relative_to(location)
        # Below _temporary lies what tasks wrote that were given up; a column may be named _so.
        hidden = (p.startswith(".") or (p.startswith("_") and "=" not in p) for p in inner.parts)
        if inner.suffix != ".parquet" or any(hidden):
            return
        file = target / inner
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._lake._faults("read", self._lake.uri(found.name)):
            self._lake._download_file(found.name, found.generation, file)

"""The lake of a bucket on Google Cloud Storage.

Here: objects, whole-partition replacement without a rename, leases, and what Google's refusals
mean. Not here: the protocol and the lake of a folder (lake.py), who may do what (doctor).

No object of a table is ever overwritten. One manifest a table says which objects are its
partitions; replacing the manifest, on condition that nobody else did, is the step by which a
whole range becomes visible. Readers ask the manifest, never a listing.
"""

import json
import logging
import os
import random
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import Field, PrivateAttr

from retail_assets.dataset import Dataset
from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.lake import (
    BrokenStateError,
    Exchange,
    LakeBusyError,
    LakeObject,
    LakeResource,
    RemoteFolder,
    ReplacedError,
    Stage,
    partition_folder,
)
from retail_assets.resources.waiting import Wait, this_process
from retail_assets.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from google.cloud import storage

_log = logging.getLogger(__name__)

_READ_ROLE = "roles/storage.objectViewer"
_WRITE_ROLE = "roles/storage.objectUser"
_PARQUET = "application/vnd.apache.parquet"
# A file above 8 MiB goes up by a resumable upload (the client's own limit), in these pieces.
_CHUNK_BYTES = 16 * 1024**2
_FOOTER_BYTES = 64 * 1024
_PARALLEL = 8  # the client keeps ten connections
_TIMEOUT_SECONDS = 60.0  # of one request, as the client has it
_MOST_RACES = 12
# A reader that holds an old manifest has this long to finish.
_RETIRED_SECONDS = 3600
# An upload and the manifest that names it are minutes apart: after a day its writer is dead.
_ORPHAN_SECONDS = 24 * 3600
_UNUSED_SECONDS = 7 * 24 * 3600
_CLOCK_SKEW_SECONDS = 300
_ENGINE = "_stage/engine"
_QUOTA_REASONS = {"rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded"}


class LakeAccessError(PermanentError):
    """The bucket is not there, or what is asked of it is not allowed."""


class LakeUnreachableError(TransientError):
    """Cloud Storage did not answer, or not well, for as long as the client tries."""


@dataclass(frozen=True)
class PartitionFile:
    """One object of a partition, as the manifest of its table names it."""

    name: str
    generation: int
    rows: int
    bytes: int
    crc32c: str


@dataclass(frozen=True)
class TableManifest:
    """Which objects are a table: the only thing that a reader asks.

    ``partitions`` are by ``<column>=<key>``, or by "" where there are none; ``retired`` are
    objects that were replaced, and when (seconds since 1970), so that whoever still reads them
    can finish.
    """

    partitions: Mapping[str, tuple[PartitionFile, ...]] = field(default_factory=dict)
    retired: Mapping[str, float] = field(default_factory=dict)

    def replaced(
        self, changes: Mapping[str, tuple[PartitionFile, ...]], now: float
    ) -> "TableManifest":
        """With ``changes`` in place; what they replace is retired, what is long retired gone."""
        partitions = {**self.partitions, **changes}
        partitions = {key: files for key, files in partitions.items() if files}
        live = {file.name for files in partitions.values() for file in files}
        retired = {
            file.name: now
            for key in changes
            for file in self.partitions.get(key, ())
            if file.name not in live
        }
        kept = {n: t for n, t in self.retired.items() if now - t <= _RETIRED_SECONDS}
        return replace(self, partitions=partitions, retired={**kept, **retired})

    def names(self) -> set[str]:
        """Every object that must not be deleted."""
        live = {file.name for files in self.partitions.values() for file in files}
        return live | set(self.retired)

    def to_json(self) -> str:
        """The text of the manifest object."""
        state = {
            "partitions": {k: [asdict(f) for f in v] for k, v in self.partitions.items()},
            "retired": dict(self.retired),
        }
        return json.dumps(state, indent=1, sort_keys=True) + "\n"

    @staticmethod
    def from_json(text: bytes) -> "TableManifest":
        """The manifest of such a text.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is none.
        """
        state = json.loads(text)
        return TableManifest(
            partitions={
                key: tuple(PartitionFile(**file) for file in files)
                for key, files in state["partitions"].items()
            },
            retired={name: float(when) for name, when in state["retired"].items()},
        )


@dataclass(frozen=True)
class _Stat:
    name: str
    size: int
    generation: int
    crc32c: str
    created: float


class GcsLake(LakeResource):
    """A lake in a bucket: ``root`` is gs://BUCKET or gs://BUCKET/PREFIX.

    A table's objects are ``<zone>/<domain>/<table>/<column>=<key>/<token>.parquet``, in folders
    below that where a partition has them; its manifest is
    ``_state/tables/<zone>/<domain>/<table>.json``.
    """

    cache_dir: str
    emulator_host: str | None = None
    retry_s: float = Field(default=120.0, gt=0, description="seconds a request is tried for")
    lease_s: float = Field(default=60.0, gt=0, description="seconds a silent lock is held")

    _clock: Callable[[], float] = PrivateAttr(default=time.time)

    @staticmethod
    def of(settings: Settings) -> "GcsLake":
        """The bucket that the settings name."""
        return GcsLake(
            root=settings.lake,
            cache_dir=str(settings.home / "cache"),
            emulator_host=settings.storage_emulator_host,
        )

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
            return _client(self.emulator_host)

    def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""
        return self._stat(name) is not None

    def list_objects(self, prefix: str, start: str = "") -> Iterator[LakeObject]:
        """Objects whose name begins with ``prefix``, by name, from the name ``start`` on."""
        for found in self._list(prefix, start):
            yield LakeObject(found.name, found.size, str(found.generation))

    def local_file(self, name: str) -> Path:
        """A copy below ``cache_dir``, of the generation that is there now."""
        found = self._stat(name)
        if found is None:
            raise FileNotFoundError(self.uri(name))
        target = self._cached(name, found.generation)
        if target.exists():
            os.utime(target.parent)  # so that it is not swept
            return target
        with self.scratch() as folder, self._faults("read", self.uri(name)):
            from google.api_core.exceptions import NotFound

            partial = folder / "download"
            try:
                self._download_file(found, partial)
            except NotFound as error:
                raise FileNotFoundError(self.uri(name)) from error
            self._into_cache(partial, target)
        return target

    def _download_file(self, found: _Stat, file: Path) -> None:
        blob = self._blob(found.name, found.generation)
        blob.download_to_filename(str(file), retry=self._retry())

    def local_copies(self, uris: Sequence[str]) -> list[str]:
        """Local copies of what ``partition_uris`` named, for a reader that knows no bucket."""
        with ThreadPoolExecutor(_PARALLEL) as pool:
            names = [uri.removeprefix(f"{self.root}/") for uri in uris]
            return [str(file) for file in pool.map(self.local_file, names)]

    def put_file(self, name: str, file: Path) -> None:
        """Upload the file, and keep it as the object's local copy."""
        found = self._upload_file(name, file)
        self._into_cache(file, self._cached(name, found.generation))

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        self._delete(name)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder below ``cache_dir``, so that what was uploaded moves into the cache."""
        with self._folder("scratch") as folder:
            yield folder

    def partition_uris(self, dataset: Dataset, keys: Iterable[str]) -> list[str]:
        """gs:// locations of the processed partitions ``keys``, as the manifest has them now."""
        column = dataset.partition_by or ""
        manifest = self.read_manifest(dataset.zone, dataset)
        return [
            self.uri(file.name)
            for key in keys
            for file in manifest.partitions.get(partition_folder(column, key), ())
        ]

    def table_files(self, zone: str, dataset: Dataset) -> list[str]:
        """Names of a table's objects, as its manifest has them now.

        Without one, all that lie there: then each was put by its name, and none is replaced.
        """
        if self.exists(manifest_name(zone, dataset)):
            partitions = self.read_manifest(zone, dataset).partitions.values()
            return sorted(file.name for files in partitions for file in files)
        found = self._list(f"{_table(zone, dataset)}/")
        return [stat.name for stat in found if stat.name.endswith(".parquet")]

    def partition_rows(
        self, zone: str, dataset: Dataset, column: str, keys: Iterable[str]
    ) -> dict[str, int]:
        """Rows of each partition as the manifest counts them, of the objects that are there."""
        manifest = self.read_manifest(zone, dataset)
        files = {key: manifest.partitions.get(partition_folder(column, key), ()) for key in keys}
        names = [file.name for found in files.values() for file in found]
        there: dict[str, int] = {}
        if names:
            # The end of the range is not listed: "!" is behind the last name.
            found = self._list(f"{_table(zone, dataset)}/", min(names), f"{max(names)}!")
            there = {stat.name: stat.generation for stat in found}
        return {
            key: sum(file.rows for file in found if there.get(file.name) == file.generation)
            for key, found in files.items()
        }

    def read_schema(self, uri: str) -> "pa.Schema":
        """Arrow schema of a Parquet object, of which only the footer is read."""
        import pyarrow.parquet as pq
        from google.api_core.exceptions import NotFound

        name = uri.removeprefix(f"{self.root}/")
        with self._faults("read", uri):
            try:
                blob = self._blob(name)
                with blob.open("rb", chunk_size=_FOOTER_BYTES, retry=self._retry()) as file:
                    return pq.read_schema(file)
            except NotFound as error:
                raise FileNotFoundError(uri) from error

    @contextmanager
    def staging(self, run_id: str) -> Iterator["GcsStage"]:
        """A local folder to write to; nothing is uploaded before ``publish``."""
        with self._folder("stage") as folder:
            yield GcsStage(self, folder, run_id)

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
                list(pool.map(self._delete, found))
        except (TransientError, PermanentError) as error:
            _log.warning("objects below %s were left: %s", self.uri(prefix), error)

    @contextmanager
    def lock(self, name: str, timeout_s: float = 3600) -> Iterator[None]:
        """Hold a lease, renewed while the block runs; a dead run's is free after ``lease_s``.

        Raises:
            LakeBusyError: another run held it for ``timeout_s`` seconds, or took it because this
                one was silent for longer than the lease.
        """
        lease = _Lease(self, f"_state/{name}.lock")
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

    def read_manifest(self, zone: str, dataset: Dataset) -> TableManifest:
        """Which objects are the table now; an empty manifest where none was published.

        Raises:
            BrokenStateError: the manifest is there and is none.
        """
        location = manifest_name(zone, dataset)
        text = self._read_bytes(location)
        return TableManifest() if text is None else self._parse_manifest(location, text)

    def _parse_manifest(self, location: str, text: bytes) -> TableManifest:
        try:
            return TableManifest.from_json(text)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BrokenStateError(
                f"{self.uri(location)} is no manifest of a table ({error!r}). Put an earlier"
                " version of it back, or delete it and materialize every partition again."
            ) from error

    def _read_text(self, name: str) -> str | None:
        content = self._read_bytes(name)
        return None if content is None else content.decode()

    def _write_text(self, name: str, text: str) -> None:
        self._write_bytes(name, text.encode())

    # What follows is the only talk with Google.

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
        known = (self.emulator_host, self.bucket_name)
        if again:
            _BUCKETS.discard(known)
        if known not in _BUCKETS:
            listed = self.client().list_blobs(
                self.bucket_name, max_results=1, fields="items(name)", retry=self._retry()
            )
            list(listed)
            _BUCKETS.add(known)

    def _list(
        self, prefix: str, start: str = "", end: str = "", *, markers: bool = False
    ) -> Iterator[_Stat]:
        """Objects by name; ``markers`` are those that some programs make for a folder."""
        with self._faults("list", self.uri(prefix)):
            pages = iter(
                self.client()
                .list_blobs(
                    self.bucket_name,
                    prefix=self._object(prefix),
                    start_offset=self._object(start) if start else None,
                    end_offset=self._object(end) if end else None,
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

    def _read_bytes(self, name: str) -> bytes | None:
        from google.api_core.exceptions import NotFound

        with self._faults("read", self.uri(name)):
            try:
                return self._download(self._blob(name))
            except NotFound:
                self._require_bucket()
                return None

    def _read_version(self, name: str) -> tuple[bytes | None, int]:
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

    def _write_bytes(
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

    def _upload_file(self, name: str, file: Path) -> _Stat:
        """Make a file an object; a lost answer or a retry never leaves it half."""
        from google.api_core.exceptions import GoogleAPICallError, PreconditionFailed

        size, checksum = file.stat().st_size, _crc32c(file)
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

    def _delete(self, name: str, generation: int | None = None) -> None:
        """Remove an object, or only that generation of it."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with self._faults("delete", self.uri(name)), suppress(NotFound, PreconditionFailed):
            blob = self._blob(name, generation)
            blob.delete(if_generation_match=generation, retry=self._retry())

    @contextmanager
    def _faults(self, doing: str, uri: str) -> Iterator[None]:
        """Say by whose fault it failed: ours (permanent) or the moment's (transient)."""
        import requests.exceptions
        from google.api_core import exceptions as api
        from google.auth import exceptions as auth
        from google.cloud.storage.exceptions import DataCorruption

        bucket = f"gs://{self.bucket_name}"
        role = _READ_ROLE if doing in ("read", "list") else _WRITE_ROLE
        try:
            yield
        except (auth.DefaultCredentialsError, auth.RefreshError, api.Unauthorized) as error:
            raise LakeAccessError(
                f"{bucket}: no valid credentials of Google ({_first_line(error)}). On a laptop:"
                " gcloud auth application-default login; on Google Cloud: attach a service"
                f" account that has {_WRITE_ROLE} on the bucket."
            ) from error
        except api.Forbidden as error:
            if {item.get("reason") for item in error.errors or ()} & _QUOTA_REASONS:
                raise self._unreachable(doing, uri, error) from error
            raise LakeAccessError(
                f"{uri}: not allowed to {doing} it ({_first_line(error)}). The account that runs"
                f" this needs {role} on the bucket: gcloud storage buckets add-iam-policy-binding"
                f" {bucket} --member=MEMBER --role={role}"
            ) from error
        except api.NotFound as error:
            raise LakeAccessError(
                f"{bucket}: there is no such bucket, which RETAIL_LAKE names. Correct RETAIL_LAKE,"
                f" or make it: gcloud storage buckets create {bucket} --location=LOCATION (the"
                " warehouse's location)"
            ) from error
        except (api.TooManyRequests, api.ServerError, api.RetryError) as error:
            raise self._unreachable(doing, uri, error) from error
        except api.GoogleAPICallError as error:
            if error.code == 408:  # request timeout, which has no class of its own
                raise self._unreachable(doing, uri, error) from error
            raise
        except (
            requests.exceptions.RequestException,
            auth.TransportError,
            DataCorruption,
            ConnectionError,
        ) as error:
            raise self._unreachable(doing, uri, error) from error

    def _unreachable(self, doing: str, uri: str, error: Exception) -> LakeUnreachableError:
        return LakeUnreachableError(
            f"{uri}: could not {doing} it, though tried for {self.retry_s:.0f} s"
            f" ({_first_line(error)}). Nothing half is visible. Run this again; if it stays,"
            " see status.cloud.google.com and the machine's network."
        )

    # Local copies.

    def _cached(self, name: str, generation: int) -> Path:
        key = sha256(f"{self.emulator_host} {self.uri(name)}".encode()).hexdigest()[:16]
        return Path(self.cache_dir) / "objects" / f"{key}-{generation}" / Path(name).name

    def _into_cache(self, file: Path, target: Path) -> None:
        _sweep(target.parent.parent)
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
        _sweep(parent)
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
            self._lake._download_file(found, file)


class GcsStage(Stage):
    """Partitions staged in a local folder; publishing uploads them, then names them."""

    def __init__(self, lake: GcsLake, folder: Path, run_id: str) -> None:
        self._lake = lake
        self.folder = folder
        self._token = f"{run_id[:8]}-{uuid.uuid4().hex[:16]}"

    def _place(self, zone: str, dataset: Dataset) -> Path:
        return self.folder / zone / dataset.folder

    def _write(self, zone: str, dataset: Dataset, partition: str, table: "pa.Table") -> None:
        import pyarrow.parquet as pq

        folder = self._place(zone, dataset) / partition
        folder.mkdir(parents=True)
        pq.write_table(table, folder / f"{self._token}.parquet", compression="zstd")

    def adopt(self, zone: str, dataset: Dataset, folder: str, files: Sequence[Path]) -> None:
        """Move the files in; see ``Stage.adopt``."""
        target = self._place(zone, dataset) / folder
        target.mkdir(parents=True, exist_ok=True)
        first = sum(1 for _ in target.glob("*.parquet"))
        for number, file in enumerate(files, start=first):
            shutil.move(file, target / f"{self._token}-{number}.parquet")

    def _staged(self, zone: str, dataset: Dataset, partition: str) -> dict[str, Path]:
        """The partition's staged files by the names that their objects are to have."""
        place = self._place(zone, dataset)
        return {
            f"{_table(zone, dataset)}/{file.relative_to(place).as_posix()}": file
            for file in sorted((place / partition).rglob("*.parquet"))
        }

    def publish(self, zone: str, dataset: Dataset, column: str, keys: Sequence[str]) -> None:
        """Replace all of ``keys`` in one step, by one conditional write; see ``Stage.publish``.

        Equal content keeps its object. What is replaced is deleted by a publish more than an
        hour later, and so is what a killed writer uploaded, after a day.

        Raises:
            LakeBusyError: other writers replaced the manifest first, many times over.
        """
        lake, location = self._lake, manifest_name(zone, dataset)
        partitions = [partition_folder(column, key) for key in keys]
        staged = {p: self._staged(zone, dataset, p) for p in partitions}
        files = {name: file for found in staged.values() for name, file in found.items()}
        checksums = {name: (file.stat().st_size, _crc32c(file)) for name, file in files.items()}
        uploaded: dict[str, PartitionFile] = {}

        def upload(name: str) -> None:
            found = lake._upload_file(name, files[name])
            uploaded[name] = PartitionFile(
                name, found.generation, _count_rows(files[name]), found.size, found.crc32c
            )

        for race in range(_MOST_RACES):
            text, generation = lake._read_version(location)
            before = TableManifest() if text is None else lake._parse_manifest(location, text)
            objects = {stat.name: stat for stat in lake._list(f"{_table(zone, dataset)}/")}
            kept: dict[str, PartitionFile] = {}
            for partition, names in staged.items():
                # Lists, for one folder may hold files of equal content.
                there: dict[tuple[PurePosixPath, int, str], list[PartitionFile]] = {}
                for file in before.partitions.get(partition, ()):
                    if file.name in objects and objects[file.name].generation == file.generation:
                        content = (PurePosixPath(file.name).parent, file.bytes, file.crc32c)
                        there.setdefault(content, []).append(file)
                for name in names:
                    if same := there.get((PurePosixPath(name).parent, *checksums[name])):
                        kept[name] = same.pop()
            with ThreadPoolExecutor(_PARALLEL) as pool:
                list(pool.map(upload, [n for n in files if n not in kept and n not in uploaded]))
            changes = {
                partition: tuple(
                    sorted((kept.get(n) or uploaded[n] for n in names), key=attrgetter("name"))
                )
                for partition, names in staged.items()
            }
            now = lake._clock()
            after = before.replaced(changes, now)
            text = after.to_json().encode()
            if after == before or lake._write_bytes(location, text, generation) is not None:
                self._delete_unused(objects.values(), before, after, now)
                return
            time.sleep(random.uniform(0, 0.05 * 2 ** min(race, 6)))  # noqa: S311  spreads writers
        raise LakeBusyError(
            f"{lake.uri(location)}: other runs replaced it {_MOST_RACES} times while this one tried"
            " to. The table is as they left it. Run this again with fewer runs at once."
        )

    def _delete_unused(
        self,
        objects: Iterable[_Stat],
        before: TableManifest,
        after: TableManifest,
        now: float,
    ) -> None:
        """Delete what was retired an hour ago, and what no manifest ever named, after a day.

        It comes after the manifest that forgets them, so that none can name them again.
        """
        named = after.names()
        unused = [
            stat
            for stat in objects
            if stat.name not in named
            and (stat.name in before.retired or now - stat.created > _ORPHAN_SECONDS)
        ]
        try:
            with ThreadPoolExecutor(_PARALLEL) as pool:
                list(pool.map(lambda stat: self._lake._delete(stat.name), unused))
        except TransientError as error:  # the table is right; a later publish finds them again
            _log.warning("objects that no manifest names were left: %s", error)


class _Lease:
    """A lock that its holder renews: one object, replaced only on condition of its generation.

    Whether a holder is alive is judged by whether its object changes while we watch, so that
    clocks that differ do no harm.
    """

    def __init__(self, lake: GcsLake, name: str) -> None:
        self._lake = lake
        self._name = name
        self._owner = f"{this_process()} on {socket.gethostname()}, {uuid.uuid4().hex}"
        self._generation = 0
        self._stop = threading.Event()
        self._renewal = threading.Thread(target=self._renew, daemon=True)
        self.lost = False

    def acquire(self, timeout_s: float) -> None:
        """Wait for the lease.

        Raises:
            LakeBusyError: others held it for ``timeout_s`` seconds.
        """
        deadline = time.monotonic() + timeout_s
        told = Wait(self._lake.uri(self._name))
        watched, since, wait = 0, time.monotonic(), 0.1
        while True:
            found = self._lake._stat(self._name)
            generation = found.generation if found else 0
            if generation != watched:
                watched, since = generation, time.monotonic()
            if found is None or self._expired(found, since):
                if self._write(generation):
                    self._renewal.start()
                    return
            elif time.monotonic() >= deadline:
                raise LakeBusyError(
                    f"{self._lake.uri(self._name)} was held by another run for {timeout_s:.0f} s:"
                    f" {self._holder()}. See the runs in progress in the UI; end the one that hangs"
                    " and run this again."
                )
            told.tell(self._holder)
            time.sleep(min(wait, max(0.01, deadline - time.monotonic())))
            wait = min(wait * 1.5, self._lake.lease_s / 4, 5)

    def _holder(self) -> str:
        return str(self._read()[0].get("owner", "an unknown run"))

    def _expired(self, found: _Stat, since: float) -> bool:
        lease_s = self._lake.lease_s
        # A renewal is a new object: this is when it last gave a sign.
        silent = self._lake._clock() - found.created
        return time.monotonic() - since > lease_s or silent > lease_s + _CLOCK_SKEW_SECONDS

    def _write(self, expected: int) -> bool:
        body = {"owner": self._owner, "expires": self._lake._clock() + self._lake.lease_s}
        content = json.dumps(body).encode()
        written = self._lake._write_bytes(self._name, content, expected, self._lake.lease_s / 3)
        if written is None:
            state, generation = self._read()
            if state.get("owner") == self._owner:  # ours: the answer to a first try was lost
                written = generation
        self._generation = written or self._generation
        return written is not None

    def _read(self) -> tuple[dict[str, Any], int]:
        text, generation = self._lake._read_version(self._name)
        try:
            state = json.loads(text or b"{}")
        except ValueError:
            state = {}
        return (state if isinstance(state, dict) else {}), generation

    def _renew(self) -> None:
        while not self._stop.wait(self._lake.lease_s / 3):
            try:
                self.lost = not self._write(self._generation)
            except (TransientError, PermanentError) as error:  # the next turn tries again
                _log.warning("the lock %s could not be renewed: %s", self._name, error)
            if self.lost:
                return

    def release(self) -> None:
        """Give it back, if it is still ours."""
        self._stop.set()
        self._renewal.join()
        try:
            if not self.lost:
                self._lake._delete(self._name, self._generation)
        except TransientError as error:  # it ends by itself
            _log.warning("the lock %s was not given back: %s", self._name, error)


def manifest_name(zone: str, dataset: Dataset) -> str:
    """The object that says which objects are the table."""
    return f"_state/tables/{_table(zone, dataset)}.json"


def _table(zone: str, dataset: Dataset) -> str:
    return f"{zone}/{dataset.folder}"


_BUCKETS: set[tuple[str | None, str]] = set()


@lru_cache(maxsize=8)
def _client(emulator_host: str | None) -> "storage.Client":
    if emulator_host is None:
        from dagster_gcp.gcs import GCSResource

        return GCSResource(project=None).get_client()
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    return storage.Client(
        project="emulated",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": emulator_host},
    )


def _crc32c(file: Path) -> str:
    """A file's checksum as Cloud Storage writes it."""
    import base64

    import google_crc32c

    new: Any = google_crc32c.Checksum  # the library has no types
    checksum = new()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            checksum.update(piece)
    return base64.b64encode(checksum.digest()).decode()


def _count_rows(file: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(file).num_rows)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


def _sweep(parent: Path) -> None:
    """Remove what was not used for a week, or what killed runs left behind."""
    if not parent.is_dir():
        return
    for old in parent.iterdir():
        with suppress(FileNotFoundError):  # another run may be ending
            if time.time() - old.stat().st_mtime > _UNUSED_SECONDS:
                shutil.rmtree(old, ignore_errors=True)

"""Tables of the lake: Delta tables, whose log says which files are theirs.

Here: what a table has, now and as of a version; commits that replace partitions or add files;
transactions; history and restoring. Not here: where files lie (objects.py), how they are written
(staging.py), which of them are of no more use (vacuum.py).

Files are written first, under names that are used once, and then committed: no row is written to
commit it. A reader that asks the table sees all of a commit or nothing of it. A commit that loses
a race is made again on what is there now. Source: "Delta Transaction Log Protocol",
github.com/delta-io/delta.
"""

import json
import random
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import unquote

from retail_assets.dataset import Dataset
from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.log import LogStore, list_commits, read_actions

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from deltalake import DeltaTable

_MOST_RACES = 12
_COMMIT_ID = "commit_id"
_MANY_FILES = 10_000
# Of the log: entries that no checkpoint needs are kept this long, for history.
_LOG_DAYS = 30


class TableSchemaError(PermanentError):
    """A table of the lake has columns that its contract has not, or has otherwise."""


class BrokenTableError(PermanentError):
    """A table's log cannot be read."""


class UnknownVersionError(PermanentError):
    """A table has no such version, or no longer all files of it."""


class TableBusyError(TransientError):
    """Other writers committed first, many times over."""


class TransactionLostError(TransientError):
    """Another writer moved a transaction's number on, from which this one began."""


class Store(LogStore, Protocol):
    """What a table asks of the lake that it lies in."""

    root: str
    history_days: float

    def storage_options(self) -> dict[str, str] | None:
        """How delta-rs reaches the lake; None for a folder."""
        ...

    def table_faults(self, doing: str, uri: str) -> "AbstractContextManager[None]":
        """Say by whose fault a commit or a reading failed."""
        ...

    def require_new_layout(self) -> None:
        """Refuse a lake that an earlier version wrote."""
        ...


class TableFile(NamedTuple):
    """A file of a table: its name below the lake's root, its partition's key, rows and bytes."""

    name: str
    key: str
    rows: int
    size: int


class NewFile(NamedTuple):
    """A file to be committed: its name below the table's folder, and what it holds."""

    name: str
    key: str
    rows: int
    size: int


@dataclass(frozen=True)
class Snapshot:
    """A table as of a version, -1 where there is none yet.

    ``columns`` are the fields of its ``files``, by name; of 100,000, not all need be made.
    """

    version: int
    columns: tuple[Sequence[str], Sequence[str], Sequence[int], Sequence[int]] = ((), (), (), ())

    @cached_property
    def files(self) -> Sequence[TableFile]:
        """The table's files, by name."""
        return tuple(map(TableFile, *self.columns))

    @cached_property
    def by_key(self) -> Mapping[str, Sequence[TableFile]]:
        """Files of each partition, by name."""
        found: dict[str, list[TableFile]] = {}
        for file in self.files:
            found.setdefault(file.key, []).append(file)
        return found

    @cached_property
    def names(self) -> Mapping[str, str]:
        """The name of a file of each partition that has a ledger: each of its files says it."""
        names, keys, *_ = self.columns
        return {k: n for n, k in zip(names, keys, strict=True) if k in self.fingerprints}

    @cached_property
    def ledgers(self) -> Mapping[str, Ledger]:
        """The ledger of each partition that has one."""
        found = {key: Ledger.of_file(name) for key, name in self.names.items()}
        return {key: ledger for key, ledger in found.items() if ledger is not None}

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each partition that has a ledger."""
        names, keys, *_ = self.columns
        found = zip(keys, map(Ledger.fingerprint_in, names), strict=True)
        return {key: fingerprint for key, fingerprint in found if fingerprint is not None}

    @property
    def rows(self) -> int:
        """Rows of all partitions."""
        return sum(file.rows for file in self.files)

    def rows_of(self, keys: Iterable[str]) -> dict[str, int]:
        """Rows of each of the partitions ``keys``; 0 where it is empty."""
        return {key: sum(file.rows for file in self.by_key.get(key, ())) for key in keys}

    def filled(self, keys: Iterable[str] | None = None) -> list[TableFile]:
        """Files that have rows, of the partitions ``keys`` or of all."""
        if keys is None:
            return [file for file in self.files if file.rows]
        return [file for key in keys for file in self.by_key.get(key, ()) if file.rows]


@dataclass(frozen=True)
class Commit:
    """One entry of a table's history, and whether that version can still be read."""

    version: int
    time: datetime
    operation: str
    told: Mapping[str, str] = field(default_factory=dict)
    readable: bool = True


class LakeTable:
    """The Delta table of a dataset, whose files lie in ``<zone>/<domain>/<name>/``."""

    def __init__(self, store: Store, dataset: Dataset) -> None:
        self._store = store
        self.dataset = dataset
        self.uri = f"{store.root}/{dataset.location}"

    def snapshot(self, version: int | None = None) -> Snapshot:
        """What the table has now, or had as of ``version``.

        Raises:
            UnknownVersionError: there is no such version.
        """
        table = self._open(version)
        return Snapshot(-1) if table is None else self._read(table)

    def transactions(self, names: Iterable[str]) -> dict[str, int]:
        """The numbers of those transactions that there are, as of one version."""
        table = self._open()
        if table is None:
            return {}
        found = {name: table.transaction_version(name) for name in names}
        return {name: number for name, number in found.items() if number is not None}

    def commit(
        self,
        add: Sequence[NewFile],
        *,
        replace: Collection[str] = (),
        remove: Callable[[TableFile], bool] | None = None,
        in_place_of: Collection[str] = (),
        told: Mapping[str, object] | None = None,
        transactions: Mapping[str, tuple[int | None, int]] | None = None,
    ) -> tuple[int, Sequence[TableFile]]:
        """Add files, and take away those of the partitions ``replace``, all at once.

        ``remove`` names further files that go, and so does ``in_place_of``, by their names: where
        one of these is no longer the table's, nothing is committed. ``told`` is what the history
        says of it. ``transactions`` are numbers by name: what each must be before (None: not
        there), and what this commit makes it. Returns the version, and what went.

        With ``remove``, what is to be added and is there already stays as it is.

        Raises:
            TableSchemaError: the table has other columns than the contract.
            TransactionLostError: a number is another than it must be.
            TableBusyError: others were first, ``_MOST_RACES`` times.
        """
        from deltalake import CommitProperties, Transaction
        from deltalake.exceptions import CommitFailedError

        identity = uuid.uuid4().hex
        properties = CommitProperties(
            custom_metadata=_texts({_COMMIT_ID: identity, **(told or {})}),
            max_commit_retries=0,  # here: on what is there then
            app_transactions=[Transaction(n, v) for n, (_, v) in (transactions or {}).items()],
        )
        replaced, swapped = frozenset(replace), frozenset(in_place_of)
        tried, gone = -1, list[TableFile]()
        for race in range(_MOST_RACES):
            table = self._open()
            if tried >= 0 and self._wrote(tried, identity):
                return tried, gone  # it was ours: the answer was lost
            if table is None:
                tried = 0
                if self._create(add, properties):
                    self._checkpoint(add)
                    return 0, ()
            else:
                self._require_numbers(table, transactions or {})
                # Where files are added alone, those that are there are not looked at.
                files = self._read(table).files if replaced or swapped or remove else ()
                there = {file.name for file in files}
                if not swapped <= there:
                    return table.version(), ()  # another writer was there
                new = [x for x in add if f"{self.dataset.location}/{x.name}" not in there]
                gone = [
                    file
                    for file in files
                    if file.key in replaced
                    or file.name in swapped
                    or (remove is not None and remove(file))
                ]
                if not (new or gone or transactions):
                    return table.version(), ()
                try:
                    with self._store.table_faults("write", self.uri):
                        self._require_columns(table)
                        tried = table.version() + 1
                        table.create_write_transaction(
                            [*map(self._added, new), *map(self._removed, gone)],
                            "append",
                            self._schema(),
                            self._by(),
                            commit_properties=properties,
                        )
                except CommitFailedError:  # another was first: on what is there now
                    pass
                else:
                    self._checkpoint(add)
                    return tried, gone
            time.sleep(random.uniform(0, 0.05 * 2 ** min(race, 6)))  # noqa: S311  spreads writers
        raise TableBusyError(
            f"{self.uri}: other runs committed first {_MOST_RACES} times while this one tried to."
            " The table is as they left it. Run this again with fewer runs at once."
        )

    def history(self, limit: int | None = None) -> list[Commit]:
        """The table's commits, the latest first."""
        versions = sorted(list_commits(self._store, self.dataset.location), reverse=True)[:limit]
        kept_since = time.time() - self._store.history_days * 86_400
        commits = []
        # A version can be read for as long after it was replaced as files are kept.
        replaced_at = float("inf")
        said = read_actions(self._store, self.dataset.location, versions, "commitInfo")
        for version, entries in said:
            entry = entries[0] if entries else {}
            at = entry.get("timestamp", 0) / 1000
            commits.append(
                Commit(
                    version=version,
                    time=datetime.fromtimestamp(at, UTC),
                    operation=str(entry.get("operation", "")),
                    told={k: str(v) for k, v in sorted(entry.items()) if k not in _NOT_TOLD},
                    readable=replaced_at >= kept_since,
                )
            )
            replaced_at = at
        return commits

    def restore(self, version: int, told: Mapping[str, object] | None = None) -> int:
        """Make the table what it was as of ``version``, by a commit; the version of that.

        Raises:
            UnknownVersionError: there is none, or files of it are gone.
        """
        wanted = self.snapshot(version)
        location = self.dataset.location
        there = {found.name for found in self._store.list_objects(f"{location}/")}
        lacking = [file.name for file in wanted.files if file.name not in there]
        if lacking:
            raise UnknownVersionError(
                f"{self.dataset.table}: version {version} can no longer be restored:"
                f" {len(lacking)} of its files are gone, {lacking[0]} the first. Files are kept for"
                f" {self._store.history_days:g} days (RETAIL_LAKE_HISTORY_DAYS). See: retail-assets"
                f" history {self.dataset.table}"
            )
        names = {file.name for file in wanted.files}
        done, _ = self.commit(
            [NewFile(f.name[len(location) + 1 :], f.key, f.rows, f.size) for f in wanted.files],
            remove=lambda file: file.name not in names,
            told={"restored_version": version, **(told or {})},
        )
        return done

    # What follows is the only talk with delta-rs.

    def _open(self, version: int | None = None) -> "DeltaTable | None":
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        with self._store.table_faults("read", self.uri):
            try:
                return DeltaTable(
                    self.uri, version=version, storage_options=self._store.storage_options()
                )
            except TableNotFoundError:
                if version is None:
                    return None
                raise self._unknown(version) from None
            except OverflowError:
                raise self._unknown(version) from None
            except DeltaError as error:
                if version is not None and self._open() is not None:
                    raise self._unknown(version) from error
                raise BrokenTableError(
                    f"{self.uri}: its _delta_log cannot be read"
                    f" ({str(error).partition(chr(10))[0][:300]}). If its last entry was cut short"
                    " by a machine that died, delete that file; else put _delta_log back from a"
                    " backup, or move the folder away and materialize all of it again."
                ) from error

    def _unknown(self, version: int | None) -> UnknownVersionError:
        return UnknownVersionError(
            f"{self.dataset.table} has no version {version}. See: retail-assets history"
            f" {self.dataset.table}"
        )

    def _read(self, table: "DeltaTable") -> Snapshot:
        import pyarrow as pa

        found = pa.table(table.get_add_actions(flatten=True)).sort_by("path")
        column, folder = self.dataset.lake_partition, self.dataset.location
        keys = (
            found.column(f"partition.{column.name}").cast(pa.string()).to_pylist()
            if column
            else [""] * found.num_rows
        )
        columns = (
            [f"{folder}/{unquote(path)}" for path in found.column("path").to_pylist()],
            keys,
            found.column("num_records").to_pylist(),
            found.column("size_bytes").to_pylist(),
        )
        return Snapshot(table.version(), columns)

    def _create(self, add: Sequence[NewFile], properties: Any) -> bool:
        """Whether the table was made by this; else another was first."""
        from deltalake.exceptions import CommitFailedError, DeltaError
        from deltalake.transaction import create_table_with_add_actions

        self._store.require_new_layout()
        days = max(_LOG_DAYS, int(self._store.history_days) + 1)
        try:
            with self._store.table_faults("write", self.uri):
                create_table_with_add_actions(
                    self.uri,
                    self._schema(),
                    [self._added(file) for file in add],
                    mode="error",
                    partition_by=self._by(),
                    name=self.dataset.name,
                    description=self.dataset.description,
                    configuration={"delta.logRetentionDuration": f"interval {days} days"},
                    storage_options=self._store.storage_options(),
                    commit_properties=properties,
                )
        except (CommitFailedError, DeltaError):
            if self._open() is None:
                raise
            return False
        return True

    def _checkpoint(self, added: Sequence[NewFile]) -> None:
        """Sum the log up where this commit's entry is long: others come every hundred commits."""
        from deltalake.exceptions import DeltaError

        # What was committed stands without.
        with suppress(DeltaError, OSError):
            if len(added) >= _MANY_FILES and (table := self._open()):
                table.create_checkpoint()

    def _require_numbers(
        self, table: "DeltaTable", transactions: Mapping[str, tuple[int | None, int]]
    ) -> None:
        for name, (before, _) in transactions.items():
            if (found := table.transaction_version(name)) != before:
                raise TransactionLostError(
                    f"{self.uri}: {name} was {before} when this began, and is {found} now: another"
                    " writer went on meanwhile. Nothing was written. Run this again."
                )

    def _wrote(self, version: int, identity: str) -> bool:
        """Whether a version is the commit of that identity."""
        said = read_actions(self._store, self.dataset.location, [version], "commitInfo")
        return any(info.get(_COMMIT_ID) == identity for _, infos in said for info in infos)

    def _require_columns(self, table: "DeltaTable") -> None:
        """Bring the table to the contract where that only adds nullable columns."""
        found = {f.name: f for f in table.schema().fields}
        declared = {f.name: f for f in self._schema().fields}
        missing = [f for name, f in declared.items() if name not in found]
        required = {f.name for f in self.dataset.lake_schema if not f.nullable}
        drift = [f"{f.name} is missing" for f in missing if f.name in required]
        for name, was in found.items():
            if (wanted := declared.get(name)) is None:
                drift.append(f"{name} is not in it")
            elif was.type != wanted.type:
                kinds = [getattr(kind, "type", kind) for kind in (was.type, wanted.type)]
                drift.append(f"{name} is {kinds[0]} and not {kinds[1]}")
        if drift:
            raise TableSchemaError(
                f"{self.uri} differs from the contract of {self.dataset.table}: {', '.join(drift)}."
                " Nothing was written. Move the folder away and materialize all of it again."
            )
        if missing:
            table.alter.add_columns(missing)

    def _schema(self) -> Any:
        import pyarrow as pa
        from deltalake import Schema

        # NOT NULL would need the feature "invariants", which delta-rs does not declare beside that
        # of naive timestamps: Delta's own reader then refuses the table. The files have it.
        return Schema.from_arrow(pa.schema(f.with_nullable(True) for f in self.dataset.lake_schema))

    def _by(self) -> list[str]:
        column = self.dataset.lake_partition
        return [column.name] if column else []

    def _values(self, key: str) -> dict[str, str | None]:
        column = self.dataset.lake_partition
        if bool(column) != bool(key):
            raise ValueError(
                f"{self.dataset.table}: partition {key!r}: expected a key where the table has"
                " partitions, and '' where it has none"
            )
        return {column.name: key} if column else {}

    def _added(self, file: NewFile) -> Any:
        from deltalake.transaction import AddAction

        told = json.dumps({"numRecords": file.rows})
        now = int(time.time() * 1000)
        return AddAction(file.name, file.size, self._values(file.key), now, True, told)

    def _removed(self, file: TableFile) -> Any:
        from deltalake.transaction import RemoveAction

        name = file.name[len(self.dataset.location) + 1 :]
        now = int(time.time() * 1000)
        return RemoveAction(name, True, now, file.size, self._values(file.key))


_NOT_TOLD = {
    *("timestamp", "operation", "operationParameters", "engineInfo", "clientVersion", "version"),
    *("readVersion", "isolationLevel", "isBlindAppend", "operationMetrics", _COMMIT_ID),
}


def _texts(told: Mapping[str, object]) -> dict[str, str]:
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in told.items()}

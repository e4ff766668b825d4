"""Raw files in the lake: which there are, what is known of those taken, which are new work.

Here: finding drops by one listing, and what the tables' ledgers say of them. Not here: what becomes
of their rows (taking.py), when that happens (automation.py).
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from retail_assets.dataset import Dataset
from retail_assets.feeds import WHOLE_TABLE
from retail_assets.feeds.files import FileTable
from retail_assets.resources.lake import LakeObject, LakeResource
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.restamping import restamp
from retail_assets.resources.lake.restoring import set_aside
from retail_assets.resources.lake.tables import Snapshot

_DIGITS = 32  # of a SHA-256, in a fingerprint
_HASH_BUDGET_BYTES = 512 * 1024**2
# What names end in, or begin with, while their file is on its way.
_UNFINISHED = (".part", ".tmp")
_HIDDEN = (".", "_")


@dataclass(frozen=True)
class Changes:
    """Raw files that are new work, by table and drop.

    ``touched`` are delivered again with the bytes that were taken: no work, but a newer version.
    ``restored`` are those that a person took out of the table by restoring it.
    """

    wanted: dict[str, dict[str, LakeObject]] = field(default_factory=dict)
    touched: dict[str, dict[str, Ledger]] = field(default_factory=dict)
    restored: dict[str, set[str]] = field(default_factory=dict)

    @property
    def dates(self) -> set[str]:
        """Every date of which a file is new work."""
        return {key for files in self.wanted.values() for key in files if key != WHOLE_TABLE}

    @property
    def small(self) -> set[str]:
        """The tables of one file whose file is new work."""
        return {table for table, files in self.wanted.items() if WHOLE_TABLE in files}


class Look:
    """One look at the raw files of ``tables``, and at what the lake says of those taken.

    Attributes:
        files: the raw files, by table and drop; the one file of a table has the key WHOLE_TABLE.
        strays: names in the folders of dated files that are no drop's.
    """

    def __init__(self, lake: LakeResource, tables: Sequence[FileTable]) -> None:
        self.lake, self.tables = lake, tables
        self.files: dict[str, dict[str, LakeObject]] = {}
        others: dict[str, None] = {}
        for table in tables:
            found = self.files.setdefault(table.dataset.name, {})
            prefix, _, suffix = table.path.partition("{date}")
            # Names may go on after that of a single file.
            folder = f"{prefix.rpartition('/')[0]}/" if table.is_dated else table.path
            for entry in lake.list_objects(folder):
                key = entry.name[len(prefix) : -len(suffix)] if table.is_dated else WHOLE_TABLE
                if table.file_name(key) == entry.name and (is_date(key) or not table.is_dated):
                    found[key] = entry
                elif table.is_dated and not _is_unfinished(entry.name):
                    others[entry.name] = None
        # A folder may have the files of several tables.
        known = {x.name for files in self.files.values() for x in files.values()} if others else ()
        self.strays = [name for name in others if name not in known]
        self._snapshots: dict[str, Snapshot] = {}

    def table(self, dataset: Dataset) -> Snapshot:
        """What a table had when it was first asked for."""
        if dataset.name not in self._snapshots:
            self._snapshots[dataset.name] = self.lake.table(dataset).snapshot()
        return self._snapshots[dataset.name]

    @property
    def delivered(self) -> set[str]:
        """Every date that has a file."""
        return {key for files in self.files.values() for key in files if key != WHOLE_TABLE}

    @property
    def taken(self) -> set[str]:
        """Every date of which a file was taken."""
        return {key for x in self.tables if x.is_dated for key in self.table(x.dataset).names}

    def deleted(self, dataset: Dataset) -> list[str]:
        """The drops of a table that were taken and have no file."""
        return sorted(self.table(dataset).names.keys() - self.files[dataset.name].keys())

    def changes(self, tables: Iterable[FileTable] | None = None) -> Changes:
        """What of these tables, or of all, is new work.

        A file of another size is. One of the same size and another version is hashed, up to half a
        gigabyte in all; beyond that it counts as new work, which does no harm, and so it does where
        the table's own files are gone. One that a person set aside by restoring the table is none.
        """
        changes, budget = Changes(), _HASH_BUDGET_BYTES

        def is_of(entry: LakeObject, ledger: Ledger) -> bool:
            nonlocal budget
            if not entry.size == ledger.size <= budget:
                return False
            budget -= entry.size
            return has_bytes(ledger, hash_file(self.lake.local_file(entry.name)))

        for item in self.tables if tables is None else tables:
            table, typing = item.dataset.name, f"-{item.version}"
            snapshot, aside = self.table(item.dataset), set_aside(self.lake, item.dataset)
            names = snapshot.names
            wanted = changes.wanted.setdefault(table, {})
            touched = changes.touched.setdefault(table, {})
            out = changes.restored.setdefault(table, set())
            for key, entry in self.files[table].items():
                name, was = names.get(key, ""), aside.get(key)
                if Ledger.has_stamp(name, entry.version, typing):
                    continue
                ledger = Ledger.of_file(name)
                if ledger is not None and not ledger.fingerprint.endswith(typing):
                    ledger = None
                if was is not None and was.stamp == entry.version:
                    out.add(key)
                elif (
                    ledger is not None
                    and is_of(entry, ledger)
                    and all(self.lake.exists(file.name) for file in snapshot.by_key[key])
                ):
                    touched[key] = ledger._replace(stamp=entry.version)
                elif was is not None and is_of(entry, was):
                    out.add(key)
                else:
                    wanted[key] = entry
        return changes

    def remember_touched(self, changes: Changes) -> None:
        """Write newer versions of the same bytes to the ledgers, so that none is hashed again."""
        for table in self.tables:
            if ledgers := changes.touched[table.dataset.name]:
                restamp(self.lake, table.dataset, self.table(table.dataset), ledgers)


def fingerprint_of(sha256: str, version: str) -> str:
    """Equal where a processed partition is: by the raw file's bytes, and by their typing."""
    return f"{sha256[:_DIGITS]}-{version}"


def has_bytes(ledger: Ledger, sha256: str) -> bool:
    """Whether a partition was made of the bytes of that SHA-256, whatever the typing."""
    return ledger.fingerprint.startswith(f"{sha256[:_DIGITS]}-")


def _is_unfinished(name: str) -> bool:
    return name.endswith(_UNFINISHED) or name.rpartition("/")[2].startswith(_HIDDEN)


def is_date(text: str) -> bool:
    """Whether it is a day as YYYY-MM-DD, and nothing else that Python takes for one."""
    try:
        return date.fromisoformat(text).isoformat() == text  # it is not of 20181231, 2018-W52-1
    except ValueError:
        return False


def hash_file(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_drops(keys: Iterable[str], most: int = 5) -> str:
    """Some of the drops, for a message: 2018-06-30, 2018-12-31 and 3 more."""
    chosen = sorted(keys)
    rest = f" and {len(chosen) - most} more" if len(chosen) > most else ""
    return ", ".join(chosen[:most]) + rest

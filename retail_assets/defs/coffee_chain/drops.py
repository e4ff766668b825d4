"""The raw files of the coffee chain: which are in the lake, and what is known of those taken.

Here: finding drops by one listing, what the tables' ledgers say of them, telling new work from
old. Not here: what becomes of their rows (taking.py), when that happens (automation.py).
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain.contract import (
    CUSTOMER,
    OUTLET,
    PRODUCT,
    RAW_CUSTOMER,
    RAW_OUTLET,
    RAW_PRODUCT,
    RAW_SALES,
    SALES,
    RawFiles,
)
from retail_assets.defs.coffee_chain.transforms import (
    CUSTOMER_COLUMNS,
    SALES_COLUMNS,
    TYPING_VERSION,
    SmallTable,
    stage_customers,
    stage_sales,
    type_outlets,
    type_products,
)
from retail_assets.domain import REFUSED_PARTITIONS
from retail_assets.errors import PermanentError
from retail_assets.resources.lake import LakeObject, LakeResource
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.restamping import restamp
from retail_assets.resources.lake.restoring import set_aside
from retail_assets.resources.lake.tables import Snapshot

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

WHOLE_TABLE = ""
_MOST_REASONS = 3
_DIGITS = 32  # of a SHA-256, in a fingerprint
_HASH_BUDGET_BYTES = 512 * 1024**2
# What names end in, or begin with, while their file is on its way.
_UNFINISHED = (".part", ".tmp")
_HIDDEN = (".", "_")


class DropError(PermanentError):
    """A drop cannot be taken; the message says which, why, and what to do."""


class RefusedDropsError(DropError):
    """Some drops of a range cannot be taken, each for its reason; nothing of the range was."""

    def __init__(self, reasons: Mapping[str, PermanentError], asked: int) -> None:
        told = " ".join(str(reasons[key]) for key in sorted(reasons)[:_MOST_REASONS])
        more = len(reasons) - _MOST_REASONS
        counted = f"{len(reasons)} of {asked} drops cannot be taken, and of this table none was. "
        super().__init__(
            f"{counted if asked > 1 else ''}{told}{f' And {more} more.' if more > 0 else ''}"
        )
        self.metadata = {REFUSED_PARTITIONS: sorted(reasons)}


@dataclass(frozen=True)
class SmallFile:
    """A table of one raw file, which pandas types.

    ``numbers`` name the raw fields that may have any.
    """

    dataset: Dataset
    raw: RawFiles
    type_rows: "Callable[[pd.DataFrame], SmallTable]"
    numbers: tuple[str, ...]


@dataclass(frozen=True)
class DroppedFiles:
    """A table of dated raw files, which Spark types.

    ``columns`` name the raw fields, ``numbers`` those that may have any; ``part_column`` is the
    folder below a drop's, if any.
    """

    dataset: Dataset
    raw: RawFiles
    columns: tuple[str, ...]
    stage_rows: "Callable[[DataFrame, str], DataFrame]"
    numbers: tuple[str, ...]
    part_column: str | None = None


SMALL_FILES = (
    SmallFile(OUTLET, RAW_OUTLET, type_outlets, ("outlet_id", "postcode")),
    SmallFile(PRODUCT, RAW_PRODUCT, type_products, ("no", "product_id", "product_price")),
)
CUSTOMER_DROPS = DroppedFiles(
    CUSTOMER, RAW_CUSTOMER, CUSTOMER_COLUMNS, stage_customers, ("customer_id",)
)
SALES_DROPS = DroppedFiles(
    SALES,
    RAW_SALES,
    SALES_COLUMNS,
    stage_sales,
    ("customer_id", "outlet_id", "product_id", "quantity"),
    "sale_year",
)
DROPPED_FILES = (CUSTOMER_DROPS, SALES_DROPS)


class Known:
    """What the lake's tables say of the raw files that were taken; each is opened once.

    A small table's one file has the key WHOLE_TABLE.
    """

    def __init__(self, lake: LakeResource) -> None:
        self._lake = lake
        self._snapshots: dict[str, Snapshot] = {}

    def of(self, dataset: Dataset) -> Snapshot:
        """What a table had when it was first asked for."""
        if dataset.name not in self._snapshots:
            self._snapshots[dataset.name] = self._lake.table(dataset).snapshot()
        return self._snapshots[dataset.name]

    @property
    def dates(self) -> set[str]:
        """Every date of which a file was taken."""
        return {key for large in DROPPED_FILES for key in self.of(large.dataset).names}


def fingerprint_of(sha256: str) -> str:
    """Equal where a processed partition is: by the raw file's bytes, and by how they are typed."""
    return f"{sha256[:_DIGITS]}-{TYPING_VERSION}"


def has_bytes(ledger: Ledger, sha256: str) -> bool:
    """Whether a partition was made of the bytes of that SHA-256, whatever the typing."""
    return ledger.fingerprint.startswith(f"{sha256[:_DIGITS]}-")


@dataclass(frozen=True)
class Listing:
    """The raw files in the lake: by table and drop, and those whose names are no drop's."""

    files: Mapping[str, Mapping[str, LakeObject]]
    strays: tuple[str, ...] = ()

    def of(self, dataset: Dataset) -> Mapping[str, LakeObject]:
        """The raw files of a table by drop."""
        return self.files.get(dataset.name, {})

    @property
    def dates(self) -> set[str]:
        """Every date that has a file."""
        return {key for large in DROPPED_FILES for key in self.of(large.dataset)}


def list_raw(lake: LakeResource) -> Listing:
    """Look once at every raw file of the domain."""
    files: dict[str, dict[str, LakeObject]] = {}
    strays: list[str] = []
    for small in SMALL_FILES:
        found = lake.list_objects(small.raw.path)  # names may go on after the path
        entry = next((entry for entry in found if entry.name == small.raw.path), None)
        files[small.dataset.name] = {} if entry is None else {WHOLE_TABLE: entry}
    for large in DROPPED_FILES:
        prefix, suffix = large.raw.path.split("{date}")
        drops = files.setdefault(large.dataset.name, {})
        for entry in lake.list_objects(f"{prefix.rpartition('/')[0]}/"):
            name = entry.name
            key = name[len(prefix) : -len(suffix)]
            if name.startswith(prefix) and name.endswith(suffix) and is_date(key):
                drops[key] = entry
            elif not _is_unfinished(name):
                strays.append(name)
    return Listing(files, tuple(strays))


def _is_unfinished(name: str) -> bool:
    return name.endswith(_UNFINISHED) or name.rpartition("/")[2].startswith(_HIDDEN)


def is_date(text: str) -> bool:
    """Whether it is a day as YYYY-MM-DD, and nothing else that Python takes for one."""
    if len(text) != 10 or text[4] != "-" or text[7] != "-":  # such as 20181231 and 2018-W52-1
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Changes:
    """Raw files that are new work: for each table the drops, and those that were deleted.

    ``touched`` are delivered again with the bytes that were taken: no work, but a newer version.
    Where the table's own files are gone, that is new work.
    ``restored`` are those that a person took out of the table by restoring it.
    """

    wanted: dict[str, dict[str, LakeObject]]
    deleted: dict[str, tuple[str, ...]]
    touched: dict[str, dict[str, Ledger]]
    restored: dict[str, set[str]]

    @property
    def dates(self) -> set[str]:
        """Every date of which a file is new work."""
        return {key for large in DROPPED_FILES for key in self.wanted[large.dataset.name]}

    @property
    def small(self) -> set[str]:
        """The small tables whose file is new work."""
        return {item.dataset.name for item in SMALL_FILES if self.wanted[item.dataset.name]}


def compare(lake: LakeResource, listing: Listing, known: Known) -> Changes:
    """What of the listing is new work.

    A file of another size is. One of the same size and another version is hashed, up to half a
    gigabyte in all; beyond that it counts as new work, which does no harm. One that a person set
    aside by restoring the table is none.
    """
    changes = Changes({}, {}, {}, {})
    budget = _HASH_BUDGET_BYTES
    typing = f"-{TYPING_VERSION}"

    def is_of(entry: LakeObject, ledger: Ledger) -> bool:
        nonlocal budget
        if not entry.size == ledger.size <= budget:
            return False
        budget -= entry.size
        return has_bytes(ledger, hash_file(lake.local_file(entry.name)))

    for item in (*SMALL_FILES, *DROPPED_FILES):
        table, files = item.dataset.name, listing.of(item.dataset)
        snapshot, aside = known.of(item.dataset), set_aside(lake, item.dataset)
        names = snapshot.names
        wanted = changes.wanted.setdefault(table, {})
        touched = changes.touched.setdefault(table, {})
        out = changes.restored.setdefault(table, set())
        changes.deleted[table] = tuple(key for key in names if key not in files)
        for key, entry in files.items():
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
                and all(lake.exists(file.name) for file in snapshot.by_key[key])
            ):
                touched[key] = ledger._replace(stamp=entry.version)
            elif was is not None and is_of(entry, was):
                out.add(key)
            else:
                wanted[key] = entry
    return changes


def find_restored(lake: LakeResource, listing: Listing, known: Known, dataset: Dataset) -> set[str]:
    """Drops of which a person took out of the table what their file still is."""
    if not set_aside(lake, dataset):
        return set()
    return compare(lake, listing, known).restored[dataset.name]


def remember_touched(lake: LakeResource, known: Known, changes: Changes) -> None:
    """Write newer versions of the same bytes to the ledgers, so that none is hashed again."""
    for item in (*SMALL_FILES, *DROPPED_FILES):
        if ledgers := changes.touched[item.dataset.name]:
            restamp(lake, item.dataset, known.of(item.dataset), ledgers)


def hash_file(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_drops(keys: Iterable[str], most: int = 5) -> str:
    """Some of the drops, for a message: 2018-06-30, 2018-12-31 and 3 more."""
    chosen = sorted(keys)
    rest = f" and {len(chosen) - most} more" if len(chosen) > most else ""
    return ", ".join(chosen[:most]) + rest

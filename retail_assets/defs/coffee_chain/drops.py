"""The raw files of the coffee chain: which are in the lake, and what is known of those taken.

Here: finding drops by one listing, the state object that remembers them, telling new work from
old. Not here: what becomes of their rows (assets.py), when that happens (automation.py).
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain.contract import (
    CUSTOMER,
    DOMAIN,
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
from retail_assets.resources.lake import BrokenStateError, LakeObject, LakeResource

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

STATE = f"{DOMAIN}/drops"
_NOTES = f"_state/{STATE}/"
WHOLE_TABLE = ""
_MOST_REASONS = 3
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


class Ledger(NamedTuple):
    """What was taken of a raw file: which version of it, and what became of its rows.

    ``left_out`` counts values that could not be read, of rows that were written.
    """

    version: str
    size: int
    sha256: str
    typing: str
    read: int
    written: int
    duplicates: int
    quarantined: int
    left_out: int = 0

    @property
    def balances(self) -> bool:
        """Whether no row was lost, and none made up."""
        return self.read == self.written + self.duplicates + self.quarantined

    @property
    def fingerprint(self) -> str:
        """Equal where the partition is: by the bytes, and by how they are typed."""
        return _fingerprint(self.sha256, self.typing)

    def to_text(self) -> str:
        """One line, for there may be 100,000 of them in one object."""
        return " ".join(str(value) for value in self)

    @classmethod
    def from_text(cls, text: str) -> "Ledger":
        """The ledger that ``to_text`` wrote."""
        version, size, sha256, typing, *counts = text.split(" ")
        return cls(version, int(size), sha256, typing, *(int(count) for count in counts))


_VALUES = (len(Ledger._fields) - 1, len(Ledger._fields))  # an older one has no left_out


def _fingerprint(sha256: str, typing: str) -> str:
    return f"{sha256[:32]}-{typing}"


@dataclass
class Known:
    """What is known of the raw files that were taken: a ledger by table and drop.

    A small table's one file has the key WHOLE_TABLE. Ledgers stay text until one is asked for.
    """

    texts: dict[str, dict[str, str]] = field(default_factory=dict)

    def ledgers(self, dataset: Dataset) -> dict[str, Ledger]:
        """The ledgers of a table."""
        return {key: Ledger.from_text(text) for key, text in self.of(dataset).items()}

    def of(self, dataset: Dataset) -> dict[str, str]:
        """The ledgers of a table, as text."""
        return self.texts.get(dataset.name, {})

    @property
    def dates(self) -> set[str]:
        """Every date of which a file was taken."""
        return {key for large in DROPPED_FILES for key in self.of(large.dataset)}

    def fingerprints(self, dataset: Dataset) -> dict[str, str]:
        """Fingerprint of each processed partition of a table."""
        # Not by way of ledgers: a tick compares 100,000 of them.
        return {
            key: _fingerprint(sha256, typing)
            for key, text in self.of(dataset).items()
            for _version, _size, sha256, typing, _counts in (text.split(" ", 4),)
        }


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
            key = entry.name[len(prefix) : -len(suffix)]
            if entry.name == large.raw.name(key) and is_date(key):
                drops[key] = entry
            elif not _is_unfinished(entry.name):
                strays.append(entry.name)
    return Listing(files, tuple(strays))


def _is_unfinished(name: str) -> bool:
    return name.endswith(_UNFINISHED) or name.rpartition("/")[2].startswith(_HIDDEN)


def is_date(text: str) -> bool:
    """Whether it is a day as YYYY-MM-DD, and nothing else that Python takes for one."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def read_known(lake: LakeResource) -> Known:
    """The state object; where it was lost, it is rebuilt of the note of each drop.

    Raises:
        BrokenStateError: it is there and is not readable.
    """
    known = _read_state(lake)
    if known is None and next(iter(lake.list_objects(_NOTES)), None) is None:
        return Known()  # and a mere look writes nothing
    if known is None:
        with lake.lock(STATE):
            known = _read_state(lake)
            if known is None:  # still: another process may have rebuilt it
                known = _read_notes(lake)
                lake.write_state(STATE, known.texts)
    return known


def _read_state(lake: LakeResource) -> Known | None:
    state: object = lake.read_state(STATE)
    if state is None:
        return None
    if not isinstance(state, dict) or not all(
        isinstance(texts, dict)
        and all(isinstance(text, str) and text.count(" ") + 1 in _VALUES for text in texts.values())
        for texts in state.values()
    ):
        raise BrokenStateError(
            f"{lake.uri(f'_state/{STATE}.json')} holds something else than a ledger of"
            f" {_VALUES[-1]} values for each table and drop. Delete it: it is rebuilt of the notes"
            " beside it."
        )
    return Known(state)


def _note(dataset: Dataset, key: str) -> str:
    return f"{STATE}/{dataset.name}/{key or 'whole'}"


def _read_notes(lake: LakeResource) -> Known:
    """What was noted of each drop by itself, beside the object that holds all."""
    known = Known()
    tables = {item.dataset.name for item in (*SMALL_FILES, *DROPPED_FILES)}
    for entry in list(lake.list_objects(_NOTES)):
        table, _, file = entry.name.removeprefix(_NOTES).partition("/")
        key = file.removesuffix(".json")
        if table in tables and file.endswith(".json"):
            note = lake.read_state(f"{STATE}/{table}/{key}")
            if note is not None:  # deleted since
                known.texts.setdefault(table, {})[key.replace("whole", WHOLE_TABLE)] = note["taken"]
    return known


def record_drops(
    lake: LakeResource, dataset: Dataset, ledgers: Mapping[str, Ledger | None]
) -> None:
    """Remember what was taken of drops, or forget them where it is None.

    A drop is forgotten before its partition is replaced: if the run ends between, it is new work.
    """
    for key, ledger in ledgers.items():
        if ledger is None:
            lake.delete(f"_state/{_note(dataset, key)}.json")
        else:
            lake.write_state(_note(dataset, key), {"taken": ledger.to_text()})
    with lake.lock(STATE):
        known = _read_state(lake) or _read_notes(lake)
        texts = known.texts.setdefault(dataset.name, {})
        for key, ledger in ledgers.items():
            if ledger is None:
                texts.pop(key, None)
            else:
                texts[key] = ledger.to_text()
        lake.write_state(STATE, known.texts)


@dataclass(frozen=True)
class Changes:
    """Raw files that are new work: for each table the drops, and those that were deleted.

    ``touched`` are delivered again with the bytes that were taken: no work, but a newer version.
    """

    wanted: Mapping[str, Mapping[str, LakeObject]]
    deleted: Mapping[str, tuple[str, ...]]
    touched: Mapping[str, Mapping[str, Ledger]]

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
    gigabyte in all; beyond that it counts as new work, which does no harm.
    """
    wanted: dict[str, dict[str, LakeObject]] = {}
    deleted: dict[str, tuple[str, ...]] = {}
    touched: dict[str, dict[str, Ledger]] = {}
    budget = _HASH_BUDGET_BYTES
    for item in (*SMALL_FILES, *DROPPED_FILES):
        table = item.dataset.name
        files, texts = listing.of(item.dataset), known.of(item.dataset)
        wanted[table], touched[table] = {}, {}
        deleted[table] = tuple(key for key in texts if key not in files)
        for key, entry in files.items():
            text = texts.get(key)
            # By text, and not by ledger: 100,000 of them are compared in a tick.
            if text is not None and text.startswith(f"{entry.version} "):
                if text.split(" ", 4)[3] == TYPING_VERSION:
                    continue
                wanted[table][key] = entry
                continue
            taken = None if text is None else Ledger.from_text(text)
            if (
                taken is not None
                and taken.typing == TYPING_VERSION
                and taken.size == entry.size <= budget
            ):
                budget -= entry.size
                if hash_file(lake.local_file(entry.name)) == taken.sha256:
                    touched[table][key] = taken._replace(version=entry.version)
                    continue
            wanted[table][key] = entry
    return Changes(wanted, deleted, touched)


def remember_touched(lake: LakeResource, changes: Changes) -> None:
    """Take note of newer versions of the same bytes, so that they are not hashed again."""
    for item in (*SMALL_FILES, *DROPPED_FILES):
        if ledgers := changes.touched[item.dataset.name]:
            record_drops(lake, item.dataset, ledgers)


def hash_file(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_drops(keys: Iterable[str], most: int = 5) -> str:
    """Some of the drops, for a message: 2018-06-30, 2018-12-31 and 3 more."""
    chosen = sorted(keys)
    rest = f" and {len(chosen) - most} more" if len(chosen) > most else ""
    return ", ".join(chosen[:most]) + rest

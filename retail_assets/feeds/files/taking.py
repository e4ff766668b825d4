"""Taking raw files into the lake's tables: typed, staged, accounted for, published.

Here: which files a run takes, refusing those that it cannot, and the ledger of each. Not here: how
text becomes values (each table's typing), which files are new work (listing.py), Dagster's assets.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retail_assets.dataset import Dataset
from retail_assets.errors import PermanentError
from retail_assets.feeds import WHOLE_TABLE
from retail_assets.feeds.files import FileFeed, FileTable, quarantine_of
from retail_assets.feeds.files.listing import Look, fingerprint_of, has_bytes
from retail_assets.feeds.processed import RefusedPartitionsError, Taken, processed_key, publish
from retail_assets.losses import SKIPPED, Quarantined, refuse_to_shrink
from retail_assets.resources.lake import LakeObject, LakeResource
from retail_assets.resources.lake.ledger import Ledger, UnbalancedError
from retail_assets.resources.lake.restoring import set_aside
from retail_assets.resources.lake.staging import Stage
from retail_assets.resources.lake.tables import Snapshot

if TYPE_CHECKING:
    import pyarrow as pa

# What a typing is given at once: an engine's memory goes with the bytes, its plan with the files.
_MOST_BYTES_A_JOB = 96 * 1024**2
_MOST_FILES_A_JOB = 32
_JOBS_AT_ONCE = 2
# Files that a table's history names one by one.
_MOST_TOLD = 100


class DropError(PermanentError):
    """A raw file cannot be taken; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Room:
    """What a run works with: the lake, its own id, and the resources that tables ask for."""

    lake: LakeResource
    run_id: str
    resources: Any = None


class RawFile(NamedTuple):
    """A raw file to be typed: the lake's object, and a local file of its bytes, not to change."""

    entry: LakeObject
    path: Path


class Bad(NamedTuple):
    """What cannot be read of a row: why, the row's text, and whether the row stands without it."""

    reason: str
    text: str
    row_stays: bool = False


@dataclass(frozen=True)
class Typed:
    """What a typing made of a raw file.

    ``files`` are Parquet files of the table's columns, which are given up, by the folder below the
    partition's that they are to lie in ("" for none). ``rows`` counts the data rows met,
    ``written`` those in ``files``. ``bad`` are rows, once for each time that they stood there, and
    values of rows that stay.
    ``skipped`` has a sentence for each part of the file that is no part of the table.
    """

    sha256: str
    rows: int
    written: int
    duplicates: int
    files: Mapping[str, Sequence[Path]]
    bad: Sequence[Bad] = ()
    skipped: Sequence[str] = ()


def take_files(
    feed: FileFeed,
    table: FileTable,
    keys: Iterable[str],
    room: Room,
    *,
    most_lost: float,
    leave_restored: bool = False,
) -> dict[str, Taken]:
    """Replace the processed and quarantined partitions ``keys`` by what their raw files hold.

    A date without a file of this table is an empty partition; one whose file was taken before and
    then deleted stays as it is. Returns what was taken of each key that has a file, or had one.
    ``most_lost`` is the share of its rows that a partition may lose; of 1, all. With
    ``leave_restored`` one that a person restored stays, until its file is another.

    Raises:
        RefusedPartitionsError: dates have no file of any table, or one that cannot be read, that
            was replaced meanwhile, has too few rows, or whose rows do not add up. All such are
            named, and stay as they are; the others were taken.
        PermanentError: the same of a table of one file.
    """
    lake, dataset = room.lake, table.dataset
    look, asked = Look(lake, feed.tables), set(keys)
    before = look.table(dataset)
    is_left = leave_restored and set_aside(lake, dataset)
    restored = look.changes([table]).restored[dataset.name] if is_left else set()
    wanted = asked - restored
    files = {key: entry for key, entry in look.files[dataset.name].items() if key in wanted}
    kept = before.names.keys() & (asked - files.keys() if table.is_dated else asked & restored)
    refused = _without_file(feed, table, wanted, look)
    taken: dict[str, Taken] = {}

    with lake.staging(room.run_id, processed_key(feed, dataset).to_user_string()) as stage:
        # Two at once: one's scan and writing, a core each, go beside the other's group-by.
        with ThreadPoolExecutor(_JOBS_AT_ONCE) as pool:
            take = partial(_stage_batch, room, stage, table, refused)
            for found in pool.map(take, _batches(files)):
                taken |= found
        empty = wanted.difference(files, kept, refused)
        for key in sorted({*taken, *empty}):
            with _refusing(key, refused):
                _require_rows(feed, table, key, before, taken.get(key), most_lost)
        if refused and not table.is_dated:
            raise refused[WHOLE_TABLE]
        done = {key: x for key, x in taken.items() if key not in refused}
        if published := {*done, *empty}.difference(refused):
            source = {files[key].name: x.told["sha256"] for key, x in done.items()}
            publish(
                stage,
                dataset,
                quarantine_of(dataset),
                published,
                {key: x.ledger for key, x in done.items()},
                source=source if len(source) <= _MOST_TOLD else f"{len(source)} files",
                code_version=table.version,
            )
    done |= {key: _taken(table, before.ledgers[key]) for key in kept}
    if refused:
        raise RefusedPartitionsError("drops", refused, len(asked), done)
    return done


def _taken(table: FileTable, ledger: Ledger, typed: Typed | None = None) -> Taken:
    """With the first reason: of a row that was lost, if there is one."""
    if typed is None:  # the file is gone, and its rows were kept
        return Taken.of(table.dataset, ledger, bytes=ledger.size)
    first = min(((x.row_stays, x.reason) for x in typed.bad), default=(False, None))
    told: dict[str, Any] = {"bytes": ledger.size, "sha256": typed.sha256}
    told |= {SKIPPED: "; ".join(typed.skipped)} if typed.skipped else {}
    return Taken.of(table.dataset, ledger, first[1], **told)


def _without_file(
    feed: FileFeed, table: FileTable, keys: set[str], look: Look
) -> dict[str, PermanentError]:
    """Why those of ``keys`` cannot be taken of which there is no file, and never was."""
    if not table.is_dated:
        why = (
            f"{look.lake.uri(table.path)} is not there. Nothing was touched. Put the file there"
            f"{feed.or_sample}."
        )
        return {key: DropError(why) for key in keys - look.files[table.dataset.name].keys()}
    unknown = keys - look.delivered
    others = " or another table's" if len(feed.dated) > 1 else ""
    return {
        key: DropError(
            f"no raw file has the date {key}; expected {table.file_name(key)}{others}. Deliver the"
            " drop, or delete its partition in the UI."
        )
        for key in (unknown - look.taken if unknown else ())
    }


@contextmanager
def _refusing(key: str, refused: dict[str, PermanentError]) -> Iterator[None]:
    """Take note that a drop cannot be taken, so that the others are looked at all the same."""
    try:
        yield
    except PermanentError as error:
        refused[key] = error


def _require_rows(
    feed: FileFeed,
    table: FileTable,
    key: str,
    before: Snapshot,
    taken: Taken | None,
    most_lost: float,
) -> None:
    """Refuse what would take too many of the rows that a partition has.

    What was let through without a row is not refused again.
    """
    had, ledger = before.rows_of([key])[key], before.ledgers.get(key)
    if taken and ledger and not had and has_bytes(ledger, taken.told["sha256"]):
        return
    refuse_to_shrink(
        f"{table.dataset.table}{f', drop {key}' if key else ''}",
        had,
        taken.ledger.written if taken else 0,
        taken.quarantined if taken else Quarantined(),
        most_lost=most_lost,
        force=f"run: retail-assets run {feed.name}{f' --partitions {key}' if key else ''}"
        f" --allow-emptying (in the UI: config allow_emptying: true on"
        f" {processed_key(feed, table.dataset).to_user_string()})",
    )


def _batches(files: Mapping[str, LakeObject]) -> Iterator[dict[str, LakeObject]]:
    """Files by date, as many together as a typing is given at once."""
    batch: dict[str, LakeObject] = {}
    for key, entry in sorted(files.items()):
        size = sum(other.size for other in batch.values()) + entry.size
        if batch and (size > _MOST_BYTES_A_JOB or len(batch) == _MOST_FILES_A_JOB):
            yield batch
            batch = {}
        batch[key] = entry
    if batch:
        yield batch


def _stage_batch(
    room: Room,
    stage: Stage,
    table: FileTable,
    refused: dict[str, PermanentError],
    batch: Mapping[str, LakeObject],
) -> dict[str, Taken]:
    """Type a batch of files and stage what came out; returns what was taken.

    Files that cannot be are put to ``refused``.
    """
    files = {key: RawFile(x, room.lake.local_file(x.name)) for key, x in batch.items()}
    before = {key: _stamp(file.path) for key, file in files.items()}
    taken = {}
    for key, found in table.typing(table, room, files):
        with _refusing(key, refused):
            if isinstance(found, PermanentError):
                raise found
            if _stamp(files[key].path) != before[key]:
                raise DropError(
                    f"{batch[key].name} was replaced while it was read. It was not taken. Run"
                    " this again; deliver files under another name and rename them when complete."
                )
            taken[key] = _stage_typed(stage, table, key, batch[key], found)
    return taken


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _stage_typed(
    stage: Stage, table: FileTable, key: str, entry: LakeObject, typed: Typed
) -> Taken:
    """Stage the rows of a raw file, good and bad; what was taken, without a row unaccounted for."""
    dataset, bad = table.dataset, typed.bad
    left_out = sum(x.row_stays for x in bad)
    ledger = Ledger(
        fingerprint_of(typed.sha256, table.version),
        typed.rows,
        typed.duplicates,
        quarantined=len(bad) - left_out,
        left_out=left_out,
        stamp=entry.version,
        size=entry.size,
    )
    if typed.written != ledger.written:
        raise UnbalancedError(
            f"{entry.name}: {ledger.read} rows were read, but {typed.written} written,"
            f" {ledger.duplicates} duplicates and {ledger.quarantined} quarantined. It was not"
            " taken. This is a defect of the engine or of ours: please report it."
        )
    for below, files in typed.files.items():
        stage.adopt(dataset, key, files, below)
    if bad:
        quarantine = quarantine_of(dataset)
        rejected = _quarantine_table(quarantine, key, entry.name, bad)
        stage.write_partitions(quarantine, [(key, rejected)])
    return _taken(table, ledger, typed)


def _quarantine_table(quarantine: Dataset, key: str, file: str, bad: Sequence[Bad]) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.compute as pc

    told = zip(Bad._fields, zip(*sorted(bad), strict=True), strict=True)
    columns = {name: list(values) for name, values in told}
    columns["file"] = pa.repeat(file, len(bad))
    if quarantine.partition_by:
        columns[quarantine.partition_by] = pc.cast(pa.repeat(key, len(bad)), pa.date32())
    return pa.table(
        [columns[name] for name in quarantine.column_names], schema=quarantine.arrow_schema
    )

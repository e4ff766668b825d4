"""Taking raw files of the coffee chain into the lake's tables: scan, type, stage, publish.

Here: small files by pandas, drops by Spark, and the ledger of each. Not here: how rows change
(transforms.py), which files there are and are known (drops.py), Dagster's assets (assets.py).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import dagster as dg

from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain.contract import DOMAIN, quarantine_of
from retail_assets.defs.coffee_chain.drops import (
    WHOLE_TABLE,
    DropError,
    DroppedFiles,
    Known,
    RefusedDropsError,
    SmallFile,
    find_restored,
    fingerprint_of,
    has_bytes,
    list_raw,
)
from retail_assets.defs.coffee_chain.transforms import (
    LEFT_OUT,
    REJECTED,
    STAGED,
    TYPING_VERSION,
    split_left_out,
    split_rejected,
    write_points,
    write_points_small,
)
from retail_assets.errors import PermanentError
from retail_assets.losses import Quarantined, public_reason, refuse_to_shrink
from retail_assets.resources.lake import LakeObject, LakeResource
from retail_assets.resources.lake.ledger import Ledger, UnbalancedError
from retail_assets.resources.lake.staging import Stage
from retail_assets.resources.lake.tables import Snapshot
from retail_assets.resources.spark import SparkResource, WrittenFile
from retail_assets.resources.tabular import ScannedCsv, scan_csv

if TYPE_CHECKING:
    import pyarrow as pa

# What one Spark job takes: its memory goes with the bytes, its plan with the files.
_MOST_BYTES_A_JOB = 96 * 1024**2
_MOST_FILES_A_JOB = 32
_JOBS_AT_ONCE = 2
_SMALL_BYTES = 16 * 1024**2
# Files that a table's history names one by one.
_MOST_TOLD = 100


class Taken(NamedTuple):
    """What was taken of a raw file, what of it could not be, and what is no part of the table.

    ``sha256`` is of the file's bytes; empty where the file is gone and its rows were kept.
    """

    ledger: Ledger
    quarantined: Quarantined
    skipped: str = ""
    sha256: str = ""


class Bad(NamedTuple):
    """What cannot be read of a row: why, the row's text, and whether the row stands without it."""

    reason: str
    text: str
    row_stays: bool = False


def processed_key(dataset: Dataset) -> dg.AssetKey:
    """The asset of a table's Parquet files."""
    return dg.AssetKey([DOMAIN, f"processed_{dataset.name}"])


def write_small(
    lake: LakeResource,
    run_id: str,
    small: SmallFile,
    *,
    most_lost: float,
    leave_restored: bool = False,
) -> Taken:
    """Replace a small table and its quarantine by what its raw file holds.

    ``most_lost`` is the share of its rows that the table may lose; of 1, all. With
    ``leave_restored`` a table that a person restored stays, until its file is another.

    Raises:
        DropError: the file is not there, or was replaced meanwhile.
        UnbalancedError: its rows do not add up.
        UnreadableFileError: it is not the table that it should be.
        ShrunkError: it has too few rows. Nothing was touched.
    """
    import pandas as pd
    import pyarrow as pa

    dataset = small.dataset
    listing, known = list_raw(lake), Known(lake)
    entry, before = listing.of(dataset).get(WHOLE_TABLE), known.of(dataset)
    if leave_restored and find_restored(lake, listing, known, dataset):
        return _kept(dataset, before.ledgers[WHOLE_TABLE])
    if entry is None:
        raise DropError(
            f"{lake.uri(small.raw.path)} is not there. Nothing was touched. Put the file there, or"
            f" make sample files: retail-assets sample {DOMAIN}"
        )
    asset = processed_key(dataset).to_user_string()
    with lake.scratch() as scratch, lake.staging(run_id, asset) as stage:
        file = lake.local_file(entry.name)
        stamp = _stamp(file)
        scanned = scan_csv(file, small.raw.header, scratch)
        # By position: a copy's header has a name for the index.
        raw = pd.read_csv(scanned.file, dtype="string", keep_default_na=False, na_values=[""])
        _require_unchanged(entry.name, file, stamp)
        raw = raw.set_axis(list(small.raw.header), axis="columns")
        if scanned.delimiter != ",":
            raw = write_points_small(raw, small.numbers)
        typed = small.type_rows(raw)
        rows = pa.Table.from_pandas(typed.rows, dataset.arrow_schema, preserve_index=False)
        bad = [Bad(row.reason, row.text) for row in scanned.rejected]
        bad += [Bad(*told) for told in typed.rejected]
        bad += [Bad(*told, row_stays=True) for told in typed.left_out]
        stage.write_partitions(dataset, [(WHOLE_TABLE, rows)])
        counts = rows.num_rows, typed.duplicates, len(typed.left_out)
        taken = _account_for(stage, dataset, WHOLE_TABLE, entry, scanned, bad, *counts)
        _require_rows(dataset, WHOLE_TABLE, before, taken, most_lost)
        _publish(stage, dataset, {WHOLE_TABLE: taken}, {WHOLE_TABLE: entry})
    return taken


def write_drops(
    lake: LakeResource,
    spark: SparkResource,
    run_id: str,
    large: DroppedFiles,
    dates: Sequence[str],
    *,
    most_lost: float,
    leave_restored: bool = False,
) -> dict[str, Taken]:
    """Replace the processed and quarantined partitions ``dates`` by what their raw files hold.

    A date without a file of this table is an empty partition; one whose file was taken before and
    then deleted stays as it is. Returns what was taken of each date that has a file, or had one.
    ``most_lost`` is the share of its rows that a drop may lose; of 1, all. With ``leave_restored``
    a drop that a person restored stays, until its file is another.

    Raises:
        RefusedDropsError: dates have no file of any table, or one that has another header or is no
            CSV, that was replaced meanwhile, has too few rows, or whose rows do not add up. All
            such are named, and no partition was touched.
    """
    dataset = large.dataset
    listing, known = list_raw(lake), Known(lake)
    asked, before = set(dates), known.of(dataset)
    restored = find_restored(lake, listing, known, dataset) if leave_restored else set()
    wanted = asked - restored
    files = {key: entry for key, entry in listing.of(dataset).items() if key in wanted}
    kept = before.names.keys() & asked - files.keys()
    unknown = asked - listing.dates
    refused: dict[str, PermanentError] = {
        key: DropError(
            f"no raw file has the date {key}; expected {large.raw.name(key)} or the other table's."
            " Deliver the drop, or delete its partition in the UI."
        )
        for key in (unknown - known.dates if unknown else ())
    }
    taken: dict[str, Taken] = {}
    with lake.staging(run_id, processed_key(dataset).to_user_string()) as stage:
        # Two at once: one's scan and writing, a core each, go beside the other's group-by.
        with ThreadPoolExecutor(_JOBS_AT_ONCE) as pool:
            for found in pool.map(
                lambda batch: _stage_batch(lake, spark, run_id, stage, large, batch, refused),
                _batches(files),
            ):
                taken |= found
        empty = wanted.difference(files, kept, refused)
        for key in sorted({*taken, *empty}):
            with _refusing(key, refused):
                _require_rows(dataset, key, before, taken.get(key), most_lost)
        if refused:
            raise RefusedDropsError(refused, len(asked))
        _publish(stage, dataset, taken, files, empty)
    return taken | {key: _kept(dataset, before.ledgers[key]) for key in kept}


def _kept(dataset: Dataset, ledger: Ledger) -> Taken:
    return Taken(ledger, _quarantined(dataset, ledger, ()))


@contextmanager
def _refusing(key: str, refused: dict[str, PermanentError]) -> Iterator[None]:
    """Take note that a drop cannot be taken, so that the others are looked at all the same."""
    try:
        yield
    except PermanentError as error:
        refused[key] = error


def _quarantined(dataset: Dataset, ledger: Ledger, bad: Iterable[Bad]) -> Quarantined:
    """What a drop lost, with the first reason: of a row that was lost, if there is one."""
    personal = [column.name for column in dataset.columns if column.pii]
    first = min(((x.row_stays, x.reason) for x in bad), default=None)
    return Quarantined(
        ledger.quarantined,
        ledger.left_out,
        public_reason(first[1], personal) if first else None,
    )


def _require_rows(
    dataset: Dataset, key: str, before: Snapshot, taken: Taken | None, most_lost: float
) -> None:
    """Refuse what would take too many of the rows that a partition has.

    What was let through without a row is not refused again.
    """
    had, ledger = before.rows_of([key])[key], before.ledgers.get(key)
    if taken and ledger and not had and has_bytes(ledger, taken.sha256):
        return
    refuse_to_shrink(
        f"{dataset.table}{f', drop {key}' if key else ''}",
        had,
        taken.ledger.written if taken else 0,
        taken.quarantined if taken else Quarantined(),
        most_lost=most_lost,
        force=f"run: retail-assets run {DOMAIN}{f' --partitions {key}' if key else ''}"
        f" --allow-emptying (in the UI: config allow_emptying: true on"
        f" {processed_key(dataset).to_user_string()})",
    )


def _batches(files: Mapping[str, LakeObject]) -> Iterator[dict[str, LakeObject]]:
    """Drops by date, as many together as one Spark job takes."""
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
    lake: LakeResource,
    spark: SparkResource,
    run_id: str,
    stage: Stage,
    large: DroppedFiles,
    files: Mapping[str, LakeObject],
    refused: dict[str, PermanentError],
) -> dict[str, Taken]:
    """Type a batch of drops by one Spark job and stage what came out; returns what was taken.

    Drops that cannot be are put to ``refused``.
    """
    with spark.exchange(lake, run_id) as exchange:
        local = {key: lake.local_file(entry.name) for key, entry in files.items()}
        before = {key: _stamp(file) for key, file in local.items()}
        scanned: dict[str, ScannedCsv] = {}
        for key, file in local.items():
            with _refusing(key, refused):
                scanned[key] = scan_csv(file, large.raw.header, exchange.folder)
        if not scanned:
            return {}
        frames = []
        for key, found in scanned.items():
            as_delivered = files[key] if found.file == local[key] else None
            place = exchange.place(found.file, as_delivered)
            rows = spark.read_csv(place, large.columns, quoted=found.quoted)
            if found.delimiter != ",":
                rows = write_points(rows, large.numbers)
            frames.append(large.stage_rows(rows, key))
        union = reduce(lambda left, right: left.unionAll(right), frames)
        written = spark.write(union, exchange.target("written"), STAGED)
        taken = {}
        for key, found in scanned.items():
            of_drop = [file for file in written if file.values[0] == key]
            with _refusing(key, refused):
                _require_unchanged(files[key].name, local[key], before[key])
                taken[key] = _stage_drop(stage, large, key, files[key], found, of_drop)
        return taken


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _require_unchanged(name: str, file: Path, before: tuple[int, int]) -> None:
    if _stamp(file) != before:
        raise DropError(
            f"{name} was replaced while it was read. Nothing was touched. Run this again; deliver"
            " files under another name and rename them when complete."
        )


def _stage_drop(
    stage: Stage,
    large: DroppedFiles,
    key: str,
    entry: LakeObject,
    scanned: ScannedCsv,
    written: Iterable[WrittenFile],
) -> Taken:
    """Stage what Spark wrote of one drop: good rows by part, rejected ones as a table of ours."""
    import pyarrow.parquet as pq

    dataset = large.dataset
    rows = duplicates = left_out = 0
    bad = [Bad(row.reason, row.text) for row in scanned.rejected]
    parts: dict[str, list[Path]] = {}
    lines: set[str] = set()
    for file in written:
        _, part, copies = file.values
        if part == REJECTED:
            identities = pq.read_table(file.path, columns=[dataset.column_names[0]])[0].to_pylist()
            bad += [Bad(*split_rejected(text)) for text in identities for _ in range(int(copies))]
            continue
        count = total = pq.read_metadata(file.path).num_rows
        if part.startswith(LEFT_OUT):
            part = part.removeprefix(LEFT_OUT)
            told = _restore_left_out(dataset, file.path, lines)
            bad += told
            count = len(told)
            left_out += count
        rows += count
        duplicates += total * int(copies) - count
        below = part if large.part_column else ""
        parts.setdefault(below, []).append(file.path)
    for below, files in parts.items():
        stage.adopt(dataset, key, _merge_small(dataset, files), below)
    return _account_for(stage, dataset, key, entry, scanned, bad, rows, duplicates, left_out)


def _restore_left_out(dataset: Dataset, file: Path, lines: set[str]) -> list[Bad]:
    """Write a file of rows with values left out anew as rows of the table; what is told of each.

    ``lines`` are the identities that the drop's files had so far: of copies, one stays.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(file, partitioning=None).cast(dataset.arrow_schema)
    found = [split_left_out(packed) for packed in table[0].to_pylist()]
    kept = []
    for number in sorted(range(len(found)), key=found.__getitem__):
        if found[number].line_id not in lines:
            lines.add(found[number].line_id)
            kept.append(number)
    rows = table.set_column(
        0, dataset.arrow_schema.field(0), pa.array([row.row_id for row in found])
    ).take(pa.array(kept, pa.int64()))
    pq.write_table(rows, file, compression="zstd")
    return [Bad(found[number].reason, found[number].text, row_stays=True) for number in kept]


def _account_for(
    stage: Stage,
    dataset: Dataset,
    key: str,
    entry: LakeObject,
    scanned: ScannedCsv,
    bad: Sequence[Bad],
    written: int,
    duplicates: int,
    left_out: int,
) -> Taken:
    """Stage the bad rows of a raw file; what was taken of it, without a row unaccounted for."""
    ledger = Ledger(
        fingerprint_of(scanned.sha256),
        scanned.rows,
        duplicates,
        quarantined=len(bad) - left_out,
        left_out=left_out,
        stamp=entry.version,
        size=entry.size,
    )
    if written != ledger.written:
        raise UnbalancedError(
            f"{entry.name}: {ledger.read} rows were read, but {written} written,"
            f" {duplicates} duplicates and {ledger.quarantined} quarantined. No partition"
            " was touched. This is a defect of the engine or of ours: please report it."
        )
    if bad:
        quarantine = quarantine_of(dataset)
        rejected = _quarantine_table(quarantine, key, entry.name, bad)
        stage.write_partitions(quarantine, [(key, rejected)])
    quarantined = _quarantined(dataset, ledger, bad)
    return Taken(ledger, quarantined, "; ".join(scanned.skipped), scanned.sha256)


def _merge_small(dataset: Dataset, files: list[Path]) -> list[Path]:
    """One file in place of several small ones: copies and tasks have files of their own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if len(files) < 2 or sum(file.stat().st_size for file in files) > _SMALL_BYTES:
        return files
    tables = [pq.read_table(file, partitioning=None) for file in files]
    merged = pa.concat_tables(table.cast(dataset.arrow_schema) for table in tables)
    pq.write_table(merged, files[0], compression="zstd")
    return files[:1]


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


def _publish(
    stage: Stage,
    dataset: Dataset,
    taken: Mapping[str, Taken],
    files: Mapping[str, LakeObject],
    empty: Iterable[str] = (),
) -> None:
    """Replace the partitions of ``taken``, with their ledgers, and empty those of ``empty``.

    Quarantine comes first: a run that ends in between leaves new work.
    """
    keys = {*taken, *empty}
    source = {files[key].name: x.sha256 for key, x in taken.items()}
    told = {
        "source": source if len(source) <= _MOST_TOLD else f"{len(source)} files",
        "code_version": TYPING_VERSION,
    }
    stage.publish(quarantine_of(dataset), keys, told=told)
    stage.publish(dataset, keys, {key: x.ledger for key, x in taken.items()}, told)

"""The coffee chain's assets, from raw files to warehouse tables.

An asset reads, calls a transform, writes and reports. Not here: how rows change (transforms.py),
which files there are and are known (drops.py), when anything runs (automation.py), dbt's models.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import dagster as dg

from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain.contract import ABSENT, DOMAIN, WAREHOUSE, quarantine_of
from retail_assets.defs.coffee_chain.drops import (
    DROPPED_FILES,
    SMALL_FILES,
    WHOLE_TABLE,
    DropError,
    DroppedFiles,
    Ledger,
    RefusedDropsError,
    SmallFile,
    describe_drops,
    list_raw,
    read_known,
    record_drops,
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
from retail_assets.errors import PermanentError, failures_by_kind
from retail_assets.landing import landed_asset
from retail_assets.losses import (
    SKIPPED,
    EmptyingConfig,
    Quarantined,
    check_quarantine,
    public_reason,
    quarantine_check_spec,
    refuse_to_shrink,
)
from retail_assets.resources.dbt import warm_up_dbt
from retail_assets.resources.lake import LakeObject, LakeResource, Stage
from retail_assets.resources.spark import SparkResource, WrittenFile
from retail_assets.resources.tabular import ScannedCsv, scan_csv
from retail_assets.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

DROPS_NAME = f"{DOMAIN}_drops"
DROPS = dg.DynamicPartitionsDefinition(name=DROPS_NAME)
RAW_DROPS = dg.AssetKey([DOMAIN, "raw_drops"])
DELETED_CHECK = "no_drop_was_deleted"
BALANCE_CHECK = "ledger_balances"
SCHEMA_CHECK = "schema_matches_contract"

# What one Spark job takes: its memory goes with the bytes, its plan with the files.
_MOST_BYTES_A_JOB = 96 * 1024**2
_MOST_FILES_A_JOB = 32
_JOBS_AT_ONCE = 2
_SMALL_BYTES = 16 * 1024**2


class Taken(NamedTuple):
    """What was taken of a raw file, what of it could not be, and what is no part of the table."""

    ledger: Ledger
    quarantined: Quarantined
    skipped: str = ""


class Bad(NamedTuple):
    """What cannot be read of a row: why, the row's text, and whether the row stands without it."""

    reason: str
    text: str
    row_stays: bool = False


def raw_key(dataset: Dataset) -> dg.AssetKey:
    """The asset of a small table's raw file."""
    return dg.AssetKey([DOMAIN, f"raw_{dataset.name}"])


def processed_key(dataset: Dataset) -> dg.AssetKey:
    """The asset of a table's Parquet files."""
    return dg.AssetKey([DOMAIN, f"processed_{dataset.name}"])


def landed_key(dataset: Dataset) -> dg.AssetKey:
    """The asset of a table in the warehouse."""
    return dg.AssetKey([WAREHOUSE, dataset.name])


def build_assets(settings: Settings) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The domain's assets: raw files as they come, what is processed of them, what is landed."""
    raw = [
        dg.AssetSpec(
            RAW_DROPS,
            group_name=DOMAIN,
            kinds={"csv"},
            tags={"zone": "raw"},
            partitions_def=DROPS,
            description="Dated files of sales and customers, as others deliver them.",
        ),
        *(
            dg.AssetSpec(
                raw_key(small.dataset),
                group_name=DOMAIN,
                kinds={"csv"},
                tags={"zone": "raw"},
                description=f"{small.raw.path}, as others deliver it.",
            )
            for small in SMALL_FILES
        ),
    ]
    return [
        *raw,
        *(_processed_small(settings, small) for small in SMALL_FILES),
        *(_processed_drops(settings, large) for large in DROPPED_FILES),
        *(_landed(settings, small.dataset) for small in SMALL_FILES),
        *(_landed(settings, large.dataset) for large in DROPPED_FILES),
    ]


def _lake_kinds(settings: Settings, engine: str) -> set[str]:
    return {"parquet", engine, *(["gcs"] if settings.lake.startswith("gs://") else [])}


def _check_specs(dataset: Dataset) -> list[dg.AssetCheckSpec]:
    return [
        dg.AssetCheckSpec(
            BALANCE_CHECK,
            asset=processed_key(dataset),
            blocking=True,
            description="read = written + duplicates + quarantined, by the lake's own files.",
        ),
        dg.AssetCheckSpec(
            SCHEMA_CHECK,
            asset=processed_key(dataset),
            blocking=True,
            description="The Parquet files' columns and types are those of the contract.",
        ),
        quarantine_check_spec(processed_key(dataset)),
    ]


def _processed_small(settings: Settings, small: SmallFile) -> dg.AssetsDefinition:
    dataset = small.dataset

    @dg.asset(
        key=processed_key(dataset),
        deps=[raw_key(dataset)],
        group_name=DOMAIN,
        kinds=_lake_kinds(settings, "pandas"),
        code_version=TYPING_VERSION,
        tags={"zone": "processed"},
        description=f"{dataset.description} Typed, de-duplicated, as one Parquet file.",
        metadata={"dagster/column_schema": dataset.table_schema()},
        check_specs=_check_specs(dataset),
    )
    def processed(
        context: dg.AssetExecutionContext, config: EmptyingConfig, lake: LakeResource
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with failures_by_kind(context.retry_number):
            taken = write_small(
                lake, context.run.run_id, small, most_lost=_most_lost(settings, config)
            )
        return dg.MaterializeResult(
            metadata=taken_metadata(taken)
            | {"path": dg.MetadataValue.path(lake.uri(f"processed/{dataset.folder}"))},
            data_version=dg.DataVersion(taken.ledger.fingerprint),
            check_results=check_processed(lake, dataset, {WHOLE_TABLE: taken}),
        )

    return processed


def _processed_drops(settings: Settings, large: DroppedFiles) -> dg.AssetsDefinition:
    dataset = large.dataset

    @dg.asset(
        key=processed_key(dataset),
        deps=[RAW_DROPS],
        group_name=DOMAIN,
        partitions_def=DROPS,
        backfill_policy=dg.BackfillPolicy.single_run(),
        kinds=_lake_kinds(settings, "pyspark"),
        code_version=TYPING_VERSION,
        tags={"zone": "processed"},
        description=f"{dataset.description} Typed, as Parquet, a folder a drop.",
        metadata={"dagster/column_schema": dataset.table_schema()},
        check_specs=_check_specs(dataset),
    )
    def processed(
        context: dg.AssetExecutionContext,
        config: EmptyingConfig,
        lake: LakeResource,
        spark: SparkResource,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        dates = context.partition_keys
        with failures_by_kind(context.retry_number):
            taken = write_drops(
                lake,
                spark,
                context.run.run_id,
                large,
                dates,
                most_lost=_most_lost(settings, config),
            )
        for key in dates:
            found = taken.get(key)
            context.add_asset_metadata(
                taken_metadata(found) if found else {"dagster/partition_row_count": 0},
                partition_key=key,
            )
        return dg.MaterializeResult(
            metadata={
                "path": dg.MetadataValue.path(lake.uri(f"processed/{dataset.folder}")),
                "partitions_in_run": len(dates),
            },
            check_results=check_processed(lake, dataset, taken),
        )

    return processed


def _most_lost(settings: Settings, config: EmptyingConfig) -> float:
    return 1.0 if config.allow_emptying else settings.most_rows_lost


def _landed(settings: Settings, dataset: Dataset) -> dg.AssetsDefinition:
    def versions_of(lake: LakeResource, dates: Sequence[str] | None) -> dict[str, str]:
        return processed_versions(lake, dataset, [WHOLE_TABLE] if dates is None else dates)

    return landed_asset(
        settings,
        dataset,
        key=landed_key(dataset),
        deps=[processed_key(dataset)],
        versions_of=versions_of,
        partitions=None if dataset.partition_by is None else DROPS,
    )


def write_small(lake: LakeResource, run_id: str, small: SmallFile, *, most_lost: float) -> Taken:
    """Replace a small table and its quarantine by what its raw file holds.

    ``most_lost`` is the share of its rows that the table may lose; of 1, all.

    Raises:
        DropError: the file is not there, was replaced meanwhile, or its rows do not add up.
        UnreadableFileError: it is not the table that it should be.
        ShrunkError: it has too few rows. Nothing was touched.
    """
    import pandas as pd
    import pyarrow as pa

    dataset, quarantine = small.dataset, quarantine_of(small.dataset)
    entry = list_raw(lake).of(dataset).get(WHOLE_TABLE)
    if entry is None:
        raise DropError(
            f"{lake.uri(small.raw.path)} is not there. Nothing was touched. Put the file there, or"
            f" make sample files: retail-assets sample {DOMAIN}"
        )
    with lake.scratch() as scratch, lake.staging(run_id) as stage:
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
        ledger = Ledger(
            entry.version,
            entry.size,
            scanned.sha256,
            TYPING_VERSION,
            read=scanned.rows,
            written=rows.num_rows,
            duplicates=typed.duplicates,
            quarantined=len(bad) - len(typed.left_out),
            left_out=len(typed.left_out),
        )
        _require_balance(entry.name, ledger)
        taken = Taken(ledger, _quarantined(dataset, ledger, bad), "; ".join(scanned.skipped))
        had = lake.partition_rows("processed", dataset, "", [WHOLE_TABLE])
        before = read_known(lake).ledgers(dataset)
        _require_rows(dataset, WHOLE_TABLE, had, before, taken, most_lost)
        stage.write_partitions("processed", dataset, "", [(WHOLE_TABLE, rows)])
        if bad:
            rejected = _quarantine_table(quarantine, WHOLE_TABLE, entry.name, bad)
            stage.write_partitions("quarantine", quarantine, "", [(WHOLE_TABLE, rejected)])
        _publish(lake, stage, dataset, {WHOLE_TABLE: ledger})
    return taken


def write_drops(
    lake: LakeResource,
    spark: SparkResource,
    run_id: str,
    large: DroppedFiles,
    dates: Sequence[str],
    *,
    most_lost: float,
) -> dict[str, Taken]:
    """Replace the processed and quarantined partitions ``dates`` by what their raw files hold.

    A date without a file of this table is an empty partition; one whose file was taken before and
    then deleted stays as it is. Returns what was taken of each date that has a file, or had one.
    ``most_lost`` is the share of its rows that a drop may lose; of 1, all.

    Raises:
        RefusedDropsError: dates have no file of any table, or one that has another header or is no
            CSV, that was replaced meanwhile, has too few rows, or whose rows do not add up. All
            such are named, and no partition was touched.
    """
    dataset = large.dataset
    listing, known = list_raw(lake), read_known(lake)
    asked = set(dates)
    files = {key: entry for key, entry in listing.of(dataset).items() if key in asked}
    before = {
        key: Ledger.from_text(text) for key, text in known.of(dataset).items() if key in asked
    }
    refused: dict[str, PermanentError] = {
        key: DropError(
            f"no raw file has the date {key}; expected {large.raw.name(key)} or the other table's."
            " Deliver the drop, or delete its partition in the UI."
        )
        for key in asked - listing.dates - known.dates
    }
    if all(_is_one_job(listing.of(other.dataset), asked) for other in DROPPED_FILES):
        warm_up_dbt()  # one job after another leaves a core free now and then
    taken: dict[str, Taken] = {}
    with lake.staging(run_id) as stage:
        # Two at once: one's scan and writing, a core each, go beside the other's group-by.
        with ThreadPoolExecutor(_JOBS_AT_ONCE) as pool:
            for found in pool.map(
                lambda batch: _stage_batch(lake, spark, run_id, stage, large, batch, refused),
                _batches(files),
            ):
                taken |= found
        empty = asked.difference(files, before, refused)
        had = lake.partition_rows("processed", dataset, dataset.partition_by or "", asked)
        for key in sorted({*taken, *empty}):
            with _refusing(key, refused):
                _require_rows(dataset, key, had, before, taken.get(key), most_lost)
        if refused:
            raise RefusedDropsError(refused, len(asked))
        _publish(lake, stage, dataset, {key: x.ledger for key, x in taken.items()}, empty)
    kept = before.keys() - files.keys()
    return taken | {key: Taken(before[key], _quarantined(dataset, before[key], ())) for key in kept}


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
    dataset: Dataset,
    key: str,
    had: Mapping[str, int],
    before: Mapping[str, Ledger],
    taken: Taken | None,
    most_lost: float,
) -> None:
    """Refuse what would take too many of the rows that a partition has in the lake's own files.

    Not of those that its ledger counts, which may be lost. What was let through without a row
    is not refused again.
    """
    ledger = before.get(key)
    is_same = taken and ledger and not had[key] and ledger.sha256 == taken.ledger.sha256
    if is_same:
        return
    refuse_to_shrink(
        f"{dataset.table}{f', drop {key}' if key else ''}",
        had[key],
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


def _is_one_job(files: Mapping[str, LakeObject], dates: set[str]) -> bool:
    return len(list(_batches({key: files[key] for key in dates.intersection(files)}))) < 2


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

    dataset, quarantine = large.dataset, quarantine_of(large.dataset)
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
        folder = f"{dataset.partition_by}={key}"
        if large.part_column:
            folder += f"/{large.part_column}={part}"
        parts.setdefault(folder, []).append(file.path)
    for folder, files in parts.items():
        stage.adopt("processed", dataset, folder, _merge_small(dataset, files))
    ledger = Ledger(
        entry.version,
        entry.size,
        scanned.sha256,
        TYPING_VERSION,
        read=scanned.rows,
        written=rows,
        duplicates=duplicates,
        quarantined=len(bad) - left_out,
        left_out=left_out,
    )
    _require_balance(entry.name, ledger)
    if bad:
        assert dataset.partition_by is not None
        rejected = _quarantine_table(quarantine, key, entry.name, bad)
        stage.write_partitions("quarantine", quarantine, dataset.partition_by, [(key, rejected)])
    return Taken(ledger, _quarantined(dataset, ledger, bad), "; ".join(scanned.skipped))


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


def _require_balance(file: str, ledger: Ledger) -> None:
    if not ledger.balances:
        raise DropError(
            f"{file}: {ledger.read} rows were read, but {ledger.written} written,"
            f" {ledger.duplicates} duplicates and {ledger.quarantined} quarantined. No partition"
            " was touched. This is a defect of the engine or of ours: please report it."
        )


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
    lake: LakeResource,
    stage: Stage,
    dataset: Dataset,
    ledgers: Mapping[str, Ledger],
    empty: Iterable[str] = (),
) -> None:
    """Move the partitions of ``ledgers`` in, and take note; empty those of ``empty``."""
    column = dataset.partition_by or ""
    keys = sorted({*ledgers, *empty})
    record_drops(lake, dataset, dict.fromkeys(ledgers))
    stage.publish("processed", dataset, column, keys)
    stage.publish("quarantine", quarantine_of(dataset), column, keys)
    record_drops(lake, dataset, ledgers)


def taken_metadata(taken: Taken) -> dict[str, int | str]:
    """A drop's ledger as the UI shows it, and what of the drop could not be taken."""
    ledger, quarantined, skipped = taken
    return {
        "dagster/partition_row_count": ledger.written,
        "read": ledger.read,
        "duplicates": ledger.duplicates,
        **quarantined.metadata,
        "bytes": ledger.size,
        "sha256": ledger.sha256,
        **({SKIPPED: skipped} if skipped else {}),
    }


def check_processed(
    lake: LakeResource, dataset: Dataset, taken: Mapping[str, Taken]
) -> list[dg.AssetCheckResult]:
    """Hold what was just written against the ledgers and the contract, by the lake's own files.

    Also what of it could not be taken.
    """
    ledgers = {key: x.ledger for key, x in taken.items()}
    column = dataset.partition_by or ""
    quarantine = quarantine_of(dataset)
    written = lake.partition_rows("processed", dataset, column, ledgers)
    told = lake.partition_rows("quarantine", quarantine, column, ledgers)
    quarantined = {key: told[key] - x.left_out for key, x in ledgers.items()}
    off = {
        key: f"read {x.read}, duplicates {x.duplicates}, found {written[key]} rows and"
        f" {quarantined[key]} quarantined"
        for key, x in ledgers.items()
        if x.read != written[key] + x.duplicates + quarantined[key]
    }
    expected = {f.name: str(f.type) for f in dataset.arrow_schema}
    uris = lake.partition_uris(dataset, ledgers)
    drifted = {}
    for uri in {uris[0], uris[len(uris) // 2], uris[-1]} if uris else set():
        # A view is how an engine holds a string in memory; in Parquet there is one string.
        found = {
            f.name: str(f.type).replace("string_view", "string") for f in lake.read_schema(uri)
        }
        if found != expected:
            drifted[uri] = found
    return [
        dg.AssetCheckResult(
            asset_key=processed_key(dataset),
            check_name=BALANCE_CHECK,
            passed=not off,
            description=f"{len(off)} do not balance; materialize them again." if off else None,
            metadata={
                "drops": len(ledgers),
                "read": sum(x.read for x in ledgers.values()),
                "written": sum(written.values()),
                "duplicates": sum(x.duplicates for x in ledgers.values()),
                "quarantined": sum(quarantined.values()),
                "unbalanced": dg.MetadataValue.json(dict(list(off.items())[:20])),
            },
        ),
        dg.AssetCheckResult(
            asset_key=processed_key(dataset),
            check_name=SCHEMA_CHECK,
            passed=not drifted,
            metadata={
                "expected": dg.MetadataValue.json(expected),
                "found": dg.MetadataValue.json(drifted or expected),
            },
        ),
        check_quarantine(
            processed_key(dataset), sum((x.quarantined for x in taken.values()), Quarantined())
        ),
    ]


def processed_versions(lake: LakeResource, dataset: Dataset, keys: Sequence[str]) -> dict[str, str]:
    """Fingerprint of each processed partition; ABSENT for a date that only the other table has.

    Raises:
        DropError: a partition was never processed.
    """
    known = read_known(lake)
    versions = known.fingerprints(dataset)
    missing = set(keys).difference(versions, known.dates)
    if missing:  # also a date whose file of the other table was delivered, and refused
        listing = list_raw(lake)
        missing -= listing.dates - listing.of(dataset).keys()
    if missing:
        raise DropError(
            f"{processed_key(dataset).to_user_string()} has nothing for"
            f" {describe_drops(missing) or 'the table'}. Nothing was loaded. Materialize it first."
        )
    return {key: versions.get(key, ABSENT) for key in keys}


@dg.asset_check(
    asset=RAW_DROPS,
    name=DELETED_CHECK,
    description="Every drop that was taken is still in the raw zone. A deleted one is not obeyed.",
)
def no_drop_was_deleted(lake: LakeResource) -> dg.AssetCheckResult:
    """Look for drops that are known and not in the lake: their rows stay, and somebody is told."""
    listing, known = list_raw(lake), read_known(lake)
    deleted = {
        large.dataset.name: sorted(set(known.of(large.dataset)) - set(listing.of(large.dataset)))
        for large in DROPPED_FILES
    }
    count = sum(len(keys) for keys in deleted.values())
    return dg.AssetCheckResult(
        passed=not count,
        severity=dg.AssetCheckSeverity.WARN,
        description=(
            f"{count} raw files were taken and are gone"
            f" ({describe_drops({key for keys in deleted.values() for key in keys})}). Their rows"
            " stay. Put the files back; to remove rows, deliver the drop with a header alone, and"
            " run it with --allow-emptying."
            if count
            else None
        ),
        metadata={
            "drops": len(listing.dates),
            "deleted": dg.MetadataValue.json({k: v[:20] for k, v in deleted.items()}),
            "no_drops": dg.MetadataValue.json(list(listing.strays[:20])),
        },
    )


def build_defs(settings: Settings) -> dg.Definitions:
    """The domain's assets and checks."""
    return dg.Definitions(assets=build_assets(settings), asset_checks=[no_drop_was_deleted])

"""The coffee chain's assets, from raw files to warehouse tables, and their checks.

An asset calls what reads and writes (taking.py) and reports. Not here: which files there are and
are known (drops.py), when anything runs (automation.py), dbt's models.
"""

from collections.abc import Mapping, Sequence

import dagster as dg

from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain.contract import ABSENT, DOMAIN, WAREHOUSE, quarantine_of
from retail_assets.defs.coffee_chain.drops import (
    DROPPED_FILES,
    SMALL_FILES,
    WHOLE_TABLE,
    DropError,
    DroppedFiles,
    Known,
    SmallFile,
    describe_drops,
    list_raw,
)
from retail_assets.defs.coffee_chain.taking import Taken, processed_key, write_drops, write_small
from retail_assets.defs.coffee_chain.transforms import TYPING_VERSION
from retail_assets.errors import failures_by_kind
from retail_assets.landing import landed_asset
from retail_assets.losses import (
    SKIPPED,
    EmptyingConfig,
    Quarantined,
    check_quarantine,
    quarantine_check_spec,
)
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.restoring import set_aside
from retail_assets.resources.spark import SparkResource
from retail_assets.settings import Settings

DROPS_NAME = f"{DOMAIN}_drops"
DROPS = dg.DynamicPartitionsDefinition(name=DROPS_NAME)
RAW_DROPS = dg.AssetKey([DOMAIN, "raw_drops"])
DELETED_CHECK = "no_drop_was_deleted"
BALANCE_CHECK = "ledger_balances"
SCHEMA_CHECK = "schema_matches_contract"
# By which Dagster says which of them it was.
_AUTOMATIC_TAGS = {"dagster/sensor_name", "dagster/schedule_name"}


def raw_key(dataset: Dataset) -> dg.AssetKey:
    """The asset of a small table's raw file."""
    return dg.AssetKey([DOMAIN, f"raw_{dataset.name}"])


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
            description="read = written + duplicates + quarantined, by the lake's tables.",
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
                lake,
                context.run.run_id,
                small,
                most_lost=_most_lost(settings, config),
                leave_restored=_is_automatic(context.run),
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
                leave_restored=_is_automatic(context.run),
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


def _is_automatic(run: dg.DagsterRun) -> bool:
    """Whether a sensor or a schedule asked for a run, and no person."""
    return not _AUTOMATIC_TAGS.isdisjoint(run.tags)


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


def taken_metadata(taken: Taken) -> dict[str, int | str]:
    """A drop's ledger as the UI shows it, and what of the drop could not be taken."""
    ledger = taken.ledger
    return {
        "dagster/partition_row_count": ledger.written,
        "read": ledger.read,
        "duplicates": ledger.duplicates,
        **taken.quarantined.metadata,
        "bytes": ledger.size,
        **({"sha256": taken.sha256} if taken.sha256 else {}),
        **({SKIPPED: taken.skipped} if taken.skipped else {}),
    }


def check_processed(
    lake: LakeResource, dataset: Dataset, taken: Mapping[str, Taken]
) -> list[dg.AssetCheckResult]:
    """Hold what the lake's tables now have against the ledgers and the contract.

    Also what of it could not be taken.
    """
    ledgers = {key: x.ledger for key, x in taken.items()}
    table = lake.table(dataset).snapshot()
    written = table.rows_of(ledgers)
    told = lake.table(quarantine_of(dataset)).snapshot().rows_of(ledgers)
    # Of what a person restored: quarantine is of what was taken last.
    restored = {key for key in set_aside(lake, dataset) if key in taken and not taken[key].sha256}
    quarantined = {
        key: x.quarantined if key in restored else told[key] - x.left_out
        for key, x in ledgers.items()
    }
    off = {
        key: f"read {x.read}, duplicates {x.duplicates}, found {written[key]} rows and"
        f" {quarantined[key]} quarantined"
        for key, x in ledgers.items()
        if x.read != written[key] + x.duplicates + quarantined[key]
    }
    expected = {f.name: str(f.type) for f in dataset.arrow_schema}
    uris = [lake.uri(file.name) for file in table.filled(ledgers)]
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

    Also for a drop that the table had not yet when it was as a person restored it.

    Raises:
        DropError: a partition was never processed.
    """
    known = Known(lake)
    versions = known.of(dataset).fingerprints
    missing = set(keys).difference(versions)
    if missing:
        missing -= known.dates
    if missing:  # also a date whose file of the other table was delivered, and refused
        listing = list_raw(lake)
        missing -= listing.dates - listing.of(dataset).keys()
        missing -= set_aside(lake, dataset).keys()
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
    listing, known = list_raw(lake), Known(lake)
    deleted = {
        large.dataset.name: sorted(
            known.of(large.dataset).names.keys() - listing.of(large.dataset).keys()
        )
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

"""The assets of a feed of files, from raw files to warehouse tables, and their checks.

An asset calls what reads and writes (taking.py, landing.py) and reports. Not here: which files
there are and are known (listing.py), when anything runs (automation.py), dbt's models.
"""

from dataclasses import dataclass
from typing import Any

import dagster as dg

from retail_assets.errors import failures_by_kind
from retail_assets.feeds.checks import check_processed, processed_check_specs
from retail_assets.feeds.files import WHOLE_TABLE, FileFeed, FileTable, quarantine_of
from retail_assets.feeds.files.listing import Look, describe_drops
from retail_assets.feeds.files.taking import Room, processed_key, take_files
from retail_assets.feeds.landing import landed_asset
from retail_assets.instance_config import spark_pool
from retail_assets.losses import EmptyingConfig, Quarantined
from retail_assets.resources.lake import LakeResource
from retail_assets.settings import Settings

DELETED_CHECK = "no_drop_was_deleted"
# By which Dagster says which of them it was.
_AUTOMATIC_TAGS = {"dagster/sensor_name", "dagster/schedule_name"}


def raw_key(feed: FileFeed, table: FileTable) -> dg.AssetKey:
    """The asset of a table's raw file; of dated ones there is one for all tables."""
    return dg.AssetKey([feed.name, "raw_drops" if table.is_dated else f"raw_{table.dataset.name}"])


def drops_of(feed: FileFeed) -> dg.DynamicPartitionsDefinition:
    """The partitions of the tables of dated files."""
    return dg.DynamicPartitionsDefinition(name=feed.partitions)


@dataclass(frozen=True)
class Assets:
    """The assets and checks of ``feed``."""

    feed: FileFeed

    def build_defs(self, settings: Settings) -> dg.Definitions:
        """Raw files as they come, what is processed of them, what is landed."""
        feed = self.feed
        raw = {raw_key(feed, table): self._raw(table) for table in feed.tables}
        landed = [
            landed_asset(settings, feed, table.dataset, dep=processed_key(feed, table))
            for table in feed.tables
        ]
        return dg.Definitions(
            assets=[*raw.values(), *(self._processed(settings, x) for x in feed.tables), *landed],
            asset_checks=[self.no_drop_was_deleted()] if feed.dated else [],
        )

    def _raw(self, table: FileTable) -> dg.AssetSpec:
        feed = self.feed
        names = " and ".join(sorted(x.dataset.name for x in feed.dated))
        files = f"Dated files of {names}" if table.is_dated else table.path
        return dg.AssetSpec(
            raw_key(feed, table),
            group_name=feed.name,
            kinds={"csv"},
            tags={"zone": "raw"},
            partitions_def=drops_of(feed) if table.is_dated else None,
            description=f"{files}, as others deliver {'them' if table.is_dated else 'it'}.",
        )

    def _processed(self, settings: Settings, table: FileTable) -> dg.AssetsDefinition:
        feed, dataset = self.feed, table.dataset
        asset = processed_key(feed, table)
        cloud = ["gcs"] if settings.lake.startswith("gs://") else []
        as_files = "a folder a drop" if table.is_dated else "one partition"

        @dg.asset(
            key=asset,
            deps=[raw_key(feed, table)],
            group_name=feed.name,
            partitions_def=drops_of(feed) if table.is_dated else None,
            backfill_policy=dg.BackfillPolicy.single_run() if table.is_dated else None,
            pool=spark_pool(settings) if "spark" in table.resources else None,
            kinds={"parquet", table.engine, *cloud},
            code_version=table.version,
            tags={"zone": "processed"},
            description=f"{dataset.description} Typed, de-duplicated, as Parquet, {as_files}.",
            metadata={"dagster/column_schema": dataset.table_schema()},
            check_specs=processed_check_specs(asset),
            required_resource_keys={"lake", *table.resources},
        )
        def processed(
            context: dg.AssetExecutionContext, config: EmptyingConfig
        ) -> dg.MaterializeResult:  # type: ignore[type-arg]
            lake: LakeResource = context.resources.lake
            keys = context.partition_keys if table.is_dated else [WHOLE_TABLE]
            with failures_by_kind(context.retry_number):
                taken = take_files(
                    feed,
                    table,
                    keys,
                    Room(lake, context.run.run_id, context.resources),
                    most_lost=1.0 if config.allow_emptying else settings.most_rows_lost,
                    # A person who asks for what a person restored is to have it.
                    leave_restored=not _AUTOMATIC_TAGS.isdisjoint(context.run.tags),
                )
            path = dg.MetadataValue.path(lake.uri(f"processed/{dataset.folder}"))
            metadata: dict[str, Any] = {"path": path}
            version = None
            if table.is_dated:
                for key in keys:
                    empty = {"dagster/partition_row_count": 0}
                    told = taken[key].metadata if key in taken else empty
                    context.add_asset_metadata(told, partition_key=key)
                metadata["partitions_in_run"] = len(keys)
            else:
                metadata |= taken[WHOLE_TABLE].metadata
                version = dg.DataVersion(taken[WHOLE_TABLE].ledger.fingerprint)
            lost = sum((x.quarantined for x in taken.values()), Quarantined())
            return dg.MaterializeResult(
                metadata=metadata,
                data_version=version,
                check_results=check_processed(
                    lake, asset, dataset, quarantine_of(dataset), keys, lost, taken
                ),
            )

        return processed

    def no_drop_was_deleted(self) -> dg.AssetChecksDefinition:
        """A check that looks for drops that were taken and are not in the raw zone."""
        feed = self.feed

        @dg.asset_check(
            asset=raw_key(feed, feed.dated[0]),
            name=DELETED_CHECK,
            description="Every drop that was taken is still in the raw zone. A deleted one is not"
            " obeyed: its rows stay, and somebody is told.",
        )
        def no_drop_was_deleted(lake: LakeResource) -> dg.AssetCheckResult:
            look = Look(lake, feed.tables)
            deleted = {x.dataset.name: look.deleted(x.dataset) for x in feed.dated}
            count = sum(len(keys) for keys in deleted.values())
            return dg.AssetCheckResult(
                passed=not count,
                severity=dg.AssetCheckSeverity.WARN,
                description=(
                    f"{count} raw files were taken and are gone"
                    f" ({describe_drops({key for keys in deleted.values() for key in keys})})."
                    " Their rows stay. Put the files back; to remove rows, deliver the drop with a"
                    " header alone, and run it with --allow-emptying."
                    if count
                    else None
                ),
                metadata={
                    "drops": len(look.delivered),
                    "deleted": dg.MetadataValue.json({k: v[:20] for k, v in deleted.items()}),
                    "no_drops": dg.MetadataValue.json(look.strays[:20]),
                },
            )

        return no_drop_was_deleted

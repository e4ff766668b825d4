"""A snapshot's assets, from the source to the warehouse table, and their checks.

An asset reads, writes and reports. Not here: how rows are typed (RowTyping), what the source is
(source.py), when anything runs (automation.py), dbt's models (defs/marts/dbt.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from retail_assets.errors import failures_by_kind
from retail_assets.feeds.checks import check_processed, processed_check_specs
from retail_assets.feeds.landing import landed_asset
from retail_assets.feeds.snapshot import SnapshotFeed
from retail_assets.feeds.snapshot.manifest import EMPTY_DAY, read_manifest
from retail_assets.feeds.snapshot.rows import TypedRows, day_predicate
from retail_assets.feeds.snapshot.source import Source, SourceError
from retail_assets.losses import (
    EmptyingConfig,
    Quarantined,
    check_quarantine,
    public_reason,
    quarantine_check_spec,
)
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.staging import split_by_partition
from retail_assets.settings import Settings

_BATCH_ROWS = 122_880
_CODE_VERSION = "1"


@dataclass(frozen=True)
class Assets:
    """The part of a feed's definitions that has its assets."""

    feed: SnapshotFeed

    def build_defs(self, settings: Settings) -> dg.Definitions:
        """The feed's assets, over the configured days."""
        return dg.Definitions(assets=build_assets(self.feed, settings))


def day_partitions(feed: SnapshotFeed, settings: Settings) -> dg.DailyPartitionsDefinition:
    """The days of the configured span; an open end reaches to today."""
    place = feed.place(settings)
    if place.last_day is None:
        return dg.DailyPartitionsDefinition(str(place.first_day), end_offset=1)
    after = place.last_day.fromordinal(place.last_day.toordinal() + 1)
    return dg.DailyPartitionsDefinition(str(place.first_day), end_date=str(after))


def build_assets(feed: SnapshotFeed, settings: Settings) -> list[dg.AssetsDefinition]:
    """The feed's assets: its source, its table in the lake, its table in the warehouse."""
    source = Source(feed, settings)

    @dg.asset(
        key=feed.raw_key,
        group_name=feed.name,
        kinds={"file"},
        code_version=_CODE_VERSION,
        tags={"zone": "raw"},
        description="The source's file(s), as they came, and what they hold day by day.",
        check_specs=[quarantine_check_spec(feed.raw_key)],
    )
    def raw(
        context: dg.AssetExecutionContext, config: EmptyingConfig, lake: LakeResource
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with failures_by_kind(context.retry_number):
            found = source.refresh(
                lake, run_id=context.run.run_id, allow_emptying=config.allow_emptying
            )
        context.log.info(
            f"{len(found.changed_days)} days changed; downloaded: {found.downloaded},"
            f" typed: {found.typed}"
        )
        return dg.MaterializeResult(
            metadata=found.manifest.metadata
            | {
                "path": dg.MetadataValue.path(lake.uri(f"raw/{feed.name}")),
                "changed_days": len(found.changed_days),
                "changed": ", ".join(found.changed_days[:50]),
            },
            data_version=dg.DataVersion(found.manifest.version),
            check_results=[check_quarantine(feed.raw_key, found.manifest.quarantined)],
        )

    @dg.asset(
        key=feed.processed_key,
        deps=[feed.raw_key],
        group_name=feed.name,
        partitions_def=day_partitions(feed, settings),
        backfill_policy=dg.BackfillPolicy.single_run(),
        kinds={"parquet", "gcs"} if settings.lake.startswith("gs://") else {"parquet"},
        code_version=_CODE_VERSION,
        tags={"zone": "processed"},
        description=f"{feed.dataset.description} As Parquet, a folder a day.",
        metadata={"dagster/column_schema": feed.dataset.table_schema()},
        check_specs=processed_check_specs(feed.processed_key),
    )
    def processed(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
        days = context.partition_keys
        with failures_by_kind(context.retry_number):
            written = write_days(feed, lake, context.run.run_id, days)
        quarantined = Quarantined()
        for day, (bad, told) in written.items():
            quarantined += bad
            context.add_asset_metadata(told, partition_key=day)
        return dg.MaterializeResult(
            metadata={
                "path": dg.MetadataValue.path(lake.uri(feed.dataset.location)),
                "partitions_in_run": len(days),
            },
            check_results=check_processed(
                lake, feed.processed_key, feed.dataset, feed.quarantine, days, quarantined
            ),
        )

    landed = landed_asset(settings, feed, feed.dataset, dep=feed.processed_key)
    return [raw, processed, landed]


def write_days(
    feed: SnapshotFeed, lake: LakeResource, run_id: str, days: Sequence[str]
) -> dict[str, tuple[Quarantined, dict[str, Any]]]:
    """Replace the processed and quarantined partitions ``days`` from the typed source.

    Returns what of each was quarantined, and what its record tells.

    Raises:
        SourceError: there is no source, or what was staged does not balance with its ledger; no
            partition was touched.
    """
    import duckdb

    raw = feed.raw_key.path[-1]
    manifest = read_manifest(lake, feed.name)
    if manifest is None or not lake.exists(manifest.typed):
        raise SourceError(
            f"the typed source is not in the lake at {lake.root}. Materialize {raw} first."
        )
    where = day_predicate(f'"{feed.day}"', days)
    with (
        duckdb.connect() as connection,
        lake.staging(run_id, feed.processed_key.to_user_string()) as stage,
    ):
        file = lake.local_file(manifest.typed)
        rows = TypedRows(connection, feed, f"read_parquet('{file}')")
        written, quarantined = (
            stage.write_partitions(
                dataset,
                split_by_partition(
                    found.to_arrow_reader(_BATCH_ROWS), feed.day, dataset.arrow_schema
                ),
            )
            for dataset, found in (
                (feed.dataset, rows.good(where)),
                (feed.quarantine, rows.quarantined(where)),
            )
        )
        ledgers = {day: manifest.days.get(day, EMPTY_DAY) for day in days}
        for day, ledger in ledgers.items():
            found = (written.get(day, 0), quarantined.get(day, 0) - ledger.left_out)
            if found != (ledger.written, ledger.quarantined):
                raise SourceError(
                    f"{day}: the ledger expects {ledger.written} rows and {ledger.quarantined}"
                    f" quarantined, found {found[0]} and {found[1]}. No partition was touched."
                    f" Materialize {raw} again."
                )
        told = {"source": manifest.hashes, "code_version": _CODE_VERSION}
        # The days last, whose ledgers say that they are done: killed in between, they are not.
        stage.publish(feed.quarantine, days, told=told)
        stage.publish(feed.dataset, days, ledgers, told)
        sums, reasons = rows.by_day(where)
    written_days = {}
    for day, ledger in ledgers.items():
        reason = public_reason(reasons[day], feed.dataset.personal) if day in reasons else None
        bad = Quarantined(ledger.quarantined, ledger.left_out, reason)
        counts = {
            "dagster/partition_row_count": ledger.written,
            "read": ledger.read,
            "duplicates": ledger.duplicates,
        }
        written_days[day] = (
            bad,
            counts | sums.get(day, dict.fromkeys(feed.sums, "0")) | bad.metadata,
        )
    return written_days

"""What Dagster sees of a snapshot: its assets and checks, jobs, schedules and sensor.

Here: reporting what was read and written, what is asked for and when. Not here: how rows are typed
(RowTyping), what the source is (source.py) and holds (manifest.py), dbt's models.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from retail_assets.errors import failures_by_kind
from retail_assets.feeds import automation as asking
from retail_assets.feeds.landing import lake_versions, landed_asset, landed_key
from retail_assets.feeds.processed import Taken, processed_asset, processed_key, publish
from retail_assets.feeds.requests import Request, requests_for
from retail_assets.feeds.snapshot import SnapshotFeed
from retail_assets.feeds.snapshot.manifest import EMPTY_DAY, Manifest, changed_days, read_manifest
from retail_assets.feeds.snapshot.rows import TypedRows, day_predicate
from retail_assets.feeds.snapshot.source import Source, SourceError
from retail_assets.losses import EmptyingConfig, check_quarantine, quarantine_check_spec
from retail_assets.resources.http import DownloadError, Fingerprint
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.restoring import set_aside
from retail_assets.resources.lake.staging import split_by_partition
from retail_assets.resources.warehouse import WarehouseBusyError, WarehouseResource
from retail_assets.settings import Settings

_BATCH_ROWS = 122_880
_CODE_VERSION = "1"
_LOADING = "Load what the lake has otherwise than the warehouse."
_BUILDING = "Build and test the dbt models of the domain."


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

    def take(context: dg.AssetExecutionContext, days: Collection[str]) -> Mapping[str, Taken]:
        return write_days(feed, context.resources.lake, context.run.run_id, sorted(days))

    processed = processed_asset(
        settings,
        feed,
        feed.dataset,
        feed.quarantine,
        take,
        source=feed.raw_key,
        partitions=day_partitions(feed, settings),
        description="As Parquet, a folder a day.",
        code_version=_CODE_VERSION,
    )
    return [raw, processed, landed_asset(settings, feed, feed.dataset, dep=processed.key)]


def write_days(
    feed: SnapshotFeed, lake: LakeResource, run_id: str, days: Sequence[str]
) -> dict[str, Taken]:
    """Replace the processed and quarantined partitions ``days`` from the typed source.

    Raises:
        SourceError: there is no source, or what was staged does not balance with its ledger; no
            partition was touched.
    """
    import duckdb

    raw, asset = feed.raw_key.path[-1], processed_key(feed, feed.dataset)
    manifest = read_manifest(lake, feed.name)
    if manifest is None or not lake.exists(manifest.typed):
        raise SourceError(
            f"the typed source is not in the lake at {lake.root}. Materialize {raw} first."
        )
    where = day_predicate(f'"{feed.day}"', days)
    with duckdb.connect() as connection, lake.staging(run_id, asset.to_user_string()) as stage:
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
        publish(stage, feed.dataset, feed.quarantine, days, ledgers, **told)
        sums, reasons = rows.by_day(where)
    nothing = dict.fromkeys(feed.sums, "0")
    return {
        day: Taken.of(feed.dataset, ledger, reasons.get(day), **sums.get(day, nothing))
        for day, ledger in ledgers.items()
    }


def source_request(
    feed: SnapshotFeed, origins: Sequence[Fingerprint], manifest: Manifest | None
) -> Request:
    """The source's asset, once a version of the origin.

    An origin that tells no version looks new at every glance: one success settles it, until the
    lake is lost.
    """
    versioned = all(origin.etag or origin.last_modified for origin in origins)
    tokens = "\n".join(origin.token() for origin in origins)
    identity = f"{feed.source_job}:{hashlib.sha256(tokens.encode()).hexdigest()[:16]}"
    once = not versioned and manifest is not None
    return Request(identity, feed.source_job, (feed.raw_key,), once=once)


def days_to_write(feed: SnapshotFeed, lake: LakeResource, manifest: Manifest) -> set[str]:
    """Days that the source holds otherwise than the lake's table, by their fingerprints.

    But for those that a person set aside by restoring the table, until the source is another.
    """
    wanted, aside = manifest.fingerprints, set_aside(lake, feed.dataset)
    return {
        day
        for day in changed_days(wanted, lake_versions(lake, feed.dataset))
        if day not in aside or aside[day].fingerprint != wanted.get(day, "")
    }


def day_requests(
    feed: SnapshotFeed,
    settings: Settings,
    manifest: Manifest,
    days: Iterable[str],
    job: str,
    *selection: dg.AssetKey,
    alone: str | None = None,
) -> Iterator[Request]:
    """One request a contiguous range of those ``days`` that are partitions.

    ``alone`` is the job of a range that is the only one, if another one.
    """
    every = day_partitions(feed, settings).get_partition_keys()
    ranges = asking.partition_ranges(set(every).intersection(days), every)
    by = alone if alone and len(ranges) == 1 else job
    versions = {"day": manifest.fingerprints}
    return asking.range_requests(feed.days_job, by, ranges, versions, selection)


def find_arrivals(
    feed: SnapshotFeed,
    settings: Settings,
    instance: dg.DagsterInstance,
    lake: LakeResource,
    warehouse: WarehouseResource,
) -> asking.Arrivals:
    """The source, where its origin is another, and the days that it has otherwise."""
    assets = [feed.raw_key, processed_key(feed, feed.dataset), landed_key(feed.dataset)]
    days_jobs = (feed.days_job, feed.days_to_marts_job)
    jobs = (feed.source_job, *days_jobs, feed.load_job, feed.marts_job, feed.name)
    underway = asking.tell_underway(asking.find_underway(instance, jobs, assets))
    notes: list[str] = []
    origins: Sequence[Fingerprint] | None = None
    try:
        origins = Source(feed, settings).probe()
    except DownloadError as error:
        notes.append(f"the source does not answer: {error}")

    def wanted() -> Iterator[Request]:
        manifest = read_manifest(lake, feed.name)
        is_new = origins is not None and (manifest is None or not manifest.is_of(origins))
        if origins is not None and is_new:
            yield source_request(feed, origins, manifest)
        if manifest is None:
            return
        there = lake_versions(lake, feed.dataset)
        try:
            wait_s = asking.WAREHOUSE_WAIT_S
            landed = warehouse.loaded_versions(feed.dataset, timeout_s=wait_s)
        except WarehouseBusyError as busy:
            underway.append(str(busy))  # nothing is asked of it now
            return
        # And those that the warehouse alone has, of a lake that was lost.
        lost = {day for day, version in landed.items() if version and day not in there}
        days = days_to_write(feed, lake, manifest) | lost
        # Of what is all that lacks, one run goes on to the marts.
        alone = None if is_new or underway else feed.days_to_marts_job
        yield from day_requests(feed, settings, manifest, days, feed.days_job, alone=alone)

    return asking.Arrivals(wanted=wanted, underway=underway, notes=notes)


def build_defs(feed: SnapshotFeed, settings: Settings) -> dg.Definitions:
    """Assets, checks, jobs, schedules and the sensor, over the configured days."""
    raw, processed, landed = (
        dg.AssetSelection.assets(key)
        for key in (feed.raw_key, processed_key(feed, feed.dataset), landed_key(feed.dataset))
    )
    everything = dg.AssetSelection.groups(feed.name)
    models = everything - raw - processed - landed
    jobs = asking.define_jobs(
        {
            feed.source_job: (
                raw | processed,
                "Fetch the source, and write days of it to the lake.",
            ),
            feed.days_job: (
                processed | landed,
                "Days that the source changed, to the lake and on to the warehouse.",
            ),
            feed.days_to_marts_job: (
                everything - raw,
                "Days that the source changed, to the lake and on to the marts.",
            ),
            feed.load_job: (landed, _LOADING),
            feed.marts_job: (models, _BUILDING),
            feed.name: (everything, "Everything of the domain, for a range of days."),
        }
    )

    def look(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
        lake: LakeResource = context.resources.lake

        def wanted() -> Iterable[Request]:
            manifest = read_manifest(lake, feed.name)
            if manifest is None:
                return ()
            days = days_to_write(feed, lake, manifest)
            of = processed_key(feed, feed.dataset)
            return day_requests(feed, settings, manifest, days, feed.source_job, of)

        at = f"source:{context.scheduled_execution_time:%Y-%m-%d}"
        raw_alone = dg.RunRequest(at, asset_selection=[feed.raw_key])
        return [raw_alone, *requests_for(wanted, context.instance)[0]]

    def load(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        found: Any = context.resources
        return asking.asked_or_why(
            lambda: asking.load_requests(feed, found.lake, found.warehouse),
            context.instance,
            "the warehouse is up to date",
        )

    looking = "Look at the source; write the days that the last look found changed."
    return dg.Definitions(
        assets=build_assets(feed, settings),
        jobs=jobs,
        schedules=[
            asking.schedule(
                f"{feed.source_job}_daily", feed.source_job, "0 2 * * *", looking, look, ["lake"]
            ),
            asking.schedule(
                f"{feed.load_job}_daily",
                feed.load_job,
                "0 4 * * *",
                _LOADING,
                load,
                ["lake", "warehouse"],
            ),
            asking.schedule(
                f"{feed.marts_job}_every_12_hours", feed.marts_job, "0 6,18 * * *", _BUILDING
            ),
        ],
        sensors=[
            asking.arrivals_sensor(
                feed,
                f"{feed.name}_source_sensor",
                lambda instance, found: find_arrivals(
                    feed, settings, instance, found.lake, found.warehouse
                ),
                jobs[:-1],
                every_s=60 if settings.bigquery else 30,  # which bills each look
                description="Asks for the source once a version of it, then for exactly the days"
                " that it changed, then for what the warehouse has otherwise, then for the marts.",
            )
        ],
    )

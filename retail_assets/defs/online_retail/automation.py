"""When online retail runs: jobs, schedules and the sensor on its source.

Here: what to ask for and when. Not here: what a run does (assets.py), what changed (source.py).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import dagster as dg

from retail_assets.days import contiguous_ranges
from retail_assets.defs.online_retail.assets import LANDED, PROCESSED, RAW, day_partitions
from retail_assets.defs.online_retail.contract import DOMAIN, ONLINE_RETAIL_DATA
from retail_assets.defs.online_retail.source import (
    Manifest,
    OnlineRetailSource,
    changed_days,
    read_manifest,
    read_processed,
    source_token,
)
from retail_assets.defs.online_retail.transforms import DayLedger
from retail_assets.domain import range_tags
from retail_assets.requests import Wish, requests_for
from retail_assets.resources.download import DownloadError, Fingerprint
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.warehouse import WarehouseBusyError, WarehouseResource
from retail_assets.settings import Settings

_WAREHOUSE_WAIT_S = 5.0


def source_wish(origins: Sequence[Fingerprint], manifest: Manifest | None) -> Wish:
    """The source asset, once a version of the origin.

    An origin that tells no version looks new at every glance: one success settles it, until the
    lake is lost.
    """
    versioned = all(origin.etag or origin.last_modified for origin in origins)
    return Wish(
        f"source:{source_token(origins)}",
        "online_retail_source_to_lake",
        (RAW,),
        once=not versioned and manifest is not None,
    )


def day_wishes(
    days: Iterable[str],
    wanted: Mapping[str, DayLedger],
    job_name: str,
    asset_selection: tuple[dg.AssetKey, ...],
) -> list[Wish]:
    """One wish a contiguous range of ``days``, identified by the days and their fingerprints."""
    chosen = sorted(days)
    wishes = []
    for first, last in contiguous_ranges(chosen):
        inside = [day for day in chosen if first <= day <= last]
        text = "\n".join(
            f"{day} {wanted[day].fingerprint if day in wanted else ''}" for day in inside
        )
        version = hashlib.sha256(text.encode()).hexdigest()[:12]
        wishes.append(
            Wish(
                f"{job_name}:{first}...{last}:{version}",
                job_name,
                asset_selection,
                tuple(range_tags(first, last).items()),
            )
        )
    return wishes


def _fingerprints(ledgers: Mapping[str, DayLedger]) -> dict[str, str]:
    return {day: ledger.fingerprint for day, ledger in ledgers.items()}


def pending_days(
    lake: LakeResource, warehouse: WarehouseResource, valid: Iterable[str]
) -> tuple[str, ...]:
    """Days of ``valid`` whose processed or landed partition is not what the source now holds."""
    manifest = read_manifest(lake)
    if manifest is None:
        return ()
    landed = warehouse.loaded_versions(ONLINE_RETAIL_DATA, timeout_s=_WAREHOUSE_WAIT_S)
    changed = set(changed_days(manifest.days, _fingerprints(read_processed(lake))))
    changed |= set(changed_days(manifest.days, landed))
    return tuple(sorted(changed & set(valid)))


def build_defs(settings: Settings) -> dg.Definitions:
    """Jobs, schedules and the sensor of the domain."""
    days = day_partitions(settings)

    source_to_lake = dg.define_asset_job(
        "online_retail_source_to_lake",
        selection=dg.AssetSelection.assets(RAW, PROCESSED),
        description="Fetch the source, and write days of it to the lake.",
    )
    lake_to_warehouse = dg.define_asset_job(
        "online_retail_lake_to_warehouse",
        selection=dg.AssetSelection.assets(LANDED),
        description="Load days of the lake into the warehouse.",
    )
    marts = dg.define_asset_job(
        "online_retail_marts",
        selection=dg.AssetSelection.groups(DOMAIN)
        - dg.AssetSelection.assets(RAW, PROCESSED, LANDED),
        description="Build and test the dbt models of the domain.",
    )
    whole = dg.define_asset_job(
        DOMAIN,
        selection=dg.AssetSelection.groups(DOMAIN),
        description="Everything of the domain, for a range of days.",
    )
    changed = dg.define_asset_job(
        "online_retail_changed_days",
        selection=dg.AssetSelection.assets(PROCESSED, LANDED),
        description="Days that the source changed, to the lake and on to the warehouse.",
    )

    @dg.schedule(job=source_to_lake, cron_schedule="0 2 * * *", execution_timezone="UTC")
    def online_retail_source_to_lake_daily(
        context: dg.ScheduleEvaluationContext, lake: LakeResource
    ) -> list[dg.RunRequest]:
        """Look at the source; write the days that the last look found changed."""
        at = context.scheduled_execution_time
        requests = [dg.RunRequest(run_key=f"source:{at:%Y-%m-%d}", asset_selection=[RAW])]
        manifest = read_manifest(lake)
        if manifest is not None:
            valid = set(days.get_partition_keys())

            def wishes() -> list[Wish]:
                pending = changed_days(manifest.days, _fingerprints(read_processed(lake)))
                chosen = valid.intersection(pending)
                return day_wishes(chosen, manifest.days, source_to_lake.name, (PROCESSED,))

            requests += requests_for(wishes, context.instance)[0]
        return requests

    @dg.schedule(job=lake_to_warehouse, cron_schedule="0 4 * * *", execution_timezone="UTC")
    def online_retail_lake_to_warehouse_daily(
        context: dg.ScheduleEvaluationContext, lake: LakeResource, warehouse: WarehouseResource
    ) -> list[dg.RunRequest] | dg.SkipReason:
        """Load the days whose processed partition is newer than the warehouse's."""
        valid = set(days.get_partition_keys())

        def wishes() -> list[Wish]:
            processed = read_processed(lake)
            landed = warehouse.loaded_versions(ONLINE_RETAIL_DATA, timeout_s=_WAREHOUSE_WAIT_S)
            pending = [day for day, x in processed.items() if landed.get(day) != x.fingerprint]
            chosen = valid.intersection(pending)
            return day_wishes(chosen, processed, lake_to_warehouse.name, (LANDED,))

        try:
            requests, reasons = requests_for(wishes, context.instance)
        except WarehouseBusyError as busy:
            return dg.SkipReason(str(busy))
        return requests or dg.SkipReason("; ".join(reasons) or "the warehouse is up to date")

    marts_schedule = dg.ScheduleDefinition(
        name="online_retail_marts_every_12_hours",
        job=marts,
        cron_schedule="0 6,18 * * *",
        execution_timezone="UTC",
    )

    @dg.sensor(
        name="online_retail_source_sensor",
        jobs=[source_to_lake, changed],
        minimum_interval_seconds=60,
        description=(
            "Asks for the source once a version of it, then for exactly the days that it changed."
        ),
    )
    def source_sensor(
        context: dg.SensorEvaluationContext,
        lake: LakeResource,
        warehouse: WarehouseResource,
        online_retail_source: OnlineRetailSource,
    ) -> dg.SensorResult | dg.SkipReason:
        notes: list[str] = []
        valid = days.get_partition_keys()
        try:
            origins = online_retail_source.probe()
        except DownloadError as error:
            notes.append(f"the source does not answer: {error}")
            origins = None

        def wishes() -> list[Wish]:
            found = []
            manifest = read_manifest(lake)
            if origins is not None and (manifest is None or not manifest.is_of(origins)):
                found.append(source_wish(origins, manifest))
            if manifest is not None:
                try:
                    pending = pending_days(lake, warehouse, valid)
                except WarehouseBusyError as busy:
                    notes.append(str(busy))
                else:
                    found += day_wishes(pending, manifest.days, changed.name, (PROCESSED, LANDED))
            return found

        requests, reasons = requests_for(wishes, context.instance)
        if requests:
            return dg.SensorResult(run_requests=requests)
        return dg.SkipReason("; ".join(notes + reasons) or "the source has not changed")

    return dg.Definitions(
        jobs=[source_to_lake, lake_to_warehouse, marts, whole, changed],
        schedules=[
            online_retail_source_to_lake_daily,
            online_retail_lake_to_warehouse_daily,
            marts_schedule,
        ],
        sensors=[source_sensor],
    )

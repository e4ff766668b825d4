"""When online retail runs: jobs, schedules and the sensor on its source.

Here: what to ask for and when. Not here: what a run does (assets.py), what changed (manifest.py).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import dagster as dg

from retail_assets.days import contiguous_ranges
from retail_assets.defs.online_retail.assets import LANDED, PROCESSED, RAW, day_partitions
from retail_assets.defs.online_retail.contract import DOMAIN, ONLINE_RETAIL_DATA
from retail_assets.defs.online_retail.manifest import (
    Manifest,
    changed_days,
    read_manifest,
)
from retail_assets.defs.online_retail.source import OnlineRetailSource, source_token
from retail_assets.domain import MARTS_STAGE, range_tags
from retail_assets.landing import lake_versions
from retail_assets.requests import Wish, marts_wish, requests_for, runs_underway
from retail_assets.resources.http import DownloadError, Fingerprint
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.restoring import set_aside
from retail_assets.resources.warehouse import WarehouseBusyError, WarehouseResource
from retail_assets.settings import Settings

SOURCE_JOB = f"{DOMAIN}_source_to_lake"
LOAD_JOB = f"{DOMAIN}_lake_to_warehouse"
DAYS_JOB = f"{DOMAIN}_changed_days"
MARTS_JOB = f"{DOMAIN}_marts"
_WAREHOUSE_WAIT_S = 1.0
# Dagster's job of the assets that a person or a backfill materializes without naming a job.
_UNNAMED_JOB = "__ASSET_JOB"


def source_wish(origins: Sequence[Fingerprint], manifest: Manifest | None) -> Wish:
    """The source asset, once a version of the origin.

    An origin that tells no version looks new at every glance: one success settles it, until the
    lake is lost.
    """
    versioned = all(origin.etag or origin.last_modified for origin in origins)
    return Wish(
        f"source:{source_token(origins)}",
        SOURCE_JOB,
        (RAW,),
        once=not versioned and manifest is not None,
    )


def day_wishes(
    days: Iterable[str],
    versions: Mapping[str, str],
    job_name: str,
    asset_selection: tuple[dg.AssetKey, ...],
) -> list[Wish]:
    """One wish a contiguous range of ``days``, identified by the days and their fingerprints."""
    chosen = sorted(days)
    wishes = []
    for first, last in contiguous_ranges(chosen):
        inside = [day for day in chosen if first <= day <= last]
        text = "\n".join(f"{day} {versions.get(day, '')}" for day in inside)
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


def days_to_write(
    lake: LakeResource, wanted: Mapping[str, str], processed: Mapping[str, str]
) -> set[str]:
    """Days that the source holds otherwise than the lake's table, by their fingerprints.

    But for those that a person set aside by restoring the table, until the source is another.
    """
    aside = set_aside(lake, ONLINE_RETAIL_DATA)
    return {
        day
        for day in changed_days(wanted, processed)
        if day not in aside or aside[day].fingerprint != wanted.get(day, "")
    }


def days_to_load(processed: Mapping[str, str], landed: Mapping[str, str]) -> set[str]:
    """Days that the lake has otherwise than the warehouse."""
    return {day for day, version in processed.items() if landed.get(day) != version}


def wishes_for_days(
    lake: LakeResource, warehouse: WarehouseResource, valid: Iterable[str]
) -> list[Wish]:
    """For days of ``valid``: to write and load them, or to load them alone as the lake has them."""
    manifest = read_manifest(lake)
    if manifest is None:
        return []
    wanted, processed = manifest.fingerprints, lake_versions(lake, ONLINE_RETAIL_DATA)
    landed = warehouse.loaded_versions(ONLINE_RETAIL_DATA, timeout_s=_WAREHOUSE_WAIT_S)
    write = days_to_write(lake, wanted, processed)
    # What the warehouse alone has, of a lake that was lost.
    write |= {day for day, version in landed.items() if version and day not in processed}
    load = days_to_load(processed, landed) - write
    return [
        *day_wishes(write.intersection(valid), wanted, DAYS_JOB, (PROCESSED, LANDED)),
        *day_wishes(load.intersection(valid), processed, LOAD_JOB, (LANDED,)),
    ]


def runs_of_days(instance: dg.DagsterInstance) -> list[str]:
    """Runs that bring days on, or build the marts of them, whoever asked for them; as told."""
    jobs = (SOURCE_JOB, DAYS_JOB, LOAD_JOB, MARTS_JOB, DOMAIN, _UNNAMED_JOB)
    return [
        f"{'a run of assets' if job == _UNNAMED_JOB else job} is underway (run {run.run_id})"
        for job in jobs
        for run in runs_underway(instance, job, requested=False)
        if job != _UNNAMED_JOB or {RAW, PROCESSED, LANDED} & set(run.asset_selection or ())
    ]


def pending_marts(warehouse: WarehouseResource) -> list[Wish]:
    """The marts, where they are not of what is landed."""
    with warehouse.kept_open(_WAREHOUSE_WAIT_S):
        landed, built = (
            {ONLINE_RETAIL_DATA: warehouse.loaded_versions(ONLINE_RETAIL_DATA, stage)}
            for stage in ("landed", MARTS_STAGE)
        )
    wish = marts_wish(MARTS_JOB, landed, built)
    return [] if wish is None else [wish]


def ask(
    instance: dg.DagsterInstance,
    lake: LakeResource,
    warehouse: WarehouseResource,
    source: OnlineRetailSource,
    valid: Iterable[str],
) -> dg.SensorResult | dg.SkipReason:
    """One look at origin, lake and warehouse: requests for the source, the days, then the marts.

    The marts are asked for when no day is asked for or underway: they then are of all that is
    landed. Days that failed for good do not keep them back.
    """
    notes: list[str] = []
    try:
        origins = source.probe()
    except DownloadError as error:
        notes.append(f"the source does not answer: {error}")
        origins = None
    busy: list[str] = []

    def wishes() -> list[Wish]:
        manifest = read_manifest(lake)
        found = []
        if origins is not None and (manifest is None or not manifest.is_of(origins)):
            found.append(source_wish(origins, manifest))
        try:
            found += wishes_for_days(lake, warehouse, valid)
        except WarehouseBusyError as error:
            busy[:] = [str(error)]
        return found

    requests, reasons = requests_for(wishes, instance)
    underway = runs_of_days(instance)
    if not (requests or busy or underway):
        try:
            requests, more = requests_for(lambda: pending_marts(warehouse), instance)
            reasons += more
        except WarehouseBusyError as error:
            busy.append(str(error))
    if requests:
        return dg.SensorResult(run_requests=requests)
    return dg.SkipReason(
        "; ".join(notes + busy + reasons + underway) or "the source has not changed"
    )


def build_defs(settings: Settings) -> dg.Definitions:
    """Jobs, schedules and the sensor of the domain."""
    days = day_partitions(settings)

    source_to_lake = dg.define_asset_job(
        SOURCE_JOB,
        selection=dg.AssetSelection.assets(RAW, PROCESSED),
        description="Fetch the source, and write days of it to the lake.",
    )
    lake_to_warehouse = dg.define_asset_job(
        LOAD_JOB,
        selection=dg.AssetSelection.assets(LANDED),
        description="Load days of the lake into the warehouse.",
    )
    marts = dg.define_asset_job(
        MARTS_JOB,
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
        DAYS_JOB,
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
                wanted, processed = manifest.fingerprints, lake_versions(lake, ONLINE_RETAIL_DATA)
                chosen = valid & days_to_write(lake, wanted, processed)
                return day_wishes(chosen, wanted, source_to_lake.name, (PROCESSED,))

            requests += requests_for(wishes, context.instance)[0]
        return requests

    @dg.schedule(job=lake_to_warehouse, cron_schedule="0 4 * * *", execution_timezone="UTC")
    def online_retail_lake_to_warehouse_daily(
        context: dg.ScheduleEvaluationContext, lake: LakeResource, warehouse: WarehouseResource
    ) -> list[dg.RunRequest] | dg.SkipReason:
        """Load the days whose processed partition is newer than the warehouse's."""
        valid = set(days.get_partition_keys())

        def wishes() -> list[Wish]:
            processed = lake_versions(lake, ONLINE_RETAIL_DATA)
            landed = warehouse.loaded_versions(ONLINE_RETAIL_DATA, timeout_s=_WAREHOUSE_WAIT_S)
            chosen = valid & days_to_load(processed, landed)
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
        jobs=[source_to_lake, changed, lake_to_warehouse, marts],
        minimum_interval_seconds=60,
        description=(
            "Asks for the source once a version of it, then for exactly the days that it changed"
            " or that the warehouse has otherwise, then for the marts."
        ),
    )
    def source_sensor(
        context: dg.SensorEvaluationContext,
        lake: LakeResource,
        warehouse: WarehouseResource,
        online_retail_source: OnlineRetailSource,
    ) -> dg.SensorResult | dg.SkipReason:
        valid = days.get_partition_keys()
        return ask(context.instance, lake, warehouse, online_retail_source, valid)

    return dg.Definitions(
        jobs=[source_to_lake, lake_to_warehouse, marts, whole, changed],
        schedules=[
            online_retail_source_to_lake_daily,
            online_retail_lake_to_warehouse_daily,
            marts_schedule,
        ],
        sensors=[source_sensor],
    )

"""When a snapshot runs: jobs, schedules and the sensor on its source.

Here: what to ask for and when. Not here: what a run does (assets.py), what changed (manifest.py),
the load and the marts (feeds/automation.py).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from retail_assets.days import contiguous_ranges
from retail_assets.domain import range_tags
from retail_assets.feeds.automation import (
    WAREHOUSE_WAIT_S,
    Arrivals,
    ask,
    load_requests,
    told_underway,
)
from retail_assets.feeds.landing import lake_versions, landed_key, version_of
from retail_assets.feeds.requests import Request, requests_for
from retail_assets.feeds.snapshot import SnapshotFeed
from retail_assets.feeds.snapshot.assets import day_partitions
from retail_assets.feeds.snapshot.manifest import Manifest, changed_days, read_manifest
from retail_assets.feeds.snapshot.source import Source
from retail_assets.resources.http import DownloadError, Fingerprint
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.restoring import set_aside
from retail_assets.resources.warehouse import WarehouseBusyError, WarehouseResource
from retail_assets.settings import Settings

_LOADING = "Load what the lake has otherwise than the warehouse."


def source_request(
    job: str, raw: dg.AssetKey, origins: Sequence[Fingerprint], manifest: Manifest | None
) -> Request:
    """The source's asset, once a version of the origin.

    An origin that tells no version looks new at every glance: one success settles it, until the
    lake is lost.
    """
    versioned = all(origin.etag or origin.last_modified for origin in origins)
    tokens = "\n".join(origin.token() for origin in origins)
    token = hashlib.sha256(tokens.encode()).hexdigest()[:16]
    return Request(f"{job}:{token}", job, (raw,), once=not versioned and manifest is not None)


def day_requests(
    days: Iterable[str],
    versions: Mapping[str, str],
    job: str,
    asset_selection: tuple[dg.AssetKey, ...],
) -> list[Request]:
    """One request a contiguous range of ``days``, identified by the days and their fingerprints."""
    chosen = sorted(days)
    requests = []
    for first, last in contiguous_ranges(chosen):
        version = version_of({x: versions.get(x, "") for x in chosen if first <= x <= last})
        tags = tuple(range_tags(first, last).items())
        requests.append(Request(f"{job}:{first}...{last}:{version}", job, asset_selection, tags))
    return requests


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


class Automation:
    """The part of a feed's definitions that says when it runs."""

    def __init__(self, feed: SnapshotFeed) -> None:
        self.feed = feed
        self.raw, self.processed = feed.raw_key, feed.processed_key
        self.landed = landed_key(feed.dataset)
        self.source_job, self.days_job = f"{feed.name}_source_to_lake", f"{feed.name}_changed_days"
        self.load_job, self.marts_job = f"{feed.name}_lake_to_warehouse", f"{feed.name}_marts"

    def build_defs(self, settings: Settings) -> dg.Definitions:
        """Jobs, schedules and the sensor."""
        marts = dg.ScheduleDefinition(
            name=f"{self.marts_job}_every_12_hours",
            job_name=self.marts_job,
            cron_schedule="0 6,18 * * *",
            execution_timezone="UTC",
            description="Build and test the marts.",
        )
        jobs = self._jobs()
        return dg.Definitions(
            jobs=jobs,
            schedules=[self._source_schedule(settings), self._load_schedule(), marts],
            sensors=[self._sensor(settings, jobs[:-1])],
        )

    def _jobs(self) -> list[Any]:
        everything, assets = dg.AssetSelection.groups(self.feed.name), dg.AssetSelection.assets
        models = everything - assets(self.raw, self.processed, self.landed)
        jobs = [
            (
                self.source_job,
                assets(self.raw, self.processed),
                "Fetch the source, and write days of it to the lake.",
            ),
            (
                self.days_job,
                assets(self.processed, self.landed),
                "Days that the source changed, to the lake and on to the warehouse.",
            ),
            (self.load_job, assets(self.landed), _LOADING),
            (self.marts_job, models, "Build and test the dbt models of the domain."),
            (self.feed.name, everything, "Everything of the domain, for a range of days."),
        ]
        return [dg.define_asset_job(name, of, description=told) for name, of, told in jobs]

    def _sensor(self, settings: Settings, jobs: Sequence[Any]) -> dg.SensorDefinition:
        @dg.sensor(
            name=f"{self.feed.name}_source_sensor",
            jobs=jobs,
            minimum_interval_seconds=60,
            description=(
                "Asks for the source once a version of it, then for exactly the days that it"
                " changed, then for what the warehouse has otherwise, then for the marts."
            ),
        )
        def source_sensor(
            context: dg.SensorEvaluationContext, lake: LakeResource, warehouse: WarehouseResource
        ) -> dg.SensorResult | dg.SkipReason:
            return ask(
                context.instance,
                self.feed,
                lake,
                warehouse,
                self._arrivals(settings, context.instance, lake, warehouse),
                load_job=self.load_job,
                marts_job=self.marts_job,
            )

        return source_sensor

    def _arrivals(
        self,
        settings: Settings,
        instance: dg.DagsterInstance,
        lake: LakeResource,
        warehouse: WarehouseResource,
    ) -> Arrivals:
        """The source, where its origin is another, and the days that it has otherwise."""
        jobs = (self.source_job, self.days_job, self.load_job, self.marts_job, self.feed.name)
        underway = told_underway(instance, jobs, {self.raw, self.processed, self.landed})
        notes: list[str] = []
        origins: Sequence[Fingerprint] | None = None
        try:
            origins = Source(self.feed, settings).probe()
        except DownloadError as error:
            notes.append(f"the source does not answer: {error}")

        def wanted() -> Iterator[Request]:
            manifest = read_manifest(lake, self.feed.name)
            if origins is not None and (manifest is None or not manifest.is_of(origins)):
                yield source_request(self.source_job, self.raw, origins, manifest)
            if manifest is None:
                return
            try:
                lost = self._lost_days(lake, warehouse)
            except WarehouseBusyError as busy:
                underway.append(str(busy))  # nothing is asked of it now
                return
            chosen = self._valid(settings, days_to_write(self.feed, lake, manifest) | lost)
            of = (self.processed, self.landed)
            yield from day_requests(chosen, manifest.fingerprints, self.days_job, of)

        return Arrivals(wanted=wanted, underway=underway, notes=notes)

    def _lost_days(self, lake: LakeResource, warehouse: WarehouseResource) -> set[str]:
        """Days that the warehouse alone has, of a lake that was lost."""
        there = lake_versions(lake, self.feed.dataset)
        landed = warehouse.loaded_versions(self.feed.dataset, timeout_s=WAREHOUSE_WAIT_S)
        return {day for day, version in landed.items() if version and day not in there}

    def _valid(self, settings: Settings, days: set[str]) -> set[str]:
        return days.intersection(day_partitions(self.feed, settings).get_partition_keys())

    def _source_schedule(self, settings: Settings) -> dg.ScheduleDefinition:
        @dg.schedule(
            name=f"{self.source_job}_daily",
            job_name=self.source_job,
            cron_schedule="0 2 * * *",
            execution_timezone="UTC",
            description="Look at the source; write the days that the last look found changed.",
        )
        def source_schedule(
            context: dg.ScheduleEvaluationContext, lake: LakeResource
        ) -> list[dg.RunRequest]:
            def wanted() -> list[Request]:
                manifest = read_manifest(lake, self.feed.name)
                if manifest is None:
                    return []
                chosen = self._valid(settings, days_to_write(self.feed, lake, manifest))
                of = (self.processed,)
                return day_requests(chosen, manifest.fingerprints, self.source_job, of)

            at = context.scheduled_execution_time
            look = dg.RunRequest(f"source:{at:%Y-%m-%d}", asset_selection=[self.raw])
            return [look, *requests_for(wanted, context.instance)[0]]

        return source_schedule

    def _load_schedule(self) -> dg.ScheduleDefinition:
        @dg.schedule(
            name=f"{self.load_job}_daily",
            job_name=self.load_job,
            cron_schedule="0 4 * * *",
            execution_timezone="UTC",
            description=_LOADING,
        )
        def load_schedule(
            context: dg.ScheduleEvaluationContext, lake: LakeResource, warehouse: WarehouseResource
        ) -> list[dg.RunRequest] | dg.SkipReason:
            def wanted() -> Iterator[Request]:
                return load_requests(self.feed, lake, warehouse, self.load_job)

            try:
                requests, reasons = requests_for(wanted, context.instance)
            except WarehouseBusyError as busy:
                return dg.SkipReason(str(busy))
            return requests or dg.SkipReason("; ".join(reasons) or "the warehouse is up to date")

        return load_schedule

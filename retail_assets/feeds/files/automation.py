"""When a feed of files runs: jobs, the sensor on its raw files, and the nightly catch-up.

Here: what to ask for and when. Not here: what a run does (assets.py), what changed (listing.py),
the load and the marts (feeds/automation.py), whether a request is made again (feeds/requests.py).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import dagster as dg

from retail_assets.domain import RANGE_TAGS, range_tags
from retail_assets.feeds.automation import (
    Arrivals,
    ask,
    landed_keys,
    marts_requests,
    told_underway,
)
from retail_assets.feeds.files import FileFeed
from retail_assets.feeds.files.assets import DELETED_CHECK, drops_of, raw_key
from retail_assets.feeds.files.listing import Changes, Look
from retail_assets.feeds.files.taking import processed_key
from retail_assets.feeds.landing import landed_key, version_of
from retail_assets.feeds.requests import Request, has_failed_for_good, requests_for, runs_underway
from retail_assets.resources.lake import LakeObject, LakeResource
from retail_assets.resources.warehouse import WarehouseBusyError, WarehouseResource
from retail_assets.settings import Settings

_MOST_DROPS_A_RUN = 500
_PARTS_OF_A_FAILED_RANGE = 20
_MOST_EVENTS_A_TICK = 500
_MOST_STRAYS = 3


def drop_ranges(
    dates: Iterable[str], registered: Sequence[str], most: int | None = None
) -> list[list[str]]:
    """Ranges of partitions that hold exactly ``dates``, of ``most`` each, in Dagster's order.

    That is the order in which partitions were registered, not that of their dates. Dates that are
    not yet registered are taken to follow, in order.
    """
    chosen = set(dates)
    ranges: list[list[str]] = []
    is_open = False
    for key in [*registered, *sorted(chosen.difference(registered))]:
        if key in chosen and is_open and len(ranges[-1]) != most:
            ranges[-1].append(key)
        elif key in chosen:
            ranges.append([key])
        is_open = key in chosen
    return ranges


def drop_requests(
    feed: FileFeed,
    dates: Iterable[str],
    files: Mapping[str, Mapping[str, LakeObject]],
    registered: Sequence[str],
    has_failed: Callable[[str], bool] = lambda _: False,
) -> Iterator[Request]:
    """One request a range of drops, identified by their dates and the versions of their ``files``.

    A range of which ``has_failed`` says so is asked for in parts: one bad drop fails its run, and
    must not keep back the others.
    """
    waiting = drop_ranges(dates, registered, _MOST_DROPS_A_RUN)
    while waiting:
        inside = waiting.pop(0)
        versions = {
            f"{table} {key}": of[key].version
            for table, of in files.items()
            for key in inside
            if key in of
        }
        request = Request(
            f"{feed.large_job}:{inside[0]}...{inside[-1]}:{version_of(versions)}",
            feed.large_job,
            (),
            tuple(range_tags(inside[0], inside[-1]).items()),
        )
        if len(inside) > 1 and has_failed(request.identity):
            size = -(-len(inside) // _PARTS_OF_A_FAILED_RANGE)
            waiting[:0] = [inside[i : i + size] for i in range(0, len(inside), size)]
        else:
            yield request


def drops_underway(instance: dg.DagsterInstance, feed: FileFeed) -> set[str]:
    """Drops that a requested run has in hand, whatever was asked for together."""
    ranges = [
        tuple(run.tags.get(tag, "") for tag in RANGE_TAGS)
        for run in runs_underway(instance, feed.large_job)
    ]
    registered = list(instance.get_dynamic_partitions(feed.partitions)) if ranges else []
    place = {key: i for i, key in enumerate(registered)}
    return {
        key
        for first, last in ranges
        if first in place and last in place
        for key in registered[place[first] : place[last] + 1]
    }


def are_marts_behind(feed: FileFeed, warehouse: WarehouseResource) -> bool:
    """Whether the marts can be built, and are not of all that is landed.

    Also where the warehouse is busy: a step of the run will wait, on record.
    """
    try:
        return any(marts_requests(feed, warehouse, feed.marts_job))
    except WarehouseBusyError:
        return True


def small_request(feed: FileFeed, wanted: Iterable[str], look: Look) -> Request:
    """The single files, identified by their versions and by which of them are wanted."""
    versions = {
        f"{x.dataset.name} file": entry.version
        for x in feed.single
        for entry in look.files[x.dataset.name].values()
    }
    version = version_of(versions | dict.fromkeys(wanted, "wanted"))
    return Request(f"{feed.small_job}:{version}", feed.small_job, ())


def drop_events(
    feed: FileFeed, changes: Changes, dates: Iterable[str]
) -> list[dg.AssetMaterialization]:
    """What the graph shows of drops that arrived: their files, sizes and versions."""
    events = []
    for key in sorted(dates)[:_MOST_EVENTS_A_TICK]:
        metadata: dict[str, str | int] = {}
        for table, files in changes.wanted.items():
            if entry := files.get(key):
                metadata |= {
                    f"{table}_file": entry.name,
                    f"{table}_bytes": entry.size,
                    f"{table}_version": entry.version,
                }
        raw = raw_key(feed, feed.dated[0])
        events.append(dg.AssetMaterialization(raw, partition=key, metadata=metadata))
    return events


def find_arrivals(
    feed: FileFeed, instance: dg.DagsterInstance, lake: LakeResource, *, dated_only: bool = False
) -> Arrivals:
    """The files that are new work, without those that a requested run has in hand."""
    # Before the look at the files: of what ends in between, the look shows the outcome.
    in_hand, small_in_hand = drops_underway(instance, feed), runs_underway(instance, feed.small_job)
    jobs = (feed.small_job, feed.large_job, feed.drops_job, feed.nightly_job, feed.load_job)
    keys = [processed_key(feed, table) for table in feed.tables] + landed_keys(feed)
    underway = told_underway(instance, (*jobs, feed.name), keys)
    look = Look(lake, feed.tables)
    changes = look.changes()
    look.remember_touched(changes)
    dates = changes.dates - in_hand
    registered = list(instance.get_dynamic_partitions(feed.partitions)) if dates else []

    def wanted() -> Iterator[Request]:
        if changes.small and not (small_in_hand or dated_only):
            yield small_request(feed, changes.small, look)
        has_failed = partial(has_failed_for_good, instance)
        yield from drop_requests(feed, dates, look.files, registered, has_failed)

    new = sorted(dates.difference(registered))
    return Arrivals(
        wanted=wanted,
        underway=underway,
        notes=[f"no drop by its name: {name}" for name in look.strays[:_MOST_STRAYS]],
        partitions=[drops_of(feed).build_add_request(new)] if new else [],
        events=drop_events(feed, changes, dates),
        versions=partial(feed.versions_of, lake, look.table),
    )


def catch_up(
    feed: FileFeed, instance: dg.DagsterInstance, lake: LakeResource
) -> list[dg.RunRequest] | dg.SkipReason:
    """Requests for the drops that are new work, as the sensor's, whether or not that is on."""
    arrivals = find_arrivals(feed, instance, lake, dated_only=True)
    for asked in arrivals.partitions:
        instance.add_dynamic_partitions(asked.partitions_def_name, asked.partition_keys)
    requests, reasons = requests_for(arrivals.wanted, instance)
    return requests or dg.SkipReason(
        "; ".join([*arrivals.underway, *reasons]) or "no drop has changed"
    )


@dataclass(frozen=True)
class Automation:
    """The jobs, schedules and the sensor of ``feed``."""

    feed: FileFeed

    def build_defs(self, settings: Settings) -> dg.Definitions:
        """Those that the feed's tables need."""
        feed, select = self.feed, dg.AssetSelection
        small, large = (
            select.assets(
                *(key for x in tables for key in (processed_key(feed, x), landed_key(x.dataset)))
            )
            for tables in (feed.single, feed.dated)
        )
        landed = select.assets(*landed_keys(feed))
        raw = select.assets(*(raw_key(feed, table) for table in feed.tables))
        marts = select.groups(feed.name) - small - large - raw
        deleted = select.checks(
            *(dg.AssetCheckKey(raw_key(feed, table), DELETED_CHECK) for table in feed.dated[:1])
        )
        selections: dict[str, tuple[dg.AssetSelection, str]] = {
            feed.small_job: (small, "Single files, from raw to warehouse."),
            feed.large_job: (large | deleted, "Drops, from raw to warehouse."),
            feed.load_job: (landed, "Load what the lake has otherwise than the warehouse."),
            feed.marts_job: (marts, "Build and test the dbt models of the domain."),
            feed.nightly_job: (marts | small | deleted, "Everything but the drops."),
            feed.drops_job: (marts | landed | large | deleted, "Drops, from raw to marts."),
            feed.name: (marts | small | large | deleted, "Everything, for a range of drops."),
        }
        needless = [] if feed.single else [feed.small_job]
        needless += [] if feed.dated else [feed.large_job, feed.drops_job]
        jobs = {
            name: dg.define_asset_job(name, selection=selection, description=description)
            for name, (selection, description) in selections.items()
            if name not in needless
        }
        sensed = (feed.small_job, feed.large_job, feed.load_job, feed.marts_job)

        @dg.sensor(
            name=f"{feed.name}_drops_sensor",
            jobs=[jobs[name] for name in sensed if name in jobs],
            minimum_interval_seconds=30,
            description=(
                "Asks for exactly the raw files that are new or were delivered again, then for the"
                " load and the marts. It has no cursor: what is known of drops are the ledgers of"
                " the lake's tables."
            ),
        )
        def drops_sensor(
            context: dg.SensorEvaluationContext, lake: LakeResource, warehouse: WarehouseResource
        ) -> dg.SensorResult | dg.SkipReason:
            arrivals = find_arrivals(feed, context.instance, lake)
            names = {"load_job": feed.load_job, "marts_job": feed.marts_job}
            return ask(context.instance, feed, lake, warehouse, arrivals, **names)

        def drops_nightly(
            context: dg.ScheduleEvaluationContext, lake: LakeResource
        ) -> list[dg.RunRequest] | dg.SkipReason:
            return catch_up(feed, context.instance, lake)

        schedules = [
            dg.ScheduleDefinition(
                name=feed.nightly_job,
                job=jobs[feed.nightly_job],
                cron_schedule="0 4 * * *",
                execution_timezone="UTC",
                description="Single files, the check on deleted drops, and the marts.",
            )
        ]
        if feed.dated:
            nightly = dg.schedule(
                job=jobs[feed.large_job],
                name=f"{feed.name}_drops_nightly",
                cron_schedule="0 3 * * *",
                execution_timezone="UTC",
                description="Drops that the sensor missed.",
            )
            schedules.append(nightly(drops_nightly))
        return dg.Definitions(jobs=[*jobs.values()], schedules=schedules, sensors=[drops_sensor])

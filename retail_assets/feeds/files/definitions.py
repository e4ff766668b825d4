"""What Dagster sees of a feed of files: its assets and checks, jobs, schedules and sensor.

Here: what is asked for and when. Not here: which files there are and are known (listing.py), what
a run does (taking.py), the load and the marts (feeds/automation.py), dbt's models.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import dagster as dg

from retail_assets.domain import range_of
from retail_assets.feeds import automation as asking
from retail_assets.feeds.files import FileFeed, FileTable, quarantine_of
from retail_assets.feeds.files.listing import Changes, Look, describe_drops
from retail_assets.feeds.files.taking import Room, take_files
from retail_assets.feeds.landing import landed_asset, landed_key, version_of
from retail_assets.feeds.processed import Taken, processed_asset, processed_key
from retail_assets.feeds.requests import Request
from retail_assets.resources.lake import LakeResource
from retail_assets.settings import Settings

DELETED_CHECK = "no_drop_was_deleted"
# By which Dagster says which of them it was.
_AUTOMATIC_TAGS = {"dagster/sensor_name", "dagster/schedule_name"}
_MOST_DROPS_A_RUN = 500
_MOST_EVENTS_A_TICK = 500
_MOST_STRAYS = 3


def raw_key(feed: FileFeed, table: FileTable) -> dg.AssetKey:
    """The asset of a table's raw file; of dated ones there is one for all tables."""
    return dg.AssetKey([feed.name, "raw_drops" if table.is_dated else f"raw_{table.dataset.name}"])


def drops_of(feed: FileFeed) -> dg.DynamicPartitionsDefinition:
    """The partitions of the tables of dated files."""
    return dg.DynamicPartitionsDefinition(name=feed.partitions)


def _raw(feed: FileFeed, table: FileTable) -> dg.AssetSpec:
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


def _processed(settings: Settings, feed: FileFeed, table: FileTable) -> dg.AssetsDefinition:
    def take(context: dg.AssetExecutionContext, keys: Collection[str]) -> Mapping[str, Taken]:
        found: Any = context.resources
        may_empty = context.op_execution_context.op_config["allow_emptying"]
        return take_files(
            feed,
            table,
            keys,
            Room(found.lake, context.run.run_id, found),
            most_lost=1.0 if may_empty else settings.most_rows_lost,
            # A person who asks for what a person restored is to have it.
            leave_restored=not _AUTOMATIC_TAGS.isdisjoint(context.run.tags),
        )

    as_files = "a folder a drop" if table.is_dated else "one partition"
    return processed_asset(
        settings,
        feed,
        table.dataset,
        quarantine_of(table.dataset),
        take,
        source=raw_key(feed, table),
        partitions=drops_of(feed) if table.is_dated else None,
        description=f"Typed, de-duplicated, as Parquet, {as_files}.",
        code_version=table.version,
        kinds=[table.engine],
        resources=table.resources,
        may_empty=True,
    )


def _no_drop_was_deleted(feed: FileFeed) -> dg.AssetChecksDefinition:
    """A check that looks for drops that were taken and are not in the raw zone."""

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


def _drops_in_hand(
    instance: dg.DagsterInstance, feed: FileFeed, runs: Iterable[dg.DagsterRun]
) -> set[str]:
    """Drops that these runs are of, whatever was asked for together, and by whom."""
    ranges = [range_of(run.tags) for run in runs]
    registered = list(instance.get_dynamic_partitions(feed.partitions)) if ranges else []
    place = {key: i for i, key in enumerate(registered)}
    return {
        key
        for first, last in ranges
        if first in place and last in place
        for key in registered[place[first] : place[last] + 1]
    }


def _small_request(feed: FileFeed, wanted: Iterable[str], look: Look) -> Request:
    """The single files, identified by their versions and by which of them are wanted."""
    versions = {
        f"{x.dataset.name} file": entry.version
        for x in feed.single
        for entry in look.files[x.dataset.name].values()
    }
    version = version_of(versions | dict.fromkeys(wanted, "wanted"))
    return Request(f"{feed.small_job}:{version}", feed.small_job, ())


def _drop_events(
    feed: FileFeed, changes: Changes, dates: Iterable[str]
) -> Iterator[dg.AssetMaterialization]:
    """What the graph shows of drops that are asked for: their files, sizes and versions."""
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
        yield dg.AssetMaterialization(raw, partition=key, metadata=metadata)


def find_arrivals(
    feed: FileFeed, instance: dg.DagsterInstance, lake: LakeResource, *, dated_only: bool = False
) -> asking.Arrivals:
    """The files that are new work, without those that a run has in hand."""
    # Before the look at the files: of what ends in between, the look shows the outcome.
    jobs = [feed.small_job, feed.large_job, feed.drops_job, feed.nightly_job]
    jobs += [feed.load_job, feed.marts_job, feed.name]
    keys = [processed_key(feed, dataset) for dataset in feed.datasets] + asking.landed_keys(feed)
    runs = asking.find_underway(instance, jobs, keys)
    in_hand, underway = _drops_in_hand(instance, feed, runs), asking.tell_underway(runs)
    takers = (feed.small_job, feed.nightly_job, feed.name)
    small_in_hand = any(run.job_name in takers for run in runs)
    look = Look(lake, feed.tables)
    changes = look.changes()
    look.remember_touched(changes)
    dates = changes.dates - in_hand
    registered = list(instance.get_dynamic_partitions(feed.partitions)) if dates else []
    ranges = asking.partition_ranges(dates, registered, _MOST_DROPS_A_RUN)
    versions = {
        table: {key: files[key].version for key in dates.intersection(files)}
        for table, files in look.files.items()
    }
    # Of what is all that lacks, one run goes on to the marts; else these wait for the others.
    is_all = len(ranges) == 1 and not (changes.small or underway or dated_only)
    has_lists = all(look.table(table.dataset).ledgers for table in feed.single)
    job = feed.drops_job if is_all and has_lists else feed.large_job
    wanted = list(asking.range_requests(feed.large_job, job, ranges, versions))
    drops = {request.identity: keys for request, keys in zip(wanted, ranges, strict=True)}
    if changes.small and not (small_in_hand or dated_only):
        wanted.insert(0, _small_request(feed, changes.small, look))

    def events(asked: Collection[str]) -> Iterator[dg.AssetMaterialization]:
        return _drop_events(feed, changes, [key for x in asked for key in drops.get(x, ())])

    new = sorted(dates.difference(registered))
    return asking.Arrivals(
        wanted=lambda: wanted,
        underway=underway,
        notes=[f"no drop by its name: {name}" for name in look.strays[:_MOST_STRAYS]],
        partitions=[drops_of(feed).build_add_request(new)] if new else [],
        events=events,
        versions=partial(feed.lake_versions, lake, known=look.table),
    )


def catch_up(
    feed: FileFeed, context: dg.ScheduleEvaluationContext
) -> list[dg.RunRequest] | dg.SkipReason:
    """Requests for the drops that are new work, as the sensor's, whether or not that is on."""
    found: Any = context.resources
    arrivals = find_arrivals(feed, context.instance, found.lake, dated_only=True)
    for asked in arrivals.partitions:
        context.instance.add_dynamic_partitions(asked.partitions_def_name, asked.partition_keys)
    otherwise = "; ".join(arrivals.underway) or "no drop has changed"
    return asking.asked_or_why(arrivals.wanted, context.instance, otherwise)


def build_defs(feed: FileFeed, settings: Settings) -> dg.Definitions:
    """Raw files, what is processed of them, what is landed; and the jobs that the tables need."""
    select = dg.AssetSelection
    small, large = (
        select.assets(
            *(key(x) for x in tables for key in (partial(processed_key, feed), landed_key))
        )
        for tables in ([x.dataset for x in feed.single], [x.dataset for x in feed.dated])
    )
    landed = select.assets(*asking.landed_keys(feed))
    raw = {raw_key(feed, table): _raw(feed, table) for table in feed.tables}
    marts = select.groups(feed.name) - small - large - select.assets(*raw)
    deleted = select.checks(
        *(dg.AssetCheckKey(raw_key(feed, table), DELETED_CHECK) for table in feed.dated[:1])
    )
    of = {
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
    jobs = asking.define_jobs({name: told for name, told in of.items() if name not in needless})
    nightly = "Single files, the check on deleted drops, and the marts."
    schedules = [asking.schedule(feed.nightly_job, feed.nightly_job, "0 4 * * *", nightly)]
    if feed.dated:
        schedules.append(
            asking.schedule(
                f"{feed.name}_drops_nightly",
                feed.large_job,
                "0 3 * * *",
                "Drops that the sensor missed.",
                partial(catch_up, feed),
                ["lake"],
            )
        )
    sensed = {feed.small_job, feed.large_job, feed.drops_job, feed.load_job, feed.marts_job}
    return dg.Definitions(
        assets=[
            *raw.values(),
            *(_processed(settings, feed, table) for table in feed.tables),
            *(landed_asset(settings, feed, x, dep=processed_key(feed, x)) for x in feed.datasets),
        ],
        asset_checks=[_no_drop_was_deleted(feed)] if feed.dated else [],
        jobs=jobs,
        schedules=schedules,
        sensors=[
            asking.arrivals_sensor(
                feed,
                f"{feed.name}_drops_sensor",
                lambda instance, found: find_arrivals(feed, instance, found.lake),
                [job for job in jobs if job.name in sensed],
                every_s=30,
                description="Asks for exactly the raw files that are new or were delivered again,"
                " then for the load and the marts. It has no cursor: what is known of drops are the"
                " ledgers of the lake's tables.",
            )
        ],
    )

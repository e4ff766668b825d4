"""When the coffee chain runs: jobs, the sensor on its raw files, and the nightly catch-up.

Here: what to ask for and when. Not here: what a run does (assets.py), what changed (drops.py).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import dagster as dg

from retail_assets.defs.coffee_chain.assets import (
    DELETED_CHECK,
    DROPS,
    DROPS_NAME,
    RAW_DROPS,
    landed_key,
    raw_key,
)
from retail_assets.defs.coffee_chain.contract import ABSENT, DOMAIN, LANDED
from retail_assets.defs.coffee_chain.drops import (
    DROPPED_FILES,
    SMALL_FILES,
    WHOLE_TABLE,
    Changes,
    Known,
    Listing,
    compare,
    describe_drops,
    list_raw,
    remember_touched,
)
from retail_assets.defs.coffee_chain.taking import processed_key
from retail_assets.domain import MARTS_STAGE, RANGE_TAGS, range_tags
from retail_assets.requests import (
    Versions,
    Wish,
    has_failed_for_good,
    marts_wish,
    requests_for,
    runs_underway,
)
from retail_assets.resources.lake import LakeObject, LakeResource
from retail_assets.resources.warehouse import WarehouseBusyError, WarehouseResource
from retail_assets.settings import Settings

SMALL_JOB = f"{DOMAIN}_small_files"
LARGE_JOB = f"{DOMAIN}_large_files"
MARTS_JOB = f"{DOMAIN}_marts"
NIGHTLY_JOB = f"{DOMAIN}_nightly"
DROPS_JOB = f"{DOMAIN}_drops_to_marts"
SMALL_KEYS = [key(x.dataset) for x in SMALL_FILES for key in (processed_key, landed_key)]
LARGE_KEYS = [key(x.dataset) for x in DROPPED_FILES for key in (processed_key, landed_key)]
_MOST_DROPS_A_RUN = 500
_PARTS_OF_A_FAILED_RANGE = 20
_MOST_EVENTS_A_TICK = 500
_WAREHOUSE_WAIT_S = 1.0


def drop_ranges(
    dates: Iterable[str], registered: Sequence[str], most: int
) -> list[tuple[str, str, int]]:
    """Ranges of partitions that hold exactly ``dates``: (first, last, how many), at most ``most``.

    Dagster's ranges go by the order in which partitions were registered, not by date. Dates that
    are not yet registered are taken to follow, in order.
    """
    chosen = set(dates)
    order = [*registered, *sorted(chosen.difference(registered))]
    ranges: list[tuple[str, str, int]] = []
    run: list[str] = []
    for key in [*order, None]:
        if key in chosen and len(run) < most:
            run.append(str(key))
            continue
        if run:
            ranges.append((run[0], run[-1], len(run)))
        run = [str(key)] if key in chosen else []
    return ranges


def version_of(entries: Mapping[str, str]) -> str:
    """Short text that differs where one of the entries does."""
    text = "\n".join(f"{key} {value}" for key, value in sorted(entries.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def drop_wishes(
    dates: Iterable[str],
    listing: Listing,
    registered: Sequence[str],
    state: Mapping[str, str],
    has_failed: Callable[[str], bool] = lambda _: False,
) -> Iterator[Wish]:
    """One wish a range of drops, identified by their dates and the versions of their files.

    ``state`` holds what else is part of a version, by date. A range of which ``has_failed`` says
    so is asked for in parts: one bad drop fails its run, and must not keep back the others.
    """
    chosen = set(dates)
    order = {key: i for i, key in enumerate([*registered, *sorted(chosen - set(registered))])}
    ranked = sorted(chosen, key=order.__getitem__)
    waiting: list[list[str]] = []
    for *_, count in drop_ranges(chosen, registered, _MOST_DROPS_A_RUN):
        waiting.append(ranked[:count])
        ranked = ranked[count:]
    waiting.reverse()
    while waiting:
        inside = waiting.pop()
        versions = {
            f"{large.dataset.name} {key}": entry.version
            for large in DROPPED_FILES
            for key in inside
            if (entry := listing.of(large.dataset).get(key))
        } | {key: state.get(key, "") for key in inside}
        wish = Wish(
            f"{LARGE_JOB}:{inside[0]}...{inside[-1]}:{version_of(versions)}",
            LARGE_JOB,
            (),
            tuple(range_tags(inside[0], inside[-1]).items()),
        )
        if len(inside) > 1 and has_failed(wish.identity):
            size = -(-len(inside) // _PARTS_OF_A_FAILED_RANGE)
            parts = [inside[i : i + size] for i in range(0, len(inside), size)]
            waiting += reversed(parts)
        else:
            yield wish


def drops_underway(instance: dg.DagsterInstance) -> dict[str, str]:
    """Drops that a requested run has in hand, whatever was asked for together: to the run's id."""
    ranges = [
        (run.run_id, *(run.tags.get(tag, "") for tag in RANGE_TAGS))
        for run in runs_underway(instance, LARGE_JOB)
    ]
    registered = list(instance.get_dynamic_partitions(DROPS_NAME)) if ranges else []
    place = {key: i for i, key in enumerate(registered)}
    return {
        key: run_id
        for run_id, first, last in ranges
        if first in place and last in place
        for key in registered[place[first] : place[last] + 1]
    }


def pending_landed(known: Known, landed: Versions, changes: Changes) -> tuple[set[str], set[str]]:
    """Dates, and small tables, whose processed partition is not the one in the warehouse.

    Also those that the warehouse still has, and the table as a person restored it has not.
    """
    dates: set[str] = set()
    small: set[str] = set()
    for dataset in LANDED:
        found = landed[dataset]
        fingerprints = known.of(dataset).fingerprints
        lacking = {k for k, v in fingerprints.items() if found.get(k) != v}
        gone = changes.restored[dataset.name].difference(fingerprints)
        lacking |= {k for k in gone if found.get(k, ABSENT) != ABSENT}
        if WHOLE_TABLE in lacking:
            small.add(dataset.name)
        else:
            dates |= lacking
    return dates, small


def is_small_landed(known: Known, warehouse: WarehouseResource) -> bool:
    """Whether the warehouse has every small table, and each is the lake's.

    One that is busy is not waited for: a step of the run will, on record.
    """
    processed = {item.dataset: known.of(item.dataset).fingerprints for item in SMALL_FILES}
    if not all(processed.values()):
        return False
    try:
        with warehouse.kept_open(_WAREHOUSE_WAIT_S):
            return all(warehouse.loaded_versions(x) == found for x, found in processed.items())
    except WarehouseBusyError:
        return False


def are_marts_behind(warehouse: WarehouseResource) -> bool:
    """Whether the marts can be built, and are not of all that is landed.

    Also where the warehouse is busy: a step of the run will wait, on record.
    """
    try:
        with warehouse.kept_open(_WAREHOUSE_WAIT_S):
            landed, built = versions_of(warehouse)
    except WarehouseBusyError:
        return True
    return marts_wish(MARTS_JOB, landed, built) is not None


def versions_of(warehouse: WarehouseResource) -> tuple[Versions, Versions]:
    """What is landed, and what the marts are built of."""
    landed, built = (
        {dataset: warehouse.loaded_versions(dataset, stage) for dataset in LANDED}
        for stage in ("landed", MARTS_STAGE)
    )
    return landed, built


def small_wish(tables: Iterable[str], listing: Listing) -> Wish:
    """The small files, identified by their versions and by which of them are wanted."""
    versions = {
        f"{item.dataset.name} file": entry.version
        for item in SMALL_FILES
        if (entry := listing.of(item.dataset).get(WHOLE_TABLE))
    }
    return Wish(
        f"{SMALL_JOB}:{version_of(versions | dict.fromkeys(tables, 'wanted'))}", SMALL_JOB, ()
    )


def drop_events(
    changes: Changes, dates: Iterable[str], most: int = _MOST_EVENTS_A_TICK
) -> list[dg.AssetMaterialization]:
    """What the graph shows of drops that arrived: their files, sizes and versions."""
    events = []
    for key in sorted(dates)[:most]:
        found: dict[str, LakeObject] = {
            large.dataset.name: entry
            for large in DROPPED_FILES
            if (entry := changes.wanted[large.dataset.name].get(key))
        }
        metadata: dict[str, str | int] = {}
        for table, entry in found.items():
            metadata |= {
                f"{table}_file": entry.name,
                f"{table}_bytes": entry.size,
                f"{table}_version": entry.version,
            }
        if metadata:
            events.append(dg.AssetMaterialization(RAW_DROPS, partition=key, metadata=metadata))
    return events


def ask(
    instance: dg.DagsterInstance, lake: LakeResource, warehouse: WarehouseResource
) -> dg.SensorResult | dg.SkipReason:
    """One look at raw files, state and warehouse, and requests for all that is new work.

    What a run has in hand is left to it. The marts are asked for when no file is asked for or
    underway: they then are of all that is landed. A drop that failed for good does not keep them
    back.
    """
    # Before the look at the files: of what ends in between, the look shows the outcome.
    in_hand = drops_underway(instance)
    small_in_hand = runs_underway(instance, SMALL_JOB)
    listing, known = list_raw(lake), Known(lake)
    changes = compare(lake, listing, known)
    remember_touched(lake, known, changes)
    notes = [f"no drop by its name: {name}" for name in listing.strays[:3]]
    dates, small = changes.dates, changes.small
    state: dict[str, str] = {}
    marts = None
    try:
        with warehouse.kept_open(_WAREHOUSE_WAIT_S):
            landed, built = versions_of(warehouse)
        unloaded, unloaded_small = pending_landed(known, landed, changes)
        state = dict.fromkeys(unloaded - dates, "not landed")
        dates |= unloaded  # of a deleted file too: its rows stay
        small |= unloaded_small
        marts = marts_wish(MARTS_JOB, landed, built)
    except WarehouseBusyError as busy:
        notes.append(str(busy))
    if waiting := dates & in_hand.keys():
        runs = sorted({in_hand[key] for key in waiting})[:3]
        notes.append(f"{describe_drops(waiting)} underway (run {', '.join(runs)})")
        dates -= waiting
    if small and small_in_hand:
        notes.append(f"{SMALL_JOB} is underway (run {small_in_hand[0].run_id})")
        small = set()
    if in_hand or small_in_hand:
        marts = None
    if not (dates or small or marts):
        return dg.SkipReason("; ".join(notes) or "no raw file has changed")
    registered = list(instance.get_dynamic_partitions(DROPS_NAME)) if dates else []

    def wishes() -> Iterator[Wish]:
        if small:
            yield small_wish(small, listing)
        has_failed = partial(has_failed_for_good, instance)
        yield from drop_wishes(dates, listing, registered, state, has_failed)

    requests, reasons = requests_for(wishes, instance)
    if marts is not None and not requests:
        requests, more = requests_for(lambda: [marts], instance)
        reasons += more
    if not requests:
        return dg.SkipReason("; ".join(notes + reasons))
    new = sorted(dates.difference(registered))
    return dg.SensorResult(
        run_requests=requests,
        dynamic_partitions_requests=[DROPS.build_add_request(new)] if new else [],
        asset_events=drop_events(changes, dates),
    )


def catch_up(
    instance: dg.DagsterInstance, lake: LakeResource, run_key: str
) -> list[dg.RunRequest] | dg.SkipReason:
    """Requests for the drops that are new work, whether or not the sensor is on."""
    in_hand = drops_underway(instance)
    listing, known = list_raw(lake), Known(lake)
    changes = compare(lake, listing, known)
    remember_touched(lake, known, changes)
    dates = changes.dates - in_hand.keys()
    registered = list(instance.get_dynamic_partitions(DROPS_NAME))
    if new := sorted(dates.difference(registered)):
        instance.add_dynamic_partitions(DROPS_NAME, new)
    ranges = drop_ranges(dates, [*registered, *new], _MOST_DROPS_A_RUN)
    return [
        dg.RunRequest(run_key=f"{run_key}:{first}", tags=range_tags(first, last))
        for first, last, _ in ranges
    ] or dg.SkipReason(
        f"the drops are underway (run {', '.join(sorted(set(in_hand.values()))[:3])})"
        if changes.dates
        else "no drop has changed"
    )


def build_defs(settings: Settings) -> dg.Definitions:
    """Jobs, the schedule and the sensor of the domain."""
    select = dg.AssetSelection
    raw = select.assets(RAW_DROPS, *(raw_key(small.dataset) for small in SMALL_FILES))
    deleted = select.checks(dg.AssetCheckKey(RAW_DROPS, DELETED_CHECK))
    group = select.groups(DOMAIN)
    small_files = dg.define_asset_job(
        SMALL_JOB,
        selection=select.assets(*SMALL_KEYS),
        description="Outlets and products, from raw file to warehouse table.",
    )
    large_files = dg.define_asset_job(
        LARGE_JOB,
        selection=select.assets(*LARGE_KEYS) | deleted,
        description="Drops of customers and sales, from raw files to warehouse tables.",
    )
    marts = dg.define_asset_job(
        MARTS_JOB,
        selection=group - select.assets(*SMALL_KEYS, *LARGE_KEYS) - raw,
        description="Build and test the dbt models of the domain.",
    )
    whole = dg.define_asset_job(
        DOMAIN,
        selection=(group - raw) | deleted,
        description="Everything of the domain, for a range of drops.",
    )
    drops_to_marts = dg.define_asset_job(
        DROPS_JOB,
        selection=(group - select.assets(*SMALL_KEYS) - raw) | deleted,
        description="A range of drops, from raw files to marts, without outlets and products.",
    )
    nightly = dg.define_asset_job(
        NIGHTLY_JOB,
        selection=(group - select.assets(*LARGE_KEYS) - raw) | deleted,
        description="Everything of the domain but the drops.",
    )

    @dg.sensor(
        name=f"{DOMAIN}_drops_sensor",
        jobs=[small_files, large_files, marts],
        minimum_interval_seconds=30,
        description=(
            "Asks for exactly the raw files that are new or were delivered again, then for the"
            " marts. It has no cursor: what is known of drops are the ledgers of the lake's tables."
        ),
    )
    def drops_sensor(
        context: dg.SensorEvaluationContext, lake: LakeResource, warehouse: WarehouseResource
    ) -> dg.SensorResult | dg.SkipReason:
        return ask(context.instance, lake, warehouse)

    @dg.schedule(
        job=large_files,
        name=f"{DOMAIN}_drops_nightly",
        cron_schedule="0 3 * * *",
        execution_timezone="UTC",
        description="Drops that the sensor missed.",
    )
    def drops_nightly(
        context: dg.ScheduleEvaluationContext, lake: LakeResource
    ) -> list[dg.RunRequest] | dg.SkipReason:
        at = context.scheduled_execution_time
        return catch_up(context.instance, lake, f"catch-up:{at:%Y-%m-%d}")

    rest_nightly = dg.ScheduleDefinition(
        name=NIGHTLY_JOB,
        job=nightly,
        cron_schedule="0 4 * * *",
        execution_timezone="UTC",
        description="Small files, the check on deleted drops, and the marts.",
    )

    return dg.Definitions(
        jobs=[small_files, large_files, marts, nightly, whole, drops_to_marts],
        schedules=[drops_nightly, rest_nightly],
        sensors=[drops_sensor],
    )

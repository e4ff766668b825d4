"""What a sensor asks for, alike for every feed: what arrived, then the load, then the marts.

Here: one look at the warehouse, and the requests that follow from it. Not here: what arrived (each
feed's), whether a request is made again (requests.py).

Each stage is asked for when the one before has nothing to ask for and nothing underway: the load is
then of all that arrived, the marts of all that is landed. What failed for good keeps nothing back.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import dagster as dg

from retail_assets.dataset import Dataset
from retail_assets.domain import Domain, range_tags
from retail_assets.feeds.landing import landed_and_built, landed_key, version_of
from retail_assets.feeds.requests import (
    REQUEST_TAG,
    Request,
    note_given_up,
    requests_for,
    runs_underway,
)
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.warehouse import WarehouseBusyError, WarehouseResource

WAREHOUSE_WAIT_S = 1.0
# Dagster's job of the assets that a person or a backfill materializes without naming a job.
_UNNAMED_JOB = "__ASSET_JOB"


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """What is not in the lake yet, as one look at its source found it.

    ``wanted`` looks again each time; it goes ``beside`` all else, or keeps it waiting. ``last`` is
    what is made of it when the marts are of all that is landed. ``underway`` are runs, as told, for
    which the load and the marts wait; ``notes`` are told where nothing is asked for. ``partitions``
    are to be registered with a request; ``events`` are to be recorded of requests, by identity.
    ``versions`` are the lake's of a table as of that look, where it has them: a table of 100,000
    partitions is not opened twice a tick.
    """

    wanted: Callable[[], Iterable[Request]] = tuple
    beside: bool = False
    last: Callable[[], Iterable[Request]] = tuple
    underway: Sequence[str] = ()
    notes: Sequence[str] = ()
    partitions: "Sequence[dg.AddDynamicPartitionsRequest]" = ()
    events: Callable[[Collection[str]], Iterable[dg.AssetMaterialization]] = lambda _: ()
    versions: Callable[[Dataset], Mapping[str, str]] | None = None


def ask(
    instance: dg.DagsterInstance,
    domain: Domain,
    lake: LakeResource,
    warehouse: WarehouseResource,
    arrivals: Arrivals,
) -> dg.SensorResult | dg.SkipReason:
    """Requests for what arrived; else for the load, where that is behind; else for the marts."""
    requests, reasons = requests_for(arrivals.wanted, instance, by_sensor=True)
    notes = [*arrivals.notes, *arrivals.underway]
    stages: dict[str, Callable[[], Iterable[Request]]] = {
        "load": lambda: load_requests(domain, lake, warehouse, arrivals.versions),
        "marts": lambda: marts_requests(domain, warehouse),
        "last": arrivals.last,
    }
    arrived = [request.tags[REQUEST_TAG] for request in requests]
    looks = {"arrivals": reasons}
    if arrivals.underway or (arrived and not arrivals.beside):
        stages = {}
    for name, stage in stages.items():
        try:
            more, looks[name] = requests_for(stage, instance, by_sensor=True)
        except WarehouseBusyError as busy:
            notes.append(str(busy))
            break
        requests += more
        if more:
            break
    note_given_up(instance, domain.name, looks)
    reasons = [told for look in looks.values() for told in look]
    if not requests:
        return dg.SkipReason("; ".join([*notes, *reasons]) or "nothing has changed")
    return dg.SensorResult(
        run_requests=requests,
        dynamic_partitions_requests=list(arrivals.partitions) if arrived else None,
        asset_events=list(arrivals.events(arrived)),
    )


def load_requests(
    domain: Domain,
    lake: LakeResource,
    warehouse: WarehouseResource,
    versions: Callable[[Dataset], Mapping[str, str]] | None = None,
) -> Iterator[Request]:
    """A load of what the lake has otherwise than the warehouse, known by these versions.

    Raises:
        WarehouseBusyError: another process has it open. It is not waited for, neither here nor
            below: a step of a run will, on record.
    """
    found = {x: (versions or partial(domain.lake_versions, lake))(x) for x in domain.datasets}
    with warehouse.kept_open(WAREHOUSE_WAIT_S):
        landed = {x: warehouse.loaded_versions(x) for x in domain.datasets}
    behind = {
        f"{x.name} {key}": version
        for x, versions in found.items()
        for key, version in versions.items()
        if landed[x].get(key) != version
    }
    if behind:
        yield Request(f"{domain.load_job}:{version_of(behind)}", domain.load_job, ())


def marts_requests(domain: Domain, warehouse: WarehouseResource) -> Iterator[Request]:
    """A build of the marts, where they are not of what is landed; once a state of that."""
    with warehouse.kept_open(WAREHOUSE_WAIT_S):
        landed, built = landed_and_built(domain, warehouse)
    # Without a landed table dbt could not build.
    if all(landed.values()) and landed != built:
        state = {f"{x.name} {key}": v for x, of in landed.items() for key, v in of.items()}
        yield Request(f"{domain.marts_job}:{version_of(state)}", domain.marts_job, ())


def partition_ranges(
    keys: Iterable[str], ordered: Sequence[str], most: int | None = None
) -> list[list[str]]:
    """Ranges of partitions that hold exactly ``keys``, of ``most`` each, in Dagster's order.

    That is ``ordered``, of dynamic ones the order in which they were registered. Keys that are not
    yet registered are taken to follow, in order.
    """
    chosen = set(keys)
    ranges: list[list[str]] = []
    is_open = False
    for key in [*ordered, *sorted(chosen.difference(ordered))]:
        if key in chosen and is_open and len(ranges[-1]) != most:
            ranges[-1].append(key)
        elif key in chosen:
            ranges.append([key])
        is_open = key in chosen
    return ranges


def range_requests(
    work: str,
    job: str,
    ranges: Iterable[Sequence[str]],
    versions: Mapping[str, Mapping[str, str]],
    selection: tuple[dg.AssetKey, ...] = (),
) -> Iterator[Request]:
    """One request of ``job`` a range, identified by ``work``, its keys and their ``versions``.

    The same work is the same request, whichever job does it. Each version is known by what it is
    of.
    """
    for keys in ranges:
        told = {f"{of} {k}": found[k] for of, found in versions.items() for k in keys if k in found}
        identity = f"{work}:{keys[0]}...{keys[-1]}:{version_of(told)}"
        yield Request(identity, job, selection, tuple(range_tags(keys[0], keys[-1]).items()))


def find_underway(
    instance: dg.DagsterInstance, jobs: Iterable[str], keys: Iterable[dg.AssetKey]
) -> list[dg.DagsterRun]:
    """Runs of ``jobs`` that have not ended, or of assets among ``keys``, whoever asked for them."""
    assets = set(keys)
    return [
        run
        for job in (*jobs, _UNNAMED_JOB)
        for run in runs_underway(instance, job)
        if job != _UNNAMED_JOB or not assets.isdisjoint(run.asset_selection or ())
    ]


def tell_underway(runs: Iterable[dg.DagsterRun]) -> list[str]:
    """That runs are underway, each in words."""
    names = {_UNNAMED_JOB: "a run of assets"}
    return [f"{names.get(x.job_name, x.job_name)} is underway (run {x.run_id})" for x in runs]


def landed_keys(domain: Domain) -> list[dg.AssetKey]:
    """The assets of the domain's tables in the warehouse."""
    return [landed_key(dataset) for dataset in domain.datasets]


def define_jobs(of: Mapping[str, tuple[dg.AssetSelection, str]]) -> list[Any]:
    """Jobs by name: of which assets, and what each does."""
    return [dg.define_asset_job(name, what, description=told) for name, (what, told) in of.items()]


def arrivals_sensor(
    domain: Domain,
    name: str,
    find: Callable[[dg.DagsterInstance, Any], Arrivals],
    jobs: Sequence[Any],
    *,
    every_s: int,
    description: str,
    resources: Iterable[str] = (),
) -> dg.SensorDefinition:
    """The sensor that asks for what ``find`` finds, by instance and resources, to have arrived.

    Called in a test, it and a schedule are given the resources by name too.
    """

    @dg.sensor(
        name=name,
        jobs=jobs,
        minimum_interval_seconds=every_s,
        description=description,
        required_resource_keys={"lake", "warehouse", *resources},
    )
    def sensor(context: dg.SensorEvaluationContext, **_: object) -> dg.SensorResult | dg.SkipReason:
        found: Any = context.resources
        arrivals = find(context.instance, found)
        return ask(context.instance, domain, found.lake, found.warehouse, arrivals)

    return sensor


def schedule(
    name: str,
    job: str,
    cron: str,
    description: str,
    asked: Callable[[dg.ScheduleEvaluationContext], Any] = lambda _: dg.RunRequest(),
    resources: Iterable[str] = (),
) -> dg.ScheduleDefinition:
    """A schedule in UTC, of what is ``asked`` for at its time, or of all of the job."""

    @dg.schedule(
        cron,
        name=name,
        job_name=job,
        execution_timezone="UTC",
        description=description,
        required_resource_keys=set(resources),
    )
    def tick(context: dg.ScheduleEvaluationContext, **_: object) -> Any:
        return asked(context)

    return tick


def asked_or_why(
    wanted: Callable[[], Iterable[Request]], instance: dg.DagsterInstance, otherwise: str
) -> list[dg.RunRequest] | dg.SkipReason:
    """Requests for what is ``wanted``; or why there are none, where nothing is, ``otherwise``."""
    try:
        requests, reasons = requests_for(wanted, instance)
    except WarehouseBusyError as busy:
        return dg.SkipReason(str(busy))
    return requests or dg.SkipReason("; ".join(reasons) or otherwise)

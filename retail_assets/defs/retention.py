"""What is kept, and for how long: Dagster's runs with their events and logs, and what domains keep.

Here: which runs are of no more use, and the schedule that removes them. Not here: what a domain
keeps (Domain.prune), ticks, which Dagster removes itself (instance_config.py).
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from retail_assets.domain import Domain, Pruned
from retail_assets.feeds.requests import REQUEST_TAG, run_history
from retail_assets.settings import Settings

_PAGE = 1000
_OVER = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def build_defs(settings: Settings, domains: Iterable[Domain]) -> dg.Definitions:
    """The job that prunes, and its schedule."""

    @dg.op(name="remove_old", description="Removes what is older than the settings keep.")
    def remove_old(context: dg.OpExecutionContext) -> None:
        for pruned in prune(settings, context.instance, domains, dry_run=False):
            context.log.info(f"{pruned.what}: {pruned.count:,}, {pruned.size:,} bytes")

    @dg.job(
        name="prune",
        description="Remove old runs with their events and logs, and what domains keep no longer;"
        " what assets, partitions and checks show stays.",
    )
    def prune_job() -> None:
        remove_old()

    schedule = dg.ScheduleDefinition(
        name="prune_nightly",
        job=prune_job,
        cron_schedule="0 1 * * *",
        description="Remove what is older than the settings keep (retail-assets prune).",
    )
    return dg.Definitions(jobs=[prune_job], schedules=[schedule])


def prune(
    settings: Settings, instance: dg.DagsterInstance, domains: Iterable[Domain], *, dry_run: bool
) -> Iterator[Pruned]:
    """Remove what is older than the settings keep, and tell of each kind."""
    if settings.keep_runs_days:
        yield _prune_runs(settings, instance, dry_run)
    for domain in domains:
        yield from domain.prune(settings, dry_run=dry_run)


def _prune_runs(settings: Settings, instance: dg.DagsterInstance, dry_run: bool) -> Pruned:
    size = 0
    old = _of_no_use(instance, datetime.now(UTC) - timedelta(days=settings.keep_runs_days))
    for run_id in old:
        files = _files(settings, run_id)
        size += sum(file.stat().st_size for file in files)
        if not dry_run:
            _delete(instance, run_id, files)
    return Pruned("runs, with their events and logs", len(old), size)


def _of_no_use(instance: dg.DagsterInstance, before: datetime) -> list[str]:
    """Runs that ended before then, and that nothing shown or asked for goes by."""
    filters = dg.RunsFilter(statuses=_OVER, updated_before=before)
    found: list[str] = []
    needed: set[str] = set()
    cursor = None
    while runs := instance.get_runs(filters, cursor=cursor, limit=_PAGE):  # the latest first
        needed = needed or _needed(instance)
        for run in runs:
            if run.run_id in needed or _is_given_up(instance, run):
                needed |= {run.root_run_id} if run.root_run_id else set()
            else:
                found.append(run.run_id)
        cursor = runs[-1].run_id
    return found


def _delete(instance: dg.DagsterInstance, run_id: str, files: Iterable[Path]) -> None:
    instance.delete_run(run_id)
    # Dagster empties them, and leaves them there.
    for file in files:
        file.unlink(missing_ok=True)


def _files(settings: Settings, run_id: str) -> list[Path]:
    """A run's own files: its events, where SQLite has them, and what its process printed."""
    folder = settings.instance_dir
    logs = (folder / "storage" / run_id).rglob("*")
    events = (folder / "history/runs").glob(f"{run_id}.db*")
    return [file for file in (*events, *logs) if file.is_file()]


def _needed(instance: dg.DagsterInstance) -> set[str]:
    """The runs by which the UI shows the state of assets, of their partitions and their checks."""
    needed = set()
    for record in instance.get_asset_records():
        entry = record.asset_entry
        needed.add(entry.last_run_id)
        needed.add(entry.last_planned_materialization_run_id)
        needed |= _latest_by_partition(instance, entry.asset_key)
        observed = instance.fetch_observations(entry.asset_key, limit=1).records
        needed |= {event.run_id for event in observed}
    return {run_id for run_id in needed if run_id}


def _latest_by_partition(instance: dg.DagsterInstance, key: dg.AssetKey) -> set[str]:
    latest: dict[str | None, str] = {}
    cursor = None
    while True:
        found = instance.fetch_materializations(key, limit=_PAGE, cursor=cursor)
        for event in found.records:
            latest.setdefault(event.partition_key, event.run_id)
        cursor = found.cursor
        if not found.has_more or list(latest) == [None]:  # of an asset without partitions
            return set(latest.values())


def _is_given_up(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a sensor would ask again for what it has given up, if the run were not known."""
    request = run.tags.get(REQUEST_TAG)
    is_failed = run.status is dg.DagsterRunStatus.FAILURE
    return is_failed and request is not None and run_history(instance, request).failed_for_good

"""When online retail runs: jobs, schedules and the sensor on its source.

Here: what to ask for and when. Not here: what a run does (assets.py), what changed (source.py).
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

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
from retail_assets.resources.download import DownloadError, Fingerprint
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.warehouse import WarehouseBusyError, WarehouseResource
from retail_assets.settings import Settings

REQUEST_TAG = "retail_assets/request"
_RANGE_START = "dagster/asset_partition_range_start"
_RANGE_END = "dagster/asset_partition_range_end"
_MOST_ATTEMPTS = 3
_MOST_RANGES_A_TICK = 20
_WAREHOUSE_WAIT_S = 5.0
_TICK_BUDGET_S = 20.0


class RunState(Enum):
    """What became of a run."""

    UNDERWAY = "underway"
    FAILED = "failed"
    DONE = "done"


_UNDERWAY = {
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
    dg.DagsterRunStatus.MANAGED,
}


@dataclass(frozen=True)
class Wish:
    """Work that is wanted: its identity (object + version), and the run that would do it.

    ``once`` says that a run that succeeded settles it for good, whatever the state looks like.
    """

    identity: str
    job_name: str
    asset_selection: tuple[dg.AssetKey, ...]
    tags: tuple[tuple[str, str], ...] = ()
    once: bool = False


@dataclass(frozen=True)
class History:
    """The runs that a wish has had: how many, and what became of the latest, latest first."""

    count: int = 0
    latest: tuple[RunState, ...] = ()


def next_request(wish: Wish, history: History) -> dg.RunRequest | str:
    """A request for ``wish``, or why there is none now.

    What is underway is not asked for again. What failed is, up to three times in a row; then a
    new version or a run by hand is needed. What is done and wanted again (its tables were
    deleted, the source went back to older content) is, but not a fourth time in a row.
    """
    state = history.latest[0] if history.latest else None
    if state is RunState.UNDERWAY:
        return f"{wish.identity} is underway"
    if state is RunState.DONE and wish.once:
        return f"{wish.identity} is done"
    in_a_row = history.latest[:_MOST_ATTEMPTS]
    if len(in_a_row) == _MOST_ATTEMPTS and len(set(in_a_row)) == 1:
        if state is RunState.FAILED:
            return (
                f"{wish.identity} failed {_MOST_ATTEMPTS} times: mend its cause and run it by hand"
            )
        return f"{wish.identity} was done {_MOST_ATTEMPTS} times and is still wanted: look into it"
    return dg.RunRequest(
        run_key=f"{wish.identity}:{history.count + 1}",
        job_name=wish.job_name,
        asset_selection=list(wish.asset_selection),
        tags=dict(wish.tags) | {REQUEST_TAG: wish.identity},
    )


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
                ((_RANGE_START, first), (_RANGE_END, last)),
            )
        )
    return wishes


def run_history(instance: dg.DagsterInstance, identity: str) -> History:
    """The runs that were asked for under ``identity``."""
    filters = dg.RunsFilter(tags={REQUEST_TAG: identity})
    runs = instance.get_runs(filters=filters, limit=_MOST_ATTEMPTS)
    if len(runs) < _MOST_ATTEMPTS:
        return History(len(runs), tuple(_state(run) for run in runs))
    return History(instance.get_runs_count(filters), tuple(_state(run) for run in runs))


def _state(run: dg.DagsterRun) -> RunState:
    if run.status in _UNDERWAY:
        return RunState.UNDERWAY
    return RunState.DONE if run.is_success else RunState.FAILED


def _requests(
    wishes: Callable[[], Sequence[Wish]], instance: dg.DagsterInstance
) -> tuple[list[dg.RunRequest], list[str]]:
    """Requests for what is wished for, at most so many a tick, and why others are not made."""
    requests: list[dg.RunRequest] = []
    reasons: list[str] = []
    again: set[str] = set()
    end = time.monotonic() + _TICK_BUDGET_S
    for wish in wishes():
        if len(requests) == _MOST_RANGES_A_TICK or time.monotonic() > end:
            break
        history = run_history(instance, wish.identity)
        answer = next_request(wish, history)
        if isinstance(answer, str):
            reasons.append(answer)
            continue
        requests.append(answer)
        if history.latest[:1] == (RunState.DONE,):
            again.add(wish.identity)
    if again:
        # That run may have ended after its days were looked at: ask only for what still lacks.
        lacking = {wish.identity for wish in wishes()}
        requests = [r for r in requests if r.tags[REQUEST_TAG] not in again - lacking]
    return requests, reasons


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

            requests += _requests(wishes, context.instance)[0]
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
            requests, reasons = _requests(wishes, context.instance)
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

        requests, reasons = _requests(wishes, context.instance)
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

"""When online retail runs: jobs, schedules and the sensor on its source.

Here: what to ask for and when. Not here: what a run does (assets.py), what changed (source.py).
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import dagster as dg

from retail_assets.defs.online_retail.assets import LANDED, PROCESSED, RAW, day_partitions
from retail_assets.defs.online_retail.contract import DOMAIN, ONLINE_RETAIL_DATA
from retail_assets.defs.online_retail.source import (
    OnlineRetailSource,
    changed_days,
    read_manifest,
    read_processed,
    source_token,
)
from retail_assets.defs.online_retail.transforms import DayLedger, contiguous_ranges
from retail_assets.resources.download import DownloadError
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.warehouse import DuckDBWarehouse, WarehouseBusyError
from retail_assets.settings import Settings

REQUEST_TAG = "retail_assets/request"
_RANGE_START = "dagster/asset_partition_range_start"
_RANGE_END = "dagster/asset_partition_range_end"
_MOST_ATTEMPTS = 3
_MOST_RANGES_A_TICK = 20
_WAREHOUSE_WAIT_S = 5.0


class RunState(Enum):
    """What became of a request."""

    NONE = "none"
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
    """Work that is wanted: its identity (object + version), and the run that would do it."""

    identity: str
    job_name: str
    asset_selection: tuple[dg.AssetKey, ...]
    tags: tuple[tuple[str, str], ...] = ()


def next_request(wish: Wish, state_of: Callable[[str], RunState]) -> dg.RunRequest | str:
    """A request for ``wish``, or why there is none now.

    The run key is identity and attempt: what is underway or done is not asked for again, what
    failed is, up to three times; after that a new version or a run by hand is needed.
    """
    for attempt in range(1, _MOST_ATTEMPTS + 1):
        key = f"{wish.identity}:{attempt}"
        state = state_of(key)
        if state is RunState.NONE:
            return dg.RunRequest(
                run_key=key,
                job_name=wish.job_name,
                asset_selection=list(wish.asset_selection),
                tags=dict(wish.tags) | {REQUEST_TAG: key},
            )
        if state is RunState.UNDERWAY:
            return f"{key} is underway"
        if state is RunState.DONE:
            return f"{key} is done"
    return f"{wish.identity} failed {_MOST_ATTEMPTS} times: mend its cause and run it by hand"


def source_wish(token: str) -> Wish:
    """The source asset, once a version of the origin."""
    return Wish(f"source:{token}", "online_retail_source_to_lake", (RAW,))


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


def run_state(instance: dg.DagsterInstance, request: str) -> RunState:
    """What became of the latest run that carries ``request``."""
    runs = instance.get_runs(filters=dg.RunsFilter(tags={REQUEST_TAG: request}), limit=1)
    if not runs:
        return RunState.NONE
    if runs[0].status in _UNDERWAY:
        return RunState.UNDERWAY
    return RunState.DONE if runs[0].is_success else RunState.FAILED


def _requests(
    wishes: Sequence[Wish], instance: dg.DagsterInstance
) -> tuple[list[dg.RunRequest], list[str]]:
    requests, reasons = [], []
    for wish in wishes[:_MOST_RANGES_A_TICK]:
        answer = next_request(wish, lambda key: run_state(instance, key))
        if isinstance(answer, str):
            reasons.append(answer)
        else:
            requests.append(answer)
    return requests, reasons


def _fingerprints(ledgers: Mapping[str, DayLedger]) -> dict[str, str]:
    return {day: ledger.fingerprint for day, ledger in ledgers.items()}


def pending_days(
    lake: LakeResource, warehouse: DuckDBWarehouse, valid: Iterable[str]
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
            pending = changed_days(manifest.days, _fingerprints(read_processed(lake)))
            wishes = day_wishes(
                set(pending) & set(days.get_partition_keys()),
                manifest.days,
                source_to_lake.name,
                (PROCESSED,),
            )
            requests += _requests(wishes, context.instance)[0]
        return requests

    @dg.schedule(job=lake_to_warehouse, cron_schedule="0 4 * * *", execution_timezone="UTC")
    def online_retail_lake_to_warehouse_daily(
        context: dg.ScheduleEvaluationContext, lake: LakeResource, warehouse: DuckDBWarehouse
    ) -> list[dg.RunRequest] | dg.SkipReason:
        """Load the days whose processed partition is newer than the warehouse's."""
        processed = read_processed(lake)
        try:
            landed = warehouse.loaded_versions(ONLINE_RETAIL_DATA, timeout_s=_WAREHOUSE_WAIT_S)
        except WarehouseBusyError as busy:
            return dg.SkipReason(str(busy))
        pending = [day for day, x in processed.items() if landed.get(day) != x.fingerprint]
        wishes = day_wishes(pending, processed, lake_to_warehouse.name, (LANDED,))
        requests, reasons = _requests(wishes, context.instance)
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
        warehouse: DuckDBWarehouse,
        online_retail_source: OnlineRetailSource,
    ) -> dg.SensorResult | dg.SkipReason:
        wishes: list[Wish] = []
        notes: list[str] = []
        manifest = read_manifest(lake)
        try:
            origins = online_retail_source.probe()
        except DownloadError as error:
            notes.append(f"the source does not answer: {error}")
        else:
            if manifest is None or not manifest.is_of(origins):
                wishes.append(source_wish(source_token(origins)))
        if manifest is not None:
            try:
                pending = pending_days(lake, warehouse, days.get_partition_keys())
            except WarehouseBusyError as busy:
                notes.append(str(busy))
            else:
                wishes += day_wishes(pending, manifest.days, changed.name, (PROCESSED, LANDED))
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

"""One in-process, recorded Dagster run of a whole domain.

Here: which partitions such a run takes, and what it tells afterwards. Not here: what the assets
do (defs/), printing (tables.py).
"""

import os
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from retail_assets.commands.status import count_rows
from retail_assets.instance import open_instance
from retail_assets.settings import SAMPLE_SOURCE, Settings

if TYPE_CHECKING:
    import dagster as dg


class RunFailed(Exception):  # noqa: N818  (says what happened, as Dagster's own events do)
    """The run did not succeed; the message is the line that says why."""


@dataclass(frozen=True)
class AssetOutcome:
    """What one asset of a run did."""

    key: str
    rows: int | None
    partitions: int | None
    seconds: float
    where: str


@dataclass(frozen=True)
class RunOutcome:
    """A successful run: its id, its assets in the order they ran, its checks."""

    run_id: str
    partitions: tuple[str, str] | None
    assets: list[AssetOutcome] = field(default_factory=list)
    checks_passed: int = 0


def parse_partitions(text: str) -> tuple[str, str]:
    """First and last day of ``A...B`` or of the one day ``A``.

    Raises:
        RunFailed: it is neither.
    """
    first, dots, last = text.partition("...")
    try:
        pair = date.fromisoformat(first), date.fromisoformat(last if dots else first)
    except ValueError:
        pair = None
    if pair is None or pair[1] < pair[0]:
        raise RunFailed(f"--partitions is {text!r}; expected 2011-11-14 or 2010-12-01...2011-12-09")
    return str(pair[0]), str(pair[1])


def run_domain(
    settings: Settings, domain: str, partitions: str | None, *, allow_emptying: bool = False
) -> RunOutcome:
    """Materialize every asset of ``domain``: the days asked for, or all that the source has.

    Raises:
        RunFailed: a step or a blocking check failed; the run is recorded.
    """
    asked = parse_partitions(partitions) if partitions else None
    if asked:
        _refuse_outside(asked, settings)
    # One planned event an asset in place of one a partition: a run of a year is then not mostly
    # bookkeeping. A range that fails here is seen as a failed run, not as failed partitions.
    os.environ.setdefault("DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS", "1")
    make_sample(settings)
    with ExitStack() as running:
        # Dagster's and dbt's start takes seconds: it happens while the source is read.
        ahead = Thread(target=start_ahead, args=(settings, running), daemon=True)
        ahead.start()
        span = asked or source_span(settings, allow_emptying=allow_emptying)
        ahead.join()
        from retail_assets.definitions import build_defs
        from retail_assets.errors import PermanentError

        try:
            definitions = build_defs(settings)
        except PermanentError as error:
            raise RunFailed(str(error)) from error
        log = settings.home / "logs" / f"{domain}.log"
        instance = running.enter_context(open_instance(settings))
        return _execute(
            settings, definitions, instance, domain, span, allow_emptying=allow_emptying, log=log
        )


def _refuse_outside(asked: tuple[str, str], settings: Settings) -> None:
    first, last = settings.online_retail_start, settings.online_retail_end or date.today()
    if asked[0] < str(first) or asked[1] > str(last):
        raise RunFailed(
            f"--partitions is {asked[0]}...{asked[1]}; expected days inside {first}...{last}"
            " (RETAIL_ONLINE_RETAIL_START, RETAIL_ONLINE_RETAIL_END)"
        )


def start_ahead(settings: Settings, running: ExitStack) -> None:
    """Import what the run will need, and have dbt start until ``running`` is closed."""
    import retail_assets.definitions  # noqa: F401
    from retail_assets.defs.marts.dbt import WINDOW
    from retail_assets.errors import PermanentError
    from retail_assets.resources.dbt import dbt_ahead

    with open_instance(settings):
        pass  # its storages' imports, a third of a second
    # Last, for it is needed last: until here it would take a core from the source.
    with suppress(PermanentError):  # the definitions will meet it again, and tell it
        running.enter_context(dbt_ahead(settings, [WINDOW]))


def make_sample(settings: Settings) -> None:
    """Write the sample workbook where the settings want it and it is not there."""
    if SAMPLE_SOURCE in settings.online_retail_source and not settings.sample_path.exists():
        from retail_assets.defs.online_retail.sample import write_sample

        write_sample(settings.sample_path)


def source_span(settings: Settings, *, allow_emptying: bool) -> tuple[str, str] | None:
    """First and last day to run: the source's, and those that it no longer has.

    None where the source cannot be had: the run's own first step then says why, on record.
    """
    from retail_assets.defs.online_retail.source import OnlineRetailSource
    from retail_assets.errors import PermanentError, TransientError
    from retail_assets.resources.lake import LakeResource

    lake, source = LakeResource.of(settings), OnlineRetailSource.of(settings)
    try:
        found = source.refresh(lake, allow_emptying=allow_emptying)
        days = {*found.manifest.span, *found.changed_days}
    except (PermanentError, TransientError):
        return None
    first, last = str(settings.online_retail_start), settings.online_retail_end
    inside = [day for day in days if day >= first and (last is None or day <= str(last))]
    return min(inside), max(inside)


def _execute(
    settings: Settings,
    definitions: "dg.Definitions",
    instance: "dg.DagsterInstance",
    domain: str,
    span: tuple[str, str] | None,
    *,
    allow_emptying: bool,
    log: Path,
) -> RunOutcome:
    from retail_assets.defs.online_retail.assets import RAW

    job = definitions.resolve_job_def(domain)
    tags = (
        {
            "dagster/asset_partition_range_start": span[0],
            "dagster/asset_partition_range_end": span[1],
        }
        if span
        else {}
    )
    # dbt's lines and Dagster's go to a file: the terminal gets the table, or the reason.
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as sink, redirect_stdout(sink), redirect_stderr(sink):
        result = job.execute_in_process(
            instance=instance,
            tags=tags,
            raise_on_error=False,
            asset_selection=None if span else [RAW],
            run_config={
                "ops": {RAW.to_python_identifier(): {"config": {"allow_emptying": allow_emptying}}}
            },
        )
    if not result.success:
        raise RunFailed(f"{_why(result)} (log: {log})")
    return _outcome(result, span, count_rows(settings))


def _why(result: "dg.ExecuteInProcessResult") -> str:
    """The run's failure in one line: the failed check, or the error of the first failed step."""
    checks = [c for c in result.get_asset_check_evaluations() if not c.passed]
    for event in result.filter_events(lambda e: e.is_step_failure):
        error = event.step_failure_data.error
        cause = error.cause if error is not None and error.cause is not None else error
        metadata = event.step_failure_data.user_failure_data
        text = metadata.description if metadata and metadata.description else None
        message = text or (cause.message if cause is not None else "no message")
        failed = [f"{c.asset_key.to_user_string()}: {c.check_name}" for c in checks]
        if failed:
            message = f"check failed: {', '.join(failed[:5])}. {message}"
        return f"{event.step_key}: {' '.join(message.split())}"
    return "the run failed; see its log in the UI (make dev)"


def _number(metadata: dict[str, Any], *names: str) -> int | None:
    for name in names:
        if name in metadata and metadata[name].value is not None:
            return int(metadata[name].value)
    return None


def _outcome(
    result: "dg.ExecuteInProcessResult", span: tuple[str, str] | None, in_table: dict[str, int]
) -> RunOutcome:
    seconds: dict[str, float] = {}
    for event in result.filter_events(lambda e: e.is_step_success):
        assert event.step_key is not None
        seconds[event.step_key] = event.step_success_data.duration_ms / 1000
    by_key: dict[str, list[Any]] = {}
    step_of: dict[str, str] = {}
    for event in result.filter_events(lambda e: e.is_step_materialization):
        assert event.asset_key is not None and event.step_key is not None
        key = event.asset_key.to_user_string()
        by_key.setdefault(key, []).append(event.materialization)
        step_of[key] = event.step_key
    assets = []
    for key, found in by_key.items():
        days = [m for m in found if m.partition is not None]
        rows = [
            _number(dict(m.metadata), "dagster/partition_row_count", "dagster/row_count")
            for m in found
        ]
        counted = [r for r in rows if r is not None]
        metadata = dict(found[-1].metadata)
        execution = metadata.get("Execution Duration")
        where = metadata.get("path") or metadata.get("dagster/table_name")
        assets.append(
            AssetOutcome(
                key=key,
                rows=sum(counted) if counted else in_table.get(key.replace("/", ".")),
                partitions=len(days) or None,
                seconds=float(execution.value) if execution else seconds.get(step_of[key], 0.0),
                where=str(where.value) if where else key.replace("/", "."),
            )
        )
    passed = sum(c.passed for c in result.get_asset_check_evaluations())
    return RunOutcome(result.run_id, span, assets, passed)


def rebuild_table(settings: Settings, table: str) -> int:
    """Re-create a warehouse table from its processed partitions; returns its rows.

    Raises:
        RunFailed: no such table, or the lake has nothing processed for it.
    """
    from retail_assets.defs.online_retail.assets import loadable_uris
    from retail_assets.defs.online_retail.contract import ONLINE_RETAIL_DATA
    from retail_assets.defs.online_retail.source import read_processed
    from retail_assets.resources.lake import LakeResource
    from retail_assets.resources.warehouse import WarehouseResource

    if table != ONLINE_RETAIL_DATA.table:
        raise RunFailed(f"{table!r} is no table that can be rebuilt: {ONLINE_RETAIL_DATA.table}")
    lake, warehouse = LakeResource.of(settings), WarehouseResource.of(settings)
    versions = {day: ledger.fingerprint for day, ledger in read_processed(lake).items()}
    if not versions:
        raise RunFailed(
            f"{lake.root} holds nothing processed. Run: retail-assets run online_retail"
        )
    uris = loadable_uris(lake, warehouse, versions)
    return warehouse.replace_table(ONLINE_RETAIL_DATA, uris, versions).total

"""The recorded, in-process Dagster runs of a whole domain, and the rebuilding of its tables.

Here: starting what takes long, executing what the domain plans, and what that tells afterwards.
Not here: which partitions are run (the domain's plan), what the assets do, printing (tables.py).
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from functools import cache, reduce
from itertools import chain
from operator import add
from threading import Thread
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from retail_assets.commands.status import count_rows, table_names
from retail_assets.defs.registry import domains
from retail_assets.domain import REFUSED_PARTITIONS, Asked, Domain, Execution
from retail_assets.errors import PermanentError
from retail_assets.instance import open_instance
from retail_assets.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

    from retail_assets.losses import Quarantined


class RunFailed(PermanentError):  # noqa: N818  (says what happened, as Dagster's own events do)
    """The run did not succeed; the message is the line that says why."""


@dataclass(frozen=True)
class AssetOutcome:
    """What one asset of a run did."""

    key: str
    rows: int | None
    partitions: int | None
    seconds: float
    where: str
    quarantined: "Quarantined"
    skipped: tuple[str, ...] = ()
    """What of its files is no part of the table, as each partition tells it."""


@dataclass(frozen=True)
class RunOutcome:
    """A run of which no step failed: its id, its assets in the order they ran, its checks.

    ``warnings`` and ``failures`` tell of the checks that failed and block nothing, by severity;
    ``failures`` also of partitions that were refused. Of the ``checks_warned``, one that only says
    what an asset's ``quarantined`` says is not told.
    """

    run_id: str
    partitions: tuple[str, str] | None
    assets: list[AssetOutcome] = field(default_factory=list)
    checks_passed: int = 0
    checks_warned: int = 0
    warnings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def run_domain(settings: Settings, domain: Domain, asked: Asked) -> list[RunOutcome]:
    """Materialize every asset of ``domain``: the partitions asked for, or all that there are.

    Returns:
        One outcome for each execution that the domain plans, in order; ``failures`` judges them.

    Raises:
        RunFailed: a step or a blocking check failed; the run is recorded.
        PlanError: what was asked for cannot be, or there is nothing to run.
    """
    domain.check(settings, asked)
    # One planned event an asset in place of one a partition: a run of a year is then not mostly
    # bookkeeping. A range that fails here is seen as a failed run, not as failed partitions.
    os.environ.setdefault("DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS", "1")
    domain.prepare(settings)
    with ExitStack() as running:
        # Dagster's and dbt's start takes seconds: it happens while the plan looks at what is there.
        ahead = Thread(target=start_ahead, args=(settings, domain, running), daemon=True)

        @cache
        def instance() -> "dg.DagsterInstance":
            ahead.join()  # it opens the instance too, and its files must not be made twice at once
            return running.enter_context(open_instance(settings))

        planned = iter(domain.plan(settings, asked, instance))
        ahead.start()
        try:
            executions = chain([next(planned)], planned)
        finally:
            ahead.join()  # or what it starts would not be stopped at the end of this block
        from retail_assets.definitions import build_defs

        definitions = build_defs(settings, domains=[domain])
        return _execute(settings, domain, definitions, instance, executions)


def start_ahead(settings: Settings, domain: Domain, running: ExitStack) -> None:
    """Have dbt start until ``running`` is closed, and import what the run will need."""
    from retail_assets.resources.dbt.project import dbt_ahead

    # First: its imports take a core that has nothing else to do while ours go on.
    with suppress(PermanentError):  # the definitions will meet it again, and tell it
        running.enter_context(dbt_ahead(settings))
    import retail_assets.definitions  # noqa: F401

    domain.maker()
    with open_instance(settings):
        pass  # its storages' imports, a third of a second


def _execute(
    settings: Settings,
    domain: Domain,
    definitions: "dg.Definitions",
    instance: "Callable[[], dg.DagsterInstance]",
    executions: Iterator[Execution],
) -> list[RunOutcome]:
    # dbt's lines and Dagster's go to a file: the terminal gets the table, or the reason, and for
    # whom the run waits meanwhile.
    log = settings.home / "logs" / f"{domain.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    import dagster as dg

    from retail_assets.runs import process_tags

    done: list[tuple[Execution, dg.ExecuteInProcessResult]] = []
    refusals: list[str] = []
    opened = instance()
    with (
        _waits_told(),
        log.open("w") as sink,
        redirect_stdout(sink),
        redirect_stderr(sink),
    ):
        while (execution := next(executions, None)) is not None:
            run_id = str(uuid4())
            selection = execution.asset_selection
            if isinstance(selection, dg.AssetSelection):
                selection = sorted(selection.resolve(definitions.resolve_asset_graph()))
            result = definitions.resolve_job_def(execution.job_name).execute_in_process(
                instance=opened,
                run_id=run_id,
                tags=execution.tags | process_tags(run_id),
                raise_on_error=False,
                asset_selection=selection,
                run_config=dict(execution.run_config),
            )
            if not result.success:
                reasons = list(_reasons(result).values())
                if not _only_refused(result):
                    why = reasons[:1] or ["the run failed; see its log in the UI (make dev)"]
                    raise RunFailed(f"{' '.join([*refusals, *why])} (log: {log})")
                refusals += reasons
                executions = chain(execution.rest(), executions)
            done.append((execution, result))
    tables = {key.to_user_string(): name for key, name in table_names(definitions).items()}
    rows = count_rows(settings, [domain])
    outcomes = [_outcome(result, execution.partitions, tables, rows) for execution, result in done]
    if refusals:
        told = f"{' '.join(refusals)} (log: {log})"
        outcomes[-1] = replace(outcomes[-1], failures=[*outcomes[-1].failures, told])
    return outcomes


@contextmanager
def _waits_told() -> Iterator[None]:
    """Say on standard error for whom the run waits, which else only its log does."""
    from retail_assets.resources.waiting import logger

    terminal = logging.StreamHandler()  # as standard error is now
    logger().addHandler(terminal)
    try:
        yield
    finally:
        logger().removeHandler(terminal)


def _only_refused(result: "dg.ExecuteInProcessResult") -> bool:
    """Whether each step that failed has refused some of its partitions, and taken the others.

    Of what such a step took a check may fail that blocks: then nothing goes on with it.
    """
    failed = [x.step_failure_data for x in result.filter_events(lambda e: e.is_step_failure)]
    told = [x.user_failure_data.metadata if x.user_failure_data else {} for x in failed]
    blocked = any(x.blocking and not x.passed and _is_error(x) for x in _checks(result))
    return bool(told) and not blocked and all(REFUSED_PARTITIONS in found for found in told)


def _reasons(result: "dg.ExecuteInProcessResult") -> dict[str, str]:
    """Why each step failed, in one line each: the failed check, and the error."""
    failed = [_told(check) for check in _checks(result) if not check.passed and _is_error(check)]
    reasons = {}
    for event in result.filter_events(lambda e: e.is_step_failure):
        error = event.step_failure_data.error
        cause = error.cause if error is not None and error.cause is not None else error
        metadata = event.step_failure_data.user_failure_data
        text = metadata.description if metadata and metadata.description else None
        message = text or (cause.message if cause is not None else "no message")
        if failed:
            message = f"check failed: {'; '.join(failed[:5])}. {message}"
        step = str(event.step_key)
        reasons[step] = f"{step}: {' '.join(message.split())}"
    return reasons


def _checks(result: "dg.ExecuteInProcessResult") -> "list[dg.AssetCheckEvaluation]":
    """Each check's last result: a step that was tried again evaluates its checks again."""
    return list(
        {
            (check.asset_check_key, check.partition): check
            for check in result.get_asset_check_evaluations()
        }.values()
    )


def _is_error(check: "dg.AssetCheckEvaluation") -> bool:
    import dagster as dg

    return check.severity is dg.AssetCheckSeverity.ERROR


def _told(check: "dg.AssetCheckEvaluation") -> str:
    named = f"{check.asset_key.to_user_string()}: {check.check_name}"
    return f"{named}: {check.description}" if check.description else named


def _rows(metadata: "Mapping[str, dg.MetadataValue[Any]]") -> int | None:
    for name in ("dagster/partition_row_count", "dagster/row_count", "rows_landed"):
        if name in metadata and metadata[name].value is not None:
            return int(metadata[name].value)
    return None


def _outcome(
    result: "dg.ExecuteInProcessResult",
    span: tuple[str, str] | None,
    tables: dict[str, str],
    rows_of: dict[str, int],
) -> RunOutcome:
    from retail_assets.losses import QUARANTINE_CHECK, SKIPPED, Quarantined

    seconds = {
        str(event.step_key): event.step_success_data.duration_ms / 1000
        for event in result.filter_events(lambda e: e.is_step_success)
    }
    # By partition: a step that was tried again materializes again.
    by_key: dict[str, dict[str | None, Any]] = {}
    step_of: dict[str, str] = {}
    for event in result.filter_events(lambda e: e.is_step_materialization):
        assert event.asset_key is not None and event.step_key is not None
        key = event.asset_key.to_user_string()
        by_key.setdefault(key, {})[event.materialization.partition] = event.materialization
        step_of[key] = event.step_key
    assets = []
    for key, found in by_key.items():
        counted = [rows for m in found.values() if (rows := _rows(m.metadata)) is not None]
        metadata = dict(list(found.values())[-1].metadata)
        execution = metadata.get("Execution Duration")
        where = metadata.get("path") or metadata.get("dagster/table_name")
        assets.append(
            AssetOutcome(
                key=key,
                rows=sum(counted) if counted else rows_of.get(tables[key]),
                partitions=sum(1 for partition in found if partition is not None) or None,
                seconds=float(execution.value) if execution else seconds.get(step_of[key], 0.0),
                where=str(where.value) if where else tables[key],
                quarantined=reduce(
                    add, (Quarantined.of_metadata(m.metadata) for m in found.values())
                ),
                skipped=tuple(
                    str(m.metadata[SKIPPED].value) for m in found.values() if SKIPPED in m.metadata
                ),
            )
        )
    told = {asset.key for asset in assets if asset.quarantined}
    checks = _checks(result)
    warned = [check for check in checks if not check.passed and not _is_error(check)]
    return RunOutcome(
        result.run_id,
        span,
        assets,
        checks_passed=sum(check.passed for check in checks),
        checks_warned=len(warned),
        warnings=[
            _told(check)
            for check in warned
            if check.check_name != QUARANTINE_CHECK or check.asset_key.to_user_string() not in told
        ],
        failures=[_told(check) for check in checks if not check.passed and _is_error(check)],
    )


def quarantined_assets(outcomes: Sequence[RunOutcome]) -> "dict[str, Quarantined]":
    """What was quarantined by asset, over all runs; without those that could take everything."""
    found: dict[str, Quarantined] = {}
    for asset in (asset for outcome in outcomes for asset in outcome.assets if asset.quarantined):
        before = found.get(asset.key)
        found[asset.key] = before + asset.quarantined if before else asset.quarantined
    return found


def failures(outcomes: Sequence[RunOutcome]) -> list[str]:
    """Why runs of which no step failed have failed nevertheless, a line each, or nothing.

    A check of severity ERROR failed that blocks nothing, or all that an asset read was quarantined.
    """
    rows: dict[str, int] = {}
    for asset in (asset for outcome in outcomes for asset in outcome.assets):
        rows[asset.key] = rows.get(asset.key, 0) + (asset.rows or 0)
    lost = [
        f"{key}: all {found.rows:,} {found.unit} were quarantined"
        + (f"; {found.first}" if found.first else "")
        for key, found in quarantined_assets(outcomes).items()
        if found.rows and not rows[key]
    ]
    return [*lost, *(failure for outcome in outcomes for failure in outcome.failures)]


def rebuild_table(settings: Settings, table: str) -> int:
    """Re-create a table from its partitions in the lake; returns its rows.

    Raises:
        RunFailed: no such table.
        PlanError: the lake has nothing processed for it.
    """
    owners = {
        dataset.table: (domain, dataset)
        for domain in domains()
        for dataset in (*domain.datasets, *domain.beside_warehouse)
    }
    if table not in owners:
        raise RunFailed(f"{table!r} is no table that can be rebuilt: {', '.join(owners)}")
    domain, dataset = owners[table]
    return domain.rebuild(settings, dataset)

"""What a run costs before it does any work: start-up, and Dagster's recording.

The command itself runs, through its own entry point, with the definitions' bodies emptied: they
replay the materializations, checks and observations of a recorded run, and dbt is started as
ever but selects nothing. So whatever the product changes, this follows. Not here: measuring.

    python -m retail_assets_tests.benchmarks.overhead (record | partitions | none) EVENTS
    python -m retail_assets_tests.benchmarks.overhead serial
"""

import json
import pickle
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dagster as dg

    from retail_assets.settings import Settings

DOMAIN = "online_retail"
_NO_NODE = "tag:retail_assets_bench_selects_nothing"


@dataclass(frozen=True)
class Replayed:
    """One event that a body is to repeat: kind, asset, and what it said."""

    kind: str  # materialization, check or observation
    asset_key: list[str]
    metadata: dict[str, Any]
    partition: str | None = None
    check_name: str = ""
    passed: bool = True
    description: str | None = None


@dataclass(frozen=True)
class Recording:
    """The events of a run by step, in order, and the days that it took."""

    span: tuple[str, str]
    steps: dict[str, list[Replayed]] = field(default_factory=dict)


def record_last_runs() -> Recording:
    """The events of the instance's last two runs: the source's, and that of a range of days."""
    from retail_assets.instance import open_instance
    from retail_assets.settings import load_settings

    with open_instance(load_settings()) as instance:
        runs = instance.get_runs(limit=2)
        assert all(run.is_success for run in runs)
        tags = runs[0].tags
        recording = Recording(
            (
                tags["dagster/asset_partition_range_start"],
                tags["dagster/asset_partition_range_end"],
            )
        )
        for entry in (entry for run in runs for entry in instance.all_logs(run.run_id)):
            event = entry.dagster_event
            if event is None or event.step_key is None:
                continue
            if replayed := _replayed(event):
                recording.steps.setdefault(event.step_key, []).append(replayed)
    return recording


def _replayed(event: "dg.DagsterEvent") -> Replayed | None:
    if event.is_step_materialization:
        found: Any = event.materialization
        return Replayed(
            "materialization", list(found.asset_key.path), dict(found.metadata), found.partition
        )
    if event.event_type_value == "ASSET_OBSERVATION":
        found = event.asset_observation_data.asset_observation
        return Replayed(
            "observation",
            list(found.asset_key.path),
            dict(found.metadata),
            description=found.description,
        )
    if event.event_type_value == "ASSET_CHECK_EVALUATION":
        found = event.asset_check_evaluation_data
        return Replayed(
            "check",
            list(found.asset_key.path),
            dict(found.metadata),
            check_name=found.check_name,
            passed=found.passed,
            description=found.description,
        )
    return None


def empty_definitions(
    definitions: "dg.Definitions", recording: Recording, *, partitioned: bool
) -> "dg.Definitions":
    """The same graph, jobs and resources with bodies that only repeat ``recording``.

    Without ``partitioned`` the assets lose their partitions: each then records one event.
    """
    import dagster as dg

    assets: list[dg.AssetsDefinition] = []
    for original in definitions.assets or []:
        assert isinstance(original, dg.AssetsDefinition)
        assets.append(_empty_asset(original, recording, partitioned=partitioned))
    checks: list[dg.AssetChecksDefinition] = []
    for check in definitions.asset_checks or []:
        assert isinstance(check, dg.AssetChecksDefinition)
        checks.append(_empty_check(check, recording))
    return dg.Definitions(
        assets=assets,
        asset_checks=checks,
        jobs=definitions.jobs,
        schedules=definitions.schedules,
        sensors=definitions.sensors,
        resources=definitions.resources,
        executor=definitions.executor,
    )


def _empty_asset(
    original: "dg.AssetsDefinition", recording: Recording, *, partitioned: bool
) -> "dg.AssetsDefinition":
    import dagster as dg

    events = recording.steps[original.op.name]
    runs_dbt = "dbt" in original.required_resource_keys

    @dg.multi_asset(
        name=original.op.name,
        specs=[
            spec if partitioned else spec.replace_attributes(partitions_def=None)
            for spec in original.specs
        ],
        check_specs=list(original.check_specs),
        partitions_def=original.partitions_def if partitioned else None,
        backfill_policy=original.backfill_policy if partitioned else None,
        can_subset=original.can_subset,
        config_schema=getattr(original.op.config_schema.config_type, "fields", None),
        required_resource_keys=set(original.required_resource_keys) - {"io_manager"},
    )
    def body(context: dg.AssetExecutionContext) -> Iterator[Any]:
        if runs_dbt:
            _start_dbt(context.resources.dbt, recording.span)
        yield from _replay(context, events, partitioned=partitioned)

    return body


def _empty_check(
    original: "dg.AssetChecksDefinition", recording: Recording
) -> "dg.AssetChecksDefinition":
    import dagster as dg

    @dg.multi_asset_check(
        name=original.op.name,
        specs=list(original.check_specs),
        required_resource_keys=set(original.required_resource_keys) - {"io_manager"},
    )
    def body(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        for event in recording.steps[original.op.name]:
            yield _check_result(event)

    return body


def _replay(
    context: "dg.AssetExecutionContext", events: Sequence[Replayed], *, partitioned: bool
) -> Iterator[Any]:
    import dagster as dg

    days = {event.partition: event for event in events if event.partition is not None}
    if days:
        first = next(iter(days.values()))
        key = dg.AssetKey(first.asset_key)
        if partitioned:
            for day in context.partition_keys:
                context.add_asset_metadata(days[day].metadata, asset_key=key, partition_key=day)
        yield dg.MaterializeResult(asset_key=key, metadata={} if partitioned else first.metadata)
    for event in events:
        key = dg.AssetKey(event.asset_key)
        if event.kind == "materialization" and event.partition is None:
            yield dg.MaterializeResult(asset_key=key, metadata=event.metadata)
        elif event.kind == "check":
            yield _check_result(event)
        elif event.kind == "observation":
            yield dg.AssetObservation(key, description=event.description, metadata=event.metadata)


def _check_result(event: Replayed) -> "dg.AssetCheckResult":
    import dagster as dg

    return dg.AssetCheckResult(
        asset_key=dg.AssetKey(event.asset_key),
        check_name=event.check_name,
        passed=event.passed,
        metadata=event.metadata,
        description=event.description,
    )


def _start_dbt(resource: Any, span: tuple[str, str]) -> None:
    """Start dbt as the marts do, with the window of a first run and no node to build."""
    from retail_assets.resources.dbt.project import dbt_build, dbt_variables
    from retail_assets.settings import load_settings

    settings = load_settings()
    arguments = ["build", "--vars", json.dumps(dbt_variables(settings)), "--select", _NO_NODE]
    with dbt_build(settings, {f"{DOMAIN}_window": [list(span)]}) as target:
        invocation = resource.cli(arguments, target_path=target)
        for _ in invocation.stream():
            raise AssertionError("dbt built a node that the benchmark did not select")


def run_empty(recording: Recording, *, partitioned: bool) -> None:
    """``retail-assets run online_retail`` with empty bodies and no look at the source."""
    import dagster as dg

    import retail_assets.definitions as definitions
    from retail_assets import cli
    from retail_assets.defs.online_retail.feed import FEED
    from retail_assets.domain import Execution

    build, plan = definitions.build_defs, FEED.plan

    def build_empty(settings: "Settings", **overrides: object) -> "dg.Definitions":
        return empty_definitions(build(settings, **overrides), recording, partitioned=partitioned)

    def plan_recorded(*asked: Any) -> "Iterator[Execution]":
        yield next(plan(*asked))
        others = dg.AssetSelection.groups(DOMAIN) - dg.AssetSelection.assets(FEED.raw_key)
        yield Execution(DOMAIN, recording.span, asset_selection=others)

    definitions.build_defs = build_empty
    FEED.plan = plan_recorded  # type: ignore[method-assign]
    sys.argv = ["retail-assets", "run", DOMAIN]
    cli.main()


def run_serially() -> None:
    """``retail-assets run online_retail`` after its imports, rather than during them.

    The product imports Dagster and dbt while it reads the source. What is hidden so is found by
    doing one after the other.
    """
    import retail_assets.definitions  # noqa: F401
    from retail_assets import cli
    from retail_assets.defs.registry import load_domain

    load_domain(DOMAIN).maker()
    sys.argv = ["retail-assets", "run", DOMAIN]
    cli.main()


def main(mode: str, *events: str) -> None:
    """Record the last run's events to a file, replay the file's, or run one after the other."""
    if mode == "serial":
        run_serially()
        return
    path = Path(events[0])
    if mode == "record":
        path.write_bytes(pickle.dumps(record_last_runs()))
        return
    run_empty(pickle.loads(path.read_bytes()), partitioned=mode == "partitions")


if __name__ == "__main__":
    # Not as __main__: what is pickled must be found under its module's name.
    from retail_assets_tests.benchmarks import overhead

    overhead.main(*sys.argv[1:])

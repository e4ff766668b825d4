"""Tests of retail_assets.defs.retention, over a real instance: what goes, what is still shown."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from retail_assets.defs.retention import build_defs, prune
from retail_assets.domain import Pruned
from retail_assets.feeds.requests import REQUEST_TAG, run_history
from retail_assets.instance import prepare_instance
from retail_assets.settings import Settings, load_settings
from retail_assets_tests.conftest import instance_of

# Everything that ended is older.
A_MOMENT = 1e-9
DAYS = dg.StaticPartitionsDefinition(["a", "b"])


@dg.asset(partitions_def=DAYS, check_specs=[dg.AssetCheckSpec("is_well", asset="days")])
def days(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
    print("a line of its process")
    if "fails" in context.run.tags:
        raise ValueError("as it was told")
    return dg.MaterializeResult(
        metadata={"rows": 7}, check_results=[dg.AssetCheckResult(passed=True, check_name="is_well")]
    )


@dg.asset(deps=[days])
def mart() -> None:
    pass


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("DAGSTER_HOME", "")
    return load_settings(home=tmp_path, keep_runs_days=A_MOMENT)


@pytest.fixture
def instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    prepare_instance(settings)
    with instance_of(settings.home) as found:
        yield found


def run(instance: dg.DagsterInstance, key: str | None, **tags: str) -> str:
    """A run of ``days`` for a partition, or of the mart; its id."""
    asset = mart if key is None else days
    done = dg.materialize(
        [asset], instance=instance, partition_key=key, tags=tags, raise_on_error=False
    )
    return done.run_id


def shown(instance: dg.DagsterInstance) -> list[object]:
    """What the UI shows of the assets."""
    return [instance.get_latest_materialization_event(key) for key in (days.key, mart.key)] + [
        instance.get_materialized_partitions(days.key),
        instance.get_latest_data_version_record(mart.key),
        [
            (record.status, record.run_id)
            for record in instance.event_log_storage.get_latest_asset_check_execution_by_key(
                list(days.check_keys)
            ).values()
        ],
    ]


def test_runs_that_nothing_is_shown_by_go_with_their_files(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    old = [run(instance, "a"), run(instance, None), run(instance, "b", fails="yes")]
    latest = [run(instance, "a"), run(instance, "b"), run(instance, None)]
    before = shown(instance)
    home = settings.instance_dir

    (told,) = prune(settings, instance, (), dry_run=True)
    assert told.count == len(old) and told.size > 10_000
    assert instance.get_runs_count() == len(old) + len(latest)

    assert list(prune(settings, instance, (), dry_run=False)) == [told]

    assert [found.run_id for found in instance.get_runs()] == latest[::-1]
    assert shown(instance) == before
    left = {path.name.partition(".")[0] for path in (home / "history/runs").glob("*-*.db")}
    assert left == {*latest}
    assert [x.count for x in prune(settings, instance, (), dry_run=False)] == [0]


def test_what_a_sensor_gave_up_stays_given_up(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    for _ in range(3):
        run(instance, "a", fails="yes", **{REQUEST_TAG: "days:1"})
    run(instance, "a")

    prune_all = list(prune(settings, instance, (), dry_run=False))

    assert prune_all[0].count == 0
    assert run_history(instance, "days:1").failed_for_good


def test_by_default_a_month_is_kept_and_zero_is_for_ever(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    run(instance, "a")
    run(instance, "a")

    assert list(prune(load_settings(home=tmp_path), instance, (), dry_run=False)) == [
        Pruned("runs, with their events and logs", 0)
    ]
    forever = load_settings(home=tmp_path, keep_runs_days=0)
    assert list(prune(forever, instance, (), dry_run=False)) == []


def test_the_schedule_s_job_prunes(settings: Settings, instance: dg.DagsterInstance) -> None:
    first = run(instance, "a")
    run(instance, "a")
    definitions = build_defs(settings, ())

    done = definitions.resolve_job_def("prune").execute_in_process(instance=instance)

    assert done.success
    assert instance.get_run_by_id(first) is None
    assert instance.get_run_by_id(done.run_id) is not None

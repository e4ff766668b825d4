"""Tests of retail_assets.commands.run, with a domain of the test's own."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from retail_assets import definitions
from retail_assets.commands import run
from retail_assets.commands.run import RunFailed, rebuild_table, run_domain
from retail_assets.dataset import Dataset
from retail_assets.defs.registry import domains
from retail_assets.domain import DefsModule, Domain, Execution, MartsPlan, PlanError
from retail_assets.errors import PermanentError
from retail_assets.resources.lake import LakeResource
from retail_assets.settings import Settings, load_settings

DROPS = dg.DynamicPartitionsDefinition(name="drops")
LANDED = dg.AssetKey(["shop", "landed"])


@dg.asset(key=LANDED, partitions_def=DROPS, backfill_policy=dg.BackfillPolicy.single_run())
def landed(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
    if "bad" in context.partition_keys:
        raise dg.Failure("bad: expected a drop, found none")
    print("printed by an asset")
    for key in context.partition_keys:
        context.add_asset_metadata({"dagster/partition_row_count": int(key)}, partition_key=key)
    return dg.MaterializeResult()


class Shop(Domain):
    """Drops that have to be registered with the instance before a range of them can run."""

    name = "shop"
    datasets = ()

    def __init__(self, *ranges: tuple[str, str]) -> None:
        self.ranges = ranges
        self.asked: object = "nothing"

    def modules(self) -> Sequence[DefsModule]:
        return ()

    def resources(self, settings: Settings) -> dict[str, object]:
        return {}

    def prepare(self, settings: Settings) -> None:
        (settings.home / "prepared").mkdir(parents=True)

    def check_partitions(self, settings: Settings, first: str, last: str) -> None:
        if first < "2018-01-01":
            raise PlanError(f"{first} is too early")

    def plan(
        self,
        settings: Settings,
        partitions: tuple[str, str] | None,
        *,
        allow_emptying: bool,
        instance: Callable[[], dg.DagsterInstance],
    ) -> list[Execution]:
        self.asked = partitions, allow_emptying
        if not self.ranges:
            raise PlanError("the lake has no drop")
        instance().add_dynamic_partitions("drops", ["1", "20", "300", "bad"])
        return [Execution("shop_drops", found) for found in self.ranges]

    def plan_marts(self, warehouse: object) -> MartsPlan:
        raise NotImplementedError

    def count_rows(self, lake: object) -> dict[str, int]:
        return {}

    def lake_versions(self, lake: LakeResource, dataset: Dataset) -> dict[str, str]:
        return {}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was started ahead and ended; dbt is not, and the definitions are the asset above."""
    happened: list[str] = []

    def start_ahead(_: Settings, domain: Domain, running: Any) -> None:
        happened.append(domain.name)
        running.callback(happened.append, "ended")

    def build_defs(_: Settings, domains: Sequence[Domain]) -> dg.Definitions:
        assert [domain.name for domain in domains] == ["shop"]
        job = dg.define_asset_job("shop_drops", selection=[LANDED])
        return dg.Definitions(assets=[landed], jobs=[job], executor=dg.in_process_executor)

    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("DAGSTER_HOME", "")  # open_instance sets it: let it be as it was after
    monkeypatch.setenv("DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS", "1")
    monkeypatch.setattr(run, "start_ahead", start_ahead)
    monkeypatch.setattr(definitions, "build_defs", build_defs)
    return happened


def test_a_run_is_each_execution_that_the_domain_plans(
    settings: Settings, started: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(("1", "20"), ("300", "300"))

    outcomes = run_domain(settings, shop, None)

    assert [x.partitions for x in outcomes] == [("1", "20"), ("300", "300")]
    assert [[(a.key, a.rows, a.partitions) for a in x.assets] for x in outcomes] == [
        [("shop/landed", 21, 2)],
        [("shop/landed", 300, 1)],
    ]
    assert len({x.run_id for x in outcomes}) == 2
    assert shop.asked == (None, False)
    assert started == ["shop", "ended"]
    log = (settings.home / "logs" / "shop.log").read_text()
    assert log.count("printed by an asset") == 2
    assert "printed by an asset" not in capfd.readouterr().out


def test_a_failed_execution_is_the_last(settings: Settings, started: list[str]) -> None:
    with pytest.raises(RunFailed, match=r"shop__landed: bad: expected a drop, found none \(log"):
        run_domain(settings, Shop(("1", "1"), ("bad", "bad"), ("300", "300")), None)

    with dg.DagsterInstance.from_config(str(settings.instance_dir)) as instance:
        assert instance.get_materialized_partitions(LANDED) == {"1"}
    assert started == ["shop", "ended"]


def test_what_was_asked_for_reaches_the_plan(settings: Settings, started: list[str]) -> None:
    shop = Shop(("1", "1"))

    run_domain(settings, shop, "2018-12-31...2019-12-31", allow_emptying=True)

    assert shop.asked == (("2018-12-31", "2019-12-31"), True)


def test_a_plan_that_fails_ends_what_was_started(settings: Settings, started: list[str]) -> None:
    with pytest.raises(PlanError, match="the lake has no drop"):
        run_domain(settings, Shop(), None)

    assert started == ["shop", "ended"]


def test_a_domain_without_a_topic_takes_no_stream(
    settings: Settings, started: list[str], tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=r"--stream is .*orders\.csv; shop has no topic"):
        run_domain(settings, Shop(("1", "1")), None, stream=tmp_path / "orders.csv")

    assert started == ["shop", "ended"]


@pytest.mark.parametrize("asked", ["2017-12-31", "yesterday"])
def test_partitions_that_cannot_be_are_refused_before_anything_starts(
    settings: Settings, started: list[str], asked: str
) -> None:
    with pytest.raises(PlanError, match=asked):
        run_domain(settings, Shop(("1", "1")), asked)

    assert started == []
    assert not settings.home.exists()


def test_only_a_table_of_a_domain_can_be_rebuilt(settings: Settings) -> None:
    with pytest.raises(RunFailed) as error:
        rebuild_table(settings, "online_retail.online_retail")

    assert "'online_retail.online_retail' is no table that can be rebuilt" in str(error.value)
    for domain in domains():
        for dataset in domain.datasets:
            assert dataset.table in str(error.value)


@pytest.mark.parametrize(
    "table", [dataset.table for domain in domains() for dataset in domain.datasets]
)
def test_nothing_processed_is_nothing_to_rebuild(settings: Settings, table: str) -> None:
    with pytest.raises(PermanentError, match=r"holds nothing processed|was never built"):
        rebuild_table(settings, table)

    assert not settings.warehouse_path.exists()

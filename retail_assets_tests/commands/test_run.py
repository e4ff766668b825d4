"""Tests of retail_assets.commands.run, with a domain of the test's own."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from retail_assets import cli, definitions
from retail_assets.commands import run
from retail_assets.commands.run import (
    RunFailed,
    failures,
    quarantined_assets,
    rebuild_table,
    run_domain,
)
from retail_assets.commands.tables import one_line, print_outcomes
from retail_assets.defs.registry import domains
from retail_assets.domain import (
    REFUSED_PARTITIONS,
    Asked,
    Domain,
    Execution,
    MartsPlan,
    PlanError,
)
from retail_assets.errors import PermanentError
from retail_assets.losses import Quarantined, check_quarantine, quarantine_check_spec
from retail_assets.resources import waiting
from retail_assets.settings import Settings, load_settings

DROPS = dg.DynamicPartitionsDefinition(name="drops")
LANDED = dg.AssetKey(["shop", "landed"])
KEYS = ["1", "refused-a", "20", "bad", "300", "refused-b", "4000"]
LAST = ("4000", "4000")


@dg.asset(key=LANDED, partitions_def=DROPS, backfill_policy=dg.BackfillPolicy.single_run())
def landed(context: dg.AssetExecutionContext) -> Iterator[Any]:
    if "bad" in context.partition_keys:
        raise dg.Failure("bad: expected a drop, found none")
    refused = [key for key in context.partition_keys if key.startswith("refused")]
    rows = {
        key: {"dagster/partition_row_count": int(key)}
        for key in context.partition_keys
        if key not in refused
    }
    if refused:
        for key, told in rows.items():
            yield dg.AssetMaterialization(LANDED, metadata=told, partition=key)
        raise dg.Failure(
            f"{', '.join(refused)}: expected a drop, found another",
            metadata={REFUSED_PARTITIONS: refused},
        )
    print("printed by an asset")
    for key, told in rows.items():
        context.add_asset_metadata(told, partition_key=key)
    yield dg.MaterializeResult()


class Shop(Domain):
    """Drops that have to be registered with the instance before a range of them can run."""

    name = "shop"
    datasets = ()

    def __init__(self, *ranges: tuple[str, str] | None) -> None:
        self.ranges = ranges
        self.asked: Asked | None = None
        self.known: list[int] = []  # partitions that were there when each execution was planned

    def maker(self) -> Callable[[Settings], dg.Definitions]:
        raise NotImplementedError

    def resources(self, settings: Settings) -> dict[str, object]:
        return {}

    def prepare(self, settings: Settings) -> None:
        (settings.home / "prepared").mkdir(parents=True)

    def check(self, settings: Settings, asked: Asked) -> None:
        super().check(settings, asked)
        if asked.partitions and asked.partitions[0] < "2018-01-01":
            raise PlanError(f"{asked.partitions[0]} is too early")

    def plan(
        self, settings: Settings, asked: Asked, instance: Callable[[], dg.DagsterInstance]
    ) -> Iterator[Execution]:
        self.asked = asked
        if not self.ranges:
            raise PlanError("the lake has no drop")
        instance().add_dynamic_partitions("drops", KEYS)
        for found in self.ranges:
            self.known.append(len(materialized(settings)))
            yield Execution("shop_drops", found, rest=lambda: [Execution("shop_drops", LAST)])

    def plan_marts(self, warehouse: object) -> MartsPlan:
        raise NotImplementedError

    def count_rows(self, lake: object) -> dict[str, int]:
        return {}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home")


@pytest.fixture
def assets() -> list[dg.AssetsDefinition]:
    """What the definitions hold: the asset above, or what a test puts in its place."""
    return [landed]


@pytest.fixture
def started(
    monkeypatch: pytest.MonkeyPatch, assets: list[dg.AssetsDefinition]
) -> Iterator[list[str]]:
    """What was started ahead and ended; dbt is not, and the definitions are of ``assets``."""
    happened: list[str] = []

    def start_ahead(_: Settings, domain: Domain, running: Any) -> None:
        happened.append(domain.name)
        running.callback(happened.append, "ended")

    def build_defs(_: Settings, domains: Sequence[Domain]) -> dg.Definitions:
        assert [domain.name for domain in domains] == ["shop"]
        job = dg.define_asset_job("shop_drops", selection=assets)
        return dg.Definitions(assets=assets, jobs=[job], executor=dg.in_process_executor)

    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("DAGSTER_HOME", "")  # open_instance sets it: let it be as it was after
    monkeypatch.setenv("DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS", "1")
    monkeypatch.setattr(run, "start_ahead", start_ahead)
    monkeypatch.setattr(definitions, "build_defs", build_defs)
    return happened


def test_a_run_is_each_execution_that_the_domain_plans(
    settings: Settings, started: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(("20", "20"), ("1", "1"))

    outcomes = run_domain(settings, shop, Asked())

    assert [x.partitions for x in outcomes] == [("20", "20"), ("1", "1")]
    assert [[(a.key, a.rows, a.partitions) for a in x.assets] for x in outcomes] == [
        [("shop/landed", 20, 1)],
        [("shop/landed", 1, 1)],
    ]
    assert len({x.run_id for x in outcomes}) == 2
    assert shop.asked == Asked()
    assert started == ["shop", "ended"]
    log = (settings.home / "logs" / "shop.log").read_text()
    assert log.count("printed by an asset") == 2
    assert "printed by an asset" not in capfd.readouterr().out


def test_for_whom_a_run_waits_is_told_on_the_terminal_too(
    settings: Settings,
    started: list[str],
    assets: list[dg.AssetsDefinition],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(waiting, "_FIRST_TOLD_S", 0.0)

    @dg.asset(key=LANDED, partitions_def=DROPS, backfill_policy=dg.BackfillPolicy.single_run())
    def waits() -> None:
        waiting.Wait("the lake").tell(lambda: "run 1")

    assets[:] = [waits]

    run_domain(settings, Shop(("1", "1")), Asked())

    told = "waiting for the lake for 0 s; it is held by run 1"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(told)
    assert told in (settings.home / "logs" / "shop.log").read_text()


def test_a_failed_execution_is_the_last(settings: Settings, started: list[str]) -> None:
    with pytest.raises(RunFailed, match=r"shop__landed: bad: expected a drop, found none \(log"):
        run_domain(settings, Shop(("1", "1"), ("bad", "bad"), ("300", "300")), Asked())

    with dg.DagsterInstance.from_config(str(settings.instance_dir)) as instance:
        assert instance.get_materialized_partitions(LANDED) == {"1"}
    assert started == ["shop", "ended"]


def materialized(settings: Settings) -> set[str]:
    with dg.DagsterInstance.from_config(str(settings.instance_dir)) as instance:
        return set(instance.get_materialized_partitions(LANDED))


def test_partitions_that_are_refused_hold_back_no_others_and_fail_at_the_end(
    settings: Settings, started: list[str]
) -> None:
    shop = Shop(("refused-b", "refused-b"), ("1", "20"), ("300", "300"))

    outcomes = run_domain(settings, shop, Asked())

    # After each that refused some: what is then still to do.
    spans = [("refused-b", "refused-b"), LAST, ("1", "20"), LAST, ("300", "300")]
    assert [x.partitions for x in outcomes] == spans
    assert [a.rows for a in outcomes[2].assets] == [21]
    assert materialized(settings) == {"1", "20", "300", "4000"}
    (failure,) = failures(outcomes)
    assert failure.startswith(
        "shop__landed: refused-b: expected a drop, found another"
        " shop__landed: refused-a: expected a drop, found another (log: "
    )


def test_where_something_else_fails_the_run_ends(settings: Settings, started: list[str]) -> None:
    with pytest.raises(RunFailed, match=r"refused-b: .* bad: expected a drop, found none \(log"):
        run_domain(settings, Shop(("300", "refused-b"), ("bad", "bad"), ("1", "1")), Asked())

    assert materialized(settings) == {"300", "4000"}


def test_what_a_check_blocks_goes_no_further_with_refused_partitions(
    settings: Settings, started: list[str], assets: list[dg.AssetsDefinition]
) -> None:
    spec = dg.AssetCheckSpec("balances", asset=LANDED, blocking=True)

    @dg.asset(
        key=LANDED,
        partitions_def=DROPS,
        backfill_policy=dg.BackfillPolicy.single_run(),
        check_specs=[spec],
    )
    def unbalanced(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield dg.AssetMaterialization(LANDED, partition="1")
        yield dg.AssetCheckResult(passed=False, description="1 row is gone")
        raise dg.Failure("refused-a: another", metadata={REFUSED_PARTITIONS: ["refused-a"]})

    assets[:] = [unbalanced]

    with pytest.raises(RunFailed, match=r"balances: 1 row is gone\. refused-a: another"):
        run_domain(settings, Shop(("1", "refused-a")), Asked())

    assert materialized(settings) == {"1"}  # nothing was done after it


def test_what_was_asked_for_reaches_the_plan(settings: Settings, started: list[str]) -> None:
    shop = Shop(("1", "1"))

    asked = Asked(("2018-12-31", "2019-12-31"), allow_emptying=True)
    run_domain(settings, shop, asked)

    assert shop.asked == asked


def test_the_next_execution_is_planned_when_the_last_has_succeeded(
    settings: Settings, started: list[str]
) -> None:
    shop = Shop(("1", "1"), ("300", "300"))

    run_domain(settings, shop, Asked())

    assert shop.known == [0, 1]


def test_a_plan_that_fails_ends_what_was_started(settings: Settings, started: list[str]) -> None:
    with pytest.raises(PlanError, match="the lake has no drop"):
        run_domain(settings, Shop(), Asked())

    assert started == ["shop", "ended"]


def test_a_domain_without_a_topic_takes_no_stream(
    settings: Settings, started: list[str], tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=r"--stream is .*orders\.csv; shop has no topic"):
        run_domain(settings, Shop(("1", "1")), Asked(stream=tmp_path / "orders.csv"))

    assert started == []


BIRTHDAY = "birthday: expected a day"
DAYS = dg.StaticPartitionsDefinition(["1", "20", "300"])


@dg.asset(
    key=["shop", "typed"],
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=[quarantine_check_spec(dg.AssetKey(["shop", "typed"]))],
)
def typed(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Of the days 20 and 300, as many rows are quarantined, and one value is left out."""
    total = Quarantined()
    for key in context.partition_keys:
        found = Quarantined() if key == "1" else Quarantined(int(key), 1, f"{BIRTHDAY} {key}")
        rows = {"dagster/partition_row_count": 1000}
        context.add_asset_metadata(rows | found.metadata, partition_key=key)
        total += found
    return dg.MaterializeResult(check_results=[check_quarantine(context.asset_key, total)])


def checked(
    name: str, *, passed: bool, severity: dg.AssetCheckSeverity, blocking: bool = False
) -> dg.AssetsDefinition:
    """An asset with a check of that result, which says why."""
    spec = dg.AssetCheckSpec("is_well", asset=dg.AssetKey(["shop", name]), blocking=blocking)

    @dg.asset(key=["shop", name], check_specs=[spec])
    def asset() -> dg.MaterializeResult:  # type: ignore[type-arg]
        result = dg.AssetCheckResult(
            check_name="is_well",
            passed=passed,
            severity=severity,
            description="12 of 15 were\ndead letters",
        )
        return dg.MaterializeResult(check_results=[result])

    return asset


WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR


def command(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, shop: Shop
) -> tuple[int, list[str]]:
    """Exit code and last lines of ``retail-assets run``, from behind the table on."""
    monkeypatch.setattr(cli, "load_domain", lambda _: shop)
    monkeypatch.setenv("RETAIL_HOME", str(settings.home))
    done = CliRunner().invoke(cli.app, ["run", "shop"])
    assert isinstance(done.exception, SystemExit | None), done.exception
    *_, last = done.output.rpartition("┘")
    return done.exit_code, last.strip().splitlines()


def test_what_was_quarantined_is_told_by_table_over_partitions_and_runs(
    settings: Settings,
    started: list[str],
    assets: list[dg.AssetsDefinition],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assets[:] = [typed]

    outcomes = run_domain(settings, Shop(("1", "20"), ("300", "300")), Asked())

    assert quarantined_assets(outcomes) == {"shop/typed": Quarantined(320, 2, f"{BIRTHDAY} 20")}
    assert failures(outcomes) == []
    print_outcomes(outcomes, 1.0)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"quarantined: shop/typed: 320 rows, 2 values left out; {BIRTHDAY} 20",
        "1...20, 300...300, 0 checks passed, 2 warn, 1.0 s",
    ]


def test_a_quarantine_that_only_its_check_tells_is_told_as_a_warning(
    settings: Settings, started: list[str], assets: list[dg.AssetsDefinition]
) -> None:
    key = dg.AssetKey(["shop", "silent"])

    @dg.asset(key=key, check_specs=[quarantine_check_spec(key)])
    def telling() -> dg.MaterializeResult:  # type: ignore[type-arg]
        return dg.MaterializeResult(check_results=[check_quarantine(key, Quarantined(3))])

    assets[:] = [telling]

    (outcome,) = run_domain(settings, Shop(None), Asked())

    (warning,) = outcome.warnings
    assert warning.startswith("shop/silent: nothing_was_quarantined: 3 rows quarantined")


def test_a_warning_is_told_with_its_reason_and_passes(
    settings: Settings,
    started: list[str],
    assets: list[dg.AssetsDefinition],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assets[:] = [
        checked("good", passed=True, severity=ERROR),
        checked("odd", passed=False, severity=WARN),
    ]

    code, lines = command(monkeypatch, settings, Shop(None))

    assert code == 0
    assert lines[0] == "warning: shop/odd: is_well: 12 of 15 were dead letters"
    assert lines[1].startswith("1 checks passed, 1 warn, ")
    assert len(lines) == 2


def test_a_failed_check_that_blocks_nothing_fails_the_run_once_all_has_run(
    settings: Settings,
    started: list[str],
    assets: list[dg.AssetsDefinition],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @dg.asset(key=["shop", "behind"], deps=[["shop", "bad"]])
    def behind() -> None: ...

    assets[:] = [checked("bad", passed=False, severity=ERROR), behind]

    code, lines = command(monkeypatch, settings, Shop(None, None))

    assert code == 1
    failure = "error: shop/bad: is_well: 12 of 15 were dead letters"
    assert lines[0].startswith("0 checks passed, 2 failed, ")
    assert lines[1:] == [failure, failure]  # the second execution ran too
    with dg.DagsterInstance.from_config(str(settings.instance_dir)) as instance:
        assert instance.get_latest_materialization_event(behind.key) is not None


def test_a_failed_check_that_blocks_is_told_with_its_reason_alone(
    settings: Settings, started: list[str], assets: list[dg.AssetsDefinition]
) -> None:
    assets[:] = [
        checked("bad", passed=False, severity=ERROR, blocking=True),
        checked("odd", passed=False, severity=WARN),
    ]

    with pytest.raises(RunFailed) as failed:
        run_domain(settings, Shop(None), Asked())

    message = str(failed.value)
    assert message.startswith(
        "shop__bad: check failed: shop/bad: is_well: 12 of 15 were dead letters. "
    )
    assert "shop/odd" not in message  # it warns: it is no reason


@pytest.mark.parametrize("rows", [0, 1])
def test_a_run_whose_every_row_is_quarantined_fails(
    settings: Settings,
    started: list[str],
    assets: list[dg.AssetsDefinition],
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
) -> None:
    @dg.asset(key=["shop", "messages"])
    def messages() -> dg.MaterializeResult:  # type: ignore[type-arg]
        found = Quarantined(15, 0, "Sales: expected a number, found 'x'", "messages")
        return dg.MaterializeResult(metadata={"rows_landed": rows, **found.metadata})

    assets[:] = [messages]

    code, lines = command(monkeypatch, settings, Shop(None))

    told = "15 messages; Sales: expected a number, found 'x'"
    assert lines[0] == f"quarantined: shop/messages: {told}"
    assert lines[2:] == (
        []
        if rows
        else [
            "error: shop/messages: all 15 messages were quarantined;"
            " Sales: expected a number, found 'x'"
        ]
    )
    assert code == (0 if rows else 1)


def test_what_a_step_did_in_vain_is_not_counted(
    settings: Settings, started: list[str], assets: list[dg.AssetsDefinition]
) -> None:
    tried: list[int] = []
    keys = [dg.AssetKey(["shop", "first"]), dg.AssetKey(["shop", "second"])]

    @dg.multi_asset(
        specs=[dg.AssetSpec(key) for key in keys],
        check_specs=[quarantine_check_spec(keys[0])],
        retry_policy=dg.RetryPolicy(max_retries=1),
    )
    def both() -> Iterator[Any]:
        tried.append(1)
        found = Quarantined(5, 0, "why")
        result = check_quarantine(keys[0], found)
        yield dg.MaterializeResult(
            asset_key=keys[0],
            metadata={"dagster/row_count": 7, **found.metadata},
            check_results=[result],
        )
        if len(tried) == 1:
            raise ValueError("away")
        yield dg.MaterializeResult(asset_key=keys[1])

    assets[:] = [both]

    outcomes = run_domain(settings, Shop(None), Asked())

    assert len(tried) == 2
    assert quarantined_assets(outcomes) == {"shop/first": Quarantined(5, 0, "why")}
    assert [(x.key, x.rows) for x in outcomes[0].assets] == [
        ("shop/first", 7),
        ("shop/second", None),
    ]
    assert outcomes[0].checks_warned == 1


@given(text=st.text(max_size=2000))
def test_a_text_of_others_takes_one_line_and_commands_no_terminal(text: str) -> None:
    line = one_line(f"error: {text}")

    assert line.startswith("error:")
    assert line.isprintable()
    assert len(line) < 320


def test_what_cannot_be_is_refused_before_anything_starts(
    settings: Settings, started: list[str]
) -> None:
    with pytest.raises(PlanError, match="2017-12-31 is too early"):
        run_domain(settings, Shop(("1", "1")), Asked(("2017-12-31", "2017-12-31")))

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

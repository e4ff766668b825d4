"""Tests of retail_assets.defs.operations: the sensors, over real runs of a real instance."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster import AssetCheckSeverity as Severity

from retail_assets.commands.doctor import examine
from retail_assets.commands.health import Sign, look, tell
from retail_assets.defs.operations import build_defs, look_and_tell
from retail_assets.defs.operations.conditions import Conditions
from retail_assets.defs.operations.runs import RunWatch
from retail_assets.domain import range_tags
from retail_assets.errors import PermanentError, failures_by_kind
from retail_assets.feeds.requests import REQUEST_TAG, Request, note_given_up, requests_for
from retail_assets.resources.notify import Fault, open_outbox
from retail_assets.resources.notify.outbox import Message
from retail_assets.runs import PERMANENT_FAILURE_TAG, PROCESS_TAG, code_version, process_tags
from retail_assets.settings import Settings, load_settings
from retail_assets_tests.resources.alert_servers import alert_server

D1, D2, D3 = "2011-04-01", "2011-04-02", "2011-04-03"
FAILURE = dg.DagsterRunStatus.FAILURE
NOBODY = "http://127.0.0.1:1"
RUNS, GRACE = "retail_assets.defs.operations.runs", "retail_assets.resources.notify.outbox._GRACE_S"


class Toggles(dg.ConfigurableResource):
    """What fails: a name, and how."""

    def of(self, name: str) -> str:
        return os.environ.get(f"FAULT_{name}", "")


@dg.asset(
    key=["shop", "sales"],
    partitions_def=dg.StaticPartitionsDefinition([D1, D2, D3]),
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def sales(context: dg.AssetExecutionContext, faults: Toggles) -> None:
    if faults.of("sales") == "ours":
        with failures_by_kind(0):
            raise PermanentError("a.csv: expected a header, found none. Deliver it again.")
    if faults.of("sales"):
        raise ValueError("invalid value 'Jane O'Hara' of jane@example.com")


@dg.asset(key=["shop", "marts"], deps=[sales])
def marts(faults: Toggles) -> None:
    if faults.of("marts"):
        raise OSError(28, "No space left on device")


@dg.asset_check(asset=sales)
def nothing_was_quarantined(faults: Toggles) -> dg.AssetCheckResult:
    found = faults.of("quarantine")
    return dg.AssetCheckResult(passed=not found, severity=Severity.WARN, description=found)


@dg.asset_check(asset=marts, blocking=True)
def ledger_balances(faults: Toggles) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=not faults.of("ledger"), description="read 3, written 2")


@dg.op
def prune_nothing() -> None:
    if os.environ.get("FAULT_PRUNE"):
        raise PermanentError("nothing can be pruned")


@dg.job
def prune() -> None:
    prune_nothing()


DEFS = dg.Definitions(
    assets=[sales, marts],
    asset_checks=[nothing_was_quarantined, ledger_balances],
    jobs=[dg.define_asset_job("everything"), prune],
    resources={"faults": Toggles()},
)


class House:
    """An instance in a home, and what was told so far."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.settings = settings
        self.instance = instance
        self.seen = 0

    def run(
        self,
        *assets: str,
        job: str = "everything",
        tags: Mapping[str, str] | None = None,
        **of: Any,
    ) -> dg.DagsterRun:
        """Run assets of the shop, or a job."""
        result = DEFS.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            raise_on_error=False,
            asset_selection=[dg.AssetKey(["shop", name]) for name in assets] or None,
            tags=dict(tags or {}),
            **of,
        )
        return result.dagster_run

    def look(self) -> list[str]:
        """The titles that one look tells."""
        look_and_tell(self.settings, self.instance, ["shop"])
        found = self.messages()[self.seen :]
        self.seen += len(found)
        return [message.title for message in found]

    def messages(self) -> list[Message]:
        with open_outbox(self.settings) as outbox:
            return outbox.messages()

    def faults(self) -> dict[str, Fault]:
        with open_outbox(self.settings) as outbox:
            return outbox.faults()


@pytest.fixture(scope="module")
def new_instance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instance's folder with its tables, which take a second to make: to be copied."""
    folder = tmp_path_factory.mktemp("instance")
    with dg.DagsterInstance.local_temp(str(folder)) as instance:
        instance.get_runs(limit=1)
        instance.all_instigator_state()
        instance.fetch_run_status_changes(dg.DagsterEventType.RUN_FAILURE, limit=1)
    return folder


@pytest.fixture
def settings(tmp_path: Path, new_instance: Path) -> Settings:
    shutil.copytree(new_instance, tmp_path / "dagster")
    return load_settings(home=tmp_path, ui_url="https://retail.example.com", least_free_bytes=0)


@pytest.fixture
def house(settings: Settings) -> Iterator[House]:
    with dg.DagsterInstance.local_temp(str(settings.instance_dir)) as instance:
        found = House(settings, instance)
        assert found.look() == []
        yield found


def operations(settings: Settings) -> dict[str, dg.SensorDefinition]:
    sensors = build_defs(settings, []).sensors or ()
    return {x.name: x for x in sensors if isinstance(x, dg.SensorDefinition)}


def test_the_sensor_fails_runs_whose_process_is_gone_and_says_so(
    settings: Settings, house: House
) -> None:
    sensor = operations(settings)["lost_runs_sensor"]
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    instance = house.instance

    def add(run_id: str, tags: dict[str, str]) -> None:
        started = dg.DagsterRunStatus.STARTED
        instance.add_run(dg.DagsterRun("job", run_id=run_id, tags=tags, status=started))

    def look() -> str | None:
        with dg.build_sensor_context(instance) as context:
            return sensor.evaluate_tick(context).skip_message

    add("alive", process_tags("alive"))
    assert look() == "every run in progress has its process"

    _, pid, _, host = process_tags("killed")[PROCESS_TAG].split(" ", 3)
    add("killed", {PROCESS_TAG: f"killed {pid} earlier {host}"})
    told = look()

    assert told is not None and told.startswith("failed killed: The process of this run (")
    statuses = {run.run_id: run.status for run in instance.get_runs()}
    assert statuses == {"alive": dg.DagsterRunStatus.STARTED, "killed": FAILURE}
    assert house.look() == ["run failed: job job"]
    assert "cause: " in house.messages()[0].body and "is gone" in house.messages()[0].body


def test_a_failed_run_is_told_once_counted_and_told_to_be_well(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{RUNS}._MOST_RUNS", 1)  # of a range of many days it is the last
    monkeypatch.setenv("FAULT_sales", "ours")
    run = house.run("sales", partition_key=D1)
    assert house.look() == [f"run failed: shop/sales, {D1}"]
    body = house.messages()[0].body
    assert "cause: a.csv: expected a header, found none. Deliver it again.\n" in body
    assert f"see: https://retail.example.com/runs/{run.run_id}" in body

    house.run("sales", partition_key=D1)
    assert house.look() == []
    (fault,) = house.faults().values()
    assert fault.times == 2

    monkeypatch.setenv("FAULT_sales", "")
    house.run("sales", partition_key=D2)
    assert house.look() == []
    house.run("sales", tags=range_tags(D1, D3))
    assert house.look() == [f"well again: run failed: shop/sales, {D1}"]


def test_what_a_library_quotes_is_not_told(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULT_sales", "a library's")
    house.run("sales", tags=range_tags(D1, D2))
    assert house.look() == [f"run failed: shop/sales, {D1}...{D2}"]
    body = house.messages()[0].body
    assert "cause: ValueError: invalid value ***" in body
    assert "Jane" not in body and "jane" not in body and "Hara" not in body


def test_a_job_without_assets_is_well_when_it_succeeds(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT_PRUNE", "1")
    house.run(job="prune")
    assert house.look() == ["run failed: job prune"]
    monkeypatch.setenv("FAULT_PRUNE", "")
    house.run(job="prune")
    assert house.look() == ["well again: run failed: job prune"]


def test_checks_are_told_by_what_they_mean(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULT_quarantine", "3 rows quarantined; date: expected a day")
    house.run("sales", partition_key=D1)
    warned = f"check warns: shop/sales: nothing_was_quarantined, {D1}"
    assert house.look() == [warned]
    assert "cause: 3 rows quarantined; date: expected a day\n" in house.messages()[0].body

    monkeypatch.setenv("FAULT_quarantine", "")
    house.run("sales", partition_key=D2)  # says nothing on the rows of the first
    assert house.look() == []
    house.run("sales", partition_key=D1)
    assert house.look() == [f"well again: {warned}"]

    # A check that blocks: its run has failed by it alone, and is not told beside it.
    monkeypatch.setenv("FAULT_ledger", "1")
    house.run("marts")
    assert house.look() == ["check failed: shop/marts: ledger_balances"]
    monkeypatch.setenv("FAULT_ledger", "")
    house.run("marts")
    assert house.look() == ["well again: check failed: shop/marts: ledger_balances"]


def test_a_check_that_no_run_made_is_told(house: House) -> None:
    def report(passed: bool) -> None:
        key = dg.AssetKey(["shop", "marts"])
        evaluation = dg.AssetCheckEvaluation(
            key, "is_fresh", passed, {}, description="landed until 2011-04-04, marts of 2011-03-30"
        )
        house.instance.report_runless_asset_event(evaluation)

    report(False)
    report(True)
    report(False)
    told = "check failed: shop/marts: is_fresh"
    with open_outbox(house.settings) as outbox:  # two daemons, by mistake, see the same
        looks = [RunWatch(house.settings, house.instance, outbox, ["shop"]) for _ in range(2)]
        for one in looks:
            one.look()
        for one in looks:
            with outbox.transaction():
                one.keep()
    assert house.look() == [told, f"well again: {told}", told]


def test_a_run_that_dagster_runs_again_is_told_when_that_is_over(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT_marts", "1")
    tags = {"dagster/will_retry": "true"}
    first = house.run("marts", tags=tags)
    assert house.look() == []
    house.instance.add_run_tags(first.run_id, {"dagster/auto_retry_run_id": "another"})
    assert house.look() == []
    house.run("marts", tags={"dagster/will_retry": "false"})
    assert house.look() == ["run failed: shop/marts"]
    assert "cause: OSError: [Errno 28] No space left on device" in house.messages()[0].body

    house.run("marts", tags=tags)  # and nobody does
    assert house.look() == []
    monkeypatch.setattr(f"{RUNS}._PATIENCE_S", 0.0)
    house.look()
    assert next(iter(house.faults().values())).times == 2


def ask(house: House, *identities: str) -> int:
    """What a sensor does: requests for what is wanted, and a note on what it gave up."""
    wanted = [Request(x, "everything", ()) for x in identities]
    requests, reasons = requests_for(lambda: wanted, house.instance)
    note_given_up(house.instance, "shop", {"arrivals": reasons})
    return len(requests)


@pytest.mark.parametrize(("fault", "runs"), [("ours", 1), ("a library's", 3)])
def test_a_request_is_told_when_it_is_given_up(
    house: House, monkeypatch: pytest.MonkeyPatch, fault: str, runs: int
) -> None:
    monkeypatch.setenv("FAULT_sales", fault)
    for _ in range(runs):
        assert ask(house, "drop:1") == 1
        run_id = house.run("sales", partition_key=D1, tags={REQUEST_TAG: "drop:1"}).run_id
        assert house.look() == []
    if runs == 1:  # as the executor of a launched run notes
        why = f"{run_id} {code_version()} a.csv: expected a header"
        house.instance.add_run_tags(run_id, {PERMANENT_FAILURE_TAG: why})
    assert ask(house, "drop:1") == 0
    assert house.look() == [f"request given up: shop/sales, {D1}"]
    body = house.messages()[0].body
    assert "/runs/" in body and ("a.csv: expected a header" in body) is (fault == "ours")
    assert ("It failed 3 times: mend its cause and run it by hand" in body) is (runs == 3)
    ask(house, "drop:1")
    assert house.look() == []

    # Delivered again with other bytes, it is another request.
    monkeypatch.setenv("FAULT_sales", "")
    monkeypatch.setattr(GRACE, 0.0)
    assert ask(house, "drop:2") == 1
    assert house.run("sales", partition_key=D1, tags={REQUEST_TAG: "drop:2"}).is_success
    assert house.look() == [f"well again: request given up: shop/sales, {D1}"]


def test_a_request_that_nobody_asks_for_again_is_told_after_a_while(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT_sales", "a library's")
    house.run("sales", partition_key=D1, tags={REQUEST_TAG: "drop:1"})
    house.run("sales", partition_key=D2, tags={REQUEST_TAG: "drop:2"})
    assert house.look() == []
    monkeypatch.setenv("FAULT_sales", "")
    house.run("sales", partition_key=D2)  # by hand
    # Nor does a clock that is set back make it wait.
    set_back = SimpleNamespace(time=lambda: time.time() - 3600)
    monkeypatch.setattr(f"{RUNS}.time", set_back)
    assert house.look() == [f"run failed: shop/sales, {D1}"]


def test_a_request_that_is_done_and_wanted_for_ever_is_told(house: House) -> None:
    for _ in range(3):
        house.run("sales", partition_key=D1, tags={REQUEST_TAG: "drop:1"})
    assert ask(house, "drop:1") == 0
    assert house.look() == ["request given up: drop:1"]
    assert "was done 3 times and is still wanted" in house.messages()[0].body


def test_what_happened_while_nobody_looked_is_told_and_history_is_not(
    settings: Settings, new_instance: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT_marts", "1")
    with dg.DagsterInstance.local_temp(str(settings.instance_dir)) as instance:
        house = House(settings, instance)
        house.run("marts")
        assert house.look() == []
        house.run("marts")
        assert house.look() == ["run failed: shop/marts"]
        key = dg.AssetKey(["shop", "marts"])
        for _ in range(3):
            instance.report_runless_asset_event(dg.AssetCheckEvaluation(key, "is_fresh", True, {}))
        assert house.look() == []
    # Another instance in its place begins to count anew.
    shutil.copytree(new_instance, settings.home / "another")
    with dg.DagsterInstance.local_temp(str(settings.home / "another")) as instance:
        anew = House(settings, instance)
        anew.run("sales", partition_key=D1)
        anew.seen = 1
        assert anew.look() == []
        instance.report_runless_asset_event(dg.AssetCheckEvaluation(key, "is_fresh", False, {}))
        assert anew.look() == ["check failed: shop/marts: is_fresh"]
        monkeypatch.setenv("FAULT_marts", "")
        anew.run("marts")
        assert anew.look() == ["well again: run failed: shop/marts"]


# ---- what is at fault for as long as it is so


CODE = """
import dagster as dg
from pathlib import Path

@dg.sensor(
    job_name="j", minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING
)
def source_sensor(context):
    if Path(__file__).with_name("broken").exists():
        raise ValueError("cannot read 'Jane'")
    return dg.SkipReason("nothing")

@dg.job
def j(): ...

defs = dg.Definitions(jobs=[j], sensors=[source_sensor])
"""


def test_ticks_that_fail_and_daemons_that_die_are_told(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a real daemon over a home of its own."""
    code = tmp_path / "code.py"
    code.write_text(CODE)
    (tmp_path / "broken").touch()
    namespace: dict[str, Any] = {"__file__": str(code)}
    exec(CODE, namespace)
    repository = namespace["defs"].get_repository_def()
    daemon = subprocess.Popen(
        [str(Path(sys.executable).with_name("dagster-daemon")), "run", "-f", str(code)],
        env=os.environ | {"DAGSTER_HOME": str(settings.instance_dir)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        with dg.DagsterInstance.from_config(str(settings.instance_dir)) as instance:
            conditions = Conditions(settings, instance)

            def ticks(until: int) -> list[str]:
                end = time.monotonic() + 60
                found: list[str] | None = None
                while found is None or len(found) != until:
                    assert time.monotonic() < end
                    time.sleep(0.2)
                    found = [x.body() for x in conditions.find(repository)["tick:"]]
                return found

            (told,) = ticks(until=1)
            assert "what: sensor source_sensor\ncause: ValueError: cannot read ***\n" in told
            assert "/locations/__repository__@code.py/sensors/source_sensor" in told
            (tmp_path / "broken").unlink()
            ticks(until=0)

            house = House(settings, instance)
            monkeypatch.setenv("DAGSTER_HOME", "")  # which `tell` sets
            tell(settings, [Sign("webserver", True, "there")])
            assert house.messages() == []
            daemon.kill()
            daemon.wait()
            with monkeypatch.context() as patch:
                patch.setattr("retail_assets.defs.operations.conditions.LONGEST_SILENCE_S", 0.0)
                for _ in range(2):
                    tell(settings, look(NOBODY))
            told = [message.title for message in house.messages()]
            down = {"not running: daemon SENSOR", "not running: webserver"}
            assert down <= {*told} and len({*told}) == len(told)
            assert "not running: code location" not in told  # nobody knows
            monkeypatch.setattr(GRACE, 0.0)
            tell(settings, [Sign("webserver", True, "there")])
            assert {f"well again: {x}" for x in down} <= {x.title for x in house.messages()}
    finally:
        daemon.kill()
        daemon.wait()


def test_a_storage_that_is_away_is_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    (settings.instance_dir / "dagster.yaml").write_text("storage: {no_such: {}}")
    tell(settings, look(NOBODY))
    with open_outbox(settings) as outbox:
        titles = [message.title for message in outbox.messages()]
    assert titles == ["not running: Dagster's storage", "not running: webserver"]


def test_an_asset_later_than_its_policy_is_told(settings: Settings) -> None:
    policy = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=1))
    specs = [dg.AssetSpec(["shop", name], freshness_policy=policy) for name in ("marts", "sales")]
    repository = dg.Definitions(assets=specs).get_repository_def()
    freshness = sys.modules[dg.FreshnessPolicy.__module__]
    with dg.DagsterInstance.local_temp(str(settings.instance_dir)) as instance:
        conditions = Conditions(settings, instance)

        def becomes(state: str, spec: dg.AssetSpec) -> list[str]:
            # The event that the freshness daemon reports, which judges once a minute at most.
            change = freshness.FreshnessStateChange(
                key=spec.key,
                new_state=freshness.FreshnessState(state),
                previous_state=freshness.FreshnessState.UNKNOWN,
                state_change_timestamp=time.time(),
            )
            instance.report_runless_asset_event(change)
            return [alert.title for alert in conditions.find(repository)["late:"]]

        assert conditions.find(repository)["late:"] == []
        assert becomes("FAIL", specs[1]) == ["asset is late: shop/sales"]
        assert becomes("FAIL", specs[0]) == ["asset is late: shop/marts, shop/sales"]
        assert [becomes("PASS", spec) for spec in specs][-1] == []


def test_a_disk_that_is_almost_full_is_told_once(settings: Settings, house: House) -> None:
    full = settings.model_copy(update={"least_free_bytes": 2**60})
    (alert,) = Conditions(full, house.instance).find(None)["disk:"]
    assert alert.subject == str(settings.home)
    told = "GiB free, expected 1073741824.0 at least (RETAIL_LEAST_FREE_BYTES)"
    (home,) = islice((x for x in examine(full) if x.system == "home"), 1)
    assert told in alert.cause and told in home.found and not home.ok


def test_the_sensor_tells_a_server_and_survives_it(
    settings: Settings, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that is down delays no tick and loses none."""
    with alert_server() as server:
        told = settings.model_copy(update={"notify": load_settings(notify=server.address).notify})
        server.stop()
        sensor = operations(told)["alerts_sensor"]
        assert sensor.default_status is dg.DefaultSensorStatus.RUNNING

        def tick() -> str | None:
            with dg.build_sensor_context(house.instance, definitions=DEFS) as context:
                return sensor.evaluate_tick(context).skip_message

        tick()
        monkeypatch.setenv("FAULT_marts", "1")
        house.run("marts")
        began = time.monotonic()
        assert "1 at fault, 1 wait for 1. json (A Connection error" in str(tick())
        assert time.monotonic() - began < 5
        server.start()
        monkeypatch.setattr("retail_assets.resources.notify.sending._LONGEST_WAIT_S", 0.0)
        assert tick() == "1 at fault"
    assert server.titles == ["run failed: shop/marts"]
    assert server.taken[0]["type"] == "failure"

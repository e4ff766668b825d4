"""Online retail's contestants: what is prepared for each, how it runs, what they must agree on.

Here: homes, commands, the order of runs, the comparison of tables. Not here: what a run costs
before it works (overhead.py), what a day costs among many (online_days.py), the baseline's SQL
(bare_duckdb.py), printing (report.py).
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retail_assets.defs.online_retail.contract import DOMAIN, ONLINE_RETAIL_DATA
from retail_assets.resources.lake.folder import LocalLake
from retail_assets_tests.benchmarks import bare_duckdb, online_days
from retail_assets_tests.benchmarks.inputs import Source, write_tenfold, write_xlsx
from retail_assets_tests.benchmarks.measure import (
    Measurement,
    child_environment,
    run,
    tail_of,
)
from retail_assets_tests.benchmarks.tables import (
    BIN,
    TablesDiffer,
    code_state,
    compile_models,
    describe_tables,
    differences,
    module_command,
)

BARE, PRODUCT, START_UP, RECORDING = "bare", "product", "start_up", "start_up_and_recording"
BARE_TENFOLD, PRODUCT_TENFOLD, PRODUCT_XLSX = "bare_tenfold", "product_tenfold", "product_xlsx"
SERIAL, SERIAL_TENFOLD = "product_serial", "product_serial_tenfold"
DEFINITIONS, DAYS = "definitions", "days"

SCENARIOS = ("real", "tenfold", "xlsx", "definitions", "days")


@dataclass
class Results:
    """What was measured, and what the contestants' tables were."""

    measurements: dict[str, list[Measurement]] = field(default_factory=dict)
    tables_equal: dict[str, bool] = field(default_factory=dict)
    differences: dict[str, list[str]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    partitions: dict[str, int] = field(default_factory=dict)
    days: int = 0
    days_told: list[list[online_days.Told]] = field(default_factory=list)
    offending_modules: list[str] = field(default_factory=list)
    code_changed: bool = False


class Bench:
    """One benchmark below a scratch folder: prepare once, then measure in turns."""

    def __init__(
        self, scratch: Path, source: Source, scenarios: Sequence[str], say: Callable[[str], None]
    ) -> None:
        self._scratch = scratch
        self._source = source
        self._scenarios = scenarios
        self._say = say
        self._home = scratch / "home"
        self._template = scratch / "template"
        self._events = scratch / "events.pickle"
        self._models = scratch / "models.json"
        self._inputs: dict[str, Path] = {"real": source.path}
        self.results = Results()

    def prepare(self) -> None:
        """All that is not measured: inputs, a warm home, a recorded run, dbt's compiled SQL."""
        self._write_inputs()
        self._say("preparing: the home (dbt parsed, Dagster's instance made), one run of each")
        self._quietly([str(BIN / "retail-assets"), "status"], "status")
        shutil.move(self._home, self._template)
        if not {"real", "tenfold", "xlsx"} & set(self._scenarios):
            return
        self._run_product("real")
        self._quietly(module_command("overhead", "record", self._events), "record")
        self._compile_models()
        self._run_bare("real")
        self._compare("real")
        for mode in ("none", "partitions"):
            self._run_overhead(mode)

    def measure(self, repeat: int) -> None:
        """Every contestant ``repeat`` times, in turns, so that noise meets all alike.

        Raises:
            TablesDiffer: see ``Results.differences``.
        """
        contestants = self._contestants()
        before = code_state()
        for turn in range(1, repeat + 1):
            for name, contestant in contestants.items():
                measured = contestant()
                self.results.measurements.setdefault(name, []).append(measured)
                self._say(
                    f"{turn}/{repeat} {name}: {measured.wall_s:.2f} s wall,"
                    f" {measured.cpu_s:.2f} s CPU, {measured.peak_mib:.0f} MiB"
                )
                if turn == 1:
                    self._compare_after(name)
        self.results.code_changed = code_state() != before
        if not all(self.results.tables_equal.values()):
            raise TablesDiffer(json.dumps(self.results.differences, indent=1))

    def product_command(self) -> list[str]:
        """The command that users run."""
        return [str(BIN / "retail-assets"), "run", "online_retail"]

    def fresh_environment(self, scenario: str = "real") -> dict[str, str]:
        """A fresh home from the template, and the environment of a run in it."""
        shutil.rmtree(self._home, ignore_errors=True)
        shutil.copytree(self._template, self._home)
        return self._environment(scenario)

    def _contestants(self) -> dict[str, Callable[[], Measurement]]:
        chosen: dict[str, Callable[[], Measurement]] = {}
        if "real" in self._scenarios:
            chosen[BARE] = lambda: self._run_bare("real")
            chosen[PRODUCT] = lambda: self._run_product("real")
            chosen[SERIAL] = lambda: self._run_product("real", serial=True)
        if {"real", "tenfold", "xlsx"} & set(self._scenarios):
            chosen[START_UP] = lambda: self._run_overhead("none")
            chosen[RECORDING] = lambda: self._run_overhead("partitions")
        if "tenfold" in self._scenarios:
            chosen[BARE_TENFOLD] = lambda: self._run_bare("tenfold")
            chosen[PRODUCT_TENFOLD] = lambda: self._run_product("tenfold")
            chosen[SERIAL_TENFOLD] = lambda: self._run_product("tenfold", serial=True)
        if "xlsx" in self._scenarios:
            chosen[PRODUCT_XLSX] = lambda: self._run_product("xlsx")
        if "definitions" in self._scenarios:
            chosen[DEFINITIONS] = self._run_definitions
        if "days" in self._scenarios:
            chosen[DAYS] = self._run_days
        return chosen

    def _write_inputs(self) -> None:
        if "tenfold" in self._scenarios:
            self._inputs["tenfold"] = self._scratch / "tenfold.csv.gz"
            rows = write_tenfold(self._source.path, self._inputs["tenfold"])
            self._say(f"preparing: tenfold.csv.gz, {rows:,} rows")
        if "xlsx" in self._scenarios:
            self._inputs["xlsx"] = self._scratch / "online_retail.xlsx"
            rows = write_xlsx(self._source.path, self._inputs["xlsx"])
            self._say(f"preparing: online_retail.xlsx, {rows:,} rows")

    def _environment(self, scenario: str = "real") -> dict[str, str]:
        return child_environment(
            RETAIL_HOME=str(self._home),
            RETAIL_ONLINE_RETAIL_SOURCE=str(self._inputs[scenario]),
            COLUMNS="200",
        )

    def _quietly(self, command: Sequence[str], name: str) -> None:
        run(command, self._environment(), self._scratch / f"{name}.log")

    def _run_product(self, scenario: str, *, serial: bool = False) -> Measurement:
        environment = self.fresh_environment(scenario)
        command = module_command("overhead", "serial") if serial else self.product_command()
        return run(command, environment, self._scratch / "product.log")

    def _run_bare(self, scenario: str) -> Measurement:
        folder = self._bare_folder(scenario)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = module_command("bare_duckdb", self._inputs[scenario], folder, self._models)
        return run(command, child_environment(), self._scratch / "bare.log")

    def _run_overhead(self, mode: str) -> Measurement:
        environment = self.fresh_environment()
        command = module_command("overhead", mode, self._events)
        return run(command, environment, self._scratch / "overhead.log")

    def _run_definitions(self) -> Measurement:
        log = self._scratch / "definitions.log"
        measured = run(module_command("load_definitions"), self.fresh_environment(), log)
        self.results.offending_modules = json.loads(tail_of(log).strip().splitlines()[-1])
        return measured

    def _run_days(self) -> Measurement:
        folder, log = self._scratch / "days", self._scratch / "days.log"
        shutil.rmtree(folder, ignore_errors=True)
        measured = run(module_command("online_days", folder), self._environment(), log)
        told = json.loads(tail_of(log).strip().splitlines()[-1])
        self.results.days_told.append([online_days.Told(**one) for one in told])
        return measured

    def _bare_folder(self, scenario: str) -> Path:
        return self._scratch / "bare" / ("real" if scenario == "xlsx" else scenario)

    def _compile_models(self) -> None:
        """Have dbt compile its models as for a first run; the baseline executes that SQL."""
        database = self._scratch / bare_duckdb.DATABASE
        models = compile_models(DOMAIN, database, self._environment(), self._scratch)
        self._models.write_text(json.dumps(models))

    def _compare_after(self, name: str) -> None:
        scenario = {PRODUCT: "real", PRODUCT_TENFOLD: "tenfold", PRODUCT_XLSX: "xlsx"}.get(name)
        if scenario is not None:
            self._compare(scenario)

    def _compare(self, scenario: str) -> None:
        folder = self._bare_folder(scenario)
        table = LocalLake(root=str(self._home / "lake")).table(ONLINE_RETAIL_DATA).snapshot()
        files = [
            len(table.filled()),
            len({file.parent for file in (folder / bare_duckdb.PARTITIONS).glob("*/*.parquet")}),
        ]
        product, bare = (
            describe_tables(path)
            for path in (self._home / "warehouse.duckdb", folder / bare_duckdb.DATABASE)
        )
        found = differences(product, bare)
        if files[0] != files[1]:
            found.append(f"Parquet partitions: product {files[0]}, bare {files[1]}")
        self.results.differences[scenario] = found
        self.results.tables_equal[scenario] = not found
        self.results.rows[scenario] = bare[ONLINE_RETAIL_DATA.table]["rows"]
        self.results.partitions[scenario] = files[0]
        self.results.days = len(table.ledgers)

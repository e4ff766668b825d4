"""The coffee chain's contestants: what is prepared for each, how it runs, what they must agree on.

Here: homes, commands, the order of runs, the comparison of tables. Not here: the contestants
themselves (bare_coffee.py, jvm_coffee.py), the sensor's tick (coffee_tick.py), printing
(coffee_report.py).
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from retail_assets.defs.coffee_chain.contract import (
    CUSTOMER,
    DOMAIN,
    RAW_CUSTOMER,
    RAW_SALES,
    SALES,
    WAREHOUSE,
)
from retail_assets.defs.coffee_chain.sample import SampleCounts, write_sample
from retail_assets_tests.benchmarks import bare_coffee
from retail_assets_tests.benchmarks.inputs import coffee_customers, drop_nearest_to_average
from retail_assets_tests.benchmarks.measure import Measurement, child_environment, run, tail_of
from retail_assets_tests.benchmarks.tables import (
    BIN,
    TablesDiffer,
    code_state,
    compile_models,
    describe_tables,
    differences,
    module_command,
)

BARE, PRODUCT, JVM = "coffee_bare", "coffee_product", "coffee_jvm"
COLD, TICK = "coffee_product_cold", "coffee_tick"
# A further drop: one that comes late, after others of later dates, and the one of the last date.
LATE, NEWEST = "coffee_drop", "coffee_newest_drop"
FURTHER = (LATE, NEWEST)
FEW = "coffee_few_lines"
LAKE, LOAD, MARTS = "lake", "load", "marts"

SCENARIOS = ("coffee", "coffee_drop", "coffee_tick")
SALES_LINES, DROPS, SEED = 10_700_000, 10, 7
TICK_FILES = 100_000
_TINY_LINES = 5_000


@dataclass
class Results:
    """What was measured, and what the contestants' tables were.

    ``stages`` are seconds by contestant, run and stage; ``further_drops`` are dates by contestant;
    ``tick`` is what coffee_tick.py says.
    """

    measurements: dict[str, list[Measurement]] = field(default_factory=dict)
    stages: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    differences: dict[str, list[str]] = field(default_factory=dict)
    tick: dict[str, Any] = field(default_factory=dict)
    sample: SampleCounts | None = None
    further_drops: dict[str, str] = field(default_factory=dict)
    has_java: bool = True
    code_changed: bool = False


class Bench:
    """One benchmark below a scratch folder: prepare once, then measure in turns."""

    def __init__(
        self,
        scratch: Path,
        scenarios: Sequence[str],
        say: Callable[[str], None],
        *,
        sales: int = SALES_LINES,
        tick_files: int = TICK_FILES,
    ) -> None:
        self._scratch = scratch / DOMAIN
        self._scenarios = scenarios
        self._say = say
        self._sales = sales
        self._tick_files = tick_files
        self._home = self._scratch / "home"
        self._template = self._scratch / "template"
        self._before = {name: self._scratch / f"before_{name}" for name in FURTHER}
        self._few_lines = self._scratch / "few_lines"
        self._last_of_few = ""
        self._input = self._scratch / "input"
        self._tiny = self._scratch / "tiny"
        self._models = self._scratch / "models.json"
        self._described: dict[str, dict[str, Any]] = {}
        self.results = Results(has_java=_has_java())

    def prepare(self) -> None:
        """All that is not measured: raw files, warm homes, one run of each contestant."""
        self._scratch.mkdir()
        if not {"coffee", "coffee_drop"} & set(self._scenarios):
            return
        self._write_inputs()
        self._say("preparing: dbt's models compiled, a first run in a home that is not there")
        database = self._scratch / bare_coffee.DATABASE
        models = compile_models(DOMAIN, database, self._environment(), self._scratch)
        self._models.write_text(json.dumps(models))
        shutil.rmtree(self._home, ignore_errors=True)
        self._lend_raw()
        self.results.measurements[COLD] = [self._run_product()]
        shutil.rmtree(self._home)
        run([str(BIN / "retail-assets"), "status"], self._environment(), self._log("status"))
        shutil.move(self._home, self._template)
        self._say("preparing: bare DuckDB and the JVM's Spark, once over a few lines")
        for name in self._others():
            self._run_other(name, self._tiny)
        self.results.stages.clear()
        if "coffee_drop" in self._scenarios:
            self._prepare_drops()

    def measure(self, repeat: int) -> None:
        """Every contestant ``repeat`` times, in turns, so that noise meets all alike.

        Raises:
            TablesDiffer: see ``Results.differences``.
        """
        before = code_state()
        contestants = self._contestants()
        for turn in range(1, repeat + 1):
            for name, contestant in contestants.items():
                if name == TICK and turn > 1:
                    continue  # its process has several ticks, and a lake to make before them
                measured = contestant()
                self.results.measurements.setdefault(name, []).append(measured)
                self._say(
                    f"{turn}/{repeat} {name}: {measured.wall_s:.2f} s wall,"
                    f" {measured.cpu_s:.2f} s CPU, {measured.peak_mib:.0f} MiB"
                )
                if turn == 1:
                    self._compare_after(name)
        self.results.code_changed = code_state() != before
        if any(self.results.differences.values()):
            raise TablesDiffer(json.dumps(self.results.differences, indent=1))

    def fresh_environment(self) -> dict[str, str]:
        """A fresh home with the raw files, and the environment of a run in it."""
        self._take_home(self._template)
        self._lend_raw()
        return self._environment()

    def _contestants(self) -> dict[str, Callable[[], Measurement]]:
        chosen: dict[str, Callable[[], Measurement]] = {}
        if {"coffee", "coffee_drop"} & set(self._scenarios):
            # Bare in both: by its tables the run of a further drop is held to be right.
            chosen[BARE] = lambda: self._run_other(BARE, self._input)
            chosen[PRODUCT] = self._run_fresh_product
        if "coffee" in self._scenarios and self.results.has_java:
            chosen[JVM] = lambda: self._run_other(JVM, self._input)
        if "coffee_drop" in self._scenarios:
            chosen |= {name: partial(self._run_drop, name) for name in FURTHER}
            chosen[FEW] = self._run_few_lines
        if "coffee_tick" in self._scenarios:
            chosen[TICK] = self._run_tick
        return chosen

    def _others(self) -> list[str]:
        return [BARE, JVM] if "coffee" in self._scenarios and self.results.has_java else [BARE]

    def _write_inputs(self) -> None:
        customers = coffee_customers(self._sales)
        self._say(f"preparing: {self._sales:,} sales lines in {DROPS} drops")
        counts = write_sample(
            self._input, sales=self._sales, customers=customers, drops=DROPS, seed=SEED
        )
        few = write_sample(self._tiny, sales=_TINY_LINES, customers=500, drops=2, seed=SEED)
        self._last_of_few = few.drops[-1].date
        self.results.sample = counts
        self.results.further_drops = {
            LATE: drop_nearest_to_average(counts),
            NEWEST: counts.drops[-1].date,
        }

    def _log(self, name: str) -> Path:
        return self._scratch / f"{name}.log"

    def _environment(self) -> dict[str, str]:
        return child_environment(RETAIL_HOME=str(self._home), COLUMNS="200")

    def _take_home(self, template: Path) -> None:
        shutil.rmtree(self._home, ignore_errors=True)
        shutil.copytree(template, self._home, copy_function=_link_what_is_never_changed)
        os.sync()  # or the copy of a gigabyte would still be written while a run is measured

    def _lend_raw(self, raw: Path | None = None, *, without: str = "") -> None:
        """The raw files under the home's lake: hard links, for they are read only."""
        raw = raw or self._input
        for file in (raw / "raw").rglob("*.csv"):
            name = file.relative_to(raw)
            target = self._home / "lake" / name
            is_meant = not without or name.as_posix() not in _files_of_drop(without)
            if is_meant and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, target)

    def _product_command(self, *arguments: str) -> list[str]:
        return [str(BIN / "retail-assets"), "run", DOMAIN, *arguments]

    def _run_product(self, *arguments: str) -> Measurement:
        return run(self._product_command(*arguments), self._environment(), self._log("product"))

    def _run_fresh_product(self) -> Measurement:
        self.fresh_environment()
        measured = self._run_product()
        self._note_steps(PRODUCT)
        return measured

    def _prepare_drops(self) -> None:
        for name, drop in self.results.further_drops.items():
            self._say(f"preparing: a home with every drop but that of {drop}")
            self._take_home(self._template)
            self._lend_raw(without=drop)
            self._run_product()
            shutil.move(self._home, self._before[name])
        self._say(f"preparing: a home with {_TINY_LINES:,} lines")
        self._take_home(self._template)
        self._lend_raw(self._tiny, without=self._last_of_few)
        self._run_product()
        shutil.move(self._home, self._few_lines)

    def _run_drop(self, name: str) -> Measurement:
        self._take_home(self._before[name])
        self._lend_raw()
        measured = self._run_product("--partitions", self.results.further_drops[name])
        self._note_steps(name)
        return measured

    def _run_few_lines(self) -> Measurement:
        """The last drop of the few lines: what a run takes whatever it is of."""
        self._take_home(self._few_lines)
        self._lend_raw(self._tiny)
        measured = self._run_product("--partitions", self._last_of_few)
        self._note_steps(FEW)
        return measured

    def _note_steps(self, name: str) -> None:
        """Add the seconds of the run just made, by stage."""
        log = self._log("steps")
        run(module_command("run_steps", 1), self._environment(), log)
        seconds = json.loads(tail_of(log).strip().splitlines()[-1])
        self.results.stages.setdefault(name, []).append(stages_of(seconds))

    def _run_other(self, name: str, lake: Path) -> Measurement:
        folder = self._scratch / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        module = {BARE: "bare_coffee", JVM: "jvm_coffee"}[name]
        log = self._log(name)
        command = module_command(module, lake, folder, self._models)
        measured = run(command, child_environment(), log)
        stages = json.loads(tail_of(log).strip().splitlines()[-1])
        self.results.stages.setdefault(name, []).append(stages)
        if name == JVM:
            shutil.rmtree(folder)
        return measured

    def _run_tick(self) -> Measurement:
        """The whole process that fills a lake and looks at it; its ticks are what is told."""
        home = self._scratch / "tick"
        shutil.rmtree(home, ignore_errors=True)
        log = self._log("tick")
        environment = child_environment(RETAIL_HOME=str(home))
        measured = run(module_command("coffee_tick", self._tick_files), environment, log)
        self.results.tick = json.loads(tail_of(log).strip().splitlines()[-1])
        shutil.rmtree(home)
        return measured

    def _compare_after(self, name: str) -> None:
        if name == BARE:
            self._described = self._describe(self._scratch / BARE)
            self.results.differences[BARE] = self._against_sample(self._described)
        elif name in (PRODUCT, *FURTHER):
            found = self._describe(self._home, self._home / "lake")
            self.results.differences[name] = differences(found, self._described)

    def _describe(self, folder: Path, lake: Path | None = None) -> dict[str, dict[str, Any]]:
        """Content of a contestant's database, of its quarantine, and its Parquet folders."""
        found = describe_tables(folder / bare_coffee.DATABASE)
        for dataset in (SALES, CUSTOMER):
            quarantine = (lake or folder) / bare_coffee.QUARANTINE / dataset.name
            found[f"quarantine of {dataset.name}"] = describe_quarantine(quarantine)
            processed = (lake or folder) / bare_coffee.PROCESSED / dataset.name
            files = [file.relative_to(processed) for file in processed.rglob("*.parquet")]
            found[f"folders of {dataset.name}"] = {
                # Below a drop's, DuckDB names a folder by its column too.
                "folders": sorted(
                    {file.parent.as_posix().replace("/sale_year=", "/") for file in files}
                )
            }
        return found

    def _against_sample(self, bare: dict[str, dict[str, Any]]) -> list[str]:
        """Whether bare itself is right, by what the generator says that it wrote."""
        sample = self.results.sample
        assert sample is not None
        expected = {
            f"{WAREHOUSE}.{SALES.name}": sample.total.kept,
            f"{WAREHOUSE}.{CUSTOMER.name}": sample.total.customer_rows,
            f"quarantine of {SALES.name}": sample.total.quarantined,
        }
        return [
            f"{table}: bare has {bare[table]['rows']} rows, the sample {rows}"
            for table, rows in expected.items()
            if bare[table]["rows"] != rows
        ]


def stages_of(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of the product's steps, by the stages of the others; the small files are apart."""
    drops = (f"processed_{SALES.name}", f"processed_{CUSTOMER.name}")
    stages = {LAKE: 0.0, LOAD: 0.0, MARTS: 0.0, "small files": 0.0, "other": 0.0}
    for step, lasted in seconds.items():
        if step.endswith(drops):
            stages[LAKE] += lasted
        elif "processed_" in step:
            stages["small files"] += lasted
        elif WAREHOUSE in step:
            stages[LOAD] += lasted
        elif "dbt" in step or "marts" in step:
            stages[MARTS] += lasted
        else:
            stages["other"] += lasted
    return stages


def describe_quarantine(folder: Path) -> dict[str, Any]:
    """Rows of a quarantine below ``folder``, and a hash of their texts, whatever their order."""
    import duckdb

    files = [str(file) for file in folder.rglob("*.parquet")]
    if not files:
        return {"rows": 0, "hash": "None"}
    with duckdb.connect() as connection:
        ((rows, content),) = connection.execute(
            "select count(*), sum(hash(text)) from read_parquet(?, hive_partitioning = false)",
            [files],
        ).fetchall()
    return {"rows": rows, "hash": str(content)}


def _files_of_drop(key: str) -> tuple[str, ...]:
    return RAW_SALES.name(key), RAW_CUSTOMER.name(key)


def _link_what_is_never_changed(source: str, target: str) -> None:
    """Copy a file of a home; Parquet files are replaced and never written into."""
    if source.endswith(".parquet"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def _has_java() -> bool:
    home = os.environ.get("JAVA_HOME")
    return shutil.which("java", path=f"{home}/bin" if home else None) is not None

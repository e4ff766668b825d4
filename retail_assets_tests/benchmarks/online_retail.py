"""Online retail's contestants: what is prepared for each, how it runs, what they must agree on.

Here: homes, commands, the order of runs, the comparison of tables. Not here: what a run costs
before it works (overhead.py), the baseline's SQL (bare_duckdb.py), printing (report.py).
"""

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retail_assets.defs.online_retail.contract import ONLINE_RETAIL_DATA
from retail_assets.settings import DBT_PROJECT_DIR, PROJECT_ROOT
from retail_assets_tests.benchmarks import bare_duckdb
from retail_assets_tests.benchmarks.inputs import Source, write_tenfold, write_xlsx
from retail_assets_tests.benchmarks.measure import (
    Measurement,
    child_environment,
    run,
    tail_of,
)

BARE, PRODUCT, START_UP, RECORDING = "bare", "product", "start_up", "start_up_and_recording"
BARE_TENFOLD, PRODUCT_TENFOLD, PRODUCT_XLSX = "bare_tenfold", "product_tenfold", "product_xlsx"
SERIAL, SERIAL_TENFOLD = "product_serial", "product_serial_tenfold"
DEFINITIONS = "definitions"

SCENARIOS = ("real", "tenfold", "xlsx", "definitions")
_PACKAGE = "retail_assets_tests.benchmarks"
_BIN = Path(sys.executable).parent


class TablesDiffer(Exception):  # noqa: N818  (says what happened)
    """Contestants did not end with the same tables: their times say nothing."""


@dataclass
class Results:
    """What was measured, and what the contestants' tables were."""

    measurements: dict[str, list[Measurement]] = field(default_factory=dict)
    tables_equal: dict[str, bool] = field(default_factory=dict)
    differences: dict[str, list[str]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    partitions: dict[str, int] = field(default_factory=dict)
    days: int = 0
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
        self._quietly([str(_BIN / "retail-assets"), "status"], "status")
        shutil.move(self._home, self._template)
        if not {"real", "tenfold", "xlsx"} & set(self._scenarios):
            return
        self._run_product("real")
        self._quietly(self._module("overhead", "record", str(self._events)), "record")
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
        before = _code_state()
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
        self.results.code_changed = _code_state() != before
        if not all(self.results.tables_equal.values()):
            raise TablesDiffer(json.dumps(self.results.differences, indent=1))

    def product_command(self) -> list[str]:
        """The command that users run."""
        return [str(_BIN / "retail-assets"), "run", "online_retail"]

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

    def _module(self, name: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", f"{_PACKAGE}.{name}", *arguments]

    def _quietly(self, command: Sequence[str], name: str) -> None:
        run(command, self._environment(), self._scratch / f"{name}.log")

    def _run_product(self, scenario: str, *, serial: bool = False) -> Measurement:
        environment = self.fresh_environment(scenario)
        command = self._module("overhead", "serial") if serial else self.product_command()
        return run(command, environment, self._scratch / "product.log")

    def _run_bare(self, scenario: str) -> Measurement:
        folder = self._bare_folder(scenario)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = self._module(
            "bare_duckdb", str(self._inputs[scenario]), str(folder), str(self._models)
        )
        return run(command, child_environment(), self._scratch / "bare.log")

    def _run_overhead(self, mode: str) -> Measurement:
        environment = self.fresh_environment()
        command = self._module("overhead", mode, str(self._events))
        return run(command, environment, self._scratch / "overhead.log")

    def _run_definitions(self) -> Measurement:
        log = self._scratch / "definitions.log"
        measured = run(self._module("load_definitions"), self.fresh_environment(), log)
        self.results.offending_modules = json.loads(tail_of(log).strip().splitlines()[-1])
        return measured

    def _bare_folder(self, scenario: str) -> Path:
        return self._scratch / "bare" / ("real" if scenario == "xlsx" else scenario)

    def _compile_models(self) -> None:
        """Have dbt compile its models as for a first run; the baseline executes that SQL."""
        target, database = self._scratch / "compiled", self._scratch / bare_duckdb.DATABASE
        options = {
            "vars": json.dumps({"duckdb_path": str(database)}),
            "project-dir": str(DBT_PROJECT_DIR),
            "profiles-dir": str(DBT_PROJECT_DIR),
            "target": "duckdb",
            "target-path": str(target),
            "log-path": str(target),
        }
        command = [str(_BIN / "retail-assets-dbt"), "compile"]
        for name, value in options.items():
            command += [f"--{name}", value]
        self._quietly(command, "compile")
        manifest = json.loads((target / "manifest.json").read_text())
        models = ordered_models(manifest["nodes"], "online_retail")
        self._models.write_text(json.dumps(models))

    def _compare_after(self, name: str) -> None:
        scenario = {PRODUCT: "real", PRODUCT_TENFOLD: "tenfold", PRODUCT_XLSX: "xlsx"}.get(name)
        if scenario is not None:
            self._compare(scenario)

    def _compare(self, scenario: str) -> None:
        folder = self._bare_folder(scenario)
        lake = self._home / "lake" / "processed" / ONLINE_RETAIL_DATA.schema
        files = [
            len(list((lake / ONLINE_RETAIL_DATA.name).glob("*/*.parquet"))),
            len({file.parent for file in (folder / bare_duckdb.PARTITIONS).glob("*/*.parquet")}),
        ]
        product, bare = (
            describe_tables(path)
            for path in (self._home / "warehouse.duckdb", folder / bare_duckdb.DATABASE)
        )
        wanted = set(bare)
        found = {table: product.get(table) for table in wanted}
        differences = [
            f"{table}: product {found[table]}, bare {bare[table]}"
            for table in sorted(wanted)
            if found[table] != bare[table]
        ]
        if files[0] != files[1]:
            differences.append(f"Parquet partitions: product {files[0]}, bare {files[1]}")
        self.results.differences[scenario] = differences
        self.results.tables_equal[scenario] = not differences
        self.results.rows[scenario] = bare[ONLINE_RETAIL_DATA.table]["rows"]
        self.results.partitions[scenario] = files[0]
        state = json.loads((self._home / "lake/_state/online_retail/processed.json").read_text())
        self.results.days = len(state)


def _code_state() -> list[tuple[str, int]]:
    """Changes when a file of the product does: what was measured is then no one thing."""
    files = [*(PROJECT_ROOT / "retail_assets").rglob("*.py")]
    files += [f for f in DBT_PROJECT_DIR.rglob("*") if f.suffix in (".sql", ".yml")]
    return sorted((str(file), file.stat().st_mtime_ns) for file in files)


def ordered_models(nodes: Mapping[str, Any], domain: str) -> list[dict[str, str]]:
    """A domain's models of a compiled manifest, each after those that it reads."""
    models = {
        key: node
        for key, node in nodes.items()
        if node["resource_type"] == "model" and node["fqn"][1] == domain
    }
    ordered: dict[str, dict[str, str]] = {}
    while len(ordered) < len(models):
        ready = [
            key
            for key, node in models.items()
            if key not in ordered
            and all(k in ordered for k in node["depends_on"]["nodes"] if k in models)
        ]
        for key in ready:
            node = models[key]
            ordered[key] = {
                "schema": node["schema"],
                "name": node["alias"],
                "kind": "view" if node["config"]["materialized"] == "view" else "table",
                "sql": node["compiled_code"],
            }
    return list(ordered.values())


def describe_tables(database: Path) -> dict[str, dict[str, Any]]:
    """Rows, sums of the DECIMAL columns, types and a hash of all values, by table.

    The hash does not depend on the order of rows. Our own record of loads is left out, and the
    views, which name their database.
    """
    import duckdb

    tables: dict[str, dict[str, Any]] = {}
    with duckdb.connect(str(database), read_only=True) as connection:
        columns: dict[str, dict[str, str]] = {}
        for schema, table, column, kind in connection.execute(
            "select schema_name, table_name, column_name, data_type from duckdb_columns()"
            " where not internal and schema_name like 'online_retail%'"
            " and (schema_name, table_name) in"
            " (select (schema_name, table_name) from duckdb_tables())"
        ).fetchall():
            columns.setdefault(f"{schema}.{table}", {})[column] = kind
        for table, types in columns.items():
            names = sorted(types)
            money = [name for name in names if types[name].startswith("DECIMAL")]
            texts = ", ".join(f"coalesce({name}::varchar, chr(0))" for name in names)
            sums = "".join(f", sum({name})" for name in money)
            row = connection.execute(
                f"select count(*), sum(hash(concat_ws(chr(1), {texts}))){sums} from {table}"
            ).fetchone()
            assert row is not None
            tables[table] = {
                "rows": row[0],
                "hash": str(row[1]),
                "types": {name: types[name] for name in names},
                "sums": {name: str(row[i]) for i, name in enumerate(money, start=2)},
            }
    return tables

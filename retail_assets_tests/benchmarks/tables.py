"""What contestants build alike and must agree on: dbt's compiled models, and their tables' content.

Here: compiling and ordering the models, describing and comparing databases. Not here: running
contestants (online_retail.py, coffee_chain.py).
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retail_assets.settings import DBT_PROJECT_DIR, PROJECT_ROOT
from retail_assets_tests.benchmarks.measure import run

PACKAGE = "retail_assets_tests.benchmarks"
BIN = Path(sys.executable).parent


class TablesDiffer(Exception):  # noqa: N818  (says what happened)
    """Contestants did not end with the same tables: their times say nothing."""


def module_command(name: str, *arguments: object) -> list[str]:
    """The command that runs a module of this package."""
    return [sys.executable, "-m", f"{PACKAGE}.{name}", *(str(item) for item in arguments)]


def code_state() -> list[tuple[str, int]]:
    """Changes when a file of the product does: what was measured is then no one thing."""
    files = [*(PROJECT_ROOT / "retail_assets").rglob("*.py")]
    files += [f for f in DBT_PROJECT_DIR.rglob("*") if f.suffix in (".sql", ".yml")]
    return sorted((str(file), file.stat().st_mtime_ns) for file in files)


def compile_models(
    domain: str, database: Path, environment: Mapping[str, str], folder: Path
) -> list[dict[str, str]]:
    """Have dbt compile a domain's models as for a first run into ``database``, in their order."""
    target = folder / "compiled"
    options = {
        "vars": json.dumps({"duckdb_path": str(database)}),
        "project-dir": str(DBT_PROJECT_DIR),
        "profiles-dir": str(DBT_PROJECT_DIR),
        "target": "duckdb",
        "target-path": str(target),
        "log-path": str(target),
    }
    command = [str(BIN / "retail-assets-dbt"), "compile"]
    for name, value in options.items():
        command += [f"--{name}", value]
    run(command, environment, folder / "compile.log")
    return ordered_models(json.loads((target / "manifest.json").read_text())["nodes"], domain)


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
            " where not internal and schema_name <> 'retail_operations'"
            " and (schema_name, table_name) in"
            " (select (schema_name, table_name) from duckdb_tables())"
        ).fetchall():
            columns.setdefault(f"{schema}.{table}", {})[column] = kind
        for table, types in columns.items():
            names = sorted(types)
            money = [name for name in names if types[name].startswith("DECIMAL")]
            values = ", ".join(f'"{name}"' for name in names)
            sums = "".join(f', sum("{name}")' for name in money)
            row = connection.execute(
                f"select count(*), sum(hash({values})){sums} from {table}"
            ).fetchone()
            assert row is not None
            tables[table] = {
                "rows": row[0],
                "hash": str(row[1]),
                "types": {name: types[name] for name in names},
                "sums": {name: str(row[i]) for i, name in enumerate(money, start=2)},
            }
    return tables


def differences(
    product: Mapping[str, dict[str, Any]], bare: Mapping[str, dict[str, Any]]
) -> list[str]:
    """One line for each of bare's tables that the product has not, or has otherwise."""
    return [
        f"{table}: product {product.get(table)}, bare {bare[table]}"
        for table in sorted(bare)
        if product.get(table) != bare[table]
    ]

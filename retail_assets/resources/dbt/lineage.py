"""Of which columns a dbt model's columns are made, by the SQL that dbt made of it.

Here: asking sqlglot, and keeping its answers beside the builds' artifacts, which go when the
project changes: a model is read once, and not in each build. Not here: what is told of it
(defs/marts/told.py).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A column by its table's id in dbt, and its name.
Made = Mapping[str, list[tuple[str, str]]]


class Lineage:
    """The columns of a project's models, whose compiled SQL lies below ``target``."""

    def __init__(self, manifest: Mapping[str, Any], target: Path) -> None:
        self._tables = manifest["sources"] | manifest["nodes"]
        self._target = target
        self._kept = target / "lineage.json"
        self._known: dict[str, Made] = (
            json.loads(self._kept.read_text("utf-8")) if self._kept.exists() else {}
        )
        self._is_new = False

    def of(self, model: str) -> Made:
        """The columns that each of a model's is made of; {} where its SQL cannot be read."""
        if model not in self._known:
            self._known[model] = self._read(model)
            self._is_new = True
        return self._known[model]

    def keep(self) -> None:
        """Write down what was found."""
        if self._is_new:
            partial = self._kept.with_suffix(f".{os.getpid()}.tmp")
            partial.write_text(json.dumps(self._known), "utf-8")
            partial.replace(self._kept)

    def _read(self, model: str) -> Made:
        from sqlglot.errors import SqlglotError
        from sqlglot.lineage import lineage
        from sqlglot.schema import MappingSchema

        node = self._tables[model]
        parents = {x: self._tables[x] for x in node["depends_on"]["nodes"] if x in self._tables}
        dialect = "bigquery" if "`" in node["relation_name"] else "duckdb"
        schema = MappingSchema(dialect=dialect)
        names = {}
        for parent, table in parents.items():
            columns = {name: x["data_type"] or "text" for name, x in table["columns"].items()}
            schema.add_table(table["relation_name"], columns, dialect=dialect)
            names[(table["schema"], table.get("identifier") or table["alias"])] = parent
        path = self._target / "compiled" / node["package_name"] / node["original_file_path"]
        try:
            sql = path.read_text("utf-8")
            found = lineage(None, sql, schema, dialect=dialect)
        except (OSError, SqlglotError):  # it is shown without
            return {}
        return {column: _leaves(root, names) for column, root in found.items()}


def _leaves(root: Any, names: Mapping[tuple[str, str], str]) -> list[tuple[str, str]]:
    """The columns of other tables at the end of each path from one column."""
    from sqlglot import exp

    made = set()
    for node in root.walk():
        table = None if node.downstream else node.expression.find(exp.Table)
        parent = names.get((table.db, table.name)) if table is not None else None
        if parent is not None:
            made.add((parent, exp.to_column(node.name).name.lower()))
    return sorted(made)

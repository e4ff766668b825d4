"""What is told of a dbt model or test, besides what dagster-dbt tells: in graph and runs.

Here: rows, a preview and sums of each table that was built, which columns its columns are made of,
the first rows that a test found, what a test says, which columns are personal. Not here: what is
built (dbt.py). dbt itself looks at a table, in the process that has just built it
(dbt_project/macros/tell_table.sql): to open the warehouse again would take a run longer.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg

from retail_assets.feeds.landing import preview
from retail_assets.resources.dbt.cli import DagsterDbtTranslator
from retail_assets.resources.dbt.lineage import Lineage
from retail_assets.resources.warehouse import WarehouseResource

_MOST_ROWS = 10
# How a line of dbt's log begins that a macro of ours wrote.
_TOLD = "retail_assets "
# What a generic test says where its yml says nothing.
_SAYS = {
    "not_null": "{column} is never null.",
    "unique": "No two rows have the same {column}.",
    "accepted_values": "{column} is one of {values}.",
    "relationships": "Each {column} is a {field} of {to}.",
    "is_share": "{column} is a share, from 0 to 1.",
    "unique_combination": "No two rows have the same {columns}.",
    "adds_up": "The sums of the columns agree with those of what they are made of.",
}


def personal_columns(node: Mapping[str, Any]) -> set[str]:
    """The columns of a dbt node that its yml marks as personal."""
    return {
        name
        for name, column in node.get("columns", {}).items()
        if column.get("meta", {}).get("pii") or column.get("config", {}).get("meta", {}).get("pii")
    }


def mark_personal(schema: dg.TableSchema, personal: Iterable[str]) -> dg.TableSchema:
    """The schema with the personal columns tagged, as those of a contract are."""
    marked = set(personal)
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                x.name,
                x.type,
                x.description,
                x.constraints,
                tags={**x.tags, "pii": "true"} if x.name in marked else x.tags,
            )
            for x in schema.columns
        ]
    )


def describe_test(node: Mapping[str, Any]) -> str:
    """What a dbt test holds, in a sentence."""
    if said := node.get("description"):
        return str(said)
    test = node.get("test_metadata") or {}
    told = test.get("kwargs", {})
    names = {
        "column": told.get("column_name", ""),
        "columns": ", ".join(told.get("columns") or ()),
        "values": ", ".join(map(str, told.get("values") or ())),
        "field": told.get("field", ""),
        "to": str(told.get("to", "")).removeprefix("ref(").rstrip(")").strip("'\""),
    }
    if test.get("name") in _SAYS:
        return _SAYS[test["name"]].format(**names)
    return f"{node['name'].replace('_', ' ').capitalize()}."


class Teller:
    """Adds to dagster-dbt's events of one build what is told besides."""

    def __init__(
        self,
        manifest: Mapping[str, Any],
        translator: DagsterDbtTranslator,
        target: Path,
        personal: Iterable[str],
    ) -> None:
        self._manifest, self._translator, self._target = manifest, translator, target
        self._personal = set(personal)
        self._tables: dict[str, dict[str, Any]] = {}
        self._lineage = Lineage(manifest, target)
        self._not_passed: list[dg.AssetCheckResult] = []

    def hear(self, raw_event: Mapping[str, Any]) -> None:
        """Take in a line of dbt's log."""
        text = str(raw_event["info"].get("msg", ""))
        if raw_event["info"]["name"] == "JinjaLogInfo" and text.startswith(_TOLD):
            told = json.loads(text.removeprefix(_TOLD))
            self._tables[told.pop("unique_id")] = told

    def tell(self, event: Any) -> Iterator[Any]:
        """The event with what is known of its model; a test that did not pass waits (``rest``)."""
        if isinstance(event, dg.AssetCheckResult) and not event.passed:
            self._not_passed.append(event)
            return
        if isinstance(event, dg.Output):
            unique_id = str(event.metadata["unique_id"].value)
            event = event.with_metadata({**event.metadata, **self._of_model(unique_id)})
        yield event

    def _of_model(self, unique_id: str) -> dict[str, Any]:
        told: dict[str, Any] = {}
        made_of = self._lineage.of(unique_id)
        if made_of:
            told["dagster/column_lineage"] = dg.TableColumnLineage(
                {
                    column: [dg.TableColumnDep(self._key(node), of) for node, of in deps]
                    for column, deps in made_of.items()
                }
            )
        table = self._tables.get(unique_id)
        if table is not None:
            told["dagster/row_count"] = int(table["rows"])
            told |= {name: float(total) for name, total in table["sums"].items() if total}
            told |= preview("preview", table["first"], self._personal)
        return told

    def _key(self, unique_id: str) -> dg.AssetKey:
        props = self._manifest["nodes"].get(unique_id) or self._manifest["sources"][unique_id]
        return self._translator.get_asset_key(props)

    def rest(self, warehouse: WarehouseResource) -> Iterator[dg.AssetCheckResult]:
        """The tests that did not pass, with their first rows; once the warehouse is let go of.

        What the tests select is looked for again: it happens seldom, and dbt does not tell it.
        """
        self._lineage.keep()
        not_passed, self._not_passed = self._not_passed, []
        for result in not_passed:
            node = self._manifest["nodes"][str(result.metadata["unique_id"].value)]
            path = self._target / "compiled" / node["package_name"] / node["original_file_path"]
            told: dict[str, Any] = {}
            with suppress(OSError):  # dbt could not make it: the result's status says so
                sql = (path if path.is_file() else path / node["path"]).read_text("utf-8")
                rows = warehouse.sample(f"({sql}\n)", _MOST_ROWS)
                told |= preview("failed_rows", rows, self._personal)
            failed = result.metadata.get("dagster_dbt/failed_row_count")
            found = f"{failed.value:,} rows do not pass" if failed else "dbt could not look"
            yield dg.AssetCheckResult(
                passed=False,
                asset_key=result.asset_key,
                check_name=result.check_name,
                metadata={**result.metadata, **told},
                severity=result.severity,
                description=f"{found}: {describe_test(node)}",
            )

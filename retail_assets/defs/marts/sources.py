"""dbt's sources, generated from the contracts: what each domain has landed in the warehouse.

Here: what a domain's _sources.yml says, and keeping those files so (``make format`` writes them,
``make lint`` and the tests hold them against the contracts). They are committed, so that dbt and
its editors work on a fresh clone. Not here: models, and tests of what a source holds (the staging
model's yml).
"""

import json
import sys
from pathlib import Path
from typing import Any

from retail_assets.dataset import Column, Dataset
from retail_assets.defs.registry import domains
from retail_assets.domain import Domain
from retail_assets.settings import DBT_PROJECT_DIR

_HEAD = (
    "# Generated from retail_assets/defs/{}/contract.py: make format writes it anew.\nsources:\n"
)


def sources_path(domain: Domain) -> Path:
    """The file that declares a domain's landed tables to dbt."""
    return DBT_PROJECT_DIR / "models" / domain.name / "staging" / "_sources.yml"


def render_sources(domain: Domain) -> str:
    """What that file says: each landed table, a line a column."""
    lines: list[str] = []
    for schema in dict.fromkeys(dataset.schema for dataset in domain.datasets):
        lines += [f"  - name: {_text(schema)}", f"    description: Landed tables of {domain.name}."]
        lines += ["    tables:"]
        for dataset in (x for x in domain.datasets if x.schema == schema):
            lines += [f"      - name: {_text(dataset.name)}"]
            lines += [f"        description: {_text(_described(dataset))}", "        columns:"]
            lines += [f"          - {_text(_column(column))}" for column in dataset.columns]
    return _HEAD.format(domain.name) + "\n".join(lines) + "\n"


def _described(dataset: Dataset) -> str:
    parts = {"Partitioned": dataset.partition_by, "Clustered": ", ".join(dataset.cluster_by)}
    return " ".join([dataset.description, *(f"{how} by {by}." for how, by in parts.items() if by)])


def _column(column: Column) -> dict[str, Any]:
    declared = {"name": column.name, "data_type": column.duckdb_type.lower()}
    marks = {"config": {"meta": {"pii": True}}} if column.pii else {}
    return {**declared, "description": column.description, **marks}


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # which YAML reads as its own


def write_sources(domain: Domain) -> None:
    """Write a domain's file, and the folder that it lies in."""
    path = sources_path(domain)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_sources(domain), "utf-8")


def main() -> None:
    """Write every file that is not as its contract says; with --check, fail there instead."""
    for domain in domains():
        path = sources_path(domain)
        if path.exists() and path.read_text("utf-8") == render_sources(domain):
            continue
        if "--check" in sys.argv[1:]:
            raise SystemExit(f"error: {path} is not what the contract says. Run: make format")
        write_sources(domain)


if __name__ == "__main__":
    main()

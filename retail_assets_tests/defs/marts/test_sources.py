"""Tests of retail_assets.defs.marts.sources: dbt is told of the tables what the contracts say."""

from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from retail_assets.dataset import Column, Dataset
from retail_assets.defs.marts import sources
from retail_assets.defs.registry import domains
from retail_assets.domain import Domain

each = pytest.mark.parametrize("domain", domains(), ids=lambda domain: domain.name)


@each
def test_a_domains_file_is_as_its_contract_says(domain: Domain) -> None:
    file = sources.sources_path(domain)

    assert file.read_text("utf-8") == sources.render_sources(domain), "Run: make format"


@each
def test_dbt_reads_each_landed_table_column_by_column(domain: Domain) -> None:
    declared = yaml.safe_load(sources.render_sources(domain))["sources"]

    tables = {f"{s['name']}.{t['name']}": t for s in declared for t in s["tables"]}
    assert list(tables) == [dataset.table for dataset in domain.datasets]
    for dataset in domain.datasets:
        columns = tables[dataset.table]["columns"]
        types = {c["name"]: c["data_type"].upper() for c in columns}
        assert list(types.items()) == list(dataset.duckdb_columns.items())
        assert [c["description"] for c in columns] == [c.description for c in dataset.columns]
        personal = {c["name"] for c in columns if "config" in c}
        assert personal == dataset.personal
        assert all(c["config"] == {"meta": {"pii": True}} for c in columns if "config" in c)


def test_any_text_stands_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    words = '"Caf\u00e9": it\'s 100 % #1, \U0001f600 [or {not}] \\ - no: yes'
    table = Dataset("shop", "no", words, (Column("yes", "bool", words),), "yes", ("yes",))
    domain = domains()[0]
    monkeypatch.setattr(domain, "datasets", (table,), raising=False)

    ((found,),) = (x["tables"] for x in yaml.safe_load(sources.render_sources(domain))["sources"])

    assert found["name"] == "no"
    assert found["columns"][0]["name"] == "yes"
    assert found["columns"][0]["description"] == words
    assert found["description"] == f"{words} Partitioned by yes. Clustered by yes."


def test_what_differs_is_told_and_then_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sources, "DBT_PROJECT_DIR", tmp_path)
    files = [sources.sources_path(domain) for domain in domains()]
    monkeypatch.setattr("sys.argv", ["sources"])
    sources.main()
    files[-1].write_text(files[-1].read_text() + "# by hand\n")

    monkeypatch.setattr("sys.argv", ["sources", "--check"])
    with pytest.raises(SystemExit, match=r"_sources\.yml is not what the contract says.*make fo"):
        sources.main()
    monkeypatch.setattr("sys.argv", ["sources"])
    sources.main()

    assert [file.read_text("utf-8") for file in files] == [
        sources.render_sources(domain) for domain in domains()
    ]

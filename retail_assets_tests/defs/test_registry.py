"""Tests of retail_assets.defs.registry, and of what each domain owes to those who find it there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from retail_assets.defs.registry import UnknownDomainError, domains, load_domain
from retail_assets.domain import Domain
from retail_assets.resources.lake import open_lake
from retail_assets.resources.warehouse import open_warehouse
from retail_assets.settings import DBT_PROJECT_DIR, Settings, load_settings

each = pytest.mark.parametrize("domain", domains(), ids=lambda domain: domain.name)


def test_domains_are_found_by_name() -> None:
    names = [domain.name for domain in domains()]

    assert len(set(names)) == len(names) >= 1
    assert [load_domain(name).name for name in names] == names


@pytest.mark.parametrize("name", ["online", "", "Online_Retail"])
def test_another_name_is_an_error_that_tells_the_names(name: str) -> None:
    with pytest.raises(UnknownDomainError) as error:
        load_domain(name)

    assert str(error.value).startswith(f"{name!r} is no domain; one of: online_retail")


@each
def test_a_domain_lives_in_the_folders_of_its_name(domain: Domain) -> None:
    assert type(domain).__module__ == f"retail_assets.defs.{domain.name}.domain"
    assert list((DBT_PROJECT_DIR / "models" / domain.name).rglob("*.sql"))


@each
def test_a_domain_gives_every_window_that_its_models_read(domain: Domain, tmp_path: Path) -> None:
    models = (DBT_PROJECT_DIR / "models" / domain.name).rglob("*.sql")
    sql = "\n".join(path.read_text() for path in models)
    warehouse = open_warehouse(load_settings(home=tmp_path))

    plan = domain.plan_marts(warehouse)

    assert set(plan.windows) == set(re.findall(r"'(\w+_window)'", sql))
    assert set(plan.versions) == set(domain.datasets)


@each
def test_an_empty_lake_has_no_rows(domain: Domain, tmp_path: Path) -> None:
    assert domain.count_rows(open_lake(load_settings(home=tmp_path))) == {}


@each
def test_what_a_domain_shows_of_the_settings_are_settings(domain: Domain, tmp_path: Path) -> None:
    shown = domain.shown_settings(load_settings(home=tmp_path))

    assert set(shown) <= set(Settings.model_fields)


def test_the_command_line_starts_without_what_is_heavy() -> None:
    code = "import json, sys, retail_assets.cli; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    loaded = set(json.loads(done.stdout))
    assert "retail_assets.defs.registry" in loaded
    assert not loaded & {"dagster", "pandas", "numpy", "pyarrow", "duckdb", "pyspark", "dbt"}
    assert not loaded & {"confluent_kafka", "psycopg"}

"""Tests of retail_assets.defs.registry, and of what each domain owes to those who find it there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from retail_assets.defs import registry
from retail_assets.defs.registry import (
    UnknownDomainError,
    domains,
    load_commands,
    load_domain,
)
from retail_assets.domain import Domain
from retail_assets.resources.lake import open_lake
from retail_assets.resources.warehouse import open_warehouse
from retail_assets.settings import DBT_PROJECT_DIR, Settings, load_settings, variable_name

each = pytest.mark.parametrize("domain", domains(), ids=lambda domain: domain.name)


def test_domains_are_found_by_name() -> None:
    names = [domain.name for domain in domains()]

    assert len(set(names)) == len(names) >= 1
    assert [load_domain(name).name for name in names] == names


@pytest.mark.parametrize("name", ["online", "", "Online_Retail"])
def test_another_name_is_an_error_that_tells_the_names(name: str) -> None:
    with pytest.raises(UnknownDomainError) as error:
        load_domain(name)

    assert str(error.value).startswith(f"{name!r} is no domain; one of: coffee_chain")


@each
def test_a_domain_lives_in_the_folders_of_its_name(domain: Domain) -> None:
    assert load_domain(domain.name) is domain
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

    variables = {*map(variable_name, Settings.model_fields), *domain.variables()}
    assert set(map(variable_name, shown)) <= variables


def test_every_sample_has_a_command() -> None:
    folder = Path(registry.__file__).parent
    with_samples = {path.parent.name for path in folder.glob("*/sample.py")}

    assert {name for name, found in load_commands().items() if "sample" in found} == with_samples


def test_no_two_domains_bring_a_command_of_one_name() -> None:
    names = [name for found in load_commands().values() for name in found if name != "sample"]

    assert len(set(names)) == len(names)


def test_the_command_line_starts_without_what_is_heavy() -> None:
    code = "import json, sys, retail_assets.cli; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    loaded = set(json.loads(done.stdout))
    assert "retail_assets.defs.registry" in loaded
    assert not loaded & {"dagster", "pandas", "numpy", "pyarrow", "duckdb", "pyspark", "dbt"}
    assert not loaded & {"confluent_kafka", "psycopg"}

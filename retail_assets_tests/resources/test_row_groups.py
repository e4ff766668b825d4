"""Tests of retail_assets.resources.warehouse.row_groups: once a day, whoever opens the file."""

import os
import time
from pathlib import Path

import pytest

from retail_assets.resources.dbt.project import dbt_build
from retail_assets.resources.warehouse import DuckDBWarehouse, row_groups
from retail_assets.settings import load_settings

HOUR = 3600


@pytest.mark.parametrize(("hours", "due"), [(0, False), (23, False), (25, True)])
def test_they_are_merged_first_and_then_once_a_day(tmp_path: Path, hours: int, due: bool) -> None:
    file = tmp_path / "warehouse.duckdb"
    assert row_groups.are_merged_now(file)

    row_groups.note_merged(file)
    then = time.time() - hours * HOUR
    (stamp,) = tmp_path.iterdir()
    os.utime(stamp, (then, then))

    assert row_groups.are_merged_now(file) is due


def test_a_connection_merges_or_leaves_them(tmp_path: Path) -> None:
    warehouse = DuckDBWarehouse(path=str(tmp_path / "warehouse.duckdb"))
    setting = f"select current_setting('{row_groups.SETTING}')"

    ((first,),) = warehouse.query(setting)
    row_groups.note_merged(Path(warehouse.path))
    ((then,),) = warehouse.query(setting)

    assert first > 0
    assert then == 0


def test_a_build_is_told_and_noted_when_it_has_succeeded(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "home")
    with pytest.raises(RuntimeError), dbt_build(settings, {}):
        raise RuntimeError("the build failed")
    assert row_groups.are_merged_now(settings.warehouse_path)

    told = []
    for _ in range(2):
        with dbt_build(settings, {}):
            told.append(os.environ["DBT_MERGES_ROW_GROUPS"])

    assert told == ["true", "false"]
    assert "DBT_MERGES_ROW_GROUPS" not in os.environ

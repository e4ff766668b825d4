"""Tests of retail_assets.commands.audit: from rows to files, over a real lake and warehouse."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from retail_assets.cli import app
from retail_assets.commands.run import rebuild_table
from retail_assets.defs.coffee_chain.contract import OUTLET, SALES
from retail_assets.domain import MARTS_STAGE
from retail_assets.resources.lake import open_lake
from retail_assets.resources.warehouse import open_warehouse
from retail_assets.settings import Settings, load_settings
from retail_assets_tests.commands.test_memory import publish

D1, D2 = "2011-12-01", "2011-12-02"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A home with two drops of sales, the second delivered twice, and one list of outlets."""
    monkeypatch.setenv("RETAIL_HOME", str(tmp_path / "home"))
    found = load_settings()
    lake = open_lake(found)
    files = {f"raw/coffee_chain/sales/{day}.csv": day[-1] * 64 for day in (D1, D2)}
    publish(lake, SALES, {D1: 3, D2: 2}, source=files)
    publish(lake, SALES, {D2: 4}, fingerprint="f2", source={f"raw/{D2}.csv": "a" * 64})
    publish(lake, OUTLET, {"": 1}, source={"raw/outlet.csv": "b" * 64})
    return found


def audit(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["audit", *arguments])


def told(*arguments: str) -> list[dict[str, Any]]:
    done = audit(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return list(json.loads(done.output)["made_of"])


def test_each_partition_leads_to_the_commit_and_the_file_that_it_is_of(settings: Settings) -> None:
    rebuild_table(settings, SALES.table)
    warehouse = open_warehouse(settings)
    warehouse.record_versions(SALES, MARTS_STAGE, {D1: "f1", D2: "f1"})

    one, two = told(SALES.table)

    assert (one["partition"], one["version"], one["run"]) == (D1, 0, "5eb01f80-c781")
    assert one["files"] == {f"raw/coffee_chain/sales/{D1}.csv": "1" * 64}
    assert (one["read"], one["written"], one["duplicates"], one["quarantined"]) == (4, 3, 1, 0)
    assert (one["is_landed"], one["is_built"]) == (True, True)
    assert (two["partition"], two["version"]) == (D2, 1)
    assert two["files"] == {f"raw/{D2}.csv": "a" * 64}
    assert (two["is_landed"], two["is_built"]) == (True, False)

    shown = audit(SALES.table, "--partition", D2).output
    assert "5eb01f80" in shown and f"raw/{D2}.csv" in shown and D1 not in shown


def test_a_row_is_found_by_its_key(settings: Settings) -> None:
    rebuild_table(settings, SALES.table)
    (key,) = (column.name for column in SALES.columns if column.key)
    warehouse = open_warehouse(settings)
    ((row,),) = warehouse.query(
        f"update {SALES.table} set {key} = 'r-1' where {key} ="
        f" (select min({key}) from {SALES.table} where drop_date = '{D2}') returning {key}"
    )

    (found,) = told(SALES.table, "--row", row)

    assert found["partition"] == D2


def test_a_table_of_one_file_has_one_line(settings: Settings) -> None:
    (found,) = told(OUTLET.table)  # not landed yet: the lake knows

    assert (found["partition"], found["files"]) == ("", {"raw/outlet.csv": "b" * 64})
    assert (found["is_landed"], found["is_built"]) == (False, False)
    assert audit(OUTLET.table, "--row", "1").exit_code  # of no row, before the warehouse has it


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("shop.sales",), "'shop.sales' is no table of the warehouse; one of: "),
        ((SALES.table, "--partition", "1999-01-01"), "knows nothing of partition '1999-01-01'"),
        ((SALES.table, "--row", "' or 1=1 --"), "knows nothing of row"),
    ],
)
def test_what_is_not_there_is_said(
    settings: Settings, arguments: tuple[str, ...], error: str
) -> None:
    rebuild_table(settings, SALES.table)

    done = audit(*arguments)

    assert done.exit_code
    assert error in str(done.exception)

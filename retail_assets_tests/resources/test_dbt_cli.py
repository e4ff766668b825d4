"""The lean dbt resource starts exactly what dagster-dbt's own would."""

import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster_dbt import DbtCliInvocation, DbtCliResource

from retail_assets.defs.marts.dbt import RetailTranslator, models_of
from retail_assets.resources.dbt.cli import LeanDbtCliResource, dbt_assets
from retail_assets.resources.dbt.project import dbt_project, prepare_project
from retail_assets.settings import DBT_PROJECT_DIR, Settings, load_settings
from retail_assets_tests.resources.test_dbt_worker import DBT


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings(home=tmp_path_factory.mktemp("home"))


class Started(Exception):  # noqa: N818  (what happened, not what went wrong)
    """What would have been started."""


ARGUMENTS = ["build", "--vars", '{"duckdb_path": "x.duckdb"}', "--exclude", "tag:slow"]


def started(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[DbtCliResource],
    *,
    selected: bool,
    arguments: Sequence[str] = ARGUMENTS,
) -> dict[str, Any]:
    """The arguments of DbtCliInvocation.run for an asset that runs ``arguments``."""
    found: dict[str, Any] = {}

    def record(**arguments: Any) -> None:
        found.update(arguments)
        raise Started

    monkeypatch.setattr(DbtCliInvocation, "run", record)

    @dbt_assets(
        manifest=models_of(json.loads(prepare_project(settings).read_bytes()), "online_retail"),
        project=dbt_project(settings),
        dagster_dbt_translator=RetailTranslator(),
    )
    def models(context: dg.AssetExecutionContext, dbt: DbtCliResource) -> Any:
        yield from dbt.cli(arguments, context=context, target_path=settings.home / "t").stream()

    resource = kind(
        project_dir=str(DBT_PROJECT_DIR),
        profiles_dir=str(DBT_PROJECT_DIR),
        target="duckdb",
        dbt_executable=DBT,
    )
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [models],
            resources={"dbt": resource},
            instance=instance,
            selection=dg.AssetSelection.assets("online_retail_core/dim_product")
            if selected
            else None,
            raise_on_error=False,
        )
    assert not result.success
    return found


@pytest.mark.parametrize("selected", [False, True])
def test_the_command_is_dagster_dbts(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, *, selected: bool
) -> None:
    lean = started(settings, monkeypatch, LeanDbtCliResource, selected=selected)
    own = started(settings, monkeypatch, DbtCliResource, selected=selected)

    assert lean["adapter"] is None
    assert set(lean) == set(own)
    for name in ("args", "project_dir", "target_path", "raise_on_error", "cli_version"):
        assert lean[name] == own[name], name
    environments = [
        {k: v for k, v in x["env"].items() if k != "PYTHONLEGACYWINDOWSSTDIO"} for x in (lean, own)
    ]
    assert environments[0] == environments[1]
    assert lean["target_path"] == Path(settings.home / "t")
    assert lean["env"]["DBT_TARGET_PATH"] == str(settings.home / "t")


def test_a_select_stands_in_place_of_the_whole_manifest(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["build", "--select", "path:models/online_retail"]

    lean = started(settings, monkeypatch, LeanDbtCliResource, selected=False, arguments=arguments)

    selects = [after for flag, after in pairwise(lean["args"]) if flag == "--select"]
    assert selects == ["path:models/online_retail"]


def test_dagsters_process_imports_no_dbt() -> None:
    code = (
        "import sys, retail_assets.definitions\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'dbt'])\n"
        "import dbt.version\n"
        "print(dbt.version.__version__.split('.')[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == ["[]", "1"]

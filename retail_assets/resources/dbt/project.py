"""dbt: where its project, state and command are, and how it is told the warehouse.

Here: parsing the project when it changed, and the variables that every dbt command gets. Not
here: models (dbt_project/), which of them an asset builds (defs/marts/dbt.py).
"""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from retail_assets.errors import PermanentError
from retail_assets.resources.dbt.worker import waiting_dbt
from retail_assets.resources.waiting import lock_file
from retail_assets.resources.warehouse import row_groups
from retail_assets.settings import DBT_PROJECT_DIR, Settings

if TYPE_CHECKING:
    from retail_assets.resources.dbt.cli import DbtProject, LeanDbtCliResource

# dbt variable -> inclusive [first, last] ranges of changed partitions; None rebuilds everything.
Windows: TypeAlias = Mapping[str, list[list[str]] | None]

_PARTIAL_PARSE = "partial_parse.msgpack"
_BUILD_FLAGS = {
    # The manifest that a build would write, of all domains, is the parsed one again.
    "DBT_WRITE_JSON": "false",
    # What relations there are is asked of the schemas that are built, not of every domain's.
    "DBT_CACHE_SELECTED_ONLY": "true",
    # A line a node, as in the run's own log; with every statement it is 2 MB a build.
    "DBT_LOG_LEVEL_FILE": "info",
}


class DbtParseError(PermanentError):
    """dbt cannot parse its project; the message is dbt's."""


def dbt_variables(settings: Settings) -> dict[str, str]:
    """The vars of every dbt command. They never change between runs: dbt parses anew if one does.

    What does change, the window of changed partitions, goes by ``dbt_build``.
    """
    return {} if settings.bigquery else {"duckdb_path": str(settings.warehouse_path)}


def target_environment(settings: Settings) -> dict[str, str]:
    """The variables by which profiles.yml finds the warehouse where the vars do not say it."""
    target = settings.bigquery
    if target is None:
        return {
            "DBT_DUCKDB_PATH": str(settings.warehouse_path),
            "DBT_DUCKDB_MEMORY_LIMIT": settings.duckdb_memory_limit,
        }
    environment = {
        "DBT_BIGQUERY_PROJECT": target.project,
        "DBT_BIGQUERY_LOCATION": target.location,
        "DBT_BIGQUERY_MAXIMUM_BYTES_BILLED": str(settings.bigquery_max_bytes_billed or ""),
    }
    if settings.bigquery_emulator_host:
        environment |= {
            "DBT_BIGQUERY_METHOD": "oauth-secrets",
            "DBT_BIGQUERY_TOKEN": "none",
            "DBT_BIGQUERY_API_ENDPOINT": settings.bigquery_emulator_host,
        }
    return environment


def _target(settings: Settings) -> str:
    return "bigquery" if settings.bigquery else "duckdb"


@contextmanager
def dbt_build(settings: Settings, windows: Windows) -> Iterator[Path]:
    """Around a build: the folder for its artifacts, with ``windows`` handed to dbt by var name.

    One build at a time on this machine: they share the folder, which starts warm from the last.
    The windows go as environment variables rather than ``--vars``, of which any change would have
    dbt parse the whole project.
    """
    merges = settings.bigquery is None and row_groups.are_merged_now(settings.warehouse_path)
    names = _window_variables(windows) | {"DBT_MERGES_ROW_GROUPS": str(merges).lower()}
    before = {name: os.environ.get(name) for name in names}
    with lock_file(_parsed_dir(settings).with_name("build.lock"), math.inf):
        target = build_target_dir(settings)
        os.environ.update(names)
        try:
            yield target
            if merges:
                row_groups.note_merged(settings.warehouse_path)
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _window_variables(windows: Windows) -> dict[str, str]:
    return {f"DBT_{name.upper()}": json.dumps(window) for name, window in windows.items()}


def dbt_project(settings: Settings) -> "DbtProject":
    """The project, with its parsed state under RETAIL_HOME."""
    from retail_assets.resources.dbt.cli import DbtProject

    return DbtProject(DBT_PROJECT_DIR, target_path=_parsed_dir(settings), target=_target(settings))


def dbt_resource(settings: Settings) -> "LeanDbtCliResource":
    """dagster-dbt's resource over the project."""
    from retail_assets.resources.dbt.cli import LeanDbtCliResource

    return LeanDbtCliResource(
        project_dir=str(DBT_PROJECT_DIR),
        profiles_dir=str(DBT_PROJECT_DIR),
        target=_target(settings),
        environment=target_environment(settings) | _BUILD_FLAGS,
        dbt_executable=_executable(),
    )


def build_target_dir(settings: Settings) -> Path:
    """Folder for builds' artifacts, seeded with the parsed project so that they start warm."""
    target = _parsed_dir(settings).with_name("build")
    target.mkdir(parents=True, exist_ok=True)
    parsed = _parsed_dir(settings) / _PARTIAL_PARSE
    if parsed.exists() and not (target / _PARTIAL_PARSE).exists():
        shutil.copy(parsed, target / _PARTIAL_PARSE)
    return target


@contextmanager
def dbt_ahead(settings: Settings) -> Iterator[None]:
    """Have dbt start now for the build that comes later in the block; see worker.py.

    Raises:
        DbtParseError: dbt cannot parse its project.
    """
    prepare_project(settings)
    # A folder of its own: another run may be building in that of the builds. Seeded each time, so
    # that there is something to parse.
    target = _parsed_dir(settings).with_name("ahead")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(_parsed_dir(settings) / _PARTIAL_PARSE, target / _PARTIAL_PARSE)
    warm_up = _command(settings, ["parse", "--no-write-json", "--log-level-file", "none"])
    with waiting_dbt(warm_up[0], warm_up[1:], _environment(settings, target)):
        yield


def run_dbt(settings: Settings, arguments: Sequence[str]) -> int:
    """Run a dbt command on the project and the warehouse of ``settings``; returns its exit code.

    It has the warehouse to itself, as every run does. Artifacts go to ``$RETAIL_HOME/dbt/docs``.

    Raises:
        WarehouseBusyError: a run kept the warehouse for too long.
    """
    from retail_assets.resources.warehouse import open_warehouse

    target = settings.home / "dbt" / "docs"
    with open_warehouse(settings).exclusive():
        return subprocess.run(
            _command(settings, arguments), env=_environment(settings, target), check=False
        ).returncode


def prepare_project(settings: Settings) -> Path:
    """The manifest's path; has dbt parse its project where its files or vars changed since.

    Raises:
        DbtParseError: dbt could not; the message is its own.
    """
    target = _parsed_dir(settings)
    manifest, stamp = target / "manifest.json", target / "parsed.sha256"
    state = project_state(settings)
    if manifest.exists() and stamp.exists() and stamp.read_text() == state:
        return manifest
    shutil.rmtree(target.parent / "build", ignore_errors=True)
    done = subprocess.run(
        _command(settings, ["parse"]),
        env=_environment(settings, target),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not manifest.exists():
        raise DbtParseError(f"dbt parse failed: {(done.stdout + done.stderr).strip()[-2000:]}")
    stamp.write_text(state)
    return manifest


def _command(settings: Settings, arguments: Sequence[str]) -> list[str]:
    """Dbt with ``arguments``, and with our options where they do not give their own."""
    ours = {"--vars": json.dumps(dbt_variables(settings)), "--target": _target(settings)}
    given = {argument.partition("=")[0] for argument in arguments}
    options = [part for name, value in ours.items() if name not in given for part in (name, value)]
    return [_executable(), *arguments, *options]


def _environment(settings: Settings, target: Path) -> dict[str, str]:
    """The environment in which every dbt command finds the project and its own folders."""
    return (
        os.environ
        | target_environment(settings)
        | {
            "DBT_PROJECT_DIR": str(DBT_PROJECT_DIR),
            "DBT_PROFILES_DIR": str(DBT_PROJECT_DIR),
            "DBT_TARGET_PATH": str(target),
            "DBT_LOG_PATH": str(target),
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        }
    )


def _parsed_dir(settings: Settings) -> Path:
    return settings.home / "dbt" / _target(settings) / "parsed"


def project_state(settings: Settings) -> str:
    """Changes when a file of the project does, by name, size or time, or a variable."""
    digest = hashlib.sha256(
        json.dumps([dbt_variables(settings), target_environment(settings)]).encode()
    )
    for path in sorted(DBT_PROJECT_DIR.rglob("*")):
        if path.suffix in (".sql", ".yml") and "target" not in path.parts:
            found = path.stat()
            digest.update(f"{path} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _executable() -> str:
    # The environment's own command, whether or not its folder is on PATH.
    return str(Path(sys.executable).with_name("retail-assets-dbt"))

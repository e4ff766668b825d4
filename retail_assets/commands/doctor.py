"""Checks of every outside system that the settings name, each with its fix.

Here: questions to the systems and what to do about a bad answer. Not here: printing (tables.py).
"""

import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from retail_assets.defs.registry import domains
from retail_assets.resources.cloud_checks import CheckFailedError, CloudChecks, Question
from retail_assets.settings import Settings, unknown_variables

_WAIT_S = 5.0


@dataclass(frozen=True)
class Finding:
    """One system: whether it works, what was found, and the fix where it does not."""

    system: str
    ok: bool
    found: str
    fix: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Check each system in turn; no check stops the next."""
    yield from _variables()
    for question in _questions(settings):
        try:
            yield Finding(question.system, True, question.ask())
        except CheckFailedError as failed:
            yield Finding(question.system, False, _one_line(failed), failed.fix)
        except Exception as error:  # a check that breaks is a finding, whatever broke it
            yield Finding(question.system, False, _one_line(error), question.fix)


def mend(settings: Settings) -> str:
    """Write into dagster.yaml what differs from ours; what was done, a line each."""
    from retail_assets.instance import prepare_instance
    from retail_assets.instance_config import differences, mend_config

    prepare_instance(settings)
    lines = [f"dagster.yaml: {found}" for found in differences(settings)]
    copy = mend_config(settings)
    return "\n".join([*lines, f"what it was: {copy}" if copy else "dagster.yaml is as ours"])


def _questions(settings: Settings) -> Iterator[Question]:
    def local(system: str, check: Callable[[Settings], str], fix: str) -> Question:
        return Question(system, lambda: check(settings), fix)

    yield local("home", _home, "set RETAIL_HOME to a folder that you may write to")
    yield local(
        "dagster", _dagster, "mend or delete dagster.yaml in DAGSTER_HOME; it is then made anew"
    )
    yield local(
        "dagster.yaml",
        _dagster_yaml,
        "retail-assets doctor --fix writes these lines, and keeps a copy; then start `dev`, or the"
        " daemon and the webserver, anew",
    )
    if not settings.lake.startswith("gs://"):
        yield local("lake", _lake, "set RETAIL_LAKE to a folder that you may write to")
    if settings.bigquery is None:
        yield local("warehouse", _warehouse, "close what holds the file, or set RETAIL_WAREHOUSE")
    yield from CloudChecks(settings, _datasets()).questions()
    yield local("dbt", _dbt, "make clean, then make demo: that installs and parses anew")
    for domain in domains():
        yield from domain.questions(settings)


def _datasets() -> dict[str, str | None]:
    """BigQuery's datasets of ours, and a table of each that is loaded; the others are dbt's."""
    found: dict[str, str | None] = {}
    for domain in domains():
        for dataset in domain.datasets:
            found.setdefault(dataset.schema, dataset.name)
        found |= {f"{domain.name}_staging": None, f"{domain.name}_core": None}
    return found | {"retail_operations": "loaded_partitions"}


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")


def _variables() -> Iterator[Finding]:
    others = [name for domain in domains() for name in domain.variables()]
    for name, nearest in unknown_variables(others=others).items():
        fix = f"rename it to {nearest}" if nearest else "unset it"
        yield Finding("variables", False, f"{name} is no variable of Retail Assets", fix)


def _probe_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe-{uuid.uuid4().hex}"
    probe.write_text("x")
    probe.replace(probe.with_suffix(".moved"))
    probe.with_suffix(".moved").unlink()


def _home(settings: Settings) -> str:
    _probe_folder(settings.home)
    free, least = shutil.disk_usage(settings.home).free, settings.least_free_bytes
    if free < least:
        raise OSError(
            f"{settings.home}: {free / 1024**3:.1f} GiB free, expected {least / 1024**3:.1f} at"
            " least (RETAIL_LEAST_FREE_BYTES)"
        )
    return f"{settings.home}, {free / 1024**3:.0f} GiB free"


def _dagster(settings: Settings) -> str:
    from retail_assets.instance import open_instance

    with open_instance(settings) as instance:
        runs = instance.get_runs_count()
    return f"{settings.instance_dir}, dagster {version('dagster')}, {runs} runs"


def _dagster_yaml(settings: Settings) -> str:
    from retail_assets.instance_config import differences

    if found := differences(settings):
        raise ValueError(f"not as ours: {'; '.join(found)}")
    return "as ours; what else it says is yours"


def _lake(settings: Settings) -> str:
    _probe_folder(Path(settings.lake))
    return settings.lake


def _warehouse(settings: Settings) -> str:
    from retail_assets.resources.warehouse import open_warehouse

    warehouse = open_warehouse(settings)
    existed = settings.warehouse_path.exists()
    ((found,),) = warehouse.query("select version()", timeout_s=_WAIT_S)
    if not existed:
        settings.warehouse_path.unlink()
        return f"{settings.warehouse_path} (not there yet), duckdb {found}"
    return f"{settings.warehouse_path}, duckdb {found}"


def _dbt(settings: Settings) -> str:
    from retail_assets.resources.dbt.project import prepare_project

    prepare_project(settings)
    return f"dbt-core {version('dbt-core')}, project parsed"

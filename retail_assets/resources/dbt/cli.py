"""dagster-dbt's resource, without a second copy of dbt in Dagster's own process.

Here: how a dbt command is started for an asset. Not here: which command (defs/marts/), where the
project and its state are (project.py), what the started process does (command.py).
"""

import os
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from pathlib import Path

import dagster as dg
from packaging.version import Version
from pydantic import Field

from retail_assets.process import without_package

# dagster-dbt works with a dbt that is not of Python, and then imports none of it. Ours is a
# process of its own: a second and 60 MiB of imports would be for nothing in this one. Other
# modules import dagster-dbt's names from here.
with without_package("dbt"):
    from dagster_dbt import (
        DagsterDbtTranslator,
        DagsterDbtTranslatorSettings,
        DbtCliInvocation,
        DbtCliResource,
        DbtProject,
        dbt_assets,
    )
    from dagster_dbt.asset_utils import (
        DBT_INDIRECT_SELECTION_ENV,
        extract_runtime_selection_from_args,
        get_updated_cli_invocation_params_for_context,
    )
    from dagster_dbt.dbt_manifest import DbtManifestParam, validate_manifest

__all__ = [
    "DagsterDbtTranslator",
    "DagsterDbtTranslatorSettings",
    "DbtProject",
    "LeanDbtCliResource",
    "dbt_assets",
]

# What dagster-dbt selects where an asset definition has every model of its manifest.
_EVERYTHING = ["--select", "fqn:*"]


class LeanDbtCliResource(DbtCliResource):
    """dbt, which builds and tests the marts: its project, and the warehouse that it is given.

    A ``DbtCliResource`` that loads no adapter, nor asks for dbt's version, before a command.
    dagster-dbt loads dbt's adapter and parses its macros in Dagster's process as well, for
    ``fetch_row_counts`` and ``fetch_column_metadata`` of the events. They take a second, 100 MiB
    and, at the process's end, a semaphore; nothing here calls them.

    ``environment`` is added to that of each command.
    """

    environment: dict[str, str] = Field(default_factory=dict)

    def cli(
        self,
        args: Sequence[str],
        *,
        raise_on_error: bool = True,
        manifest: DbtManifestParam | None = None,
        dagster_dbt_translator: DagsterDbtTranslator | None = None,
        context: dg.OpExecutionContext | dg.AssetExecutionContext | None = None,
        target_path: Path | None = None,
    ) -> DbtCliInvocation:
        """Start a dbt command; arguments and result are those of ``DbtCliResource.cli``.

        A ``--select`` of ``args`` stands in place of "all that is in the manifest", which may be
        a part of the project's.
        """
        if target_path is None or not target_path.is_absolute():
            return super().cli(
                args,
                raise_on_error=raise_on_error,
                manifest=manifest,
                dagster_dbt_translator=dagster_dbt_translator,
                context=context,
                target_path=target_path,
            )
        own_args, selects, excludes = extract_runtime_selection_from_args(args)
        params = get_updated_cli_invocation_params_for_context(
            context=context,
            manifest=validate_manifest(manifest) if manifest else {},
            dagster_dbt_translator=dagster_dbt_translator or DagsterDbtTranslator(),
            runtime_selects=selects,
            runtime_excludes=excludes,
        )
        selection = list(params.selection_args)
        if selects and selection[-2:] == _EVERYTHING:
            del selection[-2:]
        project = params.dbt_project
        project_dir = Path(project.project_dir if project else self.project_dir)
        options = {"--profile": self.profile, "--target": self.target}
        return DbtCliInvocation.run(
            args=[
                self.dbt_executable,
                *self.global_config_flags,
                *own_args,
                *(part for pair in options.items() if pair[1] for part in pair if part),
                *selection,
            ],
            env=self._environment(project_dir, target_path, params.indirect_selection),
            manifest=params.manifest,
            dagster_dbt_translator=params.dagster_dbt_translator,
            project_dir=project_dir,
            target_path=target_path,
            raise_on_error=raise_on_error,
            context=context,
            adapter=None,
            cli_version=Version(installed_version("dbt-core")),
            dbt_project=project,
        )

    def _environment(
        self, project_dir: Path, target_path: Path, indirect_selection: str | None
    ) -> dict[str, str]:
        """What DbtCliResource gives to dbt: dagster-dbt reads its JSON log, line by line."""
        environment = {
            **os.environ,
            "DAGSTER_DBT_CLI": "true",
            "PYTHONUNBUFFERED": "1",
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
            "DBT_LOG_FORMAT": "json",
            "DBT_TARGET_PATH": str(target_path),
            "DBT_LOG_PATH": str(target_path),
            "DBT_PROJECT_DIR": str(project_dir),
            **self.environment,
        }
        if self.profiles_dir:
            environment["DBT_PROFILES_DIR"] = self.profiles_dir
        if indirect_selection:
            environment[DBT_INDIRECT_SELECTION_ENV] = indirect_selection
        return environment

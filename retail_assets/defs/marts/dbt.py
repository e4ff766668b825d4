"""dbt's models as assets, and the windows of changed partitions that they are given.

Here: which models an asset runs, with which variables. Not here: SQL (dbt_project/), the
landed tables (each domain's assets.py), how a domain finds its windows (its domain.py).
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DbtProject, dbt_assets

from retail_assets.domain import MARTS_STAGE, Domain
from retail_assets.errors import failures_by_kind
from retail_assets.resources.dbt import (
    dbt_build,
    dbt_project,
    dbt_variables,
    prepare_project,
)
from retail_assets.resources.dbt_cli import LeanDbtCliResource
from retail_assets.resources.warehouse import WarehouseResource
from retail_assets.settings import Settings


class RetailTranslator(DagsterDbtTranslator):
    """dbt's nodes under our names: a model's group is its domain's folder."""

    def get_asset_spec(
        self, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None
    ) -> dg.AssetSpec:
        """dagster-dbt's spec, in the group of the model's domain."""
        spec = super().get_asset_spec(manifest, unique_id, project)
        node = manifest.get("nodes", {}).get(unique_id)
        return spec if node is None else spec.replace_attributes(group_name=node["fqn"][1])


def build_defs(settings: Settings, domains: Iterable[Domain]) -> dg.Definitions:
    """The models of each of ``domains``, one asset definition a domain."""
    manifest = prepare_project(settings)
    return dg.Definitions(assets=[_models(settings, manifest, domain) for domain in domains])


def _models(settings: Settings, manifest: Path, domain: Domain) -> dg.AssetsDefinition:
    @dbt_assets(
        manifest=manifest,
        project=dbt_project(settings),
        select=f"path:models/{domain.name}",
        exclude="resource_type:unit_test",
        name=f"{domain.name}_dbt_models",  # a job has the name <domain>_marts
        dagster_dbt_translator=RetailTranslator(),
    )
    def dbt_models(
        context: dg.AssetExecutionContext, dbt: LeanDbtCliResource, warehouse: WarehouseResource
    ) -> Iterator[Any]:
        with failures_by_kind(context.retry_number):
            plan = domain.plan_marts(warehouse)
        context.log.info(f"windows of changed partitions: {dict(plan.windows)}")
        arguments = ["build", "--vars", json.dumps(dbt_variables(settings))]
        with warehouse.exclusive(), dbt_build(settings, plan.windows) as target:
            yield from dbt.cli(arguments, context=context, target_path=target).stream()
        # A subset may leave a fact behind: then the window stays open for the next whole run.
        if not context.is_subset:
            for dataset, versions in plan.versions.items():
                warehouse.record_versions(dataset, MARTS_STAGE, versions)

    return dbt_models

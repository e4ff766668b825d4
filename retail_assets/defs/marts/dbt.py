"""dbt's models as assets, and the window of changed partitions that they are given.

Here: which models an asset runs, with which variables. Not here: SQL (dbt_project/), the
landed tables (each domain's assets.py).
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DbtProject, dbt_assets

from retail_assets.days import contiguous_ranges
from retail_assets.defs.online_retail.contract import DOMAIN, ONLINE_RETAIL_DATA
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

MARTS_STAGE = "marts"
WINDOW = "online_retail_window"


class RetailTranslator(DagsterDbtTranslator):
    """dbt's nodes under our names: a model's group is its domain's folder."""

    def get_asset_spec(
        self, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None
    ) -> dg.AssetSpec:
        """dagster-dbt's spec, in the group of the model's domain."""
        spec = super().get_asset_spec(manifest, unique_id, project)
        node = manifest.get("nodes", {}).get(unique_id)
        return spec if node is None else spec.replace_attributes(group_name=node["fqn"][1])


def changed_window(landed: Mapping[str, str], built: Mapping[str, str]) -> list[list[str]]:
    """Inclusive [first, last] day ranges where the facts differ from the landed table.

    ``landed`` and ``built`` map a day to the fingerprint that the table, and the facts, were
    last built from. [] means that nothing changed.
    """
    changed = {day for day in landed.keys() | built.keys() if landed.get(day) != built.get(day)}
    return [list(pair) for pair in contiguous_ranges(changed)]


def build_defs(settings: Settings) -> dg.Definitions:
    """The models of every domain."""

    @dbt_assets(
        manifest=prepare_project(settings),
        project=dbt_project(settings),
        select=f"path:models/{DOMAIN}",
        exclude="resource_type:unit_test",
        name="online_retail_dbt_models",  # a job has the name online_retail_marts
        dagster_dbt_translator=RetailTranslator(),
    )
    def online_retail_dbt_models(
        context: dg.AssetExecutionContext, dbt: LeanDbtCliResource, warehouse: WarehouseResource
    ) -> Iterator[Any]:
        with failures_by_kind(context.retry_number):
            landed = warehouse.loaded_versions(ONLINE_RETAIL_DATA)
            built = warehouse.loaded_versions(ONLINE_RETAIL_DATA, MARTS_STAGE)
        window = changed_window(landed, built)
        context.log.info(f"window of changed days: {window}")
        arguments = ["build", "--vars", json.dumps(dbt_variables(settings))]
        with warehouse.exclusive(), dbt_build(settings, {WINDOW: window}) as target:
            yield from dbt.cli(arguments, context=context, target_path=target).stream()
        # A subset may leave a fact behind: then the window stays open for the next whole run.
        if not context.is_subset:
            warehouse.record_versions(ONLINE_RETAIL_DATA, MARTS_STAGE, landed)

    return dg.Definitions(assets=[online_retail_dbt_models])

"""dbt's models as assets, and the windows of changed partitions that they are given.

Here: which models an asset runs, with which variables. Not here: SQL (dbt_project/), the
landed tables (each domain's assets.py), how a domain finds its windows (its domain.py).
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from retail_assets.dataset import Dataset
from retail_assets.defs.marts import freshness
from retail_assets.defs.marts.freshness import Watch
from retail_assets.defs.marts.told import (
    Teller,
    describe_test,
    mark_personal,
    personal_columns,
)
from retail_assets.domain import MARTS_STAGE, MODELS_STAGE, Domain, MartsPlan
from retail_assets.errors import failures_by_kind
from retail_assets.instance_config import warehouse_pool
from retail_assets.resources.dbt.cli import (
    DagsterDbtTranslator,
    DagsterDbtTranslatorSettings,
    DbtProject,
    LeanDbtCliResource,
    dbt_assets,
)
from retail_assets.resources.dbt.project import (
    build_target_dir,
    dbt_build,
    dbt_project,
    dbt_variables,
    prepare_project,
    project_state,
)
from retail_assets.resources.warehouse import WarehouseBusyError, WarehouseResource
from retail_assets.settings import Settings

# A test that fails by the models alone, whatever rows there are.
OF_THE_MODELS = "of_the_models"
_AS_IT_WAS: Mapping[str, str | float] = {
    "left_out": "nothing that it stands on has changed",
    "Execution Duration": 0.0,
}


class RetailTranslator(DagsterDbtTranslator):
    """dbt's nodes under our names: a model's key is its schema and name, its group its domain."""

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> dg.AssetKey:
        """dagster-dbt's, for which a model's schema is as if it were configured on the model."""
        props = dbt_resource_props
        if props["resource_type"] == "model":
            props = {**props, "config": {**props["config"], "schema": props["schema"]}}
        return super().get_asset_key(props)

    def get_asset_spec(
        self, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None
    ) -> dg.AssetSpec:
        """dagster-dbt's spec, in the group of the model's domain, personal columns marked."""
        spec = super().get_asset_spec(manifest, unique_id, project)
        node = manifest.get("nodes", {}).get(unique_id)
        if node is None:
            return spec
        metadata, schema = dict(spec.metadata), spec.metadata.get("dagster/column_schema")
        if isinstance(schema, dg.TableSchema):
            metadata["dagster/column_schema"] = mark_personal(schema, personal_columns(node))
        return spec.replace_attributes(group_name=node["fqn"][1], metadata=metadata)


def build_defs(settings: Settings, domains: Iterable[Domain]) -> dg.Definitions:
    """The models of each of ``domains``, one asset definition a domain, and how fresh they are."""
    manifest = json.loads(prepare_project(settings).read_bytes())
    within = settings.fresh_within
    models, watches = [], []
    for domain in domains:
        part = models_of(manifest, domain.name)
        models.append(_models(settings, part, domain))
        built_of = {
            RetailTranslator().get_asset_key(part["nodes"][name]): landed_behind(part, domain, name)
            for name in tables_of(part)
        }
        watches.append(Watch(domain, built_of, within.get(domain.name)))
    return dg.Definitions.merge(
        dg.Definitions(assets=models), freshness.build_defs(settings, watches)
    )


def models_of(manifest: Mapping[str, Any], domain: str) -> dict[str, Any]:
    """The manifest with the models of ``domain`` alone, and the tests of these and their sources.

    To select by dbt's own syntax, dagster-dbt would need dbt in this process.
    """
    nodes = manifest["nodes"]
    models = {
        name
        for name, node in nodes.items()
        if node["resource_type"] == "model" and node["fqn"][1] == domain
    }
    tests = {
        name
        for name, node in nodes.items()
        if node["resource_type"] == "test"
        and (node["fqn"][1] == domain or not models.isdisjoint(node["depends_on"]["nodes"]))
    }
    kept = {name: nodes[name] for name in nodes if name in models}
    for name in nodes.keys() & tests:
        meta = {"description": describe_test(nodes[name]), **nodes[name].get("meta", {})}
        kept[name] = {**nodes[name], "meta": meta}
    others = nodes.keys() - kept.keys()
    reduced = {**manifest, "nodes": {name: kept[name] for name in nodes if name in kept}}
    for graph in ("child_map", "parent_map"):
        reduced[graph] = {
            name: [other for other in related if other not in others]
            for name, related in manifest[graph].items()
            if name not in others
        }
    return reduced


def tables_of(manifest: Mapping[str, Any]) -> list[str]:
    """The ids of the models that hold rows; a view is as new as what it stands on."""
    return [
        name
        for name, node in manifest["nodes"].items()
        if node["resource_type"] == "model" and node["config"]["materialized"] != "view"
    ]


def landed_behind(manifest: Mapping[str, Any], domain: Domain, model: str) -> set[Dataset]:
    """The landed tables of ``domain`` that a model stands on, over whatever lies between."""
    behind = _reached(manifest["parent_map"], [model])
    sources = (manifest["sources"][name] for name in behind if name in manifest["sources"])
    names = {f"{source['schema']}.{source['name']}" for source in sources}
    return {dataset for dataset in domain.datasets if dataset.table in names}


def _reached(graph: Mapping[str, Sequence[str]], ahead: list[str]) -> set[str]:
    reached = set[str]()
    while ahead:
        found = set(graph.get(ahead.pop(), ())) - reached
        reached |= found
        ahead += found
    return reached


def _models(settings: Settings, part: Mapping[str, Any], domain: Domain) -> dg.AssetsDefinition:
    # A virtual asset is never stale; what is built of it is, where a table behind it was loaded.
    views = DagsterDbtTranslatorSettings(
        enable_dbt_views_as_virtual_assets=not domain.loads_by_the_clock,
        enable_code_references=True,
    )
    personal = {name for dataset in domain.datasets for name in dataset.personal}
    translator = RetailTranslator(views)

    @dbt_assets(
        manifest=part,
        project=dbt_project(settings),
        name=f"{domain.name}_dbt_models",  # a job has the name <domain>_marts
        dagster_dbt_translator=translator,
        pool=warehouse_pool(settings),
    )
    def dbt_models(
        context: dg.AssetExecutionContext, dbt: LeanDbtCliResource, warehouse: WarehouseResource
    ) -> Iterator[Any]:
        with failures_by_kind(context.retry_number), warehouse.kept_open():
            plan = domain.plan_marts(warehouse)
            models = {domain.name: project_state(settings) if plan.changed else ""}
            is_partial = not context.is_subset and _may_be_partial(plan, models, warehouse)
        context.log.info(f"windows of changed partitions: {dict(plan.windows)}")
        arguments = ["build", "--vars", json.dumps(dbt_variables(settings))]
        if not context.is_subset:
            changed = plan.changed if is_partial else ()
            arguments += ["--select", selection(domain.name, changed)]
        left_out = "resource_type:unit_test" + (f" tag:{OF_THE_MODELS}" if is_partial else "")
        arguments += ["--exclude", left_out]
        told = Teller(part, translator, build_target_dir(settings), personal)
        try:
            with warehouse.exclusive(), dbt_build(settings, plan.windows) as target:
                for table in tables_left_out(part, plan.changed) if is_partial else ():
                    key = translator.get_asset_key(table)
                    yield dg.MaterializeResult(asset_key=key, metadata=_AS_IT_WAS)
                build = dbt.cli(arguments, context=context, target_path=target)
                for message in build.stream_raw_events():
                    told.hear(message.raw_event)
                    for event in message.to_default_asset_events(
                        build.manifest, translator, context, target, build.project
                    ):
                        yield from told.tell(event)
        except WarehouseBusyError:
            raise
        except Exception:
            _leave_open(plan, warehouse)
            if is_partial:  # what was left out may be what it missed
                _record_models(plan, {domain.name: ""}, warehouse)
            yield from told.rest(warehouse)
            raise
        yield from told.rest(warehouse)
        # A subset may leave a fact behind: then the window stays open for the next whole run.
        if context.is_subset:
            _leave_open(plan, warehouse)
        else:
            with warehouse.kept_open():
                for dataset, versions in plan.versions.items():
                    warehouse.record_versions(dataset, MARTS_STAGE, versions)
                if plan.changed and not is_partial:
                    _record_models(plan, models, warehouse)

    return dbt_models


def selection(domain: str, changed: Sequence[Dataset]) -> str:
    """What a build selects, as dbt has it: every node of a domain, or what stands on ``changed``.

    Of the latter no view: it holds no rows, and is as it was made.
    """
    if not changed:
        return f"path:models/{domain}"
    kinds = ("config.materialized:table", "config.materialized:incremental", "resource_type:test")
    return " ".join(
        f"source:{dataset.schema}.{dataset.name}+,{kind}" for dataset in changed for kind in kinds
    )


def tables_left_out(
    manifest: Mapping[str, Any], changed: Sequence[Dataset]
) -> list[Mapping[str, Any]]:
    """The tables that a build of what stands on ``changed`` leaves out.

    They are what a build would make them, and are reported as made: a landed table behind them may
    have been loaded again with what it had, and Dagster would show them as stale.
    """
    tables = {(dataset.schema, dataset.name) for dataset in changed}
    loaded = [
        name
        for name, source in manifest["sources"].items()
        if (source["schema"], source["name"]) in tables
    ]
    built = _reached(manifest["child_map"], loaded)
    return [manifest["nodes"][name] for name in tables_of(manifest) if name not in built]


def _may_be_partial(
    plan: MartsPlan, models: Mapping[str, str], warehouse: WarehouseResource
) -> bool:
    """Whether these models have built what stands on unchanged tables, and none failed since."""
    return bool(plan.changed) and models == warehouse.loaded_versions(
        next(iter(plan.versions)), MODELS_STAGE
    )


def _leave_open(plan: MartsPlan, warehouse: WarehouseResource) -> None:
    """Record that the marts are of no version of what the build was of: some may have taken it.

    Else a table that went back to what the marts were last built from would look built.
    """
    with warehouse.kept_open():
        for dataset, versions in plan.versions.items():
            built = warehouse.loaded_versions(dataset, MARTS_STAGE)
            unsure = {key: "" for key, version in versions.items() if built.get(key) != version}
            if unsure:
                warehouse.record_versions(dataset, MARTS_STAGE, unsure)


def _record_models(
    plan: MartsPlan, models: Mapping[str, str], warehouse: WarehouseResource
) -> None:
    warehouse.record_versions(next(iter(plan.versions)), MODELS_STAGE, models)

"""Everything that Dagster sees, assembled in one place.

``build_defs(settings, **overrides)`` is the seam for tests; ``defs`` is what Dagster loads. Not
here: any asset, job or resource of its own.
"""

import sys
import warnings
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path

import dagster as dg

from retail_assets.defs import operations, retention
from retail_assets.defs.marts import dbt as marts
from retail_assets.defs.registry import domains as all_domains
from retail_assets.domain import Domain
from retail_assets.instance import ease_sqlite
from retail_assets.resources.dbt.project import dbt_resource
from retail_assets.resources.lake import open_lake
from retail_assets.resources.warehouse import open_warehouse
from retail_assets.runs import in_process_executor
from retail_assets.settings import Settings, SettingsError, load_settings

# Backfill policies are what makes a range one run; Dagster calls them beta at every import.
warnings.filterwarnings("ignore", category=dg.BetaWarning)


def build_resources(
    settings: Settings, domains: Iterable[Domain] | None = None
) -> dict[str, object]:
    """One resource an outside system, by the name that assets ask for."""
    resources: dict[str, object] = {
        "lake": open_lake(settings),
        "warehouse": open_warehouse(settings),
        "dbt": dbt_resource(settings),
    }
    for domain in all_domains() if domains is None else domains:
        resources |= domain.resources(settings)
    return resources


def build_defs(
    settings: Settings, domains: Iterable[Domain] | None = None, **overrides: object
) -> dg.Definitions:
    """All definitions for ``settings``, or those of ``domains``.

    ``overrides`` replace resources by name.
    """
    chosen = all_domains() if domains is None else tuple(domains)
    _require_known(settings.fresh_within)
    # Registered rather than found by Dagster's folder loader: that one imports every installed
    # plugin, the Google clients among them, and takes no settings.
    return dg.Definitions.merge(
        *(domain.build_defs(settings) for domain in chosen),
        marts.build_defs(settings, chosen),
        operations.build_defs(settings, chosen),
        retention.build_defs(settings, chosen),
        dg.Definitions(
            resources={**build_resources(settings, chosen), **overrides},
            executor=in_process_executor,
        ),
    ).permissive_map_resolved_asset_specs(partial(_told_of_all, settings), None)


def _told_of_all(settings: Settings, spec: dg.AssetSpec) -> dg.AssetSpec:
    """An asset with what is told of every one: owners, zone, how old it may be, where it is from.

    Marts are of the zone ``marts``, the views before them of ``staging``.
    """
    made_by_dbt = "staging" if spec.key.path[0].endswith("_staging") else "marts"
    zone = spec.tags.get("zone", made_by_dbt)
    within = settings.fresh_within.get(spec.group_name or "")
    return spec.replace_attributes(
        owners=settings.owners.split(",") if settings.owners else [],
        tags={**spec.tags, "zone": zone},
        metadata={**_declared_in(spec), **spec.metadata},
        freshness_policy=dg.FreshnessPolicy.time_window(within)
        if within and zone in ("warehouse", "marts")
        else spec.freshness_policy,
    )


def _declared_in(spec: dg.AssetSpec) -> dict[str, object]:
    """Where a feed's asset is declared: what it is made by is the same for all."""
    folder = Path(__file__).parent / "defs" / (spec.group_name or "")
    references: list[dg.LocalFileCodeReference | dg.UrlCodeReference] = [
        dg.LocalFileCodeReference(file_path=str(path), line_number=1, label=path.name)
        for name in ("contract.py", "feed.py")
        if (path := folder / name).exists()
    ]
    return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=references)}


def _require_known(named: Collection[str]) -> None:
    known = {domain.name for domain in all_domains()}
    if strange := set(named) - known:
        raise SettingsError(
            f"RETAIL_FRESH_WITHIN_H names {', '.join(sorted(strange))}, which is no domain; one of:"
            f" {', '.join(sorted(known))}"
        )


@dg.definitions
def defs() -> dg.Definitions:
    """The definitions of the environment's settings."""
    # Where an instance is open, as in a run's process; elsewhere its import would only cost.
    if "sqlalchemy" in sys.modules:
        ease_sqlite()
    return build_defs(load_settings())

"""Everything that Dagster sees, assembled in one place.

``build_defs(settings, **overrides)`` is the seam for tests; ``defs`` is what Dagster loads. Not
here: any asset, job or resource of its own.
"""

import sys
import warnings

import dagster as dg

from retail_assets.defs.marts import dbt as marts
from retail_assets.defs.online_retail import assets as online_retail_assets
from retail_assets.defs.online_retail import automation as online_retail_automation
from retail_assets.defs.online_retail.source import OnlineRetailSource
from retail_assets.instance import ease_sqlite
from retail_assets.resources.dbt import dbt_resource
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.warehouse import WarehouseResource
from retail_assets.settings import Settings, load_settings

# Backfill policies are what makes a range one run; Dagster calls them beta at every import.
warnings.filterwarnings("ignore", category=dg.BetaWarning)


def build_resources(settings: Settings) -> dict[str, object]:
    """One resource an outside system, by the name that assets ask for."""
    return {
        "lake": LakeResource.of(settings),
        "warehouse": WarehouseResource.of(settings),
        "online_retail_source": OnlineRetailSource.of(settings),
        "dbt": dbt_resource(settings),
    }


def build_defs(settings: Settings, **overrides: object) -> dg.Definitions:
    """All definitions for ``settings``; ``overrides`` replace resources by name."""
    # Named here rather than found by Dagster's folder loader: that one imports every installed
    # plugin, the Google clients among them, and takes no settings.
    return dg.Definitions.merge(
        online_retail_assets.build_defs(settings),
        online_retail_automation.build_defs(settings),
        marts.build_defs(settings),
        dg.Definitions(
            resources={**build_resources(settings), **overrides},
            executor=dg.in_process_executor,
        ),
    )


@dg.definitions
def defs() -> dg.Definitions:
    """The definitions of the environment's settings."""
    # Where an instance is open, as in a run's process; elsewhere its import would only cost.
    if "sqlalchemy" in sys.modules:
        ease_sqlite()
    return build_defs(load_settings())

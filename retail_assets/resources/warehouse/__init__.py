"""The warehouse: tables that are replaced by partition, and questions asked of them.

Here: which warehouse the settings name. The rest by file: protocol (what any of them does),
duckdb (a file), row_groups (its upkeep), bigquery, statements and jobs (how that is asked).

Not here: dbt's models (defs/marts/), what a partition should hold (defs/).
"""

from typing import TYPE_CHECKING

from retail_assets.resources.warehouse.duckdb import DuckDBWarehouse
from retail_assets.resources.warehouse.protocol import (
    LoadResult,
    Origin,
    WarehouseBusyError,
    WarehouseResource,
    WarehouseSchemaError,
)

if TYPE_CHECKING:
    from retail_assets.settings import Settings

__all__ = [
    "DuckDBWarehouse",
    "LoadResult",
    "Origin",
    "WarehouseBusyError",
    "WarehouseResource",
    "WarehouseSchemaError",
    "open_warehouse",
]


def open_warehouse(settings: "Settings") -> WarehouseResource:
    """The warehouse that the settings name."""
    if settings.bigquery is not None:
        from retail_assets.resources.warehouse.bigquery import BigQueryWarehouse

        return BigQueryWarehouse.of(settings)
    return DuckDBWarehouse(
        path=str(settings.warehouse_path), memory_limit=settings.duckdb_memory_limit
    )

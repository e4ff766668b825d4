"""What stands where: each table's rows and partitions, and when it was last materialized.

Here: questions to the lake, the warehouse and Dagster's instance. Not here: printing (tables.py).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from retail_assets.defs.registry import domains
from retail_assets.domain import Domain
from retail_assets.settings import Settings, variable_name

if TYPE_CHECKING:
    import dagster as dg

_WAIT_S = 30.0


@dataclass(frozen=True)
class TableStatus:
    """One asset: rows, partitions and last materialization, each None where there is none."""

    key: str
    rows: int | None
    partitions: int | None
    materialized: datetime | None


def shown_settings(settings: Settings) -> list[tuple[str, str]]:
    """Variable and value, secrets redacted."""
    values = {field: getattr(settings, field) for field in type(settings).model_fields}
    for domain in domains():
        values |= domain.shown_settings(settings)
    return [
        (variable_name(field), "" if value is None else str(value))
        for field, value in values.items()
    ]


def table_statuses(settings: Settings) -> Iterator[TableStatus]:
    """Every asset of the definitions, upstream first.

    Raises:
        WarehouseBusyError: another process has kept the warehouse open.
    """
    from retail_assets.definitions import build_defs
    from retail_assets.instance import open_instance

    definitions = build_defs(settings)
    graph = definitions.resolve_asset_graph()
    rows = count_rows(settings, domains())
    names = table_names(definitions)
    with open_instance(settings) as instance:
        for key in graph.toposorted_asset_keys:
            if key not in graph.materializable_asset_keys:
                continue
            event = instance.get_latest_materialization_event(key)
            partitions = (
                len(instance.get_materialized_partitions(key))
                if graph.get(key).is_partitioned
                else None
            )
            at = datetime.fromtimestamp(event.timestamp, UTC) if event else None
            yield TableStatus(key.to_user_string(), rows.get(names[key]), partitions, at)


def table_names(definitions: "dg.Definitions") -> "dict[dg.AssetKey, str]":
    """``schema.name`` of each asset: its table's where it says so, or else by its key."""
    return {
        spec.key: ".".join(str(table).split(".")[-2:])
        if (table := spec.metadata.get("dagster/table_name"))
        else ".".join(spec.key.path)
        for spec in definitions.resolve_all_asset_specs()
    }


def count_rows(settings: Settings, of: Iterable[Domain]) -> dict[str, int]:
    """Rows by ``schema.name`` of an asset: counted, not remembered.

    In the lake, those of the domains ``of``; in the warehouse, every table's.
    """
    from retail_assets.resources.lake import open_lake
    from retail_assets.resources.warehouse import open_warehouse

    lake = open_lake(settings)
    rows: dict[str, int] = {}
    for domain in of:
        rows |= domain.count_rows(lake)
    return rows | open_warehouse(settings).row_counts(timeout_s=_WAIT_S)

"""What stands where: each table's rows and partitions, and when it was last materialized.

Here: questions to the lake, the warehouse and Dagster's instance. Not here: printing (tables.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from retail_assets.settings import Settings, variable_name

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
    from retail_assets.resources.download import redact

    shown = []
    for field in type(settings).model_fields:
        value = getattr(settings, field)
        if field == "online_retail_source":
            value = ", ".join(redact(location) for location in settings.online_retail_locations)
        shown.append((variable_name(field), "" if value is None else str(value)))
    return shown


def table_statuses(settings: Settings) -> Iterator[TableStatus]:
    """Every asset of the definitions, upstream first.

    Raises:
        WarehouseBusyError: another process has kept the warehouse open.
    """
    from retail_assets.definitions import build_defs
    from retail_assets.instance import open_instance

    definitions = build_defs(settings)
    graph = definitions.resolve_asset_graph()
    rows = count_rows(settings)
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
            yield TableStatus(key.to_user_string(), rows.get(".".join(key.path)), partitions, at)


def count_rows(settings: Settings) -> dict[str, int]:
    """Rows by ``schema.name`` of an asset: counted, not remembered."""
    from retail_assets.defs.online_retail.contract import ONLINE_RETAIL_DATA
    from retail_assets.defs.online_retail.source import read_manifest, read_processed
    from retail_assets.resources.lake import LakeResource
    from retail_assets.resources.warehouse import WarehouseResource

    lake = LakeResource.of(settings)
    rows: dict[str, int] = {}
    manifest = read_manifest(lake)
    if manifest is not None:
        rows["online_retail.raw_online_retail"] = manifest.read
    days = read_processed(lake)
    if days:
        counted = lake.partition_rows("processed", ONLINE_RETAIL_DATA, "invoice_date", days)
        rows["online_retail.processed_online_retail_data"] = sum(counted.values())
    return rows | WarehouseResource.of(settings).row_counts(timeout_s=_WAIT_S)

"""A lake's partitions in the warehouse, alike for every domain.

Here: which versions of a table the lake has, the asset that loads them, and its rebuilding. Not
here: what a fingerprint says (each feed's), what a load is (resources/warehouse/).

The landed table has no partitions in Dagster: a load finds for itself which of the lake's differ.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import dagster as dg
from pydantic import Field

from retail_assets.dataset import Dataset
from retail_assets.domain import MARTS_STAGE, Domain, PlanError, Versions
from retail_assets.errors import PermanentError, failures_by_kind
from retail_assets.instance_config import warehouse_pool
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.restoring import set_aside
from retail_assets.resources.lake.tables import Snapshot
from retail_assets.resources.warehouse import LoadResult, Origin, WarehouseResource
from retail_assets.settings import Settings


class NotProcessedError(PermanentError):
    """The lake has nothing of a partition that is to be loaded."""


class LoadConfig(dg.Config):
    """Which partitions a load takes."""

    partitions: list[str] = Field(
        default=[],
        description="keys to load again, changed or not; without any, those that the lake has"
        " otherwise than the warehouse",
    )


def landed_key(dataset: Dataset) -> dg.AssetKey:
    """The asset of a table in the warehouse."""
    return dg.AssetKey([dataset.schema, dataset.name])


def lake_versions(
    lake: LakeResource, dataset: Dataset, snapshot: Snapshot | None = None
) -> dict[str, str]:
    """Fingerprint of each partition that the lake has of a table, now or in ``snapshot``.

    "" is one without rows; also one that restoring the table took out of it.
    """
    found = lake.table(dataset).snapshot() if snapshot is None else snapshot
    return dict.fromkeys(set_aside(lake, dataset), "") | found.fingerprints


def landed_asset(
    settings: Settings, domain: Domain, dataset: Dataset, *, dep: dg.AssetKey
) -> dg.AssetsDefinition:
    """The table of ``dataset``: the lake's partitions that changed, each replaced as a whole.

    ``dep`` is the asset of the lake's table, of which ``domain`` says the fingerprints.
    """
    key = landed_key(dataset)

    @dg.asset(
        key=key,
        deps=[dep],
        group_name=domain.name,
        # Else Dagster's own command takes no range of the lake's partitions together with it.
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=warehouse_pool(settings),
        kinds={"bigquery" if settings.bigquery else "duckdb", "table"},
        code_version="1",
        tags={"zone": "warehouse"},
        description=dataset.description,
        metadata={
            "dagster/column_schema": dataset.table_schema(),
            "dagster/table_name": dataset.table,
        },
    )
    def landed(
        context: dg.AssetExecutionContext,
        config: LoadConfig,
        lake: LakeResource,
        warehouse: WarehouseResource,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with failures_by_kind(context.retry_number), warehouse.kept_open():
            snapshot = lake.table(dataset).snapshot()
            found = domain.lake_versions(lake, dataset, snapshot)
            there = warehouse.loaded_versions(dataset)
            if config.partitions:
                versions = _chosen(lake, dataset, found, config.partitions)
            else:
                versions = {key: v for key, v in found.items() if there.get(key) != v}
            loaded = LoadResult({})
            # Of nothing, the table is made: what reads it must find one. Without partitions it is
            # of one file, for which whatever reads it waits.
            if versions or (dataset.partition_by and not there):
                uris = loadable_uris(lake, warehouse, snapshot, versions)
                origin = Origin(context.run.run_id, key.to_user_string())
                loaded = warehouse.replace_partitions(dataset, uris, versions, origin)
            is_there = there or loaded.rows or dataset.partition_by
            shown = _shown(warehouse, dataset) if is_there and not warehouse.bills_reads else {}
        return dg.MaterializeResult(
            metadata={
                "rows_in_run": loaded.total,
                "partitions_in_run": len(loaded.rows),
                **loaded.metadata,
                **shown,
            },
            data_version=dg.DataVersion(version_of({**there, **versions})),
        )

    return landed


def _shown(warehouse: WarehouseResource, dataset: Dataset) -> dict[str, Any]:
    """How many rows the table has, and the first of them."""
    table = warehouse.name_of(dataset)
    ((rows,),) = warehouse.query(f"select count(*) from {table}")
    first = preview("preview", warehouse.sample(table), dataset.personal)
    return {"dagster/row_count": rows, **first}


def preview(
    name: str, rows: Iterable[Mapping[str, Any]], personal: Collection[str]
) -> dict[str, dg.TableMetadataValue]:
    """A few rows as the UI's table, without personal columns; of no rows nothing."""
    records = [
        dg.TableRecord({k: "" if v is None else v for k, v in row.items() if k not in personal})
        for row in rows
    ]
    return {name: dg.MetadataValue.table(records)} if records else {}


def _chosen(
    lake: LakeResource, dataset: Dataset, found: Mapping[str, str], keys: list[str]
) -> dict[str, str]:
    missing = sorted(set(keys) - found.keys())
    if missing:
        raise NotProcessedError(
            f"{lake.uri(dataset.location)} has nothing of {len(missing)} of {len(keys)} partitions"
            f" ({missing[0]}...{missing[-1]}): they were never processed. Nothing was loaded."
            " Materialize them in the lake first."
        )
    return {key: found[key] for key in keys}


def version_of(entries: Mapping[str, str]) -> str:
    """Short text that differs where one of the entries does."""
    text = "\n".join(f"{key} {value}" for key, value in sorted(entries.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def landed_and_built(domain: Domain, warehouse: WarehouseResource) -> tuple[Versions, Versions]:
    """What is landed, and what the marts are built of."""
    landed, built = (
        {x: warehouse.loaded_versions(x, stage) for x in domain.datasets}
        for stage in ("landed", MARTS_STAGE)
    )
    return landed, built


def rebuild(
    lake: LakeResource, warehouse: WarehouseResource, domain: Domain, dataset: Dataset
) -> int:
    """Create the table anew from the lake's; its rows.

    Raises:
        PlanError: the lake has nothing of it.
    """
    snapshot = lake.table(dataset).snapshot()
    versions = domain.lake_versions(lake, dataset, snapshot)
    if not versions:
        raise PlanError(
            f"{lake.root} holds nothing processed. Run: retail-assets run {domain.name}"
        )
    uris = loadable_uris(lake, warehouse, snapshot, versions)
    return warehouse.replace_table(dataset, uris, versions).total


def loadable_uris(
    lake: LakeResource, warehouse: WarehouseResource, snapshot: Snapshot, keys: Mapping[str, str]
) -> list[str]:
    """Files of the partitions ``keys``, where the warehouse can read them."""
    uris = [lake.uri(file.name) for file in snapshot.filled(keys)]
    return uris if warehouse.reads_buckets else lake.local_copies(uris)

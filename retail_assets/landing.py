"""A lake's partitions in the warehouse, alike for every domain.

Here: which versions of a table the lake has, the asset that loads them, and its rebuilding. Not
here: what a fingerprint says (each domain's), what a load is (resources/warehouse/).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import dagster as dg

from retail_assets.dataset import Dataset
from retail_assets.errors import PermanentError, failures_by_kind
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.restoring import set_aside
from retail_assets.resources.warehouse import LoadResult, Origin, WarehouseResource
from retail_assets.settings import Settings


class NotProcessedError(PermanentError):
    """The lake has nothing of a partition that is to be loaded."""


def lake_versions(
    lake: LakeResource, dataset: Dataset, keys: Sequence[str] | None = None
) -> dict[str, str]:
    """Fingerprint of each partition that the lake has of a table, or of ``keys``.

    "" is one without rows; also one that restoring the table took out of it.

    Raises:
        NotProcessedError: of some of ``keys`` there is nothing.
    """
    found = lake.table(dataset).snapshot().fingerprints
    found = dict.fromkeys(set_aside(lake, dataset), "") | found
    if keys is None:
        return found
    missing = sorted(set(keys) - found.keys())
    if missing:
        raise NotProcessedError(
            f"{lake.uri(dataset.location)} has nothing of {len(missing)} of {len(keys)} partitions"
            f" ({missing[0]}...{missing[-1]}): they were never processed. Nothing was loaded."
            " Materialize them in the lake first."
        )
    return {key: found[key] for key in keys}


def landed_asset(
    settings: Settings,
    dataset: Dataset,
    *,
    key: dg.AssetKey,
    deps: Sequence[dg.AssetKey],
    versions_of: Callable[[LakeResource, Sequence[str] | None], Mapping[str, str]] | None = None,
    partitions: "dg.PartitionsDefinition[str] | None" = None,
    only_changed: bool = False,
) -> dg.AssetsDefinition:
    """The table of ``dataset``: partitions of the lake, each replaced as a whole.

    ``versions_of`` gives the fingerprint of each partition that it is asked for, and of every one
    for None: that is asked where Dagster knows no ``partitions`` of a table that has some;
    ``lake_versions`` does, where it is not given. With ``only_changed`` those that are loaded
    already are left out.
    """
    every = None if dataset.partition_by else [""]
    find = versions_of or (lambda lake, keys: lake_versions(lake, dataset, keys))

    @dg.asset(
        key=key,
        deps=deps,
        group_name=dataset.domain or dataset.schema,
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run() if partitions else None,
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
        context: dg.AssetExecutionContext, lake: LakeResource, warehouse: WarehouseResource
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with failures_by_kind(context.retry_number), warehouse.kept_open():
            versions = find(lake, context.partition_keys if partitions else every)
            there = warehouse.loaded_versions(dataset) if only_changed else {}
            versions = {key: v for key, v in versions.items() if there.get(key) != v}
            loaded = LoadResult({})
            # Of nothing, the table is made: what reads it must find one.
            if versions or not there:
                origin = Origin(context.run.run_id, key.to_user_string())
                uris = loadable_uris(lake, warehouse, dataset, versions)
                loaded = warehouse.replace_partitions(dataset, uris, versions, origin)
        if dataset.partition_by is None and not only_changed:
            return dg.MaterializeResult(
                metadata={"dagster/row_count": loaded.total, **loaded.metadata}
            )
        if partitions:
            for name, rows in loaded.rows.items():
                context.add_asset_metadata(
                    {"dagster/partition_row_count": rows}, partition_key=name
                )
        return dg.MaterializeResult(
            metadata={
                "rows_in_run": loaded.total,
                "partitions_in_run": len(loaded.rows),
                **loaded.metadata,
            }
        )

    return landed


def rebuild(
    lake: LakeResource,
    warehouse: WarehouseResource,
    dataset: Dataset,
    versions: Mapping[str, str],
) -> int:
    """Create the table anew from the lake's partitions ``versions``; returns its rows."""
    uris = loadable_uris(lake, warehouse, dataset, versions)
    return warehouse.replace_table(dataset, uris, versions).total


def loadable_uris(
    lake: LakeResource, warehouse: WarehouseResource, dataset: Dataset, keys: Iterable[str]
) -> list[str]:
    """Files of the partitions ``keys``, where the warehouse can read them."""
    uris = lake.partition_uris(dataset, keys)
    return uris if warehouse.reads_buckets else lake.local_copies(uris)

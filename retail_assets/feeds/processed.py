"""Partitions of the lake's tables, each replaced by what its source holds of it: their assets.

Here: what was taken of a partition, what cannot be, publishing, the asset that reports it. Not
here: how rows are found and typed (files/, snapshot/), the checks (checks.py), when anything runs.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import dagster as dg

from retail_assets.dataset import Dataset
from retail_assets.domain import REFUSED_PARTITIONS, Domain
from retail_assets.errors import PermanentError, failures_by_kind
from retail_assets.feeds import WHOLE_TABLE
from retail_assets.feeds.checks import check_processed, processed_check_specs
from retail_assets.instance_config import spark_pool
from retail_assets.losses import EmptyingConfig, Quarantined, public_reason
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.staging import Stage
from retail_assets.settings import Settings

_MOST_REASONS = 3


class Taken(NamedTuple):
    """What was taken of a partition, what of its source could not be, and what else is told."""

    ledger: Ledger
    quarantined: Quarantined
    told: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def of(cls, dataset: Dataset, ledger: Ledger, reason: str | None = None, **told: Any) -> Self:
        """With the first reason, without what is personal."""
        shown = public_reason(reason, dataset.personal) if reason else None
        return cls(ledger, Quarantined(ledger.quarantined, ledger.left_out, shown), told)

    @property
    def metadata(self) -> dict[str, Any]:
        """The ledger as the UI shows it, and what of the source could not be taken."""
        return {
            "dagster/partition_row_count": self.ledger.written,
            "read": self.ledger.read,
            "duplicates": self.ledger.duplicates,
            **self.quarantined.metadata,
            **self.told,
        }


class RefusedPartitionsError(PermanentError):
    """Some partitions cannot be taken, each for its reason; ``taken`` is what was of the others."""

    def __init__(
        self,
        what: str,
        reasons: Mapping[str, PermanentError],
        asked: int,
        taken: Mapping[str, Taken],
    ) -> None:
        told = " ".join(str(reasons[key]) for key in sorted(reasons)[:_MOST_REASONS])
        more = len(reasons) - _MOST_REASONS
        others = ", and of this table none was" if len(reasons) == asked else "; all others were"
        counted = f"{len(reasons)} of {asked} {what} cannot be taken{others}. "
        super().__init__(
            f"{counted if asked > 1 else ''}{told}{f' And {more} more.' if more > 0 else ''}"
        )
        self.metadata = {REFUSED_PARTITIONS: sorted(reasons)}
        self.refused, self.taken = frozenset(reasons), taken


def processed_key(domain: Domain, dataset: Dataset) -> dg.AssetKey:
    """The asset of a table's Parquet files."""
    return dg.AssetKey([domain.name, f"processed_{dataset.name}"])


def lake_kinds(settings: Settings, *others: str) -> set[str]:
    """What a table of the lake is, as the UI says it."""
    return {"parquet", *others, *(["gcs"] if settings.lake.startswith("gs://") else [])}


def publish(
    stage: Stage,
    dataset: Dataset,
    quarantine: Dataset,
    keys: Collection[str],
    ledgers: Mapping[str, Ledger],
    **told: object,
) -> None:
    """Replace the partitions ``keys`` of a table and of its quarantine by what was staged.

    Quarantine comes first: a run that ends in between leaves new work, for the table's ledgers say
    what is done.
    """
    stage.publish(quarantine, keys, told=told)
    stage.publish(dataset, keys, ledgers, told)


def processed_asset(
    settings: Settings,
    domain: Domain,
    dataset: Dataset,
    quarantine: Dataset,
    take: Callable[[dg.AssetExecutionContext, Collection[str]], Mapping[str, Taken]],
    *,
    source: dg.AssetKey,
    partitions: "dg.PartitionsDefinition[Any] | None",
    description: str,
    code_version: str,
    kinds: Iterable[str] = (),
    resources: Collection[str] = (),
    may_empty: bool = False,
) -> dg.AssetsDefinition:
    """The asset of a table's Parquet files, of which a range of partitions is taken in one run.

    ``take`` replaces partitions, and says what was taken of each that its source has, or had. Those
    that it refuses fail the step, when the others are published and recorded.
    """
    asset = processed_key(domain, dataset)

    @dg.asset(
        key=asset,
        deps=[source],
        group_name=domain.name,
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run() if partitions else None,
        pool=spark_pool(settings) if "spark" in resources else None,
        kinds=lake_kinds(settings, *kinds),
        code_version=code_version,
        tags={"zone": "processed"},
        description=f"{dataset.description} {description}",
        metadata={"dagster/column_schema": dataset.table_schema()},
        check_specs=processed_check_specs(asset),
        config_schema=EmptyingConfig.to_fields_dict() if may_empty else None,
        required_resource_keys={"lake", *resources},
    )
    def processed(context: dg.AssetExecutionContext) -> Iterator[Any]:
        lake: LakeResource = context.resources.lake
        keys = context.partition_keys if partitions else [WHOLE_TABLE]
        error: RefusedPartitionsError | None = None
        with failures_by_kind(context.retry_number):
            try:
                taken = take(context, keys)
            except RefusedPartitionsError as refused:
                error, taken = refused, refused.taken
                keys = [key for key in keys if key not in refused.refused]
                if not keys:
                    raise
            lost = sum((x.quarantined for x in taken.values()), Quarantined())
            checks = check_processed(lake, asset, dataset, quarantine, keys, lost, taken)
            nothing = {"dagster/partition_row_count": 0}
            of = {key: taken[key].metadata if key in taken else nothing for key in keys}
            metadata: dict[str, Any] = {"path": dg.MetadataValue.path(lake.uri(dataset.location))}
            if error is not None:
                for key in keys:
                    told = of[key] | metadata
                    yield dg.AssetMaterialization(asset, metadata=told, partition=key)
                yield from checks
                raise error
        version = None
        if partitions is None:
            metadata |= of[WHOLE_TABLE]
            version = dg.DataVersion(taken[WHOLE_TABLE].ledger.fingerprint)
        else:
            for key in keys:
                context.add_asset_metadata(of[key], partition_key=key)
            metadata["partitions_in_run"] = len(keys)
        yield dg.MaterializeResult(metadata=metadata, data_version=version, check_results=checks)

    return processed

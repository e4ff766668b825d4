"""What a domain asks of a warehouse, whichever it is: tables replaced by partition, and questions.

Here: the calls, what they hand over, and what may go wrong with each of them. Not here: how a
warehouse does it (duckdb.py, bigquery.py).
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import dagster as dg

from retail_assets.dataset import Dataset
from retail_assets.errors import PermanentError, TransientError


class WarehouseSchemaError(PermanentError):
    """A table or a file differs from its declaration; nothing was written."""


class WarehouseBusyError(TransientError):
    """Another process held the warehouse for longer than this one waits."""


@dataclass(frozen=True)
class Origin:
    """Who loads: the run and the asset, which are the labels of a job."""

    run_id: str = "manual"
    asset: str = "manual"


BY_HAND = Origin()


@dataclass(frozen=True)
class LoadResult:
    """Rows that were loaded, by partition key; a key with 0 rows is an emptied partition.

    ``metadata`` is what the warehouse tells of the load itself, such as bytes billed.
    """

    rows: dict[str, int]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Rows over all partitions."""
        return sum(self.rows.values())


class WarehouseResource(dg.ConfigurableResource, ABC):  # type: ignore[type-arg]
    """What a domain asks of a warehouse, whichever it is.

    ``reads_buckets`` says whether it loads gs:// files by itself; the others want local ones.
    ``bills_reads`` says whether a few rows of a table cost what all of it does. ``row_as_json`` is
    how it spells a row ``t`` as text.
    """

    reads_buckets: ClassVar[bool] = False
    bills_reads: ClassVar[bool] = False
    row_as_json: ClassVar[str]

    @abstractmethod
    def replace_partitions(
        self,
        dataset: Dataset,
        uris: Sequence[str],
        versions: Mapping[str, str],
        origin: Origin = BY_HAND,
    ) -> LoadResult:
        """Make the partitions ``versions`` (key -> fingerprint) hold exactly what ``uris`` hold.

        ``uris`` are Parquet files that hold rows of those partitions only. A table without
        partitions is one, of the key "". A new nullable column of the declaration is added to
        the table first.

        Raises:
            WarehouseSchemaError: the table or a file differs otherwise, or a row belongs to none
                of the partitions; nothing was written.
            ValueError: the keys are not of the table's partitioning.
        """

    @abstractmethod
    def replace_table(
        self,
        dataset: Dataset,
        uris: Sequence[str],
        versions: Mapping[str, str],
        origin: Origin = BY_HAND,
    ) -> LoadResult:
        """Create the table anew from ``uris``, whatever columns it had."""

    @abstractmethod
    def loaded_versions(
        self, dataset: Dataset, stage: str = "landed", timeout_s: float | None = None
    ) -> dict[str, str]:
        """Fingerprint of each partition as of its last load; {} where the table is not there."""

    @abstractmethod
    def record_versions(self, dataset: Dataset, stage: str, versions: Mapping[str, str]) -> None:
        """Record that ``stage`` (a consumer such as the marts) now holds ``versions``."""

    @abstractmethod
    def exclusive(self, timeout_s: float | None = None) -> AbstractContextManager[None]:
        """Keep other writers off, where the warehouse takes one at a time.

        Raises:
            WarehouseBusyError: it was not free in time.
        """

    @contextmanager
    def kept_open(self, timeout_s: float | None = None) -> Iterator[None]:
        """Around several calls of one thread, where each would open the warehouse for itself."""
        yield

    @abstractmethod
    def query(self, sql: str, *, timeout_s: float | None = None) -> list[tuple[Any, ...]]:
        """All rows of a query."""

    def name_of(self, dataset: Dataset) -> str:
        """The table, as a query names it."""
        return dataset.table

    def sample(self, relation: str, rows: int = 10) -> list[dict[str, Any]]:
        """The first ``rows`` of a table or a subquery, by column name, as JSON has their values."""
        found = self.query(f"select {self.row_as_json} from {relation} as t limit {rows}")
        return [json.loads(row) for (row,) in found]

    @abstractmethod
    def row_counts(self, timeout_s: float | None = None) -> dict[str, int]:
        """Rows of each table of ours by ``schema.name``; {} where there is none.

        Views have no rows of their own: to count one is to compute it.
        """


def partition_keys(dataset: Dataset, versions: Mapping[str, str]) -> list[str]:
    """The keys of ``versions``, in order.

    Raises:
        ValueError: they are not of the table's partitioning: "" alone where it has none.
    """
    keys = sorted(versions)
    if "" in keys if dataset.partition_by else keys != [""]:
        expected = "days" if dataset.partition_by else "'' alone, for it has no partitions"
        raise ValueError(f"{dataset.table}: expected keys that are {expected}, found {keys[:5]}")
    return keys

"""The warehouse in BigQuery: load jobs from the lake's bucket, partitions swapped as a whole.

Here: which loads and swaps replace a table or its partitions, and BigQuery's limits. Not
here: the SQL (statements.py), how a job is started and its faults told (jobs.py).
"""

import datetime as dt
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, ClassVar

from retail_assets.dataset import Column, Dataset
from retail_assets.resources.warehouse.jobs import (
    Jobs,
    Patience,
    WarehouseLocationError,
    faults_explained,
    label,
)
from retail_assets.resources.warehouse.protocol import (
    BY_HAND,
    LoadResult,
    Origin,
    WarehouseResource,
    WarehouseSchemaError,
    partition_keys,
)
from retail_assets.resources.warehouse.statements import (
    literal,
    record_statements,
    swap_statements,
    transaction,
)
from retail_assets.settings import Settings

if TYPE_CHECKING:
    from google.cloud import bigquery

# Source of both: "Quotas and limits", BigQuery, sections "Partitioned tables" and "Load jobs".
PARTITIONS_A_JOB = 4_000
URIS_A_LOAD_JOB = 10_000

_OPERATIONS = "retail_operations"
_MANAGED = {"managed-by": "retail-assets"}
# What dbt's datasets are called after the domain's name.
_LAYERS = ("_core", "_staging")
_STAGING_LIFE = dt.timedelta(days=1)
_RECORD = Dataset(
    schema=_OPERATIONS,
    name="loaded_partitions",
    description="What each partition of a table was last loaded or built from.",
    columns=(
        Column("table_name", "string", "Table, as schema.name.", key=True),
        Column("stage", "string", "landed, or a consumer such as marts.", key=True),
        Column("partition_key", "string", "Partition.", key=True),
        Column("version", "string", "Fingerprint of what it holds."),
    ),
    cluster_by=("table_name", "stage"),
)


class BigQueryWarehouse(WarehouseResource):
    """The warehouse (RETAIL_WAREHOUSE): landed tables and marts, in BigQuery.

    Its datasets are of one project, in one location; the lake is a bucket in that location.
    Every change is a load that replaces, or a transaction: to repeat one comes to the same.
    """

    reads_buckets: ClassVar[bool] = True
    bills_reads: ClassVar[bool] = True
    row_as_json: ClassVar[str] = "to_json_string(t)"

    project: str
    location: str
    max_bytes_billed: int | None = None
    emulator_host: str | None = None
    request_s: float = Patience.request_s
    retry_s: float = Patience.retry_s
    job_s: float = Patience.job_s
    first_wait_s: float = Patience.first_wait_s

    @staticmethod
    def of(settings: Settings) -> "BigQueryWarehouse":
        """The BigQuery warehouse that the settings name."""
        assert settings.bigquery is not None, "the warehouse is not BigQuery"
        return BigQueryWarehouse(
            project=settings.bigquery.project,
            location=settings.bigquery.location,
            max_bytes_billed=settings.bigquery_max_bytes_billed,
            emulator_host=settings.bigquery_emulator_host,
        )

    @contextmanager
    def get_client(self) -> Iterator["bigquery.Client"]:
        """Google's client, with application default credentials."""
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import bigquery

        given: dict[str, Any] = {"project": self.project, "location": self.location}
        if self.emulator_host is not None:
            given["credentials"] = AnonymousCredentials()
            given["client_options"] = {"api_endpoint": self.emulator_host}
        with closing(bigquery.Client(**given)) as client:
            yield client

    def replace_partitions(
        self,
        dataset: Dataset,
        uris: Sequence[str],
        versions: Mapping[str, str],
        origin: Origin = BY_HAND,
    ) -> LoadResult:
        """Load one partition by itself, or swap several in one transaction.

        A transaction holds at most ``PARTITIONS_A_JOB`` days: a longer range is cut, and a reader
        may see some cuts before the others. The record of a single partition follows its load:
        between the two the partition counts as old, and is loaded again if the run ends there.
        A table without partitions is a single one.

        See ``WarehouseResource``.
        """
        keys = partition_keys(dataset, versions)
        with self._jobs(dataset, origin) as jobs:
            self._prepare(jobs, dataset)
            if len(keys) == 1 and 0 < len(uris) <= URIS_A_LOAD_JOB:
                # BigQuery itself refuses rows of another partition.
                destination = self._reference(dataset, keys[0])
                rows = {keys[0]: jobs.load("load", uris, destination, _configuration(dataset))}
                self._record(jobs, dataset, "landed", versions)
            else:
                rows = self._swap(jobs, dataset, uris, versions)
            return LoadResult(dict.fromkeys(keys, 0) | rows, jobs.metadata())

    def replace_table(
        self,
        dataset: Dataset,
        uris: Sequence[str],
        versions: Mapping[str, str],
        origin: Origin = BY_HAND,
    ) -> LoadResult:
        """Load the whole table by one job that truncates it; see ``WarehouseResource``.

        A table of another partitioning or clustering, and one of more files or days than a job
        takes, is staged first, then created anew and filled: until that is done, readers see none
        or a part of it. A row of another day than asked for is found after a load by one job.
        """
        keys = partition_keys(dataset, versions)
        with self._jobs(dataset, origin) as jobs:
            found = self._create_tables(jobs, dataset)
            if (
                0 < len(uris) <= URIS_A_LOAD_JOB
                and len(keys) <= PARTITIONS_A_JOB
                and _layout(found) == _layout(_configuration(dataset))
            ):
                table = self._reference(dataset)
                loaded = jobs.load("table", uris, table, _configuration(dataset))
                rows = self._count(jobs, dataset, table)
                _check_rows(dataset, rows, keys, loaded, "The table holds them.")
                self._record(jobs, dataset, "landed", versions, forget=True)
            else:
                rows = self._swap(jobs, dataset, uris, versions, anew=True)
            return LoadResult(dict.fromkeys(keys, 0) | rows, jobs.metadata())

    def loaded_versions(
        self, dataset: Dataset, stage: str = "landed", timeout_s: float | None = None
    ) -> dict[str, str]:
        """Fingerprint of each partition as of its last load; {} where the table is not there."""
        with self._jobs(dataset, timeout_s=timeout_s) as jobs:
            if self._find(jobs, dataset) is None or self._find(jobs, _RECORD) is None:
                return {}
            found = jobs.query(
                "versions",
                f"SELECT partition_key, version FROM {self._sql_name(_RECORD)}"
                f" WHERE table_name = {literal(dataset.table)} AND stage = {literal(stage)}",
            )
            return {str(key): str(version) for key, version in found}

    def record_versions(self, dataset: Dataset, stage: str, versions: Mapping[str, str]) -> None:
        """Record that ``stage`` (a consumer such as the marts) now holds ``versions``."""
        with self._jobs(dataset) as jobs:
            self._create_dataset(jobs, _RECORD)
            self._create_table(jobs, _RECORD)
            self._record(jobs, dataset, stage, versions)

    def exclusive(self, timeout_s: float | None = None) -> AbstractContextManager[None]:
        """Nothing to hold: BigQuery takes many writers, and its jobs are atomic.

        Transactions that meet on a table are cancelled by BigQuery, and tried again here.
        """
        return nullcontext()

    def query(self, sql: str, *, timeout_s: float | None = None) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self._jobs(None, timeout_s=timeout_s) as jobs:
            return jobs.query("query", sql)

    def row_counts(self, timeout_s: float | None = None) -> dict[str, int]:
        """Rows of each table in our datasets, and in dbt's beside them.

        Ours are those of the record's tables; beside ``landed_shop`` or ``shop`` dbt's are called
        ``shop_core`` and ``shop_staging``.
        """
        with self._jobs(None, timeout_s=timeout_s) as jobs:
            if self._find(jobs, _RECORD) is None:
                return {}
            listed = f"SELECT DISTINCT table_name FROM {self._sql_name(_RECORD)}"
            ours = {str(table).partition(".")[0] for (table,) in jobs.query("tables", listed)}
            schemas = {found.dataset_id for found in jobs.client.list_datasets(**jobs.calls)}
            layers = {s: f"_{s.rpartition('_')[0]}" for s in schemas if s.endswith(_LAYERS)}
            beside = {s for s in layers if any(f"_{name}".endswith(layers[s]) for name in ours)}
            counts = " UNION ALL ".join(
                f"SELECT '{schema}.{table.table_id}', COUNT(*)"
                f" FROM `{self.project}.{schema}.{table.table_id}`"
                for schema in sorted(schemas & (ours | beside))
                for table in jobs.client.list_tables(f"{self.project}.{schema}", **jobs.calls)
                if table.table_type != "VIEW"
            )
            return dict(jobs.query("count", counts)) if counts else {}

    @contextmanager
    def _jobs(
        self,
        dataset: Dataset | None,
        origin: Origin = BY_HAND,
        timeout_s: float | None = None,
    ) -> Iterator[Jobs]:
        patience = Patience(self.request_s, self.retry_s, self.job_s, self.first_wait_s)
        table = dataset.table if dataset else "warehouse"
        labels = _MANAGED | {"run_id": origin.run_id, "asset": origin.asset}
        if dataset:
            labels["domain"] = _domain(dataset)
        where = f"{table} in BigQuery project {self.project}, location {self.location}"
        with faults_explained(where), self.get_client() as client:
            patience = patience.within(timeout_s)
            yield Jobs(client, self.location, table, labels, patience, self.max_bytes_billed)

    def _sql_name(self, dataset: Dataset) -> str:
        return f"`{self.project}.{dataset.schema}.{dataset.name}`"

    def _reference(self, dataset: Dataset, partition: str = "") -> "bigquery.TableReference":
        from google.cloud import bigquery

        name = dataset.name + (f"${dt.date.fromisoformat(partition):%Y%m%d}" if partition else "")
        return bigquery.DatasetReference(self.project, dataset.schema).table(name)

    def _prepare(self, jobs: Jobs, dataset: Dataset) -> None:
        """Create datasets and tables, or bring the table to its declaration if that adds only.

        Raises:
            WarehouseSchemaError: the table differs by more than a nullable column.
        """
        from google.api_core.exceptions import PreconditionFailed

        for last in (False, False, True):
            table = self._create_tables(jobs, dataset)
            fields = table.to_api_repr().get("schema", {}).get("fields", [])
            drift = dataset.compare_bigquery(fields)
            differences = [drift.describe()] if drift else []
            found, declared = _layout(table), _layout(_configuration(dataset))
            if found != declared:
                differences.append(f"it is {found}, declared {declared}")
            if not differences:
                return
            if found != declared or not drift.only_adds_nullable:
                raise WarehouseSchemaError(
                    f"{dataset.table} differs from its contract: {'; '.join(differences)}. Nothing"
                    f" was written. Run: retail-assets rebuild {dataset.table}"
                )
            table.schema = [*fields, *(column.bigquery_field for column in drift.missing)]
            try:
                jobs.client.update_table(table, ["schema"], **jobs.calls)
                return
            except PreconditionFailed:  # another run's change, or ours whose answer was lost
                if last:
                    raise

    def _create_tables(self, jobs: Jobs, dataset: Dataset) -> "bigquery.Table":
        """The table as it stands; it, the record and their datasets created where missing."""
        for table in (dataset, _RECORD):
            self._create_dataset(jobs, table)
        self._create_table(jobs, _RECORD)
        return self._create_table(jobs, dataset)

    def _create_dataset(self, jobs: Jobs, dataset: Dataset) -> None:
        """Create the BigQuery dataset of a table where it is missing.

        Raises:
            WarehouseLocationError: it is there, in another location.
        """
        from google.api_core.exceptions import NotFound
        from google.cloud import bigquery

        name = dataset.schema
        try:
            found = jobs.client.get_dataset(name, **jobs.calls)
        except NotFound:
            made = bigquery.Dataset(f"{self.project}.{name}")
            made.location = self.location
            made.description = "Tables of Retail Assets."
            made.labels = self._labels(dataset)
            found = jobs.client.create_dataset(made, exists_ok=True, **jobs.calls)
        self._check_location(f"dataset {self.project}.{name}", found.location)

    def _check_location(self, what: str, found: str | None) -> None:
        if found is not None and found.lower() != self.location.lower():
            raise WarehouseLocationError(
                f"{what}: expected in location {self.location}, which RETAIL_WAREHOUSE asks for,"
                f" found in {found}. Set ?location={found} in RETAIL_WAREHOUSE (the bucket of"
                " RETAIL_LAKE must be there too), or name a project without it."
            )

    @staticmethod
    def _labels(dataset: Dataset) -> dict[str, str]:
        return {**_MANAGED, "domain": _domain(dataset)}

    def _find(self, jobs: Jobs, dataset: Dataset) -> "bigquery.Table | None":
        from google.api_core.exceptions import NotFound

        with suppress(NotFound):
            table = jobs.client.get_table(self._reference(dataset), **jobs.calls)
            self._check_location(f"table {self.project}.{dataset.table}", table.location)
            return table
        return None

    def _create_table(
        self, jobs: Jobs, dataset: Dataset, expires: dt.datetime | None = None
    ) -> "bigquery.Table":
        """The table, created where it is missing."""
        from google.cloud import bigquery

        found = self._find(jobs, dataset)
        if found is not None:
            return found
        table = bigquery.Table(self._reference(dataset), schema=dataset.bigquery_schema)
        table.description = dataset.description
        table.labels = self._labels(dataset)
        layout = _configuration(dataset)
        if layout.time_partitioning:
            table.time_partitioning = layout.time_partitioning
        if layout.clustering_fields:
            table.clustering_fields = layout.clustering_fields
        if expires:
            table.expires = expires
        return jobs.client.create_table(table, exists_ok=True, **jobs.calls)

    def _swap(
        self,
        jobs: Jobs,
        dataset: Dataset,
        uris: Sequence[str],
        versions: Mapping[str, str],
        *,
        anew: bool = False,
    ) -> dict[str, int]:
        """Replace partitions by what files hold, with their record; rows by partition.

        The files are loaded into a staging table of this call's own first; then a transaction a
        cut. With ``anew`` the table is dropped in between, and created. No files empty.

        Raises:
            WarehouseSchemaError: a row is of none of the partitions; nothing was written.
        """
        staging = Dataset(
            schema=_OPERATIONS,
            name=f"stage_{dataset.schema}_{dataset.name}_{uuid.uuid4().hex}",
            description=f"Files on their way into {dataset.table}.",
            columns=dataset.columns,
            domain=_domain(dataset),
        )
        counts = self._stage(jobs, dataset, staging, uris, sorted(versions)) if uris else {}
        if anew:
            # The record first: rows that are not there must not count as loaded.
            self._record(jobs, dataset, "landed", {}, forget=True)
            jobs.client.delete_table(self._reference(dataset), not_found_ok=True, **jobs.calls)
            self._create_table(jobs, dataset)
        table, record = self._sql_name(dataset), self._sql_name(_RECORD)
        for number, keys in enumerate(_chunks(sorted(versions), PARTITIONS_A_JOB)):
            recorded = {key: versions[key] for key in keys}
            statements = [
                *swap_statements(dataset, table, keys, self._sql_name(staging) if uris else None),
                *record_statements(dataset, "landed", record, recorded),
            ]
            jobs.script(f"swap{number}", transaction(statements))
        if uris:
            jobs.client.delete_table(self._reference(staging), not_found_ok=True, **jobs.calls)
        return counts

    def _stage(
        self,
        jobs: Jobs,
        dataset: Dataset,
        staging: Dataset,
        uris: Sequence[str],
        keys: Sequence[str],
    ) -> dict[str, int]:
        """Load files into a staging table; rows by partition, none of them of another."""
        self._create_table(jobs, staging, dt.datetime.now(dt.UTC) + _STAGING_LIFE)
        table, loaded = self._reference(staging), 0
        for number, chunk in enumerate(_chunks(uris, URIS_A_LOAD_JOB)):
            configuration = _configuration(staging)
            if number:
                configuration.write_disposition = "WRITE_APPEND"
            loaded += jobs.load(f"stage{number}", chunk, table, configuration)
        counts = self._count(jobs, dataset, table)
        _check_rows(dataset, counts, keys, loaded, "Nothing was written.")
        return counts

    def _count(
        self, jobs: Jobs, dataset: Dataset, table: "bigquery.TableReference"
    ) -> dict[str, int]:
        column = dataset.partition_by
        found = jobs.query(
            "count",
            f"SELECT CAST(`{column}` AS STRING) AS partition_key, COUNT(*) AS row_count"
            f" FROM `{table}` GROUP BY partition_key"
            if column
            else f"SELECT '' AS partition_key, COUNT(*) AS row_count FROM `{table}`",
        )
        return {str(key): int(count) for key, count in found}

    def _record(
        self,
        jobs: Jobs,
        dataset: Dataset,
        stage: str,
        versions: Mapping[str, str],
        *,
        forget: bool = False,
    ) -> None:
        """Record ``versions``; with ``forget``, and nothing else of the table at any stage."""
        record = self._sql_name(_RECORD)
        statements = record_statements(dataset, stage, record, versions) if versions else []
        if forget:
            everything = f"DELETE FROM {record} WHERE table_name = {literal(dataset.table)}"
            statements = [everything, *statements[1:]]
        if statements:
            jobs.script("renew" if forget else "record", transaction(statements))


def _domain(dataset: Dataset) -> str:
    """Value of the label ``domain``."""
    return label(dataset.domain or dataset.schema)


def _chunks(items: Sequence[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _configuration(dataset: Dataset) -> "bigquery.LoadJobConfig":
    """A load of Parquet files that truncates, with the schema of the contract."""
    from google.cloud import bigquery

    configuration = bigquery.LoadJobConfig(
        source_format="PARQUET", write_disposition="WRITE_TRUNCATE"
    )
    configuration.schema = dataset.bigquery_schema
    if dataset.partition_by:
        configuration.time_partitioning = bigquery.TimePartitioning("DAY", dataset.partition_by)
    if dataset.cluster_by:
        configuration.clustering_fields = list(dataset.cluster_by)
    return configuration


def _layout(laid_out: "bigquery.Table | bigquery.LoadJobConfig") -> str:
    partitioning = laid_out.time_partitioning
    parts = f"by {partitioning.type_} of {partitioning.field}" if partitioning else "not"
    clusters = json.dumps(list(laid_out.clustering_fields or []))
    return f"partitioned {parts}, clustered by{clusters}"


def _check_rows(
    dataset: Dataset, counts: Mapping[str, int], keys: Sequence[str], loaded: int, outcome: str
) -> None:
    """Hold rows by partition against the partitions asked for, and the load's own count.

    Raises:
        WarehouseSchemaError: rows are of other partitions, or not all were counted.
    """
    strange = sorted(counts.keys() - set(keys))
    total = sum(counts.values())
    if strange or total != loaded:
        belong = total - sum(counts[key] for key in strange)
        raise WarehouseSchemaError(
            f"{dataset.table}: the files hold {loaded} rows, of which {belong} belong to the"
            " partitions asked for"
            + (f" (others: {', '.join(strange[:5])})" if strange else "")
            + f". {outcome} Materialize the processed partitions again."
        )

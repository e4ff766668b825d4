"""The warehouse in BigQuery: load jobs from the lake's bucket, partitions swapped as a whole.

Here: which jobs and statements replace a table or its partitions, and BigQuery's limits. Not
here: how a job is started once and its faults told (bigquery_jobs.py), DuckDB (warehouse.py).
"""

import datetime as dt
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

from retail_assets.dataset import Column, Dataset
from retail_assets.days import contiguous_ranges
from retail_assets.resources.bigquery_jobs import (
    Jobs,
    Patience,
    WarehouseLocationError,
    faults_explained,
    label,
    work_digest,
)
from retail_assets.resources.warehouse import (
    LoadResult,
    Origin,
    WarehouseResource,
    WarehouseSchemaError,
    partition_keys,
)
from retail_assets.settings import Settings

if TYPE_CHECKING:
    from google.cloud import bigquery

# Source of all three: "Quotas and limits", BigQuery, sections "Partitioned tables" and "Load jobs".
PARTITIONS_A_JOB = 4_000
URIS_A_LOAD_JOB = 10_000
# One call loads a table once (or once in URIS_A_LOAD_JOB files), however many partitions it has.
LOADS_A_TABLE_A_DAY = 1_500

_BY_HAND = Origin()
_OPERATIONS = "retail_operations"
_MANAGED = {"managed-by": "retail-assets"}
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


@dataclass(frozen=True)
class _Work:
    """One call's client and jobs."""

    client: "bigquery.Client"
    jobs: Jobs

    def sql_name(self, dataset: Dataset) -> str:
        return f"`{self.client.project}.{dataset.schema}.{dataset.name}`"


class BigQueryWarehouse(WarehouseResource):
    """BigQuery datasets of one project, in one location; the lake is a bucket in that location.

    Every change is a job with a name of its own: a retry finds the job that is there.
    """

    reads_buckets: ClassVar[bool] = True

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
        from google.cloud import bigquery

        if self.emulator_host is None:
            from dagster_gcp import BigQueryResource

            google = BigQueryResource(project=self.project, location=self.location)
            with google.get_client() as client, closing(client):
                yield client
            return
        from google.api_core.client_options import ClientOptions
        from google.auth.credentials import AnonymousCredentials

        with closing(
            bigquery.Client(
                project=self.project,
                location=self.location,
                credentials=AnonymousCredentials(),
                client_options=ClientOptions(api_endpoint=self.emulator_host),
            )
        ) as client:
            yield client

    def replace_partitions(
        self,
        dataset: Dataset,
        uris: Sequence[str],
        versions: Mapping[str, str],
        origin: Origin = _BY_HAND,
    ) -> LoadResult:
        """Load one partition by itself, or swap several in one transaction.

        A transaction holds at most ``PARTITIONS_A_JOB`` days: a longer range is cut, and a reader
        may see some cuts before the others. The record of a single partition follows its load:
        between the two the partition counts as old, and is loaded again if the run ends there.
        A table without partitions is a single one.

        See ``WarehouseResource``.
        """
        keys = partition_keys(dataset, versions)
        with self._work(dataset, origin, uris, versions) as work:
            self._prepare(work, dataset)
            if len(keys) == 1 and 0 < len(uris) <= URIS_A_LOAD_JOB:
                rows = self._load_partition(work, dataset, uris, keys[0])
                self._record(work, dataset, "landed", versions)
            else:
                rows = self._stage(work, dataset, uris, keys)
                self._swap(work, dataset, versions, sum(rows.values()) if uris else None)
            return LoadResult(dict.fromkeys(keys, 0) | rows, work.jobs.metadata())

    def replace_table(
        self,
        dataset: Dataset,
        uris: Sequence[str],
        versions: Mapping[str, str],
        origin: Origin = _BY_HAND,
    ) -> LoadResult:
        """Load the whole table by one job that truncates it; see ``WarehouseResource``.

        A table of another partitioning or clustering, and one of more files or days than a job
        takes, is staged first, then created anew and filled: until that is done, readers see none
        or a part of it. A row of another day than asked for is found after a load by one job.
        """
        keys = partition_keys(dataset, versions)
        with self._work(dataset, origin, uris, versions) as work:
            found = self._create_tables(work, dataset)
            if (
                0 < len(uris) <= URIS_A_LOAD_JOB
                and len(keys) <= PARTITIONS_A_JOB
                and _layout(found) == _declared_layout(dataset)
            ):
                job = work.jobs.load(
                    "table", uris, self._reference(dataset), _configuration(dataset)
                )
                counts = self._count(work, dataset, self._reference(dataset))
                _check_rows(dataset, counts, keys, job.output_rows or 0, "The table holds them.")
                self._record(work, dataset, "landed", versions, forget=True)
                rows = counts
            else:
                rows = self._stage(work, dataset, uris, keys)
                self._create_anew(work, dataset)
                self._swap(work, dataset, versions, sum(rows.values()) if uris else None)
            return LoadResult(dict.fromkeys(keys, 0) | rows, work.jobs.metadata())

    def loaded_versions(
        self, dataset: Dataset, stage: str = "landed", timeout_s: float | None = None
    ) -> dict[str, str]:
        """Fingerprint of each partition as of its last load; {} where the table is not there."""
        with self._work(dataset, timeout_s=timeout_s) as work:
            if self._find(work, dataset) is None or self._find(work, _RECORD) is None:
                return {}
            job = work.jobs.query(
                "versions",
                f"SELECT partition_key, version FROM {work.sql_name(_RECORD)}"
                " WHERE table_name = ? AND stage = ?",
                _parameters([dataset.table, stage]),
            )
            return {str(key): str(version) for key, version in work.jobs.rows(job)}

    def record_versions(self, dataset: Dataset, stage: str, versions: Mapping[str, str]) -> None:
        """Record that ``stage`` (a consumer such as the marts) now holds ``versions``."""
        with self._work(dataset, versions=versions) as work:
            self._create_dataset(work, _RECORD)
            self._create_table(work, _RECORD)
            self._record(work, dataset, stage, versions)

    def exclusive(self, timeout_s: float | None = None) -> AbstractContextManager[None]:
        """Nothing to hold: BigQuery takes many writers, and its jobs are atomic.

        Transactions that meet on a table are cancelled by BigQuery, and tried again here.
        """
        return nullcontext()

    def query(
        self, sql: str, parameters: Sequence[Any] = (), timeout_s: float | None = None
    ) -> list[tuple[Any, ...]]:
        """All rows of a query; ``?`` stands for a parameter."""
        with self._work(None, timeout_s=timeout_s) as work:
            return work.jobs.rows(work.jobs.query("query", sql, _parameters(parameters)))

    def row_counts(self, timeout_s: float | None = None) -> dict[str, int]:
        """Rows of each table in our datasets, and in dbt's beside them.

        Ours are those of the record's tables; dbt's are named after the ``domain`` that is their
        label, or that of a table in them, as ``<domain>_core``.
        """
        with self._work(None, timeout_s=timeout_s) as work:
            if self._find(work, _RECORD) is None:
                return {}
            job = work.jobs.query(
                "tables", f"SELECT DISTINCT table_name FROM {work.sql_name(_RECORD)}"
            )
            recorded = {str(table).partition(".")[0] for (table,) in work.jobs.rows(job)}
            schemas = {
                item.dataset_id: dict(item.labels)
                for item in work.client.list_datasets(retry=work.jobs.retry, timeout=self.request_s)
            }
            ours = schemas.keys() & recorded
            tables = {schema: self._list_tables(work, schema) for schema in ours}
            domains = {
                domain
                for schema in ours
                # A dataset may have been made by hand, without labels; its tables are ours.
                for domain in _domains([schemas[schema], *tables[schema].values()]) or {schema}
            }
            for schema in schemas.keys() - ours:
                if any(schema.startswith(f"{domain}_") for domain in domains):
                    tables[schema] = self._list_tables(work, schema)
            counts = " UNION ALL ".join(
                f"SELECT '{schema}.{name}', COUNT(*) FROM `{self.project}.{schema}.{name}`"
                for schema in sorted(tables)
                for name in tables[schema]
            )
            if not counts:
                return {}
            return dict(work.jobs.rows(work.jobs.query("count", counts)))

    def _list_tables(self, work: _Work, schema: str) -> dict[str, dict[str, str]]:
        """Labels of each table of a dataset that is no view, by its name."""
        listed = work.client.list_tables(
            f"{self.project}.{schema}", retry=work.jobs.retry, timeout=self.request_s
        )
        return {
            table.table_id: dict(table.labels) for table in listed if table.table_type != "VIEW"
        }

    @contextmanager
    def _work(
        self,
        dataset: Dataset | None,
        origin: Origin = _BY_HAND,
        uris: Sequence[str] = (),
        versions: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[_Work]:
        patience = Patience(self.request_s, self.retry_s, self.job_s, self.first_wait_s)
        patience = patience.within(timeout_s)
        table = dataset.table if dataset else "warehouse"
        where = f"{table} in BigQuery project {self.project}, location {self.location}"
        with faults_explained(where), self.get_client() as client:
            jobs = Jobs(
                client,
                self.location,
                table,
                work_digest(origin, table, uris, versions),
                _MANAGED
                | {"run_id": origin.run_id, "asset": origin.asset}
                | ({"domain": _domain(dataset)} if dataset else {}),
                patience,
                self.max_bytes_billed,
            )
            yield _Work(client, jobs)

    def _reference(self, dataset: Dataset, partition: str = "") -> "bigquery.TableReference":
        from google.cloud import bigquery

        name = dataset.name + (f"${partition.replace('-', '')}" if partition else "")
        return bigquery.DatasetReference(self.project, dataset.schema).table(name)

    def _prepare(self, work: _Work, dataset: Dataset) -> None:
        """Create datasets and tables, or bring the table to its declaration if that adds only.

        Raises:
            WarehouseSchemaError: the table differs by more than a nullable column.
        """
        from google.api_core.exceptions import PreconditionFailed

        for last in (False, False, True):
            table = self._create_tables(work, dataset)
            fields = table.to_api_repr().get("schema", {}).get("fields", [])
            drift = dataset.compare_bigquery(fields)
            differences = [drift.describe()] if drift else []
            found, declared = _layout(table), _declared_layout(dataset)
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
                work.client.update_table(
                    table, ["schema"], retry=work.jobs.retry, timeout=self.request_s
                )
                return
            except PreconditionFailed:  # another run's change, or ours whose answer was lost
                if last:
                    raise

    def _create_tables(self, work: _Work, dataset: Dataset) -> "bigquery.Table":
        """The table as it stands; it, the record and their datasets created where missing."""
        for table in (dataset, _RECORD):
            self._create_dataset(work, table)
        self._create_table(work, _RECORD)
        return self._create_table(work, dataset)

    def _create_dataset(self, work: _Work, dataset: Dataset) -> None:
        """Create the BigQuery dataset of a table where it is missing.

        Raises:
            WarehouseLocationError: it is there, in another location.
        """
        from google.api_core.exceptions import NotFound
        from google.cloud import bigquery

        name = dataset.schema
        try:
            found = work.client.get_dataset(name, retry=work.jobs.retry, timeout=self.request_s)
        except NotFound:
            made = bigquery.Dataset(f"{self.project}.{name}")
            made.location = self.location
            made.description = "Tables of Retail Assets."
            made.labels = self._labels(dataset)
            found = work.client.create_dataset(
                made, exists_ok=True, retry=work.jobs.retry, timeout=self.request_s
            )
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

    def _find(self, work: _Work, dataset: Dataset) -> "bigquery.Table | None":
        from google.api_core.exceptions import NotFound

        with suppress(NotFound):
            table = work.client.get_table(
                self._reference(dataset), retry=work.jobs.retry, timeout=self.request_s
            )
            self._check_location(f"table {self.project}.{dataset.table}", table.location)
            return table
        return None

    def _create_table(
        self, work: _Work, dataset: Dataset, expires: dt.datetime | None = None
    ) -> "bigquery.Table":
        """The table, created where it is missing."""
        from google.cloud import bigquery

        found = self._find(work, dataset)
        if found is not None:
            return found
        table = bigquery.Table(self._reference(dataset), schema=dataset.bigquery_schema)
        table.description = dataset.description
        table.labels = self._labels(dataset)
        if dataset.partition_by:
            table.time_partitioning = _partitioning(dataset)
        if dataset.cluster_by:
            table.clustering_fields = list(dataset.cluster_by)
        if expires:
            table.expires = expires
        return work.client.create_table(
            table, exists_ok=True, retry=work.jobs.retry, timeout=self.request_s
        )

    def _create_anew(self, work: _Work, dataset: Dataset) -> None:
        """Drop the table and its record, and create it; a job, so that no retry drops it again."""
        name, record = work.sql_name(dataset), work.sql_name(_RECORD)
        statements = [
            f"DROP TABLE IF EXISTS {name}",
            create_statement(dataset, name, self._labels(dataset)),
            f"DELETE FROM {record} WHERE table_name = {_literal(dataset.table)}",
        ]
        work.jobs.query("anew", ";\n".join(statements) + ";")

    def _load_partition(
        self, work: _Work, dataset: Dataset, uris: Sequence[str], key: str
    ) -> dict[str, int]:
        """Load the one partition: BigQuery itself refuses rows of another."""
        destination = self._reference(dataset, str(_day(key)) if key else "")
        job = work.jobs.load("load", uris, destination, _configuration(dataset))
        return {key: job.output_rows or 0}

    def _staging(self, work: _Work, dataset: Dataset) -> Dataset:
        return Dataset(
            schema=_OPERATIONS,
            name=f"stage_{dataset.schema}_{dataset.name}_{work.jobs.digest}",
            description=f"Files on their way into {dataset.table}.",
            columns=dataset.columns,
            domain=_domain(dataset),
        )

    def _stage(
        self, work: _Work, dataset: Dataset, uris: Sequence[str], keys: Sequence[str]
    ) -> dict[str, int]:
        """Load files into a staging table; rows by partition, none of them of another.

        Raises:
            WarehouseSchemaError: a row is of none of the partitions ``keys``.
        """
        if not uris:
            return {}
        staging = self._staging(work, dataset)
        self._create_table(work, staging, dt.datetime.now(dt.UTC) + _STAGING_LIFE)
        loaded = 0
        for number, chunk in enumerate(_chunks(uris, URIS_A_LOAD_JOB)):
            configuration = _configuration(staging)
            if number:
                configuration.write_disposition = "WRITE_APPEND"
            job = work.jobs.load(f"stage{number}", chunk, self._reference(staging), configuration)
            loaded += job.output_rows or 0
        counts = self._count(work, dataset, self._reference(staging))
        _check_rows(dataset, counts, keys, loaded, "Nothing was written.")
        return counts

    def _count(
        self, work: _Work, dataset: Dataset, table: "bigquery.TableReference"
    ) -> dict[str, int]:
        column = dataset.partition_by
        job = work.jobs.query(
            "count",
            f"SELECT CAST(`{column}` AS STRING) AS partition_key, COUNT(*) AS row_count"
            f" FROM `{table}` GROUP BY partition_key"
            if column
            else f"SELECT '' AS partition_key, COUNT(*) AS row_count FROM `{table}`",
        )
        return {str(key): int(count) for key, count in work.jobs.rows(job)}

    def _swap(
        self, work: _Work, dataset: Dataset, versions: Mapping[str, str], staged: int | None
    ) -> None:
        """Replace partitions by what is staged, with their record, a transaction a cut.

        ``staged`` is the rows in the staging table; None where there is none, which empties.
        """
        staging, record = self._staging(work, dataset), work.sql_name(_RECORD)
        for number, keys in enumerate(_chunks(sorted(versions), PARTITIONS_A_JOB)):
            statements = swap_statements(
                dataset,
                work.sql_name(dataset),
                keys,
                None if staged is None else work.sql_name(staging),
            )
            recorded = {key: versions[key] for key in keys}
            self._transaction(
                work,
                f"swap{number}",
                [*statements, *record_statements(dataset, "landed", record, recorded)],
                _guard(work.sql_name(staging), staged),
            )
        if staged is not None:
            work.client.delete_table(
                self._reference(staging),
                retry=work.jobs.retry,
                timeout=self.request_s,
                not_found_ok=True,
            )

    def _record(
        self,
        work: _Work,
        dataset: Dataset,
        stage: str,
        versions: Mapping[str, str],
        *,
        forget: bool = False,
    ) -> None:
        """Record ``versions``; with ``forget``, and nothing else of the table at any stage."""
        record = work.sql_name(_RECORD)
        statements = record_statements(dataset, stage, record, versions) if versions else []
        if forget:
            everything = f"DELETE FROM {record} WHERE table_name = {_literal(dataset.table)}"
            statements = [everything, *statements[1:]]
        if statements:
            self._transaction(work, "renew" if forget else "record", statements)

    def _transaction(
        self, work: _Work, step: str, statements: Sequence[str], guard: str = ""
    ) -> None:
        script = [guard] if guard else []
        script += ["BEGIN TRANSACTION", *statements, "COMMIT TRANSACTION"]
        work.jobs.query(step, ";\n".join(script) + ";")


def create_statement(dataset: Dataset, table: str, labels: Mapping[str, str]) -> str:
    """CREATE TABLE by the declaration."""
    columns = ", ".join(
        f"`{column.name}` {column.bigquery_type}{'' if column.nullable else ' NOT NULL'}"
        f" OPTIONS(description={_literal(column.description)})"
        for column in dataset.columns
    )
    clusters = ", ".join(f"`{name}`" for name in dataset.cluster_by)
    pairs = ", ".join(f"({_literal(name)}, {_literal(text)})" for name, text in labels.items())
    return (
        f"CREATE TABLE {table} ({columns})"
        + (f" PARTITION BY `{dataset.partition_by}`" if dataset.partition_by else "")
        + (f" CLUSTER BY {clusters}" if clusters else "")
        + f" OPTIONS(description={_literal(dataset.description)}, labels=[{pairs}])"
    )


def swap_statements(
    dataset: Dataset, table: str, keys: Sequence[str], staging: str | None
) -> list[str]:
    """DELETE of the partitions ``keys``, and INSERT of theirs from ``staging`` if there is one.

    The bounds are literals: by them BigQuery touches no other partition, and bills none. A table
    without partitions is replaced as a whole.
    """
    where = "TRUE"
    if dataset.partition_by:
        where = " OR ".join(
            f"`{dataset.partition_by}` BETWEEN DATE '{first}' AND DATE '{last}'"
            for first, last in contiguous_ranges(keys)
        )
    statements = [f"DELETE FROM {table} WHERE {where}"]
    if staging is not None:
        names = ", ".join(f"`{name}`" for name in dataset.column_names)
        statements.append(
            f"INSERT INTO {table} ({names}) SELECT {names} FROM {staging} WHERE {where}"
        )
    return statements


def record_statements(
    dataset: Dataset, stage: str, record: str, versions: Mapping[str, str]
) -> list[str]:
    """DELETE and INSERT of the record's rows of the partitions ``versions``."""
    table, stage = _literal(dataset.table), _literal(stage)
    keys = ", ".join(_literal(key) for key in versions)
    rows = ", ".join(f"({_literal(key)}, {_literal(version)})" for key, version in versions.items())
    return [
        f"DELETE FROM {record} WHERE table_name = {table} AND stage = {stage}"
        f" AND partition_key IN ({keys})",
        f"INSERT INTO {record} (table_name, stage, partition_key, version)"
        f" SELECT {table}, {stage}, entry.partition_key, entry.version"
        f" FROM UNNEST(ARRAY<STRUCT<partition_key STRING, version STRING>>[{rows}]) AS entry",
    ]


def _literal(text: str) -> str:
    """A string of BigQuery's SQL, whose escapes are JSON's."""
    return json.dumps(text, ensure_ascii=False)


def _domain(dataset: Dataset) -> str:
    """Value of the label ``domain``; dbt's datasets of a domain are named after it."""
    return label(dataset.domain or dataset.schema)


def _domains(labels: Iterable[Mapping[str, str]]) -> set[str]:
    """The domains that labels of ours name."""
    ours = (found for found in labels if _MANAGED.items() <= found.items())
    return {found["domain"] for found in ours if "domain" in found}


def _day(key: str) -> dt.date:
    return dt.date.fromisoformat(key)


def _guard(staging: str, staged: int | None) -> str:
    """Refuse a staging table that is not as it was counted: expired, or made anew."""
    if staged is None:
        return ""
    return (
        f"SELECT IF((SELECT COUNT(*) FROM {staging}) = {staged}, {staged},"
        " ERROR('the staging table is not as it was loaded: launch a new run'))"
    )


def _chunks(items: Sequence[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _partitioning(dataset: Dataset) -> "bigquery.TimePartitioning":
    from google.cloud import bigquery

    return bigquery.TimePartitioning(type_="DAY", field=dataset.partition_by)


def _configuration(dataset: Dataset) -> "bigquery.LoadJobConfig":
    """A load of Parquet files that truncates, with the schema of the contract."""
    from google.cloud import bigquery

    configuration = bigquery.LoadJobConfig(
        source_format="PARQUET", write_disposition="WRITE_TRUNCATE"
    )
    configuration.schema = dataset.bigquery_schema
    if dataset.partition_by:
        configuration.time_partitioning = _partitioning(dataset)
    if dataset.cluster_by:
        configuration.clustering_fields = list(dataset.cluster_by)
    return configuration


def _layout(table: "bigquery.Table") -> str:
    partitioning = table.time_partitioning
    parts = [f"by {partitioning.type_} of {partitioning.field}"] if partitioning else []
    return f"partitioned {''.join(parts) or 'not'}, clustered by" + json.dumps(
        list(table.clustering_fields or [])
    )


def _declared_layout(dataset: Dataset) -> str:
    parts = f"by DAY of {dataset.partition_by}" if dataset.partition_by else "not"
    return f"partitioned {parts}, clustered by" + json.dumps(list(dataset.cluster_by))


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


def _parameters(values: Sequence[Any]) -> list[Any]:
    """Positional parameters of a query, typed by their values.

    Raises:
        TypeError: a value is of a type that has none in BigQuery.
    """
    from google.cloud import bigquery

    return [
        bigquery.ArrayQueryParameter(None, _parameter_type(value[0]) if value else "STRING", value)
        if isinstance(value, list)
        else bigquery.ScalarQueryParameter(None, _parameter_type(value), value)
        for value in values
    ]


def _parameter_type(value: object) -> str:
    # bool is an int, and datetime a date: the narrower first.
    kinds: list[tuple[type, str]] = [
        (bool, "BOOL"),
        (int, "INT64"),
        (float, "FLOAT64"),
        (Decimal, "BIGNUMERIC"),
        (str, "STRING"),
        (bytes, "BYTES"),
        (dt.datetime, "DATETIME"),
        (dt.date, "DATE"),
    ]
    if isinstance(value, dt.datetime) and value.tzinfo:
        return "TIMESTAMP"
    if value is None:
        return "STRING"
    for kind, name in kinds:
        if isinstance(value, kind):
            return name
    raise TypeError(f"{type(value).__name__} is no type of a BigQuery parameter")

"""What doctor asks Google's APIs: credentials, permissions, locations, each with its fix.

Here: questions that change nothing, and which role answers a refusal. Not here: reading or
writing (lake/, warehouse/), printing (commands/).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from retail_assets.errors import PermanentError
from retail_assets.settings import BigQueryTarget, Settings

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from google.cloud import bigquery, storage

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_TIMEOUT_S = 10.0

_OBJECT_ROLE = "roles/storage.objectUser"
_BUCKET_ROLE = "roles/storage.legacyBucketReader"
_JOB_ROLE = "roles/bigquery.jobUser"
_DATA_ROLE = "roles/bigquery.dataEditor"
_CREATE_ROLE = "roles/bigquery.user"
# What the lake does -> the least role that has it. Source: "IAM roles for Cloud Storage".
BUCKET_PERMISSIONS = {
    "storage.objects.get": _OBJECT_ROLE,
    "storage.objects.list": _OBJECT_ROLE,
    "storage.objects.create": _OBJECT_ROLE,
    "storage.objects.delete": _OBJECT_ROLE,
    "storage.buckets.get": _BUCKET_ROLE,
}
# What loading, reading and rebuilding a table takes. Source: "BigQuery IAM roles and permissions".
TABLE_PERMISSIONS = (
    "bigquery.tables.getData",
    "bigquery.tables.updateData",
    "bigquery.tables.update",
    "bigquery.tables.delete",
)
# Regions in Europe that are not of the multi-region EU. Source: "BigQuery locations".
_OUTSIDE_EU = ("EUROPE-WEST2", "EUROPE-WEST6")
_INSIDE = {"EU": ("EUROPE-", "EUR"), "US": ("US-", "NAM")}


class CheckFailedError(PermanentError):
    """An answer that is not well; ``fix`` says what to do."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(found)
        self.fix = fix


@dataclass(frozen=True)
class Question:
    """One question: what it is about, how to ask it, what to do if asking itself breaks.

    ``ask`` returns what was found, or raises.
    """

    system: str
    ask: Callable[[], str]
    fix: str


def may_load(bucket: str, dataset: str) -> bool:
    """Whether BigQuery loads from a bucket's location into a dataset's.

    The two must be one location, or the bucket's must lie within the dataset's multi-region; a
    dataset in a region does not load from the multi-region around it.
    Source: BigQuery, "Data location and transfers", "Colocation required".
    """
    bucket, dataset = bucket.upper(), dataset.upper()
    if bucket == dataset:
        return True
    return bucket.startswith(_INSIDE.get(dataset, ())) and bucket not in _OUTSIDE_EU


class CloudChecks:
    """The questions to Google that the settings give rise to; none where they name no Google.

    ``datasets`` are BigQuery's datasets of ours, each with a table of it that is loaded, if any.
    """

    def __init__(self, settings: Settings, datasets: Mapping[str, str | None]) -> None:
        self._settings = settings
        self._datasets = datasets
        self._bucket: storage.Bucket | None = None

    def questions(self) -> Iterator[Question]:
        """Every question, credentials first."""
        lake, target = self._bucket_name, self._settings.bigquery
        if lake is None:  # then the warehouse is local too: settings see to it
            return
        if not self._emulated:
            yield Question("google credentials", self._account, _LOGIN)
        reach = "see that this machine reaches {}.googleapis.com, then ask again"
        yield Question("lake bucket", self._ask_bucket, reach.format("storage"))
        yield Question("lake permissions", self._ask_permissions, reach.format("storage"))
        if target is None:
            return
        reach = reach.format("bigquery")
        yield Question("warehouse query", self._ask_query, reach)
        for dataset, table in self._datasets.items():
            yield Question(
                f"warehouse dataset {dataset}",
                lambda dataset=dataset, table=table: self._ask_dataset(dataset, table),  # type: ignore[misc]
                reach,
            )
        yield Question("warehouse location", self._ask_location, "mend the lake's bucket first")

    # Credentials

    @property
    def _emulated(self) -> bool:
        hosts = [self._settings.storage_emulator_host]
        if self._settings.bigquery is not None:
            hosts.append(self._settings.bigquery_emulator_host)
        return all(hosts)

    @cached_property
    def _credentials(self) -> "tuple[Credentials, str | None] | CheckFailedError":
        """The account and its project, or why there is none: found once, whatever comes of it."""
        import google.auth
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
        from google.auth.transport.requests import Request

        try:
            credentials, project = google.auth.default(scopes=[_SCOPE])
        except DefaultCredentialsError:
            return CheckFailedError(
                "no application default credentials were found in the environment, in gcloud's"
                " folder or from a metadata server",
                _LOGIN,
            )
        try:
            credentials.refresh(Request())
        except GoogleAuthError as error:
            return CheckFailedError(
                f"application default credentials were found, but give no token: {error}", _LOGIN
            )
        return credentials, project

    def _account(self) -> str:
        if isinstance(self._credentials, CheckFailedError):
            raise self._credentials
        credentials, project = self._credentials
        kind = type(credentials).__module__
        return (
            f"{_member(credentials) or 'an account that does not tell its name'},"
            f" {_KINDS.get(kind, f'by {kind}')}, project {project or 'unset'}"
        )

    def _client_arguments(self, emulator: str | None) -> dict[str, Any]:
        if emulator:
            from google.auth.credentials import AnonymousCredentials

            return {
                "credentials": AnonymousCredentials(),
                "client_options": {"api_endpoint": emulator},
            }
        if isinstance(self._credentials, CheckFailedError):
            raise CheckFailedError("not asked: there are no credentials", self._credentials.fix)
        return {"credentials": self._credentials[0]}

    @cached_property
    def _grantee(self) -> str:
        """The account in the form of an IAM policy, as far as it is known."""
        if self._emulated or isinstance(self._credentials, CheckFailedError):
            return "MEMBER"
        return _member(self._credentials[0]) or "MEMBER"

    def _refusal(self, error: Exception, api: str, what: str, fix: str) -> CheckFailedError:
        """A refusal as a finding, with its fix: another where the API is not switched on."""
        details: list[Any] = [*getattr(error, "errors", ()), *getattr(error, "details", ())]
        if any(word in str(details) for word in ("accessNotConfigured", "SERVICE_DISABLED")):
            target = self._settings.bigquery
            project = target.project if target else "PROJECT"
            fix = f"gcloud services enable {api}.googleapis.com --project={project}"
        # Google's own words, without the request's line.
        said = str(getattr(error, "message", error)).rpartition("prettyPrint=false: ")[2]
        return CheckFailedError(f"{what}: {said.rstrip('.')}", fix)

    # The lake

    @property
    def _bucket_name(self) -> str | None:
        scheme, _, rest = self._settings.lake.partition("://")
        return rest.partition("/")[0] if scheme == "gs" else None

    @cached_property
    def _storage(self) -> "storage.Client":
        from google.cloud import storage

        target = self._settings.bigquery
        return storage.Client(
            project=target.project if target else "unused",
            **self._client_arguments(self._settings.storage_emulator_host),
        )

    def _bucket_fault(self, error: Exception, permission: str) -> Exception:
        """A refusal of Cloud Storage as a finding; other errors as they are."""
        from google.api_core.exceptions import Forbidden, NotFound

        bucket, target = self._bucket_name, self._settings.bigquery
        if isinstance(error, Forbidden):
            what = f"gs://{bucket} refuses {permission}"
            return self._refusal(error, "storage", what, self._grant_bucket(permission))
        if isinstance(error, NotFound):
            location = target.location if target else "EU"
            return CheckFailedError(
                f"there is no bucket gs://{bucket}",
                f"gcloud storage buckets create gs://{bucket} --location={location}"
                " --uniform-bucket-level-access --public-access-prevention; or correct RETAIL_LAKE",
            )
        return error

    def _grant_bucket(self, *permissions: str) -> str:
        roles = sorted({BUCKET_PERMISSIONS[permission] for permission in permissions})
        return "; ".join(
            f"grant {role} on the bucket: gcloud storage buckets add-iam-policy-binding"
            f" gs://{self._bucket_name} --member={self._grantee} --role={role}"
            for role in roles
        )

    def _ask_bucket(self) -> str:
        client = self._storage
        try:
            bucket = self._bucket = client.get_bucket(self._bucket_name, **_calls())
        except Exception as error:
            raise self._bucket_fault(error, "storage.buckets.get") from error
        notes = [f"gs://{bucket.name}, {bucket.location} ({bucket.location_type or 'location'})"]
        access = bucket.iam_configuration
        if not access.uniform_bucket_level_access_enabled:
            notes.append("without uniform bucket-level access (docs/production.md)")
        if access.public_access_prevention != "enforced":
            notes.append("without public access prevention (docs/production.md)")
        return "; ".join(notes)

    def _ask_permissions(self) -> str:
        bucket = self._storage.bucket(self._bucket_name)
        try:
            granted = bucket.test_iam_permissions(list(BUCKET_PERMISSIONS), **_calls())
        except Exception as error:
            raise self._bucket_fault(error, "storage.objects.get") from error
        missing = [name for name in BUCKET_PERMISSIONS if name not in granted]
        if missing:
            raise CheckFailedError(
                f"gs://{self._bucket_name} lacks {', '.join(missing)}",
                self._grant_bucket(*missing),
            )
        return f"gs://{self._bucket_name} grants {', '.join(BUCKET_PERMISSIONS)}"

    # The warehouse

    @property
    def _target(self) -> BigQueryTarget:
        target = self._settings.bigquery
        assert target is not None, "the warehouse is not BigQuery"
        return target

    @cached_property
    def _bigquery(self) -> "bigquery.Client":
        from google.cloud import bigquery

        return bigquery.Client(
            project=self._target.project,
            location=self._target.location,
            **self._client_arguments(self._settings.bigquery_emulator_host),
        )

    def _dry_run(self, sql: str) -> None:
        """Have BigQuery check a statement and our right to it; nothing runs, nothing is billed."""
        from google.cloud import bigquery

        self._bigquery.query(
            sql,
            job_config=bigquery.QueryJobConfig(dry_run=True, use_query_cache=False),
            job_retry=None,
            **_calls(),
        )

    def _grant_project(self, role: str) -> str:
        return (
            f"grant {role} on the project: gcloud projects add-iam-policy-binding"
            f" {self._target.project} --member={self._grantee} --role={role}"
        )

    def _grant_dataset(self, dataset: str) -> str:
        return (
            f"grant {_DATA_ROLE} on the dataset: bq query --use_legacy_sql=false"
            f" 'GRANT `{_DATA_ROLE}` ON SCHEMA `{self._target.project}`.{dataset}"
            f' TO "{self._grantee}"\''
        )

    def _ask_query(self) -> str:
        from google.api_core.exceptions import BadRequest, Forbidden, NotFound

        project = self._target.project
        try:
            self._dry_run("select 1")
        except Forbidden as error:
            what = f"project {project} refuses bigquery.jobs.create"
            raise self._refusal(error, "bigquery", what, self._grant_project(_JOB_ROLE)) from error
        except (BadRequest, NotFound) as error:
            raise self._refusal(
                error,
                "bigquery",
                f"project {project} takes no query in {self._target.location}",
                "correct the project or location in RETAIL_WAREHOUSE, or gcloud services enable"
                f" bigquery.googleapis.com --project={project}",
            ) from error
        most = self._settings.bigquery_max_bytes_billed
        limit = f"at most {most:,} bytes each" if most else "no RETAIL_BIGQUERY_MAX_BYTES_BILLED"
        return f"project {project} takes queries in {self._target.location}, {limit}"

    def _ask_dataset(self, dataset: str, table: str | None) -> str:
        from google.api_core.exceptions import Forbidden, NotFound

        name, client = f"{self._target.project}.{dataset}", self._bigquery
        try:
            found = client.get_dataset(name, **_calls())
        except NotFound:
            return self._ask_creation(dataset)
        except Forbidden as error:
            what = f"{name} refuses bigquery.datasets.get"
            raise self._refusal(error, "bigquery", what, self._grant_dataset(dataset)) from error
        if str(found.location).upper() != self._target.location.upper():
            raise CheckFailedError(
                f"{name} is in {found.location}, but RETAIL_WAREHOUSE asks for"
                f" {self._target.location}; BigQuery never moves a dataset",
                f"set RETAIL_WAREHOUSE=bigquery://{self._target.project}?location={found.location},"
                " or, if nothing in it is needed, drop the dataset: bq rm -r"
                f" {self._target.project}:{dataset}",
            )
        if missing := self._missing_in(dataset, table):
            raise CheckFailedError(
                f"{name} lacks {', '.join(missing)}", self._grant_dataset(dataset)
            )
        return f"{name}, {found.location}, may be written"

    def _missing_in(self, dataset: str, table: str | None) -> list[str]:
        """Permissions that a dataset, and its table where that is there, does not grant."""
        from google.api_core.exceptions import Forbidden, NotFound

        name, client = f"{self._target.project}.{dataset}", self._bigquery
        missing = []
        try:
            self._dry_run(
                f"create table `{self._target.project}`.{dataset}.retail_doctor_probe (x int64)"
            )
        except Forbidden:
            missing.append("bigquery.tables.create")
        if table is None:
            return missing
        try:
            # Asked first: of a table that is not there BigQuery says that nothing is granted.
            client.get_table(f"{name}.{table}", **_calls())
        except NotFound:
            return missing
        except Forbidden:
            return [*missing, "bigquery.tables.get"]
        wanted = list(TABLE_PERMISSIONS)
        answer = client.test_iam_permissions(f"{name}.{table}", wanted, **_calls())
        granted = answer.get("permissions", ())
        return [*missing, *(name for name in TABLE_PERMISSIONS if name not in granted)]

    def _ask_creation(self, dataset: str) -> str:
        from google.api_core.exceptions import Forbidden

        target = self._target
        try:
            self._dry_run(
                f"create schema `{target.project}`.{dataset}"
                f" options (location = '{target.location}')"
            )
        except Forbidden as error:
            raise self._refusal(
                error,
                "bigquery",
                f"{target.project}.{dataset} is not there, and bigquery.datasets.create is refused",
                f"{self._grant_project(_CREATE_ROLE)}; or create it: bq mk --dataset"
                f" --location={target.location} {target.project}:{dataset}, and"
                f" {self._grant_dataset(dataset)}",
            ) from error
        return f"{target.project}.{dataset} is not there yet, may be created in {target.location}"

    def _ask_location(self) -> str:
        bucket = self._bucket
        if bucket is None:
            raise CheckFailedError(
                "the bucket's location is not known", "mend what lake bucket says"
            )
        where, wanted = str(bucket.location), self._target.location
        if not may_load(where, wanted):
            instead = where.lower() if "-" in where else where  # as BigQuery writes a region
            raise CheckFailedError(
                f"gs://{bucket.name} is in {where}, the datasets in {wanted}: BigQuery loads only"
                " from a bucket in the dataset's own location, or in a region within its"
                " multi-region",
                f"make a bucket in {wanted} and set RETAIL_LAKE to it, or set RETAIL_WAREHOUSE="
                f"bigquery://{self._target.project}?location={instead} before the first load",
            )
        return f"the bucket is in {where}, the datasets in {wanted}: load jobs work"


_LOGIN = (
    "on Google Cloud, attach a service account to the machine; elsewhere, use workload identity"
    " federation, or gcloud auth application-default login (no key file is needed)"
)

_KINDS = {
    "google.auth.compute_engine.credentials": "attached to this machine",
    "google.auth.identity_pool": "by workload identity federation",
    "google.auth.impersonated_credentials": "by impersonation",
    "google.oauth2.credentials": "by gcloud's login",
    "google.oauth2.service_account": "by a key file, which an attached account would spare",
}


def _member(credentials: "Credentials") -> str:
    """The account as IAM policies name it; empty where the credentials do not tell."""
    if service := getattr(credentials, "service_account_email", None):
        return "" if service == "default" else f"serviceAccount:{service}"
    user = getattr(credentials, "account", None)
    return f"user:{user}" if user else ""


def _calls() -> dict[str, Any]:
    """Of every request: it is not waited for long."""
    from google.api_core.retry import Retry

    return {"timeout": _TIMEOUT_S, "retry": Retry(timeout=_TIMEOUT_S)}

"""BigQuery's jobs: started once whatever happens on the way, waited for, and their faults told.

Here: a job's name, labels, retries, and what each fault means to a person. Not here: which jobs
replace a table (warehouse_bigquery.py).
"""

import hashlib
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.warehouse import Origin, WarehouseSchemaError

if TYPE_CHECKING:
    from google.api_core.retry import Retry
    from google.cloud import bigquery

    Job = TypeVar("Job", bigquery.LoadJob, bigquery.QueryJob)
else:
    Job = TypeVar("Job")

# Source: "Running jobs programmatically", BigQuery: at most 1,024 of letters, digits, _ and -.
JOB_ID_CHARACTERS = 1024
# Source: "Requirements for labels", BigQuery: lower case, digits, _ and -, at most 63 characters.
LABEL_CHARACTERS = 63

_DIGEST_CHARACTERS = 32
_MOST_JOBS = 5  # of one step, before its call gives up
_MOST_NAMES = 100  # tried by one step over all the retries of its run
_LONGEST_WAIT_S = 60.0
_WORDS = {"LoadJob": "load", "QueryJob": "query"}

# Source: "Error messages", BigQuery's troubleshooting; job... are a job's own.
_PASSING_REASONS = frozenset(
    (
        "backendError",
        "badGateway",
        "internalError",
        "jobBackendError",
        "jobInternalError",
        "jobRateLimitExceeded",
        "quotaExceeded",
        "rateLimitExceeded",
        "tableUnavailable",
        "timeout",
    )
)
_PASSING_CODES = frozenset((408, 429, 500, 502, 503, 504))
_QUOTA_REASONS = frozenset(("quotaExceeded", "rateLimitExceeded", "jobRateLimitExceeded"))
# A transaction that met another is cancelled with a reason (invalidQuery) that says nothing.
_MET_ANOTHER = re.compile(r"aborted due to concurrent update|could not serialize access", re.I)
_PERMISSION = re.compile(r"\b((?:bigquery|storage)\.\w+\.\w+)\b")


class WarehouseAccessError(PermanentError):
    """BigQuery refused: credentials or a role are missing."""


class WarehouseLocationError(PermanentError):
    """A dataset, or the bucket, lies in another location than the one configured."""


class WarehouseQueryError(PermanentError):
    """BigQuery refused a job, and would again."""


class WarehouseUnavailableError(TransientError):
    """BigQuery did not answer, or was over a quota, for as long as this one tries."""


@dataclass(frozen=True)
class Patience:
    """How long is waited: for a request, for retries of one, for a job; seconds."""

    request_s: float = 60.0
    retry_s: float = 300.0
    job_s: float = 3600.0
    first_wait_s: float = 1.0

    def within(self, timeout_s: float | None) -> "Patience":
        """The same, but none longer than ``timeout_s``."""
        if timeout_s is None:
            return self
        shortest = max(timeout_s, 0.001)
        return Patience(
            min(self.request_s, shortest),
            min(self.retry_s, shortest),
            min(self.job_s, shortest),
            self.first_wait_s,
        )

    def retry(self, also: "tuple[type[Exception], ...]" = ()) -> "Retry":
        """Google's retry of one request: growing waits, until ``retry_s`` have passed."""
        from google.api_core.retry import Retry

        return Retry(
            predicate=lambda error: isinstance(error, also) or passes(error),
            initial=self.first_wait_s,
            maximum=_LONGEST_WAIT_S,
            multiplier=2.0,
            timeout=self.retry_s,
        )


def work_digest(
    origin: Origin, table: str, uris: Sequence[str] = (), versions: Mapping[str, str] | None = None
) -> str:
    """What tells one piece of work from another, the same whenever its run tries it again.

    Work by hand has no run to be tried again in: it is never the same.
    """
    run_id = uuid.uuid4().hex if origin == Origin() else origin.run_id
    work = [run_id, origin.asset, table, list(uris), sorted((versions or {}).items())]
    return hashlib.sha256(json.dumps(work).encode()).hexdigest()[:_DIGEST_CHARACTERS]


def job_id(table: str, step: str, digest: str, attempt: int) -> str:
    """``retail_<table>_<step>_<digest>_<attempt>``, the table cut where it is too long."""
    tail = f"_{step}_{digest}_{attempt}"
    head = re.sub(r"[^A-Za-z0-9_-]", "_", f"retail_{table}")
    return head[: JOB_ID_CHARACTERS - len(tail)] + tail


def label(text: str) -> str:
    """``text`` as the value of a label."""
    return re.sub(r"[^a-z0-9_-]", "_", text.lower())[:LABEL_CHARACTERS]


class Jobs:
    """Jobs of one piece of work, in order; ``done`` are those that ended well."""

    def __init__(
        self,
        client: "bigquery.Client",
        location: str,
        table: str,
        digest: str,
        labels: Mapping[str, str],
        patience: Patience,
        max_bytes_billed: int | None = None,
    ) -> None:
        self.client = client
        self.location = location
        self.table = table
        self.digest = digest
        self.labels = {name: label(text) for name, text in labels.items()}
        self.patience = patience
        self.max_bytes_billed = max_bytes_billed
        self.retry = patience.retry()
        self.done: list[bigquery.LoadJob | bigquery.QueryJob] = []

    def load(
        self,
        step: str,
        uris: Sequence[str],
        destination: "bigquery.TableReference",
        configuration: "bigquery.LoadJobConfig",
    ) -> "bigquery.LoadJob":
        """Load Parquet files into a table or a partition, once."""
        from google.cloud import bigquery

        configuration.labels = self.labels
        return self._run(
            step,
            lambda name: self.client.load_table_from_uri(
                list(uris),
                destination,
                job_id=name,
                location=self.location,
                job_config=configuration,
                retry=self.retry,
                timeout=self.patience.request_s,
            ),
            bigquery.LoadJob,
        )

    def query(
        self,
        step: str,
        sql: str,
        parameters: "Sequence[bigquery.ScalarQueryParameter | bigquery.ArrayQueryParameter]" = (),
    ) -> "bigquery.QueryJob":
        """Run a query or a script, once."""
        from google.cloud import bigquery

        configuration = bigquery.QueryJobConfig(labels=self.labels)
        configuration.job_timeout_ms = int(self.patience.job_s * 1000)
        if parameters:
            configuration.query_parameters = list(parameters)
        if self.max_bytes_billed is not None:
            configuration.maximum_bytes_billed = self.max_bytes_billed
        return self._run(
            step,
            lambda name: self.client.query(
                sql,
                job_id=name,
                location=self.location,
                job_config=configuration,
                retry=self.retry,
                timeout=self.patience.request_s,
                job_retry=None,
            ),
            bigquery.QueryJob,
        )

    def rows(self, job: "bigquery.QueryJob") -> list[tuple[Any, ...]]:
        """All rows of a query that is done."""
        found = job.result(retry=self.retry, timeout=self.patience.request_s, job_retry=None)
        return [tuple(row.values()) for row in found]

    def metadata(self) -> dict[str, Any]:
        """What the jobs cost, and their names."""
        from google.cloud import bigquery

        queries = [job for job in self.done if isinstance(job, bigquery.QueryJob)]
        loads = [job for job in self.done if isinstance(job, bigquery.LoadJob)]
        return {
            "bytes_loaded": sum(job.input_file_bytes or 0 for job in loads),
            "bytes_processed": sum(job.total_bytes_processed or 0 for job in queries),
            "bytes_billed": sum(job.total_bytes_billed or 0 for job in queries),
            "bigquery_jobs": [job.job_id for job in self.done],
        }

    def _run(self, step: str, start: Callable[[str], Job], kind: type[Job]) -> Job:
        """Start the job under its first name that has not failed before, and see it through."""
        failures = 0
        for attempt in range(1, _MOST_NAMES + 1):
            name = job_id(self.table, step, self.digest, attempt)
            what = f"{_WORDS[kind.__name__]} job {name}"
            job, found = self._start(name, what, self._where(step), start)
            assert isinstance(job, kind), f"{name} is no {kind.__name__}"
            self._wait(job)
            if job.error_result is None:
                self.done.append(job)
                return job
            if found:  # the failure of an earlier try: this one is the retry
                continue
            failures += 1
            reason = str(job.error_result.get("reason", ""))
            message = str(job.error_result.get("message", ""))
            if not (reason in _PASSING_REASONS or _MET_ANOTHER.search(message)):
                raise explain(reason, message, what, self._where(step))
            if failures == _MOST_JOBS:
                raise _unavailable(f"{self._where(step)}, {what}", f"{reason}: {message}")
            time.sleep(min(self.patience.first_wait_s * 2**failures, _LONGEST_WAIT_S))
        raise WarehouseQueryError(
            f"{self.table}: step {step} failed {_MOST_NAMES} times in one run. Look at its jobs"
            f" ({job_id(self.table, step, self.digest, 1)} and on), mend the cause, and launch a"
            " new run."
        )

    def _start(
        self, name: str, what: str, where: str, start: Callable[[str], Job]
    ) -> tuple[Job, bool]:
        """The job of that name, and whether it was there already."""
        from google.api_core.exceptions import Conflict, GoogleAPICallError, NotFound

        try:
            return start(name), False
        except Conflict:
            # Our request arrived, if its answer did not; or the run was here before. A job that
            # was inserted a moment ago may not be found at once.
            job: Any = self.client.get_job(
                name,
                location=self.location,
                retry=self.patience.retry(also=(NotFound,)),
                timeout=self.patience.request_s,
            )
            return job, True
        except GoogleAPICallError as error:
            # Some faults of a job come at once, as the answer to its request.
            if passes(error) or not (reason := _reason(error)):
                raise
            raise explain(reason, error.message, what, where) from error

    def _wait(self, job: "bigquery.LoadJob | bigquery.QueryJob") -> None:
        wait, deadline = 0.2, time.monotonic() + self.patience.job_s
        while job.state != "DONE":
            if time.monotonic() > deadline:
                raise _unavailable(
                    f"job {job.job_id}", f"not done after {self.patience.job_s:.0f} s"
                )
            time.sleep(min(wait, self.patience.first_wait_s * 5))
            wait = min(wait * 1.5, 5.0)
            job.reload(retry=self.retry, timeout=self.patience.request_s)

    def _where(self, step: str) -> str:
        return f"{self.table}, step {step}, project {self.client.project}, location {self.location}"


def passes(error: BaseException) -> bool:
    """Whether a failed request may go well a moment later."""
    import requests
    from google.auth.exceptions import TransportError

    if isinstance(error, requests.exceptions.SSLError):
        return False
    if isinstance(
        error,
        ConnectionError
        | TransportError
        | requests.exceptions.ConnectionError
        | requests.exceptions.ChunkedEncodingError
        | requests.exceptions.Timeout,
    ):
        return True
    return _reason(error) in _PASSING_REASONS or getattr(error, "code", None) in _PASSING_CODES


@contextmanager
def faults_explained(where: str) -> Iterator[None]:
    """Turn errors of Google's clients into ours; ``where`` says what was at work.

    Raises:
        PermanentError: a subclass, for what no retry mends.
        WarehouseUnavailableError: for what may pass, once the retries are used up.
    """
    import requests
    from google.api_core.exceptions import GoogleAPICallError, RetryError
    from google.auth.exceptions import GoogleAuthError, TransportError

    try:
        yield
    except RetryError as error:
        raise _unavailable(where, str(error.cause)) from error
    except GoogleAPICallError as error:
        if passes(error):
            raise _unavailable(where, error.message) from error
        reason = _reason(error) or {401: "authError", 403: "accessDenied", 404: "notFound"}.get(
            int(error.code or 0), ""
        )
        raise explain(reason, error.message, "a request", where) from error
    except (requests.exceptions.RequestException, TransportError, ConnectionError) as error:
        raise _unavailable(where, str(error)) from error
    except GoogleAuthError as error:
        raise WarehouseAccessError(
            f"{where}: expected application default credentials, found: {error}. Run: gcloud auth"
            " application-default login; or run where a service account is attached."
        ) from error


def explain(reason: str, message: str, what: str, where: str) -> PermanentError:
    """The error behind a ``reason`` of BigQuery: what was at work, found, and what to do."""
    found = f"{where}: BigQuery refused {what} ({reason or 'no reason'}): {message}"
    text = message.lower()
    if "different locations" in text or "not found in location" in text:
        return WarehouseLocationError(
            f"{found}. If it lies in another location, set ?location= of RETAIL_WAREHOUSE to that,"
            " and keep the bucket of RETAIL_LAKE there too; retail-assets doctor compares them."
        )
    if reason == "authError":
        return WarehouseAccessError(
            f"{found}. Run: gcloud auth application-default login; or run where a service account"
            " is attached."
        )
    if reason in ("accessDenied", "forbidden", "insufficientPermissions"):
        return WarehouseAccessError(f"{found}. {missing_role(message)}")
    if reason == "bytesBilledLimitExceeded":
        return WarehouseQueryError(
            f"{found}. Ask for fewer partitions, or raise RETAIL_BIGQUERY_MAX_BYTES_BILLED."
        )
    if reason == "notFound" and "gs://" in message:
        return WarehouseQueryError(f"{found}. Materialize the processed partitions again.")
    if reason == "notFound":
        return WarehouseQueryError(
            f"{found}. Look at project and location in RETAIL_WAREHOUSE; retail-assets doctor tells"
            " what is there."
        )
    # What a load job says of files, or a schema, that do not fit.
    if reason == "invalid" and what.startswith("load job"):
        return WarehouseSchemaError(
            f"{found}. Expected files of the contract's columns, with rows of the partitions asked"
            " for alone. Nothing was written. Materialize the processed partitions again."
        )
    return WarehouseQueryError(f"{found}. Mend the cause and run this again.")


def missing_role(message: str) -> str:
    """Which permission was missing, and the role that has it, by BigQuery's own words."""
    match = _PERMISSION.search(message)
    permission = match[1] if match else "a permission"
    if permission.startswith("storage.") or (not match and "gs://" in message):
        role, on = "roles/storage.objectViewer", "on the bucket of RETAIL_LAKE"
    elif permission.startswith("bigquery.jobs."):
        role, on = "roles/bigquery.jobUser", "on the project"
    elif permission == "bigquery.datasets.create":
        role, on = "roles/bigquery.user", "on the project (or create the dataset yourself)"
    else:
        role, on = "roles/bigquery.dataEditor", "on the dataset"
    return f"Missing: {permission}. Grant {role} {on} to the account that runs this."


def _reason(error: BaseException) -> str:
    errors = getattr(error, "errors", None)
    if isinstance(errors, list | tuple) and errors and isinstance(errors[0], Mapping):
        return str(errors[0].get("reason", ""))
    return ""


def _unavailable(where: str, message: str) -> WarehouseUnavailableError:
    over_quota = any(reason.lower() in message.lower() for reason in _QUOTA_REASONS)
    advice = (
        " A quota was exceeded: it fills again with time; ask for more if it is the day's."
        if over_quota or "quota" in message.lower()
        else " Run it again: what was done already is found and not done twice."
    )
    return WarehouseUnavailableError(
        f"{where}: BigQuery was tried until time ran out: {message}.{advice}"
    )

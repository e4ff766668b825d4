"""BigQuery's jobs: started, waited for, and their faults told.

Here: a job's labels, retries, and what each fault means to a person. Not here: which jobs replace
a table (bigquery.py).
"""

import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.warehouse.protocol import WarehouseSchemaError

if TYPE_CHECKING:
    from google.api_core.retry import Retry
    from google.cloud import bigquery

# Source: "Requirements for labels", BigQuery: lower case, digits, _ and -, at most 63 characters.
LABEL_CHARACTERS = 63

_MOST_JOBS = 5  # of one step, before its call gives up
_LONGEST_WAIT_S = 60.0

# Source: "Error messages", BigQuery's troubleshooting; job... are a job's own.
_QUOTA_REASONS = frozenset(("quotaExceeded", "rateLimitExceeded", "jobRateLimitExceeded"))
_PASSING_REASONS = _QUOTA_REASONS | {
    *("backendError", "badGateway", "internalError", "jobBackendError", "jobInternalError"),
    *("tableUnavailable", "timeout"),
}
_PASSING_CODES = frozenset((408, 429, 500, 502, 503, 504))
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
        most = max(timeout_s, 0.001)
        limits = {
            name: min(getattr(self, name), most) for name in ("request_s", "retry_s", "job_s")
        }
        return replace(self, **limits)

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


def label(text: str) -> str:
    """``text`` as the value of a label."""
    return re.sub(r"[^a-z0-9_-]", "_", text.lower())[:LABEL_CHARACTERS]


class Jobs:
    """A client, and the jobs of one piece of work in order; ``done`` are those that ended well.

    A load replaces and a swap is a transaction: a run that is made again may repeat them. Within a
    call each is started once, whatever happens on the way.
    """

    def __init__(
        self,
        client: "bigquery.Client",
        location: str,
        table: str,
        labels: Mapping[str, str],
        patience: Patience,
        max_bytes_billed: int | None = None,
    ) -> None:
        self.client = client
        self.done: list[bigquery.LoadJob | bigquery.QueryJob] = []
        # Of every request.
        self.calls: dict[str, Any] = {"retry": patience.retry(), "timeout": patience.request_s}
        self._location = location
        self._table = table
        self._labels = {name: label(text) for name, text in labels.items()}
        self._patience = patience
        self._max_bytes_billed = max_bytes_billed

    def load(
        self,
        step: str,
        uris: Sequence[str],
        destination: "bigquery.TableReference",
        configuration: "bigquery.LoadJobConfig",
    ) -> int:
        """Load Parquet files into a table or a partition; how many rows."""
        configuration.labels = self._labels
        job: bigquery.LoadJob = self._run(
            step,
            "load",
            lambda name: self.client.load_table_from_uri(
                list(uris),
                destination,
                job_id=name,
                location=self._location,
                job_config=configuration,
                **self.calls,
            ),
        )
        return job.output_rows or 0

    def query(self, step: str, sql: str) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        found = self.script(step, sql).result(job_retry=None, **self.calls)
        return [tuple(row.values()) for row in found]

    def script(self, step: str, sql: str) -> "bigquery.QueryJob":
        """Run a query or a script."""
        from google.cloud import bigquery

        configuration = bigquery.QueryJobConfig(labels=self._labels)
        configuration.job_timeout_ms = int(self._patience.job_s * 1000)
        if self._max_bytes_billed is not None:
            configuration.maximum_bytes_billed = self._max_bytes_billed
        done: bigquery.QueryJob = self._run(
            step,
            "query",
            lambda name: self.client.query(
                sql,
                job_id=name,
                location=self._location,
                job_config=configuration,
                job_retry=None,
                **self.calls,
            ),
        )
        return done

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

    def _run(self, step: str, kind: str, start: Callable[[str], Any]) -> Any:
        """Start a job and see it through; one that failed in passing is followed by another."""
        where = f"{self._table}, step {step}, project {self.client.project}"
        where += f", location {self._location}"
        for attempt in range(1, _MOST_JOBS + 1):
            name = f"retail_{self._table.replace('.', '_')}_{step}_{uuid.uuid4().hex}"
            what = f"{kind} job {name}"
            job = self._start(name, what, where, start)
            self._wait(job)
            if job.error_result is None:
                self.done.append(job)
                return job
            reason = str(job.error_result.get("reason", ""))
            message = str(job.error_result.get("message", ""))
            if not (reason in _PASSING_REASONS or _MET_ANOTHER.search(message)):
                raise explain(reason, message, what, where)
            if attempt < _MOST_JOBS:
                time.sleep(min(self._patience.first_wait_s * 2**attempt, _LONGEST_WAIT_S))
        raise _unavailable(f"{where}, {what}", f"{reason}: {message}")

    def _start(self, name: str, what: str, where: str, start: Callable[[str], Any]) -> Any:
        from google.api_core.exceptions import Conflict, GoogleAPICallError, NotFound

        try:
            return start(name)
        except Conflict:
            # Our request arrived, if its answer did not. A job that was inserted a moment ago may
            # not be found at once.
            patient = self.calls | {"retry": self._patience.retry(also=(NotFound,))}
            return self.client.get_job(name, location=self._location, **patient)
        except GoogleAPICallError as error:
            # Some faults of a job come at once, as the answer to its request.
            if passes(error) or not (reason := _reason(error)):
                raise
            raise explain(reason, error.message, what, where) from error

    def _wait(self, job: Any) -> None:
        wait, deadline = 0.2, time.monotonic() + self._patience.job_s
        while job.state != "DONE":
            if time.monotonic() > deadline:
                raise _unavailable(
                    f"job {job.job_id}", f"not done after {self._patience.job_s:.0f} s"
                )
            time.sleep(min(wait, self._patience.first_wait_s * 5))
            wait = min(wait * 1.5, 5.0)
            job.reload(**self.calls)


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
        else " Run it again: it replaces what was half done."
    )
    return WarehouseUnavailableError(
        f"{where}: BigQuery was tried until time ran out: {message}.{advice}"
    )

"""Starting a job in a running instance, and following its run to the end.

Here: what is asked of the webserver for that. Not here: runs in this process (run.py).
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from retail_assets.commands.webserver import WebserverError, ask
from retail_assets.domain import range_tags
from retail_assets.errors import PermanentError

_LOOK_S = 1.0
# A webserver that is started anew does not end the run.
_PATIENCE_S = 60.0
_ENDED = ("SUCCESS", "FAILURE", "CANCELED")
_JOBS = """{repositoriesOrError {__typename
  ... on RepositoryConnection {nodes {name location {name} jobs {name}}}
  ... on PythonError {message}}}"""
_KEYS = """query($selector: PipelineSelector!) {pipelineOrError(params: $selector) {
  ... on Pipeline {partitionKeysOrError {partitionKeys}}}}"""
_LAUNCH = """mutation($parameters: ExecutionParams!) {launchRun(executionParams: $parameters) {
  __typename
  ... on LaunchRunSuccess {run {runId}}
  ... on RunConfigValidationInvalid {errors {message}}
  ... on Error {message}}}"""
_RUN = """query($run: ID!) {runOrError(runId: $run) {
  ... on Run {status tags {key value}} ... on Error {message}}}"""
_EVENTS = """query($run: ID!, $after: String) {logsForRun(runId: $run, afterCursor: $after) {
  ... on EventConnection {cursor hasMore events {
    ... on ExecutionStepFailureEvent {stepKey error {message causes {message}}
      failureMetadata {description}}
    ... on RunFailureEvent {message}}}}}"""


class LaunchError(PermanentError):
    """The job cannot be started so; nothing was."""


@dataclass(frozen=True)
class Launched:
    """A run of a webserver's instance."""

    url: str
    run_id: str

    @property
    def link(self) -> str:
        """Its page."""
        return f"{self.url.rstrip('/')}/runs/{self.run_id}"


def launch(url: str, job: str, partitions: str | None, config: str | None) -> Launched:
    """Start ``job``, over a range ``A...B`` of its partitions as one run.

    ``config`` is the run's, a JSON object.

    Raises:
        LaunchError: no such job or partition, a config that is not valid; nothing was started.
        WebserverError: no webserver answers.
    """
    run_config = _read_config(config)
    selector = _find(url, job)
    range_ = _range(job, _partition_keys(url, selector | {"pipelineName": job}), partitions)
    tags = [{"key": k, "value": v} for k, v in (range_tags(*range_) if range_ else {}).items()]
    parameters = {
        "selector": selector | {"jobName": job},
        "runConfigData": run_config,
        "executionMetadata": {"tags": tags},
    }
    told = ask(url, _LAUNCH, parameters=parameters)["launchRun"]
    if told["__typename"] != "LaunchRunSuccess":
        errors = [error["message"] for error in told.get("errors", ())] or [told.get("message")]
        raise LaunchError(f"{job} was not started: {'; '.join(map(str, errors))}")
    return Launched(url, str(told["run"]["runId"]))


def follow(launched: Launched, tell: Callable[[str], None]) -> bool:
    """Tell each status that the run comes to, until it ends; whether it succeeded.

    A run that Dagster tries again is followed into its next try.

    Raises:
        WebserverError: the webserver is gone for a minute, or the run is.
    """
    known, answered = "", time.monotonic()
    while True:
        try:
            run = ask(launched.url, _RUN, run=launched.run_id)["runOrError"]
            answered = time.monotonic()
        except WebserverError:
            if time.monotonic() - answered > _PATIENCE_S:
                raise
            time.sleep(_LOOK_S)
            continue
        if "status" not in run:
            raise WebserverError(f"{launched.link} is gone: {run.get('message')}")
        status = str(run["status"])
        if status != known:
            tell(status.lower())
            known = status
        if status == "FAILURE":
            tags = {tag["key"]: tag["value"] for tag in run["tags"]}
            if tags.get("dagster/will_retry") == "true":
                if again := tags.get("dagster/auto_retry_run_id"):
                    launched, known = Launched(launched.url, again), ""
                    tell(f"Dagster tries it again: {launched.link}")
                    continue
            else:
                for line in _why(launched):
                    tell(line)
                return False
        elif status in _ENDED:
            return status == "SUCCESS"
        time.sleep(_LOOK_S)


def _read_config(config: str | None) -> dict[str, Any]:
    try:
        found = json.loads(config or "{}")
    except ValueError as error:
        raise LaunchError(f"--config is no JSON: {error}. Nothing was started.") from None
    if not isinstance(found, dict):
        raise LaunchError('--config: expected a JSON object such as {"ops": {...}}.')
    return found


def _find(url: str, job: str) -> dict[str, str]:
    told = ask(url, _JOBS)["repositoriesOrError"]
    if "nodes" not in told:
        raise LaunchError(f"{url} has not loaded its code: {told.get('message')}")
    names = []
    for repository in told["nodes"]:
        ours = [x["name"] for x in repository["jobs"] if not x["name"].startswith("__")]
        if job in ours:
            return {
                "repositoryName": repository["name"],
                "repositoryLocationName": repository["location"]["name"],
            }
        names += ours
    raise LaunchError(f"{job!r} is no job of {url}; one of: {', '.join(sorted(names)) or 'none'}")


def _partition_keys(url: str, selector: dict[str, str]) -> list[str]:
    found = ask(url, _KEYS, selector=selector)["pipelineOrError"]["partitionKeysOrError"]
    return list((found or {}).get("partitionKeys") or ())


def _range(job: str, keys: Sequence[str], partitions: str | None) -> tuple[str, str] | None:
    if partitions is None:
        if keys:
            raise LaunchError(
                f"{job} is by partitions: say which, such as --partitions {keys[0]}...{keys[-1]},"
                f" which is all {len(keys)} of them"
            )
        return None
    first, dots, last = partitions.partition("...")
    last = last if dots else first
    if not {first, last} <= set(keys) or keys.index(first) > keys.index(last):
        there = f"{len(keys)} of them, {keys[0]}...{keys[-1]}" if keys else "none"
        raise LaunchError(
            f"--partitions is {partitions!r}; expected A...B of the partitions of {job}, of which"
            f" there are {there}"
        )
    return first, last


def _why(launched: Launched) -> list[str]:
    """Why a run failed: its steps' errors, a line each, or what Dagster says of the run."""
    events: list[dict[str, Any]] = []
    cursor, more = None, True
    while more:
        page = ask(launched.url, _EVENTS, run=launched.run_id, after=cursor)["logsForRun"]
        events += page["events"]
        cursor, more = page["cursor"], page["hasMore"]
    steps = [event for event in events if "stepKey" in event]
    lines = [f"{event['stepKey']}: {_reason(event)}" for event in steps]
    return [" ".join(line.split()) for line in lines or [e["message"] for e in events if e]]


def _reason(event: dict[str, Any]) -> str:
    told = (event.get("failureMetadata") or {}).get("description")
    error = event.get("error") or {}
    causes = [cause["message"] for cause in error.get("causes", ())]
    return str(told or next(iter(causes), error.get("message", "no message")))

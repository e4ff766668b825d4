"""Asking for runs without a memory of one's own: what was asked for is read from Dagster's runs.

Here: what became of a request's runs, and whether to ask again. Not here: what is asked for (each
feed; automation.py), what a run tells of itself, and those that nobody executes (runs.py).

Dagster's own run keys, retries and automation conditions do less: a run key is never asked for
again, a retry knows no permanent failure, a condition no content that it would know again. So its
run retries are off for what a sensor asks for, which looks again within a minute.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import dagster as dg

from retail_assets.runs import permanent_failure

REQUEST_TAG = "retail_assets/request"
# Before backfills, whose runs have the priority 0.
_RUN_TAGS = {"dagster/priority": "1"}
_NO_RETRIES = {"dagster/max_retries": "0"}
_GIVEN_UP_KEY = "retail_assets/given_up/{}"
_MOST_ATTEMPTS = 3
_MOST_REQUESTS_A_TICK = 20
_TICK_BUDGET_S = 20.0


class RunState(Enum):
    """What became of a run. REFUSED: it failed, and would again as code and settings are."""

    UNDERWAY = "underway"
    FAILED = "failed"
    REFUSED = "refused"
    DONE = "done"


_UNDERWAY = {
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
    dg.DagsterRunStatus.MANAGED,
}


@dataclass(frozen=True)
class Request:
    """Work that is wanted: its identity (object + version), and the run that would do it.

    Without an ``asset_selection`` it is all of the job. ``once`` says that a run that succeeded
    settles it for good, whatever the state looks like.
    """

    identity: str
    job_name: str
    asset_selection: tuple[dg.AssetKey, ...]
    tags: tuple[tuple[str, str], ...] = ()
    once: bool = False
    run_config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """The runs that a request has had: how many, and what became of the latest, latest first.

    ``why`` is what the latest was refused for, where it was.
    """

    count: int = 0
    latest: tuple[RunState, ...] = ()
    why: str = ""

    @property
    def failed_for_good(self) -> bool:
        """Whether it failed, and is not asked for again."""
        latest = self.latest[:_MOST_ATTEMPTS]
        failures = sum(state in (RunState.FAILED, RunState.REFUSED) for state in latest)
        return latest[:1] == (RunState.REFUSED,) or failures == _MOST_ATTEMPTS


class GivenUp(str):
    """Why a request is not made again, though it is wanted, until a person has done something."""

    identity: str


def next_request(request: Request, history: History) -> dg.RunRequest | str:
    """A request for ``request``, or why there is none now.

    What is underway is not asked for again. What failed is, up to three times in a row, and not at
    all while its failure will not pass by itself: then a new version or a run by hand is needed.
    What is done and wanted again (its tables were deleted, the source went back to older content)
    is, but not a fourth time in a row.
    """
    state = history.latest[0] if history.latest else None
    if state is RunState.UNDERWAY:
        return f"{request.identity} is underway"
    if state is RunState.DONE and request.once:
        return f"{request.identity} is done"
    if state is RunState.REFUSED:
        why = (
            f"failed, and will not pass by itself ({history.why}): deliver it anew, mend what that"
            " says, or run it by hand"
        )
    elif history.failed_for_good:
        why = f"failed {_MOST_ATTEMPTS} times: mend its cause and run it by hand"
    elif history.latest[:_MOST_ATTEMPTS] == (RunState.DONE,) * _MOST_ATTEMPTS:
        why = f"was done {_MOST_ATTEMPTS} times and is still wanted: look into it"
    else:
        return dg.RunRequest(
            run_key=f"{request.identity}:{history.count + 1}",
            job_name=request.job_name,
            asset_selection=list(request.asset_selection) or None,
            run_config=dict(request.run_config),
            tags=_RUN_TAGS | dict(request.tags) | {REQUEST_TAG: request.identity},
        )
    told = GivenUp(f"{request.identity} {why}")
    told.identity = request.identity
    return told


def run_history(instance: dg.DagsterInstance, identity: str) -> History:
    """The runs that were asked for under ``identity``."""
    filters = dg.RunsFilter(tags={REQUEST_TAG: identity})
    runs = instance.get_runs(filters=filters, limit=_MOST_ATTEMPTS)
    return History(
        len(runs) if len(runs) < _MOST_ATTEMPTS else instance.get_runs_count(filters),
        tuple(_state(run) for run in runs),
        (permanent_failure(runs[0]) or "") if runs else "",
    )


def note_given_up(
    instance: dg.DagsterInstance, domain: str, looks: Mapping[str, Iterable[str]]
) -> None:
    """Remember what was given up of a domain, by what ``looks`` at its stages gave for reasons.

    Of a stage that was not looked at, what was noted stays.
    """
    before = given_up(instance, domain)
    now = {
        stage: {told.identity: told for told in reasons if isinstance(told, GivenUp)}
        for stage, reasons in looks.items()
    }
    if before | now != before:
        noted = {_GIVEN_UP_KEY.format(domain): json.dumps(before | now)}
        instance.daemon_cursor_storage.set_cursor_values(noted)


def given_up(instance: dg.DagsterInstance, domain: str) -> dict[str, dict[str, str]]:
    """What was given up of a domain: by stage, why by identity."""
    key = _GIVEN_UP_KEY.format(domain)
    noted = instance.daemon_cursor_storage.get_cursor_values({key})
    return dict(json.loads(noted.get(key, "{}")))


def runs_underway(instance: dg.DagsterInstance, job_name: str) -> Sequence[dg.DagsterRun]:
    """Runs of a job that have not ended, whoever asked for them: a sensor, a schedule, a person.

    Those whose process is gone are failed elsewhere, when Dagster starts and while it runs.
    """
    return instance.get_runs(dg.RunsFilter(job_name=job_name, statuses=list(_UNDERWAY)))


def _state(run: dg.DagsterRun) -> RunState:
    if run.status in _UNDERWAY:
        return RunState.UNDERWAY
    if run.is_success:
        return RunState.DONE
    return RunState.FAILED if permanent_failure(run) is None else RunState.REFUSED


def requests_for(
    wanted: Callable[[], Iterable[Request]],
    instance: dg.DagsterInstance,
    *,
    by_sensor: bool = False,
) -> tuple[list[dg.RunRequest], list[str]]:
    """Dagster's requests for what is ``wanted``, at most so many a tick, and why not of others.

    What a sensor asked for it asks for again: then Dagster does not try it again by itself.
    """
    requests: list[dg.RunRequest] = []
    reasons: list[str] = []
    again: set[str] = set()
    end = time.monotonic() + _TICK_BUDGET_S
    for request in wanted():
        if len(requests) == _MOST_REQUESTS_A_TICK or time.monotonic() > end:
            break
        if by_sensor:
            request = replace(request, tags=(*request.tags, *_NO_RETRIES.items()))
        history = run_history(instance, request.identity)
        answer = next_request(request, history)
        if isinstance(answer, str):
            reasons.append(answer)
            continue
        requests.append(answer)
        if history.latest[:1] == (RunState.DONE,):
            again.add(request.identity)
    if again:
        # That run may have ended after the first look at what lacks: ask only for what still does.
        lacking = {request.identity for request in wanted()}
        requests = [r for r in requests if r.tags[REQUEST_TAG] not in again - lacking]
    return requests, reasons

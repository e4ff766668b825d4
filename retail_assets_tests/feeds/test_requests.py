"""Tests of retail_assets.feeds.requests, over a real Dagster instance."""

import uuid
from collections.abc import Iterator
from dataclasses import replace

import dagster as dg
import pytest

from retail_assets.feeds.requests import (
    REQUEST_TAG,
    History,
    Request,
    RunState,
    next_request,
    requests_for,
    run_history,
    runs_underway,
)
from retail_assets.runs import PERMANENT_FAILURE_TAG, code_version

START, END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
DAYS = dg.AssetKey("days")
UNDERWAY = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
SUCCESS, FAILURE = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE
WISH = Request("days:1", "job", (DAYS,), ((START, "2010-12-01"), (END, "2010-12-02")))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


def record(
    instance: dg.DagsterInstance,
    tags: dict[str, str],
    status: dg.DagsterRunStatus,
    refused_by: str = "",
) -> None:
    """A run that carries ``tags``, as the daemon would have launched it.

    It failed permanently where ``refused_by`` is a version of the code.
    """
    run_id = str(uuid.uuid4())
    if refused_by:
        tags = tags | {PERMANENT_FAILURE_TAG: f"{run_id} {refused_by} a.csv: no header"}
    instance.add_run(dg.DagsterRun(job_name="job", run_id=run_id, tags=tags, status=status))


# ---- next_request


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (History(), "days:1:1"),
        (History(1, (RunState.FAILED,)), "days:1:2"),
        (History(2, (RunState.FAILED, RunState.FAILED)), "days:1:3"),
        (History(3, (RunState.FAILED, RunState.DONE, RunState.FAILED)), "days:1:4"),
        (History(1, (RunState.DONE,)), "days:1:2"),
        (History(2, (RunState.DONE, RunState.REFUSED)), "days:1:3"),
    ],
)
def test_what_never_ran_failed_or_is_wanted_again_is_asked_for(
    history: History, expected: str
) -> None:
    request = next_request(WISH, history)

    assert isinstance(request, dg.RunRequest)
    assert request.run_key == expected
    assert request.job_name == "job"
    assert request.asset_selection == [DAYS]
    assert request.tags == {
        START: "2010-12-01",
        END: "2010-12-02",
        REQUEST_TAG: "days:1",
        "dagster/priority": "1",
    }


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_what_is_underway_is_not_asked_for(failures: int) -> None:
    states = (RunState.UNDERWAY, *[RunState.FAILED] * failures)

    answer = next_request(WISH, History(len(states), states))

    assert isinstance(answer, str)
    assert "underway" in answer


def test_one_success_settles_what_is_wanted_once() -> None:
    answer = next_request(replace(WISH, once=True), History(1, (RunState.DONE,)))

    assert isinstance(answer, str)
    assert "done" in answer


def test_what_will_not_pass_by_itself_is_not_asked_for() -> None:
    answer = next_request(WISH, History(1, (RunState.REFUSED,), "a.csv: no header"))

    assert isinstance(answer, str)
    assert "days:1 failed, and will not pass by itself (a.csv: no header): deliver" in answer


@pytest.mark.parametrize(
    ("state", "why"),
    [(RunState.FAILED, "days:1 failed 3 times"), (RunState.DONE, "done 3 times and is still")],
)
def test_three_in_a_row_are_the_last(state: RunState, why: str) -> None:
    answer = next_request(WISH, History(7, (state,) * 3))

    assert isinstance(answer, str)
    assert why in answer


# ---- run_history


def test_a_wish_no_run_carries_has_no_history(instance: dg.DagsterInstance) -> None:
    record(instance, {REQUEST_TAG: "other"}, SUCCESS)

    assert run_history(instance, "days:1") == History()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *((status, RunState.UNDERWAY) for status in UNDERWAY),
        (SUCCESS, RunState.DONE),
        (FAILURE, RunState.FAILED),
        (dg.DagsterRunStatus.CANCELED, RunState.FAILED),
    ],
)
def test_a_history_has_the_state_of_each_run(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus, expected: RunState
) -> None:
    record(instance, {REQUEST_TAG: "days:1"}, status)

    assert run_history(instance, "days:1") == History(1, (expected,))


def test_a_history_counts_all_runs_and_tells_the_latest(instance: dg.DagsterInstance) -> None:
    for status in (SUCCESS, SUCCESS, SUCCESS, FAILURE, SUCCESS):
        record(instance, {REQUEST_TAG: "days:1"}, status)

    states = (RunState.DONE, RunState.FAILED, RunState.DONE)
    assert run_history(instance, "days:1") == History(5, states)


def test_a_permanent_failure_is_final_until_the_code_changes(
    instance: dg.DagsterInstance,
) -> None:
    record(instance, {REQUEST_TAG: "days:1"}, FAILURE, refused_by=code_version())

    refused = History(1, (RunState.REFUSED,), "a.csv: no header")
    assert run_history(instance, "days:1") == refused
    assert run_history(instance, "days:1").failed_for_good
    assert requests_for(lambda: named("days:1"), instance)[0] == []

    record(instance, {REQUEST_TAG: "days:2"}, FAILURE, refused_by="earlier")
    assert run_history(instance, "days:2") == History(1, (RunState.FAILED,))
    (request,), _ = requests_for(lambda: named("days:2"), instance)
    assert request.run_key == "days:2:2"


def test_permanent_failures_count_as_failures_whatever_the_code_was(
    instance: dg.DagsterInstance,
) -> None:
    """Else what changes with every look would be asked for without an end."""
    for version in ("earliest", "earlier", "early"):
        record(instance, {REQUEST_TAG: "days:1"}, FAILURE, refused_by=version)

    assert run_history(instance, "days:1").failed_for_good


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([], False),
        ([FAILURE, FAILURE], False),
        ([FAILURE, FAILURE, FAILURE], True),
        ([SUCCESS, FAILURE, FAILURE, FAILURE], True),
        ([FAILURE, FAILURE, FAILURE, SUCCESS], False),
        ([FAILURE, FAILURE, FAILURE, dg.DagsterRunStatus.STARTED], False),
        ([SUCCESS, SUCCESS, SUCCESS], False),
    ],
)
def test_a_wish_has_failed_for_good_when_it_is_not_asked_for_again(
    instance: dg.DagsterInstance, statuses: list[dg.DagsterRunStatus], expected: bool
) -> None:
    for status in statuses:
        record(instance, {REQUEST_TAG: "days:1"}, status)

    assert run_history(instance, "days:1").failed_for_good is expected


@pytest.mark.parametrize("status", UNDERWAY)
def test_runs_underway_are_those_of_a_job_whoever_asked_for_them(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    record(instance, {REQUEST_TAG: "days:1"}, status)
    record(instance, {REQUEST_TAG: "days:2"}, SUCCESS)
    record(instance, {}, status)

    found = [run.tags.get(REQUEST_TAG) for run in runs_underway(instance, "job")]
    assert found == [None, "days:1"]
    assert runs_underway(instance, "other") == []


# ---- requests_for


def named(*identities: str) -> list[Request]:
    return [Request(identity, "job", (DAYS,)) for identity in identities]


def test_each_wish_is_asked_for_or_has_a_reason(instance: dg.DagsterInstance) -> None:
    record(instance, {REQUEST_TAG: "running"}, dg.DagsterRunStatus.STARTED)

    requests, reasons = requests_for(lambda: named("new", "running", "other"), instance)

    assert [x.run_key for x in requests] == ["new:1", "other:1"]
    assert reasons == ["running is underway"]


def test_a_tick_asks_for_so_many_and_the_next_for_the_rest(instance: dg.DagsterInstance) -> None:
    wanted = [f"drop:{n:02}" for n in range(25)]

    first, _ = requests_for(lambda: named(*wanted), instance)
    for request in first:
        record(instance, dict(request.tags), SUCCESS)
    second, _ = requests_for(lambda: named(*wanted[len(first) :]), instance)

    assert [x.tags[REQUEST_TAG] for x in [*first, *second]] == wanted
    assert len(first) == 20


def test_what_was_done_meanwhile_is_not_asked_for_again(instance: dg.DagsterInstance) -> None:
    record(instance, {REQUEST_TAG: "done"}, SUCCESS)
    looks = iter([named("done", "new"), named("new")])

    requests, _ = requests_for(lambda: next(looks), instance)

    assert [x.tags[REQUEST_TAG] for x in requests] == ["new"]


def test_what_was_done_and_is_lost_is_asked_for_again(instance: dg.DagsterInstance) -> None:
    record(instance, {REQUEST_TAG: "lost"}, SUCCESS)

    requests, _ = requests_for(lambda: named("lost"), instance)

    assert [x.run_key for x in requests] == ["lost:2"]

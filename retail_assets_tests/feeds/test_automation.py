"""Tests of retail_assets.feeds.automation: what is asked for in which order, over real stores."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retail_assets.domain import MARTS_STAGE, RANGE_TAGS, range_tags
from retail_assets.feeds.automation import (
    Arrivals,
    ask,
    find_underway,
    partition_ranges,
    range_requests,
    tell_underway,
)
from retail_assets.feeds.requests import REQUEST_TAG, Request, given_up
from retail_assets_tests.feeds.shop import D1, D2, D3, PROCESSED, SALES, SHOPS, Shop, Shops

DROPS, LOAD, MARTS = "drops", Shops().load_job, Shops().marts_job


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


@pytest.fixture
def sales(tmp_path: Path, instance: dg.DagsterInstance) -> Shop:
    return Shop(tmp_path, SALES, instance)


@pytest.fixture
def shops(tmp_path: Path, instance: dg.DagsterInstance) -> Shop:
    return Shop(tmp_path, SHOPS, instance)


def ask_for(shop: Shop, arrivals: Arrivals | None = None) -> dg.SensorResult | dg.SkipReason:
    return ask(shop.instance, Shops(), shop.lake, shop.warehouse, arrivals or Arrivals())


def asked(shop: Shop, arrivals: Arrivals | None = None) -> list[str] | str:
    """The jobs that one look asks for, or why for none."""
    found = ask_for(shop, arrivals)
    if isinstance(found, dg.SkipReason):
        return found.skip_message or ""
    return [str(request.job_name) for request in found.run_requests or ()]


def build_marts(shop: Shop) -> None:
    for dataset in (SHOPS, SALES):
        shop.warehouse.record_versions(
            dataset, MARTS_STAGE, shop.warehouse.loaded_versions(dataset)
        )


def run(shop: Shop, job: str, status: dg.DagsterRunStatus, identity: str = "") -> None:
    tags = {REQUEST_TAG: identity} if identity else {}
    shop.instance.add_run(dg.DagsterRun(job_name=job, status=status, tags=tags))


def test_what_arrived_is_asked_for_then_the_load_then_the_marts(sales: Shop, shops: Shop) -> None:
    assert asked(sales) == "nothing has changed"  # nothing was landed: no marts can be built

    arrived = Arrivals(wanted=lambda: [Request("drop:1", DROPS, ())])
    sales.put(D1, 1, version="a1")
    assert asked(sales, arrived) == [DROPS]
    assert asked(sales) == [LOAD]

    sales.land()
    assert asked(sales) == "nothing has changed"  # not every table is there
    shops.put("", 1, version="s1")
    shops.land()
    assert asked(sales) == [MARTS]

    build_marts(sales)
    assert asked(sales) == "nothing has changed"


def test_while_something_arrives_load_and_marts_wait(sales: Shop) -> None:
    sales.put(D1, 1, version="a1")

    assert asked(sales, Arrivals(underway=["drops is underway (run 1)"])) == (
        "drops is underway (run 1)"
    )


def test_what_failed_for_good_keeps_nothing_back(sales: Shop) -> None:
    sales.put(D1, 1, version="a1")
    for _ in range(3):
        run(sales, DROPS, dg.DagsterRunStatus.FAILURE, "drop:bad")

    assert asked(sales, Arrivals(wanted=lambda: [Request("drop:bad", DROPS, ())])) == [LOAD]


def test_what_was_given_up_is_noted_until_a_look_finds_it_no_more(sales: Shop) -> None:
    def noted() -> dict[str, list[str]]:
        found = given_up(sales.instance, Shops().name)
        return {stage: list(told.values()) for stage, told in found.items() if told}

    sales.put(D1, 1, version="a1")
    found = ask_for(sales)
    assert isinstance(found, dg.SensorResult) and found.run_requests
    load = found.run_requests[0].tags[REQUEST_TAG]
    for identity in ("drop:bad", load):
        for _ in range(3):
            run(sales, DROPS, dg.DagsterRunStatus.FAILURE, identity)
    bad = Arrivals(wanted=lambda: [Request("drop:bad", DROPS, ())])
    assert isinstance(asked(sales, bad), str)
    why = "failed 3 times: mend its cause and run it by hand"
    assert noted() == {"arrivals": [f"drop:bad {why}"], "load": [f"{load} {why}"]}

    asked(sales, Arrivals(underway=["drops is underway (run 1)"]))  # the load was not looked at
    assert noted() == {"load": [f"{load} {why}"]}
    sales.land()
    asked(sales)
    assert noted() == {}


def test_a_load_is_known_by_the_versions_that_lack(sales: Shop) -> None:
    def identity() -> str:
        found = ask_for(sales)
        assert isinstance(found, dg.SensorResult) and found.run_requests
        return str(found.run_requests[0].tags[REQUEST_TAG])

    sales.put(D1, 1, version="a1")
    first = identity()
    assert identity() == first
    sales.put(D2, 1, version="b1")
    assert identity() != first


def test_a_warehouse_that_is_busy_is_told_and_hardly_waited_for(sales: Shop) -> None:
    sales.put(D1, 1, version="a1")
    sales.land()
    sales.put(D2, 1, version="b1")
    held, over = Event(), Event()

    def hold() -> None:
        with sales.warehouse.exclusive():
            held.set()
            over.wait()

    with ThreadPoolExecutor(1) as other:
        other.submit(hold)
        held.wait()
        try:
            assert "was kept open" in str(asked(sales))
        finally:
            over.set()


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_runs_underway_are_told_whoever_asked_for_them(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    key, other = dg.AssetKey("a"), dg.AssetKey("b")
    instance.add_run(dg.DagsterRun(job_name=LOAD, status=status))
    for selected in (key, other):
        instance.add_run(
            dg.DagsterRun(
                job_name="__ASSET_JOB", status=status, asset_selection=frozenset([selected])
            )
        )

    told = tell_underway(find_underway(instance, [LOAD, MARTS], [key]))

    assert [text.partition(" (run")[0] for text in told] == [
        f"{LOAD} is underway",
        "a run of assets is underway",
    ]


# ---- ranges

dates = st.dates().map(str)


@given(st.sets(dates, max_size=12), st.lists(dates, unique=True, max_size=12), st.data())
def test_ranges_hold_exactly_the_keys_in_dagsters_order(
    new: set[str], registered: list[str], data: st.DataObject
) -> None:
    old = data.draw(st.sets(st.sampled_from(registered))) if registered else set()
    most = data.draw(st.integers(1, 5))
    chosen = new | old

    ranges = partition_ranges(chosen, registered, most)

    # As Dagster will know them when the new ones are registered.
    order = [*registered, *sorted(chosen - set(registered))]
    held = [order[order.index(x[0]) : order.index(x[-1]) + 1] for x in ranges]
    assert [key for keys in held for key in keys] == [key for key in order if key in chosen]
    assert held == ranges
    assert all(len(keys) <= most for keys in held)
    for one, other in itertools.pairwise(held):  # none could be one with the next
        is_neighbour = order.index(other[0]) == order.index(one[-1]) + 1
        assert len(one) == most or not is_neighbour


def test_keys_out_of_order_are_ranges_as_dagster_orders_them() -> None:
    registered = [D1, D3, D2]

    assert partition_ranges({D1, D2, D3}, registered) == [[D1, D3, D2]]
    assert partition_ranges({D1, D2}, registered, 500) == [[D1], [D2]]
    assert partition_ranges({D1, D2, D3}, registered, 2) == [[D1, D3], [D2]]
    assert partition_ranges(set(), registered, 500) == []


@given(
    versions=st.dictionaries(
        st.integers(1, 28).map(lambda n: f"2011-02-{n:02}"), st.sampled_from("ab"), min_size=1
    ),
    data=st.data(),
)
def test_a_request_is_a_range_and_another_where_a_version_of_it_is(
    versions: dict[str, str], data: st.DataObject
) -> None:
    days = [f"2011-02-{n:02}" for n in range(1, 29)]
    ranges = partition_ranges(versions, days)

    def requests(found: dict[str, str]) -> dict[str, dict[str, str]]:
        asked = list(range_requests("days", DROPS, ranges, {"day": found}, (PROCESSED,)))
        assert all((x.job_name, x.asset_selection) == (DROPS, (PROCESSED,)) for x in asked)
        return {x.identity: dict(x.tags) for x in asked}

    before = requests(versions)
    day = data.draw(st.sampled_from(sorted(versions)))
    new = [
        tags
        for identity, tags in requests({**versions, day: "c"}).items()
        if identity not in before
    ]

    assert list(before.values()) == [range_tags(x[0], x[-1]) for x in ranges]
    assert [tags[RANGE_TAGS[0]] <= day <= tags[RANGE_TAGS[1]] for tags in new] == [True]
    gone = {key: version for key, version in versions.items() if key != day}
    assert requests(gone).keys() != before.keys()  # a file that is gone is another request too

"""Tests of retail_assets.defs.coffee_chain.feed, over a temporary lake and warehouse."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain.contract import (
    CUSTOMER,
    DOMAIN,
    LANDED,
    OUTLET,
    PRODUCT,
    RAW_CUSTOMER,
    RAW_SALES,
    SALES,
)
from retail_assets.defs.coffee_chain.feed import CUSTOMER_WINDOW, FEED, SALES_WINDOW
from retail_assets.domain import MARTS_STAGE, Asked, Execution, PlanError
from retail_assets.feeds import WHOLE_TABLE
from retail_assets.feeds.files import ABSENT
from retail_assets.feeds.files.taking import Room, take_files
from retail_assets.resources.cloud_checks import Question
from retail_assets.resources.lake import LakeResource, open_lake
from retail_assets.resources.spark import (
    SparkResource,
    SparkUnavailableError,
    SparkUnreachableError,
)
from retail_assets.resources.warehouse import open_warehouse
from retail_assets.settings import Settings, load_settings
from retail_assets_tests.defs.coffee_chain.raw_zone import D1, D2, D3, RawZone, person, sale

DROPS_JOB, LARGE_JOB = FEED.drops_job, FEED.large_job
LOAD_JOB, MARTS_JOB = FEED.load_job, FEED.marts_job
SPARK = SparkResource(master="embedded")
Drops = dict[str, str]


# ---- the windows of the marts


def versions(
    sales: Drops, customers: Drops, outlet: str = "o", product: str = "p"
) -> dict[Dataset, Mapping[str, str]]:
    return {OUTLET: {"": outlet}, PRODUCT: {"": product}, CUSTOMER: customers, SALES: sales}


EVERYTHING = {SALES_WINDOW: None, CUSTOMER_WINDOW: None}
BUILT = versions({D1: "a", D2: "b", D3: "c"}, {D1: "x", D2: ABSENT, D3: "z"})
NOWHERE: dict[Dataset, Mapping[str, str]] = {dataset: {} for dataset in LANDED}


def test_the_first_build_is_of_everything() -> None:
    assert FEED.windows(BUILT, NOWHERE) == EVERYTHING


def test_a_sales_table_that_was_made_anew_is_built_whole() -> None:
    assert FEED.windows(BUILT, {**BUILT, SALES: {}}) == EVERYTHING


def test_a_customers_table_that_was_made_anew_is_built_whole() -> None:
    assert FEED.windows(BUILT, {**BUILT, CUSTOMER: {}}) == EVERYTHING


def test_nothing_new_is_nothing_to_build() -> None:
    assert FEED.windows(BUILT, BUILT) == {SALES_WINDOW: [], CUSTOMER_WINDOW: []}


@pytest.mark.parametrize(
    "landed",
    [
        versions({D1: "a", D2: "b", D3: "c"}, {D1: "x", D2: ABSENT, D3: "z"}, outlet="o2"),
        versions({D1: "a", D2: "b", D3: "c"}, {D1: "x", D2: ABSENT, D3: "z"}, product="p2"),
        versions({D1: "a", D2: "b", D3: "c"}, {D1: "x2", D2: ABSENT, D3: "z"}),
        versions({D1: "a", D2: "b", D3: "c"}, {D1: ABSENT, D2: ABSENT, D3: "z"}),
        versions({D1: "a", D2: "b", D3: "c"}, {D2: ABSENT, D3: "z"}),
    ],
    ids=["outlets", "products", "customers again", "customers emptied", "customers gone"],
)
def test_what_may_concern_any_line_builds_everything(
    landed: dict[Dataset, Mapping[str, str]],
) -> None:
    assert FEED.windows(landed, BUILT) == EVERYTHING


@pytest.mark.parametrize(
    ("sales", "customers", "sales_window", "customer_window"),
    [
        ({"2019-12-31": "d"}, {}, [["2019-12-31", "2019-12-31"]], []),
        ({D2: "b2"}, {}, [[D2, D2]], []),
        ({D1: "a2", D2: "b2"}, {}, [[D1, D2]], []),
        ({D1: "a2", D3: "c2"}, {}, [[D1, D1], [D3, D3]], []),
        ({}, {D2: "y"}, [], [[D2, D2]]),
        ({}, {"2019-12-31": "w"}, [], [["2019-12-31", "2019-12-31"]]),
        ({}, {"2019-12-31": ABSENT}, [], []),
        ({D3: ABSENT}, {"1700-01-01": "v"}, [[D3, D3]], [["1700-01-01", "1700-01-01"]]),
    ],
    ids=[
        "a new drop",
        "a drop again",
        "neighbours",
        "not neighbours",
        "a drop's customers come late",
        "a new drop of customers",
        "a new drop without customers",
        "sales emptied, and older customers",
    ],
)
def test_other_changes_are_built_by_windows(
    sales: Drops,
    customers: Drops,
    sales_window: list[list[str]],
    customer_window: list[list[str]],
) -> None:
    landed = {**BUILT, SALES: {**BUILT[SALES], **sales}, CUSTOMER: {**BUILT[CUSTOMER], **customers}}

    assert FEED.windows(landed, BUILT) == {
        SALES_WINDOW: sales_window,
        CUSTOMER_WINDOW: customer_window,
    }


drops = st.dictionaries(
    st.sampled_from([f"20{year}-{end}" for year in (18, 19, 20, 21) for end in ("06-30", "12-31")]),
    st.sampled_from(["a", "b", ABSENT]),
)
states = st.builds(versions, drops, drops, st.sampled_from("ab"), st.sampled_from("ab"))


@given(states, states)
def test_every_change_is_in_a_window_and_no_other_sales_are(
    landed: dict[Dataset, Mapping[str, str]], built: dict[Dataset, Mapping[str, str]]
) -> None:
    windows = FEED.windows(landed, built)

    assert set(windows) == set(EVERYTHING)
    if None in windows.values():
        assert windows == EVERYTHING
        return

    def inside(name: str, day: str) -> bool:
        return any(first <= day <= last for first, last in windows[name] or ())

    assert landed[OUTLET] == built[OUTLET] and landed[PRODUCT] == built[PRODUCT]
    for day in {*landed[SALES], *built[SALES]}:
        is_changed = landed[SALES].get(day) != built[SALES].get(day)
        assert inside(SALES_WINDOW, day) is is_changed
    for day in {*landed[CUSTOMER], *built[CUSTOMER]}:
        now, then = (x[CUSTOMER].get(day, ABSENT) for x in (landed, built))
        assert then in (ABSENT, now)  # else everything would have been built
        if now != ABSENT:
            assert inside(CUSTOMER_WINDOW, day) is (then == ABSENT)


# ---- plans


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home")


@pytest.fixture
def raw(settings: Settings) -> RawZone:
    return RawZone(Path(settings.lake))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


def plan(
    settings: Settings,
    instance: dg.DagsterInstance,
    partitions: tuple[str, str] | None = None,
    *,
    allow_emptying: bool = False,
) -> list[Execution]:
    FEED.prepare(settings)
    return list(FEED.plan(settings, Asked(partitions, allow_emptying), lambda: instance))


def registered(instance: dg.DagsterInstance) -> list[str]:
    return list(instance.get_dynamic_partitions(FEED.partitions))


def test_a_run_takes_every_drop_found_by_date(
    settings: Settings, raw: RawZone, instance: dg.DagsterInstance
) -> None:
    raw.sales(D3)
    raw.customers(D1)
    raw.sales(D2)

    assert plan(settings, instance) == [Execution(DOMAIN, (D1, D3))]
    assert registered(instance) == [D1, D2, D3]
    assert plan(settings, instance) == [Execution(DOMAIN, (D1, D3))]
    assert registered(instance) == [D1, D2, D3]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((D1, D2), (D1, D2)),
        ((D2, "9999-12-31"), (D2, D3)),
        (("2018-07-01", D3), (D2, D3)),
        ((D2, D2), (D2, D2)),
    ],
)
def test_a_run_takes_the_drops_of_the_dates_asked_for(
    settings: Settings,
    raw: RawZone,
    instance: dg.DagsterInstance,
    asked: tuple[str, str],
    expected: tuple[str, str],
) -> None:
    for day in (D1, D2, D3):
        raw.sales(day)

    assert plan(settings, instance, asked) == [Execution(DOMAIN, expected)]


def test_a_run_of_drops_leaves_small_files_out_that_are_in_the_lake(
    settings: Settings, raw: RawZone, instance: dg.DagsterInstance
) -> None:
    asked = (D2, D2)
    raw.sales(D2)
    assert plan(settings, instance, asked) == [Execution(DOMAIN, asked)]
    process(settings, raw)

    assert plan(settings, instance, asked) == [Execution(DROPS_JOB, asked)]
    assert plan(settings, instance) == [Execution(DOMAIN, (D2, D1))]  # as they were registered

    raw.outlets("MY001,KLCC,1 Jalan Ampang,Selangor,1000,", "MY002,Ipoh,2 Jalan Raja,Perak,30000,")
    assert plan(settings, instance, asked) == [Execution(DOMAIN, asked)]


def test_drops_registered_out_of_order_are_several_runs_and_the_last_is_whole(
    settings: Settings, raw: RawZone, instance: dg.DagsterInstance
) -> None:
    instance.add_dynamic_partitions(FEED.partitions, [D2, "2020-06-30", D1])
    for day in (D1, D2, D3):
        raw.sales(day)

    assert plan(settings, instance) == [
        Execution(LARGE_JOB, (D2, D2)),
        Execution(DOMAIN, (D1, D3)),
    ]
    assert registered(instance) == [D2, "2020-06-30", D1, D3]


def emptying(*tables: str) -> dict[str, object]:
    config = {"config": {"allow_emptying": True}}
    return {"ops": {f"coffee_chain__processed_{table}": config for table in tables}}


def test_emptying_is_allowed_of_the_tables_of_each_run(
    settings: Settings, raw: RawZone, instance: dg.DagsterInstance
) -> None:
    instance.add_dynamic_partitions(FEED.partitions, [D2, "2020-06-30", D1])
    for day in (D1, D2):
        raw.sales(day)

    planned = plan(settings, instance, allow_emptying=True)

    assert planned == [
        Execution(LARGE_JOB, (D2, D2), emptying("customer", "sales")),
        Execution(DOMAIN, (D1, D1), emptying("outlet", "product", "customer", "sales")),
    ]
    definitions = dg.Definitions.merge(
        FEED.build_defs(settings),
        dg.Definitions(
            resources={
                "lake": open_lake(settings),
                "warehouse": open_warehouse(settings),
                "spark": SPARK,
            }
        ),
    )
    for execution in planned:
        job = definitions.resolve_job_def(execution.job_name)
        assert dg.validate_run_config(job, dict(execution.run_config))


def test_what_a_run_with_refused_drops_leaves_is_load_and_marts_where_they_are_behind(
    settings: Settings, raw: RawZone, instance: dg.DagsterInstance
) -> None:
    raw.sales(D1)
    (whole,) = plan(settings, instance)
    assert list(whole.rest()) == []  # nothing was taken

    process(settings, raw)
    assert list(whole.rest()) == [Execution(LOAD_JOB)]  # without a landed table dbt cannot build
    for dataset in LANDED:
        FEED.rebuild(settings, dataset)
    assert list(whole.rest()) == [Execution(MARTS_JOB)]
    with open_warehouse(settings).exclusive():  # the runs will wait for it, on record
        assert list(whole.rest()) == [Execution(LOAD_JOB), Execution(MARTS_JOB)]


@pytest.mark.parametrize(
    ("partitions", "asked"), [(None, ""), (("2018-07-01", D1), f" from 2018-07-01 to {D1}")]
)
def test_no_drop_is_no_plan_and_registers_nothing(
    settings: Settings,
    raw: RawZone,
    instance: dg.DagsterInstance,
    partitions: tuple[str, str] | None,
    asked: str,
) -> None:
    if partitions:
        raw.sales(D2)

    with pytest.raises(PlanError) as error:
        plan(settings, instance, partitions)

    assert str(error.value).startswith(f"{raw.root}/raw/{DOMAIN} holds no drop{asked}; expected")
    assert f"retail-assets sample {DOMAIN}" in str(error.value)
    assert registered(instance) == []


# ---- what was processed: status and rebuild


def process(settings: Settings, raw: RawZone) -> LakeResource:
    """Deliver and process two drops of 3 and 2 lines, of which the first has two customers."""
    raw.outlets()
    raw.products()
    raw.sales(D1, sale(1), sale(2), sale(3), sale(4, quantity="x"))
    raw.sales(D2, sale(1), sale(2))
    raw.customers(D1, person(1), person(2, "c2"))
    room = Room(raw.lake, "run", SimpleNamespace(spark=SPARK))
    for table in FEED.tables:
        keys = [D1, D2] if table.is_dated else [WHOLE_TABLE]
        take_files(FEED, table, keys, room, most_lost=0.1)
    return open_lake(settings)


ROWS = {"outlet": 1, "product": 1, "customer": 2, "sales": 5}


def test_a_drop_that_was_taken_and_deleted_is_part_of_a_run(
    settings: Settings, raw: RawZone, instance: dg.DagsterInstance
) -> None:
    process(settings, raw)
    (raw.root / RAW_SALES.name(D1)).unlink()
    (raw.root / RAW_CUSTOMER.name(D1)).unlink()

    assert plan(settings, instance) == [Execution(DOMAIN, (D1, D2))]


def test_rows_are_counted_of_what_was_processed(settings: Settings, raw: RawZone) -> None:
    assert FEED.count_rows(open_lake(settings)) == {}

    lake = process(settings, raw)

    assert FEED.count_rows(lake) == {
        f"{DOMAIN}.processed_{name}": rows for name, rows in ROWS.items()
    }


@pytest.mark.parametrize("dataset", LANDED, ids=lambda dataset: dataset.name)
def test_each_landed_table_is_rebuilt_from_what_was_processed(
    settings: Settings, raw: RawZone, dataset: Dataset
) -> None:
    warehouse = open_warehouse(settings)
    with pytest.raises(
        PlanError, match=f"holds nothing processed. Run: retail-assets run {DOMAIN}"
    ):
        FEED.rebuild(settings, dataset)
    process(settings, raw)
    warehouse.replace_table(dataset, [], {"" if dataset.partition_by is None else D1: "old"})
    warehouse.record_versions(dataset, MARTS_STAGE, {D1: "old"})

    assert FEED.rebuild(settings, dataset) == ROWS[dataset.name]

    assert warehouse.row_counts() == {dataset.table: ROWS[dataset.name]}
    known = warehouse.loaded_versions(dataset)
    assert set(known) == ({""} if dataset.partition_by is None else {D1, D2} - _absent(dataset))
    assert "old" not in known.values()
    # The marts were built of the table that was: they have to be built anew.
    assert warehouse.loaded_versions(dataset, MARTS_STAGE) == {}


def _absent(dataset: Dataset) -> set[str]:
    return {D2} if dataset is CUSTOMER else set()


def test_the_marts_are_planned_by_what_the_warehouse_holds(
    settings: Settings, raw: RawZone
) -> None:
    warehouse = open_warehouse(settings)
    process(settings, raw)
    for dataset in LANDED:
        FEED.rebuild(settings, dataset)

    first = FEED.plan_marts(warehouse)
    for dataset, found in first.versions.items():
        warehouse.record_versions(dataset, MARTS_STAGE, found)
    second = FEED.plan_marts(warehouse)
    warehouse.record_versions(SALES, "landed", {D2: "another"})
    third = FEED.plan_marts(warehouse)

    assert first.windows == EVERYTHING
    assert set(first.versions) == set(LANDED)
    assert first.changed == list(LANDED)
    assert second.windows == {SALES_WINDOW: [], CUSTOMER_WINDOW: []}
    assert second.changed == []
    assert third.windows == {SALES_WINDOW: [[D2, D2]], CUSTOMER_WINDOW: []}
    assert third.changed == [SALES]


# ---- doctor


def asked(settings: Settings) -> Question:
    (question,) = FEED.questions(settings)
    return question


def test_doctor_asks_whether_spark_computes(settings: Settings) -> None:
    assert asked(settings).system == "spark"
    told = asked(settings).ask()
    assert told.startswith("embedded, Spark ") and told.endswith(", computes 42")


def test_doctor_tells_of_a_spark_that_does_not_answer(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, spark="sc://127.0.0.1:1")

    # As unreachable, or as another than the one that this process may have started already.
    with pytest.raises(
        (SparkUnreachableError, SparkUnavailableError), match=r"sc://127\.0\.0\.1:1"
    ):
        asked(settings).ask()
    assert "RETAIL_SPARK=embedded" in asked(settings).fix


def test_spark_is_the_one_resource_of_its_own(settings: Settings) -> None:
    resources = FEED.resources(settings)

    assert set(resources) == {"spark"}
    assert isinstance(resources["spark"], SparkResource)
    assert resources["spark"].master == settings.spark

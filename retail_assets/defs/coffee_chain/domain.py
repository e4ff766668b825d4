"""The coffee chain, as the rest of the package sees it.

Here: what a whole run takes, what the marts are given, what status and doctor tell of it. Not
here: assets, jobs and sensors (assets.py, automation.py). Nothing heavy is imported at the top.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from functools import partial
from typing import TYPE_CHECKING, Any

from retail_assets.dataset import Dataset
from retail_assets.days import ranges_within
from retail_assets.defs.coffee_chain.contract import (
    ABSENT,
    CUSTOMER,
    DOMAIN,
    LANDED,
    OUTLET,
    PRODUCT,
    RAW_CUSTOMER,
    RAW_OUTLET,
    RAW_PRODUCT,
    RAW_SALES,
    SALES,
    RawFiles,
    quarantine_of,
)
from retail_assets.domain import (
    MARTS_STAGE,
    DefsModule,
    Domain,
    Execution,
    MartsPlan,
    PlanError,
    QuarantineTable,
)
from retail_assets.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

    from retail_assets.resources.cloud_checks import Question
    from retail_assets.resources.lake import LakeResource
    from retail_assets.resources.warehouse import WarehouseResource

SALES_WINDOW = "coffee_chain_window"
CUSTOMER_WINDOW = "coffee_chain_customer_window"


class CoffeeChain(Domain):
    """Drops of sales and customers, with outlets and products."""

    name = DOMAIN
    datasets = LANDED

    def modules(self) -> Sequence[DefsModule]:
        """Assets and automation."""
        from retail_assets.defs.coffee_chain import assets, automation

        return assets, automation

    def resources(self, settings: Settings) -> dict[str, object]:
        """Spark."""
        from retail_assets.resources.spark import SparkResource

        return {"spark": SparkResource.of(settings)}

    def prepare(self, settings: Settings) -> None:
        """Nothing: raw files are delivered, or made by ``retail-assets sample``."""

    def check_partitions(self, settings: Settings, first: str, last: str) -> None:
        """Drops may have any date."""

    def plan(
        self,
        settings: Settings,
        partitions: tuple[str, str] | None,
        *,
        allow_emptying: bool,
        instance: "Callable[[], dg.DagsterInstance]",
    ) -> list[Execution]:
        """Every drop found in raw or taken from there, or those of the dates asked for.

        The marts come once, at the end. A drop that was taken and deleted keeps its rows: a new
        warehouse gets them too. Where dates are asked for, outlets and products are taken if their
        files are not those in the warehouse.
        Partitions that were registered in another order than that of their dates are several
        ranges to Dagster, and as many runs: the last one goes on to the marts.
        """
        from retail_assets.defs.coffee_chain.drops import Known, compare, list_raw
        from retail_assets.resources.lake import open_lake

        lake = open_lake(settings)
        listing, known = list_raw(lake), Known(lake)
        dates = listing.dates | known.dates
        if partitions:
            dates = {key for key in dates if partitions[0] <= key <= partitions[1]}
        if not dates:
            asked = f" from {partitions[0]} to {partitions[1]}" if partitions else ""
            raise PlanError(
                f"{lake.uri(f'raw/{DOMAIN}')} holds no drop{asked}; expected files such as"
                " sales/sales_data_2022-12-31.csv. Deliver them there, or make some:"
                f" retail-assets sample {DOMAIN}"
            )
        from retail_assets.defs.coffee_chain.assets import DROPS_NAME
        from retail_assets.defs.coffee_chain.automation import (
            DROPS_JOB,
            LARGE_JOB,
            drop_ranges,
            is_small_landed,
        )
        from retail_assets.resources.warehouse import open_warehouse

        opened = instance()
        registered = list(opened.get_dynamic_partitions(DROPS_NAME))
        if new := sorted(dates.difference(registered)):
            opened.add_dynamic_partitions(DROPS_NAME, new)
        ranges = drop_ranges(dates, [*registered, *new], len(dates))
        is_small_left_out = (
            partitions is not None
            and not compare(lake, listing, known).small
            and is_small_landed(known, open_warehouse(settings))
        )
        last = DROPS_JOB if is_small_left_out else DOMAIN
        jobs = [LARGE_JOB] * (len(ranges) - 1) + [last]
        return [
            Execution(job, (first, last), _emptying_config(job) if allow_emptying else {})
            for job, (first, last, _) in zip(jobs, ranges, strict=True)
        ]

    def plan_without(
        self,
        settings: Settings,
        execution: Execution,
        refused: Mapping[str, Collection[str]],
        instance: "dg.DagsterInstance",
    ) -> list[Execution]:
        """The other drops of the range, by the same job; where none is left, the marts.

        Of a drop of which one table's file was refused, the other table's was taken by the run that
        failed; where that refused files of both tables, it is taken before the other drops.
        """
        from retail_assets.defs.coffee_chain.assets import DROPS_NAME, landed_key
        from retail_assets.defs.coffee_chain.automation import (
            LARGE_JOB,
            MARTS_JOB,
            are_marts_behind,
            drop_ranges,
        )
        from retail_assets.defs.coffee_chain.drops import DROPPED_FILES
        from retail_assets.defs.coffee_chain.taking import processed_key
        from retail_assets.resources.warehouse import open_warehouse

        if execution.partitions is None:
            return []
        registered = list(instance.get_dynamic_partitions(DROPS_NAME))
        first, last = map(registered.index, execution.partitions)
        asked = set(registered[first : last + 1])
        bad = {key for keys in refused.values() for key in keys}

        def over(dates: set[str], job: str, *tables: Dataset) -> Iterator[Execution]:
            ranges = drop_ranges(dates, registered, len(asked))
            for number, (first, last, _) in enumerate(ranges, start=1):
                name = job if number == len(ranges) else LARGE_JOB
                keys = [key(table) for table in tables for key in (processed_key, landed_key)]
                yield Execution(
                    name,
                    (first, last),
                    _emptying_config(name, tables) if execution.run_config else {},
                    keys or None,
                )

        planned: list[Execution] = []
        for large in DROPPED_FILES:
            own = refused.get(processed_key(large.dataset).to_python_identifier())
            if own:
                planned += over(bad.difference(own), LARGE_JOB, large.dataset)
        planned += over(asked - bad, execution.job_name)
        goes_on = execution.job_name != LARGE_JOB and bad >= asked
        if goes_on and (planned or are_marts_behind(open_warehouse(settings))):
            planned.append(Execution(MARTS_JOB))
        return planned

    def plan_marts(self, warehouse: "WarehouseResource") -> MartsPlan:
        """The drops that differ; everything where that is not enough.

        Another list of outlets or products, and a customer drop that was taken back or delivered
        again, may concern any line: then all are built anew. A new customer drop concerns the
        lines of its customers.
        """
        landed = {dataset: warehouse.loaded_versions(dataset) for dataset in LANDED}
        built = {
            dataset: warehouse.loaded_versions(dataset, stage=MARTS_STAGE) for dataset in LANDED
        }
        changed = [dataset for dataset in LANDED if landed[dataset] != built[dataset]]
        return MartsPlan(marts_windows(landed, built), landed, changed)

    def count_rows(self, lake: "LakeResource") -> dict[str, int]:
        """Rows of the processed tables."""
        found = {dataset: lake.table(dataset).snapshot() for dataset in LANDED}
        return {
            f"{DOMAIN}.processed_{dataset.name}": snapshot.rows
            for dataset, snapshot in found.items()
            if snapshot.ledgers
        }

    def lake_versions(self, lake: "LakeResource", dataset: Dataset) -> dict[str, str]:
        """Fingerprints of the processed partitions."""
        return lake.table(dataset).snapshot().fingerprints

    def quarantines(self) -> Sequence[QuarantineTable]:
        """That of each table."""
        return [
            QuarantineTable(
                dataset.table,
                quarantine_of(dataset),
                ("file",),
                partial(mask_personal, raw, dataset.personal),
            )
            for dataset, raw in (
                (OUTLET, RAW_OUTLET),
                (PRODUCT, RAW_PRODUCT),
                (CUSTOMER, RAW_CUSTOMER),
                (SALES, RAW_SALES),
            )
        ]

    def questions(self, settings: Settings) -> "Iterator[Question]":
        """Whether Spark starts and computes."""
        from retail_assets.resources.cloud_checks import Question

        yield Question(
            "spark",
            lambda: _probe_spark(settings),
            "set RETAIL_SPARK=embedded, or mend what it names",
        )


def mask_personal(raw: RawFiles, personal: Set[str], reason: str, text: str) -> tuple[str, str]:
    """Reason and text of a quarantined row without its ``personal`` columns.

    Where it cannot be told which value is which column's, the text is masked whole: the row has
    another number of fields, or a comma in one.
    """
    from retail_assets.losses import MASK, public_reason

    if not personal:
        return reason, text
    shown = public_reason(reason, personal)
    values = text.split(",")
    # Only of a row that has all fields does a reason name a column.
    has_all_fields = reason.partition(":")[0] in raw.header[1:]
    if not has_all_fields or len(values) != len(raw.header):
        return shown, MASK
    return shown, ",".join(
        MASK if name in personal and value else value
        for name, value in zip(raw.header, values, strict=True)
    )


def _emptying_config(job: str, tables: Sequence[Dataset] = ()) -> dict[str, Any]:
    """The config of a job, or of ``tables`` of it, that lets tables lose rows."""
    from retail_assets.defs.coffee_chain.taking import processed_key

    taken = tables or (LANDED if job == DOMAIN else (CUSTOMER, SALES))
    config = {"config": {"allow_emptying": True}}
    return {"ops": {processed_key(x).to_python_identifier(): config for x in taken}}


def marts_windows(
    landed: Mapping[Dataset, Mapping[str, str]], built: Mapping[Dataset, Mapping[str, str]]
) -> dict[str, list[list[str]] | None]:
    """The windows of a build, by dbt variable: ranges of drop dates, or None for everything.

    ``landed`` and ``built`` map a drop to the fingerprint of what is there, and of what the marts
    were last built from.
    """
    customers_now, customers_then = (
        {key: version for key, version in versions[CUSTOMER].items() if version != ABSENT}
        for versions in (landed, built)
    )
    concerns_any_line = (
        not (built[SALES] and built[CUSTOMER])
        or any(landed[dataset] != built[dataset] for dataset in (OUTLET, PRODUCT))
        or any(customers_now.get(key) != then for key, then in customers_then.items())
    )
    if concerns_any_line:
        return {SALES_WINDOW: None, CUSTOMER_WINDOW: None}
    now, then = landed[SALES], built[SALES]
    changed = {key for key in now.keys() | then.keys() if now.get(key) != then.get(key)}
    arrived = customers_now.keys() - customers_then.keys()
    return {
        SALES_WINDOW: ranges_within(changed, {*now, *then}),
        CUSTOMER_WINDOW: ranges_within(arrived, customers_now),
    }


def _probe_spark(settings: Settings) -> str:
    from retail_assets.resources.spark import SparkResource

    session = SparkResource.of(settings).session
    (row,) = session.sql("select 6 * 7 as answer").collect()
    return f"{settings.spark}, Spark {session.version}, computes {row['answer']}"

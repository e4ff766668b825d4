"""The supply chain's dbt models, built for real on DuckDB from small landed tables.

Each mart is held against the same computed here in plain Python from SYSTEMS.md's definitions, and
each fault that a mart could have against the test that has to find it.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from random import Random
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import yaml  # type: ignore[import-untyped]

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import (
    DIM_CUSTOMER,
    DIM_DEPARTMENT,
    DIM_LOCATION,
    DIM_METADATA,
    DIM_PRODUCT,
    DIM_SHIPPING,
    DOMAIN,
    FACT_ORDER,
    LANDED,
    WITHHELD_HEADER,
)
from retail_assets.resources.dbt.project import dbt_build, run_dbt
from retail_assets.settings import DBT_PROJECT_DIR, Settings, load_settings

Json = dict[str, Any]
Row = dict[str, Any]
Results = dict[str, Json]

MODELS = DBT_PROJECT_DIR / "models" / DOMAIN
CORE = f"path:models/{DOMAIN}/core"
FINISHED = ("COMPLETE", "CLOSED", "CANCELED")
OPEN = (
    *("PENDING", "PENDING_PAYMENT", "PROCESSING", "ON_HOLD", "PAYMENT_REVIEW"),
    "SUSPECTED_FRAUD",
)
DELIVERIES = ("Advance shipping", "Late delivery", "Shipping canceled", "Shipping on time")
MODES = ("First Class", "Same Day", "Second Class", "Standard Class")
LATE, UNKNOWN = "Late delivery", "UNKNOWN"
FIRST_DAY = date(2015, 11, 1)
MONTHS_WITHOUT_ORDERS = [date(2016, 6, 1), date(2017, 1, 1), date(2017, 2, 1)]
MARTS = {
    *("inventory_levels", "customer_retention_rate", "financial_commitments"),
    *("fraud_detection", "overall_performance", "shipping_delays"),
}


def cents(value: float | Decimal) -> Decimal:
    """To the cent, half up."""
    return Decimal(value).quantize(Decimal("0.01"), ROUND_HALF_UP)


def ratio(part: Decimal | int, whole: Decimal | int | None) -> Decimal | None:
    """A quotient to nine digits, half up, rounded once; of nothing there is none."""
    if not whole:
        return None
    return (Decimal(part) / Decimal(whole)).quantize(Decimal("1e-9"), ROUND_HALF_UP)


def month(day: date) -> date:
    """The first day of the day's month."""
    return date(day.year, day.month, 1)


def month_before(first: date) -> date:
    """The month before."""
    return month(first - timedelta(days=1))


def age_band(days: int | None) -> str | None:
    """The band of an age in days, as SYSTEMS.md lists them."""
    if days is None:
        return None
    bands = {range(31): "0-30", range(31, 61): "31-60", range(61, 91): "61-90"}
    return next((name for band, name in bands.items() if days in band), "over 90")


@dataclass
class Star:
    """The landed tables as rows; the marts that are to be made of them, as tuples."""

    tables: dict[Dataset, list[Row]] = field(
        default_factory=lambda: {dataset: [] for dataset in LANDED}
    )

    @property
    def facts(self) -> list[Row]:
        """The rows of fact_order."""
        return self.tables[FACT_ORDER]

    def dimension(self, dataset: Dataset) -> dict[Any, Row]:
        """A dimension by its key."""
        (key,) = (c.name for c in dataset.columns if c.key)
        return {row[key]: row for row in self.tables[dataset]}

    def land(self, settings: Settings) -> None:
        """Make the warehouse's landed tables hold exactly these rows."""
        with duckdb.connect(str(settings.warehouse_path)) as connection:
            for dataset, rows in self.tables.items():
                connection.execute(f"create schema if not exists {dataset.schema}")
                connection.execute(
                    f"create or replace table {dataset.table} ({dataset.duckdb_ddl()})"
                )
                connection.register("landed", pa.Table.from_pylist(rows, dataset.arrow_schema))
                connection.execute(f"insert into {dataset.table} from landed")
                connection.unregister("landed")

    def add_order(self, order: int, customer: int, at: datetime, items: Iterable[Row]) -> None:
        """An order with its items, and what the dimensions say of them.

        An item is a row's columns that are not the same for all; shipping and department besides.
        """
        for changes in items:
            item = len(self.facts) + 1
            values = {"customer_id": customer, "order_date": at, **changes}
            shipping = values.pop("shipping", (2, 2, "First Class", "Shipping on time"))
            department = values.pop("department", 1)
            product = values["product_card_id"]
            keys = {
                "order_item_id": item,
                "order_id": order,
                "location_id": f"place-{values['customer_id'] % 7}",
                "department_id": department,
                "shipping_id": "|".join(map(str, (order, *shipping))),
                "metadata_id": f"message-{item}",
            }
            self._add(FACT_ORDER, keys | values)
            real, scheduled, mode, status = shipping
            self._add(
                DIM_SHIPPING,
                {
                    "shipping_id": keys["shipping_id"],
                    "shipping_date": at + timedelta(days=max(0, min(real, 999))),
                    "days_for_shipping_real": real,
                    "days_for_shipment_scheduled": scheduled,
                    "shipping_mode": mode,
                    "delivery_status": status,
                },
            )
            self._add(DIM_METADATA, {"metadata_id": keys["metadata_id"], "offset": item})
            self._add(DIM_DEPARTMENT, {"department_id": department})
            self._add(DIM_LOCATION, {"location_id": keys["location_id"]})
            self._add(DIM_CUSTOMER, {"customer_id": values["customer_id"], "segment": "Consumer"})
            # Every third product has the name of the one before it.
            name = f"Product {product - (product % 3 == 0)}"
            self._add(DIM_PRODUCT, {"product_card_id": product, "product_name": name})

    def _add(self, dataset: Dataset, values: Row) -> None:
        """A row, once a key; what is not said is a value of the column's type."""
        (key,) = (c.name for c in dataset.columns if c.key)
        known = self.__dict__.setdefault("known", set())
        if (dataset.name, values[key]) in known:
            return
        known.add((dataset.name, values[key]))
        usual = {
            "string": None,
            "date": date(2018, 2, 1),
            "timestamp": datetime(2018, 2, 1, 8),
            "int32": 1,
            "int64": 1,
        }
        row: Row = {}
        for column in dataset.columns:
            value = usual.get(column.type, Decimal(0))
            row[column.name] = "text" if value is None and not column.nullable else value
        self.tables[dataset].append(row | values)

    def last_day(self) -> date:
        """The day of the last order."""
        days: list[date] = [row["order_date"].date() for row in self.facts]
        return max(days)

    def inventory_levels(self, as_of: date | None = None) -> list[tuple[Any, ...]]:
        """The mart's rows, aged to that day or to the last order's."""
        as_of = as_of or self.last_day()
        units: dict[Any, int] = defaultdict(int)
        values: dict[Any, Decimal] = defaultdict(Decimal)
        sold: dict[int, date] = {}
        for row in self.facts:
            product, day = row["product_card_id"], row["order_date"].date()
            units[product, month(day)] += row["order_item_quantity"]
            values[product, month(day)] += row["sales"]
            if day <= as_of:
                sold[product] = max(day, sold.get(product, day))
        products = self.dimension(DIM_PRODUCT)
        found = []
        for product, first in units:
            last = sold.get(product)
            days = (as_of - last).days if last else None
            names = (products[product]["product_name"], products[product]["category_name"])
            amounts = (units[product, first], values[product, first])
            found.append((product, first, *names, *amounts, as_of, last, days, age_band(days)))
        return found

    def customer_retention_rate(self) -> list[tuple[Any, ...]]:
        """The mart's rows."""
        customers: dict[date, set[int]] = defaultdict(set)
        for row in self.facts:
            customers[month(row["order_date"])].add(row["customer_id"])
        found: list[tuple[Any, ...]] = []
        first, last = min(customers), max(customers)
        while first <= last:
            here, before = customers.get(first, set()), customers.get(month_before(first), set())
            if found:
                both = len(here & before)
                found.append((first, len(here), len(before), both, ratio(both, len(before))))
            else:
                found.append((first, len(here), None, None, None))
            first = month(first + timedelta(days=31))
        return found

    def financial_commitments(self) -> list[tuple[Any, ...]]:
        """The mart's rows."""
        orders: dict[Any, set[int]] = defaultdict(set)
        values: dict[Any, Decimal] = defaultdict(Decimal)
        for row in self.facts:
            if row["order_status"] not in FINISHED:
                key = (month(row["order_date"]), row["order_status"] or UNKNOWN)
                orders[key].add(row["order_id"])
                values[key] += row["order_item_total"]
        return [(*key, len(orders[key]), values[key]) for key in orders]

    def fraud_detection(self) -> list[tuple[Any, ...]]:
        """The mart's rows."""
        found = []
        for customer in {row["customer_id"] for row in self.facts}:
            items = [row for row in self.facts if row["customer_id"] == customer]
            suspected = [row for row in items if row["order_status"] == "SUSPECTED_FRAUD"]
            if not suspected:
                continue
            orders, bad = ({row["order_id"] for row in rows} for rows in (items, suspected))
            total, value = (sum(r["order_item_total"] for r in rows) for rows in (items, suspected))
            shares = (ratio(len(bad), len(orders)), ratio(value, total))
            found.append((customer, len(bad), len(orders), shares[0], value, total, shares[1]))
        return found

    def overall_performance(self) -> list[tuple[Any, ...]]:
        """The mart's rows."""
        shippings = self.dimension(DIM_SHIPPING)
        sales: dict[date, Decimal] = defaultdict(Decimal)
        profit: dict[date, Decimal] = defaultdict(Decimal)
        orders: dict[int, list[Row]] = defaultdict(list)
        for row in self.facts:
            sales[month(row["order_date"])] += row["sales"]
            profit[month(row["order_date"])] += row["order_profit_per_order"]
            orders[row["order_id"]].append(row)
        every, fulfilled, late = (Counter[date]() for _ in range(3))
        for items in orders.values():
            first = month(min(row["order_date"] for row in items))
            every[first] += 1
            fulfilled[first] += all(row["order_status"] in ("COMPLETE", "CLOSED") for row in items)
            late[first] += any(
                shippings[row["shipping_id"]]["delivery_status"] == LATE for row in items
            )
        return [
            (
                *(first, sales[first], profit[first], ratio(profit[first], sales[first])),
                every[first],
                *(fulfilled[first], ratio(fulfilled[first], every[first])),
                *(late[first], ratio(late[first], every[first])),
            )
            for first in sales
        ]

    def shipping_delays(self) -> list[tuple[Any, ...]]:
        """The mart's rows."""
        shippings = self.dimension(DIM_SHIPPING)
        delays: dict[Any, list[int]] = defaultdict(list)
        for row in self.facts:
            shipping = shippings[row["shipping_id"]]
            key = (shipping["shipping_mode"] or UNKNOWN, shipping["delivery_status"] or UNKNOWN)
            real, planned = (
                shipping["days_for_shipping_real"],
                shipping["days_for_shipment_scheduled"],
            )
            delays[key].append(real - planned)
        found = []
        for key, days in delays.items():
            late = sum(delay > 0 for delay in days)
            mean, share = ratio(sum(days), len(days)), ratio(late, len(days))
            found.append((*key, len(days), sum(days), mean, late, share))
        return found

    def marts(self, as_of: date | None = None) -> dict[str, list[tuple[Any, ...]]]:
        """The rows of every mart."""
        return {
            "inventory_levels": self.inventory_levels(as_of),
            "customer_retention_rate": self.customer_retention_rate(),
            "financial_commitments": self.financial_commitments(),
            "fraud_detection": self.fraud_detection(),
            "overall_performance": self.overall_performance(),
            "shipping_delays": self.shipping_delays(),
        }


def item(random: Random, **changes: Any) -> Row:
    """An item of an order: a product, its units, and their money."""
    quantity = random.randint(1, 5)
    price = cents(random.uniform(5, 400))
    discount = cents(price * quantity * random.choice([0, 1, 4, 12, 25]) / 100)
    sales = price * quantity
    row = {
        "product_card_id": random.randint(1, 40),
        "department": random.randint(1, 11),
        "order_item_quantity": quantity,
        "sales": sales,
        "order_item_total": sales - discount,
        "order_profit_per_order": cents(float(sales) * random.uniform(-1.5, 0.5)),
        "order_status": "COMPLETE",
    }
    return row | changes


FREE = {"sales": Decimal(0), "order_item_total": Decimal(0)}


@pytest.fixture(scope="module")
def star() -> Star:
    """Some thousand items over fifteen months, and every kind that a mart treats in its own way."""
    random = Random(5)
    star = Star()
    for order in range(1, 1101):
        at = datetime.combine(FIRST_DAY, datetime.min.time())
        at += timedelta(days=random.randrange(425), seconds=random.randrange(86_400))
        if month(at.date()) in MONTHS_WITHOUT_ORDERS:
            continue
        status = random.choice([*FINISHED, "COMPLETE", "COMPLETE", *OPEN])
        shipping = (random.randint(0, 6), random.choice([0, 1, 2, 4]), random.choice(MODES))
        every = {"order_status": status, "shipping": (*shipping, random.choice(DELIVERIES))}
        items = [item(random, **every) for _ in range(random.randint(1, 5))]
        star.add_order(order, random.randint(1, 230), at, items)

    noon, last = datetime(2016, 1, 31, 12), datetime(2017, 3, 31, 23, 59, 59)
    late = (4, 2, "Second Class", LATE)
    # Items corrected one by one: of two statuses, deliveries, customers, months of one order.
    items = [item(random), item(random, order_status="SUSPECTED_FRAUD")]
    star.add_order(2001, 1, noon, items)
    star.add_order(2002, 2, noon, [item(random), item(random, shipping=late)])
    star.add_order(2003, 3, noon, [item(random), item(random, customer_id=4)])
    items = [item(random, order_date=datetime(2016, 2, 1)), item(random)]
    star.add_order(2004, 5, noon, items)
    # What is not known.
    star.add_order(2005, 6, noon, [item(random, order_status=None)])
    star.add_order(2006, 6, noon, [item(random, shipping=(3, 1, None, None))])
    star.add_order(2007, 6, noon, [item(random, shipping=(2**31 - 1, -(2**31), None, LATE))])
    # Suspicions of nothing; a month after one without orders, and without sales.
    star.add_order(2008, 999, noon, [item(random, order_status="SUSPECTED_FRAUD", **FREE)])
    star.add_order(2009, 7, last, [item(random, product_card_id=41, **FREE)])
    return star


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home of its own, with DuckDB."""
    return load_settings(home=tmp_path_factory.mktemp("supply_chain"))


def dbt(settings: Settings, *arguments: str) -> Results:
    """Run a dbt command; results by the node's name."""
    with dbt_build(settings, {}):
        run_dbt(settings, arguments)
    results = json.loads((settings.home / "dbt/docs/run_results.json").read_text())["results"]
    # kind.project.name of a node; a unit test's name comes after its model's, a data test's before
    # a hash.
    parts = [(result["unique_id"].split("."), result) for result in results]
    return {p[3 if p[0] == "unit_test" else 2]: result for p, result in parts}


def build(settings: Settings, *options: str) -> Results:
    """Build the domain's models and run its tests, unit tests excepted."""
    select = ["--select", f"path:models/{DOMAIN}", "--exclude", "resource_type:unit_test"]
    return dbt(settings, "build", *select, *options)


def failed(results: Results) -> set[str]:
    """The names of the nodes that did not do well, those that were skipped left out."""
    return {n for n, r in results.items() if r["status"] not in ("success", "pass", "skipped")}


def skipped(results: Results) -> set[str]:
    """The marts that were not built."""
    return MARTS & {name for name, result in results.items() if result["status"] == "skipped"}


def rows(settings: Settings, sql: str) -> list[tuple[Any, ...]]:
    """A query's rows."""
    with duckdb.connect(str(settings.warehouse_path)) as connection:
        return connection.execute(sql).fetchall()


def assert_marts(settings: Settings, expected: dict[str, list[tuple[Any, ...]]]) -> None:
    """Every mart has exactly these rows."""
    for mart, wanted in expected.items():
        found = Counter(rows(settings, f"select * from supply_chain_core.{mart}"))
        assert found == Counter(wanted), mart


@pytest.fixture(scope="module")
def whole(settings: Settings, star: Star) -> Results:
    """The results of a first build, unit tests included."""
    star.land(settings)
    return dbt(settings, "build", "--select", f"path:models/{DOMAIN}")


def test_the_landed_tables_have_every_kind_of_row(star: Star) -> None:
    assert len(star.facts) > 2500
    assert {row["order_status"] for row in star.facts} == {*FINISHED, *OPEN, None}
    retention = star.customer_retention_rate()
    assert len(retention) == 17
    assert [row[0] for row in retention if row[1] == 0] == MONTHS_WITHOUT_ORDERS
    assert sum(row[-1] is None for row in retention) == 4
    assert None in {row[3] for row in star.overall_performance()}
    assert None in {row[-1] for row in star.fraud_detection()}
    assert any(row[1] < row[2] for row in star.fraud_detection())


def test_every_mart_equals_an_independent_computation(
    whole: Results, settings: Settings, star: Star
) -> None:
    assert failed(whole) | skipped(whole) == set()
    kinds = Counter(result["unique_id"].split(".")[0] for result in whole.values())
    assert kinds["model"] == len(LANDED) + len(MARTS)
    assert kinds["test"] >= 42 and kinds["unit_test"] == 7
    assert set(star.marts()) == MARTS
    assert_marts(settings, star.marts())


def test_staging_has_every_landed_row(whole: Results, settings: Settings, star: Star) -> None:
    for dataset, landed in star.tables.items():
        found = Counter(rows(settings, f"select * from supply_chain_staging.stg_{dataset.name}"))
        assert found == Counter(tuple(row[n] for n in dataset.column_names) for row in landed)


def test_tables_have_the_names_that_were_promised(whole: Results, settings: Settings) -> None:
    found = rows(
        settings,
        "select table_schema, table_name from information_schema.tables"
        " where table_schema like 'supply_chain\\_%' escape '\\'",
    )
    assert set(found) == {
        *(("supply_chain_core", mart) for mart in MARTS),
        *(("supply_chain_staging", f"stg_{dataset.name}") for dataset in LANDED),
    }


def test_every_fault_of_a_mart_has_a_test_that_finds_it(whole: Results, settings: Settings) -> None:
    schema = "supply_chain_core"
    for statement in (
        f"update {schema}.inventory_levels set sales_value = sales_value + 0.01"
        " where product_card_id = 41",
        f"update {schema}.inventory_levels set age_band = '90+' where age_band = 'over 90'",
        f"update {schema}.customer_retention_rate set customer_count = customer_count + 1"
        " where order_month = date '2016-01-01'",
        f"update {schema}.customer_retention_rate set retention_rate = 1.000000001"
        " where order_month = date '2016-01-01'",
        f"update {schema}.financial_commitments set committed_value = committed_value - 0.01"
        " where order_month = date '2016-01-01' and order_status = 'PENDING'",
        f"update {schema}.financial_commitments set order_status = 'CLOSED'"
        " where order_month = date '2016-01-01' and order_status = 'ON_HOLD'",
        # Only the bound of the whole fact shows this one.
        f"update {schema}.fraud_detection set total_value = total_value * 1000",
        f"update {schema}.overall_performance set order_count = order_count + 1"
        " where order_month = date '2016-01-01'",
        f"update {schema}.overall_performance set fulfilment_rate = -0.1"
        " where order_month = date '2016-01-01'",
        f"update {schema}.shipping_delays set late_share = 1.1 where late_line_count > 0",
        f"alter table {schema}.shipping_delays add column email varchar",
    ):
        rows(settings, statement)
    results = dbt(settings, "test", "--select", CORE, "--exclude", "resource_type:unit_test")

    assert failed(results) == {
        "inventory_levels_adds_up",
        "inventory_levels_age_band_is_a_band",
        "customer_retention_rate_adds_up",
        "customer_retention_rate_is_a_share",
        "financial_commitments_adds_up",
        "financial_commitments_status_is_open",
        "fraud_detection_adds_up",
        "overall_performance_adds_up",
        "overall_performance_fulfilment_rate_is_a_share",
        "shipping_delays_late_share_is_a_share",
        "personal_data_stops_at_the_supply_chains_customers",
    }


def test_a_corrected_item_and_another_day_of_ages(
    whole: Results, settings: Settings, star: Star
) -> None:
    """The correction is of one row; the day is amid the orders, so that some are after it."""
    corrected = Star(dict(star.tables))
    changed = star.facts[100] | {"sales": Decimal("77777.77"), "order_status": "CLOSED"}
    corrected.tables[FACT_ORDER] = [*star.facts[:100], changed, *star.facts[101:]]
    corrected.land(settings)
    as_of = date(2015, 11, 20)
    results = build(settings, "--vars", json.dumps({"supply_chain_as_of": f"{as_of}"}))

    assert failed(results) | skipped(results) == set()
    assert_marts(settings, corrected.marts(as_of))
    # Products not sold by then, beside others; before, those not sold for some months.
    assert {row[-1] for row in corrected.inventory_levels(as_of)} == {None, "0-30"}
    assert {row[-1] for row in star.inventory_levels()} >= {"0-30", "over 90"}


def test_faults_of_the_star_stop_the_marts(whole: Results, settings: Settings, star: Star) -> None:
    star.land(settings)
    fact = FACT_ORDER.table
    for statement in (
        f"insert into {fact} from {fact} where order_item_id = 1",
        f"update {fact} set customer_id = -1 where order_item_id = 2",
        f"update {fact} set product_card_id = -1 where order_item_id = 3",
        f"update {fact} set location_id = 'nowhere' where order_item_id = 4",
        f"update {fact} set department_id = -1 where order_item_id = 5",
        f"update {fact} set shipping_id = 'never' where order_item_id = 6",
        f"update {fact} set metadata_id = 'none' where order_item_id = 7",
        f"update {fact} set order_status = 'COMPLETED' where order_item_id = 8",
        f"insert into {DIM_CUSTOMER.table} from {DIM_CUSTOMER.table} where customer_id = 1",
        f"update {DIM_CUSTOMER.table} set segment = 'Nobody' where customer_id = 2",
        f"update {DIM_SHIPPING.table} set delivery_status = 'Late'"
        f" where delivery_status = '{LATE}'",
    ):
        rows(settings, statement)
    results = build(settings)

    assert failed(results) == {
        "unique_stg_fact_order_order_item_id",
        "unique_stg_fact_order_metadata_id",
        *(
            f"stg_fact_order_refers_to_its_{name}"
            for name in ("customer", "product", "location", "department", "shipping", "metadata")
        ),
        "stg_fact_order_status_is_known",
        "unique_stg_dim_customer_customer_id",
        "stg_dim_customer_segment_is_known",
        "stg_dim_shipping_delivery_status_is_known",
    }
    assert skipped(results) == MARTS


def test_a_fan_out_is_found_where_its_cause_is_not(
    whole: Results, settings: Settings, star: Star
) -> None:
    """Dimensions of two rows a key, and none of the staging tests is run."""
    star.land(settings)
    for dataset in (DIM_PRODUCT, DIM_SHIPPING):
        rows(settings, f"insert into {dataset.table} from {dataset.table}")
    results = dbt(settings, "build", "--select", CORE, "--exclude", "resource_type:unit_test")

    assert failed(results) == {
        "inventory_levels_adds_up",
        "unique_combination_inventory_levels_product_card_id__order_month",
        "shipping_delays_adds_up",
    }
    # Orders are counted once whatever a join makes of them.
    assert_marts(settings, {"overall_performance": star.overall_performance()})


def test_before_the_first_message_everything_is_empty(whole: Results, settings: Settings) -> None:
    Star().land(settings)
    results = build(settings)

    assert failed(results) | skipped(results) == set()
    assert_marts(settings, {mart: [] for mart in MARTS})


of_each_table = pytest.mark.parametrize("dataset", LANDED, ids=lambda dataset: dataset.name)


def declared(kind: str) -> list[Json]:
    """The sources or models that the domain's YAML files declare."""
    return [
        entry
        for file in sorted(MODELS.rglob("*.yml"))
        for entry in yaml.safe_load(file.read_text()).get(kind, [])
    ]


def pii(entry: Json) -> set[str]:
    """The columns that are marked as personal."""
    return {c["name"] for c in entry["columns"] if c.get("config", {}).get("meta", {}).get("pii")}


@pytest.fixture(scope="module")
def sources() -> dict[str, Json]:
    """dbt's declaration of each landed table, by schema.name."""
    return {
        f"{source['name']}.{table['name']}": table
        for source in declared("sources")
        for table in source["tables"]
    }


@pytest.fixture(scope="module")
def models() -> dict[str, Json]:
    """dbt's models by name."""
    return {model["name"]: model for model in declared("models")}


def test_dbt_reads_the_tables_that_are_loaded(sources: dict[str, Json]) -> None:
    assert set(sources) == {dataset.table for dataset in LANDED}


@of_each_table
def test_dbts_source_is_the_contract(sources: dict[str, Json], dataset: Dataset) -> None:
    columns = sources[dataset.table]["columns"]
    found = [(c["name"], c["data_type"].upper(), c["description"]) for c in columns]

    assert found == [(c.name, c.duckdb_type, c.description) for c in dataset.columns]
    assert pii(sources[dataset.table]) == {c.name for c in dataset.columns if c.pii}


@of_each_table
def test_staging_is_the_contract(models: dict[str, Json], dataset: Dataset) -> None:
    model = models[f"stg_{dataset.name}"]
    tests = {c["name"]: c["data_tests"] for c in model["columns"] if "data_tests" in c}

    assert tuple(c["name"] for c in model["columns"]) == dataset.column_names
    assert pii(model) == {c.name for c in dataset.columns if c.pii}
    for column in dataset.columns:
        if column.key:
            assert tests[column.name][:2] == ["unique", "not_null"]


def test_the_fact_refers_to_every_dimension(models: dict[str, Json]) -> None:
    tests = (t for c in models["stg_fact_order"]["columns"] for t in c.get("data_tests", []))
    found = {t["relationships"]["arguments"]["to"] for t in tests if "relationships" in t}

    assert found == {f"ref('stg_{dataset.name}')" for dataset in LANDED if dataset != FACT_ORDER}


def test_personal_columns_stop_at_the_customers(models: dict[str, Json]) -> None:
    personal = {c.name for dataset in LANDED for c in dataset.columns if c.pii}
    found = {
        name: {c["name"] for c in model["columns"]} & personal for name, model in models.items()
    }

    assert {name: columns for name, columns in found.items() if columns} == {
        "stg_dim_customer": personal
    }
    assert personal == {"email", "fname", "lname", "street", "zipcode"}


def test_every_model_is_declared_with_its_grain(models: dict[str, Json]) -> None:
    assert {file.stem for file in MODELS.rglob("*.sql")} == set(models)
    for name, model in models.items():
        assert model["description"].startswith("Grain: one row a"), name
        assert all(c["description"].endswith(".") and c["data_type"] for c in model["columns"])


def test_every_mart_adds_up(models: dict[str, Json]) -> None:
    for mart in MARTS:
        tests = [t["adds_up"] for t in models[mart]["data_tests"] if "adds_up" in t]
        assert [test["arguments"]["to"] for test in tests] == ["ref('stg_fact_order')"], mart


def test_what_is_withheld_is_nowhere() -> None:
    name = WITHHELD_HEADER.rpartition(" ")[2].lower()
    files = [f for f in DBT_PROJECT_DIR.rglob("*") if f.suffix in (".sql", ".yml")]

    assert len(files) > 50
    assert not [file for file in files if name in file.read_text().lower()]

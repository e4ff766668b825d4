"""The coffee chain's dbt models, built for real on DuckDB from small landed tables.

Each model is held against the same computed here in plain Python, after a whole build and after
builds by window.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import duckdb
import pytest

from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain.contract import (
    CUSTOMER,
    DOMAIN,
    OUTLET,
    PRODUCT,
    SALES,
    UNKNOWN,
    USUAL_QUANTITY,
)
from retail_assets.resources.dbt.project import dbt_build, run_dbt
from retail_assets.settings import Settings, load_settings

Row = tuple[Any, ...]
Window = list[list[str]] | None

FIRST, SECOND, THIRD = date(2018, 12, 31), date(2020, 2, 29), date(2022, 12, 31)
LEAP_DAY = date(2000, 2, 29)


def completed_years(birthday: date, day: date) -> int:
    """How many birthdays after the first were reached; one of 29 February waits for 1 March."""

    def nth(year: int) -> date:
        try:
            return birthday.replace(year=year)
        except ValueError:
            return date(year, 3, 1)

    return sum(nth(year) <= day for year in range(birthday.year + 1, day.year + 1))


def age_group(age: int | None) -> str:
    """The band of an age, as SYSTEMS.md lists them."""
    if age is None:
        return UNKNOWN
    if age < 21:
        return "under 21"
    if age > 50:
        return "over 50"
    first = 21 + (age - 21) // 5 * 5
    return f"{first}-{first + 4}"


@dataclass
class Shop:
    """The landed tables as rows in the order of the contract's columns."""

    outlets: list[Row] = field(default_factory=list)
    products: list[Row] = field(default_factory=list)
    customers: dict[date, list[Row]] = field(default_factory=dict)
    sales: dict[date, list[Row]] = field(default_factory=dict)

    def land(self, settings: Settings) -> None:
        """Make the warehouse's landed tables hold exactly these rows."""
        tables: list[tuple[Dataset, list[Row]]] = [
            (OUTLET, self.outlets),
            (PRODUCT, self.products),
            (CUSTOMER, [row for drop in self.customers.values() for row in drop]),
            (SALES, [row for drop in self.sales.values() for row in drop]),
        ]
        with duckdb.connect(str(settings.warehouse_path)) as connection:
            for dataset, rows in tables:
                connection.execute(f"create schema if not exists {dataset.schema}")
                connection.execute(
                    f"create or replace table {dataset.table} ({dataset.duckdb_ddl()})"
                )
                marks = ", ".join("?" * len(dataset.columns))
                if rows:
                    connection.executemany(f"insert into {dataset.table} values ({marks})", rows)

    def latest_customers(self) -> dict[str, Row]:
        """customer_id -> the record that is valid."""

        def order(row: Row) -> list[Any]:
            return [row[-1], *((value is not None, str(value)) for value in row[1:-1])]

        found: dict[str, Row] = {}
        for drop in self.customers.values():
            for row in drop:
                if row[0] not in found or order(row) > order(found[row[0]]):
                    found[row[0]] = row
        return found

    def facts(self) -> list[Row]:
        """The rows of fact_sales."""
        states = {row[0]: row[3] for row in self.outlets}
        products = {row[1]: (row[2], row[3]) for row in self.products}
        birthdays = {name: row[4] for name, row in self.latest_customers().items()}
        facts = []
        for drop in self.sales.values():
            for line, day_of_drop, invoice, at, day, _, customer, outlet, product, quantity in drop:
                name, price = products.get(product, (UNKNOWN, None))
                birthday = birthdays.get(customer)
                grown = birthday is not None and birthday <= day
                facts.append(
                    (
                        *(line, invoice, at, day),
                        customer if customer in birthdays else UNKNOWN,
                        outlet if outlet in states else UNKNOWN,
                        states.get(outlet) or UNKNOWN,
                        product if product in products else UNKNOWN,
                        *(name, quantity, price),
                        None if price is None else quantity * price,
                        completed_years(birthday, day) if grown and birthday else None,
                        day_of_drop,
                    )
                )
        return facts

    def mart(self, group: int, named: Any = lambda value: value) -> list[Row]:
        """Units and revenue by one column of the fact, as ``named``, and product_id."""
        quantity: dict[Row, int] = defaultdict(int)
        revenue: dict[Row, Decimal | None] = defaultdict(lambda: None)
        for row in self.facts():
            key = (named(row[group]), row[7])
            quantity[key] += row[9]
            if row[11] is not None:
                revenue[key] = (revenue[key] or Decimal(0)) + row[11]
        return [(*key, total, revenue[key]) for key, total in quantity.items()]

    def models(self) -> dict[str, list[Row]]:
        """The rows of every model."""
        latest = list(self.latest_customers().values())
        sales = [row for drop in self.sales.values() for row in drop]
        return {
            "coffee_chain_staging.stg_outlet": self.outlets,
            "coffee_chain_staging.stg_product": self.products,
            "coffee_chain_staging.stg_customer": latest,
            "coffee_chain_staging.stg_sales": sales,
            "coffee_chain_core.dim_outlet": [
                *self.outlets,
                (UNKNOWN, UNKNOWN, None, UNKNOWN, None, None),
            ],
            "coffee_chain_core.dim_product": [*self.products, (None, UNKNOWN, UNKNOWN, None)],
            "coffee_chain_core.dim_customer": [*latest, (UNKNOWN, *[None] * 7)],
            "coffee_chain_core.fact_sales": self.facts(),
            "coffee_chain_core.state_revenue": self.mart(6),
            "coffee_chain_core.age_group_purchase": self.mart(12, age_group),
        }


def customer(name: str, birthday: date | None, drop: date, **values: str | None) -> Row:
    """A row of the landed customers."""
    row = {"first_name": "Aina", "last_name": "Tan", "gender": "F", "email": None, "phone_no": "1"}
    row |= values
    return (
        *(name, row["first_name"], row["last_name"], row["gender"], birthday),
        *(row["email"], row["phone_no"], drop),
    )


def sale(
    line: str,
    drop: date,
    day: date,
    customer_id: str | None,
    outlet: str | None = "MY001",
    product: str | None = "PD001",
    quantity: int = 1,
) -> Row:
    """A row of the landed sales."""
    at = datetime.combine(day, time(9, 30))
    return (line, drop, "INV-1", at, day, day.year, customer_id, outlet, product, quantity)


def generated(random: Random, drop: date, count: int) -> Iterator[Row]:
    """Sales lines of the year before the drop, some of them of unknown ids or odd quantity."""
    for n in range(count):
        yield sale(
            f"{drop}-{n}",
            drop,
            drop - timedelta(days=random.randrange(366)),
            random.choice([*(f"c{k}" for k in range(24)), "orphan", None]),
            random.choice(["MY001", "MY002", "MY003", "MY999", None]),
            random.choice(["PD001", "PD002", "PD003", "PD099", None]),
            random.choice([1, 2, 3, 4, 4, 3, 2, 1, 0, -1, 12]),
        )


@pytest.fixture(scope="module")
def shop() -> Shop:
    """Two drops, with every kind of row that the models treat in a way of its own."""
    random = Random(7)
    day = timedelta(days=1)
    customers = [
        customer(f"c{k}", date(1950 + 3 * k, random.randint(1, 12), random.randint(1, 28)), FIRST)
        for k in range(20)
    ]
    customers += [
        customer("leap", LEAP_DAY, FIRST),
        customer("ageless", None, FIRST),
        customer("unborn", SECOND + day, FIRST),
        customer("twice", date(1990, 5, 5), FIRST, email="a@example.com"),
        customer("twice", date(1980, 5, 5), FIRST, email=None),
        customer("corrected", date(1990, 1, 1), FIRST),
    ]
    lines = [
        sale("leap-before", SECOND, date(2019, 2, 28), "leap"),
        sale("leap-after", SECOND, date(2019, 3, 1), "leap"),
        sale("leap-on", SECOND, SECOND, "leap"),
        sale("ageless", SECOND, SECOND, "ageless"),
        sale("unborn", SECOND, SECOND, "unborn"),
        sale("twice", SECOND, SECOND, "twice"),
        sale("corrected", FIRST, FIRST, "corrected"),
        sale("same-name", FIRST, FIRST, "c1", product="PD002"),
        sale("late", FIRST, date(2018, 6, 1), "late"),
        sale("no-state", FIRST, FIRST, "c1", outlet="MY003"),
    ]
    sales = {d: [*generated(random, d, 150), *(x for x in lines if x[1] == d)] for d in DROPS[:2]}
    return Shop(
        outlets=[
            ("MY001", "One", "1, Jalan Satu", "Perlis", "01000", "Kangar"),
            ("MY002", "Two", None, "Johor", None, None),
            ("MY003", "Three", "3, Jalan Tiga", None, "80000", None),
        ],
        products=[
            (1, "PD001", "Latté", Decimal("9.90")),
            (2, "PD002", "Latté", Decimal("12.50")),
            (3, "PD003", "Kopi O", Decimal("0.05")),
        ],
        customers={FIRST: customers},
        sales=sales,
    )


DROPS = (FIRST, SECOND, THIRD)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home of its own, with DuckDB."""
    return load_settings(home=tmp_path_factory.mktemp("coffee"))


def of_drops(*drops: date) -> Window:
    """The window of these drops."""
    return [[drop.isoformat()] * 2 for drop in drops]


def build(
    settings: Settings, sales: Window, customers: Window, *selection: str
) -> dict[str, dict[str, Any]]:
    """Build the domain's models and run its tests; results by the node's name."""
    windows = {"coffee_chain_window": sales, "coffee_chain_customer_window": customers}
    arguments = selection or ("build", "--select", f"path:models/{DOMAIN}")
    with dbt_build(settings, windows):
        run_dbt(settings, arguments)
    results = json.loads((settings.home / "dbt/docs/run_results.json").read_text())["results"]
    # kind.project.name of a node; a unit test's name comes after its model's, a data test's before
    # a hash.
    parts = [(result["unique_id"].split("."), result) for result in results]
    return {p[3 if p[0] == "unit_test" else 2]: result for p, result in parts}


def failed(results: dict[str, dict[str, Any]]) -> set[str]:
    """The names of the nodes that did not do well."""
    return {n for n, r in results.items() if r["status"] not in ("success", "pass", "warn")}


def rows(settings: Settings, sql: str) -> list[Row]:
    """A query's rows."""
    with duckdb.connect(str(settings.warehouse_path)) as connection:
        return connection.execute(sql).fetchall()


def assert_models(settings: Settings, expected: dict[str, list[Row]]) -> None:
    """Every model has exactly these rows."""
    for model, wanted in expected.items():
        found = Counter(rows(settings, f"select * from {model}"))
        assert found == Counter(wanted), model


@pytest.fixture(scope="module")
def whole(settings: Settings, shop: Shop) -> dict[str, dict[str, Any]]:
    """The results of a first build, unit tests included."""
    shop.land(settings)
    return build(settings, None, None)


def test_a_whole_build_equals_an_independent_computation(
    whole: dict[str, dict[str, Any]], settings: Settings, shop: Shop
) -> None:
    assert failed(whole) == set()
    kinds = Counter(result["unique_id"].split(".")[0] for result in whole.values())
    assert kinds["model"] == len(shop.models())
    assert kinds["test"] >= 15 and kinds["unit_test"] >= 10
    assert_models(settings, shop.models())


def unknown_members(facts: Iterable[Row]) -> int:
    """How often a line has an UNKNOWN customer, outlet or product."""
    return sum((row[4], row[5], row[7]).count(UNKNOWN) for row in facts)


def unusual(facts: Iterable[Row]) -> int:
    """How many lines have a quantity that is not usual."""
    least, most = USUAL_QUANTITY
    return sum(not least <= row[9] <= most for row in facts)


def test_unknown_members_and_unusual_quantities_are_counted(
    whole: dict[str, dict[str, Any]], shop: Shop
) -> None:
    facts = shop.facts()
    for name, count in (
        ("warn_of_unknown_members", unknown_members(facts)),
        ("warn_of_unusual_quantities", unusual(facts)),
    ):
        assert count > 0
        assert (whole[name]["status"], whole[name]["failures"]) == ("warn", count)


def test_tables_have_the_names_that_were_promised(
    whole: dict[str, dict[str, Any]], settings: Settings, shop: Shop
) -> None:
    found = rows(
        settings,
        "select table_schema || '.' || table_name from information_schema.tables"
        " where table_schema like 'coffee_chain%'",
    )
    assert {name for (name,) in found} == set(shop.models())


def mark(settings: Settings) -> None:
    """Mark every row of the fact: a row that is built anew loses the mark."""
    rows(settings, "update coffee_chain_core.fact_sales set invoice_no = 'untouched'")


def unmarked(settings: Settings) -> set[str]:
    """The lines that were built since they were marked; the mark is taken away again."""
    found = rows(
        settings,
        "select sale_line_id from coffee_chain_core.fact_sales where invoice_no <> 'untouched'",
    )
    rows(settings, "update coffee_chain_core.fact_sales set invoice_no = 'INV-1'")
    return {line for (line,) in found}


@pytest.fixture(scope="module")
def grown(
    whole: dict[str, dict[str, Any]], settings: Settings, shop: Shop
) -> tuple[Shop, set[str], dict[str, dict[str, Any]]]:
    """After a third drop with its customers: the shop, the lines built, the results."""
    shop = Shop(shop.outlets, shop.products, dict(shop.customers), dict(shop.sales))
    shop.customers[THIRD] = [
        customer("late", date(1960, 6, 2), THIRD),
        customer("corrected", date(1950, 1, 1), THIRD),
        customer("new", LEAP_DAY, THIRD),
        # Known again, with nothing new: their lines are built, and come out as they were.
        customer("c1", date(1953, 7, 7), THIRD),
    ]
    shop.sales[THIRD] = [
        *generated(Random(8), THIRD, 150),
        sale("new", THIRD, date(2022, 2, 28), "new"),
    ]
    shop.land(settings)
    mark(settings)
    results = build(settings, of_drops(THIRD), of_drops(THIRD))
    return shop, unmarked(settings), results


def test_a_new_drop_is_added_and_late_customers_are_found(
    grown: tuple[Shop, set[str], dict[str, dict[str, Any]]], settings: Settings
) -> None:
    shop, _, results = grown
    assert failed(results) == set()
    assert_models(settings, shop.models())
    ages = dict(
        rows(settings, "select sale_line_id, customer_age from coffee_chain_core.fact_sales")
    )
    assert (ages["late"], ages["corrected"], ages["new"]) == (57, 68, 21)


def test_only_the_new_drop_and_its_customers_lines_are_built(
    grown: tuple[Shop, set[str], dict[str, dict[str, Any]]],
) -> None:
    shop, built, _ = grown
    changed = {row[0] for row in shop.customers[THIRD]}
    of_drop = {row[0] for row in shop.sales[THIRD]}
    of_customers = {row[0] for drop in shop.sales.values() for row in drop if row[6] in changed}
    assert of_customers - of_drop
    assert built == of_drop | of_customers


def test_warnings_are_of_the_new_drop(
    grown: tuple[Shop, set[str], dict[str, dict[str, Any]]],
) -> None:
    shop, _, results = grown
    facts = [row for row in shop.facts() if row[-1] == THIRD]
    assert results["warn_of_unknown_members"]["failures"] == unknown_members(facts)
    assert results["warn_of_unusual_quantities"]["failures"] == unusual(facts)


@pytest.fixture(scope="module")
def corrected(
    grown: tuple[Shop, set[str], dict[str, dict[str, Any]]], settings: Settings
) -> tuple[Shop, set[str], dict[str, dict[str, Any]]]:
    """After the first drop's sales came again, with other lines, and the second's vanished."""
    shop, _, _ = grown
    shop = Shop(shop.outlets, shop.products, dict(shop.customers), dict(shop.sales))
    kept = [row for n, row in enumerate(shop.sales[FIRST]) if n % 3]
    shop.sales[FIRST] = [(*row[:-1], row[-1] + n % 2) for n, row in enumerate(kept)]
    shop.sales[FIRST].append(sale("one-more", FIRST, FIRST, "c2", quantity=4))
    del shop.sales[SECOND]
    shop.land(settings)
    mark(settings)
    results = build(settings, of_drops(FIRST, SECOND), [])
    return shop, unmarked(settings), results


def test_a_drop_that_came_again_is_replaced_and_one_without_lines_is_emptied(
    corrected: tuple[Shop, set[str], dict[str, dict[str, Any]]], settings: Settings
) -> None:
    shop, built, results = corrected
    assert failed(results) == set()
    assert_models(settings, shop.models())
    assert built == {row[0] for row in shop.sales[FIRST]}


def test_what_no_window_names_stays_and_is_noticed(
    corrected: tuple[Shop, set[str], dict[str, dict[str, Any]]], settings: Settings
) -> None:
    """Customers alone may be new; a drop that changed and is in no window fails a test."""
    shop, _, _ = corrected
    before = shop.facts()
    shop = Shop(shop.outlets, shop.products, dict(shop.customers), dict(shop.sales))
    born = date(1970, 1, 1)
    fourth = date(2023, 1, 1)
    shop.customers[fourth] = [customer("orphan", born, fourth)]
    shop.sales[FIRST] = shop.sales[FIRST][1:]
    shop.land(settings)
    results = build(settings, [], of_drops(fourth))
    assert failed(results) >= {"fact_sales_holds_every_line"}
    assert results["state_revenue"]["status"] == "skipped"
    found = rows(settings, "select * from coffee_chain_core.fact_sales")
    # What the landed table lost is still there, the orphan's lines have their customer.
    orphaned = {row[0] for drop in shop.sales.values() for row in drop if row[6] == "orphan"}
    assert len(orphaned) > 3
    (lost,) = {row[0] for row in before} - {row[0] for row in shop.facts()}
    assert lost not in orphaned
    wanted = [*shop.facts(), *(row for row in before if row[0] == lost)]
    assert Counter(found) == Counter(wanted)

    # No window at all makes it whole, whichever of the two is absent.
    results = build(settings, None, [])
    assert failed(results) == set()
    assert_models(settings, shop.models())


def test_every_fault_has_a_test_that_finds_it(
    corrected: tuple[Shop, set[str], dict[str, dict[str, Any]]], settings: Settings
) -> None:
    day = f"date '{FIRST}'"
    fact = "coffee_chain_core.fact_sales"
    one = f"(select min(sale_line_id) from {fact} where drop_date = {day}"
    for statement in (
        f"insert into {fact} from (from {fact} where drop_date = {day} limit 1)",
        f"update {fact} set total_price = total_price + 0.01 where sale_line_id = {one}"
        " and product_id <> 'UNKNOWN')",
        f"update {fact} set customer_id = 'nobody' where sale_line_id = {one})",
        "update coffee_chain_core.state_revenue set quantity = quantity + 1"
        " where product_id = 'PD001' and outlet_state = 'Perlis'",
        "update coffee_chain_core.age_group_purchase set total_price = total_price + 0.01",
        "update coffee_chain_core.age_group_purchase set age_group = '18-20'"
        " where age_group = 'over 50'",
        "alter table coffee_chain_core.dim_outlet add column email varchar",
    ):
        rows(settings, statement)
    results = build(settings, of_drops(FIRST), [], "test", "--select", f"path:tests/{DOMAIN}")
    marts = ("state_revenue,test_type:generic", "age_group_purchase,test_type:generic")
    of_marts = build(settings, None, None, "test", "--select", *marts)

    assert failed(results) == {
        "fact_sales_holds_every_line",
        "fact_sales_is_unique",
        "fact_sales_refers_to_dimensions",
        "fact_sales_total_is_quantity_times_price",
        "personal_data_stops_at_the_customers",
    }
    assert failed(of_marts) == {
        "state_revenue_adds_up",
        "age_group_purchase_adds_up",
        "age_group_purchase_age_group_is_a_band",
    }


def test_completed_years_are_exact_on_every_day(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    """Birthdays at every turn, against every day of nine years with three leap days."""
    birthdays = [
        LEAP_DAY,
        *(date(2000, month, day) for month, day in [(1, 1), (2, 28), (3, 1), (6, 15), (12, 31)]),
        *(date(2001, month, day) for month, day in [(2, 28), (3, 1)]),
        date(1900, 3, 1),
    ]
    days = [date(2012, 1, 1) + timedelta(days=n) for n in range(9 * 365)]
    inline = "select {{ completed_years('birthday', 'day') }} as age"
    capfd.readouterr()
    assert run_dbt(settings, ["--quiet", "compile", "--inline", inline]) == 0
    sql = capfd.readouterr().out
    with duckdb.connect() as connection:
        found = connection.execute(
            f"select birthday, day, age from (select unnest(?::date[]) as birthday) as b,"
            f" (select unnest(?::date[]) as day) as d, lateral ({sql}) as a",
            [birthdays, days],
        ).fetchall()

    assert len(found) == len(birthdays) * len(days)
    assert [row for row in found if row[2] != completed_years(row[0], row[1])] == []

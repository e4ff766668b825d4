"""The supply chain by its command, held against a computation of its own over the CSV files.

Three processes one after the other on one home, each with an embedded broker that begins at offset
0: a sample, then a corrected line, a new one and a malformed one, then all of them once more. What
stands in both sinks and in every table afterwards is kept, and compared.
"""

import csv
import io
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import DEAD_LETTERS, DOMAIN, LANDED, MESSAGES
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.operational_db import OperationalDbResource
from retail_assets.resources.operational_db.embedded import EmbeddedPostgres
from retail_assets_tests.conftest import Command
from retail_assets_tests.integration.supply_reckoning import PASSWORD, Star, Topic

Rows = list[dict[str, Any]]
ORDERS = 3_000
SECRET = "s3cr3t-"
MARTS = (
    "inventory_levels",
    "customer_retention_rate",
    "financial_commitments",
    "fraud_detection",
    "overall_performance",
    "shipping_delays",
)
IDENTITIES = ("location_id", "shipping_id", "metadata_id", "message_order", "ingest_date")
NEW_ITEM, BAD_ITEM, NEW_CUSTOMER = "900001", "900002", "900003"


def keep_secrets(file: Path) -> None:
    """Give each line of a sample a password of its own: the sample's is the e-mail's mask."""
    with file.open(encoding="latin-1", newline="") as source:
        header, *lines = csv.reader(source)
    at = header.index(PASSWORD)
    for number, line in enumerate(lines):
        line[at] = f"{SECRET}{number}"
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    file.write_bytes(text.getvalue().encode("latin-1"))


def write_amendments(sample: Path, amended: Path) -> tuple[str, str]:
    """A correction, a new line, a malformed one; the item corrected, and the item that it is of.

    The corrected line is of a customer of one order, whose street changes too; sales, quantity
    and profit do, and an open order becomes a complete one.
    """
    with sample.open(encoding="cp1252", newline="") as source:
        header, *lines = csv.reader(source)
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    customers = Counter(row["Customer Id"] for row in rows)
    chosen = next(
        row
        for row in rows
        if row["Order Status"] == "PENDING_PAYMENT" and customers[row["Customer Id"]] == 1
    )
    correction = chosen | {
        "Order Item Quantity": "7",
        "Sales": "1000.004999",
        "Order Item Total": "900.005",
        "Sales per customer": "900.005",
        "Benefit per order": "-12.345",
        "Order Profit Per Order": "-12.345",
        "Order Status": "COMPLETE",
        "Customer Street": "1 Rue de l'Été",
    }
    new = chosen | {
        "Order Id": NEW_ITEM,
        "Order Item Id": NEW_ITEM,
        "Customer Id": NEW_CUSTOMER,
        "Order Customer Id": NEW_CUSTOMER,
        "Customer City": "Besançon",
        "Order Status": "PROCESSING",
        PASSWORD: f"{SECRET}new",
    }
    malformed = new | {"Order Item Id": BAD_ITEM, "Sales": "many"}
    with amended.open("w", encoding="utf-8-sig", newline="") as target:
        writer = csv.DictWriter(target, header)
        writer.writeheader()
        writer.writerows([correction, new, malformed])
    return chosen["Order Item Id"], chosen["Customer Id"]


def append(sample: Path, amended: Path, together: Path) -> None:
    """Both files as one, in UTF-8."""
    _, _, lines = amended.read_text("utf-8-sig").partition("\n")
    together.write_text(sample.read_text("cp1252") + lines, "utf-8")


@dataclass(frozen=True)
class Sinks:
    """What lies in the lake and in PostgreSQL: fields by place, and dead letters."""

    lake: dict[tuple[str, int, int], dict[str, str]]
    lake_letters: dict[tuple[str, int, int], str]
    database: dict[tuple[str, int, int], dict[str, str]]
    database_letters: dict[tuple[str, int, int], str]


@dataclass(frozen=True)
class Found:
    """What a home holds after a run; ``printed`` by it."""

    tables: Mapping[str, Rows]
    sinks: Sinks
    printed: str
    topic: Star
    sent: dict[tuple[str, int, int], dict[str, str]]
    malformed: set[tuple[str, int, int]]


class Home:
    """A home of the supply chain, and the command over it."""

    def __init__(self, path: Path, command: Command) -> None:
        self.path = path
        self.command = command
        self.topic = Topic()

    def stream(self, file: Path) -> Found:
        """Stream a file in a process of its own; what the home holds then."""
        done = self.command("run", DOMAIN, "--stream", str(file), home=self.path, timeout=900)
        assert done.returncode == 0, done.stderr
        broker = json.loads((self.path / "broker.json").read_text())
        self.topic.send(broker["incarnation"], file, malformed=[BAD_ITEM])
        messages = self.topic.messages
        return Found(
            {name: self.rows(name) for name in (*(d.table for d in LANDED), *map(core, MARTS))},
            self.sinks(),
            done.stdout,
            Star(messages),
            {m.place: m.row for m in messages if not m.malformed},
            {m.place for m in messages if m.malformed},
        )

    def rows(self, table: str) -> Rows:
        """All rows of a table of the warehouse."""
        with duckdb.connect(self.path / "warehouse.duckdb", read_only=True) as connection:
            found = connection.execute(f"from {table}")
            names = [column[0] for column in found.description or ()]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def sinks(self) -> Sinks:
        """Both sinks; each message is in each of them once."""
        rows, letters = map(self._parquet, (MESSAGES, DEAD_LETTERS))
        with OperationalDbResource(url="embedded", home=str(self.path)).connect() as connection:
            at = 'select incarnation, partition, "offset"'
            payloads = connection.execute(
                f"{at}, payload from raw_streaming.supply_chain_data".encode()
            ).fetchall()
            reasons = connection.execute(
                f"{at}, reason from raw_streaming.dead_letters".encode()
            ).fetchall()
        EmbeddedPostgres.leave(self.path)
        places = (
            [(r["incarnation"], r["partition"], r["offset"]) for r in rows],
            [(r["incarnation"], r["partition"], r["offset"]) for r in letters],
        )
        assert all(len(set(each)) == len(each) for each in places)
        return Sinks(
            dict(zip(places[0], rows, strict=True)),
            dict(zip(places[1], (r["reason"] for r in letters), strict=True)),
            {(i, p, o): payload for i, p, o, payload in payloads},
            {(i, p, o): reason for i, p, o, reason in reasons},
        )

    def _parquet(self, dataset: Dataset) -> Rows:
        files = LocalLake(root=str(self.path / "lake")).partition_uris(dataset)
        return [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]


def core(mart: str) -> str:
    """The table of a mart."""
    return f"{DOMAIN}_core.{mart}"


@dataclass(frozen=True)
class History:
    """A home, and what it held after each of three runs."""

    sample: Path
    home: Home
    first: Found
    amended: Found
    replayed: Found
    corrected_item: int
    corrected_customer: int


@pytest.fixture(scope="module")
def history(retail_assets: Command, tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    samples = tmp_path_factory.mktemp("samples")
    sample, amended, together = (samples / f"{name}.csv" for name in ("sample", "new", "all"))
    home = Home(tmp_path_factory.mktemp("home"), retail_assets)
    done = retail_assets(
        "sample", DOMAIN, "--orders", str(ORDERS), "--to", str(sample), home=home.path
    )
    assert done.returncode == 0, done.stderr
    keep_secrets(sample)
    item, customer = write_amendments(sample, amended)
    append(sample, amended, together)
    yield History(
        sample,
        home,
        home.stream(sample),
        home.stream(amended),
        home.stream(together),
        int(item),
        int(customer),
    )
    EmbeddedPostgres.leave(home.path)


EACH = pytest.mark.parametrize("at", ["first", "amended", "replayed"])


def found_at(history: History, at: str) -> Found:
    found = getattr(history, at)
    assert isinstance(found, Found)
    return found


@EACH
def test_each_message_is_in_both_sinks_once(history: History, at: str) -> None:
    found = found_at(history, at)

    assert found.sinks.database == found.sent
    assert found.sinks.lake.keys() == found.sent.keys()
    for place, row in found.sinks.lake.items():
        sent = found.sent[place]
        # In the order of the columns: the first seven are not of the message.
        assert list(row.values())[7:] == list(sent.values())
        assert row["key"] == sent["Order Id"]


@EACH
def test_a_malformed_line_is_a_dead_letter_in_both_sinks(history: History, at: str) -> None:
    found = found_at(history, at)

    assert found.sinks.lake_letters.keys() == found.malformed
    assert found.sinks.database_letters == found.sinks.lake_letters
    assert len(found.malformed) == {"first": 0, "amended": 1, "replayed": 2}[at]
    for reason in found.sinks.lake_letters.values():
        assert reason.startswith("Sales: expected") and "'many'" in reason


@EACH
def test_the_fact_is_the_latest_line_of_each_order_item(history: History, at: str) -> None:
    found = found_at(history, at)

    expected = {
        item: {name: value for name, value in row.items() if name != "incarnation"}
        for item, row in found.topic.fact.items()
    }
    assert joined_fact(found.tables) == expected


@EACH
def test_dimensions_are_of_every_message(history: History, at: str) -> None:
    found = found_at(history, at)

    for name, expected in found.topic.dimensions().items():
        rows = [plain(row) for row in found.tables[f"{DOMAIN}.{name}"]]
        assert in_order(rows) == in_order(expected), name


@EACH
@pytest.mark.parametrize("mart", MARTS)
def test_marts_add_up_to_the_lines(history: History, at: str, mart: str) -> None:
    found = found_at(history, at)

    rows, expected = found.tables[core(mart)], found.topic.marts()[mart]
    key = {"inventory_levels": 2, "financial_commitments": 2, "shipping_delays": 2}.get(mart, 1)
    rows, expected = (sorted(x, key=lambda r: list(r.values())[:key]) for x in (rows, expected))
    assert len(rows) == len(expected) > 0
    for row, wanted in zip(rows, expected, strict=True):
        assert list(row) == list(wanted)
        for name, value in wanted.items():
            if isinstance(value, float):  # a share, of which we keep nine places
                assert abs(row[name] - Decimal(value)) < Decimal("1e-9"), (row, wanted)
            else:
                assert row[name] == value, (row, wanted)


def test_sums_are_those_of_the_source(history: History) -> None:
    """Not by way of the reckoning's star: of each item's last line, in cents."""
    ((rows, sales, total, profit),) = [
        (
            len(found),
            sum(r["sales"] for r in found),
            sum(r["order_item_total"] for r in found),
            sum(r["order_profit_per_order"] for r in found),
        )
        for found in [history.first.tables[f"{DOMAIN}.fact_order"]]
    ]
    last = {row["Order Item Id"]: row for row in history.first.sent.values()}
    cents = Counter[str]()
    for row in last.values():
        for name in ("Sales", "Order Item Total", "Order Profit Per Order"):
            cents[name] += half_up_cents(row[name])

    assert rows == len(last) == len({r["Order Item Id"] for r in history.first.sent.values()})
    assert len(last) < len(history.first.sent)  # some lines come twice
    assert (sales * 100, total * 100, profit * 100) == (
        cents["Sales"],
        cents["Order Item Total"],
        cents["Order Profit Per Order"],
    )
    performance = history.first.tables[core("overall_performance")]
    assert sum(row["sales"] for row in performance) == sales
    assert sum(row["profit"] for row in performance) == profit


def half_up_cents(text: str) -> int:
    """Cents of a decimal number, by its digits."""
    whole, _, digits = text.lstrip("-").partition(".")
    digits = digits.ljust(3, "0")
    cents = int(whole) * 100 + int(digits[:2]) + (digits[2] >= "5")
    return -cents if text.startswith("-") else cents


def test_a_corrected_and_a_new_line_change_two_rows_of_the_fact(history: History) -> None:
    before, after = (joined_fact(f.tables) for f in (history.first, history.amended))

    changed = {item for item, row in after.items() if before.get(item) != row}
    assert changed == {history.corrected_item, int(NEW_ITEM)}
    assert before.keys() | {int(NEW_ITEM)} == after.keys()
    row = after[history.corrected_item]
    assert row["sales"] == Decimal("1000.00")
    assert row["order_item_total"] == row["sales_per_customer"] == Decimal("900.01")
    assert row["order_profit_per_order"] == Decimal("-12.35")
    assert row["order_status"] == "COMPLETE"


def test_a_corrected_and_a_new_line_change_the_marts_that_sum_them(history: History) -> None:
    fact = joined_fact(history.amended.tables)
    corrected, new = fact[history.corrected_item], fact[int(NEW_ITEM)]
    of = date(corrected["order_date"].year, corrected["order_date"].month, 1)
    assert of == date(new["order_date"].year, new["order_date"].month, 1)

    def changes(mart: str, *key: str) -> set[tuple[Any, ...]]:
        before, after = (
            {tuple(row[name] for name in key): row for row in found.tables[core(mart)]}
            for found in (history.first, history.amended)
        )
        return {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}

    product = corrected["product_card_id"]
    assert new["product_card_id"] == product
    assert changes("inventory_levels", "product_card_id", "order_month") == {(product, of)}
    assert changes("financial_commitments", "order_month", "order_status") == {
        (of, "PENDING_PAYMENT"),
        (of, "PROCESSING"),
    }
    assert changes("overall_performance", "order_month") == {(of,)}
    assert changes("fraud_detection", "customer_id") == set()
    # A customer more, who has not come back.
    assert changes("customer_retention_rate", "order_month") <= {(of,), (following(of),)}
    assert (of,) in changes("customer_retention_rate", "order_month")
    assert changes("shipping_delays", "shipping_mode", "delivery_status") == {
        (new["shipping_mode"], new["delivery_status"])
    }


def following(of: date) -> date:
    return date(of.year + of.month // 12, of.month % 12 + 1, 1)


def test_a_corrected_and_a_new_line_change_two_customers(history: History) -> None:
    before, after = (
        {row["customer_id"]: plain(row) for row in found.tables[f"{DOMAIN}.dim_customer"]}
        for found in (history.first, history.amended)
    )

    changed = {customer for customer, row in after.items() if before.get(customer) != row}
    assert changed == {history.corrected_customer, int(NEW_CUSTOMER)}
    assert after[history.corrected_customer]["street"] == "1 Rue de l'Été"
    assert after[int(NEW_CUSTOMER)]["city"] == "Besançon"


def test_all_lines_again_change_nothing_but_the_message_that_a_row_is_of(
    history: History,
) -> None:
    before, after = history.amended.tables, history.replayed.tables

    for table in before:
        if table == f"{DOMAIN}.dim_metadata":
            continue  # the messages, which are others
        rows = [in_order([plain(row) for row in tables[table]]) for tables in (before, after)]
        assert rows[0] == rows[1], table
    for name in ("location_id", "shipping_id"):
        ids = [
            {row["order_item_id"]: row[name] for row in tables[f"{DOMAIN}.fact_order"]}
            for tables in (before, after)
        ]
        assert ids[0] == ids[1]
    # Each row is now of the last incarnation.
    metadata = [
        {row["metadata_id"] for row in tables[f"{DOMAIN}.dim_metadata"]}
        for tables in (before, after)
    ]
    assert len(metadata[0]) == len(metadata[1]) and not metadata[0] & metadata[1]
    facts = after[f"{DOMAIN}.fact_order"]
    assert {row["metadata_id"] for row in facts} == metadata[1]


def test_the_run_tells_what_landed(history: History) -> None:
    lines = history.first.printed.splitlines()
    (row,) = [line for line in lines if "raw_streaming/supply_chain_data" in line and "│" in line]
    assert f" {len(history.first.sent):,} " in row
    assert any("supply_chain/fact_order" in line for line in lines)
    assert any("supply_chain_core/shipping_delays" in line for line in lines)
    assert "checks passed" in lines[-1] and "warn" not in lines[-1]


def test_the_password_is_in_no_file(history: History) -> None:
    """Neither its name nor a value: in bytes, in Parquet, in both databases, in Dagster's."""
    home = history.home.path
    signs = (PASSWORD.encode(), b"customer_password", SECRET.encode())
    files = [path for path in home.rglob("*") if path.is_file()]
    assert history.sample.read_bytes().count(SECRET.encode()) > ORDERS  # what is looked for
    found = [path for path in files if any(sign in path.read_bytes() for sign in signs)]
    assert found == []

    kinds = Counter(path.suffix for path in files)
    assert kinds[".parquet"] >= 10 and kinds[".db"] >= 3
    with duckdb.connect() as connection:
        for path in files:
            if path.suffix == ".parquet":
                assert_free(connection, f"read_parquet('{path}', hive_partitioning = false)")
    with duckdb.connect(home / "warehouse.duckdb", read_only=True) as connection:
        tables = connection.execute(
            "select schema_name || '.' || table_name from duckdb_tables()"
        ).fetchall()
        assert len(tables) >= len(LANDED) + len(MARTS)
        for (table,) in tables:
            assert_free(connection, table)
    for path in files:
        if path.suffix == ".db":
            with closing(sqlite3.connect(path)) as database:
                assert not [line for line in database.iterdump() if has_sign(line)], path
    with OperationalDbResource(url="embedded", home=str(home)).connect() as connection:
        tables = connection.execute(
            "select quote_ident(table_schema) || '.' || quote_ident(table_name)"
            " from information_schema.tables where table_schema = 'raw_streaming'"
        ).fetchall()
        assert len(tables) == 3
        for (table,) in tables:
            rows = connection.execute(f"select t::text from {table} as t".encode()).fetchall()
            assert rows and not [row for (row,) in rows if has_sign(row)], table
    EmbeddedPostgres.leave(home)


def has_sign(text: str) -> bool:
    return any(sign in text for sign in (PASSWORD, "customer_password", SECRET))


def assert_free(connection: duckdb.DuckDBPyConnection, table: str) -> None:
    described = connection.execute(f"describe from {table}").fetchall()
    assert not [name for name, *_ in described if "password" in name.lower()], table
    rows = connection.execute(f"select cast(t as varchar) from {table} as t").fetchall()
    assert not [row for (row,) in rows if has_sign(row)], table


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what says which message it is of, and without hashes."""
    return {name: value for name, value in row.items() if name not in IDENTITIES}


def in_order(rows: Rows) -> list[list[tuple[str, Any]]]:
    """Rows in an order of their own, columns by name."""
    return sorted((sorted(row.items()) for row in rows), key=repr)


def joined_fact(tables: Mapping[str, Rows]) -> dict[int, dict[str, Any]]:
    """The fact by order item: its own columns, and those of the rows that its keys name."""
    dimensions = {
        name: {row[f"{name}_id"]: row for row in tables[f"{DOMAIN}.dim_{name}"]}
        for name in ("location", "shipping", "metadata")
    }
    known = {
        name: {row[name] for row in tables[f"{DOMAIN}.dim_{dimension}"]}
        for dimension, name in (
            ("customer", "customer_id"),
            ("product", "product_card_id"),
            ("department", "department_id"),
        )
    }
    found = {}
    for row in tables[f"{DOMAIN}.fact_order"]:
        assert all(row[name] in keys for name, keys in known.items())
        joined = plain(row)
        for name, rows in dimensions.items():
            joined |= plain(rows[row[f"{name}_id"]])
        assert joined.pop("topic") == "supply_chain_data"
        assert isinstance(joined.pop("time"), datetime)
        assert row["order_item_id"] not in found
        found[row["order_item_id"]] = joined
    return found

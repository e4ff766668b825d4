"""Tests of retail_assets.commands.quarantine, over lakes that the domains' own code filled."""

import json
import os
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from typer.testing import CliRunner

from retail_assets.cli import app
from retail_assets.commands import quarantine as module
from retail_assets.commands.quarantine import UnreadQuarantineError, read_quarantine, to_json
from retail_assets.commands.tables import print_quarantine
from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain.contract import (
    CUSTOMER,
    OUTLET,
    RAW_CUSTOMER,
    SALES,
)
from retail_assets.defs.online_retail.contract import ONLINE_RETAIL_DATA, SOURCE_COLUMNS
from retail_assets.defs.online_retail.feed import FEED
from retail_assets.defs.registry import domains
from retail_assets.defs.supply_chain import contract as supply_chain
from retail_assets.defs.supply_chain.contract import DEAD_LETTERS, MESSAGES
from retail_assets.defs.supply_chain.fast_messages import parse_messages
from retail_assets.errors import PermanentError
from retail_assets.feeds.files import quarantine_of
from retail_assets.resources.broker.resource import Message
from retail_assets.resources.lake import LakeResource, open_lake
from retail_assets.resources.lake.tables import NewFile
from retail_assets.settings import Settings, load_settings

D1, D2 = "2022-12-30", "2022-12-31"
AT = datetime(2026, 1, 2, 3, 5)
Row = dict[str, Any]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in list(os.environ):
        if name.startswith(("RETAIL_", "DAGSTER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RETAIL_HOME", str(tmp_path / "home"))
    return load_settings()


def put(lake: LakeResource, table: Dataset, key: str, rows: Sequence[Row]) -> None:
    """Replace a partition of a quarantine, as the domains' assets do."""
    with lake.staging("run") as stage:
        written = pa.Table.from_pylist(list(rows), schema=table.arrow_schema)
        stage.write_partitions(table, [(key, written)] if rows else [])
        stage.publish(table, [key])


def put_online(lake: LakeResource, rows: Sequence[tuple[str, str]]) -> None:
    parts = [
        {"source": "shop.csv", "row": at, "reason": reason, "text": text}
        for at, (reason, text) in enumerate(rows, start=2)
    ]
    put(lake, FEED.quarantine, D1, parts)


def put_drop(
    lake: LakeResource,
    table: Dataset,
    rows: Sequence[tuple[str, str]],
    day: str,
    *,
    row_stays: bool = False,
) -> None:
    partition = {"drop_date": date.fromisoformat(day)} if table.partition_by else {}
    place = partition | {"file": f"raw/{day}.csv", "row_stays": row_stays}
    parts = [{**place, "reason": reason, "text": text} for reason, text in rows]
    put(lake, quarantine_of(table), day if table.partition_by else "", parts)


def put_messages(lake: LakeResource, values: Iterable[bytes | None], start: int = 0) -> None:
    """Dead letters, as a batch puts them; what is no dead letter is left out."""
    sent = [Message(1, at, b"1", value, AT) for at, value in enumerate(values, start=start)]
    dead = parse_messages(sent, incarnation="0f3c", started_at=AT).dead
    name = f"ingest_date={D1}/{start}.parquet"
    with lake.scratch() as folder:
        file = folder / "dead.parquet"
        pq.write_table(dead, file, store_schema=False)
        new = NewFile(name, D1, dead.num_rows, file.stat().st_size)
        lake.put_file(f"{DEAD_LETTERS.location}/{name}", file)
    lake.table(DEAD_LETTERS).commit([new])


def message(**changed: Any) -> dict[str, Any]:
    """Fields of a message by header, ``changed`` by our names; its sales are no number."""
    plain = {"string": "Bogotá", "timestamp": "1/31/18 22:56", "int32": "3", "int64": "17850"}
    fields = {c.header: changed.get(c.name, plain.get(c.type, "2.5")) for c in COLUMNS}
    return fields | {"Sales": "many"}


COLUMNS = supply_chain.SOURCE_COLUMNS


def command(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["quarantine", *arguments])
    assert isinstance(done.exception, SystemExit | None), done.exception
    return done.exit_code, done.output


def found(*arguments: str) -> dict[str, Any]:
    """The tables of ``--json`` by name."""
    code, output = command("--json", *arguments)
    assert code == 0, output
    return {table["table"]: table for table in json.loads(output)["tables"]}


def test_a_lake_without_quarantine_says_so_of_each_table(settings: Settings) -> None:
    code, output = command()

    tables = [table.table for domain in domains() for table in domain.quarantines()]
    assert code == 0
    assert output.splitlines() == [f"{table}: nothing is quarantined" for table in tables]
    assert [(name, x["rows"], x["reasons"]) for name, x in found().items()] == [
        (table, 0, []) for table in tables
    ]
    assert {dataset.table for domain in domains() for dataset in domain.datasets} & set(tables)
    assert not Path(settings.lake).exists()  # it only looks


@pytest.mark.parametrize("asked", ["malaysian_coffee_chain.sale", "coffee", ""])
def test_an_unknown_table_is_refused_with_the_known_ones(settings: Settings, asked: str) -> None:
    done = CliRunner().invoke(app, ["quarantine", asked])

    assert isinstance(done.exception, PermanentError)
    told = str(done.exception)
    assert told.startswith(f"{asked!r} is no table that has a quarantine; one of: ")
    assert "malaysian_coffee_chain.sales" in told
    assert "raw_streaming.supply_chain_data" in told
    assert "or a domain: coffee_chain, online_retail, supply_chain" in told


def test_one_table_or_those_of_a_domain_can_be_asked_for(settings: Settings) -> None:
    assert list(found("malaysian_coffee_chain.sales")) == ["malaysian_coffee_chain.sales"]
    assert list(found("coffee_chain")) == [
        f"malaysian_coffee_chain.{name}" for name in ("outlet", "product", "customer", "sales")
    ]
    assert list(found("supply_chain")) == ["raw_streaming.supply_chain_data"]


def test_rows_are_counted_by_what_was_expected(settings: Settings) -> None:
    lake = open_lake(settings)
    quantity, at = "quantity: expected a whole number", "date_time: expected a time"
    line = "0,INV-1,2/1/2019 8:00,c,MY001,PD001,two"
    for day in (D1, D2):
        rows = [(f"{quantity}, found '{n}, found x'", line) for n in range(4)]
        put_drop(lake, SALES, [*rows, (f"{at}, found none", line)], day)

    sales = found("malaysian_coffee_chain.sales")["malaysian_coffee_chain.sales"]

    assert (sales["rows"], sales["values"]) == (10, 0)
    assert [(x["expected"], x["rows"], len(x["samples"])) for x in sales["reasons"]] == [
        (quantity, 8, 3),
        (at, 2, 2),
    ]
    first = sales["reasons"][0]["samples"][0]
    assert first.pop("file").startswith(f"quarantine/coffee_chain/sales/drop_date={D2}/")
    assert first == {
        "places": {"file": f"raw/{D2}.csv"},
        "found": "'3, found x'",
        "text": line,
        "row_stays": False,
    }
    code, output = command("malaysian_coffee_chain.sales")
    assert code == 0
    assert output.splitlines()[:3] == [
        "malaysian_coffee_chain.sales: 10 rows",
        f"  8 rows: {quantity}",
        f"    raw/{D2}.csv, found '3, found x': {line}",
    ]


@pytest.mark.parametrize("at_once", [1, 2, 10])
def test_however_many_files_are_read_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(module, "_FILES_AT_ONCE", at_once)
    lake = open_lake(settings)
    put_drop(lake, SALES, [("b: expected one, found 1", "")], D2, row_stays=True)
    for day in ("2022-12-27", "2022-12-28", "2022-12-29", D1):
        put_drop(lake, SALES, [("a: expected one, found 1", "")] * 2, day)

    first, second = found("malaysian_coffee_chain.sales")["malaysian_coffee_chain.sales"]["reasons"]

    assert (first["expected"], first["rows"], first["values"]) == ("a: expected one", 8, 0)
    places = [sample["places"]["file"] for sample in first["samples"]]
    assert places == [f"raw/{day}.csv" for day in (D1, D1, "2022-12-29")]
    assert (second["rows"], second["values"]) == (0, 1)


def test_values_whose_rows_stay_are_counted_apart(settings: Settings) -> None:
    lake = open_lake(settings)
    rows = [("birthday: expected a day, found '1.1.70'", "0,c1,Jo,Day,f,1.1.70,j@d,+60 1")]
    put_drop(lake, CUSTOMER, rows, D1)
    put_drop(lake, CUSTOMER, rows * 2, D2, row_stays=True)
    put_drop(lake, OUTLET, [("postcode: expected five digits, found 'x'", "M,,,,x,")], D1)

    tables = found("coffee_chain")

    customer = tables["malaysian_coffee_chain.customer"]
    assert (customer["rows"], customer["values"]) == (1, 2)
    (reason,) = customer["reasons"]
    assert (reason["rows"], reason["values"]) == (1, 2)
    assert [sample["row_stays"] for sample in reason["samples"]] == [True, True, False]
    assert {sample["text"] for sample in reason["samples"]} == {"0,c1,***,***,f,***,***,***"}
    assert {sample["found"] for sample in reason["samples"]} == {None}
    (outlet,) = tables["malaysian_coffee_chain.outlet"]["reasons"]  # nothing of it is personal
    assert outlet["samples"][0]["found"] == "'x'" and outlet["samples"][0]["text"] == "M,,,,x,"
    _, output = command("malaysian_coffee_chain.customer")
    assert output.startswith("malaysian_coffee_chain.customer: 1 rows, 2 values left out\n")
    assert f"    raw/{D2}.csv, the row stays: 0,c1,***" in output


def test_a_sample_of_online_retail_says_where_it_stood_and_hides_the_customer(
    settings: Settings,
) -> None:
    lake = open_lake(settings)
    fields = ["536365", "71053", None, "6,5", "2010-12-01 08:26:00", "3.39", "17850", "Eire"]
    put_online(
        lake,
        [
            ("quantity: expected a whole number, found 6,5", json.dumps(fields)),
            ("expected 8 fields, found 9", json.dumps(["a,17850,b"])),
        ],
    )

    (table,) = found("online_retail").values()

    ragged, quantity = sorted(table["reasons"], key=lambda x: str(x["expected"]))
    assert ragged["samples"][0]["text"] == "***"
    assert (ragged["expected"], ragged["samples"][0]["found"]) == ("expected 8 fields", "9")
    assert quantity["samples"][0]["places"] == {"source": "shop.csv", "row": 2}
    assert json.loads(quantity["samples"][0]["text"]) == [*fields[:6], "***", "Eire"]
    _, output = command("online_retail")
    assert "    shop.csv row 2, found 6,5: [" in output
    assert "17850" not in output
    assert "17850" in command("online_retail", "--personal")[1]


def test_a_dead_letter_is_shown_without_what_may_be_personal(settings: Settings) -> None:
    lake = open_lake(settings)
    nested = {"Sales": {"Customer Email": "nested@x"}}
    unknown = message() | {"customer email": "unknown@x"}
    put_messages(lake, [json.dumps(x).encode() for x in (message(customer_email="e@x"), unknown)])
    put_messages(lake, [json.dumps(nested).encode(), b'"text@x"', b"broken@x", None], start=2)

    (table,) = found("supply_chain").values()

    samples = [sample for reason in table["reasons"] for sample in reason["samples"]]
    assert table["rows"] == len(samples) == 6
    (sample,) = [x for x in samples if x["places"]["offset"] == 0]
    assert sample["places"] == {"topic": supply_chain.TOPIC, "partition": 1, "offset": 0}
    assert sample["found"] == "'many'"
    shown = json.loads(sample["text"])
    assert shown["Customer Email"] == "***" and shown["Customer City"] == "Bogotá"
    assert [x["text"] for x in samples if x["places"]["offset"] == 5] == [None]  # a tombstone
    assert "@x" not in json.dumps(table)
    everything = json.dumps(found("supply_chain", "--personal"))
    for each in ("e@x", "nested@x", "text@x", "broken@x", "unknown@x"):
        assert each in everything


# Personal values, made unique: whatever stands around one in its row, it is never shown.

PERSONAL = "Zq7Personal"
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
NAME = st.builds(lambda before, after: f"{before}{PERSONAL}{after}", TEXT, TEXT)


def names_of(dataset: Dataset, columns: Iterable[str]) -> st.SearchStrategy[list[str]]:
    """Fields of a row: personal ones hold PERSONAL, the others what may break a row's text."""
    return st.tuples(*(NAME if column in dataset.personal else TEXT for column in columns)).map(
        list
    )


@st.composite
def reasons(draw: st.DrawFn, columns: Sequence[str], fields: Sequence[str]) -> str:
    at = draw(st.integers(0, len(columns) - 1))
    return f"{columns[at]}: expected something else, found '{fields[at][:40]}'"


@st.composite
def online_rows(draw: st.DrawFn) -> tuple[str, str]:
    fields = draw(names_of(ONLINE_RETAIL_DATA, SOURCE_COLUMNS))
    if draw(st.booleans()):
        return "expected 8 fields, found 9", json.dumps([",".join([*fields, "x"])])
    return draw(reasons(list(SOURCE_COLUMNS), fields)), json.dumps(fields, ensure_ascii=False)


@st.composite
def customer_rows(draw: st.DrawFn) -> tuple[str, str]:
    header = RAW_CUSTOMER.header
    fields = draw(names_of(CUSTOMER, header))
    if draw(st.booleans()):  # with fewer fields, commas in them make as many as there should be
        less = draw(st.integers(1, len(header) - 2))
        return f"expected 8 fields, found {8 - less}", ",".join(fields[less:] + [","] * less)
    return draw(reasons(header[1:], fields[1:])), ",".join(fields)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    columns = [c.name for c in COLUMNS]
    values = dict(zip(columns, draw(names_of(MESSAGES, columns)), strict=True))
    fields = message(**{name: values[name] for name in MESSAGES.personal})
    name = draw(st.sampled_from(sorted(c.header for c in COLUMNS if c.name in MESSAGES.personal)))
    kind = draw(st.sampled_from(["plain", "case", "nested", "list", "torn", "text", "row", "nul"]))
    if kind == "case":
        fields[name.lower()] = fields.pop(name)
    elif kind == "nested":
        fields["Sales"] = {name: fields[name]}
    elif kind == "list":
        return json.dumps([fields]).encode()
    elif kind == "text":
        return json.dumps(fields[name]).encode()
    elif kind == "row":
        # So few that it cannot be a whole row, which would be withheld.
        return ";".join(map(str, list(fields.values())[:13])).encode()
    elif kind == "nul":
        fields[name] += "\0"
    text = json.dumps(fields, ensure_ascii=draw(st.booleans())).encode()
    return text[:-1] if kind == "torn" else text


MASKS = {table.table: table.mask for domain in domains() for table in domain.quarantines()}


@given(row=online_rows())
def test_a_mask_hides_the_customer_of_online_retail(row: tuple[str, str]) -> None:
    assert PERSONAL in row[1]
    assert PERSONAL not in "".join(MASKS[ONLINE_RETAIL_DATA.table](*row))


@given(row=customer_rows())
def test_a_mask_hides_the_customer_of_the_coffee_chain(row: tuple[str, str]) -> None:
    assert PERSONAL in row[1]
    assert PERSONAL not in "".join(MASKS[CUSTOMER.table](*row))


@given(value=messages())
def test_a_mask_hides_the_customer_of_a_dead_letter(value: bytes) -> None:
    sent = [Message(1, 0, b"1", value, AT)]
    (letter,) = parse_messages(sent, incarnation="0f3c", started_at=AT).dead.to_pylist()
    assert PERSONAL in letter["text"]
    assert PERSONAL not in "".join(MASKS[MESSAGES.table](letter["reason"], letter["text"]))


@limits(max_examples=10, deadline=None)
@given(
    online=st.lists(online_rows(), min_size=1, max_size=3),
    customers=st.lists(customer_rows(), min_size=1, max_size=3),
    letters=st.lists(messages(), min_size=1, max_size=3),
)
def test_the_command_shows_no_personal_value_unless_asked_for(
    online: list[tuple[str, str]], customers: list[tuple[str, str]], letters: list[bytes]
) -> None:
    with TemporaryDirectory() as home:
        settings = load_settings(home=Path(home))
        lake = open_lake(settings)
        put_online(lake, online)
        put_drop(lake, CUSTOMER, customers, D1)
        put_messages(lake, letters)

        shown = read_quarantine(settings, None, personal=False)
        everything = read_quarantine(settings, None, personal=True)

    assert PERSONAL not in to_json(shown)
    assert [(x.rows, x.values) for x in shown] == [(x.rows, x.values) for x in everything]
    told = json.loads(to_json(everything))["tables"]
    counts = {
        table["table"]: sum(
            PERSONAL in (sample["text"] or "")
            for reason in table["reasons"]
            for sample in reason["samples"]
        )
        for table in told
    }
    # With it, every row shows it: there was something to hide.
    assert counts["online_retail.online_retail_data"] == len(online)
    assert counts["malaysian_coffee_chain.customer"] == len(customers)
    assert counts["raw_streaming.supply_chain_data"] == len(letters)


def test_reasons_without_end_are_cut_on_a_terminal_alone(settings: Settings) -> None:
    rows = [(f"date_time: {n} is too late", "") for n in range(30)]
    put_drop(open_lake(settings), SALES, rows, D1)

    _, output = command("malaysian_coffee_chain.sales")

    assert output.splitlines()[-1] == "  and 10 more reasons: --json has all"
    assert output.count(" is too late") == 20
    assert (
        len(found("malaysian_coffee_chain.sales")["malaysian_coffee_chain.sales"]["reasons"]) == 30
    )


def test_a_text_of_others_stays_on_its_line(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = open_lake(settings)
    put_drop(lake, SALES, [("quantity: expected one, found '\x1b[2J[red]'", "a\nb" * 999)], D1)

    print_quarantine(read_quarantine(settings, "malaysian_coffee_chain.sales", personal=False))

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "found ' [2J[red]': a ba ba b" in lines[2]
    assert "\x1b" not in lines[2] and len(lines[2]) < 320


def test_what_was_replaced_is_not_counted(settings: Settings) -> None:
    lake = open_lake(settings)
    put_drop(lake, SALES, [("quantity: expected one, found 'two'", "gone")] * 2, D1)
    put_drop(lake, SALES, [("quantity: expected one, found 'two'", "there")], D1)
    put_drop(lake, OUTLET, [("postcode: expected one, found 'x'", "gone")], D1)
    put_drop(lake, OUTLET, [], D1)

    tables = found("coffee_chain")

    assert [table["rows"] for table in tables.values()] == [0, 0, 0, 1]
    (reason,) = tables["malaysian_coffee_chain.sales"]["reasons"]
    assert [sample["text"] for sample in reason["samples"]] == ["there"]


def test_what_cannot_be_read_is_told_with_its_folder(settings: Settings) -> None:
    put_messages(open_lake(settings), [b"1"])
    (file,) = (Path(settings.lake) / DEAD_LETTERS.location).rglob("*.parquet")
    file.write_bytes(b"no Parquet")

    with pytest.raises(UnreadQuarantineError, match="quarantine/supply_chain/dead_letters could"):
        read_quarantine(settings, "supply_chain", personal=False)

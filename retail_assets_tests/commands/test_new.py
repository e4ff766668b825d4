"""Tests of retail_assets.commands.new: what a file says of its columns, and what comes of it."""

import ast
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import xlsxwriter
from hypothesis import given
from hypothesis import strategies as st

from retail_assets.commands.new import making
from retail_assets.commands.new.making import make_domain
from retail_assets.commands.new.proposing import (
    DROP_DATE,
    Proposal,
    ProposalError,
    column_names,
    propose,
)
from retail_assets.commands.new.rendering import Design, render
from retail_assets.dataset import Column, Dataset
from retail_assets.feeds.reading import AmbiguousDatesError, SchemaDriftError
from retail_assets_tests.commands.own_files import DATED, MESSY


def proposal_of(tmp_path: Path, text: str, name: str = "visits.csv") -> Proposal:
    file = tmp_path / name
    file.write_text(text, "utf-8")
    return propose(file)


def type_of(tmp_path: Path, *values: str, delimiter: str = ",") -> tuple[str, bool]:
    rows = "".join(f'{n}{delimiter}"{value}"\n' for n, value in enumerate(values))
    proposal = proposal_of(tmp_path, f"n{delimiter}x\n{rows}")
    return proposal.columns[1].type, proposal.columns[1].nullable


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "-20"], "int64"),
        (["1.0", "20.0", "3"], "int64"),
        (["1.50", "20.00"], "decimal(12,2)"),
        (["12.00"], "decimal(12,2)"),
        ([".125", "123456789012.5"], "decimal(17,3)"),
        (["007", "112"], "string"),
        (["-01.5"], "string"),
        (["9" * 19], "string"),
        (["1,000", "2,000"], "string"),
        (["yes", "No"], "bool"),
        (["1", "x"], "string"),
        (["2024-01-05", "2024-12-31"], "date"),
        (["05/01/2024", "31/01/2024"], "date"),
        (["2024-01-05 09:30", "2024-01-05"], "timestamp"),
        (["2024-02-30"], "string"),
    ],
)
def test_a_type_is_what_all_values_have_the_shape_of(
    tmp_path: Path, values: list[str], expected: str
) -> None:
    assert type_of(tmp_path, *values) == (expected, False)
    assert type_of(tmp_path, *values, "") == (expected, True)
    # Of texts these are values.
    assert type_of(tmp_path, *values, "NA") == (expected, expected != "string")


def test_commas_are_decimal_only_beside_another_delimiter(tmp_path: Path) -> None:
    assert type_of(tmp_path, "1,50", delimiter=";") == ("decimal(12,2)", False)
    assert type_of(tmp_path, "1,50") == ("string", False)


def test_a_column_without_a_value_is_text(tmp_path: Path) -> None:
    assert type_of(tmp_path, "", "NULL") == ("string", True)


@given(st.lists(st.text(max_size=12), min_size=1, max_size=8))
def test_names_are_sqls_and_each_once(header: list[str]) -> None:
    names = column_names(header, {"order", "group"})

    assert len(set(names)) == len(names) == len(header)
    assert not {"order", "group", DROP_DATE}.intersection(names)
    assert all(name.isascii() and name.isidentifier() and name == name.lower() for name in names)


def test_names_are_in_snake_case() -> None:
    header = [
        "VisitorsIn",
        "Visitors (out)",
        "Café №",
        "order",
        "1st",
        "Drop date",
        "日付",
        "a",
        "A",
    ]

    assert column_names(header, {"order"}) == [
        *("visitors_in", "visitors_out", "cafe_no", "order_value", "n_1st"),
        *("drop_date_2", "column_7", "a", "a_2"),
    ]


def test_words_of_either_warehouse_and_of_python_are_no_names(tmp_path: Path) -> None:
    columns = proposal_of(tmp_path, "Select,NEW,class,day\n1,2,3,4\n").columns

    assert [x.name for x in columns] == ["select_value", "new_value", "class_value", "day"]
    assert [x.source for x in columns] == ["Select", "NEW", "class", ""]


def test_sheets_of_a_workbook_are_read(tmp_path: Path) -> None:
    file = tmp_path / "visits.xlsx"
    with xlsxwriter.Workbook(file) as book:
        form = book.add_format({"num_format": "dd/mm/yyyy"})
        for sheet in (book.add_worksheet("North"), book.add_worksheet("South")):
            sheet.write_row(0, 0, ["code", "price", "day"])
            sheet.write_row(1, 0, ["007", 2.5])
            sheet.write_datetime(1, 2, datetime(2024, 3, 1), form)

    types = {x.name: x.type for x in propose(file).columns}

    assert types == {"code": "string", "price": "decimal(12,1)", "day": "date"}


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("a,b\n", ProposalError, "a header and no row"),
        ("a,,c\n1,2,3\n", ProposalError, "a column has no name"),
        ("a,A\n1,2\n", SchemaDriftError, "2 times"),
    ],
)
def test_what_is_no_table_is_refused(
    tmp_path: Path, text: str, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        proposal_of(tmp_path, text)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProposalError, match="--from is "):
        propose(tmp_path / "nowhere.csv")


# ---- what is written


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of nothing, where files are written and sources are not."""
    (tmp_path / "dbt_project" / "models").mkdir(parents=True)
    monkeypatch.setattr(making, "PROJECT_ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said", "told"),
    [
        ("Visits", {}, "'Visits' is no name for a domain"),
        ("class", {}, "'class' is no name for a domain"),
        ("visits", {"feed": "stream"}, "--feed is 'stream'"),
        ("visits", {"dates": "ymd"}, "--dates is 'ymd'"),
        ("visits", {"key": "shop"}, "'shop' cannot be it: store, day, .* can"),
        ("visits", {"date": "sales"}, "'sales' cannot be it: day can"),
        ("visits", {"amount": "store"}, "'store' cannot be it: visitors_out, sales can"),
    ],
)
def test_a_choice_that_cannot_be_writes_nothing(
    project: Path, name: str, said: dict[str, str], told: str
) -> None:
    file = project / "visits_2024-01-05.csv"
    file.write_text(DATED, "utf-8")

    with pytest.raises(ProposalError, match=told):
        make_domain(name, file, said)
    assert [x for x in project.rglob("*") if x.is_file()] == [file]


@pytest.mark.parametrize(
    "there",
    [
        "retail_assets/defs/visits",
        "retail_assets/defs/visits.py",
        "retail_assets_tests/defs/visits",
        "dbt_project/models/visits",
        "dbt_project/models/shop/staging/stg_visits.sql",
        "dbt_project/models/shop/core/visits_daily.sql",
    ],
)
def test_nothing_is_overwritten(project: Path, there: str) -> None:
    (project / there).mkdir(parents=True)

    with pytest.raises(ProposalError, match=f"{there} is there"):
        make_domain("visits", project / "any.csv", {})


def test_a_file_without_dates_has_no_daily_mart(project: Path) -> None:
    file = project / "prices.csv"
    file.write_text("code,price\nA,1.50\n", "utf-8")

    with pytest.raises(ProposalError, match=r"no column of dates.*prices_2024-12-31\.csv"):
        make_domain("prices", file, {})


def test_an_order_of_days_that_nothing_says_is_to_be_said(project: Path) -> None:
    file = project / "visits.csv"
    file.write_text("day,visits\n01/02/2024,3\n", "utf-8")

    with pytest.raises(AmbiguousDatesError, match="Set --dates to dmy or mdy"):
        make_domain("visits", file, {})


def test_a_terminal_is_asked_for_what_was_not_said(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(question: str) -> str:
        asked.append(question.partition(" [")[0])
        return "nonsense" if "amounts" in question else ""

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", answer)
    file = project / "visits_2024-01-05.csv"
    file.write_text(DATED, "utf-8")

    with pytest.raises(ProposalError, match="'nonsense' cannot be it"):
        make_domain("visits", file, {"feed": "files"})
    assert [x.split()[1] for x in asked] == ["column", "that", "column"]


LONG = "A header of 62 characters, which takes nearly a line of its own"


def design_of(**changes: Any) -> Design:
    columns = (
        Column("store", "string", "Store.", key=True, source='Store "no."'),
        Column("day", "date", "Day."),
        Column("sales", "decimal(12,2)", "Sales.", nullable=True, source=LONG),
    )
    row = {"store": "it's", "day": "2024-01-05", "sales": None}
    proposal = Proposal(Path("x.csv"), columns, (), (), "x.csv", "", ",", True)
    dataset = Dataset("visits", "visits", "Visits.", columns)
    return Design(proposal, dataset, False, "day", columns[2:], row=row, **changes)


def test_what_is_written_of_python_says_what_was_meant_and_fits() -> None:
    texts = {'Store "no."': "it's", "Caf\u00e9 \u2013 \u65e5": 'a "b" \\ \n'}

    files = render(design_of(texts=texts))

    test = ast.parse(files["retail_assets_tests/defs/visits/test_visits.py"])
    said = {x.targets[0].id: x.value for x in test.body if isinstance(x, ast.Assign)}  # type: ignore[attr-defined]
    assert ast.literal_eval(said["TEXTS"]) == texts
    contract = files["retail_assets/defs/visits/contract.py"]
    assert [x.value for x in ast.walk(ast.parse(contract)) if isinstance(x, ast.Constant)].count(
        LONG
    ) == 1
    for path, text in files.items():
        assert path.endswith(".yml") or all(len(line) <= 100 for line in text.splitlines())


def test_a_mart_has_the_amount_first_and_sums_what_fits() -> None:
    mart = render(design_of())["dbt_project/models/visits/core/visits_daily.sql"]

    assert "cast('sum(sales)', 'decimal(20,2)') }} as total_sales,\n" in mart
    assert mart.index("total_sales") < mart.index("row_count")


def test_the_messy_file_is_understood(tmp_path: Path) -> None:
    proposal = proposal_of(tmp_path, MESSY)

    assert {x.name: (x.type, x.nullable) for x in proposal.columns} == {
        "article_code": ("string", False),
        "name_full": ("string", False),
        "valid_from": ("date", False),
        "price_net": ("decimal(12,2)", True),
        "e_mail": ("string", True),
        "count": ("int64", True),
    }
    assert [x.name for x in proposal.columns if x.pii] == ["e_mail"]
    assert not proposal.has_iso_dates and proposal.delimiter == ";"

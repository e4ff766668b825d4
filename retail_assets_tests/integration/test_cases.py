"""Files of the kinds that people have, through the command line: each with its right answer."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import duckdb
import pytest

from retail_assets_tests.conftest import SHARED, Command

CASES = SHARED / "cases"
TABLE = "online_retail.online_retail_data"


@pytest.fixture(autouse=True)
def _cases_are_here() -> None:
    if not CASES.is_dir():
        pytest.skip(f"the files are not here: {CASES}")


def query(home: Path, sql: str) -> list[tuple[object, ...]]:
    """All rows, of the warehouse of a home in which no run is underway."""
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as connection:
        return connection.execute(sql).fetchall()


@dataclass(frozen=True)
class Lands:
    """What a file of online retail comes to: the time of each row, how many are quarantined."""

    times: tuple[str, ...]
    quarantined: int = 0
    dates: str = "auto"
    told: tuple[str, ...] = ()
    """What stands in the run's lines."""


@dataclass(frozen=True)
class Refused:
    """What stands in the last line of a run that fails."""

    told: tuple[str, ...]


FIRST = "2010-12-01 08:26:00"
UNDECIDED = Refused(("RETAIL_ONLINE_RETAIL_DATES", "InvoiceDate"))
ONLINE_RETAIL: list[tuple[str, Lands | Refused]] = [
    (
        "ampm_iso.csv",
        Lands(
            (
                "2010-12-01 00:05:00",
                "2010-12-01 02:15:00",
                FIRST,
                "2010-12-01 14:15:00",
                "2010-12-01 14:15:00",
            )
        ),
    ),
    ("uk_first_days.csv", UNDECIDED),
    (
        "uk_first_days.csv",
        Lands(tuple(f"2011-12-0{day} 08:26:00" for day in range(1, 10)), dates="dmy"),
    ),
    (
        "uk_first_days.csv",
        Lands(tuple(f"2011-0{month}-12 08:26:00" for month in range(1, 10)), dates="mdy"),
    ),
    ("ukdates.csv", Lands(tuple(f"2010-12-{day:02} 08:26:00" for day in range(1, 24)))),
    ("dash_dmy.csv", UNDECIDED),
    (
        "dash_dmy.csv",
        Lands(tuple(f"2010-12-0{day} 08:26:00" for day in range(1, 4)), dates="dmy"),
    ),
    ("semi.csv", UNDECIDED),
    ("semi.csv", Lands((FIRST,), dates="dmy")),
    ("nulls.csv", Lands((FIRST,) * 9, quarantined=2, told=("expected 8 fields, found 9",))),
    ("blanktail.csv", Lands((FIRST,))),
    ("utf16nobom.csv", Lands((FIRST,))),
    ("formula_openpyxl.xlsx", Lands((FIRST,), quarantined=1, told=("FORMULA",))),
    ("xls_as.xlsx", Refused(("xls_as.xlsx", ".xls"))),
    ("notes_sheet.xlsx", Lands((FIRST, "2010-12-02 09:00:00"), told=("Notes",))),
    ("cjkdate.xlsx", Lands((FIRST,) * 4)),
    ("readme.zip", Lands((FIRST,), told=("README.txt",))),
]


@pytest.mark.parametrize(("name", "answer"), ONLINE_RETAIL)
def test_a_file_of_online_retail(
    name: str, answer: Lands | Refused, tmp_path: Path, retail_assets: Command
) -> None:
    dates = answer.dates if isinstance(answer, Lands) else "auto"
    done = retail_assets(
        "run",
        "online_retail",
        home=tmp_path,
        online_retail_source=CASES / name,
        online_retail_dates=dates,
    )
    assert "\0" not in done.stdout + done.stderr  # nothing binary on a terminal
    if isinstance(answer, Refused):
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 1
        assert [word for word in answer.told if word not in last] == [], last
        return
    assert done.returncode == 0, done.stderr
    found = query(tmp_path, f"select invoice_datetime::varchar from {TABLE} order by 1")
    assert tuple(time for (time,) in found) == answer.times
    assert [word for word in answer.told if word not in done.stdout] == [], done.stdout
    assert count_quarantined(done) == answer.quarantined
    check_values(name, tmp_path)


def count_quarantined(done: CompletedProcess[str]) -> int:
    """Rows of which a run's last lines say that they were quarantined."""
    lines = [x for x in done.stdout.splitlines() if x.startswith("quarantined: ")]
    return sum(int(line.split(": ")[2].split()[0]) for line in lines)


def check_values(name: str, home: Path) -> None:
    """What single files are about besides their times."""
    if name == "semi.csv":
        assert query(home, f"select unit_price::varchar from {TABLE}") == [("2.550",)]
    if name == "nulls.csv":
        found = query(home, f"select invoice_no, customer_id from {TABLE} order by 1")
        assert dict(found) == {str(530 + n): 0 for n in range(7)} | {"537": 17850, "5310": 17850}


def test_outlets_that_went_through_pandas(tmp_path: Path, retail_assets: Command) -> None:
    raw = tmp_path / "lake/raw/coffee_chain"
    done = retail_assets(
        "sample", "coffee_chain", "--sales", "500", "--customers", "50", home=tmp_path
    )
    assert done.returncode == 0, done.stderr
    shutil.copy(CASES / "coffee_outlet_pandas.csv", raw / "outlets/outlet.csv")
    done = retail_assets("run", "coffee_chain", home=tmp_path)
    assert done.returncode == 0, done.stderr
    found = query(tmp_path, "select postcode from malaysian_coffee_chain.outlet order by outlet_id")
    assert found == [("50000",), ("01000",), ("80000",), (None,)]

    # A drop that a spreadsheet saved again, over the one that was taken.
    drops = sorted((raw / "sales").glob("*.csv"))
    before = query(
        tmp_path, "select drop_date, count(*) from malaysian_coffee_chain.sales group by 1"
    )
    shutil.copy(CASES / "coffee_sales_excel_resaved.csv", drops[0])
    done = retail_assets("run", "coffee_chain", home=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "would have 0" in last and "date_time: expected" in last and drops[0].stem[-10:] in last
    after = query(
        tmp_path, "select drop_date, count(*) from malaysian_coffee_chain.sales group by 1"
    )
    assert sorted(after) == sorted(before)


@pytest.mark.parametrize("name", ["sc_iso.csv", "sc.csv.gz"])
def test_a_file_of_order_lines(name: str, tmp_path: Path, retail_assets: Command) -> None:
    done = retail_assets("run", "supply_chain", "--stream", str(CASES / name), home=tmp_path)
    assert done.returncode == 0, done.stderr
    # Of 15 lines, two are of an order item that came before.
    assert "┃ asset" in done.stdout and count_quarantined(done) == 0
    (row,) = [x for x in done.stdout.splitlines() if "raw_streaming/supply_chain_data" in x]
    assert row.split("│")[2].strip() == "15"
    assert query(tmp_path, "select count(*) from supply_chain.fact_order") == [(13,)]

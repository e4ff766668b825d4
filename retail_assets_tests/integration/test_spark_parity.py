"""The embedded engine and the JVM's Spark make the same rows, types and folders of the same drops.

Each engine runs in a process of its own (staging.py), on a generated sample and on drops of odd
values, in every way that a file comes to the engine: as it lies, copied, copied with quotes.
"""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain.contract import CUSTOMER, RAW_CUSTOMER, RAW_SALES, SALES
from retail_assets.defs.coffee_chain.sample import write_sample
from retail_assets.defs.coffee_chain.transforms import (
    LEFT_OUT,
    MISSING_WORDS,
    REJECTED,
    STAGED_PART,
)
from retail_assets.defs.supply_chain.contract import LANDED
from retail_assets_tests.conftest import PROJECT
from retail_assets_tests.defs.supply_chain.star_messages import expected_star, land, star_of
from retail_assets_tests.integration.staging import KINDS
from retail_assets_tests.integration.star_staging import DAYS, odd_messages

DATE_TIMES = [
    *("2018-02-30 10:00:00", "2018-02-29 10:00:00", "2020-02-29 10:00:00", "1900-02-29 10:00:00"),
    *("2000-02-29 10:00:00", "2018-01-01 24:00:00", "2018-01-01 23:59:60", "2018-01-01 23:59:59"),
    *("2018-01-01 00:00:00", "2018-13-01 00:00:00", "2018-00-01 00:00:00", "2018-01-00 00:00:00"),
    *("2018-01-32 00:00:00", "0000-01-01 00:00:00", "0001-01-01 00:00:00", "0999-12-31 23:59:59"),
    *("1582-10-04 12:00:00", "1582-10-10 12:00:00", "1700-01-01 00:00:00", "1883-11-18 12:03:58"),
    *("1969-12-31 23:59:59", "1970-01-01 00:00:00", "2038-01-19 03:14:08", "2262-04-11 23:47:17"),
    *("9999-12-31 23:59:59", "2018-03-25 02:30:00", "2018-01-01T00:00:00", "2018-01-01 00:00"),
    *("2018-01-01", "2018-01-01 00:00:00.5", "2018-01-01 00:00:00Z", "2018-01-01 00:00:00+08:00"),
    *("2018-1-1 0:0:0", "+2018-01-01 00:00:00", "12018-01-01 00:00:00", " 2018-01-01 00:00:00"),
    *("2018-01-01 00:00:00 ", "2018-01-01  00:00:00", "\t2018-01-01 00:00:00", "01/02/2018 10:00"),
    *("2018-01-01 00:00:00\x1f", "2018-01-01 00:00:0\u0663", "today", "now", "epoch", "-infinity"),
    *("\\N", "null", "NULL", "nan"),
]
QUANTITIES = [
    *("1", "4", "0", "-0", "-1", "0003", "-0003", "+3", " 3", "3 ", "\t3", "3\x1f", "3\x00", "3-"),
    *("\u0663", "\uff13", "\u00b2", "1_0", "1.0", "1.", ".5", "1e3", "0x10", "-", "--1", "three"),
    *("99999999999", "2147483647", "2147483648", "-2147483648", "-2147483649", "3".zfill(40)),
    *("\\N", "null", "NaN", "true", "1L", "1d", "1f"),
    *("2.0", "-2.", "2.00", "2.5", "2.0.", "2.0 ", "2147483648.0", "-.0", "0.0", "2.\u0660"),
]
DATES = [text[:10] for text in DATE_TIMES] + [
    *DATE_TIMES,
    "1930-05-06",
    "5-6-1930",
    " 1930-05-06",
    "1930-05-06 ",
    *(f"{before}{word}" for word in MISSING_WORDS for before in (" ", "\t", "\u00a0", "x")),
    *("NULL ", "N/A\t", "none", "Nan"),
]
TEXTS = [
    *("a b", " lead", "trail ", "\ttab\t", "\u00e9", "e\u0301", "日本", "🙂", "\\", "a\\", "\\\\"),
    *("\\n", "\\N", "null", "NULL", "''", "'q'", "%", "%41", "a/b", "a=b", "a:b", "..", ".", "#x"),
    *("--", "*", "?", "[x]", "{x}", "x.parquet", "\x1e", "a\x1fb", "\x1f", "\x01", "\x7f"),
    *("\x1e\x1f🙂", "1\x1f1"),
    *("6.0", "6.", "06.00", "6.5", ".0", "-6.0", "6.0 ", "\u0666.0", "6.0.0"),
    *("\u00a0", "\u0085", "\u2028", "\ufeff", "$1", "~", "`", "a+b", "a&b", "<b>", "^", "1e5"),
]
# These make a file's copy one of quotes.
QUOTED_TEXTS = [
    '"',
    '""',
    'a"b',
    '"a"',
    "a,b",
    ",",
    "a\nb",
    "\n",
    "a\r\nb",
    "\r",
    "a\rb",
    '\\"',
    '",\n"',
]
QUOTED_DATE_TIMES = ["2018-01-01 00:00:00\n", "2018-01-01 00:00:00\r\n", '"2018-01-01 00:00:00"']
COMMAS = ["2,0", "-2,0", "2,5", "1,000", "2,", ",0", "2,0,0", "RM 2,0", "\u0662,0", "2,0 "]
QUOTED_QUANTITIES = ["3\n", "\n3", '"3"', "1,000", "3\r"]

PLAIN, COPIED, QUOTED = DATES_OF_ODD = ("1999-01-01", "1999-01-02", "1999-01-03")

Row = tuple[str, ...]


def odd_sales(*, quoted: bool) -> list[Row]:
    """Each odd value in each column, some of them twice, with and without another index."""
    good = ("INV-1", "2018-05-06 07:08:09", "c-1", "MY001", "PD001", "2")
    texts = ["", *TEXTS, *(QUOTED_TEXTS if quoted else ())]
    at = ["", *DATE_TIMES, *(QUOTED_DATE_TIMES if quoted else ())]
    quantities = ["", *QUANTITIES, *(QUOTED_QUANTITIES if quoted else ())]
    lines = [good]
    for position in range(len(good)):
        for odd in {1: at, 5: quantities}.get(position, texts):
            lines.append((*good[:position], odd, *good[position + 1 :]))
    lines += [("", odd, "", "", "", "") for odd in at[:3]] + [("",) * 6]
    rows = [(str(n), *line) for n, line in enumerate(lines)]
    copies = [(f"9{row[0]}", *row[1:]) for row in rows[::3]] * 2
    return [*rows, *copies, *rows[::5]]


def odd_customers(*, quoted: bool) -> list[Row]:
    """As ``odd_sales``."""
    good = ("c-1", "Ann", "Lee", "Female", "1990-05-06", "ann@example.com", "+60 1")
    texts = ["", *TEXTS, *(QUOTED_TEXTS if quoted else ())]
    lines = [good]
    for position in range(len(good)):
        for odd in ["", *DATES] if position == 4 else texts:
            lines.append((*good[:position], odd, *good[position + 1 :]))
    rows = [(str(n), *line) for n, line in enumerate([*lines, ("",) * 7])]
    copies = [(f"9{row[0]}", *row[1:]) for row in rows[::3]] * 2
    return [*rows, *copies, *rows[::5]]


def csv_bytes(header: Row, rows: list[Row], newline: str = "\n", quoting: int = 0) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator=newline, quoting=quoting).writerows([header, *rows])
    return text.getvalue().encode()


def without(marks: str, rows: list[Row]) -> list[Row]:
    return [row for row in rows if not any(mark in value for mark in marks for value in row)]


def write_odd_drops(lake: Path) -> None:
    """A drop for every way to the engine; the last has no rows."""
    for kind, rows_of in ((RAW_SALES, odd_sales), (RAW_CUSTOMER, odd_customers)):
        rows = without("\0", rows_of(quoted=False))
        plain = csv_bytes(kind.header, rows).removesuffix(b"\n")
        commas = [(f"{text};" * len(kind.header))[:-1].split(";") for text in COMMAS]
        commas += [(*rows[0][:-1], text) for text in COMMAS]
        ragged = b"1,2,3\n" + b",".join([b"x"] * (len(kind.header) + 1)) + b"\n"
        for date, data in {
            PLAIN: plain,
            COPIED: csv_bytes(kind.header, rows, "\r\n") + ragged,
            QUOTED: csv_bytes(kind.header, rows_of(quoted=True), quoting=csv.QUOTE_ALL),
            "1999-01-04": csv_bytes(kind.header, []),
            # Of another delimiter, decimal commas are read.
            "1999-01-05": "\n".join(map(";".join, [kind.header, *commas])).encode(),
        }.items():
            (lake / kind.name(date)).write_bytes(data)


class Staged:
    """What one engine made of the lake: a table for each folder of the same partition values."""

    def __init__(self, folder: Path) -> None:
        self.scans = json.loads((folder / "scans.json").read_text())
        self._tables: dict[tuple[str, ...], list[pa.Table]] = {}
        for file in (path for path in folder.rglob("*.parquet") if path.is_file()):
            # The engines escape other characters in a folder's name.
            names = tuple(unquote(part) for part in file.relative_to(folder).parts[:-1])
            self._tables.setdefault(names, []).append(pq.ParquetFile(file).read())

    @property
    def folders(self) -> set[tuple[str, ...]]:
        return set(self._tables)

    def schemas(self, kind: str) -> set[tuple[tuple[str, str], ...]]:
        """Names and types of the columns, of all files; Arrow's three layouts of text are one."""
        return {
            tuple(
                (f.name, re.sub("string_view|large_string", "string", str(f.type)))
                for f in t.schema
            )
            for names, tables in self._tables.items()
            for t in tables
            if names[0] == kind
        }

    def rows(self, *names: str) -> Counter[tuple[Any, ...]]:
        return Counter(
            row
            for found, tables in self._tables.items()
            if found[: len(names)] == names
            for table in tables
            for row in zip(*table.to_pydict().values(), strict=True)
        )


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a lake")
    write_sample(folder, sales=3_000, customers=300, drops=2)
    write_odd_drops(folder)
    return folder


def staged_by(master: str, lake: Path, folder: Path) -> Staged:
    done = subprocess.run(
        [sys.executable, "-m", "retail_assets_tests.integration.staging", master, lake, folder],
        cwd=PROJECT,
        # As a process that used the embedded engine leaves it to its children.
        env=os.environ | {"SPARK_CONNECT_MODE_ENABLED": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return Staged(folder)


@pytest.fixture(scope="module")
def embedded(java: int, lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Staged:
    return staged_by("embedded", lake, tmp_path_factory.mktemp("embedded"))


@pytest.fixture(scope="module")
def jvm(java: int, lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Staged:
    return staged_by("local[*]", lake, tmp_path_factory.mktemp("jvm"))


def test_the_drops_come_to_the_engine_in_every_way(embedded: Staged, jvm: Staged) -> None:
    assert embedded.scans == jvm.scans
    for kind in KINDS:
        ways = {
            date: (s["file"], s["quoted"])
            for date in DATES_OF_ODD
            if (s := embedded.scans[f"{kind}/{date}"])
        }
        assert ways == {
            PLAIN: ("as it lies", False),
            COPIED: ("copy", False),
            QUOTED: ("copy", True),
        }
        assert [len(embedded.scans[f"{kind}/{date}"]["rejected"]) for date in ways] == [0, 2, 0]


def test_values_read_as_text_are_the_same(embedded: Staged, jvm: Staged) -> None:
    found = embedded.rows("text")

    assert found == jvm.rows("text")
    assert found.total() == sum(
        scan["rows"] - len(scan["rejected"])
        for name, scan in embedded.scans.items()
        if name.startswith("sales/")
    )


def test_folders_have_the_same_values(embedded: Staged, jvm: Staged) -> None:
    assert embedded.folders == jvm.folders
    ids = {names[-1].partition("=")[2] for names in embedded.folders if names[0] == "text"}
    assert ids > {*filter(None, TEXTS), *QUOTED_TEXTS, "none"}


@pytest.mark.parametrize("dataset", [SALES, CUSTOMER], ids=lambda dataset: dataset.name)
def test_columns_have_the_types_of_the_contract(
    embedded: Staged, jvm: Staged, dataset: Dataset
) -> None:
    kind = "sales" if dataset is SALES else "customers"
    expected = {tuple((c.name, str(c.arrow_type)) for c in dataset.columns)}

    assert embedded.schemas(kind) == expected
    assert jvm.schemas(kind) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_processed_rows_are_the_same(embedded: Staged, jvm: Staged, kind: str) -> None:
    for names in sorted(n for n in embedded.folders | jvm.folders if n[0] == kind):
        found, expected = embedded.rows(*names), jvm.rows(*names)
        assert found - expected == expected - found == Counter(), names
    rejected = [n for n in embedded.folders if n[0] == kind and n[2] == f"{STAGED_PART}={REJECTED}"]
    assert len(rejected) > 3  # of several drops and counts of copies
    left_out = [n for n in embedded.folders if n[0] == kind and LEFT_OUT in n[2]]
    assert bool(left_out) == (kind == "customers")


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_read_is_staged(embedded: Staged, jvm: Staged, kind: str) -> None:
    expected = {
        name.partition("/")[2]: scan["rows"] - len(scan["rejected"])
        for name, scan in embedded.scans.items()
        if name.startswith(f"{kind}/")
    }
    for engine in (embedded, jvm):
        staged = Counter(dict.fromkeys(expected, 0))
        for names in (n for n in engine.folders if n[0] == kind):
            drop, _, copies = (name.partition("=")[2] for name in names[1:])
            staged[drop] += engine.rows(*names).total() * int(copies)
        assert staged == expected


# ---- the supply chain


def star_by(master: str, lake: Path, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The star's tables of what one engine makes of a lake's messages, in order of their keys."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "retail_assets_tests.integration.star_staging"),
            *(master, lake, folder),
        ],
        cwd=PROJECT,
        env=os.environ | {"SPARK_CONNECT_MODE_ENABLED": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    files = [pq.ParquetFile(folder / f"{day}.parquet") for day in DAYS]
    return star_of([row for file in files for row in file.read().to_pylist()])


def test_both_engines_make_the_same_star(java: int, tmp_path: Path) -> None:
    lake = tmp_path / "a lake"
    messages = odd_messages()
    for day, found in messages.items():
        land(lake, day, found)
    (tmp_path / "embedded").mkdir()
    (tmp_path / "jvm").mkdir()

    embedded = star_by("embedded", lake, tmp_path / "embedded")
    jvm = star_by("local[*]", lake, tmp_path / "jvm")

    expected = expected_star((day, m) for day in DAYS for m in messages[day])
    for dataset in LANDED:
        assert embedded[dataset.name] == jvm[dataset.name] == expected[dataset.name], dataset.name

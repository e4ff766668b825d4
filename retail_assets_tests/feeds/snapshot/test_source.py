"""Tests of retail_assets.feeds.snapshot.source, over real files and temporary lakes."""

import io
import zipfile
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import xlsxwriter
from hypothesis import given
from hypothesis import strategies as st

from retail_assets.defs.online_retail.feed import FEED
from retail_assets.feeds.reading import AmbiguousDatesError, SchemaDriftError
from retail_assets.feeds.snapshot.definitions import write_days
from retail_assets.feeds.snapshot.manifest import changed_days, manifest_state, read_manifest
from retail_assets.feeds.snapshot.source import REFUSED, UNPLACED, Source, SourceError
from retail_assets.losses import ShrunkError
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.tabular import UnreadableFileError
from retail_assets.settings import load_settings

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"


def line(day: str = "2010-12-01", invoice: str = "536365", quantity: str = "6") -> str:
    return f"{invoice},85123A,WHITE HEART,{quantity},{day} 08:26:00,2.55,17850.0,United Kingdom\n"


@pytest.fixture
def lake(tmp_path: Path) -> LocalLake:
    return LocalLake(root=str(tmp_path / "lake"))


Make = Callable[..., Source]


@pytest.fixture
def source(tmp_path: Path) -> Make:
    """A source of one CSV with the given lines, or of the files at the given paths."""

    def make(
        *given: str | Path, last_day: str | None = "2011-12-31", dates: str = "auto"
    ) -> Source:
        if not all(isinstance(x, Path) for x in given):
            path = tmp_path / "online_retail.csv"
            path.write_text(HEADER + "".join(map(str, given)))
            given = (path,)
        settings = load_settings(
            home=tmp_path / "home",
            online_retail_source=tuple(map(str, given)),
            online_retail_end=last_day or None,
            online_retail_dates=dates,
        )
        return Source(FEED, settings)

    return make


def files(lake: LocalLake, zone: str) -> dict[str, bytes]:
    root = Path(lake.root)
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted((root / zone).rglob("*"))
        if p.is_file() and p.suffix != ".lock"
    }


def quarantined(lake: LocalLake, key: str) -> list[dict[str, Any]]:
    """Rows of a partition of the quarantine."""
    files = lake.partition_uris(FEED.quarantine, [key])
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


# ---- changed_days

held = st.dictionaries(
    st.integers(0, 20).map(lambda n: (date(2010, 12, 20) + timedelta(days=n)).isoformat()),
    st.sampled_from(["v1", "v2"]),
)
versions = st.dictionaries(
    st.integers(-3, 23).map(lambda n: (date(2010, 12, 20) + timedelta(days=n)).isoformat()),
    st.sampled_from(["", "v1", "v2"]),
)


@given(wanted=held, current=versions)
def test_changed_days_are_those_whose_fingerprint_differs(
    wanted: dict[str, str], current: dict[str, str]
) -> None:
    found = changed_days(wanted, current)

    expected = []
    if wanted:
        day = min([*wanted, *current])
        while day <= max([*wanted, *current]):
            inside = min(wanted) <= day <= max(wanted)
            if (inside or day in current) and current.get(day) != wanted.get(day, ""):
                expected.append(day)
            day = (date.fromisoformat(day) + timedelta(days=1)).isoformat()
    assert list(found) == expected


@given(wanted=held)
def test_nothing_changes_once_every_day_is_recorded(wanted: dict[str, str]) -> None:
    changed = changed_days(wanted, {})
    recorded = {day: wanted.get(day, "") for day in changed}

    assert changed_days(wanted, recorded) == ()


def test_a_day_that_vanished_is_changed_until_it_is_recorded_as_empty() -> None:
    wanted = {"2010-12-02": "v"}

    assert changed_days(wanted, {"2010-12-02": "v", "2010-11-30": "v"}) == ("2010-11-30",)
    assert changed_days(wanted, {"2010-12-02": "v", "2010-11-30": ""}) == ()


# ---- the manifest


def test_a_manifest_comes_back_from_the_lake_as_it_was(lake: LocalLake, source: Make) -> None:
    assert read_manifest(lake, FEED.name) is None

    found = source(line(), line(), line("2010-12-03", quantity="x")).refresh(lake)

    assert read_manifest(lake, FEED.name) == found.manifest
    assert list(found.manifest.days) == ["2010-12-01", "2010-12-03"]


def test_the_metadata_balances(lake: LocalLake, source: Make) -> None:
    rows = (line(), line(), line(quantity="x"), line("2031-01-01"), line("never"))
    shown = source(*rows).refresh(lake).manifest.metadata

    assert shown["read"] == shown["dagster/row_count"] == 5
    assert shown["duplicates"] == 1
    assert shown["quarantined_with_a_day"] == 1
    assert shown["quarantined"] == 2
    assert shown["first_reason"] == (
        "online_retail.csv, row 5: invoice_datetime: expected a day inside 2009-12-01...2011-12-31"
        " (RETAIL_ONLINE_RETAIL_START, RETAIL_ONLINE_RETAIL_END), found 2031-01-01 08:26:00"
    )
    assert (shown["first_day"], shown["last_day"]) == ("2010-12-01", "2010-12-01")


# ---- refresh


def test_a_first_look_fetches_types_and_finds_every_day_changed(
    lake: LocalLake, source: Make
) -> None:
    found = source(line(), line(), line("2010-12-03", quantity="x")).refresh(lake)

    assert (found.downloaded, found.typed) == (True, True)
    assert found.changed_days == ("2010-12-01", "2010-12-02", "2010-12-03")
    days = found.manifest.days
    assert (days["2010-12-01"].read, days["2010-12-01"].duplicates) == (2, 1)
    assert (days["2010-12-03"].read, days["2010-12-03"].quarantined) == (1, 1)
    (file,) = found.manifest.files
    assert lake.path(file.raw).read_text().startswith(HEADER)
    assert file.bytes == lake.path(file.raw).stat().st_size
    assert lake.path(found.manifest.typed).exists()


def test_an_unchanged_source_is_neither_fetched_nor_typed_again(
    lake: LocalLake, source: Make
) -> None:
    behind = source(line(), line("2010-12-02"))
    first = behind.refresh(lake)
    before = files(lake, ".")
    write_days(FEED, lake, "run", list(first.manifest.days))

    second = behind.refresh(lake)

    assert (second.downloaded, second.typed) == (False, False)
    assert second.manifest == first.manifest
    assert second.changed_days == ()
    after = files(lake, ".")
    assert {name: data for name, data in after.items() if name in before} == before
    assert first.manifest.is_of(behind.probe())


def test_a_relative_path_is_not_fetched_again(
    lake: LocalLake, source: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source(line())
    monkeypatch.chdir(tmp_path)
    behind = source(Path("..", tmp_path.name, "online_retail.csv"))
    first = behind.refresh(lake)

    assert first.manifest.is_of(behind.probe())
    assert behind.refresh(lake).downloaded is False


def test_another_change_time_alone_types_nothing_again(
    lake: LocalLake, source: Make, tmp_path: Path
) -> None:
    behind = source(line())
    first = behind.refresh(lake)
    path = tmp_path / "online_retail.csv"
    path.write_text(path.read_text())

    second = behind.refresh(lake)

    assert second.typed is False
    assert second.manifest.version == first.manifest.version
    assert second.manifest.is_of(behind.probe())


def test_a_changed_file_is_known_by_its_changed_days(lake: LocalLake, source: Make) -> None:
    first = source(line("2010-12-01"), line("2010-12-02"), line("2010-12-03")).refresh(lake)
    write_days(FEED, lake, "run", list(first.manifest.days))

    second = source(line("2010-12-01"), line("2010-12-02", quantity="7"), line("2010-12-03"))
    found = second.refresh(lake)

    assert found.changed_days == ("2010-12-02",)
    assert not first.manifest.is_of(second.probe())
    assert not lake.path(first.manifest.typed).exists()
    assert lake.path(first.manifest.files[0].raw).exists()


def test_the_order_of_rows_changes_no_day(lake: LocalLake, source: Make) -> None:
    rows = [line(invoice=str(n)) for n in range(5)]
    first = source(*rows).refresh(lake)
    write_days(FEED, lake, "run", list(first.manifest.days))

    assert source(*reversed(rows)).refresh(lake).changed_days == ()


def test_another_span_types_again(lake: LocalLake, source: Make) -> None:
    rows = (line("2010-12-01"), line("2010-12-02"))
    assert source(*rows).refresh(lake).manifest.unplaced == 0

    found = source(*rows, last_day="2010-12-01").refresh(lake)

    assert found.typed
    assert found.manifest.unplaced == 1
    assert list(found.manifest.days) == ["2010-12-01"]


def test_rows_without_a_day_are_quarantined_apart(lake: LocalLake, source: Make) -> None:
    behind = source(line(), line("never"), line("2031-05-05"), "too,short\n")
    manifest = behind.refresh(lake).manifest

    rows = quarantined(lake, UNPLACED)
    assert manifest.unplaced == len(rows) == 3
    assert {(row["source"], row["row"]) for row in rows} == {
        ("online_retail.csv", 3),
        ("online_retail.csv", 4),
        ("online_retail.csv", 5),
    }
    assert any("too,short" in row["text"] for row in rows)
    assert manifest.read == 4


def test_several_files_are_one_source(lake: LocalLake, source: Make, tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "sales.csv", tmp_path / "b" / "sales.csv"]
    for path, rows in zip(paths, (line() + line("2010-12-02"), line("2010-12-02")), strict=True):
        path.parent.mkdir()
        path.write_text(HEADER + rows)

    manifest = source(*paths).refresh(lake).manifest

    assert manifest.read == 3
    assert manifest.days["2010-12-02"].duplicates == 1
    assert len({file.raw for file in manifest.files}) == 2


def test_two_zips_with_a_member_of_one_name_are_both_read(
    lake: LocalLake, source: Make, tmp_path: Path
) -> None:
    paths = []
    for number, invoice in enumerate(("536365", "536366")):
        path = tmp_path / f"{number}.zip"
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("online_retail.csv", HEADER + line(invoice=invoice))
        path.write_bytes(buffer.getvalue())
        paths.append(path)

    manifest = source(*paths).refresh(lake).manifest

    assert (manifest.read, manifest.days["2010-12-01"].duplicates) == (2, 0)


def test_extra_columns_are_reported(lake: LocalLake, source: Make, tmp_path: Path) -> None:
    path = tmp_path / "extra.csv"
    path.write_text("Till," + HEADER + "3," + line())

    manifest = source(path).refresh(lake).manifest

    assert manifest.extra_columns == ("Till",)
    assert manifest.days["2010-12-01"].written == 1


Broken = pytest.mark.parametrize(
    ("text", "error"),
    [
        (HEADER, SourceError),
        (HEADER.strip(), SourceError),
        ("", UnreadableFileError),
        (HEADER.replace("Country", "Land") + line(), SchemaDriftError),
        (HEADER + line() + '536365,"85123A\n' + line() * 1500, UnreadableFileError),
        (
            HEADER + line() + line().replace("United", '"United') + line() * 1500,
            UnreadableFileError,
        ),
    ],
    ids=["header", "header without newline", "empty", "drift", "quote", "quote in last field"],
)


@Broken
def test_a_file_that_is_no_table_is_a_permanent_failure(
    lake: LocalLake, source: Make, tmp_path: Path, text: str, error: type[Exception]
) -> None:
    path = tmp_path / "broken.csv"
    path.write_text(text)

    with pytest.raises(error, match=r"broken\.csv"):
        source(path).refresh(lake)


@Broken
def test_a_file_that_is_no_table_changes_nothing(
    lake: LocalLake, source: Make, tmp_path: Path, text: str, error: type[Exception]
) -> None:
    source(line(), line("never")).refresh(lake)
    before = {zone: files(lake, zone) for zone in ("_state", "_stage", "quarantine")}
    path = tmp_path / "broken.csv"
    path.write_text(text)

    with pytest.raises(Exception, match=r"broken\.csv"):
        source(path).refresh(lake)

    assert {zone: files(lake, zone) for zone in before} == before


@pytest.fixture
def filled(lake: LocalLake, source: Make) -> list[str]:
    """The lines of ten days, all of them processed, and one row without a day."""
    days = [f"2010-12-{n:02}" for n in range(1, 11)]
    found = source(*map(line, days), line("never")).refresh(lake)
    write_days(FEED, lake, "run", list(found.manifest.days))
    return [line(day) for day in days]


def test_a_source_that_would_empty_more_than_a_tenth_is_refused(
    lake: LocalLake, source: Make, filled: list[str]
) -> None:
    with pytest.raises(SourceError, match="--allow-emptying") as error:
        source(*filled[:8]).refresh(lake)

    assert "2 of 10 filled days (2010-12-09...2010-12-10)" in str(error.value)


def test_a_refused_source_changes_nothing(lake: LocalLake, source: Make, filled: list[str]) -> None:
    before = {zone: files(lake, zone) for zone in ("_state", "quarantine")}

    with pytest.raises(SourceError, match="Nothing was changed"):
        source(*filled[:5]).refresh(lake)

    assert {zone: files(lake, zone) for zone in before} == before
    manifest = read_manifest(lake, FEED.name)
    assert manifest is not None
    assert lake.path(manifest.typed).exists()


def test_a_tenth_may_be_emptied(lake: LocalLake, source: Make, filled: list[str]) -> None:
    found = source(*filled[:9]).refresh(lake)

    assert found.changed_days == ("2010-12-10",)


def test_the_flag_allows_any_emptying(lake: LocalLake, source: Make, filled: list[str]) -> None:
    found = source(filled[4]).refresh(lake, allow_emptying=True)

    assert len(found.changed_days) == 9
    assert "2010-12-05" not in found.changed_days


def test_days_that_are_all_quarantined_count_as_emptied(
    lake: LocalLake, source: Make, filled: list[str]
) -> None:
    broken = [text.replace(",6,", ",six,") for text in filled[:3]]

    with pytest.raises(
        SourceError, match=r"3 of 10.*; 3 rows quarantined; online_retail\.csv, row 2: quantity: "
    ):
        source(*broken, *filled[3:]).refresh(lake)


def test_a_source_that_would_take_more_than_a_tenth_of_the_rows_is_refused(
    lake: LocalLake, source: Make, filled: list[str]
) -> None:
    more = [line("2010-12-01", str(n)) for n in range(10)]
    write_days(FEED, lake, "run", list(source(*filled, *more).refresh(lake).manifest.days))
    broken = [text.replace(",6,", ",six,") for text in more[:5]]

    with pytest.raises(ShrunkError, match=r"has 20 rows and would have 15 \(5 rows quarantined"):
        source(*filled, *more[5:], *broken).refresh(lake)

    assert len(quarantined(lake, REFUSED)) == 5
    assert len(source(*filled, *more[5:], *broken).refresh(lake, allow_emptying=True).changed_days)
    assert quarantined(lake, REFUSED) == []


def test_a_source_without_a_readable_day_says_what_was_found_and_where_it_is(
    lake: LocalLake, source: Make
) -> None:
    with pytest.raises(SourceError) as error:
        source(line("never"), line("2031-05-05"), "too,short\n").refresh(lake)

    assert "row 2: invoice_datetime: expected a date and time, found never" in str(error.value)
    assert f"3 rows are in {lake.root}/quarantine/online_retail/" in str(error.value)
    assert len(quarantined(lake, REFUSED)) == 3
    assert read_manifest(lake, FEED.name) is None


def test_a_first_source_that_is_quarantined_whole_is_refused(lake: LocalLake, source: Make) -> None:
    with pytest.raises(
        ShrunkError,
        match=r"all that was delivered would be quarantined \(1 rows quarantined;"
        r" online_retail\.csv, row 2: quantity: expected a whole number, found six\)",
    ):
        source(line(quantity="six")).refresh(lake)
    (refused,) = quarantined(lake, REFUSED)
    assert refused["reason"] == "quantity: expected a whole number, found six"


def test_undecided_dates_are_refused_and_read_by_the_setting(lake: LocalLake, source: Make) -> None:
    lines = [line("01/12/2010"), line("02/12/2010")]
    with pytest.raises(AmbiguousDatesError, match="RETAIL_ONLINE_RETAIL_DATES"):
        source(*lines).refresh(lake)
    found = source(*lines, dates="dmy").refresh(lake)
    assert list(found.manifest.days) == ["2010-12-01", "2010-12-02"]
    found = source(*lines, dates="mdy").refresh(lake)
    assert found.typed and list(found.manifest.days) == ["2010-01-12", "2010-02-12"]


def test_the_sheets_of_a_workbook_are_read_in_one_order(
    lake: LocalLake, source: Make, tmp_path: Path
) -> None:
    # Alone, the second would be in the published form: month first.
    path = tmp_path / "years.xlsx"
    with xlsxwriter.Workbook(path) as book:
        for name, days in (("2009", ["1/12/2009", "13/12/2009"]), ("2010", ["2/12/2010"])):
            sheet = book.add_worksheet(name)
            for at, text in enumerate([HEADER, *map(line, days)]):
                sheet.write_row(at, 0, text.strip().replace(" 08:26:00", " 8:26").split(","))

    found = source(path).refresh(lake)

    assert list(found.manifest.days) == ["2009-12-01", "2009-12-13", "2010-12-02"]


def test_the_files_of_an_archive_are_each_read_in_their_own_order(
    lake: LocalLake, source: Make, tmp_path: Path
) -> None:
    path = tmp_path / "both.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("uk/a.csv", HEADER + line("01/12/2010") + line("13/12/2010"))
        archive.writestr("us/a.csv", HEADER + line("12/02/2010") + line("12/14/2010"))

    found = source(path).refresh(lake)

    assert list(found.manifest.days) == [f"2010-12-{day}" for day in ("01", "02", "13", "14")]


def test_days_outside_a_narrower_span_do_not_count_as_emptied(
    lake: LocalLake, source: Make, filled: list[str]
) -> None:
    found = source(*filled, last_day="2010-12-02").refresh(lake)

    assert list(found.manifest.days) == ["2010-12-01", "2010-12-02"]


@pytest.mark.parametrize("far", ["infinity", "2100-01-01 00:00:00"])
def test_a_day_far_ahead_does_not_fill_an_open_span(
    lake: LocalLake, source: Make, far: str
) -> None:
    behind = source(line(), line().replace("2010-12-01 08:26:00", far), last_day=None)

    manifest = behind.refresh(lake).manifest

    assert list(manifest.days) == ["2010-12-01"]
    assert manifest.unplaced == 1


def test_a_broken_manifest_says_how_to_mend_it(lake: LocalLake, source: Make) -> None:
    behind = source(line())
    behind.refresh(lake)
    lake.path(f"_state/{manifest_state(FEED.name)}.json").write_text("{")

    with pytest.raises(Exception, match="Delete it"):
        behind.refresh(lake)

    lake.path(f"_state/{manifest_state(FEED.name)}.json").unlink()
    assert behind.refresh(lake).manifest.read == 1


# ---- what is kept of it


def test_old_versions_of_the_source_are_kept_unless_a_setting_says_for_how_long(
    lake: LocalLake, source: Make, tmp_path: Path
) -> None:
    for quantity in ("6", "7"):
        source(line(quantity=quantity)).refresh(lake, run_id=quantity)
    _, kept = sorted(
        (tmp_path / "lake/raw").rglob("*.csv"), key=lambda file: file.stat().st_mtime_ns
    )

    def pruned(keep_raw_days: float, *, dry_run: bool = False) -> list[int]:
        settings = load_settings(
            home=tmp_path, lake=str(tmp_path / "lake"), keep_raw_days=keep_raw_days
        )
        found = list(FEED.prune(settings, dry_run=dry_run))
        return [each.count for each in found if "source" in each.what]

    assert pruned(0) == [] and pruned(30) == [0] and pruned(1e-9, dry_run=True) == [1]
    assert len(files(lake, "raw")) == 2
    assert pruned(1e-9) == [1]
    assert [*(tmp_path / "lake/raw").rglob("*.csv")] == [kept]
    assert pruned(1e-9) == [0]

"""Tests of retail_assets.feeds.files.listing, over a lake in a temporary folder.

The files are the coffee chain's: two tables of dated ones, two of one file each.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain.contract import (
    CUSTOMER,
    OUTLET,
    PRODUCT,
    RAW_CUSTOMER,
    RAW_OUTLET,
    RAW_PRODUCT,
    RAW_SALES,
    SALES,
)
from retail_assets.defs.coffee_chain.feed import FEED
from retail_assets.feeds import WHOLE_TABLE
from retail_assets.feeds.files import listing
from retail_assets.feeds.files.listing import (
    Changes,
    Look,
    describe_drops,
    fingerprint_of,
    has_bytes,
    hash_file,
    is_date,
)
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.restoring import restore
from retail_assets_tests.defs.coffee_chain.raw_zone import D1, D2, D3, RawZone, person, sale

TABLES = (OUTLET, PRODUCT, CUSTOMER, SALES)
TYPING_VERSION = FEED.tables[0].version


@pytest.fixture
def raw(tmp_path: Path) -> RawZone:
    return RawZone(tmp_path / "lake")


def look(lake: LakeResource) -> Changes:
    """What is new work, as a tick finds it."""
    found = Look(lake, FEED.tables)
    changes = found.changes()
    found.remember_touched(changes)
    return changes


def work(lake: LakeResource) -> set[tuple[str, str]]:
    """Table and drop of what is new work."""
    return {(table, key) for table, files in look(lake).wanted.items() for key in files}


def take(lake: LakeResource) -> None:
    """Publish everything that is new work as taken, without a row."""
    changes = look(lake)
    for dataset in TABLES:
        publish(
            lake,
            dataset,
            {
                key: Ledger(
                    fingerprint_of(hash_file(lake.local_file(entry.name)), TYPING_VERSION),
                    *(1, 1),
                    stamp=entry.version,
                    size=entry.size,
                )
                for key, entry in changes.wanted[dataset.name].items()
            },
        )


def publish(lake: LakeResource, dataset: Dataset, ledgers: dict[str, Ledger]) -> None:
    with lake.staging("run") as stage:
        stage.publish(dataset, ledgers, ledgers)


def ledgers(lake: LakeResource, dataset: Dataset) -> dict[str, Ledger]:
    return dict(Look(lake, FEED.tables).table(dataset).ledgers)


# ---- the listing


def test_drops_are_found_by_their_names(raw: RawZone) -> None:
    raw.outlets()
    for day in ("1700-01-01", D1, "9999-12-31"):
        raw.sales(day)
    raw.customers(D2)

    found = Look(raw.lake, FEED.tables)

    assert list(found.files["sales"]) == ["1700-01-01", D1, "9999-12-31"]
    assert found.files["sales"][D1].name == RAW_SALES.name(D1)
    assert list(found.files["customer"]) == [D2]
    assert found.delivered == {"1700-01-01", D1, D2, "9999-12-31"}
    assert list(found.files["outlet"]) == [WHOLE_TABLE]
    assert found.files["product"] == {}
    assert found.strays == []


def test_a_folder_may_hold_the_files_of_several_tables(raw: RawZone) -> None:
    paths = {"sales": "raw/shop/sales_{date}.csv", "customer": "raw/shop/{date}.csv"}
    tables = [replace(x, path=paths[x.dataset.name]) for x in FEED.dated if x.dataset.name in paths]
    for name in (f"sales_{D1}.csv", f"{D2}.csv", "other.csv"):
        raw.deliver_bytes(f"raw/shop/{name}", b"x")

    found = Look(raw.lake, tables)

    assert {table: list(files) for table, files in found.files.items()} == {
        "sales": [D1],
        "customer": [D2],
    }
    assert found.strays == ["raw/shop/other.csv"]


def test_a_lake_without_raw_files_has_none(raw: RawZone) -> None:
    found = Look(raw.lake, FEED.tables)

    assert (found.delivered, found.strays) == (set(), [])
    assert not raw.root.exists()


@pytest.mark.parametrize(
    "name",
    [
        "sales_data_2018-02-30.csv",
        "sales_data_20180630.csv",
        "sales_data_2018-W26-6.csv",
        "sales_data_2018-6-30.csv",
        "sales_data_2018-06-30T00:00.csv",
        "sales_data_٢٠١٨-06-30.csv",
        "sales_data_.csv",
        "sales_data_2018-06-30 (1).csv",
        "sales_data_2018-06-30.CSV",
        "sales_data_2018-06-30.csv.gz",
        "Sales_data_2018-06-30.csv",
        "customer_data_2018-06-30.csv",
        "2018/sales_data_2018-06-30.csv",
        "sales_data_2018-06-30.csv/part.csv",
        ".csv",
    ],
)
def test_other_names_are_no_drops_and_are_told(raw: RawZone, name: str) -> None:
    raw.deliver_bytes(f"raw/coffee_chain/sales/{name}", b"x")

    found = Look(raw.lake, FEED.tables)

    assert found.delivered == set()
    hidden = (".csv",)  # as file systems have it
    assert found.strays == ([] if name in hidden else [f"raw/coffee_chain/sales/{name}"])


@pytest.mark.parametrize(
    "name",
    [
        "sales_data_2018-06-30.csv.part",
        "sales_data_2018-06-30.csv.tmp",
        ".sales_data_2018-06-30.csv",
        "_SUCCESS",
    ],
)
def test_files_on_their_way_are_no_drops_and_not_told(raw: RawZone, name: str) -> None:
    raw.deliver_bytes(f"raw/coffee_chain/sales/{name}", b"x")

    found = Look(raw.lake, FEED.tables)

    assert (found.delivered, found.strays) == (set(), [])


def test_a_small_table_is_the_file_of_exactly_that_name(raw: RawZone) -> None:
    for name in ("product.csv.part", "product.csv.old", "product.csv/x", "Product.csv"):
        raw.deliver_bytes(f"raw/coffee_chain/products/{name}", b"x")

    assert Look(raw.lake, FEED.tables).files["product"] == {}


@given(st.dates())
def test_every_day_is_a_date(day: date) -> None:
    assert is_date(day.isoformat())
    assert not is_date(f"{day:%Y%m%d}")
    assert not is_date(f" {day}")
    assert not is_date(f"{day}\n")


@given(st.text(alphabet="0123456789-W/ ", max_size=11))
def test_a_date_is_nothing_but_ten_characters_that_are_its_own_text(text: str) -> None:
    if is_date(text):
        assert str(date.fromisoformat(text)) == text
        assert len(text) == 10


# ---- what was taken

digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)


@given(digests, digests)
def test_a_fingerprint_is_of_bytes_and_typing_alone(one: str, other: str) -> None:
    found = fingerprint_of(one, TYPING_VERSION)
    assert found.endswith(f"-{TYPING_VERSION}")
    assert has_bytes(Ledger(found, 1), one)
    assert has_bytes(Ledger(found.replace(f"-{TYPING_VERSION}", "-99"), 1), one)
    is_same = one[:32] == other[:32]
    assert has_bytes(Ledger(found, 1), other) is is_same
    assert (found == fingerprint_of(other, TYPING_VERSION)) is is_same


def test_what_was_taken_is_known_by_table_and_drop(raw: RawZone) -> None:
    publish(raw.lake, SALES, {D1: Ledger("a", 0), D2: Ledger("b", 0)})
    publish(raw.lake, CUSTOMER, {D3: Ledger("c", 0)})
    publish(raw.lake, OUTLET, {WHOLE_TABLE: Ledger("d", 0)})

    found = Look(raw.lake, FEED.tables)

    assert found.table(SALES).fingerprints == {D1: "a", D2: "b"}
    assert found.table(OUTLET).fingerprints == {WHOLE_TABLE: "d"}
    assert found.table(PRODUCT).ledgers == {}
    assert found.taken == {D1, D2, D3}
    publish(raw.lake, SALES, {D3: Ledger("e", 0)})
    assert D3 not in found.table(SALES).ledgers  # as of one look
    assert Look(raw.lake, FEED.tables).table(SALES).fingerprints == {D1: "a", D2: "b", D3: "e"}


def test_a_look_at_an_empty_lake_writes_nothing(raw: RawZone) -> None:
    assert work(raw.lake) == set()
    assert not raw.root.exists()


def deliver_all(raw: RawZone) -> None:
    raw.outlets()
    raw.products()
    for day in (D1, D2):
        raw.sales(day, sale())
        raw.customers(day, person())


# ---- what is new work


def test_every_file_is_new_work_until_it_is_taken(raw: RawZone) -> None:
    deliver_all(raw)

    changes = look(raw.lake)

    assert changes.dates == {D1, D2}
    assert changes.small == {"outlet", "product"}
    take(raw.lake)
    changes = look(raw.lake)
    assert (changes.dates, changes.small) == (set(), set())


def test_one_of_two_files_is_the_work_of_its_table_alone(raw: RawZone) -> None:
    raw.sales(D1, sale())
    take(raw.lake)
    raw.customers(D1, person())

    assert work(raw.lake) == {("customer", D1)}


@pytest.mark.parametrize("quantity", [3, 33], ids=["of the same size", "of another size"])
def test_a_drop_with_new_bytes_is_new_work(raw: RawZone, quantity: int) -> None:
    deliver_all(raw)
    take(raw.lake)

    raw.sales(D1, sale(quantity=quantity))

    assert work(raw.lake) == {("sales", D1)}


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed from here on."""
    names: list[str] = []

    def hash_and_tell(file: Path) -> str:
        names.append(file.name)
        return hash_file(file)

    monkeypatch.setattr(listing, "hash_file", hash_and_tell)
    return names


def test_the_same_bytes_again_are_no_work_and_hashed_once(raw: RawZone, hashed: list[str]) -> None:
    deliver_all(raw)
    take(raw.lake)
    for name in (RAW_SALES.name(D1), RAW_OUTLET.name()):
        raw.touch(raw.root / name)

    first, then = look(raw.lake), look(raw.lake)

    assert not any(first.wanted.values())
    assert {t: list(k) for t, k in first.touched.items() if k} == {
        "outlet": [WHOLE_TABLE],
        "sales": [D1],
    }
    assert not any(then.touched.values())
    assert sorted(hashed) == ["outlet.csv", f"sales_data_{D1}.csv"]
    stamp = Look(raw.lake, FEED.tables).files["sales"][D1].version
    assert ledgers(raw.lake, SALES)[D1].stamp == stamp


def test_a_file_of_another_size_is_not_hashed(raw: RawZone, hashed: list[str]) -> None:
    raw.sales(D1, sale())
    take(raw.lake)

    raw.sales(D1, sale(), sale(2))

    assert work(raw.lake) == {("sales", D1)}
    assert hashed == []


def test_what_a_tick_hashes_is_bounded_and_the_rest_is_new_work(
    raw: RawZone, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    days = (D1, D2, D3)
    paths = [raw.sales(day, sale()) for day in days]
    take(raw.lake)
    for path in paths:
        raw.touch(path)
    size = paths[0].stat().st_size

    monkeypatch.setattr(listing, "_HASH_BUDGET_BYTES", 2 * size + 1)

    assert work(raw.lake) == {("sales", D3)}
    assert len(hashed) == 2
    assert work(raw.lake) == set()  # there is a budget again


def test_another_typing_makes_everything_new_work(raw: RawZone, hashed: list[str]) -> None:
    deliver_all(raw)
    take(raw.lake)
    raw.touch(raw.root / RAW_CUSTOMER.name(D2))

    tables = [replace(table, own_version=f"{TYPING_VERSION}0") for table in FEED.tables]

    changes = Look(raw.lake, tables).changes()

    assert sum(len(files) for files in changes.wanted.values()) == 6
    assert hashed == []


def test_a_deleted_file_is_told_and_no_work(raw: RawZone) -> None:
    deliver_all(raw)
    take(raw.lake)
    for name in (RAW_SALES.name(D1), RAW_PRODUCT.name()):
        (raw.root / name).unlink()

    changes, found = look(raw.lake), Look(raw.lake, FEED.tables)

    deleted = {x.name: found.deleted(x) for x in TABLES}
    assert deleted == {"outlet": [], "product": [WHOLE_TABLE], "customer": [], "sales": [D1]}
    assert not any(changes.wanted.values())
    assert set(ledgers(raw.lake, SALES)) == {D1, D2}


def rows_of(raw: RawZone) -> list[tuple[str, int]]:
    """Drop and rows of each file of sales, all of which are there."""
    files = raw.lake.table(SALES).snapshot().files
    assert all(
        pq.read_metadata(raw.root / file.name).num_rows == file.rows
        and (raw.root / file.name).stat().st_size == file.size
        for file in files
    )
    return [(file.key, file.rows) for file in files]


def test_what_came_again_keeps_its_rows_under_the_newer_version(raw: RawZone) -> None:
    raw.sales(D1, sale())
    raw.sales(D2, sale())
    changes = look(raw.lake)
    taken = {
        key: Ledger(
            fingerprint_of(hash_file(raw.root / x.name), TYPING_VERSION),
            2,
            stamp=x.version,
            size=x.size,
        )
        for key, x in changes.wanted[SALES.name].items()
    }
    table = SALES.arrow_schema.empty_table()
    with raw.lake.staging("run") as stage:
        for key in taken:
            for year in ("2018", "2019"):
                file = raw.root / f"{key}-{year}"
                pq.write_table(table, file)
                stage.adopt(SALES, key, [file], str(year))
        stage.publish(SALES, taken, taken)
    before = rows_of(raw)
    version = raw.lake.table(SALES).snapshot().version
    for day in (D1, D2):
        raw.touch(raw.root / RAW_SALES.name(day))

    assert work(raw.lake) == set()

    assert rows_of(raw) == before
    found = raw.lake.table(SALES).snapshot()
    assert found.version == version + 1
    assert found.fingerprints == {key: ledger.fingerprint for key, ledger in taken.items()}
    assert {file.name.split("/")[4] for file in found.files} == {"2018", "2019"}


def test_what_came_again_is_new_work_where_the_table_lost_its_files(raw: RawZone) -> None:
    raw.sales(D1, sale())
    path = raw.sales(D2, sale())
    take(raw.lake)
    raw.touch(path)
    (file,) = raw.lake.table(SALES).snapshot().by_key[D2]
    raw.lake.delete(file.name)

    assert work(raw.lake) == {("sales", D2)}


def test_what_another_took_meanwhile_is_not_undone(raw: RawZone) -> None:
    raw.sales(D1, sale())
    raw.sales(D2, sale())
    take(raw.lake)
    for day in (D1, D2):
        raw.touch(raw.root / RAW_SALES.name(day))
    earlier = Look(raw.lake, FEED.tables)
    changes = earlier.changes()
    raw.sales(D1, sale(quantity=7))
    take(raw.lake)
    taken = ledgers(raw.lake, SALES)

    earlier.remember_touched(changes)

    assert ledgers(raw.lake, SALES) == taken
    assert work(raw.lake) == set()


def test_what_a_person_set_aside_is_asked_for_again_when_it_is_another(
    raw: RawZone, hashed: list[str]
) -> None:
    deliver_all(raw)
    take(raw.lake)
    path = raw.sales(D1, sale(), sale(2))
    raw.sales(D3, sale())
    take(raw.lake)

    assert restore(raw.lake, SALES, 0, {})[1] == (D1, D3)

    changes = look(raw.lake)
    assert (changes.dates, changes.restored[SALES.name]) == (set(), {D1, D3})
    assert hashed == []
    raw.touch(path)
    assert work(raw.lake) == set()
    raw.sales(D3, sale(2))
    assert work(raw.lake) == {("sales", D3)}


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, str, str]]:
    """What happens to raw files: (verb, day, content)."""
    step = st.tuples(
        st.sampled_from(["deliver", "touch", "delete", "take"]),
        st.sampled_from([D1, D2]),
        st.sampled_from(["a", "b", "bb"]),
    )
    return draw(st.lists(step, max_size=12))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as found:
        yield Path(found)


@settings(max_examples=60, deadline=None)
@given(histories())
def test_new_work_is_exactly_what_differs_from_what_was_taken(
    folder: Path, history: list[tuple[str, str, str]]
) -> None:
    raw = RawZone(Path(tempfile.mkdtemp(dir=folder)))
    there: dict[str, str] = {}
    taken: dict[str, str] = {}
    for verb, day, content in history:
        path = raw.root / RAW_SALES.name(day)
        if verb == "deliver":
            raw.deliver_bytes(RAW_SALES.name(day), content.encode())
            there[day] = content
        elif verb == "touch" and day in there:
            raw.touch(path)
        elif verb == "delete" and day in there:
            path.unlink()
            del there[day]
        elif verb == "take":
            take(raw.lake)
            taken |= there
        expected = {("sales", day) for day, text in there.items() if taken.get(day) != text}
        assert work(raw.lake) == expected


def test_a_look_takes_no_file_for_another_because_of_its_age(raw: RawZone) -> None:
    path = raw.sales(D1, sale())
    old = path.stat().st_mtime_ns
    take(raw.lake)
    raw.sales(D1, sale(quantity=4))
    take(raw.lake)

    raw.sales(D1, sale())
    os.utime(path, ns=(old, old))  # restored, with its old date

    assert work(raw.lake) == {("sales", D1)}


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, ""),
        (1, "2018-01-01"),
        (5, "2018-01-01, 2018-01-02, 2018-01-03, 2018-01-04, 2018-01-05"),
        (7, "2018-01-01, 2018-01-02, 2018-01-03, 2018-01-04, 2018-01-05 and 2 more"),
    ],
)
def test_many_drops_are_told_by_the_first(count: int, expected: str) -> None:
    assert describe_drops({f"2018-01-{n:02}" for n in range(1, count + 1)}) == expected

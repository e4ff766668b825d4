"""Tests of retail_assets.defs.coffee_chain.drops, over a lake in a temporary folder."""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retail_assets.defs.coffee_chain import drops
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
from retail_assets.defs.coffee_chain.drops import (
    STATE,
    WHOLE_TABLE,
    Changes,
    Known,
    Ledger,
    compare,
    describe_drops,
    hash_file,
    is_date,
    list_raw,
    read_known,
    record_drops,
    remember_touched,
)
from retail_assets.defs.coffee_chain.transforms import TYPING_VERSION
from retail_assets.resources.lake import BrokenStateError, LakeResource
from retail_assets_tests.defs.coffee_chain.raw_zone import D1, D2, D3, RawZone, person, sale

TABLES = (OUTLET, PRODUCT, CUSTOMER, SALES)


@pytest.fixture
def raw(tmp_path: Path) -> RawZone:
    return RawZone(tmp_path / "lake")


def look(lake: LakeResource) -> Changes:
    """What is new work, as a tick finds it."""
    changes = compare(lake, list_raw(lake), read_known(lake))
    remember_touched(lake, changes)
    return changes


def work(lake: LakeResource) -> set[tuple[str, str]]:
    """Table and drop of what is new work."""
    return {(table, key) for table, files in look(lake).wanted.items() for key in files}


def take(lake: LakeResource) -> None:
    """Record everything that is new work as taken."""
    changes = look(lake)
    for dataset in TABLES:
        ledgers = {
            key: Ledger(
                entry.version,
                entry.size,
                hash_file(lake.local_file(entry.name)),
                TYPING_VERSION,
                *(1, 1, 0, 0),
            )
            for key, entry in changes.wanted[dataset.name].items()
        }
        record_drops(lake, dataset, ledgers)


# ---- the listing


def test_drops_are_found_by_their_names(raw: RawZone) -> None:
    raw.outlets()
    for day in ("1700-01-01", D1, "9999-12-31"):
        raw.sales(day)
    raw.customers(D2)

    listing = list_raw(raw.lake)

    assert list(listing.of(SALES)) == ["1700-01-01", D1, "9999-12-31"]
    assert listing.of(SALES)[D1].name == RAW_SALES.name(D1)
    assert list(listing.of(CUSTOMER)) == [D2]
    assert listing.dates == {"1700-01-01", D1, D2, "9999-12-31"}
    assert list(listing.of(OUTLET)) == [WHOLE_TABLE]
    assert dict(listing.of(PRODUCT)) == {}
    assert listing.strays == ()


def test_a_lake_without_raw_files_has_none(raw: RawZone) -> None:
    listing = list_raw(raw.lake)

    assert (listing.dates, listing.strays) == (set(), ())
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

    listing = list_raw(raw.lake)

    assert listing.dates == set()
    hidden = (".csv",)  # as file systems have it
    assert listing.strays == (() if name in hidden else (f"raw/coffee_chain/sales/{name}",))


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

    listing = list_raw(raw.lake)

    assert (listing.dates, listing.strays) == (set(), ())


def test_a_small_table_is_the_file_of_exactly_that_name(raw: RawZone) -> None:
    for name in ("product.csv.part", "product.csv.old", "product.csv/x", "Product.csv"):
        raw.deliver_bytes(f"raw/coffee_chain/products/{name}", b"x")

    assert dict(list_raw(raw.lake).of(PRODUCT)) == {}


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


# ---- ledgers and the state object

versions = st.from_regex(r"[0-9]{1,12}(-[0-9]{1,19})?", fullmatch=True)
counts = st.integers(0, 10**10)
ledgers = st.builds(
    Ledger,
    version=versions,
    size=counts,
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    typing=st.sampled_from(["1", "12"]),
    read=counts,
    written=counts,
    duplicates=counts,
    quarantined=counts,
    left_out=counts,
)


@given(ledgers)
def test_a_ledger_comes_back_from_its_text(ledger: Ledger) -> None:
    assert Ledger.from_text(ledger.to_text()) == ledger
    lost = ledger.read - ledger.written - ledger.duplicates - ledger.quarantined
    assert ledger.balances is (lost == 0)


def test_a_state_from_before_values_were_left_out_is_read(raw: RawZone) -> None:
    text = ledger().to_text().rpartition(" ")[0]
    raw.lake.write_state(STATE, {"sales": {D1: text}})

    assert read_known(raw.lake).ledgers(SALES) == {D1: ledger()}
    record_drops(raw.lake, SALES, {D2: ledger(2)._replace(left_out=3)})
    assert read_known(raw.lake).ledgers(SALES)[D2].left_out == 3


@given(ledgers, ledgers)
def test_a_fingerprint_is_of_bytes_and_typing_alone(one: Ledger, other: Ledger) -> None:
    same = one._replace(version=other.version, read=other.read)
    assert same.fingerprint == one.fingerprint
    assert one._replace(typing="99").fingerprint != one.fingerprint
    if one.sha256[:32] != other.sha256[:32]:
        assert one.fingerprint != other.fingerprint


def ledger(number: int = 1) -> Ledger:
    return Ledger(f"{number}-1", number, f"{number:064x}", TYPING_VERSION, 4, 2, 1, 1)


def test_what_was_taken_is_remembered_by_table_and_drop(raw: RawZone) -> None:
    record_drops(raw.lake, SALES, {D1: ledger(1), D2: ledger(2)})
    record_drops(raw.lake, CUSTOMER, {D1: ledger(3)})
    record_drops(raw.lake, OUTLET, {WHOLE_TABLE: ledger(4)})
    record_drops(raw.lake, SALES, {D2: ledger(5), D3: ledger(6)})

    known = read_known(raw.lake)

    assert known.ledgers(SALES) == {D1: ledger(1), D2: ledger(5), D3: ledger(6)}
    assert known.ledgers(CUSTOMER) == {D1: ledger(3)}
    assert known.fingerprints(OUTLET) == {WHOLE_TABLE: ledger(4).fingerprint}
    assert known.ledgers(PRODUCT) == {}
    assert known.dates == {D1, D2, D3}


def test_what_is_forgotten_is_so_in_the_state_and_in_the_notes(raw: RawZone) -> None:
    record_drops(raw.lake, SALES, {D1: ledger(1), D2: ledger(2)})

    record_drops(raw.lake, SALES, {D1: None, D3: None})

    assert read_known(raw.lake).ledgers(SALES) == {D2: ledger(2)}
    raw.lake.delete(f"_state/{STATE}.json")
    assert read_known(raw.lake).ledgers(SALES) == {D2: ledger(2)}


def test_runs_that_record_at_once_lose_nothing(raw: RawZone) -> None:
    days = [f"2018-01-{n:02}" for n in range(1, 25)]
    with ThreadPoolExecutor(8) as pool:
        for number, day in enumerate(days):
            dataset = SALES if number % 2 else CUSTOMER
            pool.submit(record_drops, raw.lake, dataset, {day: ledger(number)})

    assert read_known(raw.lake).dates == set(days)


def test_a_look_at_an_empty_lake_writes_nothing(raw: RawZone) -> None:
    assert read_known(raw.lake) == Known()
    assert not raw.root.exists()


def deliver_all(raw: RawZone) -> None:
    raw.outlets()
    raw.products()
    for day in (D1, D2):
        raw.sales(day, sale())
        raw.customers(day, person())


def test_a_lost_state_is_rebuilt_of_the_notes_once(
    raw: RawZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver_all(raw)
    take(raw.lake)
    before = read_known(raw.lake)
    assert len(before.texts) == 4
    raw.lake.delete(f"_state/{STATE}.json")

    assert work(raw.lake) == set()

    assert read_known(raw.lake) == before
    monkeypatch.setattr(drops, "_read_notes", None)  # not needed a second time
    assert work(raw.lake) == set()


def test_what_is_recorded_while_the_state_is_lost_goes_with_the_notes(raw: RawZone) -> None:
    record_drops(raw.lake, SALES, {D1: ledger(1)})
    raw.lake.delete(f"_state/{STATE}.json")

    record_drops(raw.lake, SALES, {D2: ledger(2)})

    assert read_known(raw.lake).ledgers(SALES) == {D1: ledger(1), D2: ledger(2)}


def test_without_state_and_notes_everything_is_new_work(raw: RawZone) -> None:
    deliver_all(raw)
    everything = work(raw.lake)
    take(raw.lake)
    assert work(raw.lake) == set()

    for entry in list(raw.lake.list_objects("_state/")):
        raw.lake.delete(entry.name)

    assert work(raw.lake) == everything
    assert len(everything) == 6


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"sales": {"2018-06-30": "1-1 5 ab',
        "[]",
        '{"sales": []}',
        '{"sales": {"2018-06-30": 7}}',
        '{"sales": {"2018-06-30": "1-1 5 ab"}}',
    ],
)
def test_a_state_that_is_none_says_what_to_do_and_then_comes_back(raw: RawZone, text: str) -> None:
    record_drops(raw.lake, SALES, {D1: ledger()})
    state = raw.root / f"_state/{STATE}.json"
    state.write_text(text)

    with pytest.raises(BrokenStateError) as error:
        read_known(raw.lake)
    with pytest.raises(BrokenStateError):
        record_drops(raw.lake, SALES, {D2: ledger(2)})

    assert str(state) in str(error.value)
    assert "Delete it" in str(error.value)
    state.unlink()
    # What was recorded meanwhile is in its note.
    assert read_known(raw.lake).ledgers(SALES) == {D1: ledger(), D2: ledger(2)}


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

    monkeypatch.setattr(drops, "hash_file", hash_and_tell)
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
    taken = read_known(raw.lake).ledgers(SALES)[D1]
    assert taken.version == list_raw(raw.lake).of(SALES)[D1].version


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

    monkeypatch.setattr(drops, "_HASH_BUDGET_BYTES", 2 * size + 1)

    assert work(raw.lake) == {("sales", D3)}
    assert len(hashed) == 2
    assert work(raw.lake) == set()  # there is a budget again


def test_another_typing_makes_everything_new_work(
    raw: RawZone, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver_all(raw)
    take(raw.lake)
    raw.touch(raw.root / RAW_CUSTOMER.name(D2))

    monkeypatch.setattr(drops, "TYPING_VERSION", f"{TYPING_VERSION}0")

    assert len(work(raw.lake)) == 6
    assert hashed == []


def test_a_deleted_file_is_told_and_no_work(raw: RawZone) -> None:
    deliver_all(raw)
    take(raw.lake)
    for name in (RAW_SALES.name(D1), RAW_PRODUCT.name()):
        (raw.root / name).unlink()

    changes = look(raw.lake)

    assert {t: k for t, k in changes.deleted.items() if k} == {
        "product": (WHOLE_TABLE,),
        "sales": (D1,),
    }
    assert not any(changes.wanted.values())
    assert set(read_known(raw.lake).ledgers(SALES)) == {D1, D2}


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


@settings(max_examples=60)
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

"""Tests of retail_assets.defs.supply_chain.star: the merge, held against plain Python."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain import star
from retail_assets.defs.supply_chain.contract import (
    DIM_CUSTOMER,
    DIM_LOCATION,
    DIM_METADATA,
    DIM_PRODUCT,
    FACT_ORDER,
    LANDED,
)
from retail_assets.defs.supply_chain.star import (
    EMPTY,
    STATE,
    StarBuilt,
    StarError,
    StarImbalanceError,
    build_star,
    check_star,
    star_versions,
)
from retail_assets.losses import ShrunkError
from retail_assets.resources.lake import BrokenStateError, LocalLake, LocalStage
from retail_assets.resources.spark import EMBEDDED, SparkResource
from retail_assets_tests.defs.supply_chain.star_messages import (
    Message,
    expected_star,
    land,
    of,
    random_messages,
    read_star,
)

SPARK = SparkResource(master=EMBEDDED)
D1, D2, D3 = "2026-01-05", "2026-01-06", "2026-01-07"
DAYS = (D1, D2, D3)
BY_DATE = (FACT_ORDER, DIM_METADATA)
LATER = {"incarnation": "second", "started_at": datetime(2026, 1, 6, 1)}


class Zone:
    """A lake, what has landed there, and its star."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lake = LocalLake(root=str(root))
        self.landed: list[tuple[str, Message]] = []

    def land(self, day: str, *messages: Message) -> list[Path]:
        self.landed += [(day, message) for message in messages]
        return land(self.root, day, messages)

    def build(self, dates: Sequence[str] | None = None) -> StarBuilt:
        built = build_star(self.lake, SPARK, "run", dates)
        assert built.messages == (
            built.written + built.superseded_within + built.superseded_by_later
        )
        assert built.rows == {name: len(rows) for name, rows in self.rows.items()}
        return built

    @property
    def rows(self) -> dict[str, list[dict[str, Any]]]:
        return read_star(self.root)

    def is_right(self) -> None:
        assert self.rows == expected_star(self.landed)
        checked = check_star(self.lake)
        assert not (checked.drifted or checked.duplicates or checked.orphans or checked.unused)
        assert checked.rows == {name: len(rows) for name, rows in self.rows.items()}

    def versions(self) -> dict[str, dict[str, str]]:
        return {dataset.name: star_versions(self.lake, dataset) for dataset in LANDED}

    def files(self, *tables: Dataset) -> dict[str, tuple[int, int]]:
        """Which files there are, by identity: a file that is written again is another."""
        return {
            str(file.relative_to(self.root)): (file.stat().st_ino, file.stat().st_mtime_ns)
            for table in tables or LANDED
            for file in (self.root / "transformed_data/supply_chain" / table.name).rglob(
                "*.parquet"
            )
        }

    @property
    def state(self) -> Path:
        return self.root / "_state" / f"{STATE}.json"


@pytest.fixture
def zone(tmp_path: Path) -> Zone:
    return Zone(tmp_path / "a lake")


def changed(built: StarBuilt) -> dict[str, tuple[str, ...]]:
    return dict(built.changed)


# ---- building


def test_a_first_build_has_every_table(zone: Zone) -> None:
    zone.land(D1, *random_messages(random.Random(1), 60))
    zone.land(D2, *random_messages(random.Random(2), 60, **LATER))

    built = zone.build()

    zone.is_right()
    assert (built.dates, built.messages, built.removed) == ((D1, D2), 120, 0)
    assert built.written == len(zone.rows["fact_order"])
    assert set(built.changed) == {dataset.name for dataset in LANDED}
    assert set(star_versions(zone.lake, FACT_ORDER)) == {D1, D2}
    assert set(star_versions(zone.lake, DIM_CUSTOMER)) == {""}


def test_files_have_the_columns_of_the_contract(zone: Zone) -> None:
    zone.land(D1, of())
    zone.build()

    for dataset in LANDED:
        keys = [D1] if dataset.partition_by else [""]
        (uri,) = zone.lake.partition_uris(dataset, keys)
        found = [(f.name, f.type) for f in zone.lake.read_schema(uri)]
        assert found == [(c.name, c.arrow_type) for c in dataset.columns]
        assert pq.read_metadata(uri).row_group(0).column(0).compression == "ZSTD"


def test_a_build_with_nothing_new_touches_nothing(zone: Zone) -> None:
    zone.land(D1, of(0), of(1, order_item_id="2"))
    first = zone.build()
    files, versions, state = zone.files(), zone.versions(), zone.state.read_bytes()

    built = zone.build()

    assert (built.files, built.messages, changed(built)) == (0, 0, {})
    assert built.rows == first.rows
    assert (zone.files(), zone.versions(), zone.state.read_bytes()) == (files, versions, state)


def test_an_empty_lake_has_an_empty_star(zone: Zone) -> None:
    built = zone.build()

    assert set(built.rows.values()) == {0}
    assert check_star(zone.lake).rows == built.rows
    assert star_versions(zone.lake, DIM_CUSTOMER) == {"": EMPTY}
    assert star_versions(zone.lake, FACT_ORDER) == {}
    zone.land(D1, of())
    zone.build()
    zone.is_right()


def test_a_new_file_of_a_date_adds_to_it_and_only_it_is_read(zone: Zone) -> None:
    zone.land(D1, *(of(n, order_item_id=str(n)) for n in range(5)))
    zone.build()
    zone.land(D1, of(5, order_item_id="5"), of(6, order_item_id="3", market="corrected"))

    built = zone.build()

    zone.is_right()
    assert (built.files, built.messages, built.written, built.removed) == (1, 2, 2, 1)


def test_a_correction_moves_the_row_and_leaves_other_dates_alone(zone: Zone) -> None:
    for day, first in ((D1, 0), (D2, 10), (D3, 20)):
        zone.land(day, *(of(n, order_item_id=str(n)) for n in range(first, first + 3)))
    zone.build()
    files, versions = zone.files(*BY_DATE), zone.versions()
    zone.land(
        D3,
        of(30, order_item_id="1", customer_id="9", product_card_id="8", order_date="2/2/18 0:00"),
    )

    built = zone.build()

    zone.is_right()
    assert (built.written, built.removed) == (1, 1)
    assert changed(built)["fact_order"] == changed(built)["dim_metadata"] == (D1, D3)
    assert "dim_location" not in built.changed and "dim_shipping" not in built.changed
    after, now = zone.files(*BY_DATE), zone.versions()
    assert {name for name in files if files[name] == after[name]} == {
        name for name in files if D2 in name
    }
    assert {
        key
        for key in versions["fact_order"]
        if now["fact_order"][key] == versions["fact_order"][key]
    } == {D2}
    assert now["dim_customer"] != versions["dim_customer"]
    assert now["dim_location"] == versions["dim_location"]


def test_a_date_that_loses_its_last_row_is_empty_and_told_so(zone: Zone) -> None:
    zone.land(D1, of(0))
    zone.build()
    zone.land(D2, of(1, market="corrected"))

    built = zone.build()

    zone.is_right()
    for dataset in BY_DATE:
        assert star_versions(zone.lake, dataset)[D1] == EMPTY
        assert zone.lake.partition_uris(dataset, [D1]) == []
    assert changed(built)["fact_order"] == (D1, D2)


def test_an_earlier_message_that_lands_later_is_superseded(zone: Zone) -> None:
    zone.land(D1, of(5, market="later", customer_fname="Later"))
    zone.build()
    files = zone.files(*BY_DATE)
    zone.land(D2, of(1, market="earlier", customer_fname="Earlier", order_city="Earlier"))

    built = zone.build()

    zone.is_right()
    assert (built.written, built.superseded_by_later, built.removed) == (0, 1, 0)
    # Where any message went to is a place.
    assert changed(built) == {"dim_location": ("",), "fact_order": (D2,), "dim_metadata": (D2,)}
    assert star_versions(zone.lake, FACT_ORDER)[D2] == EMPTY
    assert zone.files(*BY_DATE) == files


def test_a_new_broker_begins_at_offset_0_and_its_messages_are_later(zone: Zone) -> None:
    zone.land(D1, of(50, market="first broker"))
    zone.build()
    zone.land(D1, Message(0, 0, **LATER).with_values(market="second broker"))

    zone.build()

    zone.is_right()
    assert [row["market"] for row in zone.rows["fact_order"]] == ["second broker"]


def test_a_replay_changes_the_messages_and_no_value(zone: Zone) -> None:
    messages = [of(n, order_item_id=str(n), customer_id=str(n % 3)) for n in range(9)]
    zone.land(D1, *messages)
    zone.build()
    before = zone.rows
    zone.land(D2, *(Message(0, m.offset, m.values, **LATER) for m in messages))

    built = zone.build()

    zone.is_right()
    assert (built.written, built.removed) == (9, 9)
    of_message = {"message_order", "metadata_id", "ingest_date"}

    def values(rows: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> list[Any]:
        return [{k: v for k, v in row.items() if k not in of_message} for row in rows[name]]

    for dataset in LANDED:
        if dataset is not DIM_METADATA:
            assert values(zone.rows, dataset.name) == values(before, dataset.name)


def test_asked_dates_are_built_anew_to_the_same_bytes(zone: Zone) -> None:
    zone.land(D1, *random_messages(random.Random(3), 30))
    zone.land(D2, *random_messages(random.Random(4), 30, **LATER))
    zone.build()
    files, versions = zone.files(), zone.versions()

    built = zone.build([D1])

    assert (built.dates, built.messages, changed(built)) == ((D1,), 30, {})
    assert (zone.files(), zone.versions()) == (files, versions)


def test_only_the_asked_dates_are_built(zone: Zone) -> None:
    zone.land(D1, of(0, order_item_id="1"))
    landed = list(zone.landed)
    zone.land(D2, of(1, order_item_id="2"))

    zone.build([D1])  # all, for there was no state
    zone.is_right()
    landed = list(zone.landed)
    zone.land(D2, of(2, order_item_id="3"))
    zone.land(D3, of(3, order_item_id="4"))
    zone.build([D3, "2026-02-01"])  # a day without a message is no failure

    assert zone.rows == expected_star([*landed, zone.landed[-1]])
    assert zone.build().dates == (D2,)
    zone.is_right()


@pytest.mark.parametrize("seed", [0, 2, 4])
def test_any_order_of_builds_ends_as_one_build_of_all(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    messages = random_messages(chance, 60)
    messages += random_messages(chance, 40, **LATER)
    zone = Zone(tmp_path / "step by step")
    # Files are of neighbours; they land in any order, on any day, and so do the builds.
    size = chance.choice([4, 9, 25])
    parts: dict[tuple[str, int], list[Message]] = {}
    for message in messages:
        parts.setdefault((message.incarnation, message.partition), []).append(message)
    files = [
        found[start : start + size]
        for found in parts.values()
        for start in range(0, len(found), size)
    ]
    chance.shuffle(files)
    removed = by_later = 0
    for file in files:
        zone.land(chance.choice(DAYS), *file)
        if chance.random() < 0.2:
            built = zone.build(chance.choice([None, None, [chance.choice(DAYS)]]))
            removed, by_later = removed + built.removed, by_later + built.superseded_by_later
    zone.build()
    zone.is_right()
    assert removed and by_later

    whole = Zone(tmp_path / "at once")
    for day, message in zone.landed:
        whole.land(day, message)
    whole.build()

    assert whole.rows == zone.rows
    assert whole.versions() == zone.versions()


def test_small_jobs_make_the_same_star(zone: Zone, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, day in enumerate(DAYS):
        for start in (0, 1000):
            found = random_messages(random.Random(number), 20)
            zone.land(
                day,
                *(
                    of(m.offset + start + 9000 * number, partition=m.partition, **m.values)
                    for m in found
                ),
            )
    monkeypatch.setattr(star, "_MOST_FILES_A_JOB", 2)
    monkeypatch.setattr(star, "_MOST_DATES_A_JOB", 1)

    built = zone.build()

    zone.is_right()
    assert built.files > 10


# ---- killed


class Killed(BaseException):
    pass


def steps(monkeypatch: pytest.MonkeyPatch, dying: int) -> Iterator[int]:
    """Die at the step of this number: a write of the state, or a half or a whole publish."""
    taken = 0
    write_state, publish = LocalLake.write_state, LocalStage.publish

    def step() -> bool:
        nonlocal taken
        taken += 1
        return taken == dying

    def dying_write(self: LocalLake, name: str, state: Any) -> None:
        if step():
            raise Killed
        write_state(self, name, state)

    def dying_publish(self: LocalStage, zone: str, dataset: Any, column: str, keys: Any) -> None:
        for key in keys:
            if step():
                raise Killed
            publish(self, zone, dataset, column, [key])

    monkeypatch.setattr(LocalLake, "write_state", dying_write)
    monkeypatch.setattr(LocalStage, "publish", dying_publish)
    yield dying
    monkeypatch.setattr(LocalLake, "write_state", write_state)
    monkeypatch.setattr(LocalStage, "publish", publish)
    yield taken


def second_batch(zone: Zone) -> None:
    """Rows move from both old dates to a new one, within a date, and D1 loses all it has."""
    zone.land(D3, of(20, order_item_id="1", customer_id="7"), of(21, order_item_id="11"))
    zone.land(D2, of(13, order_item_id="12", order_city="Elsewhere"))
    zone.land(D3, of(22, order_item_id="99", product_card_id="5"))


@pytest.mark.parametrize("lost", [False, True], ids=["incremental", "everything"])
def test_a_killed_build_is_mended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    dying, ended = 0, False
    while not ended:
        dying += 1
        zone = Zone(tmp_path / str(dying))
        zone.land(D1, of(0, order_item_id="1"))
        zone.land(D2, *(of(n, order_item_id=str(n)) for n in (10, 11, 12)))
        zone.build()
        old = zone.versions()
        second_batch(zone)
        if lost:
            zone.state.unlink()
        point = steps(monkeypatch, dying)
        next(point)
        try:
            build_star(zone.lake, SPARK, "run")
            ended = True
        except Killed:
            pass
        next(point)
        if not ended and zone.state.exists() and json.loads(zone.state.read_text())["open"]:
            # What is half there is loaded by nobody.
            with pytest.raises(StarError, match="half published"):
                star_versions(zone.lake, FACT_ORDER)
        # A build that is asked for another date mends it all the same.
        zone.build([D3] if dying % 2 and (lost or dying > 1) else None)
        zone.build()
        zone.is_right()
        new = zone.versions()
        assert new["fact_order"][D1] == EMPTY != old["fact_order"][D1]
        assert new["fact_order"][D2] != old["fact_order"][D2]
        assert zone.build().changed == {}
    assert dying > 12


# ---- state


def test_a_lost_state_is_made_again_of_all_messages(zone: Zone) -> None:
    for number, day in enumerate(DAYS):
        zone.land(
            day,
            *random_messages(
                random.Random(number),
                20,
                incarnation=f"i{number}",
                started_at=datetime(2026, 1, number + 1),
            ),
        )
        zone.build()
    versions = zone.versions()
    zone.state.unlink()
    stray = zone.root / "transformed_data/supply_chain/fact_order/ingest_date=2020-01-01"
    stray.mkdir()
    (source,) = zone.root.glob(f"transformed_data/supply_chain/fact_order/*{D3}/*.parquet")
    (stray / "part-0.parquet").hardlink_to(source)

    built = zone.build()

    assert built.messages == 60
    zone.is_right()
    assert star_versions(zone.lake, FACT_ORDER).pop("2020-01-01") == EMPTY
    found = zone.versions()
    assert found["dim_customer"] == versions["dim_customer"]
    assert found["fact_order"] == versions["fact_order"] | {"2020-01-01": EMPTY}


def test_a_lost_note_takes_the_whole_date_again(zone: Zone) -> None:
    zone.land(D1, of(0, order_item_id="1"))
    zone.build()
    (zone.root / "_state" / STATE / f"{D1}.json").unlink()
    zone.land(D1, of(1, order_item_id="2"))

    assert zone.build().messages == 2
    zone.is_right()


def test_a_broken_state_says_what_to_do(zone: Zone) -> None:
    zone.state.parent.mkdir(parents=True)
    zone.state.write_text('{"other": 1}')

    with pytest.raises(BrokenStateError, match="Delete it: the next build takes all messages"):
        zone.build()


def test_another_typing_builds_everything_anew(zone: Zone, monkeypatch: pytest.MonkeyPatch) -> None:
    zone.land(D1, of(0, order_item_id="1"))
    zone.land(D2, of(1, order_item_id="1"))
    zone.build()
    monkeypatch.setattr(star, "TYPING_VERSION", "next")

    assert zone.build().messages == 2
    zone.is_right()
    assert zone.build().messages == 0


def test_another_typing_needs_all_files_that_were_taken(
    zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = zone.land(D1, of(0, order_item_id="1"))
    zone.land(D2, of(1, order_item_id="2"))
    zone.build()
    file.unlink()
    monkeypatch.setattr(star, "TYPING_VERSION", "next")
    before = zone.rows

    with pytest.raises(StarError, match=f"{D1} the first, files that it holds are gone"):
        zone.build()
    assert zone.rows == before


def test_a_star_that_would_lose_rows_is_refused_unless_that_is_meant(zone: Zone) -> None:
    (file,) = zone.land(D1, *(of(n, order_item_id=str(n)) for n in range(3)))
    zone.land(D2, *(of(n, order_item_id=str(n)) for n in range(3, 10)))
    zone.build()
    file.unlink()
    zone.state.unlink()
    before, files = zone.rows, zone.files()

    with pytest.raises(
        ShrunkError, match=r"fact_order has 10 rows and would have 7.*--allow-empty"
    ):
        zone.build()
    assert (zone.rows, zone.files()) == (before, files)

    build_star(zone.lake, SPARK, "run", most_lost=0.3)
    del zone.landed[:3]
    zone.is_right()


def test_files_that_are_gone_can_be_let_go_with_another_typing(
    zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = zone.land(D1, of(0, order_item_id="1"))
    zone.land(D2, of(1, order_item_id="2"))
    zone.build()
    file.unlink()
    monkeypatch.setattr(star, "TYPING_VERSION", "next")

    built = build_star(zone.lake, SPARK, "run", most_lost=None)

    assert built.rows["fact_order"] == 1
    del zone.landed[0]
    zone.is_right()


def test_rows_of_files_that_are_gone_stay_and_somebody_is_told(zone: Zone) -> None:
    files = zone.land(D1, of(0, order_item_id="1"))
    files += zone.land(D2, of(1, order_item_id="2"))
    zone.land(D2, of(2, order_item_id="3"))
    zone.build()
    for file in files:
        file.unlink()

    assert zone.build().gone == 2
    zone.land(D2, of(3, order_item_id="4"))
    assert (built := zone.build()).gone == 2 and built.messages == 1
    zone.is_right()
    zone.build([D1, D2])
    zone.is_right()


def test_a_star_that_was_never_built_has_no_versions(zone: Zone) -> None:
    with pytest.raises(StarError, match=r"was never built.*Materialize it"):
        star_versions(zone.lake, FACT_ORDER)


# ---- what must not be


@pytest.mark.parametrize(
    ("column", "text", "table"),
    [
        ("sales", "none", "fact_order: .* sales in 1 rows"),
        ("order_date", "31/1/2018 0:00", "fact_order: .* order_date in 1 rows"),
        ("product_price", "9" * 30, "dim_product: .* product_price in 1 rows"),
        ("days_for_shipping_real", "1.5", "dim_shipping: .* days_for_shipping_real in 1 rows"),
    ],
)
def test_a_text_that_cannot_be_read_is_noticed(
    zone: Zone, column: str, text: str, table: str
) -> None:
    zone.land(D1, of(0))
    zone.build()
    before = zone.rows
    zone.land(D2, of(1, **{column: text}))

    with pytest.raises(StarImbalanceError, match=table):
        zone.build()
    assert zone.rows == before
    assert star_versions(zone.lake, FACT_ORDER).keys() == {D1}


def test_a_message_that_lies_in_two_files_is_noticed(zone: Zone) -> None:
    zone.land(D1, of(0, order_item_id="1"))
    zone.land(D1, of(0, order_item_id="1"), of(1, order_item_id="2"))

    with pytest.raises(StarImbalanceError, match="may lie in two files"):
        zone.build()
    assert not zone.files()


def test_rows_that_the_engine_loses_are_noticed(
    zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone.land(D1, *(of(n, order_item_id=str(n)) for n in range(4)))
    stage = star.stage_orders
    monkeypatch.setattr(star, "stage_orders", lambda m: stage(m).where("order_item_id <> 2"))

    with pytest.raises(StarImbalanceError, match="name 4 order items, Spark made rows of 3"):
        zone.build()
    assert not zone.files()


def test_an_incarnation_may_begin_as_hidden_files_do(zone: Zone) -> None:
    zone.land(D1, Message(incarnation="_x-1"), Message(offset=1, incarnation=".y"))

    zone.build()

    zone.is_right()


@pytest.mark.parametrize(
    "odd",
    [
        {"sales": "1.5E+2", "latitude": "5e-1"},
        {"order_item_discount": "5e-3"},
        {"order_date": "2018-01-31 22:56:00"},
        {"shipping_date": "1/31/2018 10:56 PM", "order_date": "1/31/18 22:56:07"},
        {"order_item_id": "2.0", "customer_id": "3.0", "days_for_shipping_real": "6.0"},
        {"order_zipcode": "725.0", "customer_zipcode": "NULL"},
        {"order_zipcode": "9.41E+04", "product_status": "yes", "product_category_id": "73.0"},
        {"latitude": "NULL", "longitude": "-", "order_item_profit_ratio": None},
    ],
)
def test_texts_that_are_not_the_plainest_are_found_in_any_file(
    zone: Zone, odd: dict[str, str | None]
) -> None:
    zone.land(D1, of(0, order_item_id="1"))
    zone.land(D1, of(1, **{"order_item_id": "2"} | odd))
    zone.land(D1, of(2, order_item_id="3"))

    zone.build()

    zone.is_right()


def test_codes_that_a_spreadsheet_wrote_are_no_other_places(zone: Zone) -> None:
    zips = ["94103", "94103.0", "94103.00", "725.0", "725", "00725", "NULL", "", None]
    zone.land(D1, *(of(n, order_item_id=str(n), order_zipcode=text) for n, text in enumerate(zips)))

    zone.build()

    zone.is_right()
    found = [row["order_zipcode"] for row in zone.rows["dim_location"]]
    assert sorted(found, key=str) == ["00725", "725", "94103", None]


# ---- checks


@pytest.mark.parametrize(
    ("dataset", "query", "found"),
    [
        (
            FACT_ORDER,
            "select * replace (70707::bigint as customer_id) from t",
            "orphans customer_id 2",
        ),
        (FACT_ORDER, "from t union all from t", "duplicates fact_order 2"),
        (DIM_METADATA, "from t limit 1", "orphans metadata_id 1"),
        (FACT_ORDER, "from t limit 1", "unused 1"),
        (DIM_PRODUCT, "from t limit 0", "orphans product_card_id 2"),
        (DIM_LOCATION, "from t union all from t", "duplicates dim_location 1"),
        (DIM_CUSTOMER, "select * exclude (email) from t", "drifted dim_customer email string"),
    ],
)
def test_a_star_that_is_wrong_is_told(zone: Zone, dataset: Dataset, query: str, found: str) -> None:
    zone.land(D1, of(0, order_item_id="1"), of(1, order_item_id="2"))
    zone.build()
    (uri,) = zone.lake.partition_uris(dataset, [D1 if dataset.partition_by else ""])
    with duckdb.connect() as connection:
        connection.execute(f"create table t as from read_parquet('{uri}')")
        connection.execute(f"copy ({query}) to '{uri}' (format parquet)")

    checked = check_star(zone.lake)

    kind, *rest = found.split(" ")
    value = getattr(checked, kind)
    if kind == "drifted":
        assert rest[1] in value[rest[0]]
    elif kind == "unused":
        assert value == int(rest[0])
    else:
        assert value == {rest[0]: int(rest[1])}

"""Tests of retail_assets.defs.supply_chain.star: the merge, held against plain Python."""

import random
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

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
    MESSAGES,
)
from retail_assets.defs.supply_chain.star import (
    StarBuilt,
    build_star,
    check_star,
    star_versions,
    typed,
)
from retail_assets.defs.supply_chain.star.merge import StarImbalanceError
from retail_assets.defs.supply_chain.star.new import EMPTY, StarError
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.lake.tables import LakeTable, TransactionLostError, UnknownVersionError
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

    def copied(self, name: str) -> "Zone":
        copy = Zone(self.root.with_name(name))
        shutil.copytree(self.root, copy.root)
        copy.landed = list(self.landed)
        return copy

    def land(self, day: str, *messages: Message) -> list[str]:
        self.landed += [(day, message) for message in messages]
        return land(self.root, day, messages)

    def lose(self, *names: str) -> None:
        """Files of messages are gone, and the log says so."""
        self.lake.table(MESSAGES).commit([], remove=lambda file: file.name in names)

    def build(self, dates: Collection[str] = (), **how: bool) -> StarBuilt:
        built = build_star(self.lake, SPARK, "run", dates, **how)
        assert built.messages == (
            built.written + built.superseded_within + built.superseded_by_later
        )
        return built

    @property
    def rows(self) -> dict[str, list[dict[str, Any]]]:
        return read_star(self.root)

    def is_right(self) -> None:
        assert self.rows == expected_star(self.landed)
        checked = check_star(self.lake)
        assert checked == {name: (len(rows), []) for name, rows in self.rows.items()}

    def versions(self) -> dict[str, dict[str, str]]:
        return {dataset.name: star_versions(self.lake, dataset) for dataset in LANDED}

    def files(self, *tables: Dataset) -> set[str]:
        """Which files there are: one that is written again has another name."""
        return {f.name for d in tables or LANDED for f in self.lake.table(d).snapshot().files}

    def commits(self) -> dict[str, int]:
        return {dataset.name: self.lake.table(dataset).snapshot().version for dataset in LANDED}


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
    zone.build()
    files, versions, commits = zone.files(), zone.versions(), zone.commits()

    built = zone.build()

    assert (built.files, built.messages, changed(built)) == (0, 0, {})
    assert (zone.files(), zone.versions(), zone.commits()) == (files, versions, commits)


def test_an_empty_lake_has_an_empty_star(zone: Zone) -> None:
    zone.build()

    assert check_star(zone.lake) == dict.fromkeys((x.name for x in LANDED), (0, []))
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
    now = zone.versions()
    assert files & zone.files(*BY_DATE) == {name for name in files if D2 in name}
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
    assert zone.files(*BY_DATE) > files
    assert zone.lake.table(FACT_ORDER).snapshot().rows_of(DAYS) == {D1: 1, D2: 0, D3: 0}


def test_the_latest_message_of_an_item_wins_of_one_file_and_of_many(zone: Zone) -> None:
    zone.land(D1, of(7, market="by a higher offset", partition=1), of(9, market="highest"))
    zone.build()
    zone.is_right()
    assert [row["market"] for row in zone.rows["fact_order"]] == ["highest"]
    zone.land(D1, Message(0, 0, **LATER).with_values(market="by a later incarnation"))
    zone.land(D2, of(8, market="between"))

    zone.build()

    zone.is_right()
    assert [row["market"] for row in zone.rows["fact_order"]] == ["by a later incarnation"]


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


def test_what_is_new_is_taken_with_asked_dates(zone: Zone) -> None:
    zone.land(D1, of(0, order_item_id="1"))
    zone.land(D2, of(1, order_item_id="2"), of(2, order_item_id="3"))
    zone.build()
    zone.land(D3, of(3, order_item_id="4"))

    built = zone.build([D2, "2026-02-01"])  # a day without a message is no failure

    zone.is_right()
    assert (built.dates, built.messages) == ((D2, D3), 3)
    assert zone.build().messages == 0


@pytest.mark.parametrize("seed", [4])
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
            built = zone.build(chance.choice([(), (), [chance.choice(DAYS)]]))
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

    monkeypatch.setattr(typed, "_MOST_BYTES_A_JOB", 1)

    built = zone.build()

    zone.is_right()
    assert built.files > 10


# ---- killed


class Killed(BaseException):
    pass


@contextmanager
def dying_at(position: int) -> Iterator[None]:
    """Die before the commit of this number to a table of the star."""
    commit, done = LakeTable.commit, 0

    def dying(self: LakeTable, *arguments: Any, **named: Any) -> Any:
        nonlocal done
        if self.dataset in LANDED and (done := done + 1) == position:
            raise Killed
        return commit(self, *arguments, **named)

    with patch.object(LakeTable, "commit", dying):
        yield


def first_batch(zone: Zone) -> None:
    zone.land(D1, of(0, order_item_id="1"))
    zone.land(D2, *(of(n, order_item_id=str(n)) for n in (10, 11, 12)))


def second_batch(zone: Zone) -> None:
    """Rows move from both old dates to a new one, within a date, and D1 loses all it has."""
    zone.land(D3, of(20, order_item_id="1", customer_id="7"), of(21, order_item_id="11"))
    zone.land(D2, of(13, order_item_id="12", order_city="Elsewhere"))
    zone.land(D3, of(22, order_item_id="99", product_card_id="5"))


def third_batch(zone: Zone) -> None:
    """Lands after the kill, and supersedes what the killed build took."""
    zone.land(D1, of(30, order_item_id="11", customer_fname="Later"), of(31, order_item_id="12"))


@pytest.mark.parametrize("case", ["first", "new messages", "typing", "a table is gone", "unread"])
def test_a_build_that_is_killed_before_any_commit_is_mended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    prepared = Zone(tmp_path / "prepared")
    first_batch(prepared)
    if case != "first":
        prepared.build()
    second_batch(prepared)
    if case == "a table is gone":
        shutil.rmtree(prepared.root / DIM_CUSTOMER.location)
    elif case == "typing":
        monkeypatch.setattr(star, "TYPING_VERSION", "99")
    elif case == "unread":
        forget_versions(monkeypatch)
    undisturbed = prepared.copied("undisturbed")
    undisturbed.build()
    more = undisturbed.copied("more")
    third_batch(more)
    more.build()

    for position in range(1, len(LANDED) + 1):
        killed = prepared.copied(f"killed at {position}")
        with pytest.raises(Killed), dying_at(position):
            killed.build()
        if position > 1 or case == "a table is gone":
            # What is half there is loaded by nobody.
            with pytest.raises(StarError, match="half published"):
                star_versions(killed.lake, FACT_ORDER)
        if position % 2:
            third_batch(killed)
        killed.build()

        killed.is_right()
        assert killed.versions() == (more if position % 2 else undisturbed).versions()
        assert killed.build().files == 0 or case == "unread"


def test_a_build_that_another_overtook_publishes_nothing(zone: Zone) -> None:
    """Without the lock, as where a lease was lost."""
    first_batch(zone)
    zone.build()
    second_batch(zone)
    typing = int(star.TYPING_VERSION)
    plan = star.plan_build(zone.lake, MESSAGES, LANDED, typing, (), anew=False)
    zone.build()
    files = zone.files()

    with (
        patch.object(star, "plan_build", lambda *_, **__: plan),
        pytest.raises(TransactionLostError, match="another writer went on"),
    ):
        zone.build()
    assert zone.files() == files


# ---- what a build starts from


def forget_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The messages' table has no former version any more."""
    snapshot = LakeTable.snapshot

    def forgotten(self: LakeTable, version: int | None = None) -> Any:
        if version is not None and self.dataset is MESSAGES:
            raise UnknownVersionError(str(version))
        return snapshot(self, version)

    monkeypatch.setattr(LakeTable, "snapshot", forgotten)


def test_all_messages_are_taken_where_their_former_version_is_gone(
    zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = zone.land(D1, of(0, order_item_id="1"))
    zone.land(D2, of(1, order_item_id="2"))
    zone.build()
    zone.lose(file)
    forget_versions(monkeypatch)

    assert zone.build().messages == 1

    zone.is_right()  # what is there stays, though its message be gone


def test_a_commit_without_messages_is_noted_and_nothing_is_written(zone: Zone) -> None:
    zone.land(D1, of(0))
    zone.build()
    files, versions = zone.files(), zone.versions()
    zone.land(D1)
    zone.lake.table(MESSAGES).commit([], transactions={"position": (None, 1)})

    assert (zone.build().messages, zone.files(), zone.versions()) == (0, files, versions)
    commits = zone.commits()
    zone.build()
    assert zone.commits() == commits


def test_the_history_says_of_which_messages_a_table_is(zone: Zone) -> None:
    zone.land(D1, of(0))
    zone.land(D2, of(1, order_item_id="2"))
    zone.build()

    for dataset in LANDED:
        (commit,) = zone.lake.table(dataset).history()
        told = commit.told
        assert (told["source"], told["source_version"]) == (MESSAGES.table, "1")
        assert (told["asset"], told["run_id"]) == ("supply_chain_star", "run")


def test_a_table_that_is_gone_is_made_again_with_all_others(zone: Zone) -> None:
    for number, day in enumerate(DAYS):
        at = {"incarnation": f"i{number}", "started_at": datetime(2026, 1, number + 1)}
        zone.land(day, *random_messages(random.Random(number), 20, **at))
        zone.build()
    versions, files = zone.versions(), zone.files()
    shutil.rmtree(zone.root / DIM_METADATA.location)

    built = zone.build()

    assert built.messages == 60
    zone.is_right()
    assert zone.versions() == versions
    assert not zone.files() & files


def test_a_star_is_built_anew_where_that_is_asked(zone: Zone) -> None:
    first_batch(zone)
    zone.build()
    versions = zone.versions()
    for name in zone.files(FACT_ORDER):
        rows = pq.ParquetFile(zone.root / name).read()
        pq.write_table(rows.slice(0, 0), zone.root / name)
    assert check_star(zone.lake)[DIM_METADATA.name].faults == ["4 rows are of no row of fact_order"]

    built = zone.build(anew=True)

    assert (built.messages, changed(built)) == (4, {})
    zone.is_right()
    assert zone.versions() == versions


def test_another_typing_builds_everything_anew(zone: Zone, monkeypatch: pytest.MonkeyPatch) -> None:
    zone.land(D1, of(0, order_item_id="1"))
    zone.land(D2, of(1, order_item_id="1"))
    zone.build()
    monkeypatch.setattr(star, "TYPING_VERSION", "99")

    assert zone.build().messages == 2
    zone.is_right()
    assert zone.build().messages == 0


@pytest.mark.parametrize("replaced", [False, True], ids=["lost", "of an earlier message"])
def test_a_star_that_would_lose_rows_is_refused_unless_that_is_meant(
    zone: Zone, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """Of one message of a hundred: no row is lost in silence, nor becomes what it was before."""
    zone.land(D1, *(of(n, order_item_id=str(n)) for n in range(100)))
    (file,) = zone.land(D2, of(100, order_item_id="7" if replaced else "100"))
    zone.build()
    zone.lose(file)
    monkeypatch.setattr(star, "TYPING_VERSION", "99")
    before, files = zone.rows, zone.files()

    with pytest.raises(StarError, match=r"1 of the 10[01] rows of .*fact_order.*--allow-empty"):
        zone.build()
    assert (zone.rows, zone.files()) == (before, files)

    zone.build(allow_emptying=True)
    del zone.landed[-1]
    zone.is_right()
    assert star_versions(zone.lake, FACT_ORDER)[D2] == EMPTY


def test_rows_of_files_that_are_gone_stay_and_somebody_is_told(zone: Zone) -> None:
    files = zone.land(D1, of(0, order_item_id="1"))
    files += zone.land(D2, of(1, order_item_id="2"))
    zone.land(D2, of(2, order_item_id="3"))
    zone.build()
    zone.lose(*files)
    zone.land(D2, of(3, order_item_id="4"))

    built = zone.build()

    assert (built.gone, built.messages) == (2, 1)
    zone.is_right()
    assert zone.build([D1, D2]).gone == 0
    zone.is_right()


def test_messages_that_are_restored_are_taken_again(zone: Zone) -> None:
    zone.land(D1, of(0, order_item_id="1"))
    zone.build()
    zone.land(D2, of(1, order_item_id="1", market="later"))
    messages = zone.lake.table(MESSAGES)
    messages.restore(0)

    assert (zone.build().messages, zone.rows["fact_order"][0]["market"]) == (0, "Pacific Asia")
    messages.restore(1)
    assert zone.build().messages == 1
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


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda rows: rows.where("order_item_id <> 2"), "Spark made 3 rows, whose sum up to 4"),
        (lambda rows: rows.unionAll(rows.limit(1)), "Spark made 5 rows"),
        (
            lambda rows: rows.withColumn("order_item_id", rows.order_item_id % 3),
            "Spark made 4 rows, whose sum up to 3",
        ),
    ],
    ids=["lost", "made up", "another"],
)
def test_rows_that_the_engine_loses_are_noticed(
    zone: Zone, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any], found: str
) -> None:
    zone.land(D1, *(of(n, order_item_id=str(n)) for n in range(4)))
    made = typed.type_messages
    monkeypatch.setattr(typed, "type_messages", lambda *how: change(made(*how)))

    with pytest.raises(StarImbalanceError, match=f"of 4 messages, .* sum up to 6, {found}"):
        zone.build()
    assert not zone.files()


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
    ("dataset", "query", "at_fault", "found"),
    [
        (
            FACT_ORDER,
            "select * replace (70707::bigint as customer_id) from t",
            FACT_ORDER,
            "2 rows have a customer_id of no dimension",
        ),
        (FACT_ORDER, "from t union all from t", FACT_ORDER, "2 rows have a key that another row"),
        (DIM_METADATA, "from t limit 1", FACT_ORDER, "1 rows have a metadata_id of no dimension"),
        (FACT_ORDER, "from t limit 1", DIM_METADATA, "1 rows are of no row of fact_order"),
        (DIM_PRODUCT, "from t limit 0", FACT_ORDER, "2 rows have a product_card_id of no"),
        (DIM_LOCATION, "from t union all from t", DIM_LOCATION, "1 rows have a key that another"),
        (DIM_CUSTOMER, "select * exclude (email) from t", DIM_CUSTOMER, "email string"),
    ],
)
def test_a_star_that_is_wrong_is_told(
    zone: Zone, dataset: Dataset, query: str, at_fault: Dataset, found: str
) -> None:
    zone.land(D1, of(0, order_item_id="1"), of(1, order_item_id="2"))
    zone.build()
    (uri,) = zone.lake.partition_uris(dataset, [D1 if dataset.partition_by else ""])
    with duckdb.connect() as connection:
        connection.execute(f"create table t as from read_parquet('{uri}')")
        connection.execute(f"copy ({query}) to '{uri}' (format parquet)")

    faults = {name: x.faults for name, x in check_star(zone.lake).items() if x.faults}

    assert list(faults) == [at_fault.name]
    assert [found in told for told in faults[at_fault.name]] == [True]

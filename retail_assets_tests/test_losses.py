"""The rule on tables that shrink, and what is told of quarantined rows."""

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retail_assets.losses import (
    Quarantined,
    ShrunkError,
    check_quarantine,
    public_reason,
    refuse_to_shrink,
)

COUNT = st.integers(0, 10**9)


@given(had=COUNT, has=COUNT, most_lost=st.floats(0, 1))
def test_what_shrinks_by_more_than_the_share_is_refused(
    had: int, has: int, most_lost: float
) -> None:
    if had - has <= had * most_lost:
        refuse_to_shrink("t", had, has, Quarantined(), most_lost=most_lost, force="say so")
        return
    with pytest.raises(ShrunkError, match="say so") as refused:
        refuse_to_shrink("t", had, has, Quarantined(), most_lost=most_lost, force="say so")
    assert f"{had:,}" in str(refused.value) and f"{has:,}" in str(refused.value)


def test_a_first_delivery_that_is_quarantined_whole_is_refused() -> None:
    with pytest.raises(ShrunkError, match=r"all that was delivered .*6 rows quarantined; no date"):
        refuse_to_shrink("t", 0, 0, Quarantined(6, 0, "no date"), most_lost=0.1, force="say so")
    refuse_to_shrink("t", 0, 0, Quarantined(), most_lost=0.1, force="say so")
    refuse_to_shrink("t", 0, 1, Quarantined(6, 0, "no date"), most_lost=0.1, force="say so")


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("birthday: expected a day, found '31.2.1990'", "birthday: expected a day"),
        ("quantity: expected a whole number, found 'x'",) * 2,
        ("expected 8 fields, found 3",) * 2,
    ],
)
def test_a_reason_is_told_without_personal_values(reason: str, shown: str) -> None:
    assert public_reason(reason, ["birthday"]) == shown


def test_what_is_told_adds_up() -> None:
    found = Quarantined(2) + Quarantined(1, 3, "why") + Quarantined(0, 0, "later")
    assert found == Quarantined(3, 3, "why")
    assert str(found) == "3 rows quarantined, 3 values left out; why"
    assert found.metadata == {"quarantined": 3, "left_out_values": 3, "first_reason": "why"}


def test_the_check_warns_and_blocks_nothing() -> None:
    key = dg.AssetKey("t")
    assert check_quarantine(key, Quarantined()).passed
    warned = check_quarantine(key, Quarantined(1, 0, "why"))
    assert not warned.passed and warned.severity is dg.AssetCheckSeverity.WARN
    assert warned.description is not None and "1 rows quarantined; why" in warned.description


@given(
    rows=st.integers(0, 10**9),
    values=st.integers(0, 10**9),
    first=st.none() | st.text(min_size=1),
    unit=st.sampled_from(["rows", "messages"]),
)
def test_what_a_materialization_tells_is_read_as_it_was_told(
    rows: int, values: int, first: str | None, unit: str
) -> None:
    found = Quarantined(rows, values, first, unit)
    metadata = dg.AssetMaterialization("t", metadata=found.metadata).metadata
    assert Quarantined.of_metadata(metadata) == found


def test_a_materialization_that_tells_nothing_has_lost_nothing() -> None:
    told = dg.AssetMaterialization("t", metadata={"rows_landed": 3}).metadata
    assert not Quarantined.of_metadata(told)

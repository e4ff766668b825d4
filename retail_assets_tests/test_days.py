"""Tests of retail_assets.days."""

from collections.abc import Sequence
from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from retail_assets.days import contiguous_ranges

day_sets = st.sets(st.integers(0, 45)).map(
    lambda found: {(date(2011, 12, 15) + timedelta(days=n)).isoformat() for n in found}
)


def expand(ranges: Sequence[tuple[str, str]]) -> list[str]:
    pairs = [(date.fromisoformat(a), date.fromisoformat(b)) for a, b in ranges]
    return [
        (first + timedelta(days=n)).isoformat()
        for first, last in pairs
        for n in range((last - first).days + 1)
    ]


@given(days=day_sets, data=st.data())
def test_ranges_cover_exactly_the_days_with_as_few_as_may_be(
    days: set[str], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations([*days, *list(days)[:3]]))
    ranges = contiguous_ranges(shuffled)

    assert expand(ranges) == sorted(days)
    beginnings = [
        d for d in days if (date.fromisoformat(d) - timedelta(days=1)).isoformat() not in days
    ]
    assert len(ranges) == len(beginnings)
    assert ranges == contiguous_ranges(days) == sorted(ranges)


def test_ranges_join_across_months_years_and_leap_days() -> None:
    days = ["2011-12-31", "2012-01-01", "2012-02-28", "2012-02-29", "2012-03-01", "2013-03-01"]

    assert contiguous_ranges(days) == [
        ("2011-12-31", "2012-01-01"),
        ("2012-02-28", "2012-03-01"),
        ("2013-03-01", "2013-03-01"),
    ]

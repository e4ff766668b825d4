"""Tests of retail_assets.days."""

from collections.abc import Sequence
from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from retail_assets.days import changed_window, contiguous_ranges

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


# ---- changed_window

versions = st.dictionaries(
    st.integers(0, 30).map(lambda n: (date(2011, 2, 15) + timedelta(days=n)).isoformat()),
    st.sampled_from(["", "v1", "v2"]),
)


def days_of(window: list[list[str]]) -> list[str]:
    days = []
    for first, last in window:
        day = date.fromisoformat(first)
        while day <= date.fromisoformat(last):
            days.append(day.isoformat())
            day += timedelta(days=1)
    return days


@given(landed=versions, built=versions)
def test_the_window_is_exactly_the_days_that_differ(
    landed: dict[str, str], built: dict[str, str]
) -> None:
    differing = sorted({day for day, _ in landed.items() ^ built.items()})

    assert days_of(changed_window(landed, built)) == differing


@given(landed=versions)
def test_nothing_changed_is_no_window(landed: dict[str, str]) -> None:
    assert changed_window(landed, dict(landed)) == []


def test_a_first_build_takes_every_day() -> None:
    landed = {"2011-02-27": "a", "2011-02-28": "b", "2011-03-01": "c", "2011-03-03": "d"}

    assert changed_window(landed, {}) == [
        ["2011-02-27", "2011-03-01"],
        ["2011-03-03", "2011-03-03"],
    ]


def test_a_day_that_vanished_is_in_the_window() -> None:
    built = {"2011-02-27": "a", "2011-02-28": "b"}

    assert changed_window({"2011-02-27": "a"}, built) == [["2011-02-28", "2011-02-28"]]


def test_a_day_that_became_empty_is_in_the_window() -> None:
    assert changed_window({"2011-02-27": ""}, {"2011-02-27": "a"}) == [["2011-02-27", "2011-02-27"]]

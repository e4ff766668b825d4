"""Tests of retail_assets.domain: what of a plan is not any domain's own."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retail_assets.domain import Execution, PlanError, parse_partitions


@given(first=st.dates(), last=st.dates())
def test_a_range_is_its_two_days_where_it_is_not_backwards(first: date, last: date) -> None:
    text = f"{first}...{last}"

    if last < first:
        with pytest.raises(PlanError, match="--partitions"):
            parse_partitions(text)
    else:
        assert parse_partitions(text) == (str(first), str(last))


@given(day=st.dates())
def test_one_day_is_a_range_of_itself(day: date) -> None:
    assert parse_partitions(str(day)) == (str(day), str(day))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "2011-11-14...",
        "...2011-11-14",
        "2011-11-14..2011-11-15",
        "2011-11-14...2011-11-15...2011-11-16",
        "2011-11-31",
        "14/11/2011",
        "2011-11",
        " 2011-11-14",
        "2011-11-14T00:00",
        "latest",
    ],
)
def test_anything_else_is_refused_with_the_valid_forms(text: str) -> None:
    with pytest.raises(PlanError) as error:
        parse_partitions(text)

    assert repr(text) in str(error.value)
    assert "expected 2011-11-14 or 2010-12-01...2011-12-09" in str(error.value)


def test_an_execution_takes_its_range_by_tags_or_has_none() -> None:
    assert Execution("job").tags == {}
    assert Execution("job", ("2018-12-31", "2022-12-31")).tags == {
        "dagster/asset_partition_range_start": "2018-12-31",
        "dagster/asset_partition_range_end": "2022-12-31",
    }

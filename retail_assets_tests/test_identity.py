"""Tests of retail_assets.identity, on the embedded engine; the parity test runs it on a JVM too."""

from collections.abc import Sequence
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from retail_assets.identity import identity_of
from retail_assets.resources.spark import EMBEDDED, SparkResource
from retail_assets_tests.identities import expected_identity

SPARK = SparkResource(master=EMBEDDED)
TEXTS = st.none() | st.text(st.sampled_from("\x1e\x1f1é\U0001f642") | st.characters(codec="utf-8"))


def identities(rows: Sequence[tuple[str | None, ...]]) -> list[str]:
    from pyspark.sql import functions as F  # noqa: N812

    columns = [f"c{n}" for n in range(len(rows[0]))]
    schema = ", ".join(f"{column} string" for column in ("n", *columns))
    numbered = [(f"{n:09d}", *row) for n, row in enumerate(rows)]
    frame = SPARK.session.createDataFrame(numbered, schema)
    found = frame.select("n", identity_of([F.col(column) for column in columns]).alias("id"))
    return [row["id"] for row in sorted(found.collect(), key=lambda row: row["n"])]


def test_all_short_rows_of_separators_differ() -> None:
    texts = [None, "", "\x1e", "\x1f", "1", "\x1e\x1f", "\x1f\x1e", "\x1f1", "1\x1f1\x1f0"]
    rows = list(product(texts, repeat=3))
    assert len(set(identities(rows))) == len(rows)


@settings(deadline=None, max_examples=25)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=200))
def test_any_texts_have_the_identity_that_plain_python_makes(
    rows: list[tuple[str | None, ...]],
) -> None:
    assert identities(rows) == [expected_identity(row) for row in rows]

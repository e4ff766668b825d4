"""The typed rows of a source: of which day they are, what is wrong with them, what they come to.

Here: SQL over what a RowTyping made. Not here: how a text is typed, the lake, Dagster.
"""

from collections.abc import Iterable, Sequence
from datetime import date
from typing import TYPE_CHECKING

from retail_assets.days import contiguous_ranges
from retail_assets.feeds.snapshot import SnapshotFeed
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.settings import source_variables

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

# One row of a source may be told for several values that were left out.
_TOLD = "case when _reason is null then coalesce(_left_out, []) else [_reason] end"


class TypedRows:
    """A feed's typed rows, which ``relation`` is in SQL, on a connection that the caller owns."""

    def __init__(self, connection: "DuckDBPyConnection", feed: SnapshotFeed, relation: str) -> None:
        self._connection, self._feed = connection, feed
        self.typing = feed.row_typing()
        self._from, self._day = f"from {relation}", f'"{feed.day}"'

    def good(self, where: str) -> "DuckDBPyRelation":
        """The dataset's rows that the predicate takes, in the order of the source."""
        return self._connection.sql(
            f"select {self.typing.columns} {self._from} where _reason is null and {where}"
        )

    def quarantined(self, where: str) -> "DuckDBPyRelation":
        """The quarantine's rows that the predicate takes, with their day."""
        return self._connection.sql(f"""
            select {self._day}, _source as source, _row as "row", unnest({_TOLD}) as reason,
                {self.typing.text} as text
            {self._from} where (_reason is not null or len(_left_out) > 0) and {where}
        """)

    def outside(self, first: date, last: date) -> "pa.Table":
        """The quarantine's rows for what no day can take: without one, or outside the span.

        One row a copy.
        """
        day, moment = self._day, self.typing.moment
        _, start, end, _ = source_variables(self._feed.name)
        expected = f"{moment}: expected a day inside {first}...{last} ({start}, {end}), found "
        found = self._connection.sql(f"""
            select _source as source, _row as "row",
                coalesce(_reason, '{expected}' || "{moment}") as reason,
                {self.typing.text} as text
            {self._from}, range(_copies)
            where {day} is null or {day} not between date '{first}' and date '{last}'
            order by _source, _row
        """)
        return found.to_arrow_table().cast(self._feed.quarantine.arrow_schema)

    def rejected(self, rows: Iterable[tuple[str, int | None, str, str]]) -> "pa.Table":
        """Rows that never became fields (source, row, reason, text) as the quarantine's."""
        import json

        import pyarrow as pa

        schema = self._feed.quarantine.arrow_schema
        table = [(*rest, json.dumps([text])) for *rest, text in rows]
        return pa.Table.from_pylist(
            [dict(zip(schema.names, x, strict=True)) for x in table], schema
        )

    def ledgers(self, first: date, last: date) -> dict[str, Ledger]:
        """The ledger of each day from ``first`` to ``last``, by ISO date.

        The fingerprint does not depend on the order of the rows: it sums the halves of their
        identities.
        """
        day = self._day
        rows = self._connection.sql(f"""
            with typed as (
                select {day}, _reason, _text, _copies,
                    case when _reason is null then {self.typing.identity} end as identity,
                    case when _reason is null then coalesce(len(_left_out), 0) end as left_out
                {self._from} where {day} between date '{first}' and date '{last}'
            )
            select
                {day},
                concat_ws(
                    '-',
                    count(identity),
                    sum(('0x' || identity[:15])::bigint::hugeint),
                    sum(('0x' || identity[16:30])::bigint::hugeint),
                    sum(_copies),
                    coalesce(sum(hash(_text) // 4) filter (_reason is not null or left_out > 0), 0)
                ),
                sum(_copies)::bigint,
                (sum(_copies) - count(*))::bigint,
                (count(*) filter (_reason is not null))::bigint,
                coalesce(sum(left_out), 0)::bigint
            from typed group by all order by all
        """)
        return {str(day): Ledger(*ledger) for day, *ledger in rows.fetchall()}

    def by_day(self, where: str) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
        """The sums that the feed tells, by name, and the first reason, of each day that has any."""
        day, sums = self._day, self._feed.sums
        columns = "".join(f', sum("{column}")::varchar' for column in sums.values())
        summed = self.good(where).aggregate(f"{day}::varchar{columns}", day)
        reasons = self.quarantined(where).aggregate(
            f'{day}::varchar, first(reason order by source, "row")', day
        )
        told = {day: dict(zip(sums, values, strict=True)) for day, *values in summed.fetchall()}
        return told, dict(reasons.fetchall())


def day_predicate(column: str, days: Sequence[str]) -> str:
    """A predicate with literal bounds that takes exactly ``days``, as few ranges as may be."""
    ranges = " or ".join(
        f"{column} between date '{first}' and date '{last}'"
        for first, last in contiguous_ranges(days)
    )
    return f"({ranges or 'false'})"

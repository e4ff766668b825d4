"""Online retail, frame to frame: text -> typed rows -> the landed table's rows.

Frames are DuckDB relations and Arrow streams on a connection that the caller owns. Not here:
files, the lake, Dagster (assets.py, source.py).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Literal, Protocol

from retail_assets.dataset import MISSING_WORDS
from retail_assets.days import contiguous_ranges
from retail_assets.defs.online_retail.contract import LINE_TYPES, QUARANTINE, SOURCE_COLUMNS
from retail_assets.errors import PermanentError
from retail_assets.moments import Moments, Order, UndecidedOrderError

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

# Bump where the typing of a source changes: what was typed before is then typed again.
TYPING_VERSION = "2"

_FIELD_SEPARATOR = "chr(31)"
_NULL_MARK = "chr(30)"
_BLANKS = "concat(' ', chr(9), chr(10), chr(13), chr(160))"
# Of plain texts two less stand for no value: NA is Namibia as well.
_MISSING_TEXTS = tuple(word for word in MISSING_WORDS if word not in ("NA", "N/A"))
_NUMBERS = ("quantity", "unit_price", "customer_id")
_CODES = ("invoice_no", "stock_code")
_TRIMMED = (*_CODES, "country", *_NUMBERS)
# Semicolons part fields where commas are decimal ones. Beside others a comma has to prove it: three
# digits behind it may be thousands.
_COMMA = r"^[^.]*,[0-9]*\s*$"
_PROVED_COMMA = r"^[^.]*,([0-9]{1,2}|[0-9]{4,})\s*$"
# In batches: the time that a row's text is.
AT = "moment"
# UCI's own word for a country that is not known.
NO_COUNTRY = "Unspecified"


class SchemaDriftError(PermanentError):
    """A source's header lacks columns; the message shows expected and found."""


class AmbiguousDatesError(PermanentError):
    """A source's dates can be read in two orders; the message names one and the setting."""


@dataclass(frozen=True)
class HeaderMatch:
    """Where each of our columns stands in a source's header, and what else it holds."""

    positions: dict[str, int]
    extra: tuple[str, ...]


class TextRows(Protocol):
    """What a reader of files hands over: a label, a header, batches of text by position."""

    label: str
    file: str
    header: list[str]
    batches: "Iterator[pa.RecordBatch]"
    delimiter: str
    has_marked_cells: bool

    @property
    def schema(self) -> "pa.Schema":
        """Arrow schema of the batches: ``row`` int64, then text columns "0", "1", ..."""
        ...


@dataclass(frozen=True)
class Reading:
    """How the texts of a table are read that can be read in two ways."""

    order: Order = "mdy"
    decimal: Literal[".", ","] = "."


@dataclass
class ReadTable:
    """One table on its way to DuckDB, with what its columns as a whole say of their reading.

    ``marks`` are the texts that stand for cells without a value; ``moments`` reads the dates, which
    all tables of a file share. After their batches were read, ``settle`` says in which reading all
    of them are right: another one than was given means that the table has to be read again.
    """

    table: TextRows
    match: "HeaderMatch"
    reading: Reading
    moments: Moments
    marks: frozenset[str] = frozenset()
    _has_decimal_comma: bool = field(init=False, default=False)

    @property
    def batches(self) -> "pa.RecordBatchReader":
        """The table's batches, and the time that each row's text is: column AT."""
        import pyarrow as pa

        schema = self.table.schema.append(pa.field(AT, pa.timestamp("us")))
        return pa.RecordBatchReader.from_batches(schema, self._read(schema))

    def _read(self, schema: "pa.Schema") -> "Iterator[pa.RecordBatch]":
        import pyarrow as pa
        import pyarrow.compute as pc

        at, price = (
            str(self.match.positions[column]) for column in ("invoice_datetime", "unit_price")
        )
        for batch in self.table.batches:
            # Each text once: most rows share theirs with others of their invoice.
            texts = batch.column(at).dictionary_encode()
            read = self.moments.read(texts.dictionary.to_pylist())
            moments = pa.array(read, schema.field(AT).type).take(texts.indices)
            yield pa.RecordBatch.from_arrays([*batch.columns, moments], schema=schema)
            if self.table.delimiter != "," and not self._has_decimal_comma:
                comma = _COMMA if self.table.delimiter == ";" else _PROVED_COMMA
                found = pc.any(pc.match_substring_regex(batch.column(price), comma))
                self._has_decimal_comma = bool(found.as_py())

    def settle(self, order: Order | None) -> Reading:
        """The reading in which all rows are right; ``order`` where a setting says it.

        Raises:
            AmbiguousDatesError: nothing says whether days or months come first.
        """
        decimal: Literal[".", ","] = "," if self._has_decimal_comma else "."
        try:
            return Reading(order or self.moments.decide(), decimal)
        except UndecidedOrderError as error:
            raise AmbiguousDatesError(
                f"{self.table.file}: InvoiceDate: {error}, and nothing else in the file decides."
                " Nothing was changed. Set RETAIL_ONLINE_RETAIL_DATES to dmy or mdy, whichever its"
                " dates are."
            ) from error

    def select(self, number: int, view: str) -> str:
        """The rows of ``view``, which has the batches, under the names of our columns."""
        texts = {column: f'"{i}"' for column, i in self.match.positions.items()}
        columns = [f"{text} as {column}" for column, text in texts.items()]
        for column in _TRIMMED:
            trimmed = f"trim({texts[column]}, {_BLANKS})"
            if self.reading.decimal == ",":
                trimmed = self._with_points(column, trimmed)
            columns.append(f"{trimmed} as {column}_text")
        return (
            f'select {number}::integer as source_no, "row", {AT}, {self._marked()} as marked,'
            f" {', '.join(columns)} from {view}"
        )

    def _with_points(self, column: str, text: str) -> str:
        if column in _NUMBERS:
            # A point beside decimal commas parts thousands, or is a decimal one: nobody knows.
            return f"case when not contains({text}, '.') then replace({text}, ',', '.') end"
        if column in _CODES:
            return f"regexp_replace({text}, '^([0-9]+),(0+)$', '\\1.\\2')"
        return text

    def _marked(self) -> str:
        """The reason of a row in which a text is the mark of a cell without a value, or null."""
        if not self.table.has_marked_cells:
            return "null::varchar"
        marks = ", ".join(f"'{mark}'" for mark in sorted(self.marks))
        texts = {column: f'"{i}"' for column, i in self.match.positions.items()}
        return (
            "case "
            + " ".join(
                f"when {text} in ({marks}) then '{column}: expected a value, found ' || {text}"
                for column, text in texts.items()
            )
            + " end"
        )


def match_header(header: Sequence[str], label: str) -> HeaderMatch:
    """Find our columns in a header of cleaned names, in either published spelling and any order.

    Raises:
        SchemaDriftError: a column is missing or stands there twice.
    """
    positions: dict[str, int] = {}
    missing = []
    for column, found in _places(header).items():
        if len(found) > 1:
            names = ", ".join(header[i] for i in found)
            raise SchemaDriftError(
                f"{label}: {column} stands there {len(found)} times ({names})."
                " Take all but one away at the origin."
            )
        if found:
            positions[column] = found[0]
        else:
            missing.append(" or ".join(SOURCE_COLUMNS[column]))
    extra = tuple(name for i, name in enumerate(header) if name and i not in positions.values())
    if missing:
        raise SchemaDriftError(
            f"{label}: missing {', '.join(missing)}; found {', '.join(header) or 'no header'}."
            " Rename the columns at the origin, or add their spelling to SOURCE_COLUMNS in"
            " contract.py."
        )
    return HeaderMatch(positions, extra)


def is_header(names: Sequence[str]) -> bool:
    """Whether a row of a file is meant as the header: most of our columns stand there.

    Of a part that lacks one of them somebody has to be told; to skip it would lose its rows.
    """
    return sum(map(bool, _places(names).values())) > len(SOURCE_COLUMNS) / 2


def _places(names: Sequence[str]) -> dict[str, list[int]]:
    """Where each of our columns stands among names; case and blanks differ by program."""
    folded = [_folded(name) for name in names]
    return {
        column: [i for i, name in enumerate(folded) if name in map(_folded, spellings)]
        for column, spellings in SOURCE_COLUMNS.items()
    }


def _folded(name: str) -> str:
    return "".join(name.split()).casefold()


def _whole_number(column: str) -> str:
    # A cast alone would round 6.5 and take 1e3; `17850.0` is how exports write integers.
    return (
        f"case when regexp_full_match({column}, '[+-]?[0-9]+(\\.0*)?')"
        f" then try_cast(split_part({column}, '.', 1) as bigint) end"
    )


def _unless_missing(text: str, words: Sequence[str]) -> str:
    missing = ", ".join(f"'{word}'" for word in words)
    return f"case when {text} not in ({missing}) then {text} end"


def _code(column: str) -> str:
    # Programs that take codes of digits for numbers write 536365.0.
    text = f"{column}_text"
    code = _unless_missing(text, MISSING_WORDS)
    return (
        f"case when contains({text}, '.0')"
        f" then regexp_replace({text}, '^([0-9]+)\\.0+$', '\\1') else {code} end"
    )


# A spreadsheet's 5.36E+05 was 536365 or another number of six digits: nobody knows. No codes are
# its errors (#N/A), too narrow columns (####), formulas (="536365") and marks of texts ('536365).
_NO_CODES = "\n".join(
    f"when contains({column}, '+')"
    f" and regexp_full_match({column}, '[0-9]([.,][0-9]+)?[eE]\\+[0-9]+')"
    f" then '{column}: expected a code, found ' || {column} || ', which has lost digits'\n"
    # By comparisons alone, which cost nothing: it begins with no letter or digit.
    f"when {column} < '0' or {column} between ':' and '@'"
    f" then '{column}: expected a code, found ' || shown({column})"
    for column in _CODES
)

_NUMBER = "[+-]?([0-9]+\\.?[0-9]*|\\.[0-9]+)([eE][+-]?[0-9]+)?"

# A price in the source may carry float noise (4.1500000000000004) but no fourth decimal.
_PRICE = (
    f"case when regexp_full_match(unit_price_text, '{_NUMBER}')"
    " and abs(try_cast(unit_price_text as double)"
    " - try_cast(try_cast(unit_price_text as decimal(12,3)) as double)) < 1e-9"
    " then try_cast(unit_price_text as decimal(12,3)) end"
)

_TYPED = f"""
with text as (
    select
        source_no, "row", {AT} as invoice_datetime, marked,
        {", ".join(f"{c} as {c}_raw" for c in SOURCE_COLUMNS)},
        {_code("invoice_no")} as invoice_no,
        {_code("stock_code")} as stock_code,
        {_unless_missing("description", _MISSING_TEXTS)} as description,
        quantity_text,
        unit_price_text,
        {_unless_missing("customer_id_text", MISSING_WORDS)} as customer_id_text,
        {_unless_missing("country_text", _MISSING_TEXTS)} as country
    from {{rows}}
),

typed as (
    select
        *,
        {_whole_number("quantity_text")} as quantity,
        {_PRICE} as unit_price,
        {_whole_number("customer_id_text")} as customer_id
    from text
),

judged as (
    select
        *,
        case
            when marked is not null then marked
            when invoice_no is null then 'invoice_no is empty'
            when stock_code is null then 'stock_code is empty'
            {_NO_CODES}
            when quantity is null
                then 'quantity: expected a whole number, found ' || shown(quantity_raw)
            when invoice_datetime is null
                then 'invoice_datetime: expected a date and time, found '
                    || shown(invoice_datetime_raw)
            when unit_price is null
                then 'unit_price: expected a number of at most three decimals, found '
                    || shown(unit_price_raw)
            when customer_id is null and customer_id_text is not null
                then 'customer_id: expected a whole number, found ' || shown(customer_id_raw)
            when try_cast(quantity * unit_price as decimal(18, 3)) is null
                then 'total_price: quantity * unit_price exceeds 15 digits'
            -- The last two would let different rows share an identity (see below).
            when regexp_matches(
                concat(invoice_no, stock_code, country, description), '[\\x00\\x1e\\x1f]'
            )
                then 'a control character (NUL, RS or US)'
        end as reason
    from typed
),

-- What only rejected rows need is put together here: the window below moves every column.
identified as (
    select
        source_no, "row", invoice_no, stock_code, description, quantity, invoice_datetime,
        unit_price, customer_id, country, reason,
        case when reason is not null
            then to_json([{", ".join(f"{c}_raw" for c in SOURCE_COLUMNS)}])::varchar end as text,
        case when reason is null then sha256(concat(
            invoice_no, {_FIELD_SEPARATOR},
            stock_code, {_FIELD_SEPARATOR},
            coalesce(description, {_NULL_MARK}), {_FIELD_SEPARATOR},
            quantity, {_FIELD_SEPARATOR},
            invoice_datetime, {_FIELD_SEPARATOR},
            unit_price, {_FIELD_SEPARATOR},
            coalesce(customer_id::varchar, {_NULL_MARK}), {_FIELD_SEPARATOR},
            coalesce(country, {_NULL_MARK})
        ))[:32] else concat('rejected ', source_no, ' ', "row") end as identity
    from judged
)

select
    invoice_datetime::date as invoice_date,
    source_no, "row",
    case when reason is null then identity end as transaction_id,
    invoice_no, stock_code, description, quantity, invoice_datetime, unit_price, customer_id,
    country, reason, text,
    count(*) over same as copies
from identified
window same as (partition by identity)
qualify row_number() over (partition by identity order by source_no, "row") = 1
order by invoice_date nulls first, source_no, "row"
"""


def type_rows(
    connection: "duckdb.DuckDBPyConnection", tables: Iterable[ReadTable]
) -> "duckdb.DuckDBPyRelation":
    """Typed, de-duplicated rows of all tables, one pass over their batches, by day and row.

    Columns: invoice_date, source_no (the table's place in ``tables``), row, transaction_id, the
    typed source columns, reason and text (null but on rejected rows), copies (how often the same
    row stood in the sources). A rejected row keeps its invoice_date where that was readable.
    """
    selects = []
    for number, table in enumerate(tables):
        view = f"text_rows_{number}"
        connection.register(view, table.batches)
        selects.append(table.select(number, view))
    # Reasons are printed: nothing in them may act on a terminal.
    connection.execute(
        "create or replace temp macro shown(x) as"
        " coalesce(regexp_replace(x[:40], '[[:cntrl:]\x80-\x9f]', '?', 'g'), 'nothing')"
    )
    rows = "(" + " union all ".join(selects) + ")"
    return connection.sql(_TYPED.format(rows=rows))


@dataclass(frozen=True)
class DayLedger:
    """What a source holds for a day: a fingerprint of its rows, and how many of which kind."""

    fingerprint: str
    read: int
    duplicates: int
    quarantined: int

    @property
    def written(self) -> int:
        """Rows that the day's partition must hold."""
        return self.read - self.duplicates - self.quarantined


_LEDGER = """
select
    invoice_date,
    concat_ws(
        '-',
        count(transaction_id),
        sum(('0x' || transaction_id[:15])::bigint::hugeint),
        sum(('0x' || transaction_id[16:30])::bigint::hugeint),
        sum(copies),
        coalesce(sum(hash(text) // 4) filter (where reason is not null), 0)
    ) as fingerprint,
    sum(copies)::bigint as read,
    (sum(copies) - count(*))::bigint as duplicates,
    (count(*) filter (where reason is not null))::bigint as quarantined
from {typed}
where {where}
group by all
order by all
"""


def day_ledgers(
    connection: "duckdb.DuckDBPyConnection", typed: str, first: date, last: date
) -> dict[str, DayLedger]:
    """The ledger of each day from ``first`` to ``last``, by ISO date.

    ``typed`` names a table of ``type_rows``. The fingerprint does not depend on the order of the
    rows: it sums the halves of their identities, which are SHA-256 digits.
    """
    where = f"invoice_date between date '{first}' and date '{last}'"
    rows = connection.sql(_LEDGER.format(typed=typed, where=where)).fetchall()
    return {str(day): DayLedger(*rest) for day, *rest in rows}


def days_outside(
    connection: "duckdb.DuckDBPyConnection",
    typed: str,
    first: date,
    last: date,
    labels: Sequence[str],
) -> "duckdb.DuckDBPyRelation":
    """QUARANTINE's rows for what no partition can take: no readable day, or one outside the span.

    One row a copy; ``labels`` are the sources' names by ``source_no``.
    """
    return connection.sql(f"""
        select
            {_source_name(labels)} as source,
            "row",
            coalesce(
                reason,
                'invoice_datetime: expected a day inside {first}...{last}'
                || ' (RETAIL_ONLINE_RETAIL_START, RETAIL_ONLINE_RETAIL_END), found '
                || invoice_datetime
            ) as reason,
            coalesce(text, {_as_text()}) as text
        from {typed}, range(copies)
        where invoice_date is null or invoice_date not between date '{first}' and date '{last}'
        order by source_no, "row"
    """)


def _as_text() -> str:
    return "to_json([{}])::varchar".format(", ".join(f"{c}::varchar" for c in SOURCE_COLUMNS))


_LINE_TYPE_WHEN = {
    "return": "invoice_no ilike 'C%'",
    "bad_debt": "invoice_no ilike 'A%'",
    "adjustment": "quantity <= 0",
    "gift": "unit_price <= 0",
}
_LINE_TYPE = (
    "case "
    + " ".join(f"when {_LINE_TYPE_WHEN[t]} then '{t}'" for t in LINE_TYPES if t in _LINE_TYPE_WHEN)
    + " else 'sale' end"
)

_DERIVED = f"""
select
    transaction_id,
    invoice_no,
    stock_code,
    coalesce(lower(description), 'Unknown') as description,
    quantity,
    unit_price,
    (quantity * unit_price)::decimal(18, 3) as total_price,
    coalesce(customer_id, 0) as customer_id,
    coalesce(country, '{NO_COUNTRY}') as country,
    invoice_datetime,
    invoice_date,
    strftime(invoice_datetime, '%H:%M:%S') as time,
    monthname(invoice_datetime) as month,
    dayname(invoice_datetime) as day,
    year(invoice_datetime)::integer as year,
    {_LINE_TYPE} as line_type,
    regexp_matches(stock_code, '^[0-9]{{{{5}}}}') as is_product
from {{typed}}
where reason is null and {{days}}
"""


def derive_columns(
    connection: "duckdb.DuckDBPyConnection", typed: str, days: str
) -> "duckdb.DuckDBPyRelation":
    """The rows of ONLINE_RETAIL_DATA for the days that the predicate ``days`` takes, in order.

    ``line_type`` is the first that fits, as the contract lists them; a gift is a line without a
    price, an adjustment one without a positive quantity.
    """
    return connection.sql(_DERIVED.format(typed=typed, days=days))


def quarantined_rows(
    connection: "duckdb.DuckDBPyConnection", typed: str, days: str, labels: Sequence[str]
) -> "duckdb.DuckDBPyRelation":
    """Rejected rows of the days that the predicate ``days`` takes, by day.

    Columns: invoice_date and those of QUARANTINE; ``labels`` as for ``days_outside``.
    """
    return connection.sql(f"""
        select invoice_date, {_source_name(labels)} as source, "row", reason, text
        from {typed}
        where reason is not null and {days}
        order by invoice_date, source_no, "row"
    """)


def first_reasons(connection: "duckdb.DuckDBPyConnection", typed: str, days: str) -> dict[str, str]:
    """The first reason of each day that has rejected rows, by ISO date."""
    return dict(
        connection.sql(f"""
            select invoice_date::varchar, first(reason order by source_no, "row")
            from {typed} where reason is not null and {days} group by all
        """).fetchall()
    )


def _source_name(labels: Sequence[str]) -> str:
    names = ", ".join("'" + label.replace("'", "''") + "'" for label in labels)
    return f"[{names}][source_no + 1]"


def quarantine_table(rows: Iterable[tuple[str, int | None, str, str]]) -> "pa.Table":
    """Rows that never became fields (source, row, reason, text) as a QUARANTINE table."""
    import pyarrow as pa

    return pa.Table.from_pylist(
        [
            {"source": source, "row": row, "reason": reason, "text": json.dumps([text])}
            for source, row, reason, text in rows
        ],
        schema=QUARANTINE.arrow_schema,
    )


def day_predicate(column: str, days: Sequence[str]) -> str:
    """A predicate with literal bounds that takes exactly ``days``, as few ranges as may be."""
    ranges = contiguous_ranges(days)
    if not ranges:
        return "false"
    return (
        "("
        + " or ".join(
            f"{column} between date '{first}' and date '{last}'" for first, last in ranges
        )
        + ")"
    )

"""Online retail, frame to frame: text -> typed rows -> the landed table's rows.

Frames are DuckDB relations and Arrow streams on a connection that the caller owns. Not here: which
text is which column's (feeds/reading.py), files, the lake, Dagster (feeds/snapshot).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.dataset import MISSING_WORDS
from retail_assets.defs.online_retail.contract import LINE_TYPES, SOURCE_COLUMNS
from retail_assets.feeds.reading import Dates, Fields, ReadFiles, ReadTable, read_files

if TYPE_CHECKING:
    import duckdb

# Bump where the typing of a source changes: what was typed before is then typed again.
TYPING_VERSION = "3"

_CODES = ("invoice_no", "stock_code")
_NUMBERS = ("quantity", "unit_price", "customer_id")
_TRIMMED = (*_CODES, "country", *_NUMBERS)
FIELDS = Fields(
    SOURCE_COLUMNS,
    "Rename the columns at the origin, or add their spelling to SOURCE_COLUMNS in contract.py.",
    setting="RETAIL_ONLINE_RETAIL_DATES",
    moments=("invoice_datetime",),
    numbers=_NUMBERS,
    decimals=("unit_price",),
    codes=_CODES,
)

_FIELD_SEPARATOR = "chr(31)"
_NULL_MARK = "chr(30)"
# Of plain texts two less stand for no value: NA is Namibia as well.
_MISSING_TEXTS = tuple(word for word in MISSING_WORDS if word not in ("NA", "N/A"))
# UCI's own word for a country that is not known.
NO_COUNTRY = "Unspecified"


def _whole_number(column: str) -> str:
    # A cast alone would round 6.5 and take 1e3; `17850.0` is how exports write integers.
    return (
        f"case when regexp_full_match({column}, '[+-]?[0-9]+(\\.0*)?')"
        f" then try_cast(split_part({column}, '.', 1) as bigint) end"
    )


def _unless_missing(text: str, words: Sequence[str]) -> str:
    missing = ", ".join(f"'{word}'" for word in words)
    return f"case when {text} not in ({missing}) then {text} end"


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
        source_no, "row", moment as invoice_datetime, marked,
        {", ".join(f"{c} as {c}_raw" for c in SOURCE_COLUMNS)},
        {_unless_missing("invoice_no_text", MISSING_WORDS)} as invoice_no,
        {_unless_missing("stock_code_text", MISSING_WORDS)} as stock_code,
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

select * exclude (source_no), {{labels}}[source_no + 1] as _source, null::varchar[] as _left_out
from (
    select
        invoice_datetime::date as invoice_date,
        source_no, "row" as _row,
        case when reason is null then identity end as transaction_id,
        invoice_no, stock_code, description, quantity, invoice_datetime, unit_price, customer_id,
        country, reason as _reason, text as _text,
        count(*) over same as _copies
    from identified
    window same as (partition by identity)
    qualify row_number() over (partition by identity order by source_no, "row") = 1
    order by invoice_date nulls first, source_no, "row"
)
"""


def type_files(
    connection: "duckdb.DuckDBPyConnection",
    files: Sequence[Path],
    target: Path,
    scratch: Path,
    dates: Dates,
) -> ReadFiles:
    """Type all tables of the files into ``target``, as a RowTyping (feeds/snapshot) does."""

    def write(tables: Sequence[ReadTable]) -> None:
        # Read once or twice, then replaced: quick to write rather than small.
        type_rows(connection, tables).write_parquet(str(target), compression="snappy")

    return read_files(files, scratch, FIELDS, dates, write)


def type_rows(
    connection: "duckdb.DuckDBPyConnection", tables: Sequence[ReadTable]
) -> "duckdb.DuckDBPyRelation":
    """Typed, de-duplicated rows of all tables, one pass over their batches, by day and row.

    Columns: those of TypeFiles (feeds/snapshot), transaction_id, the typed source columns;
    ``_text`` is null but on rejected rows. A rejected row keeps its invoice_date where that was
    readable.
    """
    labels, selects = [], []
    for number, table in enumerate(tables):
        view = f"text_rows_{number}"
        connection.register(view, table.batches)
        selects.append(_select(table, number, view))
        labels.append("'" + table.table.label.replace("'", "''") + "'")
    # Reasons are printed: nothing in them may act on a terminal.
    connection.execute(
        "create or replace temp macro shown(x) as"
        " coalesce(regexp_replace(x[:40], '[[:cntrl:]\x80-\x9f]', '?', 'g'), 'nothing')"
    )
    rows = "(" + " union all ".join(selects) + ")"
    return connection.sql(_TYPED.format(rows=rows, labels=f"[{', '.join(labels)}]"))


def _select(table: ReadTable, number: int, view: str) -> str:
    """The rows of ``view``, which has the table's batches, under the names of our fields."""
    marked = " ".join(
        f"when {table.is_marked(name)} then '{name}: expected a value, found ' || {table.raw(name)}"
        for name in SOURCE_COLUMNS
    )
    columns = [f"{table.raw(name)} as {name}" for name in SOURCE_COLUMNS]
    columns += [f"{table.text(name)} as {name}_text" for name in _TRIMMED]
    return (
        f'select {number}::integer as source_no, "row", {table.at("invoice_datetime")} as moment,'
        f" case {marked} end as marked, {', '.join(columns)} from {view}"
    )


# A row's text, also where it could be typed.
TEXT = "coalesce(_text, to_json([{}])::varchar)".format(
    ", ".join(f"{c}::varchar" for c in SOURCE_COLUMNS)
)

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

# The columns of ONLINE_RETAIL_DATA. ``line_type`` is the first that fits, as the contract lists
# them; a gift is a line without a price, an adjustment one without a positive quantity.
COLUMNS = f"""
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
    regexp_matches(stock_code, '^[0-9]{{5}}') as is_product
"""

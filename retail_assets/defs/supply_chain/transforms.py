"""How messages of the supply chain become rows of the star, in Spark.

A frame in, a frame out. Not here: files, partitions, what the star has already (star.py). Only what
the embedded engine and the JVM's Spark execute alike is used; a parity test runs it on both.

Every text was held against the contract's patterns before it landed (messages.py). What is not of
its column's shape gives null: of a side attribute that is what the contract says, in a column that
is never null who writes the rows must look. Texts that are not written in the plainest way, as
nearly all are, cost time: who reads the messages says in which columns there are any.
"""

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from retail_assets.dataset import Column as Declared
from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import (
    CODE,
    DATE_TIME,
    DIM_CUSTOMER,
    DIM_DEPARTMENT,
    DIM_LOCATION,
    DIM_METADATA,
    DIM_PRODUCT,
    DIM_SHIPPING,
    FACT_ORDER,
    LANDED,
    LOST_CODE,
    MISSING,
    NUMBER,
    RATIO,
    SOURCE_COLUMNS,
    WHOLE_CODE,
    WHOLE_NUMBER,
    SourceColumn,
)
from retail_assets.identity import identity_of

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

# To be raised when the same messages would become other rows: the whole star then is new work.
TYPING_VERSION = "3"

# The day on which a message landed, as text; a frame of messages has it besides its columns.
INGEST_DATE = "ingest_date"
# The same, for partitioning by it: what is partitioned by does not stay in the rows.
STAGED_DATE = "_date"

_CENTURY = "20"
_TIME_FORMAT = "yyyy-MM-dd HH:mm:ss.SSSSSS"
_MOST_ZEROS = 40
_RATIO_UNITS = 10**9
_SPARK_TYPES = {"int32": "int", "int64": "bigint", "timestamp": "timestamp_ntz"}
_CUSTOMER_PREFIX = "customer_"
_METADATA = tuple(c for c in DIM_METADATA.columns if c.name not in ("metadata_id", INGEST_DATE))
_OF_MESSAGES = {"message_order", *(source.name for source in SOURCE_COLUMNS)}
_OF_STAR = {c.name for d in LANDED for c in d.columns} | {
    f"{_CUSTOMER_PREFIX}{c.name}" for c in DIM_CUSTOMER.columns
}
# The source's columns that the star has, but for plain texts.
TYPED_COLUMNS = tuple(c for c in SOURCE_COLUMNS if c.type != "string" and c.name in _OF_STAR)
# An item's latest row: the fact's columns and, beside them, its message's.
ORDER_COLUMNS = (*FACT_ORDER.columns, *_METADATA)


def write_plainly(messages: "DataFrame", odd: Collection[str]) -> "DataFrame":
    """The same messages; texts of TYPED_COLUMNS as all engines read them alike, or null.

    Times are then YYYY-MM-DD HH:MM:SS, with six digits more where there is a fraction. ``odd`` are
    the columns in which some text is not written in the plainest way: there whole numbers lose
    their ``.0``, numbers their exponent, and what is not of the column's shape is null.
    """
    from pyspark.sql import functions as F  # noqa: N812  (as Spark's own documentation has it)

    written = {
        column.name: _plainly(column) if column.name in odd else _moment(F.col(column.name))
        for column in TYPED_COLUMNS
        if column.name in odd or column.type == "timestamp"
    }
    return messages.withColumns(written)


def stage_orders(messages: "DataFrame") -> "DataFrame":
    """The latest message of each order item: ORDER_COLUMNS, and STAGED_DATE.

    ``messages`` has the columns of MESSAGES, written plainly, and INGEST_DATE.
    """
    from pyspark.sql import functions as F  # noqa: N812

    made = {
        "location_id": _identity(DIM_LOCATION),
        "shipping_id": _identity(DIM_SHIPPING),
        "metadata_id": identity_of(
            [F.col(c).cast("string") for c in ("incarnation", "topic", "partition", "offset")]
        ),
        INGEST_DATE: F.col(INGEST_DATE).cast("date"),
    }
    kept = {column.name: F.col(column.name) for column in _METADATA}
    values = {
        column.name: made[column.name] if column.name in made else _typed(column)
        for column in FACT_ORDER.columns
    }
    staged = {STAGED_DATE: F.col(INGEST_DATE)}
    return _latest(messages, values | kept | staged, "order_item_id")


def stage_customers(messages: "DataFrame") -> "DataFrame":
    """Each customer, as its latest message has it; the columns of DIM_CUSTOMER."""
    return _stage_latest(messages, DIM_CUSTOMER, _CUSTOMER_PREFIX)


def stage_products(messages: "DataFrame") -> "DataFrame":
    """Each product, as its latest message has it; the columns of DIM_PRODUCT."""
    return _stage_latest(messages, DIM_PRODUCT)


def stage_departments(messages: "DataFrame") -> "DataFrame":
    """Each department, as its latest message has it; the columns of DIM_DEPARTMENT."""
    return _stage_latest(messages, DIM_DEPARTMENT)


def stage_locations(messages: "DataFrame") -> "DataFrame":
    """Each place that orders went to, once; the columns of DIM_LOCATION."""
    return _stage_distinct(messages, DIM_LOCATION)


def stage_shippings(messages: "DataFrame") -> "DataFrame":
    """Each way and time of shipping, once; the columns of DIM_SHIPPING."""
    return _stage_distinct(messages, DIM_SHIPPING)


# How the dimensions are staged that are whole tables; dim_metadata comes with the orders.
STAGED_DIMENSIONS: Mapping[Dataset, Callable[["DataFrame"], "DataFrame"]] = {
    DIM_CUSTOMER: stage_customers,
    DIM_PRODUCT: stage_products,
    DIM_LOCATION: stage_locations,
    DIM_SHIPPING: stage_shippings,
    DIM_DEPARTMENT: stage_departments,
}


def _stage_latest(messages: "DataFrame", dataset: Dataset, prefix: str = "") -> "DataFrame":
    key = dataset.columns[0].name
    values = {column.name: _typed(column, prefix) for column in dataset.columns}
    return _latest(messages, values, key)


def _stage_distinct(messages: "DataFrame", dataset: Dataset) -> "DataFrame":
    key, *columns = dataset.columns
    typed = _selected(messages, {column.name: _typed(column) for column in columns}).distinct()
    # The identity is of typed values, so that distinct rows and distinct identities are the same.
    identity = identity_of([_plain(column) for column in columns])
    return typed.withColumn(key.name, identity).select(*dataset.column_names)


def _latest(messages: "DataFrame", values: "Mapping[str, Column]", key: str) -> "DataFrame":
    """The row of each key's latest message: of ``values``, which have the key and the order.

    A join on two narrow columns: a maximum by another column, of all columns, is minutes on the
    embedded engine.
    """
    from pyspark.sql import functions as F  # noqa: N812

    typed = _selected(messages, values)
    last = typed.groupBy(key).agg(F.max("message_order").alias("message_order"))
    # A join puts its own columns first.
    return typed.join(last, [key, "message_order"], "left_semi").select(*values)


def _selected(frame: "DataFrame", values: "Mapping[str, Column]") -> "DataFrame":
    return frame.select(*(value.alias(name) for name, value in values.items()))


def _source(column: Declared, prefix: str = "") -> str:
    """The message's column that a declared one is made of."""
    return column.name if column.name in _OF_MESSAGES else f"{prefix}{column.name}"


def _typed(column: Declared, prefix: str = "") -> "Column":
    """The declared column's value of a message's text; null where that is empty."""
    from pyspark.sql import functions as F  # noqa: N812

    text = F.col(_source(column, prefix))
    if column.type == "string":
        return F.nullif(text, F.lit(""))
    # Of a text, both engines round half away from zero, once, whatever the number of its digits.
    return text.try_cast(_SPARK_TYPES.get(column.type, column.type))


def _plainly(column: SourceColumn) -> "Column":
    """A column's texts, whatever they are, as engines read them alike; null for none."""
    from pyspark.sql import functions as F  # noqa: N812

    text = F.col(column.name)

    def matches(*patterns: str) -> "Column":
        return text.rlike(rf"\A(?:{'|'.join(patterns)})\z")

    if column.type == CODE:
        whole = F.regexp_replace(text, rf"\A{WHOLE_CODE}\z", "$1")
        return F.when(~matches(MISSING, LOST_CODE), whole)
    if column.type == "timestamp":
        return F.when(matches(DATE_TIME), _any_moment(text))
    if column.type.startswith("decimal"):
        return F.when(matches(NUMBER), _without_exponent(text))
    return F.when(matches(WHOLE_NUMBER), F.regexp_replace(text, r"[.]0+\z", ""))


def _any_moment(text: "Column") -> "Column":
    """A time of the contract's shape as YYYY-MM-DD HH:MM:SS, and .ffffff where that is not 0."""
    from pyspark.sql import functions as F  # noqa: N812

    parts = F.split(text, "[^0-9]+")
    zero = F.lit("0")

    def part(position: int) -> "Column":
        found = F.get(parts, F.lit(position))
        return F.coalesce(F.nullif(found, F.lit("")), zero)

    def two(found: "Column") -> "Column":
        return F.lpad(found, 2, "0")

    def dated(iso: int, other: int) -> "Column":
        return F.when(F.contains(text, F.lit("-")), part(iso)).otherwise(part(other))

    date = F.concat_ws("-", F.lpad(dated(0, 2), 4, _CENTURY), two(dated(1, 0)), two(dated(2, 1)))
    half = F.lower(F.right(text, F.lit(2)))
    of_half = part(3).try_cast("int") % 12
    hour = (
        F.when(half == "am", of_half.cast("string"))
        .when(half == "pm", (of_half + 12).cast("string"))
        .otherwise(part(3))
    )
    clock = F.concat_ws(":", two(hour), two(part(4)), two(part(5)))
    fraction = F.rpad(F.left(part(6), F.lit(6)), 6, "0")
    more = F.when(fraction == "000000", F.lit("")).otherwise(F.concat(F.lit("."), fraction))
    return F.concat(date, F.lit(" "), clock, more)


def _moment(text: "Column") -> "Column":
    """M/D/YYYY H:MM, or of a year of two digits, as YYYY-MM-DD HH:MM:00."""
    from pyspark.sql import functions as F  # noqa: N812

    parts = F.split(text, "[/ :]")

    def two(position: int) -> "Column":
        return F.lpad(F.get(parts, F.lit(position)), 2, "0")

    date = F.concat_ws("-", F.lpad(F.get(parts, F.lit(2)), 4, _CENTURY), two(0), two(1))
    return F.concat(date, F.lit(" "), two(3), F.lit(":"), two(4), F.lit(":00"))


def _without_exponent(text: "Column") -> "Column":
    """The same number in digits: the point is moved in the text, for binary ones would round."""
    from pyspark.sql import functions as F  # noqa: N812

    parts = F.split(F.lower(text), "e")
    mantissa = F.get(parts, F.lit(0))
    exponent = F.regexp_replace(F.get(parts, F.lit(1)), "[+]", "").try_cast("int")
    sign = F.when(mantissa.startswith("-"), F.lit("-")).otherwise(F.lit(""))
    numeral = F.regexp_replace(mantissa, "-", "")
    whole = F.substring_index(numeral, ".", 1)
    digits = F.regexp_replace(numeral, "[.]", "")
    point, length = F.length(whole) + exponent, F.length(digits)

    def zeros(number: "Column") -> "Column":
        # More than these are none of a number that the contract takes, or vanish by rounding.
        return F.repeat(F.lit("0"), F.greatest(F.least(number, F.lit(_MOST_ZEROS)), F.lit(0)))

    moved = (
        F.when(point <= 0, F.concat(F.lit("0."), zeros(-point), digits))
        .when(point >= length, F.concat(digits, zeros(point - length)))
        .otherwise(
            F.concat(
                F.substr(digits, F.lit(1), point),
                F.lit("."),
                F.substr(digits, point + 1, length),
            )
        )
    )
    return F.when(F.contains(F.lower(text), F.lit("e")), F.concat(sign, moved)).otherwise(text)


def _identity(dataset: Dataset) -> "Column":
    """The identity of a row of ``dataset``, of a message's text; a time is one as it is."""
    from pyspark.sql import functions as F  # noqa: N812

    return identity_of(
        [
            F.col(column.name) if column.type == "timestamp" else _plain(column, _typed(column))
            for column in dataset.columns[1:]
        ]
    )


def _plain(column: Declared, value: "Column | None" = None) -> "Column":
    """A typed value as text, the same on every engine, which write 1E-9 or 0.000000001."""
    from pyspark.sql import functions as F  # noqa: N812

    value = F.col(column.name) if value is None else value
    if column.type == RATIO:
        value = (value * F.lit(_RATIO_UNITS)).cast("bigint")
    if column.type == "timestamp":
        return F.regexp_replace(F.date_format(value, _TIME_FORMAT), r"[.]0{6}\z", "")
    return value.cast("string")

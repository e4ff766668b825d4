"""How messages of the supply chain become values of the star, in Spark: a row for each message.

A frame in, a frame out. Not here: files, partitions, which message is the latest, what the star has
already (star/). Only what the embedded engine and the JVM's Spark execute alike is used; a parity
test runs it on both.

Every text was held against the contract's patterns before it landed (messages.py). What is not of
its column's shape gives null: of a side attribute that is what the contract says, in a column that
is never null who writes the rows must look. Texts that are not written in the plainest way, as
nearly all are, cost time: who reads the messages says in which columns there are any.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

from retail_assets.dataset import Column as Declared
from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import (
    CODE,
    DATE_TIME,
    DIM_LOCATION,
    DIM_SHIPPING,
    LANDED,
    LOST_CODE,
    MESSAGE_COLUMNS,
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

_CENTURY = "20"
_MOST_ZEROS = 40
_RATIO_UNITS = 10**9
_SPARK_TYPES = {"int32": "int", "int64": "bigint", "timestamp": "timestamp_ntz"}
_NAMES = {source.name for source in SOURCE_COLUMNS}
# Of each column of the star that is one text of a message: that text's name. dim_customer has
# columns without the prefix that they have in a message.
_SOURCES = {
    column: source
    for dataset in LANDED
    for column in dataset.column_names
    for source in (column, f"customer_{column}")
    if source in _NAMES
}
# The source's columns that the star has, but for plain texts.
TYPED_COLUMNS = tuple(
    c for c in SOURCE_COLUMNS if c.type != "string" and c.name in _SOURCES.values()
)


def type_messages(messages: "DataFrame", date: str, odd: Collection[str]) -> "DataFrame":
    """A row for each message that landed on ``date``: all columns of the star's tables, by name.

    ``odd`` are those of TYPED_COLUMNS in which some text is not written in the plainest way: there
    whole numbers lose their ``.0``, numbers their exponent, and what is not of the column's shape
    is null.
    """
    from pyspark.sql import functions as F  # noqa: N812  (as Spark's own documentation has it)

    written = {
        column.name: _plainly(column) if column.name in odd else _moment(F.col(column.name))
        for column in TYPED_COLUMNS
        if column.name in odd or column.type == "timestamp"
    }
    declared = {column.name: column for dataset in LANDED for column in dataset.columns}
    values = {
        **{name: _typed(declared[name]) for name in _SOURCES},
        **{c.name: F.col(c.name) for c in MESSAGE_COLUMNS if c.name in declared},
        "location_id": _identity(DIM_LOCATION),
        "shipping_id": _identity(DIM_SHIPPING),
        "metadata_id": identity_of(
            [F.col(c).cast("string") for c in ("incarnation", "topic", "partition", "offset")]
        ),
        "ingest_date": F.lit(date).cast("date"),
    }
    plain = messages.withColumns(written)
    return plain.select(*(value.alias(name) for name, value in values.items()))


def _typed(column: Declared) -> "Column":
    """The declared column's value of a message's text; null where that is empty.

    Times are written YYYY-MM-DD HH:MM:SS by then, with six digits more where there is a fraction.
    """
    from pyspark.sql import functions as F  # noqa: N812

    text = F.col(_SOURCES[column.name])
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
    """The identity of a row of ``dataset``: of typed values, as text that every engine writes."""
    from pyspark.sql import functions as F  # noqa: N812

    def text(column: Declared) -> "Column":
        if column.type == "timestamp":
            return F.col(column.name)
        if column.type == RATIO:  # in billionths: engines write 1E-9 or 0.000000001
            return (_typed(column) * F.lit(_RATIO_UNITS)).cast("bigint").cast("string")
        return _typed(column).cast("string")

    return identity_of([text(column) for column in dataset.columns[1:]])

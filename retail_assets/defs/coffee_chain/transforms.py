"""How raw rows of the coffee chain become rows of its tables: small ones in pandas, large in Spark.

A key, a time, a quantity, a price decide whether a row stands. A side attribute that cannot be read
(a postcode, a number in the list, a birthday) is left out: null in a row that stands, and told with
the row's text.

A frame in, a frame out. Not here: files, partitions, Dagster. Spark's functions use only what the
embedded engine and the JVM's Spark execute alike; a parity test runs them on both.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from retail_assets.dataset import MISSING_WORDS, Dataset
from retail_assets.defs.coffee_chain.contract import CUSTOMER, OUTLET, PRODUCT, SALES
from retail_assets.identity import BETWEEN, ID_DIGITS, identity_of

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import Column, DataFrame

# To be raised when the same bytes would become other rows: every drop then is new work.
TYPING_VERSION = "3"

CUSTOMER_COLUMNS = (
    "index",
    "customer_id",
    "first_name",
    "last_name",
    "gender",
    "birthday",
    "email",
    "phone_no",
)
SALES_COLUMNS = (
    "index",
    "invoice_no",
    "date_time",
    "customer_id",
    "outlet_id",
    "product_id",
    "quantity",
)

# What a staged frame says of its rows besides the table's columns, for partitioning by it.
STAGED_DROP, STAGED_PART, STAGED_COPIES = "_drop", "_part", "_copies"
STAGED = (STAGED_DROP, STAGED_PART, STAGED_COPIES)
REJECTED = "__rejected__"
# What a part's name begins with where a side attribute of its rows was left out.
LEFT_OUT = "__left_out__"
WHOLE = "all"

# The year 0000 is one of Spark's, not of the warehouses'. The end is \z: before a last line end,
# $ matches on the JVM and does not on the embedded engine.
_DAY = "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])-[0-9]{2}-[0-9]{2}"
_MIDNIGHT = " 00:00:00"  # as pandas writes behind a day
_DATE = rf"^{_DAY}({_MIDNIGHT})?\z"
_DATE_TIME = rf"^{_DAY} ([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\z"
_WHOLE_NUMBER = r"^-?[0-9]+\z"
# As what counts by floats writes whole numbers: 2.0 for 2.
_POINT = r"\.0*"
_WHOLE_NUMBER_WITH_POINT = rf"^-?[0-9]+{_POINT}\z"
_DIGITS_WITH_POINT = rf"^[0-9]+{_POINT}\z"
# Of a file whose delimiter is no comma: a number with a decimal comma. Before three digits it may
# be one of thousands.
_WITH_COMMA = r"^((?:RM\s*)?-?[0-9]+),([0-9]{1,2})"
_MISSING = rf"^[ \t\r\n]*({'|'.join(map(re.escape, MISSING_WORDS))})[ \t\r\n]*\z"


def write_points(raw: "DataFrame", columns: Iterable[str]) -> "DataFrame":
    """The same rows, in these columns with points for decimal commas."""
    from pyspark.sql import functions as F  # noqa: N812  (as Spark's own documentation has it)

    pattern = rf"{_WITH_COMMA}\z"
    return raw.withColumns({name: F.regexp_replace(name, pattern, "$1.$2") for name in columns})


def stage_sales(raw: "DataFrame", drop_date: str) -> "DataFrame":
    """Lines of one drop, typed, each distinct one once.

    ``raw`` has the text columns SALES_COLUMNS. The result has the columns of SALES and STAGED (see
    ``_collapse``); a part is the year of the sale.
    """
    from pyspark.sql import functions as F  # noqa: N812

    at = F.when(
        F.col("date_time").rlike(_DATE_TIME), _try_cast(F.col("date_time"), "timestamp_ntz")
    )
    number = F.col("quantity")
    quantity = F.when(number.rlike(_WHOLE_NUMBER), _try_cast(number, "int")).when(
        number.rlike(_WHOLE_NUMBER_WITH_POINT), _try_cast(_before_point(number), "int")
    )
    typed = raw.withColumns({"_at": at, "_quantity": quantity})
    reason = F.when(
        F.col("_at").isNull(), _expected("date_time", "a valid YYYY-MM-DD HH:MM:SS")
    ).when(F.col("_quantity").isNull(), _expected("quantity", "a whole number of 32 bits"))
    collapsed = _collapse(
        typed,
        drop_date,
        raw_columns=SALES_COLUMNS,
        reason=reason,
        part=F.year("date_time").cast("string"),
        values={
            "invoice_no": F.col("invoice_no"),
            "date_time": F.col("_at"),
            "customer_id": _id("customer_id"),
            "outlet_id": _id("outlet_id"),
            "product_id": _id("product_id"),
            "quantity": F.col("_quantity"),
        },
    )
    return collapsed.withColumnsRenamed({"_identity": "sale_line_id"}).select(
        "sale_line_id",
        F.lit(drop_date).cast("date").alias("drop_date"),
        "invoice_no",
        "date_time",
        F.col("date_time").cast("date").alias("sale_date"),
        F.year("date_time").alias("sale_year"),
        "customer_id",
        "outlet_id",
        "product_id",
        "quantity",
        *STAGED,
    )


def stage_customers(raw: "DataFrame", drop_date: str) -> "DataFrame":
    """Customers of one drop, typed, each distinct row once.

    ``raw`` has the text columns CUSTOMER_COLUMNS. The result has the columns of CUSTOMER and STAGED
    (see ``_collapse``); there is one part.
    """
    from pyspark.sql import functions as F  # noqa: N812

    text = F.col("birthday")
    day = F.substring_index(text, _MIDNIGHT, 1)
    birthday = F.when(text.rlike(_DATE), _try_cast(day, "date"))
    typed = raw.withColumn("_birthday", birthday)
    key = F.col("customer_id")
    reason = F.when(key.isNull() | key.isin(*MISSING_WORDS), _expected("customer_id", "one"))
    left_out = F.when(
        text.isNotNull() & F.col("_birthday").isNull() & ~text.rlike(_MISSING),
        _expected("birthday", "a valid YYYY-MM-DD or none"),
    )
    plain = ("first_name", "last_name", "gender", "email", "phone_no")
    collapsed = _collapse(
        typed,
        drop_date,
        raw_columns=CUSTOMER_COLUMNS,
        reason=reason,
        left_out=left_out,
        part=F.lit(WHOLE),
        values={
            "_id": _id("customer_id"),
            "birthday": F.col("_birthday"),
            **{name: F.col(name) for name in plain},
        },
    )
    told = F.col(STAGED_PART)
    packed = F.concat(F.length("_id").cast("string"), F.lit(BETWEEN), "_id", "_identity")
    return collapsed.withColumn(
        "customer_id",
        F.when(told == REJECTED, F.col("_identity"))
        .when(told.startswith(LEFT_OUT), packed)
        .otherwise(F.col("_id")),
    ).select(
        "customer_id",
        "first_name",
        "last_name",
        "gender",
        "birthday",
        "email",
        "phone_no",
        F.lit(drop_date).cast("date").alias("drop_date"),
        *STAGED,
    )


def _collapse(
    typed: "DataFrame",
    drop_date: str,
    *,
    raw_columns: Sequence[str],
    reason: "Column",
    part: "Column",
    values: Mapping[str, "Column"],
    left_out: "Column | None" = None,
) -> "DataFrame":
    """One row for each distinct raw row, the index left out, with how often it stood in the drop.

    Columns: ``_identity``, those of ``values``, and STAGED. A good row's identity is the first 32
    hex digits of SHA-256 over the drop's date and the raw text. A rejected row goes with the good
    ones, so that the input is read once: its part is REJECTED, and its identity is the reason and
    the row's text (``split_rejected``), the index included. ``part`` is made of ``values``.

    So does a good row of which ``left_out`` says that, and why, a side attribute was: its part's
    name begins with LEFT_OUT, and its identity is a good row's and what is told of it
    (``split_left_out``). As that has the index, copies are still to be taken out of these.

    All rows of an identity are equal, so that the values divide no group: they stand in the
    group's key rather than in aggregates, which take the embedded engine half as long again.
    """
    from pyspark.sql import functions as F  # noqa: N812

    line_id = identity_of(
        [F.lit(drop_date), *(F.col(name) for name in raw_columns if name != "index")]
    )
    text = F.concat_ws(",", *(F.coalesce(F.col(name), F.lit("")) for name in raw_columns))
    between = F.lit(BETWEEN)
    identity = F.when(reason.isNotNull(), F.concat(reason, between, text))
    if left_out is not None:
        told = F.concat(between, line_id, left_out, between, text)
        identity = identity.when(left_out.isNotNull(), told)
    identity = identity.otherwise(line_id)
    identified = typed.select(
        identity.alias("_identity"), *(value.alias(name) for name, value in values.items())
    )
    grouped = identified.groupBy("_identity", *values).agg(F.count(F.lit(1)).alias(STAGED_COPIES))
    # Told by the length, once for each group: a reason is longer than an id.
    is_good = F.length("_identity") == ID_DIGITS
    is_left_out = F.col("_identity").startswith(BETWEEN)
    return grouped.withColumns(
        {
            STAGED_DROP: F.lit(drop_date),
            STAGED_PART: F.when(is_good, part)
            .when(is_left_out, F.concat(F.lit(LEFT_OUT), part))
            .otherwise(F.lit(REJECTED)),
            STAGED_COPIES: F.col(STAGED_COPIES).cast("string"),
        }
    )


def _try_cast(text: "Column", kind: str) -> "Column":
    """Null where the text, whose shape was tested, names no value: 2018-02-30."""
    return text.try_cast(kind)


def _before_point(text: "Column") -> "Column":
    from pyspark.sql import functions as F  # noqa: N812

    return F.substring_index(text, ".", 1)


def _id(column: str) -> "Column":
    """An id; one of digits without the point that floats write behind it, in whichever file."""
    from pyspark.sql import functions as F  # noqa: N812

    text = F.col(column)
    # The pattern is for those few: over all ids it would take a tenth of the lake's time.
    digits = F.when(text.rlike(_DIGITS_WITH_POINT), _before_point(text)).otherwise(text)
    return F.when(text.contains("."), digits).otherwise(text)


def _expected(column: str, expected: str) -> "Column":
    """The reason of a rejected row: the column, what was expected and what was found."""
    from pyspark.sql import functions as F  # noqa: N812

    value = F.translate(F.col(column), BETWEEN, " ")  # a reason ends at the first of these
    found = F.coalesce(F.concat(F.lit("'"), value, F.lit("'")), F.lit("none"))
    return F.concat(F.lit(f"{column}: expected {expected}, found "), found)


def split_rejected(identity: str) -> tuple[str, str]:
    """Reason and text of a rejected row, of the identity that it was staged under."""
    reason, _, text = identity.partition(BETWEEN)
    return reason, text


class LeftOut(NamedTuple):
    """A good row of which a side attribute was left out: why, its text, and what it is known by."""

    reason: str
    text: str
    row_id: str
    line_id: str


def split_left_out(packed: str) -> LeftOut:
    """What is told of a row whose part begins with LEFT_OUT, of the id that it was staged under."""
    length, _, rest = packed.partition(BETWEEN)
    row_id, told = rest[: int(length)], rest[int(length) + 1 :]
    reason, _, text = told[ID_DIGITS:].partition(BETWEEN)
    return LeftOut(reason, text, row_id, told[:ID_DIGITS])


@dataclass(frozen=True)
class SmallTable:
    """A small table as typed: its rows, how many copies were left out, and (reason, text) of bad.

    ``rows`` has the dataset's columns in order. ``rejected`` are not among them; of those in
    ``left_out`` a side attribute is not.
    """

    rows: "pd.DataFrame"
    duplicates: int
    rejected: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...] = ()


def write_points_small(raw: "pd.DataFrame", columns: Iterable[str]) -> "pd.DataFrame":
    """As ``write_points``, of a small table."""
    pattern = rf"{_WITH_COMMA}$"
    return raw.assign(
        **{name: raw[name].str.replace(pattern, r"\1.\2", regex=True) for name in columns}
    )


def type_outlets(raw: "pd.DataFrame") -> SmallTable:
    """Outlets of the raw file's text columns: values trimmed, postcodes of five digits.

    A postcode delivered without its leading zeros is padded; an address without one stays so, and
    one that cannot be read is left out.
    """
    rows = _trimmed(raw)
    rows["outlet_id"] = _whole(_typed(rows["outlet_id"]))
    postcode = _whole(_typed(rows["postcode"]))
    is_digits = _matches(postcode, r"[0-9]{1,5}")
    rows["postcode"] = postcode.where(is_digits).str.zfill(5)
    bad = {"outlet_id": ("one", rows["outlet_id"].isna())}
    left_out = {"postcode": ("up to five digits or none", postcode.notna() & ~is_digits)}
    return _small_table(raw, rows, bad, left_out, OUTLET, "outlet_id")


def type_products(raw: "pd.DataFrame") -> SmallTable:
    """Products of the raw file's text columns: the price a decimal, names' encoding repaired.

    A number in the price list that cannot be read is left out.
    """
    from decimal import Decimal

    rows = _trimmed(raw)
    rows["product_id"] = _whole(_typed(rows["product_id"]))
    price = rows["product_price"].str.extract(r"^RM\s*([0-9]{1,6}(?:\.[0-9]{1,2})?)$")[0]
    number = _whole(_typed(rows["no"]))
    is_number = _matches(number, r"[0-9]{1,9}")
    bad = {
        "product_id": ("one", rows["product_id"].isna()),
        "product_price": ("RM and up to two decimals, such as RM 9.90", price.isna()),
    }
    left_out = {"no": ("a whole number or none", number.notna() & ~is_number)}
    rows["product_price"] = price.map(lambda text: Decimal(text), na_action="ignore")
    rows["product_name"] = rows["product_name"].map(repair_encoding, na_action="ignore")
    rows["no"] = number.where(is_number).astype("Int32")
    return _small_table(raw, rows, bad, left_out, PRODUCT, "product_id")


def _typed(texts: "pd.Series[str]") -> "pd.Series[str]":
    """Texts of a column of numbers or codes: null for a word that means none."""
    return texts.mask(texts.isin(MISSING_WORDS))


def _whole(texts: "pd.Series[str]") -> "pd.Series[str]":
    """Digits without the point that floats write behind them: 50000.0 is 50000."""
    return texts.str.replace(rf"^([0-9]+){_POINT}$", r"\1", regex=True)


def _matches(texts: "pd.Series[str]", pattern: str) -> "pd.Series[bool]":
    return texts.str.fullmatch(pattern).fillna(False).astype(bool)


def repair_encoding(text: str) -> str:
    """Text that was UTF-8, was read as Windows-1252 or Latin-1 and written as UTF-8 again.

    Text of which that cannot be so comes back as it is: LattÃ© becomes Latté, Café stays.
    """
    try:
        repaired = b"".join(map(_single_byte, text)).decode("utf-8")
    except UnicodeError:
        return text
    return text if repaired == text else repair_encoding(repaired)


def _single_byte(character: str) -> bytes:
    # Many readers take Latin-1's control characters for the bytes that Windows-1252 leaves open.
    try:
        return character.encode("cp1252")
    except UnicodeError:
        return character.encode("latin-1")


def _trimmed(raw: "pd.DataFrame") -> "pd.DataFrame":
    import pandas as pd

    rows = raw.apply(lambda column: column.astype("string").str.strip())
    return rows.mask(rows == "", pd.NA)


def _small_table(
    raw: "pd.DataFrame",
    rows: "pd.DataFrame",
    bad: Mapping[str, tuple[str, "pd.Series[bool]"]],
    left_out: Mapping[str, tuple[str, "pd.Series[bool]"]],
    dataset: Dataset,
    key: str,
) -> SmallTable:
    """Leave out copies of whole rows, and reject bad ones and those of a key that is taken.

    ``bad`` and ``left_out`` have, of a column, what was expected and which rows have another value.
    """
    import pandas as pd

    def reasons(column: str, expected: str) -> "pd.Series[str]":
        found = raw[column].map(lambda value: f"'{value}'", na_action="ignore").fillna("none")
        return f"{column}: expected {expected}, found " + found.astype("object")

    def told(why: "pd.Series[str]") -> list[tuple[str, str]]:
        texts = [",".join(row) for row in raw.loc[why.index].astype("object").fillna("").values]
        return list(zip(why, texts, strict=True))

    is_copy = raw.duplicated()
    why = pd.Series(None, index=raw.index, dtype="object")
    for column, (expected, applies) in bad.items():
        why = why.mask(why.isna() & applies.astype(bool), reasons(column, expected))
    good = ~is_copy & why.isna()
    is_taken = good & rows[key].where(good).duplicated() & rows[key].notna()
    why = why.mask(is_taken, f"{key}: expected once, found again with other values")
    good &= ~is_taken
    return SmallTable(
        rows[good][list(dataset.column_names)],
        int(is_copy.sum()),
        tuple(told(why[~is_copy & why.notna()])),
        tuple(
            entry
            for column, (expected, applies) in left_out.items()
            for entry in told(reasons(column, expected)[good & applies.astype(bool)])
        ),
    )


assert set(CUSTOMER_COLUMNS[1:]) < set(CUSTOMER.column_names)
assert set(SALES_COLUMNS[1:]) < set(SALES.column_names)

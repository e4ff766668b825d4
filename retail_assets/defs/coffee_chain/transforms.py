"""How raw rows of the coffee chain become rows of its tables: small ones in pandas, large in Spark.

A frame in, a frame out. Not here: files, partitions, Dagster. Spark's functions use only what the
embedded engine and the JVM's Spark execute alike; a parity test runs them on both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retail_assets.dataset import Dataset
from retail_assets.defs.coffee_chain.contract import CUSTOMER, OUTLET, PRODUCT, SALES
from retail_assets.identity import BETWEEN, ID_DIGITS, identity_of

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import Column, DataFrame

# To be raised when the same bytes would become other rows: every drop then is new work.
TYPING_VERSION = "2"

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
WHOLE = "all"

# The year 0000 is one of Spark's, not of the warehouses'. The end is \z: before a last line end,
# $ matches on the JVM and does not on the embedded engine.
_DAY = "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])-[0-9]{2}-[0-9]{2}"
_DATE = rf"^{_DAY}\z"
_DATE_TIME = rf"^{_DAY} ([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\z"
_WHOLE_NUMBER = r"^-?[0-9]+\z"


def stage_sales(raw: "DataFrame", drop_date: str) -> "DataFrame":
    """Lines of one drop, typed, each distinct one once.

    ``raw`` has the text columns SALES_COLUMNS. The result has the columns of SALES and STAGED (see
    ``_collapse``); a part is the year of the sale.
    """
    from pyspark.sql import functions as F  # noqa: N812  (as Spark's own documentation has it)

    at = F.when(F.col("date_time").rlike(_DATE_TIME), _try_cast("date_time", "timestamp_ntz"))
    quantity = F.when(F.col("quantity").rlike(_WHOLE_NUMBER), _try_cast("quantity", "int"))
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
            "customer_id": F.col("customer_id"),
            "outlet_id": F.col("outlet_id"),
            "product_id": F.col("product_id"),
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

    birthday = F.when(F.col("birthday").rlike(_DATE), _try_cast("birthday", "date"))
    typed = raw.withColumn("_birthday", birthday)
    reason = F.when(F.col("customer_id").isNull(), F.lit("customer_id: expected one, found none"))
    reason = reason.when(
        F.col("birthday").isNotNull() & F.col("_birthday").isNull(),
        _expected("birthday", "a valid YYYY-MM-DD or none"),
    )
    plain = ("first_name", "last_name", "gender", "email", "phone_no")
    collapsed = _collapse(
        typed,
        drop_date,
        raw_columns=CUSTOMER_COLUMNS,
        reason=reason,
        part=F.lit(WHOLE),
        values={
            "_id": F.col("customer_id"),
            "birthday": F.col("_birthday"),
            **{name: F.col(name) for name in plain},
        },
    )
    is_rejected = F.col(STAGED_PART) == REJECTED
    return collapsed.withColumn(
        "customer_id", F.when(is_rejected, F.col("_identity")).otherwise(F.col("_id"))
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
) -> "DataFrame":
    """One row for each distinct raw row, the index left out, with how often it stood in the drop.

    Columns: ``_identity``, those of ``values``, and STAGED. A good row's identity is the first 32
    hex digits of SHA-256 over the drop's date and the raw text. A rejected row goes with the good
    ones, so that the input is read once: its part is REJECTED, and its identity is the reason and
    the row's text (``split_rejected``), the index included. ``part`` is made of ``values``.

    All rows of an identity are equal, so that the values divide no group: they stand in the
    group's key rather than in aggregates, which take the embedded engine half as long again.
    """
    from pyspark.sql import functions as F  # noqa: N812

    line_id = identity_of(
        [F.lit(drop_date), *(F.col(name) for name in raw_columns if name != "index")]
    )
    text = F.concat_ws(",", *(F.coalesce(F.col(name), F.lit("")) for name in raw_columns))
    identity = F.when(reason.isNull(), line_id).otherwise(F.concat(reason, F.lit(BETWEEN), text))
    identified = typed.select(
        identity.alias("_identity"), *(value.alias(name) for name, value in values.items())
    )
    grouped = identified.groupBy("_identity", *values).agg(F.count(F.lit(1)).alias(STAGED_COPIES))
    # Told by the length, once for each group: a reason is longer than an id.
    is_good = F.length("_identity") == ID_DIGITS
    return grouped.withColumns(
        {
            STAGED_DROP: F.lit(drop_date),
            STAGED_PART: F.when(is_good, part).otherwise(F.lit(REJECTED)),
            STAGED_COPIES: F.col(STAGED_COPIES).cast("string"),
        }
    )


def _try_cast(column: str, kind: str) -> "Column":
    from pyspark.sql import functions as F  # noqa: N812

    return F.col(column).try_cast(kind)


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


@dataclass(frozen=True)
class SmallTable:
    """A small table as typed: its rows, how many copies were left out, and (reason, text) of bad.

    ``rows`` has the dataset's columns in order.
    """

    rows: "pd.DataFrame"
    duplicates: int
    rejected: tuple[tuple[str, str], ...]


def type_outlets(raw: "pd.DataFrame") -> SmallTable:
    """Outlets of the raw file's text columns: values trimmed, postcodes of five digits.

    A postcode delivered without its leading zeros is padded; an address without one stays so.
    """
    rows = _trimmed(raw)
    postcode = rows["postcode"]
    is_digits = postcode.str.fullmatch(r"[0-9]{1,5}").fillna(False).astype(bool)
    bad = {
        "outlet_id": ("one", rows["outlet_id"].isna()),
        "postcode": ("up to five digits or none", postcode.notna() & ~is_digits),
    }
    rows["postcode"] = postcode.str.zfill(5)
    return _small_table(raw, rows, bad, OUTLET, "outlet_id")


def type_products(raw: "pd.DataFrame") -> SmallTable:
    """Products of the raw file's text columns: the price a decimal, names' encoding repaired."""
    from decimal import Decimal

    rows = _trimmed(raw)
    price = rows["product_price"].str.extract(r"^RM\s*([0-9]{1,6}(?:\.[0-9]{1,2})?)$")[0]
    number = rows["no"].str.fullmatch(r"[0-9]{1,9}").fillna(False).astype(bool)
    bad = {
        "product_id": ("one", rows["product_id"].isna()),
        "product_price": ("RM and up to two decimals, such as RM 9.90", price.isna()),
        "no": ("a whole number or none", rows["no"].notna() & ~number),
    }
    rows["product_price"] = price.map(lambda text: Decimal(text), na_action="ignore")
    rows["product_name"] = rows["product_name"].map(repair_encoding, na_action="ignore")
    rows["no"] = rows["no"].where(number).astype("Int32")
    return _small_table(raw, rows, bad, PRODUCT, "product_id")


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
    dataset: Dataset,
    key: str,
) -> SmallTable:
    """Leave out copies of whole rows, and reject bad ones and those of a key that is taken.

    ``bad`` has, of a column, what was expected and which rows have another value.
    """
    import pandas as pd

    is_copy = raw.duplicated()
    why = pd.Series(None, index=raw.index, dtype="object")
    for column, (expected, applies) in bad.items():
        found = raw[column].map(lambda value: f"'{value}'", na_action="ignore").fillna("none")
        reason = f"{column}: expected {expected}, found " + found.astype("object")
        why = why.mask(why.isna() & applies.astype(bool), reason)
    good = ~is_copy & why.isna()
    is_taken = good & rows[key].where(good).duplicated() & rows[key].notna()
    why = why.mask(is_taken, f"{key}: expected once, found again with other values")
    rejected = raw[~is_copy & why.notna()]
    texts = [",".join(row) for row in rejected.astype("object").fillna("").values]
    return SmallTable(
        rows[good & ~is_taken][list(dataset.column_names)],
        int(is_copy.sum()),
        tuple(zip(why[rejected.index], texts, strict=True)),
    )


assert set(CUSTOMER_COLUMNS[1:]) < set(CUSTOMER.column_names)
assert set(SALES_COLUMNS[1:]) < set(SALES.column_names)

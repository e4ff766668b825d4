"""What a row is known by where its source gives it no key: a digest of its values, in Spark.

Not here: which values a table's identity is made of (each domain's transforms.py); the digest that
online_retail makes in SQL, of rows that were held against the same control characters before.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import Column

ID_DIGITS = 32
BETWEEN = "\x1f"  # "unit separator"
NULL = "\x1e"


def identity_of(texts: "Sequence[Column]") -> "Column":
    """First ID_DIGITS hex digits of SHA-256 over texts with BETWEEN between them, NULL for none.

    Rows that differ never have the same bytes digested: where a text holds one of the two
    characters itself, the lengths of all texts follow, in characters, empty for none.
    """
    from pyspark.sql import functions as F  # noqa: N812  (as Spark's own documentation has it)

    none = F.lit("")
    joined = F.concat_ws(BETWEEN, *(F.coalesce(text, F.lit(NULL)) for text in texts))
    lengths = (F.coalesce(F.length(text).cast("string"), none) for text in texts)
    # Over all at once: a tenth of a second for ten million rows; column by column, most of one.
    is_odd = F.concat_ws("", *texts).rlike(f"[{NULL}{BETWEEN}]")
    digested = F.when(is_odd, F.concat_ws(BETWEEN, joined, *lengths)).otherwise(joined)
    return F.left(F.sha2(digested, 256), F.lit(ID_DIGITS))

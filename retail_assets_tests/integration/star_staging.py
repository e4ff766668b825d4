"""Type a lake's messages of the supply chain by one Spark: ``python -m ... MASTER LAKE FOLDER``.

Here: what test_spark_parity.py runs once for each engine, as a process takes one Spark, and the
messages. Not here: the comparison.
"""

import random
import sys
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq

from retail_assets.defs.supply_chain.contract import MESSAGES
from retail_assets.defs.supply_chain.transforms import TYPED_COLUMNS, type_messages
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.spark import SparkResource
from retail_assets_tests.defs.supply_chain.star_messages import Message, random_messages

DAYS = ("2026-01-05", "2026-01-06")
MONEY = [
    *("0.005", "-0.005", "0.00499999999999999999", "2.675", "-2.675", "299.980011", "-0", "0"),
    *("1.5E-05", "5e-3", "-5E-3", "4.999E-03", "1E+5", "0e99", "7e-99", "0012.5", "1e0", "12e-1"),
    *("123456789012345678e-3", "0.00000000000000000001e15", "9999999999999999.99"),
    *("-9999999999999999.994", "0.00000000000000000001"),
]
TIMES = [
    *("1/31/18 22:56", "01/31/2018 22:56", "12/1/2199 0:00", "2/29/00 1:02", "1/1/1900 23:59"),
    *("10/10/1918 0:00", "3/25/2018 02:30", "12/31/69 9:09"),
    *("2018-03-25 02:30:00", "1900-01-01", "1918-10-10T00:00:00.000001", "2199-12-31 11:59:59 pm"),
]
TEXTS = [
    "Bogot\u00e1",
    "e\u0301",
    "\u65e5\u672c",
    " a ",
    "\x1e",
    "\x1e\x1f\U0001f642",
    "a\x1fb",
    "\\",
    "'",
    '"',
    "\n",
    "null",
]
# What is not of its column's shape is none, whatever an engine would make of it.
SIDES = [
    *("", "NULL", "\\N", " NA ", "nan", "NaN", "Infinity", "1L", "1d", "1e3", "+1", " 1", "1 "),
    *("1.", ".5", "1.5", "1.0", "-1.00", "1\n", "0x1", "\u0661", "true", "9999999999", "1e-9"),
]
ZIPCODES = [*SIDES, "94103", "94103.0", "00725.00", "94103-1234", "9.41E+04", "SW1A 1AA", "725.5"]


def odd_messages() -> dict[str, list[Message]]:
    """Messages by day: random ones, and each odd value in the columns where it may be."""
    first = random_messages(random.Random(7), 200)
    odd = [
        *({"sales": text, "order_item_discount": text, "product_price": text} for text in MONEY),
        *(
            {"latitude": text, "order_item_discount_rate": text}
            for text in ("5e-10", "1e-9", "999")
        ),
        *({"order_date": text, "shipping_date": text} for text in TIMES),
        *(
            {"product_status": text, "product_category_id": text, "latitude": text}
            for text in SIDES
        ),
        *({"order_zipcode": text, "customer_zipcode": text} for text in ZIPCODES),
        *({"order_city": text, "customer_fname": text, "shipping_mode": text} for text in TEXTS),
    ]
    second = [
        Message(0, n, incarnation="second", started_at=datetime(2026, 1, 6)).with_values(
            **values, order_item_id=str(1000 + n), customer_id=str(n), product_card_id=str(n)
        )
        for n, values in enumerate(odd)
    ]
    return {DAYS[0]: first, DAYS[1]: second}


def stage(master: str, lake: Path, folder: Path) -> None:
    """Type all messages of a lake, those of each day as one file of its name in ``folder``."""
    spark = SparkResource(master=master)
    for day in DAYS:
        files = LocalLake(root=str(lake)).partition_uris(MESSAGES, [day])
        messages = spark.read_parquet(files, MESSAGES)
        typed = type_messages(messages, day, [column.name for column in TYPED_COLUMNS])
        pq.write_table(typed.toArrow(), folder / f"{day}.parquet")


if __name__ == "__main__":
    stage(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))

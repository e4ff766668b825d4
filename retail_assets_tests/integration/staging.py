"""Stage a lake's drops of the coffee chain by one Spark: ``python -m ... MASTER LAKE FOLDER``.

Here: what test_spark_parity.py runs once for each engine, as a process takes one Spark. Not here:
the comparison.
"""

import json
import sys
from dataclasses import asdict
from functools import reduce
from pathlib import Path

from retail_assets.defs.coffee_chain.contract import RAW_CUSTOMER, RAW_SALES, RawFiles
from retail_assets.defs.coffee_chain.transforms import STAGED, write_points
from retail_assets.defs.coffee_chain.typing import CUSTOMER_DROPS, SALES_DROPS
from retail_assets.resources.spark import SparkResource
from retail_assets.resources.tabular import scan_csv

KINDS = {"sales": (RAW_SALES, SALES_DROPS), "customers": (RAW_CUSTOMER, CUSTOMER_DROPS)}


def dates_of(kind: RawFiles, lake: Path) -> list[str]:
    """The drops of a kind that lie in a lake."""
    before, after = kind.path.split("{date}")
    return sorted(
        str(path.relative_to(lake))[len(before) :].removesuffix(after)
        for path in lake.glob(kind.name("*"))
    )


def stage(master: str, lake: Path, folder: Path) -> None:
    """Stage all drops of each kind as one frame in ``folder/KIND``, and their scans as JSON.

    ``folder/text/DATE`` has each drop of sales as it was read, by the outlet's id.
    """
    spark = SparkResource(master=master)
    scans = {}
    for name, (raw, large) in KINDS.items():
        staged = []
        for date in dates_of(raw, lake):
            scan = scan_csv(lake / raw.name(date), raw.header, folder / "scratch")
            rows = spark.read_csv(scan.file, large.columns, quoted=scan.quoted)
            if scan.delimiter != ",":
                rows = write_points(rows, large.numbers)
            staged.append(large.stage_rows(rows, date))
            if name == "sales":
                rows = rows.fillna("none", ["outlet_id"])
                spark.write(rows, folder / "text" / date, ["outlet_id"])
            copied = not scan.file.is_relative_to(lake)
            scans[f"{name}/{date}"] = asdict(scan) | {"file": "copy" if copied else "as it lies"}
        spark.write(reduce(lambda a, b: a.unionAll(b), staged), folder / name, STAGED)
    (folder / "scans.json").write_text(json.dumps(scans))


if __name__ == "__main__":
    stage(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))

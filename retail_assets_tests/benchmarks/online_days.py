"""What a day of online retail costs in one run, for more and more days: it has to stay the same.

Rows are made up and few: what is measured is a partition, not its rows. Not here: printing
(report.py).

    python -m retail_assets_tests.benchmarks.online_days FOLDER
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

SIZES = (374, 3_000, 12_000)
_ROWS_A_DAY = 20
_FIRST = date(1985, 1, 1)
_TYPED = f"""
select
    date '{_FIRST}' + (i // {_ROWS_A_DAY})::integer as invoice_date,
    'made up' as _source, i as _row,
    sha256(i::varchar)[:32] as transaction_id, '536365' as invoice_no, '85123A' as stock_code,
    'WHITE HEART' as description, 6::bigint as quantity,
    invoice_date::timestamp as invoice_datetime,
    2.55::decimal(12, 3) as unit_price, i % 4000 as customer_id, 'EIRE' as country,
    null::varchar as _reason, null::varchar as _text, null::varchar[] as _left_out,
    1::bigint as _copies
from range({{days}} * {_ROWS_A_DAY}) as rows(i)
"""


@dataclass(frozen=True)
class Told:
    """Milliseconds a day of a first run over ``days``, and of one that replaces all of them.

    ``one_day_ms`` is a run of one day in a table of that many.
    """

    days: int
    first_ms: float
    again_ms: float
    one_day_ms: float


def measure(folder: Path, days: int) -> Told:
    """Write made-up days to a lake below ``folder``, all of them twice, then one."""
    import duckdb

    from retail_assets.defs.online_retail.feed import FEED
    from retail_assets.feeds.snapshot.definitions import write_days
    from retail_assets.feeds.snapshot.manifest import Manifest, write_manifest
    from retail_assets.feeds.snapshot.rows import TypedRows
    from retail_assets.resources.lake.folder import LocalLake

    lake = LocalLake(root=str(folder / f"lake_{days}"))
    version = "made-up"
    empty = Manifest(FEED.name, version, (), ("made up",), (), days * _ROWS_A_DAY, 0, {})
    typed = lake.path(empty.typed)
    typed.parent.mkdir(parents=True)
    with duckdb.connect() as connection:
        connection.sql(_TYPED.format(days=days)).write_parquet(str(typed))
        rows = TypedRows(connection, FEED, f"read_parquet('{typed}')")
        found = rows.ledgers(_FIRST, date.max)
    write_manifest(lake, replace(empty, days=found))

    def run(keys: list[str]) -> float:
        started = time.perf_counter()
        write_days(FEED, lake, "bench", keys)
        return (time.perf_counter() - started) * 1000 / len(keys)

    every = sorted(found)
    assert len(every) == days
    return Told(days, run(every), run(every), run(every[:1]))


if __name__ == "__main__":
    measure(Path(sys.argv[1]), 2)  # imports
    print(json.dumps([asdict(measure(Path(sys.argv[1]), days)) for days in SIZES]))

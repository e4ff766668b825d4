"""The coffee chain's baseline: one script of bare DuckDB that ends with the product's tables.

From raw CSVs to Parquet by drop and year (rows typed, bad ones quarantined, copies left out, each
line hashed), the warehouse's tables loaded from these, then every dbt model, executed as the SQL
that dbt compiled. No tests, no record of what was done, no file that is not as expected. What a
good engineer would tune is tuned: nothing is sniffed, a drop's CSV is read once, its distinct lines
are found before they are hashed, and written in the order of time, which compresses best.

    python -m retail_assets_tests.benchmarks.bare_coffee LAKE FOLDER MODELS.json

The last line it prints is a JSON object: the seconds of the stages.
"""

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from retail_assets.defs.coffee_chain.contract import (
    CUSTOMER,
    DOMAIN,
    OUTLET,
    PRODUCT,
    RAW_CUSTOMER,
    RAW_OUTLET,
    RAW_PRODUCT,
    RAW_SALES,
    SALES,
    WAREHOUSE,
    RawFiles,
)
from retail_assets.defs.coffee_chain.transforms import repair_encoding

# dbt's compiled SQL names the database, which DuckDB calls after the file.
DATABASE = "warehouse.duckdb"
PROCESSED, QUARANTINE = f"processed/{DOMAIN}", f"quarantine/{DOMAIN}"

# The level of the embedded engine's own writer.
_PARQUET = "format parquet, compression zstd, compression_level 1"
_REJECTED = "__HIVE_DEFAULT_PARTITION__"

_SOLD_AT = "case when length(date_time) = 19 then try_strptime(date_time, '%Y-%m-%d %H:%M:%S') end"
_UNITS = "case when regexp_full_match(quantity, '-?[0-9]+') then try_cast(quantity as integer) end"

# A rejected line goes with the good ones, so that the file is read once: it has no year, and its
# reason and text in place of its id.
_SALES = f"""
with delivered as (
    select
        *,
        case
            when ({_SOLD_AT}) is null then 'date_time: expected YYYY-MM-DD HH:MM:SS'
            when ({_UNITS}) is null then 'quantity: expected a whole number of 32 bits'
        end as reason
    from {{read}}
),

lines as (
    select
        invoice_no, date_time, customer_id, outlet, product, quantity, reason,
        case when reason is not null then "index" end as rejected_index
    from delivered
    group by all
)

select
    case
        when reason is null then sha256(concat_ws(
            chr(31), '{{drop}}', coalesce(invoice_no, chr(30)), date_time,
            coalesce(customer_id, chr(30)), coalesce(outlet, chr(30)),
            coalesce(product, chr(30)), quantity
        ))[:32]
        else concat_ws(chr(31), reason, array_to_string([
            coalesce(field, '') for field in
            [rejected_index, invoice_no, date_time, customer_id, outlet, product, quantity]
        ], ','))
    end as sale_line_id,
    date '{{drop}}' as drop_date,
    invoice_no,
    case when reason is null then {_SOLD_AT} end as date_time,
    (case when reason is null then {_SOLD_AT} end)::date as sale_date,
    year(case when reason is null then {_SOLD_AT} end)::integer as sale_year,
    customer_id,
    outlet as outlet_id,
    product as product_id,
    {_UNITS} as quantity
from lines
order by date_time
"""

_SALES_QUARANTINE = """
select
    date '{drop}' as drop_date,
    '{file}' as file,
    split_part(sale_line_id, chr(31), 1) as reason,
    split_part(sale_line_id, chr(31), 2) as text
from read_parquet('{rejected}/*.parquet')
"""

_BORN = "case when length(birthday) = 10 then try_strptime(birthday, '%Y-%m-%d')::date end"
_IS_BAD = f"customer_id is null or (birthday is not null and ({_BORN}) is null)"

_CUSTOMER = f"""
select distinct
    customer_id, first_name, last_name, gender, {_BORN} as birthday, email, phone_no,
    date '{{drop}}' as drop_date
from {{read}}
where not ({_IS_BAD})
"""

_CUSTOMER_QUARANTINE = f"""
select
    date '{{drop}}' as drop_date,
    '{{file}}' as file,
    'customer_id or birthday' as reason,
    array_to_string([
        coalesce(field, '') for field in
        ["index", customer_id, first_name, last_name, gender, birthday, email, phone_no]
    ], ',') as text
from {{read}}
where {_IS_BAD}
"""

_OUTLET = """
select distinct
    trim(outlet_id) as outlet_id, trim(outlet_name) as outlet_name,
    trim(outlet_address) as outlet_address, trim(outlet_state) as outlet_state,
    lpad(trim(postcode), 5, '0') as postcode, trim(district) as district
from {read}
"""

_PRODUCT = """
select distinct
    no::integer as no, trim(product_id) as product_id, repaired(trim(product_name)) as product_name,
    regexp_extract(product_price, '^RM\\s*([0-9.]+)$', 1)::decimal(8, 2) as product_price
from {read}
"""


def drops_of(lake: Path, raw: RawFiles) -> dict[str, Path]:
    """The dated files of a kind, by date, in order."""
    prefix, suffix = raw.path.split("{date}")
    files = sorted((lake / prefix).parent.glob(f"*{suffix}"))
    return {str(f.relative_to(lake))[len(prefix) : -len(suffix)]: f for f in files}


def read_csv(file: Path, header: Sequence[str]) -> str:
    """The table function that reads a raw file as text columns, none of them guessed."""
    columns = ", ".join(f"'{name or 'index'}': 'VARCHAR'" for name in header)
    return (
        f"read_csv('{file}', header = true, auto_detect = false, delim = ',', quote = '\"',"
        f" escape = '\"', columns = {{{columns}}})"
    )


def write_lake(connection: duckdb.DuckDBPyConnection, lake: Path, folder: Path) -> None:
    """Raw files to Parquet below ``folder``: processed, and quarantine where there is any."""
    for key, file in drops_of(lake, RAW_SALES).items():
        target = folder / PROCESSED / SALES.name / f"drop_date={key}"
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = _SALES.format(read=read_csv(file, RAW_SALES.header), drop=key)
        connection.execute(
            f"copy ({lines}) to '{target}'"
            f" ({_PARQUET}, partition_by (sale_year), write_partition_columns true)"
        )
        rejected = target / f"sale_year={_REJECTED}"
        if rejected.exists():
            query = _SALES_QUARANTINE.format(
                drop=key, file=file.relative_to(lake), rejected=rejected
            )
            _copy(connection, query, folder / QUARANTINE / SALES.name / f"drop_date={key}")
            shutil.rmtree(rejected)
    for key, file in drops_of(lake, RAW_CUSTOMER).items():
        known = {
            "read": read_csv(file, RAW_CUSTOMER.header),
            "drop": key,
            "file": file.relative_to(lake),
        }
        part = f"{CUSTOMER.name}/drop_date={key}"
        _copy(connection, _CUSTOMER.format(**known), folder / PROCESSED / part)
        _copy(connection, _CUSTOMER_QUARANTINE.format(**known), folder / QUARANTINE / part)
    connection.create_function("repaired", repair_encoding, ["VARCHAR"], "VARCHAR")
    for dataset, raw, query in ((OUTLET, RAW_OUTLET, _OUTLET), (PRODUCT, RAW_PRODUCT, _PRODUCT)):
        rows = query.format(read=read_csv(lake / raw.path, raw.header))
        _copy(connection, rows, folder / PROCESSED / dataset.name)


def _copy(connection: duckdb.DuckDBPyConnection, query: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    connection.execute(f"copy ({query}) to '{folder / 'part-0.parquet'}' ({_PARQUET})")


def load_tables(connection: duckdb.DuckDBPyConnection, selects: Mapping[str, str]) -> None:
    """Create the landed tables, each by its query."""
    connection.execute(f"create schema {WAREHOUSE}")
    for table, query in selects.items():
        connection.execute(f"create table {WAREHOUSE}.{table} as {query}")


def build_models(connection: duckdb.DuckDBPyConnection, models: list[dict[str, str]]) -> None:
    """Create dbt's models: schema, name, kind ("table" or "view") and sql, in this order."""
    for model in models:
        connection.execute(f"create schema if not exists {model['schema']}")
        connection.execute(
            f"create {model['kind']} {model['schema']}.{model['name']} as {model['sql']}"
        )


class StageClock:
    """Wall seconds of one stage after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, stage: str) -> None:
        """What passed since the last call, or since the start, was of ``stage``."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


def build(lake: Path, folder: Path, models: list[dict[str, str]]) -> dict[str, float]:
    """Build everything below ``folder``, which is there and empty; returns seconds by stage."""
    clock = StageClock()
    files = {
        table.name: f"{folder / PROCESSED / table.name}/{depth}*.parquet"
        for table, depth in ((OUTLET, ""), (PRODUCT, ""), (CUSTOMER, "*/"), (SALES, "*/*/"))
    }
    with duckdb.connect(str(folder / DATABASE)) as connection:
        write_lake(connection, lake, folder)
        clock.end("lake")
        load_tables(
            connection,
            {
                table: f"select * from read_parquet('{glob}', hive_partitioning = false)"
                for table, glob in files.items()
            },
        )
        clock.end("load")
        build_models(connection, models)
    clock.end("marts")
    return clock.seconds


if __name__ == "__main__":
    print(
        json.dumps(
            build(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text()))
        )
    )

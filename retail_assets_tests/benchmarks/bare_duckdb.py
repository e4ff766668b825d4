"""The baseline: one script of bare DuckDB that ends with the product's tables.

From the CSV to a Parquet partition a day, the landed table loaded from these, then every dbt
model in order, executed as the very SQL that dbt compiled (see online_retail.py). No tests, no
record of what was done, no protection of anything. What a good engineer would tune is tuned:
typed reading without sniffing, one statement from text to partitions, no insertion order,
DuckDB's own compression.

    python -m retail_assets_tests.benchmarks.bare_duckdb SOURCE FOLDER MODELS.json
"""

import json
import sys
from pathlib import Path

import duckdb

LANDED = "online_retail.online_retail_data"
PARTITIONS = "partitions"
# dbt's compiled SQL names the database, which DuckDB calls after the file.
DATABASE = "warehouse.duckdb"

_READ = """
    read_csv(
        '{source}', header = true, auto_detect = false, delim = ',', quote = '"', escape = '"',
        columns = {{
            'invoice_no': 'VARCHAR', 'stock_code': 'VARCHAR', 'description': 'VARCHAR',
            'quantity': 'BIGINT', 'invoice_datetime': 'TIMESTAMP',
            'unit_price': 'DECIMAL(12,3)', 'customer_id': 'DOUBLE', 'country': 'VARCHAR'
        }}
    )
"""

_PROCESSED = """
with typed as (
    select distinct
        trim(invoice_no) as invoice_no,
        trim(stock_code) as stock_code,
        description,
        quantity,
        invoice_datetime,
        unit_price,
        customer_id::bigint as customer_id,
        trim(country) as country
    from {read}
)

select
    sha256(concat(
        invoice_no, chr(31), stock_code, chr(31), coalesce(description, chr(30)), chr(31),
        quantity, chr(31), invoice_datetime, chr(31), unit_price, chr(31),
        coalesce(customer_id::varchar, chr(30)), chr(31), country
    ))[:32] as transaction_id,
    invoice_no,
    stock_code,
    coalesce(lower(description), 'Unknown') as description,
    quantity,
    unit_price,
    (quantity * unit_price)::decimal(18, 3) as total_price,
    coalesce(customer_id, 0) as customer_id,
    country,
    invoice_datetime,
    invoice_datetime::date as invoice_date,
    strftime(invoice_datetime, '%H:%M:%S') as time,
    monthname(invoice_datetime) as month,
    dayname(invoice_datetime) as day,
    year(invoice_datetime)::integer as year,
    case
        when invoice_no ilike 'C%' then 'return'
        when invoice_no ilike 'A%' then 'bad_debt'
        when quantity <= 0 then 'adjustment'
        when unit_price <= 0 then 'gift'
        else 'sale'
    end as line_type,
    regexp_matches(stock_code, '^[0-9]{{5}}') as is_product
from typed
"""


def build(source: Path, folder: Path, models: list[dict[str, str]]) -> None:
    """Build everything below ``folder``, which is there and empty.

    ``models`` have schema, name, kind ("table" or "view") and sql, in the order to build them.
    """
    processed = _PROCESSED.format(read=_READ.format(source=source))
    with duckdb.connect(str(folder / DATABASE)) as connection:
        connection.execute("set preserve_insertion_order = false")
        connection.execute(
            f"copy ({processed}) to '{folder / PARTITIONS}' (format parquet,"
            " partition_by (invoice_date), write_partition_columns true)"
        )
        connection.execute(f"create schema {LANDED.partition('.')[0]}")
        connection.execute(
            f"create table {LANDED} as select * from"
            f" read_parquet('{folder / PARTITIONS}/*/*.parquet', hive_partitioning = false)"
        )
        for model in models:
            connection.execute(f"create schema if not exists {model['schema']}")
            connection.execute(
                f"create {model['kind']} {model['schema']}.{model['name']} as {model['sql']}"
            )


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text()))

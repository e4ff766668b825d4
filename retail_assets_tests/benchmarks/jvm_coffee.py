"""The way of the original: the JVM's Spark to the lake, then a load and the marts.

PySpark on ``local[*]`` reads the CSVs with an explicit schema, adds the year and writes Parquet
with ``partitionBy``; bare DuckDB loads that and makes the marts by the SQL of dbt's models. As the
original, it removes no copies, keeps no bad row and hashes nothing: only its cost is measured.

    python -m retail_assets_tests.benchmarks.jvm_coffee LAKE FOLDER MODELS.json

The last line it prints is a JSON object: the seconds of the stages.
"""

import json
import sys
from pathlib import Path
from typing import Any

from retail_assets.defs.coffee_chain.contract import (
    CUSTOMER,
    OUTLET,
    PRODUCT,
    RAW_CUSTOMER,
    RAW_OUTLET,
    RAW_PRODUCT,
    RAW_SALES,
    SALES,
)
from retail_assets_tests.benchmarks.bare_coffee import (
    DATABASE,
    StageClock,
    build_models,
    drops_of,
    load_tables,
    read_csv,
)

_SALES_SCHEMA = (
    "index int, invoice_no string, date_time timestamp, customer_id string, outlet string,"
    " product string, quantity int"
)
_CUSTOMER_SCHEMA = (
    "index int, customer_id string, first_name string, last_name string, gender string,"
    " birthday date, email string, phone_no string"
)
# What the original has not is empty, so that the same models can be made of it.
_DROP = "date '2022-12-31' as drop_date"
_LOADED = {
    SALES.name: f"""
        select
            ''::varchar as sale_line_id, {_DROP}, invoice_no, date_time::timestamp as date_time,
            date_time::date as sale_date, year as sale_year, customer_id, outlet as outlet_id,
            product as product_id, quantity
        from read_parquet('{{folder}}/sales/*/*.parquet', hive_partitioning = true,
            hive_types = {{{{'year': 'INTEGER'}}}})
        where date_time is not null and quantity is not null
    """,
    CUSTOMER.name: f"""
        select
            customer_id, first_name, last_name, gender, birthday, email, phone_no, {_DROP}
        from read_parquet('{{folder}}/customer/*.parquet')
    """,
    OUTLET.name: "select * from {outlets}",
    PRODUCT.name: """
        select
            no::integer as no, product_id, product_name,
            regexp_extract(product_price, '[0-9.]+')::decimal(8, 2) as product_price
        from {products}
    """,
}


def write_lake(lake: Path, folder: Path) -> None:
    """Raw drops to Parquet by the year of sale, by a JVM that is gone afterwards."""
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as F  # noqa: N812  (as Spark's own documentation has it)

    spark = (
        SparkSession.builder.master("local[*]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.local.dir", str(folder / "spark"))
        .getOrCreate()
    )
    try:
        sales = [str(file) for file in drops_of(lake, RAW_SALES).values()]
        frame = spark.read.schema(_SALES_SCHEMA).option("header", "true").csv(sales)
        frame = frame.withColumn("year", F.year("date_time"))
        frame.write.partitionBy("year").parquet(str(folder / "sales"))
        customers = [str(file) for file in drops_of(lake, RAW_CUSTOMER).values()]
        frame = spark.read.schema(_CUSTOMER_SCHEMA).option("header", "true").csv(customers)
        frame.write.parquet(str(folder / "customer"))
    finally:
        _end(spark)


def _end(spark: Any) -> None:
    """Stop Spark and wait for its JVM: what is not waited for has no CPU seconds."""
    gateway = spark.sparkContext._gateway
    spark.stop()
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait()


def build(lake: Path, folder: Path, models: list[dict[str, str]]) -> dict[str, float]:
    """Build everything below ``folder``, which is there and empty; returns seconds by stage."""
    import duckdb

    clock = StageClock()
    write_lake(lake, folder)
    clock.end("lake")
    known = {
        "folder": folder,
        "outlets": read_csv(lake / RAW_OUTLET.path, RAW_OUTLET.header),
        "products": read_csv(lake / RAW_PRODUCT.path, RAW_PRODUCT.header),
    }
    with duckdb.connect(str(folder / DATABASE)) as connection:
        load_tables(connection, {table: sql.format(**known) for table, sql in _LOADED.items()})
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

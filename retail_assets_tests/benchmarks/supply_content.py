"""What a contestant of the supply chain left: rows, types and a hash, of both sinks and the star.

Here: reading it back, and leaving out what differs from run to run. Not here: comparing
(supply_chain.py), how it was made.

The incarnation, what is derived of it and the broker's time are another in each run. So of an order
only offset and partition count, of a metadata_id that it is the hash of the message which the row
is of, and in the fact that message's place in its stead.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import (
    DEAD_LETTERS,
    DIM_METADATA,
    FACT_ORDER,
    LANDED,
    MESSAGES,
    SOURCE_COLUMNS,
)
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.operational_db import OperationalDbResource

if TYPE_CHECKING:
    import duckdb

_PLACE = "substr(message_order, strpos(message_order, '-'))"
_METADATA_ID = (
    'sha256(concat_ws(chr(31), incarnation, topic, partition::varchar, "offset"::varchar))[:32]'
)
_OF_THE_RUN = ("metadata_id", "message_order", "ingest_date", "time", "incarnation")


def describe_contents(
    lake: Path, home: Path, postgres: str = "embedded"
) -> dict[str, dict[str, Any]]:
    """Contents by name: "lake", "database", "dead letters" and the seven tables.

    ``lake`` has the Parquet files, ``home`` the embedded database's data.
    """
    import duckdb

    with duckdb.connect() as database:
        return {
            "lake": _describe_messages(database, lake),
            **_describe_database(OperationalDbResource(url=postgres, home=str(home))),
            **{dataset.name: _describe(database, lake, dataset) for dataset in LANDED},
        }


def _view(
    database: "duckdb.DuckDBPyConnection", name: str, lake: Path, dataset: Dataset
) -> dict[str, str]:
    """A view on a table's files, or on all in its folder where it is none; its columns' types."""
    files = LocalLake(root=str(lake)).partition_uris(dataset)
    files = files or sorted(str(file) for file in (lake / dataset.location).rglob("*.parquet"))
    names = ", ".join(f"'{file}'" for file in files)
    database.execute(
        f"create view {name} as from read_parquet([{names}], hive_partitioning = false)"
    )
    return {column: kind for column, kind, *_ in database.execute(f"describe {name}").fetchall()}


def _hashed(
    database: "duckdb.DuckDBPyConnection", source: str, values: list[str]
) -> tuple[int, str]:
    shown = ", ".join(values)
    row = database.execute(f"select count(*), sum(hash({shown})) from {source}").fetchone()
    assert row is not None
    return row[0], str(row[1])


def _describe_messages(database: "duckdb.DuckDBPyConnection", lake: Path) -> dict[str, Any]:
    types = _view(database, "messages", lake, MESSAGES)
    names = ["topic", "partition", '"offset"', "key", *(c.name for c in SOURCE_COLUMNS), _PLACE]
    rows, content = _hashed(database, "messages", names)
    return {"rows": rows, "hash": content, "types": types}


def _describe(
    database: "duckdb.DuckDBPyConnection", lake: Path, dataset: Dataset
) -> dict[str, Any]:
    types = _view(database, dataset.name, lake, dataset)
    names = [f'{dataset.name}."{name}"' for name in sorted(types) if name not in _OF_THE_RUN]
    source = dataset.name
    if "message_order" in types:
        names.append(_PLACE)
    if dataset is DIM_METADATA:
        # The message by its place: whether the id is of it.
        source += ' join messages using (topic, partition, "offset")'
        names.append(f"dim_metadata.metadata_id = {_METADATA_ID}")
        names.append("dim_metadata.time = messages.time")
    if dataset is FACT_ORDER:
        source += f" join {DIM_METADATA.name} using (metadata_id)"
        names += [f"{DIM_METADATA.name}.partition", f'{DIM_METADATA.name}."offset"']
    rows, content = _hashed(database, source, names)
    money = [name for name, kind in types.items() if kind == "DECIMAL(18,2)"]
    sums = database.execute(
        f"select count(*){''.join(f', sum({name})' for name in money)} from {dataset.name}"
    ).fetchone()
    assert sums is not None
    return {
        "rows": sums[0],
        "rows with their message": rows,
        "hash": content,
        "types": types,
        "sums": {name: str(value) for name, value in zip(money, sums[1:], strict=True)},
    }


def _describe_database(database: OperationalDbResource) -> dict[str, dict[str, Any]]:
    with database.connect() as connection:
        row = connection.execute(
            "select count(*), sum(hashtextextended(concat_ws('|', topic, partition, \"offset\","
            f" key, payload), 0)::numeric)::text, count(distinct incarnation) from {MESSAGES.table}"
        ).fetchone()
        assert row is not None
        dead = 0
        there = connection.execute("select to_regclass(%s)::text", [DEAD_LETTERS.table]).fetchone()
        if there is not None and there[0] is not None:
            letters = connection.execute(f"select count(*) from {DEAD_LETTERS.table}").fetchone()
            assert letters is not None
            dead = letters[0]
    from retail_assets.resources.operational_db.embedded import EmbeddedPostgres

    EmbeddedPostgres.leave(database.home)
    return {
        "database": {"rows": row[0], "hash": row[1], "incarnations": row[2]},
        "dead letters": {"rows": dead},
    }

"""What BigQuery is told to swap partitions and to record what they hold.

Here: the text of statements. Not here: when they run (bigquery.py), how (jobs.py).
"""

import json
from collections.abc import Mapping, Sequence

from retail_assets.dataset import Dataset
from retail_assets.days import contiguous_ranges


def transaction(statements: Sequence[str]) -> str:
    """A script that does all or nothing."""
    return ";\n".join(["BEGIN TRANSACTION", *statements, "COMMIT TRANSACTION"]) + ";"


def swap_statements(
    dataset: Dataset, table: str, keys: Sequence[str], staging: str | None
) -> list[str]:
    """DELETE of the partitions ``keys``, and INSERT of theirs from ``staging`` if there is one.

    The bounds are literals: by them BigQuery touches no other partition, and bills none. A table
    without partitions is replaced as a whole.
    """
    where = "TRUE"
    if dataset.partition_by:
        where = " OR ".join(
            f"`{dataset.partition_by}` BETWEEN DATE '{first}' AND DATE '{last}'"
            for first, last in contiguous_ranges(keys)
        )
    statements = [f"DELETE FROM {table} WHERE {where}"]
    if staging is not None:
        names = ", ".join(f"`{name}`" for name in dataset.column_names)
        statements.append(
            f"INSERT INTO {table} ({names}) SELECT {names} FROM {staging} WHERE {where}"
        )
    return statements


def record_statements(
    dataset: Dataset, stage: str, record: str, versions: Mapping[str, str]
) -> list[str]:
    """DELETE and INSERT of the record's rows of the partitions ``versions``."""
    table, stage = literal(dataset.table), literal(stage)
    keys = ", ".join(literal(key) for key in versions)
    rows = ", ".join(f"({literal(key)}, {literal(version)})" for key, version in versions.items())
    return [
        f"DELETE FROM {record} WHERE table_name = {table} AND stage = {stage}"
        f" AND partition_key IN ({keys})",
        f"INSERT INTO {record} (table_name, stage, partition_key, version)"
        f" SELECT {table}, {stage}, entry.partition_key, entry.version"
        f" FROM UNNEST(ARRAY<STRUCT<partition_key STRING, version STRING>>[{rows}]) AS entry",
    ]


def literal(text: str) -> str:
    """A string of BigQuery's SQL, whose escapes are JSON's."""
    return json.dumps(text, ensure_ascii=False)

"""The checks of a lake's table whose partitions have ledgers, alike for every feed.

Here: that no row is unaccounted for, that the files are as the contract says, and that a person is
told what was quarantined. Not here: how a ledger comes about (each feed), the marts' tests (dbt).
"""

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor

import dagster as dg

from retail_assets.dataset import Dataset
from retail_assets.losses import (
    Quarantined,
    check_quarantine,
    check_result,
    quarantine_check_spec,
)
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.restoring import set_aside
from retail_assets.resources.lake.tables import Snapshot

BALANCE_CHECK = "ledger_balances"
SCHEMA_CHECK = "schema_matches_contract"
_FOOTERS_AT_ONCE = 8
_MOST_SHOWN = 20


def processed_check_specs(asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """The checks of a table's asset; ``check_processed`` gives their results."""
    return [
        dg.AssetCheckSpec(
            BALANCE_CHECK,
            asset=asset,
            blocking=True,
            description="read = written + duplicates + quarantined: of the run's partitions by the"
            " rows that their files have, of all others by what the table says of its files.",
        ),
        dg.AssetCheckSpec(
            SCHEMA_CHECK,
            asset=asset,
            blocking=True,
            description="The Parquet files' columns and types are those of the contract.",
        ),
        quarantine_check_spec(asset),
    ]


def check_processed(
    lake: LakeResource,
    asset: dg.AssetKey,
    dataset: Dataset,
    quarantine: Dataset,
    keys: Collection[str],
    quarantined: Quarantined,
    taken: Collection[str] = (),
) -> list[dg.AssetCheckResult]:
    """Hold what the lake's tables have against the ledgers and the contract.

    ``keys`` are the run's partitions, ``quarantined`` what of them could not be taken, ``taken``
    those of which there must be a ledger.
    """
    table, other = lake.table(dataset).snapshot(), lake.table(quarantine).snapshot()
    return [
        _check_balance(lake, asset, dataset, table, other, keys, taken),
        _check_schema(lake, asset, dataset, table, keys),
        check_quarantine(asset, quarantined),
    ]


def _check_balance(
    lake: LakeResource,
    asset: dg.AssetKey,
    dataset: Dataset,
    table: Snapshot,
    quarantine: Snapshot,
    keys: Collection[str],
    taken: Collection[str],
) -> dg.AssetCheckResult:
    ledgers = table.ledgers
    inside = [key for key in keys if key in ledgers]
    written = table.rows_of(ledgers) | _rows_by_footers(lake, table, inside)
    told = quarantine.rows_of(ledgers) | _rows_by_footers(lake, quarantine, inside)
    # A partition that a person restored is of then, and its quarantine of now.
    restored = {key for key, then in set_aside(lake, dataset).items() if ledgers.get(key) != then}
    quarantined = {
        key: x.quarantined if key in restored else told[key] - x.left_out
        for key, x in ledgers.items()
    }
    off = {key: "the table has nothing of it" for key in taken if key not in ledgers}
    off |= {
        key: f"read {x.read}, duplicates {x.duplicates}, found {written[key]} rows and"
        f" {quarantined[key]} quarantined"
        for key, x in ledgers.items()
        if (written[key], quarantined[key]) != (x.written, x.quarantined)
    }
    return check_result(
        asset,
        BALANCE_CHECK,
        f"{len(off)} partitions do not balance; materialize them again." if off else "",
        partitions=len(ledgers),
        partitions_by_their_files=len(inside),
        read=sum(x.read for x in ledgers.values()),
        written=sum(written.values()),
        duplicates=sum(x.duplicates for x in ledgers.values()),
        quarantined=sum(quarantined.values()),
        unbalanced=dg.MetadataValue.json(dict(list(off.items())[:_MOST_SHOWN])),
    )


def _rows_by_footers(lake: LakeResource, snapshot: Snapshot, keys: Iterable[str]) -> dict[str, int]:
    """Rows of each partition as its files' footers say; a file that is gone or broken has none."""
    import pyarrow as pa

    def count(uri: str) -> int:
        try:
            return int(lake.read_footer(uri).num_rows)
        except (FileNotFoundError, pa.ArrowInvalid):
            return 0

    rows = dict.fromkeys(keys, 0)
    files = snapshot.filled(rows)
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        counted = pool.map(count, [lake.uri(file.name) for file in files])
        for file, found in zip(files, counted, strict=True):
            rows[file.key] += found
    return rows


def _check_schema(
    lake: LakeResource,
    asset: dg.AssetKey,
    dataset: Dataset,
    table: Snapshot,
    keys: Collection[str],
) -> dg.AssetCheckResult:
    """Of the run's files the first, the middle and the last one."""
    import pyarrow as pa

    expected = {f.name: str(f.type) for f in dataset.arrow_schema}
    files = table.filled(keys)
    off = {}
    for file in {files[0], files[len(files) // 2], files[-1]} if files else ():
        uri = lake.uri(file.name)
        try:
            # A view is how an engine holds a string in memory; in Parquet there is one string.
            found = {
                f.name: str(f.type).replace("string_view", "string") for f in lake.read_schema(uri)
            }
        except (FileNotFoundError, pa.ArrowInvalid) as error:  # what the balance says, is told
            found = {"": str(error)}
        if found != expected:
            off[uri] = found
    return check_result(
        asset,
        SCHEMA_CHECK,
        f"{', '.join(off)}: other columns than the contract's" if off else "",
        expected=dg.MetadataValue.json(expected),
        found=dg.MetadataValue.json(off or expected),
    )

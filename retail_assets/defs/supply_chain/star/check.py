"""The star as it is: its rows, its fingerprints for the warehouse, and whether it is right.

Here: what is read of the star's tables. Not here: building them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import (
    DIM_CUSTOMER,
    DIM_DEPARTMENT,
    DIM_LOCATION,
    DIM_METADATA,
    DIM_PRODUCT,
    DIM_SHIPPING,
    DOMAIN,
    FACT_ORDER,
    LANDED,
)
from retail_assets.defs.supply_chain.star.new import StarError, read_origins
from retail_assets.defs.supply_chain.star.sql import local_files, one, open_database, rows_of
from retail_assets.resources.lake import LakeResource

_FOREIGN_KEYS = (
    DIM_CUSTOMER,
    DIM_PRODUCT,
    DIM_LOCATION,
    DIM_DEPARTMENT,
    DIM_SHIPPING,
    DIM_METADATA,
)


@dataclass(frozen=True)
class StarChecked:
    """How the star's files stand to the contract, by count; all is well where nothing is found.

    ``drifted`` has, by table, columns that differ; ``duplicates`` rows of a key beyond its first;
    ``orphans`` rows of the fact whose key is in no row of the dimension, and ``unused`` rows of
    dim_metadata that no row of the fact has.
    """

    rows: Mapping[str, int]
    drifted: Mapping[str, str]
    duplicates: Mapping[str, int]
    orphans: Mapping[str, int]
    unused: int


def star_versions(lake: LakeResource, dataset: Dataset) -> dict[str, str]:
    """Fingerprint of each partition of a table of the star; WHOLE_TABLE where there are none.

    EMPTY is one that has lost all its rows.

    Raises:
        StarError: it was never built, or its tables are not all of the same messages.
    """
    origins = list(read_origins(lake).values())
    if not origins[0] or any(of != origins[0] for of in origins):
        found = "is half published: a build was killed" if any(origins) else "was never built"
        raise StarError(
            f"the star of {DOMAIN} {found}. Nothing was loaded. Materialize it, then run this"
            " again."
        )
    return lake.table(dataset).snapshot().fingerprints


def star_rows(lake: LakeResource) -> dict[str, int]:
    """Rows of each table of the star, by name; {} where it was never built."""
    there = {dataset.name: lake.table(dataset).snapshot() for dataset in LANDED}
    if there[FACT_ORDER.name].version < 0:
        return {}
    return {name: found.rows for name, found in there.items()}


def check_star(lake: LakeResource) -> StarChecked:
    """Hold the star's files against the contract: columns, keys, and the fact's foreign keys."""
    rows: dict[str, int] = {}
    drifted: dict[str, str] = {}
    duplicates: dict[str, int] = {}
    orphans: dict[str, int] = {}
    unused = 0
    with lake.scratch() as scratch, open_database(scratch) as database:
        for dataset in LANDED:
            files = local_files(lake, lake.table(dataset).snapshot())
            source = f"select * from {rows_of(files)}"
            if not files:
                columns = (f'null::{c.duckdb_type} as "{c.name}"' for c in dataset.columns)
                source = f"select {', '.join(columns)} limit 0"
            database.execute(f"create view {dataset.name} as {source}")
            found = database.execute(f"describe {dataset.name}").fetchall()
            if drift := dataset.compare({name: kind for name, kind, *_ in found}):
                rows[dataset.name] = 0
                drifted[dataset.name] = drift.describe()
                continue
            key = dataset.columns[0].name
            rows[dataset.name], distinct = one(
                database, f"select count(*), count(distinct {key}) from {dataset.name}"
            )
            duplicates[dataset.name] = rows[dataset.name] - distinct
        if not drifted:
            for dataset in _FOREIGN_KEYS:
                key = dataset.columns[0].name
                (orphans[key],) = one(
                    database,
                    f"select count(*) from {FACT_ORDER.name}"
                    f" anti join {dataset.name} using ({key})",
                )
            (unused,) = one(
                database,
                f"select count(*) from {DIM_METADATA.name}"
                f" anti join {FACT_ORDER.name} using (metadata_id)",
            )
    return StarChecked(
        rows,
        drifted,
        {name: n for name, n in duplicates.items() if n},
        {name: n for name, n in orphans.items() if n},
        unused,
    )

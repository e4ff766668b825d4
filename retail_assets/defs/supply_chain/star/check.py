"""The star as it is: its rows, its fingerprints for the warehouse, and whether it is right.

Here: what is read of the star's tables. Not here: building them.
"""

from typing import NamedTuple

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import (
    DIM_METADATA,
    DOMAIN,
    FACT_ORDER,
    LANDED,
    MESSAGES,
)
from retail_assets.defs.supply_chain.star.merge import one, open_database, rows_there
from retail_assets.defs.supply_chain.star.new import StarError, read_origins
from retail_assets.resources.lake import LakeResource


class CheckedTable(NamedTuple):
    """How a table's files stand to the contract: their rows, and what of them is wrong."""

    rows: int
    faults: list[str]


def star_versions(lake: LakeResource, dataset: Dataset) -> dict[str, str]:
    """Fingerprint of each partition of a table of the star, "" of a table without.

    EMPTY is one that has lost all its rows.

    Raises:
        StarError: it was never built, or its tables are not all of the same messages.
    """
    origins = list(read_origins(lake, MESSAGES, LANDED).values())
    if not origins[0] or any(of != origins[0] for of in origins):
        found = "is half published: a build was killed" if any(origins) else "was never built"
        raise StarError(
            f"the star of {DOMAIN} {found}. Nothing was loaded. Materialize it, then run this"
            " again."
        )
    return lake.table(dataset).snapshot().fingerprints


def check_star(lake: LakeResource) -> dict[str, CheckedTable]:
    """Hold the star's files against the contract: columns, keys, and the fact's foreign keys."""
    checked: dict[str, CheckedTable] = {}
    fact, has_drifted = FACT_ORDER.name, False
    with lake.scratch() as scratch, open_database(scratch) as database:
        for dataset in LANDED:
            name, key = dataset.name, dataset.columns[0].name
            snapshot = lake.table(dataset).snapshot()
            found = rows_there(lake, dataset, snapshot)
            database.execute(f"create view {name} as from {found}")
            columns = database.execute(f"describe {name}").fetchall()
            if drift := dataset.compare({column: kind for column, kind, *_ in columns}):
                checked[name] = CheckedTable(snapshot.rows, [drift.describe()])
                has_drifted = True
                continue
            query = f"select count(*), count(*) - count(distinct {key}) from {name}"
            rows, copies = one(database, query)
            told = f"{copies:,} rows have a key that another row has"
            checked[name] = CheckedTable(rows, [told] if copies else [])
        if has_drifted:
            return checked
        for dataset in LANDED[:-1]:  # the fact is the last one
            name, key = dataset.name, dataset.columns[0].name
            query = f"select count(*) from {fact} anti join {name} using ({key})"
            (orphans,) = one(database, query)
            if orphans:
                checked[fact].faults.append(f"{orphans:,} rows have a {key} of no dimension")
        query = f"select count(*) from {DIM_METADATA.name} anti join {fact} using (metadata_id)"
        (unused,) = one(database, query)
        if unused:
            told = f"{unused:,} rows are of no row of {fact}"
            checked[DIM_METADATA.name].faults.append(told)
    return checked

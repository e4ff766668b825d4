"""The star as it is: its rows, its fingerprints for the warehouse, and whether it is right.

Here: what is read of the star's tables. Not here: building them.
"""

from dataclasses import dataclass, field, replace

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


@dataclass(frozen=True)
class StarChecked:
    """How the star's files stand to the contract, by count; all is well where nothing is found.

    ``drifted`` has, by table, columns that differ; ``duplicates`` rows of a key beyond its first;
    ``orphans`` rows of the fact whose key is in no row of the dimension, and ``unused`` rows of
    dim_metadata that no row of the fact has.
    """

    rows: dict[str, int] = field(default_factory=dict)
    drifted: dict[str, str] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    orphans: dict[str, int] = field(default_factory=dict)
    unused: int = 0


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


def star_rows(lake: LakeResource) -> dict[str, int]:
    """Rows of each table of the star, by name; {} where it was never built."""
    there = {dataset.name: lake.table(dataset).snapshot() for dataset in LANDED}
    if there[FACT_ORDER.name].version < 0:
        return {}
    return {name: found.rows for name, found in there.items()}


def check_star(lake: LakeResource) -> StarChecked:
    """Hold the star's files against the contract: columns, keys, and the fact's foreign keys."""
    checked = StarChecked()
    fact = FACT_ORDER.name
    with lake.scratch() as scratch, open_database(scratch) as database:
        for dataset in LANDED:
            name, key = dataset.name, dataset.columns[0].name
            found = rows_there(lake, dataset, lake.table(dataset).snapshot())
            database.execute(f"create view {name} as from {found}")
            columns = database.execute(f"describe {name}").fetchall()
            rows = copies = 0
            if drift := dataset.compare({column: kind for column, kind, *_ in columns}):
                checked.drifted[name] = drift.describe()
            else:
                query = f"select count(*), count(*) - count(distinct {key}) from {name}"
                rows, copies = one(database, query)
            checked.rows[name] = rows
            if copies:
                checked.duplicates[name] = copies
        if checked.drifted:
            return checked
        for dataset in LANDED[:-1]:  # the fact is the last one
            name, key = dataset.name, dataset.columns[0].name
            query = f"select count(*) from {fact} anti join {name} using ({key})"
            (orphans,) = one(database, query)
            if orphans:
                checked.orphans[key] = orphans
        query = f"select count(*) from {DIM_METADATA.name} anti join {fact} using (metadata_id)"
        (unused,) = one(database, query)
    return replace(checked, unused=unused)

"""How data arrive, once for all domains: what is new, what is asked for, checks, the landing.

Here: what a domain is whose partitions a source is the truth for. By file: processed (the assets of
such partitions), automation (what is asked for, and when), requests, checks, landing, reading and
typing (raw texts). Not here: any domain's columns or rows (defs/<domain>/), outside systems
(resources/). Nothing heavy is imported: the command line starts here.
"""

from typing import TYPE_CHECKING

from retail_assets.dataset import Column
from retail_assets.domain import Domain, MartsPlan, Versions

if TYPE_CHECKING:
    from retail_assets.resources.dbt.project import Windows
    from retail_assets.resources.lake import LakeResource
    from retail_assets.resources.warehouse import WarehouseResource

# The key of a table that is one partition.
WHOLE_TABLE = ""
# Of every quarantine.
REASON = Column("reason", "string", "What was expected and what was found.")


class PartitionFeed(Domain):
    """A domain of which each partition of a table is replaced by what its source holds of it."""

    def plan_marts(self, warehouse: "WarehouseResource") -> MartsPlan:
        """What differs from what the marts were built of."""
        from retail_assets.feeds.landing import landed_and_built

        landed, built = landed_and_built(self, warehouse)
        changed = [dataset for dataset in self.datasets if landed[dataset] != built[dataset]]
        return MartsPlan(self.windows(landed, built), landed, changed)

    def windows(self, landed: Versions, built: Versions) -> "Windows":
        """The windows of a build of the marts, by dbt variable; none for what knows no windows."""
        return {}

    def count_rows(self, lake: "LakeResource") -> dict[str, int]:
        """Rows of the processed tables."""
        found = {dataset: lake.table(dataset).snapshot() for dataset in self.datasets}
        return {
            f"{self.name}.processed_{dataset.name}": snapshot.rows
            for dataset, snapshot in found.items()
            if snapshot.ledgers
        }

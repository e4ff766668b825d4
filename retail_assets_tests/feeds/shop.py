"""A domain of two tables, its lake and its warehouse."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from retail_assets.dataset import Column, Dataset
from retail_assets.domain import Asked, Domain, Execution
from retail_assets.feeds.landing import landed_asset
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.warehouse import DuckDBWarehouse
from retail_assets.settings import Settings, load_settings

SHOPS = Dataset(
    schema="landed_shop",
    domain="shop",
    name="shops",
    description="Shops.",
    columns=(Column("id", "int64", "Key.", key=True),),
)
SALES = replace(
    SHOPS,
    name="sales",
    partition_by="day",
    columns=(*SHOPS.columns, Column("day", "date", "Day.")),
)
D1, D2, D3 = "2011-01-01", "2011-01-02", "2011-01-03"
PROCESSED = dg.AssetKey(["shop", "processed"])


class Shops(Domain):
    """The domain of the tables."""

    name = "shop"
    datasets = (SHOPS, SALES)

    def maker(self) -> Callable[[Settings], dg.Definitions]:
        return lambda _: dg.Definitions()

    def plan(
        self, settings: Settings, asked: Asked, instance: Callable[[], dg.DagsterInstance]
    ) -> list[Execution]:
        return []

    def count_rows(self, lake: LakeResource) -> dict[str, int]:
        return {}


@dataclass
class Shop:
    """A lake of one table, and the warehouse that it is landed in."""

    root: Path
    dataset: Dataset
    instance: dg.DagsterInstance

    @property
    def lake(self) -> LocalLake:
        return LocalLake(root=str(self.root / "lake"))

    @property
    def warehouse(self) -> DuckDBWarehouse:
        return DuckDBWarehouse(path=str(self.root / "warehouse.duckdb"), timeout_s=30)

    def put(self, key: str, *ids: int, version: str) -> None:
        """Replace a partition by rows of these ids."""
        by = self.dataset.partition_by
        days = {by: pa.array([key] * len(ids)).cast(pa.date32())} if by else {}
        table = pa.table({"id": pa.array(ids, pa.int64())} | days).cast(self.dataset.arrow_schema)
        with self.lake.staging("run") as stage:
            stage.write_partitions(self.dataset, [(key, table)])
            stage.publish(self.dataset, [key], {key: Ledger(version, len(ids))})

    def land(self, *partitions: str) -> dg.ExecuteInProcessResult:
        """A run of the asset."""
        settings = load_settings(home=self.root)
        asset = landed_asset(settings, Shops(), self.dataset, dep=PROCESSED)
        config = {"config": {"partitions": list(partitions)}} if partitions else {}
        return dg.materialize(
            [asset],
            instance=self.instance,
            resources={"lake": self.lake, "warehouse": self.warehouse},
            run_config={"ops": {asset.key.to_python_identifier(): config}},
            raise_on_error=False,
        )

    def rows(self) -> list[tuple[Any, ...]]:
        """What the warehouse has."""
        names = ", ".join(f"{name}::varchar" for name in self.dataset.column_names)
        return self.warehouse.query(f"select {names} from {self.dataset.table} order by all")

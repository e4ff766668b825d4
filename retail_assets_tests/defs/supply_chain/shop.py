"""A home with an embedded broker and both sinks, and the definitions of the domain over it.

Here: what the tests of assets, automation and landing share. Not here: tests; dbt, whose models
are left out of the definitions.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
from confluent_kafka import Producer

from retail_assets.defs.supply_chain.contract import MESSAGES, TOPIC
from retail_assets.defs.supply_chain.feed import SupplyChain
from retail_assets.resources.broker import embedded as broker_embedded
from retail_assets.resources.broker.resource import BrokerResource
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.operational_db import OperationalDbResource
from retail_assets.resources.operational_db.embedded import EmbeddedPostgres
from retail_assets.resources.warehouse import DuckDBWarehouse
from retail_assets.settings import Settings, load_settings
from retail_assets_tests.defs.supply_chain.test_messages import as_json, fields

Place = tuple[int, int]


def order_line(item: int, **changed: str) -> bytes:
    """A good message of an order item; its sales are its number and a half."""
    return as_json(fields(**({"order_item_id": str(item), "sales": f"{item}.5"} | changed)))


@dataclass
class Shop:
    """The home, an instance, and the database, which is of a home that tests share."""

    settings: Settings
    instance: dg.DagsterInstance
    definitions: dg.Definitions
    broker: BrokerResource
    database: OperationalDbResource

    @property
    def lake(self) -> LocalLake:
        return LocalLake(root=self.settings.lake)

    @property
    def warehouse(self) -> DuckDBWarehouse:
        return DuckDBWarehouse(path=str(self.settings.warehouse_path), timeout_s=30)

    def send(self, values: Iterable[bytes | None], partition: int | None = None) -> None:
        """Produce as others may; keys spread over the partitions, unless one is given."""
        producer = Producer({"bootstrap.servers": self.broker.address})
        where = {} if partition is None else {"partition": partition}
        for number, value in enumerate(values):
            producer.produce(TOPIC, value, b"%d" % number, **where)
        assert producer.flush(30) == 0

    def ends(self) -> dict[int, int]:
        """High watermark of each partition that has a message."""
        found = self.broker.watermarks(TOPIC)
        return {partition: mark.high for partition, mark in found.items() if mark.high}

    def execute(
        self,
        job: str,
        run_config: Mapping[str, Any] | None = None,
        tags: dict[str, str] | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Run a job here."""
        return self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            run_config=dict(run_config or {}),
            tags=dict(tags or {}),
            raise_on_error=False,
        )

    def landed(self) -> dict[Place, str]:
        """The ingest date of each message that lies in the lake as a row, by its place."""
        found: dict[Place, str] = {}
        for file in self.lake.table(MESSAGES).snapshot().files:
            local = self.lake.local_file(file.name)
            table = pq.read_table(local, columns=["partition", "offset"], partitioning=None)
            for row in table.to_pylist():
                place = row["partition"], row["offset"]
                assert place not in found
                found[place] = file.key
        return found

    def in_database(self, table: str = TOPIC) -> dict[Place, str]:
        """The same, of a table of the database."""
        with self.database.connect() as connection:
            rows = connection.execute(
                f'select partition, "offset", ingest_date from raw_streaming.{table}'.encode()
            ).fetchall()
        return {(partition, offset): str(date) for partition, offset, date in rows}


@contextmanager
def opened_shop(home: Path, database: OperationalDbResource, **settings: Any) -> Iterator[Shop]:
    """A shop over an empty home and an empty database; its broker ends with the block."""
    with database.connect() as connection:
        connection.execute("drop schema if exists raw_streaming cascade")
    known = load_settings(home=home, **settings)
    domain = SupplyChain()
    resources = domain.resources(known)
    broker = resources["broker"]
    assert isinstance(broker, BrokerResource)
    shared = {
        "lake": LocalLake(root=known.lake),
        "warehouse": DuckDBWarehouse(path=str(known.warehouse_path), timeout_s=30),
        "operational_db": database,
    }
    with dg.DagsterInstance.ephemeral() as instance:
        definitions = dg.Definitions.merge(
            domain.build_defs(known),
            dg.Definitions(resources=resources | shared, executor=dg.in_process_executor),
        )
        try:
            yield Shop(known, instance, definitions, broker, database)
        finally:
            broker_embedded.let_go(Path(broker.home))


@contextmanager
def opened_database(home: Path) -> Iterator[OperationalDbResource]:
    """An embedded database, stopped at the end."""
    yield OperationalDbResource(url="embedded", home=str(home))
    EmbeddedPostgres.leave(home)

"""The supply chain, as the rest of the package sees it.

Here: what a whole run takes, what the marts are given, what status and doctor tell of it. Not
here: assets, jobs and sensors (assets.py, automation.py). Nothing heavy is imported at the top.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import (
    DEAD_LETTERS,
    DOMAIN,
    LANDED,
    MESSAGES,
    TOPIC,
    TRANSFORMED,
)
from retail_assets.domain import (
    DefsModule,
    Domain,
    Execution,
    MartsPlan,
    PlanError,
    QuarantineTable,
)
from retail_assets.settings import Settings, redacted

if TYPE_CHECKING:
    import dagster as dg

    from retail_assets.resources.broker.resource import BrokerResource
    from retail_assets.resources.cloud_checks import Question
    from retail_assets.resources.lake import LakeResource
    from retail_assets.resources.warehouse import WarehouseResource


class SupplyChain(Domain):
    """Order events of a Kafka topic."""

    name = DOMAIN
    datasets = LANDED
    beside_warehouse = (MESSAGES,)
    loads_by_the_clock = True

    def modules(self) -> Sequence[DefsModule]:
        """Assets and automation."""
        from retail_assets.defs.supply_chain import assets, automation

        return assets, automation

    def resources(self, settings: Settings) -> dict[str, object]:
        """Broker, operational database and Spark."""
        from retail_assets.resources.broker.resource import BrokerResource
        from retail_assets.resources.operational_db import OperationalDbResource
        from retail_assets.resources.spark import SparkResource

        return {
            "broker": BrokerResource.of(settings),
            "operational_db": OperationalDbResource.of(settings),
            "spark": SparkResource.of(settings),
        }

    def prepare(self, settings: Settings) -> None:
        """Nothing: messages are sent by others, or by ``retail-assets stream``."""

    def check_partitions(self, settings: Settings, first: str, last: str) -> None:
        """There are none to ask for: a topic goes on where it was left."""
        raise PlanError(
            f"--partitions is {first}...{last}; {DOMAIN} has none: it lands what is in the topic"
            f" {TOPIC}, and builds the star of what is new. Leave it out."
        )

    def plan(
        self,
        settings: Settings,
        partitions: tuple[str, str] | None,
        *,
        allow_emptying: bool,
        instance: "Callable[[], dg.DagsterInstance]",
    ) -> list[Execution]:
        """One execution, of what is in the topic."""
        return self._execution(allow_emptying)

    def plan_stream(
        self, settings: Settings, file: Path, *, allow_emptying: bool
    ) -> list[Execution]:
        """One execution, in which the file is produced while its messages land."""
        return self._execution(allow_emptying, file=str(file.absolute()))

    def _execution(self, allow_emptying: bool, **values: str) -> list[Execution]:
        from retail_assets.defs.supply_chain.automation import messages_config, star_config

        today = f"{datetime.now(UTC):%Y-%m-%d}"
        ops = messages_config(ingest_date=today, **values)["ops"]
        if allow_emptying:
            ops |= star_config(allow_emptying=True)["ops"]
        return [Execution(DOMAIN, run_config={"ops": ops})]

    def plan_marts(self, warehouse: "WarehouseResource") -> MartsPlan:
        """Everything: the marts are built whole."""
        return MartsPlan({}, {dataset: warehouse.loaded_versions(dataset) for dataset in LANDED})

    def count_rows(self, lake: "LakeResource") -> dict[str, int]:
        """Rows of the star in the lake."""
        from retail_assets.defs.supply_chain.star import star_rows

        return {f"{TRANSFORMED}.{table}": rows for table, rows in star_rows(lake).items()}

    def lake_versions(self, lake: "LakeResource", dataset: Dataset) -> dict[str, str]:
        """Fingerprints of the star's partitions."""
        from retail_assets.defs.supply_chain.star import star_rows, star_versions

        return star_versions(lake, dataset) if star_rows(lake) else {}

    def rebuild(self, settings: Settings, dataset: Dataset) -> int:
        """Of the messages, what PostgreSQL has of them."""
        if dataset is not MESSAGES:
            return super().rebuild(settings, dataset)
        from retail_assets.defs.supply_chain.operational_sink import rebuild_messages
        from retail_assets.resources.lake import open_lake
        from retail_assets.resources.operational_db import OperationalDbResource

        lake = open_lake(settings)
        if not lake.table(MESSAGES).snapshot().files:
            raise PlanError(f"{lake.root} holds no message. Run: retail-assets run {self.name}")
        return rebuild_messages(lake, OperationalDbResource.of(settings))

    def quarantines(self) -> Sequence[QuarantineTable]:
        """The dead letters."""
        from retail_assets.defs.supply_chain.messages import mask_personal

        places = ("topic", "partition", "offset")
        return [QuarantineTable(MESSAGES.table, DEAD_LETTERS, places, mask_personal)]

    def lake_tables(self) -> Mapping[str, Dataset]:
        """The messages, the star and the dead letters."""
        return {MESSAGES.table: MESSAGES, **super().lake_tables()}

    def instead_of_restoring(self, table: str) -> str:
        """None can be restored: what lands once stays, and the star is of all that landed."""
        if table in (MESSAGES.table, f"quarantine.{MESSAGES.table}"):
            return (
                "the positions in the topic would not go back with it, so that what it lost would"
                " not land again. Read it as of a version (docs/lake.md)"
            )
        return (
            "the star is built of the messages that landed. Launch batch_pipeline, with anew: true"
            " in the config of supply_chain_star, to build it of all of them"
        )

    def questions(self, settings: Settings) -> "Iterator[Question]":
        """Whether broker and database answer."""
        from retail_assets.resources.broker.resource import BrokerResource
        from retail_assets.resources.cloud_checks import Question
        from retail_assets.resources.operational_db import OperationalDbResource

        yield Question(
            "kafka",
            lambda: _probe_broker(BrokerResource.of(settings)),
            "set RETAIL_KAFKA=embedded, or mend what it names",
        )
        yield Question(
            "postgres",
            lambda: OperationalDbResource.of(settings).probe(),
            "set RETAIL_POSTGRES to a server that answers, or mend what it names",
        )

    def shown_settings(self, settings: Settings) -> Mapping[str, str]:
        """The database's URL without its password."""
        return {"postgres": redacted(settings.postgres)}


def _probe_broker(broker: "BrokerResource") -> str:
    if not broker.running:
        return "embedded, not running: it starts with the first command that needs it"
    topics = broker.watermarks(TOPIC)
    return f"{broker.address}, {TOPIC} has {len(topics)} partitions"

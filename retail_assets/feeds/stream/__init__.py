"""A topic into tables: each message once in the lake and in the operational database.

Here: what a domain whose data are a topic declares, and what it is to the rest of the package. By
file: positions (how far it has landed), sinks (where to), batches (how), assets, automation. Not
here: what a message says, and what is made of messages (each domain's feed.py). Nothing heavy is
imported at the top.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from retail_assets.database_url import redacted
from retail_assets.dataset import Dataset
from retail_assets.domain import Asked, Domain, Execution, PlanError, Pruned, QuarantineTable
from retail_assets.errors import PermanentError
from retail_assets.settings import Settings

if TYPE_CHECKING:
    import dagster as dg
    import pyarrow as pa

    from retail_assets.feeds.stream.assets import StarConfig
    from retail_assets.resources.broker.resource import BrokerResource, Message
    from retail_assets.resources.cloud_checks import Question
    from retail_assets.resources.lake import LakeResource
    from retail_assets.resources.lake.tables import Snapshot
    from retail_assets.resources.spark import SparkResource


@dataclass(frozen=True)
class BuiltTable:
    """A table that was made of messages: what the UI tells of that, and what is wrong with it."""

    dataset: Dataset
    rows: int
    metadata: Mapping[str, Any] = field(default_factory=dict)
    faults: Sequence[str] = ()


class StreamFeed(Domain):
    """Messages of a topic, and tables made of them: ``datasets``, each in the zone it names.

    Each of these says, by transactions called as the messages' location, of which version of the
    messages it is (plus one), and, ``<location>/typing``, by which ``typing_version``.

    Attributes:
        topic: the topic; ``group`` is who commits what has landed of it.
        messages: the lake's table of messages, by day of landing, and its twin in the database.
            Both, and ``dead_letters``, have incarnation, topic, partition, offset, key and time.
        dead_letters: messages that are no such rows, with ``reason``, ``row_stays`` and ``text``.
        typing_version: of how messages become rows of the tables.
        most_lag, most_age_s: the settings' fields of how much may wait in the topic, how long.
        messages_job, star_job, batch_job: names of the jobs that land messages, that make the
            tables, and that load these too.
        micro_batch, star: the steps of the former two; their configs are batches.MicroBatchConfig
            and assets.StarConfig.
    """

    topic: str
    group: str
    messages: Dataset
    dead_letters: Dataset
    typing_version: str
    most_lag: str
    most_age_s: str
    star_job: str
    batch_job: str

    def __init__(self) -> None:
        self.messages_job = f"{self.name}_messages"
        self.micro_batch, self.star = f"{self.name}_micro_batch", f"{self.name}_star"

    # What is the domain's own.

    @abstractmethod
    def parse(
        self, messages: "Sequence[Message]", incarnation: str, started_at: datetime
    ) -> "tuple[pa.Table, Sequence[bytes], pa.Table]":
        """Rows of ``messages``, the JSON of each, and rows of ``dead_letters``, as they came.

        The latter are of messages that are no rows, and, where ``row_stays``, of values that a row
        is without. The topic's incarnation began at ``started_at``, UTC.
        """

    @abstractmethod
    def payloads_of(self, good: "pa.Table") -> Sequence[bytes]:
        """The JSON of each row of the table of messages."""

    @abstractmethod
    def mask(self, reason: str, text: str) -> tuple[str, str]:
        """Reason and text of a dead letter as they may be shown: without what is personal."""

    @abstractmethod
    def producing(self, broker: "BrokerResource", file: Path) -> Callable[[Event], str]:
        """What produces a file to the topic, until the event, and then says how far it came.

        Raises:
            PermanentError: the file is not what it should be; nothing was sent.
        """

    @abstractmethod
    def build_tables(
        self,
        lake: "LakeResource",
        spark: "SparkResource",
        run_id: str,
        config: "StarConfig",
    ) -> Iterable[BuiltTable]:
        """Bring ``datasets`` to what the messages say, check them, and tell of each."""

    @abstractmethod
    def table_versions(self, lake: "LakeResource", dataset: Dataset) -> dict[str, str]:
        """Fingerprint of each partition of one of ``datasets``.

        Raises:
            PermanentError: they were never built, or are not all of the same messages.
        """

    # What it is to the rest.

    def maker(self) -> "Callable[[Settings], dg.Definitions]":
        """The topic, its messages, the tables made of them, and when each is made."""
        from retail_assets.feeds.stream.automation import build_defs

        return partial(build_defs, self)

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

    def check(self, settings: Settings, asked: Asked) -> None:
        """A topic has no partitions to ask for: it goes on where it was left."""
        if asked.partitions is not None:
            raise PlanError(
                f"--partitions is {'...'.join(asked.partitions)}; {self.name} has none: it lands"
                f" what is in the topic {self.topic}, and builds the star of what is new. Leave it"
                " out."
            )

    def plan(
        self, settings: Settings, asked: Asked, instance: "Callable[[], dg.DagsterInstance]"
    ) -> Iterator[Execution]:
        """One execution, of what is in the topic, and of the file that is produced meanwhile."""
        values = {"ingest_date": f"{datetime.now(UTC):%Y-%m-%d}"}
        if asked.stream is not None:
            values["file"] = str(asked.stream.absolute())
        config = step_config(self.micro_batch, **values)
        if asked.allow_emptying:
            config["ops"] |= step_config(self.star, allow_emptying=True)["ops"]
        yield Execution(self.name, run_config=config)

    def prune(self, settings: Settings, *, dry_run: bool) -> Iterator[Pruned]:
        """Also messages in PostgreSQL that landed ``keep_messages_days`` ago; the lake has them."""
        from retail_assets.resources.operational_db import OperationalDbResource, delete_before

        yield from super().prune(settings, dry_run=dry_run)
        if not settings.keep_messages_days:
            return
        last = datetime.now(UTC).date() - timedelta(days=settings.keep_messages_days)
        with OperationalDbResource.of(settings).connect() as connection:
            for table in (self.messages.table, self.dead_letters.table):
                rows = delete_before(connection, table, "ingest_date", last, dry_run=dry_run)
                yield Pruned(f"rows of {table} in PostgreSQL", rows)

    def count_rows(self, lake: "LakeResource") -> dict[str, int]:
        """Rows of the tables made of messages."""
        there = {f"{x.zone}.{x.name}": lake.table(x).snapshot() for x in self.datasets}
        return {name: found.rows for name, found in there.items() if found.version >= 0}

    def lake_versions(
        self, lake: "LakeResource", dataset: Dataset, snapshot: "Snapshot | None" = None
    ) -> dict[str, str]:
        """``table_versions``; for a mere look, which has no snapshot, none of what is half made."""
        try:
            return self.table_versions(lake, dataset)
        except PermanentError:
            if snapshot is None:
                return {}
            raise

    def rebuild(self, settings: Settings, dataset: Dataset) -> int:
        """Of the messages, what the operational database has of them."""
        from retail_assets.feeds.stream.sinks import rebuild_messages
        from retail_assets.resources.lake import open_lake
        from retail_assets.resources.operational_db import OperationalDbResource

        lake = open_lake(settings)
        if lake.table(dataset).snapshot().version < 0:
            raise PlanError(
                f"{lake.root} holds nothing processed for {dataset.table}. Run: retail-assets run"
                f" {self.name}"
            )
        if dataset is not self.messages:
            return super().rebuild(settings, dataset)
        return rebuild_messages(self, lake, OperationalDbResource.of(settings))

    def quarantines(self) -> Sequence[QuarantineTable]:
        """The dead letters."""
        places = ("topic", "partition", "offset")
        return [QuarantineTable(self.messages.table, self.dead_letters, places, self.mask)]

    def lake_tables(self) -> Mapping[str, Dataset]:
        """The messages, what is made of them, and the dead letters."""
        return {self.messages.table: self.messages, **super().lake_tables()}

    def instead_of_restoring(self, table: str) -> str:
        """None can be restored: what lands once stays, and the others are of all that landed."""
        if table.removeprefix("quarantine.") == self.messages.table:
            return (
                "the positions in the topic would not go back with it, so that what it lost would"
                " not land again. Read it as of a version (docs/lake.md)"
            )
        return (
            f"the star is built of the messages that landed. Launch {self.batch_job}, with anew:"
            f" true in the config of {self.star}, to build it of all of them"
        )

    def questions(self, settings: Settings) -> "Iterator[Question]":
        """Whether broker and database answer."""
        from retail_assets.resources.broker.resource import BrokerResource
        from retail_assets.resources.cloud_checks import Question
        from retail_assets.resources.operational_db import OperationalDbResource

        def probe() -> str:
            broker = BrokerResource.of(settings)
            if not broker.running:
                return "embedded, not running: it starts with the first command that needs it"
            partitions = len(broker.watermarks(self.topic))
            return f"{broker.address}, {self.topic} has {partitions} partitions"

        yield Question("kafka", probe, "set RETAIL_KAFKA=embedded, or mend what it names")
        yield Question(
            "postgres",
            lambda: OperationalDbResource.of(settings).probe(),
            "set RETAIL_POSTGRES to a server that answers, or mend what it names",
        )

    def shown_settings(self, settings: Settings) -> Mapping[str, str]:
        """The database's URL without its password."""
        return {"postgres": redacted(settings.postgres)}


def step_config(step: str, **values: object) -> dict[str, Any]:
    """The run config that gives a step its values."""
    return {"ops": {step: {"config": values}}}

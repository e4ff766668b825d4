"""How the supply chain's data arrive, and what is special about them.

Here: the declaration of its topic, and its hooks into what all streams share (feeds/stream). Not
here: what a message says (messages.py), the star (star/). Nothing heavy is imported at the top.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import (
    DEAD_LETTERS,
    DOMAIN,
    FACT_ORDER,
    GROUP,
    LANDED,
    MESSAGES,
    TOPIC,
)
from retail_assets.defs.supply_chain.transforms import TYPING_VERSION
from retail_assets.feeds.stream import BuiltTable, StreamFeed

if TYPE_CHECKING:
    import pyarrow as pa

    from retail_assets.defs.supply_chain.star import StarBuilt
    from retail_assets.feeds.stream.assets import StarConfig
    from retail_assets.resources.broker.resource import BrokerResource, Message
    from retail_assets.resources.lake import LakeResource
    from retail_assets.resources.spark import SparkResource


class SupplyChain(StreamFeed):
    """Order events of a Kafka topic, and a star of them."""

    name = DOMAIN
    topic = TOPIC
    group = GROUP
    messages = MESSAGES
    dead_letters = DEAD_LETTERS
    datasets = LANDED
    beside_warehouse = (MESSAGES,)
    loads_by_the_clock = True
    typing_version = TYPING_VERSION
    most_lag = "supply_chain_most_lag"
    most_age_s = "supply_chain_most_age_s"
    star_job = "olap_transformation_pipeline"
    load_job = "gcs_to_bigquery_pipeline"
    batch_job = "batch_pipeline"

    def parse(
        self, messages: "Sequence[Message]", incarnation: str, started_at: datetime
    ) -> "tuple[pa.Table, Sequence[bytes], pa.Table]":
        """As messages.py has it."""
        from retail_assets.defs.supply_chain.fast_messages import parse_messages

        return parse_messages(messages, incarnation=incarnation, started_at=started_at)

    def payloads_of(self, good: "pa.Table") -> Sequence[bytes]:
        """As messages.py has it."""
        from retail_assets.defs.supply_chain.messages import payloads_of

        return payloads_of(good)

    def mask(self, reason: str, text: str) -> tuple[str, str]:
        """As messages.py has it."""
        from retail_assets.defs.supply_chain.messages import mask_personal

        return mask_personal(reason, text)

    def producing(self, broker: "BrokerResource", file: Path) -> Callable[[Event], str]:
        """As stream.py has it."""
        from retail_assets.defs.supply_chain.order_lines import examine_source
        from retail_assets.defs.supply_chain.stream import stream_file

        source = examine_source(file)
        streams = Path(broker.home) / "streams"
        return lambda stop: stream_file(broker, source, streams, stop=stop).summary

    def build_tables(
        self,
        lake: "LakeResource",
        spark: "SparkResource",
        run_id: str,
        config: "StarConfig",
    ) -> Iterator[BuiltTable]:
        """The star."""
        from retail_assets.defs.supply_chain.star import build_star, check_star

        dates, emptying = config.ingest_dates, config.allow_emptying
        built = build_star(lake, spark, run_id, dates, anew=config.anew, allow_emptying=emptying)
        checked = check_star(lake)
        for dataset in LANDED:
            rows, faults = checked[dataset.name]
            yield BuiltTable(dataset, rows, star_metadata(built, dataset), faults)

    def table_versions(self, lake: "LakeResource", dataset: Dataset) -> dict[str, str]:
        """As the star has it."""
        from retail_assets.defs.supply_chain.star import star_versions

        return star_versions(lake, dataset)


def star_metadata(built: "StarBuilt", dataset: Dataset) -> dict[str, Any]:
    """What a build did to a table, as the UI shows it; the messages' ledger with the fact."""
    found: dict[str, Any] = {"changed_partitions": list(built.changed.get(dataset.name, ()))}
    if dataset is FACT_ORDER:
        found |= {
            "ingest_dates": list(built.dates),
            "files": built.files,
            "messages": built.messages,
            "written": built.written,
            "superseded_within": built.superseded_within,
            "superseded_by_later": built.superseded_by_later,
            "removed": built.removed,
            "files_gone": built.gone,
        }
    return found


FEED = SupplyChain()

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
    DIM_METADATA,
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

    from retail_assets.defs.supply_chain.star import StarBuilt, StarChecked
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

        found = parse_messages(messages, incarnation=incarnation, started_at=started_at)
        return found.good, found.payloads, found.dead

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
        ingest_dates: Sequence[str],
        *,
        anew: bool,
        allow_emptying: bool,
    ) -> Iterator[BuiltTable]:
        """The star."""
        from retail_assets.defs.supply_chain.star import build_star, check_star

        built = build_star(
            lake, spark, run_id, ingest_dates, anew=anew, allow_emptying=allow_emptying
        )
        checked = check_star(lake)
        for dataset in LANDED:
            metadata, faults = star_metadata(built, dataset), star_faults(checked, dataset)
            yield BuiltTable(dataset, checked.rows.get(dataset.name, 0), metadata, faults)

    def table_versions(self, lake: "LakeResource", dataset: Dataset) -> dict[str, str]:
        """As the star has it."""
        from retail_assets.defs.supply_chain.star import star_versions

        return star_versions(lake, dataset)


def star_metadata(built: "StarBuilt", dataset: Dataset) -> dict[str, Any]:
    """What a build did to a table, as the UI shows it; the messages' ledger with the fact."""
    found: dict[str, Any] = {
        "dagster/row_count": built.rows[dataset.name],
        "changed_partitions": list(built.changed.get(dataset.name, ())),
    }
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


def star_faults(checked: "StarChecked", dataset: Dataset) -> list[str]:
    """What of a table of the star is not as it should be."""
    found = []
    if drift := checked.drifted.get(dataset.name):
        found.append(drift)
    if copies := checked.duplicates.get(dataset.name):
        found.append(f"{copies:,} rows have a key that another row has")
    if dataset is FACT_ORDER:
        found += [f"{n:,} rows have a {key} of no dimension" for key, n in checked.orphans.items()]
    if dataset is DIM_METADATA and checked.unused:
        found.append(f"{checked.unused:,} rows are of no row of {FACT_ORDER.name}")
    return found


FEED = SupplyChain()

"""How the data of the coffee chain arrive: drops of sales and customers, outlets and products.

Here: its files, which engine types each, the windows of its marts. Not here: assets, jobs and
sensors (feeds/files). Nothing heavy is imported at the top.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from retail_assets.days import ranges_within
from retail_assets.defs.coffee_chain.contract import (
    CUSTOMER,
    DOMAIN,
    OUTLET,
    PRODUCT,
    RAW_CUSTOMER,
    RAW_OUTLET,
    RAW_PRODUCT,
    RAW_SALES,
    SALES,
    RawFiles,
)
from retail_assets.defs.coffee_chain.transforms import TYPING_VERSION
from retail_assets.domain import Versions
from retail_assets.feeds.files import ABSENT, FileFeed, FileTable
from retail_assets.settings import Settings

if TYPE_CHECKING:
    from retail_assets.dataset import Dataset
    from retail_assets.errors import PermanentError
    from retail_assets.feeds.files.taking import RawFile, Room, Typed
    from retail_assets.resources.cloud_checks import Question

SALES_WINDOW = "coffee_chain_window"
CUSTOMER_WINDOW = "coffee_chain_customer_window"


class CoffeeChain(FileFeed):
    """Files of which Spark types the large ones; marts that know which lines a drop concerns."""

    def resources(self, settings: Settings) -> dict[str, object]:
        """Spark."""
        from retail_assets.resources.spark import SparkResource

        return {"spark": SparkResource.of(settings)}

    def questions(self, settings: Settings) -> "Iterator[Question]":
        """Whether Spark starts and computes."""
        from retail_assets.resources.cloud_checks import Question

        yield Question(
            "spark",
            lambda: _probe_spark(settings),
            "set RETAIL_SPARK=embedded, or mend what it names",
        )

    def windows(self, landed: Versions, built: Versions) -> dict[str, list[list[str]] | None]:
        """The drops that differ; everything where that is not enough.

        Another list of outlets or products, and a customer drop that was taken back or delivered
        again, may concern any line: then all are built anew. A new customer drop concerns the
        lines of its customers.
        """
        customers_now, customers_then = (
            {key: version for key, version in versions[CUSTOMER].items() if version != ABSENT}
            for versions in (landed, built)
        )
        concerns_any_line = (
            not (built[SALES] and built[CUSTOMER])
            or any(landed[dataset] != built[dataset] for dataset in (OUTLET, PRODUCT))
            or any(customers_now.get(key) != then for key, then in customers_then.items())
        )
        if concerns_any_line:
            return {SALES_WINDOW: None, CUSTOMER_WINDOW: None}
        now, then = landed[SALES], built[SALES]
        changed = {key for key in now.keys() | then.keys() if now.get(key) != then.get(key)}
        arrived = customers_now.keys() - customers_then.keys()
        return {
            SALES_WINDOW: ranges_within(changed, {*now, *then}),
            CUSTOMER_WINDOW: ranges_within(arrived, customers_now),
        }


def _probe_spark(settings: Settings) -> str:
    from retail_assets.resources.spark import SparkResource

    session = SparkResource.of(settings).session
    (row,) = session.sql("select 6 * 7 as answer").collect()
    return f"{settings.spark}, Spark {session.version}, computes {row['answer']}"


def _type_files(
    table: FileTable, room: "Room", files: "Mapping[str, RawFile]"
) -> "Iterator[tuple[str, Typed | PermanentError]]":
    from retail_assets.defs.coffee_chain.typing import TYPINGS

    return TYPINGS[table.dataset](table, room, files)


def _table(dataset: "Dataset", raw: RawFiles, engine: str, *resources: str) -> FileTable:
    return FileTable(dataset, raw.path, _type_files, raw.header, TYPING_VERSION, engine, resources)


FEED = CoffeeChain(
    DOMAIN,
    (
        _table(OUTLET, RAW_OUTLET, "pandas"),
        _table(PRODUCT, RAW_PRODUCT, "pandas"),
        _table(CUSTOMER, RAW_CUSTOMER, "pyspark", "spark"),
        _table(SALES, RAW_SALES, "pyspark", "spark"),
    ),
    sample=f"retail-assets sample {DOMAIN}",
)

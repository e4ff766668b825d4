"""The supply chain's micro-batch, as the tests of streams ask for it.

Here: a drain from keywords. Not here: tests.
"""

from collections.abc import Mapping
from typing import Any

from retail_assets.defs.supply_chain.feed import FEED
from retail_assets.feeds.stream.batches import Drain, Landed, MicroBatchConfig
from retail_assets.resources.broker.resource import BrokerResource
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.operational_db import OperationalDbResource


def drain(
    lake: LakeResource,
    broker: BrokerResource,
    database: OperationalDbResource,
    *,
    ranges: Mapping[int, tuple[int, int]] | None = None,
    **how: Any,
) -> Landed:
    """Land what the keywords say: fields of the drain, and of the micro-batch's config."""
    beside = {name: how.pop(name) for name in ("follow", "report", "told") if name in how}
    config = MicroBatchConfig(ranges={str(p): [*span] for p, span in (ranges or {}).items()}, **how)
    return Drain(FEED, lake, broker, database, config, **beside).run()

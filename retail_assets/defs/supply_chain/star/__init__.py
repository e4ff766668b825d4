"""The star of the supply chain: which messages are in it, and how new ones are merged into it.

Here: a build from its beginning to its end. The rest by file: new (which messages it takes, and a
commit a table that says so), typed (what Spark makes of them), merge (with what is there), check
(the star as it is). Not here: how a text becomes a value (transforms.py), assets (assets.py).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from retail_assets.defs.supply_chain.contract import (
    DIM_METADATA,
    DOMAIN,
    FACT_ORDER,
    LANDED,
    MESSAGES,
)
from retail_assets.defs.supply_chain.star.check import check_star, star_versions
from retail_assets.defs.supply_chain.star.merge import Merged, Merger, open_database
from retail_assets.defs.supply_chain.star.new import plan_build, publish
from retail_assets.defs.supply_chain.star.typed import stage_messages
from retail_assets.defs.supply_chain.transforms import TYPING_VERSION
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.spark import SparkResource

__all__ = ["StarBuilt", "build_star", "check_star", "star_versions"]

_LOCK = f"{DOMAIN}/build_star"


@dataclass(frozen=True)
class StarBuilt:
    """What a build did.

    ``changed`` are by table the partitions ("" for a table without) whose content is another than
    before. ``messages`` were read of ``dates``: ``written`` are in the fact, the others superseded
    by one of them or by one that was there. ``removed`` rows of the fact were superseded by this
    build's. ``gone`` files are in the star and, since the last build, no longer in the lake; their
    rows stay.
    """

    dates: tuple[str, ...]
    files: int
    messages: int
    written: int
    superseded_within: int
    superseded_by_later: int
    removed: int
    gone: int
    changed: Mapping[str, tuple[str, ...]]


def build_star(
    lake: LakeResource,
    spark: SparkResource,
    run_id: str,
    dates: Collection[str] = (),
    *,
    anew: bool = False,
    allow_emptying: bool = False,
) -> StarBuilt:
    """Bring the star to what the topic's files hold: of each order item the latest message.

    Takes the files that are new since the version of their table that the star is of, and besides
    all files of ``dates``. What a killed build took is taken again. All is built ``anew``, of
    messages alone, also where TYPING_VERSION is another or a table is not there. Only then can rows
    be lost, of messages that are gone; ``allow_emptying`` says that they may.

    Raises:
        StarImbalanceError: rows were lost, or a value of a message could not be read.
        StarError: all is to be built anew, and messages of the star are gone.
        TransactionLostError: another build went on meanwhile.
    """
    changed: Mapping[str, tuple[str, ...]] = {}
    merged = Merged()
    with lake.lock(_LOCK):
        plan = plan_build(lake, MESSAGES, LANDED, int(TYPING_VERSION), dates, anew=anew)
        if not plan.is_done:
            with (
                lake.scratch() as scratch,
                lake.staging(run_id, f"{DOMAIN}_star") as stage,
                spark.exchange(lake, run_id) as exchange,
                open_database(scratch) as database,
            ):
                typed, total = stage_messages(lake, spark, exchange, database, plan.files)
                merger = Merger(lake, database, scratch, plan, typed)
                if plan.files or plan.anew:
                    merger.require_all("order_item_id", total)
                    for dataset in LANDED:
                        if dataset.partition_by is None:
                            merger.merge(dataset)
                    merged = merger.merge(FACT_ORDER, DIM_METADATA)
                    if plan.anew and not allow_emptying:
                        merger.require_messages(FACT_ORDER)
                changed = publish(stage, plan, merger.partitions)
        return StarBuilt(
            dates=tuple(plan.files),
            files=sum(map(len, plan.files.values())),
            messages=plan.count,
            written=merged.keys - merged.later,
            superseded_within=plan.count - merged.keys,
            superseded_by_later=merged.later,
            removed=merged.removed,
            gone=plan.gone,
            changed=changed,
        )

"""The star of the supply chain: which messages are in it, and how new ones are merged into it.

Here: a build from its beginning to its end. The rest by file: new (which messages it takes),
candidates (what Spark makes of them), merge (with what is there), publish (a commit a table), check
(the star as it is), sql (what these ask DuckDB alike). Not here: how a message becomes a row
(transforms.py), assets and checks (assets.py).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from retail_assets.defs.supply_chain.contract import DOMAIN
from retail_assets.defs.supply_chain.star.candidates import stage_candidates
from retail_assets.defs.supply_chain.star.check import (
    StarChecked,
    check_star,
    star_rows,
    star_versions,
)
from retail_assets.defs.supply_chain.star.merge import (
    WHOLE_TABLE,
    Merged,
    Merger,
    StarImbalanceError,
)
from retail_assets.defs.supply_chain.star.new import StarError, plan_build
from retail_assets.defs.supply_chain.star.publish import EMPTY, publish
from retail_assets.defs.supply_chain.star.sql import open_database
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.spark import SparkResource

__all__ = [
    "EMPTY",
    "WHOLE_TABLE",
    "StarBuilt",
    "StarChecked",
    "StarError",
    "StarImbalanceError",
    "build_star",
    "check_star",
    "star_rows",
    "star_versions",
]

_LOCK = f"{DOMAIN}/build_star"


@dataclass(frozen=True)
class StarBuilt:
    """What a build did.

    ``rows`` are those of each table now, and ``changed`` the partitions (WHOLE_TABLE for a table
    without) whose content is another than before. ``messages`` were read of ``dates``: ``written``
    are in the fact, the others superseded by one of them or by one that was there. ``removed`` rows
    of the fact were superseded by this build's. ``gone`` files are in the star and, since the last
    build, no longer in the lake; their rows stay.
    """

    dates: tuple[str, ...]
    files: int
    messages: int
    written: int
    superseded_within: int
    superseded_by_later: int
    removed: int
    gone: int
    rows: Mapping[str, int]
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
        plan = plan_build(lake, dates, anew=anew)
        if not plan.is_done:
            with (
                lake.scratch() as scratch,
                lake.staging(run_id, f"{DOMAIN}_star") as stage,
                spark.exchange(lake, run_id) as exchange,
                open_database(scratch) as database,
            ):
                candidates = stage_candidates(lake, spark, exchange, database, plan.files)
                merger = Merger(lake, database, scratch, plan, candidates)
                merged = merger.merge(allow_emptying=allow_emptying)
                changed = publish(stage, plan, merged)
        return StarBuilt(
            dates=tuple(plan.files),
            files=sum(map(len, plan.files.values())),
            messages=plan.messages,
            written=merged.items - merged.superseded_by_later,
            superseded_within=plan.messages - merged.items,
            superseded_by_later=merged.superseded_by_later,
            removed=merged.removed,
            gone=plan.gone,
            rows=star_rows(lake),
            changed=changed,
        )

"""Publishing the star: each table by one commit, which says of which messages it is.

The fact goes last, for a build starts from what is in it, and derives all else from it and the same
messages. So a build that is killed between two commits is mended by the next one: the fact is of
the earlier version still, and its messages are taken again.
"""

import hashlib
from pathlib import Path

from retail_assets.defs.supply_chain.contract import LANDED, MESSAGES
from retail_assets.defs.supply_chain.star.merge import Merged
from retail_assets.defs.supply_chain.star.new import Plan
from retail_assets.defs.supply_chain.transforms import TYPING_VERSION
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.staging import Stage

# The fingerprint of a partition without rows.
EMPTY = "empty"


def publish(stage: Stage, plan: Plan, merged: Merged) -> dict[str, tuple[str, ...]]:
    """Commit the partitions that differ from what is there; by table, those that do.

    Built anew, all are committed: files that are there may be other ones than their names say.
    """
    changed: dict[str, tuple[str, ...]] = {}
    told = {
        "source": MESSAGES.table,
        "source_version": plan.version,
        "source_files": sum(map(len, plan.files.values())),
        "code_version": TYPING_VERSION,
    }
    for dataset in LANDED:
        there = plan.there[dataset.name].fingerprints
        ledgers: dict[str, Ledger] = {}
        for key, (file, rows) in merged.partitions.get(dataset.name, {}).items():
            ledger = Ledger(_hash(file) if file else EMPTY, rows)
            if there.get(key) != ledger.fingerprint:
                changed[dataset.name] = (*changed.get(dataset.name, ()), key)
            elif not plan.anew:
                continue
            ledgers[key] = ledger
            if file is not None:
                stage.adopt(dataset, key, [file])
        stage.publish(dataset, ledgers, ledgers, told, plan.transactions(dataset))
    return changed


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]

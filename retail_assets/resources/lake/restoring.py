"""Restoring a table, and remembering what of its source a person thereby set aside.

A table that was restored is no longer what its source says. So that no sensor undoes it at its
next tick, the versions of the source that were in the table are set aside: they are not asked for
again, until the source is another, or a person asks for them.
"""

from collections.abc import Mapping
from datetime import datetime

from retail_assets.dataset import Dataset
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.objects import LakeResource
from retail_assets.resources.lake.tables import LakeTable


def restore(
    lake: LakeResource,
    dataset: Dataset,
    version: int,
    told: Mapping[str, object],
    quarantine: Dataset | None = None,
) -> tuple[int, tuple[str, ...]]:
    """Make a table what it was as of ``version``; the new version, and the keys that changed.

    Its ``quarantine`` becomes what it was at that time, so that the ledgers count its rows.

    Raises:
        UnknownVersionError: there is none, or files of it are gone.
    """
    table = lake.table(dataset)
    now, wanted = table.snapshot().ledgers, table.snapshot(version).ledgers
    changed = sorted(key for key in {*now, *wanted} if now.get(key) != wanted.get(key))
    # Before the commit: what is set aside and still in the table keeps nobody from anything.
    aside = {key: list(ledger) for key, ledger in set_aside(lake, dataset).items()}
    aside |= {key: list(now[key]) for key in changed if key in now}
    lake.write_state(_state(dataset), aside)
    if quarantine is not None:
        at = next(x.time for x in table.history() if x.version == version)
        _restore_as_of(lake.table(quarantine), at, told)
    return table.restore(version, told), tuple(changed)


def _restore_as_of(table: LakeTable, at: datetime, told: Mapping[str, object]) -> None:
    version = next((x.version for x in table.history() if x.time <= at), None)
    if version is not None:
        table.restore(version, told)
    elif table.snapshot().files:
        table.commit([], remove=lambda _: True, told=told)


def set_aside(lake: LakeResource, dataset: Dataset) -> dict[str, Ledger]:
    """By partition, the ledger of what restoring took out of a table, the latest of each."""
    state = lake.read_state(_state(dataset)) or {}
    return {key: Ledger(*values) for key, values in state.items()}


def _state(dataset: Dataset) -> str:
    return f"set_aside/{dataset.location}"

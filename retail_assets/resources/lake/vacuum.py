"""Vacuum: files of tables that no kept version has go, on a folder and a bucket alike.

Replaced files stay for the lake's ``history_days``, so that history can be read and restored.
Orphans, which a killed writer put there and nobody committed, go after a day. A file that a kept
version needs never does.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote

from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.lake.log import list_commits, log_folder, read_actions
from retail_assets.resources.lake.tables import LakeTable, Store, TableFile

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger(__name__)

_DAY_S = 86_400.0
_ORPHAN_S = _DAY_S


class Sweeper(Store, Protocol):
    """What vacuum asks of a lake."""

    def delete_all(self, names: Iterable[str]) -> None:
        """Remove objects, those that are there."""
        ...

    def read_state(self, name: str) -> "dict[str, Any] | None":
        """A state object."""
        ...

    def write_state(self, name: str, state: "Mapping[str, Any]") -> None:
        """Replace a state object."""
        ...


def vacuum(lake: Sweeper, table: LakeTable, *, dry_run: bool = False) -> list[str]:
    """Delete the files of a table that no kept version has; their names.

    Kept are the version that was the table ``history_days`` ago, and all since. Younger than a
    day, an unknown file may be a writer's that has not committed yet: it stays.
    """
    location = table.dataset.location
    now = time.time()
    # Before the look at what the table has: a writer's files are older than its commit.
    found = [
        entry
        for entry in lake.list_objects(f"{location}/")
        if entry.name.endswith(".parquet") and not entry.name.startswith(log_folder(location))
    ]
    snapshot = table.snapshot()
    if snapshot.version < 0:
        return []
    needed = {file.name for file in snapshot.files}
    unused = [x.name for x in found if x.name not in needed and now - x.modified > _ORPHAN_S]
    if unused and lake.history_days > 0:
        kept = _removed_since(lake, location, now - lake.history_days * _DAY_S)
        unused = [name for name in unused if name not in kept]
    if not dry_run:
        lake.delete_all(unused)
    return unused


def _removed_since(lake: Sweeper, location: str, since: float) -> set[str]:
    """Files that the table had then, or later, and has no longer."""
    commits = list_commits(lake, location)
    recent = [version for version, entry in commits.items() if entry.modified > since]
    removed = read_actions(lake, location, recent, "remove")
    return {f"{location}/{unquote(file['path'])}" for _, files in removed for file in files}


def vacuum_now_and_then(lake: Sweeper, table: LakeTable) -> None:
    """Vacuum a table, if nobody did for a day; a failure is no reason to fail a run."""
    mark = f"vacuumed/{table.dataset.location}"
    try:
        state = lake.read_state(mark)
        if state is not None and time.time() - float(state["at"]) < _DAY_S:
            return
        lake.write_state(mark, {"at": time.time()})
        if state is not None:
            vacuum(lake, table)
    except (TransientError, PermanentError) as error:
        _log.warning("files of %s that are of no more use were left: %s", table.uri, error)


def delete_replaced(lake: Sweeper, replaced: Sequence[TableFile]) -> None:
    """Delete what a commit took away, where no history is to be kept."""
    if lake.history_days > 0 or not replaced:
        return
    try:
        lake.delete_all([file.name for file in replaced])
    except (TransientError, PermanentError) as error:  # a later vacuum finds them again
        _log.warning("replaced files were left: %s", error)

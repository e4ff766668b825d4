"""When DuckDB may merge row groups of a warehouse that are not full: once a day.

At each checkpoint it would, of every table and in one thread: after a small append that takes most
of a second, for what one merge a day does as well. (Those that were emptied are dropped at any.)
Here: whether it is time, and the setting. Not here: connections (duckdb.py, dbt/).
"""

import time
from pathlib import Path

SETTING = "max_vacuum_tasks"
NONE = "0"
_EVERY_S = 24 * 3600


def are_merged_now(warehouse: Path) -> bool:
    """Whether row groups were last merged more than a day ago, or never."""
    try:
        return time.time() - _stamp(warehouse).stat().st_mtime > _EVERY_S
    except FileNotFoundError:
        return True


def note_merged(warehouse: Path) -> None:
    """Remember that they were merged now."""
    _stamp(warehouse).touch()


def _stamp(warehouse: Path) -> Path:
    return warehouse.with_name(f"{warehouse.name}.merged")

"""The lake: raw files as they came, and Delta tables of what was made of them.

Here: which lake the settings name. The rest by file: objects (files by name, on a folder or a
bucket), folder, bucket (with its clients, lease and faults), tables (Delta tables), log (theirs, as
files), ledger (what a partition was made of), staging (a run's files before they are committed),
vacuum (files that no kept version has), restoring (what a person set aside), exchange (what an
engine and this process hand to each other).

Not here: what rows mean (defs/), how a source file is read (tabular/, http/).
"""

from typing import TYPE_CHECKING

from retail_assets.resources.lake.exchange import LakeObject
from retail_assets.resources.lake.objects import (
    BrokenStateError,
    LakeAccessError,
    LakeBusyError,
    LakeResource,
    LakeUnreachableError,
)

if TYPE_CHECKING:
    from retail_assets.settings import Settings

__all__ = [
    "BrokenStateError",
    "LakeAccessError",
    "LakeBusyError",
    "LakeObject",
    "LakeResource",
    "LakeUnreachableError",
    "open_lake",
]


def open_lake(settings: "Settings") -> LakeResource:
    """The lake that the settings name."""
    if settings.lake.startswith("gs://"):
        from retail_assets.resources.lake.bucket import GcsLake

        return GcsLake(
            root=settings.lake,
            cache_dir=str(settings.home / "cache"),
            emulator_host=settings.storage_emulator_host,
            history_days=settings.lake_history_days,
        )
    from retail_assets.resources.lake.folder import LocalLake

    return LocalLake(root=settings.lake, history_days=settings.lake_history_days)

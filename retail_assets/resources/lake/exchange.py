"""What this process and an engine hand to each other: files that both see.

Here: files of this machine, of which nothing is copied. Not here: objects of a bucket, for a
cluster (bucket.py), reading and writing by an engine (resources/spark.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class LakeObject(NamedTuple):
    """One object of the lake: where it is, and what tells this version of it from others.

    ``name`` is relative to the lake's root; ``version`` is a generation, or size and time;
    ``modified`` is when it was written, in seconds since 1970.
    """

    name: str
    size: int
    version: str
    modified: float = 0.0


@dataclass(frozen=True)
class RemoteFolder:
    """A folder that an engine writes by its ``uri``; ``fetch`` brings what it wrote here."""

    uri: str
    fetch: Callable[[], Path]


class Exchange:
    """Files handed over in ``folder``. Where an engine cannot see them, the lake has its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, file: Path, of: LakeObject | None = None) -> Path | str:
        """Where an engine reads a local file: a path, or a URI.

        ``of`` is the object whose bytes the file has, if it is one's: that need not be copied.
        """
        return file

    def target(self, name: str) -> Path | RemoteFolder:
        """A folder for an engine to write to, which is not there yet."""
        return self.folder / name

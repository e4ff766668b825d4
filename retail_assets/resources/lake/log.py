"""The log of a Delta table, read as what it is: one file of JSON lines for each commit.

Here: which commits there are, and what they say of themselves and of files. Not here: what a
table has by them (tables.py, which asks delta-rs; that holds the interpreter's lock while it reads
a history, one entry after the other).
"""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from retail_assets.resources.lake.exchange import LakeObject

_PARALLEL = 8


class LogStore(Protocol):
    """What a log is read from."""

    def list_objects(self, prefix: str) -> Iterator[LakeObject]:
        """Objects whose name begins with ``prefix``, by name."""
        ...

    def read_bytes(self, name: str) -> bytes | None:
        """An object's bytes, or None."""
        ...


def log_folder(location: str) -> str:
    """Where the log of the table at ``location`` lies."""
    return f"{location}/_delta_log/"


def list_commits(store: LogStore, location: str) -> dict[int, LakeObject]:
    """The entries of a log that are still there, by version, in order."""
    log = log_folder(location)
    found: dict[int, LakeObject] = {}
    for entry in store.list_objects(log):
        version, _, kind = entry.name.removeprefix(log).partition(".")
        if kind == "json" and version.isdigit():
            found[int(version)] = entry
    return found


def read_actions(
    store: LogStore, location: str, versions: Iterable[int], kind: str
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Each version, and its actions of a kind: commitInfo, add, remove.

    None of a version whose entry is not there.
    """
    start = f'{{"{kind}"'.encode()

    def read(version: int) -> tuple[int, list[dict[str, Any]]]:
        text = store.read_bytes(f"{log_folder(location)}{version:020}.json") or b""
        lines = [line for line in text.splitlines() if line.startswith(start)]
        return version, [json.loads(line)[kind] for line in lines]

    with ThreadPoolExecutor(_PARALLEL) as pool:
        yield from pool.map(read, versions)

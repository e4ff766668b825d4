"""What the lake's tables remember: their history, going back in it, and what of it may go.

Here: which table is meant, and what the lake answers. Not here: which tables a domain has
(domain.py), restoring and vacuum themselves (resources/lake), printing (tables.py).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from retail_assets.dataset import Dataset
from retail_assets.defs.registry import domains
from retail_assets.domain import Domain
from retail_assets.errors import PermanentError
from retail_assets.resources.lake import LakeResource, open_lake
from retail_assets.resources.lake.restoring import restore
from retail_assets.resources.lake.tables import Commit
from retail_assets.resources.lake.vacuum import vacuum
from retail_assets.settings import Settings

_MOST_NAMES = 2
# A version's counts, by what its commit calls them.
_COUNTS = {
    "read": "rows_read",
    "written": "rows_written",
    "duplicates": "duplicates",
    "quarantined": "quarantined",
}


class UnknownTableError(PermanentError):
    """The lake has no table of that name; the message says which there are."""


class NoCommitError(PermanentError):
    """Nothing was committed to a table yet."""


class NotRestoredError(PermanentError):
    """A table that restoring would set against others; the message says what to do instead."""


@dataclass(frozen=True)
class Version:
    """A version of a table; what its commit does not tell is None or empty.

    ``readable`` says that its files are kept still: it can be read, and restored.
    """

    version: int
    time: datetime
    run: str
    asset: str
    read: int | None
    written: int | None
    duplicates: int | None
    quarantined: int | None
    source: str
    readable: bool

    @classmethod
    def of(cls, commit: Commit) -> "Version":
        """The version that a commit made."""
        told, restored = commit.told, commit.told.get("restored_version")
        return cls(
            version=commit.version,
            time=commit.time,
            run=told.get("run_id", ""),
            asset=told.get("asset") or commit.operation.lower(),
            source=f"version {restored}" if restored else _describe(told.get("source", "")),
            readable=commit.readable,
            **{name: int(told[key]) if key in told else None for name, key in _COUNTS.items()},
        )


@dataclass(frozen=True)
class Restored:
    """What restoring changed: versions, rows of the table, keys of its partitions."""

    before: int
    after: int
    rows_before: int
    rows_after: int
    partitions: Sequence[str]
    marts_job: str


@dataclass(frozen=True)
class Freed:
    """Files of a table that no kept version has, and their bytes."""

    table: str
    files: int
    size: int


def read_history(settings: Settings, table: str, limit: int | None) -> list[Version]:
    """The versions of a table of the lake, the latest first, ``limit`` at most.

    Raises:
        UnknownTableError: there is no such table.
        NoCommitError: it has no version yet.
    """
    domain, dataset = _find(table)
    found = open_lake(settings).table(dataset).history(limit)
    if not found:
        raise _no_commit(domain, table)
    return [Version.of(commit) for commit in found]


def to_json(table: str, versions: Sequence[Version]) -> str:
    """One JSON document of what ``read_history`` found."""
    found = [asdict(x) | {"time": f"{x.time:%Y-%m-%dT%H:%M:%S.%fZ}"} for x in versions]
    return json.dumps({"table": table, "versions": found}, indent=2, ensure_ascii=False)


def restore_table(settings: Settings, table: str, version: int) -> Restored:
    """Make a table, and its quarantine, what they were as of ``version``.

    Raises:
        UnknownTableError: there is no such table.
        NoCommitError: it has no version yet.
        NotRestoredError: it cannot be restored alone.
        UnknownVersionError: there is no such version, or files of it are gone.
    """
    domain, dataset = _find(table)
    if instead := domain.instead_of_restoring(table):
        raise NotRestoredError(f"{table} is not restored: {instead}")
    lake = open_lake(settings)
    before = lake.table(dataset).snapshot()
    if before.version < 0:
        raise _no_commit(domain, table)
    quarantine = domain.lake_tables().get(f"quarantine.{table}")
    told = {"asset": "retail-assets restore"}
    with lake.lock(domain.name):
        after, keys = restore(lake, dataset, version, told, quarantine)
    rows = lake.table(dataset).snapshot(after).rows
    return Restored(before.version, after, before.rows, rows, keys, f"{domain.name}_marts")


def vacuum_tables(settings: Settings, table: str | None, *, dry_run: bool) -> Iterator[Freed]:
    """Delete the files that no kept version has, of one table or of each that has any version.

    Raises:
        UnknownTableError: there is no such table.
    """
    names = _tables() if table is None else {table: _find(table)}
    lake = open_lake(settings)
    for name, (_, dataset) in names.items():
        sizes = _sizes(lake, dataset)
        if sizes:
            gone = vacuum(lake, lake.table(dataset), dry_run=dry_run)
            yield Freed(name, len(gone), sum(sizes.get(file, 0) for file in gone))


def _sizes(lake: LakeResource, dataset: Dataset) -> Mapping[str, int]:
    return {file.name: file.size for file in lake.list_objects(f"{dataset.location}/")}


def _tables() -> dict[str, tuple[Domain, Dataset]]:
    return {
        name: (domain, dataset)
        for domain in domains()
        for name, dataset in domain.lake_tables().items()
    }


def _find(table: str) -> tuple[Domain, Dataset]:
    names = _tables()
    if table not in names:
        raise UnknownTableError(f"{table!r} is no table of the lake; one of: {', '.join(names)}")
    return names[table]


def _no_commit(domain: Domain, table: str) -> NoCommitError:
    return NoCommitError(
        f"nothing was committed to {table} yet. Run: retail-assets run {domain.name}"
    )


def _describe(source: str) -> str:
    """Names and the first digits of their SHA-256, or what the commit says in their place."""
    try:
        files = json.loads(source)
    except ValueError:
        return source
    if not isinstance(files, dict):
        return source
    named = [f"{name} {str(digest)[:12]}" for name, digest in files.items()]
    more = [f"{len(named) - _MOST_NAMES} more"] if len(named) > _MOST_NAMES else []
    return ", ".join(named[:_MOST_NAMES] + more)

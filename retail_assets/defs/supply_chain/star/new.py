"""What a build takes: the messages that its tables have not, by the history of their table.

Each table says, by transactions of its commits, of which version of the messages it is and how they
were typed. Here: reading that, what follows from it, and the commits that say so. Not here: what is
made of the messages (typed.py, merge.py). Nothing here knows which stream's tables these are.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from retail_assets.dataset import Dataset
from retail_assets.errors import PermanentError
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.staging import Stage
from retail_assets.resources.lake.tables import Snapshot, TableFile, UnknownVersionError

# The fingerprint of a partition without rows.
EMPTY = "empty"

# Partitions as they are to be: by table and key the file (None: no rows), and how many rows.
Partitions = Mapping[str, Mapping[str, tuple[Path | None, int]]]


class StarError(PermanentError):
    """The star cannot be built, or be read as it is; the message says why, and what to do."""


@dataclass(frozen=True)
class Plan:
    """What a build of ``tables`` takes, and what it finds.

    ``files`` of ``messages`` by ingest date, up to their table's ``version``; ``gone`` were taken
    and are there no more. ``there`` are the tables by name, and ``transactions`` what these say
    before and after. Where all is built ``anew``, nothing that is there counts.
    """

    messages: Dataset
    tables: Sequence[Dataset]
    typing: int
    version: int
    files: Mapping[str, Sequence[TableFile]]
    there: Mapping[str, Snapshot]
    transactions: Mapping[str, Mapping[str, tuple[int | None, int]]]
    gone: int
    anew: bool

    @property
    def is_done(self) -> bool:
        """Whether every table is of this version already."""
        said = [numbers for each in self.transactions.values() for numbers in each.values()]
        return not (self.files or self.anew) and all(before == now for before, now in said)

    @property
    def count(self) -> int:
        """How many messages are taken."""
        return sum(file.rows for found in self.files.values() for file in found)


def read_origins(
    lake: LakeResource, messages: Dataset, tables: Sequence[Dataset]
) -> dict[str, dict[str, int]]:
    """By table what its transactions say; {} of one that no build published.

    The first is of which version of the messages it is, and one more, so that 0 is of none; the
    other is the typing by which they became its rows.
    """
    names = (messages.location, f"{messages.location}/typing")
    with ThreadPoolExecutor(len(tables)) as pool:
        found = pool.map(lambda dataset: lake.table(dataset).transactions(names), tables)
        return dict(zip((dataset.name for dataset in tables), found, strict=True))


def plan_build(
    lake: LakeResource,
    messages: Dataset,
    tables: Sequence[Dataset],
    typing: int,
    dates: Collection[str],
    *,
    anew: bool,
) -> Plan:
    """What is new since the version that all ``tables`` have taken, and all of ``dates``.

    A build that was killed while it published left tables of an earlier version: what it took is
    new again, and taken again changes nothing where it is in already. All messages are, where that
    version cannot be read any more. All is built anew where a table was never published, or is of
    another ``typing``.
    """
    origins = read_origins(lake, messages, tables)
    now = lake.table(messages).snapshot()
    new = {messages.location: now.version + 1, f"{messages.location}/typing": typing}
    anew = anew or any(of.get(f"{messages.location}/typing") != typing for of in origins.values())
    taken: set[str] = set()
    if not anew and (base := min(of[messages.location] for of in origins.values())):
        with suppress(UnknownVersionError):
            taken = {file.name for file in lake.table(messages).snapshot(base - 1).files}
    files: dict[str, list[TableFile]] = {}
    for file in now.filled():
        if file.name not in taken or file.key in dates:
            files.setdefault(file.key, []).append(file)
    return Plan(
        messages=messages,
        tables=tables,
        typing=typing,
        version=now.version,
        files=dict(sorted(files.items())),
        there={dataset.name: lake.table(dataset).snapshot() for dataset in tables},
        transactions={
            name: {each: (of.get(each), number) for each, number in new.items()}
            for name, of in origins.items()
        },
        gone=len(taken.difference(file.name for file in now.files)),
        anew=anew,
    )


def publish(stage: Stage, plan: Plan, partitions: Partitions) -> dict[str, tuple[str, ...]]:
    """Commit the partitions that differ from what is there; by table, those that do.

    Each table by one commit, in their order: a build starts from what is in the last one, and
    derives all else from it and the same messages. So one that is killed between two commits is
    mended by the next: the last table is of the earlier version still, and its messages are taken
    again. Built anew, all are committed: files that are there may be other ones than their names
    say.
    """
    changed: dict[str, tuple[str, ...]] = {}
    told = {
        "source": plan.messages.table,
        "source_version": plan.version,
        "source_files": sum(map(len, plan.files.values())),
        "code_version": plan.typing,
    }
    for dataset in plan.tables:
        there = plan.there[dataset.name].fingerprints
        ledgers: dict[str, Ledger] = {}
        for key, (file, rows) in partitions.get(dataset.name, {}).items():
            ledger = Ledger(_digest(file) if file else EMPTY, rows)
            if there.get(key) != ledger.fingerprint:
                changed[dataset.name] = (*changed.get(dataset.name, ()), key)
            elif not plan.anew:
                continue
            ledgers[key] = ledger
            if file is not None:
                stage.adopt(dataset, key, [file])
        stage.publish(dataset, ledgers, ledgers, told, plan.transactions[dataset.name])
    return changed


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]

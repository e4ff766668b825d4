"""What a build of the star takes: the messages that it has not, by the history of their table.

Each table of the star says, by transactions of its commits, of which version of the messages it is
and how they were typed. Here: reading that, and what follows from it. Not here: what is made of the
messages (candidates.py), what says so afterwards (publish.py).
"""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import LANDED, MESSAGES
from retail_assets.defs.supply_chain.transforms import TYPING_VERSION
from retail_assets.errors import PermanentError
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.tables import Snapshot, TableFile, UnknownVersionError

# Transactions: of which version of the messages a table is, and one more; so 0 is of none. And the
# TYPING_VERSION by which they became its rows.
_VERSION, _TYPING = MESSAGES.location, f"{MESSAGES.location}/typing"

Origin = Mapping[str, int]


class StarError(PermanentError):
    """The star cannot be built, or be read as it is; the message says why, and what to do."""


@dataclass(frozen=True)
class Plan:
    """What a build takes, and what it finds.

    ``files`` of messages by ingest date, up to their table's ``version``; ``gone`` were taken and
    are there no more. ``there`` are the star's tables by name, made ``of`` what their transactions
    say. Where it is built ``anew``, nothing of them counts.
    """

    version: int
    files: Mapping[str, Sequence[TableFile]]
    there: Mapping[str, Snapshot]
    of: Mapping[str, Origin]
    gone: int
    anew: bool

    @property
    def is_done(self) -> bool:
        """Whether every table is of this version already."""
        return not (self.files or self.anew) and all(x == self._origin for x in self.of.values())

    @property
    def messages(self) -> int:
        """How many are taken."""
        return sum(file.rows for found in self.files.values() for file in found)

    def transactions(self, dataset: Dataset) -> dict[str, tuple[int | None, int]]:
        """What a commit of a table says: that it is of this version from now on."""
        before = self.of[dataset.name]
        return {name: (before.get(name), number) for name, number in self._origin.items()}

    @property
    def _origin(self) -> Origin:
        return {_VERSION: self.version + 1, _TYPING: int(TYPING_VERSION)}


def read_origins(lake: LakeResource) -> dict[str, Origin]:
    """What each table of the star is made of, by its name; {} for one that no build published."""

    def read(dataset: Dataset) -> Origin:
        return lake.table(dataset).transactions([_VERSION, _TYPING])

    with ThreadPoolExecutor(len(LANDED)) as pool:
        return {d.name: found for d, found in zip(LANDED, pool.map(read, LANDED), strict=True)}


def plan_build(lake: LakeResource, dates: Collection[str], *, anew: bool) -> Plan:
    """What is new since the version that all tables of the star have taken, and all of ``dates``.

    A build that was killed while it published left tables of an earlier version: what it took is
    new again, and taken again changes nothing where it is in already. All messages are, where that
    version cannot be read any more. The star is built anew where a table was never published, or is
    of another typing.
    """
    origins = read_origins(lake)
    messages = lake.table(MESSAGES).snapshot()
    anew = anew or any(of.get(_TYPING) != int(TYPING_VERSION) for of in origins.values())
    taken: set[str] = set()
    if not anew and (base := min(of[_VERSION] for of in origins.values())):
        with suppress(UnknownVersionError):
            taken = {file.name for file in lake.table(MESSAGES).snapshot(base - 1).files}
    files: dict[str, list[TableFile]] = {}
    for file in messages.filled():
        if file.name not in taken or file.key in dates:
            files.setdefault(file.key, []).append(file)
    return Plan(
        version=messages.version,
        files=dict(sorted(files.items())),
        there={dataset.name: lake.table(dataset).snapshot() for dataset in LANDED},
        of=origins,
        gone=len(taken.difference(file.name for file in messages.files)),
        anew=anew,
    )

"""Messages in the lake: files of a range's rows and of its dead letters, committed and read again.

Here: the lake's half of a batch, what of it a killed run left, what lies there. Not here: how far
it is (positions.py), the operational database (operational_sink.py).

Dead letters are committed before the rows of their batch, for the rows' commit has the positions,
which say what has landed. What a run that was killed between the two left begins at or beyond its
position: it is taken out again before anything else lands.
"""

import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.contract import (
    CODE,
    DEAD_LETTERS,
    MESSAGES,
    MONEY,
    RATIO,
    SOURCE_COLUMNS,
)
from retail_assets.defs.supply_chain.messages import payloads_of
from retail_assets.defs.supply_chain.positions import LakePositions, Place, position_name
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.tables import NewFile, TransactionLostError
from retail_assets.resources.lake.vacuum import delete_replaced, vacuum_now_and_then

if TYPE_CHECKING:
    import pyarrow as pa

# Others have nearly as many values as rows: a dictionary of them helps nobody.
_DICTIONARIES = [
    "incarnation",
    "topic",
    "partition",
    "time",
    *(c.name for c in SOURCE_COLUMNS if c.type in ("string", CODE, "int32", MONEY, RATIO)),
    "product_card_id",
    "order_item_cardprod_id",
]


@dataclass(frozen=True)
class Part:
    """What a range holds. ``known_payloads`` are the JSON of ``good``, where they are known.

    ``dead`` has, beside the dead letters, values that good messages are without.
    """

    place: Place
    good: "pa.Table"
    dead: "pa.Table"
    known_payloads: Sequence[bytes] | None = None

    @property
    def payloads(self) -> Sequence[bytes]:
        """The JSON of each row of ``good``."""
        return payloads_of(self.good) if self.known_payloads is None else self.known_payloads

    @cached_property
    def letters(self) -> "pa.Table":
        """The dead letters alone."""
        import pyarrow.compute as pc

        return self.dead.filter(pc.invert(self.dead.column("row_stays")))

    def beyond(self, position: int) -> "Part":
        """The part from an offset on."""
        import pyarrow.compute as pc

        if position <= self.place.range.start:
            return self
        good, dead = (t.filter(pc.field("offset") >= position) for t in (self.good, self.dead))
        return Part(self.place, good, dead)


@dataclass(frozen=True)
class LandedPart:
    """What the lake has of a range: names of its files by table, of rows and of dead letters."""

    place: Place
    files: dict[str, str] = field(default_factory=dict)

    def read(self, lake: LakeResource) -> Part:
        """Its rows and dead letters."""
        import pyarrow.parquet as pq

        good, dead = (
            pq.read_table(lake.local_file(self.files[dataset.name]), partitioning=None)
            if dataset.name in self.files
            else dataset.arrow_schema.empty_table()
            for dataset in (MESSAGES, DEAD_LETTERS)
        )
        return Part(self.place, good, dead)


def write_part(part: Part, folder: Path) -> None:
    """Write the files of a part aside, into ``folder``."""
    import pyarrow.parquet as pq

    for dataset, table in _filled(part):
        pq.write_table(
            table,
            _aside(folder, part, dataset),
            compression="zstd",
            use_dictionary=_DICTIONARIES if dataset is MESSAGES else True,
            store_schema=False,
        )


def land_parts(
    lake: LakeResource,
    positions: LakePositions,
    parts: Sequence[Part],
    ends: Mapping[int, int],
    folder: Path,
    told: Mapping[str, object],
) -> list[str]:
    """Commit parts that were written aside, and with them ``ends`` as positions; files' names.

    Raises:
        TransactionLostError: another drain landed meanwhile; nothing is left of this.
    """
    new: dict[str, list[NewFile]] = defaultdict(list)
    moves: dict[str, Path] = {}
    token = uuid.uuid4().hex[:16]
    for part in parts:
        for dataset, table in _filled(part):
            name, file = part.place.file_name(token), _aside(folder, part, dataset)
            size = file.stat().st_size
            new[dataset.name].append(NewFile(name, part.place.ingest_date, table.num_rows, size))
            moves[f"{dataset.location}/{name}"] = file
    lake.put_files(moves)
    if letters := new[DEAD_LETTERS.name]:
        lake.table(DEAD_LETTERS).commit(letters, told=told)
    try:
        positions.commit(ends, new[MESSAGES.name], told)
    except TransactionLostError:
        remove_letters(lake, {f"{DEAD_LETTERS.location}/{file.name}" for file in letters}, told)
        raise
    return list(moves)


def remove_letters(lake: LakeResource, names: set[str], told: Mapping[str, object]) -> None:
    """Take files out of the table of dead letters, whose rows never came."""
    if names:
        _, gone = lake.table(DEAD_LETTERS).commit([], remove=lambda f: f.name in names, told=told)
        delete_replaced(lake, gone)


def landed_parts(lake: LakeResource) -> list[LandedPart]:
    """What has landed in the lake, by incarnation, partition and offset.

    What a killed run left of dead letters is taken out first: only under the lock.
    """
    rows, letters = (dict(_listed(lake, dataset)) for dataset in (MESSAGES, DEAD_LETTERS))
    ends: dict[tuple[str, int], int] = {}
    for incarnation, (partition, _, end), _ in rows:
        ends[incarnation, partition] = max(end, ends.get((incarnation, partition), 0))
    # Before rows that landed they landed too; of the others, which are few, the position says it.
    doubtful = {
        place: position_name(place.incarnation, place.range.partition)
        for place in letters
        if place.range.start >= ends.get((place.incarnation, place.range.partition), 0)
    }
    positions = lake.table(MESSAGES).transactions(set(doubtful.values()))
    left = [
        place for place, name in doubtful.items() if place.range.start >= positions.get(name, 0)
    ]
    told = {"left_by": "a batch that was killed before its rows"}
    remove_letters(lake, {letters.pop(place) for place in left}, told)
    found = {place: LandedPart(place) for place in sorted({*rows, *letters})}
    for dataset, names in ((MESSAGES, rows), (DEAD_LETTERS, letters)):
        for place, name in names.items():
            found[place].files[dataset.name] = name
    return list(found.values())


def vacuum_tables(lake: LakeResource) -> None:
    """Take files that are of no more use, once a day."""
    for dataset in (MESSAGES, DEAD_LETTERS):
        vacuum_now_and_then(lake, lake.table(dataset))


def _listed(lake: LakeResource, dataset: Dataset) -> Iterator[tuple[Place, str]]:
    for file in lake.table(dataset).snapshot().files:
        if (place := Place.of_file(file.name)) is not None:
            yield place, file.name


def _filled(part: Part) -> "Iterable[tuple[Dataset, pa.Table]]":
    both = (MESSAGES, part.good), (DEAD_LETTERS, part.dead)
    return [(dataset, table) for dataset, table in both if table.num_rows]


def _aside(folder: Path, part: Part, dataset: Dataset) -> Path:
    partition, start, end = part.place.range
    return folder / f"{dataset.name}-{partition}-{start}-{end}.parquet"

"""Files as others deliver them, dated or single: each raw file is of one table.

Here: the declaration, and the domain that it makes. The rest by file: listing (which raw files
there are, and which are new work), taking (from raw files to partitions of the lake), definitions.
Not here: which columns a table has, how text becomes values (a table's typing).

A drop is a date of which there are files: the partition of each table of dated ones. Nothing heavy
is imported at the top: the command line starts here.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from retail_assets.dataset import Column, Dataset
from retail_assets.domain import Asked, Execution, PlanError, QuarantineTable
from retail_assets.feeds import REASON, PartitionFeed
from retail_assets.settings import Dates, Settings

if TYPE_CHECKING:
    import dagster as dg

    from retail_assets.errors import PermanentError
    from retail_assets.feeds.files.taking import RawFile, Room, Typed
    from retail_assets.resources.lake import LakeResource
    from retail_assets.resources.lake.tables import Snapshot

# The version of a partition that is landed empty: the table has no file of that date.
ABSENT = "absent"

# Types raw files of a table, by their keys. What it gives of a key is used before the next is asked
# for; a file that cannot be taken is its error. It may be heavy: it is first called in an asset.
TypeFiles = Callable[
    ["FileTable", "Room", Mapping[str, "RawFile"]],
    "Iterator[tuple[str, Typed | PermanentError]]",
]


def _type_by_contract(
    table: "FileTable", room: "Room", files: "Mapping[str, RawFile]"
) -> "Iterator[tuple[str, Typed | PermanentError]]":
    from retail_assets.feeds.files.by_contract import type_by_contract

    return type_by_contract(table, room, files)


@dataclass(frozen=True)
class FileTable:
    """A table of raw files, and how these become its rows.

    Attributes:
        dataset: the table; of dated files, partitioned by their date.
        path: the raw file's name in the lake, or that of dated ones, with ``{date}``.
        typing: what types its files; without one, by the dataset's columns (by_contract.py).
        header: the raw columns, where every file has these in this order; one without a name is
            the index of the row.
        own_version: of a typing of its own. To be raised when the same bytes would become other
            rows: then every file is new work.
        engine: what types them, as the UI says it.
        resources: the names of Dagster's resources that the typing asks for.
        dates: the order of days and months, where values alone may not say it.
    """

    dataset: Dataset
    path: str
    typing: TypeFiles = _type_by_contract
    header: tuple[str, ...] = ()
    own_version: str = ""
    engine: str = "duckdb"
    resources: tuple[str, ...] = ()
    dates: Dates = "auto"

    @property
    def version(self) -> str:
        """Of the typing: with another, the same bytes become other rows, and are new work."""
        if self.own_version:
            return self.own_version
        from retail_assets.feeds.typing import TYPING_VERSION

        by = repr((TYPING_VERSION, self.dataset.columns, self.dates))
        return hashlib.sha256(by.encode()).hexdigest()[:8]

    @property
    def is_dated(self) -> bool:
        """Whether its files are dated."""
        return "{date}" in self.path

    def file_name(self, key: str) -> str:
        """Where the file, or that of the date ``key``, lies in the lake."""
        return self.path.format(date=key)


class FileFeed(PartitionFeed):
    """A domain of files as they are delivered; ``sample`` is the command that makes some, if any.

    Every name that Dagster knows of it begins with the domain's.
    """

    def __init__(self, name: str, tables: Sequence[FileTable], *, sample: str = "") -> None:
        self.name = name
        self.tables = tuple(tables)
        self.dated = tuple(table for table in self.tables if table.is_dated)
        self.single = tuple(table for table in self.tables if not table.is_dated)
        self.datasets = tuple(table.dataset for table in self.tables)
        self.partitions = f"{name}_drops"
        self.small_job, self.large_job = f"{name}_small_files", f"{name}_large_files"
        self.drops_job, self.nightly_job = f"{name}_drops_to_marts", f"{name}_nightly"
        self.or_sample = f", or make sample files: {sample}" if sample else ""

    def maker(self) -> "Callable[[Settings], dg.Definitions]":
        """Assets and automation."""
        from retail_assets.feeds.files.definitions import build_defs

        return partial(build_defs, self)

    def plan(
        self, settings: Settings, asked: Asked, instance: "Callable[[], dg.DagsterInstance]"
    ) -> Iterator[Execution]:
        """Every drop found in raw or taken from there, or those of the dates asked for.

        The marts come once, at the end. A drop that was taken and deleted keeps its rows: a new
        warehouse gets them too. Where dates are asked for, single files are left out if the lake
        has what they are.
        """
        from retail_assets.feeds.files.listing import Look
        from retail_assets.resources.lake import open_lake

        lake = open_lake(settings)
        look = Look(lake, self.tables)
        first, last = asked.partitions or ("", "~")
        dates = {key for key in look.delivered | look.taken if first <= key <= last}
        if not dates and (self.dated or asked.partitions):
            span = f" from {first} to {last}" if asked.partitions else ""
            raise PlanError(
                f"{lake.uri(f'raw/{self.name}')} holds no drop{span}; expected files such as"
                f" {(self.dated or self.tables)[0].file_name('2022-12-31')}. Deliver them there"
                f"{self.or_sample}."
            )
        if not self.dated:
            yield Execution(self.name, None, self._config(self.tables, asked.allow_emptying))
            return
        is_single_taken = (
            all(look.table(table.dataset).ledgers for table in self.single)
            and not look.changes(self.single).small
        )
        job = self.drops_job if asked.partitions and is_single_taken else self.name
        opened = instance()
        registered = list(opened.get_dynamic_partitions(self.partitions))
        if new := sorted(dates.difference(registered)):
            opened.add_dynamic_partitions(self.partitions, new)
        from retail_assets.feeds.automation import partition_ranges

        # Partitions that were registered in another order than that of their dates are several
        # ranges to Dagster, and as many runs: the last one goes on to the marts.
        ranges = partition_ranges(dates, [*registered, *new])
        for inside in ranges:
            name = job if inside is ranges[-1] else self.large_job
            config = self._config(
                self.tables if name == self.name else self.dated, asked.allow_emptying
            )
            rest = partial(self._behind, settings) if inside is ranges[-1] else tuple
            yield Execution(name, (inside[0], inside[-1]), config, rest=rest)

    def _behind(self, settings: Settings) -> Iterator[Execution]:
        """What is left of a run that refused drops: load and marts, where they are behind."""
        from retail_assets.feeds.automation import load_requests, marts_requests
        from retail_assets.resources.lake import open_lake
        from retail_assets.resources.warehouse import WarehouseBusyError, open_warehouse

        lake, warehouse = open_lake(settings), open_warehouse(settings)
        looks: dict[str, Callable[[], Iterator[Any]]] = {
            self.load_job: lambda: load_requests(self, lake, warehouse),
            self.marts_job: lambda: marts_requests(self, warehouse),
        }
        for job, look in looks.items():
            try:
                is_behind = any(look())
            except WarehouseBusyError:  # a step of the run will wait, on record
                is_behind = True
            if is_behind:
                yield Execution(job)

    def _config(self, tables: Sequence[FileTable], emptying: bool) -> dict[str, Any]:
        """The config of a run that may let ``tables`` lose rows."""
        from retail_assets.feeds.processed import processed_key

        config = {"config": {"allow_emptying": True}}
        ops = {processed_key(self, x.dataset).to_python_identifier(): config for x in tables}
        return {"ops": ops} if emptying else {}

    def lake_versions(
        self,
        lake: "LakeResource",
        dataset: Dataset,
        snapshot: "Snapshot | None" = None,
        known: "Callable[[Dataset], Snapshot] | None" = None,
    ) -> dict[str, str]:
        """Fingerprints of the processed partitions; ABSENT for one that restoring took out.

        A table of dated files that never had one is landed too, empty, for the marts: ABSENT for
        one date that another table has. ``known`` gives snapshots that were taken already.
        """
        from retail_assets.resources.lake.restoring import set_aside

        of = known or (lambda table: lake.table(table).snapshot())
        found, gone = (snapshot or of(dataset)).fingerprints, set(set_aside(lake, dataset))
        if dataset.partition_by and not (gone or found):
            dates = [key for x in self.dated for key in of(x.dataset).fingerprints]
            gone = {min(dates)} if dates else gone
        return dict.fromkeys(gone, ABSENT) | found

    def quarantines(self) -> Sequence[QuarantineTable]:
        """That of each table."""
        return [
            QuarantineTable(
                table.dataset.table,
                quarantine_of(table.dataset),
                ("file",),
                partial(mask_personal, table),
            )
            for table in self.tables
        ]


def quarantine_of(dataset: Dataset) -> Dataset:
    """What of ``dataset``'s raw files could not be typed, with the whole row's text and why."""
    return replace(
        dataset,
        description=f"Raw rows of {dataset.name} of which not all could be typed, and why.",
        zone="quarantine",
        cluster_by=(),
        columns=(
            *(c for c in dataset.columns if c.name == dataset.partition_by),
            Column("file", "string", "Raw file, by its name in the lake."),
            REASON,
            Column("text", "string", "The row as it came.", pii=True),
            Column(
                "row_stays",
                "bool",
                "True where the row stands in the table without the value that the reason names.",
            ),
        ),
    )


def mask_personal(table: FileTable, reason: str, text: str) -> tuple[str, str]:
    """Reason and text of a quarantined row of ``table`` without its personal columns.

    Where it cannot be told which value is which column's, the text is masked whole: no header is
    declared, the row has another number of fields, or a comma in one.
    """
    from retail_assets.losses import MASK, mask_fields, public_reason

    personal, header = table.dataset.personal, table.header
    if not personal:
        return reason, text
    # Only of a row that has all fields does a reason name a column.
    has_all_fields = reason.partition(":")[0] in header[1:]
    masked = mask_fields(text.split(","), header, personal) if has_all_fields else None
    return public_reason(reason, personal), MASK if masked is None else ",".join(masked)

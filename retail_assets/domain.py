"""What a domain is to the rest: the plug that commands, definitions and marts are written against.

Here: the base class, and what passes through it. Not here: any domain (defs/<domain>/domain.py),
which domains there are (defs/registry.py). Dagster is not imported: the command line starts here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from retail_assets.dataset import Dataset
from retail_assets.errors import PermanentError
from retail_assets.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

    from retail_assets.resources.cloud_checks import Question
    from retail_assets.resources.dbt.project import Windows
    from retail_assets.resources.lake import LakeResource
    from retail_assets.resources.lake.tables import Snapshot
    from retail_assets.resources.warehouse import WarehouseResource

# Fingerprint of each partition of each landed table.
Versions: TypeAlias = Mapping[Dataset, Mapping[str, str]]
MARTS_STAGE = "marts"
# Of which state of dbt's project the marts are; recorded with one of the domain's tables.
MODELS_STAGE = "models"
# Metadata of a failure that names the partitions that could not be taken; the others were.
REFUSED_PARTITIONS = "refused_partitions"
# The tags by which Dagster takes a range of partitions in one run: its first, its last.
RANGE_TAGS = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


class PlanError(PermanentError):
    """What was asked for cannot be done; the message says what was expected and found."""


@dataclass(frozen=True)
class Execution:
    """One execution of a job: over which range of partitions, with what config.

    ``partitions`` is the inclusive range, as the job's partitions are ordered; None where the
    assets that run have none. ``asset_selection`` of None is all that the job has. ``rest`` is what
    is still to do after it where it refused partitions (REFUSED_PARTITIONS) and took the others.
    """

    job_name: str
    partitions: tuple[str, str] | None = None
    run_config: Mapping[str, Any] = field(default_factory=dict)
    asset_selection: "Sequence[dg.AssetKey] | dg.AssetSelection | None" = None
    rest: "Callable[[], Iterable[Execution]]" = field(default=tuple, compare=False)

    @property
    def tags(self) -> dict[str, str]:
        """The tags by which Dagster runs the range."""
        return range_tags(*self.partitions) if self.partitions else {}


@dataclass(frozen=True)
class MartsPlan:
    """What a build of a domain's dbt models is given, and what it then stands for.

    ``windows`` are the ranges of changed partitions by the name of their dbt variable; None
    rebuilds everything. ``versions`` is recorded for each landed table once all was built.
    ``changed`` are the landed tables that the marts are not of: what stands on others alone may be
    left out. Without any, everything is built.
    """

    windows: "Windows"
    versions: Versions
    changed: Sequence[Dataset] = ()


@dataclass(frozen=True)
class QuarantineTable:
    """What the lake's quarantine has of a table: rows of its source, each with a reason and a text.

    ``table`` is the table's ``schema.name``; ``dataset`` what lies in quarantine, of whose columns
    ``places`` say where in the source a row stood. ``mask`` gives reason and text as they may be
    shown: without what is personal.
    """

    table: str
    dataset: Dataset
    places: tuple[str, ...]
    mask: Callable[[str, str], tuple[str, str]]


@dataclass(frozen=True)
class Pruned:
    """What was removed, or would be: what kind of thing, how many, and bytes where known."""

    what: str
    count: int
    size: int = 0


@dataclass(frozen=True)
class Asked:
    """What a person asked a whole run for; a domain refuses what means nothing there.

    ``partitions`` is an inclusive range of days; None for all that there is. With
    ``allow_emptying`` tables may lose more rows than the settings allow. ``stream`` is a file to
    produce to the domain's topic meanwhile.
    """

    partitions: tuple[str, str] | None = None
    allow_emptying: bool = False
    stream: Path | None = None


class Domain(ABC):
    """A domain, as the rest of the package sees it. It has no state: settings come with each call.

    Its module imports nothing heavy: what a method needs is imported in it.

    Attributes:
        name: its name, and that of its folder, its asset group and its folder of dbt models.
        datasets: the landed tables that it owns in the warehouse.
        beside_warehouse: tables of the lake that ``rebuild`` fills another system from.
        loads_by_the_clock: its landed tables are materialized whether or not there is news: to
            Dagster what is built of them is then stale by data versions alone, not by time.
    """

    name: str
    datasets: tuple[Dataset, ...]
    beside_warehouse: tuple[Dataset, ...] = ()
    loads_by_the_clock: bool = False

    @property
    def load_job(self) -> str:
        """The job that loads what the lake has otherwise than the warehouse."""
        return f"{self.name}_lake_to_warehouse"

    @property
    def marts_job(self) -> str:
        """The job that builds the marts."""
        return f"{self.name}_marts"

    @abstractmethod
    def maker(self) -> "Callable[[Settings], dg.Definitions]":
        """What makes its assets, checks and automation. The call imports it, and Dagster."""

    def build_defs(self, settings: Settings) -> "dg.Definitions":
        """Assets, checks and automation, over the configured partitions."""
        return self.maker()(settings)

    def resources(self, settings: Settings) -> dict[str, object]:
        """Resources that it alone asks for, by name."""
        return {}

    def prepare(self, settings: Settings) -> None:  # noqa: B027  (most have nothing to prepare)
        """Make the sample where the settings want it and it is not there."""

    def check(self, settings: Settings, asked: Asked) -> None:
        """Refuse what cannot be asked for here, before anything is started.

        Raises:
            PlanError: it names what was asked for and what is possible.
        """
        if asked.stream:
            raise PlanError(
                f"--stream is {asked.stream}; {self.name} has no topic to stream to. Leave it out."
            )

    @abstractmethod
    def plan(
        self,
        settings: Settings,
        asked: Asked,
        instance: "Callable[[], dg.DagsterInstance]",
    ) -> Iterable[Execution]:
        """What a whole run executes, in order; the next is asked for when one has succeeded.

        It looks at what is known and does no work: that is the assets'. It begins beside the
        imports of Dagster and dbt; ``instance`` waits for these, then gives the open instance.

        Raises:
            PlanError: there is nothing to run.
        """

    def plan_marts(self, warehouse: "WarehouseResource") -> MartsPlan:
        """What changed since the marts were built; without windows they are built whole."""
        return MartsPlan({}, {x: warehouse.loaded_versions(x) for x in self.datasets})

    @abstractmethod
    def count_rows(self, lake: "LakeResource") -> dict[str, int]:
        """Rows of its assets in the lake, by ``schema.name`` of the asset; without those absent."""

    def lake_versions(
        self, lake: "LakeResource", dataset: Dataset, snapshot: "Snapshot | None" = None
    ) -> dict[str, str]:
        """Fingerprint of every partition that the lake has of one of ``datasets``."""
        from retail_assets.feeds import landing

        return landing.lake_versions(lake, dataset, snapshot)

    def rebuild(self, settings: Settings, dataset: Dataset) -> int:
        """Create one of ``datasets`` in the warehouse anew from the lake; returns its rows.

        Raises:
            PlanError: the lake has nothing processed for it.
        """
        from retail_assets.feeds import landing
        from retail_assets.resources.lake import open_lake
        from retail_assets.resources.warehouse import open_warehouse

        return landing.rebuild(open_lake(settings), open_warehouse(settings), self, dataset)

    def quarantines(self) -> Sequence[QuarantineTable]:
        """The tables that have a quarantine, and how to read it."""
        return ()

    def lake_tables(self) -> Mapping[str, Dataset]:
        """Its tables in the lake, by the name that commands take: a quarantine's by its table's."""
        return {
            **{dataset.table: dataset for dataset in self.datasets},
            **{f"quarantine.{x.table}": x.dataset for x in self.quarantines()},
        }

    def prune(self, settings: Settings, *, dry_run: bool) -> Iterator[Pruned]:
        """Remove what is older than the settings keep: of the lake, files of no kept version."""
        from retail_assets.resources.lake import open_lake
        from retail_assets.resources.lake.vacuum import vacuum

        lake = open_lake(settings)
        for name, dataset in self.lake_tables().items():
            sizes = {x.name: x.size for x in lake.list_objects(f"{dataset.location}/")}
            gone = vacuum(lake, lake.table(dataset), dry_run=dry_run) if sizes else []
            yield Pruned(f"files of {name}", len(gone), sum(sizes.get(x, 0) for x in gone))

    def instead_of_restoring(self, table: str) -> str:
        """What to do in place of restoring one of ``lake_tables``; "" where it can be restored.

        That can a table whose partitions are of a source, each with its ledger.
        """
        of = table.removeprefix("quarantine.")
        if of == table:
            return ""
        return f"it goes back with its table. Run: retail-assets restore {of} --version N"

    def questions(self, settings: Settings) -> "Iterable[Question]":
        """What ``doctor`` asks of its own outside systems."""
        return ()

    def shown_settings(self, settings: Settings) -> Mapping[str, str]:
        """Its settings that are not shown as they are, by field: secrets redacted."""
        return {}

    def variables(self) -> Sequence[str]:
        """Environment variables of its own, beside those of the settings' fields."""
        return ()


def range_tags(first: str, last: str) -> dict[str, str]:
    """The tags by which Dagster takes a range of partitions in one run."""
    return dict(zip(RANGE_TAGS, (first, last), strict=True))


def range_of(tags: Mapping[str, str]) -> tuple[str, str]:
    """First and last of the partitions that a run is of, by its tags; empty where it has none."""
    first, last = (tags.get(tag, tags.get("dagster/partition", "")) for tag in RANGE_TAGS)
    return first, last


def parse_partitions(text: str) -> tuple[str, str]:
    """First and last day of ``A...B`` or of the one day ``A``.

    Raises:
        PlanError: it is neither.
    """
    first, dots, last = text.partition("...")
    try:
        pair = date.fromisoformat(first), date.fromisoformat(last if dots else first)
    except ValueError:
        pair = None
    if pair is None or pair[1] < pair[0]:
        raise PlanError(f"--partitions is {text!r}; expected 2011-11-14 or 2010-12-01...2011-12-09")
    return str(pair[0]), str(pair[1])

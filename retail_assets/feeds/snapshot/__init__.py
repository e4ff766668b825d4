"""A feed of one source that is the whole truth for its days.

Here: its declaration, what a whole run of it takes, its answers to status, doctor and rebuild.
By file: manifest (what a source holds), source (fetching, typing, refusing), rows (the typed rows),
definitions. Not here: how a row is typed (a domain's transforms.py, or feeds/typing.py).
Nothing heavy is imported: the command line starts here.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retail_assets.dataset import Column, Dataset
from retail_assets.days import changed_window
from retail_assets.domain import Asked, Execution, PlanError, Pruned, QuarantineTable, Versions
from retail_assets.feeds import REASON, PartitionFeed
from retail_assets.settings import (
    SAMPLE_SOURCE,
    Dates,
    Settings,
    SourcePlace,
    source_variables,
)

if TYPE_CHECKING:
    import dagster as dg
    from duckdb import DuckDBPyConnection

    from retail_assets.feeds.reading import ReadFiles
    from retail_assets.resources.cloud_checks import Question
    from retail_assets.resources.dbt.project import Windows
    from retail_assets.resources.lake import LakeResource


# Types files into a Parquet file of rows, by day and place in the source: connection, files, that
# file, a folder for what is unpacked, the order of dates. Columns: the dataset's partition (null
# where no day can be read), ``_source``, ``_row``, ``_reason`` (null for a good row), ``_left_out``
# (a list of the reasons of values that are left out, or null), ``_text`` (a JSON array of the raw
# fields where one of the two is not null), ``_copies`` (how often the very same row stood there).
TypeFiles = Callable[["DuckDBPyConnection", Sequence[Path], Path, Path, Dates], "ReadFiles"]


@dataclass(frozen=True)
class RowTyping:
    """How the texts of a source's files become rows of a dataset.

    Attributes:
        version: what was typed by another version is typed again.
        type_files: types all files of the source.
        columns: the dataset's columns as SQL over the typed rows.
        identity: as SQL, what a good row is known by: 30 hex digits at least.
        text: as SQL, a row's fields as a JSON array, also of a good one.
        fields: the names of these; without any, a text is masked whole.
        moment: the column that the day is of.
    """

    version: str
    type_files: TypeFiles
    columns: str
    identity: str
    text: str
    moment: str
    fields: Sequence[str] = ()


@dataclass(eq=False)
class SnapshotFeed(PartitionFeed):
    """A domain of one source, daily partitions and one landed table.

    Attributes:
        dataset: the table, partitioned by a date.
        first_day, last_day, source, dates: what RETAIL_<NAME>_START, _END, _SOURCE and _DATES say
            nothing of.
        typing: how its rows are typed; without it, by the dataset (feeds/typing.py).
        sums: columns whose sums each day's record tells, by the name that they have there.
        write_sample: writes the generated source, which ``sample`` names.
    """

    name: str
    dataset: Dataset
    first_day: date
    last_day: date | None = None
    source: tuple[str, ...] = ()
    typing: Callable[[], RowTyping] | None = None
    sums: Mapping[str, str] = field(default_factory=dict)
    write_sample: Callable[[Path], object] | None = None
    dates: Dates = "auto"
    datasets: tuple[Dataset, ...] = field(init=False)
    quarantine: Dataset = field(init=False)

    def __post_init__(self) -> None:
        self.datasets = (self.dataset,)
        self.source_job = f"{self.name}_source_to_lake"
        self.days_job = f"{self.name}_changed_days"
        self.days_to_marts_job = f"{self.name}_days_to_marts"
        self.quarantine = replace(
            self.dataset,
            description="Source rows that could not be typed, with their text and the reason.",
            zone="quarantine",
            partition_by=None,
            cluster_by=(),
            folder_by=Column(self.day, "string", "The row's day, or why it has none."),
            columns=(
                Column("source", "string", "Source file, and sheet where it has any."),
                Column(
                    "row", "int64", "Row in that file or sheet; the header is 1.", nullable=True
                ),
                REASON,
                Column("text", "string", "The row's fields as they came: a JSON array.", pii=True),
            ),
        )

    @property
    def day(self) -> str:
        """The column of the partitions."""
        assert self.dataset.partition_by, f"{self.dataset.table} has no partitions"
        return self.dataset.partition_by

    @property
    def raw_key(self) -> "dg.AssetKey":
        """The asset of the source."""
        import dagster as dg

        return dg.AssetKey([self.name, f"raw_{self.name}"])

    def place(self, settings: Settings) -> SourcePlace:
        """Where the source is, and over which days."""
        declared = SourcePlace(self.source, self.first_day, self.last_day, self.dates)
        found = settings.source_of(self.name, declared)
        sample = str(self.sample(settings))
        locations = tuple(sample if x == SAMPLE_SOURCE else x for x in found.locations)
        return replace(found, locations=locations)

    def sample(self, settings: Settings) -> Path:
        """Where the generated source stands."""
        return settings.home / "samples" / f"{self.name}.xlsx"

    def row_typing(self) -> RowTyping:
        """How its rows are typed: as declared, or by the dataset's columns."""
        if self.typing is not None:
            return self.typing()
        from retail_assets.feeds.typing import TYPING_VERSION, type_files

        columns = ", ".join(f'"{name}"' for name in self.dataset.column_names)
        texts = ", ".join(f'"{name}"::varchar' for name in self.dataset.column_names)
        texts = f"to_json([{texts}])::varchar"
        setting = source_variables(self.name)[-1]
        return RowTyping(
            version=f"{TYPING_VERSION} {self.dataset.columns}",
            type_files=lambda connection, files, target, scratch, dates: type_files(
                connection, files, self.dataset, target, scratch, dates=dates, setting=setting
            ),
            columns=columns,
            identity=f"sha256({texts})",
            text=f"coalesce(_text, {texts})",
            moment=self.day,
        )

    def maker(self) -> "Callable[[Settings], dg.Definitions]":
        """Assets and automation."""
        from retail_assets.feeds.snapshot.definitions import build_defs

        return partial(build_defs, self)

    def prepare(self, settings: Settings) -> None:
        """Write the sample where the settings want it and it is not there."""
        sample = self.sample(settings)
        is_wanted = str(sample) in self.place(settings).locations
        if self.write_sample and is_wanted and not sample.exists():
            self.write_sample(sample)

    def check(self, settings: Settings, asked: Asked) -> None:
        """Refuse days outside the configured span."""
        super().check(settings, asked)
        if asked.partitions is None:
            return
        place, (first, last) = self.place(settings), asked.partitions
        if first < str(place.first_day) or last > str(place.until):
            _, start, end, _ = source_variables(self.name)
            raise PlanError(
                f"--partitions is {first}...{last}; expected days inside"
                f" {place.first_day}...{place.until} ({start}, {end})"
            )

    def plan(
        self, settings: Settings, asked: Asked, instance: "Callable[[], dg.DagsterInstance]"
    ) -> Iterator[Execution]:
        """The source, then the days that it has, and those that it no longer has.

        Days that are asked for are known: they take one run.
        """
        instance()  # Dagster is imported then
        import dagster as dg

        from retail_assets.feeds.snapshot.manifest import changed_days, read_manifest
        from retail_assets.resources.lake import open_lake

        raw = self.raw_key
        taking = {"config": {"allow_emptying": asked.allow_emptying}}
        config = {"ops": {raw.to_python_identifier(): taking}}
        if asked.partitions is not None:
            yield Execution(self.name, asked.partitions, config)
            return
        yield Execution(self.name, None, config, [raw])
        lake, place = open_lake(settings), self.place(settings)
        found = read_manifest(lake, self.name)
        assert found is not None  # the first execution has succeeded
        table = lake.table(self.dataset).snapshot()
        changed = changed_days(found.fingerprints, table.fingerprints)
        days = [day for day in (*found.days, *changed) if place.has(day)]
        others = dg.AssetSelection.groups(self.name) - dg.AssetSelection.assets(raw)
        yield Execution(self.name, (min(days), max(days)), asset_selection=others)

    def windows(self, landed: Versions, built: Versions) -> "Windows":
        """The days that differ."""
        window = changed_window(landed[self.dataset], built[self.dataset])
        return {f"{self.name}_window": window}

    def count_rows(self, lake: "LakeResource") -> dict[str, int]:
        """Rows of the source, and of the processed days."""
        from retail_assets.feeds.snapshot.manifest import read_manifest

        manifest = read_manifest(lake, self.name)
        raw = {f"{self.name}.raw_{self.name}": manifest.read} if manifest is not None else {}
        return raw | super().count_rows(lake)

    def prune(self, settings: Settings, *, dry_run: bool) -> Iterator[Pruned]:
        """Also of the source's files those that it has no longer, ``keep_raw_days`` after."""
        from retail_assets.feeds.snapshot.manifest import read_manifest
        from retail_assets.resources.lake import open_lake

        yield from super().prune(settings, dry_run=dry_run)
        lake, keep_days = open_lake(settings), settings.keep_raw_days
        with lake.lock(self.name) if keep_days else nullcontext():
            manifest = read_manifest(lake, self.name) if keep_days else None
            if manifest is None:
                return
            kept, since = manifest.hashes, time.time() - keep_days * 86_400
            old = [
                file
                for file in lake.list_objects(f"raw/{self.name}/")
                if file.name not in kept and file.modified < since
            ]
            if not dry_run:
                lake.delete_all([file.name for file in old])
        what = f"old versions of {self.name}'s source"
        yield Pruned(what, len(old), sum(file.size for file in old))

    def quarantines(self) -> Sequence[QuarantineTable]:
        """That of its one table."""
        return [QuarantineTable(self.dataset.table, self.quarantine, ("source", "row"), self.mask)]

    def mask(self, reason: str, text: str) -> tuple[str, str]:
        """Reason and text of a quarantined row without what is personal.

        A text that is not of all fields, such as a row of too many, is masked whole.
        """
        from retail_assets.losses import MASK, mask_fields, public_reason

        personal, names = self.dataset.personal, self.row_typing().fields
        try:
            values: Any = json.loads(text)
        except ValueError:
            values = None
        masked = mask_fields(values, names, personal) if isinstance(values, list) else None
        told = MASK if masked is None else json.dumps(masked, ensure_ascii=False)
        return public_reason(reason, personal), told

    def questions(self, settings: Settings) -> "Iterator[Question]":
        """Whether the source answers."""
        from retail_assets.resources.cloud_checks import Question

        variable = source_variables(self.name)[0]
        yield Question(
            f"{self.name} source",
            lambda: self._probe(settings),
            f"set {variable} to a path or URL that answers",
        )

    def _probe(self, settings: Settings) -> str:
        from retail_assets.resources.http import probe, redact

        shown = []
        for location in self.place(settings).locations:
            if location == str(self.sample(settings)) and not os.path.exists(location):
                shown.append("sample (made by the first run)")
                continue
            answer = probe(location, timeout_s=min(settings.http_timeout_s, 10.0))
            size = "size unknown" if answer.size is None else f"{answer.size:,} bytes"
            shown.append(f"{redact(location)}, {size}")
        return "; ".join(shown)

    def shown_settings(self, settings: Settings) -> Mapping[str, str]:
        """Those of its source; locations resolved and without credentials."""
        from retail_assets.resources.http import redact

        place = self.place(settings)
        return {
            f"{self.name}_source": ", ".join(map(redact, place.locations)),
            f"{self.name}_start": str(place.first_day),
            f"{self.name}_end": str(place.last_day or ""),
            f"{self.name}_dates": place.dates,
        }

    def variables(self) -> Sequence[str]:
        """Those of its source."""
        return source_variables(self.name)

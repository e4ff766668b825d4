"""The source of online retail: fetched where it is another, and typed once.

Here: fetching, typing, refusing. Not here: what was found (manifest.py), what becomes of the days
(assets.py), how a row is typed (transforms.py), HTTP (resources/http/).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import unquote, urlsplit

import dagster as dg

from retail_assets.defs.online_retail.contract import DOMAIN, ONLINE_RETAIL_DATA, QUARANTINE
from retail_assets.defs.online_retail.manifest import (
    MANIFEST,
    Manifest,
    SourceFile,
    changed_days,
    day_ledgers,
    hashes_of,
    read_manifest,
)
from retail_assets.defs.online_retail.reading import (
    HeaderMatch,
    Reading,
    ReadTable,
    is_header,
    match_header,
)
from retail_assets.defs.online_retail.transforms import (
    TYPING_VERSION,
    days_outside,
    quarantine_table,
    quarantined_rows,
    type_rows,
)
from retail_assets.errors import PermanentError
from retail_assets.losses import Quarantined, public_reason, refuse_to_shrink
from retail_assets.moments import Moments, Order
from retail_assets.resources.http import Fingerprint, fetch, is_url, probe, redact
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.staging import partition_folder
from retail_assets.resources.tabular import CELL_MARKS, TextTable, open_tables
from retail_assets.settings import Settings

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

# In quarantine: rows of the source without a day of it, and all bad ones of one that was refused.
UNPLACED, REFUSED = "__unknown__", "__refused__"
_FORCE = (
    "run again with --allow-emptying (in the UI: config allow_emptying: true on raw_online_retail)"
)
_PROBE_TIMEOUT_S = 10.0


class SourceError(PermanentError):
    """The source is readable but cannot be taken; the message says why and what to do."""


@dataclass(frozen=True)
class TypedFiles:
    """The tables of the source's files, all read, and what of the files is none of the table."""

    tables: Sequence[TextTable]
    matches: Sequence[HeaderMatch]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Refresh:
    """What a look at the source found: its manifest, and whether it had to be fetched, typed."""

    manifest: Manifest
    changed_days: tuple[str, ...]
    downloaded: bool
    typed: bool


def source_token(fingerprints: Iterable[Fingerprint]) -> str:
    """One short text for the versions of several files."""
    joined = "\n".join(fingerprint.token() for fingerprint in fingerprints)
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


class OnlineRetailSource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The workbook(s) behind ``locations``, paths or URLs; all together are one source."""

    locations: list[str]
    first_day: str
    last_day: str | None
    timeout_s: float
    max_bytes: int
    dates: Literal["auto", "iso", "mdy", "dmy"] = "auto"
    most_rows_lost: float = 0.1

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The source that the settings name."""
        end = settings.online_retail_end
        return cls(
            locations=list(settings.online_retail_locations),
            first_day=str(settings.online_retail_start),
            last_day=None if end is None else str(end),
            timeout_s=settings.http_timeout_s,
            max_bytes=settings.http_max_bytes,
            dates=settings.online_retail_dates,
            most_rows_lost=settings.most_rows_lost,
        )

    def probe(self) -> list[Fingerprint]:
        """What the origins say of their versions, without a body: ETag, date, mtime, size.

        Raises:
            DownloadError: one does not answer.
        """
        timeout_s = min(self.timeout_s, _PROBE_TIMEOUT_S)
        return [probe(location, timeout_s=timeout_s) for location in self.locations]

    def refresh(self, lake: LakeResource, *, allow_emptying: bool = False) -> Refresh:
        """Fetch what changed, type it, and replace the manifest.

        Raises:
            DownloadError: a file could not be had.
            UnreadableFileError, SchemaDriftError: a file is not the table it should be.
            AmbiguousDatesError: nothing says whether days or months come first.
            SourceError: the source holds no row with a readable day, or its ledger does not
                balance.
            SourceError, ShrunkError: it would take away more of the filled days, or of their rows,
                than the settings allow, and ``allow_emptying`` is not set.
        """
        with lake.lock(DOMAIN):
            previous = read_manifest(lake)
            files, downloaded = self._fetch(lake, previous)
            version = self._version(files)
            table = lake.table(ONLINE_RETAIL_DATA).snapshot()
            known = previous is not None and previous.version == version
            if previous is not None and known and lake.exists(previous.typed):
                manifest = replace(previous, files=files)
                typed = False
                if not allow_emptying:
                    self._refuse_to_shrink(manifest, table.ledgers)
                lake.write_state(MANIFEST, manifest.to_json())
            else:
                processed = None if allow_emptying else table.ledgers
                manifest = self._take(lake, files, version, processed)
                typed = True
            changed = changed_days(manifest.fingerprints, table.fingerprints)
            return Refresh(manifest, changed, downloaded, typed)

    def _version(self, files: tuple[SourceFile, ...]) -> str:
        span = [self.first_day, str(self._last_day())]
        parts = [TYPING_VERSION, self.dates, *span, *(f.sha256 for f in files)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def _last_day(self) -> date:
        # An open end reaches to today: a row dated later has no partition to go to yet.
        return date.fromisoformat(self.last_day) if self.last_day else datetime.now(UTC).date()

    def _fetch(
        self, lake: LakeResource, previous: Manifest | None
    ) -> tuple[tuple[SourceFile, ...], bool]:
        known = dict(enumerate(previous.files)) if previous else {}
        files, downloaded = [], False
        with lake.scratch() as inbox:
            for number, location in enumerate(self.locations):
                shown = _shown(location)
                before = known.get(number)
                if before and (before.location != shown or not lake.exists(before.raw)):
                    before = None
                name = _file_name(location)
                got = fetch(
                    location,
                    inbox / name,
                    previous=before.fingerprint if before else None,
                    timeout_s=self.timeout_s,
                    max_bytes=self.max_bytes,
                )
                if got.not_modified:
                    assert before is not None  # only a conditional request can say so
                    files.append(before)
                    continue
                assert got.sha256 is not None and got.path is not None
                raw = f"raw/{DOMAIN}/{got.sha256[:16]}/{name}"
                size = got.path.stat().st_size
                if not lake.exists(raw):
                    lake.put_file(raw, got.path)
                downloaded = True
                files.append(
                    SourceFile(
                        location=shown,
                        etag=got.etag,
                        last_modified=got.last_modified,
                        size=got.size,
                        sha256=got.sha256,
                        bytes=size,
                        raw=raw,
                    )
                )
        return tuple(files), downloaded

    def _take(
        self,
        lake: LakeResource,
        files: tuple[SourceFile, ...],
        version: str,
        processed: Mapping[str, Ledger] | None,
    ) -> Manifest:
        """Type the files and make them the source; where that fails, that stays what it was.

        ``processed`` is held against them so that they do not empty it; None allows that.
        """
        import duckdb
        import pyarrow as pa

        typed = f"_stage/{DOMAIN}/{version}.parquet"
        with ExitStack() as stack, duckdb.connect() as connection:
            scratch = stack.enter_context(lake.scratch())
            partial = scratch / "typed.parquet"
            raw = [lake.local_file(file.raw) for file in files]
            typed_files = self._type(connection, raw, scratch / "unpacked", partial)
            manifest, unplaced = self._describe(connection, partial, typed_files, files, version)
            bad = _quarantined_with_a_day(connection, partial, manifest.tables)
            try:
                _require_a_day(lake, manifest)
                if processed is not None:
                    self._refuse_to_shrink(manifest, processed, _first_reason(bad))
            except PermanentError:
                _quarantine(lake, files, {REFUSED: pa.concat_tables([unplaced, bad])})
                raise
            _quarantine(lake, files, {UNPLACED: unplaced})
            lake.put_file(typed, partial)
        lake.write_state(MANIFEST, manifest.to_json())
        for old in lake.list_objects(f"_stage/{DOMAIN}/"):
            if old.name != typed:
                lake.delete(old.name)
        return manifest

    def _type(
        self,
        connection: "duckdb.DuckDBPyConnection",
        raw: Sequence[Path],
        scratch: Path,
        target: Path,
    ) -> TypedFiles:
        """Type the tables of the files into ``target``, each in the reading that all of it says.

        A table is read in the usual order of dates, which its values prove right or wrong: where
        they do not, all is read again.
        """
        import duckdb

        order: Order | None = None if self.dates == "auto" else self.dates
        readings: list[Reading] = []
        while True:
            with ExitStack() as stack:
                opened = [
                    stack.enter_context(open_tables(file, scratch, is_header=is_header))
                    for file in raw
                ]
                tables = [table for file in opened for table in file.tables]
                assumed = readings or [Reading(order or Reading.order)] * len(tables)
                # Of each file, which may have a name that another location's has as well.
                columns: dict[tuple[int, str], Moments] = {}
                places = [
                    (place, table.file)
                    for place, file in enumerate(opened)
                    for table in file.tables
                ]
                reads = [
                    ReadTable(
                        table,
                        match_header(table.header, table.label),
                        reading,
                        columns.setdefault(place, Moments(reading.order)),
                        CELL_MARKS,
                    )
                    for place, table, reading in zip(places, tables, assumed, strict=True)
                ]
                try:
                    # Read once or twice, then replaced: quick to write rather than small.
                    type_rows(connection, reads).write_parquet(str(target), compression="snappy")
                except duckdb.Error:
                    for table in tables:  # what broke while DuckDB pulled, in its own words
                        if table.failure is not None:
                            raise table.failure from None
                    raise
            readings = [table.settle(order) for table in reads]
            if readings == assumed:
                skipped = tuple(note for file in opened for note in file.skipped)
                return TypedFiles(tables, [read.match for read in reads], skipped)

    def _describe(
        self,
        connection: "duckdb.DuckDBPyConnection",
        typed: Path,
        found: TypedFiles,
        files: tuple[SourceFile, ...],
        version: str,
    ) -> "tuple[Manifest, pa.Table]":
        """The manifest of the typed rows, and the rows that no partition can take."""
        import pyarrow as pa

        tables = found.tables
        labels = [table.label for table in tables]
        read = sum(table.rows for table in tables)
        if read == 0:
            raise SourceError(
                f"{', '.join(labels)}: a header and no rows. Nothing was changed. Fetch it again,"
                " or point RETAIL_ONLINE_RETAIL_SOURCE at the file that holds the data."
            )
        relation = f"read_parquet('{typed}')"
        first, last = date.fromisoformat(self.first_day), self._last_day()
        outside = days_outside(connection, relation, first, last, labels).to_arrow_table()
        unplaced = outside.cast(QUARANTINE.arrow_schema)
        rejected = [
            (table.label, row.row, row.reason, row.text)
            for table in tables
            for row in table.rejected
        ]
        if rejected:  # Arrow imports pandas to make columns of Python's values
            unplaced = pa.concat_tables([unplaced, quarantine_table(rejected)])
        manifest = Manifest(
            version=version,
            files=files,
            tables=tuple(labels),
            skipped=found.skipped,
            extra_columns=tuple(sorted({name for match in found.matches for name in match.extra})),
            read=read,
            unplaced=unplaced.num_rows,
            days=day_ledgers(connection, relation, first, last),
            first_reason=_first_reason(unplaced),
        )
        _check_balance(manifest)
        return manifest, unplaced

    def _refuse_to_shrink(
        self,
        manifest: Manifest,
        processed: Mapping[str, Ledger],
        first_reason: str | None = None,
    ) -> None:
        """``first_reason`` is that of the quarantined rows with a day."""
        with_a_day = sum(ledger.quarantined for ledger in manifest.days.values())
        quarantined = manifest.quarantined + Quarantined(with_a_day, first=first_reason)
        had = {
            day: ledger.written
            for day, ledger in processed.items()
            if ledger.written
            and day >= self.first_day
            and (self.last_day is None or day <= self.last_day)
        }
        has = {day: ledger.written for day, ledger in manifest.days.items() if ledger.written}
        emptied = sorted(had.keys() - has.keys())
        if len(emptied) > self.most_rows_lost * len(had):
            raise SourceError(
                f"the source would empty {len(emptied)} of {len(had)} filled days"
                f" ({emptied[0]}...{emptied[-1]}), more than {self.most_rows_lost:.0%}"
                f" (RETAIL_MOST_ROWS_LOST); {quarantined}. Nothing was changed. If that is meant,"
                f" {_FORCE}; if not, the origin is truncated, broken or another file."
            )
        refuse_to_shrink(
            ONLINE_RETAIL_DATA.table,
            sum(had.values()),
            sum(has.values()),
            quarantined,
            most_lost=self.most_rows_lost,
            force=_FORCE,
        )


def _require_a_day(lake: LakeResource, manifest: Manifest) -> None:
    if not manifest.days:
        place = f"{QUARANTINE.location}/{partition_folder(QUARANTINE, REFUSED)}"
        raise SourceError(
            f"the source holds no row with a readable day: {manifest.first_reason}. Its"
            f" {manifest.unplaced:,} rows are in {lake.uri(place)}; nothing else was changed. Mend"
            " them at their origin, or point RETAIL_ONLINE_RETAIL_SOURCE at another file."
        )


def _first_reason(rows: "pa.Table") -> str | None:
    """Of QUARANTINE's rows, without personal data."""
    for bad in rows.slice(0, 1).to_pylist():
        reason = public_reason(bad["reason"], ONLINE_RETAIL_DATA.personal)
        return f"{bad['source']}, row {bad['row'] or 'unknown'}: {reason}"
    return None


def _quarantined_with_a_day(
    connection: "duckdb.DuckDBPyConnection", typed: Path, labels: Sequence[str]
) -> "pa.Table":
    relation = quarantined_rows(
        connection, f"read_parquet('{typed}')", "invoice_date is not null", labels
    )
    names = list(QUARANTINE.column_names)
    return relation.to_arrow_table().select(names).cast(QUARANTINE.arrow_schema)


def _quarantine(
    lake: LakeResource, files: Sequence[SourceFile], rows: "Mapping[str, pa.Table]"
) -> None:
    """Replace what of a source has no day of it; of a source that was taken, none is refused."""
    # Of no run: a command looks before it starts one.
    with lake.staging("", f"{DOMAIN}/raw_online_retail") as stage:
        found = [(key, table) for key, table in rows.items() if table.num_rows]
        stage.write_partitions(QUARANTINE, found)
        stage.publish(QUARANTINE, {*rows, REFUSED}, told={"source": hashes_of(files)})


def _check_balance(manifest: Manifest) -> None:
    placed = sum(ledger.read for ledger in manifest.days.values())
    if manifest.read != placed + manifest.unplaced:
        raise SourceError(
            f"the ledger does not balance: read {manifest.read} rows, of which {placed} have a"
            f" day and {manifest.unplaced} do not. Nothing was changed. This is a defect of"
            " Retail Assets: report it with the file."
        )


def _shown(location: str) -> str:
    """A location as the manifest keeps it: without credentials, a path made absolute."""
    if is_url(location):
        return redact(location)
    path = location.removeprefix("file://") if location.startswith("file://") else location
    return str(Path(path).expanduser().absolute())


def _file_name(location: str) -> str:
    path = unquote(urlsplit(location).path) if is_url(location) else location
    return PurePosixPath(Path(path).name or "source").name

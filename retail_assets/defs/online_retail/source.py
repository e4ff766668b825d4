"""The source of online retail: what it holds now, typed once, and which days that changes.

Here: fetching, typing and the manifest that says what was found. Not here: what becomes of the
days (assets.py), how a row is typed (transforms.py), HTTP (resources/download.py).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import unquote, urlsplit

import dagster as dg

from retail_assets.defs.online_retail.contract import DOMAIN, ONLINE_RETAIL_DATA, QUARANTINE
from retail_assets.defs.online_retail.transforms import (
    TYPING_VERSION,
    DayLedger,
    HeaderMatch,
    Reading,
    ReadTable,
    day_ledgers,
    days_outside,
    is_header,
    match_header,
    quarantine_table,
    quarantined_rows,
    type_rows,
)
from retail_assets.errors import PermanentError
from retail_assets.losses import SKIPPED, Quarantined, public_reason, refuse_to_shrink
from retail_assets.moments import Moments, Order
from retail_assets.resources.download import Fingerprint, fetch, is_url, probe, redact
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.tabular import CELL_MARKS, TextTable, open_tables
from retail_assets.settings import Settings

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

# In quarantine: rows of the source without a day of it, and all bad ones of one that was refused.
UNPLACED, REFUSED = "__unknown__", "__refused__"
MANIFEST = f"{DOMAIN}/source"
PROCESSED = f"{DOMAIN}/processed"
_FORCE = (
    "run again with --allow-emptying (in the UI: config allow_emptying: true on raw_online_retail)"
)
_PROBE_TIMEOUT_S = 10.0


class SourceError(PermanentError):
    """The source is readable but cannot be taken; the message says why and what to do."""


@dataclass(frozen=True)
class SourceFile:
    """One fetched file: what its origin said of it, and where its bytes lie in the raw zone."""

    location: str
    etag: str | None
    last_modified: str | None
    size: int | None
    sha256: str
    bytes: int
    raw: str

    @property
    def fingerprint(self) -> Fingerprint:
        """What a conditional request asks against."""
        return Fingerprint(self.location, self.etag, self.last_modified, self.size)


@dataclass(frozen=True)
class Manifest:
    """What the source holds: its files, the ledger of every day, and what fits no day."""

    version: str
    files: tuple[SourceFile, ...]
    tables: tuple[str, ...]
    extra_columns: tuple[str, ...]
    read: int
    unplaced: int
    days: Mapping[str, DayLedger]
    first_reason: str | None = None
    skipped: tuple[str, ...] = ()

    @property
    def quarantined(self) -> Quarantined:
        """The rows that no day has, and the first reason."""
        return Quarantined(self.unplaced, first=self.first_reason)

    @property
    def typed(self) -> str:
        """The typed rows, relative to the lake's root."""
        return f"_stage/{DOMAIN}/{self.version}.parquet"

    @property
    def span(self) -> tuple[str, str]:
        """First and last day that holds a row."""
        return min(self.days), max(self.days)

    def is_of(self, origins: Sequence[Fingerprint]) -> bool:
        """Whether the origins still have the versions that these files are."""
        return len(origins) == len(self.files) and all(
            origin.same_version(file.fingerprint)
            for origin, file in zip(origins, self.files, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """As ``from_json`` reads it."""
        return asdict(self) | {
            "days": {
                day: [d.fingerprint, d.read, d.duplicates, d.quarantined]
                for day, d in self.days.items()
            }
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "Manifest":
        """The manifest that ``to_json`` wrote."""
        return cls(
            version=state["version"],
            files=tuple(SourceFile(**file) for file in state["files"]),
            tables=tuple(state["tables"]),
            extra_columns=tuple(state["extra_columns"]),
            read=state["read"],
            unplaced=state["unplaced"],
            days={day: DayLedger(*rest) for day, rest in state["days"].items()},
            first_reason=state.get("first_reason"),
            skipped=tuple(state.get("skipped", ())),
        )


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


def read_manifest(lake: LakeResource) -> Manifest | None:
    """The manifest of the last look at the source, or None before the first."""
    state = lake.read_state(MANIFEST)
    return None if state is None else Manifest.from_json(state)


def read_processed(lake: LakeResource) -> dict[str, DayLedger]:
    """Ledger of each day as of its last materialization in the processed zone."""
    state = lake.read_state(PROCESSED) or {}
    return {day: DayLedger(*rest) for day, rest in state.items()}


def record_processed(lake: LakeResource, days: Mapping[str, DayLedger]) -> None:
    """Merge the ledgers of ``days`` into the record; a day without rows stays, as an empty one."""
    with lake.lock(PROCESSED):
        state = lake.read_state(PROCESSED) or {}
        state |= {d: [x.fingerprint, x.read, x.duplicates, x.quarantined] for d, x in days.items()}
        lake.write_state(PROCESSED, state)


EMPTY_DAY = DayLedger("", 0, 0, 0)


def changed_days(wanted: Mapping[str, DayLedger], current: Mapping[str, str]) -> tuple[str, ...]:
    """Days whose fingerprint differs between the source and ``current`` (day -> fingerprint).

    A day of the source's span without rows counts as changed until it is recorded as empty; a
    recorded day that the source no longer has counts as changed until it is.
    """
    if not wanted:
        return ()
    first, last = date.fromisoformat(min(wanted)), date.fromisoformat(max(wanted))
    span = {date.fromordinal(n).isoformat() for n in range(first.toordinal(), last.toordinal() + 1)}
    return tuple(
        day
        for day in sorted(span | set(current))
        if wanted.get(day, EMPTY_DAY).fingerprint != current.get(day)
    )


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
            processed = read_processed(lake)
            known = previous is not None and previous.version == version
            if previous is not None and known and lake.exists(previous.typed):
                manifest = replace(previous, files=files)
                typed = False
                if not allow_emptying:
                    self._refuse_to_shrink(manifest, processed)
                lake.write_state(MANIFEST, manifest.to_json())
            else:
                manifest = self._take(lake, files, version, None if allow_emptying else processed)
                typed = True
            changed = changed_days(
                manifest.days, {day: ledger.fingerprint for day, ledger in processed.items()}
            )
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
        processed: Mapping[str, DayLedger] | None,
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
                _quarantine(lake, version, {REFUSED: pa.concat_tables([unplaced, bad])})
                raise
            _quarantine(lake, version, {UNPLACED: unplaced})
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
        processed: Mapping[str, DayLedger],
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
        column = ONLINE_RETAIL_DATA.partition_by
        place = f"quarantine/{QUARANTINE.folder}/{column}={REFUSED}"
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


def _quarantine(lake: LakeResource, version: str, rows: "Mapping[str, pa.Table]") -> None:
    """Replace what of a source has no day of it; of a source that was taken, none is refused."""
    column = ONLINE_RETAIL_DATA.partition_by
    assert column is not None
    with lake.staging(version) as stage:
        found = [(key, table) for key, table in rows.items() if table.num_rows]
        stage.write_partitions("quarantine", QUARANTINE, column, found)
        stage.publish("quarantine", QUARANTINE, column, sorted({*rows, REFUSED}))


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


def manifest_metadata(manifest: Manifest) -> dict[str, Any]:
    """What a materialization shows of the source in the UI."""
    first, last = manifest.span
    skipped = {SKIPPED: "; ".join(manifest.skipped)} if manifest.skipped else {}
    return (
        {
            "dagster/row_count": manifest.read,
            "read": manifest.read,
            "duplicates": sum(d.duplicates for d in manifest.days.values()),
            "quarantined_with_a_day": sum(d.quarantined for d in manifest.days.values()),
            "first_day": first,
            "last_day": last,
            "files": dg.MetadataValue.json([asdict(file) for file in manifest.files]),
            "tables": ", ".join(manifest.tables),
            "extra_columns": ", ".join(manifest.extra_columns) or "none",
            "version": manifest.version,
        }
        | skipped
        | manifest.quarantined.metadata
    )

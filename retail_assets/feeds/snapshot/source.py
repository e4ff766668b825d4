"""A source that is the whole truth for its days: fetched where it is another, and typed once.

Here: fetching, typing, refusing. Not here: what was found (manifest.py), what becomes of the days
(assets.py), how a row is typed (RowTyping), HTTP (resources/http/).
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from retail_assets.errors import PermanentError
from retail_assets.feeds.reading import ReadFiles
from retail_assets.feeds.snapshot import SnapshotFeed
from retail_assets.feeds.snapshot.manifest import (
    Manifest,
    SourceFile,
    changed_days,
    read_manifest,
    write_manifest,
)
from retail_assets.feeds.snapshot.rows import TypedRows
from retail_assets.losses import Quarantined, public_reason, refuse_to_shrink
from retail_assets.resources.http import Fingerprint, fetch, is_url, probe
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.staging import partition_folder
from retail_assets.settings import Settings, source_variables

if TYPE_CHECKING:
    import pyarrow as pa

# In quarantine: rows of the source without a day of it, and all bad ones of one that was refused.
UNPLACED, REFUSED = "__unknown__", "__refused__"
_PROBE_TIMEOUT_S = 10.0


class SourceError(PermanentError):
    """The source is readable but cannot be taken; the message says why and what to do."""


@dataclass(frozen=True)
class Refresh:
    """What a look at the source found: its manifest, and whether it had to be fetched, typed."""

    manifest: Manifest
    changed_days: tuple[str, ...]
    downloaded: bool
    typed: bool


class Source:
    """The file(s) behind a feed's locations, paths or URLs; all together are one source."""

    def __init__(self, feed: SnapshotFeed, settings: Settings) -> None:
        self._feed, self._settings = feed, settings
        self._place = feed.place(settings)
        self._variable = source_variables(feed.name)[0]

    def probe(self) -> list[Fingerprint]:
        """What the origins say of their versions, without a body: ETag, date, mtime, size.

        Raises:
            DownloadError: one does not answer.
        """
        timeout_s = min(self._settings.http_timeout_s, _PROBE_TIMEOUT_S)
        return [probe(location, timeout_s=timeout_s) for location in self._place.locations]

    def refresh(
        self, lake: LakeResource, *, run_id: str = "", allow_emptying: bool = False
    ) -> Refresh:
        """Fetch what changed, type it, and replace the manifest.

        Raises:
            DownloadError: a file could not be had.
            UnreadableFileError, SchemaDriftError: a file is not the table it should be.
            AmbiguousDatesError: nothing says whether days or months come first.
            SourceError: there is none, it holds no row with a readable day, or its ledger does not
                balance.
            SourceError, ShrunkError: it would take away more of the filled days, or of their rows,
                than the settings allow, and ``allow_emptying`` is not set.
        """
        if not self._place.locations:
            raise SourceError(f"{self._variable} is not set. Set it to a path or URL.")
        with lake.lock(self._feed.name):
            previous = read_manifest(lake, self._feed.name)
            files, downloaded = self._fetch(lake, previous)
            version = self._version(files)
            table = lake.table(self._feed.dataset).snapshot()
            known = previous is not None and previous.version == version
            processed = None if allow_emptying else table.ledgers
            if previous is not None and known and lake.exists(previous.typed):
                manifest = replace(previous, files=files)
                self._refuse_to_shrink(manifest, processed)
                write_manifest(lake, manifest)
            else:
                known = False
                manifest = self._take(lake, run_id, files, version, processed)
            changed = changed_days(manifest.fingerprints, table.fingerprints)
            return Refresh(manifest, changed, downloaded, not known)

    def _version(self, files: Sequence[SourceFile]) -> str:
        place = self._place
        span = [str(place.first_day), str(place.until)]
        typed_by = self._feed.row_typing().version
        parts = [typed_by, place.dates, *span, *(file.sha256 for file in files)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def _fetch(
        self, lake: LakeResource, previous: Manifest | None
    ) -> tuple[tuple[SourceFile, ...], bool]:
        known = dict(enumerate(previous.files)) if previous else {}
        files, downloaded = [], False
        with lake.scratch() as inbox:
            for number, location in enumerate(self._place.locations):
                before = known.get(number)
                if before and not lake.exists(before.raw):
                    before = None
                name = _file_name(location)
                got = fetch(
                    location,
                    inbox / name,
                    previous=before,
                    timeout_s=self._settings.http_timeout_s,
                    max_bytes=self._settings.http_max_bytes,
                )
                if got.path is None or got.sha256 is None:
                    assert before is not None  # only a conditional request can say so
                    files.append(before)
                    continue
                downloaded = True
                file = SourceFile(
                    **vars(got.fingerprint),
                    sha256=got.sha256,
                    bytes=got.path.stat().st_size,
                    raw=f"raw/{self._feed.name}/{got.sha256[:16]}/{name}",
                )
                files.append(file)
                if not lake.exists(file.raw):
                    lake.put_file(file.raw, got.path)
        return tuple(files), downloaded

    def _take(
        self,
        lake: LakeResource,
        run_id: str,
        files: Sequence[SourceFile],
        version: str,
        processed: Mapping[str, Ledger] | None,
    ) -> Manifest:
        """Type the files and make them the source; where that fails, that stays what it was.

        ``processed`` is held against them so that they do not empty it; None allows that.
        """
        import duckdb
        import pyarrow as pa

        with ExitStack() as stack, duckdb.connect() as connection:
            scratch = stack.enter_context(lake.scratch())
            typed = scratch / "typed.parquet"
            rows = TypedRows(connection, self._feed, f"read_parquet('{typed}')")
            read = rows.typing.type_files(
                connection,
                [lake.local_file(file.raw) for file in files],
                typed,
                scratch / "unpacked",
                self._place.dates,
            )
            manifest, unplaced = self._describe(rows, read, files, version)
            bad = rows.quarantined(f'"{self._feed.day}" is not null').to_arrow_table()
            bad = bad.select(unplaced.column_names).cast(unplaced.schema)
            try:
                self._require_a_day(lake, manifest)
                self._refuse_to_shrink(manifest, processed, self._first_reason(bad))
            except PermanentError:
                refused = pa.concat_tables([unplaced, bad])
                self._quarantine(lake, run_id, manifest, REFUSED, refused)
                raise
            self._quarantine(lake, run_id, manifest, UNPLACED, unplaced)
            lake.put_file(manifest.typed, typed)
        write_manifest(lake, manifest)
        for old in lake.list_objects(f"_stage/{self._feed.name}/"):
            if old.name != manifest.typed:
                lake.delete(old.name)
        return manifest

    def _describe(
        self, rows: TypedRows, found: ReadFiles, files: Sequence[SourceFile], version: str
    ) -> "tuple[Manifest, pa.Table]":
        """The manifest of the typed rows, and the rows that no partition can take."""
        import pyarrow as pa

        if found.rows == 0:
            raise SourceError(
                f"{', '.join(found.labels)}: a header and no rows. Nothing was changed. Fetch it"
                f" again, or point {self._variable} at the file that holds the data."
            )
        place = self._place
        unplaced = rows.outside(place.first_day, place.until)
        if found.rejected:  # Arrow imports pandas to make columns of Python's values
            unplaced = pa.concat_tables([unplaced, rows.rejected(found.rejected)])
        manifest = Manifest(
            domain=self._feed.name,
            version=version,
            files=files,
            tables=found.labels,
            skipped=found.skipped,
            extra_columns=found.extra,
            read=found.rows,
            unplaced=unplaced.num_rows,
            days=rows.ledgers(place.first_day, place.until),
            first_reason=self._first_reason(unplaced),
        )
        placed = sum(ledger.read for ledger in manifest.days.values())
        if manifest.read != placed + manifest.unplaced:
            raise SourceError(
                f"the ledger does not balance: read {manifest.read} rows, of which {placed} have a"
                f" day and {manifest.unplaced} do not. Nothing was changed. This is a defect of"
                " Retail Assets: report it with the file."
            )
        return manifest, unplaced

    def _require_a_day(self, lake: LakeResource, manifest: Manifest) -> None:
        if not manifest.days:
            quarantine = self._feed.quarantine
            place = f"{quarantine.location}/{partition_folder(quarantine, REFUSED)}"
            raise SourceError(
                f"the source holds no row with a readable day: {manifest.first_reason}. Its"
                f" {manifest.unplaced:,} rows are in {lake.uri(place)}; nothing else was changed."
                f" Mend them at their origin, or point {self._variable} at another file."
            )

    def _refuse_to_shrink(
        self,
        manifest: Manifest,
        processed: Mapping[str, Ledger] | None,
        first_reason: str | None = None,
    ) -> None:
        """``first_reason`` is that of the quarantined rows with a day."""
        if processed is None:
            return
        most_lost = self._settings.most_rows_lost
        force = (
            "run again with --allow-emptying (in the UI: config allow_emptying: true on"
            f" {self._feed.raw_key.path[-1]})"
        )
        with_a_day = sum(ledger.quarantined for ledger in manifest.days.values())
        quarantined = manifest.quarantined + Quarantined(with_a_day, first=first_reason)
        had = {
            day: ledger.written
            for day, ledger in processed.items()
            if ledger.written and self._place.has(day)
        }
        has = {day: ledger.written for day, ledger in manifest.days.items() if ledger.written}
        emptied = sorted(had.keys() - has.keys())
        if len(emptied) > most_lost * len(had):
            raise SourceError(
                f"the source would empty {len(emptied)} of {len(had)} filled days"
                f" ({emptied[0]}...{emptied[-1]}), more than {most_lost:.0%}"
                f" (RETAIL_MOST_ROWS_LOST); {quarantined}. Nothing was changed. If that is meant,"
                f" {force}; if not, the origin is truncated, broken or another file."
            )
        refuse_to_shrink(
            self._feed.dataset.table,
            sum(had.values()),
            sum(has.values()),
            quarantined,
            most_lost=most_lost,
            force=force,
        )

    def _first_reason(self, rows: "pa.Table") -> str | None:
        """Of the quarantine's rows, without personal data."""
        for bad in rows.slice(0, 1).to_pylist():
            reason = public_reason(bad["reason"], self._feed.dataset.personal)
            return f"{bad['source']}, row {bad['row'] or 'unknown'}: {reason}"
        return None

    def _quarantine(
        self, lake: LakeResource, run_id: str, manifest: Manifest, key: str, rows: "pa.Table"
    ) -> None:
        """Replace what of a source has no day of it; of one that was taken, none is refused."""
        with lake.staging(run_id, self._feed.raw_key.to_user_string()) as stage:
            stage.write_partitions(self._feed.quarantine, [(key, rows)] if rows.num_rows else [])
            told = {"source": manifest.hashes}
            stage.publish(self._feed.quarantine, {key, REFUSED}, told=told)


def _file_name(location: str) -> str:
    path = unquote(urlsplit(location).path) if is_url(location) else location
    return PurePosixPath(Path(path).name or "source").name

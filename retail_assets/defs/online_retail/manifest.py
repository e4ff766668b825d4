"""What the source of online retail holds: its files, and the ledger of every day.

Here: the manifest, its place in the lake, and which days differ from it. Not here: how it comes
about (source.py), what is in the lake's tables (their own files say that).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import dagster as dg

from retail_assets.defs.online_retail.contract import DOMAIN
from retail_assets.losses import SKIPPED, Quarantined
from retail_assets.resources.http import Fingerprint
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.ledger import Ledger

if TYPE_CHECKING:
    import duckdb

MANIFEST = f"{DOMAIN}/source"
EMPTY_DAY = Ledger("", 0)


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
    days: Mapping[str, Ledger]
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
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each day that holds a row."""
        return {day: ledger.fingerprint for day, ledger in self.days.items()}

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
        return asdict(self) | {"days": {day: list(ledger[:4]) for day, ledger in self.days.items()}}

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
            days={day: Ledger(*rest) for day, rest in state["days"].items()},
            first_reason=state.get("first_reason"),
            skipped=tuple(state.get("skipped", ())),
        )


def hashes_of(files: Iterable[SourceFile]) -> dict[str, str]:
    """SHA-256 of each file by its name in the lake, as the history of a table tells it."""
    return {file.raw: file.sha256 for file in files}


def read_manifest(lake: LakeResource) -> Manifest | None:
    """The manifest of the last look at the source, or None before the first."""
    state = lake.read_state(MANIFEST)
    return None if state is None else Manifest.from_json(state)


def changed_days(wanted: Mapping[str, str], current: Mapping[str, str]) -> tuple[str, ...]:
    """Days whose fingerprint differs between what the source holds, ``wanted``, and ``current``.

    A day of the source's span without rows counts as changed until it is recorded as empty; a
    recorded day that the source no longer has counts as changed until it is.
    """
    if not wanted:
        return ()
    first, last = date.fromisoformat(min(wanted)), date.fromisoformat(max(wanted))
    span = {date.fromordinal(n).isoformat() for n in range(first.toordinal(), last.toordinal() + 1)}
    return tuple(
        day for day in sorted(span | set(current)) if wanted.get(day, "") != current.get(day)
    )


_LEDGER = """
select
    invoice_date,
    concat_ws(
        '-',
        count(transaction_id),
        sum(('0x' || transaction_id[:15])::bigint::hugeint),
        sum(('0x' || transaction_id[16:30])::bigint::hugeint),
        sum(copies),
        coalesce(sum(hash(text) // 4) filter (where reason is not null), 0)
    ) as fingerprint,
    sum(copies)::bigint as read,
    (sum(copies) - count(*))::bigint as duplicates,
    (count(*) filter (where reason is not null))::bigint as quarantined
from {typed}
where {where}
group by all
order by all
"""


def day_ledgers(
    connection: "duckdb.DuckDBPyConnection", typed: str, first: date, last: date
) -> dict[str, Ledger]:
    """The ledger of each day from ``first`` to ``last``, by ISO date.

    ``typed`` names a table of ``type_rows``. The fingerprint does not depend on the order of the
    rows: it sums the halves of their identities, which are SHA-256 digits.
    """
    where = f"invoice_date between date '{first}' and date '{last}'"
    rows = connection.sql(_LEDGER.format(typed=typed, where=where)).fetchall()
    return {str(day): Ledger(*rest) for day, *rest in rows}


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

"""What a source holds: its files, and the ledger of every day.

Here: the manifest, its place in the lake, and which days differ from it. Not here: how it comes
about (source.py), what is in the lake's tables (their own files say that).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from retail_assets.losses import SKIPPED, Quarantined
from retail_assets.resources.http import Fingerprint
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.ledger import Ledger

EMPTY_DAY = Ledger("", 0)


@dataclass(frozen=True, kw_only=True)
class SourceFile(Fingerprint):
    """One fetched file: what its origin said of it, and where its bytes lie in the raw zone."""

    sha256: str
    bytes: int
    raw: str


@dataclass(frozen=True)
class Manifest:
    """What the source holds: its files, the ledger of every day, and what fits no day."""

    domain: str
    version: str
    files: Sequence[SourceFile]
    tables: Sequence[str]
    extra_columns: Sequence[str]
    read: int
    unplaced: int
    days: Mapping[str, Ledger]
    first_reason: str | None = None
    skipped: Sequence[str] = ()

    @property
    def quarantined(self) -> Quarantined:
        """The rows that no day has, and the first reason."""
        return Quarantined(self.unplaced, first=self.first_reason)

    @property
    def typed(self) -> str:
        """The typed rows, relative to the lake's root."""
        return f"_stage/{self.domain}/{self.version}.rows.parquet"

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each day that holds a row."""
        return {day: ledger.fingerprint for day, ledger in self.days.items()}

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file by its name in the lake, as the history of a table tells it."""
        return {file.raw: file.sha256 for file in self.files}

    def is_of(self, origins: Sequence[Fingerprint]) -> bool:
        """Whether the origins still have the versions that these files are."""
        return len(origins) == len(self.files) and all(
            origin.same_version(file) for origin, file in zip(origins, self.files, strict=True)
        )

    @property
    def metadata(self) -> dict[str, Any]:
        """What a materialization shows of the source in the UI."""
        told: dict[str, Any] = {
            "dagster/row_count": self.read,
            "read": self.read,
            "duplicates": sum(day.duplicates for day in self.days.values()),
            "quarantined_with_a_day": sum(day.quarantined for day in self.days.values()),
            "first_day": min(self.days),
            "last_day": max(self.days),
            "files": [asdict(file) for file in self.files],
            "tables": ", ".join(self.tables),
            "extra_columns": ", ".join(self.extra_columns) or "none",
            "version": self.version,
        }
        told |= {SKIPPED: "; ".join(self.skipped)} if self.skipped else {}
        return told | self.quarantined.metadata


def manifest_state(domain: str) -> str:
    """The name of the lake's state that has the manifest."""
    return f"{domain}/source"


def write_manifest(lake: LakeResource, manifest: Manifest) -> None:
    """Make it what the next look at the source, and the days' assets, go by."""
    lake.write_state(manifest_state(manifest.domain), asdict(manifest))


def read_manifest(lake: LakeResource, domain: str) -> Manifest | None:
    """The manifest of the last look at the source, or None before the first."""
    state = lake.read_state(manifest_state(domain))
    if state is None:
        return None
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in state.items()}
    given["files"] = tuple(SourceFile(**file) for file in state["files"])
    given["days"] = {day: Ledger(*ledger) for day, ledger in state["days"].items()}
    return Manifest(**{**given, "domain": domain})


def changed_days(wanted: Mapping[str, str], current: Mapping[str, str]) -> tuple[str, ...]:
    """Days whose fingerprint differs between what the source holds, ``wanted``, and ``current``.

    A day of the source's span without rows counts as changed until it is recorded as empty; a
    recorded day that the source no longer has counts as changed until it is.
    """
    if not wanted:
        return ()
    first, last = (date.fromisoformat(day).toordinal() for day in (min(wanted), max(wanted)))
    span = {date.fromordinal(n).isoformat() for n in range(first, last + 1)}
    return tuple(
        day for day in sorted(span | set(current)) if wanted.get(day, "") != current.get(day)
    )

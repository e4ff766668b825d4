"""What is lost is refused, or told: tables that shrink, rows and values that cannot be read.

Here: the rule on a table that would lose rows, and what a materialization and a check that warns
say of what was quarantined; alike for every domain. Not here: why a row is bad (each domain's
transforms.py), where it is kept (the lake's quarantine).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import dagster as dg

from retail_assets.errors import PermanentError

QUARANTINE_CHECK = "nothing_was_quarantined"
# Metadata of a materialization, which the last lines of a run are made of.
QUARANTINED_ROWS, LEFT_OUT_VALUES, FIRST_REASON = "quarantined", "left_out_values", "first_reason"
QUARANTINED_UNIT = "quarantined_unit"
ROWS = "rows"
# What is shown in place of a personal value.
MASK = "***"
# What of a file is no part of the table, such as a sheet of notes: left out, and told.
SKIPPED = "skipped"


class ShrunkError(PermanentError):
    """A table would lose more of its rows than the settings allow; nothing was changed."""


class EmptyingConfig(dg.Config):
    """Whether a materialization may take away more of a table's rows than the settings allow."""

    allow_emptying: bool = False


@dataclass(frozen=True)
class Quarantined:
    """What of a source could not be taken.

    Attributes:
        rows: rows that are in quarantine and not in the table.
        values: side attributes that could not be read: null in a row that stands.
        first: the first reason, without personal data; None where there is none.
        unit: what a row of the source is called.
    """

    rows: int = 0
    values: int = 0
    first: str | None = None
    unit: str = ROWS

    def __bool__(self) -> bool:
        return bool(self.rows or self.values)

    def __str__(self) -> str:
        return self.describe(" quarantined") if self else "none quarantined"

    def describe(self, verb: str = "") -> str:
        """How many rows, and values, and the first reason; empty where nothing was."""
        parts = [f"{self.rows:,} {self.unit}{verb}"] if self.rows else []
        parts += [f"{self.values:,} values left out"] if self.values else []
        return ", ".join(parts) + (f"; {self.first}" if self.first else "")

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.rows + other.rows, self.values + other.values, self.first or other.first, self.unit
        )

    @property
    def metadata(self) -> dict[str, Any]:
        """As a materialization tells it, in the UI and in the last lines of a run."""
        told: dict[str, Any] = {QUARANTINED_ROWS: self.rows, LEFT_OUT_VALUES: self.values}
        told |= {QUARANTINED_UNIT: self.unit} if self.unit != ROWS else {}
        return told | ({FIRST_REASON: self.first} if self.first else {})

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, dg.MetadataValue[Any]]) -> Self:
        """What a materialization tells in its ``metadata``; nothing where it tells nothing."""
        told = {name: value.value for name, value in metadata.items()}
        return cls(
            told.get(QUARANTINED_ROWS) or 0,
            told.get(LEFT_OUT_VALUES) or 0,
            told.get(FIRST_REASON),
            told.get(QUARANTINED_UNIT, ROWS),
        )


def public_reason(reason: str, personal: Iterable[str]) -> str:
    """A reason without the value that was found, where that is of a ``personal`` column.

    Reasons begin with the column's name: ``birthday: expected a day, found '...'``.
    """
    column, colon, _ = reason.partition(":")
    return reason.partition(", found")[0] if colon and column in set(personal) else reason


def mask_fields(
    values: Sequence[Any], names: Sequence[str], personal: Collection[str]
) -> list[Any] | None:
    """Values of the fields ``names`` without personal ones; None where they are not of these."""
    if len(values) != len(names):
        return None
    fields = zip(names, values, strict=True)
    return [MASK if name in personal and value else value for name, value in fields]


def refuse_to_shrink(
    table: str,
    had: int,
    has: int,
    quarantined: Quarantined,
    *,
    most_lost: float,
    force: str,
) -> None:
    """Refuse what would leave ``has`` rows of the ``had`` that a table, or a part of one, has.

    ``most_lost`` is the share that may be lost; of 1, nothing is refused. ``force`` says how to
    have it nevertheless. What is delivered for the first time is refused where all of it is
    quarantined.

    Raises:
        ShrunkError: with both numbers, the first reason, and what to do.
    """
    if most_lost == 1:
        return
    is_first = not had and not has and quarantined.rows
    if not is_first and had - has <= had * most_lost:
        return
    found = f" ({quarantined})" if quarantined else ""
    loss = (
        f"{table}: all that was delivered would be quarantined{found}"
        if is_first
        else f"{table} has {had:,} rows and would have {has:,}{found}, a loss of more than"
        f" {most_lost:.0%} (RETAIL_MOST_ROWS_LOST)"
    )
    raise ShrunkError(
        f"{loss}. Nothing was changed. If that is meant, {force}; if not, deliver it again as it"
        " should be."
    )


def quarantine_check_spec(asset: dg.AssetKey) -> dg.AssetCheckSpec:
    """The check that warns where something was quarantined; it blocks nothing."""
    return dg.AssetCheckSpec(
        QUARANTINE_CHECK,
        asset=asset,
        description="Every row and value that this run read could be taken. See: retail-assets"
        " quarantine.",
    )


def check_result(
    asset: dg.AssetKey, name: str, faults: str, *, warns: bool = False, **told: Any
) -> dg.AssetCheckResult:
    """The result of a check, which has passed where there are no ``faults``."""
    severity = dg.AssetCheckSeverity.WARN if warns else dg.AssetCheckSeverity.ERROR
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=name,
        passed=not faults,
        severity=severity,
        description=faults or None,
        metadata=told,
    )


def check_quarantine(asset: dg.AssetKey, found: Quarantined) -> dg.AssetCheckResult:
    """The result of ``quarantine_check_spec``: a warning with how many and the first reason."""
    told = f"{found}. See: retail-assets quarantine" if found else ""
    return check_result(asset, QUARANTINE_CHECK, told, warns=True, **found.metadata)

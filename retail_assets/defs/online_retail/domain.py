"""Online retail as commands, definitions and marts see it.

Here: what a whole run of it takes, and its answers to status, doctor and rebuild. Not here: what
its assets do (assets.py), when they run by themselves (automation.py).
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING

from retail_assets.days import changed_window
from retail_assets.defs.online_retail.contract import (
    DOMAIN,
    ONLINE_RETAIL_DATA,
    QUARANTINE,
    SOURCE_COLUMNS,
)
from retail_assets.domain import (
    MARTS_STAGE,
    DefsModule,
    Domain,
    Execution,
    MartsPlan,
    PlanError,
    QuarantineTable,
)
from retail_assets.errors import PermanentError, TransientError
from retail_assets.settings import SAMPLE_SOURCE, Settings

if TYPE_CHECKING:
    import dagster as dg

    from retail_assets.resources.cloud_checks import Question
    from retail_assets.resources.lake import LakeResource
    from retail_assets.resources.warehouse import WarehouseResource

WINDOW = "online_retail_window"


class OnlineRetail(Domain):
    """UCI's Online Retail: one source, daily partitions, one landed table."""

    name = DOMAIN
    datasets = (ONLINE_RETAIL_DATA,)

    def modules(self) -> Sequence[DefsModule]:
        """Assets and automation."""
        from retail_assets.defs.online_retail import assets, automation

        return assets, automation

    def resources(self, settings: Settings) -> dict[str, object]:
        """The source."""
        from retail_assets.defs.online_retail.source import OnlineRetailSource

        return {"online_retail_source": OnlineRetailSource.of(settings)}

    def prepare(self, settings: Settings) -> None:
        """Write the sample workbook where the settings want it and it is not there."""
        if SAMPLE_SOURCE in settings.online_retail_source and not settings.sample_path.exists():
            from retail_assets.defs.online_retail.sample import write_sample

            write_sample(settings.sample_path)

    def check_partitions(self, settings: Settings, first: str, last: str) -> None:
        """Refuse days outside the configured span."""
        start, end = settings.online_retail_start, settings.online_retail_end or date.today()
        if first < str(start) or last > str(end):
            raise PlanError(
                f"--partitions is {first}...{last}; expected days inside {start}...{end}"
                " (RETAIL_ONLINE_RETAIL_START, RETAIL_ONLINE_RETAIL_END)"
            )

    def plan(
        self,
        settings: Settings,
        partitions: tuple[str, str] | None,
        *,
        allow_emptying: bool,
        instance: "Callable[[], dg.DagsterInstance]",
    ) -> list[Execution]:
        """One job over the days asked for, or all that the source has.

        Where the source cannot be had, the job's first step alone: it says why, on record, and
        tries nothing again.
        """
        span = partitions
        config: dict[str, bool | str] = {"allow_emptying": allow_emptying}
        if span is None:
            try:
                span = source_span(settings, allow_emptying=allow_emptying)
            except (PermanentError, TransientError) as error:
                config["refused"] = str(error)
        from retail_assets.defs.online_retail.assets import RAW

        ops = {RAW.to_python_identifier(): {"config": config}}
        return [Execution(DOMAIN, span, {"ops": ops}, None if span else [RAW])]

    def plan_marts(self, warehouse: "WarehouseResource") -> MartsPlan:
        """The days that differ."""
        landed = warehouse.loaded_versions(ONLINE_RETAIL_DATA)
        built = warehouse.loaded_versions(ONLINE_RETAIL_DATA, MARTS_STAGE)
        return MartsPlan({WINDOW: changed_window(landed, built)}, {ONLINE_RETAIL_DATA: landed})

    def count_rows(self, lake: "LakeResource") -> dict[str, int]:
        """Rows of the source, and of the processed days."""
        from retail_assets.defs.online_retail.manifest import read_manifest

        rows: dict[str, int] = {}
        manifest = read_manifest(lake)
        if manifest is not None:
            rows[f"{DOMAIN}.raw_online_retail"] = manifest.read
        table = lake.table(ONLINE_RETAIL_DATA).snapshot()
        if table.files:
            rows[f"{DOMAIN}.processed_online_retail_data"] = table.rows
        return rows

    def quarantines(self) -> Sequence[QuarantineTable]:
        """That of its one table."""
        places = ("source", "row")
        return [QuarantineTable(ONLINE_RETAIL_DATA.table, QUARANTINE, places, mask_personal)]

    def questions(self, settings: Settings) -> "Iterator[Question]":
        """Whether the source answers."""
        from retail_assets.resources.cloud_checks import Question

        yield Question(
            "online_retail source",
            lambda: _probe_source(settings),
            "set RETAIL_ONLINE_RETAIL_SOURCE to a path or URL that answers",
        )

    def shown_settings(self, settings: Settings) -> Mapping[str, str]:
        """The sources, each resolved and without credentials."""
        from retail_assets.resources.http import redact

        shown = ", ".join(redact(location) for location in settings.online_retail_locations)
        return {"online_retail_source": shown}


def mask_personal(reason: str, text: str) -> tuple[str, str]:
    """Reason and text of a quarantined row without the customer.

    A text that is not of all columns, such as a row of too many fields, is masked whole.
    """
    from retail_assets.losses import MASK, public_reason

    personal = ONLINE_RETAIL_DATA.personal
    shown = public_reason(reason, personal)
    try:
        fields = json.loads(text)
    except ValueError:
        return shown, MASK
    if not isinstance(fields, list) or len(fields) != len(SOURCE_COLUMNS):
        return shown, MASK
    masked = [
        MASK if name in personal and field else field
        for name, field in zip(SOURCE_COLUMNS, fields, strict=True)
    ]
    return shown, json.dumps(masked, ensure_ascii=False)


def source_span(settings: Settings, *, allow_emptying: bool) -> tuple[str, str]:
    """First and last day to run: the source's, and those that it no longer has.

    Raises:
        PermanentError, TransientError: the source cannot be had.
    """
    from retail_assets.defs.online_retail.source import OnlineRetailSource
    from retail_assets.resources.lake import open_lake

    lake, source = open_lake(settings), OnlineRetailSource.of(settings)
    found = source.refresh(lake, allow_emptying=allow_emptying)
    days = {*found.manifest.span, *found.changed_days}
    first, last = str(settings.online_retail_start), settings.online_retail_end
    inside = [day for day in days if day >= first and (last is None or day <= str(last))]
    return min(inside), max(inside)


def _probe_source(settings: Settings) -> str:
    from retail_assets.resources.http import probe, redact

    shown = []
    for location in settings.online_retail_locations:
        if location == str(settings.sample_path) and not os.path.exists(location):
            shown.append(f"{SAMPLE_SOURCE} (made by the first run)")
            continue
        answer = probe(location, timeout_s=min(settings.http_timeout_s, 10.0))
        size = "size unknown" if answer.size is None else f"{answer.size:,} bytes"
        shown.append(f"{redact(location)}, {size}")
    return "; ".join(shown)

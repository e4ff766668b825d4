"""Whether tables are as new as they should be, by their data and not by when a run was last.

Here: the check that marts are of what is landed, the one that landed data are recent, and the
sensor that looks while nothing runs. Not here: Dagster's freshness policies, which are by the last
run (definitions.py), what a load or a build does.

Dagster shows nothing as stale behind an asset of 100 partitions or more: without these, green marts
could stand on facts that were landed since.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import dagster as dg

from retail_assets.dataset import Dataset
from retail_assets.domain import Domain
from retail_assets.feeds.automation import WAREHOUSE_WAIT_S
from retail_assets.feeds.landing import landed_and_built, landed_key, version_of
from retail_assets.resources.warehouse import WarehouseBusyError, WarehouseResource
from retail_assets.settings import Settings

BUILT_CHECK = "is_of_what_is_landed"
RECENT_CHECK = "data_is_recent"
# For so long the sensor lets marts follow what is landed before it warns.
GRACE = timedelta(minutes=10)


class Found(NamedTuple):
    """What a check found; all of them warn, and say why where they do not pass."""

    asset_key: dg.AssetKey
    check_name: str
    passed: bool
    description: str | None = None
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN


@dataclass(frozen=True)
class Watch:
    """What is looked at of a domain.

    ``built_of`` are the landed tables behind each table of the marts; ``within`` is the age that
    landed data may have, by the settings.
    """

    domain: Domain
    built_of: Mapping[dg.AssetKey, Collection[Dataset]]
    within: timedelta | None

    @property
    def dated(self) -> Sequence[Dataset]:
        """The landed tables whose partitions say how old their data are."""
        return [x for x in self.domain.datasets if x.partition_by and self.within]

    @property
    def specs(self) -> list[dg.AssetCheckSpec]:
        """Its checks; they warn and block nothing."""
        hours = self.within / timedelta(hours=1) if self.within else 0
        return [
            dg.AssetCheckSpec(
                BUILT_CHECK,
                asset=key,
                description="Built of the rows that are landed now, and not of older ones, of"
                f" {', '.join(sorted(dataset.table for dataset in tables))}.",
            )
            for key, tables in self.built_of.items()
        ] + [
            dg.AssetCheckSpec(
                RECENT_CHECK,
                asset=landed_key(dataset),
                description=f"Its latest {dataset.partition_by} ended at most {hours:g} hours ago"
                " (RETAIL_FRESH_WITHIN_H).",
            )
            for dataset in self.dated
        ]

    def checks(self) -> dg.AssetChecksDefinition:
        """The same as Dagster's: after a build, and whenever a person asks."""

        @dg.multi_asset_check(
            name=f"{self.domain.name}_freshness", specs=self.specs, can_subset=True
        )
        def freshness(
            context: dg.AssetCheckExecutionContext, warehouse: WarehouseResource
        ) -> Iterator[dg.AssetCheckResult]:
            asked = context.selected_asset_check_keys
            with warehouse.kept_open():
                for found in self.look(warehouse)[0]:
                    if dg.AssetCheckKey(found.asset_key, found.check_name) in asked:
                        yield dg.AssetCheckResult(**found._asdict())

        return freshness

    def look(self, warehouse: WarehouseResource) -> tuple[list[Found], str]:
        """What each check finds, and a text that differs where the marts are of something else.

        Raises:
            WarehouseBusyError: another process has the warehouse, which is not waited for but by
                an outer ``kept_open``.
        """
        landed, built = landed_and_built(self.domain, warehouse)
        behind = {x: told for x in landed if (told := describe_behind(x, landed[x], built[x]))}
        found = []
        for key, tables in self.built_of.items():
            stale = [told for dataset, told in behind.items() if dataset in tables]
            text = "; ".join(stale) + f". Run: the job {self.domain.name}_marts" if stale else None
            found.append(Found(key, BUILT_CHECK, not stale, text))
        found += [self._recency(warehouse, x) for x in self.dated if landed[x]]
        return found, version_of({f"{x.table} {k}": v for x in built for k, v in built[x].items()})

    def _recency(self, warehouse: WarehouseResource, dataset: Dataset) -> Found:
        table = warehouse.name_of(dataset)
        ((last,),) = warehouse.query(f"select max({dataset.partition_by}) from {table}")
        assert self.within is not None
        key, text = landed_key(dataset), f"{dataset.table} has no rows"
        if last is not None:
            ended = datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=1)
            if datetime.now(UTC) - ended <= self.within:
                return Found(key, RECENT_CHECK, True)
            text = f"{dataset.table} has data until {last}"
        hours = self.within / timedelta(hours=1)
        return Found(
            key,
            RECENT_CHECK,
            False,
            f"{text}; expected of the last {hours:g} hours (RETAIL_FRESH_WITHIN_H). Look whether"
            " the source delivers, and whether the domain's sensor is on.",
        )


def describe_behind(dataset: Dataset, landed: Mapping[str, str], built: Mapping[str, str]) -> str:
    """How far the marts are behind a landed table, by versions of partitions; "" where not."""
    differ = sum(built.get(key) != version for key, version in landed.items())
    if not differ:
        return ""
    if dataset.partition_by is None:
        return f"{dataset.table} was landed since the marts were built"
    until = max((key for key, version in built.items() if version), default="nothing")
    return (
        f"{dataset.table} is landed until {max(landed)}, the marts are of {until}; {differ:,} of"
        f" {len(landed):,} partitions differ"
    )


def build_defs(settings: Settings, watches: Iterable[Watch]) -> dg.Definitions:
    """The checks of each domain, and the sensor, which is on by default."""
    watched = [watch for watch in watches if watch.specs]

    @dg.sensor(
        name="freshness_sensor",
        # Each look is a few queries, which BigQuery bills.
        minimum_interval_seconds=600 if settings.bigquery else 60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Warns where marts are not of what is landed for more than ten minutes, and"
        " where landed data are older than RETAIL_FRESH_WITHIN_H allows; and says when they are"
        " well again. It asks for no run.",
    )
    def freshness_sensor(
        context: dg.SensorEvaluationContext, warehouse: WarehouseResource
    ) -> dg.SensorResult:
        since: dict[str, list[str]] = json.loads(context.cursor or "{}")
        news, notes = list[Found](), list[str]()
        for watch in watched:
            try:
                with warehouse.kept_open(WAREHOUSE_WAIT_S):
                    found, built = watch.look(warehouse)
            except WarehouseBusyError as busy:
                notes.append(f"{watch.domain.name}: {busy}")
                continue
            lasting = settled(found, since, watch.domain.name, built)
            news += [x for x in lasting if is_news(context.instance, x)]
        notes += [f"{x.asset_key.to_user_string()}: {x.description or 'well'}" for x in news]
        return dg.SensorResult(
            skip_reason="; ".join(notes) or "nothing has changed",
            cursor=json.dumps(since),
            asset_events=[dg.AssetCheckEvaluation(**x._asdict()) for x in news],
        )

    return dg.Definitions(
        asset_checks=[watch.checks() for watch in watched],
        sensors=[freshness_sensor] if watched else [],
    )


def settled(
    found: Sequence[Found], since: dict[str, list[str]], domain: str, built: str
) -> list[Found]:
    """Those of ``found`` that are not about to mend: marts may follow a load for a while.

    ``since`` is kept from look to look: of which version marts are behind, and from when on.
    """
    now = datetime.now(UTC)
    if all(x.passed for x in found if x.check_name == BUILT_CHECK):
        since.pop(domain, None)
        return list(found)
    if since.get(domain, [""])[0] != built:
        since[domain] = [built, now.isoformat()]
    # A clock that was set back keeps nobody waiting.
    waits = abs(now - datetime.fromisoformat(since[domain][1])) < GRACE
    return [x for x in found if x.passed or x.check_name != BUILT_CHECK or not waits]


def is_news(instance: dg.DagsterInstance, found: Found) -> bool:
    """Whether the check did not say so last; why it warns is told again after an hour."""
    key = dg.AssetCheckKey(found.asset_key, found.check_name)
    record = instance.get_latest_asset_check_evaluation_record(key)
    event = record.event.dagster_event if record and record.event else None
    last = event.event_specific_data if event else None
    if record is None or not isinstance(last, dg.AssetCheckEvaluation):
        return True
    is_old = datetime.now(UTC).timestamp() - record.create_timestamp > timedelta(hours=1).seconds
    return last.passed != found.passed or (last.description != found.description and is_old)

"""Online retail's assets, from the source to the warehouse table.

An asset reads, calls a transform, writes and reports. Not here: how rows change (transforms.py),
what the source is (source.py), when anything runs (automation.py), dbt's models (marts/dbt.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dagster as dg
from pydantic import Field

from retail_assets.defs.online_retail.contract import DOMAIN, ONLINE_RETAIL_DATA, QUARANTINE
from retail_assets.defs.online_retail.source import (
    EMPTY_DAY,
    OnlineRetailSource,
    SourceError,
    manifest_metadata,
    read_manifest,
    read_processed,
    record_processed,
)
from retail_assets.defs.online_retail.transforms import (
    DayLedger,
    day_predicate,
    derive_columns,
    first_reasons,
    quarantined_rows,
)
from retail_assets.errors import failures_by_kind
from retail_assets.landing import landed_asset
from retail_assets.losses import (
    EmptyingConfig,
    Quarantined,
    check_quarantine,
    public_reason,
    quarantine_check_spec,
)
from retail_assets.resources.lake import LakeResource, split_by_partition
from retail_assets.settings import Settings

RAW = dg.AssetKey([DOMAIN, "raw_online_retail"])
PROCESSED = dg.AssetKey([DOMAIN, "processed_online_retail_data"])
LANDED = dg.AssetKey([DOMAIN, "online_retail_data"])

_DAY = "invoice_date"
_BATCH_ROWS = 122_880


class RefreshConfig(EmptyingConfig):
    """What a materialization of the source may do, or why it need not try."""

    refused: str = Field(default="", description="why `retail-assets run` could not look at it")


def day_partitions(settings: Settings) -> dg.DailyPartitionsDefinition:
    """The days of the configured span; an open end reaches to today."""
    end = settings.online_retail_end
    if end is None:
        return dg.DailyPartitionsDefinition(str(settings.online_retail_start), end_offset=1)
    after = end.fromordinal(end.toordinal() + 1)
    return dg.DailyPartitionsDefinition(str(settings.online_retail_start), end_date=str(after))


def build_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """The domain's assets, over the configured days."""
    days = day_partitions(settings)

    @dg.asset(
        key=RAW,
        group_name=DOMAIN,
        kinds={"excel", "file"},
        code_version="1",
        tags={"zone": "raw"},
        description="The published workbook(s), as they came, and what they hold day by day.",
        check_specs=[quarantine_check_spec(RAW)],
    )
    def raw_online_retail(
        context: dg.AssetExecutionContext,
        config: RefreshConfig,
        lake: LakeResource,
        online_retail_source: OnlineRetailSource,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        if config.refused:  # the run is the record of it: nothing is tried again
            raise dg.Failure(config.refused, allow_retries=False)
        with failures_by_kind(context.retry_number):
            found = online_retail_source.refresh(lake, allow_emptying=config.allow_emptying)
        context.log.info(
            f"{len(found.changed_days)} days changed; downloaded: {found.downloaded},"
            f" typed: {found.typed}"
        )
        return dg.MaterializeResult(
            metadata=manifest_metadata(found.manifest)
            | {
                "path": dg.MetadataValue.path(lake.uri(f"raw/{DOMAIN}")),
                "changed_days": len(found.changed_days),
                "changed": ", ".join(found.changed_days[:50]),
            },
            data_version=dg.DataVersion(found.manifest.version),
            check_results=[check_quarantine(RAW, found.manifest.quarantined)],
        )

    @dg.asset(
        key=PROCESSED,
        deps=[RAW],
        group_name=DOMAIN,
        partitions_def=days,
        backfill_policy=dg.BackfillPolicy.single_run(),
        kinds={"parquet", "gcs"} if settings.lake.startswith("gs://") else {"parquet"},
        code_version="1",
        tags={"zone": "processed"},
        description="Typed, de-duplicated invoice lines as Parquet, a folder a day.",
        metadata={"dagster/column_schema": ONLINE_RETAIL_DATA.table_schema()},
        check_specs=[quarantine_check_spec(PROCESSED)],
    )
    def processed_online_retail_data(
        context: dg.AssetExecutionContext, lake: LakeResource
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with failures_by_kind(context.retry_number):
            written = write_days(lake, context.run.run_id, context.partition_keys)
        ledgers = read_processed(lake)
        quarantined = Quarantined()
        for day in context.partition_keys:
            bad = Quarantined(ledgers[day].quarantined, first=written.reasons.get(day))
            quarantined += bad
            context.add_asset_metadata(
                ledger_metadata(ledgers[day])
                | {"revenue": written.revenue.get(day, "0.000")}
                | bad.metadata,
                partition_key=day,
            )
        return dg.MaterializeResult(
            metadata={
                "path": dg.MetadataValue.path(lake.uri(f"processed/{DOMAIN}")),
                "partitions_in_run": len(context.partition_keys),
            },
            check_results=[check_quarantine(PROCESSED, quarantined)],
        )

    online_retail_data = landed_asset(
        settings,
        ONLINE_RETAIL_DATA,
        key=LANDED,
        deps=[PROCESSED],
        versions_of=processed_versions,
        partitions=days,
    )
    return [raw_online_retail, processed_online_retail_data, online_retail_data]


@dataclass(frozen=True)
class DaysWritten:
    """What days came to.

    ``revenue`` is the sum of total_price, three decimals, of each day that has rows; ``reasons``
    the first one, without personal data, of each that has quarantined rows.
    """

    revenue: Mapping[str, str]
    reasons: Mapping[str, str]


def write_days(lake: LakeResource, run_id: str, days: Sequence[str]) -> DaysWritten:
    """Replace the processed and quarantined partitions ``days`` from the typed source.

    Raises:
        SourceError: there is no source, or what was staged does not balance with its ledger; no
            partition was touched.
    """
    import duckdb

    manifest = read_manifest(lake)
    if manifest is None or not lake.exists(manifest.typed):
        raise SourceError(
            f"the typed source is not in the lake at {lake.root}. Materialize raw_online_retail"
            " first."
        )
    typed = f"read_parquet('{lake.local_file(manifest.typed)}')"
    where = day_predicate(_DAY, days)
    with duckdb.connect() as connection, lake.staging(run_id) as stage:
        rows = derive_columns(connection, typed, where)
        written = stage.write_partitions(
            "processed",
            ONLINE_RETAIL_DATA,
            _DAY,
            split_by_partition(
                rows.to_arrow_reader(_BATCH_ROWS), _DAY, ONLINE_RETAIL_DATA.arrow_schema
            ),
        )
        rejected = quarantined_rows(connection, typed, where, manifest.tables)
        quarantined = stage.write_partitions(
            "quarantine",
            QUARANTINE,
            _DAY,
            split_by_partition(
                rejected.to_arrow_reader(_BATCH_ROWS), _DAY, QUARANTINE.arrow_schema
            ),
        )
        ledgers = {day: manifest.days.get(day, EMPTY_DAY) for day in days}
        for day, ledger in ledgers.items():
            found = (written.get(day, 0), quarantined.get(day, 0))
            if found != (ledger.written, ledger.quarantined):
                raise SourceError(
                    f"{day}: the ledger expects {ledger.written} rows and {ledger.quarantined}"
                    f" quarantined, found {found[0]} and {found[1]}. No partition was touched."
                    " Materialize raw_online_retail again."
                )
        stage.publish("processed", ONLINE_RETAIL_DATA, _DAY, days)
        stage.publish("quarantine", QUARANTINE, _DAY, days)
        record_processed(lake, ledgers)
        revenue = connection.sql(
            f"select {_DAY}::varchar, sum((quantity * unit_price)::decimal(18, 3))::varchar"
            f" from {typed} where reason is null and {where} group by all"
        ).fetchall()
        reasons = first_reasons(connection, typed, where) if quarantined else {}
    personal = ONLINE_RETAIL_DATA.personal
    return DaysWritten(
        dict(revenue), {day: public_reason(text, personal) for day, text in reasons.items()}
    )


def ledger_metadata(ledger: DayLedger) -> dict[str, int]:
    """A day's ledger as the UI shows it."""
    return {
        "dagster/partition_row_count": ledger.written,
        "read": ledger.read,
        "duplicates": ledger.duplicates,
    }


def processed_versions(lake: LakeResource, days: Sequence[str] | None = None) -> dict[str, str]:
    """Fingerprint of each processed day, or of ``days``.

    Raises:
        SourceError: a day was never processed.
    """
    processed = read_processed(lake)
    if days is None:
        days = list(processed)
    missing = [day for day in days if day not in processed]
    if missing:
        raise SourceError(
            f"{len(missing)} days were never processed ({missing[0]}...{missing[-1]}). Nothing"
            " was loaded. Materialize processed_online_retail_data for them first."
        )
    return {day: processed[day].fingerprint for day in days}


@dg.asset_check(
    asset=PROCESSED,
    name="ledger_balances",
    blocking=True,
    description="read = written + duplicates + quarantined, by the lake's own files.",
)
def ledger_balances(lake: LakeResource) -> dg.AssetCheckResult:
    """Hold each recorded day against the rows that its files really have."""
    ledgers = read_processed(lake)
    written = lake.partition_rows("processed", ONLINE_RETAIL_DATA, _DAY, ledgers)
    quarantined = lake.partition_rows("quarantine", QUARANTINE, _DAY, ledgers)
    off = {
        day: f"read {x.read}, duplicates {x.duplicates}, found {written[day]} rows and"
        f" {quarantined[day]} quarantined"
        for day, x in ledgers.items()
        if x.read != written[day] + x.duplicates + quarantined[day]
    }
    return dg.AssetCheckResult(
        passed=not off,
        description=(f"{len(off)} days do not balance; materialize them again." if off else None),
        metadata={
            "days": len(ledgers),
            "read": sum(x.read for x in ledgers.values()),
            "written": sum(written.values()),
            "duplicates": sum(x.duplicates for x in ledgers.values()),
            "quarantined": sum(quarantined.values()),
            "unbalanced": dg.MetadataValue.json(dict(list(off.items())[:20])),
        },
    )


@dg.asset_check(
    asset=PROCESSED,
    name="schema_matches_contract",
    blocking=True,
    description="The Parquet files' columns and types are those of the contract.",
)
def schema_matches_contract(lake: LakeResource) -> dg.AssetCheckResult:
    """Compare the schema of the first, the middle and the last file with the contract."""
    uris = lake.partition_uris(ONLINE_RETAIL_DATA, sorted(read_processed(lake)))
    expected = {f.name: str(f.type) for f in ONLINE_RETAIL_DATA.arrow_schema}
    off = {}
    for uri in {uris[0], uris[len(uris) // 2], uris[-1]} if uris else set():
        found = {f.name: str(f.type) for f in lake.read_schema(uri)}
        if found != expected:
            off[uri] = found
    return dg.AssetCheckResult(
        passed=not off,
        metadata={
            "expected": dg.MetadataValue.json(expected),
            "found": dg.MetadataValue.json(off or expected),
        },
    )


def build_defs(settings: Settings) -> dg.Definitions:
    """The domain's assets and checks, over the configured days."""
    return dg.Definitions(
        assets=build_assets(settings),
        asset_checks=[ledger_balances, schema_matches_contract],
    )

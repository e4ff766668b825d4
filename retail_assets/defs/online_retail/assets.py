"""Online retail's assets, from the source to the warehouse table.

An asset reads, calls a transform, writes and reports. Not here: how rows change (transforms.py),
what the source is (source.py), when anything runs (automation.py), dbt's models (marts/dbt.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import dagster as dg
from pydantic import Field

from retail_assets.defs.online_retail.contract import DOMAIN, ONLINE_RETAIL_DATA, QUARANTINE
from retail_assets.defs.online_retail.manifest import (
    EMPTY_DAY,
    hashes_of,
    manifest_metadata,
    read_manifest,
)
from retail_assets.defs.online_retail.source import OnlineRetailSource, SourceError
from retail_assets.defs.online_retail.transforms import (
    day_predicate,
    derive_columns,
    first_reasons,
    quarantined_rows,
)
from retail_assets.domain import RANGE_TAGS
from retail_assets.errors import failures_by_kind
from retail_assets.landing import landed_asset
from retail_assets.losses import (
    EmptyingConfig,
    Quarantined,
    check_quarantine,
    public_reason,
    quarantine_check_spec,
)
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.restoring import set_aside
from retail_assets.resources.lake.staging import split_by_partition
from retail_assets.resources.lake.tables import Snapshot
from retail_assets.settings import Settings

RAW = dg.AssetKey([DOMAIN, "raw_online_retail"])
PROCESSED = dg.AssetKey([DOMAIN, "processed_online_retail_data"])
LANDED = dg.AssetKey([DOMAIN, "online_retail_data"])

_DAY = "invoice_date"
_BATCH_ROWS = 122_880
_CODE_VERSION = "1"
_FOOTERS_AT_ONCE = 8


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
        code_version=_CODE_VERSION,
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
        quarantined = Quarantined()
        for day, ledger in written.ledgers.items():
            bad = Quarantined(ledger.quarantined, first=written.reasons.get(day))
            quarantined += bad
            context.add_asset_metadata(
                ledger_metadata(ledger)
                | {"revenue": written.revenue.get(day, "0.000")}
                | bad.metadata,
                partition_key=day,
            )
        return dg.MaterializeResult(
            metadata={
                "path": dg.MetadataValue.path(lake.uri(ONLINE_RETAIL_DATA.location)),
                "partitions_in_run": len(context.partition_keys),
            },
            check_results=[check_quarantine(PROCESSED, quarantined)],
        )

    online_retail_data = landed_asset(
        settings,
        ONLINE_RETAIL_DATA,
        key=LANDED,
        deps=[PROCESSED],
        partitions=days,
    )
    return [raw_online_retail, processed_online_retail_data, online_retail_data]


@dataclass(frozen=True)
class DaysWritten:
    """What days came to.

    ``ledgers`` are of all of them; ``revenue`` is the sum of total_price, three decimals, of each
    that has rows; ``reasons`` the first one, without personal data, of each that has quarantined
    rows.
    """

    ledgers: Mapping[str, Ledger]
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
    asset = PROCESSED.to_user_string()
    with duckdb.connect() as connection, lake.staging(run_id, asset) as stage:
        rows = derive_columns(connection, typed, where)
        written = stage.write_partitions(
            ONLINE_RETAIL_DATA,
            split_by_partition(
                rows.to_arrow_reader(_BATCH_ROWS), _DAY, ONLINE_RETAIL_DATA.arrow_schema
            ),
        )
        rejected = quarantined_rows(connection, typed, where, manifest.tables)
        quarantined = stage.write_partitions(
            QUARANTINE,
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
        told = {"source": hashes_of(manifest.files), "code_version": _CODE_VERSION}
        # The days last, whose ledgers say that they are done: killed in between, they are not.
        stage.publish(QUARANTINE, days, told=told)
        stage.publish(ONLINE_RETAIL_DATA, days, ledgers, told)
        revenue = connection.sql(
            f"select {_DAY}::varchar, sum((quantity * unit_price)::decimal(18, 3))::varchar"
            f" from {typed} where reason is null and {where} group by all"
        ).fetchall()
        reasons = first_reasons(connection, typed, where) if quarantined else {}
    personal = ONLINE_RETAIL_DATA.personal
    return DaysWritten(
        ledgers,
        dict(revenue),
        {day: public_reason(text, personal) for day, text in reasons.items()},
    )


def ledger_metadata(ledger: Ledger) -> dict[str, int]:
    """A day's ledger as the UI shows it."""
    return {
        "dagster/partition_row_count": ledger.written,
        "read": ledger.read,
        "duplicates": ledger.duplicates,
    }


@dg.asset_check(
    asset=PROCESSED,
    name="ledger_balances",
    blocking=True,
    description="read = written + duplicates + quarantined: of the run's days by the rows that"
    " their files have, of all others by what the table says of its files.",
)
def ledger_balances(
    context: dg.AssetCheckExecutionContext, lake: LakeResource
) -> dg.AssetCheckResult:
    """Hold each day's ledger against its rows, whoever else wrote to the tables."""
    table, quarantine = (lake.table(x).snapshot() for x in (ONLINE_RETAIL_DATA, QUARANTINE))
    ledgers = table.ledgers
    written, quarantined = table.rows_of(ledgers), quarantine.rows_of(ledgers)
    tags = context.run.tags
    one = tags.get("dagster/partition")
    first, last = (tags.get(name, one) for name in RANGE_TAGS)
    days = [day for day in ledgers if (first or day) <= day <= (last or day)]
    written |= _rows_by_footers(lake, table, days)
    quarantined |= _rows_by_footers(lake, quarantine, days)
    # A day that a person restored is of then, and its quarantine of now.
    for day, other in set_aside(lake, ONLINE_RETAIL_DATA).items():
        if day in ledgers and ledgers[day] != other:
            quarantined[day] = ledgers[day].quarantined
    off = {
        day: f"read {x.read}, duplicates {x.duplicates}, found {written[day]} rows and"
        f" {quarantined[day]} quarantined"
        for day, x in ledgers.items()
        if (written[day], quarantined[day]) != (x.written, x.quarantined)
    }
    return dg.AssetCheckResult(
        passed=not off,
        description=(f"{len(off)} days do not balance; materialize them again." if off else None),
        metadata={
            "days": len(ledgers),
            "days_by_their_files": len(days),
            "read": sum(x.read for x in ledgers.values()),
            "written": sum(written.values()),
            "duplicates": sum(x.duplicates for x in ledgers.values()),
            "quarantined": sum(quarantined.values()),
            "unbalanced": dg.MetadataValue.json(dict(list(off.items())[:20])),
        },
    )


def _rows_by_footers(lake: LakeResource, snapshot: Snapshot, days: Iterable[str]) -> dict[str, int]:
    """Rows of each day as its files' footers say; a file that is gone or broken has none."""
    import pyarrow as pa

    def count(uri: str) -> int:
        try:
            return int(lake.read_footer(uri).num_rows)
        except (FileNotFoundError, pa.ArrowInvalid):
            return 0

    rows = dict.fromkeys(days, 0)
    files = snapshot.filled(rows)
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        counted = pool.map(count, [lake.uri(file.name) for file in files])
        for file, found in zip(files, counted, strict=True):
            rows[file.key] += found
    return rows


@dg.asset_check(
    asset=PROCESSED,
    name="schema_matches_contract",
    blocking=True,
    description="The Parquet files' columns and types are those of the contract.",
)
def schema_matches_contract(lake: LakeResource) -> dg.AssetCheckResult:
    """Compare the schema of the first, the middle and the last file with the contract."""
    uris = lake.partition_uris(ONLINE_RETAIL_DATA)
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

"""The supply chain's assets, from the topic to warehouse tables.

An asset reads, calls a transform, writes and reports. Not here: how messages land (batches.py),
how the star is built (star.py), when anything runs (automation.py), dbt's models.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from retail_assets.dataset import Dataset
from retail_assets.defs.supply_chain.batches import MOST_BYTES, MOST_MESSAGES, Landed, drain
from retail_assets.defs.supply_chain.contract import (
    DIM_METADATA,
    DOMAIN,
    FACT_ORDER,
    LANDED,
    MESSAGES,
    SOURCE_COLUMNS,
    STREAMING,
    TOPIC,
    TRANSFORMED,
)
from retail_assets.defs.supply_chain.operational_sink import LETTERS_TABLE, ROWS_TABLE
from retail_assets.defs.supply_chain.producing import produced
from retail_assets.defs.supply_chain.star import (
    StarBuilt,
    StarChecked,
    build_star,
    check_star,
    star_versions,
)
from retail_assets.defs.supply_chain.transforms import TYPING_VERSION
from retail_assets.errors import failures_by_kind
from retail_assets.landing import landed_asset
from retail_assets.losses import (
    EmptyingConfig,
    Quarantined,
    check_quarantine,
    public_reason,
    quarantine_check_spec,
)
from retail_assets.resources.broker.resource import BrokerResource, UnknownTopicError
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.operational_db import OperationalDbResource
from retail_assets.resources.spark import SparkResource
from retail_assets.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from retail_assets.defs.supply_chain.stream import Streamed

TOPIC_KEY = dg.AssetKey([DOMAIN, "topic"])
MESSAGES_KEY = dg.AssetKey([STREAMING, TOPIC])
OPERATIONAL_KEY = dg.AssetKey(["operational_db", f"{DOMAIN}_messages"])
MICRO_BATCH = f"{DOMAIN}_micro_batch"
STAR = f"{DOMAIN}_star"
LAG_CHECK = "lag_is_low"
READABLE_CHECK = "most_messages_are_readable"
STAR_CHECK = "star_matches_contract"
_CODE_VERSION = "1"
_PERSONAL = {
    s.header
    for s, c in zip(SOURCE_COLUMNS, MESSAGES.columns[-len(SOURCE_COLUMNS) :], strict=True)
    if c.pii
}


class MicroBatchConfig(dg.Config):
    """What a micro-batch lands.

    ``ranges`` are [start, end) offsets by partition, of the topic's ``incarnation``; without any,
    all that is there when it begins. ``ingest_date`` (YYYY-MM-DD) is the request's; without one,
    the day on which the run was created. ``file`` is produced to the topic meanwhile.
    ``accept_loss`` goes on after messages that the broker no longer has.
    """

    ranges: dict[str, list[int]] = {}  # noqa: RUF012  (a field of pydantic's: copied)
    incarnation: str | None = None
    ingest_date: str | None = None
    file: str | None = None
    accept_loss: bool = False
    most_messages: int = MOST_MESSAGES
    most_bytes: int = MOST_BYTES


class StarConfig(EmptyingConfig):
    """What is built besides the files that are new.

    All files of ``ingest_dates``; or the whole star ``anew``, of messages alone. Then
    ``allow_emptying`` goes on without rows of messages whose files are gone.
    """

    ingest_dates: list[str] = []  # noqa: RUF012
    anew: bool = False


def transformed_key(dataset: Dataset) -> dg.AssetKey:
    """The asset of a table's Parquet files."""
    return dg.AssetKey([TRANSFORMED, dataset.name])


def landed_key(dataset: Dataset) -> dg.AssetKey:
    """The asset of a table in the warehouse."""
    return dg.AssetKey([DOMAIN, dataset.name])


def build_assets(settings: Settings) -> list[dg.AssetsDefinition | dg.SourceAsset]:
    """The domain's assets: the topic as it is, its messages, the star, the landed tables."""
    return [
        _topic(),
        _messages(settings),
        _star(settings),
        *(_landed(settings, dataset) for dataset in LANDED),
    ]


def _bucket_kind(settings: Settings) -> set[str]:
    return {"gcs"} if settings.lake.startswith("gs://") else set()


def _topic() -> dg.SourceAsset:
    @dg.observable_source_asset(
        key=TOPIC_KEY,
        group_name=DOMAIN,
        tags={"zone": "raw", "dagster/kind/kafka": ""},
        description=f"The Kafka topic {TOPIC}: order events as JSON, as others send them.",
    )
    def topic(broker: BrokerResource) -> dg.ObserveResult:
        return observe_topic(broker)

    return topic


def observe_topic(broker: BrokerResource) -> dg.ObserveResult:
    """The topic's incarnation and watermarks, as the graph shows them."""
    if not broker.running:
        return dg.ObserveResult(metadata={"broker": "no embedded broker is running"})
    try:
        incarnation = broker.incarnation(TOPIC)
    except UnknownTopicError:
        return dg.ObserveResult(metadata={"topic": "not there yet"})
    watermarks = broker.watermarks(TOPIC)
    ends = {str(partition): mark.high for partition, mark in sorted(watermarks.items())}
    return dg.ObserveResult(
        data_version=dg.DataVersion(f"{incarnation.id}:{','.join(map(str, ends.values()))}"),
        metadata={
            "incarnation": incarnation.id,
            "high_watermarks": dg.MetadataValue.json(ends),
            "low_watermarks": dg.MetadataValue.json(
                {str(partition): mark.low for partition, mark in sorted(watermarks.items())}
            ),
            "messages": sum(mark.high - mark.low for mark in watermarks.values()),
        },
    )


def _messages(settings: Settings) -> dg.AssetsDefinition:
    shared: dict[str, Any] = {
        "deps": [TOPIC_KEY],
        "group_name": DOMAIN,
        "code_version": _CODE_VERSION,
        "tags": {"zone": "raw"},
    }

    @dg.multi_asset(
        name=MICRO_BATCH,
        specs=[
            dg.AssetSpec(
                MESSAGES_KEY,
                kinds={"parquet", *_bucket_kind(settings)},
                description=(
                    f"{MESSAGES.description} Each once, as Parquet by ingest date; the others are"
                    " in quarantine, with the reason."
                ),
                metadata={"dagster/column_schema": MESSAGES.table_schema()},
                **shared,
            ),
            dg.AssetSpec(
                OPERATIONAL_KEY,
                kinds={"postgres"},
                description=(
                    f"The same messages in PostgreSQL: {ROWS_TABLE}, each once, as JSON; the"
                    f" others in {LETTERS_TABLE}."
                ),
                **shared,
            ),
        ],
        check_specs=[
            dg.AssetCheckSpec(
                LAG_CHECK,
                asset=MESSAGES_KEY,
                description="What waits in the topic is little, and not old.",
            ),
            dg.AssetCheckSpec(
                READABLE_CHECK,
                asset=MESSAGES_KEY,
                description="Not more than half of what landed are dead letters.",
            ),
            quarantine_check_spec(MESSAGES_KEY),
        ],
    )
    def micro_batch(
        context: dg.AssetExecutionContext,
        config: MicroBatchConfig,
        lake: LakeResource,
        broker: BrokerResource,
        operational_db: OperationalDbResource,
    ) -> "Iterator[dg.MaterializeResult]":  # type: ignore[type-arg]
        with failures_by_kind(context.retry_number):
            landed, streamed = land(
                lake,
                broker,
                operational_db,
                config,
                config.ingest_date or _created_on(context),
                lambda so_far: context.log.info(f"{so_far.messages:,} messages landed"),
                {
                    "run_id": context.run.run_id,
                    "asset": MESSAGES_KEY.to_user_string(),
                    "code_version": _CODE_VERSION,
                },
            )
        if streamed is not None:
            context.log.info(streamed.summary)
        context.log_event(_observation(observe_topic(broker)))
        yield dg.MaterializeResult(
            asset_key=MESSAGES_KEY,
            metadata=batch_metadata(landed)
            | {"path": dg.MetadataValue.path(lake.uri(MESSAGES.location))},
            check_results=[
                check_lag(settings, landed),
                check_readable(landed),
                check_quarantine(MESSAGES_KEY, quarantined(landed)),
            ],
        )
        yield dg.MaterializeResult(
            asset_key=OPERATIONAL_KEY,
            metadata={
                "rows_landed": landed.good,
                "dead_letters": landed.bad,
                "inserted": landed.inserted,
                "path": f"{operational_db.where}: {ROWS_TABLE}",
            },
        )

    return micro_batch


def _observation(found: dg.ObserveResult) -> dg.AssetObservation:
    return dg.AssetObservation(TOPIC_KEY, metadata=found.metadata)


def _created_on(context: dg.AssetExecutionContext) -> str:
    """The day of the run's creation in UTC: the same for each retry of its steps."""
    record = context.instance.get_run_record_by_id(context.run.run_id)
    created = record.create_timestamp if record else datetime.now(UTC)
    return f"{created:%Y-%m-%d}"


def land(
    lake: LakeResource,
    broker: BrokerResource,
    database: OperationalDbResource,
    config: MicroBatchConfig,
    ingest_date: str,
    report: "Callable[[Landed], None] | None" = None,
    told: Mapping[str, object] | None = None,
) -> "tuple[Landed, Streamed | None]":
    """Land what ``config`` says, and produce its file meanwhile; how far both came."""
    streams = Path(broker.home) / "streams"
    with produced(broker, config.file, streams) as producing:
        landed = drain(
            lake,
            broker,
            database,
            ingest_date=ingest_date,
            ranges={int(p): (start, end) for p, (start, end) in config.ranges.items()} or None,
            incarnation=config.incarnation,
            follow=producing.goes_on if config.file else None,
            most_messages=config.most_messages,
            most_bytes=config.most_bytes,
            accept_loss=config.accept_loss,
            report=report,
            told=told,
        )
    return landed, producing.streamed


def batch_metadata(landed: Landed) -> dict[str, Any]:
    """What a micro-batch did, as the UI shows it."""
    return {
        "rows_landed": landed.good,
        "messages": landed.messages,
        "dead_letters": landed.bad,
        "inserted": landed.inserted,
        "files": len(landed.files),
        "batches": landed.batches,
        "messages_a_second": round(landed.messages / max(landed.seconds, 1e-9)),
        "lag": sum(landed.lag.values()),
        "lag_by_partition": dg.MetadataValue.json(
            {str(partition): lag for partition, lag in sorted(landed.lag.items())}
        ),
        "oldest_message_waited_s": round(landed.oldest_s, 3),
        "recovered": landed.recovered,
        "lost_ranges": dg.MetadataValue.json([list(lost) for lost in landed.lost]),
    } | quarantined(landed).metadata


def quarantined(landed: Landed) -> Quarantined:
    """What could not be taken, as a run tells it: without personal data."""
    reason = landed.reason and public_reason(landed.reason, _PERSONAL)
    return Quarantined(landed.bad, landed.left_out, reason, "messages")


def check_readable(landed: Landed) -> dg.AssetCheckResult:
    """Whether most messages are none that should not be there; the good ones go on anyway.

    A topic cannot be refused: others send to it.
    """
    passed = landed.bad * 2 <= landed.messages
    return dg.AssetCheckResult(
        asset_key=MESSAGES_KEY,
        check_name=READABLE_CHECK,
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR,
        description=None
        if passed
        else f"{landed.bad:,} of {landed.messages:,} messages that landed are dead letters,"
        f" expected at most half; the first: {quarantined(landed).first}. See: retail-assets"
        " quarantine",
        metadata={"messages": landed.messages, "dead_letters": landed.bad},
    )


def check_lag(settings: Settings, landed: Landed) -> dg.AssetCheckResult:
    """Whether too much waits, or waited too long; it warns and blocks nothing."""
    lag = sum(landed.lag.values())
    most, longest = settings.supply_chain_most_lag, settings.supply_chain_most_age_s
    found = []
    if lag > most:
        found.append(
            f"{lag:,} messages wait, expected at most {most:,} (RETAIL_SUPPLY_CHAIN_MOST_LAG)"
        )
    if landed.oldest_s > longest:
        found.append(
            f"a message waited {landed.oldest_s:,.0f} s, expected at most {longest:,.0f} s"
            " (RETAIL_SUPPLY_CHAIN_MOST_AGE_S)"
        )
    return dg.AssetCheckResult(
        asset_key=MESSAGES_KEY,
        check_name=LAG_CHECK,
        passed=not found,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(found) or None,
        metadata={"lag": lag, "oldest_message_waited_s": round(landed.oldest_s, 3)},
    )


def _star(settings: Settings) -> dg.AssetsDefinition:
    @dg.multi_asset(
        name=STAR,
        specs=[
            dg.AssetSpec(
                transformed_key(dataset),
                deps=[MESSAGES_KEY],
                group_name=DOMAIN,
                kinds={"pyspark", "parquet", *_bucket_kind(settings)},
                code_version=TYPING_VERSION,
                tags={"zone": "processed"},
                description=f"{dataset.description} As Parquet.",
                metadata={"dagster/column_schema": dataset.table_schema()},
            )
            for dataset in LANDED
        ],
        check_specs=[
            dg.AssetCheckSpec(
                STAR_CHECK,
                asset=transformed_key(dataset),
                blocking=True,
                description="Columns are the contract's, the key is unique, and the fact's keys"
                " are in their dimensions; by the lake's own files.",
            )
            for dataset in LANDED
        ],
    )
    def star(
        context: dg.AssetExecutionContext,
        config: StarConfig,
        lake: LakeResource,
        spark: SparkResource,
    ) -> "Iterator[dg.MaterializeResult]":  # type: ignore[type-arg]
        with failures_by_kind(context.retry_number):
            built = build_star(
                lake,
                spark,
                context.run.run_id,
                config.ingest_dates,
                anew=config.anew,
                allow_emptying=config.allow_emptying,
            )
            checked = check_star(lake)
        for dataset in LANDED:
            yield dg.MaterializeResult(
                asset_key=transformed_key(dataset),
                metadata=star_metadata(built, dataset)
                | {"path": dg.MetadataValue.path(lake.uri(dataset.location))},
                check_results=[star_result(checked, dataset)],
            )

    return star


def star_metadata(built: StarBuilt, dataset: Dataset) -> dict[str, Any]:
    """What a build did to a table, as the UI shows it; the messages' ledger with the fact."""
    found: dict[str, Any] = {
        "dagster/row_count": built.rows[dataset.name],
        "changed_partitions": dg.MetadataValue.json(list(built.changed.get(dataset.name, ()))),
    }
    if dataset is FACT_ORDER:
        found |= {
            "ingest_dates": dg.MetadataValue.json(list(built.dates)),
            "files": built.files,
            "messages": built.messages,
            "written": built.written,
            "superseded_within": built.superseded_within,
            "superseded_by_later": built.superseded_by_later,
            "removed": built.removed,
            "files_gone": built.gone,
        }
    return found


def star_result(checked: StarChecked, dataset: Dataset) -> dg.AssetCheckResult:
    """Whether a table of the star is as it should be."""
    found = []
    if drift := checked.drifted.get(dataset.name):
        found.append(drift)
    if copies := checked.duplicates.get(dataset.name):
        found.append(f"{copies:,} rows have a key that another row has")
    if dataset is FACT_ORDER:
        found += [f"{n:,} rows have a {key} of no dimension" for key, n in checked.orphans.items()]
    if dataset is DIM_METADATA and checked.unused:
        found.append(f"{checked.unused:,} rows are of no row of {FACT_ORDER.name}")
    rebuild = "; materialize the star with the config anew: true"
    return dg.AssetCheckResult(
        asset_key=transformed_key(dataset),
        check_name=STAR_CHECK,
        passed=not found,
        description="; ".join(found) + rebuild if found else None,
        metadata={"rows": checked.rows.get(dataset.name, 0)},
    )


def _landed(settings: Settings, dataset: Dataset) -> dg.AssetsDefinition:
    def versions_of(lake: LakeResource, _: Sequence[str] | None) -> dict[str, str]:
        return star_versions(lake, dataset)

    return landed_asset(
        settings,
        dataset,
        key=landed_key(dataset),
        deps=[transformed_key(dataset)],
        versions_of=versions_of,
        only_changed=True,
    )


def build_defs(settings: Settings) -> dg.Definitions:
    """The domain's assets and their checks."""
    return dg.Definitions(assets=build_assets(settings))

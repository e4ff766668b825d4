"""A topic's assets: the topic as it is, its messages, the tables made of them, these landed.

An asset reads, calls, and reports. Not here: how messages land (batches.py), how tables are made of
them (the domain), when anything runs (automation.py), dbt's models.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dagster as dg

from retail_assets.dataset import Dataset
from retail_assets.errors import failures_by_kind
from retail_assets.feeds.landing import landed_asset
from retail_assets.feeds.processed import lake_kinds
from retail_assets.feeds.stream import BuiltTable, StreamFeed
from retail_assets.feeds.stream.batches import Drain, Landed, MicroBatchConfig, listed, produced
from retail_assets.instance_config import spark_pool
from retail_assets.losses import (
    EmptyingConfig,
    check_quarantine,
    check_result,
    quarantine_check_spec,
)
from retail_assets.resources.broker.resource import BrokerResource, UnknownTopicError
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.operational_db import OperationalDbResource
from retail_assets.resources.spark import SparkResource
from retail_assets.settings import Settings, variable_name

LAG_CHECK = "lag_is_low"
READABLE_CHECK = "most_messages_are_readable"
STAR_CHECK = "star_matches_contract"
_CODE_VERSION = "1"


class StarConfig(EmptyingConfig):
    """What the tables are made of besides the messages that are new.

    All of ``ingest_dates``; or the whole star ``anew``, of messages alone. Then
    ``allow_emptying`` goes on without rows of messages whose files are gone.
    """

    ingest_dates: list[str] = []  # noqa: RUF012  (a field of pydantic's: copied)
    anew: bool = False


def topic_key(feed: StreamFeed) -> dg.AssetKey:
    """The topic's asset."""
    return dg.AssetKey([feed.name, "topic"])


def messages_key(feed: StreamFeed) -> dg.AssetKey:
    """The asset of the lake's messages."""
    return dg.AssetKey([feed.messages.schema, feed.messages.name])


def operational_key(feed: StreamFeed) -> dg.AssetKey:
    """The asset of the database's messages."""
    return dg.AssetKey(["operational_db", f"{feed.name}_messages"])


def transformed_key(dataset: Dataset) -> dg.AssetKey:
    """The asset of a table's Parquet files."""
    return dg.AssetKey([dataset.zone, dataset.name])


def build_assets(
    feed: StreamFeed, settings: Settings
) -> list[dg.SourceAsset | dg.AssetsDefinition]:
    """The feed's assets and their checks."""
    landed = [landed_asset(settings, feed, x, dep=transformed_key(x)) for x in feed.datasets]
    return [_topic(feed), _messages(settings, feed), _star(settings, feed), *landed]


def observe_topic(feed: StreamFeed, broker: BrokerResource) -> dg.ObserveResult:
    """The topic's incarnation and watermarks, as the graph shows them."""
    if not broker.running:
        return dg.ObserveResult(metadata={"broker": "no embedded broker is running"})
    try:
        incarnation = broker.incarnation(feed.topic).id
    except UnknownTopicError:
        return dg.ObserveResult(metadata={"topic": "not there yet"})
    marks = dict(sorted(broker.watermarks(feed.topic).items()))
    ends = ",".join(str(mark.high) for mark in marks.values())
    return dg.ObserveResult(
        data_version=dg.DataVersion(f"{incarnation}:{ends}"),
        metadata={
            "incarnation": incarnation,
            "high_watermarks": _by_partition({p: mark.high for p, mark in marks.items()}),
            "low_watermarks": _by_partition({p: mark.low for p, mark in marks.items()}),
            "messages": sum(mark.high - mark.low for mark in marks.values()),
        },
    )


def _topic(feed: StreamFeed) -> dg.SourceAsset:
    @dg.observable_source_asset(
        key=topic_key(feed),
        group_name=feed.name,
        tags={"zone": "raw", "dagster/kind/kafka": ""},
        description=f"The Kafka topic {feed.topic}: events as JSON, as others send them.",
    )
    def topic(broker: BrokerResource) -> dg.ObserveResult:
        return observe_topic(feed, broker)

    return topic


def _messages(settings: Settings, feed: StreamFeed) -> dg.AssetsDefinition:
    key, operational = messages_key(feed), operational_key(feed)
    shared: dict[str, Any] = {
        "deps": [topic_key(feed)],
        "group_name": feed.name,
        "code_version": _CODE_VERSION,
        "tags": {"zone": "raw"},
    }

    @dg.multi_asset(
        name=feed.micro_batch,
        specs=[
            dg.AssetSpec(
                key,
                kinds=lake_kinds(settings),
                description=f"{feed.messages.description} Each once, as Parquet by ingest date; the"
                " others are in quarantine, with the reason.",
                metadata={"dagster/column_schema": feed.messages.table_schema()},
                **shared,
            ),
            dg.AssetSpec(
                operational,
                kinds={"postgres"},
                description=f"The same messages in PostgreSQL: {feed.messages.table}, each once, as"
                f" JSON; the others in {feed.dead_letters.table}.",
                **shared,
            ),
        ],
        check_specs=[
            dg.AssetCheckSpec(
                LAG_CHECK,
                asset=key,
                description="What waits in the topic is little, and not old.",
            ),
            dg.AssetCheckSpec(
                READABLE_CHECK,
                asset=key,
                description="Not more than half of what landed are dead letters.",
            ),
            quarantine_check_spec(key),
        ],
    )
    def micro_batch(
        context: dg.AssetExecutionContext,
        config: MicroBatchConfig,
        lake: LakeResource,
        broker: BrokerResource,
        operational_db: OperationalDbResource,
    ) -> Iterator[dg.MaterializeResult]:  # type: ignore[type-arg]
        drain = Drain(
            feed,
            lake,
            broker,
            operational_db,
            config,
            report=lambda so_far: context.log.info(f"{so_far.messages:,} messages landed"),
            told={
                "run_id": context.run.run_id,
                "asset": key.to_user_string(),
                "code_version": _CODE_VERSION,
            },
        )
        with failures_by_kind(context.retry_number), ExitStack() as stack:
            if config.file:
                producing = stack.enter_context(produced(feed.producing(broker, Path(config.file))))
                drain.follow = lambda: not (producing.done() and producing.result())
            landed = drain.run()
        if config.file:
            context.log.info(producing.result())
        found = observe_topic(feed, broker).metadata
        context.log_event(dg.AssetObservation(topic_key(feed), metadata=found))
        yield dg.MaterializeResult(
            asset_key=key,
            metadata={
                "rows_landed": landed.good,
                "messages": landed.messages,
                "dead_letters": landed.lost.rows,
                "inserted": landed.inserted,
                "files": len(landed.files),
                "batches": landed.batches,
                "messages_a_second": round(landed.messages / max(landed.seconds, 1e-9)),
                "lag": sum(landed.lag.values()),
                "lag_by_partition": _by_partition(landed.lag),
                "oldest_message_waited_s": round(landed.oldest_s, 3),
                "recovered": landed.recovered,
                "lost_ranges": dg.MetadataValue.json(listed(landed.accepted)),
                "path": dg.MetadataValue.path(lake.uri(feed.messages.location)),
                **landed.lost.metadata,
            },
            check_results=[
                check_lag(settings, feed, landed),
                check_readable(feed, landed),
                check_quarantine(key, landed.lost),
            ],
        )
        yield dg.MaterializeResult(
            asset_key=operational,
            metadata={
                "rows_landed": landed.good,
                "dead_letters": landed.lost.rows,
                "inserted": landed.inserted,
                "path": f"{operational_db.where}: {feed.messages.table}",
            },
        )

    return micro_batch


def check_readable(feed: StreamFeed, landed: Landed) -> dg.AssetCheckResult:
    """Whether most messages are none that should not be there; the good ones go on anyway.

    A topic cannot be refused: others send to it.
    """
    bad = landed.lost.rows
    told = (
        f"{bad:,} of {landed.messages:,} messages that landed are dead letters, expected at most"
        f" half; the first: {landed.lost.first}. See: retail-assets quarantine"
    )
    faults = "" if bad * 2 <= landed.messages else told
    key = messages_key(feed)
    return check_result(key, READABLE_CHECK, faults, messages=landed.messages, dead_letters=bad)


def check_lag(settings: Settings, feed: StreamFeed, landed: Landed) -> dg.AssetCheckResult:
    """Whether too much waits, or waited too long; it warns and blocks nothing."""
    lag = sum(landed.lag.values())
    most, longest = (getattr(settings, name) for name in (feed.most_lag, feed.most_age_s))
    found = []
    if lag > most:
        found.append(
            f"{lag:,} messages wait, expected at most {most:,} ({variable_name(feed.most_lag)})"
        )
    if landed.oldest_s > longest:
        found.append(
            f"a message waited {landed.oldest_s:,.0f} s, expected at most {longest:,.0f} s"
            f" ({variable_name(feed.most_age_s)})"
        )
    told = {"lag": lag, "oldest_message_waited_s": round(landed.oldest_s, 3)}
    return check_result(messages_key(feed), LAG_CHECK, "; ".join(found), warns=True, **told)


def _star(settings: Settings, feed: StreamFeed) -> dg.AssetsDefinition:
    @dg.multi_asset(
        name=feed.star,
        pool=spark_pool(settings),
        specs=[
            dg.AssetSpec(
                transformed_key(dataset),
                deps=[messages_key(feed)],
                group_name=feed.name,
                kinds=lake_kinds(settings, "pyspark"),
                code_version=feed.typing_version,
                tags={"zone": "processed"},
                description=f"{dataset.description} As Parquet.",
                metadata={"dagster/column_schema": dataset.table_schema()},
            )
            for dataset in feed.datasets
        ],
        check_specs=[
            dg.AssetCheckSpec(
                STAR_CHECK,
                asset=transformed_key(dataset),
                blocking=True,
                description="Columns are the contract's, the key is unique, and the fact's keys"
                " are in their dimensions; by the lake's own files.",
            )
            for dataset in feed.datasets
        ],
    )
    def star(
        context: dg.AssetExecutionContext,
        config: StarConfig,
        lake: LakeResource,
        spark: SparkResource,
    ) -> Iterator[dg.MaterializeResult]:  # type: ignore[type-arg]
        with failures_by_kind(context.retry_number):
            run_id = context.run.run_id
            built = list(feed.build_tables(lake, spark, run_id, config))
        for table in built:
            key = transformed_key(table.dataset)
            yield dg.MaterializeResult(
                asset_key=key,
                metadata={
                    "dagster/row_count": table.rows,
                    **table.metadata,
                    "path": dg.MetadataValue.path(lake.uri(table.dataset.location)),
                },
                check_results=[check_star(table)],
            )

    return star


def check_star(table: BuiltTable) -> dg.AssetCheckResult:
    """Whether a table made of messages is as it should be."""
    mend = ["materialize the star with the config anew: true"] if table.faults else []
    faults = "; ".join([*table.faults, *mend])
    return check_result(transformed_key(table.dataset), STAR_CHECK, faults, rows=table.rows)


def _by_partition(numbers: Mapping[int, int]) -> dg.JsonMetadataValue:
    return dg.MetadataValue.json({str(p): number for p, number in sorted(numbers.items())})

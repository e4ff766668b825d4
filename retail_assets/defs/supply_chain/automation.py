"""When the supply chain runs: jobs, the sensor on the topic, and the hourly batch.

Here: what to ask for and when. Not here: what a run does (assets.py), how messages land
(batches.py), how far they have (positions.py).
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from retail_assets.defs.supply_chain.assets import (
    MESSAGES_KEY,
    MICRO_BATCH,
    OPERATIONAL_KEY,
    STAR,
    TOPIC_KEY,
    landed_key,
    observe_topic,
    transformed_key,
)
from retail_assets.defs.supply_chain.contract import DOMAIN, LANDED, TOPIC
from retail_assets.defs.supply_chain.positions import plan_ranges, read_positions
from retail_assets.domain import MARTS_STAGE
from retail_assets.requests import (
    REQUEST_TAG,
    Wish,
    marts_wish,
    requests_for,
    runs_underway,
)
from retail_assets.resources.broker.resource import BrokerResource, UnknownTopicError
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.warehouse import WarehouseBusyError, WarehouseResource
from retail_assets.settings import Settings

MESSAGES_JOB = f"{DOMAIN}_messages"
STAR_JOB = "olap_transformation_pipeline"
LOAD_JOB = "gcs_to_bigquery_pipeline"
BATCH_JOB = "batch_pipeline"
MARTS_JOB = f"{DOMAIN}_marts"
# A run lands these in batches of its own; more would keep the next run waiting.
_MOST_MESSAGES_A_RUN = 500_000
_WAREHOUSE_WAIT_S = 1.0


def messages_config(**values: Any) -> dict[str, Any]:
    """The run config of a job that lands messages; MicroBatchConfig says which values."""
    return {"ops": {MICRO_BATCH: {"config": values}}}


def star_config(**values: Any) -> dict[str, Any]:
    """The run config of a job that builds the star; StarConfig says which values."""
    return {"ops": {STAR: {"config": values}}}


def messages_wish(
    incarnation: str, ranges: Mapping[int, tuple[int, int]], ingest_date: str
) -> Wish:
    """A micro-batch of exactly ``ranges``, which identify it together with the incarnation."""
    shown = ",".join(f"{p}:{start}-{end}" for p, (start, end) in sorted(ranges.items()))
    return Wish(
        f"{MESSAGES_JOB}:{incarnation}:{shown}",
        MESSAGES_JOB,
        (),
        run_config=messages_config(
            incarnation=incarnation,
            ingest_date=ingest_date,
            ranges={str(p): [start, end] for p, (start, end) in sorted(ranges.items())},
        ),
    )


def unfinished_wish(instance: dg.DagsterInstance, today: str) -> Wish | None:
    """A micro-batch in place of the last one, if that failed, though no message may need one.

    What it brought into the lake, perhaps of a topic that is gone, may not be in PostgreSQL yet.
    It is the same request again, so that it is not asked for without end.
    """
    records = [
        record
        for job in (MESSAGES_JOB, DOMAIN)
        for record in instance.get_run_records(dg.RunsFilter(job_name=job), limit=1)
    ]
    last = max(records, key=lambda record: record.create_timestamp, default=None)
    if last is None or not last.dagster_run.is_failure_or_canceled:
        return None
    run = last.dagster_run
    identity = run.tags.get(REQUEST_TAG, f"{MESSAGES_JOB}:{run.run_id}:unfinished")
    return Wish(identity, MESSAGES_JOB, (), run_config=messages_config(ingest_date=today))


def ask(
    instance: dg.DagsterInstance,
    lake: LakeResource,
    broker: BrokerResource,
    warehouse: WarehouseResource,
    today: str,
) -> dg.SensorResult | dg.SkipReason:
    """One look at topic, lake and warehouse, and requests for what is new.

    One micro-batch at a time: two would wait for each other. The marts are asked for when the
    landed tables are not those they were built from, and none is being loaded.
    """
    wishes: list[Wish] = []
    notes: list[str] = []
    events: list[dg.AssetObservation] = []
    if underway := runs_underway(instance, MESSAGES_JOB):
        notes.append(f"{MESSAGES_JOB} is underway (run {underway[0].run_id})")
    elif not broker.running:
        notes.append(
            "no embedded broker is running: retail-assets dev starts one, as does"
            f" retail-assets run {DOMAIN} --stream FILE"
        )
    else:
        try:
            wish = pending_messages(lake, broker, today) or unfinished_wish(instance, today)
        except UnknownTopicError:
            notes.append(f"the topic {TOPIC} is not there yet")
        else:
            if wish is None:
                notes.append("every message has landed")
            else:
                wishes.append(wish)
                events.append(
                    dg.AssetObservation(TOPIC_KEY, metadata=observe_topic(broker).metadata)
                )
    loading = [
        f"{job}, run {run.run_id}"
        for job in (BATCH_JOB, LOAD_JOB, DOMAIN)
        for run in runs_underway(instance, job, requested=False)
    ]
    if loading:
        notes.append(f"tables are being loaded ({'; '.join(loading)})")
    else:
        try:
            if (marts := pending_marts(warehouse)) is not None:
                wishes.append(marts)
        except WarehouseBusyError as busy:
            notes.append(str(busy))
    requests, reasons = requests_for(lambda: wishes, instance)
    if not requests:
        return dg.SkipReason("; ".join(notes + reasons))
    return dg.SensorResult(run_requests=requests, asset_events=events)


def pending_messages(lake: LakeResource, broker: BrokerResource, today: str) -> Wish | None:
    """A micro-batch of what is in the topic and has not landed, at most so many messages.

    Raises:
        UnknownTopicError: there is no topic.
        LostMessagesError: what should come next is no longer there.
    """
    incarnation = broker.incarnation(TOPIC)
    watermarks = broker.watermarks(TOPIC)
    positions = read_positions(lake, incarnation.id, watermarks)
    if not positions and incarnation.started_at is None:
        # Of Kafka's topic nothing has ever landed: it begins with what is there.
        positions = {partition: mark.low for partition, mark in watermarks.items()}
    ranges = plan_ranges(positions, watermarks, _MOST_MESSAGES_A_RUN)
    return messages_wish(incarnation.id, ranges, today) if ranges else None


def pending_marts(warehouse: WarehouseResource) -> Wish | None:
    """The marts, where they are not of what is landed."""
    with warehouse.kept_open(_WAREHOUSE_WAIT_S):
        landed, built = (
            {dataset: warehouse.loaded_versions(dataset, stage) for dataset in LANDED}
            for stage in ("landed", MARTS_STAGE)
        )
    return marts_wish(MARTS_JOB, landed, built)


def build_defs(settings: Settings) -> dg.Definitions:
    """Jobs, the schedule and the sensor of the domain."""
    select = dg.AssetSelection
    messages = select.assets(MESSAGES_KEY, OPERATIONAL_KEY)
    star = select.assets(*map(transformed_key, LANDED))
    landed = select.assets(*map(landed_key, LANDED))
    everything = select.groups(DOMAIN) - select.assets(TOPIC_KEY)
    jobs = {
        name: dg.define_asset_job(name, selection=selection, description=description)
        for name, selection, description in (
            (MESSAGES_JOB, messages, "A micro-batch: messages into the lake and PostgreSQL."),
            (STAR_JOB, star, "The star, of the messages in the lake, by Spark."),
            (LOAD_JOB, landed, "The star, from the lake to the warehouse."),
            (BATCH_JOB, star | landed, "The star, and then its load to the warehouse."),
            (
                MARTS_JOB,
                everything - messages - star - landed,
                "Build and test the dbt models of the domain.",
            ),
            (DOMAIN, everything, "Everything of the domain, from the topic to the marts."),
        )
    }

    @dg.sensor(
        name=f"{DOMAIN}_messages_sensor",
        jobs=[jobs[MESSAGES_JOB], jobs[MARTS_JOB]],
        minimum_interval_seconds=30,
        description=(
            "Asks for a micro-batch of exactly the offsets that are in the topic and have not"
            " landed; for the marts, where the landed tables changed. It has no cursor: what has"
            " landed is what the lake's table says."
        ),
    )
    def messages_sensor(
        context: dg.SensorEvaluationContext,
        lake: LakeResource,
        broker: BrokerResource,
        warehouse: WarehouseResource,
    ) -> dg.SensorResult | dg.SkipReason:
        return ask(context.instance, lake, broker, warehouse, f"{datetime.now(UTC):%Y-%m-%d}")

    hourly = dg.ScheduleDefinition(
        name=f"{BATCH_JOB}_hourly",
        job=jobs[BATCH_JOB],
        cron_schedule="0 * * * *",
        execution_timezone="UTC",
        description="The star and its load, of the messages of the last hour.",
    )
    return dg.Definitions(jobs=list(jobs.values()), schedules=[hourly], sensors=[messages_sensor])

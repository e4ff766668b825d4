"""When a topic's messages land and reach the marts: jobs, the sensor, the hourly batch.

Here: what to ask for and when. Not here: what a run does (assets.py), how messages land
(batches.py), how far they have (positions.py), loads and marts (feeds/automation.py).
"""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from retail_assets.feeds import automation as asking
from retail_assets.feeds.requests import REQUEST_TAG, Request, runs_underway
from retail_assets.feeds.stream import StreamFeed, step_config
from retail_assets.feeds.stream.assets import (
    build_assets,
    messages_key,
    operational_key,
    topic_key,
    transformed_key,
)
from retail_assets.feeds.stream.positions import LakePositions, Ranges, plan_ranges, shown
from retail_assets.resources.broker.resource import BrokerResource, UnknownTopicError
from retail_assets.resources.lake import LakeResource
from retail_assets.settings import Settings

# A run lands these in batches of its own; more would keep the next run waiting.
_MOST_MESSAGES_A_RUN = 500_000


def messages_request(
    feed: StreamFeed, incarnation: str, ranges: Ranges, ingest_date: str
) -> Request:
    """A micro-batch of exactly ``ranges``, which identify it together with the incarnation."""
    config = step_config(
        feed.micro_batch,
        incarnation=incarnation,
        ingest_date=ingest_date,
        ranges={str(p): [*span] for p, span in sorted(ranges.items())},
    )
    identity = f"{feed.messages_job}:{incarnation}:{shown(ranges)}"
    return Request(identity, feed.messages_job, (), run_config=config)


def unfinished_request(
    instance: dg.DagsterInstance, feed: StreamFeed, today: str
) -> Request | None:
    """A micro-batch in place of the last one, if that failed, though no message may need one.

    What it brought into the lake, perhaps of a topic that is gone, may not be in PostgreSQL yet.
    It is the same request again, so that it is not asked for without end.
    """
    records = [
        record
        for job in (feed.messages_job, feed.name)
        for record in instance.get_run_records(dg.RunsFilter(job_name=job), limit=1)
    ]
    last = max(records, key=lambda record: record.create_timestamp, default=None)
    if last is None or not last.dagster_run.is_failure_or_canceled:
        return None
    run = last.dagster_run
    identity = run.tags.get(REQUEST_TAG, f"{feed.messages_job}:{run.run_id}:unfinished")
    config = step_config(feed.micro_batch, ingest_date=today)
    return Request(identity, feed.messages_job, (), run_config=config)


def batch_requests(feed: StreamFeed, lake: LakeResource) -> Iterator[Request]:
    """The tables and their load, where they are not of the messages that are there."""
    version, location = lake.table(feed.messages).snapshot().version, feed.messages.location
    wanted = {location: version + 1, f"{location}/typing": int(feed.typing_version)}
    taken = (lake.table(x).transactions(wanted) for x in feed.datasets)
    if version >= 0 and any(found != wanted for found in taken):
        yield Request(f"{feed.batch_job}:{version}-{feed.typing_version}", feed.batch_job, ())


def find_arrivals(
    feed: StreamFeed,
    instance: dg.DagsterInstance,
    lake: LakeResource,
    broker: BrokerResource,
    today: str,
) -> asking.Arrivals:
    """What is in the topic and has not landed; then the tables, where messages did since.

    One micro-batch at a time: two would wait for each other. It goes on beside all else.

    Raises:
        LostMessagesError: what should come next is no longer there.
    """
    wanted: list[Request] = []
    note = "every message has landed"
    if underway := runs_underway(instance, feed.messages_job):
        note = f"{feed.messages_job} is underway (run {underway[0].run_id})"
    elif not broker.running:
        note = (
            "no embedded broker is running: retail-assets dev starts one, as does"
            f" retail-assets run {feed.name} --stream FILE"
        )
    else:
        try:
            watermarks = broker.watermarks(feed.topic)
            landed = LakePositions(feed, lake, broker.incarnation(feed.topic), watermarks)
            ranges = plan_ranges(feed.topic, landed.positions, watermarks, _MOST_MESSAGES_A_RUN)
            if ranges:
                wanted = [messages_request(feed, landed.incarnation, ranges, today)]
            elif request := unfinished_request(instance, feed, today):
                wanted = [request]
        except UnknownTopicError:
            note = f"the topic {feed.topic} is not there yet"
    jobs = feed.star_job, feed.batch_job, feed.load_job, feed.name, feed.marts_job
    tables = [*map(transformed_key, feed.datasets), *asking.landed_keys(feed)]
    return asking.Arrivals(
        wanted=lambda: wanted,
        beside=True,
        underway=asking.tell_underway(asking.find_underway(instance, jobs, tables)),
        notes=[] if wanted else [note],
        # What is made already goes on to the marts first: else these would wait for as long as
        # messages come.
        last=lambda: batch_requests(feed, lake),
    )


def build_defs(feed: StreamFeed, settings: Settings) -> dg.Definitions:
    """The feed's assets and checks, jobs, the schedule and the sensor."""
    select = dg.AssetSelection
    messages = select.assets(messages_key(feed), operational_key(feed))
    star = select.assets(*map(transformed_key, feed.datasets))
    landed = select.assets(*asking.landed_keys(feed))
    everything = select.groups(feed.name) - select.assets(topic_key(feed))
    marts = everything - messages - star - landed
    jobs = asking.define_jobs(
        {
            feed.messages_job: (messages, "A micro-batch: messages into the lake and PostgreSQL."),
            feed.star_job: (star, "The star, of the messages in the lake, by Spark."),
            feed.load_job: (landed, "The star, from the lake to the warehouse."),
            feed.batch_job: (star | landed, "The star, and then its load to the warehouse."),
            feed.marts_job: (marts, "Build and test the dbt models of the domain."),
            feed.name: (everything, "Everything of the domain, from the topic to the marts."),
        }
    )
    sensed = {feed.messages_job, feed.batch_job, feed.load_job, feed.marts_job}
    hourly = "The star and its load, of the messages of the last hour."
    return dg.Definitions(
        assets=build_assets(feed, settings),
        jobs=jobs,
        schedules=[
            asking.schedule(f"{feed.batch_job}_hourly", feed.batch_job, "0 * * * *", hourly)
        ],
        sensors=[
            asking.arrivals_sensor(
                feed,
                f"{feed.name}_messages_sensor",
                lambda instance, found: find_arrivals(
                    feed, instance, found.lake, found.broker, f"{datetime.now(UTC):%Y-%m-%d}"
                ),
                [job for job in jobs if job.name in sensed],
                every_s=30,
                description="Asks for a micro-batch of exactly the offsets that are in the topic"
                " and have not landed; for the star and its load, where messages landed since; for"
                " a load and the marts, where these are behind. It has no cursor: what has landed"
                " is what the lake's table says.",
                resources=["broker"],
            )
        ],
    )

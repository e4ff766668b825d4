"""The supply chain's baseline: one script of confluent-kafka, pyarrow, psycopg and DuckDB.

A thread reads the CSV and produces JSON lines (idempotent, zstd); beside it messages are consumed,
20,000 at a time, into Parquet files and into PostgreSQL: COPY to a temporary table, insert where
the key is new, commit there, then commit the offsets. At the end the star, by SQL over the Parquet
files. What a good engineer would tune is tuned: JSON is read many lines at once, rows are neither
compressed in the database nor twice in memory, the star's messages are typed once, the latest is
found on two columns. No record of what was done, no way back after a kill, no message that is not
as expected, no check of what was written. Broker and database server are those of the product, for
both are to do the same work, with the same settings.

    python -m retail_assets_tests.benchmarks.bare_supply_chain FILE FOLDER DATE [--plain-copy]

FOLDER is there and has nothing but, perhaps, the database server's data. DATE (YYYY-MM-DD) is the
ingest date. With --plain-copy the rows go to their table at once, which a second try of the same
batch would not survive. The last line it prints is a JSON object: what the stages took.
"""

import csv
import json
import resource
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import confluent_kafka as kafka
import duckdb
import orjson
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from retail_assets.defs.supply_chain.contract import (
    CODE,
    DIM_CUSTOMER,
    DIM_DEPARTMENT,
    DIM_LOCATION,
    DIM_METADATA,
    DIM_PRODUCT,
    DIM_SHIPPING,
    FACT_ORDER,
    GROUP,
    KEY_HEADER,
    LANDED,
    MESSAGES,
    RATIO,
    SOURCE_COLUMNS,
    STREAMING,
    TOPIC,
    TRANSFORMED,
    WITHHELD_HEADER,
)
from retail_assets.resources.operational_db.embedded import ADMINISTRATOR, EmbeddedPostgres

_BATCH = 20_000
# The broker keeps 5 MiB of each partition: so many messages that are not consumed are safe.
_MOST_AHEAD = 60_000
_PARTITIONS = 4
_HEADERS = [column.header for column in SOURCE_COLUMNS]
_SCHEMA = pa.schema([(header, pa.string()) for header in _HEADERS])

RAW = f"{STREAMING}/{TOPIC}"
TABLE = MESSAGES.table
_COLUMNS = (
    "incarnation text not null, topic text not null, partition integer not null,"
    ' "offset" bigint not null, key text, time timestamp not null, ingest_date date not null,'
    " payload jsonb not null"
)
_IN_PLACE = "with (toast_tuple_target = 8160)"
_ORDERED = {DIM_CUSTOMER: "customer_id", DIM_PRODUCT: "product_card_id"}
_ORDERED |= {DIM_DEPARTMENT: "department_id"}


class Stream:
    """What producer and consumer know of each other."""

    def __init__(self) -> None:
        self.sent = self.landed = 0
        self.is_whole = False
        self.error: BaseException | None = None
        self.produced_s = self.consumed_s = 0.0
        self._moved = threading.Condition()

    def wait(self) -> None:
        """Until the consumer is near enough; tell it what was sent."""
        with self._moved:
            self._moved.wait_for(lambda: self.sent - self.landed < _MOST_AHEAD)

    def land(self, messages: int) -> None:
        """So many more are in both sinks."""
        with self._moved:
            self.landed += messages
            self._moved.notify_all()


def produce(file: Path, servers: str, stream: Stream) -> None:
    """Send each line of the file; wait where the consumer is far behind."""
    began = time.perf_counter()
    producer = kafka.Producer(
        {
            "bootstrap.servers": servers,
            "enable.idempotence": True,
            "compression.type": "zstd",
            "linger.ms": 20,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 100_000,
        }
    )
    with file.open(encoding="cp1252", newline="") as text:
        rows = csv.reader(text)
        header = next(rows)
        withheld, key = header.index(WITHHELD_HEADER), header.index(KEY_HEADER)
        del header[withheld]
        for row in rows:
            order = row[key].encode()
            del row[withheld]
            producer.produce(TOPIC, orjson.dumps(dict(zip(header, row, strict=True))), order)
            stream.sent += 1
            if not stream.sent % 1000:
                producer.poll(0)
                stream.wait()
    producer.flush()
    stream.produced_s = time.perf_counter() - began
    stream.is_whole = True


class Sinks:
    """Both sinks of one incarnation of the topic."""

    def __init__(self, folder: Path, ingest_date: str, *, plain_copy: bool) -> None:
        self._lake = folder / RAW / f"ingest_date={ingest_date}"
        self._lake.mkdir(parents=True)
        self._date = ingest_date
        self._plain_copy = plain_copy
        self._incarnation = uuid.uuid4().hex
        self._start = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        socket = EmbeddedPostgres.attach(folder)
        self._database = psycopg.connect(host=socket, user=ADMINISTRATOR, dbname="postgres")
        self._database.execute(f"create schema {STREAMING}")
        key = 'primary key (incarnation, topic, partition, "offset")'
        self._database.execute(f"create table {TABLE} ({_COLUMNS}, {key}) {_IN_PLACE}")
        self._database.commit()

    def land(self, messages: list[kafka.Message]) -> None:
        """Messages as a Parquet file a partition, then as rows of one transaction."""
        by_partition: dict[int, list[kafka.Message]] = defaultdict(list)
        for message in messages:
            by_partition[message.partition()].append(message)
        rows = []
        for partition, found in sorted(by_partition.items()):
            table = self._read(partition, found)
            ends = f"{found[0].offset()}-{found[-1].offset() + 1}"
            name = f"{self._incarnation}-{TOPIC}-{partition}-{ends}.parquet"
            pq.write_table(table, self._lake / name, compression="zstd", store_schema=False)
            times = table.column("time").cast(pa.string()).to_pylist()
            rows.append((found, times))
        with self._database.cursor() as cursor:
            target = TABLE
            if not self._plain_copy:
                target = "new_rows"
                made = f"create temporary table new_rows ({_COLUMNS}) {_IN_PLACE} on commit drop"
                cursor.execute(made)
            with cursor.copy(f"copy {target} from stdin") as copy:
                for found, times in rows:
                    for message, at in zip(found, times, strict=True):
                        copy.write_row(
                            (
                                self._incarnation,
                                TOPIC,
                                message.partition(),
                                message.offset(),
                                message.key().decode(),
                                at,
                                self._date,
                                message.value().decode(),
                            )
                        )
            if not self._plain_copy:
                cursor.execute(
                    f"insert into {TABLE} select * from new_rows"
                    ' on conflict (incarnation, topic, partition, "offset") do nothing'
                )
        self._database.commit()

    def _read(self, partition: int, messages: list[kafka.Message]) -> pa.Table:
        fields = pj.read_json(
            pa.BufferReader(b"\n".join(message.value() for message in messages)),
            parse_options=pj.ParseOptions(explicit_schema=_SCHEMA),
        ).select(_HEADERS)
        count = len(messages)
        offsets = pa.array([message.offset() for message in messages], pa.int64())
        padded = pc.utf8_lpad(offsets.cast(pa.string()), width=19, padding="0")
        order = pc.binary_join_element_wise(self._start, padded, f"{partition:05}", "-")
        times = pa.array([message.timestamp()[1] for message in messages], pa.timestamp("ms"))
        identity = [
            pa.repeat(pa.scalar(self._incarnation), count),
            pa.repeat(pa.scalar(TOPIC), count),
            pa.repeat(pa.scalar(partition, pa.int32()), count),
            offsets,
            pa.array([message.key().decode() for message in messages], pa.string()),
            times.cast(pa.timestamp("us")),
            order,
        ]
        return pa.table([*identity, *fields.columns], names=MESSAGES.column_names)

    def close(self) -> None:
        """Let the database go."""
        self._database.close()


def consume(servers: str, sinks: Sinks, stream: Stream) -> None:
    """Land what comes until all that was sent has landed."""
    began = time.perf_counter()
    consumer = kafka.Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": GROUP,
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 20,
            "queued.max.messages.kbytes": 32_768,
        }
    )
    consumer.assign([kafka.TopicPartition(TOPIC, p, 0) for p in range(_PARTITIONS)])
    batch: list[kafka.Message] = []
    while stream.error is None and not (stream.is_whole and stream.landed == stream.sent):
        for message in consumer.consume(min(2_000, _BATCH - len(batch)), timeout=0.05):
            if message.error():
                raise kafka.KafkaException(message.error())
            batch.append(message)
        is_last = stream.is_whole and stream.landed + len(batch) == stream.sent
        if batch and (len(batch) == _BATCH or is_last):
            sinks.land(batch)
            ends = {message.partition(): message.offset() + 1 for message in batch}
            offsets = [kafka.TopicPartition(TOPIC, p, end) for p, end in ends.items()]
            consumer.commit(offsets=offsets, asynchronous=False)
            stream.land(len(batch))
            batch = []
    consumer.close()
    stream.consumed_s = time.perf_counter() - began


def stream_file(file: Path, folder: Path, ingest_date: str, *, plain_copy: bool) -> Stream:
    """Produce the file and land its messages, side by side."""
    cluster = kafka.Producer({"bootstrap.servers": "embedded", "test.mock.num.brokers": 1})
    (broker,) = cluster.list_topics(timeout=10).brokers.values()
    servers = f"{broker.host}:{broker.port}"
    cluster.list_topics(TOPIC, timeout=10)  # which makes it
    sinks = Sinks(folder, ingest_date, plain_copy=plain_copy)
    stream = Stream()

    def produce_all() -> None:
        try:
            produce(file, servers, stream)
        except BaseException as error:
            stream.error = error

    producer = threading.Thread(target=produce_all)
    producer.start()
    try:
        consume(servers, sinks, stream)
    finally:
        stream.land(stream.sent)  # whoever waits goes on, to its end
        producer.join()
        sinks.close()
    if stream.error is not None:
        raise stream.error
    return stream


# ---- the star


def _typed(name: str, kind: str) -> str:
    if kind in ("string", CODE):  # the sample's codes are plain
        return f"nullif({name}, '') as {name}"
    if kind == "timestamp":
        # Of two digits, a year is one of this century.
        year = rf"regexp_replace({name}, '/(\d\d) ', '/20\1 ')"
        return f"strptime({year}, '%m/%d/%Y %H:%M') as {name}"
    names = {"int32": "integer", "int64": "bigint"}
    return f"{name}::{names.get(kind, kind)} as {name}"


def _hashed(values: Mapping[str, str]) -> str:
    texts = []
    for name, kind in values.items():
        value = f'"{name}"'
        if kind == RATIO:
            value = f"replace({value}::varchar, '.', '')::bigint"  # all nine digits are there
        elif kind == "timestamp":
            value = f"strftime({value}, '%Y-%m-%d %H:%M:%S')"
        texts.append(f"coalesce({value}::varchar, chr(30))")
    return f"sha256(concat_ws(chr(31), {', '.join(texts)}))[:32]"


def build_star(folder: Path, ingest_date: str) -> None:
    """The seven tables as Parquet files, of the latest message of each of their rows."""
    with duckdb.connect() as database:
        database.execute("set preserve_insertion_order = false")
        needed = {name for dataset in LANDED for name in dataset.column_names}
        needed |= {f"customer_{name}" for name in DIM_CUSTOMER.column_names}
        types = ", ".join(_typed(c.name, c.type) for c in SOURCE_COLUMNS if c.name in needed)
        database.execute(
            'create table messages as select incarnation, topic, partition, "offset", key, time,'
            f" message_order, {types}"
            f" from read_parquet('{folder / RAW}/*/*.parquet', hive_partitioning = false)"
        )

        def latest(key: str) -> str:
            return (
                f"messages semi join (select {key}, max(message_order) as message_order"
                f" from messages group by all) as latest using ({key}, message_order)"
            )

        def write(dataset: Any, query: str) -> None:
            target = folder / TRANSFORMED / dataset.folder
            if dataset.partition_by:
                target /= f"{dataset.partition_by}={ingest_date}"
            target.mkdir(parents=True)
            columns = ", ".join(f'"{name}"' for name in dataset.column_names)
            database.execute(
                f"copy (select {columns} from ({query})) to '{target / 'part-0.parquet'}'"
                " (format parquet, compression zstd)"
            )

        for dataset, key in _ORDERED.items():
            prefix = "customer_" if dataset is DIM_CUSTOMER else ""
            names = ", ".join(
                name if name in (key, "message_order") else f"{prefix}{name} as {name}"
                for name in dataset.column_names
            )
            write(dataset, f"select {names} from {latest(key)}")
        for dataset in (DIM_LOCATION, DIM_SHIPPING):
            identity, *others = dataset.columns
            names = ", ".join(column.name for column in others)
            digest = _hashed({column.name: column.type for column in others})
            database.execute(
                f"create table {dataset.name} as select *, {digest} as {identity.name}"
                f" from (select distinct {names} from messages)"
            )
            write(dataset, f"from {dataset.name}")
        joins = " ".join(
            f"join {dataset.name} on "
            + " and ".join(
                f"latest_messages.{c.name} is not distinct from {dataset.name}.{c.name}"
                for c in dataset.columns[1:]
            )
            for dataset in (DIM_LOCATION, DIM_SHIPPING)
        )
        identity = _hashed(
            {"incarnation": "string", "topic": "string", "partition": "int32", "offset": "int64"}
        )
        database.execute(
            f"create table latest_messages as select *, {identity} as metadata_id,"
            f" date '{ingest_date}' as ingest_date from {latest('order_item_id')}"
        )
        write(DIM_METADATA, "from latest_messages")
        write(
            FACT_ORDER,
            "select latest_messages.*, dim_location.location_id, dim_shipping.shipping_id"
            f" from latest_messages {joins}",
        )


def build(file: Path, folder: Path, ingest_date: str, *, plain_copy: bool) -> dict[str, Any]:
    """Everything below ``folder``; returns what ``supply_until_star`` tells as well."""
    began, imported_cpu = time.perf_counter(), time.process_time()
    stream = stream_file(file, folder, ingest_date, plain_copy=plain_copy)
    landed, landed_cpu = time.perf_counter(), time.process_time()
    build_star(folder, ingest_date)
    ended, ended_cpu = time.perf_counter(), time.process_time()
    return {
        "seconds": {"sinks": landed - began, "star": ended - landed},
        "cpu": {
            "start": imported_cpu,
            "sinks": landed_cpu - imported_cpu,
            "star": ended_cpu - landed_cpu,
        },
        "messages": stream.sent,
        "produced_a_second": stream.sent / stream.produced_s,
        "consumed_a_second": stream.sent / stream.consumed_s,
        "own_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    print(
        json.dumps(
            build(
                Path(sys.argv[1]),
                Path(sys.argv[2]),
                sys.argv[3],
                plain_copy="--plain-copy" in sys.argv[4:],
            )
        )
    )

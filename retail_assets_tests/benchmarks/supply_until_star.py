"""The product from a file to the star, in one recorded run: what the bare script does as well.

Here: the run that `retail-assets run supply_chain --stream FILE` makes, up to the star; on request
the seconds of what it is made of. Not here: warehouse and marts, figures held against a limit.

    python -m retail_assets_tests.benchmarks.supply_until_star STAGE FILE DATE [--profile]

STAGE is "both", "sinks" (FILE is produced and lands) or "star" (of what has landed). DATE
(YYYY-MM-DD) is the ingest date. The last line
it prints is a JSON object, see ``Told``.
"""

import json
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from retail_assets.process import QuickEnd, spare_garbage_collection

if TYPE_CHECKING:
    import dagster as dg

SINKS, STAR, BOTH = "sinks", "star", "both"
_PRODUCED = re.compile(r"([\d,]+) messages delivered.*?, ([\d,]+) a second")


@dataclass
class Told:
    """What is printed: seconds by stage, messages a second each way, this process's own figures.

    ``cpu`` are this process's seconds, all threads, by stage, the start before and the rest apart;
    those of the database server, a child, are not among them. ``parts`` are, where they were asked
    for, calls, wall seconds, and CPU seconds of the calling thread and of the whole process, by
    part.
    """

    seconds: dict[str, float]
    cpu: dict[str, float] = field(default_factory=dict)
    messages: int = 0
    produced_a_second: float = 0.0
    consumed_a_second: float = 0.0
    batches: int = 0
    own_peak_mib: float = 0.0
    parts: dict[str, list[float]] = field(default_factory=dict)


class Parts:
    """Calls, wall and CPU seconds of functions, each with what it calls.

    The process's CPU seconds are of all that ran meanwhile, so that those of parts that run side
    by side have the same in them.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._guard = threading.Lock()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Time a block."""
        clocks = (time.perf_counter, time.thread_time, time.process_time)
        began = [clock() for clock in clocks]
        try:
            yield
        finally:
            passed = [clock() - start for clock, start in zip(clocks, began, strict=True)]
            with self._guard:
                known = self.seconds.get(name, [0.0] * 4)
                new = [1.0, *passed]
                self.seconds[name] = [a + b for a, b in zip(known, new, strict=True)]

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def call(*arguments: Any, **named: Any) -> Any:
            with self.of(name):
                return function(*arguments, **named)

        return call

    def iterated(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The generator function; only what it does itself is timed."""

        def call(*arguments: Any, **named: Any) -> Iterator[Any]:
            iterator = iter(function(*arguments, **named))
            while True:
                with self.of(name):
                    found = next(iterator, self)
                if found is self:
                    return
                yield found

        return call


def watch_stages(stack: ExitStack) -> Parts:
    """Time both stages until the stack is closed: three calls of a run."""
    from retail_assets.defs.supply_chain import star
    from retail_assets.feeds.stream.batches import Drain

    parts = Parts()
    for owner, name, stage in (
        (Drain, "run", SINKS),
        (star, "build_star", STAR),
        (star, "check_star", STAR),
    ):
        found = parts.timed(stage, getattr(owner, name))
        stack.enter_context(patch.object(owner, name, found))
    return parts


def watch_parts(stack: ExitStack) -> Parts:
    """Time the parts of a run until the stack is closed; what that costs is in its figures."""
    import psycopg

    from retail_assets.defs.supply_chain import fast_messages, star, stream
    from retail_assets.defs.supply_chain.star import typed
    from retail_assets.feeds.stream import sinks
    from retail_assets.feeds.stream.batches import Drain
    from retail_assets.resources import operational_db
    from retail_assets.resources.broker.resource import BrokerResource
    from retail_assets.resources.lake import LakeResource
    from retail_assets.resources.spark import SparkResource

    parts = Parts()

    def statement(cursor: Any, query: Any, *arguments: Any, **named: Any) -> Any:
        text = query.decode() if isinstance(query, bytes) else str(query)
        with parts.of(f"PostgreSQL: {' '.join(text.split()[:2])}"):
            return execute(cursor, query, *arguments, **named)

    execute = psycopg.Cursor.execute
    stack.enter_context(patch.object(psycopg.Cursor, "execute", statement))
    for owner, attribute, name in (
        (stream, "examine_source", "producer: examine the file"),
        (stream, "stream_file", "producer: all, from the first row on"),
        (fast_messages, "parse_messages", "batch: parse"),
        (sinks.LakeSink, "write", "batch: Parquet"),
        (Drain, "_land", "batch: land, all of it"),
        (sinks.LakeSink, "commit", "land: into the lake"),
        (sinks, "_dated", "land: rows of a partition"),
        (sinks, "insert_new", "land: COPY and insert"),
        (BrokerResource, "commit", "land: commit to the broker"),
        (BrokerResource, "watermarks", "batch: watermarks"),
        (LakeResource, "put_files", "lake: put files"),
        (psycopg.Connection, "commit", "PostgreSQL: commit"),
        (psycopg.Connection, "connect", "PostgreSQL: connect"),
        (star, "plan_build", "star: what is new"),
        (typed, "_look_at", "star: look at the messages' texts"),
        (star, "stage_messages", "star: rows of messages, all of it"),
        (star.Merger, "require_all", "star: whether all rows are there"),
        (star.Merger, "merge", "star: merge"),
        (star, "publish", "star: publish"),
        (star, "build_star", "star: build, all of it"),
        (star, "check_star", "star: check"),
        (SparkResource, "write", "star: Spark writes a frame"),
    ):
        found = parts.timed(name, getattr(owner, attribute))
        stack.enter_context(patch.object(owner, attribute, found))
    for owner, attribute, name in (
        (stream, "read_messages", "producer: rows to JSON"),
        (BrokerResource, "read", "batch: read from the broker"),
        (operational_db, "copy_text", "land: COPY's text"),
    ):
        found = parts.iterated(name, getattr(owner, attribute))
        stack.enter_context(patch.object(owner, attribute, found))
    return parts


def run_until_star(stage: str, file: Path, ingest_date: str, *, profile: bool = False) -> Told:
    """Execute the stage, as `retail-assets run` does, on the environment's settings.

    Raises:
        SystemExit: the run failed.
    """
    from retail_assets.defs.registry import load_domain
    from retail_assets.defs.supply_chain.contract import DOMAIN
    from retail_assets.instance import open_instance
    from retail_assets.settings import load_settings

    settings = load_settings()
    domain = load_domain(DOMAIN)
    from retail_assets.definitions import build_defs
    from retail_assets.defs.supply_chain.feed import FEED
    from retail_assets.feeds.stream import step_config

    both = [FEED.messages_job, FEED.star_job]
    jobs = {SINKS: both[:1], STAR: both[1:], BOTH: both}[stage]
    values = {"ingest_date": ingest_date, "file": str(file)}
    config = step_config(FEED.micro_batch, **values) if stage != STAR else {}
    with open_instance(settings) as instance, ExitStack() as stack:
        definitions = build_defs(settings, domains=[domain])
        keys = [
            key
            for job in jobs
            for key in definitions.resolve_job_def(job).asset_layer.executable_asset_keys
        ]
        parts = watch_parts(stack) if profile else Parts()
        stages = watch_stages(stack)
        started = time.process_time()
        result = definitions.resolve_job_def(DOMAIN).execute_in_process(
            instance=instance, raise_on_error=False, asset_selection=keys, run_config=config
        )
        if not result.success:
            raise SystemExit("the run failed; its events above say why")
        told = _told(instance, result)
    told.cpu = {"start": started} | {name: found[3] for name, found in stages.seconds.items()}
    told.cpu["rest"] = time.process_time() - sum(told.cpu.values())
    told.parts = parts.seconds
    told.own_peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return told


def _told(instance: "dg.DagsterInstance", result: "dg.ExecuteInProcessResult") -> Told:
    told = Told({})
    for event in result.filter_events(lambda e: e.is_step_success):
        seconds = event.step_success_data.duration_ms / 1000
        told.seconds[STAR if str(event.step_key).endswith(STAR) else SINKS] = seconds
    for event in result.filter_events(lambda e: e.is_step_materialization):
        metadata = event.materialization.metadata
        if "messages_a_second" in metadata:
            told.messages = int(metadata["messages"].value)
            told.batches = int(metadata["batches"].value)
            told.consumed_a_second = float(metadata["messages_a_second"].value)
    for entry in instance.all_logs(result.run_id):
        if found := _PRODUCED.search(entry.user_message):
            told.produced_a_second = float(found[2].replace(",", ""))
    return told


if __name__ == "__main__":
    with QuickEnd():
        spare_garbage_collection()
        print(
            json.dumps(
                asdict(
                    run_until_star(
                        sys.argv[1],
                        Path(sys.argv[2]).absolute(),
                        sys.argv[3],
                        profile="--profile" in sys.argv[4:],
                    )
                )
            )
        )

"""The supply chain's contestants: what is prepared for each, how it runs, what they must agree on.

Here: homes, commands, the order of runs, which servers a tenfold run is on. Not here: the
contestants themselves (bare_supply_chain.py, supply_until_star.py), what tables hold
(supply_content.py), printing (supply_report.py).
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retail_assets.defs.supply_chain.contract import DOMAIN, LANDED, STREAMING, TOPIC
from retail_assets.defs.supply_chain.sample import SampleCounts, write_sample
from retail_assets.resources.operational_db.embedded import EmbeddedPostgres
from retail_assets.settings import PROJECT_ROOT
from retail_assets_tests.benchmarks.measure import Measurement, child_environment, run
from retail_assets_tests.benchmarks.supply_content import describe_contents
from retail_assets_tests.benchmarks.supply_until_star import BOTH, SINKS, STAR
from retail_assets_tests.benchmarks.tables import (
    BIN,
    TablesDiffer,
    code_state,
    differences,
    module_command,
)

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

BARE, PRODUCT, WHOLE = "supply_bare", "supply_product", "supply_whole"
COLD = "supply_whole_cold"
LOAD, MARTS, OTHER = "load", "marts", "other"
# The same stages by themselves, of one and of three times the messages.
FLAT = {(stage, times): f"supply_{stage}_{times}x" for times in (1, 3) for stage in (SINKS, STAR)}
TENFOLD = {times: f"supply_kafka_{times}x" for times in (1, 10)}

SCENARIOS = ("supply", "supply_tenfold")
# As many items as the published file has: 180,519.
ORDERS, SEED = 65_752, 7
_TINY_ORDERS = 200
_EMBEDDED = "embedded"
_CONNECT_S = 30
_TABLES = {dataset.name for dataset in LANDED}


@dataclass(frozen=True)
class Servers:
    """A Kafka of its own, and PostgreSQL: a URL, or ``embedded``; without ``kafka``, why not."""

    kafka: str = ""
    postgres: str = _EMBEDDED
    reason: str = ""


@dataclass
class Results:
    """What was measured, and what the contestants' tables were.

    ``told`` is what each run printed, by contestant; ``steps`` the seconds of whole runs by stage;
    ``samples`` and ``file_mib`` the files that were streamed, by how many times the size asked for.
    """

    measurements: dict[str, list[Measurement]] = field(default_factory=dict)
    told: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    steps: list[dict[str, float]] = field(default_factory=list)
    differences: dict[str, list[str]] = field(default_factory=dict)
    samples: dict[int, SampleCounts] = field(default_factory=dict)
    file_mib: dict[int, float] = field(default_factory=dict)
    servers: Servers = field(default_factory=Servers)
    code_changed: bool = False


class Bench:
    """One benchmark below a scratch folder: prepare once, then measure in turns."""

    def __init__(
        self,
        scratch: Path,
        scenarios: Sequence[str],
        say: Callable[[str], None],
        *,
        orders: int = ORDERS,
    ) -> None:
        self._scratch = scratch / DOMAIN
        self._scenarios = scenarios
        self._say = say
        self._orders = orders
        self._home = self._scratch / "home"
        self._template = self._scratch / "template"
        self._bare = self._scratch / "bare"
        # Over midnight all contestants still write the same partition.
        self._date = f"{datetime.now(UTC):%Y-%m-%d}"
        self._described: dict[str, dict[str, Any]] = {}
        self.results = Results()

    def prepare(self) -> None:
        """All that is not measured: the files, a warm home, one run of each contestant."""
        self._scratch.mkdir()
        if "supply_tenfold" in self._scenarios:
            self.results.servers = find_servers(os.environ)
            if self.results.servers.reason:
                self._say(f"supply_tenfold is skipped: {self.results.servers.reason}")
        for times in self._sizes():
            self._write_input(times)
        tiny = self._file(0)
        write_sample(tiny, orders=_TINY_ORDERS, seed=SEED, repeats=False)
        if "supply" in self._scenarios:
            self._say("preparing: a whole run in a home that is not there, of a few lines")
            measured = run(self._whole_command(tiny), self._environment(), self._log("cold"))
            self.results.measurements[COLD] = [measured]
        shutil.rmtree(self._home, ignore_errors=True)
        run([str(BIN / "retail-assets"), "status"], self._environment(), self._log("status"))
        shutil.move(self._home, self._template)
        self._say("preparing: each contestant, once over these lines")
        if "supply" in self._scenarios:
            self._run_bare(0)
        self._run_product(BOTH, 0)
        self.results.told.clear()

    def measure(self, repeat: int) -> None:
        """Every contestant ``repeat`` times, in turns, so that noise meets all alike.

        Of the runs with more messages there is one: they are for memory, and for how time grows.

        Raises:
            TablesDiffer: see ``Results.differences``.
        """
        before = code_state()
        once = (*FLAT.values(), *TENFOLD.values())
        for turn in range(1, repeat + 1):
            for name, contestant in self._contestants().items():
                if turn > 1 and name in once:
                    continue
                measured = contestant()
                self.results.measurements.setdefault(name, []).append(measured)
                self._say(
                    f"{turn}/{repeat} {name}: {measured.wall_s:.2f} s wall,"
                    f" {measured.cpu_s:.2f} s CPU, {measured.peak_mib:.0f} MiB"
                )
        self.results.code_changed = code_state() != before
        if any(self.results.differences.values()):
            raise TablesDiffer(json.dumps(self.results.differences, indent=1))

    def profile(self) -> dict[str, list[float]]:
        """One more run of the product, in parts: calls, wall and CPU seconds of each."""
        self._run_product(BOTH, 1, "--profile")
        found: dict[str, list[float]] = self.results.told[PRODUCT].pop()["parts"]
        return found

    def _sizes(self) -> list[int]:
        sizes = {1}
        if "supply" in self._scenarios:
            sizes |= {times for _, times in FLAT}
        if self.results.servers.kafka:
            sizes |= set(TENFOLD)
        return sorted(sizes)

    def _contestants(self) -> dict[str, Callable[[], Measurement]]:
        chosen: dict[str, Callable[[], Measurement]] = {}
        if "supply" in self._scenarios:
            chosen[BARE] = lambda: self._compared(BARE, self._run_bare(1))
            chosen[PRODUCT] = lambda: self._compared(PRODUCT, self._run_product(BOTH, 1))
            chosen[WHOLE] = lambda: self._compared(WHOLE, self._run_whole())
            # In this order: a star is of what the sinks before it have.
            for (stage, times), name in FLAT.items():
                chosen[name] = partial(self._run_stage, stage, times, name)
        if self.results.servers.kafka:
            for times, name in TENFOLD.items():
                chosen[name] = partial(self._run_on_servers, times, name)
        return chosen

    def _file(self, times: int) -> Path:
        return self._scratch / f"orders-{times}x.csv"

    def _write_input(self, times: int) -> None:
        orders = self._orders * times
        self._say(f"preparing: a file of {orders:,} orders")
        counts = write_sample(self._file(times), orders=orders, seed=SEED, repeats=False)
        self.results.samples[times] = counts
        self.results.file_mib[times] = self._file(times).stat().st_size / 1024**2

    def _log(self, name: str) -> Path:
        return self._scratch / f"{name}.log"

    def _environment(self, **variables: str) -> dict[str, str]:
        return child_environment(RETAIL_HOME=str(self._home), COLUMNS="200", **variables)

    def _take_home(self) -> None:
        """A home with Dagster's instance and an empty database, whose server does not run."""
        shutil.rmtree(self._home, ignore_errors=True)
        shutil.copytree(self._template, self._home)
        _make_database(self._home)

    def _whole_command(self, file: Path) -> list[str]:
        return [str(BIN / "retail-assets"), "run", DOMAIN, "--stream", str(file)]

    def _run_whole(self) -> Measurement:
        self._take_home()
        measured = run(self._whole_command(self._file(1)), self._environment(), self._log("whole"))
        log = self._log("steps")
        run(module_command("run_steps", 1), self._environment(), log)
        self.results.steps.append(stages_of(_last_line(log)))
        return measured

    def _run_product(self, stage: str, times: int, *options: str) -> Measurement:
        self._take_home()
        return self._run_until_star(stage, times, PRODUCT, *options)

    def _run_stage(self, stage: str, times: int, name: str) -> Measurement:
        if stage == SINKS:
            self._take_home()
        return self._run_until_star(stage, times, name)

    def _run_until_star(
        self, stage: str, times: int, name: str, *options: str, **variables: str
    ) -> Measurement:
        log = self._log(name)
        file = self._file(times)
        command = module_command("supply_until_star", stage, file, self._date, *options)
        measured = run(command, self._environment(**variables), log)
        self.results.told.setdefault(name, []).append(_last_line(log))
        return measured

    def _run_bare(self, times: int) -> Measurement:
        shutil.rmtree(self._bare, ignore_errors=True)
        self._bare.mkdir()
        _make_database(self._bare)
        log = self._log(BARE)
        command = module_command("bare_supply_chain", self._file(times), self._bare, self._date)
        measured = run(command, child_environment(), log)
        self.results.told.setdefault(BARE, []).append(_last_line(log))
        return measured

    def _run_on_servers(self, times: int, name: str) -> Measurement:
        """The product on Kafka; what it left there is deleted, for the next run begins anew."""
        servers = self.results.servers
        self._take_home()
        try:
            measured = self._run_until_star(
                BOTH, times, name, RETAIL_KAFKA=servers.kafka, RETAIL_POSTGRES=servers.postgres
            )
            found = describe_contents(self._home / "lake", self._home, servers.postgres)
            self.results.differences[name] = against_sample(found, self.results.samples[times])
        finally:
            clear_servers(servers)
        return measured

    def _compared(self, name: str, measured: Measurement) -> Measurement:
        """Look at what the first run of a contestant left."""
        if name in self.results.differences:
            return measured
        if name == BARE:
            self._described = describe_contents(self._bare, self._bare)
            sample = self.results.samples[1]
            self.results.differences[name] = against_sample(self._described, sample)
        else:
            found = describe_contents(self._home / "lake", self._home)
            self.results.differences[name] = differences(found, self._described)
        return measured


def stages_of(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of a whole run's steps, by stage."""
    stages = {SINKS: 0.0, STAR: 0.0, LOAD: 0.0, MARTS: 0.0, OTHER: 0.0}
    for step, lasted in seconds.items():
        if step.endswith("micro_batch"):
            stages[SINKS] += lasted
        elif step.endswith(f"_{STAR}"):
            stages[STAR] += lasted
        elif step.removeprefix(f"{DOMAIN}__") in _TABLES:
            stages[LOAD] += lasted
        elif "dbt" in step or "marts" in step:
            stages[MARTS] += lasted
        else:
            stages[OTHER] += lasted
    return stages


def against_sample(found: Mapping[str, dict[str, Any]], sample: SampleCounts) -> list[str]:
    """Whether rows are as many as the generator says that it wrote."""
    expected = {
        "lake": sample.lines,
        "database": sample.lines,
        "dead letters": 0,
        "fact_order": sample.items,
        "dim_metadata": sample.items,
        "dim_customer": sample.customers,
    }
    return [
        f"{name}: {found[name]['rows']} rows, the sample {rows}"
        for name, rows in expected.items()
        if found[name]["rows"] != rows
    ]


def find_servers(environment: Mapping[str, str], folder: Path | None = None) -> Servers:
    """Kafka and PostgreSQL by RETAIL_KAFKA and RETAIL_POSTGRES, else those of `.ci/servers`.

    PostgreSQL is the embedded one where neither names any. Kafka must be without the topic: it is
    made, and deleted. ``folder`` is where `.ci/servers` keeps what it started; LIVE_SERVERS names
    another, as for the tests.
    """
    default = PROJECT_ROOT / ".retail" / "servers" / "run"
    folder = folder or Path(environment.get("LIVE_SERVERS", default))
    lines: dict[str, str] = {}
    if (folder / "servers.env").is_file():
        text = (folder / "servers.env").read_text()
        lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    kafka = environment.get("RETAIL_KAFKA", _EMBEDDED)
    kafka = kafka if kafka != _EMBEDDED else lines.get("KAFKA_SERVERS", "")
    postgres = environment.get("RETAIL_POSTGRES", _EMBEDDED)
    postgres = postgres if postgres != _EMBEDDED else lines.get("POSTGRES_URL", _EMBEDDED)
    if not kafka:
        return Servers(
            reason="no Kafka is named: set RETAIL_KAFKA, or start one by .ci/servers start"
        )
    if reason := _why_not(kafka, postgres):
        return Servers(reason=reason)
    return Servers(kafka, postgres)


def _why_not(kafka: str, postgres: str) -> str:
    """Why these servers cannot be used; nothing where they can."""
    from confluent_kafka import KafkaException

    try:
        topics = _admin(kafka).list_topics(timeout=_CONNECT_S).topics
    except KafkaException as error:
        return f"{kafka} does not answer: {error.args[0].str()}"
    taken = f"the topic {TOPIC} at {kafka}" if TOPIC in topics else ""
    if postgres != _EMBEDDED:
        import psycopg

        try:
            with psycopg.connect(postgres, connect_timeout=_CONNECT_S) as connection:
                there = connection.execute("select to_regnamespace(%s)::text", [STREAMING])
                (name,) = there.fetchone() or (None,)
        except psycopg.OperationalError as error:
            return f"the PostgreSQL that is named does not answer: {type(error).__name__}"
        taken = taken or (f"the schema {name} of the PostgreSQL" if name else "")
    return f"{taken} is there already, and would be deleted" if taken else ""


def _admin(kafka: str) -> "AdminClient":
    from confluent_kafka.admin import AdminClient

    return AdminClient({"bootstrap.servers": kafka, "log_level": 2})


def clear_servers(servers: Servers) -> None:
    """Delete the topic and the schema that a run made, and wait until the topic is gone."""
    admin = _admin(servers.kafka)
    if TOPIC in admin.list_topics(timeout=_CONNECT_S).topics:
        admin.delete_topics([TOPIC])[TOPIC].result()
    deadline = time.monotonic() + 60
    while TOPIC in admin.list_topics(timeout=_CONNECT_S).topics and time.monotonic() < deadline:
        time.sleep(0.2)
    if servers.postgres != _EMBEDDED:
        import psycopg

        with psycopg.connect(servers.postgres) as connection:
            connection.execute(f"drop schema if exists {STREAMING} cascade")


def _make_database(home: Path) -> None:
    """Make the embedded server's data; the server is stopped again."""
    EmbeddedPostgres.attach(home)
    EmbeddedPostgres.leave(home)


def _last_line(log: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(log.read_text(errors="replace").strip().splitlines()[-1])
    return found

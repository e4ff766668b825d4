"""Spark: one session a process, and all reading and writing by it.

Here: the engine (embedded, a JVM here, a cluster), and the idioms that every engine executes
alike. Not here: what is made of the rows (each domain's transforms.py), the lake's partitions
(resources/lake).

The embedded engine is Sail, a Spark Connect server in this process. It differs from the JVM's
Spark where that loses data without a word: partitions are overwritten by deleting the others, a
missing path has no rows, types are inferred otherwise. Hence files are read by name as text
columns, and written to a folder that is not there yet.
"""

import atexit
import os
import re
import shutil
import socket
import threading
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import dagster as dg

from retail_assets.dataset import Dataset
from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.lake import LakeResource
from retail_assets.resources.lake.exchange import Exchange, RemoteFolder
from retail_assets.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyspark.sql import DataFrame, SparkSession

EMBEDDED = "embedded"
_CONNECT_S = 10.0
# A lost server is given up after half a minute; by default a call, and then the exit, try for ten.
_MOST_TRIES = 6
_LONGEST_WAIT_MS = 10_000
# A JVM's default heap is a quarter of the machine, too little for a group-by of a large drop.
_SESSION_TIMEOUT_S = 24 * 3600
_LOCAL_HEAP = "2g"
_PYSPARK_MODES = (
    "SPARK_REMOTE",
    "SPARK_LOCAL_REMOTE",
    "SPARK_API_MODE",
    "SPARK_CONNECT_MODE_ENABLED",
)
# Of the embedded engine; the JVM passes over these names.
_PARQUET = {
    # DuckDB's own size: the default of a million rows leaves a reader one core.
    "max_row_group_size": "122880",
    # Half of the bytes are identities, of which each is there once: a dictionary of them is made
    # and thrown away. Without any, files are a tenth smaller, and written and loaded sooner.
    "dictionary_enabled": "false",
    # By row group, as readers look; by page they are a page's work each.
    "statistics_enabled": "chunk",
    "data_page_row_count_limit": "122880",
}
# Names of types as Spark's DDL has them, where they are not ours.
_SPARK_TYPES = {"int32": "int", "int64": "bigint", "bool": "boolean", "timestamp": "timestamp_ntz"}
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
# A path that an engine would take for a pattern, or for a file to be left out.
_NOT_BY_NAME = re.compile(r".*[*?\[\]{}].*|(.*/)?[._][^/]*", re.DOTALL)


class SparkUnavailableError(PermanentError):
    """The Spark that the settings name cannot be started here."""


class SparkUnreachableError(TransientError):
    """The Spark that the settings name does not answer."""


class UnsharedLakeError(PermanentError):
    """A cluster does not see the files that it is to read, or this process not what it wrote."""


class UnreadablePathError(PermanentError):
    """A file lies where no Spark would find it by its name."""


@dataclass(frozen=True)
class WrittenFile:
    """A Parquet file that Spark wrote: where, and the partition columns' values in order."""

    path: Path
    values: tuple[str, ...]


class SparkResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The Spark that types files and messages (RETAIL_SPARK).

    ``master`` is embedded, local[...], spark://HOST:PORT or sc://HOST:PORT.
    A cluster takes and gives files by the lake (``exchange``): through a bucket, which it must be
    able to read and write, or in a folder that all its machines have under the same path.
    """

    master: str
    java_home: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> "SparkResource":
        """The Spark that the settings name."""
        return cls(master=settings.spark, java_home=settings.java_home)

    @property
    def is_cluster(self) -> bool:
        """Whether it runs elsewhere, and need not see this machine's files."""
        return "://" in self.master

    @property
    def session(self) -> "SparkSession":
        """The process's session, started at first use.

        Raises:
            SparkUnavailableError: no Java for a JVM, or this process has another Spark already.
            SparkUnreachableError: nothing listens where the cluster should be.
        """
        if not _uses_connect(self.master):
            _require_java(self.master, self.java_home)
        return _Engine.of(self.master).session

    @contextmanager
    def exchange(self, lake: LakeResource, run_id: str) -> "Iterator[Exchange]":
        """A place of the lake's to hand files over; gone afterwards, whatever happened.

        Raises:
            UnsharedLakeError: a cluster cannot read there or write, as a first file shows. An
                engine may read what it does not see as files without rows, and tell nobody.
        """
        with lake.exchange(run_id, cluster=self.is_cluster) as exchange:
            if self.is_cluster:
                self._require_shared(lake, exchange)
            yield exchange

    def _require_shared(self, lake: LakeResource, exchange: Exchange) -> None:
        engine = _Engine.of(self.master)
        if lake.root in engine.shared:
            return
        sent = exchange.folder / "shared.csv"
        sent.write_text("part,text\nshared,file\n")
        found = "nothing of a file that it was to copy"
        try:
            frame = self.read_csv(exchange.place(sent), ["part", "text"])
            if self.write(frame, exchange.target("shared"), ["part"]):
                engine.shared.add(lake.root)
                return
        except (PermanentError, TransientError):
            raise
        except Exception as error:
            found = _cause(error)
            raise self._unshared(lake, found) from error
        raise self._unshared(lake, found)

    def _unshared(self, lake: LakeResource, found: str) -> UnsharedLakeError:
        needs = (
            "A cluster needs Hadoop's connector to Cloud Storage on the class path of its driver"
            " and executors (spark.jars in spark-defaults.conf; for spark:// the driver is this"
            " process, and SPARK_CONF_DIR names that file's folder), and an account that has"
            " roles/storage.objectUser on the bucket. Set that up"
            if lake.root.startswith("gs://")
            else "Every machine of a cluster must have this folder under the same path, and may"
            " write to it. Share it, or set RETAIL_LAKE=gs://BUCKET"
        )
        return UnsharedLakeError(
            f"RETAIL_SPARK is {self.master!r}; it cannot exchange files by {lake.root}: found"
            f" {found}. {needs}, or set RETAIL_SPARK=embedded."
        )

    def read_csv(
        self, file: Path | str, columns: Sequence[str], *, quoted: bool = False
    ) -> "DataFrame":
        """Rows of a UTF-8 CSV file with a header, all columns as text, empty fields as null.

        ``file`` is a path, or the URI of an object that is there (``Exchange.place``).
        ``columns`` name the fields by position. Every row must have as many (tabular.scan_csv sees
        to that): the engines fail or differ on others. ``quoted`` says that values may hold quotes,
        commas or line ends: then the file is read by one task.

        Raises:
            FileNotFoundError: an engine would read a missing file as one without rows.
            UnreadablePathError: so would it read a file of this name.
        """
        from pyspark.sql.types import StringType, StructField, StructType

        path = _by_name(file)
        schema = StructType([StructField(name, StringType()) for name in columns])
        # Quotes may stand around values of any file; the JVM's default escape is a backslash.
        options = {"header": "true", "mode": "FAILFAST", "quote": '"', "escape": '"'}
        if quoted:
            options["multiLine"] = "true"
        return self.session.read.schema(schema).options(**options).csv(path)

    def read_parquet(self, files: Sequence[Path | str], dataset: Dataset) -> "DataFrame":
        """Rows of Parquet files that have the columns of ``dataset``, all of them as nullable.

        ``files`` are paths, or URIs of objects that are there (``Exchange.place``), each by its
        name; what a folder's name says of them is no column.

        Raises:
            ValueError: there is no file.
            FileNotFoundError: an engine would read a missing file as one without rows.
            UnreadablePathError: so would it read a file of this name.
        """
        if not files:
            raise ValueError(f"no file of {dataset.table} to read")
        # Not by the engine's own look at them: a file of other types would have its say.
        schema = ", ".join(
            f"`{c.name}` {_SPARK_TYPES.get(c.type, c.type)}" for c in dataset.columns
        )
        return self.session.read.schema(schema).parquet(*(_by_name(file) for file in files))

    def write(
        self, frame: "DataFrame", folder: Path | RemoteFolder, by: Sequence[str]
    ) -> list[WrittenFile]:
        """Write a frame as Parquet below ``folder``, a folder for each value of the columns ``by``.

        These are text, neither null nor empty: such rows would land in another partition on one
        engine. Returns the files, which are here (``Exchange.target``), by their values, in order;
        none for a frame without rows.

        Raises:
            FileExistsError: the folder is there; writing into it would not replace it everywhere.
        """
        if isinstance(folder, Path) and folder.exists():
            raise FileExistsError(str(folder))
        path = str(folder.absolute()) if isinstance(folder, Path) else folder.uri
        writer = frame.write.partitionBy(*by).options(**_PARQUET)
        writer.parquet(path, mode="append", compression="zstd")
        if not isinstance(folder, Path):
            folder = folder.fetch()
        written = []
        for file in (p for p in folder.rglob("*.parquet") if p.is_file()):
            values = [
                unquote(part.partition("=")[2]) for part in file.relative_to(folder).parts[:-1]
            ]
            if len(values) != len(by) or not all(values) or _NULL_PARTITION in values:
                raise ValueError(f"{file}: expected a folder for each of {', '.join(by)}")
            written.append(WrittenFile(file, tuple(values)))
        return sorted(written, key=lambda file: (file.values, file.path))


class _Engine:
    """A started Spark. One a process: pyspark knows no two kinds at once."""

    _lock = threading.Lock()
    _current: "_Engine | None" = None

    def __init__(self, master: str) -> None:
        self.master = master
        self.shared: set[str] = set()
        self._server: Any = None
        with _told(master):
            self.session = self._start()
        # Before the server's own end: a client without its server waits for minutes.
        atexit.register(self.stop)

    @classmethod
    def of(cls, master: str) -> "_Engine":
        with cls._lock:
            if cls._current is None:
                cls._current = cls(master)
            if cls._current.master != master:
                raise SparkUnavailableError(
                    f"this process runs Spark as {cls._current.master!r}, found {master!r} asked"
                    " for: one process takes one Spark. Use a process for each."
                )
            return cls._current

    def _start(self) -> "SparkSession":
        from dagster_pyspark import LazyPySparkResource

        if self.master == EMBEDDED:
            # Its log is of no use to who runs a pipeline; RUST_LOG=info brings it back.
            os.environ.setdefault("RUST_LOG", "error")
            # Its allocator gives memory back after a second, not after ten milliseconds, and asks
            # for no huge pages, of which the kernel clears more than is ever used.
            os.environ.setdefault("MIMALLOC_PURGE_DELAY", "1000")
            os.environ.setdefault("MIMALLOC_ALLOW_THP", "0")
            # It ends a session that asks nothing for five minutes; a run may wait longer, for a
            # lock, between two steps. The server ends with the process in any case.
            os.environ.setdefault("SAIL_SPARK__SESSION_TIMEOUT_SECS", str(_SESSION_TIMEOUT_S))
            from pysail.spark import SparkConnectServer

            self._server = SparkConnectServer("127.0.0.1", 0)
            self._server.start(background=True)
            host, port = self._server.listening_address
            config = {"spark.remote": f"sc://{host}:{port}"}
        elif self.master.startswith("sc://"):
            _require_listener(self.master)
            config = {"spark.remote": self.master}
        else:
            if self.master.startswith("spark://"):
                _require_listener(self.master)
            config = {
                "spark.master": self.master,
                "spark.app.name": "retail-assets",
                "spark.driver.memory": _LOCAL_HEAP,
                "spark.ui.enabled": "false",
                "spark.ui.showConsoleProgress": "false",
                "spark.sql.session.timeZone": "UTC",
                "spark.log.level": "ERROR",
            }
        # pyspark leaves such marks to its children, which may be of another kind: RETAIL_SPARK
        # decides.
        is_jvm = not _uses_connect(self.master)
        marks = {name: os.environ.pop(name, None) for name in _PYSPARK_MODES if is_jvm}
        try:
            session: SparkSession = LazyPySparkResource(spark_config=config).spark_session
        except BaseException:
            os.environ.update({name: mark for name, mark in marks.items() if mark is not None})
            raise
        if not is_jvm:
            from pyspark.sql.connect.client.retries import DefaultPolicy

            policy = DefaultPolicy(max_retries=_MOST_TRIES, max_backoff=_LONGEST_WAIT_MS)
            session.client.set_retry_policies([policy])
            _ = session.version  # the first call: what listens there may be no Spark
        return session

    def stop(self) -> None:
        """End the session, then the server."""
        with suppress(Exception):  # at the end of a process there is nobody to tell
            if _uses_connect(self.master):
                self.session.client.set_retry_policies([])
            self.session.stop()
        if self._server is not None:
            with suppress(Exception):
                self._server.stop()


def _by_name(file: Path | str) -> str:
    """The path by which an engine finds exactly this file, which is there."""
    if isinstance(file, Path):
        if not file.is_file():
            raise FileNotFoundError(str(file))
        file = file.absolute()
    path = str(file)
    if _NOT_BY_NAME.fullmatch(path):
        raise UnreadablePathError(
            f"{file}: expected a path without any of * ? [ ] {{ }}, and a file whose name does"
            " not begin with . or _: Spark would find no rows there. Move it."
        )
    return path


def _uses_connect(master: str) -> bool:
    """Whether the session talks to a server; else it is a JVM of this process."""
    return master == EMBEDDED or master.startswith("sc://")


@contextmanager
def _told(master: str) -> "Iterator[None]":
    try:
        yield
    except (PermanentError, TransientError):
        raise
    except Exception as error:
        found = (
            f"RETAIL_SPARK is {master!r}; its session could not be started"
            f" ({type(error).__name__}: {' '.join(str(error).split())[:300]})."
        )
        if "://" in master:
            raise SparkUnreachableError(
                f"{found} Look at the cluster, or set RETAIL_SPARK=embedded."
            ) from error
        hint = "" if master == EMBEDDED else " A JVM needs Java 17 or newer; embedded needs none."
        raise SparkUnavailableError(f"{found}{hint}") from error


def _cause(error: Exception) -> str:
    """What an engine says in one line: of a JVM's trace, what caused it all."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [""]
    causes = [line for line in lines if line.startswith("Caused by: ")]
    said = causes[-1].removeprefix("Caused by: ") if causes else " ".join(lines[:2])
    return f"{type(error).__name__}: {said[:300]}"


def _require_java(master: str, home: str | None) -> None:
    found = shutil.which("java") if home is None else shutil.which("java", path=f"{home}/bin")
    if found is None:
        raise SparkUnavailableError(
            f"RETAIL_SPARK is {master!r}, which needs Java 17 or newer; none was found. Install"
            " one (JAVA_HOME or PATH names it), or set RETAIL_SPARK=embedded, which needs none."
        )


def _require_listener(master: str) -> None:
    """One of the addresses must answer: the clients themselves would try for minutes."""
    addresses = master.partition("://")[2].split(",")
    for address in addresses:
        host, _, port = address.partition(":")
        with suppress(OSError), socket.create_connection((host, int(port)), _CONNECT_S):
            return
    raise SparkUnreachableError(
        f"RETAIL_SPARK is {master!r}; nothing answers there. Start the cluster, or set"
        " RETAIL_SPARK=embedded."
    )

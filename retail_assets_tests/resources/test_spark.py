"""Tests of retail_assets.resources.spark: the embedded engine here, real servers, none at all."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retail_assets.dataset import Column, Dataset
from retail_assets.resources import spark
from retail_assets.resources.spark import (
    EMBEDDED,
    SparkResource,
    SparkUnavailableError,
    SparkUnreachableError,
    UnreadablePathError,
    WrittenFile,
)
from retail_assets.settings import load_settings
from retail_assets_tests.conftest import PROJECT

SPARK = SparkResource(master=EMBEDDED)
LOOPBACK = "127.0.0.1"

Cells = tuple[str | None, ...]
Read = Callable[..., list[Cells]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Rows of a file of these bytes, in no order of the engine's."""

    def read(data: str, *, quoted: bool = False, name: str = "table.csv") -> list[Cells]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode())
        frame = SPARK.read_csv(path, ["a", "b", "c"], quoted=quoted)
        assert [(f.name, f.dataType.simpleString()) for f in frame.schema] == [
            (name, "string") for name in "abc"
        ]
        return sorted((tuple(row) for row in frame.collect()), key=repr)

    return read


# ---- reading


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("x,y,z\n1,2,3\n", [("1", "2", "3")]),
        ("x,y,z\n1,2,3", [("1", "2", "3")]),
        ("x,y,z\n", []),
        ("x,y,z", []),
        (",,\n,,\n", [(None, None, None)]),
        ("x,y,z\n,2,\n", [(None, "2", None)]),
        ("x,y,z\n 1,2 , \n", [(" 1", "2 ", " ")]),
        ("x,y,z\n\\N,null,NULL\n", [("\\N", "null", "NULL")]),
        ("x,y,z\n007,1.50,2018-01-01\n", [("007", "1.50", "2018-01-01")]),
        ("x,y,z\ncafé,日本,🙂\n", [("café", "日本", "🙂")]),
        ("x,y,z\n#1,-- 2,'3'\n", [("#1", "-- 2", "'3'")]),
        ("x,y,z\na\\,\\n,\\\\\n", [("a\\", "\\n", "\\\\")]),
        ("x,y,z\n\u2028,\u0085,\x0b\n", [("\u2028", "\u0085", "\x0b")]),
        ('"x","y","z"\n"1","a\\","c\\"\n"","2",\n', [("1", "a\\", "c\\"), (None, "2", None)]),
    ],
)
@pytest.mark.parametrize("quoted", [False, True])
def test_values_come_as_the_text_that_they_are(
    read: Read, data: str, expected: list[Cells], quoted: bool
) -> None:
    assert read(data, quoted=quoted) == expected


@pytest.mark.parametrize(
    "value",
    ["a,b", ",", "a\nb", "\n", "a\r\nb", "a\rb", 'a"b', '"', '""', '",\n"', "\\", '\\"', " "],
)
def test_quoted_values_may_hold_anything(read: Read, value: str) -> None:
    escaped = value.replace('"', '""')
    data = f'"x","y","z"\n"{escaped}",2,"{escaped}"\n4,5,6\n'

    assert set(read(data, quoted=True)) == {("4", "5", "6"), (value, "2", value)}


@pytest.mark.parametrize("name", ["a b.csv", "a%41.csv", "a#b.csv", "é+&=.csv", "d=1/_x/t.csv"])
def test_a_file_of_an_odd_name_is_read(read: Read, name: str) -> None:
    assert read("x,y,z\n1,2,3\n", name=name) == [("1", "2", "3")]


@pytest.mark.parametrize(
    "name", ["[a].csv", "a*.csv", "a?.csv", "{a,b}.csv", "[a]/t.csv", "_a.csv", ".a.csv"]
)
def test_a_file_that_would_have_no_rows_or_others_is_refused(read: Read, name: str) -> None:
    with pytest.raises(UnreadablePathError) as error:
        read("x,y,z\n1,2,3\n", name=name)

    assert name in str(error.value)


def test_a_relative_name_is_one_of_this_process(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read("x,y,z\n1,2,3\n")
    monkeypatch.chdir(tmp_path)

    frame = SPARK.read_csv(Path("table.csv"), ["a", "b", "c"])
    assert [tuple(row) for row in frame.collect()] == [("1", "2", "3")]
    written = SPARK.write(frame, Path("folder"), ["a"])

    assert [file.path.exists() for file in written] == [True]


@pytest.mark.parametrize("name", ["absent.csv", "folder"])
def test_a_missing_file_is_an_error_and_no_table_of_no_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()

    with pytest.raises(FileNotFoundError, match=name):
        SPARK.read_csv(tmp_path / name, ["a"])


# ---- writing


def frame_of(*rows: Cells) -> Any:
    return SPARK.session.createDataFrame(list(rows), "part string, kind string, value string")


def contents(written: list[WrittenFile]) -> dict[tuple[str, ...], list[Any]]:
    """The values by the partition's, all files of one together."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for file in written:
        values = pq.ParquetFile(file.path).read().to_pydict()
        assert list(values) == ["value"]
        found.setdefault(file.values, []).extend(values["value"])
    return {key: sorted(values) for key, values in found.items()}


def test_each_value_has_a_folder_and_the_files_are_told(tmp_path: Path) -> None:
    frame = frame_of(("b", "y", "1"), ("a", "y", "2"), ("b", "x", "3"), ("b", "y", "4"))

    written = SPARK.write(frame, tmp_path / "out", ["part", "kind"])

    assert contents(written) == {("a", "y"): ["2"], ("b", "x"): ["3"], ("b", "y"): ["1", "4"]}
    assert [file.values for file in written] == sorted(file.values for file in written)
    assert {file.path for file in written} == set((tmp_path / "out").rglob("*.parquet"))
    assert {file.path.parent.relative_to(tmp_path) for file in written} == {
        Path("out/part=a/kind=y"),
        Path("out/part=b/kind=x"),
        Path("out/part=b/kind=y"),
    }


def test_files_are_packed_by_zstd(tmp_path: Path) -> None:
    (file,) = SPARK.write(frame_of(("a", "b", "1")), tmp_path / "out", ["part", "kind"])

    assert pq.read_metadata(file.path).row_group(0).column(0).compression == "ZSTD"


ODD_VALUES = [
    *("a b", " ", "a/b", "a=b", "a:b", "%", "%41", "#", "?", "*", "[x]", "{x}", "..", ".", "\\"),
    *(
        "'q'",
        '"q"',
        "é",
        "e\u0301",
        "日本",
        "🙂",
        "\t",
        "\n",
        "\x1f",
        "x.parquet",
        "a+b",
        "_x",
        ".x",
    ),
]


def test_values_that_no_folder_can_be_named_by_come_back(tmp_path: Path) -> None:
    frame = frame_of(*((value, "k", str(n)) for n, value in enumerate(ODD_VALUES)))

    written = SPARK.write(frame, tmp_path / "out", ["kind", "part"])

    assert contents(written) == {("k", value): [str(n)] for n, value in enumerate(ODD_VALUES)}


@settings(deadline=None, max_examples=15)
@given(
    values=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=5),
        min_size=1,
        max_size=10,
        unique=True,
    )
)
def test_any_value_comes_back(tmp_path_factory: pytest.TempPathFactory, values: list[str]) -> None:
    frame = frame_of(*((value, "k", value) for value in values))

    written = SPARK.write(frame, tmp_path_factory.mktemp("any") / "out", ["part", "kind"])

    assert contents(written) == {(value, "k"): [value] for value in values}


@pytest.mark.parametrize("value", [None, ""])
def test_a_row_without_a_value_is_an_error(tmp_path: Path, value: str | None) -> None:
    with pytest.raises(ValueError, match="a folder for each of part, kind"):
        SPARK.write(frame_of(("a", "k", "1"), ("a", value, "2")), tmp_path / "x", ["part", "kind"])


def test_no_rows_are_no_files(tmp_path: Path) -> None:
    assert SPARK.write(frame_of(("a", "k", "1")).limit(0), tmp_path / "out", ["part"]) == []


def test_a_folder_that_is_there_is_refused_and_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "out" / "part=z" / "kept.parquet"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"kept")

    with pytest.raises(FileExistsError, match="out"):
        SPARK.write(frame_of(("a", "k", "1")), tmp_path / "out", ["part"])

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]
    assert kept.read_bytes() == b"kept"


# ---- one engine a process


def child(code: str, *, stdin: int | None = subprocess.DEVNULL, **variables: str) -> Any:
    """A process that runs ``code``, its output piped."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RETAIL_", "SPARK_"))}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env=environment | variables,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_settings_name_the_spark() -> None:
    found = SparkResource.of(load_settings(spark="local[3]", java_home="/srv/jdk"))

    assert (found.master, found.java_home) == ("local[3]", "/srv/jdk")


def test_every_resource_has_the_same_session() -> None:
    assert SparkResource(master=EMBEDDED).session is SPARK.session


def test_another_spark_in_this_process_is_refused() -> None:
    assert SPARK.session

    with pytest.raises(SparkUnavailableError) as error:
        _ = SparkResource(master=f"sc://{LOOPBACK}:1").session

    assert "runs Spark as 'embedded'" in str(error.value)
    assert f"'sc://{LOOPBACK}:1'" in str(error.value)


USE = """
import atexit, time
from concurrent.futures import ThreadPoolExecutor
from retail_assets.resources.spark import SparkResource
with ThreadPoolExecutor(8) as threads:  # eight assets that start at once
    sessions = list(threads.map(lambda _: SparkResource(master="embedded").session, range(8)))
print(len(set(map(id, sessions))), sessions[0].range(7).count(), flush=True)
"""


@pytest.mark.parametrize(("last", "code"), [("", 0), ("raise SystemExit(3)", 3)])
def test_a_process_that_used_the_session_ends_soon_and_in_silence(last: str, code: int) -> None:
    with child(USE + last) as process:
        assert process.stdout.readline().split() == ["1", "7"]
        done = time.monotonic()
        output, errors = process.communicate(timeout=60)

    assert time.monotonic() - done < 10
    assert (process.returncode, output, errors) == (code, "", "")


# ---- servers


@pytest.fixture
def no_engine_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not started any Spark."""
    monkeypatch.setattr(spark._Engine, "_current", None)


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as server:
        return int(server.getsockname()[1])


def is_told_unreachable(master: str) -> None:
    start = time.monotonic()
    with pytest.raises(SparkUnreachableError) as error:
        _ = SparkResource(master=master).session

    assert time.monotonic() - start < 15
    assert f"RETAIL_SPARK is '{master}'; nothing answers there" in str(error.value)


@pytest.mark.usefixtures("no_engine_yet")
@pytest.mark.parametrize("host", [LOOPBACK, "no-such-host.invalid"])
def test_a_connect_server_that_is_not_there_is_told_quickly(host: str) -> None:
    is_told_unreachable(f"sc://{host}:{free_port()}")


def test_another_service_at_that_address_is_told() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        master = f"sc://{LOOPBACK}:{server.getsockname()[1]}"
        code = f"""
from retail_assets.resources import spark
spark._MOST_TRIES = 1
try:
    spark.SparkResource(master={master!r}).session
except spark.SparkUnreachableError as error:
    print(error)
"""

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    server.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        with child(code) as process:
            output, errors = process.communicate(timeout=60)
        server.shutdown(socket.SHUT_RDWR)

    assert f"RETAIL_SPARK is '{master}'; its session could not be started" in output, errors
    assert "UNAVAILABLE" in output


@pytest.mark.usefixtures("no_engine_yet", "java")
def test_masters_that_are_not_there_are_told_quickly() -> None:
    is_told_unreachable(f"spark://{LOOPBACK}:{free_port()},{LOOPBACK}:{free_port()}")


@pytest.mark.usefixtures("no_engine_yet")
@pytest.mark.parametrize("master", ["local[*]", "spark://127.0.0.1:7077"])
@pytest.mark.parametrize("where", ["JAVA_HOME", "PATH"])
def test_a_jvm_without_java_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, master: str, where: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    home = str(tmp_path / "jdk") if where == "JAVA_HOME" else None

    with pytest.raises(SparkUnavailableError) as error:
        _ = SparkResource(master=master, java_home=home).session

    assert f"RETAIL_SPARK is '{master}', which needs Java 17 or newer" in str(error.value)


def test_a_java_that_does_not_start_is_told(tmp_path: Path) -> None:
    java_command = tmp_path / "bin" / "java"
    java_command.parent.mkdir()
    java_command.write_text("#!/bin/sh\necho 'too old' >&2\nexit 1\n")
    java_command.chmod(0o755)
    code = f"""
from retail_assets.resources.spark import SparkResource, SparkUnavailableError
try:
    SparkResource(master="local[1]", java_home={str(tmp_path)!r}).session
except SparkUnavailableError as error:
    print(error)
"""

    with child(code, JAVA_HOME=str(tmp_path)) as process:
        output, errors = process.communicate(timeout=60)

    assert "RETAIL_SPARK is 'local[1]'; its session could not be started" in output, errors
    assert "Java 17 or newer" in output
    assert process.returncode == 0


SERVE = """
import sys
from pysail.spark import SparkConnectServer
server = SparkConnectServer("127.0.0.1", 0)
server.start(background=True)
print(server.listening_address[1], flush=True)
sys.stdin.read()
server.stop()
"""

CLIENT = """
import json, os, sys
from pathlib import Path
from retail_assets.resources.spark import SparkResource
os.chdir({folder!r})  # the server is elsewhere
resource = SparkResource(master="{master}")
frame = resource.read_csv(Path("in.csv"), ["part", "value"])
written = resource.write(frame, Path("out"), ["part"])
print(json.dumps([[str(file.path.absolute()), *file.values] for file in written]), flush=True)
sys.stdin.read()
"""


@contextmanager
def client_of(master: str, folder: Path, **variables: str) -> Iterator[Any]:
    """A process that read and wrote a file by a server, waiting for the end of its input."""
    folder.joinpath("in.csv").write_text("part,value\nb,1\na,2\nb,3\n")
    code = CLIENT.format(master=master, folder=str(folder))
    with child(code, stdin=subprocess.PIPE, **variables) as process:
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            found: dict[str, list[str]] = {}
            for path, part in json.loads(line):
                found.setdefault(part, []).extend(pq.ParquetFile(path).read()["value"].to_pylist())
            assert {part: sorted(values) for part, values in found.items()} == {
                "a": ["2"],
                "b": ["1", "3"],
            }
            yield process
        finally:
            process.stdin.close()
            process.wait(timeout=120)
    assert process.returncode == 0


@contextmanager
def connect_server() -> Iterator[tuple[str, Any]]:
    with child(SERVE, stdin=subprocess.PIPE, RUST_LOG="error") as server:
        try:
            yield f"sc://{LOOPBACK}:{int(server.stdout.readline())}", server
        finally:
            if server.poll() is None:
                server.communicate(timeout=60)


def test_a_connect_server_serves_one_process_after_another(tmp_path: Path) -> None:
    with connect_server() as (master, server):
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            with client_of(master, tmp_path / name):
                pass
        assert server.poll() is None  # a client's end is not the server's


def test_a_server_that_dies_does_not_keep_its_client(tmp_path: Path) -> None:
    with connect_server() as (master, server), client_of(master, tmp_path):
        server.kill()
        server.wait()
        start = time.monotonic()
    # What was being asked of it is tried for half a minute; by pyspark's own default it is ten.
    assert time.monotonic() - start < 90


def wait_for(port: int, process: Any) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None and time.monotonic() < deadline
        try:
            socket.create_connection((LOOPBACK, port), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return


@contextmanager
def daemon(folder: Path, *arguments: str) -> Iterator[Any]:
    """A process of Spark's own standalone cluster, on loopback."""
    command = Path(pyspark.__file__).parent / "bin" / "spark-class"
    home = {"SPARK_LOCAL_IP": LOOPBACK, "SPARK_WORKER_DIR": str(folder / "work")}
    with (
        (folder / f"{arguments[0]}.log").open("w") as log,
        subprocess.Popen(
            [shutil.which("bash") or "bash", str(command), *arguments],
            cwd=folder,
            env=os.environ | home,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.mark.usefixtures("java")
def test_a_standalone_cluster_serves(tmp_path: Path) -> None:
    port = free_port()
    master = f"spark://{LOOPBACK}:{port}"
    deploy = "org.apache.spark.deploy"
    address = ["--host", LOOPBACK, "--port", str(port), "--webui-port", "0"]
    worker = ["--host", LOOPBACK, "--webui-port", "0", "--cores", "1", "--memory", "1g", master]
    with daemon(tmp_path, f"{deploy}.master.Master", *address) as master_process:
        wait_for(port, master_process)
        with (
            daemon(tmp_path, f"{deploy}.worker.Worker", *worker),
            client_of(master, tmp_path, SPARK_LOCAL_IP=LOOPBACK),
        ):
            pass


# ---- reading Parquet


TYPED = Dataset(
    "shop",
    "typed",
    "One column of each type.",
    tuple(
        Column(f"a {kind}", kind, kind)
        for kind in ("string", "int32", "int64", "bool", "date", "timestamp", "decimal(18,2)")
    ),
)


def write_typed(folder: Path, text: str) -> tuple[Path, dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    row = dict(
        zip(
            TYPED.column_names,
            (text, 1, 2**40, True, date(2026, 1, 2), datetime(2026, 1, 2, 3, 4, 5, 6), "1.20"),
            strict=True,
        )
    )
    row["a decimal(18,2)"] = Decimal("1.20")
    file = folder / "t.parquet"
    pq.write_table(pa.Table.from_pylist([row], TYPED.arrow_schema), file)
    return file, row


def test_parquet_is_read_by_name_as_the_types_of_a_dataset(tmp_path: Path) -> None:
    first, row = write_typed(tmp_path / "a string=other", "first")
    second, other = write_typed(tmp_path / "b c", "second")
    write_typed(tmp_path / "left out", "third")

    found = SPARK.read_parquet([first, str(second)], TYPED).toArrow()

    assert sorted(found.to_pylist(), key=repr) == sorted([row, other], key=repr)
    kinds = [str(f.type).replace("string_view", "string") for f in found.schema]
    assert kinds == [str(column.arrow_type) for column in TYPED.columns]


def test_missing_or_hidden_parquet_is_an_error(tmp_path: Path) -> None:
    hidden, _ = write_typed(tmp_path, "x")
    hidden = hidden.rename(tmp_path / "_t.parquet")

    with pytest.raises(FileNotFoundError, match="absent"):
        SPARK.read_parquet([tmp_path / "absent.parquet"], TYPED)
    with pytest.raises(UnreadablePathError, match=r"_t\.parquet"):
        SPARK.read_parquet([hidden], TYPED)
    with pytest.raises(ValueError, match=r"no file of shop\.typed"):
        SPARK.read_parquet([], TYPED)


def test_a_session_outlives_a_wait_between_two_steps() -> None:
    """The engine's own limit is five minutes; that ours reaches it is seen by one of a second."""
    assert spark._SESSION_TIMEOUT_S >= 24 * 3600
    code = (
        "import os, time\n"
        "from retail_assets.resources import spark\n"
        "os.environ.pop('SAIL_SPARK__SESSION_TIMEOUT_SECS', None)\n"
        "spark._SESSION_TIMEOUT_S = 1\n"
        "session = spark.SparkResource(master='embedded').session\n"
        "session.sql('select 1').collect()\n"
        "time.sleep(4)\n"
        "session.sql('select 1').collect()\n"
    )
    with child(code) as process:
        _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "is not running" in told

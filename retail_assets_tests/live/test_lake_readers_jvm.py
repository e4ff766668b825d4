"""The JVM's Spark, with Delta's own reader, reads the lake's tables as they were committed.

It runs in a process of its own, for a process takes one Spark.
"""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from retail_assets.resources.lake.folder import LocalLake
from retail_assets_tests.conftest import PROJECT
from retail_assets_tests.live.conftest import Servers
from retail_assets_tests.resources.test_lake_readers import counted, write_tables

pytestmark = pytest.mark.live


def test_the_jvms_spark_reads_a_table_as_it_was_committed(
    servers: Servers, java: int, tmp_path: Path
) -> None:
    jars = servers.address("DELTA_LIBRARIES", "delta")
    versions = write_tables(LocalLake(root=str(tmp_path / "lake")))
    asked = json.dumps([(of.uri, of.version) for of in versions])
    answer = tmp_path / "answer"

    done = subprocess.run(
        [sys.executable, "-m", __name__, jars, asked, str(answer)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    for of, found in zip(versions, pickle.loads(answer.read_bytes()), strict=True):
        assert counted(found) == counted(of.rows), of


def _read(jars: Path, asked: list[tuple[str, int | None]], answer: Path) -> None:
    from pyspark.sql import SparkSession

    options: dict[str, bool | float | int | str | None] = {
        "spark.jars": ",".join(map(str, jars.glob("*.jar"))),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.databricks.delta.snapshotPartitions": "1",
        "spark.sql.shuffle.partitions": "1",
        "spark.ui.enabled": "false",
        # A naive timestamp has no zone that could show.
        "spark.sql.session.timeZone": "Asia/Kuala_Lumpur",
    }
    session = SparkSession.builder.master("local[1]").config(map=options).getOrCreate()
    found = []
    for uri, version in asked:
        reader = session.read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        found.append([row.asDict() for row in reader.load(uri).collect()])
    answer.write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    _read(Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3]))

"""A BigQuery emulator that is killed during loads: running again gives the right table."""

import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retail_assets.dataset import Column, Dataset
from retail_assets.errors import TransientError
from retail_assets.resources.warehouse import Origin, bigquery
from retail_assets.resources.warehouse.bigquery import BigQueryWarehouse
from retail_assets_tests.live.bigquery_proxy import bigquery_proxy
from retail_assets_tests.live.conftest import Servers, wait_until

pytestmark = pytest.mark.live

SALES = Dataset(
    schema="shop",
    name="sales",
    description="Sales.",
    partition_by="day",
    columns=(
        Column("id", "int64", "Key."),
        Column("day", "date", "Day."),
        Column("price", "decimal(12,3)", "Pounds."),
    ),
)
SHOPS = Dataset(
    schema="landed_shop",
    domain="shop",
    name="shops",
    description="Shops.",
    columns=(Column("id", "int64", "Key."),),
)
DAYS = [date(2011, 1, 1) + timedelta(days=n) for n in range(40)]
ROWS_A_DAY = 500
KILLS = 6


class OwnWarehouse:
    """An emulator of one test's own, which keeps its tables, to be killed and started again."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.buckets = folder / "buckets"
        ports = []
        for _ in range(2):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                ports.append(str(free.getsockname()[1]))
        self.host = f"http://127.0.0.1:{ports[0]}"
        self._command = [
            *(binary, "start", "--rest-host", "127.0.0.1", "--rest-port", ports[0]),
            *("--grpc-port", ports[1], "--persistent", "--data-dir", str(folder / "data")),
            *("--log-level", "error"),
        ]
        self._log = folder / "emulator.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "BQEMU_GCS_LOCAL_ROOT": str(self.buckets)}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        wait_until(self._answers, seconds=60)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.host}/", timeout=2).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def own_warehouse(servers: Servers, tmp_path: Path) -> Iterator[OwnWarehouse]:
    server = OwnWarehouse(servers.address("BQEMULATOR", "warehouse"), tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def write_files(buckets: Path, version: int) -> list[str]:
    """A file a day, every row of which says the version; their gs:// locations."""
    uris = []
    for day in DAYS:
        rows = {
            "id": list(range(ROWS_A_DAY)),
            "day": [day] * ROWS_A_DAY,
            "price": [Decimal(version)] * ROWS_A_DAY,
        }
        name = f"shop/v{version}/day={day}/part.parquet"
        (buckets / name).parent.mkdir(parents=True)
        pq.write_table(pa.table(rows, schema=SALES.arrow_schema), buckets / name)
        uris.append(f"gs://{name}")
    return uris


def test_a_table_without_partitions_holds_what_was_loaded_last(
    own_warehouse: OwnWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files_of(version: int, *counts: int) -> list[str]:
        uris = []
        for number, count in enumerate(counts):
            name = f"shop/shops/v{version}-{number}.parquet"
            (own_warehouse.buckets / name).parent.mkdir(parents=True, exist_ok=True)
            rows = pa.table({"id": [version] * count}, schema=SHOPS.arrow_schema)
            pq.write_table(rows, own_warehouse.buckets / name)
            uris.append(f"gs://{name}")
        return uris

    with bigquery_proxy(own_warehouse.host) as proxy:
        warehouse = BigQueryWarehouse(
            project="retail-test", location="EU", emulator_host=proxy.url, job_s=60
        )
        changes = [warehouse.replace_partitions, warehouse.replace_table] * 5
        contents: list[tuple[int, ...]] = [(3,), (2, 2), (), (), (5,), (), (1, 2), (3, 4), (0,)]
        for version, (change, counts) in enumerate(zip(changes, contents, strict=False)):
            # From the seventh on they are staged and swapped.
            monkeypatch.setattr(bigquery, "URIS_A_LOAD_JOB", 1 if version > 5 else 10)
            origin = Origin(f"run-{version}", "shops")

            loaded = change(SHOPS, files_of(version, *counts), {"": f"v{version}"}, origin)

            assert loaded.rows == {"": sum(counts)}
            found = warehouse.query("select id, count(*) from landed_shop.shops group by id")
            assert found == ([(version, sum(counts))] if sum(counts) else [])
            assert warehouse.loaded_versions(SHOPS) == {"": f"v{version}"}
        assert warehouse.row_counts() == {"landed_shop.shops": 0}


def test_a_load_whose_server_is_killed_is_made_up_for_by_a_re_run(
    own_warehouse: OwnWarehouse,
) -> None:
    chance = random.Random(7)
    with bigquery_proxy(own_warehouse.host) as proxy:
        warehouse = BigQueryWarehouse(
            project="retail-test",
            location="EU",
            emulator_host=proxy.url,
            request_s=10,
            retry_s=1.0,
            job_s=20,
            first_wait_s=0.1,
        )

        def load(version: int, run_id: str) -> None:
            versions = {str(day): f"v{version}" for day in DAYS}
            warehouse.replace_partitions(SALES, uris[version], versions, Origin(run_id, "sales"))

        def state() -> tuple[set[int], set[str], int]:
            """Versions that rows say, that the record says, and the number of rows."""
            rows = warehouse.query("select price, count(*) from shop.sales group by price")
            recorded = warehouse.loaded_versions(SALES)
            return {int(p) for p, _ in rows}, set(recorded.values()), sum(n for _, n in rows)

        uris = {n: write_files(own_warehouse.buckets, n) for n in range(KILLS + 1)}
        started = time.monotonic()
        load(0, "first")
        needed = time.monotonic() - started
        interrupted = 0
        for version in range(1, KILLS + 1):
            failures: list[BaseException] = []

            def attempt(version: int = version, failures: list[BaseException] = failures) -> None:
                try:
                    load(version, f"killed-{version}")
                except TransientError as error:
                    failures.append(error)

            running = Thread(target=attempt)
            running.start()
            time.sleep(chance.uniform(0, needed))
            own_warehouse.kill()
            running.join()
            own_warehouse.start()
            interrupted += len(failures)

            # Not what is there now: the emulator's transactions do not outlive a kill as
            # BigQuery's do (the DELETE alone was seen, and the rows without their record).
            load(version, f"again-{version}")
            assert state() == ({version}, {f"v{version}"}, len(DAYS) * ROWS_A_DAY)
        assert interrupted, "no load was interrupted"

"""Bad sources: each gives one clear error or quarantined rows, and never half a partition."""

import gzip
import hashlib
import http.server
import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest
import xlsxwriter

from retail_assets.dataset import Dataset
from retail_assets.definitions import build_resources
from retail_assets.defs.online_retail.contract import ONLINE_RETAIL_DATA
from retail_assets.defs.online_retail.feed import FEED
from retail_assets.domain import Asked
from retail_assets.feeds.snapshot import source
from retail_assets.feeds.snapshot.definitions import build_assets
from retail_assets.resources.http.download import FETCH_RETRIES, fetch
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.settings import Settings, load_settings
from retail_assets_tests.conftest import Command

QUARANTINE = FEED.quarantine
HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
GOOD = "536365,85123A,HOLDER,6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom\n"
NEXT = "536370,22728,CLOCK,24,2010-12-02 08:45:00,3.75,12583.0,France\n"


class Domain:
    """The domain's assets up to the warehouse, over one lake, run on any source."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def settings(self, *sources: Path | str) -> Settings:
        return load_settings(
            home=self.home,
            online_retail_source=",".join(map(str, sources)),
            online_retail_start="2010-12-01",
            online_retail_end="2010-12-20",
        )

    def run(self, *sources: Path | str, **config: bool | str) -> dg.ExecuteInProcessResult:
        settings = self.settings(*sources)
        with dg.DagsterInstance.ephemeral() as instance:
            return dg.materialize(
                build_assets(FEED, settings),
                resources=build_resources(settings),
                instance=instance,
                raise_on_error=False,
                run_config={"ops": {"online_retail__raw_online_retail": {"config": config}}},
                tags={
                    "dagster/asset_partition_range_start": "2010-12-01",
                    "dagster/asset_partition_range_end": "2010-12-20",
                },
            )

    def fails(self, *sources: Path | str, **config: bool | str) -> str:
        """The one error that the run on these sources ends with; nothing was retried."""
        result = self.run(*sources, **config)
        assert not result.success
        assert not result.filter_events(lambda e: e.is_step_up_for_retry)
        (failure,) = result.filter_events(lambda e: e.is_step_failure)
        assert failure.step_key == "online_retail__raw_online_retail"
        data = failure.step_failure_data
        assert data.user_failure_data is not None  # a Failure, not a traceback alone
        return str(data.error.message)

    def quarantined(self) -> dict[str, list[str]]:
        """Reasons by partition."""
        return {
            file.parent.name: pq.read_table(file)["reason"].to_pylist()
            for file in self.files(QUARANTINE)
        }

    def files(self, dataset: Dataset) -> list[Path]:
        """Files of a table of the lake that have rows."""
        lake = LocalLake(root=str(self.home / "lake"))
        return [Path(uri) for uri in lake.partition_uris(dataset)]

    def rows(self) -> int:
        """Rows in the processed zone."""
        return sum(pq.read_metadata(file).num_rows for file in self.files(ONLINE_RETAIL_DATA))

    def state(self) -> dict[str, str]:
        """Every file that readers see, by content."""
        return {
            str(file): hashlib.sha256(file.read_bytes()).hexdigest()
            for dataset in (ONLINE_RETAIL_DATA, QUARANTINE)
            for file in self.files(dataset)
        }


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    """A home in which a good source was loaded: what bad input must leave alone."""
    domain = Domain(tmp_path / "home")
    good = tmp_path / "good.csv"
    good.write_text(HEADER + GOOD + NEXT)
    assert domain.run(good).success
    assert domain.rows() == 2
    return domain


def write(tmp_path: Path, content: str | bytes, name: str = "source.csv") -> Path:
    """A source file of this content."""
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def zipped(tmp_path: Path, content: bytes) -> bytes:
    """The bytes of a zip that holds source.csv."""
    path = tmp_path / "whole.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("source.csv", content)
    return path.read_bytes()


def sheet(tmp_path: Path, *rows: list[Any]) -> Path:
    """A workbook of one sheet."""
    path = tmp_path / "source.xlsx"
    with xlsxwriter.Workbook(str(path)) as workbook:
        page = workbook.add_worksheet("Online Retail")
        for number, row in enumerate(rows):
            page.write_row(number, 0, row)
    return path


def test_missing_file(domain: Domain, tmp_path: Path) -> None:
    before = domain.state()
    message = domain.fails(tmp_path / "nowhere.csv")
    assert "nowhere.csv" in message
    assert domain.state() == before


@pytest.fixture
def server() -> Iterator[str]:
    """An http server that has nothing."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815  (the name that http.server looks for)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_404(domain: Domain, server: str) -> None:
    before = domain.state()
    message = domain.fails(f"{server}/online_retail.zip?key=s3cr3t")
    assert "404" in message
    assert "s3cr3t" not in message
    assert domain.state() == before


@dataclass
class Down:
    """A server that answers nothing but that it is down."""

    url: str = ""
    asked: int = 0
    retry_after: str | None = None


@pytest.fixture
def down() -> Iterator[Down]:
    found = Down()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked += 1
            self.send_response(503)
            if found.retry_after is not None:
                self.send_header("Retry-After", found.retry_after)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        found.url = f"http://127.0.0.1:{serving.server_port}/online_retail.zip"
        yield found
        serving.shutdown()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads are tried as often as ever, without the waits between."""
    retries = replace(FETCH_RETRIES, sleep=lambda _: None)
    monkeypatch.setattr(source, "fetch", partial(fetch, retries=retries))


def test_a_step_asks_an_origin_that_is_down_one_set_of_times(
    domain: Domain, down: Down, hasty: None
) -> None:
    message = domain.fails(down.url)

    assert "expected HTTP 200, found HTTP 503" in message
    assert down.asked == FETCH_RETRIES.attempts


def test_a_plan_asks_an_origin_nothing(domain: Domain, down: Down) -> None:
    """That the source cannot be had is its asset's to say, once."""
    planned = FEED.plan(domain.settings(down.url), Asked(), dg.DagsterInstance.ephemeral)

    assert next(iter(planned)).asset_selection == [FEED.raw_key]
    assert down.asked == 0


def test_a_command_asks_an_origin_that_is_down_one_set_of_times(
    retail_assets: Command, tmp_path: Path, down: Down
) -> None:
    down.retry_after = "0"
    done = retail_assets(
        "run", "online_retail", home=tmp_path / "home", online_retail_source=down.url
    )

    assert done.returncode == 1
    assert "expected HTTP 200, found HTTP 503" in done.stderr
    assert f"Gave up after {FETCH_RETRIES.attempts} attempts." in done.stderr
    assert down.asked == FETCH_RETRIES.attempts


def test_a_wait_that_the_origin_asks_for_is_left_to_the_step(
    domain: Domain, down: Down, monkeypatch: pytest.MonkeyPatch
) -> None:
    down.retry_after = "1"
    retries = replace(FETCH_RETRIES, max_retry_after_s=0.5)
    monkeypatch.setattr(source, "fetch", partial(fetch, retries=retries))

    result = domain.run(down.url)

    assert not result.success
    assert len(result.filter_events(lambda e: e.is_step_up_for_retry)) == 3
    assert down.asked == 4


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_truncated_zip(domain: Domain, tmp_path: Path, cut: float) -> None:
    before = domain.state()
    content = zipped(tmp_path, (HEADER + GOOD * 500).encode())
    path = write(tmp_path, content[: int(len(content) * cut)], "source.zip")
    message = domain.fails(path)
    assert "source.zip" in message
    assert domain.state() == before


def test_truncated_gzip(domain: Domain, tmp_path: Path) -> None:
    before = domain.state()
    rows = "".join(GOOD.replace("536365", str(n)) for n in range(500000, 509000))
    content = gzip.compress((HEADER + rows).encode())
    message = domain.fails(write(tmp_path, content[:-900], "source.csv.gz"))
    assert "truncated" in message
    assert domain.state() == before


def test_xlsx_without_the_columns(domain: Domain, tmp_path: Path) -> None:
    before = domain.state()
    message = domain.fails(sheet(tmp_path, ["name", "value"], ["a", 1]))
    assert "InvoiceNo or Invoice" in message  # expected
    assert "name, value" in message  # found
    assert domain.state() == before


def test_renamed_column(domain: Domain, tmp_path: Path) -> None:
    before = domain.state()
    text = HEADER.replace("Quantity", "Qty") + GOOD
    message = domain.fails(write(tmp_path, text))
    assert "missing Quantity" in message
    assert "Qty" in message
    assert domain.state() == before


def test_a_part_that_lacks_a_column_is_refused_and_not_skipped(
    domain: Domain, tmp_path: Path
) -> None:
    before = domain.state()
    path = tmp_path / "months.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("01.csv", HEADER + GOOD)
        archive.writestr("02.csv", HEADER.replace("Quantity", "Qty") + NEXT)
        archive.writestr("README.txt", "See the licence.")
    message = domain.fails(path)
    assert "months.zip/02.csv: missing Quantity" in message
    assert domain.state() == before


def test_extra_column_is_kept_in_raw_and_reported(domain: Domain, tmp_path: Path) -> None:
    text = "".join(
        f"{line},{extra}\n"
        for line, extra in zip(
            (HEADER + GOOD + NEXT).splitlines(), ["Channel", "web", "shop"], strict=True
        )
    )
    result = domain.run(write(tmp_path, text))
    assert result.success
    (raw,) = result.asset_materializations_for_node("online_retail__raw_online_retail")
    assert raw.metadata["extra_columns"].value == "Channel"
    stored = list((domain.home / "lake/raw").rglob("source.csv"))
    assert [path.read_text() for path in stored] == [text]


@pytest.mark.parametrize(
    ("row", "partition", "reason"),
    [
        (GOOD.replace(",6,", ",six,"), "invoice_date=2010-12-01", "quantity: expected a whole"),
        (GOOD.replace(",6,", ",6.5,"), "invoice_date=2010-12-01", "quantity: expected a whole"),
        (GOOD.replace("2.55", "2.5555"), "invoice_date=2010-12-01", "unit_price: expected"),
        (GOOD.replace("17850.0", "a"), "invoice_date=2010-12-01", "customer_id: expected"),
        (GOOD.replace("2010-12-01", "2010-13-41"), "invoice_date=__unknown__", "invoice_datetime"),
        (GOOD.replace("2010-12-01", "1910-12-01"), "invoice_date=__unknown__", "a day inside"),
        (GOOD.replace("HOLDER", "HOL\0DER"), "invoice_date=2010-12-01", "a control character"),
        ("536365,85123A,HOLDER\n", "invoice_date=__unknown__", "expected 8 fields, found 3"),
        (GOOD.replace("HOLDER", "a,b,c"), "invoice_date=__unknown__", "expected 8 fields, found"),
    ],
)
def test_a_bad_row_is_quarantined_with_its_reason(
    domain: Domain, tmp_path: Path, row: str, partition: str, reason: str
) -> None:
    result = domain.run(write(tmp_path, HEADER + GOOD + row + NEXT))
    assert result.success
    ((found_partition, (found,)),) = domain.quarantined().items()
    assert found_partition == partition
    assert reason in found
    assert domain.rows() == 2
    (file,) = domain.files(QUARANTINE)
    (text,) = pq.read_table(file)["text"].to_pylist()
    assert "536365" in json.loads(text)[0]


def test_broken_utf8_in_a_utf8_file(domain: Domain, tmp_path: Path) -> None:
    accents = GOOD.replace("HOLDER", "CAFÉ CRÈME").replace("536365", "536366").encode()
    broken = GOOD.encode().replace(b"HOLDER", b"HOL\xffDER")
    result = domain.run(write(tmp_path, HEADER.encode() + accents + broken + NEXT.encode()))
    assert result.success
    assert [r for reasons in domain.quarantined().values() for r in reasons] == [
        "broken text: a byte sequence that is no character"
    ]
    assert domain.rows() == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes"),
        (gzip.compress(b""), "empty"),
        (b"\n\n", "no header"),
        (HEADER.encode(), "a header and no rows"),
    ],
    ids=["0 bytes", "empty gzip", "blank lines", "header alone"],
)
def test_a_source_without_rows_changes_nothing(
    domain: Domain, tmp_path: Path, content: bytes, message: str
) -> None:
    before = domain.state()
    assert message in domain.fails(write(tmp_path, content))
    assert domain.state() == before


def test_a_source_that_would_empty_the_lake_is_refused(domain: Domain, tmp_path: Path) -> None:
    before = domain.state()
    shorter = write(tmp_path, HEADER + GOOD)
    message = domain.fails(shorter)
    assert "would empty 1 of 2 filled days" in message
    assert "--allow-emptying" in message
    assert domain.state() == before
    assert domain.run(shorter, allow_emptying=True).success
    assert domain.rows() == 1


def test_the_command_ends_with_the_reason(retail_assets: Command, tmp_path: Path) -> None:
    source = tmp_path / "nowhere.csv"
    done = retail_assets(
        "run", "online_retail", home=tmp_path / "home", online_retail_source=source
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: online_retail__raw_online_retail")
    assert "nowhere.csv" in last
    assert "Traceback" not in done.stdout + done.stderr

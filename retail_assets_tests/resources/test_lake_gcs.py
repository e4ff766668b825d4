"""Tests of retail_assets.resources.lake over a bucket in this process: the contract, and what is
sent to Google and made of its answers.

What a real server does with the requests is in live/test_lake_gcs.py.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.lake import open_lake
from retail_assets.resources.lake.bucket import GcsLake
from retail_assets.resources.lake.folder import LocalLake
from retail_assets.resources.lake.objects import LakeAccessError, LakeUnreachableError
from retail_assets.settings import load_settings
from retail_assets_tests.resources.bucket_server import (
    BUCKET,
    OBJECTS,
    UPLOAD,
    Answer,
    Request,
    Server,
    Store,
    crc32c,
    lake_at,
    media,
    nothing_there,
    refusal,
    refusal_of,
    running,
    stored,
)
from retail_assets_tests.resources.lake_contract import (
    D1,
    D2,
    SALES,
    LakeContract,
    NewLake,
    content_of,
    publish,
    put,
    rows_of,
)


class TestBucket(LakeContract):
    @pytest.fixture(scope="class")
    @classmethod
    def new_lake(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewLake]:
        with running() as server:
            server.script = Store(lambda: datetime.now(UTC))
            folder = tmp_path_factory.mktemp("cache")
            roots = (f"gs://{BUCKET}/lakes/{n}" for n in itertools.count())
            yield lambda: GcsLake(
                root=next(roots),
                cache_dir=str(folder),
                emulator_host=server.url,
                retry_s=30,
                lease_s=2,
            )


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as one:
        yield one


@pytest.fixture
def lake(server: Server, tmp_path: Path) -> GcsLake:
    return lake_at(server.url, tmp_path)


@pytest.fixture
def store(server: Server) -> Store:
    """What the server keeps, where a test wants it to keep anything."""
    server.script = store = Store()
    return store


# ---- a table's log, by delta-rs


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize("others", [0, 3])
def test_a_commit_whose_answer_was_lost_counts_once(
    server: Server, store: Store, lake: GcsLake, first: bool, dropped: bool, others: int
) -> None:
    """It is in the log, and then the connection is dropped, or a 503 comes; others go on."""
    if not first:
        publish(lake, {D1: [1], D2: [2]}, transactions={"t": (None, 1)})
    waiting = [True]

    def script(request: Request) -> Answer:
        answer = store(request)
        if request.is_xml and request.method == "PUT" and waiting:
            waiting.pop()
            log = request.object.rpartition("/")[0]
            for _ in range(others):
                version = len(store.names(log))
                entry = b'{"commitInfo":{"commit_id":"another"}}'
                store.objects[f"{log}/{version:020}.json"] = (entry, version)
            lost = refusal_of(request, 503, "ServiceUnavailable", "busy")
            return Answer(lost=True) if dropped else lost
        return answer

    server.script = script

    before = None if first else 1
    version = publish(lake, {D1: [3]}, transactions={"t": (before, 2)})

    assert version == (0 if first else 1)
    assert content_of(lake) == ({D1: [3]} if first else {D1: [3], D2: [2]})
    assert lake.table(SALES).snapshot().version == version + others
    assert lake.table(SALES).transactions(["t"])["t"] == 2


@pytest.mark.parametrize(
    ("status", "code", "said", "kind"),
    [
        (403, "AccessDenied", "needs roles/storage.ROLE on the bucket", LakeAccessError),
        (401, "AuthenticationRequired", "gcloud auth application-default login", LakeAccessError),
        (404, "NoSuchBucket", "there is no such bucket, which RETAIL_LAKE", LakeAccessError),
        (429, "SlowDown", "tried for 1 s", LakeUnreachableError),
        (500, "InternalError", "tried for 1 s", LakeUnreachableError),
        (503, "ServiceUnavailable", "tried for 1 s", LakeUnreachableError),
    ],
)
def test_what_refuses_a_tables_log_is_told(
    server: Server,
    store: Store,
    lake: GcsLake,
    status: int,
    code: str,
    said: str,
    kind: type[Exception],
) -> None:
    publish(lake, {D1: [1]})
    lake = lake.model_copy(update={"retry_s": 1.0})

    def refuse_puts(request: Request) -> Answer:
        if request.is_xml and request.method == "PUT":
            return refusal_of(request, status, code, "the words of Google")
        return store(request)

    def refuse_all(request: Request) -> Answer:
        return refusal_of(request, status, code, "the words of Google")

    for script, call, role in (
        (refuse_puts, lambda: lake.table(SALES).commit([], replace=[D1]), "objectUser"),
        (refuse_all, lambda: lake.table(SALES).snapshot(), "objectViewer"),
    ):
        server.script = script
        with pytest.raises(kind, match=said.replace("ROLE", role)) as error:
            call()
        if code != "NoSuchBucket":
            assert "the words of Google" in str(error.value) and "\x1b" not in str(error.value)
        assert "gs://shop-lake" in str(error.value)
    server.script = store
    assert content_of(lake) == {D1: [1]}


def test_a_log_that_is_busy_for_a_moment_is_waited_for(
    server: Server, store: Store, lake: GcsLake
) -> None:
    busy = [429, 503, 429]

    def script(request: Request) -> Answer:
        if request.is_xml and request.method == "PUT" and busy:
            return refusal_of(request, busy.pop(), "SlowDown", "slow down")
        return store(request)

    server.script = script

    assert publish(lake, {D1: [1]}) == 0
    assert not busy


def test_copies_of_a_tables_files_are_kept_and_good_without_asking(
    server: Server, store: Store, lake: GcsLake, tmp_path: Path
) -> None:
    publish(lake, {D1: [1], D2: [2]})
    uris = lake.partition_uris(SALES, [D2, D1])
    for reader in (lake, lake_at(server.url, tmp_path / "another")):
        copies = reader.local_copies(uris)
        assert [pq.read_table(copy)["id"].to_pylist() for copy in copies] == [[2], [1]]
        asked = len(server.requests)
        assert reader.local_copies(uris) == copies
        assert len(server.requests) == asked
    with pytest.raises(FileNotFoundError, match="absent"):
        lake.local_copies([lake.uri("absent.parquet")])
    assert not list((tmp_path / "cache").rglob(".*"))


def test_copies_that_nobody_used_for_a_week_are_removed(
    store: Store, lake: GcsLake, tmp_path: Path
) -> None:
    publish(lake, {D1: [1], D2: [2]})
    old, new = map(Path, lake.local_copies(lake.partition_uris(SALES)))
    long_ago = time.time() - 8 * 24 * 3600
    os.utime(old.parent, (long_ago, long_ago))

    put(lake, "raw/file", "text")

    assert (old.exists(), new.exists()) == (False, True)
    assert content_of(lake) == {D1: [1], D2: [2]}


# ---- objects, by Google's client


def test_an_upload_after_a_503_is_the_same_under_the_same_condition(
    server: Server, lake: GcsLake, tmp_path: Path
) -> None:
    busy = [503, 429]

    def script(request: Request) -> Answer:
        if busy and request.method == "POST":
            return refusal(busy.pop(), "backendError", "try again")
        return nothing_there(request)

    server.script = script
    file = tmp_path / "file"
    file.write_bytes(b"raw")

    lake.put_file("raw/file", file)

    sent = server.sent("POST", UPLOAD)
    assert [(r.query["ifGenerationMatch"], r.content) for r in sent] == [("0", b"raw")] * 3


@pytest.mark.parametrize("same", [True, False])
def test_an_upload_whose_answer_was_lost_is_not_sent_again(
    server: Server, lake: GcsLake, tmp_path: Path, same: bool
) -> None:
    """The first try arrives; the client hears of a 503, tries again, and then of a 412."""
    there: list[bytes] = []

    def script(request: Request) -> Answer:
        if request.method == "GET" and request.object == "raw/file":
            return stored("raw/file", there[0], 11)
        if request.method == "POST" and request.query["ifGenerationMatch"] == "0":
            if there:
                return refusal(412, "conditionNotMet", "At least one precondition failed.")
            there.append(request.content if same else b"another's")
            return refusal(503, "backendError", "try again")
        return nothing_there(request)

    server.script = script
    file = tmp_path / "file"
    file.write_bytes(b"raw")

    lake.put_file("raw/file", file)

    conditions = [r.query["ifGenerationMatch"] for r in server.sent("POST", UPLOAD)]
    assert conditions == ["0", "0"] + ([] if same else ["11"])


def test_a_large_file_goes_up_in_pieces_and_on_from_where_it_broke(
    server: Server, lake: GcsLake, tmp_path: Path
) -> None:
    content = bytes(range(256)) * (40 * 4096)  # 40 MiB
    received = bytearray()
    broken: list[int] = []

    def script(request: Request) -> Answer:
        if request.method == "POST":
            assert request.query["uploadType"] == "resumable"
            return Answer(headers={"Location": f"{server.url}/session"})
        if request.method == "PUT":
            piece = request.headers["content-range"]
            begin = re.match(r"bytes (\d+)-", piece)
            if begin and len(received) == 16 * 1024**2 and not broken:
                received.extend(request.body[: 4 * 1024**2])
                broken.append(1)
                return refusal(503, "backendError", "try again")
            if begin:  # what is there already is ignored, as Google does
                assert int(begin[1]) <= len(received)
                received.extend(request.body[len(received) - int(begin[1]) :])
            if len(received) == len(content):
                return stored("raw/large.csv", content)
            return Answer(308, headers={"Range": f"bytes=0-{len(received) - 1}"})
        return nothing_there(request)

    server.script = script
    file = tmp_path / "large.csv"
    file.write_bytes(content)

    lake.put_file("raw/large.csv", file)

    (begun,) = server.sent("POST", UPLOAD)
    assert begun.query["ifGenerationMatch"] == "0"
    assert received == content
    pieces = [re.findall(r"\d+", r.headers["content-range"]) for r in server.sent("PUT")]
    piece = 16 * 1024**2
    assert [int(p[0]) for p in pieces] == [0, piece, piece, 2 * piece]  # the broken one twice


def test_a_schema_is_read_from_the_footer_alone(
    server: Server, lake: GcsLake, tmp_path: Path
) -> None:
    file = tmp_path / "part.parquet"
    pq.write_table(rows_of(SALES, D1, range(1_000_000)), file, compression="none")
    content = file.read_bytes()
    served: list[int] = []

    def script(request: Request) -> Answer:
        if request.query.get("alt") == "media":
            answer = media(content, request)
            served.append(len(answer.body))
            return answer
        return stored("part.parquet", content)

    server.script = script

    assert lake.read_schema("gs://shop-lake/part.parquet") == SALES.arrow_schema
    assert 0 < sum(served) < 200_000 < len(content)


def test_a_listing_goes_on_page_by_page(server: Server, lake: GcsLake) -> None:
    names = ["raw/d=2/a", "raw/d=2/b", "raw/d=3/"]

    def script(request: Request) -> Answer:
        page = int(request.query.get("pageToken", "0"))
        items = [json.loads(stored(name, b"x", 5).body) for name in names[page : page + 1]]
        answer: dict[str, Any] = {"items": items}
        if page < 3:
            answer["nextPageToken"] = str(page + 1)
        return Answer(body=json.dumps(answer).encode())

    server.script = script

    found = list(lake.list_objects("raw/"))

    assert [(f.name, f.version) for f in found] == [("raw/d=2/a", "5"), ("raw/d=2/b", "5")]
    asked = server.sent("GET", OBJECTS)
    assert [r.query.get("pageToken") for r in asked] == [None, "1", "2", "3"]
    assert {r.query["prefix"] for r in asked} == {"raw/"}


def test_a_lock_is_a_lease_under_conditions(server: Server, lake: GcsLake) -> None:
    with lake.lock("shop"):
        pass

    (taken,), (given,) = server.sent("POST"), server.sent("DELETE")
    assert (taken.object, taken.query["ifGenerationMatch"]) == ("_state/shop.lock", "0")
    assert set(json.loads(taken.content)) == {"owner", "expires"}
    assert (given.query["generation"], given.query["ifGenerationMatch"]) == ("7", "7")


def test_a_dead_lock_is_taken_on_condition_that_it_is_still_the_same(
    server: Server, lake: GcsLake
) -> None:
    def script(request: Request) -> Answer:
        if request.method == "GET":
            return stored("_state/shop.lock", b"{}", 99)  # of 2026-11-21 10:00
        return nothing_there(request)

    server.script = script
    lake._clock = lambda: 4e9

    with lake.lock("shop", timeout_s=1):
        pass

    assert server.sent("POST")[0].query["ifGenerationMatch"] == "99"


@pytest.mark.parametrize(
    ("call", "role"),
    [
        (lambda lake: lake.exists("a"), "objectViewer"),
        (lambda lake: lake.read_state("a"), "objectViewer"),
        (lambda lake: list(lake.list_objects("a")), "objectViewer"),
        (lambda lake: lake.write_state("a", {}), "objectUser"),
        (lambda lake: lake.delete("a"), "objectUser"),
    ],
)
def test_a_403_names_the_missing_role_the_bucket_and_who(
    server: Server, lake: GcsLake, call: Callable[[GcsLake], object], role: str
) -> None:
    who = "retail@shop-1234.iam.gserviceaccount.com does not have storage.objects.get access"
    server.script = lambda _: refusal(403, "forbidden", who)

    with pytest.raises(LakeAccessError) as error:
        call(lake)

    assert isinstance(error.value, PermanentError)
    for part in (f"roles/storage.{role}", "gs://shop-lake", who):
        assert part in str(error.value)
    assert len(server.requests) == 1  # not tried again


def test_a_missing_bucket_is_told_from_a_missing_object(server: Server, lake: GcsLake) -> None:
    server.script = lambda _: refusal(404, "notFound", "The specified bucket does not exist.")

    with pytest.raises(LakeAccessError, match="gs://shop-lake: there is no such bucket"):
        lake.exists("a")

    server.script = nothing_there
    assert not lake.exists("a")


@pytest.mark.parametrize(
    ("status", "reason"),
    [(500, "backendError"), (503, "backendError"), (429, "rateLimitExceeded")],
)
def test_what_passes_by_itself_is_tried_again_and_then_said(
    server: Server, lake: GcsLake, status: int, reason: str
) -> None:
    server.script = lambda _: refusal(status, reason, "the server is busy")

    with pytest.raises(LakeUnreachableError, match=r"gs://shop-lake/_state/a\.json") as error:
        lake.read_state("a")

    assert isinstance(error.value, TransientError)
    assert len(server.requests) > 1


def test_a_quota_that_comes_as_a_403_is_transient(server: Server, lake: GcsLake) -> None:
    server.script = lambda _: refusal(403, "rateLimitExceeded", "slow down")

    with pytest.raises(LakeUnreachableError, match="slow down"):
        lake.exists("a")


def test_a_server_that_is_not_there_is_transient(tmp_path: Path) -> None:
    with running() as gone:
        lake = lake_at(gone.url, tmp_path)

    with pytest.raises(LakeUnreachableError, match="network"):
        lake.exists("a")


def test_content_that_arrives_damaged_is_not_taken(
    server: Server, lake: GcsLake, tmp_path: Path
) -> None:
    def script(request: Request) -> Answer:
        if request.query.get("alt") == "media":
            return Answer(body=b"damaged", headers={"X-Goog-Hash": f"crc32c={crc32c(b'right')}"})
        return stored("raw/file", b"right")

    server.script = script

    with pytest.raises(LakeUnreachableError, match="Checksum mismatch"):
        lake.local_file("raw/file")

    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_without_credentials_the_way_to_them_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))

    with pytest.raises(LakeAccessError, match="gcloud auth application-default login"):
        lake_at(None, tmp_path).exists("a")


@pytest.mark.parametrize("kind", ["external_account", "impersonated_service_account"])
def test_credentials_that_delta_rs_does_not_know_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps({"type": kind}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))

    with pytest.raises(LakeAccessError, match=f"unknown variant `{kind}`.*attach a service"):
        lake_at(None, tmp_path).table(SALES).snapshot()


def test_with_credentials_the_client_is_dagsters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = {"type": "authorized_user", "client_id": "a", "client_secret": "b"}
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps(account | {"refresh_token": "c"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))

    from google.cloud import storage

    from retail_assets.resources.lake.clients import google_client

    google_client.cache_clear()
    try:
        client = lake_at(None, tmp_path).client()
    finally:
        google_client.cache_clear()

    assert isinstance(client, storage.Client)
    assert client.api_endpoint == "https://storage.googleapis.com"


def test_the_settings_choose_the_lake(tmp_path: Path) -> None:
    cloud = open_lake(load_settings(home=tmp_path, lake="gs://shop-lake/retail/"))
    local = open_lake(load_settings(home=tmp_path))

    assert isinstance(cloud, GcsLake)
    assert cloud.uri("raw/a") == "gs://shop-lake/retail/raw/a"
    assert Path(cloud.cache_dir) == tmp_path / "cache"
    assert isinstance(local, LocalLake)


def test_the_module_alone_loads_nothing_of_googles() -> None:
    program = (
        "import sys, retail_assets.resources.lake.bucket\n"
        "print([m for m in sys.modules if m.startswith(('google.cloud.', 'google.auth', 'pyarrow',"
        " 'dagster_gcp'))])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout == "[]\n"

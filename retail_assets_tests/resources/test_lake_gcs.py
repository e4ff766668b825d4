"""Tests of retail_assets.resources.lake_gcs by what Google's client sends over HTTP.

What a store does with the requests is in live/test_lake_gcs.py, against a server that keeps them.
"""

import base64
import json
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retail_assets.dataset import Column, Dataset
from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.lake import LakeResource, LocalLake
from retail_assets.resources.lake_gcs import (
    GcsLake,
    LakeAccessError,
    LakeUnreachableError,
    PartitionFile,
    TableManifest,
    manifest_name,
)
from retail_assets.settings import load_settings

SALES = Dataset(
    schema="shop",
    name="sales",
    description="Sales.",
    partition_by="day",
    columns=(Column("id", "int64", "Key."), Column("day", "date", "Day.")),
)
SHOPS = Dataset(
    schema="landed_shop",
    domain="shop",
    name="shops",
    description="Shops.",
    columns=(Column("id", "int64", "Key."),),
)
D1, D2 = "2011-01-01", "2011-01-02"
TABLE = "processed/shop/sales"
MANIFEST = manifest_name("processed", SALES)
UPLOAD = "/upload/storage/v1/b/shop-lake/o"
OBJECTS = "/storage/v1/b/shop-lake/o"


@dataclass(frozen=True)
class Request:
    """One request, as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def object(self) -> str:
        """The object that it is about: by its path, or by the metadata of an upload."""
        if "/o/" in self.path:
            return unquote(self.path.partition("/o/")[2])
        return str(self.metadata.get("name", self.query.get("name", "")))

    @property
    def metadata(self) -> dict[str, Any]:
        """The JSON part of an upload."""
        found = re.search(rb"\{.*?\}(?=\r\n|$)", self.body)
        return dict(json.loads(found[0])) if found and self.method == "POST" else {}

    @property
    def content(self) -> bytes:
        """The bytes of a multipart upload."""
        boundary = self.headers["content-type"].partition('boundary="')[2].strip('"').encode()
        part = self.body.split(b"--" + boundary)[2]
        return part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


Script = Callable[[Request], Answer]


def crc32c(content: bytes) -> str:
    return base64.b64encode(google_crc32c.Checksum(content).digest()).decode()


def stored(name: str, content: bytes, generation: int = 7) -> Answer:
    """An object's resource."""
    resource = {
        "kind": "storage#object",
        "name": name,
        "bucket": "shop-lake",
        "size": str(len(content)),
        "generation": str(generation),
        "crc32c": crc32c(content),
        "timeCreated": "2026-11-21T10:00:00Z",
    }
    return Answer(body=json.dumps(resource).encode())


def media(content: bytes, request: Request) -> Answer:
    """An object's bytes, or the range asked for."""
    hashes = {"X-Goog-Hash": f"crc32c={crc32c(content)}"}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not asked:
        return Answer(body=content, headers=hashes)
    start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
    ranged = {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
    return Answer(206, content[start : end + 1], ranged)


def refusal(status: int, reason: str, message: str) -> Answer:
    error = {"reason": reason, "message": message, "domain": "global"}
    body = {"error": {"code": status, "message": message, "errors": [error]}}
    return Answer(status, json.dumps(body).encode())


def nothing_there(request: Request) -> Answer:
    """An empty bucket that takes what is uploaded."""
    if request.method == "GET" and request.path == OBJECTS:
        return Answer(body=b'{"kind": "storage#objects"}')
    if request.method == "POST":
        return stored(request.object, request.content)
    if request.method == "DELETE":
        return Answer(204)
    return refusal(404, "notFound", f"No such object: {request.object}")


class Store:
    """A script: a bucket that keeps what is uploaded, by the conditions of each upload."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.generation = 0

    def __call__(self, request: Request) -> Answer:
        name, query = request.object, request.query
        if request.method == "GET" and request.path == OBJECTS:
            first, end = query.get("startOffset", ""), query.get("endOffset", "~")
            found = [n for n in sorted(self.objects) if n.startswith(query.get("prefix", ""))]
            items = [self.resource(n) for n in found if first <= n < end]
            return Answer(body=json.dumps({"items": items}).encode())
        held = self.objects.get(name)
        if request.method == "POST":
            if int(query.get("ifGenerationMatch", -1)) not in (-1, held[1] if held else 0):
                return refusal(412, "conditionNotMet", "At least one precondition failed.")
            self.generation += 1
            self.objects[name] = (request.content, self.generation)
        elif held is None or query.get("generation", str(held[1])) != str(held[1]):
            return refusal(404, "notFound", f"No such object: {name}")
        elif request.method == "DELETE":
            del self.objects[name]
            return Answer(204)
        elif query.get("alt") == "media":
            return media(held[0], request)
        return Answer(body=json.dumps(self.resource(name)).encode())

    def resource(self, name: str) -> dict[str, Any]:
        return dict(json.loads(stored(name, *self.objects[name]).body))

    def names(self, prefix: str = "processed/") -> list[str]:
        return sorted(name for name in self.objects if name.startswith(prefix))


class Server:
    """Records every request, and answers by a script."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.script: Script = nothing_there
        self.url = ""
        self._lock = threading.Lock()

    def answer(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            return self.script(request)

    def sent(self, method: str, path: str = "") -> list[Request]:
        return [r for r in self.requests if r.method == method and r.path.startswith(path)]


class Handler(BaseHTTPRequestHandler):
    server_of: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        url = urlsplit(self.path)
        request = Request(
            self.command,
            url.path.removeprefix("/download") if "alt=media" in url.query else url.path,
            dict(parse_qsl(url.query, keep_blank_values=True)),
            {name.lower(): value for name, value in self.headers.items()},
            self.rfile.read(int(self.headers.get("Content-Length") or 0)),
        )
        answer = self.server_of.answer(request)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Type" not in answer.headers:
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815


@contextmanager
def running() -> Iterator[Server]:
    server = Server()
    handler = type("Handler", (Handler,), {"server_of": server})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


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


def lake_at(url: str | None, folder: Path) -> GcsLake:
    return GcsLake(
        root="gs://shop-lake", cache_dir=str(folder / "cache"), emulator_host=url, retry_s=3
    )


def rows(day: str, *ids: int) -> tuple[str, pa.Table]:
    records = [{"id": i, "day": date.fromisoformat(day)} for i in ids]
    return day, pa.Table.from_pylist(records, schema=SALES.arrow_schema)


def replace(lake: LakeResource, keys: list[str], *parts: tuple[str, pa.Table]) -> None:
    with lake.staging("run") as stage:
        stage.write_partitions("processed", SALES, "day", parts)
        stage.publish("processed", SALES, "day", keys)


Files = list[tuple[str, tuple[int, ...]]]


def adopt(lake: LakeResource, files: Files, keys: tuple[str, ...] = (D1,)) -> None:
    """Publish ``keys`` from an engine's files, in order: the folder of each, and its ids."""
    with lake.scratch() as scratch, lake.staging("run") as stage:
        for number, (folder, ids) in enumerate(files):
            file = scratch / f"{number}-{secrets.token_hex(4)}.parquet"
            pq.write_table(pa.table({"id": pa.array(ids, pa.int64())}), file)
            stage.adopt("processed", SALES, folder, [file])
        stage.publish("processed", SALES, "day", keys)


def replace_shops(lake: LakeResource, *ids: int) -> None:
    table = pa.table({"id": pa.array(ids, pa.int64())}, schema=SHOPS.arrow_schema)
    with lake.staging("run") as stage:
        stage.write_partitions("processed", SHOPS, "", [("", table)] if ids else [])
        stage.publish("processed", SHOPS, "", [""])


def ids_of(lake: LakeResource, uris: list[str]) -> list[int]:
    copies = lake.local_copies(uris)
    return [i for file in copies for i in pq.read_table(file, partitioning=None)["id"].to_pylist()]


def test_adopted_files_are_named_within_the_folders_of_their_partition(
    store: Store, lake: GcsLake
) -> None:
    y10, y11 = f"day={D1}/year=2010", f"day={D1}/year=2011"
    adopt(lake, [(y11, (1, 2)), (y10, (3,)), (y10, (4,)), (f"day={D2}", (5,))], (D1, D2))

    names = store.names()
    folders = [name.removeprefix(f"{TABLE}/").rpartition("/")[0] for name in names]
    assert folders == [y10, y10, y11, f"day={D2}"]
    tokens = {re.fullmatch(r"(run-[0-9a-f]{16})-\d[.]parquet", Path(n).name) for n in names}
    assert len({token and token[1] for token in tokens}) == 1  # one publish's, and never reused
    assert lake.partition_uris(SALES, [D1]) == [lake.uri(name) for name in names[:3]]
    assert ids_of(lake, lake.partition_uris(SALES, [D1, D2])) == [3, 4, 1, 2, 5]
    assert lake.partition_rows("processed", SALES, "day", [D1, D2]) == {D1: 4, D2: 1}
    assert list(lake.read_manifest("processed", SALES).partitions) == [f"day={D1}", f"day={D2}"]


def test_table_files_are_what_the_manifest_names_or_what_was_put_without_one(
    store: Store, lake: GcsLake, tmp_path: Path
) -> None:
    replace(lake, [D1, D2], rows(D1, 1), rows(D2, 2))
    (old,) = lake.partition_uris(SALES, [D1])
    replace(lake, [D1], rows(D1, 3))
    replace_shops(lake, 1)
    replace_shops(lake)
    for name in ("quarantine/shop/sales/b.parquet", "quarantine/shop/sales/a.parquet"):
        (tmp_path / "file").write_bytes(b"letters")
        lake.put_file(name, tmp_path / "file")

    names = lake.table_files("processed", SALES)

    assert [lake.uri(name) for name in names] == lake.partition_uris(SALES, [D1, D2])
    assert old.removeprefix(f"{lake.root}/") in store.names() and len(names) == 2
    assert store.names("processed/shop/shops/") != []  # retired, and no longer the table
    assert lake.table_files("processed", SHOPS) == []
    assert lake.table_files("quarantine", SALES) == [
        "quarantine/shop/sales/a.parquet",
        "quarantine/shop/sales/b.parquet",
    ]


def test_equal_files_keep_their_objects_in_whatever_order_they_come(
    store: Store, lake: GcsLake
) -> None:
    y10, y11 = f"day={D1}/year=2010", f"day={D1}/year=2011"
    files: Files = [(y10, (1,)), (y10, (2,)), (y11, (3,)), (y11, (3,)), (y10, (4,))]
    adopt(lake, files)
    before = dict(store.objects)

    for _ in range(3):
        files.append(files.pop(0))
        adopt(lake, files)

    assert store.objects == before  # generations too, the manifest's among them


def test_only_what_changed_is_uploaded_and_retired(
    server: Server, store: Store, lake: GcsLake
) -> None:
    y10, y11 = f"day={D1}/year=2010", f"day={D1}/year=2011"
    adopt(lake, [(y10, (1,)), (y10, (2,)), (y11, (3,)), (y11, (4,))])
    before = store.names()
    server.requests.clear()

    adopt(lake, [(y10, (2,)), (y10, (20,)), (y10, (3,)), (y11, (4,)), (y11, (4,))])

    uploads = [Path(r.object).parent.name for r in server.sent("POST") if r.object != MANIFEST]
    # The second of two equal files is a file of its own, and a file that moved a new one.
    assert sorted(uploads) == ["year=2010", "year=2010", "year=2011"]
    assert sorted(ids_of(lake, lake.partition_uris(SALES, [D1]))) == [2, 3, 4, 4, 20]
    assert lake.partition_rows("processed", SALES, "day", [D1]) == {D1: 5}
    manifest = lake.read_manifest("processed", SALES)
    assert len(manifest.retired) == 2
    assert manifest.names() == set(store.names()) > set(before)


@pytest.mark.parametrize("files", [[], [(f"day={D1}", (7,))], [(f"day={D1}/year=2012", (7,))]])
def test_a_partition_of_several_files_is_replaced_as_a_whole(
    store: Store, lake: GcsLake, files: Files
) -> None:
    adopt(lake, [(f"day={D1}/year={y}", (y,)) for y in (2010, 2011)])
    adopt(lake, [(f"day={D2}/year=2011", (1,))], (D2,))

    adopt(lake, files)

    assert ids_of(lake, lake.partition_uris(SALES, [D1])) == [7] * len(files)
    counted = lake.partition_rows("processed", SALES, "day", [D1, D2])
    assert counted == {D1: len(files), D2: 1}


def test_a_table_without_partitions_is_one_of_the_key_nothing(store: Store, lake: GcsLake) -> None:
    assert lake.partition_uris(SHOPS, [""]) == []
    assert lake.partition_rows("processed", SHOPS, "", [""]) == {"": 0}

    replace_shops(lake, 1, 2)
    replace(lake, [D1], rows(D1, 9))
    replace_shops(lake, 3)

    (uri,) = lake.partition_uris(SHOPS, [""])
    assert re.fullmatch(r"gs://shop-lake/processed/shop/shops/run-[0-9a-f]{16}[.]parquet", uri)
    assert ids_of(lake, [uri]) == [3]
    assert lake.partition_rows("processed", SHOPS, "", [""]) == {"": 1}
    assert list(lake.read_manifest("processed", SHOPS).partitions) == [""]
    before = dict(store.objects)
    replace_shops(lake, 3)
    assert store.objects == before

    replace_shops(lake)

    assert lake.partition_rows("processed", SHOPS, "", [""]) == {"": 0}
    assert lake.partition_rows("processed", SALES, "day", [D1]) == {D1: 1}


def test_rows_are_counted_by_one_listing_of_no_more_than_they_need(
    server: Server, store: Store, lake: GcsLake
) -> None:
    days = [f"2011-01-0{n}" for n in range(1, 10)]
    below = ["/year=2010", "", "/year=2011"]
    adopt(lake, [(f"day={d}{b}", (1, 2)) for d in days for b in below], tuple(days))
    names = [uri.removeprefix("gs://shop-lake/") for uri in lake.partition_uris(SALES, days[3:6])]
    server.requests.clear()

    counted = lake.partition_rows("processed", SALES, "day", [days[5], days[3], "2012-01-01"])

    assert counted == {days[5]: 6, days[3]: 6, "2012-01-01": 0}
    (listing,) = (r for r in server.requests if r.path == OBJECTS)
    asked = [listing.query[name] for name in ("prefix", "startOffset", "endOffset")]
    assert asked == [f"{TABLE}/", names[0], f"{names[-1]}!"]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_rows_of_an_object_that_is_gone_are_not_counted(
    store: Store, lake: GcsLake, place: int
) -> None:
    adopt(lake, [(f"day={D1}/year={2010 + n}", (1,) * 10**n) for n in range(3)])

    del store.objects[store.names()[place]]

    assert lake.partition_rows("processed", SALES, "day", [D1]) == {D1: 111 - 10**place}


def test_a_manifest_of_before_there_were_several_files_is_read_and_kept(
    store: Store, lake: GcsLake
) -> None:
    """As it was written when a partition was one file, with what was retired then."""
    replace(lake, [D1, D2], rows(D1, 1), rows(D2, 2))
    old, retired = f"{TABLE}/day={D1}/run-0123456789abcdef.parquet", f"{TABLE}/day={D1}/gone"
    (name,) = (n for n in store.names() if D1 in n)
    content, generation = store.objects[old] = store.objects.pop(name)
    file = {
        "name": old,
        "generation": generation,
        "rows": 1,
        "bytes": len(content),
        "crc32c": crc32c(content),
    }
    manifest = {"partitions": {f"day={D1}": [file]}, "retired": {retired: 4e9}}
    store.objects[MANIFEST] = (json.dumps(manifest).encode(), 99)

    assert lake.partition_uris(SALES, [D1, D2]) == [lake.uri(old)]
    assert lake.partition_rows("processed", SALES, "day", [D1]) == {D1: 1}
    replace(lake, [D1], rows(D1, 1))
    assert store.objects[MANIFEST][1] == 99  # equal content
    adopt(lake, [(f"day={D1}/year=2010", (5,)), (f"day={D1}/year=2011", (6,))])

    assert ids_of(lake, lake.partition_uris(SALES, [D1])) == [5, 6]
    assert set(lake.read_manifest("processed", SALES).retired) == {old, retired}


def test_a_listing_is_of_a_prefix_whole_names_or_not_from_a_name_on(
    store: Store, lake: GcsLake
) -> None:
    names = [f"raw/shop/sales/{n}.csv" for n in ("a_1", "a_2", "deep/a_0", "deep/a_3")]
    names += ["raw/shop/sales_0.csv", "raw/shopping.csv"]
    for name in names:
        store.objects[name] = (b"x", 1)

    def listed(*arguments: str) -> list[str]:
        return [found.name for found in lake.list_objects(*arguments)]

    assert listed("raw/shop/sales/") == names[:4]
    assert listed("raw/shop/sales/a_") == names[:2]
    assert listed("raw/shop/sales") == names[:5]
    assert listed("raw/shop/sales/", "raw/shop/sales/a_2.csv") == names[1:4]
    assert listed("raw/shop/sales/", "raw/shop/sales/deep/a_1") == names[3:4]
    assert listed("", "raw/shop/sales_") == names[4:]


def test_a_new_table_is_uploaded_then_named_if_nobody_else_did(
    server: Server, lake: GcsLake
) -> None:
    replace(lake, [D1, D2], rows(D1, 1), rows(D2, 2))

    uploads = server.sent("POST", UPLOAD)
    assert [r.query["ifGenerationMatch"] for r in uploads] == ["0", "0", "0"]
    assert {r.query["uploadType"] for r in uploads} == {"multipart"}
    assert uploads[-1].object == MANIFEST
    assert {Path(r.object).parent.name for r in uploads[:2]} == {f"day={D1}", f"day={D2}"}
    assert all(r.metadata["crc32c"] == crc32c(r.content) for r in uploads)  # Google checks it
    manifest = TableManifest.from_json(uploads[-1].content)
    assert manifest.names() == {r.object for r in uploads[:2]}


def test_a_manifest_is_replaced_on_condition_of_what_was_read(
    server: Server, lake: GcsLake
) -> None:
    old = TableManifest({f"day={D2}": (PartitionFile("old", 1, 1, 1, "AAAAAA=="),)}, {})

    def script(request: Request) -> Answer:
        if request.method == "GET" and request.object == MANIFEST:
            text = old.to_json().encode()
            read = request.query.get("alt") == "media"
            return media(text, request) if read else stored(MANIFEST, text, 4711)
        return nothing_there(request)

    server.script = script

    replace(lake, [D1], rows(D1, 1))

    read = [r for r in server.requests if r.query.get("alt") == "media"]
    assert [r.query["generation"] for r in read] == ["4711"]
    written = server.sent("POST", UPLOAD)[-1]
    assert (written.object, written.query["ifGenerationMatch"]) == (MANIFEST, "4711")
    assert list(TableManifest.from_json(written.content).partitions) == [f"day={D1}", f"day={D2}"]


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


def test_a_manifest_whose_answer_was_lost_is_not_written_again(
    server: Server, lake: GcsLake
) -> None:
    objects: dict[str, bytes] = {}

    def script(request: Request) -> Answer:
        if request.method == "POST":
            if request.object == MANIFEST and MANIFEST in objects:
                return refusal(412, "conditionNotMet", "At least one precondition failed.")
            objects[request.object] = request.content
            if request.object == MANIFEST:
                return refusal(503, "backendError", "try again")
            return stored(request.object, request.content)
        if request.method == "GET" and request.path == OBJECTS:
            items = [json.loads(stored(n, c).body) for n, c in objects.items()]
            prefix = request.query.get("prefix", "")
            found = [item for item in items if item["name"].startswith(prefix)]
            return Answer(body=json.dumps({"items": found}).encode())
        if request.object in objects:
            content = objects[request.object]
            read = request.query.get("alt") == "media"
            return media(content, request) if read else stored(request.object, content)
        return nothing_there(request)

    server.script = script

    replace(lake, [D1], rows(D1, 1))

    written = [r.object for r in server.sent("POST", UPLOAD)]
    assert len([name for name in written if name != MANIFEST]) == 1
    assert written.count(MANIFEST) == 2  # the client's own second try met the first
    assert lake.partition_rows("processed", SALES, "day", [D1]) == {D1: 1}


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
    pq.write_table(rows(D1, *range(1_000_000))[1], file, compression="none")
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


def test_a_listing_goes_on_from_its_start_page_by_page(server: Server, lake: GcsLake) -> None:
    names = ["raw/d=2/a", "raw/d=2/b", "raw/d=3/"]

    def script(request: Request) -> Answer:
        page = int(request.query.get("pageToken", "0"))
        items = [json.loads(stored(name, b"x", 5).body) for name in names[page : page + 1]]
        answer: dict[str, Any] = {"items": items}
        if page < 3:
            answer["nextPageToken"] = str(page + 1)
        return Answer(body=json.dumps(answer).encode())

    server.script = script

    found = list(lake.list_objects("raw/", "raw/d=2"))

    assert [(f.name, f.version) for f in found] == [("raw/d=2/a", "5"), ("raw/d=2/b", "5")]
    asked = server.sent("GET", OBJECTS)
    assert [r.query.get("pageToken") for r in asked] == [None, "1", "2", "3"]
    assert {(r.query["prefix"], r.query["startOffset"]) for r in asked} == {("raw/", "raw/d=2")}


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
        (lambda lake: lake.partition_uris(SALES, [D1]), "objectViewer"),
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


def test_with_credentials_the_client_is_dagsters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = {"type": "authorized_user", "client_id": "a", "client_secret": "b"}
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps(account | {"refresh_token": "c"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))

    from google.cloud import storage

    from retail_assets.resources import lake_gcs

    lake_gcs._client.cache_clear()
    try:
        client = lake_at(None, tmp_path).client()
    finally:
        lake_gcs._client.cache_clear()

    assert isinstance(client, storage.Client)
    assert client.api_endpoint == "https://storage.googleapis.com"


def test_the_settings_choose_the_lake(tmp_path: Path) -> None:
    cloud = LakeResource.of(load_settings(home=tmp_path, lake="gs://shop-lake/retail/"))
    local = LakeResource.of(load_settings(home=tmp_path))

    assert isinstance(cloud, GcsLake)
    assert cloud.uri("raw/a") == "gs://shop-lake/retail/raw/a"
    assert Path(cloud.cache_dir) == tmp_path / "cache"
    assert isinstance(local, LocalLake)


def test_the_module_alone_loads_nothing_of_googles() -> None:
    program = (
        "import sys, retail_assets.resources.lake_gcs\n"
        "print([m for m in sys.modules if m.startswith(('google.cloud.', 'google.auth', 'pyarrow',"
        " 'dagster_gcp'))])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout == "[]\n"


KEYS = st.sampled_from([f"day={n}" for n in range(4)])
STEP = st.tuples(st.dictionaries(KEYS, st.booleans()), st.integers(0, 3000))


@given(st.lists(STEP, max_size=12))
def test_what_a_manifest_replaces_stays_for_an_hour_and_no_longer(
    steps: list[tuple[dict[str, bool], int]],
) -> None:
    manifest, now, expected = TableManifest(), 0, dict[str, str]()
    retired: dict[str, int] = {}
    for number, (changes, wait) in enumerate(steps):
        now += wait
        files = {
            key: (PartitionFile(f"{key}/{number}", number, 1, 1, ""),) if filled else ()
            for key, filled in changes.items()
        }
        for key, new in files.items():
            if key in expected:
                retired[expected.pop(key)] = now
            if new:
                expected[key] = new[0].name

        manifest = manifest.replaced(files, now)

        assert {k: v[0].name for k, v in manifest.partitions.items()} == expected
        assert manifest.retired == {n: t for n, t in retired.items() if now - t <= 3600}
        assert TableManifest.from_json(manifest.to_json().encode()) == manifest

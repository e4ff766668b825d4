"""Tests of retail_assets.commands.launch: a webserver that goes away meanwhile.

What a real one answers: integration/test_dev.py.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from retail_assets.commands.launch import Launched, follow
from retail_assets.commands.webserver import WebserverError


@contextmanager
def webserver(*answers: dict[str, object] | None) -> Iterator[str]:
    """Its address; it gives one answer after the other, None as a proxy of one that is away."""
    coming = iter(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer = next(coming, None)
            self.send_response(502 if answer is None else 200)
            self.end_headers()
            self.wfile.write(b"<html>" if answer is None else json.dumps(answer).encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def is_in(status: str) -> dict[str, object]:
    return {"data": {"runOrError": {"status": status, "tags": []}}}


def test_a_webserver_that_is_started_anew_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("retail_assets.commands.launch._LOOK_S", 0.0)
    told: list[str] = []
    with webserver(is_in("STARTED"), None, None, is_in("SUCCESS")) as url:
        assert follow(Launched(url, "a"), told.append)
        assert told == ["started", "success"]

        monkeypatch.setattr("retail_assets.commands.launch._PATIENCE_S", 0.0)
        with pytest.raises(WebserverError, match="found no answer of it"):
            follow(Launched(url, "a"), told.append)

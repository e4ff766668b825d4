"""Real servers on localhost that receive alerts: one of HTTP, which can be made to fail.

Not here: tests.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

OK, STALL, TRICKLE = 200, -1, -2


class AlertServer:
    """What it has taken, and the ``answer`` to the next: a status, or not to answer at all."""

    def __init__(self) -> None:
        self.answer = OK
        self.asked = 0
        self.taken: list[dict[str, str]] = []
        self.port = 0
        self._over = Event()
        self._server: ThreadingHTTPServer | None = None

    @property
    def address(self) -> str:
        """As RETAIL_NOTIFY has it, with a password that nobody may see."""
        return f"json://alerts:hunter2secret@127.0.0.1:{self.port}/hook"

    @property
    def titles(self) -> list[str]:
        """Of the messages that were taken, in order."""
        return [message["title"].removeprefix("[retail-assets] ") for message in self.taken]

    def start(self) -> None:
        """Listen, on the port that it had before."""
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                owner.asked += 1
                if owner.answer == STALL:
                    owner._over.wait(30)
                    return
                if owner.answer == TRICKLE:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                    with suppress(OSError):  # until the sender is ended
                        while not owner._over.wait(0.1):
                            self.wfile.write(b"X-More: 1\r\n")
                    return
                if owner.answer == OK:
                    owner.taken.append(json.loads(body))
                self.send_response(owner.answer)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._over.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def alert_server() -> Iterator[AlertServer]:
    """A server that listens within the block."""
    server = AlertServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()

"""The rows of a CSV file as messages to the topic, and going on where a stream stopped.

Here: pace, what is told, how far a file is in the topic. Not here: what is sent of each row
(order_lines.py), the broker and how it takes messages (resources/broker/resource.py), what becomes
of them (messages.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING

from retail_assets.defs.supply_chain.contract import GROUP, TOPIC
from retail_assets.defs.supply_chain.order_lines import Source, identify, read_messages
from retail_assets.errors import PermanentError

if TYPE_CHECKING:
    from retail_assets.resources.broker.resource import BrokerResource

_BATCH_ROWS = 500
_SAVE_EVERY_S = 1.0
_WARN_AFTER_S = 5.0
# To be raised when rows are counted otherwise: a stream that was begun then begins anew.
_READING = 3
_log = logging.getLogger(__name__)


class ChangedSourceError(PermanentError):
    """The file was changed while it was read."""


@dataclass(frozen=True)
class Streamed:
    """How far a file is in the topic."""

    file: Path
    rows: int
    """Rows of the file; one message each."""
    delivered: int
    """Rows, from the first on, that the broker has acknowledged, earlier streams included."""
    resumed_from: int
    """Rows that an earlier stream had delivered."""
    seconds: float

    @property
    def messages(self) -> int:
        """Messages that this stream delivered."""
        return self.delivered - self.resumed_from

    @property
    def finished(self) -> bool:
        """Whether the whole file is delivered."""
        return self.delivered == self.rows

    @property
    def summary(self) -> str:
        """One line that tells how far it is, and how to go on."""
        rate = f"{self.messages / max(self.seconds, 1e-9):,.0f} a second"
        if not self.finished:
            return (
                f"stopped: {self.delivered:,} of {self.rows:,} rows of {self.file} are delivered."
                " Give the same command again to go on after them."
            )
        resumed = f", after {self.resumed_from:,} before" if self.resumed_from else ""
        return f"{self.file}: {self.messages:,} messages delivered{resumed}, {rate}"


def stream_file(
    broker: BrokerResource,
    source: Source,
    state_dir: Path,
    *,
    progress: Callable[[int], None] | None = None,
    stop: Event | None = None,
) -> Streamed:
    """Produce the rows of a file to the topic, after those that an earlier stream delivered.

    How far it is stands in a small file of ``state_dir``, about once a second and at the end. It
    counts only for the same bytes and the same incarnation of the topic; a file that was
    delivered whole is delivered again. So a row may be sent twice, and none is left out.

    ``stop`` ends it early: what was sent is flushed, and the result is not finished. Where none is
    given, Ctrl-C does so; a second one does not wait for the broker.

    Args:
        broker: Where the topic is.
        source: What ``examine_source`` found.
        state_dir: A folder; made if absent.
        progress: Called with the rows delivered since its last call; at first with those of
            earlier streams.
        stop: Looked at every few hundred rows, and while the broker waits for its consumer.

    Raises:
        ChangedSourceError: When the file is no longer the one that was examined; some of it may
            have been sent.
        PermanentError, TransientError: as the broker's producer does; what arrived is saved.
    """
    began = time.perf_counter()
    reached = _Reached(state_dir, source, progress)
    with _stopped_by_interrupt() if stop is None else nullcontext(stop) as stopped:
        producer = None
        try:
            with broker.producer(TOPIC, GROUP, on_wait=_Waits(stopped)) as producer:
                # Asked for here: the producer makes the topic where it is absent.
                start = reached.begin(broker.incarnation(TOPIC).id)
                messages = read_messages(source, start)
                with suppress(_Stopped):
                    while not stopped.is_set() and (batch := list(islice(messages, _BATCH_ROWS))):
                        for key, value in batch:
                            producer.send(key, value)
                        reached.tell(producer.delivered)
        finally:
            # The end of the context flushes: only now it is final.
            if producer is not None:
                reached.end(producer.delivered)
    if identify(source.file) != source.identity:
        raise ChangedSourceError(
            f"{source.file}: expected it as it was when the stream began, found it changed: some"
            " of what it was may be in the topic. Give the command again when it is complete."
        )
    seconds = time.perf_counter() - began
    return Streamed(source.file, source.rows, reached.delivered, start, seconds)


class _Stopped(Exception):  # noqa: N818 - no error: what the caller wished
    """The stream is to end while it waits."""


class _Waits:
    """Called by a producer that waits for the consumer, with the seconds without any progress."""

    def __init__(self, stop: Event) -> None:
        self._stop = stop
        self._has_warned = False

    def __call__(self, idle_s: float) -> None:
        if self._stop.is_set():
            raise _Stopped
        if idle_s < _WARN_AFTER_S:
            self._has_warned = self._has_warned and idle_s > 0
        elif not self._has_warned:
            self._has_warned = True
            _log.warning(
                "The embedded broker is full, and nothing was consumed for %.0f s. Start what"
                " consumes it (retail-assets dev, or run supply_chain), or stop with Ctrl-C.",
                idle_s,
            )


@contextmanager
def _stopped_by_interrupt() -> Iterator[Event]:
    """An event that Ctrl-C sets the first time; the second time it interrupts.

    An interrupt between a producer's steps could spoil its count of what arrived.
    """
    stop = Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread hears of it
        return

    def interrupted(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            signal.default_int_handler(number, frame)
        stop.set()

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class _Reached:
    """How far a file is in the topic: told, and saved in a file of its own."""

    def __init__(
        self,
        folder: Path,
        source: Source,
        progress: Callable[[int], None] | None,
    ) -> None:
        path = str(source.file.resolve())
        digest = hashlib.sha256(path.encode()).hexdigest()[:12]
        self._path = folder / f"{source.file.stem}-{digest}.json"
        self._rows = source.rows
        self._progress = progress
        # JSON's numbers and texts, so that what is read equals what was written.
        self._of = {
            "file": path,
            "identity": source.identity,
            "topic": TOPIC,
            "reading": _READING,
        }
        self._start = 0
        self._saved = 0.0
        self.delivered = 0

    def begin(self, incarnation: str) -> int:
        """Rows that were delivered to this incarnation of the topic; 0 once all were."""
        self._of["incarnation"] = incarnation
        self._start = self._found()
        self._saved = time.monotonic()
        self._advance(0)
        return self._start

    def tell(self, delivered: int) -> None:
        """So many of this stream's rows are delivered; saved about once a second."""
        self._advance(delivered)
        if time.monotonic() - self._saved >= _SAVE_EVERY_S:
            self._save()

    def end(self, delivered: int) -> None:
        """As ``tell``, for the last time; of a stream that did not begin nothing is saved."""
        if "incarnation" in self._of:
            self._advance(delivered)
            self._save()

    def _found(self) -> int:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            delivered = int(found.pop("delivered"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return 0  # none, or a broken one: to send again does no harm
        is_ours = found == self._of and 0 < delivered < self._rows
        return delivered if is_ours else 0

    def _advance(self, delivered: int) -> None:
        before, self.delivered = self.delivered, self._start + delivered
        if self._progress is not None and self.delivered > before:
            self._progress(self.delivered - before)

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partly = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        partly.write_text(json.dumps(self._of | {"delivered": self.delivered}), encoding="utf-8")
        partly.replace(self._path)
        self._saved = time.monotonic()

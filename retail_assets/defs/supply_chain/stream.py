"""A CSV file as messages: which text its bytes are, which rows it has, what is sent of each.

Here: reading the source, what never leaves it, and going on where a stream stopped. Not here: the
broker and how it takes messages (resources/broker.py), what becomes of them (messages.py).
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from json.encoder import encode_basestring
from operator import itemgetter
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any, Protocol, Self

from retail_assets.defs.supply_chain.contract import (
    GROUP,
    KEY_HEADER,
    SOURCE_COLUMNS,
    TOPIC,
    WITHHELD_HEADER,
)
from retail_assets.errors import PermanentError

_CHUNK_BYTES = 1 << 20
# A row is refused from here on: Kafka's brokers take messages of up to a million bytes.
_MOST_CHARACTERS = 500_000
_BATCH_ROWS = 500
_SAVE_EVERY_S = 1.0
_WARN_AFTER_S = 5.0
_MOST_NAMED = 5
# Bytes that Windows-1252 gives no character.
_UNDEFINED = (b"\x81", b"\x8d", b"\x8f", b"\x90", b"\x9d")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_log = logging.getLogger(__name__)


class UnreadableSourceError(PermanentError):
    """The file is not there, or is not the CSV file that it should be."""


class ChangedSourceError(PermanentError):
    """The file was changed while it was read."""


class Incarnation(Protocol):
    """What a stream asks of a topic: whether it is the one that it was."""

    @property
    def id(self) -> str:
        """Another one where the topic was made anew."""


class Producer(Protocol):
    """Sends messages to one topic."""

    @property
    def delivered(self) -> int:
        """How many of the sends, from the first without a gap, the broker has acknowledged."""

    def send(self, key: bytes, value: bytes) -> None:
        """Send a message; may wait until there is room for it."""


class Broker(Protocol):
    """What a stream needs of a broker; BrokerResource is one."""

    def producer(
        self, topic: str, group: str, *, on_wait: Callable[[float], None] | None = None
    ) -> AbstractContextManager[Producer]:
        """A producer; at the end of the context all that was sent is acknowledged.

        One that must wait for the group to consume calls ``on_wait`` all the while, which may
        raise.
        """

    def incarnation(self, topic: str) -> Incarnation:
        """The topic's incarnation."""


@dataclass(frozen=True)
class Source:
    """A file that ``examine_source`` found good."""

    file: Path
    encoding: str
    """utf-8, utf-8-sig (with a byte order mark), cp1252 or latin-1."""
    header: tuple[str, ...]
    rows: int
    identity: dict[str, Any] = field(repr=False)
    """Size, time of the last change, and a digest of both ends; JSON."""


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


def detect_encoding(file: Path) -> str:
    """The encoding of a file: utf-8 or, with a byte order mark, utf-8-sig where all of it decodes.

    Another file is cp1252, or latin-1 where it has bytes that Windows-1252 does not define: both
    give each byte a character of its own, so nothing is replaced.

    Raises:
        UnreadableSourceError: When the file is not there, or is UTF-16.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_utf8, undefined = True, False
    with _opened(file) as binary:
        start = binary.peek(4)[:4]
        if start.startswith(_UTF16):
            raise UnreadableSourceError(
                f"{file}: expected UTF-8, Windows-1252 or Latin-1, found UTF-16: save it as UTF-8"
            )
        while data := binary.read(_CHUNK_BYTES):
            # An earlier chunk counts as well: these bytes are good parts of UTF-8's characters.
            undefined = undefined or any(byte in data for byte in _UNDEFINED)
            is_utf8 = is_utf8 and _decodes(decoder, data)
            if undefined and not is_utf8:
                break
        is_utf8 = is_utf8 and _decodes(decoder, b"", final=True)
    if is_utf8:
        return "utf-8-sig" if start.startswith(codecs.BOM_UTF8) else "utf-8"
    return "latin-1" if undefined else "cp1252"


def _decodes(decoder: codecs.IncrementalDecoder, data: bytes, *, final: bool = False) -> bool:
    try:
        decoder.decode(data, final)
    except UnicodeDecodeError:
        return False
    return True


def examine_source(file: Path) -> Source:
    """Read a file once, before anything of it is sent, and say what it is.

    It is a CSV file with the columns of the contract, in any order, with or without the withheld
    one. A row with another number of fields makes the whole file unreadable: where the fields of
    a row are shifted, no one can tell which of them is the withheld one.

    Raises:
        UnreadableSourceError: naming the file, the line, what was expected and what was found.
    """
    encoding = detect_encoding(file)
    identity = _identity(file)
    rows = 0
    with _Rows(file, encoding) as found:
        for line, row in found:
            fields = row.count(",") + 1 if isinstance(row, str) else len(row)
            if fields != len(found.header):
                raise found.ragged(line, fields)
            rows += 1
        header = found.header
    return Source(file, encoding, header, rows, identity)


def read_messages(source: Source, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """The key and the value of each row from ``start`` on, counted from 0.

    The value is a JSON object in UTF-8 of the fields' texts, unchanged, under their headers, in
    the contract's order; the withheld one is not in it. The key is the text of Order Id.

    Raises:
        UnreadableSourceError: for a row that was not there when the file was examined.
    """
    with _Rows(source.file, source.encoding) as rows:
        width = len(rows.header)
        chosen = itemgetter(*(rows.header.index(column.header) for column in SOURCE_COLUMNS))
        key_place = rows.header.index(KEY_HEADER)
        names = [encode_basestring(column.header) for column in SOURCE_COLUMNS]
        plain, quoted = _json_parts(names, '"'), _json_parts(names, "")
        for line, row in islice(rows, start, None):
            fields = row.split(",") if isinstance(row, str) else row
            if len(fields) != width:
                raise rows.ragged(line, len(fields))
            if isinstance(row, str):
                # None of its characters needs an escape: half the time of the other way.
                plain[1::2] = chosen(fields)
                value = "".join(plain)
            else:
                quoted[1::2] = map(encode_basestring, chosen(fields))
                value = "".join(quoted)
            yield fields[key_place].encode(), value.encode()


def _json_parts(names: Sequence[str], quote: str) -> list[str]:
    """The pieces of a JSON object: every second one is a place for a text."""
    parts = []
    before = "{"
    for name in names:
        parts += [f"{before}{name}:{quote}", ""]
        before = f"{quote},"
    return [*parts, quote + "}"]


def stream_file(
    broker: Broker,
    source: Source,
    state_dir: Path,
    *,
    topic: str = TOPIC,
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
        topic: The topic.
        progress: Called with the rows delivered since its last call; at first with those of
            earlier streams.
        stop: Looked at every few hundred rows, and while the broker waits for its consumer.

    Raises:
        ChangedSourceError: When the file is no longer the one that was examined; some of it may
            have been sent.
        PermanentError, TransientError: as the broker's producer does; what arrived is saved.
    """
    began = time.perf_counter()
    reached = _Reached(state_dir, source, topic, progress)
    with _stopped_by_interrupt() if stop is None else nullcontext(stop) as stopped:
        producer = None
        try:
            with broker.producer(topic, GROUP, on_wait=_Waits(stopped)) as producer:
                # Asked for here: the producer makes the topic where it is absent.
                start = reached.begin(broker.incarnation(topic).id)
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
    if _identity(source.file) != source.identity:
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
        topic: str,
        progress: Callable[[int], None] | None,
    ) -> None:
        path = str(source.file.resolve())
        digest = hashlib.sha256(path.encode()).hexdigest()[:12]
        self._path = folder / f"{source.file.stem}-{digest}.json"
        self._rows = source.rows
        self._progress = progress
        # JSON's numbers and texts, so that what is read equals what was written.
        self._of = {"file": path, "identity": source.identity, "topic": topic}
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


class _Rows:
    """The rows of a CSV file below its header: the number of a row's first line, and the row.

    A row that can be taken apart at its commas, and of which no character needs an escape in
    JSON, is its text; another one is the list of its fields. Empty lines are no rows.
    """

    header: tuple[str, ...]

    def __init__(self, file: Path, encoding: str) -> None:
        self._file = file
        self._encoding = encoding

    def __enter__(self) -> Self:
        self._text = io.TextIOWrapper(_opened(self._file), self._encoding, newline="")
        try:
            self._found = self._read()
            _, row = next(self._found, (0, ""))
            self.header = tuple(row.split(",")) if isinstance(row, str) else tuple(row)
            _require_header(self._file, self.header)
        except BaseException:
            self._text.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._text.close()

    def __iter__(self) -> Iterator[tuple[int, str | list[str]]]:
        return self._found

    def ragged(self, line: int, fields: int) -> UnreadableSourceError:
        """What to say of a row with another number of fields than the header."""
        return UnreadableSourceError(
            f"{self._file}, line {line}: expected {len(self.header)} fields, as many as the"
            f" header's, found {fields}. Mend the line: of a row whose fields are shifted,"
            " nothing can be sent."
        )

    def _read(self) -> Iterator[tuple[int, str | list[str]]]:
        # Not the file's own iterator, which knows no limit.
        lines = iter(partial(self._text.readline, _MOST_CHARACTERS), "")
        number = 0
        for whole in lines:
            number += 1
            if len(whole) == _MOST_CHARACTERS:
                raise self._too_long(number)
            line = whole.rstrip("\r\n")
            if line.isprintable() and '"' not in line and "\\" not in line:
                if line:
                    yield number, line
                continue
            reader = csv.reader(chain((whole,), lines), strict=True)
            try:
                fields = next(reader)
            except csv.Error as error:
                raise UnreadableSourceError(
                    f"{self._file}, line {number}: expected a row of CSV, in which quotes come in"
                    f" pairs, found one that ends otherwise ({error}). Mend the line."
                ) from None
            if sum(map(len, fields)) >= _MOST_CHARACTERS:
                raise self._too_long(number)
            yield number, fields
            number += reader.line_num - 1

    def _too_long(self, line: int) -> UnreadableSourceError:
        return UnreadableSourceError(
            f"{self._file}, line {line}: expected a row of less than {_MOST_CHARACTERS:,}"
            " characters, found a longer one: look whether it is a CSV file."
        )


def _require_header(file: Path, header: Sequence[str]) -> None:
    """Raise where a column is missing, unknown or there twice, and say which."""
    needed = [column.header for column in SOURCE_COLUMNS]
    missing = [name for name in needed if name not in header]
    known = {*needed, WITHHELD_HEADER}
    extra = [n for at, n in enumerate(header) if n not in known or n in header[:at]]
    if not missing and not extra:
        return
    said = f"{file}: expected a first line with the source's {len(needed) + 1} columns"
    if len(missing) > len(needed) // 2:
        # Its words may be a customer's: they are not told.
        raise UnreadableSourceError(
            f"{said}, separated by commas, found {len(needed) - len(missing)} of them among"
            f" {len(header)}: put the header there."
        )
    found = [f"no {_shown(missing)}"] if missing else []
    found += [f"{_shown(extra)} unknown or twice"] if extra else []
    raise UnreadableSourceError(f"{said}, found {'; '.join(found)}: mend the header.")


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(repr(n.replace(WITHHELD_HEADER, "(withheld)")) for n in names[:_MOST_NAMED])
    return shown + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")


def _opened(file: Path) -> io.BufferedReader:
    try:
        return file.open("rb")
    except OSError as error:
        raise UnreadableSourceError(
            f"{file}: expected a CSV file, found that it cannot be opened: {error.strerror}."
        ) from error


def _identity(file: Path) -> dict[str, Any]:
    """What tells whether a file is the one that it was: a change within it changes its time."""
    with _opened(file) as binary:
        found = os.fstat(binary.fileno())
        digest = hashlib.sha256(binary.read(_CHUNK_BYTES))
        binary.seek(max(0, found.st_size - _CHUNK_BYTES))
        digest.update(binary.read(_CHUNK_BYTES))
    return {
        "size": found.st_size,
        "changed_ns": found.st_mtime_ns,
        "ends_sha256": digest.hexdigest(),
    }

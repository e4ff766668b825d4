"""A CSV file as messages: which text its bytes are, which rows it has, what is sent of each.

Here: reading the source, what never leaves it, and going on where a stream stopped. Not here: the
broker and how it takes messages (resources/broker/resource.py), what becomes of them (messages.py).
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import logging
import os
import re
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, dropwhile, islice
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
_HEAD_BYTES = 64
# A row is refused from here on: Kafka's brokers take messages of up to a million bytes.
_MOST_CHARACTERS = 500_000
_BATCH_ROWS = 500
_SAVE_EVERY_S = 1.0
_WARN_AFTER_S = 5.0
_MOST_NAMED = 5
# Bytes that Windows-1252 gives no character.
_UNDEFINED = (b"\x81", b"\x8d", b"\x8f", b"\x90", b"\x9d")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_GZIP = b"\x1f\x8b"
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive or an .xlsx workbook",
    b"\xd0\xcf\x11\xe0": "an .xls workbook, or an encrypted one",
    b"BZh": "a file compressed by bzip2",
    b"\xfd7zXZ\x00": "a file compressed by xz",
    b"\x28\xb5\x2f\xfd": "a file compressed by Zstandard (.zst)",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"PAR1": "a Parquet file",
    _GZIP: "a gzip file within a gzip file",
}
_DELIMITERS = (",", ";", "\t", "|")
_DECLARATION = re.compile(r'"?sep=.', re.IGNORECASE)  # of the delimiter, for Excel
_INDEX = re.compile(r"(Unnamed: [0-9.]+)?")  # what pandas calls an index without a name
# To be raised when rows are counted otherwise: a stream that was begun then begins anew.
_READING = 2
# Where a number may be written with a decimal comma, and where it surely is a number.
_NUMERIC = [at for at, c in enumerate(SOURCE_COLUMNS) if c.type not in ("string", "timestamp")]
_DECIMAL = [at for at in _NUMERIC if SOURCE_COLUMNS[at].type.startswith("decimal")]
_WITH_COMMA = re.compile(r"-?[0-9]+,[0-9]+([eE][+-]?[0-9]+)?")
_TIMES = [at for at, c in enumerate(SOURCE_COLUMNS) if c.type == "timestamp"]
_SLASHED = re.compile(r"([0-9]{1,2})/([0-9]{1,2})/.*")
_MONTHS, _DAYS = 12, 31
_WITH_POINT = re.compile(r"-?[0-9]+[.][0-9]+([eE][+-]?[0-9]+)?")
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
    """utf-8, utf-8-sig (with a byte order mark), cp1252, latin-1, or one of UTF-16."""
    header: tuple[str, ...]
    rows: int
    identity: dict[str, Any] = field(repr=False)
    """Size, time of the last change, and a digest of both ends; JSON."""
    has_decimal_commas: bool = False
    """Whether its numbers are written 2,55; only where another mark separates its fields."""


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

    One of UTF-16 is told by its mark, or by its NULs. Another file is cp1252, or latin-1 where it
    has bytes that Windows-1252 does not define: both give each byte a character of its own, so
    nothing is replaced. A gzip file is what is packed in it.

    Raises:
        UnreadableSourceError: When the file is not there, is no text but a file of another format,
            or is broken.
    """
    with _content(file) as binary, _telling_breakage(file):
        start = binary.peek(_HEAD_BYTES)[:_HEAD_BYTES]
        for magic, name in _OTHER_FORMATS.items():
            if start.startswith(magic):
                raise UnreadableSourceError(
                    f"{file}: expected a CSV file, plain or packed by gzip, found {name}: unpack"
                    " it, or save it as CSV."
                )
        utf16 = _utf16_of(start)
        decoder = codecs.getincrementaldecoder(utf16 or "utf-8")()
        is_good, undefined = True, False
        while data := binary.read(_CHUNK_BYTES):
            # An earlier chunk counts as well: these bytes are good parts of UTF-8's characters.
            undefined = undefined or any(byte in data for byte in _UNDEFINED)
            is_good = is_good and _decodes(decoder, data)
            if undefined and not is_good:
                break
        is_good = is_good and _decodes(decoder, b"", final=True)
    if utf16 and not is_good:
        raise UnreadableSourceError(
            f"{file}: expected UTF-16 throughout, as it begins, found bytes that are none: save it"
            " as UTF-8."
        )
    if is_good:
        return utf16 or ("utf-8-sig" if start.startswith(codecs.BOM_UTF8) else "utf-8")
    return "latin-1" if undefined else "cp1252"


def _utf16_of(start: bytes) -> str | None:
    """Which UTF-16 a file is that begins so; the header's first characters are ASCII."""
    if start.startswith(_UTF16):
        return "utf-16"
    even, odd = start[::2], start[1::2]
    if len(start) < _HEAD_BYTES:
        return None
    if all(even) and not any(odd):
        return "utf-16-le"
    return "utf-16-be" if all(odd) and not any(even) else None


def _decodes(decoder: codecs.IncrementalDecoder, data: bytes, *, final: bool = False) -> bool:
    try:
        decoder.decode(data, final)
    except UnicodeDecodeError:
        return False
    return True


def examine_source(file: Path) -> Source:
    """Read a file once, before anything of it is sent, and say what it is.

    It is a CSV file with the columns of the contract, in any order, with or without the withheld
    one and an index's; fields may be separated by semicolons, tabs or bars as well: the header
    decides. A row with another number of fields makes the whole file unreadable: where the fields
    of a row are shifted, no one can tell which of them is the withheld one. So do numbers of which
    some have a decimal comma and others a point, and times that prove to have the day first: of
    those below 13 a message would say another day.

    Raises:
        UnreadableSourceError: naming the file, the line, what was expected and what was found.
    """
    encoding = detect_encoding(file)
    identity = _identity(file)
    rows = 0
    marks, orders = _DecimalMarks(), _DateOrders()
    with _Rows(file, encoding) as found:
        delimiter = found.delimiter
        for line, row in found:
            fields = row.count(delimiter) + 1 if isinstance(row, str) else len(row)
            if fields != len(found.header):
                raise found.ragged(line, fields)
            if delimiter != ",":
                marks.look(found, line, row)
            if orders.undecided:
                orders.look(found, line, row)
            rows += 1
        header = found.header
        orders.require_months_first(file)
    return Source(file, encoding, header, rows, identity, marks.comma_at is not None)


class _DecimalMarks:
    """What separates the decimals of a file whose fields are not separated by commas."""

    comma_at: int | None = None
    point_at: int | None = None

    def look(self, rows: _Rows, line: int, row: str | list[str]) -> None:
        """Note which marks a row has.

        Raises:
            UnreadableSourceError: the file has both, so that 1.234 may be a thousand or one.
        """
        fields = row.split(rows.delimiter) if isinstance(row, str) else row
        texts = [fields[place] for place in rows.places]
        if self.comma_at is None and any(_WITH_COMMA.fullmatch(texts[at]) for at in _DECIMAL):
            self.comma_at = line
        if self.point_at is None and any(_WITH_POINT.fullmatch(texts[at]) for at in _DECIMAL):
            self.point_at = line
        if self.comma_at is not None and self.point_at is not None:
            raise UnreadableSourceError(
                f"{rows.file}: expected numbers with one decimal mark, found a comma in line"
                f" {self.comma_at} and a point in line {self.point_at}: write all with points."
            )


class _DateOrders:
    """Whether the month is first in times as 1/31/2018, by a column's values up to the first proof.

    A column of which some values prove one order and some the other has rows that are wrong.
    """

    def __init__(self) -> None:
        self.undecided = set(_TIMES)
        self._days_first: dict[int, tuple[int, str]] = {}

    def look(self, rows: _Rows, line: int, row: str | list[str]) -> None:
        """Note what a row proves."""
        fields = row.split(rows.delimiter) if isinstance(row, str) else row
        for at in tuple(self.undecided):
            text = fields[rows.places[at]]
            if (found := _SLASHED.fullmatch(text)) is None:
                continue
            first, second = map(int, found.groups())
            if second > _MONTHS >= first:
                self.undecided.discard(at)
            elif _DAYS >= first > _MONTHS >= second:
                self._days_first.setdefault(at, (line, text))

    def require_months_first(self, file: Path) -> None:
        """Raise where values prove that the day is first, and none that the month is.

        Raises:
            UnreadableSourceError: naming the column, and the first such value.
        """
        for at in sorted(self.undecided & self._days_first.keys()):
            line, text = self._days_first[at]
            raise UnreadableSourceError(
                f"{file}, line {line}: expected {SOURCE_COLUMNS[at].header} with the month first,"
                f" as 1/31/2018 22:56, or as ISO, found {text!r}, and no value whose month is"
                " first: write the times of the file as 2018-01-31 22:56."
            )


def read_messages(source: Source, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """The key and the value of each row from ``start`` on, counted from 0.

    The value is a JSON object in UTF-8 of the fields' texts, unchanged but for decimal commas,
    under their headers, in the contract's order; the withheld one is not in it. The key is the text
    of Order Id.

    Raises:
        UnreadableSourceError: for a row that was not there when the file was examined.
    """
    with _Rows(source.file, source.encoding) as rows:
        width, delimiter = len(rows.header), rows.delimiter
        chosen: Callable[[list[str]], Sequence[str]] = itemgetter(*rows.places)
        if source.has_decimal_commas:
            chosen = partial(_with_points, itemgetter(*rows.places))
        key_place = [column.header for column in SOURCE_COLUMNS].index(KEY_HEADER)
        names = [encode_basestring(column.header) for column in SOURCE_COLUMNS]
        plain, quoted = _json_parts(names, '"'), _json_parts(names, "")
        for line, row in islice(rows, start, None):
            fields = row.split(delimiter) if isinstance(row, str) else row
            if len(fields) != width:
                raise rows.ragged(line, len(fields))
            texts = chosen(fields)
            if isinstance(row, str):
                # None of its characters needs an escape: half the time of the other way.
                plain[1::2] = texts
                value = "".join(plain)
            else:
                quoted[1::2] = map(encode_basestring, texts)
                value = "".join(quoted)
            yield texts[key_place].encode(), value.encode()


def _with_points(chosen: Callable[[list[str]], tuple[str, ...]], fields: list[str]) -> list[str]:
    """The chosen fields, their numbers' decimal commas as points: no message says which it has."""
    texts = list(chosen(fields))
    for at in _NUMERIC:
        if _WITH_COMMA.fullmatch(texts[at]):
            texts[at] = texts[at].replace(",", ".")
    return texts


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
        self._of = {
            "file": path,
            "identity": source.identity,
            "topic": topic,
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


class _Rows:
    """The rows of a CSV file below its header: the number of a row's first line, and the row.

    A row that can be taken apart at its delimiters, and of which no character needs an escape in
    JSON, is its text; another one is the list of its fields. Lines of nothing but delimiters and
    blanks are no rows. ``places`` are those of SOURCE_COLUMNS among the fields.
    """

    header: tuple[str, ...]
    places: tuple[int, ...]
    delimiter: str = ""

    def __init__(self, file: Path, encoding: str) -> None:
        self.file = file
        self._encoding = encoding

    def __enter__(self) -> Self:
        self._text = io.TextIOWrapper(_content(self.file), self._encoding, newline="")
        try:
            self._found = self._read()
            _, row = next(self._found, (0, ""))
            names = row.split(self.delimiter or ",") if isinstance(row, str) else row
            # What programs put into names: a mark, a non-breaking space, a line break.
            self.header = tuple(" ".join(n.replace("\ufeff", " ").split()) for n in names)
            _require_header(self.file, self.header)
            self.places = tuple(self.header.index(column.header) for column in SOURCE_COLUMNS)
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
            f"{self.file}, line {line}: expected {len(self.header)} fields, as many as the"
            f" header's, found {fields}. Mend the line: of a row whose fields are shifted,"
            " nothing can be sent."
        )

    def _read(self) -> Iterator[tuple[int, str | list[str]]]:
        # Not the file's own iterator, which knows no limit.
        lines = iter(partial(self._text.readline, _MOST_CHARACTERS), "")
        number = 0
        delimiter = blanks = ""
        with _telling_breakage(self.file):
            for whole in lines:
                number += 1
                if len(whole) == _MOST_CHARACTERS:
                    raise self._too_long(number)
                line = whole.rstrip("\r\n")
                if not delimiter:
                    if not line or _DECLARATION.match(line):
                        continue
                    # None is in a name of the header; the first of equals is the comma.
                    delimiter = self.delimiter = max(_DELIMITERS, key=line.count)
                    blanks = f"{delimiter} "
                if line.isprintable() and '"' not in line and "\\" not in line:
                    if line.strip(blanks):
                        yield number, line
                    continue
                reader = csv.reader(chain((whole,), lines), strict=True, delimiter=delimiter)
                try:
                    fields = next(reader)
                except csv.Error as error:
                    raise UnreadableSourceError(
                        f"{self.file}, line {number}: expected a row of CSV, in which quotes come"
                        f" in pairs, found one that ends otherwise ({error}). Mend the line."
                    ) from None
                if sum(map(len, fields)) >= _MOST_CHARACTERS:
                    raise self._too_long(number)
                if any(map(str.strip, fields)):
                    yield number, fields
                number += reader.line_num - 1

    def _too_long(self, line: int) -> UnreadableSourceError:
        return UnreadableSourceError(
            f"{self.file}, line {line}: expected a row of less than {_MOST_CHARACTERS:,}"
            " characters, found a longer one: look whether it is a CSV file."
        )


def _require_header(file: Path, header: Sequence[str]) -> None:
    """Raise where a column is missing, unknown or there twice, and say which.

    An index, which may come first, is none.
    """
    header = list(dropwhile(_INDEX.fullmatch, header))
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
    withheld = _letters(WITHHELD_HEADER)
    shown = ", ".join(
        repr("(withheld)" if withheld in _letters(name) else name) for name in names[:_MOST_NAMED]
    )
    return shown + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")


def _letters(name: str) -> str:
    """A name without what others spell differently: customer_password."""
    return re.sub(r"[\W_]+", "", name).casefold()


def _opened(file: Path) -> io.BufferedReader:
    try:
        return file.open("rb")
    except OSError as error:
        raise UnreadableSourceError(
            f"{file}: expected a CSV file, found that it cannot be opened: {error.strerror}."
        ) from error


def _content(file: Path) -> io.BufferedReader | gzip.GzipFile:
    """The file's bytes, or what is packed in them by gzip."""
    binary = _opened(file)
    if not binary.peek(2).startswith(_GZIP):
        return binary
    binary.close()
    return gzip.open(file)


@contextmanager
def _telling_breakage(file: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UnreadableSourceError(
            f"{file}: expected a whole gzip file, found it broken or cut off ({error}): fetch it"
            " again."
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

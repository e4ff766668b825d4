"""The characters of a CSV file: which encoding its bytes are in, and its text as UTF-8.

A byte that is no character travels as a mark, a private character that holds the byte's value: the
reader of CSV cannot hand over ragged rows that are not UTF-8, and the row is to be told.
"""

import codecs
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from retail_assets.resources.tabular.formats import (
    HEAD_BYTES,
    open_stream,
    telling_breakage,
    utf16_of,
)
from retail_assets.resources.tabular.tables import NoTableError

BLOCK_BYTES = 4 * 1024**2
MARK_PREFIX = b"\xf4\x8f"  # of the marks in UTF-8; other private characters may share it
_MARK = "retail_assets.mark"
_FIRST_MARK = 0x10FE00
# Bytes that Windows-1252 gives no character.
_LACKING = (b"\x81", b"\x8d", b"\x8f", b"\x90", b"\x9d")
MARKS = f"[{chr(_FIRST_MARK)}-{chr(_FIRST_MARK + 0xFF)}]"


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    broken = error.object[error.start : error.end]
    return "".join(chr(_FIRST_MARK + byte) for byte in broken), error.end


codecs.register_error(_MARK, _mark)


def unmarked(text: str) -> str:
    r"""A text with its marks spelled out, as \x and two digits."""
    return re.sub(MARKS, lambda m: f"\\x{ord(m[0]) - _FIRST_MARK:02x}", text)


@dataclass(frozen=True)
class Encoding:
    """utf-8, cp1252, latin-1 or a UTF-16, and whether every byte of the file is valid UTF-8."""

    name: str
    is_valid_utf8: bool


def open_text(path: Path, encoding: str) -> IO[str]:
    """The file's lines, each with its end, and with marks where a byte is no character."""
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding
    return io.TextIOWrapper(open_stream(path), encoding=encoding, errors=_MARK, newline="")


def detect_encoding(path: Path, label: str) -> Encoding:
    """The encoding of a text file, UTF-16 by its first bytes, others by those of the whole file.

    A file with invalid UTF-8 is Windows-1252 unless it has a UTF-8 mark or at least as many
    valid multi-byte characters as invalid bytes: then it is UTF-8 with broken rows.

    Raises:
        NoTableError: it has no bytes.
    """
    size = characters = invalid = 0
    is_marked = False
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    with telling_breakage(label), open_stream(path) as stream:
        while True:
            chunk = stream.read(BLOCK_BYTES)
            if size == 0:
                is_marked = chunk.startswith(codecs.BOM_UTF8)
                utf16 = utf16_of(chunk[:HEAD_BYTES])
                if utf16 is not None:
                    return Encoding(utf16, is_valid_utf8=False)
            size += len(chunk)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError:
                # Counted from here on; a character that the last chunk began is not lost.
                state = decoder.getstate()
                decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
                decoder.setstate(state)
                text = decoder.decode(chunk, final=not chunk)
            characters += len(text)
            if decoder.errors != "strict":
                invalid += len(text) - len(text.encode(errors="ignore").decode())
            if not chunk:
                break
    if size == 0:
        raise NoTableError(f"{label} is empty; expected a header and rows. Fetch it again.")
    is_cp1252 = invalid and not is_marked and size - characters < invalid
    return Encoding("cp1252" if is_cp1252 else "utf-8", invalid == 0)


def detect_single_encoding(path: Path, label: str) -> Encoding:
    """The encoding in which every byte of a text file is a character, so that no row is broken.

    What does not begin as UTF-16, and is not UTF-8 throughout, is Windows-1252, or Latin-1 where it
    has bytes that Windows-1252 lacks.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_utf8, is_lacking = True, False
    with telling_breakage(label), open_stream(path) as stream:
        utf16 = utf16_of(stream.read(HEAD_BYTES))
        if utf16 is not None:
            return Encoding(utf16, is_valid_utf8=False)
        stream.seek(0)
        while chunk := stream.read(BLOCK_BYTES):
            # An earlier chunk counts as well: these bytes are good parts of UTF-8's characters.
            is_lacking = is_lacking or any(byte in chunk for byte in _LACKING)
            is_utf8 = is_utf8 and decodes(decoder, chunk)
            if is_lacking and not is_utf8:
                break
        is_utf8 = is_utf8 and decodes(decoder, b"", final=True)
    return Encoding("utf-8" if is_utf8 else "latin-1" if is_lacking else "cp1252", is_utf8)


def decodes(decoder: codecs.IncrementalDecoder, data: bytes, *, final: bool = False) -> bool:
    """Whether the decoder takes the data that come next."""
    try:
        decoder.decode(data, final)
    except UnicodeDecodeError:
        return False
    return True


class Utf8Stream(io.RawIOBase):
    """A byte stream read as UTF-8, then ``ending``; what is no character comes as a mark.

    ``encoding`` is the source's, None where it is valid UTF-8 already.
    """

    def __init__(self, source: io.BufferedIOBase, encoding: str | None, ending: bytes) -> None:
        self._source = source
        self._decoder = codecs.getincrementaldecoder(encoding)(_MARK) if encoding else None
        self._ending = ending

    def readable(self) -> bool:
        """Always, as RawIOBase asks."""
        return True

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes, fewer at the end alone."""
        if size < 0:
            return self.readall()
        # A byte becomes four at most, the decoder may hold back some of the last chunk, and the
        # caller must not get more than it asked for.
        asked = size if self._decoder is None else max(size // 4 - 4, 1)
        chunk = self._source.read(asked)
        is_last = len(chunk) < asked
        if self._decoder is not None:
            chunk = self._decoder.decode(chunk, final=is_last).encode()
        if is_last:
            # In one block with the file's last bytes: they may be a header without a line end.
            room = size - len(chunk)
            chunk, self._ending = chunk + self._ending[:room], self._ending[room:]
        return chunk

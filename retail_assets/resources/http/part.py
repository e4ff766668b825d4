"""A file on its way: written beside its target, put in its place whole or not at all.

Here: the temporary file, its limit and its SHA-256, the undoing of a compression in transit, and
the bar that shows how far it is. Not here: where the bytes come from (download.py).
"""

import hashlib
import os
import secrets
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from retail_assets.resources.http.locations import PermanentDownloadError
from retail_assets.resources.http.retries import truncated

CHUNK_BYTES = 1 << 20
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS

Advance = Callable[[int, int | None], None]


class Part:
    """The temporary file beside the target, with its size and SHA-256; gone on exit.

    Its name is its own, so that two processes fetching to one target cannot mix their bytes.
    Nothing is made on disk before a body begins.
    """

    def __init__(self, target: Path, shown: str, max_bytes: int | None, advance: Advance) -> None:
        self.size = 0
        self.resumable_etag: str | None = None
        self._target = target
        self._path = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        self._shown = shown
        self._max_bytes = max_bytes
        self._advance = advance
        self._total: int | None = None
        self._hash = hashlib.sha256()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            # A full disk may refuse the last flush; that failure is already on its way.
            with suppress(OSError):
                self._file.close()
            self._path.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """Of what was written."""
        return self._hash.hexdigest()

    def refuse_source(self, source: Path) -> None:
        """Raise if the target is the source itself, which is never to be touched."""
        if self._target.exists() and self._target.samefile(source):
            raise PermanentDownloadError(
                f"{self._shown}: expected a target other than the source, found the same "
                "file. Name another target."
            )

    def restart(self, total: int | None) -> None:
        """Forget what was received; raises if ``total`` bytes, if known, are over the limit."""
        self.size, self._total, self._hash = 0, total, hashlib.sha256()
        self.resumable_etag = None
        if total is not None:
            self._check_limit(total, f"{total} bytes announced")
        self._advance(0, total)
        with self._local_errors():
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("xb")
            self._file.seek(0)
            self._file.truncate()

    def write(self, chunk: bytes) -> None:
        """Append a piece."""
        assert self._file is not None  # restart() opens it
        self._check_limit(self.size + len(chunk), "a longer body")
        with self._local_errors():
            self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)
        self._advance(self.size, self._total)

    def commit(self) -> None:
        """Put the file in the target's place in one step, its bytes on disk first."""
        assert self._file is not None
        with self._local_errors():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._path, self._target)

    def _check_limit(self, size: int, found: str) -> None:
        if self._max_bytes is not None and size > self._max_bytes:
            raise PermanentDownloadError(
                f"{self._shown}: expected at most {self._max_bytes} bytes, found {found}. "
                "Check that the location is the right file; if it is, raise the size limit."
            )

    @contextmanager
    def _local_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PermanentDownloadError(
                f"{self._target}: expected to write {self._shown} there, found {error.strerror}. "
                "Check free space and permissions."
            ) from error


def decompressed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the content of a gzip or zlib stream in bounded pieces.

    httpx's own decoder drops every gzip member but the first and takes a stream without its end for
    a whole one.
    """
    decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        for chunk in chunks:
            rest = chunk
            while rest:
                if decoder.eof:
                    rest = rest.lstrip(b"\0")  # padding between members
                    if not rest:
                        break
                    decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
                if piece := decoder.decompress(rest, CHUNK_BYTES):
                    yield piece
                rest = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
        if piece := decoder.flush():
            yield piece
    except zlib.error as error:
        raise truncated(f"a compressed body that does not decompress ({error})") from error
    if not decoder.eof:
        raise truncated("a compressed body without its end")


@contextmanager
def progress_bar(shown: str, enabled: bool) -> Iterator[Advance]:
    """Yield a function that takes the bytes received so far and the total, if known."""
    if not enabled:
        yield lambda completed, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    name = shown.partition("?")[0].rstrip("/").rpartition("/")[2] or shown
    text = TextColumn("{task.description}", markup=False)  # a file's name may hold brackets
    rest = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(text, *rest, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda completed, total: bar.update(task, completed=completed, total=total)

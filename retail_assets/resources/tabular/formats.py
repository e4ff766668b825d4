"""What a file's bytes say that it is, whatever its name: read, or refused by the format's name."""

import codecs
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retail_assets.resources.tabular.tables import UnreadableFileError, shown

HEAD_BYTES = 4096
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_GZIP_MAGIC = b"\x1f\x8b"
_UNPACK = "Unpack it first, or pack it as .gz."
_SAVE = "Save it as CSV or .xlsx."
_OTHERS = (
    (
        rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "an old workbook (.xls), or a workbook encrypted with a password",
        "Open it in Excel or LibreOffice, take the password off if it has one, and save it as"
        " .xlsx.",
    ),
    (rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)", "compressed by bzip2 (.bz2)", _UNPACK),
    (rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", "compressed by Zstandard (.zst)", _UNPACK),
    (rb"\x04\x22\x4d\x18", "compressed by LZ4 (.lz4)", _UNPACK),
    (rb"\xfd7zXZ\x00", "compressed by xz (.xz)", _UNPACK),
    (rb"\x5d\x00\x00..(?:\xff{8}|.{5}\x00{3})", "compressed by LZMA (.lzma)", _UNPACK),
    (rb"\x1f[\x9d\xa0]", "compressed by compress (.Z)", _UNPACK),
    (rb"\x1f\x8b", "compressed by gzip (.gz)", _UNPACK),
    (rb"PK\x03\x04|PK\x05\x06", "a zip archive or a workbook (.xlsx)", _UNPACK),
    (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive (.7z)", _UNPACK),
    (rb"Rar!\x1a\x07", "a RAR archive (.rar)", _UNPACK),
    (rb".{257}ustar", "a tar archive (.tar)", _UNPACK),
    (rb"PAR[1E]", "a Parquet file", _SAVE),
    (rb"ORC[\x00-\x1f]", "an ORC file", _SAVE),
    (rb"Obj\x01", "an Avro file", _SAVE),
    (rb"ARROW1\x00|FEA1", "an Arrow or Feather file", _SAVE),
    (rb"SQLite format 3\x00", "an SQLite database", _SAVE),
    (rb"%PDF-", "a PDF document", _SAVE),
    (rb"\{\\rtf", "an RTF document", _SAVE),
    (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a", "a picture", _SAVE),
)
_WEB_PAGE = re.compile(
    rb"\s*<(?:!doctype|!--|\?xml|html|head|meta|body|table|script|style|div)\b|\s*<!--", re.I
)
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1f]")


def refuse_other_formats(head: bytes, label: str) -> None:
    """Refuse what is no text by its first bytes (HEAD_BYTES of them are enough), by its name.

    Text in UTF-16 is none of what is refused (see ``utf16_of``).

    Raises:
        UnreadableFileError: it is a workbook of another kind, an archive, a document, binary...
    """
    for magic, name, remedy in _OTHERS:
        if re.match(magic, head, re.DOTALL):
            raise UnreadableFileError(f"{label} is {name}. {remedy}")
    utf16 = utf16_of(head)
    if utf16 is None and _is_utf32(head):
        raise UnreadableFileError(f"{label} is UTF-32. Save it as UTF-8.")
    text = head.decode(utf16, "replace").encode(errors="replace") if utf16 else head
    text = text.removeprefix(codecs.BOM_UTF8)
    if _WEB_PAGE.match(text):
        raise UnreadableFileError(
            f"{label} is an HTML or XML page: one that was served in its place (of an error, of"
            " a login), or a table saved as a web page. Fetch it again, or open it in Excel or"
            f" LibreOffice. {_SAVE}"
        )
    first_line = re.split(rb"[\r\n]", text.lstrip(), maxsplit=1)[0]
    if _CONTROLS.search(first_line) or len(_CONTROLS.findall(text)) * 20 > len(text) >= 1000:
        raise UnreadableFileError(f"{label} is a binary file, no text. {_SAVE}")


def utf16_of(head: bytes) -> str | None:
    """The encoding of text in UTF-16, by its mark or else by its NULs; None where it is another."""
    if _is_utf32(head):
        return None
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # A header and what separates values are ASCII, of which every other byte is NUL.
    even, odd = head[:512:2], head[1:512:2]
    for nuls, others, name in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        is_begun = nuls[:2] == b"\0\0" and b"\0" not in others[:2]
        if is_begun and nuls.count(0) > max(0.3 * len(nuls), 2 * others.count(0)):
            return name
    return None


def _is_utf32(head: bytes) -> bool:
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return True
    first, second, third, fourth = (not any(head[place:64:4]) for place in range(4))
    return len(head) >= 8 and second and third and first != fourth


def open_stream(path: Path) -> io.BufferedReader | gzip.GzipFile:
    """A file's bytes, out of its gzip if it is one."""
    with path.open("rb") as handle:
        is_gzip = handle.read(2) == _GZIP_MAGIC
    return gzip.open(path, "rb") if is_gzip else path.open("rb")


@contextmanager
def telling_breakage(label: str) -> Iterator[None]:
    """Turn what the decompressors raise for what they cannot read into an UnreadableFileError."""
    try:
        yield
    except NotImplementedError as error:
        raise UnreadableFileError(
            f"{label} cannot be unpacked ({error}). Pack it anew with the method deflate."
        ) from error
    except (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        # With a number it is the disk's complaint, not the decompressor's: it may pass.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UnreadableFileError(
            f"{label} is broken or truncated ({shown(str(error))}). Fetch it again; if its origin"
            " is broken too, replace it there."
        ) from error

"""What a file lies in: gzip and zip, told by content, and which of an archive's files are read."""

import gzip
import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from retail_assets.resources.tabular.formats import (
    HEAD_BYTES,
    ZIP_MAGIC,
    open_stream,
    refuse_other_formats,
    telling_breakage,
)
from retail_assets.resources.tabular.tables import UnreadableFileError, shown

_WORKBOOK = "xl/workbook.xml"
_OTHER_ZIPS = {
    "xl/workbook.bin": "a binary workbook (.xlsb)",
    "content.xml": "an OpenDocument file (.ods)",
    "index/document.iwa": "a Numbers document",
    "word/document.xml": "a Word document",
}
_SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx", ".xlsm", ".gz")
_ENCRYPTED = 0x1


@dataclass(frozen=True)
class Part:
    """A file to read: a workbook, or else text that may be in a gzip."""

    path: Path
    label: str
    is_workbook: bool


def normal_names(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The files of a zip by their names in one spelling: programs differ in case and slashes."""
    return {
        member.filename.replace("\\", "/").lstrip("/").lower(): member
        for member in archive.infolist()
        if not member.is_dir()
    }


def unpack(path: Path, label: str, folder: Path, skipped: list[str]) -> Iterator[Part]:
    """Each file to read; what must be unpacked is put into ``folder``.

    ``skipped`` gets a sentence for each file of an archive that is not read.

    Raises:
        UnreadableFileError: it is broken, encrypted, or of another format; or an archive without a
            file to read.
    """
    with telling_breakage(label), open_stream(path) as stream:
        head = stream.read(HEAD_BYTES)
        if not head.startswith(ZIP_MAGIC):
            refuse_other_formats(head, label)
            yield Part(path, label, is_workbook=False)
            return
        if isinstance(stream, gzip.GzipFile):
            # Zips need seeking: what lies in the gzip is unpacked first.
            stream.seek(0)
            path = _copied(stream, folder)
    with telling_breakage(label), zipfile.ZipFile(path) as archive:
        by_name = normal_names(archive)
        if _WORKBOOK in by_name:
            yield Part(path, label, is_workbook=True)
            return
        members = [
            member
            for member in archive.infolist()
            if not member.is_dir()
            and not Path(member.filename).name.startswith((".", "~"))
            and not member.filename.startswith("__MACOSX/")
        ]
        wanted = [m for m in members if m.filename.lower().endswith(_SUFFIXES)]
        if not wanted:
            for name, format_name in _OTHER_ZIPS.items():
                if name in by_name:
                    raise UnreadableFileError(f"{label} is {format_name}. Save it as CSV or .xlsx.")
            names = ", ".join(shown(m.filename) for m in members[:5]) or "nothing"
            raise UnreadableFileError(
                f"{label} is a zip that holds {names}; expected a .csv or .xlsx in it."
            )
        skipped += [
            f"{label}/{shown(m.filename)}: its name ends in none of {', '.join(_SUFFIXES)}"
            for m in members
            if m not in wanted
        ]
        for member in wanted:
            yield from _unpack_member(archive, member, label, folder, skipped)


def _unpack_member(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    label: str,
    folder: Path,
    skipped: list[str],
) -> Iterator[Part]:
    inner = f"{label}/{shown(member.filename)}"
    if member.flag_bits & _ENCRYPTED:
        raise UnreadableFileError(f"{inner} is encrypted. Unpack it with its password first.")
    with telling_breakage(inner), archive.open(member) as source:
        target = _copied(source, folder)
    for part in unpack(target, inner, folder, skipped):
        if member.filename.lower().endswith((".xlsx", ".xlsm")) and not part.is_workbook:
            raise UnreadableFileError(
                f"{inner} is no workbook, whatever its name. Fetch it again, or save it anew as"
                " .xlsx."
            )
        yield part


def _copied(source: io.BufferedIOBase | IO[bytes], folder: Path) -> Path:
    # A name of our own: members of different folders may share theirs, and ../x must not leave.
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as sink:
        shutil.copyfileobj(source, sink, 1024**2)
    return Path(sink.name)

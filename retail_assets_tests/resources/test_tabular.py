"""Tests of retail_assets.resources.tabular, over real files in every container and encoding."""

import csv
import gzip
import io
import random
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import xlsxwriter
from hypothesis import given, settings
from hypothesis import strategies as st

from retail_assets.resources.tabular import RejectedRow, UnreadableFileError, open_tables

Cells = list[str | None]

# A table that compresses badly, so that a cut or a changed byte falls within the data.
NOISE = b"a,b\n" + random.Random(1).randbytes(2000).hex().encode() + b",1\n"


@dataclass(frozen=True)
class Content:
    """What one table of a file came out as."""

    label: str
    header: list[str]
    rows: list[Cells]
    numbers: list[int]
    count: int
    rejected: list[RejectedRow]


def read(path: Path) -> list[Content]:
    scratch = path.parent / "scratch"
    found = []
    with open_tables(path, scratch) as tables:
        for table in tables:
            records = [row for batch in table.batches for row in batch.to_pylist()]
            found.append(
                Content(
                    table.label,
                    table.header,
                    [[r[str(i)] for i in range(len(table.header))] for r in records],
                    [r["row"] for r in records],
                    table.rows,
                    table.rejected,
                )
            )
    assert list(scratch.iterdir()) == []
    return found


def table_or_error(path: Path) -> Content | str:
    """The only table of a file, or what its reader complains of."""
    try:
        (table,) = read(path)
    except UnreadableFileError as error:
        return str(error)
    return table


Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(data: bytes | str, name: str = "table.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def zipped(*members: tuple[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def workbook(path: Path, **sheets: list[list[object]]) -> Path:
    with xlsxwriter.Workbook(str(path)) as book:
        for name, rows in sheets.items():
            sheet = book.add_worksheet(name)
            for number, row in enumerate(rows):
                sheet.write_row(number, 0, row)
    return path


def test_plain_csv_keeps_every_value_as_text(written: Written) -> None:
    (table,) = read(written("a,b\n1,0017\n2.50, x \n"))

    assert table.header == ["a", "b"]
    assert table.rows == [["1", "0017"], ["2.50", " x "]]
    assert table.numbers == [2, 3]
    assert table.count == 2
    assert table.rejected == []
    assert table.label == "table.csv"


@pytest.mark.parametrize(
    "data",
    [
        "name\ncafé £5 Zoë\n".encode(),
        b"\xef\xbb\xbf" + "name\ncafé £5 Zoë\n".encode(),
        "name\ncafé £5 Zoë\n".encode("cp1252"),
    ],
    ids=["utf-8", "utf-8 with BOM", "cp1252"],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_encodings_give_the_same_text(
    written: Written, data: bytes, pack: Callable[[bytes], bytes]
) -> None:
    (table,) = read(written(pack(data)))

    assert table.rows == [["café £5 Zoë"]]
    assert table.header[0].strip("\ufeff") == "name"


def test_every_defined_cp1252_character_is_read(written: Written) -> None:
    defined = [b for b in range(0x80, 0x100) if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)]
    data = b"a,b\n" + b"".join(bytes([b, ord(","), b, b, ord("\n")]) for b in defined)

    (table,) = read(written(data))

    characters = [bytes([b]).decode("cp1252") for b in defined]
    assert table.rows == [[c, c * 2] for c in characters]
    assert table.rejected == []


@pytest.mark.parametrize("undefined", [0x81, 0x8D, 0x8F, 0x90, 0x9D])
def test_an_undefined_cp1252_byte_rejects_its_row_alone(written: Written, undefined: int) -> None:
    data = "a,b\nthé,1\n".encode("cp1252") + bytes([undefined]) + b",2\ncaf\xe9,3\n"

    (table,) = read(written(data))

    assert table.rows == [["thé", "1"], ["café", "3"]]
    assert table.count == 3
    (rejected,) = table.rejected
    assert rejected.row == 3
    assert "no character" in rejected.reason
    assert rejected.text.endswith(",2")


def test_cp1252_is_recognised_when_its_only_accent_ends_the_file(written: Written) -> None:
    (table,) = read(written("a,b\n1,café".encode("cp1252")))

    assert table.rows == [["1", "café"]]


def test_broken_utf8_in_a_utf8_file_rejects_its_row_alone(written: Written) -> None:
    data = "a,b\ncafé,1\nthé,2\n".encode() + b"bad\xff,3\n" + "Zoë,4\n".encode()

    (table,) = read(written(data))

    assert table.rows == [["café", "1"], ["thé", "2"], ["Zoë", "4"]]
    assert table.count == 4
    assert [(r.row, r.text) for r in table.rejected] == [(4, "bad\\xff,3")]


def test_broken_utf8_in_a_ragged_row_does_not_stop_the_file(written: Written) -> None:
    data = "a,b\ncafé,1\nthé,2\n".encode() + b"bad\xff\n" + "Zoë,4\n".encode()

    (table,) = read(written(data))

    assert table.rows == [["café", "1"], ["thé", "2"], ["Zoë", "4"]]
    assert table.count == 4
    assert len(table.rejected) == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_refused(written: Written, encoding: str) -> None:
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")

    with pytest.raises(UnreadableFileError, match="UTF-16"):
        read(written(mark + "a,b\n1,2\n".encode(encoding)))


def test_ragged_rows_are_told_with_line_reason_and_text(written: Written) -> None:
    (table,) = read(written("a,b\n1,2\n3\n4,5\n6,7,8\n3\n9,10\n"))

    assert table.rows == [["1", "2"], ["4", "5"], ["9", "10"]]
    assert table.count == 6
    assert table.rejected == [
        RejectedRow(3, "expected 2 fields, found 1", "3"),
        RejectedRow(5, "expected 2 fields, found 3", "6,7,8"),
        RejectedRow(6, "expected 2 fields, found 1", "3"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_a_ragged_row_with_accents_has_its_line(
    written: Written, encoding: str, newline: str
) -> None:
    text = newline.join(["a,b", "café,1", "thé", "é,2", ""])

    (table,) = read(written(text.encode(encoding)))

    assert [(r.row, r.text) for r in table.rejected] == [(3, "thé")]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_line_ends_and_blank_lines_make_no_rows(written: Written, newline: str) -> None:
    (table,) = read(written(newline.join(["a,b", "1,2", "", "", "3,4", ""])))

    assert table.rows == [["1", "2"], ["3", "4"]]
    assert table.count == 2


def test_quotes_commas_and_newlines_within_fields(written: Written) -> None:
    rows: list[Cells] = [
        ['6" ruler', "x"],
        ["a\nb\r\n\nc", "y,z"],
        ['"', "'"],
        ["last", "one"],
    ]
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([["a", "b"], *rows])

    (table,) = read(written(buffer.getvalue()))

    assert table.rows == rows
    assert table.rejected == []


def test_missing_values_are_null_whether_quoted_or_not(written: Written) -> None:
    (table,) = read(written('a,b,c\n,"",x\n'))

    assert table.rows == [[None, None, "x"]]


def test_nul_characters_come_through(written: Written) -> None:
    (table,) = read(written(b"a,b\n1\x00,2\n3,4\n"))

    assert table.rows == [["1\x00", "2"], ["3", "4"]]


@pytest.mark.parametrize("lines", [3, 3000], ids=["short file", "long file"])
@pytest.mark.parametrize("opening", ['"3,4', '3,"4'], ids=["first field", "last field"])
def test_a_quote_never_closed_swallows_no_row_in_silence(
    written: Written, opening: str, lines: int
) -> None:
    path = written("a,b\n1,2\n" + opening + "\n" + "5,6\n" * lines)

    found = table_or_error(path)

    if isinstance(found, str):
        assert "quote" in found
    else:
        assert all("\n" not in (value or "") for row in found.rows for value in row)
        assert found.rejected, "the lines after the quote are neither rows nor rejected"


def test_a_file_of_no_bytes_is_refused(written: Written) -> None:
    with pytest.raises(UnreadableFileError, match=r"table\.csv has 0 bytes"):
        read(written(""))


def test_a_gzip_of_nothing_is_refused(written: Written) -> None:
    with pytest.raises(UnreadableFileError, match="empty"):
        read(written(gzip.compress(b""), "table.csv.gz"))


@pytest.mark.parametrize("text", ["\n", "\n\n", ",,\n1,2,3\n"])
def test_a_file_without_a_header_is_refused(written: Written, text: str) -> None:
    with pytest.raises(UnreadableFileError, match="no header"):
        read(written(text))


@pytest.mark.parametrize("text", ["a,b\n", "a,b", "a,b\r\n", "a,b\n\n"])
def test_a_header_alone_is_a_table_of_no_rows(written: Written, text: str) -> None:
    (table,) = read(written(text))

    assert table.header == ["a", "b"]
    assert table.rows == []
    assert table.count == 0


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.99])
def test_a_truncated_gzip_is_refused(written: Written, cut: float) -> None:
    whole = gzip.compress(NOISE)

    with pytest.raises(UnreadableFileError, match="Fetch it again"):
        read(written(whole[: int(len(whole) * cut)], "table.csv.gz"))


@pytest.mark.parametrize("place", ["first block", "checksum"])
def test_a_corrupt_gzip_is_refused(written: Written, place: str) -> None:
    whole = bytearray(gzip.compress(NOISE))
    whole[10 if place == "first block" else -8] ^= 0xFF  # the header of a plain gzip has 10 bytes

    with pytest.raises(UnreadableFileError, match="Fetch it again"):
        read(written(bytes(whole), "table.csv.gz"))


@pytest.mark.parametrize("cut", [0.3, 0.99])
def test_a_truncated_zip_is_refused(written: Written, cut: float) -> None:
    whole = zipped(("table.csv", NOISE))

    with pytest.raises(UnreadableFileError, match="Fetch it again"):
        read(written(whole[: int(len(whole) * cut)], "table.zip"))


@pytest.mark.parametrize("place", ["first block", "checksum"])
def test_a_corrupt_zip_member_is_refused(written: Written, place: str) -> None:
    whole = bytearray(zipped(("table.csv", NOISE)))
    directory = whole.find(b"PK\x01\x02")
    whole[30 + len("table.csv") if place == "first block" else directory + 16] ^= 0xFF

    with pytest.raises(UnreadableFileError, match="Fetch it again"):
        read(written(bytes(whole), "table.zip"))


def test_an_encrypted_zip_is_refused(written: Written) -> None:
    whole = bytearray(zipped(("table.csv", "a,b\n1,2\n")))
    whole[6] |= 1  # the general purpose flag "encrypted", in both of its places
    whole[whole.find(b"PK\x01\x02") + 8] |= 1

    with pytest.raises(UnreadableFileError, match="encrypted"):
        read(written(bytes(whole), "table.zip"))


@pytest.mark.parametrize("members", [[], [("report.pdf", "x"), ("__MACOSX/a.csv", "x")]])
def test_a_zip_of_nothing_readable_says_what_it_holds(
    written: Written, members: list[tuple[str, str]]
) -> None:
    with pytest.raises(UnreadableFileError, match=r"report\.pdf|nothing"):
        read(written(zipped(*members), "table.zip"))


def test_a_path_traversal_name_stays_within_scratch(written: Written, tmp_path: Path) -> None:
    home = tmp_path / "one" / "two"
    home.mkdir(parents=True)
    path = written(zipped(("../../evil.csv", "a,b\n1,2\n"), ("/abs.csv", "a,b\n3,4\n")))
    path = path.rename(home / "table.zip")

    tables = read(path)

    assert [t.rows for t in tables] == [[["1", "2"]], [["3", "4"]]]
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["table.zip"]


def test_several_csv_in_one_zip_are_several_tables(written: Written) -> None:
    tables = read(
        written(
            zipped(("a.csv", "x\n1\n"), (".hidden.csv", "x\n9\n"), ("B.CSV", "y\n2\n")), "t.zip"
        )
    )

    assert [(t.label, t.header, t.rows) for t in tables] == [
        ("t.zip/a.csv", ["x"], [["1"]]),
        ("t.zip/B.CSV", ["y"], [["2"]]),
    ]


def test_files_of_one_name_in_different_folders_of_a_zip_are_all_read(written: Written) -> None:
    tables = read(
        written(zipped(("2010/sales.csv", "x\n1\n"), ("2011/sales.csv", "x\n2\n")), "t.zip")
    )

    assert [t.rows for t in tables] == [[["1"]], [["2"]]]


def test_two_zips_with_a_member_of_one_name_share_a_scratch(
    written: Written, tmp_path: Path
) -> None:
    first = written(zipped(("sales.csv", "x\n1\n")), "first.zip")
    second = written(zipped(("sales.csv", "x\n2\n")), "second.zip")

    with (
        open_tables(first, tmp_path / "scratch") as ones,
        open_tables(second, tmp_path / "scratch") as twos,
    ):
        found = [
            [row["0"] for batch in table.batches for row in batch.to_pylist()]
            for table in (*ones, *twos)
        ]

    assert found == [["1"], ["2"]]


def test_gzip_within_a_zip_is_read(written: Written) -> None:
    (table,) = read(written(zipped(("a.csv.gz", gzip.compress(b"x\n1\n"))), "t.zip"))

    assert table.rows == [["1"]]


def test_scratch_is_left_clean_when_the_reader_fails(written: Written, tmp_path: Path) -> None:
    path = written(zipped(("a.csv", "x\n1\n"), ("b.csv", b"\xff\xfex\x00")), "t.zip")

    with pytest.raises(UnreadableFileError), open_tables(path, tmp_path / "scratch"):
        pass

    assert list((tmp_path / "scratch").iterdir()) == []


def test_scratch_is_left_clean_when_the_caller_fails(written: Written, tmp_path: Path) -> None:
    path = written(zipped(("a.csv", "x\n1\n")), "t.zip")

    with pytest.raises(KeyError), open_tables(path, tmp_path / "scratch"):
        raise KeyError

    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_workbook_gives_a_table_a_sheet_that_is_not_empty(tmp_path: Path) -> None:
    path = workbook(
        tmp_path / "book.xlsx",
        one=[["a", "b"], ["x ", 536365], [None, 2.5], [], [7, None]],
        empty=[],
        bare=[["a", "b"]],
    )

    one, bare = read(path)

    assert one.label == "book.xlsx[one]"
    assert one.rows == [["x ", "536365"], [None, "2.5"], ["7", None]]
    assert one.numbers == [2, 3, 5]
    assert one.count == 3
    assert (bare.header, bare.rows, bare.count) == (["a", "b"], [], 0)


def test_a_workbook_of_empty_sheets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="no sheet"):
        read(workbook(tmp_path / "book.xlsx", one=[], two=[]))


@pytest.mark.parametrize("pack", ["gz", "zip"])
def test_a_workbook_is_read_in_every_container(tmp_path: Path, pack: str) -> None:
    book = workbook(tmp_path / "book.xlsx", one=[["a"], ["x"]]).read_bytes()
    path = tmp_path / f"book.xlsx.{pack}"
    path.write_bytes(gzip.compress(book) if pack == "gz" else zipped(("book.xlsx", book)))

    (table,) = read(path)

    assert (table.header, table.rows) == (["a"], [["x"]])


@pytest.mark.parametrize("pack", [bytes, lambda book: zipped(("book.xlsx", book))])
def test_a_truncated_workbook_is_refused(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    book = workbook(tmp_path / "book.xlsx", one=[["a"], ["x"]]).read_bytes()
    path = tmp_path / "cut"
    path.write_bytes(pack(book[: len(book) // 2]))

    with pytest.raises(UnreadableFileError, match="Fetch it again"):
        read(path)


def test_a_workbook_with_a_broken_sheet_is_refused(tmp_path: Path) -> None:
    book = workbook(tmp_path / "book.xlsx", one=[["a"], ["x"]])
    with zipfile.ZipFile(book) as archive:
        members = [(i.filename, archive.read(i)) for i in archive.infolist()]
    path = tmp_path / "broken.xlsx"
    path.write_bytes(zipped(*((n, d[:200] if n.endswith("sheet1.xml") else d) for n, d in members)))

    with pytest.raises(UnreadableFileError, match=r"broken\.xlsx"):
        read(path)


field_text = st.text(
    st.characters(codec="cp1252", exclude_characters="\r\x00"),
    max_size=12,
)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.lists(field_text, min_size=3, max_size=3), min_size=1, max_size=20),
    newline=st.sampled_from(["\n", "\r\n"]),
    packed=st.booleans(),
)
def test_what_the_csv_module_writes_is_what_is_read(
    rows: list[list[str]], newline: str, packed: bool
) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator=newline, quoting=csv.QUOTE_ALL).writerows(
        [["a", "b", "c"], *rows]
    )
    data = buffer.getvalue().encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_bytes(gzip.compress(data) if packed else data)
        (table,) = read(path)

    assert table.rows == [[value or None for value in row] for row in rows]
    assert table.numbers == list(range(2, len(rows) + 2))
    assert table.rejected == []

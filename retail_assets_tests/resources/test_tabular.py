"""Tests of retail_assets.resources.tabular, over real files in every container and encoding."""

import bz2
import csv
import gzip
import hashlib
import io
import lzma
import random
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import xlsxwriter
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retail_assets.resources.tabular import (
    CELL_MARKS,
    NO_VALUE_MARK,
    RejectedRow,
    ScannedCsv,
    TextTable,
    UnreadableFileError,
    clean_name,
    encodings,
    find_unpaired_quote,
    open_strict_csv,
    open_tables,
    scan_csv,
    utf16_of,
    workbook_xml,
)
from retail_assets.resources.tabular import scan as scanning

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
    delimiter: str
    has_marked_cells: bool


def content_of(table: TextTable) -> Content:
    records = [row for batch in table.batches for row in batch.to_pylist()]
    return Content(
        table.label,
        table.header,
        [[r[str(i)] for i in range(len(table.header))] for r in records],
        [r["row"] for r in records],
        table.rows,
        table.rejected,
        table.delimiter,
        table.has_marked_cells,
    )


def read(path: Path) -> list[Content]:
    scratch = path.parent / "scratch"
    with open_tables(path, scratch) as opened:
        found = [content_of(table) for table in opened.tables]
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


@pytest.mark.parametrize("text", ["\n", "\n\n", ",,\n", ' \t\n"",\n;;\n', "sep=;\n;\n"])
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
            for table in (*ones.tables, *twos.tables)
        ]

    assert found == [["1"], ["2"]]


def test_gzip_within_a_zip_is_read(written: Written) -> None:
    (table,) = read(written(zipped(("a.csv.gz", gzip.compress(b"x\n1\n"))), "t.zip"))

    assert table.rows == [["1"]]


def test_scratch_is_left_clean_when_the_reader_fails(written: Written, tmp_path: Path) -> None:
    path = written(zipped(("a.csv", "x\n1\n"), ("b.csv", b"%PDF-1.7")), "t.zip")

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

    filled = {at: row for at, row in enumerate(rows, start=2) if "".join(row).strip(" \t")}
    assert table.rows == [[value or None for value in row] for row in filled.values()]
    assert table.numbers == list(filled)
    assert table.rejected == []


# ---- headers, dialects, other formats


def is_wanted(names: Sequence[str]) -> bool:
    return {"code", "price"} <= set(names)


def read_wanted(path: Path) -> tuple[list[Content], list[str]]:
    with open_tables(path, path.parent / "scratch", is_header=is_wanted) as opened:
        return [content_of(table) for table in opened.tables], opened.skipped


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("declared", ["", "sep=", '"sep=', "SEP="])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_the_header_says_what_separates_fields(
    written: Written, delimiter: str, declared: str, newline: str
) -> None:
    first = declared and declared + delimiter + '"' * declared.startswith('"') + newline
    rows = [["code", "price"], ["a", '"2,5;|"'], ["", ""], ["b"], ["c", "3"]]
    path = written(first + "".join(delimiter.join(row) + newline for row in rows))

    (table,) = read(path)

    assert table.header == ["code", "price"]
    assert table.delimiter == delimiter
    assert table.rows == [["a", "2,5;|"], ["c", "3"]]
    assert [r.row for r in table.rejected] == [5 if declared else 4]
    assert table.count == 3
    assert read_wanted(path) == ([table], [])


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("a b\n1;2\n", ["a b"]),
        ("a;b,c\n", ["a;b", "c"]),
        ("a;b;c,d\n", ["a", "b", "c,d"]),
        ('"a,b,c";d\n', ["a,b,c", "d"]),
        ("sep=;\na,b,c\n1;2\n", ["a,b,c"]),
        ("sep=^\na^b\n", ["a", "b"]),
        ("sep=\na,b\n", ["sep="]),
    ],
)
def test_without_a_wanted_header_most_fields_decide_then_the_comma(
    written: Written, text: str, header: list[str]
) -> None:
    assert [table.header for table in read(written(text))] == [header]


def test_the_wanted_header_decides_against_more_fields_and_a_declaration(written: Written) -> None:
    text = "sep=;\ncode,price,a;b;c;d;e\n1,2,3\n"

    ((table,), skipped) = read_wanted(written(text))

    assert table.rows == [["1", "2", "3"]]
    assert skipped == []


@pytest.mark.parametrize(
    "above",
    [
        "Sales of May\n",
        "Sales of May,,\n,,\n",
        "\n\nSales; of | May\nby me\n\n",
        'An "odd" title\n',
        '"A quote never closed\n',
        '"two\nlines",x\n',
        "code,costs\n" * 19,
    ],
)
def test_rows_above_the_header_are_skipped_and_said(written: Written, above: str) -> None:
    text = above + 'code,"price"\n1,2\n3\n4,5\n'

    ((table,), skipped) = read_wanted(written(text))

    lines = above.count("\n")
    assert table.rows == [["1", "2"], ["4", "5"]]
    assert table.numbers == [lines + 2, lines + 3]
    assert [(r.row, r.text) for r in table.rejected] == [(lines + 3, "3")]
    (said,) = skipped
    assert re.fullmatch(r"table\.csv: \d+ rows? above the header", said)


def test_a_header_far_below_is_none(written: Written) -> None:
    ((table,), skipped) = read_wanted(written("code,costs\n" * 20 + "code,price\n1,2\n"))

    assert table.header == ["code", "costs"]
    assert skipped == []


def test_names_of_several_lines_are_one_header(written: Written) -> None:
    ((table,), _) = read_wanted(written('code,"the\nlong\r\nname"," price\xa0"\n1,2,3\n'))

    assert table.header == ["code", "the long name", "price"]
    assert (table.rows, table.numbers) == ([["1", "2", "3"]], [4])


def test_a_quote_never_closed_in_a_header_takes_no_rows(written: Written) -> None:
    (table,) = read(written('a,"b\n1,2\n3,4\n'))

    assert table.header == ["a", "b"]
    assert table.rows == [["1", "2"], ["3", "4"]]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("\ufeffInvoiceNo", "InvoiceNo"),
        ('\ufeff"Invoice\xa0No"', "Invoice No"),
        ("Customer\r\nID ", "Customer ID"),
        ('""', ""),
        ("Zoë's  \t price", "Zoë's price"),
    ],
)
def test_a_cleaned_name(text: str, name: str) -> None:
    assert clean_name(text) == name
    assert clean_name(name) == name


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("is_marked", [True, False])
def test_utf16_is_read_with_its_mark_or_without(
    written: Written, encoding: str, is_marked: bool, pack: Callable[[bytes], bytes]
) -> None:
    mark = "\ufeff" if is_marked and encoding != "utf-16" else ""
    text = mark + "code,price\r\n日本 €,1\r\n" + "😀,2\r\n" * 3000 + "3\r\n"

    ((table,), _) = read_wanted(written(pack(text.encode(encoding))))

    assert table.header == ["code", "price"]
    assert table.rows == [["日本 €", "1"], *[["😀", "2"]] * 3000]
    assert [(r.row, r.text) for r in table.rejected] == [(3003, "3")]


def test_half_a_character_of_utf16_rejects_its_row_alone(written: Written) -> None:
    data = "code,price\n1,2\n".encode("utf-16-le") + b"\x00\xd8,\x003\x00\n\x00"

    (table,) = read(written(data + "4,5\n6,7".encode("utf-16-le") + b"8"))

    assert table.rows == [["1", "2"], ["4", "5"]]
    assert [(r.row, r.text) for r in table.rejected] == [(3, "\\x00\\xd8,3"), (5, "6,7\\x38")]


OTHER_FORMATS = {
    "old workbook": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), r"\.xls\).*encrypted"),
    "bzip2": (bz2.compress(b"a,b\n1,2\n"), "bzip2"),
    "xz": (lzma.compress(b"a,b\n1,2\n"), "xz"),
    "lzma": (lzma.compress(b"a,b\n1,2\n", format=lzma.FORMAT_ALONE), "LZMA"),
    "Zstandard": (b"\x28\xb5\x2f\xfd\x04\x58", "Zstandard"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04", "7-Zip"),
    "rar": (b"Rar!\x1a\x07\x01\x00", "RAR"),
    "Parquet": (b"PAR1\x15\x04", "Parquet"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
    "HTML": (b"\xef\xbb\xbf\n <!DOCTYPE html><html>", "HTML"),
    "HTML in UTF-16": ("<HTML>\n".encode("utf-16"), "HTML"),
    "spreadsheet in XML": (b'<?xml version="1.0"?>\n<?mso-application?>', "XML"),
    "UTF-32": ("a,b\n1,2\n".encode("utf-32"), "UTF-32"),
    "UTF-32 without a mark": ("a,b\n1,2\n".encode("utf-32-be"), "UTF-32"),
    "NULs": (bytes(2000), "binary"),
    "binary": (bytes(range(256)) * 20, "binary"),
    "random": (random.Random(2).randbytes(5000), "binary"),
}


@pytest.mark.parametrize("name", ["source.csv", "source.xlsx", "source"])
@pytest.mark.parametrize("pack", ["", "gz", "zip"])
@pytest.mark.parametrize("kind", OTHER_FORMATS)
def test_another_format_is_refused_by_its_name(
    written: Written, kind: str, pack: str, name: str
) -> None:
    data, named = OTHER_FORMATS[kind]
    if pack == "zip":
        data, name = zipped((f"{name}.csv", data)), "t.zip"
    path = written(gzip.compress(data) if pack == "gz" else data, name)

    with pytest.raises(UnreadableFileError, match=named) as error:
        read(path)

    assert str(error.value).isprintable()
    assert name in str(error.value)
    assert "ave it" in str(error.value) or "npack it" in str(error.value)


def test_a_gzip_within_a_gzip_is_refused(written: Written) -> None:
    with pytest.raises(UnreadableFileError, match="gzip"):
        read(written(gzip.compress(gzip.compress(b"a,b\n1,2\n"))))


def test_a_tar_is_refused_by_its_name(written: Written) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.csv"))

    with pytest.raises(UnreadableFileError, match="tar archive"):
        read(written(buffer.getvalue(), "t.tgz"))


@pytest.mark.parametrize(
    ("member", "named"),
    [("xl/workbook.bin", "xlsb"), ("content.xml", "OpenDocument"), ("Index/Document.iwa", "Num")],
)
def test_other_workbooks_are_refused_by_name(written: Written, member: str, named: str) -> None:
    with pytest.raises(UnreadableFileError, match=named):
        read(written(zipped((member, "x")), "book.xlsx"))


def test_parts_without_the_header_are_skipped_and_said(written: Written, tmp_path: Path) -> None:
    book = workbook(
        tmp_path / "book.xlsx",
        Notes=[["note"], ["see below"]],
        Data=[["Report"], [], ["code", "price"], ["x", 1], [" ", None], ["y", 2]],
        Empty=[],
    )
    path = written(
        zipped(
            ("README.txt", "Read me, please\n"),
            ("empty.csv", ""),
            ("blank.csv", ",,\n"),
            ("other.csv", "a;b\n1;2\n"),
            ("data.csv", "code;price\n1;2\n"),
            ("book.xlsx", book.read_bytes()),
            ("scan.pdf", "%PDF-"),
        ),
        "t.zip",
    )

    found, skipped = read_wanted(path)

    assert [(t.label, t.delimiter, t.rows, t.numbers) for t in found] == [
        ("t.zip/data.csv", ";", [["1", "2"]], [2]),
        ("t.zip/book.xlsx[Data]", ",", [["x", "1"], ["y", "2"]], [4, 6]),
    ]
    assert [text.split(":")[0] for text in sorted(skipped)] == [
        "t.zip/README.txt",
        "t.zip/blank.csv has no header; expected the table's column names.",
        "t.zip/book.xlsx[Data]",
        "t.zip/book.xlsx[Notes]",
        "t.zip/empty.csv is empty; expected a header and rows. Fetch it again.",
        "t.zip/other.csv",
        "t.zip/scan.pdf",
    ]


def test_where_no_part_has_the_header_the_first_rows_are_shown(tmp_path: Path) -> None:
    path = workbook(tmp_path / "b.xlsx", A=[[], ["a", "b"], [1, 2]], B=[["c"]])

    found, skipped = read_wanted(path)

    assert [(t.header, t.rows, t.numbers) for t in found] == [
        (["a", "b"], [["1", "2"]], [3]),
        (["c"], [], []),
    ]
    assert skipped == []


NAMES = ["code", "price", "name"]
cell = st.text(st.sampled_from('ab1,;|\t "\n.é'), max_size=5)


@settings(deadline=None, max_examples=150)
@given(
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    newline=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]),
    titles=st.lists(
        st.sampled_from(["", ",,", ";", "A title", "Sales, May;", '"x;y"']), max_size=9
    ),
    declared=st.booleans(),
    rows=st.lists(
        st.one_of(
            st.lists(cell, min_size=3, max_size=3),
            st.lists(st.sampled_from(["", " ", "\t"]), min_size=1, max_size=5),
        ),
        max_size=8,
    ),
)
def test_any_dialect_is_read_as_the_csv_module_wrote_it(
    delimiter: str,
    quoting: int,
    newline: str,
    encoding: str,
    titles: list[str],
    declared: bool,
    rows: list[list[str]],
) -> None:
    buffer = io.StringIO()
    buffer.write(f"sep={delimiter}{newline}" * declared)
    buffer.writelines(title + newline for title in titles)
    writer = csv.writer(
        buffer,
        delimiter=delimiter,
        quoting=quoting,
        lineterminator=newline,  # type: ignore[arg-type]
    )
    writer.writerows([NAMES, *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_bytes(buffer.getvalue().encode(encoding))
        ((table,), skipped) = read_wanted(path)

    filled = [row for row in rows if any(value.strip(" \t") for value in row)]
    assert table.header == NAMES
    assert table.delimiter == delimiter
    assert table.rows == [[value or None for value in row] for row in filled]
    assert (table.rejected, table.count) == ([], len(filled))
    above = sum(bool(title.strip(",;")) for title in titles)
    assert skipped == [f"table.csv: {above} row{'s' * (above > 1)} above the header"] * bool(above)


# ---- cells that are not what they seem


def edited(book: Path, member: str, *changes: tuple[str, str]) -> Path:
    """The workbook with texts of one of its files replaced, each of which must be there."""
    with zipfile.ZipFile(book) as archive:
        members = {i.filename: archive.read(i) for i in archive.infolist()}
    text = members[member].decode()
    for old, new in changes:
        assert old in text, (old, text)
        text = text.replace(old, new)
    members[member] = text.encode()
    book.write_bytes(zipped(*members.items()))
    return book


FORMULAS = {
    "no value": ('<c r="B2"><f>1+2</f></c>', NO_VALUE_MARK),
    "openpyxl's": ('<c r="B2"><f>Other!B2</f><v /></c>', NO_VALUE_MARK),
    "an empty value": ('<c r="B2" s="1"><f>1+2</f><v></v></c>', NO_VALUE_MARK),
    "a value of blanks": ('<c r="B2"><f>1+2</f>\n<v> </v>\n</c>', NO_VALUE_MARK),
    "shared": ('<c r="B2"><f t="shared" si="0"/><v/></c>', NO_VALUE_MARK),
    "a text without a value": ('<c r="B2" t="str"><f>A1&amp;"&gt;"</f></c>', NO_VALUE_MARK),
    "another type": ('<c r="B2" t="n"><f>1+2</f><v/></c>', NO_VALUE_MARK),
    "an empty text": ('<c r="B2" t="str"><f>""</f><v></v></c>', None),
    "an empty text in short": ("<c r='B2' t='str'><f>\"\"</f><v/></c>", None),
    "a value": ('<c r="B2"><f>1+2</f><v>3</v></c>', "3"),
    "a text": ('<c r="B2" t="str"><f>A1</f><v>x</v></c>', "x"),
    "a text inline": ('<c r="B2" t="inlineStr"><f>A1</f><is><t>x</t></is></c>', "x"),
    "an error": ('<c r="B2" t="e"><f>1/0</f><v>#DIV/0!</v></c>', "#DIV/0!"),
    "no formula": ('<c r="B2"><v/></c>', None),
    "no cell": ("", None),
}


@pytest.mark.parametrize("prefix", ["", "x:"])
@pytest.mark.parametrize("kind", FORMULAS)
def test_a_formula_without_a_value_is_no_empty_cell(tmp_path: Path, kind: str, prefix: str) -> None:
    cell, expected = FORMULAS[kind]
    book = workbook(tmp_path / "b.xlsx", one=[["a", "b", "c"], [1, 777, 8], [2, 5, 9]])
    edited(book, "xl/worksheets/sheet1.xml", ('<c r="B2"><v>777</v></c>', cell))
    if prefix:
        opening = re.compile(r"<(/?)(\w)")
        with zipfile.ZipFile(book) as archive:
            sheet = archive.read("xl/worksheets/sheet1.xml").decode()
        plain = sheet.removeprefix(sheet.split("\n", 1)[0])
        named = opening.sub(rf"<\1{prefix}\2", plain).replace("xmlns=", f"xmlns:{prefix[:-1]}=")
        edited(book, "xl/worksheets/sheet1.xml", (plain, named))

    (table,) = read(book)

    assert table.rows == [["1", expected, "8"], ["2", "5", "9"]]
    assert table.numbers == [2, 3]
    assert table.has_marked_cells == (expected in CELL_MARKS)


def test_a_formula_of_several_cells_has_no_value_in_each(tmp_path: Path) -> None:
    rows = [["a", "b", "c"], *([n, 777, n] for n in range(1, 5))]
    book = workbook(tmp_path / "b.xlsx", one=rows, two=rows)
    array = '<c r="B3"><f t="array" ref="B3:C4">x</f><v/></c>'
    edited(
        book,
        "xl/worksheets/sheet1.xml",
        ('<c r="B3"><v>777</v></c>', array),
        ('<c r="B4"><v>777</v></c>', '<c r="B4" s="0"/>'),
        ('<c r="C4"><v>3</v></c>', ""),
    )

    one, two = read(book)

    mark = NO_VALUE_MARK
    assert one.rows == [["1", "777", "1"], ["2", mark, "2"], ["3", mark, mark], ["4", "777", "4"]]
    assert (one.has_marked_cells, two.has_marked_cells) == (True, False)
    assert two.rows == [[str(value) for value in row] for row in rows[1:]]


def test_formulas_are_found_wherever_a_sheet_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = workbook(tmp_path / "b.xlsx", one=[["a", "b"], *([n, 777] for n in range(30))])
    edited(book, "xl/worksheets/sheet1.xml", ("<v>777</v>", "<f>1+2</f><v></v>"))
    for size in range(150, 400, 7):
        monkeypatch.setattr(workbook_xml, "_READ_BYTES", size)

        (table,) = read(book)

        assert table.rows == [[str(n), NO_VALUE_MARK] for n in range(30)]


def test_error_cells_are_marks(tmp_path: Path) -> None:
    book = workbook(tmp_path / "b.xlsx", one=[[], ["a", "b"], [1, 777]])
    edited(book, "xl/worksheets/sheet1.xml", ("><v>777</v>", ' t="e"><v>#N/A</v>'))

    (table,) = read(book)

    assert table.rows == [["1", "#N/A"]]
    assert table.has_marked_cells
    assert "#N/A" in CELL_MARKS


SERIAL, MOMENT = 40513.35138888889, "2010-12-01 08:26:00"
FORMATS = {
    **dict.fromkeys([14, 22, 27, 30, 31, 36, 50, 57, 58, 71, 77, 81], True),
    **dict.fromkeys([1, 2, 9, 37, 46, 48, 49, 59, 68, 79], False),
    **dict.fromkeys(
        [
            'yyyy"年"m"月"d"日"',
            '[$-411]ggge"年"m"月"d"日"',
            "[$-411]ge.m.d",
            'ggge"年"',
            'E"年"',
            "[$-D07041E]bbbb",
            "[$-804]aaaa",
            "dd.mm.yyyy hh:mm",
            "dd/mm/yy h:mm AM/PM;@",
            "[Red]d\\-m\\-yyyy",
            "mm:ss.0",
        ],
        True,
    ),
    **dict.fromkeys(
        [
            "[h]:mm",
            "[mm]:ss",
            "General",
            "Standard",
            "0.00E+00",
            '0.00" days"',
            "0.00 g",
            "[Red]0.00",
            "#,##0\\ \\d",
            "@",
        ],
        False,
    ),
}


@pytest.mark.parametrize("epoch", [1900, 1904])
def test_number_formats_of_all_languages_say_what_is_a_date(tmp_path: Path, epoch: int) -> None:
    path = tmp_path / "b.xlsx"
    with xlsxwriter.Workbook(str(path), {"date_1904": epoch == 1904}) as book:
        sheet = book.add_worksheet()
        sheet.write(0, 0, "a")
        for row, code in enumerate(FORMATS, start=1):
            style = book.add_format()
            style.set_num_format(code)
            sheet.write_number(row, 0, SERIAL - 1462 * (epoch == 1904), style)

    (table,) = read(path)

    found = {code: value for code, (value,) in zip(FORMATS, table.rows, strict=True)}
    assert {code: value == MOMENT for code, value in found.items()} == FORMATS
    assert not table.has_marked_cells


def test_hidden_sheets_are_skipped_and_said(tmp_path: Path) -> None:
    book = workbook(
        tmp_path / "b.xlsx",
        shown=[["code", "price"], [1, 2]],
        old=[["code", "price"]],
        deep=[["x"]],
    )
    edited(
        book,
        "xl/workbook.xml",
        ('sheetId="2"', 'sheetId="2" state="hidden"'),
        ('sheetId="3"', 'sheetId="3" state="veryHidden"'),
    )

    found, skipped = read_wanted(book)

    assert [t.label for t in found] == ["b.xlsx[shown]"]
    assert skipped == ["b.xlsx[old]: the sheet is hidden", "b.xlsx[deep]: the sheet is hidden"]


@pytest.mark.parametrize("beside", [{}, {"blank": []}])
def test_a_workbook_whose_rows_are_all_hidden_is_refused(
    tmp_path: Path, beside: dict[str, list[list[object]]]
) -> None:
    book = workbook(tmp_path / "b.xlsx", old=[["code", "price"], [1, 2]], **beside)
    edited(book, "xl/workbook.xml", ('sheetId="1"', 'sheetId="1" state="hidden"'))

    with pytest.raises(UnreadableFileError, match=r"hidden sheets \(old\) are not read"):
        read(book)


@pytest.mark.parametrize("name", ["book.xls", "book.csv", "book.ods", "book"])
def test_a_workbook_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = workbook(tmp_path / "book.xlsx", one=[["a"], ["x"]]).rename(tmp_path / name)

    (table,) = read(path)

    assert table.rows == [["x"]]


# ---- scans


HEADER = ("a", "b", "c")


def scan(path: Path, header: tuple[str, ...] = HEADER) -> ScannedCsv:
    data = path.read_bytes()
    found = scan_csv(path, header, path.parent / "scratch")
    assert path.read_bytes() == data
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    return found


def scanned_rows(found: ScannedCsv, fields: int = 3) -> list[Cells]:
    """Rows of the file that a scan hands on, read as simply as it says that they can be."""
    text = found.file.read_bytes().decode()
    if found.quoted:
        rows = list(csv.reader(io.StringIO(text, newline="")))
    else:
        rows = [line.split(",") for line in text.removesuffix("\n").split("\n")]
        if found.file.parent.name == "scratch":  # a writer's quotes may stand around the values
            rows = [[value.removeprefix('"').removesuffix('"') for value in row] for row in rows]
    assert {len(row) for row in rows} == {fields}
    return [[value or None for value in row] for row in rows[1:]]


PLAIN = [
    "a,b,c\n1,2,3\n",
    "a,b,c\n1,2,3",
    "a,b,c\n",
    "a,b,c\n,,3\n,2,",
    "a,b,c\ncafé,日本, x \n\t,\x0b,\x85\u2028\n",
    "a,b,c\n1,2,é",
]
# Name -> bytes, rows, reasons and texts of the rejected, whether values need quotes.
Shape = tuple[bytes, list[Cells], list[tuple[str, str]], bool]
NOT_PLAIN: dict[str, Shape] = {
    "quotes": (b'a,b,c\n"1",2,3\n', [["1", "2", "3"]], [], False),
    "comma in quotes": (b'a,b,c\n"1,5",2,3\n', [["1,5", "2", "3"]], [], True),
    "line end in quotes": (b'a,b,c\n"1\n5",2,3\n', [["1\n5", "2", "3"]], [], True),
    "quotes in quotes": (b'a,b,c\n"1""5",2,3\n', [['1"5', "2", "3"]], [], True),
    "quoted header": (b'"a","b",c\n1,2,3\n', [["1", "2", "3"]], [], False),
    "empty quotes": (b'a,b,c\n"",2,""\n', [[None, "2", None]], [], False),
    "CR LF": (b"a,b,c\r\n1,2,3\r\n4,,6", [["1", "2", "3"], ["4", None, "6"]], [], False),
    "CR LF at the end alone": (b"a,b,c\n1,2,3\r\n", [["1", "2", "3"]], [], False),
    "header of CR LF alone": (b"a,b,c\r\n", [], [], False),
    "header without a line end": (b"a,b,c", [], [], False),
    "byte order mark": (b"\xef\xbb\xbfa,b,c\n1,2,3\n", [["1", "2", "3"]], [], False),
    "cp1252": (b"a,b,c\ncaf\xe9,2,3\n", [["café", "2", "3"]], [], False),
    "cp1252 that pieces may join": (b"a,b,c\n\xc31\xa9,2,3\n", [["Ã1©", "2", "3"]], [], False),
    "cp1252 at the end": (b"a,b,c\n1,2,caf\xe9", [["1", "2", "café"]], [], False),
    "broken UTF-8": (
        "a,b,c\né,é,é\n1,2,".encode() + b"\xff\n4,5,6\n",
        [["é", "é", "é"], ["4", "5", "6"]],
        [("broken text: a byte sequence that is no character", "1,2,\\xff")],
        False,
    ),
    "too few fields": (
        b"a,b,c\n1,2\n4,5,6\n",
        [["4", "5", "6"]],
        [("expected 3 fields, found 2", "1,2")],
        False,
    ),
    "too many fields": (
        b"a,b,c\n1,2,3,4\n4,5,6\n",
        [["4", "5", "6"]],
        [("expected 3 fields, found 4", "1,2,3,4")],
        False,
    ),
    "too few and too many": (  # as many commas as in two good rows
        b"a,b,c\n1,2,3,4\n5,6\n",
        [],
        [("expected 3 fields, found 4", "1,2,3,4"), ("expected 3 fields, found 2", "5,6")],
        False,
    ),
    "too few in the last": (
        b"a,b,c\n1,2,3\n4",
        [["1", "2", "3"]],
        [("expected 3 fields, found 1", "4")],
        False,
    ),
    "blank lines": (b"a,b,c\n\n1,2,3\n\n\n", [["1", "2", "3"]], [], False),
    "commas alone": (b"a,b,c\n,,\n1,2,3\n,,\n", [["1", "2", "3"]], [], False),
    "commas alone in the last": (b"a,b,c\n1,2,3\n,,", [["1", "2", "3"]], [], False),
    "commas alone, ragged": (b"a,b,c\n,\n1,2,3\n , ,\t,\n", [["1", "2", "3"]], [], False),
    "a header in quotes and blanks": (
        '\ufeff" a\xa0","b\n",  c\n1,2,3\n'.encode(),
        [["1", "2", "3"]],
        [],
        False,
    ),
    "a title above": (b"Report\n\na,b,c\n1,2,3\n", [["1", "2", "3"]], [], False),
    "semicolons": (b"a;b;c\n1;2,5;3\n", [["1", "2,5", "3"]], [], True),
    "UTF-16": ("a,b,c\n1,2,3é\n".encode("utf-16-le"), [["1", "2", "3é"]], [], False),
    "NUL": (b"a,b,c\n1,2,3\0\n", [["1", "2", "3\0"]], [], True),
    "gzip": (gzip.compress(b"a,b,c\n1,2,3\n"), [["1", "2", "3"]], [], False),
    "zip": (zipped(("x.csv", "a,b,c\n1,2,3\n")), [["1", "2", "3"]], [], False),
}


@pytest.fixture(params=[1, 2, 3, 7, 4 * 1024**2])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of the look at a file's bytes; the reader of CSV takes no blocks shorter than a row."""
    size = int(request.param)
    plain = scanning._scan_plain

    def scan_plain(path: Path, header: tuple[str, ...]) -> tuple[str, int | None]:
        with monkeypatch.context() as patched:
            patched.setattr(scanning, "BLOCK_BYTES", size)
            return plain(path, header)

    monkeypatch.setattr(scanning, "_scan_plain", scan_plain)
    return size


@pytest.mark.parametrize("name", ["", "index", "Unnamed: 0", "Unnamed: 12"])
def test_a_column_without_a_name_may_have_the_one_that_pandas_gives(
    written: Written, name: str
) -> None:
    path = written(f"{name},b\n1,2\n")

    assert scanned_rows(scan(path, ("", "b")), 2) == [["1", "2"]]
    for other in (("a", "b"), ("", "b", ""), ("",), ("b", "")):
        with pytest.raises(UnreadableFileError, match="header"):
            scan(path, other)


@pytest.mark.parametrize("above", ["", "index,", ",", "Unnamed: 0,", "Unnamed: 0.1,Unnamed: 0,"])
@pytest.mark.parametrize("header", [("a", "b"), ("", "b")])
def test_further_indexes_before_all_columns_are_left_out(
    written: Written, header: tuple[str, ...], above: str
) -> None:
    before = "8," * above.count(",")
    path = written(f"{above}{','.join(header)}\n{before}1,2\n{before},\n{before}3\n")

    found = scan(path, header)

    assert scanned_rows(found, 2) == [["1", "2"], *([[None, None]] if before else [])]
    assert [row.text for row in found.rejected] == [f"{before}3"]
    assert found.rows == len(scanned_rows(found, 2)) + 1


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("text", PLAIN)
def test_a_plain_file_is_counted_and_not_copied(written: Written, text: str) -> None:
    path = written(text)

    found = scan(path)

    assert found == ScannedCsv(path, found.sha256, text.strip("\n").count("\n"))
    assert not (path.parent / "scratch").exists()
    (table,) = read(path)
    assert scanned_rows(found) == table.rows


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("shape", NOT_PLAIN)
def test_a_file_that_is_not_plain_is_copied_without_its_bad_rows(
    written: Written, shape: str
) -> None:
    data, rows, rejected, quoted = NOT_PLAIN[shape]
    path = written(data, "drop.csv")

    found = scan(path)

    assert found.file.parent == path.parent / "scratch"
    assert scanned_rows(found) == rows
    assert [(row.reason, row.text) for row in found.rejected] == rejected
    assert found.rows == len(rows) + len(rejected)
    assert found.quoted == quoted


@pytest.mark.parametrize("name", ["drop.csv.gz", "drop.CSV.ZIP", "drop", "_drop.csv", ".drop.csv"])
def test_a_copy_has_a_name_that_an_engine_reads_as_csv(written: Written, name: str) -> None:
    found = scan(written(gzip.compress(b"a,b,c\n1,2,3\n"), name))

    assert found.file.suffix == ".csv"
    assert found.file.name[0] not in "._"


def test_files_of_one_name_have_copies_of_their_own(written: Written, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = written("a,b,c\r\n1,2,3\n"), written("a,b,c\r\n4,5,6\n", "other/table.csv")

    copies = [scan_csv(path, HEADER, tmp_path / "scratch") for path in (first, second)]

    assert [scanned_rows(copy) for copy in copies] == [[["1", "2", "3"]], [["4", "5", "6"]]]


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize(
    "header",
    ["a,b", "a,b,c,d", "a,c,b", "A,b,c", "a,b,cc", "x,b,c", "A,B,C", ",b,c"],
)
@pytest.mark.parametrize("rows", ["", "\n1,2,3\n", '\n"1",2,3\r\n'])
def test_another_header_is_refused_with_what_was_expected_and_found(
    written: Written, header: str, rows: str
) -> None:
    with pytest.raises(UnreadableFileError) as error:
        scan(written(header + rows))

    message = str(error.value)
    assert message.startswith("table.csv has the header " + repr(header.replace('"', "")))
    assert "expected 'a,b,c'" in message


@pytest.mark.parametrize("first", ["Siti,Tan,+60 1", '"a,b,c"', "Siti", ",,x"])
def test_a_first_row_that_is_no_header_is_not_told(written: Written, first: str) -> None:
    with pytest.raises(UnreadableFileError, match=r"has no header: of the \d fields") as error:
        scan(written(f"{first}\n1,2,3\n"))

    assert "Siti" not in str(error.value) and "expected 'a,b,c'" in str(error.value)


def test_a_scan_says_what_it_skipped_and_by_what_fields_were_separated(written: Written) -> None:
    members = [("README.txt", "Read me\n"), ("x.csv", "A title\na;b;c\n1;2;3\n")]

    found = scan(written(zipped(*members), "t.zip"))

    assert scanned_rows(found) == [["1", "2", "3"]]
    assert found.delimiter == ";"
    assert found.skipped == (
        "t.zip/README.txt: no row of it is the header",
        "t.zip/x.csv: 1 row above the header",
    )


def test_a_header_may_begin_with_a_name_of_no_characters(written: Written) -> None:
    for data in ("\n".join([",b", "1,2", ""]), "\r\n".join([",b", "1,2", ""])):
        assert scanned_rows(scan(written(data), ("", "b")), fields=2) == [["1", "2"]]


@pytest.mark.parametrize("header", [HEADER, ("a",)], ids=["three columns", "one column"])
def test_a_scan_of_no_bytes_is_refused(written: Written, header: tuple[str, ...]) -> None:
    with pytest.raises(UnreadableFileError, match=r"table\.csv has 0 bytes"):
        scan(written(""), header)


def test_blank_lines_are_no_rows_of_one_column_either(written: Written) -> None:
    found = scan(written("a\n1\n\n2\n"), ("a",))

    assert scanned_rows(found, fields=1) == [["1"], ["2"]]
    assert found.rows == 2


def test_a_zip_of_two_tables_is_no_csv(written: Written) -> None:
    members = [(f"{n}.csv", "a,b,c\n") for n in range(2)]

    with pytest.raises(UnreadableFileError, match=r"t\.zip holds 2 tables; expected one CSV"):
        scan(written(zipped(*members), "t.zip"))


plain_text = st.text(
    st.characters(codec="utf-8", exclude_characters='",\r\n\x00\ufeff'), max_size=4
)


@settings(deadline=None, max_examples=100)
@given(
    # A row of commas and blanks is one to the look at bytes, and none to the reader.
    rows=st.lists(
        st.lists(plain_text, min_size=3, max_size=3).filter(
            lambda row: not "".join(row) or "".join(row).strip(" \t")
        ),
        max_size=12,
    ),
    is_ended=st.booleans(),
    block=st.integers(1, 64),
)
def test_any_plain_file_is_never_copied(rows: list[list[str]], is_ended: bool, block: int) -> None:
    text = "\n".join(",".join(row) for row in [list(HEADER), *rows]) + "\n" * (is_ended or not rows)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        path = Path(folder) / "table.csv"
        path.write_bytes(text.encode())
        patched.setattr(scanning, "BLOCK_BYTES", block)
        found = scan(path)

        filled = [row for row in rows if "".join(row)]
        assert found.rows == len(filled)
        assert (found.file == path) == (len(filled) == len(rows))
        assert scanned_rows(found) == [[value or None for value in row] for row in filled]


@settings(deadline=None, max_examples=200)
@given(
    lines=st.lists(
        st.sampled_from(
            [
                *("1,2,3", "x,,", ",,", "é,日,€", '"q",2,3', '"q,r",2,3', '"a\nb",,', '"""",2,3'),
                *("1,2", "1,2,3,4", "", "1,2,3\0", "1,2,3\r"),
            ]
        ),
        max_size=8,
    ),
    end=st.sampled_from(["\n", ""]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig"]),
)
def test_a_scan_finds_what_the_reader_of_tables_finds(
    lines: list[str], end: str, encoding: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_bytes(("\n".join(["a,b,c", *lines]) + end).encode(encoding))
        (table,) = read(path)
        found = scan(path)

        assert scanned_rows(found) == table.rows
        assert found.rejected == tuple(table.rejected)
        assert found.rows == table.count


def scan_or_error(path: Path) -> ScannedCsv | str:
    try:
        return scan(path)
    except UnreadableFileError as error:
        return str(error)


@settings(deadline=None, max_examples=300)
@given(
    parts=st.lists(
        st.sampled_from(
            [b"1", b",", b",", b"1,2,3\n", b"\n", b'"', b"\r", b"\0", b"\xff", b"\xe9", b"\xc3\xa9"]
        ),
        max_size=20,
    )
)
def test_any_bytes_after_a_header_are_rows_or_rejected_or_refused(parts: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_bytes(b"a,b,c\n" + b"".join(parts))
        expected, found = table_or_error(path), scan_or_error(path)

        if isinstance(found, str) or isinstance(expected, str):
            assert found == expected
        else:
            assert scanned_rows(found) == expected.rows
            assert found.rejected == tuple(expected.rejected)
            assert found.rows == expected.count


# ---- one encoding for all bytes


def _by_the_rule(data: bytes) -> str:
    for encoding in ("utf-8", "cp1252"):
        with suppress(UnicodeDecodeError):
            data.decode(encoding)
            return encoding
    return "latin-1"


CHARACTERS = st.text(st.sampled_from("ab,é€Š“ü\u0081\u009d\n") | st.characters(codec="utf-8"))
ANY_BYTES = st.one_of(
    st.binary(max_size=60),
    CHARACTERS.map(lambda text: text.encode("utf-8")),
    CHARACTERS.map(lambda text: text.encode("utf-8-sig")),
    CHARACTERS.map(lambda text: text.encode("cp1252", "ignore")),
    CHARACTERS.map(lambda text: text.encode("latin-1", "ignore")),
    # Good UTF-8, cut off: at the end of the file it is none.
    CHARACTERS.map(lambda text: text.encode("utf-8")[:-1]),
).filter(lambda data: utf16_of(data) is None)


@settings(max_examples=400, deadline=None)
@given(data=ANY_BYTES, chunk=st.integers(1, 9))
@example(data="é".encode() * 3 + b"\xe9", chunk=1)
@example(data="\u00c1".encode() + b" \xe9", chunk=2)  # C3 81: 81 counts once it is no UTF-8
@example(data=b"\xef\xbb", chunk=1)
@example(data=b"", chunk=1)
def test_an_encoding_is_decided_by_the_whole_file(data: bytes, chunk: int) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(encodings, "BLOCK_BYTES", chunk)
        file = Path(name) / "a.csv"
        file.write_bytes(data)
        found = encodings.detect_single_encoding(file, "a.csv")

        assert found == encodings.Encoding(_by_the_rule(data), _by_the_rule(data) == "utf-8")
        text = file.read_text(encoding=found.name, errors="strict")
        assert "\ufffd" not in text or "\ufffd".encode() in data


def test_a_late_character_decides(written: Written) -> None:
    plain = b"a" * (3 * encodings.BLOCK_BYTES - 1)

    def detected(data: bytes) -> str:
        return encodings.detect_single_encoding(written(data), "a.csv").name

    assert detected(plain) == "utf-8"
    assert detected(plain + "é".encode()) == "utf-8"
    assert detected(plain + "é".encode()[:1]) == "cp1252"
    assert detected(plain + "é".encode("cp1252") + b"a") == "cp1252"
    assert detected(b"\x8d" + plain + b"\xe9") == "latin-1"


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_file_is_read_strictly(written: Written, pack: Callable[[bytes], bytes]) -> None:
    path = written(pack(b'sep=;\na;b\n1;"x\ny"\n3;\xe9\x81\n'))

    with open_strict_csv(path, lambda names: names == ["a", "b"]) as table:
        assert find_unpaired_quote(path, table) is None
        assert content_of(table).rows == [["1", "x\ny"], ["3", "\xe9\x81"]]
    assert (table.encoding, table.delimiter, table.rejected) == ("latin-1", ";", [])
    with open_strict_csv(path, lambda names: True, encoding=table.encoding) as again:
        assert content_of(again).rows == [["1", "x\ny"], ["3", "\xe9\x81"]]


@pytest.mark.parametrize("value", ['"x" y', '"x', '"x" "y"', '"x\ny" z'])
def test_a_quote_that_does_not_pair_is_found(written: Written, value: str) -> None:
    path = written(f'a,b\n1,"x\n"\n2,{value}\n3,"z"\n')

    with open_strict_csv(path, lambda names: True) as table:
        found = find_unpaired_quote(path, table)
        assert found is not None and found.row == 4 and found.text.startswith('2,"x')


@pytest.mark.parametrize("data", [zipped(("a.csv", "a,b\n1,2\n")), bz2.compress(b"a,b\n1,2\n")])
def test_a_strict_file_is_not_unpacked_to_the_disk(written: Written, data: bytes) -> None:
    with (
        pytest.raises(UnreadableFileError, match="Unpack it first"),
        open_strict_csv(written(data), lambda names: True),
    ):
        pass

"""Tests of retail_assets.defs.supply_chain.stream: text, rows, messages, and going on."""

import base64
import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retail_assets.defs.supply_chain import stream
from retail_assets.defs.supply_chain.contract import (
    CSV_HEADER,
    GROUP,
    SOURCE_COLUMNS,
    TOPIC,
    WITHHELD_HEADER,
)
from retail_assets.defs.supply_chain.order_lines import (
    Source,
    UnreadableSourceError,
    examine_source,
    read_messages,
)
from retail_assets.defs.supply_chain.sample import write_sample
from retail_assets.defs.supply_chain.stream import ChangedSourceError, Streamed, stream_file
from retail_assets.resources.broker import embedded as broker_embedded
from retail_assets.resources.broker.resource import BrokerResource, Message, StalledConsumerError
from retail_assets.resources.tabular import delimited, encodings

SECRET = "hunter2-Ünïque"
NAMES = [column.header for column in SOURCE_COLUMNS]
WITHHELD = CSV_HEADER.index(WITHHELD_HEADER)
Row = Sequence[str]


def _row(order: object = 1, **fields: str) -> list[str]:
    """A row of the CSV file; each text tells its column."""
    named = {name: f"{place}-{order}" for place, name in enumerate(CSV_HEADER)}
    return list((named | {"Order Id": str(order), WITHHELD_HEADER: SECRET} | fields).values())


def _csv(rows: Sequence[Row], header: Row = CSV_HEADER, end: str = "\n") -> str:
    # Python's own writer leaves some line ends within a text without quotes.
    return "".join(",".join(map(_quoted, row)) + end for row in (header, *rows))


def _quoted(text: str) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"' if set(text) & set(',"\r\n') else text


def _file(folder: Path, text: str | bytes, encoding: str = "utf-8") -> Path:
    path = folder / "orders.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def _messages(file: Path, start: int = 0) -> list[tuple[str, dict[str, str]]]:
    source = examine_source(file)
    found = [(key.decode(), json.loads(value)) for key, value in read_messages(source, start)]
    assert len(found) == source.rows - start
    return found


def _expected(row: Row) -> tuple[str, dict[str, str]]:
    fields = dict(zip(CSV_HEADER, row, strict=True))
    return fields["Order Id"], {name: fields[name] for name in NAMES}


# --- which text the bytes are


FORMATS = {
    b"PK\x03\x04": "a zip archive or a workbook (.xlsx)",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old workbook (.xls)",
    bz2.compress(b"a"): "bzip2",
    lzma.compress(b"a"): "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    gzip.compress(gzip.compress(b"a")): "compressed by gzip",
}


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "Bogotá, L\u2019Aquila, 東京"),
        ("utf-8-sig", "Bogotá, L\u2019Aquila, 東京"),
        ("cp1252", "Bogotá, L\u2019Aquila, Žilina €"),
        ("latin-1", "Bogotá, \x81 \x9d"),
    ],
)
def test_a_message_has_the_characters_of_the_file(tmp_path: Path, encoding: str, text: str) -> None:
    row = _row(7, **{"Order City": text})
    file = _file(tmp_path, _csv([row]), encoding)

    assert examine_source(file).encoding == encoding.removesuffix("-sig")
    assert _messages(file) == [_expected(row)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("before", ["", "\ufeff", "sep=,\r\n"])
def test_utf_16_is_read_with_and_without_its_mark(
    tmp_path: Path, encoding: str, before: str
) -> None:
    row = _row(7, **{"Order City": "Bogotá, 東京 🙂"})
    before = "" if encoding == "utf-16" and before == "\ufeff" else before
    file = _file(tmp_path, before + _csv([row]), encoding)

    assert _messages(file) == [_expected(row)]
    broken = file.read_bytes() + b"a"
    assert "expected 53 fields, as many as the header's, found 1" in _refusal(
        _file(tmp_path, broken)
    )


# --- rows and messages


FIELDS = st.text(
    st.sampled_from('a ,"\\\n\r\t\0\x1f\x7f\x85\xa0\u2028é/') | st.characters(codec="utf-8"),
    max_size=6,
)
ROWS = st.lists(
    st.dictionaries(st.sampled_from(CSV_HEADER), FIELDS, max_size=5).map(lambda f: _row(**f)),
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(
    rows=ROWS,
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig"]),
    last_end=st.booleans(),
)
def test_a_message_has_the_texts_of_its_row(
    rows: list[list[str]], end: str, encoding: str, last_end: bool
) -> None:
    text = _csv(rows, end=end)
    with tempfile.TemporaryDirectory() as name:
        file = _file(Path(name), text if last_end else text.removesuffix(end), encoding)

        assert _messages(file) == [_expected(row) for row in rows]


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, header=st.permutations(CSV_HEADER), withheld=st.booleans())
def test_columns_come_in_any_order_and_the_withheld_one_may_be_absent(
    rows: list[list[str]], header: list[str], withheld: bool
) -> None:
    header = [name for name in header if withheld or name != WITHHELD_HEADER]
    places = [CSV_HEADER.index(name) for name in header]
    with tempfile.TemporaryDirectory() as name:
        file = _file(Path(name), _csv([[row[p] for p in places] for row in rows], header))

        assert _messages(file) == [_expected(row) for row in rows]


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, start=st.integers(0, 7))
def test_messages_can_be_read_from_any_row_on(rows: list[list[str]], start: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        source = examine_source(_file(Path(name), _csv(rows)))

        assert list(read_messages(source, start)) == list(read_messages(source))[start:]


def test_a_message_is_compact_json_in_the_contracts_order(tmp_path: Path) -> None:
    plain, quoted = _row(1, **{"Order City": "Bogotá"}), _row(2, **{"Order City": 'A "B", \\ C'})
    source = examine_source(_file(tmp_path, _csv([plain, quoted]), "cp1252"))

    for row, (key, value) in zip((plain, quoted), read_messages(source), strict=True):
        expected_key, fields = _expected(row)
        assert key == expected_key.encode()
        told = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
        assert value.decode() == told


def test_the_sample_comes_out_as_the_csv_module_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "sample.csv"
    counts = write_sample(file, orders=300)
    with file.open(encoding="cp1252", newline="") as text:
        rows = list(csv.reader(text))[1:]

    source = examine_source(file)
    assert (source.encoding, source.rows) == ("cp1252", counts.lines)
    assert _messages(file) == [_expected(row) for row in rows]
    sizes = [len(value) for _, value in read_messages(source)]
    assert 1_300 < sum(sizes) / len(sizes) < 1_900


def test_empty_lines_are_no_rows(tmp_path: Path) -> None:
    header, *lines = _csv([_row(1), _row(2)]).splitlines(keepends=True)
    file = _file(tmp_path, "\n" + header + "\n\r\n" + lines[0] + "\n" + lines[1] + "\r\n\n")

    assert [key for key, _ in _messages(file)] == ["1", "2"]


def test_rows_of_nothing_but_delimiters_are_no_rows(tmp_path: Path) -> None:
    nothing = ["," * 52, "," * 60, ", ,", '"",' * 52 + '" "', " "]
    header, *lines = _csv([_row(1), _row(2)]).splitlines()
    text = "\n".join([",,,", header, *nothing, lines[0], *nothing, lines[1], *nothing])

    assert [key for key, _ in _messages(_file(tmp_path, text))] == ["1", "2"]


# What programs make of the source's names, and put before them.
NAMES_CHANGED = st.sampled_from(["\xa0", "\n", "\r\n", "  ", " \xa0"])


@settings(max_examples=150, deadline=None)
@given(
    rows=ROWS,
    delimiter=st.sampled_from(",;\t|"),
    declared=st.sampled_from(["", "sep={}\n", '"SEP={}"\r\n', "\nsep={}\n"]),
    index=st.sampled_from([(), ("",), ("Unnamed: 0",), ("Unnamed: 0.1", "Unnamed: 0")]),
    blank=NAMES_CHANGED,
    packed=st.booleans(),
)
def test_a_file_may_be_as_programs_write_it(
    rows: list[list[str]],
    delimiter: str,
    declared: str,
    index: tuple[str, ...],
    blank: str,
    packed: bool,
) -> None:
    header = [*index, *(name.replace(" ", blank) for name in CSV_HEADER)]
    text = io.StringIO(newline="")
    text.write(declared.format(delimiter))
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL if rows else 0)
    writer.writerows([header, *([str(n)] * len(index) + row for n, row in enumerate(rows))])
    data = text.getvalue().encode()
    with tempfile.TemporaryDirectory() as name:
        file = _file(Path(name), gzip.compress(data) if packed else data)

        assert _messages(file) == [_expected(row) for row in rows]


def test_decimal_commas_are_read_where_another_mark_separates(tmp_path: Path) -> None:
    amounts = {"Sales": "327,75", "Latitude": "-66,03", "Order Item Discount Rate": "4,0e-2"}
    codes = {"Order Zipcode": "94103,0", "Customer Id": "7,0", "Order Id": "1,0"}
    texts = {"Order City": "1,5", "Product Price": "1.234,50", "order date (DateOrders)": "1,5"}
    row = _row("1,0", **amounts, **codes, **texts)
    file = _file(tmp_path, "\n".join(";".join(each) for each in (CSV_HEADER, row)))

    ((key, fields),) = _messages(file)

    pointed = {n: text.replace(",", ".") for n, text in (amounts | codes).items()}
    assert (key, fields) == ("1.0", _expected(row)[1] | pointed)
    # Nor are they where the comma separates, or where nothing says that commas are points.
    assert _messages(_file(tmp_path, _csv([row]))) == [_expected(row)]
    plain = _row(1, **{n: text.replace(",", ".") for n, text in amounts.items()})
    file = _file(tmp_path, "\n".join(";".join(each) for each in (CSV_HEADER, plain)))
    assert _messages(file) == [_expected(plain)]


def test_numbers_with_both_decimal_marks_are_refused(tmp_path: Path) -> None:
    rows = [_row(1, Sales="327,75"), _row(2), _row(3, **{"Product Price": "1.234"})]
    file = _file(tmp_path, "\n".join("\t".join(each) for each in (CSV_HEADER, *rows)))

    assert "found a comma in line 2 and a point in line 4" in _refusal(file)


DATES = st.builds("{}/{}/2018 9:05".format, st.integers(0, 40), st.integers(0, 40)) | st.just("x")


@settings(max_examples=200, deadline=None)
@given(times=st.lists(st.tuples(DATES, DATES), max_size=4), quoted=st.booleans())
@example(
    times=[("1/2/2018 9:05", "3/2/2018 9:05"), ("1/2/2018 9:05", "13/2/2018 9:05")], quoted=True
)
@example(times=[("13/2/2018 9:05", "x"), ("2/13/2018 9:05", "x")], quoted=False)
def test_a_file_that_has_the_day_first_is_refused(
    times: list[tuple[str, str]], quoted: bool
) -> None:
    names = ("order date (DateOrders)", "shipping date (DateOrders)")
    more = {"Order City": 'a "b"'} if quoted else {}
    rows = [_row(1, **dict(zip(names, each, strict=True)), **more) for each in times]

    def proves(text: str, *, day_first: bool) -> bool:
        found = re.fullmatch(r"(\d+)/(\d+)/2018 9:05", text)
        if found is None:
            return False
        day, month = map(int, found.groups() if day_first else reversed(found.groups()))
        return 12 < day <= (31 if day_first else 99) and month <= 12

    refused = [
        name
        for name, column in zip(names, zip(*times, strict=True), strict=False)
        if any(proves(text, day_first=True) for text in column)
        and not any(proves(text, day_first=False) for text in column)
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = _file(Path(folder), _csv(rows))
        if refused:
            said = _refusal(file)
            assert f": expected {refused[0]} with the month first" in said
            assert "write the times of the file as 2018-01-31 22:56" in said
        else:
            assert _messages(file) == [_expected(row) for row in rows]


@pytest.mark.parametrize("start", FORMATS, ids=list(FORMATS.values()))
@pytest.mark.parametrize("packed", [False, True])
def test_another_format_is_refused_by_its_name(tmp_path: Path, start: bytes, packed: bool) -> None:
    said = _refusal(_file(tmp_path, gzip.compress(start) if packed else start))

    assert "expected a CSV file, plain or packed by gzip, found" in said
    assert FORMATS[start] in said
    assert said.isprintable()


@pytest.mark.parametrize("cut", [4, 30, -1])
def test_a_broken_gzip_file_is_told(tmp_path: Path, cut: int) -> None:
    packed = gzip.compress(_csv([_row(n) for n in range(200)]).encode())

    assert "broken or truncated" in _refusal(_file(tmp_path, packed[:cut]))
    spoiled = packed[:2_000] + b"\0\xff\0\xff" + packed[2_004:]
    assert "broken or truncated" in _refusal(_file(tmp_path, spoiled))


def test_a_file_of_no_rows_has_no_messages(tmp_path: Path) -> None:
    assert _messages(_file(tmp_path, _csv([]))) == []


def test_what_is_withheld_is_in_no_message(tmp_path: Path) -> None:
    rows = [_row(n, **{"Customer City": city}) for n, city in enumerate(("a", 'b"', "c\n", "é"))]
    source = examine_source(_file(tmp_path, _csv(rows)))

    sent = b"".join(key + value for key, value in read_messages(source))
    assert sent.count(b"Customer City") == len(rows)
    for hidden in (SECRET, SECRET[:7], "Password"):
        assert hidden.encode() not in sent
        assert json.dumps(hidden)[1:-1].encode() not in sent


# --- what is no such file


def _refusal(file: Path) -> str:
    with pytest.raises(UnreadableSourceError) as caught:
        examine_source(file)
    told = str(caught.value)
    assert str(file) in told
    assert SECRET not in told and WITHHELD_HEADER not in told
    return told


@pytest.mark.parametrize("fields", [1, 52, 54])
@pytest.mark.parametrize("quoted", [False, True])
def test_a_row_with_another_number_of_fields_is_named(
    tmp_path: Path, fields: int, quoted: bool
) -> None:
    good = _row(1, **{"Customer Street": "1 Long\nStreet"})
    ragged = [*_row(2), "more"][:fields]
    ragged[0] = 'a "b"' if quoted else "a"
    # The header, two lines of the first row, one without any.
    text = _csv([good]) + "\n" + _csv([ragged, _row(3)]).partition("\n")[2]

    told = _refusal(_file(tmp_path, text))
    assert f"line 5: expected 53 fields, as many as the header's, found {fields}." in told


def test_a_row_cut_off_at_the_end_of_the_file_is_named(tmp_path: Path) -> None:
    text = _csv([_row(1), _row(2)])

    assert "line 3: expected 53 fields" in _refusal(_file(tmp_path, text[: len(text) - 80]))


@pytest.mark.parametrize("spoiled", ['"never ended', '"a" b', '"a" "b"'])
def test_quotes_that_do_not_pair_are_named(tmp_path: Path, spoiled: str) -> None:
    text = _csv([_row(1), _row(2, **{"Market": "here"}), _row(3)]).replace("here", spoiled)

    assert "line 3: expected a row of CSV" in _refusal(_file(tmp_path, text))


def test_a_quote_within_a_text_is_a_quote(tmp_path: Path) -> None:
    text = _csv([_row(1, **{"Product Name": "here"})]).replace("here", 'Television 32"')

    assert _messages(_file(tmp_path, text))[0][1]["Product Name"] == 'Television 32"'


@pytest.mark.parametrize(
    ("spoiled", "told"),
    [
        ("x" * 600_000, "line 2: expected a row of less than 500,000 characters"),
        ('"' + "x" * 600_000 + '"', "line 2: expected a row of CSV"),
        ('"' + "x\n" * 300_000 + '"', "line 2: expected a row of CSV"),
        ("x," * 300_000, "line 2: expected a row of less than 500,000 characters"),
    ],
)
def test_a_row_without_end_is_not_read_to_its_end(tmp_path: Path, spoiled: str, told: str) -> None:
    text = _csv([_row(1, **{"Market": "here"})]).replace("here", spoiled)

    assert told in _refusal(_file(tmp_path, text))


def test_a_row_of_many_long_fields_is_too_long(tmp_path: Path) -> None:
    row = [f"{'x' * 20_000}\n" for _ in CSV_HEADER]

    assert "line 2: expected a row of less than" in _refusal(_file(tmp_path, _csv([row])))


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (CSV_HEADER[1:], "found no 'Type'"),
        ([*CSV_HEADER, "Type"], "found 'Type' unknown or twice"),
        ([*CSV_HEADER, "Extra"], "found 'Extra' unknown or twice"),
        ([*CSV_HEADER, WITHHELD_HEADER], "found '(withheld)' unknown or twice"),
        ([*CSV_HEADER, f"{WITHHELD_HEADER}.1"], "found '(withheld)' unknown or twice"),
        (["customer_password" if n == WITHHELD_HEADER else n for n in CSV_HEADER], "'(withheld)'"),
        (["type", *CSV_HEADER[1:]], "found no 'Type'; 'type' unknown or twice"),
        (CSV_HEADER[:45], "found no 'Product Category Id', 'Product Description', 'Product"),
        (CSV_HEADER[:45], "and 3 more: mend the header."),
        (_row(1), "found 0 of them among 53: put the header there."),
        ([" - ".join(CSV_HEADER)], "found 0 of them among 1: put the header there."),
        ([], "found 0 of them among 0"),
        ([CSV_HEADER[0], "", *CSV_HEADER[1:]], "found '' unknown or twice"),
        ([*CSV_HEADER, "Unnamed: 53"], "found 'Unnamed: 53' unknown or twice"),
    ],
)
def test_a_header_that_is_not_the_sources_is_named(tmp_path: Path, header: Row, told: str) -> None:
    said = _refusal(_file(tmp_path, _csv([], header)))

    assert "expected a first line with the source's 53 columns" in said
    assert told in said


def test_an_empty_file_has_no_header(tmp_path: Path) -> None:
    assert "expected a first line" in _refusal(_file(tmp_path, ""))


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    assert "No such file" in _refusal(tmp_path / "none.csv")
    assert "directory" in _refusal(tmp_path)


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (delimited, encodings):  # which read some blocks ahead
        monkeypatch.setattr(module, "BLOCK_BYTES", 1 << 16)

    def peak(orders: int) -> int:
        file = tmp_path / f"{orders}.csv"
        write_sample(file, orders=orders)
        tracemalloc.start()
        rows = sum(1 for _ in read_messages(examine_source(file)))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert rows > orders
        return most

    few, many = peak(1_500), peak(6_000)

    assert many < 1.2 * few + 100_000
    assert many < 8e6


# --- to the topic


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerResource]:
    home = tmp_path / "home"
    yield BrokerResource(servers="embedded", home=str(home))
    broker_embedded.let_go(home)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Rows of some orders; more than a few batches."""
    file = tmp_path / "sample.csv"
    write_sample(file, orders=1_500)
    return examine_source(file)


def _sent(broker: BrokerResource) -> list[Message]:
    """The messages of the topic, each partition's in order."""
    ranges = {p: (low, high) for p, (low, high) in broker.watermarks(TOPIC).items()}
    return [
        message
        for batch in broker.read(TOPIC, ranges, most_messages=10_000, most_bytes=1 << 24)
        for message in batch
    ]


def _values(messages: Sequence[Message]) -> Counter[bytes | None]:
    return Counter(message.value for message in messages)


class _Stop(threading.Event):
    """Set from its third look on: after two batches, however fast the broker is."""

    looks = 0

    def is_set(self) -> bool:
        self.looks += 1
        return self.looks > 2


STOPPED_AT = 1_000


def test_every_row_arrives_once_in_the_order_of_its_key(
    broker: BrokerResource, source: Source, tmp_path: Path
) -> None:
    told: list[int] = []
    done = stream_file(broker, source, tmp_path / "streams", progress=told.append)

    assert done.finished
    assert (done.delivered, done.resumed_from, done.messages) == (source.rows, 0, source.rows)
    assert done.summary.startswith(f"{source.file}: {source.rows:,} messages delivered, ")
    assert sum(told) == source.rows
    arrived: dict[bytes | None, list[bytes | None]] = {}
    for message in sorted(_sent(broker), key=lambda m: (m.partition, m.offset)):
        arrived.setdefault(message.key, []).append(message.value)
    expected: dict[bytes | None, list[bytes | None]] = {}
    for key, value in read_messages(source):
        expected.setdefault(key, []).append(value)
    assert arrived == expected


def test_a_stopped_stream_goes_on_where_it_was(
    broker: BrokerResource, source: Source, tmp_path: Path
) -> None:
    first = stream_file(broker, source, tmp_path / "streams", stop=_Stop())
    assert first.delivered == STOPPED_AT
    assert not first.finished
    assert first.summary == (
        f"stopped: {first.delivered:,} of {source.rows:,} rows of {source.file} are delivered."
        " Give the same command again to go on after them."
    )
    assert len(_sent(broker)) == first.delivered

    told: list[int] = []
    second = stream_file(broker, source, tmp_path / "streams", progress=told.append)
    assert second.finished
    assert (second.resumed_from, told[0]) == (first.delivered, first.delivered)
    assert sum(told) == source.rows
    assert f", after {first.delivered:,} before, " in second.summary
    assert _values(_sent(broker)) == Counter(value for _, value in read_messages(source))


def test_a_stopped_stream_of_a_packed_file_goes_on_where_it_was(
    source: Source, tmp_path: Path
) -> None:
    packed = tmp_path / "orders.csv.gz"
    packed.write_bytes(gzip.compress(source.file.read_bytes()))
    double = _Double()
    _stop_in(double, examine_source(packed), tmp_path / "streams")

    done = stream_file(double, examine_source(packed), tmp_path / "streams")

    assert (done.finished, done.resumed_from) == (True, STOPPED_AT)
    assert double.sent == [value for _, value in read_messages(source)]


def test_a_stream_that_an_earlier_version_began_begins_anew(source: Source, tmp_path: Path) -> None:
    """It may have counted other rows."""
    double = _Double()
    _stop_in(double, source, tmp_path / "streams")
    (state,) = (tmp_path / "streams").iterdir()
    said = json.loads(state.read_text())
    del said["reading"]
    state.write_text(json.dumps(said))

    assert stream_file(double, source, tmp_path / "streams").resumed_from == 0


def test_a_finished_file_is_sent_again(
    broker: BrokerResource, source: Source, tmp_path: Path
) -> None:
    for times in (1, 2):
        done = stream_file(broker, source, tmp_path / "streams")

        assert (done.finished, done.resumed_from) == (True, 0)
        assert len(_sent(broker)) == times * source.rows


def test_another_incarnation_of_the_topic_gets_the_whole_file(
    broker: BrokerResource, source: Source, tmp_path: Path
) -> None:
    stream_file(broker, source, tmp_path / "s", stop=_Stop())
    broker_embedded.let_go(Path(broker.home))

    done = stream_file(broker, source, tmp_path / "s")
    assert (done.finished, done.resumed_from) == (True, 0)
    assert len(_sent(broker)) == source.rows


@dataclass
class _Double:
    """A broker whose producer acknowledges all but the last few, and may fail at one of them."""

    incarnation_id: str = "one"
    lag: int = 0
    fails_at: int | None = None
    sent: list[bytes] = field(default_factory=list)
    started_at: int = 0

    @property
    def id(self) -> str:
        return self.incarnation_id

    @property
    def delivered(self) -> int:
        return max(0, len(self.sent) - self.started_at - self.lag)

    def incarnation(self, topic: str) -> "_Double":
        return self

    def send(self, key: bytes, value: bytes) -> None:
        if len(self.sent) == self.fails_at:
            raise StalledConsumerError("nobody consumes")
        self.sent.append(value)

    @contextmanager
    def producer(self, topic: str, group: str, *, on_wait: Any = None) -> Iterator["_Double"]:
        assert (topic, group) == (TOPIC, GROUP)
        self.started_at = len(self.sent)
        yield self
        self.lag = 0


def test_what_failed_is_sent_again_from_the_first_row_that_was_not_acknowledged(
    source: Source, tmp_path: Path
) -> None:
    double = _Double(lag=30, fails_at=1_234)
    with pytest.raises(StalledConsumerError):
        stream_file(double, source, tmp_path)

    double.fails_at = None
    done = stream_file(double, source, tmp_path)
    assert done.resumed_from == 1_204
    messages = [value for _, value in read_messages(source)]
    assert double.sent == messages[:1_234] + messages[1_204:]


def test_of_a_topic_that_cannot_be_asked_nothing_is_saved(source: Source, tmp_path: Path) -> None:
    class Mute(_Double):
        def incarnation(self, topic: str) -> "_Double":
            raise StalledConsumerError("mute")

    with pytest.raises(StalledConsumerError, match="mute"):
        stream_file(Mute(), source, tmp_path / "streams")
    assert not (tmp_path / "streams").exists()


def _stop_in(broker: _Double, source: Source, folder: Path) -> Streamed:
    done = stream_file(broker, source, folder, stop=_Stop())
    assert done.delivered == STOPPED_AT
    return done


@pytest.mark.parametrize("change", ["end", "start", "longer", "touched"])
def test_another_file_of_the_name_is_sent_whole(
    source: Source, tmp_path: Path, change: str
) -> None:
    double = _Double()
    _stop_in(double, source, tmp_path)
    text = source.file.read_bytes()
    changed = {
        "end": text[:-2] + b"z\n",
        "start": text.replace(b"\nDEBIT,", b"\nCASHx,", 1),
        "longer": text + text.splitlines(keepends=True)[1],
        "touched": text,
    }[change]
    before = source.file.stat()
    source.file.write_bytes(changed)
    if change in ("end", "start"):
        os.utime(source.file, ns=(before.st_atime_ns, before.st_mtime_ns))

    done = stream_file(double, examine_source(source.file), tmp_path)
    assert done.finished
    assert done.resumed_from == 0


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"delivered": 3}', '{"delivered": "x"}', "\0"]
)
def test_a_broken_state_is_none(source: Source, tmp_path: Path, text: str) -> None:
    double = _Double()
    _stop_in(double, source, tmp_path / "streams")
    (state,) = (tmp_path / "streams").iterdir()
    state.write_text(text)

    assert stream_file(double, source, tmp_path / "streams").resumed_from == 0


def test_files_of_one_name_in_two_folders_have_states_of_their_own(
    source: Source, tmp_path: Path
) -> None:
    other = tmp_path / "other" / source.file.name
    write_sample(other, orders=1_500, seed=8)
    double = _Double()
    first = _stop_in(double, source, tmp_path / "streams")
    stream_file(double, examine_source(other), tmp_path / "streams")

    assert len(list((tmp_path / "streams").iterdir())) == 2
    done = stream_file(double, source, tmp_path / "streams")
    assert done.resumed_from == first.delivered


def test_what_is_withheld_is_in_no_state(tmp_path: Path) -> None:
    source = examine_source(_file(tmp_path, _csv([_row(n) for n in range(1_400)])))
    double = _Double()
    _stop_in(double, source, tmp_path / "streams")

    (state,) = (tmp_path / "streams").iterdir()
    assert json.loads(state.read_text())["delivered"] == STOPPED_AT
    for hidden in (SECRET, "hunter2", "Password"):
        assert hidden not in state.read_text()
        assert all(hidden.encode() not in value for value in double.sent)


def test_a_file_that_changes_meanwhile_is_told(source: Source, tmp_path: Path) -> None:
    def append(_: int) -> None:
        with source.file.open("ab") as file:
            file.write(b"\n")

    with pytest.raises(ChangedSourceError, match=r"sample\.csv: expected it as it was"):
        stream_file(_Double(), source, tmp_path, progress=append)


def test_a_row_that_is_spoiled_meanwhile_is_not_sent(tmp_path: Path) -> None:
    source = examine_source(_file(tmp_path, _csv([_row(1), _row(2)])))
    _file(tmp_path, _csv([_row(1), _row(2)[1:]]))
    double = _Double()

    with pytest.raises(UnreadableSourceError, match="line 3: expected 53 fields"):
        stream_file(double, source, tmp_path)
    assert len(double.sent) <= 1


def test_ctrl_c_stops_cleanly(broker: BrokerResource, source: Source, tmp_path: Path) -> None:
    def interrupted(source: Source, start: int) -> Iterator[tuple[bytes, bytes]]:
        for row, message in enumerate(read_messages(source, start)):
            if row == 600:
                os.kill(os.getpid(), signal.SIGINT)
            yield message

    before = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "read_messages", interrupted)
        first = stream_file(broker, source, tmp_path / "streams")
    assert first.delivered == STOPPED_AT
    assert len(_sent(broker)) == first.delivered
    assert signal.getsignal(signal.SIGINT) is before
    second = stream_file(broker, source, tmp_path / "streams")
    assert second.finished
    assert _values(_sent(broker)) == Counter(value for _, value in read_messages(source))


def test_a_second_ctrl_c_waits_for_nothing(source: Source, tmp_path: Path) -> None:
    class Deaf(_Double):
        def send(self, key: bytes, value: bytes) -> None:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        stream_file(Deaf(), source, tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stream_in_a_thread_leaves_signals_alone(source: Source, tmp_path: Path) -> None:
    done: list[Streamed] = []
    thread = threading.Thread(target=lambda: done.append(stream_file(_Double(), source, tmp_path)))
    thread.start()
    thread.join()

    assert done[0].finished


def test_ctrl_c_ends_the_wait_for_a_consumer(
    broker: BrokerResource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupts(logging.Handler):
        told = 0

        def emit(self, record: logging.LogRecord) -> None:
            assert record.getMessage().startswith("The embedded broker is full")
            self.told += 1
            os.kill(os.getpid(), signal.SIGINT)

    # More than the broker takes without a consumer; it cannot be compressed.
    noise = random.Random(1)
    rows = [
        _row(n, **{"Product Description": base64.b64encode(noise.randbytes(15_000)).decode()})
        for n in range(900)
    ]
    source = examine_source(_file(tmp_path, _csv(rows)))
    monkeypatch.setattr(stream, "_WARN_AFTER_S", 0.2)
    interrupts = Interrupts(logging.WARNING)
    log = logging.getLogger(stream.__name__)
    log.addHandler(interrupts)
    try:
        done = stream_file(broker, source, tmp_path / "streams")
    finally:
        log.removeHandler(interrupts)

    assert interrupts.told == 1
    assert 0 < done.delivered < source.rows
    assert len(_sent(broker)) == done.delivered


_CHILD = """
import sys, time
from pathlib import Path
from retail_assets.defs.supply_chain import order_lines, stream
from retail_assets.resources.broker.resource import BrokerResource

stream._SAVE_EVERY_S = 0.0
home, file = sys.argv[1:]
read = stream.read_messages


def slowly(*arguments):
    for number, message in enumerate(read(*arguments)):
        if number % 500 == 0:
            time.sleep(0.3)  # what was sent arrives before the rest is
        yield message


stream.read_messages = slowly
broker = BrokerResource(servers="embedded", home=home)
source = order_lines.examine_source(Path(file))
stream.stream_file(
    broker, source, Path(home) / "streams", progress=lambda _: time.sleep(0.5)
)
"""


def test_a_killed_stream_goes_on_and_leaves_no_row_out(
    broker: BrokerResource, source: Source
) -> None:
    home = Path(broker.home)
    assert broker.address  # this process owns it
    child = subprocess.Popen([sys.executable, "-c", _CHILD, str(home), str(source.file)])
    try:
        deadline = time.monotonic() + 60
        while not (found := list(home.glob("streams/*.json"))) or not json.loads(
            found[0].read_text()
        ).get("delivered"):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == -signal.SIGKILL

    done = stream_file(broker, source, home / "streams")
    assert done.finished
    assert 0 < done.resumed_from < source.rows
    sent = _values(_sent(broker))
    expected = Counter(value for _, value in read_messages(source))
    assert sent.keys() == expected.keys()
    assert not expected - sent

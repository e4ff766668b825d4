"""The fast way of reading messages does what the definition says; what is withheld stays out."""

import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retail_assets.defs.supply_chain import fast_messages as module
from retail_assets.defs.supply_chain.contract import (
    CODE,
    DATE_TIME,
    DEAD_LETTERS,
    MESSAGES,
    MISSING,
    MONEY,
    RATIO,
    SOURCE_COLUMNS,
    TOPIC,
    WITHHELD_HEADER,
)
from retail_assets.defs.supply_chain.fast_messages import Parsed, parse_messages
from retail_assets.defs.supply_chain.messages import (
    MalformedError,
    left_out_values,
    names_withheld,
    payloads_of,
    read_message,
    read_time,
)
from retail_assets.resources.broker.resource import Message

INCARNATION = "0f3c"
STARTED_AT = datetime(2026, 1, 2, 3, 4, 5, 678)
AT = datetime(2026, 1, 2, 3, 5)
SECRET = "hunter2"
NAMES = {c.header: c.name for c in SOURCE_COLUMNS}
PLAIN = {
    "int32": "3",
    "int64": "17850",
    MONEY: "299.980011",
    RATIO: "-66.03706",
    "timestamp": "1/31/18 22:56",
    "string": "Bogotá",
    CODE: "Bogotá",
}


def fields(**changed: Any) -> dict[str, Any]:
    """Fields of a good message, by header; ``changed`` by our names of columns."""
    return {c.header: changed.get(c.name, PLAIN[c.type]) for c in SOURCE_COLUMNS}


def as_json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def parse(values: Sequence[bytes | None], keys: Sequence[bytes | None] = ()) -> Parsed:
    sent = [
        Message(2, 7 + at, keys[at] if keys else b"%d" % at, value, AT)
        for at, value in enumerate(values)
    ]
    return parse_messages(sent, incarnation=INCARNATION, started_at=STARTED_AT)


def texts(parsed: Parsed) -> dict[int, dict[str, str | None]]:
    """Fields of the good rows by offset, by header."""
    return {
        row["offset"]: {header: row[name] for header, name in NAMES.items()}
        for row in parsed.good.to_pylist()
    }


def reason_of(value: bytes | None, key: bytes | None = b"1") -> str:
    with pytest.raises(MalformedError) as caught:
        read_message(key, value)
    return str(caught.value)


def test_good_messages_become_rows_of_the_contract() -> None:
    values = [as_json(fields(sales=f"{n}.5")) for n in range(3)]
    parsed = parse(values, [b"a", None, "ü".encode()])
    assert parsed.good.schema == MESSAGES.arrow_schema
    assert parsed.dead.schema == DEAD_LETTERS.arrow_schema
    assert parsed.dead.num_rows == 0
    assert list(parsed.payloads) == values
    assert parsed.good.column("sales").to_pylist() == ["0.5", "1.5", "2.5"]
    first = parsed.good.to_pylist()[0]
    assert {name: first[name] for name in MESSAGES.column_names[:7]} == {
        "incarnation": INCARNATION,
        "topic": TOPIC,
        "partition": 2,
        "offset": 7,
        "key": "a",
        "time": AT,
        "message_order": "20260102T030405000678-0000000000000000007-00002",
    }
    assert parsed.good.column("key").to_pylist() == ["a", None, "ü"]


def test_no_messages_are_two_empty_tables() -> None:
    parsed = parse([])
    assert (parsed.good.num_rows, parsed.dead.num_rows) == (0, 0)
    assert parsed.good.schema == MESSAGES.arrow_schema
    assert parsed.dead.schema == DEAD_LETTERS.arrow_schema


def test_rows_of_a_file_say_what_the_messages_said() -> None:
    values = [as_json(fields(product_description=None)), as_json(fields(order_item_id=12))]
    parsed = parse(values)
    assert [json.loads(p) for p in payloads_of(parsed.good)] == [
        json.loads(p) for p in parsed.payloads
    ]
    assert json.loads(parsed.payloads[0]) == fields(product_description=None)


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({"order_id": 12}, {"order_id": "12"}),
        ({"sales": 299.980011}, {"sales": "299.980011"}),
        ({"sales": -12}, {"sales": "-12"}),
        ({"order_zipcode": None}, {"order_zipcode": None}),
        ({"order_zipcode": ""}, {"order_zipcode": ""}),
        ({"sales": "1.4210854715202004e-14"}, {"sales": "1.4210854715202004e-14"}),
        ({"order_date": "2/29/2016 0:05"}, {"order_date": "2/29/2016 0:05"}),
        ({"order_date": "02/09/00 09:05"}, {"order_date": "02/09/00 09:05"}),
        ({"longitude": "-115.5"}, {"longitude": "-115.5"}),
        ({"order_city": "Tab\there, \U0001f600"}, {"order_city": "Tab\there, \U0001f600"}),
        ({"sales": "9999999999999999.99"}, {"sales": "9999999999999999.99"}),
        ({"order_item_quantity": "-2147483648"}, {"order_item_quantity": "-2147483648"}),
    ],
)
def test_what_is_taken(changed: dict[str, Any], kept: dict[str, str | None]) -> None:
    for ascii_only in (False, True):
        value = json.dumps(fields(**changed), ensure_ascii=ascii_only).encode()
        parsed = parse([as_json(fields()), value, as_json(fields())])
        assert parsed.dead.num_rows == 0, parsed.dead.to_pylist()
        assert texts(parsed)[8] == fields(**kept)
        assert json.loads(parsed.payloads[1]) == fields(**kept)


MALFORMED = [
    (None, "expected a JSON object, found a tombstone"),
    (b"", "found no JSON"),
    (b" ", "found no JSON"),
    (b"\xff\xfe", "message: expected UTF-8, found byte 0xff at 0"),
    (b"hello", "found no JSON"),
    (b"[]", "expected a JSON object, found an array"),
    (b"null", "expected a JSON object, found null"),
    (b"12", "expected a JSON object, found the number '12'"),
    (b"NaN", "found NaN"),
    (b"{}", "expected all columns, found none named 'Type'"),
    (b"\xef\xbb\xbf" + as_json(fields()), "found no JSON"),
    (as_json(fields()) * 2, "found no JSON"),
    (as_json(fields()) + b"\n" + as_json(fields()), "found no JSON"),
    (as_json(fields())[:-1], "found no JSON"),
    (as_json(fields())[:-1] + b",}", "found no JSON"),
    (as_json(fields())[:-1] + b',"Sales":"1"}', "expected each column once, found twice: 'Sales'"),
    (as_json(fields() | {"More": "x"}), "expected no other columns, found 'More'"),
    (
        as_json({k: v for k, v in fields().items() if k != "Market"}),
        "expected all columns, found none named 'Market'",
    ),
    (b"[" * 100_000, "nested"),
    (b'{"Type":' * 100_000, "nested"),
    (as_json(fields(order_city="a\0b")), "Order City: expected a text without NUL"),
    (b'{"a":"' + b"\0" + b'"}', "found no JSON"),
    (as_json(fields()).replace(b"Bogot\xc3\xa1", b"\\ud83d", 1), "Type: expected Unicode"),
    (as_json(fields()).replace(b"Bogot\xc3\xa1", b"\\ude00", 1), "Type: expected Unicode"),
    (as_json(fields()).replace(b"Bogot\xc3\xa1", b"\xc3", 1), "expected UTF-8"),
    (as_json(fields(sales=None)), "Sales: expected a number of at most 16 digits"),
    (as_json(fields(sales="")), "found none"),
    (as_json(fields(market=True)), "Market: expected a text, found true"),
    (as_json(fields(market={"a": 1})), "Market: expected a text, found an object"),
    (as_json(fields(market=["a"])), "Market: expected a text, found an array"),
    (as_json(fields(sales="NaN")), "found 'NaN'"),
    (as_json(fields(sales="inf")), "found 'inf'"),
    (as_json(fields(sales=float("nan"))), "found NaN, which JSON does not know"),
    (as_json(fields(sales="1e999")), "found '1e999'"),
    (as_json(fields(sales="1e17")), "found '1e17'"),
    (as_json(fields(sales="9999999999999999.995")), "found '9999999999999999.995'"),
    (as_json(fields(sales="12,5")), "found '12,5'"),
    (as_json(fields(sales=" 12")), "found ' 12'"),
    (as_json(fields(sales="12\n")), "found '12\\n'"),
    (as_json(fields(sales="\u0661\u0662")), "expected a number"),
    (as_json(fields(order_id="17850.5")), "a whole number of 64 bits, found '17850.5'"),
    (as_json(fields(order_id="17850.")), "a whole number of 64 bits, found '17850.'"),
    (as_json(fields(order_id="5.36E+05")), "a whole number of 64 bits, found '5.36E+05'"),
    (as_json(fields(customer_id="NULL")), "a whole number of 64 bits, found 'NULL'"),
    (as_json(fields(order_id=str(2**63))), f"found '{2**63}'"),
    (as_json(fields(order_item_quantity=2**31)), f"a whole number of 32 bits, found '{2**31}'"),
    (as_json(fields(order_date="2/29/2015 0:05")), "month/day/year"),
    (as_json(fields(order_date="13/1/2015 0:05")), "month/day/year"),
    (as_json(fields(order_date="0/1/2015 0:05")), "month/day/year"),
    (as_json(fields(order_date="1/1/2015 24:00")), "month/day/year"),
    (as_json(fields(order_date="1/1/2015 1:60")), "month/day/year"),
    (as_json(fields(order_date="1/1/1899 1:00")), "of 1900 to 2199"),
    (as_json(fields(order_date="1/1/2200 1:00")), "of 1900 to 2199"),
    (as_json(fields(order_date="1/1/015 1:00")), "month/day/year"),
    (as_json(fields(order_date="2015-01-01 01:00Z")), "without a zone"),
    (as_json(fields(order_date="2015-01-01T01:00:00+08:00")), "times are local business time"),
    (as_json(fields(order_date="1/1/2015 1:00 CET")), "without a zone"),
    (as_json(fields(order_date="1/1/2015 13:00 PM")), "month/day/year"),
    (as_json(fields(order_date="1/1/2015 0:30 AM")), "month/day/year"),
    (as_json(fields(order_date="2015-01-01 01:00:60")), "or ISO"),
    (as_json(fields(order_date="2015-02-29")), "or ISO"),
    (as_json(fields(order_date="2015-01-01 ")), "or ISO"),
    (as_json(fields(order_date="1899-12-31")), "of 1900 to 2199"),
    (as_json(fields(sales="x" * 500)), "x" * 100 + "...'"),
]


@pytest.mark.parametrize(("value", "reason"), MALFORMED)
def test_what_is_malformed(value: bytes | None, reason: str) -> None:
    assert reason in reason_of(value)
    good = as_json(fields())
    parsed = parse([good, value, good])
    assert parsed.good.column("offset").to_pylist() == [7, 9]
    letter = parsed.dead.to_pylist()[0]
    assert letter["offset"] == 8
    assert reason in letter["reason"]
    assert len(letter["reason"]) < 1000
    assert "\0" not in (letter["text"] or "")
    if value is None:
        assert letter["text"] is None
    elif b"\0" not in value:
        assert letter["text"] == value.decode(errors="backslashreplace")


def test_bad_ones_among_many_are_found_by_halves() -> None:
    values: list[bytes | None] = [as_json(fields(order_item_id=n)) for n in range(1000)]
    bad = {0, 1, 500, 501, 777, 999}
    for at in bad:
        values[at] = b"{" + b"x" * (at + 1) + b"}"
    values[300] = as_json(fields(sales="much"))
    parsed = parse(values)
    offsets = parsed.good.column("offset").to_pylist()
    assert offsets == [7 + n for n in range(1000) if n not in bad | {300}]
    assert parsed.dead.column("offset").to_pylist() == sorted(7 + n for n in bad | {300})
    ids = parsed.good.column("order_item_id").to_pylist()
    assert [json.loads(p)["Order Item Id"] for p in parsed.payloads] == ids
    assert ids == [str(o - 7) for o in offsets]
    reasons = parsed.dead.column("reason").to_pylist()
    assert Counter(reason.partition(", found")[0] for reason in reasons) == {
        "expected a JSON object": 6,
        "Sales: expected a number of at most 16 digits before the point": 1,
    }


def test_an_object_too_many_and_one_too_few_do_not_make_up_for_each_other() -> None:
    """Read together, ``{..}{..}`` and an empty value are as many objects as values."""
    first, second = as_json(fields(order_id=1)), as_json(fields(order_id=2))
    for values in ([first + second, b""], [b"", first + second], [first + second, b" "]):
        assert parse(values).good.num_rows == 0
    torn = first[:-1] + b',"More":{}'  # ends with } and is not at its end
    assert parse([torn, second, first + second]).good.column("offset").to_pylist() == [8]


def test_values_longer_than_the_reader_takes_at_once() -> None:
    long = as_json(fields(product_description="x" * 3 * 1024**2))
    parsed = parse([as_json(fields()), long, as_json(fields())])
    assert parsed.good.num_rows == 3
    assert pc.max(pc.utf8_length(parsed.good.column("product_description"))).as_py() == 3 * 1024**2


def test_the_fast_way_takes_what_an_ordinary_producer_sends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None of the ordinary values needs the slow way, which is ten times slower."""

    def slow(key: bytes | None, value: bytes | None) -> None:
        raise AssertionError(value)

    monkeypatch.setattr(module, "read_message", slow)
    ordinary: list[Mapping[str, Any]] = [
        {"order_zipcode": ""},
        {"order_city": 'São Paulo \\ " / \u0001'},
        {"sales": "-1.4210854715202004E-14", "latitude": "18.2514534", "longitude": "-115.1"},
        {"order_date": "12/31/2017 23:59", "shipping_date": "2/28/16 0:00"},
        {"order_date": "2017-12-31 23:59:59", "shipping_date": "2016-02-28T00:00:00.125"},
        {"order_id": "77202.0", "order_item_quantity": "3.0", "order_zipcode": "94103.0"},
    ]
    assert parse([as_json(fields(**each)) for each in ordinary]).good.num_rows == len(ordinary)


WHOLE = st.one_of(
    st.integers(-(2**65), 2**65).map(str),
    st.sampled_from(["-0", "007", "+1", "1.", " 1", "1 ", "0x1", "1_000", "-", "\u0661"]),
    st.sampled_from(
        ["6.0", "-6.00", "6.01", "6.0e1", "2147483648.0", "NULL", "\\N", " NA ", "n/a"]
    ),
)
NUMBERS = st.one_of(
    st.floats().map(repr),
    st.decimals(allow_nan=True).map(str),
    st.from_regex(r"\A-?[0-9]{1,20}(\.[0-9]{0,22})?([eE][+-]?[0-9]{1,3})?\Z"),
    st.sampled_from([".5", "5.", "+1", "1e5", "-0.0", "1e-99", "999.9999999995", "", "\uff11"]),
)
TIMES = st.one_of(
    st.from_regex(r"\A[0-9]{1,2}/[0-9]{1,2}/([0-9]{4}|[0-9]{2}) [0-9]{1,2}:[0-9]{2}\Z"),
    st.datetimes(datetime(1890, 1, 1), datetime(2210, 1, 1)).map(
        lambda t: f"{t.month}/{t.day}/{t.year} {t.hour}:{t.minute:02d}"
    ),
    st.sampled_from(["2/29/16 1:00", "2/29/1900 1:00", "2/30/16 1:00", "1/1/2016", "1/1/16 1:0"]),
    st.from_regex(rf"\A(?:{DATE_TIME})(?: ?(?:Z|CET|[+]08:00|AM|x))?\Z"),
)
CODES = st.one_of(
    st.from_regex(r"\A-?[0-9]{1,6}(\.[0-9]{0,3})?([eE][+-]?[0-9]{1,3})?\Z"),
    st.sampled_from(["", "94103-1234", "SW1A 1AA", "NULL", "\0", "9.41E+04"]),
)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", "\0", "\ud800", "Customer Password", "password", "Bogotá", "😀", '"\\/']),
)
BY_TYPE = {
    "int32": WHOLE,
    "int64": WHOLE,
    MONEY: NUMBERS,
    RATIO: NUMBERS,
    "timestamp": TIMES,
    "string": TEXTS,
    CODE: st.one_of(CODES, TEXTS),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def sent_values(draw: st.DrawFn) -> bytes | None:
    """Values of messages: good, and spoiled in as many ways as there are."""
    content = fields()
    for column in draw(st.lists(st.sampled_from(SOURCE_COLUMNS), max_size=3)):
        content[column.header] = draw(st.one_of(BY_TYPE[column.type], JSON))
    for header in draw(st.lists(st.sampled_from(list(content)), max_size=1)):
        if draw(st.integers(0, 3)) == 0:
            del content[header]
    if draw(st.integers(0, 5)) == 0:
        content[draw(st.sampled_from(["More", "sales", WITHHELD_HEADER, "a\0"]))] = SECRET
    text = json.dumps(
        content,
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, None, None, 1])),
    )
    value = text.encode(errors="surrogatepass")
    spoil = draw(st.integers(0, 14))
    if spoil == 0:
        at = draw(st.integers(0, len(value)))
        value = value[:at] + draw(st.binary(max_size=2)) + value[at + draw(st.integers(0, 2)) :]
    elif spoil == 1:
        value = draw(st.sampled_from([b"", b" ", value + value, value + b"\n", value[:-1], b"{}"]))
    elif spoil == 2:
        value = value.replace(b'"Type"', b'"Market"' if draw(st.booleans()) else b'"\\u0054ype"')
    elif spoil == 3:
        return draw(st.none() | st.binary(max_size=10))
    return value


KEYS = st.one_of(st.none(), st.binary(max_size=4), st.just(b"12"))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(KEYS, sent_values()), max_size=12), st.booleans())
def test_the_fast_way_is_the_definition(
    sent: list[tuple[bytes | None, bytes | None]], alone: bool
) -> None:
    few = module._FEW
    module._FEW = 1 if alone else few  # down to single messages, or only as far as in use
    try:
        parsed = parse([value for _, value in sent], [key for key, _ in sent])
    finally:
        module._FEW = few
    expected, reasons = {}, []
    for offset, (key, value) in enumerate(sent, start=7):
        try:
            expected[offset] = read_message(key, value)
        except MalformedError as error:
            reasons.append((offset, str(error), False))
        else:
            reasons += [(offset, why, True) for why in left_out_values(expected[offset])]
    assert texts(parsed) == expected
    told = [(r["offset"], r["reason"], r["row_stays"]) for r in parsed.dead.to_pylist()]
    assert told == reasons
    assert [json.loads(p) for p in parsed.payloads] == list(expected.values())
    assert parsed.good.column("offset").to_pylist() == sorted(expected)
    # What lands can be cast, unless it is left out: the rules of the types, told in another way.
    without = {(offset, why.partition(":")[0]) for offset, why, row_stays in reasons if row_stays}
    for offset, found in expected.items():
        for column in SOURCE_COLUMNS:
            text = found[column.header]
            is_none = text is None or re.fullmatch(MISSING, text)
            if (offset, column.header) in without or (column.is_side and is_none):
                assert column.is_side
            elif column.type in (MONEY, RATIO):
                unit, most = ("0.01", 10**16) if column.type == MONEY else ("1e-9", 10**3)
                with_room = Decimal(str(text)).scaleb(0)
                assert abs(with_room) < most
                if abs(with_room) > 1:
                    assert with_room.quantize(Decimal(unit), ROUND_HALF_UP) < most
            elif column.type == "timestamp":
                assert read_time(str(text))
            elif column.type == "int32":
                assert float(str(text)).is_integer()
                assert -(2**31) <= float(str(text)) < 2**31


# ---- times


def spelled(moment: datetime, day: str, clock: str, *, padded: bool) -> str:
    """A time in a form of Python's own; without padding zeros where it is not padded."""
    text = moment.strftime(f"{day}{clock}")
    return text if padded else re.sub(r"(?<![0-9:.])0(?=[0-9][-/:])|(?<=-)0(?=[0-9][ T])", "", text)


DAYS = ["%m/%d/%Y ", "%m/%d/%y ", "%Y-%m-%d ", "%Y-%m-%dT"]
CLOCKS = ["%H:%M", "%H:%M:%S", "%H:%M:%S.%f", "%I:%M %p", "%I:%M%p", "%I:%M:%S %p"]


@settings(deadline=None)
@given(
    st.datetimes(datetime(1900, 1, 1), datetime(2199, 12, 31)),
    st.sampled_from(DAYS),
    st.sampled_from(CLOCKS),
    st.booleans(),
)
def test_a_time_is_what_pythons_own_parser_reads(
    moment: datetime, day: str, clock: str, padded: bool
) -> None:
    text = spelled(moment, day, clock, padded=padded)
    expected = datetime.strptime(text, f"{day}{clock}")
    if "%y" in day:  # of this century, whatever Python takes it for
        expected = expected.replace(year=2000 + moment.year % 100)

    assert read_time(text) == read_time(text.replace("PM", "pm")) == expected
    assert parse([as_json(fields(order_date=text))]).good.num_rows == 1
    for more in ("Z", " Z", "+08:00", " +0800", " UTC", " x", " "):
        assert read_time(f"{text}{more}") is None


@settings(deadline=None)
@given(st.dates(datetime(1900, 1, 1).date(), datetime(2199, 12, 31).date()))
def test_an_iso_day_alone_is_its_midnight(day: date) -> None:
    assert read_time(str(day)) == datetime(day.year, day.month, day.day)
    assert read_time(f"{day.month}/{day.day}/{day.year}") is None


SURE = re.compile(module._sure_pattern("timestamp").replace(r"\z", r"\Z"))


@settings(deadline=None)
@given(TIMES)
def test_what_is_surely_a_time_is_one(text: str) -> None:
    assert not SURE.match(text) or read_time(text)


# ---- what is left out


def test_a_side_attribute_that_cannot_be_read_is_listed_and_its_row_lands() -> None:
    spoiled = {
        "latitude": "north",
        "longitude": "1000",
        "product_status": "1.5",
        "late_delivery_risk": "maybe",
        "customer_zipcode": "9.4103E+04",
    }
    sent = [as_json(fields()), as_json(fields(**spoiled)), b"no JSON"]

    parsed = parse(sent)

    assert parsed.good.column("offset").to_pylist() == [7, 8]
    row = parsed.good.to_pylist()[1]
    assert {name: row[name] for name in spoiled} == spoiled
    found = parsed.dead.to_pylist()
    assert [(f["offset"], f["row_stays"]) for f in found] == [(8, True)] * 5 + [(9, False)]
    assert [f["text"] for f in found] == [s.decode() for s in [sent[1]] * 5 + [sent[2]]]
    assert [f["reason"] for f in found][:2] == [
        "Late_delivery_risk: expected a whole number of 32 bits, found 'maybe'",
        "Customer Zipcode: expected a code of digits, or a text, found '9.4103E+04'",
    ]


@pytest.mark.parametrize(
    "text", ["", None, " NULL", "null", "nan", "NaN", "None", "NA", "N/A ", "\\N"]
)
def test_none_of_a_side_attribute_is_nothing_that_is_left_out(text: str | None) -> None:
    sides = {c.name: text for c in SOURCE_COLUMNS if c.is_side}

    parsed = parse([as_json(fields(**sides))])

    assert (parsed.good.num_rows, parsed.dead.num_rows) == (1, 0)
    assert parsed.good.to_pylist()[0]["latitude"] == text


def test_keys_dates_quantities_and_amounts_are_no_side_attributes() -> None:
    for column in SOURCE_COLUMNS:
        parsed = parse([as_json(fields(**{column.name: "~"}))])
        is_needed = column.type != "string" and not column.is_side
        assert parsed.good.num_rows == (not is_needed)
    assert not [c.name for c in SOURCE_COLUMNS if c.is_side and c.type in (MONEY, "timestamp")]


NAMED = [
    as_json(fields() | {WITHHELD_HEADER: SECRET}),
    json.dumps({WITHHELD_HEADER: SECRET, **fields()}, indent=2).encode(),
    as_json(fields() | {"customer password": SECRET}),
    as_json(fields() | {"CUSTOMER_PASSWORD": SECRET}),
    as_json(fields() | {"customerPassword": SECRET}),
    as_json(fields())[:-1] + b',"Customer\\u0020Pass\\u0077ord":"hunter2"}',
    as_json(fields())[:-1] + b',"Customer Password":"hunter2","Customer Password":"hunter2"}',
    as_json({"payload": {"rows": [fields() | {WITHHELD_HEADER: SECRET}]}}),
    as_json({"payload": json.dumps(fields() | {WITHHELD_HEADER: SECRET})}),
    as_json({"payload": json.dumps(json.dumps({WITHHELD_HEADER: SECRET}))}),
    as_json(fields(market=json.dumps({WITHHELD_HEADER: SECRET}))),
    as_json(fields() | {WITHHELD_HEADER: SECRET})[:-1],
    as_json(fields() | {WITHHELD_HEADER: SECRET}) + b"\xff",
    json.dumps({WITHHELD_HEADER: SECRET}).encode("utf-16"),
    json.dumps({WITHHELD_HEADER: SECRET}).encode("utf-16-le"),
    b"Customer Password=hunter2",
    b"customer%20password=hunter2",
    b"<Customer&#32;Password>hunter2",
    ",".join(["x"] * 15 + [SECRET] + ["y"] * 37).encode(),
    ";".join(["Bogotá"] * 15 + [SECRET] + ["y"] * 37).encode("latin-1"),
    as_json(["x"] * 15 + [SECRET] + ["y"] * 37),
    as_json({"line": ",".join(["x"] * 15 + [SECRET] + ["y"] * 37)}),
]


@pytest.mark.parametrize("value", NAMED)
def test_neither_name_nor_value_of_what_is_withheld_is_kept(value: bytes) -> None:
    parsed = parse([as_json(fields()), value])
    assert parsed.good.num_rows == 1
    letter = parsed.dead.to_pylist()[0]
    kept = json.dumps(letter, default=str)
    assert SECRET not in kept
    assert not names_withheld(kept), kept
    assert letter["text"]


def test_the_rest_of_a_dead_letter_is_kept() -> None:
    letter = parse([as_json(fields() | {WITHHELD_HEADER: SECRET, "n": 1.50})]).dead.to_pylist()[0]
    assert letter["reason"] == "expected no column that is withheld, found one"
    assert json.loads(letter["text"]) == fields() | {"n": 1.5}
    assert letter["text"].startswith('{"Type":"Bogotá",')
    torn = parse([as_json(fields())[:-1]]).dead.to_pylist()[0]
    assert torn["text"] == as_json(fields())[:-1].decode()


def test_keys_too_are_kept_only_as_far_as_they_may() -> None:
    good = as_json(fields())
    keys = [b"1", b"\xff", b"a\0b", b'{"Customer Password":"hunter2"}', None]
    parsed = parse([good] * len(keys), keys)
    assert parsed.good.column("key").to_pylist() == ["1", None]
    letters = parsed.dead.to_pylist()
    assert [letter["key"] for letter in letters] == ["\\xff", "a\\x00b", "{}"]
    assert [letter["reason"].partition(",")[0] for letter in letters] == [
        "key: expected UTF-8",
        "key: expected a text without NUL",
        "key: expected no column that is withheld",
    ]
    assert all(letter["text"] == good.decode() for letter in letters)


def test_message_order_orders_as_text() -> None:
    generator = random.Random(5)
    marks = [
        (
            datetime(2026, 1, 1, 0, 0, 0, generator.randrange(10**6)),
            generator.choice([0, 9, 10, 2**62 + generator.randrange(9)]),
            generator.randrange(12),
        )
        for _ in range(100)
    ]

    def order(mark: tuple[datetime, int, int]) -> str:
        started_at, offset, partition = mark
        message = Message(partition, offset, None, as_json(fields()), AT)
        parsed = parse_messages([message], incarnation=INCARNATION, started_at=started_at)
        (found,) = parsed.good.column("message_order").to_pylist()
        return str(found)

    assert sorted(marks) == sorted(marks, key=order)

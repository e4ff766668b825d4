"""What a message of the topic should be, why one is not, and what of a bad one may be kept.

Here: the definition, one message at a time. Not here: many at once (fast_messages.py), where
messages come from and where rows go (batches.py), types (transforms.py).
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import ROUND_HALF_UP, Context, Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

from retail_assets.defs.supply_chain.contract import (
    CODE,
    CSV_HEADER,
    DATE_TIME,
    LOST_CODE,
    MESSAGES,
    MISSING,
    NEWEST_YEAR,
    NUMBER,
    OLDEST_YEAR,
    SOURCE_COLUMNS,
    WHOLE_NUMBER,
    WITHHELD_HEADER,
    SourceColumn,
)
from retail_assets.moments import Moments

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 100
_EXACT = Context(prec=200, rounding=ROUND_HALF_UP)
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_HEADERS = tuple(c.header for c in SOURCE_COLUMNS)


class MalformedError(ValueError):
    """A message is not what it should be; the text says what was expected and what was found."""


def read_message(key: bytes | None, value: bytes | None) -> dict[str, str | None]:
    """Texts of a message by header, in SOURCE_COLUMNS's order; None for null.

    A number counts as its own text.

    What is no key, date, quantity or amount may be any text: see ``left_out_values``.

    Raises:
        MalformedError: it is not what it should be; nothing that is withheld is in the text.
    """
    try:
        return _read_message(key, value)
    except MalformedError as error:
        if names_withheld(str(error)):
            raise MalformedError("expected nothing that is withheld, found it") from None
        raise


def _read_message(key: bytes | None, value: bytes | None) -> dict[str, str | None]:
    if key is not None:
        _check_text("key", _decode("key", key))
    if value is None:
        raise MalformedError("expected a JSON object, found a tombstone: a message of no value")
    found = _read_object(_decode("message", value))
    fields = dict(found)
    if len(fields) < len(found):
        twice = sorted(
            name for name, count in Counter(name for name, _ in found).items() if count > 1
        )
        raise MalformedError(f"expected each column once, found twice: {list_names(twice)}")
    if unknown := sorted(fields.keys() - set(_HEADERS)):
        if any(names_withheld(name) for name in unknown):
            raise MalformedError("expected no column that is withheld, found one")
        raise MalformedError(f"expected no other columns, found {list_names(unknown)}")
    if missing := [header for header in _HEADERS if header not in fields]:
        raise MalformedError(f"expected all columns, found none named {list_names(missing)}")
    for column in SOURCE_COLUMNS:
        _check_field(column, fields[column.header])
    return {header: fields[header] for header in _HEADERS}


def left_out_values(fields: Mapping[str, str | None]) -> list[str]:
    """Why values of a message that ``read_message`` read are left out of the star, a reason each.

    Of side attributes those that cannot be read; none is no value.
    """
    reasons = []
    for column in SOURCE_COLUMNS:
        text = fields[column.header]
        if column.is_side and text is not None and not re.fullmatch(MISSING, text):
            expected, holds = _type_check(column.type)
            if not holds(text):
                reasons.append(f"{column.header}: expected {expected}, found {_shown(text)}")
    return reasons


def _decode(what: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise MalformedError(
            f"{what}: expected UTF-8, found byte {value[error.start]:#04x} at {error.start}"
        ) from None


class _Pairs(list[tuple[str, Any]]):
    """Members of a JSON object, in order, those of the same name included."""


class _Literal(str):
    """A JSON number as it is written."""


def _no_constant(text: str) -> None:
    raise MalformedError(f"expected a JSON object, found {text}, which JSON does not know")


def _load(text: str) -> Any:
    return json.loads(
        text,
        object_pairs_hook=_Pairs,
        parse_float=_Literal,
        parse_int=_Literal,
        parse_constant=_no_constant,
    )


def _read_object(text: str) -> _Pairs:
    try:
        found = _load(text)
    except json.JSONDecodeError as error:
        raise MalformedError(f"expected a JSON object, found no JSON: {error}") from None
    except RecursionError:
        raise MalformedError("expected a JSON object, found one too deeply nested") from None
    if not isinstance(found, _Pairs):
        raise MalformedError(f"expected a JSON object, found {_kind(found)}")
    return found


def _kind(found: Any) -> str:
    if isinstance(found, _Pairs):
        return "an object"
    if isinstance(found, list):
        return "an array"
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, _Literal):
        return f"the number {_shown(found)}"
    return "null" if found is None else "a text"  # which may be anybody's name


def _check_field(column: SourceColumn, found: Any) -> None:
    expected, holds = _type_check(column.type)
    if found is None or found == "":
        if column.required:
            raise MalformedError(
                f"{column.header}: expected {expected}, found {'null' if found is None else 'none'}"
            )
        return
    if not isinstance(found, str):
        raise MalformedError(f"{column.header}: expected {expected}, found {_kind(found)}")
    _check_text(column.header, found)
    if column.required and not holds(found):
        raise MalformedError(f"{column.header}: expected {expected}, found {_shown(found)}")


def _check_text(name: str, text: str) -> None:
    if "\0" in text:
        raise MalformedError(f"{name}: expected a text without NUL, found {_shown(text)}")
    if _HALF_PAIR.search(text):
        raise MalformedError(f"{name}: expected Unicode, found half a pair in {_shown(text)}")
    if SIGN in text.lower() and names_withheld(text):
        raise MalformedError(f"{name}: expected no column that is withheld, found one named")


@cache
def _type_check(kind: str) -> tuple[str, Callable[[str], bool]]:
    """What is expected of a text that is to become a value of the type, and whether it can."""
    if kind == "string":
        return "a text", lambda text: True
    if kind == CODE:
        return "a code of digits, or a text", lambda text: not re.fullmatch(LOST_CODE, text)
    if kind == "timestamp":
        return (
            "a time without a zone (times are local business time) of"
            f" {OLDEST_YEAR} to {NEWEST_YEAR}, as month/day/year hour:minute or ISO",
            lambda text: read_time(text) is not None,
        )
    if kind in ("int32", "int64"):
        bits = int(kind[3:])
        return f"a whole number of {bits} bits", lambda text: _is_whole(text, bits)
    digits, scale = decimal_digits(kind)
    return (
        f"a number of at most {digits} digits before the point",
        lambda text: _is_number(text, digits, scale),
    )


def decimal_digits(kind: str) -> tuple[int, int]:
    """How many digits a decimal type has before the point, and how many after it."""
    precision, scale = map(int, re.findall(r"[0-9]+", kind))
    return precision - scale, scale


def _is_whole(text: str, bits: int) -> bool:
    if not re.fullmatch(WHOLE_NUMBER, text):
        return False
    bound = 1 << (bits - 1)
    return -bound <= int(text.partition(".")[0]) < bound


def _is_number(text: str, digits: int, scale: int) -> bool:
    if not re.fullmatch(NUMBER, text):
        return False
    rounded = Decimal(text).quantize(Decimal(1).scaleb(-scale), context=_EXACT)
    return abs(rounded) < Decimal(1).scaleb(digits)


def read_time(text: str) -> datetime | None:
    """The time that a text is, to the microsecond; None where it is none."""
    if not re.fullmatch(DATE_TIME, text):
        return None
    (found,) = Moments("mdy").read([re.sub(r"(?<=[.][0-9]{6})[0-9]+", "", text)])
    return found if found and OLDEST_YEAR <= found.year <= NEWEST_YEAR else None


def payloads_of(good: "pa.Table") -> list[bytes]:
    """The JSON object of each row of MESSAGES: what its message said, where that is gone."""
    rows = good.select([c.name for c in SOURCE_COLUMNS]).rename_columns(list(_HEADERS)).to_pylist()
    return [json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() for row in rows]


def _shown(text: str) -> str:
    """A text for a reason: short, and without what would break a line."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def list_names(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(_shown(name) for name in names[:most]) + rest


# What is withheld: the column's name, however it is spelled, and what stands under it.

# A text without it does not name what is withheld, but in escapes.
SIGN = WITHHELD_HEADER.split()[-1].lower()
_ESCAPE = re.compile(
    r"\\+u\{?([0-9a-f]{4})\}?|\\+x([0-9a-f]{2})|%([0-9a-f]{2})|&#x0*([0-9a-f]{2,4});"
    r"|&#0*([0-9]{2,5});",
    re.IGNORECASE,
)
_NOT_LETTERS = re.compile(r"[\W_]+")
_MOST_LAYERS = 5
_DELIMITERS = ",;\t|"


def _plain(text: str) -> str:
    """Letters and digits of a text, its escapes undone, in lower case."""
    for _ in range(_MOST_LAYERS):
        undone = _ESCAPE.sub(_unescape, text)
        if undone == text:
            break
        text = undone
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _NOT_LETTERS.sub("", text.casefold())


def _unescape(match: re.Match[str]) -> str:
    *hexadecimal, decimal = match.groups()
    digits = next((group for group in hexadecimal if group), None)
    code = int(digits, 16) if digits else int(decimal)
    return chr(code) if code <= 0xFFFF else ""


_WITHHELD = _plain(WITHHELD_HEADER)


def names_withheld(text: str) -> bool:
    """Whether the withheld column's name is in a text, however it is spelled."""
    return _WITHHELD in _plain(text)


def keepable(raw: bytes | None) -> str | None:
    r"""Key or text of a dead letter: as it came, but for what is withheld.

    Bytes that are no UTF-8, and NUL, which no database's text holds, are written as ``\xNN``.
    """
    if raw is None:
        return None
    text = raw.decode(errors="backslashreplace").replace("\0", r"\x00")
    named = names_withheld(text)
    if not named and not _may_be_row(text):
        return text
    try:
        found = _load(raw.decode())
        if not _has_row(found):
            kept = _render(found)
            if not names_withheld(kept):
                return kept if named else text
    except (ValueError, RecursionError):  # no JSON, no text
        if not named and not _is_row(text):
            return text
    return (
        f"withheld: {len(raw)} bytes, SHA-256 {hashlib.sha256(raw).hexdigest()}, for they may hold"
        " a column that is withheld"
    )


def _may_be_row(text: str) -> bool:
    """Whether a text has as many delimiters as a row of the source: its fields have no names."""
    return any(text.count(mark) >= len(CSV_HEADER) - 1 for mark in _DELIMITERS)


def _is_row(text: str) -> bool:
    """Whether a text that is no JSON may be a row of the source; a torn object is none."""
    return not text.lstrip().startswith(("{", "["))


def _has_row(found: Any) -> bool:
    """Whether an array of JSON may be a row of the source."""
    if isinstance(found, _Pairs):
        return any(_has_row(value) for _, value in found)
    if isinstance(found, list):
        return len(found) == len(CSV_HEADER) or any(_has_row(value) for value in found)
    return isinstance(found, str) and _may_be_row(found) and _is_row(found)


def _render(found: Any) -> str:
    """JSON of what ``_load`` gave, without members whose name is withheld."""
    if isinstance(found, _Pairs):
        members = (
            f"{_quote(name)}:{_render(value)}" for name, value in found if not names_withheld(name)
        )
        return "{" + ",".join(members) + "}"
    if isinstance(found, list):
        return "[" + ",".join(map(_render, found)) + "]"
    return str(found) if isinstance(found, _Literal) else _quote(found)


def _quote(found: Any) -> str:
    """JSON of a text or a constant; half a pair, which is no Unicode, stays escaped."""
    has_half = isinstance(found, str) and _HALF_PAIR.search(found) is not None
    return json.dumps(found, ensure_ascii=has_half)


# What is personal.

_PERSONAL = {c.header for c in SOURCE_COLUMNS if c.name in MESSAGES.personal}
_PUBLIC = set(_HEADERS) - _PERSONAL


def mask_personal(reason: str, text: str) -> tuple[str, str]:
    """Reason and text of a dead letter without what may be personal.

    That is also what stands under an unknown name, holds other values, or is in no object.
    """
    from retail_assets.losses import MASK, public_reason

    shown = public_reason(reason, _PERSONAL)
    if shown.startswith("expected"):  # of the message as a whole
        shown = shown.partition(", found the ")[0]
    try:
        found = _load(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, _Pairs):
        return shown, MASK
    masked = (
        (name, value)
        if value is None or (name in _PUBLIC and not isinstance(value, list))
        else (name, MASK)
        for name, value in found
    )
    return shown, _render(_Pairs(masked))
